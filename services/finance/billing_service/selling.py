"""What becomes of a bill: it is invoiced; when it has been paid, booked as a sale and settled with the platform."""

import contextlib
import logging

from google.protobuf import json_format

from nexus.finance.billing_service.v1.customers_pb2 import BillingDetails
from nexus.finance.billing_service.v1.events_pb2 import PaymentRefunded
from nexus.finance.invoice_gen.v1 import invoice_gen_pb2 as pb
from nexus.finance.invoice_gen.v1.faults import ReferenceTaken, SellerUnknown
from nexus.finance.invoice_gen.v1.invoice_gen_pb2_grpc import IssuingServiceStub
from nexus.finance.invoice_gen.v1.invoice_pb2 import Invoice, InvoiceContent
from nexus.finance.ledger_mgr.v1.books_pb2 import NewTransaction
from nexus.finance.ledger_mgr.v1.ledger_pb2 import PostTransactionRequest, SettleRequest
from nexus.finance.ledger_mgr.v1.ledger_pb2_grpc import LedgerServiceStub
from nexus.type.v1.money_pb2 import Money
from services.chassis.service import Service
from services.chassis.table import Row
from services.finance.billing_service import invoicing, postings
from services.finance.billing_service.store import Store

_CALL_SECONDS = 5.0
_BATCH = 200

logger = logging.getLogger(__name__)


class Selling:
    """For the tenant of the call or of `acting_for`. Everything bears being done twice: the ledger and invoice-gen know
    each bill by its id."""

    def __init__(self, service: Service, store: Store) -> None:
        self._store = store
        self._ledger = service.clients.stub(LedgerServiceStub, timeout=_CALL_SECONDS)
        self._invoices = service.clients.stub(IssuingServiceStub, timeout=_CALL_SECONDS)

    async def unpaid(self, bill_id: str) -> Row | None:
        """A bill that is owed, of a subscription that has begun."""
        bill = await self._store.bills.require(bill_id)
        subscription = await self._store.subscriptions.require(bill["subscription_id"])
        owed = bill["state"] in ("OPEN", "PAST_DUE") and subscription["state"] != "INCOMPLETE"
        return bill if owed else None

    async def sell(self, bill_id: str) -> Row | None:
        """Book a paid bill, and give the platform its part. The bill as it is then; None for one of nothing."""
        bill = await self._store.bills.require(bill_id)
        if not bill["total"] or bill["tax"] is not None:
            return bill if bill["total"] else None
        tax = share = 0
        if bill["tax_basis_points"]:
            request = pb.CalculateInvoiceRequest(content=await self._content(bill))
            tax = (await self._invoices.CalculateInvoice(request)).totals.tax
        await self.post(postings.sale(bill, tax))
        if bill["total"] > tax:
            settlement = SettleRequest(
                idempotency_key=f"bill/{bill_id}/settlement",
                source_account=postings.SUBSCRIPTIONS.name,
                currency=bill["currency"],
                minor_units=bill["total"] - tax,
                tenant_account=postings.EARNINGS.name,
                reference=f"bill/{bill_id}/settlement",
            )
            share = (await self._ledger.Settle(settlement)).platform_minor_units
        return await self._store.bills.change(bill_id, tax=tax, platform_share=share)

    async def refunded(self, message: PaymentRefunded) -> None:
        """Take a part of a sale back from everybody who got something of it. Money that was never for the bill, since
        another payment had paid it, has not been sold."""
        bill = await self._store.bills.get(message.reference.removeprefix("bill/"))
        if bill is None or bill["payment_id"] != message.payment_id or bill["state"] != "PAID":
            return
        bill = await self.sell(bill["bill_id"])
        assert bill is not None, "what was refunded was more than nothing"
        before = await self._store.refunded_before(message.payment_id, message.operation_id)
        amount = message.amount.minor_units
        tax = invoicing.part(bill["tax"], bill["total"], before, amount)
        net, net_before = bill["total"] - bill["tax"], before - invoicing.part(bill["tax"], bill["total"], 0, before)
        share = invoicing.part(bill["platform_share"], net, net_before, amount - tax)
        await self.post(postings.refund(bill, message.operation_id, amount, tax, share))
        await self.invoice(bill)

    async def invoice(self, bill: Row) -> None:
        """With what has become of it since: it has been paid, or paid back. Raises SellerUnknown."""
        reference = f"bill/{bill['bill_id']}"
        if not bill["total"] or not bill["tax_country"]:
            return
        issued = await self._issued(bill, reference)
        amount = Money(currency=bill["currency"], minor_units=bill["total"])
        if bill["state"] == "PAID" and issued.content.prepaid == 0:
            settle = pb.SettleInvoiceRequest(reference=reference, payment_reference=reference, amount=amount)
            await self._invoices.SettleInvoice(settle)
        for refund in await self._refunds(bill):
            credit = pb.CreditIssuedInvoiceRequest(
                invoice_reference=reference,
                reference=f"{reference}/refund/{refund['operation_id']}",
                reason="The payment was refunded.",
                amount=Money(currency=bill["currency"], minor_units=refund["amount"]),
            )
            await self._invoices.CreditIssuedInvoice(credit)
        if not bill["invoice_id"]:  # last, since a bill that has its invoice is not looked after any more
            await self._store.bills.change(bill["bill_id"], invoice_id=issued.invoice_id)

    async def invoice_rest(self) -> None:
        """What could not be invoiced when it was issued: the tenant had no letterhead."""
        try:
            for bill in await self._store.to_invoice(_BATCH):
                await self.invoice(bill)
        except SellerUnknown:
            logger.info("bills wait for the tenant's letterhead")

    async def _issued(self, bill: Row, reference: str) -> Invoice:
        if not bill["invoice_id"]:
            request = pb.IssueInvoiceRequest(reference=reference, content=await self._content(bill))
            with contextlib.suppress(ReferenceTaken):  # the customer has moved since somebody issued it and died
                return (await self._invoices.IssueInvoice(request)).invoice
        known = pb.GetIssuedInvoiceRequest(reference=reference)
        return (await self._invoices.GetIssuedInvoice(known)).invoice

    async def _refunds(self, bill: Row) -> list[Row]:
        if bill["payment_id"] is None:
            return []
        return await self._store.operations.all(payment_id=bill["payment_id"], kind="REFUND", state="SUCCEEDED")

    async def post(self, transaction: NewTransaction, key: str = "") -> None:
        """Once for a key; by itself, that is what it refers to."""
        request = PostTransactionRequest(idempotency_key=key or transaction.reference, transaction=transaction)
        await self._ledger.PostTransaction(request)

    async def _content(self, bill: Row) -> InvoiceContent:
        customer = await self._store.customers.require(bill["customer_id"])
        details = json_format.Parse(customer["billing_details"] or "{}", BillingDetails())
        return invoicing.content(bill, await self._store.lines.all(bill_id=bill["bill_id"]), details)
