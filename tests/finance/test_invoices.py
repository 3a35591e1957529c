"""Invoices: drafted, finalized under numbers without gaps, immutable from then on, credited, paid, sent."""

import asyncio
import base64
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from io import BytesIO
from typing import Any

import asyncpg
import facturx  # type: ignore[import-untyped]
import httpx
import pytest
from google.protobuf import json_format
from PIL import Image

from nexus.finance.invoice_gen.v1 import events_pb2
from nexus.finance.invoice_gen.v1 import invoice_gen_pb2 as pb
from nexus.finance.invoice_gen.v1.faults import ContentInvalid, InvoiceNotFound, PaymentDiffers, ReferenceTaken
from nexus.finance.invoice_gen.v1.invoice_gen_pb2_grpc import IssuingServiceStub
from nexus.type.v1.money_pb2 import Money
from services.chassis.clients import Clients
from services.chassis.database import Database, acting_for
from services.chassis.ids import new_id
from services.chassis.spec import discover
from tests.finance.invoices import CUSTOMER, IBAN, SELLER, STANDARD, Invoices, content, content_message, line, reason
from tests.platforms import Platform, Tenant, eventually


@pytest.fixture
async def invoices(tenant: Tenant, http: httpx.AsyncClient) -> Invoices:
    result = Invoices(http, await tenant.sign_in("owner"))
    await result.set_seller()
    return result


@pytest.fixture
async def database(platform: Platform, tenant: Tenant) -> AsyncIterator[Database]:
    """The service's own role, acting for the test's tenant."""
    database = Database(platform.settings, discover()["invoice-gen"])
    await database.start()
    with acting_for(tenant.tenant_id):
        yield database
    await database.stop()


@pytest.fixture
async def issuing(operator: Clients) -> Any:
    return operator.stub(IssuingServiceStub)


async def told(platform: Platform, tenant: Tenant, kind: Any) -> list[Any]:
    """The tenant's events of a kind, as they were written."""
    admin = await platform.admin()
    try:
        rows = await admin.fetch(
            "SELECT payload FROM invoice_gen.events WHERE tenant_id = $1 AND type = $2 ORDER BY sequence",
            tenant.tenant_id,
            kind.DESCRIPTOR.full_name,
        )
    finally:
        await admin.close()
    return [kind.FromString(row["payload"]) for row in rows]


async def test_a_draft_has_its_amounts_and_no_number(invoices: Invoices) -> None:
    draft = await invoices.draft(line(10_000, "2"), adjustments=[{"reason": "Versand", "amount": 500, "tax": STANDARD}])
    assert draft["state"] == "INVOICE_STATE_DRAFT"
    assert draft["number"] == ""
    assert draft["totals"]["total"] == "24395"
    assert await invoices.read(draft) == draft


async def test_finalized_invoices_are_numbered_one_after_the_other(invoices: Invoices) -> None:
    finals = [await invoices.final() for _ in range(3)]
    year = int(finals[0]["issueDate"][:4])
    assert [final["number"] for final in finals] == [f"INV-{year}-{at:05}" for at in (1, 2, 3)]
    assert await invoices.verify(year=year) == {"documents": 3, "lastNumber": 3, "missing": []}


async def test_finalizing_again_answers_with_the_same_invoice(invoices: Invoices) -> None:
    draft = await invoices.draft()
    answers = await asyncio.gather(*(invoices.finalize(draft) for _ in range(8)))
    assert len({answer["number"] for answer in answers}) == 1
    assert (await invoices.verify(year=int(answers[0]["issueDate"][:4])))["documents"] == 1


async def test_fifty_at_once_get_fifty_numbers_without_a_gap(invoices: Invoices) -> None:
    drafts = await asyncio.gather(*(invoices.draft() for _ in range(50)))
    finals = await asyncio.gather(*(invoices.finalize(draft) for draft in drafts))
    assert sorted(final["seriesNumber"] for final in finals) == list(range(1, 51))
    by_number = sorted(finals, key=lambda final: final["seriesNumber"])
    assert [final["issueDate"] for final in by_number] == sorted(final["issueDate"] for final in finals)
    assert (await invoices.verify(year=int(finals[0]["issueDate"][:4])))["missing"] == []


