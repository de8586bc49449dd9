"""A router's data plane in a thread of the test; the test plays the workers over real ZeroMQ sockets."""

import collections
import select
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import zmq

from core import log_records, notes, records, shards
from core.ledger import Stats
from core.namespace_spec import BUILT_IN, NamespaceSpec
from core.router_loop import RouterLoop
from tests.conftest import free_ports
from tests.core.edge_harness import wait_for

DEADLINE_S = 30.0
EPOCH = 7
OPTIONS: dict[str, Any] = {
    "epoch": EPOCH,
    "key_window_s": 300,
    "channels_max": 1000,
    "spill_bytes_max": 1 << 22,
}
HISTORY = {"history_messages": 100, "history_bytes": 1 << 20, "history_age_s": 300}
Record = dict[str, Any]


def now_ms() -> int:
    """The wall clock, as records carry it: asked when a record is made, since a run may outlast a history's age."""
    return int(time.time() * 1000)


class Worker:
    """A scripted worker: `say` builds its next batch, `flush` sends it, `take` hands out what the router said."""

    def __init__(
        self,
        context: "zmq.Context[Any]",
        endpoint: str,
        identity: str,
        number: int,
        epoch: int,
        *,
        keys: tuple[bytes, bytes, bytes] | None = None,
    ) -> None:
        """`keys`: the router's public one, and this worker's pair."""
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        if keys is not None:
            self.socket.curve_serverkey, self.socket.curve_publickey, self.socket.curve_secretkey = keys
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.IDENTITY, identity.encode())
        self.socket.connect(endpoint)
        self.say = records.BatchWriter()
        self.number, self.epoch = number, epoch
        self._records: collections.deque[Record] = collections.deque()
        self.leads: dict[int, int] = {}
        self.feeds: dict[int, int] = {}
        self._seq = 0

    def flush(self) -> None:
        self.socket.send(self.say.take())

    def take(self) -> Record:
        """The router's next record."""
        while not self._records:
            assert self.socket.poll(int(DEADLINE_S * 1000)), "the router says nothing"
            for one in records.unpack(self.socket.recv()):
                if one["kind"] != records.LEADS:
                    self._records.append(one)
                    continue
                told = self.feeds if one["aux"] & records.FEEDS else self.leads
                told[one["shard"]] = one["epoch"]
                if one["epoch"] == 0:
                    del told[one["shard"]]
        return self._records.popleft()

    def expect(self, kind: int) -> Record:
        one = self.take()
        assert one["kind"] == kind, f"expected a record of kind {kind}, not {one}"
        return one

    def rest(self) -> list[Record]:
        """All that the router says up to its answer to a heartbeat."""
        self.say.link(records.LINK, self.epoch, self.number)
        self.flush()
        said = []
        while (one := self.take())["kind"] != records.LINKED:
            said.append(one)
        assert not one["aux"]
        return said

    def link(self, *, beside: bool = False, everybody: bool = True) -> None:
        """Say LINK, be asked for everything, and hold nothing; `beside` an earlier start that runs on."""
        self.say.link(records.LINK, self.epoch, self.number)
        self.flush()
        assert self.expect(records.LINKED)["aux"] == 1
        assert self.expect(records.LINKED)["aux"] == 0
        self.tell([], beside=beside, everybody=everybody)

    def tell(
        self,
        channels: list[tuple[str, int, int, int]],
        sessions: list[tuple[bytes, int]] = [],  # noqa: B006 - never changed
        *,
        beside: bool = False,
        before: bool = False,
        everybody: bool = True,
    ) -> None:
        """Say everything that this worker holds: (name, handle, epoch, offset) and (session, conn); with `before` it
        was linked before, with `everybody` it wants to know of global channels.
        """
        self.begin(records.BESIDE * beside | records.BEFORE * before | records.EVERYBODY * everybody)
        for session, conn in sessions:
            self.say.session(records.OPEN, session, conn)
        for name, handle, epoch, offset in channels:
            self.say.channel(records.SUBSCRIBE, name.encode(), handle, epoch, offset)
        self.end(before=before)
        self.flush()

    def begin(self, flags: int = 0) -> None:
        """BEGIN: what is said from now on is all that this worker holds, of all shards."""
        self.say.link(records.BEGIN, self.epoch, self.number, flags)
        self.say.shards(range(shards.COUNT_MAX))

    def end(self, *, before: bool = False) -> None:
        """That was all; `before`: it named the global channels that it was told of."""
        self.say.shards(range(shards.COUNT_MAX), said=True, before=before)
        self.say.link(records.END, self.epoch, self.number)

    def subscribe(self, name: str, handle: int) -> tuple[int, int]:
        self.say.channel(records.SUBSCRIBE, name.encode(), handle)
        self.flush()
        one = self.expect(records.SUBSCRIBED)
        assert one["channel"] == handle
        return one["epoch"], one["offset"]

    def send(self, name: str, data: Any, *, key: str = "", sender: str = "alice", again: int = 0) -> int:
        """Publish without waiting; the request's number. `again`: that of the request that is sent once more."""
        self._seq += not again
        seq = again or self._seq
        self.say.publish(seq, name.encode(), msgpack.packb(data), sender.encode(), key.encode(), again=bool(again))
        self.flush()
        return seq

    def publish(self, name: str, data: Any, *, key: str = "", sender: str = "alice") -> Record:
        """Publish, and the answer; whatever else came before it stays for `take`."""
        self.send(name, data, key=key, sender=sender)
        kept = []
        while (one := self.take())["kind"] != records.PUBLISHED:
            kept.append(one)
        self._records.extendleft(reversed(kept))
        assert one["seq"] == self._seq
        return one

    def history(self, name: str, **options: Any) -> Any:
        self._seq += 1
        self.say.history(records.HISTORY, self._seq, name.encode(), **options)
        self.flush()
        one = self.expect(records.REPLY)
        assert (one["seq"], one["aux"]) == (self._seq, 0)
        return msgpack.unpackb(one["body"])


