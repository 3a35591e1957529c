"""Rows as messages of the contract."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from nexus.platform.scheduler.v1 import jobs_pb2, schedules_pb2
from services.chassis.clock import timestamp
from services.platform.scheduler.ticker import spec_of


def schedule_of(row: Mapping[str, Any]) -> schedules_pb2.Schedule:
    return schedules_pb2.Schedule(
        schedule_id=row["schedule_id"],
        spec=spec_of(row),
        paused=row["paused"],
        etag=row["etag"],
        **_times(row, "next_time", "last_time", "create_time", "update_time"),
    )


def run_of(row: Mapping[str, Any]) -> schedules_pb2.Run:
    state = row["job_state"]
    return schedules_pb2.Run(
        run_id=row["run_id"],
        cause=schedules_pb2.RunCause.Value(f"RUN_CAUSE_{row['cause']}"),
        outcome=schedules_pb2.RunOutcome.Value(f"RUN_OUTCOME_{row['outcome']}"),
        job_id=row["job_id"],
        job_state=state_of(state) if state else jobs_pb2.JOB_STATE_UNSPECIFIED,
        **_times(row, "scheduled_for", "missed_until", "create_time"),
    )


def job_of(row: Mapping[str, Any]) -> jobs_pb2.Job:
    template = jobs_pb2.JobTemplate(
        queue=row["queue"],
        payload=json_format.Parse(row["payload"], jobs_pb2.JobTemplate().payload),
        priority=row["priority"],
        retry=jobs_pb2.Retry(
            max_attempts=row["max_attempts"],
            first_backoff=row["first_backoff"],
            longest_backoff=row["longest_backoff"],
        ),
        run_timeout=row["run_timeout"],
    )
    return jobs_pb2.Job(
        job_id=row["job_id"],
        template=template,
        state=state_of(row["state"]),
        attempts=row["attempts"],
        unique_key=row["unique_key"],
        serial_key=row["serial_key"],
        last_error=row["last_error"],
        worker=row["worker"],
        schedule_id=row["schedule_id"],
        **_times(row, "run_time", "create_time", "start_time", "end_time", "scheduled_for"),
    )


def leased_of(row: Mapping[str, Any]) -> jobs_pb2.LeasedJob:
    return jobs_pb2.LeasedJob(
        job=job_of(row),
        tenant_id=row["tenant_id"],
        lease_id=row["lease_id"],
        expire_time=timestamp(row["lease_expire_time"]),
    )


def queue_of(row: Mapping[str, Any]) -> jobs_pb2.Queue:
    numbers = {name: row[name] for name in ("max_leased", "delayed", "ready", "leased", "dead")}
    return jobs_pb2.Queue(queue=row["queue"], paused=row["paused"], **numbers, **_times(row, "oldest_ready_time"))


def state_of(state: str) -> jobs_pb2.JobState.ValueType:
    return jobs_pb2.JobState.Value(f"JOB_STATE_{state}")


def _times(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The moments of a row, those that are not set left out."""
    return {name: timestamp(row[name]) for name in names if row[name] is not None}
