"""How money that moved is booked: what each event of a payment debits and credits.

    providers:<name>         ASSET      what a provider holds for the tenant
    customers:prepaid        LIABILITY  what customers have paid for; whoever delivers takes it from there
    liabilities:sales-tax    LIABILITY  the tax in paid bills, owed to the state
    income:subscriptions     INCOME     paid bills of subscriptions without tax, until they are settled: at once
    tenant:earnings          EQUITY     the tenant's part of settled bills; the other part is in platform:share
    expenses:disputes        EXPENSE    what banks have taken back

Refunds may be more than a provider holds at the moment, since it pays out in between: its account may go below zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexus.finance.ledger_mgr.v1.books_pb2 import (
    ACCOUNT_TYPE_ASSET,
    ACCOUNT_TYPE_EQUITY,
    ACCOUNT_TYPE_EXPENSE,
    ACCOUNT_TYPE_INCOME,
    ACCOUNT_TYPE_LIABILITY,
    SIDE_CREDIT,
    SIDE_DEBIT,
    AccountType,
    Leg,
    NewAccount,
    NewTransaction,
    Side,
)
from nexus.type.v1.money_pb2 import Money


@dataclass(frozen=True)
class Account:
    name: str
    type: "AccountType.ValueType"


PREPAID = Account("customers:prepaid", ACCOUNT_TYPE_LIABILITY)
TAX = Account("liabilities:sales-tax", ACCOUNT_TYPE_LIABILITY)
EARNINGS = Account("tenant:earnings", ACCOUNT_TYPE_EQUITY)
PLATFORM_SHARE = "platform:share"
"""Opened and kept by the ledger's Settle."""
SUBSCRIPTIONS = Account("income:subscriptions", ACCOUNT_TYPE_INCOME)
DISPUTES = Account("expenses:disputes", ACCOUNT_TYPE_EXPENSE)


def held_by(provider: str) -> Account:
    return Account(f"providers:{provider}", ACCOUNT_TYPE_ASSET)


def sale(bill: Mapping[str, Any], tax: int) -> NewTransaction:
    """What was paid has been sold: the tax is owed, the rest earned."""
    return _of_bill(
        bill,
        f"bill/{bill['bill_id']}/sale",
        (PREPAID.name, SIDE_DEBIT, bill["total"]),
        (TAX.name, SIDE_CREDIT, tax),
        (SUBSCRIPTIONS.name, SIDE_CREDIT, bill["total"] - tax),
    )


def refund(bill: Mapping[str, Any], operation_id: str, amount: int, tax: int, share: int) -> NewTransaction:
    """A part of the sale is taken back from everybody who got something of it."""
    return _of_bill(
        bill,
        f"bill/{bill['bill_id']}/refund/{operation_id}",
        (TAX.name, SIDE_DEBIT, tax),
        (EARNINGS.name, SIDE_DEBIT, amount - tax - share),
        (PLATFORM_SHARE, SIDE_DEBIT, share),
        (PREPAID.name, SIDE_CREDIT, amount),
    )


def transaction(
    debit: Account, credit: Account, amount: Money, reference: str, about: dict[str, str]
) -> NewTransaction:
    """`reference` names what moved, so that it cannot be booked twice by anybody."""
    return NewTransaction(
        legs=[
            Leg(account=debit.name, side=SIDE_DEBIT, amount=amount),
            Leg(account=credit.name, side=SIDE_CREDIT, amount=amount),
        ],
        reference=reference,
        metadata=about,
        open_accounts=[NewAccount(name=item.name, type=item.type, allow_overdraft=True) for item in (debit, credit)],
    )


def _of_bill(bill: Mapping[str, Any], reference: str, *legs: tuple[str, "Side.ValueType", int]) -> NewTransaction:
    return NewTransaction(
        legs=[
            Leg(account=account, side=side, amount=Money(currency=bill["currency"], minor_units=amount))
            for account, side, amount in legs
            if amount
        ],
        reference=reference,
        metadata={"bill_id": bill["bill_id"], "customer_id": bill["customer_id"]},
        open_accounts=[
            NewAccount(name=account.name, type=account.type, allow_overdraft=True)
            for account in (PREPAID, TAX, SUBSCRIPTIONS, EARNINGS)
        ],
    )
