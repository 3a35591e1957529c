"""Rows of one tenant are never another's, whatever happens to the connection; and transactions are whole."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from pydantic import SecretStr

from nexus.type.v1.faults import Conflict, DeadlineExceeded, DependencyUnavailable
from services.chassis import context
from services.chassis.config import Settings
from services.chassis.database import Database, acting_for, service_dsn
from services.chassis.spec import ServiceSpec, discover
from tests.chassis.calls import USERS, call_of
from tests.platforms import Tenant

TENANT_OF_SESSION = "SELECT nexus.tenant_id()"
NAMES = "SELECT name FROM roles ORDER BY name"
INSERT = "INSERT INTO roles (name, description, allow, deny) VALUES ($1, '', '{}', '{}')"
UPDATE = "UPDATE roles SET description = $2 WHERE name = $1"


def spec() -> ServiceSpec:
    return discover()["user-auth"]


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """The database as user-auth has it."""
    database = Database(settings, spec())
    await database.start()
    yield database
    await database.stop()


@pytest.fixture
async def narrow(settings: Settings) -> AsyncIterator[Database]:
    """One connection, so that every query follows the last one on it."""
    database = Database(settings.model_copy(update={"database_pool_size": 1}), spec())
    await database.start()
    yield database
    await database.stop()


async def insert(database: Database, name: str) -> None:
    await database.execute(INSERT, name)


async def names(database: Database) -> list[str]:
    return [row["name"] for row in await database.fetch(NAMES)]


async def test_a_tenant_sees_and_changes_its_own_rows_only(
    database: Database, tenant: Tenant, other_tenant: Tenant
) -> None:
    with acting_for(tenant.tenant_id):
        await insert(database, "ours")
    with acting_for(other_tenant.tenant_id):
        assert await names(database) == []
        assert await database.execute(UPDATE, "ours", "stolen") == 0
        assert await database.execute("DELETE FROM roles WHERE name = 'ours'") == 0
        await insert(database, "theirs")
        assert await names(database) == ["theirs"]
    with acting_for(tenant.tenant_id):
        assert await names(database) == ["ours"]
        assert await database.fetchval("SELECT tenant_id FROM roles") == tenant.tenant_id


async def test_a_row_cannot_be_written_for_or_moved_to_another_tenant(
    database: Database, tenant: Tenant, other_tenant: Tenant
) -> None:
    with acting_for(tenant.tenant_id):
        await insert(database, "ours")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute(
                "INSERT INTO roles (tenant_id, name, description, allow, deny) VALUES ($1, 'theirs', '', '{}', '{}')",
                other_tenant.tenant_id,
            )
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute("UPDATE roles SET tenant_id = $1", other_tenant.tenant_id)


async def test_without_a_tenant_there_are_no_rows_and_none_can_be_written(database: Database, tenant: Tenant) -> None:
    with acting_for(tenant.tenant_id):
        await insert(database, "ours")
    assert await names(database) == []
    async with database.transaction():
        assert await names(database) == []
    with pytest.raises(asyncpg.PostgresError):
        await insert(database, "nobody's")


async def test_each_query_on_one_connection_has_the_tenant_of_its_own_call(
    narrow: Database, tenant: Tenant, other_tenant: Tenant
) -> None:
    with acting_for(tenant.tenant_id):
        await insert(narrow, "ours")
        async with narrow.transaction():
            assert await names(narrow) == ["ours"]
    assert await names(narrow) == []
    with acting_for(other_tenant.tenant_id):
        assert await names(narrow) == []
        async with narrow.transaction():
            assert await names(narrow) == []
    with acting_for(tenant.tenant_id):
        assert await names(narrow) == ["ours"]


async def test_a_transaction_that_fails_leaves_its_tenant_to_nobody(
    narrow: Database, tenant: Tenant, other_tenant: Tenant
) -> None:
    with acting_for(tenant.tenant_id):
        await insert(narrow, "ours")
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with narrow.transaction():
                await narrow.fetchval("SELECT 1 / 0")
    with acting_for(other_tenant.tenant_id):
        assert await names(narrow) == []
    assert await names(narrow) == []


@pytest.mark.parametrize("turns", range(12))
async def test_a_query_cancelled_at_any_moment_leaves_its_tenant_to_nobody(
    narrow: Database, tenant: Tenant, other_tenant: Tenant, turns: int
) -> None:
    with acting_for(other_tenant.tenant_id):
        await narrow.fetchval("SELECT 1")
    with acting_for(tenant.tenant_id):
        query = asyncio.create_task(narrow.fetchval("SELECT 1"))
    await _cancel_after(turns, query)
    with acting_for(other_tenant.tenant_id):
        assert await narrow.fetchval(TENANT_OF_SESSION) == other_tenant.tenant_id


@pytest.mark.parametrize("turns", range(12))
async def test_a_transaction_cancelled_at_any_moment_leaves_its_tenant_to_nobody(
    narrow: Database, tenant: Tenant, other_tenant: Tenant, turns: int
) -> None:
    async def work() -> None:
        async with narrow.transaction():
            await insert(narrow, "half")
            await narrow.fetchval("SELECT pg_sleep(5)")

    with acting_for(other_tenant.tenant_id):
        await narrow.fetchval("SELECT 1")
    with acting_for(tenant.tenant_id):
        transaction = asyncio.create_task(work())
    await _cancel_after(turns, transaction)
    with acting_for(other_tenant.tenant_id):
        assert await narrow.fetchval(TENANT_OF_SESSION) == other_tenant.tenant_id
        await insert(narrow, "kept")
    with acting_for(tenant.tenant_id):
        assert await names(narrow) == []
    with acting_for(other_tenant.tenant_id):
        assert await names(narrow) == ["kept"]


async def _cancel_after(turns: int, task: "asyncio.Task[None]") -> None:
    """Cancel a task after some turns of the loop, and once more while it is cleaning up."""
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_many_tenants_at_once_on_few_connections_never_see_each_other(
    settings: Settings, tenant: Tenant, other_tenant: Tenant
) -> None:
    database = Database(settings.model_copy(update={"database_pool_size": 2}), spec())
    await database.start()

    async def visit(visitor: Tenant, turn: int) -> None:
        with acting_for(visitor.tenant_id):
            if turn % 3:
                assert await database.fetchval(TENANT_OF_SESSION) == visitor.tenant_id
            else:
                async with database.transaction():
                    assert await database.fetchval(TENANT_OF_SESSION) == visitor.tenant_id

    async def visit_without_tenant() -> None:
        assert await database.fetchval(TENANT_OF_SESSION) is None

    visits = [visit(visitor, turn) for turn in range(60) for visitor in (tenant, other_tenant)]
    await asyncio.gather(*visits, *(visit_without_tenant() for _ in range(30)))
    await database.stop()


async def test_a_call_has_its_own_tenant_but_while_it_acts_for_another(
    database: Database, tenant: Tenant, other_tenant: Tenant
) -> None:
    async def serve() -> list[str | None]:
        context.enter(call_of(USERS + "GetUser", tenant.tenant_id))
        seen = [await database.fetchval(TENANT_OF_SESSION)]
        with acting_for(other_tenant.tenant_id):
            seen.append(await database.fetchval(TENANT_OF_SESSION))
        return [*seen, await database.fetchval(TENANT_OF_SESSION)]

    assert await asyncio.create_task(serve()) == [tenant.tenant_id, other_tenant.tenant_id, tenant.tenant_id]
    assert await database.fetchval(TENANT_OF_SESSION) is None


@pytest.mark.parametrize("tenant_id", ["x'; SET ROLE nexus_user_auth_platform; --", "UPPER", "a" * 64, "é", "a\n"])
async def test_what_is_not_a_tenant_id_reaches_no_query(database: Database, tenant_id: str) -> None:
    with acting_for(tenant_id):
        with pytest.raises(ValueError, match="not a tenant id"):
            await database.fetchval("SELECT 1")
        with pytest.raises(ValueError, match="not a tenant id"):
            async with database.transaction():
                pass


async def test_a_transaction_commits_or_rolls_back_as_a_whole(database: Database, tenant: Tenant) -> None:
    async def fail() -> None:
        async with database.transaction():
            await insert(database, "third")
            raise RuntimeError

    with acting_for(tenant.tenant_id):
        async with database.transaction():
            await insert(database, "first")
            await insert(database, "second")
        with pytest.raises(RuntimeError):
            await fail()
        assert await names(database) == ["first", "second"]


async def test_a_transaction_within_another_is_part_of_it(database: Database, tenant: Tenant) -> None:
    async def inner() -> None:
        async with database.transaction():
            await insert(database, "inner")

    async def fail() -> None:
        async with database.transaction():
            await inner()
            assert await names(database) == ["inner"]
            raise RuntimeError

    with acting_for(tenant.tenant_id):
        with pytest.raises(RuntimeError):
            await fail()
        assert await names(database) == []
        async with database.transaction():
            await inner()
        assert await names(database) == ["inner"]


async def test_others_see_a_transaction_only_when_it_has_committed(database: Database, tenant: Tenant) -> None:
    written, seen = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        async with database.transaction():
            await insert(database, "new")
            written.set()
            await seen.wait()

    with acting_for(tenant.tenant_id):
        writer = asyncio.create_task(write())
        await written.wait()
        assert await names(database) == []
        seen.set()
        await writer
        assert await names(database) == ["new"]


async def test_a_connection_serves_on_after_a_statement_that_failed(narrow: Database, tenant: Tenant) -> None:
    async def insert_both() -> None:
        async with narrow.transaction():
            await insert(narrow, "bob")
            await insert(narrow, "ann")

    with acting_for(tenant.tenant_id):
        await insert(narrow, "ann")
        with pytest.raises(asyncpg.UniqueViolationError):
            await insert(narrow, "ann")
        assert await names(narrow) == ["ann"]
        with pytest.raises(asyncpg.UniqueViolationError):
            await insert_both()
        assert await names(narrow) == ["ann"]


async def test_a_platform_wide_transaction_sees_all_tenants_and_the_next_query_one(
    narrow: Database, tenant: Tenant, other_tenant: Tenant
) -> None:
    both = [tenant.tenant_id, other_tenant.tenant_id]
    for each in both:
        with acting_for(each):
            await insert(narrow, each)
    async with narrow.transaction(platform_wide=True):
        seen = await narrow.fetch("SELECT name FROM roles WHERE tenant_id = ANY($1)", both)
        assert sorted(row["name"] for row in seen) == sorted(both)
        assert await narrow.execute("UPDATE roles SET allow = '{x}' WHERE tenant_id = ANY($1)", both) == 2
    assert await names(narrow) == []
    with acting_for(tenant.tenant_id):
        assert await names(narrow) == [tenant.tenant_id]


async def test_a_platform_wide_transaction_is_no_tenants_whoever_was_served_before(
    narrow: Database, tenant: Tenant
) -> None:
    with acting_for(tenant.tenant_id):
        assert await narrow.fetchval("SELECT nexus.tenant_id()") == tenant.tenant_id
        async with narrow.transaction(platform_wide=True):
            assert not await narrow.fetchval("SELECT nexus.tenant_id()")
        assert await narrow.fetchval("SELECT nexus.tenant_id()") == tenant.tenant_id


async def test_a_tenants_transaction_cannot_become_platform_wide(database: Database, tenant: Tenant) -> None:
    with acting_for(tenant.tenant_id):
        async with database.transaction():
            with pytest.raises(AssertionError):
                async with database.transaction(platform_wide=True):
                    pass


async def test_execute_says_how_many_rows_it_touched(database: Database, tenant: Tenant) -> None:
    with acting_for(tenant.tenant_id):
        await database.executemany(INSERT, [("ann",), ("bob",)])
        assert await database.execute("UPDATE roles SET allow = '{x}'") == 2
        assert await database.execute("DELETE FROM roles WHERE name = 'carl'") == 0
        assert await database.execute("SELECT 1") == 1
        assert await database.execute("SET LOCAL nexus.unused = ''") == 0


async def test_a_lost_race_is_a_conflict(database: Database, tenant: Tenant) -> None:
    """Two transactions that each wait for the other: PostgreSQL ends one of them."""
    begun = asyncio.Barrier(2)

    async def change(first: str, second: str) -> None:
        async with database.transaction():
            await database.execute(UPDATE, first, "x")
            await begun.wait()
            await database.execute(UPDATE, second, "x")

    with acting_for(tenant.tenant_id):
        await insert(database, "ann")
        await insert(database, "bob")
        outcomes = await asyncio.gather(change("ann", "bob"), change("bob", "ann"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [Conflict]


async def test_a_statement_that_takes_too_long_is_cut_off(database: Database) -> None:
    async with database.transaction():
        await database.execute("SET LOCAL statement_timeout = 50")
        with pytest.raises(DeadlineExceeded):
            await database.fetchval("SELECT pg_sleep(5)")


async def test_a_server_that_is_away_is_an_unavailable_dependency(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": SecretStr("postgresql://postgres@127.0.0.1:1/nexus")})
    database = Database(away, spec())
    await database.start()
    with pytest.raises(DependencyUnavailable) as raised:
        await database.fetchval("SELECT 1")
    assert raised.value.metadata == {"dependency": "database"}
    assert raised.value.retry_after == 1
    with pytest.raises(DependencyUnavailable):
        async with database.transaction():
            raise AssertionError("there is no transaction to be in")
    await database.stop()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 10, 100, 1000])
async def test_a_connection_cut_inside_a_transaction_is_an_unavailable_dependency_and_is_replaced(
    narrow: Database, tenant: Tenant, turns: int
) -> None:
    """However far the client has got with noticing it when the next query comes."""
    admin = await tenant.platform.admin()

    async def lose_connection() -> None:
        async with narrow.transaction():
            await insert(narrow, "lost")
            pid = await narrow.fetchval("SELECT pg_backend_pid()")
            await admin.execute("SELECT pg_terminate_backend($1)", pid)
            for _ in range(turns):
                await asyncio.sleep(0)
            await insert(narrow, "lost too")

    try:
        with acting_for(tenant.tenant_id):
            with pytest.raises(DependencyUnavailable):
                await lose_connection()
            assert await names(narrow) == []
            assert await narrow.fetchval(TENANT_OF_SESSION) == tenant.tenant_id
    finally:
        await admin.close()


async def test_queries_of_two_databases_in_one_task_do_not_share_a_transaction(
    database: Database, settings: Settings, tenant: Tenant
) -> None:
    sessions = Database(settings, discover()["session-mgr"])
    await sessions.start()
    with acting_for(tenant.tenant_id):
        async with database.transaction():
            assert await database.fetchval("SELECT current_user") == "nexus_user_auth"
            assert await sessions.fetchval("SELECT current_user") == "nexus_session_mgr"
    await sessions.stop()


def test_a_service_connects_as_its_own_role() -> None:
    def dsn(url: str, **more: object) -> str:
        return service_dsn(Settings(database_url=SecretStr(url), **more), spec())  # type: ignore[arg-type]

    assert dsn("postgresql://postgres:pw@db:5432/nexus") == "postgresql://nexus_user_auth@db:5432/nexus"
    assert dsn("postgresql://postgres@/nexus?host=%2Frun") == "postgresql://nexus_user_auth@/nexus?host=%2Frun"
    own = "postgresql://nexus_user_auth:given@db/nexus"
    assert dsn(own) == own
    derived = dsn("postgresql://postgres:pw@db/nexus", database_role_key=SecretStr("k" * 32))
    assert derived.startswith("postgresql://nexus_user_auth:")
    assert "pw" not in derived
    assert derived == dsn("postgresql://postgres:pw@db/nexus", database_role_key=SecretStr("k" * 32))
    assert derived != dsn("postgresql://postgres:pw@db/nexus", database_role_key=SecretStr("l" * 32))
