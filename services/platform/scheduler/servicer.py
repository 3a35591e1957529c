"""ScheduleService, JobService and WorkerService: proto to rules and back."""

from datetime import datetime
from functools import partial
from itertools import islice, takewhile

import asyncpg
import protovalidate

from nexus.platform.scheduler.v1 import jobs_pb2 as jobs
from nexus.platform.scheduler.v1 import schedules_pb2 as pb
from nexus.platform.scheduler.v1 import worker_pb2 as worker
from nexus.platform.scheduler.v1.faults import (
    BackfillInvalid,
    ScheduleChanged,
    ScheduleNameTaken,
    SchedulesTooMany,
)
from nexus.type.v1.faults import Conflict, InvalidRequest
from services.chassis.clock import moment, timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import new_id
from services.chassis.messages import moment_in, text_of, values_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.platform.scheduler import times
from services.platform.scheduler.attempts import payload_json, requested
from services.platform.scheduler.board import board_of
from services.platform.scheduler.messages import job_of, leased_of, queue_of, run_of, schedule_of, state_of
from services.platform.scheduler.names import require_services, require_tenants
from services.platform.scheduler.spec import Config
from services.platform.scheduler.store import JobStore, NewRun, ScheduleStore
from services.platform.scheduler.ticker import Ticker, job_at, spec_of

LARGEST_BACKFILL = 1000
_NEXT_TIMES = 10
_FORGET_SECONDS = 3600.0
_MEASURE_SECONDS = 15.0


