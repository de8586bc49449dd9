"""The shard map: a worker with several routers says to each what is its own, and shards move between them."""

import collections
import random
import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from core import notes, records
from core.shards import SHARD_COUNT, shard
from tests.core import wire
from tests.core.edge_harness import (
    DEADLINE_S,
    EPOCH,
    ERROR,
    JOIN,
    LEAVE,
    MESSAGE,
    PUBLISH,
    REPLY,
    WELCOME,
    Client,
    Edge,
    Router,
    frame_of,
    wait_for,
)


@pytest.fixture(params=["ipc", "tcp"])
def bus(request: pytest.FixtureRequest) -> str:
    side: str = request.param
    return side


@pytest.fixture
def edge(edges: Callable[..., Edge]) -> Edge:
    """A worker that is linked to two routers, of which each leads every second shard."""
    return edges(routers=2)


def channel(of: int, routers: int = 2, kind: str = "group") -> str:
    """A channel of a shard that router `of` leads."""
    return next(name for name in (f"{kind}:{at}" for at in range(1000)) if shard(name.encode()) % routers == of)


def session_of(of: int, number: int = 0, routers: int = 2) -> bytes:
    ids = (at.to_bytes(16, "big") for at in range(1, 10_000))
    return [one for one in ids if shard(one) % routers == of][number]


def opened(edge: Edge, user: str, session: bytes, fence: int = 0) -> Client:
    """A client whose session is open."""
    client = edge.client()
    client.send([0, 1, {}])
    client.conn, client.session = edge.note(notes.FRAME)[2], session
    edge.put(
        notes.OPEN,
        client.conn,
        1,
        session=session,
        text=b"\x93\x01\x01\x81" + msgpack.packb("channels"),
        extra=msgpack.packb([[f"user:{user}"]]),
    )
    own = edge.router_of(f"user:{user}")
    own.send(wire.subscribed(own.expect(records.SUBSCRIBE)["channel"], EPOCH, 0))
    one = edge.router_of(session).expect(records.OPEN)
    edge.router_of(session).send(wire.opened(client.conn, one["seq"], fence=fence))
    assert client.frame() == [WELCOME, 1, {"channels": {f"user:{user}": [EPOCH, 0, "live"]}}]
    return client


def joined(edge: Edge, client: Client, name: str, offset: int = 0) -> int:
    number = client.request(JOIN, name)
    router = edge.router_of(name)
    one = router.expect(records.SUBSCRIBE)
    assert one["name"] == name.encode()
    router.send(wire.subscribed(one["channel"], EPOCH, offset))
    assert client.frame() == [REPLY, number, {"epoch": EPOCH, "offset": offset, "outcome": "live"}]
    handle: int = one["channel"]
    return handle


def evenly(routers: int) -> bytes:
    return bytes(number % routers for number in range(SHARD_COUNT))


def with_shard(places: bytes, number: int, place: int) -> bytes:
    return places[:number] + bytes([place]) + places[number + 1 :]


def test_each_router_hears_what_belongs_to_its_shards_alone(edge: Edge) -> None:
    alice = opened(edge, "alice", session_of(0))
    for of in (0, 1):
        name = channel(of)
        handle = joined(edge, alice, name)
        number = alice.request(PUBLISH, name, "x")
        one = edge.routers[of].expect(records.PUBLISH)
        assert one["name"] == name.encode()
        edge.routers[of].send(
            wire.message(handle, EPOCH, 1, frame_of(name, 1, "x")), wire.published(one["seq"], EPOCH, 1)
        )
        assert [frame[0] for frame in alice.frames(2)] == [REPLY, MESSAGE]
        asked = edge.ask(alice, 11, notes.HISTORY, name, first=10)
        one = edge.routers[of].expect(records.HISTORY)
        edge.routers[of].send(wire.reply(one["seq"], msgpack.packb({"messages": []})))
        assert alice.frame() == [REPLY, asked, {"messages": []}]
    alice.send([LEAVE, 5, channel(1)])
    assert alice.frame() == [REPLY, 5, {}]
    assert edge.routers[1].expect(records.UNSUBSCRIBE)["name"] == channel(1).encode()
    assert number


