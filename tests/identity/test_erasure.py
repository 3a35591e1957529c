"""A disabled user is out at once; an erased one is gone everywhere; an export says all there is."""

import asyncio
from typing import Any

import httpx

from nexus.identity.user_auth.v1.events_pb2 import UserCreated, UserDisabled, UserErased
from nexus.identity.user_auth.v1.faults import IdentityNotLinked, IdentityTaken
from nexus.identity.user_auth.v1.user_auth_pb2 import LinkIdentityRequest, ResolveIdentityRequest
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from services.chassis.clients import Clients
from services.chassis.ids import new_id
from tests.identity.authenticators import Authenticator
from tests.identity.oidc import Browser, register, signed_in
from tests.identity.people import (
    body,
    enroll_totp,
    login,
    next_code,
    reason,
    register_passkey,
    value,
    verify_mfa,
    works,
)
from tests.platforms import PASSWORD, Platform, SignedIn, Tenant

ISSUER = "https://id.example.com"
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
KEPT = {
    "events": "is the audit trail: it says that there was such a user, and nothing of them",
    "idempotency_keys": "forgets within a day",
    "key_service.keys": "remember that nothing may be sealed for the user any more",
    "key_service.subjects": "remember that nothing may be sealed for the user any more",
    "key_service.key_uses": "say which id used a key, for as long as that is asked for",
    "pv_keys.approvals": "say who approved what was signed",
    "pv_keys.key_events": "say who did what with a private key",
    "billing_service.bills": "are kept by law",
    "billing_service.credit_entries": "are kept by law",
    "billing_service.customers": "belong to payments, which are kept by law",
    "billing_service.payments": "are kept by law",
    "billing_service.subscriptions": "belong to bills, which are kept by law",
    "billing_service.usage_events": "belong to bills, which are kept by law",
    "invoice_gen.invoices": "are kept by law",
    "puabo_nuki_order_processor.orders": "are kept by law",
}
"""Tables that may name the id of an erased user, in one service or, without a schema, in each; and why."""
OF_ORDERS = {"billing_service.payment_methods", "puabo_nuki_order_processor.carts"}
"""Tables that are emptied too, which the tests of orders and payments see to."""


async def disable(http: httpx.AsyncClient, by: SignedIn, user_id: str) -> httpx.Response:
    return await http.post(f"/api/v1/users/{user_id}:disable", headers=by.headers, json={})


async def erase(http: httpx.AsyncClient, by: SignedIn, user_id: str) -> httpx.Response:
    return await http.delete(f"/api/v1/users/{user_id}", headers=by.headers)


async def events_of(platform: Platform, user_id: str) -> list[str]:
    """The types of the events about a user."""
    admin = await platform.admin()
    try:
        rows = await admin.fetch("SELECT type FROM user_auth.events WHERE aggregate = $1 ORDER BY sequence", user_id)
    finally:
        await admin.close()
    return [row["type"] for row in rows]


async def tables_that_mention(platform: Platform, tenant: Tenant, *texts: str) -> set[str]:
    """The tables, of all there are, in which a row of the tenant contains one of the texts, in clear or as bytes."""
    wanted = [form for text in texts for form in (text, text.encode().hex(), text.replace("-", ""))]
    admin = await platform.admin()
    try:
        tables = await admin.fetch(
            "SELECT table_schema || '.' || table_name AS name FROM information_schema.columns "
            "WHERE column_name = 'tenant_id' AND table_schema <> 'nexus'"
        )
        return {
            name
            for (name,) in tables
            if await admin.fetchval(
                f"SELECT EXISTS (SELECT FROM {name} t WHERE tenant_id = $1 AND t::text ILIKE ANY ($2))",
                tenant.tenant_id,
                [f"%{form}%" for form in wanted],
            )
        }
    finally:
        await admin.close()


async def tables_of_users(platform: Platform) -> set[str]:
    """The tables with a column for the id of a user."""
    admin = await platform.admin()
    try:
        columns = await admin.fetch(
            "SELECT table_schema || '.' || table_name AS name FROM information_schema.columns "
            "WHERE column_name IN ('user_id', 'customer_id') AND table_schema <> 'nexus'"
        )
    finally:
        await admin.close()
    return {name for (name,) in columns}


def erasable(tables: set[str]) -> set[str]:
    return {name for name in tables if name not in KEPT and name.partition(".")[2] not in KEPT}


