"""The route optimizer, as callers meet it."""

import asyncio
import itertools
from typing import Any

import httpx
import pytest

from nexus.logistics.puabo_nexus_route_optimizer.v1 import route_optimizer_pb2 as pb
from nexus.logistics.puabo_nexus_route_optimizer.v1.route_optimizer_pb2_grpc import RoutePlanningServiceStub
from services.chassis.clients import Clients
from services.chassis.ids import new_id
from tests.logistics.problems import MUNICH, START, job, near, problem
from tests.platforms import Platform, SignedIn, Tenant

JOBS = [job("a", 5), job("b", -7, 3), job("c", 2, 9)]


class Routes:
    """The API, as one user."""

    def __init__(self, http: httpx.AsyncClient, user: SignedIn) -> None:
        self._http, self._user = http, user

    async def post(self, path: str, /, **body: Any) -> httpx.Response:
        return await self._http.post(f"/api/v1/{path}", headers=self._user.headers, json=body)

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self._http.get(f"/api/v1/{path}", headers=self._user.headers, params=query)

    async def solve(self, question: dict[str, Any], **more: Any) -> dict[str, Any]:
        return solution(await self.post("route-solutions", problem=question, **more))

    async def until(self, solution_id: str, *states: str) -> dict[str, Any]:
        """Follow a solution until it is in one of the states."""
        async with asyncio.timeout(60):
            while True:
                found = solution(await self.get(f"route-solutions/{solution_id}"))
                if found["state"].removeprefix("SOLUTION_STATE_") in states:
                    return found
                await asyncio.sleep(0.1)


