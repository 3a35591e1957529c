"""LedgerService, for services: proto to rules and back. BookkeepingService, for people, has a module of its own."""

from collections import defaultdict
from typing import Any

from nexus.finance.ledger_mgr.v1 import books_pb2 as books
from nexus.finance.ledger_mgr.v1 import ledger_pb2 as pb
from nexus.finance.ledger_mgr.v1.events_pb2 import Change
from nexus.finance.ledger_mgr.v1.faults import HoldNotFound
from services.chassis.context import RequestContext
from services.chassis.errors import Fault
from services.chassis.service import Service
from services.finance.ledger_mgr import operations
from services.finance.ledger_mgr.bookkeeping import BookkeepingService
from services.finance.ledger_mgr.books import Cause
from services.finance.ledger_mgr.desk import Desk, cause_of

__all__ = ["BookkeepingService", "LedgerService"]

EXPIRE_SECONDS = 1.0
_EXPIRE_AT_ONCE = 500


class LedgerService(Desk):
    def __init__(self, service: Service) -> None:
        super().__init__(service)
        service.every(EXPIRE_SECONDS, self._expire_holds)

    async def OpenAccounts(self, request: pb.OpenAccountsRequest, call: RequestContext) -> pb.OpenAccountsResponse:
        opening = operations.OpenAccounts(cause=cause_of(call), accounts=request.accounts)
        return pb.OpenAccountsResponse(accounts=await self._poster.post(call.tenant_id, opening))

    async def PostTransaction(
        self, request: pb.PostTransactionRequest, call: RequestContext
    ) -> pb.PostTransactionResponse:
        posting = operations.Post(cause=cause_of(call, request), transaction=request.transaction)
        return pb.PostTransactionResponse(transaction=await self._post(call, posting))

    async def PostTransactions(
        self, request: pb.PostTransactionsRequest, call: RequestContext
    ) -> pb.PostTransactionsResponse:
        posts = [operations.Post(cause=cause_of(call, item), transaction=item.transaction) for item in request.items]
        linked = request.mode == pb.BATCH_MODE_LINKED
        outcomes = await self._poster.post_all(call.tenant_id, posts, linked=linked)
        return pb.PostTransactionsResponse(results=[_result(outcome) for outcome in outcomes])

    async def PlaceHold(self, request: pb.PlaceHoldRequest, call: RequestContext) -> pb.PlaceHoldResponse:
        placing = operations.PlaceHold(cause=cause_of(call, request), request=request)
        change: Change = await self._poster.post(call.tenant_id, placing)
        return pb.PlaceHoldResponse(hold=change.hold_placed.hold)

    async def CaptureHold(self, request: pb.CaptureHoldRequest, call: RequestContext) -> pb.CaptureHoldResponse:
        capture = operations.CaptureHold(cause=cause_of(call, request), request=request)
        return pb.CaptureHoldResponse(transaction=await self._post(call, capture))

    async def VoidHold(self, request: pb.VoidHoldRequest, call: RequestContext) -> pb.VoidHoldResponse:
        release = operations.ReleaseHold(
            cause=cause_of(call, request), hold_id=request.hold_id, state=books.HOLD_STATE_VOIDED
        )
        released = (await self._poster.post(call.tenant_id, release)).hold_released
        return pb.VoidHoldResponse(hold_id=released.hold_id, resolve_time=released.resolve_time)

    async def RevertTransaction(
        self, request: pb.RevertTransactionRequest, call: RequestContext
    ) -> pb.RevertTransactionResponse:
        revert = operations.Revert(cause=cause_of(call, request), request=request)
        transaction = await self._post(call, revert)
        return pb.RevertTransactionResponse(transaction=transaction)

    async def Settle(self, request: pb.SettleRequest, call: RequestContext) -> pb.SettleResponse:
        transaction = await self._post(call, operations.Settle(cause=cause_of(call, request), request=request))
        whole, *parts = transaction.legs
        platform = sum(leg.amount.minor_units for leg in parts if leg.account == operations.PLATFORM_SHARE)
        return pb.SettleResponse(
            transaction=transaction,
            platform_minor_units=platform,
            tenant_minor_units=whole.amount.minor_units - platform,
        )

    async def GetBalances(self, request: pb.GetBalancesRequest, call: RequestContext) -> pb.GetBalancesResponse:
        balances = await self._balances(request.accounts, request, request.currency)
        return pb.GetBalancesResponse(balances=balances)

    async def GetTransaction(
        self, request: pb.GetTransactionRequest, call: RequestContext
    ) -> pb.GetTransactionResponse:
        transaction = await self._transaction(request.transaction_id, request.reference)
        return pb.GetTransactionResponse(transaction=transaction)

    async def GetHold(self, request: pb.GetHoldRequest, call: RequestContext) -> pb.GetHoldResponse:
        found = await self._store.holds([request.hold_id] if request.hold_id else [], [request.reference])
        if not found:
            raise HoldNotFound(hold=request.hold_id or request.reference)
        return pb.GetHoldResponse(hold=found[0])

    async def ListTransactions(
        self, request: pb.ListTransactionsRequest, call: RequestContext
    ) -> pb.ListTransactionsResponse:
        found, token = await self._transactions(request, call)
        return pb.ListTransactionsResponse(transactions=found, next_page_token=token)

    async def ListEntries(self, request: pb.ListEntriesRequest, call: RequestContext) -> pb.ListEntriesResponse:
        found, token = await self._entries(request, call)
        return pb.ListEntriesResponse(entries=found, next_page_token=token)

    async def _expire_holds(self) -> None:
        """Release the holds whose time is over. Two replicas at once are harmless: the second finds nothing left."""
        due = defaultdict(list)
        for row in await self._store.expired(_EXPIRE_AT_ONCE):
            cause = Cause(actor="ledger-mgr")
            release = operations.ReleaseHold(cause=cause, hold_id=row["hold_id"], state=books.HOLD_STATE_EXPIRED)
            due[row["tenant_id"]].append(release)
        for tenant_id, releases in due.items():
            await self._poster.post_all(tenant_id, releases)


def _result(outcome: Any) -> pb.PostTransactionsResponse.Result:
    if isinstance(outcome, Fault):
        return pb.PostTransactionsResponse.Result(error=outcome.status())
    return pb.PostTransactionsResponse.Result(transaction=outcome.transaction_posted.transaction)
