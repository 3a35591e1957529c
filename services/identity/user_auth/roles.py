"""What roles permit."""

from collections.abc import Iterable

EVERYTHING = "*"
BUILT_IN: dict[str, frozenset[str]] = {
    "owner": frozenset({EVERYTHING}),
}
"""The roles that every tenant has."""


def permissions_of(roles: Iterable[str]) -> list[str]:
    """The permissions of all roles together, sorted. A role that is not known permits nothing."""
    return sorted(frozenset().union(*(BUILT_IN.get(role, frozenset()) for role in roles)))
