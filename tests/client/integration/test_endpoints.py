"""Both clients with several endpoints: two gateways, as of two regions, of which the first is the preferred one."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from holdfast_client import Backoff, Message, Session, State, connect

from tests.client.integration.cable import Cable
from tests.client.integration.test_javascript import NODE, Driven, driven_at
from tests.client.integration.test_python import in_thread, run
from tests.conftest import Node, free_ports, stand_still
from tests.gateway.token_makers import SECRET, token

QUICK = Backoff(base_s=0.05, cap_s=0.2)
PING_MS, MISSES = 1000, 2
FAR_S = 0.15
STEP_S = 0.02
numbers = itertools.count(1)

pytestmark = pytest.mark.slow


class Client(Protocol):
    """What the tests need of either client."""

    async def join(self, channel: str) -> None: ...

    async def take(self) -> Any:
        """The next message's data; any event is a fault."""

    async def until_at(self, url: str) -> None:
        """Until the session is open there."""


class Python:
    """The Python client."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def join(self, channel: str) -> None:
        await self._session.join(channel)

    async def take(self) -> Any:
        item = await self._session.receive()
        assert isinstance(item, Message), item
        return item.data

    async def until_at(self, url: str) -> None:
        while not (self._session.state is State.OPEN and self._session.endpoint == url):  # noqa: ASYNC110  no event
            await asyncio.sleep(STEP_S)


class JavaScript:
    """The JavaScript client, in Node."""

    def __init__(self, session: Driven) -> None:
        self._session = session
        self._at: str = session.opened["endpoint"]

    async def join(self, channel: str) -> None:
        await self._session.call("join", channel)

    async def take(self) -> Any:
        kind, item = await self._session.take_one("message", "event")
        assert kind == "message", item
        return item["data"]

    async def until_at(self, url: str) -> None:
        while self._at != url:
            whole = await self._session.take_whole("state")
            if whole["state"] == "open":
                self._at = whole["endpoint"]


@asynccontextmanager
async def client(kind: str, urls: list[str], user: str) -> AsyncIterator[Client]:
    if kind == "python":
        async with await connect(urls, token=token({"sub": user}), reconnect=True, backoff=QUICK) as session:
            yield Python(session)
    else:
        assert NODE is not None
        async with driven_at(",".join(urls), user, token({"sub": user})) as driven:
            yield JavaScript(driven)


@dataclass(frozen=True)
class Regions:
    """`near` has workers alone; the router is with `far`."""

    near: Node
    far: Node

    def url(self, scheme: str, node: Node, port: int = 0) -> str:
        if scheme == "tcp":
            return f"tcp://127.0.0.1:{port or node.port}"
        return f"ws://127.0.0.1:{port or node.ws_port}/ws"

    async def publish(self, channel: str, *said: str) -> None:
        user = f"teller-{next(numbers)}"
        async with await connect(self.url("ws", self.far), token=token({"sub": user})) as teller:
            await teller.join(channel)
            for one in said:
                await teller.publish(channel, one)

    async def only_at(self, node: Node) -> None:
        """Until there is one connection, and that here."""
        await in_thread(lambda: node.live("connection") == 1, "the session's connection is there")
        other = self.far if node is self.near else self.near
        await in_thread(lambda: other.live("connection") == 0, "no other connection is left")


@pytest.fixture
def regions(holdfast: Callable[..., Node]) -> Regions:
    shared = {
        "HOLDFAST_AUTH_SECRET": SECRET,
        "HOLDFAST_ROUTER_ENDPOINT": f"tcp://127.0.0.1:{free_ports(1)[0]}",
        "HOLDFAST_GATEWAY_PING_MS": str(PING_MS),
        "HOLDFAST_GATEWAY_MISSES": str(MISSES),
        "HOLDFAST_GATEWAY_HELLO_TIMEOUT_MS": str(PING_MS * MISSES),
    }
    far = holdfast("--workers", "1", **shared)
    return Regions(holdfast("--workers", "1", command="gateway", **shared), far)


ways = pytest.mark.parametrize(
    ("kind", "scheme"), [("python", "ws"), ("python", "tcp"), ("javascript", "ws"), ("javascript", "tcp")]
)


@ways
def test_of_a_near_and_a_far_one_the_near_one_is_taken_and_no_other_connection_stays(
    regions: Regions, kind: str, scheme: str
) -> None:
    """Over TCP a balancer that accepts by itself looks near until HELLO: there the first of the order is taken."""

    async def body() -> None:
        port = regions.far.port if scheme == "tcp" else regions.far.ws_port
        near = regions.url(scheme, regions.near)
        async with Cable(port, FAR_S) as cable:
            far = regions.url(scheme, regions.far, cable.port)
            urls = [near, far] if scheme == "tcp" else [far, near]
            async with client(kind, urls, "ann") as ann:
                await ann.until_at(near)
                await regions.only_at(regions.near)

    run(body())


@ways
def test_one_that_refuses_is_passed_over(regions: Regions, kind: str, scheme: str) -> None:
    async def body() -> None:
        nobody, near = regions.url(scheme, regions.far, free_ports(1)[0]), regions.url(scheme, regions.near)
        async with client(kind, [nobody, near], "ann") as ann:
            await ann.until_at(near)
            await regions.only_at(regions.near)

    run(body())


@ways
def test_killed_the_session_goes_on_in_the_other_region_with_all_that_was_missed(
    regions: Regions, kind: str, scheme: str
) -> None:
    async def body() -> None:
        near, far = regions.url(scheme, regions.near), regions.url(scheme, regions.far)
        channel = f"group:endpoints-{next(numbers)}"
        async with client(kind, [near, far], "ann") as ann:
            await ann.until_at(near)
            await ann.join(channel)
            await regions.publish(channel, "before")
            assert await ann.take() == "before"
            await asyncio.to_thread(regions.near.crash)
            await regions.publish(channel, "missed 1", "missed 2")
            await ann.until_at(far)
            await regions.publish(channel, "after")
            assert [await ann.take() for _ in range(3)] == ["missed 1", "missed 2", "after"]
            await asyncio.to_thread(regions.near.start_again)

    run(body())


@ways
def test_standing_still_it_is_left_and_what_it_does_when_it_goes_on_ends_nothing(
    regions: Regions, kind: str, scheme: str
) -> None:
    """It accepts and does not answer; when it goes on it finds what the client said to it before it gave up."""
    channel = f"group:endpoints-{next(numbers)}"

    async def body() -> None:
        near, far = regions.url(scheme, regions.near), regions.url(scheme, regions.far)
        async with client(kind, [near, far], "ann") as ann:
            await ann.until_at(near)
            await ann.join(channel)
            (worker,) = regions.near.workers
            await asyncio.to_thread(stand_still, worker)
            try:
                await ann.until_at(far)
            finally:
                os.kill(worker, signal.SIGCONT)
            await in_thread(lambda: regions.near.live("connection") == 0, "what it found was dealt with")
            await regions.publish(channel, "one", "two")
            assert [await ann.take() for _ in range(2)] == ["one", "two"]
            await regions.only_at(regions.far)

    run(body())
