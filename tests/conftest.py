"""Fixtures for tests over real processes and real sockets: start a whole node, look at it, stop it, count what is left.

Nothing here is meant for tests of one module; those need no node.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
# For `tools`. At the end, so that PYTHONPATH=build/checked stays in front of the sources.
sys.path.append(str(ROOT))
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 60.0
SETTLE_DEADLINE_S = 45.0
HTTP_DEADLINE_S = 30.0
AUDIT_DEADLINE_S = 30.0
POLL_S = 0.05
PORT_MIN = 10_000
PORT_END = 65_536
START_ATTEMPTS = 3
# Given to every process of a node in its environment: how those left behind are found.
MARK = "HOLDFAST_TEST_MARK"
# Where the longest files are: of files that run beside each other, one that begins last keeps everybody waiting.
LONGEST_FIRST = (
    "chaos",
    "client/integration/test_outcomes.py",
    "process/test_redis_restart.py",
    "contract/test_directory_faults.py",
    "browser",
    "simulation",
    "loadtest/soak",
    "process",
    "router/log",
    "client",
    "contract",
    "monitoring",
)
# What must read opened = closed once all clients have left.
BALANCED = ("connection", "ring", "buffer")
BUILD = os.environ.get("HOLDFAST_BUILD", "release")
_given_ports: set[int] = set()
# Not the shared one, which is seeded: processes beside this one would try the same ports.
_port_choice = random.SystemRandom()
CORE = ROOT / "build" / BUILD / "core" if BUILD != "release" else ROOT / "core"


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, none of them given twice: below those that the kernel gives to
    connections, of which other tests open thousands meanwhile.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    end = first if first >= 2 * PORT_MIN else PORT_END  # where connections have nearly all, there is nothing below them
    ports: list[int] = []
    while len(ports) < count:
        port = _port_choice.randrange(PORT_MIN, end)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            if port not in _given_ports:
                _given_ports.add(port)
                ports.append(port)
    return ports


def wait_until(
    condition: Callable[[], Any], what: str | Callable[[], str], deadline_s: float = SETTLE_DEADLINE_S
) -> Any:
    """Ask until the answer is true, and return it; AssertionError with `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while not (answer := condition()):
        assert time.monotonic() < end, f"not within {deadline_s} s: {what() if callable(what) else what}"
        time.sleep(POLL_S)
    return answer


def stand_still(pid: int) -> None:
    """SIGSTOP, and wait until it has reached every thread: one that runs on another processor may still answer."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: stands_still(pid), f"process {pid} stands still")


def stands_still(pid: int) -> bool:
    """Whether it is there, and every thread of it is stopped."""
    stats = Path(f"/proc/{pid}/task").glob("*/stat")
    return {path.read_text().rpartition(")")[2].split()[0] for path in stats} == {"T"}


def children(pid: int) -> list[int]:
    """The children of a process now, of all its threads."""
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, listed.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def command_line(pid: int) -> str:
    """What a process was started with; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def marked_processes(mark: str) -> list[int]:
    """Processes, zombies left out, that carry a node's mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def complaints(audited: dict[str, Any]) -> list[str]:
    """What an audit found wrong, a line each."""
    found = []
    for process in audited.get("processes", []):
        found += [f"{process['process']}: {one}" for one in process.get("findings", [])]
        if "error" in process:
            found.append(f"{process['process']}: {process['error']}")
    return found


class Account(NamedTuple):
    """One kind of resource: how often it was acquired, released, and open when its process ended."""

    opened: int
    closed: int
    lost: int

    @property
    def live(self) -> int:
        return self.opened - self.closed - self.lost


class Node:
    """A running `holdfast run`, or another `command`, with its own ports and its own temporary folder.

    `before`: a command that runs it in its own place, as `unshare` does.

    Attributes:
        port, ws_port, admin_port: where it listens, on loopback.
        pid: the supervisor's.
        log: path of what all its processes wrote.

    """

    def __init__(
        self, arguments: tuple[str, ...], settings: dict[str, str], command: str = "run", before: tuple[str, ...] = ()
    ) -> None:
        # Short, since a Unix socket's path has 107 bytes at most and pytest's own folders are long.
        self.folder = Path(tempfile.mkdtemp(prefix="hf-"))
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.log = self.folder / "log"
        self._memory_before = shared_memory()
        self._arguments, self._settings = arguments, settings
        self._command, self._before = command, before
        self._may_lose = False
        self._may_leak = False
        self._stopped = False
        self._spawn()

    def wait_ready(self) -> None:
        """Wait until it says that it serves."""
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                wait_until(self._is_ready, lambda: f"/readyz is 200\n{self.log_tail()}", START_DEADLINE_S)
                break
            except _Exited as exited:
                # Between our looking and its binding, somebody else may have taken a port.
                if attempt == START_ATTEMPTS or "in use by another program" not in self.log_tail():
                    self._stopped = True
                    raise AssertionError(f"holdfast ended with {exited} at its start\n{self.log_tail()}") from exited
                self._spawn()
        self._check_build()

    def crash(self) -> None:
        """SIGKILL to every process of the node, and none sees another one die: it would begin to end in order."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in marked_processes(self.folder.name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self._process.wait(STOP_DEADLINE_S)
        wait_until(lambda: not marked_processes(self.folder.name), "all its processes are gone")

    def start_again(self) -> None:
        """After `crash`: on the same ports and with what is left on its disk."""
        self.launch_again()
        wait_until(self._is_ready, lambda: f"/readyz is 200\n{self.log_tail()}", START_DEADLINE_S)

    def launch_again(self) -> None:
        """`start_again`, but returns before it serves."""
        self._launch()

    def _spawn(self) -> None:
        self.port, self.ws_port, self.admin_port = free_ports(3)
        self._launch()

    def _launch(self) -> None:
        ports = ["--port", str(self.port), "--ws-port", str(self.ws_port), "--admin-port", str(self.admin_port)]
        program = Path(sys.executable).parent / "holdfast"
        own = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_CHAOS")}
        environment = {**own, **self._settings, MARK: self.folder.name}
        environment |= {"TMPDIR": str(self.temporary), "XDG_RUNTIME_DIR": str(self.temporary)}
        environment |= {"XDG_STATE_HOME": str(self.folder / "state")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._before, program, self._command, *ports, *self._arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.pid = self._process.pid

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise _Exited(self._process.returncode)
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def _check_build(self) -> None:
        """Every process must run the build that is being tested; a copy from elsewhere would test nothing."""
        for pid in [self.pid, *self.workers, *self.routers]:
            maps = Path(f"/proc/{pid}/maps").read_text()
            for library in re.findall(r"(/\S+/core)/[^/\s]+\.so$", maps, re.MULTILINE):
                assert Path(library) == CORE, f"{command_line(pid)} runs {library}, but {BUILD} is being tested"

    @property
    def workers(self) -> list[int]:
        return self._of_role("worker")

    @property
    def routers(self) -> list[int]:
        return self._of_role("router")

    def _of_role(self, role: str) -> list[int]:
        return [pid for pid in children(self.pid) if re.search(rf"\b{role}\b", command_line(pid))]

    def get(self, path: str) -> tuple[int, str]:
        """GET from the admin port; an error status is an answer as well."""
        try:
            with urllib.request.urlopen(self.admin_url + path, timeout=HTTP_DEADLINE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.ws_port}/ws"

    def metrics(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Every sample of /metrics by name: its labels and its value."""
        status, text = self.get("/metrics")
        assert status == 200, f"/metrics answered {status}"
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 when there is none."""
        samples = self.metrics().get(name, [])
        return sum(value for found, value in samples if labels.items() <= found.items())

    def ledger(self) -> dict[str, Account]:
        """What each kind of resource has in the ledger, all processes summed."""
        found: dict[str, dict[str, int]] = {}
        for name, samples in self.metrics().items():
            match = re.fullmatch(r"holdfast_ledger_(opened|closed|lost)_total", name)
            for labels, value in samples if match else []:
                kind = found.setdefault(labels["kind"], {"opened": 0, "closed": 0, "lost": 0})
                kind[match[1] if match else ""] += int(value)
        return {kind: Account(**counts) for kind, counts in found.items()}

    def live(self, kind: str) -> int:
        return self.ledger()[kind].live

    def expect_lost(self) -> None:
        """Say that this test kills processes, so that what they had open may be lost."""
        self._may_lose = True

    def expect_leaks(self) -> None:
        """Say that this test leaks on purpose, so that the audit at its end has to fail."""
        self._may_leak = True

    def audit(self) -> dict[str, Any]:
        """What POST /api/ledger/audit answers: every process walks its tables."""
        headers = {"Content-Type": "application/json"}
        if token := self._settings.get("HOLDFAST_ADMIN_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(f"{self.admin_url}/api/ledger/audit", b"{}", headers, method="POST")
        with urllib.request.urlopen(request, timeout=AUDIT_DEADLINE_S) as answer:
            return dict(json.load(answer))

    def check_ledger(self) -> None:
        """Once the clients have left, nothing of theirs may be open, every table and descriptor must be accounted for,
        and no process may have died unexpectedly.
        """
        if self._process.poll() is not None:
            return

        def is_balanced() -> bool:
            ledger = self.ledger()
            assert set(BALANCED) <= set(ledger), f"/metrics has no ledger of {BALANCED}: {sorted(ledger)}"
            return all(ledger[kind].live == 0 for kind in BALANCED)

        wait_until(is_balanced, lambda: f"opened = closed in the ledger {self.ledger()}\n{self.log_tail()}")
        audited: dict[str, Any] = {}

        def is_closed() -> bool:
            audited.update(self.audit())
            return bool(audited["closes"])

        if not self._may_leak:
            wait_until(is_closed, lambda: f"the audit closes: {complaints(audited)}\n{self.log_tail()}")
        lost = {kind: account.lost for kind, account in self.ledger().items() if account.lost}
        assert self._may_lose or not lost, f"a process died with {lost} open\n{self.log_tail()}"

    def log_tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """SIGTERM; the node must end by itself with 0 and leave nothing behind."""
        if self._stopped:
            return
        self._process.send_signal(signal.SIGTERM)
        self.expect_end(0)

    def expect_end(self, expected: int) -> None:
        """Wait until the node has ended with this exit code, and has left nothing behind."""
        self._stopped = True
        try:
            code = self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"has not ended within {STOP_DEADLINE_S} s\n{self.log_tail()}") from error
        assert code == expected, f"ended with {code}, not {expected}\n{self.log_tail()}"
        left = [f"{pid} {command_line(pid)}" for pid in marked_processes(self.folder.name)]
        assert not left, f"processes left behind: {left}"
        files = sorted(path.relative_to(self.folder).as_posix() for path in self.temporary.rglob("*"))
        assert not files, f"files left behind: {files}"
        new = {name for name in shared_memory() - self._memory_before if "holdfast" in name or name.startswith("hf")}
        assert not new, f"shared memory left behind: {new}"

    def destroy(self) -> None:
        """Whatever happened before: no process and no file of this node stays on the machine."""
        for pid in marked_processes(self.folder.name):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait(STOP_DEADLINE_S)
        shutil.rmtree(self.folder, ignore_errors=True)


class _Exited(Exception):
    """The node ended while it was waited for; carries its exit code."""


@pytest.fixture
def holdfast() -> Iterator[Callable[..., Node]]:
    """Start nodes: `holdfast("--workers", "2", HOLDFAST_GATEWAY_PING_MS="1000")`, with flags and environment.

    At the end of the test each must have closed its ledger (clients must be gone by then) and must stop in order.
    """
    nodes: list[Node] = []

    def start(*arguments: str, command: str = "run", before: tuple[str, ...] = (), **settings: str) -> Node:
        # Noted before it runs, so that a node that fails to start is cleaned up as well.
        nodes.append(node := Node(arguments, settings, command, before))
        node.wait_ready()
        return node

    try:
        yield start
        for node in reversed(nodes):  # a gateway before the node whose router it uses
            node.check_ledger()
            node.stop()
    finally:
        for node in nodes:
            node.destroy()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest; the tests of a file stay in their order."""

    def rank(item: pytest.Item) -> int:
        folders = f"{item.path.as_posix()}/"
        return next((at for at, one in enumerate(LONGEST_FIRST) if f"/tests/{one}/" in folders), len(LONGEST_FIRST))

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing may be missing: a skipped test is a failed one, with the reason of the skip."""
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that is skipped while it is collected."""
    report = yield
    refuse_skip(report)
    return report


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Fail what is skipped for want of something that could have been installed; rights cannot be."""
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if str(reason).removeprefix("Skipped: ").startswith("needs root"):
            return
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {reason}"
