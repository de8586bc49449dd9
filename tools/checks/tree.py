"""What the checks share: which files there are, and the functions of a Cython source without compiling it."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Not ours, or not source. `build` and `.cache` hold copies; a finding there would be found twice.
SKIPPED = frozenset(
    {".git", ".venv", ".cache", "build", "node_modules", "__pycache__", "dist", "corpus", "bin", ".hypothesis"}
)
_TEXT = re.compile(
    r'(?P<long>"""|\'\'\')(?:\\.|.)*?(?P=long)|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|(?P<comment>\#[^\n]*)',
    re.DOTALL,
)
_FUNCTION = re.compile(r"^(?:(?:async\s+)?def|c(?:p)?def)\b[^=]*?\b(?P<name>\w+)\s*\((?P<rest>.*)$", re.DOTALL)


@dataclass(frozen=True)
class Function:
    """A function as it stands in a source file; lines count from 1, `last` included."""

    name: str
    header: str
    first: int
    last: int
    indent: int
    external: bool

    @property
    def length(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class LogicalLine:
    """One statement, joined over its brackets, with strings and comments blanked out."""

    number: int
    last: int
    indent: int
    text: str


def files(root: Path, *suffixes: str) -> Iterator[Path]:
    """The tree's own files with one of these suffixes (all when none is given), in order."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.endswith("_cache"))
        for path in (Path(folder, name) for name in sorted(names)):
            if (not suffixes or path.suffix in suffixes) and path.is_file():
                yield path


def is_generated(path: Path) -> bool:
    """Whether a tool wrote this file, so that rules for people's code do not hold."""
    return path.stem.endswith(("_pb2", "_pb2_grpc"))


def blanked(text: str) -> str:
    """The text with the insides of strings and comments made blank; lines and columns stay."""

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        if match.group("comment"):
            return " " * len(found)
        return '"' + "".join("\n" if letter == "\n" else " " for letter in found[1:-1]) + '"'

    return _TEXT.sub(blank, text)


def logical_lines(text: str) -> Iterator[LogicalLine]:
    """The statements of a Python or Cython source, continued lines joined."""
    number, joined, first, depth = 0, "", 0, 0
    for number, line in enumerate(blanked(text).split("\n"), start=1):
        if not joined and not line.strip():
            continue
        if not joined:
            first = number
        joined += line if not joined else " " + line.strip()
        depth = sum(joined.count(bracket) for bracket in "([{") - sum(joined.count(bracket) for bracket in ")]}")
        if depth > 0 or joined.endswith("\\"):
            joined = joined.removesuffix("\\")
            continue
        yield LogicalLine(first, number, len(joined) - len(joined.lstrip()), joined.strip())
        joined = ""
    if joined:
        yield LogicalLine(first, number, len(joined) - len(joined.lstrip()), joined.strip())


def cython_functions(text: str) -> list[Function]:
    """Every function of a .pyx or .pxd, declarations too (they are one line long).

    `external` marks what stands in a `cdef extern` block: C's own functions, which we do not write.
    """
    lines = list(logical_lines(text))
    found = []
    extern_indent = -1
    for place, line in enumerate(lines):
        if line.indent <= extern_indent:
            extern_indent = -1
        if line.text.startswith("cdef extern"):
            extern_indent = line.indent
        inside_extern = 0 <= extern_indent < line.indent
        name = _function_name(line.text, inside_extern)
        if name is None:
            continue
        last = line.last
        for later in lines[place + 1 :]:
            if later.indent <= line.indent or not line.text.endswith(":"):
                break
            last = later.last
        found.append(Function(name, line.text, line.number, last, line.indent, inside_extern))
    return found


def _function_name(text: str, inside_extern: bool) -> str | None:
    if text.startswith(("cdef class", "cdef struct", "cdef enum", "cdef extern", "cpdef enum")):
        return None
    match = _FUNCTION.match(text if not inside_extern else f"cdef {text}")
    return match.group("name") if match else None
