"""Whom order-processor calls, in this process: real gRPC with the real contracts, and small honest books of their own.

They share no code with the services they stand for. Each keeps the promises of its contract (what is done once for a
key, what is refused when), and each can be told what becomes of the next call of a method for an order.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message

from nexus.commerce.puabo_nuki_inventory_mgr.v1 import faults as stock_faults
from nexus.commerce.puabo_nuki_inventory_mgr.v1 import reservations_pb2 as stock
from nexus.commerce.puabo_nuki_inventory_mgr.v1 import reservations_pb2_grpc as stock_grpc
from nexus.commerce.puabo_nuki_shipping_service.v1 import faults as shipping_faults
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipment_pb2 as shipment
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipping_pb2 as shipping
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipping_pb2_grpc as shipping_grpc
from nexus.finance.billing_service.v1 import faults as billing_faults
from nexus.finance.billing_service.v1 import payments_pb2 as billing
from nexus.finance.billing_service.v1 import payments_pb2_grpc as billing_grpc
from nexus.finance.invoice_gen.v1 import faults as invoice_faults
from nexus.finance.invoice_gen.v1 import invoice_gen_pb2 as invoices
from nexus.finance.invoice_gen.v1 import invoice_gen_pb2_grpc as invoices_grpc
from nexus.finance.invoice_gen.v1.invoice_pb2 import Invoice
from nexus.finance.ledger_mgr.v1 import books_pb2 as books
from nexus.finance.ledger_mgr.v1 import faults as ledger_faults
from nexus.finance.ledger_mgr.v1 import ledger_pb2 as ledger
from nexus.finance.ledger_mgr.v1 import ledger_pb2_grpc as ledger_grpc
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import timestamp
from services.chassis.errors import STATUS_DETAILS, Fault
from services.chassis.ids import new_id
from services.chassis.spec import discover

PLATFORM_PERCENT = 20
CARDS = ("good", "declined", "asks", "undecided", "not captured", "captured late", "refund refused once")

REFUSALS: dict[str, Callable[[], Fault]] = {
    "ShipParcel": lambda: shipping_faults.CarrierRefused(why="it does not go there"),
    "IssueInvoice": invoice_faults.SellerUnknown,
    "Authorize": lambda: billing_faults.PaymentMethodNotFound(payment_method_id="?"),
    "PostTransaction": lambda: ledger_faults.AccountClosed(account="income:sales"),
}
"""What a neighbour may say no with although there is nothing wrong with the call."""
FINAL = ("ShipParcel", "IssueInvoice")
"""The methods whose no ends an order."""


class Fate(NamedTuple):
    """What becomes of the next call of a method: one of `World.tricks`, or "refused", before or after its work."""

    method: str
    when: str
    what: str


@dataclass
class Reservation:
    reservation_id: str
    order_id: str
    lines: dict[str, int]
    expire_time: datetime
    state: str = "ACTIVE"
    restocked: dict[str, int] = field(default_factory=lambda: defaultdict(int))


@dataclass
class Payment:
    payment_id: str
    order_id: str
    card: str
    amount: Money
    state: "billing.PaymentState.ValueType"
    captured: int = 0
    refunded: int = 0
    operations: dict[str, billing.PaymentOperation] = field(default_factory=dict)

    def message(self) -> billing.Payment:
        def money(minor_units: int) -> Money:
            return Money(currency=self.amount.currency, minor_units=minor_units)

        failed = self.state == billing.PAYMENT_STATE_FAILED
        return billing.Payment(
            payment_id=self.payment_id,
            state=self.state,
            amount=self.amount,
            captured=money(self.captured),
            refunded=money(self.refunded),
            disputed=money(0),
            reference=f"order/{self.order_id}",
            failure=billing.PaymentFailure(code=billing.FAILURE_CODE_CARD_DECLINED) if failed else None,
            action_url="https://bank" if self.state == billing.PAYMENT_STATE_REQUIRES_ACTION else "",
        )


@dataclass
class Parcel:
    shipment_id: str
    order_id: str
    state: str = "LABEL_BOUGHT"

    def message(self, key: str) -> shipment.Shipment:
        state = shipment.ShipmentState.Value(f"SHIPMENT_STATE_{self.state}")
        return shipment.Shipment(shipment_id=self.shipment_id, key=key, order_id=self.order_id, state=state)


@dataclass
class Paper:
    """An invoice, or a credit note."""

    paper_id: str
    order_id: str
    units: dict[int, int]
    prices: list[int]

    @property
    def total(self) -> int:
        return sum(self.prices[line] * units for line, units in self.units.items())

    def message(self) -> Invoice:
        made = Invoice(invoice_id=self.paper_id, number=self.paper_id)
        made.totals.total, made.totals.tax = self.total, 0
        return made


@dataclass
class Neighbours:
    """Their books, and what is to go wrong."""

    clock: Callable[[], datetime]
    on_hand: dict[str, int] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    payments: dict[str, Payment] = field(default_factory=dict)
    parcels: dict[str, Parcel] = field(default_factory=dict)
    parcels_called_off: set[str] = field(default_factory=set)
    invoices: dict[str, Paper] = field(default_factory=dict)
    credit_notes: dict[str, Paper] = field(default_factory=dict)
    transactions: dict[str, books.Transaction] = field(default_factory=dict)
    faults: dict[str, list[Fate]] = field(default_factory=dict)
    """By order: what becomes of its next calls."""
    next_faults: list[Fate] = field(default_factory=list)
    """For the next order that calls for the first time."""
    refused: set[str] = field(default_factory=set)
    """The orders for which somebody said no."""
    done: dict[str, str] = field(default_factory=dict)
    """By request id: what it made."""

    def reserved(self, item: str) -> int:
        active = (each for each in self.reservations.values() if self.state_of(each) == "ACTIVE")
        return sum(each.lines.get(item, 0) for each in active)

    def state_of(self, reservation: Reservation) -> str:
        if reservation.state == "ACTIVE" and reservation.expire_time <= self.clock():
            reservation.state = "EXPIRED"
        return reservation.state

    def order_of(self, request: Any) -> str:
        """Which order a call is for."""
        parcel = getattr(request, "order", None)
        for name in ("reference", "invoice_reference", "key", "idempotency_key", "request_id"):
            value = getattr(parcel or request, name, "")
            if value.startswith("order/"):
                return str(value.split("/")[1])
        if reservation_id := getattr(request, "reservation_id", ""):
            return self.reservations[reservation_id].order_id
        if payment_id := getattr(request, "payment_id", ""):
            return self.payments[payment_id].order_id
        raise AssertionError(f"{request} is for nobody")

    def balance(self, account: str, order_id: str = "") -> int:
        """Credits less debits."""
        return sum(
            leg.amount.minor_units * (1 if leg.side == books.SIDE_CREDIT else -1)
            for transaction in self.transactions.values()
            for leg in transaction.legs
            if leg.account == account and (not order_id or f"order/{order_id}/" in transaction.reference)
        )


class Stock(stock_grpc.ReservationServiceServicer):
    def __init__(self, world: "World") -> None:
        self._world = world

    async def Reserve(self, request: stock.ReserveRequest, context: Any) -> stock.ReserveResponse:
        mine = self._world.books
        reservation_id = mine.done.get(f"Reserve {request.request_id}")
        if reservation_id is None:
            lines: dict[str, int] = defaultdict(int)
            for line in request.lines:
                lines[line.item_id] += line.quantity
            for item, wanted in lines.items():
                if (available := mine.on_hand[item] - mine.reserved(item)) < wanted:
                    mine.refused.add(mine.order_of(request))
                    raise stock_faults.StockInsufficient(item_id=item, requested=wanted, available=available)
            reservation_id = mine.done[f"Reserve {request.request_id}"] = new_id()
            until = mine.clock() + request.lifetime.ToTimedelta()
            mine.reservations[reservation_id] = Reservation(reservation_id, mine.order_of(request), lines, until)
        return stock.ReserveResponse(reservation=self._message(mine.reservations[reservation_id]))

    async def CommitReservation(self, request: stock.CommitReservationRequest, context: Any) -> Any:
        found = self._found(request.reservation_id)
        if found.state != "COMMITTED":
            self._require_active(found)
            found.state = "COMMITTED"
            for item, quantity in found.lines.items():
                self._world.books.on_hand[item] -= quantity
        return stock.CommitReservationResponse(reservation=self._message(found))

    async def ReleaseReservation(self, request: stock.ReleaseReservationRequest, context: Any) -> Any:
        found = self._found(request.reservation_id)
        if found.state == "COMMITTED":
            raise stock_faults.ReservationSettled(reservation_id=found.reservation_id, state="committed")
        found.state = "RELEASED"
        return stock.ReleaseReservationResponse(reservation=self._message(found))

    async def ExtendReservation(self, request: stock.ExtendReservationRequest, context: Any) -> Any:
        found = self._found(request.reservation_id)
        self._require_active(found)
        found.expire_time = self._world.books.clock() + request.lifetime.ToTimedelta()
        return stock.ExtendReservationResponse(reservation=self._message(found))

    async def RestockReservation(self, request: stock.RestockReservationRequest, context: Any) -> Any:
        mine, found = self._world.books, self._found(request.reservation_id)
        if f"Restock {request.request_id}" not in mine.done:
            if found.state != "COMMITTED":
                raise stock_faults.ReservationSettled(reservation_id=found.reservation_id, state=found.state)
            left = {item: sold - found.restocked[item] for item, sold in found.lines.items()}
            back = {line.item_id: line.quantity for line in request.lines} or left
            for item, quantity in back.items():
                if quantity > left[item]:
                    raise stock_faults.RestockExceeded(
                        reservation_id=found.reservation_id, item_id=item, left=left[item]
                    )
                found.restocked[item] += quantity
                mine.on_hand[item] += quantity
            mine.done[f"Restock {request.request_id}"] = found.reservation_id
        return stock.RestockReservationResponse(reservation=self._message(found))

    def _found(self, reservation_id: str) -> Reservation:
        found = self._world.books.reservations.get(reservation_id)
        if found is None:
            raise stock_faults.ReservationNotFound(reservation_id=reservation_id)
        self._world.books.state_of(found)
        return found

    def _require_active(self, found: Reservation) -> None:
        if found.state == "EXPIRED":
            self._world.books.refused.add(found.order_id)
            raise stock_faults.ReservationExpired(reservation_id=found.reservation_id)
        if found.state != "ACTIVE":
            raise stock_faults.ReservationSettled(reservation_id=found.reservation_id, state=found.state)

    @staticmethod
    def _message(reservation: Reservation) -> stock.Reservation:
        return stock.Reservation(
            reservation_id=reservation.reservation_id,
            state=stock.ReservationState.Value(f"RESERVATION_STATE_{reservation.state}"),
            expire_time=timestamp(reservation.expire_time),
        )


class Payments(billing_grpc.PaymentServiceServicer):
    """A payment method's id is the name of its card: what becomes of the payment is written on it."""

    def __init__(self, world: "World") -> None:
        self._world = world

    async def Authorize(self, request: billing.AuthorizeRequest, context: Any) -> billing.AuthorizeResponse:
        mine, card = self._world.books, request.payment_method_id
        payment_id = mine.done.get(f"Authorize {request.request_id}")
        if payment_id is None:
            outcomes = {
                "declined": billing.PAYMENT_STATE_FAILED,
                "asks": billing.PAYMENT_STATE_REQUIRES_ACTION,
                "undecided": billing.PAYMENT_STATE_PENDING,
            }
            state = outcomes.get(card, billing.PAYMENT_STATE_AUTHORIZED)
            payment_id = mine.done[f"Authorize {request.request_id}"] = new_id()
            order_id = mine.order_of(request)
            mine.payments[payment_id] = Payment(payment_id, order_id, card, request.amount, state)
        return billing.AuthorizeResponse(payment=mine.payments[payment_id].message())

    async def Capture(self, request: billing.CaptureRequest, context: Any) -> billing.CaptureResponse:
        payment = self._found(request.payment_id)
        operation = payment.operations.get(request.request_id)
        if operation is None:
            self._require(payment, "captured", billing.PAYMENT_STATE_AUTHORIZED)
            outcomes = {
                "not captured": billing.OPERATION_STATE_FAILED,
                "captured late": billing.OPERATION_STATE_PENDING,
            }
            state = outcomes.get(payment.card, billing.OPERATION_STATE_SUCCEEDED)
            operation = self._operation(payment, request.request_id, billing.OPERATION_KIND_CAPTURE, state)
        elif operation.state == billing.OPERATION_STATE_PENDING:
            operation.state = billing.OPERATION_STATE_SUCCEEDED
        if operation.state == billing.OPERATION_STATE_SUCCEEDED:
            payment.state, payment.captured = billing.PAYMENT_STATE_CAPTURED, payment.amount.minor_units
        elif operation.state == billing.OPERATION_STATE_FAILED:
            self._world.books.refused.add(payment.order_id)
        return billing.CaptureResponse(payment=payment.message(), operation=operation)

    async def Void(self, request: billing.VoidRequest, context: Any) -> billing.VoidResponse:
        payment = self._found(request.payment_id)
        operation = payment.operations.get(request.request_id)
        if operation is None:
            if payment.state == billing.PAYMENT_STATE_PENDING:
                raise billing_faults.PaymentStateConflict(state="PENDING", verb="voided")
            operation = self._operation(payment, request.request_id, billing.OPERATION_KIND_VOID)
            if payment.state in (billing.PAYMENT_STATE_AUTHORIZED, billing.PAYMENT_STATE_REQUIRES_ACTION):
                payment.state = billing.PAYMENT_STATE_VOIDED
        return billing.VoidResponse(payment=payment.message(), operation=operation)

    async def Refund(self, request: billing.RefundRequest, context: Any) -> billing.RefundResponse:
        payment = self._found(request.payment_id)
        operation = payment.operations.get(request.request_id)
        if operation is None:
            self._require(payment, "refunded", billing.PAYMENT_STATE_CAPTURED)
            if not 0 < request.amount.minor_units <= (left := payment.captured - payment.refunded):
                raise billing_faults.AmountExceeded(available=left, currency=payment.amount.currency)
            state = billing.OPERATION_STATE_SUCCEEDED
            if payment.card == "refund refused once":
                state, payment.card = billing.OPERATION_STATE_FAILED, "good"
            operation = self._operation(payment, request.request_id, billing.OPERATION_KIND_REFUND, state)
            if state == billing.OPERATION_STATE_SUCCEEDED:
                payment.refunded += request.amount.minor_units
        return billing.RefundResponse(payment=payment.message(), operation=operation)

    async def GetPayment(self, request: billing.GetPaymentRequest, context: Any) -> billing.GetPaymentResponse:
        payment = self._found(request.payment_id)
        for operation in payment.operations.values():  # the reconciliation comes by in between
            if operation.state == billing.OPERATION_STATE_PENDING:
                operation.state = billing.OPERATION_STATE_SUCCEEDED
                payment.state, payment.captured = billing.PAYMENT_STATE_CAPTURED, payment.amount.minor_units
                break
        return billing.GetPaymentResponse(payment=payment.message(), operations=payment.operations.values())

    def _found(self, payment_id: str) -> Payment:
        found = self._world.books.payments.get(payment_id)
        if found is None:
            raise billing_faults.PaymentNotFound(payment_id=payment_id)
        return found

    @staticmethod
    def _require(payment: Payment, verb: str, state: "billing.PaymentState.ValueType") -> None:
        if payment.state != state:
            raise billing_faults.PaymentStateConflict(state=billing.PaymentState.Name(payment.state), verb=verb)

    @staticmethod
    def _operation(
        payment: Payment,
        key: str,
        kind: "billing.OperationKind.ValueType",
        state: "billing.OperationState.ValueType" = billing.OPERATION_STATE_SUCCEEDED,
    ) -> billing.PaymentOperation:
        made = payment.operations[key] = billing.PaymentOperation(operation_id=new_id(), kind=kind, state=state)
        return made


