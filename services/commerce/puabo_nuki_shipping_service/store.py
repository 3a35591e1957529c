"""The SQL of shipping."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import asyncpg
from google.protobuf import json_format
from google.protobuf.message import Message

from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import (
    Address,
    DeliveryRun,
    LabelOrder,
    Quote,
    Scan,
    Settings,
)
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import moment
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.commerce.puabo_nuki_shipping_service.tracking import status_of

M = TypeVar("M", bound=Message)

_SHIPMENT = """
    shipment_id::text, key, order_id, state, label_order, origin, carrier, service, weight_grams, carrier_reference,
    tracking_number, cost, cost_currency, price, price_currency, max_days, refusal, manifest_id::text,
    delivery_run_id::text, create_time, deliver_time
"""
_SOLD = "('LABEL_BOUGHT', 'IN_TRANSIT', 'OUT_FOR_DELIVERY', 'DELIVERED', 'RETURNED')"


class DefinitionStore:
    """Where the tenant ships from, and its zones, rate tables, boxes and carrier accounts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def settings(self) -> Settings | None:
        row = await self._database.fetchval("SELECT settings FROM settings WHERE tenant_id = nexus.tenant_id()")
        return json_format.Parse(row, Settings()) if row is not None else None

    async def set_settings(self, settings: Settings) -> None:
        await self._database.execute(
            """
            INSERT INTO settings (settings) VALUES ($1)
            ON CONFLICT (tenant_id) DO UPDATE SET settings = excluded.settings
            """,
            as_json(settings),
        )

    async def lock(self) -> None:
        """Let nobody else change the definitions until the transaction ends: they refer to each other."""
        await self._database.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('definitions ' || nexus.tenant_id(), 0))"
        )

    async def set(self, kind: str, definition_id: str, body: Message) -> int:
        """Returns how many there are of the kind."""
        await self._database.execute(
            """
            INSERT INTO definitions (kind, definition_id, body) VALUES ($1, $2, $3)
            ON CONFLICT (tenant_id, kind, definition_id) DO UPDATE SET body = excluded.body
            """,
            kind,
            definition_id,
            as_json(body),
        )
        count: int = await self._database.fetchval(
            "SELECT count(*) FROM definitions WHERE tenant_id = nexus.tenant_id() AND kind = $1", kind
        )
        return count

    async def delete(self, kind: str, definition_id: str) -> bool:
        return bool(
            await self._database.execute(
                "DELETE FROM definitions WHERE kind = $1 AND definition_id = $2", kind, definition_id
            )
        )

    async def get(self, kind: str, definition_id: str, empty: type[M]) -> M | None:
        body = await self._database.fetchval(
            "SELECT body FROM definitions WHERE kind = $1 AND definition_id = $2", kind, definition_id
        )
        return json_format.Parse(body, empty()) if body is not None else None

    async def page(self, kind: str, empty: type[M], after: str = "", limit: int = 1001) -> list[M]:
        rows = await self._database.fetch(
            """
            SELECT body FROM definitions
            WHERE tenant_id = nexus.tenant_id() AND kind = $1 AND definition_id > $2
            ORDER BY definition_id LIMIT $3
            """,
            kind,
            after,
            limit,
        )
        return [json_format.Parse(row["body"], empty()) for row in rows]

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

    async def account(self, carrier: str) -> bytes | None:
        sealed: bytes | None = await self._database.fetchval(
            "SELECT sealed FROM carrier_accounts WHERE carrier = $1", carrier
        )
        return sealed

    async def set_account(self, carrier: str, sealed: bytes) -> None:
        await self._database.execute(
            """
            INSERT INTO carrier_accounts (carrier, sealed) VALUES ($1, $2)
            ON CONFLICT (tenant_id, carrier) DO UPDATE SET sealed = excluded.sealed
            """,
            carrier,
            sealed,
        )

    async def keep_quotes(self, quotes: Iterable[Quote], to: Address, most_grams: int) -> None:
        await self._database.executemany(
            """
            INSERT INTO quotes (quote_id, quote, country, postcode, most_grams, expire_time)
            VALUES ($1, $2, $3, $4, $5, $6)
            """,
            [
                (quote.quote_id, as_json(quote), to.country, to.postcode, most_grams, moment(quote.expire_time))
                for quote in quotes
            ],
        )

    async def quote(self, quote_id: str) -> asyncpg.Record | None:
        """If it is still honoured."""
        return await self._database.fetchrow(
            "SELECT quote, country, postcode, most_grams FROM quotes WHERE quote_id = $1 AND expire_time > now()",
            quote_id,
        )

    async def forget_quotes(self) -> None:
        async with self._database.transaction(platform_wide=True):
            await self._database.execute("DELETE FROM quotes WHERE expire_time < now() - interval '1 day'")


