"""The log's loader: many streams in one read, and a word to the data plane for each, whatever becomes of it."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from core import log_records, notes
from core.codes import Code
from router.log import loader
from router.log.loader import Loader
from router.log.port import Loaded, LogBroken, LogDeposed, LogUnavailable, Position

DEADLINE_S = 30.0
RECORDS = b"".join(log_records.pack(log_records.MESSAGE, b"group:known", 7, at, body=b"x" * 999) for at in (1, 2, 3))


class FakeLog:
    """Knows one channel; its first reads fail."""

    def __init__(self, failures: Sequence[Exception] = ()) -> None:
        self.failures = list(failures)
        self.reads: list[tuple[int, bool]] = []

    async def load(self, channels: Sequence[bytes], *, messages: bool) -> list[Loaded]:
        self.reads.append((len(channels), messages))
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        if b"group:broken" in channels:
            raise LogBroken("no record of ours: remove it")
        known = Loaded(Position(7, 3), RECORDS if messages else b"")
        return [known if channel == b"group:known" else Loaded(Position(0, 0)) for channel in channels]


class Heard:
    """What the data plane hears; at first it has no room."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.heard = asyncio.Event()
        self.said: list[tuple[int, int, int, int, bytes]] = []
        self.parts: list[bytes] = []

    def put(
        self,
        kind: int,
        *,
        request: int = 0,
        conn: int = 0,
        first: int = 0,
        second: int = 0,
        third: int = 0,
        text: bytes = b"",
    ) -> None:
        if self.refusals:
            self.refusals -= 1
            raise BufferError
        assert kind == notes.LOG_LOADED
        if conn:
            self.parts.append(text)
            return
        self.said.append((request, first, second, third, b"".join(self.parts) + text))
        self.parts = []
        self.heard.set()


def play(log: FakeLog, heard: Heard, ask: Callable[[Loader], None], count: int) -> None:
    async def run() -> None:
        one = Loader(log, heard.put)  # type: ignore[arg-type]
        tasks = [asyncio.create_task(one.run(messages=messages)) for messages in (False, True)]
        ask(one)
        while len(heard.said) < count and not any(task.done() for task in tasks):
            heard.heard.clear()
            word = asyncio.create_task(heard.heard.wait())
            await asyncio.wait([word, *tasks], timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
            word.cancel()
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    work: Coroutine[Any, Any, None] = run()
    asyncio.run(work)


def test_positions_and_messages_are_read_apart_and_together() -> None:
    log, heard = FakeLog(), Heard()

    def ask(one: Loader) -> None:
        one.on_load(1, b"group:known", messages=False)
        one.on_load(2, b"group:other", messages=False)
        one.on_load(3, b"group:known", messages=True)

    play(log, heard, ask, 3)
    assert sorted(log.reads) == [(1, True), (2, False)]
    assert sorted(heard.said) == [(1, 7, 3, 0, b""), (2, 0, 0, 0, b""), (3, 7, 3, 0, RECORDS)]


def test_a_rush_is_read_in_parts() -> None:
    log, heard = FakeLog(), Heard(refusals=3)

    def ask(one: Loader) -> None:
        for number in range(1200):
            one.on_load(number, b"group:%d" % number, messages=False)

    play(log, heard, ask, 1200)
    assert [count for count, _ in log.reads] == [512, 512, 176]
    assert [one[0] for one in heard.said] == list(range(1200))


def test_a_stream_that_cannot_be_read_is_named_and_refused_alone_and_late(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loader, "LOAD_DEADLINE_S", 0.1)
    log, heard = FakeLog(), Heard(refusals=1)

    def ask(one: Loader) -> None:
        for request, channel in enumerate((b"group:known", b"group:broken", b"group:other")):
            one.on_load(request, channel, messages=False)

    play(log, heard, ask, 3)
    assert heard.said == [(0, 7, 3, 0, b""), (2, 0, 0, 0, b""), (1, 0, 0, Code.UNAVAILABLE, b"")]
    assert caplog.messages == ["'group:broken' is refused: no record of ours: remove it"]


def test_the_others_are_refused_once_when_the_log_goes_away_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LOAD_DEADLINE_S", 0.0)
    log, heard = FakeLog([LogBroken("somewhere"), *[LogUnavailable("away")] * 10]), Heard()

    def ask(one: Loader) -> None:
        for request in range(100):
            one.on_load(request, b"group:known", messages=False)

    play(log, heard, ask, 100)
    assert {one[3] for one in heard.said} == {Code.UNAVAILABLE}
    assert len(log.reads) == 2


def test_a_log_that_is_away_is_asked_again_and_then_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loader, "RETRY_S", 0.001)
    log, heard = FakeLog([LogUnavailable("away")] * 3), Heard()
    play(log, heard, lambda one: one.on_load(1, b"group:known", messages=False), 1)
    assert heard.said == [(1, 7, 3, 0, b"")]
    assert caplog.messages == ["the log is away, channels that have to be read from it wait and are refused: away"]
    monkeypatch.setattr(loader, "LOAD_DEADLINE_S", 0.0)
    log, heard = FakeLog([LogUnavailable("away")] * 1000), Heard()
    play(log, heard, lambda one: one.on_load(1, b"group:known", messages=False), 1)
    assert heard.said == [(1, 0, 0, Code.UNAVAILABLE, b"")]


def test_a_deposed_router_ends() -> None:
    with pytest.raises(LogDeposed):
        play(FakeLog([LogDeposed("another")]), Heard(), lambda one: one.on_load(1, b"x", messages=True), 1)


def test_what_is_more_than_a_mailbox_has_room_for_is_told_in_parts_of_whole_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "PART_BYTES", 2500)
    told: list[tuple[int, bytes]] = []

    class Narrow(Heard):
        def put(self, kind: int, **fields: Any) -> None:
            super().put(kind, **fields)
            told.append((fields.get("conn", 0), fields["text"]))

    heard = Narrow(refusals=1)
    play(FakeLog(), heard, lambda one: one.on_load(1, b"group:known", messages=True), 1)
    assert heard.said == [(1, 7, 3, 0, RECORDS)]
    assert [(more, len(log_records.entries(text))) for more, text in told] == [(1, 2), (0, 1)]
