"""Distances along roads, from a server that speaks OSRM's protocol."""

import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from nexus.logistics.puabo_nexus_route_optimizer.v1.faults import NoRoad
from nexus.type.v1.faults import DependencyUnavailable
from services.logistics.puabo_nexus_route_optimizer import computing, reach
from services.logistics.puabo_nexus_route_optimizer.problem import Job, Place, Problem, Vehicle
from services.logistics.puabo_nexus_route_optimizer.roads import RoadNetwork

ISLAND_EAST_OF = 20.0
TABLE_SIZE = 16


class Handler(BaseHTTPRequestHandler):
    """A grid city: a hundred seconds and a kilometre for each hundredth of a degree, north or east; no bridge to what
    lies east of 20°."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        service, _, profile, coordinates = url.path[1:].split("/")
        points = [tuple(map(float, pair.split(","))) for pair in coordinates.split(";")]
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        status, answer = getattr(self, service)(points, query)
        body = json.dumps(answer).encode() if profile == "driving" else b"<html>"
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def table(self, points: list[Any], query: dict[str, str]) -> tuple[int, Any]:
        origins, destinations = (list(map(int, query[name].split(";"))) for name in ("sources", "destinations"))
        if len(origins) * len(destinations) > TABLE_SIZE:
            return 400, {"code": "TooBig", "message": "Too many table coordinates"}
        rows = [[hundredths(points[one], points[other]) for other in destinations] for one in origins]
        return 200, {
            "code": "Ok",
            "durations": [[None if way is None else way * 100.25 for way in row] for row in rows],
            "distances": [[None if way is None else way * 1000.0 for way in row] for row in rows],
        }

    def route(self, points: list[Any], query: dict[str, str]) -> tuple[int, Any]:
        ways = [hundredths(one, other) for one, other in itertools.pairwise(points)]
        if None in ways:
            return 400, {"code": "NoRoute", "message": "Impossible route between points"}
        line = [corner for one, other in itertools.pairwise(points) for corner in (one, (other[0], one[1]))]
        legs = [{"duration": way * 100.0, "distance": way * 1000.0} for way in ways if way is not None]
        return 200, {
            "code": "Ok",
            "routes": [{"geometry": {"type": "LineString", "coordinates": [*line, points[-1]]}, "legs": legs}],
        }

    def log_message(self, *arguments: Any) -> None:
        """Silence."""


def hundredths(one: tuple[float, float], other: tuple[float, float]) -> float | None:
    if (one[0] > ISLAND_EAST_OF) != (other[0] > ISLAND_EAST_OF):
        return None
    return round((abs(one[0] - other[0]) + abs(one[1] - other[1])) * 100, 6)


@pytest.fixture
def city() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def network(url: str) -> RoadNetwork:
    return RoadNetwork(url, {"CAR": "driving", "VAN": "broken"}, TABLE_SIZE)


async def test_a_table_larger_than_the_server_takes_is_put_together_from_parts(city: str) -> None:
    points = [(48.0 + number / 100, 11.0) for number in range(11)]
    seconds, metres = await network(city).table("CAR", points, points[:7])
    assert [len(seconds), len(seconds[0])] == [11, 7]
    for one in range(11):
        assert seconds[one] == pytest.approx([abs(one - other) * 100.25 for other in range(7)])
        assert metres[one] == pytest.approx([abs(one - other) * 1000 for other in range(7)])


async def test_plans_follow_the_roads_and_leave_out_where_none_leads(city: str) -> None:
    points = ((48.0, 11.0), (48.01, 11.01), (48.0, 20.5))
    problem = Problem(points, (Vehicle("van", 0, 0),), (Job("near", Place(1)), Job("island", Place(2))))
    roads = {"CAR": await network(city).table("CAR", points, points)}
    plan = computing.solve(problem, roads, 0, 1)
    assert (plan.routes[0].travel, plan.routes[0].metres) == (2 * 201, 4000), "whole seconds, rounded up"
    assert [(one.task_id, one.reason) for one in plan.unassigned] == [("island", "OUT_OF_REACH")]


async def test_a_line_follows_the_roads(city: str) -> None:
    way = await network(city).way("CAR", [(48.0, 11.0), (48.01, 11.01)])
    assert way.line == [(48.0, 11.0), (48.0, 11.01), (48.01, 11.01)]
    assert way.legs[0] == pytest.approx((200, 2000))
    with pytest.raises(NoRoad):
        await network(city).way("CAR", [(48.0, 11.0), (48.0, 20.5)])


async def test_an_isochrone_follows_the_roads(city: str) -> None:
    """In a grid city the area is a square on its corner; the edge is found to within a step between samples."""
    origin, limit = (0.0, 11.0), 1000
    farthest = 40_000.0
    samples = reach.samples(origin, farthest)
    seconds, _ = await network(city).table("CAR", [origin], samples)
    ring = reach.outline(origin, farthest, seconds[0], limit)
    assert ring[0] == ring[-1]
    for latitude, longitude in ring:
        assert abs(latitude) + abs(longitude - 11) == pytest.approx(limit / 10_025, rel=0.01)


async def test_a_server_that_is_away_or_makes_no_sense_is_said_to_be_unavailable(city: str) -> None:
    with pytest.raises(DependencyUnavailable):
        await network(city).table("VAN", [(48.0, 11.0)], [(48.0, 11.0)])
    with pytest.raises(DependencyUnavailable):
        await network("http://127.0.0.1:9").table("CAR", [(48.0, 11.0)], [(48.0, 11.0)])
