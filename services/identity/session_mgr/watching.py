"""Who waits for a change of a user's sessions, in this process, and how the processes tell each other."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator

from redis.asyncio import Redis
from redis.exceptions import RedisError

_CHANNEL = "session-mgr:changed"

logger = logging.getLogger(__name__)


class Watchers:
    """One Redis subscription a process, for all of its watchers.

    A lost message is no loss: a watcher looks at the rows again after a while anyway.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._listener: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def watch(self, tenant_id: str, user_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the user's sessions may have changed."""
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen(), name="session watchers")
        key, changed = f"{tenant_id} {user_id}", asyncio.Event()
        self._waiting[key].add(changed)
        try:
            yield changed
        finally:
            self._waiting[key].discard(changed)
            if not self._waiting[key]:
                del self._waiting[key]
            if not self._waiting and self._listener is not None:
                self._listener.cancel()
                self._listener = None

    def changed(self, tenant_id: str, user_id: str) -> None:
        """Tell every process. For `database.after_commit`."""
        task = asyncio.create_task(self._tell(f"{tenant_id} {user_id}"))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, key: str) -> None:
        try:
            await self._redis.publish(_CHANNEL, key)
        except (RedisError, OSError) as error:
            logger.warning("watchers of sessions learn of a change late: %s", error)

    async def _listen(self) -> None:
        try:
            async with self._redis.pubsub() as subscription:
                await subscription.subscribe(_CHANNEL)
                async for message in subscription.listen():
                    # A subscription that begins may have missed something.
                    keys = [message["data"].decode()] if message["type"] == "message" else list(self._waiting)
                    for key in keys:
                        for changed in self._waiting.get(key, ()):
                            changed.set()
        except (RedisError, OSError) as error:
            logger.warning("watchers of sessions have to poll: %s", error)
