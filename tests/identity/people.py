"""What people do with their accounts, as tests of several files need it."""

import base64
import json
import re
import time
from dataclasses import dataclass
from typing import Any

import httpx
import pyotp

from tests.identity.authenticators import Authenticator
from tests.platforms import PASSWORD, Platform, SignedIn, Tenant, eventually

Json = dict[str, Any]


def reason(answer: httpx.Response) -> Any:
    return answer.json()["details"][0]["reason"]


def body(answer: httpx.Response) -> Json:
    """The answer of a call that must succeed."""
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def claims(access_token: str) -> Json:
    """What a token says, unverified."""
    payload = access_token.split(".")[1]
    found: Json = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


async def login(http: httpx.AsyncClient, tenant: Tenant, email: str, password: str = PASSWORD) -> httpx.Response:
    return await http.post("/api/v1/auth/login", headers=tenant.headers, json={"email": email, "password": password})


async def works(http: httpx.AsyncClient, user: SignedIn) -> bool:
    answer = await http.get("/api/v1/auth/me", headers=user.headers)
    assert answer.status_code in (200, 401), answer.text
    return answer.status_code == 200


async def change(platform: Platform, statement: str, *values: object) -> None:
    """Change rows of any tenant, as time or a crash would have."""
    admin = await platform.admin()
    try:
        await admin.execute(statement, *values)
    finally:
        await admin.close()


async def value(platform: Platform, query: str, *values: object) -> Any:
    admin = await platform.admin()
    try:
        return await admin.fetchval(query, *values)
    finally:
        await admin.close()


def mailed_codes(platform: Platform, email: str, subject: str) -> list[str]:
    """The codes in all mails with this subject to an address, the oldest first."""
    outbox = platform.home / "outbox"
    mails = [path.read_text() for path in sorted(outbox.glob("*.eml"))] if outbox.exists() else []
    return [
        code
        for mail in mails
        if f"To: {email}\n" in mail and f"Subject: {subject}\n" in mail
        for code in re.findall(r"^ {4}([\w-]{43})$", mail, re.MULTILINE)
    ]


def next_code(platform: Platform, email: str, subject: str, after: int = 0) -> str:
    """The code in the mail that comes after so many others; waits for it."""
    codes: list[str] = eventually(lambda: mailed_codes(platform, email, subject)[after:])
    return codes[0]


@dataclass
class Totp:
    """A user's authenticator app, which can look ahead: each code is good once."""

    secret: str
    last_step: int = 0

    def code(self) -> str:
        """A code not given before that is valid now, or is so close to the next step that the server takes it."""
        step = max(int(time.time()) // 30 - 1, self.last_step + 1)
        assert step <= int(time.time()) // 30 + 1, "too many codes within a minute"
        self.last_step = step
        return pyotp.TOTP(self.secret).generate_otp(step)

    def wrong_code(self) -> str:
        now = int(time.time()) // 30
        near = {pyotp.TOTP(self.secret).generate_otp(step) for step in range(now - 3, now + 4)}
        return next(code for code in ("000000", *map(str, range(111111, 111200))) if code not in near)


async def enroll_totp(http: httpx.AsyncClient, user: SignedIn) -> tuple[Totp, list[str]]:
    """Enrol and confirm an authenticator app; returns it and the recovery codes."""
    enrolled = body(await http.post("/api/v1/auth/factors/totp:enroll", headers=user.headers, json={}))
    totp = Totp(enrolled["totpSecret"])
    confirmed = body(
        await http.post("/api/v1/auth/factors/totp:confirm", headers=user.headers, json={"code": totp.code()})
    )
    return totp, confirmed["recoveryCodes"]


async def register_passkey(http: httpx.AsyncClient, user: SignedIn, key: Authenticator) -> Json:
    started = body(await http.post("/api/v1/auth/factors/passkeys:start", headers=user.headers, json={}))
    answer = {"challengeId": started["challengeId"], "passkey": key.create(started["options"]), "name": "Laptop"}
    return body(await http.post("/api/v1/auth/factors/passkeys:finish", headers=user.headers, json=answer))


async def verify_mfa(http: httpx.AsyncClient, tenant: Tenant, challenge_id: str, **proof: object) -> httpx.Response:
    return await http.post(
        "/api/v1/auth/verify-mfa", headers=tenant.headers, json={"challengeId": challenge_id, **proof}
    )


def session_of(signed_in: Json, email: str) -> SignedIn:
    """The session in the answer of a sign-in."""
    return SignedIn(
        user_id=signed_in["session"]["userId"],
        email=email,
        access_token=signed_in["tokens"]["accessToken"],
        refresh_token=signed_in["tokens"]["refreshToken"],
        session_id=signed_in["session"]["sessionId"],
    )
