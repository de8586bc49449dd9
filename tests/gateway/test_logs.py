"""One line an event, with the process in it, at the level asked for. In a process of its own: logging is global."""

import json
import subprocess
import sys

PROGRAM = """
import sys
from gateway import logs
log = logs.get("part-1")
logs.setup(sys.argv[1], sys.argv[2], process="worker-7")
log.debug("too_quiet")
log.info("hello", count=3)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def written(level: str, log_format: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, level, log_format], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_a_line_even_with_a_traceback() -> None:
    hello, failed = (json.loads(line) for line in written("info", "json"))
    assert (hello["event"], hello["count"], hello["level"]) == ("hello", 3, "info")
    assert (hello["process"], hello["part"]) == ("worker-7", "part-1")
    assert "ZeroDivisionError" in failed["exception"]


def test_the_level_is_kept() -> None:
    assert [json.loads(line)["event"] for line in written("debug", "json")] == ["too_quiet", "hello", "failed"]
    assert [json.loads(line)["event"] for line in written("error", "json")] == ["failed"]


def test_console_lines_are_plain_when_nobody_watches() -> None:
    line = written("info", "console")[0]
    assert "hello" in line
    assert "worker-7" in line
    assert "\x1b" not in line
