"""The SQL of inventory-mgr."""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from nexus.type.v1.faults import Conflict
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.commerce.puabo_nuki_inventory_mgr.stock import Level, Movement, Place, Stock

_LOCATION = "location_id, name, country, priority, closed, version"
_MOVEMENT = (
    "movement_id::text, item_id, location_id, kind, quantity, on_hand_after, reason, reference, note, "
    "reservation_id::text, actor, create_time"
)
_STATE = "CASE WHEN state = 'active' AND expire_time <= clock_timestamp() THEN 'expired' ELSE state END"
"""What a reservation is to those who ask, whether or not the sweep has come by."""
_RESERVATION = f"reservation_id::text, {_STATE} AS state, reference, expire_time, create_time, settle_time"


class StockStore:
    """Levels and movements, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def locations(self) -> list[asyncpg.Record]:
        return await self._database.fetch(
            f"SELECT {_LOCATION} FROM locations WHERE tenant_id = nexus.tenant_id() "
            "ORDER BY priority, location_id LIMIT 500"
        )

    async def known_locations(self, location_ids: Collection[str]) -> set[str]:
        rows = await self._database.fetch(
            "SELECT location_id FROM locations WHERE tenant_id = nexus.tenant_id() AND location_id = ANY($1)",
            list(location_ids),
        )
        return {row["location_id"] for row in rows}

    async def put_location(
        self, location_id: str, name: str, country: str, priority: int, closed: bool, version: int | None
    ) -> asyncpg.Record | None:
        """None if there is one of another version than is given."""
        return await self._database.fetchrow(
            f"""
            INSERT INTO locations AS l (location_id, name, country, priority, closed) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (tenant_id, location_id) DO UPDATE
            SET name = $2, country = $3, priority = $4, closed = $5, version = l.version + 1
            WHERE $6::bigint IS NULL OR l.version = $6
            RETURNING {_LOCATION}
            """,
            location_id,
            name,
            country,
            priority,
            closed,
            version,
        )

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
        return Stock(
            {
                Place(row["item_id"], row["location_id"]): Level(
                    row["on_hand"], row["reserved"], row["priority"], row["closed"]
                )
                for row in rows
            }
        )

    async def apply(
        self, stock: Stock, *, actor: str, reference: str = "", note: str = "", reservation_id: str | None = None
    ) -> None:
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
        await self._database.executemany(
            """
            INSERT INTO movements
                (movement_id, item_id, location_id, kind, quantity, on_hand_after, reason, reference, note,
                 reservation_id, actor)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
            """,
            [self._row(movement, reference, note, reservation_id, actor) for movement in stock.movements],
        )

    @staticmethod
    def _row(movement: Movement, reference: str, note: str, reservation_id: str | None, actor: str) -> tuple[Any, ...]:
        place = movement.place
        return (
            new_id(),
            place.item_id,
            place.location_id,
            movement.kind,
            movement.quantity,
            movement.on_hand_after,
            movement.reason,
            reference,
            note,
            reservation_id,
            actor,
        )

    async def levels(
        self, *, item_id: str, location_id: str, available_at_most: int | None, after: Place, size: int
    ) -> list[asyncpg.Record]:
        conditions = ["tenant_id = nexus.tenant_id()", "(item_id, location_id) > ($2, $3)"]
        values: list[Any] = [size, after.item_id, after.location_id]
        for condition, value in (
            ("item_id = {}", item_id or None),
            ("location_id = {}", location_id or None),
            ("on_hand - reserved <= {}", available_at_most),
        ):
            if value is not None:
                values.append(value)
                conditions.append(condition.format(f"${len(values)}"))
        return await self._database.fetch(
            "SELECT item_id, location_id, on_hand, reserved, update_time FROM stock_levels "
            f"WHERE {' AND '.join(conditions)} ORDER BY item_id, location_id LIMIT $1",
            *values,
        )

    async def available(self, item_ids: list[str]) -> list[asyncpg.Record]:
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

    async def movements(
        self,
        *,
        item_id: str,
        location_id: str,
        since: datetime | None,
        until: datetime | None,
        before: str,
        size: int,
    ) -> list[asyncpg.Record]:
        """The newest first."""
        conditions, values = ["tenant_id = nexus.tenant_id()"], list[Any]([size])
        for condition, value in (
            ("item_id = {}", item_id or None),
            ("location_id = {}", location_id or None),
            ("create_time >= {}", since),
            ("create_time < {}", until),
            ("movement_id < {}", before or None),
        ):
            if value is not None:
                values.append(value)
                conditions.append(condition.format(f"${len(values)}"))
        return await self._database.fetch(
            f"SELECT {_MOVEMENT} FROM movements WHERE {' AND '.join(conditions)} ORDER BY movement_id DESC LIMIT $1",
            *values,
        )


class ReservationStore:
    """Reservations, of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

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

    async def lock(self, reservation_id: str) -> bool:
        """Let nobody else change it until the transaction ends; False if there is none.

        Its state is read afterwards: what is read with the lock may be of before the wait for it.
        """
        found = await self._database.fetchval(
            "SELECT true FROM reservations WHERE reservation_id = $1 FOR UPDATE", reservation_id
        )
        return bool(found)

    async def get(self, reservation_id: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            f"SELECT {_RESERVATION} FROM reservations WHERE reservation_id = $1", reservation_id
        )

    async def page(self, *, reference: str, state: str, before: str, size: int) -> list[asyncpg.Record]:
        conditions, values = ["tenant_id = nexus.tenant_id()"], list[Any]([size])
        for condition, value in (
            ("reference = {}", reference),
            (_STATE + " = {}", state),
            ("reservation_id < {}", before),
        ):
            if value:
                values.append(value)
                conditions.append(condition.format(f"${len(values)}"))
        return await self._database.fetch(
            f"SELECT {_RESERVATION} FROM reservations WHERE {' AND '.join(conditions)} "
            "ORDER BY reservation_id DESC LIMIT $1",
            *values,
        )

    async def allocations(self, reservation_ids: Collection[str]) -> dict[str, dict[Place, tuple[int, int]]]:
        """For each reservation and place: how many were set aside, and how many of those came back."""
        rows = await self._database.fetch(
            """
            SELECT reservation_id::text, item_id, location_id, quantity, restocked FROM allocations
            WHERE reservation_id = ANY($1::uuid[]) ORDER BY item_id, location_id
            """,
            list(reservation_ids),
        )
        found: dict[str, dict[Place, tuple[int, int]]] = {reservation_id: {} for reservation_id in reservation_ids}
        for row in rows:
            place = Place(row["item_id"], row["location_id"])
            found[row["reservation_id"]][place] = (row["quantity"], row["restocked"])
        return found

    async def lock_expired(self, item_ids: Collection[str]) -> list[asyncpg.Record]:
        """Reservations that hold some of these items and should not any more; not those that somebody works on."""
        return await self._database.fetch(
            """
            SELECT reservation_id::text, reference FROM reservations AS due
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
        return bool(
            await self._database.execute(
                "UPDATE reservations SET state = $2, settle_time = clock_timestamp() "
                f"WHERE reservation_id = $1 AND state = 'active' AND {in_time.get(state, 'true')}",
                reservation_id,
                state,
            )
        )

    async def extend(self, reservation_id: str, lifetime: timedelta) -> bool:
        """False if it does not hold anything any more."""
        return bool(
            await self._database.execute(
                """
                UPDATE reservations SET expire_time = greatest(expire_time, clock_timestamp() + $2::interval)
                WHERE reservation_id = $1 AND state = 'active' AND expire_time > clock_timestamp()
                """,
                reservation_id,
                lifetime,
            )
        )

    async def restock(self, reservation_id: str, back: Mapping[Place, int]) -> None:
        await self._database.executemany(
            "UPDATE allocations SET restocked = restocked + $4 "
            "WHERE reservation_id = $1 AND item_id = $2 AND location_id = $3",
            [(reservation_id, *place, quantity) for place, quantity in back.items()],
        )

    async def due(self, limit: int) -> list[asyncpg.Record]:
        """Reservations of all tenants whose time is over, the oldest first."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.fetch(
                """
                SELECT tenant_id, reservation_id::text FROM reservations
                WHERE state = 'active' AND expire_time <= (SELECT clock_timestamp()) ORDER BY expire_time LIMIT $1
                """,
                limit,
            )
