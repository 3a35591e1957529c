"""Documents as customers get them: PDF, XML, mail."""

import asyncio

from nexus.finance.invoice_gen.v1.faults import RecipientMissing, SellerUnknown
from nexus.finance.invoice_gen.v1.invoice_pb2 import Invoice
from services.chassis.ids import new_id
from services.chassis.mail import Attachment
from services.chassis.service import Service
from services.chassis.table import Row
from services.finance.invoice_gen.invoicing import Invoicing, message_of
from services.finance.invoice_gen.wording import Wording


class Documents:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._mailer = service.mailer
        self._invoicing = service.shared(Invoicing)
        self._store = self._invoicing.store

    async def message(self, row: Row) -> Invoice:
        """With its seller, or else the present one, and the logo that belongs on it."""
        invoice, seller = message_of(row), await self._invoicing.seller(row)
        if seller is not None:
            invoice.seller.CopyFrom(seller)
        return invoice

    async def pdf(self, row: Row, locale: str) -> bytes:
        """Kept once it has been made of a finalized document. Raises SellerUnknown."""
        name, is_final = {"invoice_id": row["invoice_id"], "locale": locale}, row["state"] == "FINALIZED"
        kept = await self._store.pdfs.find(**name) if is_final else None
        if kept is None:
            invoice = await self.message(row)
            if not invoice.HasField("seller"):
                raise SellerUnknown()
            pdf = await asyncio.to_thread(_render, invoice, locale)
            if not is_final:
                return pdf
            kept = await self._store.pdfs.insert_new(**name, pdf=pdf) or await self._store.pdfs.find(**name)
            assert kept is not None, "somebody has just kept it"
        return bytes(kept["pdf"])

    async def xml(self, row: Row) -> bytes:
        """Of a finalized document."""
        return await asyncio.to_thread(_xml_of, await self.message(row))

    async def send(self, row: Row, mail_id: str, email: str = "", text: str = "") -> Row:
        """Mail a finalized document: to its customer unless to somebody else, with the usual text unless with another.
        What is sent again under the same id is the same mail. Returns the sending. Raises RecipientMissing."""
        invoice = await self.message(row)
        to = email or invoice.content.customer.email
        if not to:
            raise RecipientMissing()
        subject, body = Wording.of(invoice).mail(invoice)
        pdf = Attachment(f"{invoice.number.replace('/', '-')}.pdf", "application/pdf", await self.pdf(row, ""))
        async with self._database.transaction():
            sending = await self._store.sendings.insert(sending_id=new_id(), invoice_id=row["invoice_id"])
            await self._mailer.send(to, subject, text or body, [pdf], mail_id=mail_id)
        return sending


# What writes documents takes a second to load and 60 MB, so it is loaded when the first is asked for, off the loop.


def _render(invoice: Invoice, locale: str) -> bytes:
    from services.finance.invoice_gen.layout import render

    return render(invoice, locale)


def _xml_of(invoice: Invoice) -> bytes:
    from services.finance.invoice_gen.einvoice import xml_of

    return xml_of(invoice, Wording.of(invoice))
