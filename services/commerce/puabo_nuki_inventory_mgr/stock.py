"""What is where, what may be done with it, and from where a buyer is served.

A `Stock` is the levels of some items, all their locations, while nobody else can change them. What is done to it is
checked at once and collected, to be written in one go.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from nexus.commerce.puabo_nuki_inventory_mgr.v1.faults import RestockExceeded, StockInsufficient

Key = TypeVar("Key", str, "Place")


class Place(NamedTuple):
    """An item at a location. Rows are locked in the order of these."""

    item_id: str
    location_id: str


@dataclass(frozen=True)
class Level:
    on_hand: int
    reserved: int
    priority: int = 0
    closed: bool = False

    @property
    def free(self) -> int:
        """What is not set aside."""
        return self.on_hand - self.reserved

    @property
    def available(self) -> int:
        """What can be sold."""
        return 0 if self.closed else self.free


@dataclass(frozen=True)
class Movement:
    item_id: str
    location_id: str
    kind: str
    quantity: int
    on_hand_after: int
    reason: str


@dataclass(frozen=True)
class Occasion:
    """Who moves goods, and what for; it goes on record with each movement."""

    actor: str
    reference: str = ""
    note: str = ""
    reservation_id: str | None = None


@dataclass(frozen=True)
class Change:
    """What becomes of an item as a whole."""

    item_id: str
    on_hand: int
    available: int
    available_before: int

    @property
    def depleted(self) -> bool:
        return self.available == 0 < self.available_before

    @property
    def replenished(self) -> bool:
        return self.available > 0 == self.available_before


class Stock:
    """Levels under lock. Methods raise StockInsufficient rather than take what is not there or set aside."""

    def __init__(self, levels: Mapping[Place, Level]) -> None:
        self._before = dict(levels)
        self.levels = dict(levels)
        self.movements: list[Movement] = []

    def level(self, place: Place) -> Level:
        return self.levels.get(place, Level(0, 0, closed=True))

    def available(self, item_id: str) -> int:
        return sum(level.available for place, level in self.levels.items() if place.item_id == item_id)

    def move(self, place: Place, quantity: int, kind: str, reason: str = "") -> None:
        """Put so many units there, or take them away."""
        level = self.level(place)
        if level.free + quantity < 0:
            raise StockInsufficient(item_id=place.item_id, requested=-quantity, available=level.free)
        self.levels[place] = replace(level, on_hand=level.on_hand + quantity)
        if quantity:
            self.movements.append(Movement(*place, kind, quantity, level.on_hand + quantity, reason))

    def count(self, place: Place, counted: int, reason: str) -> None:
        """Say how many there are."""
        self.move(place, counted - self.level(place).on_hand, "adjusted", reason)

    def hold(self, place: Place, quantity: int) -> None:
        """Set units aside."""
        level = self.level(place)
        if level.available < quantity:
            raise StockInsufficient(item_id=place.item_id, requested=quantity, available=level.available)
        self.levels[place] = replace(level, reserved=level.reserved + quantity)

    def let_go(self, place: Place, quantity: int) -> None:
        """Undo `hold`."""
        level = self.levels[place]
        self.levels[place] = replace(level, reserved=level.reserved - quantity)

    def sell(self, place: Place, quantity: int) -> None:
        """Take away what was set aside."""
        self.let_go(place, quantity)
        self.move(place, -quantity, "sold")

    def differences(self) -> list[tuple[Place, int, int]]:
        """Places that changed: by how much what is on hand did, and what is reserved."""
        return [
            (place, level.on_hand - before.on_hand, level.reserved - before.reserved)
            for place, level in sorted(self.levels.items())
            if (before := self._before[place]) != level
        ]

    def changes(self) -> list[Change]:
        """Items of which more or less is on hand or available than before."""
        was = Stock(self._before)
        changes = []
        for item_id in sorted({place.item_id for place, _, _ in self.differences()}):
            on_hand, on_hand_before = self._on_hand(item_id), was._on_hand(item_id)
            change = Change(item_id, on_hand, self.available(item_id), was.available(item_id))
            if (on_hand, change.available) != (on_hand_before, change.available_before):
                changes.append(change)
        return changes

    def _on_hand(self, item_id: str) -> int:
        return sum(level.on_hand for place, level in self.levels.items() if place.item_id == item_id)


def total(lines: Iterable[tuple[Key, int]]) -> dict[Key, int]:
    """How much is asked for of each item or place, those that are named twice counted once, in the order of locking."""
    sums: dict[Key, int] = defaultdict(int)
    for key, quantity in lines:
        sums[key] += quantity
    return dict(sorted(sums.items()))


def reserve(stock: Stock, wanted: Mapping[Place, int]) -> dict[Place, int]:
    """Set aside what is wanted; returns from where. A place without a location may be served from any.

    Raises StockInsufficient, with what there is of the item altogether.
    """
    held: dict[Place, int] = defaultdict(int)

    def hold(place: Place, quantity: int) -> None:
        stock.hold(place, quantity)
        held[place] += quantity

    for place, quantity in wanted.items():
        if place.location_id:
            hold(place, quantity)
    remaining = {place.item_id: quantity for place, quantity in wanted.items() if not place.location_id}
    for item_id, quantity in remaining.items():
        if (available := stock.available(item_id)) < quantity:
            raise StockInsufficient(item_id=item_id, requested=quantity, available=available)
    while remaining:
        location = _best_location(stock, remaining)
        for item_id, quantity in list(remaining.items()):
            taken = min(quantity, stock.level(Place(item_id, location)).available)
            if taken:
                hold(Place(item_id, location), taken)
            remaining[item_id] -= taken
            if not remaining[item_id]:
                del remaining[item_id]
    return dict(sorted(held.items()))


def _best_location(stock: Stock, wanted: Mapping[str, int]) -> str:
    """The location that has most of it: all, if there is one; among equals the first in the order of selling."""
    has: dict[tuple[int, str], int] = defaultdict(int)
    for place, level in stock.levels.items():
        has[level.priority, place.location_id] += min(level.available, wanted.get(place.item_id, 0))
    _, location = min(has, key=lambda location: (-has[location], location))
    return location


def take_back(sold: Mapping[Place, tuple[int, int]], lines: Mapping[str, int], reservation_id: str) -> dict[Place, int]:
    """To where the units of a committed reservation go back; everything that is still out when `lines` is empty.

    `sold` says for each place how many went out and how many of those came back already. Raises RestockExceeded.
    """
    out: dict[str, int] = defaultdict(int)
    for place, (quantity, restocked) in sold.items():
        out[place.item_id] += quantity - restocked
    back: dict[Place, int] = {}
    for item_id, wanted in (lines or out).items():
        left = out.get(item_id, 0)
        if wanted > left:
            raise RestockExceeded(reservation_id=reservation_id, item_id=item_id, left=left)
        for place, (quantity, restocked) in sorted(sold.items()):
            if place.item_id == item_id and (taken := min(wanted, quantity - restocked)):
                back[place] = taken
                wanted -= taken
    return back
