"""The OpenAPI 3.1 document of the HTTP interface, derived from the contracts and from nothing else.

The edge transcodes by proto3's JSON mapping, so that is what the schemas state: camel-case names, 64-bit
integers as strings, enums by name. Rules of `buf.validate` become JSON Schema keywords on the request side
only, because only requests are checked. A message that is no request itself therefore has two schemas where
it is used both ways, `<full name>` for answers and `<full name>-Input`, which is closed and has the rules.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import protovalidate
from buf.validate import validate_pb2
from buf.validate.validate_pb2 import FieldRules
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, OneofDescriptor
from google.rpc import code_pb2

from nexus.options.v1 import policy_pb2
from services.chassis import contract
from services.chassis.assurance import ONE_FACTOR, TWO_FACTORS
from services.chassis.contract import HttpRoute, Method

Json = dict[str, Any]

PLATFORM = "nexus"
"""The domain of the platform's own reasons."""

HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""The HTTP status of a gRPC code, as google/rpc/code.proto has it."""

EDGE_STATUS = {"METHOD_NOT_ALLOWED": 405, "REQUEST_TOO_LARGE": 413, "MEDIA_TYPE_UNSUPPORTED": 415}
"""Reasons that the edge gives before there is a gRPC call; HTTP has a status of its own for them."""

INTRODUCTION = """\
Every method of the platform over HTTP and JSON. The same methods answer gRPC and gRPC-Web on the same port.

Send an access token as `authorization: Bearer …`, or an API key as `x-api-key`; either says which tenant it is of. \
Methods that need neither take the tenant from the header `x-nexus-tenant` instead.

JSON follows the proto3 mapping: 64-bit integers are strings, times are RFC 3339 in UTC, enums are names, \
and a field that has its default value may be left out. A field that the contract does not know is refused.

Every error has the shape of `google.rpc.Status`. Its `google.rpc.ErrorInfo` carries the reason and the \
domain that documents it; write programs against these two, never against the message."""

PARAMETERS: dict[str, Json] = {
    "tenant": {
        "name": "x-nexus-tenant",
        "in": "header",
        "required": True,
        "description": "The tenant that the call is for.",
        "schema": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"},
        "example": "demo",
    },
    "idempotencyKey": {
        "name": "idempotency-key",
        "in": "header",
        "description": "Makes the call happen once: the same key with the same request replays the stored "
        "answer, with another request it is refused.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    },
}
SECURITY_SCHEMES: dict[str, Json] = {
    "bearerAuth": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "An access token of this platform.",
    },
    "apiKeyAuth": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "An API key: acts for the user who made it, within its scopes.",
    },
}


@dataclass(frozen=True)
class Reason:
    """One documented way in which calls are refused: a value of an enum named `Reason`."""

    domain: str
    """The service that documents it, or "nexus"."""
    reason: str
    """As in `google.rpc.ErrorInfo`: "EMAIL_TAKEN"."""
    code: str
    """The gRPC code: "ALREADY_EXISTS"."""
    status: int
    """The HTTP status."""
    message: str
    """With `{name}` for the metadata that the error carries."""
    comment: str


@cache
def reasons() -> tuple[Reason, ...]:
    """Every reason that a contract documents, the platform's own first."""
    found = []
    for file in contract.image().file:
        for enum in file.enum_type:
            if enum.name == "Reason" and file.package.startswith("nexus."):
                scope = file.package.split(".")
                domain = PLATFORM if scope[1] == "type" else scope[2].replace("_", "-")
                found += [_reason(domain, f"{file.package}.Reason", value) for value in enum.value if value.number]
    return tuple(sorted(found, key=lambda reason: (reason.domain != PLATFORM, reason.domain, reason.reason)))


