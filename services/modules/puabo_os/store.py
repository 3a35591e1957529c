"""The SQL of puabo-os."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime

import asyncpg

from nexus.modules.puabo_os.v1.faults import EtagStale, PlanInUse, PlanUnknown
from nexus.type.v1.faults import TenantUnknown
from services.chassis.clock import now
from services.chassis.database import Database
from services.chassis.table import Row, Table
from services.modules.puabo_os.quotas import TOTAL, Quota
from services.modules.puabo_os.settings import PLATFORM, TENANT, USER, Value

KEEP_USAGE = "400 days"
NO_ETAG = "none"
"""The etag of a level that says nothing of a setting."""

_ERASING_SCHEMAS = """
SELECT DISTINCT n.nspname
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     JOIN pg_roles r ON r.rolname = 'nexus_' || n.nspname || '_platform'
WHERE a.attname = 'tenant_id' AND NOT a.attisdropped AND c.relkind IN ('r', 'p')
  AND NOT EXISTS (SELECT FROM nexus.erasures WHERE tenant_id = $1 AND role = r.rolname)
ORDER BY n.nspname
"""


_NEW_ETAG = "etag = gen_random_uuid()"


class TenantStore:
    """The register of tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.rows = Table(
            database,
            "nexus.tenants",
            key="tenant_id",
            order="tenant_id",
            missing=lambda tenant_id: TenantUnknown(tenant=tenant_id),
            on_update=_NEW_ETAG,
            of_tenant=False,
        )

    async def insert_new(self, tenant_id: str, display_name: str, plan_id: str) -> Row | None:
        """None when there is one of this id. Raises PlanUnknown."""
        with _plan_known(plan_id):
            return await self.rows.insert_new(tenant_id=tenant_id, display_name=display_name, plan_id=plan_id)

    async def set_state(self, tenant_id: str, state: str, erase_time: datetime | None = None) -> Row:
        return await self.rows.change(tenant_id, state=state, state_time=now(), erase_time=erase_time)

    async def set_name_and_plan(self, tenant_id: str, display_name: str, plan_id: str) -> Row:
        """Raises PlanUnknown."""
        with _plan_known(plan_id):
            return await self.rows.change(tenant_id, display_name=display_name, plan_id=plan_id)

    async def set_erased(self, tenant_id: str) -> bool:
        """Whether it was not before."""
        erasing = {"state": "erasing"}
        erased = await self.rows.update(tenant_id, where=erasing, state="erased", display_name="", state_time=now())
        return erased is not None

    async def begun_erasures(self) -> list[str]:
        rows = await self.rows.select("state = 'erasing' AND erase_time <= now()")
        return [row["tenant_id"] for row in rows]

    async def erasing_schemas(self, tenant_id: str) -> list[str]:
        """The schemas that may still have rows of a tenant: all with tables of tenants, but for those whose service
        has given its word."""
        return [row["nspname"] for row in await self._database.fetch(_ERASING_SCHEMAS, tenant_id)]


class PlanStore:
    """Plans, and what the call's tenant has of its own."""

    def __init__(self, database: Database) -> None:
        self.rows = Table(
            database,
            "plans",
            key="plan_id",
            order="plan_id",
            missing=PlanUnknown,
            on_update=_NEW_ETAG,
            of_tenant=False,
        )
        self._enabled = Table(database, "enabled_modules", key="module_id")

    async def of_tenant(self) -> Row:
        """The plan of the call's tenant."""
        of_tenant = "plan_id = (SELECT plan_id FROM nexus.tenants WHERE tenant_id = nexus.tenant_id())"
        [row] = await self.rows.select(of_tenant)
        return row

    async def delete(self, plan_id: str) -> None:
        """Raises PlanUnknown, PlanInUse."""
        try:
            if not await self.rows.delete(plan_id=plan_id):
                raise PlanUnknown(plan_id=plan_id)
        except asyncpg.ForeignKeyViolationError:
            raise PlanInUse(plan_id=plan_id) from None

    async def enabled_modules(self) -> list[str]:
        return [row["module_id"] for row in await self._enabled.all()]

    async def enable(self, module_id: str) -> bool:
        """Whether it was off."""
        return await self._enabled.insert_new(module_id=module_id) is not None

    async def disable(self, module_id: str) -> bool:
        """Whether it was on."""
        return bool(await self._enabled.delete(module_id=module_id))


