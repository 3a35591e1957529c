"""Passwords: what makes a good one, and argon2id (RFC 9106), off the event loop."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import argon2

from nexus.identity.user_auth.v1.faults import PasswordWeak

Result = TypeVar("Result")

# OWASP's first recommendation for argon2id: 19 MiB, two passes, one lane.
_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_UNKNOWN_USER = _HASHER.hash(os.urandom(16))
# As many at once as there are cores: more would only trade memory for latency.
_EXECUTOR = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="argon2")


def require_strong(password: str, *, min_length: int, personal: tuple[str, ...]) -> None:
    """Raises PasswordWeak. `personal` are words that the password must not be: the address, the name."""
    if len(password) < min_length:
        raise PasswordWeak(why=f"it needs at least {min_length} characters")
    if len(set(password)) < 4:
        raise PasswordWeak(why="it repeats the same few characters")
    folded = password.casefold()
    if any(word and folded == word.casefold() for word in personal):
        raise PasswordWeak(why="it is your e-mail address or your name")


async def hash_password(password: str) -> str:
    """The encoded hash (PHC string format)."""
    return await _run(_HASHER.hash, password)


async def matches(password_hash: str | None, password: str) -> bool:
    """Whether the password belongs to the hash. Takes as long without a hash as with one."""
    return await _run(_verify, password_hash or _UNKNOWN_USER, password) and password_hash is not None


def needs_rehash(password_hash: str) -> bool:
    """Whether the hash was made with other parameters than today's."""
    return _HASHER.check_needs_rehash(password_hash)


def _verify(password_hash: str, password: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except argon2.exceptions.VerifyMismatchError:
        return False


async def _run(work: Callable[..., Result], *args: object) -> Result:
    return await asyncio.get_running_loop().run_in_executor(_EXECUTOR, work, *args)
