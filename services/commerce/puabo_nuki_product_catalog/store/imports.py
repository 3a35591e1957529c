"""The SQL of imports: files, how far they are, and which rows were not imported."""

from dataclasses import asdict

from nexus.commerce.puabo_nuki_product_catalog.v1.faults import ImportNotFound
from services.chassis.clock import now
from services.chassis.database import Database
from services.chassis.table import Row, Table
from services.commerce.puabo_nuki_product_catalog.rows import Outcome

_LEASE = "clock_timestamp() + interval '10 seconds'"
"""How long a worker that says nothing is waited for."""


class ImportStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self.imports = Table(database, "imports", key="import_id", missing=ImportNotFound)
        self.errors = Table(database, "import_errors", key="row_number", order="row_number")
        self.chunks = Table(database, "import_chunks", key="position", columns="position")

    async def file(self, import_id: str) -> bytes:
        rows = await self._database.fetch(
            "SELECT data FROM import_chunks WHERE import_id = $1 ORDER BY position", import_id
        )
        return b"".join(row["data"] for row in rows)

    async def finish(self, import_id: str, state: str) -> Row:
        """The file is not needed any more."""
        await self.chunks.delete(import_id=import_id)
        return await self.imports.change(import_id, state=state, finish_time=now())

    async def take(self, worker: str) -> Row | None:
        """A running import, of any tenant, that nobody works on; for this worker, while it says that it goes on."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.fetchrow(
                f"""
                UPDATE imports SET worker = $1, lease_time = {_LEASE} WHERE import_id = (
                    SELECT import_id FROM imports WHERE state = 'running' AND lease_time < (SELECT clock_timestamp())
                    ORDER BY create_time LIMIT 1 FOR UPDATE SKIP LOCKED)
                RETURNING *
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
        await self.errors.insert_all({"import_id": import_id, **asdict(error)} for error in outcome.errors)
        return advanced == 1
