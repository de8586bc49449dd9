"""The tree is what its own pages say it is, and the tests run the build that they claim to run."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from tools.checks import mirror

ROOT = Path(__file__).resolve().parent.parent
BUILD = os.environ.get("HOLDFAST_BUILD", "release")
CORE = ROOT / "build" / BUILD / "core" if BUILD != "release" else ROOT / "core"
MODULES = sorted(path.stem for path in (ROOT / "core").glob("*.pyx"))


@pytest.mark.parametrize("name", MODULES)
def test_each_core_module_comes_from_the_build_under_test(name: str) -> None:
    module = import_module(f"core.{name}")
    assert module.__file__ is not None
    assert Path(module.__file__).parent == CORE
    assert module.__file__.endswith(".so")


def test_the_build_mode_seen_by_c_is_the_one_that_was_asked_for() -> None:
    from core import ledger

    assert ledger.CHECKED is (BUILD in {"checked", "asan"})


@pytest.mark.parametrize("package", ["core", "gateway", "router"])
def test_child_processes_import_the_same_build(package: str, tmp_path: Path) -> None:
    program = f"import {package}; print({package}.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()
    assert Path(found) == CORE.parent / package / "__init__.py"


def test_every_module_has_its_test_file_and_every_test_file_its_module() -> None:
    assert mirror.problems(ROOT) == []


@pytest.mark.parametrize(
    "name",
    ["LICENSE", "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "Makefile", "docs/protocol.md", "k8s/README.md"],
)
def test_the_pages_that_a_newcomer_opens_are_there(name: str) -> None:
    assert (ROOT / name).read_text().strip()


def test_ci_runs_make_test_and_nothing_weaker() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "\nmake test || status=$?\n" in script.read_text()


def test_help_lists_every_verb_of_the_makefile() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
    verbs = {line.split()[1] for line in listed.splitlines()}
    assert {"run", "test", "bench", "check", "replay", "fuzz", "build", "debug", "docs", "clean"} <= verbs


def test_what_the_makefile_runs_is_there() -> None:
    named = set(re.findall(r"\b(?:tools|loadtest|tests)/[\w/]+\.py\b", (ROOT / "Makefile").read_text()))
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_the_checked_build_runs_all_that_is_about_the_core() -> None:
    run = subprocess.run(
        ["make", "-n", "test-checked"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    ).stdout
    left_out = set(re.findall(r"--ignore=(\S+)", run))
    assert left_out
    assert {one for one in left_out if not (ROOT / one).exists()} == set()
    kept = ("tests/chaos", "tests/core", "tests/fuzz", "tests/process", "tests/router/log", "tests/contract/test_log")
    assert [one for one in left_out if one.startswith(kept) or one in {"tests", "tests/router", "tests/contract"}] == []


def test_every_package_of_the_product_is_shipped() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = set(pyproject["tool"]["setuptools"]["packages"])
    there = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for package in ("core", "gateway", "router")
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert shipped == there
