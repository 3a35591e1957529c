"""The SQL of session-mgr. A session is live until it is ended, expires, or is not used for the idle time."""

from datetime import datetime, timedelta

import asyncpg

from services.chassis.database import Database

_SESSION = (
    "session_id, user_id, token_hash, device_sealed, user_agent, ip_address, create_time, last_used_time, "
    "expire_time, assurance, methods, auth_time, end_time"
)
UNSEALED = (
    "SELECT tenant_id, session_id, user_id, user_agent, ip_address FROM sessions WHERE user_agent IS NOT NULL LIMIT $1"
)
KEEP_ENDED = "30 days"
_LIST_ENDED = 1_000


class SessionStore:
    """Sessions of the call's tenant. `idle` is how long one may be unused and live."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def lock_user(self, user_id: str) -> None:
        """Let nobody else open or count this user's sessions until the transaction ends."""
        await self._database.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", user_id)

    async def insert(
        self,
        session_id: str,
        token_hash: bytes,
        user_id: str,
        device_sealed: bytes | None,
        expires: datetime,
        assurance: str,
        methods: list[str],
    ) -> asyncpg.Record:
        row = await self._database.fetchrow(
            f"""
            INSERT INTO sessions
                (session_id, token_hash, user_id, device_sealed, expire_time, assurance, methods)
            VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {_SESSION}
            """,
            session_id,
            token_hash,
            user_id,
            device_sealed,
            expires,
            assurance,
            methods,
        )
        assert row is not None
        return row

    async def live_of(self, user_id: str, idle: timedelta) -> list[asyncpg.Record]:
        """The latest used first."""
        return await self._database.fetch(
            f"""
            SELECT {_SESSION} FROM sessions
            WHERE tenant_id = nexus.tenant_id() AND user_id = $1 AND {_LIVE.format(idle="$2")}
            ORDER BY last_used_time DESC, session_id DESC
            """,
            user_id,
            idle,
        )

    async def all_of(self, user_id: str) -> list[asyncpg.Record]:
        """Those that have ended too, the latest first."""
        return await self._database.fetch(
            f"""
            SELECT {_SESSION} FROM sessions WHERE tenant_id = nexus.tenant_id() AND user_id = $1
            ORDER BY session_id DESC LIMIT {_LIST_ENDED}
            """,
            user_id,
        )

    async def touch(
        self, idle: timedelta, *, session_id: str | None = None, token_hash: bytes | None = None
    ) -> asyncpg.Record | None:
        """The live session with this id or token, used as of now; None if there is none."""
        return await self._database.fetchrow(
            f"""
            UPDATE sessions SET last_used_time = now()
            WHERE (session_id = $1 OR token_hash = $2) AND {_LIVE.format(idle="$3")}
            RETURNING {_SESSION}
            """,
            session_id,
            token_hash,
            idle,
        )

    async def assure(
        self, session_id: str, assurance: str, methods: list[str], idle: timedelta
    ) -> asyncpg.Record | None:
        """The live session, proved anew; None if there is none."""
        return await self._database.fetchrow(
            f"""
            UPDATE sessions SET assurance = $2, methods = $3, auth_time = now(), last_used_time = now()
            WHERE session_id = $1 AND {_LIVE.format(idle="$4")}
            RETURNING {_SESSION}
            """,
            session_id,
            assurance,
            methods,
            idle,
        )

    async def end(self, user_id: str, session_ids: list[str]) -> list[asyncpg.Record]:
        """End these of the user's sessions that have not ended; returns those that it ended."""
        return await self._database.fetch(
            f"""
            UPDATE sessions SET end_time = now()
            WHERE user_id = $1 AND session_id = ANY($2) AND end_time IS NULL RETURNING {_SESSION}
            """,
            user_id,
            session_ids,
        )

    async def seal(self, session_id: str, device_sealed: bytes) -> None:
        """Of a row that still has the device in clear."""
        await self._database.execute(
            """
            UPDATE sessions SET device_sealed = $2, user_agent = NULL, ip_address = NULL
            WHERE session_id = $1 AND user_agent IS NOT NULL
            """,
            session_id,
            device_sealed,
        )

    async def erase_user(self, user_id: str) -> None:
        """Every record of the user, ended or not."""
        await self._database.execute(
            "DELETE FROM sessions WHERE tenant_id = nexus.tenant_id() AND user_id = $1", user_id
        )

    async def forget_ended(self) -> None:
        async with self._database.transaction(platform_wide=True):
            await self._database.execute(
                f"DELETE FROM sessions WHERE least(expire_time, end_time) < now() - interval '{KEEP_ENDED}'"
            )


_LIVE = "end_time IS NULL AND expire_time > now() AND last_used_time > now() - {idle}::interval"
