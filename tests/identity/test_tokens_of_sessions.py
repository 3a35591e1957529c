"""Refresh tokens rotate; one that comes back after its time was stolen, and takes its whole session with it."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.platforms import Platform, Tenant


async def refresh(http: httpx.AsyncClient, tenant: Tenant, refresh_token: str) -> httpx.Response:
    return await http.post("/api/v1/auth/refresh", headers=tenant.headers, json={"refreshToken": refresh_token})


def tokens(answer: httpx.Response) -> tuple[str, str]:
    """Access and refresh token."""
    assert answer.status_code == 200, answer.text
    body = answer.json()["tokens"]
    return body["accessToken"], body["refreshToken"]


def reason(answer: httpx.Response) -> Any:
    return answer.json()["details"][0]["reason"]


async def works(http: httpx.AsyncClient, access_token: str) -> bool:
    answer = await http.get("/api/v1/auth/me", headers={"authorization": f"Bearer {access_token}"})
    return answer.status_code == 200


async def let_the_grace_pass(platform: Platform, tenant: Tenant) -> None:
    """Make every exchange of the tenant's tokens look a minute older than it is."""
    await change(platform, tenant, "spend_time = spend_time - interval '1 minute'")


async def change(platform: Platform, tenant: Tenant, what: str) -> None:
    admin = await platform.admin()
    try:
        await admin.execute(f"UPDATE token_mgr.refresh_tokens SET {what} WHERE tenant_id = $1", tenant.tenant_id)
    finally:
        await admin.close()


async def test_each_refresh_gives_tokens_that_work_and_a_new_refresh_token(
    tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in()
    seen = {ann.refresh_token}
    refresh_token = ann.refresh_token
    for _ in range(3):
        access_token, refresh_token = tokens(await refresh(http, tenant, refresh_token))
        assert await works(http, access_token)
        assert refresh_token not in seen
        seen.add(refresh_token)


async def test_two_refreshes_in_parallel_both_work(tenant: Tenant, http: httpx.AsyncClient) -> None:
    ann = await tenant.sign_in()
    answers = await asyncio.gather(*(refresh(http, tenant, ann.refresh_token) for _ in range(2)))
    (first_access, first), (second_access, second) = map(tokens, answers)
    assert first != second
    for access_token in (ann.access_token, first_access, second_access):
        assert await works(http, access_token)
    for refresh_token in (first, second):
        tokens(await refresh(http, tenant, refresh_token))


async def test_a_client_that_never_received_the_answer_may_ask_again(tenant: Tenant, http: httpx.AsyncClient) -> None:
    ann = await tenant.sign_in()
    tokens(await refresh(http, tenant, ann.refresh_token))
    access_token, refresh_token = tokens(await refresh(http, tenant, ann.refresh_token))
    assert await works(http, access_token)
    tokens(await refresh(http, tenant, refresh_token))


async def test_a_refresh_that_meets_a_revocation_waits_for_it(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in()
    revoking, watching = await platform.admin(), await platform.admin()
    try:
        revocation = revoking.transaction()
        await revocation.start()
        await revoking.execute(
            "UPDATE token_mgr.token_families SET revoke_time = now() WHERE tenant_id = $1", tenant.tenant_id
        )
        pid = await revoking.fetchval("SELECT pg_backend_pid()")
        refreshing = asyncio.create_task(refresh(http, tenant, ann.refresh_token))
        waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid)))"
        while not (refreshing.done() or await watching.fetchval(waits, pid)):  # noqa: ASYNC110  nobody tells us
            await asyncio.sleep(0.01)
        await revocation.commit()
        assert reason(await refreshing) == "REFRESH_TOKEN_INVALID"
    finally:
        await revoking.close()
        await watching.close()


async def test_a_token_that_comes_back_after_the_grace_ends_its_session(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in()
    access_token, refresh_token = tokens(await refresh(http, tenant, ann.refresh_token))
    await let_the_grace_pass(platform, tenant)

    stolen = await refresh(http, tenant, ann.refresh_token)
    assert (stolen.status_code, reason(stolen)) == (401, "REFRESH_TOKEN_REUSED")

    assert reason(await refresh(http, tenant, refresh_token)) == "REFRESH_TOKEN_INVALID"
    assert reason(await refresh(http, tenant, ann.refresh_token)) == "REFRESH_TOKEN_INVALID"
    for token in (ann.access_token, access_token):
        assert not await works(http, token)


async def test_a_stolen_token_takes_down_no_other_session_of_the_user(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision()
    stolen, other = await tenant.sign_in(email=email), await tenant.sign_in(email=email)
    tokens(await refresh(http, tenant, stolen.refresh_token))
    await let_the_grace_pass(platform, tenant)
    assert reason(await refresh(http, tenant, stolen.refresh_token)) == "REFRESH_TOKEN_REUSED"
    assert await works(http, other.access_token)
    tokens(await refresh(http, tenant, other.refresh_token))


async def test_thieves_and_owner_at_once_end_the_session_once_and_for_all(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in()
    _, current = tokens(await refresh(http, tenant, ann.refresh_token))
    await let_the_grace_pass(platform, tenant)
    thieves = [refresh(http, tenant, ann.refresh_token) for _ in range(5)]
    *refused, last = await asyncio.gather(*thieves, refresh(http, tenant, current))
    assert {answer.status_code for answer in refused} == {401}
    assert "REFRESH_TOKEN_REUSED" in [reason(answer) for answer in refused]
    if last.status_code == 200:  # it came before the thieves; what it got is dead all the same
        access_token, current = tokens(last)
        assert not await works(http, access_token)
    assert reason(await refresh(http, tenant, current)) == "REFRESH_TOKEN_INVALID"


async def test_a_token_past_its_expiry_is_refused(platform: Platform, tenant: Tenant, http: httpx.AsyncClient) -> None:
    ann = await tenant.sign_in()
    await change(platform, tenant, "expire_time = now()")
    assert reason(await refresh(http, tenant, ann.refresh_token)) == "REFRESH_TOKEN_INVALID"
    assert await works(http, ann.access_token)


async def test_another_tenants_token_is_unknown_and_stays_good_at_home(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in()
    assert reason(await refresh(http, other_tenant, ann.refresh_token)) == "REFRESH_TOKEN_INVALID"
    tokens(await refresh(http, tenant, ann.refresh_token))


@pytest.mark.parametrize("made_up", ["x", "A" * 43, "A" * 128])
async def test_a_made_up_token_is_refused(tenant: Tenant, http: httpx.AsyncClient, made_up: str) -> None:
    assert reason(await refresh(http, tenant, made_up)) == "REFRESH_TOKEN_INVALID"


async def test_refresh_tokens_are_stored_as_hashes_only(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in()
    admin = await platform.admin()
    try:
        rows = await admin.fetch(
            "SELECT t::text FROM token_mgr.refresh_tokens t WHERE tenant_id = $1 "
            "UNION ALL SELECT f::text FROM token_mgr.token_families f WHERE tenant_id = $1",
            tenant.tenant_id,
        )
    finally:
        await admin.close()
    assert len(rows) == 2
    for row in rows:
        assert ann.refresh_token not in row["t"]
        assert ann.refresh_token.encode().hex() not in row["t"]
