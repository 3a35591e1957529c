"""PayPal: Orders v2, Payments v2 and the vault, over REST.

Our keys are `PayPal-Request-Id`s, which orders keep for six hours; our ids are the purchase unit's `custom_id` and the
`invoice_id`s of captures and refunds. (https://developer.paypal.com/docs/api/orders/v2/)
"""

import time
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, ClassVar

import httpx

from nexus.finance.billing_service.v1.customers_pb2 import PaypalAccount
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

_WITHOUT_DECIMALS = {"HUF", "JPY", "TWD"}
"""PayPal takes whole units of these; of HUF and TWD, ISO 4217 has hundredths."""
_ISO_WHOLE = {"JPY"}
_FAILURES = {
    "INSTRUMENT_DECLINED": "CARD_DECLINED",
    "TRANSACTION_REFUSED": "CARD_DECLINED",
    "PAYER_CANNOT_PAY": "CARD_DECLINED",
    "INSUFFICIENT_FUNDS": "INSUFFICIENT_FUNDS",
    "CARD_EXPIRED": "CARD_EXPIRED",
    "PAYER_ACTION_REQUIRED": "AUTHENTICATION_REQUIRED",
}
_MARGIN_SECONDS = 60.0


class PaypalProvider:
    replay_window: ClassVar[timedelta] = timedelta(hours=5)

    def __init__(self, account: PaypalAccount, url: str, timeout: float) -> None:
        self._account = account
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout)
        self._token, self._token_until = "", 0.0

    async def close(self) -> None:
        await self._http.aclose()

    async def check(self) -> None:
        await self._access_token()

    async def attach(self, token: str, customer_id: str, key: str) -> Card:
        source = {"payment_source": {"token": {"id": token, "type": "SETUP_TOKEN"}}}
        try:
            vaulted = await self._post("/v3/vault/payment-tokens", source, key)
        except Refused as error:
            raise MethodRefused(error.reason) from error
        kind, details = next(iter(vaulted["payment_source"].items()))
        return Card(
            vaulted["id"],
            vaulted["customer"]["id"],
            details.get("brand", kind).lower(),
            details.get("last_digits", ""),
            details.get("expiry", ""),
        )

    async def detach(self, token: str) -> None:
        await self._call("DELETE", f"/v3/vault/payment-tokens/{token}")

    async def authorize(self, charge: Charge) -> Snapshot:
        source = "paypal" if charge.token.startswith("paypal") else "card"
        order = await self._post(
            "/v2/checkout/orders",
            {
                "intent": "CAPTURE" if charge.capture else "AUTHORIZE",
                "purchase_units": [
                    {
                        "custom_id": charge.payment_id,
                        "invoice_id": charge.operation_id,
                        "description": charge.description[:127] or charge.payment_id,
                        "amount": _money(charge.amount, charge.currency),
                    }
                ],
                "payment_source": {source: {"vault_id": charge.token}},
            },
            charge.operation_id,
        )
        if order["status"] == "PAYER_ACTION_REQUIRED" and charge.off_session:
            raise Refused("AUTHENTICATION_REQUIRED", "PAYER_ACTION_REQUIRED")
        return await self._go_on(order, charge.operation_id)

    async def capture(self, payment: str, amount: int, currency: str, keep_rest: bool, key: str) -> Snapshot:
        order = await self._order(payment)
        authorization = _payments(order, "authorizations")[0]["id"]
        await self._post(
            f"/v2/payments/authorizations/{authorization}/capture",
            {"amount": _money(amount, currency), "final_capture": not keep_rest, "invoice_id": key},
            key,
        )
        return await self.look_at(payment)

    async def void(self, payment: str, key: str) -> Snapshot:
        order = await self._order(payment)
        authorizations = _payments(order, "authorizations")
        if not authorizations:  # never approved: nothing is taken unless we ask for it, which we do not any more
            return Snapshot(payment, "VOIDED")
        if authorizations[0]["status"] in ("CREATED", "PARTIALLY_CAPTURED", "PENDING"):
            await self._post(f"/v2/payments/authorizations/{authorizations[0]['id']}/void", {}, key)
        return await self.look_at(payment)

    async def refund(self, payment: str, amount: int, currency: str, key: str) -> Snapshot:
        """Refunds belong to one capture: to the first that has enough left."""
        order = await self._order(payment)
        refunds = _payments(order, "refunds")
        if not any(refund.get("invoice_id") == key for refund in refunds):
            for capture in _payments(order, "captures"):
                given_back = sum(_minor(refund["amount"]) for refund in refunds if _is_of(refund, capture["id"]))
                if _minor(capture["amount"]) - given_back >= amount:
                    body = {"amount": _money(amount, currency), "invoice_id": key}
                    await self._post(f"/v2/payments/captures/{capture['id']}/refund", body, key)
                    break
            else:
                raise Refused("PROVIDER_REFUSED", "no single capture has so much left")
        return await self.look_at(payment)

    async def confirm(self, payment: str, answer: str, key: str) -> Snapshot:
        """The payer has approved the order at PayPal, or not; if so, take or reserve the money now."""
        return await self._go_on(await self._order(payment), key)

    async def look_at(self, payment: str) -> Snapshot:
        order = await self._order(payment)
        disputes: list[Any] = []
        for capture in _payments(order, "captures"):
            answer = await self._call("GET", f"/v1/customer/disputes?disputed_transaction_id={capture['id']}")
            disputes += answer.get("items", [])
        return _snapshot(order, disputes)

    async def find(self, charge: Charge) -> Snapshot | None:
        """PayPal does not look orders up by our id, and one from the vault is charged as it is made."""
        raise InDoubt("PayPal cannot be asked whether there is such an order")

    async def answer_dispute(self, payment: str, dispute: str, evidence: str) -> Snapshot:
        body = {"evidences": [{"evidence_type": "OTHER", "notes": evidence[:2000]}]}
        await self._post(f"/v1/customer/disputes/{dispute}/provide-evidence", body, f"evidence-{dispute}")
        return await self.look_at(payment)

    async def notice(self, headers: Mapping[str, str], body: bytes) -> Notice:
        names = ("auth_algo", "cert_url", "transmission_id", "transmission_sig", "transmission_time")
        signed = {name: headers.get(f"paypal-{name.replace('_', '-')}", "") for name in names}
        if not all(signed.values()) or not self._account.webhook_id:
            raise SignatureInvalid("headers are missing, or the account has no webhook id")
        try:
            event = httpx.Response(200, content=body).json()
        except ValueError as error:
            raise SignatureInvalid("not JSON") from error
        # PayPal compares the event byte for byte: it goes into the question as it came.
        question = httpx.Request("POST", "http://x", json={**signed, "webhook_id": self._account.webhook_id}).content
        answer = await self._call(
            "POST",
            "/v1/notifications/verify-webhook-signature",
            content=question[:-1] + b',"webhook_event":' + body + b"}",
        )
        if answer.get("verification_status") != "SUCCESS":
            raise SignatureInvalid(str(answer.get("verification_status")))
        return Notice(event["id"], _order_of(event.get("resource", {})))

    async def _go_on(self, order: Any, key: str) -> Snapshot:
        if order["status"] == "APPROVED":
            verb = "capture" if order["intent"] == "CAPTURE" else "authorize"
            order = await self._post(f"/v2/checkout/orders/{order['id']}/{verb}", {}, f"{key}/{verb}")
        return _snapshot(await self._order(order["id"]), [])

    async def _order(self, order_id: str) -> Any:
        return await self._call("GET", f"/v2/checkout/orders/{order_id}")

    async def _post(self, path: str, body: Any, key: str) -> Any:
        headers = {"paypal-request-id": f"nexus-{key}", "prefer": "return=representation"}
        return await self._call("POST", path, json=body, headers=headers)

    async def _call(self, verb: str, path: str, headers: Mapping[str, str] | None = None, **request: Any) -> Any:
        token = await self._access_token()
        sent = {"authorization": f"Bearer {token}", "content-type": "application/json", **(headers or {})}
        return await self._send(verb, path, headers=sent, **request)

    async def _access_token(self) -> str:
        if self._token_until < time.monotonic():
            answer = await self._send(
                "POST",
                "/v1/oauth2/token",
                auth=(self._account.client_id, self._account.client_secret),
                data={"grant_type": "client_credentials"},
            )
            self._token = answer["access_token"]
            self._token_until = time.monotonic() + float(answer["expires_in"]) - _MARGIN_SECONDS
        return self._token

    async def _send(self, verb: str, path: str, **request: Any) -> Any:
        try:
            answer = await self._http.request(verb, path, **request)
        except httpx.HTTPError as error:
            raise InDoubt(f"{type(error).__name__}: {error}") from error
        if answer.status_code >= 500 or answer.status_code in (401, 403, 408, 409, 429):
            raise InDoubt(f"{answer.status_code} {answer.text[:200]}")
        body = answer.json() if answer.content else {}
        if answer.status_code >= 400:
            why = next((detail["issue"] for detail in body.get("details", ())), body.get("name", "unknown"))
            raise Refused(_FAILURES.get(why, "PROVIDER_REFUSED"), why)
        return body


