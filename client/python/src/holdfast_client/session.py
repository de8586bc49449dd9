"""The session that an application holds: asyncio around `Protocol`, one transport at a time."""

import asyncio
import logging
import random
import secrets
import ssl as tls
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from . import outputs
from . import protocol as core
from .codec import Encoding
from .codes import CloseClass
from .dialing import Dialer
from .errors import Closed, ConnectFailed, HoldfastError, ProtocolViolation
from .inbox import Inbox
from .kept import SessionState
from .messages import Event, History, Message, Position, Presence
from .reconnect import Backoff, Plan, plan
from .transport import Transport, address, lost, open_transport

log = logging.getLogger("holdfast_client")

Token = str | Callable[[], Awaitable[str]]
# Longer than every deadline of the closing itself: only a fault of ours gets here.
_SETTLE_S = 15.0


class State(StrEnum):
    """What an application may show to its user."""

    CONNECTING = "connecting"
    OPEN = "open"
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to connect. See `connect`."""

    url: str | Sequence[str]
    user: str | None = None
    token: Token | None = None
    encoding: Encoding = Encoding.MSGPACK
    ssl: tls.SSLContext | None = None
    reconnect: bool = False
    backoff: Backoff = field(default_factory=Backoff)
    request_timeout_s: float = core.REQUEST_TIMEOUT_S
    open_timeout_s: float = 10.0
    queue_messages: int = 1024
    state: SessionState | None = None
    clock: Callable[[], float] = time.monotonic
    randomness: random.Random = field(default_factory=random.SystemRandom)

    @property
    def urls(self) -> list[str]:
        """The endpoints, in the application's order."""
        return [self.url] if isinstance(self.url, str) else list(self.url)


async def connect(
    url: str | Sequence[str],
    *,
    user: str | None = None,
    token: Token | None = None,
    encoding: str = "msgpack",
    reconnect: bool = False,
    ssl: tls.SSLContext | None = None,
    backoff: Backoff | None = None,
    request_timeout_s: float = core.REQUEST_TIMEOUT_S,
    open_timeout_s: float = 10.0,
    queue_messages: int = 1024,
    state: SessionState | None = None,
) -> "Session":
    """Connect, greet, and return a session that is open.

    Args:
        url: `ws://host:7401/ws`, `wss://…`, `tcp://host:7400` or `tls://…`; or several, of which the nearest that
            answers is taken. Of two that are equally near, the earlier one.
        user: who to be, where the gateway runs in development mode.
        token: the token, or a coroutine function that gives one, called again before each fresh start and whenever the
            token is about to end.
        encoding: `msgpack`, or `json` (WebSocket only).
        reconnect: come back on its own after a connection ends, as the gateway says; else the end is raised.
        ssl: in place of the system's default trust.
        backoff: how long to wait between attempts when the gateway does not say.
        request_timeout_s: the deadline of each request.
        open_timeout_s: for all of this call; with `reconnect` it covers several attempts.
        queue_messages: received and not taken; beyond it the connection is read no further.
        state: what `Session.export` gave before, perhaps in another process: that session is resumed. If it is over,
            its channels are joined afresh from their positions, as `user` or with `token`, when `reconnect` is set.

    Raises:
        ConnectFailed: the gateway cannot be reached in time.
        Closed: it refused; carries the code.
        ValueError: arguments that cannot go together.
    """
    options = Options(
        url=url,
        user=user,
        token=token,
        encoding=Encoding(encoding),
        ssl=ssl,
        reconnect=reconnect,
        backoff=backoff or Backoff(),
        request_timeout_s=request_timeout_s,
        open_timeout_s=open_timeout_s,
        queue_messages=queue_messages,
        state=state,
    )
    return await connect_with(options)


async def connect_with(options: Options) -> "Session":
    """`connect` with everything in one value, clock and randomness included."""
    schemes = {address(url)[0] for url in options.urls}
    if schemes & {"tcp", "tls"} and options.encoding is Encoding.JSON:
        raise ValueError("JSON travels over WebSocket only; TCP carries MessagePack")
    session = Session(options)
    await session._open()
    return session


