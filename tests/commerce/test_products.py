"""Products, their variants and pictures: what is unique stays so, and a draft is nowhere to be found."""

import asyncio
import base64
import io
from typing import Any

import pytest
from PIL import Image

from tests.commerce.shops import Json, Shop, reason

SIZES: Json = {"options": [{"name": "Size", "values": ["S", "M"]}]}
SMALL, MEDIUM = {"optionValues": ["S"]}, {"optionValues": ["M"]}


def picture(colour: str = "navy", kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


async def add_picture(shop: Shop, product: Json, colour: str = "navy", **fields: Any) -> Json:
    body = {"contentType": "image/png", "data": picture(colour), **fields}
    media: Json = (await shop.post(f"/api/v1/products/{product['productId']}/media", body))["media"]
    return media


async def test_a_product_is_named_after_its_title_and_its_variants_after_it(shop: Shop) -> None:
    product = await shop.product("Leinenhemd „Blåu“", SMALL, MEDIUM, publish=False, **SIZES)
    assert product["slug"] == "leinenhemd-blau"
    assert [variant["sku"] for variant in product["variants"]] == ["leinenhemd-blau-s", "leinenhemd-blau-m"]
    assert product["state"] == "PRODUCT_STATE_DRAFT"


async def test_of_twenty_variants_with_one_sku_one_is_made(shop: Shop) -> None:
    async def create(number: int) -> str:
        body = {"product": {"title": f"Shirt {number}", "variants": [{"sku": "LS-1"}]}}
        answer = await shop.ask("POST", "/api/v1/products", body)
        return "made" if answer.status_code == 200 else str(reason(answer))

    results = await asyncio.gather(*(create(number) for number in range(20)))
    assert sorted(set(results)) == ["SKU_TAKEN", "made"]
    assert results.count("made") == 1


async def test_of_twenty_variants_with_the_same_options_one_is_made(shop: Shop) -> None:
    product = await shop.product("Shirt", SMALL, publish=False, **SIZES)
    path = f"/api/v1/products/{product['productId']}/variants"
    answers = await asyncio.gather(
        *(shop.ask("POST", path, {"variant": {**MEDIUM, "sku": f"m-{n}"}}) for n in range(20))
    )
    refused = [reason(answer) for answer in answers if answer.status_code != 200]
    assert refused == ["OPTIONS_TAKEN"] * 19


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ([{"optionValues": ["S"]}, {"optionValues": ["S"]}], "OPTIONS_TAKEN"),
        ([{"optionValues": []}], "OPTIONS_INVALID"),
        ([{"optionValues": ["XL"]}], "OPTIONS_INVALID"),
        ([{"optionValues": ["S", "M"]}], "OPTIONS_INVALID"),
        ([{"optionValues": ["S"], "sku": "a"}, {"optionValues": ["M"], "sku": "a"}], "SKU_TAKEN"),
    ],
)
async def test_variants_are_tuples_of_the_options(shop: Shop, variants: list[Json], expected: str) -> None:
    body = {"product": {"title": "Shirt", "variants": variants, **SIZES}}
    assert reason(await shop.ask("POST", "/api/v1/products", body)) == expected


async def test_a_slug_belongs_to_one_product(shop: Shop) -> None:
    await shop.product("Shirt", publish=False)
    body = {"product": {"title": "Shirt", "variants": [{"sku": "other"}]}}
    assert reason(await shop.ask("POST", "/api/v1/products", body)) == "SLUG_TAKEN"


async def test_two_who_edit_at_once_do_not_overwrite_each_other(shop: Shop) -> None:
    product = await shop.product("Shirt", brand="Fjord")
    path, etag = f"/api/v1/products/{product['productId']}", product["etag"]
    changes = [shop.ask("PATCH", path, {"title": f"T{n}", "etag": etag}, update_mask="title") for n in range(5)]
    answers = await asyncio.gather(*changes)
    assert [reason(answer) for answer in answers if answer.status_code != 200] == ["PRODUCT_CHANGED"] * 4
    changed = (await shop.get(path))["product"]
    assert changed["brand"] == "Fjord"
    assert changed["title"].startswith("T")


