"""What a tenant has set, as the services that go by it read it: asked of puabo-os, remembered for a minute, forgotten
when it changes. A service that uses this declares puabo-os among its `calls`."""

import logging
import time
from dataclasses import dataclass, replace

from nexus.modules.puabo_os.v1.settings_pb2 import ResolveSettingsRequest, SettingValue
from nexus.modules.puabo_os.v1.settings_pb2_grpc import SettingServiceStub
from nexus.type.v1.faults import DeadlineExceeded, DependencyUnavailable
from services.chassis.clients import Clients
from services.chassis.context import current_tenant
from services.chassis.signals import Signals

_REMEMBER_SECONDS = 60.0
_REMEMBER_TENANTS = 10_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Settings:
    values: dict[str, SettingValue]
    expires: float
    """On the clock of `time.monotonic`."""


class TenantSettings:
    """Settings in effect for the tenant of the call or of `acting_for`.

    While puabo-os is away, what was in effect last holds; methods raise DependencyUnavailable for a tenant of which
    nothing is known.
    """

    def __init__(self, clients: Clients, signals: Signals) -> None:
        self._settings = clients.stub(SettingServiceStub)
        self._remembered: dict[str, _Settings] = {}
        self._changes = 0
        signals.on_tenant_changed(self._forget)

    async def flag(self, key: str) -> bool:
        return (await self._value(key)).flag

    async def number(self, key: str) -> int:
        return (await self._value(key)).number

    async def text(self, key: str) -> str:
        return (await self._value(key)).text

    async def _value(self, key: str) -> SettingValue:
        tenant = current_tenant()
        assert tenant is not None, "settings belong to a tenant: ask in a call of one, or in acting_for"
        known = self._remembered.get(tenant)
        if known is None or known.expires < time.monotonic():
            known = await self._read(tenant, known)
        return known.values[key]

    async def _read(self, tenant: str, last: _Settings | None) -> _Settings:
        changes = self._changes
        try:
            answer = await self._settings.ResolveSettings(ResolveSettingsRequest())
        except (DependencyUnavailable, DeadlineExceeded) as error:
            if last is None:
                raise
            logger.warning("settings may be old: %s", error, extra={"tenant": tenant})
            return last
        # What may have changed while it was read holds for this call only.
        expires = time.monotonic() + _REMEMBER_SECONDS if changes == self._changes else 0.0
        read = _Settings({setting.key: setting.value for setting in answer.settings}, expires)
        if len(self._remembered) >= _REMEMBER_TENANTS:
            self._remembered.clear()
        self._remembered[tenant] = read
        return read

    def _forget(self, tenant: str) -> None:
        self._changes += 1
        changed = list(self._remembered) if tenant == "*" else [tenant]
        for each in changed:
            if each in self._remembered:
                self._remembered[each] = replace(self._remembered[each], expires=0.0)
