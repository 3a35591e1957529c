"""Schedulers that are killed again and again: every time has one run, and every run one job."""

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from services.chassis.config import Settings
from tests.platform import schedulers
from tests.platform.schedulers import Bench

pytestmark = pytest.mark.xdist_group("scheduler crashes")

SCHEDULES = 20
KILLS = 6


@pytest.fixture
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async for settings in schedulers.databases(tmp_path_factory.mktemp("crashes")):
        async for bench in schedulers.bench_on(settings, datetime.now(UTC)):
            yield bench


@contextlib.contextmanager
def replica(settings: Settings, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """`nexus serve scheduler`, killed at the end."""
    key = settings.home / "secrets" / "root.key"
    if not key.exists():
        key.parent.mkdir(exist_ok=True)
        key.write_bytes(secrets.token_bytes(32))
    assert settings.database_url is not None
    assert settings.redis_url is not None
    variables = {
        "NEXUS_HOME": str(settings.home),
        "NEXUS_INSTANCE": name,
        "NEXUS_DATABASE_URL": settings.database_url.get_secret_value(),
        "NEXUS_REDIS_URL": settings.redis_url.get_secret_value(),
        "NEXUS_SCHEDULER_TICK_SECONDS": "0.02",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "mesh.cli", "serve", "scheduler"],
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_one_run_for_each_time_however_often_schedulers_are_killed(bench: Bench) -> None:
    for number in range(SCHEDULES):
        await bench.create(
            {
                "name": f"s{number}",
                "timing": {"interval": {"every": "1s"}},
                "overlap": "OVERLAP_POLICY_ALLOW",
                "catchUp": {"policy": "CATCH_UP_POLICY_ALL"},
            }
        )

    async def reached(moment: datetime) -> None:
        """Every schedule has been run up to a moment."""
        query = "SELECT min(next_time) FROM scheduler.schedules"
        async with asyncio.timeout(60):
            while await bench.admin.fetchval(query) <= moment:  # noqa: ASYNC110  PostgreSQL tells only when asked
                await asyncio.sleep(0.01)

    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(replica(bench.settings, str(number))) for number in range(2)]
        await reached(bench.now)
        for kill in range(KILLS):
            victim = running.pop(0)
            # In the middle of a tick, as often as not: they all come up at the full second.
            now = datetime.now(UTC)
            await asyncio.sleep(1.0 - now.microsecond / 1e6 + 0.005 * kill)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            running.append(stack.enter_context(replica(bench.settings, f"more{kill}")))
        end = datetime.now(UTC)
        await reached(end)

    rows = await bench.admin.fetch(
        "SELECT schedule_id::text, array_agg(scheduled_for ORDER BY scheduled_for) AS times FROM scheduler.runs "
        "WHERE outcome = 'ENQUEUED' GROUP BY schedule_id"
    )
    assert len(rows) == SCHEDULES
    first = bench.now.replace(microsecond=0) + timedelta(seconds=1)
    for row in rows:
        until_end = [time for time in row["times"] if time <= end]
        assert until_end == [first + timedelta(seconds=n) for n in range(int((end - first).total_seconds()) + 1)]
    runs = await bench.admin.fetch("SELECT schedule_id, scheduled_for, job_id FROM scheduler.runs ORDER BY job_id")
    jobs = await bench.admin.fetch("SELECT schedule_id, scheduled_for, job_id FROM scheduler.jobs ORDER BY job_id")
    assert [tuple(row) for row in jobs] == [tuple(row) for row in runs]
