"""The process that imports a file is killed: whoever comes next goes on where it was, and no row is imported twice."""

import asyncio
import signal

import httpx
import pytest

from services.chassis.clients import Clients
from services.chassis.context import OPERATOR
from tests.chaos.conftest import Hurt
from tests.chaos.processes import send, status
from tests.commerce.shops import Shop
from tests.commerce.test_imports import finished, row, table, tally, upload

pytestmark = pytest.mark.xdist_group("chaos")

ROWS = 3000
SCHEMA = "puabo_nuki_product_catalog"


async def test_a_killed_import_goes_on_where_it_was(hurt: Hurt, edge: httpx.AsyncClient) -> None:
    clients = Clients(hurt.platform.settings, OPERATOR, None)
    shop = await Shop.open(hurt.platform, await hurt.platform.new_tenant(), edge, clients)
    await shop.price_list("web-eur")
    await shop.put("/api/v1/attributes/material", {"kind": "ATTRIBUTE_KIND_TEXT"})
    import_id = await upload(shop, table(row(number) for number in range(ROWS)))
    await shop.post(f"/api/v1/product-imports/{import_id}:start")
    done = 0
    async with asyncio.timeout(60):
        while not done:
            done = await shop.value(f"SELECT rows_done FROM {SCHEMA}.imports WHERE tenant_id = $1")
            await asyncio.sleep(0.02)
    assert done < ROWS, "there is something left to be done"
    victim = status(hurt.platform, "commerce")
    send(victim, signal.SIGKILL)
    async with asyncio.timeout(60):
        while status(hurt.platform, "commerce").restarts == victim.restarts:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await _ready(edge)
    state = await finished(shop, import_id)
    assert tally(state) == (ROWS, 0, 0, 0)
    for table_name in ("variants", "price_entries"):
        assert await shop.value(f"SELECT count(*) FROM {SCHEMA}.{table_name} WHERE tenant_id = $1") == ROWS
    told = f"SELECT count(*) FROM {SCHEMA}.events WHERE tenant_id = $1 AND type LIKE '%.ProductPublished'"
    assert await shop.value(told) == ROWS // 2
    assert (await shop.search("linen", facets="brand"))["total"] == ROWS // 2
    await clients.stop()


async def _ready(edge: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while (await edge.get("/readyz")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
