"""A connection to one Redis server: commands leave as they come, answers are given in their order.

Its own asyncio protocol over hiredis, since what redis-py does for each command costs more than the command. Each
command has the same deadline; one that is late ends the connection, and with it everything that waits on it: whoever
asks again does so on a new one.
"""

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Iterable
from typing import Any, cast

import hiredis

from core.owned import ACCOUNT, Held
from router.log.port import LogBroken, LogDeposed, LogError, LogUnavailable
from router.log.redis_url import Address, RedisUrl

UNSENT_BYTES_MAX = 64 * 1024 * 1024
_NOTHING = object()
_Args = Iterable[bytes | str | int]
# What the first word of an error means to whoever runs the server.
ALL_ADVICE = {
    "OOM": "its memory is full: raise its maxmemory, or keep fewer messages or for a shorter time",
    "MISCONF": "it cannot write to its disk: make room there, and see its log",
    "LOADING": "it is reading its files after a start, which ends by itself",
    "READONLY": "it is a replica: another server is the primary now, or will be soon",
    "NOREPLICAS": "it misses the replicas that its min-replicas-to-write asks for: start them",
    "CLUSTERDOWN": "its cluster is not whole: see `redis-cli --cluster check`",
    "MASTERDOWN": "its primary is away: see its log and the sentinels'",
    "BUSY": "a script of somebody else keeps it busy: see `redis-cli script kill`",
    "NOAUTH": "it wants a password: name user and password in the URL",
    "WRONGPASS": "it does not know this user and password: correct them in the URL",
    "NOPERM": "this user may not do that: give it the rights on keys with our prefix, and on scripts",
    "NOSCRIPT": "it has forgotten our scripts, which are given to it again",
    "MOVED": "its cluster is being changed, and we look again for who has what",
    "ASK": "its cluster is being changed, and we look again for who has what",
    "TRYAGAIN": "its cluster is being changed",
}
# After these another connection, maybe to another server, is to be used.
STALE = {"READONLY", "NOSCRIPT", "MOVED", "ASK", "CLUSTERDOWN", "MASTERDOWN", "LOADING", "NOAUTH"}


def error_of(error: hiredis.HiredisError, name: str) -> LogError:
    """What an error of the server is to us."""
    text = str(error)
    code = text.partition(" ")[0]
    if code == "DEPOSED":
        return LogDeposed(f"{name} says that a later router has this log now: this one has to end")
    if code == "WRONGTYPE":
        return LogBroken(
            f"{name} has something of somebody else's under the name of one of our keys ({text}): "
            "remove it, or use another prefix"
        )
    advice = ALL_ADVICE.get(code)
    return LogUnavailable(f"{name} refuses: {advice} ({text})" if advice else f"{name} refuses: {text}")


def is_stale(error: Exception) -> bool:
    return str(error).partition(" ")[0] in STALE


def pack(*args: bytes | str | int) -> bytes:
    """One command as the server reads it."""
    return cast(bytes, hiredis.pack_command(cast(Any, args)))


def _fail(future: asyncio.Future[list[Any]], why: str) -> None:
    if not future.done():
        future.set_exception(LogUnavailable(why))
        future.exception()  # retrieved: whoever waited may be gone


def words(*args: bytes | str | int) -> bytes:
    """Some arguments of a command as the server reads them, to be put together with others."""
    return pack(*args).partition(b"\r\n")[2]


class _Asked:
    __slots__ = ("answers", "ends", "future", "left")

    def __init__(self, left: int, future: asyncio.Future[list[Any]], ends: float) -> None:
        self.left = left
        self.future = future
        self.ends = ends
        self.answers: list[Any] = []


