"""A peer of the router that publishes, bans and asks, and has no members: what the admin API speaks through.

It links like a worker that holds nothing. A publish is answered by its position or by a typed error; when the router
is replaced, what waits for its answer is said again to the next one, within its deadline.
"""

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack
import msgspec
import zmq

from core import codes, records
from core.ban_list import Standing, Wish, told_unpacked, wish_packed
from core.descriptors import is_bus
from core.namespace_spec import BUILT_IN, NamespaceSpec
from core.owned import ACCOUNT, Held
from core.shards import COUNT_MAX, Shards

LINK_PERIOD_S = 1.0
SILENT_S = 4.0
DRAIN_MAX = 128
# As those of workers (core/bus.pxd): a stream over a network that is cut ends, and is tried again, as soon.
HEARTBEAT_MS = 500
STREAM_SILENT_MS = 1500
CONNECT_MS = 1000
GAP_REASONS = ("", "trimmed", "lost", "router_lost", "slow_consumer")  # by GapReason of core/records.pxd
FOREIGN = (
    f"the router speaks version {{}} of the link and this program version {records.VERSION}: stop the node and start it"
    " again, so that all of it is of one version"
)


class RouterError(Exception):
    """The router did not do what was asked."""


class Unavailable(RouterError):
    """The router is away or did not answer in time; the same publish may be tried again under its key."""


class Refused(RouterError):
    """The router refused what was asked; `code_name` is from the table of codes."""

    def __init__(self, code_name: str) -> None:
        super().__init__(f"the router refused: {code_name}")
        self.code_name = code_name


class BanRefused(RouterError):
    """The router does not ban, or ends no ban; `why` is one word of `router.bans`."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the router refused the ban: {why}")
        self.why = why


class ChannelState(NamedTuple):
    """Where a channel stands, and its user in it."""

    position: tuple[int, int]
    cursor: tuple[int, int] | None
    """The highest that any session of the user acknowledged, (0, 0): nothing; None: the router keeps no cursors."""


class Presence(NamedTuple):
    """How many are in a channel, as the router knows it."""

    users: int
    sessions: int


class Oldest(NamedTuple):
    """The oldest message that is kept, and when it came by the wall clock."""

    position: tuple[int, int]
    time_ms: int


class Survey(NamedTuple):
    """How a channel stands."""

    known: bool
    """Whether the router knows its position without asking the log; without it, all that follows is of no meaning."""
    loaded: bool
    """Whether it has all that the log keeps of it in memory, or knows that there is nothing more."""
    position: tuple[int, int]
    waiting: int
    """Messages that have a position beyond this one and are on their way to the log."""
    kept: int
    kept_bytes: int
    oldest: Oldest | None
    workers: int
    """How many workers have members."""
    presence: Presence | None
    """None: its namespace keeps none."""


class StoredSession(NamedTuple):
    """What is stored of a session."""

    channel_count: int
    """All of them."""
    channels: dict[str, tuple[int, int]]
    """The first of them, each with the position that the client acknowledged or joined at."""
    user: str = ""


class Missed(NamedTuple):
    """What came in a channel after a position, or the first part of it."""

    outcome: str
    """As the protocol has it: live, replayed, gap or reset."""
    position: tuple[int, int]
    """The channel's now."""
    gap: tuple[int, int, str] | None
    """From and to which offset nothing is kept, and why."""
    messages: list[tuple[int, bytes]]
    """Offset and MESSAGE frame, in MessagePack."""
    last: tuple[int, int]
    """To go on from; equal to `position`: this was all."""


class _Asked(msgspec.Struct):
    """A question that has no answer yet."""

    say: Callable[[int], None]
    """Writes it under its number, as often as it has to be said."""
    told: Callable[[dict[str, Any]], Any]
    """What the record of the answer tells; raises RouterError."""
    answer: asyncio.Future[Any]


class _Waiting(msgspec.Struct):
    """A publish that has no answer yet."""

    channel: bytes
    data: bytes
    sender: bytes
    key: bytes
    answer: "asyncio.Future[tuple[int, int]]"
    said: bool = False
    """It went to a router: said again, it may have been ordered already."""


