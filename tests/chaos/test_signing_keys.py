"""While key-service is away, users sign in and tokens are verified as before; only a token-mgr that starts has to wait,
and a user who is made: nobody could seal their address."""

import signal
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.chaos.conftest import Hurt
from tests.chaos.processes import replaced, send, status, until
from tests.edge.wire import reason
from tests.platforms import PASSWORD, Tenant, eventually

pytestmark = pytest.mark.xdist_group("chaos")


@pytest.fixture
async def known(hurt: Hurt, edge: httpx.AsyncClient) -> AsyncIterator[tuple[Tenant, str]]:
    """The address of a user who was there before key-service hung, with all that shares its process."""
    tenant = await hurt.platform.new_tenant()
    email = await tenant.provision()
    owner = await Tenant(hurt.platform, hurt.platform.settings.platform_tenant).sign_in()
    assert owner, "keys are made, and unwrapped"
    platform = status(hurt.platform, "platform")
    send(platform, signal.SIGSTOP)
    yield tenant, email
    send(platform, signal.SIGCONT)


async def test_tokens_are_signed_and_verified_while_key_service_hangs(
    hurt: Hurt, edge: httpx.AsyncClient, known: tuple[Tenant, str]
) -> None:
    tenant, email = known
    user = await tenant.sign_in(email=email)
    assert (await edge.get("/api/v1/auth/me", headers=user.headers)).status_code == 200
    refreshed = await edge.post(
        "/api/v1/auth/refresh", headers=tenant.headers, json={"refreshToken": user.refresh_token}
    )
    assert refreshed.status_code == 200, refreshed.text
    assert len((await edge.get("/.well-known/jwks.json")).json()["keys"]) >= 2


async def test_a_token_mgr_that_starts_meanwhile_verifies_at_once_and_signs_when_it_can(
    hurt: Hurt, edge: httpx.AsyncClient, known: tuple[Tenant, str]
) -> None:
    tenant, email = known
    user = await tenant.sign_in(email=email)
    before = status(hurt.platform, "identity")
    send(before, signal.SIGKILL)
    eventually(lambda: replaced(hurt.platform, before))
    eventually(lambda: status(hurt.platform, "identity").state == "ready")

    async def sessions() -> httpx.Response:
        return await edge.get("/api/v1/sessions", headers=user.headers)

    await until(sessions, lambda answer: answer.status_code == 200, allow=503)

    async def login() -> httpx.Response:
        return await edge.post(
            "/api/v1/auth/login", headers=tenant.headers, json={"email": email, "password": PASSWORD}
        )

    refused = await login()
    assert reason(refused, 503, 504) in ("DEPENDENCY_UNAVAILABLE", "DEADLINE_EXCEEDED"), refused.text
    send(status(hurt.platform, "platform"), signal.SIGCONT)
    await until(login, lambda answer: answer.status_code == 200, allow=503)
