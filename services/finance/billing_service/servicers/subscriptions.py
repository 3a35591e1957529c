"""SubscriptionService: subscriptions, bills, entitlements, dunning."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from nexus.finance.billing_service.v1 import subscriptions_pb2 as pb
from nexus.finance.billing_service.v1.payments_pb2 import Payment
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import now, timestamp
from services.chassis.context import RequestContext
from services.chassis.idempotency import RequestKey
from services.chassis.messages import MessageOf, moment_in, text_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.finance.billing_service.bills import Line
from services.finance.billing_service.engine import Engine
from services.finance.billing_service.entitlements import Right, combined
from services.finance.billing_service.servicers.common import customer_of, own, payment_message, require_manager

_subscription = MessageOf(pb.Subscription, period_start_time="period_start", period_end_time="period_end")
_bill = MessageOf(pb.Bill)
_bill_line = MessageOf(pb.BillLine)


class SubscriptionService:
    def __init__(self, service: Service) -> None:
        self._sealer = service.sealer
        self._pager = Pager(service.sealer)
        self._store = service.shared(Engine).store
        self._subscribing = service.shared(Engine).subscribing

    async def CreateSubscription(
        self, request: pb.CreateSubscriptionRequest, call: RequestContext
    ) -> pb.CreateSubscriptionResponse:
        customer_id = customer_of(request.customer_id, call)
        await self._store.customers.insert_new(customer_id=customer_id)
        key = RequestKey.of(request, call, self._sealer)
        subscription = await self._subscribing.create(customer_id, request, key)
        bill = await self._store.bills.get(subscription["bill_id"])
        return pb.CreateSubscriptionResponse(
            subscription=_subscription(subscription),
            bill=(await self._with_lines([bill]))[0] if bill is not None else None,
            payment=await self._payment(bill) if bill is not None else None,
        )

    async def GetSubscription(
        self, request: pb.GetSubscriptionRequest, call: RequestContext
    ) -> pb.GetSubscriptionResponse:
        subscription = await own(self._store.subscriptions, request.subscription_id, call)
        return pb.GetSubscriptionResponse(subscription=_subscription(subscription))

    async def ListSubscriptions(
        self, request: pb.ListSubscriptionsRequest, call: RequestContext
    ) -> pb.ListSubscriptionsResponse:
        own_ones = partial(self._store.subscriptions.page, customer_id=customer_of(request.customer_id, call))
        rows, more = await self._pager.page(request, call, own_ones, by="subscription_id")
        return pb.ListSubscriptionsResponse(subscriptions=map(_subscription, rows), next_page_token=more)

    async def ChangeSubscription(
        self, request: pb.ChangeSubscriptionRequest, call: RequestContext
    ) -> pb.ChangeSubscriptionResponse:
        await own(self._store.subscriptions, request.subscription_id, call)
        if request.proration == pb.PRORATION_NONE:
            require_manager(call)  # or customers would upgrade for nothing
        subscription, lines = await self._subscribing.change(request)
        price = await self._store.price(subscription["price_id"])
        return pb.ChangeSubscriptionResponse(
            subscription=_subscription(subscription), lines=[_line(line, price["currency"]) for line in lines]
        )

    async def CancelSubscription(
        self, request: pb.CancelSubscriptionRequest, call: RequestContext
    ) -> pb.CancelSubscriptionResponse:
        await own(self._store.subscriptions, request.subscription_id, call)
        if request.prorate:
            require_manager(call)  # it is the tenant who decides whether money is given back
        subscription = await self._subscribing.cancel(request)
        return pb.CancelSubscriptionResponse(subscription=_subscription(subscription))

    async def ResumeSubscription(
        self, request: pb.ResumeSubscriptionRequest, call: RequestContext
    ) -> pb.ResumeSubscriptionResponse:
        await own(self._store.subscriptions, request.subscription_id, call)
        subscription = await self._subscribing.resume(request.subscription_id)
        return pb.ResumeSubscriptionResponse(subscription=_subscription(subscription))

    async def PreviewInvoice(
        self, request: pb.PreviewInvoiceRequest, call: RequestContext
    ) -> pb.PreviewInvoiceResponse:
        await own(self._store.subscriptions, request.subscription_id, call)
        subscription, lines, total = await self._subscribing.preview(request)
        currency = (await self._store.price(subscription["price_id"]))["currency"]
        return pb.PreviewInvoiceResponse(
            bill=pb.Bill(
                subscription_id=subscription["subscription_id"],
                customer_id=subscription["customer_id"],
                lines=[_line(line, currency) for line in lines],
                total=Money(currency=currency, minor_units=total),
            )
        )

    async def GetBill(self, request: pb.GetBillRequest, call: RequestContext) -> pb.GetBillResponse:
        [bill] = await self._with_lines([await own(self._store.bills, request.bill_id, call)])
        return pb.GetBillResponse(bill=bill)

    async def ListBills(self, request: pb.ListBillsRequest, call: RequestContext) -> pb.ListBillsResponse:
        own_ones = partial(self._store.bills.page, customer_id=customer_of(request.customer_id, call))
        rows, more = await self._pager.page(request, call, own_ones, by="bill_id")
        return pb.ListBillsResponse(bills=await self._with_lines(rows), next_page_token=more)

    async def PayBill(self, request: pb.PayBillRequest, call: RequestContext) -> pb.PayBillResponse:
        await own(self._store.bills, request.bill_id, call)
        row = await self._subscribing.pay(request.bill_id)
        [bill] = await self._with_lines([row])
        return pb.PayBillResponse(bill=bill, payment=await self._payment(row))

    async def ListEntitlements(
        self, request: pb.ListEntitlementsRequest, call: RequestContext
    ) -> pb.ListEntitlementsResponse:
        customer_id = customer_of(request.customer_id, call)
        rights = combined(await self._store.entitling(customer_id))
        return pb.ListEntitlementsResponse(
            entitlements=[await self._entitlement(right, customer_id) for right in rights]
        )

    async def CheckEntitlement(
        self, request: pb.CheckEntitlementRequest, call: RequestContext
    ) -> pb.CheckEntitlementResponse:
        for right in combined(await self._store.entitling(request.customer_id)):
            if right.key == request.feature_key:
                entitlement = await self._entitlement(right, request.customer_id)
                return pb.CheckEntitlementResponse(entitlement=entitlement, allowed=entitlement.available)
        return pb.CheckEntitlementResponse()

    async def GetDunningPolicy(
        self, request: pb.GetDunningPolicyRequest, call: RequestContext
    ) -> pb.GetDunningPolicyResponse:
        return pb.GetDunningPolicyResponse(policy=await self._store.dunning_policy())

    async def SetDunningPolicy(
        self, request: pb.SetDunningPolicyRequest, call: RequestContext
    ) -> pb.SetDunningPolicyResponse:
        await self._store.dunning_policies.put(
            retry_after_hours=request.policy.retry_after_hours,
            outcome=text_of(pb.DunningOutcome, request.policy.outcome or pb.DUNNING_OUTCOME_CANCEL),
        )
        return pb.SetDunningPolicyResponse(policy=await self._store.dunning_policy())

    async def GetInvoicingPolicy(
        self, request: pb.GetInvoicingPolicyRequest, call: RequestContext
    ) -> pb.GetInvoicingPolicyResponse:
        return pb.GetInvoicingPolicyResponse(policy=await self._store.invoicing_policy())

    async def SetInvoicingPolicy(
        self, request: pb.SetInvoicingPolicyRequest, call: RequestContext
    ) -> pb.SetInvoicingPolicyResponse:
        await self._store.invoicing_policies.put(policy=request.policy)
        return pb.SetInvoicingPolicyResponse(policy=request.policy)

    async def RunBilling(self, request: pb.RunBillingRequest, call: RequestContext) -> pb.RunBillingResponse:
        billed, ended = await self._subscribing.run_billing(moment_in(request, "as_of_time") or now())
        return pb.RunBillingResponse(billed=billed, ended=ended)

    async def RunDunning(self, request: pb.RunDunningRequest, call: RequestContext) -> pb.RunDunningResponse:
        outcomes = await self._subscribing.run_dunning(moment_in(request, "as_of_time") or now())
        return pb.RunDunningResponse(
            collected=outcomes["PAID"], failed=outcomes["PAST_DUE"], given_up=outcomes["UNCOLLECTIBLE"]
        )

    async def _with_lines(self, bills: Sequence[Row]) -> list[pb.Bill]:
        lines: defaultdict[str, list[Row]] = defaultdict(list)
        for line in await self._store.lines_of([bill["bill_id"] for bill in bills]):
            lines[line["bill_id"]].append(line)
        return [_bill(bill, lines=[_line(line, bill["currency"]) for line in lines[bill["bill_id"]]]) for bill in bills]

    async def _payment(self, bill: Row) -> Payment | None:
        """The payment that a bill waits for or was paid with."""
        if bill["payment_id"] is None:
            return None
        return payment_message(await self._store.payments.require(bill["payment_id"]))

    async def _entitlement(self, right: Right, customer_id: str) -> pb.Entitlement:
        entitlement = pb.Entitlement(
            feature_key=right.key, limit=right.limit, available=right.limit != 0, reset_time=timestamp(right.until)
        )
        meter = await self._store.meters.get(right.meter_key) if right.meter_key else None
        if meter is not None:
            used = await self._store.used(meter, customer_id, right.since, right.until)
            entitlement.used = f"{used.normalize():f}"
            entitlement.available = right.limit is None or used < right.limit
        return entitlement


def _line(line: Row | Line, currency: str) -> pb.BillLine:
    """Of a line that is kept, or of one that would be."""
    columns = vars(line) if isinstance(line, Line) else line
    return _bill_line({**columns, "currency": currency})
