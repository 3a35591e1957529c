"""SessionService: proto to rules and back."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import asyncpg

from nexus.identity.session_mgr.v1 import session_mgr_pb2 as pb
from nexus.identity.session_mgr.v1.faults import SessionNotFound
from nexus.identity.token_mgr.v1.token_mgr_pb2 import RevokeFamiliesRequest, RevokeUserGrantsRequest
from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
from services.chassis.clock import moment, now, timestamp
from services.chassis.context import RequestContext
from services.chassis.fields import FieldCipher, seal_rows
from services.chassis.ids import hash_secret, new_id, new_secret
from services.chassis.service import Service
from services.chassis.tenant_settings import TenantSettings
from services.identity.session_mgr.cache import SessionCache
from services.identity.session_mgr.devices import UNKNOWN, Device, Devices
from services.identity.session_mgr.spec import Config
from services.identity.session_mgr.store import UNSEALED, SessionStore
from services.identity.session_mgr.watching import Watchers

_FORGET_ENDED_SECONDS = 3600.0
_SEAL_SECONDS = 5.0
_REMEMBER_LONGER_SECONDS = 60.0
"""Clocks differ, and the last token of a session may be issued while it ends."""
_LOOK_AGAIN_SECONDS = 5.0
"""How late a watcher learns of a session that timed out, or of a change that nobody told it of."""


class SessionService:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._database = service.database
        self._signals = service.signals
        self._access_token_seconds = service.settings.access_token_seconds
        self._store = SessionStore(service.database)
        self._cache = SessionCache(service.redis)
        self._settings = TenantSettings(service.clients, service.signals)
        self._watchers = Watchers(service.redis)
        self._tokens = service.clients.stub(TokenServiceStub)
        self._devices = Devices(FieldCipher(service.clients))
        service.every(_SEAL_SECONDS, self._seal_devices)
        service.every(_FORGET_ENDED_SECONDS, self._store.forget_ended)

    async def CreateSession(self, request: pb.CreateSessionRequest, call: RequestContext) -> pb.CreateSessionResponse:
        token = new_secret()
        device = Device(request.user_agent, request.ip_address)
        sealed, idle = await asyncio.gather(self._devices.seal_if_possible(request.user_id, device), self._idle())
        async with self._database.transaction():
            await self._store.lock_user(request.user_id)
            live = await self._store.live_of(request.user_id, idle)
            surplus = live[self._config.max_sessions_per_user - 1 :]
            await self._end(call, request.user_id, [session["session_id"] for session in surplus])
            session = await self._store.insert(
                new_id(),
                hash_secret(token),
                request.user_id,
                sealed,
                now() + self._config.absolute_timeout,
                request.assurance or "aal1",
                list(request.methods) or ["pwd"],
            )
            self._announce(call, request.user_id)
        return pb.CreateSessionResponse(session=_session(session, device), session_token=token)

    async def GetSession(self, request: pb.GetSessionRequest, call: RequestContext) -> pb.GetSessionResponse:
        token_hash = hash_secret(request.session_token)
        session = await self._cache.get(call.tenant_id, token_hash)
        if session is None:
            row = await self._store.touch(await self._idle(), token_hash=token_hash)
            if row is None:
                raise SessionNotFound(session_id="for this token")
            session = _session(row)
            await self._cache.put(call.tenant_id, token_hash, session)
        # The copy says neither that it was ended nor that its time is over.
        if self._signals.session_ended(session.session_id) or moment(session.expire_time) <= now():
            raise SessionNotFound(session_id=session.session_id)
        return pb.GetSessionResponse(session=session)

    async def TouchSession(self, request: pb.TouchSessionRequest, call: RequestContext) -> pb.TouchSessionResponse:
        row = await self._store.touch(await self._idle(), session_id=request.session_id)
        if row is None:
            raise SessionNotFound(session_id=request.session_id)
        return pb.TouchSessionResponse(session=_session(row))

    async def ListMySessions(
        self, request: pb.ListMySessionsRequest, call: RequestContext
    ) -> pb.ListMySessionsResponse:
        rows = await self._store.live_of(call.user.user_id, await self._idle())
        return pb.ListMySessionsResponse(sessions=await self._shown(rows, call.user.session_id))

    async def RevokeSession(self, request: pb.RevokeSessionRequest, call: RequestContext) -> pb.RevokeSessionResponse:
        async with self._database.transaction():
            if not await self._end(call, call.user.user_id, [request.session_id]):
                raise SessionNotFound(session_id=request.session_id)
        return pb.RevokeSessionResponse()

    async def RevokeAllSessions(
        self, request: pb.RevokeAllSessionsRequest, call: RequestContext
    ) -> pb.RevokeAllSessionsResponse:
        return pb.RevokeAllSessionsResponse(ended_sessions=await self._end_all(call, call.user.user_id))

    async def SetAssurance(self, request: pb.SetAssuranceRequest, call: RequestContext) -> pb.SetAssuranceResponse:
        row = await self._store.assure(request.session_id, request.assurance, list(request.methods), await self._idle())
        if row is None:
            raise SessionNotFound(session_id=request.session_id)
        await self._cache.drop(call.tenant_id, [row["token_hash"]])
        (session,) = await self._shown([row])
        return pb.SetAssuranceResponse(session=session)

    async def WatchMySessions(
        self, request: pb.WatchMySessionsRequest, call: RequestContext
    ) -> AsyncIterator[pb.WatchMySessionsResponse]:
        told: set[str] | None = None
        with self._watchers.watch(call.tenant_id, call.user.user_id) as changed:
            while (left := call.user.token_expires - time.time()) > 0:
                changed.clear()
                rows = await self._store.live_of(call.user.user_id, await self._idle())
                live = {row["session_id"] for row in rows}
                if live != told:
                    told = live
                    yield pb.WatchMySessionsResponse(sessions=await self._shown(rows, call.user.session_id))
                if call.user.session_id not in live:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), min(_LOOK_AGAIN_SECONDS, left))

    async def ListUserSessions(
        self, request: pb.ListUserSessionsRequest, call: RequestContext
    ) -> pb.ListUserSessionsResponse:
        if request.include_ended:
            rows = await self._store.all_of(request.user_id)
        else:
            rows = await self._store.live_of(request.user_id, await self._idle())
        return pb.ListUserSessionsResponse(sessions=await self._shown(rows))

    async def EndUserSessions(
        self, request: pb.EndUserSessionsRequest, call: RequestContext
    ) -> pb.EndUserSessionsResponse:
        if not request.session_id:
            ended = await self._end_all(call, request.user_id)
            # After the sessions, for no grant comes of an ended one.
            await self._tokens.RevokeUserGrants(RevokeUserGrantsRequest(user_id=request.user_id))
            return pb.EndUserSessionsResponse(ended_sessions=ended)
        async with self._database.transaction():
            ended = await self._end(call, request.user_id, [request.session_id])
        return pb.EndUserSessionsResponse(ended_sessions=ended)

    async def _idle(self) -> timedelta:
        """How long a session may be unused. One whose access token still works is in use."""
        minutes = await self._settings.number("security.session_idle_minutes")
        return max(timedelta(minutes=minutes), timedelta(seconds=self._access_token_seconds))

    async def _shown(self, rows: Sequence[asyncpg.Record], current_id: str | None = None) -> list[pb.Session]:
        devices = await self._devices.of(rows)
        return [_session(row, device, current_id) for row, device in zip(rows, devices, strict=True)]

    async def _seal_devices(self) -> None:
        """Of sessions from before devices were sealed."""

        async def seal(row: asyncpg.Record) -> None:
            device = Device(row["user_agent"], row["ip_address"])
            await self._store.seal(row["session_id"], await self._devices.seal(row["user_id"], device))

        await seal_rows(self._database, UNSEALED, seal)

    async def _end_all(self, call: RequestContext, user_id: str) -> int:
        async with self._database.transaction():
            await self._store.lock_user(user_id)
            live = await self._store.live_of(user_id, await self._idle())
            return await self._end(call, user_id, [session["session_id"] for session in live])

    async def _end(self, call: RequestContext, user_id: str, session_ids: list[str]) -> int:
        """End sessions inside the running transaction: it commits only when every token of theirs is dead."""
        if not session_ids:
            return 0
        ended = await self._store.end(user_id, session_ids)
        if ended:
            ids = [session["session_id"] for session in ended]
            await self._tokens.RevokeFamilies(RevokeFamiliesRequest(session_ids=ids))
            await self._cache.drop(call.tenant_id, [session["token_hash"] for session in ended])
            await self._signals.end_sessions(ids, time.time() + self._access_token_seconds + _REMEMBER_LONGER_SECONDS)
            self._announce(call, user_id)
        return len(ended)

    def _announce(self, call: RequestContext, user_id: str) -> None:
        """Tell those who watch the user's sessions, once the running transaction has committed."""
        tenant_id = call.tenant_id
        self._database.after_commit(lambda: self._watchers.changed(tenant_id, user_id))


def _session(row: asyncpg.Record, device: Device = UNKNOWN, current_id: str | None = None) -> pb.Session:
    """Without a device for those who act for the user and need not know it: it would have to be unsealed."""
    return pb.Session(
        session_id=row["session_id"],
        user_id=row["user_id"],
        user_agent=device.user_agent,
        ip_address=device.ip_address,
        create_time=timestamp(row["create_time"]),
        last_used_time=timestamp(row["last_used_time"]),
        expire_time=timestamp(row["expire_time"]),
        current=row["session_id"] == current_id,
        assurance=row["assurance"],
        methods=row["methods"],
        auth_time=timestamp(row["auth_time"]),
        end_time=timestamp(row["end_time"]) if row["end_time"] else None,
    )
