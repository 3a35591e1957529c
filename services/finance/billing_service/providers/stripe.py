"""Stripe: Payment Intents through the official SDK.

Our keys are Stripe's idempotency keys, which it keeps for at least 24 hours; our ids are the intents' metadata, by
which one is found later. (https://docs.stripe.com/api/idempotent_requests, https://docs.stripe.com/payments/intents)
"""

import asyncio
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar

import stripe

from nexus.finance.billing_service.v1.customers_pb2 import StripeAccount
from services.finance.billing_service.providers.interface import (
    Card,
    Charge,
    DisputeNotice,
    DisputeState,
    InDoubt,
    MethodRefused,
    Movement,
    Notice,
    Refused,
    SignatureInvalid,
    Snapshot,
    State,
)

Answer = TypeVar("Answer")

_SCALE = {"ISK": 100, "UGX": 100}
"""Currencies without a minor unit that Stripe takes in hundredths all the same."""
_FAILURES = {
    "insufficient_funds": "INSUFFICIENT_FUNDS",
    "expired_card": "CARD_EXPIRED",
    "authentication_required": "AUTHENTICATION_REQUIRED",
    "payment_intent_authentication_failure": "AUTHENTICATION_REQUIRED",
    "lost_card": "FRAUD_SUSPECTED",
    "stolen_card": "FRAUD_SUSPECTED",
    "fraudulent": "FRAUD_SUSPECTED",
    "pickup_card": "FRAUD_SUSPECTED",
}
_STATES: dict[str, State] = {
    "requires_payment_method": "FAILED",
    "requires_confirmation": "REQUIRES_ACTION",
    "requires_action": "REQUIRES_ACTION",
    "processing": "PENDING",
    "requires_capture": "AUTHORIZED",
    "succeeded": "CAPTURED",
    "canceled": "VOIDED",
}
_DISPUTES: dict[str, DisputeState] = {
    "warning_needs_response": "NEEDS_ANSWER",
    "needs_response": "NEEDS_ANSWER",
    "warning_under_review": "UNDER_REVIEW",
    "under_review": "UNDER_REVIEW",
    "won": "WON",
    "warning_closed": "WON",
    "prevented": "WON",
    "lost": "LOST",
}
# Nothing is known of a request that failed so: it may have been carried out, now or the time before.
_UNKNOWN = (
    stripe.APIConnectionError,
    stripe.APIError,
    stripe.RateLimitError,
    stripe.IdempotencyError,
    stripe.AuthenticationError,
    stripe.PermissionError,
)


