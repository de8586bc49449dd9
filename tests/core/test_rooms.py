"""Rooms held against a model: sessions that join, leave, end and move, workers that die and links that are lost."""

import random
from collections.abc import Callable

import pytest

from core import records
from tests.core.edge_harness import wait_for
from tests.core.presence_harness import NAMESPACES, claim, expected, present, say, session_of
from tests.core.router_harness import Sequencer, Worker
from tests.core.test_audit_router import look

CHANNELS = ("group:a", "group:b", "held:a", "user:u1")
WORKERS, SESSIONS, USERS = 3, 24, 5
Where = dict[int, tuple[int, set[str]]]


def user_of(session: int) -> str:
    return f"u{session % USERS}"


class Model:
    """What the router has to know: which worker has a session, and where that session is."""

    def __init__(self, router: Sequencer, seed: int) -> None:
        self.order = random.Random(seed)
        self.router = router
        self.workers = [router.worker(number) for number in range(WORKERS)]
        self.where: Where = {}

    def _conn(self, session: int, worker: int) -> int:
        return session * 10 + worker + 1

    def open(self) -> None:
        """A session is claimed: for the first time, or taken over from another worker."""
        session, worker = self.order.randrange(SESSIONS), self.order.randrange(WORKERS)
        if session in self.where and self.where[session][0] == worker:
            return
        claim(self.workers[worker], session_of(session), self._conn(session, worker))
        self.workers[worker].rest()
        if session in self.where:
            (told,) = self.workers[self.where[session][0]].rest()
            assert told["kind"] == records.EVICT
        self.where[session] = (worker, set())

    def _one(self) -> int | None:
        return self.order.choice(sorted(self.where)) if self.where else None

    def join(self) -> None:
        session = self._one()
        if session is None:
            return
        worker, channels = self.where[session]
        channel = self.order.choice(CHANNELS)
        what = self.order.choice((records.JOINED, records.HERE))
        say(
            self.workers[worker],
            what,
            session_of(session),
            channel,
            user_of(session),
            self._conn(session, worker),
        )
        channels.add(channel)

    def leave(self) -> None:
        session = self._one()
        if session is None:
            return
        worker, channels = self.where[session]
        channel = self.order.choice(CHANNELS)  # perhaps one in which it is not
        conn = self._conn(session, worker)
        say(self.workers[worker], records.LEFT, session_of(session), channel, user_of(session), conn)
        channels.discard(channel)

    def close(self) -> None:
        session = self._one()
        if session is not None:
            worker, _ = self.where.pop(session)
            self.workers[worker].say.session(records.CLOSE, session_of(session), self._conn(session, worker))

    def stranger(self) -> None:
        """A worker and a connection that do not have the session (any more) say something of it: it does not count."""
        session = self._one()
        if session is not None:
            worker = self.where[session][0]
            for teller in range(WORKERS):
                conn = 9999 if teller == worker else self._conn(session, teller)
                say(self.workers[teller], records.JOINED, session_of(session), "group:a", user_of(session), conn)
                say(self.workers[teller], records.LEFT, session_of(session), "group:b", user_of(session), conn)

    def die(self) -> None:
        number = self.order.randrange(WORKERS)
        worker = self.workers[number]
        worker.say.link(records.BYE, worker.epoch, worker.number)
        worker.flush()
        worker.link()
        wait_for(lambda: worker.rest() == [], "the link")
        self.where = {one: held for one, held in self.where.items() if held[0] != number}

    def relink(self) -> None:
        """A link was lost: the worker says again all that it holds, which is a part of what it held."""
        number = self.order.randrange(WORKERS)
        worker = self.workers[number]
        worker.begin()
        for session, (at, channels) in sorted(self.where.items()):
            if at != number:
                continue
            if self.order.random() < 0.3:
                del self.where[session]
                continue
            claim(worker, session_of(session), self._conn(session, number))
            for channel in sorted(channels):
                conn = self._conn(session, number)
                say(worker, records.HERE, session_of(session), channel, user_of(session), conn)
        worker.end()
        assert all(one["kind"] != records.EVICT for one in worker.rest())

    def check(self) -> None:
        for worker in self.workers:
            worker.rest()
        for channel in CHANNELS:
            there = [one for one, (_, channels) in self.where.items() if channel in channels]
            assert present(self.workers[0], channel) == expected(*((session_of(one), user_of(one)) for one in there)), (
                channel
            )


STEPS: tuple[Callable[[Model], None], ...] = (
    *[Model.open] * 5,
    *[Model.join] * 10,
    *[Model.leave] * 3,
    *[Model.close] * 2,
    Model.stranger,
    Model.die,
    Model.relink,
)


@pytest.mark.parametrize("seed", range(12))
def test_who_is_where_is_what_a_model_says(sequencers: Callable[..., Sequencer], seed: int) -> None:
    router = sequencers(namespaces=NAMESPACES, presence_damping_ms=600_000)
    model = Model(router, seed)
    for step in range(150):
        # Whoever is about to be overtaken by another worker has said all by then.
        for worker in model.workers:
            worker.rest()
        model.order.choice(STEPS)(model)
        if step % 10 == 0:
            model.check()
    model.check()
    report = look(router)
    assert report["findings"] == []
    counts = report["kinds"]["membership"]
    assert counts["found"] == counts["opened"] - counts["closed"] == sum(len(at) for _, at in model.where.values())


def test_many_sessions_of_one_user_are_one_user(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(namespaces=NAMESPACES)
    worker: Worker = router.worker()
    order = random.Random(1)
    there = list(range(400))
    for number in there:
        claim(worker, session_of(number), number + 1)
        say(worker, records.JOINED, session_of(number), "group:a", "u", number + 1)
    assert present(worker, "group:a")[1:] == (1, 400)
    order.shuffle(there)
    while there:
        number = there.pop()
        say(worker, records.LEFT, session_of(number), "group:a", "u", number + 1)
        if len(there) % 50 == 0:
            assert present(worker, "group:a") == expected(*((session_of(one), "u") for one in there))
    assert router.live("membership") == 0


def test_what_no_worker_says_is_passed_over(sequencers: Callable[..., Sequencer]) -> None:
    """Names that are none, and users without a name: a peer's bytes are not trusted."""
    router = sequencers(namespaces=NAMESPACES)
    worker = router.worker()
    claim(worker, session_of(1))
    for channel, user in (("", "u"), ("nobody:a", "u"), ("group", "u"), ("group:a", ""), ("group:a", "u" * 300)):
        say(worker, records.JOINED, session_of(1), channel, user)
    say(worker, records.LEFT, session_of(2), "group:a", "u")
    assert present(worker, "group:a") == expected()
    assert router.live("membership") == 0
    say(worker, records.JOINED, session_of(1), "group:" + "x" * 249, "u" * 255)
    assert present(worker, "group:" + "x" * 249) == expected((session_of(1), "u" * 255))
