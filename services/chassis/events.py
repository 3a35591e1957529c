"""Events: written with the rows they tell of, sent once those have committed, handled once by each subscriber.

    transaction: domain rows + events ─▶ relay ─▶ Redis stream ─▶ subscriber's transaction: inbox + its rows

The relay sends an event at least once; the inbox makes a second arrival do nothing. Each type of event has a stream,
which one consumer of each subscriber reads at a time, so an aggregate's events of one type are handled in order; those
of two types are not, and `position` says which was first. Sent events
form a chain of hashes for each tenant: whoever changes or removes one breaks it. `nexus events` looks into all this,
and sends events to a subscriber again (services.chassis.event_log).
"""

import asyncio
import contextlib
import hashlib
import importlib
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import asyncpg
import redis.asyncio
import redis.exceptions
from google.protobuf.message import Message
from prometheus_client import Counter, Gauge, Histogram

from nexus.type.v1.event_pb2 import Event
from nexus.type.v1.faults import DependencyUnavailable
from services.chassis import context
from services.chassis.clock import now, timestamp
from services.chassis.context import acting_for
from services.chassis.database import Database
from services.chassis.errors import Fault
from services.chassis.ids import new_id
from services.chassis.tasks import cancel_all

BATCH = 200
ATTEMPTS = 6
RELAY_SECONDS = 5.0
"""How long an event waits at most when nobody told the relay of it: its process died between commit and relay."""
RETRY_SECONDS = 0.5
LEASE_MS = 10_000
READ_MS = 2_000
KEEP_IN_STREAM = 100_000
KEEP_HANDLED = "30 days"
LAG_SECONDS = 5.0
"""How often subscribers say how far behind they are."""
_COUNT_UP_TO = 10_000
_OTHER_RELAY_SECONDS = 0.05
_READER = "reader"
"""The name of whoever reads for a subscriber: there is one at a time, which has the lease."""
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.1, 10.0

UNSENT = Gauge("nexus_events_unsent", "Events that wait for the relay", ["service"])
SENT = Counter("nexus_events_sent_total", "Events sent to the broker", ["service", "type"])
HANDLED = Counter("nexus_events_handled_total", "Events handled", ["service", "type"])
DEAD = Counter("nexus_events_dead_total", "Events put aside after their last attempt", ["service", "type"])
LATENCY = Histogram("nexus_event_seconds", "Time from an event to its handling", ["service", "type"])
LAG = Gauge("nexus_events_lag", "Events sent that a subscriber has not handled", ["service", "type"])
LAG_AGE = Gauge("nexus_events_lag_seconds", "How long the oldest of them has waited", ["service", "type"])

Handler = Callable[[Any, Event], Awaitable[None]]
"""(message, envelope) → nothing. Runs in a transaction, for the event's tenant."""

logger = logging.getLogger(__name__)

