"""The API reference: the OpenAPI document as one page that needs no network and reads without JavaScript.

Its style and script are inline and allowed by their hashes, so `content_security_policy` forbids all else.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any

Json = dict[str, Any]

PLATFORM = "nexus"
"""The domain of the reasons that every service can answer with."""
TEMPLATE = Path(__file__).with_name("reference.html")
DEPTH = 3
"""How deep a table follows nested messages; below that it links to them."""
BODY_MEDIA = ("application/json", "application/x-ndjson")

ACCESS = {"public": "Public", "signed_in": "Any signed-in user"}
REPEATS = {
    "NO_SIDE_EFFECTS": "Reads only",
    "IDEMPOTENT": "Safe to repeat",
    "KEYED": "Happens once per key",
    "NONE": "Acts anew every time",
}
SAMPLES = {
    "email": "ada@example.com",
    "password": "correct horse battery staple",
    "uuid": "01890a5d-ac96-774b-bcce-b302099a8057",
    "date-time": "2026-01-31T12:00:00Z",
    "uri": "https://example.com/",
    "int64": "0",
    "uint64": "0",
}
RANGES = {
    "Length": "characters",
    "imum": "",
    "Items": "items",
    "Properties": "entries",
}
"""The units of minLength and maxLength, minimum and maximum, …"""
INT_RANGE = {-(2**31), 2**31 - 1, 2**32 - 1}
"""Bounds that a number has by its type, not worth a reader's time."""


