"""What the mesh does to traffic beyond the contracts: injected faults, canaries, mirrors. Changed while it runs.

`nexus fault` and `nexus traffic` edit `run/mesh/traffic.json`; the proxies' route files are rendered from it, and
Envoy takes them up by itself.
"""

from pathlib import Path

from pydantic import BaseModel, Field

from edge.upstreams import Split


class Fault(BaseModel):
    """Some share of the calls to a service fails, or waits."""

    abort: str | None = None
    """gRPC status name: "UNAVAILABLE"."""
    delay_ms: int | None = Field(default=None, gt=0, le=60_000)
    percent: float = Field(default=100, ge=0, le=100)


class Traffic(BaseModel):
    """All of it, by service id."""

    faults: dict[str, Fault] = {}
    splits: dict[str, Split] = {}


def read(run_dir: Path) -> Traffic:
    path = _path(run_dir)
    return Traffic.model_validate_json(path.read_text()) if path.exists() else Traffic()


def write(run_dir: Path, traffic: Traffic) -> None:
    path = _path(run_dir)
    draft = path.with_suffix(".draft")
    draft.write_text(traffic.model_dump_json(indent=1))
    draft.rename(path)


def _path(run_dir: Path) -> Path:
    return run_dir / "mesh" / "traffic.json"
