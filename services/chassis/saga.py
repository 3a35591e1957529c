"""Sagas: work across services that ends all done or all undone, whatever dies on the way.

    due row ─▶ lease ─▶ load ─▶ advance: one step elsewhere, its outcome recorded ─▶ advance … ─▶ rest until due again

The service has a row for each case (an order, a loan, a ride) and says how to `load` it and how to `advance` it by one
step. This engine decides who does so, and when: one process at a time holds the lease of a row; if it dies, another
goes on after the lease. There is no leader. For that to be safe

- a step must bear being done twice: its calls carry keys that follow from the case and the step;
- what it did is recorded by a write that fails if the row has changed since it was loaded (raise Changed);
- the lease is longer than any call that a step makes.

The table has the columns

    due_time timestamptz        -- when to look at it; NULL when there is nothing to do
    lease_until timestamptz     -- who works on it has it until then
    attempts integer NOT NULL DEFAULT 0, attention text NOT NULL DEFAULT ''   -- since it last got on, and what failed
"""

import asyncio
import contextvars
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar

from grpc import StatusCode

from services.chassis.context import acting_for, current_tenant
from services.chassis.database import Database
from services.chassis.errors import Fault

Case = TypeVar("Case")

PERMANENT = {
    StatusCode.FAILED_PRECONDITION,
    StatusCode.NOT_FOUND,
    StatusCode.INVALID_ARGUMENT,
    StatusCode.ALREADY_EXISTS,
    StatusCode.OUT_OF_RANGE,
}
"""Faults with these codes are answers: the same call has the same one tomorrow. All others are worth another try."""
ATTENTION_AFTER = 4
"""So many attempts without getting on are told to people."""
_FIRST_WAIT = 0.2

_TASKS: set["asyncio.Task[Any]"] = set()
"""Whatever nobody waits for must be held by somebody."""

logger = logging.getLogger(__name__)


class Later(Exception):  # noqa: N818  an answer, not a failure
    """A step has no outcome yet; try again."""


class Changed(Exception):  # noqa: N818  an answer, not a failure
    """Somebody changed the case since it was loaded; nothing was recorded."""


class _Lease(NamedTuple):
    tenant_id: str
    case_id: str
    due: datetime
    until: datetime


