"""What the compilers say of the path of a message: no performance hint, no warning, no call into Python.

Each .pyx is translated by itself with the product's directives. In the C that comes out, the body of a function that
was declared nogil must not call the Python API: that is what `cython -a` shows as a yellow line, read here from the C
so that inline functions of the .pxd files are seen in the modules that use them. Answers are kept in .cache under a
hash of the module and of all headers, so that a second run takes no time.
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
CACHE = ".cache/compiled.json"
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


def digest_of(paths: list[Path]) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def problems(root: Path) -> list[str]:
    """What the compilers say of every module of core/, from the cache where neither it nor a header has changed."""
    if not (root / "setup.py").exists():
        return []
    shared = digest_of([*files(root / "core", ".pxd", ".h"), root / "setup.py", Path(__file__)])
    digests = {source: shared + digest_of([source]) for source in files(root / "core", ".pyx")}
    cache = root / CACHE
    kept: dict[str, list[str]] = json.loads(cache.read_text()) if cache.exists() else {}
    nogil = nogil_functions(root)
    changed = [source for source, digest in digests.items() if digest not in kept]
    with ThreadPoolExecutor(max_workers=2) as pool:
        for source, found in zip(changed, pool.map(lambda one: examine(root, one, nogil), changed), strict=True):
            kept[digests[source]] = found
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps({digest: kept[digest] for digest in digests.values()}))
    return sorted({line for digest in digests.values() for line in kept[digest]})
