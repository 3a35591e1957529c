"""What auth-service does when others tell it something."""

from nexus.identity.user_auth.v1.events_pb2 import UserErased
from nexus.type.v1.event_pb2 import Event
from services.chassis.fields import FieldCipher
from services.chassis.lockout import Lockout
from services.chassis.service import Service
from services.identity.auth_service.factors import erase_factors
from services.identity.auth_service.spec import Config
from services.identity.auth_service.store import FactorStore


class Subscribers:
    def __init__(self, service: Service) -> None:
        config: Config = service.config
        self._store = FactorStore(service.database)
        self._lockout = Lockout(service.database, config.lockout)
        self._cipher = FieldCipher(service.clients)

    async def on_user_erased(self, message: UserErased, event: Event) -> None:
        """The user's factors go, and with their key every copy of a sealed secret."""
        await erase_factors(self._store, self._lockout, message.user_id)
        await self._cipher.shred(message.user_id)
