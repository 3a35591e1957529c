"""What invoice-gen does when it has told itself something."""

from nexus.finance.invoice_gen.v1.events_pb2 import CreditNoteIssued, InvoiceFinalized
from nexus.type.v1.event_pb2 import Event
from services.chassis.service import Service
from services.finance.invoice_gen.documents import Documents
from services.finance.invoice_gen.invoicing import Invoicing, message_of


class Subscribers:
    """Documents are mailed by their own events: they say so if and only if the document is final, and are retried
    until the mail server has taken it. When a process dies just then, another sends the same mail again."""

    def __init__(self, service: Service) -> None:
        self._invoicing = service.shared(Invoicing)
        self._documents = service.shared(Documents)

    async def on_invoice_finalized(self, message: InvoiceFinalized, event: Event) -> None:
        await self._mail(message.invoice_id)

    async def on_credit_note_issued(self, message: CreditNoteIssued, event: Event) -> None:
        await self._mail(message.credit_note_id)

    async def _mail(self, invoice_id: str) -> None:
        """If the seller wants that, and the customer has an address."""
        row = await self._invoicing.store.documents.require(invoice_id)
        invoice = message_of(row)
        if invoice.seller.mail_documents and invoice.content.customer.email:
            await self._documents.send(row, mail_id=invoice_id)
