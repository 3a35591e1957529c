"""What callers of the HTTP API get, through TLS, edge and mesh: `read`, `read-node`, `read-cpu`, `write`, `cached`,
`scale`.

The peers are called on plain HTTP and on their own port, which is less than what ours does: the ratio says what all of
that costs together. Ours and the peer have one worker process each, but for `scale`.
"""

import asyncio
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from mesh.local.supervisor import read_state
from services.chassis.ids import new_id
from tests.bench.measure import WRK_SECONDS, Result, compare, wrk
from tests.bench.peers import running as peers
from tests.platforms import Platform, free_offset

CLIENTS, PRODUCTS = "/api/v1/clients", "/api/v1/shop/products"
PUBLISHES = True
"""CreateClient, the work of `write`, sends an event; the peers do what it does."""
NEW_CLIENT = """
local count, run = 0, "{run}"
request = function()
  count = count + 1
  local body = string.format(
    '{{"settings":{{"clientName":"Bench","redirectUris":["https://app.example.com/back"]}},' ..
    '"authentication":"CLIENT_AUTHENTICATION_NONE","requestId":"%s-%d"}}', run, count)
  return wrk.format("POST", nil, nil, body)
end
"""

Peer = Callable[..., AbstractContextManager[str]]


@dataclass(frozen=True)
class Work:
    """A signed-in user with one client to read."""

    headers: Mapping[str, str]
    client_id: str

    @property
    def path(self) -> str:
        return f"{CLIENTS}/{self.client_id}"


def read(platform: Platform) -> Result:
    return _read(platform, "read", "≥ 1.20", peers.fastapi)


def read_node(platform: Platform) -> Result:
    return _read(platform, "read-node", "≥ 0.50", peers.express)


def write(platform: Platform) -> Result:
    """A keyed insert: each request has a key of its own."""
    work = asyncio.run(prepare(platform))
    with _peer(platform, peers.fastapi) as peer, tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "write.lua"
        headers = {**work.headers, "content-type": "application/json"}

        def writes(base: str) -> float:
            script.write_text(NEW_CLIENT.format(run=new_id()))
            return wrk(base + CLIENTS, headers, script=script)

        return compare("write", "requests/s", "≥ 1.00", lambda: writes(platform.https_url), lambda: writes(peer))


def cached(platform: Platform) -> Result:
    """A public answer that the contract lets the edge keep, beside an Envoy that makes the same answer up."""
    tenant = asyncio.run(platform.new_tenant())
    answer = httpx.get(platform.http_url + PRODUCTS, headers=tenant.headers)
    answer.raise_for_status()
    with tempfile.TemporaryDirectory() as folder:
        port = free_offset()
        with peers.envoy(platform, port, answer.content, Path(folder)) as peer:
            return compare(
                "cached",
                "requests/s",
                "≥ 0.50",
                lambda: wrk(platform.https_url + PRODUCTS, tenant.headers),
                lambda: wrk(peer + PRODUCTS, tenant.headers),
            )


def scale(platform: Platform) -> Result:
    """Reads with two processes of the service beside reads with one."""
    with tempfile.TemporaryDirectory(prefix="nexus-bench-") as folder:
        Path(folder).chmod(0o711)
        doubled = Platform(Path(folder) / "platform")
        doubled.up("--replicas", "auth-service-v2=2")
        try:
            two, one = asyncio.run(prepare(doubled)), asyncio.run(prepare(platform))
            return compare(
                "scale",
                "requests/s",
                "report",
                lambda: wrk(doubled.https_url + two.path, two.headers),
                lambda: wrk(platform.https_url + one.path, one.headers),
            )
        finally:
            doubled.down()


def read_cpu(platform: Platform) -> Result:
    """Where the time of a read goes: CPU of each process that it passes."""
    work = asyncio.run(prepare(platform))
    url = platform.https_url + work.path
    running = read_state(platform.settings.run_dir)
    assert running is not None
    serving = next(process for process in running.processes if "auth-service-v2" in process.services)
    passed = {process.name: process for process in running.processes if process.name in ("edge", "mesh", serving.name)}
    each: dict[str, list[float]] = {name: [] for name in passed}

    def microseconds() -> float:
        before = {name: _cpu_seconds(process.pid) for name, process in passed.items()}
        calls = wrk(url, work.headers) * WRK_SECONDS
        for name, process in passed.items():
            each[name].append((_cpu_seconds(process.pid) - before[name]) / calls * 1e6)
        return sum(values[-1] for values in each.values())

    result = compare("read-cpu", "", "report", microseconds, rounds=3)
    parts = ", ".join(f"{name} {statistics.median(values):.0f}" for name, values in each.items())
    result.unit = f"µs CPU a read ({parts})"
    return result


def _cpu_seconds(pid: int | None) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _read(platform: Platform, bench: str, bar: str, peer: Peer) -> Result:
    work = asyncio.run(prepare(platform))
    with _peer(platform, peer) as url:
        return compare(
            bench,
            "requests/s",
            bar,
            lambda: wrk(platform.https_url + work.path, work.headers),
            lambda: wrk(url + work.path, work.headers),
        )


@contextmanager
def _peer(platform: Platform, peer: Peer) -> Iterator[str]:
    with peer(platform, free_offset(), 1, publishes=PUBLISHES) as url:
        yield url


async def prepare(platform: Platform) -> Work:
    """A tenant, its owner's session, a client to read; and the same rows for the peers."""
    tenant = await platform.new_tenant()
    user = await tenant.sign_in("owner")
    body: dict[str, Any] = {
        "settings": {"clientName": "Bench", "redirectUris": ["https://app.example.com/back"]},
        "authentication": "CLIENT_AUTHENTICATION_NONE",
        "requestId": new_id(),
    }
    async with httpx.AsyncClient(base_url=platform.http_url, timeout=15) as http:
        answer = await http.post(CLIENTS, headers=user.headers, json=body)
    assert answer.status_code == 200, answer.text
    await peers.prepare(platform)
    return Work(user.headers, answer.json()["client"]["clientId"])
