"""The saga of orders beside a model that shares nothing with it.

What runs is order-processor's own code on PostgreSQL; those it calls are `neighbours` with honest books. Hypothesis
has customers, staff, banks and carriers do what they do in any order, neighbours refuse, break down before or after
they have done their work, and processes die, hang, or are overtaken. Whatever happens, once nothing goes wrong any
more every order comes to rest: done everywhere, or nowhere.
"""

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import grpc
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from pydantic import SecretStr

from mesh.local.embedded import Postgres
from mesh.local.platform import make_folders
from nexus.commerce.puabo_nuki_order_processor.v1.faults import (
    OrderStateConflict,
    OutOfStock,
    QuantityExceeded,
)
from nexus.commerce.puabo_nuki_order_processor.v1.orders_pb2 import (
    DecideReturnRequest,
    FulfilOrderRequest,
    LineUnits,
    PayOrderRequest,
    RefundOrderRequest,
    RequestReturnRequest,
)
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipment_pb2 as shipment
from nexus.commerce.puabo_nuki_shipping_service.v1.events_pb2 import ShipmentMoved
from nexus.finance.billing_service.v1 import payments_pb2 as billing
from nexus.finance.billing_service.v1.events_pb2 import PaymentAuthorized, PaymentFailed
from nexus.type.v1.event_pb2 import Event
from nexus.type.v1.faults import Conflict
from services.chassis import clients as chassis_clients
from services.chassis.clients import Clients
from services.chassis.clock import now as real_now
from services.chassis.config import Settings
from services.chassis.context import acting_for
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.ids import new_id
from services.chassis.mail import Mailer
from services.chassis.migrations import migrate
from services.chassis.sealing import Sealer
from services.chassis.service import Service
from services.chassis.signals import Signals
from services.chassis.spec import discover
from services.chassis.tenants import create_tenant
from services.commerce.puabo_nuki_order_processor import orders as orders_module
from services.commerce.puabo_nuki_order_processor import steps as steps_module
from services.commerce.puabo_nuki_order_processor.invoicing import Addresses
from services.commerce.puabo_nuki_order_processor.order import Draft
from services.commerce.puabo_nuki_order_processor.orders import Orders
from services.commerce.puabo_nuki_order_processor.spec import Config
from services.commerce.puabo_nuki_order_processor.store import CartStore
from services.commerce.puabo_nuki_order_processor.subscribers import Subscribers
from tests.chaos.servers import Server
from tests.commerce.neighbours import CARDS, PLATFORM_PERCENT, Fate, Neighbours, Payment, Unanswered, World

pytestmark = pytest.mark.xdist_group("order saga")

Result = TypeVar("Result")
SPEC = discover()["puabo-nuki-order-processor"]
PRICES, DELIVERY = {"scarf": 1_000, "hat": 2_505}, 490
ADDRESS = shipment.Address(name="Ada", lines=["1 Way"], city="Bern", postcode="3000", country="CH")
STOCK = {"scarf": 9, "hat": 5}
CUSTOMER, STAFF = new_id(), new_id()
ROUNDS = 12
"""Within so many looks at what is due, everything has come to rest when nothing goes wrong."""

WAITING, PAID = {"OPEN", "ACTION_REQUIRED", "PAYMENT_DECLINED"}, {"CONFIRMED", "PARTIALLY_FULFILLED", "FULFILLED"}
UNDECIDED = (billing.PAYMENT_STATE_PENDING, billing.PAYMENT_STATE_REQUIRES_ACTION)
HOLDING = (*UNDECIDED, billing.PAYMENT_STATE_AUTHORIZED)

DONE = [
    ("StockReserved", "StockReleased"),
    ("PaymentAuthorized", "PaymentVoided"),
    ("LabelsBought", "LabelsVoided"),
    ("PaymentCaptured", "PaymentReturned"),
    ("StockCommitted", "StockRestocked"),
    ("InvoiceIssued", "InvoiceCredited"),
    ("SaleBooked", "SaleReverted"),
]
"""What is done for an order, one after the other, and how each is undone."""


