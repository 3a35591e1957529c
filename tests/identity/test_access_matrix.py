"""Who may call what: every RPC of every service, called as everybody, and judged by what its contract says.

Every request breaks its contract where it can, so that who is let in is told so, and nothing is changed; what has no
field to break acts, for users of the test's own. Outside callers come through the edge, services through the sockets
that the mesh's proxies use, with the identity that those prove.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

import grpc
import httpx
import protovalidate
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from nexus.options.v1 import policy_pb2
from services.chassis import contract
from services.chassis.context import OPERATOR
from services.chassis.contract import Method
from services.chassis.errors import STATUS_DETAILS
from services.chassis.ids import new_id
from services.chassis.peers import XFCC
from services.chassis.spec import callers_of, discover
from services.identity.auth_service_v2.clients import OWN_SCOPES
from tests.edge.wire import reason as reason_in
from tests.identity.oidc import Browser, register
from tests.identity.oidc import signed_in as granted_tokens
from tests.identity.people import body, change
from tests.platforms import Platform, SignedIn, Tenant

IN = "let in"
REFUSALS = {
    *("TOKEN_REQUIRED", "TOKEN_INVALID", "TOKEN_EXPIRED", "API_KEY_INVALID", "API_KEY_EXPIRED", "STEP_UP_REQUIRED"),
    *(
        "PERMISSION_MISSING",
        "SCOPE_MISSING",
        "OWN_SIGN_IN_REQUIRED",
        "CALLER_NOT_ALLOWED",
        "CREDENTIALS_AMBIGUOUS",
        "ROUTE_UNKNOWN",
    ),
    *("TENANT_REQUIRED", "TENANT_UNKNOWN", "TENANT_SUSPENDED", "TENANT_MISMATCH"),
    *("INTERNAL", "UNKNOWN", "RATE_LIMITED", "DEPENDENCY_UNAVAILABLE", "DEADLINE_EXCEEDED"),
}
"""What no caller is told who has been let in."""
ENDS_SESSIONS = ("Logout", "RevokeAllSessions")
AT_ONCE = 16
VALIDATOR = protovalidate.Validator()  # one: each compiles the contracts' rules anew
METHODS = [method for method in contract.methods().values() if method.service_id in discover()]

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Who:
    """Somebody who calls."""

    metadata: Metadata
    expected: Callable[[Method], str]
    again: Callable[[], Awaitable[Metadata]] | None = None
    """Signs in anew, for calls that end what they come by."""


@dataclass(frozen=True)
class Cast:
    """The people of the matrix, of one tenant and of another."""

    platform: Platform
    tenant: Tenant
    elsewhere: Tenant
    suspended: Tenant
    http: httpx.AsyncClient

    async def anonymous(self) -> Who:
        return Who(self._here(), lambda method: outside(method, needs_user="TOKEN_REQUIRED"))

    async def without_role(self) -> Who:
        return await self._person(self.tenant, lambda method: outside(method, may=nothing))

    async def owner(self) -> Who:
        return await self._person(self.tenant, lambda method: outside(method, may=within_a_tenant), "owner")

    async def owner_of_the_platform(self) -> Who:
        own = Tenant(self.platform, self.platform.settings.platform_tenant)
        return await self._person(own, lambda method: outside(method, may=everything), "owner")

    async def with_one_permission(self) -> Who:
        owner = await self.tenant.sign_in("owner")
        role = {"name": f"reader-{new_id()[-12:]}", "allow": ["users.read"]}
        body(await self.http.put(f"/api/v1/roles/{role['name']}", headers=owner.headers, json=role))
        return await self._person(self.tenant, lambda method: outside(method, may=reads_users), str(role["name"]))

    async def owner_with_an_old_proof(self) -> Who:
        owner = await self.tenant.sign_in("owner")
        aged = "UPDATE session_mgr.sessions SET auth_time = now() - interval '1 day' WHERE session_id = $1"
        await change(self.platform, aged, owner.session_id)
        refresh = {"refreshToken": owner.refresh_token}
        tokens = body(await self.http.post("/api/v1/auth/refresh", headers=self.tenant.headers, json=refresh))["tokens"]
        metadata = (("authorization", f"Bearer {tokens['accessToken']}"), *self._here())

        def expected(method: Method) -> str:
            told = outside(method, may=within_a_tenant)
            return "STEP_UP_REQUIRED" if told == IN and method.policy.HasField("recent_proof") else told

        return Who(metadata, expected, self._sign_in(self.tenant, owner.email))

    async def owner_of_another_tenant(self) -> Who:
        def expected(method: Method) -> str:
            told = outside(method, may=within_a_tenant)
            return "TENANT_MISMATCH" if told == IN and method.needs_user and method.tenant_scoped else told

        who = await self._person(self.elsewhere, expected, "owner")
        return Who((*who.metadata, *self._here()), who.expected)

    async def owner_of_a_suspended_tenant(self) -> Who:
        def expected(method: Method) -> str:
            told = outside(method, may=within_a_tenant)
            return "TENANT_SUSPENDED" if told == IN and method.tenant_scoped else told

        who = await self._person(self.suspended, expected, "owner")
        root = await Tenant(self.platform, self.platform.settings.platform_tenant).sign_in("owner")
        path = f"/api/v1/tenants/{self.suspended.tenant_id}:suspend"
        body(await self.http.post(path, headers=root.headers, json={}))
        return Who((*who.metadata, *self.suspended.headers.items()), who.expected)

    async def an_api_key(self) -> Who:
        owner = await self.tenant.sign_in("owner")
        asked = {"title": "Matrix", "scopes": ["users.read"], "rate": "API_KEY_RATE_HIGH"}
        secret = body(await self.http.post("/api/v1/api-keys", headers=owner.headers, json=asked))["secret"]

        return Who((("x-api-key", secret), *self._here()), lambda method: outside(method, may=reads_users, scopes=()))

    async def an_api_key_for_all_that_its_user_may(self) -> Who:
        owner = await self.tenant.sign_in("owner")
        asked = {"title": "Matrix", "scopes": ["*"], "rate": "API_KEY_RATE_HIGH"}
        secret = body(await self.http.post("/api/v1/api-keys", headers=owner.headers, json=asked))["secret"]
        return Who(
            (("x-api-key", secret), *self._here()),
            lambda method: outside(method, may=within_a_tenant, scopes=contract.own_scopes()),
        )

    async def an_oauth_client_that_knows_who_the_user_is(self) -> Who:
        return await self._client(lambda method: outside(method, may=nothing, scopes=()), "openid profile email")

    async def an_oauth_client_that_may_order_and_read_users(self) -> Who:
        return await self._client(
            lambda method: outside(method, may=reads_users, scopes={"my.orders"}), "openid my.orders users.read"
        )

    async def _client(self, expected: Callable[[Method], str], scope: str) -> Who:
        """A client that an owner let in, of whom it may have no more than this."""
        owner = await self.tenant.sign_in("owner")
        client = await register(self.tenant, self.http, scopes=scope.split())
        async with Browser(self.platform) as browser:
            token = await granted_tokens(self.tenant, browser, client, owner.email, scope)
        return Who((("authorization", f"Bearer {token['access_token']}"), *self._here()), expected)

    def _here(self) -> Metadata:
        return tuple(self.tenant.headers.items())

    async def _person(self, tenant: Tenant, expected: Callable[[Method], str], *roles: str) -> Who:
        signed_in = await tenant.sign_in(*roles)
        # The header, for what asks for no user.
        metadata = (*signed_in.headers.items(), *tenant.headers.items())
        return Who(metadata, expected, self._sign_in(tenant, signed_in.email))

    @staticmethod
    def _sign_in(tenant: Tenant, email: str) -> Callable[[], Awaitable[Metadata]]:
        async def again() -> Metadata:
            signed_in: SignedIn = await tenant.sign_in(email=email)
            return tuple(signed_in.headers.items())

        return again


def outside(
    method: Method,
    *,
    may: Callable[[Method], bool] = lambda _: True,
    needs_user: str = IN,
    scopes: Collection[str] | None = None,
) -> str:
    """What somebody from outside is told, by the contract alone; with `scopes`, a client or a key that has no more."""
    if method.access == "service_only":
        return "ROUTE_UNKNOWN"
    if method.needs_user and needs_user != IN:
        return needs_user
    if scopes is not None and method.access == "signed_in" and method.policy.scope not in scopes:
        return "SCOPE_MISSING" if method.policy.scope else "OWN_SIGN_IN_REQUIRED"
    return IN if method.access != "permission" or may(method) else "PERMISSION_MISSING"


def nothing(_method: Method) -> bool:
    return False


def everything(_method: Method) -> bool:
    return True


def within_a_tenant(method: Method) -> bool:
    return method.policy.tenancy != policy_pb2.TENANCY_PLATFORM


def reads_users(method: Method) -> bool:
    return method.policy.permission == "users.read"


@cache
def broken(path: str) -> Message:
    """A request that the method's contract refuses, if it can refuse any: an empty one else."""
    method = contract.methods()[path]
    for request in [method.input(), *_extremes(method)]:
        try:
            VALIDATOR.validate(request)
        except protovalidate.ValidationError:
            return request
    return method.input()


