"""What is looked at while a soak runs: memory, files and ledger of each process of the node."""

import json
import os
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtest.measure import BenchError, Server, metric_sum

# Kept for their time, whoever has left; `stream` is what the ledger of a router calls a channel.
HELD_ON_PURPOSE = ("history", "key", "stream")
# Counters of what a process finds wrong with itself.
_WRONG = re.compile(r'(holdfast_(?:handles_leaked|tasks_failed)_total)\{.*process="([\w-]+)"')
_LIVE = re.compile(r'holdfast_ledger_live\{(?=.*kind="(\w+)")(?=.*process="([\w-]+)")')


@dataclass(frozen=True)
class Sample:
    """One look. `private`, `rss` and `fds` are by process, `live` is the ledger's, summed over all."""

    at_s: float
    connections: int
    opened: int
    """Connections that the node has taken in since its start."""
    pids: dict[str, int]
    private: dict[str, int]
    """Bytes that a process has written to and shares with nobody. Clean pages are left out: whether those of a library
    count as private depends on who else on the machine has it open."""
    rss: dict[str, int]
    fds: dict[str, int]
    live: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "at_s": round(self.at_s, 2)}

    @property
    def memory(self) -> int:
        """Private bytes of the whole node."""
        return sum(self.private.values())

    @property
    def files(self) -> int:
        """Open files of the whole node beside its connections."""
        return sum(self.fds.values()) - self.live["connection"]


def processes(server: Server) -> dict[str, int]:
    """Pid by name, such as `worker-0`; of several that are called alike all but the first have their pid in it.

    Raises:
        BenchError: one has just ended.
    """
    try:
        names = [(pid, Path(f"/proc/{pid}/comm").read_text().strip()) for pid in server.pids()]
    except (FileNotFoundError, ProcessLookupError) as error:
        raise BenchError(f"a process of the node has ended: {error}") from error
    found: dict[str, int] = {}
    for pid, name in names:
        name = "supervisor" if pid == server.process.pid else name
        found[f"{name} {pid}" if name in found else name] = pid
    return found


def rollup(pid: int) -> dict[str, int]:
    """Bytes by the names of smaps_rollup, all mappings of a process summed."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, *_ in lines}


def look(server: Server, began_s: float) -> Sample:
    """A sample now; `began_s` on the clock of `time.monotonic`.

    Raises:
        BenchError: a process has ended meanwhile.
    """
    pids, metrics = processes(server), server.metrics()
    fds, memory = {}, {}
    for name, pid in pids.items():
        try:
            fds[name] = len(os.listdir(f"/proc/{pid}/fd"))
            memory[name] = rollup(pid)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise BenchError(f"{name} of the node has ended: {error}") from error
    live: Counter[str] = Counter()
    for key, value in metrics.items():
        if found := _LIVE.match(key):
            live["stream" if found[1] == "channel" and found[2].startswith("router") else found[1]] += int(value)
    opened = sum(
        value
        for key, value in metrics.items()
        if key.startswith("holdfast_ledger_opened") and 'kind="connection"' in key
    )
    return Sample(
        time.monotonic() - began_s,
        int(metric_sum(metrics, "holdfast_open_connections")),
        int(opened),
        pids,
        {name: part["Private_Dirty"] for name, part in memory.items()},
        {name: part["Rss"] for name, part in memory.items()},
        fds,
        dict(live),
    )


def unbalanced(before: Sample, after: Sample) -> dict[str, int]:
    """Ledger lines that did not come back to where they were: kind, and by how much."""
    kinds = (before.live.keys() | after.live.keys()) - set(HELD_ON_PURPOSE)
    differences = {kind: after.live.get(kind, 0) - before.live.get(kind, 0) for kind in sorted(kinds)}
    return {kind: by for kind, by in differences.items() if by}


def files_left(before: Sample, after: Sample) -> dict[str, int]:
    """Open files by process that were not there before; a process that was not has all of its own."""
    names = before.fds | after.fds
    differences = {name: after.fds.get(name, 0) - before.fds.get(name, 0) for name in names}
    return {name: by for name, by in differences.items() if by}


def ended(before: Sample, after: Sample) -> list[str]:
    """Processes that are not there any more, or another one in their place."""
    return sorted(name for name, pid in before.pids.items() if pid not in after.pids.values())


def appeared(before: Sample, after: Sample) -> list[str]:
    """Processes that were not there before."""
    return sorted(name for name, pid in after.pids.items() if pid not in before.pids.values())


def found_wrong(metrics: dict[str, float]) -> dict[str, int]:
    """What the processes count as wrong with themselves, by counter and process, where it is not 0."""
    found = {f"{match[1]} of {match[2]}": int(value) for key, value in metrics.items() if (match := _WRONG.match(key))}
    return {name: count for name, count in found.items() if count}


def errors_in(written: bytes) -> list[str]:
    """The lines that are errors of a log in JSON; whatever is no line of that log (a traceback, an abort) is one."""
    errors = []
    for line in filter(None, map(str.strip, written.decode(errors="replace").splitlines())):
        try:
            level = json.loads(line)["level"]
        except (ValueError, TypeError, KeyError):
            level = "warning" if line.startswith("WARNING:") else "error"  # the former by Python's own logging
        if level not in ("debug", "info", "warning"):
            errors.append(line)
    return errors
