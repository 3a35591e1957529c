"""Only token-mgr's own tokens open anything, at the edge and at each service behind it."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from nexus.identity.auth_service.v1.auth_service_pb2 import GetMeRequest
from nexus.identity.auth_service.v1.auth_service_pb2_grpc import AuthServiceStub
from nexus.platform.key_service.v1.vault_pb2 import OpenRequest
from nexus.platform.key_service.v1.vault_pb2_grpc import VaultServiceStub
from services.chassis import contract
from services.chassis.clients import Clients
from services.chassis.spec import discover
from tests.edge.wire import reason, request
from tests.platforms import Platform, SignedIn, Tenant, within_a_second

if TYPE_CHECKING:
    from nexus.identity.auth_service.v1.auth_service_pb2_grpc import AuthServiceAsyncStub

ME = "/api/v1/auth/me"
Json = dict[str, Any]
SIGNED_IN = [method for method in contract.methods().values() if method.needs_user]


@dataclass
class Mint:
    """Makes tokens like those of a signed-in user, with the platform's own signing key."""

    key: ECKey
    claims: Json
    header: Json = field(default_factory=dict)

    def token(self, key: ECKey | None = None, header: Json | None = None, **claims: object) -> str:
        """One with other claims, or another key, or in another header. A claim that is None is left out."""
        all_claims = {name: value for name, value in {**self.claims, **claims}.items() if value is not None}
        head = {**self.header, **(header or {})}
        return jwt.encode(head, all_claims, key or self.key, algorithms=[head["alg"]])


def part(token: str, number: int) -> Json:
    text = token.split(".")[number]
    return dict(json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))))


def encoded(value: Json) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.fixture(scope="module")
async def user(platform: Platform) -> SignedIn:
    """Whose tokens are forged."""
    return await (await platform.new_tenant()).sign_in()


@pytest.fixture(scope="module")
async def mint(platform: Platform, user: SignedIn) -> Mint:
    connection = await platform.admin()
    try:
        row = await connection.fetchrow(
            "SELECT kid, private_sealed FROM token_mgr.signing_keys WHERE state = 'current' AND algorithm = 'ES256'"
        )
    finally:
        await connection.close()
    token_mgr = Clients(platform.settings, "token-mgr", frozenset({"key-service"}))
    try:
        opened = await token_mgr.stub(VaultServiceStub).Open(
            OpenRequest(ciphertext=row["private_sealed"], context={"kid": row["kid"]}),
            timeout=10.0,
            metadata=(("x-nexus-tenant", platform.settings.platform_tenant),),
        )
    finally:
        await token_mgr.stop()
    header = part(user.access_token, 0)
    assert header["kid"] == row["kid"]
    return Mint(ECKey.import_key(json.loads(opened.plaintext)), part(user.access_token, 1), header)


@pytest.fixture
async def behind_the_edge(platform: Platform) -> AsyncIterator["AuthServiceAsyncStub"]:
    """The service's own port, where no edge has looked at the token."""
    port = platform.settings.port(discover()["auth-service"].port)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield AuthServiceStub(channel)


Forgery = Callable[[Mint], str]


def payload_swapped(mint: Mint) -> str:
    head, _, signature = mint.token().split(".")
    return f"{head}.{encoded({**mint.claims, 'permissions': ['*']})}.{signature}"


def unsigned(mint: Mint) -> str:
    return f"{encoded({**mint.header, 'alg': 'none'})}.{encoded(mint.claims)}."


def signed_with_the_public_key(mint: Mint) -> str:
    signed = f"{encoded({**mint.header, 'alg': 'HS256'})}.{encoded(mint.claims)}"
    signature = hmac.digest(mint.key.as_pem(private=False), signed.encode(), hashlib.sha256)
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def with_its_own_key(mint: Mint) -> str:
    """The header brings the key that verifies it (RFC 7515, section 4.1.3)."""
    own = ECKey.generate_key("P-256")
    head = encoded({**mint.header, "jwk": own.as_dict(private=False), "jku": "https://evil.example/keys"})
    signed = mint.token(own).split(".")
    return f"{head}.{signed[1]}.{signed[2]}"


FORGERIES: dict[str, Forgery] = {
    "another key, the same kid": lambda mint: mint.token(ECKey.generate_key("P-256")),
    "a kid that nobody knows": lambda mint: mint.token(ECKey.generate_key("P-256"), {"kid": str(uuid4())}),
    "a kid that is a path": lambda mint: mint.token(ECKey.generate_key("P-256"), {"kid": "../../../dev/null"}),
    "its own key in the header": with_its_own_key,
    "no signature": unsigned,
    "HS256 with the public key": signed_with_the_public_key,
    "another payload": payload_swapped,
    "its signature cut short": lambda mint: mint.token()[:-10],
    "no signature part": lambda mint: mint.token().rpartition(".")[0],
    "cut off in the middle": lambda mint: mint.token()[:100],
    "another issuer": lambda mint: mint.token(iss="https://evil.example"),
    "for another audience": lambda mint: mint.token(aud="another"),
    "for nobody": lambda mint: mint.token(aud=None),
    "not good yet": lambda mint: mint.token(nbf=int(time.time()) + 3600),
    "not a token": lambda mint: "nonsense",
    "dots": lambda mint: "..",
    "very long": lambda mint: "a" * 12_000,
}
SLIPS: dict[str, Forgery] = {
    "without a tenant": lambda mint: mint.token(tid=None),
    "without a session": lambda mint: mint.token(sid=None),
    "without a user": lambda mint: mint.token(sub=None),
    "without an end": lambda mint: mint.token(exp=None),
}
"""Well signed, and yet not what token-mgr issues: these the edge lets pass and the service refuses."""


