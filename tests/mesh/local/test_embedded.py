"""The embedded databases start, keep what they were told, and come back from a kill -9. Also as root."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis.asyncio

from mesh.local.embedded import Postgres, Redis
from mesh.local.supervisor import Patience, Supervisor
from services.chassis.config import Settings

QUICK = Patience(first_delay=0.05, stop=20)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(home=tmp_path / "home")
    for folder in (settings.home, settings.home / "logs", settings.run_dir):
        folder.mkdir(mode=0o700, exist_ok=True)
    yield settings
    outside = (settings.home / "postgres").resolve().parent
    if outside != settings.home.resolve():  # for root, whom pytest gives a folder that only root can enter
        shutil.rmtree(outside)


def running(settings: Settings) -> Supervisor:
    return Supervisor(settings.run_dir, settings.home / "logs", QUICK)


async def start(supervisor: Supervisor, database: Postgres | Redis) -> None:
    database.prepare()
    await supervisor.start([database.process()])


async def test_postgres_keeps_rows_over_a_stop_and_a_start(settings: Settings) -> None:
    database = Postgres(settings)
    async with running(settings) as supervisor:
        await start(supervisor, database)
        await execute(database, "CREATE TABLE kept AS SELECT 42 AS answer")
    async with running(settings) as supervisor:
        await start(supervisor, database)
        assert await fetch(database, "SELECT answer FROM kept") == 42


async def test_postgres_keeps_an_accepted_write_over_a_kill(settings: Settings) -> None:
    database = Postgres(settings)
    async with running(settings) as supervisor:
        await start(supervisor, database)
        await execute(database, "CREATE TABLE kept AS SELECT 42 AS answer")
        supervisor.kill()
    async with running(settings) as supervisor:
        await start(supervisor, database)
        assert await fetch(database, "SELECT answer FROM kept") == 42


async def test_postgres_sorts_alike_everywhere_and_forgets_nothing(settings: Settings) -> None:
    database = Postgres(settings)
    async with running(settings) as supervisor:
        await start(supervisor, database)
        for name, value in {"fsync": "on", "data_checksums": "on", "server_encoding": "UTF8"}.items():
            assert await fetch(database, f"SHOW {name}") == value
        assert await fetch(database, "SELECT datlocale FROM pg_database WHERE datname = 'nexus'") == "C.UTF-8"


async def test_a_lock_left_by_another_process_does_not_keep_postgres_down(settings: Settings) -> None:
    database = Postgres(settings)
    database.prepare()
    lock = settings.home / "postgres" / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n")
    async with running(settings) as supervisor:
        await start(supervisor, database)
        assert await fetch(database, "SELECT 1") == 1


async def test_a_first_start_cut_short_leaves_nothing_half_made(settings: Settings) -> None:
    database = Postgres(settings)
    database.prepare()
    data = (settings.home / "postgres").resolve()
    data.rename(data.with_name("postgres.new"))
    (data.with_name("postgres.new") / "PG_VERSION").unlink()
    async with running(settings) as supervisor:
        await start(supervisor, database)
        assert await fetch(database, "SELECT current_database()") == "nexus"


async def test_an_orphan_gives_way_to_the_next_start(settings: Settings) -> None:
    first, second = Postgres(settings), Postgres(settings)
    async with running(settings) as supervisor:
        await start(supervisor, first)
        orphan = psutil.Process(supervisor.state.processes[0].pid)
        second.prepare()
        assert not orphan.is_running()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another account to run as")
async def test_for_root_postgres_runs_as_somebody_else(settings: Settings) -> None:
    database = Postgres(settings)
    async with running(settings) as supervisor:
        await start(supervisor, database)
        assert psutil.Process(supervisor.state.processes[0].pid).username() == "nobody"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another account to run as")
async def test_for_root_a_new_home_has_a_new_database(settings: Settings) -> None:
    database = Postgres(settings)
    async with running(settings) as supervisor:
        await start(supervisor, database)
        await execute(database, "CREATE TABLE kept AS SELECT 42 AS answer")
    (settings.home / "postgres").unlink()
    async with running(settings) as supervisor:
        await start(supervisor, database)
        assert await fetch(database, "SELECT to_regclass('kept')") is None


async def test_redis_keeps_an_accepted_write_over_a_kill(settings: Settings) -> None:
    database = Redis(settings)
    async with running(settings) as supervisor:
        await start(supervisor, database)
        async with redis.asyncio.Redis.from_url(database.url) as client:
            await client.set("kept", "42")
        os.kill(supervisor.state.processes[0].pid or 0, signal.SIGKILL)
    async with running(settings) as supervisor:
        await start(supervisor, database)
        async with redis.asyncio.Redis.from_url(database.url) as client:
            assert await client.get("kept") == b"42"
            assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"


async def execute(database: Postgres, sql: str) -> None:
    await fetch(database, sql)


async def fetch(database: Postgres, sql: str) -> object:
    connection = await asyncpg.connect(database.url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()