async def test_options_gain_values_but_stay_what_variants_were_made_for(shop: Shop) -> None:
    product = await shop.product("Shirt", SMALL, MEDIUM, **SIZES)
    path = f"/api/v1/products/{product['productId']}"
    more = {"options": [{"name": "Size", "values": ["S", "M", "L"]}]}
    assert (await shop.patch(path, more, "options"))["product"]["options"][0]["values"] == ["S", "M", "L"]
    for options in ([{"name": "Colour", "values": ["S", "M"]}], [{"name": "Size", "values": ["S"]}], []):
        answer = await shop.ask("PATCH", path, {"options": options}, update_mask="options")
        assert reason(answer) == "OPTIONS_INVALID", options


async def test_a_variant_is_changed_and_only_as_it_was_read(shop: Shop) -> None:
    product = await shop.product("Shirt", SMALL, MEDIUM, **SIZES)
    variant = product["variants"][0]
    path = f"/api/v1/variants/{variant['variantId']}"
    changed = (await shop.patch(path, {"weightGrams": 250, "etag": variant["etag"]}, "weight_grams"))["variant"]
    assert (changed["weightGrams"], changed["sku"]) == (250, variant["sku"])
    stale = await shop.ask("PATCH", path, {"weightGrams": 1, "etag": variant["etag"]}, update_mask="weight_grams")
    assert reason(stale) == "PRODUCT_CHANGED"
    taken = await shop.ask("PATCH", path, {"optionValues": ["M"]}, update_mask="option_values")
    assert reason(taken) == "OPTIONS_TAKEN"


async def test_a_published_product_keeps_a_variant(shop: Shop) -> None:
    product = await shop.product("Shirt", SMALL, MEDIUM, **SIZES)
    first, last = (f"/api/v1/variants/{variant['variantId']}" for variant in product["variants"])
    assert (await shop.ask("DELETE", first)).status_code == 200
    assert reason(await shop.ask("DELETE", last)) == "PRODUCT_INCOMPLETE"
    path = f"/api/v1/products/{product['productId']}"
    assert reason(await shop.ask("DELETE", path)) == "PRODUCT_PUBLISHED"
    await shop.post(f"{path}:unpublish")
    assert (await shop.ask("DELETE", path)).status_code == 200
    assert reason(await shop.ask("GET", path)) == "PRODUCT_NOT_FOUND"


async def test_values_fit_their_attributes(shop: Shop) -> None:
    attributes: list[Json] = [
        {"key": "material", "kind": "ATTRIBUTE_KIND_CHOICE", "choices": ["linen", "wool"], "facet": True},
        {"key": "length", "kind": "ATTRIBUTE_KIND_NUMBER"},
    ]
    for attribute in attributes:
        await shop.put(f"/api/v1/attributes/{attribute['key']}", attribute)
    for values in ({"material": ["plastic"]}, {"length": ["long"]}, {"unheard-of": ["x"]}):
        given = [{"key": key, "values": each} for key, each in values.items()]
        body = {"product": {"title": "Shirt", "attributes": given}}
        assert reason(await shop.ask("POST", "/api/v1/products", body)) == "ATTRIBUTE_INVALID", values
    await shop.product("Shirt", attributes=[{"key": "material", "values": ["linen"]}])
    without_linen = {"kind": "ATTRIBUTE_KIND_CHOICE", "choices": ["wool"]}
    assert reason(await shop.ask("PUT", "/api/v1/attributes/material", without_linen)) == "ATTRIBUTE_IN_USE"
    assert reason(await shop.ask("DELETE", "/api/v1/attributes/material")) == "ATTRIBUTE_IN_USE"
    assert (await shop.ask("DELETE", "/api/v1/attributes/length")).status_code == 200
    assert reason(await shop.ask("DELETE", "/api/v1/attributes/length")) == "ATTRIBUTE_NOT_FOUND"


