"""Platforms come and go without a trace, also two of them side by side."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import grpc.aio
import httpx
import psutil
import pytest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from mesh.local.platform import edge_certificate
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
    return found + [f"socket {path.name}" for path in platform.settings.run_dir.rglob("*") if path.is_socket()]


def mentions(process: psutil.Process, home: str) -> bool:
    try:
        return any(home in argument for argument in process.info["cmdline"] or ()) or (
            process.environ().get("NEXUS_HOME") == home
        )
    except psutil.Error:
        return False


async def test_two_platforms_run_side_by_side_and_leave_nothing(platforms: tuple[Platform, Platform]) -> None:
    one, two = platforms
    with started(one, terminal=True) as supervisor, started(two, "--detach") as starting:
        try:
            assert starting.wait(timeout=PATIENCE) == 0, said(two)
            eventually(lambda: "is ready" in said(one) or supervisor.poll() is not None, PATIENCE)
            assert supervisor.poll() is None, said(one)
            assert one.ready()

            shown = said(one)
            for name in ("postgres", "redis", "identity", "edge"):
                assert 0 <= shown.find(name) < shown.find("is ready"), f"the progress of {name} is shown\n{shown}"
            for platform in (one, two):
                await assert_all_on_the_ready_screen_is_true(platform)

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


async def assert_all_on_the_ready_screen_is_true(platform: Platform) -> None:
    rows = dict(re.findall(r"^ +(https?|docs|grpc|demo user|try) +(.+?)\s*$", said(platform), re.MULTILINE))
    demo = dict(word.split() for word in rows["demo user"].split(", "))
    trusted = edge_certificate(platform.settings)
    async with httpx.AsyncClient(verify=trusted) as client:
        for url in (f"{rows['http']}/healthz", f"{rows['https']}/healthz", rows["docs"]):
            assert (await client.get(url)).status_code == 200, url
        login = f"{rows['http']}/api/v1/auth/login"
        credentials = {"email": demo["email"], "password": demo["password"]}
        answer = await client.post(login, headers={"x-nexus-tenant": demo["tenant"]}, json=credentials)
        assert answer.status_code == 200, answer.text
    [plaintext] = re.findall(r"(\S+) \(plaintext\)", rows["grpc"])
    async with grpc.aio.insecure_channel(plaintext) as channel:
        ask = ServerReflectionRequest(list_services="")
        async for answer in ServerReflectionStub(channel).ServerReflectionInfo(iter([ask])):
            assert len(answer.list_services_response.service) > 16


def started(platform: Platform, *options: str, terminal: bool = False) -> "subprocess.Popen[bytes]":
    """`nexus up`, while we go on."""
    platform.home.mkdir(parents=True, exist_ok=True)
    output = (platform.home / "up.out").open("wb")
    screen, end = pty.openpty() if terminal else (None, output.fileno())
    process = subprocess.Popen([*UP, *options], env=platform.environment, stdout=end, stderr=subprocess.STDOUT)
    if screen is None:
        output.close()
    else:
        os.close(end)
        threading.Thread(target=_copy, args=(screen, output), daemon=True).start()
    return process


def _copy(screen: int, output: IO[bytes]) -> None:
    """What a terminal shows, until nobody writes to it any more."""
    with output, contextlib.suppress(OSError):  # that is how Linux says so
        while shown := os.read(screen, 65_536):
            output.write(shown)
            output.flush()
    os.close(screen)


def said(platform: Platform) -> str:
    """As one reads it: without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", (platform.home / "up.out").read_text()).replace("\r", "")
