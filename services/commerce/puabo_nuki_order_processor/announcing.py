"""What the others are told of an order's events."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from nexus.commerce.puabo_nuki_order_processor.v1 import events_pb2 as events
from nexus.type.v1.money_pb2 import Money
from services.commerce.puabo_nuki_order_processor.order import FULFILLED, REFUND_PARTS, Order, refund_parts


def announcement(order: Order, kind: str, data: Mapping[str, Any]) -> Message | None:
    """The event for others that goes with an event of the order, if any. `order` is the order after it."""
    who = {"order_id": order.order_id, "customer_id": order.customer_id}
    match kind:
        case "OrderPlaced":
            everything = {at: line.quantity for at, line in enumerate(order.lines)}
            return events.OrderPlaced(total=_money(order, order.total), items=_items(order, everything), **who)
        case "OrderConfirmed":
            return events.OrderPaid(
                payment_id=order.payment_id, total=_money(order, order.total), invoice_id=order.invoice_id, **who
            )
        case "ItemsFulfilled":
            return events.OrderFulfilled(items=_items(order, data["lines"]), complete=order.state == FULFILLED, **who)
        case "OrderCancelled":
            refunded = _money(order, order.refunded) if order.refunded else None
            return events.OrderCancelled(cause=order.cause, refunded=refunded, **who)
        case "ReturnAccepted":
            returned = next(each for each in order.returns if each.return_id == data["return_id"])
            return events.OrderReturned(
                return_id=returned.return_id, items=_items(order, returned.lines), restocked=data["restock"], **who
            )
        case _ if kind in REFUND_PARTS.values():
            refund = order.refund(data["refund_id"])
            if refund.done == refund_parts(order, refund):
                return events.OrderRefunded(
                    refund_id=refund.refund_id,
                    amount=_money(order, refund.amount),
                    items=_items(order, refund.lines),
                    **who,
                )
    return None


def _money(order: Order, minor_units: int) -> Money:
    return Money(currency=order.currency, minor_units=minor_units)


def _items(order: Order, units: Mapping[Any, int]) -> list[events.OrderedItem]:
    return [
        events.OrderedItem(
            line=int(line),
            variant_id=order.lines[int(line)].variant_id,
            sku=order.lines[int(line)].sku,
            quantity=int(quantity),
        )
        for line, quantity in units.items()
    ]
