"""One address, one user, in each tenant; and nobody learns from an answer who is one."""

import asyncio
import secrets
from typing import Any

import httpx
import pytest

from nexus.identity.user_auth.v1.user_auth_pb2 import ProvisionUserRequest
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from services.chassis.clients import Clients
from services.chassis.ids import new_id
from tests.platforms import PASSWORD, Platform, Tenant


async def register(
    http: httpx.AsyncClient, tenant: Tenant, email: str, password: str = PASSWORD, name: str = ""
) -> httpx.Response:
    body = {"email": email, "password": password, "displayName": name}
    return await http.post("/api/v1/auth/register", headers=tenant.headers, json=body)


async def login(http: httpx.AsyncClient, tenant: Tenant, email: str, password: str = PASSWORD) -> httpx.Response:
    return await http.post("/api/v1/auth/login", headers=tenant.headers, json={"email": email, "password": password})


def reason(answer: httpx.Response) -> Any:
    return answer.json()["details"][0]["reason"]


def address() -> str:
    return f"{new_id()}@example.com"


async def users(platform: Platform, tenant: Tenant) -> int:
    admin = await platform.admin()
    try:
        found: int = await admin.fetchval("SELECT count(*) FROM user_auth.users WHERE tenant_id = $1", tenant.tenant_id)
    finally:
        await admin.close()
    return found


