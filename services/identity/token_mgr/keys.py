"""The keys that sign access tokens: made, published ahead of use, rotated, retired."""

import json
import time
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
from joserfc.jwk import ECKey

from nexus.identity.token_mgr.v1.faults import RotationTooSoon
from services.chassis.clock import now
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.sealing import Sealer
from services.chassis.tokens import ALGORITHM

_PURPOSE = "signing key "
_CURRENT_FRESH_SECONDS = 5.0
_LOCK = "SELECT pg_advisory_xact_lock(5183276)"  # any number: one rotation at a time


@dataclass(frozen=True)
class SigningKey:
    kid: str
    key: ECKey


class KeyRing:
    """The signing keys of the platform, in PostgreSQL, private parts sealed."""

    def __init__(
        self, database: Database, sealer: Sealer, *, token_lifetime: timedelta, propagation: timedelta
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._token_lifetime = token_lifetime
        self._propagation = propagation
        self._current: SigningKey | None = None
        self._read_at = float("-inf")

    async def current(self) -> SigningKey:
        """The key that signs. Read again every few seconds: another replica may have rotated."""
        if self._current is None or time.monotonic() - self._read_at > _CURRENT_FRESH_SECONDS:
            row = await self._fetch_current()
            if row is None:
                await self._make_first_keys()
                row = await self._fetch_current()
            assert row is not None
            private = json.loads(self._sealer.open(row["private_sealed"], _PURPOSE + row["kid"]))
            self._current = SigningKey(row["kid"], ECKey.import_key(private))
            self._read_at = time.monotonic()
        return self._current

    async def public(self) -> list[dict[str, str]]:
        """The JWKs that verify tokens now or will soon; former ones while a token of theirs may live."""
        await self.current()
        rows = await self._database.fetch(
            "SELECT public_jwk FROM signing_keys WHERE state <> 'former' OR retire_time > $1 ORDER BY create_time",
            now() - self._token_lifetime,
        )
        return [json.loads(row["public_jwk"]) for row in rows]

    async def rotate(self) -> tuple[str, str]:
        """The next key signs from now on; returns its kid and that of the new next one. Raises RotationTooSoon."""
        async with self._database.transaction():
            await self._database.execute(_LOCK)
            upcoming = await self._database.fetchrow("SELECT kid, create_time FROM signing_keys WHERE state = 'next'")
            if upcoming is not None:
                wait = upcoming["create_time"] + self._propagation - now()
                if wait > timedelta(0):
                    seconds = max(1, round(wait.total_seconds()))
                    raise RotationTooSoon(seconds=seconds, retry_after=seconds)
            await self._database.execute(
                "UPDATE signing_keys SET state = 'former', retire_time = now() WHERE state = 'current'"
            )
            await self._database.execute("UPDATE signing_keys SET state = 'current' WHERE state = 'next'")
            next_kid = await self._insert("next")
        self._read_at = float("-inf")
        return (await self.current()).kid, next_kid

    async def _fetch_current(self) -> asyncpg.Record | None:
        return await self._database.fetchrow("SELECT kid, private_sealed FROM signing_keys WHERE state = 'current'")

    async def _make_first_keys(self) -> None:
        async with self._database.transaction():
            await self._database.execute(_LOCK)
            if await self._fetch_current() is None:
                await self._insert("current")
                await self._insert("next")

    async def _insert(self, state: str) -> str:
        kid = new_id()
        key = ECKey.generate_key("P-256", {"kid": kid, "alg": ALGORITHM, "use": "sig"}, auto_kid=False)
        await self._database.execute(
            "INSERT INTO signing_keys (kid, state, public_jwk, private_sealed) VALUES ($1, $2, $3, $4)",
            kid,
            state,
            json.dumps(key.as_dict(private=False)),
            self._sealer.seal(json.dumps(key.as_dict(private=True)).encode(), _PURPOSE + kid),
        )
        return kid
