"""The keys that sign access tokens: made, published ahead of use, rotated, retired."""

import json
import time
from dataclasses import dataclass
from datetime import timedelta

from joserfc.jwk import ECKey

from nexus.identity.token_mgr.v1.faults import RotationTooSoon
from services.chassis.clock import now
from services.chassis.ids import new_id
from services.chassis.sealing import Sealer
from services.chassis.tokens import ALGORITHM
from services.identity.token_mgr.store import KeyStore

_PURPOSE = "signing key "
_CURRENT_FRESH_SECONDS = 5.0


@dataclass(frozen=True)
class SigningKey:
    kid: str
    key: ECKey


class KeyRing:
    """The signing keys of the platform, in PostgreSQL, private parts sealed."""

    def __init__(self, store: KeyStore, sealer: Sealer, *, token_lifetime: timedelta, propagation: timedelta) -> None:
        self._store = store
        self._sealer = sealer
        self._token_lifetime = token_lifetime
        self._propagation = propagation
        self._current: SigningKey | None = None
        self._read_at = float("-inf")

    async def current(self) -> SigningKey:
        """The key that signs. Read again every few seconds: another replica may have rotated."""
        if self._current is None or time.monotonic() - self._read_at > _CURRENT_FRESH_SECONDS:
            row = await self._store.current_key()
            if row is None:
                await self._make_first_keys()
                row = await self._store.current_key()
            assert row is not None
            private = json.loads(self._sealer.open(row["private_sealed"], _PURPOSE + row["kid"]))
            self._current = SigningKey(row["kid"], ECKey.import_key(private))
            self._read_at = time.monotonic()
        return self._current

    async def public(self) -> list[dict[str, str]]:
        """The JWKs that verify tokens now or will soon; former ones while a token of theirs may live."""
        await self.current()
        return [json.loads(jwk) for jwk in await self._store.public_keys(retired_after=now() - self._token_lifetime)]

    async def rotate(self) -> tuple[str, str]:
        """The next key signs from now on; returns its kid and that of the new next one. Raises RotationTooSoon."""
        async with self._store.rotation():
            published = await self._store.next_published()
            if published is not None:
                wait = published + self._propagation - now()
                if wait > timedelta(0):
                    seconds = max(1, round(wait.total_seconds()))
                    raise RotationTooSoon(seconds=seconds, retry_after=seconds)
            await self._store.promote_next()
            next_kid = await self._insert("next")
        self._read_at = float("-inf")
        return (await self.current()).kid, next_kid

    async def _make_first_keys(self) -> None:
        async with self._store.rotation():
            if await self._store.current_key() is None:
                await self._insert("current")
                await self._insert("next")

    async def _insert(self, state: str) -> str:
        kid = new_id()
        key = ECKey.generate_key("P-256", {"kid": kid, "alg": ALGORITHM, "use": "sig"}, auto_kid=False)
        private = json.dumps(key.as_dict(private=True)).encode()
        await self._store.insert_key(
            kid, state, json.dumps(key.as_dict(private=False)), self._sealer.seal(private, _PURPOSE + kid)
        )
        return kid
