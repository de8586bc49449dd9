"""What waits for the router's answer: kept within a bound, and said again to the next router, in order, each once."""

import random
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from core import notes, records
from core.codes import Code
from tests.core import wire
from tests.core.edge_harness import EPOCH, ERROR, LEAVE, PUBLISH, REPLY, Client, Edge, wait_for

BLOCK_BYTES = 32_768


def gauge(edge: Edge, name: str) -> int:
    value: int = edge.stats.read()["gauges"][name]
    return value


def text_of(one: wire.Record) -> Any:
    return msgpack.unpackb(one["data"])


def said_again(edge: Edge, epoch: int, count: int) -> list[wire.Record]:
    """A new router links; the publishes that follow END."""
    edge.link(epoch)
    return [edge.router.expect(records.PUBLISH) for _ in range(count)]


def answer(edge: Edge, *asked: wire.Record, epoch: int = EPOCH) -> None:
    edge.router.send(*(wire.published(one["seq"], epoch, one["seq"]) for one in asked))


def lose(edge: Edge) -> None:
    """The router's stream ends, and the worker notices; the test's router is there again at the same place."""
    edge.router.restart()
    wait_for(lambda: gauge(edge, "linked") == 0, "the loss is noticed")
    edge.router.heartbeat()


def test_what_waits_is_said_again_in_order_before_anything_new_and_answered_once(edge: Edge) -> None:
    alice, bob = edge.open("alice"), edge.open("bob")
    edge.join(alice, "group:a")
    edge.join_known(bob, "group:a")
    ids = {}
    for number in range(6):
        client = (alice, bob)[number % 2]
        ids[number] = client.request(PUBLISH, "group:a", number, {"key": f"k{number}"})
        one = edge.router.expect(records.PUBLISH)
        assert (text_of(one), one["again"]) == (number, False)
        if number in (1, 2):
            answer(edge, one)
            assert client.frame()[:2] == [REPLY, ids[number]]
    edge.router.send(wire.linked(EPOCH + 1, ask=True), wire.leads(EPOCH + 1))
    ids[6] = alice.request(PUBLISH, "group:a", 6)
    while edge.router.take()["kind"] != records.END:  # the new one may stand before BEGIN as well: it was read first
        continue
    said = [edge.router.expect(records.PUBLISH) for _ in range(5)]
    assert [text_of(one) for one in said] == [0, 3, 4, 5, 6]
    assert [one["again"] for one in said[:4]] == [True] * 4
    assert [(one["name"], one["key"]) for one in said[:4]] == [(b"group:a", f"k{n}".encode()) for n in (0, 3, 4, 5)]
    assert [one["sender"] for one in said[:4]] == [b"alice", b"bob", b"alice", b"bob"]
    assert edge.counter("asked_again") >= 4
    answer(edge, *said, *said, epoch=EPOCH + 1)  # a router that answers twice
    assert [frame[:2] for frame in alice.frames(3)] == [[REPLY, ids[n]] for n in (0, 4, 6)]
    assert [frame[:2] for frame in bob.frames(2)] == [[REPLY, ids[n]] for n in (3, 5)]
    assert gauge(edge, "kept_bytes") == edge.live("kept") == edge.live("request") == 0
    number = alice.request(PUBLISH, "group:a", "and on")
    answer(edge, edge.router.expect(records.PUBLISH))
    assert alice.frame()[:2] == [REPLY, number]  # nothing came twice in between


def test_what_is_asked_while_the_router_is_away_is_said_when_it_is_back(edge: Edge) -> None:
    alice = edge.open("alice")
    before = alice.request(PUBLISH, "user:bob", "before")
    edge.router.expect(records.PUBLISH)
    lose(edge)
    during = alice.request(PUBLISH, "user:bob", "during")
    alice.send([PUBLISH, 0, "user:bob", "no answer wanted"])
    wait_for(lambda: edge.live("request") == 3, "all three are kept")
    said = said_again(edge, EPOCH + 1, 3)
    assert [(text_of(one), one["again"]) for one in said] == [
        ("before", True),
        ("during", False),
        ("no answer wanted", False),
    ]
    answer(edge, *said)
    assert [frame[:2] for frame in alice.frames(2)] == [[REPLY, before], [REPLY, during]]
    wait_for(lambda: edge.live("kept") == 0, "nothing is kept any more")
    said = said_again(edge, EPOCH + 2, 0)
    edge.join(alice, "group:a")  # the next record, so nothing was said again


def test_whose_client_is_gone_is_said_again_all_the_same(edge: Edge) -> None:
    alice = edge.open("alice")
    alice.request(PUBLISH, "user:bob", "last words")
    edge.router.expect(records.PUBLISH)
    alice.reset()
    edge.router.expect(records.UNSUBSCRIBE)
    edge.router.expect(records.CLOSE)
    (one,) = said_again(edge, EPOCH + 1, 1)
    assert (text_of(one), one["again"], one["sender"]) == ("last words", True, b"alice")
    answer(edge, one)
    edge.wait_empty()


