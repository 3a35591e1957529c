"""Subscriptions from their first bill to their last: renewals, changes, collection, dunning."""

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from google.protobuf import json_format

from nexus.finance.billing_service.v1 import events_pb2 as events
from nexus.finance.billing_service.v1 import subscriptions_pb2 as pb
from nexus.finance.billing_service.v1.faults import (
    BillNotOpen,
    CouponNotFound,
    CouponNotUsable,
    CurrencyMismatch,
    CustomerNotFound,
    PaymentMethodNotFound,
    PaymentStateConflict,
    PriceArchived,
    ProviderNotConfigured,
    SubscriptionStateConflict,
)
from nexus.finance.billing_service.v1.payments_pb2 import AuthorizeRequest, VoidRequest
from nexus.finance.billing_service.v1.plans_pb2 import UsagePrice
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import now
from services.chassis.idempotency import RequestKey
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf
from services.chassis.service import Service
from services.chassis.table import Row
from services.finance.billing_service import bills, dunning, rating
from services.finance.billing_service.bills import Draft, Line
from services.finance.billing_service.charging import Charging
from services.finance.billing_service.invoicing import tax_rate
from services.finance.billing_service.periods import boundary
from services.finance.billing_service.selling import Selling
from services.finance.billing_service.store import Store

_BATCH = 200
_LOOK_AGAIN = timedelta(minutes=10)
_LIVE = ("TRIALING", "ACTIVE")
_OWED = ("OPEN", "PAST_DUE")

_changed = MessageOf(events.SubscriptionChanged, period_end_time="period_end")
_issued = MessageOf(events.BillIssued)
_paid = MessageOf(events.BillPaid)
_past_due = MessageOf(events.BillPastDue)

logger = logging.getLogger(__name__)


