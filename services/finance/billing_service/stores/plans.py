"""The rows of what is sold: plans, prices, coupons; and of what is measured: meters, usage."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import TypeAlias

import asyncpg

from services.chassis.database import Database
from services.chassis.ids import new_id

Row: TypeAlias = asyncpg.Record

_PLAN = "plan_id::text, key, name, description, features::text, archived, etag::text, create_time"
_PRICE = """
price_id::text, plan_id::text, currency, fee, interval_unit, interval_count, trial_days, usage_prices::text, archived
"""
_COUPON = """
coupon_id::text, code, name, basis_points, currency, amount, bills, redeem_until, max_redemptions, redemptions, archived
"""
_METER = "key, event_name, aggregation, value_property, unit, create_time"
_VALUE = "CASE WHEN $5 = '' THEN value ELSE (properties ->> $5)::numeric END"
_AGGREGATES = {
    "COUNT": "count(*)::numeric",
    "SUM": f"coalesce(sum({_VALUE}), 0)",
    "MAX": f"coalesce(max({_VALUE}), 0)",
    "UNIQUE_COUNT": "count(DISTINCT properties ->> $5)::numeric",
    "LATEST": f"coalesce((array_agg({_VALUE} ORDER BY event_time DESC, event_id DESC))[1], 0)",
}
_USED = """
FROM usage_events
WHERE tenant_id = nexus.tenant_id() AND customer_id = $1 AND name = $2 AND {time} >= $3 AND {time} < $4
  AND $5::text IS NOT NULL
