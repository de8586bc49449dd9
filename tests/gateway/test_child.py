"""A place and its process, with real processes: readiness, counters, signals, and nothing left open."""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.child import Child, ChildSpec, Totals
from gateway.errors import ReloadError
from gateway.spawner import Spawner
from tests.gateway.test_supervisor import until

DEADLINE_S = 30.0


async def ready(child: Child) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await child.ready.wait()


@contextlib.contextmanager
def children() -> Iterator[Callable[[ChildSpec], Child]]:
    """Makes places that share a spawner, which is ended with the context."""
    spawner = Spawner(())
    try:
        yield lambda spec: Child(spec, spawner)
    finally:
        spawner.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_gets_ready_when_the_process_says_so_and_ends_on_its_signal(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        with children() as place:
            child = place(programs.spec("one"))
            running = asyncio.create_task(child.run_once(7))
            await ready(child)
            assert child.was_ready
            assert child.pid is not None
            child.send(signal.SIGTERM)
            assert await running == 0
            assert child.pid is None
            assert not child.ready.is_set()
            assert [note[1] for note in programs.noted()] == ["started", "ready", "stopped"]
            assert {note[3] for note in programs.noted()} == {"7"}

    run_in_loop(scenario())


def test_a_process_that_ends_early_was_never_ready(programs: Any, run_in_loop: Any) -> None:
    child = run_in_loop(run_to_end(programs.spec("one", exit=78)))
    assert child[1] == 78
    assert not child[0].was_ready


async def run_to_end(spec: ChildSpec) -> tuple[Child, int]:
    with children() as place:
        child = place(spec)
        return child, await child.run_once(1)


def test_counts_of_ended_processes_stay_and_what_they_held_is_lost(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        with children() as place:
            child = place(programs.spec("one", counts=True))
            for starts in (1, 2):
                running = asyncio.create_task(child.run_once(starts))
                await ready(child)
                living = child.totals()
                assert living.opened["fd"] == 5 * starts
                assert living.closed["fd"] == 3 * starts
                assert living.live["fd"] == 2
                assert living.lost["fd"] == 2 * (starts - 1)
                assert living.counters["connections_refused"] == 7 * starts
                child.send(signal.SIGKILL)
                assert await running == -signal.SIGKILL
                child._signal = None
            ended = child.totals()
            assert (ended.opened["fd"], ended.closed["fd"], ended.lost["fd"], ended.live["fd"]) == (10, 6, 4, 0)
            assert ended.gauges == {}
            assert child.restarts == 1

    run_in_loop(scenario())


def test_a_signal_sent_while_it_is_being_started_still_arrives(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        with children() as place:
            child = place(programs.spec("one"))
            child.send(signal.SIGKILL)
            assert await child.run_once(1) == -signal.SIGKILL

    run_in_loop(scenario())


def test_no_descriptor_stays_open_after_the_end_or_a_failed_start(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        with children() as place:
            child = place(programs.spec("one", exit=3))
            await child.run_once(1)
            missing = place(ChildSpec("two", ("/no/such/program",), programs.spec("two").config))
            await failed(missing)
            before = open_fds()
            for _ in range(3):
                await child.run_once(1)
                await failed(missing)
            assert open_fds() == before

    async def failed(child: Child) -> None:
        try:
            await child.run_once(1)
        except FileNotFoundError:
            return
        raise AssertionError("a program that does not exist was started")

    run_in_loop(scenario())


def test_a_successor_takes_the_place_before_the_old_process_leaves(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        with children() as place:
            child = place(programs.spec("one", counts=True))
            running = asyncio.create_task(child.run_once(1))
            await ready(child)
            first = child.pid
            await child.replace(programs.spec("one", counts=True), child.spec, child.spawner, 2, DEADLINE_S)
            assert child.ready.is_set()
            assert child.pid != first
            assert await child.until_left(DEADLINE_S) == 0
            assert [note[1] for note in programs.noted()] == ["started", "ready", "started", "ready", "leaves"]
            totals = child.totals()
            assert (totals.opened["fd"], totals.closed["fd"], totals.live["fd"], totals.lost["fd"]) == (10, 6, 2, 2)
            assert not running.done()
            assert child.restarts == 0, "it did not end of itself"
            child.send(signal.SIGTERM)
            assert await running == 0

    run_in_loop(scenario())


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [({"serve": False}, r"was not ready after 0\.3 s"), ({"exit": 3}, r"ended before it was ready, with exit code 3")],
)
def test_a_successor_that_does_not_get_ready_leaves_the_old_process_where_it_is(
    programs: Any, run_in_loop: Any, behaviour: dict[str, Any], why: str
) -> None:
    async def scenario() -> None:
        with children() as place:
            child = place(programs.spec("one"))
            running = asyncio.create_task(child.run_once(1))
            await ready(child)
            before, spec = child.pid, child.spec
            ready_s = 0.3 if "serve" in behaviour else DEADLINE_S
            with pytest.raises(ReloadError, match=why):
                await child.replace(programs.spec("one", **behaviour), programs.spec("one"), child.spawner, 2, ready_s)
            assert (child.pid, child.spec) == (before, spec)
            assert child.ready.is_set()
            await child.until_left(DEADLINE_S)
            assert len(child.processes) == 1
            child.send(signal.SIGTERM)
            assert await running == 0
            assert programs.noted("leaves") == []

    run_in_loop(scenario())


def test_when_the_old_process_dies_meanwhile_its_successor_is_the_one(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        with children() as place:
            child = place(programs.spec("one"))
            running = asyncio.create_task(child.run_once(1))
            await ready(child)
            beside = programs.spec("one", serve=False)
            replacing = asyncio.create_task(child.replace(beside, child.spec, child.spawner, 2, DEADLINE_S))
            await until(lambda: len(programs.noted("started")) == 2, "both run")
            first = child.pid
            child.processes[0].send(signal.SIGKILL)
            await until(lambda: child.pid not in (first, None), "the other one is in its place")
            assert not child.ready.is_set()
            assert not running.done()
            child.send(signal.SIGKILL)
            assert await running == -signal.SIGKILL
            with pytest.raises(ReloadError, match="by signal 9"):
                await replacing

    run_in_loop(scenario())


def test_the_place_is_filled_again_while_the_old_process_takes_its_time_to_leave(
    programs: Any, run_in_loop: Any
) -> None:
    async def scenario() -> None:
        with children() as place:
            child = place(programs.spec("one", lingers=True))
            running = asyncio.create_task(child.run_once(1))
            await ready(child)
            await child.replace(programs.spec("beside"), programs.spec("alone"), child.spawner, 2, DEADLINE_S)
            (old,) = child.leaving
            for epoch in (3, 4):
                assert child.current is not None
                child.current.kill()
                async with asyncio.timeout(DEADLINE_S):
                    assert await running == -signal.SIGKILL
                assert child.pid is None
                running = asyncio.create_task(child.run_once(epoch))
                await ready(child)
                if epoch == 3:
                    assert child.leaving == [old]
                    old.kill()
                    await old.end()
            assert [note[0] for note in programs.noted("started")] == ["one", "beside", "beside", "alone"]
            child.send(signal.SIGTERM)
            assert await running == 0

    run_in_loop(scenario())


def test_who_keeps_a_place_starts_nothing_where_a_successor_came_before(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        with children() as place:
            child = place(programs.spec("one"))
            running = asyncio.create_task(child.run_once(1))
            await ready(child)
            fresh = Spawner(())
            replacing = asyncio.create_task(child.replace(child.spec, child.spec, fresh, 2, DEADLINE_S))
            await until(lambda: fresh.pid is not None, "the successor is being started")
            child.send(signal.SIGKILL)
            child._signal = None
            assert await running == -signal.SIGKILL
            running = asyncio.create_task(child.run_once(3))
            await replacing
            await ready(child)
            assert (len(child.processes), child.starts) == (1, 1)
            assert [note[3] for note in programs.noted("started")] == ["1", "2"]
            child.send(signal.SIGTERM)
            assert await running == 0
            fresh.close()

    run_in_loop(scenario())


def test_what_does_not_leave_in_time_is_killed(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        with children() as place:
            child = place(programs.spec("one", lingers=True))
            running = asyncio.create_task(child.run_once(1))
            await ready(child)
            await child.replace(programs.spec("one"), child.spec, child.spawner, 2, DEADLINE_S)
            assert await child.until_left(0.2) == 1
            child.send(signal.SIGTERM)
            assert await running == 0
            await child.until_empty()
            assert child.processes == []

    run_in_loop(scenario())


def test_totals_balance_kind_by_kind() -> None:
    stats = {
        "ledger": {"zmq_message_opened": 9, "zmq_message_closed": 4},
        "counters": {"acks": 1},
        "gauges": {"linked": 1},
        "errors": {"too_large": 1},
        "times": {"publish_sum": 1},
    }
    living = Totals.of(stats)
    assert living.live == Counter({"zmq_message": 5})
    ended = living.ended()
    both = ended.plus(living)
    assert (
        both.opened["zmq_message"] == both.closed["zmq_message"] + both.lost["zmq_message"] + both.live["zmq_message"]
    )
    assert both.counters["acks"] == 2
    assert both.gauges == {"linked": 1}
