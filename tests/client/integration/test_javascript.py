"""The JavaScript client under Node against a real node, over WebSocket in JSON and over TCP in MessagePack."""

import asyncio
import itertools
import json
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from holdfast_client import connect

from tests.client.integration.cable import Cable
from tests.client.integration.test_python import in_thread, run
from tests.conftest import Node, stand_still
from tools.provision import environment_for, find_program

NODE = find_program("node") or find_program("nodejs")
PROGRAM = Path(__file__).parent / "driven.mjs"
STEP_DEADLINE_S = 20.0
numbers = itertools.count(1)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NODE is None, reason="needs Node 18 or later: python tools/provision.py installs it"),
]
wires = pytest.mark.parametrize("scheme", ["ws", "tcp"])


class Driven:
    """A session of the JavaScript client in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._kept: deque[dict[str, Any]] = deque()
        self.seen: list[tuple[str, Any]] = []
        self.opened: dict[str, Any] = {}

    async def take(self, kind: str) -> Any:
        """The next thing of a kind; what comes before it is kept."""
        return (await self.take_one(kind))[1]

    async def take_one(self, *kinds: str) -> tuple[str, Any]:
        """The next thing of one of these kinds, and its kind."""
        one = await self.take_whole(*kinds)
        return next((kind, one[kind]) for kind in kinds if kind in one)

    async def take_whole(self, *kinds: str) -> dict[str, Any]:
        """The next thing of one of these kinds, with what is told beside it."""
        for one in self._kept:
            if not one.keys().isdisjoint(kinds):
                self._kept.remove(one)
                return one
        assert self._process.stdout is not None
        async with asyncio.timeout(STEP_DEADLINE_S):
            while line := await self._process.stdout.readline():
                one = json.loads(line)
                self.seen += one.items()
                if not one.keys().isdisjoint(kinds):
                    return dict(one)
                self._kept.append(one)
        raise AssertionError(f"ended without {kinds}: {self.seen}")

    async def ask(self, call: str, *arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"call": call, "args": arguments}).encode() + b"\n")
        await self._process.stdin.drain()

    async def call(self, call: str, *arguments: Any) -> Any:
        await self.ask(call, *arguments)
        return await self.take("answer")

    async def leave(self) -> None:
        """Close the session; the process must then end by itself, with nothing of it left to wait for."""
        await self.call("close")
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(STEP_DEADLINE_S):
            assert await self._process.wait() == 0


@asynccontextmanager
async def driven(node: Node, scheme: str, user: str, port: int = 0) -> AsyncIterator[Driven]:
    where = f"tcp://127.0.0.1:{port or node.port}" if scheme == "tcp" else f"ws://127.0.0.1:{port or node.ws_port}/ws"
    async with driven_at(where, user) as session:
        yield session


@asynccontextmanager
async def driven_at(where: str, user: str, token: str | None = None) -> AsyncIterator[Driven]:
    """`where`: URLs with commas between."""
    assert NODE is not None
    process = await asyncio.create_subprocess_exec(
        *(NODE, str(PROGRAM), where, user),
        env={**environment_for(NODE), **({} if token is None else {"HOLDFAST_TOKEN": token})},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    session = Driven(process)
    try:
        session.opened = await session.take("opened")
        assert session.opened["user"] == user
        yield session
        await session.leave()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def group() -> str:
    return f"group:javascript-{next(numbers)}"


def position_of(message: dict[str, Any]) -> dict[str, int]:
    return {"epoch": message["epoch"], "offset": message["offset"]}


@wires
def test_a_conversation_with_the_python_client(node: Node, scheme: str) -> None:
    async def body() -> None:
        channel, said = group(), {"text": "你好 🚀", "list": [1, 2.5, None, True]}
        async with driven(node, scheme, "jan") as jan, await connect(node.ws_url, user="pia") as pia:
            assert (await jan.call("join", channel))["offset"] == 0
            await pia.join(channel)
            first = await jan.call("publish", channel, said, {"key": "k"})
            assert await jan.call("publish", channel, "the key decides", {"key": "k"}) == first
            second = await pia.publish(channel, said)
            for sender, position in (("jan", first), ("pia", second._asdict())):
                message = await jan.take("message")
                assert (message["sender"], message["data"], position_of(message)) == (sender, said, position)
                heard = await pia.receive()
                assert heard is not None
                assert getattr(heard, "data", None) == said
            history = await jan.call("history", channel, {"limit": 1, "reverse": True})
            assert [position_of(message) for message in history["messages"]] == [second._asdict()]
            presence = await jan.call("presence", channel)
            assert sorted(member["user"] for member in presence["sessions"]) == ["jan", "pia"]
            assert (presence["users"], presence["count"]) == (2, 2)
            await jan.call("leave", channel)
            assert (await pia.presence(channel)).count == 1

    run(body())


@wires
def test_a_cut_connection_is_resumed_and_what_was_missed_follows_once(node: Node, scheme: str) -> None:
    async def body() -> None:
        channel = group()
        async with (
            Cable(node.port if scheme == "tcp" else node.ws_port) as cable,
            await connect(node.ws_url, user="pia") as pia,
            driven(node, scheme, "jan", cable.port) as jan,
        ):
            await pia.join(channel)
            held = await jan.call("join", channel)
            for missed in (0, 2):
                cable.cut()
                assert await jan.take("state") == "reconnecting"
                for number in range(missed):
                    await pia.publish(channel, f"missed {number}")
                cable.mend()
                assert await jan.take("state") == "open"
                await pia.publish(channel, f"after {missed} missed")
                for data in (*(f"missed {number}" for number in range(missed)), f"after {missed} missed"):
                    assert (await jan.take("message"))["data"] == data
                assert not [what for kind, what in jan.seen if kind == "event"]
            history = await jan.call("history", channel, {"since": held})
            shown = ["after 0 missed", "missed 0", "missed 1", "after 2 missed"]
            assert [message["data"] for message in history["messages"]] == shown

    run(body())


@wires
def test_it_goes_on_after_workers_and_router_were_killed(holdfast: Callable[..., Node], scheme: str) -> None:
    node = holdfast("--workers", "2")
    node.expect_lost()

    async def body() -> None:
        channel = group()
        async with driven(node, scheme, "jan") as jan:
            await jan.call("join", channel)
            await jan.call("publish", channel, "before")
            for pid in node.workers:
                os.kill(pid, signal.SIGKILL)
            assert [await jan.take("state"), await jan.take("state")] == ["reconnecting", "open"]
            first = await jan.call("publish", channel, "new workers", {"key": "a", "timeoutMs": 15_000})
            (router,) = node.routers
            await asyncio.to_thread(stand_still, router)
            sent = node.metric("holdfast_publishes_total")
            await jan.ask("publish", channel, "to nobody", {"timeoutMs": 15_000})
            await in_thread(lambda: node.metric("holdfast_publishes_total") > sent, "a worker has the request")
            os.kill(router, signal.SIGKILL)
            await jan.take("answer")
            await in_thread(lambda: node.routers and node.get("/readyz")[0] == 200, "a new router")
            second = await jan.call("publish", channel, "new router", {"key": "b"})
            assert second["epoch"] > first["epoch"]
            heard = [(await jan.take("message"))["data"] for _ in range(4)]
            assert heard == ["before", "new workers", "to nobody", "new router"]
            assert [what for kind, what in jan.seen if kind == "state"] == ["reconnecting", "open"]

    run(body())


@wires
def test_a_node_that_stops_is_heard_and_waited_for(holdfast: Callable[..., Node], scheme: str) -> None:
    node = holdfast("--workers", "1")

    async def body() -> None:
        async with driven(node, scheme, "jan") as jan:
            stopped = asyncio.create_task(asyncio.to_thread(node.stop))
            # Told to resume: it does not give up, but waits as long as it was told.
            assert await jan.take("state") == "reconnecting"
            await stopped

    run(body())