def solution(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["solution"]
    return found


def reason(answer: httpx.Response) -> Any:
    assert answer.status_code != 200, answer.text
    return answer.json()["details"][0]["reason"]


def order(found: dict[str, Any], route: int = 0) -> list[str]:
    return [step["taskId"] for step in found["plan"]["routes"][route]["steps"] if step.get("taskId")]


@pytest.fixture
async def routes(tenant: Tenant, http: httpx.AsyncClient) -> Routes:
    return Routes(http, await tenant.sign_in("owner"))


async def test_a_problem_is_solved_checked_and_kept(routes: Routes) -> None:
    found = await routes.solve(problem(*JOBS))
    assert found["state"] == "SOLUTION_STATE_DONE"
    assert sorted(order(found)) == ["a", "b", "c"]
    assert found["plan"]["routes"][0]["steps"][0]["arrivalTime"] >= START
    kept = await routes.get(f"route-solutions/{found['solutionId']}")
    assert kept.json()["solution"] == found
    check = await routes.post("route-plans:check", problem=kept.json()["problem"], plan=found["plan"])
    assert check.json().get("valid"), check.text


async def test_the_same_question_is_the_same_solution_also_when_many_ask_at_once(routes: Routes) -> None:
    answers = await asyncio.gather(*(routes.solve(problem(*JOBS), seed=7) for _ in range(5)))
    assert all(answer == answers[0] for answer in answers)
    other = await routes.solve(problem(*JOBS), seed=8)
    assert other["solutionId"] != answers[0]["solutionId"]
    listed = (await routes.get("route-solutions")).json()["solutions"]
    assert [one["solutionId"] for one in listed] == [other["solutionId"], answers[0]["solutionId"]]


async def test_the_list_of_solutions_has_pages(routes: Routes) -> None:
    ids = [(await routes.solve(problem(job("a", east))))["solutionId"] for east in range(3)]
    first = (await routes.get("route-solutions", page_size=2)).json()
    rest = (await routes.get("route-solutions", page_size=2, page_token=first["nextPageToken"])).json()
    assert [one["solutionId"] for one in first["solutions"] + rest["solutions"]] == ids[::-1]
    assert not rest.get("nextPageToken")


async def test_what_cannot_be_done_is_left_out_with_a_reason(routes: Routes) -> None:
    late = job("late", 5)
    late["place"]["windows"] = [{"startTime": "2027-02-01T00:00:00Z", "endTime": "2027-02-02T00:00:00Z"}]
    found = await routes.solve(problem(*JOBS, late, job("crane", 1, skills=["crane"])))
    assert {one["taskId"]: one["reason"] for one in found["plan"]["unassigned"]} == {
        "late": "UNASSIGNED_REASON_WINDOW_MISSED",
        "crane": "UNASSIGNED_REASON_SKILLS_MISSING",
    }


async def test_the_check_names_what_a_changed_plan_breaks(routes: Routes) -> None:
    found = await routes.solve(problem(*JOBS))
    found["plan"]["routes"][0]["steps"][1]["arrivalTime"] = START
    found["plan"]["routes"][0]["steps"][1]["beginTime"] = START
    del found["plan"]["routes"][0]["steps"][2]
    verdict = (await routes.post("route-plans:check", problem=problem(*JOBS), plan=found["plan"])).json()
    assert not verdict.get("valid")
    assert {one["kind"].removeprefix("VIOLATION_KIND_") for one in verdict["violations"]} >= {"TIME", "TASK_MISSING"}


@pytest.mark.parametrize(
    ("question", "why"),
    [
        (problem(JOBS[0], JOBS[0]), "PROBLEM_INVALID"),
        (problem(job("own", 1, skills=["nexus:at-depot"])), "PROBLEM_INVALID"),
        ({**problem(*JOBS), "vehicles": [{"vehicleId": "lost"}]}, "PROBLEM_INVALID"),
        ({**problem(*JOBS), "vehicles": []}, "INVALID_REQUEST"),
        (problem(job("far", 0, priority=101)), "INVALID_REQUEST"),
        (problem({"taskId": "pole", "place": {"point": {"latitude": 91}}}), "INVALID_REQUEST"),
        (problem({"taskId": "nan", "place": {"point": {"latitude": "NaN"}}}), "INVALID_REQUEST"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(routes: Routes, question: dict[str, Any], why: str) -> None:
    assert reason(await routes.post("route-solutions", problem=question)) == why


async def test_another_tenant_finds_nothing(routes: Routes, other_tenant: Tenant, http: httpx.AsyncClient) -> None:
    found = await routes.solve(problem(*JOBS))
    stranger = Routes(http, await other_tenant.sign_in("owner"))
    path = f"route-solutions/{found['solutionId']}"
    assert reason(await stranger.get(path)) == "SOLUTION_NOT_FOUND"
    assert reason(await stranger.post(f"{path}:cancel")) == "SOLUTION_NOT_FOUND"
    assert reason(await stranger.post(f"{path}:insert", job=job("x", 1))) == "SOLUTION_NOT_FOUND"
    assert (await stranger.get("route-solutions")).json().get("solutions", []) == []
    same = await stranger.solve(problem(*JOBS))
    assert same["solutionId"] == found["solutionId"], "the same question"
    assert same["createTime"] != found["createTime"], "and yet a row of its own"


async def test_who_may_not_solve_is_refused(tenant: Tenant, http: httpx.AsyncClient) -> None:
    user = Routes(http, await tenant.sign_in())
    assert reason(await user.post("route-solutions", problem=problem(*JOBS))) == "PERMISSION_MISSING"


async def test_a_large_problem_is_solved_in_the_background(routes: Routes) -> None:
    many = [job(f"j{number}", number % 17 * 3, number // 17 * 3) for number in range(210)]
    found = await routes.solve(problem(*many, vehicles=3), effort=0)
    assert found["state"] == "SOLUTION_STATE_QUEUED"
    done = await routes.until(found["solutionId"], "DONE", "FAILED")
    assert done["state"] == "SOLUTION_STATE_DONE"
    assert done["roundsDone"] == done["rounds"] == 1
    served = list(itertools.chain(*(order(done, route) for route in range(len(done["plan"]["routes"])))))
    assert sorted(served) == sorted(one["taskId"] for one in many)


async def test_work_in_the_background_can_be_called_off_and_asked_for_again(routes: Routes) -> None:
    many = [job(f"j{number}", number * 37 % 101, number * 53 % 97) for number in range(400)]
    hard = problem(*many, vehicles=20)
    found = await routes.solve(hard, effort=5, background=True)
    path = f"route-solutions/{found['solutionId']}"
    await routes.until(found["solutionId"], "RUNNING")
    assert solution(await routes.post(f"{path}:cancel"))["state"] == "SOLUTION_STATE_CANCELLED"
    # Its worker is free: it solves the next one long before the first would have been done.
    next_one = await routes.solve(problem(*JOBS), background=True)
    done = await routes.until(next_one["solutionId"], "DONE")
    assert reason(await routes.post(f"route-solutions/{next_one['solutionId']}:cancel")) == "SOLUTION_FINISHED"
    assert done["roundsDone"] == done["rounds"]
    assert reason(await routes.post(f"{path}:insert", job=job("x", 1))) == "SOLUTION_NOT_READY"
    again = await routes.solve(hard, effort=5, background=True)
    assert (again["solutionId"], again["state"]) == (found["solutionId"], "SOLUTION_STATE_QUEUED")
    await routes.post(f"{path}:cancel")


async def test_a_stop_is_inserted_and_the_others_keep_their_order(routes: Routes) -> None:
    found = await routes.solve(problem(*JOBS))
    path = f"route-solutions/{found['solutionId']}:insert"
    answer = await routes.post(path, job=job("new", 3))
    new = solution(answer)
    assert "new" in order(new)
    assert [task for task in order(new) if task != "new"] == order(found)
    assert int(answer.json()["addedCost"]) == int(new["plan"]["cost"]) - int(found["plan"]["cost"]) > 0
    assert new["parentSolutionId"] == found["solutionId"]
    assert solution(await routes.post(path, job=job("new", 3))) == new
    assert reason(await routes.post(path, job=job("a", 3))) == "PROBLEM_INVALID"
    assert reason(await routes.post(path, job=job("no", 3, skills=["crane"]))) == "INSERTION_IMPOSSIBLE"
    pair = {"taskId": "pair", "pickup": {"point": near(4)}, "delivery": {"point": near(-4)}}
    assert order(solution(await routes.post(path, shipment=pair))).count("pair") == 2


async def test_what_is_done_stays_done_when_the_rest_is_planned_anew(routes: Routes) -> None:
    pair = {"taskId": "pair", "pickup": {"point": near(1)}, "delivery": {"point": near(9, 9)}, "amount": {"kg": "2"}}
    found = await routes.solve(problem(*JOBS, shipments=[pair]))
    steps = found["plan"]["routes"][0]["steps"]
    picked = [step["kind"] for step in steps].index("STEP_KIND_PICKUP")
    done = {"vehicleId": "v0", "stepsDone": picked + 1}
    now = steps[picked]["departureTime"]
    path = f"route-solutions/{found['solutionId']}:reoptimize"
    new = solution(await routes.post(path, progress=[done], now=now, addedJobs=[job("new", 3)]))
    renewed = new["plan"]["routes"][0]["steps"]
    assert renewed[: picked + 1] == [{**step, "done": True} for step in steps[: picked + 1]]
    assert sorted(order(new)) == sorted([*order(found), "new"])
    delivered = [step for step in renewed if step.get("taskId") == "pair"][-1]
    assert delivered["kind"] == "STEP_KIND_DELIVERY"
    loads = [step.get("load", {}).get("kg", "0") for step in renewed]
    assert loads[picked] == "2"
    assert loads[-1] == "0"
    assert all(not step.get("done") and step["arrivalTime"] >= now for step in renewed[picked + 1 :])
    # And once more, from there: the caller counts from the beginning.
    again = solution(
        await routes.post(
            f"route-solutions/{new['solutionId']}:reoptimize",
            progress=[{"vehicleId": "v0", "stepsDone": picked + 2, "point": near(2, 2)}],
            now=renewed[picked + 1]["departureTime"],
        )
    )
    assert again["plan"]["routes"][0]["steps"][: picked + 2] == [
        {**step, "done": True} for step in renewed[: picked + 2]
    ]
    assert sorted(order(again)) == sorted(order(new))
    lost = await routes.post(path, progress=[{"vehicleId": "ghost"}], now=now)
    assert reason(lost) == "PROGRESS_INVALID"


async def test_a_matrix_is_by_the_great_circle_where_there_are_no_roads(routes: Routes) -> None:
    berlin = {"latitude": 52.52, "longitude": 13.405}
    answer = await routes.post("route-matrices:compute", origins=[MUNICH, berlin], profile="PROFILE_CAR")
    matrix = answer.json()["matrix"]
    assert matrix["source"] == "TRAVEL_SOURCE_HAVERSINE"
    assert matrix["metres"][0] == "0"
    assert int(matrix["metres"][1]) == pytest.approx(504_500, rel=0.002)
    assert int(matrix["seconds"][1]) == pytest.approx(int(matrix["metres"][1]) / (40 / 3.6), abs=1)
    one = await routes.post("route-matrices:compute", origins=[MUNICH], destinations=[berlin, MUNICH, berlin])
    assert len(one.json()["matrix"]["seconds"]) == 3


async def test_an_isochrone_without_roads_is_a_circle(routes: Routes) -> None:
    answer = await routes.post("isochrones:compute", origin=MUNICH, durations=["600s", "1200s"], profile="PROFILE_FOOT")
    near_ring, far_ring = (one["ring"] for one in answer.json()["isochrones"])
    assert near_ring[0] == near_ring[-1]
    metres = await routes.post(
        "route-matrices:compute", origins=[MUNICH], destinations=near_ring + far_ring, profile="PROFILE_FOOT"
    )
    distances = [int(metre) for metre in metres.json()["matrix"]["metres"]]
    assert distances[: len(near_ring)] == pytest.approx([750] * len(near_ring), abs=3)
    assert distances[len(near_ring) :] == pytest.approx([1500] * len(far_ring), abs=3)


async def test_a_line_without_roads_is_straight(routes: Routes) -> None:
    points = [MUNICH, near(10), near(10, 10)]
    drawn = (await routes.post("route-geometries:compute", points=points)).json()
    assert drawn["line"] == points
    assert len(drawn["legs"]) == 2
    assert int(drawn["legs"][1]["distanceMetres"]) == pytest.approx(1112, abs=2)


async def test_services_plan_without_a_user_and_outsiders_do_not(
    operator: Clients, tenant: Tenant, http: httpx.AsyncClient, platform: Platform
) -> None:
    planning = operator.stub(RoutePlanningServiceStub)
    question = pb.PlanRoutesRequest(seed=3)
    question.problem.start_time.FromJsonString(START)
    van = question.problem.vehicles.add(vehicle_id="van")
    van.start.latitude, van.start.longitude = 48.1, 11.5
    one = question.problem.jobs.add(task_id=new_id())
    one.place.point.latitude, one.place.point.longitude = 48.2, 11.6
    metadata = tuple(tenant.headers.items())
    planned = (await planning.PlanRoutes(question, metadata=metadata, timeout=20)).solution
    kinds = [step.kind for step in planned.plan.routes[0].steps]
    assert kinds == [1, 2], "an open route ends at its last stop"
    again = await planning.GetPlannedRoutes(
        pb.GetPlannedRoutesRequest(solution_id=planned.solution_id), metadata=metadata
    )
    assert again.solution == planned
    path = "/nexus.logistics.puabo_nexus_route_optimizer.v1.RoutePlanningService/PlanRoutes"
    outside = await http.post(path, headers={**tenant.headers, "content-type": "application/grpc"})
    assert outside.status_code != 200 or outside.headers.get("grpc-status") not in (None, "0")