class ShipmentStore:
    """Shipments with their labels and scans, manifests and delivery runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def lock_key(self, key: str) -> None:
        """Let nobody else buy or cancel for the key until the transaction ends."""
        await self._database.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('key ' || nexus.tenant_id() || ' ' || $1, 0))", key
        )

    async def cancel_key(self, key: str) -> None:
        await self._database.execute("INSERT INTO cancelled_keys (key) VALUES ($1) ON CONFLICT DO NOTHING", key)

    async def is_cancelled(self, key: str) -> bool:
        found: bool = await self._database.fetchval(
            "SELECT EXISTS (SELECT FROM cancelled_keys WHERE tenant_id = nexus.tenant_id() AND key = $1)", key
        )
        return found

    async def begin(
        self, order: LabelOrder, origin: Address, carrier: str, service: str, price: Money | None, max_days: int
    ) -> asyncpg.Record:
        """A shipment that is being bought; in the place of one that was refused."""
        row = await self._database.fetchrow(
            f"""
            INSERT INTO shipments AS s (shipment_id, key, order_id, state, label_order, origin, carrier, service,
                                        weight_grams, price, price_currency, max_days)
            VALUES ($1, $2, $3, 'BUYING', $4, $5, $6, $7, $8, $9, $10, $11)
            ON CONFLICT (tenant_id, key) DO UPDATE
            SET state = 'BUYING', order_id = excluded.order_id, label_order = excluded.label_order,
                origin = excluded.origin, carrier = excluded.carrier, service = excluded.service,
                weight_grams = excluded.weight_grams, price = excluded.price, max_days = excluded.max_days,
                price_currency = excluded.price_currency, carrier_reference = '', refusal = '', update_time = now()
            WHERE s.state = 'REFUSED'
            RETURNING {_SHIPMENT}
            """,
            new_id(),
            order.key,
            order.order_id,
            as_json(order),
            as_json(origin),
            carrier,
            service,
            order.parcel.weight_grams,
            price.minor_units if price is not None else None,
            price.currency if price is not None else None,
            max_days,
        )
        assert row is not None, "the key is locked, and has no shipment or a refused one"
        return row

    async def by_id(self, shipment_id: str, *, lock: str = "") -> asyncpg.Record | None:
        """`lock` is "FOR UPDATE" to change it."""
        return await self._database.fetchrow(
            f"SELECT {_SHIPMENT} FROM shipments WHERE shipment_id = $1 {lock}", shipment_id
        )

    async def by_key(self, key: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            f"SELECT {_SHIPMENT} FROM shipments WHERE tenant_id = nexus.tenant_id() AND key = $1", key
        )

    async def by_tracking_number(self, number: str, carrier: str | None = None) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            f"""
            SELECT {_SHIPMENT} FROM shipments
            WHERE tenant_id = nexus.tenant_id() AND tracking_number = $1 AND ($2::text IS NULL OR carrier = $2)
            ORDER BY shipment_id DESC LIMIT 1
            """,
            number,
            carrier,
        )

    async def page(self, filters: Mapping[str, Any], before: str, limit: int) -> list[asyncpg.Record]:
        """The latest first. The filters' keys are columns; None values count for nothing."""
        conditions, values = ["tenant_id = nexus.tenant_id()"], list[Any]([limit])
        wanted = {f"{column} = {{}}": value for column, value in filters.items()}
        for condition, value in {**wanted, "shipment_id < {}": before or None}.items():
            if value is not None:
                values.append(value)
                conditions.append(condition.format(f"${len(values)}"))
        return await self._database.fetch(
            f"SELECT {_SHIPMENT} FROM shipments WHERE {' AND '.join(conditions)} ORDER BY shipment_id DESC LIMIT $1",
            *values,
        )

    async def set_reference(self, shipment_id: str, carrier_reference: str) -> None:
        await self._database.execute(
            "UPDATE shipments SET carrier_reference = $2, update_time = now() WHERE shipment_id = $1",
            shipment_id,
            carrier_reference,
        )

    async def set_bought(self, shipment_id: str, tracking_number: str, cost: Money) -> bool:
        """False if it is not being bought any more."""
        return bool(
            await self._database.execute(
                """
                UPDATE shipments SET state = 'LABEL_BOUGHT', tracking_number = $2, cost = $3, cost_currency = $4,
                                     update_time = now()
                WHERE shipment_id = $1 AND state = 'BUYING'
                """,
                shipment_id,
                tracking_number,
                cost.minor_units,
                cost.currency,
            )
        )

    async def set_refused(self, shipment_id: str, why: str) -> None:
        await self._database.execute(
            "UPDATE shipments SET state = 'REFUSED', refusal = $2, update_time = now() "
            "WHERE shipment_id = $1 AND state = 'BUYING'",
            shipment_id,
            why,
        )

    async def set_state(self, shipment_id: str, state: str, deliver_time: datetime | None = None) -> None:
        await self._database.execute(
            "UPDATE shipments SET state = $2, deliver_time = $3, update_time = now() WHERE shipment_id = $1",
            shipment_id,
            state,
            deliver_time,
        )

    async def hanging(self, older_than: timedelta, limit: int) -> list[asyncpg.Record]:
        """Of all tenants: shipments that somebody left while they were bought or given back."""
        async with self._database.transaction(platform_wide=True):
            return await self._database.fetch(
                """
                SELECT tenant_id, shipment_id::text FROM shipments
                WHERE state IN ('BUYING', 'VOIDING') AND update_time < now() - $1::interval
                ORDER BY update_time LIMIT $2
                """,
                older_than,
                limit,
            )

    async def touch(self, shipment_id: str) -> None:
        """It has been looked after; let others come first."""
        await self._database.execute("UPDATE shipments SET update_time = now() WHERE shipment_id = $1", shipment_id)

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

    async def label(self, shipment_id: str) -> bytes | None:
        pdf: bytes | None = await self._database.fetchval("SELECT pdf FROM labels WHERE shipment_id = $1", shipment_id)
        return pdf

    async def keep_label(self, shipment_id: str, pdf: bytes) -> None:
        await self._database.execute(
            "INSERT INTO labels (shipment_id, pdf) VALUES ($1, $2) ON CONFLICT DO NOTHING", shipment_id, pdf
        )

    async def add_scan(self, shipment_id: str, scan: Scan) -> bool:
        """False for one that is there."""
        return bool(
            await self._database.execute(
                """
                INSERT INTO scans (shipment_id, scan_id, status, scan_time, place, message)
                VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING
                """,
                shipment_id,
                scan.scan_id,
                status_of(scan),
                moment(scan.scan_time),
                scan.place,
                scan.message,
            )
        )

    async def scans(self, shipment_id: str) -> list[asyncpg.Record]:
        """The latest first, by when they were made."""
        return await self._database.fetch(
            """
            SELECT scan_id, status, scan_time, place, message FROM scans WHERE shipment_id = $1
            ORDER BY scan_time DESC, receive_time DESC LIMIT 1000
            """,
            shipment_id,
        )

    async def close_manifest(self, carrier: str) -> asyncpg.Record | None:
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

    async def manifest(self, manifest_id: str) -> asyncpg.Record | None:
        rows = await self.manifests(manifest_id=manifest_id)
        return rows[0] if rows else None

    async def manifests(
        self, carrier: str | None = None, before: str | None = None, limit: int = 1, manifest_id: str | None = None
    ) -> list[asyncpg.Record]:
        """The latest first."""
        return await self._database.fetch(
            """
            SELECT m.manifest_id::text, m.carrier, m.create_time, count(s.shipment_id) AS shipments,
                   coalesce(sum(s.weight_grams), 0)::bigint AS weight_grams
            FROM manifests m LEFT JOIN shipments s ON s.tenant_id = m.tenant_id AND s.manifest_id = m.manifest_id
            WHERE m.tenant_id = nexus.tenant_id() AND ($1::text IS NULL OR m.carrier = $1)
              AND ($2::uuid IS NULL OR m.manifest_id < $2) AND ($4::uuid IS NULL OR m.manifest_id = $4)
            GROUP BY m.tenant_id, m.manifest_id ORDER BY m.manifest_id DESC LIMIT $3
            """,
            carrier,
            before,
            limit,
            manifest_id,
        )

    async def on_manifest(self, manifest_id: str) -> list[asyncpg.Record]:
        return await self._database.fetch(
            f"SELECT {_SHIPMENT} FROM shipments WHERE manifest_id = $1 ORDER BY shipment_id", manifest_id
        )

    async def to_deliver(self, carrier: str, limit: int) -> list[asyncpg.Record]:
        """What waits for a delivery run, the oldest first, those with coordinates before those without. Nobody else
        plans with them until the transaction ends."""
        return await self._database.fetch(
            f"""
            SELECT {_SHIPMENT} FROM shipments
            WHERE tenant_id = nexus.tenant_id() AND carrier = $1 AND state = 'LABEL_BOUGHT' AND delivery_run_id IS NULL
            ORDER BY label_order->'to'->'location' IS NULL, shipment_id LIMIT $2 FOR UPDATE
            """,
            carrier,
            limit,
        )

    async def keep_run(self, run: DeliveryRun, shipment_ids: Sequence[str]) -> asyncpg.Record:
        await self._database.execute(
            "INSERT INTO delivery_runs (delivery_run_id, run) VALUES ($1, $2)", run.delivery_run_id, as_json(run)
        )
        await self._database.execute(
            "UPDATE shipments SET delivery_run_id = $1 WHERE shipment_id = ANY($2::uuid[])",
            run.delivery_run_id,
            shipment_ids,
        )
        [row] = await self.runs(delivery_run_id=run.delivery_run_id)
        return row

    async def runs(
        self, before: str | None = None, limit: int = 1, delivery_run_id: str | None = None
    ) -> list[asyncpg.Record]:
        """The latest first."""
        return await self._database.fetch(
            """
            SELECT delivery_run_id::text, run, create_time FROM delivery_runs
            WHERE tenant_id = nexus.tenant_id() AND ($1::uuid IS NULL OR delivery_run_id < $1)
              AND ($3::uuid IS NULL OR delivery_run_id = $3)
            ORDER BY delivery_run_id DESC LIMIT $2
            """,
            before,
            limit,
            delivery_run_id,
        )


class SandboxBooks:
    """What the sandbox carrier remembers, as a carrier would: in its own transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sell(self, reference: str, tracking_number: str, cost: int) -> asyncpg.Record:
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


def as_json(message: Message) -> str:
    return json_format.MessageToJson(message, indent=None)
