"""How the edge reaches the services: through the local mesh, through Istio, or straight to their sockets.

`NEXUS_SERVICE_ADDRESS` says which, as it does for the services' own calls.
"""

from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import RuntimeFractionalPercent, TransportSocket
from envoy_data_plane.envoy.config.route.v3 import (
    HeaderMatcher,
    Route,
    RouteAction,
    RouteActionRequestMirrorPolicy,
    RouteMatch,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.v3 import FractionalPercent

from edge.envoy import client_tls, cluster, pipe, tcp
from edge.layout import CANARY, Layout, canary_share, inbound_socket, mirror_share, through_local_mesh
from services.chassis.config import Settings
from services.chassis.context import EDGE
from services.chassis.peers import VERSION_HEADER
from services.chassis.spec import ServiceSpec


def service_clusters(settings: Settings, spec: ServiceSpec, layout: Layout) -> list[Cluster]:
    """The upstreams of a service, named like it."""
    address = settings.service_address
    if not address.startswith("unix:"):
        host, _, port = (
            address.removeprefix("dns:///")
            .format(service=spec.id, port=settings.port(spec.port), namespace=settings.namespace)
            .rpartition(":")
        )
        return [cluster(spec.id, [tcp(host, int(port))], discovery=ClusterDiscoveryType.STRICT_DNS)]
    if not through_local_mesh(settings):
        return [cluster(spec.id, [pipe(settings.run_dir / f"{spec.id}.sock")])]
    tls = client_tls(EDGE, settings.spiffe_id(spec.id))
    return mesh_clusters(settings, layout, spec.id, tls)


def mesh_clusters(
    settings: Settings, layout: Layout, service: str, tls: TransportSocket, prefix: str = ""
) -> list[Cluster]:
    """A caller's upstreams for a service in the local mesh: its ordinary instances, and its canary if it has one."""
    canary = layout.canary(service)
    groups = {service: layout.instances(service), **({canary: [canary]} if canary else {})}
    return [
        cluster(
            prefix + name,
            [pipe(inbound_socket(settings, instance)) for instance in instances],
            tls=tls,
            checked=len(instances) > 1,
        )
        for name, instances in groups.items()
    ]


def routes_to(service: str, match: RouteMatch, action: RouteAction, layout: Layout, prefix: str = "") -> list[Route]:
    """The routes of a method: to its service, or divided between the service and its canary.

    A call with the header `x-nexus-version: canary` goes to the canary whatever the shares.
    """
    action.cluster = prefix + service
    if layout.canary(service) is None:
        return [Route(match=match, route=action)]
    canary = f"{prefix}{layout.canary(service)}"
    action.request_mirror_policies = [
        RouteActionRequestMirrorPolicy(cluster=canary, runtime_fraction=_share(mirror_share(service)))
    ]
    asked, drawn = (RouteMatch.from_dict(match.to_dict()) for _ in range(2))
    asked.headers = [*asked.headers, HeaderMatcher(name=VERSION_HEADER, string_match=StringMatcher(exact=CANARY))]
    drawn.runtime_fraction = _share(canary_share(service))
    to_canary = RouteAction.from_dict(action.to_dict())
    to_canary.cluster, to_canary.request_mirror_policies = canary, []
    return [
        Route(match=asked, route=to_canary),
        Route(match=drawn, route=RouteAction.from_dict(to_canary.to_dict())),
        Route(match=match, route=action),
    ]


def _share(runtime_key: str) -> RuntimeFractionalPercent:
    """A share that is nothing until the key is set, in percent."""
    return RuntimeFractionalPercent(default_value=FractionalPercent(), runtime_key=runtime_key)
