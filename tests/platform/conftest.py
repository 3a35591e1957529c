"""Waiting, without stopping the loop that everything else runs on."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest


@pytest.fixture
def eventually_async() -> Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]:
    """Wait until a condition holds; fail after 20 seconds."""

    async def wait(condition: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + 20
        while not await condition():
            assert time.monotonic() < deadline, f"{condition} did not become true"
            await asyncio.sleep(0.1)

    return wait
