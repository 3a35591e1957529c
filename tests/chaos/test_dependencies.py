"""While PostgreSQL or Redis is away, calls fail cleanly and in time; when it is back, so is everything else."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import httpx
import pytest

from services.chassis.ids import new_id
from tests.chaos.conftest import DEFAULT_TIMEOUT, Hurt
from tests.chaos.processes import until, workers
from tests.edge.wire import reason
from tests.platforms import PASSWORD, SignedIn, Tenant

pytestmark = pytest.mark.xdist_group("chaos")

LIMIT = DEFAULT_TIMEOUT
"""Seconds that a call may take on this platform."""
MARGIN = 1.5
CLEAN = {"DEPENDENCY_UNAVAILABLE", "DEADLINE_EXCEEDED"}


def calls(
    edge: httpx.AsyncClient, tenant: Tenant, user: SignedIn, email: str
) -> dict[str, Callable[[], Awaitable[httpx.Response]]]:
    """One call of each kind: with and without a token, reading and writing."""
    login = {"email": email, "password": PASSWORD}
    return {
        "login": lambda: edge.post("/api/v1/auth/login", headers=tenant.headers, json=login),
        "register": lambda: edge.post(
            "/api/v1/auth/register", headers=tenant.headers, json={**login, "email": f"{new_id()}@example.com"}
        ),
        "me": lambda: edge.get("/api/v1/auth/me", headers=user.headers),
        "sessions": lambda: edge.get("/api/v1/sessions", headers=user.headers),
    }


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize("which", ["database", "broker"])
async def test_what_is_away_is_said_in_time_and_forgotten_when_it_is_back(
    hurt: Hurt, edge: httpx.AsyncClient, which: str, how: str
) -> None:
    server = hurt.database if which == "database" else hurt.broker
    tenant = await hurt.platform.new_tenant()
    email = await tenant.provision()
    user = await tenant.sign_in(email=email)
    each = calls(edge, tenant, user, email)
    before = workers(hurt.platform)

    if how == "killed":
        server.kill()
    else:
        server.freeze()
    try:
        await asyncio.gather(
            until(lambda: edge.get("/readyz"), lambda answer: reason(answer, 503) == "NOT_READY", allow=200),
            *(fails_cleanly(name, call) for name, call in each.items()),
        )
        routes = await edge.get("/api/v1/platform/routes")
        assert routes.status_code == 200, "what needs no database is served"
    finally:
        if how == "killed":
            await server.start()
        else:
            server.thaw()

    await until(lambda: edge.get("/readyz"), lambda answer: answer.status_code == 200, allow=503)
    for name, call in each.items():
        answer = await call()
        assert answer.status_code == 200, f"{name}: {answer.text}"
    assert workers(hurt.platform) == before, "nothing had to be restarted"


async def fails_cleanly(name: str, call: Callable[[], Awaitable[httpx.Response]]) -> None:
    """It may also succeed: what is remembered needs no database."""
    began = time.monotonic()
    answer = await call()
    took = time.monotonic() - began
    assert took < LIMIT + MARGIN, f"{name} took {took:.1f} s"
    if answer.status_code != 200:
        why = reason(answer, 503, 504)
        assert why in CLEAN, f"{name}: {why}"


async def test_what_is_away_is_worth_another_try_in_a_moment(hurt: Hurt, edge: httpx.AsyncClient) -> None:
    tenant = await hurt.platform.new_tenant()
    hurt.database.kill()
    try:
        answer = await edge.post(
            "/api/v1/auth/login", headers=tenant.headers, json={"email": "ann@example.com", "password": PASSWORD}
        )
    finally:
        await hurt.database.start()
    assert reason(answer, 503) == "DEPENDENCY_UNAVAILABLE"
    assert int(answer.headers["retry-after"]) >= 1
    await until(lambda: edge.get("/readyz"), lambda ready: ready.status_code == 200, allow=503)


async def test_what_is_away_is_asked_a_few_times_and_not_for_each_proxy_on_the_way(
    hurt: Hurt, edge: httpx.AsyncClient
) -> None:
    """Retries at every hop would multiply: a service that is ill would get dozens of calls for each it had."""
    tenant = await hurt.platform.new_tenant()
    user = await tenant.sign_in()
    hurt.database.kill()
    try:
        answer = await edge.get("/api/v1/auth/me", headers=user.headers)
    finally:
        await hurt.database.start()
    assert reason(answer, 503, 504) in CLEAN
    lines = hurt.platform.nexus("logs", "user-auth", "--raw").stdout.splitlines()
    refused = [line for line in lines if answer.headers["x-request-id"] in line and '"refused"' in line]
    assert 1 <= len(refused) <= 6
