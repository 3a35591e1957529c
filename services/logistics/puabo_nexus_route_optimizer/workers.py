"""Processes that compute, so that nothing else in this process waits for it. A call that is cancelled, or runs out of
time, takes its process with it: the solver listens to nothing less.
"""

import asyncio
import contextlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any

from nexus.logistics.puabo_nexus_route_optimizer.v1.faults import SolverLimitReached
from services.logistics.puabo_nexus_route_optimizer import worker

IDLE_SECONDS = 300.0
"""A process that has had nothing to do for this long is ended, to give its memory back."""


class Workers:
    """Up to `size` processes, started when they are needed."""

    def __init__(self, size: int, memory_mib: int) -> None:
        self._memory = memory_mib * 1024 * 1024
        self._free = asyncio.Semaphore(size)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="worker")
        self._idle: list[tuple[float, subprocess.Popen[bytes]]] = []

    async def run(self, seconds: float, name: str, *arguments: Any) -> Any:
        """What the function of this name in `computing` makes of the arguments.

        Raises what it raises, or SolverLimitReached when it takes too long or too much memory.
        """
        loop = asyncio.get_running_loop()
        frame = pickle.dumps((ceil(seconds) + 1, name, arguments))
        try:
            async with asyncio.timeout(seconds), self._free:
                process = self._idle.pop()[1] if self._idle else self._start()
                try:
                    answer = await loop.run_in_executor(self._threads, _exchange, process, frame)
                except BaseException:
                    process.kill()
                    raise
                if answer is not None:
                    self._idle.append((loop.time(), process))
        except TimeoutError:
            raise SolverLimitReached(limit=f"{seconds:.0f} s") from None
        if answer is None:
            raise SolverLimitReached(limit="its process")
        succeeded, result = pickle.loads(answer)  # noqa: S301  from our child
        if succeeded:
            return result
        if isinstance(result, MemoryError):
            raise SolverLimitReached(limit=f"{self._memory // 1024**2} MiB") from result
        raise result

    async def tend(self) -> None:
        """End processes that have long been idle; to be run now and then."""
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS
        for since, process in list(self._idle):
            if since < oldest:
                self._idle.remove((since, process))
                _end(process)

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", worker.__name__, str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
        )


def _exchange(process: "subprocess.Popen[bytes]", frame: bytes) -> bytes | None:
    """Send a call and wait for its answer; None if the process ends instead. Runs in a thread."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        worker.write(process.stdin, frame)
        answer = worker.read(process.stdout)
    except (BrokenPipeError, ValueError):
        answer = None
    if answer is None:
        _end(process)
    return answer


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
