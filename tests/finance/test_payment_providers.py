"""Stripe and PayPal over their protocols, webhooks through the edge, and a service that is killed while it pays."""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest

from nexus.finance.billing_service.v1 import payments_pb2 as pb
from nexus.finance.billing_service.v1.faults import AmountExceeded, ProviderNotConfigured
from nexus.type.v1.faults import DependencyUnavailable
from services.chassis.clients import Clients
from services.chassis.clock import now
from services.chassis.context import OPERATOR
from services.chassis.ids import new_id
from services.finance.billing_service.payments import may_charge
from tests.chaos.processes import replaced, send, status
from tests.finance.billing import Billing, reason
from tests.finance.provider_servers import PaypalServer, StripeServer
from tests.platforms import Platform, eventually

pytestmark = pytest.mark.xdist_group("payment providers")


@dataclass(frozen=True)
class World:
    platform: Platform
    stripe: StripeServer
    paypal: PaypalServer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A platform of the module's own, whose providers are here, and which looks for nothing by itself."""
    with StripeServer() as stripe, PaypalServer() as paypal:
        variables = {
            "NEXUS_BILLING_SERVICE_STRIPE_URL": stripe.url,
            "NEXUS_BILLING_SERVICE_PAYPAL_URL": paypal.url,
            "NEXUS_BILLING_SERVICE_ROUND_SECONDS": "3600",
            "NEXUS_BILLING_SERVICE_PROVIDER_TIMEOUT": "3",
            "NEXUS_LEDGER_MGR_PLAN_BASIS_POINTS": '{"partner": 500}',
        }
        platform = Platform(tmp_path_factory.mktemp("providers") / "home", variables=variables)
        platform.up("--only", "identity", "--only", "finance")
        yield World(platform, stripe, paypal)
        platform.down()


@pytest.fixture
async def billing(world: World) -> AsyncIterator[Billing]:
    clients = Clients(world.platform.settings, OPERATOR, None)
    async with httpx.AsyncClient(base_url=world.platform.http_url, timeout=20) as http:
        yield await Billing.of(await world.platform.new_tenant(), http, clients)
    await clients.stop()


async def set_stripe(billing: Billing, signing: str = "whsec_test") -> None:
    account = {"apiKey": "sk_test_good", "webhookSecret": signing}
    await billing.ok("/provider-accounts", stripe=account, makeDefault=True)


async def set_paypal(billing: Billing) -> None:
    account = {"clientId": "client", "clientSecret": "secret", "webhookId": "hook"}
    await billing.ok("/provider-accounts", paypal=account, makeDefault=True)


async def tell(billing: Billing, provider: str, notice: tuple[bytes, dict[str, str]]) -> httpx.Response:
    body, headers = notice
    path = f"/api/v1/billing/webhooks/{billing.tenant.tenant_id}/{provider}"
    return await billing.http.post(path, content=body, headers=headers)


async def test_stripe_authorizes_captures_and_refunds(world: World, billing: Billing) -> None:
    await set_stripe(billing)
    await billing.card("pm_card_visa")
    payment = await billing.authorize(1000)
    assert (payment.provider, payment.state) == (pb.PAYMENT_PROVIDER_STRIPE, pb.PAYMENT_STATE_AUTHORIZED)
    assert world.stripe.intents[payment.provider_payment_id]["metadata"]["nexus_payment"] == payment.payment_id
    captured = await billing.capture(payment, 700)
    assert (captured.payment.state, captured.payment.captured.minor_units) == (pb.PAYMENT_STATE_CAPTURED, 700)
    refunded = await billing.refund(payment, 200)
    assert refunded.payment.refunded.minor_units == 200
    assert refunded.operation.state == pb.OPERATION_STATE_SUCCEEDED
    voided = await billing.void(await billing.authorize(500))
    assert voided.payment.state == pb.PAYMENT_STATE_VOIDED


