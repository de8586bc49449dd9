"""One connection: order of answers, deadlines, what becomes of those who wait when it is lost."""

import asyncio
import socket
from collections.abc import Iterator

import hiredis
import pytest

from router.log.port import LogBroken, LogUnavailable
from router.log.redis_link import ALL_ADVICE, Link, error_of, is_stale, pack
from router.log.redis_url import parse
from tests.conftest import stand_still
from tests.router.log.conftest import run
from tests.servers.redis import Server

SHORT_S = 0.3


def link_to(server: Server, deadline_s: float = 5.0) -> Link:
    return Link(("127.0.0.1", server.port), deadline_s)


async def end(link: Link) -> None:
    link.drop("the test is over")
    await link.closed()


def test_answers_come_in_the_order_of_the_commands(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        link = link_to(redis_server)
        await link.connect(parse(redis_server.url))
        assert link.role == "master"
        assert link.version.split(".")[0].isdigit()
        sent = [link.send(b"".join(pack("ECHO", 100 * one + two) for two in range(3)), 3) for one in range(50)]
        for one, future in enumerate(sent):
            assert await future == [b"%d" % (100 * one + two) for two in range(3)]
        await end(link)

    run(work())


def test_an_error_of_the_server_is_the_command_s_own(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        link = link_to(redis_server)
        await link.connect(parse(redis_server.url))
        key = f"{prefix}x"
        answers = await link.send(pack("SET", key, 1) + pack("XLEN", key) + pack("GET", key), 3)
        assert isinstance(answers[1], hiredis.HiredisError)
        assert answers[2] == b"1"
        with pytest.raises(LogBroken, match="another prefix"):
            await link.ask(["XLEN", key])
        assert not link.why_lost
        await end(link)

    run(work())


def test_who_does_not_answer_in_time_is_dropped_with_all_that_waits(own_server: Server) -> None:
    async def work() -> None:
        link = link_to(own_server, SHORT_S)
        await link.connect(parse(own_server.url))
        stand_still(own_server.pid)
        waiting = [link.send(pack("PING"), 1) for _ in range(3)]
        for future in waiting:
            with pytest.raises(LogUnavailable, match=f"within {SHORT_S} s"):
                await future
        with pytest.raises(LogUnavailable, match=f"within {SHORT_S} s"):
            await link.send(pack("PING"), 1)
        await link.closed()

    run(work())


def test_a_server_that_is_killed_is_told_to_all_that_wait(own_server: Server) -> None:
    async def work() -> None:
        link = link_to(own_server)
        await link.connect(parse(own_server.url))
        stand_still(own_server.pid)
        future = link.send(pack("PING"), 1)
        own_server.kill()
        with pytest.raises(LogUnavailable, match="closed the connection"):
            await future
        await link.closed()

    run(work())


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_connecting_has_a_deadline(silent: int) -> None:
    async def work() -> None:
        link = Link(("127.0.0.1", silent), SHORT_S)
        with pytest.raises(LogUnavailable, match=f"within {SHORT_S} s"):
            await link.connect(parse("redis://x"))
        await link.closed()

    run(work())


def test_nobody_there_is_said_at_once() -> None:
    async def work() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
            link = Link(taken.getsockname(), 5.0)
            with pytest.raises(LogUnavailable, match="cannot be reached"):
                await link.connect(parse("redis://x"))
            await link.closed()

    run(work())


def test_what_is_no_redis_is_told_from_one() -> None:
    async def work() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        link = Link(server.sockets[0].getsockname(), 5.0)
        with pytest.raises(LogUnavailable, match="does not speak Redis' protocol"):
            await link.connect(parse("redis://x"))
        await link.closed()
        server.close()
        await server.wait_closed()

    run(work())


def test_a_password_is_asked_for_and_given(own_server: Server) -> None:
    own_server.do("CONFIG", "SET", "requirepass", "secret")

    async def work() -> None:
        link = link_to(own_server)
        with pytest.raises(LogUnavailable, match="user and password"):
            await link.connect(parse(f"redis://:wrong@127.0.0.1:{own_server.port}"))
        await link.closed()
        link = link_to(own_server)
        await link.connect(parse(f"redis://:secret@127.0.0.1:{own_server.port}/2"))
        assert (await link.ask(["PING"]))[0] in ("PONG", b"PONG")
        await end(link)

    run(work())


@pytest.mark.parametrize("code", sorted(ALL_ADVICE))
def test_every_known_error_says_what_to_do(code: str) -> None:
    error = error_of(hiredis.ReplyError(f"{code} something"), "Redis at a:1")
    assert isinstance(error, LogUnavailable)
    assert ALL_ADVICE[code] in str(error)
    assert f"{code} something" in str(error)


def test_only_some_errors_ask_for_another_connection() -> None:
    assert is_stale(hiredis.ReplyError("READONLY You can't write against a read only replica."))
    assert not is_stale(hiredis.ReplyError("OOM command not allowed"))


class Cancelled(Link):
    """Whose `connect` is cancelled so many turns of the loop after the connection is made."""

    def __init__(self, server: Server, turns: int) -> None:
        super().__init__(("127.0.0.1", server.port), 5.0)
        self._turns = turns
        self.connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._cancel(self._turns)

    def _cancel(self, turns: int) -> None:
        assert self.connecting is not None
        if turns:
            self._loop.call_soon(self._cancel, turns - 1)
        else:
            self.connecting.cancel()


@pytest.mark.parametrize("turns", range(4))
def test_one_that_is_given_up_while_it_connects_leaves_nothing_open(redis_server: Server, turns: int) -> None:
    async def work() -> None:
        link = Cancelled(redis_server, turns)
        link.connecting = asyncio.create_task(link.connect(parse(redis_server.url)))
        await asyncio.wait([link.connecting])
        assert link.connecting.cancelled() or turns > 1, "it knows of the connection only then"
        await end(link)  # the server may have been quicker than the later turns

    run(work())
