"""The SQL of inventory-mgr."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import timedelta

from nexus.commerce.puabo_nuki_inventory_mgr.v1.faults import LocationNotFound, ReservationNotFound
from nexus.type.v1.faults import Conflict
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.table import Row, Table
from services.commerce.puabo_nuki_inventory_mgr.stock import Level, Occasion, Place, Stock

STATE = "CASE WHEN state = 'active' AND expire_time <= clock_timestamp() THEN 'expired' ELSE state END"
"""What a reservation is to those who ask, whether or not the sweep has come by."""


class StockStore:
    """Levels and movements, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.locations = Table(
            database,
            "locations",
            key="location_id",
            order="priority, location_id",
            missing=LocationNotFound,
            on_update="version = locations.version + 1",
        )
        self.levels = Table(database, "stock_levels", key="item_id", order="item_id, location_id")
        self.movements = Table(database, "movements", key="movement_id")

    async def lock(self, item_ids: Collection[str], places: Iterable[Place] = ()) -> Stock:
        """The levels of these items at all locations, until the transaction ends; those at `places` are made if there
        are none. Always in the same order, so that two who want the same never wait for each other."""
        if missing := sorted(places):
            await self._database.execute(
                """
                INSERT INTO stock_levels (item_id, location_id) SELECT * FROM unnest($1::text[], $2::text[])
                ON CONFLICT DO NOTHING
                """,
                [place.item_id for place in missing],
                [place.location_id for place in missing],
            )
        rows = await self._database.fetch(
            """
            SELECT item_id, location_id, on_hand, reserved, priority, closed
            FROM stock_levels AS level JOIN locations USING (tenant_id, location_id)
            WHERE tenant_id = nexus.tenant_id() AND item_id = ANY($1)
            ORDER BY item_id, location_id FOR UPDATE OF level
            """,
            sorted(set(item_ids)),
        )
        return Stock({Place(item_id, location_id): Level(*level) for item_id, location_id, *level in rows})

    async def apply(self, stock: Stock, occasion: Occasion) -> None:
        """Write what was done to locked levels. Only if it fits what there is: Conflict otherwise."""
        differences = stock.differences()
        if not differences:
            return
        places, on_hand, reserved = zip(*differences, strict=True)
        changed = await self._database.execute(
            """
            UPDATE stock_levels AS level
            SET on_hand = level.on_hand + change.on_hand, reserved = level.reserved + change.reserved,
                update_time = clock_timestamp()
            FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[])
                AS change (item_id, location_id, on_hand, reserved)
            WHERE tenant_id = nexus.tenant_id()
              AND level.item_id = change.item_id AND level.location_id = change.location_id
              AND level.reserved + change.reserved >= 0
              AND level.on_hand + change.on_hand >= level.reserved + change.reserved
            """,
            [place.item_id for place in places],
            [place.location_id for place in places],
            on_hand,
            reserved,
        )
        if changed != len(differences):
            raise Conflict(retry_after=0.05)
        await self.movements.insert_all(
            {"movement_id": new_id(), **asdict(movement), **asdict(occasion)} for movement in stock.movements
        )

    async def available(self, item_ids: list[str]) -> list[Row]:
        """One row for each item asked for, in that order. What expired a moment ago is available again."""
        return await self._database.fetch(
            """
            SELECT asked.item_id, (
                SELECT coalesce(sum(on_hand - reserved), 0)
                FROM stock_levels AS level JOIN locations USING (tenant_id, location_id)
                WHERE tenant_id = nexus.tenant_id() AND level.item_id = asked.item_id AND NOT closed
            )::bigint + (
                SELECT coalesce(sum(quantity), 0)
                FROM reservations JOIN allocations AS held USING (tenant_id, reservation_id)
                    JOIN locations USING (tenant_id, location_id)
                WHERE tenant_id = nexus.tenant_id() AND state = 'active' AND expire_time <= (SELECT clock_timestamp())
                  AND held.item_id = asked.item_id AND NOT closed
            )::bigint AS available
            FROM unnest($1::text[]) WITH ORDINALITY AS asked (item_id, number) ORDER BY number
            """,
            item_ids,
        )