def _reason(domain: str, enum: str, value: descriptor_pb2.EnumValueDescriptorProto) -> Reason:
    options = descriptor_pb2.EnumValueOptions.FromString(value.options.SerializeToString())
    policy = options.Extensions[policy_pb2.reason]
    name = value.name.removeprefix("REASON_")
    code = code_pb2.Code.Name(policy.code)
    comment = prose(contract.comments().get(f"{enum}.{value.name}", ""))
    return Reason(domain, name, code, EDGE_STATUS.get(name, HTTP_STATUS[code]), policy.message, comment)


def document(*, server_url: str, methods: Iterable[Method] | None = None) -> Json:
    """The OpenAPI document of `methods`: of everything that outside callers reach, if not given.

    Raises ValueError when two routes are the same to OpenAPI.
    """
    schemas = Schemas()
    schemas.add_error()
    tags: dict[str, Json] = {}
    paths: dict[str, Json] = defaultdict(dict)
    for method in contract.methods().values() if methods is None else methods:
        for index, route in enumerate(method.routes):
            path = re.sub(r"{([^}=]+)[^}]*}", lambda variable: "{" + _leaf(variable[1]) + "}", route.path)
            verb = route.verb.lower()
            if verb in paths[path]:
                raise ValueError(f"{method.full_name} has the route {verb} {path} of another method")
            paths[path][verb] = _operation(method, route, index, schemas)
            tags.setdefault(method.service_id, _tag(method))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Nexus COS", "version": version("nexus-cos"), "description": INTRODUCTION},
        "servers": [{"url": server_url}],
        "tags": sorted(tags.values(), key=lambda tag: (tag["x-nexus-domain"], tag["name"])),
        "paths": dict(paths),
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "parameters": PARAMETERS,
            "securitySchemes": SECURITY_SCHEMES,
        },
        "x-nexus-reasons": [asdict(reason) for reason in reasons()],
    }


def _tag(method: Method) -> Json:
    service = method.descriptor.containing_service.full_name
    description = prose(contract.comments().get(service, ""))
    return {"name": method.service_id, "description": description, "x-nexus-domain": service.split(".")[1]}


def _operation(method: Method, route: HttpRoute, index: int, schemas: "Schemas") -> Json:
    request, policy = method.descriptor.input_type, method.policy
    comment = prose(contract.comments().get(method.full_name, ""))
    summary, description = split_sentence(comment)
    identity = f"{method.descriptor.containing_service.name}_{method.name}"
    bound: dict[str, str] = dict(re.findall(r"{([^}=]+)=?([^}]*)}", route.path))
    parameters = [_path_parameter(request, name, template, schemas) for name, template in bound.items()]
    if route.body != "*":
        parameters += _query(request, {*bound, route.body}, schemas)
    if method.access == "public" and method.tenant_scoped:
        parameters.append({"$ref": "#/components/parameters/tenant"})
    if policy.idempotency == contract.KEYED:
        parameters.append({"$ref": "#/components/parameters/idempotencyKey"})
    idempotency = policy_pb2.Idempotency.Name(policy.idempotency).removeprefix("IDEMPOTENCY_")
    return {
        "operationId": f"{identity}_{index + 1}" if index else identity,
        "tags": [method.service_id],
        "summary": summary or method.name,
        "description": description,
        "security": _security(method),
        "parameters": parameters,
        **({"requestBody": _body(request, route.body, set(bound), schemas)} if route.body else {}),
        "responses": _responses(method, route, schemas),
        "x-nexus-access": policy.permission or method.access,
        **({"x-nexus-scope": policy.scope} if policy.scope else {}),
        **({"x-nexus-step-up": _step_up(method)} if policy.HasField("recent_proof") else {}),
        "x-nexus-rate-class": method.rate_class,
        "x-nexus-idempotency": idempotency,
        "x-nexus-grpc-method": method.full_name,
    }


def _security(method: Method) -> list[Json]:
    if not method.needs_user:
        return []
    return [{"bearerAuth": []}, *([{"apiKeyAuth": []}] if _takes_keys(method) else [])]


