"""The API reference: one page with every method, that needs nothing but itself."""

import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator

from edge import openapi, reference

Json = dict[str, Any]
VOID = {"meta", "link", "input", "br"}


class Outline(HTMLParser):
    """What a browser would see: attributes by tag, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def values(self, attribute: str) -> list[str]:
        return [found for _, attributes in self.elements if (found := attributes.get(attribute)) is not None]


@pytest.fixture(scope="module")
def document() -> Json:
    return openapi.document(server_url="http://127.0.0.1:8080")


@pytest.fixture(scope="module")
def html(document: Json) -> str:
    return reference.page(document)


@pytest.fixture(scope="module")
def outline(html: str) -> Outline:
    return Outline(html)


def test_it_has_every_operation_schema_and_reason(document: Json, outline: Outline) -> None:
    ids = set(outline.values("id"))
    operations = {operation["operationId"] for verbs in document["paths"].values() for operation in verbs.values()}
    schemas = {f"schema-{name}" for name in document["components"]["schemas"]}
    reasons = {f"reason-{reason['domain']}-{reason['reason']}" for reason in document["x-nexus-reasons"]}
    assert operations | schemas | reasons <= ids


def test_its_elements_are_closed_and_its_links_lead_somewhere(outline: Outline) -> None:
    ids = outline.values("id")
    targets = {link.removeprefix("#") for link in outline.values("href") if link.startswith("#")}
    assert outline.open == []
    assert len(ids) == len(set(ids))
    assert targets <= set(ids)


def test_it_needs_no_network(outline: Outline) -> None:
    outside = [link for link in outline.values("href") + outline.values("src") if link[0] != "#"]
    assert all(link == "data:," or link.startswith("https://www.rfc-editor.org/rfc/rfc") for link in outside)


def test_its_policy_covers_all_that_is_inline(html: str, outline: Outline) -> None:
    policy = reference.content_security_policy(html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert f"script-src 'sha256-{digest}'" in policy
    names = {name for _, attributes in outline.elements for name in attributes}
    assert not {name for name in names if name == "style" or name.startswith("on")}


def test_it_escapes_everything() -> None:
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    document = openapi.document(server_url=f"http://{attack}/")
    operation = document["paths"]["/api/v1/platform/routes"]["get"]
    document["info"] |= {
        "title": attack,
        "version": attack,
        "description": f"`{attack}` {attack}\n\n- {attack}",
    }
    document["paths"][f"/{attack}"] = {"get": operation | {"operationId": attack, "x-nexus-access": attack}}
    operation |= {"summary": attack, "description": attack, "x-nexus-grpc-method": f"x/{attack}"}
    operation["responses"]["400"]["x-nexus-reasons"] = [f"{attack}/{attack}".replace("</", "<")]
    operation["parameters"][0] |= {"name": attack, "description": attack}
    operation["parameters"][1]["schema"] |= {"pattern": attack, "enum": [attack], "not": {"const": attack}}
    document["tags"][0] |= {"name": attack, "description": attack, "x-nexus-domain": attack}
    document["tags"].append({"name": "backend-api", "description": "", "x-nexus-domain": "platform"})
    document["x-nexus-reasons"][0] |= dict.fromkeys(("domain", "reason", "code", "message", "comment"), attack)
    document["components"]["schemas"][attack] = {
        "description": attack,
        "properties": {attack: {"type": attack, "format": attack, "$comment": attack}},
    }
    html = reference.page(document)
    assert html.count("<script>") == 1
    assert "<img" not in html
    assert "onerror" not in {name for _, attributes in Outline(html).elements for name in attributes}


def test_a_sample_is_a_request_that_the_document_allows(document: Json, html: str) -> None:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                article = html[html.index(f'<article id="{operation["operationId"]}"') :]
                (sample,) = re.findall(r'class="sample" tabindex="0">(.*?)</pre>', article, re.DOTALL)[:1]
                root = document | content["application/json"]["schema"]
                problems = OAS31Validator(root).iter_errors(json.loads(unescape(sample)))
                assert [item for item in problems if item.validator != "pattern"] == [], f"{verb} {path}"


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("One `a<b` two.", "<p>One <code>a&lt;b</code> two.</p>"),
        ("First.\n\n- a\n- b", "<p>First.</p><ul><li>a</li><li>b</li></ul>"),
        ("See RFC 7519.", '<p>See <a href="https://www.rfc-editor.org/rfc/rfc7519">RFC 7519</a>.</p>'),
    ],
)
def test_comments_keep_their_shape(text: str, html: str) -> None:
    assert reference.prose(text) == html
