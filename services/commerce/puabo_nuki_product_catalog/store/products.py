"""The SQL of products, their variants and pictures, attributes and collections; of the call's tenant."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import asyncpg

from nexus.commerce.puabo_nuki_product_catalog.v1 import products_pb2 as pb
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import (
    CollectionNotFound,
    MediaNotFound,
    OptionsTaken,
    ProductNotFound,
    SkuTaken,
    SlugTaken,
    VariantNotFound,
)
from services.chassis.database import Database
from services.chassis.messages import MessageOf, values_of
from services.chassis.table import Row, Table
from services.commerce.puabo_nuki_product_catalog.products import title_of

_MEDIA = "media_id, product_id, content_type, alt_text, width, height, position, octet_length(data) AS size"
_MOST_ATTRIBUTES = 500

_product_of = MessageOf(pb.Product, without=["variants", "media"], etag="version")
_variant_of = MessageOf(pb.Variant, etag="version")
_media_of = MessageOf(pb.Media)
_attribute_of = MessageOf(pb.Attribute)
_collection_of = MessageOf(pb.Collection, etag="version")


class ProductStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self.rows = Table(
            database,
            "products",
            key="product_id",
            order="product_id",
            on_update="version = products.version + 1, update_time = now()",
        )
        self.variant_rows = Table(
            database,
            "variants",
            key="variant_id",
            on_update="version = variants.version + 1, update_time = now()",
        )
        self.media_rows = Table(database, "media", key="media_id", columns=_MEDIA, missing=MediaNotFound)
        self.attribute_rows = Table(database, "attributes", key="key", order="key")

    async def get(self, product_id: str, *, lock: bool = False) -> pb.Product:
        """With its variants and pictures; `lock` keeps others from changing it. Raises ProductNotFound."""
        return _only(await self._fetch("product_id = $1", product_id, lock=lock), product_id)

    async def published(self, slug: str) -> pb.Product:
        """Raises ProductNotFound."""
        return _only(await self._fetch("slug = $1 AND state = 'published'", slug), slug)

    async def of_variant(self, variant_id: str) -> pb.Product:
        """The product that has this variant, locked. Raises VariantNotFound."""
        variant = "SELECT product_id FROM variants WHERE variant_id = $1"
        found = await self._fetch(f"product_id = ({variant})", variant_id, lock=True)
        if not found:
            raise VariantNotFound(variant_id=variant_id)
        return found[0]

    async def of_slugs(self, slugs: Collection[str]) -> list[pb.Product]:
        """In the order of their ids, and nobody else changes them until the transaction ends."""
        return await self._fetch("slug = ANY($1)", sorted(slugs), lock=True)

    async def of_ids(self, product_ids: Collection[str]) -> list[pb.Product]:
        """As `of_slugs`."""
        return await self._fetch("product_id = ANY($1::uuid[])", sorted(product_ids), lock=True)

    async def resolve(self, variant_ids: Collection[str], skus: Collection[str]) -> list[pb.Product]:
        """The products that have these variants."""
        return await self._fetch(
            "product_id IN (SELECT product_id FROM variants WHERE variant_id = ANY($1::uuid[]) UNION "
            "SELECT product_id FROM variants WHERE tenant_id = nexus.tenant_id() AND sku = ANY($2))",
            list(variant_ids),
            list(skus),
        )

    async def page(self, after: str, limit: int, *, state: str, sku: str, slug: str) -> list[pb.Product]:
        """ "" for any state, SKU or slug."""
        with_sku = "product_id IN (SELECT product_id FROM variants WHERE tenant_id = nexus.tenant_id() AND sku = {})"
        rows = await self.rows.page(
            after, limit, state=state or None, slug=slug or None, filters={with_sku: sku or None}
        )
        return await self._whole(rows)

    async def _fetch(self, condition: str, *values: Any, lock: bool = False) -> list[pb.Product]:
        # A lock under which others can still refer to the product, as those do who put prices on record.
        locking = "FOR NO KEY UPDATE" if lock else ""
        rows = await self._database.fetch(
            f"SELECT * FROM products WHERE tenant_id = nexus.tenant_id() AND {condition} ORDER BY product_id {locking}",
            *values,
        )
        return await self._whole(rows)

    async def _whole(self, rows: Sequence[Row]) -> list[pb.Product]:
        products = {row["product_id"]: _product(row) for row in rows}
        if products:
            ids = list(products)
            for row in await self._database.fetch(
                "SELECT * FROM variants WHERE product_id = ANY($1::uuid[]) ORDER BY variant_id", ids
            ):
                products[row["product_id"]].variants.append(_variant_of(row))
            for row in await self._database.fetch(
                f"SELECT {_MEDIA} FROM media WHERE product_id = ANY($1::uuid[]) ORDER BY position, media_id", ids
            ):
                products[row["product_id"]].media.append(_media_of(row))
        return list(products.values())

    async def put(self, products: Sequence[pb.Product]) -> None:
        """Insert or replace products, without their variants. Raises SlugTaken."""
        with _naming_conflicts(slug=products[0].slug if len(products) == 1 else "of one of them"):
            await self.rows.put_all(map(_product_row, products))

    async def put_variants(self, variants: Sequence[pb.Variant]) -> None:
        """Insert or replace variants. Raises SkuTaken, OptionsTaken."""
        sku, options = "of one of them", "like one of them"
        if len(variants) == 1:
            sku, options = variants[0].sku, title_of(variants[0])
        with _naming_conflicts(sku=sku, options=options):
            await self.variant_rows.put_all(map(_variant_row, variants))

    async def touch(self, product_id: str) -> None:
        """What is shown of it has changed."""
        await self.rows.update(product_id)

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

    async def owners_of_skus(self, skus: Collection[str]) -> dict[str, str]:
        """For each of these SKUs that there is, the slug of its product."""
        rows = await self._database.fetch(
            "SELECT sku, slug FROM variants JOIN products USING (tenant_id, product_id) "
            "WHERE tenant_id = nexus.tenant_id() AND sku = ANY($1)",
            list(skus),
        )
        return dict(rows)

    async def known(self, product_ids: Collection[str]) -> set[str]:
        rows = await self._database.fetch(
            "SELECT product_id FROM products WHERE product_id = ANY($1::uuid[])", list(product_ids)
        )
        return {row["product_id"] for row in rows}

    async def put_media(self, **values: Any) -> pb.Media:
        """The picture, or the same one as it was there before with what is new about it."""
        row = await self._database.fetchrow(
            f"""
            INSERT INTO media ({", ".join(values)}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
            ON CONFLICT ON CONSTRAINT media_once DO UPDATE
            SET alt_text = excluded.alt_text, position = excluded.position
            RETURNING {_MEDIA}
            """,
            *values.values(),
        )
        assert row is not None
        return _media_of(row)

    async def picture(self, media_id: str) -> Row:
        """Content type and data. Raises MediaNotFound unless its product is published."""
        row = await self._database.fetchrow(
            "SELECT content_type, data FROM media JOIN products USING (tenant_id, product_id) "
            "WHERE media_id = $1 AND state = 'published'",
            media_id,
        )
        if row is None:
            raise MediaNotFound(media_id=media_id)
        return row

    async def attributes(self) -> dict[str, pb.Attribute]:
        return {row["key"]: _attribute_of(row) for row in await self.attribute_rows.page("", _MOST_ATTRIBUTES)}

    async def lock_attributes(self, mode: str) -> None:
        """ "_shared" for who uses attributes, "" for who changes them: neither while the other is at it."""
        await self._database.execute(
            f"SELECT pg_advisory_xact_lock{mode}(hashtextextended('attributes ' || nexus.tenant_id(), 0))"
        )

    async def values_of(self, key: str) -> list[tuple[str, list[str]]]:
        """Products that have an attribute, with their values of it."""
        rows = await self._database.fetch(
            "SELECT product_id, attributes -> $1 AS values FROM products "
            "WHERE tenant_id = nexus.tenant_id() AND attributes ? $1",
            key,
        )
        return [(product_id, json.loads(values)) for product_id, values in rows]


class CollectionStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self.rows = Table(
            database,
            "collections",
            key="collection_id",
            order="title, collection_id",
            missing=lambda collection_id: CollectionNotFound(collection=collection_id),
            on_update="version = collections.version + 1",
        )
        self._members = Table(database, "collection_products", key="product_id", order="position")

    async def get(self, collection_id: str) -> pb.Collection:
        """Nobody else changes it, or what is in it, until the transaction ends. Raises CollectionNotFound."""
        return _collection_of(await self.rows.require(collection_id, lock=True))

    async def of_slug(self, slug: str) -> pb.Collection:
        """Raises CollectionNotFound."""
        row = await self.rows.find(slug=slug)
        if row is None:
            raise CollectionNotFound(collection=slug)
        return _collection_of(row)

    async def page(self, after: str, limit: int) -> list[pb.Collection]:
        """By title; `after` is title and id of the last one seen, as JSON."""
        last_seen = tuple(json.loads(after)) if after else None
        rows = await self.rows.page("", limit, filters={"(title, collection_id) > ({}, {})": last_seen})
        return list(map(_collection_of, rows))

    async def put(self, collection: pb.Collection) -> pb.Collection:
        """Insert or replace. Raises SlugTaken."""
        values = values_of(collection, "collection_id", "slug", "title", "description", "rules")
        with _naming_conflicts(slug=collection.slug):
            return _collection_of(await self.rows.put(**values))

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
        return [row["product_id"] for row in await self._members.all(collection_id=collection_id)]

    async def of_products(self, product_ids: Collection[str]) -> dict[str, list[str]]:
        """For each product, the collections that it was put into."""
        rows = await self._database.fetch(
            "SELECT product_id, collection_id FROM collection_products WHERE product_id = ANY($1::uuid[])",
            list(product_ids),
        )
        found: dict[str, list[str]] = defaultdict(list)
        for product_id, collection_id in rows:
            found[product_id].append(collection_id)
        return found


@contextmanager
def _naming_conflicts(*, slug: str = "", sku: str = "", options: str = "") -> Iterator[None]:
    """Say what is taken, when something is."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name in ("products_slug", "collections_slug"):
            raise SlugTaken(slug=slug) from None
        if error.constraint_name == "variants_sku":
            raise SkuTaken(sku=sku) from None
        if error.constraint_name == "variants_options":
            raise OptionsTaken(options=options) from None
        raise


def _only(found: Sequence[pb.Product], name: str) -> pb.Product:
    if not found:
        raise ProductNotFound(product=name)
    return found[0]


def _product(row: Row) -> pb.Product:
    attributes = json.loads(row["attributes"])
    return _product_of(
        row, attributes=[pb.AttributeValue(key=key, values=values) for key, values in attributes.items()]
    )


def _product_row(product: pb.Product) -> dict[str, Any]:
    columns = ("product_id", "slug", "title", "description", "language", "brand", "category", "tags", "options")
    attributes = {attribute.key: list(attribute.values) for attribute in product.attributes}
    return {**values_of(product, *columns), "attributes": attributes}


def _variant_row(variant: pb.Variant) -> dict[str, Any]:
    measures = ("weight_grams", "length_mm", "width_mm", "height_mm")
    columns = ("variant_id", "product_id", "sku", "option_values", "barcode", *measures, "tax_category", "digital")
    return {**values_of(variant, *columns), "media_id": variant.media_id or None}
