"""`event-latency`: from the publisher's commit to the subscriber's handler, by way of outbox, relay and stream, beside
a value pushed onto a Redis list and popped from it: what the broker alone takes."""

import asyncio
import statistics
import time
from collections.abc import Coroutine
from typing import Any

import redis.asyncio

from nexus.platform.scheduler.v1.events_pb2 import JobDied
from nexus.type.v1.event_pb2 import Event
from services.chassis.context import acting_for
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.ids import new_id
from services.chassis.spec import discover
from tests.bench.measure import Result, compare
from tests.platforms import Platform

EVENTS = 200


def latency(platform: Platform) -> Result:
    with asyncio.Runner() as runner:

        def milliseconds(measure: Coroutine[Any, Any, float]) -> float:
            return runner.run(measure) * 1000

        tenant = runner.run(platform.new_tenant()).tenant_id
        return compare(
            "event-latency",
            "ms (p50)",
            "≤ 10.00",
            lambda: milliseconds(_events(platform, tenant)),
            lambda: milliseconds(_list(platform)),
        )


async def _events(platform: Platform, tenant: str) -> float:
    """The median, in seconds, of events one after the other."""
    database, hearing = (Database(platform.settings, discover()[name]) for name in ("scheduler", "session-mgr"))
    broker, other = _broker(platform), _broker(platform)
    for each in (database, hearing):
        await each.start()
    # Its own name, so that the group begins now; it hears all there is on the stream before.
    subscriber = Events(f"bench-{new_id()}", hearing, other)
    publisher = Events("scheduler", database, broker)
    heard: asyncio.Queue[tuple[str, float]] = asyncio.Queue()

    async def handle(message: JobDied, event: Event) -> None:
        heard.put_nowait((message.job_id, time.perf_counter()))

    subscriber.subscribe(JobDied.DESCRIPTOR.full_name, handle)
    publisher.start()
    subscriber.start()
    seconds = []
    for _ in range(EVENTS):
        name = new_id()
        with acting_for(tenant):
            async with database.transaction():
                await publisher.publish(JobDied(job_id=name), name)
        committed = time.perf_counter()
        while (found := await heard.get())[0] != name:
            pass
        seconds.append(found[1] - committed)
    for events in (subscriber, publisher):
        await events.stop()
    for each in (database, hearing):
        await each.stop()
    for client in (broker, other):
        await client.aclose()
    return statistics.median(seconds)


async def _list(platform: Platform) -> float:
    pushing, popping = _broker(platform), _broker(platform)
    name, seconds = f"bench-{new_id()}", []
    for _ in range(EVENTS):
        popped = asyncio.ensure_future(popping.blpop([name]))
        await asyncio.sleep(0)
        began = time.perf_counter()
        await pushing.rpush(name, b"x" * 200)
        await popped
        seconds.append(time.perf_counter() - began)
    await pushing.aclose()
    await popping.aclose()
    return statistics.median(seconds)


def _broker(platform: Platform) -> "redis.asyncio.Redis":
    assert platform.settings.redis_url is not None
    return redis.asyncio.Redis.from_url(platform.settings.redis_url.get_secret_value())
