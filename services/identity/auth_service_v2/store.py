"""The SQL of auth-service-v2."""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

import asyncpg

from nexus.identity.auth_service_v2.v1.faults import ClientNotFound, ProviderExists, ProviderNotFound
from services.chassis.database import Database
from services.identity.auth_service_v2.clients import Client

_CLIENT = (
    "client_id, client_name, authentication, secret_hash, redirect_uris, post_logout_redirect_uris, "
    "grant_types, scopes, audiences, first_party, create_time, jwks, id_token_algorithm, registration_hash"
)
_PROVIDER = "provider_id, title, issuer, client_id, client_secret, scopes, create_time"
_DEVICE = "user_code, grant_id, client_id, scope, state, user_id, session_id, auth_time, expire_time"
MAX_PROVIDERS = 50
KEEP_REQUESTS = timedelta(hours=24)


class ClientStore:
    """Clients, and what users let them do, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(
        self,
        client_id: str,
        *,
        client_name: str,
        authentication: str,
        secret_hash: bytes | None,
        redirect_uris: Sequence[str],
        post_logout_redirect_uris: Sequence[str],
        grant_types: Sequence[str],
        scopes: Sequence[str],
        jwks: str,
        id_token_algorithm: str,
        audiences: Sequence[str] = (),
        first_party: bool = False,
        registration_hash: bytes | None = None,
    ) -> Client:
        row = await self._database.fetchrow(
            f"""
            INSERT INTO clients (client_id, client_name, authentication, secret_hash, redirect_uris,
                                 post_logout_redirect_uris, grant_types, scopes, audiences, first_party, jwks,
                                 id_token_algorithm, registration_hash)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING {_CLIENT}
            """,
            client_id,
            client_name,
            authentication,
            secret_hash,
            redirect_uris,
            post_logout_redirect_uris,
            grant_types,
            scopes,
            audiences,
            first_party,
            jwks,
            id_token_algorithm,
            registration_hash,
        )
        assert row is not None
        return Client(**row)

    async def claim_request(self, key_hash: bytes, request_hash: bytes, client_id: str) -> asyncpg.Record | None:
        """Let a keyed request make this client; the claim of the one before it, if there was one. A twin waits here."""
        claimed = await self._database.execute(
            """
            INSERT INTO client_requests (key_hash, request_hash, client_id, expire_time)
            VALUES ($1, $2, $3, now() + $4::interval) ON CONFLICT DO NOTHING
            """,
            key_hash,
            request_hash,
            client_id,
            KEEP_REQUESTS,
        )
        if claimed:
            return None
        return await self._database.fetchrow(
            """
            SELECT request_hash, client_id FROM client_requests
            WHERE tenant_id = nexus.tenant_id() AND key_hash = $1
            """,
            key_hash,
        )

    async def update(
        self,
        client_id: str,
        *,
        client_name: str,
        authentication: str,
        secret_hash: bytes | None,
        redirect_uris: Sequence[str],
        post_logout_redirect_uris: Sequence[str],
        grant_types: Sequence[str],
        scopes: Sequence[str],
        audiences: Sequence[str],
        first_party: bool,
        jwks: str,
        id_token_algorithm: str,
    ) -> Client:
        """Raises ClientNotFound."""
        row = await self._database.fetchrow(
            f"""
            UPDATE clients SET client_name = $2, authentication = $3, secret_hash = $4, redirect_uris = $5,
                               post_logout_redirect_uris = $6, grant_types = $7, scopes = $8, audiences = $9,
                               first_party = $10, jwks = $11, id_token_algorithm = $12
            WHERE client_id = $1 RETURNING {_CLIENT}
            """,
            client_id,
            client_name,
            authentication,
            secret_hash,
            redirect_uris,
            post_logout_redirect_uris,
            grant_types,
            scopes,
            audiences,
            first_party,
            jwks,
            id_token_algorithm,
        )
        return _found(row, client_id)

    async def find(self, client_id: str) -> Client | None:
        """By what somebody says is its id."""
        try:
            known = uuid.UUID(client_id)
        except ValueError:
            return None
        row = await self._database.fetchrow(f"SELECT {_CLIENT} FROM clients WHERE client_id = $1", known)
        return Client(**row) if row is not None else None

    async def get(self, client_id: str) -> Client:
        """Raises ClientNotFound."""
        row = await self._database.fetchrow(f"SELECT {_CLIENT} FROM clients WHERE client_id = $1", client_id)
        return _found(row, client_id)

    async def page(self, before: str, size: int) -> list[Client]:
        """The newest first, from the id `before` on; ids grow with time."""
        rows = await self._database.fetch(
            f"""
            SELECT {_CLIENT} FROM clients
            WHERE tenant_id = nexus.tenant_id() AND ($1 = '' OR client_id < nullif($1, '')::uuid)
            ORDER BY clients.client_id DESC LIMIT $2
            """,
            before,
            size,
        )
        return [Client(**row) for row in rows]

    async def set_secret(self, client_id: str, secret_hash: bytes) -> None:
        await self._database.execute("UPDATE clients SET secret_hash = $2 WHERE client_id = $1", client_id, secret_hash)

    async def delete(self, client_id: str) -> str:
        """Returns its id as it was written down. Raises ClientNotFound."""
        deleted = await self._database.fetchval(
            "DELETE FROM clients WHERE client_id = $1 RETURNING client_id", client_id
        )
        if deleted is None:
            raise ClientNotFound(client_id=client_id)
        return str(deleted)

    async def spend_assertion(self, client_id: str, jti_hash: bytes, expires: datetime) -> bool:
        """Use a client assertion; says whether it was its first use."""
        return bool(
            await self._database.execute(
                """
                INSERT INTO spent_assertions (client_id, jti_hash, expire_time) VALUES ($1, $2, $3)
                ON CONFLICT DO NOTHING
                """,
                client_id,
                jti_hash,
                expires,
            )
        )

    async def insert_registration_token(self, token_hash: bytes, uses: int, expires: datetime) -> None:
        await self._database.execute(
            "INSERT INTO registration_tokens (token_hash, remaining_uses, expire_time) VALUES ($1, $2, $3)",
            token_hash,
            uses,
            expires,
        )

    async def use_registration_token(self, token_hash: bytes) -> bool:
        """Says whether it was good for one more."""
        return bool(
            await self._database.execute(
                """
                UPDATE registration_tokens SET remaining_uses = remaining_uses - 1
                WHERE token_hash = $1 AND remaining_uses > 0 AND expire_time > now()
                """,
                token_hash,
            )
        )

    async def consented(self, user_id: str, client_id: str) -> frozenset[str]:
        """The scopes that the user lets the client have."""
        scopes = await self._database.fetchval(
            "SELECT scopes FROM consents WHERE tenant_id = nexus.tenant_id() AND user_id = $1 AND client_id = $2",
            user_id,
            client_id,
        )
        return frozenset(scopes or ())

    async def consent(self, user_id: str, client_id: str, scopes: Sequence[str]) -> None:
        """Let the client have these scopes too."""
        await self._database.execute(
            """
            INSERT INTO consents AS c (user_id, client_id, scopes) VALUES ($1, $2, $3)
            ON CONFLICT (tenant_id, user_id, client_id) DO UPDATE SET grant_time = now(),
                scopes = ARRAY(SELECT DISTINCT unnest(c.scopes || excluded.scopes) ORDER BY 1)
            """,
            user_id,
            client_id,
            sorted(scopes),
        )

    async def consents_of(self, user_id: str, after: str, size: int) -> list[asyncpg.Record]:
        return await self._database.fetch(
            """
            SELECT client_id, client_name, consents.scopes, grant_time
            FROM consents JOIN clients USING (client_id)
            WHERE consents.tenant_id = nexus.tenant_id() AND user_id = $1
              AND ($2 = '' OR client_id > nullif($2, '')::uuid)
            ORDER BY consents.client_id LIMIT $3
            """,
            user_id,
            after,
            size,
        )

    async def withdraw(self, user_id: str, client_id: str) -> bool:
        return bool(
            await self._database.execute(
                "DELETE FROM consents WHERE tenant_id = nexus.tenant_id() AND user_id = $1 AND client_id = $2",
                user_id,
                client_id,
            )
        )

    async def withdraw_all(self, user_id: str) -> None:
        await self._database.execute(
            "DELETE FROM consents WHERE tenant_id = nexus.tenant_id() AND user_id = $1", user_id
        )


class GrantStore:
    """What becomes a grant once: codes and devices, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def spend(self, code_id: str, expires: datetime) -> bool:
        """Use a code; says whether it was its first use. Waits for another use of it to commit or to fail."""
        return bool(
            await self._database.execute(
                "INSERT INTO spent_codes (code_id, expire_time) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                code_id,
                expires,
            )
        )

    async def insert_device(
        self,
        device_hash: bytes,
        user_code: str,
        *,
        grant_id: str,
        client_id: str,
        scope: str,
        interval: timedelta,
        lifetime: timedelta,
    ) -> bool:
        """Says whether the user code was free."""
        return bool(
            await self._database.execute(
                """
                INSERT INTO device_codes
                    (device_hash, user_code, grant_id, client_id, scope, poll_time, poll_seconds, expire_time)
                VALUES ($1, $2, $3, $4, $5, now(), $6, now() + $7::interval)
                ON CONFLICT (tenant_id, user_code) DO NOTHING
                """,
                device_hash,
                user_code,
                grant_id,
                client_id,
                scope,
                round(interval.total_seconds()),
                lifetime,
            )
        )

    async def waiting_device(self, user_code: str) -> asyncpg.Record | None:
        """The device that waits for its user, by the code that it shows."""
        return await self._database.fetchrow(
            f"""
            SELECT {_DEVICE} FROM device_codes
            WHERE tenant_id = nexus.tenant_id() AND user_code = $1 AND state = 'pending' AND expire_time > now()
            """,
            user_code,
        )

    async def decide_device(
        self, user_code: str, state: str, user_id: str, session_id: str, auth_time: datetime
    ) -> bool:
        """Let a waiting device in, or not; says whether it still waited."""
        return bool(
            await self._database.execute(
                """
                UPDATE device_codes SET state = $2, user_id = $3, session_id = $4, auth_time = $5
                WHERE tenant_id = nexus.tenant_id() AND user_code = $1 AND state = 'pending' AND expire_time > now()
                """,
                user_code,
                state,
                user_id,
                session_id,
                auth_time,
            )
        )

    async def polled_device(self, device_hash: bytes) -> asyncpg.Record | None:
        """The device, its row locked; `early` if it asks before its time."""
        return await self._database.fetchrow(
            f"SELECT {_DEVICE}, poll_time > now() AS early FROM device_codes WHERE device_hash = $1 FOR UPDATE",
            device_hash,
        )

    async def next_poll(self, device_hash: bytes, more_seconds: int) -> None:
        """Make the device wait its interval from now on, longer by this."""
        await self._database.execute(
            """
            UPDATE device_codes SET poll_seconds = poll_seconds + $2,
                                    poll_time = now() + make_interval(secs => poll_seconds + $2)
            WHERE device_hash = $1
            """,
            device_hash,
            more_seconds,
        )

    async def forget_devices_of(self, user_id: str) -> None:
        await self._database.execute(
            "DELETE FROM device_codes WHERE tenant_id = nexus.tenant_id() AND user_id = $1", user_id
        )

    async def redeem_device(self, device_hash: bytes) -> None:
        await self._database.execute("UPDATE device_codes SET state = 'redeemed' WHERE device_hash = $1", device_hash)

    async def forget_expired(self) -> None:
        async with self._database.transaction(platform_wide=True):
            for table in ("spent_codes", "spent_assertions", "device_codes", "registration_tokens", "client_requests"):
                await self._database.execute(f"DELETE FROM {table} WHERE expire_time < now() - interval '1 minute'")


