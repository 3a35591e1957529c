"""Every RPC of the platform says who may call it, what it does, how it fails and how much it takes."""

import re
from collections import Counter
from pathlib import Path

from buf.validate.validate_pb2 import FieldRules
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc import code_pb2

from nexus.options.v1 import policy_pb2
from services.chassis import contract
from services.chassis.contract import Method
from services.chassis.spec import SERVICES
from tests.guards import walks

ROOT = SERVICES.parent
PATHS_OUTSIDE_THE_API = {
    "/.well-known/jwks.json",  # RFC 7517 clients look for it there
    "/.well-known/oauth-authorization-server/t/{tenant}",  # RFC 8414, section 3
    "/docs",
    "/openapi.json",
    "/readyz",
}
TENANT_ISSUER = "/t/{tenant}/"
"""Where the OpenID provider of each tenant is, with paths that standards name."""
ACTING_GETS = {
    "/t/{tenant}/sso/{provider_id}/callback",  # the upstream's redirect, OpenID Connect Core 3.1.2.5
}
LARGEST_PAGE = 1000
SECRET = re.compile(r"(^|_)(password|token|secret|code)$")
NOT_SECRET = {"page_token", "next_page_token"}
PERSONAL = re.compile(r"(^|_)(email|phone|display_name|ip_address)$")
NAMES_NO_ERROR = {"UUID", "SERVING", "NOT_SERVING"}


def test_there_is_something_to_guard() -> None:
    assert len(walks.methods()) >= 20
    assert len(walks.reasons()) >= 20


def test_every_method_has_a_policy_that_does_not_contradict_itself() -> None:
    refused = []
    for service in contract.services().values():
        for descriptor in service.methods:
            try:
                contract.method_of(descriptor)
            except contract.ContractError as error:
                refused.append(str(error))
    assert not refused


def test_every_method_is_reached_by_http_or_by_services_only() -> None:
    assert not [
        method.full_name for method in walks.methods() if bool(method.routes) == (method.access == "service_only")
    ]


def test_every_service_and_every_method_has_a_comment() -> None:
    names = [*contract.services(), *(method.full_name for method in walks.methods())]
    assert not [name for name in names if not contract.comments().get(name)]


def test_the_errors_that_a_method_names_are_reasons_of_a_contract() -> None:
    known = {reason.name for reason in walks.reasons()}
    unknown = [
        f"{method.full_name}: {name}"
        for method in walks.methods()
        for name in _named_errors(method)
        if name not in known
    ]
    assert not unknown


def test_the_errors_paragraph_of_a_method_names_at_least_one_reason() -> None:
    assert not [
        method.full_name
        for method in walks.methods()
        if any(paragraph.startswith("Errors") for paragraph in _paragraphs(method)) and not _named_errors(method)
    ]


def test_every_reason_of_a_service_is_named_by_a_method() -> None:
    named = {name for method in walks.methods() for name in _named_errors(method)}
    assert not [
        reason.full_name for reason in walks.reasons() if reason.package != "nexus.type.v1" and reason.name not in named
    ]


def test_every_reason_has_a_code_a_message_and_a_comment() -> None:
    comments = contract.comments()
    lacking = {
        "code": [reason.full_name for reason in walks.reasons() if reason.policy.code == code_pb2.OK],
        "message": [reason.full_name for reason in walks.reasons() if not reason.policy.message],
        "comment": [reason.full_name for reason in walks.reasons() if not comments.get(reason.full_name)],
    }
    assert lacking == {"code": [], "message": [], "comment": []}


def test_every_enum_of_reasons_begins_with_unspecified() -> None:
    assert not [enum.full_name for enum in walks.reason_enums() if enum.values[0].name != "REASON_UNSPECIFIED"]


def test_every_reason_is_given_somewhere() -> None:
    raised, named = re.compile(r"\b(\w+)\(|\b(?:missing=|faults\.)+(\w+)"), re.compile(r"[\"']([A-Z0-9_]+)[\"']")
    given: set[str] = set()
    for source in (path.read_text() for path in _product_sources()):
        given.update(*raised.findall(source), named.findall(source))
    assert not [reason.full_name for reason in walks.reasons() if not given & {reason.fault, reason.name}]


def test_pages_are_bounded_and_lead_on() -> None:
    for method in walks.methods():
        size = method.descriptor.input_type.fields_by_name.get("page_size")
        if size is None:
            continue
        bounds = walks.rules(size).int32
        assert size.type == FieldDescriptor.TYPE_INT32, f"{size.full_name} is not an int32"
        assert 0 < bounds.lte <= LARGEST_PAGE, f"{size.full_name} has no bound (lte) of {LARGEST_PAGE} or less"
        assert bounds.HasField("gte"), f"{size.full_name} may be negative: set gte"
        assert "page_token" in method.descriptor.input_type.fields_by_name, f"{method.full_name} takes no page_token"
        assert "next_page_token" in method.descriptor.output_type.fields_by_name, (
            f"{method.full_name} answers without next_page_token"
        )


def test_every_list_in_a_request_has_a_longest_length() -> None:
    assert not sorted(
        {
            field.full_name
            for method in walks.methods()
            for field in walks.fields_of(method.descriptor.input_type)
            if (walks.is_map(field) and not walks.rules(field).map.max_pairs)
            or (walks.is_repeated(field) and not walks.is_map(field) and not walks.rules(field).repeated.max_items)
        }
    )


