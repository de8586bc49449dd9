"""What the benchmarks stand on: /proc, the servers under test, and the load client as a process.

Nothing here knows which experiment runs. Every wait has a deadline, every process started is ended by its own handle.
"""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

ROOT = Path(__file__).resolve().parent.parent
FLOOR = ROOT / "loadtest" / "bin" / "floor"
SWARM = ROOT / "loadtest" / "bin" / "swarm"
HOLDFAST = ROOT / ".venv" / "bin" / "holdfast"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
TICKS_OFF_MAX = 4  # user and system time of a process are rounded down to ticks at both ends
READY_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0
HTTP_DEADLINE_S = 5.0
LEDGER_SAMPLE = re.compile(r'holdfast_ledger_live\{(?:.*,)?kind="([^"]*)"')


class BenchError(Exception):
    """A run that gives no figure: a server that did not start, a client that failed."""


# ---- /proc ----


@dataclass(frozen=True)
class Cpu:
    """CPU that a set of processes has used, in seconds, with the processes it was read from.

    User and system time come in ticks of 10 ms. `exact_s` is to the nanosecond, but of living threads only, so that
    only differences of it mean something.
    """

    user_s: float
    system_s: float
    pids: tuple[int, ...]
    exact_s: float | None = None

    def since(self, before: "Cpu") -> "Cpu":
        """What was used since `before`.

        Raises:
            BenchError: a process was started or has ended in between, and took its figures with it.
        """
        if self.pids != before.pids:
            raise BenchError(f"the server's processes changed from {before.pids} to {self.pids}")
        user_s, system_s = self.user_s - before.user_s, self.system_s - before.system_s
        exact_s = None
        if self.exact_s is not None and before.exact_s is not None:
            exact_s = self.exact_s - before.exact_s
            # A thread that ended took its nanoseconds with it; the ticks of its process stay.
            if user_s + system_s - exact_s > TICKS_OFF_MAX * len(self.pids) / TICKS_PER_S:
                exact_s = None
        return Cpu(user_s, system_s, self.pids, exact_s)

    @property
    def total_s(self) -> float:
        return self.user_s + self.system_s if self.exact_s is None else self.exact_s


def machine_busy_s() -> float:
    """CPU seconds that the whole machine has been busy for since its start, over all cores."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = (int(word) for word in words[:8])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def cpu_by_process(pids: Sequence[int]) -> dict[int, float]:
    """CPU seconds that each process has used so far."""
    return {pid: read_cpu([pid]).total_s for pid in pids}


@dataclass(frozen=True)
class Memory:
    """User memory of a set of processes, in bytes: resident, proportional share, and private pages alone."""

    rss: int
    pss: int
    uss: int

    def since(self, before: "Memory") -> "Memory":
        return Memory(self.rss - before.rss, self.pss - before.pss, self.uss - before.uss)

    def as_dict(self) -> dict[str, int]:
        return {"rss": self.rss, "pss": self.pss, "uss": self.uss}


def stat_fields(pid: int) -> list[str]:
    """/proc/<pid>/stat from the state on; the name before it may hold blanks and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def process_tree(pid: int) -> tuple[int, ...]:
    """The process and all its descendants, ascending."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(stat_fields(int(entry.name))[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    tree = {pid}
    while found := {child for child, parent in parents.items() if parent in tree and child not in tree}:
        tree |= found
    return tuple(sorted(tree))


def read_cpu(pids: Sequence[int]) -> Cpu:
    """CPU used so far; zombies' and reaped children's figures are not in it."""
    stats = [stat_fields(pid) for pid in pids]
    user = sum(int(stat[11]) for stat in stats)
    system = sum(int(stat[12]) for stat in stats)
    exact = sum(run_ns(pid) for pid in pids)
    return Cpu(user / TICKS_PER_S, system / TICKS_PER_S, tuple(pids), exact / 1e9)


def run_ns(pid: int) -> int:
    """Nanoseconds that the living threads of a process have run for."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def parse_smaps_rollup(text: str) -> Memory:
    """Memory from the text of one smaps_rollup."""
    kib: dict[str, int] = {}
    for line in text.splitlines()[1:]:
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    return Memory(kib["Rss"] * 1024, kib["Pss"] * 1024, (kib["Private_Clean"] + kib["Private_Dirty"]) * 1024)


def read_memory(pids: Sequence[int]) -> Memory:
    parts = [parse_smaps_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in pids]
    return Memory(sum(part.rss for part in parts), sum(part.pss for part in parts), sum(part.uss for part in parts))


# ---- metrics ----


def parse_metrics(text: str) -> dict[str, float]:
    """Samples of the Prometheus text format, by name with labels."""
    samples: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name] = float(value)
    return samples


def metric_sum(samples: dict[str, float], name: str) -> float:
    """The sum of a metric over all its labels.

    Raises:
        BenchError: there is no such metric; zero would look like a very good result.
    """
    found = [value for key, value in samples.items() if key.partition("{")[0] == name]
    if not found:
        raise BenchError(f"/metrics has no {name}")
    return sum(found)


def ledger_live(samples: dict[str, float]) -> dict[str, float]:
    """What the ledger says is live, by kind, summed over all processes."""
    live: dict[str, float] = {}
    for key, value in samples.items():
        if found := LEDGER_SAMPLE.match(key):
            live[found[1]] = live.get(found[1], 0) + value
    return live


