"""Clients that sign instead of keeping a secret, and clients that register themselves and look after it."""

import asyncio
import hmac
import json
import time
from base64 import urlsafe_b64encode
from typing import Any

import httpx
import pytest
from authlib.integrations.base_client.errors import OAuthError
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from services.chassis.ids import new_id
from tests.identity.oidc import (
    Browser,
    Registered,
    claims_of,
    granted,
    issuer,
    register,
    registration_token,
    relying_party,
    status,
)
from tests.identity.people import body, reason, value
from tests.platforms import Platform, SignedIn, Tenant

ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
Key = ECKey | RSAKey


def new_key(kid: str = "k-1") -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid, "use": "sig"}, auto_kid=False)


def key_set(*keys: Key) -> str:
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys]})


def assertion(tenant: Tenant, client: Registered, key: Any, alg: str = "ES256", **changed: Any) -> str:
    """RFC 7523, section 3. A claim that is changed to None is left out."""
    now = int(time.time())
    claims = {
        "iss": client.client_id,
        "sub": client.client_id,
        "aud": issuer(tenant),
        "iat": now,
        "exp": now + 60,
        "jti": new_id(),
    }
    present = {name: content for name, content in {**claims, **changed}.items() if content is not None}
    return jwt.encode({"alg": alg, "kid": "k-1"}, present, key, algorithms=[alg])


def keyed_by(secret: bytes, signed: str) -> str:
    """The same claims under an HMAC, as if a public key were its secret. joserfc would not make it."""
    head = urlsafe_b64encode(b'{"alg": "HS256", "kid": "k-1"}').rstrip(b"=") + b"." + signed.split(".")[1].encode()
    return f"{head.decode()}.{urlsafe_b64encode(hmac.digest(secret, head, 'sha256')).rstrip(b'=').decode()}"


async def machine(tenant: Tenant, http: httpx.AsyncClient, *keys: Key) -> Registered:
    return await register(
        tenant,
        http,
        authentication="PRIVATE_KEY_JWT",
        jwks=key_set(*keys),
        grantTypes=["client_credentials"],
        redirectUris=[],
        scopes=["users.read"],
    )


async def ask(http: httpx.AsyncClient, tenant: Tenant, signed: str, **form: str) -> httpx.Response:
    return await http.post(
        f"/t/{tenant.tenant_id}/oauth2/token",
        data={
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION,
            "client_assertion": signed,
            **form,
        },
    )


@pytest.mark.parametrize("alg", ["ES256", "RS256"])
async def test_authlib_authenticates_by_a_key_of_its_own(tenant: Tenant, http: httpx.AsyncClient, alg: str) -> None:
    key: Key = new_key() if alg == "ES256" else RSAKey.generate_key(2048, {"kid": "k-1"}, auto_kid=False)
    client = await machine(tenant, http, new_key("other"), key)
    assert not client.secret
    async with relying_party(tenant, client, scope=None) as authlib:
        endpoint = authlib.metadata["token_endpoint"]
        authlib.client_secret = key
        authlib.token_endpoint_auth_method = PrivateKeyJWT(endpoint, alg=alg, headers={"kid": "k-1"})
        token = await authlib.fetch_token(endpoint, grant_type="client_credentials")
    claims = await claims_of(token["access_token"], tenant, http)
    assert (claims["sub"], claims["permissions"]) == (client.client_id, ["users.read"])


async def test_an_assertion_for_the_issuer_introspects_too_and_is_good_once_however_many_try(
    tenant: Tenant, http: httpx.AsyncClient
) -> None:
    """[oidcc-ensure-client-assertion-with-iss-aud-succeeds]"""
    key = new_key()
    client = await machine(tenant, http, key)
    signed = assertion(tenant, client, key)
    answers = await asyncio.gather(*(ask(http, tenant, signed) for _ in range(10)))
    assert sorted(map(status, answers)) == [200] + [401] * 9
    token = next(answer.json() for answer in answers if status(answer) == 200)["access_token"]
    form = {"token": token, "client_assertion_type": ASSERTION, "client_assertion": assertion(tenant, client, key)}
    told = await http.post(f"/t/{tenant.tenant_id}/oauth2/introspect", data=form)
    assert told.json()["active"] is True, told.text


