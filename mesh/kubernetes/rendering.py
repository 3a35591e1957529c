"""The files of the kustomize base and overlays, as text."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from lightkube.models.core_v1 import Namespace
from lightkube.models.meta_v1 import ObjectMeta

from mesh import graph
from mesh.kubernetes import compose, outside, policies, traffic, workloads
from mesh.kubernetes.cluster import (
    COMPONENT,
    EDGE_PORT,
    NAME,
    NAMESPACE,
    SERVICE,
    SERVICE_SETTINGS,
    SETTINGS,
    Manifest,
    service_variables,
    variables,
)
from mesh.kubernetes.kustomize import ConfigMapArgs, Image, Kustomization, Operation, Patch, Target, patch
from mesh.kubernetes.overlays import OVERLAYS, Bounds, Overlay
from mesh.kubernetes.workloads import CANARY_IMAGE, IMAGE, SETTINGS_MAP
from mesh.topology import Topology
from services.chassis.context import EDGE, OPERATOR

ROOT = Path(__file__).resolve().parents[2]
RENDERED = Path("mesh/kubernetes/rendered")

Documents = dict[str, list[Manifest]]
"""Manifests by the name of their file."""
_HEADER = "# Rendered by `make manifests`; not edited by hand.\n"
_HEAD = ("apiVersion", "kind", "metadata")
MESH_PAGE = Path("docs/mesh.md")
_GRAPH = re.compile(r"(?<=```mermaid\n).*?(?=```)", re.DOTALL)


def _with_graph(topology: Topology) -> str:
    """The page about the mesh, with the graph as it is now."""
    drawn = graph.mermaid(topology.services.values()) + "\n"
    return _GRAPH.sub(lambda _: drawn, (ROOT / MESH_PAGE).read_text(), count=1)


def files(topology: Topology) -> dict[Path, str]:
    """Everything that is rendered: text by path from the repository's root."""
    common = base(topology)
    found = {Path("compose.yaml"): _yaml([compose.build(topology)]), MESH_PAGE: _with_graph(topology)}
    found |= _folder(RENDERED / "base", common, _base_kustomization(common))
    for overlay in OVERLAYS:
        documents, patches = environment(overlay, topology), canaries(overlay, topology)
        kustomization = _kustomization(overlay, topology, documents, patches)
        found |= _folder(RENDERED / "overlays" / overlay.name, {**documents, **patches}, kustomization)
    return found


def base(topology: Topology) -> Documents:
    """What all clusters have in common: a file for each service, the edge and the namespace."""
    injected = {"istio-injection": "enabled", "app.kubernetes.io/part-of": NAMESPACE}
    namespace = Namespace(metadata=ObjectMeta(name=NAMESPACE, labels=injected))
    operator: list[Manifest] = [
        workloads.account(OPERATOR),
        policies.operator_network(topology),
        traffic.sidecar(topology, OPERATOR),
    ]
    documents: Documents = {
        NAMESPACE: [namespace, *policies.mesh_wide(), *policies.base_network(), *operator],
        EDGE: [
            workloads.account(EDGE),
            workloads.edge_deployment(),
            workloads.service(EDGE, EDGE_PORT, "http2"),
            workloads.autoscaler(EDGE),
            workloads.disruption_budget(EDGE),
            policies.edge_network(topology),
            *policies.edge_policies(),
            traffic.destination_rule(EDGE),
            traffic.sidecar(topology, EDGE),
        ],
    }
    for name, spec in topology.services.items():
        documents[name] = [
            workloads.account(name),
            workloads.service_deployment(spec),
            workloads.service(name, spec.port, "grpc-api"),
            workloads.autoscaler(name),
            workloads.disruption_budget(name),
            policies.network(topology, name),
            policies.service_policy(topology, name),
            traffic.destination_rule(name),
            traffic.virtual_service(spec, topology.methods[name]),
            traffic.sidecar(topology, name),
        ]
    return documents