# ---- servers ----


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def shown(command: Sequence[str]) -> str:
    """A command as it goes into results: relative to the repository."""
    return " ".join(part.replace(f"{ROOT}/", "") for part in command)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=HTTP_DEADLINE_S) as answer:
        text: str = answer.read().decode()
        return text


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), HTTP_DEADLINE_S).close()
    except OSError:
        return False
    return True


@dataclass
class Server:
    """A server under test, as a context: inside it the server is ready, after it all of it is gone.

    `protocol` is what the load client has to speak, `tcp_port` that of the same server without WebSocket, and
    `environment` is set for it beside our own.
    """

    name: str
    command: list[str]
    ws_port: int
    admin_port: int | None = None
    tcp_port: int | None = None
    protocol: str = "holdfast"
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] = field(init=False)
    output: IO[bytes] = field(init=False)

    state: tempfile.TemporaryDirectory[str] = field(init=False)

    def __enter__(self) -> Self:
        self.output = tempfile.TemporaryFile()
        self.state = tempfile.TemporaryDirectory(prefix="holdfast-state-", ignore_cleanup_errors=True)
        settings = {**os.environ, "XDG_STATE_HOME": self.state.name, **self.environment}
        self.process = subprocess.Popen(
            self.command, stdout=self.output, stderr=subprocess.STDOUT, cwd=ROOT, env=settings
        )
        try:
            self._wait_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def pids(self) -> tuple[int, ...]:
        return process_tree(self.process.pid)

    def metrics(self) -> dict[str, float]:
        return parse_metrics(get(f"http://127.0.0.1:{self.admin_port}/metrics"))

    def written(self, since: int = 0) -> bytes:
        """What it wrote, from that byte on."""
        # Not seek and read: its processes write at the position that they share with this descriptor.
        return os.pread(self.output.fileno(), os.fstat(self.output.fileno()).st_size - since, since)

    def said(self) -> str:
        """The end of what it wrote."""
        return self.written().decode(errors="replace")[-3000:]

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_DEADLINE_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise BenchError(f"{shown(self.command)} ended with {self.process.returncode}: {self.said()}")
            if self._is_ready():
                return
            time.sleep(0.05)
        raise BenchError(f"{shown(self.command)} was not ready in {READY_DEADLINE_S:g} s: {self.said()}")

    def _is_ready(self) -> bool:
        if self.admin_port is None:
            return accepts(self.ws_port)
        try:
            get(f"http://127.0.0.1:{self.admin_port}/readyz")
        except (urllib.error.URLError, OSError):
            return False
        return True

    def _stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_DEADLINE_S)
        self.output.close()
        self.state.cleanup()


def floor(mode: str) -> Server:
    """The floor program; `mode` is `per-delivery` or `coalesce`."""
    (port,) = free_ports(1)
    return Server(f"floor-{mode}", [str(FLOOR), f"--{mode}", "--port", str(port)], port)


def holdfast(workers: int, name: str = "holdfast", environment: Mapping[str, str] | None = None) -> Server:
    """The real server, all in one."""
    port, ws_port, admin_port = free_ports(3)
    ports = ["--port", str(port), "--ws-port", str(ws_port), "--admin-port", str(admin_port)]
    command = [str(HOLDFAST), "run", "--workers", str(workers), *ports]
    return Server(name, command, ws_port, admin_port, port, environment=environment or {})


# ---- the load clients ----


class Program:
    """One load process; its lines are read as they come, so that phases can be told to the second."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_DEADLINE_S)
        self._reader.join(STOP_DEADLINE_S)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def expect(self, word: str, deadline_s: float) -> str:
        """The next line, which must begin with `word`.

        Raises:
            BenchError: another line came, none in time, or the process ended.
        """
        try:
            line = self._lines.get(timeout=deadline_s)
        except queue.Empty:
            raise BenchError(f"{shown(self.command)}: no line {word!r} in {deadline_s:g} s") from None
        if line is None or not line.startswith(word):
            # no deadline: the end of its output was its own end
            errors = self.process.stderr.read() if line is None and self.process.stderr else ""
            raise BenchError(f"{shown(self.command)}: expected {word!r}, got {line!r} {errors}")
        return line

    def stop(self) -> None:
        """Asks it to say FIN on all connections and to report."""
        self.process.send_signal(signal.SIGTERM)

    def result(self, deadline_s: float) -> dict[str, Any]:
        """The JSON object at the end, the exit code added as `exit_code`; lines before it are passed over."""
        line = self.expect("", deadline_s)
        while not line.startswith("{"):
            line = self.expect("", deadline_s)
        result: dict[str, Any] = json.loads(line)
        result["exit_code"] = self.process.wait(STOP_DEADLINE_S)
        return result

    def _read(self) -> None:
        if self.process.stdout is not None:
            for line in self.process.stdout:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)


class Swarm(Program):
    """One process of the load client in C."""

    def __init__(self, server: Server, workload: str, *options: str) -> None:
        where = ["--port", str(server.ws_port), "--protocol", server.protocol]
        if "--tcp" in options:
            where = ["--port", str(server.tcp_port or server.ws_port)]
        super().__init__([str(SWARM), workload, *where, *options])