async def test_what_is_rolled_back_leaves_no_gap(invoices: Invoices, database: Database) -> None:
    """As the service does it: the number is taken, and then the database goes away."""
    first = await invoices.final()
    year = int(first["issueDate"][:4])
    take = "UPDATE last_numbers SET last_number = last_number + 1 WHERE series = 'invoices' AND series_year = $1"

    async def take_and_fail() -> None:
        async with database.transaction():
            assert await database.execute(take, year) == 1
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await take_and_fail()
    assert (await invoices.final())["seriesNumber"] == 2
    assert (await invoices.verify(year=year))["missing"] == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE invoices SET totals = '{}'",
        "UPDATE invoices SET number = 'INV-1'",
        "UPDATE invoices SET state = 'DRAFT'",
        "UPDATE invoices SET state = 'VOID', number = NULL",
        "UPDATE invoices SET issue_date = '2020-01-01'",
        "DELETE FROM invoices",
        "DELETE FROM payments",
        "UPDATE documents SET pdf = ''",
        "UPDATE last_numbers SET last_number = last_number + 2",
        "UPDATE last_numbers SET last_number = last_number - 1",
        "DELETE FROM last_numbers",
        "UPDATE balances SET credited = total + 1",
        "UPDATE credited_lines SET quantity = 1",
    ],
)
async def test_a_final_document_cannot_be_changed_by_sql_either(
    invoices: Invoices, database: Database, change: str
) -> None:
    final = await invoices.final()
    await invoices.final()
    with pytest.raises((asyncpg.RaiseError, asyncpg.InsufficientPrivilegeError, asyncpg.CheckViolationError)):
        await database.execute(change)
    assert await invoices.read(final) == final


async def test_not_even_the_database_s_owner_changes_a_final_document(invoices: Invoices, platform: Platform) -> None:
    final = await invoices.final()
    admin = await platform.admin()
    try:
        for change in ("UPDATE invoice_gen.invoices SET note = ''", "DELETE FROM invoice_gen.invoices"):
            statement = change.replace("note = ''", "customer_id = ''") + " WHERE invoice_id = $1"
            with pytest.raises(asyncpg.RaiseError):
                await admin.execute(statement, final["invoiceId"])
    finally:
        await admin.close()


async def test_a_final_invoice_is_no_draft_any_more(invoices: Invoices) -> None:
    final = await invoices.final()
    answer = await invoices.put(f"/invoices/{final['invoiceId']}", {"content": content(line(1))})
    assert reason(answer) == "INVOICE_NOT_DRAFT"
    assert await invoices.read(final) == final


async def test_a_final_invoice_keeps_the_seller_it_was_made_with(invoices: Invoices) -> None:
    final = await invoices.final()
    await invoices.set_seller(name="Other GmbH", colour="#000000")
    assert (await invoices.read(final))["seller"] == final["seller"]
    assert final["seller"]["name"] == SELLER["name"]
    assert (await invoices.draft())["seller"]["name"] == "Other GmbH"


async def test_two_people_do_not_overwrite_each_other_s_draft(invoices: Invoices) -> None:
    draft = await invoices.draft()
    path = f"/invoices/{draft['invoiceId']}"
    first = await invoices.put(path, {"content": content(line(1)), "etag": draft["etag"]})
    assert first.status_code == 200
    second = await invoices.put(path, {"content": content(line(2)), "etag": draft["etag"]})
    assert reason(second) == "INVOICE_CHANGED"
    assert reason(await invoices.post(f"{path}:finalize", etag=draft["etag"])) == "INVOICE_CHANGED"


async def test_a_draft_that_was_given_up_stays_without_a_number(invoices: Invoices) -> None:
    draft = await invoices.draft()
    for _ in range(2):
        answer = await invoices.post(f"/invoices/{draft['invoiceId']}:void")
        assert answer.json()["invoice"]["state"] == "INVOICE_STATE_VOID"
    assert reason(await invoices.post(f"/invoices/{draft['invoiceId']}:finalize")) == "INVOICE_VOID"


