"""What can be done with the books: each operation decides, by what they say, what to record, or raises its refusal.

An operation with a key is answered with the change that it recorded; see `perform`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from nexus.finance.ledger_mgr.v1 import books_pb2 as pb
from nexus.finance.ledger_mgr.v1 import events_pb2, ledger_pb2
from nexus.finance.ledger_mgr.v1.bookkeeping_pb2 import RevertJournalTransactionRequest, UpdateAccountRequest
from nexus.finance.ledger_mgr.v1.events_pb2 import Change
from nexus.finance.ledger_mgr.v1.faults import (
    AccountDiffers,
    AccountNotEmpty,
    AccountReserved,
    AmountInvalid,
    CaptureTooLarge,
    EffectiveTimeInvalid,
    EtagStale,
    HoldResolved,
    NothingToSettle,
    SharesTooLarge,
    TransactionNotRevertible,
    TransactionUnbalanced,
)
from nexus.type.v1.faults import IdempotencyKeyReused, InvalidRequest
from nexus.type.v1.money_pb2 import Money
from services.chassis.ids import new_id
from services.chassis.messages import text_of, values_of
from services.finance.ledger_mgr.books import (
    HOLD,
    TRANSACTION,
    Books,
    Cause,
    Needs,
    available_of,
    grows_by_debits,
    places_of,
    rest_of,
)
from services.finance.ledger_mgr.shares import WHOLE, split

PLATFORM = "platform:"
PLATFORM_SHARE = "platform:share"
CHANGEABLE = frozenset({"metadata", "allow_overdraft", "overdraft_limit"})
"""What of an account is replaced where the request does not say which."""
SKEW_SECONDS = 60
"""So far ahead of ours a caller's clock may be; what it says counts as now then."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Something a caller asks for."""

    cause: Cause
    operator: bool = False
    """Whether it is a user of the tenant, who has no say over the platform's accounts."""

    def name_needs(self, needs: Needs) -> None:
        raise NotImplementedError

    def apply(self, books: Books) -> Any:
        """Decide and record. Raises a Fault; what it recorded until then is taken back."""
        raise NotImplementedError

    def _allow(self, account: str) -> None:
        if self.operator and account.startswith(PLATFORM):
            raise AccountReserved(account=account)

    def _record_transaction(self, books: Books, transaction: pb.Transaction, *, hold_continues: bool = False) -> Change:
        books.require_free(TRANSACTION, transaction.reference)
        transaction.transaction_id = new_id()
        transaction.create_time.CopyFrom(books.now)
        transaction.position = books.position + 1
        transaction.actor = self.cause.actor
        change = Change(
            transaction_posted=events_pb2.TransactionPosted(transaction=transaction, hold_continues=hold_continues)
        )
        touched = {(leg.account, leg.amount.currency) for leg in transaction.legs}
        return books.record_covered(change, touched, self.cause)


def perform(books: Books, operation: Operation) -> Any:
    """Do it, unless its key says that it has been done; then answer as the first time.

    Raises IdempotencyKeyReused for the key of another request. Whatever it raises, it has left nothing.
    """
    cause = operation.cause
    if cause.key and (cause.actor, cause.key) in books.keys:
        request_hash, change = books.keys[cause.actor, cause.key]
        if request_hash != cause.request_hash:
            raise IdempotencyKeyReused(key=cause.key)
        return change
    savepoint = books.savepoint()
    try:
        return operation.apply(books)
    except BaseException:
        books.roll_back(savepoint)
        raise


@dataclass(frozen=True, kw_only=True)
class OpenAccounts(Operation):
    """Answered with the accounts."""

    accounts: Sequence[pb.NewAccount]

    def name_needs(self, needs: Needs) -> None:
        needs.accounts.update(account.name for account in self.accounts)

    def apply(self, books: Books) -> list[pb.Account]:
        return [self._open(books, account) for account in self.accounts]

    def _open(self, books: Books, wanted: pb.NewAccount) -> pb.Account:
        self._allow(wanted.name)
        if wanted.name in books.accounts:
            there = books.open_account(wanted.name)
            if there.type != wanted.type:
                raise AccountDiffers(account=wanted.name, field="type")
            return there  # what the tenant has set since, its overdraft too, is the tenant's
        said = values_of(wanted, "name", "type", "allow_overdraft", "overdraft_limit", "metadata")
        account = pb.Account(**said, state=pb.ACCOUNT_STATE_OPEN, create_time=books.now)
        return _record_account(books, account, self.cause)