def _takes_keys(method: Method) -> bool:
    """Whether an API key can call it: by a permission, or by the scope that the contract names."""
    return bool(method.policy.permission or method.policy.scope)


def _step_up(method: Method) -> Json:
    """How old the proof may be of who the caller is, and what it must reach (NIST SP 800-63B)."""
    assurance = TWO_FACTORS if method.policy.two_factors else ONE_FACTOR
    return {"max_age": method.policy.recent_proof.seconds, "assurance": assurance}


def _leaf(name: str) -> str:
    """What a variable is called in the document: `user.user_id` is the same part of a path as `user_id`."""
    return name.rpartition(".")[2]


def _path_parameter(message: Descriptor, field: str, template: str, schemas: "Schemas") -> Json:
    *parents, name = field.split(".")
    for parent in parents:
        message = _message(message.fields_by_name[parent])
    schema = schemas.field(message.fields_by_name[name], request=True)
    if "/" not in template and "**" not in template:
        return _parameter(name, "path", schema, required=True)
    schema["description"] = f"{schema.get('description', '')} Its slashes stay as they are.".strip()
    return _parameter(name, "path", schema, required=True) | {"x-nexus-template": template}


def _query(request: Descriptor, bound: set[str], schemas: "Schemas") -> Iterator[Json]:
    """What the path and the body leave over. Maps and repeated messages cannot be written in a query."""

    def walk(message: Descriptor, at: str, name: str, above: set[str], needed: bool) -> Iterator[Json]:
        required = required_fields(message)
        for field in message.fields:
            if (here := at + field.name) in bound:
                continue
            must = needed and field.name in required
            nested = field.message_type
            if nested is None or (nested.full_name in QUERY_MESSAGES and not field.is_repeated):
                schema = schemas.field(field, request=True)
                yield _parameter(name + field.json_name, "query", schema, required=must)
            elif not field.is_repeated and nested.full_name not in above | WELL_KNOWN.keys():
                below = above | {nested.full_name}
                yield from walk(nested, f"{here}.", f"{name}{field.json_name}.", below, must)

    yield from walk(request, "", "", {request.full_name}, True)


def _parameter(name: str, place: str, schema: Json, *, required: bool) -> Json:
    description = schema.pop("description", "")
    repeats = {"style": "form", "explode": True} if schema.get("type") == "array" else {}
    return {"name": name, "in": place, "description": description, "required": required} | repeats | {"schema": schema}


def _body(request: Descriptor, body: str, bound: set[str], schemas: "Schemas") -> Json:
    """The request body: what `bound`, the fields in the path, leave of the field `body` or of all."""
    message: Descriptor | None
    if body == "*":
        message, required = request, bool(required_fields(request) - bound)
        schema = {} if bound else schemas.reference(request, request=True)
    else:
        field, required = request.fields_by_name[body], body in required_fields(request)
        message, bound = field.message_type, _below(body, bound)
        schema = schemas.field(field, request=True)
    if message is not None and message.full_name == HTTP_BODY:
        return {"required": required, "content": {"*/*": {}}}
    if message is not None and bound:
        schema = schemas.object(message, request=True, without=bound)
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _responses(method: Method, route: HttpRoute, schemas: "Schemas") -> Json:
    answer, message = "The call succeeded.", method.descriptor.output_type
    if message.full_name == HTTP_BODY:
        content: Json = {"*/*": {}}
    elif method.descriptor.server_streaming:
        answer = "A stream of messages, each on a line of its own, sent as they come."
        content = {"application/x-ndjson": {"schema": schemas.reference(message, request=False)}}
    else:
        content = {"application/json": {"schema": schemas.reference(message, request=False)}}
    by_status: dict[int, list[Reason]] = defaultdict(list)
    for reason in reasons_of(method, route):
        by_status[reason.status].append(reason)
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/google.rpc.Status"}}}
    refusals = {
        str(status): {
            "description": "\n".join(f"- `{reason.reason}`: {reason.comment}" for reason in group),
            "content": error,
            "x-nexus-reasons": [f"{reason.domain}/{reason.reason}" for reason in group],
        }
        for status, group in sorted(by_status.items())
    }
    other = {"description": "Any other refusal.", "content": error}
    return {"200": {"description": answer, "content": content}, **refusals, "default": other}


