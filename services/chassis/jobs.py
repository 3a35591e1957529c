"""Jobs: work that the scheduler hands to a service, done once in effect.

`jobs=["remind"]` in the spec, and in `jobs.py` a class `Jobs` with a method for each:

    async def remind(self, payload: dict[str, Any], job: Job) -> None

It works the queue "<service id>.remind". It runs in a transaction, for the job's tenant, and what it writes commits
once, however often its job is handed out after a crash; what it raises is retried. `slow` takes it out of that
transaction: for what takes longer than seconds, and bears being repeated. WorkerService has schedules;
`events.publish(JobRequested(…))` puts a job on the queue if and only if the running transaction commits.
"""

import asyncio
import contextlib
import importlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.json_format import MessageToDict

from nexus.platform.scheduler.v1.faults import LeaseLost
from nexus.platform.scheduler.v1.jobs_pb2 import Failure, Job, LeasedJob
from nexus.platform.scheduler.v1.worker_pb2 import AckRequest, HeartbeatRequest, LeaseRequest, NackRequest
from nexus.platform.scheduler.v1.worker_pb2_grpc import WorkerServiceStub
from services.chassis.context import acting_for
from services.chassis.errors import Fault
from services.chassis.events import CLAIM

if TYPE_CHECKING:
    from services.chassis.service import Service

__all__ = ["Job", "Worker", "slow"]

AT_ONCE = 8
LEASE_SECONDS, WAIT_SECONDS, RETRY_SECONDS = 30, 15, 1.0

Work = Callable[[dict[str, Any], Job], Awaitable[None]]
Method = TypeVar("Method", bound=Callable[..., Awaitable[None]])

logger = logging.getLogger(__name__)


def slow(method: Method) -> Method:
    """Marks a job that runs outside a transaction and may run again after a crash."""
    method.slow = True  # type: ignore[attr-defined]
    return method


class Worker:
    """Works the queues of one service, in every replica."""

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._scheduler = service.clients.stub(WorkerServiceStub)
        jobs = importlib.import_module(f"{service.spec.module}.jobs").Jobs(service)
        self._work: dict[str, Work] = {f"{service.spec.id}.{name}": getattr(jobs, name) for name in service.spec.jobs}
        self._name = f"{service.spec.id} {service.settings.instance}".strip()
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled; what has not finished then goes back to its queue."""
        try:
            while True:
                try:
                    await self._take()
                except Fault as fault:
                    logger.info("no jobs: %s", fault, extra={"service": self._service.spec.id})
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _take(self) -> None:
        if len(self._running) >= AT_ONCE:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        request = LeaseRequest(queues=self._work, max_jobs=AT_ONCE - len(self._running), worker=self._name)
        request.lease.seconds, request.wait.seconds = LEASE_SECONDS, WAIT_SECONDS
        for leased in (await self._scheduler.Lease(request, timeout=WAIT_SECONDS + 10.0)).jobs:
            task = asyncio.create_task(self._attempt(leased), name=leased.job.job_id)
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _attempt(self, leased: LeasedJob) -> None:
        lease = {"job_id": leased.job.job_id, "lease_id": leased.lease_id}
        with acting_for(leased.tenant_id), contextlib.suppress(LeaseLost):
            work = asyncio.create_task(self._do(leased.job))
            beat = asyncio.create_task(self._beat(leased, work))
            try:
                await work
                await self._scheduler.Ack(AckRequest(**lease), timeout=5.0)
            except asyncio.CancelledError:  # the service stops, or the lease was lost
                work.cancel()
                await asyncio.wait([work])
                failure = Failure(released=True)
                await asyncio.shield(self._scheduler.Nack(NackRequest(**lease, failure=failure), timeout=2.0))
            except Exception as error:
                logger.warning("job failed: %s", error, extra=lease, exc_info=not isinstance(error, Fault))
                failure = Failure(error=f"{type(error).__name__}: {error}"[:2000])
                await self._scheduler.Nack(NackRequest(**lease, failure=failure), timeout=5.0)
            finally:
                beat.cancel()

    async def _do(self, job: Job) -> None:
        work = self._work[job.template.queue]
        payload = MessageToDict(job.template.payload)
        if getattr(work, "slow", False):
            await work(payload, job)
            return
        async with self._service.database.transaction():
            if await self._service.database.fetchval(CLAIM, job.job_id):
                await work(payload, job)

    async def _beat(self, leased: LeasedJob, work: "asyncio.Task[None]") -> None:
        request = HeartbeatRequest(job_id=leased.job.job_id, lease_id=leased.lease_id)
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            try:
                await self._scheduler.Heartbeat(request, timeout=5.0)
            except LeaseLost:
                work.cancel()
                return
            except Fault as fault:
                logger.info("no heartbeat: %s", fault, extra={"job_id": request.job_id})
