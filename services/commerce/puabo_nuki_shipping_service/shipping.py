"""The use cases around one shipment: buy its label, give it back, follow it.

A purchase spans a call to the carrier, so it is no single transaction: what is about to happen is written down first,
and whoever comes next, the caller or `resume`, finds out what became of it.
"""

import json
import logging
from datetime import timedelta
from typing import Any

from google.protobuf import json_format

from nexus.commerce.puabo_nuki_shipping_service.v1 import events_pb2
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
    ShipmentNotFound,
    ShipmentUnderWay,
)
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import now, timestamp
from services.chassis.context import acting_for, current_tenant
from services.chassis.service import Service
from services.commerce.puabo_nuki_shipping_service import tracking
from services.commerce.puabo_nuki_shipping_service.carriers import Carrier, EasyPost, OwnVehicles, Sandbox
from services.commerce.puabo_nuki_shipping_service.rating import compact
from services.commerce.puabo_nuki_shipping_service.spec import ACCOUNTS, Config
from services.commerce.puabo_nuki_shipping_service.store import DefinitionStore, SandboxBooks, ShipmentStore

SANDBOX, EASYPOST, LOCAL = "sandbox", "easypost", "local"
CARRIERS = (SANDBOX, EASYPOST, LOCAL)
RESUME_SECONDS = 20.0
_LEFT_ALONE = timedelta(minutes=1)
_BATCH = 20
_GIVEN_BACK = ("VOIDING", "VOIDED")

logger = logging.getLogger(__name__)


