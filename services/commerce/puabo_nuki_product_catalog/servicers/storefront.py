"""StorefrontService: proto to rules and back."""

import json

from google.api.httpbody_pb2 import HttpBody

from nexus.commerce.puabo_nuki_product_catalog.v1 import storefront_pb2 as pb
from services.chassis.context import RequestContext
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.commerce.puabo_nuki_product_catalog.catalog import Catalog
from services.commerce.puabo_nuki_product_catalog.shopping import Shopping

_PICTURES_KEEP = (("cache-control", "public, max-age=86400, immutable"),)


class StorefrontService:
    def __init__(self, service: Service) -> None:
        self._shopping = Shopping(service.database, service.events)
        self._catalog = Catalog(service.database, service.events)
        self._pager = Pager(service.sealer)

    async def SearchProducts(
        self, request: pb.SearchProductsRequest, call: RequestContext
    ) -> pb.SearchProductsResponse:
        response, cursor = await self._shopping.search(request, self._pager.cursor(request, call))
        if cursor:
            response.next_page_token = self._pager.token(request, call, cursor)
        return response

    async def GetPublishedProduct(
        self, request: pb.GetPublishedProductRequest, call: RequestContext
    ) -> pb.GetPublishedProductResponse:
        return await self._shopping.product(request.slug, request.channel, request.currency)

    async def ListCollections(
        self, request: pb.ListCollectionsRequest, call: RequestContext
    ) -> pb.ListCollectionsResponse:
        collections, more = await self._pager.page(
            request, call, self._catalog.collections.page, by=lambda last: json.dumps([last.title, last.collection_id])
        )
        return pb.ListCollectionsResponse(collections=collections, next_page_token=more)

    async def GetCollection(self, request: pb.GetCollectionRequest, call: RequestContext) -> pb.GetCollectionResponse:
        return pb.GetCollectionResponse(collection=await self._catalog.collections.of_slug(request.slug))

    async def GetMedia(self, request: pb.GetMediaRequest, call: RequestContext) -> HttpBody:
        row = await self._catalog.products.picture(request.media_id)
        await call.rpc.send_initial_metadata(_PICTURES_KEEP)
        return HttpBody(content_type=row["content_type"], data=row["data"])