class Shipping(shipping_grpc.FulfilmentServiceServicer):
    def __init__(self, world: "World") -> None:
        self._world = world

    async def ShipParcel(self, request: shipping.ShipParcelRequest, context: Any) -> shipping.ShipParcelResponse:
        mine, key = self._world.books, request.order.key
        parcel = mine.parcels.get(key)
        if key in mine.parcels_called_off or (parcel is not None and parcel.state == "VOIDED"):
            raise shipping_faults.KeyTaken(key=key)
        if parcel is None:
            parcel = mine.parcels[key] = Parcel(new_id(), request.order.order_id)
        return shipping.ShipParcelResponse(shipment=parcel.message(key))

    async def CancelParcel(self, request: shipping.CancelParcelRequest, context: Any) -> Any:
        mine, parcel = self._world.books, self._world.books.parcels.get(request.key)
        if parcel is None:
            mine.parcels_called_off.add(request.key)
            return shipping.CancelParcelResponse()
        if parcel.state not in ("LABEL_BOUGHT", "VOIDED"):
            raise shipping_faults.ShipmentUnderWay(shipment_id=parcel.shipment_id)
        parcel.state = "VOIDED"
        return shipping.CancelParcelResponse(shipment=parcel.message(request.key))

    async def GetParcel(self, request: shipping.GetParcelRequest, context: Any) -> shipping.GetParcelResponse:
        parcel = self._world.books.parcels.get(request.key)
        if parcel is None:
            raise shipping_faults.ShipmentNotFound(shipment=request.key)
        return shipping.GetParcelResponse(shipment=parcel.message(request.key))


