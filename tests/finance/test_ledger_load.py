"""The ledger under many callers at once: nobody is overdrawn, nothing is lost, and the books add up all the while."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from nexus.finance.ledger_mgr.v1 import faults
from tests.finance.ledgers import ALICE, BOB, WORLD, Ledger, ledger_of, problems, transfer
from tests.platforms import Platform, Tenant


@pytest.fixture
async def ledger(platform: Platform, tenant: Tenant) -> AsyncIterator[Ledger]:
    async with ledger_of(platform, tenant) as ledger:
        yield ledger


async def test_a_hundred_spenders_of_ten_coins_spend_ten(ledger: Ledger) -> None:
    await ledger.open_usual(alice=10)
    outcomes = await asyncio.gather(*(ledger.post(transfer(ALICE, BOB, 1)) for _ in range(100)), return_exceptions=True)
    kinds = Counter(type(outcome).__name__ for outcome in outcomes)
    assert kinds == {"Transaction": 10, "InsufficientFunds": 90}
    assert (await ledger.balance(BOB)).balance == 10


async def test_holds_and_postings_race_for_the_same_money(ledger: Ledger) -> None:
    await ledger.open_usual(alice=50)
    calls: list[Any] = [ledger.hold(ALICE, BOB, 1) for _ in range(40)]
    calls += [ledger.post(transfer(ALICE, BOB, 1)) for _ in range(40)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, faults.InsufficientFunds) for outcome in outcomes) == 30
    assert (await ledger.balance(ALICE)).available == 0


async def test_the_same_key_at_once_happens_once(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    posts = await asyncio.gather(*(ledger.post(transfer(ALICE, BOB, 7), key="same") for _ in range(50)))
    assert len({post.transaction_id for post in posts}) == 1
    assert (await ledger.balance(BOB)).balance == 7


async def test_one_hold_is_captured_once_by_many(ledger: Ledger) -> None:
    await ledger.open_usual(alice=100)
    hold = await ledger.hold(ALICE, BOB, 100)
    outcomes = await asyncio.gather(*(ledger.capture(hold.hold_id) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(outcome, faults.HoldResolved) for outcome in outcomes) == 19
    assert (await ledger.balance(BOB)).balance == 100


async def test_the_books_add_up_at_every_moment_of_a_storm(ledger: Ledger, platform: Platform, tenant: Tenant) -> None:
    names = [f"users:{number}" for number in range(8)]
    await ledger.open_usual()
    await ledger.open(*names)
    await asyncio.gather(*(ledger.post(transfer(WORLD, name, 50)) for name in names))
    running = True

    async def spend(number: int) -> int:
        refused = 0
        for turn in range(40):
            source, target = names[number % 8], names[(number + turn) % 7]
            try:
                if turn % 5 == 4:
                    hold = await ledger.hold(source, target, 3)
                    await (ledger.capture(hold.hold_id, 2) if turn % 2 else ledger.void(hold.hold_id))
                else:
                    await ledger.post(transfer(source, target, 1 + (number * turn) % 20))
            except faults.InsufficientFunds:
                refused += 1
        return refused

    async def watch() -> list[list[Mapping[str, Any]]]:
        seen = []
        while running:
            seen.append(await problems(platform, tenant))
        return seen

    watching = asyncio.create_task(watch())
    refused = await asyncio.gather(*(spend(number) for number in range(32)))
    running = False
    seen = await watching

    assert len(seen) > 3
    assert not any(seen)
    assert 0 < sum(refused) < 32 * 40
    assert sum([(await ledger.balance(name)).balance for name in names]) == 400


async def test_postings_of_many_callers_share_transactions(ledger: Ledger, platform: Platform, tenant: Tenant) -> None:
    await ledger.open_usual(alice=1000)
    await asyncio.gather(*(ledger.post(transfer(ALICE, BOB, 1)) for _ in range(300)))
    admin = await platform.admin()
    try:
        commits = await admin.fetchval(
            "SELECT count(DISTINCT xmin::text) FROM ledger_mgr.log WHERE tenant_id = $1", tenant.tenant_id
        )
    finally:
        await admin.close()
    assert commits < 150
