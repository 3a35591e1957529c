"""What puabo-os does when others tell it something."""

from nexus.identity.user_auth.v1.events_pb2 import UserErased
from nexus.type.v1.event_pb2 import Event
from services.chassis.service import Service
from services.modules.puabo_os.store import SettingStore


class Subscribers:
    def __init__(self, service: Service) -> None:
        self._settings = SettingStore(service.database)

    async def on_user_erased(self, message: UserErased, event: Event) -> None:
        """What the user set for themselves goes."""
        await self._settings.erase_user(message.user_id)
