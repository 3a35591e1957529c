"""An order as what happened to it: which event is legal when, what it changes, and what is to be done next.

Events are the truth; an `Order` is their fold. Amounts are minor units of the order's currency.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import BaseModel

from nexus.commerce.puabo_nuki_order_processor.v1.faults import OrderStateConflict, QuantityExceeded
from nexus.type.v1.money_pb2 import Money

CHECKING_OUT, OPEN, PROCESSING = "CHECKING_OUT", "OPEN", "PROCESSING"
ACTION_REQUIRED, PAYMENT_DECLINED = "ACTION_REQUIRED", "PAYMENT_DECLINED"
CONFIRMED, PARTIALLY_FULFILLED, FULFILLED = "CONFIRMED", "PARTIALLY_FULFILLED", "FULFILLED"
CANCELLING, CANCELLED = "CANCELLING", "CANCELLED"

WAITING = frozenset({OPEN, ACTION_REQUIRED, PAYMENT_DECLINED})
"""Until `expire_time`, for the customer."""
UNPAID = frozenset({CHECKING_OUT, OPEN, PROCESSING, ACTION_REQUIRED, PAYMENT_DECLINED})
PAID = frozenset({CONFIRMED, PARTIALLY_FULFILLED, FULFILLED})

STEPS = {
    "reserve": ("StockReserved", "StockReleased"),
    "authorise": ("PaymentAuthorized", "PaymentVoided"),
    "label": ("LabelsBought", "LabelsVoided"),
    "capture": ("PaymentCaptured", "PaymentReturned"),
    "commit": ("StockCommitted", "StockRestocked"),
    "invoice": ("InvoiceIssued", "InvoiceCredited"),
    "book": ("SaleBooked", "SaleReverted"),
}
"""What is done for an order, in this order, and the events that say that it was done and undone."""
REFUND_PARTS = {
    "credit": "RefundCredited",
    "pay": "RefundPaid",
    "restock": "RefundRestocked",
    "book": "RefundBooked",
}
"""What is done for a refund, in this order. It is never undone."""

_UNDOING = frozenset({CANCELLING})
LEGAL: dict[str, tuple[frozenset[str], str]] = {
    "CheckedOut": (frozenset({""}), CHECKING_OUT),
    "StockReserved": (frozenset({CHECKING_OUT}), OPEN),
    "OrderPlaced": (frozenset({OPEN}), PROCESSING),
    "PaymentDeclined": (frozenset({PROCESSING, ACTION_REQUIRED}), PAYMENT_DECLINED),
    "PaymentRetried": (frozenset({PAYMENT_DECLINED}), PROCESSING),
    "ActionRequired": (frozenset({PROCESSING}), ACTION_REQUIRED),
    "PaymentAuthorized": (frozenset({PROCESSING, ACTION_REQUIRED}), PROCESSING),
    "LabelsBought": (frozenset({PROCESSING}), ""),
    "PaymentCaptured": (frozenset({PROCESSING}), ""),
    "StockCommitted": (frozenset({PROCESSING}), ""),
    "InvoiceIssued": (frozenset({PROCESSING}), ""),
    "SaleBooked": (frozenset({PROCESSING}), ""),
    "OrderConfirmed": (frozenset({PROCESSING}), CONFIRMED),
    "CancellationBegun": (UNPAID | {CONFIRMED}, CANCELLING),
    **{undone: (_UNDOING, "") for _, undone in STEPS.values()},
    "RepaymentRefused": (_UNDOING | PAID | {CANCELLED}, ""),
    "OrderCancelled": (_UNDOING, CANCELLED),
    "DisputeWon": (_UNDOING | {CANCELLED}, ""),
    "DisputeRepaid": (frozenset({CANCELLED}), ""),
    "CancellationRefused": (_UNDOING, CONFIRMED),
    "ItemsFulfilled": (frozenset({CONFIRMED, PARTIALLY_FULFILLED}), PARTIALLY_FULFILLED),
    "ParcelMoved": (PAID, ""),
    "ParcelDelivered": (PAID, ""),
    "ReturnRequested": (frozenset({PARTIALLY_FULFILLED, FULFILLED}), ""),
    "ReturnAccepted": (frozenset({PARTIALLY_FULFILLED, FULFILLED}), ""),
    "ReturnRejected": (frozenset({PARTIALLY_FULFILLED, FULFILLED}), ""),
    "RefundBegun": (PAID, ""),
    **dict.fromkeys(REFUND_PARTS.values(), (PAID, "")),
}
"""Each event: the states in which it may happen, and the state that follows; "" where it stays."""


class Line(BaseModel):
    variant_id: str
    sku: str = ""
    title: str = ""
    variant_title: str = ""
    quantity: int
    unit_price: int
    tax_basis_points: int = 0
    digital: bool = False
    fulfilled: int = 0
    returned: int = 0
    refunded: int = 0

    @property
    def to_fulfil(self) -> int:
        """Units that are still to be handed over: those refunded without coming back are not sent any more, as long
        as there are some that have not been."""
        return max(0, self.quantity - self.fulfilled - max(0, self.refunded - self.returned))


class Parcel(BaseModel):
    weight_grams: int
    length_mm: int = 0
    width_mm: int = 0
    height_mm: int = 0
    shipment_id: str = ""
    carrier: str = ""
    service: str = ""
    tracking_number: str = ""
    moved: bool = False
    """Whether the carrier has it, or had it."""
    delivered: bool = False


class Delivery(BaseModel):
    """The way of delivery that the customer chose."""

    quote_id: str
    carrier: str
    service: str
    price: int
    min_days: int = 0
    max_days: int = 0
    expire_time: datetime


class Refund(BaseModel):
    refund_id: str
    lines: dict[int, int]
    shipping: bool = False
    restock: bool = False
    reason: str = ""
    done: list[str] = []
    amount: int = 0
    tax: int = 0
    credit_note_id: str = ""
    create_time: datetime


class Return(BaseModel):
    return_id: str
    state: str = "REQUESTED"
    lines: dict[int, int]
    reason: str = ""
    refund_id: str = ""
    create_time: datetime


class Draft(BaseModel):
    """What is frozen when an order is made of a cart. Nothing of it is personal."""

    cart_id: str = ""
    customer_id: str = ""
    channel: str = ""
    currency: str = ""
    tax_included: bool = False
    lines: list[Line] = []
    delivery: Delivery | None = None
    shipping_tax_basis_points: int = 0
    parcels: list[Parcel] = []
    goods: int = 0
    tax: int = 0
    total: int = 0

    def money(self, minor_units: int) -> Money:
        return Money(currency=self.currency, minor_units=minor_units)


class Order(Draft):
    order_id: str
    state: str = ""
    version: int = 0
    confirmed: bool = False
    done: list[str] = []
    undone: list[str] = []
    reservation_id: str = ""
    payment_method_id: str = ""
    payment_id: str = ""
    payment_attempts: int = 0
    payment_requests: list[str] = []
    repayments_refused: int = 0
    dispute_won: bool = False
    """Whether money has come back from a dispute that could not be paid back while it lasted."""
    action_url: str = ""
    cause: str = ""
    captured: int = 0
    refunded: int = 0
    invoice_id: str = ""
    invoice_number: str = ""
    platform_share: int = 0
    refunds: list[Refund] = []
    returns: list[Return] = []
    expire_time: datetime | None = None
    create_time: datetime | None = None
    place_time: datetime | None = None
    fulfil_time: datetime | None = None
    update_time: datetime | None = None

    @property
    def reference(self) -> str:
        """What others know it by; what is asked of them for it has keys that begin so."""
        return f"order/{self.order_id}"

    @property
    def steps(self) -> list[str]:
        """What is to be done for this order: nothing is paid that costs nothing, nothing sent that has no parcel."""
        left_out = {"authorise", "capture", "book"} if not self.total else set()
        return [step for step in STEPS if step not in left_out and (step != "label" or self.parcels)]

    @property
    def shipping_refunded(self) -> bool:
        return any(refund.shipping for refund in self.refunds)

    def refund(self, refund_id: str) -> Refund:
        return next(refund for refund in self.refunds if refund.refund_id == refund_id)

    def open_return(self, return_id: str) -> Return | None:
        found = (each for each in self.returns if each.return_id == return_id and each.state == "REQUESTED")
        return next(found, None)


class Action(NamedTuple):
    """What is to be done next: `do` or `undo` a step, do a part of a `refund`, `repay` what is left, or record an
    event."""

    verb: str
    what: str
    refund_id: str = ""


def decide(order: Order, now: datetime) -> Action | None:
    """The next thing to do; None when there is nothing to do now."""
    if order.state == CANCELLING:
        for step in _to_undo(order):
            if step not in order.undone:
                return Action("undo", step)
        return Action("record", "OrderCancelled")
    if order.dispute_won and order.state == CANCELLED:
        return Action("repay", "dispute")
    if order.state in WAITING:
        if order.expire_time is not None and order.expire_time <= now:
            return Action("record", "CancellationBegun")
        return Action("do", "authorise") if order.state == ACTION_REQUIRED else None
    if order.state in (CHECKING_OUT, PROCESSING):
        left = [step for step in order.steps if step not in order.done]
        return Action("do", left[0]) if left else Action("record", "OrderConfirmed")
    for refund in order.refunds:
        for part in refund_parts(order, refund):
            if part not in refund.done:
                return Action("refund", part, refund.refund_id)
    return None


def due(order: Order) -> datetime | None:
    """When an order with nothing to do now is to be looked at again."""
    return order.expire_time if order.state in WAITING else None


def refund_parts(order: Order, refund: Refund) -> list[str]:
    left_out = set() if order.total else {"pay", "book"}
    return [part for part in REFUND_PARTS if part not in left_out and (part != "restock" or refund.restock)]


def require(order: Order, kind: str, verb: str) -> None:
    """Raises OrderStateConflict when this event cannot happen to the order now."""
    if order.state not in LEGAL[kind][0]:
        raise OrderStateConflict(state=order.state or "NEW", verb=verb)


def apply(order: Order, kind: str, data: Mapping[str, Any], at: datetime) -> Order:
    """The order after an event. Raises OrderStateConflict for one that is not legal."""
    require(order, kind, kind)
    after = order.model_copy(deep=True)
    after.state = LEGAL[kind][1] or order.state
    after.confirmed |= after.state == CONFIRMED
    after.version += 1
    after.update_time = at
    if order.state in WAITING:
        after.expire_time = None
        after.action_url = ""
    for step, (done, undone) in STEPS.items():
        if kind == done:
            after.done.append(step)
        elif kind == undone:
            after.undone.append(step)
    for part, done in REFUND_PARTS.items():
        if kind == done:
            after.refund(data["refund_id"]).done.append(part)
    _change(after, kind, data, at)
    return after


def fold(order_id: str, events: Sequence[tuple[str, Mapping[str, Any], datetime]]) -> Order:
    order = Order(order_id=order_id)
    for kind, data, at in events:
        order = apply(order, kind, data, at)
    return order


def units_left(order: Order, line: int, verb: str) -> int:
    """How many units of a line can be fulfilled, returned or refunded."""
    if line >= len(order.lines):
        return 0
    one = order.lines[line]
    if verb == "fulfilled":
        return one.to_fulfil
    asked_back = sum(each.lines.get(line, 0) for each in order.returns if each.state == "REQUESTED")
    if verb == "returned":
        return min(one.fulfilled - one.returned, one.quantity - one.refunded) - asked_back
    return one.quantity - one.refunded


def check_units(order: Order, lines: Mapping[int, int], verb: str) -> dict[int, int]:
    """The units asked for; all that is left when none are. Raises QuantityExceeded."""
    if not lines:
        everything = {at: units_left(order, at, verb) for at in range(len(order.lines))}
        return {at: units for at, units in everything.items() if units > 0}
    for at, units in lines.items():
        if units > units_left(order, at, verb):
            raise QuantityExceeded(line=at, left=max(0, units_left(order, at, verb)), verb=verb)
    return dict(lines)


def can_cancel(order: Order) -> bool:
    """Whether nothing has been handed over, to the customer or to a carrier, given back or sent back."""
    return order.state in LEGAL["CancellationBegun"][0] and not order.refunds and not is_on_its_way(order)


def is_on_its_way(order: Order) -> bool:
    return any(parcel.moved or parcel.delivered for parcel in order.parcels)


def can_stay(order: Order) -> bool:
    """Whether an order that is to be cancelled is still as it was when it was confirmed."""
    return order.confirmed and not order.undone


def platform_part(order: Order, refund: Refund) -> int:
    """The platform's part of a refund's net amount: the parts of all refunds add up to what it had, exactly."""
    net_total = order.total - order.tax
    if not net_total:
        return 0
    before = sum(each.amount - each.tax for each in order.refunds if "book" in each.done)
    share = order.platform_share

    def part(net: int) -> int:
        return (2 * share * net + net_total) // (2 * net_total)

    return part(before + refund.amount - refund.tax) - part(before)


def _to_undo(order: Order) -> list[str]:
    """What was done, the last first; before it, what may have been begun by somebody who died doing it. But first of
    all the carrier is asked for the parcels: while it has one, nothing is given back for it."""
    begun = order.steps[: len(order.done) + 1][::-1]
    return sorted(begun, key=lambda step: step != "label")


def _change(order: Order, kind: str, data: Mapping[str, Any], at: datetime) -> None:
    """What an event changes besides the state and what has been done."""
    match kind:
        case "CheckedOut":
            _take_over(order, data)
            order.create_time = at
        case "OrderPlaced" | "PaymentRetried":
            order.place_time = order.place_time or at
            order.payment_method_id = data["payment_method_id"]
            order.payment_attempts += 1
            order.payment_requests.append(data["request_id"])
            order.payment_id = order.cause = ""
        case "RepaymentRefused":
            order.repayments_refused += 1
        case "DisputeWon":
            order.dispute_won = True
        case "DisputeRepaid":
            order.dispute_won = False
            _take_over(order, data)
        case "ItemsFulfilled":
            for line, units in data["lines"].items():
                order.lines[int(line)].fulfilled += int(units)
            order.fulfil_time = at
            _complete(order)
        case "ParcelMoved":
            for parcel in order.parcels:
                parcel.moved |= parcel.shipment_id == data["shipment_id"]
        case "ParcelDelivered":
            for parcel in order.parcels:
                parcel.delivered |= parcel.shipment_id == data["shipment_id"]
        case "CancellationRefused":
            order.cause = ""
            for number in data["under_way"]:
                order.parcels[number].moved = True
        case "ReturnRequested":
            order.returns.append(Return.model_validate({**data, "create_time": at}))
        case "ReturnAccepted" | "ReturnRejected":
            decided = order.open_return(data["return_id"])
            assert decided is not None, "only an open return is decided"
            decided.state = "REJECTED"
            if kind == "ReturnAccepted":
                decided.state, decided.refund_id = "ACCEPTED", data["refund_id"]
                for line, units in decided.lines.items():
                    order.lines[line].returned += units
        case "RefundBegun":
            refund = Refund.model_validate({**data, "create_time": at})
            order.refunds.append(refund)
            for line, units in refund.lines.items():
                order.lines[line].refunded += units
            if order.state == PARTIALLY_FULFILLED:
                _complete(order)
        case "RefundCredited":
            refund = order.refund(data["refund_id"])
            refund.amount, refund.tax, refund.credit_note_id = data["amount"], data["tax"], data["credit_note_id"]
        case "RefundPaid":
            order.refunded += order.refund(data["refund_id"]).amount
        case _:
            _take_over(order, data)


def _take_over(order: Order, data: Mapping[str, Any]) -> None:
    """What an event says in so many words."""
    said = Order.model_validate({**data, "order_id": order.order_id})
    for name in said.model_fields_set:
        setattr(order, name, getattr(said, name))


def _complete(order: Order) -> None:
    """An order of which nothing is left to be handed over is fulfilled, if anything was."""
    if not any(line.to_fulfil for line in order.lines):
        order.state = FULFILLED