def _snapshot(order: Any, disputes: list[Any]) -> Snapshot:
    authorizations, captures = _payments(order, "authorizations"), _payments(order, "captures")
    failed = next((item for item in (*captures, *authorizations) if item["status"] in ("DECLINED", "DENIED")), None)
    why = ((failed or {}).get("status_details") or {}).get("reason", "")
    unit = order["purchase_units"][0]
    return Snapshot(
        provider_payment_id=order["id"],
        payment_id=unit.get("custom_id", ""),
        state=_state(order, authorizations, captures),
        captures=tuple(_movement(item) for item in captures),
        refunds=tuple(_movement(item) for item in _payments(order, "refunds")),
        disputes=tuple(_dispute(item) for item in disputes),
        failure=_FAILURES.get(why, "CARD_DECLINED") if failed else "",
        failure_reason=why,
        action_url=next((link["href"] for link in order.get("links", ()) if link["rel"] == "payer-action"), ""),
    )


def _state(order: Any, authorizations: list[Any], captures: list[Any]) -> State:
    if authorizations:
        state: dict[str, State] = {
            "CREATED": "AUTHORIZED",
            "PARTIALLY_CAPTURED": "AUTHORIZED",
            "CAPTURED": "CAPTURED",
            "VOIDED": "CAPTURED" if captures else "VOIDED",
            "DENIED": "FAILED",
        }
        return state.get(authorizations[0]["status"], "PENDING")
    if captures:
        status = captures[0]["status"]
        return "FAILED" if status in ("DECLINED", "FAILED") else "PENDING" if status == "PENDING" else "CAPTURED"
    orders: dict[str, State] = {"PAYER_ACTION_REQUIRED": "REQUIRES_ACTION", "APPROVED": "PENDING", "VOIDED": "VOIDED"}
    return orders.get(order["status"], "PENDING")


