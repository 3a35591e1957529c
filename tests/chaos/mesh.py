"""What the local mesh does to calls: how they end under load, and which instances serve them."""

import asyncio
import json
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from mesh.local.supervisor import ProcessState, read_state
from tests.platforms import Platform, eventually

Call = Callable[[], Awaitable[httpx.Response]]
PAUSE = 0.01
"""Seconds between two calls of a client, so that the platform has the machine to itself most of the time."""


@dataclass(frozen=True)
class Ended:
    """How one call of a load ended."""

    began: float
    """On the clock of `time.monotonic`."""
    seconds: float
    failure: str
    """Empty for an answer of 200."""


class Load:
    """Calls without end, from several clients at once, for as long as the block lasts."""

    def __init__(self, *calls: Call, clients: int = 4) -> None:
        self._calls = [call for call in calls for _ in range(clients)]
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []
        self.ended: list[Ended] = []

    @property
    def failures(self) -> list[str]:
        return [call.failure for call in self.ended if call.failure]

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._repeat(call)) for call in self._calls]
        await self.more(20)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def more(self, count: int) -> list[Ended]:
        """Wait until so many calls have ended that begin from now on, and return them."""
        since = time.monotonic()

        def begun_since() -> list[Ended]:
            found = [call for call in self.ended if call.began >= since]
            return found if len(found) >= count else []

        return list(await when(begun_since, seconds=60))

    async def _repeat(self, call: Call) -> None:
        while not self._over:
            began = time.monotonic()
            try:
                answer = await call()
                failure = "" if answer.status_code == 200 else f"{answer.status_code}: {answer.text}"
            except httpx.HTTPError as error:
                failure = repr(error)
            self.ended.append(Ended(began, time.monotonic() - began, failure))
            await asyncio.sleep(PAUSE)


class H2Load:
    """A load by a client that is not ours, as often as the block is long; without one where h2load is missing."""

    COUNTS = re.compile(r"(\d+) (succeeded|failed|errored|timeout|[2-5]xx)")
    SECONDS = 2

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        given = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
        self._command = ["h2load", f"--duration={self.SECONDS}", "--clients=4", "--rps=25", *given, url]
        self._over = False
        self._task: asyncio.Task[None] | None = None
        self.installed = shutil.which("h2load") is not None
        self.ended: Counter[str] = Counter()
        """How many calls "succeeded", "failed", …, and were answered by "2xx", …."""

    @property
    def failures(self) -> dict[str, int]:
        return {how: count for how, count in self.ended.items() if count and how not in ("succeeded", "2xx")}

    async def __aenter__(self) -> Self:
        if self.installed:
            self._task = asyncio.create_task(self._repeat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        if self._task is not None:
            await self._task

    async def _repeat(self) -> None:
        while not self._over:
            run = await asyncio.create_subprocess_exec(
                *self._command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            said, _ = await run.communicate()
            assert run.returncode == 0, said.decode()
            for count, how in self.COUNTS.findall(said.decode()):
                self.ended[how] += int(count)


async def when(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """`eventually`, while this test's own calls go on."""
    return await asyncio.to_thread(eventually, condition, seconds)


def percentile(share: float, calls: Sequence[Ended]) -> float:
    """The seconds within which this share of the calls ended."""
    ordered = sorted(call.seconds for call in calls)
    return ordered[int(len(ordered) * share)]


@dataclass(frozen=True)
class Instance:
    """One endpoint as a proxy sees it."""

    healthy: bool
    calls: int
    """How many the proxy has sent it; health checks do not count."""


class Proxy:
    """What a proxy says of itself over its admin socket: "mesh" or "edge"."""

    def __init__(self, platform: Platform, name: str) -> None:
        self._socket = platform.settings.run_dir / f"{name}-admin.sock"

    def instances(self, upstream: str) -> dict[str, Instance]:
        """The instances behind an upstream, by name: "user-auth.1"."""
        clusters = self._get("/clusters")["cluster_statuses"]
        found = next(cluster for cluster in clusters if cluster["name"] == upstream)
        result = {}
        for host in found["host_statuses"]:
            name = Path(host["address"]["pipe"]["path"]).name.removesuffix(".in.sock")
            stats = {stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]}
            healthy = set(host["health_status"]) == {"eds_health_status"}
            result[name] = Instance(healthy, stats["rq_total"])
        return result

    def calls(self, *upstreams: str) -> dict[str, int]:
        """How many calls each instance behind these upstreams has been sent."""
        return {name: instance.calls for upstream in upstreams for name, instance in self.instances(upstream).items()}

    def serials(self) -> set[str]:
        """Of the certificates that it holds."""
        return {chain["serial_number"] for held in self._get("/certs")["certificates"] for chain in held["cert_chain"]}

    def _get(self, path: str) -> Any:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self._socket)), base_url="http://admin") as admin:
            return json.loads(admin.get(path, params={"format": "json"}).raise_for_status().text)


def gained(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in before}


def process(platform: Platform, name: str) -> ProcessState:
    state = read_state(platform.settings.run_dir)
    assert state is not None, "the platform runs"
    return next(process for process in state.processes if process.name == name)


def send(platform: Platform, name: str, number: signal.Signals) -> int:
    """Send a process of the platform a signal; returns its id."""
    pid = process(platform, name).pid
    assert pid is not None
    os.kill(pid, number)
    return pid


def nexus(platform: Platform, *arguments: str) -> str:
    """What the `nexus` command prints."""
    return platform.nexus(*arguments).stdout


async def restart(platform: Platform, name: str) -> None:
    """End a process as a deployment would, and wait until it is back."""
    old = send(platform, name, signal.SIGTERM)

    def is_back() -> bool:
        new = process(platform, name)
        return new.pid != old and new.state == "ready"

    await when(is_back, seconds=60)
