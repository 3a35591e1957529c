"""What a credit note takes back of an invoice."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction

from nexus.finance.invoice_gen.v1.faults import ContentInvalid, CreditTooHigh
from nexus.finance.invoice_gen.v1.invoice_pb2 import CreditedLine, InvoiceContent, Tax
from services.finance.invoice_gen.calculation import line_amount, price_of, rounded, taxes_of

Quantities = Mapping[int, Decimal]
"""Units by the line's place on the invoice."""


def asked(invoice: InvoiceContent, lines: Sequence[CreditedLine], before: Quantities) -> dict[int, Decimal]:
    """The units to take back: those asked for, or all that is left. `before` is what was taken back already.

    Raises ContentInvalid for lines that the invoice does not have, CreditTooHigh for more than is left of one.
    """
    left = {at: Decimal(line.quantity) - before.get(at, Decimal(0)) for at, line in enumerate(invoice.lines)}
    if not lines:
        return {at: quantity for at, quantity in left.items() if quantity > 0}
    units: dict[int, Decimal] = {}
    for line in lines:
        quantity = Decimal(line.quantity)
        if line.line not in left or line.line in units or not quantity:
            raise ContentInvalid(why=f"the line {line.line} is not there, there twice, or its quantity is zero")
        if quantity > left[line.line]:
            raise CreditTooHigh(why=f"{left[line.line].normalize():f} units are left of line {line.line}")
        units[line.line] = quantity
    return units


def is_last(invoice: InvoiceContent, before: Quantities, units: Quantities) -> bool:
    """Whether nothing is left of any line afterwards."""
    return all(
        before.get(at, Decimal(0)) + units.get(at, Decimal(0)) == Decimal(line.quantity)
        for at, line in enumerate(invoice.lines)
    )


def credit_of(invoice: InvoiceContent, amount: int, reason: str) -> InvoiceContent:
    """The content of a credit note of an amount, tax included. Raises ContentInvalid."""
    taxes = {(tax.category, tax.rate_basis_points): tax for tax in taxes_of(invoice)}
    if len(taxes) != 1 or amount <= 0:
        raise ContentInvalid(why="an amount is more than nothing, and of an invoice with one rate of tax")
    result = _blank(invoice)
    result.prices_include_tax = True
    result.lines.add(description=reason, quantity="1", unit_price=amount, tax=next(iter(taxes.values())))
    return result


def credit(invoice: InvoiceContent, before: Quantities, units: Quantities) -> InvoiceContent:
    """The credit note's content. Discounts and allowances are taken back in proportion; charges (the shipping) with
    the last line. Parts are the differences of running shares, so that they add up to the whole."""
    result = _blank(invoice)
    for at, quantity in sorted(units.items()):
        line = invoice.lines[at]
        whole, start = Fraction(line.quantity), Fraction(before.get(at, Decimal(0)))
        taken = result.lines.add()
        taken.CopyFrom(line)
        taken.quantity = f"{quantity.normalize():f}"
        # Its share of the discount, rounded, may be a cent above the price.
        part = _part(line.discount, start / whole, (start + Fraction(quantity)) / whole)
        taken.discount = min(part, price_of(taken))
    last = is_last(invoice, before, units)
    for adjustment in invoice.adjustments:
        part = adjustment.amount if last else 0
        if adjustment.amount < 0:
            start = _share(invoice, before, adjustment.tax)
            part = _part(adjustment.amount, start, start + _share(invoice, units, adjustment.tax))
            there = sum(line_amount(line) for line in result.lines if _same_rate(line.tax, adjustment.tax))
            there += sum(other.amount for other in result.adjustments if _same_rate(other.tax, adjustment.tax))
            part = max(part, -there)
        if part:
            result.adjustments.add().CopyFrom(adjustment)
            result.adjustments[-1].amount = part
    return result


def _blank(invoice: InvoiceContent) -> InvoiceContent:
    """For whom the invoice is, without what it is for."""
    result = InvoiceContent()
    result.CopyFrom(invoice)
    del result.lines[:], result.adjustments[:]
    for name in ("prepaid", "series", "introduction"):
        result.ClearField(name)
    result.payment_days = 0
    return result


def _share(invoice: InvoiceContent, units: Quantities, tax: Tax) -> Fraction:
    """The part, by amount, of the lines with this tax that these units are."""
    amounts = {at: line_amount(line) for at, line in enumerate(invoice.lines) if _same_rate(line.tax, tax)}
    whole = sum(amounts.values())
    taken = sum(
        (
            Fraction(units[at]) / Fraction(invoice.lines[at].quantity) * amount
            for at, amount in amounts.items()
            if at in units
        ),
        Fraction(0),
    )
    return taken / whole if whole else Fraction(0)


def _same_rate(one: Tax, other: Tax) -> bool:
    return (one.category, one.rate_basis_points) == (other.category, other.rate_basis_points)


def _part(amount: int, start: Fraction, end: Fraction) -> int:
    return rounded(amount * end) - rounded(amount * start)
