"""`make fuzz`: 200,000 random and mutated frames and handshakes against a running node.

    python tests/fuzz/run.py --seed 7 --count 200000 --build checked
    python tests/fuzz/run.py --seed 7 --only 1234       one connection of that run again

Exit code 0: every input was answered as the protocol page says, and nothing was left behind.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COUNT = 200_000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="default: a new one, printed")
    parser.add_argument("--count", type=int, default=COUNT, help="inputs to send")
    parser.add_argument("--build", choices=("release", "checked", "asan"), default=None, help="default: HOLDFAST_BUILD")
    parser.add_argument("--only", type=int, help="number of one connection of the run")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def environment_of(build: str) -> dict[str, str]:
    """What makes this program and the node that it starts import the build."""
    environment = {**os.environ, "HOLDFAST_BUILD": build, "PYTHONSAFEPATH": "1"}
    if build != "release":
        environment["PYTHONPATH"] = f"{ROOT / 'build' / build}{os.pathsep}{ROOT}"
    if build == "asan":
        library = subprocess.check_output(["gcc", "-print-file-name=libasan.so"], text=True, timeout=30).strip()
        # Python's own allocations at exit are no leaks of ours; the ledger looks for those.
        environment |= {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1"}
        environment["UBSAN_OPTIONS"] = "halt_on_error=1:print_stacktrace=1"
    return environment


def main() -> int:
    """Fuzz; the exit code."""
    options = arguments()
    build = options.build or os.environ.get("HOLDFAST_BUILD", "release")
    if os.environ.get("HOLDFAST_TEST_FUZZING") != build:
        environment = {**environment_of(build), "HOLDFAST_TEST_FUZZING": build}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    sys.path.append(str(ROOT))
    from tests.conftest import Node
    from tests.fuzz import campaign

    node = Node(("--workers", str(options.workers)), campaign.SETTINGS)
    try:
        node.wait_ready()
        seed = campaign.fresh_seed() if options.seed is None else options.seed
        print(f"build {build}, {options.count} inputs")
        faults = campaign.run(node, seed, options.count, options.only)
        print("\n".join(faults) or "nothing was wrong")
        if faults:
            print(node.log_tail())
            return 1
        node.check_ledger()
        node.stop()
        return 0
    finally:
        node.destroy()


if __name__ == "__main__":
    sys.exit(main())