async def test_of_twenty_registrations_of_one_address_one_succeeds(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = address()
    answers = await asyncio.gather(*(register(http, tenant, email) for _ in range(20)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert [(answer.status_code, reason(answer)) for answer in refused] == [(409, "EMAIL_TAKEN")] * 19
    assert await users(platform, tenant) == 1


@pytest.mark.parametrize(
    ("first", "second"), [("Ann@Example.com", "ann@example.com"), ("ann@exAMPLE.com", "ANN@EXAMPLE.COM")]
)
async def test_an_address_is_the_same_in_other_letters(
    tenant: Tenant, http: httpx.AsyncClient, first: str, second: str
) -> None:
    assert (await register(http, tenant, first)).status_code == 200
    assert reason(await register(http, tenant, second)) == "EMAIL_TAKEN"


async def test_a_user_signs_in_with_the_address_in_any_letters(tenant: Tenant, http: httpx.AsyncClient) -> None:
    email = await tenant.provision(email=f"Ann.{secrets.token_hex(4)}@Example.com")
    assert (await login(http, tenant, email.upper())).status_code == 200


async def test_the_same_address_in_two_tenants_is_two_users(
    platform: Platform, tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = address()
    answers = [await register(http, each, email) for each in (tenant, other_tenant)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert len({answer.json()["user"]["userId"] for answer in answers}) == 2
    assert await users(platform, tenant) == await users(platform, other_tenant) == 1


async def test_a_user_of_one_tenant_is_nobody_in_another(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision()
    ours, theirs = await login(http, tenant, email), await login(http, other_tenant, email)
    assert ours.status_code == 200
    assert reason(theirs) == "CREDENTIALS_INVALID"
    owner = await other_tenant.sign_in("owner")
    found = await http.get(f"/api/v1/users/{ours.json()['session']['userId']}", headers=owner.headers)
    assert reason(found) == "USER_NOT_FOUND"


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("short1!", "at least 10 characters"),
        ("ééééééé", "at least 10 characters"),
        ("aaaaaaaaaaaaaaaa", "repeats"),
        ("abababababababab", "repeats"),
        ("{email}", "e-mail address"),
        ("{EMAIL}", "e-mail address"),
        ("Ann Archer the First", "your name"),
    ],
)
async def test_a_weak_password_is_refused_with_the_reason(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, password: str, why: str
) -> None:
    email = address()
    password = password.format(email=email, EMAIL=email.upper())
    refused = await register(http, tenant, email, password, "Ann Archer the First")
    assert refused.status_code == 400
    assert reason(refused) == "PASSWORD_WEAK"
    assert why in refused.json()["message"]
    assert await users(platform, tenant) == 0


async def test_a_password_beyond_reason_is_refused_by_the_contract(tenant: Tenant, http: httpx.AsyncClient) -> None:
    refused = await register(http, tenant, address(), "pass word " * 200)
    assert reason(refused) == "INVALID_REQUEST"


@pytest.mark.parametrize(
    "password", ["correct horse battery", "пароль-из-слов", "密码密码一二三四五六七八", " leading and trailing "]
)
async def test_any_letters_make_a_password_and_every_one_counts(
    tenant: Tenant, http: httpx.AsyncClient, password: str
) -> None:
    email = await tenant.provision()
    signed_in = await tenant.sign_in(email=email)
    changed = await http.post(
        "/api/v1/auth/change-password",
        headers=signed_in.headers,
        json={"currentPassword": PASSWORD, "newPassword": password},
    )
    assert changed.status_code == 200, changed.text
    assert (await login(http, tenant, email, password)).status_code == 200
    for wrong in (password[:-1], password + " ", password.swapcase() + "x"):
        assert reason(await login(http, tenant, email, wrong)) == "CREDENTIALS_INVALID"


async def test_an_unknown_user_and_a_wrong_password_get_identical_answers(
    tenant: Tenant, http: httpx.AsyncClient
) -> None:
    known = await tenant.provision()
    wrong = await login(http, tenant, known, "not the password")
    unknown = await login(http, tenant, address(), "not the password")
    no_address = await login(http, tenant, "no address at all", "not the password")
    assert (wrong.status_code, reason(wrong)) == (401, "CREDENTIALS_INVALID")
    assert wrong.content == unknown.content == no_address.content
    assert wrong.status_code == unknown.status_code == no_address.status_code
    assert set(wrong.headers) == set(unknown.headers)


async def test_who_has_not_verified_is_told_so_only_with_the_right_password(
    tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = address()
    await register(http, tenant, email)
    assert reason(await login(http, tenant, email)) == "EMAIL_NOT_VERIFIED"
    assert reason(await login(http, tenant, email, "not the password")) == "CREDENTIALS_INVALID"


async def test_asking_for_another_code_tells_nobody_who_is_registered(tenant: Tenant, http: httpx.AsyncClient) -> None:
    pending = address()
    await register(http, tenant, pending)
    answers = [
        await http.post("/api/v1/auth/resend-verification", headers=tenant.headers, json={"email": email})
        for email in (pending, await tenant.provision(), address())
    ]
    assert len({(answer.status_code, answer.content) for answer in answers}) == 1
    assert answers[0].status_code == 200


async def test_a_password_is_stored_as_argon2id_and_nothing_else(platform: Platform, tenant: Tenant) -> None:
    await tenant.provision()
    admin = await platform.admin()
    try:
        row = await admin.fetchrow(
            "SELECT password_hash, u::text AS all FROM user_auth.users u WHERE tenant_id = $1", tenant.tenant_id
        )
    finally:
        await admin.close()
    assert row["password_hash"].startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert PASSWORD not in row["all"]


async def test_who_is_provisioned_anew_with_another_password_is_signed_out_and_keeps_no_old_one(
    tenant: Tenant, http: httpx.AsyncClient, operator: Clients
) -> None:
    ann = await tenant.sign_in()
    provision, metadata = operator.stub(UserServiceStub).ProvisionUser, tuple(tenant.headers.items())

    async def works() -> bool:
        return (await http.get("/api/v1/auth/me", headers=ann.headers)).status_code == 200

    same = ProvisionUserRequest(email=ann.email.upper(), password=PASSWORD, roles=["owner"])
    assert (await provision(same, timeout=10, metadata=metadata)).user.user_id == ann.user_id
    assert await works(), "the same password ends nothing: a platform that starts provisions its owner each time"

    other = ProvisionUserRequest(email=ann.email, password=f"{PASSWORD} staple")
    assert (await provision(other, timeout=10, metadata=metadata)).user.user_id == ann.user_id
    assert not await works()
    refreshed = await http.post(
        "/api/v1/auth/refresh", headers=tenant.headers, json={"refreshToken": ann.refresh_token}
    )
    assert refreshed.status_code == 401
    assert (await login(http, tenant, ann.email)).status_code == 401
    assert (await login(http, tenant, ann.email, f"{PASSWORD} staple")).status_code == 200
