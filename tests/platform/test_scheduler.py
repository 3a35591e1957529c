"""Schedules and jobs by a clock that the tests set: one run for each time, overlap, catch-up, leases, limits."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from nexus.platform.scheduler.v1.faults import LeaseLost
from services.chassis.config import Settings
from services.chassis.context import acting_for
from services.platform.scheduler.attempts import backoff
from tests.platform import schedulers
from tests.platform.schedulers import Bench

pytestmark = pytest.mark.xdist_group("scheduler")

NOON = datetime(2031, 6, 1, 12, tzinfo=UTC)
MINUTELY = {"timing": {"interval": {"every": "60s"}}}


@pytest.fixture(scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Settings]:
    async for settings in schedulers.databases(tmp_path_factory.mktemp("scheduler")):
        yield settings


@pytest.fixture
async def bench(own: Settings) -> AsyncIterator[Bench]:
    async for bench in schedulers.bench_on(own, NOON):
        yield bench


def minutes(*numbers: int) -> list[datetime]:
    return [NOON + timedelta(minutes=number) for number in numbers]


def every(policy: str, *, catch_up: str = "LAST") -> dict[str, Any]:
    return {
        **MINUTELY,
        "overlap": f"OVERLAP_POLICY_{policy}",
        "catchUp": {"policy": f"CATCH_UP_POLICY_{catch_up}"},
    }


async def test_many_replicas_at_once_run_each_time_once(bench: Bench) -> None:
    for _ in range(3):
        await bench.scheduler()
    ids = [await bench.create({**every("ALLOW", catch_up="ALL"), "name": f"s{number}"}) for number in range(150)]
    for number in range(1, 6):
        bench.now = NOON + timedelta(minutes=number)
        await asyncio.gather(*(replica.ticker.round() for replica in bench.replicas * 2))
    # A round leaves out what another has locked; the next one finds nothing undone.
    await bench.replicas[0].ticker.round()
    counts = await bench.admin.fetch(
        "SELECT schedule_id::text AS id, count(*) AS runs, count(DISTINCT scheduled_for) AS times, "
        "(SELECT count(*) FROM scheduler.jobs j WHERE j.schedule_id = r.schedule_id) AS jobs "
        "FROM scheduler.runs r GROUP BY schedule_id"
    )
    assert {row["id"] for row in counts} == set(ids)
    assert {(row["runs"], row["times"], row["jobs"]) for row in counts} == {(5, 5, 5)}


async def test_the_database_itself_refuses_a_second_run(bench: Bench) -> None:
    schedule_id = await bench.create(MINUTELY)
    await bench.pass_time(minutes=1)
    with pytest.raises(asyncpg.UniqueViolationError):
        await bench.admin.execute(
            "INSERT INTO scheduler.runs (tenant_id, run_id, schedule_id, scheduled_for, cause, outcome) "
            "VALUES ($1, gen_random_uuid(), $2, $3, 'TIME', 'SKIPPED')",
            bench.tenant_id,
            schedule_id,
            NOON + timedelta(minutes=1),
        )


async def test_a_tick_that_is_cut_off_has_done_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule_id = await bench.create(MINUTELY)
    bench.now += timedelta(minutes=1)

    async def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench.replicas[0].ticker._schedules, "settle", die)  # after runs and jobs are written
        with pytest.raises(KeyboardInterrupt):
            await bench.replicas[0].ticker.round()
    assert await bench.runs(schedule_id) == []
    await bench.replicas[0].ticker.round()
    assert await bench.runs(schedule_id) == [(minutes(1)[0], "ENQUEUED")]


async def test_overlap_skip_leaves_out_what_comes_while_a_job_runs(bench: Bench) -> None:
    schedule_id = await bench.create(every("SKIP"))
    await bench.pass_time(minutes=1)
    [job] = await bench.lease()
    bench.now += timedelta(seconds=20)
    await bench.pass_time(seconds=40)
    assert await bench.runs(schedule_id) == [(minutes(1)[0], "ENQUEUED"), (minutes(2)[0], "SKIPPED")]
    # The lease has expired meanwhile, yet the job has not ended; then it does.
    bench.now = NOON + timedelta(minutes=2, seconds=5)
    await bench.replicas[0].ticker.round()
    [job] = await bench.lease()
    await bench.ack(job)
    await bench.pass_time(seconds=55)
    assert (await bench.runs(schedule_id))[-1] == (minutes(3)[0], "ENQUEUED")


async def test_overlap_allow_runs_both(bench: Bench) -> None:
    schedule_id = await bench.create(every("ALLOW"))
    await bench.pass_time(minutes=1)
    await bench.pass_time(minutes=1)
    assert await bench.states(schedule_id) == ["READY", "READY"]
    assert len(await bench.lease(5)) == 2


async def test_overlap_queue_runs_one_after_the_other_in_order(bench: Bench) -> None:
    await bench.create(every("QUEUE"))
    for _ in range(3):
        await bench.pass_time(minutes=1)
    for expected in minutes(1, 2, 3):
        [job] = await bench.lease(5)
        assert job["scheduled_for"] == expected
        assert await bench.lease(5) == []
        await bench.ack(job)


async def test_overlap_cancel_ends_the_earlier_one(bench: Bench) -> None:
    schedule_id = await bench.create(every("CANCEL"))
    await bench.pass_time(minutes=1)
    [job] = await bench.lease()
    await bench.pass_time(minutes=1)
    assert await bench.states(schedule_id) == ["CANCELLED", "READY"]
    with pytest.raises(LeaseLost):
        await bench.ack(job)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("NONE", [(1, "MISSED")]),
        ("LAST", [(1, "MISSED"), (4, "ENQUEUED")]),
        ("ALL", [(1, "ENQUEUED"), (2, "ENQUEUED"), (3, "ENQUEUED"), (4, "ENQUEUED")]),
    ],
)
async def test_after_an_outage_the_policy_decides(bench: Bench, policy: str, expected: list[tuple[int, str]]) -> None:
    schedule_id = await bench.create(
        {**every("ALLOW", catch_up=policy), "timing": {"cron": {"expression": "0 * * * *", "timeZone": "Europe/Paris"}}}
    )
    await bench.pass_time(hours=4, minutes=30)
    assert await bench.runs(schedule_id) == [(NOON + timedelta(hours=hour), outcome) for hour, outcome in expected]
    await bench.pass_time(minutes=30)
    assert (await bench.runs(schedule_id))[-1] == (NOON + timedelta(hours=5), "ENQUEUED")


async def test_a_schedule_of_a_suspended_tenant_rests_and_its_jobs_too(bench: Bench) -> None:
    schedule_id = await bench.create(every("ALLOW"))
    await bench.pass_time(minutes=1)
    await bench.admin.execute("UPDATE nexus.tenants SET state = 'suspended' WHERE tenant_id = $1", bench.tenant_id)
    await bench.pass_time(minutes=5)
    assert len(await bench.runs(schedule_id)) == 1
    assert await bench.lease() == []
    await bench.admin.execute("UPDATE nexus.tenants SET state = 'active' WHERE tenant_id = $1", bench.tenant_id)
    await bench.pass_time(seconds=1)
    assert [outcome for _, outcome in await bench.runs(schedule_id)] == ["ENQUEUED", "MISSED", "ENQUEUED"]


async def test_a_schedule_that_cannot_be_read_any_more_is_paused_and_holds_up_no_other(bench: Bench) -> None:
    broken = await bench.create({"timing": {"cron": {"expression": "* * * * *", "timeZone": "Asia/Tokyo"}}})
    sound = await bench.create({**MINUTELY, "name": "sound"})
    await bench.admin.execute(
        "UPDATE scheduler.schedules SET spec = jsonb_set(spec, '{timing,cron,timeZone}', '\"Asia/Atlantis\"') "
        "WHERE schedule_id = $1",
        broken,
    )
    await bench.pass_time(minutes=1)
    assert await bench.runs(sound) == [(minutes(1)[0], "ENQUEUED")]
    assert await bench.admin.fetchval("SELECT paused FROM scheduler.schedules WHERE schedule_id = $1", broken)


async def test_jitter_puts_the_job_off_and_not_the_time(bench: Bench) -> None:
    schedule_id = await bench.create({"timing": {"interval": {"every": "3600s"}, "jitter": "1800s"}})
    await bench.pass_time(hours=1)
    assert await bench.runs(schedule_id) == [(NOON + timedelta(hours=1), "ENQUEUED")]
    assert await bench.lease() == []
    await bench.pass_time(minutes=30)
    [job] = await bench.lease()
    assert bench.now - timedelta(minutes=30) < job["run_time"] < bench.now


async def test_a_lease_that_expires_gives_the_job_to_another(bench: Bench) -> None:
    job_id = await bench.enqueue()
    [first] = await bench.lease()
    await bench.pass_time(seconds=29)
    assert await bench.lease() == []
    await bench.pass_time(seconds=2)
    await bench.pass_time(seconds=2)  # its back-off
    [second] = await bench.lease()
    assert second["job_id"] == job_id
    assert second["attempts"] == 2
    assert second["last_error"] == "the lease of test expired"
    with pytest.raises(LeaseLost):
        await bench.ack(first)
    await bench.ack(second)
    await bench.ack(second)
    assert (await bench.job(job_id))["state"] == "DONE"


async def test_heartbeats_keep_a_job_until_its_run_time_out(bench: Bench) -> None:
    await bench.enqueue(job={"runTimeout": "60s"})
    [job] = await bench.lease()
    request = schedulers.heartbeat(job)
    with acting_for(bench.tenant_id):
        await bench.pass_time(seconds=25)
        assert await bench.replicas[0].board.extend(request) == NOON + timedelta(seconds=55)
        await bench.pass_time(seconds=25)
        assert await bench.replicas[0].board.extend(request) == NOON + timedelta(seconds=60)
        await bench.pass_time(seconds=11)
        with pytest.raises(LeaseLost):
            await bench.replicas[0].board.extend(request)


async def test_a_job_that_always_fails_is_dead_after_its_attempts_and_says_so(bench: Bench) -> None:
    job_id = await bench.enqueue(job={"retry": {"maxAttempts": 3, "firstBackoff": "10s", "longestBackoff": "15s"}})
    waits = []
    for attempt in range(1, 4):
        [job] = await bench.lease()
        assert job["attempts"] == attempt
        state = await bench.nack(job, error="no")
        waits.append((await bench.job(job_id))["run_time"] - bench.now)
        assert state == ("DEAD" if attempt == 3 else "DELAYED")
        await bench.pass_time(seconds=20)
    assert timedelta(seconds=7.5) <= waits[0] <= timedelta(seconds=12.5)
    assert timedelta(seconds=11.2) <= waits[1] <= timedelta(seconds=18.8)
    told = await bench.admin.fetchval(
        "SELECT count(*) FROM scheduler.events WHERE tenant_id = $1 AND type LIKE '%JobDied' AND aggregate = $2",
        bench.tenant_id,
        job_id,
    )
    assert told == 1


async def test_a_job_whose_worker_always_dies_is_dead_too(bench: Bench) -> None:
    job_id = await bench.enqueue(job={"retry": {"maxAttempts": 2}})
    for _ in range(2):
        assert await bench.lease()
        await bench.pass_time(seconds=31)
        await bench.pass_time(seconds=5)
    assert (await bench.job(job_id))["state"] == "DEAD"


async def test_a_released_job_is_ready_at_once_and_was_no_attempt(bench: Bench) -> None:
    await bench.enqueue(job={"retry": {"maxAttempts": 1}})
    [job] = await bench.lease()
    assert await bench.nack(job, released=True) == "READY"
    [job] = await bench.lease()
    assert job["attempts"] == 1


async def test_higher_priorities_go_first_and_delayed_ones_wait(bench: Bench) -> None:
    low = await bench.enqueue(job={"priority": -1})
    late = await bench.enqueue(job={"priority": 100}, runTime="2031-06-01T12:10:00Z")
    high = await bench.enqueue(job={"priority": 7})
    assert [job["job_id"] for job in await bench.lease()] == [high]
    assert [job["job_id"] for job in await bench.lease(5)] == [low]
    await bench.pass_time(minutes=10)
    assert late in [job["job_id"] for job in await bench.lease(5)]


async def test_a_unique_key_lets_one_job_in_until_it_has_ended(bench: Bench) -> None:
    first, twin = await asyncio.gather(bench.enqueue(uniqueKey="k"), bench.enqueue(uniqueKey="k"))
    assert first == twin
    assert await bench.enqueue("other", uniqueKey="k") != first
    [job] = await bench.lease()
    assert await bench.enqueue(uniqueKey="k") == first
    await bench.ack(job)
    assert await bench.enqueue(uniqueKey="k") != first


async def test_a_queue_has_no_more_at_work_than_its_limit_however_many_lease(bench: Bench) -> None:
    await bench.scheduler()
    for _ in range(30):
        await bench.enqueue()
    with acting_for(bench.tenant_id):
        await bench.replicas[0].jobs.queues.put(queue="work", max_leased=4, paused=False)
    leased = await asyncio.gather(*(bench.lease(3, replica=number % 2) for number in range(8)))
    taken = [job for jobs in leased for job in jobs]
    assert len(taken) == len({job["job_id"] for job in taken}) == 4
    await bench.ack(taken[0])
    assert len(await bench.lease(3)) == 1


async def test_a_limit_holds_though_a_more_urgent_job_comes_in_between(bench: Bench) -> None:
    await bench.scheduler()
    await bench.enqueue()
    with acting_for(bench.tenant_id):
        await bench.replicas[1].jobs.queues.put(queue="work", max_leased=1, paused=False)
        async with bench.replicas[0].database.transaction():
            assert len(await bench.lease()) == 1  # and it has not committed
            await bench.enqueue(job={"priority": 100}, replica=1)
            other = asyncio.create_task(bench.lease(replica=1))
            query = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
            while not (other.done() or await bench.admin.fetchval(query)):  # noqa: ASYNC110  PostgreSQL tells only when asked
                await asyncio.sleep(0.01)
        assert await other == []


async def test_two_with_one_serial_key_never_run_together(bench: Bench) -> None:
    await bench.scheduler()
    ids = [await bench.enqueue(serialKey="account 7") for _ in range(10)]
    done: list[str] = []
    while len(done) < 10:
        leased = await asyncio.gather(*(bench.lease(5, replica=number % 2) for number in range(6)))
        [job] = [job for jobs in leased for job in jobs]
        done.append(job["job_id"])
        await bench.ack(job)
    assert done == ids


async def test_tenants_take_turns_on_a_services_queue(bench: Bench) -> None:
    crowd = bench.tenant_id
    for _ in range(50):
        await bench.enqueue("billing-service.dun")
    quiet = bench.tenant_id = await bench.new_tenant()
    for _ in range(3):
        await bench.enqueue("billing-service.dun")
    turns = [(await bench.lease(queue="billing-service.dun"))[0]["tenant_id"] for _ in range(6)]
    assert Counter(turns) == {crowd: 3, quiet: 3}


async def test_a_tenant_leases_only_its_own_jobs(bench: Bench) -> None:
    await bench.enqueue()
    bench.tenant_id = await bench.new_tenant()
    assert await bench.lease(5) == []


async def test_what_ended_long_ago_is_forgotten(bench: Bench) -> None:
    old, new = await bench.enqueue(), await bench.enqueue()
    for job in await bench.lease(2):
        await bench.ack(job)
    await bench.admin.execute(
        "UPDATE scheduler.jobs SET end_time = CASE WHEN job_id = $1 THEN now() - interval '31 days' ELSE now() END", old
    )
    await bench.replicas[0].schedules.forget_old()
    assert [row["job_id"] for row in await bench.admin.fetch("SELECT job_id::text FROM scheduler.jobs")] == [new]


def test_the_back_off_grows_to_its_longest_and_no_further() -> None:
    waits = [backoff(timedelta(seconds=1), timedelta(hours=1), attempt).total_seconds() for attempt in range(1, 101)]
    assert all(0.75 * min(2**n, 3600) <= wait <= 1.25 * min(2**n, 3600) for n, wait in enumerate(waits))
