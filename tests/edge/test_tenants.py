"""Nobody sees or changes anything of another tenant, whichever method they try it with."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from services.chassis import contract
from tests.edge.wire import reason
from tests.platforms import PASSWORD, SignedIn, Tenant

FOR_USERS = {method.full_name: method for method in contract.methods().values() if method.needs_user}
NEW_PASSWORD = "another good password"

Target = Callable[[SignedIn], dict[str, Any]]
TARGETS: dict[str, Target] = {
    "nexus.identity.auth_service.v1.AuthService/GetMe": lambda victim: {},
    "nexus.identity.auth_service.v1.AuthService/Logout": lambda victim: {},
    "nexus.identity.session_mgr.v1.SessionService/ListMySessions": lambda victim: {},
    "nexus.identity.session_mgr.v1.SessionService/RevokeAllSessions": lambda victim: {},
    "nexus.identity.session_mgr.v1.SessionService/RevokeSession": lambda victim: {"session_id": victim.session_id},
    "nexus.identity.token_mgr.v1.TokenService/RotateKeys": lambda victim: {},
    "nexus.identity.user_auth.v1.UserService/ChangePassword": lambda victim: {
        "current_password": PASSWORD,
        "new_password": NEW_PASSWORD,
    },
    "nexus.identity.user_auth.v1.UserService/GetUser": lambda victim: {"user_id": victim.user_id},
}
"""How each method is aimed at what belongs to somebody: their ids, for a method that takes any."""
PLATFORM_WIDE = {"nexus.identity.token_mgr.v1.TokenService/RotateKeys"}


async def aim(
    http: httpx.AsyncClient, method: contract.Method, fields: dict[str, Any], headers: dict[str, str]
) -> httpx.Response:
    (route, *_) = method.routes
    path = route.path.format(**fields)
    body = {name: value for name, value in fields.items() if "{" + name + "}" not in route.path}
    return await http.request(route.verb, path, headers=headers, json=body if route.body else None)


@pytest.fixture
async def victim(tenant: Tenant) -> SignedIn:
    return await tenant.sign_in("owner")


@pytest.fixture
async def other_owner(other_tenant: Tenant) -> SignedIn:
    """May do everything, in another tenant."""
    return await other_tenant.sign_in("owner")


def test_every_method_for_users_is_tried() -> None:
    assert set(TARGETS) == set(FOR_USERS)


@pytest.mark.parametrize("name", sorted(set(TARGETS) - PLATFORM_WIDE))
async def test_a_token_does_nothing_in_another_tenant(
    http: httpx.AsyncClient, tenant: Tenant, victim: SignedIn, other_owner: SignedIn, name: str
) -> None:
    headers = {**other_owner.headers, **tenant.headers}
    answer = await aim(http, FOR_USERS[name], TARGETS[name](victim), headers)
    assert reason(answer, 403) == "TENANT_MISMATCH"


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if "_id" in FOR_USERS[name].routes[0].path])
async def test_an_id_of_another_tenant_is_the_same_as_no_id(
    http: httpx.AsyncClient, victim: SignedIn, other_owner: SignedIn, name: str
) -> None:
    nobody = SignedIn(*["01890000-0000-7000-8000-000000000000"] * 5)
    answers = [await aim(http, FOR_USERS[name], TARGETS[name](who), other_owner.headers) for who in (victim, nobody)]
    reasons = [reason(answer, 404) for answer in answers]
    assert reasons[0] == reasons[1]
    ids = [answers[0].json()["message"].replace(who, "…") for who in (victim.user_id, victim.session_id)]
    assert answers[1].json()["message"].replace(nobody.user_id, "…") in ids
    assert (await http.get("/api/v1/auth/me", headers=victim.headers)).status_code == 200


async def test_a_user_without_a_role_may_not_what_needs_a_permission(
    http: httpx.AsyncClient, tenant: Tenant, victim: SignedIn
) -> None:
    user = await tenant.sign_in()
    for name, method in FOR_USERS.items():
        if method.policy.permission:
            answer = await aim(http, method, TARGETS[name](victim), user.headers)
            assert reason(answer, 403) == "PERMISSION_MISSING"


@pytest.mark.parametrize("name", sorted(PLATFORM_WIDE))
async def test_the_owner_of_a_tenant_does_not_rule_the_platform(
    http: httpx.AsyncClient, other_owner: SignedIn, victim: SignedIn, name: str
) -> None:
    answer = await aim(http, FOR_USERS[name], TARGETS[name](victim), other_owner.headers)
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
