"""The SQL of invoice-gen."""

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any

import asyncpg
from google.protobuf import json_format

from nexus.finance.invoice_gen.v1.faults import SeriesPatternTaken
from nexus.finance.invoice_gen.v1.invoice_pb2 import InvoiceContent, InvoiceTotals, Seller
from services.chassis.database import Database
from services.chassis.ids import new_id

_INVOICE = """
    i.invoice_id::text, i.kind, i.state, i.version, i.content, i.totals, i.customer_id, i.currency, i.total, i.source,
    i.reference, i.credited_invoice_id::text, i.credit_reason, i.number, i.series, i.series_year, i.series_number,
    i.issue_date, i.due_date, i.seller, i.logo_digest, i.create_time, i.finalize_time,
    b.credited, b.paid, b.void, o.number AS credited_number,
    (SELECT max(s.send_time) FROM sendings s WHERE s.tenant_id = i.tenant_id AND s.invoice_id = i.invoice_id)
        AS send_time
"""
_FROM = """
    invoices i
    LEFT JOIN balances b ON b.tenant_id = i.tenant_id AND b.invoice_id = i.invoice_id
    LEFT JOIN invoices o ON o.tenant_id = i.tenant_id AND o.invoice_id = i.credited_invoice_id
"""


class SellerStore:
    """Who sells, and the series of numbers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def seller(self) -> asyncpg.Record | None:
        """With its logo."""
        return await self._database.fetchrow(
            """
            SELECT s.seller, s.logo_digest, l.image FROM sellers s
            LEFT JOIN logos l ON l.tenant_id = s.tenant_id AND l.digest = s.logo_digest
            WHERE s.tenant_id = nexus.tenant_id()
            """
        )

    async def set_seller(self, seller: Seller) -> None:
        async with self._database.transaction():
            digest = None
            if seller.logo:
                digest = await self._database.fetchval("SELECT sha256($1)", seller.logo)
                await self._database.execute(
                    "INSERT INTO logos (digest, image) VALUES ($1, $2) ON CONFLICT DO NOTHING", digest, seller.logo
                )
            await self._database.execute(
                """
                INSERT INTO sellers (seller, logo_digest) VALUES ($1, $2)
                ON CONFLICT (tenant_id) DO UPDATE SET seller = excluded.seller, logo_digest = excluded.logo_digest
                """,
                seller_json(seller),
                digest,
            )

    async def logo(self, digest: bytes) -> bytes:
        image: bytes = await self._database.fetchval("SELECT image FROM logos WHERE digest = $1", digest)
        return image

    async def all_series(self) -> list[asyncpg.Record]:
        return await self._database.fetch(
            "SELECT series, kind, pattern FROM series WHERE tenant_id = nexus.tenant_id() ORDER BY series"
        )

    async def ensure_series(self, series: str, kind: str, pattern: str, shape: str) -> None:
        """One that a tenant has from the start."""
        await self._database.execute(
            "INSERT INTO series (series, kind, pattern, shape) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
            series,
            kind,
            pattern,
            shape,
        )

    async def set_series(self, series: str, kind: str, pattern: str, shape: str) -> None:
        """Raises SeriesPatternTaken."""
        try:
            await self._database.execute(
                """
                INSERT INTO series (series, kind, pattern, shape) VALUES ($1, $2, $3, $4)
                ON CONFLICT (tenant_id, series) DO UPDATE
                SET kind = excluded.kind, pattern = excluded.pattern, shape = excluded.shape
                """,
                series,
                kind,
                pattern,
                shape,
            )
        except asyncpg.UniqueViolationError:
            raise SeriesPatternTaken(pattern=pattern) from None

    async def locked_series(self, series: str) -> asyncpg.Record | None:
        """Nobody else takes a number from it until the transaction ends. With the time, as it is then."""
        await self._database.execute("SELECT FROM series WHERE series = $1 FOR UPDATE", series)
        return await self._database.fetchrow(
            """
            SELECT series, kind, pattern, clock_timestamp() AS moment,
                   EXISTS (SELECT FROM last_numbers n WHERE n.tenant_id = s.tenant_id AND n.series = s.series) AS used,
                   (SELECT max(issue_date) FROM invoices i
                    WHERE i.tenant_id = s.tenant_id AND i.series = s.series AND i.number IS NOT NULL) AS last_date
            FROM series s WHERE series = $1
            """,
            series,
        )

    async def next_number(self, series: str, year: int) -> int:
        """Taken if and only if the transaction commits."""
        number: int = await self._database.fetchval(
            """
            INSERT INTO last_numbers AS n (series, series_year, last_number) VALUES ($1, $2, 1)
            ON CONFLICT (tenant_id, series, series_year) DO UPDATE SET last_number = n.last_number + 1
            RETURNING last_number
            """,
            series,
            year,
        )
        return number

    async def verify(self, series: str, year: int) -> asyncpg.Record:
        """What the documents themselves say about the numbers."""
        row = await self._database.fetchrow(
            """
            WITH given AS (
                SELECT series_number FROM invoices
                WHERE tenant_id = nexus.tenant_id() AND series = $1 AND series_year = $2 AND number IS NOT NULL),
            last AS (
                SELECT greatest(
                    coalesce((SELECT max(series_number) FROM given), 0),
                    coalesce((SELECT last_number FROM last_numbers
                              WHERE tenant_id = nexus.tenant_id() AND series = $1 AND series_year = $2), 0)) AS number)
            SELECT (SELECT count(*) FROM given) AS documents, (SELECT number FROM last) AS last_number,
                   ARRAY(SELECT n FROM generate_series(1, (SELECT number FROM last)) n
                         WHERE n NOT IN (SELECT series_number FROM given) ORDER BY n LIMIT 100) AS missing
            """,
            series,
            year,
        )
        assert row is not None
        return row


class InvoiceStore:
    """Invoices and credit notes, and what became of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(
        self,
        kind: str,
        content: InvoiceContent,
        totals: InvoiceTotals,
        *,
        source: str = "",
        reference: str = "",
        credited_invoice_id: str | None = None,
        credit_reason: str = "",
    ) -> asyncpg.Record | None:
        """A draft; None if the source used the reference before."""
        invoice_id = await self._database.fetchval(
            """
            INSERT INTO invoices (invoice_id, kind, content, totals, customer_id, currency, total, source, reference,
                                  credited_invoice_id, credit_reason)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
            ON CONFLICT (tenant_id, source, reference) WHERE reference <> '' DO NOTHING RETURNING invoice_id::text
            """,
            new_id(),
            kind,
            as_json(content),
            as_json(totals),
            content.customer.customer_id,
            content.currency,
            totals.total,
            source,
            reference,
            credited_invoice_id,
            credit_reason,
        )
        return await self.by_id(invoice_id) if invoice_id is not None else None

    async def by_id(self, invoice_id: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(f"SELECT {_INVOICE} FROM {_FROM} WHERE i.invoice_id = $1", invoice_id)

    async def locked(self, invoice_id: str) -> asyncpg.Record | None:
        """Nobody else changes a draft, credits or settles an invoice until the transaction ends."""
        await self._database.execute("SELECT FROM invoices WHERE invoice_id = $1 FOR UPDATE", invoice_id)
        return await self.by_id(invoice_id)

    async def by_reference(self, source: str, reference: str) -> asyncpg.Record | None:
        return await self._database.fetchrow(
            f"""
            SELECT {_INVOICE} FROM {_FROM}
            WHERE i.tenant_id = nexus.tenant_id() AND i.source = $1 AND i.reference = $2 AND i.reference <> ''
            """,
            source,
            reference,
        )

    async def update_draft(self, invoice_id: str, content: InvoiceContent, totals: InvoiceTotals) -> None:
        await self._database.execute(
            """
            UPDATE invoices SET content = $2, totals = $3, customer_id = $4, currency = $5, total = $6,
                                version = version + 1
            WHERE invoice_id = $1
            """,
            invoice_id,
            as_json(content),
            as_json(totals),
            content.customer.customer_id,
            content.currency,
            totals.total,
        )

    async def void_draft(self, invoice_id: str) -> None:
        await self._database.execute("UPDATE invoices SET state = 'VOID' WHERE invoice_id = $1", invoice_id)

    async def finalize(
        self,
        invoice_id: str,
        number: str,
        series: str,
        series_year: int,
        series_number: int,
        issue_date: date,
        due_date: date,
        seller: Seller,
        logo_digest: bytes | None,
    ) -> None:
        await self._database.execute(
            """
            UPDATE invoices SET state = 'FINALIZED', number = $2, series = $3, series_year = $4, series_number = $5,
                                issue_date = $6, due_date = $7, seller = $8, logo_digest = $9,
                                finalize_time = clock_timestamp()
            WHERE invoice_id = $1
            """,
            invoice_id,
            number,
            series,
            series_year,
            series_number,
            issue_date,
            due_date,
            seller_json(seller),
            logo_digest,
        )

    async def open_balance(self, invoice_id: str, total: int, paid: int, due_date: date) -> None:
        await self._database.execute(
            "INSERT INTO balances (invoice_id, total, paid, due_date) VALUES ($1, $2, $3, $4)",
            invoice_id,
            total,
            paid,
            due_date,
        )

    async def note_credit(self, invoice_id: str, amount: int, *, void: bool) -> None:
        await self._database.execute(
            "UPDATE balances SET credited = credited + $2, void = $3 WHERE invoice_id = $1", invoice_id, amount, void
        )

    async def note_credited_lines(self, credit_note_id: str, invoice_id: str, units: Mapping[int, Decimal]) -> None:
        await self._database.executemany(
            "INSERT INTO credited_lines (credit_note_id, invoice_id, line, quantity) VALUES ($1, $2, $3, $4)",
            [(credit_note_id, invoice_id, line, quantity) for line, quantity in units.items()],
        )

    async def credited_units(self, invoice_id: str) -> dict[int, Decimal]:
        """By the line's place on the invoice."""
        rows = await self._database.fetch(
            "SELECT line, sum(quantity) AS quantity FROM credited_lines WHERE invoice_id = $1 GROUP BY line", invoice_id
        )
        return {row["line"]: row["quantity"] for row in rows}

    async def add_payment(self, invoice_id: str, payment_reference: str, amount: int) -> int | None:
        """None if it is new; else the amount that was noted."""
        new = await self._database.fetchval(
            """
            INSERT INTO payments (invoice_id, payment_reference, amount) VALUES ($1, $2, $3)
            ON CONFLICT DO NOTHING RETURNING true
            """,
            invoice_id,
            payment_reference,
            amount,
        )
        if new:
            await self._database.execute(
                "UPDATE balances SET paid = paid + $2 WHERE invoice_id = $1", invoice_id, amount
            )
            return None
        noted: int = await self._database.fetchval(
            "SELECT amount FROM payments WHERE invoice_id = $1 AND payment_reference = $2",
            invoice_id,
            payment_reference,
        )
        return noted

    async def page(self, filters: Mapping[str, Any], before: str, limit: int) -> list[asyncpg.Record]:
        """The latest first. The filters' keys are conditions with `{}` for the value; None values count for nothing."""
        conditions, values = ["i.tenant_id = nexus.tenant_id()"], list[Any]([limit])
        for condition, value in (*filters.items(), ("i.invoice_id < {}", before or None)):
            if value is not None:
                values.append(value)
                conditions.append(condition.format(f"${len(values)}"))
        return await self._database.fetch(
            f"SELECT {_INVOICE} FROM {_FROM} WHERE {' AND '.join(conditions)} ORDER BY i.invoice_id DESC LIMIT $1",
            *values,
        )

    async def document(self, invoice_id: str, locale: str) -> bytes | None:
        pdf: bytes | None = await self._database.fetchval(
            "SELECT pdf FROM documents WHERE invoice_id = $1 AND locale = $2", invoice_id, locale
        )
        return pdf

    async def keep_document(self, invoice_id: str, locale: str, pdf: bytes) -> None:
        await self._database.execute(
            "INSERT INTO documents (invoice_id, locale, pdf) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            invoice_id,
            locale,
            pdf,
        )

    async def note_sending(self, invoice_id: str) -> Any:
        return await self._database.fetchval(
            "INSERT INTO sendings (sending_id, invoice_id) VALUES ($1, $2) RETURNING send_time", new_id(), invoice_id
        )


def as_json(message: InvoiceContent | InvoiceTotals) -> str:
    return json_format.MessageToJson(message, indent=None)


def seller_json(seller: Seller) -> str:
    """Without the logo, which has a table of its own."""
    bare = Seller()
    bare.CopyFrom(seller)
    bare.ClearField("logo")
    return json_format.MessageToJson(bare, indent=None)
