"""The race between endpoints: one is kept, nothing else stays open, and the rest of a pass is gone on with."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from holdfast_client import Backoff, CloseClass, Closed, ConnectFailed, connect
from holdfast_client.codes import RESUMED_ELSEWHERE
from holdfast_client.dialing import GHOST_S, Dialer
from holdfast_client.errors import ProtocolViolation
from holdfast_client.reconnect import Plan

from tests.client.scripted_gateway import FIN, FIN_ACK, HELLO, PING, ScriptedGateway

A, B, C = "tcp://a", "tcp://b", "tcp://c"
GONE = Closed(None, "no WELCOME in time", CloseClass.RESUME)
DEADLINE_S = 20.0


class FakeTransport:
    """Counts whether it was closed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_closed = False

    async def receive(self) -> list[bytes | str]:
        raise NotImplementedError

    async def send(self, bodies: list[bytes | str]) -> None:
        raise NotImplementedError

    async def close(self, code: int | None, reason: str) -> None:
        self.is_closed = True


class Field:
    """Where endpoints open as a test says."""

    def __init__(self, urls: list[str]) -> None:
        self.now = 0.0
        self.begun: list[str] = []
        self.opened: list[FakeTransport] = []
        self.acts: dict[str, Callable[[], Awaitable[None]]] = {}
        self.dialer = Dialer(urls, self.open, lambda: self.now, 10.0)

    async def open(self, url: str, timeout_s: float) -> FakeTransport:
        self.begun.append(url)
        if url in self.acts:
            await self.acts[url]()
        transport = FakeTransport(url)
        self.opened.append(transport)
        return transport

    async def dial(self) -> str:
        return (await self.dialer.dial()).url

    def left_open(self) -> list[str]:
        return [transport.url for transport in self.opened if not transport.is_closed]


async def refuse() -> None:
    raise ConnectFailed("refused")


async def stand_still() -> None:
    await asyncio.Event().wait()


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await work

    asyncio.run(limited())


def test_one_that_refuses_gives_way_at_once_and_one_that_is_silent_after_its_head_start() -> None:
    async def main() -> None:
        field = Field([A, B, C])
        field.acts |= {A: refuse, B: stand_still}
        assert await field.dial() == C
        assert field.begun == [A, B, C]
        assert field.left_open() == [C]

    run(main())


def test_what_opens_in_the_same_moment_as_the_winner_is_closed() -> None:
    async def main() -> None:
        field = Field([A, B])
        both = asyncio.Event()

        async def together() -> None:
            if len(field.begun) == 2:
                both.set()
            await both.wait()

        field.acts |= {A: together, B: together}
        assert await field.dial() == A
        assert sorted(transport.url for transport in field.opened) == [A, B]
        assert field.left_open() == [A]

    run(main())


def test_a_race_that_is_given_up_leaves_nothing_open() -> None:
    async def main() -> None:
        field = Field([A, B])
        field.acts |= {A: stand_still, B: stand_still}
        racing = asyncio.ensure_future(field.dial())
        while len(field.begun) < 2:  # noqa: ASYNC110 - the race has no event for it
            await asyncio.sleep(0)
        racing.cancel()
        await asyncio.wait([racing])
        assert racing.cancelled()
        assert field.left_open() == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


def test_when_none_opens_all_are_told_and_the_next_pass_begins_with_all() -> None:
    async def main() -> None:
        field = Field([A, B])
        field.acts |= {A: refuse, B: refuse}
        with pytest.raises(ConnectFailed, match="refused"):
            await field.dial()
        assert field.dialer.next_in_pass(GONE) is None
        field.acts.clear()
        assert await field.dial() == A

    run(main())


def test_one_that_opens_and_does_not_answer_is_left_for_the_others_of_the_pass() -> None:
    async def main() -> None:
        field = Field([A, B])
        assert await field.dial() == A
        closed = field.dialer.ended(GONE, dialed=True)
        assert field.dialer.next_in_pass(closed) == Plan(CloseClass.RESUME, 0.0, counts=False)
        assert await field.dial() == B
        field.dialer.ended(GONE, dialed=True)
        # All of them have been tried: now it is the back-off's turn.
        assert field.dialer.next_in_pass(GONE) is None

    run(main())


