"""Flow 1: register → verify e-mail → login → session → tokens → refresh → logout."""

import re

import httpx

from tests.platforms import PASSWORD, Platform, Tenant


def mailed_code(platform: Platform, email: str) -> str:
    """The code in the last mail to an address."""
    mail = platform.nexus("mail", "--to", email, "--last", "1").stdout
    found = re.search(r"^ {4}([\w-]{43})$", mail, re.MULTILINE)
    assert found, mail
    return found[1]


async def test_a_new_user_registers_verifies_signs_in_refreshes_and_signs_out(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = f"ann@{tenant.tenant_id}.com"
    credentials = {"email": email, "password": PASSWORD}

    registered = await http.post(
        "/api/v1/auth/register", headers=tenant.headers, json={**credentials, "displayName": "Ann"}
    )
    assert registered.status_code == 200, registered.text
    assert registered.json()["user"]["emailVerified"] is False

    too_early = await http.post("/api/v1/auth/login", headers=tenant.headers, json=credentials)
    assert too_early.json()["details"][0]["reason"] == "EMAIL_NOT_VERIFIED"

    code = mailed_code(platform, email)
    verified = await http.post("/api/v1/auth/verify-email", headers=tenant.headers, json={"code": code})
    assert verified.json()["user"]["emailVerified"] is True

    login = await http.post("/api/v1/auth/login", headers=tenant.headers, json=credentials)
    tokens = login.json()["tokens"]
    signed_in = {"authorization": f"Bearer {tokens['accessToken']}"}

    me = (await http.get("/api/v1/auth/me", headers=signed_in)).json()
    assert me["user"]["email"] == email
    assert me["tenantId"] == tenant.tenant_id

    sessions = (await http.get("/api/v1/sessions", headers=signed_in)).json()["sessions"]
    assert [session["current"] for session in sessions] == [True]

    refreshed = await http.post(
        "/api/v1/auth/refresh", headers=tenant.headers, json={"refreshToken": tokens["refreshToken"]}
    )
    signed_in = {"authorization": f"Bearer {refreshed.json()['tokens']['accessToken']}"}

    assert (await http.post("/api/v1/auth/logout", headers=signed_in)).status_code == 200
    refused = await http.get("/api/v1/auth/me", headers=signed_in)
    assert refused.status_code == 401
    assert refused.json()["details"][0]["reason"] == "TOKEN_INVALID"


async def test_a_code_works_once(platform: Platform, tenant: Tenant, http: httpx.AsyncClient) -> None:
    email = f"bob@{tenant.tenant_id}.com"
    await http.post("/api/v1/auth/register", headers=tenant.headers, json={"email": email, "password": PASSWORD})
    code = mailed_code(platform, email)

    first = await http.post("/api/v1/auth/verify-email", headers=tenant.headers, json={"code": code})
    second = await http.post("/api/v1/auth/verify-email", headers=tenant.headers, json={"code": code})

    assert first.status_code == 200
    assert second.json()["details"][0]["reason"] == "CODE_INVALID"


async def test_changing_the_password_ends_every_session(tenant: Tenant, http: httpx.AsyncClient) -> None:
    email = await tenant.provision()
    here, there = await tenant.sign_in(email=email), await tenant.sign_in(email=email)

    changed = await http.post(
        "/api/v1/auth/change-password",
        headers=here.headers,
        json={"currentPassword": PASSWORD, "newPassword": "a better password"},
    )

    assert changed.json() == {"endedSessions": 2}
    for session in (here, there):
        assert (await http.get("/api/v1/auth/me", headers=session.headers)).status_code == 401
        refresh = await http.post(
            "/api/v1/auth/refresh", headers=tenant.headers, json={"refreshToken": session.refresh_token}
        )
        assert refresh.json()["details"][0]["reason"] == "REFRESH_TOKEN_INVALID"
