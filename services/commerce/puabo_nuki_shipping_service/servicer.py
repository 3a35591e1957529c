"""ShippingService and FulfilmentService: proto to use cases and back."""

import asyncio
import datetime
from functools import partial
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
from services.chassis.clock import moment, now, timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf, text_of, values_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.chassis.tenants import TenantDirectory
from services.commerce.puabo_nuki_shipping_service import packing, packing_check, rating, runs
from services.commerce.puabo_nuki_shipping_service.carriers import SIGNATURE_HEADER, read_report, verify
from services.commerce.puabo_nuki_shipping_service.shipping import (
    CARRIERS,
    LOCAL,
    Shipping,
    message_of,
    order_of,
    scan_of,
)
from services.commerce.puabo_nuki_shipping_service.spec import Config

M = TypeVar("M", bound=Message)

ZONE, RATE_TABLE, BOX = "zone", "rate table", "box"
MOST_DEFINITIONS = 1000

_QUOTED = ("carrier", "service", "min_days", "max_days", "zone_id", "rate_table_id")

_tracked = MessageOf(pb.TrackParcelResponse)
_closed = MessageOf(events_pb2.ManifestClosed)
_manifest = MessageOf(model.Manifest, without=["lines"])
_manifest_line = MessageOf(model.ManifestLine)


