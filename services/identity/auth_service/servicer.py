"""AuthService: signing in and out, told to the services that keep users, sessions and tokens."""

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from nexus.identity.auth_service.v1 import auth_service_pb2 as pb
from nexus.identity.auth_service.v1.faults import FactorRequired, SecondFactorMissing
from nexus.identity.session_mgr.v1 import session_mgr_pb2
from nexus.identity.session_mgr.v1.faults import SessionNotFound
from nexus.identity.session_mgr.v1.session_mgr_pb2_grpc import SessionServiceStub
from nexus.identity.token_mgr.v1 import token_mgr_pb2
from nexus.identity.token_mgr.v1.faults import RefreshTokenInvalid, RefreshTokenReused
from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
from nexus.identity.user_auth.v1 import user_auth_pb2
from nexus.identity.user_auth.v1.faults import CredentialsInvalid, UserDisabled, UserNotFound
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from nexus.type.v1.faults import CallerNotAllowed
from services.chassis.clock import moment, now, timestamp
from services.chassis.context import OPERATOR, RequestContext
from services.chassis.fields import FieldCipher
from services.chassis.ids import new_id
from services.chassis.lockout import Lockout
from services.chassis.service import Service
from services.chassis.tenant_settings import TenantSettings
from services.identity.auth_service.challenges import (
    LOGIN,
    PASSKEY_LOGIN,
    REGISTER,
    STEP_UP,
    Challenge,
    Challenges,
    new_challenge,
)
from services.identity.auth_service.factors import FactorRules, Factors
from services.identity.auth_service.passkeys import Json, RelyingParty, passkey_bytes, passkey_id
from services.identity.auth_service.proofs import (
    ELSEWHERE_BY_TWO,
    PASSKEY_ALONE,
    PASSWORD,
    RECOGNIZED,
    SECOND_FACTOR,
    Proof,
    after,
)
from services.identity.auth_service.spec import Config
from services.identity.auth_service.store import FactorStore

_FORGET_SECONDS = 3600.0
_SEAL_SECONDS = 5.0
_TWO_FACTORS = "mfa"  # RFC 8176
_RECOGNIZERS = ("auth-service-v2", OPERATOR)
"""Who may say that it has recognised a user. Others may call us, and sign nobody in."""


