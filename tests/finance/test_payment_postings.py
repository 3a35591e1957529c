"""Every capture, refund and dispute is in the ledger, once, and nothing else is."""

import asyncio

import httpx
import pytest

from nexus.finance.ledger_mgr.v1.ledger_pb2 import GetBalancesRequest
from nexus.finance.ledger_mgr.v1.ledger_pb2_grpc import LedgerServiceStub
from services.chassis.clients import Clients
from tests.finance.billing import Billing
from tests.platforms import Tenant


@pytest.fixture
async def billing(tenant: Tenant, http: httpx.AsyncClient, operator: Clients) -> Billing:
    return await Billing.of(tenant, http, operator)


async def balances(billing: Billing, *accounts: str) -> dict[str, int]:
    """What each account has on the side on which it grows, as soon as all that was published has been booked."""
    ledger = billing.operator.stub(LedgerServiceStub)
    waiting = """
        SELECT FROM billing_service.events e WHERE tenant_id = $1 AND (type ~ '[.](Payment|Dispute|BillPaid)')
        AND type !~ 'PaymentAuthorized|PaymentFailed|PaymentVoided'
        AND NOT EXISTS (SELECT FROM billing_service.handled_events h
                        WHERE (h.tenant_id, h.event_id) = (e.tenant_id, e.event_id))
    """
    for _ in range(200):
        if not await billing.rows(waiting):
            break
        await asyncio.sleep(0.1)
    assert not await billing.rows(waiting)
    answer = await ledger.GetBalances(GetBalancesRequest(accounts=accounts), metadata=billing.metadata)
    found = {item.account: item.debits - item.credits for item in answer.balances}
    return {name: found.get(name, 0) for name in accounts}


async def test_captures_and_refunds_are_booked_as_what_they_are(billing: Billing) -> None:
    await billing.card()
    payment = await billing.authorize(1000)
    await billing.capture(payment, 600, keep_rest=True)
    await billing.capture(payment, 300)
    await billing.refund(payment, 250)
    await billing.void(await billing.authorize(5000))
    await billing.subscribe(await billing.price(2000))
    accounts = ("providers:sandbox", "customers:prepaid", "income:subscriptions", "tenant:earnings", "platform:share")
    assert await balances(billing, *accounts) == {
        "providers:sandbox": 2650,
        "customers:prepaid": -650,
        "income:subscriptions": 0,
        "tenant:earnings": -1600,
        "platform:share": -400,
    }


@pytest.mark.parametrize(("evidence", "lost"), [("winning", 0), ("none", 1000)])
async def test_a_dispute_costs_what_is_lost_in_it(billing: Billing, evidence: str, lost: int) -> None:
    await billing.card("card_disputed")
    await billing.authorize(1000, capture=True)
    (dispute,) = (await billing.read("/disputes"))["disputes"]
    await billing.ok(f"/disputes/{dispute['disputeId']}:answer", evidence=evidence)
    assert await balances(billing, "providers:sandbox", "expenses:disputes", "customers:prepaid") == {
        "providers:sandbox": 1000 - lost,
        "expenses:disputes": lost,
        "customers:prepaid": -1000,
    }
