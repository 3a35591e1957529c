"""How calls travel in a cluster is what the contracts say."""

import pytest

from edge import routes
from edge.layout import TIMEOUT_MARGIN, Layout
from mesh.kubernetes.cluster import SETTINGS
from mesh.kubernetes.overlays import OVERLAYS, Overlay
from mesh.topology import topology
from services.chassis.config import Settings
from services.chassis.contract import Method
from services.chassis.peers import VERSION_HEADER
from tests.mesh.kubernetes.clusters import Object, built, of_kind, rendered

TOPOLOGY = topology()
METHODS = [method for methods in TOPOLOGY.methods.values() for method in methods]
METHODS_BY_NAME = {method.full_name: method for method in METHODS}
SAFE_FOR_ALL = {"connect-failure", "refused-stream"}
"""The call was not delivered, so sending it again is not a repeat."""


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_a_method_has_its_contracts_time_and_repeats(method: Method) -> None:
    route = _route(rendered("base"), method)
    limit = method.timeout(Settings().default_timeout)
    again = set(route["retries"]["retryOn"].split(",")) - SAFE_FOR_ALL

    assert route.get("timeout") == (None if limit is None else f"{limit + TIMEOUT_MARGIN:g}s")
    assert bool(again) == (method.retryable and not method.streams)


def test_every_service_limits_and_ejects_instances_that_fail() -> None:
    rules = {each["metadata"]["name"]: each["spec"] for each in of_kind(rendered("base"), "DestinationRule")}

    assert rules.keys() == {*TOPOLOGY.services, "edge"}
    for rule in rules.values():
        policy = rule["trafficPolicy"]
        assert policy["tls"] == {"mode": "ISTIO_MUTUAL"}
        assert policy["loadBalancer"] == {"simple": "LEAST_REQUEST"}
        assert policy["outlierDetection"]["consecutive5xxErrors"] == 5
        assert policy["outlierDetection"]["consecutiveGatewayErrors"] == 5
        assert policy["outlierDetection"]["baseEjectionTime"] == "30s"
        assert policy["connectionPool"]["http"]["http1MaxPendingRequests"] > 0


@pytest.mark.parametrize("overlay", [overlay for overlay in OVERLAYS if overlay.canaries], ids=lambda each: each.name)
def test_a_canary_is_called_by_header_and_by_share(overlay: Overlay) -> None:
    objects = built(overlay.name)
    for service, canary in overlay.canaries.items():
        for method in TOPOLOGY.methods[service]:
            chosen, shared = _routes(objects, method)
            assert [each["destination"]["subset"] for each in chosen["route"]] == ["canary"]
            weights = {each["destination"]["subset"]: each.get("weight", 0) for each in shared["route"]}
            assert weights == {"stable": 100 - canary.percent, "canary": canary.percent}
            assert chosen.get("timeout") == shared.get("timeout")
            assert chosen["retries"] == shared["retries"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda each: each.name)
def test_a_sidecar_judges_tokens_but_where_others_may_be_meant(overlay: Overlay) -> None:
    """Istio takes no token or a good one. To these services the edge passes on what a public method was called with:
    an OpenID client's opaque token, or one that ran out long ago."""
    settings = overlay.all_settings(SETTINGS)
    passed_on = {
        METHODS_BY_NAME[route.name].service_id
        for of_method in routes.grpc_routes(settings, Layout()).values()
        for route in of_method
        if not METHODS_BY_NAME[route.name].needs_user and "authorization" not in route.request_headers_to_remove
    }
    judged = {
        each["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]: each["spec"]["jwtRules"]
        for each in of_kind(built(overlay.name), "RequestAuthentication")
    }

    assert "auth-service-v2" in passed_on
    assert judged.keys() == TOPOLOGY.services.keys() - passed_on
    assert len(judged) > len(TOPOLOGY.services) / 2
    for rules in judged.values():
        assert rules == [
            {
                "issuer": f"https://{overlay.host}",
                "audiences": ["nexus"],
                "jwksUri": "http://edge.nexus.svc.cluster.local:8080/.well-known/jwks.json",
                "forwardOriginalToken": True,
            }
        ]


def _route(objects: list[Object], method: Method) -> Object:
    """Where a call of the method goes."""
    return _routes(objects, method)[-1]


def _routes(objects: list[Object], method: Method) -> list[Object]:
    """The routes of the method: for calls with the canary's header first, then for all."""
    [service] = [
        each["spec"] for each in of_kind(objects, "VirtualService") if each["metadata"]["name"] == method.service_id
    ]
    naming = [
        (route, "headers" in match)
        for route in service["http"]
        for match in route["match"]
        if match["uri"] == {"exact": method.path}
    ]
    assert [by_header for _, by_header in naming] in ([False], [True, False])
    for route, by_header in naming:
        headers = [match.get("headers") for match in route["match"]]
        assert headers == [{VERSION_HEADER: {"exact": "canary"}} if by_header else None] * len(headers)
    return [route for route, _ in naming]
