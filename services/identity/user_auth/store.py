"""The SQL of user-auth."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import asyncpg

from nexus.identity.user_auth.v1.faults import EmailTaken
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.identity.user_auth.profiles import Address

_USER = (
    "user_id, profile_sealed, email_digest, email, display_name, password_hash, email_verified, roles, state, "
    "credentials_version, version, create_time, update_time"
)
_ADDRESS = "(email_digest = $1 OR email_key = $2)"
"""The user of an address. Rows that are not sealed yet have an `email_key`, the others a digest."""
_SEAL = "profile_sealed = $2, email_digest = $3, email = NULL, email_key = NULL, display_name = NULL"
UNSEALED = "SELECT tenant_id, user_id, email, display_name FROM users WHERE profile_sealed IS NULL LIMIT $1"
_TOUCH = "version = version + 1, update_time = now()"
_IDENTITY = "identity_id, user_id, issuer, subject, subject_sealed, create_time"
UNSEALED_IDENTITIES = f"SELECT tenant_id, {_IDENTITY} FROM identities WHERE subject_sealed IS NULL LIMIT $1"
_ROLE = "name, description, allow, deny, version"


class UserStore:
    """Users and the codes mailed to them, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(
        self,
        user_id: str,
        profile_sealed: bytes,
        email_digest: bytes,
        password_hash: str | None,
        roles: Iterable[str] = (),
        *,
        verified: bool = False,
    ) -> asyncpg.Record:
        """Raises EmailTaken."""
        row = await self._database.fetchrow(
            f"""
            INSERT INTO users (user_id, profile_sealed, email_digest, password_hash, roles, email_verified)
            VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT ON CONSTRAINT users_email_digest DO NOTHING RETURNING {_USER}
            """,
            user_id,
            profile_sealed,
            email_digest,
            password_hash,
            list(roles),
            verified,
        )
        if row is None:
            raise EmailTaken()
        return row

    async def provision(self, user_id: str, password_hash: str, roles: Iterable[str]) -> asyncpg.Record:
        """Give a user this password and these roles, their address verified."""
        row = await self._database.fetchrow(
            f"""
            UPDATE users SET password_hash = $2, roles = $3, email_verified = true WHERE user_id = $1 RETURNING {_USER}
            """,
            user_id,
            password_hash,
            list(roles),
        )
        assert row is not None
        return row

    async def by_id(self, user_id: str, *, lock: str = "") -> asyncpg.Record | None:
        """`lock` is "FOR UPDATE" to change the user, "FOR SHARE" to wait for those who do."""
        return await self._database.fetchrow(f"SELECT {_USER} FROM users WHERE user_id = $1 {lock}", user_id)

    async def by_email(self, address: Address, *, lock: str = "") -> asyncpg.Record | None:
        return await self._database.fetchrow(
            f"SELECT {_USER} FROM users WHERE tenant_id = nexus.tenant_id() AND {_ADDRESS} {lock}",
            address.digest,
            address.text,
        )

    async def by_digest(self, email_digest: bytes) -> asyncpg.Record | None:
        """Like `by_email`, of sealed rows only."""
        return await self._database.fetchrow(
            f"SELECT {_USER} FROM users WHERE tenant_id = nexus.tenant_id() AND email_digest = $1", email_digest
        )

    async def count(self) -> int:
        count: int = await self._database.fetchval("SELECT count(*) FROM users WHERE tenant_id = nexus.tenant_id()")
        return count

    async def page(self, after: str, size: int, *, state: str, role: str) -> list[asyncpg.Record]:
        """Users in the order of their ids, which is the order in which they came."""
        conditions, values = ["tenant_id = nexus.tenant_id()"], list[Any]([size])

        def where(condition: str, value: object) -> None:
            values.append(value)
            conditions.append(condition.format(f"${len(values)}"))

        if after:
            where("user_id > {}", after)
        if state:
            where("state = {}", state)
        if role:
            where("roles @> ARRAY[{}::text]", role)
        return await self._database.fetch(
            f"SELECT {_USER} FROM users WHERE {' AND '.join(conditions)} ORDER BY user_id LIMIT $1", *values
        )

    async def update(self, user_id: str, profile_sealed: bytes, email_digest: bytes, *, moved: bool) -> asyncpg.Record:
        """Who has moved to another address has it verified no more. Raises EmailTaken."""
        try:
            row = await self._database.fetchrow(
                f"UPDATE users SET {_SEAL}, {_TOUCH}, email_verified = email_verified AND NOT $4 "
                f"WHERE user_id = $1 RETURNING {_USER}",
                user_id,
                profile_sealed,
                email_digest,
                moved,
            )
        except asyncpg.UniqueViolationError:
            raise EmailTaken() from None
        assert row is not None
        return row

    async def seal(self, user_id: str, profile_sealed: bytes, email_digest: bytes, email: str) -> None:
        """Of a row that still has the address in clear."""
        await self._database.execute(
            f"UPDATE users SET {_SEAL} WHERE user_id = $1 AND email = $4", user_id, profile_sealed, email_digest, email
        )

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

    async def rehash(self, user_id: str, old_hash: str, password_hash: str) -> None:
        """The same password under other parameters, unless it has changed meanwhile."""
        await self._database.execute(
            "UPDATE users SET password_hash = $3 WHERE user_id = $1 AND password_hash = $2",
            user_id,
            old_hash,
            password_hash,
        )

    async def set_state(self, user_id: str, state: str) -> asyncpg.Record:
        row = await self._database.fetchrow(
            f"""
            UPDATE users SET state = $2, credentials_version = credentials_version + 1, {_TOUCH}
            WHERE user_id = $1 RETURNING {_USER}
            """,
            user_id,
            state,
        )
        assert row is not None
        return row

    async def set_roles(self, user_id: str, roles: Iterable[str]) -> asyncpg.Record:
        row = await self._database.fetchrow(
            f"UPDATE users SET roles = $2, {_TOUCH} WHERE user_id = $1 RETURNING {_USER}", user_id, sorted(roles)
        )
        assert row is not None
        return row

    async def lock_owners(self) -> None:
        """Let nobody else take the last owner from the tenant until the transaction ends."""
        await self._database.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('owners ' || nexus.tenant_id(), 0))"
        )

    async def has_other_owner(self, user_id: str) -> bool:
        found: bool = await self._database.fetchval(
            """
            SELECT EXISTS (SELECT FROM users WHERE tenant_id = nexus.tenant_id() AND roles @> '{owner}'
                           AND state = 'active' AND user_id <> $1)
            """,
            user_id,
        )
        return found

    async def erase(self, user_id: str, email_digest: bytes) -> None:
        """Everything that names the user, with what hangs on it."""
        await self._database.execute("DELETE FROM users WHERE user_id = $1", user_id)
        await self._database.execute(
            "DELETE FROM mail_requests WHERE tenant_id = nexus.tenant_id() AND email_digest = $1", email_digest
        )

    async def replace_code(self, user_id: str, purpose: str, code_hash: bytes, expires: datetime) -> None:
        """The user's only code for this purpose from now on."""
        async with self._database.transaction():
            await self.forget_codes(user_id, purpose)
            await self._database.execute(
                "INSERT INTO verification_codes (code_hash, user_id, purpose, expire_time) VALUES ($1, $2, $3, $4)",
                code_hash,
                user_id,
                purpose,
                expires,
            )

    async def forget_codes(self, user_id: str, purpose: str) -> None:
        await self._database.execute(
            "DELETE FROM verification_codes WHERE user_id = $1 AND purpose = $2", user_id, purpose
        )

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

    async def mark_verified(self, user_id: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            f"UPDATE users SET email_verified = true, {_TOUCH} WHERE user_id = $1 RETURNING {_USER}", user_id
        )

    async def request_mail(self, email_digest: bytes, purpose: str) -> None:
        await self._database.execute(
            "INSERT INTO mail_requests (request_id, email_digest, purpose) VALUES ($1, $2, $3)",
            new_id(),
            email_digest,
            purpose,
        )

    async def requested_mails(self, limit: int) -> list[asyncpg.Record]:
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

    async def take_mail_request(self, request_id: str) -> asyncpg.Record | None:
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

    async def password_policy(self) -> asyncpg.Record | None:
        return await self._database.fetchrow("SELECT min_length, min_strength FROM password_policies")

    async def set_password_policy(self, min_length: int, min_strength: int) -> None:
        await self._database.execute(
            """
            INSERT INTO password_policies (min_length, min_strength) VALUES ($1, $2)
            ON CONFLICT (tenant_id) DO UPDATE SET min_length = $1, min_strength = $2
            """,
            min_length,
            min_strength,
        )


