"""Stock is never sold twice, whoever asks at once; and what is on hand is the sum of what moved."""

import asyncio

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration

from nexus.commerce.puabo_nuki_inventory_mgr.v1 import events_pb2, reservations_pb2
from nexus.commerce.puabo_nuki_inventory_mgr.v1.faults import (
    LocationNotFound,
    ReservationExpired,
    ReservationNotFound,
    ReservationSettled,
    RestockExceeded,
    StockInsufficient,
)
from nexus.commerce.puabo_nuki_inventory_mgr.v1.reservations_pb2 import Reservation, ReservationState
from services.chassis.context import acting_for
from services.chassis.ids import new_id
from tests.commerce.shops import BRANCH, MAIN, Shop, reason

EVENTS = "SELECT array_agg(type ORDER BY sequence) FROM puabo_nuki_inventory_mgr.events WHERE tenant_id = $1"


def state(reservation: Reservation) -> str:
    return ReservationState.Name(reservation.state).removeprefix("RESERVATION_STATE_")


def held(reservation: Reservation) -> dict[tuple[str, str], int]:
    return {(each.item_id, each.location_id): each.quantity for each in reservation.allocations}


async def buy(shop: Shop, item: str, quantity: int = 1) -> bool:
    try:
        await shop.commit(await shop.reserve((item, quantity)))
    except StockInsufficient:
        return False
    return True


async def test_a_hundred_buyers_of_the_last_ten_units_get_ten(shop: Shop) -> None:
    await shop.receive("shirt", 7)
    await shop.receive("shirt", 3, BRANCH)
    bought = await asyncio.gather(*(buy(shop, "shirt") for _ in range(100)))
    assert bought.count(True) == 10
    assert await shop.available("shirt") == 0
    assert await shop.level("shirt") == (0, 0)
    assert await shop.unbalanced() == 0


async def test_buyers_of_two_items_in_opposite_order_never_wait_for_each_other(shop: Shop) -> None:
    for item in ("shirt", "shoes"):
        await shop.receive(item, 30)
    orders = [[("shirt", 1), ("shoes", 1)], [("shoes", 1), ("shirt", 1)]] * 20

    async def order(lines: list[tuple[str, int]]) -> bool:
        try:
            await shop.reserve(*lines)
        except StockInsufficient:
            return False
        return True

    assert (await asyncio.gather(*map(order, orders))).count(True) == 30
    assert await shop.unbalanced() == 0


async def test_an_item_named_twice_is_asked_for_as_the_sum(shop: Shop) -> None:
    await shop.receive("shirt", 3)
    with pytest.raises(StockInsufficient) as refused:
        await shop.reserve(("shirt", 2), ("shirt", 2))
    assert refused.value.metadata == {"item_id": "shirt", "requested": "4", "available": "3"}
    reservation = await shop.reserve(("shirt", 2), ("shirt", 1))
    assert held(reservation) == {("shirt", MAIN): 3}


async def test_an_item_named_twice_with_and_without_a_location_is_not_promised_twice(shop: Shop) -> None:
    await shop.receive("shirt", 3)
    with pytest.raises(StockInsufficient):
        await shop.reserve(("shirt", 2, MAIN), ("shirt", 2))
    assert await shop.level("shirt") == (3, 0)


async def test_all_lines_are_reserved_or_none(shop: Shop) -> None:
    await shop.receive("shirt", 5)
    with pytest.raises(StockInsufficient):
        await shop.reserve(("shirt", 1), ("shoes", 1))
    assert await shop.level("shirt") == (5, 0)


async def test_one_location_that_has_everything_is_preferred_to_two(shop: Shop) -> None:
    await shop.receive("shirt", 5)
    await shop.receive("shirt", 5, BRANCH)
    await shop.receive("shoes", 5, BRANCH)
    assert held(await shop.reserve(("shirt", 2), ("shoes", 1))) == {("shirt", BRANCH): 2, ("shoes", BRANCH): 1}
    assert held(await shop.reserve(("shirt", 2))) == {("shirt", MAIN): 2}
    assert held(await shop.reserve(("shirt", 5))) == {("shirt", BRANCH): 2, ("shirt", MAIN): 3}


async def test_an_order_is_split_when_no_location_has_everything(shop: Shop) -> None:
    await shop.receive("shirt", 2)
    await shop.receive("shirt", 3, BRANCH)
    assert held(await shop.reserve(("shirt", 5))) == {("shirt", BRANCH): 3, ("shirt", MAIN): 2}