class ScheduleService:
    def __init__(self, service: Service) -> None:
        config: Config = service.configuration(Config)
        self._max_schedules = config.max_schedules
        self._database = service.database
        self._store = ScheduleStore(service.database)
        self._pager = Pager(service.sealer)
        self._schedules = self._store.schedules
        board = service.shared(board_of)
        self._ticker = Ticker(service.database, board)
        service.every(config.tick_seconds, self._ticker.round)
        service.every(_MEASURE_SECONDS, board.measure)
        service.every(_FORGET_SECONDS, self._store.forget_old)

    async def CreateSchedule(
        self, request: pb.CreateScheduleRequest, call: RequestContext
    ) -> pb.CreateScheduleResponse:
        spec = request.spec
        require_tenants(spec.name, spec.job.queue)
        async with self._database.transaction():
            if await self._store.count_own() >= self._max_schedules:
                raise SchedulesTooMany(most=self._max_schedules)
            row = await _insert(self._store, spec, paused=request.paused)
            if row is None:
                raise await self._name_taken(spec.name)
        return pb.CreateScheduleResponse(schedule=schedule_of(row))

    async def GetSchedule(self, request: pb.GetScheduleRequest, call: RequestContext) -> pb.GetScheduleResponse:
        return pb.GetScheduleResponse(schedule=schedule_of(await self._schedules.require(request.schedule_id)))

    async def ListSchedules(self, request: pb.ListSchedulesRequest, call: RequestContext) -> pb.ListSchedulesResponse:
        rows, more = await self._pager.page(request, call, self._schedules.page, by="schedule_id")
        return pb.ListSchedulesResponse(schedules=map(schedule_of, rows), next_page_token=more)

    async def UpdateSchedule(
        self, request: pb.UpdateScheduleRequest, call: RequestContext
    ) -> pb.UpdateScheduleResponse:
        spec = request.spec
        try:
            async with self._database.transaction():
                row = await self._require_own(request.schedule_id)
                if request.etag and request.etag != row["etag"]:
                    raise ScheduleChanged(schedule_id=request.schedule_id)
                spec = _merged(spec_of(row), request)
                require_tenants(spec.name, spec.job.queue)
                row = await _update(self._store, row, spec)
        except asyncpg.UniqueViolationError:
            raise await self._name_taken(spec.name) from None
        return pb.UpdateScheduleResponse(schedule=schedule_of(row))

    async def DeleteSchedule(
        self, request: pb.DeleteScheduleRequest, call: RequestContext
    ) -> pb.DeleteScheduleResponse:
        async with self._database.transaction():
            await self._require_own(request.schedule_id)
            await self._schedules.delete(schedule_id=request.schedule_id)
        return pb.DeleteScheduleResponse()

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, call: RequestContext) -> pb.PauseScheduleResponse:
        async with self._database.transaction():
            row = await self._require_own(request.schedule_id)
            if not row["paused"]:
                row = await self._schedules.change(request.schedule_id, next_time=None, paused=True)
        return pb.PauseScheduleResponse(schedule=schedule_of(row))

    async def ResumeSchedule(
        self, request: pb.ResumeScheduleRequest, call: RequestContext
    ) -> pb.ResumeScheduleResponse:
        async with self._database.transaction():
            row = await self._require_own(request.schedule_id)
            if row["paused"]:
                next_time = times.next_time(spec_of(row).timing, await self._store.now())
                row = await self._schedules.change(request.schedule_id, next_time=next_time, paused=False)
        return pb.ResumeScheduleResponse(schedule=schedule_of(row))

    async def TriggerNow(self, request: pb.TriggerNowRequest, call: RequestContext) -> pb.TriggerNowResponse:
        async with self._database.transaction():
            row = await self._require_own(request.schedule_id)
            now = await self._store.now()
            [run] = await self._run(row, [now], "TRIGGER", pb.OVERLAP_POLICY_ALLOW, now)
        return pb.TriggerNowResponse(run=run)

    async def Backfill(self, request: pb.BackfillRequest, call: RequestContext) -> pb.BackfillResponse:
        since, until = moment(request.from_time), moment(request.until_time)
        async with self._database.transaction():
            row = await self._require_own(request.schedule_id)
            now = await self._store.now()
            if not since < until <= now:
                raise BackfillInvalid(why="from_time comes before until_time, and both are past")
            found = takewhile(lambda each: each < until, times.times_from(spec_of(row).timing, since))
            chosen = list(islice(found, LARGEST_BACKFILL + 1))
            if len(chosen) > LARGEST_BACKFILL:
                raise BackfillInvalid(why=f"there are more than {LARGEST_BACKFILL} times in it")
            overlap = request.overlap or pb.OVERLAP_POLICY_QUEUE
            return pb.BackfillResponse(runs=await self._run(row, chosen, "BACKFILL", overlap, now))

    async def NextTimes(self, request: pb.NextTimesRequest, call: RequestContext) -> pb.NextTimesResponse:
        now = await self._store.now()
        if request.HasField("timing"):
            timing = request.timing
            times.require_readable(timing)
        else:
            timing = spec_of(await self._schedules.require(request.schedule_id)).timing
        after = moment_in(request, "after_time") or now
        found = islice(times.times(timing, after), request.count or _NEXT_TIMES)
        return pb.NextTimesResponse(times=map(timestamp, found))

    async def ListRuns(self, request: pb.ListRunsRequest, call: RequestContext) -> pb.ListRunsResponse:
        await self._schedules.require(request.schedule_id)
        outcome = text_of(pb.RunOutcome, request.outcome) or None

        async def fetch(after: str, limit: int) -> list[Row]:
            before = (datetime.fromisoformat(after[:32]), after[32:]) if after else None
            return await self._store.runs(request.schedule_id, outcome, before, limit)

        rows, more = await self._pager.page(request, call, fetch, by=_place)
        return pb.ListRunsResponse(runs=map(run_of, rows), next_page_token=more)

    async def _run(
        self, schedule: Row, chosen: list[datetime], cause: str, overlap: int, now: datetime
    ) -> list[pb.Run]:
        """Run a schedule for these times, but for those that have had a run."""
        tenant_id, schedule_id = schedule["tenant_id"], schedule["schedule_id"]
        spec = spec_of(schedule)
        runs = [
            NewRun(tenant_id, schedule_id, time, cause, "ENQUEUED", job_at(spec, schedule_id, time, overlap))
            for time in chosen
        ]
        new = await self._ticker.start(runs, now)
        return [run_of(row) for row in await self._store.runs_at(schedule_id, [run.scheduled_for for run in new])]

    async def _name_taken(self, name: str) -> ScheduleNameTaken:
        holder = await self._schedules.find(name=name)
        return ScheduleNameTaken(name=name, schedule_id=holder["schedule_id"] if holder else "deleted meanwhile")

    async def _require_own(self, schedule_id: str) -> Row:
        """Locked, and no service's."""
        row = await self._schedules.require(schedule_id, lock=True)
        require_tenants(row["name"])
        return row


