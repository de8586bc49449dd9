"""A node put together: what each process is told, and a whole one over real processes from start to end."""

import asyncio
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import node
from gateway.cluster_config import RouterLink
from gateway.config import Config, WorkerConfig
from gateway.errors import PortTakenError, ReloadError
from gateway.ports import Listeners
from gateway.reload import Plan
from gateway.settings import Machine, load
from gateway.supervisor import Supervisor
from router.config import RouterConfig

NO_LISTENERS = Listeners(0, "127.0.0.1", (0, 0), 1)
MACHINE = Machine("host-1", 3, 20_000)
# Ready at once, ends on SIGTERM; notes what it was told beside what it was started as.
READY = """
import json, os, signal, sys
config = json.load(sys.stdin)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
if config.get("ws_path") == "/taken":
    os._exit(78)
with open(os.path.join(os.environ["NOTES"], str(os.getpid())), "w") as file:
    json.dump(config, file)
os.write(config["commands_fd"], b"\\x00\\x00\\x00\\x15\\x82\\xa5event\\xa5ready\\xa6fields\\x80")
signal.sigwait({signal.SIGTERM})
os._exit(0)
"""


def free_ports() -> dict[str, object]:
    """Two ports that nobody listens on; the programs above do not either."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return {"gateway__port": one.getsockname()[1], "gateway__ws_port": other.getsockname()[1]}


def configured(**flags: object) -> Config:
    return load(None, {}, {name.replace("__", "."): value for name, value in flags.items()}, MACHINE)


def test_each_worker_is_told_its_place_and_where_the_router_is() -> None:
    spec = node.worker_spec(configured(), "ipc:///run/x/router.sock", 1, NO_LISTENERS)
    assert spec.name == "worker-1"
    assert spec.command == ("gateway.worker",)
    part = msgspec.json.decode(spec.config(9, 5, 6), type=WorkerConfig)
    assert (part.index, part.epoch, part.stats_fd, part.commands_fd) == (1, 9, 5, 6)
    assert (part.node, part.router_endpoint) == ("host-1", "ipc:///run/x/router.sock")


def test_the_router_is_told_where_to_listen() -> None:
    spec = node.router_spec(configured(), "tcp://0.0.0.0:7410")
    assert spec.command == ("router.process",)
    part = msgspec.json.decode(spec.config(9, 5, 6), type=RouterConfig)
    assert (part.endpoint, part.epoch, part.stats_fd, part.commands_fd) == ("tcp://0.0.0.0:7410", 9, 5, 6)


def clustered(**flags: object) -> Config:
    directory = {"directory__endpoints": "127.0.0.1:1", "bus__advertise": "127.0.0.1:7410", "log__backend": "none"}
    return configured(**directory, **flags)


def test_with_a_directory_workers_are_told_of_all_routers() -> None:
    link = RouterLink(name="a", epoch=7, bus="tcp://10.0.0.5:7410")
    spec = node.worker_spec(clustered(), "tcp://127.0.0.1:7410", 0, NO_LISTENERS, routers=lambda: (link,))
    part = msgspec.json.decode(spec.config(9, 5, 6), type=WorkerConfig)
    assert (part.router_endpoint, part.routers) == ("", (link,))
    assert part.development_key, "resume tokens are good on each node"


def test_with_a_directory_a_router_has_time_for_giving_its_shards_away() -> None:
    assert node.timing(configured()).router_leave_s == 0
    assert node.timing(clustered(router__leave_s=7)).router_leave_s == 7


@pytest.mark.parametrize(
    ("bound", "connected"),
    [
        ("tcp://0.0.0.0:7410", "tcp://127.0.0.1:7410"),
        ("tcp://*:7410", "tcp://127.0.0.1:7410"),
        ("tcp://10.0.0.7:7410", "tcp://10.0.0.7:7410"),
        ("ipc:///run/x", "ipc:///run/x"),
    ],
)
def test_nobody_connects_to_a_wildcard(bound: str, connected: str) -> None:
    assert node.reachable(bound) == connected


def test_what_the_page_is_told_holds_no_secret() -> None:
    parts = node.Parts(router=True, workers=False, admin=True)
    told = node.info(configured(auth__secret="s" * 32, admin__token="t" * 16), parts)
    assert told["workers"] == 0
    assert (told["node"], told["development"], told["ws_port"], told["tls"]) == ("host-1", False, 7401, False)
    assert "s" * 32 not in str(told)
    assert "t" * 16 not in str(told)


def planned(again: Callable[[], Config], told: list[object] | None = None, *, router: bool = False) -> Plan:
    parts = node.Parts(router=True, workers=True, admin=False)
    tell = (told if told is not None else []).append
    return node.Planner(configured(), parts, again, "ipc:///x", NO_LISTENERS, tell)(router)


def test_a_rolling_restart_runs_what_is_configured_then() -> None:
    told: list[object] = []
    plan = planned(lambda: configured(gateway__ping_ms=5_000, gateway__drain_ms=700), told)
    assert [(beside.name, spec.name) for beside, spec in plan.workers] == [("worker-0", "worker-0"), ("worker-1",) * 2]
    beside, spec = (msgspec.json.decode(one.config(9, 3, 4), type=WorkerConfig) for one in plan.workers[1])
    assert (beside.beside, spec.beside) == (True, False)
    assert {part.ping_ms for part in (beside, spec)} == {5_000}
    assert (spec.tcp_fd, spec.ws_fd, spec.index) == (5, 6, 1)
    assert (plan.router, plan.timing.drain_s) == (None, 0.7)
    assert told == []
    plan.done()
    assert [one["ping"] for one in told if isinstance(one, dict)] == [5]


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"gateway__port": 7500, "gateway__workers": 5}, "gateway.workers, gateway.port"),
        ({"admin__port": 7500}, "admin.port"),
        ({"auth__secret": "s" * 32}, "auth.secret, gateway.host"),
        ({"router__channels_max": 5}, "router.channels_max"),
        ({"router__endpoint": "ipc:///other"}, "router.endpoint"),
    ],
)
def test_what_a_rolling_restart_cannot_change_is_refused_by_name(changed: dict[str, object], names: str) -> None:
    with pytest.raises(ReloadError) as caught:
        planned(lambda: configured(**changed))
    assert set(str(caught.value).partition(" cannot change")[0].split(", ")) >= set(names.split(", ")[:1])
    assert all(name in str(caught.value) for name in names.split(", "))


def test_namespaces_change_with_the_router_alone() -> None:
    def again() -> Config:
        environ = {"HOLDFAST_NAMESPACES_CHAT_DOMAIN": "group", "HOLDFAST_NAMESPACES_USER_EVENTS": "yes"}
        return load(None, environ, {}, MACHINE)

    with pytest.raises(ReloadError, match=r"namespaces\.chat, namespaces\.user cannot change"):
        planned(again)
    plan = planned(again, router=True)
    assert plan.router is not None
    parts = [
        msgspec.json.decode(plan.router.config(9, 3, 4), type=RouterConfig).namespaces,
        msgspec.json.decode(plan.workers[0][1].config(9, 3, 4), type=WorkerConfig).namespaces,
    ]
    assert parts == [again().namespaces, again().namespaces]


def test_the_routers_settings_change_with_the_router() -> None:
    plan = planned(lambda: configured(router__channels_max=5), router=True)
    assert plan.router is not None
    assert msgspec.json.decode(plan.router.config(9, 3, 4), type=RouterConfig).channels_max == 5


def test_a_certificate_may_change_but_not_whether_there_is_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).touch()
    old, new = (
        configured(gateway__tls_certificate=str(tmp_path / name), gateway__tls_key=str(tmp_path / name))
        for name in ("a", "b")
    )
    assert node.fixed_changes(old, new, router=False) == []
    assert node.fixed_changes(configured(), new, router=False) == ["gateway.tls_certificate", "gateway.tls_key"]


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replaces the programs of router and worker; the node's own folder is `tmp_path/tmp`."""
    command = (sys.executable, "-S", "-E", "-c", READY)
    monkeypatch.setattr(node, "WORKER_COMMAND", command)
    monkeypatch.setattr(node, "ROUTER_COMMAND", command)
    folder, temporary = tmp_path / "notes", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("NOTES", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return folder


def test_a_node_runs_from_readiness_to_sigterm_and_leaves_nothing(notes: Path, tmp_path: Path) -> None:
    def stop_when_ready() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    parts = node.Parts(router=True, workers=True, admin=False)
    assert node.run(configured(gateway__workers=2, **free_ports()), parts, stop_when_ready) == 0
    told = {int(path.name): msgspec.json.decode(path.read_bytes()) for path in notes.iterdir()}
    assert len(told) == 3
    endpoints = {part.get("endpoint") or part.get("router_endpoint") for part in told.values()}
    assert len(endpoints) == 1
    assert re.fullmatch(rf"ipc://{tmp_path}/tmp/holdfast-{os.getpid()}-[^/]+/router\.sock", endpoints.pop())
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in told)


