"""What a client may be: where it may send users, what it may ask for, how it proves who it is."""

import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from nexus.identity.auth_service_v2.v1.faults import ClientMetadataInvalid
from services.chassis.ids import hash_secret

AUTHORIZATION_CODE = "authorization_code"
REFRESH_TOKEN = "refresh_token"
CLIENT_CREDENTIALS = "client_credentials"
DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
GRANT_TYPES = (AUTHORIZATION_CODE, REFRESH_TOKEN, CLIENT_CREDENTIALS, DEVICE_CODE, TOKEN_EXCHANGE)
DEFAULT_GRANT_TYPES = (AUTHORIZATION_CODE, REFRESH_TOKEN)
FOR_SECRET_KEEPERS = (CLIENT_CREDENTIALS, TOKEN_EXCHANGE)

BASIC, POST, NONE = "client_secret_basic", "client_secret_post", "none"
AUTHENTICATIONS = (BASIC, POST, NONE)

STANDARD_SCOPES = {
    "openid": "Know that it is you",
    "profile": "See your name",
    "email": "See your e-mail address",
    "offline_access": "Act for you while you are not there",
}
"""The scopes that are not permissions, with what users read of them."""

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

    @property
    def keeps_a_secret(self) -> bool:
        return self.authentication != NONE

    def has_secret(self, secret: str) -> bool:
        return self.secret_hash is not None and hmac.compare_digest(hash_secret(secret), self.secret_hash)


def permissions_in(scopes: Sequence[str]) -> list[str]:
    """The scopes that are permissions."""
    return [scope for scope in scopes if scope not in STANDARD_SCOPES]


def held(scopes: Sequence[str], permissions: Sequence[str]) -> list[str]:
    """The permissions among the scopes that somebody with these permissions has."""
    return [scope for scope in permissions_in(scopes) if scope in permissions or "*" in permissions]


def check(
    *,
    authentication: str,
    grant_types: Sequence[str],
    redirect_uris: Sequence[str],
    post_logout_redirect_uris: Sequence[str],
) -> None:
    """Raises ClientMetadataInvalid for a client that no standard allows."""
    if authentication not in AUTHENTICATIONS:
        raise ClientMetadataInvalid(why="its authentication method is not supported")
    for grant_type in grant_types:
        if grant_type not in GRANT_TYPES:
            raise ClientMetadataInvalid(why=f"the grant type {grant_type} is not supported")
        if grant_type in FOR_SECRET_KEEPERS and authentication == NONE:
            raise ClientMetadataInvalid(why=f"the grant type {grant_type} is for clients that can keep a secret")
    if AUTHORIZATION_CODE in grant_types and not redirect_uris:
        raise ClientMetadataInvalid(why="a client that sends users here needs a redirect URI to get them back")
    for uri in (*redirect_uris, *post_logout_redirect_uris):
        problem = redirect_problem(uri)
        if problem:
            raise ClientMetadataInvalid(why=f"{uri} {problem}")


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
