"""The use cases: measure, compute in a worker, keep. Nothing here computes by itself, so nothing else waits."""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from google.protobuf.message import Message

from nexus.logistics.puabo_nexus_route_optimizer.v1 import routing_pb2 as pb
from nexus.logistics.puabo_nexus_route_optimizer.v1.faults import (
    InsertionImpossible,
    SolutionFinished,
    SolutionNotReady,
    SolverLimitReached,
)
from services.chassis.clock import now
from services.chassis.database import acting_for
from services.chassis.errors import Fault
from services.chassis.service import Service
from services.chassis.table import Row
from services.logistics.puabo_nexus_route_optimizer import reoptimization
from services.logistics.puabo_nexus_route_optimizer.convert import Reader, Writer, point, require_no_own_skills
from services.logistics.puabo_nexus_route_optimizer.problem import Plan, Point, Problem, Task, Violation
from services.logistics.puabo_nexus_route_optimizer.reoptimization import Change, Progress
from services.logistics.puabo_nexus_route_optimizer.roads import RoadNetwork, Rows, Way
from services.logistics.puabo_nexus_route_optimizer.spec import Config
from services.logistics.puabo_nexus_route_optimizer.store import ATTEMPTS, LEASE, SolutionStore
from services.logistics.puabo_nexus_route_optimizer.workers import Workers

INLINE_SECONDS = 17.0
"""For those who wait: less than the contract's time, so that they learn why."""
QUICK_SECONDS = 8.0
DEFAULT_EFFORT = 1

Roads = dict[str, tuple[Rows, Rows]]

logger = logging.getLogger(__name__)


class Planner:
    """Plans for the call's tenant."""

    def __init__(self, service: Service) -> None:
        self._config: Config = service.configuration(Config)
        self.store = SolutionStore(service.database)
        self._workers = Workers(self._config.workers, self._config.worker_memory_mib)
        url = self._config.roads_url
        self.network = (
            RoadNetwork(url, self._config.roads_profiles, self._config.roads_table_cells) if url is not None else None
        )
        service.every(60.0, self._workers.tend)

    async def solve(self, problem: pb.Problem, seed: int, effort: int | None, late: bool) -> Row:
        """The solution of a question, or a row that waits for it."""
        solution_id = _id_of(problem, seed, -1 if effort is None else effort, late)
        known = await self.store.solutions.get(solution_id)
        if known is not None and known["state"] not in ("FAILED", "CANCELLED"):
            return known
        read = Reader(problem.start_time).problem(problem)
        require_no_own_skills(read.tasks, read.vehicles)
        effort = DEFAULT_EFFORT if effort is None else effort
        if late or read.stops > self._config.inline_stops:
            return await self.store.put(solution_id, problem, seed=seed, effort=effort)
        plan, source = await self._solved(read, seed, effort)
        return await self.store.put(
            solution_id,
            problem,
            seed=seed,
            effort=effort,
            plan=Writer(problem.start_time, read.points).plan(plan),
            travel_source=source,
        )

    async def insert(self, parent: Row, new_task: pb.Job | pb.Shipment) -> tuple[Row, int]:
        """The new solution, and what it costs more. Raises InsertionImpossible."""
        question, reader, problem, plan = _opened(parent)
        task = reader.job(new_task) if isinstance(new_task, pb.Job) else reader.shipment(new_task)
        require_no_own_skills([task])
        solution_id = _id_of(parent["solution_id"], new_task)
        known = await self.store.solutions.get(solution_id)
        if known is None:
            if reoptimization.is_under_way(problem):
                task = reoptimization.for_vehicles_under_way(task)
            problem = replace(problem, points=tuple(reader.points)).with_tasks([*problem.tasks, task])
            writer = Writer(question.start_time, problem.points)
            message = writer.problem(problem)
            Reader(question.start_time).problem(message)  # the id may be taken
            roads, source = await self._roads(problem)
            new: Plan = await self._workers.run(QUICK_SECONDS, "insert", problem, roads, plan, task)
            for one in new.unassigned:
                if one.task_id == task.task_id:
                    raise InsertionImpossible(task_id=task.task_id, why=one.reason.lower().replace("_", " "))
            known = await self.store.put(
                solution_id,
                message,
                seed=parent["seed"],
                effort=parent["effort"],
                plan=writer.plan(new),
                history=parent["history"],
                travel_source=source,
                parent_id=parent["solution_id"],
            )
        return known, pb.Plan.FromString(known["plan"]).cost - plan.cost

    async def reoptimize(self, parent: Row, request: Any) -> Row:
        """The new solution: what has been done as it was, and the rest planned anew."""
        question, reader, problem, plan = _opened(parent)
        history = {route.vehicle_id: route for route in pb.Plan.FromString(parent["history"]).routes}
        added: list[Task] = [*map(reader.job, request.added_jobs), *map(reader.shipment, request.added_shipments)]
        require_no_own_skills(added)
        solution_id = _id_of(request)
        known = await self.store.solutions.get(solution_id)
        if known is not None:
            return known
        # Of those that left in an earlier round, nobody need say where they have come since.
        progress = dict.fromkeys(history, Progress(1))
        progress |= {one.vehicle_id: _progress(one, history, reader) for one in request.progress}
        change = Change(
            now=max(0, reader.second(request.now)),
            progress=progress,
            added=tuple(added),
            removed_tasks=frozenset(request.removed_task_ids),
            removed_vehicles=frozenset(request.removed_vehicle_ids),
        )
        problem = replace(problem, points=tuple(reader.points))
        left = reoptimization.remaining(problem, plan, change)
        effort = request.effort if request.HasField("effort") else DEFAULT_EFFORT
        message = Writer(question.start_time, left.points).problem(left)
        left = Reader(question.start_time).problem(message)
        new, source = await self._solved(left, request.seed, effort)
        done = {one.vehicle_id: one.steps_done for one in request.progress}
        return await self.store.put(
            solution_id,
            message,
            seed=request.seed,
            effort=effort,
            plan=Writer(question.start_time, left.points).plan(new),
            history=_history(parent, done).SerializeToString(),
            travel_source=source,
            parent_id=parent["solution_id"],
        )

    async def check(self, question: pb.Problem, stated: pb.Plan) -> list[Violation]:
        reader = Reader(question.start_time)
        problem = reader.problem(question)
        roads, _ = await self._roads(problem)
        result: list[Violation] = await self._workers.run(QUICK_SECONDS, "check", problem, roads, reader.plan(stated))
        return result

    async def table(
        self, profile: str, origins: Sequence[Point], destinations: Sequence[Point]
    ) -> tuple[list[int], list[int], str]:
        """Seconds and metres, row by row, and where they come from."""
        roads: Roads = {}
        if self.network is not None and self.network.has(profile):
            roads[profile] = await self.network.table(profile, origins, destinations)
        seconds, metres = await self._workers.run(QUICK_SECONDS, "table", origins, destinations, (profile, 1.0), roads)
        return seconds, metres, "ROADS" if roads else "HAVERSINE"

    async def way(self, profile: str, points: Sequence[Point]) -> Way | None:
        """The way along the roads; None where there are none to follow."""
        if self.network is None or not self.network.has(profile):
            return None
        return await self.network.way(profile, points)

    async def finished(self, solution_id: str) -> Row:
        """A solution that has its plan. Raises SolutionNotFound, SolutionNotReady."""
        row = await self.store.solutions.require(solution_id)
        if row["state"] != "DONE":
            raise SolutionNotReady(solution_id=solution_id, state=row["state"].lower())
        return row

    async def cancel(self, solution_id: str) -> Row:
        row = await self.store.cancel(solution_id)
        if row is None:
            row = await self.store.solutions.require(solution_id)
            if row["state"] != "CANCELLED":
                raise SolutionFinished(solution_id=solution_id, state=row["state"].lower())
        return row

    async def _solved(self, problem: Problem, seed: int, effort: int) -> tuple[Plan, str]:
        roads, source = await self._roads(problem)
        return await self._workers.run(INLINE_SECONDS, "solve", problem, roads, seed, effort), source

    async def _roads(self, problem: Problem) -> tuple[Roads, str]:
        return await roads_of(self.network, problem)


