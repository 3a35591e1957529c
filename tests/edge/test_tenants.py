"""Nobody sees or changes anything of another tenant, whichever method they try it with."""

import re

import httpx
import pytest

from services.chassis import contract
from tests.edge.wire import reason
from tests.platforms import PASSWORD, SignedIn, Tenant

FOR_USERS = {
    method.full_name: method
    for method in contract.methods().values()
    if method.needs_user and method.tenant_scoped and not method.descriptor.client_streaming
}
NOBODY = "01890000-0000-7000-8000-000000000000"
AIMED = [name for name, method in FOR_USERS.items() if re.search(r"\{(user_id|session_id)\}", method.routes[0].path)]
"""What takes the id of a user or of a session."""


async def aim(
    http: httpx.AsyncClient, name: str, headers: dict[str, str], victim: SignedIn | None = None
) -> httpx.Response:
    """Call a method with a victim's ids in its path, or with those of nobody."""
    (route, *_) = FOR_USERS[name].routes
    ids = {"{user_id}": victim.user_id, "{session_id}": victim.session_id} if victim else {}
    path = re.sub(r"\{.*?\}", lambda variable: ids.get(variable[0], NOBODY), route.path)
    return await http.request(route.verb, path, headers=headers, json={} if route.body else None)


@pytest.fixture
async def victim(tenant: Tenant) -> SignedIn:
    return await tenant.sign_in("owner")


@pytest.fixture
async def other_owner(other_tenant: Tenant) -> SignedIn:
    """May do everything, in another tenant."""
    return await other_tenant.sign_in("owner")


async def test_a_token_does_nothing_in_another_tenant(
    http: httpx.AsyncClient, tenant: Tenant, victim: SignedIn, other_owner: SignedIn
) -> None:
    for name in FOR_USERS:
        answer = await aim(http, name, {**other_owner.headers, **tenant.headers}, victim)
        assert reason(answer, 403) in ("TENANT_MISMATCH", "PERMISSION_MISSING"), name
    assert (await http.get("/api/v1/auth/me", headers=victim.headers)).status_code == 200


async def test_an_id_of_another_tenant_is_the_same_as_no_id(
    http: httpx.AsyncClient, victim: SignedIn, other_owner: SignedIn
) -> None:
    for name in AIMED:
        hit, missed = [await aim(http, name, other_owner.headers, who) for who in (victim, None)]
        if missed.is_success:  # a list of what belongs to somebody: nothing, in either case
            assert hit.json() == missed.json(), name
        else:
            assert reason(hit) == reason(missed), name
            told = hit.json()["message"].replace(victim.user_id, NOBODY).replace(victim.session_id, NOBODY)
            assert told == missed.json()["message"]
    assert (await http.get("/api/v1/auth/me", headers=victim.headers)).status_code == 200


async def test_a_user_without_a_role_may_not_what_needs_a_permission(http: httpx.AsyncClient, tenant: Tenant) -> None:
    user = await tenant.sign_in()
    for name, method in FOR_USERS.items():
        if method.policy.permission:
            assert reason(await aim(http, name, user.headers), 403) == "PERMISSION_MISSING", name


async def test_the_owner_of_a_tenant_does_not_rule_the_platform(http: httpx.AsyncClient, other_owner: SignedIn) -> None:
    answer = await http.post("/api/v1/token-keys:rotate", headers=other_owner.headers, json={})
    assert reason(answer, 403) == "PERMISSION_MISSING"


async def test_a_refresh_token_does_nothing_in_another_tenant(
    http: httpx.AsyncClient, tenant: Tenant, other_tenant: Tenant, victim: SignedIn
) -> None:
    body = {"refreshToken": victim.refresh_token}
    stolen = await http.post("/api/v1/auth/refresh", headers=other_tenant.headers, json=body)
    assert reason(stolen, 401) == "REFRESH_TOKEN_INVALID"
    assert (await http.post("/api/v1/auth/refresh", headers=tenant.headers, json=body)).status_code == 200


async def test_one_address_is_two_users_in_two_tenants(
    http: httpx.AsyncClient, victim: SignedIn, other_tenant: Tenant
) -> None:
    login = {"email": victim.email, "password": PASSWORD}
    answer = await http.post("/api/v1/auth/login", headers=other_tenant.headers, json=login)
    assert reason(answer, 401) == "CREDENTIALS_INVALID"
    namesake = await other_tenant.sign_in(email=await other_tenant.provision(email=victim.email))
    assert namesake.user_id != victim.user_id


@pytest.mark.parametrize("tenant_id", ["nobody", "'; --", "%2a", "*", "T" * 300, "a b", "../demo"])
async def test_a_tenant_that_does_not_exist_is_not_found(http: httpx.AsyncClient, tenant_id: str) -> None:
    headers = {"x-nexus-tenant": tenant_id}
    answer = await http.post("/api/v1/auth/login", headers=headers, json={"email": "a@b.example", "password": "x"})
    assert reason(answer, 404) == "TENANT_UNKNOWN"


async def test_without_a_tenant_nobody_signs_in(http: httpx.AsyncClient) -> None:
    answer = await http.post("/api/v1/auth/login", json={"email": "a@b.example", "password": "x"})
    assert reason(answer, 400) == "TENANT_REQUIRED"