def reasons_of(method: Method, route: HttpRoute) -> list[Reason]:
    """Every reason that a call can be refused with: those the contract names, then the platform's own."""
    named = [reason for name in named_reasons(method) for reason in resolve(name, method.service_id)]
    if _takes_keys(method):
        named += [reason for name in ("API_KEY_INVALID", "API_KEY_EXPIRED") for reason in resolve(name, "backend-api")]
    ours = {reason.reason: reason for reason in reasons() if reason.domain == PLATFORM}
    return list(dict.fromkeys([*named, *(ours[name] for name in _platform_reasons(method, route))]))


def named_reasons(method: Method) -> list[str]:
    """The reasons in the `Errors:` paragraph of a method's comment."""
    paragraphs = contract.comments().get(method.full_name, "").split("\n\n")
    text = " ".join(paragraph for paragraph in paragraphs if paragraph.startswith("Errors:"))
    known = {reason.reason for reason in reasons()}
    words = re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*\b", text)
    return [word for word in words if word in known or "_" in word]


def resolve(name: str, service_id: str) -> list[Reason]:
    """The reasons meant by a name in a service's contract: its own, or the platform's, or others'."""
    found = [reason for reason in reasons() if reason.reason == name]
    for domain in (service_id, PLATFORM):
        if nearest := [reason for reason in found if reason.domain == domain]:
            return nearest
    return found


def _platform_reasons(method: Method, route: HttpRoute) -> Iterator[str]:
    request = method.descriptor.input_type
    if request.fields:
        yield from ("INVALID_REQUEST", "MALFORMED_REQUEST")
    if "page_token" in request.fields_by_name:
        yield "PAGE_TOKEN_INVALID"
    if route.body:
        yield from ("REQUEST_TOO_LARGE", "MEDIA_TYPE_UNSUPPORTED")
    if method.needs_user:
        yield from ("TOKEN_REQUIRED", "TOKEN_INVALID", "TOKEN_EXPIRED")
        yield "CREDENTIALS_AMBIGUOUS"
    if method.policy.HasField("recent_proof"):
        yield "STEP_UP_REQUIRED"
    if method.access == "permission":
        yield "PERMISSION_MISSING"
    if method.access == "signed_in":
        yield "SCOPE_MISSING" if method.policy.scope else "OWN_SIGN_IN_REQUIRED"
    if method.tenant_scoped:
        yield "TENANT_MISMATCH" if method.needs_user else "TENANT_REQUIRED"
        yield from ("TENANT_UNKNOWN", "TENANT_SUSPENDED")
    if method.policy.idempotency == contract.KEYED:
        yield "IDEMPOTENCY_KEY_REUSED"
    if method.policy.idempotency != contract.NO_SIDE_EFFECTS:
        yield "CONFLICT"
    yield from ("RATE_LIMITED", "DEPENDENCY_UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL")


def _integer(kind: str, low: int, high: int) -> Json:
    return {"type": "integer", "format": kind, "minimum": low, "maximum": high}


