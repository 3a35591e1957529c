"""What auth-service-v2 does when others tell it something."""

from nexus.identity.user_auth.v1.events_pb2 import UserErased
from nexus.type.v1.event_pb2 import Event
from services.chassis.service import Service
from services.identity.auth_service_v2.store import Store


class Subscribers:
    def __init__(self, service: Service) -> None:
        self._store = Store(service.database)

    async def on_user_erased(self, message: UserErased, event: Event) -> None:
        """What the user allowed clients and devices goes; token-mgr revokes what came of it."""
        await self._store.consents.delete(user_id=message.user_id)
        await self._store.devices.delete(user_id=message.user_id)
