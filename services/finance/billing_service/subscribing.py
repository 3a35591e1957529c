"""Subscriptions from their first bill to their last: renewals, changes, collection, dunning."""

import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from google.protobuf import json_format
from google.protobuf.message import Message

from nexus.finance.billing_service.v1 import events_pb2 as events
from nexus.finance.billing_service.v1.faults import (
    BillNotFound,
    BillNotOpen,
    CouponNotFound,
    CouponNotUsable,
    CurrencyMismatch,
    CustomerNotFound,
    PaymentMethodNotFound,
    PaymentStateConflict,
    PriceArchived,
    PriceNotFound,
    ProviderNotConfigured,
    SubscriptionNotFound,
    SubscriptionStateConflict,
)
from nexus.finance.billing_service.v1.plans_pb2 import UsagePrice
from nexus.type.v1.faults import IdempotencyKeyReused
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import now, timestamp
from services.chassis.service import Service
from services.finance.billing_service import bills, dunning, rating
from services.finance.billing_service.bills import Draft, Line
from services.finance.billing_service.charging import Charging
from services.finance.billing_service.invoicing import tax_rate
from services.finance.billing_service.periods import boundary
from services.finance.billing_service.selling import Selling
from services.finance.billing_service.stores.plans import PlanStore
from services.finance.billing_service.stores.subscriptions import Row, SubscriptionStore

Proration = Literal["ON_NEXT_BILL", "BILL_NOW", "NONE"]

_BATCH = 200
_LOOK_AGAIN = timedelta(minutes=10)
_LIVE = ("TRIALING", "ACTIVE")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """What somebody wants to subscribe to."""

    price_id: str
    quantity: int
    coupon_code: str
    payment_method_id: str


