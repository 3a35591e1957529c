"""How far it is and how long it takes, between all places of a problem."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.logistics.puabo_nexus_route_optimizer.problem import Mode, Point, Problem

KILOMETRES_PER_HOUR = {"CAR": 40.0, "VAN": 35.0, "TRUCK": 30.0, "BICYCLE": 14.0, "FOOT": 4.5}
"""Average speeds by the crow flies: detours and traffic included."""
EARTH_RADIUS_METRES = 6_371_008.8
"""The mean radius (IUGG)."""
NO_WAY = 10_000_000
"""Seconds and metres between places with no way between them: more than any horizon."""

Table = NDArray[np.int64]
Flat = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Leg:
    """Tables of one mode: rows are origins, columns destinations."""

    seconds: Table
    metres: Table

    def flat(self) -> Flat:
        """Row by row, with -1 where there is no way."""
        seconds, metres = (
            np.where(table >= NO_WAY, -1, table).ravel().tolist() for table in (self.seconds, self.metres)
        )
        return seconds, metres


Rows = Sequence[Sequence[float | None]]
Roads = Mapping[str, tuple[Rows, Rows]]
"""What a routing server says, by profile: seconds and metres from each point to each, None where there is no way. A
profile that it does not have is measured by the great circle."""


@dataclass(frozen=True)
class Travel:
    """The tables of every mode of a problem."""

    legs: Mapping[Mode, Leg]

    @classmethod
    def of(cls, problem: Problem, roads: Roads) -> "Travel":
        return cls({mode: measure(problem.points, problem.points, mode, roads) for mode in problem.modes})


def measure(origins: Sequence[Point], destinations: Sequence[Point], mode: Mode, roads: Roads) -> Leg:
    """Whole seconds and metres, rounded up."""
    profile, factor = mode
    if profile in roads:
        seconds, road_metres = roads[profile]
        return Leg(_whole(seconds, factor), _whole(road_metres, 1.0))
    metres = great_circle(origins, destinations)
    speed = KILOMETRES_PER_HOUR[profile] * factor / 3.6
    return Leg(_rounded_up(metres / speed), _rounded_up(metres))


def great_circle(origins: Sequence[Point], destinations: Sequence[Point]) -> NDArray[np.float64]:
    """Metres on the sphere from each origin to each destination (the haversine formula)."""
    from_latitude, from_longitude = np.radians(np.array(origins, dtype=np.float64)).T
    to_latitude, to_longitude = np.radians(np.array(destinations, dtype=np.float64)).T
    square = (
        np.sin((to_latitude[None, :] - from_latitude[:, None]) / 2) ** 2
        + np.cos(from_latitude)[:, None]
        * np.cos(to_latitude)[None, :]
        * np.sin((to_longitude[None, :] - from_longitude[:, None]) / 2) ** 2
    )
    result: NDArray[np.float64] = 2 * EARTH_RADIUS_METRES * np.arcsin(np.sqrt(np.clip(square, 0, 1)))
    return result


def _whole(values: Rows, factor: float) -> Table:
    known = np.array(values, dtype=np.float64)  # None becomes NaN
    return np.where(np.isnan(known), NO_WAY, _rounded_up(np.nan_to_num(known) / factor))


def _rounded_up(values: NDArray[np.float64]) -> Table:
    return np.minimum(np.ceil(np.round(values, 6)), NO_WAY).astype(np.int64)
