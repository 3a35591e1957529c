"""What computes is a process of its own: it ends when nobody waits for it, and keeps to its limits."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from nexus.logistics.puabo_nexus_route_optimizer.v1.faults import SolverLimitReached
from services.logistics.puabo_nexus_route_optimizer import planning
from services.logistics.puabo_nexus_route_optimizer.problem import Job, Place, Plan, Problem, Vehicle
from services.logistics.puabo_nexus_route_optimizer.servicer import RouteOptimizerService, RoutePlanningService
from services.logistics.puabo_nexus_route_optimizer.spec import DEFAULT, SERVICE
from services.logistics.puabo_nexus_route_optimizer.workers import Workers
from tests.chassis.calls import unconnected_service

EASY = Problem(((48.0, 11.0), (48.1, 11.1)), (Vehicle("van", 0, 0),), (Job("job", Place(1)),))
HARD = Problem(
    tuple((48 + number * 37 % 401 / 1000, 11 + number * 53 % 397 / 1000) for number in range(900)),
    tuple(Vehicle(f"v{number}", 0, 0, capacity={"kg": 12}) for number in range(80)),
    tuple(Job(f"j{number}", Place(number), {"kg": 1}) for number in range(900)),
)


@pytest.fixture
async def workers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Workers]:
    one = Workers(1, 512)
    yield one
    monkeypatch.setattr("services.logistics.puabo_nexus_route_optimizer.workers.IDLE_SECONDS", -1.0)
    await one.tend()
    assert not running()


def running() -> list[psutil.Process]:
    """The worker processes of this test."""
    children = psutil.Process().children()
    return [child for child in children if any("puabo_nexus_route_optimizer" in part for part in command(child))]


def command(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.NoSuchProcess:
        return []


async def solve(workers: Workers, problem: Problem, effort: int = 1, seconds: float = 60) -> Plan:
    plan: Plan = await workers.run(seconds, "solve", problem, {}, 0, effort)
    return plan


async def gone(process: psutil.Process) -> None:
    async with asyncio.timeout(20):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110  not ours to signal
            await asyncio.sleep(0.02)


def test_a_pod_has_the_memory_of_all_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of both services together: more would be ended by the kernel before they find a problem too large."""
    made: list[tuple[int, int]] = []

    class Noted(Workers):
        def __init__(self, size: int, memory_mib: int) -> None:
            super().__init__(size, memory_mib)
            made.append((size, memory_mib))

    monkeypatch.setattr(planning, "Workers", Noted)
    service = unconnected_service(DEFAULT)
    RouteOptimizerService(service)
    RoutePlanningService(service)
    assert sum(size * memory for size, memory in made) < SERVICE.memory_mib


async def test_a_process_is_used_again(workers: Workers) -> None:
    await solve(workers, EASY)
    (first,) = running()
    await solve(workers, EASY)
    assert running() == [first]


async def test_a_cancelled_call_takes_its_process_along_and_frees_its_place(workers: Workers) -> None:
    await solve(workers, EASY)
    (process,) = running()
    call = asyncio.create_task(solve(workers, HARD, effort=5))
    async with asyncio.timeout(20):
        while process.cpu_percent(0.05) < 10:  # noqa: ASYNC110  not ours to signal
            await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await gone(process)
    assert (await solve(workers, EASY)).routes


async def test_the_loop_goes_on_while_a_process_computes(workers: Workers) -> None:
    call = asyncio.create_task(solve(workers, EASY))
    rounds = 0
    while not call.done():
        await asyncio.sleep(0.01)
        rounds += 1
    assert (await call).routes
    assert rounds > 5, "it takes longer than that to start the process"


async def test_a_call_that_takes_too_long_is_ended(workers: Workers) -> None:
    await solve(workers, EASY)
    (process,) = running()
    with pytest.raises(SolverLimitReached, match="1 s"):
        await solve(workers, HARD, effort=5, seconds=1)
    await gone(process)


async def test_a_call_that_wants_too_much_memory_is_refused(workers: Workers) -> None:
    points = [(48.0, 11.0)] * 9000
    with pytest.raises(SolverLimitReached, match="512 MiB"):
        await workers.run(60, "table", points, points, ("CAR", 1.0), {})
    assert (await solve(workers, EASY)).routes


async def test_a_process_that_dies_is_replaced(workers: Workers) -> None:
    await solve(workers, EASY)
    (process,) = running()
    process.kill()
    with pytest.raises(SolverLimitReached):
        await solve(workers, EASY)
    assert (await solve(workers, EASY)).routes


async def test_idle_processes_give_their_memory_back(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    await solve(workers, EASY)
    (process,) = running()
    await workers.tend()
    assert process.is_running()
    monkeypatch.setattr("services.logistics.puabo_nexus_route_optimizer.workers.IDLE_SECONDS", -1.0)
    await workers.tend()
    await gone(process)


def test_the_service_itself_loads_no_solver() -> None:
    """The libraries are large, and all services of a domain share one process."""
    folder = Path(__file__).parents[2] / "services/logistics/puabo_nexus_route_optimizer"
    for name in ("servicer", "planning", "workers", "convert", "problem", "reoptimization", "roads", "reach"):
        source = (folder / f"{name}.py").read_text()
        assert not [
            word for word in ("import numpy", "import vroom", "import pandas", "solver import") if word in source
        ]