async def test_customers_of_a_live_tenant_cannot_pay_by_the_sandbox(world: World, billing: Billing) -> None:
    """Nor by a sandbox card from before, unless the tenant itself says that it rehearses."""
    old = await billing.card("card_ok")
    await billing.ok("/provider-accounts", stripe={"apiKey": "sk_test_good", "webhookSecret": "whsec_test"})
    sandbox: dict[str, Any] = {"providerToken": "card_ok", "provider": "PAYMENT_PROVIDER_SANDBOX"}
    assert reason(await billing.post("/payment-methods", **sandbox, requestId=new_id())) == "PROVIDER_NOT_CONFIGURED"
    for chosen in (old, ""):
        with pytest.raises(ProviderNotConfigured):
            await billing.authorize(payment_method_id=chosen)
    assert await billing.charges() == []
    await billing.card("pm_card_visa")  # the first account is the default
    assert (await billing.authorize()).provider == pb.PAYMENT_PROVIDER_STRIPE
    await billing.ok("/provider-accounts", sandbox={})
    await billing.card("card_ok", provider="PAYMENT_PROVIDER_SANDBOX")
    assert (await billing.authorize()).provider == pb.PAYMENT_PROVIDER_SANDBOX


@pytest.mark.parametrize(
    ("accounts", "production", "may"),
    [([], False, True), ([], True, False), (["STRIPE"], False, False), (["SANDBOX", "STRIPE"], True, True)],
)
def test_the_sandbox_takes_payments_where_nobody_sells_for_money(
    accounts: list[str], production: bool, may: bool
) -> None:
    assert may_charge("SANDBOX", accounts, production=production) == may
    assert not may_charge("PAYPAL", accounts, production=production)


async def test_what_subscriptions_bring_is_shared_by_the_tenant_s_plan(billing: Billing) -> None:
    await billing.rows("INSERT INTO puabo_os.plans (plan_id, title, modules, quotas) SELECT 'partner', $1, '{*}', '[]'")
    await billing.rows("UPDATE nexus.tenants SET plan_id = 'partner' WHERE tenant_id = $1")
    await billing.card()
    await billing.subscribe(await billing.price(1000))
    shares = "SELECT platform_share, tax FROM billing_service.bills WHERE tenant_id = $1 AND tax IS NOT NULL"
    async with asyncio.timeout(20):
        while not (found := await billing.rows(shares)):  # noqa: ASYNC110  an event brings it
            await asyncio.sleep(0.1)
    assert [(row["platform_share"], row["tax"]) for row in found] == [(50, 0)]


async def test_a_card_that_stripe_declines_cannot_be_swapped_in_the_browser(world: World, billing: Billing) -> None:
    await set_stripe(billing)
    await billing.card("pm_card_insufficient")
    payment = await billing.authorize()
    assert payment.failure.code == pb.FAILURE_CODE_INSUFFICIENT_FUNDS
    assert world.stripe.intents[payment.provider_payment_id]["status"] == "canceled"


async def test_a_provider_account_must_be_good(billing: Billing) -> None:
    refused = await billing.post("/provider-accounts", stripe={"apiKey": "sk_test_bad"})
    assert reason(refused) == "PROVIDER_REFUSED_ACCOUNT"
    refused = await billing.post("/provider-accounts", paypal={"clientId": "client", "clientSecret": "bad"})
    assert reason(refused) == "PROVIDER_REFUSED_ACCOUNT"


