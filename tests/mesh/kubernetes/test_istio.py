"""Istio and kustomize themselves judge what is rendered."""

import subprocess
from pathlib import Path

import pytest
import yaml

from mesh.kubernetes.overlays import OVERLAYS
from tests.mesh.kubernetes.clusters import Object, built, running
from tests.tools import tool

NAMES = [overlay.name for overlay in OVERLAYS]


@pytest.fixture(params=NAMES)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_istio_finds_every_object_valid(overlay: str, tmp_path: Path) -> None:
    answer = _run("istioctl", "validate", "-f", _file(tmp_path, built(overlay)))

    assert answer.returncode == 0, answer.stderr
    assert "Warning" not in answer.stdout + answer.stderr


def test_istio_finds_no_fault_in_the_files(overlay: str, tmp_path: Path) -> None:
    answer = _run("istioctl", "analyze", "--use-kube=false", "-A", _file(tmp_path, built(overlay)))

    assert answer.returncode == 0, answer.stdout
    assert "No validation issues found" in answer.stdout + answer.stderr


def test_istio_finds_no_fault_in_the_cluster_they_make(overlay: str, tmp_path: Path) -> None:
    objects = built(overlay)

    answer = _run("analyze", _file(tmp_path, [*objects, *running(objects, tmp_path)]))

    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_analysis_looks_at_what_runs(tmp_path: Path) -> None:
    """That it finds nothing would say little if it did not look."""
    gone = ("Service", "session-mgr")
    objects = [each for each in built("production") if (each["kind"], each["metadata"]["name"]) != gone]

    answer = _run("analyze", _file(tmp_path, [*objects, *running(objects, tmp_path)]))

    assert answer.returncode == 1
    assert "session-mgr.nexus.svc.cluster.local" in answer.stdout


def _file(folder: Path, objects: list[Object]) -> str:
    path = folder / "manifests.yaml"
    path.write_text(yaml.safe_dump_all(objects))
    return str(path)


def _run(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([tool(name), *arguments], check=False, capture_output=True, text=True, timeout=60)
