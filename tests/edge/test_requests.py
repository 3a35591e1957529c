"""Whatever comes in, the answer is clean: the one shape of errors, a request id, and no sight of the inside."""

import gzip
import re

import httpx
import pytest

from services.chassis import contract
from tests.edge.wire import LOGIN, SECURITY_HEADERS, reason, request, send
from tests.platforms import PASSWORD, Platform, Tenant

ROUTES = "/api/v1/platform/routes"
LOGIN_BODY = '{"email": "ann@example.com", "password": "a wrong password"}'
EXTERNAL = [method for method in contract.methods().values() if method.external]
SHAPES = sorted({re.sub(r"\{.*?\}", "x", route.path) for method in EXTERNAL for route in method.routes})
"""Every path that is served, with x for what varies."""


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("hello", id="no JSON"),
        pytest.param('{"email": "ann@example.com", "pass', id="cut off"),
        pytest.param("   ", id="only spaces"),
        pytest.param('{"email": "ann@example.com", "pasword": "x"}', id="an unknown field"),
        pytest.param('{"email": {"address": "ann@example.com"}}', id="an object for text"),
        pytest.param('{"email": ["ann@example.com"]}', id="a list for text"),
        pytest.param('{"email": 7}', id="a number for text"),
        pytest.param('{"email": true}', id="a boolean for text"),
        pytest.param('{"email": 1e999999}', id="a number beyond all numbers"),
        pytest.param('{"email": ' + "9" * 100_000 + "}", id="a number of 100,000 digits"),
        pytest.param("[]", id="a list"),
        pytest.param(f"[{LOGIN_BODY}]", id="a list of one request"),
        pytest.param("7", id="a number"),
        pytest.param('"email"', id="text"),
        pytest.param("null", id="null"),
        pytest.param('{"email": "ann@example.com", "email": "bob@example.com"}', id="a field twice"),
        pytest.param('{"email": "ann@example.com", "\\u0065mail": "bob@example.com"}', id="a field twice in disguise"),
        pytest.param(b'{"email": "\xff\xfe"}', id="no UTF-8"),
        pytest.param(b'{"\xff\xfe": 1}', id="no UTF-8 in a name"),
        pytest.param('{"' + "ü" * 40 + '": 1}', id="an unknown field in another language"),
        pytest.param(b'{"email": "\xed\xa0\x80"}', id="a surrogate in UTF-8"),
        pytest.param('{"email": "\\ud800"}', id="half a surrogate pair"),
        pytest.param(LOGIN_BODY.encode("utf-16"), id="UTF-16"),
        pytest.param("\ufeff" + LOGIN_BODY, id="a byte order mark"),
        pytest.param('{"email": "a\x00b"}', id="a control character"),
        pytest.param('{"email": ' + "[" * 1_000 + "]" * 1_000 + "}", id="1,000 levels"),
        pytest.param('{"email": ' + "[" * 100_000 + "]" * 100_000 + "}", id="100,000 levels"),
        pytest.param("[" * 100_000, id="100,000 levels left open"),
        pytest.param('{"email":' * 100_000, id="100,000 objects left open"),
        pytest.param(LOGIN_BODY + LOGIN_BODY, id="two requests"),
        pytest.param("{'email': 'ann@example.com'}", id="single quotes"),
        pytest.param('{email: "ann@example.com"}', id="a bare name"),
        pytest.param("{'pasword': 'x'}", id="an unknown field in single quotes"),
        pytest.param('{"email": "ann@example.com",}', id="a trailing comma"),
        pytest.param('{"email": NaN}', id="not a number"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(platform: Platform, body: str | bytes) -> None:
    answer = request(platform, body=body)
    assert reason(answer, 400) == "MALFORMED_REQUEST"


@pytest.mark.parametrize("body", ["", "{}"])
def test_an_empty_body_lacks_what_the_contract_asks_for(platform: Platform, tenant: Tenant, body: str) -> None:
    answer = request(platform, body=body, headers=tenant.headers)
    assert reason(answer, 400) == "INVALID_REQUEST"
    violations = answer.json()["details"][1]["fieldViolations"]
    assert {violation["field"] for violation in violations} == {"email", "password"}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(LOGIN_BODY.replace('"email"', '"\\u0065mail"'), id="an escaped name"),
        pytest.param(" \r\n\t" + LOGIN_BODY + "\n", id="space around it"),
        pytest.param('{"password": "a wrong\\ud83d\\ude00password", "email": "ann@example.com"}', id="escapes"),
    ],
)
def test_whatever_json_may_look_like_is_read(platform: Platform, tenant: Tenant, body: str) -> None:
    answer = request(platform, body=body, headers=tenant.headers)
    assert reason(answer, 401) == "CREDENTIALS_INVALID"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(LOGIN, {"email": "a\0b", "password": PASSWORD}, id="to be looked up"),
        pytest.param(
            "/api/v1/auth/register",
            {"email": "ann@example.com", "password": PASSWORD, "displayName": "A\0nn"},
            id="to be kept",
        ),
    ],
)
async def test_text_with_a_nul_is_the_callers_mistake(
    tenant: Tenant, http: httpx.AsyncClient, path: str, body: dict[str, str]
) -> None:
    answer = await http.post(path, headers=tenant.headers, json=body)
    assert reason(answer, 400, 401) in ("INVALID_REQUEST", "CREDENTIALS_INVALID")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_of_ten_megabytes_is_too_large(platform: Platform, chunked: bool) -> None:
    body = b'{"email": "' + b"a" * 10_000_000 + b'"}'
    if chunked:
        head = (
            f"POST {LOGIN} HTTP/1.1\r\nhost: nexus\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
        )
        answer = send(platform, head.encode() + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    else:
        answer = request(platform, body=body)
    assert reason(answer, 413) == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/jsonx",
        "application/json-patch+json",
    ],
)
def test_other_media_types_are_refused(platform: Platform, content_type: str) -> None:
    answer = request(platform, body=LOGIN_BODY, headers={"content-type": content_type})
    assert reason(answer, 415) == "MEDIA_TYPE_UNSUPPORTED"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_is_known_by_its_media_type(platform: Platform, tenant: Tenant, content_type: str) -> None:
    answer = request(platform, body=LOGIN_BODY, headers={**tenant.headers, "content-type": content_type})
    assert reason(answer, 401) == "CREDENTIALS_INVALID"


