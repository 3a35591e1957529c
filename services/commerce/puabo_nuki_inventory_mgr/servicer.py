"""InventoryService and ReservationService: proto to rules and back."""

from collections.abc import Collection, Sequence
from functools import partial

from nexus.commerce.puabo_nuki_inventory_mgr.v1 import inventory_pb2 as pb
from nexus.commerce.puabo_nuki_inventory_mgr.v1 import reservations_pb2
from services.chassis.context import RequestContext
from services.chassis.messages import MessageOf, moment_in, text_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.commerce.puabo_nuki_inventory_mgr.spec import Config
from services.commerce.puabo_nuki_inventory_mgr.stock import Occasion, Place, Stock, total
from services.commerce.puabo_nuki_inventory_mgr.store import STATE, ReservationStore, StockStore
from services.commerce.puabo_nuki_inventory_mgr.warehouse import SWEEP_SECONDS, Warehouse

_MOST_LOCATIONS = 500
_CURSOR = "\n"  # in no id of a location

_location = MessageOf(pb.Location, etag="version")
_level = MessageOf(pb.StockLevel)
_availability = MessageOf(pb.Availability)
_movement = MessageOf(pb.Movement)
_reservation = MessageOf(reservations_pb2.Reservation)


class InventoryService:
    def __init__(self, service: Service) -> None:
        self._store = StockStore(service.database)
        self._warehouse = Warehouse(service.database, service.events)
        self._pager = Pager(service.sealer)

    async def SetLocation(self, request: pb.SetLocationRequest, call: RequestContext) -> pb.SetLocationResponse:
        return pb.SetLocationResponse(location=_location(await self._warehouse.set_location(request.location)))

    async def ListLocations(self, request: pb.ListLocationsRequest, call: RequestContext) -> pb.ListLocationsResponse:
        rows = await self._store.locations.page("", _MOST_LOCATIONS)
        return pb.ListLocationsResponse(locations=map(_location, rows))

    async def ListStockLevels(
        self, request: pb.ListStockLevelsRequest, call: RequestContext
    ) -> pb.ListStockLevelsResponse:
        async def fetch(after: str, limit: int) -> list[Row]:
            item_id, _, location_id = after.rpartition(_CURSOR)
            filters = {
                "(item_id, location_id) > ({}, {})": (item_id, location_id),
                "on_hand - reserved <= {}": (
                    request.available_at_most if request.HasField("available_at_most") else None
                ),
            }
            return await self._store.levels.page(
                "", limit, filters=filters, item_id=request.item_id or None, location_id=request.location_id or None
            )

        rows, more = await self._pager.page(
            request, call, fetch, by=lambda row: row["item_id"] + _CURSOR + row["location_id"]
        )
        return pb.ListStockLevelsResponse(levels=map(_level, rows), next_page_token=more)

    async def GetAvailability(
        self, request: pb.GetAvailabilityRequest, call: RequestContext
    ) -> pb.GetAvailabilityResponse:
        rows = await self._store.available(list(request.item_ids))
        return pb.GetAvailabilityResponse(items=map(_availability, rows))

    async def ReceiveStock(self, request: pb.ReceiveStockRequest, call: RequestContext) -> pb.ReceiveStockResponse:
        arrived = total((Place(line.item_id, line.location_id), line.quantity) for line in request.lines)

        def receive(stock: Stock) -> None:
            for place, quantity in arrived.items():
                stock.move(place, quantity, "received")

        stock = await self._warehouse.change(
            arrived.keys(), receive, Occasion(_actor(call), request.reference, request.note)
        )
        return pb.ReceiveStockResponse(levels=_levels(stock, arrived.keys()))

    async def AdjustStock(self, request: pb.AdjustStockRequest, call: RequestContext) -> pb.AdjustStockResponse:
        reason = text_of(pb.AdjustReason, request.reason).lower()
        places = {Place(line.item_id, line.location_id) for line in request.adjustments}

        def adjust(stock: Stock) -> None:
            for line in request.adjustments:
                place = Place(line.item_id, line.location_id)
                if line.HasField("counted"):
                    stock.count(place, line.counted, reason)
                else:
                    stock.move(place, line.difference, "adjusted", reason)

        stock = await self._warehouse.change(places, adjust, Occasion(_actor(call), request.reference, request.note))
        return pb.AdjustStockResponse(levels=_levels(stock, places))

    async def TransferStock(self, request: pb.TransferStockRequest, call: RequestContext) -> pb.TransferStockResponse:
        origin, destination = request.from_location_id, request.to_location_id
        stock = await self._warehouse.transfer(
            origin,
            destination,
            total((line.item_id, line.quantity) for line in request.lines),
            Occasion(_actor(call), request.reference, request.note),
        )
        places = {Place(line.item_id, location) for line in request.lines for location in (origin, destination)}
        return pb.TransferStockResponse(levels=_levels(stock, places))

    async def ListMovements(self, request: pb.ListMovementsRequest, call: RequestContext) -> pb.ListMovementsResponse:
        fetch = partial(
            self._store.movements.page,
            item_id=request.item_id or None,
            location_id=request.location_id or None,
            filters={
                "create_time >= {}": moment_in(request, "from_time"),
                "create_time < {}": moment_in(request, "until_time"),
            },
        )
        rows, more = await self._pager.page(request, call, fetch, by="movement_id")
        return pb.ListMovementsResponse(movements=map(_movement, rows), next_page_token=more)


