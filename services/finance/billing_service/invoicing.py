"""A bill as the content of an invoice, and how its money is divided."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from nexus.finance.billing_service.v1.customers_pb2 import BillingDetails
from nexus.finance.billing_service.v1.subscriptions_pb2 import CountryTax
from nexus.finance.invoice_gen.v1.invoice_pb2 import (
    TAX_CATEGORY_STANDARD,
    TAX_CATEGORY_ZERO_RATED,
    Customer,
    InvoiceContent,
    PostalAddress,
    Tax,
)

_LONGEST = 200
_TICK = timedelta(microseconds=1)


def tax_rate(taxes: Iterable[CountryTax], country: str) -> int:
    """In basis points."""
    return next((tax.basis_points for tax in taxes if tax.country == country), 0)


def content(bill: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], details: BillingDetails) -> InvoiceContent:
    """What is below nothing on the bill is an allowance of the invoice, whose total is the bill's. What changes within
    a period charged and gave back is one position for each price."""
    rate = bill["tax_basis_points"]
    tax = Tax(category=TAX_CATEGORY_STANDARD if rate else TAX_CATEGORY_ZERO_RATED, rate_basis_points=rate)
    made = InvoiceContent(
        customer=Customer(
            customer_id=bill["customer_id"],
            name=details.name or "-",
            address=PostalAddress(
                lines=details.lines,
                postcode=details.postcode,
                city=details.city,
                region=details.region,
                country=bill["tax_country"],
            ),
            vat_id=details.vat_id,
            email=details.email,
        ),
        currency=bill["currency"],
        prices_include_tax=True,
        prepaid=bill["total"] if bill["state"] == "PAID" else 0,
        payment_days=0,
    )
    for line in _merged(lines):
        if line["amount"] < 0:
            made.adjustments.add(reason=line["description"][:_LONGEST], amount=line["amount"], tax=tax)
            continue
        quantity = int(line["quantity"]) if line["kind"] == "FEE" else 1
        made.lines.add(
            description=line["description"],
            quantity=str(quantity),
            unit_price=line["amount"] // quantity,
            tax=tax,
            period_start=line["start_time"].date().isoformat(),
            period_end=max(line["start_time"], line["end_time"] - _TICK).date().isoformat(),
        )
    return made


def part(whole: int, of: int, before: int, amount: int) -> int:
    """What goes back of `whole`, a part of `of`, with an amount of `of`, after so much of it: the parts of all amounts
    add up to it."""

    def running(given: int) -> int:
        return (2 * whole * given + of) // (2 * of) if of else 0

    return running(before + amount) - running(before)


def _merged(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    merged: dict[Any, dict[str, Any]] = {}
    for line in lines:
        if not line["amount"]:
            continue
        changes = line["kind"].startswith("PRORATION")
        known = merged.setdefault(
            (line["kind"], line["description"]) if changes else len(merged), {**line, "amount": 0}
        )
        known["amount"] += line["amount"]
        known["start_time"] = min(known["start_time"], line["start_time"])
        known["end_time"] = max(known["end_time"], line["end_time"])
    return list(merged.values())
