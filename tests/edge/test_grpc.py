"""gRPC and gRPC-Web through the edge, and what is meant for services alone: closed to everybody outside."""

import base64
import struct
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from nexus.identity.auth_service.v1.auth_service_pb2 import GetMeRequest, GetMeResponse, LoginRequest
from nexus.identity.auth_service.v1.auth_service_pb2_grpc import AuthServiceStub
from nexus.platform.backend_api.v1.backend_api_pb2 import ListRoutesRequest
from nexus.platform.backend_api.v1.backend_api_pb2_grpc import PlatformServiceStub
from services.chassis import contract
from services.chassis.errors import STATUS_DETAILS
from services.chassis.spec import discover
from tests.edge.wire import details, reason
from tests.platforms import PASSWORD, Platform, SignedIn, Tenant

SERVICE_ONLY = [method for method in contract.methods().values() if method.access == "service_only"]
OPERATOR = {"x-forwarded-client-cert": "URI=spiffe://nexus.local/ns/nexus/sa/operator"}
EDGE = {"x-forwarded-client-cert": "By=x;URI=spiffe://nexus.local/ns/nexus/sa/edge"}


@pytest.fixture(params=["http", "https"])
async def channel(request: pytest.FixtureRequest, platform: Platform) -> AsyncIterator[grpc.aio.Channel]:
    """The edge, plain and with TLS."""
    if request.param == "http":
        opened = grpc.aio.insecure_channel(f"127.0.0.1:{platform.settings.port(8080)}")
    else:
        root = (platform.home / "secrets" / "edge" / "tls.crt").read_bytes()
        credentials = grpc.ssl_channel_credentials(root)
        opened = grpc.aio.secure_channel(f"localhost:{platform.settings.port(8443)}", credentials)
    async with opened:
        yield opened


@pytest.fixture(scope="module")
async def owner(platform: Platform) -> SignedIn:
    """May do everything in a tenant of its own."""
    return await (await platform.new_tenant()).sign_in("owner")


