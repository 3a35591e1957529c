"""The database keeps tenants and services apart by itself, whatever a query says."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from services.chassis.config import Settings
from services.chassis.database import service_dsn
from services.chassis.spec import ServiceSpec, discover
from tests.platforms import Platform

WITHOUT_TENANT = {
    "puabo_os.plans": "are what the platform offers to its tenants",
    "puabo_os.platform_settings": "are what the platform says, for all tenants to inherit",
    "token_mgr.signing_keys": "sign the access tokens of the whole platform",
}
KEEPS_THE_REGISTER = "puabo-os"
EVERY_SERVICE = pytest.mark.parametrize("spec", discover().values(), ids=list(discover()))


@pytest.fixture
async def admin(platform: Platform) -> AsyncIterator[asyncpg.Connection]:
    connection = await platform.admin()
    yield connection
    await connection.close()


async def tables(admin: asyncpg.Connection, spec: ServiceSpec) -> list[asyncpg.Record]:
    found: list[asyncpg.Record] = await admin.fetch(
        """
        SELECT c.relname AS name, c.relrowsecurity AS guarded, c.relowner::regrole::text AS owner,
               EXISTS (SELECT FROM pg_attribute a
                       WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped) AS has_tenant,
               EXISTS (SELECT FROM pg_attribute a
                       WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND a.attnotnull) AS needs_tenant
        FROM pg_class c
        WHERE c.relnamespace = $1::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        """,
        spec.schema,
    )
    return found


@EVERY_SERVICE
async def test_a_table_without_tenants_has_a_reason(admin: asyncpg.Connection, spec: ServiceSpec) -> None:
    found = await tables(admin, spec)
    assert found, f"{spec.schema} has no tables: not even the chassis's own"
    unguarded = [f"{spec.schema}.{table['name']}" for table in found if not table["has_tenant"]]
    assert not [table for table in unguarded if table not in WITHOUT_TENANT]


async def test_the_list_of_tables_without_tenants_is_true(admin: asyncpg.Connection) -> None:
    assert not [name for name in WITHOUT_TENANT if await admin.fetchval("SELECT to_regclass($1)", name) is None]


@EVERY_SERVICE
async def test_every_row_of_a_tenant_is_guarded(admin: asyncpg.Connection, spec: ServiceSpec) -> None:
    for table in await tables(admin, spec):
        if not table["has_tenant"]:
            continue
        name = f"{spec.schema}.{table['name']}"
        assert table["guarded"], f"{name}: call nexus.guard_tenant_rows"
        assert table["needs_tenant"], f"{name}.tenant_id may be null"
        policies = await admin.fetch(
            "SELECT policyname, permissive, roles::text[] AS roles, cmd, qual, with_check FROM pg_policies "
            "WHERE schemaname = $1 AND tablename = $2 ORDER BY policyname DESC",
            spec.schema,
            table["name"],
        )
        assert [(p["policyname"], p["roles"], p["cmd"], p["qual"], p["with_check"]) for p in policies] == [
            ("tenant", [spec.role], "ALL", "(tenant_id = nexus.tenant_id())", None),
            ("platform", [f"{spec.role}_platform"], "ALL", "true", None),
        ], name


@EVERY_SERVICE
async def test_views_and_functions_do_not_lift_the_guard(admin: asyncpg.Connection, spec: ServiceSpec) -> None:
    views = await admin.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = $1::regnamespace AND relkind IN ('v', 'm') "
        "AND NOT coalesce(reloptions, '{}') @> '{security_invoker=true}'",
        spec.schema,
    )
    functions = await admin.fetch(
        "SELECT proname FROM pg_proc WHERE pronamespace = $1::regnamespace AND prosecdef", spec.schema
    )
    assert not [*views, *functions]


@EVERY_SERVICE
async def test_the_role_of_a_service_has_no_power_of_its_own(admin: asyncpg.Connection, spec: ServiceSpec) -> None:
    for role in (spec.role, f"{spec.role}_platform"):
        row = await admin.fetchrow(
            "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolinherit, rolcanlogin "
            "FROM pg_roles WHERE rolname = $1",
            role,
        )
        assert row is not None, role
        powers = [name for name, has in row.items() if has and name not in ("rolinherit", "rolcanlogin")]
        assert not powers, role
        assert row["rolcanlogin"] == (role == spec.role), role
        owned = await admin.fetch("SELECT relname FROM pg_class WHERE relowner = $1::regrole", role)
        assert not owned, role
    # It must not have the rights of its _platform role without asking for them.
    assert not await admin.fetchval("SELECT rolinherit FROM pg_roles WHERE rolname = $1", spec.role)
    assert await admin.fetch(
        "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = $1::regrole", spec.role
    ) == [(f"{spec.role}_platform",)]


@EVERY_SERVICE
async def test_a_service_cannot_read_or_write_another_schema(
    admin: asyncpg.Connection, settings: Settings, spec: ServiceSpec
) -> None:
    others = [other for other in discover().values() if other is not spec]
    for role in (spec.role, f"{spec.role}_platform"):
        entered = await admin.fetch(
            "SELECT other FROM unnest($2::text[]) AS other "
            "WHERE has_schema_privilege($1, other, 'USAGE') OR has_schema_privilege($1, other, 'CREATE')",
            role,
            [other.schema for other in others],
        )
        assert not entered, role
    connection = await asyncpg.connect(service_dsn(settings, spec))
    try:
        assert await connection.fetchval("SELECT current_user") == spec.role
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch(f"SELECT * FROM {others[0].schema}.idempotency_keys")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"SET ROLE {others[0].role}")
    finally:
        await connection.close()


@EVERY_SERVICE
async def test_a_service_cannot_change_its_own_tables_or_the_register_of_tenants(
    settings: Settings, spec: ServiceSpec
) -> None:
    connection = await asyncpg.connect(service_dsn(settings, spec))
    try:
        for statement in (
            f"ALTER TABLE {spec.schema}.idempotency_keys DISABLE ROW LEVEL SECURITY",
            f"DROP POLICY tenant ON {spec.schema}.idempotency_keys",
            f"CREATE TABLE {spec.schema}.own (id int)",
            "CREATE TABLE nexus.own (id int)",
            f"TRUNCATE {spec.schema}.idempotency_keys",
            *(["UPDATE nexus.tenants SET state = 'active'"] if spec.id != KEEPS_THE_REGISTER else []),
            "DELETE FROM nexus.tenants",
            "UPDATE nexus.erasures SET role = 'nexus_user_auth_platform'",
            "INSERT INTO nexus.erasures (tenant_id, role) VALUES ('platform', 'another')",
            "DELETE FROM nexus.erasures",
            "SELECT * FROM nexus.migrations",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


@EVERY_SERVICE
async def test_a_service_can_erase_a_tenant_from_each_of_its_tables(
    admin: asyncpg.Connection, spec: ServiceSpec
) -> None:
    """Append-only tables take DELETE from the service's own role, not from the one for jobs over all tenants; a
    trigger that keeps rows asks `nexus.is_erased`."""
    for table in await tables(admin, spec):
        if table["has_tenant"]:
            name = f"{spec.schema}.{table['name']}"
            assert await admin.fetchval(
                "SELECT has_table_privilege($1, $2, 'DELETE')", f"{spec.role}_platform", name
            ), name
