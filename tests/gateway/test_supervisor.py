"""Order of start and end, restarts and give-ups, with real processes and real signals."""

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway import supervisor as supervisor_module
from gateway.errors import LogTakenError, PortTakenError, StartError
from gateway.supervisor import Epochs, Supervisor, Timing

QUICK = Timing(drain_s=2, grace_s=1, router_stop_s=1, start_s=30, backoff_first_s=0.01, backoff_max_s=0.05)
DEADLINE_S = 30.0


async def until(condition: Callable[[], bool], what: str) -> None:
    """Other processes have no event of ours to wait for, so it is asked again and again, but not for ever."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not in time: {what}"
        await asyncio.sleep(0.005)


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.said.append((event, fields))

    warning = error = info


class Running:
    """A supervisor that runs within `async with`, from readiness to its end."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.announced = asyncio.Event()
        self.task = asyncio.create_task(supervisor.run(self.announced.set))

    async def __aenter__(self) -> "Running":
        announced = asyncio.create_task(self.announced.wait())
        await asyncio.wait({announced, self.task}, timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        announced.cancel()
        if self.task.done():
            self.task.result()
        assert self.announced.is_set(), "it is not ready"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.supervisor.stop()
        async with asyncio.timeout(DEADLINE_S):
            await self.task


def is_started(supervisor: Supervisor, restarts: int) -> bool:
    return supervisor.workers[0].restarts == restarts


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_the_router_is_ready_before_workers_start_and_ends_after_them(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        workers = [programs.spec("worker-0"), programs.spec("worker-1")]
        supervisor = Supervisor(programs.spec("router"), workers, QUICK)
        assert supervisor.missing() == ["router", "worker-0", "worker-1"]
        async with Running(supervisor):
            assert supervisor.missing() == []
        assert supervisor.missing() == ["stopping"]

    run_in_loop(scenario())
    steps = [(note[0], note[1]) for note in programs.noted()]
    assert steps[:2] == [("router", "started"), ("router", "ready")]
    assert steps[-1] == ("router", "stopped")
    assert len(programs.noted("stopped")) == 3
    assert all(is_gone(int(note[2])) for note in programs.noted())


@pytest.mark.parametrize("victim", ["router", "worker-1"])
def test_a_killed_process_comes_back_and_the_others_are_left_alone(
    programs: Any, run_in_loop: Any, victim: str
) -> None:
    async def scenario() -> None:
        workers = [programs.spec("worker-0"), programs.spec("worker-1")]
        supervisor = Supervisor(programs.spec("router"), workers, QUICK)
        async with Running(supervisor):
            before = {child.name: child.pid for child in supervisor.children}
            os.kill(before[victim] or 0, signal.SIGKILL)
            await until(lambda: supervisor.missing() == [victim], "the death is seen")
            await until(lambda: supervisor.missing() == [], "it is back")
            after = {child.name: child.pid for child in supervisor.children}
            assert [name for name in before if before[name] != after[name]] == [victim]
            assert {child.name: child.restarts for child in supervisor.children}[victim] == 1

    run_in_loop(scenario())
    epochs = [int(note[3]) for note in programs.noted("started") if note[0] == victim]
    assert epochs[0] < epochs[1]


def test_a_process_that_was_ready_once_is_restarted_for_as_long_as_it_takes(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        supervisor = Supervisor(None, [programs.spec("worker-0")], QUICK)
        async with Running(supervisor):
            for restarts in range(1, QUICK.start_attempts_max + 3):
                os.kill(supervisor.workers[0].pid or 0, signal.SIGKILL)
                await until(partial(is_started, supervisor, restarts), "it is started")
                await until(lambda: supervisor.missing() == [], "it is ready")

    run_in_loop(scenario())


def test_the_pause_before_a_restart_doubles_up_to_its_bound(
    programs: Any, run_in_loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def note_pause(_: Supervisor, pause_s: float) -> None:
        pauses.append(pause_s)

    monkeypatch.setattr(Supervisor, "_pause", note_pause)
    timing = Timing(backoff_first_s=0.1, backoff_max_s=1.0, start_attempts_max=7)
    with pytest.raises(StartError, match=r"worker-0 ended 7 times before it was ready, the last time with exit code 3"):
        run_in_loop(Supervisor(None, [programs.spec("worker-0", exit=3)], timing).run(lambda: None))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_crash_loop_is_said_once_and_its_end_lets_it_be_said_again(
    programs: Any, run_in_loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    monkeypatch.setattr(supervisor_module, "_log", log)

    async def scenario() -> None:
        timing = dataclasses.replace(QUICK, crash_loop_ends=3, crash_loop_s=60.0)
        supervisor = Supervisor(None, [programs.spec("worker-0")], timing)
        async with Running(supervisor):
            for restarts in range(1, 6):
                os.kill(supervisor.workers[0].pid or 0, signal.SIGKILL)
                await until(partial(is_started, supervisor, restarts), "it is started")
                await until(lambda: supervisor.missing() == [], "it is ready")
            assert supervisor.workers[0].crash_loop

    run_in_loop(scenario())
    said = [fields for event, fields in log.said if event == "crash_loop"]
    assert [(one["child"], one["ends"]) for one in said] == [("worker-0", 3)]


def test_what_ends_now_and_then_is_no_crash_loop(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        timing = dataclasses.replace(QUICK, crash_loop_ends=3, crash_loop_s=0.0)
        supervisor = Supervisor(None, [programs.spec("worker-0")], timing)
        async with Running(supervisor):
            for restarts in range(1, 5):
                os.kill(supervisor.workers[0].pid or 0, signal.SIGKILL)
                await until(partial(is_started, supervisor, restarts), "it is started")
                await until(lambda: supervisor.missing() == [], "it is ready")
            assert not supervisor.workers[0].crash_loop

    run_in_loop(scenario())


def test_a_taken_port_stops_everything_at_once(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        workers = [programs.spec("worker-0"), programs.spec("worker-1", exit=78)]
        supervisor = Supervisor(programs.spec("router"), workers, QUICK)
        await supervisor.run(lambda: pytest.fail("announced although a worker cannot listen"))

    with pytest.raises(PortTakenError, match="worker-1 cannot listen"):
        run_in_loop(scenario())
    assert len([note for note in programs.noted("started") if note[0] == "worker-1"]) == 1
    assert all(is_gone(int(note[2])) for note in programs.noted())


def test_what_is_never_ready_is_named_and_stopped(programs: Any, run_in_loop: Any) -> None:
    timing = Timing(start_s=2, drain_s=2, grace_s=1)
    with pytest.raises(StartError, match=r"not ready after 2 s: worker-1"):
        run_in_loop(
            Supervisor(None, [programs.spec("worker-0"), programs.spec("worker-1", serve=False)], timing).run(
                lambda: pytest.fail("announced")
            )
        )
    assert all(is_gone(int(note[2])) for note in programs.noted())


def test_who_says_what_it_waits_for_is_waited_for_beyond_the_start(
    programs: Any, run_in_loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_log", log := Log())

    async def scenario() -> None:
        timing = dataclasses.replace(QUICK, start_s=1)
        supervisor = Supervisor(programs.spec("router", serve=False, waits="its log is away: refused"), [], timing)
        running = asyncio.create_task(supervisor.run(lambda: pytest.fail("announced")))
        await until(lambda: len([event for event, _ in log.said if event == "not_ready_yet"]) == 2, "two starts' time")
        assert supervisor.missing() == ["router: its log is away: refused"]
        supervisor.stop()
        await running

    run_in_loop(scenario())
    assert len(programs.noted("started")) == 1


def test_a_router_whose_log_went_away_is_tried_for_ever_and_is_no_crash_loop(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        supervisor = Supervisor(programs.spec("router", exit=75), [], QUICK)
        running = asyncio.create_task(supervisor.run(lambda: pytest.fail("announced")))
        await until(lambda: len(programs.noted("started")) > 2 * QUICK.start_attempts_max, "it is tried again")
        assert supervisor.missing() == ["router: its log is away"]
        assert supervisor.router is not None
        assert not supervisor.router.crash_loop
        supervisor.stop()
        await running

    run_in_loop(scenario())


def test_a_router_that_wants_to_begin_anew_is_started_again_without_a_pause(programs: Any, run_in_loop: Any) -> None:
    """It gave its shards up because others lead them: each second without it is one without a part of the cluster."""
    timing = replace(QUICK, backoff_first_s=DEADLINE_S * 2, backoff_max_s=DEADLINE_S * 2, again_s=0.0)

    async def scenario() -> None:
        supervisor = Supervisor(programs.spec("router", ends=75), [], timing)
        async with Running(supervisor):
            assert supervisor.router is not None
            for restarts in range(1, timing.crash_loop_ends + 2):
                os.kill(supervisor.router.pid or 0, signal.SIGUSR2)
                await until(lambda many=restarts: supervisor.children[0].restarts == many, "it is started")  # type: ignore[misc]
                await until(lambda: supervisor.missing() == [], "it is ready")
            assert not supervisor.router.crash_loop

    run_in_loop(scenario())


def test_a_router_has_its_time_for_giving_its_shards_away(programs: Any, run_in_loop: Any) -> None:
    timing = replace(QUICK, drain_s=0, grace_s=0, router_stop_s=0, router_leave_s=DEADLINE_S)

    async def scenario() -> None:
        supervisor = Supervisor(programs.spec("router"), [], timing)
        async with Running(supervisor):
            pass

    run_in_loop(scenario())
    assert [note[0] for note in programs.noted("stopped")] == ["router"]


def test_a_router_whose_log_another_took_is_not_started_again_and_the_node_ends(
    programs: Any, run_in_loop: Any
) -> None:
    async def scenario() -> None:
        supervisor = Supervisor(programs.spec("router", ends=70), [programs.spec("worker-0")], QUICK)
        running = Running(supervisor)
        async with asyncio.timeout(DEADLINE_S):
            await running.announced.wait()
        assert supervisor.router is not None
        supervisor.router.send(signal.SIGUSR2)
        with pytest.raises(LogTakenError, match=r"another node has the log now.*stop the other one before you start"):
            await running.task
        assert supervisor.missing() == ["stopping"]

    run_in_loop(scenario())
    assert [note[0] for note in programs.noted("started")] == ["router", "worker-0"]
    assert [note[0] for note in programs.noted("stopped")] == ["worker-0"], "it had its time for its clients"


def test_a_worker_that_ends_with_that_code_is_started_again(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        supervisor = Supervisor(None, [programs.spec("worker-0", ends=70)], QUICK)
        async with Running(supervisor):
            supervisor.workers[0].send(signal.SIGUSR2)
            await until(partial(is_started, supervisor, 1), "it is started")

    run_in_loop(scenario())


def test_a_stubborn_process_is_killed_after_the_deadline(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> float:
        timing = Timing(drain_s=0.2, grace_s=0.1)
        async with Running(Supervisor(programs.spec("router"), [programs.spec("worker-0", stubborn=True)], timing)):
            began = time.monotonic()
        return time.monotonic() - began

    took_s = run_in_loop(scenario())
    assert 0.3 <= took_s < 5
    assert all(is_gone(int(note[2])) for note in programs.noted())
    assert [note[0] for note in programs.noted("stopped")] == ["router"]


def test_the_second_interrupt_kills_at_once(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        timing = Timing(drain_s=60, grace_s=5)
        supervisor = Supervisor(programs.spec("router"), [programs.spec("worker-0", stubborn=True)], timing)
        supervisor.handle_signals()
        async with Running(supervisor) as running:
            os.kill(os.getpid(), signal.SIGINT)
            await until(lambda: supervisor.stopping, "the first is heard")
            assert not running.task.done()
            os.kill(os.getpid(), signal.SIGINT)
        assert supervisor.killed

    began = time.monotonic()
    run_in_loop(scenario())
    assert time.monotonic() - began < DEADLINE_S
    assert all(is_gone(int(note[2])) for note in programs.noted())


def test_a_signal_during_the_start_ends_it(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        supervisor = Supervisor(programs.spec("router", serve=False), [programs.spec("worker-0")], QUICK)
        supervisor.handle_signals()
        running = asyncio.create_task(supervisor.run(lambda: pytest.fail("announced")))
        await until(lambda: bool(programs.noted("started")), "the router runs")
        os.kill(os.getpid(), signal.SIGTERM)
        await running

    run_in_loop(scenario())
    assert {note[0] for note in programs.noted()} == {"router"}
    assert all(is_gone(int(note[2])) for note in programs.noted())


def test_ctrl_c_at_a_terminal_reaches_the_supervisor_alone(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with Running(Supervisor(None, [programs.spec("worker-0")], QUICK)) as running:
            pid = running.supervisor.workers[0].pid or 0
            assert os.getsid(pid) != os.getsid(0)

    run_in_loop(scenario())


def test_epochs_grow_within_a_millisecond_and_across_supervisors_within_a_second() -> None:
    now = 1000.9
    epochs = Epochs(lambda: now)
    assert [epochs.next(), epochs.next(), epochs.next()] == [1_000_900, 1_000_901, 1_000_902]
    now = 1000.95
    assert epochs.next() == Epochs(lambda: now).next() == 1_000_950
    assert Epochs(lambda: 4e9).next() < 2**53  # which is in the year 2096


def test_children_do_not_hold_what_the_supervisor_has_open(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        async with Running(Supervisor(None, [programs.spec("worker-0")], QUICK)) as running:
            pid = running.supervisor.workers[0].pid
            open_there = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
            # Standard streams, the counters and the ready pipe, and nothing else; standard input is at its end.
            assert len(open_there) == 5, open_there

    run_in_loop(scenario())


def test_import_costs_no_web_server() -> None:
    program = "import gateway.supervisor, sys; assert 'uvicorn' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