class Background:
    """Solves what waits, of all tenants, one at a time: in rounds that look harder and harder, each of which leaves the
    best plan so far. Whoever dies over it lets go of it, and another takes over."""

    def __init__(self, service: Service, network: RoadNetwork | None) -> None:
        self._config: Config = service.configuration(Config)
        self._store = SolutionStore(service.database)
        self._workers = Workers(self._config.background_workers, self._config.worker_memory_mib)
        self._network = network
        for _ in range(self._config.background_workers):
            service.every(1.0, self.run)
        service.every(60.0, self._workers.tend)
        service.every(3600.0, self._store.forget_old)

    async def run(self) -> None:
        """Solve until nothing waits."""
        while (row := await self._store.claim()) is not None:
            with acting_for(row["tenant_id"]):
                failure = "The solver ended unexpectedly, several times." if row["attempts"] > ATTEMPTS else ""
                try:
                    if not failure:
                        await self._solve(row)
                except Fault as fault:
                    failure = fault.message
                except _LostError:
                    continue
                state = "FAILED" if failure else "DONE"
                await self._store.note(row, state=state, failure=failure, finish_time=now())

    async def _solve(self, row: Row) -> None:
        """Raises SolverLimitReached if not even the first round was done, and _LostError if the claim was."""
        question = pb.Problem.FromString(row["problem"])
        problem = Reader(question.start_time).problem(question)
        roads, source = await roads_of(self._network, problem)
        writer = Writer(question.start_time, problem.points)
        best: Plan | None = None
        deadline = asyncio.get_running_loop().time() + self._config.background_seconds
        for effort in range(row["rounds"]):
            left = deadline - asyncio.get_running_loop().time()
            try:
                work = self._workers.run(left, "solve", problem, roads, row["seed"], effort)
                plan = await self._held(row, work)
            except SolverLimitReached:
                if best is None:
                    raise
                return
            if best is None or _worth(problem, plan) < _worth(problem, best):
                best = plan
            found = writer.plan(best).SerializeToString()
            await self._store.note(row, rounds_done=effort + 1, plan=found, travel_source=source)

    async def _held(self, claim: Row, work: Awaitable[Plan]) -> Plan:
        """What the work makes. Keeps the claim meanwhile; when that is lost, ends the work and raises _LostError."""

        async def hold() -> None:
            while await self._store.renew(claim):  # noqa: ASYNC110  asks the database
                await asyncio.sleep(min(1.0, LEASE.total_seconds() / 5))

        working, holding = asyncio.ensure_future(work), asyncio.create_task(hold())
        try:
            await asyncio.wait((working, holding), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            holding.result()
            raise _LostError
        finally:
            working.cancel()
            holding.cancel()
            await asyncio.gather(working, holding, return_exceptions=True)


class _LostError(Exception):
    """Someone cancelled the solution, or took it over."""


async def roads_of(network: RoadNetwork | None, problem: Problem) -> tuple[Roads, str]:
    """The tables of those profiles that the road network has, and where distances come from then."""
    roads: Roads = {}
    for profile in dict.fromkeys(profile for profile, _ in problem.modes):
        if network is not None and network.has(profile):
            roads[profile] = await network.table(profile, problem.points, problem.points)
    return roads, "ROADS" if roads else "HAVERSINE"


def composed(row: Row) -> pb.Plan:
    """The plan as the driver sees it: with what had been done, when the rest was planned anew."""
    plan = pb.Plan.FromString(row["plan"])
    history = {route.vehicle_id: route for route in pb.Plan.FromString(row["history"]).routes}
    routes = {route.vehicle_id: route for route in plan.routes}
    for vehicle_id, before in history.items():
        route = routes.get(vehicle_id) or plan.routes.add(vehicle_id=vehicle_id)
        planned = Counter(route.steps[0].load if route.steps else {})
        rest = list(route.steps)[1:]  # its start is where the history ends
        stays = Counter(before.steps[-1].load)
        stays.subtract(planned)
        picked = {step.task_id for step in before.steps if step.kind == pb.STEP_KIND_PICKUP}
        travelled = max(step.distance_metres for step in before.steps)
        for step in rest:
            for name, amount in stays.items():
                step.load[name] += amount
            step.distance_metres += travelled if step.kind != pb.STEP_KIND_BREAK else 0
            if step.kind == pb.STEP_KIND_JOB and step.task_id in picked:
                step.kind = pb.STEP_KIND_DELIVERY
        del route.steps[:]
        route.steps.extend([*before.steps, *rest])
    return plan


def _history(parent: Row, done: Mapping[str, int]) -> pb.Plan:
    """What has been done of a solution, given how many steps of each route; never less than had been done before."""
    before = {route.vehicle_id: len(route.steps) for route in pb.Plan.FromString(parent["history"]).routes}
    history = pb.Plan()
    for route in composed(parent).routes:
        steps = route.steps[: max(done.get(route.vehicle_id, 0), before.get(route.vehicle_id, 0))]
        if steps:
            for step in history.routes.add(vehicle_id=route.vehicle_id, steps=steps).steps:
                step.done = True
    return history


def _progress(one: Any, history: Mapping[str, pb.Route], reader: Reader) -> Progress:
    """Progress on the part of the route that was planned last; the caller counts from its beginning."""
    earlier = len(history[one.vehicle_id].steps) - 1 if one.vehicle_id in history else 0
    return Progress(
        done=max(one.steps_done - earlier, 1 if earlier else 0),
        point=point(one.point) if one.HasField("point") else None,
        free=max(0, reader.second(one.free_time)) if one.HasField("free_time") else None,
    )


def _opened(row: Row) -> tuple[pb.Problem, Reader, Problem, Plan]:
    question = pb.Problem.FromString(row["problem"])
    reader = Reader(question.start_time)
    problem = reader.problem(question)
    return question, reader, problem, reader.plan(pb.Plan.FromString(row["plan"]))


def _worth(problem: Problem, plan: Plan) -> tuple[int, int, int]:
    """Less is better: important tasks left out, tasks left out, cost."""
    priority = {task.task_id: task.priority for task in problem.tasks}
    left_out = [priority[one.task_id] for one in plan.unassigned]
    return sum(left_out), len(left_out), plan.cost


def _id_of(*question: Message | str | int) -> str:
    """A UUIDv8 (RFC 9562, section 5.8) that is the same for the same question."""
    digest = hashlib.sha256()
    for part in question:
        if isinstance(part, Message):
            digest.update(part.DESCRIPTOR.full_name.encode() + part.SerializeToString(deterministic=True))
        else:
            digest.update(f"|{part}|".encode())
    raw = bytearray(digest.digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return str(UUID(bytes=bytes(raw)))
