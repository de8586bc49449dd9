"""What a node and its load take of the machine: memory of user and kernel, processor time, growth over time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.measure import BenchError, Memory, Server, metric_sum, read_cpu, read_memory

# A connection, both ends: what the kernel was seen to take, and some more.
KERNEL_BYTES_PER_PAIR = 12 * 1024
FILES_PER_PAIR = 2
# Of /proc/meminfo: what sockets, their files, page tables and stacks are counted under.
_KERNEL = ("Slab", "SUnreclaim", "PageTables", "KernelStack", "MemAvailable")
SECONDS_A_DAY = 86_400


def kind_of(pid: int) -> str:
    """`worker`, `router` or `zygote`, by the name that the process gave itself."""
    return Path(f"/proc/{pid}/comm").read_text().strip().partition("-")[0]


def user_memory(server: Server, swarm_pids: Sequence[int]) -> dict[str, dict[str, int]]:
    """User memory by kind of process; in PSS a page that several share counts once over all of them."""
    pids: dict[str, list[int]] = {"supervisor": [server.process.pid]}
    for pid in server.pids():
        if pid != server.process.pid:
            pids.setdefault(kind_of(pid), []).append(pid)
    pids["swarm"] = list(swarm_pids)
    found = {kind: {"processes": len(of_kind), **read_memory(of_kind).as_dict()} for kind, of_kind in pids.items()}
    holdfast = [part for kind, part in found.items() if kind != "swarm"]
    found["holdfast"] = {name: sum(part[name] for part in holdfast) for name in holdfast[0]}
    return found


def kernel_memory() -> dict[str, int]:
    """Bytes by the names of /proc/meminfo, for the whole machine."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, *_ in lines if name.rstrip(":") in _KERNEL}


def check_machine(connections: int) -> None:
    """Whether the machine has room for so many connections, both ends.

    Raises:
        BenchError: it has not; the message says what is missing.
    """
    available = kernel_memory()["MemAvailable"]
    if available < connections * KERNEL_BYTES_PER_PAIR:
        raise BenchError(
            f"{connections:,} connections take about {connections * KERNEL_BYTES_PER_PAIR >> 20:,} MiB of the kernel's"
            f" memory and {available >> 20:,} MiB are available: ask for fewer with --connections"
        )
    used, _, most = map(int, Path("/proc/sys/fs/file-nr").read_text().split())
    if most - used < connections * FILES_PER_PAIR:
        raise BenchError(
            f"{connections:,} connections take {connections * FILES_PER_PAIR:,} open files and the machine has"
            f" {most - used:,} left: raise fs.file-max, or ask for fewer with --connections"
        )


def since(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: now[name] - before[name] for name in now}


@dataclass(frozen=True)
class Sample:
    """One look at a crowd that is being held."""

    at_s: float
    connections: int
    holdfast: Memory
    swarm: Memory
    holdfast_cpu_s: float
    swarm_cpu_s: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "at_s": round(self.at_s, 2),
            "connections": self.connections,
            "holdfast": self.holdfast.as_dict(),
            "swarm": self.swarm.as_dict(),
            "holdfast_cpu_s": round(self.holdfast_cpu_s, 2),
            "swarm_cpu_s": round(self.swarm_cpu_s, 2),
        }


def look(server: Server, swarm_pids: Sequence[int], began_s: float) -> Sample:
    """A sample now; `began_s` on the clock of `time.monotonic` is when the hold began.

    Raises:
        FileNotFoundError: a process has ended.
    """
    pids = server.pids()
    return Sample(
        time.monotonic() - began_s,
        int(metric_sum(server.metrics(), "holdfast_open_connections")),
        read_memory(pids),
        read_memory(swarm_pids),
        read_cpu(pids).total_s,
        read_cpu(swarm_pids).total_s,
    )


def cpu_us_per_connection_second(samples: Sequence[Sample], of: Callable[[Sample], float]) -> float:
    """Microseconds of CPU that a held connection costs a second, between the first sample and the last."""
    first, last = samples[0], samples[-1]
    if last.at_s == first.at_s or not last.connections:
        return 0.0
    return (of(last) - of(first)) * 1e6 / (last.at_s - first.at_s) / last.connections


def growth_per_day(samples: Sequence[Sample]) -> float:
    """The slope of the node's memory over time (least squares), as a share of its mean, a day."""
    mean_s = sum(sample.at_s for sample in samples) / len(samples)
    mean = sum(sample.holdfast.pss for sample in samples) / len(samples)
    spread = sum((sample.at_s - mean_s) ** 2 for sample in samples)
    if not spread:
        return 0.0
    slope = sum((sample.at_s - mean_s) * (sample.holdfast.pss - mean) for sample in samples) / spread
    return slope * SECONDS_A_DAY / mean
