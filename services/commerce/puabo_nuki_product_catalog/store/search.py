"""The SQL of the search; of the call's tenant.

Row-level security keeps PostgreSQL from using a GIN index on words (`@@` is not leakproof), so a query looks at all
published products of the tenant: some ten milliseconds for 10,000 of them. What only the page shows is looked up for
the page, and prices one product at a time: a plan made before the statistics know of an import must not join everything
with everything.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexus.commerce.puabo_nuki_product_catalog.v1 import storefront_pb2 as pb
from services.chassis.database import Database
from services.commerce.puabo_nuki_product_catalog.search import Document

_KEYS: dict[int, tuple[str, str, bool]] = {
    # What results are ordered by, its type, and whether the largest comes first.
    pb.SEARCH_ORDER_RELEVANCE: ("rank", "float8", True),
    pb.SEARCH_ORDER_NEWEST: ("extract(epoch FROM publish_time)::float8", "float8", True),
    pb.SEARCH_ORDER_PRICE_ASCENDING: ("coalesce(lowest, 9223372036854775807)", "bigint", False),
    pb.SEARCH_ORDER_PRICE_DESCENDING: ("coalesce(lowest, -1)", "bigint", True),
    pb.SEARCH_ORDER_TITLE: ("title_key", "text", False),
}
_BY_PRICE = (pb.SEARCH_ORDER_PRICE_ASCENDING, pb.SEARCH_ORDER_PRICE_DESCENDING)
_WEIGHTS = "'{0.05, 0.2, 0.4, 1.0}'"
_MOST_FACET_VALUES = 100


@dataclass(frozen=True)
class Query:
    """What is looked for, in terms of the database."""

    tsquery: str = ""
    """Everything when empty."""
    required: Sequence[Sequence[int]] = ()
    """Facets of which products must have one each."""
    filters: Sequence[tuple[str, Sequence[int]]] = ()
    """The same, by key, for filters that a facet's own counts leave out."""
    channel: str = ""
    currency: str = ""
    min_price: int | None = None
    max_price: int | None = None
    order: int = pb.SEARCH_ORDER_NEWEST
    after: tuple[Any, str] | None = None
    """The key and id of the last result seen."""
    size: int = 24
    facets: bool = True
    ranking: str = "ts_rank_cd"
    """`ts_rank_cd` minds how near words are to each other; `ts_rank`, for a single one, does not, and is quicker."""


class SearchStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, documents: Sequence[Document], removed: Collection[str] = ()) -> None:
        """Let these products be found, as they are now, and those not any more."""
        touched = sorted([*(each.product_id for each in documents), *removed])
        before = await self._word_counts(touched)
        await self._database.execute("DELETE FROM search_documents WHERE product_id = ANY($1::uuid[])", list(removed))
        if documents:
            facets = sorted({facet for document in documents for facet in document.facets})
            await self._add_facets(facets)
            ids = await self.facet_ids(facets)
            await self._database.executemany(
                """
                INSERT INTO search_documents (product_id, language, words, facets, title_key, publish_time)
                SELECT $1, language,
                    setweight(to_tsvector($3::text::regconfig, $4) || to_tsvector('simple', $4), 'A')
                    || setweight(to_tsvector($3::text::regconfig, $5) || to_tsvector('simple', $5), 'B')
                    || setweight(to_tsvector($3::text::regconfig, $6) || to_tsvector('simple', $6), 'C')
                    || setweight(to_tsvector($3::text::regconfig, $7), 'D'),
                    $2, $8, publish_time
                FROM products WHERE product_id = $1
                ON CONFLICT (product_id) DO UPDATE
                SET language = excluded.language, words = excluded.words, facets = excluded.facets,
                    title_key = excluded.title_key, publish_time = excluded.publish_time
                """,
                [_row(document, ids) for document in documents],
            )
        changed = await self._word_counts(touched)
        changed.subtract(before)
        await self._count_words({word: count for word, count in changed.items() if count})

    async def _word_counts(self, product_ids: Sequence[str]) -> Counter[str]:
        rows = await self._database.fetch(
            "SELECT tsvector_to_array(words) AS words FROM search_documents WHERE product_id = ANY($1::uuid[])",
            list(product_ids),
        )
        return Counter(word for row in rows for word in row["words"])

    async def _count_words(self, changes: Mapping[str, int]) -> None:
        # In one order, so that two who publish at once never wait for each other.
        words = sorted(changes, key=str.encode)
        await self._database.execute(
            """
            INSERT INTO search_words AS known (word, documents)
            SELECT word, change FROM unnest($1::text[], $2::int[]) WITH ORDINALITY AS changed (word, change, number)
            ORDER BY number
            ON CONFLICT (tenant_id, word) DO UPDATE SET documents = known.documents + excluded.documents
            """,
            words,
            [changes[word] for word in words],
        )

    async def _add_facets(self, facets: Sequence[tuple[str, str]]) -> None:
        await self._database.execute(
            "INSERT INTO search_facets (key, value) SELECT * FROM unnest($1::text[], $2::text[]) AS f (key, value) "
            "WHERE NOT EXISTS (SELECT FROM search_facets s WHERE s.tenant_id = nexus.tenant_id() "
            "AND (s.key, s.value) = (f.key, f.value)) ORDER BY 1, 2 ON CONFLICT DO NOTHING",
            [key for key, _ in facets],
            [value for _, value in facets],
        )

    async def facet_ids(self, facets: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Of those that there are."""
        if not facets:
            return {}
        rows = await self._database.fetch(
            "SELECT key, value, facet_id FROM search_facets WHERE tenant_id = nexus.tenant_id() "
            "AND (key, value) IN (SELECT * FROM unnest($1::text[], $2::text[]))",
            [key for key, _ in facets],
            [value for _, value in facets],
        )
        return {(key, value): facet_id for key, value, facet_id in rows}

    async def stems(
        self, configurations: Mapping[str, str], always: Sequence[str], words: Sequence[str]
    ) -> dict[str, list[list[str]]]:
        """For each word, its stems in each configuration: none where it is a stop word. `configurations`, by language,
        count if published products are in the language; those in `always` do anyhow."""
        rows = await self._database.fetch(
            """
            SELECT word, tsvector_to_array(to_tsvector(configuration::regconfig, word)) AS stems
            FROM unnest($1::text[]) AS word, (
                SELECT unnest($2::text[]) AS configuration
                UNION SELECT asked.configuration FROM unnest($3::text[], $4::text[]) AS asked (language, configuration)
                WHERE EXISTS (SELECT FROM search_documents AS document
                              WHERE tenant_id = nexus.tenant_id() AND document.language = asked.language)
            ) AS spoken
            """,
            list(words),
            list(always),
            list(configurations),
            list(configurations.values()),
        )
        found: dict[str, list[list[str]]] = {word: [] for word in words}
        for word, stems in rows:
            found[word].append(stems)
        return found

    async def known_words(self, words: Collection[str], beginning: str) -> set[str]:
        """Those of the words that documents have; and `beginning`, if one of theirs begins so."""
        rows = await self._database.fetch(
            """
            SELECT word FROM search_words
            WHERE tenant_id = nexus.tenant_id() AND word = ANY($1) AND documents > 0
            UNION ALL
            SELECT $2 || '*' WHERE $2 <> '' AND EXISTS (
                SELECT FROM search_words WHERE tenant_id = nexus.tenant_id() AND word >= $2
                AND word < $2 || chr(1114111) AND documents > 0)
            """,
            list(words),
            beginning,
        )
        return {row["word"] for row in rows}

    async def vocabulary(self, shortest: int, longest: int) -> dict[str, int]:
        """The words of these lengths that documents have, and how many have them."""
        rows = await self._database.fetch(
            "SELECT word, documents FROM search_words WHERE tenant_id = nexus.tenant_id() AND documents > 0 "
            "AND length(word) BETWEEN $1 AND $2",
            shortest,
            longest,
        )
        return dict(rows)

    async def find(self, query: Query) -> tuple[list[dict[str, Any]], int, list[dict[str, Any]]]:
        """A page of results, how many there are, and the counts of facets by key, most frequent first."""
        values: list[Any] = []

        def value(given: Any, kind: str = "") -> str:
            values.append(given)
            return f"${len(values)}{kind}"

        words = value(query.tsquery, "::text::tsquery") if query.tsquery else ""
        conditions = ["d.tenant_id = nexus.tenant_id()"]
        if words:
            conditions.append(f"d.words @@ {words}")
        conditions += [f"d.facets && {value(list(ids), '::int[]')}" for ids in query.required]
        if query.min_price is not None:
            conditions.append(f"p.highest >= {value(query.min_price)}")
        if query.max_price is not None:
            conditions.append(f"p.lowest <= {value(query.max_price)}")
        misses = [f"NOT d.facets && {value(list(ids), '::int[]')}" for _, ids in query.filters]
        failed = " + ".join(f"({miss})::int" for miss in misses) or "0"
        which = "".join(f" WHEN {miss} THEN {number}" for number, miss in enumerate(misses))
        key, kind, descending = _KEYS[query.order]
        direction = "DESC" if descending else "ASC"
        rank = f"{query.ranking}({_WEIGHTS}, d.words, {words})::float8" if words and key == "rank" else "0::float8"
        prices = f"""LEFT JOIN LATERAL (
            SELECT lowest, highest, regular FROM search_prices p
            WHERE p.tenant_id = nexus.tenant_id() AND p.product_id = {{of}}.product_id
                AND p.channel = {value(query.channel)} AND p.currency = {value(query.currency)}
                AND p.start_time <= now() AND p.end_time > now() LIMIT 1) AS p ON true"""
        by_price = query.order in _BY_PRICE or query.min_price is not None or query.max_price is not None
        page = ["failed = 0"]
        if query.after is not None:
            last, product_id = value(query.after[0], f"::{kind}"), value(query.after[1], "::uuid")
            page.append(
                f"({key} {'<' if descending else '>'} {last} OR ({key} = {last} AND product_id > {product_id}))"
            )
        facets = self._facet_query(query, value) if query.facets else "NULL"
        row = await self._database.fetchrow(
            f"""
            WITH matched AS MATERIALIZED (
                SELECT d.product_id, d.facets, d.title_key, d.publish_time, {"p.lowest, " if by_price else ""}
                       {rank} AS rank, {failed} AS failed, {f"CASE{which} END" if which else "NULL::int"} AS missed
                FROM search_documents d {prices.format(of="d") if by_price else ""}
                WHERE {" AND ".join(conditions)}
            ), page AS (
                SELECT product_id, {key} AS key FROM matched WHERE {" AND ".join(page)}
                ORDER BY 2 {direction}, product_id LIMIT {value(query.size)}
            )
            SELECT (SELECT count(*) FROM matched WHERE failed = 0) AS total,
                   (SELECT jsonb_agg(to_jsonb(shown) ORDER BY shown.key {direction}, product_id)
                    FROM (SELECT page.*, lowest, highest, regular, slug, title, brand, category, picture.media_id,
                                 picture.alt_text
                          FROM page JOIN products USING (product_id) {prices.format(of="page")} LEFT JOIN LATERAL (
                              SELECT media_id, alt_text FROM media WHERE media.product_id = page.product_id
                              ORDER BY position, media_id LIMIT 1) AS picture ON true) AS shown) AS results,
                   {facets} AS facets
            """,
            *values,
        )
        assert row is not None
        return json.loads(row["results"] or "[]"), row["total"], json.loads(row["facets"] or "[]")

    @staticmethod
    def _facet_query(query: Query, value: Any) -> str:
        """Counts of every facet: of results, or for a facet with a filter, of what the other filters leave."""
        own = " ".join(f"WHEN {value(key)} THEN {number}" for number, (key, _) in enumerate(query.filters))
        key_number = f"CASE f.key {own} END" if own else "NULL::int"
        return f"""(
            SELECT jsonb_agg(jsonb_build_object('key', key, 'value', value, 'count', count)
                             ORDER BY key, count DESC, value)
            FROM (
                SELECT f.key, f.value, sum(c.count) AS count,
                       row_number() OVER (PARTITION BY f.key ORDER BY sum(c.count) DESC, f.value) AS place
                FROM (SELECT facet_id, missed, count(*)
                      FROM (SELECT unnest(facets) AS facet_id, missed FROM matched WHERE failed <= 1) AS had
                      GROUP BY 1, 2) AS c
                JOIN search_facets f ON f.tenant_id = nexus.tenant_id() AND f.facet_id = c.facet_id
                WHERE c.missed IS NULL OR c.missed = {key_number}
                GROUP BY f.key, f.value
            ) AS counted WHERE place <= {_MOST_FACET_VALUES})"""


def _row(document: Document, facet_ids: Mapping[tuple[str, str], int]) -> tuple[Any, ...]:
    facets = sorted(facet_ids[facet] for facet in document.facets)
    return (document.product_id, facets, document.configuration, *document.texts, document.title_key)