class JobService:
    def __init__(self, service: Service) -> None:
        self._store = JobStore(service.database)
        self._pager = Pager(service.sealer)
        self._board = service.shared(board_of)

    async def EnqueueJob(self, request: jobs.EnqueueJobRequest, call: RequestContext) -> jobs.EnqueueJobResponse:
        require_tenants(request.job.queue)
        now = await self._board.now()
        row, existed = await self._board.put_up(requested(request, now), now)
        return jobs.EnqueueJobResponse(job=job_of(row), existed=existed)

    async def GetJob(self, request: jobs.GetJobRequest, call: RequestContext) -> jobs.GetJobResponse:
        return jobs.GetJobResponse(job=job_of(await self._store.jobs.require(request.job_id)))

    async def ListJobs(self, request: jobs.ListJobsRequest, call: RequestContext) -> jobs.ListJobsResponse:
        state = text_of(jobs.JobState, request.state) or None
        fetch = partial(self._store.jobs.page, queue=request.queue or None, state=state)
        rows, more = await self._pager.page(request, call, fetch, by="job_id")
        return jobs.ListJobsResponse(jobs=map(job_of, rows), next_page_token=more)

    async def CancelJob(self, request: jobs.CancelJobRequest, call: RequestContext) -> jobs.CancelJobResponse:
        return jobs.CancelJobResponse(job=job_of(await self._board.cancel(request.job_id)))

    async def RetryJob(self, request: jobs.RetryJobRequest, call: RequestContext) -> jobs.RetryJobResponse:
        return jobs.RetryJobResponse(job=job_of(await self._board.bring_back(request.job_id)))

    async def LeaseJobs(self, request: jobs.LeaseJobsRequest, call: RequestContext) -> jobs.LeaseJobsResponse:
        require_tenants(request.queue)
        leased = await self._board.lease([request.queue], request)
        return jobs.LeaseJobsResponse(jobs=map(leased_of, leased))

    async def HeartbeatJob(self, request: jobs.HeartbeatJobRequest, call: RequestContext) -> jobs.HeartbeatJobResponse:
        return jobs.HeartbeatJobResponse(expire_time=timestamp(await self._board.extend(request)))

    async def AckJob(self, request: jobs.AckJobRequest, call: RequestContext) -> jobs.AckJobResponse:
        await self._board.finish(request)
        return jobs.AckJobResponse()

    async def NackJob(self, request: jobs.NackJobRequest, call: RequestContext) -> jobs.NackJobResponse:
        return jobs.NackJobResponse(state=state_of(await self._board.fail(request)))

    async def SetQueue(self, request: jobs.SetQueueRequest, call: RequestContext) -> jobs.SetQueueResponse:
        await self._store.queues.put(**values_of(request, "queue", "max_leased", "paused"))
        [row] = await self._store.fillings("", 1, only=request.queue)
        return jobs.SetQueueResponse(queue=queue_of(row))

    async def ListQueues(self, request: jobs.ListQueuesRequest, call: RequestContext) -> jobs.ListQueuesResponse:
        rows, more = await self._pager.page(request, call, self._store.fillings, by="queue")
        return jobs.ListQueuesResponse(queues=map(queue_of, rows), next_page_token=more)