def test_what_a_session_did_goes_to_its_router_and_to_the_channels(edge: Edge) -> None:
    alice = opened(edge, "alice", session_of(0), fence=77)
    edge.router_of("user:alice").state()
    if edge.router_of("user:alice") is not edge.routers[0]:
        edge.routers[0].state()
    name = channel(1)
    handle = joined(edge, alice, name, offset=5)
    for router in edge.routers:  # where it is stored, and where who is there is known
        told = router.state()
        assert (told["what"], told["name"], told["position"]) == (records.JOINED, name.encode(), (EPOCH, 5))
        assert (told["session"], told["fence"], told["user"]) == (alice.session, 77, b"alice")
    edge.routers[1].send(wire.message(handle, EPOCH, 6, frame_of(name, 6, "x")))
    assert alice.frame()[2] == 6
    alice.send([10, {name: 6}])
    told = edge.routers[1].state()  # the channel's router knows the message's epoch
    assert (told["what"], told["position"][1]) == (records.ACKED, 6)
    edge.routers[1].send(wire.acked_at(told, (3, 6)))
    told = edge.routers[0].state()
    assert (told["what"], told["name"], told["position"]) == (records.STANDS, name.encode(), (3, 6))
    alice.send([LEAVE, 5, name])
    assert alice.frame() == [REPLY, 5, {}]
    assert [router.state()["what"] for router in edge.routers] == [records.LEFT] * 2


def test_the_end_of_a_session_is_told_to_each_router_of_its_channels(edge: Edge) -> None:
    alice = opened(edge, "alice", session_of(0), fence=77)
    joined(edge, alice, channel(1))
    alice.close()
    ended = []
    for router, kind in zip(edge.routers, (records.CLOSE, records.GONE), strict=True):
        while (one := router.take())["kind"] == records.UNSUBSCRIBE:
            pass
        ended.append((one["kind"], one["session"], one["conn"], one["fence"]))
        assert one["kind"] == kind
    assert ended[0][1:] == ended[1][1:] == (alice.session, alice.conn, 77)
    edge.wait_empty()


def test_a_lost_router_concerns_its_own_channels_alone(edges: Callable[..., Edge]) -> None:
    edge = edges(routers=2, bus="ipc")  # libzmq tells of no end: both links would be silent for as long
    alice, bob = opened(edge, "alice", session_of(0)), opened(edge, "bob", session_of(1))
    handles = [joined(edge, alice, channel(of)) for of in (0, 1)]
    edge.routers[1].restart()
    wait_for(lambda: not edge.stats.read()["gauges"]["linked"], "the end of a link")
    kept = alice.request(PUBLISH, channel(1), "kept")
    number = alice.request(PUBLISH, channel(0), "x")
    one = edge.routers[0].expect(records.PUBLISH)
    edge.routers[0].send(wire.published(one["seq"], EPOCH, 1))
    assert alice.frame() == [REPLY, number, {"epoch": EPOCH, "offset": 1}]
    edge.routers[1].heartbeat()
    said = edge.link(EPOCH + 1, edge.routers[1])
    own = [one for one in said if one["kind"] == records.OPEN]
    assert [(one["session"], one["aux"]) for one in own] == [
        (bob.session, records.OPENS_TOLD),  # what the former router may not have stored yet
        (bob.session, records.AGAIN),
    ]
    names = {one["name"] for one in said if one["kind"] == records.SUBSCRIBE}
    users = {f"user:{user}" for user in ("alice", "bob") if shard(f"user:{user}".encode()) % 2}
    assert names == {name.encode() for name in {channel(1), *users}}
    one = edge.routers[1].expect(records.PUBLISH)
    assert one["data"] == msgpack.packb("kept")
    edge.routers[1].send(
        wire.subscribed(handles[1], EPOCH + 1, 0),
        wire.message(handles[1], EPOCH + 1, 1, frame_of(channel(1), 1, "kept")),
        wire.published(one["seq"], EPOCH + 1, 1),
    )
    assert alice.frame() == [REPLY, kept, {"epoch": EPOCH + 1, "offset": 1}]
    assert alice.frame()[3] == "kept"
    assert not edge.routers[0]._records  # nobody said anything again there