def _payments(order: Any, kind: str) -> list[Any]:
    found: list[Any] = (order["purchase_units"][0].get("payments") or {}).get(kind, [])
    return found


def _movement(item: Any) -> Movement:
    states: Any = {"PENDING": "PENDING", "DECLINED": "FAILED", "FAILED": "FAILED", "CANCELLED": "FAILED"}
    state = states.get(item["status"], "SUCCEEDED")
    return Movement(item["id"], _minor(item["amount"]), item.get("invoice_id", ""), state)


def _dispute(item: Any) -> DisputeNotice:
    outcome = (item.get("dispute_outcome") or {}).get("outcome_code", "")
    state: DisputeState = "NEEDS_ANSWER" if item["status"] == "WAITING_FOR_SELLER_RESPONSE" else "UNDER_REVIEW"
    if item["status"] == "RESOLVED":
        state = "LOST" if outcome == "RESOLVED_BUYER_FAVOUR" else "WON"
    return DisputeNotice(item["dispute_id"], state, _minor(item["dispute_amount"]), item["reason"].lower())


def _order_of(resource: Any) -> str:
    """The order that a webhook's resource belongs to."""
    related = (resource.get("supplementary_data") or {}).get("related_ids") or {}
    is_order = "purchase_units" in resource
    return str((resource.get("id") if is_order else related.get("order_id")) or "")


def _is_of(refund: Any, capture_id: str) -> bool:
    return any(link["rel"] == "up" and link["href"].endswith(f"/{capture_id}") for link in refund.get("links", ()))


def _money(minor_units: int, currency: str) -> dict[str, str]:
    """Raises Refused for an amount that PayPal cannot express."""
    value = Decimal(minor_units) if currency in _ISO_WHOLE else Decimal(minor_units).scaleb(-2)
    if currency in _WITHOUT_DECIMALS:
        if value != int(value):
            raise Refused("PROVIDER_REFUSED", f"PayPal takes whole {currency} only")
        value = Decimal(int(value))
    return {"currency_code": currency, "value": str(value)}


def _minor(money: Any) -> int:
    value = Decimal(money["value"])
    return int(value if money["currency_code"] in _ISO_WHOLE else value.scaleb(2))
