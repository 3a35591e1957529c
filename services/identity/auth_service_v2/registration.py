"""Clients that register themselves (RFC 7591; OpenID Connect Dynamic Client Registration 1.0) and look after what is
registered of them (RFC 7592)."""

import json
from typing import Annotated, Any, Literal, Self

from authlib.oauth2 import OAuth2Error
from pydantic import BaseModel, Field, ValidationError

from nexus.identity.auth_service_v2.v1.events_pb2 import ClientCreated, ClientDeleted, ClientUpdated
from nexus.identity.auth_service_v2.v1.faults import ClientMetadataInvalid
from services.chassis.context import RequestContext
from services.chassis.ids import hash_secret, new_id, new_secret
from services.chassis.issuers import tenant_issuer
from services.chassis.service import Service
from services.identity.auth_service_v2 import clients
from services.identity.auth_service_v2.clients import Client
from services.identity.auth_service_v2.replies import Reply, as_json, bearer_refusal
from services.identity.auth_service_v2.store import Store

_Uri = Annotated[str, Field(max_length=2048)]
_MAX_JWKS = 16_384
_INVALID = "invalid_client_metadata"


class Metadata(BaseModel):
    """RFC 7591, section 2. What is not understood is ignored, as it says."""

    client_name: str = Field(default="An application", min_length=1, max_length=200)
    redirect_uris: list[_Uri] = Field(default=[], max_length=50)
    post_logout_redirect_uris: list[_Uri] = Field(default=[], max_length=50)
    token_endpoint_auth_method: str = Field(default=clients.BASIC, max_length=64)
    grant_types: list[Annotated[str, Field(max_length=64)]] = Field(default=[clients.AUTHORIZATION_CODE], max_length=5)
    response_types: list[Literal["code"]] = Field(default=["code"], max_length=1)
    scope: str = Field(default=" ".join(clients.STANDARD_SCOPES), max_length=256)
    jwks: dict[str, Any] | None = None
    jwks_uri: None = None
    """Not supported: we fetch nothing from where a stranger says."""
    id_token_signed_response_alg: Literal["ES256", "RS256"] = "RS256"
    """Its default is OpenID Connect's."""

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Raises OAuth2Error for what no client of a stranger may be."""
        try:
            metadata = cls.model_validate_json(body)
            clients.check(
                authentication=metadata.token_endpoint_auth_method,
                grant_types=metadata.grant_types,
                redirect_uris=metadata.redirect_uris,
                post_logout_redirect_uris=metadata.post_logout_redirect_uris,
                jwks=metadata.keys,
            )
        except ValidationError:
            raise OAuth2Error("the metadata cannot be read", error=_INVALID) from None
        except ClientMetadataInvalid as invalid:
            about_redirects = any(map(clients.redirect_problem, metadata.redirect_uris))
            error = "invalid_redirect_uri" if about_redirects else _INVALID
            raise OAuth2Error(_printable(invalid.message), error=error) from None
        if len(metadata.keys) > _MAX_JWKS:
            raise OAuth2Error("the key set is too long", error=_INVALID)
        if set(clients.FOR_CONFIDENTIAL_CLIENTS) & set(metadata.grant_types):
            raise OAuth2Error("only an administrator gives these grants", error=_INVALID)
        return metadata

    @property
    def keys(self) -> str:
        return json.dumps(self.jwks) if self.jwks is not None else ""

    def settings(self) -> dict[str, Any]:
        """What is stored."""
        return {
            "client_name": self.client_name,
            "authentication": self.token_endpoint_auth_method,
            "redirect_uris": self.redirect_uris,
            "post_logout_redirect_uris": self.post_logout_redirect_uris,
            "grant_types": self.grant_types,
            "scopes": [scope for scope in self.scope.split() if scope in clients.STANDARD_SCOPES],
            "jwks": self.keys,
            "id_token_algorithm": self.id_token_signed_response_alg,
        }


class Replacement(Metadata):
    """RFC 7592, section 2.2: names the client, and nothing that only we decide."""

    client_id: str
    client_secret: str = ""
    registration_access_token: None = None
    registration_client_uri: None = None
    client_secret_expires_at: None = None
    client_id_issued_at: None = None


class Registration:
    """The registration endpoint, and the client configuration endpoint of each client that came from it."""

    def __init__(self, service: Service) -> None:
        self._settings = service.settings
        self._database = service.database
        self._events = service.events
        self._store = Store(service.database)

    async def register(self, token: str, body: bytes, call: RequestContext) -> Reply:
        """RFC 7591, section 3. Raises OAuth2Error."""
        async with self._database.transaction():
            if not token or not await self._store.use_registration_token(hash_secret(token)):
                return bearer_refusal(401, "invalid_token", "a registration token is needed")
            metadata = Metadata.read(body)
            secret = _new_secret_for(metadata)
            access_token = new_secret()
            row = await self._store.clients.insert(
                client_id=new_id(),
                secret_hash=hash_secret(secret) if secret else None,
                registration_hash=hash_secret(access_token),
                audiences=[],
                first_party=False,
                **metadata.settings(),
            )
            client = Client(**row)
            await self._events.publish(ClientCreated(client_id=client.client_id), aggregate=client.client_id)
        return as_json(self._information(client, access_token, call, secret=secret), 201)

    async def read(self, client_id: str, token: str, call: RequestContext) -> Reply:
        """RFC 7592, section 2.1."""
        client = await self._managed(client_id, token)
        return as_json(self._information(client, token, call)) if client is not None else _refusal()

    async def replace(self, client_id: str, token: str, body: bytes, call: RequestContext) -> Reply:
        """RFC 7592, section 2.2. Raises OAuth2Error."""
        async with self._database.transaction():
            client = await self._managed(client_id, token, lock=True)
            if client is None:
                return _refusal()
            metadata = Replacement.read(body)
            right_secret = not metadata.client_secret or client.has_secret(metadata.client_secret)
            if metadata.client_id != client_id or not right_secret:
                raise OAuth2Error("the client is another one", error=_INVALID)
            secret = "" if client.keeps_a_secret else _new_secret_for(metadata)
            kept = client.secret_hash if clients.keeps_a_secret(metadata.token_endpoint_auth_method) else None
            renewed = await self._store.clients.change(
                client.client_id, secret_hash=hash_secret(secret) if secret else kept, **metadata.settings()
            )
            await self._events.publish(ClientUpdated(client_id=client.client_id), aggregate=client.client_id)
        return as_json(self._information(Client(**renewed), token, call, secret=secret))

    async def remove(self, client_id: str, token: str) -> Reply:
        """RFC 7592, section 2.3."""
        async with self._database.transaction():
            client = await self._managed(client_id, token, lock=True)
            if client is None:
                return _refusal()
            await self._store.clients.delete(client_id=client.client_id)
            await self._events.publish(ClientDeleted(client_id=client.client_id), aggregate=client.client_id)
        return Reply(204)

    async def _managed(self, client_id: str, token: str, *, lock: bool = False) -> Client | None:
        client = await self._store.client(client_id, lock=lock)
        return client if client is not None and client.is_managed_by(token) else None

    def _information(self, client: Client, token: str, call: RequestContext, *, secret: str = "") -> dict[str, Any]:
        """RFC 7591, section 3.2.1, and RFC 7592, section 3. A secret is told once: only its hash is kept."""
        content: dict[str, Any] = {
            "client_id": client.client_id,
            "client_id_issued_at": int(client.create_time.timestamp()),
            "client_name": client.client_name,
            "redirect_uris": client.redirect_uris,
            "post_logout_redirect_uris": client.post_logout_redirect_uris,
            "token_endpoint_auth_method": client.authentication,
            "grant_types": client.grant_types,
            "response_types": ["code"],
            "scope": " ".join(client.scopes),
            "id_token_signed_response_alg": client.id_token_algorithm,
            "registration_access_token": token,
            "registration_client_uri": (
                f"{tenant_issuer(self._settings, call.tenant_id)}/oauth2/register/{client.client_id}"
            ),
        }
        if client.jwks:
            content["jwks"] = json.loads(client.jwks)
        if secret:
            content |= {"client_secret": secret, "client_secret_expires_at": 0}
        return content


def _new_secret_for(metadata: Metadata) -> str:
    return new_secret() if clients.keeps_a_secret(metadata.token_endpoint_auth_method) else ""


def _refusal() -> Reply:
    """The same for a client that there is not (RFC 7592, section 2)."""
    return bearer_refusal(401, "invalid_token", "the registration access token is not valid for this client")


def _printable(text: str) -> str:
    """What an error description may hold (RFC 6749, section 5.2)."""
    return "".join(c for c in text if " " <= c <= "~" and c not in '"\\')