async def test_nothing_is_sold_from_a_closed_location(shop: Shop) -> None:
    await shop.receive("shirt", 2)
    await shop.receive("shirt", 3, BRANCH)
    await shop.put(f"/api/v1/stock/locations/{BRANCH}", {"name": "Branch", "closed": True})
    assert await shop.available("shirt") == 2
    for line in (("shirt", 3), ("shirt", 1, BRANCH)):
        with pytest.raises(StockInsufficient):
            await shop.reserve(line)


async def test_a_location_that_does_not_exist_is_refused(shop: Shop) -> None:
    with pytest.raises(LocationNotFound):
        await shop.reserve(("shirt", 1, "moon"))
    line = {"itemId": "shirt", "locationId": "moon", "quantity": 1}
    assert reason(await shop.ask("POST", "/api/v1/stock:receive", {"lines": [line]})) == "LOCATION_NOT_FOUND"


async def test_the_same_request_reserves_once(shop: Shop) -> None:
    await shop.receive("shirt", 5)
    key = new_id()
    reservations = await asyncio.gather(*(shop.reserve(("shirt", 2), key=key) for _ in range(10)))
    assert len({reservation.reservation_id for reservation in reservations}) == 1
    assert await shop.level("shirt") == (5, 2)


async def test_committing_twice_takes_the_units_once(shop: Shop) -> None:
    await shop.receive("shirt", 5)
    reservation = await shop.reserve(("shirt", 2))
    settled = await asyncio.gather(*(shop.commit(reservation) for _ in range(8)))
    assert {state(each) for each in settled} == {"COMMITTED"}
    assert await shop.level("shirt") == (3, 0)
    assert await shop.unbalanced() == 0


async def test_of_commit_and_release_at_once_one_wins_and_the_stock_agrees(shop: Shop) -> None:
    await shop.receive("shirt", 20)
    for _ in range(10):
        reservation = await shop.reserve(("shirt", 1))
        results = await asyncio.gather(shop.commit(reservation), shop.release(reservation), return_exceptions=True)
        assert sum(isinstance(result, ReservationSettled) for result in results) == 1, results
    assert await shop.unbalanced() == 0
    assert (await shop.level("shirt"))[1] == 0


async def test_a_released_reservation_can_be_sold_to_others_and_not_committed(shop: Shop) -> None:
    await shop.receive("shirt", 1)
    reservation = await shop.reserve(("shirt", 1))
    assert state(await shop.release(reservation)) == state(await shop.release(reservation)) == "RELEASED"
    await shop.reserve(("shirt", 1))
    with pytest.raises(ReservationSettled):
        await shop.commit(reservation)


async def test_an_expired_reservation_cannot_be_committed(shop: Shop) -> None:
    await shop.receive("shirt", 1)
    reservation = await shop.reserve(("shirt", 1))
    await shop.pass_time(reservation)
    with pytest.raises(ReservationExpired):
        await shop.commit(reservation)
    assert await shop.level("shirt", MAIN) in ((1, 0), (1, 1))  # swept already, or not yet


async def test_what_expired_a_moment_ago_is_sold_at_once(shop: Shop) -> None:
    await shop.receive("shirt", 2)
    await shop.receive("shoes", 1)
    for _ in range(5):  # the sweep may come by first, now and then
        reservation = await shop.reserve(("shirt", 2), ("shoes", 1))
        await shop.pass_time(reservation)
        assert await shop.available("shirt") == 2
        await shop.release(await shop.reserve(("shirt", 2)))
        assert await shop.available("shoes") == 1
    assert await shop.unbalanced() == 0


async def test_buyers_of_what_has_just_expired_get_no_more_than_there_is(shop: Shop) -> None:
    await shop.receive("shirt", 4)
    for reservation in [await shop.reserve(("shirt", 1)) for _ in range(4)]:
        await shop.pass_time(reservation)
    assert (await asyncio.gather(*(buy(shop, "shirt") for _ in range(30)))).count(True) == 4
    assert await shop.unbalanced() == 0


