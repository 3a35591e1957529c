"""Importing files: one batch of rows after the other, each with its progress in one transaction.

So a batch is imported once, whatever dies: who comes next goes on behind the last one that was committed.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

from nexus.commerce.puabo_nuki_product_catalog.v1 import events_pb2
from nexus.commerce.puabo_nuki_product_catalog.v1 import products_pb2 as pb
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import AttributeNotFound, PriceListNotFound
from nexus.commerce.puabo_nuki_product_catalog.v1.prices_pb2 import NewPrice
from services.chassis.context import acting_for
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.ids import new_id
from services.chassis.table import Row
from services.commerce.puabo_nuki_product_catalog import rows
from services.commerce.puabo_nuki_product_catalog.catalog import Catalog
from services.commerce.puabo_nuki_product_catalog.prices import Entry, price_at
from services.commerce.puabo_nuki_product_catalog.pricing import Pricing
from services.commerce.puabo_nuki_product_catalog.rows import Applied, Batch, File, Outcome, RowRejected
from services.commerce.puabo_nuki_product_catalog.store.imports import ImportStore

ROWS_AT_ONCE = 200
LOOK_SECONDS = 0.5


class Importing:
    def __init__(self, database: Database, events: Events) -> None:
        self._database = database
        self._events = events
        self._catalog = Catalog(database, events)
        self._pricing = Pricing(database, events)
        self._worker = new_id()
        self.store = ImportStore(database)

    async def run(self) -> None:
        """Import the files that wait, of all tenants, until there are none. Replicas may do so at once."""
        while (found := await self.store.take(self._worker)) is not None:
            with acting_for(found["tenant_id"]):
                await self._run(found)

    async def _run(self, found: Row) -> None:
        import_id, done = found["import_id"], found["rows_done"]
        file = await self.file(import_id)
        while done < len(file.rows):
            until = min(done + ROWS_AT_ONCE, len(file.rows))
            try:
                async with self._database.transaction():
                    outcome = await self._import(file, done, until, found["actor"])
                    if not await self.store.advance(import_id, self._worker, done, until, outcome):
                        raise _TakenAway
            except _TakenAway:
                return
            done = until
        async with self._database.transaction():
            last = await self.store.imports.require(import_id, lock=True)
            if last["state"] == "running":
                await self.store.finish(import_id, "done")
                await self._events.publish(
                    events_pb2.ImportFinished(import_id=import_id, rows=last["row_count"], rejected=last["rejected"]),
                    import_id,
                )

    async def require_known(self, file: File) -> None:
        """What its columns name. Raises PriceListNotFound, AttributeNotFound."""
        price_lists = set(file.named(rows.PRICE))
        for missing in sorted(price_lists - (await self._pricing.store.lists_by_key.get_all(price_lists)).keys()):
            raise PriceListNotFound(price_list=missing)
        attributes = await self._catalog.products.attributes()
        for missing in sorted(set(file.named(rows.ATTRIBUTE)) - attributes.keys()):
            raise AttributeNotFound(attribute=missing)

    async def file(self, import_id: str) -> File:
        """Raises ImportUnreadable."""
        return await asyncio.to_thread(rows.read, await self.store.file(import_id))

    async def _import(self, file: File, since: int, until: int, actor: str) -> Outcome:
        """Put rows into their products, and write what has changed."""
        chosen = file.rows[since:until]
        batch = await self._batch(chosen)
        outcome = Outcome()
        applied: list[Applied] = []
        for index, row in enumerate(chosen, since):
            try:
                if index in file.repeats:
                    raise RowRejected(rows.SKU, row[rows.SKU], f"The row {file.repeats[index]} has this SKU already.")
                applied.append(batch.apply(row))
            except RowRejected as rejected:
                outcome.errors.append(rejected.at(index + 1))
        changed = {each.variant.variant_id for each in applied if batch.is_changed(each)}
        await self._write(batch)
        changed |= await self._set_prices(applied, actor)
        for each in applied:
            if not each.variant.etag:
                outcome.created += 1
            elif each.variant.variant_id in changed:
                outcome.updated += 1
            else:
                outcome.unchanged += 1
        return outcome

    async def _batch(self, chosen: Sequence[rows.Row]) -> Batch:
        slugs = {row[rows.SLUG] for row in chosen if rows.SLUG in row}
        skus = {row[rows.SKU] for row in chosen if rows.SKU in row}
        store = self._catalog.products
        await store.lock_attributes("_shared")
        return Batch(await store.of_slugs(slugs), await store.owners_of_skus(skus), await store.attributes())

    async def _write(self, batch: Batch) -> None:
        products, variants = batch.changed(), batch.changed_variants()
        await self._catalog.products.put(products)
        await self._catalog.products.put_variants(variants)
        touched = {product.product_id for product in products} | {variant.product_id for variant in variants}
        shown, hidden = [], []
        for slug, product in batch.products.items():
            if product.product_id not in touched:
                continue
            if product.state == pb.PRODUCT_STATE_PUBLISHED:
                if not batch.was_published(slug):
                    product.state = pb.PRODUCT_STATE_DRAFT  # what it is until `show`
                shown.append(product)
            elif batch.was_published(slug):
                hidden.append(product)
        if shown:
            await self._catalog.show(shown)
        if hidden:
            await self._catalog.hide(hidden)

    async def _set_prices(self, applied: Sequence[Applied], actor: str) -> set[str]:
        """Put those on record that differ from what there is; returns their variants."""
        priced = [each for each in applied if each.prices]
        if not priced:
            return set()
        now = await self._pricing.store.lock()
        lists = await self._pricing.store.lists_by_key.get_all({key for each in priced for key in each.prices})
        on_record = await self._pricing.store.on_record([each.variant.variant_id for each in priced])
        current = _current(on_record.values(), now)
        changed: dict[str, str] = {}
        for key, price_list in lists.items():
            new = []
            for each in priced:
                place = (price_list["price_list_id"], each.variant.variant_id)
                if key in each.prices and current.get(place) != each.prices[key]:
                    new.append(NewPrice(variant_id=each.variant.variant_id, minor_units=each.prices[key]))
                    changed[each.variant.variant_id] = each.variant.product_id
            if new:
                await self._pricing.record(price_list["price_list_id"], new, now, actor)
        await self._pricing.refresh(set(changed.values()), now)
        return set(changed)


class _TakenAway(Exception):  # noqa: N818  an outcome
    """Another worker goes on with the import, or it was cancelled."""


def _current(on_record: Iterable[Sequence[Entry]], now: datetime) -> dict[tuple[str, str], int]:
    """What each list says of each variant at the moment, for a single unit."""
    by_list: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entries in on_record:
        for entry in entries:
            by_list[entry.price_list_id, entry.variant_id].append(entry)
    found = {place: price_at(entries, now) for place, entries in by_list.items()}
    return {place: price.minor_units for place, price in found.items() if price is not None}
