"""The board: where jobs are put up, handed out, and come back from."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg
from prometheus_client import Counter, Gauge

from nexus.platform.scheduler.v1 import events_pb2
from nexus.platform.scheduler.v1 import jobs_pb2 as pb
from nexus.platform.scheduler.v1.faults import JobEnded, JobNotRetryable, LeaseLost
from nexus.type.v1.faults import Conflict
from services.chassis.context import current_tenant
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.service import Service
from services.chassis.table import Row
from services.platform.scheduler.attempts import NewJob, after_failure
from services.platform.scheduler.bell import LOOK_SECONDS, Bell
from services.platform.scheduler.names import owner_of, require_tenants
from services.platform.scheduler.store import JobStore, ScheduleStore

_LEASE = timedelta(seconds=30)
_STATES = ("DELAYED", "READY", "LEASED", "DEAD")

JOBS = Gauge("nexus_jobs", "Jobs by queue, those of tenants' own queues together", ["queue", "state"])
ENDED = Counter("nexus_job_attempts_total", "Attempts of jobs by what became of them", ["queue", "outcome"])

Now = Callable[[], Awaitable[datetime]]
"""Tells the time by which jobs and schedules go."""


def topic(tenant_id: str, queue: str) -> str:
    """What the bell rings for: a service's queue is one for all tenants."""
    return queue if owner_of(queue) else f"{tenant_id} {queue}"


