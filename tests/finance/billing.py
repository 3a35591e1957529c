"""Billing as tests use it: services through stubs with the operator's identity, people through the edge."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg
import httpx

from nexus.finance.billing_service.v1 import payments_pb2 as pb
from nexus.finance.billing_service.v1.payments_pb2_grpc import PaymentServiceStub
from nexus.finance.billing_service.v1.subscriptions_pb2 import RunBillingRequest, RunDunningRequest
from nexus.finance.billing_service.v1.subscriptions_pb2_grpc import SubscriptionServiceStub
from nexus.finance.billing_service.v1.usage_pb2_grpc import UsageServiceStub
from nexus.type.v1.money_pb2 import Money
from services.chassis.clients import Clients
from services.chassis.clock import timestamp
from services.chassis.ids import new_id
from tests.platforms import SignedIn, Tenant

TIMEOUT = 25.0
WITHOUT_BODY = (":archive", ":resume", ":default")


def eur(amount: int) -> Money:
    return Money(currency="EUR", minor_units=amount)


def reason(answer: httpx.Response) -> Any:
    assert answer.status_code != 200, answer.text
    return answer.json()["details"][0]["reason"]


@dataclass
class Billing:
    """One tenant's billing, with an owner who manages it."""

    tenant: Tenant
    http: httpx.AsyncClient
    operator: Clients
    owner: SignedIn
    metadata: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        self.metadata = tuple(self.tenant.headers.items())
        self.payments = self.operator.stub(PaymentServiceStub)
        self.subscriptions = self.operator.stub(SubscriptionServiceStub)
        self.usage = self.operator.stub(UsageServiceStub)

    @classmethod
    async def of(cls, tenant: Tenant, http: httpx.AsyncClient, operator: Clients) -> "Billing":
        return cls(tenant, http, operator, await tenant.sign_in("owner"))

    # People, through the edge

    async def post(self, path: str, /, user: SignedIn | None = None, **body: Any) -> httpx.Response:
        headers = (user or self.owner).headers | self.tenant.headers
        content = None if path.endswith(WITHOUT_BODY) else body
        return await self.http.post(f"/api/v1/billing{path}", headers=headers, json=content)

    async def get(self, path: str, /, user: SignedIn | None = None, **query: Any) -> httpx.Response:
        headers = (user or self.owner).headers | self.tenant.headers
        return await self.http.get(f"/api/v1/billing{path}", headers=headers, params=query)

    async def ok(self, path: str, /, user: SignedIn | None = None, **body: Any) -> dict[str, Any]:
        answer = await self.post(path, user, **body)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    async def read(self, path: str, /, user: SignedIn | None = None, **query: Any) -> dict[str, Any]:
        answer = await self.get(path, user, **query)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    async def card(self, method: str = "card_ok", user: SignedIn | None = None, **more: Any) -> str:
        """Adds a payment method and makes it the default; returns its id."""
        body = {"providerToken": method, "makeDefault": True, "requestId": new_id(), **more}
        added = await self.ok("/payment-methods", user, **body)
        method_id: str = added["paymentMethod"]["paymentMethodId"]
        return method_id

    async def price(self, fee: int = 1000, plan_id: str = "", **price: Any) -> dict[str, Any]:
        if not plan_id:
            features = price.pop("features", [])
            made = await self.ok("/plans", key=f"plan-{new_id()}", name="Plan", features=features)
            plan_id = made["plan"]["planId"]
        body = {"fee": {"currency": "EUR", "minorUnits": str(fee)}, "interval": "INTERVAL_MONTH", **price}
        added: dict[str, Any] = (await self.ok(f"/plans/{plan_id}/prices", **body))["price"]
        return added

    async def subscribe(self, price: dict[str, Any], user: SignedIn | None = None, **more: Any) -> dict[str, Any]:
        return await self.ok("/subscriptions", user, priceId=price["priceId"], requestId=new_id(), **more)

    # Services, on its own socket

    async def authorize(self, amount: int = 1000, **more: Any) -> pb.Payment:
        request = {
            "customer_id": self.owner.user_id,
            "amount": eur(amount),
            "reference": "order-1",
            "request_id": new_id(),
            **more,
        }
        answer = await self.payments.Authorize(pb.AuthorizeRequest(**request), timeout=TIMEOUT, metadata=self.metadata)
        return answer.payment

    async def capture(self, payment: pb.Payment, amount: int | None = None, **more: Any) -> pb.CaptureResponse:
        if amount is not None:
            more["amount"] = eur(amount)
        request = pb.CaptureRequest(payment_id=payment.payment_id, **{"request_id": new_id(), **more})
        return await self.payments.Capture(request, timeout=TIMEOUT, metadata=self.metadata)

    async def refund(self, payment: pb.Payment, amount: int | None = None, **more: Any) -> pb.RefundResponse:
        if amount is not None:
            more["amount"] = eur(amount)
        request = pb.RefundRequest(payment_id=payment.payment_id, **{"request_id": new_id(), **more})
        return await self.payments.Refund(request, timeout=TIMEOUT, metadata=self.metadata)

    async def void(self, payment: pb.Payment, request_id: str = "") -> pb.VoidResponse:
        request = pb.VoidRequest(payment_id=payment.payment_id, request_id=request_id or new_id())
        return await self.payments.Void(request, timeout=TIMEOUT, metadata=self.metadata)

    async def payment(self, payment_id: str) -> pb.GetPaymentResponse:
        request = pb.GetPaymentRequest(payment_id=payment_id)
        return await self.payments.GetPayment(request, timeout=TIMEOUT, metadata=self.metadata)

    async def reconcile(self) -> pb.ReconcilePaymentsResponse:
        request = pb.ReconcilePaymentsRequest(limit=1000)
        return await self.payments.ReconcilePayments(request, timeout=60, metadata=self.metadata)

    async def run_billing(self, at: datetime) -> tuple[int, int]:
        request = RunBillingRequest(as_of_time=timestamp(at))
        answer = await self.subscriptions.RunBilling(request, timeout=60, metadata=self.metadata)
        return answer.billed, answer.ended

    async def run_dunning(self, at: datetime) -> tuple[int, int, int]:
        request = RunDunningRequest(as_of_time=timestamp(at))
        answer = await self.subscriptions.RunDunning(request, timeout=60, metadata=self.metadata)
        return answer.collected, answer.failed, answer.given_up

    # What is in the database

    async def rows(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """As the database's own user; `$1` is the tenant."""
        connection = await self.tenant.platform.admin()
        try:
            found: list[asyncpg.Record] = await connection.fetch(query, self.tenant.tenant_id, *arguments)
            return found
        finally:
            await connection.close()

    async def due_now(self) -> None:
        """Let the reconciliation look at everything in doubt at once, as after its waits and leases."""
        await self.rows(
            """
            UPDATE billing_service.payment_operations SET next_attempt_time = now(), lease_until = '-infinity'
            WHERE tenant_id = $1 AND state = 'PENDING'
            """
        )

    async def age(self, by: str) -> None:
        """Let everything in doubt be of so long ago."""
        await self.rows(
            """
            UPDATE billing_service.payment_operations SET create_time = now() - $2::text::interval
            WHERE tenant_id = $1 AND state = 'PENDING'
            """,
            by,
        )

    async def events(self, name: str) -> int:
        """How many events of a message have been published."""
        rows = await self.rows(
            "SELECT FROM billing_service.events WHERE tenant_id = $1 AND type = $2",
            f"nexus.finance.billing_service.v1.{name}",
        )
        return len(rows)

    async def charges(self) -> list[asyncpg.Record]:
        """What the sandbox has really charged."""
        return await self.rows(
            "SELECT charge_id, amount, state FROM billing_service.sandbox_charges WHERE tenant_id = $1"
        )
