"""A user has at most five live sessions, and nobody but the user ends them."""

import asyncio
from typing import Any

import httpx

from nexus.identity.session_mgr.v1.session_mgr_pb2 import CreateSessionRequest
from nexus.identity.session_mgr.v1.session_mgr_pb2_grpc import SessionServiceStub
from services.chassis.clients import Clients
from services.chassis.ids import new_id
from tests.platforms import PASSWORD, Platform, SignedIn, Tenant

MOST = 5


def reason(answer: httpx.Response) -> Any:
    return answer.json()["details"][0]["reason"]


async def live_sessions(platform: Platform, tenant: Tenant) -> list[str]:
    admin = await platform.admin()
    try:
        rows = await admin.fetch(
            "SELECT session_id::text FROM session_mgr.sessions WHERE tenant_id = $1 AND end_time IS NULL",
            tenant.tenant_id,
        )
    finally:
        await admin.close()
    return [row["session_id"] for row in rows]


async def works(http: httpx.AsyncClient, access_token: str) -> bool:
    answer = await http.get("/api/v1/auth/me", headers={"authorization": f"Bearer {access_token}"})
    assert answer.status_code in (200, 401), answer.text
    return answer.status_code == 200


async def revoke(http: httpx.AsyncClient, by: SignedIn, session_id: str) -> httpx.Response:
    return await http.delete(f"/api/v1/sessions/{session_id}", headers=by.headers)


async def test_fifty_sign_ins_at_once_leave_exactly_five_sessions_that_work(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision()

    async def login() -> dict[str, Any]:
        answer = await http.post(
            "/api/v1/auth/login", headers=tenant.headers, json={"email": email, "password": PASSWORD}
        )
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    logins = await asyncio.gather(*(login() for _ in range(50)))
    live = await live_sessions(platform, tenant)
    assert len(live) == MOST
    working = await asyncio.gather(*(works(http, body["tokens"]["accessToken"]) for body in logins))
    works_by_session = {body["session"]["sessionId"]: works for body, works in zip(logins, working, strict=True)}
    assert {session for session, works in works_by_session.items() if works} == set(live)
    one = next(body for body in logins if body["session"]["sessionId"] == live[0])
    listed = await http.get("/api/v1/sessions", headers={"authorization": f"Bearer {one['tokens']['accessToken']}"})
    assert {session["sessionId"] for session in listed.json()["sessions"]} == set(live)
    assert [session["sessionId"] for session in listed.json()["sessions"] if session["current"]] == [live[0]]


async def test_fifty_sessions_opened_at_once_without_the_pace_of_passwords_are_five(
    platform: Platform, tenant: Tenant, operator: Clients
) -> None:
    sessions, user_id = operator.stub(SessionServiceStub), new_id()
    opened = await asyncio.gather(
        *(
            sessions.CreateSession(
                CreateSessionRequest(user_id=user_id), timeout=10, metadata=tuple(tenant.headers.items())
            )
            for _ in range(50)
        )
    )
    live = await live_sessions(platform, tenant)
    assert len(live) == MOST
    assert set(live) < {answer.session.session_id for answer in opened}


async def test_a_sixth_session_ends_the_one_used_longest_ago(tenant: Tenant, http: httpx.AsyncClient) -> None:
    email = await tenant.provision()
    first, second, *others = [await tenant.sign_in(email=email) for _ in range(MOST)]
    refreshed = await http.post(
        "/api/v1/auth/refresh", headers=tenant.headers, json={"refreshToken": first.refresh_token}
    )
    assert refreshed.status_code == 200
    sixth = await tenant.sign_in(email=email)
    assert not await works(http, second.access_token)
    for session in (first, sixth, *others):
        assert await works(http, session.access_token)


async def test_a_revoked_session_is_over_at_once_and_the_others_go_on(tenant: Tenant, http: httpx.AsyncClient) -> None:
    email = await tenant.provision()
    here, there = await tenant.sign_in(email=email), await tenant.sign_in(email=email)
    assert (await revoke(http, here, there.session_id)).status_code == 200
    assert not await works(http, there.access_token)
    refused = await http.post(
        "/api/v1/auth/refresh", headers=tenant.headers, json={"refreshToken": there.refresh_token}
    )
    assert reason(refused) == "REFRESH_TOKEN_INVALID"
    assert await works(http, here.access_token)
    assert reason(await revoke(http, here, there.session_id)) == "SESSION_NOT_FOUND"


async def test_somebody_elses_session_cannot_be_found(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    eve = await tenant.sign_in("owner")
    ann, stranger = await tenant.sign_in(), await other_tenant.sign_in()
    answers = [await revoke(http, eve, session_id) for session_id in (ann.session_id, stranger.session_id, new_id())]
    assert [(answer.status_code, reason(answer)) for answer in answers] == [(404, "SESSION_NOT_FOUND")] * 3
    for session in (eve, ann, stranger):
        assert await works(http, session.access_token)


async def test_revoking_all_ends_the_users_sessions_and_nobody_elses(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision()
    own = [await tenant.sign_in(email=email) for _ in range(3)]
    other = await tenant.sign_in()
    answer = await http.delete("/api/v1/sessions", headers=own[0].headers)
    assert answer.json() == {"endedSessions": 3}
    for session in own:
        assert not await works(http, session.access_token)
    assert await works(http, other.access_token)
    assert await live_sessions(platform, tenant) == [other.session_id]


async def test_an_ended_session_can_be_revoked_by_many_at_once_and_ends_once(
    tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision()
    here, there = await tenant.sign_in(email=email), await tenant.sign_in(email=email)
    answers = await asyncio.gather(*(revoke(http, here, there.session_id) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [404] * 9
