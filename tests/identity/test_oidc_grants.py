"""Refresh, client-credentials, device and exchange grants, introspection and revocation, by Authlib's client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from authlib.integrations.base_client.errors import OAuthError

from tests.identity.oidc import (
    REDIRECT_URI,
    Browser,
    Registered,
    claims_of,
    granted,
    issuer,
    query_of,
    register,
    relying_party,
    signed_in,
    status,
)
from tests.identity.people import change, value
from tests.platforms import PASSWORD, Platform, Tenant

DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"


@pytest.fixture
async def browser(platform: Platform) -> AsyncIterator[Browser]:
    async with Browser(platform) as one:
        yield one


async def post(
    http: httpx.AsyncClient, tenant: Tenant, client: Registered, endpoint: str, **form: str
) -> httpx.Response:
    return await http.post(
        f"/t/{tenant.tenant_id}/oauth2/{endpoint}", data=form, auth=(client.client_id, client.secret)
    )


async def let_the_grace_pass(platform: Platform, tenant: Tenant) -> None:
    admin = await platform.admin()
    try:
        await admin.execute(
            "UPDATE token_mgr.refresh_tokens SET spend_time = spend_time - interval '1 minute' WHERE tenant_id = $1",
            tenant.tenant_id,
        )
    finally:
        await admin.close()


async def test_authlib_refreshes_and_the_refresh_token_rotates(
    platform: Platform, tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    """[oidcc-refresh-token]"""
    client, email = await register(tenant, http), await tenant.provision()
    token = await signed_in(tenant, browser, client, email)
    async with relying_party(tenant, client, scope="openid email", token=dict(token)) as authlib:
        fresh = await authlib.refresh_token(f"{issuer(tenant)}/oauth2/token")
        assert fresh["refresh_token"] != token["refresh_token"]
        before, after = [await claims_of(each["id_token"], tenant, http) for each in (token, fresh)]
        assert {after[name] == before[name] for name in ("iss", "sub", "aud", "auth_time")} == {True}
        # One that comes back was stolen: the whole grant ends.
        await let_the_grace_pass(platform, tenant)
        stolen = await post(
            http, tenant, client, "token", grant_type="refresh_token", refresh_token=token["refresh_token"]
        )
        assert stolen.json()["error"] == "invalid_grant"
        with pytest.raises(OAuthError, match="invalid_grant"):
            await authlib.refresh_token(f"{issuer(tenant)}/oauth2/token")
        assert status(await authlib.get(f"{issuer(tenant)}/oauth2/userinfo")) == 401


async def test_a_refresh_token_is_good_for_its_client_only_and_not_for_the_platforms_own_refresh(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    client, email = await register(tenant, http), await tenant.provision()
    other = await register(tenant, http)
    token = (await signed_in(tenant, browser, client, email))["refresh_token"]
    form = {"grant_type": "refresh_token", "refresh_token": token}
    assert (await post(http, tenant, other, "token", **form)).json()["error"] == "invalid_grant"
    own = await http.post("/api/v1/auth/refresh", headers=tenant.headers, json={"refreshToken": token})
    assert own.json()["details"][0]["reason"] == "REFRESH_TOKEN_INVALID"
    wider = await post(http, tenant, client, "token", **form, scope="openid email profile")
    assert wider.json()["error"] == "invalid_scope"
    narrower = (await post(http, tenant, client, "token", **form, scope="openid")).json()
    assert narrower["scope"] == "openid"


async def test_consent_taken_back_ends_the_refreshing(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    client, user = await register(tenant, http), await tenant.sign_in()
    token = await signed_in(tenant, browser, client, user.email)
    consents = (await http.get("/api/v1/consents", headers=user.headers)).json()["consents"]
    assert [(each["clientId"], each["scopes"]) for each in consents] == [(client.client_id, ["email", "openid"])]
    await http.delete(f"/api/v1/consents/{client.client_id}", headers=user.headers)
    form = {"grant_type": "refresh_token", "refresh_token": token["refresh_token"]}
    assert (await post(http, tenant, client, "token", **form)).json()["error"] == "invalid_grant"


async def test_an_offline_grant_outlives_the_session(tenant: Tenant, browser: Browser, http: httpx.AsyncClient) -> None:
    client, user = await register(tenant, http), await tenant.sign_in()
    tokens = [
        (await signed_in(tenant, browser, client, user.email, scope))["refresh_token"]
        for scope in ("openid", "openid offline_access")
    ]
    await http.delete("/api/v1/sessions", headers=user.headers)
    answers = [
        await post(http, tenant, client, "token", grant_type="refresh_token", refresh_token=token) for token in tokens
    ]
    assert answers[0].json()["error"] == "invalid_grant"
    assert "access_token" in answers[1].json()


@pytest.mark.parametrize("how", ["password changed", "password reset", "disabled"])
async def test_no_offline_grant_outlives_a_lock_out(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient, how: str
) -> None:
    client, user, owner = await register(tenant, http), await tenant.sign_in(), await tenant.sign_in("owner")
    token = await signed_in(tenant, browser, client, user.email, "openid offline_access")
    one = f"/api/v1/users/{user.user_id}"
    passwords = {"currentPassword": PASSWORD, "newPassword": f"{PASSWORD} staple"}
    answer = await {
        "password changed": lambda: http.post("/api/v1/auth/change-password", headers=user.headers, json=passwords),
        "password reset": lambda: http.post(f"{one}:resetPassword", headers=owner.headers, json={}),
        "disabled": lambda: http.post(f"{one}:disable", headers=owner.headers, json={}),
    }[how]()
    assert answer.status_code == 200, answer.text
    if how == "disabled":
        assert (await http.post(f"{one}:enable", headers=owner.headers, json={})).status_code == 200
    refreshed = await post(
        http, tenant, client, "token", grant_type="refresh_token", refresh_token=token["refresh_token"]
    )
    assert refreshed.json()["error"] == "invalid_grant"
    assert (await post(http, tenant, client, "introspect", token=token["access_token"])).json() == {"active": False}
    bearer = {"authorization": f"Bearer {token['access_token']}"}
    assert status(await http.get(f"/t/{tenant.tenant_id}/oauth2/userinfo", headers=bearer)) == 401


async def test_what_is_asked_for_a_disabled_user_is_refused_as_the_standards_say(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient, platform: Platform
) -> None:
    """RFC 6749, section 5.2; RFC 6750, section 3.1."""
    client, user = await register(tenant, http), await tenant.sign_in("owner")
    asked = {"title": "Test", "scopes": ["users.read"]}
    key = (await http.post("/api/v1/api-keys", headers=user.headers, json=asked)).json()["secret"]
    token = await signed_in(tenant, browser, client, user.email, "openid offline_access")
    async with relying_party(tenant, client, scope="openid") as authlib:
        location, verifier = await granted(browser, tenant, authlib, user.email)
    # As it looks to a call that comes between the disabling and the end of the sessions.
    await change(platform, "UPDATE user_auth.users SET state = 'disabled' WHERE user_id = $1", user.user_id)
    code = {"code": query_of(location)["code"], "code_verifier": verifier, "redirect_uri": REDIRECT_URI}
    for grant in (
        {"grant_type": "refresh_token", "refresh_token": token["refresh_token"]},
        {"grant_type": "authorization_code", **code},
    ):
        answer = await post(http, tenant, client, "token", **grant)
        assert (status(answer), answer.json().get("error")) == (400, "invalid_grant"), answer.text
    bearer = {"authorization": f"Bearer {token['access_token']}"}
    answer = await http.get(f"/t/{tenant.tenant_id}/oauth2/userinfo", headers=bearer)
    assert status(answer) == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    answer = await http.get("/api/v1/users", headers={"x-api-key": key})
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (401, "API_KEY_INVALID")


async def test_a_token_carries_only_those_permissions_that_were_asked_for_and_that_the_user_has(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    client = await register(tenant, http, scopes=["openid", "users.read"])
    me = "/api/v1/users/"
    for roles, code in (((), 403), (("owner",), 200)):
        user = await tenant.sign_in(*roles)
        async with Browser(tenant.platform) as fresh:
            token = await signed_in(tenant, fresh, client, user.email, "openid users.read")
            without = await signed_in(tenant, fresh, client, user.email, "openid")
        answer = await http.get(me + user.user_id, headers={"authorization": f"Bearer {token['access_token']}"})
        assert answer.status_code == code, answer.text
        answer = await http.get(me + user.user_id, headers={"authorization": f"Bearer {without['access_token']}"})
        assert answer.status_code == 403


async def test_a_client_acts_for_itself(tenant: Tenant, http: httpx.AsyncClient) -> None:
    client = await register(tenant, http, grantTypes=["client_credentials"], redirectUris=[], scopes=["clients.manage"])
    async with relying_party(tenant, client, scope=None) as authlib:
        token = await authlib.fetch_token(grant_type="client_credentials")
        assert "refresh_token" not in token
        mine = await http.get("/api/v1/clients", headers={"authorization": f"Bearer {token['access_token']}"})
        assert [each["clientId"] for each in mine.json()["clients"]] == [client.client_id]
        revoke: Any = authlib.revoke_token
        revoked = await revoke(f"{issuer(tenant)}/oauth2/revoke", token=token["access_token"])
        assert status(revoked) == 200
    inactive = await post(http, tenant, client, "introspect", token=token["access_token"])
    assert inactive.json() == {"active": False}


@pytest.mark.parametrize("secret", ["wrong", ""])
async def test_a_wrong_secret_is_refused(tenant: Tenant, http: httpx.AsyncClient, secret: str) -> None:
    client = await register(tenant, http, grantTypes=["client_credentials"], redirectUris=[], scopes=["users.read"])
    wrong = Registered(client.client_id, secret)
    answer = await post(http, tenant, wrong, "token", grant_type="client_credentials")
    assert (status(answer), answer.json()["error"]) == (401, "invalid_client")
    assert answer.headers["www-authenticate"].startswith("Basic")


async def test_what_the_token_endpoint_refuses(tenant: Tenant, http: httpx.AsyncClient) -> None:
    client = await register(tenant, http, grantTypes=["client_credentials"], redirectUris=[], scopes=["users.read"])
    for form, error in (
        ({}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, "unauthorized_client"),
        ({"grant_type": "client_credentials", "scope": "users.read clients.manage"}, "invalid_scope"),
    ):
        answer = await post(http, tenant, client, "token", **form)
        assert (status(answer), answer.json()["error"]) == (400, error)
    basic = (client.client_id, client.secret)
    for content, kind in ((b"grant_type=a&grant_type=b", "application/x-www-form-urlencoded"), (b"{}", "text/json")):
        answer = await http.post(
            f"/t/{tenant.tenant_id}/oauth2/token", content=content, headers={"content-type": kind}, auth=basic
        )
        assert (status(answer), answer.json()["error"]) == (400, "invalid_request")


async def test_nobody_gives_a_client_what_they_do_not_have(tenant: Tenant, http: httpx.AsyncClient) -> None:
    machine = await register(
        tenant, http, grantTypes=["client_credentials"], redirectUris=[], scopes=["clients.manage"]
    )
    token = (await post(http, tenant, machine, "token", grant_type="client_credentials")).json()["access_token"]
    answer = await http.post(
        "/api/v1/clients",
        headers={"authorization": f"Bearer {token}"},
        json={"settings": {"clientName": "More", "grantTypes": ["client_credentials"], "scopes": ["users.read"]}},
    )
    assert answer.json()["details"][0]["reason"] == "SCOPE_NOT_HELD"


async def test_nobody_takes_over_a_client_that_may_more_than_they(tenant: Tenant, http: httpx.AsyncClient) -> None:
    """A client's secret is all that its scopes allow."""
    strong, weak = [
        await register(tenant, http, grantTypes=["client_credentials"], redirectUris=[], scopes=scopes)
        for scopes in (["users.read", "clients.manage"], ["clients.manage"])
    ]
    owner = await tenant.sign_in("owner")
    token = (await post(http, tenant, weak, "token", grant_type="client_credentials")).json()["access_token"]

    async def rotate(client: Registered, headers: dict[str, str]) -> httpx.Response:
        return await http.post(f"/api/v1/clients/{client.client_id}:rotateSecret", headers=headers, json={})

    answer = await rotate(strong, {"authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (403, "SCOPE_NOT_HELD")
    assert "access_token" in (await post(http, tenant, strong, "token", grant_type="client_credentials")).json()

    for who, client in (({"authorization": f"Bearer {token}"}, weak), (owner.headers, strong)):
        fresh = Registered(client.client_id, (await rotate(client, who)).json()["clientSecret"])
        refused = await post(http, tenant, client, "token", grant_type="client_credentials")
        assert refused.json()["error"] == "invalid_client"
        assert "access_token" in (await post(http, tenant, fresh, "token", grant_type="client_credentials")).json()


async def test_a_device_gets_its_tokens_once(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient, platform: Platform
) -> None:
    client = await register(tenant, http, authentication="NONE", grantTypes=[DEVICE, "refresh_token"], redirectUris=[])
    email = await tenant.provision()
    base = f"/t/{tenant.tenant_id}/oauth2"
    start = {"client_id": client.client_id, "scope": "openid email"}
    device = (await http.post(f"{base}/device_authorization", data=start)).json()
    form = {"grant_type": DEVICE, "device_code": device["device_code"], "client_id": client.client_id}

    async def poll() -> dict[str, Any]:
        await rest(platform, tenant)
        answer: dict[str, Any] = (await http.post(f"{base}/token", data=form)).json()
        return answer

    assert (await poll())["error"] == "authorization_pending"
    assert (await http.post(f"{base}/token", data=form)).json()["error"] == "slow_down"
    page = await browser.sign_in(await browser.get(device["verification_uri_complete"]), email)
    assert "Allow Test client?" in page.text
    assert "Done" in (await browser.submit(page, decision="allow")).text
    await rest(platform, tenant)
    answers = [
        answer.json() for answer in await asyncio.gather(*(http.post(f"{base}/token", data=form) for _ in range(8)))
    ]
    assert len([answer for answer in answers if "access_token" in answer]) == 1, answers
    tokens = next(answer for answer in answers if "access_token" in answer)
    assert (await claims_of(tokens["id_token"], tenant, http))["email"] == email
    assert (await poll())["error"] == "invalid_grant"


async def test_authlib_signs_a_device_in_and_refreshes_its_tokens(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient, platform: Platform
) -> None:
    client = await register(tenant, http, grantTypes=[DEVICE, "refresh_token"], redirectUris=[])
    email = await tenant.provision()
    async with relying_party(tenant, client, scope="openid email") as authlib:
        started = await post(http, tenant, client, "device_authorization", scope="openid email")
        device = started.json()
        assert set(device) == {
            "device_code", "user_code", "verification_uri", "verification_uri_complete", "expires_in", "interval",
        }  # fmt: skip

        async def poll() -> dict[str, Any]:
            token: dict[str, Any] = await authlib.fetch_token(grant_type=DEVICE, device_code=device["device_code"])
            return token

        for told in ("authorization_pending", "slow_down"):
            with pytest.raises(OAuthError, match=told):
                await poll()
        # The user comes to the page on their own, signs in there, and types the code as they please.
        page = await browser.get(device["verification_uri"])
        typed = device["user_code"].lower().replace("-", " ")
        page = await browser.get(f"{page.url}?user_code={typed}")
        page = await browser.sign_in(page, email)
        assert device["user_code"] in page.text, "the user compares it with the device's"
        assert "Done" in (await browser.submit(page, decision="allow")).text
        await rest(platform, tenant)
        token = await poll()
        assert (await claims_of(token["id_token"], tenant, http))["email"] == email
        fresh = await authlib.refresh_token(f"{issuer(tenant)}/oauth2/token")
        assert fresh["refresh_token"] != token["refresh_token"]
        assert (await authlib.get(f"{issuer(tenant)}/oauth2/userinfo")).json()["email"] == email
    unknown = await browser.get(f"{device['verification_uri']}?user_code=BBBB-BBBB")
    assert "No device waits with this code" in unknown.text


async def test_each_poll_that_comes_too_early_makes_the_device_wait_five_seconds_longer(
    tenant: Tenant, http: httpx.AsyncClient, platform: Platform
) -> None:
    """RFC 8628, section 3.5."""
    client = await register(tenant, http, grantTypes=[DEVICE], redirectUris=[])
    device = (await post(http, tenant, client, "device_authorization")).json()
    waits = []
    for told in ("authorization_pending", "slow_down", "slow_down", "slow_down"):
        answer = await post(http, tenant, client, "token", grant_type=DEVICE, device_code=device["device_code"])
        assert answer.json()["error"] == told
        query = "SELECT poll_seconds FROM auth_service_v2.device_codes WHERE tenant_id = $1"
        waits.append(await value(platform, query, tenant.tenant_id))
    assert waits == [device["interval"] + 5 * more for more in (0, 1, 2, 3)]


async def test_a_denied_device_and_a_late_one_get_nothing(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient, platform: Platform
) -> None:
    client = await register(tenant, http, authentication="NONE", grantTypes=[DEVICE], redirectUris=[])
    email = await tenant.provision()
    base = f"/t/{tenant.tenant_id}/oauth2"
    for decision, error in (("deny", "access_denied"), ("", "expired_token")):
        device = (await http.post(f"{base}/device_authorization", data={"client_id": client.client_id})).json()
        form = {"grant_type": DEVICE, "device_code": device["device_code"], "client_id": client.client_id}
        if decision:
            page = await browser.sign_in(await browser.get(device["verification_uri_complete"]), email)
            await browser.submit(page, decision=decision)
        else:
            await rest(platform, tenant, "expire_time = now()")
        assert (await http.post(f"{base}/token", data=form)).json()["error"] == error


async def rest(platform: Platform, tenant: Tenant, change: str = "poll_time = now()") -> None:
    """Let the device's interval pass at once."""
    admin = await platform.admin()
    try:
        await admin.execute(f"UPDATE auth_service_v2.device_codes SET {change} WHERE tenant_id = $1", tenant.tenant_id)
    finally:
        await admin.close()


async def test_a_service_acts_on_a_users_behalf_with_less_than_the_user_has(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    """RFC 8693."""
    user, stranger = await tenant.sign_in("owner"), await other_tenant.sign_in("owner")
    client = await register(tenant, http, grantTypes=[EXCHANGE], redirectUris=[], scopes=["users.read"])
    form = {
        "grant_type": EXCHANGE,
        "subject_token": user.access_token,
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
    }
    exchanged = (await post(http, tenant, client, "token", **form)).json()
    claims = await claims_of(exchanged["access_token"], tenant, http)
    assert (claims["sub"], claims["act"], claims["permissions"]) == (
        user.user_id,
        {"sub": client.client_id},
        ["users.read"],
    )
    bearer = {"authorization": f"Bearer {exchanged['access_token']}"}
    assert (await http.get(f"/api/v1/users/{user.user_id}", headers=bearer)).status_code == 200
    assert (await http.get("/api/v1/clients", headers=bearer)).status_code == 403
    for changed, error in (
        ({"subject_token": stranger.access_token}, "invalid_request"),
        ({"scope": "clients.manage"}, "invalid_scope"),
        ({"audience": "https://elsewhere.example"}, "invalid_target"),
    ):
        answer = await post(http, tenant, client, "token", **{**form, **changed})
        assert answer.json().get("error") == error, answer.text
    await http.delete("/api/v1/sessions", headers=user.headers)
    assert (await http.get(f"/api/v1/users/{user.user_id}", headers=bearer)).status_code == 401


async def test_an_exchange_never_gives_more_than_both_the_token_and_the_client_have(
    tenant: Tenant, http: httpx.AsyncClient, platform: Platform
) -> None:
    user = await tenant.sign_in("owner")
    powerless = await tenant.sign_in()
    elsewhere = "https://elsewhere.example"
    reader, ordering, outward = [
        await register(tenant, http, grantTypes=[EXCHANGE], redirectUris=[], **settings)
        for settings in (
            {"scopes": ["users.read"]},
            {"scopes": ["my.orders", "openid"]},
            {"scopes": ["users.read"], "audiences": [elsewhere]},
        )
    ]

    async def exchange(client: Registered, token: str, **more: str) -> dict[str, Any]:
        kind = "urn:ietf:params:oauth:token-type:access_token"
        form = {"grant_type": EXCHANGE, "subject_token": token, "subject_token_type": kind, **more}
        answer: dict[str, Any] = (await post(http, tenant, client, "token", **form)).json()
        return answer

    # What the two have in common is nothing, which is not everything.
    assert (await exchange(reader, powerless.access_token))["error"] == "invalid_scope"
    assert (await exchange(ordering, user.access_token))["error"] == "invalid_scope"
    # A client of another audience gets no token for the platform.
    assert (await exchange(outward, user.access_token, audience=platform.settings.token_audience))["error"] == (
        "invalid_target"
    )
    exchanged = (await exchange(outward, user.access_token))["access_token"]
    assert (await claims_of(exchanged, tenant, http))["aud"] == elsewhere
    bearer = {"authorization": f"Bearer {exchanged}"}
    assert (await http.get(f"/api/v1/users/{user.user_id}", headers=bearer)).status_code == 401


async def test_who_acts_for_a_user_is_told_through_each_exchange(tenant: Tenant, http: httpx.AsyncClient) -> None:
    """RFC 8693, section 4.1: the actor of now outside, those before within."""
    user = await tenant.sign_in("owner")
    first, second = [
        await register(tenant, http, grantTypes=[EXCHANGE], redirectUris=[], scopes=["users.read"]) for _ in range(2)
    ]
    token = user.access_token
    for client in (first, second):
        form = {
            "grant_type": EXCHANGE,
            "subject_token": token,
            "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        }
        token = (await post(http, tenant, client, "token", **form)).json()["access_token"]
    claims = await claims_of(token, tenant, http)
    assert claims["sub"] == user.user_id
    assert claims["act"] == {"sub": second.client_id, "act": {"sub": first.client_id}}
    assert claims["exp"] <= (await claims_of(user.access_token, tenant, http))["exp"]
    told = (await post(http, tenant, first, "introspect", token=token)).json()
    assert (told["active"], told["act"]) == (True, {"sub": second.client_id})


async def test_secrets_are_stored_as_hashes_only(platform: Platform, tenant: Tenant, http: httpx.AsyncClient) -> None:
    client = await register(tenant, http)
    admin = await platform.admin()
    try:
        row = await admin.fetchval(
            "SELECT c::text FROM auth_service_v2.clients c WHERE tenant_id = $1", tenant.tenant_id
        )
    finally:
        await admin.close()
    assert client.secret not in row
    assert client.secret.encode().hex() not in row
