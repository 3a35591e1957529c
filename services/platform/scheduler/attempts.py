"""What becomes of a job whose attempt failed, and what a job is made from."""

import json
import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from google.protobuf import json_format

from nexus.platform.scheduler.v1 import jobs_pb2 as pb
from nexus.platform.scheduler.v1.faults import PayloadTooLarge
from nexus.type.v1.faults import InvalidRequest
from services.chassis.clock import moment
from services.chassis.ids import new_id

LARGEST_PAYLOAD = 64 * 1024
_ATTEMPTS = 5
_FIRST_BACKOFF = timedelta(seconds=1)
_LONGEST_BACKOFF = timedelta(hours=1)
_RUN_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job that is to be put on its queue."""

    job_id: str
    queue: str
    payload: str
    """JSON."""
    priority: int
    max_attempts: int
    first_backoff: timedelta
    longest_backoff: timedelta
    run_timeout: timedelta
    run_time: datetime
    unique_key: str = ""
    serial_key: str = ""
    schedule_id: str | None = None
    scheduled_for: datetime | None = None

    def row(self, now: datetime) -> dict[str, Any]:
        """As it begins."""
        return {**vars(self), "create_time": now, "state": "DELAYED" if self.run_time > now else "READY"}


def new_job(template: pb.JobTemplate, run_time: datetime, **more: Any) -> NewJob:
    """A job with everything that the template leaves open. Raises PayloadTooLarge."""
    payload = payload_json(template)
    retry = template.retry
    first = retry.first_backoff.ToTimedelta() if retry.HasField("first_backoff") else _FIRST_BACKOFF
    longest = retry.longest_backoff.ToTimedelta() if retry.HasField("longest_backoff") else _LONGEST_BACKOFF
    return NewJob(
        job_id=new_id(),
        queue=template.queue,
        payload=payload,
        priority=template.priority,
        max_attempts=retry.max_attempts or _ATTEMPTS,
        first_backoff=first,
        longest_backoff=max(longest, first),
        run_timeout=template.run_timeout.ToTimedelta() if template.HasField("run_timeout") else _RUN_TIMEOUT,
        run_time=run_time,
        **more,
    )


def requested(request: Any, now: datetime) -> NewJob:
    """The job that a request to enqueue, or an event JobRequested, asks for."""
    return new_job(
        request.job,
        max(now, moment(request.run_time)) if request.HasField("run_time") else now,
        unique_key=request.unique_key,
        serial_key=request.serial_key,
    )


def payload_json(template: pb.JobTemplate) -> str:
    """Raises PayloadTooLarge, and InvalidRequest for what JSON cannot say."""
    try:
        text = json.dumps(json_format.MessageToDict(template.payload), ensure_ascii=False)
    except json_format.SerializeToJsonError as error:
        raise InvalidRequest(summary=f"payload: {error}") from None
    size = len(text.encode())
    if size > LARGEST_PAYLOAD:
        raise PayloadTooLarge(size=size, most=LARGEST_PAYLOAD)
    return text


@dataclass(frozen=True)
class Afterwards:
    """Where a failed attempt leaves its job."""

    state: str
    run_time: datetime
    attempts: int


def after_failure(job: Any, failure: pb.Failure, now: datetime) -> Afterwards:
    """`job` is its row."""
    if failure.released:
        return Afterwards("READY", now, job["attempts"] - 1)
    if failure.fatal or job["attempts"] >= job["max_attempts"]:
        return Afterwards("DEAD", now, job["attempts"])
    if failure.HasField("retry_after"):
        wait = failure.retry_after.ToTimedelta()
    else:
        wait = backoff(job["first_backoff"], job["longest_backoff"], job["attempts"])
    return Afterwards("DELAYED", now + wait, job["attempts"])


def backoff(first: timedelta, longest: timedelta, attempts: int) -> timedelta:
    """How long to wait after so many attempts; a quarter more or less, lest those that failed together return so."""
    doublings = min(attempts - 1, 40)
    seconds = min(first.total_seconds() * 2**doublings, longest.total_seconds())
    return timedelta(seconds=seconds * random.uniform(0.75, 1.25))  # noqa: S311  no secret
