"""What the tokens say: access tokens (RFC 9068) and ID tokens (OpenID Connect Core 1.0, section 2)."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.chassis.config import Settings
from services.chassis.issuers import tenant_issuer


@dataclass(frozen=True)
class Grant:
    """What an access token is issued for: a session, or what an OAuth client was granted."""

    family_id: str
    user_id: str | None
    """None for a client that acts for itself."""
    permissions: Sequence[str]
    expires: datetime
    client_id: str = ""
    scope: str = ""
    audiences: Sequence[str] = ()
    """Empty for the platform."""
    actor: Mapping[str, Any] | None = None
    """Who acts on the user's behalf: the claim `act` (RFC 8693, section 4.1)."""
    assurance: str = ""
    """How sure the platform is of the user: "aal1", "aal2" (NIST SP 800-63B)."""
    methods: Sequence[str] = ()
    """How they proved who they are (RFC 8176)."""
    auth_time: datetime | None = None
    """When they last did."""
    second_factor: bool | None = None
    """Whether they have one; None if nobody said."""


def access_claims(
    settings: Settings, tenant_id: str, grant: Grant, *, jti: str, issued: datetime, expires: datetime
) -> dict[str, Any]:
    """The claims of an access token. Those meant for the platform itself come from its own issuer, which every
    service and the edge expects; those for anybody else from the tenant's."""
    audiences = list(grant.audiences) or [settings.token_audience]
    for_platform = settings.token_audience in audiences
    claims: dict[str, Any] = {
        "iss": settings.token_issuer if for_platform else tenant_issuer(settings, tenant_id),
        "aud": audiences[0] if len(audiences) == 1 else audiences,
        "sub": grant.user_id or grant.client_id,
        "tid": tenant_id,
        "sid": grant.family_id,
        "permissions": list(grant.permissions),
        "iat": int(issued.timestamp()),
        "exp": int(expires.timestamp()),
        "jti": jti,
    }
    if grant.client_id:
        claims |= {"client_id": grant.client_id, "scope": grant.scope}
    if grant.assurance:
        claims |= {"acr": grant.assurance, "amr": list(grant.methods)}
    if grant.second_factor is not None:
        claims["second_factor"] = grant.second_factor
    if grant.auth_time is not None:
        claims["auth_time"] = int(grant.auth_time.timestamp())
    if grant.actor is not None:
        claims["act"] = grant.actor
    return claims


def acting(actor: str, former: Mapping[str, Any] | None) -> dict[str, Any]:
    """The claim `act` of one who acts for a user, behind those who acted for them before."""
    return {"sub": actor} if former is None else {"sub": actor, "act": former}


def half_hash(token: str) -> str:
    """`at_hash` of an access token whose ID token is signed with ES256 (OpenID Connect Core 1.0, section 3.1.3.6)."""
    digest = hashlib.sha256(token.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()


def narrowed(scope: str, asked: str) -> str | None:
    """The part of a scope that is asked for, all of it when nothing is; None for more than there is."""
    names = scope.split()
    if not asked:
        return scope
    return " ".join(asked.split()) if set(asked.split()) <= set(names) else None
