"""InvoiceService and IssuingService: proto to use cases and back."""

import asyncio
from datetime import date
from typing import Any

from google.api.httpbody_pb2 import HttpBody

from nexus.finance.invoice_gen.v1 import invoice_gen_pb2 as pb
from nexus.finance.invoice_gen.v1.faults import (
    InvoiceNotFinalized,
    InvoiceNotFound,
    RecipientMissing,
    ReferenceTaken,
    SeriesInUse,
    SeriesNotFound,
    SeriesPatternTaken,
    TooManySeries,
)
from nexus.finance.invoice_gen.v1.invoice_pb2 import Invoice, InvoiceKind, InvoiceState, Series
from services.chassis.clock import timestamp
from services.chassis.context import RequestContext
from services.chassis.mail import Attachment
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.finance.invoice_gen import content as rules
from services.finance.invoice_gen.calculation import calculate
from services.finance.invoice_gen.invoicing import CREDIT_NOTE, FROM_THE_START, Invoicing, message_of
from services.finance.invoice_gen.wording import Wording

MOST_SERIES = 50
_KINDS = {number: name.removeprefix("INVOICE_KIND_") for name, number in InvoiceKind.items()}


class InvoiceService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._mailer = service.mailer
        self._pager = Pager(service.sealer)
        self._invoicing = Invoicing(service)

    async def GetSeller(self, request: pb.GetSellerRequest, call: RequestContext) -> pb.GetSellerResponse:
        seller, _ = await self._invoicing.seller()
        return pb.GetSellerResponse(seller=seller)

    async def SetSeller(self, request: pb.SetSellerRequest, call: RequestContext) -> pb.SetSellerResponse:
        await asyncio.to_thread(rules.check_seller, request.seller)
        await self._invoicing.sellers.set_seller(request.seller)
        return pb.SetSellerResponse(seller=request.seller)

    async def ListSeries(self, request: pb.ListSeriesRequest, call: RequestContext) -> pb.ListSeriesResponse:
        return pb.ListSeriesResponse(series=(await self._all_series()).values())

    async def SetSeries(self, request: pb.SetSeriesRequest, call: RequestContext) -> pb.SetSeriesResponse:
        series, sellers = request.series, self._invoicing.sellers
        shape = rules.number_shape(series.pattern)
        if shape is None:
            raise SeriesPatternTaken(pattern=series.pattern)
        async with self._database.transaction():
            # Those from the start become rows, so that nobody takes their patterns.
            for kind, (name, pattern) in FROM_THE_START.items():
                if name != series.series:
                    await sellers.ensure_series(name, kind, pattern, rules.number_shape(pattern) or "")
            there = await self._all_series()
            used = await sellers.locked_series(series.series)
            if used is not None and used["used"] and there[series.series] != series:
                raise SeriesInUse(series=series.series)
            if series.series not in there and len(there) >= MOST_SERIES:
                raise TooManySeries()
            await sellers.set_series(series.series, _KINDS[series.kind], series.pattern, shape)
        return pb.SetSeriesResponse(series=series)

    async def VerifySeries(self, request: pb.VerifySeriesRequest, call: RequestContext) -> pb.VerifySeriesResponse:
        if request.series not in await self._all_series():
            raise SeriesNotFound(series=request.series)
        found = await self._invoicing.sellers.verify(request.series, request.year)
        return pb.VerifySeriesResponse(
            documents=found["documents"], last_number=found["last_number"], missing=found["missing"]
        )

    async def DraftInvoice(self, request: pb.DraftInvoiceRequest, call: RequestContext) -> pb.DraftInvoiceResponse:
        row = await self._invoicing.draft(request.content)
        return pb.DraftInvoiceResponse(invoice=await self._message(row))

    async def UpdateDraft(self, request: pb.UpdateDraftRequest, call: RequestContext) -> pb.UpdateDraftResponse:
        async with self._database.transaction():
            row = await self._invoicing.update(request.invoice_id, request.content, request.etag)
        return pb.UpdateDraftResponse(invoice=await self._message(row))

    async def FinalizeInvoice(
        self, request: pb.FinalizeInvoiceRequest, call: RequestContext
    ) -> pb.FinalizeInvoiceResponse:
        async with self._database.transaction():
            row = await self._invoicing.finalize(request.invoice_id, request.etag)
        return pb.FinalizeInvoiceResponse(invoice=await self._message(row))

    async def CreateCreditNote(
        self, request: pb.CreateCreditNoteRequest, call: RequestContext
    ) -> pb.CreateCreditNoteResponse:
        async with self._database.transaction():
            row = await self._invoicing.require(request.invoice_id, locked=True)
            note = await self._invoicing.credit(row, request.lines, request.reason)
            if note is None:
                raise InvoiceNotFinalized(invoice=row["number"])
        return pb.CreateCreditNoteResponse(credit_note=await self._message(note))

    async def VoidInvoice(self, request: pb.VoidInvoiceRequest, call: RequestContext) -> pb.VoidInvoiceResponse:
        async with self._database.transaction():
            row, note = await self._invoicing.require(request.invoice_id, locked=True), None
            if row["state"] == "DRAFT":
                await self._invoicing.invoices.void_draft(request.invoice_id)
            elif row["state"] == "FINALIZED":
                note = await self._invoicing.credit(row, (), request.reason)
            row = await self._invoicing.require(request.invoice_id)
        return pb.VoidInvoiceResponse(
            invoice=await self._message(row), credit_note=await self._message(note) if note else None
        )

    async def RecordPayment(self, request: pb.RecordPaymentRequest, call: RequestContext) -> pb.RecordPaymentResponse:
        async with self._database.transaction():
            row = await self._invoicing.require(request.invoice_id, locked=True)
            row = await self._invoicing.settle(row, request.payment_reference, request.amount)
        return pb.RecordPaymentResponse(invoice=await self._message(row))

    async def GetInvoice(self, request: pb.GetInvoiceRequest, call: RequestContext) -> pb.GetInvoiceResponse:
        row = await self._invoicing.require(request.invoice_id)
        return pb.GetInvoiceResponse(invoice=await self._message(row))

    async def ListInvoices(self, request: pb.ListInvoicesRequest, call: RequestContext) -> pb.ListInvoicesResponse:
        state = InvoiceState.Name(request.state).removeprefix("INVOICE_STATE_") if request.state else None
        filters = {
            "CASE WHEN b.void THEN 'VOID' ELSE i.state END = {}": state,
            "i.kind = {}": _KINDS[request.kind] if request.kind else None,
            "i.customer_id = {}": request.customer_id or None,
            "i.series = {}": request.series or None,
            "starts_with(i.number, {})": request.number_prefix or None,
            "i.reference = {}": request.reference or None,
            "i.issue_date >= {}": _day(request.issued_from),
            "i.issue_date <= {}": _day(request.issued_to),
            "b.total - b.credited - b.paid > 0 AND b.due_date <= {}": _day(request.due_by),
            "i.credited_invoice_id = {}": request.credited_invoice_id or None,
        }
        invoices, token = await self._page(request, call, filters)
        return pb.ListInvoicesResponse(invoices=invoices, next_page_token=token)

    async def RenderPdf(self, request: pb.RenderPdfRequest, call: RequestContext) -> HttpBody:
        row = await self._invoicing.require(request.invoice_id)
        return HttpBody(content_type="application/pdf", data=await self._pdf(row, request.locale))

    async def RenderXml(self, request: pb.RenderXmlRequest, call: RequestContext) -> HttpBody:
        row = await self._require_final(request.invoice_id)
        invoice = await self._message(row)
        wording = Wording(invoice.content.locale or invoice.seller.locale, invoice.content.currency)
        return HttpBody(content_type="application/xml", data=await asyncio.to_thread(_xml_of, invoice, wording))

    async def SendInvoice(self, request: pb.SendInvoiceRequest, call: RequestContext) -> pb.SendInvoiceResponse:
        row = await self._require_final(request.invoice_id)
        invoice = await self._message(row)
        customer = invoice.content.customer
        if not (request.email or customer.email):
            raise RecipientMissing()
        wording = Wording(invoice.content.locale or invoice.seller.locale, invoice.content.currency)
        subject, body = wording.mail(invoice)
        pdf = Attachment(f"{invoice.number.replace('/', '-')}.pdf", "application/pdf", await self._pdf(row, ""))
        async with self._database.transaction():
            sent = await self._invoicing.invoices.note_sending(request.invoice_id)
            await self._mailer.send(request.email or customer.email, subject, request.message or body, [pdf])
        return pb.SendInvoiceResponse(send_time=timestamp(sent))

    async def ListMyInvoices(
        self, request: pb.ListMyInvoicesRequest, call: RequestContext
    ) -> pb.ListMyInvoicesResponse:
        filters = {"i.customer_id = {}": call.user.user_id, "i.state = {}": "FINALIZED"}
        invoices, token = await self._page(request, call, filters)
        return pb.ListMyInvoicesResponse(invoices=invoices, next_page_token=token)

    async def RenderMyPdf(self, request: pb.RenderMyPdfRequest, call: RequestContext) -> HttpBody:
        row = await self._invoicing.require(request.invoice_id)
        if row["customer_id"] != call.user.user_id or row["state"] != "FINALIZED":
            raise InvoiceNotFound(invoice=request.invoice_id)
        return HttpBody(content_type="application/pdf", data=await self._pdf(row, request.locale))

    async def _require_final(self, invoice_id: str) -> Any:
        row = await self._invoicing.require(invoice_id)
        if row["state"] != "FINALIZED":
            raise InvoiceNotFinalized(invoice=invoice_id)
        return row

    async def _all_series(self) -> dict[str, Series]:
        """By name, those included that a tenant has from the start."""
        found = {
            name: Series(series=name, kind=InvoiceKind.Value(f"INVOICE_KIND_{kind}"), pattern=pattern)
            for kind, (name, pattern) in FROM_THE_START.items()
        }
        for row in await self._invoicing.sellers.all_series():
            kind = InvoiceKind.Value(f"INVOICE_KIND_{row['kind']}")
            found[row["series"]] = Series(series=row["series"], kind=kind, pattern=row["pattern"])
        return dict(sorted(found.items()))

    async def _message(self, row: Any) -> Invoice:
        """With the logo that belongs on it."""
        if row["state"] != "FINALIZED":
            stored = await self._invoicing.sellers.seller()
            return message_of(row, (await self._invoicing.seller())[0] if stored is not None else None)
        digest = row["logo_digest"]
        return message_of(row, logo=await self._invoicing.sellers.logo(digest) if digest else None)

    async def _page(self, request: Any, call: RequestContext, filters: dict[str, Any]) -> tuple[list[Invoice], str]:
        size = self._pager.size(request)
        rows = await self._invoicing.invoices.page(filters, self._pager.cursor(request, call), size + 1)
        token = self._pager.token(request, call, rows[size - 1]["invoice_id"]) if len(rows) > size else ""
        return [message_of(row) for row in rows[:size]], token

    async def _pdf(self, row: Any, locale: str) -> bytes:
        """Kept once it has been made of a finalized document."""
        if row["state"] != "FINALIZED":
            await self._invoicing.seller()
            return await asyncio.to_thread(_render, await self._message(row), locale)
        invoices, invoice_id = self._invoicing.invoices, row["invoice_id"]
        kept = await invoices.document(invoice_id, locale)
        if kept is None:
            pdf = await asyncio.to_thread(_render, await self._message(row), locale)
            await invoices.keep_document(invoice_id, locale, pdf)
            kept = await invoices.document(invoice_id, locale)
            assert kept is not None, "somebody has just kept it"
        return kept


