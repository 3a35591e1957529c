"""Subscriptions are billed once a period, collected once a bill, and entitle while they are paid."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from nexus.finance.billing_service.v1.subscriptions_pb2 import CheckEntitlementRequest
from nexus.finance.billing_service.v1.usage_pb2 import IngestUsageRequest, UsageEvent
from services.chassis.clients import Clients
from services.chassis.clock import now
from services.chassis.ids import new_id
from tests.finance.billing import Billing, reason
from tests.platforms import Tenant


@pytest.fixture
async def billing(tenant: Tenant, http: httpx.AsyncClient, operator: Clients) -> Billing:
    return await Billing.of(tenant, http, operator)


def amounts(lines: list[dict[str, Any]]) -> dict[str, int]:
    """The sum of each kind of line."""
    sums: dict[str, int] = {}
    for line in lines:
        kind = line["kind"].removeprefix("LINE_KIND_")
        sums[kind] = sums.get(kind, 0) + int(line["amount"].get("minorUnits", 0))
    return sums


def end_of(subscription: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(subscription["periodEndTime"]).astimezone(UTC) + timedelta(milliseconds=1)


def total(bill: dict[str, Any]) -> int:
    return int(bill["total"].get("minorUnits", 0))


async def subscription_of(billing: Billing, made: dict[str, Any]) -> dict[str, Any]:
    found = await billing.read(f"/subscriptions/{made['subscription']['subscriptionId']}")
    result: dict[str, Any] = found["subscription"]
    return result


async def allowed(billing: Billing, feature: str) -> bool:
    request = CheckEntitlementRequest(customer_id=billing.owner.user_id, feature_key=feature)
    return (await billing.subscriptions.CheckEntitlement(request, metadata=billing.metadata)).allowed


async def test_a_subscription_is_billed_collected_and_renewed_once_a_period(billing: Billing) -> None:
    await billing.card()
    made = await billing.subscribe(await billing.price(1000), quantity=3)
    assert made["subscription"]["state"] == "SUBSCRIPTION_STATE_ACTIVE"
    assert (made["bill"]["state"], total(made["bill"])) == ("BILL_STATE_PAID", 3000)
    assert made["payment"]["state"] == "PAYMENT_STATE_CAPTURED"
    end = end_of(made["subscription"])
    runs = await asyncio.gather(*(billing.run_billing(end) for _ in range(4)))
    assert sum(billed for billed, _ in runs) == 1
    assert await billing.run_billing(end) == (0, 0)
    renewed = await subscription_of(billing, made)
    assert renewed["periodStartTime"] == made["subscription"]["periodEndTime"]
    bills = (await billing.read("/bills"))["bills"]
    assert [(bill["state"], total(bill)) for bill in bills] == [("BILL_STATE_PAID", 3000)] * 2
    assert [charge["amount"] for charge in await billing.charges()] == [3000, 3000]


async def test_periods_that_nobody_billed_in_time_are_billed_one_after_the_other(billing: Billing) -> None:
    await billing.card()
    made = await billing.subscribe(await billing.price(500))
    billed, _ = await billing.run_billing(now() + timedelta(days=100))
    assert billed == 3
    starts = await billing.rows("SELECT cycle_start FROM billing_service.bills WHERE tenant_id = $1")
    assert len({row["cycle_start"] for row in starts}) == 4
    assert end_of(await subscription_of(billing, made)) > now() + timedelta(days=100)


async def test_a_subscription_that_cannot_be_billed_does_not_keep_the_others_from_it(billing: Billing) -> None:
    await billing.card()
    broken, sound = await billing.price(500), await billing.price(700)
    made = [await billing.subscribe(price) for price in (broken, sound, broken, sound)]
    unknown = '[{"meterKey": "gone", "mode": "TIER_MODE_GRADUATED", "tiers": [{"unitAmount": "1"}]}]'
    set_usage = "UPDATE billing_service.prices SET usage_prices = $3 WHERE tenant_id = $1 AND price_id = $2"
    await billing.rows(set_usage, broken["priceId"], unknown)
    end = max(end_of(answer["subscription"]) for answer in made)
    assert await billing.run_billing(end) == (2, 0)
    await billing.rows(set_usage, broken["priceId"], "[]")
    assert await billing.run_billing(end) == (2, 0)
    assert sorted(charge["amount"] for charge in await billing.charges()) == [500] * 4 + [700] * 4


async def test_what_settles_a_payment_locks_subscriptions_before_their_bills(billing: Billing) -> None:
    """As a cancellation does, or the two would wait for each other."""
    await billing.card("card_3ds")
    made = await billing.subscribe(await billing.price(1000))
    subscription, bill = made["subscription"]["subscriptionId"], made["bill"]["billId"]
    holder, other = await billing.tenant.platform.admin(), await billing.tenant.platform.admin()
    try:
        async with holder.transaction():
            await holder.execute(
                "SELECT FROM billing_service.subscriptions WHERE subscription_id = $1 FOR UPDATE", subscription
            )
            path = f"/payments/{made['payment']['paymentId']}:confirm"
            confirming = asyncio.create_task(billing.ok(path, answer="approve"))
            waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid)))"
            async with asyncio.timeout(10):
                while not await other.fetchval(waits, holder.get_server_pid()):  # noqa: ASYNC110  it does not tell
                    await asyncio.sleep(0.02)
            await other.execute("SELECT FROM billing_service.bills WHERE bill_id = $1 FOR UPDATE NOWAIT", bill)
        assert (await confirming)["payment"]["state"] == "PAYMENT_STATE_CAPTURED"
    finally:
        await holder.close()
        await other.close()


async def test_subscribing_twice_with_one_key_makes_one_subscription(billing: Billing) -> None:
    await billing.card()
    price, request_id = await billing.price(), new_id()
    body = {"priceId": price["priceId"], "requestId": request_id}
    made = await asyncio.gather(*(billing.ok("/subscriptions", **body) for _ in range(10)))
    assert len({answer["subscription"]["subscriptionId"] for answer in made}) == 1
    assert len(await billing.charges()) == 1
    assert reason(await billing.post("/subscriptions", **body, quantity=2)) == "IDEMPOTENCY_KEY_REUSED"


async def test_the_scheduler_has_what_is_due_billed_and_collected(billing: Billing) -> None:
    await billing.card("card_ok")
    made = await billing.subscribe(await billing.price(1000))
    path = f"/subscriptions/{made['subscription']['subscriptionId']}"
    await billing.ok(f"{path}:change", quantity=3, proration="PRORATION_BILL_NOW")
    await billing.rows(
        """
        UPDATE billing_service.subscriptions SET period_start = period_start - interval '1 month',
            period_end = now() - interval '1 second', anchor_time = anchor_time - interval '1 month'
        WHERE tenant_id = $1
        """
    )
    due_now = """
        UPDATE scheduler.schedules SET next_time = date_bin('5 minutes', now(), '2000-01-01')
        WHERE tenant_id = $1 AND name LIKE 'billing-service.%' RETURNING name
    """
    at_once = "UPDATE scheduler.jobs SET run_time = now() WHERE tenant_id = $1 AND run_time > now()"
    async with asyncio.timeout(40):
        while len(await billing.rows(due_now)) < 2:  # noqa: ASYNC110  an event brings them
            await asyncio.sleep(0.2)
        while {bill["state"] for bill in (await billing.read("/bills"))["bills"]} != {"BILL_STATE_PAID"} or len(
            await billing.charges()
        ) < 3:
            await billing.rows(at_once)  # they are spread over a minute
            await asyncio.sleep(0.2)
    assert [charge["state"] for charge in await billing.charges()] == ["captured"] * 3


async def test_a_change_within_the_period_gives_back_and_charges_the_rest(billing: Billing) -> None:
    await billing.card()
    small, large = await billing.price(1000), await billing.price(5000)
    made = await billing.subscribe(small)
    path = f"/subscriptions/{made['subscription']['subscriptionId']}"
    preview = (await billing.read(f"{path}/preview", priceId=large["priceId"]))["bill"]
    changed = await billing.ok(f"{path}:change", priceId=large["priceId"])
    sums = amounts(changed["lines"])
    assert -1000 <= sums["PRORATION_CREDIT"] < -990
    assert 4990 < sums["PRORATION_CHARGE"] <= 5000
    back = await billing.ok(f"{path}:change", priceId=small["priceId"])
    difference = sums["PRORATION_CREDIT"] + sums["PRORATION_CHARGE"] + sum(amounts(back["lines"]).values())
    assert abs(difference) <= 1
    await billing.run_billing(end_of(made["subscription"]))
    bill = (await billing.read("/bills"))["bills"][0]
    assert total(bill) == 1000 + difference == sum(amounts(bill["lines"]).values())
    assert abs(total(preview) - (sums["PRORATION_CREDIT"] + sums["PRORATION_CHARGE"] + 5000)) <= 2


async def test_a_change_can_be_billed_at_once(billing: Billing) -> None:
    await billing.card()
    made = await billing.subscribe(await billing.price(1000))
    path = f"/subscriptions/{made['subscription']['subscriptionId']}"
    await billing.ok(f"{path}:change", quantity=4, proration="PRORATION_BILL_NOW")
    await billing.run_dunning(now() + timedelta(seconds=1))
    bill = (await billing.read("/bills"))["bills"][0]
    assert bill["state"] == "BILL_STATE_PAID"
    assert 2990 < total(bill) <= 3000


async def test_what_has_not_been_paid_for_is_not_changed(billing: Billing) -> None:
    await billing.card("card_pays_once")
    made = await billing.subscribe(await billing.price(1000))
    path = f"/subscriptions/{made['subscription']['subscriptionId']}"
    await billing.ok(f"{path}:change", quantity=4, proration="PRORATION_BILL_NOW")
    assert reason(await billing.post(f"{path}:change", quantity=1)) == "SUBSCRIPTION_STATE_CONFLICT"
    await billing.card("card_ok")
    bill = (await billing.read("/bills"))["bills"][0]
    await billing.ok(f"/bills/{bill['billId']}:pay", requestId=new_id())
    await billing.ok(f"{path}:change", quantity=1)


async def test_an_upgrade_without_proration_does_not_make_credit_later(billing: Billing) -> None:
    await billing.card()
    small, large = await billing.price(1000), await billing.price(90000)
    made = await billing.subscribe(small)
    path = f"/subscriptions/{made['subscription']['subscriptionId']}"
    free = await billing.ok(f"{path}:change", priceId=large["priceId"], proration="PRORATION_NONE")
    assert not free.get("lines")
    down = await billing.ok(f"{path}:change", priceId=small["priceId"])
    assert sum(amounts(down["lines"]).values()) == 0


async def test_another_interval_begins_a_new_period_that_is_billed_now(billing: Billing) -> None:
    await billing.card()
    monthly = await billing.price(1000)
    yearly = await billing.price(10000, interval="INTERVAL_YEAR")
    made = await billing.subscribe(monthly)
    path = f"/subscriptions/{made['subscription']['subscriptionId']}"
    changed = await billing.ok(f"{path}:change", priceId=yearly["priceId"])
    assert end_of(changed["subscription"]) > now() + timedelta(days=364)
    bill = (await billing.read("/bills"))["bills"][0]
    sums = amounts(bill["lines"])
    assert sums["FEE"] == 10000
    assert total(bill) == 10000 + sums["PRORATION_CREDIT"]
    assert -1000 <= sums["PRORATION_CREDIT"] < -990


async def test_a_cancelled_subscription_gives_credit_that_later_bills_use_up(billing: Billing) -> None:
    await billing.card()
    price = await billing.price(1000)
    made = await billing.subscribe(price)
    path = f"/subscriptions/{made['subscription']['subscriptionId']}"
    ended = await billing.ok(f"{path}:cancel", now=True, prorate=True)
    assert ended["subscription"]["state"] == "SUBSCRIPTION_STATE_CANCELED"
    (credit,) = (await billing.read("/customer"))["customer"]["credits"]
    owed = int(credit["minorUnits"])
    assert 990 < owed <= 1000
    again = await billing.subscribe(price)
    assert total(again["bill"]) == 1000 - owed
    assert again["subscription"]["state"] == "SUBSCRIPTION_STATE_ACTIVE"
    assert not (await billing.read("/customer"))["customer"].get("credits")
    assert reason(await billing.post(f"{path}:cancel")) == "SUBSCRIPTION_STATE_CONFLICT"


async def test_a_cancellation_at_the_end_of_the_period_can_be_taken_back(billing: Billing) -> None:
    await billing.card()
    made = await billing.subscribe(await billing.price(1000))
    path = f"/subscriptions/{made['subscription']['subscriptionId']}"
    assert (await billing.ok(f"{path}:cancel"))["subscription"]["cancelAtPeriodEnd"]
    assert not (await billing.ok(f"{path}:resume"))["subscription"].get("cancelAtPeriodEnd")
    await billing.ok(f"{path}:cancel")
    assert await billing.run_billing(end_of(made["subscription"])) == (0, 1)
    assert (await subscription_of(billing, made))["state"] == "SUBSCRIPTION_STATE_CANCELED"
    assert len(await billing.charges()) == 1


async def test_a_trial_is_free_and_then_paid(billing: Billing) -> None:
    await billing.card()
    made = await billing.subscribe(await billing.price(1000, trial_days=14, features=[{"key": "export"}]))
    assert made["subscription"]["state"] == "SUBSCRIPTION_STATE_TRIALING"
    assert "bill" not in made
    assert await allowed(billing, "export")
    await billing.run_billing(end_of(made["subscription"]))
    assert (await subscription_of(billing, made))["state"] == "SUBSCRIPTION_STATE_ACTIVE"
    assert [charge["amount"] for charge in await billing.charges()] == [1000]


async def test_a_bill_is_tried_again_by_the_policy_until_the_card_pays(billing: Billing) -> None:
    await billing.card("card_recovers")
    made = await billing.subscribe(await billing.price(1000, features=[{"key": "export"}]))
    assert made["subscription"]["state"] == "SUBSCRIPTION_STATE_INCOMPLETE"
    assert not await allowed(billing, "export")
    bill = made["bill"]
    assert (bill["state"], bill["attempts"]) == ("BILL_STATE_PAST_DUE", 1)
    assert await billing.run_dunning(now() + timedelta(hours=23)) == (0, 0, 0)
    assert await billing.run_dunning(now() + timedelta(hours=25)) == (0, 1, 0)
    assert await billing.run_dunning(now() + timedelta(hours=25 + 73)) == (1, 0, 0)
    assert (await subscription_of(billing, made))["state"] == "SUBSCRIPTION_STATE_ACTIVE"
    assert await allowed(billing, "export")
    assert sorted(charge["state"] for charge in await billing.charges()) == ["captured", "declined", "declined"]


async def test_a_bill_that_is_never_paid_ends_the_subscription(billing: Billing) -> None:
    policy = {"retryAfterHours": [1, 2], "outcome": "DUNNING_OUTCOME_CANCEL"}
    answer = await billing.http.put(
        "/api/v1/billing/dunning-policy", headers=billing.owner.headers, json={"policy": policy}
    )
    assert answer.status_code == 200, answer.text
    await billing.card("card_pays_once")
    made = await billing.subscribe(await billing.price(1000, features=[{"key": "export"}]))
    end = end_of(made["subscription"])
    await billing.run_billing(end)
    assert (await subscription_of(billing, made))["state"] == "SUBSCRIPTION_STATE_PAST_DUE"
    assert await allowed(billing, "export")
    await billing.run_dunning(end + timedelta(hours=1, minutes=1))
    assert await billing.run_dunning(end + timedelta(hours=4)) == (0, 0, 1)
    assert (await subscription_of(billing, made))["state"] == "SUBSCRIPTION_STATE_CANCELED"
    assert not await allowed(billing, "export")
    assert [charge["state"] for charge in await billing.charges()].count("captured") == 1


async def test_a_customer_pays_a_bill_with_another_card(billing: Billing) -> None:
    await billing.card("card_declined")
    made = await billing.subscribe(await billing.price(1000))
    await billing.card("card_ok")
    path = f"/bills/{made['bill']['billId']}:pay"
    paid = await asyncio.gather(*(billing.ok(path, requestId=new_id()) for _ in range(5)))
    assert {answer["bill"]["state"] for answer in paid} == {"BILL_STATE_PAID"}
    assert (await subscription_of(billing, made))["state"] == "SUBSCRIPTION_STATE_ACTIVE"
    assert [charge["state"] for charge in await billing.charges()].count("captured") == 1


async def test_a_first_payment_with_3d_secure_is_confirmed_by_the_customer(billing: Billing) -> None:
    await billing.card("card_3ds")
    made = await billing.subscribe(await billing.price(1000))
    assert made["payment"]["state"] == "PAYMENT_STATE_REQUIRES_ACTION"
    await billing.ok(f"/payments/{made['payment']['paymentId']}:confirm", answer="approve")
    assert (await subscription_of(billing, made))["state"] == "SUBSCRIPTION_STATE_ACTIVE"


async def test_a_subscription_that_ends_before_it_is_paid_takes_no_money(billing: Billing) -> None:
    await billing.card("card_3ds")
    made = await billing.subscribe(await billing.price(1000))
    await billing.ok(f"/subscriptions/{made['subscription']['subscriptionId']}:cancel")
    approved = await billing.ok(f"/payments/{made['payment']['paymentId']}:confirm", answer="approve")
    assert approved["payment"]["state"] == "PAYMENT_STATE_VOIDED"
    assert [charge["state"] for charge in await billing.charges()] == ["voided"]


async def test_money_that_comes_after_a_subscription_has_ended_unpaid_is_given_back(billing: Billing) -> None:
    await billing.card("card_timeout")
    made = await billing.subscribe(await billing.price(1000))
    assert made["subscription"]["state"] == "SUBSCRIPTION_STATE_INCOMPLETE"
    await billing.ok(f"/subscriptions/{made['subscription']['subscriptionId']}:cancel")
    for _ in range(2):  # once to hear of the money, once to give it back
        await billing.due_now()
        await billing.reconcile()
    (payment,) = (await billing.read("/payments"))["payments"]
    assert (payment["captured"]["minorUnits"], payment["refunded"]["minorUnits"]) == ("1000", "1000")
    (bill,) = (await billing.read("/bills"))["bills"]
    assert bill["state"] == "BILL_STATE_UNCOLLECTIBLE"
    assert (await subscription_of(billing, made))["state"] == "SUBSCRIPTION_STATE_CANCELED"
    assert await billing.events("PaymentRefunded") == 1


async def test_a_customer_without_a_card_has_an_open_bill(billing: Billing) -> None:
    made = await billing.subscribe(await billing.price(1000))
    assert (made["bill"]["state"], made["bill"]["attempts"]) == ("BILL_STATE_PAST_DUE", 1)
    assert await billing.charges() == []


async def test_a_coupon_takes_off_so_many_bills_and_is_used_up(billing: Billing) -> None:
    await billing.card()
    await billing.ok("/coupons", code="HALF", basisPoints=5000, bills=1, maxRedemptions=1)
    price = await billing.price(1001)
    made = await billing.subscribe(price, couponCode="HALF")
    assert total(made["bill"]) == 501
    await billing.run_billing(end_of(made["subscription"]))
    assert total((await billing.read("/bills"))["bills"][0]) == 1001
    used_up = await billing.post("/subscriptions", priceId=price["priceId"], couponCode="HALF", requestId=new_id())
    assert reason(used_up) == "COUPON_NOT_USABLE"


@pytest.mark.parametrize("taken_off", [{"basisPoints": 10000}, {"amount": {"currency": "EUR", "minorUnits": "5000"}}])
async def test_what_a_coupon_paid_is_not_given_back(billing: Billing, taken_off: dict[str, Any]) -> None:
    await billing.card()
    await billing.ok("/coupons", code="FREE", bills=1, **taken_off)
    large, small = await billing.price(5000), await billing.price(100)
    yearly = await billing.price(1000, interval="INTERVAL_YEAR")
    for proration in ("PRORATION_ON_NEXT_BILL", "PRORATION_BILL_NOW"):
        made = await billing.subscribe(large, couponCode="FREE")
        assert total(made["bill"]) == 0
        path = f"/subscriptions/{made['subscription']['subscriptionId']}"
        for price in (small, large, small):
            changed = await billing.ok(f"{path}:change", priceId=price["priceId"], proration=proration)
            assert changed.get("lines", []) == []
        renewed = (await billing.ok(f"{path}:change", priceId=yearly["priceId"]))["lines"]
        assert amounts(renewed) == {"FEE": 1000}
        await billing.run_dunning(now() + timedelta(seconds=1))
        await billing.ok(f"{path}:cancel", now=True)
    assert not (await billing.read("/customer"))["customer"].get("credits")


async def test_a_discount_goes_along_with_a_change_within_its_period(billing: Billing) -> None:
    await billing.card()
    await billing.ok("/coupons", code="HALF", basisPoints=5000, bills=1)
    small, large = await billing.price(1000), await billing.price(5000)
    made = await billing.subscribe(small, couponCode="HALF")
    path = f"/subscriptions/{made['subscription']['subscriptionId']}"
    up = amounts((await billing.ok(f"{path}:change", priceId=large["priceId"]))["lines"])
    assert -500 <= up["PRORATION_CREDIT"] < -490
    assert 2490 < up["PRORATION_CHARGE"] <= 2500
    down = amounts((await billing.ok(f"{path}:change", priceId=small["priceId"]))["lines"])
    assert abs(sum(up.values()) + sum(down.values())) <= 1
    ended = await billing.ok(f"{path}:cancel", now=True, prorate=True)
    assert ended["subscription"]["state"] == "SUBSCRIPTION_STATE_CANCELED"
    (credit,) = (await billing.read("/customer"))["customer"]["credits"]
    assert 490 < int(credit["minorUnits"]) <= 500


async def test_use_is_counted_once_billed_in_arrears_and_late_use_on_the_next_bill(billing: Billing) -> None:
    await billing.card()
    await billing.ok("/meters", key="calls", eventName="call", aggregation="AGGREGATION_SUM")
    tiers = [{"upTo": "10", "unitAmount": "0"}, {"unitAmount": "2.5"}]
    usage_prices = [{"meterKey": "calls", "mode": "TIER_MODE_GRADUATED", "tiers": tiers}]
    price = await billing.price(
        1000, usage_prices=usage_prices, features=[{"key": "api", "limit": "20", "meterKey": "calls"}]
    )
    made = await billing.subscribe(price)
    events = [
        {"eventId": f"e{number}", "name": "call", "customerId": billing.owner.user_id, "value": "1.5"}
        for number in range(13)
    ]
    sent = await asyncio.gather(*(billing.ok("/usage", events=events) for _ in range(4)))
    assert sum(answer.get("accepted", 0) for answer in sent) == 13
    assert sum(answer.get("duplicates", 0) for answer in sent) == 39
    (right,) = (await billing.read("/entitlements"))["entitlements"]
    assert (right["used"], right["available"]) == ("19.5", True)
    end = end_of(made["subscription"])
    await billing.run_billing(end)
    assert amounts((await billing.read("/bills"))["bills"][0]["lines"]) == {"FEE": 1000, "USAGE": 24}
    late = UsageEvent(event_id="late", name="call", customer_id=billing.owner.user_id, value="110")
    request = IngestUsageRequest(events=[late])
    assert (await billing.usage.IngestUsage(request, metadata=billing.metadata)).accepted == 1
    await billing.run_billing(end + timedelta(days=32))
    assert amounts((await billing.read("/bills"))["bills"][0]["lines"]) == {"FEE": 1000, "USAGE": 250}


@pytest.mark.parametrize(
    ("aggregation", "value"), [("COUNT", "4"), ("SUM", "16"), ("MAX", "9"), ("UNIQUE_COUNT", "3"), ("LATEST", "2")]
)
async def test_meters_add_up_in_their_way(billing: Billing, aggregation: str, value: str) -> None:
    prop: dict[str, Any] = {} if aggregation == "COUNT" else {"valueProperty": "size"}
    await billing.ok("/meters", key="m", eventName="upload", aggregation=f"AGGREGATION_{aggregation}", **prop)
    start = now() - timedelta(hours=1)
    events = [
        {
            "eventId": str(index),
            "name": "upload",
            "customerId": billing.owner.user_id,
            "eventTime": (start + timedelta(minutes=index)).isoformat(),
            "properties": {"size": size, "region": "eu" if index % 2 else "us"},
        }
        for index, size in enumerate(["9", "3", "2", "2"])
    ]
    await billing.ok("/usage", events=events)
    window: dict[str, Any] = {"startTime": start.isoformat(), "endTime": now().isoformat()}
    (whole,) = (await billing.read("/meters/m/usage", **window))["sums"]
    assert (whole["value"], whole["events"]) == (value, "4")
    groups = (await billing.read("/meters/m/usage", groupBy="region", window="USAGE_WINDOW_HOUR", **window))["sums"]
    assert {group["group"] for group in groups} == {"eu", "us"}
    assert sum(int(group["events"]) for group in groups) == 4


async def test_use_without_a_number_or_from_the_future_is_refused(billing: Billing) -> None:
    await billing.ok("/meters", key="m", eventName="upload", aggregation="AGGREGATION_SUM", valueProperty="size")
    event = {"eventId": "1", "name": "upload", "customerId": billing.owner.user_id}
    assert reason(await billing.post("/usage", events=[event])) == "EVENT_VALUE_INVALID"
    nan = {**event, "properties": {"size": "NaN"}}
    assert reason(await billing.post("/usage", events=[nan])) == "EVENT_VALUE_INVALID"
    future = {**event, "properties": {"size": "1"}, "eventTime": (now() + timedelta(days=1)).isoformat()}
    assert reason(await billing.post("/usage", events=[future])) == "EVENT_TIME_INVALID"


async def test_customers_help_themselves_to_their_own_only(billing: Billing, tenant: Tenant) -> None:
    await billing.card()
    price = await billing.price(1000)
    made = await billing.subscribe(price)
    stranger = await tenant.sign_in("member")
    path = f"/subscriptions/{made['subscription']['subscriptionId']}"
    for answer in (
        await billing.get(path, stranger),
        await billing.post(f"{path}:cancel", stranger),
        await billing.get(f"/bills/{made['bill']['billId']}", stranger),
        await billing.post(
            "/subscriptions", stranger, priceId=price["priceId"], requestId="r", customerId=billing.owner.user_id
        ),
        await billing.post("/plans", stranger, key="mine", name="Mine"),
    ):
        assert reason(answer) == "PERMISSION_MISSING"
    await billing.card(user=stranger)
    own = await billing.subscribe(price, stranger)
    own_path = f"/subscriptions/{own['subscription']['subscriptionId']}"
    free = await billing.post(f"{own_path}:change", stranger, quantity=9, proration="PRORATION_NONE")
    assert reason(free) == "PERMISSION_MISSING"
    assert reason(await billing.post(f"{own_path}:cancel", stranger, now=True, prorate=True)) == "PERMISSION_MISSING"


async def test_another_tenant_sees_nothing(
    billing: Billing, other_tenant: Tenant, http: httpx.AsyncClient, operator: Clients
) -> None:
    await billing.card()
    price = await billing.price(1000)
    made = await billing.subscribe(price)
    others = await Billing.of(other_tenant, http, operator)
    assert (await others.read("/plans")).get("plans", []) == []
    assert reason(await others.get(f"/plans/{price['planId']}")) == "PLAN_NOT_FOUND"
    assert reason(await others.get(f"/bills/{made['bill']['billId']}")) == "BILL_NOT_FOUND"
    subscribed = await others.post("/subscriptions", priceId=price["priceId"], requestId=new_id())
    assert reason(subscribed) == "PRICE_NOT_FOUND"
    assert await others.run_billing(end_of(made["subscription"])) == (0, 0)


async def test_a_new_user_is_a_customer(billing: Billing, tenant: Tenant) -> None:
    newcomer = await tenant.sign_in("member")
    for _ in range(150):
        answer = await billing.get("/customer", newcomer)
        if answer.status_code == 200:
            break
        await asyncio.sleep(0.1)
    assert answer.json()["customer"]["customerId"] == newcomer.user_id


async def test_prices_and_plans_off_sale_are_not_sold(billing: Billing) -> None:
    price = await billing.price(1000)
    await billing.ok(f"/prices/{price['priceId']}:archive")
    refused = await billing.post("/subscriptions", priceId=price["priceId"], requestId=new_id())
    assert reason(refused) == "PRICE_ARCHIVED"
    assert not (await billing.read(f"/plans/{price['planId']}"))["plan"].get("prices")
