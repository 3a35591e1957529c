"""Limits by user and by address, on a platform where they are low."""

from collections.abc import AsyncIterator, Iterator

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2

from nexus.identity.auth_service.v1.auth_service_pb2 import GetMeRequest, LoginRequest
from nexus.identity.auth_service.v1.auth_service_pb2_grpc import AuthServiceStub
from services.chassis.spec import discover
from tests.edge.wire import details, reason
from tests.platforms import Platform, SignedIn

CREDENTIALS = 40
READS = 20
WRONG = {"email": "ann@example.com", "password": "a wrong password"}

pytestmark = pytest.mark.xdist_group("rate limits")


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with low limits. An hour's window, so that nothing comes back while a test runs."""
    variables = {"NEXUS_RATE_CREDENTIALS": f"{CREDENTIALS}/hour", "NEXUS_RATE_READ": f"{READS}/hour"}
    platform = Platform(tmp_path_factory.mktemp("limited") / "home", variables=variables)
    platform.up("--only", "identity")
    yield platform
    platform.down()


@pytest.fixture(scope="module")
async def users(limited: Platform) -> list[SignedIn]:
    """Three users, signed in before the limit on sign-ins is used up."""
    tenant = await limited.new_tenant()
    return [await tenant.sign_in() for _ in range(3)]


@pytest.fixture
async def edge(limited: Platform) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=limited.http_url, timeout=15) as client:
        yield client


async def until_limited(edge: httpx.AsyncClient, method: str, path: str, at_most: int, **request: object) -> int:
    """Call until the answer is 429; returns how many calls came before it."""
    for made in range(at_most + 1):
        answer = await edge.request(method, path, **request)  # type: ignore[arg-type]
        if answer.status_code == 429:
            return made
    pytest.fail(f"{at_most} calls and no limit")


async def test_a_user_has_a_limit_that_others_do_not_feel(edge: httpx.AsyncClient, users: list[SignedIn]) -> None:
    hasty, calm, _ = users
    first = await edge.get("/api/v1/auth/me", headers=hasty.headers)
    assert first.headers["x-ratelimit-limit"].startswith(str(READS))
    assert int(first.headers["x-ratelimit-remaining"]) == READS - 1

    assert await until_limited(edge, "GET", "/api/v1/auth/me", READS, headers=hasty.headers) == READS - 1
    refused = await edge.get("/api/v1/auth/me", headers=hasty.headers)
    assert reason(refused, 429) == "RATE_LIMITED"
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert int(refused.headers["retry-after"]) >= 1
    assert (await edge.get("/api/v1/auth/me", headers=calm.headers)).status_code == 200


async def test_a_limit_is_over_all_methods_of_a_class_and_no_others(
    edge: httpx.AsyncClient, users: list[SignedIn]
) -> None:
    headers = users[0].headers
    await until_limited(edge, "GET", "/api/v1/auth/me", READS, headers=headers)
    assert (await edge.get("/api/v1/sessions", headers=headers)).status_code == 429
    assert (await edge.delete("/api/v1/sessions/x", headers=headers)).status_code == 400


async def test_grpc_calls_count_and_are_told_when_to_come_back(limited: Platform, users: list[SignedIn]) -> None:
    metadata = tuple(users[2].headers.items())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{limited.settings.port(8080)}") as channel:
        stub = AuthServiceStub(channel)
        for _ in range(READS):
            await stub.GetMe(GetMeRequest(), metadata=metadata, timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetMe(GetMeRequest(), metadata=metadata, timeout=10)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status, why = details(refused.value)
    assert why == "RATE_LIMITED"
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.seconds >= 1


async def test_guessing_is_limited_by_address_whatever_a_header_claims(
    limited: Platform, edge: httpx.AsyncClient, users: list[SignedIn]
) -> None:
    """Also for another tenant and by gRPC: the address is the same."""
    tenant = await limited.new_tenant()
    before = await until_limited(edge, "POST", "/api/v1/auth/login", CREDENTIALS, headers=tenant.headers, json=WRONG)
    assert before <= CREDENTIALS - len(users)
    other = await limited.new_tenant()
    for forged in ({}, {"x-forwarded-for": "203.0.113.9"}, {"x-envoy-external-address": "203.0.113.9"}):
        refused = await edge.post("/api/v1/auth/login", headers={**other.headers, **forged}, json=WRONG)
        assert reason(refused, 429) == "RATE_LIMITED"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{limited.settings.port(8080)}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused_by_grpc:
            await AuthServiceStub(channel).Login(
                LoginRequest(**WRONG), metadata=tuple(other.headers.items()), timeout=10
            )
    assert refused_by_grpc.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_behind_the_edge_guesses_are_counted_too(limited: Platform) -> None:
    """Each service counts for itself, exactly, so that more edges or another port allow no more guesses."""
    tenant = await limited.new_tenant()
    port = limited.settings.port(discover()["auth-service"].port)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for guess in range(CREDENTIALS + 1):  # each at somebody else, whom it does not lock out
            wrong = LoginRequest(email=f"{guess}@example.com", password=WRONG["password"])
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await AuthServiceStub(channel).Login(wrong, metadata=tuple(tenant.headers.items()), timeout=10)
            if refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                break
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert details(refused.value)[1] == "RATE_LIMITED"
    assert int(dict(refused.value.trailing_metadata() or ())["retry-after"]) >= 1
