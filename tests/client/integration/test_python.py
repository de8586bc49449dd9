"""The Python client against a real node, over each transport and encoding: usual days, and bad ones."""

import asyncio
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from holdfast_client import (
    Backoff,
    CloseClass,
    Closed,
    Event,
    Message,
    RequestRefused,
    Session,
    State,
    connect,
    new_key,
)

from tests.client.integration.cable import Cable
from tests.client.integration.conftest import MISSES
from tests.conftest import ROOT, Node, stand_still, wait_until

DEADLINE_S = 30.0
STEP_S = 0.02
QUICK = Backoff(base_s=0.05, cap_s=0.2)
UNAVAILABLE, NOT_JOINED, DRAINING = 5, 402, 1
WIRES = [("tcp", "msgpack"), ("ws", "msgpack"), ("ws", "json")]
wires = pytest.mark.parametrize("wire", WIRES, ids="-".join)
numbers = itertools.count(1)

Wire = tuple[str, str]


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await work

    asyncio.run(limited())


def group() -> str:
    """A channel that no other test has used."""
    return f"group:python-{next(numbers)}"


def url(node: Node, wire: Wire, port: int = 0) -> str:
    if wire[0] == "tcp":
        return f"tcp://127.0.0.1:{port or node.port}"
    return f"ws://127.0.0.1:{port or node.ws_port}/ws"


async def open_session(node: Node, wire: Wire, user: str, *, port: int = 0, reconnect: bool = True) -> Session:
    return await connect(url(node, wire, port), user=user, encoding=wire[1], reconnect=reconnect, backoff=QUICK)


async def take(session: Session) -> Message | Event:
    item = await session.receive()
    assert item is not None
    return item


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what a session does by itself; the test's own deadline bounds it."""
    while not condition():  # noqa: ASYNC110 - a session's state has no event to wait for
        await asyncio.sleep(STEP_S)