async def test_the_sweep_lets_go_of_what_has_expired(shop: Shop) -> None:
    await shop.receive("shirt", 1)
    reservation = await shop.reserve(("shirt", 1), seconds=1)
    async with asyncio.timeout(15):
        while await shop.level("shirt") != (1, 0):  # noqa: ASYNC110  the job says nothing to the test
            await asyncio.sleep(0.1)
    [listed] = (await shop.get("/api/v1/stock/reservations", state="RESERVATION_STATE_EXPIRED"))["reservations"]
    assert listed["reservationId"] == reservation.reservation_id
    assert "nexus.commerce.puabo_nuki_inventory_mgr.v1.ReservationReleased" in await shop.value(EVENTS)


async def test_more_time_is_given_while_there_is_some_left(shop: Shop) -> None:
    await shop.receive("shirt", 1)
    reservation = await shop.reserve(("shirt", 1), seconds=5)
    request = reservations_pb2.ExtendReservationRequest(
        reservation_id=reservation.reservation_id, lifetime=Duration(seconds=3600)
    )
    with acting_for(shop.tenant.tenant_id):
        extended = (await shop.reservations.ExtendReservation(request)).reservation
        assert extended.expire_time.ToSeconds() - reservation.expire_time.ToSeconds() > 3000
        request.lifetime.seconds = 1
        assert (await shop.reservations.ExtendReservation(request)).reservation.expire_time == extended.expire_time
        await shop.pass_time(reservation)
        with pytest.raises(ReservationExpired):
            await shop.reservations.ExtendReservation(request)


async def test_no_more_comes_back_than_went_out(shop: Shop) -> None:
    await shop.receive("shirt", 2)
    await shop.receive("shirt", 3, BRANCH)
    reservation = await shop.reserve(("shirt", 5))
    with pytest.raises(ReservationSettled):
        await shop.restock(reservation)
    await shop.commit(reservation)
    await shop.restock(reservation, [("shirt", 1)])
    tries = await asyncio.gather(*(shop.restock(reservation, [("shirt", 3)]) for _ in range(2)), return_exceptions=True)
    assert sum(isinstance(result, RestockExceeded) for result in tries) == 1, tries
    await shop.restock(reservation)
    assert (await shop.level("shirt"), await shop.level("shirt", BRANCH)) == ((2, 0), (3, 0))
    with pytest.raises(RestockExceeded):
        await shop.restock(reservation, [("shirt", 1)])
    assert await shop.unbalanced() == 0


async def test_what_is_reserved_cannot_be_adjusted_or_moved_away(shop: Shop) -> None:
    await shop.receive("shirt", 5)
    await shop.reserve(("shirt", 4))
    place = {"itemId": "shirt", "locationId": MAIN}
    for adjustment in ({"difference": -2}, {"counted": 3}):
        body = {"adjustments": [place | adjustment], "reason": "ADJUST_REASON_LOST"}
        assert reason(await shop.ask("POST", "/api/v1/stock:adjust", body)) == "STOCK_INSUFFICIENT"
    transfer = {"fromLocationId": MAIN, "toLocationId": BRANCH, "lines": [{"itemId": "shirt", "quantity": 2}]}
    assert reason(await shop.ask("POST", "/api/v1/stock:transfer", transfer)) == "STOCK_INSUFFICIENT"
    assert await shop.level("shirt") == (5, 4)


async def test_a_stocktaking_sets_what_was_counted_line_by_line(shop: Shop) -> None:
    place = {"itemId": "shirt", "locationId": MAIN}
    lines = [place | {"counted": 7}, place | {"difference": -2}, place | {"counted": 6}]
    answer = await shop.post("/api/v1/stock:adjust", {"adjustments": lines, "reason": "ADJUST_REASON_COUNTED"})
    assert answer["levels"][0]["onHand"] == "6"
    movements = (await shop.get("/api/v1/stock/movements", item_id="shirt"))["movements"]
    assert [(each["quantity"], each["onHandAfter"]) for each in movements] == [("1", "6"), ("-2", "5"), ("7", "7")]
    assert {each["actor"] for each in movements} == {shop.owner.user_id}


async def test_transfers_in_both_directions_at_once_lose_nothing(shop: Shop) -> None:
    for location in (MAIN, BRANCH):
        await shop.receive("shirt", 50, location)

    async def move(origin: str, destination: str) -> None:
        line = {"itemId": "shirt", "quantity": 3}
        body = {"fromLocationId": origin, "toLocationId": destination, "lines": [line, line]}
        await shop.post("/api/v1/stock:transfer", body)

    await asyncio.gather(*(move(*way) for way in [(MAIN, BRANCH), (BRANCH, MAIN)] * 8))
    assert (await shop.level("shirt"), await shop.level("shirt", BRANCH)) == ((50, 0), (50, 0))
    assert await shop.unbalanced() == 0
    pointless = {"fromLocationId": MAIN, "toLocationId": MAIN, "lines": [{"itemId": "shirt", "quantity": 1}]}
    assert reason(await shop.ask("POST", "/api/v1/stock:transfer", pointless)) == "TRANSFER_POINTLESS"


