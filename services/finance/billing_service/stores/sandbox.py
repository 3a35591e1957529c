"""The sandbox provider's books."""

import asyncpg

from services.chassis.database import Database

_CHARGE = "charge_id, token, currency, amount, state, failure, capture, dispute"


class SandboxStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, key: str, charge_id: str, kind: str, amount: int) -> bool:
        """Whether the key is new."""
        return bool(
            await self._database.fetchval(
                """
                INSERT INTO sandbox_requests (key, charge_id, kind, amount) VALUES ($1, $2, $3, $4)
                ON CONFLICT DO NOTHING RETURNING true
                """,
                key,
                charge_id,
                kind,
                amount,
            )
        )

    async def use(self, customer: str, token: str) -> int:
        """How often the card has been used, this time included."""
        uses: int = await self._database.fetchval(
            """
            INSERT INTO sandbox_uses AS u (customer, token, uses) VALUES ($1, $2, 1)
            ON CONFLICT (tenant_id, customer, token) DO UPDATE SET uses = u.uses + 1 RETURNING uses
            """,
            customer,
            token,
        )
        return uses

    async def insert(
        self,
        charge_id: str,
        token: str,
        currency: str,
        amount: int,
        state: str,
        failure: str,
        *,
        capture: bool,
        dispute: str,
    ) -> None:
        await self._database.execute(
            """
            INSERT INTO sandbox_charges (charge_id, token, currency, amount, state, failure, capture, dispute)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
            """,
            charge_id,
            token,
            currency,
            amount,
            state,
            failure,
            capture,
            dispute,
        )

    async def charge(self, charge_id: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(f"SELECT {_CHARGE} FROM sandbox_charges WHERE charge_id = $1", charge_id)

    async def locked(self, charge_id: str) -> asyncpg.Record:
        row = await self._database.fetchrow(
            f"SELECT {_CHARGE} FROM sandbox_charges WHERE charge_id = $1 FOR UPDATE", charge_id
        )
        assert row is not None, "the sandbox has what it gave an id to"
        return row

    async def done(self, charge_id: str, kind: str) -> list[asyncpg.Record]:
        """The captures or refunds of a charge."""
        return await self._database.fetch(
            """
            SELECT key, amount FROM sandbox_requests
            WHERE tenant_id = nexus.tenant_id() AND charge_id = $1 AND kind = $2 ORDER BY create_time
            """,
            charge_id,
            kind,
        )

    async def set_state(self, charge_id: str, state: str, failure: str = "") -> None:
        await self._database.execute(
            "UPDATE sandbox_charges SET state = $2, failure = $3 WHERE charge_id = $1", charge_id, state, failure
        )

    async def set_dispute(self, charge_id: str, dispute: str) -> None:
        await self._database.execute("UPDATE sandbox_charges SET dispute = $2 WHERE charge_id = $1", charge_id, dispute)
