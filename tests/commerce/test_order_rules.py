"""The rules of an order, without a platform: whatever happens, in whatever order, they hold."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nexus.commerce.puabo_nuki_order_processor.v1.faults import OrderStateConflict, QuantityExceeded
from services.commerce.puabo_nuki_order_processor.order import (
    ACTION_REQUIRED,
    CANCELLED,
    CANCELLING,
    CHECKING_OUT,
    CONFIRMED,
    LEGAL,
    OPEN,
    PAID,
    PAYMENT_DECLINED,
    REFUND_PARTS,
    STEPS,
    WAITING,
    Action,
    Order,
    apply,
    can_cancel,
    can_stay,
    check_units,
    decide,
    due,
    fold,
    platform_part,
    refund_parts,
    units_left,
)

START = datetime(2026, 11, 23, tzinfo=UTC)
LONG = timedelta(days=400)
PRICE, QUANTITIES, SHIPPING = 1_999, (3, 1, 2), 490
TOTAL = PRICE * sum(QUANTITIES) + SHIPPING
TAX = 1_013


def drafted(**changes: Any) -> dict[str, Any]:
    lines = [{"variant_id": f"v{at}", "quantity": units, "unit_price": PRICE} for at, units in enumerate(QUANTITIES)]
    draft = {"customer_id": "ada", "currency": "EUR", "lines": lines, "parcels": [{"weight_grams": 500}]}
    return {**draft, "total": TOTAL, "tax": TAX, **changes}


class OrderMachine(RuleBasedStateMachine):
    """The saga does what `decide` says, with any outcome; customers and staff interfere at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.order = Order(order_id="1")
        self.events: list[tuple[str, dict[str, Any], datetime]] = []
        self.did: list[Action] = []
        self.happen("CheckedOut", drafted())

    def happen(self, kind: str, data: dict[str, Any]) -> None:
        self.now += timedelta(seconds=1)
        self.order = apply(self.order, kind, data, self.now)
        self.events.append((kind, data, self.now))

    def waits(self) -> dict[str, Any]:
        return {"expire_time": (self.now + timedelta(minutes=15)).isoformat()}

    @rule(outcome=st.sampled_from(["well", "well", "well", "refused", "action"]))
    def the_saga_does_the_next_thing(self, outcome: str) -> None:
        action = decide(self.order, self.now)
        if action is None:
            return
        self.did.append(action)
        match action:
            case Action("do", "reserve") if outcome != "refused":
                self.happen("StockReserved", {"reservation_id": "r", **self.waits()})
            case Action("do", "authorise") if outcome == "refused":
                self.happen("PaymentDeclined", {"payment_id": "p", "cause": "CARD_DECLINED", **self.waits()})
            case Action("do", "authorise") if outcome == "action":
                if self.order.state == "PROCESSING":
                    self.happen("ActionRequired", {"payment_id": "p", "action_url": "u", **self.waits()})
            case Action("do", step) if outcome == "refused":
                self.happen("CancellationBegun", {"cause": "FAILED", "step": step})
            case Action("do", "capture"):
                self.happen("PaymentCaptured", {"captured": self.order.total})
            case Action("do", "book"):
                self.happen("SaleBooked", {"platform_share": 1_800})
            case Action("do", step):
                self.happen(STEPS[step][0], {})
            case Action("undo", "label") if outcome == "refused" and can_stay(self.order):
                self.happen("CancellationRefused", {"under_way": [0]})
            case Action("undo", "capture"):
                self.happen("PaymentReturned", {"captured": self.order.captured, "refunded": self.order.captured})
            case Action("undo", step):
                self.happen(STEPS[step][1], {})
            case Action("refund", part, refund_id):
                lines = sum(self.order.refund(refund_id).lines.values()) * PRICE
                amount = lines + (SHIPPING if self.order.refund(refund_id).shipping else 0)
                credited = {"amount": amount, "tax": amount * TAX // TOTAL, "credit_note_id": "c"}
                self.happen(REFUND_PARTS[part], {"refund_id": refund_id, **(credited if part == "credit" else {})})
            case Action("record", kind):
                self.happen(kind, {"cause": "EXPIRED"} if kind == "CancellationBegun" else {})

    @rule(request=st.integers(1, 1_000_000))
    @precondition(lambda self: self.order.state in ("OPEN", "PAYMENT_DECLINED"))
    def the_customer_pays(self, request: int) -> None:
        kind = "OrderPlaced" if self.order.state == "OPEN" else "PaymentRetried"
        self.happen(kind, {"payment_method_id": "m", "request_id": str(request)})

    @rule()
    @precondition(lambda self: can_cancel(self.order))
    def somebody_cancels(self) -> None:
        self.happen("CancellationBegun", {"cause": "CUSTOMER"})

    @rule()
    @precondition(lambda self: self.order.state in PAID)
    def a_parcel_moves(self) -> None:
        shipment_id = self.order.parcels[0].shipment_id
        self.happen("ParcelMoved", {"shipment_id": shipment_id, "state": "IN_TRANSIT"})
        assert not can_cancel(self.order)

    @rule()
    def time_passes(self) -> None:
        self.now += timedelta(minutes=20)

    @rule(data=st.data(), verb=st.sampled_from(["fulfilled", "returned", "refunded"]))
    @precondition(lambda self: self.order.state in PAID)
    def staff_work(self, data: st.DataObject, verb: str) -> None:
        kind = {"fulfilled": "ItemsFulfilled", "returned": "ReturnRequested", "refunded": "RefundBegun"}[verb]
        left = check_units(self.order, {}, verb)
        if self.order.state not in LEGAL[kind][0] or not left:
            return
        line = data.draw(st.sampled_from(sorted(left)))
        lines = {line: data.draw(st.integers(1, left[line]))}
        number = f"{len(self.events)}"
        refund = {"refund_id": number, "lines": lines, "restock": data.draw(st.booleans()), "reason": "r"}
        match verb:
            case "fulfilled":
                self.happen(kind, {"lines": lines})
            case "returned":
                self.happen(kind, {"return_id": number, "lines": lines, "reason": "r"})
                if data.draw(st.booleans()):
                    self.happen("ReturnAccepted", {"return_id": number, "refund_id": number})
                    self.happen("RefundBegun", {**refund, "shipping": False})
            case "refunded":
                shipping = not self.order.shipping_refunded and data.draw(st.booleans())
                self.happen(kind, {**refund, "shipping": shipping})

    @rule(kind=st.sampled_from(sorted(LEGAL)))
    def what_is_not_legal_is_refused(self, kind: str) -> None:
        if self.order.state not in LEGAL[kind][0]:
            with pytest.raises(OrderStateConflict):
                apply(self.order, kind, {}, self.now)

    @invariant()
    def the_order_is_what_its_events_say(self) -> None:
        assert fold("1", self.events) == self.order
        assert Order.model_validate_json(self.order.model_dump_json()) == self.order
        assert self.order.version == len(self.events)

    @invariant()
    def no_more_goes_back_than_was_taken(self) -> None:
        assert 0 <= self.order.refunded <= self.order.captured <= TOTAL

    @invariant()
    def units_are_never_counted_twice(self) -> None:
        for line in self.order.lines:
            assert 0 <= line.returned <= line.fulfilled <= line.quantity
            assert 0 <= line.refunded <= line.quantity
            assert line.fulfilled + line.to_fulfil <= line.quantity
        for at in range(len(self.order.lines)):
            for verb in ("fulfilled", "returned", "refunded"):
                left = units_left(self.order, at, verb)
                with pytest.raises(QuantityExceeded):
                    check_units(self.order, {at: max(left, 0) + 1}, verb)

    @invariant()
    def steps_are_done_in_order_and_undone_in_reverse_after_the_labels(self) -> None:
        done, undone = self.order.done, self.order.undone
        assert done == self.order.steps[: len(done)]
        order = self.order.steps[: len(done) + 1][::-1]
        if "label" in order:
            order = ["label", *(step for step in order if step != "label")]
        assert undone == order[: len(undone)]

    @invariant()
    def the_end_is_all_or_nothing(self) -> None:
        if self.order.state in PAID:
            assert self.order.done == self.order.steps
            assert self.order.captured == self.order.total
        if self.order.state == CANCELLED:
            assert set(self.order.done) <= set(self.order.undone)
            assert self.order.captured == self.order.refunded
            assert decide(self.order, self.now + LONG) is None

    @invariant()
    def nothing_hangs(self) -> None:
        """There is something to do, or a time at which there is, or the order is at an end."""
        if decide(self.order, self.now) is None and self.order.state not in PAID | {CANCELLED}:
            assert self.order.state in WAITING
            assert due(self.order) is not None
            assert decide(self.order, self.now + LONG) is not None

    @invariant()
    def the_platform_gives_back_its_part_and_no_more(self) -> None:
        parts, order = 0, self.order.model_copy(deep=True)
        for refund in order.refunds:
            if "credit" in refund.done:
                refund.done = [part for part in refund.done if part != "book"]
        for refund in order.refunds:
            if "credit" in refund.done:
                parts += platform_part(order, refund)
                refund.done.append("book")
        assert 0 <= parts <= max(order.platform_share, 0) + 1

    def teardown(self) -> None:
        """Left alone, with everything going well, every order comes to its end: who does not act, or has cancelled,
        gets nothing; all others get what they ordered."""
        state, expires = self.order.state, self.order.expire_time
        is_late = state == ACTION_REQUIRED and expires is not None and expires <= self.now
        is_lost = is_late or state in (CHECKING_OUT, OPEN, PAYMENT_DECLINED, CANCELLING, CANCELLED)
        for _ in range(100):
            if decide(self.order, self.now) is None:
                if self.order.state in PAID | {CANCELLED}:
                    assert (self.order.state == CANCELLED) == is_lost
                    return
                self.now += LONG
            self.the_saga_does_the_next_thing("well")
        raise AssertionError(f"it never ends: {self.order.state}")


TestOrderMachine = OrderMachine.TestCase
TestOrderMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_everything_refunded_gives_the_platform_s_share_back_to_the_cent() -> None:
    order = Order(order_id="1")
    events: list[tuple[str, dict[str, Any]]] = [
        ("CheckedOut", drafted()),
        ("StockReserved", {}),
        ("OrderPlaced", {"payment_method_id": "", "request_id": "1"}),
        ("PaymentAuthorized", {}),
        ("LabelsBought", {}),
        ("PaymentCaptured", {"captured": TOTAL}),
        ("StockCommitted", {}),
        ("InvoiceIssued", {}),
        ("SaleBooked", {"platform_share": 1_997}),
        ("OrderConfirmed", {}),
    ]
    for kind, data in events:
        order = apply(order, kind, data, START)
    assert order.state == CONFIRMED
    parts, taxes, left = [], 0, TOTAL
    for at, amount in enumerate((1_999, 3_998, TOTAL - 5_997)):
        begun = {"refund_id": str(at), "lines": {at: 1}, "shipping": False, "restock": False, "reason": "r"}
        tax = TAX - taxes if amount == left else amount * TAX // TOTAL
        taxes, left = taxes + tax, left - amount
        order = apply(order, "RefundBegun", begun, START)
        credited = {"refund_id": str(at), "amount": amount, "tax": tax, "credit_note_id": "c"}
        order = apply(order, "RefundCredited", credited, START)
        parts.append(platform_part(order, order.refund(str(at))))
        order = apply(order, "RefundPaid", {"refund_id": str(at)}, START)
        order = apply(order, "RefundBooked", {"refund_id": str(at)}, START)
    assert sum(parts) == 1_997
    assert order.refunded == order.captured


def test_a_free_order_is_neither_paid_nor_booked_and_a_digital_one_not_sent() -> None:
    order = apply(Order(order_id="1"), "CheckedOut", drafted(total=0, tax=0, parcels=[]), START)
    assert order.steps == ["reserve", "commit", "invoice"]
    assert refund_parts(order, apply_refund(order)) == ["credit"]


def apply_refund(order: Order) -> Any:
    paid = order.model_copy(update={"state": CONFIRMED})
    begun = {"refund_id": "1", "lines": {"0": 1}, "shipping": False, "restock": False, "reason": "r"}
    return apply(paid, "RefundBegun", begun, START).refunds[0]


def test_what_may_have_been_begun_is_undone_too() -> None:
    order = Order(order_id="1", state=CANCELLING, total=TOTAL, done=["reserve", "authorise", "label"])
    order.parcels = apply(Order(order_id="2"), "CheckedOut", drafted(), START).parcels
    assert decide(order, START) == Action("undo", "label")
    order.undone.append("label")
    assert decide(order, START) == Action("undo", "capture")
