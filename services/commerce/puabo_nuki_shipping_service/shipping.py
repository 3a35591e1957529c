"""The use cases around one shipment: buy its label, give it back, follow it.

A purchase spans a call to the carrier, so it is no single transaction: what is about to happen is written down first,
and whoever comes next, the caller or `resume`, finds out what became of it.
"""

import json
import logging
from collections.abc import Iterable
from datetime import timedelta

from google.protobuf import json_format

from nexus.commerce.puabo_nuki_shipping_service.v1 import events_pb2 as events
from nexus.commerce.puabo_nuki_shipping_service.v1 import shipment_pb2 as pb
from nexus.commerce.puabo_nuki_shipping_service.v1.faults import (
    CarrierRefused,
    CarrierUnavailable,
    CarrierUnknown,
    KeyTaken,
    LabelNotBought,
    OriginUnknown,
    QuoteExpired,
    QuoteNotForThis,
    ScanInvalid,
    ShipmentUnderWay,
)
from services.chassis.clock import now
from services.chassis.context import acting_for, current_tenant
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf, values_of
from services.chassis.service import Service
from services.chassis.table import Row
from services.commerce.puabo_nuki_shipping_service import tracking
from services.commerce.puabo_nuki_shipping_service.carriers import Carrier, EasyPost, OwnVehicles, Sandbox
from services.commerce.puabo_nuki_shipping_service.rating import compact
from services.commerce.puabo_nuki_shipping_service.spec import ACCOUNTS, Config
from services.commerce.puabo_nuki_shipping_service.store import SandboxBooks, Store

SANDBOX, EASYPOST, LOCAL = "sandbox", "easypost", "local"
CARRIERS = (SANDBOX, EASYPOST, LOCAL)
_RESUME_SECONDS, _FORGET_SECONDS = 20.0, 3600.0
_LEFT_ALONE = timedelta(minutes=1)
_BATCH = 20
_GIVEN_BACK = ("VOIDING", "VOIDED")

_shipment = MessageOf(pb.Shipment, **{"from": "origin"})
_bought = MessageOf(events.LabelBought)
_voided = MessageOf(events.LabelVoided)
_held_up = MessageOf(events.ShipmentHeldUp)
_moved = MessageOf(events.ShipmentMoved)
_delivered = MessageOf(events.ShipmentDelivered)
scan_of = MessageOf(pb.Scan)

logger = logging.getLogger(__name__)