def test_a_compressed_body_is_refused(platform: Platform) -> None:
    answer = request(platform, body=gzip.compress(LOGIN_BODY.encode()), headers={"content-encoding": "gzip"})
    assert reason(answer, 415) == "MEDIA_TYPE_UNSUPPORTED"


@pytest.mark.parametrize("path", [ROUTES, "/api/v1/auth/me"])
def test_a_method_without_a_body_takes_none(platform: Platform, path: str) -> None:
    assert reason(request(platform, "GET", path, body="{}"), 400) == "MALFORMED_REQUEST"


def test_grpc_on_an_http_path_is_not_implemented(platform: Platform) -> None:
    for path in (LOGIN, "/api/v1/auth/me"):
        answer = request(platform, path=path, body=b"\0\0\0\0\0", headers={"content-type": "application/grpc"})
        assert (answer.status, answer.headers["grpc-status"]) == (200, "12")


@pytest.mark.parametrize("path", SHAPES)
def test_another_http_method_is_told_which_ones_there_are(platform: Platform, path: str) -> None:
    verbs = {
        route.verb for method in EXTERNAL for route in method.routes if re.sub(r"\{.*?\}", "x", route.path) == path
    }
    for verb in {"GET", "PUT", "POST", "PATCH", "DELETE", "TRACE"} - verbs:
        answer = request(platform, verb, path)
        assert reason(answer, 405) == "METHOD_NOT_ALLOWED"
        assert set(answer.headers["allow"].split(", ")) == verbs


def test_an_unknown_verb_after_a_colon_is_not_found(platform: Platform) -> None:
    for verb in ("GET", "POST", "DELETE"):
        assert reason(request(platform, verb, "/api/v1/sessions/x:unheard-of"), 404) == "ROUTE_UNKNOWN"


@pytest.mark.parametrize("verb", ["BREW", "get", "G\x7fT"])
def test_an_http_method_that_does_not_exist_is_refused(platform: Platform, verb: str) -> None:
    assert reason(request(platform, verb), 400, 405) in ("MALFORMED_REQUEST", "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/v1/nothing",
        "/api/v1/auth/login;v=1",
        "/API/v1/auth/login",
        "/api/v1/auth/login%20",
        "/../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/api/v1/" + "a" * 20_000,
        "/.well-known/jwks.jsonx",
        "/nexus.identity.user_auth.v1.UserService/Register",
    ],
)
def test_where_nothing_is_served_is_not_found(platform: Platform, path: str) -> None:
    assert reason(request(platform, path=path), 404) == "ROUTE_UNKNOWN"


