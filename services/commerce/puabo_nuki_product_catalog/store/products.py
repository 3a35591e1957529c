"""The SQL of products, their variants and pictures, attributes and collections; of the call's tenant."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import asyncpg

from nexus.commerce.puabo_nuki_product_catalog.v1 import products_pb2 as pb
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import OptionsTaken, SkuTaken, SlugTaken
from services.chassis.clock import timestamp
from services.chassis.database import Database
from services.commerce.puabo_nuki_product_catalog.products import title_of

_PRODUCT = (
    "product_id::text, slug, title, description, language, brand, category, tags, options, attributes, state, version, "
    "create_time, update_time, publish_time"
)
_VARIANT = (
    "variant_id::text, product_id::text, sku, option_values, barcode, weight_grams, length_mm, width_mm, height_mm, "
    "tax_category, digital, media_id::text, version, create_time, update_time"
)
_MEDIA = "media_id::text, product_id::text, content_type, alt_text, width, height, position, octet_length(data) AS size"
_ATTRIBUTE = "key, name, kind, choices, facet"
_COLLECTION = "collection_id::text, slug, title, description, rules, version"


class ProductStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, product_id: str, *, lock: str = "") -> pb.Product | None:
        """With its variants and pictures; `lock` is "FOR NO KEY UPDATE" to keep others from changing it."""
        found = await self._fetch("product_id = $1", product_id, lock=lock)
        return found[0] if found else None

    async def of_slug(self, slug: str, *, state: str = "") -> pb.Product | None:
        conditions = "slug = $1" + (" AND state = $2" if state else "")
        found = await self._fetch(conditions, slug, *([state] if state else []))
        return found[0] if found else None

    async def of_variant(self, variant_id: str, *, lock: str = "") -> pb.Product | None:
        """The product that has this variant."""
        found = await self._fetch(
            "product_id = (SELECT product_id FROM variants WHERE variant_id = $1)", variant_id, lock=lock
        )
        return found[0] if found else None

    async def of_slugs(self, slugs: Collection[str]) -> list[pb.Product]:
        """In the order of their ids, and nobody else changes them until the transaction ends."""
        return await self._fetch("slug = ANY($1)", sorted(slugs), lock="FOR NO KEY UPDATE")

    async def all(self, product_ids: Collection[str], *, lock: str = "") -> list[pb.Product]:
        return await self._fetch("product_id = ANY($1::uuid[])", sorted(product_ids), lock=lock)

    async def page(self, *, state: str, sku: str, slug: str, after: str, size: int) -> list[pb.Product]:
        conditions, values = ["true"], list[Any]()
        for condition, value in (
            ("state = {}", state),
            ("slug = {}", slug),
            ("product_id > {}", after),
            ("product_id IN (SELECT product_id FROM variants WHERE tenant_id = nexus.tenant_id() AND sku = {})", sku),
        ):
            if value:
                values.append(value)
                conditions.append(condition.format(f"${len(values)}"))
        return await self._fetch(" AND ".join(conditions), *values, limit=size)

    async def _fetch(self, conditions: str, *values: Any, lock: str = "", limit: int = 1000) -> list[pb.Product]:
        rows = await self._database.fetch(
            f"SELECT {_PRODUCT} FROM products WHERE tenant_id = nexus.tenant_id() AND {conditions} "
            f"ORDER BY product_id LIMIT {limit} {lock}",
            *values,
        )
        products = {row["product_id"]: _product(row) for row in rows}
        if products:
            ids = list(products)
            for row in await self._database.fetch(
                f"SELECT {_VARIANT} FROM variants WHERE product_id = ANY($1::uuid[]) ORDER BY variant_id", ids
            ):
                products[row["product_id"]].variants.append(_variant(row))
            for row in await self._database.fetch(
                f"SELECT {_MEDIA} FROM media WHERE product_id = ANY($1::uuid[]) ORDER BY position, media_id", ids
            ):
                products[row["product_id"]].media.append(_media(row))
        return list(products.values())

    async def put(self, products: Sequence[pb.Product]) -> None:
        """Insert or replace products, without their variants. Raises SlugTaken."""
        await _naming_conflicts(
            self._database.executemany(
                """
                INSERT INTO products AS p (product_id, slug, title, description, language, brand, category, tags,
                                           options, attributes)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
                ON CONFLICT (product_id) DO UPDATE
                SET slug = $2, title = $3, description = $4, language = $5, brand = $6, category = $7, tags = $8,
                    options = $9, attributes = $10, version = p.version + 1, update_time = now()
                """,
                [_product_row(product) for product in products],
            ),
            slug=products[0].slug if len(products) == 1 else "of one of them",
        )

    async def put_variants(self, variants: Sequence[pb.Variant]) -> None:
        """Insert or replace variants. Raises SkuTaken, OptionsTaken."""
        await _naming_conflicts(
            self._database.executemany(
                """
                INSERT INTO variants AS v (variant_id, product_id, sku, option_values, barcode, weight_grams, length_mm,
                                           width_mm, height_mm, tax_category, digital, media_id)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
                ON CONFLICT (variant_id) DO UPDATE
                SET sku = $3, option_values = $4, barcode = $5, weight_grams = $6, length_mm = $7, width_mm = $8,
                    height_mm = $9, tax_category = $10, digital = $11, media_id = $12, version = v.version + 1,
                    update_time = now()
                """,
                [_variant_row(variant) for variant in variants],
            ),
            sku=variants[0].sku if len(variants) == 1 else "of one of them",
            options=title_of(variants[0]) if len(variants) == 1 else "like one of them",
        )

    async def touch(self, product_id: str) -> None:
        """What is shown of it has changed."""
        await self._database.execute(
            "UPDATE products SET version = version + 1, update_time = now() WHERE product_id = $1", product_id
        )

    async def set_state(self, product_ids: Collection[str], state: str) -> None:
        await self._database.execute(
            """
            UPDATE products SET state = $2, version = version + 1, update_time = now(),
                   publish_time = CASE WHEN $2 = 'published' THEN coalesce(publish_time, now()) ELSE publish_time END
            WHERE product_id = ANY($1::uuid[])
            """,
            list(product_ids),
            state,
        )

    async def delete(self, product_id: str) -> None:
        await self._database.execute("DELETE FROM products WHERE product_id = $1", product_id)

    async def delete_variant(self, variant_id: str) -> None:
        await self._database.execute("DELETE FROM variants WHERE variant_id = $1", variant_id)

    async def owners_of_skus(self, skus: Collection[str]) -> dict[str, str]:
        """For each of these SKUs that there is, the slug of its product."""
        rows = await self._database.fetch(
            "SELECT sku, slug FROM variants JOIN products USING (tenant_id, product_id) "
            "WHERE tenant_id = nexus.tenant_id() AND sku = ANY($1)",
            list(skus),
        )
        return {row["sku"]: row["slug"] for row in rows}

    async def known(self, product_ids: Collection[str]) -> set[str]:
        rows = await self._database.fetch(
            "SELECT product_id::text FROM products WHERE product_id = ANY($1::uuid[])", list(product_ids)
        )
        return {row["product_id"] for row in rows}

    async def known_variants(self, variant_ids: Collection[str]) -> dict[str, str]:
        """For each of these variants that there is, its product."""
        rows = await self._database.fetch(
            "SELECT variant_id::text, product_id::text FROM variants WHERE variant_id = ANY($1::uuid[])",
            list(variant_ids),
        )
        return {row["variant_id"]: row["product_id"] for row in rows}

    async def resolve(self, variant_ids: Collection[str], skus: Collection[str]) -> list[pb.Product]:
        """The products that have these variants."""
        return await self._fetch(
            "product_id IN (SELECT product_id FROM variants WHERE variant_id = ANY($1::uuid[]) UNION "
            "SELECT product_id FROM variants WHERE tenant_id = nexus.tenant_id() AND sku = ANY($2))",
            list(variant_ids),
            list(skus),
        )

    async def put_media(self, media_id: str, product_id: str, media: pb.Media, digest: bytes, data: bytes) -> pb.Media:
        """The picture, or the same one as it was there before with what is new about it."""
        row = await self._database.fetchrow(
            f"""
            INSERT INTO media (media_id, product_id, content_type, alt_text, width, height, position, digest, data)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
            ON CONFLICT ON CONSTRAINT media_once DO UPDATE SET alt_text = $4, position = $7
            RETURNING {_MEDIA}
            """,
            media_id,
            product_id,
            media.content_type,
            media.alt_text,
            media.width,
            media.height,
            media.position,
            digest,
            data,
        )
        assert row is not None
        return _media(row)

    async def delete_media(self, media_id: str) -> str | None:
        """The product it belonged to."""
        product_id: str | None = await self._database.fetchval(
            "DELETE FROM media WHERE media_id = $1 RETURNING product_id::text", media_id
        )
        return product_id

    async def picture(self, media_id: str) -> asyncpg.Record | None:
        """Content type and data, if its product is published."""
        return await self._database.fetchrow(
            "SELECT content_type, data FROM media JOIN products USING (tenant_id, product_id) "
            "WHERE media_id = $1 AND state = 'published'",
            media_id,
        )

    async def attributes(self) -> dict[str, pb.Attribute]:
        rows = await self._database.fetch(
            f"SELECT {_ATTRIBUTE} FROM attributes WHERE tenant_id = nexus.tenant_id() ORDER BY key LIMIT 500"
        )
        return {row["key"]: _attribute(row) for row in rows}

    async def put_attribute(self, attribute: pb.Attribute) -> None:
        await self._database.execute(
            """
            INSERT INTO attributes (key, name, kind, choices, facet) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (tenant_id, key) DO UPDATE SET name = $2, kind = $3, choices = $4, facet = $5
            """,
            attribute.key,
            attribute.name,
            _kind_name(attribute.kind),
            list(attribute.choices),
            attribute.facet,
        )

    async def delete_attribute(self, key: str) -> bool:
        return bool(
            await self._database.execute("DELETE FROM attributes WHERE tenant_id = nexus.tenant_id() AND key = $1", key)
        )

    async def lock_attributes(self, mode: str) -> None:
        """ "_shared" for who uses attributes, "" for who changes them: neither while the other is at it."""
        await self._database.execute(
            f"SELECT pg_advisory_xact_lock{mode}(hashtextextended('attributes ' || nexus.tenant_id(), 0))"
        )

    async def values_of(self, key: str) -> list[tuple[str, list[str]]]:
        """Products that have an attribute, with their values of it."""
        rows = await self._database.fetch(
            "SELECT product_id::text, attributes -> $1 AS values FROM products "
            "WHERE tenant_id = nexus.tenant_id() AND attributes ? $1",
            key,
        )
        return [(row["product_id"], json.loads(row["values"])) for row in rows]


class CollectionStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, collection_id: str, *, lock: str = "") -> pb.Collection | None:
        row = await self._database.fetchrow(
            f"SELECT {_COLLECTION} FROM collections WHERE collection_id = $1 {lock}", collection_id
        )
        return _collection(row) if row is not None else None

    async def of_slug(self, slug: str) -> pb.Collection | None:
        row = await self._database.fetchrow(
            f"SELECT {_COLLECTION} FROM collections WHERE tenant_id = nexus.tenant_id() AND slug = $1", slug
        )
        return _collection(row) if row is not None else None

    async def page(self, after: Sequence[str], size: int) -> list[pb.Collection]:
        """By title; `after` is title and id of the last one seen."""
        rows = await self._database.fetch(
            f"SELECT {_COLLECTION} FROM collections WHERE tenant_id = nexus.tenant_id() "
            "AND (title, collection_id) > ($1, $2::uuid) ORDER BY title, collection_id LIMIT $3",
            *(after or ("", "00000000-0000-0000-0000-000000000000")),
            size,
        )
        return [_collection(row) for row in rows]

    async def put(self, collection: pb.Collection) -> pb.Collection:
        """Insert or replace. Raises SlugTaken."""
        row = await _naming_conflicts(
            self._database.fetchrow(
                f"""
                INSERT INTO collections AS c (collection_id, slug, title, description, rules)
                VALUES ($1, $2, $3, $4, $5)
                ON CONFLICT (collection_id) DO UPDATE
                SET slug = $2, title = $3, description = $4, rules = $5, version = c.version + 1
                RETURNING {_COLLECTION}
                """,
                collection.collection_id,
                collection.slug,
                collection.title,
                collection.description,
                list(collection.rules),
            ),
            slug=collection.slug,
        )
        return _collection(row)

    async def delete(self, collection_id: str) -> None:
        await self._database.execute("DELETE FROM collections WHERE collection_id = $1", collection_id)

    async def add(self, collection_id: str, product_ids: Sequence[str]) -> None:
        await self._database.execute(
            "INSERT INTO collection_products (collection_id, product_id) "
            "SELECT $1, product_id FROM unnest($2::uuid[]) WITH ORDINALITY AS added (product_id, number) "
            "ORDER BY number ON CONFLICT DO NOTHING",
            collection_id,
            list(product_ids),
        )

    async def remove(self, collection_id: str, product_ids: Sequence[str]) -> None:
        await self._database.execute(
            "DELETE FROM collection_products WHERE collection_id = $1 AND product_id = ANY($2::uuid[])",
            collection_id,
            list(product_ids),
        )

    async def products_in(self, collection_id: str) -> list[str]:
        rows = await self._database.fetch(
            "SELECT product_id::text FROM collection_products WHERE collection_id = $1 ORDER BY position",
            collection_id,
        )
        return [row["product_id"] for row in rows]

    async def of_products(self, product_ids: Collection[str]) -> dict[str, list[str]]:
        """For each product, the collections that it was put into."""
        rows = await self._database.fetch(
            "SELECT product_id::text, collection_id::text FROM collection_products WHERE product_id = ANY($1::uuid[])",
            list(product_ids),
        )
        found: dict[str, list[str]] = {product_id: [] for product_id in product_ids}
        for row in rows:
            found[row["product_id"]].append(row["collection_id"])
        return found


async def _naming_conflicts(query: Any, *, slug: str = "", sku: str = "", options: str = "") -> Any:
    """Say what is taken, when something is."""
    try:
        return await query
    except asyncpg.UniqueViolationError as error:
        _raise_taken(error, slug, sku, options)


def _raise_taken(error: asyncpg.UniqueViolationError, slug: str, sku: str, options: str) -> NoReturn:
    if error.constraint_name in ("products_slug", "collections_slug"):
        raise SlugTaken(slug=slug) from None
    if error.constraint_name == "variants_sku":
        raise SkuTaken(sku=sku) from None
    if error.constraint_name == "variants_options":
        raise OptionsTaken(options=options) from None
    raise error


def _product_row(product: pb.Product) -> tuple[Any, ...]:
    return (
        product.product_id,
        product.slug,
        product.title,
        product.description,
        product.language,
        product.brand,
        product.category,
        list(product.tags),
        json.dumps([{"name": option.name, "values": list(option.values)} for option in product.options]),
        json.dumps({attribute.key: list(attribute.values) for attribute in product.attributes}),
    )


def _variant_row(variant: pb.Variant) -> tuple[Any, ...]:
    return (
        variant.variant_id,
        variant.product_id,
        variant.sku,
        list(variant.option_values),
        variant.barcode,
        variant.weight_grams,
        variant.length_mm,
        variant.width_mm,
        variant.height_mm,
        variant.tax_category,
        variant.digital,
        variant.media_id or None,
    )


def _product(row: Mapping[str, Any]) -> pb.Product:
    return pb.Product(
        product_id=row["product_id"],
        slug=row["slug"],
        title=row["title"],
        description=row["description"],
        language=row["language"],
        brand=row["brand"],
        category=row["category"],
        tags=row["tags"],
        options=[pb.ProductOption(**option) for option in json.loads(row["options"])],
        attributes=[pb.AttributeValue(key=key, values=values) for key, values in json.loads(row["attributes"]).items()],
        state=pb.PRODUCT_STATE_PUBLISHED if row["state"] == "published" else pb.PRODUCT_STATE_DRAFT,
        etag=str(row["version"]),
        create_time=timestamp(row["create_time"]),
        update_time=timestamp(row["update_time"]),
        publish_time=timestamp(row["publish_time"]) if row["publish_time"] else None,
    )


def _variant(row: Mapping[str, Any]) -> pb.Variant:
    return pb.Variant(
        variant_id=row["variant_id"],
        product_id=row["product_id"],
        sku=row["sku"],
        option_values=row["option_values"],
        barcode=row["barcode"],
        weight_grams=row["weight_grams"],
        length_mm=row["length_mm"],
        width_mm=row["width_mm"],
        height_mm=row["height_mm"],
        tax_category=row["tax_category"],
        digital=row["digital"],
        media_id=row["media_id"] or "",
        etag=str(row["version"]),
        create_time=timestamp(row["create_time"]),
        update_time=timestamp(row["update_time"]),
    )


def _media(row: Mapping[str, Any]) -> pb.Media:
    return pb.Media(
        media_id=row["media_id"],
        content_type=row["content_type"],
        alt_text=row["alt_text"],
        width=row["width"],
        height=row["height"],
        size=row["size"],
        position=row["position"],
    )


def _attribute(row: Mapping[str, Any]) -> pb.Attribute:
    return pb.Attribute(
        key=row["key"],
        name=row["name"],
        kind=pb.AttributeKind.Value(f"ATTRIBUTE_KIND_{row['kind'].upper()}"),
        choices=row["choices"],
        facet=row["facet"],
    )


def _kind_name(kind: "pb.AttributeKind.ValueType") -> str:
    return pb.AttributeKind.Name(kind).removeprefix("ATTRIBUTE_KIND_").lower()


def _collection(row: Mapping[str, Any]) -> pb.Collection:
    return pb.Collection(
        collection_id=row["collection_id"],
        slug=row["slug"],
        title=row["title"],
        description=row["description"],
        rules=row["rules"],
        etag=str(row["version"]),
    )
