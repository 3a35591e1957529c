"""What all manifests have in common: the settings of a platform in a cluster, names, labels."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from lightkube.models.meta_v1 import ObjectMeta

from services.chassis.config import Settings, service_prefix
from services.chassis.context import EDGE, OPERATOR

NAMESPACE = "nexus"
CLUSTER_DOMAIN = "cluster.local"
HOME = "/var/lib/nexus"
ROOT_KEY, UNSEAL_KEY = "/etc/nexus/root.key", "/etc/nexus/unseal.key"
EDGE_PORT = 8080
ISTIO_NAMESPACE = "istio-system"
GATEWAY_NAMESPACE = "istio-ingress"
GATEWAY_ACCOUNT = "istio-ingress"
GATEWAY_LABELS = {"istio": "ingress"}
"""The ingress gateway as Istio's Helm chart `gateway` installs it under the name istio-ingress."""
MONITORING_NAMESPACE = "monitoring"

SERVICE, MIGRATIONS = "service", "migrations"
"""Components, beside the edge and the operator, which are components of one."""
STABLE, CANARY = "stable", "canary"
COMPONENT = "app.kubernetes.io/component"
NAME = "app.kubernetes.io/name"

SETTINGS = Settings.model_validate(
    {
        "home": HOME,
        "host": "0.0.0.0",  # noqa: S104  the sidecar's iptables rules and the NetworkPolicies are in front
        "service_address": f"dns:///{{service}}.{NAMESPACE}.svc.{CLUSTER_DOMAIN}:{{port}}",
        "trust_domain": CLUSTER_DOMAIN,
        "namespace": NAMESPACE,
        # Where a sidecar's inbound connections come from: pilot/pkg/networking/core/listener_address.go
        "trusted_proxies": "127.0.0.6,::6",
        "root_key_file": ROOT_KEY,
        "unseal_key_file": UNSEAL_KEY,
        "metrics_port": 9090,
        "trusted_hops": 1,  # the sidecar
    }
)
"""What is true of every cluster. Secrets are not here: the pods get them by reference."""
SERVICE_SETTINGS = {
    # istiod reads the keys that verify tokens every 20 minutes; a key must be published for longer before it signs.
    "token-mgr": {"key_propagation": "PT25M"},
}
"""The same of the services' own settings, as the environment has them."""


class Manifest(Protocol):
    """An object for the API server: one of `lightkube.models` or an `istio.Resource`."""

    def to_dict(self) -> dict[str, Any]: ...


def labels(name: str) -> dict[str, str]:
    component = name if name in (EDGE, OPERATOR, MIGRATIONS) else SERVICE
    return {**selector(name), COMPONENT: component, "app.kubernetes.io/part-of": NAMESPACE}


def selector(name: str) -> dict[str, str]:
    return {NAME: name}


def meta(name: str, labels: Mapping[str, str] | None = None, namespace: str = NAMESPACE) -> ObjectMeta:
    return ObjectMeta(name=name, namespace=namespace, labels=dict(labels) if labels else None)


def host(name: str) -> str:
    return f"{name}.{NAMESPACE}.svc.{CLUSTER_DOMAIN}"


def principal(account: str, namespace: str = NAMESPACE) -> str:
    """An identity as Istio's policies write it: a SPIFFE id without its scheme."""
    return f"{CLUSTER_DOMAIN}/ns/{namespace}/sa/{account}"


def variables(settings: Settings, fields: Iterable[str]) -> dict[str, str]:
    """Settings as environment variables."""
    return {f"NEXUS_{name.upper()}": str(getattr(settings, name)) for name in sorted(fields)}


def service_variables(settings: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The services' own settings as environment variables."""
    return {service_variable(service, name): value for service, own in settings.items() for name, value in own.items()}


def service_variable(service: str, name: str) -> str:
    return f"{service_prefix(service)}{name.upper()}"
