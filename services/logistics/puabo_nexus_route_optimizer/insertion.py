"""Puts one task into a plan where it costs least, and leaves every other task on its vehicle and in its order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from services.logistics.puabo_nexus_route_optimizer import plan_check, solver
from services.logistics.puabo_nexus_route_optimizer.problem import (
    Job,
    Place,
    Plan,
    Problem,
    Route,
    Shipment,
    Step,
    Task,
    Unassigned,
    Vehicle,
    Window,
)
from services.logistics.puabo_nexus_route_optimizer.travel import Leg, Travel


@dataclass(frozen=True, slots=True)
class _Visit:
    """A step that has no time yet."""

    kind: str
    task_id: str
    location: int | None
    windows: tuple[Window, ...]
    length: int


def insert(problem: Problem, travel: Travel, plan: Plan, task: Task) -> Plan:
    """The plan with the task, which is one of the problem's; where no place is found, it is left out with a reason."""
    routes = {route.vehicle_id: route for route in plan.routes}
    best: tuple[int, Route] | None = None
    for vehicle in problem.vehicles:
        if not task.skills <= vehicle.skills:
            continue
        old = routes.get(vehicle.vehicle_id)
        new = _fresh(problem, travel, vehicle, task) if old is None else _into(problem, travel, vehicle, old, task)
        if new is not None:
            added = new.cost - (old.cost if old is not None else 0)
            if best is None or added < best[0]:
                best = added, new
    if best is None:
        reason = solver.why_not(problem, travel, task)
        return replace(plan, unassigned=(*plan.unassigned, Unassigned(task.task_id, reason)))
    routes[best[1].vehicle_id] = best[1]
    order = (vehicle.vehicle_id for vehicle in problem.vehicles)
    return replace(plan, routes=tuple(routes[vehicle_id] for vehicle_id in order if vehicle_id in routes))


def schedule(vehicle: Vehicle, visits: Sequence[_Visit], leg: Leg) -> list[Step] | None:
    """The visits at their earliest, with a start as late as that allows; None where they cannot be kept.

    A later start never ends earlier, so the latest start that still ends at the earliest time is found by halving.
    """
    if vehicle.shift is None:
        return None
    earliest = _drive(visits, leg, vehicle.shift.start)
    if earliest is None or earliest[-1].departure > vehicle.shift.end:
        return None
    best, low, high = earliest, vehicle.shift.start, earliest[-1].departure
    while low < high:
        middle = (low + high + 1) // 2
        steps = _drive(visits, leg, middle)
        if steps is not None and steps[-1].departure == best[-1].departure:
            best, low = steps, middle
        else:
            high = middle - 1
    return best


def _drive(visits: Sequence[_Visit], leg: Leg, clock: int) -> list[Step] | None:
    """Each visit as early as it can be. While it waits for a break, the vehicle goes on."""
    steps: list[Step] = []
    ways = iter(pairwise([visit.location for visit in visits if visit.location is not None]))
    ahead = 0
    for visit in visits:
        arrival = clock if visit.location is None else clock + ahead
        begin = next((max(window.start, arrival) for window in visit.windows if arrival <= window.end), None)
        if begin is None:
            return None
        clock = begin + visit.length
        if visit.location is None:
            ahead = max(0, ahead - (begin - arrival))
        else:
            here, there = next(ways, (0, None))
            ahead = 0 if there is None else int(leg.seconds[here, there])
        steps.append(Step(visit.kind, visit.task_id, visit.location, arrival, begin, clock))
    return steps


def _into(problem: Problem, travel: Travel, vehicle: Vehicle, old: Route, task: Task) -> Route | None:
    """The cheapest route with the task that the validator lets pass."""
    leg = travel.legs[vehicle.mode]
    tasks = {known.task_id: known for known in problem.tasks}
    visits = [_visit(step, vehicle, tasks) for step in old.steps]
    ranked = sorted(_candidates(visits, vehicle, task), key=lambda candidate: _cost(candidate, vehicle, leg))
    own = problem.with_tasks([*(tasks[visit.task_id] for visit in visits if visit.kind in ("JOB", "DELIVERY")), task])
    for candidate in ranked:
        steps = schedule(vehicle, candidate, leg)
        if steps is not None:
            route = solver.route_of(vehicle, steps, tasks, leg)
            if not plan_check.check(own, travel, Plan((route,), ())):
                return route
    return None


def _fresh(problem: Problem, travel: Travel, vehicle: Vehicle, task: Task) -> Route | None:
    """The route of a vehicle that has had none."""
    alone = replace(problem.with_tasks([task]), vehicles=(vehicle,))
    return next(iter(solver.solve(alone, travel, 0, 0).routes), None)


def _candidates(visits: list[_Visit], vehicle: Vehicle, task: Task) -> Iterator[list[_Visit]]:
    first = 1 if vehicle.start is not None else 0
    last = len(visits) - (1 if vehicle.end is not None else 0)
    if isinstance(task, Job):
        for at in range(first, last + 1):
            yield [*visits[:at], _at(task.place, "JOB", task), *visits[at:]]
        return
    pickup, delivery = _at(task.pickup, "PICKUP", task), _at(task.delivery, "DELIVERY", task)
    for at in range(first, last + 1):
        for later in range(at, last + 1):
            yield [*visits[:at], pickup, *visits[at:later], delivery, *visits[later:]]


def _cost(visits: Sequence[_Visit], vehicle: Vehicle, leg: Leg) -> int:
    ways = list(pairwise([visit.location for visit in visits if visit.location is not None]))
    travel = sum(int(leg.seconds[way]) for way in ways)
    return vehicle.cost.of(travel, sum(int(leg.metres[way]) for way in ways))


def _visit(step: Step, vehicle: Vehicle, tasks: dict[str, Task]) -> _Visit:
    if step.kind == "BREAK":
        (rest,) = (rest for rest in vehicle.breaks if rest.break_id == step.task_id)
        return _Visit("BREAK", rest.break_id, None, rest.windows, rest.duration)
    if step.kind in ("START", "END"):
        return _Visit(step.kind, "", step.location, (Window(),), 0)
    task = tasks[step.task_id]
    if isinstance(task, Shipment):
        return _at(task.pickup if step.kind == "PICKUP" else task.delivery, step.kind, task)
    return _at(task.place, "JOB", task)


def _at(place: Place, kind: str, task: Task) -> _Visit:
    return _Visit(kind, task.task_id, place.location, place.windows, place.service)
