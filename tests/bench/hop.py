"""`hop`: a call from one service to another through the mesh (two proxies, mTLS, allow-list) beside one straight to the
callee's socket; its latency and how many a second. `mesh-memory`: what the proxies hold.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable

from nexus.identity.token_mgr.v1.token_mgr_pb2 import GetJwksRequest
from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
from services.chassis.clients import Clients
from services.chassis.config import Settings
from services.chassis.context import OPERATOR
from tests.bench.measure import Result, compare
from tests.bench.running import MEBIBYTE
from tests.platforms import Platform

DIRECT = "unix:{run}/{service}.sock"
CALLS = 500
TOGETHER = 16
PROXIES = ("mesh", "edge")

Call = Callable[[], Awaitable[object]]


def latency(platform: Platform) -> Result:
    async def median_milliseconds(call: Call) -> float:
        seconds = []
        for _ in range(CALLS):
            began = time.perf_counter()
            await call()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds) * 1000

    return _compare(platform, "hop", "ms (p50)", "≤ 2.00", median_milliseconds)


def throughput(platform: Platform) -> Result:
    async def calls_a_second(call: Call) -> float:
        async def some() -> None:
            for _ in range(CALLS // TOGETHER):
                await call()

        began = time.perf_counter()
        await asyncio.gather(*(some() for _ in range(TOGETHER)))
        return CALLS // TOGETHER * TOGETHER / (time.perf_counter() - began)

    return _compare(platform, "hop-throughput", "calls/s", "≥ 0.50", calls_a_second)


def memory(platform: Platform) -> Result:
    def mebibytes() -> float:
        status = json.loads(platform.nexus("status", "--json").stdout)
        proxies = [process for process in status["processes"] if process["name"] in PROXIES]
        return float(sum(process["memory_bytes"] for process in proxies)) / MEBIBYTE

    return compare("mesh-memory", "MiB", "≤ 256 MiB", mebibytes, rounds=1)


def _compare(
    platform: Platform, bench: str, unit: str, bar: str, measure: Callable[[Call], Awaitable[float]]
) -> Result:
    """The measure of the cheapest call there is, so that the way weighs the most: through the mesh, and direct."""
    with asyncio.Runner() as runner:
        ways = [runner.run(_open(settings)) for settings in _ways(platform.settings)]
        try:
            mesh, direct = (lambda clients=clients: runner.run(_measured(clients, measure)) for clients in ways)
            return compare(bench, unit, bar, mesh, direct)
        finally:
            for clients in ways:
                runner.run(clients.stop())


def _ways(settings: Settings) -> tuple[Settings, Settings]:
    return settings, settings.model_copy(update={"service_address": DIRECT})


async def _open(settings: Settings) -> Clients:
    return Clients(settings, OPERATOR, None)


async def _measured(clients: Clients, measure: Callable[[Call], Awaitable[float]]) -> float:
    stub = clients.stub(TokenServiceStub)
    return await measure(lambda: stub.GetJwks(GetJwksRequest(), timeout=10.0))
