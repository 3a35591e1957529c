"""API keys as every service verifies them: asked of backend-api, remembered for moments, forgotten when revoked.

To those who listen for signals a key is a session whose id is the key's: revoking it ends that session.
"""

import time
from typing import TYPE_CHECKING, Any

import redis.asyncio
from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.exceptions import RedisError

from nexus.platform.backend_api.v1.api_keys_pb2 import VerifyApiKeyRequest
from nexus.platform.backend_api.v1.faults import ApiKeyExpired, ApiKeyInvalid
from nexus.type.v1.faults import DependencyUnavailable, RateLimited
from services.chassis.context import User
from services.chassis.ids import hash_secret
from services.chassis.signals import Signals

if TYPE_CHECKING:
    from nexus.platform.backend_api.v1.api_keys_pb2_grpc import ApiKeyServiceAsyncStub

REMEMBER_SECONDS = 10.0
"""How long an answer holds: what a user may do no more, the user's keys may do no longer than this."""
REVOCATION_SECONDS = 60.0
"""How long a revocation is known to everybody: longer than any answer from before it is remembered or on its way."""
_REMEMBER_KEYS = 10_000
_NO_END = 253_402_300_799  # the last second of the year 9999
_VERIFY_SECONDS = 5.0


class ApiKeyVerifier:
    """Turns an API key into the user it acts for, with the key's scopes as permissions and its id as session."""

    def __init__(self, client: "redis.asyncio.Redis", signals: Signals, keys: "ApiKeyServiceAsyncStub") -> None:
        self._signals = signals
        self._keys = keys
        shared: Any = client.connection_pool
        storage = RedisStorage(
            "async+redis://", implementation="redispy", key_prefix="nexus:rate", connection_pool=shared
        )
        self._limiter = MovingWindowRateLimiter(storage)
        self._remembered: dict[bytes, tuple[User, int, float]] = {}

    async def verify(self, key: str, *, count: bool = True) -> User:
        """Raises ApiKeyInvalid, ApiKeyExpired, RateLimited, or DependencyUnavailable when nobody can say.

        `count` the calls from outside only: what one of them leads to inside belongs to it.
        """
        if not self._signals.up_to_date and not await self._signals.wait_up_to_date(1.0):
            raise DependencyUnavailable(dependency="broker", retry_after=1)
        digest = hash_secret(key)  # the key itself stays in nobody's memory
        user, calls, until = self._remembered.get(digest, (None, 0, 0.0))
        if user is None or until <= time.monotonic():
            user, calls = await self._ask(key, digest)
        if self._signals.session_ended(user.session_id):
            raise ApiKeyInvalid()
        if user.token_expires <= time.time():
            raise ApiKeyExpired()
        if count:
            await self._count(user.session_id, calls)
        return user

    async def _ask(self, key: str, digest: bytes) -> tuple[User, int]:
        asked = time.monotonic()
        answer = await self._keys.VerifyApiKey(VerifyApiKeyRequest(secret=key[:128]), timeout=_VERIFY_SECONDS)
        user = User(
            user_id=answer.user_id,
            tenant_id=answer.tenant_id,
            session_id=answer.key_id,
            permissions=frozenset(answer.permissions),
            token_expires=answer.expire_time.seconds if answer.HasField("expire_time") else _NO_END,
            scoped=True,
            scopes=frozenset(answer.scopes),
            machine=True,
        )
        while len(self._remembered) >= _REMEMBER_KEYS:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[digest] = (user, answer.calls_per_minute, asked + REMEMBER_SECONDS)
        return user, answer.calls_per_minute

    async def _count(self, key_id: str, calls: int) -> None:
        limit = RateLimitItemPerMinute(calls)
        try:
            if await self._limiter.hit(limit, "api-key", key_id):
                return
            window = await self._limiter.get_window_stats(limit, "api-key", key_id)
        except (RedisError, OSError) as error:
            raise DependencyUnavailable(dependency="broker", retry_after=1) from error
        wait = max(1, round(window.reset_time - time.time()))
        raise RateLimited(seconds=wait, retry_after=wait)
