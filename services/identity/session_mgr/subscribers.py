"""What session-mgr does when others tell it something."""

from nexus.identity.user_auth.v1.events_pb2 import UserErased
from nexus.type.v1.event_pb2 import Event
from services.chassis.service import Service
from services.identity.session_mgr.store import SessionStore


class Subscribers:
    def __init__(self, service: Service) -> None:
        self._store = SessionStore(service.database)

    async def on_user_erased(self, message: UserErased, event: Event) -> None:
        """The sessions ended before the user was erased; now devices and addresses are forgotten too."""
        await self._store.erase_user(message.user_id)
