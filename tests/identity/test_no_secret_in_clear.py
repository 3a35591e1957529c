"""What must stay secret is in no log, trace, event, table or error in clear, and in no encoding of it either.

Every flow runs with secrets that the test knows; afterwards everything that the platform keeps is searched for them.
Left out are the mails, which carry codes to their readers, and the folder of the platform's own keys.
"""

import base64
import io
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import grpc
import httpx
import pyotp
import pytest
import redis.asyncio
from eth_account.hdaccount import generate_mnemonic, seed_from_mnemonic
from eth_account.types import Language
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mesh.local.supervisor import read_state
from nexus.identity.session_mgr.v1.session_mgr_pb2 import CreateSessionRequest, GetSessionRequest
from nexus.identity.session_mgr.v1.session_mgr_pb2_grpc import SessionServiceStub
from nexus.identity.user_auth.v1 import user_auth_pb2
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from services.chassis.clients import Clients
from services.chassis.context import OPERATOR
from services.chassis.ids import new_id, new_secret
from services.chassis.root_keys import root_key_file
from services.chassis.telemetry import CallTracer, client_interceptors
from tests.chassis.calls import USERS, FakeRpc
from tests.identity.oidc import Browser, granted, register, registration_token, relying_party
from tests.identity.people import body, login, next_code
from tests.platforms import Platform, SignedIn, Tenant

NOT_SEARCHED = {"outbox", "secrets", "postgres", "redis"}
"""Folders of the home; what the databases hold is read from them."""


class _Pair(NamedTuple):
    """One of gRPC's pairs of metadata."""

    key: str
    value: str


@dataclass
class Canaries:
    """The secrets of the run, by what they are."""

    secrets: dict[str, bytes] = field(default_factory=dict)
    tenant_id: str = ""
    """What is no secret: the search must find it."""

    def mark(self, name: str, secret: str | bytes) -> Any:
        """Remember a secret; returns it."""
        value = secret.encode() if isinstance(secret, str) else secret
        assert len(value) >= 10, f"{name} is too short to be found by itself"
        self.secrets[name] = value
        return secret

    def password(self, name: str) -> str:
        return str(self.mark(name, f"pw {new_secret()[:24]}"))

    def found_in(self, where: str, content: bytes) -> list[str]:
        """What of them is there, in whichever form."""
        return [
            f"{name} in {where}"
            for name, secret in self.secrets.items()
            if any(form in content for form in _forms(secret))
        ]


