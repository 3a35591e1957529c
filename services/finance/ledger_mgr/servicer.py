"""LedgerService and BookkeepingService: proto to rules and back.

Each has a Poster of its own. They take turns on the ledger as replicas do, and people post too rarely to matter.
"""

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import asyncpg
from google.protobuf.message import Message

from nexus.finance.ledger_mgr.v1 import bookkeeping_pb2, ledger_pb2
from nexus.finance.ledger_mgr.v1 import books_pb2 as pb
from nexus.finance.ledger_mgr.v1.events_pb2 import Change
from nexus.finance.ledger_mgr.v1.faults import AccountNotFound, HoldNotFound, TransactionNotFound
from nexus.type.v1.faults import InvalidRequest, TenantUnknown
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import moment, timestamp
from services.chassis.context import RequestContext, acting_for
from services.chassis.errors import Fault
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.finance.ledger_mgr import operations
from services.finance.ledger_mgr.books import Cause, available_of, balance_of
from services.finance.ledger_mgr.posting import Poster
from services.finance.ledger_mgr.spec import Config
from services.finance.ledger_mgr.store import LedgerStore, balance_from
from services.finance.ledger_mgr.verifying import Verification

EXPIRE_SECONDS = 1.0
_EXPIRE_AT_ONCE = 500
_LOG_CHUNK = 1_000
_CHANGEABLE = frozenset({"metadata", "allow_overdraft", "overdraft_limit"})
_SHOWN_DIFFERENCES = 100


class _Reader:
    """What both services answer from the books."""

    def __init__(self, store: LedgerStore, pager: Pager) -> None:
        self._store = store
        self._pager = pager

    async def accounts(self, names: Sequence[str]) -> dict[str, pb.Account]:
        """All of them, or AccountNotFound."""
        found = await self._store.accounts(names)
        for name in names:
            if name not in found:
                raise AccountNotFound(account=name)
        return found

    async def balances(
        self, names: Sequence[str], currency: str, as_of: datetime | None, known: datetime | None
    ) -> list[pb.Balance]:
        accounts = await self.accounts(names)
        if as_of is None:
            rows = await self._store.balances(names, currency)
        else:
            rows = await self._store.balances_as_of(names, currency, as_of, known)
        return [_balance(accounts[row["account"]], row) for row in rows]

    async def transaction(self, transaction_id: str, reference: str) -> pb.Transaction:
        found = await self._store.transactions([transaction_id] if transaction_id else [], [reference])
        if not found:
            raise TransactionNotFound(transaction=transaction_id or reference)
        return found[0]

    async def transactions(self, request: Any, call: RequestContext) -> tuple[list[pb.Transaction], str]:
        """A page, and the token of the next one."""
        size, cursor = self._pager.size(request), self._pager.cursor(request, call)
        found = await self._store.transaction_page(request.filter, int(cursor) if cursor else None, size + 1)
        token = self._pager.token(request, call, str(found[size - 1].position)) if len(found) > size else ""
        return found[:size], token

    async def entries(self, request: Any, call: RequestContext) -> tuple[list[pb.Entry], str]:
        await self.accounts([request.account])
        size, cursor = self._pager.size(request), self._pager.cursor(request, call)
        position, _, leg = cursor.partition(".")
        rows = await self._store.entry_page(
            request.account,
            request.currency,
            _time(request, "from_time"),
            _time(request, "to_time"),
            (int(position), int(leg)) if cursor else None,
            size + 1,
        )
        last = rows[size - 1] if len(rows) > size else None
        token = self._pager.token(request, call, f"{last['position']}.{last['leg']}") if last else ""
        return [_entry(row) for row in rows[:size]], token


