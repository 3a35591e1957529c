"""What something costs: which entry on record holds at a moment, and how that goes on over time.

An entry is in force from its start to its end, and only while its list is. Of those in force the entry of the list
with the highest priority holds, a sale before a regular list of the same priority, then the list made last. Within
a list: the one for the largest quantity, then the one in force since the latest moment, then the one put on record
last. Nothing of this depends on what is written later, so the answer about a moment stays the same.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

FOREVER = datetime(9999, 1, 1, tzinfo=UTC)
"""The end of what has none."""


@dataclass(frozen=True)
class Entry:
    entry_id: str
    sequence: int
    price_list_id: str
    variant_id: str
    minor_units: int | None
    """None: the list has no price."""
    min_quantity: int
    start: datetime
    end: datetime
    """Of the entry within its list: from `start` on, and before `end`."""
    sale: bool = False
    priority: int = 0
    tax_included: bool = False

    @property
    def rank_in_list(self) -> tuple[int, datetime, int]:
        return self.min_quantity, self.start, self.sequence

    @property
    def rank_of_list(self) -> tuple[int, bool, str]:
        return self.priority, self.sale, self.price_list_id


@dataclass(frozen=True)
class Price:
    """What holds at a moment."""

    entry: Entry
    minor_units: int
    regular: int | None = None
    """What the regular lists say, if a sale holds."""


@dataclass(frozen=True)
class Period:
    """A time in which the prices of a product stay the same."""

    start: datetime
    end: datetime
    lowest: int
    highest: int
    regular: int | None


def price_at(entries: Iterable[Entry], at: datetime, quantity: int = 1) -> Price | None:
    """The price of one variant; None where it has none. `entries` are of one channel and currency."""
    in_force = [entry for entry in entries if entry.start <= at < entry.end and entry.min_quantity <= quantity]
    in_force.sort(key=lambda entry: entry.rank_in_list)
    by_list = {entry.price_list_id: entry for entry in in_force}  # the last one, which has the highest rank
    holding = [entry for entry in by_list.values() if entry.minor_units is not None]
    if not holding:
        return None
    winner = max(holding, key=lambda entry: entry.rank_of_list)
    assert winner.minor_units is not None
    regular = [entry for entry in holding if not entry.sale]
    if not winner.sale or not regular:
        return Price(winner, winner.minor_units)
    return Price(winner, winner.minor_units, max(regular, key=lambda entry: entry.rank_of_list).minor_units)


def periods(entries: Iterable[Entry], since: datetime) -> list[Period]:
    """The prices of a product from `since` on, as far as they are on record; `entries` are of all its variants, in one
    channel and currency. Prices are those of a single unit. No period where it has no price."""
    by_variant: Mapping[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.end > since and entry.min_quantity == 1:
            by_variant[entry.variant_id].append(entry)
    moments = {since}
    for of_variant in by_variant.values():
        for entry in of_variant:
            moments.update(moment for moment in (entry.start, entry.end) if moment > since)
    ordered = sorted(moments)
    found: list[Period] = []
    for start, end in zip(ordered, [*ordered[1:], FOREVER], strict=True):
        period = _period(start, end, by_variant.values())
        if period is None:
            continue
        if found and found[-1].end == start and _same(found[-1], period):
            period = Period(found.pop().start, end, period.lowest, period.highest, period.regular)
        found.append(period)
    return [period for period in found if period.start < period.end]


def _period(start: datetime, end: datetime, variants: Iterable[Sequence[Entry]]) -> Period | None:
    prices = [price for entries in variants if (price := price_at(entries, start)) is not None]
    if not prices:
        return None
    cheapest = min(prices, key=lambda price: price.minor_units)
    return Period(start, end, cheapest.minor_units, max(price.minor_units for price in prices), cheapest.regular)


def _same(one: Period, other: Period) -> bool:
    return (one.lowest, one.highest, one.regular) == (other.lowest, other.highest, other.regular)
