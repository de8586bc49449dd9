"""A worker's evacuation against a data plane that answers by the book: who is told to go, where to, and how fast."""

import asyncio
from typing import Any

import pytest

from core import notes
from core.codes import Code
from gateway import evacuation
from gateway.evacuation import WHY, Away, Evacuation, packed
from gateway.pacer import TICK_S
from tests.gateway.test_supervisor import until

AWAY = Away((("wss://us/ws", "tls://us:7400"),))
TARGETS = b"wss://us/ws\0tls://us:7400"


class Plane:
    """Stands for the data plane: tells its clients as asked; a `deaf` one answers nothing."""

    def __init__(self, clients: int, *, deaf: bool = False) -> None:
        self.left, self.deaf = clients, deaf
        self.worker: Evacuation | None = None
        self.steps: list[dict[str, Any]] = []
        self.walks = 0

    def put(self, kind: int, conn: int = 0, request: int = 0, **fields: Any) -> None:
        assert kind == notes.DRAIN_STEP
        if not self.deaf:
            asyncio.get_running_loop().call_soon(self._step, fields.get("first", 0))
        if fields:
            self.steps.append({"request": request, **fields})

    def flush(self) -> None:
        """Nothing waits here."""

    def _step(self, count: int) -> None:
        assert self.worker is not None
        live, told = self.left, min(count, self.left)
        self.left -= told
        self.walks += count > told
        self.worker.on_note(notes.DRAIN_SENT, live, told, int(count > told))


def worker(plane: Plane, window_s: float = 0.0, **parts: Any) -> Evacuation:
    plane.worker = Evacuation(plane, window_s, **parts)
    return plane.worker


def test_all_clients_are_told_where_to_go(run_in_loop: Any) -> None:
    async def scenario() -> None:
        plane = Plane(5_000)
        own = worker(plane)
        assert own.refusal() is None
        await own.follow(AWAY)
        await until(lambda: plane.left == 0, "all are told")
        assert {(step["flags"], step["text"]) for step in plane.steps} == {(1, TARGETS)}
        assert sum(step["first"] for step in plane.steps[:2]) == 5_000
        await own.follow(None)

    run_in_loop(scenario())


def test_who_came_meanwhile_is_told_at_a_further_walk(run_in_loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evacuation, "AGAIN_S", 0.0)

    async def scenario() -> None:
        plane = Plane(3)
        own = worker(plane)
        await own.follow(AWAY)
        await until(lambda: plane.walks > 0, "all were told once")
        plane.left = 2
        await until(lambda: plane.left == 0, "those who came are told")
        await own.follow(None)

    run_in_loop(scenario())


def test_the_pace_that_was_set_is_kept(run_in_loop: Any) -> None:
    async def scenario() -> None:
        plane = Plane(1_000)
        own = worker(plane, 0.1)
        await own.follow(Away((), 50.0))
        await until(lambda: len(plane.steps) >= 3, "steps were made")
        await own.follow(None)
        for step in plane.steps:
            assert step["first"] <= 50 * TICK_S
            assert step["second"] >= 1e6 / 50
            assert step["text"] == b""
        assert plane.left > 900

    run_in_loop(scenario())


def test_who_says_hello_is_sent_on_while_it_lasts(run_in_loop: Any) -> None:
    async def scenario() -> None:
        own = worker(Plane(0), chance=lambda: 0.25)
        await own.follow(Away((*AWAY.targets, ("wss://ap/ws", ""))))
        first, second, third = own.refusal(), own.refusal(), own.refusal()
        assert first is not None
        assert second is not None
        assert (first.code, first.why, first.after_ms) == (Code.MOVED, WHY, 250)
        assert {first.targets, second.targets} == {TARGETS, b"wss://ap/ws\0"}
        assert third == first, "they go round"
        await own.follow(None)
        assert own.refusal() is None

    run_in_loop(scenario())


def test_who_says_hello_has_a_slot_of_the_pace_that_was_set(run_in_loop: Any) -> None:
    async def scenario() -> None:
        plane = Plane(0)
        own = worker(plane, clock=lambda: 5.0, chance=lambda: 0.5)
        await own.follow(Away(AWAY.targets, 0.1))
        await until(lambda: len(plane.steps) > 0, "it goes")
        afters = [refusal.after_ms for _ in range(8) if (refusal := own.refusal()) is not None]
        spacing_ms = plane.steps[0]["second"] / 1000
        assert spacing_ms > 10_000
        near = [one for one in afters if one != 30_000]
        assert near == pytest.approx([spacing_ms * (number + 1) for number in range(len(near))], abs=1)
        assert 0 < len(near) < len(afters), "and what would be later comes at a random time"
        await own.follow(None)

    run_in_loop(scenario())


def test_another_order_takes_the_place_of_the_one_before_and_the_same_does_not(run_in_loop: Any) -> None:
    async def scenario() -> None:
        plane = Plane(1_000)
        own = worker(plane, 100.0)
        await own.follow(AWAY)
        await until(lambda: len(plane.steps) > 0, "it goes")
        task = own._task
        await own.follow(Away(AWAY.targets))
        assert own._task is task
        await own.follow(Away((), 7.0))
        assert own._task is not task
        await until(lambda: plane.steps[-1]["third"] == 7, "the new pace")
        await own.follow(None)

    run_in_loop(scenario())


def test_a_data_plane_that_does_not_answer_is_said_and_waited_for_no_longer(
    run_in_loop: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evacuation, "FIRST_ANSWER_S", 0.01)

    async def scenario() -> None:
        plane = Plane(5, deaf=True)
        own = worker(plane)
        await own.follow(AWAY)
        await until(lambda: len(plane.steps) > 0, "it tries all the same")
        await own.follow(None)

    run_in_loop(scenario())


def test_the_routers_word_about_those_who_came_elsewhere_slows_it(run_in_loop: Any) -> None:
    async def scenario() -> None:
        plane = Plane(1_000)
        own = worker(plane, 100.0)
        own.on_note(notes.TAKEN, 0, 1, 1)
        await own.follow(AWAY)
        await until(lambda: len(plane.steps) > 0, "it goes")
        own.on_note(notes.TAKEN, 0, 3, 2)
        assert own._pacer is not None
        assert own._pacer._others == 2
        await own.follow(None)

    run_in_loop(scenario())


def test_no_target_is_nothing() -> None:
    assert packed(("", "")) == b""
    assert packed(("", "tls://us:1")) == b"\0tls://us:1"