class LedgerService:
    def __init__(self, service: Service) -> None:
        self._store = _store(service)
        self._poster = _poster(service, self._store)
        self._reader = _Reader(self._store, Pager(service.sealer))
        service.every(EXPIRE_SECONDS, self._expire_holds)

    async def OpenAccounts(
        self, request: ledger_pb2.OpenAccountsRequest, call: RequestContext
    ) -> ledger_pb2.OpenAccountsResponse:
        opening = operations.OpenAccounts(cause=_cause(call), accounts=request.accounts)
        return ledger_pb2.OpenAccountsResponse(accounts=await self._poster.post(call.tenant_id, opening))

    async def PostTransaction(
        self, request: ledger_pb2.PostTransactionRequest, call: RequestContext
    ) -> ledger_pb2.PostTransactionResponse:
        posting = operations.Post(cause=_cause(call, request), transaction=request.transaction)
        return ledger_pb2.PostTransactionResponse(transaction=await self._posted(call, posting))

    async def PostTransactions(
        self, request: ledger_pb2.PostTransactionsRequest, call: RequestContext
    ) -> ledger_pb2.PostTransactionsResponse:
        posts = [operations.Post(cause=_cause(call, item), transaction=item.transaction) for item in request.items]
        linked = request.mode == ledger_pb2.BATCH_MODE_LINKED
        outcomes = await self._poster.post_all(call.tenant_id, posts, linked=linked)
        return ledger_pb2.PostTransactionsResponse(results=[_result(outcome) for outcome in outcomes])

    async def PlaceHold(
        self, request: ledger_pb2.PlaceHoldRequest, call: RequestContext
    ) -> ledger_pb2.PlaceHoldResponse:
        placing = operations.PlaceHold(cause=_cause(call, request), request=request)
        change: Change = await self._poster.post(call.tenant_id, placing)
        return ledger_pb2.PlaceHoldResponse(hold=change.hold_placed.hold)

    async def CaptureHold(
        self, request: ledger_pb2.CaptureHoldRequest, call: RequestContext
    ) -> ledger_pb2.CaptureHoldResponse:
        capture = operations.CaptureHold(cause=_cause(call, request), request=request)
        return ledger_pb2.CaptureHoldResponse(transaction=await self._posted(call, capture))

    async def VoidHold(self, request: ledger_pb2.VoidHoldRequest, call: RequestContext) -> ledger_pb2.VoidHoldResponse:
        release = operations.ReleaseHold(
            cause=_cause(call, request), hold_id=request.hold_id, state=pb.HOLD_STATE_VOIDED
        )
        released = (await self._poster.post(call.tenant_id, release)).hold_released
        return ledger_pb2.VoidHoldResponse(hold_id=released.hold_id, resolve_time=released.resolve_time)

    async def RevertTransaction(
        self, request: ledger_pb2.RevertTransactionRequest, call: RequestContext
    ) -> ledger_pb2.RevertTransactionResponse:
        transaction = await self._posted(call, _revert(request, _cause(call, request)))
        return ledger_pb2.RevertTransactionResponse(transaction=transaction)

    async def Settle(self, request: ledger_pb2.SettleRequest, call: RequestContext) -> ledger_pb2.SettleResponse:
        transaction = await self._posted(call, operations.Settle(cause=_cause(call, request), request=request))
        whole, *parts = transaction.legs
        platform = sum(leg.amount.minor_units for leg in parts if leg.account == operations.PLATFORM_SHARE)
        return ledger_pb2.SettleResponse(
            transaction=transaction,
            platform_minor_units=platform,
            tenant_minor_units=whole.amount.minor_units - platform,
        )

    async def GetBalances(
        self, request: ledger_pb2.GetBalancesRequest, call: RequestContext
    ) -> ledger_pb2.GetBalancesResponse:
        balances = await self._reader.balances(
            request.accounts, request.currency, _time(request, "as_of_time"), _time(request, "known_time")
        )
        return ledger_pb2.GetBalancesResponse(balances=balances)

    async def GetTransaction(
        self, request: ledger_pb2.GetTransactionRequest, call: RequestContext
    ) -> ledger_pb2.GetTransactionResponse:
        transaction = await self._reader.transaction(request.transaction_id, request.reference)
        return ledger_pb2.GetTransactionResponse(transaction=transaction)

    async def GetHold(self, request: ledger_pb2.GetHoldRequest, call: RequestContext) -> ledger_pb2.GetHoldResponse:
        found = await self._store.holds([request.hold_id] if request.hold_id else [], [request.reference])
        if not found:
            raise HoldNotFound(hold=request.hold_id or request.reference)
        return ledger_pb2.GetHoldResponse(hold=found[0])

    async def ListTransactions(
        self, request: ledger_pb2.ListTransactionsRequest, call: RequestContext
    ) -> ledger_pb2.ListTransactionsResponse:
        found, token = await self._reader.transactions(request, call)
        return ledger_pb2.ListTransactionsResponse(transactions=found, next_page_token=token)

    async def ListEntries(
        self, request: ledger_pb2.ListEntriesRequest, call: RequestContext
    ) -> ledger_pb2.ListEntriesResponse:
        found, token = await self._reader.entries(request, call)
        return ledger_pb2.ListEntriesResponse(entries=found, next_page_token=token)

    async def _posted(self, call: RequestContext, operation: operations.Operation) -> pb.Transaction:
        change: Change = await self._poster.post(call.tenant_id, operation)
        return change.transaction_posted.transaction

    async def _expire_holds(self) -> None:
        """Release the holds whose time is over. Two replicas at once are harmless: the second finds nothing left."""
        due = defaultdict(list)
        for row in await self._store.expired(_EXPIRE_AT_ONCE):
            cause = Cause(actor="ledger-mgr")
            release = operations.ReleaseHold(cause=cause, hold_id=row["hold_id"], state=pb.HOLD_STATE_EXPIRED)
            due[row["tenant_id"]].append(release)
        for tenant_id, releases in due.items():
            await self._poster.post_all(tenant_id, releases)


