"""What a service says of itself, and how specs are found.

A spec is light: importing it imports neither the service's code nor its libraries, so the mesh, the edge and
the command line can read all of them at once.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel

SERVICES = Path(__file__).resolve().parents[1]

_OUTSIDE = "outside"
Value = TypeVar("Value")
Outside = Annotated[Value, _OUTSIDE]
"""The type of a setting with the URL of somebody outside of the platform: `stripe_url: Outside[str]`. A cluster lets
the service out to there and, with `ServiceSpec.outside`, nowhere else."""


class NoConfig(BaseModel):
    """The configuration of a service that needs none."""


@dataclass(frozen=True)
class SealedColumn:
    """A column that the service's `Sealer` seals, so that it can be sealed anew when the root key changes."""

    table: str
    """With a column tenant_id."""
    name: str
    key: str
    """The column that tells a tenant's rows apart."""
    purpose: str
    """What a value is sealed for: "provider account {tenant_id} {key}"."""

    def purpose_of(self, tenant_id: str | None, key: str) -> str:
        return self.purpose.format(tenant_id=tenant_id, key=key)


@dataclass(frozen=True)
class ServiceSpec:
    """One service: `SERVICE = ServiceSpec(…)` in its `spec.py`.

    Everything else follows from the folder `services/<domain>/<service>/`: the contract is
    `proto/nexus/<domain>/<service>/v1`, and `servicer.py` has a class for each gRPC service in it, of the
    same name.
    """

    id: str
    """As in the catalogue: "user-auth"."""
    port: int
    """The well-known port."""
    calls: Sequence[str] = ()
    """Ids of the services that this one may call. Anything else is refused on both sides. They are no circle: a process
    stops callers before those they call."""
    calls_back: Sequence[str] = ()
    """Ids of services that call this one and that it may call too. They stop before it: it asks them nothing that
    another service's call hangs on."""
    subscribes: Sequence[str] = ()
    """The events it hears, by the full names of their messages. `subscribers.py` has a class `Subscribers` with a
    method for each: `on_user_created(message, event)`."""
    jobs: Sequence[str] = ()
    """The jobs it does when the scheduler, which is among its `calls` then, hands them out. `jobs.py` has a class
    `Jobs` with a method for each; see services.chassis.jobs."""
    config: type[BaseModel] = NoConfig
    """Its own settings, `NEXUS_<SERVICE>_…`."""
    outside: Sequence[str] = ()
    """The hosts that it reaches by HTTPS beside those in its settings."""
    sealed_columns: Sequence[SealedColumn] = ()
    sends_mail: bool = False
    memory_mib: int = 384
    """What its processes take together at most: a pod that takes more is ended."""
    reflects_platform: bool = False
    """Whether its gRPC reflection describes all services, not only its own."""
    module: str = field(default="", compare=False)
    """The Python package it lives in; filled in by `discover`."""

    @property
    def may_call(self) -> Sequence[str]:
        return (*self.calls, *self.calls_back)

    @property
    def domain(self) -> str:
        return self.module.split(".")[1]

    @property
    def package_name(self) -> str:
        """Its id as a Python name, schema name and proto package part: "user_auth"."""
        return self.module.split(".")[2]

    @property
    def proto_package(self) -> str:
        return f"nexus.{self.domain}.{self.package_name}.v1"

    @property
    def schema(self) -> str:
        """Its schema in the database."""
        return self.package_name

    @property
    def role(self) -> str:
        """Its role in the database."""
        return f"nexus_{self.package_name}"

    def urls_outside(self, config: BaseModel) -> list[str]:
        """Whom it calls outside of the platform when this is its configuration."""
        fields = [name for name, field in type(config).model_fields.items() if _OUTSIDE in field.metadata]
        configured = [getattr(config, name) for name in fields]
        return [*filter(None, configured), *(f"https://{host}" for host in self.outside)]

    @cached_property
    def folder(self) -> Path:
        return SERVICES / self.domain / self.package_name


@cache
def discover() -> dict[str, ServiceSpec]:
    """Every service there is, by id, in the order of ports."""
    specs = [load(path.parent) for path in SERVICES.glob("*/*/spec.py") if path.parts[-3] != "chassis"]
    by_id = {spec.id: spec for spec in sorted(specs, key=lambda spec: spec.port)}
    by_port: dict[int, str] = {}
    for spec in specs:
        if by_id[spec.id] is not spec:
            raise ValueError(f"two services have the id {spec.id}")
        if spec.port in by_port:
            raise ValueError(f"{spec.id} and {by_port[spec.port]} both have port {spec.port}")
        by_port[spec.port] = spec.id
        if spec.jobs and "scheduler" not in spec.calls:
            raise ValueError(f"{spec.id} has jobs, so scheduler belongs among its calls")
        for callee in spec.may_call:
            if callee not in by_id:
                raise ValueError(f"{spec.id} calls {callee}, which does not exist")
    require_no_circle(specs)
    return by_id


def require_no_circle(specs: Sequence[ServiceSpec]) -> None:
    """Raises ValueError with the services that call each other."""
    try:
        TopologicalSorter({spec.id: spec.calls for spec in specs}).prepare()
    except CycleError as error:
        raise ValueError(f"these call each other: {', '.join(error.args[1])}") from None


def load(folder: Path) -> ServiceSpec:
    """The spec in one service folder."""
    module = f"services.{folder.parent.name}.{folder.name}"
    spec: ServiceSpec = importlib.import_module(f"{module}.spec").SERVICE
    object.__setattr__(spec, "module", module)
    if spec.id.replace("-", "_") != folder.name:
        raise ValueError(f"{module} has the id {spec.id}; the folder must be named after it")
    return spec


def callers_of(service: str) -> frozenset[str]:
    """The services that declare this one among their calls."""
    return frozenset(spec.id for spec in discover().values() if service in spec.may_call)


def select(names: Sequence[str]) -> list[ServiceSpec]:
    """The services meant by ids or domains; all of them when there are no names.

    Raises KeyError with the unknown name.
    """
    specs = discover()
    if not names:
        return list(specs.values())
    chosen: dict[str, ServiceSpec] = {}
    for name in names:
        matching = [spec for spec in specs.values() if name in (spec.id, spec.domain)]
        if not matching:
            raise KeyError(name)
        chosen.update({spec.id: spec for spec in matching})
    return list(chosen.values())
