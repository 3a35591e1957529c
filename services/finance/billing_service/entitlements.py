"""What subscriptions entitle to, put together."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from nexus.finance.billing_service.v1.plans_pb2 import Feature


@dataclass(frozen=True)
class Grant:
    """A feature of one subscription."""

    feature: Feature
    quantity: int
    period_start: datetime
    period_end: datetime


@dataclass(frozen=True)
class Right:
    """A feature of all of a customer's subscriptions."""

    key: str
    limit: int | None
    """None for boundless."""
    meter_key: str
    since: datetime
    """From when use counts against the limit."""
    until: datetime


def combined(grants: Iterable[Grant]) -> list[Right]:
    """Limits of several subscriptions add up; one without a limit lifts them all. Use counts from the beginning of
    the latest period."""
    rights: dict[str, Right] = {}
    for grant in grants:
        feature, earlier = grant.feature, rights.get(grant.feature.key)
        limit = feature.limit * (grant.quantity if feature.per_unit else 1) if feature.HasField("limit") else None
        if earlier is not None:
            limit = None if limit is None or earlier.limit is None else limit + earlier.limit
        latest = earlier is None or grant.period_start >= earlier.since
        rights[feature.key] = Right(
            key=feature.key,
            limit=limit,
            meter_key=feature.meter_key or (earlier.meter_key if earlier is not None else ""),
            since=grant.period_start if latest or earlier is None else earlier.since,
            until=grant.period_end if latest or earlier is None else earlier.until,
        )
    return [rights[key] for key in sorted(rights)]
