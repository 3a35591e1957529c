"""OidcService: HTTP as the standards have it, to use cases and back."""

from collections.abc import Awaitable, Callable
from typing import Any

from authlib.oauth2 import OAuth2Error
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from nexus.identity.auth_service_v2.v1 import oidc_pb2 as pb
from nexus.identity.token_mgr.v1.token_mgr_pb2 import GetJwksRequest, IntrospectTokenRequest
from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
from nexus.identity.user_auth.v1.faults import UserDisabled, UserNotFound
from nexus.identity.user_auth.v1.user_auth_pb2 import ResolveUserRequest
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from services.chassis.context import RequestContext
from services.chassis.issuers import tenant_issuer
from services.chassis.service import Service
from services.chassis.tenants import TenantDirectory
from services.identity.auth_service_v2.accounts import Accounts
from services.identity.auth_service_v2.administration import ClientService
from services.identity.auth_service_v2.authentication import Authenticator
from services.identity.auth_service_v2.authorization import CannotReturn
from services.identity.auth_service_v2.discovery import metadata
from services.identity.auth_service_v2.forms import Form
from services.identity.auth_service_v2.grants import Grants
from services.identity.auth_service_v2.interaction import Interaction
from services.identity.auth_service_v2.pages import message
from services.identity.auth_service_v2.registration import Registration
from services.identity.auth_service_v2.replies import Reply, as_json, bearer_refusal, refusal
from services.identity.auth_service_v2.sso import Upstream
from services.identity.auth_service_v2.store import GrantStore
from services.identity.auth_service_v2.tickets import Tickets

__all__ = ["ClientService", "OidcService"]

_FORGET_EXPIRED_SECONDS = 3600.0
_CACHED = ("cache-control", "public, max-age=300")