def test_a_port_in_use_ends_the_node_and_leaves_nothing(notes: Path, tmp_path: Path) -> None:
    parts = node.Parts(router=True, workers=True, admin=False)
    with pytest.raises(PortTakenError):
        node.run(
            configured(gateway__ws_path="/taken", **free_ports()),
            parts,
            lambda: pytest.fail("announced"),
        )
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not any(Path(f"/proc/{path.name}").exists() for path in notes.iterdir())


@pytest.mark.parametrize("key", ["gateway__port", "gateway__ws_port"])
def test_a_port_that_another_nodes_workers_would_share_is_seen_before_anything_starts(notes: Path, key: str) -> None:
    ports = free_ports()
    parts = node.Parts(router=True, workers=True, admin=False)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", int(str(ports[key]))))
        other.listen()
        with pytest.raises(PortTakenError, match=rf"{key.replace('__', '.')} {ports[key]} on 127\.0\.0\.1 is in use"):
            node.run(configured(**ports), parts, lambda: pytest.fail("announced"))
    assert list(notes.iterdir()) == []


def test_the_supervisor_itself_is_among_the_processes_shown(run_in_loop: Any) -> None:
    async def scenario() -> list[str]:
        await asyncio.sleep(0)
        supervisor = Supervisor(node.router_spec(configured(), "ipc:///x"), [])
        return [view.name for view in node.views(supervisor)]

    assert run_in_loop(scenario()) == ["supervisor", "router"]
