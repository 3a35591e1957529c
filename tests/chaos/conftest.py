"""A platform to be hurt, on databases of the test's own."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import httpx
import pytest

from mesh.local.embedded import Postgres, Redis
from mesh.local.platform import make_folders
from services.chassis.config import Settings
from tests.chaos.collector import Collector
from tests.chaos.servers import Server
from tests.platforms import Platform, eventually

DEFAULT_TIMEOUT = 4.0
"""Shorter than it is otherwise, so that the tests need not wait as long."""


@dataclass(frozen=True)
class Hurt:
    platform: Platform
    database: Server
    broker: Server


@pytest.fixture(scope="package")
async def databases(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Server, Server]]:
    settings = Settings(home=tmp_path_factory.mktemp("databases") / "home")
    make_folders(settings)
    database, broker = Server(Postgres(settings)), Server(Redis(settings))
    await database.start()
    await broker.start()
    yield database, broker
    database.kill()
    broker.kill()


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.stop()


@pytest.fixture(scope="package")
def hurt(
    databases: tuple[Server, Server], collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hurt]:
    database, broker = databases
    variables = {
        "NEXUS_OTLP_ENDPOINT": collector.url,
        "NEXUS_TRACE_RATIO": "1",
        "NEXUS_DATABASE_URL": database.url,
        "NEXUS_REDIS_URL": broker.url,
        "NEXUS_DEFAULT_TIMEOUT": str(DEFAULT_TIMEOUT),
    }
    platform = Platform(tmp_path_factory.mktemp("hurt") / "home", variables=variables)
    platform.up()
    yield Hurt(platform, database, broker)
    platform.down()


@pytest.fixture
async def edge(hurt: Hurt) -> AsyncIterator[httpx.AsyncClient]:
    """An outside client; at first all is well, whatever the last test did."""
    eventually(hurt.platform.ready)
    async with httpx.AsyncClient(base_url=hurt.platform.http_url, timeout=20) as client:
        yield client
