"""The rows of what is sold: plans, prices, coupons; and of what is measured: meters, usage."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

from nexus.finance.billing_service.v1.faults import CouponNotFound, MeterNotFound, PlanNotFound, PriceNotFound
from services.chassis.database import Database
from services.chassis.table import Row, Table

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
        self.plans = Table(
            database, "plans", key="plan_id", order="key", missing=PlanNotFound, on_update="etag = gen_random_uuid()"
        )
        self.prices = Table(database, "prices", key="price_id", missing=PriceNotFound)
        self.coupons = Table(
            database, "coupons", key="coupon_id", order="code", missing=lambda coupon_id: CouponNotFound()
        )
        self.meters = Table(database, "meters", key="key", order="key", missing=MeterNotFound)

    async def price(self, price_id: str) -> Row | None:
        """With the name of its plan, and whether that is for sale."""
        return await self._database.fetchrow(
            """
            SELECT r.price_id, r.plan_id, r.currency, r.fee, r.interval_unit, r.interval_count,
                   r.trial_days, r.usage_prices, r.archived OR p.archived AS archived, p.name, p.features
            FROM prices r JOIN plans p USING (tenant_id, plan_id) WHERE r.price_id = $1
            """,
            price_id,
        )

    async def prices_of(self, plan_ids: Sequence[str]) -> list[Row]:
        return await self._database.fetch(
            """
            SELECT * FROM prices
            WHERE tenant_id = nexus.tenant_id() AND plan_id = ANY ($1::uuid[]) AND NOT archived ORDER BY price_id
            """,
            plan_ids,
        )

    async def redeem(self, coupon_id: str) -> None:
        await self._database.execute("UPDATE coupons SET redemptions = redemptions + 1 WHERE coupon_id = $1", coupon_id)

    async def meters_reading(self, event_names: Sequence[str]) -> list[Row]:
        return await self._database.fetch(
            "SELECT * FROM meters WHERE tenant_id = nexus.tenant_id() AND event_name = ANY ($1)", event_names
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
