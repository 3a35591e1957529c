"""Migrations: numbered SQL files, applied once each, in order, in one transaction a service.

    services/chassis/migrations/platform/   the shared schema `nexus`
    services/chassis/migrations/service/    tables that the chassis keeps in every service's schema
    services/<domain>/<service>/migrations/ the service's own

A file that has been applied must not change; write the next one instead.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from services.chassis.config import Settings
from services.chassis.database import role_password
from services.chassis.spec import ServiceSpec

_OURS = Path(__file__).parent / "migrations"
_LOCK = 7_218_350_115  # any number: the same for all who migrate this database

logger = logging.getLogger(__name__)


class MigrationError(Exception):
    """The database and the migration files do not agree. The message says where."""


@dataclass(frozen=True)
class Migration:
    owner: str
    """The schema it belongs to: "nexus" or a service's."""
    name: str
    sql: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"


def migrations_of(spec: ServiceSpec) -> list[Migration]:
    own = _read(spec.folder / "migrations", spec.schema)
    return [*_read(_OURS / "service", spec.schema, prefix="chassis/"), *own]


def _read(folder: Path, owner: str, prefix: str = "") -> list[Migration]:
    return [Migration(owner, prefix + path.stem, path.read_text()) for path in sorted(folder.glob("*.sql"))]


async def migrate(settings: Settings, specs: Sequence[ServiceSpec]) -> list[str]:
    """Bring the schemas of these services up to date; returns what was applied.

    Needs a database user who may create roles and schemas. Safe to run from several places at once.
    """
    assert settings.database_url is not None, "NEXUS_DATABASE_URL is not set"
    connection = await asyncpg.connect(settings.database_url.get_secret_value())
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        applied = await _applied(connection)
        pending = {
            "nexus": _pending(_read(_OURS / "platform", "nexus"), applied),
            **{spec.schema: _pending(migrations_of(spec), applied) for spec in specs},
        }
        await _apply(connection, "nexus", pending.pop("nexus"))
        for spec in specs:
            async with connection.transaction():
                if spec.schema not in applied:
                    await _create_service(connection, settings, spec)
                await _apply(connection, spec.schema, pending[spec.schema])
        fresh = await _applied(connection)
        return [
            f"{schema}/{name}"
            for schema, names in fresh.items()
            for name in names
            if name not in applied.get(schema, {})
        ]
    finally:
        await connection.close()


async def _applied(connection: asyncpg.Connection) -> dict[str, dict[str, str]]:
    """Digests of the applied migrations by schema and name."""
    await connection.execute(
        """
        CREATE SCHEMA IF NOT EXISTS nexus;
        GRANT USAGE ON SCHEMA nexus TO PUBLIC;
        CREATE TABLE IF NOT EXISTS nexus.migrations (
            owner text, name text, digest text NOT NULL, apply_time timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (owner, name)
        );
        """
    )
    result: dict[str, dict[str, str]] = {}
    for row in await connection.fetch("SELECT owner, name, digest FROM nexus.migrations ORDER BY owner, name"):
        result.setdefault(row["owner"], {})[row["name"]] = row["digest"]
    return result


def _pending(migrations: Sequence[Migration], applied: dict[str, dict[str, str]]) -> list[Migration]:
    result = []
    for migration in migrations:
        digest = applied.get(migration.owner, {}).get(migration.name)
        if digest is None:
            result.append(migration)
        elif digest != migration.digest:
            raise MigrationError(f"{migration} has been applied and must not change; write a new migration")
    return result


async def _create_service(connection: asyncpg.Connection, settings: Settings, spec: ServiceSpec) -> None:
    """The schema of a service and its roles: one it connects as, one for jobs over all tenants."""
    role, schema = spec.role, spec.schema
    await connection.execute(
        f"""
        DO $$ BEGIN CREATE ROLE {role} LOGIN NOINHERIT; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        DO $$ BEGIN CREATE ROLE {role}_platform; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        GRANT {role}_platform TO {role};
        CREATE SCHEMA IF NOT EXISTS {schema};
        GRANT USAGE ON SCHEMA {schema} TO {role}, {role}_platform;
        ALTER DEFAULT PRIVILEGES IN SCHEMA {schema}
            GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}, {role}_platform;
        ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT USAGE ON SEQUENCES TO {role}, {role}_platform;
        ALTER ROLE {role}_platform SET search_path = {schema}, nexus;
        """
    )
    password = role_password(settings, role)
    if password is not None:
        await connection.execute(f"ALTER ROLE {role} PASSWORD '{password}'")


async def _apply(connection: asyncpg.Connection, schema: str, migrations: Sequence[Migration]) -> None:
    for migration in migrations:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL search_path = {schema}, nexus")
            try:
                await connection.execute(migration.sql)
            except asyncpg.PostgresError as error:
                raise MigrationError(f"{migration}: {error}") from error
            await connection.execute(
                "INSERT INTO nexus.migrations (owner, name, digest) VALUES ($1, $2, $3)",
                migration.owner,
                migration.name,
                migration.digest,
            )
            logger.info("applied %s", migration)
