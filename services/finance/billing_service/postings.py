"""How money that moved is booked: what each event of a payment debits and credits.

    providers:<name>         ASSET      what a provider holds for the tenant
    customers:prepaid        LIABILITY  what customers have paid for; whoever delivers takes it from there
    liabilities:sales-tax    LIABILITY  the tax in paid bills, owed to the state
    income:subscriptions     INCOME     paid bills of subscriptions without tax, until they are settled: at once
    tenant:earnings          EQUITY     the tenant's part of settled bills; the other part is in platform:share
    expenses:disputes        EXPENSE    what banks have taken back

Refunds may be more than a provider holds at the moment, since it pays out in between: its account may go below zero.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nexus.finance.ledger_mgr.v1 import books_pb2 as books
from nexus.type.v1.money_pb2 import Money


@dataclass(frozen=True)
class Account:
    name: str
    type: "books.AccountType.ValueType"


PREPAID = Account("customers:prepaid", books.ACCOUNT_TYPE_LIABILITY)
TAX = Account("liabilities:sales-tax", books.ACCOUNT_TYPE_LIABILITY)
EARNINGS = Account("tenant:earnings", books.ACCOUNT_TYPE_EQUITY)
PLATFORM_SHARE = "platform:share"
"""Opened and kept by the ledger's Settle."""
SUBSCRIPTIONS = Account("income:subscriptions", books.ACCOUNT_TYPE_INCOME)
DISPUTES = Account("expenses:disputes", books.ACCOUNT_TYPE_EXPENSE)


def held_by(provider: str) -> Account:
    return Account(f"providers:{provider}", books.ACCOUNT_TYPE_ASSET)


def sale(bill: Mapping[str, Any], tax: int) -> books.NewTransaction:
    """What was paid has been sold: the tax is owed, the rest earned."""
    return _of_bill(
        bill,
        f"bill/{bill['bill_id']}/sale",
        (PREPAID.name, books.SIDE_DEBIT, bill["total"]),
        (TAX.name, books.SIDE_CREDIT, tax),
        (SUBSCRIPTIONS.name, books.SIDE_CREDIT, bill["total"] - tax),
    )


def refund(bill: Mapping[str, Any], operation_id: str, amount: int, tax: int, share: int) -> books.NewTransaction:
    """A part of the sale is taken back from everybody who got something of it."""
    return _of_bill(
        bill,
        f"bill/{bill['bill_id']}/refund/{operation_id}",
        (TAX.name, books.SIDE_DEBIT, tax),
        (EARNINGS.name, books.SIDE_DEBIT, amount - tax - share),
        (PLATFORM_SHARE, books.SIDE_DEBIT, share),
        (PREPAID.name, books.SIDE_CREDIT, amount),
    )


def transaction(
    debit: Account, credit: Account, amount: Money, reference: str, about: dict[str, str]
) -> books.NewTransaction:
    """`reference` names what moved, so that it cannot be booked twice by anybody."""
    legs = [(debit.name, books.SIDE_DEBIT, amount.minor_units), (credit.name, books.SIDE_CREDIT, amount.minor_units)]
    return _transaction(reference, amount.currency, legs, about, (debit, credit))


def _of_bill(
    bill: Mapping[str, Any], reference: str, *legs: tuple[str, "books.Side.ValueType", int]
) -> books.NewTransaction:
    about = {"bill_id": bill["bill_id"], "customer_id": bill["customer_id"]}
    return _transaction(reference, bill["currency"], legs, about, (PREPAID, TAX, SUBSCRIPTIONS, EARNINGS))


def _transaction(
    reference: str,
    currency: str,
    legs: Iterable[tuple[str, "books.Side.ValueType", int]],
    about: Mapping[str, str],
    accounts: Iterable[Account],
) -> books.NewTransaction:
    """`accounts` are opened where they are not yet."""
    return books.NewTransaction(
        legs=[
            books.Leg(account=account, side=side, amount=Money(currency=currency, minor_units=amount))
            for account, side, amount in legs
            if amount
        ],
        reference=reference,
        metadata=about,
        open_accounts=[books.NewAccount(name=item.name, type=item.type, allow_overdraft=True) for item in accounts],
    )
