"""The SQL of price lists and of what is on record; of the call's tenant."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import asyncpg

from nexus.commerce.puabo_nuki_product_catalog.v1.faults import PriceListTaken
from services.chassis.database import Database
from services.commerce.puabo_nuki_product_catalog.prices import Entry, Period

_LIST = (
    "price_list_id::text, key, name, channel, currency, kind, priority, tax_included, start_time, end_time, create_time"
)
_ON_RECORD = """
SELECT e.entry_id::text, e.sequence, e.price_list_id::text, e.variant_id::text, e.minor_units, l.currency,
       e.min_quantity, e.start_time, e.end_time, e.create_time, e.actor
FROM price_entries e JOIN price_lists l USING (tenant_id, price_list_id)
WHERE tenant_id = nexus.tenant_id()
"""
_LOCK = "SELECT pg_advisory_xact_lock{}(hashtextextended('prices ' || nexus.tenant_id(), 0))"


class PriceStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def lock(self) -> datetime:
        """Be the only one who puts prices on record until the transaction ends, while nobody reads them with
        `steady`; returns the time, from which on they may be in force."""
        await self._database.execute(_LOCK.format(""))
        return await self._now()

    async def steady(self) -> datetime:
        """Until the transaction ends nobody puts prices on record; returns the time.

        What is in force later than this is put on record later, so the prices of this moment are known for good.
        """
        await self._database.execute(_LOCK.format("_shared"))
        return await self._now()

    async def _now(self) -> datetime:
        now: datetime = await self._database.fetchval("SELECT clock_timestamp()")
        return now

    async def insert_list(self, row: Sequence[Any]) -> asyncpg.Record:
        """Id, key, name, channel, currency, kind, priority, tax_included, start and end. Raises PriceListTaken."""
        try:
            inserted = await self._database.fetchrow(
                f"""
                INSERT INTO price_lists (price_list_id, key, name, channel, currency, kind, priority, tax_included,
                                         start_time, end_time)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING {_LIST}
                """,
                *row,
            )
        except asyncpg.UniqueViolationError:
            raise PriceListTaken(price_list=row[1]) from None
        assert inserted is not None
        return inserted

    async def price_list(self, price_list_id: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(f"SELECT {_LIST} FROM price_lists WHERE price_list_id = $1", price_list_id)

    async def lists(self, after: str, size: int) -> list[asyncpg.Record]:
        return await self._database.fetch(
            f"SELECT {_LIST} FROM price_lists WHERE tenant_id = nexus.tenant_id() "
            "AND ($1 = '' OR price_list_id > nullif($1, '')::uuid) ORDER BY price_list_id LIMIT $2",
            after,
            size,
        )

    async def lists_of_keys(self, keys: Collection[str]) -> dict[str, asyncpg.Record]:
        rows = await self._database.fetch(
            f"SELECT {_LIST} FROM price_lists WHERE tenant_id = nexus.tenant_id() AND key = ANY($1)", [*keys]
        )
        return {row["key"]: row for row in rows}

    async def end_list(self, price_list_id: str, end: datetime) -> asyncpg.Record:
        row = await self._database.fetchrow(
            f"UPDATE price_lists SET end_time = $2 WHERE price_list_id = $1 RETURNING {_LIST}", price_list_id, end
        )
        assert row is not None
        return row

    async def insert(self, rows: Sequence[Sequence[Any]]) -> None:
        """Entry id, list, variant, minor units, least quantity, start, end, actor."""
        await self._database.executemany(
            """
            INSERT INTO price_entries (entry_id, price_list_id, variant_id, minor_units, min_quantity, start_time,
                                       end_time, actor)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
            """,
            rows,
        )

    async def history(self, variant_id: str, before: int, size: int) -> list[asyncpg.Record]:
        """What was put on record about a variant, the newest first."""
        return await self._database.fetch(
            f"{_ON_RECORD} AND variant_id = $1 AND sequence < $2 ORDER BY sequence DESC LIMIT $3",
            variant_id,
            before,
            size,
        )

    async def of_ids(self, entry_ids: Collection[str]) -> list[asyncpg.Record]:
        """In the order in which they were put on record."""
        return await self._database.fetch(
            f"{_ON_RECORD} AND entry_id = ANY($1::uuid[]) ORDER BY sequence", [*entry_ids]
        )

    async def entries(
        self, variant_ids: Collection[str], *, channel: str = "", currency: str = ""
    ) -> dict[tuple[str, str], list[Entry]]:
        """What is on record about these variants, by channel and currency; of one channel and currency if given."""
        rows = await self._database.fetch(
            """
            SELECT e.entry_id::text, e.sequence, e.price_list_id::text, e.variant_id::text, e.minor_units,
                   e.min_quantity, greatest(e.start_time, l.start_time) AS start_time,
                   least(e.end_time, l.end_time) AS end_time, l.kind, l.priority, l.tax_included, l.channel, l.currency
            FROM price_entries e JOIN price_lists l USING (tenant_id, price_list_id)
            WHERE tenant_id = nexus.tenant_id() AND variant_id = ANY($1::uuid[])
              AND ($2 = '' OR channel = $2) AND ($3 = '' OR currency = $3)
            """,
            [*variant_ids],
            channel,
            currency,
        )
        found: dict[tuple[str, str], list[Entry]] = {}
        for row in rows:
            found.setdefault((row["channel"], row["currency"]), []).append(_entry(row))
        return found

    async def products_in_list(self, price_list_id: str) -> list[str]:
        """Products that the list has prices of."""
        rows = await self._database.fetch(
            """
            SELECT DISTINCT product_id::text FROM price_entries JOIN variants USING (tenant_id, variant_id)
            WHERE tenant_id = nexus.tenant_id() AND price_list_id = $1
            """,
            price_list_id,
        )
        return [row["product_id"] for row in rows]

    async def variants_of(self, product_ids: Collection[str]) -> dict[str, str]:
        """The product of each variant that these products have."""
        rows = await self._database.fetch(
            "SELECT variant_id::text, product_id::text FROM variants WHERE product_id = ANY($1::uuid[])",
            [*product_ids],
        )
        return {row["variant_id"]: row["product_id"] for row in rows}

    async def replace_periods(
        self, product_ids: Collection[str], periods: Sequence[tuple[str, str, str, Period]]
    ) -> None:
        """What these products cost from now on: product, channel, currency and period."""
        await self._database.execute("DELETE FROM search_prices WHERE product_id = ANY($1::uuid[])", [*product_ids])
        await self._database.executemany(
            """
            INSERT INTO search_prices (product_id, channel, currency, start_time, end_time, lowest, highest, regular)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
            """,
            [
                (product_id, channel, currency, p.start, p.end, p.lowest, p.highest, p.regular)
                for product_id, channel, currency, p in periods
            ],
        )


def _entry(row: asyncpg.Record) -> Entry:
    return Entry(
        entry_id=row["entry_id"],
        sequence=row["sequence"],
        price_list_id=row["price_list_id"],
        variant_id=row["variant_id"],
        minor_units=row["minor_units"],
        min_quantity=row["min_quantity"],
        start=row["start_time"],
        end=row["end_time"],
        sale=row["kind"] == "sale",
        priority=row["priority"],
        tax_included=row["tax_included"],
    )
