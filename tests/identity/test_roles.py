"""Roles are a tenant's own data; deny beats allow; nobody gives away more than they have."""

import asyncio
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st

from services.identity.user_auth.roles import Rule, known_permissions, permissions_of
from services.modules.puabo_os.modules import MODULES
from tests.identity.people import body, claims, login, reason
from tests.platforms import PASSWORD, SignedIn, Tenant

ENTRIES = st.frozensets(st.sampled_from([*known_permissions(), "users.*", "roles.*", "*"]), max_size=4)
RULES = st.lists(st.builds(Rule, st.just("r"), ENTRIES, ENTRIES), max_size=4)


async def set_role(
    http: httpx.AsyncClient, by: SignedIn, name: str, allow: list[str], deny: list[str] | None = None, **more: object
) -> httpx.Response:
    role = {"name": name, "allow": allow, "deny": deny or [], **more}
    return await http.put(f"/api/v1/roles/{name}", headers=by.headers, json=role)


async def assign(http: httpx.AsyncClient, by: SignedIn, user_id: str, *roles: str) -> httpx.Response:
    return await http.post(f"/api/v1/users/{user_id}:assignRoles", headers=by.headers, json={"roles": roles})


async def remove(http: httpx.AsyncClient, by: SignedIn, user_id: str, *roles: str) -> httpx.Response:
    return await http.post(f"/api/v1/users/{user_id}:removeRoles", headers=by.headers, json={"roles": roles})


async def permissions(http: httpx.AsyncClient, tenant: Tenant, email: str) -> Any:
    """What the tokens of a fresh sign-in say."""
    return claims(body(await login(http, tenant, email))["tokens"]["accessToken"])["permissions"]


@given(RULES)
def test_what_any_role_denies_no_role_allows(rules: list[Rule]) -> None:
    granted = permissions_of(rules)
    for entry in {entry for rule in rules for entry in rule.deny}:
        denied = [name for name in known_permissions() if entry in ("*", name) or name.startswith(entry[:-1])]
        assert not set(granted) & set(denied if entry == "*" or entry.endswith(".*") else [entry])
    assert granted == ["*"] or set(granted) <= set(known_permissions())


