"""What has been paid for a subscription is sold: invoiced with its tax, booked, and shared with the platform."""

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import httpx
import pytest

from nexus.finance.invoice_gen.v1.invoice_gen_pb2 import IssueInvoiceRequest
from nexus.finance.invoice_gen.v1.invoice_gen_pb2_grpc import IssuingServiceStub
from nexus.finance.ledger_mgr.v1.faults import AccountNotFound
from nexus.finance.ledger_mgr.v1.ledger_pb2 import GetBalancesRequest
from nexus.finance.ledger_mgr.v1.ledger_pb2_grpc import LedgerServiceStub
from services.chassis.clients import Clients
from services.chassis.clock import now
from services.chassis.ids import new_id
from services.finance.billing_service.invoicing import part
from tests.finance.billing import Billing
from tests.finance.invoices import SELLER, content_message, line
from tests.finance.ledgers import problems
from tests.platforms import Tenant

POLICY = {
    "defaultCountry": "DE",
    "taxes": [{"country": "DE", "basisPoints": 1900}, {"country": "FR", "basisPoints": 2000}],
}
ACCOUNTS = (
    "providers:sandbox",
    "customers:prepaid",
    "liabilities:sales-tax",
    "income:subscriptions",
    "tenant:earnings",
    "platform:share",
)


async def put(billing: Billing, path: str, body: dict[str, Any]) -> None:
    answer = await billing.http.put(f"/api/v1{path}", headers=billing.owner.headers, json=body)
    assert answer.status_code == 200, answer.text


@pytest.fixture
async def billing(tenant: Tenant, http: httpx.AsyncClient, operator: Clients) -> Billing:
    billing = await Billing.of(tenant, http, operator)
    await put(billing, "/billing/invoicing-policy", {"policy": POLICY})
    await put(billing, "/invoicing/seller", SELLER)
    return billing


