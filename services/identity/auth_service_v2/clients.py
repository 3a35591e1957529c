"""What a client may be: where it may send users, what it may ask for, how it proves who it is."""

import hmac
import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from nexus.identity.auth_service_v2.v1.faults import ClientMetadataInvalid
from services.chassis.ids import hash_secret

AUTHORIZATION_CODE = "authorization_code"
REFRESH_TOKEN = "refresh_token"
CLIENT_CREDENTIALS = "client_credentials"
DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
GRANT_TYPES = (AUTHORIZATION_CODE, REFRESH_TOKEN, CLIENT_CREDENTIALS, DEVICE_CODE, TOKEN_EXCHANGE)
DEFAULT_GRANT_TYPES = (AUTHORIZATION_CODE, REFRESH_TOKEN)
FOR_CONFIDENTIAL_CLIENTS = (CLIENT_CREDENTIALS, TOKEN_EXCHANGE)

BASIC, POST, NONE = "client_secret_basic", "client_secret_post", "none"
PRIVATE_KEY_JWT = "private_key_jwt"
AUTHENTICATIONS = (BASIC, POST, PRIVATE_KEY_JWT, NONE)
ASSERTION_ALGORITHMS = ("ES256", "RS256", "PS256", "EdDSA", "ES384", "RS384", "PS384", "ES512", "RS512", "PS512")
"""By which a client may sign what it authenticates with. None that a public key could be mistaken for the secret of."""
ID_TOKEN_ALGORITHMS = ("ES256", "RS256")
MAX_KEYS = 20

STANDARD_SCOPES = {
    "openid": "Know that it is you",
    "profile": "See your name",
    "email": "See your e-mail address",
    "offline_access": "Act for you while you are not there",
}
"""The scopes that OpenID Connect gives a meaning, with what users read of them."""
OWN_SCOPES = {
    "my.account": "See your account and your settings",
    "my.billing": "See your subscriptions, bills and payments",
    "my.orders": "Order for you, and pay with what you have on file",
}
"""The scopes that contracts name for what is the user's own, with what users read of them."""

_PRIVATE_SCHEME = re.compile(r"[a-z][a-z0-9+-]*(\.[a-z0-9+-]+)+")


@dataclass(frozen=True)
class Client:
    """An OAuth client as it is registered."""

    client_id: str
    client_name: str
    authentication: str
    secret_hash: bytes | None
    redirect_uris: Sequence[str]
    post_logout_redirect_uris: Sequence[str]
    grant_types: Sequence[str]
    scopes: Sequence[str]
    audiences: Sequence[str]
    first_party: bool
    create_time: datetime

    jwks: str
    """Its public keys, a JWK Set in JSON; empty unless it signs."""
    id_token_algorithm: str
    registration_hash: bytes | None
    """Of the token by which it manages itself; None for one that an administrator registered."""

    @property
    def is_confidential(self) -> bool:
        """Whether it can prove who it is (RFC 6749, section 2.1)."""
        return self.authentication != NONE

    @property
    def keeps_a_secret(self) -> bool:
        return keeps_a_secret(self.authentication)

    def has_secret(self, secret: str) -> bool:
        return self.secret_hash is not None and hmac.compare_digest(hash_secret(secret), self.secret_hash)

    def is_managed_by(self, token: str) -> bool:
        """Whether this is its registration access token (RFC 7592, section 3)."""
        return self.registration_hash is not None and hmac.compare_digest(hash_secret(token), self.registration_hash)


def keeps_a_secret(authentication: str) -> bool:
    return authentication in (BASIC, POST)


def permissions_in(scopes: Sequence[str]) -> list[str]:
    """The scopes that are permissions."""
    return [scope for scope in scopes if scope not in STANDARD_SCOPES and scope not in OWN_SCOPES]


def held(scopes: Sequence[str], permissions: Sequence[str]) -> list[str]:
    """The permissions among the scopes that somebody with these permissions has."""
    return [scope for scope in permissions_in(scopes) if scope in permissions or "*" in permissions]


def check(
    *,
    authentication: str,
    grant_types: Sequence[str],
    redirect_uris: Sequence[str],
    post_logout_redirect_uris: Sequence[str],
    jwks: str,
) -> None:
    """Raises ClientMetadataInvalid for a client that no standard allows."""
    if authentication not in AUTHENTICATIONS:
        raise ClientMetadataInvalid(why="its authentication method is not supported")
    for grant_type in grant_types:
        if grant_type not in GRANT_TYPES:
            raise ClientMetadataInvalid(why=f"the grant type {grant_type} is not supported")
        if grant_type in FOR_CONFIDENTIAL_CLIENTS and authentication == NONE:
            raise ClientMetadataInvalid(why=f"the grant type {grant_type} is for clients that can keep a secret")
    if (authentication == PRIVATE_KEY_JWT) != bool(jwks):
        raise ClientMetadataInvalid(why="keys are for clients that authenticate by private_key_jwt, and only for them")
    problem = keys_problem(jwks) if jwks else None
    if problem:
        raise ClientMetadataInvalid(why=f"its key set {problem}")
    if AUTHORIZATION_CODE in grant_types and not redirect_uris:
        raise ClientMetadataInvalid(why="a client that sends users here needs a redirect URI to get them back")
    for uri in (*redirect_uris, *post_logout_redirect_uris):
        problem = redirect_problem(uri)
        if problem:
            raise ClientMetadataInvalid(why=f"{uri} {problem}")


def keys_problem(jwks: str) -> str | None:
    """Why a client cannot sign with a key set (RFC 7517, section 5), or None if it can."""
    try:
        keys = KeySet.import_key_set(json.loads(jwks)).keys
    except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "cannot be read"
    if len(keys) > MAX_KEYS:
        return f"has more than {MAX_KEYS} keys"
    if any(key.key_type == "oct" or key.is_private for key in keys):
        return "has keys that are not public"
    return None


def redirect_problem(uri: str) -> str | None:
    """Why users cannot be sent to a URI (RFC 9700, section 2.1; RFC 8252, section 7), or None if they can."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname
    except ValueError:
        return "is not a URI"
    if "#" in uri:
        return "has a fragment"
    if not uri.isascii() or not uri.isprintable() or " " in uri:
        return "has characters that a URI writes as escapes"
    if parts.username is not None:
        return "names a user"
    if parts.scheme == "https":
        return None if host else "has no host"
    if parts.scheme == "http":
        return None if is_loopback(host) else "is neither https nor on a loopback address"
    if _PRIVATE_SCHEME.fullmatch(parts.scheme):
        return None
    return "has a scheme that is neither https nor a private one like com.example.app"


def is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
