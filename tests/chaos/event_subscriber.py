"""A subscriber in a process of its own, to be killed: notes in a row how often it has handled each event.

python -m tests.chaos.event_subscriber DATABASE_URL REDIS_URL
"""

import asyncio
import sys

import redis.asyncio
from pydantic import SecretStr

from nexus.platform.scheduler.v1.events_pb2 import JobDied
from nexus.type.v1.event_pb2 import Event
from services.chassis import events
from services.chassis.config import Settings
from services.chassis.database import Database
from services.chassis.spec import discover

HANDLING_SECONDS = 0.02


async def main(database_url: str, redis_url: str) -> None:
    events.LEASE_MS, events.READ_MS = 400, 100
    database = Database(Settings(database_url=SecretStr(database_url)), discover()["scheduler"])
    await database.start()

    async def handle(message: JobDied, event: Event) -> None:
        await database.execute(
            "INSERT INTO queues (queue, max_leased, served_time) VALUES ($1, 1, clock_timestamp()) "
            "ON CONFLICT (tenant_id, queue) DO UPDATE SET max_leased = queues.max_leased + 1",
            message.job_id,
        )
        await asyncio.sleep(HANDLING_SECONDS)  # written, and not committed

    subscriber = events.Events("listener", database, redis.asyncio.Redis.from_url(redis_url))
    subscriber.subscribe(JobDied.DESCRIPTOR.full_name, handle)
    subscriber.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
