"""Things are packed once each, within the boxes, and none through another; the validator sees it when they are not."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.commerce.puabo_nuki_shipping_service.v1.faults import ItemFitsNoBox
from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import Box, PackedBox, PackingItem, Parcel
from services.commerce.puabo_nuki_shipping_service.packing import pack
from services.commerce.puabo_nuki_shipping_service.packing_check import broken_rules


def box(box_id: str, *sides: int, most: int = 30_000, empty: int = 100, wall: int = 4) -> Box:
    length, width, height = sides
    return Box(
        box_id=box_id,
        length_mm=length,
        width_mm=width,
        height_mm=height,
        max_grams=most,
        empty_grams=empty,
        wall_mm=wall,
    )


def item(item_id: str, *sides: int, quantity: int = 1, grams: int = 100, upright: bool = False) -> PackingItem:
    length, width, height = sides
    return PackingItem(
        item_id=item_id,
        quantity=quantity,
        length_mm=length,
        width_mm=width,
        height_mm=height,
        weight_grams=grams,
        this_side_up=upright,
    )


SMALL, LARGE = box("small", 200, 150, 100), box("large", 600, 400, 400)
BOXES = [LARGE, SMALL]


@st.composite
def things(draw: st.DrawFn) -> list[PackingItem]:
    sides = st.integers(5, 390)
    return [
        item(
            f"item-{number}",
            draw(sides),
            draw(sides),
            draw(sides),
            quantity=draw(st.integers(1, 6)),
            grams=draw(st.integers(0, 4_000)),
            upright=draw(st.booleans()),
        )
        for number in range(draw(st.integers(1, 6)))
    ]


@given(things())
@settings(max_examples=80, deadline=None)
def test_everything_is_packed_once_and_within_its_box(items: list[PackingItem]) -> None:
    packed = pack(items, BOXES)
    assert broken_rules(items, BOXES, packed) == []
    assert packed == pack(items, BOXES), "the same things are packed the same way"


def test_cubes_fill_a_box_to_the_last_millimetre() -> None:
    cubes = [item("cube", 100, 100, 100, quantity=96)]
    [one] = pack(cubes, [LARGE])
    assert broken_rules(cubes, [LARGE], [one]) == []
    assert one.parcel == Parcel(weight_grams=9_700, length_mm=604, width_mm=404, height_mm=404)


def test_the_smallest_box_is_taken_that_holds_everything() -> None:
    assert [one.box_id for one in pack([item("book", 190, 140, 30, quantity=3)], BOXES)] == ["small"]
    assert [one.box_id for one in pack([item("book", 190, 140, 30, quantity=4)], BOXES)] == ["large"]


def test_what_is_too_heavy_for_one_box_goes_into_several() -> None:
    bricks = [item("brick", 50, 50, 50, quantity=7, grams=9_000)]
    packed = pack(bricks, [LARGE])
    assert [len(one.placements) for one in packed] == [3, 3, 1]
    assert broken_rules(bricks, [LARGE], packed) == []


def test_what_stands_upright_is_not_laid_down() -> None:
    with pytest.raises(ItemFitsNoBox):
        pack([item("vase", 50, 50, 150, upright=True)], [SMALL])
    assert pack([item("vase", 50, 50, 150)], [SMALL])


@pytest.mark.parametrize("wrong", [item("ski", 700, 50, 50), item("anvil", 50, 50, 50, grams=40_000)])
def test_what_fits_no_box_is_named(wrong: PackingItem) -> None:
    with pytest.raises(ItemFitsNoBox) as raised:
        pack([item("book", 190, 140, 30), wrong], BOXES)
    assert raised.value.metadata == {"item_id": wrong.item_id}


def two_books() -> tuple[list[PackingItem], list[PackedBox]]:
    books = [item("book", 190, 140, 30, quantity=2, upright=True)]
    return books, pack(books, BOXES)


def shift(packed: list[PackedBox], **sides: int) -> None:
    for name, value in sides.items():
        setattr(packed[0].placements[1], name, value)


SABOTAGE: dict[str, Callable[[list[PackedBox]], object]] = {
    "packed nowhere": lambda packed: packed[0].placements.pop(),
    "not to be packed": lambda packed: packed[0].placements.add().CopyFrom(packed[0].placements[0]),
    "at the same place": lambda packed: shift(packed, z_mm=29),
    "sticks out": lambda packed: shift(packed, z_mm=71),
    "or not so": lambda packed: shift(packed, length_mm=30, height_mm=190),
    "none of the boxes": lambda packed: setattr(packed[0], "box_id", "bag"),
    "does not weigh": lambda packed: setattr(packed[0].parcel, "weight_grams", 1),
}


@pytest.mark.parametrize("broken", SABOTAGE)
def test_the_validator_sees_what_is_wrong(broken: str) -> None:
    items, packed = two_books()
    assert broken_rules(items, BOXES, packed) == []
    SABOTAGE[broken](packed)
    assert any(broken in rule for rule in broken_rules(items, BOXES, packed))


def test_the_validator_weighs() -> None:
    bricks = [item("brick", 50, 50, 50, quantity=2, grams=9_000)]
    packed = pack(bricks, [LARGE])
    light = [box("large", 600, 400, 400, most=10_000)]
    assert "box 1 is too heavy" in broken_rules(bricks, light, packed)
