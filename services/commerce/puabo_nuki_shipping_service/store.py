"""The SQL of shipping."""

from datetime import timedelta
from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from nexus.commerce.puabo_nuki_shipping_service.v1.faults import (
    CarrierUnknown,
    DeliveryRunNotFound,
    ShipmentNotFound,
)
from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import DeliveryRun
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.table import Row, Table

M = TypeVar("M", bound=Message)

_SOLD = "('LABEL_BOUGHT', 'IN_TRANSIT', 'OUT_FOR_DELIVERY', 'DELIVERED', 'RETURNED')"


class Store:
    """What a tenant ships: from where, in which zones, at which rates, in which boxes; shipments with their labels and
    scans, manifests and delivery runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.settings = Table(database, "settings", key="tenant_id")
        self.definitions = Table(database, "definitions", key="definition_id", order="definition_id")
        self.accounts = Table(database, "carrier_accounts", key="carrier", missing=CarrierUnknown)
        self.quotes = Table(database, "quotes", key="quote_id")
        self.shipments = Table(
            database,
            "shipments",
            key="shipment_id",
            missing=lambda shipment_id: ShipmentNotFound(shipment=shipment_id),
            on_update="update_time = now()",
        )
        self.cancelled_keys = Table(database, "cancelled_keys", key="key")
        self.labels = Table(database, "labels", key="shipment_id")
        self.scans = Table(database, "scans", key="scan_id")
        self.runs = Table(database, "delivery_runs", key="delivery_run_id", missing=DeliveryRunNotFound)

    async def lock_definitions(self) -> None:
        """Let nobody else change the definitions until the transaction ends: they refer to each other."""
        await self._database.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('definitions ' || nexus.tenant_id(), 0))"
        )

    async def defined(self, kind: str, empty: type[M]) -> list[M]:
        return [json_format.Parse(row["body"], empty()) for row in await self.definitions.all(kind=kind)]

    async def define(self, kind: str, definition_id: str, body: Message) -> int:
        """Returns how many there are of the kind."""
        await self.definitions.put(kind=kind, definition_id=definition_id, body=body)
        count: int = await self._database.fetchval(
            "SELECT count(*) FROM definitions WHERE tenant_id = nexus.tenant_id() AND kind = $1", kind
        )
        return count

    async def zone_used_by(self, zone_id: str) -> str | None:
        """A rate table that uses the zone."""
        found: str | None = await self._database.fetchval(
            """
            SELECT definition_id FROM definitions
            WHERE tenant_id = nexus.tenant_id() AND kind = 'rate table' AND body->>'zoneId' = $1 LIMIT 1
            """,
            zone_id,
        )
        return found

    async def forget_quotes(self) -> None:
        async with self._database.transaction(platform_wide=True):
            await self._database.execute("DELETE FROM quotes WHERE expire_time < now() - interval '1 day'")

    async def lock_key(self, key: str) -> None:
        """Let nobody else buy or cancel for the key until the transaction ends."""
        await self._database.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('key ' || nexus.tenant_id() || ' ' || $1, 0))", key
        )

    async def tracked(self, number: str, carrier: str | None = None) -> Row | None:
        """The latest with this number, of any carrier if it is not said of which."""
        rows = await self.shipments.page("", 1, tracking_number=number, carrier=carrier)
        return rows[0] if rows else None

    async def hanging(self, older_than: timedelta, limit: int) -> list[Row]:
        """Of all tenants: shipments that somebody left while they were bought or given back."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.fetch(
                """
                SELECT tenant_id, shipment_id FROM shipments
                WHERE state IN ('BUYING', 'VOIDING') AND update_time < now() - $1::interval
                ORDER BY update_time LIMIT $2
                """,
                older_than,
                limit,
            )

    async def forget_addresses(self, order_id: str) -> None:
        """Of an order's shipments, all that says to whom they went, but for the country."""
        rows = await self._database.fetch(
            """
            UPDATE shipments SET label_order = jsonb_set(label_order - 'note', '{to}',
                jsonb_strip_nulls(jsonb_build_object('country', label_order->'to'->'country')))
            WHERE tenant_id = nexus.tenant_id() AND order_id = $1 RETURNING shipment_id
            """,
            order_id,
        )
        await self._database.execute(
            "DELETE FROM labels WHERE shipment_id = ANY ($1::uuid[])", [row["shipment_id"] for row in rows]
        )

    async def scans_of(self, shipment_id: str) -> list[Row]:
        """The latest first, by when they were made."""
        return await self._database.fetch(
            "SELECT * FROM scans WHERE shipment_id = $1 ORDER BY scan_time DESC, receive_time DESC LIMIT 1000",
            shipment_id,
        )

    async def close_manifest(self, carrier: str) -> Row | None:
        """A manifest of everything sold that is on none; None when there is nothing."""
        manifest_id = new_id()
        await self._database.execute(
            "INSERT INTO manifests (manifest_id, carrier) VALUES ($1, $2)", manifest_id, carrier
        )
        taken = await self._database.execute(
            f"""
            UPDATE shipments SET manifest_id = $1
            WHERE tenant_id = nexus.tenant_id() AND carrier = $2 AND manifest_id IS NULL AND state IN {_SOLD}
            """,
            manifest_id,
            carrier,
        )
        return await self.manifest(manifest_id) if taken else None

    async def manifest(self, manifest_id: str) -> Row | None:
        rows = await self.manifests("", 1, manifest_id=manifest_id)
        return rows[0] if rows else None

    async def manifests(
        self, before: str, limit: int, carrier: str | None = None, manifest_id: str | None = None
    ) -> list[Row]:
        """The latest first."""
        return await self._database.fetch(
            """
            SELECT m.manifest_id, m.carrier, m.create_time, count(s.shipment_id) AS shipments,
                   coalesce(sum(s.weight_grams), 0)::bigint AS weight_grams
            FROM manifests m LEFT JOIN shipments s ON s.tenant_id = m.tenant_id AND s.manifest_id = m.manifest_id
            WHERE m.tenant_id = nexus.tenant_id() AND ($1::text IS NULL OR m.carrier = $1)
              AND ($2::uuid IS NULL OR m.manifest_id < $2) AND ($4::uuid IS NULL OR m.manifest_id = $4)
            GROUP BY m.tenant_id, m.manifest_id ORDER BY m.manifest_id DESC LIMIT $3
            """,
            carrier,
            before or None,
            limit,
            manifest_id,
        )

    async def to_deliver(self, carrier: str, limit: int) -> list[Row]:
        """What waits for a delivery run, the oldest first, those with coordinates before those without. Nobody else
        plans with them until the transaction ends."""
        return await self._database.fetch(
            """
            SELECT * FROM shipments
            WHERE tenant_id = nexus.tenant_id() AND carrier = $1 AND state = 'LABEL_BOUGHT' AND delivery_run_id IS NULL
            ORDER BY label_order->'to'->'location' IS NULL, shipment_id LIMIT $2 FOR UPDATE
            """,
            carrier,
            limit,
        )

    async def keep_run(self, run: DeliveryRun) -> Row:
        planned = [stop.shipment_id for route in run.routes for stop in route.stops]
        row = await self.runs.insert(delivery_run_id=run.delivery_run_id, run=run)
        await self._database.execute(
            "UPDATE shipments SET delivery_run_id = $1 WHERE shipment_id = ANY($2::uuid[])",
            run.delivery_run_id,
            planned,
        )
        return row


class SandboxBooks:
    """What the sandbox carrier remembers, as a carrier would: in its own transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sell(self, reference: str, tracking_number: str, cost: int) -> Row:
        row = await self._database.fetchrow(
            """
            INSERT INTO sandbox_labels AS s (reference, tracking_number, cost) VALUES ($1, $2, $3)
            ON CONFLICT (tenant_id, reference) DO UPDATE SET requests = s.requests + 1
            RETURNING tracking_number, cost, requests
            """,
            reference,
            tracking_number,
            cost,
        )
        assert row is not None
        return row

    async def refund(self, reference: str) -> None:
        await self._database.execute("UPDATE sandbox_labels SET refunded = true WHERE reference = $1", reference)