class Session:
    """A live session; made by `connect`. Iterate over it for messages and events, each delivered once."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._protocol = core.Protocol(core.Identity(user=options.user), options.encoding, options.state)
        self._dialer = Dialer(options.urls, self._open_transport, options.clock, options.open_timeout_s)
        self._inbox = Inbox(options.queue_messages)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._to_send = asyncio.Event()
        self._timer_moved = asyncio.Event()
        self._armed_at: float | None = None
        self._leaving = asyncio.Event()
        self._closed: Closed | None = None
        self._last_end: Closed | None = None
        self._ended: asyncio.Future[Closed] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self.state = State.CONNECTING
        self.rtt_ms: float | None = None
        self.reconnect_count = 0

    # What an application reads.

    @property
    def id(self) -> str:
        """The session's id, as the gateway gave it."""
        return "" if self._protocol.welcome is None else self._protocol.welcome.session

    @property
    def user(self) -> str:
        return "" if self._protocol.welcome is None else self._protocol.welcome.user

    @property
    def node(self) -> str:
        """The gateway's node that serves this session now."""
        return "" if self._protocol.welcome is None else self._protocol.welcome.node

    @property
    def endpoint(self) -> str:
        """The URL of the connection that there is now, or was last."""
        return self._dialer.url

    @property
    def joined(self) -> frozenset[str]:
        """The channels joined by `join`."""
        return self._protocol.joined

    @property
    def closed(self) -> Closed | None:
        """Why the session ended; None while it lives."""
        return self._closed

    @property
    def dropped_count(self) -> int:
        """Messages that came a second time and were not delivered."""
        return self._protocol.positions.dropped_count

    def position(self, channel: str) -> Position | None:
        """The last position received of a channel."""
        return self._protocol.positions.get(channel)

    def export(self) -> SessionState | None:
        """What is needed to go on with this session later, from where the application is now; None without one.

        A session that was closed by `close` is over; `suspend` exports and lets the connection go.
        """
        return self._protocol.state()

    # What an application does. Each raises RequestRefused, RequestTimeout, RequestInterrupted, or Closed.

    async def join(self, channel: str, *, since: Position | None = None, timeout_s: float | None = None) -> Position:
        """Receive this channel's messages, from the returned position on, or from `since` as far as the log reaches."""
        answer: Position = await self._ask(
            lambda now, limit: self._protocol.join(channel, since, now, limit), timeout_s
        )
        return answer

    async def leave(self, channel: str, *, timeout_s: float | None = None) -> None:
        """Receive no more of this channel."""
        await self._ask(lambda now, limit: self._protocol.leave(channel, now, limit), timeout_s)

    async def publish(
        self, channel: str, data: Any, key: str | None = None, *, timeout_s: float | None = None
    ) -> Position:
        """Publish, and return the message's position.

        With `key` (≤ 64 bytes) the request survives a reconnect and the gateway delivers it once; without, a connection
        lost on the way raises RequestInterrupted, since nobody can tell whether it was published.
        """
        answer: Position = await self._ask(
            lambda now, limit: self._protocol.publish(channel, data, key, now, limit), timeout_s
        )
        return answer

    async def history(
        self,
        channel: str,
        *,
        since: Position | None = None,
        limit: int | None = None,
        reverse: bool = False,
        timeout_s: float | None = None,
    ) -> History:
        """Past messages, oldest first; with `reverse` newest first, which is how to get the latest `limit` of them."""
        given = {"since": None if since is None else list(since), "limit": limit, "reverse": reverse or None}
        values = {name: value for name, value in given.items() if value is not None}
        answer: History = await self._ask(
            lambda now, until: self._protocol.history(channel, values, now, until), timeout_s
        )
        return answer

    async def presence(self, channel: str, *, timeout_s: float | None = None) -> Presence:
        """Who is in a channel now."""
        answer: Presence = await self._ask(lambda now, limit: self._protocol.presence(channel, now, limit), timeout_s)
        return answer

    def ping(self) -> None:
        """Measure the round trip now rather than with the next heartbeat; `rtt_ms` changes when the answer is there."""
        self._protocol.measure(self._now())
        self._wake()

    async def refresh(self, token: str, *, timeout_s: float | None = None) -> int | None:
        """Give the live session a new token of the same user; when that ends, seconds since 1970, or None.

        With a function as `token` this happens by itself whenever the gateway says that the token is about to end.
        """
        answer: int | None = await self._ask(lambda now, limit: self._protocol.refresh(token, now, limit), timeout_s)
        return answer

    async def suspend(self) -> SessionState | None:
        """Let the connection go without a word and return what goes on with the session later; here it is over."""
        state = self.export()
        self._leaving.set()
        if self._task is not None:
            await self._cancel(self._task)
        return state

    async def close(self) -> None:
        """Say FIN, wait for its confirmation within a deadline, and close; the session is over. May be called twice."""
        self._leaving.set()
        self._protocol.finish(self._now())
        self._wake()
        if self._task is not None and self._protocol.phase is outputs.Phase.IDLE:
            # No connection to say anything on: between two of them, or the session is over.
            await self._cancel(self._task)
        elif self._task is not None:
            # Shielded: a caller that is cancelled must not leave half a connection behind.
            await asyncio.shield(self._settle(self._task))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Message | Event]:
        while (item := await self.receive()) is not None:
            yield item

    async def receive(self) -> Message | Event | None:
        """The next message or event; None once the session was closed from here.

        Taking a message is what acknowledges it.

        Raises:
            Closed: the session ended, and not by `close`.
        """
        item = await self._inbox.take()
        if item is not None and self._protocol.taken(item, self._now()):
            self._wake()
        if item is None and not self._leaving.is_set() and self._closed is not None:
            raise self._closed
        return item

    # Inside: one task lives as long as the session.

    def _now(self) -> float:
        return self._options.clock()

    async def _open(self) -> None:
        self._task = asyncio.create_task(self._run(), name="holdfast session")
        try:
            async with asyncio.timeout(self._options.open_timeout_s):
                await asyncio.shield(self._opened)
        except TimeoutError as error:
            self._leaving.set()
            await self._cancel(self._task)
            last = "" if self._last_end is None else f"; the last attempt {self._last_end}"
            limit_s = self._options.open_timeout_s
            raise ConnectFailed(f"{' '.join(self._options.urls)}: not open within {limit_s} s{last}") from error
        except BaseException:
            self._leaving.set()
            await self._cancel(self._task)
            raise

    @staticmethod
    async def _cancel(*tasks: asyncio.Task[Any]) -> None:
        """Cancel and see them end; what they end with is of no interest any more."""
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_SETTLE_S)

    async def _settle(self, task: asyncio.Task[None]) -> None:
        """Wait for the session's task to end by itself, then end it."""
        await asyncio.wait([task], timeout=_SETTLE_S)
        if not task.done():
            await self._cancel(task)

    async def _ask(self, make: Callable[[float, float], int], timeout_s: float | None) -> Any:
        if self._closed is not None:
            raise self._closed
        now = self._now()
        request_id = make(now, self._options.request_timeout_s if timeout_s is None else timeout_s)
        answer = self._answers[request_id] = asyncio.get_running_loop().create_future()
        self._protocol.flush_requests(now)
        self._inbox.look_again()
        self._wake()
        try:
            # deadline: the protocol's, which answers every request, at the latest with RequestTimeout
            return await answer
        finally:
            del self._answers[request_id]
            self._protocol.withdraw(request_id)

    def _wake(self) -> None:
        """Something may have to be sent, or the next deadline may have moved closer."""
        self._to_send.set()
        deadline = self._protocol.deadline()
        if deadline is not None and (self._armed_at is None or deadline < self._armed_at):
            self._timer_moved.set()

    async def _run(self) -> None:
        closed, attempt = Closed(None, "not connected", CloseClass.RESUME), 0
        timer = asyncio.create_task(self._keep_time(), name="holdfast timer")
        timer.add_done_callback(self._on_timer_end)
        try:
            while not self._leaving.is_set():
                closed = await self._connection()
                if self.state is State.OPEN:
                    attempt = 0
                self._last_end = closed
                step = self._next_step(closed, attempt)
                if step is None:
                    break
                attempt += step.counts
                if step.class_ is CloseClass.FRESH:
                    self._protocol.start_afresh()
                await self._wait_before_reconnect(step)
        except Exception as error:
            log.exception("the session's task failed")
            closed = Closed(None, f"a fault of the client: {error!r}", CloseClass.STOP)
        finally:
            timer.cancel()
            if self._refreshing is not None:
                self._refreshing.cancel()
            self._finish(closed)

    def _next_step(self, closed: Closed, attempt: int) -> Plan | None:
        """How to go on after a connection; None if there is nothing more."""
        step = self._dialer.next_in_pass(closed)
        may = self._options.reconnect or (step is not None and self.state is State.CONNECTING)
        if self._leaving.is_set() or not may:
            return None
        step = step or plan(closed, attempt, self._options.backoff, self._options.randomness)
        if step.class_ is CloseClass.STOP:
            return None
        log.info("connection to %s ended (%s); %s in %.1f s", self.endpoint, closed, step.class_, step.delay_s)
        return step

    async def _wait_before_reconnect(self, step: Plan) -> None:
        if self.state is State.OPEN:
            self.state = State.RECONNECTING
        self.reconnect_count += 1
        try:
            async with asyncio.timeout(step.delay_s):
                await self._leaving.wait()
        except TimeoutError:
            return

    async def _open_transport(self, url: str, timeout_s: float) -> Transport:
        return await open_transport(url, self._options.ssl, timeout_s)

    async def _connection(self) -> Closed:
        """One connection from start to end, to the endpoint that wins; why it ended."""
        try:
            transport = (await self._dialer.dial()).transport
        except ConnectFailed as error:
            failed = Closed(None, str(error), CloseClass.RESUME)
            failed.__cause__ = error
            return self._dialer.ended(failed, dialed=False)
        closed = Closed(None, "cancelled", CloseClass.STOP)
        try:
            self._protocol.connection_made(self._now(), await self._token())
            self._wake()
            closed = await self._converse(transport)
        except HoldfastError as error:
            closed = error if isinstance(error, Closed) else lost(error)
        finally:
            self._protocol.connection_lost(closed)
            self._emit()
            await self._close_transport(transport, closed)
        return self._dialer.ended(closed, dialed=True)

    async def _close_transport(self, transport: Transport, closed: Closed) -> None:
        closing = asyncio.create_task(transport.close(closed.code, closed.reason), name="holdfast closing")
        try:
            # deadline: that of Transport.close, which every transport keeps
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait([closing], timeout=_SETTLE_S)
            raise

    async def _token(self) -> str | None:
        token = self._options.token
        if token is None or isinstance(token, str):
            return token
        if self._protocol.can_resume:
            return None
        try:
            async with asyncio.timeout(self._options.open_timeout_s):
                return await token()
        except TimeoutError as error:
            raise Closed(None, "no token in time", CloseClass.RESUME) from error

    async def _converse(self, transport: Transport) -> Closed:
        """Read and write until either ends or the protocol says so."""
        reader = asyncio.create_task(self._read(transport), name="holdfast reader")
        writer = asyncio.create_task(self._write(transport), name="holdfast writer")
        self._ended = asyncio.get_running_loop().create_future()
        try:
            # no deadline: for as long as the connection lives; a silent gateway ends it after its missed heartbeats
            await asyncio.wait([reader, writer, self._ended], return_when=asyncio.FIRST_COMPLETED)
            # What the protocol said is worth more than how the transport then failed.
            if self._ended.done():
                await self._send_last(transport)
                return self._ended.result()
            return (reader if reader.done() else writer).result()
        finally:
            await self._cancel(reader, writer)

    async def _send_last(self, transport: Transport) -> None:
        """What the protocol had still to say, FIN_ACK at least."""
        try:
            if bodies := self._protocol.sendable():
                await transport.send(bodies)
        except Closed as error:
            log.debug("the last frames were not sent: %s", error)

    async def _read(self, transport: Transport) -> Closed:
        while True:
            try:
                bodies = await transport.receive()
            except Closed as closed:
                return closed
            try:
                for body in bodies:
                    self._protocol.receive(body, self._now())
            except ProtocolViolation as violation:
                return violation
            finally:
                self._emit()
                self._wake()
            if not self._inbox.has_room(self._protocol.request_count > 0):
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        self._protocol.pause_reading()
        while not self._inbox.has_room(self._protocol.request_count > 0):
            await self._inbox.wait_for_room()
        self._protocol.resume_reading(self._now())
        self._wake()

    async def _write(self, transport: Transport) -> Closed:
        while True:
            # no deadline: until there is something to send; the end of the connection cancels it
            await self._to_send.wait()
            self._to_send.clear()
            if bodies := self._protocol.sendable():
                try:
                    await transport.send(bodies)
                except Closed as closed:
                    return closed

    async def _keep_time(self) -> None:
        """Call `tick` at each deadline of the protocol."""
        while True:
            self._timer_moved.clear()
            self._armed_at = self._protocol.deadline()
            wait_s = None if self._armed_at is None else max(0.0, self._armed_at - self._now())
            try:
                async with asyncio.timeout(wait_s):
                    await self._timer_moved.wait()
            except TimeoutError:
                self._protocol.tick(self._now())
                self._emit()
                self._to_send.set()

    def _on_timer_end(self, timer: asyncio.Task[None]) -> None:
        """Without its timer a session would wait for ever: a fault there ends it."""
        if not timer.cancelled() and (error := timer.exception()) is not None:
            log.error("the session's timer failed", exc_info=error)
            if self._task is not None:
                self._task.cancel()

    def _emit(self) -> None:
        """Hand out what the protocol has concluded."""
        for output in self._protocol.outputs():
            match output:
                case outputs.Delivered():
                    self._inbox.put(output.item)
                    if isinstance(output.item, Event) and output.item.kind == "expired":
                        self._refresh_soon()
                case outputs.Answered():
                    self._settle_answer(output)
                case outputs.Measured():
                    self.rtt_ms = output.rtt_ms
                case outputs.Opened():
                    self._dialer.welcomed()
                    self.state = State.OPEN
                    if not self._opened.done():
                        self._opened.set_result(None)
                case outputs.Ended():
                    if not self._ended.done():
                        self._ended.set_result(output.closed)

    def _refresh_soon(self) -> None:
        """The token is about to end: ask the application for another, if it gave a way to."""
        token = self._options.token
        if callable(token) and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = asyncio.create_task(self._refresh(token), name="holdfast refresh")

    async def _refresh(self, token: Callable[[], Awaitable[str]]) -> None:
        """What fails here ends the session in order: FIN token_expired, after which a fresh start asks again."""
        try:
            async with asyncio.timeout(self._options.open_timeout_s):
                given = await token()
            await self.refresh(given)
        except Exception as error:
            log.warning("the session's token was not refreshed: %r", error)

    def _settle_answer(self, output: outputs.Answered) -> None:
        answer = self._answers.get(output.request_id)
        if answer is None or answer.done():
            return
        if isinstance(output.result, HoldfastError):
            answer.set_exception(output.result)
        else:
            answer.set_result(output.result)

    def _finish(self, closed: Closed) -> None:
        self._closed = closed
        self.state = State.CLOSED
        self._protocol.abandon(closed)
        self._emit()
        self._inbox.end()
        if not self._opened.done():
            cause = closed.__cause__
            self._opened.set_exception(cause if isinstance(cause, ConnectFailed) else closed)
            # Nobody may be waiting any more; then it is no news.
            self._opened.exception()


def new_key() -> str:
    """A key for `publish` that no other message has."""
    return secrets.token_urlsafe(16)
