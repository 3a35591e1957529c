"""What may be recorded as use, and how meters read it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from nexus.finance.billing_service.v1.faults import (
    EventTimeInvalid,
    EventValueInvalid,
    MeterInvalid,
    PeriodInvalid,
)
from nexus.finance.billing_service.v1.usage_pb2 import UsageEvent
from services.chassis.clock import moment

OLDEST = timedelta(days=400)
LONGEST_QUERY = timedelta(days=400)
_CLOCKS_APART = timedelta(minutes=5)
_NUMERIC = ("SUM", "MAX", "LATEST")


@dataclass(frozen=True)
class Use:
    """An event as it is kept."""

    event: UsageEvent
    time: datetime
    value: Decimal


def require_meter(aggregation: str, value_property: str) -> None:
    """Raises MeterInvalid."""
    if aggregation == "UNIQUE_COUNT" and not value_property:
        raise MeterInvalid(why="to count different values it needs a value_property")
    if aggregation == "COUNT" and value_property:
        raise MeterInvalid(why="a count reads no value_property")


def accept(events: Iterable[UsageEvent], meters: Sequence[Mapping[str, Any]], at: datetime) -> list[Use]:
    """Raises EventTimeInvalid, EventValueInvalid."""
    read: defaultdict[str, set[str]] = defaultdict(set)
    for meter in meters:
        if meter["value_property"] and meter["aggregation"] in _NUMERIC:
            read[meter["event_name"]].add(meter["value_property"])
    uses = []
    for event in events:
        time = moment(event.event_time) if event.HasField("event_time") else at
        if time > at + _CLOCKS_APART:
            raise EventTimeInvalid(event_id=event.event_id, why="from the future")
        if time < at - OLDEST:
            raise EventTimeInvalid(event_id=event.event_id, why="too old")
        for name in read[event.name]:
            if not _is_number(event.properties.get(name, "")):
                raise EventValueInvalid(event_id=event.event_id, property=name)
        uses.append(Use(event, time, Decimal(event.value or "1")))
    return uses


def require_period(start: datetime, end: datetime) -> None:
    """Raises PeriodInvalid."""
    if end <= start:
        raise PeriodInvalid(why="its end is not after its start")
    if end - start > LONGEST_QUERY:
        raise PeriodInvalid(why=f"it is longer than {LONGEST_QUERY.days} days")


def _is_number(text: str) -> bool:
    try:
        return Decimal(text).is_finite() and abs(Decimal(text).adjusted()) < 30
    except InvalidOperation:
        return False