class Shipping:
    """What can be done with the shipments of the call's tenant."""

    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._database = service.database
        self._events = service.events
        self._sealer = service.sealer
        self._books = SandboxBooks(service.database)
        self.definitions = DefinitionStore(service.database)
        self.shipments = ShipmentStore(service.database)

    async def settings(self) -> pb.Settings:
        """Raises OriginUnknown."""
        settings = await self.definitions.settings()
        if settings is None:
            raise OriginUnknown()
        return settings

    async def require(self, shipment_id: str, *, lock: str = "") -> Any:
        """Raises ShipmentNotFound."""
        row = await self.shipments.by_id(shipment_id, lock=lock)
        if row is None:
            raise ShipmentNotFound(shipment=shipment_id)
        return row

    async def set_account(self, carrier: str, account: dict[str, str]) -> None:
        """Raises CarrierUnknown."""
        if carrier not in CARRIERS or carrier == LOCAL:
            raise CarrierUnknown(carrier=carrier)
        sealed = self._sealer.seal(json.dumps(account).encode(), ACCOUNTS.purpose_of(current_tenant(), carrier))
        await self.definitions.set_account(carrier, sealed)

    async def account(self, carrier: str) -> dict[str, str]:
        """Raises CarrierUnknown."""
        sealed = await self.definitions.account(carrier)
        if sealed is None:
            raise CarrierUnknown(carrier=carrier)
        account: dict[str, str] = json.loads(self._sealer.open(sealed, ACCOUNTS.purpose_of(current_tenant(), carrier)))
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

    async def buy(self, order: pb.LabelOrder) -> Any:
        """The shipment with its label."""
        async with self._database.transaction():
            await self.shipments.lock_key(order.key)
            row = await self.shipments.by_key(order.key)
            if await self.shipments.is_cancelled(order.key) or (row is not None and row["state"] in _GIVEN_BACK):
                raise KeyTaken(key=order.key)
            if row is not None and row["state"] != "REFUSED":
                if order_of(row) != order:
                    raise KeyTaken(key=order.key)
            else:
                row = await self._begin(order)
        return await self._buy(row) if row["state"] == "BUYING" else row

    async def void(self, shipment_id: str) -> Any:
        """The shipment without its label."""
        async with self._database.transaction():
            row = await self.require(shipment_id, lock="FOR UPDATE")
            if row["state"] in ("LABEL_BOUGHT", "BUYING"):
                await self.shipments.set_state(shipment_id, "VOIDING")
            elif row["state"] not in (*_GIVEN_BACK, "REFUSED"):
                raise ShipmentUnderWay(shipment_id=shipment_id)
        if row["state"] in ("VOIDED", "REFUSED"):
            return row
        return await self._void(await self.require(shipment_id))

    async def cancel(self, key: str) -> Any:
        """The shipment without its label, or None when there was none. Nothing is bought for the key any more."""
        async with self._database.transaction():
            await self.shipments.lock_key(key)
            row = await self.shipments.by_key(key)
            if row is None or row["state"] == "REFUSED":
                await self.shipments.cancel_key(key)
        return await self.void(row["shipment_id"]) if row is not None else None

    async def record(self, shipment_id: str, scan: pb.Scan) -> Any:
        """The shipment after the scan. Raises ScanInvalid, LabelNotBought."""
        tracking.check(scan, now())
        async with self._database.transaction():
            row = await self.require(shipment_id, lock="FOR UPDATE")
            if row["tracking_number"] is None:
                raise LabelNotBought(shipment_id=shipment_id)
            if not await self.shipments.add_scan(shipment_id, scan):
                there = {known["scan_id"]: scan_of(known) for known in await self.shipments.scans(shipment_id)}
                if there.get(scan.scan_id, scan) != scan:
                    raise ScanInvalid(why="its id was used for another one")
                return row
            await self._move(row, scan)
            return await self.require(shipment_id)

    async def resume(self) -> None:
        """Look after shipments that somebody left while they were bought or given back."""
        for hanging in await self.shipments.hanging(_LEFT_ALONE, _BATCH):
            with acting_for(hanging["tenant_id"]):
                row = await self.require(hanging["shipment_id"])
                await self.shipments.touch(row["shipment_id"])
                try:
                    if row["state"] == "BUYING":
                        await self._buy(row)
                    elif row["state"] == "VOIDING":
                        await self._void(row)
                except (CarrierRefused, CarrierUnavailable, CarrierUnknown, KeyTaken) as fault:
                    logger.warning("a shipment still hangs: %s", fault, extra={"shipment_id": row["shipment_id"]})

    async def _begin(self, order: pb.LabelOrder) -> Any:
        origin = (await self.settings()).origin
        price, max_days = None, 0
        if order.HasField("quote_id"):
            kept = await self.definitions.quote(order.quote_id)
            if kept is None:
                raise QuoteExpired()
            if (kept["country"], compact(kept["postcode"])) != (order.to.country, compact(order.to.postcode)):
                raise QuoteNotForThis(why="it goes to another place")
            if order.parcel.weight_grams > kept["most_grams"]:
                raise QuoteNotForThis(why="the parcel is heavier")
            quote = json_format.Parse(kept["quote"], pb.Quote())
            carrier, service, price, max_days = quote.carrier, quote.service, quote.price, quote.max_days
        else:
            carrier, service = order.service.carrier, order.service.service
        await self.carrier(carrier)
        return await self.shipments.begin(order, origin, carrier, service, price, max_days)

    async def _buy(self, row: Any) -> Any:
        """Once for the carrier's reference, whoever asks, and however often."""
        shipment_id, carrier = row["shipment_id"], await self.carrier(row["carrier"])
        shipment = message_of(row)
        try:
            reference = row["carrier_reference"]
            if not reference:
                reference = await self._prepared(shipment_id, await carrier.prepare(shipment))
            bought = await carrier.buy(reference, shipment)
        except CarrierRefused as refused:
            await self.shipments.set_refused(shipment_id, refused.metadata.get("why", ""))
            raise
        async with self._database.transaction():
            first = await self.shipments.set_bought(shipment_id, bought.tracking_number, bought.cost)
            row = await self.require(shipment_id)
            if first:
                event = events_pb2.LabelBought(
                    carrier=row["carrier"],
                    service=row["service"],
                    tracking_number=bought.tracking_number,
                    cost=bought.cost,
                    **_names(row),
                )
                await self._events.publish(event, aggregate=shipment_id)
        if row["state"] in _GIVEN_BACK:  # somebody cancelled it meanwhile
            await carrier.void(reference)
            raise KeyTaken(key=row["key"])
        return row

    async def _prepared(self, shipment_id: str, reference: str) -> str:
        """The reference that is bought: of two calls at the same time, the one that came first."""
        async with self._database.transaction():
            row = await self.require(shipment_id, lock="FOR UPDATE")
            if row["carrier_reference"]:
                return str(row["carrier_reference"])
            await self.shipments.set_reference(shipment_id, reference)
        return reference

    async def _void(self, row: Any) -> Any:
        if row["carrier_reference"]:
            await (await self.carrier(row["carrier"])).void(row["carrier_reference"])
        async with self._database.transaction():
            row = await self.require(row["shipment_id"], lock="FOR UPDATE")
            if row["state"] != "VOIDED":
                await self.shipments.set_state(row["shipment_id"], "VOIDED")
                event = events_pb2.LabelVoided(carrier=row["carrier"], cost=_cost(row), **_names(row))
                await self._events.publish(event, aggregate=row["shipment_id"])
            return await self.require(row["shipment_id"])

    async def _move(self, row: Any, scan: pb.Scan) -> None:
        """Bring the shipment as far as the scan says, and tell it."""
        shipment_id, status = row["shipment_id"], tracking.status_of(scan)
        if status == "EXCEPTION" and row["state"] not in ("DELIVERED", "RETURNED"):
            held = events_pb2.ShipmentHeldUp(message=scan.message, scan_time=scan.scan_time, **_names(row))
            await self._events.publish(held, aggregate=shipment_id)
        state = tracking.after(row["state"], status)
        if state == row["state"]:
            return
        delivered = state == "DELIVERED"
        when = scan.scan_time.ToDatetime(tzinfo=now().tzinfo) if delivered else row["deliver_time"]
        await self.shipments.set_state(shipment_id, state, when)
        event: events_pb2.ShipmentDelivered | events_pb2.ShipmentMoved
        if delivered:
            event = events_pb2.ShipmentDelivered(deliver_time=scan.scan_time, **_names(row))
        else:
            moved = pb.ShipmentState.Value(f"SHIPMENT_STATE_{state}")
            event = events_pb2.ShipmentMoved(state=moved, scan_time=scan.scan_time, **_names(row))
        await self._events.publish(event, aggregate=shipment_id)