SCALARS: dict[int, Json] = {
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.CPPTYPE_INT32: _integer("int32", -(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: _integer("uint32", 0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: {"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,19}$"},
    FieldDescriptor.CPPTYPE_UINT64: {"type": "string", "format": "uint64", "pattern": "^[0-9]{1,20}$"},
}
BYTES: Json = {"type": "string", "contentEncoding": "base64"}
WELL_KNOWN: dict[str, Json] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string", "description": "Field paths, separated by commas."},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.ListValue": {"type": "array"},
    "google.protobuf.Value": {},
    "google.protobuf.Empty": {"type": "object"},
    "google.protobuf.Any": {
        "type": "object",
        "required": ["@type"],
        "properties": {"@type": {"type": "string", "description": "`type.googleapis.com/<message>`"}},
    },
}
WRAPPERS = {
    f"google.protobuf.{kind}Value"
    for kind in ("Bool", "Bytes", "Double", "Float", "Int32", "Int64", "String", "UInt32", "UInt64")
}
QUERY_MESSAGES = WRAPPERS | {name for name, schema in WELL_KNOWN.items() if schema.get("type") == "string"}
"""Messages that JSON writes as one value, so that a query can hold them."""
HTTP_BODY = "google.api.HttpBody"
ERROR_DETAILS = ("ErrorInfo", "BadRequest", "RetryInfo", "QuotaFailure")


class Schemas:
    """The messages and enums that a document needs, as its `components/schemas`."""

    def __init__(self) -> None:
        self.components: dict[str, Json] = {}

    def reference(self, message: Descriptor, *, request: bool) -> Json:
        """The schema of a message, by reference where it has a component."""
        if message.full_name in WELL_KNOWN:
            return dict(WELL_KNOWN[message.full_name])
        if message.full_name in WRAPPERS:
            schema = self._value(message.fields_by_name["value"], request=request)
            return schema | {"type": [schema["type"], "null"]}
        # A message named …Request is only ever sent, so its plain name is free.
        variant = "-Input" if request and not message.name.endswith("Request") else ""
        name = message.full_name + variant
        if name not in self.components:
            self.components[name] = {}  # ends the recursion of messages that contain themselves
            self.components[name] = self.object(message, request=request)
        return {"$ref": f"#/components/schemas/{name}"}

    def object(self, message: Descriptor, *, request: bool, without: Iterable[str] = ()) -> Json:
        """The schema of a message in place, less the fields (dotted paths) that the path of a route fills."""
        fields = [field for field in message.fields if field.name not in without]
        choices, notes = _choices(message)
        schema: Json = {"type": "object"}
        if description := _described(message.full_name, notes):
            schema["description"] = description
        schema["properties"] = {
            field.json_name: self.object(_message(field), request=request, without=below)
            if (below := _below(field.name, without))
            else self.field(field, request=request)
            for field in fields
        }
        if request:
            needed = required_fields(message)
            schema["required"] = [field.json_name for field in fields if field.name in needed]
            schema["additionalProperties"] = False
            if choices:
                schema["allOf"] = [{"oneOf": [{"required": [name]} for name in names]} for names in choices]
        return {key: value for key, value in schema.items() if value != []}

    def field(self, field: FieldDescriptor, *, request: bool) -> Json:
        """The schema of a field, with its comment and, in a request, its rules."""
        options = descriptor_pb2.FieldOptions.FromString(field.GetOptions().SerializeToString())
        rules = options.Extensions[validate_pb2.field]
        if _is_map(field):
            value = _message(field).fields_by_name["value"]
            schema: Json = {"type": "object", "additionalProperties": self._value(value, request=request)}
        elif field.is_repeated:
            schema = {"type": "array", "items": self._value(field, request=request)}
        else:
            schema = self._value(field, request=request)
            if options.Extensions[policy_pb2.secret] and schema == {"type": "string"}:
                schema["format"] = "password"
        notes = [schema.pop("description", "")]
        if request and rules.ignore != validate_pb2.IGNORE_ALWAYS:
            notes += constrain(schema, rules, field)
            if rules.required:
                _exclude_zero(schema, field)
            elif rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE and schema.get("type") == "string":
                schema = {"anyOf": [{"const": ""}, schema]}
        description = _described(f"{field.full_name}", notes)
        return schema | ({"description": description} if description else {})

    def _value(self, field: FieldDescriptor, *, request: bool) -> Json:
        if field.message_type is not None:
            return self.reference(field.message_type, request=request)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        return dict(BYTES if field.type == FieldDescriptor.TYPE_BYTES else SCALARS[field.cpp_type])

    def _enum(self, enum: EnumDescriptor) -> Json:
        if enum.full_name == "google.protobuf.NullValue":
            return {"type": "null"}
        comments = contract.comments()
        values = [
            f"- `{value.name}`: {prose(comment)}"
            for value in enum.values
            if (comment := comments.get(f"{enum.full_name}.{value.name}"))
        ]
        about = [prose(comments.get(enum.full_name, "")), "\n".join(values)]
        self.components[enum.full_name] = {
            "type": "string",
            "enum": [value.name for value in enum.values],
            "description": "\n\n".join(filter(None, about)),
        }
        return {"$ref": f"#/components/schemas/{enum.full_name}"}

    def add_error(self) -> None:
        """What the edge answers with instead of a result."""
        details = [
            self.reference(contract.pool().FindMessageTypeByName(f"google.rpc.{name}"), request=False)
            | {"properties": {"@type": {"const": f"type.googleapis.com/google.rpc.{name}"}}}
            | {"required": ["@type"]}
            for name in ERROR_DETAILS
        ]
        self.components["google.rpc.Status"] = {
            "type": "object",
            "description": "Why a call was refused.",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "integer", "format": "int32", "description": "The gRPC status code."},
                "message": {"type": "string", "description": "For people; its wording may change."},
                "details": {
                    "type": "array",
                    "description": "`google.rpc.ErrorInfo`, and others where they help.",
                    "items": {"anyOf": details},
                },
            },
        }