class BookkeepingService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._store = _store(service)
        self._poster = _poster(service, self._store)
        self._pager = Pager(service.sealer)
        self._reader = _Reader(self._store, self._pager)

    async def CreateAccount(
        self, request: bookkeeping_pb2.CreateAccountRequest, call: RequestContext
    ) -> bookkeeping_pb2.CreateAccountResponse:
        opening = operations.OpenAccounts(cause=_cause(call), operator=True, accounts=[request.account])
        [account] = await self._poster.post(call.tenant_id, opening)
        return bookkeeping_pb2.CreateAccountResponse(account=account)

    async def GetAccount(
        self, request: bookkeeping_pb2.GetAccountRequest, call: RequestContext
    ) -> bookkeeping_pb2.GetAccountResponse:
        account = (await self._reader.accounts([request.name]))[request.name]
        balances = await self._reader.balances([request.name], "", None, None)
        return bookkeeping_pb2.GetAccountResponse(account=account, balances=balances)

    async def ListAccounts(
        self, request: bookkeeping_pb2.ListAccountsRequest, call: RequestContext
    ) -> bookkeeping_pb2.ListAccountsResponse:
        size = self._pager.size(request)
        found = await self._store.account_page(
            request.under,
            request.type,
            request.state,
            (request.metadata_key, request.metadata_value),
            self._pager.cursor(request, call),
            size + 1,
        )
        token = self._pager.token(request, call, found[size - 1].name) if len(found) > size else ""
        return bookkeeping_pb2.ListAccountsResponse(accounts=found[:size], next_page_token=token)

    async def UpdateAccount(
        self, request: bookkeeping_pb2.UpdateAccountRequest, call: RequestContext
    ) -> bookkeeping_pb2.UpdateAccountResponse:
        change = operations.ChangeAccount(
            cause=_cause(call),
            operator=True,
            name=request.name,
            fields=_changed_fields(request),
            values=pb.NewAccount(
                metadata=request.metadata,
                allow_overdraft=request.allow_overdraft,
                overdraft_limit=request.overdraft_limit,
            ),
            etag=request.etag,
        )
        return bookkeeping_pb2.UpdateAccountResponse(account=await self._poster.post(call.tenant_id, change))

    async def CloseAccount(
        self, request: bookkeeping_pb2.CloseAccountRequest, call: RequestContext
    ) -> bookkeeping_pb2.CloseAccountResponse:
        account = await self._set_state(call, request.name, pb.ACCOUNT_STATE_CLOSED)
        return bookkeeping_pb2.CloseAccountResponse(account=account)

    async def ReopenAccount(
        self, request: bookkeeping_pb2.ReopenAccountRequest, call: RequestContext
    ) -> bookkeeping_pb2.ReopenAccountResponse:
        account = await self._set_state(call, request.name, pb.ACCOUNT_STATE_OPEN)
        return bookkeeping_pb2.ReopenAccountResponse(account=account)

    async def PostJournalTransaction(
        self, request: bookkeeping_pb2.PostJournalTransactionRequest, call: RequestContext
    ) -> bookkeeping_pb2.PostJournalTransactionResponse:
        posting = operations.Post(cause=_cause(call, request), operator=True, transaction=request.transaction)
        change: Change = await self._poster.post(call.tenant_id, posting)
        return bookkeeping_pb2.PostJournalTransactionResponse(transaction=change.transaction_posted.transaction)

    async def RevertJournalTransaction(
        self, request: bookkeeping_pb2.RevertJournalTransactionRequest, call: RequestContext
    ) -> bookkeeping_pb2.RevertJournalTransactionResponse:
        change: Change = await self._poster.post(call.tenant_id, _revert(request, _cause(call, request), operator=True))
        return bookkeeping_pb2.RevertJournalTransactionResponse(transaction=change.transaction_posted.transaction)

    async def GetJournalTransaction(
        self, request: bookkeeping_pb2.GetJournalTransactionRequest, call: RequestContext
    ) -> bookkeeping_pb2.GetJournalTransactionResponse:
        transaction = await self._reader.transaction(request.transaction_id, "")
        return bookkeeping_pb2.GetJournalTransactionResponse(transaction=transaction)

    async def ListJournal(
        self, request: bookkeeping_pb2.ListJournalRequest, call: RequestContext
    ) -> bookkeeping_pb2.ListJournalResponse:
        found, token = await self._reader.transactions(request, call)
        return bookkeeping_pb2.ListJournalResponse(transactions=found, next_page_token=token)

    async def GetAccountBalances(
        self, request: bookkeeping_pb2.GetAccountBalancesRequest, call: RequestContext
    ) -> bookkeeping_pb2.GetAccountBalancesResponse:
        balances = await self._reader.balances(
            [request.account], "", _time(request, "as_of_time"), _time(request, "known_time")
        )
        return bookkeeping_pb2.GetAccountBalancesResponse(balances=balances)

    async def ListAccountEntries(
        self, request: bookkeeping_pb2.ListAccountEntriesRequest, call: RequestContext
    ) -> bookkeeping_pb2.ListAccountEntriesResponse:
        found, token = await self._reader.entries(request, call)
        return bookkeeping_pb2.ListAccountEntriesResponse(entries=found, next_page_token=token)

    async def ListHolds(
        self, request: bookkeeping_pb2.ListHoldsRequest, call: RequestContext
    ) -> bookkeeping_pb2.ListHoldsResponse:
        size, cursor = self._pager.size(request), self._pager.cursor(request, call)
        found = await self._store.hold_page(request.account, request.state, cursor or None, size + 1)
        token = self._pager.token(request, call, found[size - 1].hold_id) if len(found) > size else ""
        return bookkeeping_pb2.ListHoldsResponse(holds=found[:size], next_page_token=token)

    async def GetTrialBalance(
        self, request: bookkeeping_pb2.GetTrialBalanceRequest, call: RequestContext
    ) -> bookkeeping_pb2.GetTrialBalanceResponse:
        total = bookkeeping_pb2.GetTrialBalanceResponse.Total
        return bookkeeping_pb2.GetTrialBalanceResponse(
            totals=[total(**dict(row)) for row in await self._store.totals()]
        )

    async def GetSettlementTerms(
        self, request: bookkeeping_pb2.GetSettlementTermsRequest, call: RequestContext
    ) -> bookkeeping_pb2.GetSettlementTermsResponse:
        return bookkeeping_pb2.GetSettlementTermsResponse(terms=await self._terms(call.tenant_id))

    async def SetSettlementTerms(
        self, request: bookkeeping_pb2.SetSettlementTermsRequest, call: RequestContext
    ) -> bookkeeping_pb2.SetSettlementTermsResponse:
        await self._terms(request.tenant_id)  # there is such a tenant
        wanted = request.platform_basis_points if request.HasField("platform_basis_points") else None
        agreement = operations.AgreeTerms(cause=_cause(call), platform_basis_points=wanted)
        await self._poster.post(request.tenant_id, agreement)
        return bookkeeping_pb2.SetSettlementTermsResponse(terms=await self._terms(request.tenant_id))

    async def ExportLog(
        self, request: bookkeeping_pb2.ExportLogRequest, call: RequestContext
    ) -> AsyncIterator[bookkeeping_pb2.ExportLogResponse]:
        position = max(request.from_position - 1, 0)
        while rows := await self._store.log(position, _LOG_CHUNK):
            position = rows[-1]["position"]
            for row in rows:
                yield bookkeeping_pb2.ExportLogResponse(entry=_log_entry(row), change=Change.FromString(row["change"]))

    async def VerifyLog(
        self, request: bookkeeping_pb2.VerifyLogRequest, call: RequestContext
    ) -> bookkeeping_pb2.VerifyLogResponse:
        verification = Verification(call.tenant_id)
        while len(rows := await self._store.log(verification.position, _LOG_CHUNK)) == _LOG_CHUNK:
            verification.play(rows)
            if verification.broken_at:
                break
        # The rest, and the balances that go with it, while nobody posts.
        async with self._database.transaction():
            head = await self._store.lock_head("SHARE")
            while not verification.broken_at and (rows := await self._store.log(verification.position, _LOG_CHUNK)):
                verification.play(rows)
            verification.end(head["position"], head["hash"])
            balances = await self._store.all_balances()
        differing = [] if verification.broken_at else verification.differing(balances)
        return bookkeeping_pb2.VerifyLogResponse(
            entries=head["position"],
            head_hash=head["hash"],
            broken_at=verification.broken_at,
            differing_accounts=differing[:_SHOWN_DIFFERENCES],
        )

    async def _set_state(self, call: RequestContext, name: str, state: "pb.AccountState.ValueType") -> pb.Account:
        change = operations.SetAccountState(cause=_cause(call), operator=True, name=name, state=state)
        account: pb.Account = await self._poster.post(call.tenant_id, change)
        return account

    async def _terms(self, tenant_id: str) -> pb.SettlementTerms:
        plan_id = await self._store.plan_id(tenant_id)
        if plan_id is None:
            raise TenantUnknown(tenant=tenant_id)
        with acting_for(tenant_id):
            head = await self._store.head()
        return pb.SettlementTerms(
            platform_basis_points=self._store.basis_points(head, plan_id),
            agreed=head is not None and head["agreed_basis_points"] is not None,
            plan_id=plan_id,
        )


