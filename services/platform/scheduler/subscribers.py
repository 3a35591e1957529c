"""Jobs that services ask for in their own transactions."""

from nexus.platform.scheduler.v1.events_pb2 import JobRequested
from nexus.type.v1.event_pb2 import Event
from services.chassis.service import Service
from services.platform.scheduler.attempts import requested
from services.platform.scheduler.bell import Bell
from services.platform.scheduler.board import Board
from services.platform.scheduler.names import require_services
from services.platform.scheduler.store import ScheduleStore


class Subscribers:
    def __init__(self, service: Service) -> None:
        self._now = ScheduleStore(service.database).now
        # It only rings: those who wait hear it by way of the broker.
        self._board = Board(service.database, service.events, Bell(service.redis), self._now)

    async def on_job_requested(self, message: JobRequested, event: Event) -> None:
        require_services(event.source, message.job.queue)
        now = await self._now()
        await self._board.put_up(requested(message, now), now)
