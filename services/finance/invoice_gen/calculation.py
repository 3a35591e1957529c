"""The amounts of a document, as EN 16931 works them out (section 7 and the rules BR-CO-10 to BR-CO-17).

Everything is integers in the currency's minor unit; fractions are exact until they are rounded, half away from zero.
"""

from collections.abc import Sequence
from fractions import Fraction

from nexus.finance.invoice_gen.v1.faults import ContentInvalid
from nexus.finance.invoice_gen.v1.invoice_pb2 import InvoiceContent, InvoiceLine, InvoiceTotals, Tax, TaxTotal

MOST = 10**15
"""The largest amount of a document, in minor units."""


def calculate(content: InvoiceContent, *, total: int | None = None) -> InvoiceTotals:
    """The amounts that follow from the content.

    `total` is what they must come to, where that is known beforehand: then the rounding makes up for the difference.
    Raises ContentInvalid when something would be negative, or too large.
    """
    amounts = [*map(line_amount, content.lines), *(adjustment.amount for adjustment in content.adjustments)]
    if any(abs(amount) > MOST for amount in amounts) or sum(map(abs, amounts)) > MOST:
        raise ContentInvalid(why="the amounts are too large")
    taxes = taxes_of(content)
    nets, totals = list(amounts), InvoiceTotals()
    for category, rate in dict.fromkeys((tax.category, tax.rate_basis_points) for tax in taxes):
        members = [at for at, tax in enumerate(taxes) if (tax.category, tax.rate_basis_points) == (category, rate)]
        if content.prices_include_tax:
            gross = [amounts[at] for at in members]
            for at, net in zip(members, spread(gross, rate, net_of(sum(gross), rate)), strict=True):
                nets[at] = net
        taxable = sum(nets[at] for at in members)
        if taxable < 0:
            raise ContentInvalid(why=f"more is taken off at {rate / 100:g} % than there is")
        reasons = dict.fromkeys(taxes[at].exemption_reason for at in members if taxes[at].exemption_reason)
        totals.taxes.append(
            TaxTotal(
                tax=Tax(category=category, rate_basis_points=rate, exemption_reason="; ".join(reasons)),
                taxable=taxable,
                amount=tax_on(taxable, rate),
            )
        )
    count = len(content.lines)
    totals.line_nets.extend(nets[:count])
    totals.adjustment_nets.extend(nets[count:])
    totals.lines = sum(totals.line_nets)
    totals.allowances = -sum(net for net in totals.adjustment_nets if net < 0)
    totals.charges = sum(net for net in totals.adjustment_nets if net > 0)
    totals.net = totals.lines - totals.allowances + totals.charges
    totals.tax = sum(row.amount for row in totals.taxes)
    if total is None:
        total = sum(amounts) if content.prices_include_tax else totals.net + totals.tax
    totals.total, totals.rounding = total, total - totals.net - totals.tax
    totals.payable = totals.total - content.prepaid
    if totals.payable < 0:
        raise ContentInvalid(why="more was paid than it comes to")
    return totals


def taxes_of(content: InvoiceContent) -> list[Tax]:
    """Of each line, and then of each adjustment."""
    return [*(line.tax for line in content.lines), *(adjustment.tax for adjustment in content.adjustments)]


def line_amount(line: InvoiceLine) -> int:
    """What a line comes to, with or without tax as its price is. Raises ContentInvalid below zero."""
    amount = price_of(line) - line.discount
    if amount < 0:
        raise ContentInvalid(why=f"the discount on {line.description!r} is more than its price")
    return amount


def price_of(line: InvoiceLine) -> int:
    """What a line comes to before its discount."""
    return rounded(Fraction(line.quantity) * Fraction(line.unit_price, line.price_base_quantity or 1))


def tax_on(net: int, rate: int) -> int:
    """BR-CO-17. `rate` is in hundredths of a percent."""
    return rounded(Fraction(net * rate, 10_000))


def net_of(gross: int, rate: int) -> int:
    """The net amount whose tax makes it the gross amount. Not every gross amount has one: then it is a unit off."""
    return rounded(Fraction(gross * 10_000, 10_000 + rate))


def spread(gross: Sequence[int], rate: int, net: int) -> list[int]:
    """Net amounts for gross ones that sum to `net`: each within a unit of its own net, the largest remainders first."""
    exact = [Fraction(amount * 10_000, 10_000 + rate) for amount in gross]
    nets = [share.__floor__() for share in exact]
    missing = net - sum(nets)
    step = 1 if missing > 0 else -1
    order = sorted(range(len(nets)), key=lambda at: (step * (nets[at] - exact[at]), at))
    for turn in range(abs(missing)):
        nets[order[turn % len(order)]] += step
    return nets


def rounded(amount: Fraction) -> int:
    """To the nearest integer, halves away from zero."""
    whole = (abs(amount) + Fraction(1, 2)).__floor__()
    return whole if amount >= 0 else -whole
