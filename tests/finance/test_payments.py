"""Payments move money at most once, whatever is lost, repeated or done at the same time."""

import asyncio
from typing import Any

import httpx
import pytest

from nexus.finance.billing_service.v1 import payments_pb2 as pb
from nexus.finance.billing_service.v1.faults import (
    AmountExceeded,
    CurrencyMismatch,
    PaymentMethodNotFound,
    PaymentNotFound,
    PaymentStateConflict,
)
from nexus.type.v1.faults import IdempotencyKeyReused
from nexus.type.v1.money_pb2 import Money
from services.chassis.clients import Clients
from services.chassis.ids import new_id
from tests.finance.billing import Billing, reason
from tests.platforms import Tenant


@pytest.fixture
async def billing(tenant: Tenant, http: httpx.AsyncClient, operator: Clients) -> Billing:
    return await Billing.of(tenant, http, operator)


async def test_an_amount_is_authorized_captured_in_parts_and_refunded_in_parts(billing: Billing) -> None:
    await billing.card()
    payment = await billing.authorize(1000)
    assert payment.state == pb.PAYMENT_STATE_AUTHORIZED
    first = await billing.capture(payment, 300, keep_rest=True)
    assert (first.payment.state, first.payment.captured.minor_units) == (pb.PAYMENT_STATE_AUTHORIZED, 300)
    rest = await billing.capture(payment)
    assert (rest.payment.state, rest.payment.captured.minor_units) == (pb.PAYMENT_STATE_CAPTURED, 1000)
    part = await billing.refund(payment, 250)
    assert (part.operation.amount.minor_units, part.payment.refunded.minor_units) == (250, 250)
    everything = await billing.refund(payment)
    assert everything.payment.refunded.minor_units == 1000
    assert await billing.events("PaymentAuthorized") == 1
    assert await billing.events("PaymentProcessed") == 2
    assert await billing.events("PaymentRefunded") == 2


async def test_a_capture_that_does_not_keep_the_rest_releases_it(billing: Billing) -> None:
    await billing.card()
    payment = await billing.authorize(1000)
    captured = await billing.capture(payment, 400)
    assert (captured.payment.state, captured.payment.captured.minor_units) == (pb.PAYMENT_STATE_CAPTURED, 400)
    with pytest.raises(PaymentStateConflict):
        await billing.capture(payment, 1)
    with pytest.raises(AmountExceeded):
        await billing.refund(payment, 401)


async def test_nothing_is_captured_or_refunded_beyond_what_there_is(billing: Billing) -> None:
    await billing.card()
    payment = await billing.authorize(1000)
    with pytest.raises(AmountExceeded):
        await billing.capture(payment, 1001)
    dollar = pb.CaptureRequest(
        payment_id=payment.payment_id, amount=Money(currency="USD", minor_units=1), request_id=new_id()
    )
    with pytest.raises(CurrencyMismatch):
        await billing.payments.Capture(dollar, metadata=billing.metadata)
    with pytest.raises(AmountExceeded):
        await billing.refund(payment, 1)
    await billing.capture(payment)
    refunds = await asyncio.gather(*(billing.refund(payment, 300) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(item, AmountExceeded) for item in refunds) == 5
    assert (await billing.payment(payment.payment_id)).payment.refunded.minor_units == 900


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("card_declined", pb.FAILURE_CODE_CARD_DECLINED),
        ("card_insufficient_funds", pb.FAILURE_CODE_INSUFFICIENT_FUNDS),
        ("card_expired", pb.FAILURE_CODE_CARD_EXPIRED),
        ("card_stolen", pb.FAILURE_CODE_FRAUD_SUSPECTED),
    ],
)
async def test_a_decline_is_a_state_with_its_cause(
    billing: Billing, token: str, code: "pb.FailureCode.ValueType"
) -> None:
    await billing.card(token)
    request_id = new_id()
    payment = await billing.authorize(request_id=request_id)
    assert (payment.state, payment.failure.code) == (pb.PAYMENT_STATE_FAILED, code)
    assert payment.failure.retryable == (token in ("card_declined", "card_insufficient_funds"))
    again = await billing.authorize(request_id=request_id)
    assert again == payment
    assert len(await billing.charges()) == 1
    assert await billing.events("PaymentFailed") == 1


async def test_fifty_calls_with_one_key_make_one_charge(billing: Billing) -> None:
    await billing.card()
    request_id = new_id()
    payments = await asyncio.gather(*(billing.authorize(request_id=request_id, capture=True) for _ in range(50)))
    assert {payment.payment_id for payment in payments} == {payments[0].payment_id}
    assert {payment.state for payment in payments} == {pb.PAYMENT_STATE_CAPTURED}
    assert [charge["amount"] for charge in await billing.charges()] == [1000]
    assert await billing.events("PaymentProcessed") == 1


async def test_a_key_is_good_for_one_request(billing: Billing) -> None:
    await billing.card()
    request_id = new_id()
    await billing.authorize(1000, request_id=request_id)
    with pytest.raises(IdempotencyKeyReused):
        await billing.authorize(1001, request_id=request_id)


