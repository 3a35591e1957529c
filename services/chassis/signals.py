"""Signals: what every process must hear within moments. Sessions that ended, tenants that changed.

One Redis subscription a process. Ended sessions are also kept in a sorted set until the last access token of
each has expired, so that a process that starts, or was cut off, learns what it missed before it trusts a token.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis.asyncio
import redis.exceptions

from services.chassis.tasks import cancel_all

_CHANNEL = "nexus:signals"
_ENDED_SESSIONS = "nexus:ended_sessions"
EVERY_TENANT = "*"
_RETRY_SECONDS = 0.25
_PING_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Signals:
    """Listens for signals, and sends them."""

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        self._redis = client
        self._ended: dict[str, float] = {}
        self._listening = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._on_session_ended: list[Callable[[str], None]] = []
        self._on_tenant_changed: list[Callable[[str], None]] = []

    async def start(self) -> None:
        self._task = asyncio.create_task(self._listen_for_ever(), name="signals")

    async def stop(self) -> None:
        if self._task is not None:
            await cancel_all([self._task], patience=0.1)

    @property
    def up_to_date(self) -> bool:
        """Whether an ended session would be known here. When not, no token can be trusted."""
        return self._listening.is_set()

    async def wait_up_to_date(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._listening.wait(), seconds)
        return self.up_to_date

    def session_ended(self, session_id: str) -> bool:
        return session_id in self._ended

    async def end_sessions(self, session_ids: Sequence[str], tokens_expire: float) -> None:
        """Tell every process that these sessions are over.

        `tokens_expire` is when their last access token does, in seconds since the epoch.
        """
        if not session_ids:
            return
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zadd(_ENDED_SESSIONS, dict.fromkeys(session_ids, tokens_expire))
            pipe.zremrangebyscore(_ENDED_SESSIONS, "-inf", time.time())
            for session_id in session_ids:
                pipe.publish(_CHANNEL, f"session {session_id} {tokens_expire}")
            await pipe.execute()

    def on_session_ended(self, callback: Callable[[str], None]) -> None:
        """Called with the session's id, or "*" when any may have ended while nobody listened."""
        self._on_session_ended.append(callback)

    def on_tenant_changed(self, callback: Callable[[str], None]) -> None:
        """Called with the tenant's id, or EVERY_TENANT when any may have changed."""
        self._on_tenant_changed.append(callback)

    async def tenant_changed(self, tenant_id: str) -> None:
        await self._redis.publish(_CHANNEL, f"tenant {tenant_id}")

    async def _listen_for_ever(self) -> None:
        while True:
            try:
                await self._listen()
            except (redis.exceptions.RedisError, OSError) as error:
                if self._listening.is_set():
                    logger.warning("signals lost, access tokens are refused until they are back: %s", error)
            finally:
                self._listening.clear()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self) -> None:
        async with self._redis.pubsub() as subscription:
            await subscription.subscribe(_CHANNEL)
            # Subscribed first, loaded second: nothing falls between the two.
            ended: Any = await self._redis.zrangebyscore(_ENDED_SESSIONS, time.time(), "+inf", withscores=True)
            self._ended = {session.decode(): expires for session, expires in ended}
            for callback in (*self._on_session_ended, *self._on_tenant_changed):
                callback("*")
            self._listening.set()
            while True:
                message = await subscription.get_message(ignore_subscribe_messages=True, timeout=_PING_SECONDS)
                if message is None:
                    await asyncio.wait_for(self._check(subscription), _PING_SECONDS)
                    self._forget_expired()
                else:
                    self._receive(message["data"].decode())

    async def _check(self, subscription: "redis.asyncio.client.PubSub") -> None:
        await subscription.ping()

    def _receive(self, signal: str) -> None:
        kind, _, rest = signal.partition(" ")
        if kind == "session":
            session_id, _, expires = rest.partition(" ")
            self._ended[session_id] = float(expires)
            for callback in self._on_session_ended:
                callback(session_id)
        elif kind == "tenant":
            for callback in self._on_tenant_changed:
                callback(rest)

    def _forget_expired(self) -> None:
        moment = time.time()
        self._ended = {session: expires for session, expires in self._ended.items() if expires > moment}
