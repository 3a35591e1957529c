"""Passwords known from breaches, asked of a range API as Have I Been Pwned offers it, or a mirror of its own.

Only the first 5 of 40 digits of the password's SHA-1 are sent; the answer lists the rest of every known hash that
begins so (https://haveibeenpwned.com/API/v3#SearchingPwnedPasswordsByRange).
"""

import hashlib
import logging

import httpx

_SECONDS = 2.0
_PREFIX = 5

logger = logging.getLogger(__name__)


class BreachedPasswords:
    def __init__(self, url: str) -> None:
        """`url` is what the prefix is appended to: "https://api.pwnedpasswords.com/range/"."""
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/",
            timeout=_SECONDS,
            # Answers of about the same length, whatever is asked for.
            headers={"Add-Padding": "true", "User-Agent": "nexus-cos"},
        )

    async def has(self, password: str) -> bool:
        """False also while nobody answers: a list that is away keeps nobody from setting a password, and what is too
        easy to guess is refused without it."""
        digest = hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()
        prefix, rest = digest[:_PREFIX], digest[_PREFIX:]
        try:
            answer = (await self._client.get(prefix)).raise_for_status()
        except httpx.HTTPError as error:
            logger.warning("passwords are not looked up among stolen ones: %s", type(error).__name__)
            return False
        return any(_is_known(line, rest) for line in answer.text.splitlines())


def _is_known(line: str, rest: str) -> bool:
    """Whether a line, "0018A45C4D1DEF81644B54AB7F969B88D65:21", is of this hash. Padding has been seen 0 times."""
    suffix, _, seen = line.strip().partition(":")
    return suffix.upper() == rest and seen.strip() != "0"