async def test_a_charge_whose_answer_is_lost_is_found_again_and_not_repeated(billing: Billing) -> None:
    await billing.card("card_timeout")
    request_id = new_id()
    payment = await billing.authorize(request_id=request_id, capture=True)
    assert payment.state == pb.PAYMENT_STATE_PENDING
    assert len(await billing.charges()) == 1
    with pytest.raises(PaymentStateConflict):
        await billing.void(payment)
    again = await billing.authorize(request_id=request_id, capture=True)
    assert (again.payment_id, again.state) == (payment.payment_id, pb.PAYMENT_STATE_CAPTURED)
    assert len(await billing.charges()) == 1
    assert await billing.events("PaymentProcessed") == 1


async def test_reconciliation_settles_what_is_in_doubt_without_anybody_asking_again(billing: Billing) -> None:
    for token in ("card_timeout", "card_unreachable"):
        await billing.card(token)
        payment = await billing.authorize(capture=True)
        assert payment.state == pb.PAYMENT_STATE_PENDING
        await billing.due_now()
        await billing.reconcile()
        assert (await billing.payment(payment.payment_id)).payment.state == pb.PAYMENT_STATE_CAPTURED
    assert len(await billing.charges()) == 2
    assert await billing.events("PaymentProcessed") == 2


async def test_a_capture_and_a_refund_asked_for_twenty_times_at_once_are_one_each(billing: Billing) -> None:
    await billing.card()
    payment, request_id = await billing.authorize(), new_id()
    captures = await asyncio.gather(*(billing.capture(payment, request_id=request_id) for _ in range(20)))
    refunds = await asyncio.gather(*(billing.refund(payment, request_id=f"{request_id}/back") for _ in range(20)))
    for answers in (captures, refunds):
        assert len({answer.operation.operation_id for answer in answers}) == 1
        assert {answer.operation.state for answer in answers} == {pb.OPERATION_STATE_SUCCEEDED}
    assert await billing.events("PaymentProcessed") == await billing.events("PaymentRefunded") == 1


async def test_an_authorization_is_released_once(billing: Billing) -> None:
    await billing.card()
    payment, request_id = await billing.authorize(), new_id()
    voided = await asyncio.gather(*(billing.void(payment, request_id) for _ in range(5)))
    assert {answer.payment.state for answer in voided} == {pb.PAYMENT_STATE_VOIDED}
    assert (await billing.void(payment)).payment.state == pb.PAYMENT_STATE_VOIDED
    with pytest.raises(PaymentStateConflict):
        await billing.capture(payment)
    assert await billing.events("PaymentVoided") == 1


@pytest.mark.parametrize(("answer", "state"), [("approve", "AUTHORIZED"), ("deny", "FAILED")])
async def test_a_customer_confirms_by_3d_secure_or_does_not(billing: Billing, answer: str, state: str) -> None:
    await billing.card("card_3ds")
    payment = await billing.authorize()
    assert payment.state == pb.PAYMENT_STATE_REQUIRES_ACTION
    assert payment.action_url
    confirmed = await billing.ok(f"/payments/{payment.payment_id}:confirm", answer=answer)
    assert confirmed["payment"]["state"] == f"PAYMENT_STATE_{state}"
    assert "actionUrl" not in confirmed["payment"] or not confirmed["payment"]["actionUrl"]


async def test_a_customer_who_is_away_cannot_confirm(billing: Billing) -> None:
    await billing.card("card_3ds")
    payment = await billing.authorize(off_session=True)
    assert payment.failure.code == pb.FAILURE_CODE_AUTHENTICATION_REQUIRED


async def test_a_customer_who_never_comes_back_leaves_a_failed_payment(billing: Billing) -> None:
    await billing.card("card_3ds")
    payment = await billing.authorize()
    await billing.rows(
        "UPDATE billing_service.payments SET update_time = now() - interval '1 day' WHERE tenant_id = $1"
    )
    await billing.reconcile()
    given_up = (await billing.payment(payment.payment_id)).payment
    assert (given_up.state, given_up.failure.code) == (pb.PAYMENT_STATE_FAILED, pb.FAILURE_CODE_ACTION_EXPIRED)


async def test_a_refund_that_the_provider_refuses_leaves_the_money_where_it_is(billing: Billing) -> None:
    await billing.card("card_refund_fails")
    payment = await billing.authorize(capture=True)
    refused = await billing.refund(payment, 100)
    assert refused.operation.state == pb.OPERATION_STATE_FAILED
    assert refused.payment.refunded.minor_units == 0
    assert await billing.events("PaymentRefunded") == 0


