"""Erasing a tenant, as every service does it: all of its rows, in every table that has a column tenant_id.

puabo-os decides that a tenant is erased and when; each service deletes what it has and gives its word for it in
`nexus.erasures`. What was begun goes on after a crash, since the decision is a row.
"""

import asyncio
import contextlib
import logging
from graphlib import TopologicalSorter

from services.chassis.database import Database
from services.chassis.signals import Signals
from services.chassis.spec import ServiceSpec

ROUND_SECONDS = 1.0
_LOOK_SECONDS = 60.0
_BATCH = 5_000  # rows, so that no statement meets its time-out

logger = logging.getLogger(__name__)

_DECIDED = """
SELECT tenant_id, extract(epoch FROM erase_time - now())::float AS seconds FROM nexus.tenants AS decided
WHERE state = 'erasing'
  AND NOT EXISTS (SELECT FROM nexus.erasures WHERE tenant_id = decided.tenant_id AND role = $1)
"""
_TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = $1::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND a.attname = 'tenant_id' AND NOT a.attisdropped
"""
_REFERENCES = """
SELECT c.relname AS referring, r.relname AS referred
FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid JOIN pg_class r ON r.oid = f.confrelid
WHERE f.contype = 'f' AND c.relnamespace = $1::regnamespace AND r.relnamespace = $1::regnamespace AND c.oid <> r.oid
"""
_DELETE = "DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} WHERE tenant_id = $1 LIMIT $2))"
_CONFIRM = "INSERT INTO nexus.erasures (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING"


class TenantErasure:
    """Deletes what one service has of tenants that are to be erased."""

    def __init__(self, spec: ServiceSpec, database: Database, signals: Signals) -> None:
        self._schema = spec.schema
        self._role = f"{spec.role}_platform"
        self._database = database
        self._told = asyncio.Event()
        self._next_look = 0.0
        signals.on_tenant_changed(lambda _: self._told.set())

    async def run(self) -> None:
        """Wait until a tenant has changed, or is due; then erase those that are."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._told.wait(), self._next_look)
        self._told.clear()
        self._next_look = _LOOK_SECONDS
        for tenant in await self._database.fetch(_DECIDED, self._role):
            if tenant["seconds"] > 0:
                self._next_look = min(self._next_look, tenant["seconds"])
            else:
                await self.erase(tenant["tenant_id"])

    async def erase(self, tenant_id: str) -> int:
        """Delete every row of the tenant and say so in the register; returns how many there were.

        Replicas may do so at once. The register must say that the tenant is being erased: events are deleted for
        no other reason.
        """
        deleted = 0
        for table in await self.tables():
            while count := await self._delete_batch(table, tenant_id):
                deleted += count
        async with self._database.transaction(platform_wide=True):
            await self._database.execute(_CONFIRM, tenant_id)
        logger.info("erased a tenant", extra={"service": self._schema, "tenant": tenant_id, "rows": deleted})
        return deleted

    async def tables(self) -> list[str]:
        """The tables with rows of tenants, those that refer to others first."""
        tables = {row["relname"] for row in await self._database.fetch(_TABLES, self._schema)}
        order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(tables, ()))
        for row in await self._database.fetch(_REFERENCES, self._schema):
            order.add(row["referred"], row["referring"])
        return [table for table in order.static_order() if table in tables]

    async def _delete_batch(self, table: str, tenant_id: str) -> int:
        async with self._database.transaction(platform_wide=True):
            return await self._database.execute(_DELETE.format(table=f'{self._schema}."{table}"'), tenant_id, _BATCH)