class RoleStore:
    """The roles that a tenant made."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[asyncpg.Record]:
        return await self._database.fetch(f"SELECT {_ROLE} FROM roles ORDER BY name")

    async def named(self, names: Sequence[str], *, lock: str = "") -> list[asyncpg.Record]:
        """Those that there are; `lock` is "FOR SHARE" to keep them from being deleted meanwhile."""
        return await self._database.fetch(
            f"SELECT {_ROLE} FROM roles WHERE tenant_id = nexus.tenant_id() AND name = ANY($1) ORDER BY name {lock}",
            list(names),
        )

    async def put(self, name: str, description: str, allow: Sequence[str], deny: Sequence[str]) -> asyncpg.Record:
        row = await self._database.fetchrow(
            f"""
            INSERT INTO roles AS r (name, description, allow, deny) VALUES ($1, $2, $3, $4)
            ON CONFLICT (tenant_id, name) DO UPDATE
            SET description = $2, allow = $3, deny = $4, version = r.version + 1
            RETURNING {_ROLE}
            """,
            name,
            description,
            sorted(allow),
            sorted(deny),
        )
        assert row is not None
        return row

    async def users_of(self, name: str) -> int:
        count: int = await self._database.fetchval(
            "SELECT count(*) FROM users WHERE tenant_id = nexus.tenant_id() AND roles @> ARRAY[$1::text]", name
        )
        return count

    async def delete(self, name: str) -> None:
        await self._database.execute("DELETE FROM roles WHERE tenant_id = nexus.tenant_id() AND name = $1", name)


class IdentityStore:
    """Identities at upstream providers, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def link(self, user_id: str, issuer: str, subject_sealed: bytes, subject_digest: bytes) -> str:
        """Returns whose it is: this user's, or that of whom it belongs to."""
        owner: str = await self._database.fetchval(
            """
            INSERT INTO identities AS i (identity_id, user_id, issuer, subject_sealed, subject_digest)
            VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT ON CONSTRAINT identities_digest DO UPDATE SET issuer = i.issuer
            RETURNING user_id
            """,
            new_id(),
            user_id,
            issuer,
            subject_sealed,
            subject_digest,
        )
        return owner

    async def user_of(self, issuer: str, subject: str, subject_digest: bytes) -> str | None:
        """Rows that are not sealed yet have a `subject`, the others a digest."""
        user_id: str | None = await self._database.fetchval(
            """
            SELECT user_id FROM identities
            WHERE tenant_id = nexus.tenant_id() AND (subject_digest = $3 OR issuer = $1 AND subject = $2)
            """,
            issuer,
            subject,
            subject_digest,
        )
        return user_id

    async def seal(self, identity_id: str, subject_sealed: bytes, subject_digest: bytes) -> None:
        """Of a row that still has the subject in clear."""
        await self._database.execute(
            """
            UPDATE identities SET subject = NULL, subject_sealed = $2, subject_digest = $3
            WHERE identity_id = $1 AND subject IS NOT NULL
            """,
            identity_id,
            subject_sealed,
            subject_digest,
        )

    async def of(self, user_id: str) -> list[asyncpg.Record]:
        return await self._database.fetch(
            f"SELECT {_IDENTITY} FROM identities WHERE user_id = $1 ORDER BY identity_id", user_id
        )

    async def unlink(self, user_id: str, identity_id: str) -> bool:
        return bool(
            await self._database.execute(
                "DELETE FROM identities WHERE user_id = $1 AND identity_id = $2", user_id, identity_id
            )
        )
