"""The keys that sign access tokens change under the users' feet, and nobody notices."""

import asyncio
from typing import Any

import httpx
import pytest

from nexus.identity.token_mgr.v1.token_mgr_pb2 import VerifyTokenRequest
from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
from services.chassis.clients import Clients
from services.chassis.root_keys import root_key_file
from services.chassis.sealing import SealBroken, Sealer
from services.platform.key_service import material
from tests.identity.people import change
from tests.platforms import Platform, SignedIn, Tenant


async def rotate(http: httpx.AsyncClient, by: SignedIn) -> httpx.Response:
    return await http.post("/api/v1/token-keys:rotate", headers=by.headers, json={})


async def published(http: httpx.AsyncClient) -> dict[str, Any]:
    return {key["kid"]: key for key in (await http.get("/.well-known/jwks.json")).json()["keys"]}


async def works(http: httpx.AsyncClient, operator: Clients, user: SignedIn) -> bool:
    """Whether the edge, a service and token-mgr itself take the user's token."""
    at_the_edge = await http.get("/api/v1/sessions", headers=user.headers)
    verified = await operator.stub(TokenServiceStub).VerifyToken(
        VerifyTokenRequest(access_token=user.access_token), timeout=5
    )
    return at_the_edge.status_code == 200 and verified.active


@pytest.mark.parametrize("roles", [[], ["owner"]], ids=["nobody", "a tenant's owner"])
async def test_only_those_who_run_the_platform_rotate_its_keys(
    tenant: Tenant, http: httpx.AsyncClient, roles: list[str]
) -> None:
    refused = await rotate(http, await tenant.sign_in(*roles))
    assert refused.status_code == 403
    assert refused.json()["details"][0]["reason"] == "PERMISSION_MISSING"


async def test_private_keys_are_not_published_and_only_key_service_can_open_them(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    await tenant.sign_in()
    keys = await published(http)
    assert len(keys) >= 2
    for key in keys.values():
        assert (key["kty"], key["crv"], key["alg"], key["use"]) == ("EC", "P-256", "ES256", "sig")
        assert "d" not in key
    admin = await platform.admin()
    try:
        rows = await admin.fetch("SELECT kid, state, public_jwk, private_sealed FROM token_mgr.signing_keys")
        (sealing_key,) = await admin.fetch(
            "SELECT key_id::text, tenant_id FROM key_service.keys WHERE owner = 'token-mgr' AND name = 'signing-keys'"
        )
    finally:
        await admin.close()
    assert sealing_key["tenant_id"] == platform.settings.platform_tenant
    by_root_key = Sealer(root_key_file(platform.settings), "token-mgr")
    for row in rows:
        assert '"d"' not in row["public_jwk"]
        assert (row["private_sealed"] is None) == (row["state"] == "former"), "what signs no more is gone"
        if row["private_sealed"] is not None:
            assert material.read_label(row["private_sealed"]).key_id == sealing_key["key_id"]
            assert b'"d"' not in row["private_sealed"]
            with pytest.raises(SealBroken):
                by_root_key.open(row["private_sealed"], f"signing key {row['kid']}")


async def test_a_rotation_is_noticed_by_nobody_and_the_next_one_has_to_wait(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, operator: Clients
) -> None:
    """One test, for the keys are the whole platform's: only one rotation may be forced in a run, because the edge
    learns the key after the next within its 10 seconds."""
    operations = Tenant(platform, platform.settings.platform_tenant)
    owner = await operations.sign_in("owner")
    before = await published(http)
    admin = await platform.admin()
    try:
        await admin.execute(
            "UPDATE token_mgr.signing_keys SET create_time = create_time - interval '1 minute' "
            "WHERE state = 'next' AND algorithm = 'ES256'"
        )
        keys = "FROM token_mgr.signing_keys WHERE algorithm = 'ES256'"
        upcoming = await admin.fetchval(f"SELECT kid {keys} AND state = 'next'")
        answers = await asyncio.gather(*(rotate(http, owner) for _ in range(5)))
        states = dict(await admin.fetch(f"SELECT kid, state {keys}"))
    finally:
        await admin.close()

    (done,) = [answer for answer in answers if answer.status_code == 200]
    assert done.json()["currentKid"] == upcoming
    assert [states[done.json()[name]] for name in ("currentKid", "nextKid")] == ["current", "next"]
    assert sorted(states.values()).count("current") == sorted(states.values()).count("next") == 1
    for answer in answers:
        if answer is not done:
            details = answer.json()["details"]
            assert details[0]["reason"] == "ROTATION_TOO_SOON"
            assert 0 < float(details[1]["retryDelay"].rstrip("s")) <= 30

    after = await published(http)
    assert set(before) < set(after)
    assert done.json()["nextKid"] in after

    assert await works(http, operator, owner), "a token signed before"
    newcomer = await tenant.sign_in()
    assert await works(http, operator, newcomer), "a token signed after"
    refreshed = await http.post(
        "/api/v1/auth/refresh", headers=operations.headers, json={"refreshToken": owner.refresh_token}
    )
    assert refreshed.status_code == 200


async def rsa_keys(http: httpx.AsyncClient, tenant: Tenant) -> list[str]:
    """Ids of the keys for clients that know no other than RS256, as they are published."""
    keys = (await http.get(f"/t/{tenant.tenant_id}/jwks.json")).json()["keys"]
    found = [key for key in keys if key["alg"] == "RS256"]
    for key in found:
        assert not {"d", "p", "q"} & set(key)
        assert (key["kty"], len(key["n"])) == ("RSA", 342), "2048 bits"
    return [key["kid"] for key in found]


async def test_a_key_that_is_due_is_rotated_by_itself_and_one_that_leaked_is_withdrawn(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    """With RS256, whose keys no service and no edge has to learn."""
    current, upcoming = await rsa_keys(http, tenant)
    assert not {current, upcoming} & set(await published(http)), "no access token is signed by them"
    age = "UPDATE token_mgr.signing_keys SET create_time = create_time - interval '31 days'"
    await change(platform, age + ", promote_time = promote_time - interval '31 days' WHERE algorithm = 'RS256'")

    async with asyncio.timeout(30):
        while len(await rsa_keys(http, tenant)) == 2:  # noqa: ASYNC110  nobody tells us
            await asyncio.sleep(0.2)
    before, now_current, latest = await rsa_keys(http, tenant)
    assert (before, now_current) == (current, upcoming)

    owner = await Tenant(platform, platform.settings.platform_tenant).sign_in("owner")
    withdraw = {"algorithm": "SIGNING_ALGORITHM_RS256", "withdrawFormer": True}
    too_soon = await http.post("/api/v1/token-keys:rotate", headers=owner.headers, json=withdraw)
    assert too_soon.json()["details"][0]["reason"] == "ROTATION_TOO_SOON"
    assert current in await rsa_keys(http, tenant)
    await change(platform, age + " WHERE algorithm = 'RS256' AND state = 'next'")
    done = await http.post("/api/v1/token-keys:rotate", headers=owner.headers, json=withdraw)
    assert done.json()["currentKid"] == latest, done.text
    assert await rsa_keys(http, tenant) == [latest, done.json()["nextKid"]]