def required_fields(message: Descriptor) -> set[str]:
    """The fields without which a message is refused: those the validator misses in an empty one.

    More than the fields marked `required`: a string that must be a UUID may not be empty either. As
    protovalidate itself says so, this cannot disagree with what services check.
    """
    empty = message_factory.GetMessageClass(message)()
    paths = [violation.proto.field for violation in protovalidate.collect_violations(empty)]
    names = {path.elements[0].field_name for path in paths if path and path.elements}
    return {field.name for field in message.fields if field.name in names}


KEYWORDS = {
    "pattern": "pattern",
    "min_len": "minLength",
    "max_len": "maxLength",
    "gte": "minimum",
    "gt": "exclusiveMinimum",
    "lte": "maximum",
    "lt": "exclusiveMaximum",
    "min_items": "minItems",
    "max_items": "maxItems",
    "unique": "uniqueItems",
    "min_pairs": "minProperties",
    "max_pairs": "maxProperties",
}
FORMATS = {"email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
COMPARISONS = {"gte": "At least", "gt": "More than", "lte": "At most", "lt": "Less than"}


def constrain(schema: Json, rules: FieldRules, field: FieldDescriptor) -> list[str]:
    """Put a field's rules on its schema; returns those that JSON Schema has no keyword for, as sentences."""
    notes = _cel_notes(rules)
    kind = rules.WhichOneof("type") or ""
    for rule, value in getattr(rules, kind).ListFields() if kind else ():
        match kind, rule.name:
            case "repeated", "items":
                notes += constrain(schema["items"], value, field)
            case "map", "keys":
                keys = schema.setdefault("propertyNames", {"type": "string"})
                notes += constrain(keys, value, _message(field).fields_by_name["key"])
            case "map", "values":
                element = _message(field).fields_by_name["value"]
                notes += constrain(schema["additionalProperties"], value, element)
            case "enum", "defined_only":
                pass  # JSON has only the names
            case "string", "len":
                schema |= {"minLength": value, "maxLength": value}
            case "string", "max_bytes":
                schema["maxLength"] = min(value, schema.get("maxLength", value))
                notes.append(f"At most {value} bytes in UTF-8.")
            case "string", name if name in FORMATS:
                schema["format"] = name
            case (("timestamp" | "duration" | "any" | "field_mask" | "bytes"), name):
                notes.append(_note(name, value))
            case _, ("gte" | "gt" | "lte" | "lt") as name if kind.endswith("64"):
                notes.append(_note(name, value))
                if name.startswith("g") and value >= 0:
                    schema["pattern"] = schema["pattern"].replace("-?", "")
            case _, "const":
                schema["const"] = _json(value, kind, field)
            case _, "in":
                schema["enum"] = [_json(item, kind, field) for item in value]
            case _, "not_in":
                schema["not"] = {"enum": [_json(item, kind, field) for item in value]}
            case _, "example":
                schema["examples"] = [_json(item, kind, field) for item in value]
            case _, name if name in KEYWORDS:
                schema[KEYWORDS[name]] = value
            case _, name:
                notes.append(_note(name, value))
    return notes


def _note(rule: str, value: object) -> str:
    if value is True:
        return f"Rule `{rule}`."
    text = value.ToJsonString() if hasattr(value, "ToJsonString") else str(value).strip()
    return f"{COMPARISONS[rule]} {text}." if rule in COMPARISONS else f"Rule `{rule}: {text}`."


def _json(value: Any, kind: str, field: FieldDescriptor) -> Any:
    """A value as proto3's JSON mapping writes it."""
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return str(value) if kind.endswith("64") else value


def _exclude_zero(schema: Json, field: FieldDescriptor) -> None:
    """Where being there does not show, `required` asks for a value other than the default."""
    if field.is_repeated:
        schema.setdefault("minProperties" if _is_map(field) else "minItems", 1)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not field.has_presence:
        if schema.get("format") not in FORMATS:
            schema.setdefault("minLength", 1)
    elif not field.has_presence and "not" not in schema:
        zero = _json(field.default_value, schema.get("format", ""), field)
        schema["not"] = {"const": zero}


def _choices(message: Descriptor) -> tuple[list[list[str]], list[str]]:
    """The groups of fields of which exactly one must be set, and the message's rules as sentences."""
    rules = _message_options(message)
    groups = [
        ([field.name for field in oneof.fields], _oneof_options(oneof))
        for oneof in message.oneofs
        if oneof.name != f"_{oneof.fields[0].name}"  # proto3's way to write `optional`
    ]
    groups += [(list(rule.fields), rule.required) for rule in rules.oneof]
    named = [([message.fields_by_name[name].json_name for name in names], must) for names, must in groups]
    notes = [
        f"{'Exactly' if must else 'At most'} one of {', '.join(f'`{name}`' for name in names)}."
        for names, must in named
    ]
    return [names for names, must in named if must], notes + _cel_notes(rules)


def _message_options(message: Descriptor) -> validate_pb2.MessageRules:
    options = descriptor_pb2.MessageOptions.FromString(message.GetOptions().SerializeToString())
    return options.Extensions[validate_pb2.message]


def _oneof_options(oneof: OneofDescriptor) -> bool:
    options = descriptor_pb2.OneofOptions.FromString(oneof.GetOptions().SerializeToString())
    return options.Extensions[validate_pb2.oneof].required


def _cel_notes(rules: FieldRules | validate_pb2.MessageRules) -> list[str]:
    named = [rule.message or f"Rule `{rule.expression}`." for rule in rules.cel]
    return named + [f"Rule `{expression}`." for expression in rules.cel_expression]


def _message(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None
    return field.message_type


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _below(name: str, paths: Iterable[str]) -> set[str]:
    return {path.removeprefix(f"{name}.") for path in paths if path.startswith(f"{name}.")}


def _described(name: str, notes: Iterable[str]) -> str:
    return " ".join(filter(None, [prose(contract.comments().get(name, "")), *notes]))


def prose(comment: str) -> str:
    """A comment without the line breaks that only kept its lines short."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", comment))


def split_sentence(text: str) -> tuple[str, str]:
    """The first sentence, without its full stop, and all that follows."""
    end = re.search(r"(?<!e\.g)(?<!i\.e)\.(?=\s|$)|\n\n", text)
    return (text[: end.start()], text[end.end() :].strip()) if end else (text, "")
