"""Users at the pages: the session that their browser holds, and how they get one."""

import contextlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from nexus.identity.auth_service.v1.auth_service_pb2 import (
    MFA_METHOD_RECOVERY_CODE,
    MFA_METHOD_TOTP,
    SignInRecognizedRequest,
    VerifyMfaRequest,
)
from nexus.identity.auth_service.v1.auth_service_pb2_grpc import AuthServiceStub
from nexus.identity.auth_service.v1.faults import MfaInvalid
from nexus.identity.session_mgr.v1.faults import SessionNotFound
from nexus.identity.session_mgr.v1.session_mgr_pb2 import EndUserSessionsRequest, Session, TouchSessionRequest
from nexus.identity.session_mgr.v1.session_mgr_pb2_grpc import SessionServiceStub
from nexus.identity.user_auth.v1 import user_auth_pb2
from nexus.identity.user_auth.v1.faults import (
    CredentialsInvalid,
    EmailTaken,
    IdentityNotLinked,
    IdentityTaken,
    UserDisabled,
)
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from nexus.modules.puabo_os.v1.faults import QuotaExceeded
from nexus.type.v1.faults import InvalidRequest
from services.chassis.clock import moment, now
from services.chassis.context import RequestContext
from services.chassis.ids import hash_secret, new_secret
from services.chassis.service import Service
from services.identity.auth_service_v2 import tickets
from services.identity.auth_service_v2.tickets import Tickets

SESSION_COOKIE = "nexus_session"
BROWSER_COOKIE = "nexus_browser"
Header = tuple[str, str]
_Recognized = (
    user_auth_pb2.VerifyPasswordResponse | user_auth_pb2.ResolveIdentityResponse | user_auth_pb2.LinkIdentityResponse
)
"""What says who the user is, and under which version of their credentials."""

_TWO_FACTORS = ("aal2", "aal3", "http://schemas.openid.net/pape/policies/2007/06/multi-factor")
"""NIST SP 800-63B; OpenID Provider Authentication Policy Extension 1.0, section 4."""
_TOTP_CODE = re.compile(r"[0-9]{6}")
_MAX_CODE = 64
_MAX_DEPTH = 8


class NoAccount(Exception):  # noqa: N818  an answer, not a failure
    """An upstream identity belongs to no user and cannot be given one. The message is for the user."""


class AddressTaken(NoAccount):
    """There is a user with its address, who can have it linked by signing in."""


@dataclass(frozen=True)
class SecondFactor:
    """What a user who has been recognised is asked for."""

    challenge_id: str
    takes_code: bool
    """Of the authenticator app, or a recovery code."""
    passkey_options: str
    """For `navigator.credentials.get`, in JSON; empty for a user without passkeys."""


