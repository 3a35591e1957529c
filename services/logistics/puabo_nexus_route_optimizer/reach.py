"""How far one gets in a time: the corners of an area around an origin."""

from collections.abc import Sequence
from math import asin, atan2, cos, degrees, radians, sin

from services.logistics.puabo_nexus_route_optimizer.problem import Point

EARTH_RADIUS_METRES = 6_371_008.8
BEARINGS = 48
RINGS = 16
TOP_SPEED = {"CAR": 36.0, "VAN": 30.0, "TRUCK": 25.0, "BICYCLE": 8.0, "FOOT": 2.0}
"""Metres a second that nobody is faster than, by the crow flies: how far to look."""


def samples(origin: Point, farthest: float) -> list[Point]:
    """The places to ask about: bearing by bearing, from near to far."""
    return [beyond(origin, bearing, farthest * ring / RINGS) for bearing in bearings() for ring in range(1, RINGS + 1)]


def outline(origin: Point, farthest: float, seconds: Sequence[float | None], limit: float) -> list[Point]:
    """The ring of the farthest points that are reached within `limit`, given the seconds to each of the samples.
    Between a sample that is reached and the next one that is not, the edge is where the time runs out, if it passes
    evenly."""
    corners = []
    for index, bearing in enumerate(bearings()):
        times: list[float | None] = [0.0, *seconds[index * RINGS : (index + 1) * RINGS]]
        last = max(ring for ring, time in enumerate(times) if time is not None and time <= limit)
        reached = float(last)
        inner, outer = times[last], times[last + 1] if last < RINGS else None
        if inner is not None and outer is not None:
            reached += (limit - inner) / (outer - inner)
        corners.append(beyond(origin, bearing, farthest * reached / RINGS))
    return closed(corners)


def bearings() -> list[float]:
    """Counter-clockwise, in degrees from north."""
    return [-360.0 * index / BEARINGS for index in range(BEARINGS)]


def beyond(origin: Point, bearing: float, metres: float) -> Point:
    """The point at a distance along the great circle that leaves the origin at a bearing."""
    latitude, longitude = radians(origin[0]), radians(origin[1])
    angle, course = metres / EARTH_RADIUS_METRES, radians(bearing)
    there = asin(sin(latitude) * cos(angle) + cos(latitude) * sin(angle) * cos(course))
    east = atan2(sin(course) * sin(angle) * cos(latitude), cos(angle) - sin(latitude) * sin(there))
    return degrees(there), (degrees(longitude + east) + 540) % 360 - 180


def closed(corners: list[Point]) -> list[Point]:
    return [*corners, corners[0]]
