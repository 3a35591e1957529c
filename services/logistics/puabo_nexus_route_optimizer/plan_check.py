"""Checks plans against problems, whoever made them. It shares no code with what makes plans: it walks each route as a
driver would, and knows the rules from the contract alone.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from services.logistics.puabo_nexus_route_optimizer.problem import (
    Amounts,
    Break,
    Job,
    Place,
    Plan,
    Problem,
    Route,
    Shipment,
    Step,
    Task,
    Vehicle,
    Violation,
    Window,
)
from services.logistics.puabo_nexus_route_optimizer.travel import Leg, Travel

_WORK = ("JOB", "PICKUP", "DELIVERY")


def check(problem: Problem, travel: Travel, plan: Plan) -> list[Violation]:
    """Every rule that the plan breaks; none for a plan that can be driven as it says."""
    vehicles = {vehicle.vehicle_id: vehicle for vehicle in problem.vehicles}
    tasks = {task.task_id: task for task in problem.tasks}
    found = list(_coverage(plan, tasks))
    for route in plan.routes:
        vehicle = vehicles.get(route.vehicle_id)
        if vehicle is None:
            found.append(Violation("UNKNOWN", "there is no such vehicle", route.vehicle_id))
            continue
        found.extend(_RouteCheck(route, vehicle, tasks, travel.legs[vehicle.mode]).run())
    return found


def _coverage(plan: Plan, tasks: dict[str, Task]) -> Iterator[Violation]:
    for vehicle_id, times in Counter(route.vehicle_id for route in plan.routes).items():
        if times > 1:
            yield Violation("REPEATED", f"the vehicle has {times} routes", vehicle_id)
    planned = Counter(step.task_id for route in plan.routes for step in route.steps if step.kind in ("JOB", "DELIVERY"))
    left_out = Counter(one.task_id for one in plan.unassigned)
    for task_id in tasks:
        times = planned[task_id] + left_out[task_id]
        if times == 0:
            yield Violation("TASK_MISSING", "the task is neither planned nor left out", task_id=task_id)
        elif times > 1:
            yield Violation("REPEATED", f"the task appears {times} times", task_id=task_id)
    for task_id in left_out:
        if task_id not in tasks:
            yield Violation("UNKNOWN", "there is no such task to leave out", task_id=task_id)


class _RouteCheck:
    """One route of one vehicle."""

    def __init__(self, route: Route, vehicle: Vehicle, tasks: dict[str, Task], leg: Leg) -> None:
        self._route, self._vehicle, self._tasks, self._leg = route, vehicle, tasks, leg
        self._breaks = {rest.break_id: rest for rest in vehicle.breaks}
        self._found: list[Violation] = []

    def run(self) -> list[Violation]:
        steps = self._route.steps
        if not steps:
            self._say("ORDER", "the route is empty")
            return self._found
        known = [self._is_known(number, step) for number, step in enumerate(steps)]
        if all(known):
            self._order(steps)
            self._loads(steps)
            self._times(steps)
            self._limits(steps)
        return self._found

    def _say(self, kind: str, description: str, step: int | None = None, task_id: str = "") -> None:
        self._found.append(Violation(kind, description, self._route.vehicle_id, step, task_id))

    def _is_known(self, number: int, step: Step) -> bool:
        """Whether the step is one of this problem, at its place."""
        if step.kind == "BREAK":
            fits = step.task_id in self._breaks
        elif step.kind in ("START", "END"):
            location = self._vehicle.start if step.kind == "START" else self._vehicle.end
            fits = location is not None and step.location == location
        else:
            place = self._place(step)
            fits = place is not None and step.location == place.location
        if not fits:
            self._say("UNKNOWN", f"the problem has no such {step.kind.lower()} there", number, step.task_id)
        return fits

    def _place(self, step: Step) -> Place | None:
        task = self._tasks.get(step.task_id)
        if isinstance(task, Job) and step.kind == "JOB":
            return task.place
        if isinstance(task, Shipment) and step.kind in ("PICKUP", "DELIVERY"):
            return task.pickup if step.kind == "PICKUP" else task.delivery
        return None

    def _order(self, steps: Sequence[Step]) -> None:
        starts = [number for number, step in enumerate(steps) if step.kind == "START"]
        ends = [number for number, step in enumerate(steps) if step.kind == "END"]
        if starts != ([0] if self._vehicle.start is not None else []):
            self._say("ORDER", "the route does not begin where the vehicle does")
        if ends != ([len(steps) - 1] if self._vehicle.end is not None else []):
            self._say("ORDER", "the route does not end where the vehicle does")
        for (kind, task_id), times in Counter((step.kind, step.task_id) for step in steps).items():
            if times > 1 and kind in (*_WORK, "BREAK"):
                self._say("REPEATED", f"{kind.lower()} {times} times", task_id=task_id)
        picked: set[str] = set()
        delivered: set[str] = set()
        for number, step in enumerate(steps):
            if step.kind == "PICKUP":
                picked.add(step.task_id)
            elif step.kind == "DELIVERY":
                delivered.add(step.task_id)
                if step.task_id not in picked:
                    self._say("ORDER", "delivered before it was picked up", number, step.task_id)
        for task_id in sorted(picked - delivered):
            self._say("ORDER", "picked up and never delivered", task_id=task_id)
        for rest in self._breaks.keys() - {step.task_id for step in steps if step.kind == "BREAK"}:
            self._say("BREAK_MISSING", "the break is not taken", task_id=rest)
        for number, step in enumerate(steps):
            if step.kind in _WORK and not self._tasks[step.task_id].skills <= self._vehicle.skills:
                self._say("SKILLS", "the vehicle lacks a skill", number, step.task_id)

    def _loads(self, steps: Sequence[Step]) -> None:
        on_board: Counter[str] = Counter()
        for step in steps:
            task = self._tasks.get(step.task_id)
            if step.kind == "JOB" and isinstance(task, Job):
                on_board.update(task.delivery)
        for number, step in enumerate(steps):
            if number == 0 and step.kind != "START":
                self._fits(on_board, None, "")  # what is on board before a first task
            task = self._tasks.get(step.task_id)
            if step.kind == "JOB" and isinstance(task, Job):
                on_board.subtract(task.delivery)
                on_board.update(task.pickup)
            elif step.kind == "PICKUP" and isinstance(task, Shipment):
                on_board.update(task.amount)
            elif step.kind == "DELIVERY" and isinstance(task, Shipment):
                on_board.subtract(task.amount)
            self._fits(on_board, number, step.task_id)
            if _positive(step.load) != _positive(on_board):
                self._say("SUM", f"the load is {_positive(on_board)}", number, step.task_id)

    def _fits(self, on_board: Amounts, number: int | None, task_id: str) -> None:
        for dimension, most in self._vehicle.capacity.items():
            if on_board.get(dimension, 0) > most:
                self._say("CAPACITY", f"{on_board[dimension]} {dimension} of {most}", number, task_id)

    def _times(self, steps: Sequence[Step]) -> None:
        metres = 0
        for number, step in enumerate(steps):
            windows, length = self._when(step)
            if not step.arrival <= step.begin <= step.departure:
                self._say("TIME", "it departs before it arrives", number, step.task_id)
            if step.departure - step.begin < length:
                self._say("TIME", f"it takes {length} s", number, step.task_id)
            if not any(window.start <= step.begin <= window.end for window in windows):
                self._say("WINDOW", "it begins outside its windows", number, step.task_id)
            if number and step.arrival < steps[number - 1].departure:
                self._say("TIME", "the step before has not ended", number, step.task_id)
        # A break may fall anywhere on the way, so the time under way counts from stop to stop, without the breaks;
        # while it waits for a break to begin, the vehicle goes on.
        last, rested = None, 0
        for number, step in enumerate(steps):
            if step.kind == "BREAK":
                rested += step.departure - step.begin
                continue
            if last is not None:
                seconds, way = self._between(last, step)
                metres += way
                if step.arrival - last.departure - rested < seconds:
                    self._say("TIME", f"the way takes {seconds} s", number, step.task_id)
            if step.metres != metres:
                self._say("SUM", f"it is {metres} m from the start", number, step.task_id)
            last, rested = step, 0
        shift = self._vehicle.shift
        if shift is None or steps[0].arrival < shift.start or steps[-1].departure > shift.end:
            self._say("SHIFT", "it is under way outside its shift")

    def _when(self, step: Step) -> tuple[tuple[Window, ...], int]:
        if step.kind == "BREAK":
            rest: Break = self._breaks[step.task_id]
            return rest.windows, rest.duration
        place = self._place(step)
        return ((Window(),), 0) if place is None else (place.windows, place.service)

    def _between(self, one: Step, other: Step) -> tuple[int, int]:
        return int(self._leg.seconds[one.location, other.location]), int(self._leg.metres[one.location, other.location])

    def _limits(self, steps: Sequence[Step]) -> None:
        route, vehicle = self._route, self._vehicle
        stops = [step for step in steps if step.kind != "BREAK"]
        ways = [self._between(one, other) for one, other in itertools.pairwise(stops)]
        travel, metres = sum(seconds for seconds, _ in ways), sum(way for _, way in ways)
        duration = steps[-1].departure - steps[0].arrival
        waiting = sum(step.begin - step.arrival for step in steps)
        cost = vehicle.cost.fixed + (
            vehicle.cost.per_hour * travel * 1000 + vehicle.cost.per_kilometre * metres * 3600
        ) // (3600 * 1000)
        for name, stated, true in (
            ("duration", route.duration, duration),
            ("time under way", route.travel, travel),
            ("waiting time", route.waiting, waiting),
            ("distance", route.metres, metres),
            ("cost", route.cost, cost),
        ):
            if stated != true:
                self._say("SUM", f"the {name} is {true}")
        for kind, most, true in (
            ("MAX_DURATION", vehicle.max_duration, duration),
            ("MAX_TRAVEL_TIME", vehicle.max_travel, travel),
            ("MAX_DISTANCE", vehicle.max_metres, metres),
            ("MAX_TASKS", vehicle.max_tasks, sum(step.kind in _WORK for step in steps)),
        ):
            if most is not None and true > most:
                self._say(kind, f"{true}, and at most {most} is allowed")


def _positive(amounts: Amounts) -> dict[str, int]:
    return {dimension: amount for dimension, amount in amounts.items() if amount}