def test_a_shard_that_moves_is_said_anew_and_its_former_router_is_not_heard(edge: Edge) -> None:
    alice = opened(edge, "alice", session_of(0))
    name = channel(0)
    handle = joined(edge, alice, name, offset=3)
    waits = alice.request(PUBLISH, name, "waits")
    seq = edge.routers[0].expect(records.PUBLISH)["seq"]
    edge.loop.shards(2, with_shard(evenly(2), shard(name.encode()), 1), bytes([0, 1]))
    edge.loop.flush()
    assert edge.routers[0].expect(records.UNSUBSCRIBE)["channel"] == handle
    one = edge.routers[1].expect(records.SHARD)
    assert (one["shard"], one["version"]) == (shard(name.encode()), 2)
    one = edge.routers[1].expect(records.SUBSCRIBE)
    assert (one["name"], one["epoch"], one["offset"]) == (name.encode(), EPOCH, 3)
    again = edge.routers[1].expect(records.PUBLISH)
    assert (again["seq"], again["again"]) == (seq, True)
    edge.routers[0].send(wire.message(handle, EPOCH, 4, frame_of(name, 4, "former")))
    edge.routers[0].heartbeat()
    edge.routers[1].send(
        wire.subscribed(handle, EPOCH + 1, 3),
        wire.message(handle, EPOCH + 1, 4, frame_of(name, 4, "waits")),
        wire.published(seq, EPOCH + 1, 4),
    )
    assert alice.frame() == [REPLY, waits, {"epoch": EPOCH + 1, "offset": 4}]
    assert alice.frame()[3] == "waits"
    assert edge.counter("shards_moved") == 1


def test_a_router_that_does_not_lead_yet_is_told_everything_again_in_order(edge: Edge) -> None:
    alice = opened(edge, "alice", session_of(0))
    name = channel(1)
    handle = joined(edge, alice, name)
    numbers = [alice.request(PUBLISH, name, 0)]
    first = edge.routers[1].expect(records.PUBLISH)
    edge.routers[1].send(wire.moved(shard(name.encode())))
    edge.routers[1].heartbeat()
    numbers.append(alice.request(PUBLISH, name, 1))  # not before the first
    for asked in range(2):
        while edge.routers[1].take()["kind"] != records.SHARD:
            pass
        assert edge.routers[1].expect(records.SUBSCRIBE)["channel"] == handle
        if asked == 0:
            edge.routers[1].send(wire.moved(shard(name.encode())))
    said = [edge.routers[1].expect(records.PUBLISH) for _ in range(2)]
    assert [one["data"] for one in said] == [msgpack.packb(at) for at in range(2)]
    assert said[0]["seq"] == first["seq"]
    edge.routers[1].send(*(wire.published(one["seq"], EPOCH, at + 1) for at, one in enumerate(said)))
    assert [frame[:2] for frame in alice.frames(2)] == [[REPLY, number] for number in numbers]


def test_what_nobody_leads_is_unavailable_at_its_deadline(edges: Callable[..., Edge]) -> None:
    edge = edges(routers=2, request_timeout_ms=200)
    alice = opened(edge, "alice", session_of(0))
    name = channel(1)
    joined(edge, alice, name)
    number = alice.request(PUBLISH, name, "x")
    edge.routers[1].expect(records.PUBLISH)
    edge.routers[1].send(wire.moved(shard(name.encode())))
    assert alice.frame()[:2] == [ERROR, number]


def test_links_come_and_go_with_the_map(edge: Edge, bus: str) -> None:
    alice = opened(edge, "alice", session_of(0))
    name = channel(1)
    handle = joined(edge, alice, name)
    edge.routers.append(Router(bus))
    edge.loop.link_open(2, edge.routers[2].endpoint)
    edge.loop.shards(2, bytes(0 if place == 0 else 2 for place in evenly(2)), bytes([0, 2]))
    edge.loop.flush()
    assert edge.note(notes.LINK_CLOSED)[4] == 1
    edge.routers[2].heartbeat()
    said = edge.link(EPOCH + 1, edge.routers[2])
    assert name.encode() in {one["name"] for one in said if one["kind"] == records.SUBSCRIBE}
    edge.routers[2].send(
        wire.subscribed(handle, EPOCH + 1, 0), wire.message(handle, EPOCH + 1, 1, frame_of(name, 1, "x"))
    )
    assert alice.frame()[3] == "x"
    assert edge.stats.read()["gauges"]["linked"] == 1
    edge.routers.append(Router(bus))
    edge.loop.link_open(1, edge.routers[3].endpoint)  # its place is free again
    edge.loop.shards(3, bytes([0]) * 255 + bytes([1]), bytes([0, 1]))
    edge.loop.flush()
    assert edge.note(notes.LINK_CLOSED)[4] == 2
    edge.routers[3].heartbeat()


