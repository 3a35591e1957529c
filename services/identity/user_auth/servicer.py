"""UserService: proto to rules and back."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import asyncpg

from nexus.identity.session_mgr.v1.session_mgr_pb2 import EndUserSessionsRequest
from nexus.identity.session_mgr.v1.session_mgr_pb2_grpc import SessionServiceStub
from nexus.identity.user_auth.v1 import events_pb2
from nexus.identity.user_auth.v1 import user_auth_pb2 as pb
from nexus.identity.user_auth.v1.faults import (
    CodeInvalid,
    CredentialsInvalid,
    EmailNotVerified,
    EmailTaken,
    IdentityNotLinked,
    RegistrationClosed,
    SignInLocked,
    UserChanged,
    UserDisabled,
    UserNotFound,
)
from services.chassis.clock import timestamp
from services.chassis.context import RequestContext
from services.chassis.fields import FieldCipher, seal_rows
from services.chassis.ids import hash_secret, new_id
from services.chassis.lockout import Lockout
from services.chassis.paging import Pager
from services.chassis.quotas import Quotas
from services.chassis.service import Service
from services.chassis.tenant_settings import TenantSettings
from services.identity.user_auth import passwords
from services.identity.user_auth.access import Access
from services.identity.user_auth.breaches import BreachedPasswords
from services.identity.user_auth.exporting import Exporter
from services.identity.user_auth.identities import Identities, Identity
from services.identity.user_auth.mailing import INVITE, RECOVER, SEND_SECONDS, VERIFY, CodeMailer
from services.identity.user_auth.passwords import Policy
from services.identity.user_auth.profiles import Profile, Profiles
from services.identity.user_auth.roles import BUILT_IN, Rule, known_permissions
from services.identity.user_auth.spec import Config
from services.identity.user_auth.store import UNSEALED, IdentityStore, RoleStore, UserStore

USERS = "users"
"""The quota of users that there are."""
_FORGET_SECONDS = 3600.0
_SEAL_SECONDS = 5.0
_STATES = {"active": pb.USER_STATE_ACTIVE, "disabled": pb.USER_STATE_DISABLED}


class UserService:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._database = service.database
        self._events = service.events
        cipher = FieldCipher(service.clients)
        self._profiles = Profiles(cipher, service.sealer)
        self._settings = TenantSettings(service.clients, service.signals)
        self._pager = Pager(service.sealer)
        self._sessions = service.clients.stub(SessionServiceStub)
        self._store = UserStore(service.database)
        self._roles = RoleStore(service.database)
        self._identities = Identities(service.database, IdentityStore(service.database), cipher, service.sealer)
        self._access = Access(service.database, self._store, self._roles)
        self._quotas = Quotas(service.clients, service.database)
        url = self._config.breached_passwords_url
        self._breached = BreachedPasswords(url) if url is not None else None
        self._exporter = Exporter(service.clients)
        self._codes = CodeMailer(service.database, self._store, self._profiles, service.mailer, self._config)
        self._lockout = Lockout(service.database, self._config.lockout)
        service.every(_SEAL_SECONDS, self._seal_profiles)
        service.every(_SEAL_SECONDS, self._identities.seal_rows)
        service.every(SEND_SECONDS, self._codes.send_requested)
        service.every(_FORGET_SECONDS, self._store.forget_expired)
        service.every(_FORGET_SECONDS, self._lockout.forget_old)

    async def Register(self, request: pb.RegisterRequest, call: RequestContext) -> pb.RegisterResponse:
        if await self._settings.text("security.registration") != "open":
            raise RegistrationClosed()
        await self._require_strong(request.password, Profile(request.email, request.display_name))
        password_hash = await passwords.hash_password(request.password)
        async with self._database.transaction():
            user = await self._insert(request.email, request.display_name, password_hash)
            await self._codes.send(user, VERIFY)
        return pb.RegisterResponse(user=await self._shown(user))

    async def VerifyEmail(self, request: pb.VerifyEmailRequest, call: RequestContext) -> pb.VerifyEmailResponse:
        async with self._database.transaction():
            user_id = await self._store.spend_code(VERIFY, hash_secret(request.code.strip()))
            user = await self._store.mark_verified(user_id) if user_id is not None else None
        if user is None:
            raise CodeInvalid()
        return pb.VerifyEmailResponse(user=await self._shown(user))

    async def ResendVerification(
        self, request: pb.ResendVerificationRequest, call: RequestContext
    ) -> pb.ResendVerificationResponse:
        await self._store.request_mail(self._profiles.address(request.email).digest, VERIFY)
        return pb.ResendVerificationResponse()

    async def StartRecovery(self, request: pb.StartRecoveryRequest, call: RequestContext) -> pb.StartRecoveryResponse:
        await self._store.request_mail(self._profiles.address(request.email).digest, RECOVER)
        return pb.StartRecoveryResponse()

    async def CompleteRecovery(
        self, request: pb.CompleteRecoveryRequest, call: RequestContext
    ) -> pb.CompleteRecoveryResponse:
        # A password that is refused leaves the code as it was.
        async with self._database.transaction():
            user_id = await self._store.spend_code(RECOVER, hash_secret(request.code.strip()))
            user = await self._store.by_id(user_id, lock="FOR UPDATE") if user_id is not None else None
            if user is None or user["state"] != "active":
                raise CodeInvalid()
            profile = await self._profiles.of(user)
            await self._require_strong(request.new_password, profile)
            password_hash = await passwords.hash_password(request.new_password)
            await self._store.set_password(user["user_id"], password_hash, verified=True)
            await self._lockout.clear(self._profiles.digest_of(user))
            ended = await self._end_sessions(user)
        return pb.CompleteRecoveryResponse(ended_sessions=ended)

    async def ResetPassword(self, request: pb.ResetPasswordRequest, call: RequestContext) -> pb.ResetPasswordResponse:
        async with self._database.transaction():
            user = await self._require(request.user_id, lock="FOR UPDATE")
            await self._access.require_over(call.user, user)
            await self._store.set_password(user["user_id"], None)
            await self._codes.send(user, RECOVER)
            ended = await self._end_sessions(user)
        return pb.ResetPasswordResponse(ended_sessions=ended)

    async def GetUser(self, request: pb.GetUserRequest, call: RequestContext) -> pb.GetUserResponse:
        return pb.GetUserResponse(user=await self._shown(await self._require(request.user_id)))

    async def ListUsers(self, request: pb.ListUsersRequest, call: RequestContext) -> pb.ListUsersResponse:
        email = request.email or request.email_prefix
        if email:
            found = await self._store.by_email(self._profiles.address(email))
            rows = [found] if found is not None and _fits(found, request) else []
            return pb.ListUsersResponse(users=await self._all_shown(rows))
        users = partial(self._store.page, state=_state(request), role=request.role)
        rows, more = await self._pager.page(request, call, users, by="user_id")
        return pb.ListUsersResponse(users=await self._all_shown(rows), next_page_token=more)

    async def UpdateUser(self, request: pb.UpdateUserRequest, call: RequestContext) -> pb.UpdateUserResponse:
        asked = request.user
        async with self._database.transaction():
            user = await self._require(asked.user_id, lock="FOR UPDATE")
            if asked.etag and asked.etag != str(user["version"]):
                raise UserChanged()
            # Whoever decides on the address decides on the account: recovery goes there.
            await self._access.require_over(call.user, user)
            present = await self._profiles.of(user)
            profile = Profile(
                asked.email if "email" in request.update_mask.paths and asked.email else present.email,
                asked.display_name if "display_name" in request.update_mask.paths else present.display_name,
            )
            address = self._profiles.address(profile.email)
            moved = address != self._profiles.address(present.email)
            if moved and await self._store.by_email(address) is not None:
                raise EmailTaken()
            sealed = await self._profiles.seal(user["user_id"], profile)
            updated = await self._store.update(user["user_id"], sealed, address.digest, moved=moved)
            if moved:
                await self._store.forget_codes(user["user_id"], RECOVER)
                await self._codes.send(updated, VERIFY)
        return pb.UpdateUserResponse(user=await self._shown(updated))

    async def DisableUser(self, request: pb.DisableUserRequest, call: RequestContext) -> pb.DisableUserResponse:
        async with self._database.transaction():
            user = await self._require_to_let_go(request.user_id, call)
            if user["state"] == "disabled":
                return pb.DisableUserResponse(user=await self._shown(user))
            disabled = await self._store.set_state(user["user_id"], "disabled")
            await self._events.publish(events_pb2.UserDisabled(user_id=user["user_id"]), aggregate=user["user_id"])
            ended = await self._end_sessions(user)
        return pb.DisableUserResponse(user=await self._shown(disabled), ended_sessions=ended)

    async def EnableUser(self, request: pb.EnableUserRequest, call: RequestContext) -> pb.EnableUserResponse:
        async with self._database.transaction():
            user = await self._require(request.user_id, lock="FOR UPDATE")
            await self._access.require_over(call.user, user)
            if user["state"] != "active":
                user = await self._store.set_state(user["user_id"], "active")
        return pb.EnableUserResponse(user=await self._shown(user))

    async def ExportUser(self, request: pb.ExportUserRequest, call: RequestContext) -> pb.ExportUserResponse:
        return pb.ExportUserResponse(export=await self._export(request.user_id))

    async def ExportMe(self, request: pb.ExportMeRequest, call: RequestContext) -> pb.ExportMeResponse:
        return pb.ExportMeResponse(export=await self._export(call.user.user_id))

    async def EraseUser(self, request: pb.EraseUserRequest, call: RequestContext) -> pb.EraseUserResponse:
        await self._erase(request.user_id, call)
        return pb.EraseUserResponse()

    async def EraseMe(self, request: pb.EraseMeRequest, call: RequestContext) -> pb.EraseMeResponse:
        user = await self._require(call.user.user_id)
        await self._prove(self._profiles.digest_of(user), user, request.password)
        await self._erase(user["user_id"], call)
        return pb.EraseMeResponse()

    async def ResolveUser(self, request: pb.ResolveUserRequest, call: RequestContext) -> pb.ResolveUserResponse:
        user = await self._require(request.user_id)
        if user["state"] != "active":
            raise UserDisabled()
        return pb.ResolveUserResponse(
            user=_user(user) if request.access_only else await self._shown(user),
            permissions=await self._access.permissions(user),
            credentials_version=user["credentials_version"],
        )

    async def ChangePassword(
        self, request: pb.ChangePasswordRequest, call: RequestContext
    ) -> pb.ChangePasswordResponse:
        user = await self._require(call.user.user_id)
        profile = await self._profiles.of(user)
        await self._prove(self._profiles.digest_of(user), user, request.current_password)
        await self._require_strong(request.new_password, profile)
        password_hash = await passwords.hash_password(request.new_password)
        # The sessions end before the password is committed: nobody stays signed in with the old one.
        async with self._database.transaction():
            await self._store.set_password(user["user_id"], password_hash)
            ended = await self._end_sessions(user)
        return pb.ChangePasswordResponse(ended_sessions=ended)

    async def VerifyPassword(
        self, request: pb.VerifyPasswordRequest, call: RequestContext
    ) -> pb.VerifyPasswordResponse:
        address = self._profiles.address(request.email)
        user = await self._prove(address.digest, await self._store.by_email(address), request.password)
        if user["state"] != "active":
            raise UserDisabled()
        if not user["email_verified"]:
            raise EmailNotVerified()
        if passwords.needs_rehash(user["password_hash"]):
            password_hash = await passwords.hash_password(request.password)
            await self._store.rehash(user["user_id"], user["password_hash"], password_hash)
        return pb.VerifyPasswordResponse(
            user=_user(user),
            permissions=await self._access.permissions(user),
            credentials_version=user["credentials_version"],
        )

    async def CheckPassword(self, request: pb.CheckPasswordRequest, call: RequestContext) -> pb.CheckPasswordResponse:
        user = await self._require(request.user_id)
        await self._prove(self._profiles.digest_of(user), user, request.password)
        return pb.CheckPasswordResponse()

    async def ConfirmSignIn(self, request: pb.ConfirmSignInRequest, call: RequestContext) -> pb.ConfirmSignInResponse:
        # Waits for whoever is changing the user: they end the sessions that they see, this one is told the rest.
        user = await self._store.by_id(request.user_id, lock="FOR SHARE")
        if user is None or user["state"] != "active" or user["credentials_version"] != request.credentials_version:
            raise CredentialsInvalid()
        return pb.ConfirmSignInResponse(user=_user(user), permissions=await self._access.permissions(user))

    async def ProvisionUser(self, request: pb.ProvisionUserRequest, call: RequestContext) -> pb.ProvisionUserResponse:
        await self._require_strong(request.password, Profile(request.email, request.display_name))
        password_hash = await passwords.hash_password(request.password)
        roles, address = list(request.roles), self._profiles.address(request.email)
        known = await self._store.by_email(address)
        same_password = known is not None and await passwords.matches(known["password_hash"], request.password)
        async with self._database.transaction():
            try:
                user = await self._insert(request.email, request.display_name, password_hash, roles, verified=True)
            except EmailTaken:
                present = await self._store.by_email(address, lock="FOR UPDATE")
                if present is None:  # erased at this moment
                    raise
                user = await self._store.provision(present["user_id"], password_hash, roles)
                if not same_password:
                    # Nobody stays signed in with the old one.
                    await self._store.set_password(user["user_id"], password_hash, verified=True)
                    await self._end_sessions(user)
        return pb.ProvisionUserResponse(user=await self._shown(user))

    async def CreateUser(self, request: pb.CreateUserRequest, call: RequestContext) -> pb.CreateUserResponse:
        password_hash = None
        if request.password:
            await self._require_strong(request.password, Profile(request.email, request.display_name))
            password_hash = await passwords.hash_password(request.password)
        invited, roles = password_hash is None, sorted(set(request.roles))
        async with self._database.transaction():
            await self._access.require_may_give(call.user, roles)
            user = await self._insert(request.email, request.display_name, password_hash, roles, verified=not invited)
            if invited:
                await self._codes.send(user, INVITE)
        return pb.CreateUserResponse(user=await self._shown(user))

    async def ListRoles(self, request: pb.ListRolesRequest, call: RequestContext) -> pb.ListRolesResponse:
        built_in = [
            pb.Role(name=rule.name, description="May do everything.", allow=sorted(rule.allow), built_in=True)
            for rule in BUILT_IN.values()
        ]
        own = [_role(row) for row in await self._roles.all()]
        return pb.ListRolesResponse(roles=sorted(built_in + own, key=lambda role: role.name))

    async def SetRole(self, request: pb.SetRoleRequest, call: RequestContext) -> pb.SetRoleResponse:
        role = request.role
        rule = Rule(role.name, frozenset(role.allow), frozenset(role.deny))
        return pb.SetRoleResponse(role=_role(await self._access.set_role(call.user, rule, role.description, role.etag)))

    async def DeleteRole(self, request: pb.DeleteRoleRequest, call: RequestContext) -> pb.DeleteRoleResponse:
        await self._access.delete_role(call.user, request.name)
        return pb.DeleteRoleResponse()

    async def ListPermissions(
        self, request: pb.ListPermissionsRequest, call: RequestContext
    ) -> pb.ListPermissionsResponse:
        return pb.ListPermissionsResponse(permissions=known_permissions())

    async def AssignRoles(self, request: pb.AssignRolesRequest, call: RequestContext) -> pb.AssignRolesResponse:
        async with self._database.transaction():
            user = await self._require(request.user_id, lock="FOR UPDATE")
            updated = await self._access.assign(call.user, user, list(request.roles))
        return pb.AssignRolesResponse(user=await self._shown(updated))

    async def RemoveRoles(self, request: pb.RemoveRolesRequest, call: RequestContext) -> pb.RemoveRolesResponse:
        async with self._database.transaction():
            await self._store.lock_owners()
            user = await self._require(request.user_id, lock="FOR UPDATE")
            updated = await self._access.remove(call.user, user, list(request.roles))
        return pb.RemoveRolesResponse(user=await self._shown(updated))

    async def GetPasswordPolicy(
        self, request: pb.GetPasswordPolicyRequest, call: RequestContext
    ) -> pb.GetPasswordPolicyResponse:
        policy = await self._policy()
        return pb.GetPasswordPolicyResponse(
            policy=pb.PasswordPolicy(min_length=policy.min_length, min_strength=policy.min_strength)
        )

    async def SetPasswordPolicy(
        self, request: pb.SetPasswordPolicyRequest, call: RequestContext
    ) -> pb.SetPasswordPolicyResponse:
        await self._store.set_password_policy(request.policy.min_length, request.policy.min_strength)
        return pb.SetPasswordPolicyResponse(policy=request.policy)

    async def ListMyIdentities(
        self, request: pb.ListMyIdentitiesRequest, call: RequestContext
    ) -> pb.ListMyIdentitiesResponse:
        rows = await self._identities.of(call.user.user_id)
        return pb.ListMyIdentitiesResponse(identities=map(_identity, rows))

    async def UnlinkIdentity(
        self, request: pb.UnlinkIdentityRequest, call: RequestContext
    ) -> pb.UnlinkIdentityResponse:
        if not await self._identities.unlink(call.user.user_id, request.identity_id):
            raise IdentityNotLinked()
        return pb.UnlinkIdentityResponse()

    async def LinkIdentity(self, request: pb.LinkIdentityRequest, call: RequestContext) -> pb.LinkIdentityResponse:
        async with self._database.transaction():
            if request.user_id:
                user = await self._require(request.user_id)
            else:
                user = await self._insert(request.email, request.display_name, None, verified=True)
            await self._identities.link(user["user_id"], request.issuer, request.subject)
        return pb.LinkIdentityResponse(
            user=_user(user),
            permissions=await self._access.permissions(user),
            credentials_version=user["credentials_version"],
            created=not request.user_id,
        )

    async def ResolveIdentity(
        self, request: pb.ResolveIdentityRequest, call: RequestContext
    ) -> pb.ResolveIdentityResponse:
        user_id = await self._identities.user_of(request.issuer, request.subject)
        user = await self._store.by_id(user_id) if user_id is not None else None
        if user is None:
            raise IdentityNotLinked()
        if user["state"] != "active":
            raise UserDisabled()
        return pb.ResolveIdentityResponse(
            user=_user(user),
            permissions=await self._access.permissions(user),
            credentials_version=user["credentials_version"],
        )

    async def _require(self, user_id: str, *, lock: str = "") -> asyncpg.Record:
        user = await self._store.by_id(user_id, lock=lock)
        if user is None:
            raise UserNotFound(user_id=user_id)
        return user

    async def _require_to_let_go(self, user_id: str, call: RequestContext) -> asyncpg.Record:
        """The user, locked, if the caller may decide on them and the tenant can do without them."""
        await self._store.lock_owners()
        user = await self._require(user_id, lock="FOR UPDATE")
        await self._access.require_over(call.user, user)
        await self._access.require_other_owner(user)
        return user

    async def _insert(
        self,
        email: str,
        display_name: str,
        password_hash: str | None,
        roles: Sequence[str] = (),
        *,
        verified: bool = False,
    ) -> asyncpg.Record:
        """Raises EmailTaken."""
        address = self._profiles.address(email)
        if await self._store.by_email(address) is not None:
            raise EmailTaken()
        user_id = new_id()
        await self._quotas.take(USERS, user_id, await self._store.count())
        sealed = await self._profiles.seal(user_id, Profile(email, display_name))
        user = await self._store.insert(user_id, sealed, address.digest, password_hash, roles, verified=verified)
        await self._events.publish(events_pb2.UserCreated(user_id=user_id), aggregate=user_id)
        return user

    async def _shown(self, user: asyncpg.Record) -> pb.User:
        return _user(user, await self._profiles.of(user))

    async def _all_shown(self, users: Sequence[asyncpg.Record]) -> list[pb.User]:
        """But for those who have just been erased."""
        profiles = await self._profiles.of_all(users)
        return [_user(user, profiles[user["user_id"]]) for user in users if user["user_id"] in profiles]

    async def _seal_profiles(self) -> None:
        """Of users from before profiles were sealed."""

        async def seal(user: asyncpg.Record) -> None:
            profile = Profile(user["email"], user["display_name"])
            sealed = await self._profiles.seal(user["user_id"], profile)
            address = self._profiles.address(profile.email)
            await self._store.seal(user["user_id"], sealed, address.digest, profile.email)

        await seal_rows(self._database, UNSEALED, seal)

    async def _erase(self, user_id: str, call: RequestContext) -> None:
        async with self._database.transaction():
            user = await self._require_to_let_go(user_id, call)
            await self._end_sessions(user)
            await self._events.publish(events_pb2.UserErased(user_id=user_id), aggregate=user_id)
            subject = self._profiles.digest_of(user)
            await self._store.erase(user_id, subject)
            await self._lockout.clear(subject)
        self._profiles.forget(user_id)

    async def _export(self, user_id: str) -> pb.UserExport:
        user = await self._require(user_id)
        identities = list(map(_identity, await self._identities.of(user_id)))
        return await self._exporter.export(await self._shown(user), identities)

    async def _end_sessions(self, user: Mapping[str, Any]) -> int:
        ended = await self._sessions.EndUserSessions(EndUserSessionsRequest(user_id=user["user_id"]))
        count: int = ended.ended_sessions
        return count

    async def _prove(self, subject: bytes, user: asyncpg.Record | None, password: str) -> asyncpg.Record:
        """The user of an address, given its digest, if the password is theirs. The same work is done for an address
        that belongs to nobody.

        Raises CredentialsInvalid or SignInLocked.
        """
        left = await self._lockout.seconds_left(subject)
        if not left:
            right = await passwords.matches(user["password_hash"] if user else None, password)
            left = await self._lockout.settle(subject, right=right)
        if left:
            raise SignInLocked(seconds=left, retry_after=left)
        if not right or user is None:
            raise CredentialsInvalid()
        return user

    async def _policy(self) -> Policy:
        own = await self._store.password_policy()
        if own is not None:
            return Policy(own["min_length"], own["min_strength"])
        return Policy(self._config.password_min_length, self._config.password_min_strength)

    async def _require_strong(self, password: str, profile: Profile) -> None:
        personal = (profile.email, profile.display_name)
        await passwords.require_strong(password, await self._policy(), personal, self._breached)


def _state(request: pb.ListUsersRequest) -> str:
    return next((name for name, state in _STATES.items() if state == request.state), "")


def _fits(user: asyncpg.Record, request: pb.ListUsersRequest) -> bool:
    """Whether a user is in the state, and has the role, that is asked for."""
    return _state(request) in ("", user["state"]) and (not request.role or request.role in user["roles"])


def _user(row: Mapping[str, Any], profile: Profile | None = None) -> pb.User:
    """Without a profile for those who act for the user and need not know it: it would have to be unsealed."""
    return pb.User(
        user_id=row["user_id"],
        email=profile.email if profile else "",
        display_name=profile.display_name if profile else "",
        email_verified=row["email_verified"],
        roles=row["roles"],
        create_time=timestamp(row["create_time"]),
        state=_STATES[row["state"]],
        update_time=timestamp(row["update_time"]),
        etag=str(row["version"]),
    )


def _role(row: Mapping[str, Any]) -> pb.Role:
    return pb.Role(
        name=row["name"],
        description=row["description"],
        allow=row["allow"],
        deny=row["deny"],
        etag=str(row["version"]),
    )


def _identity(identity: Identity) -> pb.LinkedIdentity:
    return pb.LinkedIdentity(
        identity_id=identity.identity_id,
        issuer=identity.issuer,
        subject=identity.subject,
        create_time=timestamp(identity.create_time),
    )
