"""Streams that are open: each ends soon after the session, the API key or the tenant for which it was opened."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from nexus.type.v1.faults import TokenInvalid
from services.chassis.context import RequestContext
from services.chassis.errors import Fault
from services.chassis.signals import Signals
from services.chassis.tenants import TenantDirectory

GOODBYE_SECONDS = 1.0
"""How long a handler that has noticed the end itself may take to say so in its own words."""
ALL = "*"


class _Stream:
    """One stream, served by the running task."""

    def __init__(self, session_id: str | None) -> None:
        self.session_id = session_id
        self.fault: Fault | None = None
        """Why it was cut."""
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer: asyncio.TimerHandle | None = None

    def end(self, fault: Fault) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GOODBYE_SECONDS, self._cut, fault)

    def _cut(self, fault: Fault) -> None:
        self.fault = fault
        self._task.cancel()

    def was_cut(self) -> bool:
        """Whether the cancellation that the task has met is ours, and nobody else's too."""
        return self.fault is not None and self._task.uncancel() == 0

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class OpenStreams:
    """The streams that one service serves in this process."""

    def __init__(self, signals: Signals, tenants: TenantDirectory) -> None:
        self._signals = signals
        self._tenants = tenants
        self._of_session: defaultdict[str, set[_Stream]] = defaultdict(set)
        self._of_tenant: defaultdict[str, set[_Stream]] = defaultdict(set)
        self._looking: set[asyncio.Task[None]] = set()
        signals.on_session_ended(self._session_ended)
        signals.on_tenant_changed(self._tenant_changed)

    async def serve(self, handler: Callable[[Any, Any], Awaitable[Any]], request: Any, call: RequestContext) -> Any:
        """Serve a stream until it ends, or may not go on. Raises TokenInvalid, TenantSuspended or TenantUnknown."""
        stream = _Stream(call.signed_in.session_id if call.signed_in is not None else None)
        with (
            self._listed(self._of_session, stream.session_id, stream),
            self._listed(self._of_tenant, call.tenant, stream),
        ):
            if stream.session_id is not None:
                self._session_ended(stream.session_id)  # it may have, since the token was verified
            try:
                return await handler(request, call)
            except asyncio.CancelledError:
                if stream.was_cut():
                    assert stream.fault is not None, "what was cut has a reason"
                    raise stream.fault from None
                raise
            finally:
                stream.close()

    @contextlib.contextmanager
    def _listed(self, streams: defaultdict[str, set[_Stream]], key: str | None, stream: _Stream) -> Iterator[None]:
        if key is None:
            yield
            return
        streams[key].add(stream)
        try:
            yield
        finally:
            streams[key].discard(stream)
            if not streams[key]:
                del streams[key]

    def _session_ended(self, session_id: str) -> None:
        for each in list(self._of_session) if session_id == ALL else [session_id]:
            if self._signals.session_ended(each):
                for stream in self._of_session.get(each, ()):
                    stream.end(TokenInvalid(why="its session has ended"))

    def _tenant_changed(self, tenant_id: str) -> None:
        for each in list(self._of_tenant) if tenant_id == ALL else [tenant_id]:
            if each in self._of_tenant:
                task = asyncio.get_running_loop().create_task(self._look_at(each))
                self._looking.add(task)
                task.add_done_callback(self._looking.discard)

    async def _look_at(self, tenant_id: str) -> None:
        try:
            await self._tenants.require_active(tenant_id)
        except Fault as fault:
            for stream in self._of_tenant.get(tenant_id, ()):
                stream.end(fault)
