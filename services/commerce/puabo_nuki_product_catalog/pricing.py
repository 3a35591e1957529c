"""Putting prices on record, and reading them back: each method one transaction.

Who writes is alone (an advisory lock of the tenant), and what is written is in force from a moment after the lock was
taken. Who has to be sure reads under the same lock, shared: what is put on record later is in force later.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nexus.commerce.puabo_nuki_product_catalog.v1 import events_pb2
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import (
    PriceListEnded,
    PriceListNotFound,
    PricePast,
    VariantNotFound,
)
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.ids import new_id
from services.commerce.puabo_nuki_product_catalog.prices import FOREVER, Entry, periods
from services.commerce.puabo_nuki_product_catalog.store.prices import PriceStore
from services.commerce.puabo_nuki_product_catalog.store.products import ProductStore


@dataclass(frozen=True)
class NewPrice:
    variant_id: str
    minor_units: int | None
    min_quantity: int = 1
    start: datetime | None = None
    """None: from now on."""
    end: datetime = FOREVER


class Pricing:
    def __init__(self, database: Database, events: Events) -> None:
        self._database = database
        self._events = events
        self.store = PriceStore(database)
        self._products = ProductStore(database)

    async def create_list(self, about: Sequence[Any], start: datetime | None, end: datetime) -> Any:
        """`about` is key, name, channel, currency, kind, priority, tax_included. Raises PriceListTaken, PricePast."""
        async with self._database.transaction():
            now = await self.store.lock()
            starts = _from(now, start)
            if end <= starts:
                raise PricePast(why="the list would end before it starts")
            return await self.store.insert_list([new_id(), *about, starts, end])

    async def end_list(self, price_list_id: str, end: datetime | None) -> Any:
        """Raises PriceListNotFound, PriceListEnded, PricePast."""
        async with self._database.transaction():
            now = await self.store.lock()
            found = await self._list(price_list_id)
            ends = _from(now, end)
            if found["end_time"] == ends:
                return found
            if found["end_time"] < ends:
                if end is None:
                    return found  # it has ended already
                raise PriceListEnded(price_list=found["key"])
            ended = await self.store.end_list(price_list_id, ends)
            await self.refresh(await self.store.products_in_list(price_list_id), now)
        return ended

    async def set(self, price_list_id: str, prices: Sequence[NewPrice], actor: str) -> Sequence[Any]:
        """Returns the entries. Raises PriceListNotFound, PriceListEnded, VariantNotFound, PricePast."""
        async with self._database.transaction():
            products = await self._products.known_variants([price.variant_id for price in prices])
            for price in prices:
                if price.variant_id not in products:
                    raise VariantNotFound(variant_id=price.variant_id)
            now = await self.store.lock()
            found = await self._list(price_list_id)
            if found["end_time"] <= now:
                raise PriceListEnded(price_list=found["key"])
            entry_ids = await self.record(price_list_id, prices, now, actor)
            await self.refresh(set(products.values()), now)
            return await self.store.of_ids(entry_ids)

    async def record(self, price_list_id: str, prices: Sequence[NewPrice], now: datetime, actor: str) -> list[str]:
        """Write prices, under lock. Raises PricePast."""
        rows = []
        for price in prices:
            start = _from(now, price.start)
            if price.end <= start:
                raise PricePast(why="a price would end before it starts")
            rows.append(
                (
                    new_id(),
                    price_list_id,
                    price.variant_id,
                    price.minor_units,
                    price.min_quantity,
                    start,
                    price.end,
                    actor,
                )
            )
        await self.store.insert(rows)
        variant_ids = list(dict.fromkeys(price.variant_id for price in prices))
        await self._events.publish(
            events_pb2.PricesSet(price_list_id=price_list_id, variant_ids=variant_ids), price_list_id
        )
        return [row[0] for row in rows]

    async def refresh(self, product_ids: Collection[str], now: datetime) -> None:
        """Work out anew, under lock, what these products cost from now on, for the search."""
        products = await self.store.variants_of(product_ids)
        found: list[tuple[str, str, str, Any]] = []
        for (channel, currency), entries in (await self.store.entries(products)).items():
            by_product: dict[str, list[Entry]] = {}
            for entry in entries:
                by_product.setdefault(products[entry.variant_id], []).append(entry)
            for product_id, of_product in by_product.items():
                found += [(product_id, channel, currency, period) for period in periods(of_product, now)]
        await self.store.replace_periods(product_ids, found)

    async def known(
        self, variant_ids: Collection[str], channel: str, currency: str, at: datetime | None
    ) -> tuple[Mapping[str, list[Entry]], datetime]:
        """What is on record about variants, and the moment asked about (now when None), about which that will not
        change any more. Raises PricePast for a moment to come."""
        async with self._database.transaction():
            now = await self.store.steady()
            if at is not None and at > now:
                raise PricePast(why="that moment is still to come")
            return await self.entries(variant_ids, channel, currency), at or now

    async def entries(self, variant_ids: Collection[str], channel: str, currency: str) -> Mapping[str, list[Entry]]:
        """What is on record about each of these variants."""
        found: dict[str, list[Entry]] = {variant_id: [] for variant_id in variant_ids}
        by_market = await self.store.entries(variant_ids, channel=channel, currency=currency)
        for entry in by_market.get((channel, currency), []):
            found[entry.variant_id].append(entry)
        return found

    async def _list(self, price_list_id: str) -> Any:
        found = await self.store.price_list(price_list_id)
        if found is None:
            raise PriceListNotFound(price_list=price_list_id)
        return found


def _from(now: datetime, start: datetime | None) -> datetime:
    """Raises PricePast."""
    if start is None:
        return now
    if start < now:
        raise PricePast(why=f"{start:%Y-%m-%d %H:%M:%S} UTC is over")
    return start
