"""Who may talk to whom: identities and methods (Istio), and below them packets (NetworkPolicy).

Both start from "nobody" and open what the topology allows.
"""

from lightkube.models.meta_v1 import LabelSelector
from lightkube.models.networking_v1 import (
    NetworkPolicy,
    NetworkPolicyEgressRule,
    NetworkPolicyIngressRule,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    NetworkPolicySpec,
)

from edge.routes import JWKS_METHOD
from mesh.kubernetes.cluster import (
    EDGE_PORT,
    GATEWAY_ACCOUNT,
    GATEWAY_NAMESPACE,
    ISTIO_NAMESPACE,
    MONITORING_NAMESPACE,
    host,
    labels,
    meta,
    principal,
    selector,
)
from mesh.kubernetes.istio import (
    AuthorizationPolicy,
    AuthorizationRule,
    From,
    MutualTls,
    Operation,
    PeerAuthentication,
    Resource,
    Selector,
    Source,
    To,
)
from mesh.topology import ANYONE, Rule, Topology
from services.chassis import contract
from services.chassis.context import EDGE, OPERATOR

JWKS_PATH = contract.methods()[JWKS_METHOD].routes[0].path
JWKS_URI = f"http://{host(EDGE)}:{EDGE_PORT}{JWKS_PATH}"
MERGED_METRICS_PORT = 15020
"""Where a sidecar's agent serves its own metrics and the service's, in the clear; Istio leaves it out of the mesh."""
_ISTIOD_PORT = 15012


def mesh_wide() -> list[Resource[AuthorizationPolicy] | Resource[PeerAuthentication]]:
    """Without a rule of its own no call is allowed, and none travels in the clear."""
    return [
        Resource(meta("deny-all"), AuthorizationPolicy()),
        Resource(meta("default"), PeerAuthentication(mtls=MutualTls(mode="STRICT"))),
    ]


def service_policy(topology: Topology, service: str) -> Resource[AuthorizationPolicy]:
    """One rule for each of the topology's."""
    rules = [_rule(rule) for rule in topology.rules_of_callee(service)]
    return _allow(service, rules)


def _rule(rule: Rule) -> AuthorizationRule:
    return AuthorizationRule(
        from_=[_from(principal("*" if rule.caller == ANYONE else rule.caller))],
        to=[To(operation=Operation(paths=list(rule.paths)))],
    )


def edge_policies() -> list[Resource[AuthorizationPolicy] | Resource[PeerAuthentication]]:
    """The gateway may call the edge. istiod may too, for the public keys alone: it reads them for
    RequestAuthentication and has no sidecar, so it comes in the clear."""
    from_gateway = AuthorizationRule(from_=[_from(principal(GATEWAY_ACCOUNT, GATEWAY_NAMESPACE))])
    public_keys = AuthorizationRule(to=[To(operation=Operation(paths=[JWKS_PATH], methods=["GET"]))])
    in_the_clear = PeerAuthentication(
        selector=Selector(match_labels=selector(EDGE)),
        mtls=MutualTls(mode="STRICT"),
        port_level_mtls={str(EDGE_PORT): MutualTls(mode="PERMISSIVE")},
    )
    return [_allow(EDGE, [from_gateway, public_keys]), Resource(meta(EDGE, labels(EDGE)), in_the_clear)]


def _allow(name: str, rules: list[AuthorizationRule]) -> Resource[AuthorizationPolicy]:
    policy = AuthorizationPolicy(selector=Selector(match_labels=selector(name)), rules=rules)
    return Resource(meta(name, labels(name)), policy)


def _from(identity: str) -> From:
    return From(source=Source(principals=[identity]))


def base_network() -> list[NetworkPolicy]:
    """Nothing, but for what every pod needs: names, its sidecar's istiod, and being measured."""
    dns = NetworkPolicyEgressRule(
        to=[_namespace("kube-system", {"k8s-app": "kube-dns"})],
        ports=[NetworkPolicyPort(port=53, protocol=protocol) for protocol in ("UDP", "TCP")],
    )
    istiod = NetworkPolicyEgressRule(
        to=[_namespace(ISTIO_NAMESPACE, {"app": "istiod"})],
        ports=_tcp(_ISTIOD_PORT),
    )
    measured = NetworkPolicyIngressRule(from_=[_namespace(MONITORING_NAMESPACE)], ports=_tcp(MERGED_METRICS_PORT))
    return [
        _network("deny-all", {}, ingress=[], egress=[]),
        _network("infrastructure", {}, ingress=[measured], egress=[dns, istiod]),
    ]


def network(topology: Topology, name: str) -> NetworkPolicy:
    """From its callers to its port, and from it to its callees' ports."""
    callers = [other for other in topology.callers if name in topology.callees_of(other)]
    ingress = NetworkPolicyIngressRule(
        from_=[_pods(other) for other in callers], ports=_tcp(topology.services[name].port)
    )
    return _network(name, selector(name), ingress=[ingress], egress=_to_callees(topology, name))


def edge_network(topology: Topology) -> NetworkPolicy:
    sources = [_namespace(each) for each in (GATEWAY_NAMESPACE, ISTIO_NAMESPACE)]
    ingress = NetworkPolicyIngressRule(from_=sources, ports=_tcp(EDGE_PORT))
    return _network(EDGE, selector(EDGE), ingress=[ingress], egress=_to_callees(topology, EDGE))


def operator_network(topology: Topology) -> NetworkPolicy:
    return _network(OPERATOR, selector(OPERATOR), ingress=[], egress=_to_callees(topology, OPERATOR))


def _to_callees(topology: Topology, name: str) -> list[NetworkPolicyEgressRule]:
    return [
        NetworkPolicyEgressRule(to=[_pods(callee)], ports=_tcp(topology.services[callee].port))
        for callee in topology.callees_of(name)
    ]


def _network(
    name: str,
    pods: dict[str, str],
    *,
    ingress: list[NetworkPolicyIngressRule],
    egress: list[NetworkPolicyEgressRule],
) -> NetworkPolicy:
    spec = NetworkPolicySpec(
        podSelector=LabelSelector(matchLabels=pods or None),
        policyTypes=["Ingress", "Egress"],
        ingress=ingress or None,
        egress=egress or None,
    )
    return NetworkPolicy(metadata=meta(name), spec=spec)


def _pods(name: str) -> NetworkPolicyPeer:
    return NetworkPolicyPeer(podSelector=LabelSelector(matchLabels=selector(name)))


def _namespace(name: str, pods: dict[str, str] | None = None) -> NetworkPolicyPeer:
    return NetworkPolicyPeer(
        namespaceSelector=LabelSelector(matchLabels={"kubernetes.io/metadata.name": name}),
        podSelector=LabelSelector(matchLabels=pods) if pods else None,
    )


def _tcp(port: int) -> list[NetworkPolicyPort]:
    return [NetworkPolicyPort(port=port, protocol="TCP")]
