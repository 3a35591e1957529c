"""Things into boxes: extreme points (Crainic, Perboli, Tadei 2008), the large things first, the smallest box that holds
the rest.

Every answer is checked by `packing_check`, which shares nothing with this module.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations

from nexus.commerce.puabo_nuki_shipping_service.v1.faults import ItemFitsNoBox
from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import Box, PackedBox, PackingItem, Parcel

MOST_UNITS = 250
"""How many things are packed at once."""

Size = tuple[int, int, int]
Point = tuple[int, int, int]


@dataclass(frozen=True)
class Unit:
    """One thing, in each way it may lie."""

    item_id: str
    grams: int
    ways: tuple[Size, ...]

    @property
    def volume(self) -> int:
        length, width, height = self.ways[0]
        return length * width * height


@dataclass
class Filling:
    """A box that is being filled. Its corner is the origin."""

    box: Box
    grams: int
    placed: list[tuple[Unit, Point, Size]] = field(default_factory=list)
    points: list[Point] = field(default_factory=lambda: [(0, 0, 0)])

    @property
    def volume(self) -> int:
        return sum(unit.volume for unit, _, _ in self.placed)

    def take(self, unit: Unit) -> bool:
        """Place it at the lowest point, as far back and left as it goes; False if there is no room."""
        if self.grams + unit.grams > self.box.max_grams:
            return False
        for point in self.points:
            fitting = [way for way in unit.ways if self._fits(point, way)]
            if fitting:
                self._place(unit, point, min(fitting, key=lambda way: (point[2] + way[2], point[1] + way[1], way)))
                return True
        return False

    def _fits(self, point: Point, size: Size) -> bool:
        inner = (self.box.length_mm, self.box.width_mm, self.box.height_mm)
        if any(at + side > room for at, side, room in zip(point, size, inner, strict=True)):
            return False
        return not any(_overlap(point, size, there, taken) for _, there, taken in self.placed)

    def _place(self, unit: Unit, point: Point, size: Size) -> None:
        self.placed.append((unit, point, size))
        self.grams += unit.grams
        x, y, z = point
        corners = ((x + size[0], y, z), (x, y + size[1], z), (x, y, z + size[2]))
        found = {self._slide(corner, axis) for corner in corners for axis in range(3)} | set(corners)
        known = (found | set(self.points)) - {point}
        self.points = sorted(
            (free for free in known if not self._is_inside(free)), key=lambda free: (free[2], free[1], free[0])
        )

    def _slide(self, corner: Point, axis: int) -> Point:
        """Push a corner along an axis against the next thing, or the wall."""
        others = [other for other in range(3) if other != axis]
        stop = 0
        for _, point, size in self.placed:
            end = point[axis] + size[axis]
            if end <= corner[axis] and all(point[at] <= corner[at] < point[at] + size[at] for at in others):
                stop = max(stop, end)
        return tuple(stop if at == axis else corner[at] for at in range(3))  # type: ignore[return-value]

    def _is_inside(self, free: Point) -> bool:
        return any(
            all(point[at] <= free[at] < point[at] + size[at] for at in range(3)) for _, point, size in self.placed
        )


def pack(items: Iterable[PackingItem], boxes: Sequence[Box]) -> list[PackedBox]:
    """Raises ItemFitsNoBox."""
    left = sorted(units_of(items), key=lambda unit: (-unit.volume, max(unit.ways[0]), unit.item_id))
    by_size = sorted(boxes, key=lambda box: (box.length_mm * box.width_mm * box.height_mm, box.box_id))
    packed = []
    while left:
        tried = []
        for box in by_size:
            filling = Filling(box, box.empty_grams)
            for unit in left:
                filling.take(unit)
            tried.append(filling)
            if len(filling.placed) == len(left):
                break
        best = tried[-1] if len(tried[-1].placed) == len(left) else max(tried, key=lambda one: one.volume)
        if not best.placed:
            raise ItemFitsNoBox(item_id=left[0].item_id)
        taken = [id(unit) for unit, _, _ in best.placed]
        left = [unit for unit in left if id(unit) not in taken]
        packed.append(_as_message(best))
    return packed


def units_of(items: Iterable[PackingItem]) -> list[Unit]:
    units = []
    for item in items:
        sides = (item.length_mm, item.width_mm, item.height_mm)
        turned = [(a, b, c) for a, b, c in permutations(sides) if not item.this_side_up or c == item.height_mm]
        units += [Unit(item.item_id, item.weight_grams, tuple(dict.fromkeys(turned))) for _ in range(item.quantity)]
    return units


def _overlap(one: Point, size: Size, other: Point, other_size: Size) -> bool:
    return all(
        start < there + taken and there < start + side
        for start, side, there, taken in zip(one, size, other, other_size, strict=True)
    )


def _as_message(filling: Filling) -> PackedBox:
    box = filling.box
    packed = PackedBox(
        box_id=box.box_id,
        parcel=Parcel(
            weight_grams=max(1, filling.grams),
            length_mm=box.length_mm + box.wall_mm,
            width_mm=box.width_mm + box.wall_mm,
            height_mm=box.height_mm + box.wall_mm,
        ),
    )
    for unit, (x, y, z), (length, width, height) in filling.placed:
        packed.placements.add(
            item_id=unit.item_id, x_mm=x, y_mm=y, z_mm=z, length_mm=length, width_mm=width, height_mm=height
        )
    return packed
