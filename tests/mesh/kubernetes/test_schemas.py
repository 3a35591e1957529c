"""Every object against the schema of its kind, unknown fields included: Kubernetes' own and Istio's CRDs."""

import json
import shutil
import subprocess
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema_rs import Draft202012Validator, Registry

from mesh.kubernetes.overlays import OVERLAYS
from mesh.kubernetes.rendering import ROOT
from tests.mesh.kubernetes.clusters import Object, built, rendered

FOLDERS = ["base", *(f"overlays/{overlay.name}" for overlay in OVERLAYS)]
KUBERNETES = ["1.32", "1.37"]
"""The oldest that Istio 1.31 runs on, and the newest."""
Schema = dict[str, Any]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("folder", FOLDERS)
def test_objects_of_kubernetes_fit_their_schemas(folder: str, version: str) -> None:
    objects = [each for each in rendered(folder) if "istio.io" not in each["apiVersion"]]

    assert problems(objects, lambda kind, api: kubernetes_schema(kind, api, version)) == []
    assert objects


@pytest.mark.parametrize("folder", FOLDERS)
def test_objects_of_istio_fit_their_schemas(folder: str) -> None:
    objects = [each for each in rendered(folder) if "istio.io" in each["apiVersion"]]

    assert problems(objects, istio_schema) == []
    assert objects


@pytest.mark.parametrize("overlay", [overlay.name for overlay in OVERLAYS])
def test_what_kustomize_makes_of_them_fits_too(overlay: str) -> None:
    def schema(kind: str, api: str) -> Draft202012Validator:
        return istio_schema(kind, api) if "istio.io" in api else kubernetes_schema(kind, api, KUBERNETES[0])

    assert problems(built(overlay), schema) == []


@pytest.mark.parametrize(
    ("kind", "field"), [("Deployment", "automountServiceAcountToken"), ("DestinationRule", "consecutive5XxErrors")]
)
def test_a_misspelt_field_does_not_pass(kind: str, field: str) -> None:
    [right] = [each for each in rendered("base") if (each["kind"], each["metadata"]["name"]) == (kind, "token-mgr")]
    wrong = deepcopy(right)
    if kind == "Deployment":
        wrong["spec"]["template"]["spec"][field] = False
        schema = kubernetes_schema(kind, wrong["apiVersion"], KUBERNETES[0])
    else:
        wrong["spec"]["trafficPolicy"]["outlierDetection"][field] = 5
        schema = istio_schema(kind, wrong["apiVersion"])

    [problem] = problems([wrong], lambda kind, api: schema)
    assert field in problem


def problems(objects: list[Object], schema: Callable[[str, str], Draft202012Validator]) -> list[str]:
    return [
        f"{each['kind']} {each.get('metadata')}: {error.message}"
        for each in objects
        for error in schema(each["kind"], each["apiVersion"]).iter_errors(each)
    ]


@cache
def kubernetes_schema(kind: str, api: str, version: str) -> Draft202012Validator:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    group, _, number = api.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.partition(".")[0], number) if part)
    schema = json.loads((folder / f"{name}.json").read_text())
    definitions = json.loads((folder / "_definitions.json").read_text())
    return Draft202012Validator(schema, registry=Registry([("json-schema:///_definitions.json", definitions)]))


@cache
def istio_schema(kind: str, api: str) -> Draft202012Validator:
    group, _, number = api.partition("/")
    [schema] = [
        version["schema"]["openAPIV3Schema"]
        for crd in _crds()
        if (crd["spec"]["group"], crd["spec"]["names"]["kind"]) == (group, kind)
        for version in crd["spec"]["versions"]
        if version["name"] == number
    ]
    properties = {"apiVersion": {}, "kind": {}, "metadata": {}, "spec": _strict(schema["properties"]["spec"])}
    return Draft202012Validator({"properties": properties, "additionalProperties": False, "required": ["spec"]})


@cache
def _crds() -> list[Schema]:
    """Istio's, out of its Go module, which `make tools` has fetched."""
    if shutil.which("go") is None:
        pytest.skip("Istio's CRDs are in its Go module, and Go is not installed")
    command = ["go", "list", "-m", "-f", "{{.Dir}}", "istio.io/istio"]
    module = subprocess.run(command, cwd=ROOT / "mesh/tools", capture_output=True, text=True).stdout.strip()
    path = Path(module, "manifests/charts/base/files/crd-all.gen.yaml")
    if not module or not path.exists():
        pytest.skip("Istio's Go module has not been fetched: `make tools` does")
    return list(yaml.load_all(path.read_text(), yaml.CSafeLoader))


def _strict(schema: Schema) -> Schema:
    """The API server drops the fields that a schema does not name; here they are errors."""
    own = {name: _strict(each) for name, each in schema.get("properties", {}).items()}
    result = {**schema, **({"properties": own} if own else {})}
    if own and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    if isinstance(schema.get("items"), dict):
        result["items"] = _strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = _strict(schema["additionalProperties"])
    return result
