from pydantic import BaseModel, Field

from services.chassis.spec import Outside, ServiceSpec


class Config(BaseModel):
    roads_url: Outside[str | None] = None
    """An OSRM-compatible server ("http://osrm:5000") to measure by; the great circle when unset."""
    roads_profiles: dict[str, str] = {"CAR": "driving", "VAN": "driving", "TRUCK": "driving"}
    """The server's name for each of our profiles, as JSON. Others are measured by the great circle."""
    roads_table_cells: int = Field(default=10_000, ge=100)
    """The most distances to ask of it at a time: OSRM's --max-table-size, squared."""
    workers: int = Field(default=2, ge=1, le=64)
    """Processes that solve for callers who wait; started when needed."""
    background_workers: int = Field(default=1, ge=1, le=64)
    """Processes that solve in the background, in each replica."""
    worker_memory_mib: int = Field(default=1024, ge=256)
    """What such a process may allocate."""
    inline_stops: int = Field(default=200, ge=1)
    """Problems of more stops are solved in the background."""
    background_seconds: int = Field(default=300, ge=1)
    """How long a problem may be worked on in the background."""


DEFAULT = Config()
SERVICE = ServiceSpec(
    id="puabo-nexus-route-optimizer",
    port=3062,
    # Beside the service all its workers at once, or the pod is ended before a worker finds its problem too large.
    memory_mib=384 + (DEFAULT.workers + DEFAULT.background_workers) * DEFAULT.worker_memory_mib,
    config=Config,
)
