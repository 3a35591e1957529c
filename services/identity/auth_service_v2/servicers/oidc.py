"""OidcService: HTTP as the standards have it, to use cases and back."""

from collections.abc import Awaitable, Callable
from functools import wraps
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
from services.identity.auth_service_v2.store import Store
from services.identity.auth_service_v2.tickets import Tickets

_FORGET_EXPIRED_SECONDS = 3600.0
_CACHED = ("cache-control", "public, max-age=300")


def _over_http(
    use_case: Callable[["OidcService", Any, RequestContext], Awaitable[Reply]],
) -> Callable[["OidcService", Any, RequestContext], Awaitable[HttpBody]]:
    """An RPC that acts for the tenant in its path, and whose errors have the shape that the standards say."""

    @wraps(use_case)
    async def method(self: "OidcService", request: Any, call: RequestContext) -> HttpBody:
        await self._tenants.require_active(request.tenant)
        call.tenant = request.tenant
        try:
            reply = await use_case(self, request, call)
        except OAuth2Error as error:
            reply = refusal(error)
        except CannotReturn as problem:
            reply = message("That did not work", str(problem), 400)
        return await reply.send(call)

    return method


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
        service.every(_FORGET_EXPIRED_SECONDS, Store(service.database).forget_expired)

    @_over_http
    async def GetDiscovery(self, request: pb.GetDiscoveryRequest, call: RequestContext) -> Reply:
        return as_json(metadata(tenant_issuer(self._settings, request.tenant)), 200, _CACHED)

    @_over_http
    async def GetKeys(self, request: pb.GetKeysRequest, call: RequestContext) -> Reply:
        return as_json(await self._keys(), 200, _CACHED)

    @_over_http
    async def Authorize(self, request: pb.AuthorizeRequest, call: RequestContext) -> Reply:
        return await self._interaction.authorize(_query(request), call)

    @_over_http
    async def AuthorizeForm(self, request: pb.AuthorizeFormRequest, call: RequestContext) -> Reply:
        return await self._interaction.authorize(Form(request.form), call)

    @_over_http
    async def SubmitSignIn(self, request: pb.SubmitSignInRequest, call: RequestContext) -> Reply:
        return await self._interaction.sign_in(Form(request.form), call)

    @_over_http
    async def SubmitSecondFactor(self, request: pb.SubmitSecondFactorRequest, call: RequestContext) -> Reply:
        return await self._interaction.second_factor(Form(request.form), call)

    @_over_http
    async def SubmitConsent(self, request: pb.SubmitConsentRequest, call: RequestContext) -> Reply:
        return await self._interaction.consent(Form(request.form), call)

    @_over_http
    async def Token(self, request: pb.TokenRequest, call: RequestContext) -> Reply:
        form = Form(request.form)
        client = await self._authenticator.client(form, call)
        return as_json(await self._grants.token(client, form, call), 200, ("pragma", "no-cache"))

    @_over_http
    async def Introspect(self, request: pb.IntrospectRequest, call: RequestContext) -> Reply:
        form = Form(request.form)
        await self._authenticator.client(form, call, confidential=True)
        return as_json(await self._grants.introspect(form.require("token")))

    @_over_http
    async def Revoke(self, request: pb.RevokeRequest, call: RequestContext) -> Reply:
        form = Form(request.form)
        await self._grants.revoke(await self._authenticator.client(form, call), form.require("token"))
        return as_json({})

    @_over_http
    async def AuthorizeDevice(self, request: pb.AuthorizeDeviceRequest, call: RequestContext) -> Reply:
        form = Form(request.form)
        client = await self._authenticator.client(form, call)
        return as_json(await self._grants.start_device(client, form, call))

    @_over_http
    async def ShowDevicePage(self, request: pb.ShowDevicePageRequest, call: RequestContext) -> Reply:
        return await self._interaction.device_page(request.user_code, call)

    @_over_http
    async def SubmitDevicePage(self, request: pb.SubmitDevicePageRequest, call: RequestContext) -> Reply:
        return await self._interaction.decide_device(Form(request.form), call)

    @_over_http
    async def GetUserInfo(self, request: pb.GetUserInfoRequest, call: RequestContext) -> Reply:
        return await self._user_info(_bearer(call))

    @_over_http
    async def PostUserInfo(self, request: pb.PostUserInfoRequest, call: RequestContext) -> Reply:
        return await self._user_info(_bearer(call) or Form(request.form).get("access_token", ""))

    @_over_http
    async def ShowLogoutPage(self, request: pb.ShowLogoutPageRequest, call: RequestContext) -> Reply:
        return await self._interaction.sign_out_page(_query(request), call)

    @_over_http
    async def Logout(self, request: pb.LogoutRequest, call: RequestContext) -> Reply:
        return await self._interaction.sign_out(Form(request.form), call)

    @_over_http
    async def RegisterClient(self, request: pb.RegisterClientRequest, call: RequestContext) -> Reply:
        return await self._registration.register(_bearer(call), request.metadata.data, call)

    @_over_http
    async def GetClientConfiguration(self, request: pb.GetClientConfigurationRequest, call: RequestContext) -> Reply:
        return await self._registration.read(request.client_id, _bearer(call), call)

    @_over_http
    async def UpdateClientConfiguration(
        self, request: pb.UpdateClientConfigurationRequest, call: RequestContext
    ) -> Reply:
        return await self._registration.replace(request.client_id, _bearer(call), request.metadata.data, call)

    @_over_http
    async def DeleteClientConfiguration(
        self, request: pb.DeleteClientConfigurationRequest, call: RequestContext
    ) -> Reply:
        return await self._registration.remove(request.client_id, _bearer(call))

    @_over_http
    async def StartSso(self, request: pb.StartSsoRequest, call: RequestContext) -> Reply:
        return await self._interaction.start_sso(request.provider_id, request.ticket, call)

    @_over_http
    async def FinishSso(self, request: pb.FinishSsoRequest, call: RequestContext) -> Reply:
        return await self._interaction.finish_sso(request.provider_id, _query(request), call)

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
