"""What is to be planned, and what a plan says: plain values that processes hand to each other.

Times are whole seconds from the problem's start; places are indices into `Problem.points`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nexus.logistics.puabo_nexus_route_optimizer.v1.faults import ProblemInvalid

HORIZON = 31 * 24 * 3600
"""No plan reaches farther than this many seconds from its start."""

Amounts = Mapping[str, int]
Point = tuple[float, float]
"""Latitude and longitude, in degrees."""
Mode = tuple[str, float]
"""A profile ("CAR"), and how fast the vehicle is beside others of it."""


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` to `end`, both included."""

    start: int = 0
    end: int = HORIZON


ALWAYS = (Window(),)


@dataclass(frozen=True, slots=True)
class Break:
    break_id: str
    windows: tuple[Window, ...]
    duration: int


@dataclass(frozen=True, slots=True)
class Cost:
    fixed: int = 0
    per_hour: int = 3600
    per_kilometre: int = 0

    def of(self, travel: int, metres: int) -> int:
        return self.fixed + (self.per_hour * travel * 1000 + self.per_kilometre * metres * 3600) // 3_600_000


@dataclass(frozen=True, slots=True)
class Vehicle:
    vehicle_id: str
    start: int | None
    end: int | None
    mode: Mode = ("CAR", 1.0)
    capacity: Amounts = field(default_factory=dict)
    skills: frozenset[str] = frozenset()
    shift: Window | None = Window()
    """None for a shift that is over, or not yet to come within the horizon."""
    breaks: tuple[Break, ...] = ()
    max_duration: int | None = None
    max_travel: int | None = None
    max_metres: int | None = None
    max_tasks: int | None = None
    cost: Cost = Cost()


@dataclass(frozen=True, slots=True)
class Place:
    location: int
    windows: tuple[Window, ...] = ALWAYS
    """In order and apart; none when all of them are over."""
    service: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    task_id: str
    place: Place
    delivery: Amounts = field(default_factory=dict)
    pickup: Amounts = field(default_factory=dict)
    skills: frozenset[str] = frozenset()
    priority: int = 0

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.place,)

    def moves(self, kind: str) -> tuple[Amounts, Amounts]:
        """What a step of this kind takes off the vehicle, and what it puts on it."""
        return self.delivery, self.pickup


@dataclass(frozen=True, slots=True)
class Shipment:
    task_id: str
    pickup: Place
    delivery: Place
    amount: Amounts = field(default_factory=dict)
    skills: frozenset[str] = frozenset()
    priority: int = 0

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.pickup, self.delivery)

    def moves(self, kind: str) -> tuple[Amounts, Amounts]:
        return ({}, self.amount) if kind == "PICKUP" else (self.amount, {})


Task = Job | Shipment


@dataclass(frozen=True, slots=True)
class Problem:
    points: tuple[Point, ...]
    vehicles: tuple[Vehicle, ...]
    jobs: tuple[Job, ...] = ()
    shipments: tuple[Shipment, ...] = ()

    @property
    def tasks(self) -> tuple[Task, ...]:
        return (*self.jobs, *self.shipments)

    @property
    def stops(self) -> int:
        return len(self.jobs) + 2 * len(self.shipments)

    @property
    def modes(self) -> tuple[Mode, ...]:
        return tuple(dict.fromkeys(vehicle.mode for vehicle in self.vehicles))

    def with_tasks(self, tasks: Iterable[Task]) -> "Problem":
        """The same with these tasks only."""
        tasks = tuple(tasks)
        return replace(
            self,
            jobs=tuple(task for task in tasks if isinstance(task, Job)),
            shipments=tuple(task for task in tasks if isinstance(task, Shipment)),
        )


@dataclass(frozen=True, slots=True)
class Step:
    kind: str
    """START, JOB, PICKUP, DELIVERY, BREAK or END."""
    task_id: str
    location: int | None
    arrival: int
    begin: int
    departure: int
    load: Amounts = field(default_factory=dict)
    metres: int = 0
    """From the start of the route."""


@dataclass(frozen=True, slots=True)
class Route:
    vehicle_id: str
    steps: tuple[Step, ...]
    duration: int
    travel: int
    waiting: int
    metres: int
    cost: int


@dataclass(frozen=True, slots=True)
class Unassigned:
    task_id: str
    reason: str
    """SKILLS_MISSING, TOO_LARGE, WINDOW_MISSED, OUT_OF_REACH or FLEET_BUSY."""


@dataclass(frozen=True, slots=True)
class Plan:
    routes: tuple[Route, ...]
    unassigned: tuple[Unassigned, ...]

    @property
    def cost(self) -> int:
        return sum(route.cost for route in self.routes)


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a plan breaks, by its name in the contract."""

    kind: str
    description: str
    vehicle_id: str = ""
    step: int | None = None
    task_id: str = ""


class PlanBrokenError(Exception):
    """The solver made a plan that the validator does not let pass: a defect of ours."""


def windows(spans: Iterable[tuple[int | None, int | None]]) -> tuple[Window, ...]:
    """Spans of time as windows: in order, apart, within the horizon; always when there are none.

    Raises ProblemInvalid for one that ends before it begins.
    """
    merged: list[Window] = []
    closed = [(0 if start is None else start, HORIZON if end is None else end) for start, end in spans]
    if not closed:
        return ALWAYS
    for start, end in sorted(closed):
        if end < start:
            raise ProblemInvalid(why="a window ends before it begins")
        start, end = max(start, 0), min(end, HORIZON)
        if end < start:
            continue
        if merged and start <= merged[-1].end + 1:
            merged[-1] = Window(merged[-1].start, max(merged[-1].end, end))
        else:
            merged.append(Window(start, end))
    return tuple(merged)


def require_sound(problem: Problem) -> None:
    """Raises ProblemInvalid for what contradicts itself."""
    _require_unique("vehicle", (vehicle.vehicle_id for vehicle in problem.vehicles))
    _require_unique("task", (task.task_id for task in problem.tasks))
    for vehicle in problem.vehicles:
        if vehicle.start is None and vehicle.end is None:
            raise ProblemInvalid(why=f"the vehicle {vehicle.vehicle_id} has neither a start nor an end")
        _require_unique(f"break of {vehicle.vehicle_id}", (rest.break_id for rest in vehicle.breaks))


def _require_unique(what: str, ids: Iterable[str]) -> None:
    for name, count in Counter(ids).items():
        if count > 1:
            raise ProblemInvalid(why=f"{what} {name} is named {count} times")
