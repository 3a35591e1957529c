"""Pages of any origin may call with a token in a header; nobody's cookies count."""

import httpx
import pytest

from tests.edge.wire import LOGIN

PAGE = {"origin": "https://app.example"}


def allows_the_page(answer: httpx.Response) -> bool:
    assert "access-control-allow-credentials" not in answer.headers
    return answer.headers.get("access-control-allow-origin") in ("*", PAGE["origin"])


@pytest.mark.parametrize(
    ("path", "verb"),
    [(LOGIN, "POST"), ("/api/v1/auth/me", "GET"), ("/api/v1/sessions/x", "DELETE"), ("/api/v1/platform/routes", "GET")],
)
async def test_a_browser_may_ask_before_it_calls(http: httpx.AsyncClient, path: str, verb: str) -> None:
    asks = {
        **PAGE,
        "access-control-request-method": verb,
        "access-control-request-headers": "authorization, content-type, x-nexus-tenant, idempotency-key",
    }
    answer = await http.options(path, headers=asks)
    assert answer.is_success, answer.text
    assert allows_the_page(answer)
    assert verb in answer.headers["access-control-allow-methods"]
    allowed = {name.strip() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert {"authorization", "content-type", "x-nexus-tenant", "idempotency-key"} <= allowed


async def test_a_browser_may_ask_for_grpc_web(http: httpx.AsyncClient) -> None:
    asks = {
        **PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type, x-grpc-web, grpc-timeout, x-user-agent",
    }
    answer = await http.options("/nexus.identity.auth_service.v1.AuthService/Login", headers=asks)
    assert answer.is_success, answer.text
    assert allows_the_page(answer)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/platform/routes", 200),
        ("/api/v1/auth/me", 401),
        ("/api/v1/platform/routes?nothing=1", 400),
        (LOGIN, 405),
        ("/nothing", 404),
        ("/healthz", 200),
    ],
)
async def test_a_page_may_read_the_answer_and_its_headers(http: httpx.AsyncClient, path: str, status: int) -> None:
    answer = await http.get(path, headers=PAGE)
    assert answer.status_code == status
    assert allows_the_page(answer)
    exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert {"x-request-id", "retry-after", "grpc-status", "grpc-message"} <= exposed


async def test_a_bad_token_is_an_answer_that_a_page_may_read(http: httpx.AsyncClient) -> None:
    answer = await http.get("/api/v1/auth/me", headers={**PAGE, "authorization": "Bearer nonsense"})
    assert answer.status_code == 401
    assert allows_the_page(answer)


async def test_options_that_is_no_browser_asking_is_a_wrong_method(http: httpx.AsyncClient) -> None:
    answer = await http.options(LOGIN)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
