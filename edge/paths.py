"""The tree of all HTTP paths, for the edge's request filter: what a path is for, and what its body may hold.

Envoy would look its routes up one after the other, each by a regular expression of its own; that takes time for each
request and half a megabyte for each path.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from google.protobuf.descriptor import Descriptor

from edge import schemas
from services.chassis.contract import HttpRoute, Method


@dataclass
class Node:
    """A place in the tree of path templates."""

    named: dict[str, "Node"] = field(default_factory=dict)
    any: "Node | None" = None
    """A variable of one segment: `{name}`."""
    rest: "Node | None" = None
    """A variable that takes what follows: `{name=**}`."""
    leaf: dict[str, dict[str, str]] = field(default_factory=dict)
    """HTTP method → what its body may be."""

    def child(self, segment: str) -> "Node":
        """The node below for a segment of a template. Raises ValueError for a template that is not supported."""
        if not segment.startswith("{"):
            return self.named.setdefault(segment, Node())
        if segment.endswith("=**}"):
            self.rest = self.rest or Node()
            return self.rest
        if "=" in segment:
            raise ValueError(f"A path cannot have the variable {segment}: the edge knows {{name}} and {{name=**}}")
        self.any = self.any or Node()
        return self.any

    def lua(self) -> str:
        parts = []
        if self.named:
            inner = ", ".join(f'["{segment}"] = {node.lua()}' for segment, node in sorted(self.named.items()))
            parts.append(f"named = {{ {inner} }}")
        parts += [f"{name} = {node.lua()}" for name, node in (("any", self.any), ("rest", self.rest)) if node]
        if self.leaf:
            forms = (f"{verb} = {_table(form)}" for verb, form in sorted(self.leaf.items()))
            parts.append(f"leaf = {{ {', '.join(forms)} }}")
        return f"{{ {', '.join(parts)} }}"


def tree(methods: Iterable[Method]) -> Node:
    """The tree of all routes of these methods. Raises ValueError when two methods have the same route."""
    root = Node()
    for method in methods:
        for route in method.routes:
            node = root
            for segment in _segments(route.path):
                node = node.child(segment)
            if route.verb in node.leaf:
                raise ValueError(f"{method.full_name} has the route {route.verb} {route.path} of another method")
            node.leaf[route.verb] = _form(route, method)
    return root


def _segments(path: str) -> list[str]:
    """A custom verb is a segment that no path has: "/sessions/{id}:end" is "sessions", "{id}", "/end"."""
    *segments, last = path.removeprefix("/").split("/")
    name, colon, verb = last.rpartition(":")
    return [*segments, name, f"/{verb}"] if colon else [*segments, last]


def _form(route: HttpRoute, method: Method) -> dict[str, str]:
    """What the body of a request to this route may be."""
    message: Descriptor | None = method.descriptor.input_type
    if route.body and route.body != "*":
        message = method.descriptor.input_type.fields_by_name[route.body].message_type
    if not route.body or message is None:
        return {"body": "none"}
    if schemas.is_opaque(message):
        return {"body": "any"}
    return {"body": "json", "message": message.full_name}


def _table(form: dict[str, str]) -> str:
    return "{ " + ", ".join(f'{name} = "{value}"' for name, value in form.items()) + " }"
