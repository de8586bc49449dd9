"""A small server in Python over TCP with as many groups as wanted: what the floor, with its one group, cannot be."""

import asyncio
import contextlib
import struct
import threading
from collections import defaultdict
from collections.abc import Generator
from typing import Any

import msgpack

DEADLINE_S = 30.0


class Hub:
    """Orders each group and remembers every frame and every source address."""

    def __init__(self) -> None:
        self.heard: list[list[Any]] = []
        self.sources: set[str] = set()
        self.members: defaultdict[str, list[asyncio.StreamWriter]] = defaultdict(list)
        self.offsets: defaultdict[str, int] = defaultdict(int)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sources.add(writer.get_extra_info("peername")[0])
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = struct.unpack(">I", await asyncio.wait_for(reader.readexactly(4), DEADLINE_S))[0]
                frame = msgpack.unpackb(await asyncio.wait_for(reader.readexactly(size), DEADLINE_S))
                self.heard.append(frame)
                self.act(frame, writer)
        writer.close()

    def act(self, frame: list[Any], writer: asyncio.StreamWriter) -> None:
        kind = frame[0]
        if kind == 0:
            send(writer, [1, frame[1], {"session": "s", "ping": 30}])
        elif kind == 6:
            self.members[frame[2]].append(writer)
            send(writer, [2, frame[1], {"epoch": 1, "offset": 0, "outcome": "live"}])
        elif kind == 8:
            self.offsets[frame[2]] += 1
            send(writer, [2, frame[1], {"epoch": 1, "offset": self.offsets[frame[2]]}])
            for member in self.members[frame[2]]:
                send(member, [9, frame[2], self.offsets[frame[2]], frame[3], {"from": "x", "time": 1, "epoch": 1}])
        elif kind == 14:
            send(writer, [15])


def send(writer: asyncio.StreamWriter, frame: list[Any]) -> None:
    body = msgpack.packb(frame)
    writer.write(struct.pack(">I", len(body)) + body)


@contextlib.contextmanager
def running(hub: Hub) -> Generator[int, None, None]:
    """Serves in a thread of its own; yields the port."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(hub.serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(finish(server), loop).result(DEADLINE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_S)
        loop.close()


async def finish(server: asyncio.Server) -> None:
    server.close()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), DEADLINE_S)
