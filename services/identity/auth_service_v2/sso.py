"""Signing in at an upstream OpenID Provider: code flow with PKCE, state and nonce (OpenID Connect Core 1.0, 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from services.chassis.ids import new_secret
from services.chassis.issuers import tenant_issuer
from services.chassis.service import Service
from services.identity.auth_service_v2.outward import OutwardTransport, reachable, trust_problem
from services.identity.auth_service_v2.spec import PROVIDER_SECRETS

_TIMEOUT_SECONDS = 5.0
_ALGORITHMS = ("RS256", "ES256", "PS256", "RS384", "ES384", "PS384", "RS512", "ES512", "PS512", "EdDSA")
_LEEWAY_SECONDS = 60
_MAX_SUBJECT = 255
"""OpenID Connect Core 1.0, section 2."""
_DEFAULT_SCOPES = ("email", "profile")


class UpstreamFailed(Exception):  # noqa: N818  an answer, not a failure of the program
    """The provider did not vouch for the user. The message is for the user."""


@dataclass(frozen=True)
class Trip:
    """A user's way to the provider."""

    client: AsyncOAuth2Client
    endpoint: str
    nonce: str
    verifier: str

    def location(self, state: str) -> str:
        uri, _ = self.client.create_authorization_url(
            self.endpoint, state=state, nonce=self.nonce, code_verifier=self.verifier
        )
        return str(uri)


class Upstream:
    """Upstream providers, as their rows say."""

    def __init__(self, service: Service) -> None:
        self._settings = service.settings
        self._sealer = service.sealer
        self._networks = reachable(service)

    async def start(self, provider: Mapping[str, Any], tenant_id: str) -> Trip:
        """Raises UpstreamFailed."""
        async with self._client(provider, tenant_id) as client:
            metadata = await self._metadata(client, provider["issuer"])
            endpoint = metadata.get("authorization_endpoint")
            # The browser goes there, from wherever it is.
            if not isinstance(endpoint, str) or trust_problem(endpoint, self._networks, query=True):
                raise UpstreamFailed("The provider sends you where you should not go.")
            return Trip(client, endpoint, nonce=new_secret(), verifier=new_secret())

    async def finish(
        self,
        provider: Mapping[str, Any],
        tenant_id: str,
        parameters: Mapping[str, str],
        *,
        nonce: str,
        verifier: str,
    ) -> dict[str, Any]:
        """The claims of the user who comes back: those of the ID token, then those of the userinfo endpoint.

        Raises UpstreamFailed.
        """
        issuer = provider["issuer"]
        if "code" not in parameters:
            raise UpstreamFailed("The provider did not sign you in.")
        if parameters.get("iss", issuer) != issuer:
            raise UpstreamFailed("The answer came from another provider.")  # RFC 9207: a mix-up
        async with self._client(provider, tenant_id) as client:
            metadata = await self._metadata(client, issuer)
            try:
                token = await client.fetch_token(
                    metadata["token_endpoint"], code=parameters["code"], code_verifier=verifier
                )
                keys = (
                    (await client.request("GET", metadata["jwks_uri"], withhold_token=True)).raise_for_status().json()
                )
                claims = self._verified(token["id_token"], keys, issuer, provider["client_id"], nonce)
                endpoint = metadata.get("userinfo_endpoint")
                more = (await client.get(endpoint)).raise_for_status().json() if endpoint else {}
            except (httpx2.HTTPError, AuthlibBaseError, JoseError, ValueError, KeyError, TypeError) as error:
                raise UpstreamFailed("The provider's answer cannot be believed.") from error
        if more and more.get("sub") != claims["sub"]:
            raise UpstreamFailed("The provider speaks of two users.")
        if not isinstance(claims["sub"], str) or len(claims["sub"]) > _MAX_SUBJECT:
            raise UpstreamFailed("The provider's name for you is none.")
        # How the user proved who they are is said by what is signed.
        return {**{name: claim for name, claim in more.items() if name not in ("acr", "amr")}, **claims}

    def _client(self, provider: Mapping[str, Any], tenant_id: str) -> AsyncOAuth2Client:
        sealed = provider["client_secret"]
        purpose = PROVIDER_SECRETS.purpose_of(tenant_id, provider["provider_id"])
        secret = self._sealer.open(sealed, purpose).decode() if sealed is not None else None
        base = tenant_issuer(self._settings, tenant_id)
        return AsyncOAuth2Client(
            provider["client_id"],
            secret,
            token_endpoint_auth_method="client_secret_basic" if secret else "none",
            scope=" ".join(["openid", *(provider["scopes"] or _DEFAULT_SCOPES)]),
            redirect_uri=f"{base}/sso/{provider['provider_id']}/callback",
            code_challenge_method="S256",
            timeout=_TIMEOUT_SECONDS,
            transport=OutwardTransport(self._networks),
        )

    async def _metadata(self, client: AsyncOAuth2Client, issuer: str) -> dict[str, Any]:
        """Raises UpstreamFailed for a provider that does not answer, or whose metadata are another's."""
        url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        try:
            answer = await client.request("GET", url, withhold_token=True)
            metadata: dict[str, Any] = answer.raise_for_status().json()
            named = metadata["issuer"]
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            raise UpstreamFailed("The provider does not answer; try again later.") from error
        if named != issuer:
            raise UpstreamFailed("The provider calls itself by another name.")
        return metadata

    @staticmethod
    def _verified(id_token: str, keys: Any, issuer: str, client_id: str, nonce: str) -> dict[str, Any]:
        """OpenID Connect Core 1.0, section 3.1.3.7. Raises JoseError."""
        claims = jwt.decode(id_token, KeySet.import_key_set(keys), algorithms=list(_ALGORITHMS)).claims
        jwt.JWTClaimsRegistry(
            leeway=_LEEWAY_SECONDS,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": client_id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": nonce},
            azp={"value": client_id},
        ).validate(claims)
        return claims
