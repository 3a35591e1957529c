"""A search finds what was meant, counts what is there, and leads through all of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.clients import Clients
from services.chassis.context import OPERATOR
from services.commerce.puabo_nuki_product_catalog import search
from tests.commerce.shops import Json, Shop
from tests.platforms import Platform

SIZES: Json = {"options": [{"name": "Size", "values": ["S", "M", "L"]}]}


def sizes(*values: str) -> list[Json]:
    return [{"optionValues": [value]} for value in values]


async def furnished(shop: Shop) -> Shop:
    """With six products and a list of prices."""
    await shop.put("/api/v1/attributes/material", {"name": "Material", "kind": "ATTRIBUTE_KIND_TEXT", "facet": True})
    prices = await shop.price_list()
    for title, brand, category, values, material, units in (
        ("Linen dress", "Fjord", "women/dresses", "SM", "linen", 9900),
        ("Linen shirt", "Fjord", "men/shirts", "ML", "linen", 5900),
        ("Cotton shirt", "Nord", "men/shirts", "SML", "cotton", 4900),
        ("Wool coat", "Nord", "women/coats", "M", "wool", 24900),
        ("Running shoes", "Nord", "women/shoes", "L", "mesh", 12900),
    ):
        attributes = [{"key": "material", "values": [material]}]
        product = await shop.product(
            title, *sizes(*values), brand=brand, category=category, language="en", attributes=attributes, **SIZES
        )
        await shop.set_price(prices, product, units)
    await shop.product("Häkelmütze für die Häuser", brand="Süd", language="de")
    return shop


@pytest.fixture(scope="module")
async def wardrobe(platform: Platform) -> AsyncIterator[Shop]:
    """A furnished shop for all who only look."""
    clients = Clients(platform.settings, OPERATOR, None)
    async with httpx.AsyncClient(base_url=platform.http_url, timeout=15) as http:
        yield await furnished(await Shop.open(platform, await platform.new_tenant(), http, clients))
    await clients.stop()


def counts(answer: Json, key: str) -> dict[str, int]:
    return {v["value"]: v["count"] for facet in answer["facets"] if facet["key"] == key for v in facet["values"]}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("linen", {"Linen dress", "Linen shirt"}),
        ("LINEN  Shirt", {"Linen shirt"}),
        ("shirts", {"Linen shirt", "Cotton shirt"}),
        ("the shirt for a king", set()),
        ("the shirt", {"Linen shirt", "Cotton shirt"}),
        ("run shoe", {"Running shoes"}),
        ("coa", {"Wool coat"}),
        ("lin dres", set()),
        ("linen dres", {"Linen dress"}),
        ("linnen dress", {"Linen dress"}),
        ("drses", {"Linen dress"}),
        ("runing shose", {"Running shoes"}),
        ("hakelmutze", {"Häkelmütze für die Häuser"}),
        ("HÄKELMÜTZEN", {"Häkelmütze für die Häuser"}),
        ("haus", {"Häkelmütze für die Häuser"}),
        ("linen-shirt-m", {"Linen shirt"}),
        ("xyzzy", set()),
        ("linen xyzzy", set()),
        ("'; DROP TABLE products; --", set()),
        ("& | ! ( ) :* <->", set()),
        ("fjord", {"Linen dress", "Linen shirt"}),
    ],
)
async def test_a_query_finds_what_is_meant(wardrobe: Shop, query: str, expected: set[str]) -> None:
    assert set(await wardrobe.titles(query)) == expected


async def test_a_corrected_query_says_so(wardrobe: Shop) -> None:
    assert (await wardrobe.search("linnen dress"))["correctedQuery"] == "linen dress"
    assert (await wardrobe.search("linen dress"))["correctedQuery"] == ""


async def test_titles_count_more_than_descriptions(shop: Shop) -> None:
    await shop.product("Scarf", description="Goes well with a coat.", language="en")
    await shop.product("Coat", language="en")
    assert await shop.titles("coat") == ["Coat", "Scarf"]


async def test_facets_count_what_their_filter_would_give(wardrobe: Shop) -> None:
    everything = await wardrobe.search()
    assert everything["total"] == 6
    for facet in everything["facets"]:
        for value in facet["values"]:
            found = await wardrobe.search(filters=f"{facet['key']}:{value['value']}")
            assert found["total"] == value["count"], (facet["key"], value)
    assert counts(everything, "category")["women"] == 3
    assert counts(everything, "option.Size") == {"M": 4, "L": 3, "S": 2}
    assert {facet["key"]: facet["name"] for facet in everything["facets"]}["attribute.material"] == "Material"


async def test_values_of_a_facet_widen_and_facets_narrow(wardrobe: Shop) -> None:
    both = await wardrobe.search(filters=["brand:Fjord", "brand:Nord"])
    assert both["total"] == 5
    narrowed = await wardrobe.search(filters=["brand:Fjord", "option.Size:S"])
    assert [result["title"] for result in narrowed["results"]] == ["Linen dress"]
    # Each facet counts as if it had no filter of its own, so that a buyer sees what else there is.
    assert counts(narrowed, "brand") == {"Fjord": 1, "Nord": 1}
    assert counts(narrowed, "option.Size") == {"M": 2, "L": 1, "S": 1}
    assert counts(narrowed, "attribute.material") == {"linen": 1}
    [brand] = [facet for facet in narrowed["facets"] if facet["key"] == "brand"]
    assert {value["value"]: value["selected"] for value in brand["values"]} == {"Fjord": True, "Nord": False}
    assert (await wardrobe.search(filters="brand:Nobody"))["total"] == 0


async def test_only_the_facets_asked_for_are_counted(wardrobe: Shop) -> None:
    assert [facet["key"] for facet in (await wardrobe.search(facets="brand"))["facets"]] == ["brand"]
    assert (await wardrobe.search(without_facets=True))["facets"] == []


async def test_prices_order_and_narrow(wardrobe: Shop) -> None:
    ascending = await wardrobe.titles(order="SEARCH_ORDER_PRICE_ASCENDING", currency="EUR")
    assert ascending[:2] == ["Cotton shirt", "Linen shirt"]
    assert ascending[-1].startswith("Häkel"), "what has no price comes last"
    descending = await wardrobe.titles(order="SEARCH_ORDER_PRICE_DESCENDING", currency="EUR")
    assert descending == [*reversed(ascending[:-1]), ascending[-1]]
    bounds: Json = {"min_price": 5900, "max_price": 12900}
    assert set(await wardrobe.titles(currency="EUR", **bounds)) == {"Linen dress", "Linen shirt", "Running shoes"}
    assert await wardrobe.titles(currency="USD", **bounds) == []


@pytest.mark.parametrize(
    "order", ["RELEVANCE", "NEWEST", "PRICE_ASCENDING", "PRICE_DESCENDING", "TITLE", "UNSPECIFIED"]
)
@pytest.mark.parametrize("query", ["", "s"])
async def test_pages_show_every_result_once(wardrobe: Shop, order: str, query: str) -> None:
    params: dict[str, Any] = {"order": f"SEARCH_ORDER_{order}", "currency": "EUR"}
    at_once = await wardrobe.titles(query, page_size=1000, **params)
    seen, token = [], ""
    while True:
        page = await wardrobe.search(query, page_size=1, page_token=token, **params)
        seen += [result["title"] for result in page["results"]]
        assert page["total"] == len(at_once)
        token = page["nextPageToken"]
        if not token:
            break
    assert seen == at_once
    assert len(set(seen)) == len(seen)


async def test_a_change_is_found_and_what_was_there_is_not(shop: Shop) -> None:
    wardrobe = await furnished(shop)
    coat = (await wardrobe.get("/api/v1/products", slug="wool-coat"))["products"][0]
    path = f"/api/v1/products/{coat['productId']}"
    await wardrobe.patch(path, {"title": "Cashmere cape", "brand": "Ost"}, "title,brand")
    assert await wardrobe.titles("cashmere") == await wardrobe.titles(filters="brand:Ost") == ["Cashmere cape"]
    old = ("category:women/coats", "attribute.material:wool")
    assert [(await wardrobe.search(filters=each))["total"] for each in old] == [1, 1]
    await wardrobe.patch(path, {"category": "women/capes", "attributes": []}, "category,attributes")
    assert [(await wardrobe.search(filters=each))["total"] for each in old] == [0, 0]


async def test_products_published_at_once_are_all_found(shop: Shop) -> None:
    """Those who publish the same words at the same time do not stand in each other's way."""
    await asyncio.gather(*(shop.product(f"Wool coat {number}", brand="Nord", tags=["new"]) for number in range(20)))
    answer = await shop.search("wool coat")
    assert (answer["total"], counts(answer, "brand")) == (20, {"Nord": 20})
    words = "SELECT documents FROM puabo_nuki_product_catalog.search_words WHERE tenant_id = $1 AND word = 'wool'"
    assert await shop.value(words) == 20


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("linnen", ["linen"]),
        ("coct", ["coat"]),
        ("caot", ["coat"]),
        ("coa", []),
        ("runnning", ["running"]),
        ("dresssses", []),
    ],
)
def test_a_slip_or_two_are_forgiven(word: str, expected: list[str]) -> None:
    assert search.nearest(word, {"linen": 3, "coat": 2, "running": 1, "dress": 1}) == expected


def test_among_words_equally_near_the_frequent_one_comes_first() -> None:
    assert search.nearest("shirs", {"shirt": 2, "skirs": 1, "shire": 5}) == ["shire", "shirt", "skirs"]


@given(st.text(max_size=60))
def test_any_text_is_cut_into_words_that_need_no_escaping(text: str) -> None:
    words = search.words_of(text)
    assert all(word.isalnum() or any(char.isalnum() for char in word) for word in words)
    assert not any(set(word) & set("'\\:*&|!() ") for word in words)
    assert search.words_of(" ".join(words)) == words
