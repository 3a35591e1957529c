"""The rows of payments: customers, methods, payments with their operations, disputes, notices."""

from datetime import datetime, timedelta
from typing import TypeAlias

import asyncpg

from services.chassis.database import Database
from services.chassis.ids import new_id
from services.finance.billing_service.payments import Reserved
from services.finance.billing_service.providers.interface import Card

Row: TypeAlias = asyncpg.Record

_METHOD = """
m.payment_method_id::text, m.customer_id::text, m.provider, m.provider_token, m.provider_customer, m.brand,
m.last_digits, m.expiry, m.removed, m.request_hash, m.create_time,
EXISTS (SELECT FROM customers c WHERE c.tenant_id = m.tenant_id AND c.customer_id = m.customer_id
        AND c.default_payment_method_id = m.payment_method_id) AS is_default
"""
_PAYMENT = """
payment_id::text, customer_id::text, payment_method_id::text, provider, provider_payment_id, state, currency, amount,
captured, refunded, disputed, reference, description, capture, off_session, bill_id::text, failure, failure_reason,
action_url, client_token, create_time, update_time
"""
_OPERATION = """
operation_id::text, payment_id::text, kind, state, amount, keep_rest, reason, request_hash, provider_operation_id,
failure, failure_reason, attempts, create_time, settle_time
"""
_DISPUTE = """
d.dispute_id::text, d.payment_id::text, d.provider_dispute_id, d.state, d.amount, d.reason, d.answer_due_time,
d.create_time,
(SELECT p.currency FROM payments p WHERE (p.tenant_id, p.payment_id) = (d.tenant_id, d.payment_id)) AS currency
"""


class PaymentStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    # Customers and accounts

    async def ensure_customer(self, customer_id: str) -> None:
        await self._database.execute(
            "INSERT INTO customers (customer_id) VALUES ($1) ON CONFLICT DO NOTHING", customer_id
        )

    async def customer(self, customer_id: str) -> Row | None:
        return await self._database.fetchrow(
            "SELECT customer_id::text, default_payment_method_id::text, create_time FROM customers "
            "WHERE customer_id = $1",
            customer_id,
        )

    async def billing_details(self, customer_id: str) -> str | None:
        found: str | None = await self._database.fetchval(
            "SELECT billing_details::text FROM customers WHERE customer_id = $1", customer_id
        )
        return found

    async def set_billing_details(self, customer_id: str, details: str) -> bool:
        """False if there is no such customer."""
        return bool(
            await self._database.fetchval(
                "UPDATE customers SET billing_details = $2 WHERE customer_id = $1 RETURNING true", customer_id, details
            )
        )

    async def set_account(self, provider: str, sealed: bytes, *, make_default: bool) -> bool:
        """Returns whether it is the default, as the first one is."""
        if make_default:
            await self._database.execute("UPDATE provider_accounts SET is_default = false WHERE is_default")
        return bool(
            await self._database.fetchval(
                """
                INSERT INTO provider_accounts AS a (provider, account_sealed, is_default)
                VALUES ($1, $2, $3 OR NOT EXISTS (SELECT FROM provider_accounts))
                ON CONFLICT (tenant_id, provider) DO UPDATE
                SET account_sealed = $2, is_default = a.is_default OR $3, update_time = now()
                RETURNING is_default
                """,
                provider,
                sealed,
                make_default,
            )
        )

    async def account(self, provider: str) -> bytes | None:
        """The sealed account."""
        found: bytes | None = await self._database.fetchval(
            "SELECT account_sealed FROM provider_accounts WHERE provider = $1", provider
        )
        return found

    async def account_providers(self) -> list[str]:
        return [row["provider"] for row in await self._database.fetch("SELECT provider FROM provider_accounts")]

    async def default_provider(self) -> str | None:
        found: str | None = await self._database.fetchval("SELECT provider FROM provider_accounts WHERE is_default")
        return found

    # Payment methods

    async def insert_method(
        self, customer_id: str, provider: str, card: Card, *, scope: str, request_id: str, request_hash: bytes
    ) -> Row | None:
        """None if the request has made one before."""
        return await self._database.fetchrow(
            f"""
            INSERT INTO payment_methods AS m (payment_method_id, customer_id, provider, provider_token,
                provider_customer, brand, last_digits, expiry, scope, request_id, request_hash)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING RETURNING {_METHOD}
            """,
            new_id(),
            customer_id,
            provider,
            card.token,
            card.provider_customer,
            card.brand,
            card.last_digits,
            card.expiry,
            scope,
            request_id,
            request_hash,
        )

    async def method_requested(self, scope: str, request_id: str) -> Row | None:
        return await self._database.fetchrow(
            f"""
            SELECT {_METHOD} FROM payment_methods m
            WHERE tenant_id = nexus.tenant_id() AND scope = $1 AND request_id = $2
            """,
            scope,
            request_id,
        )

    async def method(self, payment_method_id: str) -> Row | None:
        return await self._database.fetchrow(
            f"SELECT {_METHOD} FROM payment_methods m WHERE payment_method_id = $1", payment_method_id
        )

    async def default_method(self, customer_id: str) -> Row | None:
        return await self._database.fetchrow(
            f"""
            SELECT {_METHOD} FROM payment_methods m JOIN customers c
            ON c.tenant_id = m.tenant_id AND c.default_payment_method_id = m.payment_method_id
            WHERE c.customer_id = $1 AND NOT m.removed
            """,
            customer_id,
        )

    async def methods(self, customer_id: str, before: str | None, limit: int) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_METHOD} FROM payment_methods m
            WHERE tenant_id = nexus.tenant_id() AND customer_id = $1 AND NOT removed
              AND ($2::uuid IS NULL OR payment_method_id < $2)
            ORDER BY payment_method_id DESC LIMIT $3
            """,
            customer_id,
            before,
            limit,
        )

    async def set_default_method(self, customer_id: str, payment_method_id: str, *, only_first: bool = False) -> None:
        await self._database.execute(
            "UPDATE customers SET default_payment_method_id = $2 "
            "WHERE customer_id = $1 AND (NOT $3 OR default_payment_method_id IS NULL)",
            customer_id,
            payment_method_id,
            only_first,
        )

    async def remove_method(self, payment_method_id: str) -> None:
        await self._database.execute(
            "UPDATE payment_methods SET removed = true WHERE payment_method_id = $1", payment_method_id
        )
        await self._database.execute(
            "UPDATE customers SET default_payment_method_id = NULL WHERE default_payment_method_id = $1",
            payment_method_id,
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
        await self._database.execute(
            "UPDATE customers SET default_payment_method_id = NULL, billing_details = NULL WHERE customer_id = $1",
            customer_id,
        )

    # Payments

    async def insert_payment(
        self,
        payment_id: str,
        method: Row,
        currency: str,
        amount: int,
        *,
        reference: str,
        description: str,
        capture: bool,
        off_session: bool,
        bill_id: str | None,
    ) -> None:
        await self._database.execute(
            """
            INSERT INTO payments (payment_id, customer_id, payment_method_id, provider, currency, amount, reference,
                                  description, capture, off_session, bill_id)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
            """,
            payment_id,
            method["customer_id"],
            method["payment_method_id"],
            method["provider"],
            currency,
            amount,
            reference,
            description,
            capture,
            off_session,
            bill_id,
        )

    async def payment(self, payment_id: str) -> Row | None:
        return await self._database.fetchrow(f"SELECT {_PAYMENT} FROM payments WHERE payment_id = $1", payment_id)

    async def locked(self, payment_id: str) -> Row | None:
        """The payment, held until the transaction ends."""
        return await self._database.fetchrow(
            f"SELECT {_PAYMENT} FROM payments WHERE payment_id = $1 FOR UPDATE", payment_id
        )

    async def at_provider(self, provider: str, provider_payment_id: str) -> Row | None:
        return await self._database.fetchrow(
            f"""
            SELECT {_PAYMENT} FROM payments
            WHERE tenant_id = nexus.tenant_id() AND provider = $1 AND provider_payment_id = $2
              AND provider_payment_id <> ''
            """,
            provider,
            provider_payment_id,
        )

    async def payments(self, customer_id: str, before: str | None, limit: int) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_PAYMENT} FROM payments
            WHERE tenant_id = nexus.tenant_id() AND customer_id = $1 AND ($2::uuid IS NULL OR payment_id < $2)
            ORDER BY payment_id DESC LIMIT $3
            """,
            customer_id,
            before,
            limit,
        )

    async def pending_payments(self, before: str | None, limit: int) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_PAYMENT} FROM payments
            WHERE tenant_id = nexus.tenant_id() AND state = 'PENDING' AND ($1::uuid IS NULL OR payment_id < $1)
            ORDER BY payment_id DESC LIMIT $2
            """,
            before,
            limit,
        )

    async def update_payment(
        self,
        payment_id: str,
        *,
        state: str,
        provider_payment_id: str,
        failure: str,
        failure_reason: str,
        action_url: str,
        client_token: str,
    ) -> Row:
        """Write how it stands; its sums are those of its operations and disputes."""
        row = await self._database.fetchrow(
            f"""
            UPDATE payments p SET state = $2, provider_payment_id = $3, failure = $4, failure_reason = $5,
                action_url = $6, client_token = $7, update_time = now(),
                captured = (SELECT coalesce(sum(o.amount), 0) FROM payment_operations o
                            WHERE (o.tenant_id, o.payment_id) = (p.tenant_id, p.payment_id)
                              AND o.kind = 'CAPTURE' AND o.state = 'SUCCEEDED'),
                refunded = (SELECT coalesce(sum(o.amount), 0) FROM payment_operations o
                            WHERE (o.tenant_id, o.payment_id) = (p.tenant_id, p.payment_id)
                              AND o.kind = 'REFUND' AND o.state = 'SUCCEEDED'),
                disputed = (SELECT coalesce(sum(d.amount), 0) FROM disputes d
                            WHERE (d.tenant_id, d.payment_id) = (p.tenant_id, p.payment_id) AND d.state <> 'WON')
            WHERE payment_id = $1 RETURNING {_PAYMENT}
            """,
            payment_id,
            state,
            provider_payment_id,
            failure,
            failure_reason,
            action_url,
            client_token,
        )
        assert row is not None, "its row is locked"
        return row

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
        assert row is not None
        return Reserved(row["captured"], row["refunded"])

    async def waiting_too_long(self, since: timedelta, limit: int) -> list[str]:
        rows = await self._database.fetch(
            """
            SELECT payment_id::text FROM payments
            WHERE tenant_id = nexus.tenant_id() AND state = 'REQUIRES_ACTION' AND update_time < now() - $1::interval
            ORDER BY update_time LIMIT $2
            """,
            since,
            limit,
        )
        return [row["payment_id"] for row in rows]

    # Operations

    async def insert_operation(
        self,
        payment_id: str,
        kind: str,
        amount: int,
        *,
        scope: str | None = None,
        request_id: str | None = None,
        request_hash: bytes | None = None,
        keep_rest: bool = False,
        reason: str = "",
    ) -> Row | None:
        """None if the request has made one before."""
        return await self._database.fetchrow(
            f"""
            INSERT INTO payment_operations (operation_id, payment_id, kind, amount, scope, request_id, request_hash,
                                            keep_rest, reason)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING RETURNING {_OPERATION}
            """,
            new_id(),
            payment_id,
            kind,
            amount,
            scope,
            request_id,
            request_hash,
            keep_rest,
            reason,
        )

    async def requested(self, scope: str, request_id: str) -> Row | None:
        return await self._database.fetchrow(
            f"""
            SELECT {_OPERATION} FROM payment_operations
            WHERE tenant_id = nexus.tenant_id() AND scope = $1 AND request_id = $2
            """,
            scope,
            request_id,
        )

    async def operation(self, operation_id: str) -> Row:
        row = await self._database.fetchrow(
            f"SELECT {_OPERATION} FROM payment_operations WHERE operation_id = $1", operation_id
        )
        assert row is not None, "operations are never taken away"
        return row

    async def operations(self, payment_id: str) -> list[Row]:
        """The latest first."""
        return await self._database.fetch(
            f"""
            SELECT {_OPERATION} FROM payment_operations WHERE tenant_id = nexus.tenant_id() AND payment_id = $1
            ORDER BY operation_id DESC
            """,
            payment_id,
        )

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
            f"""
            UPDATE payment_operations SET lease_until = clock_timestamp() + $2::interval, attempts = attempts + 1
            WHERE operation_id = $1 AND state = 'PENDING' AND lease_until < clock_timestamp() RETURNING {_OPERATION}
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

    async def in_doubt(self, limit: int) -> list[str]:
        rows = await self._database.fetch(
            """
            SELECT operation_id::text FROM payment_operations
            WHERE tenant_id = nexus.tenant_id() AND state = 'PENDING' AND next_attempt_time <= now()
              AND lease_until < now()
            ORDER BY next_attempt_time LIMIT $1
            """,
            limit,
        )
        return [row["operation_id"] for row in rows]

    async def settle(
        self, operation_id: str, state: str, *, provider_id: str = "", failure: str = "", reason: str = ""
    ) -> Row | None:
        """None if it has been settled before."""
        return await self._database.fetchrow(
            f"""
            UPDATE payment_operations SET state = $2, provider_operation_id = $3, failure = $4, failure_reason = $5,
                settle_time = now(), lease_until = '-infinity'
            WHERE operation_id = $1 AND state = 'PENDING' RETURNING {_OPERATION}
            """,
            operation_id,
            state,
            provider_id,
            failure,
            reason,
        )

    # Disputes and notices

    async def insert_dispute(
        self, payment_id: str, provider_id: str, state: str, amount: int, reason: str, due: datetime | None
    ) -> Row:
        row = await self._database.fetchrow(
            f"""
            INSERT INTO disputes AS d (dispute_id, payment_id, provider_dispute_id, state, amount, reason,
                                       answer_due_time)
            VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {_DISPUTE}
            """,
            new_id(),
            payment_id,
            provider_id,
            state,
            amount,
            reason,
            due,
        )
        assert row is not None
        return row

    async def set_dispute(self, dispute_id: str, state: str) -> Row:
        row = await self._database.fetchrow(
            f"UPDATE disputes d SET state = $2 WHERE dispute_id = $1 RETURNING {_DISPUTE}", dispute_id, state
        )
        assert row is not None
        return row

    async def dispute(self, dispute_id: str) -> Row | None:
        return await self._database.fetchrow(f"SELECT {_DISPUTE} FROM disputes d WHERE dispute_id = $1", dispute_id)

    async def disputes_of(self, payment_id: str) -> list[Row]:
        return await self._database.fetch(
            f"SELECT {_DISPUTE} FROM disputes d WHERE tenant_id = nexus.tenant_id() AND payment_id = $1", payment_id
        )

    async def disputes(self, before: str | None, limit: int) -> list[Row]:
        return await self._database.fetch(
            f"""
            SELECT {_DISPUTE} FROM disputes d
            WHERE tenant_id = nexus.tenant_id() AND ($1::uuid IS NULL OR dispute_id < $1)
            ORDER BY dispute_id DESC LIMIT $2
            """,
            before,
            limit,
        )

    async def notice_known(self, provider: str, notice_id: str) -> bool:
        return bool(
            await self._database.fetchval(
                "SELECT EXISTS (SELECT FROM provider_notices WHERE provider = $1 AND notice_id = $2)",
                provider,
                notice_id,
            )
        )

    async def note_notice(self, provider: str, notice_id: str) -> None:
        await self._database.execute(
            "INSERT INTO provider_notices (provider, notice_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            provider,
            notice_id,
        )

    async def forget_notices(self) -> None:
        """Drop notices too old to come again. In a platform-wide transaction."""
        await self._database.execute("DELETE FROM provider_notices WHERE create_time < now() - interval '90 days'")

    async def tenants_in_doubt(self, action_lifetime: timedelta) -> list[str]:
        """Tenants with payments to look after. In a platform-wide transaction."""
        rows = await self._database.fetch(
            """
            SELECT tenant_id FROM payment_operations WHERE state = 'PENDING' AND next_attempt_time <= now()
            UNION
            SELECT tenant_id FROM payments WHERE state = 'REQUIRES_ACTION' AND update_time < now() - $1::interval
            """,
            action_lifetime,
        )
        return [row["tenant_id"] for row in rows]