def _store(service: Service) -> LedgerStore:
    config: Config = service.configuration(Config)
    return LedgerStore(service.database, config.platform_basis_points, config.plan_basis_points)


def _poster(service: Service, store: LedgerStore) -> Poster:
    config: Config = service.configuration(Config)
    return Poster(service.database, store, service.events, config.batch_size)


def _cause(call: RequestContext, request: Any = None) -> Cause:
    """Who asks, and for a request with a key, what it is known by."""
    actor = call.signed_in.user_id if call.signed_in is not None else call.caller
    assert actor is not None, "only users and services reach the ledger"
    if request is None:
        return Cause(actor, call.request_id)
    return Cause(actor, call.request_id, request.idempotency_key, _hash(request))


def _hash(request: Message) -> bytes:
    name = request.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(name + b"\0" + request.SerializeToString(deterministic=True)).digest()


def _changed_fields(request: bookkeeping_pb2.UpdateAccountRequest) -> frozenset[str]:
    named = frozenset(request.update_mask.paths)
    if named - _CHANGEABLE:
        wrong = ("update_mask", f"must be of {', '.join(sorted(_CHANGEABLE))}")
        raise InvalidRequest(violations=[wrong], summary=" ".join(wrong))
    return named or _CHANGEABLE


def _revert(
    request: ledger_pb2.RevertTransactionRequest | bookkeeping_pb2.RevertJournalTransactionRequest,
    cause: Cause,
    *,
    operator: bool = False,
) -> operations.Revert:
    return operations.Revert(
        cause=cause,
        operator=operator,
        transaction_id=request.transaction_id,
        at_effective_time=request.at_effective_time,
        reference=request.reference,
        description=request.description,
    )


