"""When to try again to collect a bill, and what becomes of it in the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal


@dataclass(frozen=True)
class Policy:
    """A tenant's own, or the platform's: after one, three, five and seven days more, then the subscription ends."""

    retry_after_hours: Sequence[int] = (24, 72, 120, 168)
    outcome: Literal["CANCEL", "KEEP"] = "CANCEL"


def next_attempt(policy: Policy, failed: int, at: datetime) -> datetime | None:
    """When to try for the next time after so many failed attempts, the last of them at this time; None to give up."""
    if failed > len(policy.retry_after_hours):
        return None
    return at + timedelta(hours=policy.retry_after_hours[failed - 1])
