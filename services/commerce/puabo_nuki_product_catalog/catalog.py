"""What is done with products and collections: each method one transaction, with what the search knows of them.

Whoever changes a product, or whether it is found, locks its row first; so the search never has an older state of it.
"""

import hashlib
from collections.abc import Iterable, Sequence

from google.protobuf.field_mask_pb2 import FieldMask

from nexus.commerce.puabo_nuki_product_catalog.v1 import events_pb2
from nexus.commerce.puabo_nuki_product_catalog.v1 import products_pb2 as pb
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import (
    AttributeInUse,
    AttributeNotFound,
    CollectionAutomatic,
    MediaNotFound,
    ProductChanged,
    ProductNotFound,
    ProductPublished,
    ProductTooLarge,
    VariantNotFound,
)
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.ids import new_id
from services.chassis.messages import text_of, values_of
from services.commerce.puabo_nuki_product_catalog import products as rules
from services.commerce.puabo_nuki_product_catalog import search
from services.commerce.puabo_nuki_product_catalog.pricing import Pricing
from services.commerce.puabo_nuki_product_catalog.store.products import CollectionStore, ProductStore
from services.commerce.puabo_nuki_product_catalog.store.search import SearchStore


class Catalog:
    def __init__(self, database: Database, events: Events) -> None:
        self._database = database
        self._events = events
        self.products = ProductStore(database)
        self.collections = CollectionStore(database)
        self._search = SearchStore(database)
        self._pricing = Pricing(database, events)

    async def create(self, product: pb.Product) -> pb.Product:
        """Raises SlugTaken, SkuTaken, OptionsTaken, OptionsInvalid, AttributeInvalid."""
        product.product_id = new_id()
        product.slug = product.slug or rules.slug_of(product.title) or product.product_id
        for variant in product.variants:
            _name(variant, product)
        rules.require_variants(product)
        async with self._database.transaction():
            await self._require_attributes(product)
            await self.products.put([product])
            await self.products.put_variants(product.variants)
        return await self.products.get(product.product_id)

    async def update(self, asked: pb.Product, fields: FieldMask) -> pb.Product:
        """Raises ProductNotFound, ProductChanged, SlugTaken, AttributeInvalid, OptionsInvalid."""
        async with self._database.transaction():
            product = await self.products.get(asked.product_id, lock=True)
            _require_etag(asked.etag, product.etag)
            changed = pb.Product()
            changed.CopyFrom(product)
            fields.MergeMessage(asked, changed, True, True)
            changed.slug = changed.slug or product.slug
            rules.require_same_options(product, changed)
            rules.require_variants(changed)
            if "attributes" in fields.paths:
                await self._require_attributes(changed)
            if product.state == pb.PRODUCT_STATE_PUBLISHED:
                rules.require_complete(changed)
            await self.products.put([changed])
            return await self._changed(product.product_id)

    async def delete(self, product_id: str) -> None:
        """Raises ProductNotFound, ProductPublished."""
        async with self._database.transaction():
            product = await self.products.get(product_id, lock=True)
            if product.state == pb.PRODUCT_STATE_PUBLISHED:
                raise ProductPublished()
            await self.products.rows.delete(product_id=product_id)

    async def publish(self, product_id: str, etag: str) -> pb.Product:
        """Raises ProductNotFound, ProductChanged, ProductIncomplete."""
        async with self._database.transaction():
            product = await self.products.get(product_id, lock=True)
            _require_etag(etag, product.etag)
            if product.state == pb.PRODUCT_STATE_PUBLISHED:
                return product
            rules.require_complete(product)
            await self.show([product])
            return await self.products.get(product_id)

    async def unpublish(self, product_id: str) -> pb.Product:
        """Raises ProductNotFound."""
        async with self._database.transaction():
            product = await self.products.get(product_id, lock=True)
            if product.state == pb.PRODUCT_STATE_PUBLISHED:
                await self.hide([product])
            return await self.products.get(product_id)

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

    async def create_variant(self, product_id: str, variant: pb.Variant) -> pb.Variant:
        """Raises ProductNotFound, SkuTaken, OptionsTaken, OptionsInvalid, ProductTooLarge."""
        async with self._database.transaction():
            product = await self.products.get(product_id, lock=True)
            _name(variant, product)
            product.variants.append(variant)
            rules.require_variants(product)
            await self.products.put_variants([variant])
            return await self._variant_changed(product_id, variant.variant_id)

    async def update_variant(self, asked: pb.Variant, fields: FieldMask) -> pb.Variant:
        """Raises VariantNotFound, ProductChanged, SkuTaken, OptionsTaken, OptionsInvalid."""
        async with self._database.transaction():
            product, variant = await self._locked_variant(asked.variant_id)
            _require_etag(asked.etag, variant.etag)
            sku = variant.sku
            fields.MergeMessage(asked, variant, True, True)
            variant.sku = variant.sku or sku
            rules.require_variants(product)
            if variant.media_id and variant.media_id not in {media.media_id for media in product.media}:
                raise MediaNotFound(media_id=variant.media_id)
            await self.products.put_variants([variant])
            return await self._variant_changed(product.product_id, variant.variant_id)

    async def delete_variant(self, variant_id: str) -> None:
        """Raises VariantNotFound, ProductIncomplete."""
        async with self._database.transaction():
            product, variant = await self._locked_variant(variant_id)
            product.variants.remove(variant)
            if product.state == pb.PRODUCT_STATE_PUBLISHED:
                rules.require_complete(product)
            await self.products.variant_rows.delete(variant_id=variant_id)
            await self._changed(product.product_id)
            await self._pricing.refresh([product.product_id], await self._pricing.store.lock())

    async def set_attribute(self, attribute: pb.Attribute) -> None:
        """Raises AttributeInUse."""
        async with self._database.transaction():
            await self.products.lock_attributes("")
            before = (await self.products.attributes()).get(attribute.key)
            used = await self.products.values_of(attribute.key)
            misfits = [product_id for product_id, values in used if not rules.allows(attribute, values)]
            if misfits:
                raise AttributeInUse(products=len(misfits), attribute=attribute.key)
            await self.products.attribute_rows.put(
                **values_of(attribute, "key", "name", "choices", "facet"),
                kind=text_of(pb.AttributeKind, attribute.kind).lower(),
            )
            if before is None or before.facet != attribute.facet:
                await self._reindex([product_id for product_id, _ in used])

    async def delete_attribute(self, key: str) -> None:
        """Raises AttributeNotFound, AttributeInUse."""
        async with self._database.transaction():
            await self.products.lock_attributes("")
            if used := await self.products.values_of(key):
                raise AttributeInUse(products=len(used), attribute=key)
            if not await self.products.attribute_rows.delete(key=key):
                raise AttributeNotFound(attribute=key)

    async def create_collection(self, collection: pb.Collection) -> pb.Collection:
        """Raises SlugTaken."""
        collection.collection_id = new_id()
        collection.slug = collection.slug or rules.slug_of(collection.title) or collection.collection_id
        return await self.collections.put(collection)

    async def update_collection(self, asked: pb.Collection, fields: FieldMask) -> pb.Collection:
        """Raises CollectionNotFound, ProductChanged, SlugTaken."""
        async with self._database.transaction():
            collection = await self.collections.get(asked.collection_id)
            _require_etag(asked.etag, collection.etag)
            slug = collection.slug
            fields.MergeMessage(asked, collection, True, True)
            collection.slug = collection.slug or slug
            return await self.collections.put(collection)

    async def delete_collection(self, collection_id: str) -> None:
        """Raises CollectionNotFound."""
        async with self._database.transaction():
            await self.collections.get(collection_id)
            members = await self.collections.products_in(collection_id)
            await self.collections.rows.delete(collection_id=collection_id)
            await self._reindex(members)

    async def change_collection(self, collection_id: str, add: Sequence[str], remove: Sequence[str]) -> int:
        """Returns how many it has. Raises CollectionNotFound, CollectionAutomatic, ProductNotFound."""
        async with self._database.transaction():
            collection = await self.collections.get(collection_id)
            if collection.rules:
                raise CollectionAutomatic()
            for missing in sorted(set(add) - await self.products.known(add)):
                raise ProductNotFound(product=missing)
            await self.collections.remove(collection_id, remove)
            await self.collections.add(collection_id, add)
            await self._reindex({*add, *remove})
            return len(await self.collections.products_in(collection_id))

    async def add_media(self, request: pb.AddMediaRequest) -> pb.Media:
        """Raises ProductNotFound, MediaInvalid, ProductTooLarge."""
        width, height = rules.size_of_picture(request.data, request.content_type)
        async with self._database.transaction():
            product = await self.products.get(request.product_id, lock=True)
            if len(product.media) >= rules.MOST_PICTURES:
                raise ProductTooLarge(limit=rules.MOST_PICTURES, what="pictures")
            added = await self.products.put_media(
                media_id=new_id(),
                **values_of(request, "product_id", "content_type", "alt_text", "position", "data"),
                width=width,
                height=height,
                digest=hashlib.sha256(request.data).digest(),
            )
            await self.products.touch(request.product_id)
        return added

    async def delete_media(self, media_id: str) -> None:
        """Raises MediaNotFound."""
        async with self._database.transaction():
            media = await self.products.media_rows.require(media_id, lock=True)
            await self.products.media_rows.delete(media_id=media_id)
            await self.products.touch(media["product_id"])

    async def _changed(self, product_id: str) -> pb.Product:
        """A locked product that has been changed; if it is published, it is found as it is now."""
        product = await self.products.get(product_id)
        if product.state == pb.PRODUCT_STATE_PUBLISHED:
            await self.show([product])
        return product

    async def _variant_changed(self, product_id: str, variant_id: str) -> pb.Variant:
        await self.products.touch(product_id)
        return _variant_in(await self._changed(product_id), variant_id)

    async def _locked_variant(self, variant_id: str) -> tuple[pb.Product, pb.Variant]:
        product = await self.products.of_variant(variant_id)
        return product, _variant_in(product, variant_id)

    async def _require_attributes(self, product: pb.Product) -> None:
        if product.attributes:
            await self.products.lock_attributes("_shared")
            rules.require_attributes(await self.products.attributes(), product.attributes)

    async def _reindex(self, product_ids: Iterable[str]) -> None:
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


def _name(variant: pb.Variant, product: pb.Product) -> None:
    """A new variant is given its id, and a number if it has none."""
    variant.variant_id = new_id()
    variant.product_id = product.product_id
    variant.sku = variant.sku or rules.sku_of(product.slug, variant.option_values) or variant.variant_id
    variant.media_id = ""


def _variant_in(product: pb.Product, variant_id: str) -> pb.Variant:
    """Raises VariantNotFound."""
    for variant in product.variants:
        if variant.variant_id == variant_id:
            return variant
    raise VariantNotFound(variant_id=variant_id)


def _require_etag(asked: str, etag: str) -> None:
    """Raises ProductChanged."""
    if asked and asked != etag:
        raise ProductChanged()
