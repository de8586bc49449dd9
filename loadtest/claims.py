"""What it costs to claim sessions in a directory: a real etcd, a router process, and scripted workers that say OPEN.

    python -m loadtest.claims --sessions 20000

The router is a whole one of a cluster without a log, which leads all shards; each OPEN takes the way of a worker's,
from the bus over the data plane and the claims' keeper to etcd, and back. Prints claims a second, the CPU of the
router's control thread and data plane for each, and the bytes of each in etcd's store, as it grew and compacted.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import threading
import time
import urllib.request
from multiprocessing.connection import Connection
from typing import Any

import msgpack
import uvloop
import zmq

from core import records
from core.ledger import Stats
from router.claims_keeper import UNIT
from router.config import DirectoryConfig, RouterConfig
from router.directory.opening import make_directory
from router.process import Router, settle_collector
from router.shards.records import NodeRecord, encode
from tests.servers import etcd

WORKERS = 4
BATCH = 200
WINDOW = 4_000
"""OPENs of one worker without an answer."""
DEADLINE_S = 300.0
SHARDS = 256


def _cpu_s(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


async def _serve(endpoint: str, where: str, told: Connection) -> None:
    """The router process, until it is told to end; then what it used."""
    directory = make_directory(DirectoryConfig(endpoints=(where,)))
    unit = await directory.register(f"node{UNIT}", encode(NodeRecord(0, "")), 60)  # the workers'
    config = RouterConfig(node="router", endpoint=endpoint, epoch=7, directory=DirectoryConfig(endpoints=(where,)))
    router = Router(config, Stats())
    loop = await router.open()
    tasks, keeper = router.start(), router.claims
    assert keeper is not None
    running = asyncio.get_running_loop()
    running.add_reader(loop.control_fd, router.take)
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    while not all(keeper.ready(shard) for shard in range(SHARDS)):
        assert router.ended() is None, tasks
        await asyncio.sleep(0.01)
    settle_collector()
    before = _cpu_s(resource.RUSAGE_SELF), _cpu_s(resource.RUSAGE_THREAD)
    told.send("ready")
    await running.run_in_executor(None, told.recv)  # deadline: that of the whole run, whose end closes the pipe
    used = _cpu_s(resource.RUSAGE_SELF) - before[0], _cpu_s(resource.RUSAGE_THREAD) - before[1]
    told.send((*used, keeper.admitted, keeper.refused))
    loop.stop()
    thread.join(10)
    await router.close()
    running.remove_reader(loop.control_fd)
    await unit.close()
    await directory.close()


def _router(endpoint: str, where: str, told: Connection) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(endpoint, where, told))


class _Worker:
    """Says OPEN as fast as it is answered."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, number: int, sessions: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, f"node/{number}/1".encode())
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self._say, self._number, self._sessions = records.BatchWriter(), number, sessions
        self.said = self.answered = self.refused = 0
        self._say.link(records.LINK, 1, number)
        self._flush()

    def _flush(self) -> None:
        self.socket.send(self._say.take())

    def hear(self) -> bool:
        """Take what has come; whether this worker is linked by now."""
        linked = False
        for one in records.unpack(self.socket.recv()):  # deadline: asked for behind a poll
            if one["kind"] == records.LINKED and one["aux"]:
                self._say.link(records.BEGIN, 1, self._number)
                if hasattr(self._say, "shards"):
                    self._say.shards(range(SHARDS))
                    self._say.shards(range(SHARDS), said=True)
                self._say.link(records.END, 1, self._number)
                self._flush()
                linked = True
            elif one["kind"] == records.OPENED:
                self.answered += 1
                self.refused += one["fence"] == 0
        return linked

    def go_on(self) -> None:
        while self.said < self._sessions and self.said - self.answered < WINDOW:
            for _ in range(min(BATCH, self._sessions - self.said)):
                self.said += 1
                number = self._number * 10_000_000 + self.said
                stored = msgpack.packb({"user": f"user-{number}", "device": "phone"})
                self._say.session(
                    records.OPEN,
                    (number * 2654435761 % (1 << 128)).to_bytes(16, "little"),
                    self.said,
                    self.said,
                    0,
                    stored,
                )
            self._flush()


def _run(endpoint: str, sessions: int) -> tuple[float, int]:
    """Have all sessions claimed; seconds, and how many were refused."""
    context: zmq.Context[Any] = zmq.Context(1)
    workers = [_Worker(context, endpoint, number, sessions // WORKERS) for number in range(WORKERS)]
    poller, by_socket = zmq.Poller(), {one.socket: one for one in workers}
    for one in workers:
        poller.register(one.socket, zmq.POLLIN)
    linked = 0
    while linked < WORKERS:
        linked += sum(by_socket[socket].hear() for socket, _ in poller.poll(1000))
    began = time.monotonic()
    for one in workers:
        one.go_on()
    while any(one.answered < sessions // WORKERS for one in workers):
        if time.monotonic() > began + DEADLINE_S:
            raise SystemExit(f"not in time: {[one.answered for one in workers]}")
        for socket, _ in poller.poll(1000):
            by_socket[socket].hear()
            by_socket[socket].go_on()
    took = time.monotonic() - began
    for one in workers:
        one.socket.close()
    context.term()
    return took, sum(one.refused for one in workers)


def _db_bytes(server: etcd.Member) -> tuple[int, int]:
    """The size of its file, and what of it is in use."""
    status = server.do("maintenance/status")
    return int(status["dbSize"]), int(status["dbSizeInUse"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=20_000)
    sessions = parser.parse_args().sessions
    endpoint = "ipc:///tmp/holdfast-claims-bench"
    ours, theirs = multiprocessing.Pipe()
    with etcd.running() as server:
        router = multiprocessing.get_context("spawn").Process(target=_router, args=(endpoint, server.endpoint, theirs))
        router.start()
        assert ours.recv() == "ready"  # no deadline: a router that does not start ends, and so does the pipe
        empty = _db_bytes(server)
        took, refused = _run(endpoint, sessions)
        grown = _db_bytes(server)
        ours.send("end")
        whole, control, admitted, _ = ours.recv()  # no deadline: as above
        server.do("kv/compaction", revision=str(server.revision()), physical=True)
        urllib.request.urlopen(
            urllib.request.Request(f"http://{server.endpoint}/v3/maintenance/defragment", b"{}"), timeout=60
        ).read()
        packed = _db_bytes(server)
        router.join(10)
    result = {
        "sessions": sessions,
        "admitted": admitted,
        "refused": refused,
        "seconds": round(took, 2),
        "claims_a_second": round(admitted / took),
        "control_us_a_claim": round(control / max(admitted, 1) * 1e6, 1),
        "router_us_a_claim": round(whole / max(admitted, 1) * 1e6, 1),
        "etcd_bytes_a_session": round((grown[0] - empty[0]) / sessions),
        "etcd_bytes_a_session_compacted": round((packed[0] - empty[0]) / sessions),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