def content_security_policy(html: str) -> str:
    """The policy under which `html` works: its own inline style and script, calls to its own origin."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; style-src {hashes('style')}; script-src {hashes('script')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def page(document: Json) -> str:
    """The reference of an OpenAPI document made by `edge.openapi`."""
    return _Page(document).render()


class _Page:
    def __init__(self, document: Json) -> None:
        self.document = document
        self.components = document["components"]
        self.operations = [
            (verb, path, operation) for path, verbs in document["paths"].items() for verb, operation in verbs.items()
        ]

    def render(self) -> str:
        info = self.document["info"]
        return Template(TEMPLATE.read_text()).substitute(
            title=escape(f"{info['title']} API"),
            name=escape(info["title"]),
            version=escape(info["version"]),
            server=escape(self.document["servers"][0]["url"]),
            introduction=prose(info["description"]),
            navigation="\n".join(self.navigation()),
            services="\n".join(self.services()),
            schemas="\n".join(self.schema(name) for name in self.components["schemas"]),
            reasons=self.reasons(),
        )

    def navigation(self) -> Iterator[str]:
        domain = None
        for tag in self.document["tags"]:
            if tag["x-nexus-domain"] != domain:
                domain = tag["x-nexus-domain"]
                yield f"<h2>{escape(domain)}</h2>"
            links = "".join(
                f'<li><a href="#{escape(operation["operationId"])}">{_verb(verb)}'
                f"<span>{escape(_words(operation['x-nexus-grpc-method']))}</span></a></li>"
                for verb, _, operation in self.of(tag)
            )
            service = escape(tag["name"])
            yield f'<div data-group><h3><a href="#service-{service}">{service}</a></h3><ul>{links}</ul></div>'
        yield '<h2>Reference</h2><ul><li><a href="#messages">Messages</a></li>'
        yield '<li><a href="#reasons">Error reasons</a></li></ul>'

    def of(self, tag: Json) -> list[tuple[str, str, Json]]:
        return [entry for entry in self.operations if tag["name"] in entry[2]["tags"]]

    def services(self) -> Iterator[str]:
        for tag in self.document["tags"]:
            methods = "\n".join(self.operation(*entry) for entry in self.of(tag))
            service = escape(tag["name"])
            yield (
                f'<section id="service-{service}" data-group><h2>{service}</h2>'
                f'<div class="lead">{prose(tag["description"])}</div>\n{methods}</section>'
            )

    def operation(self, verb: str, path: str, operation: Json) -> str:
        name, access = escape(operation["operationId"]), operation["x-nexus-access"]
        media = operation.get("requestBody", {}).get("content", {})
        body = _schema_of(operation.get("requestBody", {}))
        scope = operation.get("x-nexus-scope")
        facts = [
            ACCESS.get(access, f"Permission {access}"),
            *([f"Scope {scope}"] if scope else []),
            f"Rate class {operation['x-nexus-rate-class'].lower()}",
            REPEATS[operation["x-nexus-idempotency"]],
        ]
        parts = [
            f'<article id="{name}" data-verb="{verb.upper()}" data-path="{escape(path)}" '
            f'data-access="{escape(access)}" data-body="{"".join(media)}">',
            f'<h3><a href="#{name}">{escape(operation["summary"])}</a></h3>',
            f'<p class="route">{_verb(verb)}<code>{escape(path)}</code></p>',
            f'<p class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</p>',
            prose(operation["description"]),
        ]
        if parameters := [self.resolve(parameter) for parameter in operation["parameters"]]:
            rows = "".join(self.parameter(parameter) for parameter in parameters)
            parts.append(f"<h4>Parameters</h4>{_table(rows)}")
        if media:
            sample = json.dumps(self.sample(body), indent=2, ensure_ascii=False) if body else ""
            parts.append(f"<h4>Request</h4>{self.fields(body)}")
            parts.append(f'<pre class="sample" tabindex="0">{escape(sample)}</pre>')
        answer = operation["responses"]["200"]
        note = "" if answer["description"] == "The call succeeded." else prose(answer["description"])
        parts.append(f"<h4>Answer</h4>{note}{self.fields(_schema_of(answer))}")
        parts.append(f'<h4>Errors</h4><ul class="chips">{self.errors(operation)}</ul></article>')
        return "\n".join(parts)

    def parameter(self, parameter: Json) -> str:
        schema = parameter["schema"]
        marks = f'data-in="{parameter["in"]}" data-name="{escape(parameter["name"])}"'
        marks += ' data-many="1"' if schema.get("type") == "array" else ""
        marks += ' data-template="1"' if "x-nexus-template" in parameter else ""
        about = {**self.resolve(schema), "description": parameter["description"]}
        where = f"<i> in {parameter['in']}</i>"
        return _row(
            f"<code>{escape(parameter['name'])}</code>{where}",
            self.type(schema),
            about,
            must=parameter.get("required", False),
            marks=marks,
        )

    def errors(self, operation: Json) -> str:
        refusals = [
            (status, *reason.split("/"))
            for status, response in operation["responses"].items()
            for reason in response.get("x-nexus-reasons", [])
        ]
        refusals.sort(key=lambda refusal: (refusal[1] == PLATFORM, refusal[0]))
        return "".join(
            f'<li><a href="#{_reason_id(domain, reason)}" class="{"" if domain == PLATFORM else "own"}">'
            f"<b>{status}</b>{escape(reason)}</a></li>"
            for status, domain, reason in refusals
        )

    def fields(self, schema: Json | None, depth: int = DEPTH) -> str:
        if schema is None:
            return '<p class="none">Any content; its type is in <code>content-type</code>.</p>'
        rows = "".join(self.rows(schema, "", depth, frozenset()))
        return _table(rows) if rows else '<p class="none">An empty object.</p>'

    def rows(self, schema: Json, prefix: str, depth: int, above: frozenset[str]) -> Iterator[str]:
        """A row for each field, those of nested messages under a dotted name."""
        resolved = self.resolve(schema)
        for name, field in resolved.get("properties", {}).items():
            label = f"<code><i>{escape(prefix)}</i>{escape(name)}</code>"
            yield _row(label, self.type(field), field, must=name in resolved.get("required", []))
            inner, suffix = (field["items"], "[].") if field.get("type") == "array" else (field, ".")
            target = inner.get("$ref", "")
            if depth > 1 and target not in above:
                yield from self.rows(inner, f"{prefix}{name}{suffix}", depth - 1, above | {target})

    def type(self, schema: Json) -> str:
        if "$ref" in schema:
            name = escape(schema["$ref"].rsplit("/", 1)[-1])
            return f'<a href="#schema-{name}" title="{name}">{name.split(".")[-1]}</a>'
        if "anyOf" in schema:
            return " or ".join(self.type(choice) for choice in schema["anyOf"])
        kind = schema.get("type", "empty" if schema.get("const") == "" else "any value")
        if kind == "array":
            return f"list of {self.type(schema.get('items', {}))}"
        if kind == "object" and schema.get("additionalProperties"):
            return f"map of {self.type(schema['additionalProperties'])}"
        kind = " or ".join(kind) if isinstance(kind, list) else kind
        shape = str(schema.get("format", schema.get("contentEncoding", ""))).replace("password", "secret")
        return escape(f"{kind}, {shape}" if shape else kind)

    def schema(self, name: str) -> str:
        schema, label = self.components["schemas"][name], escape(name)
        content = f"<p>One of {_codes(schema['enum'])}</p>" if "enum" in schema else self.fields(schema, 1)
        return (
            f'<article id="schema-{label}"><h3><a href="#schema-{label}">{label}</a></h3>'
            f"{prose(schema.get('description', ''))}{content}</article>"
        )

    def reasons(self) -> str:
        rows = "".join(
            f'<tr id="{_reason_id(reason["domain"], reason["reason"])}">'
            f'<td class="name"><code>{escape(reason["reason"])}</code>{_small(reason["domain"])}</td>'
            f"<td>{reason['status']}{_small(reason['code'])}</td>"
            f"<td>{prose(reason['comment'])}{_small('“' + reason['message'] + '”')}</td></tr>"
            for reason in self.document["x-nexus-reasons"]
        )
        return f"<article>{_table(rows, 'Reason', 'Status', 'When, and with what message')}</article>"

    def resolve(self, node: Json) -> Json:
        if "$ref" not in node:
            return node
        _, _, group, name = node["$ref"].split("/")
        return self.components[group][name]

    def sample(self, schema: Json, name: str = "", depth: int = 4) -> Any:
        """The least that a request needs; everything once, if it needs nothing."""
        excluded = schema.get("not", {}).get("enum", [])
        schema = {**self.resolve(schema.get("anyOf", [schema])[-1]), **schema}
        if "const" in schema:
            return schema["const"]
        for choice in schema.get("examples", []) + schema.get("enum", []):
            if choice not in excluded and not str(choice).endswith("_UNSPECIFIED"):
                return choice
        match schema.get("type"):
            case "object":
                fields = schema.get("properties", {})
                chosen = [choice["oneOf"][0]["required"][0] for choice in schema.get("allOf", [])]
                needed = schema.get("required", []) + chosen
                names = needed or [name for name in fields if name != "requestId" and depth > 0]
                return {name: self.sample(fields[name], name, depth - 1) for name in names if name in fields}
            case "array":
                least = schema.get("minItems", 0)
                wanted = max(1, least) if depth > 0 and "items" in schema else least
                return [self.sample(schema["items"], name, depth - 1)] * wanted if wanted else []
            case "integer" | "number":
                return max(0, schema.get("minimum", 0), schema.get("exclusiveMinimum", -1) + 1)
            case "boolean":
                return False
            case "string":
                text = SAMPLES.get(schema.get("format", name), "string")
                return text.ljust(schema.get("minLength", 0), "-")[: schema.get("maxLength")]
        return None


def _schema_of(content: Json) -> Json | None:
    media = content.get("content", {})
    return next((media[kind]["schema"] for kind in BODY_MEDIA if kind in media), None)


def _table(rows: str, *heads: str) -> str:
    names = heads or ("Name", "Type", "Description")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f'<table class="fields"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(name: str, kind: str, schema: Json, *, must: bool, marks: str = "") -> str:
    required = '<span class="must">required</span>' if must else ""
    rules = f'<span class="rules">{found}</span>' if (found := _rules(schema)) else ""
    about = prose(schema.get("description", ""))
    return f'<tr {marks}><td class="name">{name}{required}</td><td>{kind}{rules}</td><td>{about}</td></tr>'


def _rules(schema: Json) -> str:
    """The limits of a schema in words, but for those that its format has anyway."""
    if "anyOf" in schema:
        return _rules(schema["anyOf"][-1])
    found = []
    for noun, unit in RANGES.items():
        bounds = [schema.get(f"{end}{noun}") for end in ("min", "max")]
        low, high = [None if bound in INT_RANGE else bound for bound in bounds]
        if low is not None or high is not None:
            found.append(_range(low, high, unit))
    if "exclusiveMinimum" in schema:
        found.append(f"more than {schema['exclusiveMinimum']}")
    if "exclusiveMaximum" in schema:
        found.append(f"less than {schema['exclusiveMaximum']}")
    if "const" in schema:
        found.append(f"always {_codes([schema['const']])}")
    if schema.get("uniqueItems"):
        found.append("no doubles")
    if "pattern" in schema and not schema.get("format", "").endswith("64"):
        found.append(f"<code>{escape(schema['pattern'])}</code>")
    if "enum" in schema:
        found.append(f"one of {_codes(schema['enum'])}")
    if "not" in schema:
        found.append(f"not {_codes(schema['not'].get('enum', [schema['not'].get('const')]))}")
    if inner := _rules(schema["items"]) if "items" in schema else "":
        found.append(f"each {inner}")
    return ", ".join(found)


def _range(low: float | None, high: float | None, unit: str) -> str:
    if unit and low == 1 and high is None:
        return "not empty"
    if low is None or high is None:
        text = f"at most {high}" if low is None else f"at least {low}"
    else:
        text = str(low) if low == high else f"{low}–{high}"
    return f"{text} {unit}".rstrip()


def _codes(values: list[Any]) -> str:
    return " ".join(f"<code>{escape(str(value))}</code>" for value in values)


def _small(text: str) -> str:
    return f'<span class="rules">{escape(text)}</span>'


def _reason_id(domain: str, reason: str) -> str:
    return escape(f"reason-{domain}-{reason}")


def _verb(verb: str) -> str:
    return f'<span class="verb {verb}">{verb.upper()}</span>'


def _words(grpc_method: str) -> str:
    """The name of an RPC as words: "Revoke all sessions"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", grpc_method.rsplit("/", 1)[-1]).capitalize()


def prose(text: str) -> str:
    """Escaped HTML of a comment: paragraphs, lists, code in backticks, and links to RFCs."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    html = re.sub(r"\bRFC (\d{3,5})\b", r'<a href="https://www.rfc-editor.org/rfc/rfc\1">RFC \1</a>', html)
    blocks = []
    for block in filter(None, html.split("\n\n")):
        if block.startswith("- "):
            items = "".join(f"<li>{item}</li>" for item in block.removeprefix("- ").split("\n- "))
            blocks.append(f"<ul>{items}</ul>")
        else:
            blocks.append(f"<p>{block}</p>")
    return "".join(blocks)
