"""`token-verify`, `token-verify-cached`: an access token judged by the verifier of every service, beside joserfc alone.
`introspect`: RFC 7662 through the edge. `login`: sign-ins through the edge, beside what argon2 alone could do.
`encrypt`, `decrypt`: key-service through the edge.
"""

import asyncio
import base64
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
from joserfc import jwt
from joserfc.jwk import KeySet

from services.chassis.signals import Signals
from services.chassis.tokens import ALGORITHM, TokenVerifier
from services.identity.user_auth import passwords
from tests.bench.measure import Result, compare, h2load
from tests.platforms import PASSWORD, Platform, SignedIn, Tenant

VERIFICATIONS = 2_000
LOGINS, USERS, TOGETHER = 64, 16, 8
CALLS = 2_000


class _NothingEnded(Signals):
    """What a verifier asks of the real ones, without a broker."""

    def __init__(self) -> None:
        self._ended = {}
        self._listening = asyncio.Event()
        self._listening.set()


def verify(platform: Platform) -> Result:
    """Tokens that the verifier sees for the first time."""
    return asyncio.run(_verify(platform, "token-verify", "≥ 0.70", remembered=False))


def verify_cached(platform: Platform) -> Result:
    return asyncio.run(_verify(platform, "token-verify-cached", "≥ 20", remembered=True))


async def _verify(platform: Platform, bench: str, bar: str, *, remembered: bool) -> Result:
    user, _ = await _owner(platform)
    async with httpx.AsyncClient(base_url=platform.http_url) as http:
        published = (await http.get("/.well-known/jwks.json")).json()
    keys = KeySet.import_key_set(published)

    async def source() -> Any:
        return published

    async def ours() -> float:
        verifier = TokenVerifier(platform.settings, _NothingEnded(), source)
        await verifier.verify(user.access_token)
        began = time.perf_counter()
        for _ in range(VERIFICATIONS):
            if not remembered:
                verifier._remembered.clear()
            await verifier.verify(user.access_token)
        return VERIFICATIONS / (time.perf_counter() - began)

    def bare() -> float:
        began = time.perf_counter()
        for _ in range(VERIFICATIONS):
            jwt.decode(user.access_token, keys, algorithms=[ALGORITHM])
        return VERIFICATIONS / (time.perf_counter() - began)

    loop = asyncio.get_running_loop()
    measured = lambda: asyncio.run_coroutine_threadsafe(ours(), loop).result()  # noqa: E731
    return await asyncio.to_thread(compare, bench, "tokens/s", bar, measured, bare)


def introspect(platform: Platform) -> Result:
    user, tenant = asyncio.run(_owner(platform))
    settings = {"clientName": "Bench", "grantTypes": ["client_credentials"], "scopes": ["users.read"]}
    made = httpx.post(f"{platform.http_url}/api/v1/clients", headers=user.headers, json={"settings": settings}).json()
    basic = base64.b64encode(f"{made['client']['clientId']}:{made['clientSecret']}".encode()).decode()
    return _through_the_edge(
        platform,
        "introspect",
        f"/t/{tenant.tenant_id}/oauth2/introspect",
        f"token={user.access_token}",
        {"content-type": "application/x-www-form-urlencoded", "authorization": f"Basic {basic}"},
    )


def encrypt(platform: Platform) -> Result:
    user, key = asyncio.run(_key(platform))
    text = base64.b64encode(b"x" * 256).decode()
    headers = {"content-type": "application/json", **user.headers}
    return _through_the_edge(platform, "encrypt", f"/api/v1/keys/{key}:encrypt", f'{{"plaintext": "{text}"}}', headers)


def decrypt(platform: Platform) -> Result:
    user, key = asyncio.run(_key(platform))
    text = base64.b64encode(b"x" * 256).decode()
    url = f"{platform.http_url}/api/v1/keys/{key}:encrypt"
    sealed = httpx.post(url, headers=user.headers, json={"plaintext": text}).json()["ciphertext"]
    headers = {"content-type": "application/json", **user.headers}
    return _through_the_edge(platform, "decrypt", "/api/v1/keys:decrypt", f'{{"ciphertext": "{sealed}"}}', headers)


def login(platform: Platform) -> Result:
    """Each sign-in costs a hash; what else it costs is the distance to the peer."""
    tenant = asyncio.run(platform.new_tenant())

    async def provision() -> list[str]:
        return [await tenant.provision() for _ in range(USERS)]

    emails = asyncio.run(provision())
    hashed = asyncio.run(passwords.hash_password(PASSWORD))

    async def sign_ins() -> float:
        async with httpx.AsyncClient(base_url=platform.http_url, timeout=30) as http:

            async def one(number: int) -> None:
                body = {"email": emails[number % USERS], "password": PASSWORD}
                (await http.post("/api/v1/auth/login", headers=tenant.headers, json=body)).raise_for_status()

            return await _rate(one)

    async def hashes() -> float:
        async def one(_: int) -> None:
            assert await passwords.matches(hashed, PASSWORD)

        return await _rate(one)

    return compare("login", "logins/s", "≥ 0.50", _run(sign_ins), _run(hashes), rounds=3)


async def _rate(one: Callable[[int], Awaitable[None]]) -> float:
    """How many a second, so many at once."""

    async def some(first: int) -> None:
        for number in range(first, LOGINS, TOGETHER):
            await one(number)

    began = time.perf_counter()
    await asyncio.gather(*map(some, range(TOGETHER)))
    return LOGINS / (time.perf_counter() - began)


def _run(measure: Callable[[], Coroutine[Any, Any, float]]) -> Callable[[], float]:
    return lambda: asyncio.run(measure())


def _through_the_edge(platform: Platform, bench: str, path: str, body: str, headers: dict[str, str]) -> Result:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_text(body)
        return compare(
            bench,
            "calls/s",
            "≥ 250",
            lambda: h2load(f"{platform.http_url}{path}", Path(file.name), headers, calls=CALLS, streams=4),
            rounds=3,
        )


async def _owner(platform: Platform) -> tuple[SignedIn, Tenant]:
    tenant = await platform.new_tenant()
    return await tenant.sign_in("owner"), tenant


async def _key(platform: Platform) -> tuple[SignedIn, str]:
    user, _ = await _owner(platform)
    async with httpx.AsyncClient(base_url=platform.http_url) as http:
        content = {"name": "bench", "algorithm": "KEY_ALGORITHM_AES_256_GCM"}
        made = await http.post("/api/v1/keys", headers=user.headers, json=content)
    return user, made.json()["key"]["keyId"]