@dataclass(frozen=True, kw_only=True)
class ChangeAccount(Operation):
    """Answered with the account."""

    request: UpdateAccountRequest

    def name_needs(self, needs: Needs) -> None:
        needs.accounts.add(self.request.name)

    def apply(self, books: Books) -> pb.Account:
        request, there = self.request, books.accounts.get(self.request.name)
        self._allow(request.name)
        account = _copy(books.open_account(request.name))
        if request.etag and request.etag != account.etag:
            raise EtagStale()
        mask = FieldMask(paths=request.update_mask.paths or CHANGEABLE)
        mask.MergeMessage(pb.Account(**values_of(request, *CHANGEABLE)), account, True, True)
        return account if account == there else _record_account(books, account, self.cause)


@dataclass(frozen=True, kw_only=True)
class SetAccountState(Operation):
    """Closes or reopens an account; answered with it."""

    name: str
    state: "pb.AccountState.ValueType"

    def name_needs(self, needs: Needs) -> None:
        needs.accounts.add(self.name)

    def apply(self, books: Books) -> pb.Account:
        self._allow(self.name)
        account = books.account(self.name)
        if account.state == self.state:
            return account
        for currency, has in books.balances_of(self.name):
            if has.debits != has.credits or has.held_debits or has.held_credits:
                raise AccountNotEmpty(account=self.name, currency=currency)
        changed = _copy(account)
        changed.state = self.state
        return _record_account(books, changed, self.cause)


@dataclass(frozen=True, kw_only=True)
class Post(Operation):
    """A transaction of any number of legs."""

    transaction: pb.NewTransaction

    def name_needs(self, needs: Needs) -> None:
        needs.accounts.update(leg.account for leg in self.transaction.legs)
        needs.accounts.update(account.name for account in self.transaction.open_accounts)
        _name_reference(needs, TRANSACTION, self.transaction.reference)

    def apply(self, books: Books) -> Change:
        wanted = self.transaction
        if wanted.open_accounts:
            OpenAccounts(cause=self.cause, operator=self.operator, accounts=wanted.open_accounts).apply(books)
        check_balanced(wanted.legs)
        for leg in wanted.legs:
            self._allow(leg.account)
            books.open_account(leg.account)
        transaction = pb.Transaction(
            **values_of(wanted, "legs", "reference", "description", "metadata"),
            kind=pb.TRANSACTION_KIND_POSTING,
            effective_time=_effective(wanted, books.now),
        )
        return self._record_transaction(books, transaction)


@dataclass(frozen=True, kw_only=True)
class PlaceHold(Operation):
    request: ledger_pb2.PlaceHoldRequest

    def name_needs(self, needs: Needs) -> None:
        needs.accounts.update((self.request.debit_account, self.request.credit_account))
        _name_reference(needs, HOLD, self.request.reference)

    def apply(self, books: Books) -> Change:
        request = self.request
        _require_positive(request.amount)
        books.open_account(request.debit_account)
        books.open_account(request.credit_account)
        if request.HasField("expire_time") and _is_later(books.now, request.expire_time):
            raise EffectiveTimeInvalid()
        books.require_free(HOLD, request.reference)
        hold = pb.Hold(
            **values_of(request, "debit_account", "credit_account", "amount", "reference", "description", "metadata"),
            hold_id=new_id(),
            state=pb.HOLD_STATE_PENDING,
            create_time=books.now,
            expire_time=request.expire_time if request.HasField("expire_time") else None,
        )
        change = Change(hold_placed=events_pb2.HoldPlaced(hold=hold))
        return books.record_covered(change, places_of(hold), self.cause)


