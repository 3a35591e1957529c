"""ProductService: each method that changes something is one transaction, with what the search knows of it."""

import hashlib
from functools import partial

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
from services.chassis.context import RequestContext
from services.chassis.ids import new_id
from services.chassis.messages import text_of, values_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.commerce.puabo_nuki_product_catalog import products as rules
from services.commerce.puabo_nuki_product_catalog.catalog import Catalog
from services.commerce.puabo_nuki_product_catalog.pricing import Pricing


class ProductService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._catalog = Catalog(service.database, service.events)
        self._products = self._catalog.products
        self._collections = self._catalog.collections
        self._pricing = Pricing(service.database, service.events)
        self._pager = Pager(service.sealer)

    async def CreateProduct(self, request: pb.CreateProductRequest, call: RequestContext) -> pb.CreateProductResponse:
        product = request.product
        product.product_id = new_id()
        product.slug = product.slug or rules.slug_of(product.title) or product.product_id
        for variant in product.variants:
            _name(variant, product)
        rules.require_variants(product)
        async with self._database.transaction():
            await self._require_attributes(product)
            await self._products.put([product])
            await self._products.put_variants(product.variants)
        return pb.CreateProductResponse(product=await self._products.get(product.product_id))

    async def GetProduct(self, request: pb.GetProductRequest, call: RequestContext) -> pb.GetProductResponse:
        return pb.GetProductResponse(product=await self._products.get(request.product_id))

    async def ListProducts(self, request: pb.ListProductsRequest, call: RequestContext) -> pb.ListProductsResponse:
        state = text_of(pb.ProductState, request.state).lower()
        fetch = partial(self._products.page, state=state, sku=request.sku, slug=request.slug)
        products, more = await self._pager.page(request, call, fetch, by=lambda product: product.product_id)
        return pb.ListProductsResponse(products=products, next_page_token=more)

    async def UpdateProduct(self, request: pb.UpdateProductRequest, call: RequestContext) -> pb.UpdateProductResponse:
        async with self._database.transaction():
            product = await self._products.get(request.product.product_id, lock=True)
            _require_etag(request.product.etag, product.etag)
            changed = pb.Product()
            changed.CopyFrom(product)
            request.update_mask.MergeMessage(request.product, changed, True, True)
            changed.slug = changed.slug or product.slug
            rules.require_same_options(product, changed)
            rules.require_variants(changed)
            if "attributes" in request.update_mask.paths:
                await self._require_attributes(changed)
            if product.state == pb.PRODUCT_STATE_PUBLISHED:
                rules.require_complete(changed)
            await self._products.put([changed])
            return pb.UpdateProductResponse(product=await self._catalog.changed(product.product_id))

    async def DeleteProduct(self, request: pb.DeleteProductRequest, call: RequestContext) -> pb.DeleteProductResponse:
        async with self._database.transaction():
            product = await self._products.get(request.product_id, lock=True)
            if product.state == pb.PRODUCT_STATE_PUBLISHED:
                raise ProductPublished()
            await self._products.rows.delete(product_id=request.product_id)
        return pb.DeleteProductResponse()

    async def PublishProduct(
        self, request: pb.PublishProductRequest, call: RequestContext
    ) -> pb.PublishProductResponse:
        async with self._database.transaction():
            product = await self._products.get(request.product_id, lock=True)
            _require_etag(request.etag, product.etag)
            if product.state != pb.PRODUCT_STATE_PUBLISHED:
                rules.require_complete(product)
                await self._catalog.show([product])
                product = await self._products.get(request.product_id)
        return pb.PublishProductResponse(product=product)

    async def UnpublishProduct(
        self, request: pb.UnpublishProductRequest, call: RequestContext
    ) -> pb.UnpublishProductResponse:
        async with self._database.transaction():
            product = await self._products.get(request.product_id, lock=True)
            if product.state == pb.PRODUCT_STATE_PUBLISHED:
                await self._catalog.hide([product])
                product = await self._products.get(request.product_id)
        return pb.UnpublishProductResponse(product=product)

    async def CreateVariant(self, request: pb.CreateVariantRequest, call: RequestContext) -> pb.CreateVariantResponse:
        variant = request.variant
        async with self._database.transaction():
            product = await self._products.get(request.product_id, lock=True)
            _name(variant, product)
            product.variants.append(variant)
            return pb.CreateVariantResponse(variant=await self._put_variant(product, variant))

    async def UpdateVariant(self, request: pb.UpdateVariantRequest, call: RequestContext) -> pb.UpdateVariantResponse:
        async with self._database.transaction():
            product, variant = await self._locked_variant(request.variant.variant_id)
            _require_etag(request.variant.etag, variant.etag)
            sku = variant.sku
            request.update_mask.MergeMessage(request.variant, variant, True, True)
            variant.sku = variant.sku or sku
            if variant.media_id and variant.media_id not in {media.media_id for media in product.media}:
                raise MediaNotFound(media_id=variant.media_id)
            return pb.UpdateVariantResponse(variant=await self._put_variant(product, variant))

    async def DeleteVariant(self, request: pb.DeleteVariantRequest, call: RequestContext) -> pb.DeleteVariantResponse:
        async with self._database.transaction():
            product, variant = await self._locked_variant(request.variant_id)
            product.variants.remove(variant)
            if product.state == pb.PRODUCT_STATE_PUBLISHED:
                rules.require_complete(product)
            await self._products.variant_rows.delete(variant_id=request.variant_id)
            await self._catalog.changed(product.product_id)
            await self._pricing.refresh([product.product_id], await self._pricing.store.lock())
        return pb.DeleteVariantResponse()

    async def SetAttribute(self, request: pb.SetAttributeRequest, call: RequestContext) -> pb.SetAttributeResponse:
        attribute = request.attribute
        async with self._database.transaction():
            await self._products.lock_attributes("")
            before = (await self._products.attributes()).get(attribute.key)
            used = await self._products.values_of(attribute.key)
            misfits = [product_id for product_id, values in used if not rules.allows(attribute, values)]
            if misfits:
                raise AttributeInUse(products=len(misfits), attribute=attribute.key)
            await self._products.attribute_rows.put(
                **values_of(attribute, "key", "name", "choices", "facet"),
                kind=text_of(pb.AttributeKind, attribute.kind).lower(),
            )
            if before is None or before.facet != attribute.facet:
                await self._catalog.reindex([product_id for product_id, _ in used])
        return pb.SetAttributeResponse(attribute=attribute)

    async def ListAttributes(
        self, request: pb.ListAttributesRequest, call: RequestContext
    ) -> pb.ListAttributesResponse:
        return pb.ListAttributesResponse(attributes=(await self._products.attributes()).values())

    async def DeleteAttribute(
        self, request: pb.DeleteAttributeRequest, call: RequestContext
    ) -> pb.DeleteAttributeResponse:
        async with self._database.transaction():
            await self._products.lock_attributes("")
            if used := await self._products.values_of(request.key):
                raise AttributeInUse(products=len(used), attribute=request.key)
            if not await self._products.attribute_rows.delete(key=request.key):
                raise AttributeNotFound(attribute=request.key)
        return pb.DeleteAttributeResponse()

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, call: RequestContext
    ) -> pb.CreateCollectionResponse:
        collection = request.collection
        collection.collection_id = new_id()
        collection.slug = collection.slug or rules.slug_of(collection.title) or collection.collection_id
        return pb.CreateCollectionResponse(collection=await self._collections.put(collection))

    async def UpdateCollection(
        self, request: pb.UpdateCollectionRequest, call: RequestContext
    ) -> pb.UpdateCollectionResponse:
        async with self._database.transaction():
            collection = await self._collections.get(request.collection.collection_id)
            _require_etag(request.collection.etag, collection.etag)
            slug = collection.slug
            request.update_mask.MergeMessage(request.collection, collection, True, True)
            collection.slug = collection.slug or slug
            return pb.UpdateCollectionResponse(collection=await self._collections.put(collection))

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, call: RequestContext
    ) -> pb.DeleteCollectionResponse:
        async with self._database.transaction():
            await self._collections.get(request.collection_id)
            members = await self._collections.products_in(request.collection_id)
            await self._collections.rows.delete(collection_id=request.collection_id)
            await self._catalog.reindex(members)
        return pb.DeleteCollectionResponse()

    async def ChangeCollectionProducts(
        self, request: pb.ChangeCollectionProductsRequest, call: RequestContext
    ) -> pb.ChangeCollectionProductsResponse:
        add, remove = request.add_product_ids, request.remove_product_ids
        async with self._database.transaction():
            collection = await self._collections.get(request.collection_id)
            if collection.rules:
                raise CollectionAutomatic()
            for missing in sorted(set(add) - await self._products.known(add)):
                raise ProductNotFound(product=missing)
            await self._collections.remove(request.collection_id, remove)
            await self._collections.add(request.collection_id, add)
            await self._catalog.reindex({*add, *remove})
            members = await self._collections.products_in(request.collection_id)
        return pb.ChangeCollectionProductsResponse(products=len(members))

    async def AddMedia(self, request: pb.AddMediaRequest, call: RequestContext) -> pb.AddMediaResponse:
        width, height = rules.size_of_picture(request.data, request.content_type)
        async with self._database.transaction():
            product = await self._products.get(request.product_id, lock=True)
            if len(product.media) >= rules.MOST_PICTURES:
                raise ProductTooLarge(limit=rules.MOST_PICTURES, what="pictures")
            media = await self._products.put_media(
                media_id=new_id(),
                **values_of(request, "product_id", "content_type", "alt_text", "position", "data"),
                width=width,
                height=height,
                digest=hashlib.sha256(request.data).digest(),
            )
            await self._products.touch(request.product_id)
        return pb.AddMediaResponse(media=media)

    async def DeleteMedia(self, request: pb.DeleteMediaRequest, call: RequestContext) -> pb.DeleteMediaResponse:
        async with self._database.transaction():
            media = await self._products.media_rows.require(request.media_id, lock=True)
            await self._products.media_rows.delete(media_id=request.media_id)
            await self._products.touch(media["product_id"])
        return pb.DeleteMediaResponse()

    async def _put_variant(self, product: pb.Product, variant: pb.Variant) -> pb.Variant:
        """One of a locked product's variants. Raises SkuTaken, OptionsTaken, OptionsInvalid, ProductTooLarge."""
        rules.require_variants(product)
        await self._products.put_variants([variant])
        await self._products.touch(product.product_id)
        return _variant_in(await self._catalog.changed(product.product_id), variant.variant_id)

    async def _locked_variant(self, variant_id: str) -> tuple[pb.Product, pb.Variant]:
        product = await self._products.of_variant(variant_id)
        return product, _variant_in(product, variant_id)

    async def _require_attributes(self, product: pb.Product) -> None:
        if product.attributes:
            await self._products.lock_attributes("_shared")
            rules.require_attributes(await self._products.attributes(), product.attributes)


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
