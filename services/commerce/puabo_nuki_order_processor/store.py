"""The SQL of order-processor."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import asyncpg
from google.protobuf import json_format

from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import Address
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.saga import Changed
from services.commerce.puabo_nuki_order_processor.invoicing import Addresses
from services.commerce.puabo_nuki_order_processor.order import Order

_CART = (
    "cart_id::text, customer_id::text, channel, currency, lines, shipping_address, billing_address, offers, parcels, "
    "delivery, order_id::text, version, create_time, update_time"
)
_ORDER = "order_id::text, folded, shipping_address, billing_address, due_time, attention"
_OPEN = "cart_id = $1 AND order_id IS NULL"


class CartStore:
    """Carts of the call's tenant. Those that an order is being made of are left out."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, channel: str, currency: str) -> asyncpg.Record:
        row = await self._database.fetchrow(
            f"INSERT INTO carts (cart_id, channel, currency) VALUES ($1, $2, $3) RETURNING {_CART}",
            new_id(),
            channel,
            currency,
        )
        assert row is not None
        return row

    async def of_customer(self, customer_id: str, channel: str, currency: str) -> asyncpg.Record:
        """The customer's cart, made if there is none; locked."""
        await self._database.execute(
            "INSERT INTO carts (cart_id, customer_id, channel, currency) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT DO NOTHING",
            new_id(),
            customer_id,
            channel,
            currency,
        )
        row = await self._database.fetchrow(
            f"SELECT {_CART} FROM carts WHERE tenant_id = nexus.tenant_id() AND customer_id = $1 AND channel = $2 "
            "AND currency = $3 FOR UPDATE",
            customer_id,
            channel,
            currency,
        )
        assert row is not None, "it is there now, or was before"
        return row

    async def get(self, cart_id: str, *, lock: str = "") -> asyncpg.Record | None:
        return await self._database.fetchrow(f"SELECT {_CART} FROM carts WHERE {_OPEN} {lock}", cart_id)

    async def set_lines(self, cart_id: str, lines: Mapping[str, int]) -> None:
        """What was offered and chosen for other lines is forgotten."""
        await self._database.execute(
            f"UPDATE carts SET lines = $2, {_ANEW} WHERE {_OPEN}", cart_id, json.dumps(list(lines.items()))
        )

    async def set_addresses(self, cart_id: str, shipping: Address, billing: Address | None) -> None:
        await self._database.execute(
            f"UPDATE carts SET shipping_address = $2, billing_address = $3, {_ANEW} WHERE {_OPEN}",
            cart_id,
            json_format.MessageToJson(shipping),
            json_format.MessageToJson(billing) if billing is not None else None,
        )

    async def set_offers(self, cart_id: str, version: int, offers: list[Any], parcels: list[Any]) -> int:
        """Only for the cart that they were made for; the chosen one stays. Returns how many that is."""
        return await self._database.execute(
            f"UPDATE carts SET offers = $3, parcels = $4 WHERE {_OPEN} AND version = $2",
            cart_id,
            version,
            json.dumps(offers),
            json.dumps(parcels),
        )

    async def choose(self, cart_id: str, delivery: Mapping[str, Any]) -> None:
        await self._database.execute(
            f"UPDATE carts SET delivery = $2, version = version + 1, update_time = clock_timestamp() WHERE {_OPEN}",
            cart_id,
            json.dumps(delivery),
        )

    async def hand_over(self, cart_id: str, version: int, order_id: str) -> bool:
        """Make an order of the cart: nobody else can, nor change it."""
        return bool(
            await self._database.execute(
                f"UPDATE carts SET order_id = $3 WHERE {_OPEN} AND version = $2", cart_id, version, order_id
            )
        )

    async def hand_back(self, order_id: str) -> None:
        await self._database.execute(
            "UPDATE carts SET order_id = NULL WHERE tenant_id = nexus.tenant_id() AND order_id = $1", order_id
        )

    async def delete(self, cart_id: str) -> None:
        await self._database.execute("DELETE FROM carts WHERE cart_id = $1", cart_id)

    async def forget_old(self, lifetime: timedelta) -> None:
        async with self._database.transaction(platform_wide=True):
            await self._database.execute(
                "DELETE FROM carts WHERE update_time < clock_timestamp() - $1::interval", lifetime
            )

    async def forget_customer(self, customer_id: str) -> None:
        await self._database.execute(
            "DELETE FROM carts WHERE tenant_id = nexus.tenant_id() AND customer_id = $1", customer_id
        )


