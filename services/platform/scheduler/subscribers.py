"""Jobs that services ask for in their own transactions."""

from nexus.platform.scheduler.v1.events_pb2 import JobRequested
from nexus.type.v1.event_pb2 import Event
from services.chassis.service import Service
from services.platform.scheduler.attempts import requested
from services.platform.scheduler.board import board_of
from services.platform.scheduler.names import require_services


class Subscribers:
    def __init__(self, service: Service) -> None:
        self._board = service.shared(board_of)

    async def on_job_requested(self, message: JobRequested, event: Event) -> None:
        require_services(event.source, message.job.queue)
        now = await self._board.now()
        await self._board.put_up(requested(message, now), now)
