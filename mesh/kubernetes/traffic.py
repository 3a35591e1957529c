"""How calls travel: time limits and repeats from the contracts, load balancing, circuit breaking, egress."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edge.envoy import EJECTION, FAILURES_TO_EJECT, retries
from edge.layout import TIMEOUT_MARGIN
from edge.transcoding import speaks_for_itself
from mesh.kubernetes.cluster import (
    CANARY,
    EDGE_PORT,
    GATEWAY_LABELS,
    GATEWAY_NAMESPACE,
    ISTIO_NAMESPACE,
    SETTINGS,
    STABLE,
    host,
    labels,
    meta,
    selector,
)
from mesh.kubernetes.istio import (
    AccessLogging,
    ConnectionPool,
    Destination,
    DestinationRule,
    EgressListener,
    Gateway,
    HttpMatch,
    HttpPool,
    HttpRetry,
    HttpRoute,
    HttpRouteDestination,
    JwtRule,
    LoadBalancer,
    OutboundTrafficPolicy,
    OutlierDetection,
    Port,
    PortSelector,
    Provider,
    RequestAuthentication,
    Resource,
    RetryBudget,
    Selector,
    Server,
    ServerTls,
    Sidecar,
    StringMatch,
    Subset,
    TcpPool,
    Telemetry,
    TlsSettings,
    Tracing,
    TrafficPolicy,
    VirtualService,
    WorkloadSelector,
    duration,
)
from mesh.kubernetes.policies import JWKS_URI
from mesh.topology import Topology
from services.chassis.config import Settings
from services.chassis.context import EDGE
from services.chassis.contract import Method
from services.chassis.peers import VERSION_HEADER
from services.chassis.spec import ServiceSpec

CREDENTIAL = "nexus-edge-tls"
"""The TLS secret of the gateway, in the gateway's namespace."""


def destination_rule(name: str, *, canary: bool = False) -> Resource[DestinationRule]:
    policy = TrafficPolicy(
        tls=TlsSettings(mode="ISTIO_MUTUAL"),
        load_balancer=LoadBalancer(simple="LEAST_REQUEST"),
        connection_pool=ConnectionPool(
            tcp=TcpPool(max_connections=1_000, connect_timeout=duration(1)),
            http=HttpPool(http1_max_pending_requests=1_000, http2_max_requests=10_000),
        ),
        outlier_detection=OutlierDetection(
            # The sidecar's own trouble, a connection that fails or hangs, does not count as the service's answer.
            split_external_local_origin_errors=True,
            consecutive_local_origin_failures=FAILURES_TO_EJECT,
            consecutive_gateway_errors=FAILURES_TO_EJECT,
            consecutive_5xx_errors=FAILURES_TO_EJECT,
            interval=duration(1),
            base_ejection_time=duration(EJECTION.total_seconds()),
            max_ejection_percent=50,
        ),
        retry_budget=RetryBudget(percent=50, min_retry_concurrency=10),
    )
    subsets = [Subset(name=version, labels={"version": version}) for version in (STABLE, CANARY)] if canary else []
    rule = DestinationRule(host=host(name), traffic_policy=policy, subsets=subsets)
    return Resource(meta(name, labels(name)), rule)


class _Policy(NamedTuple):
    """How the calls of some methods travel."""

    limit: float | None
    """Seconds; None for no limit."""
    attempts: int
    retry_on: str
    backoff: float

    def route(self, name: str, match: list[HttpMatch], destinations: list[HttpRouteDestination]) -> HttpRoute:
        return HttpRoute(
            name=name,
            match=match,
            route=destinations,
            timeout=None if self.limit is None else duration(self.limit + TIMEOUT_MARGIN),
            # Said in full: Istio's default repeats calls that a service may have begun to work on.
            retries=HttpRetry(attempts=self.attempts, retry_on=self.retry_on, backoff=duration(self.backoff)),
        )


def _policy(method: Method | None = None) -> _Policy:
    """A method's time limit, and when it is sent again: as the local mesh does. What is no method has no limit and
    is sent again only if it was not delivered."""
    again = retries(method)
    backoff = again.retry_back_off.base_interval if again.retry_back_off else None
    assert again.num_retries is not None
    assert backoff is not None
    limit = None if method is None else method.timeout(SETTINGS.default_timeout)
    # What the local proxies tell each other by a header, Istio's do not.
    conditions = ",".join(each for each in again.retry_on.split(",") if each != "retriable-headers")
    return _Policy(limit, again.num_retries, conditions, backoff.total_seconds())