async def test_the_mint_makes_tokens_that_work(
    http: httpx.AsyncClient, behind_the_edge: "AuthServiceAsyncStub", mint: Mint
) -> None:
    headers = {"authorization": f"Bearer {mint.token()}"}
    assert (await http.get(ME, headers=headers)).status_code == 200
    assert await behind_the_edge.GetMe(GetMeRequest(), metadata=tuple(headers.items()), timeout=5)


@pytest.mark.parametrize("forgery", [*FORGERIES.values(), *SLIPS.values()], ids=[*FORGERIES, *SLIPS])
async def test_a_forged_token_opens_nothing(
    http: httpx.AsyncClient, behind_the_edge: "AuthServiceAsyncStub", mint: Mint, forgery: Forgery
) -> None:
    headers = {"authorization": f"Bearer {forgery(mint)}"}
    assert reason(await http.get(ME, headers=headers), 401) == "TOKEN_INVALID"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await behind_the_edge.GetMe(GetMeRequest(), metadata=tuple(headers.items()), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("age", [5, 86_400])
async def test_a_token_past_its_time_is_called_expired(
    http: httpx.AsyncClient, behind_the_edge: "AuthServiceAsyncStub", mint: Mint, age: int
) -> None:
    then = int(time.time()) - age
    headers = {"authorization": f"Bearer {mint.token(iat=then - 600, exp=then)}"}
    assert reason(await http.get(ME, headers=headers), 401) == "TOKEN_EXPIRED"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await behind_the_edge.GetMe(GetMeRequest(), metadata=tuple(headers.items()), timeout=5)
    assert "expired" in (refused.value.details() or "")


@pytest.mark.parametrize("method", SIGNED_IN, ids=lambda method: method.full_name)
async def test_each_method_for_users_asks_for_a_token(http: httpx.AsyncClient, method: contract.Method) -> None:
    for route in method.routes:
        path = route.path.replace("{", "").replace("}", "")
        assert reason(await http.request(route.verb, path), 401) == "TOKEN_REQUIRED"
        bad = {"authorization": "Bearer nonsense"}
        assert reason(await http.request(route.verb, path, headers=bad), 401) == "TOKEN_INVALID"


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
async def test_the_scheme_may_be_written_as_one_likes(http: httpx.AsyncClient, user: SignedIn, scheme: str) -> None:
    answer = await http.get(ME, headers={"authorization": f"{scheme} {user.access_token}"})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("value", ["", "Bearer", "Basic YW5uOnNlY3JldA==", "Basic {token}", "{token}"])
async def test_a_token_is_sent_as_a_bearer_token_or_not_at_all(
    http: httpx.AsyncClient, user: SignedIn, value: str
) -> None:
    answer = await http.get(ME, headers={"authorization": value.format(token=user.access_token)})
    assert reason(answer, 401) in ("TOKEN_REQUIRED", "TOKEN_INVALID")


async def test_a_token_in_the_url_does_not_count(http: httpx.AsyncClient, user: SignedIn) -> None:
    answer = await http.get(ME, params={"access_token": user.access_token})
    assert reason(answer, 400, 401) in ("TOKEN_REQUIRED", "MALFORMED_REQUEST")


async def test_of_two_tokens_neither_gets_in_for_the_other(
    platform: Platform, other_tenant: Tenant, user: SignedIn
) -> None:
    other = await other_tenant.sign_in()
    forged = user.access_token[:-10] + "AAAAAAAAAA"
    for first, second in (
        (user.access_token, other.access_token),
        (user.access_token, forged),
        (forged, user.access_token),
    ):
        answer = request(
            platform, "GET", ME, headers={"authorization": f"Bearer {first}", "Authorization": f"Bearer {second}"}
        )
        assert reason(answer, 400, 401) in ("TOKEN_INVALID", "TOKEN_REQUIRED", "MALFORMED_REQUEST")


async def test_a_token_is_good_in_its_own_tenant_only(
    http: httpx.AsyncClient, user: SignedIn, other_tenant: Tenant
) -> None:
    answer = await http.get(ME, headers={**user.headers, **other_tenant.headers})
    assert reason(answer, 403) == "TENANT_MISMATCH"


async def test_a_token_dies_with_its_session(http: httpx.AsyncClient, tenant: Tenant) -> None:
    user = await tenant.sign_in()
    assert (await http.get(ME, headers=user.headers)).status_code == 200
    assert (await http.post("/api/v1/auth/logout", headers=user.headers)).status_code == 200

    async def dead() -> bool:
        return (await http.get(ME, headers=user.headers)).status_code != 200

    await within_a_second(dead)
    assert reason(await http.get(ME, headers=user.headers), 401) == "TOKEN_INVALID"


async def test_a_refresh_token_is_no_access_token(http: httpx.AsyncClient, user: SignedIn) -> None:
    answer = await http.get(ME, headers={"authorization": f"Bearer {user.refresh_token}"})
    assert reason(answer, 401) == "TOKEN_INVALID"


async def test_keys_are_published_without_their_private_part(http: httpx.AsyncClient) -> None:
    keys = (await http.get("/.well-known/jwks.json")).json()["keys"]
    assert len(keys) >= 2
    for key in keys:
        assert set(key) == {"kid", "kty", "crv", "x", "y", "alg", "use"}