_ONE_RELAY = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 1))"
_INSERT = """
INSERT INTO events (event_id, type, aggregate, payload, actor, request_id, create_time)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
_INSERT_ALL = """
INSERT INTO events (event_id, type, aggregate, payload, actor, request_id, create_time)
SELECT *, $7 FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[])
"""
_UNSENT_ROWS = """
SELECT tenant_id, event_id::text, sequence, type, aggregate, payload, actor, request_id, create_time
FROM events WHERE position IS NULL ORDER BY sequence LIMIT $1
"""
_UNSENT = "SELECT count(*) FROM (SELECT FROM events WHERE position IS NULL LIMIT $1) AS unsent"
_HEAD = """
SELECT position, hash FROM events WHERE tenant_id = $1 AND position IS NOT NULL ORDER BY position DESC LIMIT 1
"""
_PLACE = "UPDATE events SET position = $3, hash = $4 WHERE tenant_id = $1 AND event_id = $2"
_TENANT_GONE = """
SELECT true FROM nexus.tenants WHERE tenant_id = $1 AND (state = 'erased' OR nexus.is_erased(tenant_id))
"""
CLAIM = "INSERT INTO handled_events (event_id) VALUES ($1) ON CONFLICT DO NOTHING RETURNING true"
"""True for who comes first: what an event, or a job, does takes effect once."""


class Occurrence(NamedTuple):
    """An event to be published on behalf of a call that is not the running one."""

    message: Message
    aggregate: str
    actor: str
    request_id: str


def stream_of(event_type: str) -> str:
    return f"nexus:events:{event_type}"


def replays_of(subscriber: str, event_type: str) -> str:
    """The stream of events that one subscriber is to hear again. The field `again`, a UUID, has it handle one that it
    has handled before."""
    return f"nexus:replays:{subscriber}:{event_type}"


@dataclass(frozen=True)
class Lag:
    """How far a subscriber is behind."""

    events: int
    seconds: float
    """How long the oldest of them has waited."""


async def lag(broker: "redis.asyncio.Redis", subscriber: str, event_type: str) -> Lag:
    """What is on the stream and has not been handled. Counts no further than 10,000 where Redis (before 7) does not."""
    stream: Any = stream_of(event_type)
    try:
        groups: Any = await broker.xinfo_groups(stream)
    except redis.exceptions.ResponseError:  # there is no such stream: nothing was ever sent
        return Lag(0, 0.0)
    group: Any = next((group for group in groups if group["name"] == subscriber.encode()), {})
    last, pending = group.get("last-delivered-id", b"0-0"), group.get("pending", 0)
    after = f"({last.decode()}"
    undelivered = group.get("lag")
    if undelivered is None:
        entries: Any = await broker.xrange(stream, min=after, count=_COUNT_UP_TO)
        undelivered = len(entries)
    oldest: Any = None
    if pending:
        oldest = (await broker.xpending(stream, subscriber))["min"]
    elif undelivered:
        entries = await broker.xrange(stream, min=after, count=1)
        oldest = entries[0][0] if entries else None
    waited = time.time() - int(oldest.partition(b"-")[0]) / 1000 if oldest else 0.0
    return Lag(pending + undelivered, max(waited, 0.0))


class Events:
    """What one service tells and hears."""

    def __init__(self, service: str, database: Database, broker: "redis.asyncio.Redis") -> None:
        self._service = service
        self._database = database
        self._broker = broker
        self._written = asyncio.Event()
        self._subscriptions: dict[str, Handler] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def publish(self, message: Message, aggregate: str) -> None:
        """Write an event into the running transaction: it happened if and only if that commits."""
        call = context.current()
        actor = self._service
        if call is not None:
            actor = call.signed_in.user_id if call.signed_in is not None else call.caller or self._service
        await self._database.execute(
            _INSERT,
            new_id(),
            message.DESCRIPTOR.full_name,
            aggregate,
            message.SerializeToString(deterministic=True),
            actor,
            call.request_id if call is not None else "",
            now(),
        )
        self._database.after_commit(self._written.set)

    async def publish_all(self, occurrences: Sequence[Occurrence]) -> None:
        """`publish`, for many at once and on behalf of several calls: one statement, in the order given."""
        if occurrences:
            await self._database.execute(
                _INSERT_ALL,
                [new_id() for _ in occurrences],
                [occurrence.message.DESCRIPTOR.full_name for occurrence in occurrences],
                [occurrence.aggregate for occurrence in occurrences],
                [occurrence.message.SerializeToString(deterministic=True) for occurrence in occurrences],
                [occurrence.actor for occurrence in occurrences],
                [occurrence.request_id for occurrence in occurrences],
                now(),
            )
            self._database.after_commit(self._written.set)

    def subscribe(self, event_type: str, handler: Handler) -> None:
        self._subscriptions[event_type] = handler

    def start(self) -> None:
        """Begin to send, and to hear what has been subscribed to."""
        self._tasks.append(asyncio.create_task(self._for_ever(self._relay), name=f"{self._service} relay"))
        for event_type, handler in self._subscriptions.items():
            consumer = _Consumer(self._service, self._database, self._broker, event_type, handler)
            self._tasks.append(asyncio.create_task(self._for_ever(consumer.run), name=consumer.stream))
        if self._subscriptions:
            self._tasks.append(asyncio.create_task(self._for_ever(self._measure), name=f"{self._service} lag"))

    async def stop(self) -> None:
        await cancel_all(self._tasks)

    async def _for_ever(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do this again and again. Database and broker come and go; nothing is lost while they are away."""
        while True:
            try:
                await work()
            except (Fault, redis.exceptions.RedisError, OSError) as error:
                logger.info("events wait: %s", error, extra={"service": self._service})
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                logger.exception("events wait", extra={"service": self._service})
                await asyncio.sleep(RETRY_SECONDS)

    async def _relay(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._written.wait(), RELAY_SECONDS)
        self._written.clear()
        sent: int | None = BATCH
        while sent is None or sent == BATCH:
            sent = await self.relay_batch()
            if sent is None:
                await asyncio.sleep(_OTHER_RELAY_SECONDS)

    async def _measure(self) -> None:
        for event_type in self._subscriptions:
            behind = await lag(self._broker, self._service, event_type)
            LAG.labels(self._service, event_type).set(behind.events)
            LAG_AGE.labels(self._service, event_type).set(behind.seconds)
        await asyncio.sleep(LAG_SECONDS)

    async def relay_batch(self) -> int | None:
        """Send the oldest unsent events and give them their place in the chain; returns how many, or None when
        another replica is at it."""
        async with self._database.transaction(platform_wide=True):
            # One relay at a time, whatever the number of replicas: order and chain allow no second.
            if not await self._database.fetchval(_ONE_RELAY, self._service):
                return None
            rows = await self._database.fetch(_UNSENT_ROWS, BATCH)
            UNSENT.labels(self._service).set(len(rows) if len(rows) < BATCH else await self._unsent())
            if not rows:
                return 0
            placed = await self._place(rows)
            async with self._broker.pipeline(transaction=False) as pipe:
                for event in placed:
                    pipe.xadd(
                        stream_of(event.type),
                        {"event": event.SerializeToString()},
                        maxlen=KEEP_IN_STREAM,
                        approximate=True,
                    )
                await pipe.execute()
            # Sent before the commit: a crash in between sends them again, and the inboxes know them.
        for event in placed:
            SENT.labels(self._service, event.type).inc()
        return len(placed)

    async def _unsent(self) -> int:
        """In a platform-wide transaction. Counts no further than 10,000."""
        counted: int = await self._database.fetchval(_UNSENT, _COUNT_UP_TO)
        return counted

    async def _place(self, rows: Sequence[asyncpg.Record]) -> list[Event]:
        heads: dict[str, tuple[int, bytes]] = {}
        placed, updates = [], []
        for row in rows:
            tenant = row["tenant_id"]
            if tenant not in heads:
                head = await self._database.fetchrow(_HEAD, tenant)
                heads[tenant] = (head["position"], head["hash"]) if head is not None else (0, b"")
            position, previous = heads[tenant]
            heads[tenant] = (position + 1, link(previous, row))
            updates.append((tenant, row["event_id"], *heads[tenant]))
            placed.append(envelope(row, position + 1, self._service))
        await self._database.executemany(_PLACE, updates)
        return placed

    async def forget_handled(self) -> None:
        """Drop what the inbox knows of events too old to come again."""
        async with self._database.transaction(platform_wide=True):
            await self._database.execute(
                f"DELETE FROM handled_events WHERE handle_time < now() - interval '{KEEP_HANDLED}'"
            )


