"""What roles permit. Deny beats allow, whichever of a user's roles says so."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache

from nexus.identity.user_auth.v1.faults import PermissionUnknown, RoleBeyondOwn
from services.chassis import contract

EVERYTHING = "*"
OWNER = "owner"


@dataclass(frozen=True)
class Rule:
    """A role: what it allows and denies, by permission ("users.read"), resource ("users.*") or "*"."""

    name: str
    allow: frozenset[str]
    deny: frozenset[str] = frozenset()


BUILT_IN = {OWNER: Rule(OWNER, frozenset({EVERYTHING}))}
"""The roles that every tenant has."""


@cache
def known_permissions() -> tuple[str, ...]:
    """Every permission that a method of the platform asks for, sorted."""
    asked = (method.policy.permission for method in contract.methods().values())
    return tuple(sorted({permission for permission in asked if permission}))


def require_known(entries: Iterable[str]) -> None:
    """Raises PermissionUnknown for an entry that covers no permission of the platform."""
    for entry in entries:
        if not _expand([entry]):
            raise PermissionUnknown(permission=entry)


def permissions_of(rules: Iterable[Rule]) -> list[str]:
    """What the roles together permit, sorted; "*" alone if that is everything."""
    rules = list(rules)
    denied = _expand(entry for rule in rules for entry in rule.deny)
    allowed = [entry for rule in rules for entry in rule.allow]
    if EVERYTHING in allowed and not denied:
        return [EVERYTHING]
    return sorted(_expand(allowed) - denied)


def require_within(rule: Rule, own: Collection[str]) -> None:
    """Raises RoleBeyondOwn if the role decides on what somebody with the permissions `own` may not do.

    What it denies counts too: who takes such a role away gives the permission back.
    """
    if EVERYTHING in own:
        return
    # The wildcard itself is beyond: it also covers what later versions of the platform add.
    decided = rule.allow | rule.deny
    beyond = {EVERYTHING} if EVERYTHING in decided else _expand(decided) - set(own)
    if beyond:
        raise RoleBeyondOwn(role=rule.name, permission=min(beyond))


def _expand(entries: Iterable[str]) -> set[str]:
    """The permissions that entries cover. One that the platform does not know, or not any more, covers none."""
    known = known_permissions()
    covered: set[str] = set()
    for entry in entries:
        if entry == EVERYTHING:
            covered.update(known)
        elif entry.endswith(".*"):
            covered.update(permission for permission in known if permission.startswith(entry[:-1]))
        elif entry in known:
            covered.add(entry)
    return covered
