"""Platforms come and go without a trace, also two of them side by side."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.platforms import Platform, eventually

pytestmark = pytest.mark.xdist_group("chaos")

PATIENCE = 180
"""Seconds for two platforms that start at once on a busy machine."""
UP = [sys.executable, "-m", "mesh.cli", "up"]


@pytest.fixture
def platforms(tmp_path: Path) -> Iterator[tuple[Platform, Platform]]:
    """Two that have not been started."""
    pair = Platform(tmp_path / "one"), Platform(tmp_path / "two")
    yield pair
    for platform in pair:
        platform.down()


def traces(platform: Platform) -> list[str]:
    """Processes and sockets that belong to a platform."""
    home = str(platform.home)
    found = [
        f"process {process.info['name']}"
        for process in psutil.process_iter(["name", "cmdline"])
        if mentions(process, home)
    ]
    return found + [f"socket {path.name}" for path in platform.home.rglob("*") if path.is_socket()]


def mentions(process: psutil.Process, home: str) -> bool:
    try:
        return any(home in argument for argument in process.info["cmdline"] or ()) or (
            process.environ().get("NEXUS_HOME") == home
        )
    except psutil.Error:
        return False


async def test_two_platforms_run_side_by_side_and_leave_nothing(platforms: tuple[Platform, Platform]) -> None:
    one, two = platforms
    with started(one) as supervisor, started(two, "--detach") as starting:
        try:
            assert starting.wait(timeout=PATIENCE) == 0, said(two)
            eventually(lambda: one.ready() or supervisor.poll() is not None, PATIENCE)
            assert supervisor.poll() is None, said(one)

            # Each knows its own tenants only.
            tenant = await one.new_tenant()
            assert await tenant.sign_in()
            assert await (await two.new_tenant()).sign_in()

            again = one.nexus("up")
            assert "is already running" in " ".join(again.stdout.split())
            assert one.ready()

            supervisor.send_signal(signal.SIGINT)  # Ctrl-C
            assert supervisor.wait(timeout=60) == 0
            assert traces(one) == []
            assert two.ready(), "the other one goes on"
        finally:
            supervisor.kill()

    assert "Stopped" in two.nexus("down").stdout
    assert traces(two) == []
    assert "No platform runs" in two.nexus("down").stdout


def started(platform: Platform, *options: str) -> "subprocess.Popen[bytes]":
    """`nexus up`, while we go on."""
    platform.home.mkdir(parents=True, exist_ok=True)
    with (platform.home / "up.out").open("wb") as output:
        return subprocess.Popen([*UP, *options], env=platform.environment, stdout=output, stderr=subprocess.STDOUT)


def said(platform: Platform) -> str:
    return (platform.home / "up.out").read_text()[-4000:]