class Invoices(invoices_grpc.IssuingServiceServicer):
    def __init__(self, world: "World") -> None:
        self._world = world

    async def IssueInvoice(self, request: invoices.IssueInvoiceRequest, context: Any) -> Any:
        mine, order_id = self._world.books, self._world.books.order_of(request)
        if order_id not in mine.invoices:
            lines = request.content.lines
            units = {at: int(line.quantity) for at, line in enumerate(lines)}
            prices = [line.unit_price for line in lines]
            mine.invoices[order_id] = Paper(new_id(), order_id, units, prices)
        return invoices.IssueInvoiceResponse(invoice=mine.invoices[order_id].message())

    async def CreditIssuedInvoice(self, request: invoices.CreditIssuedInvoiceRequest, context: Any) -> Any:
        mine, order_id = self._world.books, self._world.books.order_of(request)
        invoice = mine.invoices.get(request.invoice_reference.removeprefix("order/"))
        if invoice is None:
            raise invoice_faults.InvoiceNotFound(invoice=request.invoice_reference)
        note = mine.credit_notes.get(request.reference)
        if note is None:
            left = dict(invoice.units)
            for earlier in mine.credit_notes.values():
                if earlier.order_id == order_id:
                    for line, units in earlier.units.items():
                        left[line] -= units
            asked = {line.line: int(line.quantity) for line in request.lines} or {
                line: units for line, units in left.items() if units
            }
            if any(units > left[line] for line, units in asked.items()):
                raise invoice_faults.CreditTooHigh(why="so many units are not left")
            note = mine.credit_notes[request.reference] = Paper(new_id(), order_id, asked, invoice.prices)
        return invoices.CreditIssuedInvoiceResponse(invoice=invoice.message(), credit_note=note.message())


