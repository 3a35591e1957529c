"""The keys that sign tokens: made, published ahead of use, rotated, retired.

Their private parts lie in the database as key-service has sealed them. Each replica unwraps a key once, into memory,
and signs with that: thousands of times a second, and also while key-service is away. The next key is unwrapped ahead
of its time, so that another replica's rotation needs nobody either. Verification needs only what is public.
"""

import asyncio
import contextlib
import contextvars
import json
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar, cast

from joserfc.jwk import ECKey, KeyParameters, KeySet, RSAKey

from nexus.identity.token_mgr.v1.faults import RotationTooSoon
from nexus.platform.key_service.v1.vault_pb2 import OpenRequest, SealRequest
from nexus.platform.key_service.v1.vault_pb2_grpc import VaultServiceStub
from nexus.type.v1.faults import DeadlineExceeded, DependencyUnavailable
from services.chassis.clients import Clients
from services.chassis.clock import now
from services.chassis.context import acting_for
from services.chassis.ids import new_id
from services.identity.token_mgr.store import KeyStore

Result = TypeVar("Result")
PrivateKey = ECKey | RSAKey

_SEALED_UNDER = "signing-keys"
_VAULT_SECONDS = 2.0
_RSA_BITS = 2048
_VERIFYING_FRESH_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Algorithm(StrEnum):
    """RFC 7518, section 3.1."""

    ES256 = "ES256"
    RS256 = "RS256"


@dataclass(frozen=True)
class SigningKey:
    kid: str
    algorithm: Algorithm
    private: PrivateKey

    @classmethod
    async def generate(cls, algorithm: Algorithm) -> "SigningKey":
        kid = new_id()
        about: KeyParameters = {"kid": kid, "alg": algorithm.value, "use": "sig"}
        if algorithm is Algorithm.ES256:
            return cls(kid, algorithm, ECKey.generate_key("P-256", about, auto_kid=False))
        # Primes take a while to find.
        return cls(kid, algorithm, await asyncio.to_thread(RSAKey.generate_key, _RSA_BITS, about, auto_kid=False))

    @classmethod
    def parse(cls, kid: str, algorithm: Algorithm, private: bytes) -> "SigningKey":
        kind = ECKey if algorithm is Algorithm.ES256 else RSAKey
        return cls(kid, algorithm, kind.import_key(json.loads(private)))

    @property
    def private_jwk(self) -> bytes:
        return json.dumps(self.private.as_dict(private=True)).encode()

    @property
    def public_jwk(self) -> str:
        return json.dumps(self.private.as_dict(private=False))


class Vault:
    """Seals private keys by key-service, as token-mgr's own in the platform's tenant."""

    def __init__(self, clients: Clients, platform_tenant: str) -> None:
        self._vault = clients.stub(VaultServiceStub)
        self._tenant = platform_tenant

    async def seal(self, key: SigningKey) -> bytes:
        """Raises DependencyUnavailable."""
        request = SealRequest(key=_SEALED_UNDER, plaintext=key.private_jwk, context={"kid": key.kid})
        sealed: bytes = (await self._ask(self._vault.Seal, request)).ciphertext
        return sealed

    async def open(self, kid: str, algorithm: Algorithm, sealed: bytes) -> SigningKey:
        """Raises DependencyUnavailable."""
        opened = await self._ask(self._vault.Open, OpenRequest(ciphertext=sealed, context={"kid": kid}))
        return SigningKey.parse(kid, algorithm, opened.plaintext)

    async def _ask(self, method: Any, request: Any) -> Any:
        try:
            with acting_for(self._tenant):
                return await method(request, timeout=_VAULT_SECONDS)
        except DeadlineExceeded:
            raise DependencyUnavailable(dependency="key-service", retry_after=1) from None


