"""Print how a whole `make test` ended: one line for each run of tests, read from its log."""

import re
import sys
from pathlib import Path

SUMMARY = re.compile(r"^(?:=+ )?\d+ (?:passed|failed|error|skipped|deselected|xfailed).*$")
RUNS = (("javascript", "JavaScript client"), ("release", "release build"), ("checked", "checked build"))


def summary_of(log: str) -> str:
    """The last summary in a log: pytest's own line, or node's counts.

    Raises:
        ValueError: when the log ends without one; a run that was cut short must not look like one that passed.

    """
    for line in reversed(log.splitlines()):
        if SUMMARY.match(line):
            return line.strip("= ")
    counts = dict(re.findall(r"^[^a-z] (tests|pass|fail|skipped) (\d+)$", log, re.MULTILINE))
    if "pass" not in counts:
        raise ValueError("no summary")
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number != "0" and name != "tests")


def main(folder: Path) -> int:
    """Print the ending; 1 when a run left no summary."""
    print("\nmake check: passed")
    for name, title in RUNS:
        log = folder / f"{name}.log"
        if not log.exists():
            continue
        try:
            print(f"{title}: {summary_of(log.read_text(errors='replace'))}")
        except ValueError as error:
            print(f"{title}: {error} in {log}")
            return 1
    print("make test: everything passed")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
