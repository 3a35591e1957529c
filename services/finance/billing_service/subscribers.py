"""What billing-service does when others tell it something, or it has told itself."""

import contextlib

from google.protobuf.message import Message

from nexus.finance.billing_service.v1.events_pb2 import (
    BillIssued,
    BillPaid,
    DisputeClosed,
    PaymentDisputed,
    PaymentProcessed,
    PaymentRefunded,
    SubscriptionChanged,
)
from nexus.finance.invoice_gen.v1.faults import SellerUnknown
from nexus.finance.ledger_mgr.v1.ledger_pb2 import PostTransactionRequest
from nexus.finance.ledger_mgr.v1.ledger_pb2_grpc import LedgerServiceStub
from nexus.identity.user_auth.v1.events_pb2 import UserCreated, UserErased
from nexus.platform.scheduler.v1.worker_pb2 import PutScheduleRequest
from nexus.platform.scheduler.v1.worker_pb2_grpc import WorkerServiceStub
from nexus.type.v1.event_pb2 import Event
from nexus.type.v1.money_pb2 import Money
from services.chassis.service import Service
from services.finance.billing_service import postings
from services.finance.billing_service.jobs import schedules
from services.finance.billing_service.postings import PREPAID, Account, held_by
from services.finance.billing_service.selling import Selling
from services.finance.billing_service.stores.payments import PaymentStore
from services.finance.billing_service.stores.subscriptions import Row, SubscriptionStore

_POST_SECONDS = 5.0


class Subscribers:
    """Money that moved is booked from billing's own events: they say so if and only if it did, are retried until the
    ledger has answered, and their ids are the ledger's keys."""

    def __init__(self, service: Service) -> None:
        self._store = PaymentStore(service.database)
        self._selling = Selling(service)
        self._subscriptions = SubscriptionStore(service.database)
        self._scheduler = service.clients.stub(WorkerServiceStub)
        self._ledger = service.clients.stub(LedgerServiceStub)

    async def on_user_created(self, message: UserCreated, event: Event) -> None:
        """A user is a customer, under the same id."""
        await self._store.ensure_customer(message.user_id)

    async def on_user_erased(self, message: UserErased, event: Event) -> None:
        """Cards and addresses are forgotten; payments and bills are kept, as the law wants it, and name nobody."""
        await self._store.forget_methods(message.user_id)

    async def on_payment_processed(self, message: PaymentProcessed, event: Event) -> None:
        debit, credit = held_by(message.provider), PREPAID
        await self._post(event, message, debit, credit, message.amount, f"capture/{message.operation_id}")

    async def on_payment_refunded(self, message: PaymentRefunded, event: Event) -> None:
        debit, credit = PREPAID, held_by(message.provider)
        await self._post(event, message, debit, credit, message.amount, f"refund/{message.operation_id}")
        if message.reference.startswith("bill/"):
            with contextlib.suppress(SellerUnknown):
                await self._selling.refunded(message)

    async def on_subscription_changed(self, message: SubscriptionChanged, event: Event) -> None:
        """With its first subscription a tenant is billed and collected for at times."""
        if not await self._subscriptions.is_scheduled():
            for spec in schedules():
                await self._scheduler.PutSchedule(PutScheduleRequest(spec=spec), timeout=_POST_SECONDS)
            await self._subscriptions.note_scheduled()

    async def on_bill_issued(self, message: BillIssued, event: Event) -> None:
        """One that is not paid at once is invoiced as it is issued; the first of a subscription when it is paid, for
        without that there is no subscription."""
        await self._invoice(await self._selling.unpaid(message.bill_id))

    async def on_bill_paid(self, message: BillPaid, event: Event) -> None:
        await self._invoice(await self._selling.sell(message.bill_id))

    async def _invoice(self, bill: Row | None) -> None:
        if bill is not None:
            with contextlib.suppress(SellerUnknown):  # it is invoiced when the tenant has a letterhead
                await self._selling.invoice(bill)

    async def on_payment_disputed(self, message: PaymentDisputed, event: Event) -> None:
        debit, credit = postings.DISPUTES, held_by(message.provider)
        await self._post(event, message, debit, credit, message.amount, f"dispute/{message.dispute_id}")

    async def on_dispute_closed(self, message: DisputeClosed, event: Event) -> None:
        """One that was won gives the money back; one that was lost has been booked when it began."""
        if message.won:
            debit, credit = held_by(message.provider), postings.DISPUTES
            await self._post(event, message, debit, credit, message.amount, f"dispute/{message.dispute_id}/won")

    async def _post(
        self, event: Event, message: Message, debit: Account, credit: Account, amount: Money, reference: str
    ) -> None:
        about = {
            name: str(getattr(message, name))
            for name in ("payment_id", "customer_id", "reference")
            if getattr(message, name, "")
        }
        transaction = postings.transaction(debit, credit, amount, reference, about)
        request = PostTransactionRequest(idempotency_key=event.event_id, transaction=transaction)
        await self._ledger.PostTransaction(request, timeout=_POST_SECONDS)
