"""Users at the pages: the session that their browser holds, and how they get one."""

import hmac
from dataclasses import dataclass
from datetime import datetime
from http.cookies import CookieError, SimpleCookie
from typing import Any

from nexus.identity.auth_service.v1.auth_service_pb2 import LoginRequest
from nexus.identity.auth_service.v1.auth_service_pb2_grpc import AuthServiceStub
from nexus.identity.session_mgr.v1 import session_mgr_pb2
from nexus.identity.session_mgr.v1.faults import SessionNotFound
from nexus.identity.session_mgr.v1.session_mgr_pb2_grpc import SessionServiceStub
from nexus.identity.token_mgr.v1.token_mgr_pb2 import IssueTokensRequest
from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
from nexus.identity.user_auth.v1 import user_auth_pb2
from nexus.identity.user_auth.v1.faults import EmailTaken
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from services.chassis.clock import moment, now
from services.chassis.context import RequestContext
from services.chassis.ids import hash_secret, new_id, new_secret
from services.chassis.service import Service
from services.identity.auth_service_v2 import tickets
from services.identity.auth_service_v2.store import ProviderStore
from services.identity.auth_service_v2.tickets import Tickets

SESSION_COOKIE = "nexus_session"
BROWSER_COOKIE = "nexus_browser"
Header = tuple[str, str]


class SecondFactorNeeded(Exception):  # noqa: N818  an answer, not a failure
    """The user has a second factor, which these pages cannot ask for."""


class NoAccount(Exception):  # noqa: N818
    """An upstream identity belongs to no user and cannot be given one. The message is for the user."""


@dataclass(frozen=True)
class BrowserSession:
    """A user who is signed in."""

    session_id: str
    user_id: str
    auth_time: datetime
    expires: datetime


class Accounts:
    """Sessions of browsers."""

    def __init__(self, service: Service, sealed: Tickets) -> None:
        self._tickets = sealed
        self._database = service.database
        self._providers = ProviderStore(service.database)
        self._auth = service.clients.stub(AuthServiceStub)
        self._users = service.clients.stub(UserServiceStub)
        self._sessions = service.clients.stub(SessionServiceStub)
        self._tokens = service.clients.stub(TokenServiceStub)

    async def session(self, call: RequestContext) -> BrowserSession | None:
        """The live session that the browser's cookie stands for."""
        ticket = self._tickets.read(tickets.SESSION, call.tenant_id, cookies(call).get(SESSION_COOKIE, ""))
        if ticket is None:
            return None
        return await self.touch(ticket["session_id"])

    async def touch(self, session_id: str) -> BrowserSession | None:
        """A session, counted as used now; None if it has ended."""
        try:
            answer = await self._sessions.TouchSession(session_mgr_pb2.TouchSessionRequest(session_id=session_id))
        except SessionNotFound:
            return None
        return _session(answer.session)

    async def sign_in(self, email: str, password: str) -> BrowserSession:
        """Raises auth-service's faults, and SecondFactorNeeded."""
        answer = await self._auth.Login(LoginRequest(email=email, password=password))
        if not answer.HasField("session"):
            raise SecondFactorNeeded
        return _session(answer.session)

    async def sign_in_from(
        self, provider_id: str, subject: str, profile: dict[str, Any], call: RequestContext
    ) -> BrowserSession:
        """Open a session for the user of an upstream identity, a new one if it has none. Raises NoAccount."""
        user_id = await self._providers.owner_of(provider_id, subject)
        if user_id is None:
            async with self._database.transaction():
                await self._providers.lock_identity(provider_id, subject)
                user_id = await self._providers.owner_of(provider_id, subject)
                if user_id is None:
                    user_id = await self._provision(profile)
                    await self._providers.link(provider_id, subject, user_id)
        resolved = await self._users.ResolveUser(user_auth_pb2.ResolveUserRequest(user_id=user_id))
        opened = await self._sessions.CreateSession(
            session_mgr_pb2.CreateSessionRequest(
                user_id=user_id,
                user_agent=call.user_agent[:512],
                ip_address=call.client_address()[:64],
                request_id=new_id(),
            )
        )
        # The session's own family is what its grants end with.
        await self._tokens.IssueTokens(
            IssueTokensRequest(
                user_id=user_id,
                session_id=opened.session.session_id,
                permissions=resolved.permissions,
                session_expire_time=opened.session.expire_time,
            )
        )
        return _session(opened.session)

    async def end(self, session: BrowserSession) -> None:
        await self._sessions.EndUserSessions(
            session_mgr_pb2.EndUserSessionsRequest(user_id=session.user_id, session_id=session.session_id)
        )

    def session_cookie(self, session: BrowserSession, call: RequestContext) -> Header:
        lifetime = session.expires - now()
        ticket = self._tickets.issue(tickets.SESSION, call.tenant_id, {"session_id": session.session_id}, lifetime)
        return _set_cookie(SESSION_COOKIE, ticket, call.tenant_id, round(lifetime.total_seconds()))

    def no_session_cookie(self, call: RequestContext) -> Header:
        return _set_cookie(SESSION_COOKIE, "", call.tenant_id, 0)

    async def _provision(self, profile: dict[str, Any]) -> str:
        """A new user with the address that the provider has verified. Never one who exists: an address alone does not
        prove that the two are the same person."""
        email = profile.get("email")
        if not email or profile.get("email_verified") is not True:
            raise NoAccount("The provider does not vouch for an e-mail address of yours.")
        password, name = new_secret(), str(profile.get("name") or "")[:200]
        try:
            await self._users.Register(
                user_auth_pb2.RegisterRequest(email=email, password=password, display_name=name, request_id=new_id())
            )
        except EmailTaken:
            raise NoAccount(
                "There is an account with your e-mail address already: sign in with its password."
            ) from None
        provisioned = await self._users.ProvisionUser(
            user_auth_pb2.ProvisionUserRequest(email=email, password=password, display_name=name)
        )
        user_id: str = provisioned.user.user_id
        return user_id


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


def _session(session: session_mgr_pb2.Session) -> BrowserSession:
    return BrowserSession(session.session_id, session.user_id, moment(session.create_time), moment(session.expire_time))
