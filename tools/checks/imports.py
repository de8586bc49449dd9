"""Who may import whom. Layering that is not checked does not stay."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools.checks.tree import files, logical_lines

# Folder: the packages of the product that it may import. The client knows the protocol page and nothing else.
MAY_IMPORT = {
    "core": {"core"},
    "router": {"core", "router"},
    "gateway": {"core", "router", "gateway"},
    "client": set[str](),
}
PRODUCT = {"core", "gateway", "router"}
TOOLS = {"tests", "loadtest", "tools"}
_CYTHON = re.compile(r"^(?:from\s+(?P<origin>[.\w]+)\s+c?import\s+(?P<names>.+)|c?import\s+(?P<modules>.+))$")


def python_imports(text: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of each import statement; `package` resolves relative ones."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, absolute(f"{'.' * node.level}{node.module or ''}", package)


def cython_imports(text: str, package: str) -> Iterator[tuple[int, str]]:
    """The same for import and cimport lines of Cython."""
    for line in logical_lines(text):
        match = _CYTHON.match(line.text)
        if match is None:
            continue
        if match["origin"]:
            yield line.number, absolute(match["origin"], package)
        else:
            for module in match["modules"].split(","):
                yield line.number, module.split(" as ")[0].strip()


def absolute(module: str, package: str) -> str:
    """`.ring` in package `core` is `core.ring`."""
    dots = len(module) - len(module.lstrip("."))
    if dots == 0:
        return module
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - dots + 1], *filter(None, [module.lstrip(".")])])


def problems(root: Path) -> list[str]:
    """Imports that the layers do not allow, one line each."""
    found = []
    for path in files(root, ".py", ".pyi", ".pyx", ".pxd"):
        inside = path.relative_to(root)
        layer = inside.parts[0]
        # The client's own tests start a gateway; that is what tests are for.
        if layer not in MAY_IMPORT or "tests" in inside.parts:
            continue
        read = python_imports if path.suffix in {".py", ".pyi"} else cython_imports
        try:
            imported = list(read(path.read_text(), ".".join(inside.parent.parts)))
        except SyntaxError as error:
            found.append(f"{inside}:{error.lineno}: cannot be read: {error.msg}")
            continue
        for line, module in imported:
            target = module.split(".")[0]
            if target in (PRODUCT | TOOLS) - MAY_IMPORT[layer]:
                allowed = ", ".join(sorted(MAY_IMPORT[layer])) or "nothing of the product"
                found.append(f"{inside}:{line}: {layer}/ may import {allowed}, not {module}")
    return found
