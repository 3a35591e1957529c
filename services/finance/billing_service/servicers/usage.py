"""UsageService: meters, and the events that they read."""

from collections.abc import Sequence

from nexus.finance.billing_service.v1 import usage_pb2 as pb
from nexus.finance.billing_service.v1.faults import MeterKeyTaken
from services.chassis.clock import moment, now
from services.chassis.context import RequestContext
from services.chassis.messages import MessageOf, text_of, values_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.finance.billing_service import usage
from services.finance.billing_service.servicers.common import customer_of
from services.finance.billing_service.store import Store

_MOST_SUMS = 10_000
_WINDOWS = {
    pb.USAGE_WINDOW_UNSPECIFIED: "",
    pb.USAGE_WINDOW_HOUR: "hour",
    pb.USAGE_WINDOW_DAY: "day",
    pb.USAGE_WINDOW_MONTH: "month",
}
_meter = MessageOf(pb.Meter)
_sum = MessageOf(pb.UsageSum, start_time="start", end_time="end", group="group_value")


class UsageService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._store = Store(service.database)
        self._pager = Pager(service.sealer)

    async def CreateMeter(self, request: pb.CreateMeterRequest, call: RequestContext) -> pb.CreateMeterResponse:
        aggregation = text_of(pb.Aggregation, request.aggregation)
        usage.require_meter(aggregation, request.value_property)
        row = await self._store.meters.insert_new(
            aggregation=aggregation, **values_of(request, "key", "event_name", "value_property", "unit")
        )
        if row is None:
            raise MeterKeyTaken(key=request.key)
        return pb.CreateMeterResponse(meter=_meter(row))

    async def ListMeters(self, request: pb.ListMetersRequest, call: RequestContext) -> pb.ListMetersResponse:
        rows, more = await self._pager.page(request, call, self._store.meters.page, by="key")
        return pb.ListMetersResponse(meters=map(_meter, rows), next_page_token=more)

    async def RecordUsage(self, request: pb.RecordUsageRequest, call: RequestContext) -> pb.RecordUsageResponse:
        accepted = await self._ingest(request.events)
        return pb.RecordUsageResponse(accepted=accepted, duplicates=len(request.events) - accepted)

    async def IngestUsage(self, request: pb.IngestUsageRequest, call: RequestContext) -> pb.IngestUsageResponse:
        accepted = await self._ingest(request.events)
        return pb.IngestUsageResponse(accepted=accepted, duplicates=len(request.events) - accepted)

    async def QueryUsage(self, request: pb.QueryUsageRequest, call: RequestContext) -> pb.QueryUsageResponse:
        customer_id = customer_of(request.customer_id, call)
        start, end = moment(request.start_time), moment(request.end_time)
        usage.require_period(start, end)
        meter = await self._store.meters.require(request.meter_key)
        rows = await self._store.sums(
            meter, customer_id, start, end, _WINDOWS[request.window], request.group_by, _MOST_SUMS
        )
        return pb.QueryUsageResponse(sums=map(_sum, rows))

    async def _ingest(self, events: Sequence[pb.UsageEvent]) -> int:
        """Returns how many are new."""
        async with self._database.transaction():
            meters = await self._store.meters_reading(sorted({event.name for event in events}))
            uses = usage.accept(events, meters, now())
            # In one order everywhere, so that two calls with the same events do not wait for each other.
            uses.sort(key=lambda use: (use.event.source, use.event.event_id))
            return await self._store.insert_uses(uses)
