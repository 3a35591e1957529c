"""A page token opens the next page of the query it was made for, and nothing else."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.platform.backend_api.v1.backend_api_pb2 import ListRoutesRequest
from nexus.type.v1.faults import PageTokenInvalid
from services.chassis.context import RequestContext
from services.chassis.paging import Pager
from services.chassis.sealing import Sealer
from tests.chassis.calls import PLATFORM, call_of

PAGER = Pager(Sealer(bytes(32), "backend-api"))


def listing(**fields: Any) -> ListRoutesRequest:
    return ListRoutesRequest(**fields)


def call(tenant: str | None = "acme", path: str = PLATFORM + "ListRoutes") -> RequestContext:
    return call_of(path, tenant)


def test_the_first_page_needs_no_token() -> None:
    assert PAGER.cursor(listing(), call()) == ""


@given(cursor=st.text(st.characters(codec="utf-8")), service_id=st.text(st.characters(codec="utf-8")))
def test_a_token_leads_to_where_it_was_made_for(cursor: str, service_id: str) -> None:
    token = PAGER.token(listing(service_id=service_id), call(), cursor)
    assert PAGER.cursor(listing(service_id=service_id, page_token=token), call()) == cursor


def test_the_size_of_the_page_may_change_on_the_way() -> None:
    token = PAGER.token(listing(page_size=10), call(), "10")
    assert PAGER.cursor(listing(page_size=50, page_token=token), call()) == "10"


def test_a_token_says_nothing_of_the_cursor() -> None:
    token = PAGER.token(listing(), call(), "cursor-of-a-secret-row")
    assert b"cursor" not in base64.urlsafe_b64decode(token + "==")
    assert token.isascii()
    assert "=" not in token


@pytest.mark.parametrize(
    ("request_", "context"),
    [
        (listing(service_id="token-mgr"), call()),
        (listing(service_id="user-auth"), call(tenant="other")),
        (listing(service_id="user-auth"), call(tenant=None)),
        (listing(service_id="user-auth"), call(path=PLATFORM + "GetHealth")),
    ],
    ids=["another query", "another tenant", "no tenant", "another method"],
)
def test_a_token_of_something_else_is_refused(request_: ListRoutesRequest, context: RequestContext) -> None:
    request_.page_token = PAGER.token(listing(service_id="user-auth"), call(), "10")
    with pytest.raises(PageTokenInvalid):
        PAGER.cursor(request_, context)


def test_a_token_of_another_service_is_refused() -> None:
    token = Pager(Sealer(bytes(32), "token-mgr")).token(listing(), call(), "10")
    with pytest.raises(PageTokenInvalid):
        PAGER.cursor(listing(page_token=token), call())


@given(token=st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_other_text_is_refused(token: str) -> None:
    with pytest.raises(PageTokenInvalid):
        PAGER.cursor(listing(page_token=token), call())


def test_a_page_has_a_size_by_default() -> None:
    assert Pager.size(listing()) == 100
    assert Pager.size(listing(page_size=7)) == 7
