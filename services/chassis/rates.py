"""Limits that must be exact across replicas: how often one address may try a credential.

The edge sheds load cheaply, each edge for itself; here guessing is counted in one place, in Redis.
"""

import time

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.exceptions import RedisError

from nexus.type.v1.faults import DependencyUnavailable, RateLimited
from services.chassis.config import Settings
from services.chassis.contract import Method

EXACT = frozenset({"CREDENTIALS"})
"""The rate classes that services count, beside the edge."""


class RateLimiter:
    """Counts calls of the exact classes per method, tenant and address."""

    def __init__(self, settings: Settings) -> None:
        assert settings.redis_url is not None
        url = settings.redis_url.get_secret_value()
        scheme = "async+redis+unix" if url.startswith("unix:") else "async+redis"
        storage = RedisStorage(f"{scheme}:{url.partition(':')[2]}", implementation="redispy", key_prefix="nexus:rate")
        self._limiter = MovingWindowRateLimiter(storage)
        self._limits = {}
        for rate_class in EXACT:
            calls, seconds = settings.rate(rate_class)
            self._limits[rate_class] = RateLimitItemPerSecond(calls, seconds)

    async def count(self, method: Method, *who: str) -> None:
        """Raises RateLimited over the limit, DependencyUnavailable when it cannot count."""
        limit = self._limits[method.rate_class]
        try:
            if await self._limiter.hit(limit, method.full_name, *who):
                return
            window = await self._limiter.get_window_stats(limit, method.full_name, *who)
        except (RedisError, OSError) as error:
            raise DependencyUnavailable(dependency="broker", retry_after=1) from error
        wait = max(1, round(window.reset_time - time.time()))
        raise RateLimited(seconds=wait, retry_after=wait)
