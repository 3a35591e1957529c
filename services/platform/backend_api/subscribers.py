"""What backend-api does when others tell it something."""

import time

from redis.exceptions import RedisError

from nexus.identity.user_auth.v1.events_pb2 import UserErased
from nexus.platform.backend_api.v1.events_pb2 import ApiKeyEnded
from nexus.type.v1.event_pb2 import Event
from nexus.type.v1.faults import DependencyUnavailable
from services.chassis.api_keys import REVOCATION_SECONDS
from services.chassis.service import Service
from services.platform.backend_api.store import ApiKeyStore


class Subscribers:
    def __init__(self, service: Service) -> None:
        self._signals = service.signals
        self._store = ApiKeyStore(service.database)
        self._events = service.events

    async def on_user_erased(self, message: UserErased, event: Event) -> None:
        """The user's keys stop to work everywhere, and are forgotten."""
        erased = await self._store.erase_user(message.user_id)
        for row in erased:
            await self._events.publish(ApiKeyEnded(key_id=row["key_id"]), row["key_id"])
        try:
            await self._signals.end_sessions([row["key_id"] for row in erased], time.time() + REVOCATION_SECONDS)
        except (RedisError, OSError) as error:
            raise DependencyUnavailable(dependency="broker", retry_after=1) from error