async def test_without_a_seller_nothing_is_finalized(tenant: Tenant, http: httpx.AsyncClient) -> None:
    invoices = Invoices(http, await tenant.sign_in("owner"))
    draft = await invoices.draft()
    assert reason(await invoices.post(f"/invoices/{draft['invoiceId']}:finalize")) == "SELLER_UNKNOWN"
    await invoices.set_seller()
    assert (await invoices.finalize(draft))["seriesNumber"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"currency": "ABC"},
        {"currency": "XAU"},
        {"locale": "qq"},
        {"deliveryDate": "2026-02-30"},
        {"prepaid": 11_901},
        {"lines": [line(quantity="0.0")]},
        {"lines": [line(tax={"category": "TAX_CATEGORY_STANDARD", "rateBasisPoints": 0})]},
        {"lines": [line(tax={"category": "TAX_CATEGORY_EXPORT", "rateBasisPoints": 700})]},
        {"lines": [line(tax={"category": "TAX_CATEGORY_EXEMPT"})]},
        {"lines": [line(tax={"category": "TAX_CATEGORY_REVERSE_CHARGE"})]},
        {"lines": [line(), line(tax={"category": "TAX_CATEGORY_OUT_OF_SCOPE"})]},
        {"lines": [line(periodStart="2026-02-01", periodEnd="2026-01-01")]},
    ],
)
async def test_what_is_no_valid_invoice_is_refused(invoices: Invoices, wrong: dict[str, Any]) -> None:
    answer = await invoices.post("/invoices", content={**content(), **wrong}, requestId=new_id())
    assert reason(answer) == "CONTENT_INVALID"


@pytest.mark.parametrize(
    "wrong",
    [{"iban": "DE89370400440532013001"}, {"timeZone": "Berlin"}, {"locale": "qq"}, {"logo": "bm8gcGljdHVyZQ=="}],
)
async def test_what_is_no_valid_seller_is_refused(invoices: Invoices, wrong: dict[str, str]) -> None:
    assert reason(await invoices.put("/invoicing/seller", {**SELLER, **wrong})) == "SELLER_INVALID"


async def test_a_logo_is_kept_with_what_it_was_printed_on(invoices: Invoices) -> None:
    buffer = BytesIO()
    Image.new("RGB", (60, 20), "#e11d48").save(buffer, "PNG")
    logo = base64.b64encode(buffer.getvalue()).decode()
    await invoices.set_seller(logo=logo)
    final = await invoices.final()
    await invoices.set_seller()
    assert (await invoices.read(final))["seller"]["logo"] == logo


# series


async def test_a_series_of_one_s_own_counts_on_by_itself(invoices: Invoices) -> None:
    series = {"series": "shop", "kind": "INVOICE_KIND_INVOICE", "pattern": "S{number}"}
    assert (await invoices.put("/invoicing/series/shop", series)).status_code == 200
    finals = [await invoices.final(series=name) for name in ("shop", "", "shop", "")]
    assert [final["number"] for final in finals][::2] == ["S1", "S2"]
    assert [final["seriesNumber"] for final in finals][1::2] == [1, 2]
    changed = {**series, "pattern": "T{number}"}
    assert reason(await invoices.put("/invoicing/series/shop", changed)) == "SERIES_IN_USE"
    assert (await invoices.put("/invoicing/series/shop", series)).status_code == 200


@pytest.mark.parametrize(
    "pattern", ["INV-{year}-{number}", "INV-2026-{number:04}", "CN-{year}-{number}", "A1{number}", "{year}{number}"]
)
async def test_no_two_series_can_write_the_same_number(invoices: Invoices, pattern: str) -> None:
    series = {"series": "other", "kind": "INVOICE_KIND_INVOICE", "pattern": pattern}
    assert reason(await invoices.put("/invoicing/series/other", series)) == "SERIES_PATTERN_TAKEN"


