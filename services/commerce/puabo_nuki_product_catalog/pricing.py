"""Putting prices on record, and reading them back: each method one transaction.

Who writes is alone (an advisory lock of the tenant), and what is written is in force from a moment after the lock was
taken. Who has to be sure reads under the same lock, shared: what is put on record later is in force later.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from nexus.commerce.puabo_nuki_product_catalog.v1 import events_pb2
from nexus.commerce.puabo_nuki_product_catalog.v1 import prices_pb2 as pb
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import (
    PriceListEnded,
    PriceListTaken,
    PricePast,
    VariantNotFound,
)
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.ids import new_id
from services.chassis.messages import moment_in, values_of
from services.chassis.table import Row
from services.commerce.puabo_nuki_product_catalog.prices import FOREVER, Entry, periods
from services.commerce.puabo_nuki_product_catalog.store.prices import PriceStore
from services.commerce.puabo_nuki_product_catalog.store.products import ProductStore

DEFAULT_CHANNEL = "default"


class Pricing:
    def __init__(self, database: Database, events: Events) -> None:
        self._database = database
        self._events = events
        self.store = PriceStore(database)
        self._products = ProductStore(database)

    async def create_list(self, asked: pb.PriceList) -> Row:
        """Raises PriceListTaken, PricePast."""
        async with self._database.transaction():
            start = _from(await self.store.lock(), moment_in(asked, "start_time"))
            end = moment_in(asked, "end_time") or FOREVER
            if end <= start:
                raise PricePast(why="the list would end before it starts")
            row = await self.store.lists.insert_new(
                price_list_id=new_id(),
                **values_of(asked, "key", "name", "currency", "priority", "tax_included"),
                channel=asked.channel or DEFAULT_CHANNEL,
                kind="sale" if asked.kind == pb.PRICE_LIST_KIND_SALE else "regular",
                start_time=start,
                end_time=end,
            )
        if row is None:
            raise PriceListTaken(price_list=asked.key)
        return row

    async def end_list(self, price_list_id: str, end: datetime | None) -> Row:
        """Raises PriceListNotFound, PriceListEnded, PricePast."""
        async with self._database.transaction():
            now = await self.store.lock()
            found = await self.store.lists.require(price_list_id)
            ends = _from(now, end)
            if found["end_time"] == ends:
                return found
            if found["end_time"] < ends:
                if end is None:
                    return found  # it has ended already
                raise PriceListEnded(price_list=found["key"])
            ended = await self.store.lists.change(price_list_id, end_time=ends)
            await self.refresh(await self.store.products_in_list(price_list_id), now)
        return ended

    async def set(self, price_list_id: str, prices: Sequence[pb.NewPrice], actor: str) -> list[Row]:
        """Returns the entries. Raises PriceListNotFound, PriceListEnded, VariantNotFound, PricePast."""
        async with self._database.transaction():
            variants = await self._products.variant_rows.get_all([price.variant_id for price in prices])
            for price in prices:
                if price.variant_id not in variants:
                    raise VariantNotFound(variant_id=price.variant_id)
            now = await self.store.lock()
            found = await self.store.lists.require(price_list_id)
            if found["end_time"] <= now:
                raise PriceListEnded(price_list=found["key"])
            entry_ids = await self.record(price_list_id, prices, now, actor)
            await self.refresh({variant["product_id"] for variant in variants.values()}, now)
            return await self.store.of_ids(entry_ids)

    async def record(self, price_list_id: str, prices: Sequence[pb.NewPrice], now: datetime, actor: str) -> list[str]:
        """Write prices, under lock; returns the ids of the entries. Raises PricePast."""
        entries: dict[str, dict[str, Any]] = {}
        for price in prices:
            start, end = _from(now, moment_in(price, "start_time")), moment_in(price, "end_time") or FOREVER
            if end <= start:
                raise PricePast(why="a price would end before it starts")
            entry_id = new_id()
            entries[entry_id] = {
                "entry_id": entry_id,
                "price_list_id": price_list_id,
                "variant_id": price.variant_id,
                "minor_units": price.minor_units if price.HasField("minor_units") else None,
                "min_quantity": price.min_quantity or 1,
                "start_time": start,
                "end_time": end,
                "actor": actor,
            }
        await self.store.entries.insert_all(entries.values())
        variant_ids = list(dict.fromkeys(price.variant_id for price in prices))
        await self._events.publish(
            events_pb2.PricesSet(price_list_id=price_list_id, variant_ids=variant_ids), price_list_id
        )
        return list(entries)

    async def refresh(self, product_ids: Collection[str], now: datetime) -> None:
        """Work out anew, under lock, what these products cost from now on, for the search."""
        products = await self.store.variants_of(product_ids)
        by_market: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
        for (channel, currency), entries in (await self.store.on_record(products)).items():
            for entry in entries:
                by_market[products[entry.variant_id], channel, currency].append(entry)
        found = [(*market, period) for market, entries in by_market.items() for period in periods(entries, now)]
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
        market = (channel or DEFAULT_CHANNEL, currency)
        by_market = await self.store.on_record(variant_ids, channel=market[0], currency=currency)
        for entry in by_market.get(market, []):
            found[entry.variant_id].append(entry)
        return found


def _from(now: datetime, start: datetime | None) -> datetime:
    """Raises PricePast."""
    if start is None:
        return now
    if start < now:
        raise PricePast(why=f"{start:%Y-%m-%d %H:%M:%S} UTC is over")
    return start
