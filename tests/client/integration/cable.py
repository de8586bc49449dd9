"""A cable between a client and the gateway that a test can cut and mend: a TCP relay on loopback."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65536


class Cable:
    """Relays each connection to `port`; `cut` resets all of them, and refuses new ones until `mend`.

    `delay_s`: how long everything takes on its way, in each direction; it accepts at once, as a balancer does.
    """

    def __init__(self, port: int, delay_s: float = 0.0) -> None:
        self._to_port = port
        self._delay_s = delay_s
        self._writers: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self._is_whole = True
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    def cut(self) -> None:
        """Reset both ends at once: neither side hears a goodbye."""
        self._is_whole = False
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self._is_whole = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_whole:
            writer.transport.abort()
            return
        self._writers.add(writer)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        self._writers.add(far_writer)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            relay = asyncio.create_task(self._relay(source, sink))
            self._relays.add(relay)

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await source.read(CHUNK_BYTES):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                sink.write(chunk)
                await sink.drain()
        sink.close()
        self._writers.discard(sink)