class AuthService:
    def __init__(self, service: Service) -> None:
        config: Config = service.config
        self._users = service.clients.stub(UserServiceStub)
        self._sessions = service.clients.stub(SessionServiceStub)
        self._tokens = service.clients.stub(TokenServiceStub)
        self._settings = TenantSettings(service.clients, service.signals)
        self._issuer = config.relying_party_name
        self._challenges = Challenges(service.redis, config.challenge_lifetime)
        self._party = RelyingParty(
            rp_id=config.relying_party_id,
            name=config.relying_party_name,
            origins=config.origins,
            public_url=service.settings.public_url,
        )
        lockout = Lockout(service.database, config.lockout)
        self._factors = FactorRules(
            service.database,
            FactorStore(service.database),
            FieldCipher(service.clients),
            service.sealer,
            lockout,
            self._party,
            config.max_passkeys,
        )
        service.every(_SEAL_SECONDS, self._factors.seal_passkeys)
        service.every(_FORGET_SECONDS, lockout.forget_old)

    async def Login(self, request: pb.LoginRequest, call: RequestContext) -> pb.LoginResponse:
        verified = await self._users.VerifyPassword(
            user_auth_pb2.VerifyPasswordRequest(email=request.email, password=request.password)
        )
        user_id, version = verified.user.user_id, verified.credentials_version
        factors = await self._factors.of(user_id)
        if factors:
            challenge = new_challenge(LOGIN, user_id, version)
            return pb.LoginResponse(mfa=await self._ask(call, challenge, factors))
        tokens, session = await self._sign_in(call, user_id, version, PASSWORD, second_factor=False)
        return pb.LoginResponse(
            tokens=tokens, session=session, second_factor_missing=await self._lacks_factor(session.methods)
        )

    async def VerifyMfa(self, request: pb.VerifyMfaRequest, call: RequestContext) -> pb.VerifyMfaResponse:
        challenge = await self._challenges.find(call.tenant_id, request.challenge_id, LOGIN)
        proof = await self._prove(challenge, request)
        await self._challenges.close(call.tenant_id, request.challenge_id)
        proof = after(challenge.recognized_by, proof)
        tokens, session = await self._sign_in(
            call, challenge.user_id, challenge.credentials_version, proof, second_factor=True, device=challenge
        )
        return pb.VerifyMfaResponse(tokens=tokens, session=session)

    async def StartPasskeyLogin(
        self, request: pb.StartPasskeyLoginRequest, call: RequestContext
    ) -> pb.StartPasskeyLoginResponse:
        challenge = new_challenge(PASSKEY_LOGIN)
        options = self._party.authentication_options(challenge=challenge.signed, allowed=(), verify_user=True)
        return pb.StartPasskeyLoginResponse(
            challenge=pb.MfaChallenge(
                challenge_id=await self._challenges.put(call.tenant_id, challenge),
                methods=[pb.MFA_METHOD_PASSKEY],
                passkey_options=_struct(options),
            )
        )

    async def FinishPasskeyLogin(
        self, request: pb.FinishPasskeyLoginRequest, call: RequestContext
    ) -> pb.FinishPasskeyLoginResponse:
        challenge = await self._challenges.find(call.tenant_id, request.challenge_id, PASSKEY_LOGIN)
        user_id = await self._factors.prove_by_passkey(challenge, _json(request.passkey), verify_user=True)
        await self._challenges.close(call.tenant_id, request.challenge_id)
        try:
            user = await self._users.ResolveUser(user_auth_pb2.ResolveUserRequest(user_id=user_id, access_only=True))
        except (UserNotFound, UserDisabled):
            raise CredentialsInvalid() from None
        tokens, session = await self._sign_in(
            call, user_id, user.credentials_version, PASSKEY_ALONE, second_factor=True
        )
        return pb.FinishPasskeyLoginResponse(tokens=tokens, session=session)

    async def StartStepUp(self, request: pb.StartStepUpRequest, call: RequestContext) -> pb.StartStepUpResponse:
        factors = await self._factors.of(call.user.user_id)
        challenge = new_challenge(STEP_UP, call.user.user_id)
        return pb.StartStepUpResponse(challenge=await self._ask(call, challenge, factors))

    async def StepUp(self, request: pb.StepUpRequest, call: RequestContext) -> pb.StepUpResponse:
        challenge = await self._challenges.find(call.tenant_id, request.challenge_id, STEP_UP, call.user.user_id)
        if request.WhichOneof("proof") == "password":
            if await self._factors.of(call.user.user_id):
                raise FactorRequired()
            await self._users.CheckPassword(
                user_auth_pb2.CheckPasswordRequest(user_id=call.user.user_id, password=request.password)
            )
            proof = PASSWORD
        else:
            proof = await self._prove(challenge, request)
        await self._challenges.close(call.tenant_id, request.challenge_id)
        raised = await self._sessions.SetAssurance(
            session_mgr_pb2.SetAssuranceRequest(
                session_id=call.user.session_id, assurance=proof.assurance, methods=proof.methods
            )
        )
        response = pb.StepUpResponse(session=raised.session)
        if request.refresh_token:
            response.tokens.CopyFrom(await self._refresh(request.refresh_token, of_session=call.user.session_id))
        return response

    async def Logout(self, request: pb.LogoutRequest, call: RequestContext) -> pb.LogoutResponse:
        # If it ended a moment ago, the caller has what they asked for.
        with contextlib.suppress(SessionNotFound):
            await self._sessions.RevokeSession(session_mgr_pb2.RevokeSessionRequest(session_id=call.user.session_id))
        return pb.LogoutResponse()

    async def Refresh(self, request: pb.RefreshRequest, call: RequestContext) -> pb.RefreshResponse:
        return pb.RefreshResponse(tokens=await self._refresh(request.refresh_token))

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

    async def ListFactors(self, request: pb.ListFactorsRequest, call: RequestContext) -> pb.ListFactorsResponse:
        factors = await self._factors.of(call.user.user_id)
        return pb.ListFactorsResponse(
            totp=factors.totp,
            passkeys=await self._shown(factors.passkeys),
            recovery_codes_left=factors.recovery_codes_left,
        )

    async def EnrollTotp(self, request: pb.EnrollTotpRequest, call: RequestContext) -> pb.EnrollTotpResponse:
        user = await self._users.ResolveUser(user_auth_pb2.ResolveUserRequest(user_id=call.user.user_id))
        uri, secret = await self._factors.enroll_totp(call.user.user_id, account=user.user.email, issuer=self._issuer)
        return pb.EnrollTotpResponse(otpauth_uri=uri, totp_secret=secret)

    async def ConfirmTotp(self, request: pb.ConfirmTotpRequest, call: RequestContext) -> pb.ConfirmTotpResponse:
        return pb.ConfirmTotpResponse(recovery_codes=await self._factors.confirm_totp(call.user.user_id, request.code))

    async def RemoveTotp(self, request: pb.RemoveTotpRequest, call: RequestContext) -> pb.RemoveTotpResponse:
        await self._factors.remove_totp(call.user.user_id)
        return pb.RemoveTotpResponse()

    async def StartPasskeyRegistration(
        self, request: pb.StartPasskeyRegistrationRequest, call: RequestContext
    ) -> pb.StartPasskeyRegistrationResponse:
        present = await self._factors.require_room(call.user.user_id)
        user = await self._users.ResolveUser(user_auth_pb2.ResolveUserRequest(user_id=call.user.user_id))
        challenge = new_challenge(REGISTER, call.user.user_id)
        options = self._party.registration_options(
            challenge=challenge.signed,
            user_id=call.user.user_id,
            account=user.user.email,
            display_name=user.user.display_name,
            present=_ids(present),
        )
        return pb.StartPasskeyRegistrationResponse(
            challenge_id=await self._challenges.put(call.tenant_id, challenge), options=_struct(options)
        )

    async def FinishPasskeyRegistration(
        self, request: pb.FinishPasskeyRegistrationRequest, call: RequestContext
    ) -> pb.FinishPasskeyRegistrationResponse:
        challenge = await self._challenges.find(call.tenant_id, request.challenge_id, REGISTER, call.user.user_id)
        await self._challenges.close(call.tenant_id, request.challenge_id)
        passkey, codes = await self._factors.register_passkey(
            call.user.user_id, challenge, _json(request.passkey), request.name
        )
        (shown,) = await self._shown([passkey])
        return pb.FinishPasskeyRegistrationResponse(passkey=shown, recovery_codes=codes)

    async def RemovePasskey(self, request: pb.RemovePasskeyRequest, call: RequestContext) -> pb.RemovePasskeyResponse:
        await self._factors.remove_passkey(call.user.user_id, passkey_bytes(request.passkey_id))
        return pb.RemovePasskeyResponse()

    async def RegenerateRecoveryCodes(
        self, request: pb.RegenerateRecoveryCodesRequest, call: RequestContext
    ) -> pb.RegenerateRecoveryCodesResponse:
        return pb.RegenerateRecoveryCodesResponse(
            recovery_codes=await self._factors.new_recovery_codes(call.user.user_id)
        )

    async def SignInRecognized(
        self, request: pb.SignInRecognizedRequest, call: RequestContext
    ) -> pb.SignInRecognizedResponse:
        if call.caller not in _RECOGNIZERS:
            raise CallerNotAllowed(caller=call.caller or "", method=call.method.full_name)
        challenge = replace(
            new_challenge(LOGIN, request.user_id, request.credentials_version),
            recognized_by=request.recognized_by,
            user_agent=request.user_agent,
            ip_address=request.ip_address,
        )
        factors = await self._factors.of(request.user_id)
        by_two = request.recognized_by == "fed" and request.two_factors_elsewhere
        if factors and not by_two:
            return pb.SignInRecognizedResponse(mfa=await self._ask(call, challenge, factors))
        proof = ELSEWHERE_BY_TWO if by_two else RECOGNIZED[request.recognized_by]
        if await self._lacks_factor(proof.methods):
            raise SecondFactorMissing()
        tokens, session = await self._sign_in(
            call, request.user_id, request.credentials_version, proof, second_factor=bool(factors), device=challenge
        )
        return pb.SignInRecognizedResponse(tokens=tokens, session=session)

    async def ListUserFactors(
        self, request: pb.ListUserFactorsRequest, call: RequestContext
    ) -> pb.ListUserFactorsResponse:
        factors = await self._factors.of(request.user_id)
        names = await self._factors.names_of(factors.passkeys)
        return pb.ListUserFactorsResponse(
            factors=user_auth_pb2.SecondFactors(
                totp=factors.totp,
                passkeys=[
                    user_auth_pb2.SecurityKey(
                        name=names.get(row["credential_id"], ""),
                        create_time=timestamp(row["create_time"]),
                        last_used_time=timestamp(row["last_used_time"]) if row["last_used_time"] else None,
                    )
                    for row in factors.passkeys
                ],
                recovery_codes_left=factors.recovery_codes_left,
            )
        )

    async def _shown(self, passkeys: Sequence[Mapping[str, Any]]) -> list[pb.Passkey]:
        names = await self._factors.names_of(passkeys)
        return [_passkey(row, names.get(row["credential_id"], "")) for row in passkeys]

    async def _ask(self, call: RequestContext, challenge: Challenge, factors: Factors) -> pb.MfaChallenge:
        """The challenge as the user sees it: any of their factors answers it, or the password if they have none."""
        asked = pb.MfaChallenge(challenge_id=await self._challenges.put(call.tenant_id, challenge))
        if factors.totp:
            asked.methods.append(pb.MFA_METHOD_TOTP)
        if factors.passkeys:
            asked.methods.append(pb.MFA_METHOD_PASSKEY)
            options = self._party.authentication_options(
                challenge=challenge.signed, allowed=_ids(factors.passkeys), verify_user=False
            )
            asked.passkey_options.CopyFrom(_struct(options))
        if factors.recovery_codes_left:
            asked.methods.append(pb.MFA_METHOD_RECOVERY_CODE)
        if not factors:
            asked.methods.append(pb.MFA_METHOD_PASSWORD)
        return asked

    async def _prove(self, challenge: Challenge, request: pb.VerifyMfaRequest | pb.StepUpRequest) -> Proof:
        """Check the second factor in a request. Raises MfaInvalid or MfaLocked."""
        kind = request.WhichOneof("proof")
        if kind == "totp_code":
            await self._factors.prove_by_totp(challenge.user_id, request.totp_code)
        elif kind == "recovery_code":
            await self._factors.prove_by_recovery_code(challenge.user_id, request.recovery_code)
        else:
            await self._factors.prove_by_passkey(challenge, _json(request.passkey), verify_user=False)
        return SECOND_FACTOR[kind or ""]

    async def _sign_in(
        self,
        call: RequestContext,
        user_id: str,
        credentials_version: int,
        proof: Proof,
        *,
        second_factor: bool,
        device: Challenge | None = None,
    ) -> tuple[pb.Tokens, session_mgr_pb2.Session]:
        """Open a session and issue its tokens. `device` says whose the browser is, if another service speaks for it."""
        elsewhere = device if device is not None and device.recognized_by else None
        opened = await self._sessions.CreateSession(
            session_mgr_pb2.CreateSessionRequest(
                user_id=user_id,
                user_agent=elsewhere.user_agent if elsewhere else call.user_agent[:512],
                ip_address=elsewhere.ip_address if elsewhere else call.client_address()[:64],
                request_id=new_id(),
                assurance=proof.assurance,
                methods=proof.methods,
            )
        )
        session = opened.session
        # Asked only now: whoever changes the password or disables the user from here on finds this session.
        try:
            user = await self._users.ConfirmSignIn(
                user_auth_pb2.ConfirmSignInRequest(user_id=user_id, credentials_version=credentials_version)
            )
        except CredentialsInvalid:
            await self._sessions.EndUserSessions(
                session_mgr_pb2.EndUserSessionsRequest(user_id=user_id, session_id=session.session_id)
            )
            raise
        issued = await self._tokens.IssueTokens(
            token_mgr_pb2.IssueTokensRequest(
                user_id=user_id,
                session_id=session.session_id,
                permissions=await self._permitted(user.permissions, session, second_factor=second_factor),
                session_expire_time=session.expire_time,
                assurance=session.assurance,
                methods=session.methods,
                auth_time=session.auth_time,
                second_factor=second_factor,
            )
        )
        return _tokens(issued.tokens), session

    async def _lacks_factor(self, methods: Sequence[str]) -> bool:
        """Whether a second factor is required of a user who has none, and who has not proved two to an upstream
        provider."""
        return _TWO_FACTORS not in methods and await self._settings.flag("security.require_mfa")

    async def _permitted(
        self, permissions: Sequence[str], session: session_mgr_pb2.Session, *, second_factor: bool
    ) -> Sequence[str]:
        """What of it tokens may say: nothing for who lacks a second factor. They can still set one up."""
        return () if not second_factor and await self._lacks_factor(session.methods) else permissions

    async def _refresh(self, refresh_token: str, *, of_session: str | None = None) -> pb.Tokens:
        """Exchange a refresh token of the platform's own sign-in. Raises RefreshTokenInvalid or RefreshTokenReused."""
        owner = await self._tokens.InspectRefreshToken(
            token_mgr_pb2.InspectRefreshTokenRequest(refresh_token=refresh_token)
        )
        if owner.client_id or of_session not in (None, owner.session_id):
            raise RefreshTokenInvalid()
        # The token is spent last: if the session or the user cannot be read, the client may try again with it.
        try:
            touched, user, factors = await asyncio.gather(
                self._sessions.TouchSession(session_mgr_pb2.TouchSessionRequest(session_id=owner.session_id)),
                self._users.ResolveUser(user_auth_pb2.ResolveUserRequest(user_id=owner.user_id, access_only=True)),
                self._factors.of(owner.user_id),
            )
        except (SessionNotFound, UserNotFound, UserDisabled):
            raise RefreshTokenInvalid() from None
        try:
            refreshed = await self._tokens.RefreshTokens(
                token_mgr_pb2.RefreshTokensRequest(
                    refresh_token=refresh_token,
                    permissions=await self._permitted(user.permissions, touched.session, second_factor=bool(factors)),
                    assurance=touched.session.assurance,
                    methods=touched.session.methods,
                    auth_time=touched.session.auth_time,
                    second_factor=bool(factors),
                )
            )
        except RefreshTokenReused:
            # Whoever copied the token may hold an access token too.
            await self._sessions.EndUserSessions(
                session_mgr_pb2.EndUserSessionsRequest(user_id=owner.user_id, session_id=owner.session_id)
            )
            raise
        return _tokens(refreshed.tokens)


def _tokens(pair: token_mgr_pb2.TokenPair) -> pb.Tokens:
    lifetime = moment(pair.access_expire_time) - now()
    return pb.Tokens(
        access_token=pair.access_token,
        refresh_token=pair.refresh_token,
        token_type="Bearer",  # noqa: S106
        expires_in=max(0, round(lifetime.total_seconds())),
    )


def _passkey(row: Mapping[str, Any], name: str) -> pb.Passkey:
    return pb.Passkey(
        passkey_id=passkey_id(row["credential_id"]),
        name=name,
        create_time=timestamp(row["create_time"]),
        last_used_time=timestamp(row["last_used_time"]) if row["last_used_time"] else None,
        backed_up=row["backed_up"],
    )


def _ids(passkeys: Iterable[Mapping[str, Any]]) -> list[bytes]:
    return [row["credential_id"] for row in passkeys]


def _struct(value: Json) -> Struct:
    return json_format.ParseDict(value, Struct())


def _json(value: Struct) -> Json:
    result: Json = json_format.MessageToDict(value)
    return result