async def link(operator: Clients, tenant: Tenant, subject: str, **more: Any) -> Any:
    return await operator.stub(UserServiceStub).LinkIdentity(
        LinkIdentityRequest(issuer=ISSUER, subject=subject, **more),
        timeout=10,
        metadata=tuple(tenant.headers.items()),
    )


async def resolve(operator: Clients, tenant: Tenant, subject: str) -> Any:
    return await operator.stub(UserServiceStub).ResolveIdentity(
        ResolveIdentityRequest(issuer=ISSUER, subject=subject), timeout=10, metadata=tuple(tenant.headers.items())
    )


async def test_a_disabled_user_is_out_at_once_and_back_when_enabled(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    owner, ann = await tenant.sign_in("owner"), await tenant.sign_in()
    assert body(await disable(http, owner, ann.user_id))["endedSessions"] == 1
    assert not await works(http, ann)
    assert reason(await login(http, tenant, ann.email)) == "USER_DISABLED"
    assert reason(await login(http, tenant, ann.email, "not the password")) == "CREDENTIALS_INVALID"
    body(await disable(http, owner, ann.user_id))
    assert await events_of(platform, ann.user_id) == [
        UserCreated.DESCRIPTOR.full_name,
        UserDisabled.DESCRIPTOR.full_name,
    ]
    body(await http.post(f"/api/v1/users/{ann.user_id}:enable", headers=owner.headers, json={}))
    body(await login(http, tenant, ann.email))


async def test_no_session_survives_a_disabling_that_sign_ins_race_with(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    owner, email = await tenant.sign_in("owner"), await tenant.provision()
    user_id = (await tenant.sign_in(email=email)).user_id
    logins = [login(http, tenant, email) for _ in range(15)]
    *answers, disabled = await asyncio.gather(*logins, disable(http, owner, user_id))
    body(disabled)
    assert {answer.status_code for answer in answers} <= {200, 401, 403}
    live = await value(
        platform, "SELECT count(*) FROM session_mgr.sessions WHERE user_id = $1 AND end_time IS NULL", user_id
    )
    assert live == 0
    for answer in answers:
        if answer.status_code == 200:
            headers = {"authorization": f"Bearer {answer.json()['tokens']['accessToken']}"}
            assert (await http.get("/api/v1/auth/me", headers=headers)).status_code == 401


async def leave_traces(tenant: Tenant, http: httpx.AsyncClient, ann: SignedIn) -> tuple[str, str]:
    """Do whatever leaves a row that names the user; returns an API key and an offline access token of theirs."""
    set_theme = await http.put(
        "/api/v1/users/me/settings/ui.theme", headers=ann.headers, json={"value": {"text": "dark"}}
    )
    body(set_theme)
    made = {"title": "Nightly", "scopes": ["users.read"]}
    key = body(await http.post("/api/v1/api-keys", headers=ann.headers, json=made))["secret"]
    assert (await http.get("/api/v1/users", headers={"x-api-key": key})).status_code == 200
    client = await register(tenant, http, grantTypes=["authorization_code", "refresh_token", DEVICE])
    async with Browser(tenant.platform) as browser:
        token = await signed_in(tenant, browser, client, ann.email, "openid offline_access", prompt="consent")
        started = await http.post(
            f"/t/{tenant.tenant_id}/oauth2/device_authorization",
            data={"scope": "openid email"},
            auth=(client.client_id, client.secret),
        )
        page = await browser.get(body(started)["verification_uri_complete"])
        assert "Done" in (await browser.submit(page, decision="allow")).text
    await register_passkey(http, ann, Authenticator(origin=tenant.platform.settings.public_url))
    await enroll_totp(http, ann)
    challenge = body(await login(http, tenant, ann.email))["mfa"]["challengeId"]
    assert (await verify_mfa(http, tenant, challenge, totpCode="000000")).status_code == 401
    recovery = {"email": ann.email}
    body(await http.post("/api/v1/auth/start-recovery", headers=tenant.headers, json=recovery))
    next_code(tenant.platform, ann.email, "Set a new password")
    return key, token["access_token"]


async def test_an_erased_user_is_nowhere_and_the_address_is_free(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, operator: Clients
) -> None:
    owner = await tenant.sign_in("owner")
    email, subject = f"erase-me-{new_id()}@example.com", f"subject-{new_id()}"
    await tenant.provision("owner", email=email)
    ann = await tenant.sign_in(email=email)
    key, offline = await leave_traces(tenant, http, ann)
    await link(operator, tenant, subject, user_id=ann.user_id)
    before = await tables_that_mention(platform, tenant, ann.user_id)
    assert erasable(await tables_of_users(platform)) - OF_ORDERS <= before

    body(await erase(http, owner, ann.user_id))

    assert not await works(http, ann)
    assert reason(await login(http, tenant, email)) == "CREDENTIALS_INVALID"
    assert reason(await erase(http, owner, ann.user_id)) == "USER_NOT_FOUND"
    assert (await events_of(platform, ann.user_id))[-1] == UserErased.DESCRIPTOR.full_name
    for _ in range(100):  # the others hear of it by event
        left = erasable(await tables_that_mention(platform, tenant, email, ann.user_id, subject))
        if not left:
            break
        await asyncio.sleep(0.1)
    assert not left
    assert (await http.get("/api/v1/users", headers={"x-api-key": key})).status_code == 401
    offline_call = await http.get("/api/v1/auth/me", headers={"authorization": f"Bearer {offline}"})
    assert offline_call.status_code == 401

    registered = await http.post(
        "/api/v1/auth/register", headers=tenant.headers, json={"email": email, "password": PASSWORD}
    )
    assert body(registered)["user"]["userId"] != ann.user_id


async def test_users_erase_themselves_with_their_password(tenant: Tenant, http: httpx.AsyncClient) -> None:
    ann = await tenant.sign_in()

    async def erase_me(password: str) -> httpx.Response:
        return await http.post("/api/v1/auth/me:erase", headers=ann.headers, json={"password": password})

    assert reason(await erase_me("not the password")) == "CREDENTIALS_INVALID"
    assert await works(http, ann)
    body(await erase_me(PASSWORD))
    assert not await works(http, ann)


async def test_an_export_says_who_the_user_is_and_where_they_are_signed_in(
    tenant: Tenant, http: httpx.AsyncClient, operator: Clients
) -> None:
    owner, email = await tenant.sign_in("owner"), await tenant.provision()
    ann, subject = await tenant.sign_in(email=email), f"subject-{new_id()}"
    await tenant.sign_in(email=email)
    await link(operator, tenant, subject, user_id=ann.user_id)
    mine = body(await http.get("/api/v1/auth/me:export", headers=ann.headers))["export"]
    assert mine["user"]["email"] == email
    assert [identity["subject"] for identity in mine["identities"]] == [subject]
    assert len(mine["sessions"]) == 2
    assert "password" not in str(mine).lower()
    assert (mine["factors"]["totp"], mine["consents"], mine["apiKeys"], mine["settings"]) == (False, [], [], [])
    theirs = body(await http.get(f"/api/v1/users/{ann.user_id}:export", headers=owner.headers))["export"]
    assert theirs["user"] == mine["user"]
    refused = await http.get(f"/api/v1/users/{owner.user_id}:export", headers=ann.headers)
    assert reason(refused) == "PERMISSION_MISSING"


async def test_an_export_says_what_the_user_has_set_up_allowed_and_made(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann, owner, stranger = (
        await tenant.sign_in("owner"),
        await tenant.sign_in("owner"),
        await other_tenant.sign_in("owner"),
    )
    key, _ = await leave_traces(tenant, http, ann)
    await leave_traces(tenant, http, owner)
    body(await http.delete(f"/api/v1/sessions/{ann.session_id}", headers=ann.headers))
    path = f"/api/v1/users/{ann.user_id}:export"
    theirs = body(await http.get(path, headers=owner.headers))["export"]
    assert theirs["factors"]["totp"] is True
    assert [passkey["name"] for passkey in theirs["factors"]["passkeys"]] == ["Laptop"]
    assert theirs["factors"]["recoveryCodesLeft"] == 10
    assert [(consent["clientName"], set(consent["scopes"])) for consent in theirs["consents"]] == [
        ("Test client", {"openid", "offline_access", "email"})
    ]
    assert [(key["title"], key["userId"]) for key in theirs["apiKeys"]] == [("Nightly", ann.user_id)]
    assert [(setting["key"], setting["value"]) for setting in theirs["settings"]] == [("ui.theme", {"text": "dark"})]
    assert ann.session_id in [session["sessionId"] for session in theirs["sessions"] if session.get("endTime")]
    assert key[21:] not in str(theirs)
    assert reason(await http.get(path, headers=stranger.headers)) == "USER_NOT_FOUND"


async def test_users_are_listed_in_pages_and_found_by_address_state_and_role(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    owner = await tenant.sign_in("owner")
    emails = [await tenant.provision(email=f"Page{n}@example.com") for n in range(5)]
    await other_tenant.provision(email="page9@example.com")

    async def page(**query: Any) -> Any:
        return body(await http.get("/api/v1/users", headers=owner.headers, params=query))

    async def found(**query: Any) -> list[str]:
        return [user["email"] for user in (await page(**query))["users"]]

    seen: list[str] = []
    token = ""
    while True:
        read = await page(pageSize=2, pageToken=token)
        seen += [user["email"] for user in read["users"]]
        token = read["nextPageToken"]
        if not token:
            break
    assert seen == [owner.email, *emails]
    for field in ("email", "emailPrefix"):
        assert await found(**{field: "PAGE3@Example.com"}) == ["Page3@example.com"]
        assert await found(**{field: "page"}) == []
        assert await found(**{field: "page9@example.com"}) == []
    assert await found(email="page3@example.com", role="owner") == []
    assert await found(email="page3@example.com", state="USER_STATE_DISABLED") == []
    assert await found(role="owner") == [owner.email]
    assert await found(state="USER_STATE_DISABLED") == []
    first = await page(pageSize=2)
    other_query = await http.get(
        "/api/v1/users", headers=owner.headers, params={"pageToken": first["nextPageToken"], "role": "owner"}
    )
    assert reason(other_query) == "PAGE_TOKEN_INVALID"


async def test_two_who_edit_the_same_user_do_not_overwrite_each_other(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner, ann = await tenant.sign_in("owner"), await tenant.sign_in()
    read = body(await http.get(f"/api/v1/users/{ann.user_id}", headers=owner.headers))["user"]

    async def rename(name: str) -> httpx.Response:
        return await http.patch(
            f"/api/v1/users/{ann.user_id}?updateMask=displayName",
            headers=owner.headers,
            json={"displayName": name, "email": "ignored@example.com", "etag": read["etag"]},
        )

    answers = await asyncio.gather(*(rename(f"Ann {n}") for n in range(5)))
    (done,) = [answer for answer in answers if answer.status_code == 200]
    assert body(done)["user"]["email"] == ann.email
    assert {reason(answer) for answer in answers if answer is not done} == {"USER_CHANGED"}
    refused = await http.patch(
        f"/api/v1/users/{ann.user_id}?updateMask=roles", headers=owner.headers, json={"roles": ["owner"]}
    )
    assert reason(refused) == "INVALID_REQUEST"


async def test_a_new_address_must_be_verified_and_be_free(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner, ann, taken = await tenant.sign_in("owner"), await tenant.sign_in(), await tenant.provision()

    async def move(email: str) -> httpx.Response:
        return await http.patch(
            f"/api/v1/users/{ann.user_id}?updateMask=email", headers=owner.headers, json={"email": email}
        )

    assert reason(await move(taken.upper())) == "EMAIL_TAKEN"
    assert body(await move(ann.email.upper()))["user"]["emailVerified"] is True
    assert body(await move(f"{new_id()}@example.com"))["user"]["emailVerified"] is False


async def test_an_identity_elsewhere_belongs_to_one_user_even_under_a_race(
    tenant: Tenant, other_tenant: Tenant, operator: Clients
) -> None:
    subject = f"subject-{new_id()}"
    made = await asyncio.gather(
        *(link(operator, tenant, subject, email=f"{new_id()}@example.com") for _ in range(8)), return_exceptions=True
    )
    (one,) = [answer for answer in made if not isinstance(answer, BaseException)]
    assert {type(answer) for answer in made if answer is not one} == {IdentityTaken}
    assert one.created
    assert one.user.email_verified
    assert (await resolve(operator, tenant, subject)).user.user_id == one.user.user_id
    assert not (await link(operator, tenant, subject, user_id=one.user.user_id)).created
    try:
        await resolve(operator, other_tenant, subject)
    except IdentityNotLinked:
        return
    raise AssertionError("the identity is known in another tenant")
