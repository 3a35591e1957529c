"""The events of all services, as those who run the platform look at them: list, verify, and send again.

Needs the database's own user, who sees the rows of all tenants and services.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
import redis.asyncio

from nexus.type.v1.event_pb2 import Event
from services.chassis.events import Lag, envelope, lag, link, replays_of
from services.chassis.ids import new_id
from services.chassis.spec import ServiceSpec

_EVENT = (
    "tenant_id, event_id::text, type, aggregate, payload, actor, request_id, create_time, "
    "coalesce(position, 0) AS position, hash"
)
_LETTER = "tenant_id, event_id::text, type, aggregate, envelope, error, attempts, create_time"
_BATCH = 500


@dataclass(frozen=True)
class Wanted:
    """Which events; those that are empty do not restrict."""

    tenant: str = ""
    type: str = ""
    """The full name, or its last word."""
    aggregate: str = ""
    source: str = ""
    """The service that published them."""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Letter:
    """An event that a subscriber has put aside."""

    subscriber: str
    event: Event
    error: str
    attempts: int
    create_time: datetime


@dataclass(frozen=True)
class Chain:
    """The chain of one tenant's events in one service."""

    service: str
    tenant_id: str
    events: int
    broken_at: int | None = None
    """The first position at which it does not hold."""
    event_id: str = ""
    """Of the event there."""


