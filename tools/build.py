"""Build the extensions: `release` in place, `checked` and `asan` as complete copies of the packages under build/.

The output is shown only when it fails or warns. Warnings do not fail a build, since another compiler may have more of
them; `make check` fails on those that ours has.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core", "gateway", "router")
DEADLINE_S = 900
WARNING = re.compile(r"^(?:warning: core/|core/.*: (?:warning|error):|performance hint: )", re.MULTILINE)


def module_of(compiled: Path) -> str:
    """`core/ring.cpython-311-x86_64-linux-gnu.so` is of module `ring`."""
    return compiled.name.split(".", 1)[0]


def remove_orphans(package: Path) -> None:
    """Compiled modules whose source is gone would still import, so they go as well."""
    for compiled in package.glob("*.so"):
        if not (ROOT / "core" / f"{module_of(compiled)}.pyx").exists():
            compiled.unlink()


def command_for(mode: str, jobs: int) -> list[str]:
    command = [sys.executable, "setup.py", "-q"]
    if mode == "release":
        return [*command, "build_ext", "--inplace", "--parallel", str(jobs)]
    # --build-temp apart from the release build's: the two may run at the same time.
    return [*command, "build", "--build-lib", f"build/{mode}", "--build-temp", f"build/temp-{mode}", "-j", str(jobs)]


def out_of_date(mode: str) -> bool:
    """Whether everything must be built again: the flags stand in setup.py, which no object file depends on."""
    stamp = ROOT / "build" / "stamps" / mode
    return stamp.exists() and stamp.stat().st_mtime < (ROOT / "setup.py").stat().st_mtime


def copy_sources_afresh(mode: str) -> None:
    """Drop the copied Python files: `build` copies what changed but keeps what was deleted."""
    for package in PACKAGES:
        for copied in (ROOT / "build" / mode / package).rglob("*.py*"):
            if copied.is_file():
                copied.unlink()


def build(mode: str, jobs: int) -> int:
    """Build one mode; returns the exit code of setup.py."""
    target = ROOT / "core" if mode == "release" else ROOT / "build" / mode / "core"
    if out_of_date(mode):
        shutil.rmtree(ROOT / "build" / f"cython-{mode}", ignore_errors=True)
    remove_orphans(target)
    if mode != "release":
        copy_sources_afresh(mode)
    started = time.monotonic()
    print(f"building the {mode} extensions", flush=True)
    result = subprocess.run(
        command_for(mode, jobs),
        cwd=ROOT,
        env={**os.environ, "HOLDFAST_BUILD": mode},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
    )
    if result.returncode or WARNING.search(result.stdout):
        print(result.stdout)
    outcome = "failed" if result.returncode else "built"
    print(f"{outcome} in {time.monotonic() - started:.0f} s")
    return result.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("release", "checked", "asan"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    sys.exit(build(arguments.mode, arguments.jobs))


if __name__ == "__main__":
    main()
