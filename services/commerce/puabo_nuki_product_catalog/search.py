"""What is searched for: words as they are compared, documents as they are found, and what a mistyped word meant.

Texts and queries are cut into the same words here, so that neither depends on what PostgreSQL's parser makes of
hyphens, numbers or addresses; inflections are PostgreSQL's (`to_tsvector` in the language of the product).
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rapidfuzz.distance import OSA

from nexus.commerce.puabo_nuki_product_catalog.v1 import products_pb2 as pb

LANGUAGES = {
    "da": "danish",
    "de": "german",
    "en": "english",
    "es": "spanish",
    "fi": "finnish",
    "fr": "french",
    "hu": "hungarian",
    "it": "italian",
    "nl": "dutch",
    "no": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sv": "swedish",
    "tr": "turkish",
}
"""Languages whose inflections PostgreSQL knows, by ISO 639-1."""
ANY_LANGUAGE = "simple"
COLLECTION = "collection"
"""The facet of the collections that a product is in; of no use to buyers, and not shown."""
CATEGORY, BRAND, TAG = "category", "brand", "tag"
OPTION, ATTRIBUTE = "option.", "attribute."
MOST_WORDS = 12
_LONGEST_WORD = 60
_MOST_CORRECTIONS = 5


def words_of(text: str) -> list[str]:
    """ "Crème-brûlée, 2er" → creme, brulee, 2er: without case and accents."""
    # Twice: what letters are made of may have case, and what they fold to may have accents.
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    plain = "".join(character for character in decomposed if not unicodedata.combining(character))
    return [word[:_LONGEST_WORD] for word in re.findall(r"[^\W_]+", plain)]


def configuration(language: str) -> str:
    """PostgreSQL's text search configuration of a language."""
    return LANGUAGES.get(language, ANY_LANGUAGE)


@dataclass(frozen=True)
class Document:
    """A product, as it is found."""

    product_id: str
    configuration: str
    texts: tuple[str, str, str, str]
    """Words joined by spaces, by weight: those of A, the first, count most, then B, C and D."""
    facets: frozenset[tuple[str, str]]
    title_key: str


def document(product: pb.Product, collection_ids: Iterable[str], facet_attributes: Collection[str]) -> Document:
    skus = [variant.sku for variant in product.variants] + [variant.barcode for variant in product.variants]
    options = [value for option in product.options for value in option.values]
    attributes = [value for attribute in product.attributes for value in attribute.values]
    title = _joined([product.title])
    sorts = _joined([product.brand, product.category, *product.tags, *skus])
    return Document(
        product_id=product.product_id,
        configuration=configuration(product.language),
        texts=(title, sorts, _joined([*options, *attributes]), _joined([product.description])),
        facets=frozenset(_facets(product, collection_ids, facet_attributes)),
        title_key=title,
    )


def _joined(texts: Iterable[str]) -> str:
    return " ".join(word for text in texts for word in words_of(text))


def _facets(
    product: pb.Product, collection_ids: Iterable[str], facet_attributes: Collection[str]
) -> Iterable[tuple[str, str]]:
    if product.brand:
        yield BRAND, product.brand
    steps = product.category.split("/") if product.category else []
    for length in range(1, len(steps) + 1):
        yield CATEGORY, "/".join(steps[:length])
    for tag in product.tags:
        yield TAG, tag
    for variant in product.variants:
        for option, value in zip(product.options, variant.option_values, strict=True):
            yield OPTION + option.name, value
    for attribute in product.attributes:
        if attribute.key in facet_attributes:
            for value in attribute.values:
                yield ATTRIBUTE + attribute.key, value
    for collection_id in collection_ids:
        yield COLLECTION, collection_id


def filters_of(filters: Iterable[str]) -> dict[str, list[str]]:
    """ "brand:Nordlys", "brand:Fjord", "tag:new" → the values asked for of each facet."""
    asked: dict[str, list[str]] = defaultdict(list)
    for text in filters:
        key, _, value = text.partition(":")
        asked[key].append(value)
    return dict(asked)


def tsquery(terms: Sequence[Sequence[str]]) -> str:
    """PostgreSQL's notation: each term must be found, in one of its forms; a form that ends in "*" is a beginning."""
    return " & ".join("(" + " | ".join(map(_lexeme, sorted(forms))) + ")" for forms in terms)


def _lexeme(form: str) -> str:
    # Words have letters and digits only, so there is nothing to escape.
    return f"'{form[:-1]}':*" if form.endswith("*") else f"'{form}'"


def nearest(word: str, vocabulary: Mapping[str, int]) -> list[str]:
    """What a word that nothing has was meant to be: the nearest words, the frequent ones first.

    One slip (a letter too many, too few, wrong, or two swapped) in words of four letters or more, two in words of
    eight or more. `vocabulary` says for each word how many documents have it.
    """
    slips = 0 if len(word) < 4 else 1 if len(word) < 8 else 2
    if not slips:
        return []
    near = []
    for known, documents in vocabulary.items():
        distance = OSA.distance(word, known, score_cutoff=slips)
        if distance <= slips:
            near.append((distance, -documents, known))
    near.sort()
    closest = near[0][0] if near else 0
    return [known for distance, _, known in near if distance == closest][:_MOST_CORRECTIONS]
