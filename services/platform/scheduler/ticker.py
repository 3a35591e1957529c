"""The ticker: settles the times of schedules as they come, in every replica at once, by the database's clock."""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.protobuf import json_format
from prometheus_client import Counter, Histogram

from nexus.platform.scheduler.v1 import schedules_pb2 as pb
from services.chassis.database import Database
from services.platform.scheduler import times
from services.platform.scheduler.attempts import NewJob, new_job
from services.platform.scheduler.board import Board, topic
from services.platform.scheduler.store import JobStore, NewRun, ScheduleStore, Settled

BATCH = 100

RUNS = Counter("nexus_schedule_runs_total", "Times of schedules by what became of them", ["outcome"])
LATENESS = Histogram("nexus_schedule_lateness_seconds", "From a schedule's time to the job on its queue")

logger = logging.getLogger(__name__)


def spec_of(schedule: Any) -> pb.ScheduleSpec:
    return json_format.Parse(schedule["spec"], pb.ScheduleSpec(), ignore_unknown_fields=True)


def job_at(spec: pb.ScheduleSpec, schedule_id: str, scheduled_for: datetime, overlap: int) -> NewJob:
    """The job of one run."""
    return new_job(
        spec.job,
        scheduled_for + times.jitter(schedule_id, scheduled_for, spec.timing.jitter.ToTimedelta()),
        serial_key=f"schedule {schedule_id}" if overlap == pb.OVERLAP_POLICY_QUEUE else "",
        schedule_id=schedule_id,
        scheduled_for=scheduled_for,
    )


class Ticker:
    def __init__(self, database: Database, board: Board) -> None:
        self._database = database
        self._schedules = ScheduleStore(database)
        self._jobs = JobStore(database)
        self._board = board

    async def round(self) -> int:
        """Do everything that is due, of all tenants; returns how much that was."""
        async with self._database.transaction(platform_wide=True):
            now = await self._board.now()
            if not await self._schedules.anything_due(now):
                return 0
        done = 0
        while number := await self.tick(now) + await self._board.tend(now, BATCH):
            done += number
        return done

    async def tick(self, now: datetime) -> int:
        """Settle a batch of schedules whose time has come; returns how many. What commits here has happened: a run
        for each time, its job, and the next time."""
        async with self._database.transaction(platform_wide=True):
            schedules = await self._schedules.lock_due(now, BATCH)
            if not schedules:
                return 0
            busy = await self._jobs.busy_schedules([schedule["schedule_id"] for schedule in schedules])
            runs: list[NewRun] = []
            settled: list[Settled] = []
            cancelled = []
            for schedule in schedules:
                key = (schedule["tenant_id"], schedule["schedule_id"])
                try:
                    spec = spec_of(schedule)
                    due = times.due(spec.timing, spec.catch_up, schedule["next_time"], now)
                except Exception:  # what it was accepted with, such as its time zone, is no more
                    logger.exception("a schedule has no times any more and is paused", extra={"schedule": key})
                    settled.append((*key, None, None, True))
                    continue
                if spec.overlap == pb.OVERLAP_POLICY_CANCEL and due.times and key[1] in busy:
                    cancelled.append(key)
                runs += plan(schedule, spec, due, busy=key[1] in busy)
                settled.append((*key, due.next_time, due.times[-1] if due.times else None, False))
            await self._jobs.cancel_of_schedules(cancelled, now)
            await self.start(runs, now)
            await self._schedules.settle(settled)
        return len(schedules)

    async def start(self, runs: Sequence[NewRun], now: datetime) -> list[NewRun]:
        """Write runs and their jobs, in the running transaction; returns those that are new."""
        new = await self._schedules.insert_runs(runs)
        jobs = [(run.tenant_id, run.job) for run in new if run.job is not None]
        await self._jobs.jobs.insert_all({"tenant_id": tenant, **job.row(now)} for tenant, job in jobs)
        self._board.ring({topic(tenant, job.queue) for tenant, job in jobs if job.run_time <= now})
        self._database.after_commit(lambda: _count(new, now))
        return new


def _count(runs: Sequence[NewRun], now: datetime) -> None:
    for run in runs:
        RUNS.labels(run.outcome.lower()).inc()
        if run.cause == "TIME" and run.outcome == "ENQUEUED":
            LATENESS.observe((now - run.scheduled_for).total_seconds())


def plan(schedule: Any, spec: pb.ScheduleSpec, due: times.Due, *, busy: bool) -> list[NewRun]:
    """The runs for times that have come; `busy` says whether a job of an earlier one has not ended."""
    tenant_id, schedule_id = schedule["tenant_id"], schedule["schedule_id"]
    runs = []
    if due.missed is not None:
        first, until = due.missed
        runs.append(NewRun(tenant_id, schedule_id, first, "TIME", "MISSED", missed_until=until))
    skips = spec.overlap in (pb.OVERLAP_POLICY_SKIP, pb.OVERLAP_POLICY_UNSPECIFIED)
    for scheduled_for in due.times:
        replaced = spec.overlap == pb.OVERLAP_POLICY_CANCEL and scheduled_for != due.times[-1]
        if (skips and busy) or replaced:
            runs.append(NewRun(tenant_id, schedule_id, scheduled_for, "TIME", "SKIPPED"))
        else:
            job = job_at(spec, schedule_id, scheduled_for, spec.overlap)
            runs.append(NewRun(tenant_id, schedule_id, scheduled_for, "TIME", "ENQUEUED", job))
            busy = True
    return runs