def order_of(row: Any) -> pb.LabelOrder:
    return json_format.Parse(row["label_order"], pb.LabelOrder())


def scan_of(row: Any) -> pb.Scan:
    return pb.Scan(
        scan_id=row["scan_id"],
        status=pb.ScanStatus.Value(f"SCAN_STATUS_{row['status']}"),
        scan_time=timestamp(row["scan_time"]),
        place=row["place"],
        message=row["message"],
    )


def message_of(row: Any, scans: Any = ()) -> pb.Shipment:
    order = order_of(row)
    shipment = pb.Shipment(
        shipment_id=row["shipment_id"],
        key=row["key"],
        order_id=row["order_id"],
        state=pb.ShipmentState.Value(f"SHIPMENT_STATE_{row['state']}"),
        to=order.to,
        parcel=order.parcel,
        carrier=row["carrier"],
        service=row["service"],
        tracking_number=row["tracking_number"],
        cost=_cost(row),
        price=Money(currency=row["price_currency"], minor_units=row["price"]) if row["price_currency"] else None,
        note=order.note,
        scans=[scan_of(scan) for scan in scans],
        manifest_id=row["manifest_id"],
        delivery_run_id=row["delivery_run_id"],
        create_time=timestamp(row["create_time"]),
        deliver_time=timestamp(row["deliver_time"]) if row["deliver_time"] else None,
    )
    getattr(shipment, "from").CopyFrom(json_format.Parse(row["origin"], pb.Address()))
    return shipment


def _cost(row: Any) -> Money | None:
    return Money(currency=row["cost_currency"], minor_units=row["cost"]) if row["cost_currency"] else None


def _names(row: Any) -> dict[str, str]:
    return {"shipment_id": row["shipment_id"], "key": row["key"], "order_id": row["order_id"]}
