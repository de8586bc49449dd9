"""The core's tests under a memory checker: `asan` (AddressSanitizer with LeakSanitizer, and UBSan) or `valgrind`.

Both take the checked code. A fault ends the run with its report. Of leaks only those count that one of our modules
allocated: CPython and others keep what they made at their start. `asan` runs all of the core's tests; `valgrind`, which
is far slower, those of the audits, which walk every table, and of what lends memory: the others' deadlines would not
hold.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 3600
LOG = ROOT / "build" / "sanitizer.log"
# The frame below the allocator's own: `    #1 0x7f… in ring_lease core/ring.pxd:83` or `… (/…/core/ring.so+0x1)`.
_ALLOCATED = re.compile(r"^ +#1 0x[0-9a-f]+ (?P<where>.*)$", re.MULTILINE)
# Tests that leak on purpose.
LEAKING = "leak_of_each_kind or a_worker_gave_up_is_still_known"
# These look into glibc's heap, which AddressSanitizer replaces by its own.
ASAN_WITHOUT = ("--ignore=tests/core/test_introspect.py",)
# Tests of every table at once, and of what lends memory.
VALGRIND_TESTS = (
    "audit",
    "audit_edge",
    "audit_router",
    "buffer",
    "bus",
    "joins",
    "mailbox",
    "names",
    "ring",
    "sites",
    "slab",
)
# A record of valgrind ends where the line is empty but for the process.
_RECORD = re.compile(r"^==\d+== *$", re.MULTILINE)
_OURS = re.compile(r"\(\w+\.(?:pyx|pxd):\d+\)")


def library(name: str) -> str:
    """Where the compiler has one of its run-time libraries."""
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True, timeout=60)
    return found.stdout.strip()


def environment(tool: str) -> dict[str, str]:
    """What the tests are run in; PYTHONMALLOC lets the tool see each object of Python by itself."""
    build = "asan" if tool == "asan" else "checked"
    given = {**os.environ, "HOLDFAST_BUILD": build, "PYTHONSAFEPATH": "1", "PYTHONMALLOC": "malloc"}
    given["PYTHONPATH"] = str(ROOT / "build" / build)
    if tool == "asan":
        given["LD_PRELOAD"] = f"{library('libasan.so')} {library('libubsan.so')}"
        given["ASAN_OPTIONS"] = f"exitcode=86:detect_leaks=1:log_path={LOG}"
        given["LSAN_OPTIONS"] = "exitcode=0:max_leaks=0"  # other's leaks as well: `leaks` sees which are ours
        given["UBSAN_OPTIONS"] = "halt_on_error=1:print_stacktrace=1"
    return given


def command(tool: str, tests: list[str]) -> list[str]:
    """The program with its arguments; `tests` are those to run, empty: the tool's own choice."""
    chosen = tests or (
        ["tests/core", *ASAN_WITHOUT]
        if tool == "asan"
        else [f"tests/core/test_{name}.py" for name in VALGRIND_TESTS if exists(name)]
    )
    # What the tools print goes by the descriptor: pytest may capture Python's streams only.
    pytest = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--capture=sys",
        "-k",
        f"not ({LEAKING})",
    ]
    pytest += chosen
    if tool == "asan":
        return pytest
    return [
        "valgrind", "--quiet", "--leak-check=full", "--show-leak-kinds=definite", "--num-callers=20",
        f"--log-file={LOG}.%p", *pytest,
    ]  # fmt: skip


def faults(logs: list[str]) -> list[str]:
    """What AddressSanitizer's logs say that is ours: every error, and the leaks that one of our modules allocated."""
    found = []
    for log in logs:
        for part in log.split("\n\n"):
            frame = _ALLOCATED.search(part)
            is_error = "ERROR: AddressSanitizer" in part or "runtime error:" in part
            if is_error or ("leak of" in part and frame and "core/" in frame["where"]):
                found.append(part)
    return found


def valgrind_faults(logs: list[str]) -> list[str]:
    """What valgrind's logs say that is ours: one of the three innermost frames of the first stack is in our sources.

    glibc's loader and CPython's collector read what they know to be harmless, and keep what they made.
    """
    found = []
    for log in logs:
        for record in _RECORD.split(log):
            frames = [line for line in record.splitlines() if re.match(r"==\d+==    (?:at|by) 0x", line)]
            if any(_OURS.search(frame) for frame in frames[:3]):
                found.append(record.strip())
    return found


def exists(name: str) -> bool:
    return (ROOT / "tests" / "core" / f"test_{name}.py").exists()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=("asan", "valgrind"))
    parser.add_argument("tests", nargs="*", help="test files instead of the tool's own choice")
    arguments = parser.parse_args()
    for log in LOG.parent.glob(f"{LOG.name}.*"):
        log.unlink()
    began = time.monotonic()
    ended = subprocess.run(
        command(arguments.tool, arguments.tests), cwd=ROOT, env=environment(arguments.tool), timeout=DEADLINE_S
    )
    read = faults if arguments.tool == "asan" else valgrind_faults
    found = read([log.read_text(errors="replace") for log in sorted(LOG.parent.glob(f"{LOG.name}.*"))])
    print("\n\n".join(found))
    print(
        f"{arguments.tool}: exit code {ended.returncode}, {len(found)} findings, after {time.monotonic() - began:.0f} s"
    )
    return ended.returncode or (1 if found else 0)


if __name__ == "__main__":
    sys.exit(main())
