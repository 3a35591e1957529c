"""Fixtures of the whole suite: one real platform for a run, and a fresh tenant for each test.

The platform is started by the first test that asks for it, shared by all workers, and stopped at the end. A test
that hurts the platform (`tests/chaos`) starts its own with `tests.platforms.Platform`.
"""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import httpx
import hypothesis
import pytest
from filelock import FileLock

from services.chassis.clients import Clients
from services.chassis.config import Settings
from services.chassis.context import OPERATOR
from tests.platforms import RUN, STARTED, Platform, Tenant, free_offset

HOME = "TEST_PLATFORM_HOME"
SHARED = {"NEXUS_EDGE_CAPACITY": "512"}
"""Several tests at once are not the load of one platform: what is refused then is `tests/chaos/test_overload.py`'s."""

# How long an example takes is not what a test is about; benchmarks are. The same examples every time, so that what
# passes for one change passes for the next.
hypothesis.settings.register_profile("nexus", deadline=None, derandomize=True)
hypothesis.settings.load_profile("nexus")


def pytest_configure(config: pytest.Config) -> None:
    """Name the run's folder before workers inherit the environment."""
    for name in [name for name in os.environ if name.startswith("NEXUS_")]:
        del os.environ[name]
    os.environ.setdefault(RUN, str(os.getpid()))
    if HOME not in os.environ:
        home = tempfile.mkdtemp(prefix="nexus-test-")
        Path(home).chmod(0o711)  # PostgreSQL, which does not run as root, must pass through it
        os.environ[HOME] = home
        os.environ["XDG_CONFIG_HOME"] = str(Path(home) / "config")  # of platforms, for their unseal key


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors, for there is always a test that waits."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start a platform of their own come first: at the end one worker would wait for the other's."""
    items.sort(key=lambda item: "own_platform" not in getattr(item, "fixturenames", ()))


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    home = Path(os.environ.pop(HOME))
    shared = Platform(home / "platform", offset=_offset(home), variables=SHARED)
    shared.down()
    shutil.rmtree(home, ignore_errors=True)


def _offset(home: Path) -> int:
    """The port offset of the shared platform; the same for all workers."""
    chosen = home / "offset"
    if not chosen.exists():
        chosen.write_text(str(free_offset()))
    return int(chosen.read_text())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what went wrong in the platforms meanwhile."""
    report = yield
    if report.failed:
        for each in STARTED:
            if complaints := each.complaints(since=call.start):
                report.sections.append((f"complaints of {each.home} meanwhile", complaints))
    return report


@pytest.fixture(scope="session")
def platform() -> Platform:
    """The run's platform, ready."""
    home = Path(os.environ[HOME])
    with FileLock(home / "lock"):
        shared = Platform(home / "platform", offset=_offset(home), variables=SHARED)
        shared.up()
    return shared


@pytest.fixture(scope="session")
def settings(platform: Platform) -> Settings:
    return platform.settings


@pytest.fixture
async def tenant(platform: Platform) -> Tenant:
    """A tenant of the test's own."""
    return await platform.new_tenant()


@pytest.fixture
async def other_tenant(platform: Platform) -> Tenant:
    """A second tenant, to be kept out of the first."""
    return await platform.new_tenant()


@pytest.fixture
async def http(platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    """An outside client of the edge."""
    async with httpx.AsyncClient(base_url=platform.http_url, timeout=15) as client:
        yield client


@pytest.fixture
async def operator(platform: Platform) -> AsyncIterator[Clients]:
    """Stubs with the operator's identity, on the services' own sockets."""
    clients = Clients(platform.settings, OPERATOR, None)
    yield clients
    await clients.stop()