async def test_movements_stay_as_they_are(shop: Shop) -> None:
    await shop.receive("shirt", 5)
    for statement in ("UPDATE {} SET quantity = 6 WHERE tenant_id = $1", "DELETE FROM {} WHERE tenant_id = $1"):
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await shop.value(statement.format("puabo_nuki_inventory_mgr.movements") + " RETURNING true")


async def test_the_last_unit_and_the_next_one_are_told_of(shop: Shop) -> None:
    await shop.receive("shirt", 1)
    reservation = await shop.reserve(("shirt", 1))
    await shop.release(reservation)
    names = [name.rpartition(".")[2] for name in await shop.value(EVENTS)]
    assert names == [
        *("StockChanged", "StockReplenished"),
        *("StockChanged", "StockDepleted", "ReservationCreated"),
        *("ReservationReleased", "StockChanged", "StockReplenished"),
    ]
    payload = await shop.value(
        "SELECT payload FROM puabo_nuki_inventory_mgr.events "
        "WHERE tenant_id = $1 ORDER BY sequence DESC OFFSET 1 LIMIT 1"
    )
    assert events_pb2.StockChanged.FromString(payload) == events_pb2.StockChanged(
        item_id="shirt", on_hand=1, available=1
    )


async def test_levels_and_movements_come_in_pages(shop: Shop) -> None:
    for number in range(5):
        await shop.receive(f"item-{number}", number + 1)
    seen, token = [], ""
    while True:
        page = await shop.get("/api/v1/stock/levels", page_size=2, page_token=token)
        seen += [level["itemId"] for level in page["levels"]]
        token = page["nextPageToken"]
        if not token:
            break
    assert seen == [f"item-{number}" for number in range(5)]
    few = (await shop.get("/api/v1/stock/levels", available_at_most=2))["levels"]
    assert [level["itemId"] for level in few] == ["item-0", "item-1"]
    first = await shop.get("/api/v1/stock/movements", page_size=3)
    rest = await shop.get("/api/v1/stock/movements", page_size=3, page_token=first["nextPageToken"])
    assert [each["itemId"] for each in first["movements"] + rest["movements"]] == [f"item-{n}" for n in (4, 3, 2, 1, 0)]


async def test_a_location_changed_by_somebody_else_is_not_overwritten(shop: Shop) -> None:
    [main, _] = (await shop.get("/api/v1/stock/locations"))["locations"]
    await shop.put(f"/api/v1/stock/locations/{MAIN}", {"name": "Berlin", "etag": main["etag"]})
    stale = {"name": "Paris", "etag": main["etag"]}
    assert reason(await shop.ask("PUT", f"/api/v1/stock/locations/{MAIN}", stale)) == "LOCATION_CHANGED"


async def test_another_tenant_sees_and_takes_nothing(shop: Shop, other_shop: Shop) -> None:
    await shop.receive("shirt", 5)
    reservation = await shop.reserve(("shirt", 1))
    assert await other_shop.available("shirt") == 0
    assert await other_shop.level("shirt") == (0, 0)
    with pytest.raises(StockInsufficient):
        await other_shop.reserve(("shirt", 1))
    for attempt in (other_shop.commit, other_shop.release, other_shop.restock):
        with pytest.raises(ReservationNotFound):
            await attempt(reservation)
    assert (await other_shop.get("/api/v1/stock/movements"))["movements"] == []
    path = f"/api/v1/stock/reservations/{reservation.reservation_id}"
    assert reason(await other_shop.ask("GET", path)) == "RESERVATION_NOT_FOUND"
    assert await shop.level("shirt") == (5, 1)


async def test_outside_callers_cannot_reserve_and_customers_cannot_tend_the_stock(shop: Shop) -> None:
    customer = await shop.tenant.sign_in()
    answer = await shop.http.post("/api/v1/stock:receive", json={"lines": []}, headers=customer.headers)
    assert reason(answer) == "PERMISSION_MISSING"
    assert (await shop.visit("/api/v1/stock/levels")).status_code == 401
