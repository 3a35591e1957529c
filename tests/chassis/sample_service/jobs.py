import asyncio
from typing import Any

from nexus.type.v1.event_pb2 import Event
from services.chassis.jobs import Job, slow
from services.chassis.service import Service

stumbles = 0
"""How often `write` is to fail after it has written."""
reached = asyncio.Event()


class Jobs:
    def __init__(self, service: Service) -> None:
        self._events = service.events

    async def write(self, payload: dict[str, Any], job: Job) -> None:
        global stumbles
        await self._events.publish(Event(event_id=payload["word"]), job.job_id)
        if stumbles:
            stumbles -= 1
            raise RuntimeError("stumbled")

    @slow
    async def linger(self, payload: dict[str, Any], job: Job) -> None:
        reached.set()
        await asyncio.sleep(payload["seconds"])