class EventLog:
    def __init__(self, admin: asyncpg.Connection, broker: "redis.asyncio.Redis", specs: Sequence[ServiceSpec]) -> None:
        self._admin = admin
        self._broker = broker
        self._specs = specs

    async def page(self, wanted: Wanted, before: str | None, limit: int) -> list[Event]:
        """The latest first, those before the event `before`."""
        found = []
        for spec in await self._publishers(wanted.source):
            rows = await self._admin.fetch(
                f"""
                SELECT {_EVENT} FROM {spec.schema}.events
                WHERE {_WANTED} AND ($6::uuid IS NULL OR event_id < $6) ORDER BY event_id DESC LIMIT $7
                """,
                *_values(wanted),
                before,
                limit,
            )
            found += [envelope(row, row["position"], spec.id) for row in rows]
        return sorted(found, key=lambda event: event.event_id, reverse=True)[:limit]

    async def event(self, event_id: str) -> tuple[Event, str] | None:
        """An event and its hash in the chain, in hexadecimal; the hash of one that is not sent yet is empty."""
        for spec in await self._publishers(""):
            query = f"SELECT {_EVENT} FROM {spec.schema}.events WHERE event_id = $1"
            row = await self._admin.fetchrow(query, event_id)
            if row is not None:
                return envelope(row, row["position"], spec.id), (row["hash"] or b"").hex()
        return None

    async def letters(
        self, subscriber: str = "", tenant: str = "", event_id: str | None = None, limit: int = 1000
    ) -> list[Letter]:
        """What subscribers have put aside, the latest first."""
        found = []
        for spec in await self._publishers(subscriber):
            rows = await self._admin.fetch(
                f"""
                SELECT {_LETTER} FROM {spec.schema}.dead_letters
                WHERE ($1 = '' OR tenant_id = $1) AND ($2::uuid IS NULL OR event_id = $2)
                ORDER BY create_time DESC LIMIT $3
                """,
                tenant,
                event_id,
                limit,
            )
            found += [
                Letter(spec.id, Event.FromString(row["envelope"]), row["error"], row["attempts"], row["create_time"])
                for row in rows
            ]
        return sorted(found, key=lambda letter: letter.create_time, reverse=True)[:limit]

    async def replay_letter(self, letter: Letter) -> None:
        """Have its subscriber try it again. It stays a dead letter until that has succeeded."""
        await self._send(letter.subscriber, [letter.event], again=False)

    async def replay(self, wanted: Wanted, subscriber: ServiceSpec, *, again: bool) -> int:
        """Send events to one subscriber, in the order in which they happened; returns how many. Those that it has
        handled are left out by it, unless they are to be handled `again`."""
        count = 0
        async with self._admin.transaction():
            for spec in await self._publishers(wanted.source):
                query = f"""
                    SELECT {_EVENT} FROM {spec.schema}.events
                    WHERE {_WANTED} AND type = ANY ($6) AND position IS NOT NULL ORDER BY sequence
                """
                batch = []
                async for row in self._admin.cursor(query, *_values(wanted), list(subscriber.subscribes)):
                    batch.append(envelope(row, row["position"], spec.id))
                    if len(batch) == _BATCH:
                        count += await self._send(subscriber.id, batch, again=again)
                        batch = []
                count += await self._send(subscriber.id, batch, again=again)
        return count

    async def _send(self, subscriber: str, events: Sequence[Event], *, again: bool) -> int:
        async with self._broker.pipeline(transaction=False) as pipe:
            for event in events:
                fields = {"event": event.SerializeToString(), **({"again": new_id()} if again else {})}
                pipe.xadd(replays_of(subscriber, event.type), fields)  # type: ignore[arg-type]
            await pipe.execute()
        return len(events)

    async def verify(self, tenant: str = "", source: str = "") -> AsyncIterator[Chain]:
        """Every tenant's chain in every service, with the first place at which it does not hold."""
        for spec in await self._publishers(source):
            query = f"""
                SELECT {_EVENT} FROM {spec.schema}.events
                WHERE position IS NOT NULL AND ($1 = '' OR tenant_id = $1) ORDER BY tenant_id, position
            """
            chain, previous = None, b""
            async with self._admin.transaction():
                async for row in self._admin.cursor(query, tenant):
                    if chain is None or chain.tenant_id != row["tenant_id"]:
                        if chain is not None:
                            yield chain
                        chain, previous = Chain(spec.id, row["tenant_id"], 0), b""
                    number = chain.events + 1
                    holds = row["position"] == number and row["hash"] == link(previous, row)
                    if holds or chain.broken_at is not None:
                        chain = Chain(chain.service, chain.tenant_id, number, chain.broken_at, chain.event_id)
                    else:
                        chain = Chain(chain.service, chain.tenant_id, number, row["position"], row["event_id"])
                    previous = row["hash"]
            if chain is not None:
                yield chain

    async def lags(self) -> list[tuple[str, str, Lag]]:
        """How far each subscriber is behind, for each type of event that it hears."""
        return [
            (spec.id, event_type, await lag(self._broker, spec.id, event_type))
            for spec in self._specs
            for event_type in spec.subscribes
        ]

    async def unsent(self) -> dict[str, int]:
        """How many events of each service wait for its relay."""
        counts = {}
        for spec in await self._publishers(""):
            counts[spec.id] = await self._admin.fetchval(
                f"SELECT count(*) FROM {spec.schema}.events WHERE position IS NULL"
            )
        return {service: count for service, count in counts.items() if count}

    async def _publishers(self, service: str) -> list[ServiceSpec]:
        """The services with tables, or the one."""
        rows = await self._admin.fetch(
            "SELECT nspname FROM pg_namespace WHERE to_regclass(quote_ident(nspname) || '.events') IS NOT NULL"
        )
        schemas = {row["nspname"] for row in rows}
        return [spec for spec in self._specs if spec.schema in schemas and service in ("", spec.id)]


_WANTED = """($1 = '' OR tenant_id = $1) AND ($2 = '' OR type = $2 OR type LIKE '%.' || $2)
    AND ($3 = '' OR aggregate = $3)
    AND ($4::timestamptz IS NULL OR create_time >= $4) AND ($5::timestamptz IS NULL OR create_time < $5)"""


def _values(wanted: Wanted) -> tuple[Any, ...]:
    return wanted.tenant, wanted.type, wanted.aggregate, wanted.since, wanted.until
