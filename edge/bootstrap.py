"""The edge's Envoy bootstrap, out of the contracts: what is not in a contract cannot be reached.

    python -m edge.bootstrap [FILE]     write it (or print it) for the settings in the environment

The order of the HTTP filters is the order in which a request is judged: form first (strict JSON), then
transcoding, after which every request, JSON or gRPC, is a call of one contract method and meets the policy of
that method's route: token, rate class, timeout, retries.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any as AnyValue

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
from envoy_data_plane.envoy.config.bootstrap.v3 import Admin, Bootstrap, BootstrapStaticResources
from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterDiscoveryType,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    DataSource,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    Pipe,
    SocketAddress,
    SubstitutionFormatString,
    TransportSocket,
)
from envoy_data_plane.envoy.config.core.v3 import (
    HttpProtocolOptionsHeadersWithUnderscoresAction as Underscores,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.extensions.access_loggers.stream.v3 import StdoutAccessLog
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpFilter,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CommonTlsContext,
    DownstreamTlsContext,
    TlsCertificate,
    TlsParameters,
    TlsParametersTlsProtocol,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions as UpstreamHttpOptions,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.google.protobuf import Any, Struct

from edge import filters, replies, routes, tls
from services.chassis.config import Settings, load_settings
from services.chassis.spec import ServiceSpec, discover

HTTP_PORT = 8080
HTTPS_PORT = 8443
MAX_REQUEST_BYTES = 4 * 1024 * 1024
MAX_HEADER_KB = 32
MAX_HEADERS = 100


def write(settings: Settings, path: Path) -> None:
    """Write the bootstrap, and the certificate it serves if there is none yet."""
    certificate = tls.ensure_certificate(settings.home / "secrets" / "edge")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(build(settings, certificate)))


def render(bootstrap: Bootstrap) -> str:
    return json.dumps(bootstrap.to_dict(), indent=1, sort_keys=True)


def build(settings: Settings, certificate: tls.Certificate) -> Bootstrap:
    http_filters = filters.chain(settings, MAX_REQUEST_BYTES)
    plain = _listener(settings, "http", HTTP_PORT, http_filters)
    secure = _listener(settings, "https", HTTPS_PORT, http_filters, certificate)
    keys = _keys_listener(settings)
    specs = discover().values()
    return Bootstrap(
        admin=Admin(address=Address(pipe=Pipe(path=str(settings.run_dir / "edge-admin.sock"), mode=0o600))),
        static_resources=BootstrapStaticResources(
            listeners=[plain, secure, keys],
            clusters=[*(_service_cluster(settings, spec) for spec in specs), _keys_cluster(settings)],
        ),
    )


def _listener(
    settings: Settings,
    name: str,
    port: int,
    http_filters: list[HttpFilter],
    certificate: tls.Certificate | None = None,
) -> Listener:
    manager = HttpConnectionManager(
        stat_prefix=name,
        server_name="nexus",
        route_config=routes.table(settings, secure=certificate is not None),
        http_filters=http_filters,
        access_log=[access_log()],
        local_reply_config=replies.local_replies(),
        # The address of the caller is what the connection says, not what a header claims.
        use_remote_address=True,
        always_set_request_id_in_response=True,
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST,
        strip_any_host_port=True,
        max_request_headers_kb=MAX_HEADER_KB,
        common_http_protocol_options=HttpProtocolOptions(
            idle_timeout=timedelta(minutes=5),
            max_headers_count=MAX_HEADERS,
            headers_with_underscores_action=Underscores.REJECT_REQUEST,
        ),
        http2_protocol_options=Http2ProtocolOptions(
            max_concurrent_streams=256,
            initial_stream_window_size=256 * 1024,
            initial_connection_window_size=1024 * 1024,
        ),
        request_headers_timeout=timedelta(seconds=10),
        stream_idle_timeout=timedelta(minutes=5),
        # A browser that shuts a connection sees the answer to what it sent before.
        delayed_close_timeout=timedelta(seconds=1),
    )
    chain = FilterChain(
        filters=[Filter(name="envoy.filters.network.http_connection_manager", typed_config=Any.pack(manager))]
    )
    if certificate is not None:
        chain.transport_socket = _tls_1_3(certificate)
    return Listener(
        name=name,
        address=Address(socket_address=SocketAddress(address=settings.host, port_value=settings.port(port))),
        filter_chains=[chain],
        per_connection_buffer_limit_bytes=MAX_REQUEST_BYTES,
    )


def _tls_1_3(certificate: tls.Certificate) -> TransportSocket:
    context = DownstreamTlsContext(
        common_tls_context=CommonTlsContext(
            alpn_protocols=["h2", "http/1.1"],
            tls_params=TlsParameters(
                tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
                tls_maximum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
            ),
            tls_certificates=[
                TlsCertificate(
                    certificate_chain=DataSource(filename=str(certificate.chain)),
                    private_key=DataSource(filename=str(certificate.key)),
                )
            ],
        )
    )
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def access_log() -> AccessLog:
    """One JSON line a request. Paths without queries: queries may carry personal data."""
    fields = {
        "time": "%START_TIME%",
        "service": "edge",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "http_method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ:ORIG_OR_PATH)%",
        "grpc_method": "%ROUTE_NAME%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS_NUMBER%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "upstream": "%UPSTREAM_CLUSTER%",
        "milliseconds": "%DURATION%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    }
    log = StdoutAccessLog(log_format=SubstitutionFormatString(json_format=Struct.from_dict(fields)))
    return AccessLog(name="envoy.access_loggers.stdout", typed_config=Any.pack(log))


def _service_cluster(settings: Settings, spec: ServiceSpec) -> Cluster:
    return cluster(spec.id, Address(pipe=Pipe(path=str(settings.run_dir / f"{spec.id}.sock"))))


def cluster(name: str, address: Address) -> Cluster:
    """An HTTP/2 upstream with one endpoint."""
    http2 = UpstreamHttpOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=Http2ProtocolOptions())
    )
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=1),
        load_assignment=ClusterLoadAssignment(
            cluster_name=name,
            endpoints=[LocalityLbEndpoints(lb_endpoints=[LbEndpoint(endpoint=Endpoint(address=address))])],
        ),
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": Any.pack(http2)},
        circuit_breakers=CircuitBreakers(
            thresholds=[CircuitBreakersThresholds(max_requests=10_000, max_pending_requests=1_000, max_retries=20)]
        ),
    )


def _keys_listener(settings: Settings) -> Listener:
    """Where the edge's own JWT filter reads token-mgr's keys: HTTP on a socket nobody else can open."""
    manager = HttpConnectionManager(
        stat_prefix="keys",
        route_config=routes.keys_table(settings),
        http_filters=filters.keys_chain(),
    )
    return Listener(
        name="keys",
        address=Address(pipe=Pipe(path=str(settings.run_dir / "edge-keys.sock"), mode=0o600)),
        filter_chains=[
            FilterChain(
                filters=[Filter(name="envoy.filters.network.http_connection_manager", typed_config=Any.pack(manager))]
            )
        ],
    )


def _keys_cluster(settings: Settings) -> Cluster:
    keys = cluster(filters.KEYS_CLUSTER, Address(pipe=Pipe(path=str(settings.run_dir / "edge-keys.sock"))))
    keys.typed_extension_protocol_options = {}  # HTTP/1.1
    return keys


def main() -> int:
    settings: AnyValue = load_settings(service_ids=discover())
    if len(sys.argv) > 1:
        write(settings, Path(sys.argv[1]))
    else:
        print(render(build(settings, tls.ensure_certificate(settings.home / "secrets" / "edge"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
