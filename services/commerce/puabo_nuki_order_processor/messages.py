"""Orders and carts as the contract has them."""

import json
from collections.abc import Mapping
from typing import Any

from nexus.commerce.puabo_nuki_order_processor.v1 import carts_pb2 as carts
from nexus.commerce.puabo_nuki_order_processor.v1 import orders_pb2 as pb
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import timestamp
from services.commerce.puabo_nuki_order_processor.carts import Priced
from services.commerce.puabo_nuki_order_processor.order import Delivery, Order, Refund, Return, refund_parts
from services.commerce.puabo_nuki_order_processor.store import addresses_of, order_of


def cart_message(priced: Priced) -> carts.Cart:
    row, draft = priced.row, priced.draft
    cart = carts.Cart(
        cart_id=row["cart_id"],
        customer_id=row["customer_id"],
        channel=row["channel"],
        currency=row["currency"],
        lines=priced.lines,
        shipping=delivery_message(draft.delivery, draft.currency) if draft.delivery is not None else None,
        totals=totals_message(draft),
        etag=str(row["version"]),
        create_time=timestamp(row["create_time"]),
        update_time=timestamp(row["update_time"]),
    )
    if priced.addresses is not None:
        cart.shipping_address.CopyFrom(priced.addresses.shipping)
        if priced.addresses.billing is not None:
            cart.billing_address.CopyFrom(priced.addresses.billing)
    return cart


def totals_message(order: Order) -> carts.Totals:
    def money(minor_units: int) -> Money:
        return Money(currency=order.currency, minor_units=minor_units)

    return carts.Totals(
        goods=money(order.goods),
        shipping=money(order.delivery.price if order.delivery is not None else 0),
        tax=money(order.tax),
        total=money(order.total),
        tax_included=order.tax_included,
    )


def delivery_message(delivery: Delivery, currency: str) -> carts.ShippingOption:
    return carts.ShippingOption(
        quote_id=delivery.quote_id,
        carrier=delivery.carrier,
        service=delivery.service,
        price=Money(currency=currency, minor_units=delivery.price),
        min_days=delivery.min_days,
        max_days=delivery.max_days,
        expire_time=timestamp(delivery.expire_time),
    )


def order_message(row: Any, *, for_staff: bool = False) -> pb.Order:
    """`for_staff` with what keeps it from going on."""
    order, addresses = order_of(row), addresses_of(row)

    def money(minor_units: int) -> Money:
        return Money(currency=order.currency, minor_units=minor_units)

    message = pb.Order(
        order_id=order.order_id,
        customer_id=order.customer_id,
        state=pb.OrderState.Value(f"ORDER_STATE_{order.state}"),
        channel=order.channel,
        currency=order.currency,
        lines=[
            pb.OrderLine(
                line=at,
                variant_id=line.variant_id,
                sku=line.sku,
                title=line.title,
                variant_title=line.variant_title,
                quantity=line.quantity,
                unit_price=money(line.unit_price),
                line_price=money(line.unit_price * line.quantity),
                tax_basis_points=line.tax_basis_points,
                digital=line.digital,
                fulfilled=line.fulfilled,
                returned=line.returned,
                refunded=line.refunded,
            )
            for at, line in enumerate(order.lines)
        ],
        shipping_address=addresses.shipping if row["shipping_address"] else None,
        billing_address=addresses.billing,
        shipping=delivery_message(order.delivery, order.currency) if order.delivery is not None else None,
        totals=totals_message(order),
        captured=money(order.captured),
        refunded=money(order.refunded),
        payment_id=order.payment_id,
        action_url=order.action_url,
        cause=order.cause,
        parcels=[
            pb.OrderParcel(
                shipment_id=parcel.shipment_id,
                carrier=parcel.carrier,
                service=parcel.service,
                tracking_number=parcel.tracking_number,
                delivered=parcel.delivered,
            )
            for parcel in order.parcels
        ],
        invoice_id=order.invoice_id,
        invoice_number=order.invoice_number,
        refunds=[_refund(order, refund) for refund in order.refunds],
        returns=[_return(each) for each in order.returns],
    )
    for name in ("expire_time", "create_time", "place_time", "update_time"):
        moment = getattr(order, name)
        if moment is not None:
            getattr(message, name).CopyFrom(timestamp(moment))
    if for_staff and row["attention"]:
        message.attention = row["attention"]
        message.retry_time.CopyFrom(timestamp(row["due_time"]))
    return message


def timeline_message(row: Any) -> pb.TimelineEntry:
    return pb.TimelineEntry(
        version=row["version"],
        kind=row["kind"],
        details=_details(json.loads(row["data"])),
        actor=row["actor"],
        create_time=timestamp(row["create_time"]),
    )


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


def _refund(order: Order, refund: Refund) -> pb.OrderRefund:
    pending = any(part not in refund.done for part in refund_parts(order, refund))
    return pb.OrderRefund(
        refund_id=refund.refund_id,
        state=pb.REFUND_STATE_PENDING if pending else pb.REFUND_STATE_DONE,
        lines=_units(refund.lines),
        shipping=refund.shipping,
        amount=Money(currency=order.currency, minor_units=refund.amount) if "credit" in refund.done else None,
        credit_note_id=refund.credit_note_id,
        reason=refund.reason,
        create_time=timestamp(refund.create_time),
    )


def _return(each: Return) -> pb.OrderReturn:
    return pb.OrderReturn(
        return_id=each.return_id,
        state=pb.ReturnState.Value(f"RETURN_STATE_{each.state}"),
        lines=_units(each.lines),
        reason=each.reason,
        refund_id=each.refund_id,
        create_time=timestamp(each.create_time),
    )


def _units(units: Mapping[int, int]) -> list[pb.LineUnits]:
    return [pb.LineUnits(line=line, quantity=quantity) for line, quantity in sorted(units.items())]