@pytest.mark.parametrize("provider", ["stripe", "paypal"])
async def test_an_answer_lost_after_the_charge_is_asked_for_again_under_the_same_key(
    world: World, billing: Billing, provider: str
) -> None:
    server = world.stripe if provider == "stripe" else world.paypal
    await (set_stripe(billing) if provider == "stripe" else set_paypal(billing))
    await billing.card("pm_card_visa")
    made = len(world.stripe.intents) + len(world.paypal.orders)
    server.lose_answers = 1
    request_id = new_id()
    lost = await billing.authorize(1000, capture=True, request_id=request_id)
    assert lost.state == pb.PAYMENT_STATE_PENDING
    again = await billing.authorize(1000, capture=True, request_id=request_id)
    assert (again.payment_id, again.state) == (lost.payment_id, pb.PAYMENT_STATE_CAPTURED)
    server.lose_answers = 1
    refund_id = new_id()
    assert (await billing.refund(again, 300, request_id=refund_id)).operation.state == pb.OPERATION_STATE_PENDING
    await billing.due_now()
    await billing.reconcile()
    found = await billing.refund(again, 300, request_id=refund_id)
    assert (found.operation.state, found.payment.refunded.minor_units) == (pb.OPERATION_STATE_SUCCEEDED, 300)
    assert len(world.stripe.intents) + len(world.paypal.orders) == made + 1
    assert (await billing.events("PaymentProcessed"), await billing.events("PaymentRefunded")) == (1, 1)


async def test_a_charge_whose_key_stripe_has_forgotten_is_looked_up_and_not_repeated(
    world: World, billing: Billing
) -> None:
    await set_stripe(billing)
    await billing.card("pm_card_visa")
    world.stripe.lose_answers = 1
    payment = await billing.authorize(capture=True)
    made = len(world.stripe.intents)
    await billing.age("2 days")
    world.stripe._answers.clear()
    await billing.due_now()
    await billing.reconcile()
    assert (await billing.payment(payment.payment_id)).payment.state == pb.PAYMENT_STATE_CAPTURED
    assert len(world.stripe.intents) == made


async def test_a_payment_that_turns_up_after_another_has_paid_the_bill_is_given_back(
    world: World, billing: Billing
) -> None:
    """Stripe forgets a charge for as long as it takes to try again, and then tells of it, twice."""
    await set_stripe(billing)
    await billing.card("pm_card_visa")
    world.stripe.lose_answers = 1
    made = await billing.subscribe(await billing.price(1000))
    known, world.stripe.intents = world.stripe.intents, {}
    await billing.age("2 days")
    await billing.due_now()
    await billing.reconcile()
    assert (await billing.run_dunning(now() + timedelta(hours=25)))[0] == 1
    world.stripe.intents |= known
    lost = (await billing.read("/payments"))["payments"][-1]["paymentId"]
    late = next(item for item in known.values() if item["metadata"]["nexus_payment"] == lost)
    for _ in range(2):
        assert (await tell(billing, "stripe", world.stripe.notice("payment_intent.succeeded", late))).status_code == 200
        await billing.reconcile()
    payments = (await billing.read("/payments"))["payments"]
    moved = [(int(item["captured"]["minorUnits"]), int(item["refunded"].get("minorUnits", 0))) for item in payments]
    assert moved == [(1000, 0), (1000, 1000)]  # the latest first
    assert [refund["payment_intent"] for refund in world.stripe.refunds if refund["amount"] == 1000] == [late["id"]]
    bill = (await billing.read(f"/bills/{made['bill']['billId']}"))["bill"]
    assert (bill["state"], bill["paymentId"]) == ("BILL_STATE_PAID", payments[0]["paymentId"])


async def test_paypal_captures_in_parts_and_refunds_each_capture(world: World, billing: Billing) -> None:
    await set_paypal(billing)
    await billing.card("token-1")
    payment = await billing.authorize(1000)
    assert (payment.provider, payment.state) == (pb.PAYMENT_PROVIDER_PAYPAL, pb.PAYMENT_STATE_AUTHORIZED)
    first = await billing.capture(payment, 600, keep_rest=True)
    assert first.payment.state == pb.PAYMENT_STATE_AUTHORIZED
    rest = await billing.capture(payment)
    assert (rest.payment.state, rest.payment.captured.minor_units) == (pb.PAYMENT_STATE_CAPTURED, 1000)
    assert (await billing.refund(payment, 500)).payment.refunded.minor_units == 500
    assert (await billing.refund(payment, 300)).payment.refunded.minor_units == 800
    too_much = await billing.refund(payment, 150)  # 100 are left of either capture
    assert too_much.operation.state == pb.OPERATION_STATE_FAILED
    amounts = [item["amount"]["value"] for item in _captures(world, payment)]
    assert amounts == ["6.00", "4.00"]
    await billing.card("declined")
    assert (await billing.authorize()).failure.code == pb.FAILURE_CODE_CARD_DECLINED


