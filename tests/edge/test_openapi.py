"""The OpenAPI document: complete, valid, and of one mind with the services about what a request may be."""

import json
import re
from pathlib import Path
from typing import Any

import protovalidate
import pytest
from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from openapi_schema_validator import OAS31Validator, oas31_format_checker
from openapi_spec_validator import validate

from edge import openapi
from nexus.type.v1.faults import InvalidRequest, RateLimited
from services.chassis import contract
from services.chassis.errors import Fault
from services.chassis.tools import generate

Json = dict[str, Any]
URL = "http://127.0.0.1:8080"
EXTERNAL = [method for method in contract.methods().values() if method.external]


@pytest.fixture(scope="module")
def document() -> Json:
    return openapi.document(server_url=URL)


def operations(document: Json) -> dict[str, Json]:
    return {operation["operationId"]: operation for verbs in document["paths"].values() for operation in verbs.values()}


def test_it_is_valid_openapi(document: Json) -> None:
    validate(document)
    for schema in document["components"]["schemas"].values():
        OAS31Validator.check_schema(schema)


def test_it_is_the_same_every_time(document: Json) -> None:
    assert json.dumps(document) == json.dumps(openapi.document(server_url=URL))


def test_every_outside_method_is_in_it_and_no_other(document: Json) -> None:
    documented = {
        (verb.upper(), path): operation["x-nexus-grpc-method"]
        for path, verbs in document["paths"].items()
        for verb, operation in verbs.items()
    }
    served = {
        (route.verb, re.sub(r"{(?:[^}=]*\.)?([^}=.]+)[^}]*}", r"{\1}", route.path)): method.full_name
        for method in EXTERNAL
        for route in method.routes
    }
    assert documented == served
    assert {tag["name"] for tag in document["tags"]} == {method.service_id for method in EXTERNAL}


@pytest.mark.parametrize("method", EXTERNAL, ids=lambda method: method.full_name)
def test_access_is_documented_as_the_contract_has_it(method: contract.Method, document: Json) -> None:
    service = method.descriptor.containing_service.name
    operation = operations(document)[f"{service}_{method.name}"]
    references = [parameter.get("$ref", "") for parameter in operation["parameters"]]
    tenant_needed = method.access == "public" and method.tenant_scoped
    names = [name for scheme in operation["security"] for name in scheme]
    assert ("bearerAuth" in names) is method.needs_user
    assert ("apiKeyAuth" in names) is bool(method.policy.permission or method.policy.scope)
    assert operation.get("x-nexus-scope", "") == method.policy.scope
    assert ("x-nexus-step-up" in operation) is method.policy.HasField("recent_proof")
    assert ("#/components/parameters/tenant" in references) is tenant_needed
    assert ("401" in operation["responses"]) >= method.needs_user


@pytest.mark.parametrize("method", contract.methods().values(), ids=lambda method: method.full_name)
def test_every_reason_named_in_a_comment_exists(method: contract.Method) -> None:
    unknown = [name for name in openapi.named_reasons(method) if not openapi.resolve(name, method.service_id)]
    assert not unknown


def test_reasons_are_listed_under_their_status(document: Json) -> None:
    responses = operations(document)["AuthService_Login"]["responses"]
    assert "user-auth/CREDENTIALS_INVALID" in responses["401"]["x-nexus-reasons"]
    assert "user-auth/EMAIL_NOT_VERIFIED" in responses["400"]["x-nexus-reasons"]
    assert "nexus/RATE_LIMITED" in responses["429"]["x-nexus-reasons"]
    assert "TENANT_UNKNOWN" in responses["404"]["description"]


def test_reasons_belong_to_the_service_that_documents_them() -> None:
    (taken,) = [reason for reason in openapi.reasons() if reason.reason == "EMAIL_TAKEN"]
    assert (taken.domain, taken.code, taken.status) == ("user-auth", "ALREADY_EXISTS", 409)
    assert openapi.reasons()[0].domain == "nexus"


