"""CustomerService: customers with their payment methods, payments and disputes, for people."""

import logging
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from nexus.finance.billing_service.v1 import customers_pb2 as pb
from nexus.finance.billing_service.v1.faults import CustomerNotFound, PaymentMethodNotFound, PaymentMethodRefused
from nexus.finance.billing_service.v1.payments_pb2 import PaymentProvider
from nexus.type.v1.faults import IdempotencyKeyReused
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import timestamp
from services.chassis.context import RequestContext
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.finance.billing_service.engine import engine
from services.finance.billing_service.payments import require_refund_by_hand
from services.finance.billing_service.providers.interface import Card, InDoubt, MethodRefused, Refused
from services.finance.billing_service.servicers.common import (
    customer_of,
    operation_message,
    payment_message,
    request_of,
)
from services.finance.billing_service.stores.payments import PaymentStore, Row
from services.finance.billing_service.stores.subscriptions import SubscriptionStore

logger = logging.getLogger(__name__)


class CustomerService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._sealer = service.sealer
        self._store = PaymentStore(service.database)
        self._subscriptions = SubscriptionStore(service.database)
        self._pager = Pager(service.sealer)
        self._accounts = engine(service).accounts
        self._charging = engine(service).charging

    async def GetCustomer(self, request: pb.GetCustomerRequest, call: RequestContext) -> pb.GetCustomerResponse:
        customer_id = customer_of(request.customer_id, call)
        row = await self._store.customer(customer_id)
        if row is None:
            raise CustomerNotFound(customer_id=customer_id)
        owed = await self._subscriptions.credits(customer_id)
        details = await self._store.billing_details(customer_id)
        return pb.GetCustomerResponse(
            customer=pb.Customer(
                customer_id=customer_id,
                default_payment_method_id=row["default_payment_method_id"] or "",
                credits=[Money(currency=currency, minor_units=amount) for currency, amount in owed.items()],
                create_time=timestamp(row["create_time"]),
                billing_details=json_format.Parse(details, pb.BillingDetails()) if details else None,
            )
        )

    async def SetBillingDetails(
        self, request: pb.SetBillingDetailsRequest, call: RequestContext
    ) -> pb.SetBillingDetailsResponse:
        customer_id = customer_of(request.customer_id, call)
        details = json_format.MessageToJson(request.details, indent=None)
        if not await self._store.set_billing_details(customer_id, details):
            raise CustomerNotFound(customer_id=customer_id)
        return pb.SetBillingDetailsResponse(details=request.details)

    async def AddPaymentMethod(
        self, request: pb.AddPaymentMethodRequest, call: RequestContext
    ) -> pb.AddPaymentMethodResponse:
        customer_id = customer_of(request.customer_id, call)
        provider = (
            PaymentProvider.Name(request.provider).removeprefix("PAYMENT_PROVIDER_")
            if request.provider
            else await self._accounts.default()
        )
        key = request_of(request, call, self._sealer)
        method = await self._store.method_requested(key["scope"], key["request_id"])
        if method is None:
            await self._accounts.require_chargeable(provider)
            attached = f"{customer_id}/{key['request_hash'].hex()[:32]}"
            try:
                card = await (await self._accounts.provider(provider)).attach(
                    request.provider_token, customer_id, attached
                )
            except (MethodRefused, InDoubt, Refused) as error:
                raise PaymentMethodRefused(why=str(error)[:200]) from error
            method = await self._keep(customer_id, provider, card, key, make_default=request.make_default)
        elif method["customer_id"] != customer_id or method["request_hash"] != key["request_hash"]:
            raise IdempotencyKeyReused(key=request.request_id)
        return pb.AddPaymentMethodResponse(payment_method=_method(method))

    async def ListPaymentMethods(
        self, request: pb.ListPaymentMethodsRequest, call: RequestContext
    ) -> pb.ListPaymentMethodsResponse:
        customer_id, size = customer_of(request.customer_id, call), self._pager.size(request)
        rows = await self._store.methods(customer_id, self._pager.cursor(request, call) or None, size + 1)
        more = self._pager.token(request, call, rows[size - 1]["payment_method_id"]) if len(rows) > size else ""
        return pb.ListPaymentMethodsResponse(payment_methods=map(_method, rows[:size]), next_page_token=more)

    async def SetDefaultPaymentMethod(
        self, request: pb.SetDefaultPaymentMethodRequest, call: RequestContext
    ) -> pb.SetDefaultPaymentMethodResponse:
        method = await self._own_method(request.payment_method_id, call)
        await self._store.set_default_method(method["customer_id"], method["payment_method_id"])
        method = await self._own_method(request.payment_method_id, call)
        return pb.SetDefaultPaymentMethodResponse(payment_method=_method(method))

    async def RemovePaymentMethod(
        self, request: pb.RemovePaymentMethodRequest, call: RequestContext
    ) -> pb.RemovePaymentMethodResponse:
        method = await self._own_method(request.payment_method_id, call)
        async with self._database.transaction():
            await self._store.remove_method(method["payment_method_id"])
        try:
            await (await self._accounts.provider(method["provider"])).detach(_card(method))
        except (InDoubt, Refused) as error:  # it is not charged again, whatever the provider keeps of it
            logger.warning("a payment method stays with its provider: %s", error)
        return pb.RemovePaymentMethodResponse()

    async def ListPayments(self, request: pb.ListPaymentsRequest, call: RequestContext) -> pb.ListPaymentsResponse:
        customer_id, size = customer_of(request.customer_id, call), self._pager.size(request)
        rows = await self._store.payments(customer_id, self._pager.cursor(request, call) or None, size + 1)
        more = self._pager.token(request, call, rows[size - 1]["payment_id"]) if len(rows) > size else ""
        return pb.ListPaymentsResponse(payments=map(payment_message, rows[:size]), next_page_token=more)

    async def ConfirmPayment(
        self, request: pb.ConfirmPaymentRequest, call: RequestContext
    ) -> pb.ConfirmPaymentResponse:
        customer_of((await self._charging.payment(request.payment_id))["customer_id"], call)
        payment = await self._charging.confirm(request.payment_id, request.answer)
        return pb.ConfirmPaymentResponse(payment=payment_message(payment))

    async def RefundPayment(self, request: pb.RefundPaymentRequest, call: RequestContext) -> pb.RefundPaymentResponse:
        require_refund_by_hand(await self._charging.payment(request.payment_id))
        payment, operation = await self._charging.refund(
            request.payment_id,
            request.amount if request.HasField("amount") else None,
            reason=request.reason,
            **request_of(request, call, self._sealer),
        )
        return pb.RefundPaymentResponse(
            payment=payment_message(payment), operation=operation_message(operation, payment["currency"])
        )

    async def ListPendingPayments(
        self, request: pb.ListPendingPaymentsRequest, call: RequestContext
    ) -> pb.ListPendingPaymentsResponse:
        size = self._pager.size(request)
        rows = await self._store.pending_payments(self._pager.cursor(request, call) or None, size + 1)
        more = self._pager.token(request, call, rows[size - 1]["payment_id"]) if len(rows) > size else ""
        return pb.ListPendingPaymentsResponse(payments=map(payment_message, rows[:size]), next_page_token=more)

    async def SettlePayment(self, request: pb.SettlePaymentRequest, call: RequestContext) -> pb.SettlePaymentResponse:
        payment = await self._charging.settle(request.payment_id, request.provider_payment_id)
        return pb.SettlePaymentResponse(payment=payment_message(payment))

    async def ListDisputes(self, request: pb.ListDisputesRequest, call: RequestContext) -> pb.ListDisputesResponse:
        size = self._pager.size(request)
        rows = await self._store.disputes(self._pager.cursor(request, call) or None, size + 1)
        more = self._pager.token(request, call, rows[size - 1]["dispute_id"]) if len(rows) > size else ""
        return pb.ListDisputesResponse(disputes=map(_dispute, rows[:size]), next_page_token=more)

    async def AnswerDispute(self, request: pb.AnswerDisputeRequest, call: RequestContext) -> pb.AnswerDisputeResponse:
        dispute = await self._charging.answer_dispute(request.dispute_id, request.evidence)
        return pb.AnswerDisputeResponse(dispute=_dispute(dispute))

    async def SetProviderAccount(
        self, request: pb.SetProviderAccountRequest, call: RequestContext
    ) -> pb.SetProviderAccountResponse:
        which = request.WhichOneof("account")
        assert which is not None, "the contract requires one"
        name = which.upper()
        is_default = await self._accounts.set(name, getattr(request, which), make_default=request.make_default)
        return pb.SetProviderAccountResponse(
            provider=PaymentProvider.Value(f"PAYMENT_PROVIDER_{name}"), is_default=is_default
        )

    async def _keep(
        self, customer_id: str, provider: str, card: Card, key: Mapping[str, Any], *, make_default: bool
    ) -> Row:
        async with self._database.transaction():
            await self._store.ensure_customer(customer_id)
            method = await self._store.insert_method(customer_id, provider, card, **key)
            if method is not None:
                await self._store.set_default_method(
                    customer_id, method["payment_method_id"], only_first=not make_default
                )
            kept = await self._store.method_requested(key["scope"], key["request_id"])
        assert kept is not None, "it is there, from this call or its twin"
        return kept

    async def _own_method(self, payment_method_id: str, call: RequestContext) -> Row:
        method = await self._store.method(payment_method_id)
        if method is None or method["removed"]:
            raise PaymentMethodNotFound()
        customer_of(method["customer_id"], call)
        return method


def _card(row: Row) -> Card:
    return Card(row["provider_token"], row["provider_customer"], row["brand"], row["last_digits"], row["expiry"])


def _method(row: Row) -> pb.PaymentMethod:
    return pb.PaymentMethod(
        payment_method_id=row["payment_method_id"],
        customer_id=row["customer_id"],
        provider=PaymentProvider.Value(f"PAYMENT_PROVIDER_{row['provider']}"),
        brand=row["brand"],
        last_digits=row["last_digits"],
        expiry=row["expiry"],
        is_default=row["is_default"],
        create_time=timestamp(row["create_time"]),
    )


def _dispute(row: Row) -> pb.Dispute:
    return pb.Dispute(
        dispute_id=row["dispute_id"],
        payment_id=row["payment_id"],
        state=pb.DisputeState.Value(f"DISPUTE_STATE_{row['state']}"),
        amount=Money(currency=row["currency"], minor_units=row["amount"]),
        reason=row["reason"],
        answer_due_time=timestamp(row["answer_due_time"]) if row["answer_due_time"] is not None else None,
        create_time=timestamp(row["create_time"]),
    )
