"""UserService: people, what they may do, and how they prove who they are."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

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
    UserChanged,
    UserDisabled,
)
from services.chassis.context import RequestContext
from services.chassis.fields import FieldCipher, seal_rows
from services.chassis.ids import hash_secret, new_id
from services.chassis.messages import MessageOf, text_of, values_of
from services.chassis.paging import Pager
from services.chassis.quotas import Quotas
from services.chassis.service import Service
from services.chassis.table import Row
from services.chassis.tenant_settings import TenantSettings
from services.identity.user_auth import passwords
from services.identity.user_auth.access import Access
from services.identity.user_auth.credentials import Credentials
from services.identity.user_auth.exporting import Exporter
from services.identity.user_auth.identities import Identities
from services.identity.user_auth.mailing import INVITE, RECOVER, SEND_SECONDS, VERIFY, CodeMailer
from services.identity.user_auth.profiles import Profile, Profiles
from services.identity.user_auth.roles import BUILT_IN, Rule, known_permissions
from services.identity.user_auth.store import UNSEALED, Store, sealed

USERS = "users"
"""The quota of users that there are."""
_FORGET_SECONDS = 3600.0
_SEAL_SECONDS = 5.0

_user_of = MessageOf(pb.User, etag="version")
_role = MessageOf(pb.Role, without=["built_in"], etag="version")


class UserService:
    def __init__(self, service: Service) -> None:
        cipher = FieldCipher(service.clients)
        self._database = service.database
        self._events = service.events
        self._pager = Pager(service.sealer)
        self._quotas = Quotas(service.clients, service.database)
        self._sessions = service.clients.stub(SessionServiceStub)
        self._settings = TenantSettings(service.clients, service.signals)
        self._exporter = Exporter(service.clients)
        self._store = Store(service.database)
        self._access = Access(service.database, self._store)
        self._credentials = Credentials(service, self._store)
        self._identities = Identities(service, cipher)
        self._profiles = Profiles(cipher, service.sealer)
        self._codes = CodeMailer(service, self._store, self._profiles)
        service.every(_SEAL_SECONDS, self._seal_profiles)
        service.every(_SEAL_SECONDS, self._identities.seal_rows)
        service.every(SEND_SECONDS, self._codes.send_requested)
        service.every(_FORGET_SECONDS, self._store.forget_expired)

    async def Register(self, request: pb.RegisterRequest, call: RequestContext) -> pb.RegisterResponse:
        if await self._settings.text("security.registration") != "open":
            raise RegistrationClosed()
        profile = Profile(request.email, request.display_name)
        password_hash = await self._credentials.hash(request.password, profile)
        async with self._database.transaction():
            user = await self._insert(profile, password_hash)
            await self._codes.send(user, VERIFY)
        return pb.RegisterResponse(user=await self._shown(user))

    async def VerifyEmail(self, request: pb.VerifyEmailRequest, call: RequestContext) -> pb.VerifyEmailResponse:
        async with self._database.transaction():
            user_id = await self._store.spend_code(VERIFY, hash_secret(request.code.strip()))
            user = await self._store.users.update(user_id, email_verified=True) if user_id is not None else None
        if user is None:
            raise CodeInvalid()
        return pb.VerifyEmailResponse(user=await self._shown(user))

    async def ResendVerification(
        self, request: pb.ResendVerificationRequest, call: RequestContext
    ) -> pb.ResendVerificationResponse:
        await self._codes.request(request.email, VERIFY)
        return pb.ResendVerificationResponse()

    async def StartRecovery(self, request: pb.StartRecoveryRequest, call: RequestContext) -> pb.StartRecoveryResponse:
        await self._codes.request(request.email, RECOVER)
        return pb.StartRecoveryResponse()

    async def CompleteRecovery(
        self, request: pb.CompleteRecoveryRequest, call: RequestContext
    ) -> pb.CompleteRecoveryResponse:
        # A password that is refused leaves the code as it was.
        async with self._database.transaction():
            user_id = await self._store.spend_code(RECOVER, hash_secret(request.code.strip()))
            user = await self._store.users.get(user_id, lock=True) if user_id is not None else None
            if user is None or user["state"] != "active":
                raise CodeInvalid()
            password_hash = await self._credentials.hash(request.new_password, await self._profiles.of(user))
            await self._store.set_password(user["user_id"], password_hash, verified=True)
            await self._credentials.forgive(self._profiles.digest_of(user))
            ended = await self._end_sessions(user)
        return pb.CompleteRecoveryResponse(ended_sessions=ended)

    async def ResetPassword(self, request: pb.ResetPasswordRequest, call: RequestContext) -> pb.ResetPasswordResponse:
        async with self._database.transaction():
            user = await self._store.users.require(request.user_id, lock=True)
            await self._access.require_over(call.user, user)
            await self._store.set_password(user["user_id"], None)
            await self._codes.send(user, RECOVER)
            ended = await self._end_sessions(user)
        return pb.ResetPasswordResponse(ended_sessions=ended)

    async def GetUser(self, request: pb.GetUserRequest, call: RequestContext) -> pb.GetUserResponse:
        return pb.GetUserResponse(user=await self._shown(await self._store.users.require(request.user_id)))

    async def ListUsers(self, request: pb.ListUsersRequest, call: RequestContext) -> pb.ListUsersResponse:
        email = request.email or request.email_prefix
        if email:
            found = await self._store.by_address(self._profiles.address(email))
            rows = [found] if found is not None and _fits(found, request) else []
            return pb.ListUsersResponse(users=await self._all_shown(rows))
        with_role = {"roles @> ARRAY[{}::text]": request.role or None}
        users = partial(self._store.users.page, filters=with_role, state=_state(request) or None)
        rows, more = await self._pager.page(request, call, users, by="user_id")
        return pb.ListUsersResponse(users=await self._all_shown(rows), next_page_token=more)

    async def UpdateUser(self, request: pb.UpdateUserRequest, call: RequestContext) -> pb.UpdateUserResponse:
        asked = request.user
        async with self._database.transaction():
            user = await self._store.users.require(asked.user_id, lock=True)
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
            if moved and await self._store.by_address(address) is not None:
                raise EmailTaken()
            profile_sealed = await self._profiles.seal(user["user_id"], profile)
            updated = await self._store.set_profile(user, profile_sealed, address.digest, moved=moved)
            if moved:
                await self._store.codes.delete(user_id=user["user_id"], purpose=RECOVER)
                await self._codes.send(updated, VERIFY)
        return pb.UpdateUserResponse(user=await self._shown(updated))

    async def DisableUser(self, request: pb.DisableUserRequest, call: RequestContext) -> pb.DisableUserResponse:
        async with self._database.transaction():
            user = await self._require_to_let_go(request.user_id, call)
            if user["state"] == "disabled":
                return pb.DisableUserResponse(user=await self._shown(user))
            disabled = await self._store.set_state(user, "disabled")
            await self._events.publish(events_pb2.UserDisabled(user_id=user["user_id"]), aggregate=user["user_id"])
            ended = await self._end_sessions(user)
        return pb.DisableUserResponse(user=await self._shown(disabled), ended_sessions=ended)

    async def EnableUser(self, request: pb.EnableUserRequest, call: RequestContext) -> pb.EnableUserResponse:
        async with self._database.transaction():
            user = await self._store.users.require(request.user_id, lock=True)
            await self._access.require_over(call.user, user)
            if user["state"] != "active":
                user = await self._store.set_state(user, "active")
        return pb.EnableUserResponse(user=await self._shown(user))

    async def ExportUser(self, request: pb.ExportUserRequest, call: RequestContext) -> pb.ExportUserResponse:
        return pb.ExportUserResponse(export=await self._export(request.user_id))

    async def ExportMe(self, request: pb.ExportMeRequest, call: RequestContext) -> pb.ExportMeResponse:
        return pb.ExportMeResponse(export=await self._export(call.user.user_id))

    async def EraseUser(self, request: pb.EraseUserRequest, call: RequestContext) -> pb.EraseUserResponse:
        await self._erase(request.user_id, call)
        return pb.EraseUserResponse()

    async def EraseMe(self, request: pb.EraseMeRequest, call: RequestContext) -> pb.EraseMeResponse:
        user = await self._store.users.require(call.user.user_id)
        await self._credentials.prove(self._profiles.digest_of(user), user, request.password)
        await self._erase(user["user_id"], call)
        return pb.EraseMeResponse()

    async def ResolveUser(self, request: pb.ResolveUserRequest, call: RequestContext) -> pb.ResolveUserResponse:
        user = await self._store.users.require(request.user_id)
        recognized = await self._recognized(user)
        shown = recognized["user"] if request.access_only else await self._shown(user)
        return pb.ResolveUserResponse(**recognized | {"user": shown})

    async def ChangePassword(
        self, request: pb.ChangePasswordRequest, call: RequestContext
    ) -> pb.ChangePasswordResponse:
        user = await self._store.users.require(call.user.user_id)
        profile = await self._profiles.of(user)
        await self._credentials.prove(self._profiles.digest_of(user), user, request.current_password)
        password_hash = await self._credentials.hash(request.new_password, profile)
        # The sessions end before the password is committed: nobody stays signed in with the old one.
        async with self._database.transaction():
            await self._store.set_password(user["user_id"], password_hash)
            ended = await self._end_sessions(user)
        return pb.ChangePasswordResponse(ended_sessions=ended)

    async def VerifyPassword(
        self, request: pb.VerifyPasswordRequest, call: RequestContext
    ) -> pb.VerifyPasswordResponse:
        address = self._profiles.address(request.email)
        known = await self._store.by_address(address)
        user = await self._credentials.prove(address.digest, known, request.password)
        recognized = await self._recognized(user)
        if not user["email_verified"]:
            raise EmailNotVerified()
        if passwords.needs_rehash(user["password_hash"]):
            # Unless it has changed meanwhile.
            same = {"password_hash": user["password_hash"]}
            password_hash = await passwords.hash_password(request.password)
            await self._store.hidden.update(user["user_id"], where=same, password_hash=password_hash)
        return pb.VerifyPasswordResponse(**recognized)

    async def CheckPassword(self, request: pb.CheckPasswordRequest, call: RequestContext) -> pb.CheckPasswordResponse:
        user = await self._store.users.require(request.user_id)
        await self._credentials.prove(self._profiles.digest_of(user), user, request.password)
        return pb.CheckPasswordResponse()

    async def ConfirmSignIn(self, request: pb.ConfirmSignInRequest, call: RequestContext) -> pb.ConfirmSignInResponse:
        # Waits for whoever is changing the user: they end the sessions that they see, this one is told the rest.
        for user in await self._store.users.select("user_id = $1 FOR SHARE", request.user_id):
            if user["state"] == "active" and user["credentials_version"] == request.credentials_version:
                return pb.ConfirmSignInResponse(user=_user(user), permissions=await self._access.permissions(user))
        raise CredentialsInvalid()

    async def ProvisionUser(self, request: pb.ProvisionUserRequest, call: RequestContext) -> pb.ProvisionUserResponse:
        profile, address = Profile(request.email, request.display_name), self._profiles.address(request.email)
        password_hash = await self._credentials.hash(request.password, profile)
        known = await self._store.by_address(address)
        same_password = known is not None and await passwords.matches(known["password_hash"], request.password)
        async with self._database.transaction():
            try:
                user = await self._insert(profile, password_hash, request.roles, verified=True)
            except EmailTaken:
                present = await self._store.by_address(address, lock=True)
                if present is None:  # erased at this moment
                    raise
                user = await self._store.users.change(
                    present["user_id"], password_hash=password_hash, roles=request.roles, email_verified=True
                )
                if not same_password:
                    # Nobody stays signed in with the old one.
                    await self._store.set_password(user["user_id"], password_hash, verified=True)
                    await self._end_sessions(user)
        return pb.ProvisionUserResponse(user=await self._shown(user))

    async def CreateUser(self, request: pb.CreateUserRequest, call: RequestContext) -> pb.CreateUserResponse:
        profile, invited = Profile(request.email, request.display_name), not request.password
        password_hash = None if invited else await self._credentials.hash(request.password, profile)
        roles = sorted(set(request.roles))
        async with self._database.transaction():
            await self._access.require_may_give(call.user, roles)
            user = await self._insert(profile, password_hash, roles, verified=not invited)
            if invited:
                await self._codes.send(user, INVITE)
        return pb.CreateUserResponse(user=await self._shown(user))

    async def ListRoles(self, request: pb.ListRolesRequest, call: RequestContext) -> pb.ListRolesResponse:
        built_in = [
            pb.Role(name=rule.name, description="May do everything.", allow=sorted(rule.allow), built_in=True)
            for rule in BUILT_IN.values()
        ]
        own = map(_role, await self._store.roles.all())
        return pb.ListRolesResponse(roles=sorted([*built_in, *own], key=lambda role: role.name))

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
            user = await self._store.users.require(request.user_id, lock=True)
            updated = await self._access.assign(call.user, user, list(request.roles))
        return pb.AssignRolesResponse(user=await self._shown(updated))

    async def RemoveRoles(self, request: pb.RemoveRolesRequest, call: RequestContext) -> pb.RemoveRolesResponse:
        async with self._database.transaction():
            await self._store.lock_owners()
            user = await self._store.users.require(request.user_id, lock=True)
            updated = await self._access.remove(call.user, user, list(request.roles))
        return pb.RemoveRolesResponse(user=await self._shown(updated))

    async def GetPasswordPolicy(
        self, request: pb.GetPasswordPolicyRequest, call: RequestContext
    ) -> pb.GetPasswordPolicyResponse:
        policy = await self._credentials.policy()
        return pb.GetPasswordPolicyResponse(policy=pb.PasswordPolicy(**asdict(policy)))

    async def SetPasswordPolicy(
        self, request: pb.SetPasswordPolicyRequest, call: RequestContext
    ) -> pb.SetPasswordPolicyResponse:
        await self._store.password_policies.put(**values_of(request.policy, "min_length", "min_strength"))
        return pb.SetPasswordPolicyResponse(policy=request.policy)

    async def ListMyIdentities(
        self, request: pb.ListMyIdentitiesRequest, call: RequestContext
    ) -> pb.ListMyIdentitiesResponse:
        return pb.ListMyIdentitiesResponse(identities=await self._identities.of(call.user.user_id))

    async def UnlinkIdentity(
        self, request: pb.UnlinkIdentityRequest, call: RequestContext
    ) -> pb.UnlinkIdentityResponse:
        if not await self._identities.unlink(call.user.user_id, request.identity_id):
            raise IdentityNotLinked()
        return pb.UnlinkIdentityResponse()

    async def LinkIdentity(self, request: pb.LinkIdentityRequest, call: RequestContext) -> pb.LinkIdentityResponse:
        async with self._database.transaction():
            if request.user_id:
                user = await self._store.users.require(request.user_id)
            else:
                user = await self._insert(Profile(request.email, request.display_name), None, verified=True)
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
        user = await self._store.users.get(user_id) if user_id is not None else None
        if user is None:
            raise IdentityNotLinked()
        return pb.ResolveIdentityResponse(**await self._recognized(user))

    async def _recognized(self, user: Row) -> dict[str, Any]:
        """What those who sign the user in are told. Raises UserDisabled."""
        if user["state"] != "active":
            raise UserDisabled()
        permissions = await self._access.permissions(user)
        return {"user": _user(user), "permissions": permissions, "credentials_version": user["credentials_version"]}

    async def _require_to_let_go(self, user_id: str, call: RequestContext) -> Row:
        """The user, locked, if the caller may decide on them and the tenant can do without them."""
        await self._store.lock_owners()
        user = await self._store.users.require(user_id, lock=True)
        await self._access.require_over(call.user, user)
        await self._access.require_other_owner(user)
        return user

    async def _insert(
        self, profile: Profile, password_hash: str | None, roles: Sequence[str] = (), *, verified: bool = False
    ) -> Row:
        """Raises EmailTaken, QuotaExceeded."""
        address = self._profiles.address(profile.email)
        if await self._store.by_address(address) is not None:
            raise EmailTaken()
        user_id, present = new_id(), await self._store.count()
        columns = sealed(await self._profiles.seal(user_id, profile), address.digest)
        user = await self._store.users.insert_new(
            user_id=user_id, password_hash=password_hash, roles=list(roles), email_verified=verified, **columns
        )
        if user is None:
            raise EmailTaken()
        # After the row: of many who come with one address at once, only the first counts.
        await self._quotas.take(USERS, user_id, present)
        await self._events.publish(events_pb2.UserCreated(user_id=user_id), aggregate=user_id)
        return user

    async def _shown(self, user: Row) -> pb.User:
        return _user(user, await self._profiles.of(user))

    async def _all_shown(self, users: Sequence[Row]) -> list[pb.User]:
        """But for those who have just been erased."""
        profiles = await self._profiles.of_all(users)
        return [_user(user, profiles[user["user_id"]]) for user in users if user["user_id"] in profiles]

    async def _seal_profiles(self) -> None:
        """Of users from before profiles were sealed."""

        async def seal(user: Row) -> None:
            profile = Profile(user["email"], user["display_name"])
            profile_sealed = await self._profiles.seal(user["user_id"], profile)
            columns = sealed(profile_sealed, self._profiles.address(profile.email).digest)
            await self._store.hidden.update(user["user_id"], where={"email": profile.email}, **columns)

        await seal_rows(self._database, UNSEALED, seal)

    async def _erase(self, user_id: str, call: RequestContext) -> None:
        async with self._database.transaction():
            user = await self._require_to_let_go(user_id, call)
            await self._end_sessions(user)
            await self._events.publish(events_pb2.UserErased(user_id=user_id), aggregate=user_id)
            subject = self._profiles.digest_of(user)
            await self._store.users.delete(user_id=user_id)
            await self._store.mail_requests.delete(email_digest=subject)
            await self._credentials.forgive(subject)
        self._profiles.forget(user_id)

    async def _export(self, user_id: str) -> pb.UserExport:
        user = await self._store.users.require(user_id)
        return await self._exporter.export(await self._shown(user), await self._identities.of(user_id))

    async def _end_sessions(self, user: Row) -> int:
        ended = await self._sessions.EndUserSessions(EndUserSessionsRequest(user_id=user["user_id"]))
        count: int = ended.ended_sessions
        return count


def _state(request: pb.ListUsersRequest) -> str:
    return text_of(pb.UserState, request.state).lower()


def _fits(user: Row, request: pb.ListUsersRequest) -> bool:
    """Whether a user is in the state, and has the role, that is asked for."""
    return _state(request) in ("", user["state"]) and (not request.role or request.role in user["roles"])


def _user(row: Row, profile: Profile | None = None) -> pb.User:
    """Without a profile for those who act for the user and need not know it: it would have to be unsealed."""
    return _user_of(row, email=profile.email if profile else "", display_name=profile.display_name if profile else "")