class ReservationService:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._store = ReservationStore(service.database)
        self._warehouse = Warehouse(service.database, service.events)
        self._pager = Pager(service.sealer)
        service.every(SWEEP_SECONDS, self._warehouse.sweep)

    async def Reserve(
        self, request: reservations_pb2.ReserveRequest, call: RequestContext
    ) -> reservations_pb2.ReserveResponse:
        wanted = total((Place(line.item_id, line.location_id), line.quantity) for line in request.lines)
        asked = request.lifetime.ToTimedelta() if request.HasField("lifetime") else self._config.reservation_lifetime
        reservation_id = await self._warehouse.reserve(
            wanted, lifetime=asked, reference=request.reference, actor=_actor(call)
        )
        return reservations_pb2.ReserveResponse(reservation=await self._get(reservation_id))

    async def CommitReservation(
        self, request: reservations_pb2.CommitReservationRequest, call: RequestContext
    ) -> reservations_pb2.CommitReservationResponse:
        await self._warehouse.commit(request.reservation_id, actor=_actor(call))
        return reservations_pb2.CommitReservationResponse(reservation=await self._get(request.reservation_id))

    async def ReleaseReservation(
        self, request: reservations_pb2.ReleaseReservationRequest, call: RequestContext
    ) -> reservations_pb2.ReleaseReservationResponse:
        await self._warehouse.release(request.reservation_id, actor=_actor(call))
        return reservations_pb2.ReleaseReservationResponse(reservation=await self._get(request.reservation_id))

    async def ExtendReservation(
        self, request: reservations_pb2.ExtendReservationRequest, call: RequestContext
    ) -> reservations_pb2.ExtendReservationResponse:
        await self._warehouse.extend(request.reservation_id, request.lifetime.ToTimedelta())
        return reservations_pb2.ExtendReservationResponse(reservation=await self._get(request.reservation_id))

    async def RestockReservation(
        self, request: reservations_pb2.RestockReservationRequest, call: RequestContext
    ) -> reservations_pb2.RestockReservationResponse:
        lines = total((line.item_id, line.quantity) for line in request.lines)
        await self._warehouse.restock(request.reservation_id, lines, actor=_actor(call), note=request.note)
        return reservations_pb2.RestockReservationResponse(reservation=await self._get(request.reservation_id))

    async def GetReservation(
        self, request: reservations_pb2.GetReservationRequest, call: RequestContext
    ) -> reservations_pb2.GetReservationResponse:
        return reservations_pb2.GetReservationResponse(reservation=await self._get(request.reservation_id))

    async def ListReservations(
        self, request: reservations_pb2.ListReservationsRequest, call: RequestContext
    ) -> reservations_pb2.ListReservationsResponse:
        state = text_of(reservations_pb2.ReservationState, request.state).lower()
        fetch = partial(
            self._store.reservations.page,
            reference=request.reference or None,
            filters={STATE + " = {}": state or None},
        )
        rows, more = await self._pager.page(request, call, fetch, by="reservation_id")
        return reservations_pb2.ListReservationsResponse(
            reservations=await self._reservations(rows), next_page_token=more
        )

    async def _get(self, reservation_id: str) -> reservations_pb2.Reservation:
        [reservation] = await self._reservations([await self._store.reservations.require(reservation_id)])
        return reservation

    async def _reservations(self, rows: Sequence[Row]) -> list[reservations_pb2.Reservation]:
        held_by = await self._store.allocations([row["reservation_id"] for row in rows])
        reservations = []
        for row in rows:
            allocations = [
                reservations_pb2.Allocation(
                    item_id=place.item_id, location_id=place.location_id, quantity=quantity, restocked=restocked
                )
                for place, (quantity, restocked) in held_by[row["reservation_id"]].items()
            ]
            reservations.append(_reservation(row, allocations=allocations))
        return reservations


def _actor(call: RequestContext) -> str:
    """Who moves the goods: the user, or the service that acts without one."""
    return call.signed_in.user_id if call.signed_in is not None else call.caller or ""


def _levels(stock: Stock, places: Collection[Place]) -> list[pb.StockLevel]:
    levels = []
    for place in sorted(places):
        level = stock.level(place)
        levels.append(
            pb.StockLevel(
                item_id=place.item_id, location_id=place.location_id, on_hand=level.on_hand, reserved=level.reserved
            )
        )
    return levels
