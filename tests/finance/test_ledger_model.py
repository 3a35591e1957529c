"""Whatever is done with the ledger, in whatever order, it answers as a model of a few lines does."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from nexus.finance.ledger_mgr.v1 import books_pb2 as pb
from nexus.finance.ledger_mgr.v1 import faults
from nexus.type.v1.faults import IdempotencyKeyReused
from services.chassis.clients import Clients
from services.chassis.context import OPERATOR
from services.chassis.errors import Fault
from services.finance.ledger_mgr.shares import split
from tests.finance.ledgers import WORLD, C, D, Ledger, leg, problems, transfer
from tests.platforms import Platform

NAMES = ["users:a", "users:b", "users:c"]
EVERYONE = [WORLD, *NAMES]
accounts = st.sampled_from(EVERYONE)
currencies = st.sampled_from(["EUR", "JPY"])
amounts = st.one_of(st.integers(1, 300), st.sampled_from([1, 2**40]))


@dataclass
class ModelHold:
    source: str
    target: str
    left: int
    open: bool = True


class Model:
    """What each account has and has promised, in each currency."""

    def __init__(self) -> None:
        self.has: dict[tuple[str, str], int] = defaultdict(int)
        self.promised: dict[tuple[str, str], int] = defaultdict(int)

    def moves(self, changes: dict[tuple[str, str], int]) -> bool:
        """Whether they are made: no customer ends below zero, unless they end no lower than they were."""
        for (name, currency), change in changes.items():
            left = self.has[name, currency] + change - self.promised[name, currency]
            if name != WORLD and change < 0 and left < 0:
                return False
        for place, change in changes.items():
            self.has[place] += change
        return True


class LedgerMachine(RuleBasedStateMachine):
    """Runs against the platform, each run in a tenant of its own."""

    platform: Platform
    holds = Bundle("holds")
    posted = Bundle("posted")
    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model = Model()
        self.held: dict[str, ModelHold] = {}
        self.reverted: set[str] = set()
        self.count = 0

    def do(self, call: Awaitable[Any]) -> Any:
        """The answer, or the refusal."""

        async def run() -> Any:
            try:
                return await call
            except Fault as refusal:
                return refusal

        return self.runner.run(run())

    @initialize()
    def begin(self) -> None:
        async def open_books() -> Ledger:
            ledger = Ledger(await self.platform.new_tenant(), Clients(self.platform.settings, OPERATOR, None))
            await ledger.open(WORLD, kind=pb.ACCOUNT_TYPE_EQUITY, allow_overdraft=True)
            await ledger.open(*NAMES)
            return ledger

        self.ledger = self.runner.run(open_books())

    @rule(target=posted, source=accounts, target_account=accounts, amount=amounts, currency=currencies)
    def post(self, source: str, target_account: str, amount: int, currency: str) -> Any:
        return self.expect({(source, currency): -amount}, {(target_account, currency): amount})

    @rule(target=posted, amount=st.integers(3, 1000), currency=currencies)
    def post_three_ways(self, amount: int, currency: str) -> Any:
        parts = split(amount, [1, 1, 1])
        return self.expect(
            {(WORLD, currency): -amount},
            *({(name, currency): part} for name, part in zip(NAMES, parts, strict=True)),
        )

    def expect(self, *sides: dict[tuple[str, str], int]) -> Any:
        legs = [
            leg(name, D if change < 0 else C, abs(change), currency)
            for side in sides
            for (name, currency), change in side.items()
        ]
        net: dict[tuple[str, str], int] = defaultdict(int)
        for side in sides:
            for place, change in side.items():
                net[place] += change
        outcome = self.do(self.ledger.post(pb.NewTransaction(legs=legs)))
        if self.model.moves(net):
            assert isinstance(outcome, pb.Transaction), outcome
            return (outcome.transaction_id, dict(net))
        assert isinstance(outcome, faults.InsufficientFunds), outcome
        return multiple()

    @rule(target=holds, source=st.sampled_from(NAMES), target_account=accounts, amount=amounts)
    def hold(self, source: str, target_account: str, amount: int) -> Any:
        outcome = self.do(self.ledger.hold(source, target_account, amount))
        place = (source, "EUR")
        if self.model.has[place] - self.model.promised[place] < amount:
            assert isinstance(outcome, faults.InsufficientFunds), outcome
            return multiple()
        self.model.promised[place] += amount
        self.held[outcome.hold_id] = ModelHold(source, target_account, amount)
        return outcome.hold_id

    @rule(hold_id=holds, amount=st.integers(0, 300), keep_rest=st.booleans())
    def capture(self, hold_id: str, amount: int, keep_rest: bool) -> None:
        hold = self.held[hold_id]
        outcome = self.do(self.ledger.capture(hold_id, amount, keep_rest=keep_rest))
        if not hold.open:
            assert isinstance(outcome, faults.HoldResolved), outcome
        elif amount > hold.left:
            assert isinstance(outcome, faults.CaptureTooLarge), outcome
        else:
            assert isinstance(outcome, pb.Transaction), outcome
            taken = amount or hold.left
            place = (hold.source, "EUR")
            self.model.has[place] -= taken
            self.model.has[hold.target, "EUR"] += taken
            hold.open = keep_rest and taken < hold.left
            self.model.promised[place] -= taken if hold.open else hold.left
            hold.left -= taken

    @rule(hold_id=consumes(holds))
    def void(self, hold_id: str) -> None:
        hold = self.held[hold_id]
        outcome = self.do(self.ledger.void(hold_id))
        assert isinstance(outcome, faults.HoldResolved) == (not hold.open), outcome
        if hold.open:
            self.model.promised[hold.source, "EUR"] -= hold.left
            hold.open = False

    @rule(done=posted)
    def revert(self, done: tuple[str, dict[tuple[str, str], int]]) -> None:
        transaction_id, net = done
        outcome = self.do(self.ledger.revert(transaction_id))
        if transaction_id in self.reverted:
            assert isinstance(outcome, faults.TransactionNotRevertible), outcome
        elif self.model.moves({place: -change for place, change in net.items()}):
            assert isinstance(outcome, pb.Transaction), outcome
            self.reverted.add(transaction_id)
        else:
            assert isinstance(outcome, faults.InsufficientFunds), outcome

    @rule(target=keys, amount=st.integers(1, 50))
    def post_with_key(self, amount: int) -> Any:
        self.count += 1
        key = f"key {self.count}"
        first = self.do(self.ledger.post(transfer(WORLD, NAMES[0], amount), key=key))
        assert self.model.moves({(WORLD, "EUR"): -amount, (NAMES[0], "EUR"): amount})
        return (key, amount, first)

    @rule(known=keys, more=st.integers(0, 1))
    def repeat(self, known: tuple[str, int, pb.Transaction], more: int) -> None:
        key, amount, first = known
        again = self.do(self.ledger.post(transfer(WORLD, NAMES[0], amount + more), key=key))
        assert isinstance(again, IdempotencyKeyReused) if more else again == first

    @invariant()
    def balances_are_the_models(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for name in EVERYONE:
            for currency in ("EUR", "JPY"):
                balance = self.runner.run(self.ledger.balance(name, currency))
                place = (name, currency)
                assert balance.balance == self.model.has[place]
                assert balance.available == self.model.has[place] - self.model.promised[place]

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            assert self.runner.run(problems(self.platform, self.ledger.tenant)) == []
            self.runner.run(self.ledger.clients.stop())
        self.runner.close()


def test_the_ledger_answers_as_the_model_does(platform: Platform) -> None:
    LedgerMachine.platform = platform
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("weights", [[8000, 2000], [1, 1, 1], [0, 10_000], [3333, 3333, 3334]])
def test_parts_add_up_and_are_off_by_less_than_one(weights: list[int]) -> None:
    for amount in (0, 1, 2, 3, 7, 99, 1001, 2**63 - 1):
        parts = split(amount, weights)
        assert sum(parts) == amount
        for part, weight in zip(parts, weights, strict=True):
            assert abs(part * sum(weights) - amount * weight) < sum(weights)


def test_of_equal_remainders_the_first_gets_more() -> None:
    assert split(1, [1, 1]) == [1, 0]
    assert split(5, [1, 1, 1]) == [2, 2, 1]
