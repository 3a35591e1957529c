"""A stream ends soon after the session or the tenant that it was opened for, and no other does."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
import redis.asyncio
from redis.asyncio import Redis

from nexus.identity.session_mgr.v1.session_mgr_pb2 import WatchMySessionsRequest
from nexus.identity.session_mgr.v1.session_mgr_pb2_grpc import SessionServiceStub
from nexus.type.v1.faults import TenantSuspended, TokenInvalid
from services.chassis import streams
from services.chassis.context import RequestContext
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.signals import Signals
from services.chassis.spec import discover
from services.chassis.streams import OpenStreams
from services.chassis.tenants import TenantDirectory
from tests.chassis.calls import call_of, user_of
from tests.identity.people import change
from tests.platforms import Platform, Tenant

WATCH = "/nexus.identity.session_mgr.v1.SessionService/WatchMySessions"


@dataclass
class Stand:
    platform: Platform
    broker: Redis
    listening: Signals
    streams: OpenStreams

    def call(self, tenant: Tenant) -> RequestContext:
        """A user's call of a stream, in a session of its own."""
        user = replace(user_of(tenant.tenant_id), session_id=new_id())
        return call_of(WATCH, tenant.tenant_id, signed_in=user)

    async def open(self, call: RequestContext) -> "asyncio.Task[Any]":
        """A stream that has nothing to say and no end of its own."""
        begun = asyncio.Event()

        async def handler(_request: Any, _call: Any) -> None:
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(self.streams.serve(handler, None, call))
        await begun.wait()
        return task

    async def end(self, call: RequestContext) -> None:
        """End the call's session, as another process does."""
        await Signals(self.broker).end_sessions([call.user.session_id], time.time() + 60)

    async def suspend(self, tenant: Tenant) -> None:
        await change(
            self.platform, "UPDATE nexus.tenants SET state = 'suspended' WHERE tenant_id = $1", tenant.tenant_id
        )
        await Signals(self.broker).tenant_changed(tenant.tenant_id)


@pytest.fixture
async def stand(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    monkeypatch.setattr(streams, "GOODBYE_SECONDS", 0.1)
    async with AsyncExitStack() as stack:
        database = Database(platform.settings, discover()["session-mgr"])
        await database.start()
        stack.push_async_callback(database.stop)
        assert platform.settings.redis_url is not None
        broker = redis.asyncio.Redis.from_url(platform.settings.redis_url.get_secret_value())
        stack.push_async_callback(broker.aclose)
        signals = Signals(broker)
        await signals.start()
        stack.push_async_callback(signals.stop)
        assert await signals.wait_up_to_date(5)
        yield Stand(platform, broker, signals, OpenStreams(signals, TenantDirectory(database, signals)))


async def test_a_stream_ends_with_its_session_and_others_go_on(stand: Stand, tenant: Tenant) -> None:
    mine, another = stand.call(tenant), stand.call(tenant)
    streaming, going_on = await stand.open(mine), await stand.open(another)
    await stand.end(mine)
    with pytest.raises(TokenInvalid):
        await asyncio.wait_for(streaming, 1)
    assert not going_on.done()
    going_on.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going_on


async def test_a_stream_of_a_session_that_ended_before_it_began_ends_too(stand: Stand, tenant: Tenant) -> None:
    call = stand.call(tenant)
    await stand.end(call)
    async with asyncio.timeout(20):
        while not stand.listening.session_ended(call.user.session_id):  # noqa: ASYNC110  the signal says nothing to us
            await asyncio.sleep(0.01)
    with pytest.raises(TokenInvalid):
        await asyncio.wait_for(await stand.open(call), 1)


async def test_a_stream_learns_after_a_cut_what_it_missed(stand: Stand, tenant: Tenant) -> None:
    call = stand.call(tenant)
    streaming = await stand.open(call)
    await stand.listening.stop()
    await stand.end(call)
    await stand.listening.start()
    with pytest.raises(TokenInvalid):
        await asyncio.wait_for(streaming, 2)


async def test_the_streams_of_a_suspended_tenant_end_and_no_others(
    stand: Stand, tenant: Tenant, other_tenant: Tenant
) -> None:
    streaming, going_on = await stand.open(stand.call(tenant)), await stand.open(stand.call(other_tenant))
    await Signals(stand.broker).tenant_changed(tenant.tenant_id)  # something else of it has
    await stand.suspend(tenant)
    with pytest.raises(TenantSuspended):
        await asyncio.wait_for(streaming, 1)
    assert not going_on.done()
    going_on.cancel()


async def test_a_stream_that_says_goodbye_itself_is_not_cut(stand: Stand, tenant: Tenant) -> None:
    call, ended = stand.call(tenant), asyncio.Event()

    async def handler(_request: Any, _call: Any) -> str:
        await ended.wait()
        return "goodbye"

    streaming = asyncio.create_task(stand.streams.serve(handler, None, call))
    await asyncio.sleep(0)
    await stand.end(call)
    ended.set()
    assert await streaming == "goodbye"


async def test_a_stream_cancelled_by_its_caller_stays_cancelled(stand: Stand, tenant: Tenant) -> None:
    call = stand.call(tenant)
    streaming = await stand.open(call)
    await stand.end(call)
    streaming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await streaming


async def test_a_watcher_at_the_edge_is_told_that_the_tenant_is_suspended(
    platform: Platform, stand: Stand, tenant: Tenant
) -> None:
    ann = await tenant.sign_in()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{platform.settings.port(8080)}") as channel:
        watching: Any = SessionServiceStub(channel).WatchMySessions(
            WatchMySessionsRequest(), metadata=tuple(ann.headers.items()), timeout=20
        )
        assert len((await watching.read()).sessions) == 1
        await stand.suspend(tenant)
        started = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watching.read()
    assert "suspended" in (ended.value.details() or "")
    assert ended.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert time.monotonic() - started < 3
