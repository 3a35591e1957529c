"""What a product must be: names in addresses, options and their tuples, values of attributes, pictures."""

import io
import re
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation

from PIL import Image, UnidentifiedImageError

from nexus.commerce.puabo_nuki_product_catalog.v1 import products_pb2 as pb
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import (
    AttributeInvalid,
    MediaInvalid,
    OptionsInvalid,
    OptionsTaken,
    ProductIncomplete,
    ProductTooLarge,
)

MOST_VARIANTS = 250
MOST_PICTURES = 50
_LONGEST_SLUG = 120
_LONGEST_SKU = 64
_MOST_PIXELS = 50_000_000
_FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}


def slug_of(*words: str) -> str:
    """ "Linen shirt", "Blåu" → "linen-shirt-blau": as it can stand in an address; "" if nothing of it can."""
    ascii_only = unicodedata.normalize("NFKD", " ".join(words).replace("ß", "ss")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only.lower()).strip("-")[:_LONGEST_SLUG].strip("-")


def sku_of(slug: str, option_values: Iterable[str]) -> str:
    """The number of a variant that was given none."""
    return slug_of(slug, *option_values)[:_LONGEST_SKU]


def title_of(variant: pb.Variant) -> str:
    """What a variant is among those of its product: "M / Blue"."""
    return " / ".join(variant.option_values)


def require_variants(product: pb.Product) -> None:
    """Raises OptionsInvalid, OptionsTaken, ProductTooLarge unless every variant is one tuple of the product's options
    and no two are the same."""
    names = [option.name for option in product.options]
    if len(set(names)) != len(names):
        raise OptionsInvalid(why="two options have the same name")
    if len(product.variants) > MOST_VARIANTS:
        raise ProductTooLarge(limit=MOST_VARIANTS, what="variants")
    taken: set[tuple[str, ...]] = set()
    for variant in product.variants:
        values = tuple(variant.option_values)
        require_options(product, values)
        if values in taken:
            raise OptionsTaken(options=title_of(variant) or "the only one")
        taken.add(values)


def require_options(product: pb.Product, values: Sequence[str]) -> None:
    """Raises OptionsInvalid."""
    if len(values) != len(product.options):
        names = ", ".join(option.name for option in product.options) or "nothing"
        raise OptionsInvalid(why=f"a variant needs a value for {names}, in this order")
    for option, value in zip(product.options, values, strict=True):
        if value not in option.values:
            raise OptionsInvalid(why=f"{value} is no {option.name}; there are {', '.join(option.values)}")


def require_same_options(before: pb.Product, after: pb.Product) -> None:
    """Raises OptionsInvalid if options are not those that the variants were made for; they may gain values."""
    if before.variants and [option.name for option in before.options] != [option.name for option in after.options]:
        raise OptionsInvalid(why="there are variants already, so the options stay, and their names")


def require_attributes(attributes: Mapping[str, pb.Attribute], values: Collection[pb.AttributeValue]) -> None:
    """Raises AttributeInvalid."""
    if len({value.key for value in values}) != len(values):
        raise AttributeInvalid(attribute=next(iter(values)).key, why="an attribute is named twice")
    for value in values:
        attribute = attributes.get(value.key)
        if attribute is None:
            raise AttributeInvalid(attribute=value.key, why="there is no such attribute")
        for text in value.values:
            if why := _objection(attribute, text):
                raise AttributeInvalid(attribute=value.key, why=why)


def _objection(attribute: pb.Attribute, text: str) -> str:
    if attribute.kind == pb.ATTRIBUTE_KIND_NUMBER:
        try:
            finite = Decimal(text).is_finite()
        except InvalidOperation:
            finite = False
        return "" if finite else f"{text} is not a number"
    if attribute.kind == pb.ATTRIBUTE_KIND_BOOLEAN:
        return "" if text in ("true", "false") else f"{text} is neither true nor false"
    if attribute.kind == pb.ATTRIBUTE_KIND_CHOICE:
        return "" if text in attribute.choices else f"{text} is none of the choices"
    return ""


def allows(attribute: pb.Attribute, values: Iterable[str]) -> bool:
    return not any(_objection(attribute, value) for value in values)


def require_complete(product: pb.Product) -> None:
    """Raises ProductIncomplete unless it can be shown and bought."""
    if not product.title:
        raise ProductIncomplete(why="it has no title")
    if not product.variants:
        raise ProductIncomplete(why="it has no variant")


def size_of_picture(data: bytes, content_type: str) -> tuple[int, int]:
    """Width and height in pixels. Raises MediaInvalid for what is no such picture, or too large a one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=[_FORMATS[content_type]]) as picture:
                width, height = picture.size
                picture.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise MediaInvalid(why=f"it is not {content_type}, or damaged") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MediaInvalid(why="it has too many pixels") from None
    if width * height > _MOST_PIXELS:
        raise MediaInvalid(why="it has too many pixels")
    return width, height
