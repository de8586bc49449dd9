"""The two builds stand apart, and what is compiled without a source does not stay importable."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tools import build

Tree = Callable[[dict[str, str]], Path]


def test_the_checked_build_shares_no_folder_with_the_release_build() -> None:
    release, checked = build.command_for("release", 2), build.command_for("checked", 2)
    assert "--inplace" in release
    assert "--inplace" not in checked
    assert {"build/checked", "build/temp-checked"} <= set(checked)


def test_a_compiled_module_without_a_source_is_removed(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree({"core/ring.pyx": "", "core/ring.cpython-311.so": "", "core/gone.cpython-311.so": ""})
    monkeypatch.setattr(build, "ROOT", root)
    build.remove_orphans(root / "core")
    assert sorted(path.name for path in (root / "core").iterdir()) == ["ring.cpython-311.so", "ring.pyx"]


def test_a_python_file_that_is_gone_does_not_stay_in_the_copy(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree({"build/checked/gateway/gone.py": "", "build/checked/core/ring.so": ""})
    monkeypatch.setattr(build, "ROOT", root)
    build.copy_sources_afresh("checked")
    assert not (root / "build/checked/gateway/gone.py").exists()
    assert (root / "build/checked/core/ring.so").exists()


@pytest.mark.parametrize(
    "line", ["core/ring.pyx:3:4: warning: unused", "warning: core/a.pyx:1:2: x", "performance hint: core/a.pyx:1:2: x"]
)
def test_warnings_of_our_code_are_shown(line: str) -> None:
    assert build.WARNING.search(f"building\n{line}\n")
    assert not build.WARNING.search("warning: build_py: byte-compiling is disabled, skipping.\n")
