"""How bodies travel: TCP with a length prefix, or WebSocket messages. Thin; every wait has a deadline or a watcher.

`receive` alone may wait without a deadline of its own: the heartbeat of the protocol watches over it.
"""

import asyncio
import ssl as tls
from typing import Protocol as Interface
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from .codec import RECEIVED_FRAME_BYTES_MAX, BodyCutter, length_prefixed
from .codes import WEBSOCKET_STATUS_BASE, CloseClass, close_class
from .errors import Closed, ConnectFailed

WRITE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
# FIN and FIN_ACK have ended the session before the WebSocket is closed, and the gateway leaves it to us to close first:
# the address pair rests for a minute on that side (TIME_WAIT). So the close frame is written and not waited for.
WEBSOCKET_CLOSE_TIMEOUT_S = 0.0
READ_CHUNK_BYTES = 64 * 1024
# A backlog for bodies inside the WebSocket library; ours, the inbox, is what applies back-pressure.
WEBSOCKET_BACKLOG_MESSAGES = 64
# RFC 6455 §5.5: a control frame carries 125 bytes, two of them the status, which ends at 4999.
_CLOSE_REASON_BYTES_MAX = 123
_CODES_END = 1000
DEFAULT_PORTS = {"tcp": 7400, "tls": 7400, "ws": 7401, "wss": 7401}


class Transport(Interface):
    """One connection that carries bodies."""

    async def receive(self) -> list[bytes | str]:
        """The next bodies, at least one; raises `Closed` at the end."""

    async def send(self, bodies: list[bytes | str]) -> None:
        """Write the bodies in order; raises `Closed` when that is not possible in time."""

    async def close(self, code: int | None, reason: str) -> None:
        """Close within a bounded time, never raises; None closes without ceremony."""


class TcpTransport:
    """Length-prefixed bodies over TCP or TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._cutter = BodyCutter()

    async def receive(self) -> list[bytes | str]:
        while True:
            try:
                # deadline: the heartbeat's; the session cancels this when the gateway is silent for too long
                chunk = await self._reader.read(READ_CHUNK_BYTES)
            except OSError as error:
                raise lost(error) from error
            if not chunk:
                raise Closed(None, "the connection was closed", CloseClass.RESUME)
            if bodies := self._cutter.feed(chunk):
                return list(bodies)

    async def send(self, bodies: list[bytes | str]) -> None:
        self._writer.write(b"".join(length_prefixed(body) for body in bodies if isinstance(body, bytes)))
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._writer.drain()
        except OSError as error:  # A TimeoutError is one too.
            raise lost(error) from error

    async def close(self, code: int | None, reason: str) -> None:
        if code is None:
            self._writer.transport.abort()
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._writer.wait_closed()
        except OSError:
            # Already gone, or it does not end: either way nothing of it may stay.
            self._writer.transport.abort()


class WebSocketTransport:
    """One body per WebSocket message."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def receive(self) -> list[bytes | str]:
        try:
            # deadline: the heartbeat's; the session cancels this when the gateway is silent for too long
            return [await self._connection.recv()]
        except ConnectionClosed as error:
            raise closed_by_status(error) from error

    async def send(self, bodies: list[bytes | str]) -> None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                for body in bodies:
                    await self._connection.send(body)
        except ConnectionClosed as error:
            raise closed_by_status(error) from error
        except OSError as error:
            raise lost(error) from error

    async def close(self, code: int | None, reason: str) -> None:
        if code is None or code >= _CODES_END:
            self._connection.transport.abort()
            return
        short = reason.encode()[:_CLOSE_REASON_BYTES_MAX].decode(errors="ignore")
        try:
            # The library bounds its closing handshake by close_timeout, but not the writing of the close frame, which
            # waits behind whatever a peer that no longer reads has not taken.
            async with asyncio.timeout(2 * CLOSE_TIMEOUT_S):
                await self._connection.close(WEBSOCKET_STATUS_BASE + code, short)
        except TimeoutError:
            self._connection.transport.abort()


def lost(error: Exception) -> Closed:
    """A connection that ended without a word of the protocol: come back and resume."""
    return Closed(None, str(error) or type(error).__name__, CloseClass.RESUME)


def closed_by_status(error: ConnectionClosed) -> Closed:
    """A close status of 4000 + number says as much as a FIN without options."""
    received = error.rcvd
    if received is None or received.code < WEBSOCKET_STATUS_BASE:
        return lost(error)
    code = received.code - WEBSOCKET_STATUS_BASE
    return Closed(code, received.reason, close_class(code))


async def open_transport(url: str, ssl: tls.SSLContext | None, timeout_s: float) -> Transport:
    """Connect to `tcp://`, `tls://`, `ws://` or `wss://`; `ssl` replaces the system's default trust.

    Raises:
        ConnectFailed: no connection within the deadline.
        ValueError: the URL is none of ours.
    """
    scheme, host, port = address(url)
    context = (ssl or tls.create_default_context()) if scheme in ("tls", "wss") else None
    try:
        async with asyncio.timeout(timeout_s):
            if scheme in ("tcp", "tls"):
                return TcpTransport(*await asyncio.open_connection(host, port, ssl=context))
            return WebSocketTransport(await _open_websocket(url, host, port, context))
    except (OSError, WebSocketException) as error:
        raise ConnectFailed(f"{url}: {error or type(error).__name__}") from error


def address(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a gateway's URL. Raises ValueError for any other."""
    why = f"{url!r} is no address of a gateway; write tcp://, tls://, ws:// or wss://, then host:port"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{why} ({error})") from error
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(why)
    return parts.scheme, parts.hostname, port or DEFAULT_PORTS[parts.scheme]


def is_acceptable_target(target: str | None, url: str) -> bool:
    """A gateway may send us elsewhere, but not from an encrypted connection to one in the clear."""
    if target is None:
        return False
    try:
        there, here = address(target)[0], address(url)[0]
    except ValueError:
        return False
    return there == here or (there, here) in (("tls", "tcp"), ("wss", "ws"))


async def _open_websocket(url: str, host: str, port: int, context: tls.SSLContext | None) -> ClientConnection:
    parts = urlsplit(url)
    # The protocol's path, unless something in between maps another one to it.
    url = parts._replace(path=parts.path if parts.path.strip("/") else "/ws").geturl()
    # No proxy: a gateway is addressed directly. No ping of the library's: the protocol has its own heartbeat.
    # deadline: open_transport's, which is for all steps of opening together
    return await websocket_connect(
        url,
        host=host,
        port=port,
        ssl=context,
        proxy=None,
        compression=None,
        ping_interval=None,
        open_timeout=None,
        close_timeout=WEBSOCKET_CLOSE_TIMEOUT_S,
        max_size=RECEIVED_FRAME_BYTES_MAX,
        max_queue=WEBSOCKET_BACKLOG_MESSAGES,
    )
