"""`nexus events`, as an operator types it."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from mesh import cli_events
from nexus.type.v1.event_pb2 import Event
from services.chassis.ids import new_id
from tests.mesh.test_cli_operator import refused
from tests.platforms import Platform, Tenant, eventually

pytestmark = pytest.mark.xdist_group("events")

REQUESTED = "nexus.platform.scheduler.v1.JobRequested"


def read(platform: Platform, *arguments: str) -> Any:
    return json.loads(platform.nexus("events", *arguments).stdout)


@pytest.fixture
async def admin(platform: Platform) -> AsyncIterator[asyncpg.Connection]:
    connection = await platform.admin()
    yield connection
    await connection.close()


async def test_events_are_listed_shown_and_verified(
    platform: Platform, tenant: Tenant, admin: asyncpg.Connection
) -> None:
    for _ in range(3):
        await tenant.provision()
    of = ("-t", tenant.tenant_id)
    listed = read(platform, "list", *of, "--type", "UserCreated", "--since", "1h", "--json")
    assert len(listed) == 3
    assert [event["event_id"] for event in listed] == sorted((event["event_id"] for event in listed), reverse=True)
    latest = listed[0]
    assert latest["source"] == "user-auth"
    assert latest["payload"] == {"user_id": latest["aggregate"]}

    page = platform.nexus("events", "list", *of, "--limit", "2").stdout
    assert page.count(tenant.tenant_id) == 2
    before = page.splitlines()[-1].rpartition(" ")[2]
    assert len(read(platform, "list", *of, "--before", before, "--json")) == 1
    assert read(platform, "list", *of, "--aggregate", latest["aggregate"], "--json")[0] == latest
    assert read(platform, "list", *of, "--until", "1h", "--json") == []

    shown = read(platform, "show", latest["event_id"])
    assert shown["payload"] == latest["payload"]
    assert len(shown["hash"]) == 64
    assert shown["dead_letters"] == []

    assert "3 events in 1 chains, 0 broken." in platform.nexus("events", "verify", *of).stdout
    await admin.execute("BEGIN; ALTER TABLE user_auth.events DISABLE TRIGGER events_are_facts")
    await admin.execute(
        "UPDATE user_auth.events SET aggregate = 'nobody' WHERE tenant_id = $1 AND position = 2", tenant.tenant_id
    )
    await admin.execute("ALTER TABLE user_auth.events ENABLE TRIGGER events_are_facts; COMMIT")
    result = platform.nexus("events", "verify", *of, check=False)
    assert result.returncode == 1
    assert result.stdout.startswith(f"broken: user-auth, tenant {tenant.tenant_id}, at position 2, event ")
    [chain] = json.loads(platform.nexus("events", "verify", *of, "--json", check=False).stdout)
    assert (chain["events"], chain["broken_at"]) == (3, 2)


async def test_dead_letters_are_listed_and_tried_again(
    platform: Platform, tenant: Tenant, admin: asyncpg.Connection
) -> None:
    """The scheduler has put aside an event that it cannot read; once that is mended, it takes it."""
    from nexus.platform.scheduler.v1.events_pb2 import JobRequested

    message = JobRequested()
    message.job.queue = "user-auth.tidy"
    event = Event(
        event_id=new_id(),
        type=REQUESTED,
        tenant_id=tenant.tenant_id,
        aggregate="tidy",
        payload=message.SerializeToString(),
        source="user-auth",
    )
    event.create_time.GetCurrentTime()
    await admin.execute(
        "INSERT INTO scheduler.dead_letters (tenant_id, event_id, type, aggregate, envelope, error, attempts) "
        "VALUES ($1, $2, $3, $4, $5, 'RuntimeError: no', 6)",
        tenant.tenant_id,
        event.event_id,
        event.type,
        event.aggregate,
        event.SerializeToString(),
    )
    of = ("-t", tenant.tenant_id)
    [letter] = read(platform, "dead-letters", *of, "--json")
    assert (letter["subscriber"], letter["attempts"], letter["error"]) == ("scheduler", 6, "RuntimeError: no")
    assert letter["payload"]["job"] == {"queue": "user-auth.tidy"}
    table = platform.nexus("events", "dead-letters", *of, "--service", "scheduler").stdout
    assert "JobRequested" in table

    assert platform.nexus("events", "replay", event.event_id).stdout == "Sent to scheduler.\n"
    eventually(lambda: not read(platform, "dead-letters", *of, "--json"), seconds=60)
    jobs = await admin.fetch("SELECT queue FROM scheduler.jobs WHERE tenant_id = $1", tenant.tenant_id)
    assert [job["queue"] for job in jobs] == ["user-auth.tidy"]


async def test_the_lag_of_every_subscriber_is_shown(platform: Platform) -> None:
    [scheduler] = [row for row in read(platform, "lag", "--json") if row["subscriber"] == "scheduler"]
    assert scheduler["type"] == REQUESTED
    assert {"events", "seconds"} <= scheduler.keys()


async def test_what_makes_no_sense_is_one_line(platform: Platform) -> None:
    assert "no event's id" in refused(platform, "events", "show", "nonsense")
    assert "There is no event" in refused(platform, "events", "show", new_id())
    assert "Nobody has put" in refused(platform, "events", "replay", new_id())
    assert "who is to hear" in refused(platform, "events", "replay")
    assert "subscribes to nothing" in refused(platform, "events", "replay", "--to", "pv-keys")
    assert "no service" in refused(platform, "events", "list", "--service", "nobody")
    assert "is no time" in refused(platform, "events", "list", "--since", "yesterday")


def test_help_shows_every_command_with_an_example(platform: Platform) -> None:
    for each in cli_events.events.registered_commands:
        assert each.callback is not None
        assert f"Example: nexus events {each.name}" in (each.callback.__doc__ or "")
