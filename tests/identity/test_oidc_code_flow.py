"""The code flow with PKCE, run by Authlib's own client against the running edge.

Names in brackets are those of the OpenID conformance suite's tests that check the same.
"""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from authlib.integrations.base_client.errors import OAuthError
from authlib.oidc.core import CodeIDToken
from authlib.oidc.discovery import OpenIDProviderMetadata

from services.chassis.ids import new_secret
from tests.identity.oidc import (
    REDIRECT_URI,
    Browser,
    claims_of,
    granted,
    issuer,
    query_of,
    register,
    relying_party,
    status,
)
from tests.platforms import Platform, Tenant


@pytest.fixture
async def browser(platform: Platform) -> AsyncIterator[Browser]:
    async with Browser(platform) as one:
        yield one


async def test_authlib_signs_a_user_in_and_believes_the_id_token(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    """[oidcc-server]"""
    client, email = await register(tenant, http), await tenant.provision()
    async with relying_party(tenant, client) as authlib:
        location, verifier = await granted(browser, tenant, authlib, email, state="s-1")
        assert query_of(location)["iss"] == issuer(tenant)
        token = await authlib.fetch_token(
            authorization_response=location, code_verifier=verifier, state="s-1", grant_type="authorization_code"
        )
        claims = CodeIDToken(
            await claims_of(token["id_token"], tenant, http),
            {"alg": "ES256"},
            options={"iss": {"value": issuer(tenant)}, "aud": {"value": client.client_id}},
            params={"nonce": "n-1", "client_id": client.client_id, "access_token": token["access_token"]},
        )
        claims.validate(leeway=5)
        user = (await authlib.get(f"{issuer(tenant)}/oauth2/userinfo")).json()
    assert user == {"sub": claims["sub"], "email": email, "email_verified": True, "name": "Test User"}
    assert claims["email"] == email
    assert token["scope"] == "openid profile email"


async def test_the_discovery_document_is_valid_and_about_this_tenant(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    """[oidcc-discovery-endpoint-verification]"""
    document = (await http.get(f"/t/{tenant.tenant_id}/.well-known/openid-configuration")).json()
    assert document["issuer"] == issuer(tenant)
    # All that Authlib checks, as of a platform that is reached by https.
    assert platform.settings.public_url == platform.http_url
    OpenIDProviderMetadata(json.loads(json.dumps(document).replace(platform.http_url, platform.https_url))).validate()
    oauth = (await http.get(f"/.well-known/oauth-authorization-server/t/{tenant.tenant_id}")).json()
    assert oauth == document


async def test_a_public_client_gets_tokens_by_pkce_alone(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    client, email = await register(tenant, http, authentication="NONE"), await tenant.provision()
    async with relying_party(tenant, client) as authlib:
        location, verifier = await granted(browser, tenant, authlib, email)
        token = await authlib.fetch_token(
            authorization_response=location, code_verifier=verifier, grant_type="authorization_code"
        )
    assert (await claims_of(token["id_token"], tenant, http))["nonce"] == "n-1"


async def test_a_wrong_verifier_gets_nothing(tenant: Tenant, browser: Browser, http: httpx.AsyncClient) -> None:
    """[oidcc-ensure-pkce-code-verifier-required]"""
    client, email = await register(tenant, http), await tenant.provision()
    async with relying_party(tenant, client) as authlib:
        location, _ = await granted(browser, tenant, authlib, email)
        for wrong in ({"code_verifier": new_secret()}, {}):
            with pytest.raises(OAuthError, match=r"invalid_(grant|request)"):
                await authlib.fetch_token(authorization_response=location, **wrong)


async def test_a_code_redeemed_by_twenty_at_once_works_once_and_what_it_gave_is_revoked(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    """[oidcc-codereuse]"""
    client, email = await register(tenant, http), await tenant.provision()
    async with relying_party(tenant, client) as authlib:
        location, verifier = await granted(browser, tenant, authlib, email)
    form = {
        "grant_type": "authorization_code",
        "code": query_of(location)["code"],
        "redirect_uri": REDIRECT_URI,
        "code_verifier": verifier,
    }
    basic = (client.client_id, client.secret)
    answers = await asyncio.gather(
        *(http.post(f"/t/{tenant.tenant_id}/oauth2/token", data=form, auth=basic) for _ in range(20))
    )
    tokens = [answer.json() for answer in answers if status(answer) == 200]
    refused = [answer.json() for answer in answers if status(answer) == 400]
    assert (len(tokens), len(refused)) == (1, 19), [answer.text for answer in answers]
    assert {answer["error"] for answer in refused} == {"invalid_grant"}
    user = await http.get(
        f"/t/{tenant.tenant_id}/oauth2/userinfo", headers={"authorization": f"Bearer {tokens[0]['access_token']}"}
    )
    assert status(user) == 401
    again = {"grant_type": "refresh_token", "refresh_token": tokens[0]["refresh_token"]}
    assert (await http.post(f"/t/{tenant.tenant_id}/oauth2/token", data=again, auth=basic)).json()["error"] == (
        "invalid_grant"
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"redirect_uri": REDIRECT_URI + "/"},
        {"redirect_uri": REDIRECT_URI + "?x=1"},
        {"redirect_uri": "http://127.0.0.1:9/CALLBACK"},
        {"redirect_uri": "https://evil.example/callback"},
        {"redirect_uri": ""},
        {"client_id": "nobody"},
    ],
)
async def test_nobody_is_sent_where_the_client_did_not_register(
    tenant: Tenant, http: httpx.AsyncClient, changed: dict[str, str]
) -> None:
    """[oidcc-ensure-registered-redirect-uri, oidcc-redirect-uri-query-mismatch]"""
    client = await register(tenant, http)
    answer = await http.get(
        f"/t/{tenant.tenant_id}/oauth2/authorize",
        params=_request(client.client_id) | changed,
    )
    assert status(answer) == 400
    assert "location" not in answer.headers
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"response_type": ""}, "invalid_request"),  # [oidcc-response-type-missing]
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge": ""}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"scope": "openid users.read"}, "invalid_scope"),
        ({"prompt": "none"}, "login_required"),  # [oidcc-prompt-none-not-logged-in]
        ({"prompt": "none login"}, "invalid_request"),
        ({"request": "x"}, "request_not_supported"),  # [oidcc-unsigned-request-object…]
    ],
)
async def test_the_client_is_told_what_is_wrong_with_its_request(
    tenant: Tenant, http: httpx.AsyncClient, changed: dict[str, str], error: str
) -> None:
    client = await register(tenant, http)
    answer = await http.get(
        f"/t/{tenant.tenant_id}/oauth2/authorize", params=_request(client.client_id) | {"state": "s"} | changed
    )
    assert status(answer) == 303
    told = query_of(answer.headers["location"])
    assert (told["error"], told["state"], told["iss"]) == (error, "s", issuer(tenant))


