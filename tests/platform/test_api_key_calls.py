"""Programs call with `x-api-key` as people do with a token: over HTTP and gRPC, as far as the key's scopes go."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest

from nexus.identity.user_auth.v1.user_auth_pb2 import ListUsersRequest
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from tests.edge.wire import reason
from tests.platforms import Platform, SignedIn, Tenant, eventually, within_a_second

KEYS, USERS, ME = "/api/v1/api-keys", "/api/v1/users", "/api/v1/auth/me"


@pytest.fixture
async def owner(tenant: Tenant) -> SignedIn:
    return await tenant.sign_in("owner")


@pytest.fixture
async def channel(platform: Platform) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{platform.settings.port(8080)}") as opened:
        yield opened


async def make(http: httpx.AsyncClient, who: SignedIn, *scopes: str, **more: object) -> tuple[dict[str, str], str]:
    """The header that a program sends, and the id of its key."""
    answer = await http.post(KEYS, headers=who.headers, json={"title": "Test", "scopes": scopes, **more})
    assert answer.status_code == 200, answer.text
    return {"x-api-key": answer.json()["secret"]}, answer.json()["apiKey"]["keyId"]


async def test_a_key_calls_until_it_is_revoked(
    http: httpx.AsyncClient, channel: grpc.aio.Channel, owner: SignedIn
) -> None:
    key, key_id = await make(http, owner, "users.read", "my.account")
    users = UserServiceStub(channel)

    async def by_grpc() -> Any:
        return await users.ListUsers(ListUsersRequest(), metadata=tuple(key.items()), timeout=10)

    assert [user["userId"] for user in (await http.get(USERS, headers=key)).json()["users"]] == [owner.user_id]
    assert [user.user_id for user in (await by_grpc()).users] == [owner.user_id]
    # The service asks others on the way, and they take the key too.
    assert (await http.get(ME, headers=key)).json()["user"]["userId"] == owner.user_id

    assert (await http.delete(f"{KEYS}/{key_id}", headers=owner.headers)).status_code == 200

    async def refused_by_both() -> bool:
        return not any([(await http.get(path, headers=key)).is_success for path in (USERS, ME)])

    await within_a_second(refused_by_both)
    assert reason(await http.get(USERS, headers=key), 401) == "API_KEY_INVALID"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await by_grpc()
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_key_may_no_more_than_its_scopes(http: httpx.AsyncClient, owner: SignedIn) -> None:
    key, _ = await make(http, owner, "users.read")
    assert reason(await http.get("/api/v1/roles", headers=key), 403) == "PERMISSION_MISSING"
    assert reason(await http.get(KEYS, headers=key), 403) == "PERMISSION_MISSING"
    more = {"title": "More", "scopes": ["users.read"]}
    assert reason(await http.post(KEYS, headers=key, json=more), 403) == "PERMISSION_MISSING"


async def test_a_key_sees_what_is_its_users_own_by_the_scope_for_it(http: httpx.AsyncClient, owner: SignedIn) -> None:
    key, _ = await make(http, owner, "users.read")
    assert reason(await http.get(ME, headers=key), 403) == "SCOPE_MISSING"
    for scope in ("my.account", "*"):
        key, _ = await make(http, owner, scope)
        assert (await http.get(ME, headers=key)).status_code == 200
    key, _ = await make(http, owner, "my.account")
    assert reason(await http.get(USERS, headers=key), 403) == "PERMISSION_MISSING"


async def test_a_key_cannot_give_its_users_account_away(http: httpx.AsyncClient, owner: SignedIn) -> None:
    key, _ = await make(http, owner, "*")
    assert reason(await http.get("/api/v1/auth/me:export", headers=key), 403) == "OWN_SIGN_IN_REQUIRED"
    enrol = "/api/v1/auth/factors/totp:enroll"
    assert reason(await http.post(enrol, headers=key, json={}), 403) == "OWN_SIGN_IN_REQUIRED"
    assert reason(await http.delete("/api/v1/sessions", headers=key), 403) == "OWN_SIGN_IN_REQUIRED"
    assert (await http.get(ME, headers=owner.headers)).status_code == 200


async def test_a_key_with_the_permission_is_asked_for_no_proof(
    http: httpx.AsyncClient, tenant: Tenant, owner: SignedIn
) -> None:
    other = await tenant.sign_in()
    key, _ = await make(http, owner, "users.export")
    assert (await http.get(f"/api/v1/users/{other.user_id}:export", headers=key)).status_code == 200


async def test_a_token_and_a_key_at_once_are_refused(http: httpx.AsyncClient, owner: SignedIn) -> None:
    key, _ = await make(http, owner, "users.read")
    assert reason(await http.get(USERS, headers=key | owner.headers), 400) == "CREDENTIALS_AMBIGUOUS"


async def test_a_key_is_no_way_into_another_tenant(
    http: httpx.AsyncClient, other_tenant: Tenant, owner: SignedIn
) -> None:
    key, _ = await make(http, owner, "*")
    assert reason(await http.get(USERS, headers=key | other_tenant.headers), 403) == "TENANT_MISMATCH"


@pytest.mark.parametrize("guess", ["x", "nxk_0000000000000000_" + "A" * 43, "' OR 1=1 --", "%00", "x" * 8000])
async def test_a_guessed_key_is_nobodys(http: httpx.AsyncClient, guess: str) -> None:
    assert reason(await http.get(USERS, headers={"x-api-key": guess}), 401) == "API_KEY_INVALID"


async def test_where_nobody_is_asked_for_a_key_is_not_looked_at(http: httpx.AsyncClient) -> None:
    assert (await http.get("/.well-known/jwks.json", headers={"x-api-key": "guess"})).status_code == 200


async def test_the_quota_of_a_key_is_exact_whatever_it_calls(http: httpx.AsyncClient, owner: SignedIn) -> None:
    key, _ = await make(http, owner, "users.read", "roles.read", "my.account", rate="API_KEY_RATE_LOW")
    other, _ = await make(http, owner, "users.read", rate="API_KEY_RATE_LOW")
    # GetMe leads to calls between services, which belong to it.
    answers = await asyncio.gather(
        *(http.get(path, headers=key) for path in [USERS, ME, "/api/v1/roles", "/api/v1/modules"] * 20)
    )
    assert sum(answer.status_code == 200 for answer in answers) == 60
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {reason(answer, 429) for answer in refused} == {"RATE_LIMITED"}
    assert int(refused[0].json()["details"][1]["retryDelay"].removesuffix("s")) <= 60
    assert (await http.get(USERS, headers=other)).status_code == 200


async def test_the_key_is_in_no_log(platform: Platform, http: httpx.AsyncClient, owner: SignedIn) -> None:
    key, _ = await make(http, owner, "users.read")
    hidden = key["x-api-key"][21:]
    refused = await http.get("/api/v1/roles", headers=key)

    def logs() -> str:
        return "".join(path.read_text() for path in (platform.home / "logs").glob("*.log"))

    eventually(lambda: refused.headers["x-request-id"] in logs())
    assert hidden not in logs()