"""
_BILLED, _HAPPENED = _USED.format(time="count_time"), _USED.format(time="event_time")


class PlanStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_plan(self, key: str, name: str, description: str, features: str) -> Row | None:
        """None if the key is taken."""
        return await self._database.fetchrow(
            f"""
            INSERT INTO plans (plan_id, key, name, description, features) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT DO NOTHING RETURNING {_PLAN}
            """,
            new_id(),
            key,
            name,
            description,
            features,
        )

    async def plan(self, plan_id: str) -> Row | None:
        return await self._database.fetchrow(f"SELECT {_PLAN} FROM plans WHERE plan_id = $1", plan_id)

    async def plans(self, after: str, limit: int) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_PLAN} FROM plans WHERE tenant_id = nexus.tenant_id() AND NOT archived AND key > $1
            ORDER BY key LIMIT $2
            """,
            after,
            limit,
        )

    async def update_plan(self, plan_id: str, name: str, description: str, features: str, etag: str) -> Row | None:
        """None if its etag is another."""
        return await self._database.fetchrow(
            f"""
            UPDATE plans SET name = $2, description = $3, features = $4, etag = gen_random_uuid()
            WHERE plan_id = $1 AND ($5 = '' OR etag::text = $5) RETURNING {_PLAN}
            """,
            plan_id,
            name,
            description,
            features,
            etag,
        )

    async def archive_plan(self, plan_id: str) -> Row | None:
        return await self._database.fetchrow(
            f"UPDATE plans SET archived = true WHERE plan_id = $1 RETURNING {_PLAN}", plan_id
        )

    async def insert_price(
        self, plan_id: str, currency: str, fee: int, unit: str, count: int, trial_days: int, usage_prices: str
    ) -> Row:
        row = await self._database.fetchrow(
            f"""
            INSERT INTO prices (price_id, plan_id, currency, fee, interval_unit, interval_count, trial_days,
                                usage_prices)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING {_PRICE}
            """,
            new_id(),
            plan_id,
            currency,
            fee,
            unit,
            count,
            trial_days,
            usage_prices,
        )
        assert row is not None
        return row

    async def price(self, price_id: str) -> Row | None:
        """With the name of its plan, and whether that is for sale."""
        return await self._database.fetchrow(
            """
            SELECT r.price_id::text, r.plan_id::text, r.currency, r.fee, r.interval_unit, r.interval_count,
                   r.trial_days, r.usage_prices::text, r.archived OR p.archived AS archived, p.name, p.features::text
            FROM prices r JOIN plans p USING (tenant_id, plan_id) WHERE r.price_id = $1
            """,
            price_id,
        )

    async def prices_of(self, plan_ids: Sequence[str]) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_PRICE} FROM prices
            WHERE tenant_id = nexus.tenant_id() AND plan_id = ANY ($1::uuid[]) AND NOT archived ORDER BY price_id
            """,
            plan_ids,
        )

    async def archive_price(self, price_id: str) -> Row | None:
        return await self._database.fetchrow(
            f"UPDATE prices SET archived = true WHERE price_id = $1 RETURNING {_PRICE}", price_id
        )

    async def insert_coupon(
        self,
        code: str,
        name: str,
        basis_points: int,
        currency: str,
        amount: int,
        bills: int,
        redeem_until: datetime | None,
        max_redemptions: int,
    ) -> Row | None:
        """None if the code is taken."""
        return await self._database.fetchrow(
            f"""
            INSERT INTO coupons (coupon_id, code, name, basis_points, currency, amount, bills, redeem_until,
                                 max_redemptions)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING RETURNING {_COUPON}
            """,
            new_id(),
            code,
            name,
            basis_points,
            currency,
            amount,
            bills,
            redeem_until,
            max_redemptions,
        )

    async def coupons(self, after: str, limit: int) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_COUPON} FROM coupons WHERE tenant_id = nexus.tenant_id() AND code > $1 ORDER BY code LIMIT $2
            """,
            after,
            limit,
        )

    async def coupon(self, coupon_id: str) -> Row | None:
        return await self._database.fetchrow(f"SELECT {_COUPON} FROM coupons WHERE coupon_id = $1", coupon_id)

    async def archive_coupon(self, coupon_id: str) -> Row | None:
        return await self._database.fetchrow(
            f"UPDATE coupons SET archived = true WHERE coupon_id = $1 RETURNING {_COUPON}", coupon_id
        )

    async def coupon_by_code(self, code: str) -> Row | None:
        """The coupon, held until the transaction ends."""
        return await self._database.fetchrow(
            f"SELECT {_COUPON} FROM coupons WHERE tenant_id = nexus.tenant_id() AND code = $1 FOR UPDATE", code
        )

    async def redeem(self, coupon_id: str) -> None:
        await self._database.execute("UPDATE coupons SET redemptions = redemptions + 1 WHERE coupon_id = $1", coupon_id)

    # Use

    async def insert_meter(self, key: str, event_name: str, aggregation: str, prop: str, unit: str) -> Row | None:
        """None if the key is taken."""
        return await self._database.fetchrow(
            f"""
            INSERT INTO meters (key, event_name, aggregation, value_property, unit) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT DO NOTHING RETURNING {_METER}
            """,
            key,
            event_name,
            aggregation,
            prop,
            unit,
        )

    async def meters(self, after: str, limit: int) -> list[Row]:
        return await self._database.fetch(
            f"SELECT {_METER} FROM meters WHERE tenant_id = nexus.tenant_id() AND key > $1 ORDER BY key LIMIT $2",
            after,
            limit,
        )

    async def meter(self, key: str) -> Row | None:
        return await self._database.fetchrow(f"SELECT {_METER} FROM meters WHERE key = $1", key)

    async def meters_reading(self, event_names: Sequence[str]) -> list[Row]:
        return await self._database.fetch(
            f"SELECT {_METER} FROM meters WHERE tenant_id = nexus.tenant_id() AND event_name = ANY ($1)", event_names
        )

    async def insert_events(
        self,
        sources: Sequence[str],
        event_ids: Sequence[str],
        names: Sequence[str],
        customer_ids: Sequence[str],
        times: Sequence[datetime],
        values: Sequence[Decimal],
        properties: Sequence[str],
    ) -> int:
        """Returns how many are new. While they are written, nobody closes the use of their customers."""
        await self._database.execute(
            """
            INSERT INTO customers (customer_id) SELECT DISTINCT unnest($1::uuid[]) ORDER BY 1 ON CONFLICT DO NOTHING
            """,
            customer_ids,
        )
        await self._database.execute(
            """
            SELECT FROM customers WHERE tenant_id = nexus.tenant_id() AND customer_id = ANY ($1::uuid[])
            ORDER BY customer_id FOR SHARE
            """,
            customer_ids,
        )
        return await self._database.execute(
            """
            INSERT INTO usage_events (source, event_id, name, customer_id, event_time, count_time, value, properties)
            SELECT e.source, e.event_id, e.name, e.customer_id, e.event_time,
                   greatest(e.event_time, c.usage_closed_until), e.value, e.properties
            FROM unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::timestamptz[], $6::numeric[], $7::jsonb[])
                 AS e (source, event_id, name, customer_id, event_time, value, properties)
            JOIN customers c ON c.tenant_id = nexus.tenant_id() AND c.customer_id = e.customer_id
            ON CONFLICT DO NOTHING
            """,
            sources,
            event_ids,
            names,
            customer_ids,
            times,
            values,
            properties,
        )

    async def close_usage(self, customer_id: str, until: datetime) -> None:
        """What is recorded from now on counts from this time on at the earliest."""
        await self._database.execute(
            """
            UPDATE customers SET usage_closed_until = greatest(usage_closed_until, $2) WHERE customer_id = $1
            """,
            customer_id,
            until,
        )

    async def used(self, meter: Row, customer_id: str, start: datetime, end: datetime) -> Decimal:
        """What the meter reads of what is billed by a time."""
        aggregate = _AGGREGATES[meter["aggregation"]]
        value: Decimal = await self._database.fetchval(
            f"SELECT {aggregate} {_USED.format(time='count_time')} AND $5::text IS NOT NULL",
            customer_id,
            meter["event_name"],
            start,
            end,
            meter["value_property"],
        )
        return value

    async def sums(
        self, meter: Row, customer_id: str, start: datetime, end: datetime, window: str, group_by: str, limit: int
    ) -> list[Row]:
        """In windows of "hour", "day" or "month"; "" for one."""
        aggregate = _AGGREGATES[meter["aggregation"]]
        return await self._database.fetch(
            f"""
            SELECT CASE WHEN $6 = '' THEN $3 ELSE greatest(date_trunc($6, event_time, 'UTC'), $3) END AS start,
                   CASE WHEN $6 = '' THEN $4
                        ELSE least(date_trunc($6, event_time, 'UTC') + ('1 ' || $6)::interval, $4) END AS end,
                   CASE WHEN $7 = '' THEN '' ELSE coalesce(properties ->> $7, '') END AS group_value,
                   {aggregate} AS value, count(*) AS events
            {_HAPPENED}
            GROUP BY 1, 2, 3 ORDER BY 1, 3 LIMIT $8
            """,
            customer_id,
            meter["event_name"],
            start,
            end,
            meter["value_property"],
            window,
            group_by,
            limit,
        )
