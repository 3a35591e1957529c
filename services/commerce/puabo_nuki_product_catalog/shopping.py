"""What buyers ask of the catalogue: a search, a product with its prices, and what a basket costs."""

import json
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from nexus.commerce.puabo_nuki_product_catalog.v1 import prices_pb2, storefront_pb2
from nexus.commerce.puabo_nuki_product_catalog.v1 import products_pb2 as pb
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import now
from services.chassis.database import Database
from services.chassis.events import Events
from services.chassis.messages import MessageOf, values_of
from services.commerce.puabo_nuki_product_catalog import search
from services.commerce.puabo_nuki_product_catalog.prices import Price, price_at
from services.commerce.puabo_nuki_product_catalog.pricing import DEFAULT_CHANNEL, Pricing
from services.commerce.puabo_nuki_product_catalog.products import title_of
from services.commerce.puabo_nuki_product_catalog.store.products import CollectionStore, ProductStore
from services.commerce.puabo_nuki_product_catalog.store.search import Query, SearchStore

_PAGE = 24
_NOTHING = -1
"""The id of a facet that no product has."""
_result = MessageOf(storefront_pb2.SearchResult, price="lowest", highest_price="highest", regular_price="regular")
_NAMES = {search.BRAND: "Brand", search.CATEGORY: "Category", search.TAG: "Tag"}


class Shopping:
    def __init__(self, database: Database, events: Events) -> None:
        self._products = ProductStore(database)
        self._collections = CollectionStore(database)
        self._search = SearchStore(database)
        self._pricing = Pricing(database, events)

    async def search(
        self, request: storefront_pb2.SearchProductsRequest, cursor: str
    ) -> tuple[storefront_pb2.SearchProductsResponse, str]:
        """The answer, and the cursor of the next page or "". Raises CollectionNotFound."""
        response = storefront_pb2.SearchProductsResponse()
        words = search.words_of(request.query)[: search.MOST_WORDS]
        if request.query.strip() and not words:
            return response, ""
        tsquery, corrected = await self._tsquery(words, request.language) if words else ("", [])
        if words and not tsquery:
            return response, ""
        size = request.page_size or _PAGE
        query = await self._query(request, tsquery, cursor, size + 1)
        results, response.total, facets = await self._search.find(query)
        response.results.extend(_result({**row, "currency": request.currency}) for row in results[:size])
        response.facets.extend(await self._facets(facets, request))
        if corrected != words:
            response.corrected_query = " ".join(corrected)
        if len(results) > size:
            last = results[size - 1]
            return response, json.dumps([last["key"], last["product_id"]])
        return response, ""

    async def _query(
        self, request: storefront_pb2.SearchProductsRequest, tsquery: str, cursor: str, size: int
    ) -> Query:
        required: dict[str, list[str]] = {}
        if request.collection:
            collection = await self._collections.of_slug(request.collection)
            required = search.filters_of(collection.rules) or {search.COLLECTION: [collection.collection_id]}
        filters = search.filters_of(request.filters)
        ids = await self._search.facet_ids(
            {(key, value) for asked in (required, filters) for key, values in asked.items() for value in values}
        )

        def chosen(key: str, values: Sequence[str]) -> list[int]:
            return [ids.get((key, value), _NOTHING) for value in values]

        usual = storefront_pb2.SEARCH_ORDER_RELEVANCE if tsquery else storefront_pb2.SEARCH_ORDER_NEWEST
        return Query(
            tsquery=tsquery,
            required=[chosen(key, values) for key, values in required.items()],
            filters=[(key, chosen(key, values)) for key, values in filters.items()],
            channel=request.channel or DEFAULT_CHANNEL,
            currency=request.currency,
            min_price=request.min_price if request.HasField("min_price") else None,
            max_price=request.max_price if request.HasField("max_price") else None,
            order=request.order or usual,
            after=json.loads(cursor) if cursor else None,
            size=size,
            facets=not request.without_facets,
            ranking="ts_rank" if " & " not in tsquery else "ts_rank_cd",
        )

    async def _tsquery(self, words: Sequence[str], language: str) -> tuple[str, list[str]]:
        """What documents must have, "" if nothing can have it; and the words that were looked for instead."""
        known_languages = {} if language else {each: search.configuration(each) for each in search.LANGUAGES}
        always = {search.ANY_LANGUAGE, search.configuration(language)}
        stems = await self._search.stems(known_languages, sorted(always), words)
        # Words that say nothing in their language are left out, unless there are no others.
        telling = [word for word in words if [] not in stems[word]] or words
        forms = {word: {word, *(stem for of_one in stems[word] for stem in of_one)} for word in telling}
        beginning = words[-1]
        known = await self._search.known_words({form for each in forms.values() for form in each}, beginning)
        terms: list[list[str]] = []
        meant = dict(zip(words, words, strict=True))
        for word in telling:
            found = forms[word] & known
            if word == beginning and f"{word}*" in known:
                found.add(f"{word}*")
            near = [] if found else await self._nearest(word)
            if near:
                meant[word] = near[0]
            if not (found or near):
                return "", []
            terms.append(sorted(found) or near)
        return search.tsquery(terms), [meant[word] for word in words]

    async def _nearest(self, word: str) -> list[str]:
        return search.nearest(word, await self._search.vocabulary(len(word) - 2, len(word) + 2))

    async def _facets(
        self, counts: Sequence[dict[str, Any]], request: storefront_pb2.SearchProductsRequest
    ) -> list[storefront_pb2.Facet]:
        if not counts:
            return []
        attributes = await self._products.attributes()
        selected = search.filters_of(request.filters)
        facets = []
        for key, of_key in groupby(counts, key=itemgetter("key")):
            if key != search.COLLECTION and (not request.facets or key in request.facets):
                facet = storefront_pb2.Facet(key=key, name=_facet_name(key, attributes))
                for row in of_key:
                    value = row["value"]
                    facet.values.add(value=value, count=row["count"], selected=value in selected.get(key, ()))
                facets.append(facet)
        return facets

    async def product(self, slug: str, channel: str, currency: str) -> storefront_pb2.GetPublishedProductResponse:
        """Raises ProductNotFound."""
        product = await self._products.published(slug)
        prices: dict[str, Price | None] = {}
        if currency:
            moment = now()
            ids = [variant.variant_id for variant in product.variants]
            entries = await self._pricing.entries(ids, channel, currency)
            prices = {variant_id: price_at(of_variant, moment) for variant_id, of_variant in entries.items()}
        variants = [
            storefront_pb2.PricedVariant(variant=variant, **_costs(prices.get(variant.variant_id), currency))
            for variant in product.variants
        ]
        product.ClearField("variants")
        return storefront_pb2.GetPublishedProductResponse(product=product, variants=variants)

    async def resolve(
        self, lines: Sequence[prices_pb2.ResolveLine], channel: str, currency: str, at: datetime | None
    ) -> tuple[list[prices_pb2.ResolvedVariant], datetime]:
        """One answer for each line, and the moment they are of. Raises PricePast for a moment to come."""
        products = await self._products.resolve(
            {line.variant_id for line in lines if line.variant_id}, {line.sku for line in lines if line.sku}
        )
        by_name: dict[str, tuple[pb.Product, pb.Variant]] = {}
        for product in products:
            for variant in product.variants:
                by_name[variant.variant_id] = by_name["sku " + variant.sku] = (product, variant)
        found = [by_name.get(line.variant_id or "sku " + line.sku) for line in lines]
        entries, moment = await self._pricing.known(
            {each[1].variant_id for each in found if each}, channel, currency, at
        )
        resolved = []
        for line, each in zip(lines, found, strict=True):
            quantity = line.quantity or 1
            if each is None:
                unknown = prices_pb2.ResolvedVariant(
                    purchasable=prices_pb2.PURCHASABLE_UNKNOWN_VARIANT, quantity=quantity
                )
                resolved.append(unknown)
            else:
                price = price_at(entries[each[1].variant_id], moment, quantity)
                resolved.append(_resolved(*each, price, currency, quantity))
        return resolved, moment


