"""The use cases: draft, finalize, credit, settle. Whoever calls them opens the transaction."""

from collections.abc import Sequence
from datetime import timedelta
from zoneinfo import ZoneInfo

from google.protobuf import json_format

from nexus.finance.invoice_gen.v1 import events_pb2
from nexus.finance.invoice_gen.v1 import invoice_pb2 as pb
from nexus.finance.invoice_gen.v1.faults import (
    ContentInvalid,
    CreditTooHigh,
    CurrencyDiffers,
    InvoiceChanged,
    InvoiceNotDraft,
    InvoiceNotFinalized,
    InvoiceNotFound,
    InvoiceVoid,
    PaymentDiffers,
    ReferenceTaken,
    SellerUnknown,
    SeriesNotFound,
)
from nexus.type.v1.money_pb2 import Money
from services.chassis.messages import MessageOf
from services.chassis.service import Service
from services.chassis.table import Row
from services.finance.invoice_gen import content as rules
from services.finance.invoice_gen.calculation import calculate
from services.finance.invoice_gen.crediting import asked, credit, credit_of, is_last
from services.finance.invoice_gen.store import InvoiceStore, drafted

INVOICE, CREDIT_NOTE = "INVOICE", "CREDIT_NOTE"
FROM_THE_START = {
    kind: {"series": name, "kind": kind, "pattern": pattern, "shape": rules.number_shape(pattern) or ""}
    for kind, name, pattern in (
        (INVOICE, "invoices", "INV-{year}-{number:05}"),
        (CREDIT_NOTE, "credit-notes", "CN-{year}-{number:05}"),
    )
}
"""The series that each tenant has, by the kind of document."""

_invoice_of = MessageOf(pb.Invoice, etag="version", amount_credited="credited", amount_paid="paid", amount_due="due")
_finalized = MessageOf(events_pb2.InvoiceFinalized)
_credited = MessageOf(
    events_pb2.CreditNoteIssued,
    credit_note_id="invoice_id",
    invoice_id="credited_invoice_id",
    invoice_number="credited_number",
)
_paid = MessageOf(events_pb2.InvoicePaid)


