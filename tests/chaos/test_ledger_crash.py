"""A ledger that dies in the middle of its postings: what was answered is there, and everything is there once."""

import asyncio
import signal

import pytest

from nexus.finance.ledger_mgr.v1 import books_pb2 as pb
from nexus.type.v1.faults import Conflict, DeadlineExceeded, DependencyUnavailable
from services.chassis.ids import new_id
from tests.chaos.conftest import Hurt
from tests.chaos.processes import send, status
from tests.finance.ledgers import ALICE, BOB, ledger_of, problems, transfer
from tests.platforms import eventually

pytestmark = pytest.mark.xdist_group("chaos")

POSTINGS = 600
CALLERS = 24


async def test_no_posting_is_lost_or_made_twice_when_the_ledger_is_killed(hurt: Hurt) -> None:
    eventually(hurt.platform.ready)
    tenant = await hurt.platform.new_tenant()
    victim = status(hurt.platform, "finance")
    answered: dict[str, pb.Transaction] = {}
    tries = 0
    async with ledger_of(hurt.platform, tenant) as ledger:
        await ledger.open_usual(alice=POSTINGS)
        keys = [new_id() for _ in range(POSTINGS)]
        remaining = iter(keys)

        async def post(key: str) -> pb.Transaction:
            """As a careful client does: the same key again until there is an answer."""
            nonlocal tries
            for _ in range(300):
                tries += 1
                try:
                    return await ledger.post(transfer(ALICE, BOB, 1), key=key)
                except (DependencyUnavailable, DeadlineExceeded, Conflict):
                    await asyncio.sleep(0.1)
            pytest.fail("it never came back")

        async def caller() -> None:
            for key in remaining:
                answered[key] = await post(key)
                if len(answered) in (POSTINGS // 4, POSTINGS // 2):
                    send(status(hurt.platform, "finance"), signal.SIGKILL)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        assert tries > POSTINGS, "the kill was felt"
        assert (await ledger.balance(BOB)).balance == POSTINGS
        assert (await ledger.balance(ALICE)).balance == 0
        for key in keys[:: POSTINGS // 20]:
            assert await ledger.post(transfer(ALICE, BOB, 1), key=key) == answered[key]
    assert len({posted.transaction_id for posted in answered.values()}) == POSTINGS
    assert await problems(hurt.platform, tenant) == []
    assert status(hurt.platform, "finance").restarts > victim.restarts
