"""Which instances of each service run on this machine, and where the proxies find them and the supervisor."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.chassis.config import Settings

TRUST = "trust"
"""The secret with the authority that the mesh trusts."""
TIMEOUT_MARGIN = 0.5
"""Seconds a proxy waits beyond the contract's time, so that the service's own answer arrives."""
CANARY = "canary"


@dataclass(frozen=True)
class Layout:
    """Which instances of each service run on this machine. The first is named like the service."""

    replicas: Mapping[str, int] = field(default_factory=dict)
    """How many of the ordinary version, where it is not one."""
    canaries: frozenset[str] = frozenset()
    """Services that have one more instance, of the version to try."""

    def instances(self, service: str) -> list[str]:
        return [service, *(f"{service}.{number}" for number in range(1, self.replicas.get(service, 1)))]

    def canary(self, service: str) -> str | None:
        return f"{service}.{CANARY}" if service in self.canaries else None

    def extra(self) -> list[tuple[str, str]]:
        """(service, name of the instance) of those beside the first; each runs in a process of its own."""
        named = [(service, instance) for service, instance in self.all(sorted({*self.replicas, *self.canaries}))]
        return [(service, instance.removeprefix(f"{service}.")) for service, instance in named if instance != service]

    def all(self, services: Iterable[str]) -> list[tuple[str, str]]:
        """(service, instance) of everything that runs."""
        return [
            (service, instance)
            for service in services
            for instance in [*self.instances(service), self.canary(service)]
            if instance is not None
        ]


def supervisor_socket(settings: Settings) -> Path:
    """Where the supervisor hands out secrets to the proxies."""
    return settings.run_dir / "mesh" / "supervisor.sock"


def inbound_socket(settings: Settings, instance: str) -> Path:
    """Where the local mesh takes calls for an instance of a service."""
    return settings.run_dir / "mesh" / f"{instance}.in.sock"


def through_local_mesh(settings: Settings) -> bool:
    """Whether calls go through the local mesh proxy."""
    return "{caller}" in settings.service_address


def canary_share(service: str) -> str:
    """The runtime key of the percentage of calls that a service's canary serves."""
    return f"nexus.traffic.{service}.canary"


def mirror_share(service: str) -> str:
    """The runtime key of the percentage of calls that a service's canary gets a copy of."""
    return f"nexus.traffic.{service}.mirror"
