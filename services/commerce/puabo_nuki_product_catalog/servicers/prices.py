"""PriceService: proto to rules and back."""

from google.protobuf.timestamp_pb2 import Timestamp

from nexus.commerce.puabo_nuki_product_catalog.v1 import prices_pb2 as pb
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import (
    PriceListEnded,
    PriceListTaken,
    PricePast,
    VariantNotFound,
)
from services.chassis.clock import timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf, moment_in, values_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.commerce.puabo_nuki_product_catalog.prices import FOREVER
from services.commerce.puabo_nuki_product_catalog.pricing import DEFAULT_CHANNEL, Pricing, starting
from services.commerce.puabo_nuki_product_catalog.shopping import Shopping
from services.commerce.puabo_nuki_product_catalog.store.products import ProductStore

_LAST_SEQUENCE = 2**63 - 1
_list_of = MessageOf(pb.PriceList)
_entry_of = MessageOf(pb.PriceEntry, price="minor_units")


class PriceService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._products = ProductStore(service.database)
        self._pricing = Pricing(service.database, service.events)
        self._store = self._pricing.store
        self._shopping = Shopping(service.database, service.events)
        self._pager = Pager(service.sealer)

    async def CreatePriceList(
        self, request: pb.CreatePriceListRequest, call: RequestContext
    ) -> pb.CreatePriceListResponse:
        asked = request.price_list
        async with self._database.transaction():
            start = starting(await self._store.lock(), moment_in(asked, "start_time"))
            end = moment_in(asked, "end_time") or FOREVER
            if end <= start:
                raise PricePast(why="the list would end before it starts")
            row = await self._store.lists.insert_new(
                price_list_id=new_id(),
                **values_of(asked, "key", "name", "currency", "priority", "tax_included"),
                channel=asked.channel or DEFAULT_CHANNEL,
                kind="sale" if asked.kind == pb.PRICE_LIST_KIND_SALE else "regular",
                start_time=start,
                end_time=end,
            )
        if row is None:
            raise PriceListTaken(price_list=asked.key)
        return pb.CreatePriceListResponse(price_list=_price_list(row))

    async def ListPriceLists(
        self, request: pb.ListPriceListsRequest, call: RequestContext
    ) -> pb.ListPriceListsResponse:
        rows, more = await self._pager.page(request, call, self._store.lists.page, by="price_list_id")
        return pb.ListPriceListsResponse(price_lists=map(_price_list, rows), next_page_token=more)

    async def EndPriceList(self, request: pb.EndPriceListRequest, call: RequestContext) -> pb.EndPriceListResponse:
        async with self._database.transaction():
            now = await self._store.lock()
            row = await self._store.lists.require(request.price_list_id)
            end = starting(now, moment_in(request, "end_time"))
            if row["end_time"] < end and request.HasField("end_time"):
                raise PriceListEnded(price_list=row["key"])
            if row["end_time"] > end:
                row = await self._store.lists.change(request.price_list_id, end_time=end)
                await self._pricing.refresh(await self._store.products_in_list(request.price_list_id), now)
        return pb.EndPriceListResponse(price_list=_price_list(row))

    async def SetPrices(self, request: pb.SetPricesRequest, call: RequestContext) -> pb.SetPricesResponse:
        list_id, prices = request.price_list_id, request.prices
        async with self._database.transaction():
            variants = await self._products.variant_rows.get_all([price.variant_id for price in prices])
            for price in prices:
                if price.variant_id not in variants:
                    raise VariantNotFound(variant_id=price.variant_id)
            now = await self._store.lock()
            price_list = await self._store.lists.require(list_id)
            if price_list["end_time"] <= now:
                raise PriceListEnded(price_list=price_list["key"])
            entry_ids = await self._pricing.record(list_id, prices, now, call.user.user_id)
            await self._pricing.refresh({variant["product_id"] for variant in variants.values()}, now)
            rows = await self._store.of_ids(entry_ids)
        return pb.SetPricesResponse(entries=map(_entry, rows))

    async def ListPriceEntries(
        self, request: pb.ListPriceEntriesRequest, call: RequestContext
    ) -> pb.ListPriceEntriesResponse:
        async def fetch(before: str, limit: int) -> list[Row]:
            return await self._store.history(request.variant_id, int(before or _LAST_SEQUENCE), limit)

        rows, more = await self._pager.page(request, call, fetch, by="sequence")
        return pb.ListPriceEntriesResponse(entries=map(_entry, rows), next_page_token=more)

    async def ResolveVariants(
        self, request: pb.ResolveVariantsRequest, call: RequestContext
    ) -> pb.ResolveVariantsResponse:
        variants, at = await self._shopping.resolve(
            request.lines, request.channel, request.currency, moment_in(request, "at_time")
        )
        return pb.ResolveVariantsResponse(variants=variants, at_time=timestamp(at))


def _price_list(row: Row) -> pb.PriceList:
    return _list_of(row, end_time=_until(row))


def _entry(row: Row) -> pb.PriceEntry:
    return _entry_of(row, end_time=_until(row))


def _until(row: Row) -> Timestamp | None:
    return timestamp(row["end_time"]) if row["end_time"] != FOREVER else None
