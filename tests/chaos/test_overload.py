"""More than can be served is refused at once, so that what is let in is served in time."""

import asyncio

import httpx
import pytest

from tests.chaos.conftest import Hurt
from tests.edge.wire import reason

pytestmark = pytest.mark.xdist_group("chaos")

TOO_MANY = 20
ME = "/api/v1/auth/me"


async def test_calls_beyond_what_an_instance_takes_are_refused_and_the_others_answered(hurt: Hurt) -> None:
    """The database makes all of them wait."""
    tenant = await hurt.platform.new_tenant()
    user = await tenant.sign_in()
    limits = httpx.Limits(max_connections=None)
    connection = await hurt.platform.admin()
    async with httpx.AsyncClient(base_url=hurt.platform.http_url, limits=limits, timeout=20) as http:
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE user_auth.users IN ACCESS EXCLUSIVE MODE")
                many = hurt.platform.settings.edge_capacity + TOO_MANY
                waiting = {asyncio.create_task(http.get(ME, headers=user.headers)) for _ in range(many)}
                refused: set[asyncio.Task[httpx.Response]] = set()
                while len(refused) < TOO_MANY:
                    done, waiting = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
                    assert done, f"only {len(refused)} were refused"
                    refused |= done
                elsewhere = await http.get("/api/v1/billing/plans", headers=tenant.headers)
        finally:
            await connection.close()
        served = await asyncio.gather(*waiting)
    assert len(refused) == TOO_MANY
    for answer in (task.result() for task in refused):
        assert reason(answer, 503) == "DEPENDENCY_UNAVAILABLE"
        assert answer.headers["retry-after"] == "1"
    assert {answer.status_code for answer in served} == {200}
    assert elsewhere.status_code == 200, "other services are not touched by it"
