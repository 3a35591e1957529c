"""The tables of user-auth, and the SQL that is particular to it."""

from typing import Any

import asyncpg

from nexus.identity.user_auth.v1.faults import EmailTaken, RoleNotFound, UserNotFound
from services.chassis.database import Database
from services.chassis.table import Row, Table
from services.identity.user_auth.profiles import Address

_TOUCH = "version = users.version + 1, update_time = now()"
UNSEALED = "SELECT tenant_id, user_id, email, display_name FROM users WHERE profile_sealed IS NULL LIMIT $1"


class Store:
    """Users, their roles and the codes mailed to them, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.users = Table(database, "users", key="user_id", missing=UserNotFound, order="user_id", on_update=_TOUCH)
        self.hidden = Table(database, "users", key="user_id")
        """What nobody is shown of users: a change is no new version."""
        self.codes = Table(database, "verification_codes", key="code_hash")
        self.mail_requests = Table(database, "mail_requests", key="request_id")
        self.password_policies = Table(database, "password_policies", key="tenant_id")
        self.roles = Table(
            database,
            "roles",
            key="name",
            missing=lambda name: RoleNotFound(role=name),
            on_update="version = roles.version + 1",
        )

    async def by_address(self, address: Address, *, lock: bool = False) -> Row | None:
        """Rows that are not sealed yet have an `email_key`, the others a digest."""
        condition = "(email_digest = $1 OR email_key = $2)" + (" FOR UPDATE" if lock else "")
        return next(iter(await self.users.select(condition, address.digest, address.text)), None)

    async def count(self) -> int:
        count: int = await self._database.fetchval("SELECT count(*) FROM users WHERE tenant_id = nexus.tenant_id()")
        return count

    async def count_with(self, role: str) -> int:
        count: int = await self._database.fetchval(
            "SELECT count(*) FROM users WHERE tenant_id = nexus.tenant_id() AND roles @> ARRAY[$1::text]", role
        )
        return count

    async def set_profile(self, user: Row, profile_sealed: bytes, email_digest: bytes, *, moved: bool) -> Row:
        """Of a locked user. Who has moved to another address has it verified no more. Raises EmailTaken."""
        verified = user["email_verified"] and not moved
        try:
            return await self.users.change(
                user["user_id"], email_verified=verified, **sealed(profile_sealed, email_digest)
            )
        except asyncpg.UniqueViolationError:
            raise EmailTaken() from None

    async def set_password(self, user_id: str, password_hash: str | None, *, verified: bool = False) -> None:
        """Who signed in with the one before has to do so again; `verified` if it came by mail."""
        await self._database.execute(
            f"""
            UPDATE users
            SET password_hash = $2, email_verified = email_verified OR $3,
                credentials_version = credentials_version + 1, {_TOUCH}
            WHERE user_id = $1
            """,
            user_id,
            password_hash,
            verified,
        )

    async def set_state(self, user: Row, state: str) -> Row:
        """Of a locked user. Who is signed in has to do so again."""
        return await self.users.change(
            user["user_id"], state=state, credentials_version=user["credentials_version"] + 1
        )

    async def lock_owners(self) -> None:
        """Let nobody else take the last owner from the tenant until the transaction ends."""
        await self._database.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('owners ' || nexus.tenant_id(), 0))"
        )

    async def has_other_owner(self, user_id: str) -> bool:
        others = "roles @> '{owner}' AND state = 'active' AND user_id <> $1 LIMIT 1"
        return bool(await self.users.select(others, user_id))

    async def spend_code(self, purpose: str, code_hash: bytes) -> str | None:
        """The user whose code it was; None if there is none, or none any more."""
        user_id: str | None = await self._database.fetchval(
            """
            DELETE FROM verification_codes WHERE code_hash = $1 AND purpose = $2 AND expire_time > now()
            RETURNING user_id
            """,
            code_hash,
            purpose,
        )
        return user_id

    async def requested_mails(self, limit: int) -> list[Row]:
        """Of all tenants, the oldest first; of a tenant only when its users can be found by digest."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.fetch(
                """
                SELECT tenant_id, request_id FROM mail_requests r
                WHERE NOT EXISTS (SELECT FROM users u WHERE u.tenant_id = r.tenant_id AND u.profile_sealed IS NULL)
                ORDER BY create_time LIMIT $1
                """,
                limit,
            )

    async def take_mail_request(self, request_id: str) -> Row | None:
        """Take it out, in the transaction that sends the mail; None if a replica has it."""
        return await self._database.fetchrow(
            """
            DELETE FROM mail_requests WHERE request_id =
                (SELECT request_id FROM mail_requests WHERE request_id = $1 FOR UPDATE SKIP LOCKED)
            RETURNING email_digest, purpose
            """,
            request_id,
        )

    async def forget_expired(self) -> None:
        async with self._database.transaction(platform_wide=True):
            await self._database.execute("DELETE FROM verification_codes WHERE expire_time < now()")
            # Not sent for an hour: the mail server does not take it.
            await self._database.execute("DELETE FROM mail_requests WHERE create_time < now() - interval '1 hour'")


def sealed(profile_sealed: bytes, email_digest: bytes) -> dict[str, Any]:
    """The columns of a sealed profile: nothing of it in clear."""
    clear = {"email": None, "email_key": None, "display_name": None}
    return {"profile_sealed": profile_sealed, "email_digest": email_digest, **clear}
