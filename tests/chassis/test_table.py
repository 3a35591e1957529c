"""A table's everyday statements, on rows of the call's tenant and no others."""

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nexus.finance.billing_service.v1.plans_pb2 import Feature, Plan
from nexus.identity.user_auth.v1.faults import RoleNotFound
from nexus.platform.backend_api.v1.backend_api_pb2 import ListRoutesRequest
from services.chassis.config import Settings
from services.chassis.database import Database, acting_for
from services.chassis.ids import new_id
from services.chassis.paging import Pager
from services.chassis.sealing import Sealer
from services.chassis.spec import discover
from services.chassis.table import Table, stored
from tests.chassis.calls import PLATFORM, call_of
from tests.platforms import Tenant


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """The database as user-auth has it."""
    database = Database(settings, discover()["user-auth"])
    await database.start()
    yield database
    await database.stop()


@pytest.fixture
def roles(database: Database) -> Table:
    return Table(
        database,
        "roles",
        key="name",
        order="name",
        missing=lambda name: RoleNotFound(role=name),
        on_update="version = roles.version + 1",
    )


@pytest.fixture(autouse=True)
def our_tenant(tenant: Tenant) -> Iterator[None]:
    with acting_for(tenant.tenant_id):
        yield


@pytest.fixture
async def plans(settings: Settings) -> AsyncIterator[Table]:
    """The platform's, as puabo-os has them."""
    database = Database(settings, discover()["puabo-os"])
    await database.start()
    yield Table(database, "plans", key="plan_id", order="plan_id", of_tenant=False)
    await database.stop()


async def add(roles: Table, *names: str) -> None:
    await roles.insert_all({"name": name, "description": "", "allow": ["a.b"], "deny": []} for name in names)


async def test_a_row_is_inserted_and_read_back(roles: Table) -> None:
    inserted = await roles.insert(name="clerk", description="at the till", allow=["orders.read"], deny=[])
    assert inserted["version"] == 1
    assert await roles.get("clerk") == inserted
    assert await roles.find(description="at the till", version=1) == inserted
    assert await roles.get("nobody") is None


async def test_a_row_that_is_there_is_not_inserted_again(roles: Table) -> None:
    await add(roles, "clerk")
    again = {"name": "clerk", "description": "another", "allow": [], "deny": []}
    assert await roles.insert_new(**again) is None
    await roles.insert_all([again])
    with pytest.raises(asyncpg.UniqueViolationError):
        await roles.insert(**again)
    assert [row["description"] for row in await roles.all()] == [""]


async def test_putting_inserts_or_changes(roles: Table) -> None:
    first = await roles.put(name="clerk", description="one", allow=["a.b"], deny=[])
    second = await roles.put(name="clerk", description="two", allow=["a.b"], deny=[])
    assert (first["description"], second["description"], second["version"]) == ("one", "two", 2)


async def test_many_rows_are_put_at_once(roles: Table) -> None:
    await add(roles, "clerk")
    new = ({"name": name, "description": "new", "allow": ["a.b"], "deny": []} for name in ("clerk", "chief"))
    await roles.put_all(new)
    await roles.put_all([])
    assert [(row["name"], row["description"], row["version"]) for row in await roles.all()] == [
        ("chief", "new", 1),
        ("clerk", "new", 2),
    ]


async def test_rows_are_read_by_many_keys(roles: Table) -> None:
    await add(roles, "clerk", "chief")
    assert set(await roles.get_all({"clerk", "nobody"})) == {"clerk"}
    assert await roles.get_all([]) == {}


async def test_an_update_changes_the_row_if_it_is_as_expected(roles: Table) -> None:
    await add(roles, "clerk", "chief")
    changed = await roles.update("clerk", where={"version": 1}, description="new")
    assert changed is not None
    assert (changed["description"], changed["version"]) == ("new", 2)
    assert await roles.update("clerk", where={"version": 1}, description="newer") is None
    assert await roles.update("nobody", description="new") is None
    assert [row["description"] for row in await roles.all()] == ["", "new"]


async def test_a_missing_row_is_the_fault_that_it_was_made_with(roles: Table) -> None:
    with pytest.raises(RoleNotFound) as missing:
        await roles.require("nobody")
    assert missing.value.metadata == {"role": "nobody"}


async def test_rows_go_when_they_are_deleted(roles: Table) -> None:
    await add(roles, "clerk", "chief")
    assert await roles.delete(name="clerk") == 1
    assert await roles.delete(name="clerk") == 0
    assert [row["name"] for row in await roles.all()] == ["chief"]


async def test_pages_follow_each_other_without_gap_or_repeat(roles: Table) -> None:
    names = [f"role{number:02}" for number in range(7)]
    await add(roles, *names)
    assert [row["name"] for row in await roles.page("", 3)] == names[:3]
    assert [row["name"] for row in await roles.page(names[2], 10)] == names[3:]
    assert await roles.page("", 10, description="other") == []
    assert len(await roles.page("", 10, description=None)) == 7


async def test_a_page_may_be_of_rows_that_fulfil_conditions(roles: Table) -> None:
    await add(roles, "a", "b", "c", "d")
    between = {"name > {}": "a", "name <= {}": "c", "version < {}": None}
    assert [row["name"] for row in await roles.page("", 10, filters=between)] == ["b", "c"]
    assert [row["name"] for row in await roles.page("b", 10, filters=between, version=1)] == ["c"]
    pair = {"(version, name) > ({}, {})": (1, "b")}
    assert [row["name"] for row in await roles.page("", 10, filters=pair, description="")] == ["c", "d"]
    bare = {"name <> 'b'": ()}
    assert [row["name"] for row in await roles.page("a", 10, filters=bare)] == ["c", "d"]