async def test_an_assertion_that_is_off_in_anything_is_refused(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    key = new_key()
    client = await machine(tenant, http, key)
    now = int(time.time())
    wrong = {
        "another key": assertion(tenant, client, new_key()),
        "another client's name": assertion(tenant, client, key, iss=new_id()),
        "another subject": assertion(tenant, client, key, sub=new_id()),
        "a name that is none": assertion(tenant, client, key, iss="\0", sub="\0"),
        "another audience": assertion(tenant, client, key, aud="https://elsewhere.example"),
        "another tenant": assertion(other_tenant, client, key),
        "no audience": assertion(tenant, client, key, aud=None),
        "expired": assertion(tenant, client, key, exp=now - 60),
        "no expiry": assertion(tenant, client, key, exp=None),
        "an expiry that is none": assertion(tenant, client, key, exp="soon"),
        "an expiry beyond time": assertion(tenant, client, key, exp=10**18),
        "a long life": assertion(tenant, client, key, exp=now + 86_400),
        "no id": assertion(tenant, client, key, jti=None),
        "an id that is none": assertion(tenant, client, key, jti=7),
        "the public key as a secret": keyed_by(key.as_pem(private=False), assertion(tenant, client, key)),
        "nonsense": "a.b.c",
        "nothing signed": "e30.e30.",
    }
    for what, signed in wrong.items():
        answer = await ask(http, tenant, signed)
        assert (status(answer), answer.json()["error"]) == (401, "invalid_client"), f"{what}: {answer.text}"
    for form, error in (
        ({"client_assertion_type": "x"}, "invalid_request"),
        ({"client_secret": "x"}, "invalid_request"),
        ({"client_id": new_id()}, "invalid_client"),
    ):
        answer = await ask(http, tenant, assertion(tenant, client, key), **form)
        assert answer.json()["error"] == error
    by_secret = await http.post(
        f"/t/{tenant.tenant_id}/oauth2/token", data={"grant_type": "client_credentials"}, auth=(client.client_id, "x")
    )
    assert by_secret.json()["error"] == "invalid_client"
    assert status(await ask(http, tenant, assertion(tenant, client, key))) == 200


@pytest.mark.parametrize(
    ("authentication", "jwks"),
    [
        ("PRIVATE_KEY_JWT", ""),
        ("PRIVATE_KEY_JWT", "{}"),
        ("PRIVATE_KEY_JWT", "[1"),
        ("PRIVATE_KEY_JWT", '{"keys": []}'),
        ("PRIVATE_KEY_JWT", json.dumps({"keys": [new_key().as_dict(private=True)]})),
        ("PRIVATE_KEY_JWT", '{"keys": [{"kty": "oct", "k": "AAAA"}]}'),
        ("CLIENT_SECRET_BASIC", key_set(new_key())),
    ],
    ids=["none", "no set", "no JSON", "an empty set", "a private key", "a secret key", "no use for keys"],
)
async def test_keys_that_no_client_can_sign_with_are_not_registered(
    tenant: Tenant, http: httpx.AsyncClient, authentication: str, jwks: str
) -> None:
    owner = await tenant.sign_in("owner")
    settings = {"clientName": "Bad", "redirectUris": ["https://app.example/cb"], "scopes": ["openid"], "jwks": jwks}
    answer = await http.post(
        "/api/v1/clients",
        headers=owner.headers,
        json={"settings": settings, "authentication": f"CLIENT_AUTHENTICATION_{authentication}"},
    )
    assert answer.json()["details"][0]["reason"] == "CLIENT_METADATA_INVALID", answer.text


async def test_a_client_that_knows_no_other_gets_its_id_tokens_by_rs256(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    """[oidcc-idtoken-rs256]"""
    client, email = await register(tenant, http, idTokenSignedResponseAlg="RS256"), await tenant.provision()
    async with Browser(platform) as browser, relying_party(tenant, client) as authlib:
        location, verifier = await granted(browser, tenant, authlib, email)
        token = await authlib.fetch_token(authorization_response=location, code_verifier=verifier)
        claims = await claims_of(token["id_token"], tenant, http, "RS256")
        assert (claims["aud"], claims["email"]) == (client.client_id, email)
        # The access token is signed as the platform expects it, and the ID token is none.
        assert (await claims_of(token["access_token"], tenant, http))["client_id"] == client.client_id
        for path in (f"/t/{tenant.tenant_id}/oauth2/userinfo", "/api/v1/auth/me"):
            answer = await http.get(path, headers={"authorization": f"Bearer {token['id_token']}"})
            assert answer.status_code == 401
        logout = await browser.get(f"{issuer(tenant)}/oauth2/logout?id_token_hint={token['id_token']}")
        assert "<h1>Sign out?</h1>" in logout.text


async def test_a_repeated_request_makes_one_client_and_shows_its_secret_once(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    owner, other = await tenant.sign_in("owner"), await tenant.sign_in("owner")

    async def create(name: str, who: SignedIn = owner) -> httpx.Response:
        settings = {"clientName": name, "redirectUris": ["https://app.example/cb"], "scopes": ["openid"]}
        return await http.post("/api/v1/clients", headers=who.headers, json={"settings": settings, "requestId": "once"})

    made = [body(answer) for answer in await asyncio.gather(*(create("Shop") for _ in range(6)))]
    assert len({each["client"]["clientId"] for each in made}) == 1
    (secret,) = [each["clientSecret"] for each in made if each["clientSecret"]]
    assert reason(await create("Other")) == "IDEMPOTENCY_KEY_REUSED"
    assert body(await create("Shop", other))["clientSecret"]
    kept = "SELECT count(*) FROM auth_service_v2.idempotency_keys WHERE tenant_id = $1"
    assert await value(platform, kept, tenant.tenant_id) == 0, "an answer that is kept has the secret"
    client = Registered(made[0]["client"]["clientId"], secret)
    asked = await http.post(
        f"/t/{tenant.tenant_id}/oauth2/introspect", data={"token": "x"}, auth=(client.client_id, client.secret)
    )
    assert asked.json() == {"active": False}


async def self_registered(tenant: Tenant, http: httpx.AsyncClient, **metadata: Any) -> dict[str, Any]:
    content = {"redirect_uris": ["https://app.example/cb"], "scope": "openid email", **metadata}
    bearer = await registration_token(tenant, http)
    answer = await http.post(f"/t/{tenant.tenant_id}/oauth2/register", headers=bearer, json=content)
    assert status(answer) == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_whoever_has_a_registration_token_registers_so_many_clients(
    tenant: Tenant, http: httpx.AsyncClient
) -> None:
    bearer = await registration_token(tenant, http, uses=2)
    metadata = {"redirect_uris": ["https://app.example/cb"], "scope": "openid users.read"}
    path = f"/t/{tenant.tenant_id}/oauth2/register"
    bad = await http.post(path, headers=bearer, json={"redirect_uris": ["javascript:alert(1)"]})
    assert bad.json()["error"] == "invalid_redirect_uri"
    answers = await asyncio.gather(*(http.post(path, headers=bearer, json=metadata) for _ in range(5)))
    assert sorted(map(status, answers)) == [201, 201, 401, 401, 401]
    registered = next(answer.json() for answer in answers if status(answer) == 201)
    assert registered["scope"] == "openid", "permissions are given by administrators only"
    assert registered["client_secret"]


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({"redirect_uris": ["https://app.example/cb#part"]}, "invalid_redirect_uri"),  # [oidcc-redirect-uri-regfrag]
        ({"id_token_signed_response_alg": "none"}, "invalid_client_metadata"),  # [oidcc-idtoken-unsigned]
        ({"grant_types": ["client_credentials"]}, "invalid_client_metadata"),
        ({"jwks_uri": "http://169.254.169.254/"}, "invalid_client_metadata"),
        ({"token_endpoint_auth_method": "client_secret_jwt"}, "invalid_client_metadata"),
        ({"response_types": ["code", "token"]}, "invalid_client_metadata"),
        ({"client_name": ["x"]}, "invalid_client_metadata"),
    ],
)
async def test_a_client_that_no_standard_allows_is_not_registered(
    tenant: Tenant, http: httpx.AsyncClient, metadata: dict[str, Any], error: str
) -> None:
    content = {"redirect_uris": ["https://app.example/cb"], **metadata}
    bearer = await registration_token(tenant, http)
    path = f"/t/{tenant.tenant_id}/oauth2/register"
    answer = await http.post(path, headers=bearer, json=content)
    assert (status(answer), answer.json()["error"]) == (400, error)
    assert status(await http.post(path, headers=bearer, json={"redirect_uris": ["https://app.example/cb"]})) == 201, (
        "a refusal costs no use"
    )


@pytest.mark.parametrize("field", ["logo_uri", "policy_uri", "tos_uri"])
async def test_what_is_only_shown_may_be_registered(tenant: Tenant, http: httpx.AsyncClient, field: str) -> None:
    """[oidcc-registration-logo-uri, oidcc-registration-policy-uri, oidcc-registration-tos-uri]"""
    assert await self_registered(tenant, http, **{field: "https://app.example/about"})


async def told_of(tenant: Tenant, client_id: str) -> list[str]:
    """The events about a client."""
    query = """
        SELECT array_agg(reverse(split_part(reverse(type), '.', 1)) ORDER BY sequence) FROM auth_service_v2.events
        WHERE tenant_id = $1 AND aggregate = $2
    """
    return list(await value(tenant.platform, query, tenant.tenant_id, client_id) or [])


async def test_every_change_of_a_client_is_an_event_and_a_repetition_is_none(
    tenant: Tenant, http: httpx.AsyncClient
) -> None:
    owner = await tenant.sign_in("owner")
    wanted = {
        "settings": {"clientName": "Test client", "redirectUris": ["https://app.example/cb"]},
        "requestId": new_id(),
    }
    made = [await http.post("/api/v1/clients", headers=owner.headers, json=wanted) for _ in range(2)]
    client_id = body(made[0])["client"]["clientId"]
    assert body(made[1])["client"]["clientId"] == client_id
    path = f"/api/v1/clients/{client_id}"
    body(await http.put(path, headers=owner.headers, json=wanted["settings"]))
    body(await http.post(f"{path}:rotateSecret", headers=owner.headers, json={}))
    body(await http.delete(path.upper().replace("/API/V1/CLIENTS", "/api/v1/clients"), headers=owner.headers))
    assert reason(await http.delete(path, headers=owner.headers)) == "CLIENT_NOT_FOUND"
    assert await told_of(tenant, client_id) == [
        "ClientCreated",
        "ClientUpdated",
        "ClientSecretRotated",
        "ClientDeleted",
    ]


async def test_a_client_reads_changes_and_deletes_what_is_registered_of_it(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    """RFC 7592."""
    mine, others = await self_registered(tenant, http), await self_registered(tenant, http)
    path = f"/t/{tenant.tenant_id}/oauth2/register/{mine['client_id']}"
    assert mine["registration_client_uri"] == f"{tenant.platform.settings.public_url}{path}"
    bearer = {"authorization": f"Bearer {mine['registration_access_token']}"}

    for headers in ({}, {"authorization": f"Bearer {others['registration_access_token']}"}):
        for verb in ("GET", "PUT", "DELETE"):
            refused = await http.request(verb, path, headers=headers)
            assert (status(refused), refused.json()["error"]) == (401, "invalid_token")
            assert refused.headers["www-authenticate"].startswith("Bearer")
    elsewhere = f"/t/{other_tenant.tenant_id}/oauth2/register/{mine['client_id']}"
    assert status(await http.get(elsewhere, headers=bearer)) == 401

    read = (await http.get(path, headers=bearer)).json()
    assert read == {name: content for name, content in mine.items() if not name.startswith("client_secret")}

    given = ("registration_access_token", "registration_client_uri", "client_id_issued_at")
    wanted = {name: content for name, content in read.items() if name not in given}
    wanted |= {"client_name": "Renamed", "redirect_uris": ["https://app.example/new"], "scope": "openid clients.manage"}
    changed = await http.put(path, headers=bearer, json={**wanted, "client_secret": mine["client_secret"]})
    assert status(changed) == 200, changed.text
    after = (await http.get(path, headers=bearer)).json()
    assert (after["client_name"], after["redirect_uris"], after["scope"]) == (
        "Renamed",
        ["https://app.example/new"],
        "openid",
    )
    for wrong in (
        {"client_id": others["client_id"]},
        {"client_secret": "guessed"},
        {"registration_access_token": "mine"},
        {"redirect_uris": ["http://app.example/"]},
        {"grant_types": ["client_credentials"]},
    ):
        refused = await http.put(path, headers=bearer, json={**wanted, **wrong})
        assert status(refused) == 400, wrong
    assert (await http.get(path, headers=bearer)).json() == after

    key = new_key()
    signing = {**wanted, "token_endpoint_auth_method": "private_key_jwt", "jwks": json.loads(key_set(key))}
    assert "client_secret" not in (await http.put(path, headers=bearer, json=signing)).json()
    back = (await http.put(path, headers=bearer, json=wanted)).json()
    assert back["client_secret"] not in ("", mine["client_secret"]), "the old one is gone"

    assert status(await http.delete(path, headers=bearer)) == 204
    assert status(await http.get(path, headers=bearer)) == 401
    assert await told_of(tenant, mine["client_id"]) == [
        "ClientCreated",
        "ClientUpdated",
        "ClientUpdated",
        "ClientUpdated",
        "ClientDeleted",
    ], "what was refused changed nothing"
    old = Registered(mine["client_id"], back["client_secret"])
    async with relying_party(tenant, old) as authlib:
        with pytest.raises(OAuthError, match="invalid_client"):
            await authlib.fetch_token(grant_type="authorization_code", code="x")


async def test_a_token_to_manage_a_client_is_stored_as_a_hash_only(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    mine = await self_registered(tenant, http)
    admin = await platform.admin()
    try:
        row = await admin.fetchval(
            "SELECT c::text FROM auth_service_v2.clients c WHERE tenant_id = $1", tenant.tenant_id
        )
    finally:
        await admin.close()
    for secret in (mine["registration_access_token"], mine["client_secret"]):
        assert secret not in row
        assert secret.encode().hex() not in row
