"""What billing-service does when others tell it something."""

from nexus.identity.user_auth.v1.events_pb2 import UserCreated, UserErased
from nexus.type.v1.event_pb2 import Event
from services.chassis.service import Service
from services.finance.billing_service.stores.payments import PaymentStore


class Subscribers:
    def __init__(self, service: Service) -> None:
        self._store = PaymentStore(service.database)

    async def on_user_created(self, message: UserCreated, event: Event) -> None:
        """A user is a customer, under the same id."""
        await self._store.ensure_customer(message.user_id)

    async def on_user_erased(self, message: UserErased, event: Event) -> None:
        """Cards are forgotten; payments and bills are kept, as the law wants it, and name nobody."""
        await self._store.forget_methods(message.user_id)
