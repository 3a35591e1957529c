"""InvoiceService and IssuingService: proto to use cases and back."""

import asyncio
from functools import partial
from uuid import UUID, uuid5

from google.api.httpbody_pb2 import HttpBody

from nexus.finance.invoice_gen.v1 import invoice_gen_pb2 as pb
from nexus.finance.invoice_gen.v1.faults import (
    InvoiceNotFinalized,
    InvoiceNotFound,
    ReferenceTaken,
    SellerUnknown,
    SeriesInUse,
    SeriesNotFound,
    SeriesPatternTaken,
    TooManySeries,
)
from nexus.finance.invoice_gen.v1.invoice_pb2 import InvoiceKind, InvoiceState, Series
from services.chassis.clock import timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf, text_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.finance.invoice_gen import content as rules
from services.finance.invoice_gen.calculation import calculate
from services.finance.invoice_gen.documents import Documents
from services.finance.invoice_gen.invoicing import CREDIT_NOTE, FROM_THE_START, Invoicing, message_of

MOST_SERIES = 50
_series = MessageOf(Series)
_verified = MessageOf(pb.VerifySeriesResponse)


class InvoiceService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._pager = Pager(service.sealer)
        self._invoicing = service.shared(Invoicing)
        self._store = self._invoicing.store
        self._documents = service.shared(Documents)

    async def GetSeller(self, request: pb.GetSellerRequest, call: RequestContext) -> pb.GetSellerResponse:
        seller = await self._invoicing.seller()
        if seller is None:
            raise SellerUnknown()
        return pb.GetSellerResponse(seller=seller)

    async def SetSeller(self, request: pb.SetSellerRequest, call: RequestContext) -> pb.SetSellerResponse:
        await asyncio.to_thread(rules.check_seller, request.seller)
        await self._store.set_seller(request.seller)
        return pb.SetSellerResponse(seller=request.seller)

    async def ListSeries(self, request: pb.ListSeriesRequest, call: RequestContext) -> pb.ListSeriesResponse:
        return pb.ListSeriesResponse(series=(await self._all_series()).values())

    async def SetSeries(self, request: pb.SetSeriesRequest, call: RequestContext) -> pb.SetSeriesResponse:
        series = request.series
        shape = rules.number_shape(series.pattern)
        if shape is None:
            raise SeriesPatternTaken(pattern=series.pattern)
        async with self._database.transaction():
            # Those from the start become rows, so that nobody takes their patterns.
            first = [row for row in FROM_THE_START.values() if row["series"] != series.series]
            await self._store.series.insert_all(first)
            there = await self._all_series()
            used = await self._store.locked_series(series.series)
            if used is not None and used["used"] and there[series.series] != series:
                raise SeriesInUse(series=series.series)
            if series.series not in there and len(there) >= MOST_SERIES:
                raise TooManySeries()
            kind = text_of(InvoiceKind, series.kind)
            await self._store.set_series(series=series.series, kind=kind, pattern=series.pattern, shape=shape)
        return pb.SetSeriesResponse(series=series)

    async def VerifySeries(self, request: pb.VerifySeriesRequest, call: RequestContext) -> pb.VerifySeriesResponse:
        if request.series not in await self._all_series():
            raise SeriesNotFound(series=request.series)
        return _verified(await self._store.verify(request.series, request.year))

    async def DraftInvoice(self, request: pb.DraftInvoiceRequest, call: RequestContext) -> pb.DraftInvoiceResponse:
        row = await self._invoicing.draft(request.content)
        return pb.DraftInvoiceResponse(invoice=await self._documents.message(row))

    async def UpdateDraft(self, request: pb.UpdateDraftRequest, call: RequestContext) -> pb.UpdateDraftResponse:
        async with self._database.transaction():
            row = await self._invoicing.update(request.invoice_id, request.content, request.etag)
        return pb.UpdateDraftResponse(invoice=await self._documents.message(row))

    async def FinalizeInvoice(
        self, request: pb.FinalizeInvoiceRequest, call: RequestContext
    ) -> pb.FinalizeInvoiceResponse:
        async with self._database.transaction():
            row = await self._invoicing.finalize(request.invoice_id, request.etag)
        return pb.FinalizeInvoiceResponse(invoice=await self._documents.message(row))

    async def CreateCreditNote(
        self, request: pb.CreateCreditNoteRequest, call: RequestContext
    ) -> pb.CreateCreditNoteResponse:
        async with self._database.transaction():
            row = await self._store.lock(request.invoice_id)
            note = await self._invoicing.credit(row, request.lines, request.reason)
            if note is None:
                raise InvoiceNotFinalized(invoice=row["number"])
        return pb.CreateCreditNoteResponse(credit_note=await self._documents.message(note))

    async def VoidInvoice(self, request: pb.VoidInvoiceRequest, call: RequestContext) -> pb.VoidInvoiceResponse:
        async with self._database.transaction():
            row, note = await self._store.lock(request.invoice_id), None
            if row["state"] == "DRAFT":
                await self._store.invoices.change(request.invoice_id, state="VOID")
            elif row["state"] == "FINALIZED":
                note = await self._invoicing.credit(row, (), request.reason)
            row = await self._store.documents.require(request.invoice_id)
        credit_note = await self._documents.message(note) if note else None
        return pb.VoidInvoiceResponse(invoice=await self._documents.message(row), credit_note=credit_note)

    async def RecordPayment(self, request: pb.RecordPaymentRequest, call: RequestContext) -> pb.RecordPaymentResponse:
        async with self._database.transaction():
            row = await self._store.lock(request.invoice_id)
            row = await self._invoicing.settle(row, request.payment_reference, request.amount)
        return pb.RecordPaymentResponse(invoice=await self._documents.message(row))

    async def GetInvoice(self, request: pb.GetInvoiceRequest, call: RequestContext) -> pb.GetInvoiceResponse:
        row = await self._store.documents.require(request.invoice_id)
        return pb.GetInvoiceResponse(invoice=await self._documents.message(row))

    async def ListInvoices(self, request: pb.ListInvoicesRequest, call: RequestContext) -> pb.ListInvoicesResponse:
        fetch = partial(
            self._store.documents.page,
            kind=text_of(InvoiceKind, request.kind) or None,
            customer_id=request.customer_id or None,
            series=request.series or None,
            reference=request.reference or None,
            credited_invoice_id=request.credited_invoice_id or None,
            filters={
                "CASE WHEN void THEN 'VOID' ELSE state END = {}": text_of(InvoiceState, request.state) or None,
                "starts_with(number, {})": request.number_prefix or None,
                "issue_date >= {}": rules.as_date(request.issued_from),
                "issue_date <= {}": rules.as_date(request.issued_to),
                "b.total - b.credited - b.paid > 0 AND b.due_date <= {}": rules.as_date(request.due_by),
            },
        )
        rows, token = await self._pager.page(request, call, fetch, by="invoice_id")
        return pb.ListInvoicesResponse(invoices=map(message_of, rows), next_page_token=token)

    async def RenderPdf(self, request: pb.RenderPdfRequest, call: RequestContext) -> HttpBody:
        row = await self._store.documents.require(request.invoice_id)
        return HttpBody(content_type="application/pdf", data=await self._documents.pdf(row, request.locale))

    async def RenderXml(self, request: pb.RenderXmlRequest, call: RequestContext) -> HttpBody:
        row = await self._require_final(request.invoice_id)
        return HttpBody(content_type="application/xml", data=await self._documents.xml(row))

    async def SendInvoice(self, request: pb.SendInvoiceRequest, call: RequestContext) -> pb.SendInvoiceResponse:
        row = await self._require_final(request.invoice_id)
        mail_id = uuid5(UUID(request.invoice_id), request.request_id or new_id())
        sending = await self._documents.send(row, str(mail_id), request.email, request.message)
        return pb.SendInvoiceResponse(send_time=timestamp(sending["send_time"]))

    async def ListMyInvoices(
        self, request: pb.ListMyInvoicesRequest, call: RequestContext
    ) -> pb.ListMyInvoicesResponse:
        mine = partial(self._store.documents.page, customer_id=call.user.user_id, state="FINALIZED")
        rows, token = await self._pager.page(request, call, mine, by="invoice_id")
        return pb.ListMyInvoicesResponse(invoices=map(message_of, rows), next_page_token=token)

    async def RenderMyPdf(self, request: pb.RenderMyPdfRequest, call: RequestContext) -> HttpBody:
        row = await self._store.documents.require(request.invoice_id)
        if row["customer_id"] != call.user.user_id or row["state"] != "FINALIZED":
            raise InvoiceNotFound(invoice=request.invoice_id)
        return HttpBody(content_type="application/pdf", data=await self._documents.pdf(row, request.locale))

    async def _require_final(self, invoice_id: str) -> Row:
        row = await self._store.documents.require(invoice_id)
        if row["state"] != "FINALIZED":
            raise InvoiceNotFinalized(invoice=invoice_id)
        return row

    async def _all_series(self) -> dict[str, Series]:
        """By name, those included that a tenant has from the start."""
        rows = [*FROM_THE_START.values(), *await self._store.series.all()]
        return dict(sorted((row["series"], _series(row)) for row in rows))


