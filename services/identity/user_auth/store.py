"""The SQL of user-auth."""

from datetime import datetime

import asyncpg

from nexus.identity.user_auth.v1.faults import EmailTaken
from services.chassis.database import Database

_USER = "user_id::text, email, display_name, password_hash, email_verified, roles, create_time"


class UserStore:
    """Users and the codes mailed to them, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(
        self, user_id: str, email: str, email_key: str, display_name: str, password_hash: str
    ) -> asyncpg.Record:
        """Raises EmailTaken."""
        try:
            row = await self._database.fetchrow(
                f"""
                INSERT INTO users (user_id, email, email_key, display_name, password_hash)
                VALUES ($1, $2, $3, $4, $5) RETURNING {_USER}
                """,
                user_id,
                email,
                email_key,
                display_name,
                password_hash,
            )
        except asyncpg.UniqueViolationError:
            raise EmailTaken() from None
        assert row is not None
        return row

    async def upsert_verified(
        self,
        user_id: str,
        email: str,
        email_key: str,
        display_name: str,
        password_hash: str,
        roles: list[str],
    ) -> asyncpg.Record:
        row = await self._database.fetchrow(
            f"""
            INSERT INTO users (user_id, email, email_key, display_name, password_hash, email_verified, roles)
            VALUES ($1, $2, $3, $4, $5, true, $6)
            ON CONFLICT ON CONSTRAINT users_email_key DO UPDATE
            SET password_hash = excluded.password_hash, email_verified = true, roles = excluded.roles
            RETURNING {_USER}
            """,
            user_id,
            email,
            email_key,
            display_name,
            password_hash,
            roles,
        )
        assert row is not None
        return row

    async def by_id(self, user_id: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(f"SELECT {_USER} FROM users WHERE user_id = $1", user_id)

    async def by_email(self, email_key: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            f"SELECT {_USER} FROM users WHERE tenant_id = nexus.tenant_id() AND email_key = $1", email_key
        )

    async def set_password(self, user_id: str, password_hash: str) -> None:
        await self._database.execute("UPDATE users SET password_hash = $2 WHERE user_id = $1", user_id, password_hash)

    async def replace_code(self, user_id: str, code_hash: bytes, expires: datetime) -> None:
        """The user's only code from now on."""
        async with self._database.transaction():
            await self._database.execute("DELETE FROM verification_codes WHERE user_id = $1", user_id)
            await self._database.execute(
                "INSERT INTO verification_codes (code_hash, user_id, expire_time) VALUES ($1, $2, $3)",
                code_hash,
                user_id,
                expires,
            )

    async def verify_by_code(self, code_hash: bytes) -> asyncpg.Record | None:
        """Spend a code and mark its user's address as verified; None if there is no such code."""
        return await self._database.fetchrow(
            f"""
            WITH spent AS (
                DELETE FROM verification_codes WHERE code_hash = $1 RETURNING user_id, expire_time
            )
            UPDATE users SET email_verified = true
            WHERE user_id = (SELECT user_id FROM spent WHERE expire_time > now())
            RETURNING {_USER}
            """,
            code_hash,
        )

    async def forget_expired_codes(self) -> None:
        async with self._database.transaction(platform_wide=True):
            await self._database.execute("DELETE FROM verification_codes WHERE expire_time < now()")