class Link(asyncio.Protocol):
    """A connection, from `connect` on until it is lost; it does not come back.

    Args:
        address: of the server.
        deadline_s: for each command.

    """

    def __init__(self, address: Address, deadline_s: float) -> None:
        self.address = address
        self.name = f"Redis at {address[0]}:{address[1]}"
        self.role = ""
        self.version = ""
        self.why_lost = ""
        """Why it cannot be used any more; empty while it can."""
        self.wants_credentials = False
        """It answered that it knows us by a password only."""
        self._deadline_s = deadline_s
        self._loop = asyncio.get_running_loop()
        self._closed = self._loop.create_future()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._asked: deque[_Asked] = deque()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._held: Held | None = None

    async def connect(self, url: RedisUrl, *, credentials: bool = True) -> None:
        """Connect and say who we are.

        Raises:
            LogUnavailable: nobody is there, or it does not want us.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._open(url.tls)
                await self._greet(url, credentials)
        except TimeoutError:
            doubt = ": look whether it speaks TLS on this port" if url.tls and not self.version else ""
            self.drop(f"{self.name} did not answer within {self._deadline_s} s{doubt}")
            raise LogUnavailable(self.why_lost) from None
        except ssl.SSLError as error:
            self.drop(
                f"{self.name} and we do not agree on TLS: name the authority of its certificate in SSL_CERT_FILE, and "
                f"look whether it speaks TLS on this port ({error})"
            )
            raise LogUnavailable(self.why_lost) from error
        except OSError as error:
            self.drop(f"{self.name} cannot be reached: {error.strerror or error}")
            raise LogUnavailable(self.why_lost) from error
        except BaseException:
            self.drop("given up")
            raise

    async def _open(self, tls: bool) -> None:
        host, port = self.address
        # deadline: that of `connect`
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, place = found[0]
        handle = socket.socket(family, kind, protocol)
        self._held = ACCOUNT.hold("control_fd", self.name, fd=handle.fileno())
        try:
            handle.setblocking(False)
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(handle, place)  # deadline: that of `connect`
            context = ssl.create_default_context() if tls else None
            name = host if tls else None
            # deadline: that of `connect`
            await self._loop.create_connection(lambda: self, sock=handle, ssl=context, server_hostname=name)
        except BaseException:
            # Who is given up just after the connection was made is not told that it is lost: uvloop closes it unsaid.
            self._forget_fd()
            if self._transport is not None:
                self._transport.abort()
                self._transport = None
            handle.close()
            raise

    async def _greet(self, url: RedisUrl, credentials: bool) -> None:
        # RESP3: one form of each answer, whatever the server's version.
        hello: list[bytes | str | int] = ["HELLO", 3]
        if credentials and url.password:
            hello += ["AUTH", url.user or "default", url.password]
        [answer] = await self.ask(hello)
        said = {key.decode(): value for key, value in answer.items()}
        self.role, self.version = said.get("role", b"sentinel").decode(), said["version"].decode()
        if url.database and self.role != "sentinel":
            await self.ask(["SELECT", url.database])

    async def ask(self, *commands: _Args) -> list[Any]:
        """Send commands; their answers.

        Raises:
            LogUnavailable, LogBroken: the first error among the answers, or the connection was lost.
        """
        # deadline: that of each command, after which the connection is dropped
        answers = await self.send(b"".join(pack(*one) for one in commands), len(commands))
        for answer in answers:
            if isinstance(answer, hiredis.HiredisError):
                if is_stale(answer):
                    self.wants_credentials = str(answer).startswith("NOAUTH")
                    self.drop(str(error_of(answer, self.name)))
                raise error_of(answer, self.name)
        return answers

    def send(self, data: bytes, count: int) -> asyncio.Future[list[Any]]:
        """Send packed commands now; the future has their answers, errors among them, or LogUnavailable."""
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if self.why_lost or self._transport is None:
            _fail(future, self.why_lost or f"{self.name} is not connected")
        elif self._transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            _fail(future, f"{self.name} does not keep up: see its CPU and its network")
        else:
            self._asked.append(_Asked(count, future, self._loop.time() + self._deadline_s))
            self._transport.write(data)
            if self._timer is None:
                self._timer = self._loop.call_later(self._deadline_s, self._check)
        return future

    def drop(self, why: str) -> None:
        """End it; whatever waits is unavailable, because of `why`."""
        self.why_lost = self.why_lost or why
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._asked:
            _fail(self._asked.popleft().future, self.why_lost)
        if self._transport is not None:
            self._transport.abort()
        elif not self._closed.done():
            self._closed.set_result(None)

    async def closed(self) -> None:
        """Wait until a dropped one is gone."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._deadline_s):
                await asyncio.shield(self._closed)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)
        if self.why_lost:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Called by the loop: answers."""
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _NOTHING:
                self._take(answer)
        except hiredis.ProtocolError as error:
            self.drop(f"{self.name} does not speak Redis' protocol: {error}")

    def _take(self, answer: Any) -> None:
        if not self._asked:
            self.drop(f"{self.name} answers what was not asked")
            return
        first = self._asked[0]
        first.answers.append(answer)
        first.left -= 1
        if not first.left:
            self._asked.popleft()
            if not first.future.done():
                first.future.set_result(first.answers)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop."""
        self._forget_fd()
        self.drop(f"{self.name} closed the connection{f': {error}' if error else ''}")
        if not self._closed.done():
            self._closed.set_result(None)

    def _forget_fd(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def _check(self) -> None:
        """The first to be answered has waited long enough, or the timer is set for it."""
        self._timer = None
        if not self._asked:
            return
        left = self._asked[0].ends - self._loop.time()
        if left <= 0:
            self.drop(f"{self.name} did not answer within {self._deadline_s} s")
        else:
            self._timer = self._loop.call_later(left, self._check)
