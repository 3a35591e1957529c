"""Importing files: one batch of rows after the other, each with its progress in one transaction.

So a batch is imported once, whatever dies: who comes next goes on behind the last one that was committed.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from nexus.commerce.puabo_nuki_product_catalog.v1 import events_pb2
from nexus.commerce.puabo_nuki_product_catalog.v1 import products_pb2 as pb
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import (
    AttributeNotFound,
    ImportNotFound,
    ImportOffsetWrong,
    ImportStateWrong,
    ImportUnreadable,
    PriceListNotFound,
)
from services.chassis.context import acting_for
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.ids import new_id
from services.commerce.puabo_nuki_product_catalog import rows
from services.commerce.puabo_nuki_product_catalog.catalog import Catalog
from services.commerce.puabo_nuki_product_catalog.prices import Entry, price_at
from services.commerce.puabo_nuki_product_catalog.pricing import NewPrice, Pricing
from services.commerce.puabo_nuki_product_catalog.rows import Applied, Batch, Outcome, RowRejected, Table
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

    async def get(self, import_id: str, *, lock: str = "") -> Any:
        """Raises ImportNotFound."""
        found = await self.store.get(import_id, lock=lock)
        if found is None:
            raise ImportNotFound(import_id=import_id)
        return found

    async def upload(self, import_id: str, offset: int, data: bytes) -> None:
        """Raises ImportNotFound, ImportStateWrong, ImportOffsetWrong, ImportUnreadable."""
        async with self._database.transaction():
            found = await self.get(import_id, lock="FOR UPDATE")
            _require_state(found, "uploading")
            if offset + len(data) <= found["received"]:
                return
            if offset != found["received"]:
                raise ImportOffsetWrong(received=found["received"])
            if offset + len(data) > rows.MOST_BYTES:
                raise ImportUnreadable(why=f"it has more than {rows.MOST_BYTES} bytes")
            await self.store.append(import_id, offset, data)

    async def start(self, import_id: str) -> None:
        """Raises ImportNotFound, ImportStateWrong, ImportUnreadable, PriceListNotFound, AttributeNotFound."""
        async with self._database.transaction():
            found = await self.get(import_id, lock="FOR UPDATE")
            if found["state"] in ("running", "done"):
                return
            _require_state(found, "uploading")
            table = await self._table(import_id)
            lists = await self._pricing.store.lists_of_keys(table.named(rows.PRICE))
            for missing in sorted(set(table.named(rows.PRICE)) - set(lists)):
                raise PriceListNotFound(price_list=missing)
            known = await self._catalog.products.attributes()
            for missing in sorted(set(table.named(rows.ATTRIBUTE)) - set(known)):
                raise AttributeNotFound(attribute=missing)
            await self.store.start(import_id, len(table.rows))

    async def cancel(self, import_id: str) -> None:
        """Raises ImportNotFound, ImportStateWrong."""
        async with self._database.transaction():
            found = await self.get(import_id, lock="FOR UPDATE")
            if found["state"] == "done":
                raise ImportStateWrong(state="done")
            if found["state"] != "cancelled":
                await self.store.finish(import_id, "cancelled")

    async def run(self) -> None:
        """Import the files that wait, of all tenants, until there are none. Replicas may do so at once."""
        while (found := await self.store.take(self._worker)) is not None:
            with acting_for(found["tenant_id"]):
                await self._run(found)

    async def _run(self, found: Any) -> None:
        import_id, done = found["import_id"], found["rows_done"]
        table = await self._table(import_id)
        while done < len(table.rows):
            until = min(done + ROWS_AT_ONCE, len(table.rows))
            try:
                async with self._database.transaction():
                    outcome = await self._import(table, done, until, found["actor"])
                    if not await self.store.advance(import_id, self._worker, done, until, outcome):
                        raise _TakenAway
            except _TakenAway:
                return
            done = until
        async with self._database.transaction():
            last = await self.get(import_id, lock="FOR UPDATE")
            if last["state"] == "running":
                await self.store.finish(import_id, "done")
                await self._events.publish(
                    events_pb2.ImportFinished(import_id=import_id, rows=last["row_count"], rejected=last["rejected"]),
                    import_id,
                )

    async def _table(self, import_id: str) -> Table:
        return await asyncio.to_thread(rows.read, await self.store.file(import_id))

    async def _import(self, table: Table, since: int, until: int, actor: str) -> Outcome:
        """Put rows into their products, and write what has changed."""
        chosen = table.rows[since:until]
        batch = await self._batch(chosen)
        outcome = Outcome()
        applied: list[Applied] = []
        for index, row in enumerate(chosen, since):
            try:
                if index in table.repeats:
                    raise RowRejected(rows.SKU, row[rows.SKU], f"The row {table.repeats[index]} has this SKU already.")
                applied.append(batch.apply(row))
            except RowRejected as rejected:
                outcome.errors.append(rejected.at(index + 1))
        slugs = {product.product_id: slug for slug, product in batch.products.items()}
        changed = {
            each.variant.variant_id
            for each in applied
            if batch.is_changed(slugs[each.variant.product_id], each.variant)
        }
        products, variants = batch.changed(), batch.changed_variants()
        await self._write(batch, products, variants)
        changed |= await self._set_prices(applied, actor)
        for each in applied:
            if batch.is_new(each.variant):
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

    async def _write(self, batch: Batch, products: Sequence[pb.Product], variants: Sequence[pb.Variant]) -> None:
        if products:
            await self._catalog.products.put(products)
        if variants:
            await self._catalog.products.put_variants(variants)
        touched = {product.product_id for product in products} | {variant.product_id for variant in variants}
        shown, hidden = [], []
        for slug, product in batch.products.items():
            if product.product_id in touched:
                published = product.state == pb.PRODUCT_STATE_PUBLISHED
                if published:
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
        lists = await self._pricing.store.lists_of_keys({key for each in priced for key in each.prices})
        on_record = await self._pricing.store.entries([each.variant.variant_id for each in priced])
        current = _current(on_record, now)
        changed: set[str] = set()
        for key, price_list in lists.items():
            new = [
                NewPrice(each.variant.variant_id, each.prices[key])
                for each in priced
                if key in each.prices
                and current.get((price_list["price_list_id"], each.variant.variant_id)) != each.prices[key]
            ]
            if new:
                await self._pricing.record(price_list["price_list_id"], new, now, actor)
            changed.update(price.variant_id for price in new)
        await self._pricing.refresh({e.variant.product_id for e in priced if e.variant.variant_id in changed}, now)
        return changed


class _TakenAway(Exception):  # noqa: N818  an outcome
    """Another worker goes on with the import, or it was cancelled."""


def _current(on_record: Mapping[Any, Sequence[Entry]], now: Any) -> dict[tuple[str, str], int]:
    """What each list says of each variant at the moment, for a single unit."""
    by_list: dict[tuple[str, str], list[Entry]] = {}
    for entries in on_record.values():
        for entry in entries:
            by_list.setdefault((entry.price_list_id, entry.variant_id), []).append(entry)
    found = {place: price_at(entries, now) for place, entries in by_list.items()}
    return {place: price.minor_units for place, price in found.items() if price is not None}


def _require_state(found: Any, state: str) -> None:
    if found["state"] != state:
        raise ImportStateWrong(state=found["state"])
