"""The edge keeps public answers for as long as their contracts say: for everybody of a tenant, and for nobody else."""

import asyncio
import time
from collections.abc import Mapping

import httpx
import pytest

from services.chassis.contract import methods
from services.chassis.peers import VERSION_HEADER
from tests.commerce.shops import Shop

PRODUCTS = "/api/v1/shop/products"


def was_kept(answer: httpx.Response) -> bool:
    """A cache tells how old its answer is (RFC 9111, section 5.1)."""
    return "age" in answer.headers


def titles(answer: httpx.Response) -> list[str]:
    return [result["title"] for result in answer.json()["results"]]


async def ask(shop: Shop, path: str = PRODUCTS, **headers: str) -> httpx.Response:
    return await shop.http.get(path, headers={**shop.tenant.headers, **headers})


async def test_an_answer_is_kept_and_says_for_how_long(shop: Shop) -> None:
    await shop.product("Scarf")
    first, second = await ask(shop), await ask(shop)
    assert (was_kept(first), was_kept(second)) == (False, True)
    assert first.content == second.content
    for answer in (first, second):
        assert answer.headers["cache-control"] == "public, max-age=30, s-maxage=30, stale-while-revalidate=30"
        assert "x-nexus-tenant" in answer.headers["vary"]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_what_is_kept_is_not_asked_for_again(shop: Shop) -> None:
    await shop.product("Scarf")
    await ask(shop)
    await shop.product("Shawl")
    assert titles(await ask(shop)) == ["Scarf"]
    assert sorted(titles(await shop.visit(PRODUCTS))) == ["Scarf", "Shawl"]


@pytest.mark.parametrize("headers", [{VERSION_HEADER: "canary"}, {"authorization": "owner"}], ids=["version", "user"])
async def test_what_is_asked_by_somebody_in_particular_is_neither_kept_nor_given_from_there(
    shop: Shop, headers: Mapping[str, str]
) -> None:
    await shop.product("Scarf")
    given = shop.owner.headers if "authorization" in headers else headers
    for _ in range(2):
        answer = await ask(shop, **given)
        assert (was_kept(answer), answer.headers["cache-control"]) == (False, "no-store")
    assert not was_kept(await ask(shop))
    assert not was_kept(await ask(shop, **given))


async def test_each_tenant_has_its_own_answers(shop: Shop, other_shop: Shop) -> None:
    await shop.product("Scarf")
    await other_shop.product("Shawl")
    for _ in range(2):
        assert titles(await ask(shop)) == ["Scarf"]
        assert titles(await ask(other_shop)) == ["Shawl"]
    host = {**other_shop.tenant.headers, "host": shop.tenant.tenant_id}
    assert titles(await shop.http.get(PRODUCTS, headers=host)) == ["Shawl"]


async def test_two_tenants_in_one_request_poison_nobody(shop: Shop, other_shop: Shop) -> None:
    """The one that an answer is kept for is the one that the service sees, whichever that is."""
    await shop.product("Scarf")
    await other_shop.product("Shawl")
    ours, theirs = shop.tenant.tenant_id, other_shop.tenant.tenant_id
    for pair in ((ours, theirs), (theirs, ours)):
        await shop.http.get(PRODUCTS, headers=[("x-nexus-tenant", tenant) for tenant in pair])
        await shop.http.get(PRODUCTS, headers={"x-nexus-tenant": ",".join(pair)})
    assert titles(await ask(shop)) == ["Scarf"]
    assert titles(await ask(other_shop)) == ["Shawl"]


async def test_every_query_has_its_own_answer(shop: Shop) -> None:
    await shop.product("Scarf")
    assert titles(await ask(shop, f"{PRODUCTS}?query=scarf")) == ["Scarf"]
    assert titles(await ask(shop, f"{PRODUCTS}?query=shawl")) == []
    wrong = await ask(shop, f"{PRODUCTS}?querry=shawl")
    assert wrong.status_code == 400


async def test_errors_are_not_kept(shop: Shop) -> None:
    path = f"{PRODUCTS}/scarf"
    for _ in range(2):
        missing = await ask(shop, path)
        assert (missing.status_code, was_kept(missing)) == (404, False)
        assert missing.headers["cache-control"] == "no-store"
    await shop.product("Scarf", slug="scarf")
    assert (await ask(shop, path)).status_code == 200


async def test_nobody_can_have_the_services_asked_each_time(shop: Shop) -> None:
    """Neither by HTTP's own words for it."""
    await ask(shop)
    for words in ("no-cache", "no-store", "max-age=0"):
        assert was_kept(await ask(shop, **{"cache-control": words, "pragma": "no-cache"})), words


async def test_what_is_kept_counts_against_the_limit_of_its_caller(shop: Shop) -> None:
    await ask(shop)
    kept = await ask(shop)
    assert was_kept(kept)
    assert int(kept.headers["x-ratelimit-limit"]) > 0


async def test_an_answer_is_asked_for_anew_once_its_time_is_over(shop: Shop) -> None:
    """What can be sold is kept for two seconds."""
    product = await shop.product("Scarf")
    item = product["variants"][0]["variantId"]
    path = f"/api/v1/shop/availability?item_ids={item}"

    async def sold() -> int:
        answer = (await ask(shop, path)).raise_for_status()
        return int(answer.json()["items"][0].get("available", 0))

    assert await sold() == 0
    await shop.receive(item, 3)
    started = time.monotonic()
    while await sold() != 3:
        assert time.monotonic() - started < 10
        await asyncio.sleep(0.1)
    assert await sold() == 3


async def test_many_who_ask_at_once_are_all_answered(shop: Shop) -> None:
    await shop.product("Scarf")
    answers = await asyncio.gather(*(ask(shop, f"{PRODUCTS}?page_size={1 + number % 3}") for number in range(60)))
    assert all(titles(answer) == ["Scarf"] for answer in answers)


async def test_a_kept_answer_is_compressed_for_who_takes_that(shop: Shop) -> None:
    for number in range(8):
        await shop.product(f"Scarf {number}", description="long " * 50)
    plain, small = await ask(shop, **{"accept-encoding": "identity"}), await ask(shop, **{"accept-encoding": "gzip"})
    assert was_kept(small)
    assert small.headers["content-encoding"] == "gzip"
    assert small.content == plain.content


async def test_other_methods_of_a_kept_path_are_refused_as_everywhere(shop: Shop) -> None:
    await ask(shop)
    answer = await shop.http.post(PRODUCTS, headers=shop.tenant.headers, json={})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


def test_only_what_is_public_may_be_kept() -> None:
    for method in methods().values():
        if method.policy.HasField("cache_lifetime"):
            assert method.access == "public", method.full_name
            assert method.routes, method.full_name
