"""All that a figure depends on besides the code of the benchmark."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest.measure import HOLDFAST, ROOT, shown

COMMAND_DEADLINE_S = 20


def one_line(command: list[str]) -> str:
    """What a command prints, or an empty string: a missing tool must not cost a measurement."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def circumstances(arguments: list[str]) -> dict[str, Any]:
    """Machine, build and command."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": one_line(["git", "rev-parse", "HEAD"]),
        "uncommitted_changes": bool(one_line(["git", "status", "--porcelain", "--untracked-files=no"])),
        "build_mode": os.environ.get("HOLDFAST_BUILD", "release"),
        "version": one_line([str(HOLDFAST), "version"]) if HOLDFAST.exists() else "",
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "go": one_line(["go", "env", "GOVERSION"]),
        "node": one_line(["node", "--version"]),
        "load_average": os.getloadavg(),
        "command": shown([Path(sys.executable).name, "-m", "loadtest.bench", *arguments]),
    }