def test_every_text_from_outside_has_a_longest_length_or_a_format() -> None:
    assert not sorted(
        {
            field.full_name
            for method in walks.external_methods()
            for field in walks.fields_of(method.descriptor.input_type)
            if not _is_bounded(field)
        }
    )


def test_a_method_that_happens_once_a_key_can_do_so() -> None:
    for method in walks.methods():
        if method.policy.idempotency != contract.KEYED:
            continue
        request_id = method.descriptor.input_type.fields_by_name.get("request_id")
        documented = "idempotency-key" in contract.comments().get(method.full_name, "")
        assert request_id is not None or documented, (
            f"{method.full_name} is keyed: give its request a request_id, or document the header idempotency-key"
        )
        if request_id is not None:
            assert request_id.type == FieldDescriptor.TYPE_STRING, f"{request_id.full_name} is not a string"
            assert _is_bounded(request_id), f"{request_id.full_name} has no longest length"
        # Keys are rows of a tenant, and a stream has no single answer to store.
        assert method.tenant_scoped, f"{method.full_name} is keyed and has no tenant to keep its keys in"
        assert not method.streams, f"{method.full_name} is keyed and streams: its answer cannot be replayed"


def test_a_request_id_is_never_ignored() -> None:
    assert not [
        method.full_name
        for method in walks.methods()
        if "request_id" in method.descriptor.input_type.fields_by_name and method.policy.idempotency != contract.KEYED
    ]


def test_no_two_routes_answer_to_the_same_verb_and_path() -> None:
    routes = Counter(
        (route.verb, re.sub(r"\{[^}]*\}", "{}", route.path)) for method in walks.methods() for route in method.routes
    )
    assert not [route for route, count in routes.items() if count > 1]


def test_every_path_is_under_the_api_or_well_known() -> None:
    assert not [
        f"{method.full_name}: {route.path}"
        for method in walks.methods()
        for route in method.routes
        if not route.path.startswith(("/api/v1/", TENANT_ISSUER)) and route.path not in PATHS_OUTSIDE_THE_API
    ]


def test_every_variable_in_a_path_is_a_field_of_its_request() -> None:
    assert not [
        f"{method.full_name}: {variable}"
        for method in walks.methods()
        for route in method.routes
        for variable in re.findall(r"\{([^}=]+)", route.path)
        if not _has_field(method.descriptor.input_type, variable)
    ]


def test_reading_is_a_get_and_changing_is_not() -> None:
    assert not [
        f"{route.verb} {route.path}"
        for method in walks.methods()
        for route in method.routes
        if route.verb == "GET"
        and method.policy.idempotency != contract.NO_SIDE_EFFECTS
        and route.path not in ACTING_GETS
    ]


def test_every_secret_field_is_marked() -> None:
    assert not [
        field.full_name
        for message in walks.messages()
        for field in message.fields
        if field.type in walks.TEXT
        and SECRET.search(field.name)
        and field.name not in NOT_SECRET
        and not walks.options(field).Extensions[policy_pb2.secret]
    ]


def test_every_field_with_personal_data_is_marked() -> None:
    assert not [
        field.full_name
        for message in walks.messages()
        for field in message.fields
        if field.type in walks.TEXT
        and PERSONAL.search(field.name)
        and not walks.options(field).Extensions[policy_pb2.personal]
    ]


def _paragraphs(method: Method) -> list[str]:
    return contract.comments().get(method.full_name, "").split("\n\n")


def _named_errors(method: Method) -> list[str]:
    """The words in capitals in the `Errors:` paragraphs."""
    text = " ".join(paragraph for paragraph in _paragraphs(method) if paragraph.startswith("Errors"))
    names = re.findall(r"\b[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)*\b", text)
    return [name for name in names if name not in NAMES_NO_ERROR]


def _has_field(message: Descriptor | None, path: str) -> bool:
    for name in path.split("."):
        field = message.fields_by_name.get(name) if message is not None else None
        if field is None:
            return False
        message = field.message_type
    return True


def _is_bounded(field: FieldDescriptor) -> bool:
    """Whether the texts in a field cannot grow without end."""
    own = walks.rules(field)
    if walks.is_map(field):
        assert field.message_type is not None, "a map has entries"
        entry = field.message_type.fields_by_name
        return _bounds(entry["key"], own.map.keys) and _bounds(entry["value"], own.map.values)
    return _bounds(field, own.repeated.items if walks.is_repeated(field) else own)


def _bounds(field: FieldDescriptor, own: FieldRules) -> bool:
    """Whether these rules give a text a longest length, a list of values, or a format."""
    if field.type not in walks.TEXT:
        return True
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bool(own.bytes.max_len or own.bytes.len)
    text = own.string
    bounds = (text.max_len, text.max_bytes, text.len, text.len_bytes, len(getattr(text, "in")), text.const)
    if text.pattern and not any(bounds):
        return not re.search(r"(?<!\\)[*+]|,\}", text.pattern) and text.pattern.endswith("$")
    return any(bounds) or text.WhichOneof("well_known") in ("email", "uuid", "tuuid", "hostname", "ip", "ipv4", "ipv6")


def _product_sources() -> list[Path]:
    return [path for folder in ("services", "edge", "mesh") for path in (ROOT / folder).rglob("*.py")]