async def test_a_series_is_for_one_kind_of_document(invoices: Invoices) -> None:
    for name in ("credit-notes", "nowhere"):
        draft = await invoices.draft(series=name)
        assert reason(await invoices.post(f"/invoices/{draft['invoiceId']}:finalize")) == "SERIES_NOT_FOUND"
    names = [one["series"] for one in (await invoices.get("/invoicing/series")).json()["series"]]
    assert names == ["credit-notes", "invoices"]


# credit notes


async def test_a_credit_note_takes_back_units_and_then_all_that_is_left(
    invoices: Invoices, platform: Platform, tenant: Tenant
) -> None:
    shipping = [{"reason": "Versand", "amount": 595, "tax": STANDARD}]
    invoice = await invoices.final(line(9_999, "3"), line(500), adjustments=shipping, pricesIncludeTax=True)
    first = (await invoices.credit(invoice, (0, "1"))).json()["creditNote"]
    assert first["totals"]["total"] == "9999"
    assert first["number"].startswith("CN-")
    assert first["creditedNumber"] == invoice["number"]
    assert (await invoices.read(invoice))["amountCredited"]["minorUnits"] == "9999"
    assert reason(await invoices.credit(invoice, (0, "3"))) == "CREDIT_TOO_HIGH"
    rest = (await invoices.credit(invoice)).json()["creditNote"]
    assert int(rest["totals"]["total"]) == 2 * 9_999 + 500 + 595
    after = await invoices.read(invoice)
    assert (after["state"], after["amountDue"]["minorUnits"]) == ("INVOICE_STATE_VOID", "0")
    assert reason(await invoices.credit(invoice)) == "INVOICE_NOT_FINALIZED"
    assert reason(await invoices.credit(rest)) == "INVOICE_NOT_FINALIZED"
    events = await told(platform, tenant, events_pb2.CreditNoteIssued)
    assert [event.in_full for event in events] == [False, True]
    listed = (await invoices.get("/invoices", creditedInvoiceId=invoice["invoiceId"])).json()["invoices"]
    assert {note["number"] for note in listed} == {first["number"], rest["number"]}


async def test_twenty_at_once_credit_no_more_than_there_is(invoices: Invoices) -> None:
    invoice = await invoices.final(line(1_000, "5"))
    answers = await asyncio.gather(*(invoices.credit(invoice, (0, "1")) for _ in range(20)))
    done = [answer for answer in answers if answer.status_code == 200]
    assert len(done) == 5
    assert (await invoices.read(invoice))["state"] == "INVOICE_STATE_VOID"
    assert (await invoices.verify("credit-notes", int(invoice["issueDate"][:4])))["missing"] == []


async def test_voiding_an_invoice_credits_all_of_it_once(invoices: Invoices) -> None:
    invoice = await invoices.final()
    path = f"/invoices/{invoice['invoiceId']}:void"
    answers = await asyncio.gather(*(invoices.post(path, reason="Irrtum") for _ in range(5)))
    assert all(answer.json()["invoice"]["state"] == "INVOICE_STATE_VOID" for answer in answers)
    notes = [answer.json().get("creditNote") for answer in answers]
    assert sum(note is not None for note in notes) == 1
    [note] = [note for note in notes if note is not None]
    assert note["totals"]["total"] == invoice["totals"]["total"]
    assert (await invoices.read(invoice))["number"] == invoice["number"], "it is still there, with its number"


# payments


async def test_an_invoice_is_paid_with_the_last_cent_and_each_payment_counts_once(
    invoices: Invoices, platform: Platform, tenant: Tenant
) -> None:
    invoice = await invoices.final(line(10_000), prepaid=1_900)
    assert invoice["amountDue"]["minorUnits"] == "10000"

    async def pay(reference: str, amount: int, currency: str = "EUR") -> httpx.Response:
        money = {"currency": currency, "minorUnits": amount}
        return await invoices.post(
            f"/invoices/{invoice['invoiceId']}/payments", paymentReference=reference, amount=money
        )

    for _ in range(2):
        assert (await pay("p1", 4_000)).json()["invoice"]["amountDue"]["minorUnits"] == "6000"
    assert reason(await pay("p1", 4_001)) == "PAYMENT_DIFFERS"
    assert reason(await pay("p2", 6_000, "USD")) == "CURRENCY_DIFFERS"
    assert reason(await pay("p2", -1)) == "CONTENT_INVALID"
    assert not await told(platform, tenant, events_pb2.InvoicePaid)
    await asyncio.gather(*(pay("p2", 6_000) for _ in range(5)))
    assert [event.number for event in await told(platform, tenant, events_pb2.InvoicePaid)] == [invoice["number"]]


