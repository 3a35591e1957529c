"""The SQL of order-processor."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from google.protobuf import json_format

from nexus.commerce.puabo_nuki_order_processor.v1.faults import CartNotFound, OrderNotFound
from nexus.commerce.puabo_nuki_order_processor.v1.orders_pb2 import ShopSettings
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.saga import Changed
from services.chassis.table import Row, Table
from services.commerce.puabo_nuki_order_processor.order import Order


class CartStore:
    """Carts of the call's tenant. One that an order is being made of has the order's id, and nobody changes it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.carts = Table(
            database,
            "carts",
            key="cart_id",
            missing=CartNotFound,
            on_update="version = carts.version + 1, update_time = clock_timestamp()",
        )

    async def of_customer(self, customer_id: str, channel: str, currency: str) -> Row:
        """The customer's cart, made if there is none; locked."""
        whose = {"customer_id": customer_id, "channel": channel, "currency": currency}
        await self.carts.insert_new(cart_id=new_id(), **whose)
        row = await self.carts.find(**whose, lock=True)
        assert row is not None, "it is there now, or was before"
        return row

    async def set_offers(self, cart_id: str, version: int, offers: str, parcels: str) -> None:
        """Only for the cart that they were made for; the chosen one stays."""
        await self._database.execute(
            "UPDATE carts SET offers = $3, parcels = $4 WHERE cart_id = $1 AND order_id IS NULL AND version = $2",
            cart_id,
            version,
            offers,
            parcels,
        )

    async def hand_over(self, cart_id: str, version: int, order_id: str) -> bool:
        """Make an order of the cart: nobody else can, nor change it."""
        return bool(
            await self._database.execute(
                "UPDATE carts SET order_id = $3 WHERE cart_id = $1 AND order_id IS NULL AND version = $2",
                cart_id,
                version,
                order_id,
            )
        )

    async def hand_back(self, order_id: str) -> None:
        await self._database.execute(
            "UPDATE carts SET order_id = NULL WHERE tenant_id = nexus.tenant_id() AND order_id = $1", order_id
        )

    async def forget_old(self, lifetime: timedelta) -> None:
        async with self._database.transaction(platform_wide=True):
            await self._database.execute(
                "DELETE FROM carts WHERE update_time < clock_timestamp() - $1::interval", lifetime
            )


class OrderStore:
    """Orders of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.orders = Table(database, "orders", key="order_id", missing=OrderNotFound)
        self.events = Table(database, "order_events", key="version", order="version")
        self._settings = Table(database, "shop_settings", key="tenant_id")

    async def append(self, order: Order, kind: str, data: Mapping[str, Any], actor: str, *, wake: bool) -> None:
        """Write an event with the order after it. Raises Changed when another came first."""
        written = await self._database.fetchval(
            """
            WITH changed AS (
                UPDATE orders SET version = $2, state = $3, folded = $4, captured = $5, refunded = $6,
                    due_time = CASE WHEN $7 THEN clock_timestamp() ELSE due_time END
                WHERE order_id = $1 AND version = $2 - 1 RETURNING order_id
            )
            INSERT INTO order_events (order_id, version, kind, data, actor, create_time)
            SELECT order_id, $2, $8, $9, $10, $11 FROM changed RETURNING true
            """,
            order.order_id,
            order.version,
            order.state,
            order.model_dump_json(),
            order.captured,
            order.refunded,
            wake,
            kind,
            json.dumps(data),
            actor,
            order.update_time,
        )
        if not written:
            raise Changed(order.order_id)

    async def counts(self) -> list[Row]:
        return await self._database.fetch(
            "SELECT state, count(*) AS orders, count(*) FILTER (WHERE attention <> '') AS attention FROM orders "
            "WHERE tenant_id = nexus.tenant_id() GROUP BY state ORDER BY state"
        )

    async def sums(self, since: datetime) -> list[Row]:
        return await self._database.fetch(
            "SELECT currency, sum(captured)::bigint AS captured, sum(refunded)::bigint AS refunded FROM orders "
            "WHERE tenant_id = nexus.tenant_id() AND create_time >= $1 GROUP BY currency ORDER BY currency",
            since,
        )

    async def wake(self, order_id: str, *, waiting: bool) -> bool:
        """Have it looked at now; only if it waits for its payment or another attempt, when `waiting`."""
        return bool(
            await self._database.execute(
                "UPDATE orders SET due_time = clock_timestamp() WHERE order_id = $1 "
                "AND (NOT $2 OR state = 'ACTION_REQUIRED' OR attempts > 0)",
                order_id,
                waiting,
            )
        )

    async def forget_addresses(self, customer_id: str) -> list[str]:
        """The ids of the orders that had any."""
        rows = await self._database.fetch(
            """
            UPDATE orders SET shipping_address = NULL, billing_address = NULL
            WHERE tenant_id = nexus.tenant_id() AND customer_id = $1 RETURNING order_id
            """,
            customer_id,
        )
        return [row["order_id"] for row in rows]

    async def settings(self) -> ShopSettings:
        """With the etag that they have once they are set."""
        row = await self._settings.find()
        return settings_of(row) if row is not None else ShopSettings()

    async def put_settings(self, settings: ShopSettings) -> ShopSettings | None:
        """None if there are others than those with their etag, "" being any."""
        row = await self._database.fetchrow(
            """
            INSERT INTO shop_settings AS s (settings) VALUES ($1)
            ON CONFLICT (tenant_id) DO UPDATE SET settings = $1, version = s.version + 1
            WHERE $2 IN ('', s.version::text)
            RETURNING settings, version
            """,
            json_format.MessageToJson(settings),
            settings.etag,
        )
        return settings_of(row) if row is not None else None


def order_of(row: Row) -> Order:
    return Order.model_validate_json(row["folded"])


def settings_of(row: Row) -> ShopSettings:
    settings = json_format.Parse(row["settings"], ShopSettings())
    settings.etag = str(row["version"])
    return settings
