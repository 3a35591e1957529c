"""The edge's Envoy bootstrap, out of the contracts: what is not in a contract cannot be reached.

    python -m edge.bootstrap [FILE]     write it (or print it, as JSON) for the settings in the environment

The order of the HTTP filters is the order in which a request is judged: form first (strict JSON), then
transcoding, after which every request, JSON or gRPC, is a call of one contract method and meets the policy of
that method's route: token, rate class, timeout, retries.
"""

import sys
from datetime import timedelta
from pathlib import Path

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
from envoy_data_plane.envoy.config.bootstrap.v3 import Admin, Bootstrap, BootstrapStaticResources
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    DataSource,
    EnvoyInternalAddress,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    Node,
    TransportSocket,
)
from envoy_data_plane.envoy.config.core.v3 import HttpProtocolOptionsHeadersWithUnderscoresAction as Underscores
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener, ListenerInternalListenerConfig
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerPathWithEscapedSlashesAction,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CommonTlsContext,
    DownstreamTlsContext,
    TlsCertificate,
)
from envoy_data_plane.google.protobuf import Any

from edge import cache, envoy, filters, replies, routes, tls
from edge.envoy import manager_filter, pipe, tcp
from edge.layout import Layout, supervisor_socket, through_local_mesh
from edge.transcoding import MAX_REQUEST_BYTES
from edge.upstreams import service_clusters
from services.chassis.config import Settings, load_settings
from services.chassis.spec import discover

HTTP_PORT = 8080
HTTPS_PORT = 8443
MAX_HEADER_KB = 32
MAX_HEADERS = 100


def write(settings: Settings, path: Path, layout: Layout | None = None) -> None:
    """Write the bootstrap, and the certificate it serves if there is none yet."""
    certificate = tls.ensure_certificate(settings.home / "secrets" / "edge")
    for folder in (path.parent, settings.run_dir, cache.folder(settings)):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    envoy.write(build(settings, certificate, layout or Layout()), path)


def build(settings: Settings, certificate: tls.Certificate, layout: Layout) -> Bootstrap:
    public = _public(settings, layout)
    plain = [] if settings.strict else [_listener(settings, "http", HTTP_PORT, public)]
    secure = _listener(settings, "https", HTTPS_PORT, public, certificate)
    clusters = [each for spec in discover().values() for each in service_clusters(settings, spec, layout)]
    if through_local_mesh(settings):
        clusters.append(envoy.supervisor_cluster(supervisor_socket(settings)))
    return Bootstrap(
        node=Node(id="edge", cluster="edge"),
        admin=Admin(address=pipe(settings.run_dir / "edge-admin.sock")),
        # Behind another proxy, many callers share a connection.
        layered_runtime=envoy.runtime(envoy.PATIENT if settings.trusted_hops else None),
        bootstrap_extensions=[cache.extension()],
        static_resources=BootstrapStaticResources(
            listeners=[*plain, secure, _origin_listener(settings, layout), _keys_listener(settings)],
            clusters=[*clusters, _origin_cluster(), _keys_cluster(settings)],
        ),
    )


def _public(settings: Settings, layout: Layout) -> Filter:
    """What all outside callers meet, with TLS and without."""
    manager = HttpConnectionManager(
        stat_prefix="edge",
        server_name="nexus",
        route_config=routes.table(settings, layout),
        http_filters=filters.chain(settings),
        access_log=[access_log()],
        local_reply_config=replies.local_replies(),
        # The address of the caller is what the connection says, not what a header claims.
        use_remote_address=True,
        xff_num_trusted_hops=settings.trusted_hops,
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
    return manager_filter(manager)


def _listener(
    settings: Settings, name: str, port: int, public: Filter, certificate: tls.Certificate | None = None
) -> Listener:
    chain = FilterChain(filters=[public])
    if certificate is not None:
        chain.transport_socket = _tls_1_3(certificate)
    return Listener(
        name=name,
        address=tcp(settings.host, settings.port(port)),
        filter_chains=[chain],
        per_connection_buffer_limit_bytes=MAX_REQUEST_BYTES,
    )


def _tls_1_3(certificate: tls.Certificate) -> TransportSocket:
    context = DownstreamTlsContext(
        common_tls_context=CommonTlsContext(
            alpn_protocols=["h2", "http/1.1"],
            tls_params=envoy.TLS_1_3,
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
    """Paths without queries: queries may carry personal data."""
    return envoy.access_log(
        "edge",
        {
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
        },
    )


def _origin_listener(settings: Settings, layout: Layout) -> Listener:
    """Where the cache asks for what it lacks."""
    manager = HttpConnectionManager(
        stat_prefix=cache.ORIGIN,
        route_config=routes.origin_table(settings, layout),
        http_filters=filters.origin_chain(),
        local_reply_config=replies.local_replies(),
    )
    return Listener(
        name=cache.ORIGIN,
        internal_listener=ListenerInternalListenerConfig(),
        filter_chains=[FilterChain(filters=[manager_filter(manager)])],
    )


def _origin_cluster() -> Cluster:
    address = Address(envoy_internal_address=EnvoyInternalAddress(server_listener_name=cache.ORIGIN))
    return envoy.cluster(cache.ORIGIN, [address])


def _keys_listener(settings: Settings) -> Listener:
    """Where the edge's own JWT filter reads token-mgr's keys: HTTP on a socket nobody else can open."""
    manager = HttpConnectionManager(
        stat_prefix="keys",
        route_config=routes.keys_table(settings),
        http_filters=filters.keys_chain(),
    )
    return Listener(
        name="keys",
        address=pipe(settings.run_dir / "edge-keys.sock"),
        filter_chains=[FilterChain(filters=[manager_filter(manager)])],
    )


def _keys_cluster(settings: Settings) -> Cluster:
    return envoy.cluster(filters.KEYS_CLUSTER, [pipe(settings.run_dir / "edge-keys.sock")], http2=False)


def main() -> int:
    settings = load_settings(service_ids=discover())
    if len(sys.argv) > 1:
        write(settings, Path(sys.argv[1]))
    else:
        certificate = tls.Certificate(Path("tls.crt"), Path("tls.key"))
        print(envoy.as_json(build(settings, certificate, Layout())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