def test_a_map_without_a_link_for_each_shard_is_refused(edge: Edge) -> None:
    for places, links in ((b"\0" * 255, b"\0"), (b"\1" * 256, b"\0"), (b"\x40" * 256, b"\x40")):
        with pytest.raises(ValueError, match="a map has 256 places"):
            edge.loop.shards(2, places, links)
    with pytest.raises(ValueError, match="link 64"):
        edge.loop.link_open(64, "ipc:///nowhere")


# ------------------------------------------------------------------------------------------------------- the model


class Log:
    """What the routers of the model have in common, as they have it in the log."""

    def __init__(self) -> None:
        self.epochs = [EPOCH] * SHARD_COUNT
        self.leaders = [number % 3 for number in range(SHARD_COUNT)]
        self.messages: dict[str, list[tuple[int, Any]]] = collections.defaultdict(list)
        self.origins: dict[int, int] = {}
        self.version = 1
        self.since = [0] * SHARD_COUNT


class ModelRouter:
    """A router as core/leading.pxd and core/sequencer.pxd say it is, in a few lines."""

    def __init__(self, number: int, router: Router, log: Log) -> None:
        self.number, self.router, self.log = number, router, log
        self.moved: set[int] = set()
        self.due: set[int] = set()
        self.routes: dict[str, int] = {}
        self.linked = False

    def work(self, wait_ms: int = 0) -> bool:
        """One batch of the worker."""
        if not self.router.socket.poll(wait_ms):
            return False
        self.router.identity, batch = self.router.socket.recv_multipart()
        said = b"".join(answer for one in wire.unpack(batch) for answer in self.record(one))
        if said:
            self.router.send(said)
        return True

    def record(self, one: wire.Record) -> list[bytes]:
        kind = one["kind"]
        if kind == records.LINK:
            return [wire.linked(EPOCH, ask=not self.linked)]
        if kind == records.BEGIN:
            self.linked, self.moved, self.routes = True, set(), {}
            self.due = {number for number in range(SHARD_COUNT) if self.log.since[number]}
            return []
        if kind == records.UNSUBSCRIBE:
            self.routes.pop(one["name"].decode(), None)
            return []
        if kind == records.SHARD:
            self.moved.discard(one["shard"])
            (self.due.add if one["version"] < self.log.since[one["shard"]] else self.due.discard)(one["shard"])
            return self._elsewhere(one["shard"])
        if kind not in (records.SUBSCRIBE, records.PUBLISH, records.OPEN):
            return []
        number = shard(one["session"] if kind == records.OPEN else one["name"])
        if number in self.moved | self.due or self.log.leaders[number] != self.number:
            return self._elsewhere(number)
        if kind == records.OPEN:
            return [wire.opened(one["conn"], one["seq"])] if one["seq"] else []
        return self._subscribe(one) if kind == records.SUBSCRIBE else self._publish(one)

    def _elsewhere(self, number: int) -> list[bytes]:
        if number in self.moved or (self.log.leaders[number] == self.number and number not in self.due):
            return []
        self.due.discard(number)
        self.moved.add(number)
        return [wire.moved(number)]

    def _subscribe(self, one: wire.Record) -> list[bytes]:
        name = one["name"].decode()
        self.routes[name] = one["channel"]
        kept = self.log.messages[name]
        missed = range(one["offset"], len(kept)) if one["epoch"] else range(0)
        position = self.log.epochs[shard(one["name"])], len(kept)
        return [self._message(name, at) for at in missed] + [wire.subscribed(one["channel"], *position)]

    def _message(self, name: str, at: int) -> bytes:
        epoch, data = self.log.messages[name][at]
        return wire.message(self.routes[name], epoch, at + 1, frame_of(name, at + 1, msgpack.unpackb(data)))

    def _publish(self, one: wire.Record) -> list[bytes]:
        name, epoch = one["name"].decode(), self.log.epochs[shard(one["name"])]
        if one["again"] and one["seq"] in self.log.origins:
            return [wire.published(one["seq"], epoch, self.log.origins[one["seq"]])]
        self.log.messages[name].append((epoch, one["data"]))
        offset = self.log.origins[one["seq"]] = len(self.log.messages[name])
        said = [self._message(name, offset - 1)] if name in self.routes else []
        return [*said, wire.published(one["seq"], epoch, offset)]


