"""The SQL of token-mgr."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import asyncpg

from nexus.identity.token_mgr.v1.faults import GrantExists
from services.chassis.database import Database

_TOKEN = """
SELECT f.session_id, f.user_id, f.expire_time AS family_expires, f.revoke_time, f.client_id, f.scope,
       f.audiences, f.parent_session_id, f.auth_time, t.expire_time AS token_expires, t.spend_time
FROM refresh_tokens t JOIN token_families f USING (session_id)
WHERE t.token_hash = $1
"""


class TokenStore:
    """Families of refresh tokens, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_family(self, session_id: str, user_id: str, expires: datetime) -> None:
        await self._database.execute(
            "INSERT INTO token_families (session_id, user_id, expire_time) VALUES ($1, $2, $3)",
            session_id,
            user_id,
            expires,
        )

    async def insert_grant(
        self,
        grant_id: str,
        user_id: str | None,
        expires: datetime,
        *,
        client_id: str,
        scope: str,
        audiences: list[str],
        parent_session_id: str | None,
        auth_time: datetime | None,
    ) -> None:
        """Raises GrantExists."""
        inserted = await self._database.execute(
            """
            INSERT INTO token_families
                (session_id, user_id, expire_time, client_id, scope, audiences, parent_session_id, auth_time)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING
            """,
            grant_id,
            user_id,
            expires,
            client_id,
            scope,
            audiences,
            parent_session_id,
            auth_time,
        )
        if not inserted:
            raise GrantExists()

    async def family(self, session_id: str, *, keep: bool = False) -> asyncpg.Record | None:
        """A family that has neither ended nor been revoked. With `keep`, nobody can revoke it until the transaction
        ends."""
        return await self._database.fetchrow(
            f"""
            SELECT client_id, scope, expire_time FROM token_families
            WHERE session_id = $1 AND revoke_time IS NULL AND expire_time > now() {"FOR SHARE" if keep else ""}
            """,
            session_id,
        )

    async def insert_token(self, token_hash: bytes, session_id: str, expires: datetime) -> None:
        await self._database.execute(
            "INSERT INTO refresh_tokens (token_hash, session_id, expire_time) VALUES ($1, $2, $3)",
            token_hash,
            session_id,
            expires,
        )

    async def find(self, token_hash: bytes) -> asyncpg.Record | None:
        return await self._database.fetchrow(_TOKEN, token_hash)

    async def find_locked(self, token_hash: bytes) -> asyncpg.Record | None:
        """Like `find`; nobody else judges a token of this family until the transaction ends."""
        return await self._database.fetchrow(_TOKEN + "FOR UPDATE OF f", token_hash)

    async def spend(self, token_hash: bytes) -> None:
        await self._database.execute(
            "UPDATE refresh_tokens SET spend_time = coalesce(spend_time, now()) WHERE token_hash = $1",
            token_hash,
        )

    async def revoke(self, session_ids: list[str]) -> list[asyncpg.Record]:
        """Revoke these families and the grants that came from them; returns those that it revoked."""
        return await self._database.fetch(
            """
            UPDATE token_families SET revoke_time = now()
            WHERE (session_id = ANY($1) OR parent_session_id = ANY($1)) AND revoke_time IS NULL
            RETURNING session_id, client_id
            """,
            session_ids,
        )

    async def revoke_user(self, user_id: str) -> list[asyncpg.Record]:
        """Revoke all families of a user; returns those that it revoked."""
        return await self._database.fetch(
            """
            UPDATE token_families SET revoke_time = now()
            WHERE tenant_id = nexus.tenant_id() AND user_id = $1 AND revoke_time IS NULL
            RETURNING session_id, client_id
            """,
            user_id,
        )

    async def erase_user(self, user_id: str) -> list[str]:
        """Every family of the user, and the grants that came from them; returns their ids."""
        rows = await self._database.fetch(
            """
            DELETE FROM token_families
            WHERE tenant_id = nexus.tenant_id()
              AND (user_id = $1 OR parent_session_id IN (SELECT session_id FROM token_families WHERE user_id = $1))
            RETURNING session_id
            """,
            user_id,
        )
        return [row["session_id"] for row in rows]

    async def forget_expired(self) -> None:
        async with self._database.transaction(platform_wide=True):
            await self._database.execute("DELETE FROM token_families WHERE expire_time < now()")


class KeyStore:
    """The signing keys of the platform: of each algorithm one current, one next, and former ones."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextlib.asynccontextmanager
    async def rotation(self) -> AsyncIterator[None]:
        """A transaction in which nobody else makes or moves keys."""
        async with self._database.transaction():
            await self._database.execute("SELECT pg_advisory_xact_lock(5183276)")  # any number, always the same
            yield

    async def current_key(self, algorithm: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            "SELECT kid, private_sealed FROM signing_keys WHERE state = 'current' AND algorithm = $1", algorithm
        )

    async def next_keys(self) -> list[asyncpg.Record]:
        return await self._database.fetch(
            "SELECT kid, algorithm, private_sealed FROM signing_keys WHERE state = 'next'"
        )

    async def algorithms(self, signing_since: datetime | None = None) -> list[str]:
        """Those that have keys; or whose current key has been signing since a moment or before it."""
        rows = await self._database.fetch(
            """
            SELECT algorithm FROM signing_keys
            WHERE state = 'current' AND ($1::timestamptz IS NULL OR promote_time <= $1)
            """,
            signing_since,
        )
        return [row["algorithm"] for row in rows]

    async def public_keys(self, algorithms: Sequence[str], retired_after: datetime) -> list[str]:
        """As JWKs in JSON, the oldest first."""
        rows = await self._database.fetch(
            """
            SELECT public_jwk FROM signing_keys
            WHERE algorithm = ANY($1) AND (state <> 'former' OR retire_time > $2) ORDER BY create_time
            """,
            list(algorithms),
            retired_after,
        )
        return [row["public_jwk"] for row in rows]

    async def next_published(self, algorithm: str) -> datetime:
        """Since when verifiers can know the next key."""
        published: datetime = await self._database.fetchval(
            "SELECT create_time FROM signing_keys WHERE state = 'next' AND algorithm = $1", algorithm
        )
        return published

    async def promote_next(self, algorithm: str) -> None:
        await self._database.execute(
            """
            UPDATE signing_keys SET state = 'former', retire_time = now(), private_sealed = NULL
            WHERE state = 'current' AND algorithm = $1
            """,
            algorithm,
        )
        await self._database.execute(
            "UPDATE signing_keys SET state = 'current', promote_time = now() WHERE state = 'next' AND algorithm = $1",
            algorithm,
        )

    async def insert_key(self, kid: str, algorithm: str, state: str, public_jwk: str, private_sealed: bytes) -> None:
        await self._database.execute(
            """
            INSERT INTO signing_keys (kid, algorithm, state, public_jwk, private_sealed, promote_time)
            VALUES ($1, $2, $3, $4, $5, CASE $3 WHEN 'current' THEN now() END)
            """,
            kid,
            algorithm,
            state,
            public_jwk,
            private_sealed,
        )

    async def withdraw_former(self, algorithm: str) -> None:
        await self._database.execute("DELETE FROM signing_keys WHERE state = 'former' AND algorithm = $1", algorithm)

    async def forget_former(self, retired_before: datetime) -> None:
        await self._database.execute(
            "DELETE FROM signing_keys WHERE state = 'former' AND retire_time < $1", retired_before
        )
