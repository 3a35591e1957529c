"""What a document and its seller must say, beyond what the contract checks by itself."""

import re
from datetime import date
from fractions import Fraction
from io import BytesIO
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from babel import Locale, UnknownLocaleError
from iso4217 import Currency
from PIL import Image, UnidentifiedImageError
from stdnum import iban

from nexus.finance.invoice_gen.v1.faults import ContentInvalid, SellerInvalid, SellerUnknown
from nexus.finance.invoice_gen.v1.invoice_pb2 import (
    TAX_CATEGORY_EXEMPT,
    TAX_CATEGORY_EXPORT,
    TAX_CATEGORY_INTRA_COMMUNITY,
    TAX_CATEGORY_OUT_OF_SCOPE,
    TAX_CATEGORY_REVERSE_CHARGE,
    TAX_CATEGORY_STANDARD,
    InvoiceContent,
    Seller,
    Tax,
)
from services.finance.invoice_gen.calculation import taxes_of

LARGEST_LOGO = (4000, 2000)
_ACROSS_BORDERS = (TAX_CATEGORY_REVERSE_CHARGE, TAX_CATEGORY_INTRA_COMMUNITY)


def check(content: InvoiceContent) -> None:
    """Raises ContentInvalid."""
    _require(_exponent(content.currency) is not None, f"{content.currency} is no currency that is paid with")
    _require(is_locale(content.locale), f"{content.locale} is no locale")
    as_date(content.delivery_date)
    for line in content.lines:
        _require(Fraction(line.quantity) > 0, f"the quantity of {line.description!r} is zero")
        start, end = as_date(line.period_start), as_date(line.period_end)
        _require(not (start and end and start > end), f"the period of {line.description!r} ends before it begins")
    for tax in taxes_of(content):
        _check_tax(tax)
    categories = {tax.category for tax in taxes_of(content)}
    if TAX_CATEGORY_OUT_OF_SCOPE in categories:
        _require(len(categories) == 1, "nothing is taxed on an invoice that is out of the scope of the tax")
    if categories & {*_ACROSS_BORDERS}:
        _require(bool(content.customer.vat_id), "the customer's VAT id is missing: the customer owes the tax")


def check_seller_for(content: InvoiceContent, seller: Seller) -> None:
    """Whether this seller can issue it. Raises SellerUnknown or ContentInvalid."""
    categories = {tax.category for tax in taxes_of(content)}
    if categories & {*_ACROSS_BORDERS, TAX_CATEGORY_EXPORT}:
        _require(bool(seller.vat_id), "the seller's VAT id is missing: the supply crosses a border")
    elif categories != {TAX_CATEGORY_OUT_OF_SCOPE} and not (seller.vat_id or seller.tax_number):
        raise SellerUnknown()


def check_seller(seller: Seller) -> None:
    """Raises SellerInvalid."""
    if seller.iban and not iban.is_valid(seller.iban):
        raise SellerInvalid(why="the IBAN is wrong")
    if not is_locale(seller.locale):
        raise SellerInvalid(why=f"{seller.locale} is no locale")
    try:
        ZoneInfo(seller.time_zone or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise SellerInvalid(why=f"there is no time zone {seller.time_zone}") from None
    if seller.logo:
        _check_logo(seller.logo)


def exponent(currency: str) -> int:
    """How many decimal places its minor unit is: 2 for EUR, 0 for JPY, 3 for KWD."""
    places = _exponent(currency)
    assert places is not None, "a document's currency has been checked"
    return places


def is_locale(name: str) -> bool:
    try:
        Locale.parse(name or "en", sep="-")
    except (UnknownLocaleError, ValueError):
        return False
    return True


def as_date(text: str) -> date | None:
    """None for an empty text. Raises ContentInvalid for a day that does not exist."""
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise ContentInvalid(why=f"there is no day {text}") from None


def number_shape(pattern: str) -> str | None:
    """What a series' numbers look like, equal for patterns that could write the same number; None for a pattern whose
    own digits would run into the number's."""
    prefix = pattern[: pattern.rindex("{number")]
    shape = re.sub(r"[0-9]{4}", "{year}", prefix)
    return None if shape and (shape[-1].isdigit() or shape[-1] == "}") else shape


def written(pattern: str, year: int, number: int) -> str:
    """ "INV-{year}-{number:05}" → "INV-2026-00017"."""
    return pattern.format(year=year, number=number)


def _check_tax(tax: Tax) -> None:
    if tax.category == TAX_CATEGORY_STANDARD:
        _require(tax.rate_basis_points > 0, "the standard category needs a rate above zero")
    else:
        _require(tax.rate_basis_points == 0, "only the standard category has a rate")
    if tax.category == TAX_CATEGORY_EXEMPT:
        _require(bool(tax.exemption_reason), "an exemption needs its reason")


def _check_logo(logo: bytes) -> None:
    try:
        with Image.open(BytesIO(logo), formats=("PNG", "JPEG")) as image:
            size = image.size
            image.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise SellerInvalid(why="the logo is no PNG or JPEG picture") from None
    if size[0] > LARGEST_LOGO[0] or size[1] > LARGEST_LOGO[1]:
        raise SellerInvalid(why=f"the logo is larger than {LARGEST_LOGO[0]} × {LARGEST_LOGO[1]} pixels")


def _exponent(currency: str) -> int | None:
    try:
        places: int | None = Currency(currency).exponent
    except ValueError:
        return None
    return places


def _require(condition: bool, why: str) -> None:
    if not condition:
        raise ContentInvalid(why=why)
