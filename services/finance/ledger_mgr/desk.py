"""What LedgerService and BookkeepingService have in common: how they post, and what they read from the books."""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from nexus.finance.ledger_mgr.v1 import books_pb2 as pb
from nexus.finance.ledger_mgr.v1.events_pb2 import Change
from nexus.finance.ledger_mgr.v1.faults import AccountNotFound, TransactionNotFound
from nexus.type.v1.money_pb2 import Money
from services.chassis.context import RequestContext
from services.chassis.messages import MessageOf, moment_in
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.finance.ledger_mgr.books import Cause, available_of, balance_of
from services.finance.ledger_mgr.operations import Operation
from services.finance.ledger_mgr.posting import Poster
from services.finance.ledger_mgr.spec import Config
from services.finance.ledger_mgr.store import LedgerStore, balance_from

_balance_of = MessageOf(pb.Balance)
_entry_of = MessageOf(pb.Entry, balance_after="balance")


class Desk:
    """Each has a Poster of its own. They take turns on the ledger as replicas do, and people post too rarely to
    matter."""

    def __init__(self, service: Service) -> None:
        config: Config = service.configuration(Config)
        self._database = service.database
        self._store = LedgerStore(service.database, config.platform_basis_points, config.plan_basis_points)
        self._poster = Poster(service.database, self._store, service.events, config.batch_size)
        self._pager = Pager(service.sealer)

    async def _post(self, call: RequestContext, operation: Operation) -> pb.Transaction:
        """The transaction that it makes."""
        change: Change = await self._poster.post(call.tenant_id, operation)
        return change.transaction_posted.transaction

    async def _accounts(self, names: Sequence[str]) -> dict[str, pb.Account]:
        """All of them, or AccountNotFound."""
        found = await self._store.accounts(names)
        for name in names:
            if name not in found:
                raise AccountNotFound(account=name)
        return found

    async def _balances(self, names: Sequence[str], request: Any, currency: str = "") -> list[pb.Balance]:
        """As of the request's time, as it was known at another, or as they are."""
        accounts, as_of = await self._accounts(names), moment_in(request, "as_of_time")
        if as_of is None:
            rows = await self._store.balances(names, currency)
        else:
            rows = await self._store.balances_as_of(names, currency, as_of, moment_in(request, "known_time"))
        return [balance_message(accounts[row["account"]], row) for row in rows]

    async def _transaction(self, transaction_id: str, reference: str = "") -> pb.Transaction:
        found = await self._store.transactions([transaction_id] if transaction_id else [], [reference])
        if not found:
            raise TransactionNotFound(transaction=transaction_id or reference)
        return found[0]

    async def _transactions(self, request: Any, call: RequestContext) -> tuple[list[pb.Transaction], str]:
        """A page, and the token of the next one."""
        fetch = partial(self._store.transaction_page, request.filter)
        return await self._pager.page(request, call, fetch, by=lambda last: last.position)

    async def _entries(self, request: Any, call: RequestContext) -> tuple[list[pb.Entry], str]:
        await self._accounts([request.account])
        fetch = partial(self._store.entry_page, request)
        rows, token = await self._pager.page(request, call, fetch, by=lambda last: f"{last['position']}.{last['leg']}")
        return [_entry(row) for row in rows], token


def cause_of(call: RequestContext, request: Any = None) -> Cause:
    """Who asks, and for a request with a key, what it is known by."""
    actor = call.signed_in.user_id if call.signed_in is not None else call.caller
    assert actor is not None, "only users and services reach the ledger"
    if request is None:
        return Cause(actor, call.request_id)
    body = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return Cause(actor, call.request_id, request.idempotency_key, hashlib.sha256(body).digest())


def balance_message(account: pb.Account, row: Row) -> pb.Balance:
    has = balance_from(row)
    return _balance_of(row, balance=balance_of(account, has), available=available_of(account, has))


def _entry(row: Row) -> pb.Entry:
    transaction = Change.FromString(row["change"]).transaction_posted.transaction
    return _entry_of(
        row,
        transaction_id=transaction.transaction_id,
        kind=transaction.kind,
        side=pb.SIDE_DEBIT if row["debit"] else pb.SIDE_CREDIT,
        amount=Money(currency=row["currency"], minor_units=row["debit"] or row["credit"]),
        reference=transaction.reference,
        description=transaction.description,
    )
