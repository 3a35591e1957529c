"""A running service, as its servicers see it."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import redis.asyncio
from pydantic import BaseModel

from services.chassis.clients import Clients
from services.chassis.config import Settings
from services.chassis.database import Database
from services.chassis.erasure import ROUND_SECONDS, TenantErasure
from services.chassis.events import Events
from services.chassis.jobs import Worker
from services.chassis.mail import Mailer
from services.chassis.resealing import ROUND_SECONDS as RESEALING_SECONDS
from services.chassis.resealing import Resealing
from services.chassis.sealing import Sealer
from services.chassis.signals import Signals
from services.chassis.spec import ServiceSpec
from services.chassis.tasks import cancel_all

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Service:
    """What a servicer is made with: `def __init__(self, service: Service)`."""

    spec: ServiceSpec
    settings: Settings
    config: Any
    """An instance of the spec's `config` model."""
    database: Database
    redis: "redis.asyncio.Redis"
    events: Events
    clients: Clients
    signals: Signals
    sealer: Sealer
    mailer: Mailer
    _loops: list[tuple[float, Callable[[], Awaitable[Any]]]] = field(default_factory=list)
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    _shared: dict[Any, Any] = field(default_factory=dict)

    def shared(self, kind: "Callable[[Service], T]") -> T:
        """What its servicers and subscribers have together, a class of use cases for one: made when the first of them
        asks for it."""
        if kind not in self._shared:
            self._shared[kind] = kind(self)
        found: T = self._shared[kind]
        return found

    def configuration(self, model: type[BaseModel]) -> Any:
        """The service's configuration, checked to be of the model its servicer expects."""
        assert isinstance(self.config, model)
        return self.config

    def every(self, seconds: float, job: Callable[[], Awaitable[Any]]) -> None:
        """Run a job again and again while the service lives, in every replica, at about this interval.

        A job must bear running in two replicas at once. What it raises is logged, and it runs again.
        """
        self._loops.append((seconds, job))

    def start_jobs(self) -> None:
        self.every(ROUND_SECONDS, TenantErasure(self.spec, self.database, self.signals).run)
        if self.spec.sealed_columns:
            self.every(RESEALING_SECONDS, Resealing(self.spec, self.database, self.sealer).run)
        self._tasks = [asyncio.create_task(_repeat(seconds, job)) for seconds, job in self._loops]
        if self.spec.jobs:
            self._tasks.append(asyncio.create_task(Worker(self).run(), name=f"{self.spec.id} jobs"))

    async def stop_jobs(self) -> None:
        await cancel_all(self._tasks, patience=3.0)  # time for jobs to be given back


async def _repeat(seconds: float, job: Callable[[], Awaitable[Any]]) -> None:
    while True:
        await asyncio.sleep(seconds * random.uniform(0.9, 1.1))  # noqa: S311  replicas must not march in step
        try:
            await job()
        except Exception:
            logger.exception("a job failed and will run again", extra={"job": getattr(job, "__qualname__", str(job))})
