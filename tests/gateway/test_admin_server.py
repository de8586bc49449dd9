"""The server under the admin application: its bounds and deadlines, over real sockets."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette

from gateway import admin_server
from gateway.admin_server import AdminServer
from gateway.errors import PortTakenError, StartError

DEADLINE_S = 30.0
ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = b"x" * 16_777_216  # more than the kernel's buffers of both ends take
Answer = Callable[[Any, Any], Awaitable[None]]


class App:
    """An ASGI application whose answer the test gives; counts the requests that have begun and ended."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.begun = self.ended = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += 1
        try:
            await self._answer(receive, send)
        finally:
            self.ended += 1


async def say(send: Any, body: bytes = b"ok") -> None:
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body})


async def ok(_: Any, send: Any) -> None:
    await say(send)


async def large(_: Any, send: Any) -> None:
    await say(send, LARGE)


async def silent(receive: Any, _: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[AdminServer]:
    server = AdminServer("127.0.0.1", 0, app)
    server.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield server
    finally:
        await server.close()


@asynccontextmanager
async def connected(server: AdminServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All until the end, however the end came."""
    read = b""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65_536):
            read += chunk
    return read


async def until(holds: Callable[[], bool]) -> None:
    """The server runs in the same loop: each turn of it may bring what is waited for; `serving` has the deadline."""
    while not holds():  # noqa: ASYNC110  (no event tells of what uvicorn does inside)
        await asyncio.sleep(0)


def test_a_taken_port_is_said_and_another_address_too(run_in_loop: Any) -> None:
    async def scenario(host: str, port: int) -> None:
        AdminServer(host, port, Starlette()).start()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"admin\.port {port} on 127\.0\.0\.1 is in use"):
            run_in_loop(scenario("127.0.0.1", port))
    with pytest.raises(StartError, match=r"cannot listen at admin\.port 7402 on 192\.0\.2\.1"):
        run_in_loop(scenario("192.0.2.1", 7402))


def test_closing_does_not_wait_for_an_idle_connection(run_in_loop: Any) -> None:
    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        async with serving(App(ok)) as server, connected(server) as (reader, writer):
            writer.write(ASK)
            await reader.readuntil(b"ok")
            began = loop.time()
            await server.close()
            return loop.time() - began

    assert run_in_loop(scenario()) < 2


def test_closing_does_not_wait_for_who_does_not_read_the_answer(run_in_loop: Any) -> None:
    async def scenario() -> tuple[float, int]:
        loop, app = asyncio.get_running_loop(), App(large)
        async with serving(app) as server, connected(server) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(ASK)
            await until(lambda: app.begun == 1)
            began = loop.time()
            await server.close()
            await until(lambda: server.connection_count == 0)
            return loop.time() - began, app.ended

    took_s, ended = run_in_loop(scenario())
    assert took_s < admin_server.STOP_TIMEOUT_S
    assert ended == 1


@pytest.mark.parametrize("after_a_request", [False, True])
@pytest.mark.parametrize("sent", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: a"])
def test_who_never_completes_a_request_is_let_go(
    run_in_loop: Any, monkeypatch: pytest.MonkeyPatch, sent: bytes, after_a_request: bool
) -> None:
    monkeypatch.setattr(admin_server, "HEAD_TIMEOUT_S", 0.5)
    monkeypatch.setattr(admin_server, "KEEP_ALIVE_S", 0.5)

    async def scenario() -> bytes:
        async with serving(App(ok)) as server, connected(server) as (reader, writer):
            if after_a_request:
                writer.write(ASK)
                await reader.readuntil(b"ok")
            writer.write(sent)
            return await rest(reader)

    assert run_in_loop(scenario()) == b""


def test_who_is_answered_before_the_body_is_there_has_no_longer_for_the_rest(
    run_in_loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_server, "HEAD_TIMEOUT_S", 0.5)

    async def scenario() -> bytes:
        async with serving(App(ok)) as server, connected(server) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
            await reader.readuntil(b"ok")
            writer.write(b"body")
            return await rest(reader)

    assert run_in_loop(scenario()) == b""


def test_a_body_that_came_late_leaves_the_connection_its_time_between_requests(
    run_in_loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_server, "HEAD_TIMEOUT_S", 0.5)
    monkeypatch.setattr(admin_server, "KEEP_ALIVE_S", 1.5)

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        async with serving(App(ok)) as server, connected(server) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n")
            await reader.readuntil(b"ok")
            writer.write(b"half")
            writer.write(b"rest")
            began = loop.time()
            assert await rest(reader) == b""  # but it ends: the time between requests is bounded too
            return loop.time() - began

    assert 1.2 < run_in_loop(scenario()) < 10


def test_a_slow_answer_is_not_taken_for_a_slow_request(run_in_loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_server, "HEAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr(admin_server, "KEEP_ALIVE_S", 0.05)

    async def slow(_: Any, send: Any) -> None:
        await asyncio.sleep(0.2)
        await say(send)

    async def scenario() -> bytes:
        async with serving(App(slow)) as server, connected(server) as (reader, writer):
            writer.write(ASK)
            return await rest(reader)

    assert run_in_loop(scenario()).endswith(b"ok")


def test_a_request_as_a_whole_has_a_deadline(run_in_loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_server, "REQUEST_TIMEOUT_S", 0.1)

    async def scenario() -> bytes:
        app = App(silent)
        async with serving(app) as server, connected(server) as (reader, writer):
            writer.write(ASK)
            read = await rest(reader)
            await until(lambda: app.ended == 1)
            return read

    assert run_in_loop(scenario()) == b""


@pytest.mark.parametrize("deadline", ["WRITE_TIMEOUT_S", "REQUEST_TIMEOUT_S"])
def test_who_does_not_read_the_answer_is_let_go(
    run_in_loop: Any, monkeypatch: pytest.MonkeyPatch, deadline: str
) -> None:
    monkeypatch.setattr(admin_server, deadline, 0.1)

    async def scenario() -> int:
        app = App(large)
        async with serving(app) as server, connected(server) as (reader, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(ASK)
            await until(lambda: app.begun == 1 and server.connection_count == 0)
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            return len(await rest(reader))

    assert run_in_loop(scenario()) < len(LARGE)


def test_a_slow_reader_that_goes_on_is_served(run_in_loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_server, "WRITE_TIMEOUT_S", 5.0)

    async def scenario() -> int:
        async with serving(App(large)) as server, connected(server) as (reader, writer):
            writer.write(ASK)
            await reader.readuntil(b"\r\n\r\n")
            return len(await reader.readexactly(len(LARGE)))

    assert run_in_loop(scenario()) == len(LARGE)


def test_connections_beyond_the_bound_are_closed_and_the_others_served(
    run_in_loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_server, "CONNECTIONS_MAX", 2)

    async def scenario() -> tuple[bytes, bytes]:
        async with (
            serving(App(ok)) as server,
            connected(server) as (reader, writer),
            connected(server),
            connected(server) as (refused, _),
        ):
            gone = await rest(refused)
            writer.write(ASK)
            return gone, await reader.readuntil(b"ok")

    gone, answer = run_in_loop(scenario())
    assert gone == b""
    assert answer.startswith(b"HTTP/1.1 200")
