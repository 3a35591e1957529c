"""Who may call whom, and which methods: the one truth from which every mesh artefact is rendered.

It comes from the specs (`calls`) and the contracts (access, routes). The local proxies, the Istio policies and
`nexus graph` are renderings of it; the chassis enforces the same rules a second time, from the same sources.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from services.chassis import contract
from services.chassis.context import EDGE, OPERATOR
from services.chassis.contract import Method
from services.chassis.spec import ServiceSpec, discover

ANYONE = "*"
"""Every identity of the mesh: of its trust domain and its namespace."""
HEALTH = "/grpc.health.v1.Health/*"
REFLECTION = ("/grpc.reflection.v1.ServerReflection/*", "/grpc.reflection.v1alpha.ServerReflection/*")


@dataclass(frozen=True)
class Rule:
    """One caller may call these methods of one service."""

    caller: str
    """A service id, "edge", "operator", or ANYONE."""
    callee: str
    paths: tuple[str, ...]
    """gRPC paths, sorted; one that ends in "*" stands for every method of a gRPC service."""

    def allows(self, path: str) -> bool:
        return any(path == own or (own.endswith("*") and path.startswith(own[:-1])) for own in self.paths)


@dataclass(frozen=True)
class Topology:
    """The services and what is allowed between them. Everything else is refused."""

    services: Mapping[str, ServiceSpec]
    methods: Mapping[str, Sequence[Method]]
    """The methods of each service, by id."""
    rules: Sequence[Rule]
    """Sorted by callee and caller."""

    def rules_of_callee(self, service: str) -> list[Rule]:
        return [rule for rule in self.rules if rule.callee == service]

    def rules_of_caller(self, caller: str) -> list[Rule]:
        return [rule for rule in self.rules if rule.caller in (caller, ANYONE)]

    def callees_of(self, caller: str) -> list[str]:
        """The services that a caller has something to call of: those it declares, those with methods open to the
        whole mesh, and for who watches over the platform, all of them."""
        watches = caller == OPERATOR or (caller in self.services and self.services[caller].reflects_platform)
        return [
            callee
            for callee, methods in self.methods.items()
            if watches
            or any(rule.caller == caller for rule in self.rules_of_callee(callee))
            or any(method.policy.mesh_wide for method in methods)
        ]

    def allows(self, caller: str, path: str) -> bool:
        """Whether a caller may call a contract method."""
        return any(rule.allows(path) for rule in self.rules_of_caller(caller))

    @property
    def callers(self) -> list[str]:
        """Every identity in the mesh: the services, the edge, the operator."""
        return [*self.services, EDGE, OPERATOR]


@cache
def topology() -> Topology:
    services = discover()
    methods: dict[str, list[Method]] = {service: [] for service in services}
    for method in contract.methods().values():
        if method.service_id in methods:  # a contract may come before its service; the guards name it
            methods[method.service_id].append(method)
    rules = [rule for service in services.values() for rule in _rules(service, services, methods[service.id])]
    return Topology(services, methods, sorted(rules, key=lambda rule: (rule.callee, rule.caller)))


def _rules(callee: ServiceSpec, services: Mapping[str, ServiceSpec], methods: Sequence[Method]) -> Iterator[Rule]:
    """Who may call a service: those that declare it, and the operator, all of it; the edge what has a route;
    anyone its health, and what the contract opens to the whole mesh."""
    everything = [method.path for method in methods]
    for caller in services.values():
        if callee.id in caller.calls:
            yield _rule(caller.id, callee.id, everything)
    yield _rule(OPERATOR, callee.id, [*everything, *REFLECTION])
    external = [method.path for method in methods if method.external]
    if external or callee.reflects_platform:
        yield _rule(EDGE, callee.id, [*external, *(REFLECTION if callee.reflects_platform else ())])
    yield _rule(ANYONE, callee.id, [HEALTH, *(method.path for method in methods if method.policy.mesh_wide)])


def _rule(caller: str, callee: str, paths: Sequence[str]) -> Rule:
    return Rule(caller, callee, tuple(sorted(paths)))
