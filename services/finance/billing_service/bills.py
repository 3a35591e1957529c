"""What is on a bill: lines that add up to its total."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from services.finance.billing_service.proration import remaining


@dataclass(frozen=True)
class Line:
    """As its row has it. Amounts are in minor units of the bill's currency."""

    kind: str
    description: str
    amount: int
    start_time: datetime
    end_time: datetime
    price_id: str | None = None
    quantity: Decimal = Decimal(1)


@dataclass(frozen=True)
class Draft:
    """A bill as it would be."""

    lines: Sequence[Line]
    """The new ones: without those that waited for it."""
    total: int
    """Never less than nothing."""
    credit: int
    """What goes to the customer's credits; less than nothing for what comes from them."""
    discount: int
    """What the coupon took off."""
    fee_discount: int
    """What of that it took off the fee."""


def fee_line(price: Mapping[str, Any], quantity: int, start: datetime, end: datetime) -> Line:
    return Line("FEE", price["name"], price["fee"] * quantity, start, end, price["price_id"], Decimal(quantity))


def change_lines(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    subscription: Mapping[str, Any],
    quantity: int,
    fee: int,
    at: datetime,
) -> list[Line]:
    """What a change within the period gives back of the fee in force, and charges of another `fee` for the rest of the
    period. Both are without what a coupon took off them (`net_fee`), so that only what was charged is given back. With
    a fee of nothing it only gives back."""
    start, end = subscription["period_start"], subscription["period_end"]
    back = remaining(subscription["period_fee"], start, end, at)
    forth = remaining(fee, start, end, at)
    unused, rest = f"Unused time of {old['name']}", f"Remaining time of {new['name']}"
    price_id, units = subscription["price_id"], Decimal(subscription["quantity"])
    lines = [
        Line("PRORATION_CREDIT", unused, -back, at, end, price_id, units),
        Line("PRORATION_CHARGE", rest, forth, at, end, new["price_id"], Decimal(quantity)),
    ]
    return [line for line in lines if line.amount]


def draft(
    waiting: Sequence[int], lines: Sequence[Line], coupon: Mapping[str, Any] | None, owed: int, at: datetime
) -> Draft:
    """Make a bill of the amounts that waited for it and of new lines, with a coupon and what is owed to the customer.

    Coupons take off fees, then use, before credits are looked at. What changes within a period charge and give back has
    been discounted with the period's fee. What is below nothing becomes a credit.
    """
    made = list(lines)
    fee_discount = _discount(coupon, sum(line.amount for line in lines if line.kind == "FEE"), 0)
    use = sum(line.amount for line in lines if line.kind == "USAGE")
    discount = fee_discount + _discount(coupon, use, fee_discount)
    if coupon is not None and discount:
        made.append(Line("DISCOUNT", coupon["name"] or coupon["code"], -discount, at, at))
    due = sum(waiting) + sum(line.amount for line in made)
    credit = -due if due < 0 else -min(due, owed)
    if credit:
        made.append(Line("CREDIT", "Credit", credit, at, at))
    return Draft(made, due + credit, credit, discount, fee_discount)


def net_fee(fee: int, coupon: Mapping[str, Any] | None, taken_off: int) -> int:
    """What another fee of a period comes to, whose first one a coupon has taken so much off."""
    if coupon is None or not taken_off:
        return fee
    return fee - (_discount(coupon, fee, 0) if coupon["basis_points"] else min(fee, taken_off))


def _discount(coupon: Mapping[str, Any] | None, due: int, used: int) -> int:
    """Of an amount, by a coupon that has taken off so much already."""
    if coupon is None or due <= 0:
        return 0
    if coupon["basis_points"]:
        return int(due * coupon["basis_points"] // 10_000)
    return int(min(due, coupon["amount"] - used))