class ShippingService:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._public_url = service.settings.public_url
        self._database = service.database
        self._events = service.events
        self._pager = Pager(service.sealer)
        self._tenants = TenantDirectory(service.database, service.signals)
        self._routes = service.clients.stub(RoutePlanningServiceStub)
        self._shipping = service.shared(Shipping)
        self._store = self._shipping.store
        self._shipments = self._store.shipments

    # what a tenant defines

    async def GetSettings(self, request: pb.GetSettingsRequest, call: RequestContext) -> pb.GetSettingsResponse:
        return pb.GetSettingsResponse(settings=await self._shipping.settings())

    async def SetSettings(self, request: pb.SetSettingsRequest, call: RequestContext) -> pb.SetSettingsResponse:
        try:
            ZoneInfo(request.settings.time_zone or "UTC")
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise _invalid("settings.time_zone", f"there is no time zone {request.settings.time_zone}") from None
        await self._store.settings.put(settings=request.settings)
        return pb.SetSettingsResponse(settings=request.settings)

    async def SetZone(self, request: pb.SetZoneRequest, call: RequestContext) -> pb.SetZoneResponse:
        await self._set(ZONE, request.zone.zone_id, request.zone)
        return pb.SetZoneResponse(zone=request.zone)

    async def DeleteZone(self, request: pb.DeleteZoneRequest, call: RequestContext) -> pb.DeleteZoneResponse:
        async with self._database.transaction():
            await self._store.lock_definitions()
            used_by = await self._store.zone_used_by(request.zone_id)
            if used_by is not None:
                raise ZoneInUse(zone_id=request.zone_id, rate_table_id=used_by)
            if not await self._delete(ZONE, request.zone_id):
                raise ZoneNotFound(zone_id=request.zone_id)
        return pb.DeleteZoneResponse()

    async def ListZones(self, request: pb.ListZonesRequest, call: RequestContext) -> pb.ListZonesResponse:
        zones, token = await self._page(request, call, ZONE, model.Zone)
        return pb.ListZonesResponse(zones=zones, next_page_token=token)

    async def SetRateTable(self, request: pb.SetRateTableRequest, call: RequestContext) -> pb.SetRateTableResponse:
        table = request.rate_table
        rating.check(table)
        if table.carrier not in CARRIERS:
            raise CarrierUnknown(carrier=table.carrier)
        async with self._database.transaction():
            await self._store.lock_definitions()
            if await self._store.definitions.find(kind=ZONE, definition_id=table.zone_id) is None:
                raise ZoneNotFound(zone_id=table.zone_id)
            await self._set(RATE_TABLE, table.rate_table_id, table)
        return pb.SetRateTableResponse(rate_table=table)

    async def DeleteRateTable(
        self, request: pb.DeleteRateTableRequest, call: RequestContext
    ) -> pb.DeleteRateTableResponse:
        if not await self._delete(RATE_TABLE, request.rate_table_id):
            raise RateTableNotFound(rate_table_id=request.rate_table_id)
        return pb.DeleteRateTableResponse()

    async def ListRateTables(
        self, request: pb.ListRateTablesRequest, call: RequestContext
    ) -> pb.ListRateTablesResponse:
        tables, token = await self._page(request, call, RATE_TABLE, model.RateTable)
        return pb.ListRateTablesResponse(rate_tables=tables, next_page_token=token)

    async def SetBox(self, request: pb.SetBoxRequest, call: RequestContext) -> pb.SetBoxResponse:
        await self._set(BOX, request.box.box_id, request.box)
        return pb.SetBoxResponse(box=request.box)

    async def DeleteBox(self, request: pb.DeleteBoxRequest, call: RequestContext) -> pb.DeleteBoxResponse:
        if not await self._delete(BOX, request.box_id):
            raise BoxNotFound(box_id=request.box_id)
        return pb.DeleteBoxResponse()

    async def ListBoxes(self, request: pb.ListBoxesRequest, call: RequestContext) -> pb.ListBoxesResponse:
        boxes, token = await self._page(request, call, BOX, model.Box)
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
        zone = rating.zone_of(request.to, await self._store.defined(ZONE, model.Zone))
        if zone is None:
            return pb.QuoteRatesResponse()
        expires = timestamp(now() + self._config.quote_lifetime)
        quotes = []
        for table in await self._store.defined(RATE_TABLE, model.RateTable):
            if (table.zone_id, table.currency) != (zone.zone_id, request.currency):
                continue
            price = rating.price(table, request.parcels, request.goods_value)
            if price is not None:
                quotes.append(
                    model.Quote(
                        quote_id=new_id(),
                        price=Money(currency=table.currency, minor_units=price),
                        expire_time=expires,
                        **values_of(table, *_QUOTED),
                    )
                )
        quotes.sort(key=lambda quote: (quote.price.minor_units, quote.max_days, quote.rate_table_id))
        given_for = {
            **values_of(request.to, "country", "postcode"),
            "most_grams": max(parcel.weight_grams for parcel in request.parcels),
            "expire_time": expires,
        }
        await self._store.quotes.insert_all(
            {"quote_id": quote.quote_id, "quote": quote, **given_for} for quote in quotes
        )
        return pb.QuoteRatesResponse(quotes=quotes)

    async def Pack(self, request: pb.PackRequest, call: RequestContext) -> pb.PackResponse:
        return pb.PackResponse(boxes=await _packed(self._shipping, request.items, request.box_ids))

    # shipments

    async def BuyLabel(self, request: pb.BuyLabelRequest, call: RequestContext) -> pb.BuyLabelResponse:
        return pb.BuyLabelResponse(shipment=await self._shipping.buy(request.order))

    async def VoidLabel(self, request: pb.VoidLabelRequest, call: RequestContext) -> pb.VoidLabelResponse:
        return pb.VoidLabelResponse(shipment=await self._shipping.void(request.shipment_id))

    async def GetShipment(self, request: pb.GetShipmentRequest, call: RequestContext) -> pb.GetShipmentResponse:
        row = await self._shipments.require(request.shipment_id)
        return pb.GetShipmentResponse(shipment=await self._shipping.followed(row))

    async def ListShipments(self, request: pb.ListShipmentsRequest, call: RequestContext) -> pb.ListShipmentsResponse:
        fetch = partial(
            self._shipments.page,
            state=text_of(model.ShipmentState, request.state) or None,
            order_id=request.order_id or None,
            carrier=request.carrier or None,
        )
        rows, more = await self._pager.page(request, call, fetch, by="shipment_id")
        return pb.ListShipmentsResponse(shipments=map(message_of, rows), next_page_token=more)

    async def GetLabel(self, request: pb.GetLabelRequest, call: RequestContext) -> HttpBody:
        row = await self._shipments.require(request.shipment_id)
        if row["tracking_number"] is None or row["state"] in ("VOIDING", "VOIDED"):
            raise LabelNotBought(shipment_id=request.shipment_id)
        kept = await self._store.labels.get(request.shipment_id)
        if kept is None:
            carrier = await self._shipping.carrier(row["carrier"])
            pdf = await carrier.label(row["carrier_reference"], message_of(row))
            await self._store.labels.insert_new(shipment_id=request.shipment_id, pdf=pdf)
            kept = await self._store.labels.require(request.shipment_id)  # the one that somebody kept first
        return HttpBody(content_type="application/pdf", data=kept["pdf"])

    async def RecordScan(self, request: pb.RecordScanRequest, call: RequestContext) -> pb.RecordScanResponse:
        row = await self._shipping.record(request.shipment_id, request.scan)
        return pb.RecordScanResponse(shipment=await self._shipping.followed(row))

    async def TrackParcel(self, request: pb.TrackParcelRequest, call: RequestContext) -> pb.TrackParcelResponse:
        row = await self._store.tracked(request.tracking_number)
        if row is None:
            raise ShipmentNotFound(shipment=request.tracking_number)
        expected = rating.working_days_after(row["create_time"].date(), row["max_days"]) if row["max_days"] else ""
        scans = map(scan_of, await self._store.scans_of(row["shipment_id"]))
        return _tracked(row, scans=scans, expected_date=str(expected))

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
            row = await self._store.tracked(report.tracking_number, request.carrier)
            if row is not None:
                for scan in filter(lambda scan: scan.status, report.scans):
                    await self._shipping.record(row["shipment_id"], scan)
        return pb.ReceiveCarrierWebhookResponse()

    # manifests and delivery runs

    async def CreateManifest(
        self, request: pb.CreateManifestRequest, call: RequestContext
    ) -> pb.CreateManifestResponse:
        if request.carrier not in CARRIERS:
            raise CarrierUnknown(carrier=request.carrier)
        async with self._database.transaction():
            row = await self._store.close_manifest(request.carrier)
            if row is None:
                raise NothingToManifest(carrier=request.carrier)
            await self._events.publish(_closed(row), aggregate=row["manifest_id"])
        return pb.CreateManifestResponse(manifest=await self._manifest(row["manifest_id"]))

    async def GetManifest(self, request: pb.GetManifestRequest, call: RequestContext) -> pb.GetManifestResponse:
        return pb.GetManifestResponse(manifest=await self._manifest(request.manifest_id))

    async def ListManifests(self, request: pb.ListManifestsRequest, call: RequestContext) -> pb.ListManifestsResponse:
        fetch = partial(self._store.manifests, carrier=request.carrier or None)
        rows, more = await self._pager.page(request, call, fetch, by="manifest_id")
        return pb.ListManifestsResponse(manifests=map(_manifest, rows), next_page_token=more)

    async def GetManifestDocument(self, request: pb.GetManifestDocumentRequest, call: RequestContext) -> HttpBody:
        manifest = await self._manifest(request.manifest_id)
        [first, *_] = await self._shipments.all(manifest_id=request.manifest_id)
        shipper = getattr(message_of(first), "from")
        pdf = await asyncio.to_thread(_draw, manifest, shipper, moment(manifest.create_time))
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
            waiting = [message_of(row) for row in await self._store.to_deliver(LOCAL, runs.MOST_STOPS)]
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
            row = await self._store.keep_run(run)
            planned = events_pb2.DeliveryRunPlanned(**values_of(run, "delivery_run_id", "date", "stops"))
            await self._events.publish(planned, aggregate=run.delivery_run_id)
        return pb.PlanDeliveryRunResponse(delivery_run=_run(row))

    async def GetDeliveryRun(
        self, request: pb.GetDeliveryRunRequest, call: RequestContext
    ) -> pb.GetDeliveryRunResponse:
        row = await self._store.runs.require(request.delivery_run_id)
        return pb.GetDeliveryRunResponse(delivery_run=_run(row))

    async def ListDeliveryRuns(
        self, request: pb.ListDeliveryRunsRequest, call: RequestContext
    ) -> pb.ListDeliveryRunsResponse:
        rows, more = await self._pager.page(request, call, self._store.runs.page, by="delivery_run_id")
        found = [_run(row) for row in rows]
        for run in found:
            run.ClearField("routes")
            run.ClearField("unplanned")
        return pb.ListDeliveryRunsResponse(delivery_runs=found, next_page_token=more)

    async def _set(self, kind: str, definition_id: str, body: Message) -> None:
        async with self._database.transaction():
            await self._store.lock_definitions()
            if await self._store.define(kind, definition_id, body) > MOST_DEFINITIONS:
                raise TooMany(count=MOST_DEFINITIONS, things=f"{kind}s")

    async def _delete(self, kind: str, definition_id: str) -> int:
        return await self._store.definitions.delete(kind=kind, definition_id=definition_id)

    async def _page(self, request: Any, call: RequestContext, kind: str, empty: type[M]) -> tuple[list[M], str]:
        fetch = partial(self._store.definitions.page, kind=kind)
        rows, more = await self._pager.page(request, call, fetch, by="definition_id")
        return [json_format.Parse(row["body"], empty()) for row in rows], more

    async def _manifest(self, manifest_id: str) -> model.Manifest:
        row = await self._store.manifest(manifest_id)
        if row is None:
            raise ManifestNotFound(manifest_id=manifest_id)
        shipments = await self._shipments.all(manifest_id=manifest_id)
        return _manifest(row, lines=map(_line_of, shipments))


