"""Rows as messages of the contract."""

from nexus.platform.scheduler.v1 import jobs_pb2, schedules_pb2
from services.chassis.messages import MessageOf
from services.chassis.table import Row
from services.platform.scheduler.ticker import spec_of

_schedule = MessageOf(schedules_pb2.Schedule)
_job = MessageOf(jobs_pb2.Job)
_template = MessageOf(jobs_pb2.JobTemplate)
_retry = MessageOf(jobs_pb2.Retry)
_leased = MessageOf(jobs_pb2.LeasedJob, expire_time="lease_expire_time")
run_of = MessageOf(schedules_pb2.Run)
queue_of = MessageOf(jobs_pb2.Queue)


def schedule_of(row: Row) -> schedules_pb2.Schedule:
    return _schedule(row, spec=spec_of(row))


def job_of(row: Row) -> jobs_pb2.Job:
    return _job(row, template=_template(row, retry=_retry(row)))


def leased_of(row: Row) -> jobs_pb2.LeasedJob:
    return _leased(row, job=job_of(row))


def state_of(state: str) -> jobs_pb2.JobState.ValueType:
    return jobs_pb2.JobState.Value(f"JOB_STATE_{state}")
