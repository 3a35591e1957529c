"""What is done for an order at other services, and how it is undone there.

Each `do` may be done twice: its keys follow from the order, the step and, for payments, the attempt. Each `undo` copes
with a step that was done, was not, or was begun by somebody who died: it asks, or says so by key. Doing returns the
event that is to be recorded; a fault that will not go away by itself comes through.
"""

import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration

from nexus.commerce.puabo_nuki_inventory_mgr.v1.faults import (
    ReservationExpired,
    ReservationNotFound,
    ReservationSettled,
)
from nexus.commerce.puabo_nuki_inventory_mgr.v1.inventory_pb2 import ItemQuantity
from nexus.commerce.puabo_nuki_inventory_mgr.v1.reservations_pb2 import (
    CommitReservationRequest,
    ExtendReservationRequest,
    ReleaseReservationRequest,
    ReserveLine,
    ReserveRequest,
    RestockReservationRequest,
)
from nexus.commerce.puabo_nuki_inventory_mgr.v1.reservations_pb2_grpc import ReservationServiceStub
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipment_pb2 as shipping
from nexus.commerce.puabo_nuki_shipping_service.v1.faults import ShipmentNotFound, ShipmentUnderWay
from nexus.commerce.puabo_nuki_shipping_service.v1.shipping_pb2 import (
    CancelParcelRequest,
    GetParcelRequest,
    ShipParcelRequest,
)
from nexus.commerce.puabo_nuki_shipping_service.v1.shipping_pb2_grpc import FulfilmentServiceStub
from nexus.finance.billing_service.v1 import payments_pb2 as billing
from nexus.finance.billing_service.v1.faults import (
    CustomerNotFound,
    PaymentMethodNotFound,
    PaymentStateConflict,
    ProviderNotConfigured,
)
from nexus.finance.billing_service.v1.payments_pb2_grpc import PaymentServiceStub
from nexus.finance.invoice_gen.v1.faults import InvoiceNotFound
from nexus.finance.invoice_gen.v1.invoice_gen_pb2 import CreditIssuedInvoiceRequest, IssueInvoiceRequest
from nexus.finance.invoice_gen.v1.invoice_gen_pb2_grpc import IssuingServiceStub
from nexus.finance.invoice_gen.v1.invoice_pb2 import CreditedLine
from nexus.finance.ledger_mgr.v1.faults import TransactionNotFound
from nexus.finance.ledger_mgr.v1.ledger_pb2 import (
    GetTransactionRequest,
    PostTransactionRequest,
    RevertTransactionRequest,
    SettleRequest,
)
from nexus.finance.ledger_mgr.v1.ledger_pb2_grpc import LedgerServiceStub
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import now
from services.chassis.saga import Later
from services.chassis.service import Service
from services.commerce.puabo_nuki_order_processor import postings
from services.commerce.puabo_nuki_order_processor.invoicing import invoice_content
from services.commerce.puabo_nuki_order_processor.order import (
    PROCESSING,
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
    shipping.SHIPMENT_STATE_IN_TRANSIT,
    shipping.SHIPMENT_STATE_OUT_FOR_DELIVERY,
    shipping.SHIPMENT_STATE_DELIVERED,
    shipping.SHIPMENT_STATE_RETURNED,
)
CALL_SECONDS = 12.0
"""The longest call. The lease of an order is longer than the two that a step makes at most; what is done for several
parcels has keys that the carrier's side keeps, cancelled ones too."""


