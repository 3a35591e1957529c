"""The SQL of auth-service."""

from collections.abc import Sequence

import asyncpg

from services.chassis.database import Database

_PASSKEY = (
    "credential_id, user_id, public_key, public_key_sealed, sign_count, name, name_sealed, backed_up, "
    "create_time, last_used_time"
)
UNSEALED = f"SELECT tenant_id, {_PASSKEY} FROM passkeys WHERE public_key_sealed IS NULL OR name_sealed IS NULL LIMIT $1"


class FactorStore:
    """Second factors of users, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def lock_user(self, user_id: str) -> None:
        """Let nobody else change this user's factors until the transaction ends."""
        await self._database.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", user_id)

    async def totp(self, user_id: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            "SELECT secret_sealed, confirmed FROM totp_factors WHERE user_id = $1", user_id
        )

    async def put_totp(self, user_id: str, secret_sealed: bytes) -> bool:
        """Keep a secret that is to be confirmed; False if there is a confirmed one."""
        return bool(
            await self._database.execute(
                """
                INSERT INTO totp_factors AS t (user_id, secret_sealed) VALUES ($1, $2)
                ON CONFLICT (user_id) DO UPDATE SET secret_sealed = $2, last_step = 0, create_time = now()
                WHERE NOT t.confirmed
                """,
                user_id,
                secret_sealed,
            )
        )

    async def spend_totp_step(self, user_id: str, secret_sealed: bytes, step: int, *, confirm: bool = False) -> bool:
        """Take the code of a time step; False if it, or a later one, has been taken already."""
        return bool(
            await self._database.execute(
                """
                UPDATE totp_factors SET last_step = $3, confirmed = confirmed OR $4
                WHERE user_id = $1 AND secret_sealed = $2 AND last_step < $3 AND (confirmed OR $4)
                """,
                user_id,
                secret_sealed,
                step,
                confirm,
            )
        )

    async def remove_totp(self, user_id: str) -> bool:
        return bool(await self._database.execute("DELETE FROM totp_factors WHERE user_id = $1", user_id))

    async def passkeys(self, user_id: str) -> list[asyncpg.Record]:
        return await self._database.fetch(
            f"SELECT {_PASSKEY} FROM passkeys WHERE user_id = $1 ORDER BY create_time, credential_id", user_id
        )

    async def passkey(self, credential_id: bytes) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            f"SELECT {_PASSKEY} FROM passkeys WHERE tenant_id = nexus.tenant_id() AND credential_id = $1",
            credential_id,
        )

    async def insert_passkey(
        self,
        credential_id: bytes,
        user_id: str,
        public_key_sealed: bytes,
        sign_count: int,
        name_sealed: bytes,
        backed_up: bool,
    ) -> asyncpg.Record | None:
        """None if it is registered already, whoever has it."""
        return await self._database.fetchrow(
            f"""
            INSERT INTO passkeys (credential_id, user_id, public_key_sealed, sign_count, name_sealed, backed_up)
            VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING RETURNING {_PASSKEY}
            """,
            credential_id,
            user_id,
            public_key_sealed,
            sign_count,
            name_sealed,
            backed_up,
        )

    async def seal_passkey(self, credential_id: bytes, public_key_sealed: bytes, name_sealed: bytes) -> None:
        await self._database.execute(
            """
            UPDATE passkeys SET public_key = NULL, public_key_sealed = $2, name = NULL, name_sealed = $3
            WHERE tenant_id = nexus.tenant_id() AND credential_id = $1
              AND (public_key_sealed IS NULL OR name_sealed IS NULL)
            """,
            credential_id,
            public_key_sealed,
            name_sealed,
        )

    async def use_passkey(self, credential_id: bytes, sign_count: int) -> bool:
        """Note a use; False if a later one was noted already, which only a copied authenticator can bring about.

        One that does not count says 0 each time (WebAuthn, section 6.1.1).
        """
        return bool(
            await self._database.execute(
                """
                UPDATE passkeys SET sign_count = $2, last_used_time = now()
                WHERE tenant_id = nexus.tenant_id() AND credential_id = $1
                  AND (sign_count < $2 OR (sign_count = 0 AND $2 = 0))
                """,
                credential_id,
                sign_count,
            )
        )

    async def remove_passkey(self, user_id: str, credential_id: bytes) -> bool:
        return bool(
            await self._database.execute(
                "DELETE FROM passkeys WHERE user_id = $1 AND credential_id = $2", user_id, credential_id
            )
        )

    async def recovery_codes_left(self, user_id: str) -> int:
        count: int = await self._database.fetchval("SELECT count(*) FROM recovery_codes WHERE user_id = $1", user_id)
        return count

    async def replace_recovery_codes(self, user_id: str, hashes: Sequence[bytes]) -> None:
        async with self._database.transaction():
            await self._database.execute("DELETE FROM recovery_codes WHERE user_id = $1", user_id)
            await self._database.execute(
                "INSERT INTO recovery_codes (user_id, code_hash) SELECT $1, unnest($2::bytea[])", user_id, list(hashes)
            )

    async def spend_recovery_code(self, user_id: str, code_hash: bytes) -> bool:
        return bool(
            await self._database.execute(
                "DELETE FROM recovery_codes WHERE user_id = $1 AND code_hash = $2", user_id, code_hash
            )
        )

    async def erase_user(self, user_id: str) -> None:
        async with self._database.transaction():
            for table in ("totp_factors", "passkeys", "recovery_codes"):
                await self._database.execute(f"DELETE FROM {table} WHERE user_id = $1", user_id)