class Sequencer:
    """The router's data plane under test; the test plays its log as well, where `log_under_way_max` says that it has
    one.
    """

    def __init__(
        self,
        *,
        bus: str = "ipc",
        namespaces: Sequence[NamespaceSpec] | None = None,
        recovered: Iterable[bytes] = (),
        everybodys: bytes = b"",
        keys: tuple[bytes, bytes] = (b"", b""),
        **options: Any,
    ) -> None:
        """`options`: those of the loop, and what the built-in namespaces keep of a channel (see HISTORY); `recovered`:
        batches that the log gives back; `everybodys`: where it says that global channels stand; `keys`: the CURVE pair
        of its cluster.
        """
        history = {name: options.pop(name, default) for name, default in HISTORY.items()}
        self._folder = tempfile.TemporaryDirectory(prefix="hf-")
        self.path = Path(self._folder.name) / "router"
        self.endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}" if bus == "tcp" else f"ipc://{self.path}"
        self.stats = Stats()
        specs = namespaces or [msgspec.structs.replace(spec, **history) for spec in BUILT_IN]
        self.loop: RouterLoop | None = RouterLoop(self.stats, namespaces=specs, **{**OPTIONS, **options})
        self.passed_over = sum(self.loop.recover(batch) for batch in recovered)
        self.passed_over += self.loop.recover_globals(everybodys)
        self.loop.bind(self.endpoint, public_key=keys[0].decode(), secret_key=keys[1].decode())
        self._notes: collections.deque[Any] = collections.deque()
        self.last_first = 0
        """`first` of the note that `note` gave last."""
        self.sift = 1
        """Number of the next sift."""
        self.context: zmq.Context[Any] = zmq.Context(1)
        self.workers: list[Worker] = []
        self.leaks: set[str] = set()
        """Kinds that this test leaks on purpose."""
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.thread.start()

    def worker(self, number: int = 0, *, epoch: int = 1, node: str = "node", link: bool = True) -> Worker:
        one = Worker(self.context, self.endpoint, f"{node}/{number}/{epoch}", number, epoch)
        self.workers.append(one)
        if link:
            one.link()
            wait_for(lambda: one.rest() == [], "the link")
        return one

    def note(self, kind: int) -> tuple[int, bytes]:
        """(request, text) of the data plane's next note, which has to be of this kind."""
        note = self.whole(kind)
        self.last_first = note[4]
        return note[3], note[7]

    def whole(self, kind: int) -> tuple[Any, ...]:
        """The data plane's next note, which has to be of this kind; that a worker began is passed over otherwise."""
        assert self.loop is not None
        while True:
            while not self._notes:
                poll = select.poll()
                poll.register(self.loop.control_fd, select.POLLIN)
                assert poll.poll(DEADLINE_S * 1000), "the data plane says nothing"
                self._notes.extend(self.loop.take())
            note = self._notes.popleft()
            if note[0] == kind or note[0] != notes.BEGAN:
                break
        assert note[0] == kind, f"expected a note of kind {kind}, not {note}"
        return tuple(note)

    def batch(self) -> tuple[int, list[log_records.LogEntry]]:
        """The next batch that the log gets: its number and records."""
        number, batch = self.note(notes.LOG_BATCH)
        return number, log_records.entries(batch)

    def commit(self, number: int) -> None:
        """The log has this batch and all before it."""
        assert self.loop is not None
        self.loop.put(notes.LOG_COMMITTED, request=number)

    def log_is(self, available: bool) -> None:
        assert self.loop is not None
        self.loop.put(notes.LOG_STATE, first=int(available))

    def counter(self, name: str) -> int:
        return self.stats.read()["counters"][name]

    def live(self, kind: str) -> int:
        ledger = self.stats.read()["ledger"]
        return ledger[f"{kind}_opened"] - ledger[f"{kind}_closed"]

    def close(self) -> None:
        assert self.loop is not None
        self.loop.stop()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), "the router does not stop"
        for one in self.workers:
            one.socket.close()
        self.context.term()
        self.loop = None  # frees it
        ledger = self.stats.read()["ledger"]
        open_kinds = {k for k in ledger if k.endswith("_opened") and ledger[k] != ledger[k.replace("opened", "closed")]}
        self._folder.cleanup()
        assert {kind.removesuffix("_opened") for kind in open_kinds} <= self.leaks, ledger
