"""The service is killed while it numbers invoices: afterwards no number is missing and none is there twice."""

import asyncio
import signal
from collections.abc import Iterator
from functools import partial

import httpx
import pytest

from tests.chaos.processes import replaced, send, status
from tests.finance.invoices import Invoices
from tests.platforms import Platform, eventually

pytestmark = pytest.mark.xdist_group("invoice crash")
DRAFTS, KILLS = 60, 3


@pytest.fixture
def own_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    platform = Platform(tmp_path_factory.mktemp("crash") / "home")
    try:
        platform.up("--only", "identity", "--only", "finance")
        yield platform
    finally:
        platform.down()


async def test_no_number_is_missing_after_the_service_was_killed_again_and_again(own_platform: Platform) -> None:
    tenant = await own_platform.new_tenant()
    async with httpx.AsyncClient(base_url=own_platform.http_url, timeout=20) as http:
        invoices = Invoices(http, await tenant.sign_in("owner"))
        await invoices.set_seller()
        drafts = [await invoices.draft() for _ in range(DRAFTS)]
        answered: dict[str, int] = {}

        async def finalize(draft: dict[str, str]) -> None:
            """As long as it takes: a call that was cut off is made again."""
            for _ in range(400):
                try:
                    answer = await invoices.post(f"/invoices/{draft['invoiceId']}:finalize")
                except httpx.TransportError:
                    continue
                if answer.status_code == 200:
                    answered[draft["invoiceId"]] = answer.json()["invoice"]["seriesNumber"]
                    return
                assert answer.status_code in (429, 503, 504), answer.text
                await asyncio.sleep(0.1)
            pytest.fail("the service did not come back")

        async def kill() -> None:
            for kill in range(1, KILLS + 1):
                async with asyncio.timeout(60):
                    while len(answered) < kill * DRAFTS // (KILLS + 2):  # noqa: ASYNC110  progress is the signal
                        await asyncio.sleep(0.005)
                victim = status(own_platform, "finance")
                send(victim, signal.SIGKILL)
                await asyncio.to_thread(eventually, partial(replaced, own_platform, victim))

        await asyncio.gather(kill(), *(finalize(draft) for draft in drafts))
        year = int((await invoices.read(drafts[0]))["issueDate"][:4])
        assert sorted(answered.values()) == list(range(1, DRAFTS + 1))
        assert await invoices.verify(year=year) == {"documents": DRAFTS, "lastNumber": DRAFTS, "missing": []}
        for draft in drafts[:10]:
            assert (await invoices.read(draft))["seriesNumber"] == answered[draft["invoiceId"]]
