"""Migrations are applied once, whole, in order, whoever starts them; and what has been applied stays as it was."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr

from services.chassis.config import Settings
from services.chassis.ids import new_id
from services.chassis.migrations import MigrationError, migrate
from services.chassis.spec import ServiceSpec
from tests.platforms import Platform


@pytest.fixture
async def notes(platform: Platform, tmp_path: Path) -> AsyncIterator[ServiceSpec]:
    """A service with one migration. Roles belong to the whole server, so its name is the test's own."""
    name = f"notes_{new_id().replace('-', '')}"
    spec = ServiceSpec(id=name.replace("_", "-"), port=1)
    object.__setattr__(spec, "module", f"services.scratch.{name}")
    vars(spec)["folder"] = tmp_path
    write(spec, "0001_notes", "CREATE TABLE notes (tenant_id text, note text); SELECT guard_tenant_rows('notes');")
    yield spec
    admin = await platform.admin()
    await admin.execute(f"DROP ROLE IF EXISTS {spec.role}; DROP ROLE IF EXISTS {spec.role}_platform")
    await admin.close()


@pytest.fixture
async def scratch(platform: Platform, notes: ServiceSpec) -> AsyncIterator[Settings]:
    """Settings with an empty database of the test's own, on the platform's server. Gone before its roles are."""
    name = f"scratch_{new_id().replace('-', '')}"
    admin = await platform.admin()
    assert platform.settings.database_url is not None
    url = platform.settings.database_url.get_secret_value().replace("/nexus?", f"/{name}?")
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        yield platform.settings.model_copy(update={"database_url": SecretStr(url)})
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


def write(spec: ServiceSpec, name: str, sql: str) -> None:
    folder = spec.folder / "migrations"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.sql").write_text(sql)


async def fetch(settings: Settings, query: str) -> list[asyncpg.Record]:
    assert settings.database_url is not None
    connection = await asyncpg.connect(settings.database_url.get_secret_value())
    try:
        found: list[asyncpg.Record] = await connection.fetch(query)
        return found
    finally:
        await connection.close()


async def columns(settings: Settings, spec: ServiceSpec) -> list[str]:
    rows = await fetch(
        settings,
        "SELECT column_name FROM information_schema.columns "
        f"WHERE table_schema = '{spec.schema}' AND table_name = 'notes' ORDER BY ordinal_position",
    )
    return [row["column_name"] for row in rows]


async def test_an_empty_database_gets_everything_once(scratch: Settings, notes: ServiceSpec) -> None:
    applied = await migrate(scratch, [notes])
    expected = {"nexus/0001_platform", f"{notes.schema}/chassis/0001_idempotency", f"{notes.schema}/0001_notes"}
    assert expected <= set(applied)
    assert await migrate(scratch, [notes]) == []
    assert await columns(scratch, notes) == ["tenant_id", "note"]


async def test_a_new_file_is_applied_to_what_is_there(scratch: Settings, notes: ServiceSpec) -> None:
    await migrate(scratch, [notes])
    await fetch(scratch, f"INSERT INTO {notes.schema}.notes (tenant_id, note) VALUES ('acme', 'kept')")
    write(notes, "0002_author", "ALTER TABLE notes ADD COLUMN author text")
    assert await migrate(scratch, [notes]) == [f"{notes.schema}/0002_author"]
    assert [row["note"] for row in await fetch(scratch, f"SELECT note FROM {notes.schema}.notes")] == ["kept"]


async def test_files_are_applied_in_the_order_of_their_numbers(scratch: Settings, notes: ServiceSpec) -> None:
    for number in (3, 10, 2):
        write(notes, f"{number:04}_c", f"ALTER TABLE notes ADD COLUMN c{number} text")
    await migrate(scratch, [notes])
    assert await columns(scratch, notes) == ["tenant_id", "note", "c2", "c3", "c10"]


async def test_an_applied_file_that_changed_is_refused_and_nothing_is_done(
    scratch: Settings, notes: ServiceSpec
) -> None:
    await migrate(scratch, [notes])
    write(notes, "0001_notes", "CREATE TABLE other (x int)")
    write(notes, "0002_author", "ALTER TABLE notes ADD COLUMN author text")
    with pytest.raises(MigrationError, match=f"{notes.schema}/0001_notes has been applied and must not change"):
        await migrate(scratch, [notes])
    assert await columns(scratch, notes) == ["tenant_id", "note"]


async def test_a_file_that_fails_leaves_nothing_of_its_service(scratch: Settings, notes: ServiceSpec) -> None:
    await migrate(scratch, [notes])
    write(notes, "0002_author", "ALTER TABLE notes ADD COLUMN author text")
    write(notes, "0003_broken", "ALTER TABLE notes ADD COLUMN editor text; SELECT no_such_function()")
    with pytest.raises(MigrationError, match=rf"{notes.schema}/0003_broken: .*no_such_function"):
        await migrate(scratch, [notes])
    assert await columns(scratch, notes) == ["tenant_id", "note"]
    write(notes, "0003_broken", "ALTER TABLE notes ADD COLUMN editor text")
    assert await migrate(scratch, [notes]) == [f"{notes.schema}/0002_author", f"{notes.schema}/0003_broken"]


async def test_a_first_migration_that_fails_can_be_mended(scratch: Settings, notes: ServiceSpec) -> None:
    write(notes, "0002_broken", "SELECT 1 / 0")
    with pytest.raises(MigrationError, match="division by zero"):
        await migrate(scratch, [notes])
    write(notes, "0002_broken", "SELECT 1")
    await migrate(scratch, [notes])
    assert await columns(scratch, notes) == ["tenant_id", "note"]


async def test_migrators_that_start_at_once_do_the_work_once(scratch: Settings, notes: ServiceSpec) -> None:
    write(notes, "0002_slow", "SELECT pg_sleep(0.1); INSERT INTO notes (tenant_id, note) VALUES ('acme', 'once')")
    reports = await asyncio.gather(*(migrate(scratch, [notes]) for _ in range(4)))
    assert sorted(map(bool, reports)) == [False, False, False, True]
    assert len(await fetch(scratch, f"SELECT FROM {notes.schema}.notes")) == 1


async def test_the_tables_of_a_new_service_are_its_roles_to_use(scratch: Settings, notes: ServiceSpec) -> None:
    await migrate(scratch, [notes])
    rights = "SELECT, INSERT, UPDATE, DELETE"
    (row,) = await fetch(
        scratch,
        f"SELECT has_table_privilege('{notes.role}', '{notes.schema}.notes', '{rights}') AS one_tenant, "
        f"has_table_privilege('{notes.role}_platform', '{notes.schema}.notes', '{rights}') AS all_tenants",
    )
    assert row["one_tenant"]
    assert row["all_tenants"]
