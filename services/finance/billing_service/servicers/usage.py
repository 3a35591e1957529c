"""UsageService: meters, and the events that they read."""

import json
from collections.abc import Sequence

from nexus.finance.billing_service.v1 import usage_pb2 as pb
from nexus.finance.billing_service.v1.faults import MeterKeyTaken, MeterNotFound
from services.chassis.clock import moment, now, timestamp
from services.chassis.context import RequestContext
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.finance.billing_service import usage
from services.finance.billing_service.servicers.common import customer_of
from services.finance.billing_service.stores.plans import PlanStore, Row

_MOST_SUMS = 10_000
_WINDOWS = {
    pb.USAGE_WINDOW_UNSPECIFIED: "",
    pb.USAGE_WINDOW_HOUR: "hour",
    pb.USAGE_WINDOW_DAY: "day",
    pb.USAGE_WINDOW_MONTH: "month",
}


class UsageService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._store = PlanStore(service.database)
        self._pager = Pager(service.sealer)

    async def CreateMeter(self, request: pb.CreateMeterRequest, call: RequestContext) -> pb.CreateMeterResponse:
        aggregation = pb.Aggregation.Name(request.aggregation).removeprefix("AGGREGATION_")
        usage.require_meter(aggregation, request.value_property)
        row = await self._store.insert_meter(
            request.key, request.event_name, aggregation, request.value_property, request.unit
        )
        if row is None:
            raise MeterKeyTaken(key=request.key)
        return pb.CreateMeterResponse(meter=_meter(row))

    async def ListMeters(self, request: pb.ListMetersRequest, call: RequestContext) -> pb.ListMetersResponse:
        size = self._pager.size(request)
        rows = await self._store.meters(self._pager.cursor(request, call), size + 1)
        more = self._pager.token(request, call, rows[size - 1]["key"]) if len(rows) > size else ""
        return pb.ListMetersResponse(meters=map(_meter, rows[:size]), next_page_token=more)

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
        meter = await self._store.meter(request.meter_key)
        if meter is None:
            raise MeterNotFound(key=request.meter_key)
        rows = await self._store.sums(
            meter, customer_id, start, end, _WINDOWS[request.window], request.group_by, _MOST_SUMS
        )
        return pb.QueryUsageResponse(
            sums=[
                pb.UsageSum(
                    start_time=timestamp(row["start"]),
                    end_time=timestamp(row["end"]),
                    group=row["group_value"],
                    value=f"{row['value'].normalize():f}",
                    events=row["events"],
                )
                for row in rows
            ]
        )

    async def _ingest(self, events: Sequence[pb.UsageEvent]) -> int:
        """Returns how many are new."""
        async with self._database.transaction():
            meters = await self._store.meters_reading(sorted({event.name for event in events}))
            uses = usage.accept(events, meters, now())
            # In one order everywhere, so that two calls with the same events do not wait for each other.
            uses.sort(key=lambda use: (use.event.source, use.event.event_id))
            return await self._store.insert_events(
                [use.event.source for use in uses],
                [use.event.event_id for use in uses],
                [use.event.name for use in uses],
                [use.event.customer_id for use in uses],
                [use.time for use in uses],
                [use.value for use in uses],
                [json.dumps(dict(use.event.properties)) for use in uses],
            )


def _meter(row: Row) -> pb.Meter:
    return pb.Meter(
        key=row["key"],
        event_name=row["event_name"],
        aggregation=pb.Aggregation.Value(f"AGGREGATION_{row['aggregation']}"),
        value_property=row["value_property"],
        unit=row["unit"],
        create_time=timestamp(row["create_time"]),
    )