class WorkerService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._store = ScheduleStore(service.database)
        self._schedules = self._store.schedules
        self._board = service.shared(board_of)

    async def PutSchedule(self, request: worker.PutScheduleRequest, call: RequestContext) -> worker.PutScheduleResponse:
        spec = request.spec
        require_services(call.caller, spec.name, spec.job.queue)
        async with self._database.transaction():
            row = await self._schedules.find(name=spec.name, lock=True)
            if row is None:
                row = await _insert(self._store, spec)
                if row is None:  # by a twin, meanwhile
                    raise Conflict(retry_after=0.05)
            elif spec_of(row) != spec:
                row = await _update(self._store, row, spec)
        return worker.PutScheduleResponse(schedule=schedule_of(row))

    async def RemoveSchedule(
        self, request: worker.RemoveScheduleRequest, call: RequestContext
    ) -> worker.RemoveScheduleResponse:
        require_services(call.caller, request.name)
        await self._schedules.delete(name=request.name)
        return worker.RemoveScheduleResponse()

    async def Enqueue(self, request: worker.EnqueueRequest, call: RequestContext) -> worker.EnqueueResponse:
        require_services(call.caller, request.job.queue)
        now = await self._board.now()
        row, existed = await self._board.put_up(requested(request, now), now)
        return worker.EnqueueResponse(job=job_of(row), existed=existed)

    async def Lease(self, request: worker.LeaseRequest, call: RequestContext) -> worker.LeaseResponse:
        require_services(call.caller, *request.queues)
        leased = await self._board.lease(request.queues, request, platform_wide=True)
        return worker.LeaseResponse(jobs=map(leased_of, leased))

    async def Heartbeat(self, request: worker.HeartbeatRequest, call: RequestContext) -> worker.HeartbeatResponse:
        return worker.HeartbeatResponse(expire_time=timestamp(await self._board.extend(request)))

    async def Ack(self, request: worker.AckRequest, call: RequestContext) -> worker.AckResponse:
        await self._board.finish(request)
        return worker.AckResponse()

    async def Nack(self, request: worker.NackRequest, call: RequestContext) -> worker.NackResponse:
        return worker.NackResponse(state=state_of(await self._board.fail(request)))


async def _insert(store: ScheduleStore, spec: pb.ScheduleSpec, *, paused: bool = False) -> Row | None:
    """None if the name is taken. Raises TimingInvalid and PayloadTooLarge."""
    now = await store.now()
    times.require_sound(spec.timing, now)
    payload_json(spec.job)
    next_time = None if paused else times.next_time(spec.timing, now)
    return await store.schedules.insert_new(
        schedule_id=new_id(), name=spec.name, spec=spec, next_time=next_time, paused=paused
    )


async def _update(store: ScheduleStore, row: Row, spec: pb.ScheduleSpec) -> Row:
    """Raises TimingInvalid, PayloadTooLarge and asyncpg.UniqueViolationError."""
    payload_json(spec.job)
    next_time = row["next_time"]
    if spec.timing != spec_of(row).timing:
        now = await store.now()
        times.require_sound(spec.timing, now)
        next_time = None if row["paused"] else times.next_time(spec.timing, now)
    return await store.schedules.change(row["schedule_id"], name=spec.name, spec=spec, next_time=next_time)


def _place(run: Row) -> str:
    """Where a page of runs ends: an ISO 8601 time of 32 characters, and the id."""
    return f"{run['scheduled_for'].isoformat(timespec='microseconds')}{run['run_id']}"


def _merged(spec: pb.ScheduleSpec, request: pb.UpdateScheduleRequest) -> pb.ScheduleSpec:
    """What the update makes of a spec. Raises InvalidRequest for an unknown path, or if it breaks the contract."""
    if not request.update_mask.paths:
        spec = request.spec
    elif not request.update_mask.IsValidForDescriptor(pb.ScheduleSpec.DESCRIPTOR):
        raise InvalidRequest(summary="update_mask: names a field that a spec does not have")
    else:
        request.update_mask.MergeMessage(request.spec, spec, True, True)
    try:
        protovalidate.validate(spec)
    except protovalidate.ValidationError as error:
        raise InvalidRequest(summary=f"spec: {error}") from None
    return spec
