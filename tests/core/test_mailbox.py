"""Mailbox: notes between two threads arrive whole, in order and once; the reader is rung once a batch."""

import os
import select
import threading

from core._testing import Box

Notes = list[tuple[int, bytes, bytes]]
DEADLINE_MS = 10_000


def test_the_reader_is_rung_once_however_many_notes_there_are() -> None:
    box = Box(1 << 16)
    assert box.ring() is False
    for kind in range(5):
        assert box.put(kind, b"text" * kind, b"x" * (kind % 3))
    assert [box.ring(), box.ring()] == [True, False]
    assert os.eventfd_read(box.fd) == 1
    assert box.drain() == [(kind, b"text" * kind, b"x" * (kind % 3)) for kind in range(5)]
    assert box.drain() == []
    assert box.ring() is False


def test_a_full_box_refuses_and_takes_notes_again_once_it_is_drained() -> None:
    box = Box(4096)
    taken: Notes = []
    while box.put(len(taken), b"a" * 100, b"b"):
        taken.append((len(taken), b"a" * 100, b"b"))
    assert 20 < len(taken) < 41
    assert box.drain() == taken
    assert box.put(1, b"", b"")
    assert box.drain() == [(1, b"", b"")]


def test_two_threads_lose_nothing() -> None:
    box, count = Box(1 << 24), 20_000
    seen: list[int] = []

    def write() -> None:
        for number in range(count):
            assert box.put(number % 7, b"%d" % number, b"")
            box.ring()

    writer = threading.Thread(target=write)
    writer.start()
    poll = select.poll()
    poll.register(box.fd, select.POLLIN)
    while len(seen) < count:
        # The ring may come for notes that the last drain took already; a lost one would end here.
        assert poll.poll(DEADLINE_MS), f"{len(seen)} of {count}, then silence"
        for kind, text, _ in box.drain():
            assert kind == int(text) % 7
            seen.append(int(text))
    writer.join(10)
    assert seen == list(range(count))
