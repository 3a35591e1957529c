"""What something cost at a moment stays what it cost, whatever is put on record later."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from nexus.commerce.puabo_nuki_product_catalog.v1.faults import PricePast
from nexus.commerce.puabo_nuki_product_catalog.v1.prices_pb2 import Purchasable, ResolvedVariant
from services.chassis.clock import moment, now, timestamp
from services.commerce.puabo_nuki_product_catalog.prices import FOREVER, Entry, Period, periods, price_at
from tests.commerce.shops import Json, Shop, reason

DAY_ONE = datetime(2026, 1, 1, tzinfo=UTC)


def day(number: int) -> datetime:
    return DAY_ONE + timedelta(days=number)


def rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def line(product: Json, quantity: int = 1) -> Json:
    return {"variant_id": product["variants"][0]["variantId"], "quantity": quantity}


async def cost(shop: Shop, product: Json, at: Timestamp | None = None, **fields: Any) -> int | None:
    [resolved] = (await shop.resolve(line(product), at=at, **fields)).variants
    return resolved.price.minor_units if resolved.HasField("price") else None


def purchasable(resolved: ResolvedVariant) -> str:
    return Purchasable.Name(resolved.purchasable).removeprefix("PURCHASABLE_")


async def test_a_price_asked_about_again_is_the_same_while_prices_change(shop: Shop) -> None:
    """Buyers ask while a merchant changes the price as fast as can be; every answer can be reproduced."""
    product, prices = await shop.product("Shirt"), await shop.price_list()
    await shop.set_price(prices, product, 0)
    done = asyncio.Event()
    answers: list[tuple[Timestamp, int]] = []

    async def change() -> None:
        for number in range(1, 25):
            await shop.set_price(prices, product, number)
        done.set()

    async def ask() -> None:
        while not done.is_set():
            answer = await shop.resolve(line(product))
            answers.append((answer.at_time, answer.variants[0].price.minor_units))

    await asyncio.gather(change(), *(ask() for _ in range(4)))
    assert len({units for _, units in answers}) > 5, "prices were read while they changed"
    again = [(at, await cost(shop, product, at)) for at, _ in answers[:: max(1, len(answers) // 60)]]
    assert again == answers[:: max(1, len(answers) // 60)]


async def test_a_scheduled_price_comes_and_goes_by_itself(shop: Shop) -> None:
    product, prices = await shop.product("Shirt"), await shop.price_list()
    await shop.set_price(prices, product, 5000)
    start, end = now() + timedelta(milliseconds=1500), now() + timedelta(milliseconds=3000)
    await shop.set_price(prices, product, 4000, startTime=rfc3339(start), endTime=rfc3339(end))
    seen: dict[int, list[datetime]] = {}
    shown: set[int] = set()
    while now() < end + timedelta(milliseconds=300):
        answer = await shop.resolve(line(product))
        seen.setdefault(answer.variants[0].price.minor_units, []).append(moment(answer.at_time))
        shown.add(int((await shop.search("shirt", currency="EUR"))["results"][0]["price"]["minorUnits"]))
    assert all(start <= at < end for at in seen[4000])
    assert not any(start <= at < end for at in seen[5000])
    assert shown == {4000, 5000}


async def test_the_search_shows_the_price_that_an_order_would_have(shop: Shop) -> None:
    options: Json = {"options": [{"name": "Size", "values": ["S", "M"]}]}
    product = await shop.product("Shirt", {"optionValues": ["S"]}, {"optionValues": ["M"]}, **options)
    regular = await shop.price_list("regular")
    sale = await shop.price_list("sale", kind="PRICE_LIST_KIND_SALE", priority=10, taxIncluded=True)
    await shop.set_price(regular, product, 5000)
    small = {"variants": product["variants"][:1]}
    await shop.set_price(sale, small, 3900)
    [result] = (await shop.search("shirt", currency="EUR"))["results"]
    assert [result[name]["minorUnits"] for name in ("price", "highestPrice", "regularPrice")] == [
        "3900",
        "5000",
        "5000",
    ]
    [resolved] = (await shop.resolve(line(small))).variants
    assert (resolved.price.minor_units, resolved.regular_price.minor_units, resolved.tax_included) == (3900, 5000, True)
    shown = (await shop.visit(f"/api/v1/shop/products/{product['slug']}", currency="EUR")).json()
    assert [variant["price"]["minorUnits"] for variant in shown["variants"]] == ["3900", "5000"]
    assert shown["variants"][0]["regularPrice"]["minorUnits"] == "5000"
    before = timestamp(now())
    await shop.post(f"/api/v1/price-lists/{sale}:end")
    assert await cost(shop, small) == 5000
    assert await cost(shop, small, before) == 3900
    [result] = (await shop.search("shirt", currency="EUR"))["results"]
    assert (result["price"]["minorUnits"], result.get("regularPrice")) == ("5000", None)


async def test_markets_are_kept_apart(shop: Shop) -> None:
    product = await shop.product("Shirt")
    for key, currency, channel, units in (
        ("eur", "EUR", "default", 5000),
        ("usd", "USD", "default", 5500),
        ("pos", "EUR", "berlin", 4500),
    ):
        await shop.set_price(await shop.price_list(key, currency, channel=channel), product, units)
    assert await cost(shop, product) == 5000
    assert await cost(shop, product, currency="USD") == 5500
    assert await cost(shop, product, channel="berlin") == 4500
    assert await cost(shop, product, channel="berlin", currency="USD") is None


async def test_larger_quantities_may_cost_less(shop: Shop) -> None:
    product, prices = await shop.product("Shirt"), await shop.price_list()
    await shop.set_price(prices, product, 5000)
    await shop.set_price(prices, product, 4500, minQuantity=10)
    answer = await shop.resolve(line(product, 9), line(product, 10))
    assert [each.price.minor_units for each in answer.variants] == [5000, 4500]


async def test_each_line_says_whether_it_can_be_bought(shop: Shop, other_shop: Shop) -> None:
    prices = await shop.price_list()
    shirt, draft, free = [
        await shop.product(title, {"sku": title}, publish=title != "draft") for title in ("shirt", "draft", "free")
    ]
    foreign = await other_shop.product("foreign")
    for product in (shirt, draft):
        await shop.set_price(prices, product, 5000)
    answer = await shop.resolve({"sku": "shirt"}, line(draft), line(free), {"sku": "nothing"}, line(foreign))
    assert [purchasable(each) for each in answer.variants] == [
        *("YES", "NOT_PUBLISHED", "NO_PRICE", "UNKNOWN_VARIANT", "UNKNOWN_VARIANT")
    ]
    assert answer.variants[0].product_title == "shirt"
    await shop.set_price(prices, shirt, None)
    assert purchasable((await shop.resolve({"sku": "shirt"})).variants[0]) == "NO_PRICE"


async def test_the_past_cannot_be_priced_nor_the_future_asked_about(shop: Shop) -> None:
    product, prices = await shop.product("Shirt"), await shop.price_list()
    variant = product["variants"][0]["variantId"]
    yesterday, tomorrow = (rfc3339(now() + timedelta(days=days)) for days in (-1, 1))
    path = f"/api/v1/price-lists/{prices}"
    body = {"prices": [{"variantId": variant, "minorUnits": 1, "startTime": yesterday}]}
    assert reason(await shop.ask("POST", f"{path}:setPrices", body)) == "PRICE_PAST"
    assert reason(await shop.ask("POST", f"{path}:end", {"endTime": yesterday})) == "PRICE_PAST"
    with pytest.raises(PricePast):
        await cost(shop, product, timestamp(now() + timedelta(days=1)))
    await shop.post(f"{path}:end")
    assert reason(await shop.ask("POST", f"{path}:end", {"endTime": tomorrow})) == "PRICE_LIST_ENDED"
    body = {"prices": [{"variantId": variant, "minorUnits": 1}]}
    assert reason(await shop.ask("POST", f"{path}:setPrices", body)) == "PRICE_LIST_ENDED"


async def test_what_is_on_record_stays_there(shop: Shop) -> None:
    product, prices = await shop.product("Shirt"), await shop.price_list()
    await shop.set_price(prices, product, 5000)
    for table, change in (("price_entries", "minor_units = 1"), ("price_lists", "priority = 9")):
        name = f"puabo_nuki_product_catalog.{table}"
        for statement in (f"UPDATE {name} SET {change}", f"DELETE FROM {name}"):
            with pytest.raises(asyncpg.RaiseError, match="append-only"):
                await shop.value(f"{statement} WHERE tenant_id = $1 RETURNING true")
    path = f"/api/v1/products/{product['productId']}"
    await shop.post(f"{path}:unpublish")
    assert (await shop.ask("DELETE", path)).status_code == 200
    history = (await shop.get(f"/api/v1/variants/{product['variants'][0]['variantId']}/prices"))["entries"]
    assert [entry["price"] for entry in history] == [{"currency": "EUR", "minorUnits": "5000"}]
    assert history[0]["actor"] == shop.owner.user_id


async def test_prices_are_set_all_or_none(shop: Shop) -> None:
    product, prices = await shop.product("Shirt"), await shop.price_list()
    variant = product["variants"][0]["variantId"]
    body = {"prices": [{"variantId": each, "minorUnits": 100} for each in (variant, prices)]}
    assert reason(await shop.ask("POST", f"/api/v1/price-lists/{prices}:setPrices", body)) == "VARIANT_NOT_FOUND"
    assert await cost(shop, product) is None
    taken = {"priceList": {"key": "web-eur", "currency": "EUR"}}
    assert reason(await shop.ask("POST", "/api/v1/price-lists", taken)) == "PRICE_LIST_TAKEN"


async def test_another_tenant_sets_and_sees_no_prices(shop: Shop, other_shop: Shop) -> None:
    product, prices = await shop.product("Shirt"), await shop.price_list()
    mine = await other_shop.product("Shirt")
    body = {"prices": [{"variantId": mine["variants"][0]["variantId"], "minorUnits": 1}]}
    assert (
        reason(await other_shop.ask("POST", f"/api/v1/price-lists/{prices}:setPrices", body)) == "PRICE_LIST_NOT_FOUND"
    )
    own = await other_shop.price_list()
    body = {"prices": [{"variantId": product["variants"][0]["variantId"], "minorUnits": 1}]}
    assert reason(await other_shop.ask("POST", f"/api/v1/price-lists/{own}:setPrices", body)) == "VARIANT_NOT_FOUND"


def entry(number: int, units: int | None, start: int, end: int | None = None, **fields: Any) -> Entry:
    return Entry(
        entry_id=str(number),
        sequence=number,
        price_list_id=fields.pop("price_list_id", "regular"),
        variant_id=fields.pop("variant_id", "shirt"),
        minor_units=units,
        min_quantity=1,
        start=day(start),
        end=day(end) if end is not None else FOREVER,
        **fields,
    )


def test_a_price_set_during_a_sale_holds_after_it() -> None:
    entries = [entry(1, 50, 0), entry(2, 40, 10, 20), entry(3, 55, 5)]
    found = [price_at(entries, day(number)) for number in (0, 5, 10, 19, 20)]
    assert [price.minor_units for price in found if price] == [50, 55, 40, 40, 55]
    assert price_at(entries, day(-1)) is None


ENTRIES = st.lists(
    st.builds(
        lambda number, units, start, length, variant, sale: entry(
            number,
            units,
            start,
            start + length if length else None,
            variant_id=variant,
            sale=sale,
            priority=int(sale),
            price_list_id="sale" if sale else "regular",
        ),
        st.integers(1, 10**6),
        st.none() | st.integers(0, 9),
        st.integers(0, 12),
        st.integers(0, 6),
        st.sampled_from(["shirt", "shoes"]),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda entry: entry.sequence,
)


@given(entries=ENTRIES, since=st.integers(0, 10), at=st.integers(0, 20))
def test_periods_say_what_the_entries_say_at_every_moment(entries: list[Entry], since: int, at: int) -> None:
    found = periods(entries, day(since))
    for one, other in pairwise(found):
        assert one.end <= other.start
    asked = day(since + at)
    prices = [
        price
        for variant in ("shirt", "shoes")
        if (price := price_at([each for each in entries if each.variant_id == variant], asked))
    ]
    holding: list[Period] = [period for period in found if period.start <= asked < period.end]
    if not prices:
        assert holding == []
    else:
        [period] = holding
        assert (period.lowest, period.highest) == (
            min(price.minor_units for price in prices),
            max(price.minor_units for price in prices),
        )


@given(entries=ENTRIES, later=ENTRIES, at=st.integers(0, 12))
def test_what_is_put_on_record_later_changes_no_moment_before(
    entries: list[Entry], later: list[Entry], at: int
) -> None:
    new = [each for each in later if each.start > day(at)]
    for variant in ("shirt", "shoes"):
        before = [each for each in entries if each.variant_id == variant]
        assert price_at(before, day(at)) == price_at([*before, *(e for e in new if e.variant_id == variant)], day(at))
