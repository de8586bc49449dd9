"""Where the GIL may be taken: only in functions named gil_*, and never behind our back.

A `cdef … nogil` without `noexcept` takes the GIL after every call to look for an exception; a `with gil` in the path
of a message is the very thing the data plane exists to avoid.
"""

import re
from pathlib import Path

from tools.checks.tree import Function, cython_functions, files, logical_lines

_TAKES = re.compile(r"\bwith\s+gil\b|\bPyGILState_Ensure\s*\(|\bPyEval_RestoreThread\s*\(")
_NOGIL = re.compile(r"\)[^()]*\bnogil\b(?!\s*\()")
_POINTER = re.compile(r"^ctypedef\b.*\(\s*\*")


def enclosing(functions: list[Function], line: int) -> str:
    """The name of the innermost function around a line; empty outside of any."""
    around = [function for function in functions if function.first <= line <= function.last]
    return max(around, key=lambda function: function.first).name if around else ""


def problems(root: Path) -> list[str]:
    """Every place that takes the GIL where it may not, or lets Cython do so."""
    found = []
    for path in files(root, ".pyx", ".pxd"):
        inside, text = path.relative_to(root), path.read_text()
        functions = cython_functions(text)
        for line in logical_lines(text):
            external = any(function.external and function.first == line.number for function in functions)
            name = enclosing(functions, line.number)
            if _TAKES.search(line.text) and not external and not name.startswith("gil_"):
                found.append(f"{inside}:{line.number}: takes the GIL in {name or 'no function'}; only gil_* may")
        headers = [(function.first, function.header) for function in functions if not function.external]
        headers += [(line.number, line.text) for line in logical_lines(text) if _POINTER.match(line.text)]
        for number, header in headers:
            if header.startswith(("cdef", "ctypedef")) and _NOGIL.search(header) and "noexcept" not in header:
                found.append(f"{inside}:{number}: nogil without noexcept takes the GIL after every call")
    return found
