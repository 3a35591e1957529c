"""The SQL of the scheduler. Queries of the call's tenant, and, in platform-wide transactions, of all tenants."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from nexus.platform.scheduler.v1.faults import JobNotFound, ScheduleNotFound
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.table import Row, Table
from services.platform.scheduler.attempts import NewJob

_RUN = (
    "r.run_id, r.schedule_id, r.scheduled_for, r.cause, r.outcome, r.job_id, r.missed_until, r.create_time, "
    "j.state AS job_state"
)
_OPEN = "state IN ('DELAYED', 'READY', 'LEASED')"
_OF_ACTIVE_TENANT = "EXISTS (SELECT FROM nexus.tenants t WHERE t.tenant_id = {table}.tenant_id AND t.state = 'active')"
_KEEP_JOBS, _KEEP_RUNS = "30 days", "90 days"

_LEASE = f"""
WITH RECURSIVE waiting AS (  -- one look at the index for each tenant, however many jobs it has
    (SELECT tenant_id FROM jobs WHERE queue = $1 AND state = 'READY' ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT j.tenant_id FROM jobs j
            WHERE j.queue = $1 AND j.state = 'READY' AND j.tenant_id > w.tenant_id ORDER BY j.tenant_id LIMIT 1)
    FROM waiting w WHERE w.tenant_id IS NOT NULL
), allowed AS (
    SELECT w.tenant_id, q.served_time, CASE WHEN coalesce(q.max_leased, 0) = 0 THEN $2 ELSE
               least($2, q.max_leased - (SELECT count(*) FROM jobs l WHERE l.tenant_id = w.tenant_id AND l.queue = $1
                                                                       AND l.state = 'LEASED')) END AS number
    FROM waiting w LEFT JOIN queues q ON q.tenant_id = w.tenant_id AND q.queue = $1
    WHERE w.tenant_id IS NOT NULL AND NOT coalesce(q.paused, false) AND {_OF_ACTIVE_TENANT.format(table="w")}
), chosen AS (
    SELECT c.tenant_id, c.job_id FROM allowed a CROSS JOIN LATERAL (
        SELECT j.tenant_id, j.job_id, row_number() OVER (ORDER BY priority DESC, run_time, sequence) AS turn
        FROM jobs j
        WHERE j.tenant_id = a.tenant_id AND j.queue = $1 AND j.state = 'READY' AND (j.serial_key = '' OR NOT EXISTS (
            SELECT FROM jobs e WHERE e.tenant_id = j.tenant_id AND e.queue = $1 AND e.serial_key = j.serial_key
            AND e.state IN ('DELAYED', 'READY', 'LEASED') AND (e.sequence < j.sequence OR e.state = 'LEASED')))
        ORDER BY priority DESC, run_time, sequence LIMIT greatest(a.number, 0)
    ) c ORDER BY c.turn, a.served_time NULLS FIRST, c.tenant_id LIMIT $2
), served AS (
    INSERT INTO queues (tenant_id, queue, served_time) SELECT tenant_id, $1, clock_timestamp()
    FROM (SELECT DISTINCT tenant_id FROM chosen) AS tenants
    ON CONFLICT (tenant_id, queue) DO UPDATE SET served_time = excluded.served_time
)
UPDATE jobs SET state = 'LEASED', lease_id = gen_random_uuid(), attempts = attempts + 1, worker = $5,
                start_time = $3, lease_expire_time = $3::timestamptz + least($4::interval, run_timeout)
