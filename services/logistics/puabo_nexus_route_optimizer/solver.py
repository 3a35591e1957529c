"""Makes plans, with VROOM (https://github.com/VROOM-Project/vroom): construction heuristics and a local search that
know nothing of chance or of the clock, so that the same question has the same answer.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import vroom  # type: ignore[import-untyped]

from services.logistics.puabo_nexus_route_optimizer.problem import (
    Amounts,
    Job,
    Place,
    Plan,
    Problem,
    Route,
    Step,
    Task,
    Unassigned,
    Vehicle,
    Window,
)
from services.logistics.puabo_nexus_route_optimizer.travel import Leg, Travel

_WORK = ("JOB", "PICKUP", "DELIVERY")


def solve(problem: Problem, travel: Travel, seed: int, effort: int) -> Plan:
    """A plan that serves what it can, and says why it leaves out the rest. `effort` is from 0 to 5."""
    routes = _within_durations(problem, travel, seed, effort)
    planned = {step.task_id for route in routes for step in route.steps if step.kind in _WORK}
    left_out = [task for task in problem.tasks if task.task_id not in planned]
    return Plan(routes, tuple(Unassigned(task.task_id, why_not(problem, travel, task)) for task in left_out))


def why_not(problem: Problem, travel: Travel, task: Task) -> str:
    """Why a task is on no route: whether any vehicle could serve it if it had nothing else to do."""
    skilled = [vehicle for vehicle in problem.vehicles if task.skills <= vehicle.skills]
    if not skilled:
        return "SKILLS_MISSING"
    strong = [vehicle for vehicle in skilled if all(_carries(vehicle, amounts) for amounts in _burdens(task))]
    if not strong:
        return "TOO_LARGE"
    alone = replace(problem.with_tasks([task]), vehicles=tuple(strong))
    if _within_durations(alone, travel, 0, 0):
        return "FLEET_BUSY"
    at_any_time = alone.with_tasks([_without_windows(task)])
    return "WINDOW_MISSED" if _within_durations(at_any_time, travel, 0, 0) else "OUT_OF_REACH"


def route_of(vehicle: Vehicle, steps: Iterable[Step], tasks: Mapping[str, Task], leg: Leg) -> Route:
    """A route with its loads, distances and sums, from steps of which only the times are known."""
    steps = list(steps)
    load: Counter[str] = Counter()
    for step in steps:
        if step.kind == "JOB":
            load.update(tasks[step.task_id].moves("JOB")[0])
    travel = metres = 0
    last: int | None = None
    finished = []
    for step in steps:
        if step.kind in _WORK:
            off, on = tasks[step.task_id].moves(step.kind)
            load.subtract(off)
            load.update(on)
        if step.location is not None:
            if last is not None:
                travel += int(leg.seconds[last, step.location])
                metres += int(leg.metres[last, step.location])
            last = step.location
        on_board = {dimension: amount for dimension, amount in sorted(load.items()) if amount}
        finished.append(replace(step, load=on_board, metres=0 if step.location is None else metres))
    return Route(
        vehicle_id=vehicle.vehicle_id,
        steps=tuple(finished),
        duration=steps[-1].departure - steps[0].arrival,
        travel=travel,
        waiting=sum(step.begin - step.arrival for step in steps),
        metres=metres,
        cost=vehicle.cost.of(travel, metres),
    )


def _within_durations(problem: Problem, travel: Travel, seed: int, effort: int) -> tuple[Route, ...]:
    """Routes that keep to `max_duration`, which VROOM does not know: a vehicle that takes longer is given a shift of
    that length, from where its route began, and all is solved anew. Each round gives at least one vehicle its shift
    for good, so there are no more rounds than vehicles, and hardly ever more than three."""
    limits = {vehicle.vehicle_id: vehicle.max_duration for vehicle in problem.vehicles}
    while True:
        routes = _solve(problem, travel, seed, effort)
        long = {
            route.vehicle_id: route.steps[0].arrival
            for route in routes
            if route.duration > (limits[route.vehicle_id] or route.duration)
        }
        if not long:
            return routes
        vehicles = (
            replace(vehicle, shift=_shift(vehicle, long[vehicle.vehicle_id])) if vehicle.vehicle_id in long else vehicle
            for vehicle in problem.vehicles
        )
        problem = replace(problem, vehicles=tuple(vehicles))


def _shift(vehicle: Vehicle, start: int) -> Window:
    assert vehicle.shift is not None
    assert vehicle.max_duration is not None
    return Window(start, min(start + vehicle.max_duration, vehicle.shift.end))


def _solve(problem: Problem, travel: Travel, seed: int, effort: int) -> tuple[Route, ...]:
    vehicles = [vehicle for vehicle in problem.vehicles if _can_rest(vehicle)]
    tasks = [task for task in problem.tasks if all(place.windows for place in task.places)]
    if not vehicles or not tasks:
        return ()
    if seed:
        random.Random(seed).shuffle(tasks)  # noqa: S311  an order of search, not a secret
    # VROOM knows numbers, not names; and it copies its tables, so they hold the places in question only.
    places = sorted({place.location for task in tasks for place in task.places} | _depots(vehicles))
    number = {location: index for index, location in enumerate(places)}
    skills = {name: index for index, name in enumerate(sorted({name for task in tasks for name in task.skills}))}
    dimensions = sorted({name for task in tasks for amounts in _burdens(task) for name in amounts})
    enough = sum(sum(amounts.values()) for task in tasks for amounts in _burdens(task))

    def vector(amounts: Amounts) -> list[int]:
        return [amounts.get(dimension, 0) for dimension in dimensions]

    question = vroom.Input()
    modes = {mode: str(index) for index, mode in enumerate(dict.fromkeys(vehicle.mode for vehicle in vehicles))}
    for mode, profile in modes.items():
        square = np.ix_(places, places)
        question.set_durations_matrix(profile, travel.legs[mode].seconds[square])
        question.set_distances_matrix(profile, travel.legs[mode].metres[square])
    for index, vehicle in enumerate(vehicles):
        question.add_vehicle(
            _vehicle(
                index,
                vehicle,
                number,
                modes[vehicle.mode],
                [min(vehicle.capacity.get(dimension, enough), enough) for dimension in dimensions],
                {skills[name] for name in vehicle.skills if name in skills},
            )
        )
    for index, task in enumerate(tasks):
        common = {"skills": {skills[name] for name in task.skills}, "priority": task.priority}
        if isinstance(task, Job):
            question.add_job(
                vroom.Job(
                    index,
                    number[task.place.location],
                    default_service=task.place.service,
                    delivery=vector(task.delivery),
                    pickup=vector(task.pickup),
                    time_windows=_windows(task.place.windows),
                    **common,
                )
            )
        else:
            ends = [
                vroom.ShipmentStep(
                    index, number[place.location], default_service=place.service, time_windows=_windows(place.windows)
                )
                for place in task.places
            ]
            question.add_job(vroom.Shipment(*ends, amount=vector(task.amount), **common))
    return _routes(question.solve(exploration_level=effort, nb_threads=1), problem, vehicles, tasks, places, travel)


def _can_rest(vehicle: Vehicle) -> bool:
    """Whether all breaks can be taken one after the other within the shift: VROOM refuses vehicles of which that is not
    true."""
    if vehicle.shift is None:
        return False
    clock = vehicle.shift.start
    for rest in sorted(vehicle.breaks, key=lambda rest: [(window.start, window.end) for window in rest.windows]):
        begin = next((max(clock, window.start) for window in rest.windows if clock <= window.end), None)
        if begin is None:
            return False
        clock = begin + rest.duration
    return clock <= vehicle.shift.end


def _vehicle(
    index: int,
    vehicle: Vehicle,
    number: Mapping[int, int],
    profile: str,
    capacity: Sequence[int],
    skills: set[int],
) -> Any:
    assert vehicle.shift is not None
    known = {
        "max_tasks": vehicle.max_tasks,
        "max_travel_time": vehicle.max_travel,
        "max_distance": vehicle.max_metres,
    }
    limits = {name: most for name, most in known.items() if most is not None}
    cost = vehicle.cost
    return vroom.Vehicle(
        index,
        start=None if vehicle.start is None else number[vehicle.start],
        end=None if vehicle.end is None else number[vehicle.end],
        profile=profile,
        capacity=capacity,
        skills=skills,
        time_window=(vehicle.shift.start, vehicle.shift.end),
        breaks=[
            vroom.Break(place, time_windows=_windows(rest.windows), service=rest.duration)
            for place, rest in enumerate(vehicle.breaks)
        ],
        costs=vroom.VehicleCosts(fixed=cost.fixed, per_hour=cost.per_hour, per_km=cost.per_kilometre),
        **limits,
    )


def _routes(
    answer: Any,
    problem: Problem,
    vehicles: Sequence[Vehicle],
    tasks: Sequence[Task],
    places: Sequence[int],
    travel: Travel,
) -> tuple[Route, ...]:
    named = {task.task_id: task for task in tasks}
    steps: dict[int, list[Step]] = {}
    for row in answer.routes.to_dict("records"):
        vehicle = vehicles[row["vehicle_id"]]
        kind = str(row["type"]).upper()
        if (kind, vehicle.start) == ("START", None) or (kind, vehicle.end) == ("END", None):
            continue  # VROOM's stand-ins, at the first and the last stop
        task_id = ""
        if kind == "BREAK":
            task_id = vehicle.breaks[row["id"]].break_id
        elif kind in _WORK:
            task_id = tasks[row["id"]].task_id
        begin = row["arrival"] + row["waiting_time"]
        steps.setdefault(row["vehicle_id"], []).append(
            Step(
                kind=kind,
                task_id=task_id,
                location=None if kind == "BREAK" else places[row["location_index"]],
                arrival=row["arrival"],
                begin=begin,
                departure=begin + row["service"],
            )
        )
    routes = [
        route_of(vehicles[index], route, named, travel.legs[vehicles[index].mode]) for index, route in steps.items()
    ]
    order = {vehicle.vehicle_id: place for place, vehicle in enumerate(problem.vehicles)}
    return tuple(sorted(routes, key=lambda route: order[route.vehicle_id]))


def _windows(windows: Iterable[Window]) -> list[tuple[int, int]]:
    return [(window.start, window.end) for window in windows]


def _depots(vehicles: Iterable[Vehicle]) -> set[int]:
    return {place for vehicle in vehicles for place in (vehicle.start, vehicle.end) if place is not None}


def _burdens(task: Task) -> tuple[Amounts, ...]:
    return (task.delivery, task.pickup) if isinstance(task, Job) else (task.amount,)


def _carries(vehicle: Vehicle, amounts: Amounts) -> bool:
    return all(amounts[name] <= most for name, most in vehicle.capacity.items() if name in amounts)


def _without_windows(task: Task) -> Task:
    if isinstance(task, Job):
        return replace(task, place=Place(task.place.location, service=task.place.service))
    pickup, delivery = (Place(place.location, service=place.service) for place in task.places)
    return replace(task, pickup=pickup, delivery=delivery)
