"""What is done for an order at other services, and how it is undone there.

Each `do` may be done twice: its keys follow from the order, the step and, for payments, the attempt. Each `undo` copes
with a step that was done, was not, or was begun by somebody who died: it asks, or says so by key. Doing returns the
event that is to be recorded; a fault that will not go away by itself comes through.
"""

import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration

from nexus.commerce.puabo_nuki_inventory_mgr.v1 import faults as stock_faults
from nexus.commerce.puabo_nuki_inventory_mgr.v1 import reservations_pb2 as stock
from nexus.commerce.puabo_nuki_inventory_mgr.v1.inventory_pb2 import ItemQuantity
from nexus.commerce.puabo_nuki_inventory_mgr.v1.reservations_pb2_grpc import ReservationServiceStub
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipment_pb2 as shipment
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipping_pb2 as shipping
from nexus.commerce.puabo_nuki_shipping_service.v1.faults import ShipmentNotFound, ShipmentUnderWay
from nexus.commerce.puabo_nuki_shipping_service.v1.shipping_pb2_grpc import FulfilmentServiceStub
from nexus.finance.billing_service.v1 import payments_pb2 as billing
from nexus.finance.billing_service.v1.faults import (
    CustomerNotFound,
    PaymentMethodNotFound,
    PaymentStateConflict,
    ProviderNotConfigured,
)
from nexus.finance.billing_service.v1.payments_pb2_grpc import PaymentServiceStub
from nexus.finance.invoice_gen.v1 import invoice_gen_pb2 as invoicing
from nexus.finance.invoice_gen.v1.faults import InvoiceNotFound
from nexus.finance.invoice_gen.v1.invoice_gen_pb2_grpc import IssuingServiceStub
from nexus.finance.invoice_gen.v1.invoice_pb2 import CreditedLine
from nexus.finance.ledger_mgr.v1 import ledger_pb2 as ledger
from nexus.finance.ledger_mgr.v1.books_pb2 import NewTransaction
from nexus.finance.ledger_mgr.v1.faults import TransactionNotFound
from nexus.finance.ledger_mgr.v1.ledger_pb2_grpc import LedgerServiceStub
from services.chassis.clock import moment, now
from services.chassis.messages import values_of
from services.chassis.saga import Later
from services.chassis.service import Service
from services.commerce.puabo_nuki_order_processor import postings
from services.commerce.puabo_nuki_order_processor.carts import parcel_message
from services.commerce.puabo_nuki_order_processor.invoicing import addresses_of, invoice_content
from services.commerce.puabo_nuki_order_processor.order import (
    PROCESSING,
    REFUND_PARTS,
    STEPS,
    Order,
    Refund,
    can_stay,
    platform_part,
)
from services.commerce.puabo_nuki_order_processor.spec import Config
from services.commerce.puabo_nuki_order_processor.store import OrderStore

Event = tuple[str, dict[str, Any]]
_WITH_CARRIER = (
    shipment.SHIPMENT_STATE_IN_TRANSIT,
    shipment.SHIPMENT_STATE_OUT_FOR_DELIVERY,
    shipment.SHIPMENT_STATE_DELIVERED,
    shipment.SHIPMENT_STATE_RETURNED,
)
_NO_PAYMENT = (CustomerNotFound, PaymentMethodNotFound, ProviderNotConfigured)
_NOTHING = {"nothing": "true"}
"""What is said of a step that had left nothing to undo."""
CALL_SECONDS = 12.0
"""The longest call. The lease of an order is longer than the two that a step makes at most; what is done for several
parcels has keys that the carrier's side keeps, cancelled ones too."""


class RepaymentRefused(Exception):  # noqa: N818  an answer of the provider
    """The provider does not give the money back; somebody has to look at it."""


