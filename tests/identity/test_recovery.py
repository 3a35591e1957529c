"""Who lost a password gets a code by mail, and nobody learns from the asking who there is."""

import asyncio

import httpx
import pytest

from services.chassis.ids import new_id
from tests.identity.people import body, change, login, mailed_codes, next_code, reason, value, works
from tests.platforms import PASSWORD, Platform, SignedIn, Tenant, eventually

RECOVERY = "Set a new password"
NEW = "a much better password"


async def start(http: httpx.AsyncClient, tenant: Tenant, email: str) -> httpx.Response:
    return await http.post("/api/v1/auth/start-recovery", headers=tenant.headers, json={"email": email})


async def complete(
    http: httpx.AsyncClient, tenant: Tenant, code: str, password: str = NEW, request_id: str = ""
) -> httpx.Response:
    return await http.post(
        "/api/v1/auth/complete-recovery",
        headers=tenant.headers,
        json={"code": code, "newPassword": password, "requestId": request_id},
    )


async def recovery_code(platform: Platform, http: httpx.AsyncClient, tenant: Tenant, email: str) -> str:
    earlier = len(mailed_codes(platform, email, RECOVERY))
    body(await start(http, tenant, email))
    return await asyncio.to_thread(next_code, platform, email, RECOVERY, earlier)


async def open_requests(platform: Platform, tenant: Tenant) -> int:
    found: int = await value(
        platform, "SELECT count(*) FROM user_auth.mail_requests WHERE tenant_id = $1", tenant.tenant_id
    )
    return found


