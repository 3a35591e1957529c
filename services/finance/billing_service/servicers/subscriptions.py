"""SubscriptionService: subscriptions, bills, entitlements, dunning."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, get_args

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from nexus.finance.billing_service.v1 import subscriptions_pb2 as pb
from nexus.finance.billing_service.v1.payments_pb2 import Payment
from nexus.finance.billing_service.v1.plans_pb2 import Feature
from nexus.type.v1.faults import PermissionMissing
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import moment, now, timestamp
from services.chassis.context import RequestContext
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.finance.billing_service.bills import Line
from services.finance.billing_service.dunning import Policy
from services.finance.billing_service.engine import engine
from services.finance.billing_service.entitlements import Grant, Right, combined
from services.finance.billing_service.servicers.common import MANAGE, customer_of, payment_message, request_of
from services.finance.billing_service.stores.payments import PaymentStore
from services.finance.billing_service.stores.plans import PlanStore
from services.finance.billing_service.stores.subscriptions import Row, SubscriptionStore
from services.finance.billing_service.subscribing import Proration, Terms


class SubscriptionService:
    def __init__(self, service: Service) -> None:
        self._sealer = service.sealer
        self._plans = PlanStore(service.database)
        self._payments = PaymentStore(service.database)
        self._store = SubscriptionStore(service.database)
        self._pager = Pager(service.sealer)
        self._subscribing = engine(service).subscribing

    async def CreateSubscription(
        self, request: pb.CreateSubscriptionRequest, call: RequestContext
    ) -> pb.CreateSubscriptionResponse:
        customer_id = customer_of(request.customer_id, call)
        await self._payments.ensure_customer(customer_id)
        terms = Terms(request.price_id, request.quantity or 1, request.coupon_code, request.payment_method_id)
        subscription, bill = await self._subscribing.create(
            customer_id, terms, **request_of(request, call, self._sealer)
        )
        return pb.CreateSubscriptionResponse(
            subscription=_subscription(subscription),
            bill=await self._bill(bill) if bill is not None else None,
            payment=await self._payment(bill) if bill is not None else None,
        )

    async def GetSubscription(
        self, request: pb.GetSubscriptionRequest, call: RequestContext
    ) -> pb.GetSubscriptionResponse:
        return pb.GetSubscriptionResponse(subscription=_subscription(await self._own(request.subscription_id, call)))

    async def ListSubscriptions(
        self, request: pb.ListSubscriptionsRequest, call: RequestContext
    ) -> pb.ListSubscriptionsResponse:
        customer_id, size = customer_of(request.customer_id, call), self._pager.size(request)
        rows = await self._store.of_customer(customer_id, self._pager.cursor(request, call) or None, size + 1)
        more = self._pager.token(request, call, rows[size - 1]["subscription_id"]) if len(rows) > size else ""
        return pb.ListSubscriptionsResponse(subscriptions=map(_subscription, rows[:size]), next_page_token=more)

    async def ChangeSubscription(
        self, request: pb.ChangeSubscriptionRequest, call: RequestContext
    ) -> pb.ChangeSubscriptionResponse:
        await self._own(request.subscription_id, call)
        if request.proration == pb.PRORATION_NONE:
            _require_manager(call)  # or customers would upgrade for nothing
        subscription, lines = await self._subscribing.change(
            request.subscription_id, request.price_id, request.quantity, _proration(request.proration)
        )
        currency = await self._currency(subscription)
        return pb.ChangeSubscriptionResponse(
            subscription=_subscription(subscription), lines=[_line(line, currency) for line in lines]
        )

    async def CancelSubscription(
        self, request: pb.CancelSubscriptionRequest, call: RequestContext
    ) -> pb.CancelSubscriptionResponse:
        await self._own(request.subscription_id, call)
        if request.prorate:
            _require_manager(call)  # it is the tenant who decides whether money is given back
        subscription = await self._subscribing.cancel(
            request.subscription_id, at_once=request.now, prorate=request.prorate
        )
        return pb.CancelSubscriptionResponse(subscription=_subscription(subscription))

    async def ResumeSubscription(
        self, request: pb.ResumeSubscriptionRequest, call: RequestContext
    ) -> pb.ResumeSubscriptionResponse:
        await self._own(request.subscription_id, call)
        subscription = await self._subscribing.resume(request.subscription_id)
        return pb.ResumeSubscriptionResponse(subscription=_subscription(subscription))

    async def PreviewInvoice(
        self, request: pb.PreviewInvoiceRequest, call: RequestContext
    ) -> pb.PreviewInvoiceResponse:
        await self._own(request.subscription_id, call)
        subscription, lines, total = await self._subscribing.preview(
            request.subscription_id, request.price_id, request.quantity
        )
        currency = await self._currency(subscription)
        return pb.PreviewInvoiceResponse(
            bill=pb.Bill(
                subscription_id=subscription["subscription_id"],
                customer_id=subscription["customer_id"],
                lines=[_line(line, currency) for line in lines],
                total=Money(currency=currency, minor_units=total),
            )
        )

    async def GetBill(self, request: pb.GetBillRequest, call: RequestContext) -> pb.GetBillResponse:
        return pb.GetBillResponse(bill=await self._bill(await self._own_bill(request.bill_id, call)))

    async def ListBills(self, request: pb.ListBillsRequest, call: RequestContext) -> pb.ListBillsResponse:
        customer_id, size = customer_of(request.customer_id, call), self._pager.size(request)
        rows = await self._store.bills(customer_id, self._pager.cursor(request, call) or None, size + 1)
        more = self._pager.token(request, call, rows[size - 1]["bill_id"]) if len(rows) > size else ""
        return pb.ListBillsResponse(bills=[await self._bill(row) for row in rows[:size]], next_page_token=more)

    async def PayBill(self, request: pb.PayBillRequest, call: RequestContext) -> pb.PayBillResponse:
        await self._own_bill(request.bill_id, call)
        bill = await self._subscribing.pay(request.bill_id)
        return pb.PayBillResponse(bill=await self._bill(bill), payment=await self._payment(bill))

    async def ListEntitlements(
        self, request: pb.ListEntitlementsRequest, call: RequestContext
    ) -> pb.ListEntitlementsResponse:
        customer_id = customer_of(request.customer_id, call)
        return pb.ListEntitlementsResponse(
            entitlements=[await self._entitlement(right, customer_id) for right in await self._rights(customer_id)]
        )

    async def CheckEntitlement(
        self, request: pb.CheckEntitlementRequest, call: RequestContext
    ) -> pb.CheckEntitlementResponse:
        for right in await self._rights(request.customer_id):
            if right.key == request.feature_key:
                entitlement = await self._entitlement(right, request.customer_id)
                return pb.CheckEntitlementResponse(entitlement=entitlement, allowed=entitlement.available)
        return pb.CheckEntitlementResponse()

    async def GetDunningPolicy(
        self, request: pb.GetDunningPolicyRequest, call: RequestContext
    ) -> pb.GetDunningPolicyResponse:
        return pb.GetDunningPolicyResponse(policy=_policy(await self._store.policy()))

    async def SetDunningPolicy(
        self, request: pb.SetDunningPolicyRequest, call: RequestContext
    ) -> pb.SetDunningPolicyResponse:
        keep = request.policy.outcome == pb.DUNNING_OUTCOME_KEEP
        policy = Policy(tuple(request.policy.retry_after_hours), "KEEP" if keep else "CANCEL")
        await self._store.set_policy(policy)
        return pb.SetDunningPolicyResponse(policy=_policy(policy))

    async def GetInvoicingPolicy(
        self, request: pb.GetInvoicingPolicyRequest, call: RequestContext
    ) -> pb.GetInvoicingPolicyResponse:
        return pb.GetInvoicingPolicyResponse(policy=await self._store.invoicing_policy())

    async def SetInvoicingPolicy(
        self, request: pb.SetInvoicingPolicyRequest, call: RequestContext
    ) -> pb.SetInvoicingPolicyResponse:
        await self._store.set_invoicing_policy(request.policy)
        return pb.SetInvoicingPolicyResponse(policy=request.policy)

    async def RunBilling(self, request: pb.RunBillingRequest, call: RequestContext) -> pb.RunBillingResponse:
        billed, ended = await self._subscribing.run_billing(_as_of(request))
        return pb.RunBillingResponse(billed=billed, ended=ended)

    async def RunDunning(self, request: pb.RunDunningRequest, call: RequestContext) -> pb.RunDunningResponse:
        outcomes = await self._subscribing.run_dunning(_as_of(request))
        return pb.RunDunningResponse(
            collected=outcomes.get("PAID", 0),
            failed=outcomes.get("PAST_DUE", 0),
            given_up=outcomes.get("UNCOLLECTIBLE", 0),
        )

    async def _own(self, subscription_id: str, call: RequestContext) -> Row:
        subscription = await self._subscribing.subscription(subscription_id)
        customer_of(subscription["customer_id"], call)
        return subscription

    async def _own_bill(self, bill_id: str, call: RequestContext) -> Row:
        bill = await self._subscribing.bill(bill_id)
        customer_of(bill["customer_id"], call)
        return bill

    async def _currency(self, subscription: Row) -> str:
        price = await self._plans.price(subscription["price_id"])
        assert price is not None, "prices are never taken away"
        currency: str = price["currency"]
        return currency

    async def _bill(self, row: Row) -> pb.Bill:
        lines = await self._store.lines(row["bill_id"])
        return pb.Bill(
            bill_id=row["bill_id"],
            subscription_id=row["subscription_id"],
            customer_id=row["customer_id"],
            state=pb.BillState.Value(f"BILL_STATE_{row['state']}"),
            lines=[_line(line, row["currency"]) for line in lines],
            total=Money(currency=row["currency"], minor_units=row["total"]),
            attempts=row["attempts"],
            next_attempt_time=_time(row["next_attempt_time"]),
            payment_id=row["payment_id"] or "",
            invoice_id=row["invoice_id"],
            create_time=timestamp(row["create_time"]),
            pay_time=_time(row["pay_time"]),
            tax=Money(currency=row["currency"], minor_units=row["tax"]) if row["tax"] is not None else None,
        )

    async def _payment(self, bill: Row) -> Payment | None:
        """The payment that a bill waits for or was paid with."""
        if bill["payment_id"] is None:
            return None
        payment = await self._payments.payment(bill["payment_id"])
        return payment_message(payment) if payment is not None else None

    async def _rights(self, customer_id: str) -> list[Right]:
        return combined(
            Grant(json_format.ParseDict(feature, Feature()), row["quantity"], row["period_start"], row["period_end"])
            for row in await self._store.entitling(customer_id)
            for feature in json.loads(row["features"])
        )

    async def _entitlement(self, right: Right, customer_id: str) -> pb.Entitlement:
        entitlement = pb.Entitlement(
            feature_key=right.key, limit=right.limit, available=right.limit != 0, reset_time=timestamp(right.until)
        )
        meter = await self._plans.meters.get(right.meter_key) if right.meter_key else None
        if meter is not None:
            used = await self._plans.used(meter, customer_id, right.since, right.until)
            entitlement.used = f"{used.normalize():f}"
            entitlement.available = right.limit is None or used < right.limit
        return entitlement


def _require_manager(call: RequestContext) -> None:
    if not call.user.may(MANAGE):
        raise PermissionMissing(permission=MANAGE)


def _proration(value: "pb.Proration.ValueType") -> Proration:
    name = pb.Proration.Name(value).removeprefix("PRORATION_")
    return next((known for known in get_args(Proration) if known == name), "ON_NEXT_BILL")


def _as_of(request: pb.RunBillingRequest | pb.RunDunningRequest) -> datetime:
    return moment(request.as_of_time) if request.HasField("as_of_time") else now()


def _time(value: datetime | None) -> Timestamp | None:
    return timestamp(value) if value is not None else None


def _subscription(row: Row) -> pb.Subscription:
    return pb.Subscription(
        subscription_id=row["subscription_id"],
        customer_id=row["customer_id"],
        plan_id=row["plan_id"],
        price_id=row["price_id"],
        quantity=row["quantity"],
        state=pb.SubscriptionState.Value(f"SUBSCRIPTION_STATE_{row['state']}"),
        period_start_time=timestamp(row["period_start"]),
        period_end_time=timestamp(row["period_end"]),
        cancel_at_period_end=row["cancel_at_period_end"],
        cancel_time=_time(row["cancel_time"]),
        coupon_id=row["coupon_id"] or "",
        bill_id=row["bill_id"] or "",
        create_time=timestamp(row["create_time"]),
    )


def _line(line: Line | Mapping[str, Any], currency: str) -> pb.BillLine:
    """Of a line that is kept, or of one that would be."""
    if isinstance(line, Line):
        line = {
            "kind": line.kind,
            "description": line.description,
            "price_id": line.price_id,
            "quantity": line.quantity,
            "amount": line.amount,
            "start_time": line.start,
            "end_time": line.end,
        }
    return pb.BillLine(
        kind=pb.LineKind.Value(f"LINE_KIND_{line['kind']}"),
        description=line["description"],
        price_id=line["price_id"] or "",
        quantity=f"{line['quantity'].normalize():f}",
        amount=Money(currency=currency, minor_units=line["amount"]),
        start_time=timestamp(line["start_time"]),
        end_time=timestamp(line["end_time"]),
    )


def _policy(policy: Policy) -> pb.DunningPolicy:
    return pb.DunningPolicy(
        retry_after_hours=policy.retry_after_hours,
        outcome=pb.DunningOutcome.Value(f"DUNNING_OUTCOME_{policy.outcome}"),
    )
