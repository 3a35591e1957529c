"""The environments: everything in which one cluster differs from another.

The addresses are examples, of the ranges that are set aside for documentation and for private networks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mesh.kubernetes.cluster import MIGRATIONS, SERVICE
from services.chassis.config import Settings


@dataclass(frozen=True)
class Outside:
    """Something that services reach outside of the cluster."""

    name: str
    host: str
    port: int
    cidr: str
    """Where its addresses lie."""
    used_by: Sequence[str] = (SERVICE,)
    """Components."""


@dataclass(frozen=True)
class Bounds:
    """Between which numbers of pods the autoscaler moves."""

    least: int
    most: int


@dataclass(frozen=True)
class Canary:
    """A second version of a service."""

    tag: str
    percent: int = 0
    """Its share of the calls, beside those whose header asks for it."""


@dataclass(frozen=True)
class Overlay:
    name: str
    host: str
    """Where people reach it."""
    image: str
    tag: str
    services: Bounds
    edge: Bounds
    settings: Mapping[str, object]
    """Fields of `Settings` that differ from those of every cluster."""
    outside: Sequence[Outside]
    canaries: Mapping[str, Canary] = field(default_factory=dict)

    def all_settings(self, common: Settings) -> Settings:
        url = f"https://{self.host}"
        own = {"public_url": url, "token_issuer": url, "environment": self.name, **self.settings}
        return Settings.model_validate({**common.model_dump(exclude_unset=True), **own})


OVERLAYS = (
    Overlay(
        name="staging",
        host="staging.nexus.example.com",
        image="registry.example.com/nexus-cos",
        tag="0.1.0",
        services=Bounds(1, 3),
        edge=Bounds(1, 3),
        settings={"log_level": "DEBUG", "trace_ratio": 1.0, "otlp_endpoint": "http://otel.staging.example.com:4317"},
        outside=(
            Outside("postgres", "postgres.staging.example.com", 5432, "10.20.0.0/24", (SERVICE, MIGRATIONS)),
            Outside("redis", "redis.staging.example.com", 6379, "10.20.1.0/24"),
            Outside("smtp", "smtp.example.com", 587, "192.0.2.0/24"),
            Outside("otlp", "otel.staging.example.com", 4317, "10.20.2.0/24"),
        ),
        canaries={"backend-api": Canary(tag="0.1.0")},
    ),
    Overlay(
        name="production",
        host="nexus.example.com",
        image="registry.example.com/nexus-cos",
        tag="0.1.0",
        services=Bounds(3, 20),
        edge=Bounds(3, 10),
        settings={"trace_ratio": 0.05, "otlp_endpoint": "http://otel.example.com:4317"},
        outside=(
            Outside("postgres", "postgres.example.com", 5432, "10.10.0.0/24", (SERVICE, MIGRATIONS)),
            Outside("redis", "redis.example.com", 6379, "10.10.1.0/24"),
            Outside("smtp", "smtp.example.com", 587, "192.0.2.0/24"),
            Outside("otlp", "otel.example.com", 4317, "10.10.2.0/24"),
        ),
    ),
)