class IssuingService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._invoicing = service.shared(Invoicing)

    async def IssueInvoice(self, request: pb.IssueInvoiceRequest, call: RequestContext) -> pb.IssueInvoiceResponse:
        async with self._database.transaction():
            row = await self._invoicing.issue(_source(call), request.reference, request.content)
        return pb.IssueInvoiceResponse(invoice=message_of(row))

    async def CreditIssuedInvoice(
        self, request: pb.CreditIssuedInvoiceRequest, call: RequestContext
    ) -> pb.CreditIssuedInvoiceResponse:
        source, invoicing = _source(call), self._invoicing
        async with self._database.transaction():
            row = await invoicing.issued(source, request.invoice_reference, lock=True)
            invoice_id = row["invoice_id"]
            note = await invoicing.store.issued(source, request.reference)
            if note is None:
                amount = request.amount if request.HasField("amount") else None
                about = {"source": source, "reference": request.reference}
                note = await invoicing.credit(row, request.lines, request.reason, amount=amount, **about)
            elif note["kind"] != CREDIT_NOTE or note["credited_invoice_id"] != invoice_id:
                raise ReferenceTaken(reference=request.reference)
            row = await invoicing.store.documents.require(invoice_id)
        return pb.CreditIssuedInvoiceResponse(invoice=message_of(row), credit_note=message_of(note) if note else None)

    async def SettleInvoice(self, request: pb.SettleInvoiceRequest, call: RequestContext) -> pb.SettleInvoiceResponse:
        async with self._database.transaction():
            row = await self._invoicing.issued(_source(call), request.reference, lock=True)
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
