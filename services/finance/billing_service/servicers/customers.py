"""CustomerService: customers with their payment methods, payments and disputes, for people."""

import logging
from dataclasses import asdict
from functools import partial

from nexus.finance.billing_service.v1 import customers_pb2 as pb
from nexus.finance.billing_service.v1.faults import CustomerNotFound, PaymentMethodNotFound, PaymentMethodRefused
from nexus.finance.billing_service.v1.payments_pb2 import PaymentProvider
from nexus.type.v1.money_pb2 import Money
from services.chassis.context import RequestContext
from services.chassis.idempotency import RequestKey
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf, text_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.finance.billing_service.engine import Engine
from services.finance.billing_service.payments import require_refund_by_hand
from services.finance.billing_service.providers.interface import Card, InDoubt, MethodRefused, Refused
from services.finance.billing_service.servicers.common import customer_of, outcome, own, payment_message

_customer = MessageOf(pb.Customer)
_method = MessageOf(pb.PaymentMethod)
_dispute = MessageOf(pb.Dispute)

logger = logging.getLogger(__name__)


class CustomerService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._sealer = service.sealer
        self._pager = Pager(service.sealer)
        self._store = service.shared(Engine).store
        self._accounts = service.shared(Engine).accounts
        self._charging = service.shared(Engine).charging

    async def GetCustomer(self, request: pb.GetCustomerRequest, call: RequestContext) -> pb.GetCustomerResponse:
        customer = await self._store.customers.require(customer_of(request.customer_id, call))
        owed = await self._store.owed(customer["customer_id"])
        return pb.GetCustomerResponse(customer=_customer(customer, credits=[Money(**row) for row in owed]))

    async def SetBillingDetails(
        self, request: pb.SetBillingDetailsRequest, call: RequestContext
    ) -> pb.SetBillingDetailsResponse:
        customer_id = customer_of(request.customer_id, call)
        if await self._store.customers.update(customer_id, billing_details=request.details) is None:
            raise CustomerNotFound(customer_id=customer_id)
        return pb.SetBillingDetailsResponse(details=request.details)

    async def AddPaymentMethod(
        self, request: pb.AddPaymentMethodRequest, call: RequestContext
    ) -> pb.AddPaymentMethodResponse:
        customer_id = customer_of(request.customer_id, call)
        key = RequestKey.of(request, call, self._sealer)
        method = await key.earlier(self._store.methods)
        if method is None:
            provider = text_of(PaymentProvider, request.provider) or await self._accounts.default()
            await self._accounts.require_chargeable(provider)
            attached = f"{customer_id}/{key.request_hash.hex()[:32]}"
            try:
                card = await (await self._accounts.provider(provider)).attach(
                    request.provider_token, customer_id, attached
                )
            except (MethodRefused, InDoubt, Refused) as error:
                raise PaymentMethodRefused(why=str(error)[:200]) from error
            method = await self._keep(customer_id, provider, card, key, make_default=request.make_default)
        return pb.AddPaymentMethodResponse(payment_method=_method(method))

    async def ListPaymentMethods(
        self, request: pb.ListPaymentMethodsRequest, call: RequestContext
    ) -> pb.ListPaymentMethodsResponse:
        kept = partial(self._store.methods.page, customer_id=customer_of(request.customer_id, call), removed=False)
        rows, more = await self._pager.page(request, call, kept, by="payment_method_id")
        return pb.ListPaymentMethodsResponse(payment_methods=map(_method, rows), next_page_token=more)

    async def SetDefaultPaymentMethod(
        self, request: pb.SetDefaultPaymentMethodRequest, call: RequestContext
    ) -> pb.SetDefaultPaymentMethodResponse:
        method = await self._own_method(request.payment_method_id, call)
        await self._store.customers.change(method["customer_id"], default_payment_method_id=method["payment_method_id"])
        method = await self._own_method(request.payment_method_id, call)
        return pb.SetDefaultPaymentMethodResponse(payment_method=_method(method))

    async def RemovePaymentMethod(
        self, request: pb.RemovePaymentMethodRequest, call: RequestContext
    ) -> pb.RemovePaymentMethodResponse:
        method = await self._own_method(request.payment_method_id, call)
        default = {"default_payment_method_id": method["payment_method_id"]}
        async with self._database.transaction():
            await self._store.methods.change(method["payment_method_id"], removed=True)
            await self._store.customers.update(method["customer_id"], where=default, default_payment_method_id=None)
        try:
            await (await self._accounts.provider(method["provider"])).detach(method["provider_token"])
        except (InDoubt, Refused) as error:  # it is not charged again, whatever the provider keeps of it
            logger.warning("a payment method stays with its provider: %s", error)
        return pb.RemovePaymentMethodResponse()

    async def ListPayments(self, request: pb.ListPaymentsRequest, call: RequestContext) -> pb.ListPaymentsResponse:
        own_ones = partial(self._store.payments.page, customer_id=customer_of(request.customer_id, call))
        rows, more = await self._pager.page(request, call, own_ones, by="payment_id")
        return pb.ListPaymentsResponse(payments=map(payment_message, rows), next_page_token=more)

    async def ConfirmPayment(
        self, request: pb.ConfirmPaymentRequest, call: RequestContext
    ) -> pb.ConfirmPaymentResponse:
        await own(self._store.payments, request.payment_id, call)
        payment = await self._charging.confirm(request.payment_id, request.answer)
        return pb.ConfirmPaymentResponse(payment=payment_message(payment))

    async def RefundPayment(self, request: pb.RefundPaymentRequest, call: RequestContext) -> pb.RefundPaymentResponse:
        require_refund_by_hand(await self._store.payments.require(request.payment_id))
        done = await self._charging.refund(request, RequestKey.of(request, call, self._sealer))
        return pb.RefundPaymentResponse(**outcome(*done))

    async def ListPendingPayments(
        self, request: pb.ListPendingPaymentsRequest, call: RequestContext
    ) -> pb.ListPendingPaymentsResponse:
        # Said in the statement, not by a value: the index is for this state only.
        pending = partial(self._store.payments.page, filters={"state = 'PENDING'": ()})
        rows, more = await self._pager.page(request, call, pending, by="payment_id")
        return pb.ListPendingPaymentsResponse(payments=map(payment_message, rows), next_page_token=more)

    async def SettlePayment(self, request: pb.SettlePaymentRequest, call: RequestContext) -> pb.SettlePaymentResponse:
        payment = await self._charging.settle(request.payment_id, request.provider_payment_id)
        return pb.SettlePaymentResponse(payment=payment_message(payment))

    async def ListDisputes(self, request: pb.ListDisputesRequest, call: RequestContext) -> pb.ListDisputesResponse:
        rows, more = await self._pager.page(request, call, self._store.disputes.page, by="dispute_id")
        return pb.ListDisputesResponse(disputes=map(_dispute, rows), next_page_token=more)

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

    async def _keep(self, customer_id: str, provider: str, card: Card, key: RequestKey, *, make_default: bool) -> Row:
        """A customer's first payment method is the default anyway."""
        async with self._database.transaction():
            await self._store.customers.insert_new(customer_id=customer_id)
            customer = await self._store.customers.require(customer_id, lock=True)
            method = await self._store.methods.insert_new(
                payment_method_id=new_id(),
                customer_id=customer_id,
                provider=provider,
                **asdict(card),
                **key._asdict(),
            )
            if method is not None and (make_default or customer["default_payment_method_id"] is None):
                await self._store.customers.change(customer_id, default_payment_method_id=method["payment_method_id"])
            kept = await key.earlier(self._store.methods)
        assert kept is not None, "it is there, from this call or its twin"
        return kept

    async def _own_method(self, payment_method_id: str, call: RequestContext) -> Row:
        method = await self._store.methods.require(payment_method_id)
        if method["removed"]:
            raise PaymentMethodNotFound()
        customer_of(method["customer_id"], call)
        return method