async def test_what_paypal_may_have_charged_is_not_charged_again(world: World, billing: Billing) -> None:
    """An order from the vault is charged as it is made, and PayPal cannot be asked for it when its key is forgotten."""
    await set_paypal(billing)
    await billing.card("token-1")
    made = len(world.paypal.orders)
    world.paypal.lose_answers = 1
    subscribed = await billing.subscribe(await billing.price(1000))
    await billing.age("6 hours")
    world.paypal._answers.clear()
    for _ in range(2):
        await billing.due_now()
        await billing.reconcile()
        await billing.run_dunning(now() + timedelta(days=3))
    (payment,) = (await billing.read("/payments"))["payments"]
    assert payment["state"] == "PAYMENT_STATE_PENDING"
    (order,) = list(world.paypal.orders.values())[made:]
    assert (await tell(billing, "paypal", world.paypal.notice("CHECKOUT.ORDER.COMPLETED", order))).status_code == 200
    bill = (await billing.read(f"/bills/{subscribed['bill']['billId']}"))["bill"]
    assert (bill["state"], bill["paymentId"]) == ("BILL_STATE_PAID", payment["paymentId"])
    assert len(world.paypal.orders) == made + 1


@pytest.mark.parametrize("found", [True, False])
async def test_what_paypal_cannot_be_asked_about_is_settled_by_who_has_looked(
    world: World, billing: Billing, found: bool
) -> None:
    await set_paypal(billing)
    await billing.card("token-1")
    other = await billing.authorize(500)
    world.paypal.lose_answers = 1
    payment = await billing.authorize(1000, capture=True)
    (order,) = (each for each in world.paypal.orders.values() if _custom_id(each) == payment.payment_id)
    path, there = f"/payments/{payment.payment_id}:settle", order["id"] if found else ""
    early = await billing.post(path, providerPaymentId=there)
    assert reason(early) == "PAYMENT_STATE_CONFLICT", "its key is still good"
    await billing.age("6 hours")
    world.paypal._answers.clear()
    (listed,) = (await billing.read("/pending-payments"))["payments"]
    assert listed["paymentId"] == payment.payment_id
    for wrong in (other.provider_payment_id, "none"):
        assert reason(await billing.post(path, providerPaymentId=wrong)) == "PAYMENT_DIFFERS"
    stranger = await Billing.of(await world.platform.new_tenant(), billing.http, billing.operator)
    assert reason(await stranger.post(path, providerPaymentId=there)) == "PAYMENT_NOT_FOUND"
    assert (await stranger.read("/pending-payments"))["payments"] == []
    twins = await asyncio.gather(*(billing.post(path, providerPaymentId=there) for _ in range(4)))
    settled = [answer.json()["payment"]["state"] for answer in twins if answer.status_code == 200]
    assert set(settled) == {"PAYMENT_STATE_CAPTURED" if found else "PAYMENT_STATE_FAILED"}
    assert {reason(answer) for answer in twins if answer.status_code != 200} <= {"PAYMENT_STATE_CONFLICT"}
    assert await billing.events("PaymentProcessed") == found
    assert await billing.events("PaymentFailed") == (not found)
    assert reason(await billing.post(path, providerPaymentId=there)) == "PAYMENT_STATE_CONFLICT"
    assert (await billing.read("/pending-payments"))["payments"] == []


def _custom_id(order: dict[str, Any]) -> str:
    return str(order["purchase_units"][0]["custom_id"])


