"""A process is killed at every step of an order: before it is done, after, while it is undone, while it is refunded.

Mostly it is the one that carries out the order, sometimes the one with billing, invoices and the ledger, or the one
with stock and shipping: before it has done its step, and after it has, before it could say so. Afterwards every order
is complete or undone, every customer charged at most once, and everything adds up: by SQL that shares no code with the
services.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.chassis.clients import Clients
from services.chassis.config import Settings
from services.chassis.context import OPERATOR
from services.chassis.ids import new_id
from services.commerce.puabo_nuki_order_processor.order import REFUND_PARTS, STEPS
from tests.chaos.processes import workers
from tests.commerce.buyers import Buyer, all_is_well, furnish, stocked
from tests.commerce.shops import Json, Shop, reason
from tests.platforms import Platform

pytestmark = pytest.mark.xdist_group("chaos")

FORWARD, CANCEL, MIDWAY, REFUND = "goes through", "is cancelled", "is cancelled midway", "is refunded"
HOLD_SECONDS, LEASE_SECONDS = 1.5, 4.5
"""A process dies so long after the first of its orders has come to its point: with all that have come to theirs.
The lease is longer, so that nobody goes on with them before."""
AT_ONCE, USERS = 40, 6
UNITS = 1_000


@dataclass(frozen=True)
class Case:
    fate: str
    point: str
    """When, what is done, and which step, as `crashes/sitecustomize.py` reads it."""
    victim: str = ""
    """The process that is killed; when empty, the one that carries out the order, which does nothing else."""


THEIRS = dict.fromkeys(STEPS, "finance") | dict.fromkeys(("reserve", "label", "commit"), "commerce")
"""In which process a step is done."""
CASES = [
    *(Case(FORWARD, f"{when} do {step}") for step in STEPS for when in ("before", "after")),
    *(Case(FORWARD, f"{when} record OrderConfirmed") for when in ("before", "recorded")),
    *(Case(CANCEL, f"{when} undo {step}") for step in STEPS for when in ("before", "after")),
    *(Case(CANCEL, f"{when} record OrderCancelled") for when in ("before", "recorded")),
    *(Case(MIDWAY, f"after do {step}") for step in list(STEPS)[1:]),
    *(Case(REFUND, f"{when} refund {part}") for part in REFUND_PARTS for when in ("before", "after")),
    *(Case(FORWARD, f"{when} do {step}", THEIRS[step]) for step in STEPS for when in ("before", "unanswered")),
    *(Case(CANCEL, f"{when} undo {step}", THEIRS[step]) for step in STEPS for when in ("before", "unanswered")),
]


class PatientBuyer(Buyer):
    """Whose calls are made again, with the same keys, until somebody answers."""

    async def ask(self, verb: str, path: str, body: Json | None = None, **params: Any) -> httpx.Response:
        for _ in range(2_000):
            try:
                answer = await super().ask(verb, path, body, **params)
            except httpx.TransportError:
                continue
            if answer.status_code not in (409, 429, 500, 502, 503, 504):
                return answer
            assert answer.status_code != 500 or reason(answer) != "INTERNAL", answer.text
            await asyncio.sleep(0.1)
        raise AssertionError(answer.text)


@pytest.fixture(scope="module")
def platform_to_kill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, Path]]:
    folder, home = tmp_path_factory.mktemp("crashes"), tmp_path_factory.mktemp("to-kill") / "home"
    (folder / "kills").mkdir()
    variables = {
        "TEST_ORDER_CRASHES": str(folder),
        "TEST_ORDER_RUN": str(Settings(home=home).run_dir),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "crashes"), os.environ.get("PYTHONPATH", "")]),
        "NEXUS_PUABO_NUKI_ORDER_PROCESSOR_LEASE": f"PT{LEASE_SECONDS:.0f}S",
        "NEXUS_PUABO_NUKI_ORDER_PROCESSOR_POLL_SECONDS": "0.3",
        "NEXUS_PUABO_NUKI_ORDER_PROCESSOR_LONGEST_WAIT": "1",
        "NEXUS_PUABO_NUKI_ORDER_PROCESSOR_WORKERS": "64",
        "NEXUS_LONGEST_RESTART_DELAY": "0.5",
        "NEXUS_BILLING_SERVICE_LEASE": "PT2S",
        "NEXUS_BILLING_SERVICE_ROUND_SECONDS": "1",
    }
    platform = Platform(home, variables=variables)
    only = [part for name in ("identity", "commerce", "finance") for part in ("--only", name)]
    platform.up(*only, "--replicas", "puabo-nuki-order-processor=3")
    yield platform, folder
    platform.down()


@pytest.fixture
async def shop(platform_to_kill: tuple[Platform, Path]) -> AsyncIterator[Shop]:
    platform, _ = platform_to_kill
    clients = Clients(platform.settings, OPERATOR, None)
    async with httpx.AsyncClient(base_url=platform.http_url, timeout=20) as http:
        yield await furnish(await Shop.open(platform, await platform.new_tenant(), http, clients))
    await clients.stop()


async def test_every_order_ends_whole_or_undone_wherever_somebody_dies(
    shop: Shop, platform_to_kill: tuple[Platform, Path]
) -> None:
    platform, folder = platform_to_kill
    variant = await stocked(shop, "Scarf", UNITS)
    before = workers(platform)

    killed: dict[Case, int] = {}
    turn = asyncio.Semaphore(AT_ONCE)
    users = [await shop.tenant.sign_in() for _ in range(USERS)]
    buyers = [await PatientBuyer(shop.tenant, shop.http, user).with_card() for user in users]

    async def live(number: int, case: Case) -> tuple[Case, str]:
        async with turn:
            return case, await carry(case, buyers[number % USERS])

    async def carry(case: Case, buyer: PatientBuyer) -> str:
        _, opener = await buyer.guest_cart({variant: 2})
        trap, partial = folder / opener["cartId"], folder / f".{opener['cartId']}"

        def set_trap() -> None:
            partial.write_text(f"{case.point} {HOLD_SECONDS} {case.victim}")
            partial.rename(trap)

        if case.fate in (FORWARD, MIDWAY):
            set_trap()
        order = (await buyer.post("/api/v1/orders", **opener, requestId=new_id()))["order"]
        path = f"/api/v1/orders/{order['orderId']}"
        await buyer.settled(order["orderId"], "OPEN", seconds=120)
        placing = {"paymentMethodId": buyer.card, "requestId": new_id()}
        placed = asyncio.create_task(buyer.post(f"{path}:place", **placing))
        if case.fate == MIDWAY:
            async with asyncio.timeout(120):
                while trap.exists():  # noqa: ASYNC110  the one that dies takes it away
                    await asyncio.sleep(0.05)
            await buyer.post(f"{path}:cancel")
        await placed
        if case.fate in (CANCEL, REFUND):
            await buyer.settled(order["orderId"], "CONFIRMED", seconds=120)
            set_trap()
        if case.fate == CANCEL:
            await buyer.post(f"{path}:cancel")
        elif case.fate == REFUND:
            body = {"lines": [{"line": 0, "quantity": 1}], "restock": True, "reason": "test", "requestId": new_id()}
            owner = PatientBuyer(shop.tenant, shop.http, shop.owner)
            await owner.post(f"/api/v1/order-desk/orders/{order['orderId']}:refund", **body)
        final = await buyer.settled(order["orderId"], "CONFIRMED", "CANCELLED", seconds=120)
        async with asyncio.timeout(120):
            while any(refund["state"] != "REFUND_STATE_DONE" for refund in final["refunds"]):
                await asyncio.sleep(0.1)
                final = await buyer.order(order["orderId"])
        assert not trap.exists(), f"nobody came there: {case}"
        killed[case] = int((folder / "kills" / opener["cartId"]).read_text())
        return str(final["state"]).removeprefix("ORDER_STATE_")

    ends = dict(await asyncio.gather(*(live(number, case) for number, case in enumerate(CASES))))
    assert len(ends) == len(CASES)
    wrong = {
        case: end
        for case, end in ends.items()
        if end != ("CONFIRMED" if case.fate in (FORWARD, REFUND) else "CANCELLED")
    }
    assert not wrong
    assert await all_is_well(shop) == []
    sold = sum(2 if case.fate == FORWARD else 1 for case in CASES if case.fate in (FORWARD, REFUND))
    assert await shop.level(variant) == (UNITS - sold, 0)
    after = workers(platform)
    assert killed.keys() == set(CASES)
    assert not set(killed.values()) & set(after.values()), "somebody was to die and lives"
    assert all(
        after[name] != before[name]
        for name in ("finance", "commerce", "puabo-nuki-order-processor.1", "puabo-nuki-order-processor.2")
    )