class Saga(Generic[Case]):
    """The engine of one kind of case.

    `advance` does the next step and returns the case after it, or None when there is nothing to do now; `due` says
    when such a case is to be looked at again, if ever.
    """

    def __init__(
        self,
        database: Database,
        table: str,
        key: str,
        *,
        load: Callable[[str], Awaitable[Case]],
        advance: Callable[[Case], Awaitable[Case | None]],
        due: Callable[[Case], datetime | None],
        lease: timedelta,
        workers: int,
        poll_seconds: float,
        longest_wait: float,
    ) -> None:
        """`longest_wait` is the longest time between two attempts, in seconds; from the first on it doubles."""
        self._database, self._load, self._advance, self._due = database, load, advance, due
        self._lease, self._workers, self._poll_seconds = lease, workers, poll_seconds
        self._running: dict[str, asyncio.Task[Any]] = {}
        is_due = "due_time <= clock_timestamp() AND (lease_until IS NULL OR lease_until <= clock_timestamp())"
        mine = f"WHERE {key} = $1 AND lease_until = $2"
        taken = f"RETURNING tenant_id, {key}::text, due_time, lease_until"
        until = "lease_until = clock_timestamp() + $2::interval"
        self._claim = f"UPDATE {table} SET {until} WHERE {key} = $1 AND {is_due} {taken}"
        self._claim_due = f"""
            UPDATE {table} SET {until} WHERE {key} IN (
                SELECT {key} FROM {table} WHERE {is_due}
                ORDER BY due_time LIMIT $1 FOR UPDATE SKIP LOCKED
            ) {taken}
        """
        self._renew = f"UPDATE {table} SET lease_until = clock_timestamp() + $3::interval {mine} RETURNING lease_until"
        # Somebody may have set another time meanwhile, to wake it: that one holds, unless ours is earlier.
        self._rest = f"""
            UPDATE {table} SET lease_until = NULL, attempts = 0, attention = '',
                due_time = CASE WHEN due_time = $3 THEN $4 ELSE least(due_time, $4) END {mine}
            RETURNING due_time <= clock_timestamp()
        """
        self._postpone = f"""
            UPDATE {table} SET lease_until = NULL, attempts = attempts + 1,
                attention = CASE WHEN attempts + 1 >= {ATTENTION_AFTER} THEN $3 ELSE attention END,
                due_time = CASE WHEN due_time = $4 THEN clock_timestamp() + least(
                    $5 * power(2, least(attempts, 20)), {longest_wait}) * interval '1 second' ELSE due_time END {mine}
        """

    def start(self, case_id: str) -> "asyncio.Task[Any]":
        """Go on with a case, if it is due and nobody does. The task is no part of the call: it may outlive it. It ends
        when there is nothing to do, or when the case waits for another attempt."""
        tenant_id = current_tenant()
        assert tenant_id is not None, "a case belongs to a tenant"
        running = self._running.get(case_id)
        if running is None or running.done():
            running = self._running[case_id] = _task(self._claim_and_run(tenant_id, case_id))
            running.add_done_callback(lambda _: self._running.pop(case_id, None))
        return running

    async def work(self) -> None:
        """Go on with what is due, of all tenants, until nothing is. A job: replicas may do so at once."""
        running: set[asyncio.Task[Any]] = set()
        try:
            while True:
                if free := self._workers - len(running):
                    async with self._database.transaction(platform_wide=True):
                        rows = await self._database.fetch(self._claim_due, free, self._lease)
                    running |= {_task(self._run(_Lease(*row))) for row in rows}
                if not running:
                    return
                _, running = await asyncio.wait(
                    running, timeout=self._poll_seconds, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            for task in running:
                task.cancel()

    async def _claim_and_run(self, tenant_id: str, case_id: str) -> None:
        with acting_for(tenant_id):
            row = await self._database.fetchrow(self._claim, case_id, self._lease)
        if row is not None:
            again = await self._run(_Lease(*row))
            if again:
                await self._claim_and_run(tenant_id, case_id)

    async def _run(self, lease: _Lease) -> bool:
        """Whether it has been woken meanwhile."""
        with acting_for(lease.tenant_id):
            try:
                return await self._get_on(lease)
            except Exception:  # the lease ends by itself, and the next one tries
                logger.exception("a case was left where it is", extra={"case": lease.case_id})
                return False

    async def _get_on(self, lease: _Lease) -> bool:
        held_since = time.monotonic()
        while True:
            try:
                case = await self._load(lease.case_id)
                while (after := await self._advance(case)) is not None:
                    case = after
                    if time.monotonic() - held_since > self._lease.total_seconds() / 3:
                        until = await self._database.fetchval(self._renew, lease.case_id, lease.until, self._lease)
                        if until is None:
                            return False
                        lease, held_since = lease._replace(until=until), time.monotonic()
            except Changed:
                continue
            except Exception as error:
                await self._put_off(lease, error)
                return False
            return bool(
                await self._database.fetchval(self._rest, lease.case_id, lease.until, lease.due, self._due(case))
            )

    async def _put_off(self, lease: _Lease, error: Exception) -> None:
        if not isinstance(error, Later | Fault):
            logger.error("a step failed and will be tried again", exc_info=error, extra={"case": lease.case_id})
        why = f"{type(error).__name__}: {error}"[:500]
        first_wait = _FIRST_WAIT * random.uniform(0.8, 1.2)  # noqa: S311  cases must not march in step
        await self._database.execute(self._postpone, lease.case_id, lease.until, why, lease.due, first_wait)


def _task(work: Any) -> "asyncio.Task[Any]":
    """A task of nobody's call: no deadline, no user, no transaction."""
    task = asyncio.create_task(work, context=contextvars.Context())
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)
    return task
