"""`nexus events`: what services have told each other, whether it was heard, and having it heard again."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nexus.type.v1.event_pb2 import Event
    from services.chassis.event_log import Chain, EventLog, Letter
    from services.chassis.spec import ServiceSpec

events = typer.Typer(no_args_is_help=True, help="Look into the events of all services, and have them heard again.")

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

EventId = Annotated[str, typer.Argument(metavar="EVENT", help="The event's id.")]
OfTenant = Annotated[str, typer.Option("--tenant", "-t", help="Only this tenant's.")]
OfType = Annotated[str, typer.Option("--type", help="Only this type: UserCreated, or its full name.")]
OfAggregate = Annotated[str, typer.Option("--aggregate", help="Only what happened to this: a user's id.")]
OfService = Annotated[str, typer.Option("--service", help="Only those that this service published.")]
Since = Annotated[str, typer.Option(help="Only from then on: 90s, 15m, 2h, 7d, or a time: 2026-06-01T12:00:00Z.")]
Until = Annotated[str, typer.Option(help="Only before then.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@events.command("list")
def events_list(
    tenant: OfTenant = "",
    event_type: OfType = "",
    aggregate: OfAggregate = "",
    service: OfService = "",
    since: Since = "",
    until: Until = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many of the latest.")] = 50,
    before: Annotated[str | None, typer.Option(help="The page before this event, the last of another page.")] = None,
    as_json: AsJson = False,
) -> None:
    """List events, the latest first.

    Example: nexus events list -t acme --type UserCreated --since 2h
    """
    from services.chassis.event_log import Wanted

    wanted = Wanted(tenant, event_type, aggregate, _service(service), _moment(since), _moment(until))
    last = _event_id(before) if before else None
    found = _run(lambda log: log.page(wanted, last, limit))
    if as_json:
        _print_json([_fields(event) for event in found])
        return
    titles = ("event", "time", "tenant", "position", "service", "type", "aggregate", "by")
    _table(
        titles,
        [
            (
                event.event_id,
                _clock(event.create_time.ToDatetime()),
                event.tenant_id,
                str(event.position or "unsent"),
                event.source,
                event.type.rpartition(".")[2],
                event.aggregate,
                event.actor,
            )
            for event in found
        ],
    )
    if len(found) == limit:
        print(f"The page before: --before {found[-1].event_id}")


@events.command("show")
def events_show(event_id: EventId) -> None:
    """Show one event with what it says, its place in the chain, and who has put it aside.

    Example: nexus events show 0197c1d2-…  | jq .payload
    """
    wanted = _event_id(event_id)

    async def read(log: "EventLog") -> Any:
        return await log.event(wanted), await log.letters(event_id=wanted)

    found, letters = _run(read)
    if found is None:
        raise _problem(f"There is no event {event_id}.")
    event, digest = found
    _print_json({**_fields(event), "hash": digest, "dead_letters": [_letter_fields(letter) for letter in letters]})


@events.command("dead-letters")
def events_dead_letters(
    subscriber: Annotated[str, typer.Option("--service", help="Only those that this service has put aside.")] = "",
    tenant: OfTenant = "",
    as_json: AsJson = False,
) -> None:
    """List the events whose handling failed every time. `nexus events replay` has one tried again.

    Example: nexus events dead-letters --service inventory-mgr
    """
    service = _service(subscriber)
    letters: list[Letter] = _run(lambda log: log.letters(service, tenant))
    if as_json:
        _print_json([{**_fields(letter.event), **_letter_fields(letter)} for letter in letters])
        return
    titles = ("event", "put aside", "by", "tenant", "type", "aggregate", "attempts", "error")
    _table(
        titles,
        [
            (
                letter.event.event_id,
                _clock(letter.create_time),
                letter.subscriber,
                letter.event.tenant_id,
                letter.event.type.rpartition(".")[2],
                letter.event.aggregate,
                str(letter.attempts),
                letter.error,
            )
            for letter in letters
        ],
    )


@events.command("replay")
def events_replay(
    event_id: Annotated[str | None, typer.Argument(metavar="[EVENT]", help="A dead letter.")] = None,
    to: Annotated[str, typer.Option(help="The subscriber that is to hear them.")] = "",
    tenant: OfTenant = "",
    event_type: OfType = "",
    aggregate: OfAggregate = "",
    service: OfService = "",
    since: Since = "",
    until: Until = "",
    again: Annotated[bool, typer.Option(help="Also those that it has handled.")] = False,
) -> None:
    """Have one subscriber try a dead letter again, or hear events of the past.

    What it has handled it leaves out, unless --again.

    Example: nexus events replay 0197c1d2-…
    Example: nexus events replay --to inventory-mgr --type OrderPlaced --since 2h
    """
    if event_id is not None:
        _replay_letter(_event_id(event_id), _service(to))
        return
    from services.chassis.event_log import Wanted

    if not to:
        raise _problem("Say which dead letter, or who is to hear them: --to inventory-mgr.")
    spec = _spec(to)
    if not spec.subscribes:
        raise _problem(f"{to} subscribes to nothing.")
    wanted = Wanted(tenant, event_type, aggregate, _service(service), _moment(since), _moment(until))
    count = _run(lambda log: log.replay(wanted, spec, again=again))
    print(f"Sent {count} to {to}.")


def _replay_letter(event_id: str, subscriber: str) -> None:
    async def replay(log: "EventLog") -> Any:
        letters = await log.letters(subscriber, event_id=event_id)
        for letter in letters:
            await log.replay_letter(letter)
        return letters

    letters = _run(replay)
    if not letters:
        raise _problem(f"Nobody has put the event {event_id} aside.")
    print(f"Sent to {', '.join(letter.subscriber for letter in letters)}.")


@events.command("verify")
def events_verify(tenant: OfTenant = "", service: OfService = "", as_json: AsJson = False) -> None:
    """Check that no event was changed or taken away: each tenant's chain of hashes. Exit code 1 when one is broken.

    The end of a chain proves nothing: events that were taken from there, the last ones, are not missed. Keep the
    last hash elsewhere (`nexus events show`) to see that too.

    Example: nexus events verify -t acme
    """
    source = _service(service)

    async def check(log: "EventLog") -> "list[Chain]":
        return [chain async for chain in log.verify(tenant, source)]

    chains = _run(check)
    broken = [chain for chain in chains if chain.broken_at is not None]
    if as_json:
        _print_json([vars(chain) for chain in chains])
    else:
        for chain in broken:
            place = f"at position {chain.broken_at}, event {chain.event_id}"
            print(f"broken: {chain.service}, tenant {chain.tenant_id}, {place}")
        print(f"{sum(chain.events for chain in chains)} events in {len(chains)} chains, {len(broken)} broken.")
    if broken:
        raise typer.Exit(1)


@events.command("lag")
def events_lag(as_json: AsJson = False) -> None:
    """Show how far each subscriber is behind, and what has not been sent yet.

    Example: nexus events lag --json | jq '.[] | select(.events > 0)'
    """

    async def read(log: "EventLog") -> Any:
        return await log.lags(), await log.unsent()

    lags, unsent = _run(read)
    rows = [(subscriber, event_type, lag.events, round(lag.seconds, 1)) for subscriber, event_type, lag in lags]
    if as_json:
        names = ("subscriber", "type", "events", "seconds")
        _print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    _table(("subscriber", "type", "behind", "oldest (s)"), [tuple(map(str, row)) for row in rows])
    for service, count in unsent.items():
        print(f"{service} has {count} events that are not sent yet.")


def _run(work: "Callable[[EventLog], Awaitable[Any]]") -> Any:
    """Do this with the databases that are set, or those of the platform that runs here."""
    import asyncpg
    import redis.exceptions

    try:
        return asyncio.run(_with_log(work))
    except (OSError, asyncpg.PostgresError, redis.exceptions.RedisError) as error:
        raise _problem(f"The events cannot be read: {error}. Is the platform up?") from error


async def _with_log(work: "Callable[[EventLog], Awaitable[Any]]") -> Any:
    import asyncpg
    import redis.asyncio

    from mesh.local.embedded import Postgres, Redis  # not mesh.local.platform, which takes seconds to import
    from services.chassis.config import load_settings
    from services.chassis.event_log import EventLog
    from services.chassis.spec import discover

    settings = load_settings(service_ids=discover())
    database, queue = settings.database_url, settings.redis_url
    admin = await asyncpg.connect(database.get_secret_value() if database else Postgres(settings).url)
    broker = redis.asyncio.Redis.from_url(queue.get_secret_value() if queue else Redis(settings).url)
    try:
        return await work(EventLog(admin, broker, list(discover().values())))
    finally:
        await broker.aclose()
        await admin.close()


def _fields(event: "Event") -> dict[str, Any]:
    """The envelope, with what the event says in place of its bytes."""
    from google.protobuf.json_format import MessageToDict

    from services.chassis.events import message_class

    fields: dict[str, Any] = MessageToDict(event, preserving_proto_field_name=True)
    try:
        message = message_class(event.type).FromString(event.payload)
    except (ImportError, AttributeError):  # of a contract that is not here: its bytes, in base64
        return fields
    return {**fields, "payload": MessageToDict(message, preserving_proto_field_name=True)}


def _letter_fields(letter: "Letter") -> dict[str, Any]:
    return {
        "subscriber": letter.subscriber,
        "error": letter.error,
        "attempts": letter.attempts,
        "put_aside_time": letter.create_time.isoformat(),
    }


def _moment(text: str) -> datetime | None:
    """What --since and --until say: a time, or how long ago."""
    from services.chassis.clock import now

    if not text:
        return None
    if found := re.fullmatch(r"(\d{1,6})([smhd])", text):
        return now() - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _problem(f"{text} is no time: 15m, 2h, 7d or 2026-06-01T12:00:00Z.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _service(name: str) -> str:
    return _spec(name).id if name else ""


def _spec(name: str) -> "ServiceSpec":
    from services.chassis.spec import discover

    if name not in discover():
        raise _problem(f"There is no service {name}.")
    return discover()[name]


def _event_id(text: str) -> str:
    import uuid

    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise _problem(f"{text} is no event's id.") from None


def _problem(message: str) -> Exception:
    from mesh.local.supervisor import PlatformError

    return PlatformError(message)


def _clock(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
