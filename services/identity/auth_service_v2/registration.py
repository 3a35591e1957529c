"""Clients that register themselves (RFC 7591; OpenID Connect Dynamic Client Registration 1.0)."""

from typing import Annotated, Any, Literal

from authlib.oauth2 import OAuth2Error
from pydantic import BaseModel, Field, ValidationError

from nexus.identity.auth_service_v2.v1.faults import ClientMetadataInvalid
from services.chassis.ids import hash_secret, new_id, new_secret
from services.chassis.service import Service
from services.identity.auth_service_v2 import clients
from services.identity.auth_service_v2.store import ClientStore

_Uri = Annotated[str, Field(max_length=2048)]


class Metadata(BaseModel):
    """RFC 7591, section 2. What is not understood is ignored, as it says."""

    client_name: str = Field(default="An application", min_length=1, max_length=200)
    redirect_uris: list[_Uri] = Field(default=[], max_length=50)
    post_logout_redirect_uris: list[_Uri] = Field(default=[], max_length=50)
    token_endpoint_auth_method: str = Field(default=clients.BASIC, max_length=64)
    grant_types: list[Annotated[str, Field(max_length=64)]] = Field(default=[clients.AUTHORIZATION_CODE], max_length=5)
    response_types: list[Literal["code"]] = Field(default=["code"], max_length=1)
    scope: str = Field(default=" ".join(clients.STANDARD_SCOPES), max_length=256)


class Registration:
    """The registration endpoint."""

    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._clients = ClientStore(service.database)

    async def register(self, token: str, body: bytes) -> dict[str, Any] | None:
        """The new client's information (RFC 7591, section 3.2.1); None if the token is not good. Raises OAuth2Error."""
        async with self._database.transaction():
            if not token or not await self._clients.use_registration_token(hash_secret(token)):
                return None
            try:
                metadata = Metadata.model_validate_json(body)
                clients.check(
                    authentication=metadata.token_endpoint_auth_method,
                    grant_types=metadata.grant_types,
                    redirect_uris=metadata.redirect_uris,
                    post_logout_redirect_uris=metadata.post_logout_redirect_uris,
                )
            except ValidationError:
                raise OAuth2Error("the metadata cannot be read", error="invalid_client_metadata") from None
            except ClientMetadataInvalid as fault:
                uri = any(clients.redirect_problem(uri) for uri in metadata.redirect_uris)
                kind = "invalid_redirect_uri" if uri else "invalid_client_metadata"
                raise OAuth2Error(_printable(fault.message), error=kind) from None
            if clients.CLIENT_CREDENTIALS in metadata.grant_types or clients.TOKEN_EXCHANGE in metadata.grant_types:
                raise OAuth2Error("only an administrator gives these grants", error="invalid_client_metadata")
            scopes = [scope for scope in metadata.scope.split() if scope in clients.STANDARD_SCOPES]
            secret = new_secret() if metadata.token_endpoint_auth_method != clients.NONE else ""
            client = await self._clients.insert(
                new_id(),
                client_name=metadata.client_name,
                authentication=metadata.token_endpoint_auth_method,
                secret_hash=hash_secret(secret) if secret else None,
                redirect_uris=metadata.redirect_uris,
                post_logout_redirect_uris=metadata.post_logout_redirect_uris,
                grant_types=metadata.grant_types,
                scopes=scopes,
            )
        information = metadata.model_dump() | {
            "client_id": client.client_id,
            "client_id_issued_at": int(client.create_time.timestamp()),
            "scope": " ".join(scopes),
        }
        return information | ({"client_secret": secret, "client_secret_expires_at": 0} if secret else {})


def _printable(text: str) -> str:
    """What an error description may hold (RFC 6749, section 5.2)."""
    return "".join(c for c in text if " " <= c <= "~" and c not in '"\\')
