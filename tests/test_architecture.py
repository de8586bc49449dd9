"""ARCHITECTURE.md names files and functions; each of them exists, so that the page cannot drift from the code."""

import re
from pathlib import Path

import pytest

from tools.checks import imports
from tools.checks.tree import cython_functions

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ARCHITECTURE.md"
# `core/loop.pyx:loop_turn` or `gateway/worker.py:Worker.start`, in backticks.
_HOP = re.compile(r"`(?P<file>[\w./-]+\.(?:pyx|pxd|py|h|c|js|mjs)):(?P<name>[A-Za-z_][\w.]*)(?:\(\))?`")
_FILE = re.compile(r"`(?P<file>(?:core|gateway|router|client|tests|loadtest|tools|docs|k8s)/[\w./-]*)`")


def hops() -> list[tuple[str, str]]:
    text = PAGE.read_text() if PAGE.exists() else ""
    return sorted({(match["file"], match["name"]) for match in _HOP.finditer(text)})


def files() -> list[str]:
    text = PAGE.read_text() if PAGE.exists() else ""
    return sorted({match["file"] for match in _FILE.finditer(text)})


def defines(path: Path, name: str) -> bool:
    """Whether a source defines this function, method or class; `A.b` asks for both names."""
    text = path.read_text()
    for part in name.split("."):
        known = {function.name for function in cython_functions(text)} if path.suffix in {".pyx", ".pxd"} else set()
        form = rf"\b(?:def|class|struct|function|enum)\s+{part}\b|^\s*(?:\w[\w *]*\b)?{part}\s*[(=]"
        declared = re.search(form, text, re.MULTILINE)
        if part not in known and not declared:
            return False
    return True


def test_the_path_of_a_message_is_described_by_enough_hops() -> None:
    assert len(hops()) >= 8, "ARCHITECTURE.md must name `file:function` at each hop of a message"


@pytest.mark.parametrize(("file", "name"), hops())
def test_a_named_function_exists(file: str, name: str) -> None:
    assert (ROOT / file).is_file(), f"ARCHITECTURE.md names {file}, which is not there"
    assert defines(ROOT / file, name), f"ARCHITECTURE.md names {file}:{name}, which is not defined there"


@pytest.mark.parametrize("file", files())
def test_a_named_file_or_folder_exists(file: str) -> None:
    assert (ROOT / file).exists(), f"ARCHITECTURE.md names {file}, which is not there"


def test_the_layers_import_only_what_they_may() -> None:
    assert imports.problems(ROOT) == []
