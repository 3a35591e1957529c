"""Calls that happen once for each key (IETF draft-ietf-httpapi-idempotency-key-header).

The key, the answer and everything the handler wrote commit in one transaction. A twin that arrives meanwhile
waits on the key's row and then finds the answer; after a crash or a failure there is no row, and the next
attempt is the first. A method that `resumes` does this itself, since what it does outside cannot be rolled back.
"""

from typing import Any, NamedTuple, Self

from google.protobuf.message import Message

from nexus.type.v1.faults import IdempotencyKeyReused
from services.chassis.context import RequestContext
from services.chassis.database import Database
from services.chassis.pipeline import Handler
from services.chassis.sealing import Sealer
from services.chassis.table import Row, Table
from services.chassis.telemetry import IDEMPOTENT_REPLAYS

KEEP = "24 hours"

_CLAIM = """
INSERT INTO idempotency_keys (scope, key, request_hash) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING RETURNING true
"""
_STORED = "SELECT request_hash, response FROM idempotency_keys WHERE scope = $1 AND key = $2"
_ANSWER = "UPDATE idempotency_keys SET response = $3 WHERE scope = $1 AND key = $2"
_FORGET = f"DELETE FROM idempotency_keys WHERE create_time < now() - interval '{KEEP}'"


class RequestKey(NamedTuple):
    """Who asks, with which key, and for what: by these a method that `resumes` knows what it was asked before.

    They are columns of what the request makes, unique by the first two: `table.insert_new(…, **key._asdict())`.
    """

    scope: str
    request_id: str
    request_hash: bytes = b""

    @classmethod
    def of(cls, request: Any, call: RequestContext, sealer: Sealer) -> Self:
        caller = call.signed_in.user_id if call.signed_in is not None else call.caller
        request_hash = sealer.digest(request.SerializeToString(deterministic=True))
        return cls(f"{call.method.name} {caller}", request.request_id, request_hash)

    async def earlier(self, table: Table) -> Row | None:
        """What the request has made before. Raises IdempotencyKeyReused for a key of another request."""
        row = await table.find(scope=self.scope, request_id=self.request_id)
        if row is not None and row["request_hash"] != self.request_hash:
            raise IdempotencyKeyReused(key=self.request_id)
        return row


class Once:
    """Runs handlers once a key, for one service."""

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def run(self, request: Message, call: RequestContext, key: str, handler: Handler) -> Message:
        """The handler's answer, or the stored one. Raises IdempotencyKeyReused for a key of another request."""
        if call.method.policy.resumes:
            return await handler(request, call)
        scope = call.method.full_name
        if call.signed_in is not None:
            scope += " " + call.signed_in.user_id
        request_hash = self._sealer.digest(request.SerializeToString(deterministic=True))
        async with self._database.transaction():
            if await self._database.fetchval(_CLAIM, scope, key, request_hash):
                response: Message = await handler(request, call)
                sealed = self._sealer.seal(response.SerializeToString(), scope)
                await self._database.execute(_ANSWER, scope, key, sealed)
                return response
            stored = await self._database.fetchrow(_STORED, scope, key)
        assert stored is not None, "the conflicting row was committed, so it can be read"
        if stored["request_hash"] != request_hash:
            raise IdempotencyKeyReused(key=key)
        IDEMPOTENT_REPLAYS.labels(call.method.service_id, call.method.name).inc()
        output = call.method.output
        return output.FromString(self._sealer.open(stored["response"], scope))

    async def forget_old(self) -> int:
        """Drop answers older than a day; returns how many."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.execute(_FORGET)
