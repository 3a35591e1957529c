"""ProductService, PriceService, StorefrontService and ImportService: proto to rules and back."""

import json
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.timestamp_pb2 import Timestamp

from nexus.commerce.puabo_nuki_product_catalog.v1 import imports_pb2, prices_pb2, storefront_pb2
from nexus.commerce.puabo_nuki_product_catalog.v1 import products_pb2 as pb
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import CollectionNotFound, MediaNotFound
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import moment, timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import new_id
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.commerce.puabo_nuki_product_catalog.catalog import Catalog
from services.commerce.puabo_nuki_product_catalog.importing import LOOK_SECONDS, Importing
from services.commerce.puabo_nuki_product_catalog.prices import FOREVER
from services.commerce.puabo_nuki_product_catalog.pricing import NewPrice, Pricing
from services.commerce.puabo_nuki_product_catalog.shopping import DEFAULT_CHANNEL, Shopping

_PICTURES_KEEP = (("cache-control", "public, max-age=86400, immutable"),)
_LAST_SEQUENCE = 2**63 - 1
_STATES = {pb.PRODUCT_STATE_DRAFT: "draft", pb.PRODUCT_STATE_PUBLISHED: "published"}


class ProductService:
    def __init__(self, service: Service) -> None:
        self._catalog = Catalog(service.database, service.events)
        self._pager = Pager(service.sealer)

    async def CreateProduct(self, request: pb.CreateProductRequest, call: RequestContext) -> pb.CreateProductResponse:
        return pb.CreateProductResponse(product=await self._catalog.create(request.product))

    async def GetProduct(self, request: pb.GetProductRequest, call: RequestContext) -> pb.GetProductResponse:
        return pb.GetProductResponse(product=await self._catalog.get(request.product_id))

    async def ListProducts(self, request: pb.ListProductsRequest, call: RequestContext) -> pb.ListProductsResponse:
        size = self._pager.size(request)
        products = await self._catalog.products.page(
            state=_STATES.get(request.state, ""),
            sku=request.sku,
            slug=request.slug,
            after=self._pager.cursor(request, call),
            size=size + 1,
        )
        response = pb.ListProductsResponse(products=products[:size])
        if len(products) > size:
            response.next_page_token = self._pager.token(request, call, products[size - 1].product_id)
        return response

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
        media = pb.Media(content_type=request.content_type, alt_text=request.alt_text, position=request.position)
        return pb.AddMediaResponse(media=await self._catalog.add_media(request.product_id, media, request.data))

    async def DeleteMedia(self, request: pb.DeleteMediaRequest, call: RequestContext) -> pb.DeleteMediaResponse:
        await self._catalog.delete_media(request.media_id)
        return pb.DeleteMediaResponse()