async def invoiced(billing: Billing, bill_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A bill and its invoice, as soon as it has one, and has been sold if it is paid."""
    async with asyncio.timeout(20):
        while True:
            bill = (await billing.read(f"/bills/{bill_id}"))["bill"]
            if bill.get("invoiceId") and (bill["state"] != "BILL_STATE_PAID" or "tax" in bill):
                break
            await asyncio.sleep(0.1)
    answer = await billing.http.get(f"/api/v1/invoices/{bill['invoiceId']}", headers=billing.owner.headers)
    assert answer.status_code == 200, answer.text
    return bill, answer.json()["invoice"]


async def balances(billing: Billing, expected: dict[str, int]) -> None:
    """Waits until each account has this much more on its credit side."""
    ledger = billing.operator.stub(LedgerServiceStub)
    found: dict[str, int] = {}
    for _ in range(200):
        with contextlib.suppress(AccountNotFound):  # nothing has been booked yet
            answer = await ledger.GetBalances(GetBalancesRequest(accounts=ACCOUNTS), metadata=billing.metadata)
            there = {item.account: item.credits - item.debits for item in answer.balances}
            found = {account: amount for account, amount in there.items() if amount}
        if found == expected:
            return
        await asyncio.sleep(0.1)
    assert found == expected


async def test_a_paid_bill_is_invoiced_with_its_tax_and_shared_with_the_platform(billing: Billing) -> None:
    await put(
        billing,
        "/billing/customer/details",
        {"details": {"name": "Claire Dubois", "lines": ["12 rue des Lilas"], "city": "Paris", "country": "FR"}},
    )
    await billing.card()
    made = await billing.subscribe(await billing.price(1200), quantity=3)
    bill, invoice = await invoiced(billing, made["bill"]["billId"])
    assert bill["tax"] == {"currency": "EUR", "minorUnits": "600"}
    assert (invoice["totals"]["total"], invoice["totals"]["tax"]) == ("3600", "600")
    assert invoice["amountDue"]["minorUnits"] == "0"
    assert invoice["content"]["customer"]["name"] == "Claire Dubois"
    (line,) = invoice["content"]["lines"]
    assert (line["quantity"], line["unitPrice"], line["tax"]["rateBasisPoints"]) == ("3", "1200", 2000)
    assert invoice["number"].endswith("00001")
    await balances(
        billing,
        {
            "providers:sandbox": -3600,
            "liabilities:sales-tax": 600,
            "tenant:earnings": 2400,
            "platform:share": 600,
        },
    )
    assert await problems(billing.tenant.platform, billing.tenant) == []


async def test_an_invoice_comes_to_what_its_bill_does_whatever_is_on_it(billing: Billing) -> None:
    await billing.card()
    await billing.ok("/coupons", code="THIRD", basisPoints=3333)
    small, large = await billing.price(1999), await billing.price(4999)
    made = await billing.subscribe(small, couponCode="THIRD")
    path = f"/subscriptions/{made['subscription']['subscriptionId']}"
    for price in (large, small, large):
        await billing.ok(f"{path}:change", priceId=price["priceId"])
    await billing.ok(f"{path}:change", quantity=7, proration="PRORATION_BILL_NOW")
    latest = (await billing.read("/bills"))["bills"][0]
    await billing.ok(f"/bills/{latest['billId']}:pay", requestId=new_id())
    for bill_id in (made["bill"]["billId"], latest["billId"]):
        bill, invoice = await invoiced(billing, bill_id)
        assert invoice["totals"]["total"] == bill["total"]["minorUnits"]
        assert invoice["totals"]["tax"] == bill["tax"]["minorUnits"]
        assert int(invoice["totals"]["allowances"]) > 0


@pytest.mark.parametrize("died", [False, True], ids=["", "and somebody dies who has just issued its invoice"])
async def test_a_bill_waits_for_the_letterhead_and_not_for_its_bookings(
    died: bool, other_tenant: Tenant, http: httpx.AsyncClient, operator: Clients
) -> None:
    billing = await Billing.of(other_tenant, http, operator)
    await put(billing, "/billing/invoicing-policy", {"policy": POLICY})
    await billing.card()
    made = await billing.subscribe(await billing.price(1190))
    await balances(
        billing,
        {"providers:sandbox": -1190, "liabilities:sales-tax": 190, "tenant:earnings": 800, "platform:share": 200},
    )
    refund = {"currency": "EUR", "minorUnits": "595"}
    await billing.ok(f"/payments/{made['payment']['paymentId']}:refund", amount=refund, requestId=new_id())
    await balances(
        billing,
        {"providers:sandbox": -595, "liabilities:sales-tax": 95, "tenant:earnings": 400, "platform:share": 100},
    )
    assert not (await billing.read(f"/bills/{made['bill']['billId']}"))["bill"].get("invoiceId")
    await put(billing, "/invoicing/seller", SELLER)
    if died:
        issued = IssueInvoiceRequest(
            reference=f"bill/{made['bill']['billId']}",
            content=content_message(line(1190), pricesIncludeTax=True),
        )
        await operator.stub(IssuingServiceStub).IssueInvoice(issued, metadata=billing.metadata)
    await billing.run_billing(now())
    _, invoice = await invoiced(billing, made["bill"]["billId"])
    assert (invoice["totals"]["tax"], invoice["amountCredited"]["minorUnits"]) == ("190", "595")


async def test_a_bill_that_is_not_paid_yet_is_invoiced_and_says_so_when_it_is(billing: Billing) -> None:
    card = await billing.card()
    made = await billing.subscribe(await billing.price(1190))
    await invoiced(billing, made["bill"]["billId"])
    path = f"/api/v1/billing/payment-methods/{card}"
    assert (await billing.http.delete(path, headers=billing.owner.headers)).status_code == 200
    await billing.run_billing(now() + timedelta(days=32))
    latest = (await billing.read("/bills"))["bills"][0]
    bill, invoice = await invoiced(billing, latest["billId"])
    assert bill["state"] == "BILL_STATE_PAST_DUE"
    assert (invoice["amountDue"]["minorUnits"], invoice["totals"]["tax"]) == ("1190", "190")
    await billing.card()
    await billing.ok(f"/bills/{bill['billId']}:pay", requestId=new_id())
    async with asyncio.timeout(20):
        while invoice["amountDue"]["minorUnits"] != "0":
            await asyncio.sleep(0.1)
            bill, invoice = await invoiced(billing, bill["billId"])
    assert bill["state"] == "BILL_STATE_PAID"
    assert invoice["amountPaid"]["minorUnits"] == "1190"


async def test_what_is_refunded_comes_from_everybody_who_got_some_of_it(billing: Billing) -> None:
    await billing.card()
    made = await billing.subscribe(await billing.price(999))
    bill, _ = await invoiced(billing, made["bill"]["billId"])
    path = f"/payments/{made['payment']['paymentId']}:refund"
    for amount in (1, 333, 1, 664):
        money = {"currency": "EUR", "minorUnits": str(amount)}
        await billing.ok(path, amount=money, requestId=new_id())
    await balances(billing, {})
    async with asyncio.timeout(20):
        while True:
            _, invoice = await invoiced(billing, bill["billId"])
            if invoice["state"] == "INVOICE_STATE_VOID":  # its credit note takes all of it back
                break
            await asyncio.sleep(0.1)
    assert invoice["amountCredited"]["minorUnits"] == "999"
    listed = await billing.http.get("/api/v1/invoices", headers=billing.owner.headers)
    notes = [each["totals"]["total"] for each in listed.json()["invoices"] if each.get("creditedInvoiceId")]
    assert sorted(map(int, notes)) == [1, 1, 333, 664]
    assert await problems(billing.tenant.platform, billing.tenant) == []


@pytest.mark.parametrize(("whole", "of"), [(160, 999), (0, 7), (7, 7), (1, 1000), (3, 0)])
def test_the_parts_of_what_goes_back_add_up_and_are_never_more(whole: int, of: int) -> None:
    for step in (1, 3, 250):
        given = parts = 0
        while given < of:
            amount = min(step, of - given)
            one = part(whole, of, given, amount)
            assert 0 <= one <= amount
            given, parts = given + amount, parts + one
        assert parts == (whole if of else 0)
