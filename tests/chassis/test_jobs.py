"""Jobs of services: done once in effect, whatever fails on the way, and asked for in a transaction."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
import redis.asyncio
from google.protobuf.duration_pb2 import Duration

from nexus.platform.scheduler.v1.events_pb2 import JobRequested
from nexus.platform.scheduler.v1.faults import OwnedByService
from nexus.platform.scheduler.v1.jobs_pb2 import JobTemplate, Retry
from nexus.platform.scheduler.v1.schedules_pb2 import Interval, ScheduleSpec, Timing
from nexus.platform.scheduler.v1.worker_pb2 import (
    AckRequest,
    EnqueueRequest,
    LeaseRequest,
    PutScheduleRequest,
    RemoveScheduleRequest,
)
from nexus.platform.scheduler.v1.worker_pb2_grpc import WorkerServiceStub
from nexus.type.v1.faults import DependencyUnavailable
from services.chassis import jobs
from services.chassis.clients import Clients
from services.chassis.context import OPERATOR, acting_for
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.jobs import Worker
from services.chassis.mail import Mailer
from services.chassis.sealing import Sealer
from services.chassis.service import Service
from services.chassis.signals import Signals
from services.chassis.spec import ServiceSpec, discover
from tests.chassis.sample_service import jobs as sample
from tests.platforms import Platform, Tenant

pytestmark = pytest.mark.xdist_group("jobs")

Eventually = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


@dataclass
class Shop:
    """A service with jobs, on the rows of auth-service, as the operator: its calls to the scheduler are allowed."""

    service: Service
    tenant: Tenant
    admin: asyncpg.Connection
    scheduler: Any
    stack: AsyncExitStack

    def work(self) -> asyncio.Task[None]:
        """Another replica begins to work."""
        task = asyncio.create_task(Worker(self.service).run())
        self.stack.push_async_callback(stop, task)
        return task

    async def enqueue(self, queue: str, attempts: int = 5, **payload: Any) -> str:
        template = JobTemplate(queue=f"auth-service.{queue}", retry=Retry(max_attempts=attempts))
        template.retry.first_backoff.FromMilliseconds(1)
        template.payload.update(payload)
        with acting_for(self.tenant.tenant_id):
            answer = await self.scheduler.Enqueue(EnqueueRequest(job=template), timeout=5)
        job_id: str = answer.job.job_id
        return job_id

    async def written(self) -> list[str]:
        """The jobs whose effect there is, as often as there is."""
        rows = await self.admin.fetch(
            "SELECT aggregate FROM auth_service.events WHERE tenant_id = $1 ORDER BY sequence", self.tenant.tenant_id
        )
        return [row["aggregate"] for row in rows]

    async def state(self, job_id: str) -> str:
        state: str = await self.admin.fetchval("SELECT state FROM scheduler.jobs WHERE job_id = $1", job_id)
        return state


async def stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def shop(platform: Platform, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    monkeypatch.setattr(jobs, "WAIT_SECONDS", 1)
    monkeypatch.setattr(sample, "stumbles", 0)
    sample.reached.clear()
    settings = platform.settings
    assert settings.redis_url is not None
    spec = ServiceSpec(id="auth-service", port=1, jobs=["write", "linger"], module="tests.chassis.sample_service")
    async with AsyncExitStack() as stack:
        database = Database(settings, discover()["auth-service"])
        await database.start()
        stack.push_async_callback(database.stop)
        broker = redis.asyncio.Redis.from_url(settings.redis_url.get_secret_value())
        stack.push_async_callback(broker.aclose)
        clients = Clients(settings, OPERATOR, None)
        stack.push_async_callback(clients.stop)
        admin = await platform.admin()
        stack.push_async_callback(admin.close)
        service = Service(
            spec=spec,
            settings=settings,
            config=None,
            database=database,
            redis=broker,
            events=Events(spec.id, database, broker),
            clients=clients,
            signals=Signals(broker),
            sealer=Sealer(bytes(32), spec.id),
            mailer=Mailer(settings),
        )
        yield Shop(service, tenant, admin, clients.stub(WorkerServiceStub), stack)


async def test_jobs_are_done_and_take_effect_once(shop: Shop, eventually_async: Eventually) -> None:
    for _ in range(3):
        shop.work()
    ids = [await shop.enqueue("write", word=str(number)) for number in range(20)]

    async def all_done() -> bool:
        return {await shop.state(job_id) for job_id in ids} == {"DONE"}

    await eventually_async(all_done)
    assert sorted(await shop.written()) == sorted(ids)


async def test_a_job_that_fails_leaves_nothing_behind_and_is_tried_again(
    shop: Shop, eventually_async: Eventually
) -> None:
    sample.stumbles = 2
    job_id = await shop.enqueue("write", word="x")
    shop.work()

    async def done() -> bool:
        return await shop.state(job_id) == "DONE"

    await eventually_async(done)
    assert await shop.written() == [job_id]
    error = await shop.admin.fetchval("SELECT last_error FROM scheduler.jobs WHERE job_id = $1", job_id)
    assert error == "RuntimeError: stumbled"


async def test_a_worker_that_dies_between_commit_and_ack_does_not_do_it_twice(
    shop: Shop, eventually_async: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await shop.enqueue("write", word="x")
    worker = Worker(shop.service)
    request = LeaseRequest(queues=["auth-service.write"], lease=Duration(seconds=1))
    [leased] = (await shop.scheduler.Lease(request, timeout=5)).jobs
    with acting_for(shop.tenant.tenant_id):
        await worker._do(leased.job)  # and dies
    shop.work()

    async def done() -> bool:
        return await shop.state(job_id) == "DONE"

    await eventually_async(done)
    assert await shop.written() == [job_id]
    attempts = await shop.admin.fetchval("SELECT attempts FROM scheduler.jobs WHERE job_id = $1", job_id)
    assert attempts == 2


async def test_a_worker_that_stops_gives_its_jobs_back(shop: Shop) -> None:
    job_id = await shop.enqueue("linger", seconds=60)
    task = shop.work()
    async with asyncio.timeout(10):
        await sample.reached.wait()
    await stop(task)
    row = await shop.admin.fetchrow("SELECT state, attempts FROM scheduler.jobs WHERE job_id = $1", job_id)
    assert row is not None
    assert tuple(row) == ("READY", 0)


async def test_a_job_is_asked_for_if_and_only_if_the_transaction_commits(
    shop: Shop, eventually_async: Eventually
) -> None:
    shop.work()

    async def ask(word: str) -> None:
        template = JobTemplate(queue="auth-service.write")
        template.payload.update({"word": word})
        await shop.service.events.publish(JobRequested(job=template), word)

    async def change_of_mind() -> None:
        async with shop.service.database.transaction():
            await ask("never")
            raise ZeroDivisionError

    with acting_for(shop.tenant.tenant_id):
        with pytest.raises(ZeroDivisionError):
            await change_of_mind()
        async with shop.service.database.transaction():
            await ask("asked")
    await shop.service.events.relay_batch()

    async def written() -> bool:
        return len(await shop.written()) == 2  # that it was asked for, and that it was done

    await eventually_async(written)
    words = await shop.admin.fetch(
        "SELECT payload->>'word' AS word FROM scheduler.jobs WHERE tenant_id = $1", shop.tenant.tenant_id
    )
    assert [row["word"] for row in words] == ["asked"]


async def test_a_service_declares_a_schedule_by_its_name(shop: Shop, other_tenant: Tenant) -> None:
    def declare(seconds: int) -> PutScheduleRequest:
        timing = Timing(interval=Interval(every=Duration(seconds=seconds)))
        job = JobTemplate(queue="auth-service.write")
        return PutScheduleRequest(spec=ScheduleSpec(name="auth-service.tidy", timing=timing, job=job))

    with acting_for(shop.tenant.tenant_id):
        twins = await asyncio.gather(*(shop.scheduler.PutSchedule(declare(3600), timeout=5) for _ in range(4)))
        assert len({answer.schedule.etag for answer in twins}) == 1
        changed = await shop.scheduler.PutSchedule(declare(7200), timeout=5)
        assert changed.schedule.schedule_id == twins[0].schedule.schedule_id
        assert changed.schedule.etag != twins[0].schedule.etag
        for _ in range(2):
            await shop.scheduler.RemoveSchedule(RemoveScheduleRequest(name="auth-service.tidy"), timeout=5)
        with pytest.raises(OwnedByService):
            await shop.scheduler.RemoveSchedule(RemoveScheduleRequest(name="a-users"), timeout=5)


async def test_the_worker_outlives_a_scheduler_that_is_away(
    shop: Shop, eventually_async: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.05)
    worker = Worker(shop.service)
    real, failures = worker._scheduler, iter([True, True])

    class Flaky:
        async def Lease(self, request: LeaseRequest, timeout: float) -> Any:
            if next(failures, False):
                raise DependencyUnavailable(dependency="scheduler", retry_after=1)
            return await real.Lease(request, timeout=timeout)

        async def Ack(self, request: AckRequest, timeout: float) -> Any:
            return await real.Ack(request, timeout=timeout)

    worker._scheduler = Flaky()  # type: ignore[assignment]
    task = asyncio.create_task(worker.run())
    job_id = await shop.enqueue("write", word="x")

    async def done() -> bool:
        return await shop.state(job_id) == "DONE"

    await eventually_async(done)
    await stop(task)
