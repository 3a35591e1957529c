"""ShippingService and FulfilmentService: proto to use cases and back."""

import asyncio
import datetime
from collections.abc import Callable
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format
from google.protobuf.message import Message

from nexus.commerce.puabo_nuki_shipping_service.v1 import events_pb2
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipment_pb2 as model
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipping_pb2 as pb
from nexus.commerce.puabo_nuki_shipping_service.v1.faults import (
    BoxNotFound,
    CarrierUnknown,
    DeliveryRunNotFound,
    LabelNotBought,
    ManifestNotFound,
    NothingToDeliver,
    NothingToManifest,
    OriginWithoutLocation,
    RateTableNotFound,
    ShipmentNotFound,
    SignatureInvalid,
    TooMany,
    ZoneInUse,
    ZoneNotFound,
)
from nexus.logistics.puabo_nexus_route_optimizer.v1.route_optimizer_pb2 import PlanRoutesRequest
from nexus.logistics.puabo_nexus_route_optimizer.v1.route_optimizer_pb2_grpc import RoutePlanningServiceStub
from nexus.type.v1.faults import DependencyUnavailable, InvalidRequest
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import now, timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import new_id
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.tenants import TenantDirectory
from services.commerce.puabo_nuki_shipping_service import labels, packing, packing_check, rating, runs
from services.commerce.puabo_nuki_shipping_service.carriers import SIGNATURE_HEADER, read_report, verify
from services.commerce.puabo_nuki_shipping_service.shipping import (
    CARRIERS,
    LOCAL,
    RESUME_SECONDS,
    Shipping,
    message_of,
    scan_of,
)
from services.commerce.puabo_nuki_shipping_service.spec import Config

M = TypeVar("M", bound=Message)

ZONE, RATE_TABLE, BOX = "zone", "rate table", "box"
MOST_DEFINITIONS = 1000
_FORGET_SECONDS = 3600.0


