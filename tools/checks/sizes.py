"""Functions stay under 70 lines and files under 600; what is longer today is listed, and the list only shrinks."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools.checks.tree import Function, cython_functions, files, is_generated

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
EXCEPTIONS = "tools/checks/sizes_exceptions.txt"
# How many exceptions there may be. Lower it when one goes; raising it needs a better reason than a long function.
EXCEPTIONS_MAX = 0
_C_FUNCTION = re.compile(
    r"^(?!typedef|struct|enum|union|#)\w[^;{]*?\b(?P<name>\w+)\([^;{]*\)\s*\{[^\n]*\n.*?^\}", re.MULTILINE | re.DOTALL
)


def python_functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(node.name, "", node.lineno, node.end_lineno or node.lineno, node.col_offset, False)


def c_functions(text: str) -> Iterator[Function]:
    for match in _C_FUNCTION.finditer(text):
        first = text.count("\n", 0, match.start()) + 1
        yield Function(match["name"], "", first, first + match.group().count("\n"), 0, False)


def measured(root: Path) -> dict[str, int]:
    """Everything longer than its limit: `path` or `path:function`, and how many lines it has."""
    long: dict[str, int] = {}
    readers = {".py": python_functions, ".pyx": cython_functions, ".pxd": cython_functions}
    readers |= {".c": c_functions, ".h": c_functions}
    for path in files(root, ".py", ".pyi", ".pyx", ".pxd", ".h", ".c", ".js", ".mjs"):
        if is_generated(path):
            continue
        inside, text = path.relative_to(root).as_posix(), path.read_text()
        lines = len(text.splitlines())
        if lines > FILE_LINES_MAX:
            long[inside] = lines
        for function in readers.get(path.suffix, lambda _: ())(text):
            if function.length > FUNCTION_LINES_MAX:
                long[f"{inside}:{function.name}"] = function.length
    return long


def exceptions(root: Path) -> dict[str, int]:
    """The list: `name lines  # reason`, one a line."""
    listed: dict[str, int] = {}
    path = root / EXCEPTIONS
    for line in path.read_text().splitlines() if path.exists() else []:
        entry = line.split("#")[0].split()
        if entry:
            listed[entry[0]] = int(entry[1])
    return listed


def problems(root: Path) -> list[str]:
    """What is too long, and what the list still allows without need."""
    long, listed, found = measured(root), exceptions(root), []
    for name, lines in sorted(long.items()):
        limit = listed.get(name, FUNCTION_LINES_MAX if ":" in name else FILE_LINES_MAX)
        if lines > limit:
            found.append(f"{name}: {lines} lines, at most {limit}; split it by concept")
    for name, lines in sorted(listed.items()):
        if long.get(name, 0) < lines:
            found.append(f"{EXCEPTIONS}: {name} needs {long.get(name, 0)} now, not {lines}; shrink or drop the entry")
    if len(listed) > EXCEPTIONS_MAX:
        found.append(f"{EXCEPTIONS}: {len(listed)} exceptions, at most {EXCEPTIONS_MAX}; the list may not grow")
    return found