class Board:
    def __init__(self, database: Database, events: Events, bell: Bell, now: Now) -> None:
        self._database = database
        self._store = JobStore(database)
        self._jobs = self._store.jobs
        self._events = events
        self._bell = bell
        self.now = now

    async def put_up(self, job: NewJob, now: datetime) -> tuple[Row, bool]:
        """The job's row, and whether another with its unique key was there already, which it is then."""
        async with self._database.transaction():
            row = await self._jobs.insert_new(**job.row(now))
            if row is None:
                row = await self._store.with_unique_key(job.queue, job.unique_key)
                if row is None:  # it ended between the two looks
                    raise Conflict(retry_after=0.05)
                return row, True
            self.ring([topic(row["tenant_id"], job.queue)])
            return row, False

    async def lease(self, queues: Sequence[str], request: Any, *, platform_wide: bool = False) -> list[Row]:
        """Rows of jobs that are the caller's from now on; waits for the first as long as the request allows."""
        loop = asyncio.get_running_loop()
        until = loop.time() + request.wait.ToTimedelta().total_seconds()
        topics = [topic(current_tenant() or "", queue) for queue in queues]
        with self._bell.listening(topics) as rung:
            while True:
                rung.clear()
                jobs = await self._lease_now(queues, request, platform_wide=platform_wide)
                left = until - loop.time()
                if jobs or left <= 0 or self._bell.closed:
                    return jobs
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(rung.wait(), min(left, LOOK_SECONDS))

    async def _lease_now(self, queues: Sequence[str], request: Any, *, platform_wide: bool) -> list[Row]:
        duration = request.lease.ToTimedelta() if request.HasField("lease") else _LEASE
        most = request.max_jobs or 1
        jobs: list[Row] = []
        async with self._database.transaction(platform_wide=platform_wide):
            now = await self.now()
            for queue in sorted(queues):  # in one order, so that two who lease from several do not lock each other out
                if most > len(jobs):
                    await self._store.lock_queue(topic(current_tenant() or "", queue))
                    jobs += await self._store.lease(queue, most - len(jobs), now, duration, request.worker)
        return jobs

    async def extend(self, request: Any) -> datetime:
        """Until when the lease lasts. Raises LeaseLost."""
        now = await self.now()
        duration = request.lease.ToTimedelta() if request.HasField("lease") else _LEASE
        expire_time = await self._store.extend(request.job_id, request.lease_id, now + duration)
        if expire_time is None or expire_time <= now:
            raise LeaseLost(job_id=request.job_id)
        return expire_time

    async def finish(self, request: Any) -> None:
        """Raises LeaseLost."""
        async with self._database.transaction():
            queue = await self._store.set_done(request.job_id, request.lease_id, await self.now())
            if queue is None:
                raise LeaseLost(job_id=request.job_id)
            self._note(queue, "done")

    async def fail(self, request: Any) -> str:
        """The state of the job afterwards. Raises LeaseLost."""
        async with self._database.transaction():
            job = await self._jobs.get(request.job_id, lock=True)
            if job is None or job["lease_id"] != request.lease_id or job["state"] in ("DONE", "CANCELLED"):
                raise LeaseLost(job_id=request.job_id)
            if job["state"] != "LEASED":
                return str(job["state"])
            return await self._fail(job, request.failure, await self.now())

    async def cancel(self, job_id: str) -> Row:
        """Raises JobNotFound, JobEnded, and OwnedByService for a service's."""
        async with self._database.transaction():
            job = await self._jobs.require(job_id, lock=True)
            require_tenants(job["queue"])
            if job["state"] in ("DONE", "DEAD"):
                raise JobEnded(job_id=job_id, state=job["state"].lower())
            if job["state"] != "CANCELLED":
                job = await self._jobs.change(
                    job_id, state="CANCELLED", end_time=await self.now(), lease_id=None, lease_expire_time=None
                )
                self._note(job["queue"], "cancelled")
            return job

    async def bring_back(self, job_id: str) -> Row:
        """Give a job that has ended its attempts again. Raises JobNotFound, JobNotRetryable."""
        try:
            async with self._database.transaction():
                job = await self._jobs.require(job_id, lock=True)
                if job["state"] == "DONE":
                    raise JobNotRetryable(job_id=job_id, why="it is done")
                if job["state"] in ("DEAD", "CANCELLED"):
                    job = await self._jobs.change(
                        job_id, state="READY", attempts=0, run_time=await self.now(), end_time=None
                    )
                    self.ring([topic(job["tenant_id"], job["queue"])])
                return job
        except asyncpg.UniqueViolationError:
            raise JobNotRetryable(job_id=job_id, why="another has its unique key") from None

    async def tend(self, now: datetime, limit: int) -> int:
        """Wake jobs of all tenants whose time has come, and take back those whose lease has expired; returns how
        many."""
        async with self._database.transaction(platform_wide=True):
            woken = await self._store.wake(now, limit)
            expired = await self._store.lock_expired(now, limit)
            for job in expired:
                await self._store.act_for(job["tenant_id"])
                await self._fail(job, pb.Failure(error=f"the lease of {job['worker'] or 'its worker'} expired"), now)
            self.ring({topic(row["tenant_id"], row["queue"]) for row in woken})
        return len(woken) + len(expired)

    async def measure(self) -> None:
        """Tell Prometheus how full the queues are."""
        counts: dict[str, dict[str, int]] = {}
        for row in await self._store.count_by_state():
            counts.setdefault(row["name"], dict.fromkeys(_STATES, 0))[row["state"]] = row["number"]
        JOBS.clear()
        for queue, by_state in counts.items():
            for state, number in by_state.items():
                JOBS.labels(queue, state.lower()).set(number)

    async def _fail(self, job: Row, failure: pb.Failure, now: datetime) -> str:
        then = after_failure(job, failure, now)
        await self._jobs.change(
            job["job_id"],
            state=then.state,
            run_time=then.run_time,
            attempts=then.attempts,
            last_error=failure.error or job["last_error"],
            lease_expire_time=None,
            end_time=then.run_time if then.state == "DEAD" else None,
        )
        self._note(job["queue"], "released" if failure.released else "failed")
        if then.state == "READY":
            self.ring([topic(job["tenant_id"], job["queue"])])
        elif then.state == "DEAD":
            self._note(job["queue"], "dead")
            died = events_pb2.JobDied(
                job_id=job["job_id"], queue=job["queue"], schedule_id=job["schedule_id"], attempts=then.attempts
            )
            await self._events.publish(died, job["job_id"])
        return then.state

    def ring(self, topics: Iterable[str]) -> None:
        """When the transaction has committed."""
        self._database.after_commit(lambda: self._bell.ring(*topics))

    def _note(self, queue: str, outcome: str) -> None:
        name = queue if owner_of(queue) else "tenants"
        self._database.after_commit(ENDED.labels(name, outcome).inc)


def board_of(service: Service) -> Board:
    """The one that is shared: whoever waits at it hears the bell of all replicas."""
    bell = Bell(service.redis)
    service.every(LOOK_SECONDS, bell.listen)
    return Board(service.database, service.events, bell, ScheduleStore(service.database).now)