def test_the_bound_is_told_and_room_comes_with_the_answers(edges: Callable[..., Edge]) -> None:
    edge = edges(kept_bytes_max=2 * BLOCK_BYTES, max_frame=8192)
    alice = edge.open("alice")
    text = "x" * 5000
    # A record is a few bytes longer than its text: five go into a block.
    ids = [alice.request(PUBLISH, "user:bob", text) for _ in range(14)]
    said = [edge.router.expect(records.PUBLISH) for _ in range(12)]
    refused = alice.frames(2)
    assert [frame[:3] for frame in refused] == [[ERROR, number, Code.OVERLOADED] for number in ids[12:]]
    assert all(frame[4]["retry_after"] > 0 for frame in refused)
    assert gauge(edge, "kept_bytes") == 2 * BLOCK_BYTES
    answer(edge, *said[1:6])
    assert len(alice.frames(5)) == 5
    number = alice.request(PUBLISH, "user:bob", text)  # the first block is held by its first record
    assert alice.frame()[:3] == [ERROR, number, Code.OVERLOADED]
    answer(edge, said[0])
    assert alice.frame()[:2] == [REPLY, ids[0]]
    number = alice.request(PUBLISH, "user:bob", text)
    said.append(edge.router.expect(records.PUBLISH))
    again = said_again(edge, EPOCH + 1, 7)
    assert [one["seq"] for one in again] == [one["seq"] for one in said[6:]]
    answer(edge, *again)
    assert alice.frames(7)[-1][:2] == [REPLY, number]


def test_a_message_longer_than_a_block_is_kept(edge: Edge) -> None:
    alice = edge.open("alice")
    text = "y" * (BLOCK_BYTES + 5000)
    number = alice.request(PUBLISH, "user:bob", text)
    edge.router.expect(records.PUBLISH)
    (one,) = said_again(edge, EPOCH + 1, 1)
    assert text_of(one) == text
    answer(edge, one)
    assert alice.frame()[:2] == [REPLY, number]


def test_history_and_presence_are_asked_again(edge: Edge) -> None:
    alice = edge.open("alice")
    edge.join(alice, "group:a")
    history = edge.ask(alice, 11, notes.HISTORY, "group:a", flags=3, first=10, second=EPOCH, third=6)
    first = edge.router.expect(records.HISTORY)
    presence = edge.ask(alice, 12, notes.PRESENCE, "group:a")
    edge.router.expect(records.PRESENCE)
    edge.link(EPOCH + 1)
    again = edge.router.expect(records.HISTORY)
    assert again == first
    asked = edge.router.expect(records.PRESENCE)
    edge.router.send(
        wire.reply(again["seq"], msgpack.packb({"offset": 9})), wire.reply(asked["seq"], msgpack.packb({"count": 1}))
    )
    assert alice.frames(2) == [[REPLY, history, {"offset": 9}], [REPLY, presence, {"count": 1}]]


def test_what_waits_when_the_worker_stops_is_given_back(edge: Edge) -> None:
    alice = edge.open("alice")
    alice.request(PUBLISH, "user:bob", "x")
    edge.router.expect(records.PUBLISH)
    edge.stop()
    assert edge.live("kept") == edge.live("request") == 0


class Model:
    """Publishes and answers in any order, and routers that come and go: who waits is said again, and nobody else."""

    def __init__(self, edge: Edge, seed: int) -> None:
        self.edge, self.chance, self.epoch = edge, random.Random(seed), EPOCH
        self.client: Client = edge.open("alice")
        self.edge.join(self.client, "group:a")
        self.waiting: dict[int, wire.Record] = {}  # by the client's id, in order
        self.number = 0

    def publish(self) -> None:
        for _ in range(self.chance.randrange(1, 8)):
            self.number += 1
            text = [self.number, "z" * self.chance.choice((1, 100, 3000, 20_000))]
            id = self.client.request(PUBLISH, "group:a", text)
            one = self.edge.router.expect(records.PUBLISH)
            assert (text_of(one), one["again"]) == (text, False)
            self.waiting[id] = one

    def answer(self) -> None:
        ids = self.chance.sample(list(self.waiting), self.chance.randrange(0, len(self.waiting) + 1))
        answer(self.edge, *(self.waiting[id] for id in ids))
        assert [frame[:2] for frame in self.client.frames(len(ids))] == [[REPLY, id] for id in ids]
        for id in ids:
            del self.waiting[id]

    def replace(self) -> None:
        self.epoch += 1
        said = said_again(self.edge, self.epoch, len(self.waiting))
        assert said == [{**one, "again": True} for one in self.waiting.values()]


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_answers_and_routers(edges: Callable[..., Edge], seed: int) -> None:
    edge = edges(kept_bytes_max=1 << 22)
    model = Model(edge, seed)
    for _ in range(40):
        model.chance.choice((model.publish, model.answer, model.replace))()
    model.replace()
    answer(edge, *model.waiting.values())
    model.client.frames(len(model.waiting))
    model.client.send([LEAVE, 1, "group:a"])  # and nothing else stands before its record
    assert edge.router.expect(records.UNSUBSCRIBE)["name"] == b"group:a"
    assert edge.live("kept") == gauge(edge, "kept_bytes") == 0
