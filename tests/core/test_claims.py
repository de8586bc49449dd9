"""Claims: of a session that another worker has, what it did there counts, whichever link is read first."""

import contextlib
import select
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core import notes, records, zmtp
from core.router_loop import RouterLoop
from tests.core.edge_harness import wait_for
from tests.core.router_harness import DEADLINE_S, EPOCH, Sequencer
from tests.core.test_peers import Stream, framed

ALICE = b"a" * 16
ROUNDS = 300
Say = Callable[[records.BatchWriter], None]


def claim(conn: int, seq: int, *, flags: int = records.RESUMES, body: bytes = b"what is stored") -> Say:
    return lambda say: say.session(records.OPEN, ALICE, conn, seq, flags, body)


def joined(channel: bytes) -> Say:
    return lambda say: say.state(ALICE, records.JOINED, channel, EPOCH, 0, b"alice", 5)


def closed(conn: int) -> Say:
    return lambda say: say.session(records.CLOSE, ALICE, conn)


class Router:
    """A router whose workers speak by sockets of the test's own: what is sent is there when `say` returns, so that the
    order of two links is the test's; ZeroMQ's threads would have their own.
    """

    def __init__(self, sequencer: Sequencer, stack: contextlib.ExitStack) -> None:
        self.sequencer = sequencer
        self.streams: list[Stream] = []
        self._heard: tuple[deque[dict[str, Any]], ...] = (deque(), deque())
        self._notes: deque[Any] = deque()
        for number in range(2):
            stream = Stream(stack.enter_context(socket.socket(socket.AF_UNIX)))
            stream.socket.connect(str(sequencer.path))
            stream.socket.sendall(zmtp.greeting() + zmtp.ready(b"DEALER", b"node/%d/1" % number))
            assert stream.greeted() == b""
            self.streams.append(stream)
            self.say(number, lambda say, number=number: say.link(records.LINK, 1, number))  # type: ignore[misc]
            self.heard(number, records.LINKED)
            self.say(
                number,
                lambda say, number=number: say.link(records.BEGIN, 1, number),  # type: ignore[misc]
                lambda say: say.shards(range(256)),
                lambda say: say.shards(range(256), said=True),
                lambda say, number=number: say.link(records.END, 1, number),  # type: ignore[misc]
            )

    @property
    def loop(self) -> RouterLoop:
        assert self.sequencer.loop is not None
        return self.sequencer.loop

    def say(self, worker: int, *what: Say) -> None:
        """One batch."""
        batch = records.BatchWriter()
        for one in what:
            one(batch)
        self.streams[worker].socket.sendall(framed(batch.take()))

    def heard(self, worker: int, kind: int) -> dict[str, Any]:
        """The next record of this kind that a worker hears; others are passed over."""
        while True:
            while not self._heard[worker]:
                self._heard[worker].extend(self.streams[worker].records())
            one = self._heard[worker].popleft()
            if one["kind"] == kind:
                return one

    def stored(self) -> tuple[bytes, Any]:
        """What was told of sessions before the next claim was handed over, and that."""
        told = b""
        while True:
            while not self._notes:
                assert select.select([self.loop.control_fd], [], [], DEADLINE_S)[0], "no note in time"
                self._notes.extend(self.loop.take())
            note = self._notes.popleft()
            if note[0] == notes.SESSION_OPEN:
                return told, note
            told += note[7]

    def answer(self, note: Any) -> None:
        """Nothing is stored of the session that this claim is of."""
        self.loop.put(notes.SESSION_OPENED, request=note[3], conn=note[2])


@pytest.fixture
def router(sequencers: Callable[..., Sequencer]) -> Iterator[Router]:
    with contextlib.ExitStack() as stack:
        yield Router(sequencers(sessions_kept=True), stack)


def test_what_a_session_did_is_known_when_it_is_claimed_through_another_link(router: Router) -> None:
    """The claim comes right behind it, again and again, from here to there and back."""
    router.say(0, claim(5, 1, flags=0))
    router.stored()
    assert router.heard(0, records.OPENED)["seq"] == 1
    lost = 0
    for number in range(ROUNDS):
        before, after = number % 2, (number + 1) % 2
        channel = b"group:%d" % number
        router.say(before, joined(channel))
        router.say(after, claim(5, number + 2))
        told, note = router.stored()
        lost += channel not in told
        router.answer(note)
        assert router.heard(after, records.OPENED)["seq"] == number + 2
    assert lost == 0


def test_a_connection_that_ends_while_its_claim_waits_leaves_nobody_with_the_session(router: Router) -> None:
    router.say(0, claim(5, 1, flags=0))
    router.stored()
    router.say(1, claim(6, 2), closed(6))
    assert router.stored()[1][2] == 6
    assert router.heard(0, records.EVICT)["conn"] == 5
    wait_for(lambda: router.sequencer.live("session") == 0, "nobody has it")


def test_of_claims_through_one_link_the_last_one_counts(router: Router) -> None:
    """Also when the former owner goes meanwhile, so that the second one would not have to wait."""
    for number in range(ROUNDS // 10):
        router.say(0, claim(5, 1, flags=0))
        router.stored()
        router.say(1, claim(6, 2), claim(7, 3))
        router.say(0, closed(5))
        router.say(1, claim(8, 4))
        assert [router.stored()[1][2] for _ in range(3)] == [6, 7, 8], number
        assert router.heard(1, records.EVICT)["conn"] == 6
        assert router.heard(1, records.EVICT)["conn"] == 7
        router.say(1, closed(8))
        wait_for(lambda: router.sequencer.live("session") == 0, "nobody has it")


def test_a_claim_of_a_worker_that_goes_is_of_no_consequence(router: Router) -> None:
    router.say(0, claim(5, 1, flags=0))
    router.stored()
    router.say(1, claim(6, 2), lambda say: say.link(records.BYE, 1, 1))
    router.say(0, joined(b"group:still"), closed(5))
    router.say(0, claim(9, 3))
    told, note = router.stored()
    assert b"group:still" in told
    assert note[2] == 9


def test_claims_that_find_no_room_are_done_at_once(router: Router) -> None:
    """A megabyte of them waits; beyond it the order of the links is as it comes."""
    router.say(0, claim(5, 1, flags=0))
    router.stored()
    body = bytes(400_000)
    router.say(1, *(claim(conn, conn, body=body) for conn in range(6, 10)))
    assert sorted(router.stored()[1][2] for _ in range(4)) == [6, 7, 8, 9]
