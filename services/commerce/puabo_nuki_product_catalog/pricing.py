"""Putting prices on record, and reading them back.

Who writes is alone (an advisory lock of the tenant), and what is written is in force from a moment after the lock was
taken. Who has to be sure reads under the same lock, shared: what is put on record later is in force later.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from nexus.commerce.puabo_nuki_product_catalog.v1 import events_pb2
from nexus.commerce.puabo_nuki_product_catalog.v1 import prices_pb2 as pb
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import PricePast
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.ids import new_id
from services.chassis.messages import moment_in
from services.commerce.puabo_nuki_product_catalog.prices import FOREVER, Entry, periods
from services.commerce.puabo_nuki_product_catalog.store.prices import PriceStore

DEFAULT_CHANNEL = "default"


class Pricing:
    def __init__(self, database: Database, events: Events) -> None:
        self._database = database
        self._events = events
        self.store = PriceStore(database)

    async def record(self, price_list_id: str, prices: Sequence[pb.NewPrice], now: datetime, actor: str) -> list[str]:
        """Write prices, under lock; returns the ids of the entries. Raises PricePast."""
        entries: dict[str, dict[str, Any]] = {}
        for price in prices:
            start, end = starting(now, moment_in(price, "start_time")), moment_in(price, "end_time") or FOREVER
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


def starting(now: datetime, start: datetime | None) -> datetime:
    """From when on it holds: from now on when None is said. Raises PricePast."""
    if start is None:
        return now
    if start < now:
        raise PricePast(why=f"{start:%Y-%m-%d %H:%M:%S} UTC is over")
    return start
