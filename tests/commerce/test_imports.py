"""A file of products is imported once, completely, whatever is in it and whatever dies meanwhile."""

import asyncio
import base64
import csv
import io
from collections.abc import Iterable, Sequence

import pytest

from tests.commerce.shops import Json, Shop, reason

COLUMNS = (
    "slug",
    "sku",
    "title",
    "brand",
    "state",
    "option.Size",
    "attribute.material",
    "price.web-eur",
    "weight_grams",
)
CHUNK = 100_000
LONG = 2_000


def table(rows: Iterable[Sequence[object]], columns: Sequence[str] = COLUMNS) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def row(number: int, **fields: object) -> list[object]:
    """A valid one: every two rows make a product."""
    values: dict[str, object] = {
        "slug": f"shirt-{number // 2}",
        "sku": f"S-{number}",
        "title": f"Linen shirt {number // 2}",
        "brand": f"Brand {number // 2 % 7}",
        "state": "published",
        "option.Size": "SM"[number % 2],
        "attribute.material": "linen|cotton",
        "price.web-eur": 1000 + number,
        "weight_grams": 200,
    }
    return [(values | fields)[column] for column in COLUMNS]


async def upload(shop: Shop, data: bytes) -> str:
    import_id = str((await shop.post("/api/v1/product-imports", {"name": "spring.csv"}))["productImport"]["importId"])
    for offset in range(0, len(data), CHUNK):
        chunk = base64.b64encode(data[offset : offset + CHUNK]).decode()
        await shop.post(f"/api/v1/product-imports/{import_id}:upload", {"offset": offset, "data": chunk})
    return import_id


async def finished(shop: Shop, import_id: str, seconds: float = 90) -> Json:
    async with asyncio.timeout(seconds):
        while True:
            state: Json = (await shop.get(f"/api/v1/product-imports/{import_id}"))["productImport"]
            if state["state"] == "IMPORT_STATE_DONE":
                return state
            await asyncio.sleep(0.1)


async def run(shop: Shop, data: bytes) -> Json:
    import_id = await upload(shop, data)
    await shop.post(f"/api/v1/product-imports/{import_id}:start")
    return await finished(shop, import_id)


async def errors(shop: Shop, import_id: str) -> dict[int, tuple[str, str]]:
    """Column and message by row."""
    found = (await shop.get(f"/api/v1/product-imports/{import_id}/errors"))["errors"]
    return {error["row"]: (error["column"], error["message"]) for error in found}


def tally(state: Json) -> tuple[int, int, int, int]:
    return state["created"], state["updated"], state["unchanged"], state["rejected"]


@pytest.fixture
async def prepared(shop: Shop) -> Shop:
    await shop.price_list("web-eur")
    await shop.put("/api/v1/attributes/material", {"kind": "ATTRIBUTE_KIND_TEXT", "facet": True})
    return shop


async def test_a_long_file_says_how_far_it_is_until_all_of_it_is_there(prepared: Shop) -> None:
    data = table(row(n, slug=f"shirt-{n}", title=f"Linen shirt {n}") for n in range(LONG))
    import_id = await upload(prepared, data)
    path = f"/api/v1/product-imports/{import_id}"
    await prepared.post(f"{path}:start")
    seen: set[int] = set()
    async with asyncio.timeout(60):
        while LONG not in seen:
            seen.add((await prepared.get(path))["productImport"]["rowsDone"])
            await asyncio.sleep(0.02)
    assert seen - {0, LONG}, "its progress is seen"
    assert tally(await finished(prepared, import_id)) == (LONG, 0, 0, 0)
    answer = await prepared.search("shirt 777", currency="EUR", facets="brand")
    assert answer["results"][0]["price"]["minorUnits"] == "1777"
    assert (await prepared.search("linen"))["total"] == LONG


async def test_the_same_file_again_changes_nothing(prepared: Shop) -> None:
    data = table(row(number) for number in range(500))
    assert tally(await run(prepared, data)) == (500, 0, 0, 0)
    before = await prepared.value(PRICES), await prepared.value(VERSIONS)
    assert tally(await run(prepared, data)) == (0, 0, 500, 0)
    assert (await prepared.value(PRICES), await prepared.value(VERSIONS)) == before
    changed = table([row(0, **{"price.web-eur": 1}), row(2, weight_grams=9), row(4, title="Silk shirt"), row(6)])
    assert tally(await run(prepared, changed)) == (0, 3, 1, 0)
    assert await prepared.titles("silk") == ["Silk shirt"]


PRICES = "SELECT count(*) FROM puabo_nuki_product_catalog.price_entries WHERE tenant_id = $1"
VERSIONS = "SELECT sum(version) FROM puabo_nuki_product_catalog.products WHERE tenant_id = $1"


async def test_bad_rows_are_named_and_the_others_imported(prepared: Shop) -> None:
    await prepared.product("Old hat", {"sku": "TAKEN"})
    rows = [
        row(0),
        row(1, sku="S-0"),
        row(2, sku="TAKEN"),
        row(4, title=""),
        row(6, **{"price.web-eur": "12.50"}),
        row(8, weight_grams=-5),
        row(10, state="hidden"),
        row(12, slug=""),
        row(14, slug="Not A Slug"),
        row(16, title="x" * 301),
        [*row(18), "one too many"],
        row(20, **{"option.Size": ""}),
        row(1, **{"option.Size": "S"}),
        row(1, **{"option.Size": "L"}),
        row(22),
    ]
    state = await run(prepared, table(rows))
    found = await errors(prepared, state["importId"])
    assert {number: column for number, (column, _) in found.items()} == {
        2: "sku",
        3: "sku",
        4: "",
        5: "price.web-eur",
        6: "weight_grams",
        7: "state",
        8: "slug",
        9: "slug",
        10: "title",
        11: "",
        13: "",
        14: "sku",
    }, found
    assert found[2][1] == "The row 1 has this SKU already."
    assert "Old hat" not in found[3][1]
    assert "old-hat" in found[3][1]
    assert tally(state) == (3, 0, 0, 12)
    shirts = (await prepared.get("/api/v1/products", slug="shirt-0"))["products"]
    assert [variant["sku"] for variant in shirts[0]["variants"]] == ["S-0"]


