"""The rows of billing: what is sold and used, payments, subscriptions with their bills.

Tables do what every table needs; here are the statements besides.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial

from google.protobuf import json_format

from nexus.finance.billing_service.v1 import faults
from nexus.finance.billing_service.v1.subscriptions_pb2 import DunningPolicy, InvoicingPolicy
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf
from services.chassis.table import Row, Table, stored
from services.finance.billing_service import dunning
from services.finance.billing_service.bills import Line
from services.finance.billing_service.payments import Reserved
from services.finance.billing_service.usage import Use

_IS_DEFAULT = """
EXISTS (SELECT FROM customers c
        WHERE (c.tenant_id, c.customer_id) = (payment_methods.tenant_id, payment_methods.customer_id)
          AND c.default_payment_method_id = payment_methods.payment_method_id) AS is_default
"""
_SUMS = """
update_time = now(),
captured = (SELECT coalesce(sum(o.amount), 0) FROM payment_operations o
            WHERE (o.tenant_id, o.payment_id) = (payments.tenant_id, payments.payment_id)
              AND o.kind = 'CAPTURE' AND o.state = 'SUCCEEDED'),
refunded = (SELECT coalesce(sum(o.amount), 0) FROM payment_operations o
            WHERE (o.tenant_id, o.payment_id) = (payments.tenant_id, payments.payment_id)
              AND o.kind = 'REFUND' AND o.state = 'SUCCEEDED'),
disputed = (SELECT coalesce(sum(d.amount), 0) FROM disputes d
            WHERE (d.tenant_id, d.payment_id) = (payments.tenant_id, payments.payment_id) AND d.state <> 'WON')
"""
"""A payment's sums are those of its operations and disputes."""
_ITS_CURRENCY = """
(SELECT p.currency FROM payments p WHERE (p.tenant_id, p.payment_id) = (disputes.tenant_id, disputes.payment_id))
AS currency
"""
_LATEST_BILL = """
(SELECT b.bill_id FROM bills b
 WHERE (b.tenant_id, b.subscription_id) = (subscriptions.tenant_id, subscriptions.subscription_id)
 ORDER BY b.bill_id DESC LIMIT 1) AS bill_id
"""
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
_dunning_policy = MessageOf(DunningPolicy)


