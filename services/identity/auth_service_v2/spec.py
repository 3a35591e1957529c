from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network

from pydantic import BaseModel, field_validator

from services.chassis.spec import SealedColumn, ServiceSpec

Network = IPv4Network | IPv6Network


class Config(BaseModel):
    code_lifetime: timedelta = timedelta(seconds=60)
    """How long a client may take to exchange an authorization code (RFC 6749, section 4.1.2: 10 minutes at most)."""
    page_lifetime: timedelta = timedelta(minutes=30)
    """How long a sign-in or consent page may stay open."""
    offline_lifetime: timedelta = timedelta(days=90)
    """How long a grant with the scope "offline_access" lasts, used or not."""
    device_code_lifetime: timedelta = timedelta(minutes=10)
    device_poll_interval: timedelta = timedelta(seconds=5)
    """How long a device waits between two questions at least (RFC 8628, section 3.5)."""
    upstream_networks: str = ""
    """Where upstream providers may be beside the public internet, by comma: "10.20.0.0/16" for a company's own."""

    @field_validator("upstream_networks")
    @classmethod
    def _are_networks(cls, listed: str) -> str:
        _networks(listed)
        return listed

    @property
    def networks(self) -> tuple[Network, ...]:
        """The `upstream_networks`."""
        return _networks(self.upstream_networks)


def _networks(listed: str) -> tuple[Network, ...]:
    return tuple(ip_network(each.strip()) for each in listed.split(",") if each.strip())


PROVIDER_SECRETS = SealedColumn("providers", "client_secret", "provider_id", "provider secret {tenant_id} {key}")

SERVICE = ServiceSpec(
    id="auth-service-v2",
    port=3002,
    calls=["auth-service", "user-auth", "session-mgr", "token-mgr"],
    subscribes=["nexus.identity.user_auth.v1.UserErased"],
    sealed_columns=[PROVIDER_SECRETS],
    config=Config,
)
