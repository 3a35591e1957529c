"""A developer looks around with the usual tools: lists, describes and calls, at the edge and at each service."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.chassis import contract
from services.chassis.spec import discover
from tests.platforms import PASSWORD, Platform, Tenant
from tests.tools import tool

BUF = Path(sys.executable).with_name("buf")
LOGIN = "nexus.identity.auth_service.v1.AuthService/Login"
ME = "nexus.identity.auth_service.v1.AuthService/GetMe"
EXTERNAL_METHODS = {method.full_name for method in contract.methods().values() if method.external}
EXTERNAL_SERVICES = {name.partition("/")[0] for name in EXTERNAL_METHODS}


def run(*command: object) -> str:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}"
    return result.stdout


def buf_curl(address: str, *arguments: object, path: str = "") -> str:
    return run(BUF, "curl", "--protocol", "grpc", *arguments, f"{address}{path}")


def headers(values: dict[str, str]) -> list[str]:
    return [part for name, value in values.items() for part in ("-H", f"{name}: {value}")]


@pytest.fixture(params=["http", "https"])
def edge(request: pytest.FixtureRequest, platform: Platform) -> tuple[str, list[object]]:
    """The address of the edge and what buf must be told to call it."""
    if request.param == "http":
        return platform.http_url, ["--http2-prior-knowledge"]
    return platform.https_url, ["--cacert", platform.home / "secrets" / "edge" / "tls.crt"]


def test_buf_lists_every_outside_service_at_the_edge(edge: tuple[str, list[object]]) -> None:
    address, options = edge
    assert set(buf_curl(address, *options, "--list-services").split()) >= EXTERNAL_SERVICES
    assert set(buf_curl(address, *options, "--list-methods").split()) >= EXTERNAL_METHODS


async def test_buf_signs_in_and_calls_at_the_edge(edge: tuple[str, list[object]], tenant: Tenant) -> None:
    address, options = edge
    data = json.dumps({"email": await tenant.provision(), "password": PASSWORD})
    login = json.loads(buf_curl(address, *options, *headers(tenant.headers), "-d", data, path=f"/{LOGIN}"))
    bearer = {"authorization": f"Bearer {login['tokens']['accessToken']}"}
    me = json.loads(buf_curl(address, *options, *headers(bearer), path=f"/{ME}"))
    assert me["tenantId"] == tenant.tenant_id


@pytest.mark.parametrize("service", discover())
def test_buf_lists_a_service_at_its_own_port(platform: Platform, service: str) -> None:
    address = f"http://127.0.0.1:{platform.settings.port(discover()[service].port)}"
    listed = set(buf_curl(address, "--http2-prior-knowledge", "--list-methods").split())
    assert listed >= {method.full_name for method in contract.methods().values() if method.service_id == service}


async def test_buf_signs_in_at_the_services_own_port(platform: Platform, tenant: Tenant) -> None:
    address = f"http://127.0.0.1:{platform.settings.port(discover()['auth-service'].port)}"
    data = json.dumps({"email": await tenant.provision(), "password": PASSWORD})
    login = buf_curl(address, "--http2-prior-knowledge", *headers(tenant.headers), "-d", data, path=f"/{LOGIN}")
    assert json.loads(login)["session"]["userId"]


def test_buf_shows_why_a_call_is_refused(platform: Platform, tenant: Tenant) -> None:
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *headers(tenant.headers)]
    result = subprocess.run(
        [*command, "-d", '{"email": "ann@example.com", "password": "wrong"}', f"{platform.http_url}/{LOGIN}"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode != 0
    refusal = json.loads(result.stderr)
    assert refusal["code"] == "unauthenticated"
    value = refusal["details"][0]["value"]
    assert b"CREDENTIALS_INVALID" in base64.b64decode(value + "=" * (-len(value) % 4))


def test_grpcurl_lists_and_describes_at_the_edge(platform: Platform) -> None:
    grpcurl, address = tool("grpcurl"), f"127.0.0.1:{platform.settings.port(8080)}"
    assert set(run(grpcurl, "-plaintext", address, "list").split()) >= EXTERNAL_SERVICES
    described = run(grpcurl, "-plaintext", address, "describe", "nexus.identity.auth_service.v1.AuthService")
    assert "rpc Login ( .nexus.identity.auth_service.v1.LoginRequest )" in described
    fields = run(grpcurl, "-plaintext", address, "describe", "nexus.identity.auth_service.v1.LoginRequest")
    assert "string email = 1" in fields


@pytest.mark.parametrize("service", discover())
def test_grpcurl_lists_and_describes_a_service_at_its_own_port(platform: Platform, service: str) -> None:
    grpcurl, address = tool("grpcurl"), f"127.0.0.1:{platform.settings.port(discover()[service].port)}"
    methods = [method for method in contract.methods().values() if method.service_id == service]
    listed = run(grpcurl, "-plaintext", address, "list").split()
    for name in {method.full_name.partition("/")[0] for method in methods}:
        assert name in listed
        described = run(grpcurl, "-plaintext", address, "describe", name)
        assert all(f"rpc {method.name} " in described for method in methods if method.full_name.startswith(f"{name}/"))


async def test_grpcurl_signs_in_through_the_edge_with_tls(platform: Platform, tenant: Tenant) -> None:
    data = json.dumps({"email": await tenant.provision(), "password": PASSWORD})
    root = platform.home / "secrets" / "edge" / "tls.crt"
    address = f"localhost:{platform.settings.port(8443)}"
    login = run(tool("grpcurl"), "-cacert", root, *headers(tenant.headers), "-d", data, address, LOGIN)
    assert json.loads(login)["tokens"]["accessToken"]


@pytest.mark.parametrize("port", [8080, discover()["auth-service"].port])
def test_grpcurl_shows_why_a_call_is_refused(platform: Platform, tenant: Tenant, port: int) -> None:
    command = [str(tool("grpcurl")), "-plaintext", *headers(tenant.headers), "-d", '{"email": "ann@example.com"}']
    address = f"127.0.0.1:{platform.settings.port(port)}"
    result = subprocess.run([*command, address, LOGIN], capture_output=True, text=True, timeout=30)
    assert "Code: InvalidArgument" in result.stderr
    assert '"reason": "INVALID_REQUEST"' in result.stderr.replace('":"', '": "')
    assert "password" in result.stderr