async def test_a_role_opens_exactly_what_it_allows(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner, email = await tenant.sign_in("owner"), await tenant.provision()
    before = await tenant.sign_in(email=email)
    assert reason(await http.get("/api/v1/users", headers=before.headers)) == "PERMISSION_MISSING"

    body(await set_role(http, owner, "support", ["users.*"], ["users.erase"]))
    body(await assign(http, owner, before.user_id, "support"))

    after = await tenant.sign_in(email=email)
    assert body(await http.get("/api/v1/users", headers=after.headers))["users"]
    refused = await http.delete(f"/api/v1/users/{owner.user_id}", headers=after.headers)
    assert reason(refused) == "PERMISSION_MISSING"

    body(await remove(http, owner, before.user_id, "support"))
    assert await permissions(http, tenant, email) == []


async def test_a_denial_takes_from_an_owner_too(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner, other = await tenant.sign_in("owner"), await tenant.sign_in("owner")
    body(await set_role(http, owner, "careful", [], ["users.erase"]))
    body(await assign(http, owner, other.user_id, "careful"))
    granted = frozenset().union(*(module.permissions for module in MODULES.values()))
    assert await permissions(http, tenant, other.email) == sorted(granted - {"users.erase"})


async def test_a_role_can_only_name_what_a_contract_asks_for(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner = await tenant.sign_in("owner")
    for entry in ("users.fly", "nothing.*", "users", "us.*", "*.*"):
        assert reason(await set_role(http, owner, "odd", [entry])) == "PERMISSION_UNKNOWN"
        assert reason(await set_role(http, owner, "odd", [], [entry])) == "PERMISSION_UNKNOWN"
    listed = body(await http.get("/api/v1/permissions", headers=owner.headers))["permissions"]
    assert listed == list(known_permissions())
    assert "users.erase" in listed


async def test_the_role_of_owners_cannot_be_changed(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner = await tenant.sign_in("owner")
    assert reason(await set_role(http, owner, "owner", [])) == "ROLE_BUILT_IN"
    assert reason(await http.delete("/api/v1/roles/owner", headers=owner.headers)) == "ROLE_BUILT_IN"


async def test_a_role_that_somebody_has_stays(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner, ann = await tenant.sign_in("owner"), await tenant.sign_in()
    body(await set_role(http, owner, "reader", ["users.read"]))
    body(await assign(http, owner, ann.user_id, "reader"))
    assert reason(await http.delete("/api/v1/roles/reader", headers=owner.headers)) == "ROLE_IN_USE"
    body(await remove(http, owner, ann.user_id, "reader"))
    body(await http.delete("/api/v1/roles/reader", headers=owner.headers))
    assert reason(await assign(http, owner, ann.user_id, "reader")) == "ROLE_NOT_FOUND"


async def test_a_role_changes_only_as_it_was_read(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner = await tenant.sign_in("owner")
    first = body(await set_role(http, owner, "reader", ["users.read"]))["role"]
    body(await set_role(http, owner, "reader", ["users.read", "roles.read"], etag=first["etag"]))
    assert reason(await set_role(http, owner, "reader", [], etag=first["etag"])) == "USER_CHANGED"


async def test_an_assistant_cannot_make_themselves_an_owner(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner, email = await tenant.sign_in("owner"), await tenant.provision()
    assistant = await tenant.sign_in(email=email)
    allowed = ["roles.*", "users.read", "users.update", "users.disable", "users.erase", "users.reset_password"]
    body(await set_role(http, owner, "assistant", allowed))
    body(await set_role(http, owner, "keys", ["token_keys.rotate"]))
    body(await set_role(http, owner, "no-export", [], ["users.export"]))
    body(await assign(http, owner, assistant.user_id, "assistant", "no-export"))
    assistant = await tenant.sign_in(email=email)

    for attempt in (
        assign(http, assistant, assistant.user_id, "owner"),
        assign(http, assistant, assistant.user_id, "keys"),
        set_role(http, assistant, "mine", ["*"]),
        set_role(http, assistant, "mine", ["users.*"]),
        set_role(http, assistant, "keys", ["users.read"]),
        remove(http, assistant, assistant.user_id, "no-export"),
        set_role(http, assistant, "no-export", [], []),
        remove(http, assistant, owner.user_id, "owner"),
        http.post(f"/api/v1/users/{owner.user_id}:disable", headers=assistant.headers, json={}),
        http.post(f"/api/v1/users/{owner.user_id}:resetPassword", headers=assistant.headers, json={}),
        http.delete(f"/api/v1/users/{owner.user_id}", headers=assistant.headers),
        http.patch(
            f"/api/v1/users/{owner.user_id}?updateMask=email",
            headers=assistant.headers,
            json={"email": f"mine@{tenant.tenant_id}.com"},
        ),
    ):
        refused = await attempt
        assert (refused.status_code, reason(refused)) == (403, "ROLE_BEYOND_OWN"), refused.text
    body(await set_role(http, assistant, "mine", ["users.read"]))


async def test_two_owners_who_depose_each_other_leave_one(tenant: Tenant, http: httpx.AsyncClient) -> None:
    for _ in range(3):
        ann, bob = await tenant.sign_in("owner"), await tenant.sign_in("owner")
        others = [user for user in await owners(http, ann) if user not in (ann.user_id, bob.user_id)]
        for user_id in others:
            body(await remove(http, ann, user_id, "owner"))
        answers = await asyncio.gather(
            remove(http, ann, bob.user_id, "owner"),
            http.post(f"/api/v1/users/{ann.user_id}:disable", headers=bob.headers, json={}),
        )
        (refused,) = [answer for answer in answers if answer.status_code != 200]
        assert reason(refused) in ("LAST_OWNER", "TOKEN_INVALID", "ROLE_BEYOND_OWN")
        left = await tenant.sign_in("owner")
        assert len(await owners(http, left)) == 2, "the survivor and the one who looks"


async def owners(http: httpx.AsyncClient, by: SignedIn) -> list[str]:
    query = "/api/v1/users?role=owner&state=USER_STATE_ACTIVE"
    return [user["userId"] for user in body(await http.get(query, headers=by.headers))["users"]]


async def test_a_tenant_keeps_its_last_owner(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner = await tenant.sign_in("owner")
    for attempt in (
        remove(http, owner, owner.user_id, "owner"),
        http.post(f"/api/v1/users/{owner.user_id}:disable", headers=owner.headers, json={}),
        http.delete(f"/api/v1/users/{owner.user_id}", headers=owner.headers),
    ):
        assert reason(await attempt) == "LAST_OWNER"


async def test_roles_of_one_tenant_mean_nothing_in_another(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    owner, stranger = await tenant.sign_in("owner"), await other_tenant.sign_in("owner")
    body(await set_role(http, owner, "reader", ["users.read"]))
    listed = body(await http.get("/api/v1/roles", headers=stranger.headers))["roles"]
    assert [role["name"] for role in listed] == ["owner"]
    assert reason(await assign(http, stranger, owner.user_id, "owner")) == "USER_NOT_FOUND"
    assert reason(await assign(http, stranger, stranger.user_id, "reader")) == "ROLE_NOT_FOUND"


async def test_who_creates_users_gives_them_no_role_beyond_their_own(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner, email = await tenant.sign_in("owner"), await tenant.provision()
    plain = await tenant.sign_in(email=email)
    made = {"email": f"new-{owner.user_id}@example.com", "password": PASSWORD, "requestId": "once"}

    async def create(by: SignedIn, **more: object) -> httpx.Response:
        return await http.post("/api/v1/users", headers=by.headers, json={**made, **more})

    assert reason(await create(plain)) == "PERMISSION_MISSING"
    body(await set_role(http, owner, "clerk", ["users.create"]))
    body(await assign(http, owner, plain.user_id, "clerk"))
    clerk = await tenant.sign_in(email=email)
    assert reason(await create(clerk, roles=["owner"])) == "ROLE_BEYOND_OWN"
    assert reason(await create(clerk, roles=["no-such"])) == "ROLE_NOT_FOUND"
    assert reason(await create(clerk, password="password1")) == "PASSWORD_WEAK"
    created = body(await create(clerk, roles=["clerk"]))["user"]
    assert created["emailVerified"]
    assert body(await create(clerk, roles=["clerk"]))["user"] == created
    assert reason(await create(clerk, requestId="again")) == "EMAIL_TAKEN"
    assert await permissions(http, tenant, made["email"]) == ["users.create"]