def metadata(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(headers.items())


async def refusal(
    channel: grpc.aio.Channel, path: str, request: bytes = b"", headers: Mapping[str, str] | None = None
) -> grpc.aio.AioRpcError:
    """What a call is refused with."""
    call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(request, metadata=metadata(headers or {}), timeout=10)
    return refused.value


async def test_a_user_signs_in_and_calls_by_grpc(channel: grpc.aio.Channel, tenant: Tenant) -> None:
    stub = AuthServiceStub(channel)
    email = await tenant.provision()
    login = await stub.Login(
        LoginRequest(email=email, password=PASSWORD), metadata=metadata(tenant.headers), timeout=10
    )
    bearer = {"authorization": f"Bearer {login.tokens.access_token}"}
    me = await stub.GetMe(GetMeRequest(), metadata=metadata(bearer), timeout=10)
    assert (me.user.email, me.tenant_id) == (email, tenant.tenant_id)


async def test_a_service_refuses_with_details(channel: grpc.aio.Channel, tenant: Tenant) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await AuthServiceStub(channel).Login(LoginRequest(), metadata=metadata(tenant.headers), timeout=10)
    status, why = details(refused.value)
    assert (refused.value.code(), why) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    violations = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(violations)
    assert {violation.field for violation in violations.field_violations} == {"email", "password"}


async def test_the_edge_refuses_with_details_too(channel: grpc.aio.Channel) -> None:
    bearer = {"authorization": "Bearer x.y.z"}
    bad_token = await refusal(channel, "/nexus.identity.auth_service.v1.AuthService/GetMe", headers=bearer)
    assert bad_token.code() is grpc.StatusCode.UNAUTHENTICATED
    assert details(bad_token)[1] == "TOKEN_INVALID"
    for path in ("/nexus.made.up.v1.Service/Method", "/nexus.identity.auth_service.v1.AuthService/Made"):
        unknown = await refusal(channel, path)
        assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED
        assert details(unknown)[1] == "ROUTE_UNKNOWN"
    not_grpc = await refusal(channel, "/api/v1/auth/login")
    assert not_grpc.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_bytes_that_are_no_message_are_the_callers_mistake(channel: grpc.aio.Channel) -> None:
    path = "/nexus.identity.auth_service.v1.AuthService/Login"
    for request in (b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe"):
        refused = await refusal(channel, path, request)
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT, refused.details()
        assert details(refused)[1] == "MALFORMED_REQUEST"


async def test_a_message_that_is_too_large_is_refused(channel: grpc.aio.Channel) -> None:
    refused = await refusal(channel, "/nexus.identity.auth_service.v1.AuthService/Login", b"\x0a" + bytes(6_000_000))
    assert refused.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)


async def test_an_unknown_field_of_a_newer_client_is_passed_over(channel: grpc.aio.Channel) -> None:
    newer = ListRoutesRequest(page_size=1).SerializeToString() + b"\xf2\x3f\x03new"  # field 1022
    call: Any = channel.unary_unary("/nexus.platform.backend_api.v1.PlatformService/ListRoutes")
    assert await call(newer, timeout=10)


@pytest.mark.parametrize("method", SERVICE_ONLY, ids=lambda method: method.full_name)
async def test_what_is_for_services_is_unknown_to_the_edge(
    platform: Platform, http: httpx.AsyncClient, owner: SignedIn, method: contract.Method
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{platform.settings.port(8080)}") as channel:
        for forged in ({}, OPERATOR, EDGE):
            headers = {**owner.headers, **forged}
            refused = await refusal(channel, method.path, headers=headers)
            assert refused.code() is grpc.StatusCode.UNIMPLEMENTED
            for path in (method.path, f"/api/v1{method.path}"):
                assert reason(await http.post(path, headers=headers, json={}), 404) == "ROUTE_UNKNOWN"


@pytest.mark.parametrize("method", SERVICE_ONLY, ids=lambda method: method.full_name)
async def test_what_is_for_services_is_closed_on_their_own_ports(
    platform: Platform, tenant: Tenant, method: contract.Method
) -> None:
    port = platform.settings.port(discover()[method.service_id].port)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for forged in ({}, OPERATOR, EDGE):
            headers = {**tenant.headers, **forged}
            refused = await refusal(channel, method.path, headers=headers)
            assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
            assert details(refused)[1] == "CALLER_NOT_ALLOWED"


async def test_the_edge_says_itself_who_it_is(platform: Platform, tenant: Tenant, http: httpx.AsyncClient) -> None:
    """A caller cannot speak to a public method in the name of a service, nor choose its own address."""
    email = await tenant.provision()
    forged = {**tenant.headers, **OPERATOR, "x-forwarded-for": "203.0.113.7", "x-envoy-external-address": "203.0.113.8"}
    answer = await http.post("/api/v1/auth/login", headers=forged, json={"email": email, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    assert not answer.json()["session"]["ipAddress"].startswith("203.0.113.")


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """The frames of a gRPC-Web body: a flag, which is 0x80 for trailers, and the content."""
    found = []
    while data:
        flag, length = struct.unpack(">BI", data[:5])
        found.append((flag, data[5 : 5 + length]))
        data = data[5 + length :]
    return found


def framed(message: Message) -> bytes:
    content = message.SerializeToString()
    return struct.pack(">BI", 0, len(content)) + content


def trailers(frame: bytes) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition(":") for line in frame.decode().strip().split("\r\n"))}


@pytest.mark.parametrize("kind", ["application/grpc-web+proto", "application/grpc-web-text"])
async def test_a_page_calls_by_grpc_web(tenant: Tenant, http: httpx.AsyncClient, kind: str) -> None:
    user = await tenant.sign_in()
    body = framed(GetMeRequest())
    text = kind.endswith("text")
    answer = await http.post(
        "/nexus.identity.auth_service.v1.AuthService/GetMe",
        headers={**user.headers, "content-type": kind, "accept": kind, "x-grpc-web": "1"},
        content=base64.b64encode(body) if text else body,
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(kind)
    data = b"".join(map(base64.b64decode, chunks(answer.content))) if text else answer.content
    (flag, message), (last_flag, last) = frames(data)
    assert (flag, last_flag) == (0, 0x80)
    assert GetMeResponse.FromString(message).user.email == user.email
    assert trailers(last)["grpc-status"] == "0"


def chunks(text: bytes) -> list[bytes]:
    """The pieces of a text body, each of them base64 with its own padding."""
    pieces, start = [], 0
    for end in range(4, len(text) + 1, 4):
        if text[end - 1 : end] == b"=" or end == len(text):
            pieces.append(text[start:end])
            start = end
    return pieces


async def test_grpc_web_tells_why_it_refuses(tenant: Tenant, http: httpx.AsyncClient) -> None:
    async def call(message: Message, **headers: str) -> tuple[str, str]:
        answer = await http.post(
            f"/nexus.identity.auth_service.v1.AuthService/{message.DESCRIPTOR.name.removesuffix('Request')}",
            headers={**tenant.headers, "content-type": "application/grpc-web+proto", "x-grpc-web": "1", **headers},
            content=framed(message),
        )
        assert answer.status_code in (200, 401), answer.text  # the edge's own refusals keep their HTTP status
        told = dict(answer.headers)
        for flag, content in frames(answer.content):
            assert flag == 0x80
            told |= trailers(content)
        return told["grpc-status"], told[STATUS_DETAILS]

    assert (await call(LoginRequest()))[0] == "3"
    assert (await call(GetMeRequest()))[0] == "16"
    assert (await call(GetMeRequest(), authorization="Bearer x.y.z"))[0] == "16"


async def test_platform_services_answer_on_every_port(channel: grpc.aio.Channel) -> None:
    routes = await PlatformServiceStub(channel).ListRoutes(ListRoutesRequest(page_size=1000), timeout=10)
    assert {route.grpc_method for route in routes.routes} == {
        method.full_name for method in contract.methods().values() if method.external
    }
