"""The tables of auth-service-v2, and the SQL that is particular to it."""

import uuid
from collections.abc import Sequence
from dataclasses import fields

from nexus.identity.auth_service_v2.v1.faults import ClientNotFound, ProviderNotFound
from services.chassis.database import Database
from services.chassis.table import Row, Table
from services.identity.auth_service_v2.clients import Client

MAX_PROVIDERS = 50


class Store:
    """Clients, what users let them do, and what becomes a grant once; of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database
        columns = ", ".join(field.name for field in fields(Client))
        self.clients = Table(database, "clients", key="client_id", missing=ClientNotFound, columns=columns)
        self.client_requests = Table(database, "client_requests", key="key_hash")
        self.registration_tokens = Table(database, "registration_tokens", key="token_hash")
        self.consents = Table(database, "consents", key="client_id")
        self.devices = Table(database, "device_codes", key="device_hash")
        self.providers = Table(database, "providers", key="provider_id", missing=ProviderNotFound, order="provider_id")
        self.spent_codes = Table(database, "spent_codes", key="code_id")
        self.spent_assertions = Table(database, "spent_assertions", key="jti_hash")

    async def client(self, client_id: str, *, lock: bool = False) -> Client | None:
        """By what somebody says is its id."""
        try:
            row = await self.clients.get(uuid.UUID(client_id), lock=lock)
        except ValueError:
            return None
        return Client(**row) if row is not None else None

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
        consent = await self.consents.find(user_id=user_id, client_id=client_id)
        return frozenset(consent["scopes"] if consent is not None else ())

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

    async def consents_of(self, user_id: str, after: str, size: int) -> list[Row]:
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

    async def waiting_device(self, user_code: str) -> Row | None:
        """The device that waits for its user, by the code that it shows."""
        waiting = "user_code = $1 AND state = 'pending' AND expire_time > now()"
        return next(iter(await self.devices.select(waiting, user_code)), None)

    async def forget_expired(self) -> None:
        async with self._database.transaction(platform_wide=True):
            for table in ("spent_codes", "spent_assertions", "device_codes", "registration_tokens", "client_requests"):
                await self._database.execute(f"DELETE FROM {table} WHERE expire_time < now() - interval '1 minute'")
