"""What is on a bill: lines that add up to its total."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from services.finance.billing_service.proration import remaining


@dataclass(frozen=True)
class Line:
    """Amounts are in minor units of the bill's currency."""

    kind: str
    description: str
    amount: int
    start: datetime
    end: datetime
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
    discounted: bool
    """Whether the coupon was used."""


def fee_line(price: Mapping[str, Any], name: str, quantity: int, start: datetime, end: datetime) -> Line:
    return Line("FEE", name, price["fee"] * quantity, start, end, price["price_id"], Decimal(quantity))


def change_lines(
    old: Mapping[str, Any], new: Mapping[str, Any], subscription: Mapping[str, Any], quantity: int, at: datetime
) -> list[Line]:
    """What a change within the period gives back of the fee in force, and charges for the rest of the period. With a
    quantity of nothing it only gives back."""
    start, end = subscription["period_start"], subscription["period_end"]
    back = remaining(subscription["period_fee"], start, end, at)
    forth = remaining(new["fee"] * quantity, start, end, at)
    unused, rest = f"Unused time of {old['name']}", f"Remaining time of {new['name']}"
    lines = [
        Line(
            "PRORATION_CREDIT",
            unused,
            -back,
            at,
            end,
            subscription["price_id"],
            Decimal(subscription["quantity"]),
        ),
        Line("PRORATION_CHARGE", rest, forth, at, end, new["price_id"], Decimal(quantity)),
    ]
    return [line for line in lines if line.amount]


def draft(
    waiting: Sequence[int], lines: Sequence[Line], coupon: Mapping[str, Any] | None, owed: int, at: datetime
) -> Draft:
    """Make a bill of the amounts that waited for it and of new lines, with a coupon and what is owed to the customer.

    Coupons take off what is positive before credits are looked at, and never more than that. What is below nothing
    becomes a credit.
    """
    made = list(lines)
    due = sum(waiting) + sum(line.amount for line in made)
    discount = _discount(coupon, due) if coupon is not None else 0
    if discount and coupon is not None:
        made.append(Line("DISCOUNT", coupon["name"] or coupon["code"], -discount, at, at))
        due -= discount
    credit = -due if due < 0 else -min(due, owed)
    if credit:
        made.append(Line("CREDIT", "Credit", credit, at, at))
    return Draft(made, due + credit, credit, bool(discount))


def _discount(coupon: Mapping[str, Any], due: int) -> int:
    if due <= 0:
        return 0
    if coupon["basis_points"]:
        return int(due * coupon["basis_points"] // 10_000)
    return int(min(due, coupon["amount"]))
