"""A path leads to the method whose template it fits, and to nothing else."""

import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge import paths
from edge.routes import served
from services.chassis.contract import HttpRoute
from tests.edge.request_filter import RequestFilter, running

SERVED = [(route, method) for method in served() for route in method.routes]
TEMPLATES = [
    "/books",
    "/books/{id}",
    "/books/new",
    "/books/{id}:lend",
    "/books/new:lend",
    "/books:search",
    "/books/{id}/pages/{page}",
    "/books/new/cover",
    "/files/{path=**}",
    "/files/{path=**}:share",
    "/files/index",
    "/{tenant}/about",
]
SEGMENTS = [
    "books",
    "new",
    "x",
    "x.y",
    "a%2Fb",
    "pages",
    "cover",
    "files",
    "index",
    "about",
    "*",
    "**",
    "leaf",
    "é",
]


class Template:
    """A method, as far as the tree of paths asks."""

    full_name = "a.Method"

    def __init__(self, template: str) -> None:
        self.routes = [HttpRoute(verb="GET", path=template, body="")]
        self.descriptor = SERVED[0][1].descriptor


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RequestFilter]:
    tree = paths.tree(Template(template) for template in TEMPLATES)  # type: ignore[misc]
    with running(tmp_path_factory.mktemp("paths"), tree.lua(), "{}") as made:
        yield made


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RequestFilter]:
    with running(tmp_path_factory.mktemp("real"), paths.tree(served()).lua(), "{}") as made:
        yield made


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    segments=st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=5),
    verb=st.sampled_from(["", ":lend", ":search", ":share", ":other", ":"]),
    query=st.sampled_from(["", "?a=/books", "?a:lend"]),
)
def test_a_path_is_known_exactly_if_a_template_fits(
    made_up: RequestFilter, segments: list[str], verb: str, query: str
) -> None:
    path = "/" + "/".join(segments) + verb
    fits = any(re.fullmatch(HttpRoute("GET", template, "").regex, path) for template in TEMPLATES)
    status, _, _ = made_up.send("GET", (path + query).replace("é", "%C3%A9"))
    assert status == (200 if fits else 404), path


def test_every_method_is_found_at_its_path_and_by_no_other_verb(real: RequestFilter) -> None:
    for route, _ in SERVED:
        path = re.sub(r"\{[^}]+\}", "x", route.path)
        assert real.send(route.verb, path)[0] == 200, path
        status, body, allow = real.send("PROPFIND", path)
        assert (status, "METHOD_NOT_ALLOWED" in body) == (405, True), path
        assert route.verb in allow.split(", ")


def test_what_is_no_path_is_unknown(real: RequestFilter) -> None:
    for path in ("/", "/nothing", "/api/v1", "/api/v1/", "//", "/healthz/x"):
        status, body, _ = real.send("GET", path)
        assert (status, "ROUTE_UNKNOWN" in body) == (404, True), path


def test_two_methods_cannot_have_the_same_route() -> None:
    with pytest.raises(ValueError, match="of another method"):
        paths.tree([Template("/a/{b}"), Template("/a/{c}")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="the edge knows"):
        paths.tree([Template("/a/{b=c/*}")])  # type: ignore[list-item]
