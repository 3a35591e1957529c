"""An API key permits what its scopes say and its user may do, until it is revoked or has expired."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
import redis.asyncio

from nexus.platform.backend_api.v1.api_keys_pb2_grpc import ApiKeyServiceStub
from nexus.platform.backend_api.v1.faults import ApiKeyExpired, ApiKeyInvalid
from nexus.type.v1.faults import RateLimited, TenantSuspended
from services.chassis.api_keys import ApiKeyVerifier
from services.chassis.clients import Clients
from services.chassis.clock import now
from services.chassis.config import Settings
from services.chassis.signals import Signals
from services.platform.backend_api import api_keys
from tests.edge.wire import reason
from tests.platforms import Platform, SignedIn, Tenant, within_a_second

KEYS = "/api/v1/api-keys"


@pytest.fixture
async def verifiers(settings: Settings, operator: Clients) -> AsyncIterator[list[ApiKeyVerifier]]:
    """Two, as in two processes."""
    assert settings.redis_url is not None
    client = redis.asyncio.Redis.from_url(settings.redis_url.get_secret_value(), max_connections=500)
    listening = [Signals(client), Signals(client)]
    for signals in listening:
        await signals.start()
    yield [ApiKeyVerifier(client, signals, operator.stub(ApiKeyServiceStub)) for signals in listening]
    for signals in listening:
        await signals.stop()
    await client.aclose()


@pytest.fixture
async def owner(tenant: Tenant) -> SignedIn:
    return await tenant.sign_in("owner")


async def make(http: httpx.AsyncClient, who: SignedIn, *scopes: str, **body: Any) -> tuple[str, dict[str, Any]]:
    """A key and what is known of it."""
    answer = await http.post(KEYS, headers=who.headers, json={"title": "Test", "scopes": scopes, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["secret"], answer.json()["apiKey"]


async def listed(http: httpx.AsyncClient, who: SignedIn, *, ended: bool = False) -> list[dict[str, Any]]:
    answer = await http.get(KEYS, headers=who.headers, params={"includeEnded": ended})
    found: list[dict[str, Any]] = answer.json()["apiKeys"]
    return found


async def test_a_key_acts_for_its_user_within_its_scopes(
    http: httpx.AsyncClient, tenant: Tenant, owner: SignedIn, verifiers: list[ApiKeyVerifier]
) -> None:
    secret, key = await make(http, owner, "users.read", "settings.manage")
    assert secret.startswith(key["prefix"] + "_")
    user = await verifiers[0].verify(secret)
    assert (user.user_id, user.tenant_id, user.session_id) == (owner.user_id, tenant.tenant_id, key["keyId"])
    assert user.permissions == {"users.read", "settings.manage"}
    everything, _ = await make(http, owner, "*")
    assert (await verifiers[0].verify(everything)).permissions == {"*"}


async def test_the_key_is_shown_once_and_stored_nowhere(
    platform: Platform, http: httpx.AsyncClient, owner: SignedIn, verifiers: list[ApiKeyVerifier]
) -> None:
    secret, key = await make(http, owner, "users.read")
    await verifiers[0].verify(secret)
    (found,) = await listed(http, owner)
    assert found["lastUsedTime"]
    assert {name: value for name, value in found.items() if name != "lastUsedTime"} == {
        name: value for name, value in key.items() if name != "lastUsedTime"
    }
    hidden = secret.removeprefix(key["prefix"])
    admin = await platform.admin()
    try:
        tables = await admin.fetch(
            "SELECT oid::regclass::text AS name FROM pg_class "
            "WHERE relkind = 'r' AND relnamespace = 'backend_api'::regnamespace"
        )
        for table in tables:
            rows = await admin.fetch(f"SELECT t::text AS row FROM {table['name']} t")
            assert not [row for row in rows if hidden in row["row"] or hidden.encode().hex() in row["row"]]
    finally:
        await admin.close()
    logs = "".join(path.read_text() for path in (platform.home / "logs").glob("*.log"))
    assert hidden not in logs


async def test_nobody_gives_a_key_what_they_do_not_have(
    http: httpx.AsyncClient, tenant: Tenant, owner: SignedIn
) -> None:
    plain = await tenant.sign_in()
    body = {"title": "Test", "scopes": ["users.read"]}
    assert reason(await http.post(KEYS, headers=plain.headers, json=body), 403) == "PERMISSION_MISSING"
    unknown = await http.post(KEYS, headers=owner.headers, json=body | {"scopes": ["none.such"]})
    assert reason(unknown, 400) == "SCOPE_UNKNOWN"
    past = await http.post(KEYS, headers=owner.headers, json=body | {"expireTime": "2020-01-01T00:00:00Z"})
    assert reason(past, 400) == "EXPIRY_PAST"
    assert reason(await http.post(KEYS, headers=owner.headers, json={"title": "Test"}), 400) == "INVALID_REQUEST"


def test_a_scope_counts_as_far_as_the_user_still_has_it() -> None:
    assert api_keys.effective(["a", "b"], ["b", "c"]) == ["b"]
    assert api_keys.effective(["a", "b"], ["*"]) == ["a", "b"]
    assert api_keys.effective(["*"], ["b", "c"]) == ["b", "c"]
    assert api_keys.effective(["a"], []) == []


async def test_a_revoked_key_is_refused_within_a_second_by_processes_that_remember_it(
    http: httpx.AsyncClient, owner: SignedIn, verifiers: list[ApiKeyVerifier]
) -> None:
    secret, key = await make(http, owner, "users.read")
    other, _ = await make(http, owner, "users.read")
    for verifier in verifiers:
        await verifier.verify(secret)
        await verifier.verify(other)
    path = f"{KEYS}/{key['keyId']}"
    revoked = await http.delete(path, headers=owner.headers)
    assert revoked.json()["apiKey"]["revokeTime"]

    async def refused_by_all() -> bool:
        answers = await asyncio.gather(*(verifier.verify(secret) for verifier in verifiers), return_exceptions=True)
        return all(isinstance(answer, ApiKeyInvalid) for answer in answers)

    await within_a_second(refused_by_all)
    for verifier in verifiers:
        await verifier.verify(other)
    assert (await http.delete(path, headers=owner.headers)).json() == revoked.json()
    assert [found["keyId"] for found in await listed(http, owner)] != [key["keyId"]]
    assert key["keyId"] in [found["keyId"] for found in await listed(http, owner, ended=True)]


async def test_a_key_ends_when_it_expires_however_well_it_is_remembered(
    http: httpx.AsyncClient, owner: SignedIn, verifiers: list[ApiKeyVerifier]
) -> None:
    # Tokens and keys end with a whole second.
    expires = (now() + timedelta(seconds=3)).replace(microsecond=0)
    secret, _ = await make(http, owner, "users.read", expireTime=expires.isoformat())
    await verifiers[0].verify(secret)
    await asyncio.sleep((expires - now()).total_seconds())
    for verifier in verifiers:  # the first remembers it, the second does not
        with pytest.raises(ApiKeyExpired):
            await verifier.verify(secret)


async def test_a_guessed_or_mangled_key_is_nobodys(
    http: httpx.AsyncClient, owner: SignedIn, verifiers: list[ApiKeyVerifier]
) -> None:
    secret, key = await make(http, owner, "users.read")
    another, _ = await make(http, owner, "users.read")
    wrong = [
        "x",
        secret[:-1],
        secret + "A",
        secret.swapcase(),
        key["prefix"] + another.removeprefix(another[: len(key["prefix"])]),
        "nxk_" + "0" * 16 + "_" + "A" * 43,
        "'; --",
        "x" * 10_000,
    ]
    for guess in wrong:
        with pytest.raises(ApiKeyInvalid):
            await verifiers[0].verify(guess)
    assert "lastUsedTime" not in (await listed(http, owner))[1]
    await verifiers[0].verify(secret)


async def test_the_rate_of_a_key_is_exact_over_all_processes(
    http: httpx.AsyncClient, owner: SignedIn, verifiers: list[ApiKeyVerifier]
) -> None:
    secret, _ = await make(http, owner, "users.read", rate="API_KEY_RATE_LOW")
    other, _ = await make(http, owner, "users.read", rate="API_KEY_RATE_LOW")

    async def call(number: int) -> bool:
        try:
            await verifiers[number % 2].verify(secret)
        except RateLimited:
            return False
        return True

    assert sum(await asyncio.gather(*(call(number) for number in range(100)))) == 60
    await verifiers[0].verify(other)
    await verifiers[0].verify(secret, count=False)


async def test_a_tenant_sees_and_revokes_its_own_keys_only(
    http: httpx.AsyncClient, other_tenant: Tenant, owner: SignedIn, verifiers: list[ApiKeyVerifier]
) -> None:
    secret, key = await make(http, owner, "users.read")
    eve = await other_tenant.sign_in("owner")
    assert await listed(http, eve) == []
    assert reason(await http.delete(f"{KEYS}/{key['keyId']}", headers=eve.headers), 404) == "API_KEY_NOT_FOUND"
    await verifiers[0].verify(secret)


async def test_a_key_of_a_suspended_tenant_is_refused(
    platform: Platform, http: httpx.AsyncClient, tenant: Tenant, owner: SignedIn, verifiers: list[ApiKeyVerifier]
) -> None:
    secret, _ = await make(http, owner, "users.read")
    root = await Tenant(platform, platform.settings.platform_tenant).sign_in("owner")
    suspended = await http.post(f"/api/v1/tenants/{tenant.tenant_id}:suspend", headers=root.headers, json={})
    assert suspended.status_code == 200

    async def refused() -> bool:
        try:
            await verifiers[0].verify(secret)
        except TenantSuspended:
            return True
        return False

    await within_a_second(refused)


async def test_keys_are_listed_by_page_the_latest_first(http: httpx.AsyncClient, owner: SignedIn) -> None:
    made = [(await make(http, owner, "users.read"))[1]["keyId"] for _ in range(5)]
    found, token = [], ""
    while True:
        page = (await http.get(KEYS, headers=owner.headers, params={"pageSize": 2, "pageToken": token})).json()
        found += [key["keyId"] for key in page["apiKeys"]]
        token = page["nextPageToken"]
        if not token:
            break
    assert found == made[::-1]