@pytest.mark.parametrize("max_age", ["99999999999999999999", "12345678901", "-1", "1.5", "\u0663", "soon"])
async def test_a_time_that_is_none_is_refused_in_a_form_too(
    tenant: Tenant, http: httpx.AsyncClient, max_age: str
) -> None:
    client = await register(tenant, http)
    form = _request(client.client_id) | {"max_age": max_age}
    answer = await http.post(f"/t/{tenant.tenant_id}/oauth2/authorize", data=form)
    assert status(answer) == 303, answer.text
    assert query_of(answer.headers["location"])["error"] == "invalid_request"


async def test_a_signed_in_user_is_not_asked_again(tenant: Tenant, browser: Browser, http: httpx.AsyncClient) -> None:
    """[oidcc-prompt-none-logged-in, oidcc-prompt-login, oidcc-max-age-1]"""
    client, email = await register(tenant, http), await tenant.provision()
    async with relying_party(tenant, client) as authlib:
        await granted(browser, tenant, authlib, email)
    base = f"{issuer(tenant)}/oauth2/authorize"
    silent = await browser.get(str(httpx.URL(base, params=_request(client.client_id) | {"prompt": "none"})))
    assert "code" in query_of(silent.headers["location"])
    for again in ({"prompt": "login"}, {"max_age": "0"}):
        page = await browser.get(str(httpx.URL(base, params=_request(client.client_id) | again)))
        assert "<h1>Sign in</h1>" in page.text
        assert "code" in query_of((await browser.sign_in(page, email)).headers["location"])


