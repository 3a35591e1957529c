"""What worker processes compute: each function is called by its name, through `workers.Workers`."""

from collections.abc import Sequence

from services.logistics.puabo_nexus_route_optimizer import insertion, plan_check, solver, travel
from services.logistics.puabo_nexus_route_optimizer.problem import (
    Mode,
    Plan,
    PlanBrokenError,
    Point,
    Problem,
    Task,
    Violation,
)
from services.logistics.puabo_nexus_route_optimizer.travel import Roads, Travel


def solve(problem: Problem, roads: Roads, seed: int, effort: int) -> Plan:
    """Raises PlanBrokenError."""
    ways = Travel.of(problem, roads)
    return _checked(problem, ways, solver.solve(problem, ways, seed, effort))


def insert(problem: Problem, roads: Roads, plan: Plan, task: Task) -> Plan:
    """Raises PlanBrokenError."""
    ways = Travel.of(problem, roads)
    return _checked(problem, ways, insertion.insert(problem, ways, plan, task))


def check(problem: Problem, roads: Roads, plan: Plan) -> list[Violation]:
    return plan_check.check(problem, Travel.of(problem, roads), plan)


def table(origins: Sequence[Point], destinations: Sequence[Point], mode: Mode, roads: Roads) -> travel.Flat:
    """Seconds and metres, row by row; -1 where there is no way."""
    return travel.measure(origins, destinations, mode, roads).flat()


def _checked(problem: Problem, ways: Travel, plan: Plan) -> Plan:
    violations = plan_check.check(problem, ways, plan)
    if violations:
        raise PlanBrokenError("; ".join(map(str, violations[:5])))
    return plan
