"""CSV files of products: what their columns mean, and what a row does to a product.

The file is parsed by the standard library (RFC 4180). What a row says is checked by the contract's own rules, as if it
had come in a request.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import protovalidate

from nexus.commerce.puabo_nuki_product_catalog.v1 import products_pb2 as pb
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import ImportUnreadable
from services.chassis.errors import Fault
from services.chassis.ids import new_id
from services.commerce.puabo_nuki_product_catalog import products as rules

MOST_BYTES = 64 * 1024 * 1024
MOST_ROWS = 500_000
SLUG, SKU, STATE, TAGS = "slug", "sku", "state", "tags"
OPTION, ATTRIBUTE, PRICE = "option.", "attribute.", "price."
_PRODUCT_TEXTS = ("title", "description", "language", "brand", "category")
_VARIANT_TEXTS = ("barcode", "tax_category")
_VARIANT_NUMBERS = ("weight_grams", "length_mm", "width_mm", "height_mm")
_KNOWN = {SLUG, SKU, STATE, TAGS, "digital", *_PRODUCT_TEXTS, *_VARIANT_TEXTS, *_VARIANT_NUMBERS}
_STATES = {"published": pb.PRODUCT_STATE_PUBLISHED, "draft": pb.PRODUCT_STATE_DRAFT}
_MANY = "|"
_SHOWN = 100

Row = Mapping[str, str]
"""The fields of a row that are not empty, by column."""


@dataclass(frozen=True)
class RowError:
    row_number: int
    """From 1 on, without the header."""
    column_name: str
    value: str
    message: str


class RowRejected(Exception):  # noqa: N818  what becomes of the row
    """A row cannot be imported."""

    def __init__(self, column: str, value: str, message: str) -> None:
        super().__init__(message)
        self.column, self.value, self.message = column, value[:_SHOWN], message

    def at(self, row: int) -> RowError:
        return RowError(row, self.column, self.value, self.message)


@dataclass(frozen=True)
class File:
    columns: Sequence[str]
    rows: Sequence[Row]
    repeats: Mapping[int, int]
    """Rows with a SKU that an earlier row has, by their index: the number of that row."""

    def named(self, prefix: str) -> list[str]:
        """What columns with a prefix are about: "option.Size" → Size."""
        return [column.removeprefix(prefix) for column in self.columns if column.startswith(prefix)]


def read(data: bytes) -> File:
    """Raises ImportUnreadable."""
    try:
        lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        columns = [column.strip() for column in next(lines, [])]
        _require_columns(columns)
        rows = [_row(columns, line) for line in lines if any(line)]
    except UnicodeDecodeError as error:
        raise ImportUnreadable(why=f"it is not UTF-8 at byte {error.start}") from None
    except csv.Error as error:
        raise ImportUnreadable(why=f"it is not CSV: {error}") from None
    if not rows or len(rows) > MOST_ROWS:
        raise ImportUnreadable(why=f"it has {len(rows)} rows, and may have from 1 to {MOST_ROWS}")
    first: dict[str, int] = {}
    repeats = {
        index: number
        for index, row in enumerate(rows)
        if (sku := row.get(SKU)) and (number := first.setdefault(sku, index + 1)) != index + 1
    }
    return File(columns, rows, repeats)


def _require_columns(columns: Sequence[str]) -> None:
    for column in columns:
        prefixed = any(column.startswith(prefix) and column != prefix for prefix in (OPTION, ATTRIBUTE, PRICE))
        if column not in _KNOWN and not prefixed:
            raise ImportUnreadable(why=f"there is no column {column[:_SHOWN]!r}")
        if columns.count(column) > 1:
            raise ImportUnreadable(why=f"the column {column[:_SHOWN]} is there twice")
    for needed in (SLUG, SKU):
        if needed not in columns:
            raise ImportUnreadable(why=f"the column {needed} is missing")


def _row(columns: Sequence[str], line: Sequence[str]) -> Row:
    row = {column: text.strip() for column, text in zip(columns, line, strict=False) if text.strip()}
    return row if len(line) <= len(columns) else {**row, "": line[len(columns)]}


@dataclass
class Outcome:
    """What became of a batch of rows."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    errors: list[RowError] = field(default_factory=list)


@dataclass(frozen=True)
class Applied:
    """A row that has been put into its product."""

    slug: str
    variant: pb.Variant
    prices: Mapping[str, int]
    """Minor units by the key of the price list."""