def _result(outcome: Any) -> ledger_pb2.PostTransactionsResponse.Result:
    if isinstance(outcome, Fault):
        return ledger_pb2.PostTransactionsResponse.Result(error=outcome.status())
    return ledger_pb2.PostTransactionsResponse.Result(transaction=outcome.transaction_posted.transaction)


def _balance(account: pb.Account, row: asyncpg.Record) -> pb.Balance:
    has = balance_from(row)
    return pb.Balance(
        account=account.name,
        currency=row["currency"],
        debits=has.debits,
        credits=has.credits,
        held_debits=has.held_debits,
        held_credits=has.held_credits,
        balance=balance_of(account, has),
        available=available_of(account, has),
    )


def _entry(row: asyncpg.Record) -> pb.Entry:
    transaction = Change.FromString(row["change"]).transaction_posted.transaction
    return pb.Entry(
        transaction_id=transaction.transaction_id,
        kind=transaction.kind,
        side=pb.SIDE_DEBIT if row["debit"] else pb.SIDE_CREDIT,
        amount=Money(currency=row["currency"], minor_units=row["debit"] or row["credit"]),
        balance_after=row["balance"],
        reference=transaction.reference,
        description=transaction.description,
        effective_time=timestamp(row["effective_time"]),
        create_time=timestamp(row["create_time"]),
        position=row["position"],
    )


def _log_entry(row: asyncpg.Record) -> pb.LogEntry:
    return pb.LogEntry(
        position=row["position"],
        create_time=timestamp(row["create_time"]),
        actor=row["actor"],
        idempotency_key=row["idempotency_key"],
        request_hash=row["request_hash"],
        change=row["change"],
        hash=row["hash"],
    )


def _time(request: Any, field: str) -> datetime | None:
    return moment(getattr(request, field)) if request.HasField(field) else None
