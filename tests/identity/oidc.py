"""A browser, clients and tokens for the tests of the OpenID Provider."""

import html
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
from authlib.integrations.httpx_client import AsyncOAuth2Client
from joserfc import jwt
from joserfc.jwk import KeySet

from services.chassis.ids import new_secret
from services.chassis.spec import SERVICES
from tests.platforms import PASSWORD, Platform, Tenant

ROOT = SERVICES.parent
VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
"""RFC 7636, appendix B."""
REDIRECT_URI = "http://127.0.0.1:9/callback"
"""Nobody listens there: the browser stops before it goes."""
STATUS = "x-http-status"
"""The response metadata that the edge turns into the HTTP status."""


def status(answer: Any) -> int:
    """Of an answer to httpx, or to Authlib's httpx2."""
    return int(answer.headers.get(STATUS, answer.status_code))


def issuer(tenant: Tenant) -> str:
    return f"{tenant.platform.settings.public_url}/t/{tenant.tenant_id}"


def query_of(location: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(location).query))


@dataclass(frozen=True)
class Registered:
    """A client as the test registered it."""

    client_id: str
    secret: str


async def register(tenant: Tenant, http: httpx.AsyncClient, **settings: Any) -> Registered:
    """A client of the tenant. `authentication` is CLIENT_SECRET_BASIC unless given."""
    owner = await tenant.sign_in("owner")
    authentication = settings.pop("authentication", "CLIENT_SECRET_BASIC")
    content = {
        "clientName": "Test client",
        "redirectUris": [REDIRECT_URI],
        "scopes": ["openid", "profile", "email", "offline_access"],
        **settings,
    }
    answer = await http.post(
        "/api/v1/clients",
        headers=owner.headers,
        json={"settings": content, "authentication": f"CLIENT_AUTHENTICATION_{authentication}"},
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return Registered(body["client"]["clientId"], body["clientSecret"])


@asynccontextmanager
async def relying_party(tenant: Tenant, client: Registered, **options: Any) -> AsyncIterator[AsyncOAuth2Client]:
    """Authlib's client, which speaks to the edge as any application would."""
    async with AsyncOAuth2Client(
        client.client_id,
        client.secret or None,
        token_endpoint_auth_method="client_secret_basic" if client.secret else "none",
        **{
            "redirect_uri": REDIRECT_URI,
            "scope": "openid profile email",
            "code_challenge_method": "S256",
            "timeout": 15,
            **options,
        },
    ) as authlib:
        authlib.metadata["token_endpoint"] = f"{issuer(tenant)}/oauth2/token"
        yield authlib


class Browser:
    """A person's browser: keeps cookies, follows redirects on the platform, fills in forms, runs no script.

    It uses HTTPS, for the cookies are only for that.
    """

    def __init__(self, platform: Platform) -> None:
        trust = ssl.create_default_context(cafile=str(platform.home / "secrets" / "edge" / "tls.crt"))
        self._platform = platform
        self._http = httpx.AsyncClient(verify=trust, timeout=15)

    async def __aenter__(self) -> "Browser":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def remember(self, name: str, content: str) -> None:
        """Have a cookie."""
        self._http.cookies.set(name, content)

    async def get(self, url: str) -> httpx.Response:
        return await self._follow(await self._http.get(self._secure(url)))

    async def post(self, url: str, fields: Mapping[str, str]) -> httpx.Response:
        return await self._follow(await self._http.post(self._secure(url), data=dict(fields)))

    async def submit(self, page: httpx.Response, **fields: str) -> httpx.Response:
        """Fill in the page's form and send it."""
        form = re.search(r'<form method="post" action="([^"]+)">', page.text)
        assert form, page.text
        hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', page.text))
        values = {name: html.unescape(value) for name, value in hidden.items()} | fields
        return await self.post(str(page.url.join(html.unescape(form[1]))), values)

    async def follow_link(self, page: httpx.Response, text: str) -> httpx.Response:
        """Go where the link with this text leads."""
        link = re.search(rf'<a href="([^"]+)">[^<]*{text}</a>', page.text)
        assert link, page.text
        return await self.get(str(page.url.join(html.unescape(link[1]))))

    async def sign_in(self, page: httpx.Response, email: str, password: str = PASSWORD) -> httpx.Response:
        return await self.submit(page, email=email, password=password)

    async def _follow(self, answer: httpx.Response) -> httpx.Response:
        """Up to the first answer that is no redirect, or that leads away from the platform."""
        for _ in range(10):
            location = answer.headers.get("location", "")
            if not location.startswith(self._platform.http_url):
                return answer
            answer = await self._http.get(self._secure(location))
        raise AssertionError("the redirects do not end")

    def _secure(self, url: str) -> str:
        return url.replace(self._platform.http_url, self._platform.https_url)


async def granted(
    browser: Browser, tenant: Tenant, authlib: AsyncOAuth2Client, email: str, **parameters: str
) -> tuple[str, str]:
    """Send the user to sign in and consent; returns where they come back, and the code verifier."""
    verifier = new_secret()
    url, _ = authlib.create_authorization_url(
        f"{issuer(tenant)}/oauth2/authorize", code_verifier=verifier, **{"nonce": "n-1", **parameters}
    )
    answer = await browser.get(url)
    if "Sign in" in answer.text:
        answer = await browser.sign_in(answer, email)
    if "Allow" in answer.text:
        answer = await browser.submit(answer, decision="allow")
    assert answer.headers.get("location", "").startswith(REDIRECT_URI), answer.text
    return answer.headers["location"], verifier


async def claims_of(token: str, tenant: Tenant, http: httpx.AsyncClient, algorithm: str = "ES256") -> dict[str, Any]:
    """The claims of a token that the tenant's published keys verify."""
    keys = KeySet.import_key_set((await http.get(f"/t/{tenant.tenant_id}/jwks.json")).json())
    return jwt.decode(token, keys, algorithms=[algorithm]).claims


async def signed_in(
    tenant: Tenant, browser: Browser, client: Registered, email: str, scope: str = "openid email", **parameters: str
) -> dict[str, Any]:
    """The tokens of a code flow."""
    async with relying_party(tenant, client, scope=scope) as authlib:
        location, verifier = await granted(browser, tenant, authlib, email, **parameters)
        token: dict[str, Any] = await authlib.fetch_token(authorization_response=location, code_verifier=verifier)
        return token


def authorization(client_id: str, **changed: str) -> dict[str, str]:
    """The parameters of an authorization request. None is kept that is changed to nothing."""
    parameters = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": REDIRECT_URI,
        "scope": "openid email",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
        **changed,
    }
    return {name: value for name, value in parameters.items() if value}


async def registration_token(tenant: Tenant, http: httpx.AsyncClient, uses: int = 1) -> dict[str, str]:
    """The header that lets somebody register clients."""
    owner = await tenant.sign_in("owner")
    made = await http.post("/api/v1/client-registration-tokens", headers=owner.headers, json={"uses": uses})
    return {"authorization": f"Bearer {made.json()['registrationToken']}"}
