"""Passwords: what makes a good one, and argon2id (RFC 9106), off the event loop."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import argon2
import zxcvbn

from nexus.identity.user_auth.v1.faults import PasswordWeak
from services.identity.user_auth.breaches import BreachedPasswords

Result = TypeVar("Result")

# OWASP's first recommendation for argon2id: 19 MiB, two passes, one lane.
_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_UNKNOWN_USER = _HASHER.hash(os.urandom(16))
# As many at once as there are cores: more would only trade memory for latency.
_EXECUTOR = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="argon2")
_JUDGED_CHARACTERS = 72  # the estimate's time grows with the square; what follows can only help
_TOO_COMMON = "it is too common or too easy to guess"


@dataclass(frozen=True)
class Policy:
    """What a tenant asks of a password."""

    min_length: int
    """In characters."""
    min_strength: int
    """zxcvbn's score, 0 to 4; from 1 on its list of common and leaked passwords is refused."""


async def require_strong(
    password: str, policy: Policy, personal: tuple[str, ...], breached: BreachedPasswords | None = None
) -> None:
    """Raises PasswordWeak. `personal` are words that the password must not be made of: the address, the name."""
    if len(password) < policy.min_length:
        raise PasswordWeak(why=f"it needs at least {policy.min_length} characters")
    if len(set(password)) < 4:
        raise PasswordWeak(why="it repeats the same few characters")
    folded = password.casefold()
    if any(word and folded == word.casefold() for word in personal):
        raise PasswordWeak(why="it is your e-mail address or your name")
    if await _run(_strength, password, personal) < policy.min_strength:
        raise PasswordWeak(why=_TOO_COMMON)
    if breached is not None and await breached.has(password):
        raise PasswordWeak(why="it is among passwords that were stolen elsewhere")


def _strength(password: str, personal: tuple[str, ...]) -> int:
    words = [part for word in personal for part in (word, *word.replace("@", " ").split())]
    score: int = zxcvbn.zxcvbn(password[:_JUDGED_CHARACTERS], user_inputs=words)["score"]
    return score


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
