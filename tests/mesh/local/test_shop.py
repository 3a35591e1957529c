"""`nexus seed --shop`: a shop that a buyer can search, filled once however often it is asked for."""

import asyncio
import io
from typing import Any

import httpx
import pytest
from PIL import Image

from mesh.local import shop, wardrobe
from mesh.local.seed import DemoCredentials, seed
from tests.platforms import Platform

pytestmark = pytest.mark.xdist_group("shop")

DEMO = {"x-nexus-tenant": "demo"}
FEW = 20


async def rows(platform: Platform) -> list[int]:
    """How much there is of everything that the shop is made of."""
    admin = await platform.admin()
    schema, stock = "puabo_nuki_product_catalog", "puabo_nuki_inventory_mgr"
    tables = [f"{schema}.{name}" for name in ("products", "variants", "media", "price_entries", "collection_products")]
    try:
        return [
            await admin.fetchval(f"SELECT count(*) FROM {table} WHERE tenant_id = 'demo'")
            for table in (*tables, f"{schema}.collections", f"{schema}.price_lists", f"{stock}.movements")
        ]
    finally:
        await admin.close()


async def test_the_shop_is_filled_once(platform: Platform, http: httpx.AsyncClient) -> None:
    seen: list[tuple[str, int, int]] = []
    await seed(platform.settings)

    async def fill() -> None:
        await shop.fill(platform.settings, DemoCredentials(), lambda *step: seen.append(step), FEW)

    await fill()
    once = await rows(platform)
    assert all(once), once
    assert {what for what, done, total in seen if done == total} == {"products", "pictures", "stock"}
    await fill()
    assert await rows(platform) == once

    async def ask(**params: Any) -> Any:
        answer = await http.get("/api/v1/shop/products", params=params, headers=DEMO)
        assert answer.status_code == 200, answer.text
        return answer.json()

    everything = await ask(page_size=1000)
    assert everything["total"] >= FEW
    assert {"brand", "category", "option.Colour", "option.Size", "attribute.material"} <= {
        facet["key"] for facet in everything["facets"]
    }
    pictures = [result["mediaId"] for result in everything["results"]]
    assert all(pictures)
    picture = await http.get(f"/api/v1/shop/media/{pictures[0]}", headers=DEMO)
    assert Image.open(io.BytesIO(picture.content)).size == (400, 500)
    for currency in ("EUR", "USD", "GBP"):
        found = await ask(currency=currency, page_size=1000)
        assert all(result["price"]["currency"] == currency for result in found["results"])
    reduced = [result for result in (await ask(currency="EUR", page_size=1000))["results"] if "regularPrice" in result]
    assert reduced
    assert all(int(each["price"]["minorUnits"]) < int(each["regularPrice"]["minorUnits"]) for each in reduced)
    for collection in ("new-arrivals", "favourites", "linen"):
        assert (await ask(collection=collection))["total"], collection


async def test_the_whole_range_is_two_hundred_products_that_differ() -> None:
    garments = wardrobe.garments()
    variants = [row for garment in garments for row in garment.rows()]
    assert len({garment.slug for garment in garments}) == len({garment.title for garment in garments}) == 200
    assert len({row["sku"] for row in variants}) == len(variants) > 1000
    drawn = await asyncio.to_thread(lambda: {garment.picture(garment.colours[0]) for garment in garments[:6]})
    assert len(drawn) == 6
    assert garments[3].picture("Ink") == wardrobe.Garment(3).picture("Ink"), "the same every time"
