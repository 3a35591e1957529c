"""The SQL of backend-api."""

from datetime import datetime

import asyncpg

from nexus.platform.backend_api.v1.faults import ApiKeysTooMany
from services.chassis.database import Database

_KEY = (
    "tenant_id, key_id, prefix, secret_hash, title, user_id, scopes, rate, create_time, expire_time, "
    "last_used_time, revoke_time"
)
_WORKS = "revoke_time IS NULL AND (expire_time IS NULL OR expire_time > now())"


class ApiKeyStore:
    """API keys of the call's tenant; and, for who only has a key, of all."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(
        self,
        *,
        key_id: str,
        prefix: str,
        secret_hash: bytes,
        title: str,
        user_id: str,
        scopes: list[str],
        rate: str,
        expires: datetime | None,
        most: int,
    ) -> asyncpg.Record:
        """Raises ApiKeysTooMany when `most` keys of the tenant work already."""
        async with self._database.transaction():
            await self._database.execute("SELECT pg_advisory_xact_lock(hashtextextended(nexus.tenant_id(), 3))")
            count = await self._database.fetchval(
                f"SELECT count(*) FROM api_keys WHERE tenant_id = nexus.tenant_id() AND {_WORKS}"
            )
            if count >= most:
                raise ApiKeysTooMany(most=most)
            row = await self._database.fetchrow(
                f"""
                INSERT INTO api_keys (key_id, prefix, secret_hash, title, user_id, scopes, rate, expire_time)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING {_KEY}
                """,
                key_id,
                prefix,
                secret_hash,
                title,
                user_id,
                scopes,
                rate,
                expires,
            )
        assert row is not None
        return row

    async def count(self) -> int:
        """Those that have not been revoked, expired ones too."""
        count: int = await self._database.fetchval(
            "SELECT count(*) FROM api_keys WHERE tenant_id = nexus.tenant_id() AND revoke_time IS NULL"
        )
        return count

    async def page(
        self, before: str, limit: int, *, include_ended: bool, user_id: str | None = None
    ) -> list[asyncpg.Record]:
        """The latest first, those made before the key `before`; of one user or of all."""
        return await self._database.fetch(
            f"""
            SELECT {_KEY} FROM api_keys
            WHERE tenant_id = nexus.tenant_id() AND ($1 OR ({_WORKS})) AND ($2::uuid IS NULL OR key_id < $2)
              AND ($4::uuid IS NULL OR user_id = $4)
            ORDER BY key_id DESC LIMIT $3
            """,
            include_ended,
            before or None,
            limit,
            user_id,
        )

    async def revoke(self, key_id: str) -> asyncpg.Record | None:
        """The key, and whether it was not revoked before as `newly`."""
        return await self._database.fetchrow(
            f"""
            UPDATE api_keys SET revoke_time = coalesce(revoke_time, now()) WHERE key_id = $1
            RETURNING {_KEY}, revoke_time = now() AS newly
            """,
            key_id,
        )

    async def erase_user(self, user_id: str) -> list[asyncpg.Record]:
        """Every key of the user, revoked or not; returns those that were not."""
        rows = await self._database.fetch(
            f"DELETE FROM api_keys WHERE tenant_id = nexus.tenant_id() AND user_id = $1 RETURNING {_KEY}", user_id
        )
        return [row for row in rows if row["revoke_time"] is None]

    async def by_prefix(self, prefix: str) -> asyncpg.Record | None:
        """The key that begins so, of whichever tenant."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.fetchrow(f"SELECT {_KEY} FROM api_keys WHERE prefix = $1", prefix)

    async def note_use(self, key_id: str) -> None:
        """Remember that the key has been used, once a minute."""
        await self._database.execute(
            """
            UPDATE api_keys SET last_used_time = now()
            WHERE key_id = $1 AND (last_used_time IS NULL OR last_used_time < now() - interval '1 minute')
            """,
            key_id,
        )