class ReservationStore:
    """Reservations, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reservations = Table(
            database,
            "reservations",
            key="reservation_id",
            missing=ReservationNotFound,
            columns=f"reservation_id, {STATE} AS state, reference, expire_time, create_time, settle_time",
        )

    async def insert(self, reservation_id: str, reference: str, lifetime: timedelta, held: Mapping[Place, int]) -> None:
        await self._database.execute(
            "INSERT INTO reservations (reservation_id, reference, expire_time) "
            "VALUES ($1, $2, clock_timestamp() + $3::interval)",
            reservation_id,
            reference,
            lifetime,
        )
        await self._database.execute(
            "INSERT INTO allocations (reservation_id, item_id, location_id, quantity) "
            "SELECT $1, * FROM unnest($2::text[], $3::text[], $4::bigint[])",
            reservation_id,
            [place.item_id for place in held],
            [place.location_id for place in held],
            list(held.values()),
        )

    async def lock(self, reservation_id: str) -> Row:
        """The reservation, which nobody else changes until the transaction ends. Raises ReservationNotFound.

        Its state is read afterwards: what is read with the lock may be of before the wait for it.
        """
        await self.reservations.require(reservation_id, lock=True)
        return await self.reservations.require(reservation_id)

    async def allocations(self, reservation_ids: Collection[str]) -> dict[str, dict[Place, tuple[int, int]]]:
        """For each reservation and place: how many were set aside, and how many of those came back."""
        rows = await self._database.fetch(
            """
            SELECT reservation_id, item_id, location_id, quantity, restocked FROM allocations
            WHERE reservation_id = ANY($1::uuid[]) ORDER BY item_id, location_id
            """,
            list(reservation_ids),
        )
        found: dict[str, dict[Place, tuple[int, int]]] = {reservation_id: {} for reservation_id in reservation_ids}
        for reservation_id, item_id, location_id, quantity, restocked in rows:
            found[reservation_id][Place(item_id, location_id)] = (quantity, restocked)
        return found

    async def lock_expired(self, item_ids: Collection[str]) -> list[Row]:
        """Reservations that hold some of these items and should not any more; not those that somebody works on."""
        return await self._database.fetch(
            """
            SELECT reservation_id, reference FROM reservations AS due
            WHERE tenant_id = nexus.tenant_id() AND state = 'active' AND expire_time <= (SELECT clock_timestamp())
              AND EXISTS (SELECT FROM allocations
                          WHERE reservation_id = due.reservation_id AND item_id = ANY($1))
            ORDER BY reservation_id LIMIT 100 FOR UPDATE SKIP LOCKED
            """,
            list(item_ids),
        )

    async def settle(self, reservation_id: str, state: str) -> bool:
        """Of one that is locked: end it so; False if it does not stand as that needs.

        What is to be committed must not have expired at this very moment, what expires must have.
        """
        in_time = {"committed": "expire_time > clock_timestamp()", "expired": "expire_time <= clock_timestamp()"}
        settled = await self._database.execute(
            "UPDATE reservations SET state = $2, settle_time = clock_timestamp() "
            f"WHERE reservation_id = $1 AND state = 'active' AND {in_time.get(state, 'true')}",
            reservation_id,
            state,
        )
        return settled == 1

    async def extend(self, reservation_id: str, lifetime: timedelta) -> bool:
        """False if it does not hold anything any more."""
        extended = await self._database.execute(
            """
            UPDATE reservations SET expire_time = greatest(expire_time, clock_timestamp() + $2::interval)
            WHERE reservation_id = $1 AND state = 'active' AND expire_time > clock_timestamp()
            """,
            reservation_id,
            lifetime,
        )
        return extended == 1

    async def restock(self, reservation_id: str, back: Mapping[Place, int]) -> None:
        await self._database.executemany(
            "UPDATE allocations SET restocked = restocked + $4 "
            "WHERE reservation_id = $1 AND item_id = $2 AND location_id = $3",
            [(reservation_id, *place, quantity) for place, quantity in back.items()],
        )

    async def due(self, limit: int) -> list[Row]:
        """Reservations of all tenants whose time is over, the oldest first."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.fetch(
                """
                SELECT tenant_id, reservation_id FROM reservations
                WHERE state = 'active' AND expire_time <= (SELECT clock_timestamp()) ORDER BY expire_time LIMIT $1
                """,
                limit,
            )
