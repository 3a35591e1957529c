"""The books of one tenant, as far as a batch of postings touches them: what they say, and how a change changes them.

Event sourced: `record` is the only way to change anything, and it goes through `evolve`, which needs nothing but the
change. Whoever plays a log through `evolve` gets the same books; VerifyLog does.

Account, Hold and Transaction are the contract's messages, here treated as values: replaced, never modified.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from nexus.finance.ledger_mgr.v1 import books_pb2 as pb
from nexus.finance.ledger_mgr.v1.events_pb2 import Change
from nexus.finance.ledger_mgr.v1.faults import (
    AccountClosed,
    AccountNotFound,
    AmountTooLarge,
    HoldNotFound,
    InsufficientFunds,
    ReferenceTaken,
    TransactionNotFound,
)
from services.chassis.clock import moment

LARGEST = 2**63 - 1
TRANSACTION, HOLD = "transaction", "hold"
_GROW_BY_DEBITS = (pb.ACCOUNT_TYPE_ASSET, pb.ACCOUNT_TYPE_EXPENSE)
_ABSENT: Any = object()


class Balance(NamedTuple):
    """What an account has in one currency, in minor units. Held is what holds may still debit and credit."""

    debits: int = 0
    credits: int = 0
    held_debits: int = 0
    held_credits: int = 0

    def plus(self, debit: int = 0, credit: int = 0, held_debit: int = 0, held_credit: int = 0) -> "Balance":
        return Balance(
            self.debits + debit,
            self.credits + credit,
            self.held_debits + held_debit,
            self.held_credits + held_credit,
        )

    @property
    def countable(self) -> bool:
        """Whether every number that follows from it fits 64 bits."""
        return self.debits + self.held_debits <= LARGEST and self.credits + self.held_credits <= LARGEST


NOTHING = Balance()


def grows_by_debits(account: pb.Account) -> bool:
    return account.type in _GROW_BY_DEBITS


def balance_of(account: pb.Account, has: Balance) -> int:
    """On the side on which the account grows."""
    return has.debits - has.credits if grows_by_debits(account) else has.credits - has.debits


def available_of(account: pb.Account, has: Balance) -> int:
    """The balance less what is held against it."""
    return balance_of(account, has) - (has.held_credits if grows_by_debits(account) else has.held_debits)


class Cause(NamedTuple):
    """What a fact comes from."""

    actor: str
    """The calling service, or the user."""
    request_id: str = ""
    """Of the call, for the audit trail."""
    key: str = ""
    """The idempotency key, for what must happen once."""
    request_hash: bytes = b""

    def aside(self) -> "Cause":
        """The cause of a fact that is not itself what the key stands for."""
        return self._replace(key="", request_hash=b"")


class Entry(NamedTuple):
    """One fact for the log."""

    position: int
    cause: Cause
    change: Change


class LegRow(NamedTuple):
    """One leg of a posted transaction, as it is stored."""

    account: str
    position: int
    leg: int
    currency: str
    debit: int
    credit: int
    balance: int
    effective_time: datetime


class Savepoint(NamedTuple):
    undo: int
    entries: int
    legs: int
    position: int


@dataclass
class Needs:
    """What of the books a batch has to know."""

    keys: set[tuple[str, str]] = field(default_factory=set)
    """(actor, idempotency key)."""
    accounts: set[str] = field(default_factory=set)
    holds: set[str] = field(default_factory=set)
    transactions: set[str] = field(default_factory=set)
    references: set[tuple[str, str]] = field(default_factory=set)
    """(TRANSACTION or HOLD, reference)."""


@dataclass
class Books:
    """All look-ups are by what `Needs` named; what is not in a dictionary does not exist."""

    tenant_id: str
    now: Timestamp
    position: int = 0
    platform_basis_points: int = 0
    agreed_basis_points: int | None = None
    accounts: dict[str, pb.Account] = field(default_factory=dict)
    balances: dict[tuple[str, str], Balance] = field(default_factory=dict)
    holds: dict[str, pb.Hold] = field(default_factory=dict)
    transactions: dict[str, pb.Transaction] = field(default_factory=dict)
    references: dict[tuple[str, str], str] = field(default_factory=dict)
    keys: dict[tuple[str, str], tuple[bytes, Change]] = field(default_factory=dict)
    """What was asked under a key, as a hash, and what became of it."""
    entries: list[Entry] = field(default_factory=list)
    legs: list[LegRow] = field(default_factory=list)
    _undo: list[tuple[dict[Any, Any], Any, Any]] = field(default_factory=list)

    def account(self, name: str) -> pb.Account:
        """Raises AccountNotFound."""
        found = self.accounts.get(name)
        if found is None:
            raise AccountNotFound(account=name)
        return found

    def open_account(self, name: str) -> pb.Account:
        """Raises AccountNotFound, AccountClosed."""
        found = self.account(name)
        if found.state != pb.ACCOUNT_STATE_OPEN:
            raise AccountClosed(account=name)
        return found

    def hold(self, hold_id: str) -> pb.Hold:
        """Raises HoldNotFound."""
        found = self.holds.get(hold_id)
        if found is None:
            raise HoldNotFound(hold=hold_id)
        return found

    def transaction(self, transaction_id: str) -> pb.Transaction:
        """Raises TransactionNotFound."""
        found = self.transactions.get(transaction_id)
        if found is None:
            raise TransactionNotFound(transaction=transaction_id)
        return found

    def has(self, account: str, currency: str) -> Balance:
        return self.balances.get((account, currency), NOTHING)

    def balances_of(self, account: str) -> Iterator[tuple[str, Balance]]:
        """(currency, balance)."""
        return ((currency, has) for (name, currency), has in self.balances.items() if name == account)

    def require_free(self, kind: str, reference: str) -> None:
        """Raises ReferenceTaken."""
        owner = self.references.get((kind, reference)) if reference else None
        if owner is not None:
            raise ReferenceTaken(reference=reference, owner=f"the {kind} {owner}")

    def record(self, change: Change, cause: Cause) -> Change:
        """Add a fact to the log, with all that follows from it."""
        self.position += 1
        self.entries.append(Entry(self.position, cause, change))
        if cause.key:
            self._set(self.keys, (cause.actor, cause.key), (cause.request_hash, change))
        self.evolve(change)
        return change

    def record_covered(self, change: Change, touched: Iterable[tuple[str, str]], cause: Cause) -> Change:
        """`record`, for what moves money: no account is overdrawn, no total too large.

        An account that is overdrawn already, since its limit was lowered, may only come closer to it.
        Raises InsufficientFunds, AmountTooLarge; take the savepoint back then.
        """
        before = {place: self.has(*place) for place in touched}
        self.record(change, cause)
        for (name, currency), had in before.items():
            has = self.balances[name, currency]
            if not has.countable:
                raise AmountTooLarge(account=name, currency=currency)
            account = self.accounts[name]
            if account.allow_overdraft and not account.overdraft_limit:
                continue
            left, available = available_of(account, has), available_of(account, had)
            if left < -account.overdraft_limit and left < available:
                raise InsufficientFunds(account=name, currency=currency, available=available, needed=available - left)
        return change

    def evolve(self, change: Change) -> None:
        """What follows from a fact."""
        match change.WhichOneof("kind"):
            case "transaction_posted":
                self._posted(change.transaction_posted.transaction, continues=change.transaction_posted.hold_continues)
            case "account_changed":
                self._set(self.accounts, change.account_changed.account.name, change.account_changed.account)
            case "hold_placed":
                hold = change.hold_placed.hold
                self._set(self.holds, hold.hold_id, hold)
                if hold.reference:
                    self._set(self.references, (HOLD, hold.reference), hold.hold_id)
                self._hold_back(hold, hold.amount.minor_units)
            case "hold_released":
                released = change.hold_released
                hold = self.holds[released.hold_id]
                self._hold_back(hold, -rest_of(hold))
                self._set(self.holds, hold.hold_id, _resolved(hold, released.state, released.resolve_time))
            case "terms_agreed":
                terms = change.terms_agreed
                agreed = terms.platform_basis_points if terms.HasField("platform_basis_points") else None
                self.agreed_basis_points = agreed

    def _posted(self, transaction: pb.Transaction, *, continues: bool) -> None:
        places = []
        for leg in transaction.legs:
            place, amount = (leg.account, leg.amount.currency), leg.amount.minor_units
            debit, credit = (amount, 0) if leg.side == pb.SIDE_DEBIT else (0, amount)
            self._set(self.balances, place, self.balances.get(place, NOTHING).plus(debit, credit))
            places.append((place, debit, credit))
        effective = moment(transaction.effective_time)
        for number, (place, debit, credit) in enumerate(places):
            after = balance_of(self.accounts[place[0]], self.balances[place])
            self.legs.append(LegRow(place[0], transaction.position, number, place[1], debit, credit, after, effective))
        if transaction.hold_id:
            self._captured(transaction, continues=continues)
        if transaction.reverts in self.transactions:
            reverted = pb.Transaction()
            reverted.CopyFrom(self.transactions[transaction.reverts])
            reverted.reverted_by = transaction.transaction_id
            self._set(self.transactions, reverted.transaction_id, reverted)
        self._set(self.transactions, transaction.transaction_id, transaction)
        if transaction.reference:
            self._set(self.references, (TRANSACTION, transaction.reference), transaction.transaction_id)

    def _captured(self, transaction: pb.Transaction, *, continues: bool) -> None:
        hold, captured = self.holds[transaction.hold_id], transaction.legs[0].amount.minor_units
        self._hold_back(hold, -(captured if continues else rest_of(hold)))
        state = pb.HOLD_STATE_PENDING if continues else pb.HOLD_STATE_CAPTURED
        changed = _resolved(hold, state, None if continues else transaction.create_time)
        changed.captured_minor_units += captured
        self._set(self.holds, hold.hold_id, changed)

    def _hold_back(self, hold: pb.Hold, amount: int) -> None:
        debited, credited = places_of(hold)
        self._set(self.balances, debited, self.has(*debited).plus(held_debit=amount))
        self._set(self.balances, credited, self.has(*credited).plus(held_credit=amount))

    def _set(self, where: dict[Any, Any], key: Any, value: Any) -> None:
        self._undo.append((where, key, where.get(key, _ABSENT)))
        where[key] = value

    def changed(self, where: dict[Any, Any]) -> dict[Any, Any]:
        """What was recorded in one of the dictionaries."""
        return {key: where[key] for of, key, _ in self._undo if of is where}

    def savepoint(self) -> Savepoint:
        return Savepoint(len(self._undo), len(self.entries), len(self.legs), self.position)

    def roll_back(self, to: Savepoint) -> None:
        """Undo everything since, as if it had never been."""
        while len(self._undo) > to.undo:
            where, key, value = self._undo.pop()
            if value is _ABSENT:
                del where[key]
            else:
                where[key] = value
        del self.entries[to.entries :], self.legs[to.legs :]
        self.position = to.position

    def forget_details(self) -> None:
        """Keep accounts, balances and pending holds only, for playing long logs."""
        for found in (self.transactions, self.references, self.entries, self.legs, self._undo):
            found.clear()
        self.holds = {name: hold for name, hold in self.holds.items() if hold.state == pb.HOLD_STATE_PENDING}


def rest_of(hold: pb.Hold) -> int:
    """What is still held, while it is pending."""
    return hold.amount.minor_units - hold.captured_minor_units


def places_of(hold: pb.Hold) -> tuple[tuple[str, str], tuple[str, str]]:
    """What it is to be debited and credited to."""
    return (hold.debit_account, hold.amount.currency), (hold.credit_account, hold.amount.currency)


def _resolved(hold: pb.Hold, state: "pb.HoldState.ValueType", when: Timestamp | None) -> pb.Hold:
    changed = pb.Hold()
    changed.CopyFrom(hold)
    changed.state = state
    if when is not None:
        changed.resolve_time.CopyFrom(when)
    return changed