class Ledger(ledger_grpc.LedgerServiceServicer):
    def __init__(self, world: "World") -> None:
        self._world = world

    async def PostTransaction(self, request: ledger.PostTransactionRequest, context: Any) -> Any:
        posted = self._post(request.idempotency_key, request.transaction.reference, *request.transaction.legs)
        return ledger.PostTransactionResponse(transaction=posted)

    async def Settle(self, request: ledger.SettleRequest, context: Any) -> ledger.SettleResponse:
        platforms = request.minor_units * PLATFORM_PERCENT // 100
        posted = self._post(
            request.idempotency_key,
            request.reference,
            _leg(request.source_account, books.SIDE_DEBIT, request.minor_units, request.currency),
            _leg("platform:share", books.SIDE_CREDIT, platforms, request.currency),
            _leg(request.tenant_account, books.SIDE_CREDIT, request.minor_units - platforms, request.currency),
        )
        tenants = request.minor_units - platforms
        return ledger.SettleResponse(transaction=posted, platform_minor_units=platforms, tenant_minor_units=tenants)

    async def GetTransaction(self, request: ledger.GetTransactionRequest, context: Any) -> Any:
        for transaction in self._world.books.transactions.values():
            if transaction.reference == request.reference:
                return ledger.GetTransactionResponse(transaction=transaction)
        raise ledger_faults.TransactionNotFound(transaction=request.reference)

    async def RevertTransaction(self, request: ledger.RevertTransactionRequest, context: Any) -> Any:
        known = self._world.books.transactions
        original = next(each for each in known.values() if each.transaction_id == request.transaction_id)
        if original.reverted_by and request.idempotency_key not in known:
            raise ledger_faults.TransactionNotRevertible(transaction=original.transaction_id, why="it was")
        other = {books.SIDE_CREDIT: books.SIDE_DEBIT, books.SIDE_DEBIT: books.SIDE_CREDIT}
        legs = [books.Leg(account=leg.account, side=other[leg.side], amount=leg.amount) for leg in original.legs]
        posted = self._post(request.idempotency_key, f"{original.reference}/revert", *legs)
        original.reverted_by = posted.transaction_id
        return ledger.RevertTransactionResponse(transaction=posted)

    def _post(self, key: str, reference: str, *legs: books.Leg) -> books.Transaction:
        known = self._world.books.transactions
        if key not in known:
            debits = sum(leg.amount.minor_units for leg in legs if leg.side == books.SIDE_DEBIT)
            assert 2 * debits == sum(leg.amount.minor_units for leg in legs), f"{reference} does not balance"
            assert all(leg.amount.minor_units > 0 for leg in legs), f"{reference} moves nothing"
            known[key] = books.Transaction(transaction_id=new_id(), reference=reference, legs=legs)
        return known[key]


