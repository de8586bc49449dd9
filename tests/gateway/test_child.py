"""A place and its process, with real processes: readiness, counters, signals, and nothing left open."""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from gateway.child import Child, ChildSpec, Totals
from gateway.spawner import Spawner

DEADLINE_S = 10.0


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