# reading


async def test_documents_are_found_by_what_they_are(invoices: Invoices) -> None:
    ann, bob = ({**CUSTOMER, "customerId": name} for name in ("ann", "bob"))
    first, second = await invoices.final(customer=ann), await invoices.final(customer=bob, paymentDays=0)
    draft = await invoices.draft(customer=ann)
    note = (await invoices.credit(first)).json()["creditNote"]

    async def found(**query: str) -> list[str]:
        answer = await invoices.get("/invoices", **query)
        assert answer.status_code == 200, answer.text
        return [one["invoiceId"] for one in answer.json().get("invoices", [])]

    ids = {name: one["invoiceId"] for name, one in zip("12dn", (first, second, draft, note), strict=True)}
    today = first["issueDate"]
    assert await found() == [ids["n"], ids["d"], ids["2"], ids["1"]]
    assert await found(customerId="ann") == [ids["n"], ids["d"], ids["1"]]
    assert await found(state="INVOICE_STATE_DRAFT") == [ids["d"]]
    assert await found(state="INVOICE_STATE_VOID") == [ids["1"]]
    assert await found(kind="INVOICE_KIND_CREDIT_NOTE") == [ids["n"]]
    assert await found(numberPrefix="INV-") == [ids["2"], ids["1"]]
    assert await found(numberPrefix="%") == []
    assert await found(issuedFrom=today, issuedTo=today, series="invoices") == [ids["2"], ids["1"]]
    assert await found(issuedFrom="2000-01-01", issuedTo="2001-01-01") == []
    assert await found(dueBy=today) == [ids["2"]]


async def test_pages_lead_through_all_documents(invoices: Invoices) -> None:
    made = [(await invoices.draft())["invoiceId"] for _ in range(7)]
    seen: list[str] = []
    token = ""
    while True:
        page = (await invoices.get("/invoices", pageSize="3", pageToken=token)).json()
        seen += [one["invoiceId"] for one in page["invoices"]]
        token = page.get("nextPageToken", "")
        if not token:
            break
    assert seen == made[::-1]


async def test_the_pdf_and_the_xml_come_as_files(invoices: Invoices) -> None:
    final = await invoices.final()
    pdf = await invoices.get(f"/invoices/{final['invoiceId']}/pdf")
    assert pdf.headers["content-type"] == "application/pdf"
    again = await invoices.get(f"/invoices/{final['invoiceId']}/pdf")
    assert pdf.content == again.content
    xml = await invoices.get(f"/invoices/{final['invoiceId']}/xml")
    assert xml.headers["content-type"] == "application/xml"
    assert facturx.get_facturx_xml_from_pdf(BytesIO(pdf.content))[1] == xml.content
    french = await invoices.get(f"/invoices/{final['invoiceId']}/pdf", locale="fr-FR")
    assert french.content not in (b"", pdf.content)
    draft = await invoices.draft()
    assert (await invoices.get(f"/invoices/{draft['invoiceId']}/pdf")).content.startswith(b"%PDF")
    assert reason(await invoices.get(f"/invoices/{draft['invoiceId']}/xml")) == "INVOICE_NOT_FINALIZED"


def mails_to(platform: Platform, recipient: str) -> list[EmailMessage]:
    outbox = (platform.home / "outbox").glob("*.eml")
    mails = [message_from_bytes(path.read_bytes(), policy=policy.default) for path in outbox]
    return [mail for mail in mails if mail["To"] == recipient]


async def sendings(database: Database) -> int:
    """How often the tenant's documents have been mailed."""
    [row] = await database.fetch("SELECT count(*) FROM sendings")
    return int(row["count"])


