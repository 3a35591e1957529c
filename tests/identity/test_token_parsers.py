"""Whatever is sent as a token, a code, a form or a key set: it is refused, and nothing breaks."""

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from authlib.oauth2 import OAuth2Error
from google.api.httpbody_pb2 import HttpBody
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey

from nexus.identity.token_mgr.v1.token_mgr_pb2 import (
    IntrospectTokenRequest,
    IssueTokensRequest,
    VerifyTokenRequest,
)
from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
from services.chassis.clients import Clients
from services.chassis.clock import now, timestamp
from services.chassis.context import OPERATOR
from services.chassis.ids import new_id
from services.chassis.sealing import Sealer
from services.identity.auth_service_v2 import clients, tickets
from services.identity.auth_service_v2.authorization import verifies
from services.identity.auth_service_v2.forms import Form
from services.identity.auth_service_v2.tickets import Tickets
from tests.platforms import Platform

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@dataclass
class TokenMgr:
    """token-mgr as services ask it, with a token of its own that is good."""

    runner: asyncio.Runner
    tokens: Any
    tenant_id: str
    token: str

    def takes(self, token: str) -> bool:
        """Whether it says that a token is good, in the two ways in which it is asked."""
        return self.runner.run(self._ask(token))

    async def _ask(self, token: str) -> bool:
        tenant = (("x-nexus-tenant", self.tenant_id),)
        verified = await self.tokens.VerifyToken(VerifyTokenRequest(access_token=token), timeout=10.0)
        told = await self.tokens.IntrospectToken(IntrospectTokenRequest(token=token), timeout=10.0, metadata=tenant)
        assert verified.active == told.active, token
        return bool(verified.active)


@pytest.fixture(scope="module")
def token_mgr(platform: Platform) -> Iterator[TokenMgr]:
    with asyncio.Runner() as runner:

        async def prepare() -> tuple[Clients, Any, str, str]:
            tenant = await platform.new_tenant()
            operator = Clients(platform.settings, OPERATOR, None)
            stub = operator.stub(TokenServiceStub)
            request = IssueTokensRequest(
                user_id=new_id(),
                session_id=new_id(),
                permissions=["users.read"],
                session_expire_time=timestamp(now() + timedelta(minutes=30)),
            )
            metadata = (("x-nexus-tenant", tenant.tenant_id),)
            issued = await stub.IssueTokens(request, timeout=10.0, metadata=metadata)
            return operator, stub, tenant.tenant_id, issued.tokens.access_token

        operator, stub, tenant_id, token = runner.run(prepare())
        yield TokenMgr(runner, stub, tenant_id, token)
        runner.run(operator.stop())


fuzz = hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@fuzz
@given(data=st.data())
def test_a_token_changed_in_one_letter_is_refused(token_mgr: TokenMgr, data: st.DataObject) -> None:
    assert token_mgr.takes(token_mgr.token)
    at = data.draw(st.integers(0, len(token_mgr.token) - 1))
    letter = data.draw(st.sampled_from(ALPHABET + ". =\n\0é"))
    changed = token_mgr.token[:at] + letter + token_mgr.token[at + 1 :]
    assert not token_mgr.takes(changed) or means_the_same(changed, token_mgr.token)


def means_the_same(changed: str, token: str) -> bool:
    """The last letter of base64 has bits that say nothing."""
    try:
        parts = [[base64.urlsafe_b64decode(p + "=" * (-len(p) % 4)) for p in t.split(".")] for t in (changed, token)]
    except ValueError:
        return False
    return parts[0] == parts[1]


@fuzz
@given(
    header=st.fixed_dictionaries(
        {"alg": st.sampled_from(["none", "None", "HS256", "ES256", "RS256", "ES256K", "dir", ""]) | JSON},
        optional={
            "kid": st.text(max_size=40) | JSON,
            "typ": JSON,
            "crit": JSON,
            "jwk": st.just(ECKey.generate_key("P-256").as_dict(private=False)),
            "jku": st.just("http://127.0.0.1:1/keys"),
            "b64": st.booleans(),
            "zip": st.just("DEF"),
        },
    ),
    claims=JSON | st.fixed_dictionaries({"exp": JSON, "sub": JSON, "tid": JSON, "sid": JSON, "permissions": JSON}),
    signature=st.binary(max_size=80),
    keep=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_a_token_made_up_of_parts_is_refused(
    token_mgr: TokenMgr, header: Any, claims: Any, signature: bytes, keep: tuple[bool, bool, bool]
) -> None:
    made_up = [b64(json.dumps(header).encode()), b64(json.dumps(claims).encode()), b64(signature)]
    parts = [
        mine if kept else theirs for kept, mine, theirs in zip(keep, token_mgr.token.split("."), made_up, strict=True)
    ]
    token = ".".join(parts)
    assert not token_mgr.takes(token) or token == token_mgr.token


@fuzz
@given(
    st.text(min_size=1, max_size=300)
    | st.lists(st.binary(max_size=30), max_size=6).map(lambda p: ".".join(map(b64, p)))
)
def test_text_is_no_token(token_mgr: TokenMgr, text: str) -> None:
    assert not token_mgr.takes(text or "-")


SEALED = Tickets(Sealer(bytes(32), "auth-service-v2"))
TICKET = SEALED.issue(tickets.CODE, "acme", {"grant_id": "g"}, timedelta(days=1))


@given(st.text(max_size=200) | st.binary(max_size=200).map(b64))
def test_text_is_no_ticket(text: str) -> None:
    assert SEALED.read(tickets.CODE, "acme", text) is None


@given(st.integers(0, len(TICKET) - 1), st.sampled_from(ALPHABET))
def test_a_ticket_opens_unchanged_as_what_it_is_for_whom_it_was_made_only(at: int, letter: str) -> None:
    changed = TICKET[:at] + letter + TICKET[at + 1 :]
    read = SEALED.read(tickets.CODE, "acme", changed)
    assert (read is not None) == means_the_same(changed, TICKET)
    assert SEALED.read(tickets.SESSION, "acme", TICKET) is None
    assert SEALED.read(tickets.CODE, "umbrella", TICKET) is None


@given(st.binary(max_size=400), st.sampled_from(["application/x-www-form-urlencoded", "application/json", "", "é"]))
def test_a_form_is_read_or_refused_in_the_standards_words(body: bytes, media_type: str) -> None:
    assert all(read_or_refused(body, media_type).values()), "a field without a value is absent"


def read_or_refused(body: bytes, media_type: str) -> dict[str, str]:
    try:
        return Form(HttpBody(content_type=media_type, data=body))
    except OAuth2Error as error:
        return {"refused": {"invalid_request": "yes"}.get(error.error or "", "")}


@given(st.dictionaries(st.text(ALPHABET, min_size=1, max_size=20), st.text(min_size=1, max_size=40), max_size=6))
def test_a_form_is_read_as_it_was_written(fields: dict[str, str]) -> None:
    from urllib.parse import urlencode

    written = HttpBody(content_type="application/x-www-form-urlencoded", data=urlencode(fields).encode())
    assert Form(written) == fields


@given(st.text(max_size=200) | JSON.map(json.dumps) | JSON.map(lambda key: json.dumps({"keys": [key]})))
def test_a_key_set_that_is_none_has_a_problem(text: str) -> None:
    assert clients.keys_problem(text)


@given(st.text(max_size=140), st.text(max_size=60))
def test_no_text_verifies_a_challenge_but_its_own(verifier: str, challenge: str) -> None:
    assert not verifies(verifier, challenge)
