"""UserService: proto to rules and back."""

import asyncpg
import email_validator

from nexus.identity.session_mgr.v1.session_mgr_pb2 import EndUserSessionsRequest
from nexus.identity.session_mgr.v1.session_mgr_pb2_grpc import SessionServiceStub
from nexus.identity.user_auth.v1 import user_auth_pb2 as pb
from nexus.identity.user_auth.v1.faults import CodeInvalid, CredentialsInvalid, EmailNotVerified, UserNotFound
from services.chassis.clock import now, timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import hash_secret, new_id, new_secret
from services.chassis.service import Service
from services.identity.user_auth import passwords
from services.identity.user_auth.roles import permissions_of
from services.identity.user_auth.spec import Config
from services.identity.user_auth.store import UserStore

_FORGET_CODES_SECONDS = 3600.0


class UserService:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._store = UserStore(service.database)
        self._database = service.database
        self._mailer = service.mailer
        self._sessions = service.clients.stub(SessionServiceStub)
        service.every(_FORGET_CODES_SECONDS, self._store.forget_expired_codes)

    async def Register(self, request: pb.RegisterRequest, call: RequestContext) -> pb.RegisterResponse:
        self._require_strong(request.password, request.email, request.display_name)
        password_hash = await passwords.hash_password(request.password)
        async with self._database.transaction():
            user = await self._store.insert(
                new_id(), request.email, _email_key(request.email), request.display_name, password_hash
            )
            await self._mail_code(user)
        return pb.RegisterResponse(user=_user(user))

    async def VerifyEmail(self, request: pb.VerifyEmailRequest, call: RequestContext) -> pb.VerifyEmailResponse:
        user = await self._store.verify_by_code(hash_secret(request.code.strip()))
        if user is None:
            raise CodeInvalid()
        return pb.VerifyEmailResponse(user=_user(user))

    async def ResendVerification(
        self, request: pb.ResendVerificationRequest, call: RequestContext
    ) -> pb.ResendVerificationResponse:
        user = await self._store.by_email(_email_key(request.email))
        if user is not None and not user["email_verified"]:
            async with self._database.transaction():
                await self._mail_code(user)
        return pb.ResendVerificationResponse()

    async def GetUser(self, request: pb.GetUserRequest, call: RequestContext) -> pb.GetUserResponse:
        return pb.GetUserResponse(user=_user(await self._require(request.user_id)))

    async def ResolveUser(self, request: pb.ResolveUserRequest, call: RequestContext) -> pb.ResolveUserResponse:
        user = await self._require(request.user_id)
        return pb.ResolveUserResponse(user=_user(user), permissions=permissions_of(user["roles"]))

    async def ChangePassword(
        self, request: pb.ChangePasswordRequest, call: RequestContext
    ) -> pb.ChangePasswordResponse:
        user = await self._require(call.user.user_id)
        if not await passwords.matches(user["password_hash"], request.current_password):
            raise CredentialsInvalid()
        self._require_strong(request.new_password, user["email"], user["display_name"])
        password_hash = await passwords.hash_password(request.new_password)
        # The sessions end before the password is committed: nobody stays signed in with the old one.
        async with self._database.transaction():
            await self._store.set_password(user["user_id"], password_hash)
            ended = await self._sessions.EndUserSessions(EndUserSessionsRequest(user_id=user["user_id"]))
        return pb.ChangePasswordResponse(ended_sessions=ended.ended_sessions)

    async def VerifyPassword(
        self, request: pb.VerifyPasswordRequest, call: RequestContext
    ) -> pb.VerifyPasswordResponse:
        user = await self._store.by_email(_email_key(request.email))
        if not await passwords.matches(user["password_hash"] if user else None, request.password):
            raise CredentialsInvalid()
        assert user is not None, "nothing matches the hash of nobody"
        if not user["email_verified"]:
            raise EmailNotVerified()
        if passwords.needs_rehash(user["password_hash"]):
            await self._store.set_password(user["user_id"], await passwords.hash_password(request.password))
        return pb.VerifyPasswordResponse(user=_user(user), permissions=permissions_of(user["roles"]))

    async def ProvisionUser(self, request: pb.ProvisionUserRequest, call: RequestContext) -> pb.ProvisionUserResponse:
        self._require_strong(request.password, request.email, request.display_name)
        user = await self._store.upsert_verified(
            new_id(),
            request.email,
            _email_key(request.email),
            request.display_name,
            await passwords.hash_password(request.password),
            list(request.roles),
        )
        return pb.ProvisionUserResponse(user=_user(user))

    async def _require(self, user_id: str) -> asyncpg.Record:
        user = await self._store.by_id(user_id)
        if user is None:
            raise UserNotFound(user_id=user_id)
        return user

    def _require_strong(self, password: str, email: str, display_name: str) -> None:
        passwords.require_strong(password, min_length=self._config.password_min_length, personal=(email, display_name))

    async def _mail_code(self, user: asyncpg.Record) -> None:
        code = new_secret()
        await self._store.replace_code(user["user_id"], hash_secret(code), now() + self._config.verification_lifetime)
        await self._mailer.send(
            user["email"],
            "Verify your e-mail address",
            f"Welcome{', ' + user['display_name'] if user['display_name'] else ''}!\n\n"
            f"Your verification code is:\n\n    {code}\n\n"
            "If you did not register, ignore this mail.\n",
        )


def _email_key(email: str) -> str:
    """The address as it is compared. One that cannot be parsed belongs to nobody and is compared as it is."""
    try:
        return email_validator.validate_email(email, check_deliverability=False).normalized.casefold()
    except email_validator.EmailNotValidError:
        return email.casefold()


def _user(row: asyncpg.Record) -> pb.User:
    return pb.User(
        user_id=row["user_id"],
        email=row["email"],
        display_name=row["display_name"],
        email_verified=row["email_verified"],
        roles=row["roles"],
        create_time=timestamp(row["create_time"]),
    )