class Invoicing:
    """What can be done with the documents of the call's tenant."""

    def __init__(self, service: Service) -> None:
        self._events = service.events
        self.store = InvoiceStore(service.database)

    async def seller(self, document: Row | None = None) -> pb.Seller | None:
        """With the logo, as a finalized document says it; else the present one, None for a tenant that has not said."""
        row = document if document is not None and document["seller"] else await self.store.sellers.find()
        if row is None:
            return None
        seller = json_format.Parse(row["seller"], pb.Seller())
        logo = await self.store.logos.get(row["logo_digest"]) if row["logo_digest"] else None
        seller.logo = logo["image"] if logo else b""
        return seller

    async def issued(self, source: str, reference: str, *, lock: bool = False) -> Row:
        """Raises InvoiceNotFound."""
        row = await self.store.issued(source, reference)
        if row is None:
            raise InvoiceNotFound(invoice=reference)
        return await self.store.lock(row["invoice_id"]) if lock else row

    async def draft(self, content: pb.InvoiceContent, source: str = "", reference: str = "") -> Row | None:
        """None when the reference was used before. Raises ContentInvalid."""
        rules.check(content)
        return await self.store.insert(INVOICE, content, calculate(content), source=source, reference=reference)

    async def update(self, invoice_id: str, content: pb.InvoiceContent, etag: str) -> Row:
        rules.check(content)
        row = await self.store.lock(invoice_id)
        if row["state"] != "DRAFT":
            raise InvoiceNotDraft(invoice=row["number"] or invoice_id)
        if etag and etag != str(row["version"]):
            raise InvoiceChanged()
        changed = drafted(content, calculate(content))
        await self.store.invoices.change(invoice_id, version=row["version"] + 1, **changed)
        return await self.store.documents.require(invoice_id)

    async def finalize(self, invoice_id: str, etag: str = "") -> Row:
        row = await self.store.lock(invoice_id)
        if row["state"] == "FINALIZED":
            return row
        if row["state"] == "VOID":
            raise InvoiceVoid(invoice=invoice_id)
        if etag and etag != str(row["version"]):
            raise InvoiceChanged()
        return await self._finalize(row)

    async def issue(self, source: str, reference: str, content: pb.InvoiceContent) -> Row:
        """Raises ReferenceTaken when it was issued with other content."""
        row = await self.draft(content, source, reference)
        if row is not None:
            return await self._finalize(row)
        there = await self.issued(source, reference)
        if there["kind"] != INVOICE or content_of(there) != content:
            raise ReferenceTaken(reference=reference)
        return there

    async def credit(
        self,
        row: Row,
        lines: Sequence[pb.CreditedLine],
        reason: str,
        *,
        amount: Money | None = None,
        source: str = "",
        reference: str = "",
    ) -> Row | None:
        """The credit note; None when nothing is left of the invoice. `row` is the locked invoice."""
        invoice_id = row["invoice_id"]
        _require_final_invoice(row)
        if row["void"]:
            return None
        invoice, before = content_of(row), await self.store.credited_units(invoice_id)
        left = row["total"] - row["credited"]
        if amount is not None or (row["credited"] and not before):
            # By units or by amounts: nobody could tell what is left of an invoice by both.
            if lines or before:
                raise ContentInvalid(why="an invoice is credited by units or by amounts, not by both")
            amount = amount or _money(row, left)
            if amount.currency != row["currency"]:
                raise CurrencyDiffers(currency=row["currency"])
            content = credit_of(invoice, amount.minor_units, reason)
            units, totals = {}, calculate(content)
            last = totals.total == left
        else:
            units = asked(invoice, lines, before)
            content, last = credit(invoice, before, units), is_last(invoice, before, units)
            totals = calculate(content, total=left if last else None)
        if totals.total > left:
            raise CreditTooHigh(why="the amount is more than is left of the invoice")
        note = await self.store.insert(
            CREDIT_NOTE,
            content,
            totals,
            source=source,
            reference=reference,
            credited_invoice_id=invoice_id,
            credit_reason=reason,
        )
        if note is None:
            raise ReferenceTaken(reference=reference)
        await self.store.credited_lines.insert_all(
            {"credit_note_id": note["invoice_id"], "invoice_id": invoice_id, "line": line, "quantity": quantity}
            for line, quantity in units.items()
        )
        await self.store.balances.change(invoice_id, credited=row["credited"] + totals.total, void=last)
        note = await self._finalize(note, in_full=last)
        await self._tell_if_paid(row, await self.store.documents.require(invoice_id))
        return note

    async def settle(self, row: Row, payment_reference: str, amount: Money) -> Row:
        """`row` is the locked invoice. Returns it as it is then."""
        _require_final_invoice(row)
        if amount.currency != row["currency"]:
            raise CurrencyDiffers(currency=row["currency"])
        if amount.minor_units <= 0:
            raise ContentInvalid(why="a payment is more than nothing")
        payment = {"invoice_id": row["invoice_id"], "payment_reference": payment_reference}
        if await self.store.payments.insert_new(**payment, amount=amount.minor_units) is None:
            noted = await self.store.payments.find(**payment)
            if noted is None or noted["amount"] != amount.minor_units:
                raise PaymentDiffers(payment_reference=payment_reference)
            return row
        await self.store.balances.change(row["invoice_id"], paid=row["paid"] + amount.minor_units)
        settled = await self.store.documents.require(row["invoice_id"])
        await self._tell_if_paid(row, settled)
        return settled

    async def _finalize(self, row: Row, *, in_full: bool = False) -> Row:
        """Give a draft its number. The series is locked last and held shortest."""
        kind, content, totals, store = row["kind"], content_of(row), totals_of(row), self.store
        stored_seller = await store.sellers.find()
        if stored_seller is None:
            raise SellerUnknown()
        seller = json_format.Parse(stored_seller["seller"], pb.Seller())
        rules.check_seller_for(content, seller)
        first = FROM_THE_START[kind]
        name = content.series or first["series"]
        if name == first["series"]:
            await store.series.insert_new(**first)
        series = await store.locked_series(name)
        if series is None or series["kind"] != kind:
            raise SeriesNotFound(series=name)
        # Numbers and dates rise together, also when a clock is put back.
        today = series["moment"].astimezone(ZoneInfo(seller.time_zone or "UTC")).date()
        issue_date = max(today, series["last_date"] or today)
        year = issue_date.year if "{year}" in series["pattern"] else 0
        place = await store.next_number(name, year)
        days = content.payment_days if content.HasField("payment_days") else seller.payment_days
        due_date = issue_date + timedelta(days=days)
        await store.invoices.change(
            row["invoice_id"],
            state="FINALIZED",
            number=rules.written(series["pattern"], year, place),
            series=name,
            series_year=year,
            series_number=place,
            issue_date=issue_date,
            due_date=due_date,
            seller=stored_seller["seller"],
            logo_digest=stored_seller["logo_digest"],
            finalize_time=series["moment"],
        )
        if kind == INVOICE:
            await store.balances.insert(
                invoice_id=row["invoice_id"], total=totals.total, paid=content.prepaid, due_date=due_date
            )
        final = await store.documents.require(row["invoice_id"])
        tax = _money(final, totals.tax)
        if kind == INVOICE:
            finalized = _finalized(final, tax=tax, payable=_money(final, totals.payable))
            await self._events.publish(finalized, aggregate=row["invoice_id"])
        else:
            credited = _credited(final, tax=tax, in_full=in_full)
            await self._events.publish(credited, aggregate=row["credited_invoice_id"])
        return final

    async def _tell_if_paid(self, before: Row, after: Row) -> None:
        """With the last cent that comes in. What is credited in full is not paid."""
        if before["due"] and not after["due"] and not after["void"]:
            await self._events.publish(_paid(after), aggregate=after["invoice_id"])


def content_of(row: Row) -> pb.InvoiceContent:
    return json_format.Parse(row["content"], pb.InvoiceContent())


def totals_of(row: Row) -> pb.InvoiceTotals:
    return json_format.Parse(row["totals"], pb.InvoiceTotals())


def message_of(row: Row) -> pb.Invoice:
    """The document. A finalized one has its seller, but not the logo."""
    return _invoice_of(row, **({"state": pb.INVOICE_STATE_VOID} if row["void"] else {}))


def _require_final_invoice(row: Row) -> None:
    if row["kind"] != INVOICE or row["state"] != "FINALIZED":
        raise InvoiceNotFinalized(invoice=row["number"] or row["invoice_id"])


def _money(row: Row, minor_units: int) -> Money:
    return Money(currency=row["currency"], minor_units=minor_units)
