"""The SQL of token-mgr."""

from datetime import datetime

import asyncpg

from services.chassis.database import Database

_TOKEN = """
SELECT f.session_id::text, f.user_id::text, f.expire_time AS family_expires, f.revoke_time,
       t.expire_time AS token_expires, t.spend_time
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

    async def revoke(self, session_ids: list[str]) -> int:
        return await self._database.execute(
            "UPDATE token_families SET revoke_time = now() WHERE session_id = ANY($1) AND revoke_time IS NULL",
            session_ids,
        )

    async def forget_expired(self) -> None:
        async with self._database.transaction(platform_wide=True):
            await self._database.execute("DELETE FROM token_families WHERE expire_time < now()")
