"""InventoryService and ReservationService: proto to rules and back."""

from collections.abc import Collection

import asyncpg

from nexus.commerce.puabo_nuki_inventory_mgr.v1 import inventory_pb2 as pb
from nexus.commerce.puabo_nuki_inventory_mgr.v1 import reservations_pb2
from nexus.commerce.puabo_nuki_inventory_mgr.v1.faults import LocationChanged, ReservationNotFound
from services.chassis.clock import moment, timestamp
from services.chassis.context import RequestContext
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.commerce.puabo_nuki_inventory_mgr.spec import Config
from services.commerce.puabo_nuki_inventory_mgr.stock import Place, Stock, total
from services.commerce.puabo_nuki_inventory_mgr.store import ReservationStore, StockStore
from services.commerce.puabo_nuki_inventory_mgr.warehouse import SWEEP_SECONDS, Warehouse

_CURSOR = "\n"  # in no id of a location


class InventoryService:
    def __init__(self, service: Service) -> None:
        self._store = StockStore(service.database)
        self._warehouse = Warehouse(service.database, service.events)
        self._pager = Pager(service.sealer)

    async def SetLocation(self, request: pb.SetLocationRequest, call: RequestContext) -> pb.SetLocationResponse:
        asked = request.location
        row = await self._store.put_location(
            asked.location_id, asked.name, asked.country, asked.priority, asked.closed, _version(asked.etag)
        )
        if row is None:
            raise LocationChanged()
        return pb.SetLocationResponse(location=_location(row))

    async def ListLocations(self, request: pb.ListLocationsRequest, call: RequestContext) -> pb.ListLocationsResponse:
        return pb.ListLocationsResponse(locations=[_location(row) for row in await self._store.locations()])

    async def ListStockLevels(
        self, request: pb.ListStockLevelsRequest, call: RequestContext
    ) -> pb.ListStockLevelsResponse:
        size = self._pager.size(request)
        item_id, _, location_id = self._pager.cursor(request, call).rpartition(_CURSOR)
        rows = await self._store.levels(
            item_id=request.item_id,
            location_id=request.location_id,
            available_at_most=request.available_at_most if request.HasField("available_at_most") else None,
            after=Place(item_id, location_id),
            size=size + 1,
        )
        response = pb.ListStockLevelsResponse(levels=[_level(row) for row in rows[:size]])
        if len(rows) > size:
            last = rows[size - 1]
            cursor = last["item_id"] + _CURSOR + last["location_id"]
            response.next_page_token = self._pager.token(request, call, cursor)
        return response

    async def GetAvailability(
        self, request: pb.GetAvailabilityRequest, call: RequestContext
    ) -> pb.GetAvailabilityResponse:
        rows = await self._store.available(list(request.item_ids))
        return pb.GetAvailabilityResponse(
            items=[pb.Availability(item_id=row["item_id"], available=row["available"]) for row in rows]
        )

    async def ReceiveStock(self, request: pb.ReceiveStockRequest, call: RequestContext) -> pb.ReceiveStockResponse:
        arrived = total((Place(line.item_id, line.location_id), line.quantity) for line in request.lines)

        def receive(stock: Stock) -> None:
            for place, quantity in arrived.items():
                stock.move(place, quantity, "received")

        stock = await self._warehouse.change(
            arrived, receive, actor=_actor(call), reference=request.reference, note=request.note
        )
        return pb.ReceiveStockResponse(levels=_levels(stock, arrived))

    async def AdjustStock(self, request: pb.AdjustStockRequest, call: RequestContext) -> pb.AdjustStockResponse:
        reason = pb.AdjustReason.Name(request.reason).removeprefix("ADJUST_REASON_").lower()
        places = {Place(line.item_id, line.location_id) for line in request.adjustments}

        def adjust(stock: Stock) -> None:
            for line in request.adjustments:
                place = Place(line.item_id, line.location_id)
                if line.HasField("counted"):
                    stock.count(place, line.counted, reason)
                else:
                    stock.move(place, line.difference, "adjusted", reason)

        stock = await self._warehouse.change(
            places, adjust, actor=_actor(call), reference=request.reference, note=request.note
        )
        return pb.AdjustStockResponse(levels=_levels(stock, places))

    async def TransferStock(self, request: pb.TransferStockRequest, call: RequestContext) -> pb.TransferStockResponse:
        origin, destination = request.from_location_id, request.to_location_id
        lines = total((Place(line.item_id, ""), line.quantity) for line in request.lines)
        stock = await self._warehouse.transfer(
            origin,
            destination,
            {place.item_id: quantity for place, quantity in lines.items()},
            actor=_actor(call),
            reference=request.reference,
            note=request.note,
        )
        places = {Place(line.item_id, location) for line in request.lines for location in (origin, destination)}
        return pb.TransferStockResponse(levels=_levels(stock, places))

    async def ListMovements(self, request: pb.ListMovementsRequest, call: RequestContext) -> pb.ListMovementsResponse:
        size = self._pager.size(request)
        rows = await self._store.movements(
            item_id=request.item_id,
            location_id=request.location_id,
            since=moment(request.from_time) if request.HasField("from_time") else None,
            until=moment(request.until_time) if request.HasField("until_time") else None,
            before=self._pager.cursor(request, call),
            size=size + 1,
        )
        response = pb.ListMovementsResponse(movements=[_movement(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = self._pager.token(request, call, rows[size - 1]["movement_id"])
        return response


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
        lines = total((Place(line.item_id, ""), line.quantity) for line in request.lines)
        await self._warehouse.restock(
            request.reservation_id,
            {place.item_id: quantity for place, quantity in lines.items()},
            actor=_actor(call),
            note=request.note,
        )
        return reservations_pb2.RestockReservationResponse(reservation=await self._get(request.reservation_id))

    async def GetReservation(
        self, request: reservations_pb2.GetReservationRequest, call: RequestContext
    ) -> reservations_pb2.GetReservationResponse:
        return reservations_pb2.GetReservationResponse(reservation=await self._get(request.reservation_id))

    async def ListReservations(
        self, request: reservations_pb2.ListReservationsRequest, call: RequestContext
    ) -> reservations_pb2.ListReservationsResponse:
        size = self._pager.size(request)
        state = reservations_pb2.ReservationState.Name(request.state).removeprefix("RESERVATION_STATE_").lower()
        rows = await self._store.page(
            reference=request.reference,
            state=state if request.state else "",
            before=self._pager.cursor(request, call),
            size=size + 1,
        )
        response = reservations_pb2.ListReservationsResponse(reservations=await self._reservations(rows[:size]))
        if len(rows) > size:
            response.next_page_token = self._pager.token(request, call, rows[size - 1]["reservation_id"])
        return response

    async def _get(self, reservation_id: str) -> reservations_pb2.Reservation:
        row = await self._store.get(reservation_id)
        if row is None:
            raise ReservationNotFound(reservation_id=reservation_id)
        [reservation] = await self._reservations([row])
        return reservation

    async def _reservations(self, rows: Collection[asyncpg.Record]) -> list[reservations_pb2.Reservation]:
        held_by = await self._store.allocations([row["reservation_id"] for row in rows])
        return [
            reservations_pb2.Reservation(
                reservation_id=row["reservation_id"],
                state=reservations_pb2.ReservationState.Value(f"RESERVATION_STATE_{row['state'].upper()}"),
                reference=row["reference"],
                allocations=[
                    reservations_pb2.Allocation(
                        item_id=place.item_id, location_id=place.location_id, quantity=quantity, restocked=restocked
                    )
                    for place, (quantity, restocked) in held_by[row["reservation_id"]].items()
                ],
                expire_time=timestamp(row["expire_time"]),
                create_time=timestamp(row["create_time"]),
                settle_time=timestamp(row["settle_time"]) if row["settle_time"] else None,
            )
            for row in rows
        ]


def _actor(call: RequestContext) -> str:
    """Who moves the goods: the user, or the service that acts without one."""
    return call.signed_in.user_id if call.signed_in is not None else call.caller or ""


def _version(etag: str) -> int | None:
    """The version that an etag stands for; 0, which nothing has, for one that we never made."""
    return (int(etag) if etag.isascii() and etag.isdigit() else 0) if etag else None


def _location(row: asyncpg.Record) -> pb.Location:
    return pb.Location(
        location_id=row["location_id"],
        name=row["name"],
        country=row["country"],
        priority=row["priority"],
        closed=row["closed"],
        etag=str(row["version"]),
    )


def _level(row: asyncpg.Record) -> pb.StockLevel:
    return pb.StockLevel(
        item_id=row["item_id"],
        location_id=row["location_id"],
        on_hand=row["on_hand"],
        reserved=row["reserved"],
        update_time=timestamp(row["update_time"]),
    )


def _levels(stock: Stock, places: Collection[Place]) -> list[pb.StockLevel]:
    return [
        pb.StockLevel(
            item_id=place.item_id,
            location_id=place.location_id,
            on_hand=stock.level(place).on_hand,
            reserved=stock.level(place).reserved,
        )
        for place in sorted(places)
    ]


def _movement(row: asyncpg.Record) -> pb.Movement:
    reason = f"ADJUST_REASON_{row['reason'].upper()}" if row["reason"] else "ADJUST_REASON_UNSPECIFIED"
    return pb.Movement(
        movement_id=row["movement_id"],
        item_id=row["item_id"],
        location_id=row["location_id"],
        kind=pb.MovementKind.Value(f"MOVEMENT_KIND_{row['kind'].upper()}"),
        quantity=row["quantity"],
        on_hand_after=row["on_hand_after"],
        reason=pb.AdjustReason.Value(reason),
        reference=row["reference"],
        note=row["note"],
        reservation_id=row["reservation_id"] or "",
        actor=row["actor"],
        create_time=timestamp(row["create_time"]),
    )
