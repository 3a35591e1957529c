"""What is left to plan while vehicles are under way.

Goods are on board of particular vehicles now, so the problem that is left says, in skills of its own, who can do what:

- whoever is in service may do what needs nothing from the depot;
- who has not left yet may also take along what is still there;
- what is on board of a vehicle is delivered by that vehicle.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nexus.logistics.puabo_nexus_route_optimizer.v1.faults import ProblemInvalid, ProgressInvalid
from services.logistics.puabo_nexus_route_optimizer.problem import (
    Job,
    Plan,
    Point,
    Problem,
    Route,
    Shipment,
    Step,
    Task,
    Vehicle,
    Window,
)

OWN_SKILLS = "nexus:"
"""How the skills of this module begin; callers' skills may not."""
IN_SERVICE = OWN_SKILLS + "in-service"
AT_DEPOT = OWN_SKILLS + "at-depot"
ON_BOARD = OWN_SKILLS + "on-board-of:"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a vehicle has come: `done` steps of its route, and where and when it goes on."""

    done: int
    point: Point | None = None
    free: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    now: int
    progress: Mapping[str, Progress] = field(default_factory=dict)
    added: tuple[Task, ...] = ()
    removed_tasks: frozenset[str] = frozenset()
    removed_vehicles: frozenset[str] = frozenset()


def is_under_way(problem: Problem) -> bool:
    """Whether the problem is what is left of another."""
    return any(IN_SERVICE in vehicle.skills for vehicle in problem.vehicles)


def for_vehicles_under_way(task: Task) -> Task:
    """A task that comes when vehicles have left: what it needs from the depot only those take that are still there."""
    if OWN_SKILLS in "".join(task.skills):
        return task
    needed = {IN_SERVICE, AT_DEPOT} if isinstance(task, Job) and any(task.delivery.values()) else {IN_SERVICE}
    return replace(task, skills=task.skills | needed)


def remaining(problem: Problem, plan: Plan, change: Change) -> Problem:
    """The problem that is left.

    Raises ProgressInvalid for progress that does not fit the plan, ProblemInvalid if no vehicle is left.
    """
    routes = {route.vehicle_id: route for route in plan.routes}
    known = {vehicle.vehicle_id for vehicle in problem.vehicles}
    for vehicle_id, progress in change.progress.items():
        steps = len(routes[vehicle_id].steps) if vehicle_id in routes else 0
        if vehicle_id not in known:
            raise ProgressInvalid(why=f"the plan has no vehicle {vehicle_id}")
        if progress.done > steps:
            raise ProgressInvalid(why=f"the route of {vehicle_id} has {steps} steps")
    points = list(problem.points)
    vehicles: list[Vehicle] = []
    tasks = {task.task_id: task for task in problem.tasks}
    for vehicle in problem.vehicles:
        progress = change.progress.get(vehicle.vehicle_id, Progress(0))
        if progress.done:
            vehicles.append(_left(vehicle, routes[vehicle.vehicle_id], progress, change, tasks, points))
        elif vehicle.vehicle_id not in change.removed_vehicles:
            at_depot = set() if is_under_way(problem) and AT_DEPOT not in vehicle.skills else {AT_DEPOT}
            skills = vehicle.skills | {IN_SERVICE} | at_depot
            vehicles.append(replace(vehicle, shift=_from(vehicle.shift, change.now), skills=skills))
    if not vehicles:
        raise ProblemInvalid(why="no vehicle is left")
    for task_id in change.removed_tasks:
        if task_id in tasks and not _is_on_board(tasks[task_id]):
            del tasks[task_id]
    kept = [task if _is_on_board(task) else for_vehicles_under_way(task) for task in tasks.values()]
    added = [for_vehicles_under_way(task) for task in change.added]
    return Problem(tuple(points), tuple(vehicles)).with_tasks([*kept, *added])


def _left(
    vehicle: Vehicle, route: Route, progress: Progress, change: Change, tasks: dict[str, Task], points: list[Point]
) -> Vehicle:
    """The vehicle from where it is. Takes what it has done out of `tasks`, and binds to it what it has on board."""
    done, ahead = route.steps[: progress.done], route.steps[progress.done :]
    last = next((step for step in reversed(done) if step.location is not None), None)
    if last is None or last.location is None:
        raise ProgressInvalid(why=f"{vehicle.vehicle_id} has not been anywhere")
    start = last.location
    if progress.point is not None:
        points.append(progress.point)
        start = len(points) - 1
    carried: Counter[str] = Counter()  # to its end
    for step in done:
        task = tasks.get(step.task_id)
        if step.kind == "JOB" and isinstance(task, Job):
            carried.update(task.pickup)
            del tasks[step.task_id]
        elif step.kind == "DELIVERY":
            tasks.pop(step.task_id, None)
        elif step.kind == "PICKUP" and isinstance(task, Shipment):
            tasks[step.task_id] = _on_board(vehicle, task)
    for step in ahead:
        task = tasks.get(step.task_id)
        if step.kind == "JOB" and isinstance(task, Job) and any(task.delivery.values()):
            if step.task_id in change.removed_tasks:
                carried.update(task.delivery)
                del tasks[step.task_id]
            elif not _is_on_board(task):
                tasks[step.task_id] = replace(task, skills=task.skills | {ON_BOARD + vehicle.vehicle_id})
    in_service = set() if vehicle.vehicle_id in change.removed_vehicles else {IN_SERVICE}
    resting = {step.task_id for step in done if step.kind == "BREAK"}
    free = max(change.now, done[-1].departure if progress.free is None else progress.free)
    passed = free - route.steps[0].arrival
    return replace(
        vehicle,
        start=start,
        capacity={name: max(0, most - carried[name]) for name, most in vehicle.capacity.items()},
        skills=(vehicle.skills - {AT_DEPOT, IN_SERVICE}) | in_service | {ON_BOARD + vehicle.vehicle_id},
        shift=_from(vehicle.shift, free),
        breaks=tuple(rest for rest in vehicle.breaks if rest.break_id not in resting),
        max_duration=_less(vehicle.max_duration, passed),
        max_travel=_less(vehicle.max_travel, _travelled(done)),
        max_metres=_less(vehicle.max_metres, last.metres),
        max_tasks=_less(vehicle.max_tasks, sum(step.kind in ("JOB", "PICKUP", "DELIVERY") for step in done)),
        cost=replace(vehicle.cost, fixed=0),
    )


def _on_board(vehicle: Vehicle, shipment: Shipment) -> Job:
    skills = (shipment.skills - {IN_SERVICE, AT_DEPOT}) | {ON_BOARD + vehicle.vehicle_id}
    return Job(shipment.task_id, shipment.delivery, shipment.amount, {}, skills, max(shipment.priority, 100))


def _is_on_board(task: Task) -> bool:
    return any(skill.startswith(ON_BOARD) for skill in task.skills)


def _from(shift: Window | None, start: int) -> Window | None:
    if shift is None or shift.end < start:
        return None
    return Window(max(shift.start, start), shift.end)


def _less(most: int | None, used: int) -> int | None:
    return None if most is None else max(0, most - used)


def _travelled(done: Iterable[Step]) -> int:
    """Seconds under way, as planned: what was neither work, nor waiting, nor rest."""
    steps = list(done)
    spent = sum(step.departure - step.arrival for step in steps)
    return max(0, steps[-1].departure - steps[0].arrival - spent)