def lives(parcels: bool) -> "re.Pattern[str]":
    """All lives that an order can have, as its events tell them; those of refunds are left out."""
    steps = [step for step in DONE if parcels or step[0] != "LabelsBought"]
    paying = "(OrderPlaced (ActionRequired )?(PaymentDeclined (PaymentRetried (ActionRequired )?)?)*)?"

    def forward(number: int) -> str:
        done = [f"{event} " for event, _ in steps[:number]]
        return "CheckedOut " + "".join(done[:1]) + (paying if number else "") + "".join(done[1:])

    def back(number: int) -> str:
        """After so many steps. The one after them may have been begun; the carrier is asked first."""
        undone = [event for _, event in steps[: number + 1]][::-1]
        undone.sort(key=lambda event: event != "LabelsVoided")
        return "CancellationBegun " + "".join(f"{event} (RepaymentRefused )*" for event in undone) + "OrderCancelled "

    confirmed = forward(len(steps)) + "OrderConfirmed (CancellationBegun CancellationRefused |ParcelMoved )*"
    ends = [forward(1), *(forward(number) + back(number) for number in range(len(steps) + 1))]
    ends += [
        confirmed + "(ItemsFulfilled |ParcelMoved |ReturnRequested |ReturnAccepted )*",
        confirmed + back(len(steps)),
    ]
    return re.compile("|".join(f"({end})" for end in ends))


LIVES = {parcels: lives(parcels) for parcels in (True, False)}
REFUND = re.compile("RefundBegun RefundCredited RefundPaid (RefundRestocked )?RefundBooked ")


WHICH = st.integers(0, 11)
LINES = st.lists(st.tuples(st.sampled_from(sorted(PRICES)), st.integers(1, 3)), min_size=1, max_size=2)
METHODS = (
    *("Reserve", "ExtendReservation", "CommitReservation", "ReleaseReservation", "RestockReservation"),
    *("Authorize", "Capture", "Void", "Refund", "GetPayment"),
    *("ShipParcel", "CancelParcel", "GetParcel"),
    *("IssueInvoice", "CreditIssuedInvoice"),
    *("PostTransaction", "Settle", "GetTransaction", "RevertTransaction"),
)
TRICKS = ("away", "away", "too late", "called off", "processor dies", "overtaken", "refused")
FATES = st.lists(
    st.builds(Fate, st.sampled_from(METHODS), st.sampled_from(("before", "after")), st.sampled_from(TRICKS)),
    max_size=4,
)


class Process:
    """One order-processor."""

    def __init__(self, platform: Settings) -> None:
        self.database = Database(platform, SPEC)
        nobody: Any = None  # no broker: what is published stays in the outbox
        self.service = Service(
            spec=SPEC,
            settings=platform,
            config=Config(inline_seconds=0.001, poll_seconds=0.01),
            database=self.database,
            redis=nobody,
            events=Events(SPEC.id, self.database, nobody),
            clients=Clients(platform, SPEC.id, frozenset(SPEC.may_call)),
            signals=Signals(nobody),
            sealer=Sealer(b"0" * 32, SPEC.id),
            mailer=Mailer(platform),
        )
        self.dying = asyncio.Event()
        self.work: set[asyncio.Task[Any]] = set()

    async def start(self) -> "Process":
        await self.database.start()
        self.orders, self.hears = self.service.shared(Orders), Subscribers(self.service)
        return self

    async def stop(self) -> None:
        """Also in the midst of anything: nothing that it has begun goes on."""
        for task in self.work:
            task.cancel()
        await asyncio.gather(*self.work, return_exceptions=True)
        await self.service.clients.stop()
        await self.database.stop()


