"""Istio's API (1.31), as far as the platform uses it: typed, checked against Istio's own schemas by the tests.

A class here is the spec of the kind of the same name; `Resource` makes an object of it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
from lightkube.models.meta_v1 import ObjectMeta


class Message(msgspec.Struct, omit_defaults=True, rename="camel"):
    """Snake case here, camel case there; what is left out is left to Istio."""


class Spec(Message):
    API: ClassVar[str] = "networking.istio.io/v1"


S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Resource(Generic[S]):
    """One object of a kind of Istio's."""

    metadata: ObjectMeta
    spec: S

    def to_dict(self) -> dict[str, Any]:
        return {
            "apiVersion": self.spec.API,
            "kind": type(self.spec).__name__,
            "metadata": self.metadata.to_dict(),
            "spec": msgspec.to_builtins(self.spec),
        }


def duration(seconds: float) -> str:
    return f"{seconds:g}s"


class Selector(Message):
    match_labels: dict[str, str]


# who may call: security.istio.io


class MutualTls(Message):
    mode: str


class PeerAuthentication(Spec):
    API = "security.istio.io/v1"
    mtls: MutualTls
    selector: Selector | None = None
    port_level_mtls: dict[str, MutualTls] = {}


class Source(Message):
    principals: list[str]


class From(Message):
    source: Source


class Operation(Message):
    paths: list[str]
    methods: list[str] = []


class To(Message):
    operation: Operation


class AuthorizationRule(Message):
    from_: list[From] = msgspec.field(name="from", default=[])
    to: list[To] = []


class AuthorizationPolicy(Spec):
    """Without rules it allows nothing."""

    API = "security.istio.io/v1"
    selector: Selector | None = None
    rules: list[AuthorizationRule] = []


class JwtRule(Message):
    issuer: str
    audiences: list[str]
    jwks_uri: str
    forward_original_token: bool


class RequestAuthentication(Spec):
    API = "security.istio.io/v1"
    selector: Selector
    jwt_rules: list[JwtRule]


# how calls travel: networking.istio.io


class TlsSettings(Message):
    mode: str


class LoadBalancer(Message):
    simple: str


class TcpPool(Message):
    max_connections: int
    connect_timeout: str


class HttpPool(Message):
    http1_max_pending_requests: int
    http2_max_requests: int


class ConnectionPool(Message):
    tcp: TcpPool
    http: HttpPool


class OutlierDetection(Message):
    split_external_local_origin_errors: bool
    consecutive_local_origin_failures: int
    consecutive_gateway_errors: int
    consecutive_5xx_errors: int = msgspec.field(name="consecutive5xxErrors")
    interval: str
    base_ejection_time: str
    max_ejection_percent: int


class RetryBudget(Message):
    percent: float
    min_retry_concurrency: int


class TrafficPolicy(Message):
    tls: TlsSettings
    load_balancer: LoadBalancer
    connection_pool: ConnectionPool
    outlier_detection: OutlierDetection
    retry_budget: RetryBudget


class Subset(Message):
    name: str
    labels: dict[str, str]


class DestinationRule(Spec):
    host: str
    traffic_policy: TrafficPolicy
    subsets: list[Subset] = []


class StringMatch(Message):
    exact: str | None = None
    prefix: str | None = None


class HttpMatch(Message):
    uri: StringMatch
    headers: dict[str, StringMatch] = {}


class PortSelector(Message):
    number: int


class Destination(Message):
    host: str
    port: PortSelector
    subset: str | None = None


class HttpRouteDestination(Message):
    destination: Destination
    weight: int | None = None


class HttpRetry(Message):
    attempts: int
    retry_on: str
    backoff: str


class HttpRoute(Message, kw_only=True):
    name: str
    match: list[HttpMatch] = []
    route: list[HttpRouteDestination]
    timeout: str | None = None
    """No limit when left out."""
    retries: HttpRetry


class VirtualService(Spec, kw_only=True):
    hosts: list[str]
    gateways: list[str] = []
    http: list[HttpRoute]


class EgressListener(Message):
    hosts: list[str]


class OutboundTrafficPolicy(Message):
    mode: str


class WorkloadSelector(Message):
    labels: dict[str, str]


class Sidecar(Spec):
    workload_selector: WorkloadSelector
    outbound_traffic_policy: OutboundTrafficPolicy
    egress: list[EgressListener]


class Port(Message):
    number: int
    name: str
    protocol: str


class ServiceEntry(Spec):
    hosts: list[str]
    ports: list[Port]
    location: str
    resolution: str
    export_to: list[str]
    addresses: list[str] = []


class ServerTls(Message):
    mode: str | None = None
    credential_name: str | None = None
    min_protocol_version: str | None = None
    https_redirect: bool = False


class Server(Message):
    port: Port
    hosts: list[str]
    tls: ServerTls


class Gateway(Spec):
    selector: dict[str, str]
    servers: list[Server]


# what is observed: telemetry.istio.io


class Provider(Message):
    name: str


class AccessLogging(Message):
    providers: list[Provider]


class Tracing(Message):
    random_sampling_percentage: float


class Telemetry(Spec):
    API = "telemetry.istio.io/v1"
    access_logging: list[AccessLogging]
    tracing: list[Tracing]
