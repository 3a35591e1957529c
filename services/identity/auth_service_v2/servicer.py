"""The servicers of auth-service-v2, one for each gRPC service of its contract."""

from services.identity.auth_service_v2.servicers.clients import ClientService
from services.identity.auth_service_v2.servicers.oidc import OidcService

__all__ = ["ClientService", "OidcService"]
