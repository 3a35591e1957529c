"""Small servers that speak as much of Stripe's and PayPal's protocols as billing uses, with state and idempotency keys.

They stand at the other end of a real connection: requests are parsed from bytes, notices are signed, an answer can be
lost after the money has moved.
"""

import hashlib
import hmac
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

Json = dict[str, Any]
Answer = tuple[int, Json]


@dataclass
class ProviderServer:
    """Answers a request once for each key, and can lose answers."""

    lose_answers: int = 0
    """So many answers to what moves money are lost, after it has moved."""
    requests: list[str] = field(default_factory=list)
    _answers: dict[str, Answer] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.RLock)
    _serial: int = 0

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                answer = outer.serve(self.command, self.path, dict(self.headers.items()), body)
                if answer is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                content = json.dumps(answer[1]).encode()
                self.send_response(answer[0])
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = handle_one  # noqa: N815  named by http.server

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Quietly."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def serve(self, verb: str, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        """None for an answer that is lost."""
        headers = {name.lower(): value for name, value in headers.items()}
        key = headers.get("idempotency-key") or headers.get("paypal-request-id") or ""
        with self._lock:
            self.requests.append(f"{verb} {urlsplit(path).path}")
            if key and key in self._answers:
                return self._answers[key]
            answer = self.handle(verb, urlsplit(path).path, urlsplit(path).query, headers, body)
            if key:
                self._answers[key] = answer
            if self.lose_answers and verb == "POST" and self.moves_money(urlsplit(path).path):
                self.lose_answers -= 1
                return None
            return answer

    def handle(self, verb: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Answer:
        raise NotImplementedError

    def moves_money(self, path: str) -> bool:
        raise NotImplementedError

    def new(self, prefix: str) -> str:
        self._serial += 1
        return f"{prefix}_{self._serial:06}"


@dataclass
class StripeServer(ProviderServer):
    """https://docs.stripe.com/api"""

    secret: str = "whsec_test"
    intents: dict[str, Json] = field(default_factory=dict)
    refunds: list[Json] = field(default_factory=list)
    disputes: list[Json] = field(default_factory=list)

    def moves_money(self, path: str) -> bool:
        return path.startswith(("/v1/payment_intents", "/v1/refunds"))

    def handle(self, verb: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Answer:
        if headers.get("authorization") != "Bearer sk_test_good":
            return 401, {"error": {"type": "invalid_request_error", "message": "Invalid API Key provided"}}
        form = _nested(parse_qsl((body if verb == "POST" else query.encode()).decode()))
        match [verb, *path.removeprefix("/v1/").split("/")]:
            case ["GET", "balance"]:
                return 200, {"object": "balance"}
            case ["POST", "customers"]:
                return 200, {"id": self.new("cus"), "object": "customer"}
            case ["POST", "payment_methods", method, "attach" | "detach"]:
                card = {"brand": "visa", "last4": "4242", "exp_month": 4, "exp_year": 2031}
                return 200, {"id": method, "object": "payment_method", "type": "card", "card": card}
            case ["POST", "payment_intents"]:
                return self._pay(form)
            case ["GET", "payment_intents", "search"]:
                found = [item for item in self.intents.values() if item["metadata"]["nexus_payment"] in form["query"]]
                return 200, {"object": "search_result", "data": found, "has_more": False, "url": path}
            case ["GET", "payment_intents", intent]:
                return 200, self.intents[intent]
            case ["POST", "payment_intents", intent, "capture"]:
                return self._capture(self.intents[intent], int(form["amount_to_capture"]))
            case ["POST", "payment_intents", intent, "cancel"]:
                return self._cancel(self.intents[intent])
            case ["POST", "refunds"]:
                refund = {
                    "id": self.new("re"),
                    "object": "refund",
                    "status": "succeeded",
                    **form,
                    "amount": int(form["amount"]),
                }
                self.refunds.append(refund)
                return 200, refund
            case ["GET", "refunds"]:
                return 200, _list([item for item in self.refunds if item["payment_intent"] == form["payment_intent"]])
            case ["GET", "disputes"]:
                return 200, _list([item for item in self.disputes if item["payment_intent"] == form["payment_intent"]])
            case ["POST", "disputes", dispute]:
                found = [item for item in self.disputes if item["id"] == dispute]
                found[0]["status"] = "under_review"
                return 200, found[0]
        return 404, {"error": {"type": "invalid_request_error", "code": "resource_missing", "message": path}}

    def _pay(self, form: Json) -> Answer:
        amount, manual = int(form["amount"]), form["capture_method"] == "manual"
        intent: Json = {
            "id": self.new("pi"),
            "object": "payment_intent",
            "amount": amount,
            "currency": form["currency"],
            "metadata": form["metadata"],
            "status": "requires_capture" if manual else "succeeded",
            "amount_received": 0 if manual else amount,
            "client_secret": "pi_secret",
        }
        self.intents[intent["id"]] = intent
        if form["payment_method"] == "pm_card_insufficient":
            error = {"type": "card_error", "code": "card_declined", "decline_code": "insufficient_funds"}
            intent |= {"status": "requires_payment_method", "amount_received": 0, "last_payment_error": error}
            return 402, {"error": {**error, "message": "Insufficient funds.", "payment_intent": intent}}
        if form["payment_method"] == "pm_card_3ds":
            intent |= {"status": "requires_action", "amount_received": 0}
        return 200, intent

    def _capture(self, intent: Json, amount: int) -> Answer:
        if intent["status"] != "requires_capture":
            return _unexpected_state()
        intent |= {"status": "succeeded", "amount_received": amount}
        return 200, intent

    def _cancel(self, intent: Json) -> Answer:
        if intent["status"] in ("succeeded", "canceled"):
            return _unexpected_state()
        intent["status"] = "canceled"
        return 200, intent

    def notice(self, kind: str, about: Json, secret: str = "") -> tuple[bytes, dict[str, str]]:
        """A webhook with its signature (https://docs.stripe.com/webhooks/signature)."""
        event = {"id": self.new("evt"), "object": "event", "type": kind, "data": {"object": about}}
        body, at = json.dumps(event).encode(), int(time.time())
        signature = hmac.new((secret or self.secret).encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
        return body, {"stripe-signature": f"t={at},v1={signature}", "content-type": "application/json"}


@dataclass
class PaypalServer(ProviderServer):
    """https://developer.paypal.com/docs/api/orders/v2/"""

    orders: dict[str, Json] = field(default_factory=dict)
    signed: set[str] = field(default_factory=set)
    """The notices, as PayPal sent them."""

    def moves_money(self, path: str) -> bool:
        return path.startswith(("/v2/checkout/orders", "/v2/payments"))

    def handle(self, verb: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Answer:
        if path == "/v1/oauth2/token":
            good = headers.get("authorization", "") == "Basic Y2xpZW50OnNlY3JldA=="
            return (200, {"access_token": "token", "expires_in": 3600}) if good else (401, {"name": "invalid_client"})
        if headers.get("authorization") != "Bearer token":
            return 401, {"name": "AUTHENTICATION_FAILURE"}
        sent = json.loads(body) if body else {}
        match [verb, *path.strip("/").split("/")]:
            case ["POST", "v3", "vault", "payment-tokens"]:
                token = sent["payment_source"]["token"]["id"]
                source = {"card": {"brand": "VISA", "last_digits": "1111", "expiry": "2031-04"}}
                return 201, {"id": token, "customer": {"id": self.new("customer")}, "payment_source": source}
            case ["POST", "v2", "checkout", "orders"]:
                return self._order(sent)
            case ["GET", "v2", "checkout", "orders", order]:
                known = self.orders.get(order)
                return (200, known) if known is not None else (404, {"name": "RESOURCE_NOT_FOUND"})
            case ["POST", "v2", "checkout", "orders", order, "authorize" | "capture" as step]:
                return 201, self._take(self.orders[order], step)
            case ["POST", "v2", "payments", "authorizations", authorization, "capture"]:
                order_, _ = self._find("authorizations", authorization)
                return 201, self._capture(order_, sent)
            case ["POST", "v2", "payments", "authorizations", authorization, "void"]:
                _, found = self._find("authorizations", authorization)
                found["status"] = "VOIDED"
                return 204, {}
            case ["POST", "v2", "payments", "captures", capture, "refund"]:
                order_, _ = self._find("captures", capture)
                link = {"rel": "up", "href": f"{self.url}/v2/payments/captures/{capture}"}
                refund = {"id": self.new("refund"), "status": "COMPLETED", "links": [link], **sent}
                _payments(order_, "refunds").append(refund)
                return 201, refund
            case ["GET", "v1", "customer", "disputes"]:
                return 200, {"items": []}
            case ["POST", "v1", "notifications", "verify-webhook-signature"]:
                raw = body.split(b'"webhook_event":', 1)[1][:-1].decode()
                good = raw in self.signed and sent["webhook_id"] == "hook" and sent["transmission_sig"] == "sig"
                return 200, {"verification_status": "SUCCESS" if good else "FAILURE"}
        return 404, {"name": "RESOURCE_NOT_FOUND"}

    def _order(self, sent: Json) -> Answer:
        vault_id = next(iter(sent["payment_source"].values()))["vault_id"]
        if vault_id == "declined":
            return 422, {"name": "UNPROCESSABLE_ENTITY", "details": [{"issue": "INSTRUMENT_DECLINED"}]}
        order: Json = {**sent, "id": self.new("order"), "status": "APPROVED"}
        self.orders[order["id"]] = order
        if vault_id == "needs_approval":
            link = {"rel": "payer-action", "href": f"{self.url}/approve"}
            order |= {"status": "PAYER_ACTION_REQUIRED", "links": [link]}
            return 200, order
        return 201, self._take(order, sent["intent"].lower())

    def _take(self, order: Json, step: str) -> Json:
        order["status"] = "COMPLETED"
        unit = order["purchase_units"][0]
        if step == "capture":
            self._capture(order, {"amount": unit["amount"]})
        else:
            authorization = {"id": self.new("authorization"), "status": "CREATED", "amount": unit["amount"]}
            _payments(order, "authorizations").append(authorization)
        return order

    def _capture(self, order: Json, sent: Json) -> Json:
        capture = {"id": self.new("capture"), "status": "COMPLETED", **sent}
        _payments(order, "captures").append(capture)
        for authorization in _payments(order, "authorizations"):
            authorization["status"] = "CAPTURED" if sent["final_capture"] else "PARTIALLY_CAPTURED"
        return capture

    def _find(self, kind: str, wanted: str) -> tuple[Json, Json]:
        return next(
            (order, item) for order in self.orders.values() for item in _payments(order, kind) if item["id"] == wanted
        )

    def notice(self, kind: str, resource: Json) -> tuple[bytes, dict[str, str]]:
        """A webhook that PayPal vouches for. The blanks are part of what is signed."""
        body = json.dumps({"id": self.new("WH"), "event_type": kind, "resource": resource}, indent=1)
        self.signed.add(body)
        names = ("auth-algo", "cert-url", "transmission-id", "transmission-time")
        headers = {f"paypal-{name}": "x" for name in names}
        return body.encode(), {**headers, "paypal-transmission-sig": "sig", "content-type": "application/json"}


def _payments(order: Json, kind: str) -> list[Json]:
    found: list[Json] = order["purchase_units"][0].setdefault("payments", {}).setdefault(kind, [])
    return found


def _unexpected_state() -> Answer:
    error = {"type": "invalid_request_error", "code": "payment_intent_unexpected_state", "message": "no"}
    return 400, {"error": error}


def _list(items: list[Json]) -> Json:
    return {"object": "list", "data": items, "has_more": False, "url": "/"}


def _nested(pairs: list[tuple[str, str]]) -> Json:
    """`a[b]=c` → {"a": {"b": "c"}}."""
    result: Json = {}
    for name, value in pairs:
        first, *rest = name.replace("]", "").split("[")
        target: Json = result
        for step in rest:
            target = target.setdefault(first, {})
            first = step
        target[first] = value
    return result
