"""What the overlays become: built by kustomize, with stand-ins for what a cluster brings besides."""

import subprocess
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from edge.tls import ensure_certificate
from mesh.kubernetes.cluster import GATEWAY_LABELS, GATEWAY_NAMESPACE
from mesh.kubernetes.rendering import RENDERED, ROOT
from mesh.kubernetes.traffic import CREDENTIAL
from tests.tools import tool

Object = dict[str, Any]


@cache
def rendered(folder: str) -> list[Object]:
    """The manifests in one folder of the rendered files, as they stand; without Kustomize's own."""
    files = sorted((ROOT / RENDERED / folder).glob("*.yaml"))
    found = [each for file in files for each in yaml.load_all(file.read_text(), yaml.CSafeLoader)]
    return [each for each in found if each["kind"] != "Kustomization"]


@cache
def built(overlay: str) -> list[Object]:
    """An overlay as `kubectl apply -k` would send it. Skips the test where kustomize is missing."""
    command = [str(tool("kustomize")), "build", str(ROOT / RENDERED / "overlays" / overlay)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return list(yaml.load_all(answer.stdout, yaml.CSafeLoader))


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def running(objects: list[Object], certificate: Path) -> list[Object]:
    """What is in the cluster once these are applied, beside them: the pods with their sidecars, Istio's gateway with
    the certificate that is in a folder."""
    ensure_certificate(certificate)
    pods = [_pod(each["metadata"]["name"], each["spec"]["template"]) for each in of_kind(objects, "Deployment")]
    operator = {"metadata": {"labels": {"app.kubernetes.io/name": "operator"}}, "spec": {"containers": []}}
    gateway = {"name": "istio-ingress", "namespace": GATEWAY_NAMESPACE}
    ports = [{"name": name, "port": port, "protocol": "TCP"} for name, port in (("http", 80), ("https", 443))]
    return [
        *pods,
        _pod("operator", operator),
        _pod("istio-ingress", {"metadata": {"labels": GATEWAY_LABELS}, "spec": {"containers": []}}, GATEWAY_NAMESPACE),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": gateway,
            "spec": {"selector": GATEWAY_LABELS, "ports": ports},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": CREDENTIAL, "namespace": GATEWAY_NAMESPACE},
            "type": "kubernetes.io/tls",
            "data": {name: b64encode((certificate / name).read_bytes()).decode() for name in ("tls.crt", "tls.key")},
        },
    ]


def _pod(name: str, template: Mapping[str, Any], namespace: str = "nexus") -> Object:
    sidecar = {"name": "istio-proxy", "image": "docker.io/istio/proxyv2:1.31.0"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": name, "namespace": namespace},
        "spec": {**template["spec"], "containers": [*template["spec"]["containers"], sidecar]},
        "status": {"phase": "Running"},
    }