class ShippingService:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._public_url = service.settings.public_url
        self._database = service.database
        self._events = service.events
        self._pager = Pager(service.sealer)
        self._tenants = TenantDirectory(service.database, service.signals)
        self._routes = service.clients.stub(RoutePlanningServiceStub)
        self._shipping = Shipping(service)
        self._definitions, self._shipments = self._shipping.definitions, self._shipping.shipments
        service.every(RESUME_SECONDS, self._shipping.resume)
        service.every(_FORGET_SECONDS, self._definitions.forget_quotes)

    # what a tenant defines

    async def GetSettings(self, request: pb.GetSettingsRequest, call: RequestContext) -> pb.GetSettingsResponse:
        return pb.GetSettingsResponse(settings=await self._shipping.settings())

    async def SetSettings(self, request: pb.SetSettingsRequest, call: RequestContext) -> pb.SetSettingsResponse:
        try:
            ZoneInfo(request.settings.time_zone or "UTC")
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise _invalid("settings.time_zone", f"there is no time zone {request.settings.time_zone}") from None
        await self._definitions.set_settings(request.settings)
        return pb.SetSettingsResponse(settings=request.settings)

    async def SetZone(self, request: pb.SetZoneRequest, call: RequestContext) -> pb.SetZoneResponse:
        await self._set(ZONE, request.zone.zone_id, request.zone)
        return pb.SetZoneResponse(zone=request.zone)

    async def DeleteZone(self, request: pb.DeleteZoneRequest, call: RequestContext) -> pb.DeleteZoneResponse:
        async with self._database.transaction():
            await self._definitions.lock()
            used_by = await self._definitions.zone_used_by(request.zone_id)
            if used_by is not None:
                raise ZoneInUse(zone_id=request.zone_id, rate_table_id=used_by)
            if not await self._definitions.delete(ZONE, request.zone_id):
                raise ZoneNotFound(zone_id=request.zone_id)
        return pb.DeleteZoneResponse()

    async def ListZones(self, request: pb.ListZonesRequest, call: RequestContext) -> pb.ListZonesResponse:
        zones, token = await self._page(request, call, ZONE, model.Zone, lambda zone: zone.zone_id)
        return pb.ListZonesResponse(zones=zones, next_page_token=token)

    async def SetRateTable(self, request: pb.SetRateTableRequest, call: RequestContext) -> pb.SetRateTableResponse:
        table = request.rate_table
        rating.check(table)
        if table.carrier not in CARRIERS:
            raise CarrierUnknown(carrier=table.carrier)
        async with self._database.transaction():
            await self._definitions.lock()
            if await self._definitions.get(ZONE, table.zone_id, model.Zone) is None:
                raise ZoneNotFound(zone_id=table.zone_id)
            await self._set(RATE_TABLE, table.rate_table_id, table)
        return pb.SetRateTableResponse(rate_table=table)

    async def DeleteRateTable(
        self, request: pb.DeleteRateTableRequest, call: RequestContext
    ) -> pb.DeleteRateTableResponse:
        if not await self._definitions.delete(RATE_TABLE, request.rate_table_id):
            raise RateTableNotFound(rate_table_id=request.rate_table_id)
        return pb.DeleteRateTableResponse()

    async def ListRateTables(
        self, request: pb.ListRateTablesRequest, call: RequestContext
    ) -> pb.ListRateTablesResponse:
        tables, token = await self._page(request, call, RATE_TABLE, model.RateTable, lambda table: table.rate_table_id)
        return pb.ListRateTablesResponse(rate_tables=tables, next_page_token=token)

    async def SetBox(self, request: pb.SetBoxRequest, call: RequestContext) -> pb.SetBoxResponse:
        await self._set(BOX, request.box.box_id, request.box)
        return pb.SetBoxResponse(box=request.box)

    async def DeleteBox(self, request: pb.DeleteBoxRequest, call: RequestContext) -> pb.DeleteBoxResponse:
        if not await self._definitions.delete(BOX, request.box_id):
            raise BoxNotFound(box_id=request.box_id)
        return pb.DeleteBoxResponse()

    async def ListBoxes(self, request: pb.ListBoxesRequest, call: RequestContext) -> pb.ListBoxesResponse:
        boxes, token = await self._page(request, call, BOX, model.Box, lambda box: box.box_id)
        return pb.ListBoxesResponse(boxes=boxes, next_page_token=token)

    async def SetCarrierAccount(
        self, request: pb.SetCarrierAccountRequest, call: RequestContext
    ) -> pb.SetCarrierAccountResponse:
        account = {"api_key": request.api_key, "webhook_secret": request.webhook_secret}
        await self._shipping.set_account(request.carrier, account)
        path = f"/api/v1/shipping/webhooks/{call.tenant_id}/{request.carrier}"
        return pb.SetCarrierAccountResponse(webhook_url=self._public_url.rstrip("/") + path)

    # rates and boxes

    async def QuoteRates(self, request: pb.QuoteRatesRequest, call: RequestContext) -> pb.QuoteRatesResponse:
        zone = rating.zone_of(request.to, await self._definitions.page(ZONE, model.Zone))
        if zone is None:
            return pb.QuoteRatesResponse()
        expires = timestamp(now() + self._config.quote_lifetime)
        quotes = []
        for table in await self._definitions.page(RATE_TABLE, model.RateTable):
            price = None
            if (table.zone_id, table.currency) == (zone.zone_id, request.currency):
                price = rating.price(table, request.parcels, request.goods_value)
            if price is not None:
                quotes.append(
                    model.Quote(
                        quote_id=new_id(),
                        carrier=table.carrier,
                        service=table.service,
                        price=Money(currency=table.currency, minor_units=price),
                        min_days=table.min_days,
                        max_days=table.max_days,
                        expire_time=expires,
                        zone_id=zone.zone_id,
                        rate_table_id=table.rate_table_id,
                    )
                )
        quotes.sort(key=lambda quote: (quote.price.minor_units, quote.max_days, quote.rate_table_id))
        heaviest = max(parcel.weight_grams for parcel in request.parcels)
        await self._definitions.keep_quotes(quotes, request.to, heaviest)
        return pb.QuoteRatesResponse(quotes=quotes)

    async def Pack(self, request: pb.PackRequest, call: RequestContext) -> pb.PackResponse:
        return pb.PackResponse(boxes=await _packed(self._shipping, request.items, request.box_ids))

    # shipments

    async def BuyLabel(self, request: pb.BuyLabelRequest, call: RequestContext) -> pb.BuyLabelResponse:
        return pb.BuyLabelResponse(shipment=message_of(await self._shipping.buy(request.order)))

    async def VoidLabel(self, request: pb.VoidLabelRequest, call: RequestContext) -> pb.VoidLabelResponse:
        return pb.VoidLabelResponse(shipment=message_of(await self._shipping.void(request.shipment_id)))

    async def GetShipment(self, request: pb.GetShipmentRequest, call: RequestContext) -> pb.GetShipmentResponse:
        row = await self._shipping.require(request.shipment_id)
        return pb.GetShipmentResponse(shipment=message_of(row, await self._shipments.scans(request.shipment_id)))

    async def ListShipments(self, request: pb.ListShipmentsRequest, call: RequestContext) -> pb.ListShipmentsResponse:
        state = model.ShipmentState.Name(request.state).removeprefix("SHIPMENT_STATE_") if request.state else None
        filters = {"state": state, "order_id": request.order_id or None, "carrier": request.carrier or None}
        size = self._pager.size(request)
        rows = await self._shipments.page(filters, self._pager.cursor(request, call), size + 1)
        return pb.ListShipmentsResponse(
            shipments=map(message_of, rows[:size]), next_page_token=self._next(request, call, rows, "shipment_id")
        )

    async def GetLabel(self, request: pb.GetLabelRequest, call: RequestContext) -> HttpBody:
        row = await self._shipping.require(request.shipment_id)
        if row["tracking_number"] is None or row["state"] in ("VOIDING", "VOIDED"):
            raise LabelNotBought(shipment_id=request.shipment_id)
        pdf = await self._shipments.label(request.shipment_id)
        if pdf is None:
            carrier = await self._shipping.carrier(row["carrier"])
            await self._shipments.keep_label(
                request.shipment_id, await carrier.label(row["carrier_reference"], message_of(row))
            )
            pdf = await self._shipments.label(request.shipment_id)
            assert pdf is not None, "somebody has just kept it"
        return HttpBody(content_type="application/pdf", data=pdf)

    async def RecordScan(self, request: pb.RecordScanRequest, call: RequestContext) -> pb.RecordScanResponse:
        row = await self._shipping.record(request.shipment_id, request.scan)
        return pb.RecordScanResponse(shipment=message_of(row, await self._shipments.scans(request.shipment_id)))

    async def TrackParcel(self, request: pb.TrackParcelRequest, call: RequestContext) -> pb.TrackParcelResponse:
        row = await self._shipments.by_tracking_number(request.tracking_number)
        if row is None:
            raise ShipmentNotFound(shipment=request.tracking_number)
        expected = rating.working_days_after(row["create_time"].date(), row["max_days"]) if row["max_days"] else None
        return pb.TrackParcelResponse(
            tracking_number=row["tracking_number"],
            carrier=row["carrier"],
            state=model.ShipmentState.Value(f"SHIPMENT_STATE_{row['state']}"),
            scans=[scan_of(scan) for scan in await self._shipments.scans(row["shipment_id"])],
            expected_date=expected.isoformat() if expected is not None else "",
        )

    async def ReceiveCarrierWebhook(
        self, request: pb.ReceiveCarrierWebhookRequest, call: RequestContext
    ) -> pb.ReceiveCarrierWebhookResponse:
        await self._tenants.require_active(request.tenant)
        call.tenant = request.tenant
        body, signature = request.body.data, call.metadata.get(SIGNATURE_HEADER, "")
        secret = (await self._shipping.account(request.carrier))["webhook_secret"]
        if not secret or not signature:
            raise SignatureInvalid()
        verify(body, signature, secret)
        report = read_report(body)
        if report is not None:
            row = await self._shipments.by_tracking_number(report.tracking_number, request.carrier)
            for scan in report.scans if row is not None else ():
                if row is not None and scan.status:
                    await self._shipping.record(row["shipment_id"], scan)
        return pb.ReceiveCarrierWebhookResponse()

    # manifests and delivery runs

    async def CreateManifest(
        self, request: pb.CreateManifestRequest, call: RequestContext
    ) -> pb.CreateManifestResponse:
        if request.carrier not in CARRIERS:
            raise CarrierUnknown(carrier=request.carrier)
        async with self._database.transaction():
            row = await self._shipments.close_manifest(request.carrier)
            if row is None:
                raise NothingToManifest(carrier=request.carrier)
            closed = events_pb2.ManifestClosed(
                manifest_id=row["manifest_id"], carrier=row["carrier"], shipments=row["shipments"]
            )
            await self._events.publish(closed, aggregate=row["manifest_id"])
        return pb.CreateManifestResponse(manifest=await self._manifest(row["manifest_id"]))

    async def GetManifest(self, request: pb.GetManifestRequest, call: RequestContext) -> pb.GetManifestResponse:
        return pb.GetManifestResponse(manifest=await self._manifest(request.manifest_id))

    async def ListManifests(self, request: pb.ListManifestsRequest, call: RequestContext) -> pb.ListManifestsResponse:
        size = self._pager.size(request)
        before = self._pager.cursor(request, call) or None
        rows = await self._shipments.manifests(request.carrier or None, before, size + 1)
        return pb.ListManifestsResponse(
            manifests=map(_manifest, rows[:size]), next_page_token=self._next(request, call, rows, "manifest_id")
        )

    async def GetManifestDocument(self, request: pb.GetManifestDocumentRequest, call: RequestContext) -> HttpBody:
        manifest = await self._manifest(request.manifest_id)
        [first, *_] = await self._shipments.on_manifest(request.manifest_id)
        shipper = json_format.Parse(first["origin"], model.Address())
        created = manifest.create_time.ToDatetime(datetime.UTC)
        pdf = await asyncio.to_thread(labels.manifest, manifest, shipper, created)
        return HttpBody(content_type="application/pdf", data=pdf)

    async def PlanDeliveryRun(
        self, request: pb.PlanDeliveryRunRequest, call: RequestContext
    ) -> pb.PlanDeliveryRunResponse:
        settings, day = await self._shipping.settings(), _day(request.date)
        if not settings.origin.HasField("location"):
            raise OriginWithoutLocation()
        if any(vehicle.start_second >= vehicle.end_second for vehicle in request.vehicles):
            raise _invalid("vehicles", "a vehicle must be back after it starts")
        async with self._database.transaction():
            waiting = [message_of(row) for row in await self._shipments.to_deliver(LOCAL, runs.MOST_STOPS)]
            asked = {one.shipment_id: one for one in waiting if one.to.HasField("location")}
            if not waiting:
                raise NothingToDeliver()
            zone = ZoneInfo(settings.time_zone or "UTC")
            run = model.DeliveryRun(delivery_run_id=new_id(), date=request.date)
            if asked:
                question = runs.problem(day, zone, settings.origin.location, request.vehicles, asked.values())
                solution = (await self._routes.PlanRoutes(PlanRoutesRequest(problem=question))).solution
                run = runs.run_of(solution.plan, run.delivery_run_id, day, zone)
                if not runs.is_complete(run, asked):
                    raise DependencyUnavailable(dependency="route optimizer", retry_after=5)
            for one in waiting:
                if one.shipment_id not in asked:
                    run.unplanned.add(shipment_id=one.shipment_id, reason="nobody knows where it is")
            planned = [stop.shipment_id for route in run.routes for stop in route.stops]
            row = await self._shipments.keep_run(run, planned)
            told = events_pb2.DeliveryRunPlanned(delivery_run_id=run.delivery_run_id, date=run.date, stops=run.stops)
            await self._events.publish(told, aggregate=run.delivery_run_id)
        return pb.PlanDeliveryRunResponse(delivery_run=_run(row))

    async def GetDeliveryRun(
        self, request: pb.GetDeliveryRunRequest, call: RequestContext
    ) -> pb.GetDeliveryRunResponse:
        rows = await self._shipments.runs(delivery_run_id=request.delivery_run_id)
        if not rows:
            raise DeliveryRunNotFound(delivery_run_id=request.delivery_run_id)
        return pb.GetDeliveryRunResponse(delivery_run=_run(rows[0]))

    async def ListDeliveryRuns(
        self, request: pb.ListDeliveryRunsRequest, call: RequestContext
    ) -> pb.ListDeliveryRunsResponse:
        size = self._pager.size(request)
        rows = await self._shipments.runs(self._pager.cursor(request, call) or None, size + 1)
        found = [_run(row) for row in rows[:size]]
        for run in found:
            run.ClearField("routes")
            run.ClearField("unplanned")
        return pb.ListDeliveryRunsResponse(
            delivery_runs=found, next_page_token=self._next(request, call, rows, "delivery_run_id")
        )

    async def _set(self, kind: str, definition_id: str, body: Message) -> None:
        async with self._database.transaction():
            await self._definitions.lock()
            if await self._definitions.set(kind, definition_id, body) > MOST_DEFINITIONS:
                raise TooMany(count=MOST_DEFINITIONS, things=f"{kind}s")

    async def _page(
        self, request: Any, call: RequestContext, kind: str, empty: type[M], name: Callable[[M], str]
    ) -> tuple[list[M], str]:
        size = self._pager.size(request)
        found = await self._definitions.page(kind, empty, self._pager.cursor(request, call), size + 1)
        return found[:size], self._pager.token(request, call, name(found[size - 1])) if len(found) > size else ""

    def _next(self, request: Any, call: RequestContext, rows: Any, name: str) -> str:
        size = self._pager.size(request)
        return self._pager.token(request, call, rows[size - 1][name]) if len(rows) > size else ""

    async def _manifest(self, manifest_id: str) -> model.Manifest:
        row = await self._shipments.manifest(manifest_id)
        if row is None:
            raise ManifestNotFound(manifest_id=manifest_id)
        manifest = _manifest(row)
        for shipment in map(message_of, await self._shipments.on_manifest(manifest_id)):
            manifest.lines.add(
                shipment_id=shipment.shipment_id,
                tracking_number=shipment.tracking_number,
                service=shipment.service,
                postcode=shipment.to.postcode,
                country=shipment.to.country,
                weight_grams=shipment.parcel.weight_grams,
            )
        return manifest


