"""Ending background tasks."""

import asyncio
from collections.abc import Iterable
from typing import Any


async def cancel_all(tasks: Iterable["asyncio.Task[Any]"], patience: float = 1.0) -> None:
    """Cancel tasks and wait until they have ended.

    More than once, if need be, after `patience` seconds each: Redis's client swallows a cancellation that meets it
    while it connects.
    """
    remaining = set(tasks)
    while remaining:
        for task in remaining:
            task.cancel()
        _, remaining = await asyncio.wait(remaining, timeout=patience)
