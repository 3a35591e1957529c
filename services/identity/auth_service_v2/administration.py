"""ClientService: clients, consent and upstream providers, proto to rules and back."""

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from operator import attrgetter
from typing import Any

from nexus.identity.auth_service_v2.v1 import clients_pb2 as pb
from nexus.identity.auth_service_v2.v1.events_pb2 import (
    ClientCreated,
    ClientDeleted,
    ClientSecretRotated,
    ClientUpdated,
)
from nexus.identity.auth_service_v2.v1.faults import (
    ClientMetadataInvalid,
    ConsentNotFound,
    IssuerInvalid,
    ScopeNotHeld,
)
from nexus.type.v1.faults import IdempotencyKeyReused
from services.chassis.clock import now, timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import hash_secret, new_id, new_secret
from services.chassis.messages import MessageOf
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.identity.auth_service_v2 import clients
from services.identity.auth_service_v2.clients import Client
from services.identity.auth_service_v2.outward import reachable, trust_problem
from services.identity.auth_service_v2.spec import PROVIDER_SECRETS
from services.identity.auth_service_v2.store import ClientStore, ProviderStore

_DEFAULT_REGISTRATION_SECONDS = 3600
_AUTHENTICATION = {
    pb.CLIENT_AUTHENTICATION_UNSPECIFIED: clients.BASIC,
    pb.CLIENT_AUTHENTICATION_CLIENT_SECRET_BASIC: clients.BASIC,
    pb.CLIENT_AUTHENTICATION_CLIENT_SECRET_POST: clients.POST,
    pb.CLIENT_AUTHENTICATION_NONE: clients.NONE,
    pb.CLIENT_AUTHENTICATION_PRIVATE_KEY_JWT: clients.PRIVATE_KEY_JWT,
}
_consent = MessageOf(pb.Consent)


