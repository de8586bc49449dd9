"""What the compilers say of the path of a message: no performance hint, no warning, no call into Python.

Each .pyx is translated by itself with the product's directives. In the C that comes out, the body of a function that
was declared nogil must not call the Python API: that is what `cython -a` shows as a yellow line, read here from the C
so that inline functions of the .pxd files are seen in the modules that use them. Answers are kept in .cache under a
hash of every source, so that a second run without changes takes no time.
"""

import ast
import hashlib
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.checks.tree import cython_functions, files

DEADLINE_S = 300
CACHE = ".cache/compiled"
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused-function", "-Wno-unused-parameter", "-Wno-sign-compare")
GENERATED_NOISE = ("-Wno-missing-field-initializers", "-Wno-cast-function-type", "-Wno-unreachable-code")
_HINT = re.compile(r"^(?:performance hint|warning): .*$", re.MULTILINE)
_WARNING = re.compile(r"^core/.*: (?:warning|error): .*$", re.MULTILINE)
_DEFINITION = re.compile(
    r"^static [^;=\n]*?\b__pyx_f_(?P<name>\w+)\([^;]*?\) \{(?P<body>.*?)^\}", re.MULTILINE | re.DOTALL
)
_PYTHON_CALL = re.compile(r"\b(?:_?Py|__Pyx_)[A-Z]\w*\s*\(")
_SOURCE_LINE = re.compile(r'/\* "(?P<file>[^"]+)":(?P<line>\d+)')


def directives(root: Path) -> dict[str, object]:
    """The DIRECTIVES of setup.py, read without running it."""
    for node in ast.parse((root / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(to, ast.Name) and to.id == "DIRECTIVES" for to in node.targets
        ):
            found: dict[str, object] = ast.literal_eval(node.value)
            return found
    raise ValueError("setup.py has no DIRECTIVES")


def nogil_functions(root: Path) -> set[str]:
    """The names, as they end in C, of the functions declared nogil: `4core_4ring_ring_write`."""
    found = set()
    for path in files(root / "core", ".pyx", ".pxd"):
        for function in cython_functions(path.read_text()):
            if "nogil" in function.header and not function.external and not function.name.startswith("gil_"):
                found.add(f"4core_{len(path.stem)}{path.stem}_{function.name}")
    return found


def python_calls(generated: str, nogil: set[str]) -> list[str]:
    """Calls of the Python API inside nogil functions of a generated C file."""
    found = []
    for definition in _DEFINITION.finditer(generated):
        name = definition["name"]
        if name not in nogil:
            continue
        for call in _PYTHON_CALL.finditer(definition["body"]):
            places = list(_SOURCE_LINE.finditer(definition["body"], 0, call.start()))
            place = f"{places[-1]['file']}:{places[-1]['line']}" if places else "its head"
            found.append(f"{place}: nogil function …{name} calls {call.group().rstrip('( ')}")
    return found


def examine(root: Path, source: Path, nogil: set[str]) -> list[str]:
    """Translate and compile one module to nothing, and list what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        generated = Path(folder) / f"{source.stem}.c"
        settings = [f"-X{name}={value}" for name, value in directives(root).items() if name != "language_level"]
        translate = [sys.executable, "-m", "cython", "-3", "--line-directives", *settings]
        translated = run(root, *translate, "--module-name", f"core.{source.stem}", "-o", str(generated), str(source))
        if not generated.exists():
            return [f"core/{source.name}: cannot be translated: {translated}"]
        include = sysconfig.get_path("include")
        quiet = [
            "gcc",
            "-fsyntax-only",
            "-O1",
            "-DHOLDFAST_CHECKS=1",
            f"-I{include}",
            "-Icore",
            *WARNINGS,
            *GENERATED_NOISE,
        ]
        compiled = run(root, *quiet, str(generated))
        found = _HINT.findall(translated) + _WARNING.findall(compiled)
        return sorted(set(found)) + python_calls(generated.read_text(), nogil)


def run(root: Path, *command: str) -> str:
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=DEADLINE_S)
    return result.stdout + result.stderr


def problems(root: Path) -> list[str]:
    """What the compilers say of every module of core/, from the cache where no source has changed."""
    if not (root / "setup.py").exists():
        return []
    sources = [*files(root / "core", ".pyx", ".pxd", ".h"), root / "setup.py", Path(__file__)]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    cached = root / CACHE
    if cached.exists() and (kept := json.loads(cached.read_text()))["sources"] == digest:
        answer: list[str] = kept["problems"]
        return answer
    nogil = nogil_functions(root)
    modules = list(files(root / "core", ".pyx"))
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = sorted(
            {line for lines in pool.map(lambda source: examine(root, source, nogil), modules) for line in lines}
        )
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_text(json.dumps({"sources": digest, "problems": found}))
    return found