class RouterClient:
    """One link to a router, owned by the event loop that `start` runs in."""

    def __init__(
        self,
        endpoint: str,
        name: str,
        *,
        namespaces: Sequence[NamespaceSpec] = BUILT_IN,
        shards: int = COUNT_MAX,
        server_key: str = "",
        public_key: str = "",
        secret_key: str = "",
    ) -> None:
        """Make it for a router's endpoint, where it will be known under `name`.

        Args:
            endpoint: ipc:// or tcp://.
            name: the node's.
            namespaces: as the router has them.
            shards: how many there are.
            server_key: the router's public CURVE key, in Z85; empty: the link is not encrypted.
            public_key: of the cluster's pair.
            secret_key: likewise.
        """
        self._endpoint = endpoint
        self._keys = (server_key.encode(), public_key.encode(), secret_key.encode())
        self._shards = Shards(namespaces, shards)
        self.led: dict[int, int] = {}
        """Shards that the router leads, as far as it said so, each with its epoch."""
        # A router knows a publish that is said again by its peer's start and its seq: no two peers may have the same.
        self.start_number = int.from_bytes(os.urandom(7)) + 1
        self._identity = f"{name}-{os.urandom(6).hex()}/0/1".encode()
        self._writer = records.BatchWriter()
        self._waiting: dict[int, _Waiting] = {}  # by seq, in the order in which they were published
        self._asking: dict[int, _Asked] = {}  # by seq
        self._seq = 0
        self._foreign = 0  # the version of the router's link, if it is not ours
        self._bans: dict[str, Standing] | None = None
        self._banning: dict[int, asyncio.Future[Standing]] = {}
        self._heard = 0.0
        self._linked = asyncio.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._fd = -1
        self._beat: asyncio.TimerHandle | None = None
        self._held: Held | None = None

    @property
    def linked(self) -> bool:
        """Whether the router knows this peer and was heard lately."""
        return self._linked.is_set() and time.monotonic() - self._heard < SILENT_S

    async def start(self) -> None:
        """Connect; the link comes up by itself, now or when the router does."""
        self._held = ACCOUNT.hold("handle", "the link to the router", object_=self)
        ACCOUNT.explain(functools.partial(is_bus, endpoint=self._endpoint))
        self._context = zmq.Context(1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, self._identity)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, "[" in self._endpoint)  # as core/bus.pyx does
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        if self._endpoint.startswith("tcp://"):
            self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, STREAM_SILENT_MS)
            self._socket.setsockopt(zmq.TCP_MAXRT, HEARTBEAT_MS + STREAM_SILENT_MS)
            self._socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
            self._socket.setsockopt(zmq.HANDSHAKE_IVL, CONNECT_MS)
        if self._keys[0]:
            self._socket.curve_serverkey, self._socket.curve_publickey, self._socket.curve_secretkey = self._keys
        self._socket.connect(self._endpoint)
        fd = self._socket.getsockopt(zmq.FD)
        assert isinstance(fd, int)
        self._fd = fd
        asyncio.get_running_loop().add_reader(self._fd, self._receive)
        self._heartbeat()

    async def close(self) -> None:
        """End the link; what is under way is unavailable."""
        if self._socket is None or self._context is None:
            return
        if self._beat is not None:
            self._beat.cancel()
        asyncio.get_running_loop().remove_reader(self._fd)
        self._writer.link(records.BYE, self.start_number, 0)
        self._send()
        self._socket.close()
        self._context.term()
        self._socket = self._context = None
        if self._held is not None:
            self._held.close()
        self._lose()

    async def publish(
        self, channel: str, data: bytes, *, key: str | None = None, sender: str, deadline_s: float
    ) -> tuple[int, int]:
        """Publish MessagePack `data`.

        Args:
            channel: namespace:id, at most 255 bytes.
            data: one MessagePack value.
            key: idempotency key, at most 64 bytes.
            sender: what members see as `from`.
            deadline_s: how long to wait for the link and the answer.

        Returns:
            (epoch, offset) of the message.

        Raises:
            Unavailable: the router is away or silent.
            Refused: it does not take this message.
        """
        seq = 0
        try:
            async with asyncio.timeout(deadline_s):
                await self._linked.wait()
                seq = self._seq = self._seq % 0xFFFFFFFF + 1
                one = self._waiting[seq] = _Waiting(
                    channel.encode(),
                    data,
                    sender.encode(),
                    (key or "").encode(),
                    asyncio.get_running_loop().create_future(),
                )
                self._say(seq, one)
                self._send()
                return await one.answer
        except TimeoutError:
            raise self._late() from None
        finally:
            self._waiting.pop(seq, None)

    def shard_of(self, channel: bytes) -> int:
        """The shard of a channel."""
        return self._shards.of_channel(channel)

    def _say(self, seq: int, one: _Waiting) -> None:
        shard = self.shard_of(one.channel)
        self._writer.publish(seq, one.channel, one.data, one.sender, one.key, again=one.said, shard=shard)
        one.said = True

    async def ban(self, user: str, until_ms: int, reason: str, *, deadline_s: float) -> Standing:
        """Ban a user, or with a time that is over end the ban; it is stored when this returns.

        Raises:
            Unavailable: the router is away or silent; what was asked may have happened, and may be asked again.
            BanRefused: it does not do that.
        """
        number = int.from_bytes(os.urandom(6))
        try:
            async with asyncio.timeout(deadline_s):
                await self._linked.wait()
                future: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
                self._banning[number] = future
                self._writer.body(records.BAN, wish_packed(Wish(number, user, until_ms, reason)))
                self._send()
                return await future
        except TimeoutError:
            raise self._late() from None
        finally:
            self._banning.pop(number, None)

    async def channels(self, names: Sequence[str], *, deadline_s: float) -> list[ChannelState]:
        """Where channels of a user stand, and the user in them.

        Raises:
            Unavailable: the router is away or silent, or cannot read the cursors now.
            Refused: it has too much to do.
        """
        flags = records.OUTCOME_ALONE | records.FROM_CURSOR

        def say(name: bytes) -> Callable[[int], None]:
            shard = self.shard_of(name)
            return lambda seq: self._writer.catchup(seq, name, 0, 0, 0, flags=flags, shard=shard)

        return await self._ask([say(name.encode()) for name in names], _state, deadline_s)

    async def survey(self, names: Sequence[str], depth: int, *, deadline_s: float) -> list[Survey]:
        """How channels stand.

        Args:
            names: of the channels.
            depth: what is read of the log before: `records.AS_IS` (nothing), `POSITION` or `MESSAGES`.
            deadline_s: how long to wait for the link and the answers.

        Raises:
            Unavailable: the router is away or silent, or cannot read its log now.
            Refused: a channel's namespace is not known, or the router has too much to do.
        """

        def say(name: bytes) -> Callable[[int], None]:
            shard = self.shard_of(name)
            return lambda seq: self._writer.history(records.SURVEY, seq, name, limit=depth, shard=shard)

        return await self._ask([say(name.encode()) for name in names], _survey, deadline_s)

    async def sessions(self, ids: Sequence[bytes], *, deadline_s: float) -> list[StoredSession | None] | None:
        """What is stored of sessions; None of one: nothing is. None at all: this router stores none.

        Raises:
            Unavailable: the router is away or silent, or cannot read its store now.
            Refused: it has too much to do.
        """
        body = b"".join(ids)
        try:
            (found,) = await self._ask(
                [lambda seq: self._writer.body(records.SESSIONS, body, seq)], _stored, deadline_s
            )
        except Refused as error:
            if error.code_name == "not_allowed":
                return None
            raise
        return list(found)

    async def missed(
        self, asked: Sequence[tuple[str, tuple[int, int]]], *, bytes_max: int, deadline_s: float
    ) -> list[Missed]:
        """What came in channels after positions, or the first part of it.

        Args:
            asked: channels of known namespaces, each with the position that is held.
            bytes_max: of the messages of each; at least one is told. 0: the outcome alone.
            deadline_s: how long to wait for the link and the answers.

        Raises RouterError as `survey` does.
        """
        flags = records.FROM_STORE | (0 if bytes_max else records.OUTCOME_ALONE)

        def say(name: bytes, since: tuple[int, int]) -> Callable[[int], None]:
            shard = self.shard_of(name)
            more = {"flags": flags, "bytes_max": bytes_max, "shard": shard}
            return lambda seq: self._writer.catchup(seq, name, 0, *since, **more)

        return await self._ask([say(name.encode(), since) for name, since in asked], _missed, deadline_s)

    async def _ask(
        self, says: Sequence[Callable[[int], None]], told: Callable[[dict[str, Any]], Any], deadline_s: float
    ) -> list[Any]:
        """Ask all together; the answers in the same order."""
        asked: list[int] = []
        try:
            async with asyncio.timeout(deadline_s):
                await self._linked.wait()
                futures = []
                for say in says:
                    seq = self._seq = self._seq % 0xFFFFFFFF + 1
                    asked.append(seq)
                    futures.append(asyncio.get_running_loop().create_future())
                    self._asking[seq] = _Asked(say, told, futures[-1])
                    say(seq)
                self._send()
                return await asyncio.gather(*futures)
        except TimeoutError:
            raise self._late() from None
        finally:
            for seq in asked:
                del self._asking[seq]

    def _on_answer(self, record: dict[str, Any]) -> None:
        asked = self._asking.get(record["seq"])
        if asked is None or asked.answer.done():
            return
        try:
            asked.answer.set_result(asked.told(record))
        except RouterError as error:
            asked.answer.set_exception(error)

    def bans(self) -> Mapping[str, Standing]:
        """The bans, as the router told them.

        Raises:
            Unavailable: it has not yet, or is away.
        """
        if self._bans is None or not self.linked:
            raise Unavailable("there is no link to the router")
        return self._bans

    def _on_bans(self, record: dict[str, Any]) -> None:
        told = told_unpacked(record["body"])
        if record["aux"] or self._bans is None:
            self._bans = {}
        self._bans |= {one.user: one for one in told.standings}
        future = self._banning.get(told.ask)
        if future is None or future.done():
            return
        if told.refusal:
            future.set_exception(BanRefused(told.refusal))
        else:
            future.set_result(told.standings[0])

    def _send(self) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(zmq.Again):  # a full link: the deadlines of those who wait see to it
            self._socket.send(self._writer.take(), zmq.NOBLOCK)
        # ZMQ_FD is edge-triggered: an event may have been used up by this send.
        asyncio.get_running_loop().call_soon(self._receive)

    def _heartbeat(self) -> None:
        self._writer.link(records.LINK, self.start_number, 0)
        self._send()
        self._beat = asyncio.get_running_loop().call_later(LINK_PERIOD_S, self._heartbeat)

    def _receive(self) -> None:
        """Take what is there, at most DRAIN_MAX batches so that the loop goes on."""
        for _ in range(DRAIN_MAX):
            if self._socket is None:
                return
            try:
                batch = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._heard = time.monotonic()
            asked = False
            leads: dict[int, int] = {}
            for record in records.unpack(batch):
                if record["kind"] == records.LEADS and record["aux"] & records.FEEDS:
                    continue  # what it does not lead is asked of who does
                if record["kind"] == records.LEADS:
                    leads[record["shard"]] = record["epoch"]
                else:
                    asked = self._on_record(record) or asked
            for shard in [shard for shard, epoch in leads.items() if epoch == 0]:  # led there no more
                self.led.pop(shard, None)
                del leads[shard]
            if asked or leads:
                self._begin(leads, asked=asked)
        asyncio.get_running_loop().call_soon(self._receive)

    def _late(self) -> Unavailable:
        """Why there was no answer in time."""
        return Unavailable(FOREIGN.format(self._foreign) if self._foreign else "the router did not answer in time")

    def _begin(self, leads: Mapping[int, int], *, asked: bool) -> None:
        """The router asked for everything, or leads some shards from now on: nothing is held of them, but what waits
        for its answer is said again.
        """
        if asked:
            self.led.clear()
            self._lose_bans()
            self._writer.link(records.BEGIN, self.start_number, 0)
        self.led |= leads
        self._writer.shards(leads)
        self._writer.shards(leads, said=True)
        if asked:
            self._writer.link(records.END, self.start_number, 0)
        for seq, one in self._waiting.items():
            if not one.answer.done() and (asked or self.shard_of(one.channel) in leads):
                self._say(seq, one)
        for seq, question in self._asking.items():
            if not question.answer.done():
                question.say(seq)
        self._send()
        if asked:
            self._linked.set()

    def _on_record(self, record: dict[str, Any]) -> bool:
        """Act on a record; True: the router wants to be told everything."""
        if record["kind"] == records.LINKED and record["version"] != records.VERSION:
            self._foreign = record["version"]
        elif record["kind"] == records.LINKED and record["aux"]:
            self._foreign = 0
            return True
        elif record["kind"] == records.PUBLISHED:
            self._answer(self._waiting.get(record["seq"]), record)
        elif record["kind"] == records.BANS:
            self._on_bans(record)
        elif record["kind"] in (records.CAUGHT, records.REPLY):
            self._on_answer(record)
        return False

    @staticmethod
    def _answer(one: _Waiting | None, record: dict[str, int]) -> None:
        if one is None or one.answer.done():
            return
        if not record["aux"]:
            one.answer.set_result((record["epoch"], record["offset"]))
        elif record["aux"] == codes.Code.UNAVAILABLE:
            one.answer.set_exception(Unavailable("the router cannot keep the message now"))
        else:
            one.answer.set_exception(Refused(codes.NAMES.get(record["aux"], "internal")))

    def _lose(self) -> None:
        waiting: list[asyncio.Future[Any]] = [one.answer for one in self._waiting.values()]
        waiting += [asked.answer for asked in self._asking.values()]
        self._lose_bans()
        for answer in waiting:
            if not answer.done():
                answer.set_exception(Unavailable("the link to the router was closed"))

    def _lose_bans(self) -> None:
        """Bans that were asked for may have happened or not; whoever asked asks again."""
        for future in self._banning.values():
            if not future.done():
                future.set_exception(Unavailable("the router was restarted"))