def environment(overlay: Overlay, topology: Topology) -> Documents:
    """What is one environment's own."""
    settings = overlay.all_settings(SETTINGS)
    documents: Documents = {
        "environment": [
            *traffic.gateway(overlay.host),
            *traffic.request_authentications(settings, topology),
            traffic.telemetry(settings),
        ],
        "migrate": [workloads.migration_job(overlay.tag)],
        "outside": outside.objects(outside.places(overlay, topology.services)),
    }
    if overlay.canaries:
        documents["canaries"] = [
            workloads.service_deployment(topology.services[name], canary.tag)
            for name, canary in overlay.canaries.items()
        ]
    return documents


def canaries(overlay: Overlay, topology: Topology) -> Documents:
    """The rules of services with a canary, which replace those of the base."""
    return {
        f"canary-{name}": [
            traffic.destination_rule(name, canary=True),
            traffic.virtual_service(topology.services[name], topology.methods[name], canary.percent),
        ]
        for name, canary in overlay.canaries.items()
    }


def _base_kustomization(documents: Documents) -> Kustomization:
    settings = {**variables(SETTINGS, SETTINGS.model_fields_set), **service_variables(SERVICE_SETTINGS)}
    return Kustomization(
        resources=[f"{name}.yaml" for name in documents],
        config_map_generator=[_settings_map(settings)],
    )


def _kustomization(overlay: Overlay, topology: Topology, documents: Documents, patches: Documents) -> Kustomization:
    settings = overlay.all_settings(SETTINGS)
    own = settings.model_fields_set - SETTINGS.model_fields_set
    tags = {each.tag for each in overlay.canaries.values()}
    images = [Image(name=IMAGE, new_name=overlay.image, new_tag=overlay.tag)]
    images += [Image(name=f"{CANARY_IMAGE}-{tag}", new_name=overlay.image, new_tag=tag) for tag in sorted(tags)]
    return Kustomization(
        resources=["../../base", *(f"{name}.yaml" for name in documents)],
        config_map_generator=[
            _settings_map({**variables(settings, own), **service_variables(overlay.service_settings)}, "merge")
        ],
        images=images,
        patches=[
            _bounds(SERVICE, overlay.services),
            _bounds(EDGE, overlay.edge),
            *outside.sidecar_patches(outside.places(overlay, topology.services), topology.services),
            *_secrets(overlay),
            *(Patch(path=f"{name}.yaml") for name in patches),
        ],
    )


def _settings_map(variables: Mapping[str, str], behavior: str | None = None) -> ConfigMapArgs:
    literals = [f"{name}={value}" for name, value in variables.items()]
    return ConfigMapArgs(name=SETTINGS_MAP, namespace=NAMESPACE, literals=literals, behavior=behavior)


def _bounds(component: str, bounds: Bounds) -> Patch:
    return patch(
        Target(kind="HorizontalPodAutoscaler", label_selector=f"{COMPONENT}={component}"),
        Operation(op="replace", path="/spec/minReplicas", value=bounds.least),
        Operation(op="replace", path="/spec/maxReplicas", value=bounds.most),
    )


def _secrets(overlay: Overlay) -> list[Patch]:
    """Give the services, and their canaries, those of their own settings that are secrets."""
    return [
        patch(
            Target(kind="Deployment", label_selector=f"{NAME}={service}"),
            *(
                Operation(op="add", path="/spec/template/spec/containers/0/env/-", value=variable.to_dict())
                for variable in workloads.service_secrets(service, names)
            ),
        )
        for service, names in overlay.service_secrets.items()
    ]


def _folder(folder: Path, documents: Documents, kustomization: Kustomization) -> dict[Path, str]:
    found = {folder / f"{name}.yaml": _yaml(manifests) for name, manifests in documents.items()}
    return {**found, folder / "kustomization.yaml": _yaml([kustomization])}


def _yaml(manifests: Iterable[Manifest]) -> str:
    """What an object is comes before what it says."""
    documents = (manifest.to_dict() for manifest in manifests)
    headed = ({name: each[name] for name in _HEAD if name in each} | each for each in documents)
    return _HEADER + yaml.safe_dump_all(headed, sort_keys=False, width=120, explicit_start=True)