async def test_an_invoice_is_mailed_with_its_pdf(invoices: Invoices, platform: Platform) -> None:
    recipient = f"{new_id()}@example.com"
    final = await invoices.final(customer={**CUSTOMER, "email": recipient})
    request_id = new_id()
    for _ in range(2):
        answer = await invoices.post(f"/invoices/{final['invoiceId']}:send", requestId=request_id)
        assert answer.status_code == 200, answer.text
    [mail] = mails_to(platform, recipient)
    assert final["number"] in mail["Subject"]
    [attached] = mail.iter_attachments()
    pdf = await invoices.get(f"/invoices/{final['invoiceId']}/pdf")
    assert (attached.get_filename(), attached.get_content()) == (f"{final['number']}.pdf", pdf.content)
    assert (await invoices.read(final))["sendTime"]


async def test_documents_are_mailed_by_themselves_if_the_seller_wants_it(
    invoices: Invoices, platform: Platform, database: Database
) -> None:
    recipient = f"{new_id()}@example.com"
    customer = {**CUSTOMER, "email": recipient}
    before = await invoices.final(customer=customer)
    await invoices.set_seller(mailDocuments=True)
    unreachable = {name: value for name, value in CUSTOMER.items() if name != "email"}
    to_nobody = await invoices.final(customer=unreachable)
    final = await invoices.final(customer=customer)
    numbers = {final["number"], (await invoices.credit(final)).json()["creditNote"]["number"]}

    def mailed() -> set[str]:
        return {number for mail in mails_to(platform, recipient) for number in numbers if number in mail["Subject"]}

    await asyncio.to_thread(eventually, lambda: mailed() == numbers)
    assert len(mails_to(platform, recipient)) == 2
    assert await sendings(database) == 2
    for event_type in ("InvoiceFinalized", "CreditNoteIssued"):  # as after a process that died before its commit
        platform.nexus("events", "replay", "--to", "invoice-gen", "--again", "--type", event_type)
    for _ in range(400):
        if await sendings(database) == 4:
            break
        await asyncio.sleep(0.05)
    assert await sendings(database) == 4
    assert len(mails_to(platform, recipient)) == 2, "the same mail, and not another"
    for kept in (before, to_nobody):
        assert "sendTime" not in await invoices.read(kept)


async def test_there_must_be_somebody_to_mail_to(invoices: Invoices) -> None:
    nobody = {name: value for name, value in CUSTOMER.items() if name != "email"}
    final = await invoices.final(customer=nobody)
    answer = await invoices.post(f"/invoices/{final['invoiceId']}:send", requestId=new_id())
    assert reason(answer) == "RECIPIENT_MISSING"


