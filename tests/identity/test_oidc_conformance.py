"""Checks of the OpenID conformance suite (https://gitlab.com/openid/conformance-suite) that can be made here, by the
names of its modules. Those of other files are named in brackets where they stand."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from joserfc import jws
from joserfc.jwk import ECKey

from services.chassis.ids import new_id
from tests.identity.oidc import (
    REDIRECT_URI,
    VERIFIER,
    Browser,
    Registered,
    authorization,
    claims_of,
    issuer,
    query_of,
    register,
    relying_party,
    signed_in,
    status,
)
from tests.identity.people import change
from tests.platforms import Platform, Tenant

BYE = "http://127.0.0.1:9/bye"


@pytest.fixture
async def browser(platform: Platform) -> AsyncIterator[Browser]:
    async with Browser(platform) as one:
        yield one


async def authorize(browser: Browser, tenant: Tenant, parameters: dict[str, str], email: str) -> httpx.Response:
    """What the authorization endpoint answers a person who signs in and consents."""
    answer = await browser.get(str(httpx.URL(f"{issuer(tenant)}/oauth2/authorize", params=parameters)))
    return await through_the_pages(browser, answer, email)


async def through_the_pages(browser: Browser, answer: httpx.Response, email: str) -> httpx.Response:
    if "<h1>Sign in</h1>" in answer.text:
        answer = await browser.sign_in(answer, email)
    if "Allow" in answer.text:
        answer = await browser.submit(answer, decision="allow")
    return answer


async def redeem(
    tenant: Tenant, http: httpx.AsyncClient, client: Registered, location: str, **form: str
) -> dict[str, Any]:
    """The tokens of the code in a redirect."""
    content = {
        "grant_type": "authorization_code",
        "code": query_of(location)["code"],
        "redirect_uri": location.partition("?")[0],
        "code_verifier": VERIFIER,
        **form,
    }
    basic = httpx.Auth() if form else httpx.BasicAuth(client.client_id, client.secret)
    answer = await http.post(f"/t/{tenant.tenant_id}/oauth2/token", data=content, auth=basic)
    assert status(answer) == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_oidcc_ensure_request_with_valid_pkce_succeeds(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    """[also oidcc-idtoken-signature, oidcc-ensure-request-without-nonce-succeeds-for-code-flow]"""
    client, email = await register(tenant, http), await tenant.provision()
    answer = await authorize(browser, tenant, authorization(client.client_id, nonce=""), email)
    token = await redeem(tenant, http, client, answer.headers["location"])
    header = jws.extract_compact(token["id_token"].encode()).headers()
    published = (await http.get(f"/t/{tenant.tenant_id}/jwks.json")).json()["keys"]
    assert header["alg"] == "ES256"
    assert header["kid"] in [key["kid"] for key in published if key["alg"] == "ES256"]
    claims = await claims_of(token["id_token"], tenant, http)
    assert "nonce" not in claims
    assert {"iss", "sub", "aud", "exp", "iat", "auth_time", "at_hash"} <= set(claims)
    assert "no-store" in (await http.get(f"/t/{tenant.tenant_id}/oauth2/userinfo")).headers["cache-control"]


@pytest.mark.parametrize("how", ["get", "post-header", "post-body"])
async def test_oidcc_userinfo(tenant: Tenant, browser: Browser, http: httpx.AsyncClient, how: str) -> None:
    """[oidcc-userinfo-get, oidcc-userinfo-post-header, oidcc-userinfo-post-body]"""
    client, email = await register(tenant, http), await tenant.provision()
    token = await signed_in(tenant, browser, client, email)
    path, bearer = f"/t/{tenant.tenant_id}/oauth2/userinfo", {"authorization": f"Bearer {token['access_token']}"}
    if how == "get":
        answer = await http.get(path, headers=bearer)
    elif how == "post-header":
        answer = await http.post(path, headers=bearer)
    else:
        answer = await http.post(path, data={"access_token": token["access_token"]})
    assert status(answer) == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["sub"] == (await claims_of(token["id_token"], tenant, http))["sub"]


@pytest.mark.parametrize(
    ("scope", "claims"),
    [
        ("openid", set()),
        ("openid profile", {"name"}),  # [oidcc-scope-profile]
        ("openid email", {"email", "email_verified"}),  # [oidcc-scope-email]
        ("email openid profile", {"name", "email", "email_verified"}),  # [oidcc-scope-all], in another order
    ],
)
async def test_oidcc_scope(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient, scope: str, claims: set[str]
) -> None:
    client, email = await register(tenant, http), await tenant.provision()
    token = await signed_in(tenant, browser, client, email, scope)
    assert token["scope"] == scope
    user = await http.get(
        f"/t/{tenant.tenant_id}/oauth2/userinfo", headers={"authorization": f"Bearer {token['access_token']}"}
    )
    assert set(user.json()) == {"sub", *claims}


@pytest.mark.parametrize(
    "extra",
    [
        {"display": "page"},  # [oidcc-display-page]
        {"display": "popup"},  # [oidcc-display-popup]
        {"ui_locales": "se"},  # [oidcc-ui-locales]
        {"claims_locales": "se"},  # [oidcc-claims-locales]
        {"acr_values": "1 2"},  # [oidcc-ensure-request-with-acr-values-succeeds]
        {"claims": '{"userinfo": {"name": {"essential": true}}}'},  # [oidcc-claims-essential]
        {"login_hint": "somebody@example.com"},  # [oidcc-login-hint]
        {"extra": "foobar"},  # [oidcc-ensure-request-with-unknown-parameter-succeeds]
        {"max_age": "10000"},  # [oidcc-max-age-10000]
    ],
    ids=lambda extra: next(iter(extra)),
)
async def test_a_request_may_say_more(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient, extra: dict[str, str]
) -> None:
    client, email = await register(tenant, http), await tenant.provision()
    answer = await authorize(browser, tenant, authorization(client.client_id, **extra), email)
    token = await redeem(tenant, http, client, answer.headers["location"])
    claims = await claims_of(token["id_token"], tenant, http)
    assert 0 <= claims["iat"] - claims["auth_time"] < 60


async def test_oidcc_max_age_1(platform: Platform, tenant: Tenant, browser: Browser, http: httpx.AsyncClient) -> None:
    client, email = await register(tenant, http), await tenant.provision()
    before = await claims_of((await signed_in(tenant, browser, client, email))["id_token"], tenant, http)
    await change(
        platform,
        "UPDATE session_mgr.sessions SET auth_time = auth_time - interval '10 seconds' WHERE tenant_id = $1",
        tenant.tenant_id,
    )
    url = httpx.URL(f"{issuer(tenant)}/oauth2/authorize", params=authorization(client.client_id, max_age="1"))
    page = await browser.get(str(url))
    assert "<h1>Sign in</h1>" in page.text
    answer = await through_the_pages(browser, page, email)
    token = await redeem(tenant, http, client, answer.headers["location"])
    after = await claims_of(token["id_token"], tenant, http)
    assert after["sub"] == before["sub"]
    assert after["auth_time"] >= before["auth_time"]


async def test_oidcc_id_token_hint(tenant: Tenant, browser: Browser, http: httpx.AsyncClient) -> None:
    client, email = await register(tenant, http), await tenant.provision()
    hint = (await signed_in(tenant, browser, client, email))["id_token"]
    silent = authorization(client.client_id, prompt="none", id_token_hint=hint)
    answer = await authorize(browser, tenant, silent, email)
    assert "code" in query_of(answer.headers["location"])
    async with Browser(tenant.platform) as other:
        others = (await signed_in(tenant, other, client, await tenant.provision()))["id_token"]
    answer = await authorize(browser, tenant, {**silent, "id_token_hint": others}, email)
    assert query_of(answer.headers["location"])["error"] == "login_required"


async def test_oidcc_ensure_post_request_succeeds(tenant: Tenant, browser: Browser, http: httpx.AsyncClient) -> None:
    client, email = await register(tenant, http), await tenant.provision()
    page = await browser.post(f"{issuer(tenant)}/oauth2/authorize", authorization(client.client_id, state="s p+ä&"))
    answer = await through_the_pages(browser, page, email)
    assert query_of(answer.headers["location"])["state"] == "s p+ä&"
    assert await redeem(tenant, http, client, answer.headers["location"])


async def test_oidcc_server_client_secret_post(tenant: Tenant, browser: Browser, http: httpx.AsyncClient) -> None:
    client = await register(tenant, http, authentication="CLIENT_SECRET_POST")
    answer = await authorize(browser, tenant, authorization(client.client_id), await tenant.provision())
    secret = {"client_id": client.client_id, "client_secret": client.secret}
    assert await redeem(tenant, http, client, answer.headers["location"], **secret)


@pytest.mark.parametrize(
    ("registered", "asked"),
    [
        (REDIRECT_URI, ""),  # [oidcc-ensure-redirect-uri-in-authorization-request]
        (REDIRECT_URI, f"{REDIRECT_URI}?foo=bar"),  # [oidcc-redirect-uri-query-added]
        (f"{REDIRECT_URI}?foo=bar", f"{REDIRECT_URI}?foo=baz"),  # [oidcc-redirect-uri-query-mismatch]
        (f"{REDIRECT_URI}?foo=bar", REDIRECT_URI),
        (REDIRECT_URI, f"{REDIRECT_URI}/{new_id()}"),  # [oidcc-ensure-registered-redirect-uri]
    ],
    ids=["none", "query-added", "query-mismatch", "query-left-out", "not-registered"],
)
async def test_oidcc_redirect_uri(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient, registered: str, asked: str
) -> None:
    client, email = await register(tenant, http, redirectUris=[registered]), await tenant.provision()
    answer = await authorize(browser, tenant, authorization(client.client_id, redirect_uri=asked), email)
    assert status(answer) == 400
    assert "location" not in answer.headers


async def test_a_redirect_uri_keeps_its_query(tenant: Tenant, browser: Browser, http: httpx.AsyncClient) -> None:
    uri = f"{REDIRECT_URI}?foo=bar"
    client = await register(tenant, http, redirectUris=[uri])
    answer = await authorize(
        browser, tenant, authorization(client.client_id, redirect_uri=uri), await tenant.provision()
    )
    told = query_of(answer.headers["location"])
    assert told["foo"] == "bar"
    assert "code" in told


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ({"request": "e30.e30."}, "request_not_supported"),
        ({"request_uri": "https://app.example/request.jwt"}, "request_uri_not_supported"),
    ],
)
async def test_oidcc_request_objects_are_rejected_as_unsupported(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient, extra: dict[str, str], error: str
) -> None:
    """[oidcc-unsigned-request-object-supported-correctly-or-rejected-as-unsupported,
    oidcc-request-uri-unsigned-supported-correctly-or-rejected-as-unsupported]"""
    client, email = await register(tenant, http), await tenant.provision()
    answer = await authorize(browser, tenant, authorization(client.client_id, state="s", **extra), email)
    told = query_of(answer.headers["location"])
    assert (told["error"], told["state"]) == (error, "s")
    document = (await http.get(f"/t/{tenant.tenant_id}/.well-known/openid-configuration")).json()
    assert document["request_parameter_supported"] is document["request_uri_parameter_supported"] is False


async def test_oidcc_refresh_token(tenant: Tenant, browser: Browser, http: httpx.AsyncClient) -> None:
    client, other = await register(tenant, http), await register(tenant, http)
    token = await signed_in(tenant, browser, client, await tenant.provision(), "openid offline_access")
    before = await claims_of(token["id_token"], tenant, http)
    async with relying_party(tenant, client, token=dict(token), scope="openid offline_access") as authlib:
        fresh = await authlib.refresh_token(f"{issuer(tenant)}/oauth2/token")
    after = await claims_of(fresh["id_token"], tenant, http)
    assert [after[name] for name in ("iss", "sub", "aud", "auth_time")] == [
        before[name] for name in ("iss", "sub", "aud", "auth_time")
    ]
    assert after["iat"] >= before["iat"]
    stolen = await http.post(
        f"/t/{tenant.tenant_id}/oauth2/token",
        data={"grant_type": "refresh_token", "refresh_token": fresh["refresh_token"]},
        auth=(other.client_id, other.secret),
    )
    assert (status(stolen), stolen.json()["error"]) == (400, "invalid_grant")


async def signed_out(tenant: Tenant, browser: Browser, parameters: dict[str, str]) -> httpx.Response:
    """What the end-session endpoint answers a person who means it."""
    url = httpx.URL(f"{issuer(tenant)}/oauth2/logout", params=parameters)
    page = await browser.get(str(url))
    return await browser.submit(page) if "<h1>Sign out?</h1>" in page.text else page


def modified(token: str) -> str:
    """The same claims, signed by somebody else."""
    found = jws.extract_compact(token.encode())
    key = ECKey.generate_key("P-256", {"kid": str(found.headers()["kid"])}, auto_kid=False)
    return jws.serialize_compact({**found.headers()}, found.payload, key)


@pytest.mark.parametrize(
    ("given", "ends", "location"),
    [
        (("hint", "uri", "state"), True, f"{BYE}?state=s"),  # [oidcc-rp-initiated-logout]
        (("hint", "uri"), True, BYE),  # [oidcc-rp-initiated-logout-no-state]
        (("hint",), True, None),  # [oidcc-rp-initiated-logout-no-post-logout-redirect-uri]
        ((), True, None),  # [oidcc-rp-initiated-logout-no-params]
        (("state",), True, None),  # [oidcc-rp-initiated-logout-only-state]
        (("uri", "state"), False, None),  # [oidcc-rp-initiated-logout-no-id-token-hint]
        (("bad hint", "uri"), False, None),  # [oidcc-rp-initiated-logout-bad-id-token-hint]
        (("modified hint", "uri"), False, None),  # [oidcc-rp-initiated-logout-modified-id-token-hint]
        (("hint", "bad uri"), False, None),  # [oidcc-rp-initiated-logout-bad-post-logout-redirect-uri]
        # [oidcc-rp-initiated-logout-query-added-to-post-logout-redirect-uri]
        (("hint", "uri with query"), False, None),
    ],
    ids=lambda given: ", ".join(given) or "nothing" if isinstance(given, tuple) else "",
)
async def test_oidcc_rp_initiated_logout(
    tenant: Tenant,
    browser: Browser,
    http: httpx.AsyncClient,
    given: tuple[str, ...],
    ends: bool,
    location: str | None,
) -> None:
    """[oidcc-rp-initiated-logout-discovery-endpoint-verification, too]"""
    document = (await http.get(f"/t/{tenant.tenant_id}/.well-known/openid-configuration")).json()
    assert document["end_session_endpoint"] == f"{issuer(tenant)}/oauth2/logout"
    client, email = await register(tenant, http, postLogoutRedirectUris=[BYE]), await tenant.provision()
    token = (await signed_in(tenant, browser, client, email))["id_token"]
    named = {
        "hint": {"id_token_hint": token},
        "bad hint": {"id_token_hint": "foobar"},
        "modified hint": {"id_token_hint": modified(token)},
        "uri": {"post_logout_redirect_uri": BYE},
        "bad uri": {"post_logout_redirect_uri": "https://evil.example/"},
        "uri with query": {"post_logout_redirect_uri": f"{BYE}?foo=bar"},
        "state": {"state": "s"},
    }
    answer = await signed_out(tenant, browser, {k: v for name in given for k, v in named[name].items()})
    assert answer.headers.get("location") == location, answer.text
    assert status(answer) == (303 if location else 200 if ends else 400)
    silent = await authorize(browser, tenant, authorization(client.client_id, prompt="none"), email)
    assert query_of(silent.headers["location"]).get("error") == ("login_required" if ends else None)