def virtual_service(
    spec: ServiceSpec, methods: Sequence[Method], canary_percent: int | None = None
) -> Resource[VirtualService]:
    """A route for each distinct policy among the methods of a service, and one for the rest: health, reflection.

    With a canary every route has a twin before it, for calls whose header asks for the canary.
    """
    groups: dict[_Policy, list[HttpMatch]] = {}
    for method in methods:
        groups.setdefault(_policy(method), []).append(HttpMatch(uri=StringMatch(exact=method.path)))
    rest = [HttpMatch(uri=StringMatch(prefix="/"))]
    routes = [
        route
        for number, (policy, match) in enumerate([*groups.items(), (_policy(), rest)], 1)
        for route in _routes(spec, f"methods-{number}", policy, match, canary_percent)
    ]
    return Resource(meta(spec.id, labels(spec.id)), VirtualService(hosts=[host(spec.id)], http=routes))


def _routes(
    spec: ServiceSpec, name: str, policy: _Policy, match: list[HttpMatch], canary_percent: int | None
) -> Iterator[HttpRoute]:
    def to(subset: str | None = None, weight: int | None = None) -> HttpRouteDestination:
        port = PortSelector(number=spec.port)
        return HttpRouteDestination(
            destination=Destination(host=host(spec.id), port=port, subset=subset), weight=weight
        )

    if canary_percent is None:
        yield policy.route(name, match, [to()])
    else:
        asked_for = {VERSION_HEADER: StringMatch(exact=CANARY)}
        chosen = [HttpMatch(uri=each.uri, headers=asked_for) for each in match]
        yield policy.route(f"{name}-{CANARY}", chosen, [to(CANARY)])
        yield policy.route(name, match, [to(STABLE, 100 - canary_percent), to(CANARY, canary_percent)])


def sidecar(topology: Topology, name: str) -> Resource[Sidecar]:
    """A proxy knows, and lets out to, its service's callees and Istio itself; an overlay adds what is outside."""
    hosts = [f"./{host(callee)}" for callee in topology.callees_of(name)]
    spec = Sidecar(
        workload_selector=WorkloadSelector(labels=selector(name)),
        outbound_traffic_policy=OutboundTrafficPolicy(mode="REGISTRY_ONLY"),
        egress=[EgressListener(hosts=[*hosts, f"{ISTIO_NAMESPACE}/*"])],
    )
    return Resource(meta(name, labels(name)), spec)


def gateway(public_host: str) -> list[Resource[Gateway] | Resource[VirtualService]]:
    """TLS 1.3 for people outside ends at the gateway, which calls the edge over mTLS."""
    tls = ServerTls(mode="SIMPLE", credential_name=CREDENTIAL, min_protocol_version="TLSV1_3")
    servers = [
        Server(port=Port(number=443, name="https", protocol="HTTPS"), hosts=[public_host], tls=tls),
        Server(
            port=Port(number=80, name="http", protocol="HTTP"), hosts=[public_host], tls=ServerTls(https_redirect=True)
        ),
    ]
    destination = Destination(host=host(EDGE), port=PortSelector(number=EDGE_PORT))
    to_edge = _policy().route("edge", [], [HttpRouteDestination(destination=destination)])
    return [
        Resource(meta(EDGE, labels(EDGE), GATEWAY_NAMESPACE), Gateway(selector=GATEWAY_LABELS, servers=servers)),
        Resource(
            meta(EDGE, labels(EDGE)),
            VirtualService(hosts=[public_host], gateways=[f"{GATEWAY_NAMESPACE}/{EDGE}"], http=[to_edge]),
        ),
    ]


def request_authentications(settings: Settings, topology: Topology) -> list[Resource[RequestAuthentication]]:
    """A call with a token that token-mgr did not sign for this platform ends at the sidecar; the chassis asks the rest.

    Istio knows only services, not methods: where one of a service's public methods is handed the header as it came, as
    OpenID's UserInfo is, which takes tokens of other kinds, the chassis alone judges.
    """
    rule = JwtRule(
        issuer=settings.token_issuer,
        audiences=[settings.token_audience],
        jwks_uri=JWKS_URI,
        forward_original_token=True,
    )
    return [
        Resource(
            meta(service, labels(service)),
            RequestAuthentication(selector=Selector(match_labels=selector(service)), jwt_rules=[rule]),
        )
        for service, methods in topology.methods.items()
        if not any(speaks_for_itself(method) and not method.needs_user for method in methods)
    ]


def telemetry(settings: Settings) -> Resource[Telemetry]:
    return Resource(
        meta("default"),
        Telemetry(
            access_logging=[AccessLogging(providers=[Provider(name="envoy")])],
            tracing=[Tracing(random_sampling_percentage=settings.trace_ratio * 100)],
        ),
    )
