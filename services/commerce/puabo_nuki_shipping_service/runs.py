"""A day's deliveries with the tenant's own vehicles: the question to the route optimizer, and its answer."""

from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from google.protobuf.duration_pb2 import Duration

from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import (
    DeliveryRun,
    DeliveryVehicle,
    Location,
    Shipment,
)
from nexus.logistics.puabo_nexus_route_optimizer.v1 import routing_pb2 as routing
from services.chassis.clock import moment, timestamp

MOST_STOPS = 200
"""More are solved in the background, and nobody waits that long for an answer."""
_AT_THE_DOOR = Duration(seconds=180)
_WHY = {
    routing.UNASSIGNED_REASON_TOO_LARGE: "no vehicle can carry it",
    routing.UNASSIGNED_REASON_OUT_OF_REACH: "no vehicle gets there and back in time",
    routing.UNASSIGNED_REASON_FLEET_BUSY: "the vehicles are full",
}


def problem(
    day: date, zone: ZoneInfo, depot: Location, vehicles: Iterable[DeliveryVehicle], shipments: Iterable[Shipment]
) -> routing.Problem:
    midnight = datetime.combine(day, time(), zone)
    vehicles = list(vehicles)
    first = min(vehicle.start_second for vehicle in vehicles)
    home = _point(depot)
    result = routing.Problem(start_time=timestamp(midnight + timedelta(seconds=first)))
    for vehicle in vehicles:
        result.vehicles.add(
            vehicle_id=vehicle.vehicle_id,
            start=home,
            end=home,
            profile=routing.PROFILE_VAN,
            capacity={"grams": vehicle.max_grams, "parcels": vehicle.max_parcels},
            shift=routing.TimeWindow(
                start_time=timestamp(midnight + timedelta(seconds=vehicle.start_second)),
                end_time=timestamp(midnight + timedelta(seconds=vehicle.end_second)),
            ),
        )
    for shipment in shipments:
        result.jobs.add(
            task_id=shipment.shipment_id,
            place=routing.Place(point=_point(shipment.to.location), service_duration=_AT_THE_DOOR),
            delivery={"grams": shipment.parcel.weight_grams, "parcels": 1},
        )
    return result


def run_of(plan: routing.Plan, delivery_run_id: str, day: date, zone: ZoneInfo) -> DeliveryRun:
    midnight = datetime.combine(day, time(), zone)
    run = DeliveryRun(delivery_run_id=delivery_run_id, date=day.isoformat())
    for route in plan.routes:
        planned = run.routes.add(
            vehicle_id=route.vehicle_id,
            distance_metres=route.distance_metres,
            duration_seconds=route.duration.seconds,
        )
        jobs = [step for step in route.steps if step.kind == routing.STEP_KIND_JOB]
        for at, step in enumerate(jobs, start=1):
            arrival = moment(step.arrival_time) - midnight
            planned.stops.add(shipment_id=step.task_id, sequence=at, arrival_second=int(arrival.total_seconds()))
    for left_out in plan.unassigned:
        run.unplanned.add(shipment_id=left_out.task_id, reason=_WHY.get(left_out.reason, "it fits no route"))
    run.stops = sum(len(route.stops) for route in run.routes)
    run.distance_metres = sum(route.distance_metres for route in run.routes)
    return run


def is_complete(run: DeliveryRun, asked: Mapping[str, Shipment]) -> bool:
    """Whether every shipment asked for is on exactly one route, or left out with a reason."""
    told = [stop.shipment_id for route in run.routes for stop in route.stops]
    told += [left_out.shipment_id for left_out in run.unplanned]
    return sorted(told) == sorted(asked)


def _point(location: Location) -> routing.Point:
    return routing.Point(latitude=location.latitude, longitude=location.longitude)