class Model:
    """A worker with one client, three routers, and shards that move at random between the steps of all of them."""

    def __init__(self, edge: Edge, seed: int) -> None:
        self.edge, self.random, self.log = edge, random.Random(seed), Log()
        self.routers = [ModelRouter(number, router, self.log) for number, router in enumerate(edge.routers)]
        self.names = [channel(of, 3) for of in range(3)] + [f"group:more{at}" for at in range(3)]
        self.sent = 0
        self.published: dict[str, list[int]] = {name: [] for name in self.names}
        self.answered: set[int] = set()
        self.got: dict[str, list[int]] = {name: [] for name in self.names}

    def work(self) -> None:
        while any([router.work() for router in self.routers]):
            pass

    def start(self, client: Client) -> None:
        self.client = client
        for router in self.routers:
            router.router.send(wire.linked(EPOCH, ask=True))
            while not router.linked:
                router.work(100)
        for _ in self.routers:
            self.edge.note(notes.LINKED)
        client.send([0, 1, {}])
        client.conn = self.edge.note(notes.FRAME)[2]
        text = b"\x93\x01\x01\x81" + msgpack.packb("channels")
        extra = msgpack.packb([["user:a"]])
        self.edge.put(notes.OPEN, client.conn, 1, session=b"s" * 16, text=text, extra=extra)
        self.frames_until(lambda frame: frame[0] == WELCOME)
        for name in self.names:
            number = client.request(JOIN, name)
            self.frames_until(lambda frame, number=number: frame[:2] == [REPLY, number])  # type: ignore[misc]

    def frames_until(self, found: Callable[[Any], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        self.client.socket.settimeout(0.01)
        while True:
            assert time.monotonic() < end, "the client hears nothing"
            self.work()
            try:
                frame = self.client.frame()
            except TimeoutError:
                continue
            if found(frame):
                return
            self.take(frame)

    def settle(self) -> None:
        """Until everything is answered and delivered."""

        def taken(frame: Any) -> bool:
            self.take(frame)
            return True

        while len(self.answered) < self.sent or sum(map(len, self.got.values())) < self.sent:
            self.frames_until(taken)

    def take(self, frame: Any) -> None:
        if frame[0] == MESSAGE:
            assert frame[2] == len(self.got[frame[1]]) + 1, "a gap or a repetition"
            self.got[frame[1]].append(frame[3])
        else:
            assert frame[0] == REPLY, frame
            self.answered.add(frame[1])

    def step(self) -> None:
        what = self.random.randrange(10)
        if what < 4:
            name = self.random.choice(self.names)
            self.client.request(PUBLISH, name, self.sent)
            self.published[name].append(self.sent)
            self.sent += 1
        elif what < 7:
            self.random.choice(self.routers).work(self.random.randrange(2))
        elif what == 7:
            self.lead(self.random.choice(self.names), self.random.randrange(3))
        elif what == 8:
            self.say_map()

    def lead(self, name: str, router: int) -> None:
        number = shard(name.encode())
        if self.log.leaders[number] != router:
            self.log.leaders[number] = router
            self.log.epochs[number] += 1
            self.log.version += 1
            self.log.since[number] = self.log.version
            if number not in self.routers[router].moved:
                self.routers[router].due.add(number)

    def say_map(self) -> None:
        self.edge.loop.shards(self.log.version, bytes(self.log.leaders), bytes(range(3)))
        self.edge.loop.flush()


@pytest.mark.parametrize("seed", range(12))
def test_messages_come_once_and_in_order_however_shards_move(edges: Callable[..., Edge], seed: int) -> None:
    edge = edges(routers=3, link=False)
    model = Model(edge, seed)
    model.start(edge.client())
    for _ in range(300):
        model.step()
    model.say_map()
    model.settle()
    assert model.got == model.published, f"seed {seed}"  # the client's own order, in each channel
    assert not any(edge.counter(f"gaps_{why}") for why in ("trimmed", "lost", "router_lost", "reset"))
