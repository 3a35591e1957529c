"""ProductService: proto to rules and back."""

from functools import partial

from nexus.commerce.puabo_nuki_product_catalog.v1 import products_pb2 as pb
from services.chassis.context import RequestContext
from services.chassis.messages import text_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.commerce.puabo_nuki_product_catalog.catalog import Catalog


class ProductService:
    def __init__(self, service: Service) -> None:
        self._catalog = Catalog(service.database, service.events)
        self._pager = Pager(service.sealer)

    async def CreateProduct(self, request: pb.CreateProductRequest, call: RequestContext) -> pb.CreateProductResponse:
        return pb.CreateProductResponse(product=await self._catalog.create(request.product))

    async def GetProduct(self, request: pb.GetProductRequest, call: RequestContext) -> pb.GetProductResponse:
        return pb.GetProductResponse(product=await self._catalog.products.get(request.product_id))

    async def ListProducts(self, request: pb.ListProductsRequest, call: RequestContext) -> pb.ListProductsResponse:
        fetch = partial(
            self._catalog.products.page,
            state=text_of(pb.ProductState, request.state).lower(),
            sku=request.sku,
            slug=request.slug,
        )
        products, more = await self._pager.page(request, call, fetch, by=lambda product: product.product_id)
        return pb.ListProductsResponse(products=products, next_page_token=more)

    async def UpdateProduct(self, request: pb.UpdateProductRequest, call: RequestContext) -> pb.UpdateProductResponse:
        return pb.UpdateProductResponse(product=await self._catalog.update(request.product, request.update_mask))

    async def DeleteProduct(self, request: pb.DeleteProductRequest, call: RequestContext) -> pb.DeleteProductResponse:
        await self._catalog.delete(request.product_id)
        return pb.DeleteProductResponse()

    async def PublishProduct(
        self, request: pb.PublishProductRequest, call: RequestContext
    ) -> pb.PublishProductResponse:
        return pb.PublishProductResponse(product=await self._catalog.publish(request.product_id, request.etag))

    async def UnpublishProduct(
        self, request: pb.UnpublishProductRequest, call: RequestContext
    ) -> pb.UnpublishProductResponse:
        return pb.UnpublishProductResponse(product=await self._catalog.unpublish(request.product_id))

    async def CreateVariant(self, request: pb.CreateVariantRequest, call: RequestContext) -> pb.CreateVariantResponse:
        variant = await self._catalog.create_variant(request.product_id, request.variant)
        return pb.CreateVariantResponse(variant=variant)

    async def UpdateVariant(self, request: pb.UpdateVariantRequest, call: RequestContext) -> pb.UpdateVariantResponse:
        variant = await self._catalog.update_variant(request.variant, request.update_mask)
        return pb.UpdateVariantResponse(variant=variant)

    async def DeleteVariant(self, request: pb.DeleteVariantRequest, call: RequestContext) -> pb.DeleteVariantResponse:
        await self._catalog.delete_variant(request.variant_id)
        return pb.DeleteVariantResponse()

    async def SetAttribute(self, request: pb.SetAttributeRequest, call: RequestContext) -> pb.SetAttributeResponse:
        await self._catalog.set_attribute(request.attribute)
        return pb.SetAttributeResponse(attribute=request.attribute)

    async def ListAttributes(
        self, request: pb.ListAttributesRequest, call: RequestContext
    ) -> pb.ListAttributesResponse:
        attributes = await self._catalog.products.attributes()
        return pb.ListAttributesResponse(attributes=list(attributes.values()))

    async def DeleteAttribute(
        self, request: pb.DeleteAttributeRequest, call: RequestContext
    ) -> pb.DeleteAttributeResponse:
        await self._catalog.delete_attribute(request.key)
        return pb.DeleteAttributeResponse()

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, call: RequestContext
    ) -> pb.CreateCollectionResponse:
        return pb.CreateCollectionResponse(collection=await self._catalog.create_collection(request.collection))

    async def UpdateCollection(
        self, request: pb.UpdateCollectionRequest, call: RequestContext
    ) -> pb.UpdateCollectionResponse:
        collection = await self._catalog.update_collection(request.collection, request.update_mask)
        return pb.UpdateCollectionResponse(collection=collection)

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, call: RequestContext
    ) -> pb.DeleteCollectionResponse:
        await self._catalog.delete_collection(request.collection_id)
        return pb.DeleteCollectionResponse()

    async def ChangeCollectionProducts(
        self, request: pb.ChangeCollectionProductsRequest, call: RequestContext
    ) -> pb.ChangeCollectionProductsResponse:
        products = await self._catalog.change_collection(
            request.collection_id, request.add_product_ids, request.remove_product_ids
        )
        return pb.ChangeCollectionProductsResponse(products=products)

    async def AddMedia(self, request: pb.AddMediaRequest, call: RequestContext) -> pb.AddMediaResponse:
        return pb.AddMediaResponse(media=await self._catalog.add_media(request))

    async def DeleteMedia(self, request: pb.DeleteMediaRequest, call: RequestContext) -> pb.DeleteMediaResponse:
        await self._catalog.delete_media(request.media_id)
        return pb.DeleteMediaResponse()