@pytest.mark.parametrize(("evidence", "state"), [("winning", "WON"), ("none", "LOST")])
async def test_a_dispute_is_answered_and_decided_once(billing: Billing, evidence: str, state: str) -> None:
    await billing.card("card_disputed")
    payment = await billing.authorize(capture=True)
    (dispute,) = (await billing.read("/disputes"))["disputes"]
    assert (dispute["paymentId"], dispute["state"]) == (payment.payment_id, "DISPUTE_STATE_NEEDS_ANSWER")
    assert payment.disputed.minor_units == 1000
    path = f"/disputes/{dispute['disputeId']}:answer"
    answered = await billing.ok(path, evidence=evidence)
    assert answered["dispute"]["state"] == f"DISPUTE_STATE_{state}"
    after = (await billing.payment(payment.payment_id)).payment
    assert after.disputed.minor_units == (0 if state == "WON" else 1000)
    assert reason(await billing.post(path, evidence=evidence)) == "DISPUTE_CLOSED"
    assert (await billing.events("PaymentDisputed"), await billing.events("DisputeClosed")) == (1, 1)


async def test_what_a_bank_has_taken_back_is_not_given_back_again(billing: Billing) -> None:
    await billing.card("card_disputed")
    payment = await billing.authorize(capture=True)
    with pytest.raises(AmountExceeded):
        await billing.refund(payment, 1)
    (dispute,) = (await billing.read("/disputes"))["disputes"]
    await billing.ok(f"/disputes/{dispute['disputeId']}:answer", evidence="winning")
    assert (await billing.refund(payment)).payment.refunded.minor_units == 1000


async def test_the_payment_of_an_order_is_refunded_with_its_order_only(billing: Billing) -> None:
    await billing.card()
    ordered = await billing.authorize(capture=True, reference="order/0197c1d2")
    path = f"/payments/{ordered.payment_id}:refund"
    assert reason(await billing.post(path, requestId=new_id())) == "PAYMENT_STATE_CONFLICT"
    assert (await billing.refund(ordered)).payment.refunded.minor_units == 1000  # by order-processor


async def test_a_removed_or_foreign_payment_method_is_not_charged(billing: Billing, tenant: Tenant) -> None:
    method_id = await billing.card()
    stranger = await tenant.sign_in("member")
    with pytest.raises(PaymentMethodNotFound):
        await billing.authorize(customer_id=stranger.user_id, payment_method_id=method_id)
    answer = await billing.http.delete(f"/api/v1/billing/payment-methods/{method_id}", headers=billing.owner.headers)
    assert answer.status_code == 200, answer.text
    with pytest.raises(PaymentMethodNotFound):
        await billing.authorize(payment_method_id=method_id)
    with pytest.raises(PaymentMethodNotFound):
        await billing.authorize()


async def test_another_tenant_sees_nothing_of_a_payment(
    billing: Billing, other_tenant: Tenant, http: httpx.AsyncClient, operator: Clients
) -> None:
    await billing.card()
    payment = await billing.authorize()
    others = await Billing.of(other_tenant, http, operator)
    for attempt in (others.payment(payment.payment_id), others.capture(payment), others.refund(payment)):
        with pytest.raises(PaymentNotFound):
            await attempt
    assert reason(await others.post(f"/payments/{payment.payment_id}:confirm")) == "PAYMENT_NOT_FOUND"
    assert (await others.read("/payments", customerId=billing.owner.user_id)).get("payments", []) == []


async def test_people_see_and_confirm_their_own_payments_only(billing: Billing, tenant: Tenant) -> None:
    await billing.card("card_3ds")
    payment = await billing.authorize()
    stranger = await tenant.sign_in("member")
    assert reason(await billing.get("/payments", stranger, customerId=billing.owner.user_id)) == "PERMISSION_MISSING"
    assert reason(await billing.post(f"/payments/{payment.payment_id}:confirm", stranger)) == "PERMISSION_MISSING"
    assert reason(await billing.post(f"/payments/{payment.payment_id}:refund", stranger, requestId="r")) == (
        "PERMISSION_MISSING"
    )


async def test_a_token_that_the_provider_does_not_know_is_refused(billing: Billing) -> None:
    refused = await billing.post("/payment-methods", providerToken="card_invalid", requestId=new_id())
    assert reason(refused) == "PAYMENT_METHOD_REFUSED"
    unknown = await billing.post(
        "/payment-methods", providerToken="pm_1", provider="PAYMENT_PROVIDER_STRIPE", requestId=new_id()
    )
    assert reason(unknown) == "PROVIDER_NOT_CONFIGURED"


async def test_a_payment_method_is_added_once_a_key(billing: Billing) -> None:
    body: dict[str, Any] = {"providerToken": "card_ok", "requestId": new_id()}
    added = await asyncio.gather(*(billing.ok("/payment-methods", **body) for _ in range(5)))
    assert len({answer["paymentMethod"]["paymentMethodId"] for answer in added}) == 1
    assert reason(await billing.post("/payment-methods", **{**body, "providerToken": "wallet_ok"})) == (
        "IDEMPOTENCY_KEY_REUSED"
    )


async def test_nothing_is_charged_for_nothing(billing: Billing) -> None:
    await billing.card()
    for amount in (0, -5):
        with pytest.raises(Exception, match="must be more than nothing"):
            await billing.authorize(amount)
