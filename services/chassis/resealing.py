"""Sealing anew, under the root key that seals now, what an older one has sealed in a service's rows."""

from services.chassis.database import Database
from services.chassis.sealing import Sealer
from services.chassis.spec import SealedColumn, ServiceSpec

ROUND_SECONDS = 600.0


class Resealing:
    """Sees to the columns that a service's spec names."""

    def __init__(self, spec: ServiceSpec, database: Database, sealer: Sealer) -> None:
        self._columns = spec.sealed_columns
        self._database = database
        self._sealer = sealer

    async def run(self) -> None:
        """Bears running in two replicas at once."""
        if self._sealer.has_former_versions:
            for column in self._columns:
                await self._renew(column)

    async def _renew(self, column: SealedColumn) -> None:
        async with self._database.transaction(platform_wide=True):
            rows = await self._database.fetch(
                f"SELECT tenant_id, {column.key} AS key, {column.name} AS sealed FROM {column.table} "
                f"WHERE {column.name} IS NOT NULL FOR UPDATE"
            )
            for row in rows:
                purpose = column.purpose_of(row["tenant_id"], row["key"])
                renewed = self._sealer.renewed(row["sealed"], purpose)
                if renewed is not None:
                    await self._database.execute(
                        f"UPDATE {column.table} SET {column.name} = $3 WHERE tenant_id = $1 AND {column.key} = $2",
                        row["tenant_id"],
                        row["key"],
                        renewed,
                    )
