"""The route optimizer's RPCs: proto to use cases and back."""

from typing import Any

from google.protobuf.duration_pb2 import Duration

from nexus.logistics.puabo_nexus_route_optimizer.v1 import route_optimizer_pb2 as pb
from nexus.logistics.puabo_nexus_route_optimizer.v1 import routing_pb2 as routing
from services.chassis.context import RequestContext
from services.chassis.messages import MessageOf
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.logistics.puabo_nexus_route_optimizer import reach
from services.logistics.puabo_nexus_route_optimizer.convert import (
    columns,
    given,
    point,
    point_message,
    profile_name,
    seconds,
)
from services.logistics.puabo_nexus_route_optimizer.planning import Background, Planner, composed

_head = MessageOf(routing.Solution, without=["plan"], parent_solution_id="parent_id")
_violation = MessageOf(routing.Violation)


class RouteOptimizerService:
    def __init__(self, service: Service) -> None:
        self._planner = service.shared(Planner)
        self._background = Background(service, self._planner.network)
        self._pager = Pager(service.sealer)

    async def Solve(self, request: pb.SolveRequest, call: RequestContext) -> pb.SolveResponse:
        return pb.SolveResponse(solution=_solution(await _solve(self._planner, request)))

    async def GetSolution(self, request: pb.GetSolutionRequest, call: RequestContext) -> pb.GetSolutionResponse:
        row = await self._planner.store.solutions.require(request.solution_id)
        problem = routing.Problem.FromString(row["problem"])
        return pb.GetSolutionResponse(solution=_solution(row), problem=problem)

    async def ListSolutions(self, request: pb.ListSolutionsRequest, call: RequestContext) -> pb.ListSolutionsResponse:
        rows, more = await self._pager.page(request, call, self._planner.store.heads.page, by="position")
        return pb.ListSolutionsResponse(solutions=map(_head, rows), next_page_token=more)

    async def CancelSolution(
        self, request: pb.CancelSolutionRequest, call: RequestContext
    ) -> pb.CancelSolutionResponse:
        return pb.CancelSolutionResponse(solution=_solution(await self._planner.cancel(request.solution_id)))

    async def CheckPlan(self, request: pb.CheckPlanRequest, call: RequestContext) -> pb.CheckPlanResponse:
        violations = await self._planner.check(request.problem, request.plan)
        return pb.CheckPlanResponse(valid=not violations, violations=[_violation(columns(one)) for one in violations])

    async def Insert(self, request: pb.InsertRequest, call: RequestContext) -> pb.InsertResponse:
        parent = await self._planner.finished(request.solution_id)
        row, added_cost = await self._planner.insert(parent, given(request, "job") or request.shipment)
        return pb.InsertResponse(solution=_solution(row), added_cost=added_cost)

    async def Reoptimize(self, request: pb.ReoptimizeRequest, call: RequestContext) -> pb.ReoptimizeResponse:
        parent = await self._planner.finished(request.solution_id)
        return pb.ReoptimizeResponse(solution=_solution(await self._planner.reoptimize(parent, request)))

    async def ComputeMatrix(self, request: pb.ComputeMatrixRequest, call: RequestContext) -> pb.ComputeMatrixResponse:
        return pb.ComputeMatrixResponse(matrix=await _matrix(self._planner, request))

    async def ComputeIsochrone(
        self, request: pb.ComputeIsochroneRequest, call: RequestContext
    ) -> pb.ComputeIsochroneResponse:
        origin, profile = point(request.origin), profile_name(request.profile)
        limits = [seconds(duration) for duration in request.durations]
        farthest = max(limits) * reach.TOP_SPEED[profile]
        samples = reach.samples(origin, farthest)
        times, _, source = await self._planner.table(profile, [origin], samples)
        known = [None if time < 0 else float(time) for time in times]
        return pb.ComputeIsochroneResponse(
            isochrones=[
                pb.Isochrone(
                    duration=Duration(seconds=limit),
                    ring=map(point_message, reach.outline(origin, farthest, known, limit)),
                )
                for limit in limits
            ],
            source=_source(source),
        )

    async def ComputeGeometry(
        self, request: pb.ComputeGeometryRequest, call: RequestContext
    ) -> pb.ComputeGeometryResponse:
        points, profile = [point(one) for one in request.points], profile_name(request.profile)
        way = await self._planner.way(profile, points)
        if way is not None:
            legs = [pb.Leg(duration=_whole(time), distance_metres=round(way)) for time, way in way.legs]
            return pb.ComputeGeometryResponse(line=map(point_message, way.line), legs=legs, source=_source("ROADS"))
        times, metres, _ = await self._planner.table(profile, points, points)
        steps = [index * len(points) + index + 1 for index in range(len(points) - 1)]
        legs = [pb.Leg(duration=Duration(seconds=times[step]), distance_metres=metres[step]) for step in steps]
        return pb.ComputeGeometryResponse(line=request.points, legs=legs, source=_source("HAVERSINE"))


class RoutePlanningService:
    """Has workers of its own: services do not wait behind users, nor users behind services."""

    def __init__(self, service: Service) -> None:
        self._planner = service.shared(Planner)

    async def PlanRoutes(self, request: pb.PlanRoutesRequest, call: RequestContext) -> pb.PlanRoutesResponse:
        return pb.PlanRoutesResponse(solution=_solution(await _solve(self._planner, request)))

    async def GetPlannedRoutes(
        self, request: pb.GetPlannedRoutesRequest, call: RequestContext
    ) -> pb.GetPlannedRoutesResponse:
        return pb.GetPlannedRoutesResponse(
            solution=_solution(await self._planner.store.solutions.require(request.solution_id))
        )

    async def MeasureTravel(self, request: pb.MeasureTravelRequest, call: RequestContext) -> pb.MeasureTravelResponse:
        return pb.MeasureTravelResponse(matrix=await _matrix(self._planner, request))


async def _solve(planner: Planner, request: pb.SolveRequest | pb.PlanRoutesRequest) -> Row:
    return await planner.solve(request.problem, request.seed, given(request, "effort"), request.background)


async def _matrix(planner: Planner, request: pb.ComputeMatrixRequest | pb.MeasureTravelRequest) -> pb.TravelMatrix:
    origins = [point(one) for one in request.origins]
    destinations = [point(one) for one in request.destinations] or origins
    times, metres, source = await planner.table(profile_name(request.profile), origins, destinations)
    return pb.TravelMatrix(seconds=times, metres=metres, source=_source(source))


def _solution(row: Row) -> routing.Solution:
    return _head(row, plan=None if row["plan"] is None else composed(row))


def _source(name: str) -> Any:
    return routing.TravelSource.Value(f"TRAVEL_SOURCE_{name}")


def _whole(time: float) -> Duration:
    return Duration(seconds=-int(-time // 1))
