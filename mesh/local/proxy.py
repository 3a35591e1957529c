"""The local mesh proxy: one Envoy that is every service's sidecar.

A call leaves through its caller's outbound socket, travels with the caller's certificate over TLS 1.3, and enters
through the callee's inbound socket, where it must be allowed by the topology before it reaches the service:

    caller ─▶ run/mesh/<caller>.sock ═mTLS═▶ run/mesh/<callee>.in.sock ─▶ run/<callee>.sock

Faults, canaries and mirrors hang on runtime keys (`traffic.py`), so that they change while it runs.
"""

from collections.abc import Iterable
from datetime import timedelta

from envoy_data_plane.envoy.config.bootstrap.v3 import Admin, Bootstrap, BootstrapStaticResources
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.config.listener.v3 import FilterChain, Listener
from envoy_data_plane.envoy.config.rbac.v3 import (
    Permission,
    PermissionSet,
    Policy,
    Principal,
    PrincipalAuthenticated,
    RbacAction,
)
from envoy_data_plane.envoy.config.rbac.v3 import Rbac as Rules
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    RetryPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.common.fault.v3 import FaultDelay
from envoy_data_plane.envoy.extensions.filters.http.fault.v3 import FaultAbort, HttpFault
from envoy_data_plane.envoy.extensions.filters.http.rbac.v3 import Rbac
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerCodecType,
    HttpConnectionManagerForwardClientCertDetails,
    HttpConnectionManagerSetCurrentClientCertDetails,
    HttpFilter,
)
from envoy_data_plane.envoy.type.matcher.v3 import PathMatcher, StringMatcher
from grpc import StatusCode

from edge import envoy, replies
from edge.envoy import PATIENT, cluster, http_filter, manager_filter, pipe, retries
from edge.layout import TIMEOUT_MARGIN, Layout, inbound_socket, supervisor_socket
from edge.upstreams import mesh_clusters, routes_to
from mesh.local import traffic
from mesh.topology import ANYONE, Topology
from services.chassis import contract
from services.chassis.config import Settings
from services.chassis.context import EDGE

NAME = "mesh"
_REPLACED_BY_RUNTIME = timedelta(milliseconds=1)


def build(settings: Settings, topology: Topology, layout: Layout, services: Iterable[str]) -> Bootstrap:
    """The bootstrap for these services and all who call them."""
    running = [service for service in topology.services if service in set(services)]
    callers = [caller for caller in topology.callers if caller != EDGE]
    return Bootstrap(
        node=Node(id=NAME, cluster=NAME),
        admin=Admin(address=pipe(settings.run_dir / "mesh-admin.sock")),
        layered_runtime=envoy.runtime(PATIENT),
        static_resources=BootstrapStaticResources(
            listeners=[
                *(_outbound(settings, topology, layout, caller, set(running)) for caller in callers),
                *(_inbound(settings, topology, service, name) for service, name in layout.all(running)),
            ],
            clusters=[
                envoy.supervisor_cluster(supervisor_socket(settings)),
                *(
                    each
                    for caller in callers
                    for callee in topology.callees_of(caller)
                    if callee in running
                    for each in _towards(settings, layout, caller, callee)
                ),
                *(
                    cluster(f"local/{name}", [pipe(settings.run_dir / f"{name}.sock")])
                    for _, name in layout.all(running)
                ),
            ],
        ),
    )


def rules_of(topology: Topology, settings: Settings, service: str) -> Rules:
    """The topology's rules for one callee, as Envoy's RBAC has them."""
    policies = {}
    for rule in topology.rules_of_callee(service):
        caller = (
            StringMatcher(prefix=settings.spiffe_id(""))  # of our namespace; the trust domain may have others
            if rule.caller == ANYONE
            else StringMatcher(exact=settings.spiffe_id(rule.caller))
        )
        principal = Principal(authenticated=PrincipalAuthenticated(principal_name=caller))
        paths = [Permission(url_path=PathMatcher(path=_path(path))) for path in rule.paths]
        policies[rule.caller] = Policy(
            principals=[principal], permissions=[Permission(or_rules=PermissionSet(rules=paths))]
        )
    return Rules(action=RbacAction.ALLOW, policies=policies)


def _path(path: str) -> StringMatcher:
    return StringMatcher(prefix=path[:-1]) if path.endswith("*") else StringMatcher(exact=path)


def _towards(settings: Settings, layout: Layout, caller: str, callee: str) -> list[Cluster]:
    tls = envoy.client_tls(caller, settings.spiffe_id(callee))
    return mesh_clusters(settings, layout, callee, tls, prefix=f"{caller}/")


