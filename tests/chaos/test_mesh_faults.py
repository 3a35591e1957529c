"""Faults that the mesh injects and faults that happen: what may be repeated is, what may not is not, nothing hangs.

On a strict platform, which all of this must not notice.
"""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc.aio
import httpx
import psutil
import pytest

from edge.layout import TIMEOUT_MARGIN
from mesh.local import traffic
from mesh.local.platform import MESH_ADDRESS, edge_certificate
from mesh.local.supervisor import read_state
from nexus.identity.user_auth.v1.user_auth_pb2 import ResendVerificationRequest, VerifyPasswordRequest
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from nexus.type.v1.faults import DeadlineExceeded, DependencyUnavailable
from services.chassis import contract
from services.chassis.breaker import FAILURES_TO_OPEN, OPEN_SECONDS
from services.chassis.clients import Clients
from services.chassis.context import OPERATOR
from tests.chaos.mesh import nexus, process, restart, send, when
from tests.chaos.processes import replaced
from tests.edge.wire import reason
from tests.platforms import PASSWORD, Platform, Tenant, eventually

pytestmark = pytest.mark.xdist_group("chaos")

Headers = dict[str, str]

LIMIT = 4.0
"""Seconds that a contract gives a call on this platform when it does not say."""
SLACK = 1.5
VERIFY_PASSWORD = "/nexus.identity.user_auth.v1.UserService/VerifyPassword"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    variables = {"NEXUS_DEFAULT_TIMEOUT": str(LIMIT), "NEXUS_SESSION_MGR_MAX_SESSIONS_PER_USER": "100000"}
    platform = Platform(tmp_path_factory.mktemp("faulty") / "home", variables=variables)
    platform.up("--only", "identity", "--strict")
    yield platform
    platform.down()


