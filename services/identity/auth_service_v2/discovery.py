"""What the OpenID Provider says of itself (OpenID Connect Discovery 1.0, section 3; RFC 8414, section 2)."""

from typing import Any

from services.identity.auth_service_v2 import clients


def metadata(issuer: str) -> dict[str, Any]:
    oauth2 = f"{issuer}/oauth2"
    return {
        "issuer": issuer,
        "authorization_endpoint": f"{oauth2}/authorize",
        "token_endpoint": f"{oauth2}/token",
        "userinfo_endpoint": f"{oauth2}/userinfo",
        "jwks_uri": f"{issuer}/jwks.json",
        "registration_endpoint": f"{oauth2}/register",
        "introspection_endpoint": f"{oauth2}/introspect",
        "revocation_endpoint": f"{oauth2}/revoke",
        "device_authorization_endpoint": f"{oauth2}/device_authorization",
        "end_session_endpoint": f"{oauth2}/logout",
        "scopes_supported": [*clients.STANDARD_SCOPES, *clients.OWN_SCOPES],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": list(clients.GRANT_TYPES),
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": list(clients.ID_TOKEN_ALGORITHMS),
        "token_endpoint_auth_methods_supported": list(clients.AUTHENTICATIONS),
        "token_endpoint_auth_signing_alg_values_supported": list(clients.ASSERTION_ALGORITHMS),
        "introspection_endpoint_auth_methods_supported": [clients.BASIC, clients.POST, clients.PRIVATE_KEY_JWT],
        "introspection_endpoint_auth_signing_alg_values_supported": list(clients.ASSERTION_ALGORITHMS),
        "revocation_endpoint_auth_methods_supported": list(clients.AUTHENTICATIONS),
        "revocation_endpoint_auth_signing_alg_values_supported": list(clients.ASSERTION_ALGORITHMS),
        "code_challenge_methods_supported": ["S256"],
        "claims_supported": [
            "iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "sid", "at_hash", "acr", "amr",
            "email", "email_verified", "name",
        ],
        "acr_values_supported": ["aal1", "aal2"],
        "prompt_values_supported": ["none", "login", "consent", "select_account"],
        "claims_parameter_supported": False,
        "request_parameter_supported": False,
        "request_uri_parameter_supported": False,
        "authorization_response_iss_parameter_supported": True,
    }  # fmt: skip