def _check(record: dict[str, Any], unavailable: str) -> None:
    """Raises RouterError when the answer is a refusal."""
    if record["aux"] == codes.Code.UNAVAILABLE:
        raise Unavailable(unavailable)
    if record["aux"]:
        raise Refused(codes.NAMES.get(record["aux"], "internal"))


def _state(record: dict[str, Any]) -> ChannelState:
    unavailable = "the router cannot read the cursors now"
    cursor = records.CURSORS[record["cursor"]]
    if cursor == "away":
        raise Unavailable(unavailable)
    _check(record, unavailable)
    return ChannelState(record["position"], record["last"] if cursor == "read" else None)


def _missed(record: dict[str, Any]) -> Missed:
    _check(record, "the router cannot read its log now")
    first, last = record["gap"]
    gap = (first, last, GAP_REASONS[record["gap_reason"]]) if first else None
    return Missed(records.OUTCOMES[record["outcome"]], record["position"], gap, record["messages"], record["last"])


def _survey(record: dict[str, Any]) -> Survey:
    _check(record, "the router cannot read its log now")
    told = msgpack.unpackb(record["body"])
    oldest, presence = told["oldest"], told["presence"]
    return Survey(
        known=told["known"],
        loaded=told["loaded"],
        position=(told["epoch"], told["offset"]),
        waiting=told["waiting"],
        kept=told["kept"],
        kept_bytes=told["bytes"],
        oldest=None if oldest is None else Oldest((oldest[0], oldest[1]), oldest[2]),
        workers=told["workers"],
        presence=None if presence is None else Presence(*presence),
    )


def _stored(record: dict[str, Any]) -> list[StoredSession | None]:
    _check(record, "the router cannot read its store now")
    return [None if one is None else _session(*one) for one in msgpack.unpackb(record["body"])]


def _session(count: int, channels: Sequence[tuple[str, int, int]], user: str = "") -> StoredSession:
    return StoredSession(count, {name: (epoch, offset) for name, epoch, offset in channels}, user)
