"""When a refresh token may be exchanged (RFC 9700, section 4.14)."""

from datetime import datetime, timedelta
from enum import Enum


class Verdict(Enum):
    EXCHANGE = "exchange"
    INVALID = "invalid"
    REUSED = "reused"
    """It was copied: somebody else has already exchanged it."""


def judge(
    *,
    now: datetime,
    grace: timedelta,
    token_expires: datetime,
    spent: datetime | None,
    family_expires: datetime,
    family_revoked: datetime | None,
) -> Verdict:
    """What to do with a refresh token that comes in now.

    Within `grace` of its exchange a spent token is taken again: a client that refreshes twice in parallel, or
    never received the answer, is not a thief.
    """
    if family_revoked is not None or family_expires <= now:
        return Verdict.INVALID
    if spent is not None and now - spent > grace:
        return Verdict.REUSED
    return Verdict.EXCHANGE if token_expires > now else Verdict.INVALID