_ANEW = "offers = '[]', parcels = '[]', delivery = NULL, version = version + 1, update_time = clock_timestamp()"


class OrderStore:
    """Orders of the call's tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, order: Order, addresses: Addresses, request_id: str, request_hash: bytes) -> bool:
        """False when the request has made an order before. Its event is written by `append_first`."""
        billing = addresses.billing
        return bool(
            await self._database.execute(
                """
                INSERT INTO orders (order_id, customer_id, request_id, request_hash, version, state, currency, folded,
                                    shipping_address, billing_address, due_time)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, clock_timestamp()) ON CONFLICT DO NOTHING
                """,
                order.order_id,
                order.customer_id,
                request_id,
                request_hash,
                order.version,
                order.state,
                order.currency,
                order.model_dump_json(),
                json_format.MessageToJson(addresses.shipping),
                json_format.MessageToJson(billing) if billing is not None else None,
            )
        )

    async def add_event(self, order: Order, kind: str, data: Mapping[str, Any], actor: str) -> None:
        await self._database.execute(
            "INSERT INTO order_events (order_id, version, kind, data, actor, create_time) "
            "VALUES ($1, $2, $3, $4, $5, $6)",
            order.order_id,
            order.version,
            kind,
            json.dumps(data),
            actor,
            order.update_time,
        )

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

    async def get(self, order_id: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(f"SELECT {_ORDER} FROM orders WHERE order_id = $1", order_id)

    async def requested(self, customer_id: str, request_id: str) -> asyncpg.Record | None:
        """The order that a request has made."""
        return await self._database.fetchrow(
            f"SELECT {_ORDER}, request_hash FROM orders WHERE tenant_id = nexus.tenant_id() AND customer_id = $1 "
            "AND request_id = $2",
            customer_id,
            request_id,
        )

    async def addresses(self, order_id: str) -> Addresses:
        row = await self.get(order_id)
        assert row is not None, "an order that is carried out is there"
        return addresses_of(row)

    async def page(
        self, *, customer_id: str | None, state: str, needs_attention: bool, before: str, size: int
    ) -> list[asyncpg.Record]:
        """The newest first."""
        conditions, values = ["tenant_id = nexus.tenant_id()"], list[Any]()
        for condition, value in (("customer_id =", customer_id), ("state =", state), ("order_id <", before)):
            if value:
                values.append(value)
                conditions.append(f"{condition} ${len(values)}")
        if needs_attention:
            conditions.append("attention <> ''")
        return await self._database.fetch(
            f"SELECT {_ORDER} FROM orders WHERE {' AND '.join(conditions)} ORDER BY order_id DESC LIMIT {size:d}",
            *values,
        )

    async def events(self, order_id: str, after: int = 0, size: int = 1_000_000) -> list[asyncpg.Record]:
        return await self._database.fetch(
            "SELECT version, kind, data, actor, create_time FROM order_events WHERE tenant_id = nexus.tenant_id() "
            "AND order_id = $1 AND version > $2 ORDER BY version LIMIT $3",
            order_id,
            after,
            size,
        )

    async def counts(self) -> list[asyncpg.Record]:
        return await self._database.fetch(
            "SELECT state, count(*) AS orders, count(*) FILTER (WHERE attention <> '') AS attention FROM orders "
            "WHERE tenant_id = nexus.tenant_id() GROUP BY state ORDER BY state"
        )

    async def sums(self, since: datetime) -> list[asyncpg.Record]:
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
            WHERE tenant_id = nexus.tenant_id() AND customer_id = $1 RETURNING order_id::text
            """,
            customer_id,
        )
        return [row["order_id"] for row in rows]

    async def settings(self) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            "SELECT settings, version FROM shop_settings WHERE tenant_id = nexus.tenant_id()"
        )

    async def put_settings(self, settings: str, version: int | None) -> int | None:
        """The new version; None if there are settings of another version than is given."""
        result: int | None = await self._database.fetchval(
            """
            INSERT INTO shop_settings AS s (settings) VALUES ($1)
            ON CONFLICT (tenant_id) DO UPDATE SET settings = $1, version = s.version + 1
            WHERE $2::bigint IS NULL OR s.version = $2
            RETURNING version
            """,
            settings,
            version,
        )
        return result


def order_of(row: Any) -> Order:
    return Order.model_validate_json(row["folded"])


def addresses_of(row: Any) -> Addresses:
    billing = row["billing_address"]
    return Addresses(
        shipping=json_format.Parse(row["shipping_address"] or "{}", Address()),
        billing=json_format.Parse(billing, Address()) if billing else None,
    )
