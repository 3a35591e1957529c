"""Guessing is slowed down, alike for users that there are and users that there are not."""

import asyncio
import statistics
import time
from datetime import timedelta

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.ids import new_id
from services.chassis.lockout import LockoutPolicy
from tests.identity.people import body, change, login, reason
from tests.platforms import PASSWORD, Platform, Tenant

FREE = 5
WRONG = "not the password"


@given(st.integers(1, 60))
def test_the_wait_doubles_up_to_the_longest(failures: int) -> None:
    policy = LockoutPolicy()
    wait, next_wait = policy.wait(failures), policy.wait(failures + 1)
    assert (wait == timedelta(0)) == (failures < policy.free)
    assert next_wait == min(policy.longest, wait * 2 or (policy.first if failures + 1 >= policy.free else wait))


async def let_time_pass(platform: Platform, tenant: Tenant) -> None:
    """Make the waits of the tenant's users be over."""
    await change(platform, "UPDATE user_auth.lockouts SET open_time = now() WHERE tenant_id = $1", tenant.tenant_id)


@pytest.mark.parametrize("known", [True, False])
async def test_after_five_wrong_passwords_a_user_must_wait_longer_each_time(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, known: bool
) -> None:
    email = await tenant.provision() if known else f"{new_id()}@example.com"
    for _ in range(FREE):
        assert reason(await login(http, tenant, email, WRONG)) == "CREDENTIALS_INVALID"
    waits = []
    for _ in range(3):
        locked = await login(http, tenant, email, PASSWORD)
        assert (locked.status_code, reason(locked)) == (403, "SIGN_IN_LOCKED")
        waits.append(float(locked.json()["details"][1]["retryDelay"].rstrip("s")))
        await let_time_pass(platform, tenant)
        assert reason(await login(http, tenant, email, WRONG)) == "CREDENTIALS_INVALID"
    assert waits == [pytest.approx(10, abs=2), pytest.approx(20, abs=2), pytest.approx(40, abs=2)]
    await let_time_pass(platform, tenant)
    assert (await login(http, tenant, email)).status_code == (200 if known else 401)


async def test_a_lock_holds_in_other_letters_and_for_one_user_in_one_tenant_only(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email, calm = await tenant.provision(), await tenant.provision()
    await other_tenant.provision(email=email)
    for _ in range(FREE):
        await login(http, tenant, email, WRONG)
    assert reason(await login(http, tenant, email.upper())) == "SIGN_IN_LOCKED"
    body(await login(http, tenant, calm))
    body(await login(http, other_tenant, email))


async def test_the_right_password_forgives_what_came_before(tenant: Tenant, http: httpx.AsyncClient) -> None:
    email = await tenant.provision()
    for _ in range(3):
        for _ in range(FREE - 1):
            assert reason(await login(http, tenant, email, WRONG)) == "CREDENTIALS_INVALID"
        body(await login(http, tenant, email))


async def test_guesses_in_parallel_are_no_cheaper(tenant: Tenant, http: httpx.AsyncClient) -> None:
    email = await tenant.provision()
    answers = await asyncio.gather(*(login(http, tenant, email, f"{WRONG} {n}") for n in range(40)))
    reasons = [reason(answer) for answer in answers]
    assert reasons.count("CREDENTIALS_INVALID") == FREE
    assert reasons.count("SIGN_IN_LOCKED") == 40 - FREE
    assert reason(await login(http, tenant, email)) == "SIGN_IN_LOCKED"


async def test_wrong_current_passwords_count_too(tenant: Tenant, http: httpx.AsyncClient) -> None:
    ann = await tenant.sign_in()
    for _ in range(FREE):
        refused = await http.post(
            "/api/v1/auth/change-password",
            headers=ann.headers,
            json={"currentPassword": WRONG, "newPassword": "a better password"},
        )
        assert reason(refused) == "CREDENTIALS_INVALID"
    assert reason(await login(http, tenant, ann.email)) == "SIGN_IN_LOCKED"


async def test_what_is_counted_names_nobody(platform: Platform, tenant: Tenant, http: httpx.AsyncClient) -> None:
    email = f"{new_id()}@example.com"
    await login(http, tenant, email, WRONG)
    admin = await platform.admin()
    try:
        row = await admin.fetchval(
            "SELECT l::text || encode(subject, 'escape') FROM user_auth.lockouts l WHERE tenant_id = $1",
            tenant.tenant_id,
        )
    finally:
        await admin.close()
    assert email not in row


async def test_the_time_of_a_refusal_tells_nobody_who_there_is(tenant: Tenant, http: httpx.AsyncClient) -> None:
    """Medians of many, measured in turns so that a busy machine slows all alike. Each address is tried once, so that
    no lock interferes."""
    known = await asyncio.gather(*(tenant.provision() for _ in range(40)))
    unknown = [f"{new_id()}@example.com" for _ in known]
    await login(http, tenant, f"{new_id()}@example.com", WRONG)
    seconds: dict[str, list[float]] = {"known": [], "unknown": []}
    for known_email, unknown_email in zip(known, unknown, strict=True):
        for kind, email in (("known", known_email), ("unknown", unknown_email)):
            started = time.perf_counter()
            refused = await login(http, tenant, email, WRONG)
            seconds[kind].append(time.perf_counter() - started)
            assert reason(refused) == "CREDENTIALS_INVALID"
    there, not_there = (statistics.median(seconds[kind]) for kind in ("known", "unknown"))
    assert abs(there - not_there) < 0.25 * max(there, not_there), seconds
