"""Processes that die or are stopped while people use them: nothing that was answered is lost or cut off."""

import asyncio
import signal

import asyncpg
import httpx
import pytest

from mesh.local.supervisor import ProcessState
from services.chassis.ids import new_id
from tests.chaos.conftest import Hurt
from tests.chaos.processes import replaced, send, status, until
from tests.edge.wire import reason
from tests.identity.people import change
from tests.platforms import PASSWORD, Tenant, eventually

pytestmark = pytest.mark.xdist_group("chaos")

REGISTRATIONS = 24
AT_ONCE = 6


async def test_no_registration_is_lost_or_made_twice_when_the_service_is_killed(
    hurt: Hurt, edge: httpx.AsyncClient
) -> None:
    tenant = await hurt.platform.new_tenant()
    emails = [f"{new_id()}@example.com" for _ in range(REGISTRATIONS)]
    victim = status(hurt.platform, "identity")
    answered: list[str] = []
    slots = asyncio.Semaphore(AT_ONCE)

    async def register(email: str) -> int:
        """Register as a careful client does: the same key again until there is an answer. Returns the tries."""
        body = {"email": email, "password": PASSWORD, "requestId": email}
        async with slots:
            for tries in range(1, 400):
                answer = await edge.post("/api/v1/auth/register", headers=tenant.headers, json=body)
                if answer.status_code == 200:
                    answered.append(email)
                    if len(answered) == REGISTRATIONS // 3:
                        send(victim, signal.SIGKILL)
                    return tries
                assert reason(answer, 503) == "DEPENDENCY_UNAVAILABLE"
                await asyncio.sleep(0.1)
        pytest.fail("it never came back")

    tries = await asyncio.gather(*map(register, emails))
    assert max(tries) > 1, "the kill was felt"
    owner = await tenant.sign_in("owner")
    users = (await edge.get("/api/v1/users", headers=owner.headers, params={"pageSize": 1000})).json()["users"]
    assert sorted(user["email"] for user in users) == sorted([*emails, owner.email])
    eventually(lambda: status(hurt.platform, "identity").state == "ready")
    assert status(hurt.platform, "identity").restarts == victim.restarts + 1


async def test_a_user_who_was_locked_out_stays_so_when_the_service_is_killed(
    hurt: Hurt, edge: httpx.AsyncClient
) -> None:
    tenant = await hurt.platform.new_tenant()
    email, victim = await tenant.provision(), status(hurt.platform, "identity")

    async def login(password: str) -> httpx.Response:
        body = {"email": email, "password": password}
        return await edge.post("/api/v1/auth/login", headers=tenant.headers, json=body)

    for _ in range(6):
        assert reason(await login("wrong"), 401) == "CREDENTIALS_INVALID"
        # Waits are over at once here: whoever still counts after the kill says so by how long the next one is.
        await change(
            hurt.platform, "UPDATE user_auth.lockouts SET open_time = now() WHERE tenant_id = $1", tenant.tenant_id
        )
    send(victim, signal.SIGKILL)
    await until(lambda: login("wrong"), lambda answer: answer.status_code == 401, allow=503)
    assert replaced(hurt.platform, victim)
    locked = await login(PASSWORD)
    assert reason(locked, 403) == "SIGN_IN_LOCKED"
    wait = float(locked.json()["details"][1]["retryDelay"].rstrip("s"))
    assert wait > 20, "the seventh wrong password costs forty seconds, as if nobody had died"


async def test_a_stop_lets_the_calls_in_progress_finish(hurt: Hurt, edge: httpx.AsyncClient) -> None:
    """Sign-ins wait for a lock that the test holds; the process is told to stop; the lock is let go."""
    tenant = await hurt.platform.new_tenant()
    email = await tenant.provision()
    victim = status(hurt.platform, "identity")
    connection = await hurt.platform.admin()
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE user_auth.users IN ACCESS EXCLUSIVE MODE")
            login = {"email": email, "password": PASSWORD}
            waiting = [
                asyncio.create_task(edge.post("/api/v1/auth/login", headers=tenant.headers, json=login))
                for _ in range(4)
            ]
            await blocked(hurt, len(waiting))
            send(victim, signal.SIGTERM)
            await until(lambda: edge.get("/readyz"), lambda ready: ready.status_code == 503, allow=200)
    finally:
        await connection.close()
    for answer in await asyncio.gather(*waiting):
        assert answer.status_code == 200, answer.text
    await comes_back(hurt, edge, tenant, victim)


async def blocked(hurt: Hurt, number: int) -> None:
    """Wait until as many queries wait for a lock."""
    connection: asyncpg.Connection = await hurt.platform.admin()
    try:
        async with asyncio.timeout(5):
            query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while await connection.fetchval(query) < number:  # noqa: ASYNC110  PostgreSQL tells only when asked
                await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def comes_back(hurt: Hurt, edge: httpx.AsyncClient, tenant: Tenant, before: ProcessState) -> None:
    """The supervisor starts another process, and people can sign in again."""
    eventually(lambda: replaced(hurt.platform, before))
    await until(lambda: edge.get("/readyz"), lambda ready: ready.status_code == 200, allow=503)
    assert await tenant.sign_in()


async def test_an_edge_that_is_killed_comes_back(hurt: Hurt, edge: httpx.AsyncClient) -> None:
    tenant = await hurt.platform.new_tenant()
    user = await tenant.sign_in()
    before = status(hurt.platform, "edge")
    send(before, signal.SIGKILL)
    eventually(lambda: replaced(hurt.platform, before))
    eventually(hurt.platform.ready)
    assert (await edge.get("/api/v1/auth/me", headers=user.headers)).status_code == 200
    assert status(hurt.platform, "edge").restarts == before.restarts + 1