@pytest.mark.parametrize("kind", ["capture", "refund"])
async def test_a_movement_that_never_reached_stripe_is_given_up_and_can_be_asked_for_again(
    world: World, billing: Billing, kind: str
) -> None:
    await set_stripe(billing)
    await billing.card("pm_card_visa")
    payment = await billing.authorize(1000, capture=kind == "refund")
    ask = getattr(billing, kind)
    intent = dict(world.stripe.intents[payment.provider_payment_id])
    world.stripe.lose_answers = 1
    request_id = new_id()
    assert (await ask(payment, 1000, request_id=request_id)).operation.state == pb.OPERATION_STATE_PENDING
    world.stripe.intents[payment.provider_payment_id] = intent  # as if the request had been lost, not the answer
    world.stripe.refunds.clear()
    world.stripe._answers.clear()
    with pytest.raises(AmountExceeded):
        await ask(payment, 1000)
    await billing.age("2 days")
    await billing.due_now()
    await billing.reconcile()
    lost = (await ask(payment, 1000, request_id=request_id)).operation
    assert (lost.state, lost.failure.code) == (pb.OPERATION_STATE_FAILED, pb.FAILURE_CODE_LOST)
    assert (await ask(payment, 1000)).operation.state == pb.OPERATION_STATE_SUCCEEDED
    assert (await billing.events("PaymentProcessed"), await billing.events("PaymentRefunded")) == (1, kind == "refund")


async def test_a_paypal_order_is_paid_when_its_payer_has_approved_it(world: World, billing: Billing) -> None:
    await set_paypal(billing)
    await billing.card("needs_approval")
    payment = await billing.authorize(capture=True)
    assert payment.state == pb.PAYMENT_STATE_REQUIRES_ACTION
    assert payment.action_url.endswith("/approve")
    order = world.paypal.orders[payment.provider_payment_id]
    order["status"] = "APPROVED"
    notice = world.paypal.notice("CHECKOUT.ORDER.APPROVED", order)
    for answer in await asyncio.gather(*(tell(billing, "paypal", notice) for _ in range(4))):
        assert answer.status_code == 200, answer.text
    assert (await billing.payment(payment.payment_id)).payment.state == pb.PAYMENT_STATE_CAPTURED
    assert await billing.events("PaymentProcessed") == 1
    forged = (notice[0].replace(b"APPROVED", b"COMPLETED"), notice[1])
    assert reason(await tell(billing, "paypal", forged)) == "WEBHOOK_SIGNATURE_INVALID"


async def test_notices_of_stripe_may_come_in_any_order_and_twice(world: World, billing: Billing) -> None:
    await set_stripe(billing)
    await billing.card("pm_card_visa")
    for order in itertools.permutations(range(3)):
        payment = await billing.authorize(1000)
        intent = world.stripe.intents[payment.provider_payment_id]
        notices = [world.stripe.notice("payment_intent.amount_capturable_updated", dict(intent))]
        intent |= {"status": "succeeded", "amount_received": 1000}  # captured and refunded in Stripe's dashboard
        notices.append(world.stripe.notice("payment_intent.succeeded", dict(intent)))
        refund = {
            "id": world.stripe.new("re"),
            "object": "refund",
            "status": "succeeded",
            "payment_intent": intent["id"],
            "amount": 400,
        }
        world.stripe.refunds.append(refund)
        notices.append(world.stripe.notice("refund.created", refund))
        before = await billing.events("PaymentProcessed"), await billing.events("PaymentRefunded")
        for place in (*order, *order):
            assert (await tell(billing, "stripe", notices[place])).status_code == 200
        now_is = (await billing.payment(payment.payment_id)).payment
        assert now_is.state == pb.PAYMENT_STATE_CAPTURED
        assert (now_is.captured.minor_units, now_is.refunded.minor_units) == (1000, 400)
        after = await billing.events("PaymentProcessed"), await billing.events("PaymentRefunded")
        assert after == (before[0] + 1, before[1] + 1)