@dataclass(frozen=True, kw_only=True)
class CaptureHold(Operation):
    request: ledger_pb2.CaptureHoldRequest

    def name_needs(self, needs: Needs) -> None:
        needs.holds.add(self.request.hold_id)
        _name_reference(needs, TRANSACTION, self.request.reference)

    def apply(self, books: Books) -> Change:
        request = self.request
        hold = pending(books, request.hold_id)
        left = rest_of(hold)
        amount = request.minor_units or left
        if amount > left:
            raise CaptureTooLarge(hold=hold.hold_id, left=left)
        currency = hold.amount.currency
        transaction = pb.Transaction(
            kind=pb.TRANSACTION_KIND_CAPTURE,
            legs=[
                _leg(hold.debit_account, pb.SIDE_DEBIT, amount, currency),
                _leg(hold.credit_account, pb.SIDE_CREDIT, amount, currency),
            ],
            **values_of(request, "reference", "description", "metadata"),
            effective_time=_effective(request, books.now),
            hold_id=hold.hold_id,
        )
        return self._record_transaction(books, transaction, hold_continues=request.keep_rest and amount < left)


@dataclass(frozen=True, kw_only=True)
class ReleaseHold(Operation):
    """Voids a hold, or lets it expire."""

    hold_id: str
    state: "pb.HoldState.ValueType"

    def name_needs(self, needs: Needs) -> None:
        needs.holds.add(self.hold_id)

    def apply(self, books: Books) -> Change | None:
        """None for an expiry that came too late or too early: there is nothing to be released."""
        hold = books.hold(self.hold_id)
        if self.state == pb.HOLD_STATE_EXPIRED:
            if hold.state != pb.HOLD_STATE_PENDING or not _is_expired(hold, books.now):
                return None
        else:
            pending(books, self.hold_id)
        change = Change(
            hold_released=events_pb2.HoldReleased(hold_id=self.hold_id, state=self.state, resolve_time=books.now)
        )
        return books.record(change, self.cause)


@dataclass(frozen=True, kw_only=True)
class Revert(Operation):
    request: ledger_pb2.RevertTransactionRequest | RevertJournalTransactionRequest

    def name_needs(self, needs: Needs) -> None:
        needs.transactions.add(self.request.transaction_id)
        _name_reference(needs, TRANSACTION, self.request.reference)

    def apply(self, books: Books) -> Change:
        request = self.request
        original = books.transaction(request.transaction_id)
        if original.kind == pb.TRANSACTION_KIND_REVERSAL:
            raise TransactionNotRevertible(transaction=request.transaction_id, why="it is a reversal itself")
        if original.reverted_by:
            why = f"{original.reverted_by} has reverted it already"
            raise TransactionNotRevertible(transaction=request.transaction_id, why=why)
        for leg in original.legs:
            self._allow(leg.account)
            books.open_account(leg.account)
        opposite = {pb.SIDE_DEBIT: pb.SIDE_CREDIT, pb.SIDE_CREDIT: pb.SIDE_DEBIT}
        transaction = pb.Transaction(
            kind=pb.TRANSACTION_KIND_REVERSAL,
            legs=[pb.Leg(account=leg.account, side=opposite[leg.side], amount=leg.amount) for leg in original.legs],
            **values_of(request, "reference", "description"),
            metadata=original.metadata,
            effective_time=original.effective_time if request.at_effective_time else books.now,
            reverts=request.transaction_id,
        )
        return self._record_transaction(books, transaction)


@dataclass(frozen=True, kw_only=True)
class Settle(Operation):
    request: ledger_pb2.SettleRequest

    def name_needs(self, needs: Needs) -> None:
        request = self.request
        needs.accounts.update((request.source_account, request.tenant_account, PLATFORM_SHARE))
        needs.accounts.update(beneficiary.account for beneficiary in request.beneficiaries)
        _name_reference(needs, TRANSACTION, request.reference)

    def apply(self, books: Books) -> Change:
        request, due = self.request, books.platform_basis_points
        source = books.open_account(request.source_account)
        if grows_by_debits(source):
            wrong = ("source_account", "must be an account of type LIABILITY, EQUITY or INCOME")
            raise InvalidRequest(violations=[wrong], summary=" ".join(wrong))
        amount = request.minor_units or available_of(source, books.has(source.name, request.currency))
        if amount <= 0:
            raise NothingToSettle(account=source.name, currency=request.currency)
        promised = sum(beneficiary.basis_points for beneficiary in request.beneficiaries)
        if promised > WHOLE:
            raise SharesTooLarge(basis_points=promised)
        share = pb.NewAccount(name=PLATFORM_SHARE, type=pb.ACCOUNT_TYPE_LIABILITY)
        OpenAccounts(cause=self.cause, accounts=[share]).apply(books)
        tenants, platforms = split(amount, [WHOLE - due, due])
        parts = split(tenants, [WHOLE - promised, *(each.basis_points for each in request.beneficiaries)])
        names = [request.tenant_account, *(each.account for each in request.beneficiaries)]
        legs = [_leg(source.name, pb.SIDE_DEBIT, amount, request.currency)]
        for name, part in zip([*names, PLATFORM_SHARE], [*parts, platforms], strict=True):
            books.open_account(name)
            if part:
                legs.append(_leg(name, pb.SIDE_CREDIT, part, request.currency))
        transaction = pb.Transaction(
            kind=pb.TRANSACTION_KIND_SETTLEMENT,
            legs=legs,
            **values_of(request, "reference", "description"),
            effective_time=books.now,
            platform_basis_points=due,
        )
        return self._record_transaction(books, transaction)


