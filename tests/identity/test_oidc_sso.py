"""Signing in through an upstream OpenID Provider: another tenant of this very platform."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from services.identity.auth_service_v2.accounts import by_two_factors
from tests.identity.oidc import (
    Browser,
    Registered,
    claims_of,
    granted,
    issuer,
    query_of,
    register,
    relying_party,
    status,
)
from tests.identity.people import body, enroll_totp, value
from tests.platforms import Platform, Tenant


@pytest.fixture
async def browser(platform: Platform) -> AsyncIterator[Browser]:
    async with Browser(platform) as one:
        yield one


async def connect(tenant: Tenant, upstream: Tenant, http: httpx.AsyncClient) -> Registered:
    """Let the tenant's users sign in at the upstream tenant; returns a client of the tenant."""
    there = await register(upstream, http, redirectUris=[f"{issuer(tenant)}/sso/upstream/callback"])
    owner = await tenant.sign_in("owner")
    provider = {
        "providerId": "upstream",
        "title": "Upstream",
        "issuer": issuer(upstream),
        "clientId": there.client_id,
    }
    answer = await http.post(
        "/api/v1/sign-in-providers", headers=owner.headers, json={"provider": provider, "clientSecret": there.secret}
    )
    assert answer.status_code == 200, answer.text
    return await register(tenant, http)


async def at_upstream(browser: Browser, tenant: Tenant, client: Registered) -> tuple[httpx.Response, str]:
    """From the tenant's sign-in page to the upstream's; returns that page, and the code verifier."""
    async with relying_party(tenant, client) as authlib:
        verifier = "v" * 43
        url, _ = authlib.create_authorization_url(f"{issuer(tenant)}/oauth2/authorize", code_verifier=verifier)
    page = await browser.get(url)
    return await browser.follow_link(page, "Upstream"), verifier


