"""A rolling restart with real processes: one place after the other, none without, and called off when one fails."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway import supervisor as supervisor_module
from gateway.child import ChildSpec
from gateway.errors import ConfigError, RequestError
from gateway.reload import Plan, Reload
from gateway.supervisor import Supervisor, Timing
from tests.gateway.test_supervisor import QUICK, Running, until


def plan_of(*workers: ChildSpec, router: ChildSpec | None = None, done: Callable[[], None] = lambda: None) -> Plan:
    return Plan([(spec, spec) for spec in workers], router, QUICK, done)


async def over(reload: Reload) -> None:
    await until(lambda: reload.progress.state != "running", "the reload is over")


def test_each_place_gets_its_successor_before_the_next_and_from_a_new_zygote(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        specs = [programs.spec("worker-0"), programs.spec("worker-1")]
        supervisor = Supervisor(programs.spec("router"), specs, QUICK)
        told: list[int] = []
        reload = Reload(supervisor, lambda _: plan_of(*specs, done=lambda: told.append(1)))
        async with Running(supervisor):
            before = {child.name: child.pid for child in supervisor.children}
            zygote = supervisor.workers[0].spawner.pid
            assert reload.begin().state == "running"
            with pytest.raises(RequestError, match="a rolling restart is under way") as caught:
                reload.begin()
            assert caught.value.status == 409
            await over(reload)
            assert (reload.progress.state, reload.progress.replaced, reload.progress.cut) == ("done", 2, 0)
            assert told == [1]
            assert supervisor.missing() == []
            after = {child.name: child.pid for child in supervisor.children}
            assert [name for name in before if before[name] != after[name]] == ["worker-0", "worker-1"]
            assert {child.spawner.pid for child in supervisor.workers} != {zygote}
            assert all(child.restarts == 0 for child in supervisor.workers)

    run_in_loop(scenario())
    steps = [(note[0], note[1]) for note in programs.noted() if note[0] != "router"][4:]
    assert steps[:6] == [
        ("worker-0", "started"),
        ("worker-0", "ready"),
        ("worker-0", "leaves"),
        ("worker-1", "started"),
        ("worker-1", "ready"),
        ("worker-1", "leaves"),
    ]


def test_the_router_restarts_last_and_only_when_it_is_asked_for(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        worker, router = programs.spec("worker-0"), programs.spec("router")
        supervisor = Supervisor(router, [worker], QUICK)
        reload = Reload(supervisor, lambda wanted: plan_of(worker, router=router if wanted else None))
        async with Running(supervisor):
            for wanted in (False, True):
                before = supervisor.children[0].pid
                reload.begin(router=wanted)
                await over(reload)
                assert (reload.progress.state, supervisor.missing()) == ("done", [])
                assert (supervisor.children[0].pid != before) == wanted
                assert supervisor.children[0].restarts == 0, "it was asked for"
            assert reload.progress.number == 2

    run_in_loop(scenario())


def test_a_successor_that_fails_calls_the_rest_off(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        specs = [programs.spec("worker-0"), programs.spec("worker-1"), programs.spec("worker-2")]
        supervisor = Supervisor(None, specs, QUICK)
        reload = Reload(supervisor, lambda _: plan_of(specs[0], programs.spec("worker-1", exit=3), specs[2]))
        async with Running(supervisor):
            before = [child.pid for child in supervisor.workers]
            reload.begin()
            await over(reload)
            assert (reload.progress.state, reload.progress.replaced) == ("called_off", 1)
            assert "worker-1 ended before it was ready, with exit code 3" in reload.progress.why
            assert supervisor.missing() == []
            assert [child.pid == pid for child, pid in zip(supervisor.workers, before, strict=True)] == [
                False,
                True,
                True,
            ]
            # What is kept alive still is: each from the zygote that knows its code.
            for child in supervisor.workers:
                os.kill(child.pid or 0, signal.SIGKILL)
                await until(lambda: supervisor.missing() != [], "it is gone")
                await until(lambda: supervisor.missing() == [], "it is back")

    run_in_loop(scenario())


def test_a_successor_that_says_why_it_is_not_ready_is_quoted(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        worker = programs.spec("worker-0")
        supervisor = Supervisor(None, [worker], replace(QUICK, start_s=2))
        late = programs.spec("worker-0", serve=False, waits="this router speaks version 4")
        reload = Reload(supervisor, lambda _: plan_of(late))
        async with Running(supervisor):
            before = supervisor.workers[0].pid
            reload.begin()
            await over(reload)
            assert reload.progress.state == "called_off"
            assert "was not ready after 2 s: this router speaks version 4" in reload.progress.why
            assert (supervisor.workers[0].pid, supervisor.workers[0].waits) == (before, "")

    run_in_loop(scenario())


def test_a_router_that_fails_calls_it_off(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        worker = programs.spec("worker-0")
        supervisor = Supervisor(programs.spec("router"), [worker], QUICK)
        reload = Reload(supervisor, lambda _: plan_of(worker, router=programs.spec("router", exit=3)))
        async with Running(supervisor):
            reload.begin(router=True)
            await asyncio.sleep(0)  # the worker's successor has all the time that it needs, since then; the router not
            supervisor.timing = replace(supervisor.timing, start_s=0.5)
            await over(reload)
            assert (reload.progress.state, reload.progress.why) == (
                "called_off",
                "the new router is not ready after 0.5 s",
            )

    run_in_loop(scenario())


def test_a_router_that_says_what_it_waits_for_is_waited_for(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        worker = programs.spec("worker-0")
        slow = programs.spec("router", serve=False, waits="it reads its log")
        supervisor = Supervisor(programs.spec("router"), [worker], replace(QUICK, start_s=2.0))
        reload = Reload(supervisor, lambda _: plan_of(worker, router=slow))
        router = supervisor.router
        assert router is not None
        async with Running(supervisor):
            reload.begin(router=True)
            await until(lambda: router.waits != "", "it says so")
            late = time.monotonic() + 4.5
            await until(lambda: time.monotonic() > late or reload.progress.state != "running", "two deadlines are over")
            assert reload.progress.state == "running"
            os.kill(router.pid or 0, signal.SIGUSR2)
            await over(reload)
            assert (reload.progress.state, reload.progress.why) == ("done", "")

    run_in_loop(scenario())


def test_a_router_that_ends_while_it_is_waited_for_calls_it_off(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        worker = programs.spec("worker-0")
        slow = programs.spec("router", serve=False, waits="it reads its log")
        supervisor = Supervisor(programs.spec("router"), [worker], replace(QUICK, start_s=3.0))
        reload = Reload(supervisor, lambda _: plan_of(worker, router=slow))
        router = supervisor.router
        assert router is not None
        async with Running(supervisor):
            reload.begin(router=True)
            await until(lambda: router.waits != "", "it says so")
            os.kill(router.pid or 0, signal.SIGKILL)
            await over(reload)
            assert reload.progress.state == "called_off"
            assert reload.progress.why.startswith("the new router is not ready after")

    run_in_loop(scenario())


def test_a_new_process_that_ends_soon_calls_the_rest_off_and_is_started_again_at_once(
    programs: Any, run_in_loop: Any
) -> None:
    async def scenario() -> None:
        specs = [programs.spec("worker-0", lingers=True), programs.spec("worker-1")]
        supervisor = Supervisor(None, specs, replace(QUICK, drain_s=3.0))
        reload = Reload(supervisor, lambda _: plan_of(programs.spec("worker-0"), specs[1]))
        async with Running(supervisor):
            first, other = supervisor.workers
            before = [first.pid, other.pid]
            reload.begin()
            await until(lambda: bool(programs.noted("leaves")), "the old one leaves")
            died = first.pid
            os.kill(died or 0, signal.SIGKILL)
            await until(lambda: first.pid not in (None, died), "another is started")
            await until(first.ready.is_set, "it is ready")
            assert before[0] in [process.pid for process in first.leaving], "while the old one still leaves"
            await over(reload)
            assert reload.progress.state == "called_off"
            assert "the new process of worker-0 ended" in reload.progress.why
            assert other.pid == before[1]

    run_in_loop(scenario())


def test_it_cures_a_place_that_ends_again_and_again_and_begins_with_it(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        specs = [programs.spec("worker-0"), programs.spec("worker-1")]
        supervisor = Supervisor(None, specs, replace(QUICK, backoff_first_s=0.5, backoff_max_s=0.5))
        reload = Reload(supervisor, lambda _: plan_of(*specs))
        async with Running(supervisor):
            sick = supervisor.workers[1]
            sick.spec = programs.spec("worker-1", exit=3)
            os.kill(sick.pid or 0, signal.SIGKILL)
            await until(lambda: sick.restarts >= 1 and sick.pid is None, "it ends again")
            reload.begin()
            await over(reload)
            assert (reload.progress.state, reload.progress.replaced, supervisor.missing()) == ("done", 2, [])

    run_in_loop(scenario())
    last = [note[0] for note in programs.noted("ready")][-2:]
    assert last == ["worker-1", "worker-0"]


def test_settings_that_cannot_be_used_change_nothing(programs: Any, run_in_loop: Any) -> None:
    def broken(_: bool) -> Plan:
        raise ConfigError("gateway.ping_ms = 5 is below 1000")

    async def scenario() -> None:
        supervisor = Supervisor(None, [programs.spec("worker-0")], QUICK)
        reload = Reload(supervisor, broken)
        with pytest.raises(RequestError, match="the node is not ready: worker-0"):
            reload.begin()
        async with Running(supervisor):
            before = supervisor.workers[0].pid
            with pytest.raises(RequestError, match="below 1000") as caught:
                reload.begin()
            assert caught.value.status == 400
            reload.begin_quietly()
            assert (reload.progress.state, supervisor.workers[0].pid) == ("none", before)

    run_in_loop(scenario())


def test_the_nodes_end_calls_it_off_and_leaves_nothing(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        specs = [programs.spec("worker-0", lingers=True), programs.spec("worker-1")]
        supervisor = Supervisor(None, specs, Timing(drain_s=0.3, grace_s=0.1, start_s=10, backoff_first_s=0.01))
        reload = Reload(supervisor, lambda _: plan_of(*specs))
        supervisor.on_stop = [reload.cancel]
        async with Running(supervisor):
            reload.begin()
            await until(lambda: bool(programs.noted("leaves")), "the first leaves")
        assert reload.progress.state == "called_off"
        assert all(child.processes == [] for child in supervisor.children)

    run_in_loop(scenario())


@pytest.mark.parametrize("before", [False, True])
def test_sighup_of_a_terminal_that_was_closed_stops_the_node(
    programs: Any, run_in_loop: Any, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    async def scenario() -> None:
        spec = programs.spec("worker-0")
        supervisor = Supervisor(None, [spec], QUICK)
        reload = Reload(supervisor, lambda _: plan_of(spec))
        supervisor.on_hangup = reload.begin_quietly
        monkeypatch.setattr(supervisor_module, "has_terminal", lambda: before)
        supervisor.handle_signals()
        monkeypatch.setattr(supervisor_module, "has_terminal", lambda: False)
        async with Running(supervisor):
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: supervisor.stopping or reload.progress.state == "done", "it is heard")
            assert supervisor.stopping == before

    run_in_loop(scenario())


def test_the_end_of_the_terminal_is_nothing_to_a_node_under_nohup(
    programs: Any, run_in_loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        supervisor = Supervisor(None, [programs.spec("worker-0")], QUICK)
        asked: list[int] = []
        supervisor.on_hangup = lambda: asked.append(1)
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            monkeypatch.setattr(supervisor_module, "has_terminal", lambda: True)
            supervisor.handle_signals()
            monkeypatch.setattr(supervisor_module, "has_terminal", lambda: False)
            async with Running(supervisor):
                for expected in (0, 1):
                    os.kill(os.getpid(), signal.SIGHUP)
                    await asyncio.sleep(0.05)
                    await until(lambda count=expected: len(asked) >= count, "it is heard")  # type: ignore[misc]
                    assert (len(asked), supervisor.stopping) == (expected, False)
        finally:
            signal.signal(signal.SIGHUP, before)

    run_in_loop(scenario())


def test_sighup_begins_one(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        spec = programs.spec("worker-0")
        supervisor = Supervisor(None, [spec], QUICK)
        reload = Reload(supervisor, lambda _: plan_of(spec))
        supervisor.on_hangup = reload.begin_quietly
        supervisor.handle_signals()
        async with Running(supervisor):
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: reload.progress.state == "done", "it is done")
            assert not supervisor.stopping
        await asyncio.sleep(0)

    run_in_loop(scenario())