def _resolved(
    product: pb.Product, variant: pb.Variant, price: Price | None, currency: str, quantity: int
) -> prices_pb2.ResolvedVariant:
    purchasable = prices_pb2.PURCHASABLE_YES
    if product.state != pb.PRODUCT_STATE_PUBLISHED:
        purchasable = prices_pb2.PURCHASABLE_NOT_PUBLISHED
    elif price is None:
        purchasable = prices_pb2.PURCHASABLE_NO_PRICE
    resolved = prices_pb2.ResolvedVariant(
        purchasable=purchasable,
        variant=variant,
        product_title=product.title,
        **values_of(product, "slug", "brand"),
        variant_title=title_of(variant),
        quantity=quantity,
        **_costs(price, currency),
    )
    if price is not None:
        resolved.price_entry_id = price.entry.entry_id
        resolved.price_list_id = price.entry.price_list_id
    return resolved


def _costs(price: Price | None, currency: str) -> dict[str, Any]:
    """What a message says of a price."""
    if price is None:
        return {}
    regular = Money(currency=currency, minor_units=price.regular) if price.regular is not None else None
    return {
        "price": Money(currency=currency, minor_units=price.minor_units),
        "regular_price": regular,
        "tax_included": price.entry.tax_included,
    }


def _facet_name(key: str, attributes: dict[str, pb.Attribute]) -> str:
    attribute = attributes.get(key.removeprefix(search.ATTRIBUTE))
    if key.startswith(search.ATTRIBUTE) and attribute is not None:
        return attribute.name or attribute.key
    return _NAMES.get(key, key.removeprefix(search.OPTION))
