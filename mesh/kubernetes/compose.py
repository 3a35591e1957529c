"""The platform in containers on one machine, for development: PostgreSQL, Redis, a container for each domain, the edge.

The containers share the folder of the services' sockets and call each other through it: who can open a socket there
is one of the platform's own, as on a machine without the mesh. Nothing here is secret.
"""

from typing import Any

import msgspec

from mesh.kubernetes.cluster import HOME, NAMESPACE, SETTINGS, variables
from mesh.kubernetes.workloads import IMAGE, run_edge, write_edge_bootstrap
from mesh.topology import Topology
from services.chassis.config import Settings
from services.chassis.context import EDGE
from services.chassis.spec import ServiceSpec

_UNSEAL_KEY = f"{HOME}/unseal.key"
_LOCAL = Settings.model_validate({"home": HOME, "host": SETTINGS.host, "unseal_key_file": _UNSEAL_KEY})
_HOME_VOLUME = "home"
_PREPARE = "prepare"
_MAKE_KEYS = f"umask 077; test -s {_UNSEAL_KEY} || head -c 32 /dev/urandom > {_UNSEAL_KEY}; nexus root-key seal"


class HealthCheck(msgspec.Struct):
    test: list[str]
    interval: str = "1s"
    retries: int = 60


class Dependency(msgspec.Struct):
    condition: str


class Container(msgspec.Struct, omit_defaults=True):
    """One of Compose's services."""

    image: str
    build: str | None = None
    entrypoint: list[str] | None = None
    command: list[str] | None = None
    environment: dict[str, str] | None = None
    ports: list[str] | None = None
    volumes: list[str] | None = None
    depends_on: dict[str, Dependency] | None = None
    healthcheck: HealthCheck | None = None
    read_only: bool = False
    cap_drop: list[str] | None = None
    security_opt: list[str] | None = None
    stop_grace_period: str | None = None


class Compose(msgspec.Struct):
    name: str
    services: dict[str, Container]
    volumes: dict[str, dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


def build(topology: Topology) -> Compose:
    domains: dict[str, list[ServiceSpec]] = {}
    for spec in topology.services.values():
        domains.setdefault(spec.domain, []).append(spec)
    migrated = {_PREPARE: Dependency("service_completed_successfully")}
    return Compose(
        name=NAMESPACE,
        services={
            "postgres": Container(
                image="postgres:17-alpine",
                environment={"POSTGRES_USER": NAMESPACE, "POSTGRES_PASSWORD": NAMESPACE},
                volumes=["postgres:/var/lib/postgresql/data"],
                healthcheck=HealthCheck(["CMD", "pg_isready", "--host=127.0.0.1", f"--username={NAMESPACE}"]),
            ),
            "redis": Container(
                image="redis:8-alpine",
                command=["redis-server", "--appendonly", "yes"],
                volumes=["redis:/data"],
                healthcheck=HealthCheck(["CMD", "redis-cli", "ping"]),
            ),
            _PREPARE: _ours(
                entrypoint=["sh", "-c"],
                command=[f"{_MAKE_KEYS} && exec nexus migrate"],
                depends_on={name: Dependency("service_healthy") for name in ("postgres", "redis")},
                build=".",
            ),
            **{
                domain: _ours(command=["serve", domain], ports=[spec.port for spec in specs], depends_on=migrated)
                for domain, specs in domains.items()
            },
            EDGE: _ours(
                entrypoint=["sh", "-c"],
                command=[f"{' '.join(write_edge_bootstrap())} && exec {' '.join(run_edge())}"],
                ports=[8080, 8443],
                depends_on=migrated,
            ),
        },
        volumes={name: {} for name in (_HOME_VOLUME, "postgres", "redis")},
    )


def _ours(
    *,
    command: list[str],
    depends_on: dict[str, Dependency],
    entrypoint: list[str] | None = None,
    ports: list[int] | None = None,
    build: str | None = None,
) -> Container:
    return Container(
        image=f"{IMAGE}:development",
        build=build,
        entrypoint=entrypoint,
        command=command,
        environment={
            **variables(_LOCAL, _LOCAL.model_fields_set),
            "NEXUS_DATABASE_URL": f"postgresql://{NAMESPACE}:{NAMESPACE}@postgres/{NAMESPACE}",
            "NEXUS_DATABASE_ROLE_KEY": "development",
            "NEXUS_REDIS_URL": "redis://redis",
        },
        ports=[f"127.0.0.1:{port}:{port}" for port in ports] if ports else None,
        volumes=[f"{_HOME_VOLUME}:{HOME}"],
        depends_on=depends_on,
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        stop_grace_period=f"{round(_LOCAL.drain_timeout) + 10}s",
    )