class FulfilmentService:
    def __init__(self, service: Service) -> None:
        self._shipping = service.shared(Shipping)

    async def PackOrder(self, request: pb.PackOrderRequest, call: RequestContext) -> pb.PackOrderResponse:
        return pb.PackOrderResponse(boxes=await _packed(self._shipping, request.items, ()))

    async def ShipParcel(self, request: pb.ShipParcelRequest, call: RequestContext) -> pb.ShipParcelResponse:
        return pb.ShipParcelResponse(shipment=await self._shipping.buy(request.order))

    async def CancelParcel(self, request: pb.CancelParcelRequest, call: RequestContext) -> pb.CancelParcelResponse:
        return pb.CancelParcelResponse(shipment=await self._shipping.cancel(request.key))

    async def GetParcel(self, request: pb.GetParcelRequest, call: RequestContext) -> pb.GetParcelResponse:
        row = await self._shipping.shipments.find(key=request.key)
        if row is None:
            raise ShipmentNotFound(shipment=request.key)
        return pb.GetParcelResponse(shipment=await self._shipping.followed(row))


async def _packed(shipping: Shipping, items: Any, box_ids: Any) -> list[model.PackedBox]:
    """Packed, and checked by somebody else."""
    if sum(item.quantity for item in items) > packing.MOST_UNITS:
        raise _invalid("items", f"at most {packing.MOST_UNITS} things are packed at once")
    boxes = await shipping.store.defined(BOX, model.Box)
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


def _line_of(shipment: Row) -> model.ManifestLine:
    to = order_of(shipment).to
    return _manifest_line(shipment, postcode=to.postcode, country=to.country)


def _run(row: Row) -> model.DeliveryRun:
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


def _draw(manifest: model.Manifest, shipper: model.Address, created: datetime.datetime) -> bytes:
    """In a thread: what draws takes a second to load, and is loaded when the first document is asked for."""
    from services.commerce.puabo_nuki_shipping_service import labels

    return labels.manifest(manifest, shipper, created)
