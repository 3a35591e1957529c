"""The SQL of invoice-gen."""

import hashlib
from decimal import Decimal
from typing import Any

import asyncpg

from nexus.finance.invoice_gen.v1.faults import InvoiceNotFound, SeriesPatternTaken
from nexus.finance.invoice_gen.v1.invoice_pb2 import InvoiceContent, InvoiceTotals, Seller
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.table import Row, Table

_DOCUMENTS = """
    invoices i LEFT JOIN balances b USING (tenant_id, invoice_id)
    LEFT JOIN (SELECT tenant_id, invoice_id AS credited_invoice_id, number AS credited_number FROM invoices) o
        USING (tenant_id, credited_invoice_id)
"""
_SHOWN = """
    i.*, b.credited, b.paid, b.total - least(b.total, b.credited + b.paid) AS due, b.void, o.credited_number,
    (SELECT max(s.send_time) FROM sendings s WHERE s.tenant_id = i.tenant_id AND s.invoice_id = i.invoice_id)
        AS send_time
"""


class InvoiceStore:
    """Who sells, the series of numbers, invoices and credit notes, and what became of them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.sellers = Table(database, "sellers", key="tenant_id")
        self.logos = Table(database, "logos", key="digest")
        self.series = Table(database, "series", key="series", order="series")
        self.invoices = Table(database, "invoices", key="invoice_id")
        self.documents = Table(database, _DOCUMENTS, key="invoice_id", columns=_SHOWN, missing=_not_found)
        """Invoices and credit notes with what became of them, to be read."""
        self.balances = Table(database, "balances", key="invoice_id")
        self.credited_lines = Table(database, "credited_lines", key="credit_note_id")
        self.payments = Table(database, "payments", key="payment_reference")
        self.pdfs = Table(database, "documents", key="invoice_id")
        self.sendings = Table(database, "sendings", key="sending_id")

    async def set_seller(self, seller: Seller) -> None:
        """The logo has a table of its own."""
        bare, digest = Seller(), None
        bare.CopyFrom(seller)
        bare.ClearField("logo")
        async with self._database.transaction():
            if seller.logo:
                digest = hashlib.sha256(seller.logo).digest()
                await self.logos.insert_new(digest=digest, image=seller.logo)
            await self.sellers.put(seller=bare, logo_digest=digest)

    async def set_series(self, **series: object) -> None:
        """Raises SeriesPatternTaken."""
        try:
            await self.series.put(**series)
        except asyncpg.UniqueViolationError:
            raise SeriesPatternTaken(pattern=series["pattern"]) from None

    async def locked_series(self, series: str) -> Row | None:
        """Nobody else takes a number from it until the transaction ends. With the time, as it is then."""
        await self.series.get(series, lock=True)
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

    async def verify(self, series: str, year: int) -> Row:
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

    async def insert(self, kind: str, content: InvoiceContent, totals: InvoiceTotals, **more: str | None) -> Row | None:
        """A draft; None if the source used the reference before."""
        columns = drafted(content, totals)
        row = await self.invoices.insert_new(invoice_id=new_id(), kind=kind, **columns, **more)
        return await self.documents.require(row["invoice_id"]) if row is not None else None

    async def lock(self, invoice_id: str) -> Row:
        """Nobody else changes a draft, credits or settles an invoice until the transaction ends. Raises
        InvoiceNotFound."""
        await self.invoices.get(invoice_id, lock=True)
        return await self.documents.require(invoice_id)

    async def issued(self, source: str, reference: str) -> Row | None:
        """By what the service knows it by that issued it."""
        with_one = {"reference <> ''": ()}  # which the index is for
        found = await self.documents.page("", 1, source=source, reference=reference, filters=with_one)
        return found[0] if found else None

    async def credited_units(self, invoice_id: str) -> dict[int, Decimal]:
        """By the line's place on the invoice."""
        rows = await self._database.fetch(
            "SELECT line, sum(quantity) AS quantity FROM credited_lines WHERE invoice_id = $1 GROUP BY line", invoice_id
        )
        return {row["line"]: row["quantity"] for row in rows}


def drafted(content: InvoiceContent, totals: InvoiceTotals) -> dict[str, Any]:
    """The columns that follow from what a draft says."""
    return {
        "content": content,
        "totals": totals,
        "customer_id": content.customer.customer_id,
        "currency": content.currency,
        "total": totals.total,
    }


def _not_found(invoice_id: str) -> InvoiceNotFound:
    return InvoiceNotFound(invoice=invoice_id)