class Store:
    def __init__(self, database: Database) -> None:
        self._database = database
        table = partial(Table, database)
        self.plans = table(
            "plans", key="plan_id", order="key", missing=faults.PlanNotFound, on_update="etag = gen_random_uuid()"
        )
        self.prices = table("prices", key="price_id", missing=faults.PriceNotFound)
        self.coupons = table(
            "coupons", key="coupon_id", order="code", missing=lambda coupon_id: faults.CouponNotFound()
        )
        self.meters = table("meters", key="key", order="key", missing=faults.MeterNotFound)

        self.customers = table("customers", key="customer_id", missing=faults.CustomerNotFound)
        self.accounts = table(
            "provider_accounts", key="provider", missing=faults.ProviderNotConfigured, on_update="update_time = now()"
        )
        self.methods = table(
            "payment_methods",
            key="payment_method_id",
            missing=lambda payment_method_id: faults.PaymentMethodNotFound(),
            columns=f"*, {_IS_DEFAULT}",
        )
        self.payments = table("payments", key="payment_id", missing=faults.PaymentNotFound, on_update=_SUMS)
        self.operations = table("payment_operations", key="operation_id")
        self.disputes = table(
            "disputes", key="dispute_id", missing=faults.DisputeNotFound, columns=f"*, {_ITS_CURRENCY}"
        )
        self.notices = table("provider_notices", key="notice_id")

        self.subscriptions = table(
            "subscriptions",
            key="subscription_id",
            missing=faults.SubscriptionNotFound,
            columns=f"*, {_LATEST_BILL}",
        )
        self.bills = table("bills", key="bill_id", missing=faults.BillNotFound)
        self.lines = table("bill_lines", key="line_id")
        self.credits = table("credit_entries", key="entry_id")
        self.dunning_policies = table("dunning_policies", key="tenant_id")
        self.invoicing_policies = table("invoicing_policies", key="tenant_id")
        self.scheduled = table("scheduled_tenants", key="tenant_id")

    async def price(self, price_id: str) -> Row:
        """With the name of its plan, and whether that is for sale. Raises PriceNotFound."""
        row = await self._database.fetchrow(
            """
            SELECT r.price_id, r.plan_id, r.currency, r.fee, r.interval_unit, r.interval_count,
                   r.trial_days, r.usage_prices, r.archived OR p.archived AS archived, p.name
            FROM prices r JOIN plans p USING (tenant_id, plan_id) WHERE r.price_id = $1
            """,
            price_id,
        )
        if row is None:
            raise faults.PriceNotFound(price_id=price_id)
        return row

    async def prices_of(self, plan_ids: Sequence[str]) -> list[Row]:
        return await self.prices.select("plan_id = ANY ($1::uuid[]) AND NOT archived ORDER BY price_id", plan_ids)

    async def meters_reading(self, event_names: Sequence[str]) -> list[Row]:
        return await self.meters.select("event_name = ANY ($1)", event_names)

    async def insert_uses(self, uses: Sequence[Use]) -> int:
        """Returns how many are new. While they are written, nobody closes the use of their customers."""
        customer_ids = [use.event.customer_id for use in uses]
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
            [use.event.source for use in uses],
            [use.event.event_id for use in uses],
            [use.event.name for use in uses],
            customer_ids,
            [use.time for use in uses],
            [use.value for use in uses],
            [stored(use.event.properties) for use in uses],
        )

    async def close_usage(self, customer_id: str, until: datetime) -> None:
        """What is recorded from now on counts from this time on at the earliest."""
        query = "UPDATE customers SET usage_closed_until = greatest(usage_closed_until, $2) WHERE customer_id = $1"
        await self._database.execute(query, customer_id, until)

    async def used(self, meter: Row, customer_id: str, start: datetime, end: datetime) -> Decimal:
        """What the meter reads of what is billed by a time."""
        query = f"SELECT {_AGGREGATES[meter['aggregation']]} {_BILLED}"
        value: Decimal = await self._database.fetchval(
            query, customer_id, meter["event_name"], start, end, meter["value_property"]
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

    async def forget_methods(self, customer_id: str) -> None:
        """Take the methods of an erased user away, with all that tells of cards, and the address."""
        await self._database.execute(
            """
            UPDATE payment_methods SET removed = true, provider_token = '', provider_customer = '', brand = '',
                last_digits = '', expiry = ''
            WHERE customer_id = $1
            """,
            customer_id,
        )
        await self.customers.update(customer_id, default_payment_method_id=None, billing_details=None)

    async def at_provider(self, provider: str, provider_payment_id: str) -> Row | None:
        found = await self.payments.select(
            "provider = $1 AND provider_payment_id = $2 AND provider_payment_id <> ''", provider, provider_payment_id
        )
        return found[0] if found else None

    async def waiting_too_long(self, since: timedelta, limit: int) -> list[Row]:
        """The payments that wait for their customers."""
        return await self.payments.select(
            "state = 'REQUIRES_ACTION' AND update_time < now() - $1::interval ORDER BY update_time LIMIT $2",
            since,
            limit,
        )

    async def reserved(self, payment_id: str) -> Reserved:
        row = await self._database.fetchrow(
            """
            SELECT coalesce(sum(amount) FILTER (WHERE kind = 'CAPTURE'), 0)::bigint AS captured,
                   coalesce(sum(amount) FILTER (WHERE kind = 'REFUND'), 0)::bigint AS refunded
            FROM payment_operations
            WHERE tenant_id = nexus.tenant_id() AND payment_id = $1 AND state <> 'FAILED'
            """,
            payment_id,
        )
        assert row is not None, "sums are of nothing, too"
        return Reserved(**row)

    async def refunded_before(self, payment_id: str, operation_id: str) -> int:
        """What had been given back of a payment before this refund was."""
        before: int = await self._database.fetchval(
            """
            SELECT coalesce(sum(o.amount), 0)::bigint FROM payment_operations o
            JOIN payment_operations this USING (tenant_id, payment_id)
            WHERE o.tenant_id = nexus.tenant_id() AND o.payment_id = $1 AND this.operation_id = $2
              AND o.kind = 'REFUND' AND o.state = 'SUCCEEDED'
              AND (o.settle_time, o.operation_id) < (this.settle_time, this.operation_id)
            """,
            payment_id,
            operation_id,
        )
        return before

    async def claim(self, operation_id: str, lease: timedelta) -> Row | None:
        """Have an operation to oneself; None if it is settled, or somebody else has it."""
        return await self._database.fetchrow(
            """
            UPDATE payment_operations SET lease_until = clock_timestamp() + $2::interval, attempts = attempts + 1
            WHERE operation_id = $1 AND state = 'PENDING' AND lease_until < clock_timestamp() RETURNING *
            """,
            operation_id,
            lease,
        )

    async def release(self, operation_id: str, wait: timedelta) -> None:
        """Let somebody ask again after a while."""
        await self._database.execute(
            """
            UPDATE payment_operations SET lease_until = '-infinity', next_attempt_time = now() + $2::interval
            WHERE operation_id = $1 AND state = 'PENDING'
            """,
            operation_id,
            wait,
        )

    async def settle(
        self, operation_id: str, state: str, *, provider_id: str = "", failure: str = "", reason: str = ""
    ) -> Row | None:
        """None if it has been settled before."""
        return await self._database.fetchrow(
            """
            UPDATE payment_operations SET state = $2, provider_operation_id = $3, failure = $4, failure_reason = $5,
                settle_time = now(), lease_until = '-infinity'
            WHERE operation_id = $1 AND state = 'PENDING' RETURNING *
            """,
            operation_id,
            state,
            provider_id,
            failure,
            reason,
        )

    async def in_doubt(self, limit: int) -> list[Row]:
        """The operations that nobody asks about at the moment, and somebody should."""
        return await self.operations.select(
            """
            state = 'PENDING' AND next_attempt_time <= now() AND lease_until < now()
            ORDER BY next_attempt_time LIMIT $1
            """,
            limit,
        )

    async def tenants_in_doubt(self, action_lifetime: timedelta) -> list[Row]:
        """Tenants with payments to look after. In a platform-wide transaction."""
        return await self._database.fetch(
            """
            SELECT tenant_id FROM payment_operations WHERE state = 'PENDING' AND next_attempt_time <= now()
            UNION
            SELECT tenant_id FROM payments WHERE state = 'REQUIRES_ACTION' AND update_time < now() - $1::interval
            """,
            action_lifetime,
        )

    async def forget_notices(self) -> None:
        """Drop notices too old to come again. In a platform-wide transaction."""
        await self._database.execute("DELETE FROM provider_notices WHERE create_time < now() - interval '90 days'")

    async def entitling(self, customer_id: str) -> list[Row]:
        """The subscriptions that entitle, with the features of their plans."""
        return await self._database.fetch(
            """
            SELECT s.quantity, s.period_start, s.period_end, p.features
            FROM subscriptions s JOIN plans p USING (tenant_id, plan_id)
            WHERE s.tenant_id = nexus.tenant_id() AND s.customer_id = $1
              AND s.state IN ('TRIALING', 'ACTIVE', 'PAST_DUE')
            """,
            customer_id,
        )

    async def due(self, at: datetime, limit: int, *, without: Sequence[str]) -> list[Row]:
        """The subscriptions whose period has ended."""
        return await self.subscriptions.select(
            """
            state <> 'CANCELED' AND period_end <= $1 AND subscription_id <> ALL ($3::uuid[])
            ORDER BY period_end LIMIT $2
            """,
            at,
            limit,
            without,
        )

    async def to_collect(self, at: datetime, limit: int) -> list[Row]:
        """The bills to be collected now."""
        return await self.bills.select(
            "state IN ('OPEN', 'PAST_DUE') AND next_attempt_time <= $1 ORDER BY next_attempt_time LIMIT $2", at, limit
        )

    async def to_invoice(self, limit: int) -> list[Row]:
        return await self.bills.select(
            """
            state <> 'UNCOLLECTIBLE' AND total > 0 AND tax_country <> '' AND invoice_id = ''
            AND (state = 'PAID' OR NOT EXISTS (
                SELECT FROM subscriptions s
                WHERE s.subscription_id = bills.subscription_id AND s.state = 'INCOMPLETE'))
            ORDER BY bill_id LIMIT $1
            """,
            limit,
        )

    async def has_bill(self, subscription_id: str, states: Sequence[str]) -> bool:
        return bool(
            await self.bills.select("subscription_id = $1 AND state = ANY ($2) LIMIT 1", subscription_id, states)
        )

    async def insert_lines(self, subscription_id: str, bill_id: str | None, lines: Sequence[Line]) -> None:
        """Without a bill: to wait for the next one."""
        belonging = {"subscription_id": subscription_id, "bill_id": bill_id}
        await self.lines.insert_all({"line_id": new_id(), **belonging, **asdict(line)} for line in lines)

    async def lines_of(self, bill_ids: Sequence[str]) -> list[Row]:
        return await self.lines.select("bill_id = ANY ($1::uuid[]) ORDER BY line_id", bill_ids)

    async def waiting(self, subscription_id: str) -> list[Row]:
        """The lines that wait for the next bill."""
        return await self.lines.select("subscription_id = $1 AND bill_id IS NULL ORDER BY line_id", subscription_id)

    async def put_on_bill(self, lines: Sequence[Row], bill_id: str) -> None:
        await self._database.execute(
            "UPDATE bill_lines SET bill_id = $2 WHERE line_id = ANY ($1::uuid[])",
            [line["line_id"] for line in lines],
            bill_id,
        )

    async def lock_customer(self, customer_id: str) -> str | None:
        """Nobody else uses the customer's credits until the transaction ends. Returns their country, if it is known."""
        country: str | None = await self._database.fetchval(
            "SELECT billing_details->>'country' FROM customers WHERE customer_id = $1 FOR NO KEY UPDATE", customer_id
        )
        return country

    async def owed(self, customer_id: str) -> list[Row]:
        """The customer's credits, by currency."""
        return await self._database.fetch(
            """
            SELECT currency, sum(amount)::bigint AS minor_units FROM credit_entries
            WHERE tenant_id = nexus.tenant_id() AND customer_id = $1 GROUP BY currency HAVING sum(amount) <> 0
            ORDER BY currency
            """,
            customer_id,
        )

    async def invoicing_policy(self) -> InvoicingPolicy:
        row = await self.invoicing_policies.find()
        return json_format.Parse(row["policy"] if row is not None else "{}", InvoicingPolicy())

    async def dunning_policy(self) -> DunningPolicy:
        row = await self.dunning_policies.find()
        return _dunning_policy(row) if row is not None else dunning.DEFAULT
