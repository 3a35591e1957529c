"""A caller reaches only declared callees, in the time it has left, and learns exactly why a call failed."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY

from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
from nexus.identity.user_auth.v1 import user_auth_pb2 as pb
from nexus.identity.user_auth.v1.faults import EmailTaken, UserNotFound
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from nexus.type.v1.faults import Conflict, DeadlineExceeded, DependencyUnavailable, Internal, InvalidRequest
from services.chassis import context, contract
from services.chassis.clients import ATTEMPTS, DEADLINE_MARGIN, Clients
from services.chassis.config import Settings
from services.chassis.errors import STATUS_DETAILS, Fault
from services.chassis.peers import XFCC
from tests.chassis.calls import USERS, FakeRpc, call_of, user_of

if TYPE_CHECKING:
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceAsyncStub

READ, KEYED, ANEW = "GetUser", "Register", "ResendVerification"
"""A method without side effects, one that happens once a key, and one that acts anew every time."""

Answer = Callable[["grpc.aio.ServicerContext"], Awaitable[None]]


class Checks(health.aio.HealthServicer):
    """Health that counts who asks for it."""

    asked = 0

    async def Check(self, request: Any, context: Any) -> Any:
        self.asked += 1
        return await super().Check(request, context)


class UserAuth:
    """A user-auth that answers as it is told, and remembers what reached it."""

    def __init__(self, folder: Path) -> None:
        self._address = f"unix:{folder}/user-auth.sock"
        self.checks = Checks()
        self.received: list[str] = []
        self.metadata: dict[str, str] = {}
        self.seconds: float | None = None
        self.answers: list[Answer] = []
        """How the next calls are answered; after that all is well."""
        self._server: Any = None

    async def start(self) -> None:
        service = contract.services()["nexus.identity.user_auth.v1.UserService"]
        handlers = {
            method.name: grpc.unary_unary_rpc_method_handler(
                self._handler(method),
                request_deserializer=method.input.FromString,
                response_serializer=method.output.SerializeToString,
            )
            for method in contract.methods_of(service)
        }
        self._server = grpc.aio.server()
        await self.checks.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self.checks, self._server)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
        self._server.add_insecure_port(self._address)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    def _handler(self, method: contract.Method) -> Callable[..., Awaitable[Message]]:
        async def handle(request: Message, rpc: "grpc.aio.ServicerContext") -> Message:
            self.received.append(method.name)
            pairs: Any = rpc.invocation_metadata()
            self.metadata = dict(pairs or ())
            self.seconds = rpc.time_remaining()
            if self.answers:
                await self.answers.pop(0)(rpc)
            return method.output()

        return handle


def with_code(code: grpc.StatusCode) -> Answer:
    """Fails as a proxy or a broken connection does: a code, and no details."""

    async def answer(rpc: "grpc.aio.ServicerContext") -> None:
        await rpc.abort(code, "down")

    return answer


def with_fault(fault: Fault) -> Answer:
    """Fails as a service of the platform does."""

    async def answer(rpc: "grpc.aio.ServicerContext") -> None:
        await rpc.abort(fault.code, fault.message, ((STATUS_DETAILS, fault.status().SerializeToString()),))

    return answer


async def never(_rpc: "grpc.aio.ServicerContext") -> None:
    await asyncio.Event().wait()


AWAY = with_code(grpc.StatusCode.UNAVAILABLE)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="nexus-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def callee(folder: Path) -> AsyncIterator[UserAuth]:
    callee = UserAuth(folder)
    await callee.start()
    yield callee
    await callee.stop()


@pytest.fixture
async def clients(folder: Path) -> AsyncIterator[Clients]:
    """The stubs of auth-service."""
    settings = Settings(service_address=f"unix:{folder}/{{service}}.sock")
    clients = Clients(settings, "auth-service", frozenset({"user-auth"}))
    yield clients
    await clients.stop()


@pytest.fixture
async def users(clients: Clients) -> "UserServiceAsyncStub":
    return clients.stub(UserServiceStub)


def get_user(users: "UserServiceAsyncStub", **options: Any) -> Awaitable[pb.GetUserResponse]:
    return users.GetUser(pb.GetUserRequest(user_id="x"), **options)


async def during(call: context.RequestContext, work: Awaitable[Any]) -> Any:
    """Do this while a call is being served."""

    async def serve() -> Any:
        context.enter(call)
        return await work

    return await asyncio.create_task(serve())


def test_a_callee_that_is_not_declared_is_refused(clients: Clients) -> None:
    with pytest.raises(ValueError, match="auth-service does not declare token-mgr in its calls"):
        clients.stub(TokenServiceStub)


async def test_the_operator_may_call_all(folder: Path) -> None:
    operator = Clients(Settings(service_address=f"unix:{folder}/{{service}}.sock"), "operator", None)
    operator.stub(TokenServiceStub)
    await operator.stop()


async def test_a_call_says_who_calls_for_whom(callee: UserAuth, users: "UserServiceAsyncStub") -> None:
    call = call_of(USERS + READ, "acme", token="t.o.k")
    call.signed_in = user_of("acme")
    await during(call, get_user(users))
    assert callee.metadata[XFCC] == "URI=spiffe://nexus.local/ns/nexus/sa/auth-service"
    assert callee.metadata["x-request-id"] == "r-1"
    assert callee.metadata["x-nexus-tenant"] == "acme"
    assert callee.metadata["authorization"] == "Bearer t.o.k"


async def test_a_call_of_a_job_carries_nobodys_identity(callee: UserAuth, users: "UserServiceAsyncStub") -> None:
    await get_user(users, metadata=(("x-nexus-tenant", "acme"),))
    assert callee.metadata["x-nexus-tenant"] == "acme"
    assert "authorization" not in callee.metadata
    assert callee.seconds is None or callee.seconds > 1000


async def test_the_callee_gets_the_time_that_is_left(callee: UserAuth, users: "UserServiceAsyncStub") -> None:
    # gRPC rounds a time on the wire up by some hundredths.
    await during(call_of(USERS + READ, seconds=5), get_user(users))
    assert callee.seconds is not None
    assert 4 < callee.seconds < 6


async def test_the_callers_own_deadline_counts_like_the_contracts(
    callee: UserAuth, users: "UserServiceAsyncStub"
) -> None:
    call = call_of(USERS + READ, seconds=5)
    call.rpc = FakeRpc(seconds=2)  # type: ignore[assignment]
    await during(call, get_user(users))
    assert callee.seconds is not None
    assert 1 < callee.seconds < 3


async def test_a_shorter_timeout_of_the_call_itself_wins(callee: UserAuth, users: "UserServiceAsyncStub") -> None:
    await during(call_of(USERS + READ, seconds=5), get_user(users, timeout=1))
    assert callee.seconds is not None
    assert callee.seconds < 2
    await during(call_of(USERS + READ, seconds=1), get_user(users, timeout=5))
    assert callee.seconds < 2


async def test_a_stub_may_have_a_timeout_for_its_calls(callee: UserAuth, clients: Clients) -> None:
    users = clients.stub(UserServiceStub, timeout=1)
    await during(call_of(USERS + READ, seconds=5), get_user(users))
    assert callee.seconds is not None
    assert callee.seconds < 2
    await during(call_of(USERS + READ, seconds=5), get_user(users, timeout=4))
    assert 3 < callee.seconds < 5


async def test_the_last_moments_are_kept_back_and_nothing_is_sent_in_them(
    callee: UserAuth, users: "UserServiceAsyncStub"
) -> None:
    with pytest.raises(DeadlineExceeded):
        await during(call_of(USERS + READ, seconds=DEADLINE_MARGIN), get_user(users))
    assert callee.received == []


async def test_a_callee_that_does_not_answer_in_time_is_given_up_and_not_asked_again(
    callee: UserAuth, users: "UserServiceAsyncStub"
) -> None:
    callee.answers = [never]
    with pytest.raises(DeadlineExceeded):
        await during(call_of(USERS + READ, seconds=0.2), get_user(users))
    assert callee.received == [READ]


@pytest.mark.parametrize(
    "fault",
    [
        UserNotFound(user_id="x"),
        EmailTaken(),
        Conflict(retry_after=0.05),
        InvalidRequest(summary="s", violations=[("email", "is not an e-mail address")]),
        DependencyUnavailable(dependency="database", retry_after=1),
    ],
    ids=lambda fault: fault.reason,
)
async def test_a_callees_fault_comes_back_as_its_class_and_is_not_asked_for_twice(
    callee: UserAuth, users: "UserServiceAsyncStub", fault: Fault
) -> None:
    callee.answers = [with_fault(fault)]
    with pytest.raises(type(fault)) as raised:
        await get_user(users)
    assert (raised.value.message, raised.value.metadata) == (fault.message, fault.metadata)
    assert (raised.value.retry_after, list(raised.value.violations)) == (fault.retry_after, list(fault.violations))
    assert callee.received == [READ]


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN], ids=lambda code: code.name
)
async def test_an_answer_without_a_reason_is_our_defect_not_the_callers(
    callee: UserAuth, users: "UserServiceAsyncStub", code: grpc.StatusCode
) -> None:
    callee.answers = [with_code(code)]
    with pytest.raises(Internal, match="r-1"):
        await during(call_of(USERS + READ), get_user(users))
    assert callee.received == [READ]


async def test_a_read_is_repeated_while_the_callee_is_away(callee: UserAuth, users: "UserServiceAsyncStub") -> None:
    callee.answers = [AWAY] * (ATTEMPTS - 1)
    await get_user(users)
    assert callee.received == [READ] * ATTEMPTS


async def test_a_read_is_given_up_after_the_last_attempt(callee: UserAuth, users: "UserServiceAsyncStub") -> None:
    callee.answers = [AWAY] * (ATTEMPTS + 1)
    with pytest.raises(DependencyUnavailable) as raised:
        await get_user(users)
    assert raised.value.metadata == {"dependency": "user-auth"}
    assert raised.value.retry_after == 1
    assert callee.received == [READ] * ATTEMPTS


async def test_what_acts_anew_is_never_repeated(callee: UserAuth, users: "UserServiceAsyncStub") -> None:
    callee.answers = [AWAY]
    with pytest.raises(DependencyUnavailable):
        await users.ResendVerification(pb.ResendVerificationRequest(email="ann@example.com"))
    assert callee.received == [ANEW]


async def test_what_happens_once_a_key_is_repeated_only_with_one(
    callee: UserAuth, users: "UserServiceAsyncStub"
) -> None:
    callee.answers = [AWAY]
    with pytest.raises(DependencyUnavailable):
        await users.Register(pb.RegisterRequest(email="ann@example.com"))
    assert callee.received == [KEYED]
    callee.answers = [AWAY]
    await users.Register(pb.RegisterRequest(email="ann@example.com", request_id="r"))
    assert callee.received == [KEYED] * 3


async def test_attempts_share_the_time_of_the_call(callee: UserAuth, users: "UserServiceAsyncStub") -> None:
    callee.answers = [AWAY, never]
    with pytest.raises(DeadlineExceeded):
        await during(call_of(USERS + READ, seconds=0.3), get_user(users))
    assert callee.received == [READ] * 2


async def test_a_callee_that_is_there_and_does_not_answer_is_left_alone(
    callee: UserAuth, users: "UserServiceAsyncStub"
) -> None:
    """Its connection stands and its health is good, which is no reason to send it more."""
    callee.answers = [never] * 5
    for _ in range(5):
        with pytest.raises(DeadlineExceeded):
            await get_user(users, timeout=0.05)
    assert breaker_is_open()
    async with asyncio.timeout(5):
        while callee.checks.asked < 2:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.02)
    with pytest.raises(DependencyUnavailable):
        await get_user(users)
    assert len(callee.received) == 5


async def test_a_callee_that_is_away_is_left_alone_until_it_serves(folder: Path, users: "UserServiceAsyncStub") -> None:
    callee = UserAuth(folder)

    async def failure() -> DependencyUnavailable | None:
        try:
            await users.ResendVerification(pb.ResendVerificationRequest(), timeout=5)
        except DependencyUnavailable as unavailable:
            return unavailable
        return None

    for tried in (True, True, True, True, True, False, False):
        unavailable = await failure()
        assert unavailable is not None
        assert isinstance(unavailable.__cause__, grpc.aio.AioRpcError) == tried
    assert breaker_is_open()
    await callee.start()
    try:
        async with asyncio.timeout(10):
            while await failure():  # noqa: ASYNC110  the breaker tells nobody when it closes
                await asyncio.sleep(0.02)
        for _ in range(2):
            assert await failure() is None
        assert not breaker_is_open()
    finally:
        await callee.stop()


async def test_refusals_of_a_callee_that_is_well_do_not_open_the_breaker(
    callee: UserAuth, users: "UserServiceAsyncStub"
) -> None:
    callee.answers = [with_fault(DependencyUnavailable(dependency="database"))] * 10
    for _ in range(10):
        with pytest.raises(DependencyUnavailable):
            await get_user(users)
    assert not breaker_is_open()
    await get_user(users)


async def test_calls_that_their_callers_give_up_do_not_open_the_breaker(
    callee: UserAuth, users: "UserServiceAsyncStub"
) -> None:
    callee.answers = [never] * 10
    for attempt in range(10):
        call = asyncio.create_task(during(call_of(USERS + READ), get_user(users)))
        async with asyncio.timeout(5):
            while len(callee.received) <= attempt:  # noqa: ASYNC110  no event says that a call has arrived
                await asyncio.sleep(0)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
    assert not breaker_is_open()
    await get_user(users)


def breaker_is_open() -> bool:
    labels = {"service": "auth-service", "callee": "user-auth"}
    return REGISTRY.get_sample_value("nexus_breaker_open", labels) == 1
