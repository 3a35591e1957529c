"""Clients proving who they are, by a secret (RFC 6749, section 2.3) or a JWT that they sign (RFC 7523, section 2.2)."""

import json
from datetime import UTC, datetime, timedelta

from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749.util import extract_basic_authorization
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from services.chassis.clock import now
from services.chassis.context import RequestContext
from services.chassis.ids import hash_secret
from services.chassis.issuers import tenant_issuer
from services.chassis.service import Service
from services.identity.auth_service_v2 import clients
from services.identity.auth_service_v2.clients import Client
from services.identity.auth_service_v2.forms import Form
from services.identity.auth_service_v2.store import Store

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_LONGEST_ASSERTION = timedelta(hours=1)
_MAX_ASSERTION_LENGTH = 16_384
_LEEWAY_SECONDS = 30


class Authenticator:
    """Finds the client that a form comes from."""

    def __init__(self, service: Service) -> None:
        self._settings = service.settings
        self._store = Store(service.database)

    async def client(self, form: Form, call: RequestContext, *, confidential: bool = False) -> Client:
        """The client, by the method that it is registered for. Raises OAuth2Error.

        `confidential` refuses those that cannot prove who they are.
        """
        name, secret = extract_basic_authorization({"Authorization": call.metadata.get("authorization", "")})
        ways = [name is not None, "client_secret" in form, "client_assertion" in form]
        if sum(ways) > 1 or (name is not None and form.get("client_id", name) != name):
            raise OAuth2Error("authenticate in one way only", error="invalid_request")
        if "client_assertion" in form:
            return await self._by_assertion(form, call)
        method = clients.BASIC
        if name is None:
            name, secret = form.get("client_id"), form.get("client_secret")
            method = clients.POST if secret else clients.NONE
        client = await self._registered(name or "", method)
        if client.keeps_a_secret and not client.has_secret(secret or ""):
            raise OAuth2Error("the client's secret is wrong", error="invalid_client")
        if confidential and not client.is_confidential:
            raise OAuth2Error("only clients that prove who they are may do this", error="unauthorized_client")
        return client

    async def _by_assertion(self, form: Form, call: RequestContext) -> Client:
        assertion = form["client_assertion"]
        if form.get("client_assertion_type") != ASSERTION_TYPE or len(assertion) > _MAX_ASSERTION_LENGTH:
            raise OAuth2Error("the client assertion is of no known type", error="invalid_request")
        client = await self._registered(form.get("client_id") or _subject(assertion), clients.PRIVATE_KEY_JWT)
        try:
            assertion_id, expires = self._verified(assertion, client, call)
        except (JoseError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, OSError, RecursionError):
            raise _invalid() from None
        if expires > now() + _LONGEST_ASSERTION:
            raise OAuth2Error("the client assertion lives too long", error="invalid_client")
        # Once only, so that nobody who sees it can use it (section 3, `jti`).
        used_until = expires + timedelta(seconds=_LEEWAY_SECONDS)
        first = await self._store.spent_assertions.insert_new(
            client_id=client.client_id, jti_hash=hash_secret(assertion_id), expire_time=used_until
        )
        if first is None:
            raise OAuth2Error("the client assertion has been used before", error="invalid_client")
        return client

    def _verified(self, assertion: str, client: Client, call: RequestContext) -> tuple[str, datetime]:
        """Its id, and when it expires (RFC 7523, section 3).

        Raises what joserfc and Python raise for what is malformed, forged or not meant for us.
        """
        issuer = tenant_issuer(self._settings, call.tenant_id)
        keys = KeySet.import_key_set(json.loads(client.jwks))
        claims = jwt.decode(assertion, keys, algorithms=list(clients.ASSERTION_ALGORITHMS)).claims
        jwt.JWTClaimsRegistry(
            leeway=_LEEWAY_SECONDS,
            iss={"essential": True, "value": client.client_id},
            sub={"essential": True, "value": client.client_id},
            aud={"essential": True, "values": [issuer, f"{issuer}/oauth2/token"]},
            exp={"essential": True},
            jti={"essential": True},
        ).validate(claims)
        if not isinstance(claims["jti"], str):
            raise TypeError("an id is text")
        return claims["jti"], datetime.fromtimestamp(claims["exp"], UTC)

    async def _registered(self, client_id: str, method: str) -> Client:
        client = await self._store.client(client_id)
        if client is None or client.authentication != method:
            raise OAuth2Error("the client is not known, or must authenticate in another way", error="invalid_client")
        return client


def _subject(assertion: str) -> str:
    """Whose assertion it says it is."""
    try:
        return str(json.loads(jws.extract_compact(assertion.encode()).payload)["sub"])
    except (JoseError, ValueError, TypeError, KeyError, RecursionError):
        raise _invalid() from None


def _invalid() -> OAuth2Error:
    return OAuth2Error("the client assertion is not valid", error="invalid_client")