async def test_a_dispute_at_stripe_is_heard_answered_and_lost(world: World, billing: Billing) -> None:
    await set_stripe(billing)
    await billing.card("pm_card_visa")
    payment = await billing.authorize(capture=True)
    dispute = {
        "id": world.stripe.new("dp"),
        "object": "dispute",
        "payment_intent": payment.provider_payment_id,
        "status": "needs_response",
        "amount": 1000,
        "reason": "fraudulent",
        "evidence_details": {"due_by": 1_900_000_000},
    }
    world.stripe.disputes.append(dispute)
    await tell(billing, "stripe", world.stripe.notice("charge.dispute.created", dict(dispute)))
    (heard,) = (await billing.read("/disputes"))["disputes"]
    answered = await billing.ok(f"/disputes/{heard['disputeId']}:answer", evidence="the parcel's receipt")
    assert answered["dispute"]["state"] == "DISPUTE_STATE_UNDER_REVIEW"
    dispute["status"] = "lost"
    await tell(billing, "stripe", world.stripe.notice("charge.dispute.closed", dict(dispute)))
    assert (await billing.read("/disputes"))["disputes"][0]["state"] == "DISPUTE_STATE_LOST"
    assert (await billing.events("PaymentDisputed"), await billing.events("DisputeClosed")) == (1, 1)


async def test_a_notice_must_be_signed_for_the_tenant_it_is_sent_to(world: World, billing: Billing) -> None:
    await set_stripe(billing)
    await billing.card("pm_card_visa")
    payment = await billing.authorize()
    intent = world.stripe.intents[payment.provider_payment_id]
    body, headers = world.stripe.notice("payment_intent.succeeded", intent)
    for notice in (
        world.stripe.notice("payment_intent.succeeded", intent, "whsec_other"),
        (body + b" ", headers),
        (body, {"content-type": "application/json"}),
        (body, {**headers, "stripe-signature": headers["stripe-signature"].replace("t=1", "t=0")}),
    ):
        assert reason(await tell(billing, "stripe", notice)) == "WEBHOOK_SIGNATURE_INVALID"
    assert (await tell(billing, "stripe", (body, headers))).status_code == 200
    others = await Billing.of(await world.platform.new_tenant(), billing.http, billing.operator)
    assert reason(await tell(others, "stripe", (body, headers))) == "PROVIDER_NOT_CONFIGURED"
    await set_stripe(others, signing="whsec_theirs")
    assert reason(await tell(others, "stripe", (body, headers))) == "WEBHOOK_SIGNATURE_INVALID"


async def until_heard(call: Callable[[], Awaitable[object]]) -> None:
    """Call a service that was away until our breaker has noticed that it is back."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(DependencyUnavailable):
                await call()
                return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("moment", ["charged", "answered"])
async def test_a_service_killed_while_it_pays_has_charged_once(world: World, billing: Billing, moment: str) -> None:
    """Between the provider's charge and our commit: the sandbox has charged `card_hang`, and its answer is late."""
    await billing.card("card_hang", provider="PAYMENT_PROVIDER_SANDBOX")
    request_id = new_id()
    calls = [asyncio.create_task(billing.authorize(capture=True, request_id=request_id)) for _ in range(3)]
    for _ in range(200):
        if await billing.charges():
            break
        await asyncio.sleep(0.02)
    assert len(await billing.charges()) == 1
    if moment == "answered":
        await asyncio.sleep(4.9)
    victim = status(world.platform, "finance")
    send(victim, signal.SIGKILL)
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(item, pb.Payment | DependencyUnavailable) for item in ended), ended
    eventually(lambda: replaced(world.platform, victim), 60)
    eventually(lambda: status(world.platform, "finance").state == "ready", 60)
    await billing.due_now()
    await until_heard(billing.reconcile)
    payment = await billing.authorize(capture=True, request_id=request_id)
    assert payment.state == pb.PAYMENT_STATE_CAPTURED
    assert [charge["amount"] for charge in await billing.charges()] == [1000]
    assert await billing.events("PaymentProcessed") == 1


def _captures(world: World, payment: pb.Payment) -> list[dict[str, dict[str, str]]]:
    unit = world.paypal.orders[payment.provider_payment_id]["purchase_units"][0]
    captures: list[dict[str, dict[str, str]]] = unit["payments"]["captures"]
    return captures
