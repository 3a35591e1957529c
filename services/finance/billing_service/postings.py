"""How money that moved is booked: what each event of a payment debits and credits.

    providers:<name>         ASSET      what a provider holds for the tenant
    customers:prepaid        LIABILITY  what customers have paid for; whoever delivers takes it from there
    income:subscriptions     INCOME     bills of subscriptions, which are delivered as they are paid
    expenses:disputes        EXPENSE    what banks have taken back

Refunds may be more than a provider holds at the moment, since it pays out in between: its account may go below zero.
"""

from dataclasses import dataclass

from nexus.finance.ledger_mgr.v1.books_pb2 import (
    ACCOUNT_TYPE_ASSET,
    ACCOUNT_TYPE_EXPENSE,
    ACCOUNT_TYPE_INCOME,
    ACCOUNT_TYPE_LIABILITY,
    SIDE_CREDIT,
    SIDE_DEBIT,
    AccountType,
    Leg,
    NewAccount,
    NewTransaction,
)
from nexus.type.v1.money_pb2 import Money


@dataclass(frozen=True)
class Account:
    name: str
    type: "AccountType.ValueType"


PREPAID = Account("customers:prepaid", ACCOUNT_TYPE_LIABILITY)
SUBSCRIPTIONS = Account("income:subscriptions", ACCOUNT_TYPE_INCOME)
DISPUTES = Account("expenses:disputes", ACCOUNT_TYPE_EXPENSE)


def held_by(provider: str) -> Account:
    return Account(f"providers:{provider}", ACCOUNT_TYPE_ASSET)


def earned_by(reference: str) -> Account:
    """What a payment is for: a bill of ours, or something that another service sells."""
    return SUBSCRIPTIONS if reference.startswith("bill/") else PREPAID


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
