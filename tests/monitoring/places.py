"""Where the monitoring files are, and the programs that read them."""

import functools
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import provision

ROOT = Path(__file__).resolve().parent.parent.parent
MONITORING = ROOT / "k8s" / "monitoring"
RULES = MONITORING / "rules"
ALERTMANAGER = MONITORING / "alertmanager.yaml"
RELAY = MONITORING / "relay" / "relay.py"
DEADLINE_S = 60


def program(name: str) -> str:
    """The path of one of Debian's programs; without it the test is skipped, which CI does not allow."""
    found = provision.find_program(name)
    if found is None:
        pytest.skip(f"{name} is not installed; run: make provision")
    return found


def call(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the programs to its end."""
    path = program(name)
    command = [path, *map(str, arguments)]
    environment = provision.environment_for(path)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)


@functools.cache
def rules(*names: str) -> list[dict[str, Any]]:
    """Every rule of the plain files (all when none is named), in order."""
    paths = [RULES / f"{name}.yaml" for name in names] or sorted(RULES.glob("*.yaml"))
    return [rule for path in paths for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


@functools.cache
def alerts(*names: str) -> dict[str, dict[str, Any]]:
    """The alerts among them, by name."""
    return {rule["alert"]: rule for rule in rules(*names) if "alert" in rule}
