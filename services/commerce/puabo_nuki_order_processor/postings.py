"""How a sale is booked. Billing books the money itself, from its own events: what customers pay stands in
`customers:prepaid` until it is taken from there.

    customers:prepaid        LIABILITY  what customers have paid for and not been sold yet
    liabilities:sales-tax    LIABILITY  the tax on sales, owed to the state
    income:sales             INCOME     sales without tax, until they are settled: at once
    tenant:earnings          EQUITY     the tenant's part of settled sales; the other part is in platform:share
"""

from nexus.finance.ledger_mgr.v1.books_pb2 import (
    ACCOUNT_TYPE_EQUITY,
    ACCOUNT_TYPE_INCOME,
    ACCOUNT_TYPE_LIABILITY,
    SIDE_CREDIT,
    SIDE_DEBIT,
    Leg,
    NewAccount,
    NewTransaction,
    Side,
)
from services.commerce.puabo_nuki_order_processor.order import Order, Refund

PREPAID = NewAccount(name="customers:prepaid", type=ACCOUNT_TYPE_LIABILITY, allow_overdraft=True)
TAX = NewAccount(name="liabilities:sales-tax", type=ACCOUNT_TYPE_LIABILITY, allow_overdraft=True)
SALES = NewAccount(name="income:sales", type=ACCOUNT_TYPE_INCOME, allow_overdraft=True)
EARNINGS = NewAccount(name="tenant:earnings", type=ACCOUNT_TYPE_EQUITY, allow_overdraft=True)
PLATFORM_SHARE = "platform:share"
"""Opened and kept by the ledger's Settle."""


def sale(order: Order, reference: str) -> NewTransaction:
    """What was paid has been sold: the tax is owed, the rest earned."""
    return _transaction(
        order,
        reference,
        (PREPAID.name, SIDE_DEBIT, order.total),
        (TAX.name, SIDE_CREDIT, order.tax),
        (SALES.name, SIDE_CREDIT, order.total - order.tax),
    )


def refund(order: Order, refund: Refund, platform_part: int, reference: str) -> NewTransaction:
    """A part of the sale is taken back from everybody who got something of it."""
    net = refund.amount - refund.tax
    return _transaction(
        order,
        reference,
        (TAX.name, SIDE_DEBIT, refund.tax),
        (EARNINGS.name, SIDE_DEBIT, net - platform_part),
        (PLATFORM_SHARE, SIDE_DEBIT, platform_part),
        (PREPAID.name, SIDE_CREDIT, refund.amount),
    )


def _transaction(order: Order, reference: str, *legs: tuple[str, "Side.ValueType", int]) -> NewTransaction:
    return NewTransaction(
        legs=[Leg(account=account, side=side, amount=order.money(amount)) for account, side, amount in legs if amount],
        reference=reference,
        metadata={"order_id": order.order_id},
        open_accounts=[PREPAID, TAX, SALES, EARNINGS],
    )
