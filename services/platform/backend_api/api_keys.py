"""API keys: what they look like, and what they may permit."""

import re
import secrets
from collections.abc import Iterable
from functools import cache

from nexus.platform.backend_api.v1.faults import ScopeNotHeld, ScopeUnknown
from services.chassis import contract
from services.chassis.context import User
from services.chassis.ids import new_secret

EVERYTHING = "*"
QUOTA = "api_keys"
"""The quota of keys that have been made and not revoked."""
_FORM = re.compile(r"(nxk_[0-9a-f]{16})_[A-Za-z0-9_-]{43}")


def new_key() -> tuple[str, str]:
    """(prefix, key). The prefix tells keys apart and may be seen; the rest is 256 random bits."""
    prefix = f"nxk_{secrets.token_hex(8)}"
    return prefix, f"{prefix}_{new_secret()}"


def prefix_of(key: str) -> str | None:
    """The prefix of what looks like a key."""
    match = _FORM.fullmatch(key)
    return match[1] if match else None


def require_held(scopes: Iterable[str], maker: User) -> None:
    """Raises ScopeUnknown, or ScopeNotHeld for what the maker may not do. Their own matters are everybody's."""
    for scope in set(scopes) - contract.own_scopes():
        if scope not in known_permissions():
            raise ScopeUnknown(scope=scope)
        if not maker.may(scope):
            raise ScopeNotHeld(scope=scope)


def effective(scopes: Iterable[str], held: Iterable[str]) -> list[str]:
    """What a key permits: its scopes, as far as its user still has them. Sorted; "*" in either stands for all."""
    scopes, held = set(scopes), set(held)
    if EVERYTHING in scopes:
        return sorted(held)
    return sorted(scopes if EVERYTHING in held else scopes & held)


@cache
def known_permissions() -> frozenset[str]:
    """Every permission that a contract names, and "*"."""
    return frozenset(
        {EVERYTHING, *(method.policy.permission for method in contract.methods().values() if method.policy.permission)}
    )
