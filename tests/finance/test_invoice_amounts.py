"""The amounts of a document add up, whatever is on it, and credit notes take back what was charged, to the cent."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.finance.invoice_gen.v1.faults import ContentInvalid, CreditTooHigh
from nexus.finance.invoice_gen.v1.invoice_pb2 import CreditedLine, InvoiceContent, InvoiceTotals
from services.finance.invoice_gen.calculation import calculate, line_amount, net_of, rounded, tax_on
from services.finance.invoice_gen.crediting import asked, credit, is_last
from tests.finance.invoices import REDUCED, STANDARD, content_message, line

RATES = [0, 250, 550, 700, 1000, 1900, 2000, 2700]


def tax(rate: int) -> dict[str, Any]:
    category = "TAX_CATEGORY_STANDARD" if rate else "TAX_CATEGORY_ZERO_RATED"
    return {"category": category, "rateBasisPoints": rate}


@st.composite
def contents(draw: st.DrawFn) -> InvoiceContent:
    lines = []
    for _ in range(draw(st.integers(1, 8))):
        whole = draw(st.integers(1, 50))
        quantity = draw(st.sampled_from([str(whole), f"{whole}.5", f"{whole}.125", f"0.{whole:06}"]))
        price, base = draw(st.integers(0, 200_000)), draw(st.sampled_from([0, 1, 7, 1000]))
        one = line(price, quantity, priceBaseQuantity=base, tax=tax(draw(st.sampled_from(RATES))))
        most = rounded(Fraction(quantity) * Fraction(price, base or 1))
        lines.append({**one, "discount": draw(st.sampled_from([0, most // 10, most]))})
    charges = [
        {"reason": "Versand", "amount": draw(st.integers(1, 2000)), "tax": draw(st.sampled_from(lines))["tax"]}
        for _ in range(draw(st.integers(0, 2)))
    ]
    result = content_message(*lines, adjustments=charges, pricesIncludeTax=draw(st.booleans()))
    coupon_on = draw(st.sampled_from(list(result.lines)))
    there = sum(line_amount(one) for one in result.lines if one.tax == coupon_on.tax)
    if there and draw(st.booleans()):
        coupon = result.adjustments.add(reason="Gutschein", amount=-draw(st.integers(1, there)))
        coupon.tax.CopyFrom(coupon_on.tax)
    return result


def adds_up(content: InvoiceContent, totals: InvoiceTotals) -> None:
    """EN 16931, rules BR-CO-10 to BR-CO-17, written anew."""
    assert totals.lines == sum(totals.line_nets)
    assert totals.allowances - totals.charges == -sum(totals.adjustment_nets)
    assert totals.net == totals.lines - totals.allowances + totals.charges
    assert totals.net == sum(row.taxable for row in totals.taxes)
    assert totals.tax == sum(row.amount for row in totals.taxes)
    for row in totals.taxes:
        exact = Decimal(row.taxable) * row.tax.rate_basis_points / 10_000
        assert abs(row.amount - exact) <= Decimal("0.5")
    assert totals.net + totals.tax + totals.rounding == totals.total
    assert totals.total - content.prepaid == totals.payable


@given(contents())
@settings(max_examples=300, deadline=None)
def test_whatever_is_on_a_document_adds_up(content: InvoiceContent) -> None:
    totals = calculate(content)
    adds_up(content, totals)
    if content.prices_include_tax:
        gross = sum(line_amount(one) for one in content.lines) + sum(one.amount for one in content.adjustments)
        assert totals.total == gross, "the customer pays the prices that were shown"
        assert abs(totals.rounding) <= len(totals.taxes)
    else:
        assert totals.rounding == 0
        assert list(totals.line_nets) == [line_amount(one) for one in content.lines]


@given(st.integers(0, 10**9), st.sampled_from(RATES))
def test_a_net_amount_is_the_one_whose_tax_makes_it_the_gross_amount(gross: int, rate: int) -> None:
    net = net_of(gross, rate)
    off = abs(gross - net - tax_on(net, rate))
    assert off <= 1
    assert all(abs(gross - other - tax_on(other, rate)) >= off for other in range(max(0, net - 3), net + 4))


@given(contents(), st.data())
@settings(max_examples=200, deadline=None)
def test_parts_credited_one_after_the_other_take_back_the_whole_and_no_cent_more(
    content: InvoiceContent, data: st.DataObject
) -> None:
    invoice, credited = calculate(content), 0
    before: dict[int, Decimal] = {}
    for _ in range(20):
        left = {at: Decimal(one.quantity) - before.get(at, Decimal(0)) for at, one in enumerate(content.lines)}
        open_lines = [at for at, quantity in left.items() if quantity]
        part: list[CreditedLine] = []
        if data.draw(st.booleans()):
            at = data.draw(st.sampled_from(open_lines))
            share = data.draw(st.sampled_from([1, 2]))
            quantity = (left[at] / share).quantize(Decimal("0.000001"))
            if quantity:
                part = [CreditedLine(line=at, quantity=f"{quantity:f}")]
        units = asked(content, part, before)
        note, last = credit(content, before, units), is_last(content, before, units)
        totals = calculate(note, total=invoice.total - credited if last else None)
        adds_up(note, totals)
        credited += totals.total
        before = {at: before.get(at, Decimal(0)) + units.get(at, Decimal(0)) for at in left}
        if last:
            break
    if last:
        assert credited == invoice.total


def test_a_coupon_is_taken_back_in_proportion_and_the_shipping_with_the_last_line() -> None:
    adjustments = [
        {"reason": "10 %", "amount": -3000, "tax": STANDARD},
        {"reason": "Versand", "amount": 500, "tax": STANDARD},
    ]
    invoice = content_message(line(10_000, "3"), adjustments=adjustments)
    one = {0: Decimal(1)}
    first = calculate(credit(invoice, {}, one))
    assert (first.net, first.allowances, first.charges) == (9_000, 1_000, 0)
    rest = calculate(credit(invoice, one, {0: Decimal(2)}))
    assert (rest.net, rest.allowances, rest.charges) == (18_500, 2_000, 500)


def test_more_than_is_left_of_a_line_cannot_be_credited() -> None:
    invoice = content_message(line(10_000, "3"))
    with pytest.raises(CreditTooHigh):
        asked(invoice, [CreditedLine(line=0, quantity="2.5")], {0: Decimal(1)})


@pytest.mark.parametrize("part", [("1", "1"), ("0", "0"), ("0", "1", "0", "1")])
def test_lines_that_are_not_there_or_named_twice_cannot_be_credited(part: tuple[str, ...]) -> None:
    lines = [CreditedLine(line=int(at), quantity=units) for at, units in zip(part[::2], part[1::2], strict=True)]
    with pytest.raises(ContentInvalid):
        asked(content_message(line(10_000, "3")), lines, {})


def test_more_than_there_is_cannot_be_taken_off() -> None:
    coupon = [{"reason": "Gutschein", "amount": -500, "tax": REDUCED}]
    for invoice in (content_message(line(), adjustments=coupon), content_message(line(100, discount=101))):
        with pytest.raises(ContentInvalid):
            calculate(invoice)
    with pytest.raises(ContentInvalid):
        calculate(content_message(line(100), prepaid=120))


def test_amounts_without_end_are_refused() -> None:
    with pytest.raises(ContentInvalid):
        calculate(content_message(line(10**12, "999999999")))


def test_a_price_may_be_for_a_thousand() -> None:
    totals = calculate(content_message(line(35, "123456", priceBaseQuantity=1000)))
    assert totals.net == 4321  # 123,456 calls at 35 cents a thousand: 4320.96
