"""Slow consumers: what a member that takes too little misses is told exactly, and its connection stays."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from core import notes
from core.audit import unpack
from core.codes import Code
from core.namespace_spec import BUILT_IN, NamespaceSpec
from tests.core import wire
from tests.core.edge_harness import (
    EPOCH,
    EVENT,
    FIN,
    JOIN,
    LEAVE,
    MESSAGE,
    REPLY,
    Client,
    Edge,
    frame_of,
    wait_for,
)
from tests.core.ws_client import TextClient, WsClient

BOUND = 200_000
NAMESPACES = (
    *BUILT_IN,
    NamespaceSpec(name="drop", domain="group", slow_consumer="drop_oldest"),
    NamespaceSpec(name="last", domain="group", slow_consumer="conflate"),
)
KINDS = pytest.mark.parametrize("kind", [Client, WsClient, TextClient])
Make = Callable[..., Edge]


def recreated(epoch: int, offset: int, last: int) -> dict[str, Any]:
    return {"from": offset + 1, "to": last, "reason": "recreated", "epoch": epoch, "offset": offset}


class Channel:
    """A channel with a quick member, through which the test knows that a message is out."""

    def __init__(self, edge: Edge, name: str, quick: Client) -> None:
        self.edge, self.name, self.quick = edge, name, quick
        self.handle = edge.join(quick, name)
        self.epoch, self.offset = EPOCH, 0

    def say(self, size: int = 10_000, count: int = 1) -> None:
        """The router's next messages, in one batch; the quick member hears them all."""
        said = []
        for _ in range(count):
            self.offset += 1
            body = frame_of(self.name, self.offset, "x" * size, self.epoch)
            said.append(wire.message(self.handle, self.epoch, self.offset, body))
        self.edge.router.send(*said)
        for offset in range(self.offset - count + 1, self.offset + 1):
            assert self.quick.frame()[:3] == [MESSAGE, self.name, offset]

    def recreate(self, offset: int) -> None:
        """The log lost what lies behind this offset, and the next message comes there."""
        last, self.offset = self.offset, offset + 1
        self.epoch += 1
        body = frame_of(self.name, self.offset, "new", self.epoch)
        self.edge.router.send(wire.message(self.handle, self.epoch, self.offset, body))
        assert self.quick.frame() == [EVENT, self.name, "gap", recreated(self.epoch, offset, last)]
        assert self.quick.frame()[:3] == [MESSAGE, self.name, self.offset]

    def lose(self, count: int) -> None:
        """Some never come: the next message tells of them."""
        self.offset += count


class Heard:
    """What a member is told of a channel: each offset once, in order, by its message or by a gap; where the channel was
    recreated, that it was, before anything that came later.
    """

    def __init__(self) -> None:
        self.epoch, self.last = EPOCH, 0
        self.messages: list[int] = []
        self.reasons: list[str] = []
        self.recreated: list[dict[str, Any]] = []

    def has_all(self, channel: Channel) -> bool:
        return (self.epoch, self.last) == (channel.epoch, channel.offset)

    def take(self, frame: list[Any]) -> None:
        if frame[0] == MESSAGE:
            assert frame[2] == self.last + 1, f"{frame[2]} after {self.last}"
            assert frame[4]["epoch"] == self.epoch
            self.last = frame[2]
            self.messages.append(frame[2])
        elif frame[3].get("reason") == "recreated":
            assert frame[3]["epoch"] > self.epoch
            assert frame[3]["offset"] + 1 == frame[3]["from"] <= self.last <= frame[3]["to"]
            self.epoch, self.last = frame[3]["epoch"], frame[3]["offset"]
            self.recreated.append(frame[3])
        else:
            assert (frame[0], frame[2]) == (EVENT, "gap")
            assert self.last + 1 == frame[3]["from"] <= frame[3]["to"], f"{frame[3]} after {self.last}"
            self.last = frame[3]["to"]
            self.reasons.append(frame[3]["reason"])


def gauge(edge: Edge, name: str) -> int:
    value: int = edge.stats.read()["gauges"][name]
    return value


def hear(client: Client, channel: Channel) -> Heard:
    """Read until everything that was said is told of."""
    heard = Heard()
    while heard.last < channel.offset:
        heard.take(client.frame())
    return heard


def start(edges: Make, name: str, kind: type[Client] = Client, **options: Any) -> tuple[Edge, Channel, Client]:
    """A worker, a channel with a quick member, and a slow member that reads nothing yet."""
    edge = edges(namespaces=NAMESPACES, **{"queue_bytes_max": BOUND, **options})
    channel = Channel(edge, name, edge.open("quick"))
    slow = edge.open("slow", kind, receive_bytes=4096)
    edge.join_known(slow, name)
    return edge, channel, slow


def fall_behind(edge: Edge, channel: Channel, passed_over: int) -> None:
    """Say messages until so many were left out."""
    while edge.counter("passed_over") < passed_over:
        assert channel.offset < 5000, "nothing is left out"
        channel.say()
        assert gauge(edge, "held_bytes") <= BOUND
        assert gauge(edge, "queued_bytes") <= 2 * BOUND