def _extremes(method: Method) -> list[Message]:
    """Requests that each go too far in one field."""
    found = []
    for field in method.descriptor.input_type.fields:
        values: dict[int, object] = {
            FieldDescriptor.CPPTYPE_STRING: b"x" * 100_000 if field.type == field.TYPE_BYTES else "x" * 100_000,
            FieldDescriptor.CPPTYPE_INT32: -1,
            FieldDescriptor.CPPTYPE_INT64: -1,
            FieldDescriptor.CPPTYPE_ENUM: -1,
        }
        if field.cpp_type in values and not field.is_repeated:
            request = method.input()
            setattr(request, field.name, values[field.cpp_type])
            found.append(request)
    return found


async def told(channel: grpc.aio.Channel, method: Method, metadata: Metadata) -> str:
    """The reason with which a call is refused entry; IN for any other answer."""
    kind = "unary_stream" if method.descriptor.server_streaming else "unary_unary"
    multicallable: Any = getattr(channel, kind)(method.path)
    call = multicallable(broken(method.path).SerializeToString(), metadata=metadata, timeout=20)
    try:
        await (call.read() if method.descriptor.server_streaming else call)
    except grpc.aio.AioRpcError as error:
        reason = _reason(error)
        return reason if reason in REFUSALS else IN
    finally:
        call.cancel()
    return IN


