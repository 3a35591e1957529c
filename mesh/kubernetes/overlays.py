"""The environments: everything in which one cluster differs from another.

The addresses are examples, of the ranges that are set aside for documentation and for private networks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from pydantic import BaseModel

from mesh.kubernetes.cluster import SERVICE_SETTINGS, service_variables
from services.chassis.config import Settings, load_service_config
from services.chassis.spec import ServiceSpec, discover


def _every_service(spec: ServiceSpec) -> bool:
    return True


@dataclass(frozen=True)
class Server:
    """Something of the environment's own that services reach outside of the cluster."""

    name: str
    host: str
    port: int
    cidr: str
    """Where its addresses lie."""
    used_by: Callable[[ServiceSpec], bool] = _every_service
    by_migrations: bool = False


@dataclass(frozen=True)
class Bounds:
    """Between which numbers of pods the autoscaler moves."""

    least: int
    most: int


@dataclass(frozen=True)
class Canary:
    """A second version of a service."""

    tag: str
    percent: int = 0
    """Its share of the calls, beside those whose header asks for it."""


@dataclass(frozen=True)
class Overlay:
    name: str
    host: str
    """Where people reach it."""
    image: str
    tag: str
    services: Bounds
    edge: Bounds
    settings: Mapping[str, object]
    """Fields of `Settings` that differ from those of every cluster."""
    servers: Sequence[Server]
    service_settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The services' own settings, by service: {"billing-service": {"provider_timeout": "5"}}."""
    service_secrets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Those that are keys of the Kubernetes secret `nexus-<service>`: {"key-service": ["vault_token"]}."""
    further_hosts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Hosts that a service reaches by HTTPS beside those in its spec and its settings, as "*.example.com" too."""
    networks: Mapping[str, str] = field(default_factory=dict)
    """Where a host of the services' settings lies that is not on the Internet: {"vault.example.com": "10.9.0.0/24"}."""
    canaries: Mapping[str, Canary] = field(default_factory=dict)

    def all_settings(self, common: Settings) -> Settings:
        url = f"https://{self.host}"
        own = {"public_url": url, "token_issuer": url, "environment": self.name, **self.settings}
        return Settings.model_validate({**common.model_dump(exclude_unset=True), **own})

    def config_of(self, spec: ServiceSpec) -> BaseModel:
        """A service's own settings, but for what its secrets are. Raises ConfigError for what it does not accept."""
        secrets = dict.fromkeys(self.service_secrets.get(spec.id, ()), "secret")
        own = {**SERVICE_SETTINGS.get(spec.id, {}), **self.service_settings.get(spec.id, {}), **secrets}
        return load_service_config(spec.config, spec.id, service_variables({spec.id: own}), discover())


_SIGN_IN = (
    *("accounts.google.com", "oauth2.googleapis.com", "openidconnect.googleapis.com", "www.googleapis.com"),
    *("login.microsoftonline.com", "graph.microsoft.com"),
    "*.okta.com",
)
"""The OpenID providers through which the users of tenants may sign in: every host that their metadata name."""

OVERLAYS = (
    Overlay(
        name="staging",
        host="staging.nexus.example.com",
        image="registry.example.com/nexus-cos",
        tag="0.1.0",
        services=Bounds(1, 3),
        edge=Bounds(1, 3),
        settings={"log_level": "DEBUG", "trace_ratio": 1.0, "otlp_endpoint": "http://otel.staging.example.com:4317"},
        servers=(
            Server("postgres", "postgres.staging.example.com", 5432, "10.20.0.0/24", by_migrations=True),
            Server("redis", "redis.staging.example.com", 6379, "10.20.1.0/24"),
            Server("smtp", "smtp.example.com", 587, "192.0.2.0/24", attrgetter("sends_mail")),
            Server("otlp", "otel.staging.example.com", 4317, "10.20.2.0/24"),
        ),
        service_settings={"billing-service": {"paypal_url": "https://api-m.sandbox.paypal.com"}},
        further_hosts={"auth-service-v2": _SIGN_IN},
        canaries={"backend-api": Canary(tag="0.2.0-rc.1")},
    ),
    Overlay(
        name="production",
        host="nexus.example.com",
        image="registry.example.com/nexus-cos",
        tag="0.1.0",
        services=Bounds(3, 20),
        edge=Bounds(3, 10),
        settings={"trace_ratio": 0.05, "otlp_endpoint": "http://otel.example.com:4317"},
        servers=(
            Server("postgres", "postgres.example.com", 5432, "10.10.0.0/24", by_migrations=True),
            Server("redis", "redis.example.com", 6379, "10.10.1.0/24"),
            Server("smtp", "smtp.example.com", 587, "192.0.2.0/24", attrgetter("sends_mail")),
            Server("otlp", "otel.example.com", 4317, "10.10.2.0/24"),
        ),
        further_hosts={"auth-service-v2": _SIGN_IN},
    ),
)
