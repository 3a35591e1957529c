"""Routing problems for tests: made by hypothesis, and as JSON."""

from typing import Any

from hypothesis import strategies as st

from services.logistics.puabo_nexus_route_optimizer.problem import (
    Break,
    Cost,
    Job,
    Place,
    Problem,
    Shipment,
    Vehicle,
    Window,
    windows,
)

DAY = 8 * 3600
START = "2027-03-01T08:00:00Z"
MUNICH = {"latitude": 48.137, "longitude": 11.575}


def spans() -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, DAY), st.integers(0, 7200)).map(lambda span: (span[0], span[0] + span[1]))


def some_windows() -> st.SearchStrategy[tuple[Window, ...]]:
    return st.lists(spans(), max_size=2).map(windows)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small ones with everything in them."""
    coordinate = st.integers(0, 400)
    points = draw(
        st.lists(
            st.tuples(coordinate.map(lambda n: 48 + n / 1000), coordinate.map(lambda n: 11 + n / 1000)),
            min_size=3,
            max_size=12,
            unique=True,
        )
    )
    location = st.integers(0, len(points) - 1)
    amounts = st.dictionaries(st.sampled_from(["kg", "pallets"]), st.integers(0, 8), max_size=2)
    skills = st.frozensets(st.sampled_from(["cold", "crane"]), max_size=1)
    place = st.builds(Place, location, some_windows(), st.integers(0, 1200))
    rest = st.builds(Break, st.just("lunch"), st.lists(spans(), min_size=1, max_size=2).map(windows), st.just(1800))

    def job(number: int) -> st.SearchStrategy[Job]:
        return st.builds(Job, st.just(f"j{number}"), place, amounts, amounts, skills, st.integers(0, 100))

    def shipment(number: int) -> st.SearchStrategy[Shipment]:
        return st.builds(Shipment, st.just(f"s{number}"), place, place, amounts, skills, st.integers(0, 100))

    def vehicle(number: int) -> st.SearchStrategy[Vehicle]:
        return st.builds(
            Vehicle,
            st.just(f"v{number}"),
            location,
            st.none() | location,
            st.sampled_from([("CAR", 1.0), ("BICYCLE", 1.3)]),
            st.dictionaries(st.sampled_from(["kg", "pallets"]), st.integers(0, 25), max_size=2),
            st.frozensets(st.sampled_from(["cold", "crane"])),
            st.just(Window(0, DAY)) | spans().map(lambda span: Window(*span)),
            st.lists(rest, max_size=1).map(tuple),
            st.none() | st.integers(600, DAY),
            st.none() | st.integers(600, DAY),
            st.none() | st.integers(1000, 200_000),
            st.none() | st.integers(1, 5),
            st.builds(Cost, st.integers(0, 5000), st.just(3600), st.integers(0, 500)),
        )

    return Problem(
        tuple(points),
        tuple(draw(vehicle(number)) for number in range(draw(st.integers(1, 3)))),
        tuple(draw(job(number)) for number in range(draw(st.integers(0, 6)))),
        tuple(draw(shipment(number)) for number in range(draw(st.integers(0, 3)))),
    )


def near(east: int, north: int = 0) -> dict[str, float]:
    """Some hundred metres from Munich."""
    return {"latitude": MUNICH["latitude"] + north / 1000, "longitude": MUNICH["longitude"] + east / 1000}


def job(task_id: str, east: int, north: int = 0, **more: Any) -> dict[str, Any]:
    return {"taskId": task_id, "place": {"point": near(east, north), "serviceDuration": "120s"}, **more}


def problem(*jobs: dict[str, Any], vehicles: int = 1, **more: Any) -> dict[str, Any]:
    fleet = [{"vehicleId": f"v{number}", "start": MUNICH, "end": MUNICH} for number in range(vehicles)]
    return {"startTime": START, "vehicles": fleet, "jobs": list(jobs), **more}
