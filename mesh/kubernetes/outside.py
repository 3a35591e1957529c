"""What lies outside of the cluster: who reaches it, and what lets them out, for packets, connections and names alike.

Who reaches what comes from the specs and the services' settings; an overlay adds what is its environment's own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from lightkube.models.meta_v1 import LabelSelector, LabelSelectorRequirement
from lightkube.models.networking_v1 import (
    IPBlock,
    NetworkPolicy,
    NetworkPolicyEgressRule,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    NetworkPolicySpec,
)

from mesh.kubernetes.cluster import MIGRATIONS, NAME, Manifest, meta
from mesh.kubernetes.istio import Port, Resource, ServiceEntry
from mesh.kubernetes.kustomize import Operation, Patch, Target, patch
from mesh.kubernetes.overlays import Overlay, Server
from services.chassis.spec import ServiceSpec

INTERNET = {
    "0.0.0.0/0": [
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"),
    ],
    "::/0": ["::1/128", "::ffff:0:0/96", "64:ff9b:1::/48", "fc00::/7", "fe80::/10", "ff00::/8"],
}
"""All addresses but those that IANA sets aside, among them the cluster's own and the cloud's metadata server:
https://www.iana.org/assignments/iana-ipv4-special-registry"""
_WEB = {"https": ("TLS", 443), "http": ("HTTP", 80)}
"""How Istio takes a URL's scheme, and its usual port. TLS is the service's own; the sidecar reads the name in it."""


@dataclass(frozen=True)
class Place:
    """An address outside of the cluster."""

    name: str
    host: str
    port: int
    protocol: str
    """As Istio has it."""
    cidr: str | None
    """Where it lies; None for the Internet."""
    users: Sequence[str]
    """The services, and "migrations"."""

    def service_entry(self) -> Resource[ServiceEntry]:
        spec = ServiceEntry(
            hosts=[self.host],
            ports=[Port(number=self.port, name=self.protocol.lower(), protocol=self.protocol)],
            location="MESH_EXTERNAL",
            # A connection that names nobody is told by its address; it goes where the service resolved the name to.
            resolution="NONE" if self.protocol == "TCP" or self.host.startswith("*") else "DNS",
            export_to=["."],
            addresses=[self.cidr] if self.protocol == "TCP" and self.cidr else [],
        )
        return Resource(meta(self.name), spec)


def places(overlay: Overlay, services: Mapping[str, ServiceSpec]) -> list[Place]:
    """Everything that somebody reaches in an environment."""
    users: dict[tuple[str, int, str], list[str]] = {}
    for spec in services.values():
        further = [f"https://{host}" for host in overlay.further_hosts.get(spec.id, ())]
        for url in [*spec.urls_outside(overlay.config_of(spec)), *further]:
            users.setdefault(_address(url), []).append(spec.id)
    web = [
        Place(host.replace("*", "any"), host, port, protocol, overlay.networks.get(host), who)
        for (host, port, protocol), who in sorted(users.items())
    ]
    return [*(_place(server, services.values()) for server in overlay.servers), *web]


def _place(server: Server, services: Iterable[ServiceSpec]) -> Place:
    users = [spec.id for spec in services if server.used_by(spec)]
    if server.by_migrations:
        users.append(MIGRATIONS)
    return Place(server.name, server.host, server.port, "TCP", server.cidr, users)


def _address(url: str) -> tuple[str, int, str]:
    """Host, port and protocol."""
    parts = urlsplit(url)
    protocol, usual = _WEB[parts.scheme]
    assert parts.hostname is not None, url
    return parts.hostname, parts.port or usual, protocol


def objects(places: Sequence[Place]) -> list[Manifest]:
    """Names for the sidecars, and a way for the packets."""
    ways: dict[tuple[str | None, int], list[Place]] = {}
    for place in places:
        ways.setdefault((place.cidr, place.port), []).append(place)
    return [*(place.service_entry() for place in places), *(_network(*way, there) for way, there in ways.items())]


def _network(cidr: str | None, port: int, places: Sequence[Place]) -> NetworkPolicy:
    """To a network outside, for those who use anything there."""
    name = f"outside-{places[0].name if cidr else 'internet'}-{port}"
    users = sorted({user for place in places for user in place.users})
    blocks = {cidr: None} if cidr else INTERNET
    to = [NetworkPolicyPeer(ipBlock=IPBlock(cidr=block, except_=inner)) for block, inner in blocks.items()]
    egress = NetworkPolicyEgressRule(to=to, ports=[NetworkPolicyPort(port=port, protocol="TCP")])
    pods = LabelSelector(matchExpressions=[LabelSelectorRequirement(key=NAME, operator="In", values=users)])
    return NetworkPolicy(
        metadata=meta(name), spec=NetworkPolicySpec(podSelector=pods, policyTypes=["Egress"], egress=[egress])
    )


def sidecar_patches(places: Sequence[Place], services: Iterable[str]) -> list[Patch]:
    """Let a service's sidecar know the places that the service reaches, and no others."""
    hosts = {service: [f"./{place.host}" for place in places if service in place.users] for service in services}
    return [
        patch(
            Target(kind="Sidecar", name=service),
            *(Operation(op="add", path="/spec/egress/0/hosts/-", value=host) for host in of_service),
        )
        for service, of_service in hosts.items()
        if of_service
    ]
