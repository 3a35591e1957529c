"""`saga`: orders a second, from the full cart to the confirmed order, through the edge.

That is checkout and placing: stock reserved and committed, a payment authorized and captured, a label bought, the
invoice issued, the sale booked and settled.
"""

import asyncio
import time

import httpx

from services.chassis.clients import Clients
from services.chassis.context import OPERATOR
from services.chassis.ids import new_id
from tests.bench.measure import Result, compare
from tests.commerce.buyers import Buyer, all_is_well, furnish, stocked
from tests.commerce.shops import Json, Shop
from tests.platforms import Platform

BUYERS, ORDERS = 8, 80
BAR = "≥ 10 orders/s"


def run(platform: Platform) -> Result:
    with asyncio.Runner() as runner:
        return compare("saga", "orders/s", BAR, lambda: runner.run(_orders_a_second(platform)), rounds=3)


async def _orders_a_second(platform: Platform) -> float:
    clients = Clients(platform.settings, OPERATOR, None)
    async with httpx.AsyncClient(base_url=platform.http_url, timeout=60) as http:
        tenant = await platform.new_tenant()
        shop = await furnish(await Shop.open(platform, tenant, http, clients))
        variant = await stocked(shop, "Scarf", ORDERS)
        buyers = [await Buyer.of(shop) for _ in range(BUYERS)]
        openers = [(await buyers[number % BUYERS].guest_cart({variant: 1}))[1] for number in range(ORDERS)]
        started = time.perf_counter()
        await asyncio.gather(*(_buy(buyers[at], openers[at::BUYERS]) for at in range(BUYERS)))
        seconds = time.perf_counter() - started
        assert await all_is_well(shop) == []
    await clients.stop()
    return ORDERS / seconds


async def _buy(buyer: Buyer, openers: list[Json]) -> None:
    for opener in openers:
        order = (await buyer.post("/api/v1/orders", **opener, requestId=new_id()))["order"]
        placed = await buyer.place(order)
        await buyer.settled(placed["orderId"], "CONFIRMED")