@KINDS
@pytest.mark.parametrize("name", ["drop:a", "last:a"])
def test_what_a_slow_member_misses_is_told_exactly_and_it_stays(edges: Make, kind: type[Client], name: str) -> None:
    edge, channel, slow = start(edges, name, kind)
    fall_behind(edge, channel, 30)
    assert edge.live("lag") == 1
    heard = hear(slow, channel)
    assert heard.reasons == ["slow_consumer"]
    assert heard.messages[-1] == channel.offset  # the newest always comes
    newest = [offset for offset, before in zip(heard.messages[1:], heard.messages, strict=False) if offset > before + 1]
    kept = channel.offset - newest[0] + 1
    assert kept == 1 if name == "last:a" else 10 <= kept <= BOUND // 10_000
    wait_for(lambda: edge.live("lag") == gauge(edge, "held_bytes") == 0, "it is not behind any more")
    channel.say(count=3)
    for offset in range(channel.offset - 2, channel.offset + 1):
        assert slow.frame()[:3] == [MESSAGE, name, offset]
    assert edge.counter("slow_consumers") == 0
    assert edge.counter("passed_over") == channel.offset - len(heard.messages) - 3


@KINDS
def test_a_turn_that_brings_more_than_the_bound_ends_nobody(edges: Make, kind: type[Client]) -> None:
    edge, channel, slow = start(edges, "drop:a", kind)
    channel.say(30_000, count=60)
    heard = hear(slow, channel)
    assert heard.messages[-1] == channel.offset
    assert set(heard.reasons) <= {"slow_consumer"}
    assert edge.counter("slow_consumers") == 0


def test_other_channels_of_a_slow_member_are_not_touched(edges: Make) -> None:
    """One namespace leaves messages out; of another one nothing is, and it is that one whose bound ends a session."""
    edge, channel, slow = start(edges, "drop:a")
    group = Channel(edge, "group:a", channel.quick)
    edge.join_known(slow, "group:a")
    fall_behind(edge, channel, 5)
    group.say(1000, count=5)
    told, said = Heard(), Heard()
    while told.last < channel.offset or said.last < group.offset:
        frame = slow.frame()
        (told if frame[1] == "drop:a" else said).take(frame)
    assert said.reasons == []
    fall_behind(edge, channel, edge.counter("passed_over") + 5)
    while edge.counter("slow_consumers") == 0:
        assert group.offset < 1000, "the queue has no bound"
        group.say()
    while (frame := slow.frame())[0] != FIN:
        (told if frame[1] == "drop:a" else said).take(frame)
    assert frame[1] == Code.SLOW_CONSUMER
    assert edge.live("lag") == gauge(edge, "held_bytes") == 0


def test_who_leaves_while_behind_hears_no_more_of_it(edges: Make) -> None:
    edge, channel, slow = start(edges, "drop:a")
    fall_behind(edge, channel, 5)
    slow.send([LEAVE, 7, "drop:a"])
    wait_for(lambda: edge.live("lag") == 0, "what was held is let go of")
    heard = Heard()
    while (frame := slow.frame())[0] != REPLY:
        heard.take(frame)
    assert heard.reasons == []
    edge.join_known(slow, "drop:a")
    channel.say()
    assert slow.frame()[:3] == [MESSAGE, "drop:a", channel.offset]


def test_a_join_while_behind_is_answered_where_the_member_stands(edges: Make) -> None:
    edge, channel, slow = start(edges, "drop:a")
    fall_behind(edge, channel, 5)
    number = slow.request(JOIN, "drop:a")
    heard = Heard()
    answered = 0
    while heard.last < channel.offset or not answered:
        frame = slow.frame()
        if frame[0] == REPLY:
            assert (frame[1], frame[2]["outcome"]) == (number, "live")
            answered = frame[2]["offset"]
            assert heard.last == answered
        else:
            heard.take(frame)
    assert answered < channel.offset


def test_who_goes_while_behind_leaves_nothing(edges: Make) -> None:
    edge, channel, slow = start(edges, "drop:a")
    fall_behind(edge, channel, 5)
    slow.reset()
    channel.quick.close()
    edge.wait_empty()
    assert edge.live("lag") == gauge(edge, "held_bytes") == 0


def test_what_the_router_lost_is_told_once_to_a_member_that_is_behind(edges: Make) -> None:
    edge, channel, slow = start(edges, "drop:a")
    while edge.live("lag") == 0:
        channel.say()
    channel.lose(4)
    body = frame_of("drop:a", channel.offset + 1, "x")
    edge.router.send(wire.message(channel.handle, EPOCH, channel.offset + 1, body))
    assert channel.quick.frame()[3] == {"from": channel.offset - 3, "to": channel.offset, "reason": "router_lost"}
    assert channel.quick.frame()[2] == channel.offset + 1
    channel.offset += 1
    heard = hear(slow, channel)
    assert heard.reasons == ["router_lost"]
    fall_behind(edge, channel, 3)
    channel.lose(2)
    edge.router.send(wire.message(channel.handle, EPOCH, channel.offset + 1, frame_of("drop:a", channel.offset + 1, 1)))
    channel.quick.frames(2)
    channel.offset += 1
    fall_behind(edge, channel, edge.counter("passed_over") + 40)  # so that the gap that was held is left out itself
    told = Heard()
    told.last = heard.last
    while told.last < channel.offset:
        told.take(slow.frame())
    assert told.reasons == ["slow_consumer"]