def _forms(secret: bytes) -> set[bytes]:
    """The ways in which a secret is written in clear. Base64 by its middle, which does not depend on what follows."""
    encoded = {
        base64.b64encode(secret)[: len(secret) // 3 * 4],
        base64.urlsafe_b64encode(secret)[: len(secret) // 3 * 4],
    }
    return {secret, secret.hex().encode(), quote(secret).encode(), *encoded}


@pytest.fixture(scope="module")
async def canaries(platform: Platform) -> Canaries:
    return await through_every_flow(platform)


async def through_every_flow(platform: Platform) -> Canaries:
    """Secrets that have been everywhere where secrets go."""
    tenant = await platform.new_tenant()
    secrets = Canaries(tenant_id=tenant.tenant_id)
    for key in root_key_file(platform.settings).keys.keys:
        secrets.mark(f"root key {key.version}", key.key)
    async with httpx.AsyncClient(base_url=platform.http_url, timeout=15) as http:
        email = await _passwords(platform, tenant, http, secrets)
        owner = await tenant.sign_in("owner")
        secrets.mark("access token", owner.access_token)
        secrets.mark("refresh token", owner.refresh_token)
        await _factors(tenant, http, secrets, owner)
        await _keys(http, secrets, owner)
        await _oidc(platform, tenant, http, secrets)
        await _device(platform, tenant, http, secrets)
        await _clients(tenant, http, secrets, owner)
        await _session(platform, tenant, secrets)
        await _mistakes(tenant, http, secrets, email)
    return secrets


async def _passwords(platform: Platform, tenant: Tenant, http: httpx.AsyncClient, secrets: Canaries) -> str:
    email, first, second, third = (f"{new_id()}@example.com", *(secrets.password(f"password {n}") for n in (1, 2, 3)))
    secrets.mark("e-mail address", email)
    name = secrets.mark("name", f"Ann {new_secret()}")
    asked = {"email": email, "password": first, "displayName": name, "requestId": new_id()}
    body(await http.post("/api/v1/auth/register", headers=tenant.headers, json=asked))
    code = secrets.mark("verification code", next_code(platform, email, "Verify your e-mail address"))
    verify = {"code": code, "requestId": new_id()}
    body(await http.post("/api/v1/auth/verify-email", headers=tenant.headers, json=verify))
    signed_in = body(await login(http, tenant, email, first))
    for name in ("accessToken", "refreshToken"):
        secrets.mark(f"{name} of the first", signed_in["tokens"][name])
    headers = {"authorization": f"Bearer {signed_in['tokens']['accessToken']}"}
    changed = {"currentPassword": first, "newPassword": second}
    body(await http.post("/api/v1/auth/change-password", headers=headers, json=changed))
    assert (await login(http, tenant, email, secrets.password("wrong password"))).status_code == 401
    body(await http.post("/api/v1/auth/start-recovery", headers=tenant.headers, json={"email": email}))
    code = secrets.mark("recovery code", next_code(platform, email, "Set a new password"))
    recover = {"code": code, "newPassword": third}
    body(await http.post("/api/v1/auth/complete-recovery", headers=tenant.headers, json=recover))
    return email


async def _factors(tenant: Tenant, http: httpx.AsyncClient, secrets: Canaries, owner: SignedIn) -> None:
    enrolled = body(await http.post("/api/v1/auth/factors/totp:enroll", headers=owner.headers, json={}))
    secret = secrets.mark("TOTP secret", enrolled["totpSecret"])
    secrets.mark("bytes of the TOTP secret", pyotp.TOTP(secret).byte_secret())
    confirm = {"code": pyotp.TOTP(secret).now()}
    confirmed = body(await http.post("/api/v1/auth/factors/totp:confirm", headers=owner.headers, json=confirm))
    for number, code in enumerate(confirmed["recoveryCodes"]):
        secrets.mark(f"recovery code {number}", code)
    challenge = body(await login(http, tenant, owner.email))["mfa"]["challengeId"]
    proof = {"challengeId": secrets.mark("challenge", challenge), "recoveryCode": confirmed["recoveryCodes"][0]}
    body(await http.post("/api/v1/auth/verify-mfa", headers=tenant.headers, json=proof))


async def _keys(http: httpx.AsyncClient, secrets: Canaries, owner: SignedIn) -> None:
    made = {"title": "Canary", "scopes": ["users.read"]}
    key = body(await http.post("/api/v1/api-keys", headers=owner.headers, json=made))["secret"]
    secrets.mark("API key", key[21:])
    assert (await http.get("/api/v1/users", headers={"x-api-key": key})).status_code == 200
    assert (await http.get("/api/v1/roles", headers={"x-api-key": key})).status_code == 403
    new = {"name": "canary", "algorithm": "KEY_ALGORITHM_AES_256_GCM"}
    key_id = body(await http.post("/api/v1/keys", headers=owner.headers, json=new))["key"]["keyId"]
    plaintext = secrets.mark("plaintext", new_secret().encode())
    asked = {"plaintext": base64.b64encode(plaintext).decode()}
    sealed = body(await http.post(f"/api/v1/keys/{key_id}:encrypt", headers=owner.headers, json=asked))["ciphertext"]
    opened = body(await http.post("/api/v1/keys:decrypt", headers=owner.headers, json={"ciphertext": sealed}))
    assert base64.b64decode(opened["plaintext"]) == plaintext
    private = secrets.mark("private key", new_secret().encode()[:32])
    imported = {"curve": "CURVE_ED25519", "privateKey": base64.b64encode(private).decode(), "requestId": new_id()}
    body(await http.post("/api/v1/private-keys:import", headers=owner.headers, json=imported))
    words = secrets.mark("mnemonic", generate_mnemonic(12, Language.ENGLISH))
    root = {"curve": "CURVE_P256", "mnemonic": words, "passphrase": secrets.password("passphrase")}
    root_id = body(await http.post("/api/v1/private-keys:import", headers=owner.headers, json=root))["key"]["keyId"]
    secrets.mark("seed", seed_from_mnemonic(words, root["passphrase"]))
    derive = f"/api/v1/private-keys/{root_id}:derive"
    key_id = body(await http.post(derive, headers=owner.headers, json={"path": "m/0'"}))["key"]["keyId"]
    message = {"message": base64.b64encode(b"pay the bearer").decode(), "requestId": new_id()}
    body(await http.post(f"/api/v1/private-keys/{key_id}/signings", headers=owner.headers, json=message))


async def _oidc(platform: Platform, tenant: Tenant, http: httpx.AsyncClient, secrets: Canaries) -> None:
    client, email = await register(tenant, http), await tenant.provision()
    secrets.mark("client secret", client.secret)
    async with Browser(platform) as browser, relying_party(tenant, client) as authlib:
        location, verifier = await granted(browser, tenant, authlib, email, state="s-1")
        secrets.mark("authorization code", parse_qs(urlsplit(location).query)["code"][0])
        secrets.mark("code verifier", verifier)
        token = await authlib.fetch_token(
            authorization_response=location, code_verifier=verifier, state="s-1", grant_type="authorization_code"
        )
    for name in ("access_token", "refresh_token", "id_token"):
        if name in token:
            secrets.mark(f"{name} of a client", token[name])


async def _device(platform: Platform, tenant: Tenant, http: httpx.AsyncClient, secrets: Canaries) -> None:
    """RFC 8628, and an exchange of what the device got (RFC 8693)."""
    kinds = {name: f"urn:ietf:params:oauth:grant-type:{name}" for name in ("device_code", "token-exchange")}
    client = await register(tenant, http, grantTypes=list(kinds.values()), redirectUris=[])
    email, base, auth = await tenant.provision(), f"/t/{tenant.tenant_id}/oauth2", (client.client_id, client.secret)
    device = (await http.post(f"{base}/device_authorization", auth=auth)).json()
    code = secrets.mark("device code", device["device_code"])
    async with Browser(platform) as browser:
        page = await browser.sign_in(await browser.get(device["verification_uri_complete"]), email)
        assert "Done" in (await browser.submit(page, decision="allow")).text
    form = {"grant_type": kinds["device_code"], "device_code": code}
    token = (await http.post(f"{base}/token", auth=auth, data=form)).json()["access_token"]
    secrets.mark("access token of a device", token)
    kind = "urn:ietf:params:oauth:token-type:access_token"
    form = {"grant_type": kinds["token-exchange"], "subject_token": token, "subject_token_type": kind}
    exchanged = (await http.post(f"{base}/token", auth=auth, data=form)).json()
    secrets.mark("exchanged token", exchanged["access_token"])


async def _clients(tenant: Tenant, http: httpx.AsyncClient, secrets: Canaries, owner: SignedIn) -> None:
    """One that registers itself, the secrets of others, one that is replaced."""
    bearer = await registration_token(tenant, http)
    secrets.mark("registration token", bearer["authorization"].removeprefix("Bearer "))
    content = {"redirect_uris": ["https://app.example/cb"], "scope": "openid"}
    made = (await http.post(f"/t/{tenant.tenant_id}/oauth2/register", headers=bearer, json=content)).json()
    for name in ("client_secret", "registration_access_token"):
        secrets.mark(f"{name} of the registered", made[name])
    rotate = f"/api/v1/clients/{made['client_id']}:rotateSecret"
    rotated = body(await http.post(rotate, headers=owner.headers, json={}))
    secrets.mark("rotated client secret", rotated["clientSecret"])
    provider = {"providerId": "canary", "title": "C", "issuer": "https://login.example", "clientId": "x"}
    asked = {"provider": provider, "clientSecret": secrets.mark("secret at a provider", new_secret())}
    body(await http.post("/api/v1/sign-in-providers", headers=owner.headers, json=asked))


async def _session(platform: Platform, tenant: Tenant, secrets: Canaries) -> None:
    """A session's token, which only services see."""
    clients = Clients(platform.settings, OPERATOR, None)
    try:
        sessions = clients.stub(SessionServiceStub)
        options: Any = {"timeout": 10, "metadata": tuple(tenant.headers.items())}
        opened = await sessions.CreateSession(CreateSessionRequest(user_id=new_id(), request_id=new_id()), **options)
        token = secrets.mark("session token", opened.session_token)
        await sessions.GetSession(GetSessionRequest(session_token=token), **options)
    finally:
        await clients.stop()


async def _mistakes(tenant: Tenant, http: httpx.AsyncClient, secrets: Canaries, email: str) -> None:
    """Secrets where they do not belong, or in what cannot be read: no answer repeats them."""
    path, headers = "/api/v1/auth/login", tenant.headers
    asked: dict[str, dict[str, Any]] = {
        "unknown field": {"json": {"email": email, "pasword": (unknown := secrets.password("unknown field"))}},
        "wrong type": {"json": {"email": email, "password": [secrets.password("wrong type")]}},
        "too long": {"json": {"email": email, "password": secrets.password("too long") * 200}},
        "no JSON": {"content": '{"password": "' + secrets.password("no JSON")},
        "query": {"json": {"email": email}, "params": {"password": secrets.password("query")}},
        "as the address": {"json": {"email": secrets.password("as the address"), "password": unknown}},
    }
    for name, request in asked.items():
        answer = await http.post(path, headers={**headers, "content-type": "application/json"}, **request)
        assert answer.status_code in (400, 401), f"{name}: {answer.text}"
        assert not secrets.found_in(f"the answer to {name}", answer.content)
    for scheme in ("Bearer", "Basic", "x"):
        junk = secrets.password(f"token of {scheme}").replace(" ", "-")
        secrets.mark(f"token of {scheme}", junk)
        answer = await http.get("/api/v1/auth/me", headers={"authorization": f"{scheme} {junk}"})
        assert answer.status_code == 401
        assert not secrets.found_in("the answer", answer.content)
    refresh = {"refreshToken": secrets.mark("made-up refresh token", new_secret())}
    assert (await http.post("/api/v1/auth/refresh", headers=headers, json=refresh)).status_code == 401


def test_the_search_finds_what_is_there() -> None:
    secrets = Canaries()
    secret = secrets.mark("it", new_secret())
    for form in (secret, f"x{secret}x", secret.encode().hex(), base64.b64encode(secret.encode()).decode()):
        assert secrets.found_in("here", f'{{"said": "{form}"}}'.encode()) == ["it in here"]
    assert secrets.found_in("here", new_secret().encode()) == []


async def test_no_log_and_no_file_has_a_secret(platform: Platform, canaries: Canaries) -> None:
    marker = new_id()  # what was logged before this is in the files once this is
    async with httpx.AsyncClient(base_url=platform.http_url) as http:
        await http.get(f"/none/{marker}")
    deadline = time.monotonic() + 20
    while marker not in (platform.home / "logs" / "edge.log").read_text():
        assert time.monotonic() < deadline, "the edge logs no paths"
        time.sleep(0.1)  # noqa: ASYNC251
    found, searched = [], 0
    for path in [*_files(platform.home), root_key_file(platform.settings).path]:
        searched += 1
        found += canaries.found_in(str(path.relative_to(platform.home)), path.read_bytes())
    assert not found
    assert searched > 5


def _files(home: Path) -> list[Path]:
    return [
        path
        for path in home.rglob("*")
        if path.relative_to(home).parts[0] not in NOT_SEARCHED and stat.S_ISREG(path.lstat().st_mode)
    ]


async def test_no_table_has_a_secret(platform: Platform, canaries: Canaries) -> None:
    admin = await platform.admin()
    found, known = [], []
    try:
        tables = await admin.fetch(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        for schema, table in tables:
            rows = io.BytesIO()
            # Binary, so that texts, bytes and documents are what they are.
            await admin.copy_from_table(table, schema_name=schema, output=rows, format="binary")
            known += [f"{schema}.{table}"] if canaries.tenant_id.encode() in rows.getvalue() else []
            found += canaries.found_in(f"{schema}.{table}", rows.getvalue())
    finally:
        await admin.close()
    assert not found
    assert {"user_auth.users", "session_mgr.sessions", "auth_service.totp_factors"} <= set(known)


async def test_neither_the_cache_nor_an_event_has_a_secret(platform: Platform, canaries: Canaries) -> None:
    assert platform.settings.redis_url is not None
    client: Any = redis.asyncio.Redis.from_url(platform.settings.redis_url.get_secret_value())
    reads = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"stream": client.xrange,
    }
    found, kinds = [], set()
    try:
        async for key in client.scan_iter(count=500):
            kind = await client.type(key)
            if kind != b"none":  # it has expired meanwhile
                kinds.add(kind)
                found += canaries.found_in(f"Redis {key!r}", key + b" " + _flat(await reads[kind](key)))
    finally:
        await client.aclose()
    assert not found
    assert kinds >= {b"string", b"zset", b"stream"}


def _flat(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        value = value.items()
    return b" ".join(map(_flat, value)) if not isinstance(value, str | int | float | None) else str(value).encode()


async def test_no_metric_has_a_secret(platform: Platform, canaries: Canaries) -> None:
    running = read_state(platform.settings.run_dir)
    assert running is not None
    ports = [process.ports["metrics"] for process in running.processes if "metrics" in process.ports]
    assert ports
    edge_admin = httpx.AsyncHTTPTransport(uds=str(platform.settings.run_dir / "edge-admin.sock"))
    told, found = "", []
    async with httpx.AsyncClient() as http, httpx.AsyncClient(transport=edge_admin, base_url="http://edge") as edge:
        for port in ports:
            told += (await http.get(f"http://127.0.0.1:{port}/metrics")).text
        found = canaries.found_in("a metric of a service", told.encode())
        found += canaries.found_in("a metric of the edge", (await edge.get("/stats/prometheus")).content)
    assert not found
    assert 'method="Register"' in told


async def test_no_trace_has_a_secret(platform: Platform, tenant: Tenant) -> None:
    secrets, spans = Canaries(), InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    token = secrets.password("token").replace(" ", "")
    secrets.mark("token", token)
    request = user_auth_pb2.RegisterRequest(email="canary", password=secrets.password("password"))
    address = f"127.0.0.1:{platform.settings.port(8080)}"

    async def serve(_incoming: Any, _rpc: Any) -> None:
        raise ValueError("refused")

    async with grpc.aio.insecure_channel(address, interceptors=client_interceptors(provider)) as channel:
        metadata = (("authorization", f"Bearer {token}"), ("x-api-key", token), *tenant.headers.items())
        with pytest.raises(grpc.aio.AioRpcError):
            await UserServiceStub(channel).Register(request, metadata=metadata, timeout=10)
    traced: Any = CallTracer(provider, 1.0).around(f"{USERS}Register", serve)
    with pytest.raises(ValueError, match="refused"):
        await traced((request, dict(metadata)), FakeRpc([_Pair(*pair) for pair in metadata]))
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "Register" in told
    assert not secrets.found_in("a span", told.encode())