def _reason(error: grpc.aio.AioRpcError) -> str:
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return "ROUTE_UNKNOWN"
    pairs: Any = error.trailing_metadata() or ()
    details = dict(pairs).get(STATUS_DETAILS)
    info = error_details_pb2.ErrorInfo()
    if details is None or not status_pb2.Status.FromString(details).details[0].Unpack(info):
        return "UNKNOWN"
    return info.reason


async def matrix(
    methods: list[Method], call: Callable[[Method], Awaitable[str]], expected: Callable[[Method], str]
) -> dict[str, tuple[str, str]]:
    """(told, expected) of every method whose contract is not kept."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(method: Method) -> tuple[str, str]:
        async with gate:
            return await call(method), expected(method)

    answers = await asyncio.gather(*map(one, methods))
    return {method.full_name: answer for method, answer in zip(methods, answers, strict=True) if answer[0] != answer[1]}


@pytest.fixture(scope="module")
async def cast(platform: Platform) -> AsyncIterator[Cast]:
    here, elsewhere, suspended = [await platform.new_tenant() for _ in range(3)]
    async with httpx.AsyncClient(base_url=platform.http_url, timeout=15) as client:
        yield Cast(platform, here, elsewhere, suspended, client)


PEOPLE = [
    name for name, member in vars(Cast).items() if not name.startswith("_") and asyncio.iscoroutinefunction(member)
]


@pytest.mark.parametrize("name", PEOPLE)
async def test_everybody_outside_may_what_the_contracts_say(cast: Cast, name: str) -> None:
    who: Who = await getattr(cast, name)()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{cast.platform.settings.port(8080)}") as channel:
        harmless = [method for method in METHODS if method.name not in ENDS_SESSIONS]
        wrong = await matrix(harmless, lambda method: told(channel, method, who.metadata), who.expected)
        for method in METHODS:
            if method.name in ENDS_SESSIONS:
                anew = await who.again() if who.again is not None else who.metadata
                answer = await told(channel, method, anew), who.expected(method)
                wrong |= {method.full_name: answer} if answer[0] != answer[1] else {}
    assert not wrong


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize("for_user", [True, False], ids=["for a user", "for nobody"])
async def test_a_service_may_call_what_it_declares(cast: Cast, declared: bool, for_user: bool) -> None:
    settings = cast.platform.settings
    user = tuple((await cast.tenant.sign_in("owner")).headers.items()) if for_user else ()

    def expected(method: Method) -> str:
        if method.needs_user and not for_user:
            return "TOKEN_REQUIRED"
        if not (declared or method.policy.mesh_wide):
            return "CALLER_NOT_ALLOWED"
        return IN if method.access != "permission" or within_a_tenant(method) else "PERMISSION_MISSING"

    async with contextlib.AsyncExitStack() as stack:
        channels = {}
        for service in {method.service_id for method in METHODS}:
            socket = f"unix:{settings.run_dir / f'{service}.sock'}"
            opened = grpc.aio.insecure_channel(socket, [("grpc.default_authority", service)])
            channels[service] = await stack.enter_async_context(opened)

        async def call(method: Method) -> str:
            identity = (XFCC, f"URI={settings.spiffe_id(caller_of(method.service_id, declared))}")
            metadata = (identity, *cast.tenant.headers.items(), *user)
            return await told(channels[method.service_id], method, metadata)

        wrong = await matrix([each for each in METHODS if each.name not in ENDS_SESSIONS], call, expected)
    assert not wrong


def caller_of(callee: str, declared: bool) -> str:
    """A service that declares a callee, the operator where none does; or one that does not."""
    callers = callers_of(callee)
    if declared:
        return min(callers, default=OPERATOR)
    return next(service for service in discover() if service not in callers and service != callee)


async def test_a_permission_that_is_denied_is_not_held(cast: Cast) -> None:
    owner = await cast.tenant.sign_in("owner")
    role = {"name": f"most-{new_id()[-12:]}", "allow": ["*"], "deny": ["users.read"]}
    body(await cast.http.put(f"/api/v1/roles/{role['name']}", headers=owner.headers, json=role))
    most = await cast.tenant.sign_in(str(role["name"]))
    assert (await cast.http.get("/api/v1/roles", headers=most.headers)).status_code == 200
    assert reason_in(await cast.http.get("/api/v1/users", headers=most.headers), 403) == "PERMISSION_MISSING"


def test_users_can_read_what_each_scope_of_a_contract_opens() -> None:
    assert set(OWN_SCOPES) == contract.own_scopes()


def test_the_matrix_has_every_kind_of_access() -> None:
    assert {method.access for method in METHODS} == {"public", "signed_in", "permission", "service_only"}
    assert len(METHODS) > 150