@pytest.mark.parametrize(
    "fault",
    [
        InvalidRequest(summary="email is empty", violations=[("email", "is empty")]),
        RateLimited(seconds=3, retry_after=3),
    ],
    ids=lambda fault: fault.reason,
)
def test_errors_look_as_documented(fault: Fault, document: Json) -> None:
    answer = json_format.MessageToDict(fault.status())
    root = document | {"$ref": "#/components/schemas/google.rpc.Status"}
    OAS31Validator(root).validate(answer)
    answer["details"][0]["@type"] = "type.googleapis.com/google.rpc.DebugInfo"
    assert not OAS31Validator(root).is_valid(answer)


LIBRARY = """
syntax = "proto3";
package nexus.test.library.v1;
import "buf/validate/validate.proto";
import "google/api/annotations.proto";
import "google/api/httpbody.proto";
import "google/protobuf/any.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/field_mask.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "nexus/options/v1/policy.proto";

service LibraryService {
  rpc UpdateBook(UpdateBookRequest) returns (UpdateBookResponse) {
    option (google.api.http) = {
      patch: "/api/v1/books/{book.book_id}"
      body: "book"
      additional_bindings {post: "/api/v1/books/{book.book_id}:amend" body: "*"}
    };
    option (nexus.options.v1.method) = {permission: "books.write" idempotency: IDEMPOTENCY_KEYED};
  }
  rpc WatchBooks(WatchBooksRequest) returns (stream WatchBooksResponse) {
    option (google.api.http) = {get: "/api/v1/books:watch"};
    option (nexus.options.v1.method) = {signed_in: true idempotency: IDEMPOTENCY_NO_SIDE_EFFECTS};
  }
  rpc ReadFile(ReadFileRequest) returns (google.api.HttpBody) {
    option (google.api.http) = {get: "/files/{name=**}"};
    option (nexus.options.v1.method) = {public: true idempotency: IDEMPOTENCY_NO_SIDE_EFFECTS};
  }
  rpc UploadFile(UploadFileRequest) returns (UploadFileResponse) {
    option (google.api.http) = {put: "/files/{name=**}" body: "content"};
    option (nexus.options.v1.method) = {signed_in: true idempotency: IDEMPOTENCY_IDEMPOTENT};
  }
  rpc AddBook(AddBookRequest) returns (AddBookResponse) {
    option (google.api.http) = {post: "/api/v1/books" body: "*"};
    option (nexus.options.v1.method) = {public: true idempotency: IDEMPOTENCY_NONE tenancy: TENANCY_PLATFORM};
  }
}

enum Genre {
  GENRE_UNSPECIFIED = 0;
  GENRE_NOVEL = 1;
  GENRE_POEMS = 2;
}
message Book {
  string book_id = 1 [(buf.validate.field).string.uuid = true];
  string title = 2 [(buf.validate.field).string = {min_len: 1 max_len: 20}];
  repeated Book sequels = 3 [(buf.validate.field).repeated.max_items = 2];
}
message UpdateBookRequest {
  Book book = 1 [(buf.validate.field).required = true];
  google.protobuf.FieldMask update_mask = 2;
}
message UpdateBookResponse { Book book = 1; }
message Filter {
  Genre genre = 1;
  google.protobuf.Timestamp printed_after = 2;
  map<string, string> labels = 3;
  Filter and_also = 4;
}
message WatchBooksRequest {
  Filter filter = 1;
  repeated string shelf_names = 2 [(buf.validate.field).repeated.items.string.max_len = 5];
}
message WatchBooksResponse { Book book = 1; }
message ReadFileRequest { string name = 1; }
message UploadFileRequest { string name = 1; google.api.HttpBody content = 2; }
message UploadFileResponse {}
message AddBookRequest {
  string isbn = 1 [(buf.validate.field).string.pattern = "^[0-9]{13}$"];
  int64 price = 2 [(buf.validate.field).int64.gte = 0];
  int32 pages = 3 [(buf.validate.field).int32 = {gt: 0 lte: 5000}];
  Genre genre = 4 [(buf.validate.field).enum = {defined_only: true not_in: [0]}];
  repeated string tags = 5 [(buf.validate.field).repeated = {
    unique: true
    max_items: 3
    items: {string: {max_len: 4}}
  }];
  map<string, int32> ratings = 6 [(buf.validate.field).map = {
    max_pairs: 2
    keys: {string: {min_len: 1}}
    values: {int32: {gte: 1 lte: 5}}
  }];
  google.protobuf.StringValue blurb = 7 [(buf.validate.field).string.max_len = 9];
  oneof medium {
    option (buf.validate.oneof).required = true;
    bool paper = 8;
    string url = 9 [(buf.validate.field).string.uri = true];
  }
  optional string note = 10 [(buf.validate.field).string.min_len = 1];
  string language = 11 [(buf.validate.field) = {
    ignore: IGNORE_IF_ZERO_VALUE
    string: {in: ["de", "en"]}
  }];
  bytes cover = 12;
  google.protobuf.Duration loan = 13;
  google.protobuf.Struct extra = 14;
  google.protobuf.Any anything = 15;
  bool accepted = 16 [(buf.validate.field).required = true];
}
message AddBookResponse {
  int64 price = 1;
  Book book = 2;
}
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> DescriptorPool:
    """The contracts of a library, compiled beside the platform's options."""
    folder: Path = tmp_path_factory.mktemp("proto")
    options = folder / "nexus/options/v1"
    options.mkdir(parents=True)
    (options / "policy.proto").write_text((generate.PROTO / "nexus/options/v1/policy.proto").read_text())
    (folder / "library.proto").write_text(LIBRARY)
    generate.compile_image(folder, folder / "image", tmp_path_factory.mktemp("scratch"))
    linked = DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString((folder / "image").read_bytes()).file:
        linked.Add(file)
    return linked


