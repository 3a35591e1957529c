"""Contract to problem, plan to contract. Times of the contract are moments; ours count from the problem's start."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import timedelta
from math import ceil
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nexus.logistics.puabo_nexus_route_optimizer.v1 import routing_pb2 as pb
from nexus.logistics.puabo_nexus_route_optimizer.v1.faults import ProblemInvalid
from services.chassis.clock import moment, timestamp
from services.chassis.messages import MessageOf, text_of
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

NEVER = Window(HORIZON + 1, HORIZON + 1)
_NANOS = 1_000_000_000

_unassigned = MessageOf(pb.Unassigned)
_route = MessageOf(pb.Route, distance_metres="metres")
_step = MessageOf(pb.Step, without=["done"], distance_metres="metres")
_job = MessageOf(pb.Job)
_shipment = MessageOf(pb.Shipment)
_vehicle = MessageOf(pb.Vehicle, max_distance_metres="max_metres")
_cost = MessageOf(pb.VehicleCost)


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
        max_duration, max_travel = given(message, "max_duration"), given(message, "max_travel_time")
        cost = message.cost
        return Vehicle(
            vehicle_id=message.vehicle_id,
            start=self.location(given(message, "start")),
            end=self.location(given(message, "end")),
            mode=mode(message.profile, message.speed_factor),
            capacity=dict(message.capacity),
            skills=frozenset(message.skills),
            shift=shift[0] if shift else None,
            breaks=tuple(
                Break(rest.break_id, windows(map(self._span, rest.windows)), seconds(rest.duration))
                for rest in message.breaks
            ),
            max_duration=None if max_duration is None else seconds(max_duration),
            max_travel=None if max_travel is None else seconds(max_travel),
            max_metres=given(message, "max_distance_metres"),
            max_tasks=given(message, "max_tasks"),
            cost=Cost(cost.fixed, cost.per_hour if cost.per_hour or cost.per_kilometre else 3600, cost.per_kilometre),
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
            self.points.setdefault(point(message.point), len(self.points)),
            windows(map(self._span, message.windows)),
            seconds(message.service_duration),
        )

    def location(self, message: pb.Point | None) -> int | None:
        return None if message is None else self.points.setdefault(point(message), len(self.points))

    def second(self, message: Timestamp) -> int:
        """Whole seconds from the start, rounded up."""
        return -((self._nanos(self._start) - self._nanos(message)) // _NANOS)

    def plan(self, message: pb.Plan) -> Plan:
        """A plan as someone states it. A point that the problem does not have is a location of its own."""
        return Plan(
            tuple(map(self._route, message.routes)),
            tuple(Unassigned(one.task_id, text_of(pb.UnassignedReason, one.reason)) for one in message.unassigned),
        )

    def _route(self, message: pb.Route) -> Route:
        return Route(
            message.vehicle_id,
            tuple(
                Step(
                    kind=text_of(pb.StepKind, step.kind),
                    task_id=step.task_id,
                    location=self.location(given(step, "point")),
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
        start, end = given(message, "start_time"), given(message, "end_time")
        return None if start is None else self.second(start), None if end is None else self.second(end)

    @staticmethod
    def _nanos(message: Timestamp) -> int:
        return message.seconds * _NANOS + message.nanos


class Writer:
    """Writes what counts from a start, at these points."""

    def __init__(self, start: Timestamp, points: Sequence[Point]) -> None:
        self._start = moment(start)
        self._points = points

    def plan(self, plan: Plan) -> pb.Plan:
        unassigned = [_unassigned(columns(one)) for one in plan.unassigned]
        return pb.Plan(routes=map(self._route, plan.routes), unassigned=unassigned, cost=plan.cost)

    def _route(self, route: Route) -> pb.Route:
        return _route(
            columns(route),
            steps=map(self._step, route.steps),
            duration=Duration(seconds=route.duration),
            travel_duration=Duration(seconds=route.travel),
            waiting_duration=Duration(seconds=route.waiting),
        )

    def _step(self, step: Step) -> pb.Step:
        return _step(
            columns(step),
            point=self._point(step.location),
            arrival_time=self._moment(step.arrival),
            begin_time=self._moment(step.begin),
            departure_time=self._moment(step.departure),
        )

    def problem(self, problem: Problem) -> pb.Problem:
        """A problem of ours as the contract has it, to be kept."""
        return pb.Problem(
            start_time=timestamp(self._start),
            vehicles=map(self._vehicle, problem.vehicles),
            jobs=[_job(columns(job), place=self._place(job.place), skills=sorted(job.skills)) for job in problem.jobs],
            shipments=[
                _shipment(
                    columns(shipment),
                    pickup=self._place(shipment.pickup),
                    delivery=self._place(shipment.delivery),
                    skills=sorted(shipment.skills),
                )
                for shipment in problem.shipments
            ],
        )

    def _vehicle(self, vehicle: Vehicle) -> pb.Vehicle:
        profile, factor = vehicle.mode
        return _vehicle(
            columns(vehicle),
            start=self._point(vehicle.start),
            end=self._point(vehicle.end),
            profile=f"PROFILE_{profile}",
            speed_factor=factor,
            skills=sorted(vehicle.skills),
            shift=self._window(vehicle.shift or NEVER),
            breaks=[
                pb.Break(
                    break_id=rest.break_id,
                    windows=self._windows(rest.windows),
                    duration=Duration(seconds=rest.duration),
                )
                for rest in vehicle.breaks
            ],
            max_duration=None if vehicle.max_duration is None else Duration(seconds=vehicle.max_duration),
            max_travel_time=None if vehicle.max_travel is None else Duration(seconds=vehicle.max_travel),
            cost=_cost(columns(vehicle.cost)),
        )

    def _place(self, place: Place) -> pb.Place:
        return pb.Place(
            point=self._point(place.location),
            windows=self._windows(place.windows),
            service_duration=Duration(seconds=place.service),
        )

    def _windows(self, kept: Sequence[Window]) -> list[pb.TimeWindow]:
        return [self._window(window) for window in kept or (NEVER,)]

    def _window(self, window: Window) -> pb.TimeWindow:
        return pb.TimeWindow(start_time=self._moment(window.start), end_time=self._moment(window.end))

    def _point(self, location: int | None) -> pb.Point | None:
        return None if location is None else point_message(self._points[location])

    def _moment(self, second: int) -> Timestamp:
        return timestamp(self._start + timedelta(seconds=second))


def columns(value: Any) -> dict[str, Any]:
    """The fields of one of our values, for MessageOf."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def require_no_own_skills(tasks: Iterable[Task], vehicles: Iterable[Vehicle] = ()) -> None:
    """Raises ProblemInvalid for skills that only `reoptimization` gives."""
    for skill in (skill for one in (*tasks, *vehicles) for skill in one.skills):
        if skill.startswith(OWN_SKILLS):
            raise ProblemInvalid(why=f"the skill {skill} is the platform's own")


def mode(profile: int, speed_factor: float) -> Mode:
    return profile_name(profile), speed_factor or 1.0


def profile_name(profile: int) -> str:
    return text_of(pb.Profile, profile) or "CAR"


def seconds(duration: Duration) -> int:
    return ceil(duration.seconds + duration.nanos / _NANOS)


def point(message: pb.Point) -> Point:
    return message.latitude, message.longitude


def point_message(place: Point) -> pb.Point:
    return pb.Point(latitude=place[0], longitude=place[1])


def given(message: Any, field: str) -> Any:
    """What a message has in a field; None if nobody has set it."""
    return getattr(message, field) if message.HasField(field) else None
