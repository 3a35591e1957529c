"""The SQL of key-service."""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from services.chassis.database import Database
from services.chassis.ids import new_id
from services.platform.key_service.lifecycle import Key, State
from services.platform.key_service.material import Algorithm, Label
from services.platform.key_service.roots import Wrapped

_KEY = """k.tenant_id, k.key_id, k.owner, k.name, k.subject, k.algorithm, k.state, k.primary_version,
    k.minimum_version, k.rotation_period, k.next_rotation_time, k.create_time, k.destroy_time"""
_VERSION = f"{_KEY}, v.version, v.root, v.wrapped, v.public_key, v.create_time AS version_time"
_BATCH = 20


@dataclass(frozen=True)
class Version:
    """One version of a key, with its key."""

    key: Key
    version: int
    wrapped: Wrapped | None
    """None once destroyed."""
    public: bytes | None
    create_time: datetime


@dataclass(frozen=True)
class Use:
    """Who uses a key, and how."""

    use_id: str
    operation: str
    caller: str
    user_id: str
    request_id: str
    context: Mapping[str, str]


class KeyStore:
    """The keys of the call's tenant; in a platform-wide transaction, of all."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(
        self,
        key_id: str,
        owner: str,
        name: str,
        subject: str,
        algorithm: Algorithm,
        rotation_period: timedelta | None,
    ) -> Key | None:
        """None if there is a key of this name."""
        row = await self._database.fetchrow(
            f"""
            INSERT INTO keys AS k (key_id, owner, name, subject, algorithm, rotation_period, next_rotation_time)
            VALUES ($1, $2, $3, $4, $5, $6, now() + $6)
            ON CONFLICT (tenant_id, owner, name, subject) WHERE state <> 'destroyed' DO NOTHING
            RETURNING {_KEY}
            """,
            key_id,
            owner,
            name,
            subject,
            algorithm,
            rotation_period,
        )
        return _key(row) if row is not None else None

    async def insert_version(self, key: Key, version: int, wrapped: Wrapped, public: bytes | None) -> None:
        await self._database.execute(
            "INSERT INTO key_versions (tenant_id, key_id, version, root, wrapped, public_key) "
            "VALUES ($1, $2, $3, $4, $5, $6)",
            key.tenant_id,
            key.key_id,
            version,
            wrapped.root,
            wrapped.data,
            public,
        )

    async def by_id(self, key_id: str) -> Key | None:
        row = await self._database.fetchrow(f"SELECT {_KEY} FROM keys k WHERE key_id = $1", key_id)
        return _key(row) if row is not None else None

    async def locked(self, key_id: str) -> Key | None:
        """Nobody else changes or uses the key until the transaction ends."""
        row = await self._database.fetchrow(f"SELECT {_KEY} FROM keys k WHERE key_id = $1 FOR UPDATE", key_id)
        return _key(row) if row is not None else None

    async def named(self, owner: str, name: str, subject: str) -> Key | None:
        """The key that has the name, or the last one that had it."""
        row = await self._database.fetchrow(
            f"""
            SELECT {_KEY} FROM keys k
            WHERE tenant_id = nexus.tenant_id() AND owner = $1 AND name = $2 AND subject = $3
            ORDER BY (state <> 'destroyed') DESC, key_id DESC LIMIT 1
            """,
            owner,
            name,
            subject,
        )
        return _key(row) if row is not None else None

    async def page(self, before: str, limit: int) -> list[Key]:
        """Keys of no subject, the latest first, those made before the key `before`."""
        rows = await self._database.fetch(
            f"""
            SELECT {_KEY} FROM keys k
            WHERE tenant_id = nexus.tenant_id() AND subject = '' AND ($1::uuid IS NULL OR key_id < $1)
            ORDER BY key_id DESC LIMIT $2
            """,
            before or None,
            limit,
        )
        return [_key(row) for row in rows]

    async def version(self, key_id: str, version: int | None = None) -> Version | None:
        """A version of a key; the primary one unless named."""
        row = await self._database.fetchrow(
            f"""
            SELECT {_VERSION} FROM keys k
            JOIN key_versions v USING (tenant_id, key_id)
            WHERE key_id = $1 AND v.version = coalesce($2, k.primary_version)
            """,
            key_id,
            version,
        )
        return _version(row) if row is not None else None

    async def versions(self, named: Set[tuple[str, int]]) -> dict[tuple[str, int], Version]:
        """Those that there are, by key id and version."""
        rows = await self._database.fetch(
            f"""
            SELECT {_VERSION} FROM unnest($1::uuid[], $2::int[]) AS named (key_id, version)
            JOIN keys k USING (key_id)
            JOIN key_versions v ON v.tenant_id = k.tenant_id AND v.key_id = k.key_id AND v.version = named.version
            """,
            *map(list, zip(*named, strict=True) if named else ((), ())),
        )
        found = map(_version, rows)
        return {(version.key.key_id, version.version): version for version in found}

    async def primary_named(self, owner: str, name: str, subject: str) -> Version | None:
        row = await self._database.fetchrow(
            f"""
            SELECT {_VERSION} FROM keys k
            JOIN key_versions v ON v.tenant_id = k.tenant_id AND v.key_id = k.key_id AND v.version = k.primary_version
            WHERE k.tenant_id = nexus.tenant_id() AND owner = $1 AND name = $2 AND subject = $3
              AND state <> 'destroyed'
            """,
            owner,
            name,
            subject,
        )
        return _version(row) if row is not None else None

    async def living_versions(self, key_id: str) -> list[Version]:
        """Those that may open and verify, the newest first."""
        rows = await self._database.fetch(
            f"""
            SELECT {_VERSION} FROM keys k
            JOIN key_versions v USING (tenant_id, key_id)
            WHERE key_id = $1 AND v.version >= k.minimum_version ORDER BY v.version DESC
            """,
            key_id,
        )
        return [_version(row) for row in rows]

    async def add_primary(self, key: Key, version: int) -> Key:
        """A version that has been inserted is the one that seals from now on."""
        return await self._change(key, "primary_version = $3, next_rotation_time = now() + rotation_period", version)

    async def set_rotation_period(self, key: Key, period: timedelta | None) -> Key:
        return await self._change(key, "rotation_period = $3, next_rotation_time = now() + $3::interval", period)

    async def set_minimum_version(self, key: Key, version: int) -> Key:
        return await self._change(key, "minimum_version = $3", version)

    async def set_state(self, key: Key, state: State, destroys: datetime | None = None) -> Key:
        return await self._change(key, "state = $3, destroy_time = $4", state, destroys)

    async def _change(self, key: Key, assignments: str, *values: object) -> Key:
        row = await self._database.fetchrow(
            f"UPDATE keys k SET {assignments} WHERE tenant_id = $1 AND key_id = $2 RETURNING {_KEY}",
            key.tenant_id,
            key.key_id,
            *values,
        )
        assert row is not None, "the key is locked, so it exists"
        return _key(row)

    async def count_ciphertexts(self, key: Key, below: int) -> int:
        """Those that would not open any more with this minimum version, and do now."""
        count: int = await self._database.fetchval(
            "SELECT count(*) FROM ciphertexts WHERE key_id = $1 AND version >= $2 AND version < $3",
            key.key_id,
            key.minimum_version,
            below,
        )
        return count

    async def record(
        self,
        key: Key,
        version: int,
        use: Use,
        *,
        succeeded: bool = True,
        made: Label | None = None,
        replaced: Label | None = None,
    ) -> bool:
        """Record a use, the ciphertext it made and the one that this replaces; says whether the key may still
        be used so.

        The key's row is held against changes while this is written: what is handed out afterwards was allowed at
        that moment, and a minimum version that is raised counts every ciphertext handed out before.
        """
        recorded = await self._database.execute(
            """
            WITH usable AS (
                SELECT key_id FROM keys WHERE key_id = $1 AND state = 'enabled' AND minimum_version <= $2 FOR SHARE
            ), made AS (
                INSERT INTO ciphertexts (key_id, version, nonce)
                SELECT key_id, $2, $10 FROM usable WHERE $10::bytea IS NOT NULL
            ), replaced AS (
                DELETE FROM ciphertexts
                WHERE key_id = (SELECT key_id FROM usable) AND version = $11 AND nonce = $12
            )
            INSERT INTO key_uses (key_id, version, use_id, operation, caller, user_id, request_id, context, succeeded)
            SELECT key_id, $2, $3, $4, $5, $6, $7, $8, $9 FROM usable
            """,
            key.key_id,
            version,
            use.use_id,
            use.operation,
            use.caller,
            use.user_id,
            use.request_id,
            json.dumps(dict(use.context)),
            succeeded,
            made.nonce if made else None,
            replaced.version if replaced else None,
            replaced.nonce if replaced else None,
        )
        return recorded == 1

    async def record_all(self, versions: Sequence[Version], use: Use) -> set[str]:
        """Record a use of each; returns the ids of the keys that may be used so. See `record`."""
        rows = await self._database.fetch(
            """
            WITH usable AS (
                SELECT key_id, used.version, used.use_id
                FROM unnest($1::uuid[], $2::int[], $3::uuid[]) AS used (key_id, version, use_id)
                JOIN keys k USING (key_id)
                WHERE state = 'enabled' AND minimum_version <= used.version FOR SHARE OF k
            )
            INSERT INTO key_uses (key_id, version, use_id, operation, caller, user_id, request_id, context, succeeded)
            SELECT key_id, version, use_id, $4, $5, $6, $7, $8, true FROM usable
            RETURNING key_id
            """,
            [version.key.key_id for version in versions],
            [version.version for version in versions],
            [new_id() for _ in versions],
            use.operation,
            use.caller,
            use.user_id,
            use.request_id,
            json.dumps(dict(use.context)),
        )
        return {row["key_id"] for row in rows}

    async def uses(self, key_id: str, before: str, limit: int) -> list[asyncpg.Record]:
        """The latest first, those before the use `before`."""
        return await self._database.fetch(
            """
            SELECT use_id, version, operation, caller, user_id, request_id, context, succeeded, create_time
            FROM key_uses
            WHERE tenant_id = nexus.tenant_id() AND key_id = $1 AND ($2::uuid IS NULL OR use_id < $2)
            ORDER BY use_id DESC LIMIT $3
            """,
            key_id,
            before or None,
            limit,
        )

    async def subject_is_shredded(self, subject: str) -> bool:
        """Enters a subject; nobody shreds it until the transaction ends."""
        await self._database.execute("INSERT INTO subjects (subject) VALUES ($1) ON CONFLICT DO NOTHING", subject)
        return bool(
            await self._database.fetchval(
                "SELECT shred_time IS NOT NULL FROM subjects "
                "WHERE tenant_id = nexus.tenant_id() AND subject = $1 FOR SHARE",
                subject,
            )
        )

    async def shred_subject(self, subject: str) -> list[Key]:
        """The subject gets no key any more; returns those it has."""
        await self._database.execute(
            """
            INSERT INTO subjects AS s (subject, shred_time) VALUES ($1, now())
            ON CONFLICT (tenant_id, subject) DO UPDATE SET shred_time = coalesce(s.shred_time, now())
            """,
            subject,
        )
        rows = await self._database.fetch(
            f"""
            SELECT {_KEY} FROM keys k
            WHERE tenant_id = nexus.tenant_id() AND subject = $1 AND state <> 'destroyed' FOR UPDATE
            """,
            subject,
        )
        return [_key(row) for row in rows]

    async def destroy(self, key: Key) -> Key:
        """Take the material away, in all versions."""
        for change in ("UPDATE key_versions SET wrapped = NULL", "DELETE FROM ciphertexts"):
            await self._database.execute(f"{change} WHERE tenant_id = $1 AND key_id = $2", key.tenant_id, key.key_id)
        return await self._change(key, "state = 'destroyed', destroy_time = now(), next_rotation_time = NULL")

    async def due_for_rotation(self) -> list[Key]:
        """A batch of all tenants' keys, locked. Those that another replica is rotating are left to it."""
        return await self._due("state = 'enabled' AND next_rotation_time <= now()")

    async def due_for_destruction(self) -> list[Key]:
        return await self._due("state = 'destroying' AND destroy_time <= now()")

    async def _due(self, condition: str) -> list[Key]:
        rows = await self._database.fetch(
            f"SELECT {_KEY} FROM keys k WHERE {condition} LIMIT {_BATCH} FOR UPDATE SKIP LOCKED"
        )
        return [_key(row) for row in rows]

    async def wrapped_otherwise(self, root: str, after: Version | None) -> list[Version]:
        """A batch of all tenants' versions that another root than this wraps, locked, behind this one."""
        rows = await self._database.fetch(
            f"""
            SELECT {_VERSION} FROM keys k JOIN key_versions v USING (tenant_id, key_id)
            WHERE v.root <> $1 AND v.wrapped IS NOT NULL
              AND ($2::text IS NULL OR (tenant_id, key_id, v.version) > ($2, $3::uuid, $4::int))
            ORDER BY tenant_id, key_id, v.version LIMIT {_BATCH} FOR UPDATE OF v SKIP LOCKED
            """,
            root,
            *(after.key.tenant_id, after.key.key_id, after.version) if after else (None, None, None),
        )
        return [_version(row) for row in rows]

    async def count_wrapped(self) -> dict[str, int]:
        """How many versions of all tenants' keys each root wraps."""
        rows = await self._database.fetch(
            "SELECT root, count(*) AS versions FROM key_versions WHERE wrapped IS NOT NULL GROUP BY root ORDER BY root"
        )
        return {row["root"]: row["versions"] for row in rows}

    async def set_wrapped(self, version: Version, wrapped: Wrapped) -> None:
        await self._database.execute(
            "UPDATE key_versions SET root = $4, wrapped = $5 WHERE tenant_id = $1 AND key_id = $2 AND version = $3",
            version.key.tenant_id,
            version.key.key_id,
            version.version,
            wrapped.root,
            wrapped.data,
        )

    async def forget_uses(self, keep: timedelta) -> None:
        async with self._database.transaction(platform_wide=True):
            await self._database.execute("DELETE FROM key_uses WHERE create_time < now() - $1::interval", keep)


def _key(row: asyncpg.Record) -> Key:
    return Key(
        tenant_id=row["tenant_id"],
        key_id=row["key_id"],
        owner=row["owner"],
        name=row["name"],
        subject=row["subject"],
        algorithm=Algorithm(row["algorithm"]),
        state=State(row["state"]),
        primary_version=row["primary_version"],
        minimum_version=row["minimum_version"],
        rotation_period=row["rotation_period"],
        next_rotation_time=row["next_rotation_time"],
        create_time=row["create_time"],
        destroy_time=row["destroy_time"],
    )


def _version(row: asyncpg.Record) -> Version:
    return Version(
        key=_key(row),
        version=row["version"],
        wrapped=Wrapped(row["root"], row["wrapped"]) if row["wrapped"] is not None else None,
        public=row["public_key"],
        create_time=row["version_time"],
    )
