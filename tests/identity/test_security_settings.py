"""What a tenant sets about security holds from the next call on, and for this tenant only."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import redis.asyncio

from services.chassis.clients import Clients
from services.chassis.context import acting_for
from services.chassis.ids import new_id
from services.chassis.signals import EVERY_TENANT, Signals
from services.chassis.tenant_settings import TenantSettings
from tests.identity.oidc import Browser, authorization, issuer, register
from tests.identity.people import body, change, claims, enroll_totp, login, reason, session_of
from tests.platforms import PASSWORD, Platform, SignedIn, Tenant

USERS = "/api/v1/users"


@pytest.fixture
async def root(platform: Platform) -> SignedIn:
    """Somebody who runs the platform."""
    return await Tenant(platform, platform.settings.platform_tenant).sign_in("owner")


@pytest.fixture
async def browser(platform: Platform) -> AsyncIterator[Browser]:
    async with Browser(platform) as browser:
        yield browser


async def setting(http: httpx.AsyncClient, owner: SignedIn, key: str, **value: Any) -> None:
    path = f"/api/v1/settings/security.{key}"
    body(await http.put(path, headers=owner.headers, json={"value": value} if value else {}))


async def try_to_register(http: httpx.AsyncClient, tenant: Tenant) -> httpx.Response:
    asked = {"email": f"{new_id()}@example.com", "password": PASSWORD}
    return await http.post("/api/v1/auth/register", headers=tenant.headers, json=asked)


async def until(http: httpx.AsyncClient, tenant: Tenant, status: int) -> httpx.Response:
    """Register until the answer is this one: a signal is on its way for moments."""
    for _ in range(50):
        answer = await try_to_register(http, tenant)
        if answer.status_code == status:
            break
    return answer


async def refresh(http: httpx.AsyncClient, tenant: Tenant, user: SignedIn) -> httpx.Response:
    return await http.post("/api/v1/auth/refresh", headers=tenant.headers, json={"refreshToken": user.refresh_token})


async def test_nobody_registers_where_registration_is_closed(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    owner = await tenant.sign_in("owner")
    body(await try_to_register(http, tenant))
    await setting(http, owner, "registration", text="closed")
    assert reason(await until(http, tenant, 403)) == "REGISTRATION_CLOSED"
    body(await try_to_register(http, other_tenant))
    await tenant.sign_in()  # whom somebody else has made
    await setting(http, owner, "registration")
    body(await until(http, tenant, 200))


async def test_what_the_platform_says_holds_where_a_tenant_says_nothing(
    tenant: Tenant, http: httpx.AsyncClient, operator: Clients, root: SignedIn
) -> None:
    own = TenantSettings(operator, Signals(redis.asyncio.Redis()))  # which is not started, and hears nothing
    path = "/api/v1/platform/settings/security.session_idle_minutes"
    key = "security.session_idle_minutes"
    with acting_for(tenant.tenant_id):
        assert await own.number(key) == 20_160
        try:
            body(await http.put(path, headers=root.headers, json={"value": {"number": "525600"}}))
            assert await own.number(key) == 20_160, "remembered"
            own._forget(EVERY_TENANT)
            assert await own.number(key) == 525_600
        finally:
            body(await http.put(path, headers=root.headers, json={}))


async def test_a_session_ends_when_it_was_not_used_for_as_long_as_the_tenant_allows(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    owner, ann = await tenant.sign_in("owner"), await tenant.sign_in()
    await setting(http, owner, "session_idle_minutes", number="30")
    unused = "UPDATE session_mgr.sessions SET last_used_time = now() - $2 * interval '1 minute' WHERE session_id = $1"

    async def sessions_after(minutes: int) -> int:
        await change(platform, unused, ann.session_id, minutes)
        return len(body(await http.get("/api/v1/sessions", headers=ann.headers))["sessions"])

    assert await sessions_after(29) == 1
    assert await sessions_after(31) == 0
    assert reason(await refresh(http, tenant, ann)) == "REFRESH_TOKEN_INVALID"
    await setting(http, owner, "session_idle_minutes", number="60")
    for _ in range(50):
        if await sessions_after(31):
            break
    body(await refresh(http, tenant, ann))


async def test_who_lacks_a_required_second_factor_may_set_one_up_and_nothing_else(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    owner, bystander = await tenant.sign_in("owner"), await other_tenant.sign_in("owner")
    await enroll_totp(http, owner)
    await tenant.provision("owner", email=(email := f"{new_id()}@example.com"))
    before = await tenant.sign_in(email=email)
    await setting(http, owner, "require_mfa", flag=True)
    for _ in range(50):
        answer = body(await login(http, tenant, email))
        if answer["secondFactorMissing"]:
            break
    ann = session_of(answer, email)
    assert claims(ann.access_token).get("permissions", []) == []
    assert reason(await http.get(USERS, headers=ann.headers)) == "PERMISSION_MISSING"
    refreshed = body(await refresh(http, tenant, before))["tokens"]["accessToken"]
    assert reason(await http.get(USERS, headers={"authorization": f"Bearer {refreshed}"})) == "PERMISSION_MISSING"

    await enroll_totp(http, ann)

    granted = body(await refresh(http, tenant, ann))["tokens"]["accessToken"]
    assert (await http.get(USERS, headers={"authorization": f"Bearer {granted}"})).status_code == 200
    assert "tokens" not in (asked := body(await login(http, tenant, email))) or not asked["tokens"]
    assert asked["mfa"]["challengeId"]
    assert not body(await login(http, other_tenant, bystander.email))["secondFactorMissing"]


async def test_the_sign_in_page_says_that_a_second_factor_has_to_be_set_up(
    tenant: Tenant, http: httpx.AsyncClient, browser: Browser
) -> None:
    client, owner, email = await register(tenant, http), await tenant.sign_in("owner"), await tenant.provision()
    await setting(http, owner, "require_mfa", flag=True)
    url = httpx.URL(f"{issuer(tenant)}/oauth2/authorize", params=authorization(client.client_id))
    page = await browser.get(str(url))
    for _ in range(50):
        page = await browser.sign_in(page, email)
        if "Allow" not in page.text:
            break
        page = await browser.get(str(url.copy_merge_params({"prompt": "login"})))
    assert "A second factor is required here" in page.text


async def test_how_long_a_password_must_be_is_said_in_one_place(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner = await tenant.sign_in("owner")
    path = "/api/v1/settings/security.password_min_length"
    assert reason(await http.put(path, headers=owner.headers, json={"value": {"number": "20"}})) == "SETTING_UNKNOWN"
    policy = {"minLength": 30, "minStrength": 2}
    body(await http.put("/api/v1/password-policy", headers=owner.headers, json=policy))
    assert reason(await try_to_register(http, tenant)) == "PASSWORD_WEAK"