class OidcService:
    def __init__(self, service: Service) -> None:
        sealed = Tickets(service.sealer)
        accounts = Accounts(service, sealed)
        self._settings = service.settings
        self._tenants = TenantDirectory(service.database, service.signals)
        self._tokens = service.clients.stub(TokenServiceStub)
        self._users = service.clients.stub(UserServiceStub)
        self._authenticator = Authenticator(service)
        self._grants = Grants(service, accounts, sealed)
        self._interaction = Interaction(service, accounts, sealed, Upstream(service), self._keys)
        self._registration = Registration(service)
        service.every(_FORGET_EXPIRED_SECONDS, GrantStore(service.database).forget_expired)

    async def GetDiscovery(self, request: pb.GetDiscoveryRequest, call: RequestContext) -> HttpBody:
        async def reply() -> Reply:
            return as_json(metadata(tenant_issuer(self._settings, request.tenant)), 200, _CACHED)

        return await self._answer(request, call, reply)

    async def GetKeys(self, request: pb.GetKeysRequest, call: RequestContext) -> HttpBody:
        async def reply() -> Reply:
            return as_json(await self._keys(), 200, _CACHED)

        return await self._answer(request, call, reply)

    async def Authorize(self, request: pb.AuthorizeRequest, call: RequestContext) -> HttpBody:
        return await self._answer(request, call, lambda: self._interaction.authorize(_query(request), call))

    async def AuthorizeForm(self, request: pb.AuthorizeFormRequest, call: RequestContext) -> HttpBody:
        return await self._answer(request, call, lambda: self._interaction.authorize(Form(request.form), call))

    async def SubmitSignIn(self, request: pb.SubmitSignInRequest, call: RequestContext) -> HttpBody:
        return await self._answer(request, call, lambda: self._interaction.sign_in(Form(request.form), call))

    async def SubmitSecondFactor(self, request: pb.SubmitSecondFactorRequest, call: RequestContext) -> HttpBody:
        return await self._answer(request, call, lambda: self._interaction.second_factor(Form(request.form), call))

    async def SubmitConsent(self, request: pb.SubmitConsentRequest, call: RequestContext) -> HttpBody:
        return await self._answer(request, call, lambda: self._interaction.consent(Form(request.form), call))

    async def Token(self, request: pb.TokenRequest, call: RequestContext) -> HttpBody:
        async def reply() -> Reply:
            form = Form(request.form)
            client = await self._authenticator.client(form, call)
            return as_json(await self._grants.token(client, form, call), 200, ("pragma", "no-cache"))

        return await self._answer(request, call, reply)

    async def Introspect(self, request: pb.IntrospectRequest, call: RequestContext) -> HttpBody:
        async def reply() -> Reply:
            form = Form(request.form)
            await self._authenticator.client(form, call, confidential=True)
            return as_json(await self._grants.introspect(form.require("token")))

        return await self._answer(request, call, reply)

    async def Revoke(self, request: pb.RevokeRequest, call: RequestContext) -> HttpBody:
        async def reply() -> Reply:
            form = Form(request.form)
            await self._grants.revoke(await self._authenticator.client(form, call), form.require("token"))
            return as_json({})

        return await self._answer(request, call, reply)

    async def AuthorizeDevice(self, request: pb.AuthorizeDeviceRequest, call: RequestContext) -> HttpBody:
        async def reply() -> Reply:
            form = Form(request.form)
            client = await self._authenticator.client(form, call)
            return as_json(await self._grants.start_device(client, form, call))

        return await self._answer(request, call, reply)

    async def ShowDevicePage(self, request: pb.ShowDevicePageRequest, call: RequestContext) -> HttpBody:
        return await self._answer(request, call, lambda: self._interaction.device_page(request.user_code, call))

    async def SubmitDevicePage(self, request: pb.SubmitDevicePageRequest, call: RequestContext) -> HttpBody:
        return await self._answer(request, call, lambda: self._interaction.decide_device(Form(request.form), call))

    async def GetUserInfo(self, request: pb.GetUserInfoRequest, call: RequestContext) -> HttpBody:
        return await self._answer(request, call, lambda: self._user_info(_bearer(call)))

    async def PostUserInfo(self, request: pb.PostUserInfoRequest, call: RequestContext) -> HttpBody:
        async def reply() -> Reply:
            return await self._user_info(_bearer(call) or Form(request.form).get("access_token", ""))

        return await self._answer(request, call, reply)

    async def ShowLogoutPage(self, request: pb.ShowLogoutPageRequest, call: RequestContext) -> HttpBody:
        return await self._answer(request, call, lambda: self._interaction.sign_out_page(_query(request), call))

    async def Logout(self, request: pb.LogoutRequest, call: RequestContext) -> HttpBody:
        return await self._answer(request, call, lambda: self._interaction.sign_out(Form(request.form), call))

    async def RegisterClient(self, request: pb.RegisterClientRequest, call: RequestContext) -> HttpBody:
        async def reply() -> Reply:
            return await self._registration.register(_bearer(call), request.metadata.data, call)

        return await self._answer(request, call, reply)

    async def GetClientConfiguration(self, request: pb.GetClientConfigurationRequest, call: RequestContext) -> HttpBody:
        return await self._answer(
            request, call, lambda: self._registration.read(request.client_id, _bearer(call), call)
        )

    async def UpdateClientConfiguration(
        self, request: pb.UpdateClientConfigurationRequest, call: RequestContext
    ) -> HttpBody:
        return await self._answer(
            request,
            call,
            lambda: self._registration.replace(request.client_id, _bearer(call), request.metadata.data, call),
        )

    async def DeleteClientConfiguration(
        self, request: pb.DeleteClientConfigurationRequest, call: RequestContext
    ) -> HttpBody:
        return await self._answer(request, call, lambda: self._registration.remove(request.client_id, _bearer(call)))

    async def StartSso(self, request: pb.StartSsoRequest, call: RequestContext) -> HttpBody:
        return await self._answer(
            request, call, lambda: self._interaction.start_sso(request.provider_id, request.ticket, call)
        )

    async def FinishSso(self, request: pb.FinishSsoRequest, call: RequestContext) -> HttpBody:
        return await self._answer(
            request, call, lambda: self._interaction.finish_sso(request.provider_id, _query(request), call)
        )

    async def _answer(self, request: Any, call: RequestContext, use_case: Callable[[], Awaitable[Reply]]) -> HttpBody:
        """Run a use case for the tenant in the path, and give its errors the shape that the standards say."""
        await self._tenants.require_active(request.tenant)
        call.tenant = request.tenant
        try:
            reply = await use_case()
        except OAuth2Error as error:
            reply = refusal(error)
        except CannotReturn as problem:
            reply = message("That did not work", str(problem), 400)
        return await reply.send(call)

    async def _user_info(self, token: str) -> Reply:
        if not token:
            return bearer_refusal(401, "", "an access token is needed")
        found = await self._tokens.IntrospectToken(IntrospectTokenRequest(token=token))
        if not found.active or found.kind != "access_token" or not found.user_id:
            return bearer_refusal(401, "invalid_token", "the access token is not valid")
        scope = found.scope.split()
        if "openid" not in scope:
            return bearer_refusal(403, "insufficient_scope", "the access token lacks the scope openid")
        try:
            user = (await self._users.ResolveUser(ResolveUserRequest(user_id=found.user_id))).user
        except (UserNotFound, UserDisabled):
            return bearer_refusal(401, "invalid_token", "the user is gone")
        claims: dict[str, Any] = {"sub": user.user_id}
        if "email" in scope:
            claims |= {"email": user.email, "email_verified": user.email_verified}
        if "profile" in scope:
            claims |= {"name": user.display_name}
        return as_json(claims)

    async def _keys(self) -> dict[str, Any]:
        return MessageToDict(await self._tokens.GetJwks(GetJwksRequest(include_id_token_keys=True)))


def _query(request: Message) -> dict[str, str]:
    """The query's parameters: a request's fields but those of its path."""
    return {field.name: value for field, value in request.ListFields() if field.name not in ("tenant", "provider_id")}


def _bearer(call: RequestContext) -> str:
    scheme, _, token = call.metadata.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
