"""Lines of the standard library's logging in the form of all others: for people, or one JSON object each.

The router logs by it alone; in the gateway's processes it is what comes from the directory's client and from libraries.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any


class Lines(logging.Formatter):
    """One line an event.

    Args:
        as_json: for machines.
        process: what the process is called in each line.

    """

    def __init__(self, *, as_json: bool, process: str) -> None:
        super().__init__()
        self._as_json = as_json
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        level, failed = record.levelname.lower(), self.formatException(record.exc_info) if record.exc_info else ""
        if not self._as_json:
            line = f"{at} [{level:<9}] {record.getMessage()} part={record.name} process={self._process}"
            return f"{line}\n{failed}" if failed else line
        told: dict[str, Any] = {"event": record.getMessage(), "part": record.name, "process": self._process}
        if failed:
            told["exception"] = failed
        return json.dumps({**told, "level": level, "timestamp": at})


def setup(level: int, *, as_json: bool, process: str) -> None:
    """Have all that this process logs by the standard library written to standard error; call it once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(as_json=as_json, process=process))
    logging.basicConfig(level=level, handlers=[handler], force=True)
