"""`make check`: every linter and every rule of the project's own, all run, then the list of what failed.

Run inside .venv with its bin folder on PATH (the Makefile does so); a name as argument runs only the checks whose
names contain it.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
DEADLINE_S = 600
TYPED = ("core", "gateway", "router", "client/python/src", "tools", "tests", "loadtest", "k8s")
OWN = ("imports", "sizes", "gil", "mirror", "words", "places", "deadlines", "compiled")
# What Cython adds to every module and stubtest would like to see in each stub.
CYTHON_NAMES = r""".*\.__pyx_capi__
.*\.__test__
.*\.__reduce_cython__
.*\.__setstate_cython__
.*\.__pyx_vtable__
.*\.__pyx_unpickle.*
.*\.__reduce__
"""


@dataclass(frozen=True)
class Check:
    """One line of the report: what it is called and how to run it; an empty answer means that it passed."""

    name: str
    run: Callable[[], str]


def tracked(*patterns: str) -> list[str]:
    """Files of the tree that match, whether committed already or not, without what git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout
    return sorted({line for line in listed.splitlines() if (ROOT / line).exists()})


def command(*arguments: str) -> Callable[[], str]:
    """A check that passes when the command does."""

    def run() -> str:
        result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
        return (
            "" if result.returncode == 0 else f"{result.stdout}{result.stderr}".strip() or f"exit {result.returncode}"
        )

    return run


def own(name: str) -> Callable[[], str]:
    """A check of tools/checks/: its `problems(root)` lists what is wrong."""

    def run() -> str:
        found: list[str] = import_module(f"tools.checks.{name}").problems(ROOT)
        return "\n".join(found)

    return run


def stubtest() -> str:
    """Hold every hand-written .pyi true to the compiled module."""
    modules = [f"core.{Path(stub).stem}" for stub in tracked("core/*.pyi") if Path(stub).stem != "__init__"]
    if not modules:
        return ""
    allowed = ROOT / "build" / "stubtest_allowed.txt"
    allowed.parent.mkdir(exist_ok=True)
    allowed.write_text(CYTHON_NAMES)
    # Every class of Cython is a disjoint base; saying so on each would only add noise.
    options = [
        "--ignore-disjoint-bases",
        "--ignore-unused-allowlist",
        "--allowlist",
        str(allowed),
        "--mypy-config-file",
        "pyproject.toml",
    ]
    return command(sys.executable, "-m", "mypy.stubtest", "--concise", *options, *modules)()


def checks() -> list[Check]:
    # A clone may lack some of these folders; mypy is asked about those that have anything to check.
    typed = [folder for folder in TYPED if tracked(f"{folder}/*.py", f"{folder}/*.pyi")]
    cython = tracked("*.pyx", "*.pxd")
    return [
        Check("ruff check", command("ruff", "check", "--quiet", ".")),
        Check("ruff format", command("ruff", "format", "--check", "--quiet", "--diff", ".")),
        # A cache of its own: stubtest runs beside it, and SQLite refuses whoever comes second to the same file.
        Check("mypy", command("mypy", "--cache-dir", ".mypy_cache/strict", "--strict", "--no-error-summary", *typed)),
        Check("stubtest", stubtest),
        Check("cython-lint", command("cython-lint", *cython)),
        Check(
            "codespell",
            command(
                "codespell",
                *tracked("*.py", "*.pyi", "*.pyx", "*.pxd", "*.h", "*.c", "*.md", "*.js", "*.html", "Makefile"),
            ),
        ),
        *(Check(f"own: {name}", own(name)) for name in OWN),
    ]


def timed(check: Check) -> tuple[str, float]:
    started = time.monotonic()
    try:
        found = check.run()
    except (OSError, subprocess.SubprocessError) as error:
        found = f"could not run: {error}"
    return found, time.monotonic() - started


def main(only: str) -> int:
    wanted = [check for check in checks() if only in check.name]
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(timed, wanted))
    for check, (found, seconds) in zip(wanted, results, strict=True):
        print(f"{'FAILED' if found else 'passed'}  {check.name} ({seconds:.1f} s)")
        if found:
            print("    " + found.replace("\n", "\n    "))
    failed = [check.name for check, (found, _) in zip(wanted, results, strict=True) if found]
    print(f"make check: {len(failed)} of {len(wanted)} failed: {', '.join(failed)}" if failed else "make check: passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