class Steps:
    """A step is done by `_do_<step>` and undone by `_undo_<step>`; a part of a refund is done by `_refund_<part>`."""

    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._orders = OrderStore(service.database).orders
        self._stock = service.clients.stub(ReservationServiceStub, timeout=CALL_SECONDS)
        self._payments = service.clients.stub(PaymentServiceStub, timeout=CALL_SECONDS)
        self._shipping = service.clients.stub(FulfilmentServiceStub, timeout=CALL_SECONDS)
        self._invoices = service.clients.stub(IssuingServiceStub, timeout=CALL_SECONDS)
        self._ledger = service.clients.stub(LedgerServiceStub, timeout=CALL_SECONDS)

    async def do(self, order: Order, step: str) -> Event | None:
        """The event that tells of it; None when the customer is still waited for."""
        do: Callable[[Order], Awaitable[Event | None]] = getattr(self, f"_do_{step}")
        return await do(order)

    async def undo(self, order: Order, step: str) -> Event:
        """The event that tells of it; CancellationRefused when the order is on its way, and stays."""
        if step == "label" and can_stay(order) and (under_way := await self._parcels_under_way(order)):
            return "CancellationRefused", {"under_way": under_way}
        undo: Callable[[Order], Awaitable[dict[str, Any]]] = getattr(self, f"_undo_{step}")
        return STEPS[step][1], await undo(order)

    async def refund(self, order: Order, refund: Refund, part: str) -> Event:
        do: Callable[[Order, Refund], Awaitable[dict[str, Any]]] = getattr(self, f"_refund_{part}")
        return REFUND_PARTS[part], {"refund_id": refund.refund_id, **await do(order, refund)}

    # Stock

    async def _do_reserve(self, order: Order) -> Event:
        request = stock.ReserveRequest(
            lines=[stock.ReserveLine(item_id=line.variant_id, quantity=line.quantity) for line in order.lines],
            lifetime=_duration(self._config.open_lifetime),
            reference=order.reference,
            request_id=order.reference,
        )
        reservation = (await self._stock.Reserve(request)).reservation
        expire_time = moment(reservation.expire_time).isoformat()
        return "StockReserved", {"reservation_id": reservation.reservation_id, "expire_time": expire_time}

    async def _undo_reserve(self, order: Order) -> dict[str, Any]:
        """Nothing was reserved that is not known: an order is only cancelled after it was."""
        if order.reservation_id:
            request = stock.ReleaseReservationRequest(reservation_id=order.reservation_id)
            with contextlib.suppress(stock_faults.ReservationSettled):  # committed, and what it took is back by now
                await self._stock.ReleaseReservation(request)
        return {}

    async def _do_commit(self, order: Order) -> Event:
        request = stock.CommitReservationRequest(reservation_id=order.reservation_id)
        await self._stock.CommitReservation(request)
        return "StockCommitted", {}

    async def _undo_commit(self, order: Order) -> dict[str, Any]:
        request = stock.RestockReservationRequest(
            reservation_id=order.reservation_id, note="order cancelled", request_id=f"{order.reference}/restock"
        )
        try:
            await self._stock.RestockReservation(request)
        except (stock_faults.ReservationSettled, stock_faults.ReservationNotFound):  # it was not committed
            return _NOTHING
        return {}

    # Payment

    async def _do_authorise(self, order: Order) -> Event | None:
        until = (now() + self._config.payment_lifetime).isoformat()
        try:
            if order.state == PROCESSING:
                # The customer may take time at the bank, and we with the rest.
                hold = stock.ExtendReservationRequest(
                    reservation_id=order.reservation_id, lifetime=_duration(self._config.hold_lifetime)
                )
                await self._stock.ExtendReservation(hold)
            payment = await self._payment(order)
        except _NO_PAYMENT as refusal:
            return "PaymentDeclined", {"cause": refusal.reason, "expire_time": until}
        known = {"payment_id": payment.payment_id}
        match payment.state:
            case billing.PAYMENT_STATE_AUTHORIZED:
                amount = f"{payment.amount.minor_units} {payment.amount.currency}"
                return "PaymentAuthorized", {**known, "amount": amount}
            case billing.PAYMENT_STATE_REQUIRES_ACTION if order.state != PROCESSING:
                return None
            case billing.PAYMENT_STATE_REQUIRES_ACTION:
                return "ActionRequired", {**known, "action_url": payment.action_url, "expire_time": until}
            case billing.PAYMENT_STATE_PENDING:
                raise Later("the payment's outcome is not known yet")
        return "PaymentDeclined", {**known, "cause": _cause(payment.failure), "expire_time": until}

    async def _payment(self, order: Order) -> billing.Payment:
        """The payment of the present attempt, asked for when it was not before."""
        request = billing.AuthorizeRequest(
            customer_id=order.customer_id,
            payment_method_id=order.payment_method_id,
            amount=order.money(order.total),
            reference=order.reference,
            description=f"Order {order.order_id}",
            request_id=f"{order.reference}/authorise/{order.payment_attempts}",
        )
        return (await self._payments.Authorize(request)).payment

    async def _undo_authorise(self, order: Order) -> dict[str, Any]:
        if not order.payment_attempts:
            return _NOTHING
        try:
            payment_id = order.payment_id or (await self._payment(order)).payment_id
        except _NO_PAYMENT:
            return _NOTHING
        request = billing.VoidRequest(
            payment_id=payment_id, request_id=f"{order.reference}/void/{order.repayments_refused}"
        )
        try:
            answer = await self._payments.Void(request)
        except PaymentStateConflict:
            raise Later("the payment's outcome is not known yet") from None
        _require_done(answer.operation)
        if answer.payment.state in (billing.PAYMENT_STATE_AUTHORIZED, billing.PAYMENT_STATE_REQUIRES_ACTION):
            raise Later("the payment has not been released yet")
        return {"payment_id": payment_id}

    async def _do_capture(self, order: Order) -> Event:
        request = billing.CaptureRequest(
            payment_id=order.payment_id, request_id=f"{order.reference}/capture/{order.payment_attempts}"
        )
        answer = await self._payments.Capture(request)
        if answer.operation.state == billing.OPERATION_STATE_PENDING:
            raise Later("whether the money was taken is not known yet")
        if answer.operation.state == billing.OPERATION_STATE_FAILED:
            return "CancellationBegun", {"cause": _cause(answer.operation.failure)}
        return "PaymentCaptured", {"captured": answer.payment.captured.minor_units}

    async def _undo_capture(self, order: Order) -> dict[str, Any]:
        return await self.repay(order, "repay")

    async def repay(self, order: Order, key: str) -> dict[str, Any]:
        """Whatever has been taken for an order that is cancelled, by us or by one of us that died, goes back; but for
        what the customer's bank has taken back already."""
        if not order.payment_id:
            return _NOTHING
        known = await self._payments.GetPayment(billing.GetPaymentRequest(payment_id=order.payment_id))
        if any(operation.state == billing.OPERATION_STATE_PENDING for operation in known.operations):
            raise Later("a movement of the payment is not settled yet")
        payment = known.payment
        taken, returned = payment.captured.minor_units, payment.refunded.minor_units
        left = max(0, taken - returned - payment.disputed.minor_units)
        if left:
            await self._pay_back(order, left, key)
        return {"captured": taken, "refunded": returned + left}

    async def _pay_back(self, order: Order, amount: int, key: str) -> None:
        """Raises RepaymentRefused; the next attempt has another key."""
        request = billing.RefundRequest(
            payment_id=order.payment_id,
            amount=order.money(amount),
            reason="order",
            request_id=f"{order.reference}/{key}/{order.repayments_refused}",
        )
        answer = await self._payments.Refund(request)
        if answer.operation.state == billing.OPERATION_STATE_PENDING:
            raise Later("whether the money went back is not known yet")
        _require_done(answer.operation)

    # Labels

    async def _do_label(self, order: Order) -> Event:
        addresses = addresses_of(await self._orders.require(order.order_id))
        parcels = []
        for number, parcel in enumerate(order.parcels):
            assert order.delivery is not None, "what has parcels has a way of delivery"
            label = shipment.LabelOrder(
                key=_parcel_key(order, number),
                order_id=order.order_id,
                to=addresses.shipping,
                parcel=parcel_message(dict(parcel)),
                quote_id=order.delivery.quote_id,
            )
            request = shipping.ShipParcelRequest(order=label)
            bought = (await self._shipping.ShipParcel(request)).shipment
            known = values_of(bought, "shipment_id", "carrier", "service", "tracking_number")
            parcels.append({**parcel.model_dump(), **known})
        return "LabelsBought", {"parcels": parcels}

    async def _parcels_under_way(self, order: Order) -> list[int]:
        found = []
        for number in range(len(order.parcels)):
            request = shipping.GetParcelRequest(key=_parcel_key(order, number))
            with contextlib.suppress(ShipmentNotFound):
                parcel = (await self._shipping.GetParcel(request)).shipment
                if parcel.state in _WITH_CARRIER:
                    found.append(number)
        return found

    async def _undo_label(self, order: Order) -> dict[str, Any]:
        """A parcel that the carrier has got since it was asked, or before the order was confirmed, cannot be called
        back; it comes back by itself, and its label is paid for."""
        kept = 0
        for number in range(len(order.parcels)):
            request = shipping.CancelParcelRequest(key=_parcel_key(order, number))
            try:
                await self._shipping.CancelParcel(request)
            except ShipmentUnderWay:
                kept += 1
        return {"kept": str(kept)} if kept else {}

    # Invoice

    async def _do_invoice(self, order: Order) -> Event:
        content = invoice_content(order, addresses_of(await self._orders.require(order.order_id)))
        content.prepaid, content.order_reference = order.captured, order.order_id
        request = invoicing.IssueInvoiceRequest(reference=order.reference, content=content)
        issued = (await self._invoices.IssueInvoice(request)).invoice
        return "InvoiceIssued", {"invoice_id": issued.invoice_id, "invoice_number": issued.number}

    async def _undo_invoice(self, order: Order) -> dict[str, Any]:
        request = invoicing.CreditIssuedInvoiceRequest(
            invoice_reference=order.reference,
            reference=f"{order.reference}/cancelled",
            reason="The order was cancelled.",
        )
        try:
            note = (await self._invoices.CreditIssuedInvoice(request)).credit_note
        except InvoiceNotFound:
            return _NOTHING
        return {"credit_note_id": note.invoice_id, "number": note.number}

    # Books

    async def _do_book(self, order: Order) -> Event:
        sale, settlement = _bookings(order)
        await self._post(sale, postings.sale(order, sale))
        share = 0
        if order.total > order.tax:
            settle = ledger.SettleRequest(
                idempotency_key=settlement,
                source_account=postings.SALES.name,
                currency=order.currency,
                minor_units=order.total - order.tax,
                tenant_account=postings.EARNINGS.name,
                reference=settlement,
            )
            share = (await self._ledger.Settle(settle)).platform_minor_units
        return "SaleBooked", {"platform_share": share}

    async def _undo_book(self, order: Order) -> dict[str, Any]:
        for reference in reversed(_bookings(order)):
            try:
                known = await self._ledger.GetTransaction(ledger.GetTransactionRequest(reference=reference))
            except TransactionNotFound:
                continue
            revert = ledger.RevertTransactionRequest(
                idempotency_key=f"{reference}/revert", transaction_id=known.transaction.transaction_id
            )
            await self._ledger.RevertTransaction(revert)
        return {}

    async def _post(self, reference: str, transaction: NewTransaction) -> None:
        request = ledger.PostTransactionRequest(idempotency_key=reference, transaction=transaction)
        await self._ledger.PostTransaction(request)

    # Refunds of an order that stays

    async def _refund_credit(self, order: Order, refund: Refund) -> dict[str, Any]:
        units = {**refund.lines, **({len(order.lines): 1} if refund.shipping else {})}  # the delivery is the last line
        request = invoicing.CreditIssuedInvoiceRequest(
            invoice_reference=order.reference,
            reference=f"{order.reference}/refund/{refund.refund_id}",
            lines=[CreditedLine(line=line, quantity=str(quantity)) for line, quantity in sorted(units.items())],
            reason=refund.reason or "Refund",
        )
        note = (await self._invoices.CreditIssuedInvoice(request)).credit_note
        return {"amount": note.totals.total, "tax": note.totals.tax, "credit_note_id": note.invoice_id}

    async def _refund_pay(self, order: Order, refund: Refund) -> dict[str, Any]:
        if refund.amount:
            await self._pay_back(order, refund.amount, f"refund/{refund.refund_id}")
        return {"amount": f"{refund.amount} {order.currency}"}

    async def _refund_restock(self, order: Order, refund: Refund) -> dict[str, Any]:
        units = Counter[str]()
        for line, quantity in refund.lines.items():
            units[order.lines[line].variant_id] += quantity
        if units:
            request = stock.RestockReservationRequest(
                reservation_id=order.reservation_id,
                lines=[ItemQuantity(item_id=item_id, quantity=quantity) for item_id, quantity in units.items()],
                request_id=f"{order.reference}/restock/{refund.refund_id}",
            )
            await self._stock.RestockReservation(request)
        return {}

    async def _refund_book(self, order: Order, refund: Refund) -> dict[str, Any]:
        if refund.amount:
            reference = f"{order.reference}/refund/{refund.refund_id}"
            await self._post(reference, postings.refund(order, refund, platform_part(order, refund), reference))
        return {}


def refused_for_good(step: str, error: Exception) -> str:
    """Why an order is cancelled after this fault of a step; "" when it is tried again."""
    if isinstance(error, stock_faults.ReservationExpired | stock_faults.ReservationSettled) or step == "reserve":
        return "OUT_OF_STOCK"
    return "" if step == "book" else "FAILED"


def _require_done(operation: billing.PaymentOperation) -> None:
    """Raises RepaymentRefused."""
    if operation.state == billing.OPERATION_STATE_FAILED:
        raise RepaymentRefused(billing.FailureCode.Name(operation.failure.code))


def _cause(failure: billing.PaymentFailure) -> str:
    return billing.FailureCode.Name(failure.code).removeprefix("FAILURE_CODE_")


def _parcel_key(order: Order, number: int) -> str:
    return f"{order.reference}/{number}"


def _bookings(order: Order) -> tuple[str, str]:
    """The references of the sale and of its settlement."""
    return f"{order.reference}/sale", f"{order.reference}/settlement"


def _duration(length: timedelta) -> Duration:
    result = Duration()
    result.FromTimedelta(length)
    return result