@KINDS
@pytest.mark.parametrize("name", ["drop:a", "last:a"])
def test_that_a_channel_was_recreated_is_never_left_out(edges: Make, kind: type[Client], name: str) -> None:
    edge, channel, slow = start(edges, name, kind)
    fall_behind(edge, channel, 5)
    last = channel.offset
    channel.recreate(4)
    fall_behind(edge, channel, edge.counter("passed_over") + 60)  # so that it would be left out itself
    assert channel.offset > 10
    heard = Heard()
    while not heard.has_all(channel):
        heard.take(slow.frame())
    assert heard.recreated == [recreated(EPOCH + 1, 4, last)]
    assert heard.reasons == ["slow_consumer"] * 2  # up to there, and behind it
    wait_for(lambda: edge.live("lag") == 0, "it is not behind any more")
    channel.say()
    heard.take(slow.frame())
    assert heard.has_all(channel)


@pytest.mark.parametrize("name", ["drop:a", "last:a"])
def test_recreations_that_are_left_out_are_told_as_one(edges: Make, name: str) -> None:
    edge, channel, slow = start(edges, name)
    fall_behind(edge, channel, 5)
    last = channel.offset
    channel.recreate(4)
    channel.say(count=3)
    channel.recreate(6)  # 5 and 6 of the epoch before are there still, and are left out
    fall_behind(edge, channel, edge.counter("passed_over") + 60)
    heard = Heard()
    while not heard.has_all(channel):
        heard.take(slow.frame())
    assert heard.recreated == [recreated(EPOCH + 2, 4, last)]
    assert heard.reasons == ["slow_consumer"] * 2


def test_a_recreation_that_is_held_is_told_in_its_place(edges: Make) -> None:
    edge, channel, slow = start(edges, "drop:a")
    while edge.live("lag") == 0:
        channel.say()
    channel.say(count=2)
    last = channel.offset
    channel.recreate(4)
    channel.say(count=2)
    channel.recreate(2)
    heard = Heard()
    while not heard.has_all(channel):
        heard.take(slow.frame())
    assert heard.messages == [*range(1, last + 1), 5, 6, 7, 3]
    assert heard.recreated == [recreated(EPOCH + 1, 4, last), recreated(EPOCH + 2, 2, 7)]
    assert heard.reasons == []


def test_a_join_before_a_recreation_is_told_is_answered_with_what_is_common(edges: Make) -> None:
    edge, channel, slow = start(edges, "last:a")
    fall_behind(edge, channel, 5)
    channel.recreate(1)
    channel.say(count=8)
    number = slow.request(JOIN, "last:a")
    heard = Heard()
    while True:
        frame = slow.frame()
        if frame[0] == REPLY:
            break
        heard.take(frame)
    assert heard.recreated == []
    assert frame == [REPLY, number, {"epoch": EPOCH + 1, "offset": 1, "outcome": "live"}]
    while not heard.has_all(channel):
        heard.take(slow.frame())
    assert len(heard.recreated) == 1


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_messages_and_reading(edges: Make, seed: int) -> None:
    """Two channels, members that read now and then: each offset of each channel is told once, that it was
    recreated in its place, and nobody is ended.
    """
    chance = random.Random(seed)
    edge = edges(namespaces=NAMESPACES, queue_bytes_max=BOUND)
    quick = edge.open("quick")
    channels = [Channel(edge, name, quick) for name in ("drop:a", "last:a", "drop:b")]
    kinds = itertools.cycle((Client, WsClient, TextClient))
    slow = [edge.open(f"slow{n}", next(kinds), receive_bytes=4096) for n in range(3)]
    heard = {(one, channel.name): Heard() for one in slow for channel in channels}
    for one in slow:
        for channel in channels:
            edge.join_known(one, channel.name)
    ahead = {one: 0 for one in slow}

    def read(one: Client) -> None:
        frame = one.frame()
        heard[one, frame[1]].take(frame)

    for _ in range(120):
        channel = chance.choice(channels)
        channel.say(chance.choice((10, 1000, 20_000)), chance.choice((1, 1, 5, 20)))
        if chance.random() < 0.2:
            channel.recreate(chance.randrange(channel.offset))
        one = chance.choice(slow)
        for _ in range(chance.randrange(0, 12)):
            if not all(heard[one, channel.name].has_all(channel) for channel in channels):
                read(one)
                ahead[one] += 1
    edge.put(notes.AUDIT, request=7)
    note = edge.note(notes.AUDITED)
    assert unpack(note[7], note[8])["findings"] == []
    for one in slow:
        while not all(heard[one, channel.name].has_all(channel) for channel in channels):
            read(one)
    assert edge.counter("slow_consumers") == 0
    assert edge.counter("passed_over") > 0
    wait_for(lambda: edge.live("lag") == 0, "nobody is behind")