class FulfilmentService:
    def __init__(self, service: Service) -> None:
        self._shipping = Shipping(service)

    async def PackOrder(self, request: pb.PackOrderRequest, call: RequestContext) -> pb.PackOrderResponse:
        return pb.PackOrderResponse(boxes=await _packed(self._shipping, request.items, ()))

    async def ShipParcel(self, request: pb.ShipParcelRequest, call: RequestContext) -> pb.ShipParcelResponse:
        return pb.ShipParcelResponse(shipment=message_of(await self._shipping.buy(request.order)))

    async def CancelParcel(self, request: pb.CancelParcelRequest, call: RequestContext) -> pb.CancelParcelResponse:
        row = await self._shipping.cancel(request.key)
        return pb.CancelParcelResponse(shipment=message_of(row) if row is not None else None)

    async def GetParcel(self, request: pb.GetParcelRequest, call: RequestContext) -> pb.GetParcelResponse:
        row = await self._shipping.shipments.by_key(request.key)
        if row is None:
            raise ShipmentNotFound(shipment=request.key)
        return pb.GetParcelResponse(shipment=message_of(row, await self._shipping.shipments.scans(row["shipment_id"])))


async def _packed(shipping: Shipping, items: Any, box_ids: Any) -> list[model.PackedBox]:
    """Packed, and checked by somebody else."""
    if sum(item.quantity for item in items) > packing.MOST_UNITS:
        raise _invalid("items", f"at most {packing.MOST_UNITS} things are packed at once")
    boxes = await shipping.definitions.page(BOX, model.Box)
    if box_ids:
        missing = set(box_ids) - {box.box_id for box in boxes}
        if missing:
            raise BoxNotFound(box_id=min(missing))
        boxes = [box for box in boxes if box.box_id in box_ids]
    if not boxes:
        raise BoxNotFound(box_id="at all")
    packed = await asyncio.to_thread(packing.pack, items, boxes)
    broken = packing_check.broken_rules(items, boxes, packed)
    assert not broken, broken
    return packed


def _manifest(row: Any) -> model.Manifest:
    return model.Manifest(
        manifest_id=row["manifest_id"],
        carrier=row["carrier"],
        shipments=row["shipments"],
        weight_grams=row["weight_grams"],
        create_time=timestamp(row["create_time"]),
    )


def _run(row: Any) -> model.DeliveryRun:
    run = json_format.Parse(row["run"], model.DeliveryRun())
    run.create_time.CopyFrom(timestamp(row["create_time"]))
    return run


def _day(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise _invalid("date", f"there is no day {text}") from None


def _invalid(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(violations=[(field, what)], summary=f"{field}: {what}")