async def test_a_user_of_the_upstream_becomes_the_same_user_here_each_time(
    platform: Platform, tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    client, email = await connect(tenant, other_tenant, http), await other_tenant.provision()
    subjects = set()
    for _ in range(2):
        async with Browser(platform) as browser, relying_party(tenant, client) as authlib:
            page, verifier = await at_upstream(browser, tenant, client)
            page = await browser.sign_in(page, email)
            for _ in range(2):  # consent there, consent here
                if "Allow" in page.text:
                    page = await browser.submit(page, decision="allow")
            token = await authlib.fetch_token(authorization_response=page.headers["location"], code_verifier=verifier)
            claims = await claims_of(token["id_token"], tenant, http)
            assert (claims["iss"], claims["email"]) == (issuer(tenant), email)
            subjects.add(claims["sub"])
    assert len(subjects) == 1


async def test_an_account_that_exists_is_not_taken_over_by_its_address(
    tenant: Tenant, other_tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    client = await connect(tenant, other_tenant, http)
    email = await tenant.provision("owner")
    await other_tenant.provision(email=email)
    page, _ = await at_upstream(browser, tenant, client)
    page = await browser.submit(await browser.sign_in(page, email), decision="allow")
    assert "There is an account with your e-mail address already" in page.text
    assert "nexus_session" not in page.headers.get("set-cookie", "")


async def test_a_callback_without_its_browser_is_refused(
    platform: Platform, tenant: Tenant, other_tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    client = await connect(tenant, other_tenant, http)
    page, _ = await at_upstream(browser, tenant, client)
    state = query_of(str(page.url))["state"]
    async with Browser(platform) as other:
        answer = await other.get(f"{issuer(tenant)}/sso/upstream/callback?code=x&state={state}")
    assert status(answer) == 400
    forged = await browser.get(f"{issuer(tenant)}/sso/upstream/callback?code=x&state={state}")
    assert "cannot be believed" in forged.text


@pytest.mark.parametrize(
    "bad",
    [
        *("http://example.com", "https://a.example/?q", "ftp://a.example", "https://", "https://a@b.example"),
        *("https://169.254.169.254", "https://10.0.0.1/idp", "https://[fd00::1]", "http://10.0.0.1"),
    ],
)
async def test_an_issuer_that_cannot_be_trusted_is_refused(tenant: Tenant, http: httpx.AsyncClient, bad: str) -> None:
    owner = await tenant.sign_in("owner")
    provider = {"providerId": "bad", "title": "Bad", "issuer": bad, "clientId": "x"}
    answer = await http.post("/api/v1/sign-in-providers", headers=owner.headers, json={"provider": provider})
    assert answer.json()["details"][0]["reason"] == "ISSUER_INVALID"


async def test_a_tenant_with_a_provider_still_takes_passwords(
    tenant: Tenant, other_tenant: Tenant, browser: Browser, http: httpx.AsyncClient
) -> None:
    client, email = await connect(tenant, other_tenant, http), await tenant.provision()
    async with relying_party(tenant, client) as authlib:
        location, _ = await granted(browser, tenant, authlib, email)
    assert "code" in query_of(location)


async def come_back(browser: Browser, page: httpx.Response, email: str) -> httpx.Response:
    """Sign in at the upstream and consent there; returns what the tenant then shows."""
    there = page.url.path.rpartition("/")[0]
    page = await browser.sign_in(page, email)
    return await browser.submit(page, decision="allow") if page.url.path.startswith(there) else page


async def test_an_identity_is_linked_to_an_account_by_who_can_sign_in_to_it(
    platform: Platform, tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    client, user = await connect(tenant, other_tenant, http), await tenant.sign_in()
    upstream_user = await other_tenant.sign_in(email=await other_tenant.provision(email=user.email))
    async with Browser(platform) as browser:
        page, _ = await at_upstream(browser, tenant, client)
        page = await come_back(browser, page, user.email)
        assert "Sign in to it here" in page.text
        page = await browser.sign_in(page, user.email)
        assert "Allow" in page.text, page.text
    identities = body(await http.get("/api/v1/identities", headers=user.headers))["identities"]
    assert [(each["issuer"], each["subject"]) for each in identities] == [(issuer(other_tenant), upstream_user.user_id)]
    async with Browser(platform) as browser, relying_party(tenant, client) as authlib:
        page, verifier = await at_upstream(browser, tenant, client)
        page = await come_back(browser, page, user.email)
        page = await browser.submit(page, decision="allow")
        token = await authlib.fetch_token(authorization_response=page.headers["location"], code_verifier=verifier)
        claims = await claims_of(token["id_token"], tenant, http)
    assert (claims["sub"], claims["amr"]) == (user.user_id, ["fed"])

    await http.delete(f"/api/v1/identities/{identities[0]['identityId']}", headers=user.headers)
    async with Browser(platform) as browser:
        page, _ = await at_upstream(browser, tenant, client)
        assert "Sign in to it here" in (await come_back(browser, page, user.email)).text


async def test_the_upstream_does_not_go_around_a_second_factor_or_a_disabled_account(
    platform: Platform, tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    client, user, owner = (
        await connect(tenant, other_tenant, http),
        await tenant.sign_in(),
        await tenant.sign_in("owner"),
    )
    await other_tenant.provision(email=user.email)
    totp, _ = await enroll_totp(http, user)
    async with Browser(platform) as browser:
        page, _ = await at_upstream(browser, tenant, client)
        page = await browser.sign_in(await come_back(browser, page, user.email), user.email)
        page = await browser.submit(page, code=totp.code())
        assert "Allow" in page.text, "linked, once both factors are proved"
    async with Browser(platform) as browser:
        page, _ = await at_upstream(browser, tenant, client)
        page = await come_back(browser, page, user.email)
        assert "Prove that it is you" in page.text
        assert "nexus_session" not in page.headers.get("set-cookie", "")
        assert "Allow" in (await browser.submit(page, code=totp.code())).text
    body(await http.post(f"/api/v1/users/{user.user_id}:disable", headers=owner.headers, json={}))
    async with Browser(platform) as browser:
        page, _ = await at_upstream(browser, tenant, client)
        page = await come_back(browser, page, user.email)
        assert "Your account is disabled" in page.text
        assert "nexus_session" not in page.headers.get("set-cookie", "")


async def test_a_newcomer_who_comes_back_in_many_tabs_at_once_is_one_user(
    platform: Platform, tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    client, email = await connect(tenant, other_tenant, http), await other_tenant.provision()

    async def tab() -> str:
        async with Browser(platform) as browser:
            page, _ = await at_upstream(browser, tenant, client)
            return (await come_back(browser, page, email)).text

    shown = await asyncio.gather(*(tab() for _ in range(4)))
    assert all(f"You are signed in as <strong>{email}</strong>" in text for text in shown), shown
    without_password = "SELECT count(*) FROM user_auth.users WHERE tenant_id = $1 AND password_hash IS NULL"
    assert await value(platform, without_password, tenant.tenant_id) == 1


async def test_where_two_factors_are_required_an_upstream_that_asked_for_them_is_enough_and_one_that_did_not_is_not(
    platform: Platform, tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    client, careful, careless = (
        await connect(tenant, other_tenant, http),
        await other_tenant.sign_in(),
        await other_tenant.sign_in(),
    )
    totp, _ = await enroll_totp(http, careful)
    owner = await tenant.sign_in("owner")
    body(await http.put("/api/v1/settings/security.require_mfa", headers=owner.headers, json={"value": {"flag": True}}))

    async def comes_back(email: str, code: str = "") -> httpx.Response:
        async with Browser(platform) as browser:
            page, _ = await at_upstream(browser, tenant, client)
            there = page.url.path.rpartition("/")[0]
            page = await browser.sign_in(page, email)
            if code:
                page = await browser.submit(page, code=code)
            return await browser.submit(page, decision="allow") if page.url.path.startswith(there) else page

    for _ in range(50):  # the setting is on its way for moments
        refused = await comes_back(careless.email)
        if "Allow" not in refused.text:
            break
    assert "A second factor is required here" in refused.text
    welcome = await comes_back(careful.email, totp.code())
    assert "Allow" in welcome.text, welcome.text
    methods = "SELECT methods FROM session_mgr.sessions WHERE tenant_id = $1 AND assurance = 'aal2'"
    assert await value(platform, methods, tenant.tenant_id) == ["fed", "mfa"]


@pytest.mark.parametrize(
    ("claims", "counts"),
    [
        ({"amr": ["pwd", "mfa"]}, True),
        ({"acr": "aal2"}, True),
        ({}, False),
        ({"amr": ["pwd", "otp"]}, False),
        ({"amr": "mfa"}, False),
        ({"amr": None, "acr": ["aal2"]}, False),
        ({"acr": "1"}, False),
    ],
)
def test_what_an_upstream_may_call_two_factors(claims: dict[str, object], counts: bool) -> None:
    assert by_two_factors(claims) == counts
