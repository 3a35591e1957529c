"""Contract to problem, plan to contract. Times of the contract are moments; ours count from the problem's start."""

from collections.abc import Iterable, Sequence
from datetime import UTC, timedelta
from math import ceil
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nexus.logistics.puabo_nexus_route_optimizer.v1 import routing_pb2 as pb
from nexus.logistics.puabo_nexus_route_optimizer.v1.faults import ProblemInvalid
from services.chassis.clock import timestamp
from services.logistics.puabo_nexus_route_optimizer.problem import (
    HORIZON,
    Break,
    Cost,
    Job,
    Mode,
    Place,
    Plan,
    Point,
    Problem,
    Route,
    Shipment,
    Step,
    Task,
    Unassigned,
    Vehicle,
    Window,
    require_sound,
    windows,
)
from services.logistics.puabo_nexus_route_optimizer.reoptimization import OWN_SKILLS

_NANOS = 1_000_000_000


class Reader:
    """Reads messages of one problem: keeps its start, and numbers its points."""

    def __init__(self, start: Timestamp) -> None:
        self._start = start
        self.points: dict[Point, int] = {}

    def problem(self, message: pb.Problem) -> Problem:
        """Raises ProblemInvalid for what contradicts itself."""
        vehicles = tuple(map(self.vehicle, message.vehicles))
        jobs, shipments = tuple(map(self.job, message.jobs)), tuple(map(self.shipment, message.shipments))
        problem = Problem(tuple(self.points), vehicles, jobs, shipments)
        require_sound(problem)
        return problem

    def vehicle(self, message: pb.Vehicle) -> Vehicle:
        shift = windows([self._span(message.shift)]) if message.HasField("shift") else (Window(),)
        cost = message.cost
        return Vehicle(
            vehicle_id=message.vehicle_id,
            start=self.location(message.start) if message.HasField("start") else None,
            end=self.location(message.end) if message.HasField("end") else None,
            mode=mode(message.profile, message.speed_factor),
            capacity=dict(message.capacity),
            skills=frozenset(message.skills),
            shift=shift[0] if shift else None,
            breaks=tuple(
                Break(rest.break_id, windows(map(self._span, rest.windows)), seconds(rest.duration))
                for rest in message.breaks
            ),
            max_duration=seconds(message.max_duration) if message.HasField("max_duration") else None,
            max_travel=seconds(message.max_travel_time) if message.HasField("max_travel_time") else None,
            max_metres=message.max_distance_metres if message.HasField("max_distance_metres") else None,
            max_tasks=message.max_tasks if message.HasField("max_tasks") else None,
            cost=Cost(
                cost.fixed,
                cost.per_hour if cost.per_hour or cost.per_kilometre else 3600,
                cost.per_kilometre,
            ),
        )

    def job(self, message: pb.Job) -> Job:
        return Job(
            message.task_id,
            self.place(message.place),
            dict(message.delivery),
            dict(message.pickup),
            frozenset(message.skills),
            message.priority,
        )

    def shipment(self, message: pb.Shipment) -> Shipment:
        return Shipment(
            message.task_id,
            self.place(message.pickup),
            self.place(message.delivery),
            dict(message.amount),
            frozenset(message.skills),
            message.priority,
        )

    def place(self, message: pb.Place) -> Place:
        return Place(
            self.location(message.point), windows(map(self._span, message.windows)), seconds(message.service_duration)
        )

    def location(self, message: pb.Point) -> int:
        return self.points.setdefault(point(message), len(self.points))

    def second(self, message: Timestamp) -> int:
        """Whole seconds from the start, rounded up."""
        return -((self._nanos(self._start) - self._nanos(message)) // _NANOS)

    def plan(self, message: pb.Plan) -> Plan:
        """A plan as someone states it. A point that the problem does not have is a location of its own."""
        return Plan(
            tuple(map(self._route, message.routes)),
            tuple(Unassigned(one.task_id, _name(pb.UnassignedReason, one.reason)) for one in message.unassigned),
        )

    def _route(self, message: pb.Route) -> Route:
        return Route(
            message.vehicle_id,
            tuple(
                Step(
                    kind=_name(pb.StepKind, step.kind),
                    task_id=step.task_id,
                    location=self.location(step.point) if step.HasField("point") else None,
                    arrival=self.second(step.arrival_time),
                    begin=self.second(step.begin_time),
                    departure=self.second(step.departure_time),
                    load=dict(step.load),
                    metres=step.distance_metres,
                )
                for step in message.steps
            ),
            duration=seconds(message.duration),
            travel=seconds(message.travel_duration),
            waiting=seconds(message.waiting_duration),
            metres=message.distance_metres,
            cost=message.cost,
        )

    def _span(self, message: pb.TimeWindow) -> tuple[int | None, int | None]:
        end = self.second(message.end_time) if message.HasField("end_time") else None
        return self.second(message.start_time) if message.HasField("start_time") else None, end

    @staticmethod
    def _nanos(message: Timestamp) -> int:
        return message.seconds * _NANOS + message.nanos


class Writer:
    """Writes what was planned from a start on, at these points."""

    def __init__(self, start: Timestamp, points: Sequence[Point]) -> None:
        self._start = start.ToDatetime(tzinfo=UTC)
        self._points = points

    def plan(self, plan: Plan) -> pb.Plan:
        return pb.Plan(
            routes=map(self._route, plan.routes),
            unassigned=[
                pb.Unassigned(task_id=one.task_id, reason=pb.UnassignedReason.Value(f"UNASSIGNED_REASON_{one.reason}"))
                for one in plan.unassigned
            ],
            cost=plan.cost,
        )

    def _route(self, route: Route) -> pb.Route:
        return pb.Route(
            vehicle_id=route.vehicle_id,
            steps=map(self._step, route.steps),
            duration=Duration(seconds=route.duration),
            travel_duration=Duration(seconds=route.travel),
            waiting_duration=Duration(seconds=route.waiting),
            distance_metres=route.metres,
            cost=route.cost,
        )

    def _step(self, step: Step) -> pb.Step:
        return pb.Step(
            kind=pb.StepKind.Value(f"STEP_KIND_{step.kind}"),
            task_id=step.task_id,
            point=None if step.location is None else point_message(self._points[step.location]),
            arrival_time=self._moment(step.arrival),
            begin_time=self._moment(step.begin),
            departure_time=self._moment(step.departure),
            load=dict(step.load),
            distance_metres=step.metres,
        )

    def problem(self, problem: Problem) -> pb.Problem:
        """A problem of ours as the contract has it, to be kept."""
        return pb.Problem(
            start_time=timestamp(self._start),
            vehicles=map(self._vehicle, problem.vehicles),
            jobs=[
                pb.Job(
                    task_id=job.task_id,
                    place=self._place(job.place),
                    delivery=dict(job.delivery),
                    pickup=dict(job.pickup),
                    skills=sorted(job.skills),
                    priority=job.priority,
                )
                for job in problem.jobs
            ],
            shipments=[
                pb.Shipment(
                    task_id=shipment.task_id,
                    pickup=self._place(shipment.pickup),
                    delivery=self._place(shipment.delivery),
                    amount=dict(shipment.amount),
                    skills=sorted(shipment.skills),
                    priority=shipment.priority,
                )
                for shipment in problem.shipments
            ],
        )

    def _vehicle(self, vehicle: Vehicle) -> pb.Vehicle:
        profile, factor = vehicle.mode
        message = pb.Vehicle(
            vehicle_id=vehicle.vehicle_id,
            start=None if vehicle.start is None else point_message(self._points[vehicle.start]),
            end=None if vehicle.end is None else point_message(self._points[vehicle.end]),
            profile=pb.Profile.Value(f"PROFILE_{profile}"),
            speed_factor=factor,
            capacity=dict(vehicle.capacity),
            skills=sorted(vehicle.skills),
            shift=self._window(vehicle.shift or Window(HORIZON + 1, HORIZON + 1)),
            breaks=[
                pb.Break(
                    break_id=rest.break_id,
                    windows=self._windows(rest.windows),
                    duration=Duration(seconds=rest.duration),
                )
                for rest in vehicle.breaks
            ],
            max_distance_metres=vehicle.max_metres,
            max_tasks=vehicle.max_tasks,
            cost=pb.VehicleCost(
                fixed=vehicle.cost.fixed, per_hour=vehicle.cost.per_hour, per_kilometre=vehicle.cost.per_kilometre
            ),
        )
        if vehicle.max_duration is not None:
            message.max_duration.seconds = vehicle.max_duration
        if vehicle.max_travel is not None:
            message.max_travel_time.seconds = vehicle.max_travel
        return message

    def _place(self, place: Place) -> pb.Place:
        return pb.Place(
            point=point_message(self._points[place.location]),
            windows=self._windows(place.windows),
            service_duration=Duration(seconds=place.service),
        )

    def _windows(self, kept: Sequence[Window]) -> list[pb.TimeWindow]:
        return [self._window(window) for window in kept or [Window(HORIZON + 1, HORIZON + 1)]]

    def _window(self, window: Window) -> pb.TimeWindow:
        return pb.TimeWindow(start_time=self._moment(window.start), end_time=self._moment(window.end))

    def _moment(self, second: int) -> Timestamp:
        return timestamp(self._start + timedelta(seconds=second))


def require_no_own_skills(tasks: Iterable[Task], vehicles: Iterable[Vehicle] = ()) -> None:
    """Raises ProblemInvalid for skills that only `reoptimization` gives."""
    for skill in (skill for one in (*tasks, *vehicles) for skill in one.skills):
        if skill.startswith(OWN_SKILLS):
            raise ProblemInvalid(why=f"the skill {skill} is the platform's own")


def mode(profile: int, speed_factor: float) -> Mode:
    return profile_name(profile), speed_factor or 1.0


def profile_name(profile: int) -> str:
    return _name(pb.Profile, profile) if profile else "CAR"


def seconds(duration: Duration) -> int:
    return ceil(duration.seconds + duration.nanos / _NANOS)


def point(message: pb.Point) -> Point:
    return message.latitude, message.longitude


def point_message(place: Point) -> pb.Point:
    return pb.Point(latitude=place[0], longitude=place[1])


def _name(enum: Any, value: int) -> str:
    """`STEP_KIND_JOB` → `JOB`."""
    zero: str = enum.Name(0)
    full: str = enum.Name(value)
    return full.removeprefix(zero.removesuffix("UNSPECIFIED"))
