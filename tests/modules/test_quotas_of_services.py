"""What a plan limits cannot be made beyond it, and what is gone, or came to nothing, is free again."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from nexus.identity.user_auth.v1.faults import IdentityTaken
from services.chassis.clients import Clients
from services.chassis.ids import new_id
from tests.identity.people import body, reason
from tests.identity.test_erasure import link
from tests.modules.test_puabo_os import give_plan, quota
from tests.platforms import PASSWORD, Platform, SignedIn, Tenant

KEYS = "/api/v1/api-keys"


@pytest.fixture
async def root(platform: Platform) -> SignedIn:
    """Somebody who runs the platform."""
    return await Tenant(platform, platform.settings.platform_tenant).sign_in("owner")


async def register(http: httpx.AsyncClient, tenant: Tenant, email: str = "") -> httpx.Response:
    asked = {"email": email or f"{new_id()}@example.com", "password": PASSWORD, "requestId": new_id()}
    return await http.post("/api/v1/auth/register", headers=tenant.headers, json=asked)


async def used(http: httpx.AsyncClient, owner: SignedIn, counter: str, expected: Callable[[int], bool]) -> int:
    """How much of a quota is used; waits for it to be as expected: what is gone is told by event."""
    for _ in range(100):
        usages = body(await http.get("/api/v1/usage", headers=owner.headers))["usages"]
        found = next((int(usage["used"]) for usage in usages if usage["counter"] == counter), 0)
        if expected(found):
            break
        await asyncio.sleep(0.1)
    return found


def statuses(answers: list[httpx.Response]) -> dict[int, int]:
    codes = [answer.status_code for answer in answers]
    return {code: codes.count(code) for code in codes}


async def test_a_tenant_has_no_more_users_than_its_plan_allows(
    http: httpx.AsyncClient, tenant: Tenant, other_tenant: Tenant, root: SignedIn
) -> None:
    await give_plan(http, root, tenant, quotas=[quota("users", 4, "TOTAL")])
    owner, ann = await tenant.sign_in("owner"), await tenant.sign_in()
    answers = await asyncio.gather(*(register(http, tenant) for _ in range(6)))
    assert statuses(answers) == {200: 2, 429: 4}
    assert {reason(answer) for answer in answers if answer.status_code == 429} == {"QUOTA_EXCEEDED"}
    assert (await register(http, other_tenant)).status_code == 200
    body(await http.delete(f"/api/v1/users/{ann.user_id}", headers=owner.headers))
    assert await used(http, owner, "users", lambda count: count == 3) == 3
    assert (await register(http, tenant)).status_code == 200
    assert reason(await register(http, tenant)) == "QUOTA_EXCEEDED"


async def test_a_registration_that_comes_to_nothing_takes_no_place(
    http: httpx.AsyncClient, tenant: Tenant, root: SignedIn, operator: Clients
) -> None:
    await give_plan(http, root, tenant, quotas=[quota("users", 100, "TOTAL")])
    owner, email = await tenant.sign_in("owner"), f"{new_id()}@example.com"
    answers = await asyncio.gather(*(register(http, tenant, email) for _ in range(8)))
    assert statuses(answers) == {200: 1, 409: 7}
    assert await used(http, owner, "users", lambda count: count == 2) == 2
    await tenant.provision(email=email)  # who is there already
    assert await used(http, owner, "users", lambda count: count == 2) == 2
    # With an identity that is another's they are refused after they have been counted.
    newcomers = [link(operator, tenant, "same", email=f"{new_id()}@example.com") for _ in range(4)]
    outcomes = await asyncio.gather(*newcomers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(IdentityTaken) == 3
    assert await used(http, owner, "users", lambda count: count == 3) == 3


async def test_of_twenty_who_invite_one_address_into_the_last_place_nineteen_are_told_that_it_is_taken(
    http: httpx.AsyncClient, tenant: Tenant, root: SignedIn
) -> None:
    await give_plan(http, root, tenant, quotas=[quota("users", 2, "TOTAL")])
    owner, email = await tenant.sign_in("owner"), f"{new_id()}@example.com"

    async def invite() -> httpx.Response:
        return await http.post("/api/v1/users", headers=owner.headers, json={"email": email, "requestId": new_id()})

    answers = await asyncio.gather(*(invite() for _ in range(20)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert [(answer.status_code, reason(answer)) for answer in refused] == [(409, "EMAIL_TAKEN")] * 19
    found = body(await http.get("/api/v1/users", headers=owner.headers))["users"]
    assert sorted(user["email"] for user in found) == sorted([owner.email, email])


async def test_a_tenant_has_no_more_api_keys_than_its_plan_allows(
    http: httpx.AsyncClient, tenant: Tenant, root: SignedIn
) -> None:
    await give_plan(http, root, tenant, quotas=[quota("api_keys", 3, "TOTAL")])
    owner, ann = await tenant.sign_in("owner"), await tenant.sign_in("owner")

    async def make(who: SignedIn) -> httpx.Response:
        return await http.post(KEYS, headers=who.headers, json={"title": "Test", "scopes": ["users.read"]})

    of_ann = body(await make(ann))["apiKey"]["keyId"]
    answers = await asyncio.gather(*(make(owner) for _ in range(6)))
    assert statuses(answers) == {200: 2, 429: 4}

    async def revoke(key_id: str) -> Any:
        return body(await http.delete(f"{KEYS}/{key_id}", headers=owner.headers))

    mine = next(answer.json()["apiKey"]["keyId"] for answer in answers if answer.status_code == 200)
    await asyncio.gather(*(revoke(mine) for _ in range(4)))
    assert await used(http, owner, "api_keys", lambda count: count == 2) == 2
    await revoke(of_ann)
    body(await make(ann))
    body(await http.delete(f"/api/v1/users/{ann.user_id}", headers=owner.headers))
    assert await used(http, owner, "api_keys", lambda count: count == 1) == 1


async def test_what_was_there_before_the_plan_counted_it_is_counted(
    http: httpx.AsyncClient, tenant: Tenant, root: SignedIn
) -> None:
    owner, ann = await tenant.sign_in("owner"), await tenant.sign_in("owner")
    await tenant.provision()
    made = {"title": "Test", "scopes": ["users.read"]}
    for _ in range(2):
        body(await http.post(KEYS, headers=owner.headers, json=made))
    await give_plan(http, root, tenant, quotas=[quota("users", 5, "TOTAL"), quota("api_keys", 3, "TOTAL")])

    answers = await asyncio.gather(*(register(http, tenant) for _ in range(4)))
    assert statuses(answers) == {200: 2, 429: 2}
    answers = await asyncio.gather(*(http.post(KEYS, headers=owner.headers, json=made) for _ in range(3)))
    assert statuses(answers) == {200: 1, 429: 2}
    assert await used(http, owner, "users", lambda count: count == 5) == 5

    # While the plan counts nothing, others come and go; then it counts again.
    await give_plan(http, root, tenant)
    assert (await register(http, tenant)).status_code == 200
    body(await http.delete(f"/api/v1/users/{ann.user_id}", headers=owner.headers))
    assert await used(http, owner, "users", lambda count: count == 3) == 3  # of this month
    await give_plan(http, root, tenant, quotas=[quota("users", 6, "TOTAL")])
    assert statuses([await register(http, tenant) for _ in range(2)]) == {200: 1, 429: 1}
