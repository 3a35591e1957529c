"""Who may call whom in a cluster is what the topology says: every rule, and nothing else."""

from collections.abc import Iterable, Iterator

import msgspec
import pytest
from lightkube.models.meta_v1 import ObjectMeta

from mesh.kubernetes import policies
from mesh.kubernetes.cluster import GATEWAY_ACCOUNT, GATEWAY_NAMESPACE, principal
from mesh.kubernetes.istio import AuthorizationPolicy, Resource
from mesh.kubernetes.overlays import OVERLAYS
from mesh.topology import ANYONE, topology
from services.chassis.context import EDGE
from tests.mesh.kubernetes.clusters import Object, built, of_kind, rendered

TOPOLOGY = topology()
ANYBODY = ""
"""Also who has no identity, as istiod."""
RULES = {(rule.caller, rule.callee, path) for rule in TOPOLOGY.rules for path in rule.paths}


def test_every_rule_of_the_topology_is_allowed_once_and_nothing_else() -> None:
    rendered_rules = [policies.service_policy(TOPOLOGY, service) for service in TOPOLOGY.services]

    assert allowed(rendered_rules) == RULES
    assert sum(len(policy.spec.rules) for policy in rendered_rules) == len(TOPOLOGY.rules)


def test_the_base_allows_no_more_than_the_rules_and_the_way_in() -> None:
    way_in = {
        (principal(GATEWAY_ACCOUNT, GATEWAY_NAMESPACE), EDGE, "*"),
        (ANYBODY, EDGE, policies.JWKS_PATH),
    }

    assert _allowed(of_kind(rendered("base"), "AuthorizationPolicy")) == RULES | way_in


@pytest.mark.parametrize("overlay", [overlay.name for overlay in OVERLAYS])
def test_no_overlay_changes_who_may_call_whom(overlay: str) -> None:
    of_overlay = _allowed(of_kind(built(overlay), "AuthorizationPolicy"))

    assert of_overlay == _allowed(of_kind(rendered("base"), "AuthorizationPolicy"))


def test_without_a_rule_nothing_is_allowed_and_nothing_travels_in_the_clear() -> None:
    [deny] = [each for each in of_kind(rendered("base"), "AuthorizationPolicy") if not each["spec"]]
    strict = {each["metadata"]["name"]: each["spec"] for each in of_kind(rendered("base"), "PeerAuthentication")}

    assert deny["metadata"]["namespace"] == "nexus"
    assert strict["default"] == {"mtls": {"mode": "STRICT"}}
    assert all(each["mtls"]["mode"] == "STRICT" for each in strict.values())


def test_a_packet_goes_only_where_a_call_may_go() -> None:
    networks = {each["metadata"]["name"]: each["spec"] for each in of_kind(rendered("base"), "NetworkPolicy")}
    assert networks["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}

    for callee in TOPOLOGY.services:
        [ingress] = networks[callee]["ingress"]
        callers = {each["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for each in ingress["from"]}
        assert callers == {caller for caller in TOPOLOGY.callers if callee in TOPOLOGY.callees_of(caller)}
        assert [each["port"] for each in ingress["ports"]] == [TOPOLOGY.services[callee].port]
    for caller in TOPOLOGY.callers:
        ways = [
            (peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"], port["port"])
            for way in networks[caller].get("egress", [])
            for peer in way["to"]
            for port in way["ports"]
        ]
        callees = [(callee, TOPOLOGY.services[callee].port) for callee in TOPOLOGY.callees_of(caller)]
        assert sorted(ways) == sorted(callees), caller
    assert networks.keys() == {*TOPOLOGY.callers, "deny-all", "infrastructure"}


def test_a_sidecar_knows_its_callees_alone() -> None:
    sidecars = {each["metadata"]["name"]: each["spec"] for each in of_kind(rendered("base"), "Sidecar")}

    assert sidecars.keys() == set(TOPOLOGY.callers)
    for caller, spec in sidecars.items():
        callees = [f"./{callee}.nexus.svc.cluster.local" for callee in TOPOLOGY.callees_of(caller)]
        assert spec["egress"] == [{"hosts": [*callees, "istio-system/*"]}]
        assert spec["outboundTrafficPolicy"] == {"mode": "REGISTRY_ONLY"}


def _allowed(objects: list[Object]) -> set[tuple[str, str, str]]:
    """What the written files allow."""
    return allowed(Resource(ObjectMeta(), msgspec.convert(each["spec"], AuthorizationPolicy)) for each in objects)


def allowed(policies: Iterable[Resource[AuthorizationPolicy]]) -> set[tuple[str, str, str]]:
    """What policies allow, as (caller, callee, path): the form in which the topology's rules are compared with them.
    Of an identity in another namespace the caller is the whole of it."""
    return set(_each_allowed(policies))


def _each_allowed(policies: Iterable[Resource[AuthorizationPolicy]]) -> Iterator[tuple[str, str, str]]:
    own = principal("")
    for policy in policies:
        callee = policy.spec.selector.match_labels["app.kubernetes.io/name"] if policy.spec.selector else ANYONE
        for rule in policy.spec.rules:
            callers = [name.removeprefix(own) for each in rule.from_ for name in each.source.principals]
            paths = [path for each in rule.to for path in each.operation.paths]
            yield from ((caller, callee, path) for caller in callers or [ANYBODY] for path in paths or ["*"])