class PriceService:
    def __init__(self, service: Service) -> None:
        self._pricing = Pricing(service.database, service.events)
        self._shopping = Shopping(service.database, service.events)
        self._pager = Pager(service.sealer)

    async def CreatePriceList(
        self, request: prices_pb2.CreatePriceListRequest, call: RequestContext
    ) -> prices_pb2.CreatePriceListResponse:
        asked = request.price_list
        kind = "sale" if asked.kind == prices_pb2.PRICE_LIST_KIND_SALE else "regular"
        channel = asked.channel or DEFAULT_CHANNEL
        row = await self._pricing.create_list(
            (asked.key, asked.name, channel, asked.currency, kind, asked.priority, asked.tax_included),
            _moment(asked, "start_time"),
            _moment(asked, "end_time") or FOREVER,
        )
        return prices_pb2.CreatePriceListResponse(price_list=_price_list(row))

    async def ListPriceLists(
        self, request: prices_pb2.ListPriceListsRequest, call: RequestContext
    ) -> prices_pb2.ListPriceListsResponse:
        size = self._pager.size(request)
        rows = await self._pricing.store.lists(self._pager.cursor(request, call), size + 1)
        response = prices_pb2.ListPriceListsResponse(price_lists=[_price_list(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = self._pager.token(request, call, rows[size - 1]["price_list_id"])
        return response

    async def EndPriceList(
        self, request: prices_pb2.EndPriceListRequest, call: RequestContext
    ) -> prices_pb2.EndPriceListResponse:
        row = await self._pricing.end_list(request.price_list_id, _moment(request, "end_time"))
        return prices_pb2.EndPriceListResponse(price_list=_price_list(row))

    async def SetPrices(
        self, request: prices_pb2.SetPricesRequest, call: RequestContext
    ) -> prices_pb2.SetPricesResponse:
        prices = [
            NewPrice(
                variant_id=price.variant_id,
                minor_units=price.minor_units if price.HasField("minor_units") else None,
                min_quantity=price.min_quantity or 1,
                start=_moment(price, "start_time"),
                end=_moment(price, "end_time") or FOREVER,
            )
            for price in request.prices
        ]
        rows = await self._pricing.set(request.price_list_id, prices, call.user.user_id)
        return prices_pb2.SetPricesResponse(entries=[_entry(row) for row in rows])

    async def ListPriceEntries(
        self, request: prices_pb2.ListPriceEntriesRequest, call: RequestContext
    ) -> prices_pb2.ListPriceEntriesResponse:
        size = self._pager.size(request)
        before = int(self._pager.cursor(request, call) or _LAST_SEQUENCE)
        rows = await self._pricing.store.history(request.variant_id, before, size + 1)
        response = prices_pb2.ListPriceEntriesResponse(entries=[_entry(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = self._pager.token(request, call, str(rows[size - 1]["sequence"]))
        return response

    async def ResolveVariants(
        self, request: prices_pb2.ResolveVariantsRequest, call: RequestContext
    ) -> prices_pb2.ResolveVariantsResponse:
        variants, at = await self._shopping.resolve(
            request.lines, request.channel, request.currency, _moment(request, "at_time")
        )
        return prices_pb2.ResolveVariantsResponse(variants=variants, at_time=timestamp(at))


class StorefrontService:
    def __init__(self, service: Service) -> None:
        self._shopping = Shopping(service.database, service.events)
        self._catalog = Catalog(service.database, service.events)
        self._pager = Pager(service.sealer)

    async def SearchProducts(
        self, request: storefront_pb2.SearchProductsRequest, call: RequestContext
    ) -> storefront_pb2.SearchProductsResponse:
        response, cursor = await self._shopping.search(request, self._pager.cursor(request, call))
        if cursor:
            response.next_page_token = self._pager.token(request, call, cursor)
        return response

    async def GetPublishedProduct(
        self, request: storefront_pb2.GetPublishedProductRequest, call: RequestContext
    ) -> storefront_pb2.GetPublishedProductResponse:
        return await self._shopping.product(request.slug, request.channel, request.currency)

    async def ListCollections(
        self, request: storefront_pb2.ListCollectionsRequest, call: RequestContext
    ) -> storefront_pb2.ListCollectionsResponse:
        size = self._pager.size(request)
        after = json.loads(self._pager.cursor(request, call) or "[]")
        collections = await self._catalog.collections.page(after, size + 1)
        response = storefront_pb2.ListCollectionsResponse(collections=collections[:size])
        if len(collections) > size:
            last = collections[size - 1]
            cursor = json.dumps([last.title, last.collection_id])
            response.next_page_token = self._pager.token(request, call, cursor)
        return response

    async def GetCollection(
        self, request: storefront_pb2.GetCollectionRequest, call: RequestContext
    ) -> storefront_pb2.GetCollectionResponse:
        collection = await self._catalog.collections.of_slug(request.slug)
        if collection is None:
            raise CollectionNotFound(collection=request.slug)
        return storefront_pb2.GetCollectionResponse(collection=collection)

    async def GetMedia(self, request: storefront_pb2.GetMediaRequest, call: RequestContext) -> HttpBody:
        row = await self._catalog.products.picture(request.media_id)
        if row is None:
            raise MediaNotFound(media_id=request.media_id)
        await call.rpc.send_initial_metadata(_PICTURES_KEEP)
        return HttpBody(content_type=row["content_type"], data=row["data"])


class ImportService:
    def __init__(self, service: Service) -> None:
        self._importing = Importing(service.database, service.events)
        self._pager = Pager(service.sealer)
        service.every(LOOK_SECONDS, self._importing.run)

    async def CreateImport(
        self, request: imports_pb2.CreateImportRequest, call: RequestContext
    ) -> imports_pb2.CreateImportResponse:
        import_id = new_id()
        await self._importing.store.insert(import_id, request.name, call.user.user_id)
        return imports_pb2.CreateImportResponse(product_import=await self._get(import_id))

    async def UploadImport(
        self, request: imports_pb2.UploadImportRequest, call: RequestContext
    ) -> imports_pb2.UploadImportResponse:
        await self._importing.upload(request.import_id, request.offset, request.data)
        return imports_pb2.UploadImportResponse(product_import=await self._get(request.import_id))

    async def StartImport(
        self, request: imports_pb2.StartImportRequest, call: RequestContext
    ) -> imports_pb2.StartImportResponse:
        await self._importing.start(request.import_id)
        return imports_pb2.StartImportResponse(product_import=await self._get(request.import_id))

    async def CancelImport(
        self, request: imports_pb2.CancelImportRequest, call: RequestContext
    ) -> imports_pb2.CancelImportResponse:
        await self._importing.cancel(request.import_id)
        return imports_pb2.CancelImportResponse(product_import=await self._get(request.import_id))

    async def GetImport(
        self, request: imports_pb2.GetImportRequest, call: RequestContext
    ) -> imports_pb2.GetImportResponse:
        return imports_pb2.GetImportResponse(product_import=await self._get(request.import_id))

    async def ListImports(
        self, request: imports_pb2.ListImportsRequest, call: RequestContext
    ) -> imports_pb2.ListImportsResponse:
        size = self._pager.size(request)
        rows = await self._importing.store.page(self._pager.cursor(request, call), size + 1)
        response = imports_pb2.ListImportsResponse(imports=[_import(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = self._pager.token(request, call, rows[size - 1]["import_id"])
        return response

    async def ListImportErrors(
        self, request: imports_pb2.ListImportErrorsRequest, call: RequestContext
    ) -> imports_pb2.ListImportErrorsResponse:
        await self._importing.get(request.import_id)
        size = self._pager.size(request)
        after = int(self._pager.cursor(request, call) or 0)
        errors = await self._importing.store.errors(request.import_id, after, size + 1)
        response = imports_pb2.ListImportErrorsResponse(
            errors=[
                imports_pb2.ImportError(row=error.row, column=error.column, value=error.value, message=error.message)
                for error in errors[:size]
            ]
        )
        if len(errors) > size:
            response.next_page_token = self._pager.token(request, call, str(errors[size - 1].row))
        return response

    async def _get(self, import_id: str) -> imports_pb2.Import:
        return _import(await self._importing.get(import_id))


def _moment(message: Any, field: str) -> Any:
    return moment(getattr(message, field)) if message.HasField(field) else None


def _until(end: Any) -> Timestamp | None:
    return timestamp(end) if end != FOREVER else None


def _price_list(row: Any) -> prices_pb2.PriceList:
    return prices_pb2.PriceList(
        price_list_id=row["price_list_id"],
        key=row["key"],
        name=row["name"],
        channel=row["channel"],
        currency=row["currency"],
        kind=prices_pb2.PriceListKind.Value(f"PRICE_LIST_KIND_{row['kind'].upper()}"),
        priority=row["priority"],
        tax_included=row["tax_included"],
        start_time=timestamp(row["start_time"]),
        end_time=_until(row["end_time"]),
        create_time=timestamp(row["create_time"]),
    )


def _entry(row: Any) -> prices_pb2.PriceEntry:
    price = row["minor_units"]
    return prices_pb2.PriceEntry(
        entry_id=row["entry_id"],
        price_list_id=row["price_list_id"],
        variant_id=row["variant_id"],
        price=Money(currency=row["currency"], minor_units=price) if price is not None else None,
        min_quantity=row["min_quantity"],
        start_time=timestamp(row["start_time"]),
        end_time=_until(row["end_time"]),
        create_time=timestamp(row["create_time"]),
        actor=row["actor"],
    )


def _import(row: Any) -> imports_pb2.Import:
    return imports_pb2.Import(
        import_id=row["import_id"],
        name=row["name"],
        state=imports_pb2.ImportState.Value(f"IMPORT_STATE_{row['state'].upper()}"),
        received=row["received"],
        rows=row["row_count"],
        rows_done=row["rows_done"],
        created=row["created"],
        updated=row["updated"],
        unchanged=row["unchanged"],
        rejected=row["rejected"],
        create_time=timestamp(row["create_time"]),
        finish_time=timestamp(row["finish_time"]) if row["finish_time"] else None,
    )