class KeyRing:
    """The signing keys of the platform: of each algorithm one current, one next, and former ones."""

    def __init__(
        self,
        store: KeyStore,
        vault: Vault,
        *,
        token_lifetime: timedelta,
        propagation: timedelta,
        key_lifetime: timedelta,
    ) -> None:
        self._store = store
        self._vault = vault
        self._token_lifetime = token_lifetime
        self._propagation = propagation
        self._key_lifetime = key_lifetime
        self._unwrapped: dict[str, SigningKey] = {}
        self._current: dict[Algorithm, SigningKey] = {}
        self._making = asyncio.Lock()
        self._verifying = KeySet([])
        self._read = float("-inf")

    async def current(self, algorithm: Algorithm) -> SigningKey:
        """The key that signs; from memory, once it is there. Raises DependencyUnavailable."""
        if algorithm not in self._current:
            await _apart(self._load_or_make(algorithm))
        return self._current[algorithm]

    async def public(self, algorithms: Sequence[Algorithm]) -> list[dict[str, str]]:
        """The JWKs that verify tokens now or will soon; former ones while a token of theirs may live.

        Raises DependencyUnavailable if there are none, and none can be made.
        """
        published = await self._published(algorithms)
        missing = set(algorithms) - {jwk["alg"] for jwk in published}
        if missing:
            try:
                for algorithm in missing:
                    await _apart(self._load_or_make(algorithm))
            except DependencyUnavailable:
                if not published:
                    raise
                logger.warning(
                    "key-service is away: those keys verify that there are", extra={"missing": sorted(missing)}
                )
            else:
                published = await self._published(algorithms)
        return published

    async def verifying(self, algorithms: Sequence[Algorithm]) -> KeySet:
        """The same, ready for use; read once a second, for a key is published long before it signs."""
        if time.monotonic() - self._read > _VERIFYING_FRESH_SECONDS:
            self._verifying = KeySet.import_key_set(cast(Any, {"keys": await self.public(algorithms)}))
            self._read = time.monotonic()
        return self._verifying

    async def rotate(self, algorithm: Algorithm, *, withdraw_former: bool = False) -> tuple[str, str]:
        """The next key signs from now on; returns its kid and that of the new next one.

        Raises RotationTooSoon, DependencyUnavailable.
        """
        await self.current(algorithm)
        fresh = await SigningKey.generate(algorithm)
        sealed = await self._vault.seal(fresh)
        async with self._store.rotation():
            wait = await self._store.next_published(algorithm) + self._propagation - now()
            if wait > timedelta(0):
                seconds = max(1, round(wait.total_seconds()))
                raise RotationTooSoon(seconds=seconds, retry_after=seconds)
            await self._store.promote_next(algorithm)
            await self._store.insert_key(fresh.kid, algorithm, "next", fresh.public_jwk, sealed)
            if withdraw_former:
                await self._store.withdraw_former(algorithm)
        self._unwrapped[fresh.kid] = fresh
        await self._load(algorithm)
        return self._current[algorithm].kid, fresh.kid

    async def tend(self) -> None:
        """Learn what other replicas did, unwrap next keys, rotate what has signed for long. For `service.every`."""
        await self._load_or_make(Algorithm.ES256)
        for name in await self._store.algorithms():
            await self._load(Algorithm(name))
        ahead = await self._store.next_keys()
        for kid, name, sealed in ahead:
            await self._unwrap(kid, Algorithm(name), sealed)
        in_use = {*(key.kid for key in self._current.values()), *(kid for kid, _, _ in ahead)}
        self._unwrapped = {kid: key for kid, key in self._unwrapped.items() if kid in in_use}
        for name in await self._store.algorithms(signing_since=now() - self._key_lifetime):
            with contextlib.suppress(RotationTooSoon):  # another replica was faster
                current, _ = await self.rotate(Algorithm(name))
                logger.info("a signing key is due, the next one signs", extra={"algorithm": name, "kid": current})
        await self._store.forget_former(now() - self._token_lifetime)

    async def _load_or_make(self, algorithm: Algorithm) -> None:
        async with self._making:
            await self._load(algorithm)
            if algorithm in self._current:
                return
            pair = [(await SigningKey.generate(algorithm), state) for state in ("current", "next")]
            sealed = [await self._vault.seal(key) for key, _ in pair]
            async with self._store.rotation():
                if await self._store.current_key(algorithm) is None:
                    for (key, state), private in zip(pair, sealed, strict=True):
                        await self._store.insert_key(key.kid, algorithm, state, key.public_jwk, private)
            await self._load(algorithm)

    async def _published(self, algorithms: Sequence[Algorithm]) -> list[dict[str, str]]:
        kept = now() - self._token_lifetime
        return [json.loads(jwk) for jwk in await self._store.public_keys(algorithms, retired_after=kept)]

    async def _load(self, algorithm: Algorithm) -> None:
        """Take the current key of the database for ours, if there is one."""
        row = await self._store.current_key(algorithm)
        if row is not None:
            self._current[algorithm] = await self._unwrap(row["kid"], algorithm, row["private_sealed"])

    async def _unwrap(self, kid: str, algorithm: Algorithm, sealed: bytes) -> SigningKey:
        if kid not in self._unwrapped:
            self._unwrapped[kid] = await self._vault.open(kid, algorithm, sealed)
        return self._unwrapped[kid]


async def _apart(work: Coroutine[Any, Any, Result]) -> Result:
    """Do it outside the call and its transaction: a key that is used must not be rolled back with them."""
    return await asyncio.create_task(work, context=contextvars.Context())