class ClientService:
    def __init__(self, service: Service) -> None:
        self._networks = reachable(service)
        self._database = service.database
        self._events = service.events
        self._sealer = service.sealer
        self._pager = Pager(service.sealer)
        self._clients = ClientStore(service.database)
        self._providers = ProviderStore(service.database)

    async def CreateClient(self, request: pb.CreateClientRequest, call: RequestContext) -> pb.CreateClientResponse:
        authentication = _AUTHENTICATION[request.authentication]
        settings = self._checked(request.settings, authentication, call)
        secret = new_secret() if clients.keeps_a_secret(authentication) else ""
        secret_hash, client_id = hash_secret(secret) if secret else None, new_id()
        async with self._database.transaction():
            if (made := await self._made_before(request, call, client_id)) is not None:
                return pb.CreateClientResponse(client=_client(await self._clients.get(made)))
            client = await self._clients.insert(
                client_id, authentication=authentication, secret_hash=secret_hash, **settings
            )
            await self._events.publish(ClientCreated(client_id=client_id), aggregate=client_id)
        return pb.CreateClientResponse(client=_client(client), client_secret=secret)

    async def GetClient(self, request: pb.GetClientRequest, call: RequestContext) -> pb.GetClientResponse:
        return pb.GetClientResponse(client=_client(await self._clients.get(request.client_id)))

    async def ListClients(self, request: pb.ListClientsRequest, call: RequestContext) -> pb.ListClientsResponse:
        clients, more = await self._pager.page(request, call, self._clients.page, by=attrgetter("client_id"))
        return pb.ListClientsResponse(clients=map(_client, clients), next_page_token=more)

    async def UpdateClient(self, request: pb.UpdateClientRequest, call: RequestContext) -> pb.UpdateClientResponse:
        known = await self._clients.get(request.client_id)
        settings = self._checked(request.settings, known.authentication, call)
        async with self._database.transaction():
            client = await self._clients.update(
                request.client_id, authentication=known.authentication, secret_hash=known.secret_hash, **settings
            )
            await self._events.publish(ClientUpdated(client_id=client.client_id), aggregate=client.client_id)
        return pb.UpdateClientResponse(client=_client(client))

    async def RotateClientSecret(
        self, request: pb.RotateClientSecretRequest, call: RequestContext
    ) -> pb.RotateClientSecretResponse:
        client = await self._clients.get(request.client_id)
        # Who has the secret acts with the scopes.
        _require_held(client.scopes, call)
        if not client.keeps_a_secret:
            raise ClientMetadataInvalid(why="it has no secret")
        secret = new_secret()
        async with self._database.transaction():
            await self._clients.set_secret(request.client_id, hash_secret(secret))
            await self._events.publish(ClientSecretRotated(client_id=client.client_id), aggregate=client.client_id)
        return pb.RotateClientSecretResponse(client_secret=secret)

    async def DeleteClient(self, request: pb.DeleteClientRequest, call: RequestContext) -> pb.DeleteClientResponse:
        async with self._database.transaction():
            client_id = await self._clients.delete(request.client_id)
            await self._events.publish(ClientDeleted(client_id=client_id), aggregate=client_id)
        return pb.DeleteClientResponse()

    async def CreateRegistrationToken(
        self, request: pb.CreateRegistrationTokenRequest, call: RequestContext
    ) -> pb.CreateRegistrationTokenResponse:
        token = new_secret()
        expires = now() + timedelta(seconds=request.lifetime_seconds or _DEFAULT_REGISTRATION_SECONDS)
        await self._clients.insert_registration_token(hash_secret(token), request.uses or 1, expires)
        return pb.CreateRegistrationTokenResponse(registration_token=token, expire_time=timestamp(expires))

    async def ListMyConsents(
        self, request: pb.ListMyConsentsRequest, call: RequestContext
    ) -> pb.ListMyConsentsResponse:
        consents, more = await self._consents(request, call, call.user.user_id)
        return pb.ListMyConsentsResponse(consents=consents, next_page_token=more)

    async def ListUserConsents(
        self, request: pb.ListUserConsentsRequest, call: RequestContext
    ) -> pb.ListUserConsentsResponse:
        consents, more = await self._consents(request, call, request.user_id)
        return pb.ListUserConsentsResponse(consents=consents, next_page_token=more)

    async def _consents(self, request: Any, call: RequestContext, user_id: str) -> tuple[list[pb.Consent], str]:
        """A page of them, and the token of the next."""
        consents = partial(self._clients.consents_of, user_id)
        rows, more = await self._pager.page(request, call, consents, by="client_id")
        return [_consent(row) for row in rows], more

    async def RevokeConsent(self, request: pb.RevokeConsentRequest, call: RequestContext) -> pb.RevokeConsentResponse:
        if not await self._clients.withdraw(call.user.user_id, request.client_id):
            raise ConsentNotFound(client_id=request.client_id)
        return pb.RevokeConsentResponse()

    async def CreateProvider(
        self, request: pb.CreateProviderRequest, call: RequestContext
    ) -> pb.CreateProviderResponse:
        provider = request.provider
        problem = trust_problem(provider.issuer, self._networks)
        if problem:
            raise IssuerInvalid(why=problem)
        purpose = PROVIDER_SECRETS.purpose_of(call.tenant_id, provider.provider_id)
        row = await self._providers.insert(
            provider.provider_id,
            provider.title,
            provider.issuer,
            provider.client_id,
            self._sealer.seal(request.client_secret.encode(), purpose) if request.client_secret else None,
            list(provider.scopes),
        )
        return pb.CreateProviderResponse(provider=_provider(row))

    async def ListProviders(self, request: pb.ListProvidersRequest, call: RequestContext) -> pb.ListProvidersResponse:
        return pb.ListProvidersResponse(providers=[_provider(row) for row in await self._providers.list()])

    async def DeleteProvider(
        self, request: pb.DeleteProviderRequest, call: RequestContext
    ) -> pb.DeleteProviderResponse:
        await self._providers.delete(request.provider_id)
        return pb.DeleteProviderResponse()

    async def _made_before(self, request: pb.CreateClientRequest, call: RequestContext, client_id: str) -> str | None:
        """The client that this request has made already; else this one is now the one it makes.

        Raises IdempotencyKeyReused.
        """
        if call.idempotency_key is None:
            return None
        key_hash = hash_secret(f"{call.user.user_id} {call.idempotency_key}")
        request_hash = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        earlier = await self._clients.claim_request(key_hash, request_hash, client_id)
        if earlier is None:
            return None
        if earlier["request_hash"] != request_hash:
            raise IdempotencyKeyReused(key=call.idempotency_key)
        return str(earlier["client_id"])

    def _checked(self, settings: pb.ClientSettings, authentication: str, call: RequestContext) -> dict[str, Any]:
        """What is stored of settings. Raises ClientMetadataInvalid, ScopeNotHeld."""
        grant_types = list(settings.grant_types) or list(clients.DEFAULT_GRANT_TYPES)
        clients.check(
            authentication=authentication,
            grant_types=grant_types,
            redirect_uris=settings.redirect_uris,
            post_logout_redirect_uris=settings.post_logout_redirect_uris,
            jwks=settings.jwks,
        )
        _require_held(settings.scopes, call)
        return {
            "client_name": settings.client_name,
            "redirect_uris": list(settings.redirect_uris),
            "post_logout_redirect_uris": list(settings.post_logout_redirect_uris),
            "grant_types": grant_types,
            "scopes": list(dict.fromkeys(settings.scopes)),
            "audiences": list(settings.audiences),
            "first_party": settings.first_party,
            "jwks": settings.jwks,
            "id_token_algorithm": settings.id_token_signed_response_alg or "ES256",
        }


def _require_held(scopes: Sequence[str], call: RequestContext) -> None:
    """Raises ScopeNotHeld for a client that may do what its administrator may not."""
    for scope in clients.permissions_in(scopes):
        if not call.user.may(scope):
            raise ScopeNotHeld(scope=scope)


def _client(client: Client) -> pb.Client:
    return pb.Client(
        client_id=client.client_id,
        settings=pb.ClientSettings(
            client_name=client.client_name,
            redirect_uris=client.redirect_uris,
            post_logout_redirect_uris=client.post_logout_redirect_uris,
            grant_types=client.grant_types,
            scopes=client.scopes,
            audiences=client.audiences,
            first_party=client.first_party,
            jwks=client.jwks,
            id_token_signed_response_alg=client.id_token_algorithm,
        ),
        authentication=pb.ClientAuthentication.Value(f"CLIENT_AUTHENTICATION_{client.authentication.upper()}"),
        create_time=timestamp(client.create_time),
    )


def _provider(row: Any) -> pb.Provider:
    return pb.Provider(
        provider_id=row["provider_id"],
        title=row["title"],
        issuer=row["issuer"],
        client_id=row["client_id"],
        scopes=row["scopes"],
        create_time=timestamp(row["create_time"]),
    )
