"""The SQL of imports: files, how far they are, and which rows were not imported."""

from collections.abc import Sequence

import asyncpg

from services.chassis.database import Database
from services.commerce.puabo_nuki_product_catalog.rows import Outcome, RowError

_IMPORT = (
    "import_id::text, name, state, received, row_count, rows_done, created, updated, unchanged, rejected, actor, "
    "create_time, finish_time"
)
_LEASE = "clock_timestamp() + interval '10 seconds'"
"""How long a worker that says nothing is waited for."""


class ImportStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, import_id: str, name: str, actor: str) -> None:
        await self._database.execute(
            "INSERT INTO imports (import_id, name, actor) VALUES ($1, $2, $3)", import_id, name, actor
        )

    async def get(self, import_id: str, *, lock: str = "") -> asyncpg.Record | None:
        return await self._database.fetchrow(f"SELECT {_IMPORT} FROM imports WHERE import_id = $1 {lock}", import_id)

    async def page(self, before: str, size: int) -> list[asyncpg.Record]:
        """The newest first."""
        return await self._database.fetch(
            f"SELECT {_IMPORT} FROM imports WHERE tenant_id = nexus.tenant_id() "
            "AND ($1 = '' OR import_id < nullif($1, '')::uuid) ORDER BY import_id DESC LIMIT $2",
            before,
            size,
        )

    async def append(self, import_id: str, position: int, data: bytes) -> None:
        await self._database.execute(
            "INSERT INTO import_chunks (import_id, position, data) VALUES ($1, $2, $3)", import_id, position, data
        )
        await self._database.execute(
            "UPDATE imports SET received = received + $2 WHERE import_id = $1", import_id, len(data)
        )

    async def file(self, import_id: str) -> bytes:
        rows = await self._database.fetch(
            "SELECT data FROM import_chunks WHERE import_id = $1 ORDER BY position", import_id
        )
        return b"".join(row["data"] for row in rows)

    async def start(self, import_id: str, rows: int) -> None:
        await self._database.execute(
            "UPDATE imports SET state = 'running', row_count = $2 WHERE import_id = $1", import_id, rows
        )

    async def finish(self, import_id: str, state: str) -> None:
        """The file is not needed any more."""
        await self._database.execute(
            "UPDATE imports SET state = $2, finish_time = now() WHERE import_id = $1", import_id, state
        )
        await self._database.execute("DELETE FROM import_chunks WHERE import_id = $1", import_id)

    async def take(self, worker: str) -> asyncpg.Record | None:
        """A running import, of any tenant, that nobody works on; for this worker, while it says that it goes on."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.fetchrow(
                f"""
                UPDATE imports SET worker = $1, lease_time = {_LEASE} WHERE import_id = (
                    SELECT import_id FROM imports WHERE state = 'running' AND lease_time < (SELECT clock_timestamp())
                    ORDER BY create_time LIMIT 1 FOR UPDATE SKIP LOCKED)
                RETURNING tenant_id, {_IMPORT}
                """,
                worker,
            )

    async def advance(self, import_id: str, worker: str, since: int, until: int, outcome: Outcome) -> bool:
        """Rows up to `until` are done with, in the transaction that imports them. False if another worker has it, or
        it was cancelled: then nothing of this may be committed."""
        advanced = await self._database.execute(
            f"""
            UPDATE imports SET rows_done = $4, created = created + $5, updated = updated + $6,
                unchanged = unchanged + $7, rejected = rejected + $8, lease_time = {_LEASE}
            WHERE import_id = $1 AND worker = $2 AND rows_done = $3 AND state = 'running'
            """,
            import_id,
            worker,
            since,
            until,
            outcome.created,
            outcome.updated,
            outcome.unchanged,
            len(outcome.errors),
        )
        await self._database.executemany(
            "INSERT INTO import_errors (import_id, row_number, column_name, value, message) "
            "VALUES ($1, $2, $3, $4, $5)",
            [(import_id, error.row, error.column, error.value, error.message) for error in outcome.errors],
        )
        return bool(advanced)

    async def errors(self, import_id: str, after: int, size: int) -> Sequence[RowError]:
        rows = await self._database.fetch(
            "SELECT row_number, column_name, value, message FROM import_errors "
            "WHERE import_id = $1 AND row_number > $2 ORDER BY row_number LIMIT $3",
            import_id,
            after,
            size,
        )
        return [RowError(row["row_number"], row["column_name"], row["value"], row["message"]) for row in rows]