class ProviderStore:
    """Upstream providers, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(
        self, provider_id: str, title: str, issuer: str, client_id: str, client_secret: bytes | None, scopes: list[str]
    ) -> asyncpg.Record:
        """Raises ProviderExists."""
        row = await self._database.fetchrow(
            f"""
            INSERT INTO providers (provider_id, title, issuer, client_id, client_secret, scopes)
            VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING RETURNING {_PROVIDER}
            """,
            provider_id,
            title,
            issuer,
            client_id,
            client_secret,
            scopes,
        )
        if row is None:
            raise ProviderExists(provider_id=provider_id)
        return row

    async def list(self) -> list[asyncpg.Record]:
        return await self._database.fetch(
            f"SELECT {_PROVIDER} FROM providers WHERE tenant_id = nexus.tenant_id() ORDER BY provider_id LIMIT $1",
            MAX_PROVIDERS,
        )

    async def get(self, provider_id: str) -> asyncpg.Record:
        """Raises ProviderNotFound."""
        row = await self._database.fetchrow(
            f"SELECT {_PROVIDER} FROM providers WHERE tenant_id = nexus.tenant_id() AND provider_id = $1", provider_id
        )
        if row is None:
            raise ProviderNotFound(provider_id=provider_id)
        return row

    async def delete(self, provider_id: str) -> None:
        """Raises ProviderNotFound."""
        if not await self._database.execute(
            "DELETE FROM providers WHERE tenant_id = nexus.tenant_id() AND provider_id = $1", provider_id
        ):
            raise ProviderNotFound(provider_id=provider_id)


def _found(row: asyncpg.Record | None, client_id: str) -> Client:
    if row is None:
        raise ClientNotFound(client_id=client_id)
    return Client(**row)