def _outbound(settings: Settings, topology: Topology, layout: Layout, caller: str, running: set[str]) -> Listener:
    manager = HttpConnectionManager(
        codec_type=HttpConnectionManagerCodecType.HTTP2,
        stat_prefix=f"out.{caller}",
        route_config=_outbound_routes(settings, topology, layout, caller, running),
        http_filters=[_router()],
        local_reply_config=replies.mesh_replies(),
        generate_request_id=False,
        preserve_external_request_id=True,
        stream_idle_timeout=timedelta(0),
    )
    return Listener(
        name=f"out/{caller}",
        address=pipe(settings.run_dir / "mesh" / f"{caller}.sock"),
        filter_chains=[FilterChain(filters=[manager_filter(manager)])],
    )


def _outbound_routes(
    settings: Settings, topology: Topology, layout: Layout, caller: str, running: set[str]
) -> RouteConfiguration:
    """A virtual host for each callee, with what the caller may call of it. The rest is refused at once."""
    hosts = []
    for callee in topology.callees_of(caller):
        if callee not in running:
            continue
        paths = sorted(
            {path for rule in topology.rules_of_caller(caller) if rule.callee == callee for path in rule.paths}
        )
        routes = [
            route
            for path in paths
            for route in routes_to(callee, _match(path), _action(settings, path), layout, prefix=f"{caller}/")
        ]
        hosts.append(VirtualHost(name=callee, domains=[callee], routes=[*routes, _refusal()]))
    hosts.append(VirtualHost(name="undeclared", domains=["*"], routes=[_refusal()]))
    return RouteConfiguration(name=f"{caller}.out", virtual_hosts=hosts)


def _match(path: str) -> RouteMatch:
    return RouteMatch(prefix=path[:-1]) if path.endswith("*") else RouteMatch(path=path)


def _action(settings: Settings, path: str) -> RouteAction:
    method = contract.methods().get(path)
    limit = method.timeout(settings.default_timeout) if method is not None else None
    return RouteAction(
        timeout=timedelta(seconds=limit + TIMEOUT_MARGIN) if limit is not None else timedelta(0),
        retry_policy=retries(method),
    )


def _refusal() -> Route:
    return Route(match=RouteMatch(prefix="/"), direct_response=DirectResponseAction(status=403))


def _inbound(settings: Settings, topology: Topology, service: str, instance: str) -> Listener:
    manager = HttpConnectionManager(
        codec_type=HttpConnectionManagerCodecType.HTTP2,
        stat_prefix=f"in.{instance}",
        route_config=_inbound_routes(service, instance),
        http_filters=[
            http_filter("rbac", Rbac(rules=rules_of(topology, settings, service))),
            http_filter("fault", _faults(service)),
            _router(),
        ],
        # The service learns who calls from the certificate, whatever the caller wrote into the header.
        forward_client_cert_details=HttpConnectionManagerForwardClientCertDetails.SANITIZE_SET,
        set_current_client_cert_details=HttpConnectionManagerSetCurrentClientCertDetails(uri=True),
        local_reply_config=replies.mesh_replies(),
        generate_request_id=False,
        preserve_external_request_id=True,
        stream_idle_timeout=timedelta(0),
    )
    return Listener(
        name=f"in/{instance}",
        address=pipe(inbound_socket(settings, instance)),
        filter_chains=[
            FilterChain(
                filters=[manager_filter(manager)],
                transport_socket=envoy.server_tls(service, settings.trust_domain),
            )
        ],
    )


def _faults(service: str) -> HttpFault:
    """Does nothing until the keys of a `traffic.Fault` are set."""
    names = traffic.fault_keys(service)
    return HttpFault(
        abort=FaultAbort(grpc_status=StatusCode.UNAVAILABLE.value[0]),
        abort_percent_runtime=names["abort"],
        abort_grpc_status_runtime=names["status"],
        delay=FaultDelay(fixed_delay=_REPLACED_BY_RUNTIME),
        delay_percent_runtime=names["delay"],
        delay_duration_runtime=names["duration"],
    )


def _inbound_routes(service: str, instance: str) -> RouteConfiguration:
    # Who may wait how long is the caller's to say; here nothing ends a call before its time. What a service that is
    # about to stop refuses to begin is tried once more, and then told to be undelivered.
    action = RouteAction(
        cluster=f"local/{instance}",
        timeout=timedelta(0),
        retry_policy=RetryPolicy(retry_on="refused-stream", num_retries=1),
    )
    route = Route(match=RouteMatch(prefix="/"), route=action)
    return RouteConfiguration(
        name=f"{instance}.in", virtual_hosts=[VirtualHost(name=service, domains=["*"], routes=[route])]
    )


def _router() -> HttpFilter:
    return http_filter("router", Router(suppress_envoy_headers=True))
