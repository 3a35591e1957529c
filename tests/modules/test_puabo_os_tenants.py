"""Tenants are made, suspended, resumed and erased by those who run the platform, and by nobody else."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
import redis.asyncio

from services.chassis.config import Settings
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.signals import Signals
from services.chassis.spec import discover
from services.chassis.tenants import TenantDirectory
from tests.edge.wire import reason
from tests.platforms import PASSWORD, Platform, SignedIn, Tenant, within_a_second

TENANTS = "/api/v1/tenants"


@pytest.fixture
async def root(platform: Platform) -> SignedIn:
    """One of those who run the platform."""
    return await Tenant(platform, platform.settings.platform_tenant).sign_in("owner")


async def act(http: httpx.AsyncClient, who: SignedIn, tenant: Tenant, verb: str, **body: Any) -> httpx.Response:
    return await http.post(f"{TENANTS}/{tenant.tenant_id}:{verb}", headers=who.headers, json=body)


async def get(http: httpx.AsyncClient, who: SignedIn, tenant: Tenant) -> Any:
    return (await http.get(f"{TENANTS}/{tenant.tenant_id}", headers=who.headers)).json()["tenant"]


async def rows_of(platform: Platform, tenant_id: str) -> dict[str, int]:
    """How many rows of a tenant there are in each table of each service."""
    admin = await platform.admin()
    try:
        tables = await admin.fetch(
            "SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
            "WHERE a.attname = 'tenant_id' AND c.relkind = 'r' AND c.relnamespace <> 'nexus'::regnamespace"
        )
        counts = {
            table["name"]: await admin.fetchval(f"SELECT count(*) FROM {table['name']} WHERE tenant_id = $1", tenant_id)
            for table in tables
        }
    finally:
        await admin.close()
    return {name: count for name, count in counts.items() if count}


async def events_about(platform: Platform, tenant_id: str) -> list[str]:
    admin = await platform.admin()
    try:
        rows = await admin.fetch("SELECT type FROM puabo_os.events WHERE aggregate = $1 ORDER BY sequence", tenant_id)
    finally:
        await admin.close()
    return [row["type"].rpartition(".")[2] for row in rows]


async def test_a_tenant_made_at_the_edge_is_served_at_once(
    platform: Platform, http: httpx.AsyncClient, root: SignedIn
) -> None:
    body = {"tenantId": f"t-{new_id()}", "displayName": "Acme"}
    made = await http.post(TENANTS, headers=root.headers, json=body)
    assert made.status_code == 200, made.text
    assert made.json()["tenant"]["state"] == "TENANT_STATE_ACTIVE"
    again = await http.post(TENANTS, headers=root.headers, json=body)
    assert again.json() == made.json()
    other = await http.post(TENANTS, headers=root.headers, json=body | {"displayName": "Other"})
    assert reason(other, 409) == "TENANT_TAKEN"
    assert reason(await http.post(TENANTS, headers=root.headers, json=body | {"tenantId": "t", "planId": "none"})) == (
        "PLAN_UNKNOWN"
    )
    await Tenant(platform, body["tenantId"]).sign_in("owner")
    assert await events_about(platform, body["tenantId"]) == ["TenantCreated"]


async def test_the_owner_of_a_tenant_manages_no_tenant_not_even_its_own(
    http: httpx.AsyncClient, tenant: Tenant, other_tenant: Tenant
) -> None:
    owner = await tenant.sign_in("owner")
    for target in (tenant, other_tenant):
        for verb in ("suspend", "resume"):
            assert reason(await act(http, owner, target, verb), 403) == "PERMISSION_MISSING"
        answer = await http.get(f"{TENANTS}/{target.tenant_id}", headers=owner.headers)
        assert reason(answer, 403) == "PERMISSION_MISSING"
    assert reason(await http.get(TENANTS, headers=owner.headers), 403) == "PERMISSION_MISSING"


async def test_all_calls_of_a_suspended_tenant_are_refused_within_a_second_until_it_is_resumed(
    http: httpx.AsyncClient, tenant: Tenant, other_tenant: Tenant, root: SignedIn
) -> None:
    users = [await tenant.sign_in("owner"), await tenant.sign_in()]
    bystander = await other_tenant.sign_in()

    async def calls() -> list[httpx.Response]:
        """One call of each kind, to several services that each have remembered the tenant."""
        asked: list[tuple[str, str, Mapping[str, str], Any]] = [
            ("GET", path, user.headers, None)
            for user in users
            for path in ("/api/v1/auth/me", "/api/v1/sessions", "/api/v1/settings")
        ]
        login = {"email": users[0].email, "password": PASSWORD}
        asked.append(("POST", "/api/v1/auth/login", tenant.headers, login))
        return list(
            await asyncio.gather(
                *(http.request(verb, path, headers=headers, json=body) for verb, path, headers, body in asked)
            )
        )

    assert [answer.status_code for answer in await calls()] == [200] * 7
    suspended = await act(http, root, tenant, "suspend", why="unpaid")
    assert suspended.json()["tenant"]["state"] == "TENANT_STATE_SUSPENDED"

    async def nobody_is_served() -> bool:
        return all(answer.status_code != 200 for answer in await calls())

    await within_a_second(nobody_is_served)
    assert {reason(answer, 403) for answer in await calls()} == {"TENANT_SUSPENDED"}
    refresh = {"refreshToken": users[0].refresh_token}
    refreshed = await http.post("/api/v1/auth/refresh", headers=tenant.headers, json=refresh)
    assert reason(refreshed, 403) == "TENANT_SUSPENDED"
    assert (await http.get("/api/v1/auth/me", headers=bystander.headers)).status_code == 200

    assert (await act(http, root, tenant, "suspend")).json() == suspended.json()
    resumed = await act(http, root, tenant, "resume")
    assert resumed.json()["tenant"]["state"] == "TENANT_STATE_ACTIVE"

    async def all_are_served() -> bool:
        return all(answer.status_code == 200 for answer in await calls())

    await within_a_second(all_are_served)
    assert await events_about(tenant.platform, tenant.tenant_id) == ["TenantSuspended", "TenantResumed"]


async def test_suspending_and_resuming_at_once_leaves_one_state_and_as_many_events_as_changes(
    http: httpx.AsyncClient, tenant: Tenant, root: SignedIn
) -> None:
    answers = await asyncio.gather(*(act(http, root, tenant, verb) for verb in ("suspend", "resume") * 10))
    assert {answer.status_code for answer in answers} == {200}
    events = await events_about(tenant.platform, tenant.tenant_id)
    assert events == [["TenantSuspended", "TenantResumed"][number % 2] for number in range(len(events))]
    expected = "TENANT_STATE_SUSPENDED" if len(events) % 2 else "TENANT_STATE_ACTIVE"
    assert (await get(http, root, tenant))["state"] == expected


async def test_an_erased_tenant_leaves_no_row_in_any_schema(
    platform: Platform, http: httpx.AsyncClient, tenant: Tenant, other_tenant: Tenant, root: SignedIn
) -> None:
    owner = await tenant.sign_in("owner")
    await http.put("/api/v1/settings/ui.theme", headers=owner.headers, json={"value": {"text": "dark"}})
    await http.post("/api/v1/modules/puabo-dsp:enable", headers=owner.headers, json={})
    register = {"email": "a@b.example", "password": PASSWORD}
    await http.post("/api/v1/auth/register", headers=tenant.headers, json=register)
    bystander = await other_tenant.sign_in()
    assert {name.partition(".")[0] for name in await rows_of(platform, tenant.tenant_id)} >= {
        "user_auth",
        "session_mgr",
        "token_mgr",
        "puabo_os",
    }
    confirm = {"confirmTenantId": tenant.tenant_id}
    assert reason(await act(http, root, tenant, "erase", **confirm), 400) == "TENANT_STATE_WRONG"
    await act(http, root, tenant, "suspend")
    assert reason(await act(http, root, tenant, "erase"), 400) == "ERASURE_UNCONFIRMED"
    begun = (await act(http, root, tenant, "erase", **confirm)).json()["tenant"]
    assert begun["state"] == "TENANT_STATE_ERASING"
    assert "user_auth" in begun["erasingSchemas"]

    deadline = time.monotonic() + 60
    while (found := await get(http, root, tenant))["state"] != "TENANT_STATE_ERASED":
        assert time.monotonic() < deadline, f"not erased yet by {found['erasingSchemas']}"
        await asyncio.sleep(0.5)
    assert await rows_of(platform, tenant.tenant_id) == {}
    assert found["displayName"] == ""
    assert reason(await http.get("/api/v1/auth/me", headers=owner.headers), 404) == "TENANT_UNKNOWN"
    assert (await http.get("/api/v1/auth/me", headers=bystander.headers)).status_code == 200
    assert reason(await act(http, root, tenant, "resume"), 400) == "TENANT_STATE_WRONG"
    again = {"tenantId": tenant.tenant_id, "displayName": "Again"}
    assert reason(await http.post(TENANTS, headers=root.headers, json=again), 409) == "TENANT_TAKEN"
    assert await events_about(platform, tenant.tenant_id) == ["TenantSuspended", "TenantErasureStarted", "TenantErased"]


async def test_an_erasure_can_be_called_off_until_its_time_has_come(
    platform: Platform, http: httpx.AsyncClient, tenant: Tenant, root: SignedIn
) -> None:
    owner = await tenant.sign_in("owner")
    await act(http, root, tenant, "suspend")
    erasing = await act(http, root, tenant, "erase", confirmTenantId=tenant.tenant_id, delay="86400s")
    assert erasing.json()["tenant"]["state"] == "TENANT_STATE_ERASING"
    assert reason(await http.get("/api/v1/auth/me", headers=owner.headers), 403) == "TENANT_SUSPENDED"
    assert (await act(http, root, tenant, "resume")).json()["tenant"]["state"] == "TENANT_STATE_ACTIVE"
    assert "user_auth.users" in await rows_of(platform, tenant.tenant_id)


async def test_the_platforms_own_tenant_is_neither_suspended_nor_erased(
    platform: Platform, http: httpx.AsyncClient, root: SignedIn
) -> None:
    own = Tenant(platform, platform.settings.platform_tenant)
    assert reason(await act(http, root, own, "suspend"), 400) == "PLATFORM_TENANT_PROTECTED"
    erased = await act(http, root, own, "erase", confirmTenantId=own.tenant_id)
    assert reason(erased, 400) == "PLATFORM_TENANT_PROTECTED"


async def test_a_stale_etag_changes_nothing(http: httpx.AsyncClient, tenant: Tenant, root: SignedIn) -> None:
    etag = (await get(http, root, tenant))["etag"]
    path = f"{TENANTS}/{tenant.tenant_id}"

    async def rename(name: str) -> httpx.Response:
        return await http.patch(path, headers=root.headers, json={"displayName": name, "etag": etag})

    answers = await asyncio.gather(*(rename(f"Name {number}") for number in range(5)))
    won = [answer for answer in answers if answer.status_code == 200]
    assert len(won) == 1
    assert {reason(answer, 409) for answer in answers if answer.status_code != 200} == {"ETAG_STALE"}
    assert (await get(http, root, tenant))["displayName"] == won[0].json()["tenant"]["displayName"]


async def test_tenants_are_listed_by_state_and_page(
    http: httpx.AsyncClient, tenant: Tenant, other_tenant: Tenant, root: SignedIn
) -> None:
    await act(http, root, tenant, "suspend")
    found, token = [], ""
    while True:
        query = {"state": "TENANT_STATE_SUSPENDED", "pageSize": "1", "pageToken": token}
        page = (await http.get(TENANTS, headers=root.headers, params=query)).json()
        found += [each["tenantId"] for each in page["tenants"]]
        token = page["nextPageToken"]
        if not token:
            break
    assert tenant.tenant_id in found
    assert other_tenant.tenant_id not in found
    assert found == sorted(found)


async def test_a_state_read_before_a_change_is_not_remembered_after_it(settings: Settings, platform: Platform) -> None:
    """The change is signalled while the directory still waits for the database."""

    class Slow(Database):
        async def fetchval(self, query: str, *args: Any) -> Any:
            state = await super().fetchval(query, *args)
            await suspend()
            return state

    async def suspend() -> None:
        await admin.execute("UPDATE nexus.tenants SET state = 'suspended' WHERE tenant_id = $1", tenant.tenant_id)
        signals._receive(f"tenant {tenant.tenant_id}")

    tenant = await platform.new_tenant()
    signals = Signals(redis.asyncio.Redis())  # never started: it hears what this test says
    database = Slow(settings, discover()["user-auth"])
    directory = TenantDirectory(database, signals)
    admin = await platform.admin()
    await database.start()
    try:
        await directory.require_active(tenant.tenant_id)
        with pytest.raises(Exception, match="suspended"):
            await directory.require_active(tenant.tenant_id)
    finally:
        await database.stop()
        await admin.close()