async def test_without_an_order_the_latest_come_first(database: Database, roles: Table) -> None:
    await add(roles, "a", "b", "c")
    latest_first = Table(database, "roles", key="name")
    assert [row["name"] for row in await latest_first.page("", 2)] == ["c", "b"]
    assert [row["name"] for row in await latest_first.page("b", 2)] == ["a"]


async def test_rows_are_selected_by_any_condition(roles: Table) -> None:
    await add(roles, "clerk", "chief", "cook")
    found = await roles.select("name <> $1 AND 'orders.read' <> ALL (allow) ORDER BY name DESC LIMIT $2", "cook", 5)
    assert [row["name"] for row in found] == ["clerk", "chief"]


async def test_pages_by_several_columns_begin_where_a_filter_says(database: Database, roles: Table) -> None:
    await add(roles, "a", "b", "c")
    by_both = Table(database, "roles", key="name", order="description, name")
    after = {"(description, name) > ({}, {})": ("", "a")}
    assert [row["name"] for row in await by_both.page("", 10, filters=after)] == ["b", "c"]
    with pytest.raises(AssertionError, match="a filter says"):
        await by_both.page("a", 10)


async def test_nothing_reaches_the_rows_of_another_tenant(roles: Table, other_tenant: Tenant) -> None:
    await add(roles, "clerk")
    with acting_for(other_tenant.tenant_id):
        assert await roles.get("clerk") is None
        assert await roles.get_all(["clerk"]) == {}
        assert await roles.all() == []
        assert await roles.page("", 10) == []
        assert await roles.select("version > 0") == []
        assert await roles.update("clerk", description="stolen") is None
        assert await roles.delete(name="clerk") == 0
        await roles.put(name="clerk", description="theirs", allow=[], deny=[])
    assert [row["description"] for row in await roles.all()] == [""]


async def test_nobody_else_changes_a_row_that_is_locked(
    database: Database, roles: Table, settings: Settings, tenant: Tenant
) -> None:
    await add(roles, "clerk")
    assert settings.database_url is not None
    async with database.transaction():
        assert await roles.get("clerk", lock=True)
        table = f"{discover()['user-auth'].schema}.roles"
        other = await asyncpg.connect(settings.database_url.get_secret_value())
        try:
            with pytest.raises(asyncpg.LockNotAvailableError):
                await other.fetch(f"SELECT FROM {table} WHERE tenant_id = $1 FOR UPDATE NOWAIT", tenant.tenant_id)
        finally:
            await other.close()


async def test_ids_are_text_alone_in_lists_and_in_null(database: Database) -> None:
    row = await database.fetchrow(
        "SELECT $1::uuid AS id, $2::uuid[] AS ids, NULL::uuid AS none",
        "019aaf6e-2e6f-7d4c-8000-0123456789ab",
        ["019aaf6e-2e6f-7d4c-8000-0123456789ac"],
    )
    assert row is not None
    assert tuple(row) == (
        "019aaf6e-2e6f-7d4c-8000-0123456789ab",
        ["019aaf6e-2e6f-7d4c-8000-0123456789ac"],
        None,
    )


def test_what_messages_have_in_their_fields_can_be_stored() -> None:
    plan = Plan(features=[Feature(key="seats")], key="gold")
    assert stored(plan.features) == '[{"key": "seats"}]'
    assert stored(Plan().features) == "[]"
    assert stored(Plan(key="gold")) == '{"key": "gold"}'
    assert stored({"a": "b"}) == '{"a": "b"}'
    assert stored(Timestamp(seconds=60)).isoformat() == "1970-01-01T00:01:00+00:00"
    assert stored(Duration(seconds=90)).total_seconds() == 90
    assert stored(["a", "b"]) == ["a", "b"]


async def test_a_page_of_a_pager_has_the_token_of_the_next(roles: Table) -> None:
    names = [f"role{number}" for number in range(5)]
    await add(roles, *names)
    pager, call = Pager(Sealer(bytes(32), "backend-api")), call_of(PLATFORM + "ListRoutes", "acme")
    seen, token = [], ""
    while True:
        rows, token = await pager.page(ListRoutesRequest(page_size=2, page_token=token), call, roles.page, by="name")
        seen.append([row["name"] for row in rows])
        if not token:
            break
    assert seen == [["role0", "role1"], ["role2", "role3"], ["role4"]]


async def test_rows_of_the_platform_are_there_for_every_tenant(plans: Table, other_tenant: Tenant) -> None:
    named = {"title": "Test", "modules": [], "quotas": "[]"}
    first, second = sorted(f"test-{new_id()}" for _ in range(2))
    await plans.insert_all({"plan_id": plan_id, **named} for plan_id in (first, second))
    with acting_for(other_tenant.tenant_id):
        assert [row["plan_id"] for row in await plans.page(first, 1)] == [second]
        assert set(await plans.get_all([first, second])) == {first, second}
        assert await plans.update(first, title="Changed") is not None
    assert [row["title"] for row in await plans.select("plan_id = $1", first)] == ["Changed"]
    for plan_id in (first, second):
        assert await plans.delete(plan_id=plan_id) == 1
    assert await plans.get(first) is None
