"""The ledger as a service calls it, and as its books are checked from outside."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nexus.finance.ledger_mgr.v1 import books_pb2 as pb
from nexus.finance.ledger_mgr.v1 import ledger_pb2
from nexus.finance.ledger_mgr.v1.ledger_pb2_grpc import LedgerServiceStub
from nexus.type.v1.money_pb2 import Money
from services.chassis.clients import Clients
from services.chassis.clock import timestamp
from services.chassis.context import OPERATOR, acting_for
from services.chassis.ids import new_id
from tests.platforms import Platform, Tenant

CHECK = (Path(__file__).parent / "ledger_check.sql").read_text()
WORLD, ALICE, BOB = "world", "users:alice:main", "users:bob:main"
D, C = pb.SIDE_DEBIT, pb.SIDE_CREDIT


def leg(account: str, side: "pb.Side.ValueType", minor_units: int, currency: str = "EUR") -> pb.Leg:
    return pb.Leg(account=account, side=side, amount=Money(currency=currency, minor_units=minor_units))


def transfer(source: str, target: str, amount: int, currency: str = "EUR", **more: Any) -> pb.NewTransaction:
    """From one account of the customers to another: what is owed to the one is owed to the other."""
    return pb.NewTransaction(legs=[leg(source, D, amount, currency), leg(target, C, amount, currency)], **more)


@dataclass
class Ledger:
    """The books of one tenant, called by the operator."""

    tenant: Tenant
    clients: Clients

    @property
    def stub(self) -> Any:
        return self.clients.stub(LedgerServiceStub)

    async def call(self, method: str, request: Any) -> Any:
        with acting_for(self.tenant.tenant_id):
            return await getattr(self.stub, method)(request, timeout=20.0)

    async def open(
        self, *names: str, kind: "pb.AccountType.ValueType" = pb.ACCOUNT_TYPE_LIABILITY, **more: Any
    ) -> list[pb.Account]:
        accounts = [pb.NewAccount(name=name, type=kind, **more) for name in names]
        answer = await self.call("OpenAccounts", ledger_pb2.OpenAccountsRequest(accounts=accounts))
        return list(answer.accounts)

    async def open_usual(self, **funds: int) -> None:
        """The world, which may be overdrawn, and the accounts of Alice and Bob, with what they have in EUR."""
        await self.open(WORLD, kind=pb.ACCOUNT_TYPE_EQUITY, allow_overdraft=True)
        await self.open(ALICE, BOB)
        for name, amount in funds.items():
            await self.post(transfer(WORLD, f"users:{name}:main", amount))

    async def post(self, transaction: pb.NewTransaction, key: str = "") -> pb.Transaction:
        request = ledger_pb2.PostTransactionRequest(idempotency_key=key or new_id(), transaction=transaction)
        posted: pb.Transaction = (await self.call("PostTransaction", request)).transaction
        return posted

    async def hold(self, source: str, target: str, amount: int, key: str = "", **more: Any) -> pb.Hold:
        request = ledger_pb2.PlaceHoldRequest(
            idempotency_key=key or new_id(),
            debit_account=source,
            credit_account=target,
            amount=Money(currency="EUR", minor_units=amount),
            **more,
        )
        hold: pb.Hold = (await self.call("PlaceHold", request)).hold
        return hold

    async def capture(self, hold_id: str, amount: int = 0, key: str = "", **more: Any) -> pb.Transaction:
        request = ledger_pb2.CaptureHoldRequest(
            idempotency_key=key or new_id(), hold_id=hold_id, minor_units=amount, **more
        )
        posted: pb.Transaction = (await self.call("CaptureHold", request)).transaction
        return posted

    async def void(self, hold_id: str, key: str = "") -> None:
        await self.call("VoidHold", ledger_pb2.VoidHoldRequest(idempotency_key=key or new_id(), hold_id=hold_id))

    async def get_hold(self, hold_id: str) -> pb.Hold:
        hold: pb.Hold = (await self.call("GetHold", ledger_pb2.GetHoldRequest(hold_id=hold_id))).hold
        return hold

    async def revert(self, transaction_id: str, key: str = "", **more: Any) -> pb.Transaction:
        request = ledger_pb2.RevertTransactionRequest(
            idempotency_key=key or new_id(), transaction_id=transaction_id, **more
        )
        posted: pb.Transaction = (await self.call("RevertTransaction", request)).transaction
        return posted

    async def settle(self, source: str, target: str, **more: Any) -> ledger_pb2.SettleResponse:
        request = ledger_pb2.SettleRequest(
            idempotency_key=new_id(), source_account=source, currency="EUR", tenant_account=target, **more
        )
        settled: ledger_pb2.SettleResponse = await self.call("Settle", request)
        return settled

    async def balance(
        self, account: str, currency: str = "EUR", as_of: datetime | None = None, known: datetime | None = None
    ) -> pb.Balance:
        request = ledger_pb2.GetBalancesRequest(
            accounts=[account],
            currency=currency,
            as_of_time=timestamp(as_of) if as_of else None,
            known_time=timestamp(known) if known else None,
        )
        balances = (await self.call("GetBalances", request)).balances
        return balances[0] if balances else pb.Balance(account=account, currency=currency)


@asynccontextmanager
async def ledger_of(platform: Platform, tenant: Tenant) -> AsyncIterator[Ledger]:
    clients = Clients(platform.settings, OPERATOR, None)
    try:
        yield Ledger(tenant, clients)
    finally:
        await clients.stop()


async def problems(platform: Platform, tenant: Tenant) -> list[Mapping[str, Any]]:
    """What the check, which shares no code with the ledger, finds wrong with a tenant's books at this moment."""
    admin = await platform.admin()
    try:
        return [dict(row) for row in await admin.fetch(CHECK, tenant.tenant_id)]
    finally:
        await admin.close()
