"""Orders and carts as the contract has them, and what the others are told of an order's events."""

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message
from pydantic import BaseModel

from nexus.commerce.puabo_nuki_order_processor.v1 import carts_pb2 as carts
from nexus.commerce.puabo_nuki_order_processor.v1 import events_pb2 as events
from nexus.commerce.puabo_nuki_order_processor.v1 import orders_pb2 as pb
from services.chassis.clock import timestamp
from services.chassis.messages import MessageOf
from services.chassis.table import Row
from services.commerce.puabo_nuki_order_processor.carts import Priced
from services.commerce.puabo_nuki_order_processor.order import (
    FULFILLED,
    REFUND_PARTS,
    Delivery,
    Draft,
    Order,
    Refund,
    refund_parts,
)
from services.commerce.puabo_nuki_order_processor.store import order_of

_cart = MessageOf(carts.Cart, etag="version")
_option = MessageOf(carts.ShippingOption)
_order = MessageOf(pb.Order)
_line = MessageOf(pb.OrderLine)
_parcel = MessageOf(pb.OrderParcel)
_refund = MessageOf(pb.OrderRefund)
_return = MessageOf(pb.OrderReturn)
_entry = MessageOf(pb.TimelineEntry)
_item = MessageOf(events.OrderedItem)


def cart_message(priced: Priced) -> carts.Cart:
    draft = priced.draft
    return _cart(priced.row, lines=priced.lines, shipping=_delivery(draft), totals=_totals(draft))


def option_message(delivery: Delivery, currency: str) -> carts.ShippingOption:
    return _option(_row(delivery, currency))


def order_message(row: Row, *, for_staff: bool = False) -> pb.Order:
    """`for_staff` with what keeps it from going on."""
    order = order_of(row)
    attention = row["attention"] if for_staff else ""
    return _order(
        {**row, **dict(order)},
        lines=[
            _line(_row(line, order.currency), line=at, line_price=order.money(line.unit_price * line.quantity))
            for at, line in enumerate(order.lines)
        ],
        shipping=_delivery(order),
        totals=_totals(order),
        parcels=[_parcel(dict(parcel)) for parcel in order.parcels],
        refunds=[
            _refund(
                _row(refund, order.currency),
                state=pb.REFUND_STATE_DONE if _is_done(order, refund) else pb.REFUND_STATE_PENDING,
                lines=_units(refund.lines),
                amount=order.money(refund.amount) if "credit" in refund.done else None,
            )
            for refund in order.refunds
        ],
        returns=[_return(dict(each), lines=_units(each.lines)) for each in order.returns],
        attention=attention,
        retry_time=timestamp(row["due_time"]) if attention else None,
    )


def timeline_message(row: Row) -> pb.TimelineEntry:
    return _entry(row, details=_details(json.loads(row["data"])))


def announcement(order: Order, kind: str, data: Mapping[str, Any]) -> Message | None:
    """The event for others that goes with an event of the order, if any. `order` is the order after it."""
    who = {"order_id": order.order_id, "customer_id": order.customer_id}
    match kind:
        case "OrderPlaced":
            everything = {at: line.quantity for at, line in enumerate(order.lines)}
            return events.OrderPlaced(total=order.money(order.total), items=_items(order, everything), **who)
        case "OrderConfirmed":
            return events.OrderPaid(
                payment_id=order.payment_id, total=order.money(order.total), invoice_id=order.invoice_id, **who
            )
        case "ItemsFulfilled":
            return events.OrderFulfilled(items=_items(order, data["lines"]), complete=order.state == FULFILLED, **who)
        case "OrderCancelled":
            refunded = order.money(order.refunded) if order.refunded else None
            return events.OrderCancelled(cause=order.cause, refunded=refunded, **who)
        case "ReturnAccepted":
            returned = next(each for each in order.returns if each.return_id == data["return_id"])
            return events.OrderReturned(
                return_id=returned.return_id, items=_items(order, returned.lines), restocked=data["restock"], **who
            )
        case _ if kind in REFUND_PARTS.values() and _is_done(order, refund := order.refund(data["refund_id"])):
            items, amount = _items(order, refund.lines), order.money(refund.amount)
            return events.OrderRefunded(refund_id=refund.refund_id, amount=amount, items=items, **who)
    return None


def _row(thing: BaseModel, currency: str) -> dict[str, Any]:
    """Its amounts are of this currency."""
    return {**dict(thing), "currency": currency}


def _delivery(draft: Draft) -> carts.ShippingOption | None:
    return option_message(draft.delivery, draft.currency) if draft.delivery is not None else None


def _totals(draft: Draft) -> carts.Totals:
    return carts.Totals(
        goods=draft.money(draft.goods),
        shipping=draft.money(draft.delivery.price if draft.delivery is not None else 0),
        tax=draft.money(draft.tax),
        total=draft.money(draft.total),
        tax_included=draft.tax_included,
    )


def _is_done(order: Order, refund: Refund) -> bool:
    return refund.done == refund_parts(order, refund)


def _units(units: Mapping[int, int]) -> list[pb.LineUnits]:
    return [pb.LineUnits(line=line, quantity=quantity) for line, quantity in sorted(units.items())]


def _items(order: Order, units: Mapping[Any, int]) -> list[events.OrderedItem]:
    return [
        _item(dict(order.lines[int(line)]), line=int(line), quantity=int(quantity)) for line, quantity in units.items()
    ]


def _details(data: Mapping[str, Any]) -> dict[str, str]:
    """What can be said in a word; units as "line × quantity"."""
    details = {name: str(value) for name, value in data.items() if isinstance(value, str | int) and value != ""}
    details.pop("request_id", None)
    if isinstance(data.get("lines"), dict):
        details["units"] = ", ".join(f"{line} × {units}" for line, units in data["lines"].items())
    if isinstance(data.get("parcels"), list):
        numbers = [parcel.get("tracking_number", "") for parcel in data["parcels"]]
        details["tracking_numbers"] = ", ".join(filter(None, numbers))
    return {name: text for name, text in details.items() if text}
