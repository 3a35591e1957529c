"""A road network behind an OSRM-compatible server (https://project-osrm.org/docs/v5.24.0/api/)."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from nexus.logistics.puabo_nexus_route_optimizer.v1.faults import NoRoad
from nexus.type.v1.faults import DependencyUnavailable
from services.logistics.puabo_nexus_route_optimizer.problem import Point

TIMEOUT_SECONDS = 10.0
AT_ONCE = 4

Answer = TypeVar("Answer", bound=BaseModel)
logger = logging.getLogger(__name__)
Rows = list[list[float | None]]


class _Table(BaseModel):
    durations: Rows
    distances: Rows


class _Geometry(BaseModel):
    coordinates: list[tuple[float, float]]


class _Leg(BaseModel):
    duration: float
    distance: float


class _Route(BaseModel):
    geometry: _Geometry
    legs: list[_Leg]


class _Routes(BaseModel):
    routes: list[_Route]


@dataclass(frozen=True)
class Way:
    """A line to draw, and (seconds, metres) from each point to the next."""

    line: list[Point]
    legs: list[tuple[float, float]]


class RoadNetwork:
    """Distances, times and lines of those profiles that the server has."""

    def __init__(self, url: str, profiles: dict[str, str], table_cells: int) -> None:
        self._url = url.rstrip("/")
        self._profiles = profiles
        self._block = isqrt(table_cells)
        self._at_once = asyncio.Semaphore(AT_ONCE)

    def has(self, profile: str) -> bool:
        return profile in self._profiles

    async def table(self, profile: str, origins: Sequence[Point], destinations: Sequence[Point]) -> tuple[Rows, Rows]:
        """Seconds and metres from each origin to each destination, asked for in blocks that the server takes.

        Raises DependencyUnavailable.
        """
        from_blocks, to_blocks = _blocks(origins, self._block), _blocks(destinations, self._block)
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
            asked = [
                [asyncio.ensure_future(self._part(client, profile, one, other)) for other in to_blocks]
                for one in from_blocks
            ]
            try:
                parts = [[await part for part in row] for row in asked]
            finally:
                for row in asked:
                    for part in row:
                        part.cancel()
        return _joined([[part.durations for part in row] for row in parts]), _joined(
            [[part.distances for part in row] for row in parts]
        )

    async def way(self, profile: str, points: Sequence[Point]) -> Way:
        """The way through points in their order. Raises NoRoad, DependencyUnavailable."""
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
            answer = await self._ask(
                client,
                _Routes,
                f"route/v1/{self._profiles[profile]}/{_coordinates(points)}",
                {"overview": "full", "geometries": "geojson"},
            )
        if not answer.routes:
            raise NoRoad(why="the points are not connected")
        route = answer.routes[0]
        line = [(latitude, longitude) for longitude, latitude in route.geometry.coordinates]
        return Way(line, [(leg.duration, leg.distance) for leg in route.legs])

    async def _part(
        self, client: httpx.AsyncClient, profile: str, origins: Sequence[Point], destinations: Sequence[Point]
    ) -> _Table:
        count = len(origins)
        table = await self._ask(
            client,
            _Table,
            f"table/v1/{self._profiles[profile]}/{_coordinates([*origins, *destinations])}",
            {
                "annotations": "duration,distance",
                "sources": ";".join(map(str, range(count))),
                "destinations": ";".join(map(str, range(count, count + len(destinations)))),
            },
        )
        for rows in (table.durations, table.distances):
            if len(rows) != count or any(len(row) != len(destinations) for row in rows):
                raise DependencyUnavailable(dependency="routing server", retry_after=5)
        return table

    async def _ask(self, client: httpx.AsyncClient, kind: type[Answer], path: str, query: dict[str, str]) -> Answer:
        try:
            async with self._at_once:
                answer = await client.get(f"{self._url}/{path}", params=query)
            if answer.status_code == 400 and answer.json().get("code") in ("NoRoute", "NoSegment", "NoTable"):
                raise NoRoad(why="the points are not connected")
            return kind.model_validate_json(answer.raise_for_status().content)
        except (httpx.HTTPError, ValidationError, ValueError, AttributeError) as error:
            logger.warning("the routing server does not answer as it should: %s", error)
            raise DependencyUnavailable(dependency="routing server", retry_after=5) from error


def _blocks(points: Sequence[Point], size: int) -> list[Sequence[Point]]:
    return [points[start : start + size] for start in range(0, len(points), size)]


def _joined(blocks: Sequence[Sequence[Rows]]) -> Rows:
    """Rows of blocks, side by side and below each other, as one table."""
    return [[value for part in parts for value in part] for row in blocks for parts in zip(*row, strict=True)]


def _coordinates(points: Iterable[Point]) -> str:
    return ";".join(f"{longitude:.6f},{latitude:.6f}" for latitude, longitude in points)
