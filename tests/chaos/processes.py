"""The processes of a platform, as `nexus status` tells them."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from tests.platforms import Platform


def status(platform: Platform, name: str) -> dict[str, Any]:
    told = json.loads(platform.nexus("status", "--json").stdout)
    return next(process for process in told["processes"] if process["name"] == name)


def workers(platform: Platform) -> dict[str, int]:
    """Every process by name."""
    told = json.loads(platform.nexus("status", "--json").stdout)
    return {process["name"]: process["pid"] for process in told["processes"]}


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