async def test_a_recovered_user_signs_in_with_the_new_password_and_is_signed_out_everywhere(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision()
    before = [await tenant.sign_in(email=email) for _ in range(2)]
    code = await recovery_code(platform, http, tenant, email)
    assert all([await works(http, session) for session in before]), "asking alone changes nothing"

    assert body(await complete(http, tenant, code)) == {"endedSessions": 2}

    assert not any([await works(http, session) for session in before])
    assert reason(await login(http, tenant, email)) == "CREDENTIALS_INVALID"
    body(await login(http, tenant, email, NEW))


async def test_a_code_works_once_and_a_newer_one_replaces_it(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision()
    old = await recovery_code(platform, http, tenant, email)
    new = await recovery_code(platform, http, tenant, email)
    assert reason(await complete(http, tenant, old)) == "CODE_INVALID"
    answers = await asyncio.gather(*(complete(http, tenant, new, f"{NEW} {n}") for n in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 7
    assert reason(await complete(http, tenant, new)) == "CODE_INVALID"


async def test_a_repeated_call_with_its_key_is_answered_like_the_first(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision()
    code = await recovery_code(platform, http, tenant, email)
    first = await complete(http, tenant, code, request_id="once")
    assert body(await complete(http, tenant, code, request_id="once")) == body(first)


async def test_a_code_is_kept_as_a_hash_and_expires(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision()
    code = await recovery_code(platform, http, tenant, email)
    stored = await value(
        platform,
        "SELECT string_agg(c::text || encode(code_hash, 'escape'), '') FROM user_auth.verification_codes c "
        "WHERE tenant_id = $1",
        tenant.tenant_id,
    )
    assert stored
    assert code not in stored
    await change(
        platform, "UPDATE user_auth.verification_codes SET expire_time = now() WHERE tenant_id = $1", tenant.tenant_id
    )
    assert reason(await complete(http, tenant, code)) == "CODE_INVALID"


async def test_a_weak_password_leaves_the_code_for_a_better_one(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision()
    code = await recovery_code(platform, http, tenant, email)
    for weak in ("password1234", email):
        assert reason(await complete(http, tenant, code, weak)) == "PASSWORD_WEAK"
    body(await complete(http, tenant, code))


@pytest.mark.parametrize("code", ["x", "A" * 43])
async def test_a_made_up_code_or_one_for_something_else_recovers_nothing(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, code: str
) -> None:
    assert reason(await complete(http, tenant, code)) == "CODE_INVALID"
    email = f"{new_id()}@example.com"
    body(await http.post("/api/v1/auth/register", headers=tenant.headers, json={"email": email, "password": PASSWORD}))
    verification = mailed_codes(platform, email, "Verify your e-mail address")[0]
    assert reason(await complete(http, tenant, verification)) == "CODE_INVALID"


async def test_another_tenants_code_is_unknown(
    platform: Platform, tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    code = await recovery_code(platform, http, tenant, await tenant.provision())
    assert reason(await complete(http, other_tenant, code)) == "CODE_INVALID"
    body(await complete(http, tenant, code))


async def test_asking_does_the_same_for_known_and_unknown_addresses(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    """The same by construction: the call only notes the request; who the address belongs to is looked up later."""
    known, unknown = await tenant.provision(), f"{new_id()}@example.com"
    answers = [await start(http, tenant, email) for email in (known, unknown)]
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, b"{}")}
    await asyncio.to_thread(next_code, platform, known, RECOVERY)
    await asyncio.to_thread(eventually, lambda: not asyncio.run(open_requests(platform, tenant)))
    assert not mailed_codes(platform, unknown, RECOVERY)


async def test_recovery_lifts_a_lock(platform: Platform, tenant: Tenant, http: httpx.AsyncClient) -> None:
    email = await tenant.provision()
    for _ in range(5):
        await login(http, tenant, email, "not the password")
    assert reason(await login(http, tenant, email)) == "SIGN_IN_LOCKED"
    body(await complete(http, tenant, await recovery_code(platform, http, tenant, email)))
    body(await login(http, tenant, email, NEW))


async def reset(http: httpx.AsyncClient, by: SignedIn, user_id: str, request_id: str = "") -> httpx.Response:
    return await http.post(f"/api/v1/users/{user_id}:resetPassword", headers=by.headers, json={"requestId": request_id})


async def test_a_reset_password_is_gone_until_the_user_sets_another(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    owner, ann = await tenant.sign_in("owner"), await tenant.sign_in()
    assert body(await reset(http, owner, ann.user_id, "once")) == {"endedSessions": 1}
    body(await reset(http, owner, ann.user_id, "once"))
    assert not await works(http, ann)
    assert reason(await login(http, tenant, ann.email)) == "CREDENTIALS_INVALID"
    (code,) = mailed_codes(platform, ann.email, RECOVERY)
    body(await complete(http, tenant, code))
    body(await login(http, tenant, ann.email, NEW))


async def test_a_tenant_chooses_how_strong_its_passwords_are(tenant: Tenant, http: httpx.AsyncClient) -> None:
    owner = await tenant.sign_in("owner")

    async def register(password: str) -> httpx.Response:
        email = f"{new_id()}@example.com"
        return await http.post(
            "/api/v1/auth/register", headers=tenant.headers, json={"email": email, "password": password}
        )

    for common in ("password123", "qwertyuiop", "iloveyou1234", "hunter2hunter2"):
        assert reason(await register(common)) == "PASSWORD_WEAK"
    assert (await register("Summer2024!")).status_code == 200

    policy = {"minLength": 11, "minStrength": 4}
    changed = await http.put("/api/v1/password-policy", headers=owner.headers, json=policy)
    assert body(changed)["policy"] == policy
    assert body(await http.get("/api/v1/password-policy", headers=tenant.headers))["policy"] == policy
    assert reason(await register("Summer2024!")) == "PASSWORD_WEAK"
    body(await register("four words nobody guesses"))


async def test_a_password_made_of_the_users_own_names_is_easy_to_guess(tenant: Tenant, http: httpx.AsyncClient) -> None:
    refused = await http.post(
        "/api/v1/auth/register",
        headers=tenant.headers,
        json={"email": "zebulonquist@example.com", "password": "zebulonquist1", "displayName": "Zebulon"},
    )
    assert reason(refused) == "PASSWORD_WEAK"


async def test_a_mail_that_was_asked_for_is_sent_once_however_often_the_job_runs(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email = await tenant.provision()
    body(await start(http, tenant, email))
    await asyncio.to_thread(next_code, platform, email, RECOVERY)
    await asyncio.to_thread(eventually, lambda: not asyncio.run(open_requests(platform, tenant)))
    assert len(mailed_codes(platform, email, RECOVERY)) == 1