@dataclass(frozen=True, kw_only=True)
class AgreeTerms(Operation):
    """Answered with nothing."""

    platform_basis_points: int | None
    """None for those of the tenant's plan."""

    def name_needs(self, needs: Needs) -> None:
        """The head of the ledger is always there."""

    def apply(self, books: Books) -> None:
        if books.agreed_basis_points != self.platform_basis_points:
            terms = pb.TermsAgreed(platform_basis_points=self.platform_basis_points)
            books.record(Change(terms_agreed=terms), self.cause.aside())


def check_balanced(legs: Sequence[pb.Leg]) -> None:
    """Raises AmountInvalid, TransactionUnbalanced."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for leg in legs:
        _require_positive(leg.amount)
        sums[leg.amount.currency][leg.side == pb.SIDE_CREDIT] += leg.amount.minor_units
    for currency, (debited, credited) in sums.items():
        if debited != credited:
            raise TransactionUnbalanced(currency=currency, debits=debited, credits=credited)


def pending(books: Books, hold_id: str) -> pb.Hold:
    """Raises HoldNotFound, HoldResolved. A hold is over when its time is, whether or not it has been released."""
    hold = books.hold(hold_id)
    if hold.state != pb.HOLD_STATE_PENDING:
        raise HoldResolved(hold=hold_id, state=text_of(pb.HoldState, hold.state).lower())
    if _is_expired(hold, books.now):
        raise HoldResolved(hold=hold_id, state="expired")
    return hold


def _is_expired(hold: pb.Hold, now: Timestamp) -> bool:
    return hold.HasField("expire_time") and not _is_later(hold.expire_time, now)


def _is_later(one: Timestamp, other: Timestamp) -> bool:
    return (one.seconds, one.nanos) > (other.seconds, other.nanos)


def _effective(request: pb.NewTransaction | ledger_pb2.CaptureHoldRequest, now: Timestamp) -> Timestamp:
    if not request.HasField("effective_time"):
        return now
    effective = request.effective_time
    if effective.seconds < 0 or effective.seconds > now.seconds + SKEW_SECONDS:
        raise EffectiveTimeInvalid()
    if _is_later(effective, now):
        return now
    # The database counts microseconds, and what is answered is what is stored.
    return Timestamp(seconds=effective.seconds, nanos=effective.nanos // 1000 * 1000)


def _require_positive(amount: Money) -> None:
    if amount.minor_units <= 0:
        raise AmountInvalid(what=f"{amount.minor_units} {amount.currency}")


def _leg(account: str, side: "pb.Side.ValueType", amount: int, currency: str) -> pb.Leg:
    return pb.Leg(account=account, side=side, amount=Money(currency=currency, minor_units=amount))


def _name_reference(needs: Needs, kind: str, reference: str) -> None:
    if reference:
        needs.references.add((kind, reference))


def _copy(account: pb.Account) -> pb.Account:
    copied = pb.Account()
    copied.CopyFrom(account)
    return copied


def _record_account(books: Books, account: pb.Account, cause: Cause) -> pb.Account:
    account.etag = str(books.position + 1)
    books.record(Change(account_changed=events_pb2.AccountChanged(account=account)), cause.aside())
    return account