class Steps:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._store = OrderStore(service.database)
        self._stock = service.clients.stub(ReservationServiceStub)
        self._payments = service.clients.stub(PaymentServiceStub)
        self._shipping = service.clients.stub(FulfilmentServiceStub)
        self._invoices = service.clients.stub(IssuingServiceStub)
        self._ledger = service.clients.stub(LedgerServiceStub)
        self._do: dict[str, Callable[[Order], Awaitable[Event | None]]] = {
            "reserve": self._reserve,
            "authorise": self._authorise,
            "label": self._label,
            "capture": self._capture,
            "commit": self._commit,
            "invoice": self._invoice,
            "book": self._book,
        }
        self._undo: dict[str, Callable[[Order], Awaitable[dict[str, Any]]]] = {
            "reserve": self._release,
            "authorise": self._void,
            "label": self._void_labels,
            "capture": self._return_payment,
            "commit": self._put_back,
            "invoice": self._credit,
            "book": self._revert,
        }
        self._refund: dict[str, Callable[[Order, Refund], Awaitable[dict[str, Any]]]] = {
            "credit": self._credit_refund,
            "pay": self._pay_refund,
            "restock": self._restock_refund,
            "book": self._book_refund,
        }

    async def do(self, order: Order, step: str) -> Event | None:
        """The event that tells of it; None when the customer is still waited for."""
        return await self._do[step](order)

    async def undo(self, order: Order, step: str) -> Event:
        """The event that tells of it; CancellationRefused when the order is on its way, and stays."""
        if step == "label" and can_stay(order) and (under_way := await self._parcels_under_way(order)):
            return "CancellationRefused", {"under_way": under_way}
        return STEPS[step][1], await self._undo[step](order)

    async def repay(self, order: Order, key: str) -> dict[str, Any]:
        """What is left of the payment of a cancelled order."""
        return await self._return_payment(order, key)

    async def refund(self, order: Order, refund: Refund, part: str) -> dict[str, Any]:
        return {"refund_id": refund.refund_id, **await self._refund[part](order, refund)}

    # Stock

    async def _reserve(self, order: Order) -> Event:
        answer = await self._stock.Reserve(
            ReserveRequest(
                lines=[ReserveLine(item_id=line.variant_id, quantity=line.quantity) for line in order.lines],
                lifetime=_duration(self._config.open_lifetime),
                reference=f"order/{order.order_id}",
                request_id=f"order/{order.order_id}",
            ),
            timeout=CALL_SECONDS,
        )
        expire_time = answer.reservation.expire_time.ToDatetime(now().tzinfo).isoformat()
        return "StockReserved", {"reservation_id": answer.reservation.reservation_id, "expire_time": expire_time}

    async def _release(self, order: Order) -> dict[str, Any]:
        """Nothing was reserved that is not known: an order is only cancelled after it was."""
        if order.reservation_id:
            with contextlib.suppress(ReservationSettled):  # committed, and what it took is back by now
                await self._stock.ReleaseReservation(
                    ReleaseReservationRequest(reservation_id=order.reservation_id), timeout=CALL_SECONDS
                )
        return {}

    async def _commit(self, order: Order) -> Event:
        request = CommitReservationRequest(reservation_id=order.reservation_id)
        await self._stock.CommitReservation(request, timeout=CALL_SECONDS)
        return "StockCommitted", {}

    async def _put_back(self, order: Order) -> dict[str, Any]:
        request = RestockReservationRequest(
            reservation_id=order.reservation_id,
            note="order cancelled",
            request_id=f"order/{order.order_id}/restock",
        )
        try:
            await self._stock.RestockReservation(request, timeout=CALL_SECONDS)
        except (ReservationSettled, ReservationNotFound):  # it was not committed
            return {"nothing": "true"}
        return {}

    # Payment

    async def _authorise(self, order: Order) -> Event | None:
        try:
            if order.state == PROCESSING:
                # The customer may take time at the bank, and we with the rest.
                hold = ExtendReservationRequest(
                    reservation_id=order.reservation_id, lifetime=_duration(self._config.hold_lifetime)
                )
                await self._stock.ExtendReservation(hold, timeout=CALL_SECONDS)
            payment = await self._payment(order)
        except (CustomerNotFound, PaymentMethodNotFound, ProviderNotConfigured) as refusal:
            return "PaymentDeclined", {"cause": refusal.reason, "expire_time": self._until()}
        if payment.state == billing.PAYMENT_STATE_AUTHORIZED:
            return "PaymentAuthorized", {"payment_id": payment.payment_id, "amount": _text(payment.amount)}
        if payment.state == billing.PAYMENT_STATE_REQUIRES_ACTION:
            if order.state != PROCESSING:
                return None
            return "ActionRequired", {
                "payment_id": payment.payment_id,
                "action_url": payment.action_url,
                "expire_time": self._until(),
            }
        if payment.state == billing.PAYMENT_STATE_PENDING:
            raise Later("the payment's outcome is not known yet")
        cause = billing.FailureCode.Name(payment.failure.code).removeprefix("FAILURE_CODE_")
        return "PaymentDeclined", {"payment_id": payment.payment_id, "cause": cause, "expire_time": self._until()}

    async def _payment(self, order: Order) -> billing.Payment:
        """The payment of the present attempt, asked for when it was not before."""
        request = billing.AuthorizeRequest(
            customer_id=order.customer_id,
            payment_method_id=order.payment_method_id,
            amount=Money(currency=order.currency, minor_units=order.total),
            reference=f"order/{order.order_id}",
            description=f"Order {order.order_id}",
            request_id=f"order/{order.order_id}/authorise/{order.payment_attempts}",
        )
        return (await self._payments.Authorize(request, timeout=CALL_SECONDS)).payment

    async def _void(self, order: Order) -> dict[str, Any]:
        if not order.payment_attempts:
            return {"nothing": "true"}
        try:
            payment_id = order.payment_id or (await self._payment(order)).payment_id
        except (CustomerNotFound, PaymentMethodNotFound, ProviderNotConfigured):
            return {"nothing": "true"}
        request = billing.VoidRequest(
            payment_id=payment_id, request_id=f"order/{order.order_id}/void/{order.repayments_refused}"
        )
        try:
            answer = await self._payments.Void(request, timeout=CALL_SECONDS)
        except PaymentStateConflict:
            raise Later("the payment's outcome is not known yet") from None
        if answer.operation.state == billing.OPERATION_STATE_FAILED:
            raise RepaymentRefused(billing.FailureCode.Name(answer.operation.failure.code))
        if answer.payment.state in (billing.PAYMENT_STATE_AUTHORIZED, billing.PAYMENT_STATE_REQUIRES_ACTION):
            raise Later("the payment has not been released yet")
        return {"payment_id": payment_id}

    async def _capture(self, order: Order) -> Event:
        request = billing.CaptureRequest(
            payment_id=order.payment_id, request_id=f"order/{order.order_id}/capture/{order.payment_attempts}"
        )
        answer = await self._payments.Capture(request, timeout=CALL_SECONDS)
        if answer.operation.state == billing.OPERATION_STATE_PENDING:
            raise Later("whether the money was taken is not known yet")
        if answer.operation.state == billing.OPERATION_STATE_FAILED:
            code = billing.FailureCode.Name(answer.operation.failure.code)
            return "CancellationBegun", {"cause": code.removeprefix("FAILURE_CODE_")}
        return "PaymentCaptured", {"captured": answer.payment.captured.minor_units}

    async def _return_payment(self, order: Order, key: str = "repay") -> dict[str, Any]:
        """Whatever has been taken, by us or by one of us that died, goes back; but for what the customer's bank has
        taken back already."""
        if not order.payment_id:
            return {"nothing": "true"}
        known = await self._payments.GetPayment(billing.GetPaymentRequest(payment_id=order.payment_id))
        if any(operation.state == billing.OPERATION_STATE_PENDING for operation in known.operations):
            raise Later("a movement of the payment is not settled yet")
        taken = known.payment.captured.minor_units
        left = max(0, taken - known.payment.refunded.minor_units - known.payment.disputed.minor_units)
        if left:
            await self._repay(order, order.payment_id, left, key)
        return {"captured": taken, "refunded": known.payment.refunded.minor_units + left}

    async def _repay(self, order: Order, payment_id: str, amount: int, key: str) -> None:
        """Raises RepaymentRefused; the next attempt has another key."""
        request = billing.RefundRequest(
            payment_id=payment_id,
            amount=Money(currency=order.currency, minor_units=amount),
            reason="order",
            request_id=f"order/{order.order_id}/{key}/{order.repayments_refused}",
        )
        answer = await self._payments.Refund(request, timeout=CALL_SECONDS)
        if answer.operation.state == billing.OPERATION_STATE_PENDING:
            raise Later("whether the money went back is not known yet")
        if answer.operation.state == billing.OPERATION_STATE_FAILED:
            raise RepaymentRefused(billing.FailureCode.Name(answer.operation.failure.code))

    def _until(self) -> str:
        return (now() + self._config.payment_lifetime).isoformat()

    # Labels

    async def _label(self, order: Order) -> Event:
        address = await self._store.addresses(order.order_id)
        parcels = []
        for number, parcel in enumerate(order.parcels):
            assert order.delivery is not None, "what has parcels has a way of delivery"
            label = shipping.LabelOrder(
                key=_parcel_key(order, number),
                order_id=order.order_id,
                to=address.shipping,
                parcel=shipping.Parcel(
                    weight_grams=parcel.weight_grams,
                    length_mm=parcel.length_mm,
                    width_mm=parcel.width_mm,
                    height_mm=parcel.height_mm,
                ),
                quote_id=order.delivery.quote_id,
            )
            bought = (await self._shipping.ShipParcel(ShipParcelRequest(order=label), timeout=CALL_SECONDS)).shipment
            known = {
                "shipment_id": bought.shipment_id,
                "carrier": bought.carrier,
                "service": bought.service,
                "tracking_number": bought.tracking_number,
            }
            parcels.append(parcel.model_copy(update=known).model_dump())
        return "LabelsBought", {"parcels": parcels}

    async def _parcels_under_way(self, order: Order) -> list[int]:
        found = []
        for number in range(len(order.parcels)):
            request = GetParcelRequest(key=_parcel_key(order, number))
            with contextlib.suppress(ShipmentNotFound):
                parcel = (await self._shipping.GetParcel(request, timeout=CALL_SECONDS)).shipment
                if parcel.state in _WITH_CARRIER:
                    found.append(number)
        return found

    async def _void_labels(self, order: Order) -> dict[str, Any]:
        """A parcel that the carrier has got since it was asked, or before the order was confirmed, cannot be called
        back; it comes back by itself, and its label is paid for."""
        kept = 0
        for number in range(len(order.parcels)):
            try:
                request = CancelParcelRequest(key=_parcel_key(order, number))
                await self._shipping.CancelParcel(request, timeout=CALL_SECONDS)
            except ShipmentUnderWay:
                kept += 1
        return {"kept": str(kept)} if kept else {}

    # Invoice

    async def _invoice(self, order: Order) -> Event:
        addresses = await self._store.addresses(order.order_id)
        content = invoice_content(order, addresses)
        request = IssueInvoiceRequest(reference=f"order/{order.order_id}", content=content)
        issued = (await self._invoices.IssueInvoice(request, timeout=CALL_SECONDS)).invoice
        return "InvoiceIssued", {"invoice_id": issued.invoice_id, "invoice_number": issued.number}

    async def _credit(self, order: Order) -> dict[str, Any]:
        request = CreditIssuedInvoiceRequest(
            invoice_reference=f"order/{order.order_id}",
            reference=f"order/{order.order_id}/cancelled",
            reason="The order was cancelled.",
        )
        try:
            answer = await self._invoices.CreditIssuedInvoice(request, timeout=CALL_SECONDS)
        except InvoiceNotFound:
            return {"nothing": "true"}
        return {"credit_note_id": answer.credit_note.invoice_id, "number": answer.credit_note.number}

    # Books

    async def _book(self, order: Order) -> Event:
        sale = PostTransactionRequest(idempotency_key=_sale(order), transaction=postings.sale(order, _sale(order)))
        await self._ledger.PostTransaction(sale, timeout=CALL_SECONDS)
        share = 0
        if order.total > order.tax:
            settle = SettleRequest(
                idempotency_key=_settlement(order),
                source_account=postings.SALES.name,
                currency=order.currency,
                minor_units=order.total - order.tax,
                tenant_account=postings.EARNINGS.name,
                reference=_settlement(order),
            )
            share = (await self._ledger.Settle(settle, timeout=CALL_SECONDS)).platform_minor_units
        return "SaleBooked", {"platform_share": share}

    async def _revert(self, order: Order) -> dict[str, Any]:
        for reference in (_settlement(order), _sale(order)):
            try:
                known = await self._ledger.GetTransaction(GetTransactionRequest(reference=reference))
            except TransactionNotFound:
                continue
            revert = RevertTransactionRequest(
                idempotency_key=f"{reference}/revert", transaction_id=known.transaction.transaction_id
            )
            await self._ledger.RevertTransaction(revert, timeout=CALL_SECONDS)
        return {}

    # Refunds of an order that stays

    async def _credit_refund(self, order: Order, refund: Refund) -> dict[str, Any]:
        units = {**refund.lines, **({order.shipping_line: 1} if refund.shipping else {})}
        request = CreditIssuedInvoiceRequest(
            invoice_reference=f"order/{order.order_id}",
            reference=f"order/{order.order_id}/refund/{refund.refund_id}",
            lines=[CreditedLine(line=line, quantity=str(quantity)) for line, quantity in sorted(units.items())],
            reason=refund.reason or "Refund",
        )
        note = (await self._invoices.CreditIssuedInvoice(request, timeout=CALL_SECONDS)).credit_note
        return {"amount": note.totals.total, "tax": note.totals.tax, "credit_note_id": note.invoice_id}

    async def _pay_refund(self, order: Order, refund: Refund) -> dict[str, Any]:
        if refund.amount:
            await self._repay(order, order.payment_id, refund.amount, f"refund/{refund.refund_id}")
        return {"amount": f"{refund.amount} {order.currency}"}

    async def _restock_refund(self, order: Order, refund: Refund) -> dict[str, Any]:
        units: dict[str, int] = {}
        for line, quantity in refund.lines.items():
            item_id = order.lines[line].variant_id
            units[item_id] = units.get(item_id, 0) + quantity
        if units:
            request = RestockReservationRequest(
                reservation_id=order.reservation_id,
                lines=[ItemQuantity(item_id=item_id, quantity=quantity) for item_id, quantity in units.items()],
                request_id=f"order/{order.order_id}/restock/{refund.refund_id}",
            )
            await self._stock.RestockReservation(request, timeout=CALL_SECONDS)
        return {}

    async def _book_refund(self, order: Order, refund: Refund) -> dict[str, Any]:
        if refund.amount:
            reference = f"order/{order.order_id}/refund/{refund.refund_id}"
            transaction = postings.refund(order, refund, platform_part(order, refund), reference)
            request = PostTransactionRequest(idempotency_key=reference, transaction=transaction)
            await self._ledger.PostTransaction(request, timeout=CALL_SECONDS)
        return {}


class RepaymentRefused(Exception):  # noqa: N818  an answer of the provider
    """The provider does not give the money back; somebody has to look at it."""


def refused_for_good(step: str, error: Exception) -> str:
    """Why an order is cancelled after this fault of a step; "" when it is tried again."""
    if isinstance(error, ReservationExpired | ReservationSettled) or step == "reserve":
        return "OUT_OF_STOCK"
    return "" if step == "book" else "FAILED"


def _parcel_key(order: Order, number: int) -> str:
    return f"order/{order.order_id}/{number}"


def _sale(order: Order) -> str:
    return f"order/{order.order_id}/sale"


def _settlement(order: Order) -> str:
    return f"order/{order.order_id}/settlement"


def _duration(length: timedelta) -> Duration:
    result = Duration()
    result.FromTimedelta(length)
    return result


def _text(money: Money) -> str:
    return f"{money.minor_units} {money.currency}"
