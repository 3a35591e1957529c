"""What is done with stock: each method one transaction, with its events.

Locks are taken in one order everywhere: reservations first, then levels by item and location. So two calls never wait
for each other, and 100 buyers of the last unit are served one after the other.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import timedelta

from nexus.commerce.puabo_nuki_inventory_mgr.v1 import events_pb2
from nexus.commerce.puabo_nuki_inventory_mgr.v1.faults import (
    LocationChanged,
    LocationNotFound,
    ReservationExpired,
    ReservationSettled,
    TransferPointless,
)
from nexus.commerce.puabo_nuki_inventory_mgr.v1.inventory_pb2 import Location
from services.chassis.context import acting_for
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.ids import new_id
from services.chassis.messages import values_of
from services.chassis.table import Row
from services.commerce.puabo_nuki_inventory_mgr import stock as rules
from services.commerce.puabo_nuki_inventory_mgr.stock import Occasion, Place, Stock
from services.commerce.puabo_nuki_inventory_mgr.store import ReservationStore, StockStore

SWEEP_SECONDS = 1.0
SYSTEM = "puabo-nuki-inventory-mgr"
"""The actor of what nobody asked for."""
_SWEEP_BATCH = 200


class Warehouse:
    def __init__(self, database: Database, events: Events) -> None:
        self._database = database
        self._events = events
        self._stock = StockStore(database)
        self._reservations = ReservationStore(database)

    async def set_location(self, asked: Location) -> Row:
        """Raises LocationChanged."""
        locations = self._stock.locations
        async with self._database.transaction():
            found = await locations.get(asked.location_id, lock=True)
            if found is not None and asked.etag not in ("", str(found["version"])):
                raise LocationChanged()
            return await locations.put(**values_of(asked, "location_id", "name", "country", "priority", "closed"))

    async def change(self, places: Collection[Place], work: Callable[[Stock], None], occasion: Occasion) -> Stock:
        """Do something with the levels at these places; returns how they are then. Raises LocationNotFound."""
        async with self._database.transaction():
            await self._require_locations({place.location_id for place in places})
            stock = await self._stock.lock({place.item_id for place in places}, places)
            work(stock)
            await self._write(stock, occasion)
        return stock

    async def transfer(self, origin: str, destination: str, lines: Mapping[str, int], occasion: Occasion) -> Stock:
        """Raises TransferPointless, LocationNotFound, StockInsufficient."""
        if origin == destination:
            raise TransferPointless(location_id=origin)

        def move(stock: Stock) -> None:
            for item_id, quantity in lines.items():
                stock.move(Place(item_id, origin), -quantity, "transferred")
                stock.move(Place(item_id, destination), quantity, "transferred")

        places = [Place(item_id, location) for item_id in lines for location in (origin, destination)]
        return await self.change(places, move, occasion)

    async def reserve(self, wanted: Mapping[Place, int], *, lifetime: timedelta, reference: str, actor: str) -> str:
        """Returns the id of the reservation. Raises StockInsufficient, LocationNotFound."""
        reservation_id = new_id()
        item_ids = {place.item_id for place in wanted}
        async with self._database.transaction():
            await self._require_locations({place.location_id for place in wanted} - {""})
            # What expired a moment ago can be sold, whether or not the sweep has come by.
            expired = await self._reservations.lock_expired(item_ids)
            held_by = await self._reservations.allocations([row["reservation_id"] for row in expired])
            stock = await self._stock.lock(item_ids | {place.item_id for held in held_by.values() for place in held})
            for row in expired:
                await self._let_go(row, "expired", stock, held_by[row["reservation_id"]])
            held = rules.reserve(stock, wanted)
            await self._reservations.insert(reservation_id, reference, lifetime, held)
            await self._write(stock, Occasion(actor))
            await self._events.publish(
                events_pb2.ReservationCreated(reservation_id=reservation_id, reference=reference), reservation_id
            )
        return reservation_id

    async def commit(self, reservation_id: str, *, actor: str) -> None:
        """Raises ReservationNotFound, ReservationExpired, ReservationSettled."""
        async with self._database.transaction():
            found = await self._reservations.lock(reservation_id)
            if found["state"] == "committed":
                return
            if not await self._reservations.settle(reservation_id, "committed"):
                raise _refusal(reservation_id, (await self._reservations.lock(reservation_id))["state"])
            held = (await self._reservations.allocations([reservation_id]))[reservation_id]
            stock = await self._stock.lock({place.item_id for place in held})
            for place, (quantity, _) in held.items():
                stock.sell(place, quantity)
            await self._write(stock, Occasion(actor, found["reference"], reservation_id=reservation_id))
            await self._events.publish(
                events_pb2.ReservationCommitted(reservation_id=reservation_id, reference=found["reference"]),
                reservation_id,
            )

    async def release(self, reservation_id: str, *, actor: str) -> None:
        """Raises ReservationNotFound, ReservationSettled."""
        async with self._database.transaction():
            found = await self._reservations.lock(reservation_id)
            if found["state"] == "committed":
                raise _refusal(reservation_id, "committed")
            held = (await self._reservations.allocations([reservation_id]))[reservation_id]
            stock = await self._stock.lock({place.item_id for place in held})
            if await self._let_go(found, "expired" if found["state"] == "expired" else "released", stock, held):
                await self._write(stock, Occasion(actor))

    async def extend(self, reservation_id: str, lifetime: timedelta) -> None:
        """Raises ReservationNotFound, ReservationExpired, ReservationSettled."""
        async with self._database.transaction():
            await self._reservations.lock(reservation_id)
            if not await self._reservations.extend(reservation_id, lifetime):
                raise _refusal(reservation_id, (await self._reservations.lock(reservation_id))["state"])

    async def restock(self, reservation_id: str, lines: Mapping[str, int], *, actor: str, note: str) -> None:
        """Raises ReservationNotFound, ReservationSettled, RestockExceeded."""
        async with self._database.transaction():
            found = await self._reservations.lock(reservation_id)
            if found["state"] != "committed":
                raise ReservationSettled(reservation_id=reservation_id, state=found["state"])
            sold = (await self._reservations.allocations([reservation_id]))[reservation_id]
            back = rules.take_back(sold, lines, reservation_id)
            stock = await self._stock.lock({place.item_id for place in back})
            for place, quantity in back.items():
                stock.move(place, quantity, "returned")
            await self._reservations.restock(reservation_id, back)
            await self._write(stock, Occasion(actor, found["reference"], note, reservation_id))

    async def sweep(self) -> None:
        """Let go of what has expired, of all tenants. Replicas may do so at once."""
        for row in await self._reservations.due(_SWEEP_BATCH):
            with acting_for(row["tenant_id"]):
                await self.release(row["reservation_id"], actor=SYSTEM)

    async def _let_go(self, reservation: Row, state: str, stock: Stock, held: Mapping[Place, tuple[int, int]]) -> bool:
        """End a locked reservation, if it holds something."""
        reservation_id, reference = reservation["reservation_id"], reservation["reference"]
        if not await self._reservations.settle(reservation_id, state):
            return False
        for place, (quantity, _) in held.items():
            stock.let_go(place, quantity)
        event = events_pb2.ReservationReleased(
            reservation_id=reservation_id, reference=reference, expired=state == "expired"
        )
        await self._events.publish(event, reservation_id)
        return True

    async def _write(self, stock: Stock, occasion: Occasion) -> None:
        await self._stock.apply(stock, occasion)
        for change in stock.changes():
            item_id = change.item_id
            await self._events.publish(
                events_pb2.StockChanged(item_id=item_id, on_hand=change.on_hand, available=change.available), item_id
            )
            if change.depleted:
                await self._events.publish(events_pb2.StockDepleted(item_id=item_id), item_id)
            if change.replenished:
                await self._events.publish(events_pb2.StockReplenished(item_id=item_id), item_id)

    async def _require_locations(self, location_ids: set[str]) -> None:
        for missing in sorted(location_ids - (await self._stock.locations.get_all(location_ids)).keys()):
            raise LocationNotFound(location_id=missing)


def _refusal(reservation_id: str, state: str) -> ReservationExpired | ReservationSettled:
    """Why something cannot be done with a reservation that does not hold any more."""
    if state == "expired":
        return ReservationExpired(reservation_id=reservation_id)
    return ReservationSettled(reservation_id=reservation_id, state=state)