class Batch:
    """Products while rows are put into them, one after the other; a row that is rejected leaves no trace."""

    def __init__(
        self,
        products: Iterable[pb.Product],
        owners: Mapping[str, str],
        attributes: Mapping[str, pb.Attribute],
    ) -> None:
        """`owners` has the slug of the product for each SKU that is taken."""
        self.products = {product.slug: product for product in products}
        self._before = {slug: _copy(product) for slug, product in self.products.items()}
        self._owners = dict(owners)
        self._attributes = attributes

    def apply(self, row: Row) -> Applied:
        """Raises RowRejected."""
        slug, sku = _needed(row, SLUG), _needed(row, SKU)
        if "" in row:
            raise RowRejected("", row[""], "The row has more fields than there are columns.")
        if self._owners.get(sku, slug) != slug:
            raise RowRejected(SKU, sku, f"The SKU belongs to the product {self._owners[sku]}.")
        product = _copy(self.products[slug]) if slug in self.products else pb.Product(product_id=new_id(), slug=slug)
        prices = {column.removeprefix(PRICE): _natural(row, column) for column in row if column.startswith(PRICE)}
        try:
            _put_product(product, row)
            variant = _put_variant(product, row)
            rules.require_variants(product)
            rules.require_attributes(self._attributes, product.attributes)
            if product.state == pb.PRODUCT_STATE_PUBLISHED:
                rules.require_complete(product)
        except Fault as fault:
            raise RowRejected("", "", fault.message) from None
        _validate(product, row)
        self.products[slug] = product
        self._owners[sku] = slug
        return Applied(slug, variant, prices)

    def changed(self) -> list[pb.Product]:
        """Products that are new, or of which something else than variants is."""
        return [product for slug, product in self.products.items() if _bare(product) != _bare(self._before.get(slug))]

    def changed_variants(self) -> list[pb.Variant]:
        known = {variant.variant_id: variant for before in self._before.values() for variant in before.variants}
        return [
            variant
            for product in self.products.values()
            for variant in product.variants
            if known.get(variant.variant_id) != variant
        ]

    def is_changed(self, applied: Applied) -> bool:
        """Whether the variant, or what it shares with the others of its product, is not what it was."""
        before = self._before.get(applied.slug)
        if before is None or applied.variant not in before.variants:
            return True
        return _bare(self.products[applied.slug]) != _bare(before)

    def was_published(self, slug: str) -> bool:
        before = self._before.get(slug)
        return before is not None and before.state == pb.PRODUCT_STATE_PUBLISHED


def _copy(product: pb.Product) -> pb.Product:
    copied = pb.Product()
    copied.CopyFrom(product)
    return copied


def _bare(product: pb.Product | None) -> pb.Product | None:
    if product is None:
        return None
    bare = _copy(product)
    bare.ClearField("variants")
    return bare


def _needed(row: Row, column: str) -> str:
    if column not in row:
        raise RowRejected(column, "", f"The {column} is missing.")
    return row[column]


def _natural(row: Row, column: str) -> int:
    text = row[column]
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise RowRejected(column, text, "This must be a whole number, 0 or more.")
    return int(text)


def _put_product(product: pb.Product, row: Row) -> None:
    for name in _PRODUCT_TEXTS:
        if name in row:
            setattr(product, name, row[name])
    if TAGS in row:
        product.tags[:] = _list(row[TAGS])
    if STATE in row:
        if row[STATE] not in _STATES:
            raise RowRejected(STATE, row[STATE], "This must be published or draft.")
        product.state = _STATES[row[STATE]]
    if not product.state:
        product.state = pb.PRODUCT_STATE_DRAFT
    attributes = {attribute.key: list(attribute.values) for attribute in product.attributes}
    attributes |= {
        column.removeprefix(ATTRIBUTE): _list(text) for column, text in row.items() if column.startswith(ATTRIBUTE)
    }
    del product.attributes[:]
    product.attributes.extend(pb.AttributeValue(key=key, values=values) for key, values in attributes.items())


def _put_variant(product: pb.Product, row: Row) -> pb.Variant:
    chosen = {column.removeprefix(OPTION): text for column, text in row.items() if column.startswith(OPTION)}
    if not product.variants and not product.options:
        product.options.extend(pb.ProductOption(name=name) for name in chosen)
    variant = next((variant for variant in product.variants if variant.sku == row[SKU]), None)
    if variant is None:
        variant = product.variants.add(variant_id=new_id(), product_id=product.product_id, sku=row[SKU])
    if chosen or not variant.etag:
        names = [option.name for option in product.options]
        if sorted(names) != sorted(chosen):
            raise RowRejected(OPTION, "", f"The options of the product are {', '.join(names) or 'none'}.")
        for option in product.options:
            if chosen[option.name] not in option.values:
                option.values.append(chosen[option.name])
        variant.option_values[:] = [chosen[name] for name in names]
    for name in _VARIANT_TEXTS:
        if name in row:
            setattr(variant, name, row[name])
    for name in _VARIANT_NUMBERS:
        if name in row:
            number = _natural(row, name)
            if number > 1_000_000_000:
                raise RowRejected(name, row[name], "This is too much.")
            setattr(variant, name, number)
    if "digital" in row:
        if row["digital"] not in ("true", "false"):
            raise RowRejected("digital", row["digital"], "This must be true or false.")
        variant.digital = row["digital"] == "true"
    return variant


def _list(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(_MANY) if part.strip()))


def _validate(product: pb.Product, row: Row) -> None:
    """Raises RowRejected for what the contract does not allow."""
    try:
        protovalidate.validate(product)
    except protovalidate.ValidationError as error:
        violation = error.violations[0].proto
        path = [element.field_name for element in violation.field.elements] if violation.field else [""]
        column = path[-1] if path[-1] in row else path[0]
        raise RowRejected(column, row.get(column, ""), f"{'.'.join(path)}: {violation.message}.") from None