async def test_customers_see_their_own_invoices_and_no_others(
    invoices: Invoices, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    customer = Invoices(http, await tenant.sign_in())
    mine = await invoices.final(customer={**CUSTOMER, "customerId": customer.user.user_id})
    await invoices.draft(customer={**CUSTOMER, "customerId": customer.user.user_id})
    other = await invoices.final()
    listed = (await customer.get("/my/invoices")).json()["invoices"]
    assert [one["invoiceId"] for one in listed] == [mine["invoiceId"]]
    pdf = await customer.get(f"/my/invoices/{mine['invoiceId']}/pdf")
    assert pdf.content.startswith(b"%PDF")
    assert reason(await customer.get(f"/my/invoices/{other['invoiceId']}/pdf")) == "INVOICE_NOT_FOUND"
    assert reason(await customer.get("/invoices")) == "PERMISSION_MISSING"


async def test_another_tenant_sees_nothing_and_counts_by_itself(
    invoices: Invoices, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    final = await invoices.final()
    stranger = Invoices(http, await other_tenant.sign_in("owner"))
    for path in ("", "/pdf", "/xml"):
        assert reason(await stranger.get(f"/invoices/{final['invoiceId']}{path}")) == "INVOICE_NOT_FOUND"
    assert reason(await stranger.post(f"/invoices/{final['invoiceId']}:void")) == "INVOICE_NOT_FOUND"
    assert (await stranger.get("/invoices")).json()["invoices"] == []
    await stranger.set_seller()
    assert (await stranger.final())["seriesNumber"] == 1


# for services


async def issue(issuing: Any, tenant: Tenant, reference: str, *lines: dict[str, Any]) -> Any:
    request = pb.IssueInvoiceRequest(reference=reference, content=content_message(*lines))
    return (await issuing.IssueInvoice(request, metadata=tuple(tenant.headers.items()))).invoice


async def test_a_service_issues_an_invoice_once_for_a_reference(
    invoices: Invoices, issuing: Any, tenant: Tenant, platform: Platform
) -> None:
    issued = await asyncio.gather(*(issue(issuing, tenant, "order-1") for _ in range(10)))
    assert {one.number for one in issued} == {issued[0].number}
    assert issued[0].source == "operator"
    with pytest.raises(ReferenceTaken):
        await issue(issuing, tenant, "order-1", line(1))
    [event] = await told(platform, tenant, events_pb2.InvoiceFinalized)
    assert (event.number, event.reference, event.total.minor_units) == (issued[0].number, "order-1", 11_900)
    assert (await invoices.verify(year=issued[0].series_year))["documents"] == 1


async def test_a_service_credits_and_settles_what_it_issued(invoices: Invoices, issuing: Any, tenant: Tenant) -> None:
    metadata = tuple(tenant.headers.items())
    await issue(issuing, tenant, "order-2", line(1_000, "2"))
    request = pb.CreditIssuedInvoiceRequest(invoice_reference="order-2", reference="return-1", reason="Rückgabe")
    request.lines.add(line=0, quantity="1")
    notes = [(await issuing.CreditIssuedInvoice(request, metadata=metadata)).credit_note for _ in range(3)]
    assert {note.number for note in notes} == {notes[0].number}
    euro = Money(currency="EUR", minor_units=1_190)
    settle = pb.SettleInvoiceRequest(reference="order-2", payment_reference="charge-1", amount=euro)
    for _ in range(2):
        settled = (await issuing.SettleInvoice(settle, metadata=metadata)).invoice
        assert (settled.amount_due.minor_units, settled.amount_paid.minor_units) == (0, 1_190)
    settle.amount.minor_units = 5
    with pytest.raises(PaymentDiffers):
        await issuing.SettleInvoice(settle, metadata=metadata)
    rest = pb.CreditIssuedInvoiceRequest(invoice_reference="order-2", reference="cancel", reason="Storno")
    first = await issuing.CreditIssuedInvoice(rest, metadata=metadata)
    assert first.credit_note.totals.total == 1_190
    rest.reference = "cancel again"
    again = await issuing.CreditIssuedInvoice(rest, metadata=metadata)
    assert not again.HasField("credit_note")
    rest.reference = "order-2"
    with pytest.raises(ReferenceTaken):
        await issuing.CreditIssuedInvoice(rest, metadata=metadata)
    unknown = pb.GetIssuedInvoiceRequest(reference="nowhere")
    with pytest.raises(InvoiceNotFound):
        await issuing.GetIssuedInvoice(unknown, metadata=metadata)


async def test_a_service_can_calculate_without_issuing(invoices: Invoices, issuing: Any, tenant: Tenant) -> None:
    metadata = tuple(tenant.headers.items())
    request = pb.CalculateInvoiceRequest(content=content_message(line(1_999), pricesIncludeTax=True))
    totals = (await issuing.CalculateInvoice(request, metadata=metadata)).totals
    assert (totals.net, totals.tax, totals.total) == (1_680, 319, 1_999)
    request.content.currency = "ABC"
    with pytest.raises(ContentInvalid):
        await issuing.CalculateInvoice(request, metadata=metadata)
    assert (await invoices.get("/invoices")).json()["invoices"] == []


async def test_outside_callers_do_not_reach_the_service_for_services(invoices: Invoices) -> None:
    body = json_format.MessageToDict(pb.IssueInvoiceRequest(reference="x", content=content_message()))
    answer = await invoices.post("/nexus.finance.invoice_gen.v1.IssuingService/IssueInvoice", **body)
    assert answer.status_code in (403, 404)
    assert IBAN not in answer.text
