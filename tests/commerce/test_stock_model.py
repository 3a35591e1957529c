"""Whatever is done to stock, in whatever order, it is what a model of a few lines says."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from nexus.commerce.puabo_nuki_inventory_mgr.v1.faults import (
    ReservationExpired,
    ReservationSettled,
    RestockExceeded,
    StockInsufficient,
)
from nexus.commerce.puabo_nuki_inventory_mgr.v1.reservations_pb2 import Reservation
from services.chassis.clients import Clients
from services.chassis.context import OPERATOR
from tests.commerce.shops import BRANCH, MAIN, Shop
from tests.platforms import Platform

pytestmark = pytest.mark.xdist_group("stock model")

Result = TypeVar("Result")
ITEMS = ("shirt", "shoes")
QUANTITIES = st.integers(1, 4)
LINES = st.lists(st.tuples(st.sampled_from(ITEMS), QUANTITIES), min_size=1, max_size=3)


@dataclass
class Promise:
    """A reservation, as the model knows it."""

    made: Reservation
    held: dict[tuple[str, str], int]
    state: str = "active"
    out: dict[str, int] = field(default_factory=dict)
    """Of each item, how many were sold and have not come back."""


class StockMachine(RuleBasedStateMachine):
    platform: Platform

    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.on_hand = {(item, location): 0 for item in ITEMS for location in (MAIN, BRANCH)}
        self.promises: list[Promise] = []

        async def start() -> None:
            self.http = httpx.AsyncClient(base_url=self.platform.http_url, timeout=15)
            self.clients = Clients(self.platform.settings, OPERATOR, None)
            tenant = await self.platform.new_tenant()
            self.shop = await Shop.open(self.platform, tenant, self.http, self.clients)

        self.run(start())

    def teardown(self) -> None:
        async def stop() -> None:
            await self.http.aclose()
            await self.clients.stop()

        if hasattr(self, "runner"):
            self.run(stop())
            self.runner.close()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(work)

    def reserved(self, item: str, location: str) -> int:
        return sum(each.held.get((item, location), 0) for each in self.promises if each.state == "active")

    def free(self, item: str) -> int:
        return sum(self.on_hand[item, at] - self.reserved(item, at) for at in (MAIN, BRANCH))

    @rule(item=st.sampled_from(ITEMS), location=st.sampled_from((MAIN, BRANCH)), quantity=QUANTITIES)
    def receive(self, item: str, location: str, quantity: int) -> None:
        self.run(self.shop.receive(item, quantity, location))
        self.on_hand[item, location] += quantity

    @rule(item=st.sampled_from(ITEMS), location=st.sampled_from((MAIN, BRANCH)), counted=st.integers(0, 6))
    def count(self, item: str, location: str, counted: int) -> None:
        line = {"itemId": item, "locationId": location, "counted": counted}
        body = {"adjustments": [line], "reason": "ADJUST_REASON_COUNTED"}
        answer = self.run(self.shop.ask("POST", "/api/v1/stock:adjust", body))
        possible = counted >= self.reserved(item, location)
        assert answer.status_code == (200 if possible else 400), answer.text
        if possible:
            self.on_hand[item, location] = counted

    @rule(item=st.sampled_from(ITEMS), origin=st.sampled_from((MAIN, BRANCH)), quantity=QUANTITIES)
    def transfer(self, item: str, origin: str, quantity: int) -> None:
        destination = BRANCH if origin == MAIN else MAIN
        line = {"itemId": item, "quantity": quantity}
        body = {"fromLocationId": origin, "toLocationId": destination, "lines": [line]}
        answer = self.run(self.shop.ask("POST", "/api/v1/stock:transfer", body))
        possible = self.on_hand[item, origin] - self.reserved(item, origin) >= quantity
        assert answer.status_code == (200 if possible else 400), answer.text
        if possible:
            self.on_hand[item, origin] -= quantity
            self.on_hand[item, destination] += quantity

    @rule(lines=LINES)
    def reserve(self, lines: list[tuple[str, int]]) -> None:
        wanted = {item: sum(quantity for name, quantity in lines if name == item) for item, _ in lines}
        possible = all(self.free(item) >= quantity for item, quantity in wanted.items())
        try:
            made = self.run(self.shop.reserve(*lines))
        except StockInsufficient:
            assert not possible
            return
        assert possible
        held = {(each.item_id, each.location_id): each.quantity for each in made.allocations}
        for item, quantity in wanted.items():
            assert sum(held.get((item, at), 0) for at in (MAIN, BRANCH)) == quantity
        for (item, at), quantity in held.items():
            assert quantity <= self.on_hand[item, at] - self.reserved(item, at)
        self.promises.append(Promise(made, held))

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        if promise := self.some(data):
            try:
                self.run(self.shop.commit(promise.made))
            except ReservationExpired:
                assert promise.state == "expired"
            except ReservationSettled:
                assert promise.state == "released"
            else:
                assert promise.state in ("active", "committed")
                if promise.state == "active":
                    promise.state = "committed"
                    for place, quantity in promise.held.items():
                        self.on_hand[place] -= quantity
                        promise.out[place[0]] = promise.out.get(place[0], 0) + quantity

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if promise := self.some(data):
            try:
                self.run(self.shop.release(promise.made))
            except ReservationSettled:
                assert promise.state == "committed"
            else:
                assert promise.state != "committed"
                if promise.state == "active":
                    promise.state = "released"

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        if (promise := self.some(data)) and promise.state == "active":
            self.run(self.shop.pass_time(promise.made))
            promise.state = "expired"

    @rule(data=st.data(), item=st.sampled_from(ITEMS), quantity=QUANTITIES)
    def restock(self, data: st.DataObject, item: str, quantity: int) -> None:
        if promise := self.some(data):
            before = {each: self.run(self.shop.level(*each))[0] for each in self.on_hand}
            try:
                self.run(self.shop.restock(promise.made, [(item, quantity)]))
            except ReservationSettled:
                assert promise.state != "committed"
            except RestockExceeded:
                assert promise.out.get(item, 0) < quantity
            else:
                assert promise.state == "committed"
                promise.out[item] -= quantity
                after = {each: self.run(self.shop.level(*each))[0] for each in self.on_hand}
                assert sum(after.values()) - sum(before.values()) == quantity
                self.on_hand = after

    def some(self, data: st.DataObject) -> Promise | None:
        return data.draw(st.sampled_from(self.promises)) if self.promises else None

    @invariant()
    def stock_is_what_the_model_says(self) -> None:
        if not hasattr(self, "shop"):
            return
        for item in ITEMS:
            assert self.run(self.shop.available(item)) == self.free(item)
            for location in (MAIN, BRANCH):
                assert self.run(self.shop.level(item, location))[0] == self.on_hand[item, location]


def test_stock_is_what_a_model_says(platform: Platform) -> None:
    StockMachine.platform = platform
    run_state_machine_as_test(
        StockMachine,
        settings=settings(
            max_examples=6, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
