"""The SQL of puabo-nexus-route-optimizer."""

from datetime import timedelta
from typing import Any

from google.protobuf.message import Message

from nexus.logistics.puabo_nexus_route_optimizer.v1.faults import SolutionNotFound
from services.chassis.clock import now
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.table import Row, Table

LEASE = timedelta(seconds=15)
ATTEMPTS = 3
"""How many processes a problem may take with it before it is given up."""
KEEP = "30 days"

_HEAD = """solution_id, position, state, travel_source, seed, effort, rounds, rounds_done, parent_id, failure,
    create_time, finish_time"""


class SolutionStore:
    """The solutions of the call's tenant; those of all tenants, where it says so."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.solutions = Table(database, "solutions", key="solution_id", missing=SolutionNotFound)
        self.heads = Table(database, "solutions", key="position", columns=_HEAD)
        """Without problems and plans; the latest first."""
        self._running = Table(database, "solutions", key="solution_id", columns="solution_id")

    async def put(
        self, solution_id: str, problem: Message, *, effort: int, plan: Message | None = None, **values: Any
    ) -> Row:
        """A solution with its plan, or one that waits for it. Of two that come at once, and of one that is there, the
        first stays, unless it has failed or was cancelled."""
        begun: dict[str, Any] = {
            "position": new_id(),
            "state": "DONE" if plan is not None else "QUEUED",
            "plan": plan.SerializeToString(deterministic=True) if plan is not None else None,
            "rounds_done": 1 if plan is not None else 0,
            "finish_time": now() if plan is not None else None,
        }
        rounds = 1 if plan is not None else effort + 1
        question = problem.SerializeToString(deterministic=True)
        row = await self.solutions.insert_new(
            solution_id=solution_id, problem=question, effort=effort, rounds=rounds, **begun, **values
        )
        if row is None:
            row = await self.solutions.require(solution_id)
            if row["state"] in ("FAILED", "CANCELLED"):
                begun |= {"failure": "", "attempts": 0, "lease_time": None, "create_time": now()}
                begun_again = await self.solutions.update(solution_id, where={"state": row["state"]}, **begun)
                row = begun_again or await self.solutions.require(solution_id)
        return row

    async def cancel(self, solution_id: str) -> Row | None:
        """None if there is nothing to cancel."""
        return await self._database.fetchrow(
            """
            UPDATE solutions SET state = 'CANCELLED', finish_time = now()
            WHERE solution_id = $1 AND state IN ('QUEUED', 'RUNNING') RETURNING *
            """,
            solution_id,
        )

    async def claim(self) -> Row | None:
        """Take what has waited longest, of all tenants, or what another has let go of; `attempts` counts and, with the
        id, names the claim."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.fetchrow(
                """
                UPDATE solutions SET state = 'RUNNING', attempts = attempts + 1, rounds_done = 0,
                                     lease_time = clock_timestamp() + $1::interval
                WHERE (tenant_id, solution_id) = (
                    SELECT tenant_id, solution_id FROM solutions
                    WHERE state = 'QUEUED' OR (state = 'RUNNING' AND lease_time < clock_timestamp())
                    ORDER BY create_time LIMIT 1 FOR UPDATE SKIP LOCKED)
                RETURNING *
                """,
                LEASE,
            )

    async def renew(self, claim: Row) -> bool:
        """Whether the claim still holds: nobody has cancelled it, or taken over."""
        touched = await self._database.execute(
            """
            UPDATE solutions SET lease_time = clock_timestamp() + $3::interval
            WHERE solution_id = $1 AND attempts = $2 AND state = 'RUNNING'
            """,
            claim["solution_id"],
            claim["attempts"],
            LEASE,
        )
        return touched > 0

    async def note(self, claim: Row, **values: Any) -> None:
        """Set columns, if the claim still holds."""
        where = {"attempts": claim["attempts"], "state": "RUNNING"}
        await self._running.update(claim["solution_id"], where=where, **values)

    async def forget_old(self) -> int:
        async with self._database.transaction(platform_wide=True):
            return await self._database.execute(f"DELETE FROM solutions WHERE finish_time < now() - interval '{KEEP}'")
