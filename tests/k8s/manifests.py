"""The manifests as kustomize puts them together, and what is asked of them more than once."""

import copy
import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import provision

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
PLACES = ("base", "overlays/production")
DEADLINE_S = 60


@functools.cache
def kustomize() -> str:
    """The path of the program; without it the test is skipped, which CI does not allow."""
    found = provision.find_program("kustomize")
    if found is None:
        pytest.skip("kustomize is not installed; run: make provision")
    return found


@functools.cache
def _built(folder: Path) -> list[dict[str, Any]]:
    command = [kustomize(), "build", str(folder)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE_S).stdout
    return [resource for resource in yaml.safe_load_all(text) if resource]


def built_with(component: str, place: str, folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What an overlay in this empty folder has, which adds a component of k8s/ to a place; by kind and name."""
    add = {
        "resources": [os.path.relpath(K8S / place, folder.resolve())],
        "components": [os.path.relpath(K8S / "components" / component, folder.resolve())],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(add))
    return {(one["kind"], one["metadata"]["name"]): one for one in _built(folder)}


def resources(place: str) -> list[dict[str, Any]]:
    """All resources of a folder of k8s/, new copies."""
    return copy.deepcopy(_built(K8S / place))


def of_kind(place: str, kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in resources(place) if one["kind"] == kind}


def workloads(place: str) -> dict[str, dict[str, Any]]:
    """The Deployment and the StatefulSet, by the role of their pods."""
    found = {**of_kind(place, "Deployment"), **of_kind(place, "StatefulSet")}
    return {one["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in found.values()}


def pod(place: str, role: str) -> dict[str, Any]:
    spec: dict[str, Any] = workloads(place)[role]["spec"]["template"]["spec"]
    return spec


def container(place: str, role: str) -> dict[str, Any]:
    (only,) = pod(place, role)["containers"]
    assert isinstance(only, dict)
    return only


def settings_of(place: str, role: str) -> dict[str, str]:
    """What the container gets from its ConfigMap."""
    maps = of_kind(place, "ConfigMap")
    names = [source["configMapRef"]["name"] for source in container(place, role)["envFrom"]]
    return {key: value for name in names for key, value in maps[name]["data"].items()}


def secret_keys(place: str, role: str) -> dict[str, str]:
    """Variable to the key of holdfast-secrets that it comes from."""
    return {
        one["name"]: one["valueFrom"]["secretKeyRef"]["key"]
        for one in container(place, role)["env"]
        if "secretKeyRef" in one.get("valueFrom", {})
    }
