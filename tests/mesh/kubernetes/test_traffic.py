"""How calls travel in a cluster is what the contracts say."""

import pytest

from edge.layout import TIMEOUT_MARGIN
from mesh.kubernetes.overlays import OVERLAYS, Overlay
from mesh.topology import topology
from services.chassis.config import Settings
from services.chassis.contract import Method
from services.chassis.peers import VERSION_HEADER
from tests.mesh.kubernetes.clusters import Object, built, of_kind, rendered

TOPOLOGY = topology()
METHODS = [method for methods in TOPOLOGY.methods.values() for method in methods]
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