class IssuingService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._invoicing = Invoicing(service)

    async def IssueInvoice(self, request: pb.IssueInvoiceRequest, call: RequestContext) -> pb.IssueInvoiceResponse:
        async with self._database.transaction():
            row = await self._invoicing.issue(_source(call), request.reference, request.content)
        return pb.IssueInvoiceResponse(invoice=message_of(row))

    async def CreditIssuedInvoice(
        self, request: pb.CreditIssuedInvoiceRequest, call: RequestContext
    ) -> pb.CreditIssuedInvoiceResponse:
        source, invoicing = _source(call), self._invoicing
        async with self._database.transaction():
            invoice_id = (await invoicing.issued(source, request.invoice_reference))["invoice_id"]
            row = await invoicing.require(invoice_id, locked=True)
            note = await invoicing.invoices.by_reference(source, request.reference)
            if note is None:
                amount = request.amount if request.HasField("amount") else None
                about = {"source": source, "reference": request.reference}
                note = await invoicing.credit(row, request.lines, request.reason, amount=amount, **about)
            elif note["kind"] != CREDIT_NOTE or note["credited_invoice_id"] != invoice_id:
                raise ReferenceTaken(reference=request.reference)
            row = await invoicing.require(invoice_id)
        return pb.CreditIssuedInvoiceResponse(
            invoice=message_of(row), credit_note=message_of(note) if note is not None else None
        )

    async def SettleInvoice(self, request: pb.SettleInvoiceRequest, call: RequestContext) -> pb.SettleInvoiceResponse:
        async with self._database.transaction():
            invoice_id = (await self._invoicing.issued(_source(call), request.reference))["invoice_id"]
            row = await self._invoicing.require(invoice_id, locked=True)
            row = await self._invoicing.settle(row, request.payment_reference, request.amount)
        return pb.SettleInvoiceResponse(invoice=message_of(row))

    async def GetIssuedInvoice(
        self, request: pb.GetIssuedInvoiceRequest, call: RequestContext
    ) -> pb.GetIssuedInvoiceResponse:
        row = await self._invoicing.issued(_source(call), request.reference)
        return pb.GetIssuedInvoiceResponse(invoice=message_of(row))

    async def CalculateInvoice(
        self, request: pb.CalculateInvoiceRequest, call: RequestContext
    ) -> pb.CalculateInvoiceResponse:
        rules.check(request.content)
        return pb.CalculateInvoiceResponse(totals=calculate(request.content))


def _source(call: RequestContext) -> str:
    assert call.caller is not None, "only services call this"
    return call.caller


def _day(text: str) -> date | None:
    return rules.as_date(text)


# What writes documents takes a second to load and 60 MB, so it is loaded when the first is asked for, off the loop.


def _render(invoice: Invoice, locale: str) -> bytes:
    from services.finance.invoice_gen.layout import render

    return render(invoice, locale)


def _xml_of(invoice: Invoice, wording: Wording) -> bytes:
    from services.finance.invoice_gen.einvoice import xml_of

    return xml_of(invoice, wording)
