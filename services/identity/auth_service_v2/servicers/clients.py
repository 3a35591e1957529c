"""ClientService: clients, consent and upstream providers."""

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
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
    ProviderExists,
    ProviderNotFound,
    ScopeNotHeld,
)
from nexus.type.v1.faults import IdempotencyKeyReused
from services.chassis.clock import now, timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import hash_secret, new_id, new_secret
from services.chassis.messages import MessageOf, text_of, values_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.identity.auth_service_v2 import clients
from services.identity.auth_service_v2.outward import reachable, trust_problem
from services.identity.auth_service_v2.spec import PROVIDER_SECRETS
from services.identity.auth_service_v2.store import MAX_PROVIDERS, Store

_DEFAULT_REGISTRATION_SECONDS = 3600
_KEEP_REQUESTS = timedelta(hours=24)

_settings = MessageOf(pb.ClientSettings, id_token_signed_response_alg="id_token_algorithm")  # noqa: S106  a column
_client_of = MessageOf(pb.Client)
_consent = MessageOf(pb.Consent)
_provider = MessageOf(pb.Provider)


class ClientService:
    def __init__(self, service: Service) -> None:
        self._networks = reachable(service)
        self._database = service.database
        self._events = service.events
        self._sealer = service.sealer
        self._pager = Pager(service.sealer)
        self._store = Store(service.database)

    async def CreateClient(self, request: pb.CreateClientRequest, call: RequestContext) -> pb.CreateClientResponse:
        authentication = text_of(pb.ClientAuthentication, request.authentication).lower() or clients.BASIC
        settings = _checked(request.settings, authentication, call)
        secret = new_secret() if clients.keeps_a_secret(authentication) else ""
        client_id = new_id()
        async with self._database.transaction():
            made = await self._made_before(request, call, client_id)
            if made is not None:
                return pb.CreateClientResponse(client=_client(await self._store.clients.require(made)))
            client = await self._store.clients.insert(
                client_id=client_id,
                authentication=authentication,
                secret_hash=hash_secret(secret) if secret else None,
                **settings,
            )
            await self._events.publish(ClientCreated(client_id=client_id), aggregate=client_id)
        return pb.CreateClientResponse(client=_client(client), client_secret=secret)

    async def GetClient(self, request: pb.GetClientRequest, call: RequestContext) -> pb.GetClientResponse:
        return pb.GetClientResponse(client=_client(await self._store.clients.require(request.client_id)))

    async def ListClients(self, request: pb.ListClientsRequest, call: RequestContext) -> pb.ListClientsResponse:
        rows, more = await self._pager.page(request, call, self._store.clients.page, by="client_id")
        return pb.ListClientsResponse(clients=map(_client, rows), next_page_token=more)

    async def UpdateClient(self, request: pb.UpdateClientRequest, call: RequestContext) -> pb.UpdateClientResponse:
        async with self._database.transaction():
            known = await self._store.clients.require(request.client_id, lock=True)
            settings = _checked(request.settings, known["authentication"], call)
            client = await self._store.clients.change(request.client_id, **settings)
            await self._events.publish(ClientUpdated(client_id=client["client_id"]), aggregate=client["client_id"])
        return pb.UpdateClientResponse(client=_client(client))

    async def RotateClientSecret(
        self, request: pb.RotateClientSecretRequest, call: RequestContext
    ) -> pb.RotateClientSecretResponse:
        secret = new_secret()
        async with self._database.transaction():
            client = await self._store.clients.require(request.client_id, lock=True)
            # Who has the secret acts with the scopes.
            _require_held(client["scopes"], call)
            if not clients.keeps_a_secret(client["authentication"]):
                raise ClientMetadataInvalid(why="it has no secret")
            await self._store.clients.change(request.client_id, secret_hash=hash_secret(secret))
            await self._events.publish(
                ClientSecretRotated(client_id=client["client_id"]), aggregate=client["client_id"]
            )
        return pb.RotateClientSecretResponse(client_secret=secret)

    async def DeleteClient(self, request: pb.DeleteClientRequest, call: RequestContext) -> pb.DeleteClientResponse:
        async with self._database.transaction():
            client_id = (await self._store.clients.require(request.client_id, lock=True))["client_id"]
            await self._store.clients.delete(client_id=client_id)
            await self._events.publish(ClientDeleted(client_id=client_id), aggregate=client_id)
        return pb.DeleteClientResponse()

    async def CreateRegistrationToken(
        self, request: pb.CreateRegistrationTokenRequest, call: RequestContext
    ) -> pb.CreateRegistrationTokenResponse:
        token = new_secret()
        expires = now() + timedelta(seconds=request.lifetime_seconds or _DEFAULT_REGISTRATION_SECONDS)
        await self._store.registration_tokens.insert(
            token_hash=hash_secret(token), remaining_uses=request.uses or 1, expire_time=expires
        )
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
        consents = partial(self._store.consents_of, user_id)
        rows, more = await self._pager.page(request, call, consents, by="client_id")
        return [_consent(row) for row in rows], more

    async def RevokeConsent(self, request: pb.RevokeConsentRequest, call: RequestContext) -> pb.RevokeConsentResponse:
        if not await self._store.consents.delete(user_id=call.user.user_id, client_id=request.client_id):
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
        row = await self._store.providers.insert_new(
            client_secret=self._sealer.seal(request.client_secret.encode(), purpose) if request.client_secret else None,
            **values_of(provider, "provider_id", "title", "issuer", "client_id", "scopes"),
        )
        if row is None:
            raise ProviderExists(provider_id=provider.provider_id)
        return pb.CreateProviderResponse(provider=_provider(row))

    async def ListProviders(self, request: pb.ListProvidersRequest, call: RequestContext) -> pb.ListProvidersResponse:
        rows = await self._store.providers.page("", MAX_PROVIDERS)
        return pb.ListProvidersResponse(providers=map(_provider, rows))

    async def DeleteProvider(
        self, request: pb.DeleteProviderRequest, call: RequestContext
    ) -> pb.DeleteProviderResponse:
        if not await self._store.providers.delete(provider_id=request.provider_id):
            raise ProviderNotFound(provider_id=request.provider_id)
        return pb.DeleteProviderResponse()

    async def _made_before(self, request: pb.CreateClientRequest, call: RequestContext, client_id: str) -> str | None:
        """The client that this request has made already; else this one is now the one it makes. A twin waits here.

        Raises IdempotencyKeyReused.
        """
        if call.idempotency_key is None:
            return None
        key_hash = hash_secret(f"{call.user.user_id} {call.idempotency_key}")
        request_hash = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        claimed = await self._store.client_requests.insert_new(
            key_hash=key_hash, request_hash=request_hash, client_id=client_id, expire_time=now() + _KEEP_REQUESTS
        )
        if claimed is not None:
            return None
        earlier = await self._store.client_requests.get(key_hash)
        assert earlier is not None, "the conflicting row was committed, so it can be read"
        if earlier["request_hash"] != request_hash:
            raise IdempotencyKeyReused(key=call.idempotency_key)
        return str(earlier["client_id"])


def _checked(settings: pb.ClientSettings, authentication: str, call: RequestContext) -> dict[str, Any]:
    """What is stored of settings. Raises ClientMetadataInvalid, ScopeNotHeld."""
    grant_types = list(settings.grant_types) or list(clients.DEFAULT_GRANT_TYPES)
    asked = values_of(settings, "redirect_uris", "post_logout_redirect_uris", "jwks")
    clients.check(authentication=authentication, grant_types=grant_types, **asked)
    _require_held(settings.scopes, call)
    return {
        **asked,
        **values_of(settings, "client_name", "audiences", "first_party"),
        "grant_types": grant_types,
        "scopes": list(dict.fromkeys(settings.scopes)),
        "id_token_algorithm": settings.id_token_signed_response_alg or "ES256",
    }


def _require_held(scopes: Sequence[str], call: RequestContext) -> None:
    """Raises ScopeNotHeld for a client that may do what its administrator may not."""
    for scope in clients.permissions_in(scopes):
        if not call.user.may(scope):
            raise ScopeNotHeld(scope=scope)


def _client(row: Row) -> pb.Client:
    return _client_of(row, settings=_settings(row))
