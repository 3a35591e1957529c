"""AuthService: signing in and out, told to the services that keep users, sessions and tokens."""

import asyncio
import contextlib

from nexus.identity.auth_service.v1 import auth_service_pb2 as pb
from nexus.identity.session_mgr.v1 import session_mgr_pb2
from nexus.identity.session_mgr.v1.faults import SessionNotFound
from nexus.identity.session_mgr.v1.session_mgr_pb2_grpc import SessionServiceStub
from nexus.identity.token_mgr.v1 import token_mgr_pb2
from nexus.identity.token_mgr.v1.faults import RefreshTokenInvalid, RefreshTokenReused
from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
from nexus.identity.user_auth.v1 import user_auth_pb2
from nexus.identity.user_auth.v1.faults import UserNotFound
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from services.chassis.clock import moment, now
from services.chassis.context import RequestContext
from services.chassis.ids import new_id
from services.chassis.service import Service


class AuthService:
    def __init__(self, service: Service) -> None:
        self._users = service.clients.stub(UserServiceStub)
        self._sessions = service.clients.stub(SessionServiceStub)
        self._tokens = service.clients.stub(TokenServiceStub)

    async def Login(self, request: pb.LoginRequest, call: RequestContext) -> pb.LoginResponse:
        verified = await self._users.VerifyPassword(
            user_auth_pb2.VerifyPasswordRequest(email=request.email, password=request.password)
        )
        opened = await self._sessions.CreateSession(
            session_mgr_pb2.CreateSessionRequest(
                user_id=verified.user.user_id,
                user_agent=call.user_agent[:512],
                ip_address=call.client_address()[:64],
                request_id=new_id(),
            )
        )
        issued = await self._tokens.IssueTokens(
            token_mgr_pb2.IssueTokensRequest(
                user_id=verified.user.user_id,
                session_id=opened.session.session_id,
                permissions=verified.permissions,
                session_expire_time=opened.session.expire_time,
            )
        )
        return pb.LoginResponse(tokens=_tokens(issued.tokens), session=opened.session)

    async def Logout(self, request: pb.LogoutRequest, call: RequestContext) -> pb.LogoutResponse:
        # If it ended a moment ago, the caller has what they asked for.
        with contextlib.suppress(SessionNotFound):
            await self._sessions.RevokeSession(session_mgr_pb2.RevokeSessionRequest(session_id=call.user.session_id))
        return pb.LogoutResponse()

    async def Refresh(self, request: pb.RefreshRequest, call: RequestContext) -> pb.RefreshResponse:
        owner = await self._tokens.InspectRefreshToken(
            token_mgr_pb2.InspectRefreshTokenRequest(refresh_token=request.refresh_token)
        )
        # The token is spent last: if the session or the user cannot be read, the client may try again with it.
        try:
            _, user = await asyncio.gather(
                self._sessions.TouchSession(session_mgr_pb2.TouchSessionRequest(session_id=owner.session_id)),
                self._users.ResolveUser(user_auth_pb2.ResolveUserRequest(user_id=owner.user_id)),
            )
        except (SessionNotFound, UserNotFound):
            raise RefreshTokenInvalid() from None
        try:
            refreshed = await self._tokens.RefreshTokens(
                token_mgr_pb2.RefreshTokensRequest(refresh_token=request.refresh_token, permissions=user.permissions)
            )
        except RefreshTokenReused:
            # Whoever copied the token may hold an access token too.
            await self._sessions.EndUserSessions(
                session_mgr_pb2.EndUserSessionsRequest(user_id=owner.user_id, session_id=owner.session_id)
            )
            raise
        return pb.RefreshResponse(tokens=_tokens(refreshed.tokens))

    async def GetMe(self, request: pb.GetMeRequest, call: RequestContext) -> pb.GetMeResponse:
        resolved = await self._users.ResolveUser(user_auth_pb2.ResolveUserRequest(user_id=call.user.user_id))
        response = pb.GetMeResponse(
            user=resolved.user,
            tenant_id=call.tenant_id,
            session_id=call.user.session_id,
            permissions=resolved.permissions,
        )
        response.token_expire_time.FromSeconds(call.user.token_expires)
        return response


def _tokens(pair: token_mgr_pb2.TokenPair) -> pb.Tokens:
    lifetime = moment(pair.access_expire_time) - now()
    return pb.Tokens(
        access_token=pair.access_token,
        refresh_token=pair.refresh_token,
        token_type="Bearer",  # noqa: S106
        expires_in=max(0, round(lifetime.total_seconds())),
    )