async def test_rows_of_one_slug_are_one_product(prepared: Shop) -> None:
    await run(prepared, table([row(0), row(2), row(1, state="", title=""), row(3, state="draft")]))
    first = (await prepared.get("/api/v1/products", slug="shirt-0"))["products"][0]
    assert [variant["optionValues"] for variant in first["variants"]] == [["S"], ["M"]]
    assert first["attributes"] == [{"key": "material", "values": ["linen", "cotton"]}]
    assert first["title"] == "Linen shirt 0", "an empty field leaves what there is"
    assert await prepared.titles() == ["Linen shirt 0"], "the other one was made a draft by its last row"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "IMPORT_UNREADABLE"),
        (b"slug,sku\n", "IMPORT_UNREADABLE"),
        (b"slug,title\na,b\n", "IMPORT_UNREADABLE"),
        (b"slug,sku,colour\na,b,c\n", "IMPORT_UNREADABLE"),
        (b"slug,sku,sku\na,b,c\n", "IMPORT_UNREADABLE"),
        (b"slug,sku\n\xff\xfe,b\n", "IMPORT_UNREADABLE"),
        (b'slug,sku\n"a,b\n', "IMPORT_UNREADABLE"),
        (b"PK\x03\x04\x00\x00", "IMPORT_UNREADABLE"),
        (b"slug,sku,price.usd\na,b,1\n", "PRICE_LIST_NOT_FOUND"),
        (b"slug,sku,attribute.weave\na,b,c\n", "ATTRIBUTE_NOT_FOUND"),
    ],
)
async def test_a_file_that_cannot_be_imported_is_refused_at_the_start(shop: Shop, data: bytes, expected: str) -> None:
    import_id = await upload(shop, data)
    assert reason(await shop.ask("POST", f"/api/v1/product-imports/{import_id}:start", {})) == expected


async def test_chunks_arrive_once_and_in_order(prepared: Shop) -> None:
    data = table([row(0), row(2)])
    import_id = await upload(prepared, data[:100])
    path = f"/api/v1/product-imports/{import_id}"

    async def send(start: int, end: int) -> int:
        chunk = base64.b64encode(data[start:end]).decode()
        answer = await prepared.ask("POST", f"{path}:upload", {"offset": start, "data": chunk})
        return 200 if answer.status_code == 200 else int(answer.json()["details"][0]["metadata"]["received"])

    assert await send(0, 100) == 200, "a repeat is taken for what it is"
    assert await send(120, 140) == 100, "a gap is refused with where to go on"
    assert await send(50, 150) == 100, "and so is an overlap"
    assert await asyncio.gather(*(send(100, len(data)) for _ in range(5))) == [200] * 5
    state = (await prepared.post(f"{path}:start"))["productImport"]
    assert int(state["received"]) == len(data)
    late = {"offset": len(data), "data": base64.b64encode(b"x").decode()}
    assert reason(await prepared.ask("POST", f"{path}:upload", late)) == "IMPORT_STATE_WRONG"
    assert tally(await finished(prepared, import_id)) == (2, 0, 0, 0)
    assert (await prepared.post(f"{path}:start"))["productImport"]["state"] == "IMPORT_STATE_DONE"


async def test_a_cancelled_import_stops_and_keeps_what_it_did(prepared: Shop) -> None:
    import_id = await upload(prepared, table(row(number) for number in range(LONG)))
    path = f"/api/v1/product-imports/{import_id}"
    await prepared.post(f"{path}:start")
    async with asyncio.timeout(60):
        while not (await prepared.get(path))["productImport"]["rowsDone"]:  # noqa: ASYNC110  the job says nothing
            await asyncio.sleep(0.05)
    cancelled = (await prepared.post(f"{path}:cancel"))["productImport"]
    assert 0 < cancelled["rowsDone"] < LONG
    await asyncio.sleep(1.5)  # longer than a batch takes
    after = (await prepared.get(path))["productImport"]
    assert after == cancelled
    variants = "SELECT count(*) FROM puabo_nuki_product_catalog.variants WHERE tenant_id = $1"
    assert await prepared.value(variants) == cancelled["created"] == cancelled["rowsDone"]
    assert reason(await prepared.ask("POST", f"{path}:start", {})) == "IMPORT_STATE_WRONG"


async def test_two_files_of_the_same_products_at_once_make_each_once(prepared: Shop) -> None:
    data = table(row(number) for number in range(1000))
    states = await asyncio.gather(run(prepared, data), run(prepared, data))
    assert sum(state["created"] for state in states) == 1000
    assert sum(state["rejected"] for state in states) == 0
    assert (await prepared.search("linen", facets="brand"))["total"] == 500


async def test_another_tenant_does_not_see_the_import(prepared: Shop, other_shop: Shop) -> None:
    import_id = await upload(prepared, table([row(0)]))
    path = f"/api/v1/product-imports/{import_id}"
    for verb, place in (
        ("GET", path),
        ("GET", f"{path}/errors"),
        ("POST", f"{path}:start"),
        ("POST", f"{path}:cancel"),
    ):
        assert reason(await other_shop.ask(verb, place, {} if verb == "POST" else None)) == "IMPORT_NOT_FOUND"
    assert (await other_shop.get("/api/v1/product-imports"))["imports"] == []
