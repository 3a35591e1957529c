"""Processes that compute, so that nothing else in this process waits for it. A call that is cancelled, or runs out of
time, takes its process with it: the solver listens to nothing less.
"""

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from multiprocessing import Pipe
from typing import Any, NamedTuple

from nexus.logistics.puabo_nexus_route_optimizer.v1.faults import SolverLimitReached
from services.logistics.puabo_nexus_route_optimizer import worker

IDLE_SECONDS = 300.0
"""A process that has had nothing to do for this long is ended, to give its memory back."""


class _Process(NamedTuple):
    child: "subprocess.Popen[bytes]"
    pipe: Any

    def ask(self, call: tuple[int, str, tuple[Any, ...]]) -> tuple[bool, Any] | None:
        """Whether the call succeeded, and what came of it; None if the process ends instead. Runs in a thread."""
        try:
            self.pipe.send(call)
            answer: tuple[bool, Any] = self.pipe.recv()
        except (EOFError, OSError):
            self.end()
            return None
        return answer

    def end(self) -> None:
        self.child.kill()
        self.child.wait()
        self.pipe.close()


class Workers:
    """Up to `size` processes, started when they are needed."""

    def __init__(self, size: int, memory_mib: int) -> None:
        self._memory = memory_mib * 1024 * 1024
        self._free = asyncio.Semaphore(size)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="worker")
        self._idle: list[tuple[float, _Process]] = []

    async def run(self, seconds: float, name: str, *arguments: Any) -> Any:
        """What the function of this name in `computing` makes of the arguments.

        Raises what it raises, or SolverLimitReached when it takes too long or too much memory.
        """
        loop = asyncio.get_running_loop()
        call = ceil(seconds) + 1, name, arguments
        try:
            async with asyncio.timeout(seconds), self._free:
                process = self._idle.pop()[1] if self._idle else self._start()
                try:
                    answer = await loop.run_in_executor(self._threads, process.ask, call)
                except BaseException:
                    process.child.kill()
                    raise
                if answer is not None:
                    self._idle.append((loop.time(), process))
        except TimeoutError:
            raise SolverLimitReached(limit=f"{seconds:.0f} s") from None
        if answer is None:
            raise SolverLimitReached(limit="its process")
        succeeded, result = answer
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
                process.end()

    def _start(self) -> _Process:
        pipe, theirs = Pipe()
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-m", worker.__name__, str(theirs.fileno()), str(self._memory)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # whatever a library prints belongs to the log
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            )
        return _Process(child, pipe)