def _leg(account: str, side: "books.Side.ValueType", minor_units: int, currency: str) -> books.Leg:
    return books.Leg(account=account, side=side, amount=Money(currency=currency, minor_units=minor_units))


class Unanswered(Exception):  # noqa: N818  what the caller is left with
    """The call ends with a code and nothing more, as when a process dies or a network is cut."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self.code = code


class World(grpc.aio.ServerInterceptor):
    """All five, on the sockets at which order-processor looks for them, and what goes wrong between."""

    books: Neighbours
    tricks: dict[str, Callable[[str], Awaitable[None]]]
    """What may happen before or after a method has done its work; what it raises is what the caller hears."""

    async def start(self, run_dir: Path) -> None:
        self._server = grpc.aio.server(interceptors=[self])
        servicers: list[tuple[Any, Any]] = [  # what nobody calls here answers UNIMPLEMENTED
            (stock_grpc.add_ReservationServiceServicer_to_server, Stock),
            (billing_grpc.add_PaymentServiceServicer_to_server, Payments),
            (shipping_grpc.add_FulfilmentServiceServicer_to_server, Shipping),
            (invoices_grpc.add_IssuingServiceServicer_to_server, Invoices),
            (ledger_grpc.add_LedgerServiceServicer_to_server, Ledger),
        ]
        for add, servicer in servicers:
            add(servicer(self), self._server)
        for service in discover()["puabo-nuki-order-processor"].calls:
            self._server.add_insecure_port(f"unix:{run_dir}/{service}.sock")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        name = details.method.rpartition("/")[2]

        async def answer(request: Message, context: Any) -> Any:
            order_id = self.books.order_of(request)
            fate = self._fate(order_id, name)
            try:
                if fate is not None and fate.when == "before":
                    await self._happen(fate, order_id)
                made = await handler.unary_unary(request, context)
                if fate is not None and fate.when == "after":
                    await self._happen(fate, order_id)
            except Fault as fault:
                details = ((STATUS_DETAILS, fault.status().SerializeToString()),)
                await context.abort(fault.code, fault.message, details)
            except Unanswered as end:
                await context.abort(end.code)
            return made

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)

    def _fate(self, order_id: str, method: str) -> Fate | None:
        if order_id not in self.books.faults:
            self.books.faults[order_id], self.books.next_faults = self.books.next_faults, []
        coming = self.books.faults[order_id]
        fate = next((each for each in coming if each.method == method), None)
        if fate is not None:
            coming.remove(fate)
        return fate

    async def _happen(self, fate: Fate, order_id: str) -> None:
        if fate.what != "refused":
            await self.tricks[fate.what](order_id)
        elif fate.method in REFUSALS and fate.when == "before":  # nobody says no to what they have done
            if fate.method in FINAL:
                self.books.refused.add(order_id)
            raise REFUSALS[fate.method]()
