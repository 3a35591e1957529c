"""The use cases: draft, finalize, credit, settle. Whoever calls them opens the transaction."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any
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
from services.chassis.clock import timestamp
from services.chassis.service import Service
from services.finance.invoice_gen import content as rules
from services.finance.invoice_gen.calculation import calculate
from services.finance.invoice_gen.crediting import Quantities, asked, credit, credit_of, is_last
from services.finance.invoice_gen.store import InvoiceStore, SellerStore

INVOICE, CREDIT_NOTE = "INVOICE", "CREDIT_NOTE"
FROM_THE_START = {
    INVOICE: ("invoices", "INV-{year}-{number:05}"),
    CREDIT_NOTE: ("credit-notes", "CN-{year}-{number:05}"),
}


class Invoicing:
    """What can be done with the documents of the call's tenant."""

    def __init__(self, service: Service) -> None:
        self._events = service.events
        self.sellers = SellerStore(service.database)
        self.invoices = InvoiceStore(service.database)

    async def seller(self) -> tuple[pb.Seller, bytes | None]:
        """Who sells, with the digest of the logo. Raises SellerUnknown."""
        row = await self.sellers.seller()
        if row is None:
            raise SellerUnknown()
        return _seller(row["seller"], row["image"]), row["logo_digest"]

    async def require(self, invoice_id: str, *, locked: bool = False) -> Any:
        """Raises InvoiceNotFound."""
        row = await (self.invoices.locked if locked else self.invoices.by_id)(invoice_id)
        if row is None:
            raise InvoiceNotFound(invoice=invoice_id)
        return row

    async def issued(self, source: str, reference: str) -> Any:
        """Raises InvoiceNotFound."""
        row = await self.invoices.by_reference(source, reference)
        if row is None:
            raise InvoiceNotFound(invoice=reference)
        return row

    async def draft(self, content: pb.InvoiceContent, source: str = "", reference: str = "") -> Any:
        """None when the reference was used before. Raises ContentInvalid."""
        rules.check(content)
        return await self.invoices.insert(INVOICE, content, calculate(content), source=source, reference=reference)

    async def update(self, invoice_id: str, content: pb.InvoiceContent, etag: str) -> Any:
        rules.check(content)
        row = await self.require(invoice_id, locked=True)
        if row["state"] != "DRAFT":
            raise InvoiceNotDraft(invoice=row["number"] or invoice_id)
        if etag and etag != str(row["version"]):
            raise InvoiceChanged()
        await self.invoices.update_draft(invoice_id, content, calculate(content))
        return await self.require(invoice_id)

    async def finalize(self, invoice_id: str, etag: str = "") -> Any:
        row = await self.require(invoice_id, locked=True)
        if row["state"] == "FINALIZED":
            return row
        if row["state"] == "VOID":
            raise InvoiceVoid(invoice=invoice_id)
        if etag and etag != str(row["version"]):
            raise InvoiceChanged()
        return await self._finalize(row)

    async def issue(self, source: str, reference: str, content: pb.InvoiceContent) -> Any:
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
        row: Any,
        lines: Sequence[pb.CreditedLine],
        reason: str,
        *,
        amount: Money | None = None,
        source: str = "",
        reference: str = "",
    ) -> Any:
        """The credit note; None when nothing is left of the invoice. `row` is the locked invoice."""
        invoice_id = row["invoice_id"]
        if row["kind"] != INVOICE or row["state"] != "FINALIZED":
            raise InvoiceNotFinalized(invoice=row["number"] or invoice_id)
        if row["void"]:
            return None
        invoice, before = content_of(row), await self.invoices.credited_units(invoice_id)
        left = row["total"] - row["credited"]
        if amount is not None or (row["credited"] and not before):
            content = self._credit_of(row, invoice, lines, before, amount or _money(row, left), reason)
            units, totals = {}, calculate(content)
            last = totals.total == left
        else:
            units = asked(invoice, lines, before)
            content, last = credit(invoice, before, units), is_last(invoice, before, units)
            totals = calculate(content, total=left if last else None)
        if totals.total > left:
            raise CreditTooHigh(why="the amount is more than is left of the invoice")
        note = await self.invoices.insert(
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
        await self.invoices.note_credited_lines(note["invoice_id"], invoice_id, units)
        await self.invoices.note_credit(invoice_id, totals.total, void=last)
        note = await self._finalize(note, in_full=last)
        await self._tell_if_paid(row, await self.require(invoice_id))
        return note

    @staticmethod
    def _credit_of(
        row: Any,
        invoice: pb.InvoiceContent,
        lines: Sequence[pb.CreditedLine],
        before: Quantities,
        amount: Money,
        reason: str,
    ) -> pb.InvoiceContent:
        """An invoice is taken back by units or by amounts, for nobody could tell what is left of one by both."""
        if lines or before:
            raise ContentInvalid(why="an invoice is credited by units or by amounts, not by both")
        if amount.currency != row["currency"]:
            raise CurrencyDiffers(currency=row["currency"])
        return credit_of(invoice, amount.minor_units, reason)

    async def settle(self, row: Any, payment_reference: str, amount: Money) -> Any:
        """`row` is the locked invoice. Returns it as it is then."""
        if row["kind"] != INVOICE or row["state"] != "FINALIZED":
            raise InvoiceNotFinalized(invoice=row["number"] or row["invoice_id"])
        if amount.currency != row["currency"]:
            raise CurrencyDiffers(currency=row["currency"])
        if amount.minor_units <= 0:
            raise ContentInvalid(why="a payment is more than nothing")
        noted = await self.invoices.add_payment(row["invoice_id"], payment_reference, amount.minor_units)
        if noted is not None:
            if noted != amount.minor_units:
                raise PaymentDiffers(payment_reference=payment_reference)
            return row
        settled = await self.require(row["invoice_id"])
        await self._tell_if_paid(row, settled)
        return settled

    async def _finalize(self, row: Any, *, in_full: bool = False) -> Any:
        """Give a draft its number. The series is locked last and held shortest."""
        kind, content, totals = row["kind"], content_of(row), totals_of(row)
        seller, logo_digest = await self.seller()
        rules.check_seller_for(content, seller)
        name, pattern = FROM_THE_START[kind]
        if content.series in ("", name):
            shape = rules.number_shape(pattern)
            assert shape is not None, "the patterns from the start are good"
            await self.sellers.ensure_series(name, kind, pattern, shape)
        series = await self.sellers.locked_series(content.series or name)
        if series is None or series["kind"] != kind:
            raise SeriesNotFound(series=content.series or name)
        # Numbers and dates rise together, also when a clock is put back.
        today = series["moment"].astimezone(ZoneInfo(seller.time_zone or "UTC")).date()
        issue_date = max(today, series["last_date"] or today)
        year = issue_date.year if "{year}" in series["pattern"] else 0
        place = await self.sellers.next_number(series["series"], year)
        number = rules.written(series["pattern"], year, place)
        days = content.payment_days if content.HasField("payment_days") else seller.payment_days
        due_date = issue_date + timedelta(days=days)
        await self.invoices.finalize(
            row["invoice_id"], number, series["series"], year, place, issue_date, due_date, seller, logo_digest
        )
        if kind == INVOICE:
            await self.invoices.open_balance(row["invoice_id"], totals.total, content.prepaid, due_date)
        final = await self.require(row["invoice_id"])
        await self._tell(final, totals, in_full=in_full)
        return final

    async def _tell(self, row: Any, totals: pb.InvoiceTotals, *, in_full: bool) -> None:
        common = {
            "number": row["number"],
            "customer_id": row["customer_id"],
            "source": row["source"],
            "reference": row["reference"],
            "total": _money(row, totals.total),
            "tax": _money(row, totals.tax),
            "issue_date": row["issue_date"].isoformat(),
        }
        if row["kind"] == INVOICE:
            finalized = events_pb2.InvoiceFinalized(
                invoice_id=row["invoice_id"],
                due_date=row["due_date"].isoformat(),
                payable=_money(row, totals.payable),
                **common,
            )
            await self._events.publish(finalized, aggregate=row["invoice_id"])
            return
        issued = events_pb2.CreditNoteIssued(
            credit_note_id=row["invoice_id"],
            invoice_id=row["credited_invoice_id"],
            invoice_number=row["credited_number"],
            in_full=in_full,
            **common,
        )
        await self._events.publish(issued, aggregate=row["credited_invoice_id"])

    async def _tell_if_paid(self, before: Any, after: Any) -> None:
        """With the last cent that comes in. What is credited in full is not paid."""
        if due(before) > 0 >= due(after) and not after["void"]:
            paid = events_pb2.InvoicePaid(
                invoice_id=after["invoice_id"],
                number=after["number"],
                customer_id=after["customer_id"],
                source=after["source"],
                reference=after["reference"],
                total=_money(after, after["total"]),
            )
            await self._events.publish(paid, aggregate=after["invoice_id"])


def due(row: Any) -> int:
    """What is left to pay of a finalized invoice."""
    return max(0, int(row["total"] - row["credited"] - row["paid"]))


def content_of(row: Any) -> pb.InvoiceContent:
    return json_format.Parse(row["content"], pb.InvoiceContent())


def totals_of(row: Any) -> pb.InvoiceTotals:
    return json_format.Parse(row["totals"], pb.InvoiceTotals())


def message_of(row: Any, seller: pb.Seller | None = None, logo: bytes | None = None) -> pb.Invoice:
    """The document. `seller` is the present one, for a draft; `logo` the picture that a finalized one was made with."""
    invoice = pb.Invoice(
        invoice_id=row["invoice_id"],
        kind=pb.InvoiceKind.Value(f"INVOICE_KIND_{row['kind']}"),
        state=pb.InvoiceState.Value(f"INVOICE_STATE_{'VOID' if row['void'] else row['state']}"),
        number=row["number"],
        content=content_of(row),
        totals=totals_of(row),
        seller=_seller(row["seller"], logo) if row["seller"] is not None else seller,
        series=row["series"],
        series_year=row["series_year"],
        series_number=row["series_number"],
        issue_date=_day(row["issue_date"]),
        due_date=_day(row["due_date"]),
        credited_invoice_id=row["credited_invoice_id"],
        credited_number=row["credited_number"],
        credit_reason=row["credit_reason"],
        source=row["source"],
        reference=row["reference"],
        etag=str(row["version"]),
        create_time=timestamp(row["create_time"]),
        finalize_time=timestamp(row["finalize_time"]) if row["finalize_time"] else None,
        send_time=timestamp(row["send_time"]) if row["send_time"] else None,
    )
    if row["credited"] is not None:
        invoice.amount_credited.CopyFrom(_money(row, row["credited"]))
        invoice.amount_paid.CopyFrom(_money(row, row["paid"]))
        invoice.amount_due.CopyFrom(_money(row, due(row)))
    return invoice


def _seller(text: str, logo: bytes | None) -> pb.Seller:
    seller = json_format.Parse(text, pb.Seller())
    seller.logo = logo or b""
    return seller


def _money(row: Any, minor_units: int) -> Money:
    return Money(currency=row["currency"], minor_units=minor_units)


def _day(day: date | None) -> str:
    return day.isoformat() if day is not None else ""
