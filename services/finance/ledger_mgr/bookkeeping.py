"""BookkeepingService, for people: proto to rules and back."""

from collections.abc import AsyncIterator
from functools import partial

from nexus.finance.ledger_mgr.v1 import bookkeeping_pb2 as pb
from nexus.finance.ledger_mgr.v1 import books_pb2 as books
from nexus.finance.ledger_mgr.v1.events_pb2 import Change
from nexus.type.v1.faults import InvalidRequest, TenantUnknown
from services.chassis.context import RequestContext, acting_for
from services.chassis.messages import MessageOf
from services.finance.ledger_mgr import operations
from services.finance.ledger_mgr.desk import Desk, balance_message, cause_of
from services.finance.ledger_mgr.verifying import Verification

_LOG_CHUNK = 1_000
_SHOWN_DIFFERENCES = 100
_total = MessageOf(pb.GetTrialBalanceResponse.Total)
_log_entry = MessageOf(books.LogEntry)


class BookkeepingService(Desk):
    async def CreateAccount(self, request: pb.CreateAccountRequest, call: RequestContext) -> pb.CreateAccountResponse:
        opening = operations.OpenAccounts(cause=cause_of(call), operator=True, accounts=[request.account])
        [account] = await self._poster.post(call.tenant_id, opening)
        return pb.CreateAccountResponse(account=account)

    async def GetAccount(self, request: pb.GetAccountRequest, call: RequestContext) -> pb.GetAccountResponse:
        account = (await self._accounts([request.name]))[request.name]
        rows = await self._store.balances([request.name], "")
        return pb.GetAccountResponse(account=account, balances=[balance_message(account, row) for row in rows])

    async def ListAccounts(self, request: pb.ListAccountsRequest, call: RequestContext) -> pb.ListAccountsResponse:
        fetch = partial(self._store.account_page, request)
        found, token = await self._pager.page(request, call, fetch, by=lambda last: last.name)
        return pb.ListAccountsResponse(accounts=found, next_page_token=token)

    async def UpdateAccount(self, request: pb.UpdateAccountRequest, call: RequestContext) -> pb.UpdateAccountResponse:
        if set(request.update_mask.paths) - operations.CHANGEABLE:
            wrong = ("update_mask", f"must be of {', '.join(sorted(operations.CHANGEABLE))}")
            raise InvalidRequest(violations=[wrong], summary=" ".join(wrong))
        change = operations.ChangeAccount(cause=cause_of(call), operator=True, request=request)
        return pb.UpdateAccountResponse(account=await self._poster.post(call.tenant_id, change))

    async def CloseAccount(self, request: pb.CloseAccountRequest, call: RequestContext) -> pb.CloseAccountResponse:
        account = await self._set_state(call, request.name, books.ACCOUNT_STATE_CLOSED)
        return pb.CloseAccountResponse(account=account)

    async def ReopenAccount(self, request: pb.ReopenAccountRequest, call: RequestContext) -> pb.ReopenAccountResponse:
        account = await self._set_state(call, request.name, books.ACCOUNT_STATE_OPEN)
        return pb.ReopenAccountResponse(account=account)

    async def PostJournalTransaction(
        self, request: pb.PostJournalTransactionRequest, call: RequestContext
    ) -> pb.PostJournalTransactionResponse:
        posting = operations.Post(cause=cause_of(call, request), operator=True, transaction=request.transaction)
        return pb.PostJournalTransactionResponse(transaction=await self._post(call, posting))

    async def RevertJournalTransaction(
        self, request: pb.RevertJournalTransactionRequest, call: RequestContext
    ) -> pb.RevertJournalTransactionResponse:
        revert = operations.Revert(cause=cause_of(call, request), operator=True, request=request)
        return pb.RevertJournalTransactionResponse(transaction=await self._post(call, revert))

    async def GetJournalTransaction(
        self, request: pb.GetJournalTransactionRequest, call: RequestContext
    ) -> pb.GetJournalTransactionResponse:
        transaction = await self._transaction(request.transaction_id)
        return pb.GetJournalTransactionResponse(transaction=transaction)

    async def ListJournal(self, request: pb.ListJournalRequest, call: RequestContext) -> pb.ListJournalResponse:
        found, token = await self._transactions(request, call)
        return pb.ListJournalResponse(transactions=found, next_page_token=token)

    async def GetAccountBalances(
        self, request: pb.GetAccountBalancesRequest, call: RequestContext
    ) -> pb.GetAccountBalancesResponse:
        return pb.GetAccountBalancesResponse(balances=await self._balances([request.account], request))

    async def ListAccountEntries(
        self, request: pb.ListAccountEntriesRequest, call: RequestContext
    ) -> pb.ListAccountEntriesResponse:
        found, token = await self._entries(request, call)
        return pb.ListAccountEntriesResponse(entries=found, next_page_token=token)

    async def ListHolds(self, request: pb.ListHoldsRequest, call: RequestContext) -> pb.ListHoldsResponse:
        fetch = partial(self._store.hold_page, request)
        found, token = await self._pager.page(request, call, fetch, by=lambda last: last.hold_id)
        return pb.ListHoldsResponse(holds=found, next_page_token=token)

    async def GetTrialBalance(
        self, request: pb.GetTrialBalanceRequest, call: RequestContext
    ) -> pb.GetTrialBalanceResponse:
        return pb.GetTrialBalanceResponse(totals=map(_total, await self._store.totals()))

    async def GetSettlementTerms(
        self, request: pb.GetSettlementTermsRequest, call: RequestContext
    ) -> pb.GetSettlementTermsResponse:
        return pb.GetSettlementTermsResponse(terms=await self._terms(call.tenant_id))

    async def SetSettlementTerms(
        self, request: pb.SetSettlementTermsRequest, call: RequestContext
    ) -> pb.SetSettlementTermsResponse:
        await self._terms(request.tenant_id)  # there is such a tenant
        wanted = request.platform_basis_points if request.HasField("platform_basis_points") else None
        agreement = operations.AgreeTerms(cause=cause_of(call), platform_basis_points=wanted)
        await self._poster.post(request.tenant_id, agreement)
        return pb.SetSettlementTermsResponse(terms=await self._terms(request.tenant_id))

    async def ExportLog(
        self, request: pb.ExportLogRequest, call: RequestContext
    ) -> AsyncIterator[pb.ExportLogResponse]:
        position = max(request.from_position - 1, 0)
        while rows := await self._store.log(position, _LOG_CHUNK):
            position = rows[-1]["position"]
            for row in rows:
                yield pb.ExportLogResponse(entry=_log_entry(row), change=Change.FromString(row["change"]))

    async def VerifyLog(self, request: pb.VerifyLogRequest, call: RequestContext) -> pb.VerifyLogResponse:
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
        return pb.VerifyLogResponse(
            entries=head["position"],
            head_hash=head["hash"],
            broken_at=verification.broken_at,
            differing_accounts=differing[:_SHOWN_DIFFERENCES],
        )

    async def _set_state(self, call: RequestContext, name: str, state: "books.AccountState.ValueType") -> books.Account:
        change = operations.SetAccountState(cause=cause_of(call), operator=True, name=name, state=state)
        account: books.Account = await self._poster.post(call.tenant_id, change)
        return account

    async def _terms(self, tenant_id: str) -> books.SettlementTerms:
        plan_id = await self._store.plan_id(tenant_id)
        if plan_id is None:
            raise TenantUnknown(tenant=tenant_id)
        with acting_for(tenant_id):
            head = await self._store.head()
        return books.SettlementTerms(
            platform_basis_points=self._store.basis_points(head, plan_id),
            agreed=head is not None and head["agreed_basis_points"] is not None,
            plan_id=plan_id,
        )
