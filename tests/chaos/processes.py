"""The processes of a platform, as `nexus status` tells them."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable

import httpx

from mesh.local.supervisor import PlatformState, ProcessState, read_state
from tests.platforms import Platform


def status(platform: Platform, name: str) -> ProcessState:
    return next(process for process in state(platform).processes if process.name == name)


def workers(platform: Platform) -> dict[str, int | None]:
    """The pid of every process by its name; None of one that is about to be started again."""
    return {process.name: process.pid for process in state(platform).processes}


def state(platform: Platform) -> PlatformState:
    """What `nexus status` reads, without measuring everybody's memory."""
    found = read_state(platform.settings.run_dir)
    assert found is not None
    assert found.alive
    return found


def send(process: ProcessState, number: signal.Signals) -> None:
    """Signal a process of which `status` told that it runs."""
    assert process.pid is not None, f"{process.name} does not run"
    os.kill(process.pid, number)


def replaced(platform: Platform, before: ProcessState) -> bool:
    """Whether the supervisor has started it again."""
    return status(platform, before.name).pid not in (None, before.pid)


async def until(
    ask: Callable[[], Awaitable[httpx.Response]],
    enough: Callable[[httpx.Response], bool],
    *,
    allow: int,
    seconds: float = 30.0,
) -> None:
    """Ask until the answer is the right one; before that, only this status is allowed."""
    deadline = time.monotonic() + seconds
    while (answer := await ask()).status_code == allow:
        assert time.monotonic() < deadline, f"still {answer.status_code} after {seconds} s: {answer.text}"
        await asyncio.sleep(0.05)
    assert enough(answer), f"{answer.status_code}: {answer.text}"
