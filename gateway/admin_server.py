"""The HTTP servers of the supervisor (admin, and recovery where there is one): uvicorn, with the deadlines it lacks.

Whoever connects can hold a place for a bounded time only, whatever it sends or fails to send or read, and there are
CONNECTIONS_MAX places. The supervisor needs its descriptors and memory for the node.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from core.owned import ACCOUNT, Held
from gateway.ports import bound

HEAD_TIMEOUT_S = 10.0
"""For the head of a request, from the connection's start or the head's first byte; and for the rest of a body that
was answered before it was complete."""
REQUEST_TIMEOUT_S = 90.0
"""From the end of the head to the last byte of the answer taken by the peer. Longer than the body's deadline and the
longest gateway.request_timeout_ms together."""
WRITE_TIMEOUT_S = 10.0
"""Without progress for a peer that reads too slowly, once the buffers of the kernel and of uvicorn are full."""
KEEP_ALIVE_S = 30
"""Between two requests of a connection."""
CONNECTIONS_MAX = 512
"""Connections beyond are closed at once."""
REQUESTS_MAX = 256
"""From this many connections on, the answer is 503."""
GRACE_S = 1
STOP_TIMEOUT_S = 3.0
TICK_S = 1.0
BACKLOG = 128


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers (the supervisor has its own), and without waking up ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Let `serve` return."""
        self.should_exit = True
        self._ending.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        """Once a second, for the Date header."""
        while not await self.on_tick(0):  # no deadline: it has nothing to wait for without a callback_notify
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._ending.wait()


class _Protocol(H11Protocol):
    """uvicorn's HTTP with a bound on connections, and a deadline in every state that a connection can be in."""

    _head: asyncio.TimerHandle | None = None
    _request: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None
    _held: Held | None = None
    _watched: object = None
    """The request that `_request` was started for."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        fd = transport.get_extra_info("socket").fileno()
        self._held = ACCOUNT.hold("http_client", f"the client {transport.get_extra_info('peername')}", fd=fd)
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write = self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("_write")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_head", "_request", "_write")
        if self._held is not None:
            self._held.close()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it running when the connection broke

    def _watch(self) -> None:
        """Sees to it that the deadline of the state that was just reached runs, and no other."""
        if self._under_way() or self.transport.is_closing():
            self._stop("_head")
            if self._request is None or self._watched is not self.cycle:
                self._stop("_request")
                self._request = self.loop.call_later(REQUEST_TIMEOUT_S, self._overdue)
                self._watched = self.cycle
        elif self._is_idle():
            self._stop("_head")
            # Ended by the last bytes of a body that was answered before it was complete.
            if self.timeout_keep_alive_task is None:
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _stop(self, *timers: str) -> None:
        for name in timers:
            timer = getattr(self, name)
            if timer is not None:
                timer.cancel()
                setattr(self, name, None)

    def _under_way(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_idle(self) -> bool:
        """Between two requests, with nothing of the next one there."""
        return self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def _give_up(self) -> None:
        """The head, or the rest of a body that nobody wants, did not come in time."""
        self._head = None
        self.transport.close()
        self._watch()

    def _overdue(self) -> None:
        self._request = None
        if self._under_way() or self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()


class AdminServer:
    """The server in the running loop; `start` it, `close` it.

    Args:
        host: address to listen on.
        port: port to listen on; 0: any, see `port` after `start`.
        app: what answers.
        name: the section of the configuration that it is of.
        certificate: path of a PEM file; empty: no TLS.
        key: likewise.

    """

    _servers: ClassVar[set["AdminServer"]] = set()

    def __init__(
        self,
        host: str,
        port: int,
        app: Callable[..., Awaitable[Any]],
        *,
        name: str = "admin",
        certificate: str = "",
        key: str = "",
    ) -> None:
        self._host = host
        self._asked_port = port
        self._name = name
        config = uvicorn.Config(
            app,
            loop="none",
            http=_Protocol,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=REQUESTS_MAX,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=certificate or None,
            ssl_keyfile=key or None,
        )
        self._server = _Server(config)
        self._socket: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None
        self._held: list[Held] = []

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._socket is not None
        return int(self._socket.getsockname()[1])

    @property
    def connection_count(self) -> int:
        """Connections that are open."""
        return len(self._server.server_state.connections)

    def start(self) -> None:
        """Listens, and answers from the next turn of the loop on.

        Raises:
            PortTakenError: another program listens there.
            StartError: the address is not one of this machine, or the port is not allowed.

        """
        self._socket = bound(f"{self._name}.port", self._host, self._asked_port)
        self._socket.listen(BACKLOG)
        self._held = [
            ACCOUNT.hold("handle", f"the {self._name} server", object_=self),
            ACCOUNT.hold("control_fd", f"the {self._name} server's port", fd=self._socket.fileno()),
        ]
        self._servers.add(self)
        ACCOUNT.table("http_client", lambda: sum(one.connection_count for one in self._servers))
        self._serving = ACCOUNT.task(self._server.serve(sockets=[self._socket]), self._name, owner=self._held[0])

    async def close(self) -> None:
        """Stops listening, lets requests under way finish for a moment, and returns."""
        if self._serving is None or self._socket is None:
            return
        self._server.end()
        _, late = await asyncio.wait({self._serving}, timeout=STOP_TIMEOUT_S)
        for task in late:
            task.cancel()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # who still has not read an answer
        self._socket.close()
        self._servers.discard(self)
        if not self._servers:
            ACCOUNT.table("http_client", None)
        for held in self._held:
            held.close()