async def test_a_user_who_denies_sends_the_client_away_empty_handed(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    client, email = await register(tenant, http), await tenant.provision()
    page = await browser.get(str(httpx.URL(f"{issuer(tenant)}/oauth2/authorize", params=_request(client.client_id))))
    answer = await browser.submit(await browser.sign_in(page, email), decision="deny")
    assert query_of(answer.headers["location"])["error"] == "access_denied"


async def test_a_form_from_another_browser_is_refused(
    platform: Platform, tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    client, email = await register(tenant, http), await tenant.provision()
    page = await browser.get(str(httpx.URL(f"{issuer(tenant)}/oauth2/authorize", params=_request(client.client_id))))
    async with Browser(platform) as other:
        answer = await other.sign_in(page, email)
    assert status(answer) == 400
    assert "set-cookie" not in answer.headers


async def test_a_wrong_password_shows_the_page_again_and_sets_no_session(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    client, email = await register(tenant, http), await tenant.provision()
    page = await browser.get(str(httpx.URL(f"{issuer(tenant)}/oauth2/authorize", params=_request(client.client_id))))
    answer = await browser.sign_in(page, email, "wrong")
    assert status(answer) == 400
    assert 'role="alert"' in answer.text
    assert "nexus_session" not in answer.headers.get("set-cookie", "")


async def test_pages_run_no_script_and_fit_in_no_frame(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    client, email = await register(tenant, http, clientName="<script>alert(1)</script>"), await tenant.provision()
    page = await browser.get(str(httpx.URL(f"{issuer(tenant)}/oauth2/authorize", params=_request(client.client_id))))
    for answer in (page, await browser.sign_in(page, email)):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "<script" not in answer.text
    for cookie in answer.headers.get_list("set-cookie"):
        assert {"HttpOnly", "Secure", "SameSite=Lax"} <= {part.strip() for part in cookie.split(";")}


async def test_a_code_of_one_tenant_is_nothing_to_another(
    tenant: Tenant, other_tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    client, email = await register(tenant, http), await tenant.provision()
    other = await register(other_tenant, http)
    async with relying_party(tenant, client) as authlib:
        location, verifier = await granted(browser, tenant, authlib, email)
    answer = await http.post(
        f"/t/{other_tenant.tenant_id}/oauth2/token",
        data={
            "grant_type": "authorization_code",
            "code": query_of(location)["code"],
            "redirect_uri": REDIRECT_URI,
            "code_verifier": verifier,
        },
        auth=(other.client_id, other.secret),
    )
    assert (status(answer), answer.json()["error"]) == (400, "invalid_grant")


async def test_signing_out_ends_the_session_and_its_tokens(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    """[oidcc-rp-initiated-logout]"""
    bye = "http://127.0.0.1:9/bye"
    client, email = await register(tenant, http, postLogoutRedirectUris=[bye]), await tenant.provision()
    async with relying_party(tenant, client) as authlib:
        location, verifier = await granted(browser, tenant, authlib, email)
        token = await authlib.fetch_token(authorization_response=location, code_verifier=verifier)
        logout = httpx.URL(
            f"{issuer(tenant)}/oauth2/logout",
            params={"id_token_hint": token["id_token"], "post_logout_redirect_uri": bye, "state": "s"},
        )
        page = await browser.get(str(logout))
        assert (await browser.submit(page)).headers["location"] == f"{bye}?state=s"
        user = await authlib.get(f"{issuer(tenant)}/oauth2/userinfo")
        with pytest.raises(OAuthError, match="invalid_grant"):
            await authlib.refresh_token(f"{issuer(tenant)}/oauth2/token")
    assert status(user) == 401
    evil = logout.copy_set_param("post_logout_redirect_uri", "https://evil.example/")
    assert status(await browser.get(str(evil))) == 400  # [oidcc-rp-initiated-logout-bad-post-logout-redirect-uri]


async def test_unknown_parameters_are_ignored(tenant: Tenant, http: httpx.AsyncClient) -> None:
    """[oidcc-ensure-request-with-unknown-parameter-succeeds]"""
    client = await register(tenant, http)
    answer = await http.get(
        f"/t/{tenant.tenant_id}/oauth2/authorize", params=_request(client.client_id) | {"extra": "foobar"}
    )
    assert answer.status_code == 200


async def test_the_status_is_the_one_that_the_standards_say(tenant: Tenant, http: httpx.AsyncClient) -> None:
    client = await register(tenant, http)
    silent = await http.get(
        f"/t/{tenant.tenant_id}/oauth2/authorize", params=_request(client.client_id) | {"prompt": "none"}
    )
    unknown = await http.post(f"/t/{tenant.tenant_id}/oauth2/token", data={"grant_type": "x"}, auth=("x", "y"))
    assert (silent.status_code, unknown.status_code) == (303, 401)
    assert not {"x-http-status"} & {*silent.headers, *unknown.headers}


def _request(client_id: str) -> dict[str, str]:
    return {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": REDIRECT_URI,
        "scope": "openid email",
        "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        "code_challenge_method": "S256",
    }
