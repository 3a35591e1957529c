"""Products and collections, and what the search knows of them.

Whoever changes a product, or whether it is found, locks its row first; so the search never has an older state of it.
"""

from collections.abc import Iterable, Sequence

from nexus.commerce.puabo_nuki_product_catalog.v1 import events_pb2
from nexus.commerce.puabo_nuki_product_catalog.v1 import products_pb2 as pb
from services.chassis.database import Database
from services.chassis.events import Events
from services.commerce.puabo_nuki_product_catalog import search
from services.commerce.puabo_nuki_product_catalog.store.products import CollectionStore, ProductStore
from services.commerce.puabo_nuki_product_catalog.store.search import SearchStore


class Catalog:
    def __init__(self, database: Database, events: Events) -> None:
        self._events = events
        self.products = ProductStore(database)
        self.collections = CollectionStore(database)
        self._search = SearchStore(database)

    async def show(self, products: Sequence[pb.Product]) -> None:
        """Let locked products be found as they are: drafts from now on, the others from now on as they are now."""
        drafts = [product.product_id for product in products if product.state != pb.PRODUCT_STATE_PUBLISHED]
        if drafts:
            await self.products.set_state(drafts, "published")
        await self._index(products)
        for product in products:
            event = events_pb2.ProductPublished(
                product_id=product.product_id, slug=product.slug, first=product.product_id in drafts
            )
            await self._events.publish(event, product.product_id)

    async def hide(self, products: Sequence[pb.Product]) -> None:
        """Let locked products not be found any more."""
        ids = [product.product_id for product in products]
        await self.products.set_state(ids, "draft")
        await self._search.put([], removed=ids)
        for product in products:
            event = events_pb2.ProductUnpublished(product_id=product.product_id, slug=product.slug)
            await self._events.publish(event, product.product_id)

    async def changed(self, product_id: str) -> pb.Product:
        """A locked product that has been changed; if it is published, it is found as it is now."""
        product = await self.products.get(product_id)
        if product.state == pb.PRODUCT_STATE_PUBLISHED:
            await self.show([product])
        return product

    async def reindex(self, product_ids: Iterable[str]) -> None:
        """What the search knows of products is not what it was."""
        ids = sorted(set(product_ids))
        for start in range(0, len(ids), 500):
            locked = await self.products.of_ids(ids[start : start + 500])
            await self._index([each for each in locked if each.state == pb.PRODUCT_STATE_PUBLISHED])

    async def _index(self, products: Sequence[pb.Product]) -> None:
        in_collections = await self.collections.of_products([product.product_id for product in products])
        facets = {key for key, attribute in (await self.products.attributes()).items() if attribute.facet}
        await self._search.put(
            [search.document(product, in_collections[product.product_id], facets) for product in products]
        )
