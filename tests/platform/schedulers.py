"""Schedulers on a database of the test's own, by a clock that the test sets."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import redis.asyncio
from google.protobuf import json_format
from pydantic import SecretStr

from mesh.local.embedded import Postgres, Redis
from mesh.local.platform import make_folders
from nexus.platform.scheduler.v1 import jobs_pb2, schedules_pb2
from services.chassis.config import Settings
from services.chassis.context import acting_for
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.ids import new_id
from services.chassis.migrations import migrate
from services.chassis.spec import discover
from services.chassis.tenants import create_tenant
from services.platform.scheduler import times
from services.platform.scheduler.attempts import requested
from services.platform.scheduler.bell import Bell
from services.platform.scheduler.board import Board
from services.platform.scheduler.store import JobStore, ScheduleStore
from services.platform.scheduler.ticker import Ticker
from tests.chaos.servers import Server

SPEC = discover()["scheduler"]


@dataclass
class Scheduler:
    """One replica."""

    ticker: Ticker
    board: Board
    schedules: ScheduleStore
    jobs: JobStore
    database: Database


@dataclass
class Bench:
    """Replicas on one database, which all go by `now`."""

    settings: Settings
    admin: asyncpg.Connection
    now: datetime
    stack: AsyncExitStack
    broker: "redis.asyncio.Redis"
    replicas: list[Scheduler] = field(default_factory=list)
    tenant_id: str = ""

    async def scheduler(self) -> Scheduler:
        database = Database(self.settings, SPEC)
        await database.start()
        self.stack.push_async_callback(database.stop)
        board = Board(database, Events(SPEC.id, database, self.broker), Bell(self.broker), self.clock)
        ticker = Ticker(database, board)
        replica = Scheduler(ticker, board, ScheduleStore(database), JobStore(database), database)
        self.replicas.append(replica)
        return replica

    async def clock(self) -> datetime:
        return self.now

    async def new_tenant(self) -> str:
        tenant_id = f"t-{new_id()}"
        await create_tenant(self.admin, tenant_id, "Test")
        return tenant_id

    async def create(self, spec: dict[str, Any]) -> str:
        """A schedule of the tenant; returns its id."""
        parsed = json_format.ParseDict(
            {"name": "nightly", "job": {"queue": "work"}, **spec}, schedules_pb2.ScheduleSpec()
        )
        with acting_for(self.tenant_id):
            row = await self.replicas[0].schedules.schedules.insert(
                schedule_id=new_id(),
                name=parsed.name,
                spec=parsed,
                next_time=times.next_time(parsed.timing, self.now),
                paused=False,
            )
        schedule_id: str = row["schedule_id"]
        return schedule_id

    async def runs(self, schedule_id: str) -> list[tuple[datetime, str]]:
        rows = await self.admin.fetch(
            "SELECT scheduled_for, outcome FROM scheduler.runs WHERE schedule_id = $1 ORDER BY scheduled_for",
            schedule_id,
        )
        return [(row["scheduled_for"], row["outcome"]) for row in rows]

    async def enqueue(self, queue: str = "work", replica: int = 0, **request: Any) -> str:
        template = {"queue": queue, **request.pop("job", {})}
        parsed = json_format.ParseDict({"job": template, **request}, jobs_pb2.EnqueueJobRequest())
        with acting_for(self.tenant_id):
            row, _ = await self.replicas[replica].board.put_up(requested(parsed, self.now), self.now)
        job_id: str = row["job_id"]
        return job_id

    async def lease(self, number: int = 1, queue: str = "work", replica: int = 0) -> list[Any]:
        request = jobs_pb2.LeaseJobsRequest(queue=queue, max_jobs=number, worker="test")
        board = self.replicas[replica].board
        if "." in queue:
            return await board.lease([queue], request, platform_wide=True)
        with acting_for(self.tenant_id):
            return await board.lease([queue], request)

    async def ack(self, job: Any) -> None:
        with acting_for(job["tenant_id"]):
            await self.replicas[0].board.finish(jobs_pb2.AckJobRequest(job_id=job["job_id"], lease_id=job["lease_id"]))

    async def nack(self, job: Any, **failure: Any) -> str:
        with acting_for(job["tenant_id"]):
            return await self.replicas[0].board.fail(
                jobs_pb2.NackJobRequest(
                    job_id=job["job_id"], lease_id=job["lease_id"], failure=jobs_pb2.Failure(**failure)
                )
            )

    async def job(self, job_id: str) -> asyncpg.Record:
        row = await self.admin.fetchrow("SELECT *, lease_id::text FROM scheduler.jobs WHERE job_id = $1", job_id)
        assert row is not None
        return row

    async def states(self, schedule_id: str) -> list[str]:
        rows = await self.admin.fetch(
            "SELECT state FROM scheduler.jobs WHERE schedule_id = $1 ORDER BY scheduled_for", schedule_id
        )
        return [row["state"] for row in rows]

    async def pass_time(self, **by: float) -> None:
        """Let time pass and everything that came up be done."""
        self.now += timedelta(**by)
        await self.replicas[0].ticker.round()


async def databases(folder: Any) -> AsyncIterator[Settings]:
    """PostgreSQL with the scheduler's tables, and Redis."""
    settings = Settings(home=folder / "home")
    make_folders(settings)
    database, broker = Server(Postgres(settings)), Server(Redis(settings))
    try:
        await database.start()
        await broker.start()
        settings = Settings(home=settings.home, database_url=SecretStr(database.url), redis_url=SecretStr(broker.url))
        await migrate(settings, [SPEC])
        yield settings
    finally:
        database.kill()
        broker.kill()


async def bench_on(settings: Settings, now: datetime) -> AsyncIterator[Bench]:
    assert settings.database_url is not None
    assert settings.redis_url is not None
    async with AsyncExitStack() as stack:
        admin = await asyncpg.connect(settings.database_url.get_secret_value())
        stack.push_async_callback(admin.close)
        broker = redis.asyncio.Redis.from_url(settings.redis_url.get_secret_value())
        stack.push_async_callback(broker.aclose)
        await admin.execute("TRUNCATE scheduler.schedules, scheduler.runs, scheduler.jobs, scheduler.queues")
        bench = Bench(settings, admin, now, stack, broker)
        bench.tenant_id = await bench.new_tenant()
        await bench.scheduler()
        yield bench


def heartbeat(job: Any) -> jobs_pb2.HeartbeatJobRequest:
    return jobs_pb2.HeartbeatJobRequest(job_id=job["job_id"], lease_id=job["lease_id"])
