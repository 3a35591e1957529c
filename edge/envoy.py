"""Envoy configuration that the edge and the local mesh have in common: upstreams, identities by SDS, logs."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from betterproto2 import Message
from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
from envoy_data_plane.envoy.config.bootstrap.v3 import (
    Bootstrap,
    LayeredRuntime,
    RuntimeLayer,
    RuntimeLayerAdminLayer,
)
from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    CircuitBreakersThresholdsRetryBudget,
    Cluster,
    ClusterDiscoveryType,
    ClusterLbPolicy,
    OutlierDetection,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    ApiConfigSource,
    ApiConfigSourceApiType,
    ApiVersion,
    ConfigSource,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    HealthCheck,
    HealthCheckGrpcHealthCheck,
    Http2ProtocolOptions,
    KeepaliveSettings,
    Pipe,
    RoutingPriority,
    SocketAddress,
    SubstitutionFormatString,
    TransportSocket,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter
from envoy_data_plane.envoy.config.route.v3 import (
    HeaderMatcher,
    RetryPolicy,
    RetryPolicyRetryBackOff,
    RetryPolicyRetryHostPredicate,
)
from envoy_data_plane.envoy.extensions.access_loggers.stream.v3 import StdoutAccessLog
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
)
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    CommonTlsContextCombinedCertificateValidationContext,
    DownstreamTlsContext,
    SdsSecretConfig,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TlsParameters,
    TlsParametersTlsProtocol,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any, Struct

from edge.layout import TRUST
from edge.replies import FAILED, UNDELIVERED
from services.chassis.contract import Method
from services.chassis.peers import MESH_REPLY

TLS_1_3 = TlsParameters(
    tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
    tls_maximum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
)
SUPERVISOR = "supervisor"
MAX_CALLS = 10_000
FAILURES_TO_EJECT = 5
EJECTION = timedelta(seconds=30)
# A message is validated when it is made. When it is written betterproto2 would validate it again, each by a validator
# of its own, which takes as long as all the rest; Envoy looks at it once more anyway.
Message._validate = lambda self: None  # type: ignore[method-assign]
_HTTP2_UPSTREAM = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def pipe(path: Path) -> Address:
    return Address(pipe=Pipe(path=str(path), mode=0o600))


def tcp(host: str, port: int) -> Address:
    return Address(socket_address=SocketAddress(address=host, port_value=port))


PATIENT = {"overload.premature_reset_total_stream_count": 2**31}
"""A proxy hangs up on whoever takes back half of 500 calls at once, and all other calls on that connection fail with
it. That is for strangers: between our own the edge takes back each call whose body does not fit its contract, and a
service each that its own caller has given up."""


def http_filter(name: str, config: Message) -> HttpFilter:
    return HttpFilter(name=f"envoy.filters.http.{name}", typed_config=Any.pack(config))


def manager_filter(manager: HttpConnectionManager) -> Filter:
    return Filter(name="envoy.filters.network.http_connection_manager", typed_config=Any.pack(manager))


def access_log(service: str, fields: dict[str, str]) -> AccessLog:
    """One JSON line a request."""
    entry = {"time": "%START_TIME%", "service": service, **fields}
    log = StdoutAccessLog(log_format=SubstitutionFormatString(json_format=Struct.from_dict(entry)))
    return AccessLog(name="envoy.access_loggers.stdout", typed_config=Any.pack(log))


def cluster(
    name: str,
    addresses: Sequence[Address],
    *,
    tls: TransportSocket | None = None,
    discovery: ClusterDiscoveryType = ClusterDiscoveryType.STATIC,
    http2: bool = True,
    checked: bool = False,
    capacity: int = MAX_CALLS,
) -> Cluster:
    """An upstream. With several endpoints the one with the fewest calls gets the next, and one that fails in a
    row is left alone for a while. `checked` asks each endpoint for its gRPC health. Of more calls than `capacity` at
    once, the rest is refused; streams, whose routes have HIGH priority, do not count."""
    options = HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(
            http2_protocol_options=Http2ProtocolOptions(
                # A peer that is hung, not gone, is noticed by what it does not answer.
                connection_keepalive=KeepaliveSettings(interval=timedelta(seconds=15), timeout=timedelta(seconds=5))
            )
        )
    )
    endpoints = [LbEndpoint(endpoint=Endpoint(address=address)) for address in addresses]
    result = Cluster(
        name=name,
        type=discovery,
        connect_timeout=timedelta(seconds=1),
        load_assignment=ClusterLoadAssignment(
            cluster_name=name, endpoints=[LocalityLbEndpoints(lb_endpoints=endpoints)]
        ),
        typed_extension_protocol_options={_HTTP2_UPSTREAM: Any.pack(options)} if http2 else {},
        transport_socket=tls,
        circuit_breakers=CircuitBreakers(
            thresholds=[
                CircuitBreakersThresholds(
                    priority=priority,
                    max_connections=1_000,
                    max_pending_requests=1_000,
                    max_requests=calls,
                    retry_budget=CircuitBreakersThresholdsRetryBudget(
                        budget_percent=Percent(value=50), min_retry_concurrency=10
                    ),
                )
                for priority, calls in ((RoutingPriority.DEFAULT, capacity), (RoutingPriority.HIGH, MAX_CALLS))
            ]
        ),
    )
    if len(addresses) > 1:
        result.lb_policy = ClusterLbPolicy.LEAST_REQUEST
        result.outlier_detection = OutlierDetection(
            # consecutive_5xx has this default; set, it would be written by a name that Envoy does not know.
            consecutive_gateway_failure=FAILURES_TO_EJECT,
            consecutive_local_origin_failure=FAILURES_TO_EJECT,
            split_external_local_origin_errors=True,
            enforcing_consecutive_gateway_failure=100,
            interval=timedelta(seconds=1),
            base_ejection_time=EJECTION,
            max_ejection_percent=50,
        )
    if checked:
        result.health_checks = [
            HealthCheck(
                timeout=timedelta(seconds=1),
                interval=timedelta(seconds=1),
                no_traffic_interval=timedelta(seconds=1),
                unhealthy_threshold=2,
                healthy_threshold=1,
                # Not the name of the cluster: its slash is no part of an authority, and such a call is cut off.
                grpc_health_check=HealthCheckGrpcHealthCheck(authority=name.rpartition("/")[2]),
            )
        ]
    return result


def retries(method: Method | None) -> RetryPolicy:
    """A request that never reached a service may be sent again; one without an answer where the contract allows it.

    What a service itself answers stands, UNAVAILABLE too: were that repeated at every hop, a service whose database
    is away would get dozens of calls for each.
    """
    conditions = "connect-failure,refused-stream,retriable-headers"
    unanswered = [UNDELIVERED]
    if method is not None and method.retryable and not method.streams:
        # A service that stops answers what it has not begun with CANCELLED.
        conditions += ",reset-before-request,cancelled"
        unanswered.append(FAILED)
    return RetryPolicy(
        retry_on=conditions,
        retriable_headers=[
            HeaderMatcher(name=MESH_REPLY, string_match=StringMatcher(exact=mark)) for mark in unanswered
        ],
        num_retries=5,
        retry_back_off=RetryPolicyRetryBackOff(
            base_interval=timedelta(milliseconds=25), max_interval=timedelta(milliseconds=500)
        ),
        retry_host_predicate=[
            RetryPolicyRetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts", typed_config=Any.pack(PreviousHostsPredicate())
            )
        ],
        host_selection_retry_max_attempts=3,
    )


def client_tls(identity: str, callee_uri: str) -> TransportSocket:
    """TLS towards a service: our certificate, and theirs must carry their SPIFFE id."""
    context = UpstreamTlsContext(common_tls_context=_mutual(identity, StringMatcher(exact=callee_uri)))
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def server_tls(identity: str, trust_domain: str) -> TransportSocket:
    """TLS towards callers: a certificate of the trust domain is required."""
    anyone = StringMatcher(prefix=f"spiffe://{trust_domain}/")
    context = DownstreamTlsContext(common_tls_context=_mutual(identity, anyone), require_client_certificate=True)
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def _mutual(identity: str, peer: StringMatcher) -> CommonTlsContext:
    return CommonTlsContext(
        alpn_protocols=["h2"],
        tls_params=TLS_1_3,
        tls_certificate_sds_secret_configs=[_secret(identity)],
        combined_validation_context=CommonTlsContextCombinedCertificateValidationContext(
            default_validation_context=CertificateValidationContext(
                match_typed_subject_alt_names=[
                    SubjectAltNameMatcher(san_type=SubjectAltNameMatcherSanType.URI, matcher=peer)
                ]
            ),
            validation_context_sds_secret_config=_secret(TRUST),
        ),
    )


def _secret(name: str) -> SdsSecretConfig:
    """A secret that the supervisor hands out, and hands out anew before it expires (SDS).

    Not from a file: Envoy takes an inotify instance for each file it watches, and Linux gives a user 128. And so no
    private key of a service ever touches the disk.
    """
    supervisor = GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=SUPERVISOR))
    source = ApiConfigSource(
        api_type=ApiConfigSourceApiType.GRPC, transport_api_version=ApiVersion.V3, grpc_services=[supervisor]
    )
    return SdsSecretConfig(
        name=name, sds_config=ConfigSource(api_config_source=source, resource_api_version=ApiVersion.V3)
    )


def supervisor_cluster(socket: Path) -> Cluster:
    """Where a proxy of the local mesh gets its secrets: the supervisor's discovery service on this socket."""
    return cluster(SUPERVISOR, [pipe(socket)])


def write(bootstrap: Bootstrap, path: Path) -> None:
    """As Envoy reads it fastest (`.pb`, a hundredth of the time to write), or as people do (`.json`)."""
    if path.suffix == ".pb":
        path.write_bytes(bytes(bootstrap))
    else:
        path.write_text(as_json(bootstrap))


def as_json(bootstrap: Bootstrap) -> str:
    text = json.dumps(bootstrap.to_dict(), indent=1, sort_keys=True)
    return re.sub(r'\{\s*"@type": ""\s*\}', "{}", text)  # an empty Any, as JSON has it


def runtime(fixed: Mapping[str, int] | None = None) -> LayeredRuntime:
    """Settings that the admin socket may change while the proxy runs: faults, canaries, mirrors; and `fixed` ones."""
    own = [RuntimeLayer(name="fixed", static_layer=Struct.from_dict(dict(fixed)))] if fixed else []
    return LayeredRuntime(layers=[*own, RuntimeLayer(name="admin", admin_layer=RuntimeLayerAdminLayer())])
