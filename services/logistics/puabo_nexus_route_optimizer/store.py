"""The SQL of puabo-nexus-route-optimizer."""

from datetime import timedelta

import asyncpg

from services.chassis.database import Database
from services.chassis.ids import new_id

LEASE = timedelta(seconds=15)
ATTEMPTS = 3
"""How many processes a problem may take with it before it is given up."""
KEEP = "30 days"

_HEAD = """solution_id::text, position::text, state, travel_source, seed, effort, rounds, rounds_done, parent_id::text,
    failure, create_time, finish_time"""
_SOLUTION = f"{_HEAD}, problem, plan, history"


class SolutionStore:
    """The solutions of the call's tenant; those of all tenants, where it says so."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def by_id(self, solution_id: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(f"SELECT {_SOLUTION} FROM solutions WHERE solution_id = $1", solution_id)

    async def page(self, before: str | None, limit: int) -> list[asyncpg.Record]:
        """The latest first, those before the position `before`; without problems and plans."""
        return await self._database.fetch(
            f"""
            SELECT {_HEAD} FROM solutions
            WHERE tenant_id = nexus.tenant_id() AND ($1::uuid IS NULL OR position < $1)
            ORDER BY position DESC LIMIT $2
            """,
            before,
            limit,
        )

    async def put(
        self,
        solution_id: str,
        problem: bytes,
        *,
        seed: int,
        effort: int,
        plan: bytes | None = None,
        history: bytes = b"",
        travel_source: str = "",
        parent_id: str | None = None,
    ) -> asyncpg.Record:
        """A solution with its plan, or one that waits for it. Of two that come at once, and of one that is there, the
        first stays, unless it has failed or was cancelled."""
        row = await self._database.fetchrow(
            f"""
            INSERT INTO solutions AS s (solution_id, position, state, problem, plan, history, travel_source, seed,
                                        effort, rounds, rounds_done, parent_id, finish_time)
            VALUES ($1, $2, CASE WHEN $4::bytea IS NULL THEN 'QUEUED' ELSE 'DONE' END, $3, $4, $5, $6, $7, $8,
                    CASE WHEN $4 IS NULL THEN $8 + 1 ELSE 1 END, CASE WHEN $4 IS NULL THEN 0 ELSE 1 END, $9,
                    CASE WHEN $4 IS NULL THEN NULL ELSE now() END)
            ON CONFLICT (tenant_id, solution_id) DO UPDATE
            SET position = excluded.position, state = excluded.state, plan = excluded.plan, failure = '', attempts = 0,
                rounds_done = excluded.rounds_done, lease_time = NULL, create_time = now(),
                finish_time = excluded.finish_time
            WHERE s.state IN ('FAILED', 'CANCELLED')
            RETURNING {_SOLUTION}
            """,
            solution_id,
            new_id(),
            problem,
            plan,
            history,
            travel_source,
            seed,
            effort,
            parent_id,
        )
        if row is None:
            row = await self.by_id(solution_id)
        assert row is not None, "it has just been found"
        return row

    async def cancel(self, solution_id: str) -> asyncpg.Record | None:
        """None if there is nothing to cancel."""
        return await self._database.fetchrow(
            f"""
            UPDATE solutions SET state = 'CANCELLED', finish_time = now()
            WHERE solution_id = $1 AND state IN ('QUEUED', 'RUNNING') RETURNING {_SOLUTION}
            """,
            solution_id,
        )

    async def claim(self) -> asyncpg.Record | None:
        """Take what has waited longest, of all tenants, or what another has let go of; `attempts` counts and, with the
        id, names the claim."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.fetchrow(
                f"""
                UPDATE solutions SET state = 'RUNNING', attempts = attempts + 1, rounds_done = 0,
                                     lease_time = clock_timestamp() + $1::interval
                WHERE (tenant_id, solution_id) = (
                    SELECT tenant_id, solution_id FROM solutions
                    WHERE state = 'QUEUED' OR (state = 'RUNNING' AND lease_time < clock_timestamp())
                    ORDER BY create_time LIMIT 1 FOR UPDATE SKIP LOCKED)
                RETURNING {_SOLUTION}, tenant_id, attempts
                """,
                LEASE,
            )

    async def renew(self, solution_id: str, attempt: int) -> bool:
        """Whether the claim still holds: nobody has cancelled it, or taken over."""
        return bool(
            await self._database.execute(
                "UPDATE solutions SET lease_time = clock_timestamp() + $3::interval "
                "WHERE solution_id = $1 AND attempts = $2 AND state = 'RUNNING'",
                solution_id,
                attempt,
                LEASE,
            )
        )

    async def progress(self, solution_id: str, attempt: int, rounds_done: int, plan: bytes, travel_source: str) -> None:
        await self._database.execute(
            "UPDATE solutions SET rounds_done = $3, plan = $4, travel_source = $5 "
            "WHERE solution_id = $1 AND attempts = $2 AND state = 'RUNNING'",
            solution_id,
            attempt,
            rounds_done,
            plan,
            travel_source,
        )

    async def finish(self, solution_id: str, attempt: int, failure: str = "") -> None:
        await self._database.execute(
            "UPDATE solutions SET state = CASE WHEN $3 = '' THEN 'DONE' ELSE 'FAILED' END, failure = $3, "
            "finish_time = now() WHERE solution_id = $1 AND attempts = $2 AND state = 'RUNNING'",
            solution_id,
            attempt,
            failure,
        )

    async def forget_old(self) -> int:
        async with self._database.transaction(platform_wide=True):
            return await self._database.execute(f"DELETE FROM solutions WHERE finish_time < now() - interval '{KEEP}'")
