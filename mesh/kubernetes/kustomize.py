"""Kustomize's API, as far as it is used."""

import json
from typing import Any

import msgspec

from mesh.kubernetes.istio import Message


class ConfigMapArgs(Message):
    name: str
    namespace: str
    literals: list[str]
    behavior: str | None = None


class Image(Message):
    name: str
    new_name: str
    new_tag: str


class Target(Message):
    kind: str
    name: str | None = None
    label_selector: str | None = None


class Operation(Message):
    """One step of a JSON patch (RFC 6902)."""

    op: str
    path: str
    value: Any


class Patch(Message):
    target: Target | None = None
    patch: str | None = None
    path: str | None = None


class Kustomization(Message):
    resources: list[str]
    config_map_generator: list[ConfigMapArgs]
    images: list[Image] | None = None
    patches: list[Patch] | None = None

    def to_dict(self) -> dict[str, Any]:
        head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
        return {**head, **msgspec.to_builtins(self)}


def patch(target: Target, *operations: Operation) -> Patch:
    return Patch(target=target, patch=json.dumps(msgspec.to_builtins(operations)))