WHERE (tenant_id, job_id) IN (SELECT tenant_id, job_id FROM chosen) AND state = 'READY'
RETURNING *
"""


@dataclass(frozen=True)
class NewRun:
    """A time of a schedule that is settled."""

    tenant_id: str
    schedule_id: str
    scheduled_for: datetime
    cause: str
    outcome: str
    job: NewJob | None = None
    missed_until: datetime | None = None


Settled = tuple[str, str, datetime | None, datetime | None, bool]
"""(tenant, schedule, next time, last time that had a run, whether to pause it)"""


class ScheduleStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self.schedules = Table(
            database,
            "schedules",
            key="schedule_id",
            missing=ScheduleNotFound,
            on_update="update_time = now(), etag = gen_random_uuid()",
        )

    async def now(self) -> datetime:
        """The time by which everything here goes: all replicas have the same."""
        result: datetime = await self._database.fetchval("SELECT clock_timestamp()")
        return result

    async def count_own(self) -> int:
        """How many schedules the tenant's users have made; counted by one call at a time."""
        await self._database.execute("SELECT pg_advisory_xact_lock(hashtextextended(nexus.tenant_id(), 4))")
        count: int = await self._database.fetchval(
            "SELECT count(*) FROM schedules WHERE tenant_id = nexus.tenant_id() AND name NOT LIKE '%.%'"
        )
        return count

    async def anything_due(self, now: datetime) -> bool:
        """Whether there is something to do, of whichever tenant."""
        found: bool = await self._database.fetchval(
            """
            SELECT EXISTS (SELECT FROM schedules WHERE next_time <= $1)
                OR EXISTS (SELECT FROM jobs WHERE state = 'DELAYED' AND run_time <= $1)
                OR EXISTS (SELECT FROM jobs WHERE state = 'LEASED' AND lease_expire_time <= $1)
            """,
            now,
        )
        return found

    async def lock_due(self, now: datetime, limit: int) -> list[Row]:
        """Schedules of all tenants whose time has come and that no other replica is working on."""
        return await self._database.fetch(
            f"""
            SELECT * FROM schedules s WHERE next_time <= $1 AND {_OF_ACTIVE_TENANT.format(table="s")}
            ORDER BY next_time LIMIT $2 FOR UPDATE SKIP LOCKED
            """,
            now,
            limit,
        )

    async def settle(self, settled: Sequence[Settled]) -> None:
        await self._database.executemany(
            """
            UPDATE schedules SET next_time = $3, last_time = coalesce($4, last_time), paused = $5
            WHERE tenant_id = $1 AND schedule_id = $2
            """,
            settled,
        )

    async def insert_runs(self, runs: Sequence[NewRun]) -> list[NewRun]:
        """Returns those that are new; a time that a policy left out may still be run."""
        rows = await self._database.fetch(
            """
            INSERT INTO runs AS r
                (tenant_id, run_id, schedule_id, scheduled_for, cause, outcome, job_id, missed_until)
            SELECT * FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::timestamptz[], $5::text[], $6::text[],
                                 $7::uuid[], $8::timestamptz[])
            ON CONFLICT ON CONSTRAINT runs_once DO UPDATE
                SET cause = excluded.cause, outcome = excluded.outcome, job_id = excluded.job_id, missed_until = NULL
                WHERE r.outcome <> 'ENQUEUED' AND excluded.outcome = 'ENQUEUED'
            RETURNING tenant_id, schedule_id, scheduled_for
            """,
            [run.tenant_id for run in runs],
            [new_id() for _ in runs],
            [run.schedule_id for run in runs],
            [run.scheduled_for for run in runs],
            [run.cause for run in runs],
            [run.outcome for run in runs],
            [run.job.job_id if run.job else None for run in runs],
            [run.missed_until for run in runs],
        )
        new = {(row["tenant_id"], row["schedule_id"], row["scheduled_for"]) for row in rows}
        return [run for run in runs if (run.tenant_id, run.schedule_id, run.scheduled_for) in new]

    async def runs(
        self, schedule_id: str, outcome: str | None, before: tuple[datetime, str] | None, limit: int
    ) -> list[Row]:
        """The latest time first, those after the run `before` in that order."""
        time, run_id = before or (None, None)
        return await self._database.fetch(
            f"""
            SELECT {_RUN} FROM runs r LEFT JOIN jobs j ON j.tenant_id = r.tenant_id AND j.job_id = r.job_id
            WHERE r.tenant_id = nexus.tenant_id() AND r.schedule_id = $1 AND ($2::text IS NULL OR r.outcome = $2)
              AND ($3::timestamptz IS NULL OR (r.scheduled_for, r.run_id) < ($3, $4::uuid))
            ORDER BY r.scheduled_for DESC, r.run_id DESC LIMIT $5
            """,
            schedule_id,
            outcome,
            time,
            run_id,
            limit,
        )

    async def runs_at(self, schedule_id: str, times: Sequence[datetime]) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_RUN} FROM runs r LEFT JOIN jobs j ON j.tenant_id = r.tenant_id AND j.job_id = r.job_id
            WHERE r.tenant_id = nexus.tenant_id() AND r.schedule_id = $1 AND r.scheduled_for = ANY ($2)
            ORDER BY r.scheduled_for
            """,
            schedule_id,
            times,
        )

    async def forget_old(self) -> None:
        """Drop what has been over for long, of all tenants."""
        async with self._database.transaction(platform_wide=True):
            for table, time, keep in (("runs", "create_time", _KEEP_RUNS), ("jobs", "end_time", _KEEP_JOBS)):
                await self._database.execute(
                    f"""
                    DELETE FROM {table} WHERE ctid = ANY (ARRAY(
                        SELECT ctid FROM {table} WHERE {time} < now() - interval '{keep}' LIMIT 10000))
                    """
                )


class JobStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self.jobs = Table(database, "jobs", key="job_id", missing=JobNotFound)
        self.queues = Table(database, "queues", key="queue")

    async def with_unique_key(self, queue: str, unique_key: str) -> Row | None:
        return await self._database.fetchrow(
            f"""
            SELECT * FROM jobs
            WHERE tenant_id = nexus.tenant_id() AND queue = $1 AND unique_key = $2 AND {_OPEN}
            """,
            queue,
            unique_key,
        )

    async def lock_queue(self, name: str) -> None:
        """Nobody else leases from it until the transaction ends: limits are exact, and jobs with one serial key never
        run together."""
        await self._database.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 5))", name)

    async def lease(self, queue: str, most: int, now: datetime, lease: timedelta, worker: str) -> list[Row]:
        """Hand out jobs of one queue, which is locked."""
        return await self._database.fetch(_LEASE, queue, most, now, lease, worker)

    async def extend(self, job_id: str, lease_id: str, expire_time: datetime) -> datetime | None:
        """Until when the lease lasts; None if it is lost."""
        result: datetime | None = await self._database.fetchval(
            """
            UPDATE jobs SET lease_expire_time = least($3, start_time + run_timeout)
            WHERE job_id = $1 AND lease_id = $2 AND state = 'LEASED' RETURNING lease_expire_time
            """,
            job_id,
            lease_id,
            expire_time,
        )
        return result

    async def set_done(self, job_id: str, lease_id: str, now: datetime) -> str | None:
        """Its queue; None if the lease is lost. Doing so again changes nothing."""
        queue: str | None = await self._database.fetchval(
            """
            UPDATE jobs SET state = 'DONE', end_time = coalesce(end_time, $3), lease_expire_time = NULL
            WHERE job_id = $1 AND lease_id = $2 AND state IN ('LEASED', 'DONE') RETURNING queue
            """,
            job_id,
            lease_id,
            now,
        )
        return queue

    async def cancel_of_schedules(self, schedules: Sequence[tuple[str, str]], now: datetime) -> None:
        """Cancel what (tenant, schedule) have on their queues."""
        await self._database.executemany(
            f"""
            UPDATE jobs SET state = 'CANCELLED', end_time = $3, lease_id = NULL, lease_expire_time = NULL
            WHERE tenant_id = $1 AND schedule_id = $2 AND {_OPEN}
            """,
            [(*schedule, now) for schedule in schedules],
        )

    async def busy_schedules(self, schedule_ids: Sequence[str]) -> set[str]:
        """Those of the schedules with a job that has not ended."""
        rows = await self._database.fetch(
            f"SELECT DISTINCT schedule_id FROM jobs WHERE schedule_id = ANY ($1::uuid[]) AND {_OPEN}",
            schedule_ids,
        )
        return {row["schedule_id"] for row in rows}

    async def wake(self, now: datetime, limit: int) -> list[Row]:
        """Jobs of all tenants whose time has come become ready; returns their tenants and queues."""
        return await self._database.fetch(
            """
            UPDATE jobs SET state = 'READY' WHERE (tenant_id, job_id) IN (
                SELECT tenant_id, job_id FROM jobs WHERE state = 'DELAYED' AND run_time <= $1
                ORDER BY run_time LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING tenant_id, queue
            """,
            now,
            limit,
        )

    async def lock_expired(self, now: datetime, limit: int) -> list[Row]:
        """Leased jobs of all tenants whose worker has not been heard of."""
        return await self._database.fetch(
            """
            SELECT * FROM jobs WHERE state = 'LEASED' AND lease_expire_time <= $1
            ORDER BY lease_expire_time LIMIT $2 FOR UPDATE SKIP LOCKED
            """,
            now,
            limit,
        )

    async def act_for(self, tenant_id: str) -> None:
        """In a platform-wide transaction: rows that are written from here on are the tenant's."""
        await self._database.execute("SELECT set_config('nexus.tenant_id', $1, true)", tenant_id)

    async def fillings(self, after: str, limit: int, only: str | None = None) -> list[Row]:
        """Queues with how full they are, by name, those after `after`."""
        return await self._database.fetch(
            """
            SELECT n.queue, coalesce(q.max_leased, 0) AS max_leased, coalesce(q.paused, false) AS paused, c.*
            FROM (SELECT queue FROM queues WHERE tenant_id = nexus.tenant_id()
                  UNION SELECT queue FROM jobs
                  WHERE tenant_id = nexus.tenant_id() AND state IN ('DELAYED', 'READY', 'LEASED', 'DEAD')) n
            LEFT JOIN queues q ON q.tenant_id = nexus.tenant_id() AND q.queue = n.queue
            CROSS JOIN LATERAL (
                SELECT count(*) FILTER (WHERE state = 'DELAYED') AS delayed,
                       count(*) FILTER (WHERE state = 'READY') AS ready,
                       count(*) FILTER (WHERE state = 'LEASED') AS leased,
                       count(*) FILTER (WHERE state = 'DEAD') AS dead,
                       min(run_time) FILTER (WHERE state = 'READY') AS oldest_ready_time
                FROM jobs j WHERE j.tenant_id = nexus.tenant_id() AND j.queue = n.queue
                  AND state IN ('DELAYED', 'READY', 'LEASED', 'DEAD')) c
            WHERE n.queue > $1 AND ($3::text IS NULL OR n.queue = $3) ORDER BY n.queue LIMIT $2
            """,
            after,
            limit,
            only,
        )

    async def count_by_state(self) -> list[Row]:
        """How many open and dead jobs services' queues have, and those of all tenants together."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.fetch(
                """
                SELECT CASE WHEN queue LIKE '%.%' THEN queue ELSE 'tenants' END AS name, state, count(*) AS number
                FROM jobs WHERE state IN ('DELAYED', 'READY', 'LEASED', 'DEAD') GROUP BY 1, 2
                """
            )
