"""Whether things are packed as they should be. Knows nothing of how they were packed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations

from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import Box, PackedBox, PackingItem, Placement


def broken_rules(items: Sequence[PackingItem], boxes: Iterable[Box], packed: Iterable[PackedBox]) -> list[str]:
    """In words; empty when everything is in order."""
    kinds = {box.box_id: box for box in boxes}
    broken = []
    left = Counter[tuple[str, tuple[int, ...], bool, int]]()
    for item in items:
        left[_kind(item)] += item.quantity
    for number, one in enumerate(packed, start=1):
        if one.box_id not in kinds:
            broken.append(f"box {number} is none of the boxes")
            continue
        box, grams = kinds[one.box_id], 0
        for placement in one.placements:
            kind = next((kind for kind in left if left[kind] and _is(placement, kind)), None)
            if kind is None:
                broken.append(f"box {number} holds {placement.item_id}, which was not to be packed, or not so")
                continue
            left[kind] -= 1
            grams += kind[3]
            if not _is_within(placement, box):
                broken.append(f"{placement.item_id} sticks out of box {number}")
        if any(_share_space(*pair) for pair in combinations(one.placements, 2)):
            broken.append(f"two things in box {number} are at the same place")
        if grams + box.empty_grams > box.max_grams:
            broken.append(f"box {number} is too heavy")
        if one.parcel.weight_grams != max(1, grams + box.empty_grams):
            broken.append(f"box {number} does not weigh what is said")
    broken += [f"{count} of {kind[0]} are packed nowhere" for kind, count in left.items() if count]
    return broken


def _kind(item: PackingItem) -> tuple[str, tuple[int, ...], bool, int]:
    sides = (item.length_mm, item.width_mm, item.height_mm)
    return item.item_id, sides, item.this_side_up, item.weight_grams


def _is(placement: Placement, kind: tuple[str, tuple[int, ...], bool, int]) -> bool:
    name, sides, upright, _ = kind
    lies = (placement.length_mm, placement.width_mm, placement.height_mm)
    return placement.item_id == name and sorted(lies) == sorted(sides) and (not upright or lies[2] == sides[2])


def _is_within(placement: Placement, box: Box) -> bool:
    return (
        min(placement.x_mm, placement.y_mm, placement.z_mm) >= 0
        and placement.x_mm + placement.length_mm <= box.length_mm
        and placement.y_mm + placement.width_mm <= box.width_mm
        and placement.z_mm + placement.height_mm <= box.height_mm
    )


def _share_space(one: Placement, other: Placement) -> bool:
    return (
        one.x_mm < other.x_mm + other.length_mm
        and other.x_mm < one.x_mm + one.length_mm
        and one.y_mm < other.y_mm + other.width_mm
        and other.y_mm < one.y_mm + one.width_mm
        and one.z_mm < other.z_mm + other.height_mm
        and other.z_mm < one.z_mm + one.height_mm
    )
