"""Users with a second factor sign in at the page, with and without script; nothing goes around the factor."""

import html
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.identity.authenticators import Authenticator
from tests.identity.oidc import (
    Browser,
    authorization,
    claims_of,
    issuer,
    query_of,
    register,
    relying_party,
    signed_in,
    status,
)
from tests.identity.people import body, claims, enroll_totp, reason
from tests.platforms import Platform, SignedIn, Tenant

HEADING = "<h1>Prove that it is you</h1>"


@pytest.fixture
async def browser(platform: Platform) -> AsyncIterator[Browser]:
    async with Browser(platform) as one:
        yield one


@pytest.fixture
async def ann(tenant: Tenant) -> SignedIn:
    return await tenant.sign_in()


async def asked(tenant: Tenant, browser: Browser, http: httpx.AsyncClient, ann: SignedIn) -> httpx.Response:
    """The page that Ann sees after her password."""
    client = await register(tenant, http, firstParty=True)
    url = httpx.URL(f"{issuer(tenant)}/oauth2/authorize", params=authorization(client.client_id))
    page = await browser.sign_in(await browser.get(str(url)), ann.email)
    assert HEADING in page.text, page.text
    assert "nexus_session" not in page.headers.get("set-cookie", "")
    return page


async def test_a_code_of_the_app_completes_the_sign_in_and_the_id_token_says_so(
    platform: Platform, tenant: Tenant, browser: Browser, http: httpx.AsyncClient, ann: SignedIn
) -> None:
    totp, _ = await enroll_totp(http, ann)
    page = await asked(tenant, browser, http, ann)
    for wrong in (totp.wrong_code(), "", "x" * 200):
        page = await browser.submit(page, code=wrong)
        assert (status(page), HEADING in page.text) == (400, True), page.text
        assert 'role="alert"' in page.text
        assert "nexus_session" not in page.headers.get("set-cookie", "")
    code = totp.code()
    done = await browser.submit(page, code=f"{code[:3]} {code[3:]}")
    assert "code" in query_of(done.headers["location"]), done.text
    assert "nexus_session" in done.headers["set-cookie"]

    client = await register(tenant, http)
    token = await signed_in(tenant, browser, client, ann.email)
    claims = await claims_of(token["id_token"], tenant, http)
    assert (claims["acr"], claims["amr"]) == ("aal2", ["pwd", "otp", "mfa"])
    sessions = body(await http.get("/api/v1/sessions", headers=ann.headers))["sessions"]
    (here,) = [each for each in sessions if not each.get("current")]
    assert here["userAgent"].startswith("python-httpx"), "the browser's, not that of the service between"
    assert here["ipAddress"] == "127.0.0.1"

    again = await asked_anew(platform, page, code)
    assert "<h1>Sign in</h1>" in again.text, "the challenge is closed"


async def asked_anew(platform: Platform, page: httpx.Response, code: str) -> httpx.Response:
    """Send the same form once more, from the same browser."""
    async with Browser(platform) as other:
        for cookie in page.request.headers["cookie"].split("; "):
            name, _, content = cookie.partition("=")
            other.remember(name, content)
        return await other.submit(page, code=code)


async def test_a_recovery_code_stands_in_once(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, ann: SignedIn
) -> None:
    _, codes = await enroll_totp(http, ann)
    async with Browser(platform) as browser:
        page = await asked(tenant, browser, http, ann)
        done = await browser.submit(page, code=codes[0].upper().replace("-", " "))
        assert "code" in query_of(done.headers["location"]), done.text
    async with Browser(platform) as browser:
        page = await asked(tenant, browser, http, ann)
        assert HEADING in (await browser.submit(page, code=codes[0])).text


