"""The register of tenants, as every service reads it: remembered for a while, forgotten when it changes."""

import time

import asyncpg

from nexus.type.v1.faults import TenantSuspended, TenantUnknown
from services.chassis.database import TENANT_ID, Database
from services.chassis.signals import Signals

_REMEMBER_SECONDS = 30.0
_REMEMBER_TENANTS = 10_000
_STATE = "SELECT state FROM nexus.tenants WHERE tenant_id = $1"


class TenantDirectory:
    """Says whether a tenant may be served."""

    def __init__(self, database: Database, signals: Signals) -> None:
        self._database = database
        self._states: dict[str, tuple[str | None, float]] = {}
        self._changes = 0
        signals.on_tenant_changed(self._forget)

    async def require_active(self, tenant_id: str) -> None:
        """Raises TenantUnknown or TenantSuspended."""
        state, expires = self._states.get(tenant_id, (None, 0.0))
        if expires < time.monotonic():
            state = await self._read(tenant_id)
        if state in (None, "erased"):
            raise TenantUnknown(tenant=tenant_id)
        if state != "active":
            raise TenantSuspended(tenant=tenant_id)

    async def _read(self, tenant_id: str) -> str | None:
        if not TENANT_ID.fullmatch(tenant_id):
            raise TenantUnknown(tenant=tenant_id[:64])
        changes = self._changes
        state: str | None = await self._database.fetchval(_STATE, tenant_id)
        # An unknown tenant is not remembered: it may be made at any moment. Nor is what may have changed meanwhile.
        if state is not None and changes == self._changes:
            if len(self._states) >= _REMEMBER_TENANTS:
                self._states.clear()
            self._states[tenant_id] = (state, time.monotonic() + _REMEMBER_SECONDS)
        return state

    def _forget(self, tenant_id: str) -> None:
        self._changes += 1
        if tenant_id == "*":
            self._states.clear()
        else:
            self._states.pop(tenant_id, None)


async def create_tenant(admin: asyncpg.Connection, tenant_id: str, display_name: str) -> bool:
    """Enter a tenant into the register; says whether it is new. Needs the platform's own database user."""
    return bool(
        await admin.fetchval(
            "INSERT INTO nexus.tenants (tenant_id, display_name) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true",
            tenant_id,
            display_name,
        )
    )
