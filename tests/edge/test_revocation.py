"""A session that is revoked is over for everything behind the edge within a second: calls by HTTP and gRPC to every
service, and streams that were open before. The edge keeps answers of public methods only, for which no token counts."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import grpc
import httpx

from nexus.identity.session_mgr.v1.session_mgr_pb2 import WatchMySessionsRequest
from nexus.identity.session_mgr.v1.session_mgr_pb2_grpc import SessionServiceStub
from services.chassis import contract
from services.chassis.spec import discover
from tests.edge.wire import details
from tests.platforms import Platform, SignedIn, Tenant

SECONDS = 1.0
ME = "/api/v1/auth/me"


@dataclass
class Way:
    """A way in, and whether it lets a token in."""

    name: str
    lets_in: Callable[[], Awaitable[bool]]


async def last_let_in(way: Way) -> float:
    """When the last call that was let in began."""
    last = time.monotonic()
    while True:
        began = time.monotonic()
        if not await way.lets_in():
            return last
        last = began


def one_method_of_each_service() -> Iterator[contract.Method]:
    """For users; one that only reads, where there is one."""
    for service in discover():
        methods = [each for each in contract.methods().values() if each.service_id == service and each.needs_user]
        yield from sorted(methods, key=lambda each: (each.streams, each.rate_class != "READ"))[:1]


def ways(http: httpx.AsyncClient, channel: grpc.aio.Channel, user: SignedIn) -> Iterator[Way]:
    async def by_http(path: str) -> bool:
        answer = await http.get(path, headers=user.headers)
        assert answer.status_code in (200, 401), answer.text
        return answer.status_code == 200

    async def by_grpc(path: str) -> bool:
        call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
        try:
            await call(b"", metadata=tuple(user.headers.items()), timeout=10)
        except grpc.aio.AioRpcError as refused:
            return details(refused)[1] != "TOKEN_INVALID"  # another reason: let in, and asked for more than nothing
        return True

    yield Way(ME, lambda: by_http(ME))
    for method in one_method_of_each_service():
        yield Way(method.path, lambda path=method.path: by_grpc(path))  # type: ignore[misc]


async def test_a_revoked_session_is_let_in_nowhere_a_second_later_and_its_streams_have_ended(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision("owner")
    user, elsewhere = await tenant.sign_in(email=email), await tenant.sign_in(email=email)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{platform.settings.port(8080)}") as channel:
        all_ways = list(ways(http, channel, user))
        assert [way.name for way in all_ways if not await way.lets_in()] == []

        stream = SessionServiceStub(channel).WatchMySessions(
            WatchMySessionsRequest(), metadata=tuple(user.headers.items())
        )
        await stream.read()
        async with http.stream("GET", "/api/v1/sessions:watch", headers=user.headers, timeout=30) as watched:
            lines = watched.aiter_lines()
            await anext(lines)

            async def ends_by_http() -> float:
                async for _ in lines:
                    pass
                return time.monotonic()

            async def ends_by_grpc() -> float:
                while await stream.read() is not grpc.aio.EOF:
                    pass
                return time.monotonic()

            streams = [asyncio.create_task(ends_by_http()), asyncio.create_task(ends_by_grpc())]
            revoked = await http.delete(f"/api/v1/sessions/{user.session_id}", headers=elsewhere.headers)
            assert revoked.status_code == 200, revoked.text
            moment = time.monotonic()
            ended = await asyncio.gather(*streams)
        late = {way.name: await last_let_in(way) - moment for way in all_ways}
    assert {name: seconds for name, seconds in late.items() if seconds > SECONDS} == {}
    assert max(ended) - moment < 3 * SECONDS, "streams have a second to say goodbye"
