"""The copy of live sessions in Redis, by token hash: what a page view asks for needs no database."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from nexus.identity.session_mgr.v1.session_mgr_pb2 import Session
from nexus.type.v1.faults import DependencyUnavailable

TOUCH_SECONDS = 60
"""A session read from here counts as used at most this long after it was: its record is written once a minute."""


class SessionCache:
    """Sessions for a minute each; after that the record is asked, and counts the use."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def get(self, tenant_id: str, token_hash: bytes) -> Session | None:
        try:
            found: Any = await self._redis.get(_key(tenant_id, token_hash))
        except (RedisError, OSError) as error:
            raise DependencyUnavailable(dependency="broker", retry_after=1) from error
        return Session.FromString(found) if found is not None else None

    async def put(self, tenant_id: str, token_hash: bytes, session: Session) -> None:
        try:
            await self._redis.set(_key(tenant_id, token_hash), session.SerializeToString(), ex=TOUCH_SECONDS)
        except (RedisError, OSError) as error:
            raise DependencyUnavailable(dependency="broker", retry_after=1) from error

    async def drop(self, tenant_id: str, token_hashes: Sequence[bytes]) -> None:
        try:
            await self._redis.delete(*(_key(tenant_id, token_hash) for token_hash in token_hashes))
        except (RedisError, OSError) as error:
            raise DependencyUnavailable(dependency="broker", retry_after=1) from error


def _key(tenant_id: str, token_hash: bytes) -> str:
    return f"session-mgr:session:{tenant_id}:{token_hash.hex()}"