@pytest.mark.parametrize("path", ["/api/v1%2fauth/login", "/api/v1%5Cauth/login", LOGIN + "%00", LOGIN + "#top"])
def test_a_path_that_could_be_read_in_two_ways_is_refused(platform: Platform, path: str) -> None:
    assert reason(request(platform, path=path), 400) == "MALFORMED_REQUEST"


@pytest.mark.parametrize(
    "path",
    ["/api/v1/../v1/auth/login", "/api/v1/%2e%2e/v1/auth/login", "//api//v1///auth/login", "/api/./v1/auth/login"],
)
def test_a_path_is_what_is_left_of_it(platform: Platform, tenant: Tenant, path: str) -> None:
    answer = request(platform, path=path, body=LOGIN_BODY, headers=tenant.headers)
    assert reason(answer, 401) == "CREDENTIALS_INVALID"


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("nothing=1", id="an unknown parameter"),
        pytest.param("pageSize=many", id="text for a number"),
        pytest.param("pageSize=99999999999999999999", id="a number that is too large"),
        pytest.param("pageSize=-1", id="a number below its limit"),
        pytest.param("pageToken=" + "a" * 600, id="text that is too long"),
        pytest.param("pageToken=made-up", id="a made-up page token"),
        pytest.param("serviceId=%ff%fe", id="no UTF-8"),
    ],
)
def test_a_query_is_read_as_strictly_as_a_body(platform: Platform, query: str) -> None:
    answer = request(platform, "GET", f"{ROUTES}?{query}")
    assert reason(answer, 400) in ("MALFORMED_REQUEST", "INVALID_REQUEST", "PAGE_TOKEN_INVALID")


def test_a_field_in_query_and_body_is_refused(platform: Platform) -> None:
    answer = request(platform, path=f"{LOGIN}?email=bob@example.com", body=LOGIN_BODY)
    assert reason(answer, 400) == "MALFORMED_REQUEST"


@pytest.mark.parametrize("session", ["%ff", "x", "%00", "0" * 5_000, "..%2e"])
async def test_a_path_variable_is_read_as_strictly_as_a_body(platform: Platform, tenant: Tenant, session: str) -> None:
    headers = (await tenant.sign_in()).headers
    answer = request(platform, "DELETE", f"/api/v1/sessions/{session}", headers=headers)
    assert reason(answer, 400) in ("MALFORMED_REQUEST", "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({f"x-header-{number}": "1" for number in range(150)}, 431, id="many"),
        pytest.param({"x-large": "a" * 40_000}, 431, id="a large one"),
        pytest.param({"x-huge": "a" * 1_000_000}, 431, id="a huge one"),
        pytest.param({"x_forwarded_user": "root"}, 400, id="an underscore"),
        pytest.param({"x-control": "a\x01b"}, 400, id="a control character"),
        pytest.param({"x space": "1"}, 400, id="a space in the name"),
    ],
)
def test_headers_have_limits(platform: Platform, headers: dict[str, str], status: int) -> None:
    answer = request(platform, headers=headers)
    assert reason(answer, status) == ("MALFORMED_REQUEST" if status == 400 else "REQUEST_TOO_LARGE")


@pytest.mark.parametrize(
    "header",
    [
        "x!weird#name: 1",
        "x-trace-bin: this is not base64",
        "grpc-timeout: soon",
        "grpc-encoding: made-up",
        "user-agent: Übersee/1.0",
        "cookie: name=Jürgen",
        "x-request-id: ü",
        "traceparent: not a trace",
        "expect: the unexpected",
    ],
)
def test_an_odd_header_changes_nothing(platform: Platform, tenant: Tenant, header: str) -> None:
    name, _, value = header.partition(": ")
    answer = request(platform, body=LOGIN_BODY, headers={**tenant.headers, name: value})
    assert reason(answer, 401) == "CREDENTIALS_INVALID"


@pytest.mark.parametrize("name", ["x-nexus-tenant", "idempotency-key"])
def test_an_odd_value_of_our_own_headers_is_the_callers_mistake(platform: Platform, tenant: Tenant, name: str) -> None:
    body = '{"email": "ann@example.com", "password": "correct horse battery"}'
    answer = request(platform, path="/api/v1/auth/register", body=body, headers={**tenant.headers, name: "ü"})
    assert answer.status < 500, answer.text


async def test_a_client_may_call_itself_what_it_likes(platform: Platform, tenant: Tenant) -> None:
    email = await tenant.provision()
    body = f'{{"email": "{email}", "password": "{PASSWORD}"}}'
    answer = request(platform, body=body, headers={**tenant.headers, "user-agent": "Übersee/1.0"})
    assert answer.status == 200, answer.text


@pytest.mark.parametrize("kilobytes", [6, 12, 24])
def test_headers_that_the_edge_takes_reach_the_service(platform: Platform, tenant: Tenant, kilobytes: int) -> None:
    for _ in range(5):  # a limit that lets some pass would show
        headers = {**tenant.headers, "cookie": "a" * kilobytes * 1024}
        answer = request(platform, body=LOGIN_BODY, headers=headers)
        assert reason(answer, 401) == "CREDENTIALS_INVALID"


def test_a_url_has_a_limit(platform: Platform) -> None:
    assert reason(request(platform, "GET", "/" + "a" * 100_000), 431) == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param("GET /healthz HTTP/1.0\r\nhost: nexus\r\n\r\n", 426, id="HTTP/1.0"),
        pytest.param("GET /healthz HTTP/1.1\r\n\r\n", 400, id="no host"),
        pytest.param("\x16\x03\x01\x02\r\n\r\n", 400, id="TLS"),
        pytest.param("hello there\r\n\r\n", 400, id="no HTTP"),
        pytest.param(
            f"POST {LOGIN} HTTP/1.1\r\nhost: nexus\r\ncontent-length: -1\r\n\r\n", 400, id="a negative length"
        ),
        pytest.param(
            f"POST {LOGIN} HTTP/1.1\r\nhost: nexus\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            400,
            id="2 lengths",
        ),
        pytest.param(
            f"POST {LOGIN} HTTP/1.1\r\nhost: nexus\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="a length and chunks",
        ),
        pytest.param(
            f"POST {LOGIN} HTTP/1.1\r\nhost: nexus\r\ntransfer-encoding: chunked\r\n\r\nnot a chunk\r\n",
            400,
            id="chunks that are none",
        ),
        pytest.param("GET /healthz HTTP/1.1\r\nhost: nexus\r\n folded: 1\r\n\r\n", 400, id="a folded header"),
    ],
)
def test_what_is_not_http_is_refused_and_the_connection_closed(platform: Platform, data: str, status: int) -> None:
    answer = send(platform, data.encode())
    assert reason(answer, status) == "MALFORMED_REQUEST"
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/openapi.json", 200),
        ("/docs", 200),
        ("/.well-known/jwks.json", 200),
        ("/api/v1/auth/me", 401),
        (LOGIN, 405),
        ("/nothing", 404),
        (f"{ROUTES}?nothing=1", 400),
    ],
)
async def test_every_answer_has_an_id_and_the_security_headers(http: httpx.AsyncClient, path: str, status: int) -> None:
    answers = [await http.get(path) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [status, status]
    assert answers[0].headers["x-request-id"] != answers[1].headers["x-request-id"]
    for name, value in SECURITY_HEADERS.items():
        assert answers[0].headers[name] == value
    assert "frame-ancestors 'none'" in answers[0].headers["content-security-policy"]
    assert "x-powered-by" not in answers[0].headers
    assert not [name for name in answers[0].headers if name.startswith("x-envoy-")]


async def test_the_id_in_an_answer_finds_the_request_in_the_logs(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    answer = await http.post(LOGIN, headers=tenant.headers, json={"email": "ann@example.com", "password": "wrong"})
    logged = platform.nexus("logs", "auth-service", "--raw").stdout
    assert answer.headers["x-request-id"] in logged


def test_many_bodies_that_do_not_fit_cut_off_nobody_elses_request(platform: Platform) -> None:
    """Each is a call that the edge takes back; the mesh must not hang up on the edge, and on all whom it serves."""
    transport = httpx.HTTPTransport(uds=str(platform.settings.run_dir / "mesh-admin.sock"))
    with httpx.Client(base_url=platform.http_url) as client:
        unfit = [client.post("/api/v1/auth/login", json={"email": {"address": "ann"}}) for _ in range(600)]
    assert {answer.status_code for answer in unfit} == {400}
    with httpx.Client(transport=transport, base_url="http://admin") as admin:
        hung_up = admin.get("/stats", params={"filter": "too_many_premature_resets", "format": "json"}).json()["stats"]
    assert len(hung_up) > 10
    assert not [stat for stat in hung_up if stat["value"]]
