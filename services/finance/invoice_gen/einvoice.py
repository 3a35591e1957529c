"""Factur-X: the invoice of EN 16931 as UN/CEFACT Cross Industry Invoice, and what a PDF must say to carry it.

Names like BT-131 are the business terms of EN 16931-1, by which factur-x takes its data.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from typing import Any

from facturx import generate_xml  # type: ignore[import-untyped]
from facturx.facturx import generate_xmp_object  # type: ignore[import-untyped]
from lxml import etree  # type: ignore[import-untyped]

from nexus.finance.invoice_gen.v1.invoice_pb2 import (
    INVOICE_KIND_CREDIT_NOTE,
    TAX_CATEGORY_OUT_OF_SCOPE,
    Invoice,
    InvoiceContent,
    PostalAddress,
    Tax,
    TaxCategory,
)
from services.chassis.messages import text_of
from services.finance.invoice_gen.content import exponent
from services.finance.invoice_gen.wording import Wording

FILE_NAME = "factur-x.xml"
_CODES = {
    "STANDARD": "S",
    "ZERO_RATED": "Z",
    "EXEMPT": "E",
    "REVERSE_CHARGE": "AE",
    "INTRA_COMMUNITY": "K",
    "EXPORT": "G",
    "OUT_OF_SCOPE": "O",
}
_REASON_CODES = {"AE": "VATEX-EU-AE", "K": "VATEX-EU-IC", "G": "VATEX-EU-G", "O": "VATEX-EU-O"}
_PRICE_PLACES = 6


def xml_of(invoice: Invoice, wording: Wording) -> bytes:
    """The XML of a finalized document, checked against the schema."""
    result: bytes = generate_xml(_terms(invoice, wording), level="en16931", check_xsd=True, check_schematron=False)
    return result


def xmp_of(invoice: Invoice, title: str) -> str:
    """The metadata of its PDF/A-3 (Factur-X 1.0, section 6.2)."""
    root = generate_xmp_object(
        {
            "pdfa3_flavor": "B",
            "title": title,
            "author": invoice.seller.name,
            "subject": title,
            "producer": "Nexus COS",
            "creator_tool": "Nexus COS invoice-gen",
            "timestamp": moment_of(invoice).isoformat(),
            "version": "1.0",
            "documenttype": "INVOICE",
            "xml_filename": FILE_NAME,
            "xmp_level": "EN 16931",
            "urn": "urn:factur-x:pdfa:CrossIndustryDocument:invoice:1p0#",
        }
    )
    text: bytes = etree.tostring(root, pretty_print=True)
    return text.decode()


def moment_of(invoice: Invoice) -> datetime:
    """The one time that stands in a document's files: they are the same whenever they are made."""
    return datetime.combine(date.fromisoformat(invoice.issue_date), time(), UTC)