class Shipping:
    """What can be done with the shipments of the call's tenant."""

    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._database = service.database
        self._events = service.events
        self._sealer = service.sealer
        self._books = SandboxBooks(service.database)
        self.store = Store(service.database)
        self.shipments = self.store.shipments
        service.every(_RESUME_SECONDS, self.resume)
        service.every(_FORGET_SECONDS, self.store.forget_quotes)

    async def settings(self) -> pb.Settings:
        """Raises OriginUnknown."""
        row = await self.store.settings.find()
        if row is None:
            raise OriginUnknown()
        return json_format.Parse(row["settings"], pb.Settings())

    async def set_account(self, carrier: str, account: dict[str, str]) -> None:
        """Raises CarrierUnknown."""
        if carrier not in CARRIERS or carrier == LOCAL:
            raise CarrierUnknown(carrier=carrier)
        sealed = self._sealer.seal(json.dumps(account).encode(), ACCOUNTS.purpose_of(current_tenant(), carrier))
        await self.store.accounts.put(carrier=carrier, sealed=sealed)

    async def account(self, carrier: str) -> dict[str, str]:
        """Raises CarrierUnknown."""
        row = await self.store.accounts.require(carrier)
        opened = self._sealer.open(row["sealed"], ACCOUNTS.purpose_of(current_tenant(), carrier))
        account: dict[str, str] = json.loads(opened)
        return account

    async def carrier(self, name: str) -> Carrier:
        """Raises CarrierUnknown."""
        if name == SANDBOX:
            return Sandbox(self._books)
        if name == LOCAL:
            return OwnVehicles()
        if name == EASYPOST:
            account = await self.account(name)
            return EasyPost(self._config.easypost_url, account["api_key"], self._config.carrier_timeout)
        raise CarrierUnknown(carrier=name)

    async def buy(self, order: pb.LabelOrder) -> pb.Shipment:
        """The shipment with its label."""
        async with self._database.transaction():
            await self.store.lock_key(order.key)
            row = await self.shipments.find(key=order.key)
            cancelled = await self.store.cancelled_keys.get(order.key)
            if cancelled is not None or (row is not None and row["state"] in _GIVEN_BACK):
                raise KeyTaken(key=order.key)
            if row is None or row["state"] == "REFUSED":
                row = await self._begin(order, row)
            elif order_of(row) != order:
                raise KeyTaken(key=order.key)
        return message_of(await self._buy(row) if row["state"] == "BUYING" else row)

    async def void(self, shipment_id: str) -> pb.Shipment:
        """The shipment without its label."""
        async with self._database.transaction():
            row = await self.shipments.require(shipment_id, lock=True)
            if row["state"] in ("LABEL_BOUGHT", "BUYING"):
                row = await self.shipments.change(shipment_id, state="VOIDING")
            elif row["state"] not in (*_GIVEN_BACK, "REFUSED"):
                raise ShipmentUnderWay(shipment_id=shipment_id)
        return message_of(await self._void(row) if row["state"] == "VOIDING" else row)

    async def cancel(self, key: str) -> pb.Shipment | None:
        """The shipment without its label, or None when there was none. Nothing is bought for the key any more."""
        async with self._database.transaction():
            await self.store.lock_key(key)
            row = await self.shipments.find(key=key)
            if row is None or row["state"] == "REFUSED":
                await self.store.cancelled_keys.insert_new(key=key)
        return await self.void(row["shipment_id"]) if row is not None else None

    async def followed(self, row: Row) -> pb.Shipment:
        """With its scans."""
        return message_of(row, await self.store.scans_of(row["shipment_id"]))

    async def record(self, shipment_id: str, scan: pb.Scan) -> Row:
        """The shipment after the scan. Raises ScanInvalid, LabelNotBought."""
        tracking.check(scan, now())
        async with self._database.transaction():
            row = await self.shipments.require(shipment_id, lock=True)
            if row["tracking_number"] is None:
                raise LabelNotBought(shipment_id=shipment_id)
            added = await self.store.scans.insert_new(
                shipment_id=shipment_id,
                status=tracking.status_of(scan),
                **values_of(scan, "scan_id", "scan_time", "place", "message"),
            )
            if added is not None:
                return await self._move(row, scan)
            there = await self.store.scans.find(shipment_id=shipment_id, scan_id=scan.scan_id)
            if there is not None and scan_of(there) != scan:
                raise ScanInvalid(why="its id was used for another one")
            return row

    async def resume(self) -> None:
        """Look after shipments that somebody left while they were bought or given back."""
        for hanging in await self.store.hanging(_LEFT_ALONE, _BATCH):
            with acting_for(hanging["tenant_id"]):
                row = await self.shipments.change(hanging["shipment_id"])  # those that nobody looked after come first
                try:
                    if row["state"] == "BUYING":
                        await self._buy(row)
                    elif row["state"] == "VOIDING":
                        await self._void(row)
                except (CarrierRefused, CarrierUnavailable, CarrierUnknown, KeyTaken) as fault:
                    logger.warning("a shipment still hangs: %s", fault, extra={"shipment_id": row["shipment_id"]})

    async def _begin(self, order: pb.LabelOrder, refused: Row | None) -> Row:
        """A shipment that is being bought; in the place of one that was refused."""
        origin = (await self.settings()).origin
        quote = pb.Quote(carrier=order.service.carrier, service=order.service.service)
        if order.HasField("quote_id"):
            kept = await self.store.quotes.get(order.quote_id)
            if kept is None or kept["expire_time"] <= now():
                raise QuoteExpired()
            if (kept["country"], compact(kept["postcode"])) != (order.to.country, compact(order.to.postcode)):
                raise QuoteNotForThis(why="it goes to another place")
            if order.parcel.weight_grams > kept["most_grams"]:
                raise QuoteNotForThis(why="the parcel is heavier")
            quote = json_format.Parse(kept["quote"], pb.Quote())
        await self.carrier(quote.carrier)
        begun = {
            "state": "BUYING",
            "order_id": order.order_id,
            "label_order": order,
            "origin": origin,
            "carrier": quote.carrier,
            "service": quote.service,
            "weight_grams": order.parcel.weight_grams,
            "price": quote.price.minor_units if quote.HasField("price") else None,
            "price_currency": quote.price.currency if quote.HasField("price") else None,
            "max_days": quote.max_days,
        }
        if refused is not None:
            return await self.shipments.change(refused["shipment_id"], carrier_reference="", refusal="", **begun)
        return await self.shipments.insert(shipment_id=new_id(), key=order.key, **begun)

    async def _buy(self, row: Row) -> Row:
        """Once for the carrier's reference, whoever asks, and however often."""
        shipment_id, carrier = row["shipment_id"], await self.carrier(row["carrier"])
        shipment, being_bought = message_of(row), {"state": "BUYING"}
        try:
            reference = row["carrier_reference"]
            if not reference:
                reference = await self._prepared(shipment_id, await carrier.prepare(shipment))
            bought = await carrier.buy(reference, shipment)
        except CarrierRefused as refused:
            why = refused.metadata.get("why", "")
            await self.shipments.update(shipment_id, where=being_bought, state="REFUSED", refusal=why)
            raise
        async with self._database.transaction():
            sold = await self.shipments.update(
                shipment_id,
                where=being_bought,
                state="LABEL_BOUGHT",
                tracking_number=bought.tracking_number,
                cost=bought.cost.minor_units,
                cost_currency=bought.cost.currency,
            )
            if sold is not None:
                await self._events.publish(_bought(sold), aggregate=shipment_id)
                return sold
        row = await self.shipments.require(shipment_id)
        if row["state"] in _GIVEN_BACK:  # somebody cancelled it meanwhile
            await carrier.void(reference)
            raise KeyTaken(key=row["key"])
        return row

    async def _prepared(self, shipment_id: str, reference: str) -> str:
        """The reference that is bought: of two calls at the same time, the one that came first."""
        await self.shipments.update(shipment_id, where={"carrier_reference": ""}, carrier_reference=reference)
        return str((await self.shipments.require(shipment_id))["carrier_reference"])

    async def _void(self, row: Row) -> Row:
        if row["carrier_reference"]:
            await (await self.carrier(row["carrier"])).void(row["carrier_reference"])
        async with self._database.transaction():
            row = await self.shipments.require(row["shipment_id"], lock=True)
            if row["state"] != "VOIDED":
                row = await self.shipments.change(row["shipment_id"], state="VOIDED")
                await self._events.publish(_voided(row), aggregate=row["shipment_id"])
        return row

    async def _move(self, row: Row, scan: pb.Scan) -> Row:
        """Bring the shipment as far as the scan says, and tell it."""
        shipment_id, status = row["shipment_id"], tracking.status_of(scan)
        if status == "EXCEPTION" and row["state"] not in ("DELIVERED", "RETURNED"):
            held_up = _held_up(row, message=scan.message, scan_time=scan.scan_time)
            await self._events.publish(held_up, aggregate=shipment_id)
        state = tracking.after(row["state"], status)
        if state == row["state"]:
            return row
        if state == "DELIVERED":
            row = await self.shipments.change(shipment_id, state=state, deliver_time=scan.scan_time)
            await self._events.publish(_delivered(row, deliver_time=scan.scan_time), aggregate=shipment_id)
        else:
            row = await self.shipments.change(shipment_id, state=state)
            await self._events.publish(_moved(row, scan_time=scan.scan_time), aggregate=shipment_id)
        return row


def order_of(row: Row) -> pb.LabelOrder:
    return json_format.Parse(row["label_order"], pb.LabelOrder())


def message_of(row: Row, scans: Iterable[Row] = ()) -> pb.Shipment:
    order = order_of(row)
    return _shipment(row, to=order.to, parcel=order.parcel, note=order.note, scans=map(scan_of, scans))
