"""The tests are the same tree again: every module has its test file, every test file its module."""

from pathlib import Path

from tools.checks.tree import files, is_generated

MIRRORED = ("core", "gateway", "router")
# The entry point of `python -m`, and packages' own files: nothing stands in them that could be tested.
WITHOUT_TEST = {"__init__", "__main__"}


def modules(root: Path, package: str) -> set[Path]:
    """Modules as paths without suffix, relative to the root; those for tests only (`_testing`) left out."""
    found = set()
    for path in files(root / package, ".py", ".pyx"):
        if path.stem not in WITHOUT_TEST and not path.stem.startswith("_") and not is_generated(path):
            found.add(path.relative_to(root).with_suffix(""))
    return found


def headers(root: Path, package: str) -> set[Path]:
    """Headers that are all there is of their concept: they may have a test file but need none."""
    return {path.relative_to(root).with_suffix("") for path in files(root / package, ".pxd", ".h")}


def tests(root: Path, package: str) -> set[Path]:
    """The modules that the test files are for."""
    folder = root / "tests"
    return {
        path.relative_to(folder).with_name(path.stem.removeprefix("test_"))
        for path in files(folder / package, ".py")
        if path.stem.startswith("test_")
    }


def problems(root: Path) -> list[str]:
    """Modules without a test file and test files without a module."""
    found = []
    for package in MIRRORED:
        if not (root / package).is_dir():
            continue
        there, tested = modules(root, package), tests(root, package)
        for module in sorted(there - tested):
            found.append(f"{module}: has no test file tests/{module.with_name('test_' + module.name)}.py")
        for module in sorted(tested - there - headers(root, package)):
            found.append(f"tests/{module.with_name('test_' + module.name)}.py: there is no module {module}")
    return found
