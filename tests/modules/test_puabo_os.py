"""What a tenant has of the platform: modules, plans, quotas and settings."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from nexus.modules.puabo_os.v1.faults import QuotaExceeded
from nexus.modules.puabo_os.v1.modules_pb2 import ResolveEntitlementsRequest
from nexus.modules.puabo_os.v1.modules_pb2_grpc import ModuleServiceStub
from nexus.modules.puabo_os.v1.quotas_pb2 import ConsumeQuotaRequest, ReleaseQuotaRequest
from nexus.modules.puabo_os.v1.quotas_pb2_grpc import QuotaServiceStub
from nexus.modules.puabo_os.v1.settings_pb2 import ResolveSettingsRequest
from nexus.modules.puabo_os.v1.settings_pb2_grpc import SettingServiceStub
from services.chassis.clients import Clients
from services.chassis.ids import new_id
from services.modules.puabo_os import modules
from tests.edge.wire import reason
from tests.identity.people import claims
from tests.platforms import Platform, SignedIn, Tenant

PLANS = "/api/v1/plans"


@pytest.fixture
async def tenant(platform: Platform) -> Tenant:
    """One that has switched nothing on yet."""
    return await platform.new_tenant(modules=())


@pytest.fixture
async def root(platform: Platform) -> SignedIn:
    """One of those who run the platform."""
    return await Tenant(platform, platform.settings.platform_tenant).sign_in("owner")


async def give_plan(
    http: httpx.AsyncClient,
    root: SignedIn,
    tenant: Tenant,
    *,
    modules: Sequence[str] = (),
    quotas: Sequence[dict[str, Any]] = (),
) -> str:
    """A plan of the test's own for the tenant; returns its id."""
    plan = {"planId": f"p-{new_id()}", "title": "Test", "modules": modules, "quotas": quotas}
    made = await http.post(PLANS, headers=root.headers, json={"plan": plan})
    assert made.status_code == 200, made.text
    path = f"/api/v1/tenants/{tenant.tenant_id}"
    given = await http.patch(path, headers=root.headers, json={"planId": plan["planId"]})
    assert given.status_code == 200, given.text
    return str(plan["planId"])


def quota(counter: str, limit: int, period: str = "MONTH") -> dict[str, Any]:
    return {"counter": counter, "limit": limit, "period": f"QUOTA_PERIOD_{period}"}


async def entitled(operator: Clients, tenant: Tenant, *held: str) -> list[str]:
    answer = await operator.stub(ModuleServiceStub).ResolveEntitlements(
        ResolveEntitlementsRequest(held_permissions=held), metadata=tuple(tenant.headers.items())
    )
    return list(answer.permissions)


def test_there_are_sixteen_modules() -> None:
    assert len(modules.MODULES) == 16


def test_a_module_grants_no_permission_that_reaches_beyond_the_tenant() -> None:
    granted = frozenset().union(*(module.permissions for module in modules.MODULES.values()))
    assert "settings.manage" in granted
    assert not granted & {"tenants.manage", "tenants.erase", "plans.manage", "token_keys.rotate"}


async def test_a_module_counts_while_it_is_on_and_in_the_plan(
    http: httpx.AsyncClient, operator: Clients, tenant: Tenant, other_tenant: Tenant, root: SignedIn
) -> None:
    owner = await tenant.sign_in("owner")

    async def switch(verb: str, module: str) -> httpx.Response:
        return await http.post(f"/api/v1/modules/{module}:{verb}", headers=owner.headers, json={})

    async def on() -> set[str]:
        found = (await http.get("/api/v1/modules", headers=owner.headers)).json()["modules"]
        return {module["moduleId"] for module in found if module["enabled"]}

    essential = {"core-os", "puabo-os"}
    await give_plan(http, root, tenant, modules=["puabo-dsp"])
    assert await on() == essential
    assert reason(await switch("enable", "casino-nexus"), 400) == "MODULE_NOT_IN_PLAN"
    assert reason(await switch("enable", "none"), 404) == "MODULE_UNKNOWN"
    assert reason(await switch("disable", "core-os"), 400) == "MODULE_ESSENTIAL"
    assert (await switch("enable", "puabo-dsp")).json()["module"]["enabled"] is True
    assert await on() == essential | {"puabo-dsp"}
    assert (await switch("disable", "puabo-dsp")).status_code == 200
    assert await on() == essential
    await switch("enable", "puabo-dsp")
    await give_plan(http, root, tenant, modules=["musicchain"])
    assert await on() == essential
    plain = await tenant.sign_in()
    refused = await http.post("/api/v1/modules/musicchain:enable", headers=plain.headers, json={})
    assert reason(refused, 403) == "PERMISSION_MISSING"