def _terms(invoice: Invoice, wording: Wording) -> dict[str, Any]:
    """What is None, empty or an empty list is left out."""
    content, totals, seller, customer = invoice.content, invoice.totals, invoice.seller, invoice.content.customer
    # Who is out of the scope of the tax shows no VAT ids (BR-O-02 to BR-O-04).
    with_ids = all(row.tax.category != TAX_CATEGORY_OUT_OF_SCOPE for row in totals.taxes)
    shown = seller.vat_id if with_ids else ""
    credit = invoice.kind == INVOICE_KIND_CREDIT_NOTE
    by_transfer = bool(seller.iban) and not credit
    notes = (content.introduction, content.note, seller.note, invoice.credit_reason)
    adjustments = list(zip(content.adjustments, totals.adjustment_nets, strict=True))

    def money(minor_units: int) -> str:
        places = exponent(content.currency)
        return f"{Decimal(minor_units).scaleb(-places):.{places}f}"

    def adjusted(reason: str, tax: Tax, net: int) -> dict[str, Any]:
        category, rate = _category(tax)
        return {"amount": money(abs(net)), "reason": reason, "vat_category_code": category, "vat_rate": rate}

    return {
        "BT-1": invoice.number,
        "BT-2": invoice.issue_date,
        "BT-3": "381" if credit else "380",
        "BT-5": content.currency,
        "BT-9": invoice.due_date,
        "BT-10": customer.buyer_reference,
        "BT-13": content.order_reference,
        "BT-72": content.delivery_date or invoice.issue_date,
        "BT-81": "58" if by_transfer else None,
        "BT-83": invoice.number,
        "BT-84": seller.iban if by_transfer else None,
        "BT-85": seller.name if by_transfer else None,
        "BT-86": seller.bic if by_transfer else None,
        "BT-106": money(totals.lines),
        "BT-107": money(totals.allowances),
        "BT-108": money(totals.charges),
        "BT-109": money(totals.net),
        "BT-110": money(totals.tax),
        "BT-112": money(totals.net + totals.tax),
        "BT-113": money(content.prepaid),
        "BT-114": money(totals.rounding) if totals.rounding else None,
        "BT-115": money(totals.payable),
        "BG-1": [{"BT-22": note} for note in notes if note],
        "BG-3": [{"BT-25": invoice.credited_number}] if credit else [],
        "BG-4": {
            "name": seller.name,
            "identifiers": {} if shown else {None: seller.tax_number or seller.vat_id or seller.name},
            "vat_identifier": shown,
            "tax_identifier": seller.tax_number if with_ids or not seller.vat_id else "",
            "legal_info": seller.register_entry,
            "contacts": [{"name": seller.name, "phone": seller.phone, "email": seller.email}],
            **_reached(seller.email, seller.address),
        },
        "BG-7": {
            "name": customer.name,
            "identifiers": {None: customer.customer_id} if customer.customer_id else {},
            "vat_identifier": customer.vat_id if with_ids else "",
            **_reached(customer.email, customer.address),
        },
        "BG-13": {
            "name": customer.name,
            **_reached("", content.delivery_address if content.HasField("delivery_address") else customer.address),
        },
        "BG-20": [adjusted(each.reason, each.tax, net) for each, net in adjustments if net < 0],
        "BG-21": [adjusted(each.reason, each.tax, net) for each, net in adjustments if net >= 0],
        "BG-23": [
            {"BT-116": money(row.taxable), "BT-117": money(row.amount), **_breakdown(row.tax, wording)}
            for row in totals.taxes
        ],
        "BG-25": [_line(content, at, totals.line_nets[at], money) for at in range(len(content.lines))],
    }


def _line(content: InvoiceContent, at: int, net: int, money: Callable[[int], str]) -> dict[str, Any]:
    line = content.lines[at]
    category, rate = _category(line.tax)
    result: dict[str, Any] = {
        "BT-126": str(at + 1),
        "BT-129": line.quantity,
        "BT-130": line.unit or "C62",
        "BT-131": money(net),
        "BT-134": line.period_start or None,
        "BT-135": line.period_end or None,
        "BT-151": category,
        "BT-152": rate,
        "BT-153": line.description,
        "BT-154": line.details,
        "BT-155": line.item_id,
    }
    if content.prices_include_tax:
        # The price with the tax is the seller's; the one without it follows from the line.
        each = Fraction(net) / Fraction(line.quantity) / 10 ** exponent(content.currency)
        result["BT-146"] = f"{Decimal(each.numerator) / Decimal(each.denominator):.{_PRICE_PLACES}f}"
        return result
    result["BT-146"] = money(line.unit_price)
    if line.price_base_quantity > 1:
        result["BT-149"] = str(line.price_base_quantity)
    if line.discount:
        result["BG-27"] = [{"amount": money(line.discount), "reason_code": "95"}]
    return result


def _category(tax: Tax) -> tuple[str, str | None]:
    """Its code and its rate; nothing is out of scope at a rate."""
    code = _CODES[text_of(TaxCategory, tax.category)]
    return code, None if code == "O" else f"{Decimal(tax.rate_basis_points) / 100:.2f}"


def _breakdown(tax: Tax, wording: Wording) -> dict[str, str | None]:
    code, rate = _category(tax)
    return {"BT-118": code, "BT-119": rate, "BT-120": wording.exemption(tax), "BT-121": _REASON_CODES.get(code)}


def _reached(email: str, address: PostalAddress) -> dict[str, str]:
    """How a party is reached: by electronic mail (EM), where it has an address of that kind, and by post."""
    return {
        **({"einvoicing_addr": email, "einvoicing_addr_schemeid": "EM"} if email else {}),
        **dict(zip(("addr_l1", "addr_l2", "addr_l3"), address.lines, strict=False)),
        "postcode": address.postcode,
        "city": address.city,
        "country_subdivision": address.region,
        "country_code": address.country,
    }