class Accounts:
    """Sessions of browsers."""

    def __init__(self, service: Service, sealed: Tickets) -> None:
        self._tickets = sealed
        self._auth = service.clients.stub(AuthServiceStub)
        self._users = service.clients.stub(UserServiceStub)
        self._sessions = service.clients.stub(SessionServiceStub)

    async def session(self, call: RequestContext) -> Session | None:
        """The live session that the browser's cookie stands for."""
        ticket = self._tickets.read(tickets.SESSION, call.tenant_id, cookies(call).get(SESSION_COOKIE, ""))
        if ticket is None:
            return None
        return await self.touch(ticket["session_id"])

    async def touch(self, session_id: str) -> Session | None:
        """A session, counted as used now; None if it has ended."""
        try:
            answer = await self._sessions.TouchSession(TouchSessionRequest(session_id=session_id))
        except SessionNotFound:
            return None
        return answer.session

    async def sign_in(self, email: str, password: str, call: RequestContext) -> Session | SecondFactor:
        """Raises user-auth's faults."""
        verified = await self._users.VerifyPassword(user_auth_pb2.VerifyPasswordRequest(email=email, password=password))
        return await self._recognized("pwd", verified, call)

    async def sign_in_from(
        self, issuer: str, profile: Mapping[str, Any], call: RequestContext
    ) -> Session | SecondFactor:
        """Sign in the user of an upstream identity, a new one if it belongs to nobody. Raises NoAccount."""
        identity = user_auth_pb2.ResolveIdentityRequest(issuer=issuer, subject=profile["sub"])
        try:
            try:
                user: _Recognized = await self._users.ResolveIdentity(identity)
            except IdentityNotLinked:
                user = await self._provision(identity, profile)
            return await self._recognized("fed", user, call, by_two_factors=by_two_factors(profile))
        except (UserDisabled, CredentialsInvalid):
            raise NoAccount("Your account is disabled.") from None
        except QuotaExceeded:
            raise NoAccount("There is no room for another account here; ask whoever runs this.") from None

    async def link(self, issuer: str, subject: str, session: Session) -> None:
        """Let the user sign in by an upstream identity from now on."""
        # If it has become another's since, theirs it is.
        with contextlib.suppress(IdentityTaken):
            await self._users.LinkIdentity(
                user_auth_pb2.LinkIdentityRequest(issuer=issuer, subject=subject, user_id=session.user_id)
            )

    async def prove(self, factor: SecondFactor, *, code: str, passkey: str) -> Session:
        """Complete a sign-in. Raises auth-service's faults."""
        proof = VerifyMfaRequest(challenge_id=factor.challenge_id)
        digits = "".join(code.split())
        if passkey:
            proof.passkey.CopyFrom(_passkey(passkey))
        elif _TOTP_CODE.fullmatch(digits):
            proof.totp_code = digits
        else:
            proof.recovery_code = code[:_MAX_CODE]
        return (await self._auth.VerifyMfa(proof)).session

    async def end(self, session: Session) -> None:
        await self._sessions.EndUserSessions(
            EndUserSessionsRequest(user_id=session.user_id, session_id=session.session_id)
        )

    def session_cookie(self, session: Session, call: RequestContext) -> Header:
        lifetime = moment(session.expire_time) - now()
        ticket = self._tickets.issue(tickets.SESSION, call.tenant_id, {"session_id": session.session_id}, lifetime)
        return _set_cookie(SESSION_COOKIE, ticket, call.tenant_id, round(lifetime.total_seconds()))

    def no_session_cookie(self, call: RequestContext) -> Header:
        return _set_cookie(SESSION_COOKIE, "", call.tenant_id, 0)

    async def _recognized(
        self,
        how: str,
        user: _Recognized,
        call: RequestContext,
        *,
        by_two_factors: bool = False,
    ) -> Session | SecondFactor:
        answer = await self._auth.SignInRecognized(
            SignInRecognizedRequest(
                user_id=user.user.user_id,
                credentials_version=user.credentials_version,
                recognized_by=how,
                user_agent=call.user_agent[:512],
                ip_address=call.client_address()[:64],
                two_factors_elsewhere=by_two_factors,
            )
        )
        if answer.HasField("session"):
            return answer.session
        options = json_format.MessageToDict(answer.mfa.passkey_options)
        takes_code = bool({MFA_METHOD_TOTP, MFA_METHOD_RECOVERY_CODE} & set(answer.mfa.methods))
        return SecondFactor(answer.mfa.challenge_id, takes_code, json.dumps(options) if options else "")

    async def _provision(
        self, identity: user_auth_pb2.ResolveIdentityRequest, profile: Mapping[str, Any]
    ) -> _Recognized:
        """A new user with the address that the provider has verified. Never one who exists: an address alone does not
        prove that the two are the same person."""
        email = profile.get("email")
        if not email or profile.get("email_verified") is not True:
            raise NoAccount("The provider does not vouch for an e-mail address of yours.")
        new = user_auth_pb2.LinkIdentityRequest(
            issuer=identity.issuer,
            subject=identity.subject,
            email=str(email),
            display_name=str(profile.get("name") or "")[:200],
        )
        try:
            return await self._users.LinkIdentity(new)
        except InvalidRequest:
            raise NoAccount("The provider gives you an e-mail address that is none.") from None
        except (EmailTaken, IdentityTaken):
            # By the same person in another tab, perhaps.
            with contextlib.suppress(IdentityNotLinked):
                return await self._users.ResolveIdentity(identity)
        raise AddressTaken(
            "There is an account with your e-mail address already. Sign in to it here, and the two are linked."
        )


def by_two_factors(claims: Mapping[str, Any]) -> bool:
    """Whether an upstream provider's ID token says that the user has proved two factors: by `amr` (RFC 8176, section
    2) or by an `acr` that means so."""
    amr = claims.get("amr")
    return (isinstance(amr, list) and "mfa" in amr) or claims.get("acr") in _TWO_FACTORS


def cookies(call: RequestContext) -> dict[str, str]:
    """What the browser sent. A header that is none has no cookies."""
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(call.metadata.get("cookie", "")).items()}
    except CookieError:
        return {}


def browser(call: RequestContext) -> tuple[str, tuple[Header, ...]]:
    """What ties a page to its browser, against forms that another site makes (CSRF), and the cookie to set for it."""
    known = cookies(call).get(BROWSER_COOKIE, "")
    if known:
        return hash_secret(known).hex(), ()
    fresh = new_secret()
    return hash_secret(fresh).hex(), (_set_cookie(BROWSER_COOKIE, fresh, call.tenant_id, None),)


def is_from(browser_mark: str, call: RequestContext) -> bool:
    known = cookies(call).get(BROWSER_COOKIE, "")
    return bool(known) and hmac.compare_digest(hash_secret(known).hex(), browser_mark)


def _set_cookie(name: str, value: str, tenant_id: str, max_age: int | None) -> Header:
    jar: SimpleCookie = SimpleCookie()
    jar[name] = value
    cookie = jar[name]
    cookie["path"] = f"/t/{tenant_id}"
    cookie["httponly"] = cookie["secure"] = True
    cookie["samesite"] = "Lax"
    if max_age is not None:
        cookie["max-age"] = max_age
    return "set-cookie", cookie.OutputString()


def _passkey(answer: str) -> Struct:
    """What the page's script sends. Raises MfaInvalid."""
    try:
        return json_format.Parse(answer, Struct(), max_recursion_depth=_MAX_DEPTH)
    except json_format.ParseError:
        raise MfaInvalid() from None