class StripeProvider:
    replay_window: ClassVar[timedelta] = timedelta(hours=23)

    def __init__(self, account: StripeAccount, url: str, timeout: float) -> None:
        self._webhook_secret = account.webhook_secret
        self._timeout = timeout
        self._http = stripe.HTTPXClient(timeout=timeout)
        client = stripe.StripeClient(
            account.api_key,
            base_addresses={"api": url},
            http_client=self._http,
            max_network_retries=0,  # the operations' own retries are rows
        )
        self._api: Any = client.v1

    async def close(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def check(self) -> None:
        try:
            await self._api.balance.retrieve_async()
        except stripe.StripeError as error:
            raise Refused("PROVIDER_REFUSED", str(error.code or error.http_status)) from error

    async def attach(self, token: str, customer_id: str, key: str) -> Card:
        try:
            customer = await self._ask(
                self._api.customers.create_async(
                    {"metadata": {"nexus_customer": customer_id}}, _once(f"{key}/customer")
                )
            )
            method = await self._ask(
                self._api.payment_methods.attach_async(token, {"customer": customer.id}, _once(f"{key}/attach"))
            )
        except (Refused, _Declined) as error:
            raise MethodRefused(str(error)) from error
        kind = method.to_dict()
        card = kind.get("card") or {}
        expiry = f"{card['exp_year']}-{card['exp_month']:02}" if card.get("exp_year") else ""
        return Card(method.id, customer.id, card.get("brand") or kind["type"], card.get("last4") or "", expiry)

    async def detach(self, token: str) -> None:
        await self._ask(self._api.payment_methods.detach_async(token))

    async def authorize(self, charge: Charge) -> Snapshot:
        parameters: dict[str, Any] = {
            "amount": charge.amount * _SCALE.get(charge.currency, 1),
            "currency": charge.currency.lower(),
            "customer": charge.provider_customer,
            "payment_method": charge.token,
            "confirm": True,
            "off_session": charge.off_session,
            "capture_method": "automatic" if charge.capture else "manual",
            "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            "metadata": {"nexus_payment": charge.payment_id, "nexus_operation": charge.operation_id},
        }
        if charge.description:
            parameters["description"] = charge.description
        try:
            intent = await self._ask(self._api.payment_intents.create_async(parameters, _once(charge.operation_id)))
        except _Declined as decline:
            return await self._given_up(decline, charge.operation_id)
        return await self._snapshot(intent)

    async def capture(self, payment: str, amount: int, currency: str, keep_rest: bool, key: str) -> Snapshot:
        return await self._change(
            payment,
            self._api.payment_intents.capture_async(
                payment, {"amount_to_capture": amount * _SCALE.get(currency, 1)}, _once(key)
            ),
        )

    async def void(self, payment: str, key: str) -> Snapshot:
        return await self._change(payment, self._api.payment_intents.cancel_async(payment, {}, _once(key)))

    async def refund(self, payment: str, amount: int, currency: str, key: str) -> Snapshot:
        await self._ask(
            self._api.refunds.create_async(
                {
                    "payment_intent": payment,
                    "amount": amount * _SCALE.get(currency, 1),
                    "metadata": {"nexus_operation": key},
                },
                _once(key),
            )
        )
        return await self.look_at(payment)

    async def confirm(self, payment: str, answer: str, key: str) -> Snapshot:
        """The customer's browser has confirmed the intent with `client_token`; only the outcome is left to see."""
        seen = await self.look_at(payment)
        if seen.state == "FAILED":  # the browser could try another card otherwise, after we have said that it failed
            await self._change(payment, self._api.payment_intents.cancel_async(payment, {}, _once(key)))
        return seen

    async def look_at(self, payment: str) -> Snapshot:
        return await self._snapshot(await self._ask(self._api.payment_intents.retrieve_async(payment)))

    async def find(self, charge: Charge) -> Snapshot | None:
        found = await self._ask(
            self._api.payment_intents.search_async({"query": f"metadata['nexus_payment']:'{charge.payment_id}'"})
        )
        return await self._snapshot(found.data[0]) if found.data else None

    async def answer_dispute(self, payment: str, dispute: str, evidence: str) -> Snapshot:
        answer = {"evidence": {"uncategorized_text": evidence}, "submit": True}
        await self._ask(self._api.disputes.update_async(dispute, answer))
        return await self.look_at(payment)

    async def notice(self, headers: Mapping[str, str], body: bytes) -> Notice:
        signature = headers.get("stripe-signature", "")
        if not self._webhook_secret:
            raise SignatureInvalid("the account has no webhook secret")
        try:
            event = stripe.Webhook.construct_event(body, signature, self._webhook_secret).to_dict()
        except (stripe.SignatureVerificationError, ValueError) as error:
            raise SignatureInvalid(str(error)) from error
        about = event["data"]["object"]
        is_intent = about.get("object") == "payment_intent"
        return Notice(event["id"], str((about["id"] if is_intent else about.get("payment_intent")) or ""))

    async def _change(self, payment: str, request: Awaitable[Any]) -> Snapshot:
        """Capture or cancel; if the intent is past that already, see how it stands."""
        try:
            return await self._snapshot(await self._ask(request))
        except Refused as refusal:
            if refusal.reason != "payment_intent_unexpected_state":
                raise
            return await self.look_at(payment)

    async def _given_up(self, decline: "_Declined", key: str) -> Snapshot:
        """A declined intent is cancelled, so that nobody confirms it with another card later."""
        if decline.intent:
            await self._change(
                decline.intent, self._api.payment_intents.cancel_async(decline.intent, {}, _once(f"{key}/x"))
            )
        return Snapshot(
            decline.intent, "FAILED", failure=_FAILURES.get(decline.why, "CARD_DECLINED"), failure_reason=decline.why
        )

    async def _snapshot(self, intent: Any) -> Snapshot:
        plain = intent.to_dict()
        scale = _SCALE.get(plain["currency"].upper(), 1)
        captured = plain.get("amount_received") or 0
        refunds: list[Any] = []
        disputes: list[Any] = []
        if captured:
            refunds, disputes = (
                [item.to_dict() for item in page.data]
                for page in await asyncio.gather(
                    self._ask(self._api.refunds.list_async({"payment_intent": plain["id"], "limit": 100})),
                    self._ask(self._api.disputes.list_async({"payment_intent": plain["id"], "limit": 100})),
                )
            )
        error = plain.get("last_payment_error") or {}
        why = error.get("decline_code") or error.get("code") or ""
        state = _STATES[plain["status"]]
        metadata = plain.get("metadata") or {}
        return Snapshot(
            provider_payment_id=plain["id"],
            payment_id=metadata.get("nexus_payment", ""),
            state=state,
            captures=(Movement(f"{plain['id']}/capture", captured // scale),) if captured else (),
            refunds=tuple(_refund(item, scale) for item in refunds),
            disputes=tuple(_dispute(item, scale) for item in disputes),
            failure=_FAILURES.get(why, "CARD_DECLINED") if state == "FAILED" else "",
            failure_reason=why,
            action_url=((plain.get("next_action") or {}).get("redirect_to_url") or {}).get("url", ""),
            client_token=plain.get("client_secret") or "",
        )

    async def _ask(self, request: Awaitable[Answer]) -> Answer:
        try:
            async with asyncio.timeout(self._timeout):
                return await request
        except (*_UNKNOWN, TimeoutError) as error:
            raise InDoubt(f"{type(error).__name__}: {error}"[:300]) from error
        except stripe.CardError as error:
            raise _Declined(error) from error
        except stripe.StripeError as error:
            raise Refused("PROVIDER_REFUSED", str(error.code or error)) from error


class _Declined(Exception):  # noqa: N818
    """The card was declined; Stripe has an intent of it all the same."""

    def __init__(self, error: stripe.CardError) -> None:
        super().__init__(str(error))
        body: Any = error.json_body or {}
        body = body.get("error", {})
        self.intent: str = (body.get("payment_intent") or {}).get("id", "")
        self.why: str = body.get("decline_code") or body.get("code") or ""


def _once(key: str) -> dict[str, str]:
    return {"idempotency_key": f"nexus-{key}"}


def _refund(refund: Any, scale: int) -> Movement:
    state: Any = {"succeeded": "SUCCEEDED", "failed": "FAILED", "canceled": "FAILED"}.get(refund["status"], "PENDING")
    ours = (refund.get("metadata") or {}).get("nexus_operation", "")
    return Movement(refund["id"], refund["amount"] // scale, ours, state)


def _dispute(dispute: Any, scale: int) -> DisputeNotice:
    due = (dispute.get("evidence_details") or {}).get("due_by")
    return DisputeNotice(
        dispute["id"],
        _DISPUTES.get(dispute["status"], "UNDER_REVIEW"),
        dispute["amount"] // scale,
        dispute["reason"],
        datetime.fromtimestamp(due, UTC) if due else None,
    )