async def in_thread(condition: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


@wires
def test_closing_leaves_the_address_pairs_rest_to_the_client(node: Node, wire: Wire) -> None:
    async def main() -> None:
        for _ in range(10):
            session = await connect(url(node, wire), user="ann", encoding=wire[1])
            began = asyncio.get_running_loop().time()
            await session.close()
            assert asyncio.get_running_loop().time() - began < 2.0, "nothing is waited for in vain"

    def resting() -> set[str]:
        """The other ends of what is in TIME_WAIT at the gateway's port."""
        port = node.port if wire[0] == "tcp" else node.ws_port
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return {line[2] for line in lines if int(line[1].rpartition(":")[2], 16) == port and line[3] == "06"}

    before = resting()
    run(main())
    wait_until(lambda: node.live("connection") == 0, "all are gone")
    assert resting() <= before


@wires
def test_a_conversation(node: Node, wire: Wire) -> None:
    async def body() -> None:
        channel = group()
        acks = node.metric("holdfast_acks_total")
        async with await open_session(node, wire, "ann") as ann, await open_session(node, wire, "bob") as bob:
            for session in (ann, bob):
                assert (await session.join(channel)).offset == 0
            said = [{"text": "你好 🚀", "n": n, "ratio": 0.5, "none": None} for n in range(5)]
            positions = [await ann.publish(channel, data) for data in said]
            for session in (ann, bob):
                taken = [await take(session) for _ in said]
                assert [(m.data, m.sender, m.position) for m in taken if isinstance(m, Message)] == [
                    (data, "ann", position) for data, position in zip(said, positions, strict=True)
                ]
            history = await bob.history(channel)
            assert [message.data for message in history.messages] == said
            assert history.position == positions[-1]
            latest = await bob.history(channel, limit=2, reverse=True)
            assert [message.offset for message in latest.messages] == [5, 4]
            later = await bob.history(channel, since=positions[2])
            assert [message.offset for message in later.messages] == [4, 5]
            presence = await ann.presence(channel)
            assert sorted(presence.sessions) == sorted([(ann.id, "ann"), (bob.id, "bob")])
            assert (presence.users, presence.count) == (2, 2)
            # Both have taken messages, and say so by themselves.
            await in_thread(lambda: node.metric("holdfast_acks_total") >= acks + 2, "both acknowledged")
            await bob.leave(channel)
            assert (await ann.presence(channel)).count == 1
            with pytest.raises(RequestRefused) as refused:
                await bob.publish(channel, "from outside")
            assert refused.value.code == NOT_JOINED
        assert (ann.state, bob.state) == (State.CLOSED, State.CLOSED)

    run(body())


@wires
def test_a_key_given_twice_delivers_once(node: Node, wire: Wire) -> None:
    async def body() -> None:
        channel, key = group(), new_key()
        async with await open_session(node, wire, "ann") as ann, await open_session(node, wire, "bob") as bob:
            for session in (ann, bob):
                await session.join(channel)
            first = await ann.publish(channel, "once", key)
            assert await ann.publish(channel, "twice", key) == first
            assert await ann.publish(channel, "again", new_key()) == (first.epoch, first.offset + 1)
            assert [item.data for item in [await take(bob), await take(bob)] if isinstance(item, Message)] == [
                "once",
                "again",
            ]

    run(body())


def test_quiet_sessions_are_kept_alive_by_their_heartbeat(node: Node) -> None:
    async def body() -> None:
        sessions = [await open_session(node, wire, "ann", reconnect=False) for wire in WIRES]
        before = node.metric("holdfast_frames_in_total")
        # PING or PONG, whoever asks: without, either side would have given up after MISSES intervals.
        beats = len(sessions) * (MISSES + 2)
        await in_thread(lambda: node.metric("holdfast_frames_in_total") >= before + beats, "heartbeats")
        for session in sessions:
            assert session.state is State.OPEN
            assert session.rtt_ms is not None
            await session.close()
        assert node.metric("holdfast_pongs_heard_total") > 0

    run(body())


@wires
def test_a_cut_connection_is_resumed_with_nothing_missed(node: Node, wire: Wire) -> None:
    async def body() -> None:
        channel = group()
        port = node.port if wire[0] == "tcp" else node.ws_port
        async with (
            Cable(port) as cable,
            await open_session(node, wire, "bob") as bob,
            await open_session(node, wire, "ann", port=cable.port) as ann,
        ):
            for session in (ann, bob):
                await session.join(channel)
            await bob.publish(channel, "before")
            assert (await take(ann)).channel == channel
            before = ann.id
            cable.cut()
            await until(lambda: ann.state is State.RECONNECTING)
            # Asked for while there is no connection: sent on the next one.
            published = asyncio.create_task(ann.publish(channel, "from ann", new_key()))
            cable.mend()
            position = await published
            assert (ann.id, ann.state) == (before, State.OPEN)
            await bob.publish(channel, "after")
            items = [await take(ann), await take(ann)]
            assert [(m.data, m.offset) for m in items if isinstance(m, Message)] == [("from ann", 2), ("after", 3)]
            assert position.offset == 2

    run(body())


@wires
def test_what_was_missed_follows_once_and_stands_in_the_history(node: Node, wire: Wire) -> None:
    async def body() -> None:
        channel = group()
        port = node.port if wire[0] == "tcp" else node.ws_port
        async with (
            Cable(port) as cable,
            await open_session(node, wire, "bob") as bob,
            await open_session(node, wire, "ann", port=cable.port) as ann,
        ):
            for session in (ann, bob):
                await session.join(channel)
            held = await bob.publish(channel, "heard")
            assert isinstance(await take(ann), Message)
            cable.cut()
            await until(lambda: ann.state is State.RECONNECTING)
            missed = [await bob.publish(channel, data) for data in ("missed 1", "missed 2")]
            cable.mend()
            for position, data in zip(missed, ("missed 1", "missed 2"), strict=True):
                replayed = await take(ann)
                assert isinstance(replayed, Message)
                assert (replayed.data, replayed.offset) == (data, position.offset)
            history = await ann.history(channel, since=held)
            assert [message.data for message in history.messages] == ["missed 1", "missed 2"]
            await bob.publish(channel, "heard again")
            message = await take(ann)
            assert isinstance(message, Message)
            assert (message.data, message.offset) == ("heard again", missed[-1].offset + 1)

    run(body())


@wires
def test_sessions_go_on_after_the_workers_were_killed(holdfast: Callable[..., Node], wire: Wire) -> None:
    node = holdfast("--workers", "2")
    node.expect_lost()

    async def body() -> None:
        channel = group()
        async with await open_session(node, wire, "ann") as ann, await open_session(node, wire, "bob") as bob:
            for session in (ann, bob):
                await session.join(channel)
            first = await ann.publish(channel, "before")
            for session in (ann, bob):
                assert isinstance(await take(session), Message)
            for pid in node.workers:
                os.kill(pid, signal.SIGKILL)
            await until(lambda: ann.reconnect_count and bob.reconnect_count)
            await until(lambda: (ann.state, bob.state) == (State.OPEN, State.OPEN))
            # The channel lives in the router: its numbers go on.
            assert await ann.publish(channel, "after", new_key(), timeout_s=15) == (first.epoch, first.offset + 1)
            for session in (ann, bob):
                item = await take(session)
                assert isinstance(item, Message), item
                assert item.data == "after"

    run(body())


@wires
def test_connections_stay_when_the_router_is_killed(holdfast: Callable[..., Node], wire: Wire) -> None:
    node = holdfast("--workers", "2")
    node.expect_lost()

    async def body() -> None:
        channel = group()
        async with await open_session(node, wire, "ann") as ann, await open_session(node, wire, "bob") as bob:
            for session in (ann, bob):
                await session.join(channel)
            first = await ann.publish(channel, "before")
            for session in (ann, bob):
                assert isinstance(await take(session), Message)
            (router,) = node.routers
            links = node.metric("holdfast_router_links_total")
            # Stopped first, so that the request surely reaches no one.
            await asyncio.to_thread(stand_still, router)
            asked = asyncio.create_task(ann.publish(channel, "to nobody", timeout_s=15))
            await in_thread(lambda: node.metric("holdfast_publishes_total") >= 2, "a worker has the request")
            os.kill(router, signal.SIGKILL)
            kept = await asked  # its worker asked the next router
            assert (kept.epoch > first.epoch, kept.offset) == (True, first.offset + 1)
            await in_thread(lambda: node.metric("holdfast_router_links_total") >= links + 2, "both workers linked")
            second = await ann.publish(channel, "after", new_key())
            assert (second.epoch, second.offset) == (kept.epoch, kept.offset + 1)
            for session in (ann, bob):
                for heard in (("to nobody", kept), ("after", second)):
                    item = await take(session)
                    assert isinstance(item, Message), item
                    assert (item.data, item.position) == heard
                assert session.reconnect_count == 0
            assert (await bob.presence(channel)).count == 2

    run(body())


def test_a_node_that_stops_says_when_to_resume(holdfast: Callable[..., Node]) -> None:
    node = holdfast("--workers", "2")

    async def ended(session: Session) -> Closed:
        with pytest.raises(Closed) as closed:
            await session.receive()
        await session.close()
        return closed.value

    async def body() -> None:
        sessions = [await open_session(node, wire, "ann", reconnect=False) for wire in WIRES]
        waiting = [asyncio.create_task(ended(session)) for session in sessions]
        await asyncio.to_thread(node.stop)
        for closed in await asyncio.gather(*waiting):
            assert (closed.code, closed.class_) == (DRAINING, CloseClass.RESUME)
            assert closed.after_ms is not None
            assert closed.after_ms >= 0

    run(body())


def test_the_readmes_first_message_and_its_shell_line_work_as_they_stand(holdfast: Callable[..., Node]) -> None:
    node = holdfast("--workers", "2")
    readme = (ROOT / "README.md").read_text()
    program = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    shell = re.search(r"`\.venv/bin/(holdfast publish [^`]+)`", readme)
    assert program
    assert shell
    assert program[1].count(":7401/") == 1
    arguments = shlex.split(shell[1])
    *_, channel, data = arguments

    async def body() -> None:
        source = program[1].replace(":7401/", f":{node.ws_port}/")
        printed = await asyncio.to_thread(_run, sys.executable, "-c", source)
        assert printed == "alice {'text': 'hello'} 1\n"
        async with await open_session(node, ("tcp", "msgpack"), "bob") as bob:
            await bob.join(channel)
            command = Path(sys.executable).parent / arguments[0]
            await asyncio.to_thread(_run, str(command), *arguments[1:], "--url", node.admin_url)
            message = await take(bob)
            assert isinstance(message, Message)
            expected = json.loads(data) if "--json" in arguments else data
            assert (message.channel, message.sender, message.data) == (channel, "admin", expected)

    run(body())


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout
