"""Authorization requests (RFC 6749, section 4.1.1; OpenID Connect Core 1.0, section 3.1.2) and what they must be."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from authlib.common.urls import add_params_to_uri
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from services.identity.auth_service_v2.clients import AUTHORIZATION_CODE, Client

PARAMETERS = (
    "response_type", "client_id", "redirect_uri", "scope", "state", "nonce", "code_challenge", "code_challenge_method",
    "prompt", "max_age", "login_hint", "response_mode", "id_token_hint", "request", "request_uri",
)  # fmt: skip
"""The parameters that are looked at. Others are ignored, as the standards have it."""
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_SECONDS = re.compile(r"[0-9]{1,10}")
_PROMPTS = {"none", "login", "consent", "select_account"}


class CannotReturn(Exception):  # noqa: N818  an answer, not a failure
    """The request is such that the user must not be sent back to where it says. The message is for the user."""


@dataclass(frozen=True)
class AuthorizationRequest:
    """A request that may be granted."""

    client_id: str
    redirect_uri: str
    scope: tuple[str, ...]
    state: str
    nonce: str
    code_challenge: str
    prompt: frozenset[str]
    max_age: timedelta | None
    login_hint: str

    def too_old(self, auth_time: datetime, now: datetime) -> bool:
        """Whether the user has to prove who they are once more."""
        asked = bool(self.prompt & {"login", "select_account"})
        return asked or (self.max_age is not None and now - auth_time > self.max_age)


def require_returnable(parameters: Mapping[str, str], client: Client | None) -> Client:
    """Raises CannotReturn unless a known client asks to have the user back where it may (RFC 9700, section 4.1)."""
    if client is None:
        raise CannotReturn("The application that sent you here is not known.")
    if parameters.get("redirect_uri") not in client.redirect_uris:
        raise CannotReturn("The application that sent you here wants you back at an address that is not registered.")
    return client


def parse(parameters: Mapping[str, str], client: Client) -> AuthorizationRequest:
    """Raises OAuth2Error with what the client is told."""
    given = {name: parameters.get(name, "") for name in PARAMETERS}
    for name, error in (("request", "request_not_supported"), ("request_uri", "request_uri_not_supported")):
        if given[name]:
            raise OAuth2Error(f"{name} is not supported", error=error)
    if not given["response_type"]:
        raise OAuth2Error("response_type is missing", error="invalid_request")
    if given["response_type"] != "code":
        raise OAuth2Error("the only response_type is code", error="unsupported_response_type")
    if given["response_mode"] not in ("", "query"):
        raise OAuth2Error("the only response_mode is query", error="invalid_request")
    if AUTHORIZATION_CODE not in client.grant_types:
        raise OAuth2Error("this client is not registered for codes", error="unauthorized_client")
    if given["code_challenge_method"] != "S256" or not _CHALLENGE.fullmatch(given["code_challenge"]):
        raise OAuth2Error("PKCE with code_challenge_method S256 is required", error="invalid_request")
    scope = tuple(dict.fromkeys(given["scope"].split()))
    if not scope or not set(scope) <= set(client.scopes):
        raise OAuth2Error("ask for scopes that the client is registered for", error="invalid_scope")
    prompt = frozenset(given["prompt"].split())
    if not prompt <= _PROMPTS or ("none" in prompt and len(prompt) > 1):
        raise OAuth2Error("prompt is not understood", error="invalid_request")
    if given["max_age"] and not _SECONDS.fullmatch(given["max_age"]):
        raise OAuth2Error("max_age is not a number of seconds", error="invalid_request")
    return AuthorizationRequest(
        client_id=client.client_id,
        redirect_uri=given["redirect_uri"],
        scope=scope,
        state=given["state"],
        nonce=given["nonce"],
        code_challenge=given["code_challenge"],
        prompt=prompt,
        max_age=timedelta(seconds=int(given["max_age"])) if given["max_age"] else None,
        login_hint=given["login_hint"],
    )


def verifies(verifier: str, challenge: str) -> bool:
    """Whether a code verifier belongs to a challenge (RFC 7636, section 4.6)."""
    return bool(_VERIFIER.fullmatch(verifier)) and create_s256_code_challenge(verifier) == challenge  # type: ignore[no-untyped-call]


def back(redirect_uri: str, issuer: str, parameters: Mapping[str, str]) -> str:
    """Where to send the user back to, with the issuer (RFC 9207) and what there is to say."""
    present = [(name, value) for name, value in {**parameters, "iss": issuer}.items() if value]
    uri: str = add_params_to_uri(redirect_uri, present)
    return uri