class UsageStore:
    """What the call's tenant has used."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._usage = Table(database, "usage", key="counter")

    async def add(self, quota: Quota, start: datetime, amount: int) -> int | None:
        """What has been used with this amount, or None when there is not so much left. The row is locked until the
        transaction ends, so that all who consume take turns."""
        used: int | None = await self._database.fetchval(
            """
            INSERT INTO usage AS held (counter, period, period_start, used)
            SELECT $1, $2, $3, $4::bigint WHERE $4 <= coalesce($5::bigint, $4)
            ON CONFLICT (tenant_id, counter, period, period_start) DO UPDATE SET used = held.used + $4
            WHERE held.used + $4 <= coalesce($5, held.used + $4)
            RETURNING used
            """,
            quota.counter,
            quota.period,
            start,
            amount,
            quota.limit,
        )
        return used

    async def begin_total(self, quota: Quota, start: datetime, present: int) -> None:
        """Begin a total with what is there, where none is kept. While the plan asks for none, none is."""
        if quota.period != TOTAL:
            await self.forget_total(quota.counter)
            return
        await self._usage.insert_new(counter=quota.counter, period=quota.period, period_start=start, used=present)

    async def forget_total(self, counter: str) -> None:
        await self._usage.delete(counter=counter, period=TOTAL)

    async def take_back(self, quota: Quota, start: datetime, amount: int) -> int:
        """What is used without this amount."""
        used: int | None = await self._database.fetchval(
            """
            UPDATE usage SET used = greatest(used - $4, 0)
            WHERE tenant_id = nexus.tenant_id() AND counter = $1 AND period = $2 AND period_start = $3 RETURNING used
            """,
            quota.counter,
            quota.period,
            start,
            amount,
        )
        return used or 0

    async def of(self, quota: Quota, start: datetime) -> int:
        row = await self._usage.find(counter=quota.counter, period=quota.period, period_start=start)
        return row["used"] if row is not None else 0

    async def counters(self, since: datetime) -> list[str]:
        """What has been counted since then."""
        rows = await self._database.fetch(
            "SELECT DISTINCT counter FROM usage WHERE tenant_id = nexus.tenant_id() AND period_start >= $1", since
        )
        return [row["counter"] for row in rows]

    async def forget_old(self) -> None:
        async with self._database.transaction(platform_wide=True):
            await self._database.execute(
                f"DELETE FROM usage WHERE period <> 'total' AND period_start < now() - interval '{KEEP_USAGE}'"
            )


class SettingStore:
    """What the platform, the call's tenant and its users say of settings."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._settings = Table(database, "settings", key="key")

    async def said(self, user_id: str, key: str | None = None) -> dict[str, dict[str, tuple[Value, str]]]:
        """(value, etag) by key and level. `user_id` is empty for the tenant's own; one key or all."""
        rows = await self._database.fetch(
            f"""
            SELECT '{PLATFORM}' AS level, key, value, etag FROM platform_settings
            WHERE $2::text IS NULL OR key = $2
            UNION ALL
            SELECT CASE user_id WHEN '' THEN '{TENANT}' ELSE '{USER}' END, key, value, etag FROM settings
            WHERE tenant_id = nexus.tenant_id() AND user_id IN ('', $1) AND ($2::text IS NULL OR key = $2)
            """,
            user_id,
            key,
        )
        found: dict[str, dict[str, tuple[Value, str]]] = {}
        for row in rows:
            found.setdefault(row["key"], {})[row["level"]] = (json.loads(row["value"]), row["etag"])
        return found

    async def put(self, level: str, user_id: str, key: str, value: Value | None, etag: str) -> None:
        """Say something at a level, or nothing any more. Raises EtagStale unless `etag` is empty or the level's."""
        table, columns = "settings", {"key": key, "user_id": user_id}
        if level == PLATFORM:
            table, columns = "platform_settings", {"key": key}
        where = " AND ".join(f"{column} = ${number}" for number, column in enumerate(columns, start=1))
        places = ", ".join(f"${number}" for number in range(1, len(columns) + 2))
        async with self._database.transaction():
            # Whoever sets the same key meanwhile waits for this, also where there is no row to lock yet.
            await self._database.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(concat_ws(' ', nexus.tenant_id(), $1::text), 2))",
                f"{level} {user_id} {key}",
            )
            current = await self._database.fetchval(f"SELECT etag FROM {table} WHERE {where}", *columns.values())
            if etag not in ("", current or NO_ETAG):
                raise EtagStale()
            await self._database.execute(f"DELETE FROM {table} WHERE {where}", *columns.values())
            if value is not None:
                await self._database.execute(
                    f"INSERT INTO {table} ({', '.join(columns)}, value) VALUES ({places})",
                    *columns.values(),
                    json.dumps(value),
                )

    async def erase_user(self, user_id: str) -> None:
        await self._settings.delete(user_id=user_id)


def quotas_of(plan: Row) -> list[Quota]:
    return [Quota(**quota) for quota in json.loads(plan["quotas"])]


def json_of(quotas: Sequence[Quota]) -> str:
    return json.dumps(list(map(asdict, quotas)))


@contextmanager
def _plan_known(plan_id: str) -> Iterator[None]:
    """Raises PlanUnknown."""
    try:
        yield
    except asyncpg.ForeignKeyViolationError:
        raise PlanUnknown(plan_id=plan_id) from None