@pytest.fixture(scope="module")
def library(pool: DescriptorPool) -> Json:
    service = pool.FindServiceByName("nexus.test.library.v1.LibraryService")
    made = openapi.document(server_url=URL, methods=contract.methods_of(service))
    validate(made)
    return made


def component(document: Json, name: str) -> Json:
    schema: Json = document["components"]["schemas"][f"nexus.test.library.v1.{name}"]
    return schema


def test_each_binding_is_an_operation_of_its_own(library: Json) -> None:
    patch = library["paths"]["/api/v1/books/{book_id}"]["patch"]
    post = library["paths"]["/api/v1/books/{book_id}:amend"]["post"]
    assert patch["operationId"] == "LibraryService_UpdateBook"
    assert post["operationId"] == "LibraryService_UpdateBook_2"


def test_a_body_lacks_the_fields_that_the_path_fills(library: Json) -> None:
    patch = library["paths"]["/api/v1/books/{book_id}"]["patch"]
    book = patch["requestBody"]["content"]["application/json"]["schema"]
    assert list(book["properties"]) == ["title", "sequels"]
    assert book["required"] == ["title"]
    assert [(item["name"], item["in"]) for item in patch["parameters"][:2]] == [
        ("book_id", "path"),
        ("updateMask", "query"),
    ]
    post = library["paths"]["/api/v1/books/{book_id}:amend"]["post"]
    whole = post["requestBody"]["content"]["application/json"]["schema"]
    assert list(whole["properties"]["book"]["properties"]) == ["title", "sequels"]


def test_a_keyed_method_takes_a_key(library: Json) -> None:
    patch = library["paths"]["/api/v1/books/{book_id}"]["patch"]
    assert {"$ref": "#/components/parameters/idempotencyKey"} in patch["parameters"]
    assert "nexus/IDEMPOTENCY_KEY_REUSED" in patch["responses"]["400"]["x-nexus-reasons"]


def test_a_query_spells_out_nested_fields(library: Json) -> None:
    parameters = library["paths"]["/api/v1/books:watch"]["get"]["parameters"]
    by_name = {parameter["name"]: parameter for parameter in parameters}
    assert list(by_name) == ["filter.genre", "filter.printedAfter", "shelfNames"]
    assert by_name["filter.printedAfter"]["schema"]["format"] == "date-time"
    assert by_name["shelfNames"]["explode"]
    assert by_name["shelfNames"]["schema"]["items"] == {"type": "string", "maxLength": 5}


def test_a_stream_is_newline_delimited(library: Json) -> None:
    responses = library["paths"]["/api/v1/books:watch"]["get"]["responses"]
    assert list(responses["200"]["content"]) == ["application/x-ndjson"]