async def test_a_passkey_completes_the_sign_in_by_the_only_script_that_the_page_may_run(
    platform: Platform, tenant: Tenant, browser: Browser, http: httpx.AsyncClient, ann: SignedIn
) -> None:
    key = Authenticator(platform.settings.public_url)
    await register_passkey(http, ann, key)
    page = await asked(tenant, browser, http, ann)
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert f"script-src {sha256_source(script)}" in page.headers["content-security-policy"]
    options = re.search(r'data-options="([^"]+)"', page.text)
    assert options is not None
    asked_for = json.loads(html.unescape(options[1]))
    for wrong in ("{}", "[1]", "x", "{" * 1000, json.dumps({"id": "x", "response": {}})):
        assert HEADING in (await browser.submit(page, passkey=wrong)).text
    done = await browser.submit(page, passkey=json.dumps(key.get(asked_for)))
    assert "code" in query_of(done.headers["location"]), done.text


async def test_the_page_of_one_browser_is_nothing_to_another(
    platform: Platform, tenant: Tenant, browser: Browser, http: httpx.AsyncClient, ann: SignedIn
) -> None:
    totp, _ = await enroll_totp(http, ann)
    page = await asked(tenant, browser, http, ann)
    async with Browser(platform) as other:
        refused = await other.submit(page, code=totp.code())
    assert status(refused) == 400
    assert "set-cookie" not in refused.headers


async def test_guessing_codes_at_the_page_locks_the_factor(
    tenant: Tenant, browser: Browser, http: httpx.AsyncClient, ann: SignedIn
) -> None:
    totp, _ = await enroll_totp(http, ann)
    page = await asked(tenant, browser, http, ann)
    for _ in range(5):
        page = await browser.submit(page, code=totp.wrong_code())
    locked = await browser.submit(page, code=totp.code())
    assert (status(locked), HEADING in locked.text) == (400, True)
    assert "nexus_session" not in locked.headers.get("set-cookie", "")


async def register_passkey(http: httpx.AsyncClient, user: SignedIn, key: Authenticator) -> None:
    started = body(await http.post("/api/v1/auth/factors/passkeys:start", headers=user.headers, json={}))
    answer: dict[str, Any] = {"challengeId": started["challengeId"], "passkey": key.create(started["options"])}
    body(await http.post("/api/v1/auth/factors/passkeys:finish", headers=user.headers, json=answer))


def sha256_source(text: str) -> str:
    import base64
    import hashlib

    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


async def test_an_access_token_carries_the_two_factors_of_its_session(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    """To where a method asks for them, and the scope lets the client in."""
    plain, ann = await tenant.sign_in("owner"), await tenant.sign_in("owner")
    totp, _ = await enroll_totp(http, ann)
    client = await register(tenant, http, firstParty=True, scopes=["openid", "keys.manage"])
    made = {"name": "k", "algorithm": "KEY_ALGORITHM_AES_256_GCM"}
    key_id = body(await http.post("/api/v1/keys", headers=plain.headers, json=made))["key"]["keyId"]

    async def destroy(by: SignedIn, code: str = "") -> httpx.Response:
        async with Browser(platform) as browser, relying_party(tenant, client, scope="openid keys.manage") as authlib:
            url, _ = authlib.create_authorization_url(f"{issuer(tenant)}/oauth2/authorize", code_verifier="v" * 43)
            page = await browser.sign_in(await browser.get(url), by.email)
            if code:
                page = await browser.submit(page, code=code)
            location = page.headers["location"]
            token = await authlib.fetch_token(authorization_response=location, code_verifier="v" * 43)
            token = await authlib.refresh_token(f"{issuer(tenant)}/oauth2/token", refresh_token=token["refresh_token"])
        assert claims(token["access_token"])["acr"] == ("aal2" if code else "aal1")
        bearer = {"authorization": f"Bearer {token['access_token']}"}
        return await http.post(f"/api/v1/keys/{key_id}:schedule-destruction", headers=bearer, json={})

    assert reason(await destroy(plain)) == "STEP_UP_REQUIRED"
    assert body(await destroy(ann, totp.code()))["key"]["state"] == "KEY_STATE_DESTROYING"
