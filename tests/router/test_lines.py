"""What is logged by the standard library looks like all other lines. In a process of its own: logging is global."""

import json
import subprocess
import sys

PROGRAM = """
import logging, sys
from router import lines
lines.setup(logging.INFO, as_json=sys.argv[1] == "json", process="router")
log = logging.getLogger("holdfast.shards")
log.debug("too quiet")
log.info("registered as %s, epoch %d", "r1", 7)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def written(form: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, form], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_a_line_even_with_a_traceback() -> None:
    registered, failed = (json.loads(line) for line in written("json"))
    assert (registered["event"], registered["level"]) == ("registered as r1, epoch 7", "info")
    assert (registered["part"], registered["process"]) == ("holdfast.shards", "router")
    assert registered["timestamp"].endswith("Z")
    assert "ZeroDivisionError" in failed["exception"]


def test_for_people_a_line_has_time_level_and_process() -> None:
    registered, failed, *more = written("console")
    assert registered.split(" ", 1)[1] == "[info     ] registered as r1, epoch 7 part=holdfast.shards process=router"
    assert "[error    ] failed part=holdfast.shards" in failed
    assert more[-1].startswith("ZeroDivisionError")
