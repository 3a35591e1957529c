"""Quotas: how much of something a tenant may use in a period. Periods begin at whole hours, days and months, UTC."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nexus.modules.puabo_os.v1.faults import QuotaRepeated

HOUR, DAY, MONTH, TOTAL = "hour", "day", "month", "total"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Quota:
    """What a plan says of one counter."""

    counter: str
    period: str
    limit: int | None
    """None for a counter that is counted and not limited."""

    def start(self, now: datetime) -> datetime:
        """When the running period began."""
        match self.period:
            case "hour":
                return now.replace(minute=0, second=0, microsecond=0)
            case "day":
                return now.replace(hour=0, minute=0, second=0, microsecond=0)
            case "month":
                return now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return EPOCH

    def reset(self, now: datetime) -> datetime | None:
        """When the next period begins; None for a total."""
        start = self.start(now)
        match self.period:
            case "hour":
                return start + timedelta(hours=1)
            case "day":
                return start + timedelta(days=1)
            case "month":
                return (start + timedelta(days=32)).replace(day=1)
        return None


def quota_of(counter: str, quotas: Iterable[Quota]) -> Quota:
    """The plan's quota for a counter; without one it is counted by the month."""
    return next((quota for quota in quotas if quota.counter == counter), Quota(counter, MONTH, None))


def require_distinct(counters: Sequence[str]) -> None:
    """Raises QuotaRepeated."""
    for counter in counters:
        if counters.count(counter) > 1:
            raise QuotaRepeated(counter=counter)