class Subscribing:
    """The use cases of subscriptions, for the tenant of the call or of `acting_for`."""

    def __init__(self, service: Service, store: Store, charging: Charging, selling: Selling) -> None:
        self._database = service.database
        self._events = service.events
        self._store = store
        self._charging = charging
        self._selling = selling
        charging.on_settled = self._on_payment_settled

    async def create(self, customer_id: str, request: pb.CreateSubscriptionRequest, key: RequestKey) -> Row:
        """The subscription, its first bill collected; a repeat goes on with the collection."""
        async with self._database.transaction():
            subscription = await self._subscribe(customer_id, request, key)
        if subscription["state"] == "INCOMPLETE" and subscription["bill_id"] is not None:
            await self.collect(subscription["bill_id"], now(), off_session=False)
        return await self._store.subscriptions.require(subscription["subscription_id"])

    async def change(self, request: pb.ChangeSubscriptionRequest) -> tuple[Row, Sequence[Line]]:
        at = now()
        async with self._database.transaction():
            subscription = await self._changeable(request.subscription_id, at)
            old, new = await self._prices(subscription, request.price_id)
            quantity = request.quantity or subscription["quantity"]
            terms = {"plan_id": new["plan_id"], "price_id": new["price_id"], "quantity": quantity}
            lines: Sequence[Line] = ()
            if subscription["state"] == "TRIALING":
                changed = await self._change(subscription, period_fee=0, **terms)
            elif _same_interval(old, new):
                fee = subscription["period_fee"]
                if request.proration != pb.PRORATION_NONE:
                    fee = await self._net_fee(subscription, new, quantity)
                    lines = bills.change_lines(old, new, subscription, quantity, fee, at)
                changed = await self._change(subscription, period_fee=fee, **terms)
                await self._store.insert_lines(changed["subscription_id"], None, lines)
                if request.proration == pb.PRORATION_BILL_NOW:
                    await self._make_bill(changed, new, (), None, at)
            else:  # the first period of another interval begins now, and is billed now
                lines = await self._usage_lines(subscription, old, at)
                if request.proration != pb.PRORATION_NONE:
                    lines += bills.change_lines(old, new, subscription, 0, 0, at)
                fee_line = bills.fee_line(new, quantity, at, _next(new, at))
                lines.append(fee_line)
                changed = await self._begin(subscription, fee_line, 0, state="ACTIVE", anchor_time=at, **terms)
                await self._make_bill(changed, new, lines, at, at)
            await self._publish(_changed(changed))
        return changed, lines

    async def cancel(self, request: pb.CancelSubscriptionRequest) -> Row:
        at = now()
        async with self._database.transaction():
            subscription = await self._locked(request.subscription_id)
            if subscription["state"] == "CANCELED":
                raise SubscriptionStateConflict(state="CANCELED", verb="canceled")
            if subscription["period_end"] <= at:
                raise SubscriptionStateConflict(state=subscription["state"], verb="canceled until it has been billed")
            if not request.now and subscription["state"] != "INCOMPLETE":
                changed = await self._change(subscription, cancel_at_period_end=True)
            else:
                price = await self._store.price(subscription["price_id"])
                lines = await self._usage_lines(subscription, price, at)
                if request.prorate and subscription["state"] == "ACTIVE" and not await self._is_owed_for(subscription):
                    lines += bills.change_lines(price, price, subscription, 0, 0, at)
                await self._make_bill(subscription, price, lines, None, at)
                changed = await self._end(subscription, at)
            await self._publish(_changed(changed))
        if changed["state"] == "CANCELED":
            await self._let_go(subscription)
        return changed

    async def resume(self, subscription_id: str) -> Row:
        async with self._database.transaction():
            subscription = await self._locked(subscription_id)
            if subscription["state"] == "CANCELED":
                raise SubscriptionStateConflict(state="CANCELED", verb="resumed")
            changed = await self._change(subscription, cancel_at_period_end=False)
            await self._publish(_changed(changed))
        return changed

    async def preview(self, request: pb.PreviewInvoiceRequest) -> tuple[Row, Sequence[Row | Line], int]:
        """The subscription, and the lines and the total of its next bill. Writes nothing."""
        at = now()
        subscription = await self._store.subscriptions.require(request.subscription_id)
        if subscription["state"] == "CANCELED":
            raise SubscriptionStateConflict(state="CANCELED", verb="billed")
        old, new = await self._prices(subscription, request.price_id)
        quantity = request.quantity or subscription["quantity"]
        start = subscription["period_end"]
        lines = await self._usage_lines(subscription, old, start, close=False)
        changes = request.price_id or quantity != subscription["quantity"]
        if changes and subscription["state"] != "TRIALING":
            if _same_interval(old, new):
                fee = await self._net_fee(subscription, new, quantity)
                lines += bills.change_lines(old, new, subscription, quantity, fee, at)
            else:
                lines += bills.change_lines(old, new, subscription, 0, 0, at)
                start = at
        if not subscription["cancel_at_period_end"]:
            lines.append(bills.fee_line(new, quantity, start, _next(new, start)))
        waiting = await self._store.waiting(request.subscription_id)
        draft = await self._draft(subscription, new["currency"], waiting, lines, at)
        return subscription, [*waiting, *draft.lines], draft.total

    async def run_billing(self, at: datetime) -> tuple[int, int]:
        """Bill every subscription whose period has ended, one period after the other; returns how many bills were
        made and how many subscriptions ended. One that cannot be billed is left to the next round. Paid bills that wait
        for their invoices get them."""
        await self._selling.invoice_rest()
        billed = ended = 0
        left: list[str] = []
        while due := await self._store.due(at, _BATCH, without=left):
            for subscription_id in (row["subscription_id"] for row in due):
                try:
                    async with self._database.transaction():
                        subscription = await self._locked(subscription_id)
                        if subscription["state"] == "CANCELED" or subscription["period_end"] > at:
                            continue
                        renewed, bill = await self._renew(subscription)
                        await self._publish(_changed(renewed))
                    billed += bill is not None
                    ended += renewed["state"] == "CANCELED"
                    if renewed["state"] == "CANCELED":
                        await self._let_go(subscription)
                    if bill is not None:
                        await self.collect(bill["bill_id"], at, off_session=True)
                except Exception:
                    logger.exception("a subscription waits", extra={"subscription": subscription_id})
                    left.append(subscription_id)
        return billed, ended

    async def run_dunning(self, at: datetime) -> Counter[str]:
        """Try to collect every bill that is due; returns how many ended in which state."""
        outcomes: Counter[str] = Counter()
        for bill_id in (row["bill_id"] for row in await self._store.to_collect(at, _BATCH)):
            try:
                bill = await self.collect(bill_id, at, off_session=True)
                outcomes[bill["state"]] += 1
            except Exception:
                logger.exception("a bill waits", extra={"bill": bill_id})
        return outcomes

    async def collect(self, bill_id: str, at: datetime, *, off_session: bool) -> Row:
        """Make an attempt to collect a bill, or go on with the one that is under way. An attempt is one payment, and
        the next one begins when it has failed. If nothing is heard of it, somebody looks again later."""
        async with self._database.transaction():
            bill = await self._locked_bill(bill_id)
            if bill["state"] not in _OWED:
                return bill
            await self._store.bills.change(bill_id, attempt_time=at, next_attempt_time=at + _LOOK_AGAIN)
            subscription = await self._store.subscriptions.require(bill["subscription_id"])
        try:
            request = AuthorizeRequest(
                customer_id=bill["customer_id"],
                payment_method_id=await self._method(subscription),
                amount=Money(currency=bill["currency"], minor_units=bill["total"]),
                reference=f"bill/{bill_id}",
                capture=True,
                off_session=off_session,
            )
            key = RequestKey("bill", f"{bill_id}/{bill['attempts'] + 1}")
            await self._charging.authorize(request, key, bill_id=bill_id)
        except (PaymentMethodNotFound, CustomerNotFound, ProviderNotConfigured) as fault:
            logger.info("a bill cannot be collected: %s", fault, extra={"bill": bill_id})
            async with self._database.transaction():
                bill = await self._locked_bill(bill_id)
                if bill["state"] in _OWED:
                    await self._note_failure(bill, None)
        return await self._store.bills.require(bill_id)

    async def pay(self, bill_id: str) -> Row:
        bill = await self._store.bills.require(bill_id)
        if bill["state"] == "UNCOLLECTIBLE":
            raise BillNotOpen(state=bill["state"])
        return await self.collect(bill_id, now(), off_session=False)

    async def _subscribe(self, customer_id: str, request: pb.CreateSubscriptionRequest, key: RequestKey) -> Row:
        earlier = await key.earlier(self._store.subscriptions)
        if earlier is not None:
            return earlier
        at = now()
        price = await self._store.price(request.price_id)
        if price["archived"]:
            raise PriceArchived(price_id=request.price_id)
        coupon = await self._redeemable(request.coupon_code, price["currency"], at) if request.coupon_code else None
        quantity = request.quantity or 1
        in_trial = price["trial_days"] > 0
        end = at + timedelta(days=price["trial_days"]) if in_trial else _next(price, at)
        subscription = await self._store.subscriptions.insert_new(
            subscription_id=new_id(),
            customer_id=customer_id,
            plan_id=price["plan_id"],
            price_id=price["price_id"],
            quantity=quantity,
            state="TRIALING" if in_trial else "INCOMPLETE",
            anchor_time=end if in_trial else at,
            period_index=-1 if in_trial else 0,
            period_start=at,
            period_end=end,
            period_fee=0 if in_trial else price["fee"] * quantity,
            coupon_id=coupon["coupon_id"] if coupon is not None else None,
            coupon_bills_left=coupon["bills"] or None if coupon is not None else None,
            payment_method_id=request.payment_method_id or None,
            **key._asdict(),
        )
        if subscription is None:
            made = await key.earlier(self._store.subscriptions)
            assert made is not None, "the conflicting row was committed, so it can be read"
            return made
        if coupon is not None:
            await self._store.coupons.change(coupon["coupon_id"], redemptions=coupon["redemptions"] + 1)
        if not in_trial:
            fee = bills.fee_line(price, quantity, at, end)
            bill = await self._make_bill(subscription, price, [fee], at, at)
            if bill is None or bill["state"] == "PAID":
                await self._change(subscription, state="ACTIVE")
        made = await self._store.subscriptions.require(subscription["subscription_id"])
        await self._publish(_changed(made))
        return made

    async def _renew(self, subscription: Row) -> tuple[Row, Row | None]:
        """End the period of a locked subscription, and begin the next one if there is to be one."""
        end = subscription["period_end"]
        price = await self._store.price(subscription["price_id"])
        lines = await self._usage_lines(subscription, price, end)
        if subscription["state"] == "INCOMPLETE":
            return await self._end(subscription, end), None
        if subscription["cancel_at_period_end"]:
            bill = await self._make_bill(subscription, price, lines, None, end)
            return await self._end(subscription, end), bill
        index = subscription["period_index"] + 1
        next_end = boundary(subscription["anchor_time"], price["interval_unit"], price["interval_count"], index + 1)
        fee = bills.fee_line(price, subscription["quantity"], end, next_end)
        state = "ACTIVE" if subscription["state"] == "TRIALING" else subscription["state"]
        renewed = await self._begin(subscription, fee, index, state=state)
        return renewed, await self._make_bill(renewed, price, [*lines, fee], end, end)

    async def _begin(self, subscription: Row, fee: Line, index: int, **changes: Any) -> Row:
        """The period of a fee."""
        return await self._change(
            subscription,
            period_index=index,
            period_start=fee.start_time,
            period_end=fee.end_time,
            period_fee=fee.amount,
            period_discount=0,
            **changes,
        )

    async def _end(self, subscription: Row, at: datetime) -> Row:
        """What was never paid for is not owed."""
        if subscription["state"] == "INCOMPLETE" and subscription["bill_id"] is not None:
            bill = await self._locked_bill(subscription["bill_id"])
            if bill["state"] in _OWED:
                await self._store.bills.change(bill["bill_id"], state="UNCOLLECTIBLE", next_attempt_time=None)
        return await self._change(subscription, state="CANCELED", cancel_time=at)

    async def _let_go(self, subscription: Row) -> None:
        """Of the payment that the customer was to confirm, after the end of what it was for. One whose outcome is not
        known yet, or that nobody came to let go of, is given back if it turns out to be captured."""
        if subscription["state"] != "INCOMPLETE":
            return
        bill = await self._store.bills.require(subscription["bill_id"])
        if bill["state"] == "UNCOLLECTIBLE" and bill["payment_id"] is not None:
            with contextlib.suppress(PaymentStateConflict):
                request = VoidRequest(payment_id=bill["payment_id"])
                await self._charging.void(request, RequestKey("end", request.payment_id))

    async def _usage_lines(self, subscription: Row, price: Row, until: datetime, *, close: bool = True) -> list[Line]:
        """Use since the period began, by the price in force at its end. From then on it is closed: what is recorded
        later counts from `until` on."""
        customer_id, start = subscription["customer_id"], subscription["period_start"]
        if close:
            await self._store.close_usage(customer_id, until)
        lines = []
        for item in json.loads(price["usage_prices"]):
            usage_price = json_format.ParseDict(item, UsagePrice())
            meter = await self._store.meters.require(usage_price.meter_key)
            used = await self._store.used(meter, customer_id, start, until)
            if used:
                amount = rating.cost(usage_price, used)
                lines.append(Line("USAGE", f"Use of {meter['key']}", amount, start, until, price["price_id"], used))
        return lines

    async def _make_bill(
        self, subscription: Row, price: Row, lines: Sequence[Line], cycle_start: datetime | None, at: datetime
    ) -> Row | None:
        """In a transaction that holds the subscription, as it is now. None when there is nothing to bill."""
        subscription_id, customer_id = subscription["subscription_id"], subscription["customer_id"]
        waiting = await self._store.waiting(subscription_id)
        if not lines and not waiting:
            return None
        currency, country = price["currency"], await self._store.lock_customer(customer_id)
        draft = await self._draft(subscription, currency, waiting, lines, at)
        policy = await self._store.invoicing_policy()
        country = country or policy.default_country
        bill = await self._store.bills.insert(
            bill_id=new_id(),
            subscription_id=subscription_id,
            customer_id=customer_id,
            currency=currency,
            total=draft.total,
            cycle_start=cycle_start,
            state="OPEN" if draft.total else "PAID",
            next_attempt_time=at if draft.total else None,
            create_time=at,
            pay_time=None if draft.total else at,
            tax_country=country,
            tax_basis_points=tax_rate(policy.taxes, country),
        )
        await self._store.put_on_bill(waiting, bill["bill_id"])
        await self._store.insert_lines(subscription_id, bill["bill_id"], draft.lines)
        if draft.credit:
            await self._store.credits.insert(
                entry_id=new_id(),
                customer_id=customer_id,
                currency=currency,
                amount=draft.credit,
                bill_id=bill["bill_id"],
            )
        if draft.discount and subscription["coupon_bills_left"] is not None:
            await self._change(subscription, coupon_bills_left=subscription["coupon_bills_left"] - 1)
        if draft.fee_discount:
            net = subscription["period_fee"] - draft.fee_discount
            await self._change(subscription, period_fee=net, period_discount=draft.fee_discount)
        await self._publish(_issued(bill))
        if bill["state"] == "PAID":
            await self._publish(_paid(bill))
        return bill

    async def _draft(
        self, subscription: Row, currency: str, waiting: Sequence[Row], lines: Sequence[Line], at: datetime
    ) -> Draft:
        coupon = await self._coupon(subscription) if subscription["coupon_bills_left"] != 0 else None
        owed = {row["currency"]: row["minor_units"] for row in await self._store.owed(subscription["customer_id"])}
        return bills.draft([line["amount"] for line in waiting], lines, coupon, owed.get(currency, 0), at)

    async def _net_fee(self, subscription: Row, price: Row, quantity: int) -> int:
        """What the current period costs by a price, with the coupon that its bill was made with."""
        coupon = await self._coupon(subscription)
        return bills.net_fee(price["fee"] * quantity, coupon, subscription["period_discount"])

    async def _coupon(self, subscription: Row) -> Row | None:
        return await self._store.coupons.get(subscription["coupon_id"]) if subscription["coupon_id"] else None

    async def _on_payment_settled(self, payment: Row) -> None:
        """In the transaction in which the payment changed its state."""
        if payment["bill_id"] is None:
            return
        bill = await self._locked_bill(payment["bill_id"])
        bill_id, payment_id = bill["bill_id"], payment["payment_id"]
        match payment["state"]:
            case "CAPTURED" if await self._is_late(bill):
                await self._charging.refund_later(payment, reason=f"bill {bill['state']}")
            case "CAPTURED":
                bill = await self._store.bills.change(
                    bill_id, state="PAID", next_attempt_time=None, payment_id=payment_id, pay_time=now()
                )
                await self._publish(_paid(bill))
                await self._revive(bill["subscription_id"])
            case "REQUIRES_ACTION" if bill["state"] in _OWED:
                # Until the customer comes back, or the payment is given up.
                await self._store.bills.change(bill_id, next_attempt_time=None, payment_id=payment_id)
            case "FAILED" | "VOIDED" if bill["state"] in _OWED:
                await self._note_failure(bill, payment_id)

    async def _is_late(self, bill: Row) -> bool:
        """Whether money comes for a bill that another payment has paid, or for what ended before it was paid for."""
        if bill["state"] != "UNCOLLECTIBLE":
            return bool(bill["state"] == "PAID")
        subscription = await self._locked(bill["subscription_id"])
        return subscription["state"] == "CANCELED" and not await self._store.has_bill(bill["subscription_id"], ["PAID"])

    async def _note_failure(self, bill: Row, payment_id: str | None) -> None:
        """Another attempt has failed: when is the next, or what becomes of the subscription?"""
        policy = await self._store.dunning_policy()
        failed, tried = bill["attempts"] + 1, bill["attempt_time"] or now()
        next_time = dunning.next_attempt(policy, failed, tried)
        bill = await self._store.bills.change(
            bill["bill_id"],
            state="PAST_DUE" if next_time is not None else "UNCOLLECTIBLE",
            attempts=failed,
            next_attempt_time=next_time,
            payment_id=payment_id or bill["payment_id"],
        )
        await self._publish(_past_due(bill))
        subscription = await self._locked(bill["subscription_id"])
        state = subscription["state"]
        if next_time is None and (policy.outcome == pb.DUNNING_OUTCOME_CANCEL or state == "INCOMPLETE"):
            if state != "CANCELED":
                canceled = await self._change(subscription, state="CANCELED", cancel_time=tried)
                await self._publish(_changed(canceled))
        elif state == "ACTIVE":
            await self._publish(_changed(await self._change(subscription, state="PAST_DUE")))

    async def _revive(self, subscription_id: str) -> None:
        """A bill has been paid: is it all that was open?"""
        subscription = await self._locked(subscription_id)
        if subscription["state"] in ("INCOMPLETE", "PAST_DUE") and not await self._is_owed_for(subscription):
            await self._publish(_changed(await self._change(subscription, state="ACTIVE")))

    async def _is_owed_for(self, subscription: Row) -> bool:
        return await self._store.has_bill(subscription["subscription_id"], _OWED)

    async def _method(self, subscription: Row) -> str:
        """The subscription's own payment method while it can be used, else "" for the customer's default."""
        chosen: str = subscription["payment_method_id"] or ""
        if chosen:
            try:
                await self._charging.usable_method(subscription["customer_id"], chosen)
            except (PaymentMethodNotFound, ProviderNotConfigured):
                return ""
        return chosen

    async def _redeemable(self, code: str, currency: str, at: datetime) -> Row:
        coupon = await self._store.coupons.find(code=code, lock=True)
        if coupon is None:
            raise CouponNotFound()
        if coupon["archived"] or (coupon["redeem_until"] is not None and coupon["redeem_until"] <= at):
            raise CouponNotUsable(why="it has ended")
        if coupon["max_redemptions"] and coupon["redemptions"] >= coupon["max_redemptions"]:
            raise CouponNotUsable(why="it has been used up")
        if coupon["currency"] and coupon["currency"] != currency:
            raise CouponNotUsable(why=f"it is for {coupon['currency']}")
        return coupon

    async def _changeable(self, subscription_id: str, at: datetime) -> Row:
        """A locked subscription in a paid period: nothing is given back that has not been paid."""
        subscription = await self._locked(subscription_id)
        if subscription["state"] not in _LIVE:
            raise SubscriptionStateConflict(state=subscription["state"], verb="changed")
        if subscription["period_end"] <= at or await self._is_owed_for(subscription):
            raise SubscriptionStateConflict(state=subscription["state"], verb="changed until its bill has been paid")
        return subscription

    async def _prices(self, subscription: Row, price_id: str) -> tuple[Row, Row]:
        """The price in force, and the one to be."""
        old = await self._store.price(subscription["price_id"])
        if not price_id or price_id == subscription["price_id"]:
            return old, old
        new = await self._store.price(price_id)
        if new["archived"]:
            raise PriceArchived(price_id=price_id)
        if new["currency"] != old["currency"]:
            raise CurrencyMismatch(expected=old["currency"], given=new["currency"])
        return old, new

    async def _locked(self, subscription_id: str) -> Row:
        return await self._store.subscriptions.require(subscription_id, lock=True)

    async def _locked_bill(self, bill_id: str) -> Row:
        """After its subscription, as everybody locks them: payment, subscription, bill."""
        bill = await self._store.bills.require(bill_id)
        await self._locked(bill["subscription_id"])
        return await self._store.bills.require(bill_id, lock=True)

    async def _change(self, subscription: Row, **changes: Any) -> Row:
        return await self._store.subscriptions.change(subscription["subscription_id"], **changes)

    async def _publish(self, message: Any) -> None:
        await self._events.publish(message, aggregate=message.subscription_id)


def _next(price: Row, start: datetime) -> datetime:
    """The end of a price's first period."""
    return boundary(start, price["interval_unit"], price["interval_count"], 1)


def _same_interval(old: Row, new: Row) -> bool:
    return (old["interval_unit"], old["interval_count"]) == (new["interval_unit"], new["interval_count"])