class SagaMachine(RuleBasedStateMachine):
    runner: asyncio.Runner
    platform: Settings
    world: World
    admin: asyncpg.Pool
    shift = timedelta()

    @classmethod
    def clock(cls) -> datetime:
        return real_now() + cls.shift

    @initialize(fates=FATES)
    def open(self, fates: list[Fate]) -> None:
        type(self).shift = timedelta()
        self.tenant_id = f"t-{new_id()}"
        self.order_ids: list[str] = []
        self.called_off: set[str] = set()
        self.books = self.world.books = Neighbours(self.clock, dict(STOCK))
        self.world.tricks = {
            "away": self.breaks(grpc.StatusCode.UNAVAILABLE),
            "too late": self.breaks(grpc.StatusCode.DEADLINE_EXCEEDED),
            "called off": self.call_off,
            "processor dies": self.die,
            "overtaken": self.overtake,
        }

        async def start() -> None:
            await self.admin.execute("TRUNCATE orders, order_events, carts")
            await create_tenant(self.admin, self.tenant_id, "Test")
            self.process = await Process(self.platform).start()
            await self.check_out([("scarf", 1)], False, "good", fates)

        self.run(start())

    def teardown(self) -> None:
        if not hasattr(self, "process"):
            return
        try:
            self.run(self.come_to_rest())
        finally:
            self.run(self.process.stop())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        async def acting() -> Result:
            with acting_for(self.tenant_id):
                async with asyncio.timeout(60):
                    return await work

        return self.runner.run(acting())

    # What goes wrong

    @staticmethod
    def breaks(code: grpc.StatusCode) -> Any:
        async def end(order_id: str) -> None:
            raise Unanswered(code)

        return end

    async def die(self, order_id: str) -> None:
        """The order-processor that has called, and waits."""
        self.process.dying.set()
        await asyncio.Event().wait()

    async def call_off(self, order_id: str) -> None:
        """The customer does, in the midst of a step."""
        with acting_for(self.tenant_id), contextlib.suppress(OrderStateConflict, Conflict):
            await self.process.orders.cancel(await self.process.orders.get(order_id), CUSTOMER, "")
            self.called_off.add(order_id)

    async def overtake(self, order_id: str) -> None:
        """The caller seems dead, and another one goes on."""
        await self.admin.execute("UPDATE orders SET lease_until = NULL, due_time = now()")
        other = await Process(self.platform).start()
        try:
            await other.orders.saga.work()
        finally:
            await other.stop()

    # What people do

    @rule(lines=LINES, digital=st.booleans(), card=st.sampled_from(("", *CARDS, "good", "good")), fates=FATES)
    def buy(self, lines: list[tuple[str, int]], digital: bool, card: str, fates: list[Fate]) -> None:
        self.run(self.check_out(lines, digital, card, fates))

    async def check_out(self, lines: list[tuple[str, int]], digital: bool, card: str, fates: list[Fate]) -> None:
        orders = self.process.orders
        carts = CartStore(self.process.database).carts
        cart = await carts.insert(cart_id=new_id(), channel="default", currency="EUR")
        draft = drafted(cart["cart_id"], lines, digital)
        self.books.next_faults = fates
        with contextlib.suppress(OutOfStock):
            await orders.check_out(draft, Addresses(ADDRESS, None), cart["version"], new_id(), b"")
        [order_id] = {str(row["order_id"]) for row in await self.rows()} - set(self.order_ids)
        self.order_ids.append(order_id)
        await self.go_on(order_id)
        if card:
            await self.pay(order_id, card)

    @rule(which=WHICH, card=st.sampled_from(CARDS))
    def try_to_pay(self, which: int, card: str) -> None:
        self.run(self.pay(some(self.order_ids, which), card))

    async def pay(self, order_id: str, card: str) -> None:
        order = await self.process.orders.get(order_id)
        kind, verb = ("PaymentRetried", "paid") if order.payment_attempts else ("OrderPlaced", "placed")
        with contextlib.suppress(OrderStateConflict, Conflict):
            request = PayOrderRequest(payment_method_id=card, request_id=new_id())
            await self.process.orders.pay(order, kind, verb, request)
        await self.go_on(order_id)

    @rule(which=WHICH, approved=st.booleans())
    def bank_decides(self, which: int, approved: bool) -> None:
        if waiting := self.undecided():
            self.run(self.decide(some(waiting, which), approved))

    def undecided(self) -> list[Payment]:
        return [each for each in self.books.payments.values() if each.state in UNDECIDED]

    async def decide(self, payment: Payment, approved: bool) -> None:
        payment.state = billing.PAYMENT_STATE_AUTHORIZED if approved else billing.PAYMENT_STATE_FAILED
        reference = f"order/{payment.order_id}"
        if approved:
            await self.process.hears.on_payment_authorized(PaymentAuthorized(reference=reference), Event())
        else:
            await self.process.hears.on_payment_failed(PaymentFailed(reference=reference), Event())
        await self.go_on(payment.order_id)

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        order_id = some(self.order_ids, which)
        self.run(self.call_off(order_id))
        self.run(self.go_on(order_id))

    @rule(which=WHICH, tell=st.booleans())
    def carrier_takes_a_parcel(self, which: int, tell: bool) -> None:
        if keys := [key for key, parcel in self.books.parcels.items() if parcel.state == "LABEL_BOUGHT"]:
            self.run(self.scan(some(keys, which), tell))

    async def scan(self, key: str, tell: bool) -> None:
        parcel = self.books.parcels[key]
        parcel.state = "IN_TRANSIT"
        if tell:
            state = shipment.SHIPMENT_STATE_IN_TRANSIT
            about = ShipmentMoved(shipment_id=parcel.shipment_id, key=key, order_id=parcel.order_id, state=state)
            await self.process.hears.on_shipment_moved(about, Event())
            await self.go_on(parcel.order_id)

    @rule(which=WHICH)
    def hand_over(self, which: int) -> None:
        self.staff(which, lambda order_id: self.process.orders.fulfil(FulfilOrderRequest(order_id=order_id), STAFF))

    @rule(which=WHICH, line=st.integers(0, 1), shipping=st.booleans(), restock=st.booleans())
    def give_back(self, which: int, line: int, shipping: bool, restock: bool) -> None:
        def refund(order_id: str) -> Any:
            lines = [LineUnits(line=line, quantity=1)]
            request = RefundOrderRequest(order_id=order_id, lines=lines, shipping=shipping, restock=restock)
            return self.process.orders.refund(request, STAFF)

        self.staff(which, refund)

    @rule(which=WHICH)
    def send_back(self, which: int) -> None:
        async def send(order_id: str) -> None:
            orders, lines = self.process.orders, [LineUnits(line=0, quantity=1)]
            order = await orders.request_return(
                await orders.get(order_id), RequestReturnRequest(order_id=order_id, lines=lines), CUSTOMER
            )
            decision = DecideReturnRequest(
                order_id=order_id, return_id=order.returns[-1].return_id, accept=True, restock=True
            )
            await orders.decide_return(decision, STAFF)

        self.staff(which, send)

    def staff(self, which: int, does: Callable[[str], Any]) -> None:
        """Something to one of the orders that have come as far as an invoice."""

        async def try_it(order_id: str) -> None:
            with contextlib.suppress(OrderStateConflict, QuantityExceeded, Conflict):
                await does(order_id)
            await self.go_on(order_id)

        if self.books.invoices:
            self.run(try_it(some(list(self.books.invoices), which)))

    @rule(which=WHICH, fates=FATES)
    def trouble_is_ahead(self, which: int, fates: list[Fate]) -> None:
        self.books.faults[some(self.order_ids, which)] = fates

    @rule()
    def another_look(self) -> None:
        self.run(self.look_again())

    @rule(minutes=st.sampled_from((1, 16, 31)))
    def time_passes(self, minutes: int) -> None:
        type(self).shift += timedelta(minutes=minutes)
        self.run(self.look_again())

    # How it goes on

    async def go_on(self, order_id: str) -> None:
        """Until the order rests, or waits for another attempt, or the process is dead."""
        await self.attend(self.process.orders.saga.start(order_id))

    async def look_again(self) -> None:
        """Time enough passes for everything that is to be tried again."""
        await self.admin.execute(
            """
            UPDATE orders SET lease_until = NULL, due_time = clock_timestamp()
            WHERE tenant_id = $1 AND due_time <= $2
            """,
            self.tenant_id,
            self.clock() + timedelta(seconds=61),
        )
        await self.attend(asyncio.create_task(self.process.orders.saga.work()))

    async def attend(self, work: "asyncio.Task[Any]") -> None:
        self.process.work.add(work)
        death = asyncio.create_task(self.process.dying.wait())
        await asyncio.wait((work, death), return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if self.process.dying.is_set():
            await self.process.stop()
            self.process = await Process(self.platform).start()
        else:
            self.process.work.remove(work)
            await work

    async def come_to_rest(self) -> None:
        """Nothing goes wrong any more."""
        self.books.faults = {order_id: [] for order_id in self.order_ids}
        for _ in range(ROUNDS):
            await self.look_again()
            for payment in self.undecided():
                if payment.state == billing.PAYMENT_STATE_PENDING:
                    await self.decide(payment, True)
        for row in await self.rows():
            await self.check(row)

    # What must hold

    @invariant()
    def nobody_is_charged_twice_and_nothing_sold_twice(self) -> None:
        charged = Counter(each.order_id for each in self.books.payments.values() if each.captured)
        assert not charged or max(charged.values()) == 1
        sold: Counter[str] = Counter()
        for each in self.books.reservations.values():
            if each.state == "COMMITTED":
                sold.update({item: units - each.restocked[item] for item, units in each.lines.items()})
        for item, there in STOCK.items():
            assert self.books.on_hand[item] == there - sold[item]
            assert 0 <= self.books.reserved(item) <= self.books.on_hand[item]

    async def check(self, row: asyncpg.Record) -> None:
        order_id, state = str(row["order_id"]), row["state"]
        events = await self.admin.fetch(
            "SELECT version, kind, data FROM order_events WHERE order_id = $1 ORDER BY version",
            row["order_id"],
        )
        assert [event["version"] for event in events] == list(range(1, row["version"] + 1))
        lines, parcels, total = self.check_events(events)
        payments = [each for each in self.books.payments.values() if each.order_id == order_id]
        kept = sum(each.captured - each.refunded for each in payments)
        reservations = [each for each in self.books.reservations.values() if each.order_id == order_id]
        labels = [each.state for each in self.books.parcels.values() if each.order_id == order_id]
        invoice = self.books.invoices.get(order_id)
        credited = sum(each.total for each in self.books.credit_notes.values() if each.order_id == order_id)
        accounts = ("customers:prepaid", "income:sales", "tenant:earnings", "platform:share")
        booked = {account: self.books.balance(account, order_id) for account in accounts}
        assert (row["captured"] - row["refunded"]) == kept
        if state in PAID:
            [paid] = [each for each in payments if each.captured]
            assert paid.captured == total
            assert not [each for each in payments if each.state in HOLDING]
            [reservation] = reservations
            assert (reservation.state, reservation.lines) == ("COMMITTED", lines)
            assert labels in ([["LABEL_BOUGHT"], ["IN_TRANSIT"]] if parcels else [[]])
            assert invoice is not None
            assert invoice.total == total
            assert credited == paid.refunded
            assert booked["customers:prepaid"] == -kept
            assert booked["income:sales"] == 0
            assert booked["platform:share"] == round_half_up(total * PLATFORM_PERCENT // 100 * kept, total)
            assert sum(booked.values()) == 0
            restocked = sum(reservation.restocked.values())
            assert restocked == sum(
                sum(json.loads(event["data"])["lines"].values())
                for event in events
                if event["kind"] == "RefundBegun" and json.loads(event["data"])["restock"]
            )
            return
        assert kept == 0
        assert not any(booked.values())
        assert (invoice.total if invoice is not None else 0) == credited
        assert "LABEL_BOUGHT" not in labels
        if state in WAITING:
            assert [self.books.state_of(each) for each in reservations] == ["ACTIVE"]
            assert [each.state for each in payments if each.state in HOLDING] == (
                [billing.PAYMENT_STATE_REQUIRES_ACTION] if state == "ACTION_REQUIRED" else []
            )
            return
        assert state == "CANCELLED"
        assert not [each for each in payments if each.state in HOLDING]
        for each in reservations:
            assert self.books.state_of(each) in ("RELEASED", "EXPIRED") or dict(each.restocked) == each.lines
        cause = json.loads(next(event["data"] for event in events if event["kind"] == "CancellationBegun"))["cause"]
        assert cause == "EXPIRED" or order_id in self.books.refused | self.called_off

    def check_events(self, events: list[asyncpg.Record]) -> tuple[dict[str, int], bool, int]:
        """That they can have happened; returns what was ordered, whether it is sent, and what it costs."""
        draft = json.loads(events[0]["data"])
        refunds = ("RefundBegun", "RefundCredited", "RefundPaid", "RefundRestocked", "RefundBooked")
        refunding: dict[str, str] = {}
        life = ""
        for event in events:
            kind = event["kind"]
            if kind in refunds:
                refund_id = json.loads(event["data"])["refund_id"]
                refunding[refund_id] = refunding.get(refund_id, "") + f"{kind} "
            elif not (kind == "RepaymentRefused" and refunding):
                life += f"{kind} "
        assert LIVES[bool(draft["parcels"])].fullmatch(life), life
        assert all(REFUND.fullmatch(each) for each in refunding.values()), refunding
        lines: Counter[str] = Counter()
        for line in draft["lines"]:
            lines[line["variant_id"]] += line["quantity"]
        return dict(lines), bool(draft["parcels"]), draft["total"]

    async def rows(self) -> list[asyncpg.Record]:
        return await self.admin.fetch(
            "SELECT order_id, state, version, captured, refunded FROM orders WHERE tenant_id = $1 ORDER BY order_id",
            self.tenant_id,
        )


def some(things: Sequence[Result], which: int) -> Result:
    """What is drawn does not depend on what there is: an example can be played again although tasks run at once."""
    return things[which % len(things)]


def drafted(cart_id: str, lines: list[tuple[str, int]], digital: bool) -> Draft:
    goods = sum(PRICES[item] * units for item, units in lines)
    until = (real_now() + timedelta(days=30)).isoformat()
    delivery = {"quote_id": new_id(), "carrier": "sandbox", "service": "standard", "price": DELIVERY}
    draft = {
        "cart_id": cart_id,
        "customer_id": CUSTOMER,
        "currency": "EUR",
        "tax_included": True,
        "lines": [
            {"variant_id": item, "quantity": units, "unit_price": PRICES[item], "digital": digital}
            for item, units in lines
        ],
        "parcels": [] if digital else [{"weight_grams": 500}],
        "delivery": None if digital else {**delivery, "expire_time": until},
        "goods": goods,
        "tax": 0,
        "total": goods + (0 if digital else DELIVERY),
    }
    return Draft.model_validate(draft)


def round_half_up(dividend: int, divisor: int) -> int:
    return (2 * dividend + divisor) // (2 * divisor)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Settings]:
    """PostgreSQL with order-processor's tables."""
    platform = Settings(home=tmp_path / "home")
    make_folders(platform)
    server = Server(Postgres(platform))
    try:
        await server.start()
        platform = Settings(home=platform.home, database_url=SecretStr(server.url))
        await migrate(platform, [SPEC])
        yield platform
    finally:
        server.kill()


def test_every_order_ends_done_everywhere_or_nowhere(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chassis_clients, "_BACKOFF_SECONDS", 0.001)
    for module in (orders_module, steps_module):
        monkeypatch.setattr(module, "now", SagaMachine.clock)
    with asyncio.Runner() as runner:

        async def start() -> tuple[World, asyncpg.Pool]:
            world = World()
            await world.start(database.run_dir)
            assert database.database_url is not None
            url, path = database.database_url.get_secret_value(), f"{SPEC.schema},nexus"
            return world, await asyncpg.create_pool(url, min_size=1, server_settings={"search_path": path})

        SagaMachine.platform, SagaMachine.runner = database, runner
        SagaMachine.world, SagaMachine.admin = runner.run(start())
        try:
            run_state_machine_as_test(
                SagaMachine,
                settings=settings(
                    max_examples=30,
                    stateful_step_count=30,
                    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink takes minutes
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(SagaMachine.admin.close())
            runner.run(SagaMachine.world.stop())
