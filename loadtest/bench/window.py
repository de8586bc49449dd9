"""The CPU of a window: what the server's processes, the load client and the rest of the machine used of it."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from loadtest.measure import Cpu, Server, cpu_by_process, machine_busy_s, read_cpu

# One thread does all that a load client does, and all of a worker's data plane: at this share of a core it has no more.
BUSY = 0.9


class Used(NamedTuple):
    """CPU seconds of a window: of the server, of each of its processes by name, and of the whole machine."""

    server: Cpu
    processes: dict[str, float]
    machine_s: float


class Window:
    """Opens when it is made."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.pids = server.pids()
        self._machine_s, self._each, self._cpu = machine_busy_s(), cpu_by_process(self.pids), read_cpu(self.pids)

    def close(self) -> Used:
        """What was used since it was opened.

        Raises:
            BenchError: a process of the server was started or has ended in between.
        """
        used = read_cpu(self._server.pids()).since(self._cpu)
        each = cpu_by_process(self.pids)
        machine_s = machine_busy_s() - self._machine_s
        return Used(used, by_name({pid: each[pid] - self._each[pid] for pid in self.pids}), machine_s)


def by_name(seconds: dict[int, float]) -> dict[str, float]:
    """The same by the processes' names, those of one name with a number behind it."""
    found: dict[str, float] = {}
    for pid, used in seconds.items():
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        same = sum(other.partition(" #")[0] == name for other in found)
        found[f"{name} #{same + 1}" if same else name] = used
    return found


def bottleneck(server_cores: float, busiest_process: float, client_cores: float, cpus: int) -> str:
    """Who could do no more, from the cores that each used over the window."""
    if server_cores + client_cores >= BUSY * cpus:
        return "the machine"
    if busiest_process >= BUSY:
        return "the server"
    if client_cores >= BUSY:
        return "the load client"
    return "nobody"


def account(used: Used, client: dict[str, Any], seconds: float, units: int) -> dict[str, Any]:
    """The part of a result that is about CPU; `units` are the deliveries or connections that it was used for."""
    shares = {
        "server_cores": used.server.total_s / seconds,
        "busiest_process": max(used.processes.values()) / seconds,
        "client_cores": (client["cpu_user_s"] + client["cpu_system_s"]) / seconds,
    }
    others = used.machine_s / seconds - shares["server_cores"] - shares["client_cores"]
    return {
        "cpu_user_s": round(used.server.user_s, 3),
        "cpu_system_s": round(used.server.system_s, 3),
        "cpu_us_by_process": {name: each * 1e6 / units for name, each in used.processes.items()},
        **{name: round(share, 3) for name, share in shares.items()},
        "other_cores": round(max(0.0, others), 3),
        "bottleneck": bottleneck(cpus=os.cpu_count() or 1, **shares),
    }
