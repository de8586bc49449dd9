"""The environment is made from what pyproject.toml says, and what a machine lacks is said with its command."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tools import environment


def test_running_needs_no_test_tools() -> None:
    run, dev = environment.requirements(dev=False), environment.requirements(dev=True)
    assert any(name.startswith("pyzmq") for name in run)
    assert any(name.startswith("Cython") for name in run), "the build happens without isolation"
    assert not any(name.startswith("pytest") for name in run)
    assert any(name.startswith("pytest") for name in dev)


def test_nothing_is_missing_where_the_tests_run() -> None:
    assert environment.missing_packages() == []


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with Python alone: no compiler, no headers, no ensurepip."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setitem(sys.modules, "ensurepip", None)


@pytest.mark.usefixtures("bare")
def test_a_bare_machine_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match=r"sudo apt-get install .* gcc libc6-dev python3-dev python3-venv"):
        environment.require_packages()


@pytest.mark.usefixtures("bare")
def test_root_on_a_bare_machine_installs_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "apt-get" else None)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command))
    environment.require_packages()
    assert [command[1:3] for command in ran] == [["-q", "update"], ["install", "-y"]]
    assert ran[1][-1] == "python3-venv"
