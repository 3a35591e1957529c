"""PriceService: proto to rules and back."""

from google.protobuf.timestamp_pb2 import Timestamp

from nexus.commerce.puabo_nuki_product_catalog.v1 import prices_pb2 as pb
from services.chassis.clock import timestamp
from services.chassis.context import RequestContext
from services.chassis.messages import MessageOf, moment_in
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.commerce.puabo_nuki_product_catalog.prices import FOREVER
from services.commerce.puabo_nuki_product_catalog.pricing import Pricing
from services.commerce.puabo_nuki_product_catalog.shopping import Shopping

_LAST_SEQUENCE = 2**63 - 1
_list_of = MessageOf(pb.PriceList)
_entry_of = MessageOf(pb.PriceEntry, price="minor_units")


class PriceService:
    def __init__(self, service: Service) -> None:
        self._pricing = Pricing(service.database, service.events)
        self._shopping = Shopping(service.database, service.events)
        self._pager = Pager(service.sealer)

    async def CreatePriceList(
        self, request: pb.CreatePriceListRequest, call: RequestContext
    ) -> pb.CreatePriceListResponse:
        return pb.CreatePriceListResponse(price_list=_price_list(await self._pricing.create_list(request.price_list)))

    async def ListPriceLists(
        self, request: pb.ListPriceListsRequest, call: RequestContext
    ) -> pb.ListPriceListsResponse:
        rows, more = await self._pager.page(request, call, self._pricing.store.lists.page, by="price_list_id")
        return pb.ListPriceListsResponse(price_lists=map(_price_list, rows), next_page_token=more)

    async def EndPriceList(self, request: pb.EndPriceListRequest, call: RequestContext) -> pb.EndPriceListResponse:
        row = await self._pricing.end_list(request.price_list_id, moment_in(request, "end_time"))
        return pb.EndPriceListResponse(price_list=_price_list(row))

    async def SetPrices(self, request: pb.SetPricesRequest, call: RequestContext) -> pb.SetPricesResponse:
        rows = await self._pricing.set(request.price_list_id, request.prices, call.user.user_id)
        return pb.SetPricesResponse(entries=map(_entry, rows))

    async def ListPriceEntries(
        self, request: pb.ListPriceEntriesRequest, call: RequestContext
    ) -> pb.ListPriceEntriesResponse:
        async def fetch(before: str, limit: int) -> list[Row]:
            return await self._pricing.store.history(request.variant_id, int(before or _LAST_SEQUENCE), limit)

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
