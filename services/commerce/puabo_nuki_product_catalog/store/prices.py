"""The SQL of price lists and of what is on record; of the call's tenant."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime

from nexus.commerce.puabo_nuki_product_catalog.v1.faults import PriceListNotFound
from services.chassis.database import Database
from services.chassis.table import Row, Table
from services.commerce.puabo_nuki_product_catalog.prices import Entry, Period

_ON_RECORD = """
SELECT e.*, l.currency FROM price_entries e JOIN price_lists l USING (tenant_id, price_list_id)
WHERE tenant_id = nexus.tenant_id()
"""
_LOCK = "SELECT pg_advisory_xact_lock{}(hashtextextended('prices ' || nexus.tenant_id(), 0))"


class PriceStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self.lists = Table(
            database,
            "price_lists",
            key="price_list_id",
            order="price_list_id",
            missing=lambda price_list_id: PriceListNotFound(price_list=price_list_id),
        )
        self.lists_by_key = Table(database, "price_lists", key="key")
        self.entries = Table(database, "price_entries", key="entry_id")
        self._periods = Table(database, "search_prices", key="product_id")

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

    async def history(self, variant_id: str, before: int, limit: int) -> list[Row]:
        """What was put on record about a variant, the newest first."""
        return await self._database.fetch(
            f"{_ON_RECORD} AND variant_id = $1 AND sequence < $2 ORDER BY sequence DESC LIMIT $3",
            variant_id,
            before,
            limit,
        )

    async def of_ids(self, entry_ids: Collection[str]) -> list[Row]:
        """In the order in which they were put on record."""
        return await self._database.fetch(
            f"{_ON_RECORD} AND entry_id = ANY($1::uuid[]) ORDER BY sequence", list(entry_ids)
        )

    async def on_record(
        self, variant_ids: Collection[str], *, channel: str = "", currency: str = ""
    ) -> dict[tuple[str, str], list[Entry]]:
        """What is on record about these variants, by channel and currency; of one channel and currency if given."""
        rows = await self._database.fetch(
            """
            SELECT channel, currency, entry_id, sequence, price_list_id, variant_id, minor_units, min_quantity,
                   greatest(e.start_time, l.start_time), least(e.end_time, l.end_time), kind = 'sale', priority,
                   tax_included
            FROM price_entries e JOIN price_lists l USING (tenant_id, price_list_id)
            WHERE tenant_id = nexus.tenant_id() AND variant_id = ANY($1::uuid[])
              AND ($2 = '' OR channel = $2) AND ($3 = '' OR currency = $3)
            """,
            list(variant_ids),
            channel,
            currency,
        )
        found: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for of_channel, in_currency, *entry in rows:
            found[of_channel, in_currency].append(Entry(*entry))
        return found

    async def products_in_list(self, price_list_id: str) -> list[str]:
        """Products that the list has prices of."""
        rows = await self._database.fetch(
            """
            SELECT DISTINCT product_id FROM price_entries JOIN variants USING (tenant_id, variant_id)
            WHERE tenant_id = nexus.tenant_id() AND price_list_id = $1
            """,
            price_list_id,
        )
        return [row["product_id"] for row in rows]

    async def variants_of(self, product_ids: Collection[str]) -> dict[str, str]:
        """The product of each variant that these products have."""
        rows = await self._database.fetch(
            "SELECT variant_id, product_id FROM variants WHERE product_id = ANY($1::uuid[])", list(product_ids)
        )
        return dict(rows)

    async def replace_periods(
        self, product_ids: Collection[str], periods: Iterable[tuple[str, str, str, Period]]
    ) -> None:
        """What these products cost from now on: product, channel, currency and period."""
        await self._database.execute("DELETE FROM search_prices WHERE product_id = ANY($1::uuid[])", list(product_ids))
        await self._periods.insert_all(
            {
                "product_id": product_id,
                "channel": channel,
                "currency": currency,
                "start_time": period.start,
                "end_time": period.end,
                "lowest": period.lowest,
                "highest": period.highest,
                "regular": period.regular,
            }
            for product_id, channel, currency, period in periods
        )
