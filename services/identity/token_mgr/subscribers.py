"""What token-mgr does when others tell it something."""

import time

from redis.exceptions import RedisError

from nexus.identity.user_auth.v1.events_pb2 import UserErased
from nexus.type.v1.event_pb2 import Event
from nexus.type.v1.faults import DependencyUnavailable
from services.chassis.service import Service
from services.identity.token_mgr.store import TokenStore

_REMEMBER_LONGER_SECONDS = 60.0
"""Clocks differ, and the last token of a grant may be issued while its user is erased."""


class Subscribers:
    def __init__(self, service: Service) -> None:
        self._signals = service.signals
        self._access_token_seconds = service.settings.access_token_seconds
        self._store = TokenStore(service.database)

    async def on_user_erased(self, message: UserErased, event: Event) -> None:
        """Every session and grant of the user is revoked, offline ones too, and forgotten."""
        ended = await self._store.erase_user(message.user_id)
        try:
            await self._signals.end_sessions(ended, time.time() + self._access_token_seconds + _REMEMBER_LONGER_SECONDS)
        except (RedisError, OSError) as error:
            raise DependencyUnavailable(dependency="broker", retry_after=1) from error