@pytest.fixture(scope="module")
async def http(faulty: Platform) -> AsyncIterator[httpx.AsyncClient]:
    trusted = edge_certificate(faulty.settings)
    async with httpx.AsyncClient(base_url=faulty.https_url, verify=trusted, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
async def at(faulty: Platform) -> Tenant:
    return await faulty.new_tenant()


@pytest.fixture(scope="module")
async def ann(at: Tenant, http: httpx.AsyncClient) -> Headers:
    credentials = {"email": await at.provision(), "password": PASSWORD}
    answer = await http.post("/api/v1/auth/login", headers=at.headers, json=credentials)
    return {"authorization": f"Bearer {answer.json()['tokens']['accessToken']}"}


@pytest.fixture(autouse=True)
def no_fault_is_left(faulty: Platform) -> Iterator[None]:
    yield
    traffic.clear_faults(faulty.settings)


@pytest.mark.parametrize("service", ["user-auth", "auth-service"])
async def test_a_read_survives_a_service_that_often_fails(
    faulty: Platform, http: httpx.AsyncClient, ann: Headers, service: str
) -> None:
    """Behind another service, and right behind the edge."""
    nexus(faulty, "fault", "add", "--to", service, "--abort", "UNAVAILABLE", "--percent", "30")
    answers: list[httpx.Response] = []
    for _ in range(30):
        answers += await asyncio.gather(*(http.get("/api/v1/auth/me", headers=ann) for _ in range(10)))
    failed = [answer.text for answer in answers if answer.status_code != 200]
    assert len(failed) < 0.01 * len(answers), failed


async def test_what_may_not_be_repeated_runs_once(faulty: Platform, http: httpx.AsyncClient, at: Tenant) -> None:
    """A sign-in opens a session before it asks for tokens. When it fails there, nobody tries it again."""
    email = await at.provision()
    login = {"email": email, "password": PASSWORD}
    nexus(faulty, "fault", "add", "--to", "token-mgr", "--abort", "UNAVAILABLE", "--percent", "30")
    answers: list[httpx.Response] = []
    for _ in range(10):
        answers += await asyncio.gather(
            *(http.post("/api/v1/auth/login", headers=at.headers, json=login) for _ in range(4))
        )
    succeeded = [answer for answer in answers if answer.status_code == 200]
    assert 0 < len(succeeded) < len(answers)
    for answer in answers:
        assert answer.status_code == 200 or reason(answer, 503) == "DEPENDENCY_UNAVAILABLE"
    user = succeeded[0].json()["session"]["userId"]
    connection = await faulty.admin()
    try:
        for table, expected in {"session_mgr.sessions": answers, "token_mgr.token_families": succeeded}.items():
            rows = await connection.fetchval(f"SELECT count(*) FROM {table} WHERE user_id = $1", user)
            assert rows == len(expected), table
    finally:
        await connection.close()


async def test_a_delay_is_what_its_callers_wait(faulty: Platform, http: httpx.AsyncClient, ann: Headers) -> None:
    async def median() -> float:
        seconds = []
        for _ in range(15):
            began = time.monotonic()
            assert (await http.get("/api/v1/auth/me", headers=ann)).status_code == 200
            seconds.append(time.monotonic() - began)
        return statistics.median(seconds)

    before = await median()
    nexus(faulty, "fault", "add", "--to", "user-auth", "--delay", "300ms")
    delayed = await median()
    nexus(faulty, "fault", "clear", "--to", "user-auth")
    assert 0.3 <= delayed < before + 0.6
    assert await median() < 0.3


def test_faults_are_listed_and_cleared_one_by_one(faulty: Platform) -> None:
    nexus(faulty, "fault", "add", "--to", "user-auth", "--abort", "UNAVAILABLE", "--percent", "20", "--delay", "300ms")
    nexus(faulty, "fault", "add", "--to", "token-mgr", "--delay", "2s")
    ours, theirs = "user-auth: UNAVAILABLE after 300 ms, 20 % of calls", "token-mgr: 2000 ms, 100 % of calls"
    assert nexus(faulty, "fault", "list").splitlines() == [theirs, ours]
    nexus(faulty, "fault", "clear", "--to", "token-mgr")
    assert nexus(faulty, "fault", "list").splitlines() == [ours]
    nexus(faulty, "fault", "clear")
    assert nexus(faulty, "fault", "list") == "No faults.\n"


async def test_the_contract_ends_a_call_that_hangs(
    faulty: Platform, http: httpx.AsyncClient, at: Tenant, ann: Headers
) -> None:
    """At the edge, and between services; the caller of the second has set no deadline."""
    limit = contract.methods()[VERIFY_PASSWORD].timeout(LIMIT)
    assert limit is not None
    send(faulty, "identity", signal.SIGSTOP)
    try:
        outside, inside = await asyncio.gather(
            timed_read(http, ann),
            timed_call(faulty, at),
        )
    finally:
        send(faulty, "identity", signal.SIGCONT)
    answer, seconds = outside
    assert reason(answer, 504) == "DEADLINE_EXCEEDED"
    assert seconds < LIMIT + TIMEOUT_MARGIN + SLACK
    code, seconds = inside
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert limit <= seconds < limit + TIMEOUT_MARGIN + SLACK
    assert (await http.get("/api/v1/auth/me", headers=ann)).status_code == 200


async def timed_read(http: httpx.AsyncClient, user: Headers) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    answer = await http.get("/api/v1/auth/me", headers=user)
    return answer, time.monotonic() - began


async def timed_call(platform: Platform, tenant: Tenant) -> tuple[grpc.StatusCode, float]:
    """A call out of the operator's socket, which only the proxy can end."""
    target = f"unix:{platform.settings.run_dir / 'mesh' / 'operator.sock'}"
    async with grpc.aio.insecure_channel(target, [("grpc.default_authority", "user-auth")]) as channel:
        request = VerifyPasswordRequest(email="ann@example.com", password=PASSWORD)
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await UserServiceStub(channel).VerifyPassword(request, metadata=tuple(tenant.headers.items()))
        return refusal.value.code(), time.monotonic() - began


async def test_a_caller_leaves_a_service_alone_that_hangs_until_it_serves_again(
    faulty: Platform, users: Any, at: Tenant
) -> None:
    """Though the caller's connection, which ends at its proxy, stands all the while."""
    send(faulty, "identity", signal.SIGSTOP)
    try:
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(DeadlineExceeded):
                await ask(users, at, timeout=0.2)
        for _ in range(15):
            with pytest.raises(DependencyUnavailable) as refusal:
                await ask(users, at, timeout=0.2)
            assert refusal.value.__cause__ is None, "it was not even tried"
            await asyncio.sleep(0.1)
    finally:
        send(faulty, "identity", signal.SIGCONT)
    assert await seconds_until_answered(users, at) < OPEN_SECONDS / 3


async def test_a_caller_calls_a_service_that_was_killed_as_soon_as_it_is_back(
    faulty: Platform, users: Any, at: Tenant
) -> None:
    before = process(faulty, "identity")
    with kept_away(faulty, "identity"):
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(DependencyUnavailable):
                await ask(users, at)
        with pytest.raises(DependencyUnavailable) as refusal:
            await ask(users, at)
        assert refusal.value.__cause__ is None, "it was not even tried"
    await when(lambda: replaced(faulty, before) and process(faulty, "identity").state == "ready", seconds=60)
    assert await seconds_until_answered(users, at) < OPEN_SECONDS / 3


@contextlib.contextmanager
def kept_away(platform: Platform, name: str) -> Iterator[None]:
    """A process killed, and its supervisor frozen, so that it is away for the whole block."""
    state = read_state(platform.settings.run_dir)
    assert state is not None
    os.kill(state.pid, signal.SIGSTOP)
    try:
        killed = psutil.Process(send(platform, name, signal.SIGKILL))
        eventually(lambda: killed.status() == psutil.STATUS_ZOMBIE)
        yield
    finally:
        os.kill(state.pid, signal.SIGCONT)


@pytest.fixture
async def users(faulty: Platform) -> AsyncIterator[Any]:
    """User-auth as the operator reaches it through the mesh, with a breaker of the test's own."""
    through_the_mesh = faulty.settings.model_copy(update={"service_address": MESH_ADDRESS})
    clients = Clients(through_the_mesh, OPERATOR, None)
    yield clients.stub(UserServiceStub)
    await clients.stop()


async def ask(users: Any, at: Tenant, timeout: float = 5.0) -> None:
    """A call that is not repeated, and does nothing."""
    request = ResendVerificationRequest(email="nobody@example.com")
    await users.ResendVerification(request, timeout=timeout, metadata=tuple(at.headers.items()))


async def seconds_until_answered(users: Any, at: Tenant) -> float:
    began = time.monotonic()
    while True:
        try:
            await ask(users, at)
        except DependencyUnavailable:
            await asyncio.sleep(0.1)
        else:
            return time.monotonic() - began


async def test_a_service_that_is_away_is_said_in_the_platforms_words(
    faulty: Platform, http: httpx.AsyncClient, ann: Headers
) -> None:
    """Not in the mesh's: the edge's callers know nothing of it."""
    restarting = asyncio.create_task(restart(faulty, "identity"))
    answers = []
    while not restarting.done():
        answers.append(await http.get("/api/v1/auth/me", headers=ann))
    await restarting
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused, "it was away for a moment"
    for answer in refused:
        assert reason(answer, 503) == "DEPENDENCY_UNAVAILABLE"
        assert "x-nexus-mesh" not in answer.headers


async def test_a_fault_does_not_outlive_the_proxy_it_was_put_into(
    faulty: Platform, http: httpx.AsyncClient, ann: Headers
) -> None:
    nexus(faulty, "fault", "add", "--to", "auth-service", "--abort", "INTERNAL")
    assert (await http.get("/api/v1/auth/me", headers=ann)).status_code == 500
    await restart(faulty, "mesh")
    assert nexus(faulty, "fault", "list") == "No faults.\n"
    assert (await http.get("/api/v1/auth/me", headers=ann)).status_code == 200


def test_a_strict_platform_listens_on_https_alone(faulty: Platform) -> None:
    assert listening(faulty) == {faulty.settings.port(8443)}


async def test_the_token_of_a_strict_platform_is_good(faulty: Platform, http: httpx.AsyncClient) -> None:
    bearer = {"authorization": f"Bearer {nexus(faulty, 'token').strip()}"}
    answer = await http.get("/api/v1/auth/me", headers=bearer)
    assert answer.status_code == 200, answer.text
    assert answer.json()["user"]["email"] == "owner@demo.example"


def listening(platform: Platform) -> set[int]:
    """The TCP ports that any process of the platform listens on."""
    supervisor = psutil.Process(json.loads(platform.nexus("status", "--json").stdout)["pid"])
    return {
        connection.laddr.port
        for each in (supervisor, *supervisor.children(recursive=True))
        for connection in each.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
