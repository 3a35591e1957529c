"""The rows of subscriptions, their bills, and the customers' credits."""

from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

import asyncpg
from google.protobuf import json_format

from nexus.finance.billing_service.v1.subscriptions_pb2 import InvoicingPolicy
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.finance.billing_service.bills import Line
from services.finance.billing_service.dunning import Policy

Row: TypeAlias = asyncpg.Record

_SUBSCRIPTION = """
subscription_id::text, customer_id::text, plan_id::text, price_id::text, quantity, state, anchor_time, period_index,
period_start, period_end, period_fee, period_discount, cancel_at_period_end, cancel_time, coupon_id::text,
coupon_bills_left, payment_method_id::text, request_hash, create_time,
(SELECT b.bill_id::text FROM bills b
 WHERE b.tenant_id = s.tenant_id AND b.subscription_id = s.subscription_id ORDER BY b.bill_id DESC LIMIT 1) AS bill_id
"""
_BILL = """
bill_id::text, subscription_id::text, customer_id::text, state, currency, total, attempts, next_attempt_time,
attempt_time, payment_id::text, invoice_id, create_time, pay_time, tax_country, tax_basis_points, tax, platform_share
"""
_LINE = "line_id::text, kind, description, price_id::text, quantity, amount, start_time, end_time"


class SubscriptionStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(
        self,
        customer_id: str,
        price: Row,
        quantity: int,
        state: str,
        start: datetime,
        end: datetime,
        index: int,
        anchor: datetime,
        period_fee: int,
        coupon_id: str | None,
        coupon_bills: int | None,
        payment_method_id: str | None,
        scope: str,
        request_id: str,
        request_hash: bytes,
    ) -> Row | None:
        """None if the request has made one before."""
        return await self._database.fetchrow(
            f"""
            INSERT INTO subscriptions AS s (subscription_id, customer_id, plan_id, price_id, quantity, state,
                anchor_time, period_index, period_start, period_end, period_fee, coupon_id, coupon_bills_left,
                payment_method_id, scope, request_id, request_hash)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
            ON CONFLICT DO NOTHING RETURNING {_SUBSCRIPTION}
            """,
            new_id(),
            customer_id,
            price["plan_id"],
            price["price_id"],
            quantity,
            state,
            anchor,
            index,
            start,
            end,
            period_fee,
            coupon_id,
            coupon_bills,
            payment_method_id,
            scope,
            request_id,
            request_hash,
        )

    async def requested(self, scope: str, request_id: str) -> Row | None:
        return await self._database.fetchrow(
            f"""
            SELECT {_SUBSCRIPTION} FROM subscriptions s
            WHERE tenant_id = nexus.tenant_id() AND scope = $1 AND request_id = $2
            """,
            scope,
            request_id,
        )

    async def by_id(self, subscription_id: str) -> Row | None:
        return await self._database.fetchrow(
            f"SELECT {_SUBSCRIPTION} FROM subscriptions s WHERE subscription_id = $1", subscription_id
        )

    async def locked(self, subscription_id: str) -> Row | None:
        """The subscription, held until the transaction ends."""
        return await self._database.fetchrow(
            f"SELECT {_SUBSCRIPTION} FROM subscriptions s WHERE subscription_id = $1 FOR UPDATE", subscription_id
        )

    async def of_customer(self, customer_id: str, before: str | None, limit: int) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_SUBSCRIPTION} FROM subscriptions s
            WHERE tenant_id = nexus.tenant_id() AND customer_id = $1 AND ($2::uuid IS NULL OR subscription_id < $2)
            ORDER BY subscription_id DESC LIMIT $3
            """,
            customer_id,
            before,
            limit,
        )

    async def entitling(self, customer_id: str) -> list[Row]:
        """The subscriptions that entitle, with the features of their plans."""
        return await self._database.fetch(
            """
            SELECT s.quantity, s.period_start, s.period_end, p.features::text
            FROM subscriptions s JOIN plans p USING (tenant_id, plan_id)
            WHERE s.tenant_id = nexus.tenant_id() AND s.customer_id = $1
              AND s.state IN ('TRIALING', 'ACTIVE', 'PAST_DUE')
            """,
            customer_id,
        )

    async def due(self, at: datetime, limit: int, *, without: Sequence[str]) -> list[str]:
        rows = await self._database.fetch(
            """
            SELECT subscription_id::text FROM subscriptions
            WHERE tenant_id = nexus.tenant_id() AND state <> 'CANCELED' AND period_end <= $1
              AND subscription_id <> ALL ($3::uuid[])
            ORDER BY period_end LIMIT $2
            """,
            at,
            limit,
            without,
        )
        return [row["subscription_id"] for row in rows]

    async def set_period(
        self, subscription_id: str, state: str, anchor: datetime, index: int, start: datetime, end: datetime, fee: int
    ) -> Row:
        return await self._one(
            """
            state = $2, anchor_time = $3, period_index = $4, period_start = $5, period_end = $6, period_fee = $7,
            period_discount = 0
            """,
            subscription_id,
            state,
            anchor,
            index,
            start,
            end,
            fee,
        )

    async def set_terms(self, subscription_id: str, plan_id: str, price_id: str, quantity: int, fee: int) -> Row:
        return await self._one(
            "plan_id = $2, price_id = $3, quantity = $4, period_fee = $5",
            subscription_id,
            plan_id,
            price_id,
            quantity,
            fee,
        )

    async def set_state(self, subscription_id: str, state: str) -> Row:
        return await self._one("state = $2", subscription_id, state)

    async def set_cancel_at_period_end(self, subscription_id: str, value: bool) -> Row:
        return await self._one("cancel_at_period_end = $2", subscription_id, value)

    async def cancel(self, subscription_id: str, at: datetime) -> Row:
        return await self._one("state = 'CANCELED', cancel_time = $2", subscription_id, at)

    async def use_coupon(self, subscription_id: str) -> None:
        await self._database.execute(
            "UPDATE subscriptions SET coupon_bills_left = coupon_bills_left - 1 WHERE subscription_id = $1",
            subscription_id,
        )

    async def take_off_fee(self, subscription_id: str, discount: int) -> None:
        await self._database.execute(
            "UPDATE subscriptions SET period_fee = period_fee - $2, period_discount = $2 WHERE subscription_id = $1",
            subscription_id,
            discount,
        )

    async def _one(self, change: str, *values: object) -> Row:
        row = await self._database.fetchrow(
            f"UPDATE subscriptions s SET {change} WHERE subscription_id = $1 RETURNING {_SUBSCRIPTION}", *values
        )
        assert row is not None, "its row is locked"
        return row

    # Bills

    async def insert_bill(
        self,
        subscription: Row,
        currency: str,
        total: int,
        cycle_start: datetime | None,
        state: str,
        next_attempt: datetime | None,
        at: datetime,
        tax_country: str,
        tax_basis_points: int,
    ) -> Row | None:
        """None if the period has been billed before."""
        return await self._database.fetchrow(
            f"""
            INSERT INTO bills (bill_id, subscription_id, customer_id, currency, total, cycle_start, state,
                               next_attempt_time, create_time, pay_time, tax_country, tax_basis_points)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, CASE WHEN $7 = 'PAID' THEN $9::timestamptz END, $10, $11)
            ON CONFLICT DO NOTHING RETURNING {_BILL}
            """,
            new_id(),
            subscription["subscription_id"],
            subscription["customer_id"],
            currency,
            total,
            cycle_start,
            state,
            next_attempt,
            at,
            tax_country,
            tax_basis_points,
        )

    async def note_sale(self, bill_id: str, tax: int, platform_share: int) -> Row | None:
        return await self._database.fetchrow(
            f"UPDATE bills SET tax = $2, platform_share = $3 WHERE bill_id = $1 RETURNING {_BILL}",
            bill_id,
            tax,
            platform_share,
        )

    async def set_invoice(self, bill_id: str, invoice_id: str) -> None:
        await self._database.execute("UPDATE bills SET invoice_id = $2 WHERE bill_id = $1", bill_id, invoice_id)

    async def to_invoice(self, limit: int) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_BILL} FROM bills
            WHERE tenant_id = nexus.tenant_id() AND state <> 'UNCOLLECTIBLE' AND total > 0 AND tax_country <> ''
              AND invoice_id = '' AND (state = 'PAID' OR NOT EXISTS (
                SELECT FROM subscriptions s
                WHERE s.subscription_id = bills.subscription_id AND s.state = 'INCOMPLETE'))
            ORDER BY bill_id LIMIT $1
            """,
            limit,
        )

    async def bill(self, bill_id: str) -> Row | None:
        return await self._database.fetchrow(f"SELECT {_BILL} FROM bills WHERE bill_id = $1", bill_id)

    async def locked_bill(self, bill_id: str) -> Row | None:
        return await self._database.fetchrow(f"SELECT {_BILL} FROM bills WHERE bill_id = $1 FOR UPDATE", bill_id)

    async def bills(self, customer_id: str, before: str | None, limit: int) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_BILL} FROM bills
            WHERE tenant_id = nexus.tenant_id() AND customer_id = $1 AND ($2::uuid IS NULL OR bill_id < $2)
            ORDER BY bill_id DESC LIMIT $3
            """,
            customer_id,
            before,
            limit,
        )

    async def has_unpaid_bill(self, subscription_id: str) -> bool:
        return await self._has_bill(subscription_id, "OPEN", "PAST_DUE")

    async def has_paid_bill(self, subscription_id: str) -> bool:
        return await self._has_bill(subscription_id, "PAID")

    async def _has_bill(self, subscription_id: str, *states: str) -> bool:
        return bool(
            await self._database.fetchval(
                """
                SELECT EXISTS (SELECT FROM bills WHERE tenant_id = nexus.tenant_id() AND subscription_id = $1
                               AND state = ANY ($2))
                """,
                subscription_id,
                states,
            )
        )

    async def to_collect(self, at: datetime, limit: int) -> list[str]:
        rows = await self._database.fetch(
            """
            SELECT bill_id::text FROM bills
            WHERE tenant_id = nexus.tenant_id() AND state IN ('OPEN', 'PAST_DUE') AND next_attempt_time <= $1
            ORDER BY next_attempt_time LIMIT $2
            """,
            at,
            limit,
        )
        return [row["bill_id"] for row in rows]

    async def begin_attempt(self, bill_id: str, at: datetime, look_again: datetime) -> None:
        """An attempt at this time; if nothing is heard of it, somebody goes on with it later."""
        await self._database.execute(
            "UPDATE bills SET attempt_time = $2, next_attempt_time = $3 WHERE bill_id = $1", bill_id, at, look_again
        )

    async def set_bill(
        self,
        bill_id: str,
        state: str,
        attempts: int,
        next_attempt: datetime | None,
        payment_id: str | None,
        paid_at: datetime | None,
    ) -> Row:
        row = await self._database.fetchrow(
            f"""
            UPDATE bills SET state = $2, attempts = $3, next_attempt_time = $4,
                payment_id = coalesce($5, payment_id), pay_time = $6
            WHERE bill_id = $1 RETURNING {_BILL}
            """,
            bill_id,
            state,
            attempts,
            next_attempt,
            payment_id,
            paid_at,
        )
        assert row is not None, "its row is locked"
        return row

    async def insert_lines(self, subscription_id: str, bill_id: str | None, lines: Sequence[Line]) -> None:
        """Without a bill: to wait for the next one."""
        await self._database.executemany(
            """
            INSERT INTO bill_lines (line_id, subscription_id, bill_id, kind, description, price_id, quantity, amount,
                                    start_time, end_time)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
            """,
            [
                (
                    new_id(),
                    subscription_id,
                    bill_id,
                    line.kind,
                    line.description,
                    line.price_id,
                    line.quantity,
                    line.amount,
                    line.start,
                    line.end,
                )
                for line in lines
            ],
        )

    async def waiting(self, subscription_id: str) -> list[Row]:
        """The lines that wait for the next bill."""
        return await self._database.fetch(
            f"""
            SELECT {_LINE} FROM bill_lines
            WHERE tenant_id = nexus.tenant_id() AND subscription_id = $1 AND bill_id IS NULL ORDER BY line_id
            """,
            subscription_id,
        )

    async def put_on_bill(self, line_ids: Sequence[str], bill_id: str) -> None:
        await self._database.execute(
            "UPDATE bill_lines SET bill_id = $2 WHERE line_id = ANY ($1::uuid[])", line_ids, bill_id
        )

    async def lines(self, bill_id: str) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_LINE} FROM bill_lines WHERE tenant_id = nexus.tenant_id() AND bill_id = $1 ORDER BY line_id
            """,
            bill_id,
        )

    # Credits and policies

    async def lock_customer(self, customer_id: str) -> None:
        """Nobody else uses the customer's credits until the transaction ends."""
        await self._database.execute("SELECT FROM customers WHERE customer_id = $1 FOR NO KEY UPDATE", customer_id)

    async def credits(self, customer_id: str) -> dict[str, int]:
        """By currency."""
        rows = await self._database.fetch(
            """
            SELECT currency, sum(amount)::bigint AS amount FROM credit_entries
            WHERE tenant_id = nexus.tenant_id() AND customer_id = $1 GROUP BY currency HAVING sum(amount) <> 0
            ORDER BY currency
            """,
            customer_id,
        )
        return {row["currency"]: row["amount"] for row in rows}

    async def add_credit(self, customer_id: str, currency: str, amount: int, bill_id: str) -> None:
        await self._database.execute(
            "INSERT INTO credit_entries (entry_id, customer_id, currency, amount, bill_id) VALUES ($1, $2, $3, $4, $5)",
            new_id(),
            customer_id,
            currency,
            amount,
            bill_id,
        )

    async def country_of(self, customer_id: str) -> str | None:
        """None when the customer has not said where they are."""
        found: str | None = await self._database.fetchval(
            "SELECT billing_details->>'country' FROM customers WHERE customer_id = $1", customer_id
        )
        return found

    async def invoicing_policy(self) -> InvoicingPolicy:
        policy = await self._database.fetchval("SELECT policy::text FROM invoicing_policies")
        return json_format.Parse(policy or "{}", InvoicingPolicy())

    async def set_invoicing_policy(self, policy: InvoicingPolicy) -> None:
        await self._database.execute(
            "INSERT INTO invoicing_policies (policy) VALUES ($1) ON CONFLICT (tenant_id) DO UPDATE SET policy = $1",
            json_format.MessageToJson(policy, indent=None),
        )

    async def policy(self) -> Policy:
        row = await self._database.fetchrow("SELECT retry_after_hours, outcome FROM dunning_policies")
        return Policy(tuple(row["retry_after_hours"]), row["outcome"]) if row is not None else Policy()

    async def set_policy(self, policy: Policy) -> None:
        await self._database.execute(
            """
            INSERT INTO dunning_policies (retry_after_hours, outcome) VALUES ($1, $2)
            ON CONFLICT (tenant_id) DO UPDATE SET retry_after_hours = $1, outcome = $2
            """,
            list(policy.retry_after_hours),
            policy.outcome,
        )

    async def is_scheduled(self) -> bool:
        return bool(await self._database.fetchval("SELECT true FROM scheduled_tenants"))

    async def note_scheduled(self) -> None:
        await self._database.execute("INSERT INTO scheduled_tenants DEFAULT VALUES ON CONFLICT DO NOTHING")
