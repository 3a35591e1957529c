"""The issuer of each tenant's tokens (OpenID Connect Core 1.0, section 2; RFC 8414)."""

from services.chassis.config import Settings


def tenant_issuer(settings: Settings, tenant_id: str) -> str:
    """Under which a tenant's OpenID configuration is found, and which its ID tokens name."""
    return f"{settings.public_url.rstrip('/')}/t/{tenant_id}"
