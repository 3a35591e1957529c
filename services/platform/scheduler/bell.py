"""The bell tells those who wait at a queue, in every replica, that a job has come.

It only spares them from looking often: who misses it looks again by himself.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator

import redis.asyncio
import redis.exceptions

LOOK_SECONDS = 2.0
_CHANNEL = "nexus:scheduler:bell"
_RETRY_SECONDS = 0.5

logger = logging.getLogger(__name__)


class Bell:
    def __init__(self, broker: "redis.asyncio.Redis") -> None:
        self._broker = broker
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._publishing: set[asyncio.Task[None]] = set()
        self.closed = False
        """The process is stopping: nobody may wait any more."""

    def ring(self, *topics: str) -> None:
        for topic in topics:
            self._wake(topic)
            task = asyncio.create_task(self._publish(topic))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)

    @contextlib.contextmanager
    def listening(self, topics: Iterable[str]) -> Iterator[asyncio.Event]:
        """An event that is set when the bell rings for one of them. Listen first and look second."""
        rung = asyncio.Event()
        topics = list(topics)
        for topic in topics:
            self._waiting[topic].add(rung)
        try:
            yield rung
        finally:
            for topic in topics:
                self._waiting[topic].discard(rung)
                if not self._waiting[topic]:
                    del self._waiting[topic]

    async def listen(self) -> None:
        """Hear the other replicas until the process stops."""
        try:
            while True:
                try:
                    await self._hear()
                except (redis.exceptions.RedisError, OSError) as error:
                    logger.info("the bell is not heard: %s", error)
                    await asyncio.sleep(_RETRY_SECONDS)
        except asyncio.CancelledError:
            self.closed = True
            for topic in list(self._waiting):
                self._wake(topic)
            raise

    async def _hear(self) -> None:
        async with self._broker.pubsub() as subscription:
            await subscription.subscribe(_CHANNEL)
            while True:
                message = await subscription.get_message(ignore_subscribe_messages=True, timeout=LOOK_SECONDS)
                if message is not None:
                    self._wake(message["data"].decode())

    async def _publish(self, topic: str) -> None:
        try:
            await self._broker.publish(_CHANNEL, topic)
        except (redis.exceptions.RedisError, OSError) as error:
            logger.info("the bell is not heard: %s", error)

    def _wake(self, topic: str) -> None:
        for rung in self._waiting.get(topic, ()):
            rung.set()