def test_one_that_speaks_something_else_is_left_for_the_others_and_alone_is_the_end() -> None:
    async def main() -> None:
        field, alone = Field([A, B]), Field([A])
        no_gateway = ProtocolViolation("a frame of 1213486160 bytes")
        assert await field.dial() == A
        closed = field.dialer.ended(no_gateway, dialed=True)
        assert (closed.code, closed.reason, closed.class_) == (None, no_gateway.reason, CloseClass.RESUME)
        assert field.dialer.next_in_pass(closed) == Plan(CloseClass.RESUME, 0.0, counts=False)
        assert await field.dial() == B
        field.dialer.welcomed()
        assert field.dialer.ended(no_gateway, dialed=True) is no_gateway
        await alone.dial()
        assert alone.dialer.ended(no_gateway, dialed=True) is no_gateway

    run(main())


def test_a_gateway_that_says_when_is_obeyed_also_with_others_left() -> None:
    async def main() -> None:
        field = Field([A, B])
        await field.dial()
        busy = Closed(2, "overloaded", CloseClass.RESUME, after_ms=700)
        assert field.dialer.next_in_pass(field.dialer.ended(busy, dialed=True)) is None

    run(main())


def test_after_welcome_the_next_pass_begins_with_the_nearest() -> None:
    async def main() -> None:
        field = Field([A, B])
        field.acts[A] = stand_still
        assert await field.dial() == B
        field.now = 0.2
        field.dialer.welcomed()
        field.acts.clear()
        field.dialer.ended(GONE, dialed=True)
        assert field.dialer.next_in_pass(GONE) is None
        assert await field.dial() == B

    run(main())


def test_a_hello_of_our_own_that_comes_late_is_resumed_from_once() -> None:
    async def main() -> None:
        field = Field([A, B])
        await field.dial()
        field.dialer.ended(GONE, dialed=True)
        await field.dial()
        field.dialer.welcomed()
        elsewhere = Closed(RESUMED_ELSEWHERE, "resumed_elsewhere", CloseClass.STOP)
        assert field.dialer.ended(elsewhere, dialed=True).class_ is CloseClass.RESUME
        await field.dial()
        field.dialer.welcomed()
        assert field.dialer.ended(elsewhere, dialed=True).class_ is CloseClass.STOP

    run(main())


def test_long_after_a_hello_of_our_own_it_is_somebody_else() -> None:
    async def main() -> None:
        field = Field([A, B])
        await field.dial()
        field.dialer.ended(GONE, dialed=True)
        await field.dial()
        field.dialer.welcomed()
        field.now = GHOST_S
        elsewhere = Closed(RESUMED_ELSEWHERE, "resumed_elsewhere", CloseClass.STOP)
        assert field.dialer.ended(elsewhere, dialed=True) is elsewhere

    run(main())


def test_over_sockets_fin_leads_to_its_target_with_the_session_and_back_when_that_ends() -> None:
    async def main() -> None:
        quick = Backoff(base_s=0.01, cap_s=0.05)
        async with ScriptedGateway() as here, ScriptedGateway() as there:
            urls = [here.url("tcp"), there.url("tcp")]
            async with await connect(urls, reconnect=True, backoff=quick) as session:
                first = {urls[0]: here, urls[1]: there}[session.endpoint]
                other = there if first is here else here
                before = len(other.peers)  # one that lost the race may have opened
                (peer,) = [one for one in first.peers if one.of(HELLO)]
                await peer.send([FIN, 7, "moved", {"class": "resume", "after": 20, "target": other.url("tcp")}])
                moved = await other.peer(before + 1)
                hello = await moved.expect(HELLO)
                assert (hello[2]["session"], hello[2]["token"]) == ("s1", "resume-s1")
                await moved.expect(PING)  # the session is open there
                assert (session.endpoint, session.reconnect_count) == (other.url("tcp"), 1)
                assert peer.of(FIN_ACK)
                await other.stop()
                back = len(first.peers) + 1
                again = await first.peer(back)
                await again.expect(HELLO)

    run(main())
