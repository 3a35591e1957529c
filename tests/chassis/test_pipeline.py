"""What every call passes on its way to a handler, driven without a network."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.sdk.trace import TracerProvider

from nexus.identity.auth_service.v1.auth_service_pb2 import GetMeRequest, LogoutRequest, RemoveTotpRequest
from nexus.identity.token_mgr.v1.token_mgr_pb2 import GetJwksRequest
from nexus.identity.user_auth.v1 import user_auth_pb2 as pb
from nexus.platform.backend_api.v1.faults import ApiKeyInvalid
from nexus.type.v1.faults import Conflict, RateLimited, TenantUnknown, TokenInvalid
from services.chassis.config import Settings
from services.chassis.context import RequestContext, User, current
from services.chassis.errors import STATUS_DETAILS
from services.chassis.peers import XFCC, PeerIdentifier
from services.chassis.pipeline import CONFLICT_ATTEMPTS, Guards, Handler, Load, bind
from services.chassis.telemetry import CallTracer
from tests.chassis.calls import USERS, Aborted, FakeRpc, method, user_of

USER_ID = "0197f0c1-2345-7abc-8def-0123456789ab"
ASKED = pb.GetUserRequest(user_id=USER_ID)
KEYS = "/nexus.identity.token_mgr.v1.TokenService/GetJwks"
TENANT = ("x-nexus-tenant", "acme")
SIGNED_IN = ("authorization", "Bearer good")


@dataclass
class Stand:
    """The stages of user-auth, on guards that do as they are told."""

    user: User = field(default_factory=lambda: user_of("acme", "users.read"))
    counted: list[tuple[str, ...]] = field(default_factory=list)
    over_limit: bool = False
    once: Callable[..., Any] | None = None
    default_timeout: float = 10.0

    def guards(self) -> Guards:
        async def verify(token: str) -> User:
            if token != "good":
                raise TokenInvalid(why="it is not the good one")
            return self.user

        async def verify_key(key: str, *, count: bool) -> User:
            if key != "key":
                raise ApiKeyInvalid()
            if count:
                self.counted.append((key,))
            return self.user

        async def count(_method: object, *who: str) -> None:
            self.counted.append(who)
            if self.over_limit:
                raise RateLimited(seconds=3, retry_after=3)

        async def require_active(tenant: str) -> None:
            if tenant != "acme":
                raise TenantUnknown(tenant=tenant)

        parts: dict[str, Any] = {
            "peers": PeerIdentifier(Settings()),
            "callers": frozenset({"auth-service"}),
            "verifier": SimpleNamespace(verify=verify),
            "api_keys": SimpleNamespace(verify=verify_key),
            "limiter": SimpleNamespace(count=count),
            "tenants": SimpleNamespace(require_active=require_active),
            "streams": SimpleNamespace(serve=None),
            "once": SimpleNamespace(run=self.once),
            "tracer": CallTracer(TracerProvider(), 0),
            "load": Load(limit=100),
            "platform_tenant": "platform",
            "default_timeout": self.default_timeout,
        }
        return Guards(**parts)

    async def call(self, name: str, request: Any, rpc: FakeRpc, handler: Handler | None = None) -> Any:
        """What a method of UserService answers; raises Aborted when it refuses."""

        async def answer(_request: Any, call: RequestContext) -> RequestContext:
            return call

        path = name if name.startswith("/") else USERS + name
        return await bind(method(path), self.guards(), handler or answer)(request, rpc)

    async def refusal(self, name: str, request: Any, rpc: FakeRpc, handler: Handler | None = None) -> str:
        """The reason with which a call is refused."""
        with pytest.raises(Aborted):
            await self.call(name, request, rpc, handler)
        return reason_of(rpc)


def by(service: str) -> tuple[str, str]:
    return (XFCC, f"URI=spiffe://nexus.local/ns/nexus/sa/{service}")


def status_of(rpc: FakeRpc) -> status_pb2.Status:
    return status_pb2.Status.FromString(rpc.trailing[STATUS_DETAILS])


def info_of(rpc: FakeRpc) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert status_of(rpc).details[0].Unpack(info)
    return info


def reason_of(rpc: FakeRpc) -> str:
    return info_of(rpc).reason


@pytest.fixture
def stand() -> Stand:
    return Stand()


async def test_a_call_reaches_its_handler_with_everything_known(stand: Stand) -> None:
    rpc = FakeRpc([SIGNED_IN, TENANT, by("edge"), ("x-request-id", "r-7"), ("user-agent", "curl")])
    call = await stand.call("GetUser", ASKED, rpc)
    assert (call.user, call.tenant_id, call.caller) == (stand.user, "acme", "edge")
    assert (call.request_id, call.token, call.user_agent) == ("r-7", "good", "curl")


async def test_the_call_being_served_is_known_to_all_below(stand: Stand) -> None:
    async def handler(_request: Any, call: RequestContext) -> bool:
        return current() is call

    assert await asyncio.create_task(stand.call("GetUser", ASKED, FakeRpc([SIGNED_IN]), handler))


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\n", 'x"y'])
async def test_a_request_id_that_is_not_one_is_replaced(stand: Stand, given: str) -> None:
    call = await stand.call("GetUser", ASKED, FakeRpc([SIGNED_IN, ("x-request-id", given)]))
    assert re.fullmatch(r"[0-9a-f-]{36}", call.request_id)


async def test_a_call_has_the_trace_of_its_caller(stand: Stand) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    call = await stand.call(
        "GetUser", ASKED, FakeRpc([SIGNED_IN, ("traceparent", f"00-{trace_id}-00f067aa0ba902b7-00")])
    )
    assert call.trace_id == trace_id


async def test_a_call_without_a_trace_gets_an_id_that_its_callees_can_be_given(stand: Stand) -> None:
    call = await stand.call("GetUser", ASKED, FakeRpc([SIGNED_IN]))
    assert re.fullmatch(r"[0-9a-f]{32}", call.trace_id.replace("-", ""))


async def test_a_refusal_has_code_message_details_and_request_id(stand: Stand) -> None:
    rpc = FakeRpc([("x-request-id", "r-7")])
    assert await stand.refusal("GetUser", ASKED, rpc) == "TOKEN_REQUIRED"
    assert rpc.code is grpc.StatusCode.UNAUTHENTICATED
    assert rpc.message == status_of(rpc).message == "Sign in first: this method needs an access token."
    assert rpc.trailing["x-request-id"] == "r-7"


async def test_a_defect_says_nothing_of_itself(stand: Stand) -> None:
    async def handler(_request: Any, _call: RequestContext) -> None:
        raise KeyError("postgresql://nexus:hunter2@db")

    rpc = FakeRpc([SIGNED_IN, ("x-request-id", "r-7")])
    assert await stand.refusal("GetUser", ASKED, rpc, handler) == "INTERNAL"
    assert rpc.code is grpc.StatusCode.INTERNAL
    assert "hunter2" not in f"{rpc.message} {status_of(rpc)}"
    assert "r-7" in rpc.message


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "TOKEN_REQUIRED"),
        ([("authorization", "Bearer")], "TOKEN_REQUIRED"),
        ([("authorization", "Bearer ")], "TOKEN_REQUIRED"),
        ([("authorization", "Basic good")], "TOKEN_REQUIRED"),
        ([("authorization", "good")], "TOKEN_REQUIRED"),
        ([("authorization", "Bearer bad")], "TOKEN_INVALID"),
        ([SIGNED_IN, ("x-nexus-tenant", "other")], "TENANT_MISMATCH"),
        ([SIGNED_IN, by("streamcore")], "CALLER_NOT_ALLOWED"),
        ([by("auth-service")], "TOKEN_REQUIRED"),
        ([("x-api-key", "guess")], "API_KEY_INVALID"),
        ([("x-api-key", "")], "API_KEY_INVALID"),
        ([("x-api-key", "key"), SIGNED_IN], "CREDENTIALS_AMBIGUOUS"),
        ([("x-api-key", "key"), ("x-nexus-tenant", "other")], "TENANT_MISMATCH"),
    ],
)
async def test_a_method_for_users_refuses(stand: Stand, metadata: list[tuple[str, str]], reason: str) -> None:
    assert await stand.refusal("GetUser", ASKED, FakeRpc(metadata)) == reason


async def test_a_method_with_a_permission_needs_it(stand: Stand) -> None:
    stand.user = user_of("acme", "users.write")
    assert await stand.refusal("GetUser", ASKED, FakeRpc([SIGNED_IN])) == "PERMISSION_MISSING"


async def test_an_api_key_stands_for_its_user_and_is_counted_where_it_comes_in(stand: Stand) -> None:
    for caller, counted in (("edge", 1), ("auth-service", 1), ("edge", 2)):
        call = await stand.call("GetUser", ASKED, FakeRpc([("x-api-key", "key"), by(caller)]))
        assert (call.user, call.api_key, call.token) == (stand.user, "key", None)
        assert stand.counted == [("key",)] * counted


MINUTE = 60
AAL1, AAL2 = ({"assurance": "aal1", "max_age": "900"}, {"assurance": "aal2", "max_age": "900"})


@pytest.mark.parametrize(
    ("proved", "asked"),
    [
        ({"age": 1 * MINUTE, "assurance": "aal1", "second_factor": False}, None),
        ({"age": 14 * MINUTE, "assurance": "aal2", "second_factor": True}, None),
        ({"age": 16 * MINUTE, "assurance": "aal1", "second_factor": False}, AAL1),
        ({"age": 16 * MINUTE, "assurance": "aal2", "second_factor": True}, AAL2),
        ({"age": 1 * MINUTE, "assurance": "aal1", "second_factor": True}, AAL2),
        ({"age": 1 * MINUTE, "assurance": "aal1", "second_factor": None}, AAL2),
        ({"age": 1 * MINUTE, "assurance": "", "second_factor": None}, AAL2),
        ({"age": time.time(), "assurance": "aal2", "second_factor": True}, AAL2),
        ({"age": 0, "machine": True}, AAL2),
    ],
)
async def test_a_sensitive_method_asks_for_a_recent_proof(
    stand: Stand, proved: dict[str, Any], asked: dict[str, str] | None
) -> None:
    factors = "/nexus.identity.auth_service.v1.AuthService/RemoveTotp"
    stand.user = replace(stand.user, auth_time=int(time.time() - proved.pop("age")), **proved)
    rpc = FakeRpc([SIGNED_IN, by("edge")])
    if asked is None:
        await stand.call(factors, RemoveTotpRequest(), rpc)
    else:
        assert await stand.refusal(factors, RemoveTotpRequest(), rpc) == "STEP_UP_REQUIRED"
        assert dict(info_of(rpc).metadata) == asked
        assert rpc.code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_service_that_calls_for_the_user_is_asked_for_no_proof(stand: Stand) -> None:
    request = pb.EraseUserRequest(user_id=USER_ID)
    stand.user = user_of("acme", "users.erase")
    assert await stand.refusal("EraseUser", request, FakeRpc([SIGNED_IN, by("edge")])) == "STEP_UP_REQUIRED"
    assert await stand.refusal("EraseUser", request, FakeRpc([SIGNED_IN])) == "STEP_UP_REQUIRED"
    await stand.call("EraseUser", request, FakeRpc([SIGNED_IN, by("auth-service")]))


async def test_a_machine_may_what_it_has_the_permission_for(stand: Stand) -> None:
    request = pb.EraseUserRequest(user_id=USER_ID)
    stand.user = replace(user_of("acme", "users.erase"), machine=True)
    await stand.call("EraseUser", request, FakeRpc([("x-api-key", "key"), by("edge")]))
    stand.user = replace(user_of("acme", "users.read"), machine=True)
    rpc = FakeRpc([("x-api-key", "key"), by("edge")])
    assert await stand.refusal("EraseUser", request, rpc) == "PERMISSION_MISSING"


GET_ME = "/nexus.identity.auth_service.v1.AuthService/GetMe"
LOGOUT = "/nexus.identity.auth_service.v1.AuthService/Logout"


@pytest.mark.parametrize("scopes", [set(), {"openid", "email"}, {"my.orders"}, {"users.read"}, {"my.account.more"}])
async def test_a_client_or_key_without_the_scope_is_kept_out_of_what_is_the_users_own(
    stand: Stand, scopes: set[str]
) -> None:
    stand.user = replace(stand.user, scoped=True, scopes=frozenset(scopes))
    for rpc in (FakeRpc([SIGNED_IN, by("edge")]), FakeRpc([SIGNED_IN]), FakeRpc([("x-api-key", "key")])):
        assert await stand.refusal(GET_ME, GetMeRequest(), rpc) == "SCOPE_MISSING"
        assert dict(info_of(rpc).metadata) == {"scope": "my.account"}
        assert rpc.code is grpc.StatusCode.PERMISSION_DENIED
    # A service that the call leads through has a contract of its own to ask by.
    await stand.call(GET_ME, GetMeRequest(), FakeRpc([SIGNED_IN, by("auth-service")]))


@pytest.mark.parametrize("given", ["my.account", "*"])
async def test_a_client_or_key_may_what_its_scope_says_and_never_what_no_scope_opens(stand: Stand, given: str) -> None:
    stand.user = replace(user_of("acme", "*"), scoped=True, scopes=frozenset({given}))
    await stand.call(GET_ME, GetMeRequest(), FakeRpc([SIGNED_IN, by("edge")]))
    rpc = FakeRpc([SIGNED_IN, by("edge")])
    assert await stand.refusal(LOGOUT, LogoutRequest(), rpc) == "OWN_SIGN_IN_REQUIRED"
    assert rpc.code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_user_of_an_unknown_tenant_is_refused(stand: Stand) -> None:
    stand.user = user_of("gone", "*")
    assert await stand.refusal("GetUser", ASKED, FakeRpc([SIGNED_IN])) == "TENANT_UNKNOWN"


@pytest.mark.parametrize("caller", ["auth-service", "operator"])
async def test_a_method_for_services_takes_those_that_declare_it(stand: Stand, caller: str) -> None:
    call = await stand.call("ResolveUser", pb.ResolveUserRequest(user_id=USER_ID), FakeRpc([by(caller), TENANT]))
    assert call.tenant_id == "acme"


@pytest.mark.parametrize("metadata", [[], [by("edge")], [by("streamcore")], [SIGNED_IN], [by("")]])
async def test_a_method_for_services_refuses_all_others(stand: Stand, metadata: list[tuple[str, str]]) -> None:
    rpc = FakeRpc([*metadata, TENANT])
    assert await stand.refusal("ResolveUser", pb.ResolveUserRequest(user_id=USER_ID), rpc) == "CALLER_NOT_ALLOWED"


async def test_a_service_that_does_not_declare_the_call_is_refused_by_a_public_method_too(stand: Stand) -> None:
    request = pb.ResendVerificationRequest(email="ann@example.com")
    assert await stand.refusal("ResendVerification", request, FakeRpc([TENANT, by("streamcore")])) == (
        "CALLER_NOT_ALLOWED"
    )
    await stand.call("ResendVerification", request, FakeRpc([TENANT, by("auth-service")]))


async def test_a_method_for_the_whole_mesh_takes_any_service(stand: Stand) -> None:
    assert method(KEYS).policy.mesh_wide
    for metadata in ([], [by("edge")], [by("streamcore")]):
        await stand.call(KEYS, GetJwksRequest(), FakeRpc(metadata))


async def test_an_identity_from_an_untrusted_connection_counts_for_nothing(stand: Stand) -> None:
    rpc = FakeRpc([by("operator"), TENANT], connection="ipv4:127.0.0.1:5000")
    assert await stand.refusal("ResolveUser", pb.ResolveUserRequest(user_id=USER_ID), rpc) == "CALLER_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("metadata", "reason"), [([], "TENANT_REQUIRED"), ([("x-nexus-tenant", "other")], "TENANT_UNKNOWN")]
)
async def test_a_public_method_needs_a_tenant(stand: Stand, metadata: list[tuple[str, str]], reason: str) -> None:
    request = pb.ResendVerificationRequest(email="ann@example.com")
    assert await stand.refusal("ResendVerification", request, FakeRpc(metadata)) == reason


async def test_a_public_method_looks_at_no_token(stand: Stand) -> None:
    request = pb.ResendVerificationRequest(email="ann@example.com")
    call = await stand.call("ResendVerification", request, FakeRpc([TENANT, ("authorization", "Bearer bad")]))
    assert call.signed_in is None
    assert call.token is None


async def test_a_request_that_breaks_the_contract_is_refused_field_by_field(stand: Stand) -> None:
    rpc = FakeRpc([TENANT])
    request = pb.RegisterRequest(email="not an address", request_id="x" * 129)
    assert await stand.refusal("Register", request, rpc) == "INVALID_REQUEST"
    bad_request = error_details_pb2.BadRequest()
    assert status_of(rpc).details[1].Unpack(bad_request)
    assert {violation.field for violation in bad_request.field_violations} == {"email", "password", "request_id"}
    assert rpc.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_broken_item_of_a_list_is_named_by_its_place(stand: Stand) -> None:
    rpc = FakeRpc([TENANT, by("operator")])
    request = pb.ProvisionUserRequest(email="ann@example.com", password="x", roles=["good", "NOT GOOD"])
    await stand.refusal("ProvisionUser", request, rpc)
    assert "roles[1]" in rpc.message


async def test_a_request_wrong_in_every_item_is_still_answered_within_grpcs_limit(stand: Stand) -> None:
    """gRPC drops answers whose trailers exceed 8 KiB, and the caller would learn nothing."""
    rpc = FakeRpc([TENANT, by("operator")])
    request = pb.ProvisionUserRequest(email="ann@example.com", password="x", roles=["NOT GOOD"] * 50)
    await stand.refusal("ProvisionUser", request, rpc)
    assert len(rpc.trailing[STATUS_DETAILS]) * 4 / 3 + len(rpc.message) < 8000


async def test_credentials_are_counted_by_address_for_callers_from_outside(stand: Stand) -> None:
    request = pb.ResendVerificationRequest(email="ann@example.com")
    await stand.call("ResendVerification", request, FakeRpc([TENANT], connection="ipv4:10.0.0.7:5000"))
    outside = ("x-envoy-external-address", "198.51.100.7")
    await stand.call("ResendVerification", request, FakeRpc([TENANT, by("edge"), outside]))
    await stand.call("ResendVerification", request, FakeRpc([TENANT, by("auth-service"), outside]))
    assert [who[-1] for who in stand.counted] == ["10.0.0.7", "198.51.100.7"]


async def test_over_the_limit_says_when_to_come_back(stand: Stand) -> None:
    stand.over_limit = True
    rpc = FakeRpc([TENANT])
    request = pb.ResendVerificationRequest(email="ann@example.com")
    assert await stand.refusal("ResendVerification", request, rpc) == "RATE_LIMITED"
    retry = error_details_pb2.RetryInfo()
    assert status_of(rpc).details[1].Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 3


async def test_other_methods_are_not_counted(stand: Stand) -> None:
    stand.over_limit = True
    await stand.call("GetUser", ASKED, FakeRpc([SIGNED_IN]))


async def test_a_handler_that_takes_too_long_is_cut_off(stand: Stand) -> None:
    stand.default_timeout = 0.05
    cleaned = asyncio.Event()

    async def handler(_request: Any, call: RequestContext) -> None:
        remaining = call.remaining()
        assert remaining is not None
        assert remaining <= 0.05
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    started = time.monotonic()
    assert await stand.refusal("GetUser", ASKED, FakeRpc([SIGNED_IN]), handler) == "DEADLINE_EXCEEDED"
    assert time.monotonic() - started < 5
    assert cleaned.is_set()
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_contracts_own_timeout_replaces_the_default(stand: Stand) -> None:
    request = pb.VerifyPasswordRequest(email="ann@example.com", password="x")
    call = await stand.call("VerifyPassword", request, FakeRpc([TENANT, by("operator")]))
    assert 4 < call.remaining() <= 5


async def test_a_caller_with_less_time_than_the_contract_leaves_less(stand: Stand) -> None:
    call = await stand.call("GetUser", ASKED, FakeRpc([SIGNED_IN], seconds=2.0))
    assert call.remaining() <= 2
    call = await stand.call("GetUser", ASKED, FakeRpc([SIGNED_IN], seconds=1e9))
    assert call.remaining() <= 10


async def test_a_call_cancelled_by_its_caller_stays_cancelled(stand: Stand) -> None:
    begun = asyncio.Event()

    async def handler(_request: Any, _call: RequestContext) -> None:
        begun.set()
        await asyncio.Event().wait()

    rpc = FakeRpc([SIGNED_IN])
    call = asyncio.create_task(stand.call("GetUser", ASKED, rpc, handler))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert rpc.code is None


async def test_a_time_out_inside_a_handler_is_not_the_calls_deadline(stand: Stand) -> None:
    async def handler(_request: Any, _call: RequestContext) -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    assert await stand.refusal("GetUser", ASKED, FakeRpc([SIGNED_IN]), handler) == "INTERNAL"


@pytest.mark.parametrize(("lost", "answered"), [(CONFLICT_ATTEMPTS - 1, True), (CONFLICT_ATTEMPTS, False)])
async def test_a_read_that_lost_a_race_is_tried_again(stand: Stand, lost: int, answered: bool) -> None:
    attempts = 0

    async def handler(_request: Any, _call: RequestContext) -> str:
        nonlocal attempts
        attempts += 1
        if attempts <= lost:
            raise Conflict()
        return "answer"

    rpc = FakeRpc([SIGNED_IN])
    if answered:
        assert await stand.call("GetUser", ASKED, rpc, handler) == "answer"
    else:
        assert await stand.refusal("GetUser", ASKED, rpc, handler) == "CONFLICT"
    assert attempts == CONFLICT_ATTEMPTS


async def test_what_acts_anew_is_not_tried_again(stand: Stand) -> None:
    attempts = 0

    async def handler(_request: Any, _call: RequestContext) -> None:
        nonlocal attempts
        attempts += 1
        raise Conflict()

    request = pb.ResendVerificationRequest(email="ann@example.com")
    assert await stand.refusal("ResendVerification", request, FakeRpc([TENANT]), handler) == "CONFLICT"
    assert attempts == 1


@pytest.mark.parametrize(
    ("field_value", "header", "key"),
    [("f", None, "f"), ("", "h", "h"), ("f", "h", "f"), ("", None, None), ("", "", None)],
)
async def test_the_key_is_the_field_or_else_the_header(
    stand: Stand, field_value: str, header: str | None, key: str | None
) -> None:
    keys: list[str] = []

    async def run(request: Any, call: RequestContext, key: str, handler: Handler) -> Any:
        keys.append(key)
        return await handler(request, call)

    stand.once = run
    metadata = [TENANT, *([("idempotency-key", header)] if header is not None else [])]
    request = pb.RegisterRequest(email="ann@example.com", password="x", request_id=field_value)
    call = await stand.call("Register", request, FakeRpc(metadata))
    assert call.idempotency_key == key
    assert keys == ([key] if key else [])


async def test_two_long_keys_that_differ_at_the_end_are_two_keys(stand: Stand) -> None:
    keys: list[str] = []

    async def run(_request: Any, _call: RequestContext, key: str, _handler: Handler) -> None:
        keys.append(key)

    stand.once = run
    request = pb.RegisterRequest(email="ann@example.com", password="x")
    for ending in "ab":
        rpc = FakeRpc([TENANT, ("idempotency-key", "k" * 300 + ending)])
        try:
            await stand.call("Register", request, rpc)
        except Aborted:
            assert reason_of(rpc) == "INVALID_REQUEST"
    assert len(set(keys)) == len(keys)