class Subscribing:
    """The use cases of subscriptions, for the tenant of the call or of `acting_for`."""

    def __init__(self, service: Service, charging: Charging) -> None:
        self._database = service.database
        self._events = service.events
        self._charging = charging
        self._plans = PlanStore(service.database)
        self._store = SubscriptionStore(service.database)
        self._selling = Selling(service)
        charging.on_settled = self._on_payment_settled

    async def create(
        self, customer_id: str, terms: Terms, *, scope: str, request_id: str, request_hash: bytes
    ) -> tuple[Row, Row | None]:
        """The subscription with its first bill, collected; a repeat goes on with the collection."""
        async with self._database.transaction():
            subscription = await self._subscribe(customer_id, terms, scope, request_id, request_hash)
        if subscription["request_hash"] != request_hash:
            raise IdempotencyKeyReused(key=request_id)
        if subscription["state"] == "INCOMPLETE" and subscription["bill_id"] is not None:
            await self.collect(subscription["bill_id"], now(), off_session=False)
        subscription = await self.subscription(subscription["subscription_id"])
        bill = await self.bill(subscription["bill_id"]) if subscription["bill_id"] is not None else None
        return subscription, bill

    async def change(
        self, subscription_id: str, price_id: str, quantity: int, proration: Proration
    ) -> tuple[Row, Sequence[Line]]:
        at = now()
        async with self._database.transaction():
            subscription = await self._changeable(subscription_id, "changed", at)
            old, new = await self._prices(subscription, price_id)
            quantity = quantity or subscription["quantity"]
            if subscription["state"] == "TRIALING":
                changed = await self._store.set_terms(subscription_id, new["plan_id"], new["price_id"], quantity, 0)
                lines: Sequence[Line] = ()
            elif _same_interval(old, new):
                fee, lines = subscription["period_fee"], []
                if proration != "NONE":
                    fee = await self._net_fee(subscription, new, quantity)
                    lines = bills.change_lines(old, new, subscription, quantity, fee, at)
                changed = await self._store.set_terms(subscription_id, new["plan_id"], new["price_id"], quantity, fee)
                await self._store.insert_lines(subscription_id, None, lines)
                if proration == "BILL_NOW":
                    await self._make_bill(changed, new, (), None, at)
            else:
                changed, lines = await self._begin_anew(subscription, old, new, quantity, proration, at)
            await self._publish_change(changed)
        return changed, lines

    async def cancel(self, subscription_id: str, *, at_once: bool, prorate: bool) -> Row:
        at = now()
        async with self._database.transaction():
            subscription = await self._locked(subscription_id)
            if subscription["state"] == "CANCELED":
                raise SubscriptionStateConflict(state="CANCELED", verb="canceled")
            if subscription["period_end"] <= at:
                raise SubscriptionStateConflict(state=subscription["state"], verb="canceled until it has been billed")
            if not at_once and subscription["state"] != "INCOMPLETE":
                changed = await self._store.set_cancel_at_period_end(subscription_id, True)
            else:
                price = await self._price(subscription["price_id"])
                lines = await self._usage_lines(subscription, price, at)
                paid = subscription["state"] == "ACTIVE" and not await self._store.has_unpaid_bill(subscription_id)
                if prorate and paid:
                    given_back = bills.change_lines(price, price, subscription, 0, 0, at)
                    lines = [*lines, *given_back]
                await self._make_bill(subscription, price, lines, None, at)
                changed = await self._end(subscription, at)
            await self._publish_change(changed)
        if changed["state"] == "CANCELED":
            await self._let_go(subscription)
        return changed

    async def resume(self, subscription_id: str) -> Row:
        async with self._database.transaction():
            subscription = await self._locked(subscription_id)
            if subscription["state"] == "CANCELED":
                raise SubscriptionStateConflict(state="CANCELED", verb="resumed")
            changed = await self._store.set_cancel_at_period_end(subscription_id, False)
            await self._publish_change(changed)
        return changed

    async def preview(self, subscription_id: str, price_id: str, quantity: int) -> tuple[Row, Sequence[Any], int]:
        """The subscription, and the lines and the total of its next bill. Writes nothing."""
        at = now()
        subscription = await self.subscription(subscription_id)
        if subscription["state"] == "CANCELED":
            raise SubscriptionStateConflict(state="CANCELED", verb="billed")
        old, new = await self._prices(subscription, price_id)
        quantity = quantity or subscription["quantity"]
        lines = list(await self._usage_lines(subscription, old, subscription["period_end"], close=False))
        changes = price_id or quantity != subscription["quantity"]
        start = subscription["period_end"]
        if changes and subscription["state"] != "TRIALING":
            if _same_interval(old, new):
                fee = await self._net_fee(subscription, new, quantity)
                lines += bills.change_lines(old, new, subscription, quantity, fee, at)
            else:
                lines += bills.change_lines(old, new, subscription, 0, 0, at)
                start = at
        if not subscription["cancel_at_period_end"]:
            end = boundary(start, new["interval_unit"], new["interval_count"], 1)
            lines.append(bills.fee_line(new, new["name"], quantity, start, end))
        waiting = await self._store.waiting(subscription_id)
        draft = await self._draft(subscription, new["currency"], [line["amount"] for line in waiting], lines, at)
        return subscription, [*waiting, *draft.lines], draft.total

    async def run_billing(self, at: datetime) -> tuple[int, int]:
        """Bill every subscription whose period has ended, one period after the other; returns how many bills were
        made and how many subscriptions ended. One that cannot be billed is left to the next round. Paid bills that wait
        for their invoices get them."""
        await self._selling.invoice_rest()
        billed = ended = 0
        left: list[str] = []
        while due := await self._store.due(at, _BATCH, without=left):
            for subscription_id in due:
                try:
                    async with self._database.transaction():
                        subscription = await self._locked(subscription_id)
                        if subscription["state"] == "CANCELED" or subscription["period_end"] > at:
                            continue
                        renewed, bill = await self._renew(subscription)
                        await self._publish_change(renewed)
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

    async def run_dunning(self, at: datetime) -> dict[str, int]:
        """Try to collect every bill that is due; returns how many ended in which state."""
        outcomes: dict[str, int] = {}
        for bill_id in await self._store.to_collect(at, _BATCH):
            try:
                bill = await self.collect(bill_id, at, off_session=True)
            except Exception:
                logger.exception("a bill waits", extra={"bill": bill_id})
                continue
            outcomes[bill["state"]] = outcomes.get(bill["state"], 0) + 1
        return outcomes

    async def collect(self, bill_id: str, at: datetime, *, off_session: bool) -> Row:
        """Make an attempt to collect a bill, or go on with the one that is under way. An attempt is one payment, and
        the next one begins when it has failed."""
        async with self._database.transaction():
            bill = await self._locked_bill(bill_id)
            if bill["state"] not in ("OPEN", "PAST_DUE"):
                return bill
            await self._store.begin_attempt(bill_id, at, at + _LOOK_AGAIN)
            subscription = await self.subscription(bill["subscription_id"])
        try:
            await self._charging.authorize(
                bill["customer_id"],
                await self._method(subscription),
                Money(currency=bill["currency"], minor_units=bill["total"]),
                reference=f"bill/{bill_id}",
                capture=True,
                off_session=off_session,
                scope="bill",
                request_id=f"{bill_id}/{bill['attempts'] + 1}",
                request_hash=b"",
                bill_id=bill_id,
            )
        except (PaymentMethodNotFound, CustomerNotFound, ProviderNotConfigured) as fault:
            logger.info("a bill cannot be collected: %s", fault, extra={"bill": bill_id})
            async with self._database.transaction():
                bill = await self._locked_bill(bill_id)
                if bill["state"] in ("OPEN", "PAST_DUE"):
                    await self._note_failure(bill, None)
        return await self.bill(bill_id)

    async def pay(self, bill_id: str) -> Row:
        bill = await self.bill(bill_id)
        if bill["state"] == "UNCOLLECTIBLE":
            raise BillNotOpen(state=bill["state"])
        return await self.collect(bill_id, now(), off_session=False)

    async def subscription(self, subscription_id: str) -> Row:
        row = await self._store.by_id(subscription_id)
        if row is None:
            raise SubscriptionNotFound(subscription_id=subscription_id)
        return row

    async def bill(self, bill_id: str) -> Row:
        row = await self._store.bill(bill_id)
        if row is None:
            raise BillNotFound(bill_id=bill_id)
        return row

    async def _subscribe(self, customer_id: str, terms: Terms, scope: str, request_id: str, request_hash: bytes) -> Row:
        earlier = await self._store.requested(scope, request_id)
        if earlier is not None:
            return earlier
        at = now()
        price = await self._price(terms.price_id)
        if price["archived"]:
            raise PriceArchived(price_id=terms.price_id)
        coupon = await self._redeemable(terms.coupon_code, price["currency"], at) if terms.coupon_code else None
        trial_end = at + timedelta(days=price["trial_days"])
        in_trial = price["trial_days"] > 0
        anchor = trial_end if in_trial else at
        subscription = await self._store.insert(
            customer_id,
            price,
            terms.quantity,
            "TRIALING" if in_trial else "INCOMPLETE",
            at,
            trial_end if in_trial else boundary(at, price["interval_unit"], price["interval_count"], 1),
            -1 if in_trial else 0,
            anchor,
            0 if in_trial else price["fee"] * terms.quantity,
            coupon["coupon_id"] if coupon is not None else None,
            coupon["bills"] or None if coupon is not None else None,
            terms.payment_method_id or None,
            scope,
            request_id,
            request_hash,
        )
        if subscription is None:
            made = await self._store.requested(scope, request_id)
            assert made is not None, "the conflicting row was committed, so it can be read"
            return made
        if coupon is not None:
            await self._plans.redeem(coupon["coupon_id"])
        if not in_trial:
            fee = bills.fee_line(price, price["name"], terms.quantity, at, subscription["period_end"])
            bill = await self._make_bill(subscription, price, [fee], at, at)
            if bill is None or bill["state"] == "PAID":
                await self._store.set_state(subscription["subscription_id"], "ACTIVE")
        made = await self.subscription(subscription["subscription_id"])
        await self._publish_change(made)
        return made

    async def _renew(self, subscription: Row) -> tuple[Row, Row | None]:
        """End the period of a locked subscription, and begin the next one if there is to be one."""
        subscription_id, end = subscription["subscription_id"], subscription["period_end"]
        price = await self._price(subscription["price_id"])
        lines = await self._usage_lines(subscription, price, end)
        if subscription["state"] == "INCOMPLETE":
            return await self._end(subscription, end), None
        if subscription["cancel_at_period_end"]:
            bill = await self._make_bill(subscription, price, lines, None, end)
            return await self._store.cancel(subscription_id, end), bill
        index = subscription["period_index"] + 1
        next_end = boundary(subscription["anchor_time"], price["interval_unit"], price["interval_count"], index + 1)
        fee = bills.fee_line(price, price["name"], subscription["quantity"], end, next_end)
        state = "ACTIVE" if subscription["state"] == "TRIALING" else subscription["state"]
        renewed = await self._store.set_period(
            subscription_id, state, subscription["anchor_time"], index, end, next_end, fee.amount
        )
        return renewed, await self._make_bill(renewed, price, [*lines, fee], end, end)

    async def _begin_anew(
        self, subscription: Row, old: Row, new: Row, quantity: int, proration: Proration, at: datetime
    ) -> tuple[Row, Sequence[Line]]:
        """A price of another interval: its first period begins now, and is billed now."""
        subscription_id = subscription["subscription_id"]
        lines = list(await self._usage_lines(subscription, old, at))
        if proration != "NONE":
            lines += bills.change_lines(old, new, subscription, 0, 0, at)
        end = boundary(at, new["interval_unit"], new["interval_count"], 1)
        fee = bills.fee_line(new, new["name"], quantity, at, end)
        await self._store.set_terms(subscription_id, new["plan_id"], new["price_id"], quantity, fee.amount)
        changed = await self._store.set_period(subscription_id, "ACTIVE", at, 0, at, end, fee.amount)
        await self._make_bill(changed, new, [*lines, fee], at, at)
        return changed, [*lines, fee]

    async def _end(self, subscription: Row, at: datetime) -> Row:
        """What was never paid for is not owed."""
        if subscription["state"] == "INCOMPLETE" and subscription["bill_id"] is not None:
            bill = await self._locked_bill(subscription["bill_id"])
            if bill["state"] in ("OPEN", "PAST_DUE"):
                await self._store.set_bill(bill["bill_id"], "UNCOLLECTIBLE", bill["attempts"], None, None, None)
        return await self._store.cancel(subscription["subscription_id"], at)

    async def _let_go(self, subscription: Row) -> None:
        """Of the payment that the customer was to confirm, after the end of what it was for. One whose outcome is not
        known yet, or that nobody came to let go of, is given back if it turns out to be captured."""
        bill = await self.bill(subscription["bill_id"]) if subscription["state"] == "INCOMPLETE" else None
        if bill is not None and bill["state"] == "UNCOLLECTIBLE" and bill["payment_id"] is not None:
            with contextlib.suppress(PaymentStateConflict):
                await self._charging.void(
                    bill["payment_id"], scope="end", request_id=bill["payment_id"], request_hash=b""
                )

    async def _usage_lines(
        self, subscription: Row, price: Row, until: datetime, *, close: bool = True
    ) -> Sequence[Line]:
        """Use since the period began, by the price in force at its end. From then on it is closed: what is recorded
        later counts from `until` on."""
        if close:
            await self._plans.close_usage(subscription["customer_id"], until)
        lines = []
        for usage_price in usage_prices(price):
            meter = await self._plans.meters.get(usage_price.meter_key)
            assert meter is not None, "a price is added for meters that exist, and meters stay"
            start = subscription["period_start"]
            used = await self._plans.used(meter, subscription["customer_id"], start, until)
            if used:
                amount = rating.cost(usage_price, used)
                lines.append(Line("USAGE", f"Use of {meter['key']}", amount, start, until, price["price_id"], used))
        return lines

    async def _make_bill(
        self, subscription: Row, price: Row, lines: Sequence[Line], cycle_start: datetime | None, at: datetime
    ) -> Row | None:
        """In a transaction that holds the subscription. None when there is nothing to bill."""
        subscription_id, customer_id = subscription["subscription_id"], subscription["customer_id"]
        waiting = await self._store.waiting(subscription_id)
        if not lines and not waiting:
            return None
        await self._store.lock_customer(customer_id)
        currency = price["currency"]
        draft = await self._draft(subscription, currency, [line["amount"] for line in waiting], lines, at)
        state, due = ("OPEN", at) if draft.total else ("PAID", None)
        policy = await self._store.invoicing_policy()
        country = await self._store.country_of(customer_id) or policy.default_country
        bill = await self._store.insert_bill(
            subscription,
            currency,
            draft.total,
            cycle_start,
            state,
            due,
            at,
            country,
            tax_rate(policy.taxes, country),
        )
        assert bill is not None, "its subscription is locked, and its period has not been billed"
        await self._store.put_on_bill([line["line_id"] for line in waiting], bill["bill_id"])
        await self._store.insert_lines(subscription_id, bill["bill_id"], draft.lines)
        if draft.credit:
            await self._store.add_credit(customer_id, currency, draft.credit, bill["bill_id"])
        if draft.discount and subscription["coupon_bills_left"] is not None:
            await self._store.use_coupon(subscription_id)
        if draft.fee_discount:
            await self._store.take_off_fee(subscription_id, draft.fee_discount)
        await self._publish(events.BillIssued(**_about_bill(bill)), bill)
        if state == "PAID":
            await self._publish(events.BillPaid(**_about_bill(bill)), bill)
        return bill

    async def _draft(
        self, subscription: Row, currency: str, waiting: Sequence[int], lines: Sequence[Line], at: datetime
    ) -> Draft:
        coupon = None
        if subscription["coupon_id"] is not None and subscription["coupon_bills_left"] != 0:
            coupon = await self._plans.coupons.get(subscription["coupon_id"])
        owed = (await self._store.credits(subscription["customer_id"])).get(currency, 0)
        return bills.draft(waiting, lines, coupon, owed, at)

    async def _net_fee(self, subscription: Row, price: Row, quantity: int) -> int:
        """What the current period costs by a price, with the coupon that its bill was made with."""
        coupon = (
            await self._plans.coupons.get(subscription["coupon_id"]) if subscription["coupon_id"] is not None else None
        )
        return bills.net_fee(price["fee"] * quantity, coupon, subscription["period_discount"])

    async def _on_payment_settled(self, payment: Row) -> None:
        """In the transaction in which the payment changed its state."""
        if payment["bill_id"] is None:
            return
        bill = await self._locked_bill(payment["bill_id"])
        match payment["state"]:
            case "CAPTURED" if await self._is_late(bill):
                await self._charging.refund_later(payment, reason=f"bill {bill['state']}")
            case "CAPTURED":
                paid = await self._store.set_bill(
                    bill["bill_id"], "PAID", bill["attempts"], None, payment["payment_id"], now()
                )
                await self._publish(
                    events.BillPaid(payment_id=payment["payment_id"], **_about_bill(paid)),
                    paid,
                )
                await self._revive(paid["subscription_id"])
            case "REQUIRES_ACTION" if bill["state"] in ("OPEN", "PAST_DUE"):
                # Until the customer comes back, or the payment is given up.
                await self._store.set_bill(
                    bill["bill_id"], bill["state"], bill["attempts"], None, payment["payment_id"], None
                )
            case "FAILED" | "VOIDED" if bill["state"] in ("OPEN", "PAST_DUE"):
                await self._note_failure(bill, payment["payment_id"])

    async def _is_late(self, bill: Row) -> bool:
        """Whether money comes for a bill that another payment has paid, or for what ended before it was paid for."""
        if bill["state"] != "UNCOLLECTIBLE":
            return bool(bill["state"] == "PAID")
        subscription = await self._locked(bill["subscription_id"])
        return subscription["state"] == "CANCELED" and not await self._store.has_paid_bill(bill["subscription_id"])

    async def _note_failure(self, bill: Row, payment_id: str | None) -> None:
        """Another attempt has failed: when is the next, or what becomes of the subscription?"""
        policy = await self._store.policy()
        failed = bill["attempts"] + 1
        next_time = dunning.next_attempt(policy, failed, bill["attempt_time"] or now())
        state = "PAST_DUE" if next_time is not None else "UNCOLLECTIBLE"
        bill = await self._store.set_bill(bill["bill_id"], state, failed, next_time, payment_id, None)
        told = events.BillPastDue(attempts=failed, **_about_bill(bill))
        if next_time is not None:
            told.next_attempt_time.CopyFrom(timestamp(next_time))
        await self._publish(told, bill)
        subscription = await self._locked(bill["subscription_id"])
        changed = subscription
        if next_time is None and (policy.outcome == "CANCEL" or subscription["state"] == "INCOMPLETE"):
            if subscription["state"] != "CANCELED":
                changed = await self._store.cancel(subscription["subscription_id"], bill["attempt_time"] or now())
        elif subscription["state"] == "ACTIVE":
            changed = await self._store.set_state(subscription["subscription_id"], "PAST_DUE")
        if changed["state"] != subscription["state"]:
            await self._publish_change(changed)

    async def _revive(self, subscription_id: str) -> None:
        """A bill has been paid: is it all that was open?"""
        subscription = await self._locked(subscription_id)
        if subscription["state"] in ("INCOMPLETE", "PAST_DUE") and not await self._store.has_unpaid_bill(
            subscription_id
        ):
            await self._publish_change(await self._store.set_state(subscription_id, "ACTIVE"))

    async def _method(self, subscription: Row) -> str:
        """The subscription's own payment method while it can be used, else "" for the customer's default."""
        chosen: str | None = subscription["payment_method_id"]
        if chosen is not None:
            try:
                await self._charging.usable_method(subscription["customer_id"], chosen)
            except (PaymentMethodNotFound, ProviderNotConfigured):
                return ""
        return chosen or ""

    async def _redeemable(self, code: str, currency: str, at: datetime) -> Row:
        coupon = await self._plans.coupons.find(code=code, lock=True)
        if coupon is None:
            raise CouponNotFound()
        if coupon["archived"] or (coupon["redeem_until"] is not None and coupon["redeem_until"] <= at):
            raise CouponNotUsable(why="it has ended")
        if coupon["max_redemptions"] and coupon["redemptions"] >= coupon["max_redemptions"]:
            raise CouponNotUsable(why="it has been used up")
        if coupon["currency"] and coupon["currency"] != currency:
            raise CouponNotUsable(why=f"it is for {coupon['currency']}")
        return coupon

    async def _changeable(self, subscription_id: str, verb: str, at: datetime) -> Row:
        """A locked subscription in a paid period: nothing is given back that has not been paid."""
        subscription = await self._locked(subscription_id)
        if subscription["state"] not in _LIVE:
            raise SubscriptionStateConflict(state=subscription["state"], verb=verb)
        if subscription["period_end"] <= at or await self._store.has_unpaid_bill(subscription_id):
            raise SubscriptionStateConflict(state=subscription["state"], verb=f"{verb} until its bill has been paid")
        return subscription

    async def _prices(self, subscription: Row, price_id: str) -> tuple[Row, Row]:
        """The price in force, and the one to be."""
        old = await self._price(subscription["price_id"])
        if not price_id or price_id == subscription["price_id"]:
            return old, old
        new = await self._price(price_id)
        if new["archived"]:
            raise PriceArchived(price_id=price_id)
        if new["currency"] != old["currency"]:
            raise CurrencyMismatch(expected=old["currency"], given=new["currency"])
        return old, new

    async def _price(self, price_id: str) -> Row:
        price = await self._plans.price(price_id)
        if price is None:
            raise PriceNotFound(price_id=price_id)
        return price

    async def _locked(self, subscription_id: str) -> Row:
        row = await self._store.locked(subscription_id)
        if row is None:
            raise SubscriptionNotFound(subscription_id=subscription_id)
        return row

    async def _locked_bill(self, bill_id: str) -> Row:
        """After its subscription, as everybody locks them: payment, subscription, bill."""
        await self._locked((await self.bill(bill_id))["subscription_id"])
        row = await self._store.locked_bill(bill_id)
        assert row is not None, "bills stay"
        return row

    async def _publish_change(self, subscription: Row) -> None:
        message = events.SubscriptionChanged(
            subscription_id=subscription["subscription_id"],
            customer_id=subscription["customer_id"],
            plan_id=subscription["plan_id"],
            price_id=subscription["price_id"],
            quantity=subscription["quantity"],
            state=subscription["state"],
            period_end_time=timestamp(subscription["period_end"]),
        )
        await self._events.publish(message, aggregate=subscription["subscription_id"])

    async def _publish(self, message: Message, bill: Row) -> None:
        await self._events.publish(message, aggregate=bill["subscription_id"])


def usage_prices(price: Row) -> list[UsagePrice]:
    return [json_format.ParseDict(item, UsagePrice()) for item in json.loads(price["usage_prices"])]


def _same_interval(old: Row, new: Row) -> bool:
    return (old["interval_unit"], old["interval_count"]) == (new["interval_unit"], new["interval_count"])


def _about_bill(bill: Row) -> dict[str, Any]:
    return {
        "bill_id": bill["bill_id"],
        "subscription_id": bill["subscription_id"],
        "customer_id": bill["customer_id"],
        "total": Money(currency=bill["currency"], minor_units=bill["total"]),
    }
