"""What billing-service does when others tell it something, or it has told itself."""

import contextlib
from typing import Any

from nexus.finance.billing_service.v1 import events_pb2 as events
from nexus.finance.invoice_gen.v1.faults import SellerUnknown
from nexus.identity.user_auth.v1.events_pb2 import UserCreated, UserErased
from nexus.platform.scheduler.v1.worker_pb2 import PutScheduleRequest
from nexus.platform.scheduler.v1.worker_pb2_grpc import WorkerServiceStub
from nexus.type.v1.event_pb2 import Event
from services.chassis.clock import now
from services.chassis.service import Service
from services.chassis.table import Row
from services.finance.billing_service import postings
from services.finance.billing_service.engine import Engine
from services.finance.billing_service.jobs import schedules
from services.finance.billing_service.postings import DISPUTES, PREPAID, Account, held_by

_CALL_SECONDS = 5.0


class Subscribers:
    """Money that moved is booked from billing's own events: they say so if and only if it did, are retried until the
    ledger has answered, and their ids are the ledger's keys."""

    def __init__(self, service: Service) -> None:
        self._store = service.shared(Engine).store
        self._selling = service.shared(Engine).selling
        self._scheduler = service.clients.stub(WorkerServiceStub)

    async def on_user_created(self, message: UserCreated, event: Event) -> None:
        """A user is a customer, under the same id."""
        await self._store.customers.insert_new(customer_id=message.user_id)

    async def on_user_erased(self, message: UserErased, event: Event) -> None:
        """Cards and addresses are forgotten; payments and bills are kept, as the law wants it, and name nobody."""
        await self._store.forget_methods(message.user_id)

    async def on_payment_processed(self, message: events.PaymentProcessed, event: Event) -> None:
        await self._post(event, message, held_by(message.provider), PREPAID, f"capture/{message.operation_id}")

    async def on_payment_refunded(self, message: events.PaymentRefunded, event: Event) -> None:
        await self._post(event, message, PREPAID, held_by(message.provider), f"refund/{message.operation_id}")
        if message.reference.startswith("bill/"):
            with contextlib.suppress(SellerUnknown):
                await self._selling.refunded(message)

    async def on_payment_disputed(self, message: events.PaymentDisputed, event: Event) -> None:
        await self._post(event, message, DISPUTES, held_by(message.provider), f"dispute/{message.dispute_id}")

    async def on_dispute_closed(self, message: events.DisputeClosed, event: Event) -> None:
        """One that was won gives the money back; one that was lost has been booked when it began."""
        if message.won:
            await self._post(event, message, held_by(message.provider), DISPUTES, f"dispute/{message.dispute_id}/won")

    async def on_subscription_changed(self, message: events.SubscriptionChanged, event: Event) -> None:
        """With its first subscription a tenant is billed and collected for at times."""
        if await self._store.scheduled.find() is None:
            for spec in schedules():
                await self._scheduler.PutSchedule(PutScheduleRequest(spec=spec), timeout=_CALL_SECONDS)
            await self._store.scheduled.insert_new(create_time=now())

    async def on_bill_issued(self, message: events.BillIssued, event: Event) -> None:
        """One that is not paid at once is invoiced as it is issued; the first of a subscription when it is paid, for
        without that there is no subscription."""
        await self._invoice(await self._selling.unpaid(message.bill_id))

    async def on_bill_paid(self, message: events.BillPaid, event: Event) -> None:
        await self._invoice(await self._selling.sell(message.bill_id))

    async def _invoice(self, bill: Row | None) -> None:
        if bill is not None:
            with contextlib.suppress(SellerUnknown):  # it is invoiced when the tenant has a letterhead
                await self._selling.invoice(bill)

    async def _post(self, event: Event, message: Any, debit: Account, credit: Account, reference: str) -> None:
        about = {
            name: getattr(message, name)
            for name in ("payment_id", "customer_id", "reference")
            if getattr(message, name)
        }
        await self._selling.post(
            postings.transaction(debit, credit, message.amount, reference, about), key=event.event_id
        )
