"""A window's CPU: who used it, and who could do no more."""

import os

import pytest

from loadtest.bench.window import Used, Window, account, bottleneck, by_name
from loadtest.measure import BenchError, Cpu, Server


@pytest.mark.parametrize(
    ("server", "busiest", "client", "who"),
    [
        (1.0, 0.5, 0.85, "the machine"),
        (1.2, 0.95, 0.5, "the server"),
        (0.5, 0.4, 0.95, "the load client"),
        (0.5, 0.4, 0.5, "nobody"),
    ],
)
def test_the_bottleneck_is_who_could_do_no_more(server: float, busiest: float, client: float, who: str) -> None:
    assert bottleneck(server, busiest, client, cpus=2) == who


def test_the_account_is_by_core_and_by_unit_of_work() -> None:
    used = Used(Cpu(1.0, 0.5, (1, 2), 1.52), {"worker-0": 1.2, "router": 0.32}, machine_s=2.5)
    found = account(used, {"cpu_user_s": 0.2, "cpu_system_s": 0.2}, seconds=2.0, units=1_000_000)
    assert (found["server_cores"], found["busiest_process"], found["client_cores"]) == (0.76, 0.6, 0.2)
    assert found["other_cores"] == pytest.approx(0.29)
    assert found["cpu_us_by_process"] == {"worker-0": pytest.approx(1.2), "router": pytest.approx(0.32)}


def test_processes_of_one_name_are_kept_apart() -> None:
    # A process that is forked and not replaced keeps our name.
    started, goes_on = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(goes_on)
        os.read(started, 1)
        os._exit(0)
    try:
        names = by_name({os.getpid(): 0.25, child: 0.5})
        (own, other) = names
        assert other == f"{own} #2"
        assert list(names.values()) == [0.25, 0.5]
    finally:
        os.close(goes_on)
        os.close(started)
        os.waitpid(child, 0)


def test_a_server_whose_processes_changed_has_no_figure() -> None:
    class Changing(Server):
        def pids(self) -> tuple[int, ...]:
            return (os.getpid(),) if self.ws_port == 0 else (os.getppid(), os.getpid())

    server = Changing("changing", [], 0)
    window = Window(server)
    assert window.close().server.total_s >= 0
    server.ws_port = 1
    with pytest.raises(BenchError, match="processes changed"):
        window.close()