async def test_a_draft_is_found_nowhere(shop: Shop) -> None:
    """Not by search, facet, collection, slug, picture, nor as what a mistyped word was meant to be."""
    await shop.product("Wool coat", brand="Fjord")
    draft = await shop.product("Secret gown", brand="Hush", publish=False)
    media = await add_picture(shop, draft)
    [ball, rules] = [
        (await shop.post("/api/v1/collections", {"collection": body}))["collection"]
        for body in ({"title": "Ball"}, {"title": "All of Hush", "rules": ["brand:Hush"]})
    ]
    add = {"addProductIds": [draft["productId"]]}
    await shop.post(f"/api/v1/collections/{ball['collectionId']}:changeProducts", add)

    async def traces() -> list[str]:
        searches: list[Json] = [{"query": query} for query in ("", "secret", "gow", "gowm", "Hush", draft["slug"])]
        searches += [{"filters": "brand:Hush"}, {"collection": ball["slug"]}, {"collection": rules["slug"]}]
        found = []
        for params in searches:
            answer = await shop.visit("/api/v1/shop/products", **params)
            if "gown" in answer.text.lower() or "hush" in answer.text.lower():
                found.append(str(params))
        places = (f"products/{draft['slug']}", f"media/{media['mediaId']}")
        return found + [path for path in places if (await shop.visit(f"/api/v1/shop/{path}")).status_code != 404]

    assert await traces() == []
    path = f"/api/v1/products/{draft['productId']}"
    await shop.post(f"{path}:publish")
    assert len(await traces()) == 11, "published, all of these find it"
    await shop.post(f"{path}:unpublish")
    assert await traces() == []


async def test_publishing_and_unpublishing_at_once_leaves_one_truth(shop: Shop) -> None:
    product = await shop.product("Shirt", publish=False)
    path = f"/api/v1/products/{product['productId']}"
    await asyncio.gather(*(shop.post(f"{path}:{verb}") for verb in ("publish", "unpublish") * 10))
    published = (await shop.get(path))["product"]["state"] == "PRODUCT_STATE_PUBLISHED"
    assert (await shop.titles("shirt") == ["Shirt"]) == published
    await shop.post(f"{path}:unpublish")
    counted = "SELECT sum(documents) FROM puabo_nuki_product_catalog.search_words WHERE tenant_id = $1"
    assert await shop.value(counted) == 0


async def test_a_product_needs_a_variant_to_be_published(shop: Shop) -> None:
    product = (await shop.post("/api/v1/products", {"product": {"title": "Shirt"}}))["product"]
    publish = await shop.ask("POST", f"/api/v1/products/{product['productId']}:publish", {})
    assert reason(publish) == "PRODUCT_INCOMPLETE"


async def test_pictures_are_served_as_they_came_and_may_be_kept(shop: Shop) -> None:
    product = await shop.product("Shirt")
    media = await add_picture(shop, product, altText="A shirt")
    again = await add_picture(shop, product, altText="The shirt")
    assert (again["mediaId"], again["altText"]) == (media["mediaId"], "The shirt")
    assert (media["width"], media["height"]) == (8, 6)
    answer = await shop.visit(f"/api/v1/shop/media/{media['mediaId']}")
    assert answer.content == base64.b64decode(picture())
    assert answer.headers["content-type"] == "image/png"
    assert "max-age=86400" in answer.headers["cache-control"]
    assert (await shop.search("shirt"))["results"][0]["mediaId"] == media["mediaId"]
    assert (await shop.ask("DELETE", f"/api/v1/media/{media['mediaId']}")).status_code == 200
    assert reason(await shop.visit(f"/api/v1/shop/media/{media['mediaId']}")) == "MEDIA_NOT_FOUND"


