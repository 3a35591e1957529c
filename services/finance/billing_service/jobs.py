"""What billing-service does at times: bills what is due, and collects it. Each tenant with subscriptions has a schedule
for either."""

from typing import Any

from google.protobuf.duration_pb2 import Duration

from nexus.platform.scheduler.v1.jobs_pb2 import JobTemplate
from nexus.platform.scheduler.v1.schedules_pb2 import Cron, ScheduleSpec, Timing
from services.chassis.clock import now
from services.chassis.jobs import Job, slow
from services.chassis.service import Service
from services.finance.billing_service.engine import Engine
from services.finance.billing_service.spec import SERVICE

_EVERY_FIVE_MINUTES = "*/5 * * * *"
_SPREAD = Duration(seconds=60)
_RUN_TIMEOUT = Duration(seconds=1800)


class Jobs:
    """They call payment providers, so they run in no transaction: each bill is one by itself. Two at once, or one that
    is done again, find rows locked or done."""

    def __init__(self, service: Service) -> None:
        self._subscribing = service.shared(Engine).subscribing

    @slow
    async def bill(self, payload: dict[str, Any], job: Job) -> None:
        await self._subscribing.run_billing(now())

    @slow
    async def dun(self, payload: dict[str, Any], job: Job) -> None:
        await self._subscribing.run_dunning(now())


def schedules() -> list[ScheduleSpec]:
    """Of a tenant. What is left out because the one before still runs, the next one does."""
    return [
        ScheduleSpec(
            name=f"{SERVICE.id}.{name}",
            timing=Timing(cron=Cron(expression=_EVERY_FIVE_MINUTES), jitter=_SPREAD),
            job=JobTemplate(queue=f"{SERVICE.id}.{name}", run_timeout=_RUN_TIMEOUT),
        )
        for name in SERVICE.jobs
    ]
