"""Sessions end by themselves, are watched as they come and go, and say how sure the platform is of the user."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from datetime import UTC, timedelta
from typing import Any

import httpx
import pytest

from nexus.identity.session_mgr.v1.faults import SessionNotFound
from nexus.identity.session_mgr.v1.session_mgr_pb2 import (
    CreateSessionRequest,
    GetSessionRequest,
    SetAssuranceRequest,
    TouchSessionRequest,
)
from nexus.identity.session_mgr.v1.session_mgr_pb2_grpc import SessionServiceStub
from services.chassis.clients import Clients
from services.chassis.clock import now
from services.chassis.ids import new_id
from tests.identity.people import body, change, reason
from tests.platforms import Platform, SignedIn, Tenant


async def refresh(http: httpx.AsyncClient, tenant: Tenant, user: SignedIn) -> httpx.Response:
    return await http.post("/api/v1/auth/refresh", headers=tenant.headers, json={"refreshToken": user.refresh_token})


async def age(platform: Platform, session_id: str, column: str, by: str) -> None:
    """Move a time of a session into the past."""
    await change(
        platform,
        f"UPDATE session_mgr.sessions SET {column} = {column} - interval '{by}' WHERE session_id = $1",
        session_id,
    )


async def watch(http: httpx.AsyncClient, user: SignedIn) -> AsyncGenerator[set[str], None]:
    """The ids of the live sessions, each time that they are told: a JSON array that grows."""
    decoder = json.JSONDecoder()
    async with http.stream("GET", "/api/v1/sessions:watch", headers=user.headers, timeout=30) as answer:
        assert answer.status_code == 200
        text = ""
        async for piece in answer.aiter_text():
            text += piece
            while True:
                text = text.lstrip("[,\n ")
                try:
                    told, end = decoder.raw_decode(text)
                except ValueError:
                    break
                text = text[end:]
                yield {session["sessionId"] for session in told["sessions"]}


@pytest.mark.parametrize(
    ("column", "almost", "rest"),
    [("last_used_time", "13 days 23 hours", "2 hours"), ("expire_time", "89 days 23 hours", "2 hours")],
    ids=["not used", "too old"],
)
async def test_a_session_ends_by_itself(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, column: str, almost: str, rest: str
) -> None:
    ann = await tenant.sign_in()
    await age(platform, ann.session_id, column, almost)
    assert len(body(await http.get("/api/v1/sessions", headers=ann.headers))["sessions"]) == 1
    await age(platform, ann.session_id, column, rest)
    assert reason(await refresh(http, tenant, ann)) == "REFRESH_TOKEN_INVALID"
    assert body(await http.get("/api/v1/sessions", headers=ann.headers))["sessions"] == []


async def test_a_session_in_use_does_not_time_out(platform: Platform, tenant: Tenant, http: httpx.AsyncClient) -> None:
    ann = await tenant.sign_in()
    await age(platform, ann.session_id, "last_used_time", "13 days")
    refreshed = body(await refresh(http, tenant, ann))
    await age(platform, ann.session_id, "last_used_time", "13 days")
    again = await http.post(
        "/api/v1/auth/refresh",
        headers=tenant.headers,
        json={"refreshToken": refreshed["tokens"]["refreshToken"]},
    )
    assert again.status_code == 200


async def test_a_watcher_sees_sessions_open_and_end_until_their_own_does(
    tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision()
    here = await tenant.sign_in(email=email)
    told = watch(http, here)
    assert await anext(told) == {here.session_id}

    there = await tenant.sign_in(email=email)
    changed = time.monotonic()
    assert await anext(told) == {here.session_id, there.session_id}
    assert time.monotonic() - changed < 4, "told, not found by looking again"
    await tenant.sign_in()  # somebody else's is not told

    body(await http.delete(f"/api/v1/sessions/{there.session_id}", headers=here.headers))
    changed = time.monotonic()
    assert await anext(told) == {here.session_id}
    assert time.monotonic() - changed < 4, "told, not found by looking again"

    body(await http.delete("/api/v1/sessions", headers=here.headers))
    assert await anext(told) == set()
    with pytest.raises(StopAsyncIteration):
        await anext(told)


async def test_many_watchers_of_one_user_are_all_told(tenant: Tenant, http: httpx.AsyncClient) -> None:
    email = await tenant.provision()
    here = await tenant.sign_in(email=email)
    watchers = [watch(http, here) for _ in range(5)]
    assert [await anext(told) for told in watchers] == [{here.session_id}] * 5
    there = await tenant.sign_in(email=email)
    told = await asyncio.gather(*(anext(each) for each in watchers))
    assert list(told) == [{here.session_id, there.session_id}] * 5
    for each in watchers:
        await each.aclose()


async def test_assurance_is_the_sessions_and_read_anew_after_it_changed(tenant: Tenant, operator: Clients) -> None:
    sessions = operator.stub(SessionServiceStub)
    options: Any = {"timeout": 10, "metadata": tuple(tenant.headers.items())}
    opened = await sessions.CreateSession(CreateSessionRequest(user_id=new_id(), request_id=new_id()), **options)
    token, session_id = opened.session_token, opened.session.session_id
    assert (opened.session.assurance, list(opened.session.methods)) == ("aal1", ["pwd"])
    await sessions.GetSession(GetSessionRequest(session_token=token), **options)

    await sessions.SetAssurance(
        SetAssuranceRequest(session_id=session_id, assurance="aal2", methods=["pwd", "otp", "mfa"]), **options
    )

    found = (await sessions.GetSession(GetSessionRequest(session_token=token), **options)).session
    assert (found.assurance, list(found.methods)) == ("aal2", ["pwd", "otp", "mfa"])
    assert found.auth_time.ToNanoseconds() > opened.session.auth_time.ToNanoseconds()
    touched = (await sessions.TouchSession(TouchSessionRequest(session_id=session_id), **options)).session
    assert touched.assurance == "aal2"
    with pytest.raises(SessionNotFound):
        await sessions.SetAssurance(SetAssuranceRequest(session_id=new_id(), assurance="aal2"), **options)


async def test_a_session_is_read_no_longer_than_it_lasts_however_well_it_is_remembered(
    platform: Platform, tenant: Tenant, operator: Clients
) -> None:
    sessions = operator.stub(SessionServiceStub)
    options: Any = {"timeout": 10, "metadata": tuple(tenant.headers.items())}
    opened = await sessions.CreateSession(CreateSessionRequest(user_id=new_id(), request_id=new_id()), **options)
    read = GetSessionRequest(session_token=opened.session_token)
    soon = "UPDATE session_mgr.sessions SET expire_time = now() + interval '2 seconds' WHERE session_id = $1"
    await change(platform, soon, opened.session.session_id)
    ends = (await sessions.GetSession(read, **options)).session.expire_time.ToDatetime(tzinfo=UTC)

    async def is_live() -> bool:
        try:
            await sessions.GetSession(read, **options)
        except SessionNotFound:
            return False
        return True

    while await is_live():
        assert now() < ends + timedelta(seconds=5)
        await asyncio.sleep(0.1)
    assert now() >= ends
