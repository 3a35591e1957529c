"""Events while the broker goes and subscribers are killed: each is handled once in effect, and in order."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import asyncpg
import pytest
import redis.asyncio
from pydantic import SecretStr

from mesh.local.embedded import Postgres, Redis
from mesh.local.platform import make_folders
from nexus.platform.scheduler.v1.events_pb2 import JobDied
from nexus.type.v1.event_pb2 import Event
from services.chassis import events
from services.chassis.config import Settings
from services.chassis.context import acting_for
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.migrations import migrate
from services.chassis.spec import discover
from services.chassis.tenants import create_tenant
from tests.chaos.servers import Server

pytestmark = pytest.mark.xdist_group("chaos events")

SPEC = discover()["scheduler"]
TENANT = "acme"


@dataclass
class Bench:
    settings: Settings
    server: Server
    broker: "redis.asyncio.Redis"
    database: Database
    admin: asyncpg.Connection
    publisher: Events

    async def publish(self, *names: str) -> None:
        with acting_for(TENANT):
            async with self.database.transaction():
                for name in names:
                    await self.publisher.publish(JobDied(job_id=name), "one")

    @contextlib.contextmanager
    def subscriber(self) -> Iterator[None]:
        """In a process of its own, killed at the end."""
        assert self.settings.database_url is not None
        assert self.settings.redis_url is not None
        urls = (self.settings.database_url.get_secret_value(), self.settings.redis_url.get_secret_value())
        process = subprocess.Popen([sys.executable, "-m", "tests.chaos.event_subscriber", *urls])
        try:
            yield
        finally:
            process.kill()
            process.wait()

    async def handled(self) -> list[tuple[str, int]]:
        """What has been handled, in order, and how often."""
        rows = await self.admin.fetch("SELECT queue, max_leased FROM scheduler.queues ORDER BY served_time")
        return [(row["queue"], row["max_leased"]) for row in rows]

    async def until_handled(self, number: int) -> None:
        async with asyncio.timeout(60):
            while len(await self.handled()) < number:  # noqa: ASYNC110  PostgreSQL tells only when asked
                await asyncio.sleep(0.01)


@pytest.fixture
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    settings = Settings(home=tmp_path_factory.mktemp("events") / "home")
    make_folders(settings)
    database, broker = Server(Postgres(settings)), Server(Redis(settings))
    async with contextlib.AsyncExitStack() as stack:
        for server in (database, broker):
            stack.callback(server.kill)
            await server.start()
        settings = Settings(home=settings.home, database_url=SecretStr(database.url), redis_url=SecretStr(broker.url))
        await migrate(settings, [SPEC])
        client = redis.asyncio.Redis.from_url(broker.url)
        stack.push_async_callback(client.aclose)
        own = Database(settings, SPEC)
        await own.start()
        stack.push_async_callback(own.stop)
        admin = await asyncpg.connect(database.url)
        stack.push_async_callback(admin.close)
        await create_tenant(admin, TENANT, "Acme")
        publisher = Events("scheduler", own, client)
        publisher.start()
        stack.push_async_callback(publisher.stop)
        yield Bench(settings, broker, client, own, admin, publisher)


async def test_a_subscriber_that_is_killed_while_it_handles_an_event_has_not_handled_it(bench: Bench) -> None:
    names = [f"{number:02}" for number in range(40)]
    await bench.publish(*names)
    for reached in (5, 15, 25):
        with bench.subscriber():
            await bench.until_handled(reached)
    with bench.subscriber():
        await bench.until_handled(len(names))
    assert await bench.handled() == [(name, 1) for name in names]


async def test_a_broker_that_is_lost_delays_events_and_loses_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "RETRY_SECONDS", 0.1)
    heard: list[str] = []

    async def hear(message: JobDied, event: Event) -> None:
        heard.append(message.job_id)

    async def hears(*names: str) -> None:
        async with asyncio.timeout(60):
            while len(heard) < len(names):  # noqa: ASYNC110  nobody says so
                await asyncio.sleep(0.02)
        assert heard == list(names)

    subscriber = Events("hearer", bench.database, bench.broker)
    subscriber.subscribe(JobDied.DESCRIPTOR.full_name, hear)
    subscriber.start()
    await bench.publish("before")
    await hears("before")
    bench.server.kill()
    await bench.publish("while", "it")
    await bench.publish("is", "away")
    assert await bench.admin.fetchval("SELECT count(*) FROM scheduler.events WHERE position IS NULL") == 4
    await bench.server.start()
    await bench.publish("after")
    await hears("before", "while", "it", "is", "away", "after")
    await subscriber.stop()
