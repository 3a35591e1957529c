"""A second factor is asked for, counts once, and cannot be gone around."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import pyotp
import pytest

from services.identity.auth_service.totp import step_of
from tests.identity.authenticators import Authenticator
from tests.identity.people import (
    body,
    change,
    claims,
    enroll_totp,
    login,
    reason,
    register_passkey,
    session_of,
    value,
    verify_mfa,
    works,
)
from tests.platforms import PASSWORD, Platform, SignedIn, Tenant

FREE = 5
Json = dict[str, Any]


async def asked(http: httpx.AsyncClient, tenant: Tenant, email: str) -> Json:
    """The challenge that a login with the right password is answered with."""
    answer = body(await login(http, tenant, email))
    assert answer.get("tokens") is None
    assert answer.get("session") is None
    mfa: Json = answer["mfa"]
    return mfa


async def passkey_login(
    http: httpx.AsyncClient, tenant: Tenant, answer: Callable[[Json], Json]
) -> tuple[Json, httpx.Response]:
    """Returns what was sent, and the answer."""
    started = body(await http.post("/api/v1/auth/passkey-login:start", headers=tenant.headers, json={}))["challenge"]
    sent = {"challengeId": started["challengeId"], "passkey": answer(started["passkeyOptions"])}
    return sent, await http.post("/api/v1/auth/passkey-login:finish", headers=tenant.headers, json=sent)


async def step_up(http: httpx.AsyncClient, user: SignedIn, **proof: object) -> httpx.Response:
    started = body(await http.post("/api/v1/auth/step-up:start", headers=user.headers, json={}))["challenge"]
    return await http.post(
        "/api/v1/auth/step-up", headers=user.headers, json={"challengeId": started["challengeId"], **proof}
    )


@pytest.fixture
def key(platform: Platform) -> Authenticator:
    return Authenticator(origin=platform.settings.public_url)


def test_a_code_belongs_to_its_step_and_the_ones_beside_it() -> None:
    secret, now = pyotp.random_base32(), 1_700_000_000.0
    step = int(now) // 30
    totp = pyotp.TOTP(secret)
    for offset in (-1, 0, 1):
        assert step_of(secret, totp.generate_otp(step + offset), now) == step + offset
    for offset in (-2, 2):
        assert step_of(secret, totp.generate_otp(step + offset), now) is None


async def test_enrolment_gives_a_uri_that_any_app_reads_and_ten_recovery_codes(
    tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in()
    enrolled = body(await http.post("/api/v1/auth/factors/totp:enroll", headers=ann.headers, json={}))
    app = pyotp.parse_uri(enrolled["otpauthUri"])
    assert isinstance(app, pyotp.TOTP)
    assert (app.name, app.issuer, app.secret) == (ann.email, "Nexus COS", enrolled["totpSecret"])
    body(await login(http, tenant, ann.email))["tokens"]  # what is not confirmed is not asked for
    codes = body(await http.post("/api/v1/auth/factors/totp:confirm", headers=ann.headers, json={"code": app.now()}))[
        "recoveryCodes"
    ]
    assert len(set(codes)) == 10
    again = await http.post("/api/v1/auth/factors/totp:enroll", headers=ann.headers, json={})
    assert reason(again) == "TOTP_ALREADY_ENROLLED"


async def test_with_a_factor_the_password_alone_opens_nothing(tenant: Tenant, http: httpx.AsyncClient) -> None:
    ann = await tenant.sign_in()
    totp, _ = await enroll_totp(http, ann)
    mfa = await asked(http, tenant, ann.email)
    assert mfa["methods"] == ["MFA_METHOD_TOTP", "MFA_METHOD_RECOVERY_CODE"]
    refused = await verify_mfa(http, tenant, mfa["challengeId"], totpCode=totp.wrong_code())
    assert (refused.status_code, reason(refused)) == (401, "MFA_INVALID")
    signed_in = session_of(body(await verify_mfa(http, tenant, mfa["challengeId"], totpCode=totp.code())), ann.email)
    assert await works(http, signed_in)
    token = claims(signed_in.access_token)
    assert (token["acr"], token["amr"]) == ("aal2", ["pwd", "otp", "mfa"])
    assert abs(token["auth_time"] - time.time()) < 30
    assert claims(ann.access_token)["acr"] == "aal1"


async def test_a_code_counts_once_whoever_sends_it_how_often_at_once(tenant: Tenant, http: httpx.AsyncClient) -> None:
    ann = await tenant.sign_in()
    totp, _ = await enroll_totp(http, ann)
    challenges = [await asked(http, tenant, ann.email) for _ in range(5)]
    code = totp.code()
    answers = await asyncio.gather(*(verify_mfa(http, tenant, mfa["challengeId"], totpCode=code) for mfa in challenges))
    assert [answer.status_code for answer in answers].count(200) == 1
    assert {reason(answer) for answer in answers if answer.status_code != 200} == {"MFA_INVALID"}


async def test_a_challenge_is_answered_once_in_its_own_tenant_and_in_time(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in()
    _, codes = await enroll_totp(http, ann)
    mfa = await asked(http, tenant, ann.email)
    elsewhere = await verify_mfa(http, other_tenant, mfa["challengeId"], recoveryCode=codes[0])
    assert reason(elsewhere) == "CHALLENGE_INVALID"
    answers = await asyncio.gather(
        *(verify_mfa(http, tenant, mfa["challengeId"], recoveryCode=code) for code in codes[:4])
    )
    assert [answer.status_code for answer in answers].count(200) == 1
    assert {reason(answer) for answer in answers if answer.status_code != 200} == {"CHALLENGE_INVALID"}
    assert reason(await verify_mfa(http, tenant, "made up", recoveryCode=codes[5])) == "CHALLENGE_INVALID"


async def test_a_recovery_code_is_good_once_however_it_is_typed(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in()
    _, codes = await enroll_totp(http, ann)
    mfa = await asked(http, tenant, ann.email)
    typed = codes[0].replace("-", " ").upper()
    body(await verify_mfa(http, tenant, mfa["challengeId"], recoveryCode=typed))
    mfa = await asked(http, tenant, ann.email)
    assert reason(await verify_mfa(http, tenant, mfa["challengeId"], recoveryCode=codes[0])) == "MFA_INVALID"
    assert body(await http.get("/api/v1/auth/factors", headers=ann.headers))["recoveryCodesLeft"] == 9
    stored = await value(
        platform,
        "SELECT string_agg(encode(code_hash, 'escape'), '') FROM auth_service.recovery_codes WHERE user_id = $1",
        ann.user_id,
    )
    assert not [code for code in codes if code in stored or code.replace("-", "") in stored]
    fresh = body(await http.post("/api/v1/auth/factors/recovery-codes:regenerate", headers=ann.headers, json={}))[
        "recoveryCodes"
    ]
    assert reason(await verify_mfa(http, tenant, mfa["challengeId"], recoveryCode=codes[1])) == "MFA_INVALID"
    body(await verify_mfa(http, tenant, mfa["challengeId"], recoveryCode=fresh[0]))


async def test_wrong_codes_lock_the_factor_for_longer_each_time(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in()
    totp, codes = await enroll_totp(http, ann)
    mfa = await asked(http, tenant, ann.email)
    guesses = await asyncio.gather(
        *(verify_mfa(http, tenant, mfa["challengeId"], totpCode=totp.wrong_code()) for _ in range(20))
    )
    reasons = [reason(guess) for guess in guesses]
    assert (reasons.count("MFA_INVALID"), reasons.count("MFA_LOCKED")) == (FREE, 20 - FREE)
    again = await asked(http, tenant, ann.email)
    locked = await verify_mfa(http, tenant, again["challengeId"], recoveryCode=codes[0])
    assert (locked.status_code, reason(locked)) == (403, "MFA_LOCKED")
    await change(platform, "UPDATE auth_service.lockouts SET open_time = now() WHERE tenant_id = $1", tenant.tenant_id)
    body(await verify_mfa(http, tenant, again["challengeId"], recoveryCode=codes[0]))


async def test_a_password_that_changes_meanwhile_ends_the_sign_in(tenant: Tenant, http: httpx.AsyncClient) -> None:
    ann = await tenant.sign_in()
    _, codes = await enroll_totp(http, ann)
    mfa = await asked(http, tenant, ann.email)
    changed = await http.post(
        "/api/v1/auth/change-password",
        headers=ann.headers,
        json={"currentPassword": PASSWORD, "newPassword": "a better password"},
    )
    body(changed)
    assert reason(await verify_mfa(http, tenant, mfa["challengeId"], recoveryCode=codes[0])) == "CREDENTIALS_INVALID"


async def test_secrets_of_apps_are_sealed(platform: Platform, tenant: Tenant, http: httpx.AsyncClient) -> None:
    ann = await tenant.sign_in()
    totp, _ = await enroll_totp(http, ann)
    sealed = await value(
        platform, "SELECT secret_sealed FROM auth_service.totp_factors WHERE user_id = $1", ann.user_id
    )
    assert totp.secret.encode() not in sealed


async def test_a_removed_factor_is_not_asked_for_and_takes_its_recovery_codes_along(
    tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in()
    await enroll_totp(http, ann)
    body(await http.delete("/api/v1/auth/factors/totp", headers=ann.headers))
    assert body(await http.get("/api/v1/auth/factors", headers=ann.headers))["recoveryCodesLeft"] == 0
    body(await login(http, tenant, ann.email))["tokens"]
    for path in ("totp", "passkeys/AAAA", "passkeys/not-there"):
        gone = await http.delete(f"/api/v1/auth/factors/{path}", headers=ann.headers)
        assert reason(gone) == "FACTOR_NOT_FOUND"
    nothing = await http.post("/api/v1/auth/factors/recovery-codes:regenerate", headers=ann.headers, json={})
    assert reason(nothing) == "FACTOR_NOT_FOUND"


async def test_a_passkey_signs_in_alone(tenant: Tenant, http: httpx.AsyncClient, key: Authenticator) -> None:
    ann = await tenant.sign_in()
    registered = await register_passkey(http, ann, key)
    assert len(registered["recoveryCodes"]) == 10
    sent, answer = await passkey_login(http, tenant, key.get)
    signed_in = session_of(body(answer), ann.email)
    assert signed_in.user_id == ann.user_id
    assert await works(http, signed_in)
    assert (claims(signed_in.access_token)["acr"], claims(signed_in.access_token)["amr"]) == (
        "aal2",
        ["pop", "user", "mfa"],
    )
    replayed = await http.post("/api/v1/auth/passkey-login:finish", headers=tenant.headers, json=sent)
    assert reason(replayed) == "CHALLENGE_INVALID"


async def test_a_passkey_is_a_second_factor(tenant: Tenant, http: httpx.AsyncClient, key: Authenticator) -> None:
    ann = await tenant.sign_in()
    await register_passkey(http, ann, key)
    mfa = await asked(http, tenant, ann.email)
    assert "MFA_METHOD_PASSKEY" in mfa["methods"]
    answer = key.get(mfa["passkeyOptions"])
    assert mfa["passkeyOptions"]["allowCredentials"][0]["id"] == answer["id"]
    signed_in = body(await verify_mfa(http, tenant, mfa["challengeId"], passkey=answer))
    assert claims(signed_in["tokens"]["accessToken"])["amr"] == ["pwd", "pop", "mfa"]


async def test_a_passkey_answer_that_is_off_in_anything_opens_nothing(
    tenant: Tenant, other_tenant: Tenant, http: httpx.AsyncClient, key: Authenticator
) -> None:
    ann, bob = await tenant.sign_in(), await tenant.sign_in()
    await register_passkey(http, ann, key)
    bobs = Authenticator(origin=key.origin)
    await register_passkey(http, bob, bobs)

    def changed(**fields: Any) -> Callable[[Json], Json]:
        def get(options: Json) -> Json:
            before = {name: getattr(key, name) for name in fields}
            vars(key).update(fields)
            try:
                return key.get(options)
            finally:
                vars(key).update(before)

        return get

    def at(origin_or_rp: Json) -> Callable[[Json], Json]:
        return lambda options: key.get({**options, **origin_or_rp})

    wrong: dict[str, Callable[[Json], Json]] = {
        "another origin": changed(origin="https://evil.example.com"),
        "another relying party": at({"rpId": "evil.example.com"}),
        "another challenge": at({"challenge": "A" * 43}),
        "another key": changed(key=bobs.key),
        "another user": changed(user_handle=bobs.user_handle),
        "not verified": changed(verifies_user=False),
        "an unknown credential": changed(credential_id=b"x" * 32),
        "no answer": lambda _: {},
        "no response": lambda options: {**key.get(options), "response": {}},
        "odd types": lambda options: {**key.get(options), "rawId": 7, "response": "x"},
        "garbage": lambda options: {
            **key.get(options),
            "response": {**key.get(options)["response"], "authenticatorData": "AAAA", "signature": "!!"},
        },
    }
    for what, answer in wrong.items():
        _, refused = await passkey_login(http, tenant, answer)
        expected = "INVALID_REQUEST" if what == "no answer" and refused.status_code == 400 else "MFA_INVALID"
        assert reason(refused) == expected, (what, refused.text)
    _, elsewhere = await passkey_login(http, other_tenant, key.get)
    assert reason(elsewhere) == "MFA_INVALID"
    _, fine = await passkey_login(http, tenant, key.get)
    body(fine)


async def test_a_copied_authenticator_is_noticed_by_its_counter(
    tenant: Tenant, http: httpx.AsyncClient, key: Authenticator
) -> None:
    ann = await tenant.sign_in()
    await register_passkey(http, ann, key)
    key.uses = 10
    body((await passkey_login(http, tenant, key.get))[1])
    key.uses = 5
    assert reason((await passkey_login(http, tenant, key.get))[1]) == "MFA_INVALID"


async def test_a_passkey_that_does_not_count_works_again_and_again(
    tenant: Tenant, http: httpx.AsyncClient, key: Authenticator
) -> None:
    key.counts = False
    await register_passkey(http, await tenant.sign_in(), key)
    for _ in range(3):
        body((await passkey_login(http, tenant, key.get))[1])


async def test_a_passkey_is_registered_once_and_by_the_user_who_was_asked(
    tenant: Tenant, http: httpx.AsyncClient, key: Authenticator
) -> None:
    ann, eve = await tenant.sign_in(), await tenant.sign_in()
    started = body(await http.post("/api/v1/auth/factors/passkeys:start", headers=ann.headers, json={}))
    answer = {"challengeId": started["challengeId"], "passkey": key.create(started["options"])}

    async def finish(by: SignedIn, **more: object) -> httpx.Response:
        return await http.post("/api/v1/auth/factors/passkeys:finish", headers=by.headers, json={**answer, **more})

    assert reason(await finish(eve)) == "CHALLENGE_INVALID"
    body(await finish(ann))
    assert reason(await finish(ann)) == "CHALLENGE_INVALID"
    again = body(await http.post("/api/v1/auth/factors/passkeys:start", headers=eve.headers, json={}))
    taken = await finish(eve, challengeId=again["challengeId"], passkey=key.create(again["options"]))
    assert reason(taken) == "PASSKEY_REFUSED"
    nonsense = body(await http.post("/api/v1/auth/factors/passkeys:start", headers=eve.headers, json={}))
    for odd in ({"id": 1}, {**answer["passkey"], "response": {"attestationObject": "oWE", "clientDataJSON": "e30"}}):
        refused = await finish(eve, challengeId=nonsense["challengeId"], passkey=odd)
        assert reason(refused) in ("PASSKEY_REFUSED", "CHALLENGE_INVALID")


async def test_a_disabled_users_passkey_opens_nothing(
    tenant: Tenant, http: httpx.AsyncClient, key: Authenticator
) -> None:
    owner, ann = await tenant.sign_in("owner"), await tenant.sign_in()
    await register_passkey(http, ann, key)
    body(await http.post(f"/api/v1/users/{ann.user_id}:disable", headers=owner.headers, json={}))
    assert reason((await passkey_login(http, tenant, key.get))[1]) == "CREDENTIALS_INVALID"


async def test_a_step_up_by_password_is_told_by_the_next_token(tenant: Tenant, http: httpx.AsyncClient) -> None:
    ann = await tenant.sign_in()
    assert reason(await step_up(http, ann, password="not the password")) == "CREDENTIALS_INVALID"
    await asyncio.sleep(1.1)  # auth_time counts in seconds
    raised = body(await step_up(http, ann, password=PASSWORD, refreshToken=ann.refresh_token))
    before, after = claims(ann.access_token), claims(raised["tokens"]["accessToken"])
    assert after["auth_time"] > before["auth_time"]
    assert (after["acr"], after["sid"]) == ("aal1", before["sid"])


async def test_with_a_factor_a_step_up_takes_the_factor_and_raises_the_assurance(
    tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in()
    _, codes = await enroll_totp(http, ann)
    assert reason(await step_up(http, ann, password=PASSWORD)) == "FACTOR_REQUIRED"
    other = session_of(
        body(
            await verify_mfa(http, tenant, (await asked(http, tenant, ann.email))["challengeId"], recoveryCode=codes[0])
        ),
        ann.email,
    )
    not_mine = await step_up(http, ann, recoveryCode=codes[1], refreshToken=other.refresh_token)
    assert reason(not_mine) == "REFRESH_TOKEN_INVALID"
    body(await step_up(http, ann, recoveryCode=codes[2]))
    refreshed = body(
        await http.post("/api/v1/auth/refresh", headers=tenant.headers, json={"refreshToken": ann.refresh_token})
    )
    assert claims(refreshed["tokens"]["accessToken"])["acr"] == "aal2"


async def test_somebody_elses_challenge_steps_nobody_up(tenant: Tenant, http: httpx.AsyncClient) -> None:
    ann, eve = await tenant.sign_in(), await tenant.sign_in()
    started = body(await http.post("/api/v1/auth/step-up:start", headers=ann.headers, json={}))["challenge"]
    taken = await http.post(
        "/api/v1/auth/step-up",
        headers=eve.headers,
        json={"challengeId": started["challengeId"], "password": PASSWORD},
    )
    assert reason(taken) == "CHALLENGE_INVALID"
