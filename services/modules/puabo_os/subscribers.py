"""What puabo-os does when others tell it something."""

from nexus.identity.user_auth.v1.events_pb2 import UserErased
from nexus.platform.backend_api.v1.events_pb2 import ApiKeyEnded
from nexus.type.v1.event_pb2 import Event
from services.chassis.clock import now
from services.chassis.service import Service
from services.modules.puabo_os.quotas import TOTAL, quota_of
from services.modules.puabo_os.store import PlanStore, SettingStore, UsageStore, quotas_of

_USERS, _API_KEYS = "users", "api_keys"
"""What user-auth and backend-api take one of for each user and key."""


class Subscribers:
    def __init__(self, service: Service) -> None:
        self._settings = SettingStore(service.database)
        self._plans = PlanStore(service.database)
        self._usage = UsageStore(service.database)

    async def on_user_erased(self, message: UserErased, event: Event) -> None:
        """What the user set for themselves goes, and their place is free."""
        await self._settings.erase_user(message.user_id)
        await self._give_back(_USERS)

    async def on_api_key_ended(self, message: ApiKeyEnded, event: Event) -> None:
        await self._give_back(_API_KEYS)

    async def _give_back(self, counter: str) -> None:
        quota = quota_of(counter, quotas_of(await self._plans.of_tenant()))
        if quota.period != TOTAL:
            await self._usage.forget_total(counter)  # it would be one too many, should the plan ask for it again
        await self._usage.take_back(quota, quota.start(now()), 1)
