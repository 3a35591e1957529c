"""Schedules and jobs as a tenant's people use them, through the edge."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from services.chassis.ids import new_id
from tests.edge.wire import reason
from tests.platforms import Platform, SignedIn, Tenant

YEARLY = {"cron": {"expression": "0 3 1 1 *", "timeZone": "Europe/Berlin"}}


def spec(**more: Any) -> dict[str, Any]:
    return {"name": "report", "timing": YEARLY, "job": {"queue": "reports", "payload": {"kind": "sales"}}, **more}


class Api:
    """The API, as one user."""

    def __init__(self, http: httpx.AsyncClient, user: SignedIn) -> None:
        self._http, self._headers = http, user.headers

    async def send(self, verb: str, path: str, body: Any = None, **query: Any) -> httpx.Response:
        return await self._http.request(verb, f"/api/v1/{path}", headers=self._headers, json=body, params=query)

    async def post(self, path: str, **body: Any) -> Any:
        return good(await self.send("POST", path, body))

    async def get(self, path: str, **query: Any) -> Any:
        return good(await self.send("GET", path, **query))

    async def create(self, **more: Any) -> Any:
        return (await self.post("schedules", spec=spec(**more)))["schedule"]

    async def refused(self, verb: str, path: str, status: int, **body: Any) -> str:
        return str(reason(await self.send(verb, path, None if verb in ("GET", "DELETE") else body), status))


def good(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
async def api(tenant: Tenant, http: httpx.AsyncClient) -> Api:
    return Api(http, await tenant.sign_in("owner"))


@pytest.fixture
async def stranger(other_tenant: Tenant, http: httpx.AsyncClient) -> Api:
    return Api(http, await other_tenant.sign_in("owner"))


async def test_a_schedule_from_its_beginning_to_its_end(api: Api) -> None:
    made = await api.create()
    path = f"schedules/{made['scheduleId']}"
    assert made["nextTime"].endswith("-01-01T02:00:00Z")
    assert (await api.get(path))["schedule"] == made
    changed = good(
        await api.send("PATCH", path, {"spec": {"overlap": "OVERLAP_POLICY_ALLOW"}, "updateMask": "overlap"})
    )["schedule"]
    assert changed["spec"] == {**made["spec"], "overlap": "OVERLAP_POLICY_ALLOW"}
    assert changed["nextTime"] == made["nextTime"]
    body = {"spec": {"timing": {"interval": {"every": "60s"}}}, "updateMask": "timing", "etag": made["etag"]}
    assert reason(await api.send("PATCH", path, body), 409) == "SCHEDULE_CHANGED"
    body["etag"] = changed["etag"]
    assert good(await api.send("PATCH", path, body))["schedule"]["nextTime"] < made["nextTime"]
    paused = (await api.post(f"{path}:pause"))["schedule"]
    assert paused["paused"]
    assert "nextTime" not in paused
    assert "nextTime" in (await api.post(f"{path}:resume"))["schedule"]
    good(await api.send("DELETE", path))
    assert await api.refused("GET", path, 404) == "SCHEDULE_NOT_FOUND"


async def test_what_cannot_be_a_schedule_is_refused(api: Api) -> None:
    async def refused(status: int, **more: Any) -> str:
        return await api.refused("POST", "schedules", status, spec=spec(**more))

    assert await refused(400, timing={"cron": {"expression": "0 25 * * *"}}) == "TIMING_INVALID"
    assert await refused(400, timing={"once": "2020-01-01T00:00:00Z"}) == "TIMING_INVALID"
    assert await refused(400, timing={}) == "INVALID_REQUEST"
    assert await refused(400, timing={"interval": {"every": "0.5s"}}) == "INVALID_REQUEST"
    assert await refused(400, job={"queue": "q", "payload": {"text": "x" * 70_000}}) == "PAYLOAD_TOO_LARGE"
    assert await refused(403, name="billing-service.dunning") == "OWNED_BY_SERVICE"
    assert await refused(403, job={"queue": "billing-service.dun"}) == "OWNED_BY_SERVICE"
    made = await api.create()
    assert await refused(409) == "SCHEDULE_NAME_TAKEN"
    await api.create(name="second")
    path = f"schedules/{made['scheduleId']}"
    for mask, body, status, expected in (
        ("name", {"name": "second"}, 409, "SCHEDULE_NAME_TAKEN"),
        ("name", {"name": "No Name!"}, 400, "INVALID_REQUEST"),
        ("job.queue", {"job": {"queue": "ledger-mgr.settle"}}, 403, "OWNED_BY_SERVICE"),
        ("timing", {}, 400, "INVALID_REQUEST"),
    ):
        assert await api.refused("PATCH", path, status, spec=body, updateMask=mask) == expected
    assert (await api.get(path))["schedule"] == made


async def test_next_times_tell_of_a_timing_before_it_is_a_schedule(api: Api) -> None:
    timing = {"cron": {"expression": "30 2 * * *", "timeZone": "America/New_York", "gap": "GAP_POLICY_SKIP"}}
    told = await api.post("schedules:nextTimes", timing=timing, afterTime="2026-03-07T12:00:00Z", count=2)
    assert told["times"] == ["2026-03-09T06:30:00Z", "2026-03-10T06:30:00Z"]
    made = await api.create()
    told = await api.post("schedules:nextTimes", scheduleId=made["scheduleId"])
    assert len(told["times"]) == 10
    assert told["times"][0] == made["nextTime"]


async def test_a_time_that_comes_puts_a_job_on_the_queue(api: Api) -> None:
    made = await api.create(timing={"interval": {"every": "1s"}}, overlap="OVERLAP_POLICY_QUEUE")
    [leased] = (await api.post("queues/reports:lease", wait="15s"))["jobs"]
    job = leased["job"]
    assert job["template"]["payload"] == {"kind": "sales"}
    assert job["scheduleId"] == made["scheduleId"]
    await api.post(f"jobs/{job['jobId']}:ack", leaseId=leased["leaseId"])
    [*_, first] = (await api.get(f"schedules/{made['scheduleId']}/runs"))["runs"]
    assert first["scheduledFor"] == job["scheduledFor"]
    assert (first["outcome"], first["jobState"]) == ("RUN_OUTCOME_ENQUEUED", "JOB_STATE_DONE")


async def test_trigger_now_runs_once_for_a_request(api: Api) -> None:
    made = await api.create()
    path = f"schedules/{made['scheduleId']}"
    first = await api.post(f"{path}:trigger", requestId="once")
    assert await api.post(f"{path}:trigger", requestId="once") == first
    assert first["run"]["cause"] == "RUN_CAUSE_TRIGGER"
    await api.post(f"{path}:trigger", requestId="again")
    assert len((await api.get(f"{path}/runs"))["runs"]) == 2


async def test_a_backfill_fills_what_had_no_run_and_no_more(api: Api) -> None:
    made = await api.create(timing={"cron": {"expression": "0 * * * *"}})
    path = f"schedules/{made['scheduleId']}"
    body = {"fromTime": "2026-01-01T00:00:00Z", "untilTime": "2026-01-01T05:00:00Z"}
    both = await asyncio.gather(*(api.post(f"{path}:backfill", **body) for _ in range(2)))
    assert sorted(len(answer.get("runs", [])) for answer in both) == [0, 5]
    body["untilTime"] = "2026-01-01T06:00:00Z"
    [run] = (await api.post(f"{path}:backfill", **body))["runs"]
    assert run["scheduledFor"] == "2026-01-01T05:00:00Z"
    # One after the other, in the order of their times.
    leased = (await api.post("queues/reports:lease", maxJobs=10))["jobs"]
    assert [each["job"]["scheduledFor"] for each in leased] == ["2026-01-01T00:00:00Z"]
    for bad in (
        {"fromTime": "2026-01-01T00:00:00Z", "untilTime": "2099-01-01T00:00:00Z"},
        {"fromTime": "2026-01-02T00:00:00Z", "untilTime": "2026-01-01T00:00:00Z"},
        {"fromTime": "2025-01-01T00:00:00Z", "untilTime": "2026-01-01T00:00:00Z"},
    ):
        assert await api.refused("POST", f"{path}:backfill", 400, **bad) == "BACKFILL_INVALID"


async def test_runs_and_schedules_are_paged(api: Api) -> None:
    made = await api.create(timing={"cron": {"expression": "0 * * * *"}})
    body = {"fromTime": "2026-01-01T00:00:00Z", "untilTime": "2026-01-01T05:00:00Z"}
    await api.post(f"schedules/{made['scheduleId']}:backfill", **body)
    for name in "abcd":
        await api.create(name=name)
    for path, kind in ((f"schedules/{made['scheduleId']}/runs", "runs"), ("schedules", "schedules"), ("jobs", "jobs")):
        found: list[Any] = []
        token = ""
        while token or not found:
            page = await api.get(path, pageSize=2, pageToken=token)
            found += page[kind]
            token = page.get("nextPageToken", "")
        assert len(found) == len({str(each) for each in found}) == 5


async def test_another_tenant_sees_and_touches_nothing(api: Api, stranger: Api) -> None:
    made = await api.create()
    job = (await api.post("jobs", job={"queue": "reports"}))["job"]
    [leased] = (await api.post("queues/reports:lease"))["jobs"]
    schedule, mine = f"schedules/{made['scheduleId']}", f"jobs/{job['jobId']}"
    for verb, path in (
        ("GET", schedule),
        ("DELETE", schedule),
        ("POST", f"{schedule}:pause"),
        ("POST", f"{schedule}:resume"),
        ("POST", f"{schedule}:trigger"),
        ("GET", f"{schedule}/runs"),
    ):
        assert await stranger.refused(verb, path, 404) == "SCHEDULE_NOT_FOUND"
    for verb, path in (("GET", mine), ("POST", f"{mine}:cancel"), ("POST", f"{mine}:retry")):
        assert await stranger.refused(verb, path, 404) == "JOB_NOT_FOUND"
    for word in ("heartbeat", "ack", "nack"):
        answer = await stranger.refused("POST", f"{mine}:{word}", 400, leaseId=leased["leaseId"])
        assert answer == "LEASE_LOST"
    for kind in ("schedules", "jobs", "queues"):
        assert (await stranger.get(kind))[kind] == []
    assert (await stranger.post("queues/reports:lease"))["jobs"] == []
    await stranger.create()  # the name is free there
    assert (await api.get(mine))["job"]["state"] == "JOB_STATE_LEASED"


async def test_whoever_lacks_the_permission_is_refused(tenant: Tenant, http: httpx.AsyncClient) -> None:
    plain = Api(http, await tenant.sign_in())
    for verb, path in (("GET", "schedules"), ("POST", "jobs"), ("POST", "queues/reports:lease")):
        assert await plain.refused(verb, path, 403) == "PERMISSION_MISSING"


async def test_a_service_queue_is_not_for_users(api: Api) -> None:
    job = {"queue": "billing-service.dun"}
    assert await api.refused("POST", "jobs", 403, job=job) == "OWNED_BY_SERVICE"
    assert await api.refused("POST", "queues/billing-service.dun:lease", 403) == "OWNED_BY_SERVICE"


async def test_a_job_that_failed_for_good_can_be_brought_back(api: Api) -> None:
    job = (await api.post("jobs", job={"queue": "q"}, uniqueKey="k", requestId="r"))["job"]
    assert (await api.post("jobs", job={"queue": "q"}, uniqueKey="k"))["existed"]
    path = f"jobs/{job['jobId']}"
    [leased] = (await api.post("queues/q:lease"))["jobs"]
    failure = {"error": "the printer is on fire", "fatal": True}
    for _ in range(2):
        told = await api.post(f"{path}:nack", leaseId=leased["leaseId"], failure=failure)
        assert told["state"] == "JOB_STATE_DEAD"
    [queue] = (await api.get("queues"))["queues"]
    assert queue["dead"] == "1"
    assert (await api.get(path))["job"]["lastError"] == "the printer is on fire"
    assert await api.refused("POST", f"{path}:cancel", 400) == "JOB_ENDED"
    other = (await api.post("jobs", job={"queue": "q"}, uniqueKey="k"))["job"]
    assert await api.refused("POST", f"{path}:retry", 400) == "JOB_NOT_RETRYABLE"
    assert (await api.post(f"jobs/{other['jobId']}:cancel"))["job"]["state"] == "JOB_STATE_CANCELLED"
    assert (await api.post(f"{path}:retry"))["job"]["state"] == "JOB_STATE_READY"
    [leased] = (await api.post("queues/q:lease"))["jobs"]
    await api.post(f"{path}:ack", leaseId=leased["leaseId"])
    assert await api.refused("POST", f"{path}:retry", 400) == "JOB_NOT_RETRYABLE"


async def test_a_paused_queue_hands_out_nothing(api: Api) -> None:
    good(await api.send("PUT", "queues/q", {"paused": True}))
    await api.post("jobs", job={"queue": "q"})
    assert (await api.post("queues/q:lease"))["jobs"] == []
    good(await api.send("PUT", "queues/q", {"paused": False}))
    assert len((await api.post("queues/q:lease"))["jobs"]) == 1


async def test_whoever_waits_at_a_queue_gets_the_job_as_it_comes(api: Api) -> None:
    waiting = [asyncio.create_task(api.post("queues/q:lease", wait="10s")) for _ in range(5)]
    await asyncio.sleep(0.3)
    started = time.monotonic()
    jobs = await asyncio.gather(*(api.post("jobs", job={"queue": "q"}) for _ in range(5)))
    leased = [(await task)["jobs"] for task in waiting]
    assert time.monotonic() - started < 8, "before their wait is over"
    assert sorted(job["job"]["jobId"] for [job] in leased) == sorted(job["job"]["jobId"] for job in jobs)


async def test_a_job_that_is_put_off_comes_at_its_time(
    platform: Platform, api: Api, eventually_async: Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
) -> None:
    later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    job = (await api.post("jobs", job={"queue": "q"}, runTime=later, requestId=new_id()))["job"]
    assert job["state"] == "JOB_STATE_DELAYED"

    async def is_ready() -> bool:
        return bool((await api.get(f"jobs/{job['jobId']}"))["job"]["state"] == "JOB_STATE_READY")

    await eventually_async(is_ready)
    assert time.time() >= time.mktime(time.strptime(later, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
