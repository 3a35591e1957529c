"""`search`: how long a buyer waits for a page of results with facets, out of 10,000 products; and `search-typed`, the
same for what is typed word by word, mistakes and all, without facets.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import httpx

from nexus.commerce.puabo_nuki_product_catalog.v1.storefront_pb2 import SearchOrder, SearchProductsRequest
from nexus.commerce.puabo_nuki_product_catalog.v1.storefront_pb2_grpc import StorefrontServiceStub
from services.chassis.clients import Clients
from services.chassis.context import OPERATOR, acting_for
from tests.bench.measure import Result, compare
from tests.commerce.shops import Shop
from tests.commerce.test_imports import COLUMNS, run, table
from tests.platforms import Platform

PRODUCTS = 10_000
ROUNDS = 12
KINDS = ("dress", "shirt", "coat", "trousers", "skirt", "jumper", "scarf", "shoes", "boots", "hat", "jacket", "socks")
MATERIALS = ("linen", "cotton", "wool", "silk", "cashmere", "denim", "leather", "velvet", "corduroy", "jersey")
STYLES = ("striped", "plain", "dotted", "checked", "floral", "ribbed", "quilted", "knitted", "pleated", "cropped")
COLOURS = ("black", "white", "navy", "red", "olive", "sand", "rose", "mustard", "teal", "plum", "grey", "brown")

BROWSING: Sequence[dict[str, Any]] = (
    {"query": "wool coat"},
    {"query": "striped linen shirt", "filters": ["brand:Brand 3"]},
    {"query": "dress", "order": SearchOrder.SEARCH_ORDER_PRICE_ASCENDING},
    {"query": "linnen dres"},
    {"filters": ["category:kind-4", "option.Size:M"], "max_price": 9000},
    {"query": "cashm", "filters": ["option.Size:M", "brand:Brand 1", "brand:Brand 2"]},
    {"query": ""},
)
TYPED: Sequence[dict[str, Any]] = tuple(
    {"query": text, "without_facets": True, "page_size": 8}
    for text in ("s", "st", "stri", "striped v", "striped velv", "striped velvet tro", "stripped velvte", "navy booots")
)


def browsing(platform: Platform) -> Result:
    return _measure(platform, "search", "≤ 250 ms", BROWSING)


def typing(platform: Platform) -> Result:
    return _measure(platform, "search-typed", "≤ 150 ms", TYPED)


def _measure(platform: Platform, name: str, bar: str, queries: Sequence[dict[str, Any]]) -> Result:
    with asyncio.Runner() as runner:
        tenant = runner.run(_stocked(platform))
        return compare(name, "ms (p95)", bar, lambda: runner.run(_p95(platform, tenant, queries)), rounds=3)


async def _stocked(platform: Platform) -> str:
    """A tenant with this many products."""
    clients = Clients(platform.settings, OPERATOR, None)
    try:
        async with httpx.AsyncClient(base_url=platform.http_url, timeout=60) as http:
            shop = await Shop.open(platform, await platform.new_tenant(), http, clients)
            await shop.price_list("web-eur")
            await shop.put("/api/v1/attributes/material", {"kind": "ATTRIBUTE_KIND_TEXT", "facet": True})
            await run(shop, table(_rows(), (*COLUMNS, "category", "description", "language", "tags")))
            return shop.tenant.tenant_id
    finally:
        await clients.stop()


def _rows() -> list[list[object]]:
    combined = itertools.product(STYLES, MATERIALS, KINDS, COLOURS)
    return [
        [
            f"product-{number}",
            f"P-{number}",
            f"{style} {material} {kind} in {colour}".capitalize(),
            f"Brand {number % 40}",
            "published",
            "SML"[number % 3],
            material,
            1990 + number * 7 % 20_000,
            200,
            f"kind-{KINDS.index(kind)}/style-{STYLES.index(style)}",
            f"A {style} {kind} of {material} that goes well with {COLOURS[number % 5]} in season {number % 90}.",
            "en",
            f"season-{number % 8}|{colour}",
        ]
        for number, (style, material, kind, colour) in enumerate(itertools.islice(combined, PRODUCTS))
    ]


async def _p95(platform: Platform, tenant: str, queries: Sequence[dict[str, Any]]) -> float:
    clients = Clients(platform.settings, OPERATOR, None)
    stub: Any = clients.stub(StorefrontServiceStub)
    milliseconds = []
    try:
        with acting_for(tenant):
            for query in [*queries] * ROUNDS:
                began = time.perf_counter()
                await stub.SearchProducts(SearchProductsRequest(currency="EUR", **query))
                milliseconds.append((time.perf_counter() - began) * 1000)
    finally:
        await clients.stop()
    return statistics.quantiles(milliseconds, n=20)[-1]