def link(previous: bytes, row: Any) -> bytes:
    """The hash of an event in the chain: over the hash before it and everything the event says."""
    digest = hashlib.sha256(previous)
    fields = ("tenant_id", "event_id", "type", "aggregate", "actor", "request_id")
    for part in (*(row[name].encode() for name in fields), row["create_time"].isoformat().encode(), row["payload"]):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def envelope(row: asyncpg.Record, position: int, source: str) -> Event:
    return Event(
        event_id=row["event_id"],
        type=row["type"],
        tenant_id=row["tenant_id"],
        aggregate=row["aggregate"],
        payload=row["payload"],
        create_time=timestamp(row["create_time"]),
        actor=row["actor"],
        request_id=row["request_id"],
        position=position,
        source=source,
    )


class _Consumer:
    """Reads one type of event for one subscriber; of its replicas, the one with the lease."""

    def __init__(
        self,
        service: str,
        database: Database,
        broker: "redis.asyncio.Redis",
        event_type: str,
        handler: Handler,
    ) -> None:
        self.stream = stream_of(event_type)
        self._replays = replays_of(service, event_type)
        self._service = service
        self._database = database
        self._broker = broker
        self._type = event_type
        self._handler = handler
        self._name = new_id()
        self._lease = f"nexus:lease:{service}:{self.stream}"
        self._message = message_class(event_type)

    async def run(self) -> None:
        """Take the lease if it is free, and handle what there is."""
        if not await self._holds_lease():
            await asyncio.sleep(LEASE_MS / 2000 * random.uniform(0.5, 1.0))  # noqa: S311  replicas in turn
            return
        for stream in (self.stream, self._replays):
            await self._ensure_group(stream)
            # First what was read and never acknowledged, by us or by whoever had the lease before.
            _, abandoned, *_ = await self._broker.xautoclaim(
                stream, self._service, _READER, min_idle_time=0, count=BATCH
            )
            for entry, fields in abandoned:
                await self._handle(stream, entry, fields)
        while await self._holds_lease():
            found: Any = await self._broker.xreadgroup(
                self._service, _READER, {self.stream: ">", self._replays: ">"}, count=50, block=READ_MS
            )
            for stream, entries in found or ():
                for entry, fields in entries:
                    await self._handle(stream.decode(), entry, fields)

    async def _holds_lease(self) -> bool:
        if await self._broker.set(self._lease, self._name, nx=True, px=LEASE_MS):
            return True
        if await self._broker.get(self._lease) == self._name.encode():
            await self._broker.pexpire(self._lease, LEASE_MS)
            return True
        return False

    async def _ensure_group(self, stream: str) -> None:
        try:
            await self._broker.xgroup_create(stream, self._service, id="0", mkstream=True)
        except redis.exceptions.ResponseError as error:
            if "BUSYGROUP" not in str(error):  # the group exists
                raise

    async def _handle(self, stream: str, entry: Any, fields: Any) -> None:
        replayed = stream == self._replays
        if fields:  # an entry that has been trimmed meanwhile has none
            again = fields.get(b"again", b"").decode()
            await self._handle_until_done(Event.FromString(fields[b"event"]), replayed, again)
        await self._broker.xack(stream, self._service, entry)
        if replayed:
            await self._broker.xdel(stream, entry)

    async def _handle_until_done(self, event: Event, replayed: bool, again: str) -> None:
        """Handle it, several times if need be; those behind it wait, since order matters more than haste. Attempts
        that failed because something is away do not count: it comes back, and so would every event behind this one."""
        backoff, attempt = _FIRST_BACKOFF, 0
        while True:
            try:
                await self._handle_once(event, replayed, again)
                return
            except Exception as error:
                attempt += not isinstance(error, DependencyUnavailable)
                logger.warning(
                    "event failed: %s",
                    error,
                    extra={
                        "service": self._service,
                        "type": event.type,
                        "event_id": event.event_id,
                        "attempt": attempt,
                    },
                    exc_info=not isinstance(error, Fault),
                )
                if attempt == ATTEMPTS:
                    await self._put_aside(event, error)
                    return
            await self._broker.pexpire(self._lease, LEASE_MS + int(backoff * 1000))
            await asyncio.sleep(backoff * random.uniform(0.8, 1.2))  # noqa: S311
            backoff = min(backoff * 3, _LONGEST_BACKOFF)

    async def _handle_once(self, event: Event, replayed: bool, again: str) -> None:
        with acting_for(event.tenant_id):
            async with self._database.transaction():
                if await self._database.fetchval(_TENANT_GONE, event.tenant_id):
                    return  # nothing of it may come back
                # That it is handled again happens once, too.
                if again and await self._database.fetchval(CLAIM, again):
                    await self._database.execute("DELETE FROM handled_events WHERE event_id = $1", event.event_id)
                first = await self._database.fetchval(CLAIM, event.event_id)
                if first:
                    await self._handler(self._message.FromString(event.payload), event)
                if replayed:
                    await self._database.execute("DELETE FROM dead_letters WHERE event_id = $1", event.event_id)
        if first:
            HANDLED.labels(self._service, event.type).inc()
            LATENCY.labels(self._service, event.type).observe(
                (now().timestamp()) - event.create_time.ToMicroseconds() / 1e6
            )

    async def _put_aside(self, event: Event, error: Exception) -> None:
        with acting_for(event.tenant_id):
            await self._database.execute(
                "INSERT INTO dead_letters (event_id, type, aggregate, envelope, error, attempts) "
                "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant_id, event_id) DO UPDATE "
                "SET error = excluded.error, attempts = dead_letters.attempts + excluded.attempts",
                event.event_id,
                event.type,
                event.aggregate,
                event.SerializeToString(),
                f"{type(error).__name__}: {error}"[:1000],
                ATTEMPTS,
            )
        DEAD.labels(self._service, event.type).inc()


def message_class(event_type: str) -> type[Message]:
    """The generated class of an event: a message in the `events.proto` of its package."""
    package = event_type.rpartition(".")[0]
    result: type[Message] = getattr(importlib.import_module(f"{package}.events_pb2"), event_type.rpartition(".")[2])
    return result


def handler_name(event_type: str) -> str:
    """`nexus.identity.user_auth.v1.UserCreated` → `on_user_created`."""
    words = re.findall(r"[A-Z][a-z0-9]*", event_type.rpartition(".")[2])
    return "on_" + "_".join(word.lower() for word in words)
