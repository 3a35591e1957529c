"""What a JSON body may hold."""

import json
import string
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.edge.request_filter import RequestFilter, running

MESSAGES = """{
  ["Book"] = { ["title"] = true, ["pageCount"] = true, ["page_count"] = true, ["author"] = "Author",
    ["chapters"] = "Chapter", ["labels"] = "Book.LabelsEntry", ["anything"] = true },
  ["Author"] = { ["name"] = true, ["books"] = "Book" },
  ["Chapter"] = { ["heading"] = true },
  ["Book.LabelsEntry"] = { ["*"] = "Author" },
}
"""


ROUTES = '{ named = { books = { leaf = { POST = { body = "json", message = "Book" } } } } }'


class Books:
    """Sends bodies of a Book through the filter."""

    def __init__(self, request_filter: RequestFilter) -> None:
        self._filter = request_filter

    def problem(self, body: str | bytes) -> str | None:
        """What the filter says about a body; None when it passes."""
        status, text, _ = self._filter.send("POST", "/books", body)
        if status == 200:
            return None
        assert status == 400
        return str(json.loads(text)["message"])


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Books]:
    with running(tmp_path_factory.mktemp("json"), ROUTES, MESSAGES) as made:
        yield Books(made)


@pytest.mark.parametrize(
    "book",
    [
        {},
        {"title": "Emma", "pageCount": 474},
        {"title": "Emma", "page_count": 474},
        {"author": {"name": "Jane", "books": [{"title": "Emma", "author": {"name": "Jane"}}]}},
        {"chapters": [{"heading": "1"}, {"heading": "2"}], "title": "Emma"},
        {"labels": {"anything at all": {"name": "Jane"}, "": {}}},
        {"anything": {"unknown": [{"unknown": 1}], "page_count": 1, "pageCount": 2}},
        {"author": None, "chapters": None},
    ],
)
def test_fields_of_the_message_pass(strict: Books, book: dict[str, Any]) -> None:
    assert strict.problem(json.dumps(book)) is None
    assert strict.problem(json.dumps(book, indent=2)) is None


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('{"titel": 1}', 'no field "titel" in Book'),
        ('{"author": {"title": 1}}', 'no field "title" in Author'),
        ('{"author": {"books": [{"title": 1}, {"author": {}, "nmae": 1}]}}', 'no field "nmae" in Book'),
        ('{"chapters": [{"heading": 1}, {"haeding": 1}]}', 'no field "haeding" in Chapter'),
        ('{"chapters": [{"heading": 1}], "haeding": 1}', 'no field "haeding" in Book'),
        ('{"labels": {"any": {"nmae": 1}}}', 'no field "nmae" in Author'),
        ('{"labels": {"any": {}}, "nmae": 1}', 'no field "nmae" in Book'),
        ('{"anything": {"x": 1}, "x": 1}', 'no field "x" in Book'),
        ('[{"title": 1}, {"titel": 1}]', 'no field "titel" in Book'),
        ('{"ti\\u0074le": 1, "ti\\u0074el": 1}', 'no field "titel" in Book'),
        ('{"*": 1}', 'no field "*" in Book'),
        ('{"title": 1, "title": 2}', '"title" twice'),
        ('{"page_count": 1, "pageCount": 2}', '"pageCount" twice'),
        ('{"labels": {"a": {}, "a": {}}}', '"a" twice'),
        ('{"anything": {"a": 1, "a": 2}}', '"a" twice'),
        ('{"author": {"books": [{"title": 1}, {"title": 2, "title": 3}]}}', '"title" twice'),
    ],
)
def test_a_field_that_is_not_there_or_comes_twice_is_named(strict: Books, body: str, problem: str) -> None:
    assert problem in (strict.problem(body) or "")


def test_what_is_quoted_from_a_body_is_safe_to_print(strict: Books) -> None:
    for name in (b"\xff\xfe", b"\\u0000\\n", "ü".encode() * 60, b'<script>\\"\\\\'):
        problem = strict.problem(b'{"' + name + b'": 1}')
        assert problem is not None
        assert problem.isascii()
        assert problem.isprintable()


def test_sixty_four_levels_are_enough(strict: Books) -> None:
    assert strict.problem('{"anything": ' + "[" * 63 + "]" * 63 + "}") is None
    assert "64 levels" in (strict.problem('{"anything": ' + "[" * 64 + "]" * 64 + "}") or "")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(string.ascii_lowercase + "é_"), children),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 3))
def test_all_json_passes(strict: Books, value: Any, ascii_only: bool, indent: int | None) -> None:
    assert strict.problem(json.dumps({"anything": value}, ensure_ascii=ascii_only, indent=indent)) is None


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=VALUES, at=st.integers(0), cut=st.integers(0, 2), insert=st.text("{}[]\",:\\/-+.0123eE \tn\x01u'", max_size=2)
)
def test_only_json_passes(strict: Books, value: Any, at: int, cut: int, insert: str) -> None:
    """A slip in a valid text passes exactly if a strict parser takes it too."""
    text = json.dumps({"anything": value})
    at %= len(text) + 1
    slipped = text[:at] + insert + text[at + cut :]
    if slipped:
        assert (strict.problem(slipped) is None) is is_strict_json(slipped), slipped


def is_strict_json(text: str) -> bool:
    """Whether Python takes it as JSON, no name twice, and nothing but `anything` in a Book."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name twice")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        found = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except ValueError:
        return False
    books = found if isinstance(found, list) else [found]
    return all(not isinstance(book, dict) or set(book) <= {"anything"} for book in books)