def test_raw_bodies_have_any_type(library: Json) -> None:
    file = library["paths"]["/files/{name}"]
    assert file["get"]["responses"]["200"]["content"] == {"*/*": {}}
    assert file["put"]["requestBody"]["content"] == {"*/*": {}}
    assert file["get"]["parameters"][0]["x-nexus-template"] == "**"


def test_answers_promise_no_rules_and_requests_are_closed(library: Json) -> None:
    assert component(library, "Book")["properties"]["title"] == {"type": "string"}
    assert component(library, "Book-Input")["properties"]["title"] == {
        "type": "string",
        "minLength": 1,
        "maxLength": 20,
    }
    assert component(library, "Book-Input")["additionalProperties"] is False
    sequels = component(library, "Book-Input")["properties"]["sequels"]
    assert sequels["items"] == {"$ref": "#/components/schemas/nexus.test.library.v1.Book-Input"}
    assert component(library, "AddBookResponse")["properties"]["price"]["type"] == "string"


GOOD: Json = {
    "isbn": "9783161484100",
    "price": "1999",
    "pages": 12,
    "genre": "GENRE_POEMS",
    "paper": True,
    "accepted": True,
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"isbn": "12"},
        {"isbn": None},
        {"price": "-1"},
        {"price": "9223372036854775807"},
        {"pages": 0},
        {"pages": 5000},
        {"pages": 5001},
        {"pages": 2**31},
        {"genre": "GENRE_UNSPECIFIED"},
        {"genre": "GENRE_CRIME"},
        {"genre": None},
        {"tags": ["a", "b"]},
        {"tags": ["a", "a"]},
        {"tags": ["abcde"]},
        {"tags": ["a", "b", "c", "d"]},
        {"ratings": {"ada": 5}},
        {"ratings": {"ada": 6}},
        {"ratings": {"": 5}},
        {"ratings": {"a": 1, "b": 2, "c": 3}},
        {"blurb": "short"},
        {"blurb": "far too long"},
        {"url": "https://example.com/"},
        {"paper": None, "url": "https://example.com/"},
        {"paper": None},
        {"note": ""},
        {"note": "x"},
        {"language": ""},
        {"language": "de"},
        {"language": "fr"},
        {"cover": "AAEC"},
        {"loan": "3.5s"},
        {"loan": "a week"},
        {"extra": {"any": ["thing"]}},
        {"extra": []},
        {"accepted": False},
        {"accepted": None},
        {"surprise": 1},
    ],
    ids=str,
)
def test_the_schema_and_the_service_agree(change: Json, library: Json, pool: DescriptorPool) -> None:
    """None takes a field out."""
    request = {name: value for name, value in (GOOD | change).items() if value is not None}
    root = library | {"$ref": "#/components/schemas/nexus.test.library.v1.AddBookRequest"}
    documented = OAS31Validator(root, format_checker=oas31_format_checker).is_valid(request)
    assert documented == is_accepted(request, pool)


def is_accepted(request: Json, pool: DescriptorPool) -> bool:
    kind = pool.FindMessageTypeByName("nexus.test.library.v1.AddBookRequest")
    message = message_factory.GetMessageClass(kind)()
    try:
        json_format.ParseDict(request, message)
        protovalidate.validate(message)
    except (json_format.ParseError, protovalidate.ValidationError):
        return False
    return True


def test_the_same_route_twice_is_refused(pool: DescriptorPool) -> None:
    methods = contract.methods_of(pool.FindServiceByName("nexus.test.library.v1.LibraryService"))
    with pytest.raises(ValueError, match="another method"):
        openapi.document(server_url=URL, methods=[*methods, *methods])


@pytest.mark.parametrize(
    ("comment", "sentence", "rest"),
    [
        ("Lists books.", "Lists books", ""),
        ("Lists books, e.g. novels. In\norder.", "Lists books, e.g. novels", "In order."),
        ("Lists v1.2 books\n\nErrors: NONE.", "Lists v1.2 books", "Errors: NONE."),
    ],
)
def test_a_comment_begins_with_its_summary(comment: str, sentence: str, rest: str) -> None:
    assert openapi.split_sentence(openapi.prose(comment)) == (sentence, rest)
