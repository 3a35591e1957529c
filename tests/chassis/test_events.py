"""Events: with their rows or not at all, in order, handled once, and a chain that shows tampering."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
import redis.asyncio
from prometheus_client import REGISTRY

from nexus.platform.scheduler.v1.events_pb2 import JobDied
from nexus.type.v1.event_pb2 import Event
from nexus.type.v1.faults import DependencyUnavailable
from services.chassis import events
from services.chassis.context import acting_for
from services.chassis.database import Database
from services.chassis.event_log import Chain, EventLog, Wanted
from services.chassis.events import Events, Lag, lag, stream_of
from services.chassis.ids import new_id
from services.chassis.spec import ServiceSpec, discover
from tests.chaos.processes import state
from tests.identity.people import change, value
from tests.platforms import Platform, Tenant

pytestmark = pytest.mark.xdist_group("events")

# Any message will do: an event that tells of itself.
TYPE = Event.DESCRIPTOR.full_name


@dataclass
class Bench:
    """A publisher and subscribers on the platform's database and broker."""

    platform: Platform
    tenant: Tenant
    broker: "redis.asyncio.Redis"
    publisher: Events
    publishing: Database
    hearing: Database
    stack: AsyncExitStack
    heard: list[str] = field(default_factory=list)

    async def publish(self, *names: str, aggregate: str = "one") -> None:
        with acting_for(self.tenant.tenant_id):
            async with self.publishing.transaction():
                for name in names:
                    await self.publisher.publish(Event(event_id=name), aggregate)

    def subscriber(self, handler: Callable[[str], Any] = lambda name: None) -> Events:
        """A subscriber of its own name that hears this tenant's events only."""
        subscriber = Events(f"test-{new_id()}", self.hearing, self.broker)

        async def handle(message: Event, envelope: Event) -> None:
            if envelope.tenant_id == self.tenant.tenant_id:
                handler(message.event_id)
                self.heard.append(message.event_id)

        subscriber.subscribe(TYPE, handle)
        return subscriber

    async def sent(self) -> list[Event]:
        """What this tenant's events look like on the stream."""
        entries: Any = await self.broker.xrange(stream_of(TYPE))
        events_sent = [Event.FromString(fields[b"event"]) for _, fields in entries]
        return [event for event in events_sent if event.tenant_id == self.tenant.tenant_id]

    async def log(self) -> EventLog:
        admin = await self.platform.admin()
        self.stack.push_async_callback(admin.close)
        return EventLog(admin, self.broker, list(discover().values()))

    async def chain(self) -> Chain:
        """What the log says of this tenant's chain."""
        [chain] = [chain async for chain in (await self.log()).verify(self.tenant.tenant_id)]
        return chain

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(30):
            while not await condition():  # noqa: ASYNC110  neither broker nor database says anything to the test
                await asyncio.sleep(0.02)

    async def hears_in_any_order(self, *names: str) -> None:
        async with asyncio.timeout(30):
            while len(self.heard) < len(names):  # noqa: ASYNC110  the broker says nothing to the test
                await asyncio.sleep(0.02)
        assert sorted(self.heard) == sorted(names)

    async def hears(self, *names: str) -> None:
        async with asyncio.timeout(30):
            while len(self.heard) < len(names):  # noqa: ASYNC110  the broker says nothing to the test
                await asyncio.sleep(0.02)
        assert self.heard == list(names)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "message_class", lambda event_type: Event)
    monkeypatch.setattr(events, "_FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(events, "_LONGEST_BACKOFF", 0.05)
    monkeypatch.setattr(events, "READ_MS", 200)


@pytest.fixture
async def bench(platform: Platform, tenant: Tenant) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        databases = []
        for service in ("auth-service", "session-mgr"):
            database = Database(platform.settings, discover()[service])
            await database.start()
            stack.push_async_callback(database.stop)
            databases.append(database)
        assert platform.settings.redis_url is not None
        broker = redis.asyncio.Redis.from_url(platform.settings.redis_url.get_secret_value())
        stack.push_async_callback(broker.aclose)
        publisher = Events("auth-service", databases[0], broker)
        yield Bench(platform, tenant, broker, publisher, databases[0], databases[1], stack)


async def test_events_are_heard_in_the_order_in_which_they_happened(bench: Bench) -> None:
    subscriber = bench.subscriber()
    subscriber.start()
    for number in range(0, 30, 3):
        await bench.publish(str(number), str(number + 1), str(number + 2))
    await bench.publisher.relay_batch()

    await bench.hears(*map(str, range(30)))
    await subscriber.stop()


async def test_each_type_of_event_has_its_own_order_and_positions_tell_the_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is retried holds up its own type only; by its position a subscriber sees that it came before."""
    monkeypatch.setattr(events, "message_class", lambda event_type: Event if event_type == TYPE else JobDied)
    heard: list[tuple[str, int]] = []
    subscriber = Events(f"test-{new_id()}", bench.hearing, bench.broker)
    gone_on = asyncio.Event()

    async def reluctantly(message: Event, envelope: Event) -> None:
        if envelope.tenant_id == bench.tenant.tenant_id:
            if not gone_on.is_set():
                raise DependencyUnavailable()
            heard.append((message.event_id, envelope.position))

    async def promptly(message: JobDied, envelope: Event) -> None:
        if envelope.tenant_id == bench.tenant.tenant_id:
            heard.append((message.job_id, envelope.position))
            gone_on.set()

    other = JobDied.DESCRIPTOR.full_name
    subscriber.subscribe(TYPE, reluctantly)
    subscriber.subscribe(other, promptly)
    with acting_for(bench.tenant.tenant_id):
        async with bench.publishing.transaction():
            await bench.publisher.publish(Event(event_id="first"), "one")
            await bench.publisher.publish(JobDied(job_id="second"), "one")
            await bench.publisher.publish(Event(event_id="third"), "one")
    await bench.publisher.relay_batch()
    subscriber.start()

    async def all_are_heard() -> bool:
        return len(heard) == 3

    await bench.until(all_are_heard)
    await subscriber.stop()
    names = [name for name, _ in heard]
    assert names == ["second", "first", "third"]
    assert [name for name, _ in sorted(heard, key=lambda item: item[1])] == ["first", "second", "third"]


async def test_what_is_rolled_back_never_happened(bench: Bench) -> None:
    async def fail() -> None:
        async with bench.publishing.transaction():
            await bench.publisher.publish(Event(event_id="never"), "one")
            raise ZeroDivisionError

    with acting_for(bench.tenant.tenant_id), pytest.raises(ZeroDivisionError):
        await fail()
    await bench.publish("always")
    subscriber = bench.subscriber()
    subscriber.start()
    await bench.publisher.relay_batch()

    await bench.hears("always")
    await subscriber.stop()


async def test_what_waits_for_the_relay_is_counted_beyond_one_batch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BATCH", 2)
    async with bench.hearing.transaction():
        async with asyncio.timeout(30):
            while not await bench.hearing.fetchval(events._ONE_RELAY, "auth-service"):  # noqa: ASYNC110  a try-lock
                await asyncio.sleep(0.02)
        await bench.publish(*map(str, range(9)))  # no relay takes it away meanwhile
        async with bench.publishing.transaction(platform_wide=True):
            assert await bench.publisher._unsent() >= 9


async def test_an_event_that_arrives_twice_is_handled_once(bench: Bench) -> None:
    await bench.publish("first")
    await bench.publisher.relay_batch()
    [sent] = await bench.sent()
    await bench.broker.xadd(stream_of(TYPE), {"event": sent.SerializeToString()})
    await bench.publish("second")
    await bench.publisher.relay_batch()
    subscriber = bench.subscriber()
    subscriber.start()

    await bench.hears("first", "second")
    await subscriber.stop()


async def test_a_handler_that_fails_is_tried_again_and_those_behind_wait(bench: Bench) -> None:
    failures = iter([True, True, False, False])

    def fail_twice(name: str) -> None:
        if name == "hard" and next(failures):
            raise RuntimeError("not yet")

    await bench.publish("hard", "easy")
    await bench.publisher.relay_batch()
    subscriber = bench.subscriber(fail_twice)
    subscriber.start()

    await bench.hears("hard", "easy")
    await subscriber.stop()


async def test_an_event_that_always_fails_is_put_aside(bench: Bench) -> None:
    def refuse(name: str) -> None:
        if name == "poison":
            raise RuntimeError("never")

    await bench.publish("poison", "after")
    await bench.publisher.relay_batch()
    subscriber = bench.subscriber(refuse)
    subscriber.start()
    await bench.hears("after")
    await subscriber.stop()

    with acting_for(bench.tenant.tenant_id):
        [letter] = await bench.hearing.fetch("SELECT error, attempts FROM dead_letters")
    assert letter["error"] == "RuntimeError: never"
    assert letter["attempts"] == events.ATTEMPTS


async def test_an_event_waits_for_what_is_away_however_long(bench: Bench) -> None:
    failures = iter([True] * (2 * events.ATTEMPTS))

    def need(name: str) -> None:
        if next(failures, False):
            raise DependencyUnavailable(dependency="mail server", retry_after=1)

    await bench.publish("patient", "next")
    await bench.publisher.relay_batch()
    subscriber = bench.subscriber(need)
    subscriber.start()
    await bench.hears("patient", "next")
    await subscriber.stop()
    assert await (await bench.log()).letters("session-mgr", bench.tenant.tenant_id) == []


async def test_a_subscriber_that_dies_halfway_leaves_its_event_to_the_next(bench: Bench) -> None:
    reached = asyncio.Event()

    def hang(name: str) -> None:
        reached.set()
        raise RuntimeError("the process dies here")

    dying = bench.subscriber(hang)
    await bench.publish("left")
    await bench.publisher.relay_batch()
    dying.start()
    await reached.wait()
    await dying.stop()
    await bench.broker.delete(f"nexus:lease:{dying._service}:{stream_of(TYPE)}")  # its lease runs out

    heir = Events(dying._service, bench.hearing, bench.broker)

    async def handle(message: Event, envelope: Event) -> None:
        if envelope.tenant_id == bench.tenant.tenant_id:
            bench.heard.append(message.event_id)

    heir.subscribe(TYPE, handle)
    heir.start()
    await bench.hears("left")
    await heir.stop()


async def test_two_relays_at_once_send_everything_once_and_keep_the_chain(bench: Bench) -> None:
    other = Events("auth-service", bench.publishing, bench.broker)
    for number in range(20):
        await bench.publish(str(number))
    await asyncio.gather(*(relay.relay_batch() for relay in [bench.publisher, other] * 5))

    assert [event.position for event in await bench.sent()] == list(range(1, 21))
    assert await bench.chain() == Chain("auth-service", bench.tenant.tenant_id, 20)


@pytest.mark.parametrize(
    ("statement", "position"),
    [
        ("UPDATE auth_service.events SET actor = 'somebody else' WHERE tenant_id = $1 AND position = 2", 2),
        ("UPDATE auth_service.events SET payload = payload || 'x' WHERE tenant_id = $1 AND position = 1", 1),
        ("DELETE FROM auth_service.events WHERE tenant_id = $1 AND position = 1", 2),
        ("UPDATE auth_service.events SET hash = sha256(hash) WHERE tenant_id = $1 AND position = 3", 3),
    ],
)
async def test_tampering_shows(bench: Bench, statement: str, position: int) -> None:
    await bench.publish("a", "b", "c")
    while await bench.publisher.relay_batch():
        pass
    admin = await bench.platform.admin()
    try:
        with pytest.raises(Exception, match="append-only"):
            await admin.execute(statement, bench.tenant.tenant_id)
        await admin.execute("BEGIN; ALTER TABLE auth_service.events DISABLE TRIGGER events_are_facts")
        await admin.execute(statement, bench.tenant.tenant_id)
        await admin.execute("ALTER TABLE auth_service.events ENABLE TRIGGER events_are_facts; COMMIT")
    finally:
        await admin.close()

    assert (await bench.chain()).broken_at == position


async def test_a_dead_letter_is_tried_again_when_asked(bench: Bench) -> None:
    mended: list[bool] = []

    def refuse(name: str) -> None:
        if name == "poison" and not mended:
            raise RuntimeError("never")

    await bench.publish("poison", "after")
    await bench.publisher.relay_batch()
    subscriber = bench.subscriber(refuse)
    subscriber.start()
    await bench.hears("after")
    log = await bench.log()
    [letter] = await log.letters("session-mgr", bench.tenant.tenant_id)
    # The tests' subscriber keeps its letters in the tables of session-mgr, under a name of its own.
    letter = replace(letter, subscriber=subscriber._service)
    await log.replay_letter(letter)

    async def tried_again() -> bool:
        [found] = await log.letters("session-mgr", bench.tenant.tenant_id)
        return found.attempts == 2 * events.ATTEMPTS

    await bench.until(tried_again)
    assert bench.heard == ["after"]

    mended.append(True)
    await log.replay_letter(letter)
    await bench.hears("after", "poison")

    async def gone() -> bool:
        return await log.letters("session-mgr", bench.tenant.tenant_id) == []

    await bench.until(gone)
    await log.replay_letter(letter)  # it has been handled, so nothing happens
    await bench.publish("last")
    await bench.publisher.relay_batch()
    await bench.hears("after", "poison", "last")
    await subscriber.stop()


async def test_the_past_is_heard_by_one_subscriber_and_again_only_when_asked(bench: Bench) -> None:
    await bench.publish("a", "b")
    await bench.publish("elsewhere", aggregate="two")
    while await bench.publisher.relay_batch():
        pass
    late, other = bench.subscriber(), bench.subscriber()
    late.start()
    other.start()
    # The two share the tables of session-mgr, so each event is handled by one of them.
    await bench.hears_in_any_order("a", "b", "elsewhere")
    log, spec = await bench.log(), ServiceSpec(id=late._service, port=1, subscribes=[TYPE])
    assert await log.replay(Wanted(tenant=bench.tenant.tenant_id), spec, again=False) == 3
    assert await log.replay(Wanted(tenant=bench.tenant.tenant_id, aggregate="one"), spec, again=True) == 2
    await bench.hears_in_any_order(*"aabb", "elsewhere")
    assert bench.heard[-2:] == ["a", "b"]
    await late.stop()
    await other.stop()


async def test_the_lag_is_what_has_not_been_handled(bench: Bench) -> None:
    subscriber = bench.subscriber()
    before = await lag(bench.broker, subscriber._service, TYPE)
    await bench.publish("a", "b")
    await bench.publisher.relay_batch()
    behind = await lag(bench.broker, subscriber._service, TYPE)
    assert behind.events >= before.events + 2 or behind.events == events._COUNT_UP_TO
    assert behind.seconds > 0
    subscriber.start()
    await bench.hears("a", "b")

    async def caught_up() -> bool:
        return await lag(bench.broker, subscriber._service, TYPE) == Lag(0, 0.0)

    await bench.until(caught_up)
    await subscriber.stop()
    assert await lag(bench.broker, subscriber._service, "nexus.test.NeverSent") == Lag(0, 0.0)


async def test_the_lag_is_a_metric(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LAG_SECONDS", 0.05)
    away = True

    def handle(name: str) -> None:
        if away:
            raise DependencyUnavailable()

    subscriber = bench.subscriber(handle)
    labels = {"service": subscriber._service, "type": TYPE}

    def measured(name: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    async def is_behind() -> bool:
        return measured("nexus_events_lag") >= 2 and measured("nexus_events_lag_seconds") > 0

    async def has_caught_up() -> bool:
        return measured("nexus_events_lag") == measured("nexus_events_lag_seconds") == 0

    await bench.publish("a", "b")
    await bench.publisher.relay_batch()
    subscriber.start()
    await bench.until(is_behind)
    away = False
    await bench.hears("a", "b")
    await bench.until(has_caught_up)
    await subscriber.stop()


async def test_the_platform_tells_its_lag_to_prometheus(bench: Bench) -> None:
    port = next(process.ports["metrics"] for process in state(bench.platform).processes if process.name == "finance")
    async with httpx.AsyncClient() as client:

        async def is_told() -> bool:
            told = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
            lag = 'nexus_events_lag{service="billing-service",type="nexus.identity.user_auth.v1.UserCreated"}'
            return lag in told and 'nexus_events_unsent{service="billing-service"}' in told

        await bench.until(is_told)


async def test_events_of_an_erased_tenant_are_passed_over(bench: Bench) -> None:
    there = replace(bench, tenant=await bench.platform.new_tenant())
    await bench.publish("too late")
    await there.publish("in time")
    await change(
        bench.platform,
        "UPDATE nexus.tenants SET state = 'erased', erase_time = now() WHERE tenant_id = $1",
        bench.tenant.tenant_id,
    )
    subscriber = Events(f"test-{new_id()}", bench.hearing, bench.broker)

    async def handle(message: Event, envelope: Event) -> None:
        if envelope.tenant_id in (bench.tenant.tenant_id, there.tenant.tenant_id):
            bench.heard.append(message.event_id)

    subscriber.subscribe(TYPE, handle)
    subscriber.start()
    await bench.publisher.relay_batch()
    await bench.hears("in time")  # one stream: what came before has been passed over
    await subscriber.stop()
    handled = "SELECT count(*) FROM session_mgr.handled_events WHERE tenant_id = $1"
    assert await value(bench.platform, handled, bench.tenant.tenant_id) == 0
