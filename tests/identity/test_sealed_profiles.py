"""What is personal is sealed for its user alone: at rest, in copies, and in rows from before it was."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import cbor2
import httpx
import pytest

from nexus.identity.user_auth.v1.faults import IdentityTaken
from nexus.identity.user_auth.v1.user_auth_pb2 import LinkIdentityRequest
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from nexus.platform.key_service.v1.faults import KeyNotUsable
from services.chassis.clients import Clients
from services.chassis.context import acting_for
from services.chassis.fields import FieldCipher
from services.chassis.ids import new_id
from tests.identity.authenticators import Authenticator
from tests.identity.people import body, change, login, reason, register_passkey, value
from tests.identity.test_mfa import passkey_login
from tests.platforms import PASSWORD, Platform, SignedIn, Tenant

TABLES = ("user_auth.users", "user_auth.identities", "auth_service.passkeys", "session_mgr.sessions")
UPSTREAM = "https://upstream.example"


@pytest.fixture
async def cipher(platform: Platform) -> AsyncIterator[FieldCipher]:
    """As user-auth has it, in another process."""
    clients = Clients(platform.settings, "user-auth", frozenset({"key-service"}))
    yield FieldCipher(clients)
    await clients.stop()


@pytest.fixture
def key(platform: Platform) -> Authenticator:
    return Authenticator(origin=platform.settings.public_url)


async def rows(platform: Platform, tenant: Tenant, table: str) -> str:
    """All that the table holds of the tenant, bytes in hex."""
    text: str = await value(
        platform, f"SELECT string_agg(t::text, ' ') FROM {table} t WHERE tenant_id = $1", tenant.tenant_id
    )
    return text


async def until(holds: Callable[[], Awaitable[Any]]) -> None:
    for _ in range(200):
        if await holds():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{holds} does not come to hold")


async def user_of(http: httpx.AsyncClient, owner: SignedIn, user_id: str) -> dict[str, Any]:
    found: dict[str, Any] = body(await http.get(f"/api/v1/users/{user_id}", headers=owner.headers))["user"]
    return found


async def link(operator: Clients, tenant: Tenant, user: SignedIn, subject: str) -> None:
    await operator.stub(UserServiceStub).LinkIdentity(
        LinkIdentityRequest(issuer=UPSTREAM, subject=subject, user_id=user.user_id),
        timeout=10,
        metadata=tuple(tenant.headers.items()),
    )


async def known_as(http: httpx.AsyncClient, user: SignedIn) -> list[str]:
    """What the user is called elsewhere, and what they call their passkeys."""
    identities = body(await http.get("/api/v1/identities", headers=user.headers))["identities"]
    passkeys = body(await http.get("/api/v1/auth/factors", headers=user.headers))["passkeys"]
    return [*(each["subject"] for each in identities), *(each["name"] for each in passkeys)]


async def test_no_row_says_who_and_where_its_user_is(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, key: Authenticator, operator: Clients
) -> None:
    ann, subject = await tenant.sign_in("owner"), f"elsewhere-{new_id()}"
    await register_passkey(http, ann, key)
    await link(operator, tenant, ann, subject)
    assert await known_as(http, ann) == [subject, "Laptop"]
    numbers = key.key.public_key().public_numbers()
    secrets = [ann.email, "Test User", "python-httpx", "127.0.0.1", subject, "Laptop"]
    forms = [*secrets, *(text.encode().hex() for text in secrets), numbers.x.to_bytes(32, "big").hex()]
    for table in TABLES:
        held = await rows(platform, tenant, table)
        assert ann.user_id in held
        assert not [form for form in forms if form in held], table
    shown = await user_of(http, ann, ann.user_id)
    assert (shown["email"], shown["displayName"]) == (ann.email, "Test User")
    (session,) = body(await http.get("/api/v1/sessions", headers=ann.headers))["sessions"]
    assert session["userAgent"].startswith("python-httpx")
    assert session["ipAddress"] == "127.0.0.1"


async def test_nobody_can_tell_that_two_tenants_have_the_same_user(
    platform: Platform, tenant: Tenant, other_tenant: Tenant
) -> None:
    email = await other_tenant.provision(email=await tenant.provision())
    both = [tenant.tenant_id, other_tenant.tenant_id]
    digests = "SELECT count(DISTINCT email_digest) FROM user_auth.users WHERE tenant_id = ANY($1)"
    assert await value(platform, digests, both) == 2
    assert (await tenant.sign_in(email=email)).user_id != (await other_tenant.sign_in(email=email)).user_id


async def test_two_spellings_of_an_address_are_one_user(tenant: Tenant, http: httpx.AsyncClient) -> None:
    email = await tenant.provision(email=f"{new_id()}@example.com")
    register = {"email": email.upper(), "password": PASSWORD}
    assert reason(await http.post("/api/v1/auth/register", headers=tenant.headers, json=register)) == "EMAIL_TAKEN"
    body(await login(http, tenant, email.upper()))


async def test_a_copy_of_an_erased_user_can_never_be_read_again(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, cipher: FieldCipher
) -> None:
    owner, ann = await tenant.sign_in("owner"), await tenant.sign_in()
    copy = await value(platform, "SELECT profile_sealed FROM user_auth.users WHERE user_id = $1", ann.user_id)
    with acting_for(tenant.tenant_id):
        read = await cipher.open(copy, subject=ann.user_id, field="users.profile")
        assert ann.email.encode() in read
        cipher.forget(ann.user_id)
        body(await http.delete(f"/api/v1/users/{ann.user_id}", headers=owner.headers))

        async def is_shredded() -> bool:
            cipher.forget(ann.user_id)
            try:
                await cipher.open(copy, subject=ann.user_id, field="users.profile")
            except KeyNotUsable:
                return True
            return False

        await until(is_shredded)
    assert await user_of(http, owner, owner.user_id)


async def test_rows_from_before_work_at_once_and_are_sealed_soon(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, key: Authenticator, operator: Clients
) -> None:
    owner, ann, subject = await tenant.sign_in("owner"), await tenant.sign_in(), f"before-{new_id()}"
    await register_passkey(http, ann, key)
    await link(operator, tenant, ann, f"other-{subject}")
    email, numbers = f"Before-{new_id()}@Example.com", key.key.public_key().public_numbers()
    cose = {1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}
    await change(
        platform,
        "UPDATE user_auth.users SET profile_sealed = NULL, email_digest = NULL, email = $2, email_key = $3, "
        "display_name = 'Ann Before' WHERE user_id = $1",
        ann.user_id,
        email,
        email.lower(),
    )
    await change(
        platform,
        "UPDATE auth_service.passkeys SET public_key_sealed = NULL, public_key = $2, name_sealed = NULL, "
        "name = 'Old phone' WHERE user_id = $1",
        ann.user_id,
        cbor2.dumps(cose),
    )
    await change(
        platform,
        "UPDATE user_auth.identities SET subject_sealed = NULL, subject_digest = NULL, subject = $2 WHERE user_id = $1",
        ann.user_id,
        subject,
    )
    await change(
        platform,
        "UPDATE session_mgr.sessions SET device_sealed = NULL, user_agent = 'Old browser', ip_address = '192.0.2.7' "
        "WHERE user_id = $1",
        ann.user_id,
    )

    async def works() -> None:
        assert (await login(http, tenant, email)).status_code == 200
        shown = await user_of(http, owner, ann.user_id)
        assert (shown["email"], shown["displayName"]) == (email, "Ann Before")
        found = await http.get("/api/v1/users", headers=owner.headers, params={"email": email.upper()})
        assert [user["userId"] for user in body(found)["users"]] == [ann.user_id]
        register = {"email": email, "password": PASSWORD}
        taken = await http.post("/api/v1/auth/register", headers=tenant.headers, json=register)
        assert reason(taken) == "EMAIL_TAKEN"
        assert (await passkey_login(http, tenant, key.get))[1].status_code == 200
        sessions = body(await http.get("/api/v1/sessions", headers=ann.headers))["sessions"]
        (old,) = [session for session in sessions if session["sessionId"] == ann.session_id]
        assert (old["userAgent"], old["ipAddress"]) == ("Old browser", "192.0.2.7")
        assert await known_as(http, ann) == [subject, "Old phone"]
        with pytest.raises(IdentityTaken):
            await link(operator, tenant, owner, subject)

    async def is_sealed() -> bool:
        held = " ".join([await rows(platform, tenant, table) for table in TABLES])
        public_key = numbers.x.to_bytes(32, "big").hex()
        clear = (email, email.lower(), "Ann Before", "Old browser", "192.0.2.7", "Old phone", subject, public_key)
        return not any(text in held for text in clear)

    await works()
    await until(is_sealed)
    await works()