@pytest.mark.parametrize(
    ("content_type", "data"),
    [
        ("image/png", base64.b64encode(b"<svg onload=alert(1)>").decode()),
        ("image/png", picture(kind="JPEG")),
        ("image/png", base64.b64encode(base64.b64decode(picture())[:40]).decode()),
    ],
    ids=["no picture", "another kind", "cut off"],
)
async def test_what_is_no_picture_is_refused(shop: Shop, content_type: str, data: str) -> None:
    product = await shop.product("Shirt")
    body = {"contentType": content_type, "data": data}
    assert reason(await shop.ask("POST", f"/api/v1/products/{product['productId']}/media", body)) == "MEDIA_INVALID"


async def test_collections_hold_what_is_put_in_or_what_their_rules_say(shop: Shop) -> None:
    fjord, nord = [await shop.product(f"{brand} shirt", brand=brand) for brand in ("Fjord", "Nord")]
    by_hand = (await shop.post("/api/v1/collections", {"collection": {"title": "Favourites"}}))["collection"]
    path = f"/api/v1/collections/{by_hand['collectionId']}"
    assert (await shop.post(f"{path}:changeProducts", {"addProductIds": [nord["productId"]]}))["products"] == 1
    assert await shop.titles(collection="favourites") == ["Nord shirt"]
    change = {"addProductIds": [fjord["productId"]], "removeProductIds": [nord["productId"]]}
    await shop.post(f"{path}:changeProducts", change)
    assert await shop.titles(collection="favourites") == ["Fjord shirt"]
    ruled = (await shop.patch(path, {"rules": ["brand:Nord"]}, "rules"))["collection"]
    assert ruled["etag"] != by_hand["etag"]
    assert await shop.titles(collection="favourites") == ["Nord shirt"]
    assert reason(await shop.ask("POST", f"{path}:changeProducts", change)) == "COLLECTION_AUTOMATIC"
    assert [each["slug"] for each in (await _visit(shop, "/api/v1/shop/collections"))["collections"]] == ["favourites"]
    assert (await shop.ask("DELETE", path)).status_code == 200
    assert reason(await shop.visit("/api/v1/shop/products", collection="favourites")) == "COLLECTION_NOT_FOUND"


async def test_another_tenant_sees_and_changes_nothing(shop: Shop, other_shop: Shop) -> None:
    product = await shop.product("Shirt", {"sku": "LS-1"}, brand="Fjord")
    media = await add_picture(shop, product)
    assert (await other_shop.search())["results"] == (await other_shop.search("shirt"))["facets"] == []
    path = f"/api/v1/products/{product['productId']}"
    for verb, place, body in (
        ("GET", path, None),
        ("POST", f"{path}:unpublish", {}),
        ("DELETE", path, None),
        ("POST", f"{path}/variants", {"variant": {}}),
    ):
        assert reason(await other_shop.ask(verb, place, body)) == "PRODUCT_NOT_FOUND", place
    for place in (f"products/{product['slug']}", f"media/{media['mediaId']}"):
        assert (await other_shop.visit(f"/api/v1/shop/{place}")).status_code == 404
    assert await shop.titles("shirt") == ["Shirt"]
    mine = await other_shop.product("Shirt", {"sku": "LS-1"}, brand="Fjord")
    assert mine["slug"] == product["slug"], "names are a tenant's own"


async def test_customers_cannot_tend_the_catalogue(shop: Shop) -> None:
    customer = await shop.tenant.sign_in()
    for path in ("/api/v1/products", "/api/v1/product-imports", "/api/v1/price-lists"):
        assert reason(await shop.http.get(path, headers=customer.headers)) == "PERMISSION_MISSING"
        assert (await shop.visit(path)).status_code == 401


async def _visit(shop: Shop, path: str) -> Json:
    answer: Json = (await shop.visit(path)).json()
    return answer