async def test_what_an_owner_may_do_is_what_the_modules_grant(
    http: httpx.AsyncClient, operator: Clients, tenant: Tenant
) -> None:
    owner = await tenant.sign_in("owner")
    essential = await entitled(operator, tenant, "*")
    assert "users.read" in essential
    assert "*" not in essential
    assert await entitled(operator, tenant, "users.read", "tenants.manage", "none.such") == ["users.read"]
    for module in modules.MODULES:
        await http.post(f"/api/v1/modules/{module}:enable", headers=owner.headers, json={})
    assert await entitled(operator, tenant, "*") == ["*"]
    own = Tenant(tenant.platform, tenant.platform.settings.platform_tenant)
    assert await entitled(operator, own, "tenants.manage") == ["tenants.manage"]


async def test_a_plan_is_replaced_by_who_has_read_it_and_deleted_when_nobody_has_it(
    http: httpx.AsyncClient, tenant: Tenant, root: SignedIn
) -> None:
    plan_id = await give_plan(http, root, tenant, quotas=[quota("ai.tokens", 5)])
    path = f"{PLANS}/{plan_id}"
    plan = (await http.get(path, headers=root.headers)).json()["plan"]
    assert plan["quotas"] == [{"counter": "ai.tokens", "limit": "5", "period": "QUOTA_PERIOD_MONTH"}]
    body = {name: plan[name] for name in ("modules", "quotas", "etag")}
    changed = await http.put(path, headers=root.headers, json=body | {"title": "New"})
    assert changed.json()["plan"]["title"] == "New"
    stale = await http.put(path, headers=root.headers, json=body | {"title": "Newer"})
    assert reason(stale, 409) == "ETAG_STALE"
    twice = await http.put(path, headers=root.headers, json={"quotas": [quota("a", 1), quota("a", 2)]})
    assert reason(twice, 400) == "QUOTA_REPEATED"
    other = await http.post(PLANS, headers=root.headers, json={"plan": {"planId": plan_id, "title": "Other"}})
    assert reason(other, 409) == "PLAN_TAKEN"
    assert reason(await http.delete(path, headers=root.headers), 400) == "PLAN_IN_USE"
    await http.patch(f"/api/v1/tenants/{tenant.tenant_id}", headers=root.headers, json={"planId": "standard"})
    assert (await http.delete(path, headers=root.headers)).status_code == 200
    assert reason(await http.get(path, headers=root.headers), 404) == "PLAN_UNKNOWN"
    listed = (await http.get(PLANS, headers=root.headers, params={"pageSize": 1000})).json()["plans"]
    assert plan_id not in [plan["planId"] for plan in listed]


CONSUMERS = """
import asyncio, sys
from mesh.local.platform import connected
from nexus.modules.puabo_os.v1.faults import QuotaExceeded
from nexus.modules.puabo_os.v1.quotas_pb2 import ConsumeQuotaRequest
from nexus.modules.puabo_os.v1.quotas_pb2_grpc import QuotaServiceStub
from services.chassis.clients import Clients
from services.chassis.config import load_settings
from services.chassis.context import OPERATOR
from services.chassis.spec import discover

async def main(tenant, process):
    clients = Clients(connected(load_settings(service_ids=discover())), OPERATOR, None)
    stub = clients.stub(QuotaServiceStub)
    async def consume(number):
        try:
            await stub.ConsumeQuota(
                ConsumeQuotaRequest(counter="seats", amount=1, request_id=f"{process}-{number}"),
                metadata=(("x-nexus-tenant", tenant),),
            )
            return 1
        except QuotaExceeded:
            return 0
    print(sum(await asyncio.gather(*(consume(number) for number in range(25)))))
    await clients.stop()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_fifty_consumers_of_two_processes_share_a_quota_of_ten_exactly(
    platform: Platform, http: httpx.AsyncClient, tenant: Tenant, root: SignedIn
) -> None:
    await give_plan(http, root, tenant, quotas=[quota("seats", 10, "TOTAL")])
    consumers = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CONSUMERS,
            tenant.tenant_id,
            str(process),
            env=platform.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for process in range(2)
    ]
    outputs = await asyncio.gather(*(consumer.communicate() for consumer in consumers))
    assert sum(int(out) for out, _ in outputs) == 10, outputs
    owner = await tenant.sign_in("owner")
    usage = (await http.get("/api/v1/usage", headers=owner.headers)).json()["usages"]
    assert usage[0] == {"counter": "seats", "period": "QUOTA_PERIOD_TOTAL", "used": "10", "limit": "10"}


async def test_a_repeated_consumption_takes_nothing_more(
    http: httpx.AsyncClient, operator: Clients, tenant: Tenant, other_tenant: Tenant, root: SignedIn
) -> None:
    await give_plan(http, root, tenant, quotas=[quota("ai.tokens", 10, "DAY")])
    stub, metadata = operator.stub(QuotaServiceStub), tuple(tenant.headers.items())

    async def consume(amount: int, request_id: str = "") -> int:
        request = ConsumeQuotaRequest(counter="ai.tokens", amount=amount, request_id=request_id or new_id())
        return int((await stub.ConsumeQuota(request, metadata=metadata)).usage.used)

    assert await asyncio.gather(*(consume(6, "same") for _ in range(10))) == [6] * 10
    with pytest.raises(QuotaExceeded) as refused:
        await consume(5)
    assert refused.value.metadata == {"counter": "ai.tokens", "limit": "10", "used": "6", "amount": "5"}
    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 86_400
    assert await consume(4) == 10
    released = await stub.ReleaseQuota(
        ReleaseQuotaRequest(counter="ai.tokens", amount=3, request_id="back"), metadata=metadata
    )
    assert released.usage.used == 7
    assert await consume(3) == 10
    unlimited = ConsumeQuotaRequest(counter="ai.tokens", amount=10**12, request_id="other")
    other = await stub.ConsumeQuota(unlimited, metadata=tuple(other_tenant.headers.items()))
    assert not other.usage.HasField("limit")


async def test_a_smaller_plan_counts_what_was_used_before(
    http: httpx.AsyncClient, operator: Clients, tenant: Tenant, root: SignedIn
) -> None:
    await give_plan(http, root, tenant, quotas=[quota("posts", 10)])
    stub, metadata = operator.stub(QuotaServiceStub), tuple(tenant.headers.items())
    request = ConsumeQuotaRequest(counter="posts", amount=8, request_id="first")
    await stub.ConsumeQuota(request, metadata=metadata)
    await give_plan(http, root, tenant, quotas=[quota("posts", 5)])
    with pytest.raises(QuotaExceeded):
        await stub.ConsumeQuota(ConsumeQuotaRequest(counter="posts", amount=1, request_id="second"), metadata=metadata)


async def test_a_setting_comes_from_the_nearest_level_that_says_something(
    http: httpx.AsyncClient, operator: Clients, tenant: Tenant, other_tenant: Tenant, root: SignedIn
) -> None:
    owner, user = await tenant.sign_in("owner"), await tenant.sign_in()
    stranger = await other_tenant.sign_in("owner")
    key = "notifications.mail"

    async def effective(who: SignedIn) -> tuple[bool, str]:
        setting = (await http.get(f"/api/v1/settings/{key}", headers=who.headers)).json()["setting"]
        return setting["value"].get("flag", False), setting["source"].removeprefix("SETTING_LEVEL_")

    async def put(who: SignedIn, path: str, value: bool | None) -> httpx.Response:
        return await http.put(path, headers=who.headers, json={} if value is None else {"value": {"flag": value}})

    assert await effective(user) == (True, "DEFAULT")
    try:
        assert (await put(root, f"/api/v1/platform/settings/{key}", False)).status_code == 200
        assert await effective(user) == (False, "PLATFORM")
        assert (await put(owner, f"/api/v1/settings/{key}", True)).status_code == 200
        assert await effective(user) == (True, "TENANT")
        assert await effective(stranger) == (False, "PLATFORM")
        assert (await put(user, f"/api/v1/users/me/settings/{key}", False)).status_code == 200
        assert await effective(user) == (False, "USER")
        assert await effective(owner) == (True, "TENANT")
        resolved = await operator.stub(SettingServiceStub).ResolveSettings(
            ResolveSettingsRequest(keys=[key], user_id=user.user_id), metadata=tuple(tenant.headers.items())
        )
        assert [setting.value.flag for setting in resolved.settings] == [False]
        await put(user, f"/api/v1/users/me/settings/{key}", None)
        assert await effective(user) == (True, "TENANT")
    finally:
        await put(root, f"/api/v1/platform/settings/{key}", None)
    assert await effective(stranger) == (True, "DEFAULT")
    for who, path in ((user, f"/api/v1/settings/{key}"), (owner, f"/api/v1/platform/settings/{key}")):
        assert reason(await put(who, path, False), 403) == "PERMISSION_MISSING"


@pytest.mark.parametrize(
    ("path", "value", "refusal"),
    [
        ("users/me/settings/ui.theme", {"flag": True}, "SETTING_INVALID"),
        ("users/me/settings/ui.theme", {"text": "pink"}, "SETTING_INVALID"),
        ("users/me/settings/ui.time_zone", {"text": "Mars/Base"}, "SETTING_INVALID"),
        ("users/me/settings/security.require_mfa", {"flag": False}, "SETTING_INVALID"),
        ("settings/security.session_idle_minutes", {"number": "4"}, "SETTING_INVALID"),
        ("settings/no.such", {"number": "4"}, "SETTING_UNKNOWN"),
        ("settings/ui.theme", {}, "INVALID_REQUEST"),
    ],
)
async def test_a_value_that_does_not_fit_is_refused(
    http: httpx.AsyncClient, tenant: Tenant, path: str, value: dict[str, Any], refusal: str
) -> None:
    owner = await tenant.sign_in("owner")
    answer = await http.put(f"/api/v1/{path}", headers=owner.headers, json={"value": value})
    assert reason(answer) == refusal, json.dumps(answer.json())


async def test_of_those_who_set_at_once_what_they_have_read_one_wins(http: httpx.AsyncClient, tenant: Tenant) -> None:
    owner = await tenant.sign_in("owner")
    path = "/api/v1/settings/ui.theme"
    read = (await http.get(path, headers=owner.headers)).json()["setting"]["levels"]
    etag = next(level["etag"] for level in read if level["level"] == "SETTING_LEVEL_TENANT")
    body = {"value": {"text": "dark"}, "etag": etag}
    answers = await asyncio.gather(*(http.put(path, headers=owner.headers, json=body) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    assert {reason(answer) for answer in answers if answer.status_code == 409} == {"ETAG_STALE"}


async def test_a_token_carries_what_the_modules_grant_that_are_on(
    platform: Platform, http: httpx.AsyncClient, tenant: Tenant
) -> None:
    owner = await tenant.sign_in("owner")
    granted = modules.MODULES["core-os"].permissions | modules.MODULES["puabo-os"].permissions
    assert set(claims(owner.access_token)["permissions"]) == granted
    assert set(claims((await (await platform.new_tenant()).sign_in("owner")).access_token)["permissions"]) == {"*"}
    # An owner stays one: what roles there are, and who has them, does not hang on the modules of the day.
    other = await tenant.sign_in()
    path = f"/api/v1/users/{other.user_id}:assignRoles"
    assigned = await http.post(path, headers=owner.headers, json={"roles": ["owner"]})
    assert assigned.status_code == 200, assigned.text


async def test_a_module_that_is_switched_on_counts_from_the_next_token_on(
    http: httpx.AsyncClient, tenant: Tenant
) -> None:
    owner = await tenant.sign_in("owner")
    for module in modules.MODULES:
        await http.post(f"/api/v1/modules/{module}:enable", headers=owner.headers, json={})
    refresh = {"refreshToken": owner.refresh_token}
    answer = await http.post("/api/v1/auth/refresh", headers=tenant.headers, json=refresh)
    assert claims(answer.json()["tokens"]["accessToken"])["permissions"] == ["*"]
