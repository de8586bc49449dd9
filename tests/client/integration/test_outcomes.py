"""What each client makes of each outcome of a resume, over a kill of the workers and over a restart of the node.

A reader is cut off; while it is away others publish, and what served it is killed or stopped. Back again, its
application must see exactly: what was missed once and in order, `gap` with what is gone,
or `reset` where its channel begins anew.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import pytest
from holdfast_client import Message, Session, State

from tests.client.integration.cable import Cable
from tests.client.integration.test_javascript import NODE, Driven, driven
from tests.client.integration.test_python import in_thread, open_session, run, take, until
from tests.conftest import HTTP_DEADLINE_S, Node, wait_until

pytestmark = pytest.mark.slow
KEPT = 3
"""Messages of a channel, in these nodes."""
TTL_S = 10
"""Of a resume token: the least that there is."""
SETTINGS = {"HOLDFAST_NAMESPACES_GROUP_HISTORY_MESSAGES": str(KEPT)}
numbers = itertools.count(1)
Item = tuple[Any, ...]


class Reader(Protocol):
    """A client that joins one channel, and is cut off and comes back by itself."""

    async def join(self, channel: str) -> None: ...

    async def away(self) -> None:
        """Wait until it has noticed that it is cut off."""
        ...

    async def back(self) -> None:
        """Wait until it is open again."""
        ...

    async def item(self) -> Item:
        """What its application is given next: ("message", data) or (kind, details)."""
        ...


class PythonReader:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def join(self, channel: str) -> None:
        await self._session.join(channel)

    async def away(self) -> None:
        await until(lambda: self._session.state is State.RECONNECTING)

    async def back(self) -> None:
        await until(lambda: self._session.state is State.OPEN)

    async def item(self) -> Item:
        one = await take(self._session)
        return ("message", one.data) if isinstance(one, Message) else (one.kind, one.details)


class JavaScriptReader:
    def __init__(self, session: Driven) -> None:
        self._session = session

    async def join(self, channel: str) -> None:
        await self._session.call("join", channel)

    async def away(self) -> None:
        assert await self._session.take("state") == "reconnecting"

    async def back(self) -> None:
        assert await self._session.take("state") == "open"

    async def item(self) -> Item:
        kind, one = await self._session.take_one("message", "event")
        return ("message", one["data"]) if kind == "message" else (one["kind"], one["details"])


@contextlib.asynccontextmanager
async def python_reader(node: Node, scheme: str, port: int) -> AsyncIterator[PythonReader]:
    wire = (scheme, "json" if scheme == "ws" else "msgpack")
    async with await open_session(node, wire, "ann", port=port) as session:
        yield PythonReader(session)


@contextlib.asynccontextmanager
async def javascript_reader(node: Node, scheme: str, port: int) -> AsyncIterator[JavaScriptReader]:
    async with driven(node, scheme, "ann", port) as session:
        yield JavaScriptReader(session)


needs_node = pytest.mark.skipif(NODE is None, reason="needs Node 18 or later: python tools/provision.py installs it")
readers = pytest.mark.parametrize(
    ("reader", "scheme"),
    [
        pytest.param(python_reader, "tcp", id="python-tcp"),
        pytest.param(python_reader, "ws", id="python-ws"),
        pytest.param(javascript_reader, "tcp", id="javascript-tcp", marks=needs_node),
        pytest.param(javascript_reader, "ws", id="javascript-ws", marks=needs_node),
    ],
)
OpenReader = Callable[..., contextlib.AbstractAsyncContextManager[Reader]]


def publish(node: Node, channel: str, data: Any) -> tuple[int, int]:
    """By the team's own server, which no fault of a client's connection touches."""
    body = json.dumps({"channel": channel, "data": data}).encode()
    request = urllib.request.Request(
        f"{node.admin_url}/api/publish", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=HTTP_DEADLINE_S) as answer:
        said = json.load(answer)
    return said["epoch"], said["offset"]


def kill_workers(node: Node) -> None:
    before = set(node.workers)
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def are_replaced() -> bool:
        workers = set(node.workers)
        return bool(workers) and not before & workers and node.get("/readyz")[0] == 200

    wait_until(are_replaced, "new workers")


def restart(node: Node) -> None:
    node.stop()
    node.start_again()


faults = pytest.mark.parametrize("fault", [kill_workers, restart])


@readers
@faults
@pytest.mark.parametrize("missed", [0, 2, 8], ids=["nothing missed", "replayed", "gap"])
def test_what_was_missed_is_given_once_as_far_as_it_is_kept(
    holdfast: Callable[..., Node], reader: OpenReader, scheme: str, fault: Callable[[Node], None], missed: int
) -> None:
    node = holdfast("--workers", "2", **SETTINGS)
    node.expect_lost()

    async def body() -> None:
        channel = f"group:outcomes-{next(numbers)}"
        async with (
            Cable(node.port if scheme == "tcp" else node.ws_port) as cable,
            reader(node, scheme, cable.port) as ann,
        ):
            await ann.join(channel)
            held = publish(node, channel, "held")
            assert await ann.item() == ("message", "held")
            cable.cut()
            await ann.away()
            for number in range(missed):
                publish(node, channel, number)
            await asyncio.to_thread(fault, node)
            cable.mend()
            await ann.back()
            if missed < KEPT:
                publish(node, channel, "live")
            else:  # each further message would make the gap longer until it was told
                gap = {"from": held[1] + 1, "to": held[1] + missed - KEPT, "reason": "trimmed"}
                assert await ann.item() == ("gap", gap)
            for number in range(max(0, missed - KEPT), missed):
                assert await ann.item() == ("message", number)
            if missed > KEPT:
                publish(node, channel, "live")
            assert await ann.item() == ("message", "live")

    run(body())


async def _begins_anew(
    node: Node, reader: OpenReader, scheme: str, fault: Callable[[Node], None], *, again: int
) -> None:
    """The channel's log is lost while the reader is away, and `again` messages are in the new one."""
    channel = f"group:outcomes-{next(numbers)}"
    async with (
        Cable(node.port if scheme == "tcp" else node.ws_port) as cable,
        reader(node, scheme, cable.port) as ann,
    ):
        await ann.join(channel)
        for number in range(3):
            held = publish(node, channel, number)
            assert await ann.item() == ("message", number)
        cable.cut()
        await ann.away()
        await asyncio.to_thread(fault, node)
        for number in range(again):
            epoch, offset = publish(node, channel, f"again {number}")
            assert (epoch > held[0], offset) == (True, number + 1)
        cable.mend()
        await ann.back()
        kind, details = await ann.item()
        assert (kind, details["offset"], details["held"]) == ("reset", again, list(held))
        live = publish(node, channel, "live")
        assert live[1] == again + 1
        assert await ann.item() == ("message", "live")
        # And goes on from there: the next time nothing is amiss.
        cable.cut()
        await ann.away()
        publish(node, channel, "missed")
        cable.mend()
        await ann.back()
        assert await ann.item() == ("message", "missed")


@readers
@pytest.mark.parametrize("again", [0, 2, 7], ids=["empty", "shorter", "longer"])
def test_a_channel_that_begins_anew_under_killed_processes_is_told_as_reset(
    holdfast: Callable[..., Node], reader: OpenReader, scheme: str, again: int
) -> None:
    node = holdfast("--workers", "2", HOLDFAST_LOG_BACKEND="none")
    node.expect_lost()

    def kill_all(node: Node) -> None:
        (router,) = node.routers
        os.kill(router, signal.SIGKILL)
        kill_workers(node)
        wait_until(lambda: node.routers not in ([], [router]), "the next router")

    run(_begins_anew(node, reader, scheme, kill_all, again=again))


@readers
@pytest.mark.parametrize(
    ("again", "kept"),
    [(0, "development.key"), (2, "development.key"), (7, "development.key"), (7, "nothing")],
    ids=["empty", "shorter", "longer", "without-the-key-of-resume-tokens"],
)
def test_a_channel_that_begins_anew_after_its_log_was_removed_is_told_as_reset(
    holdfast: Callable[..., Node], reader: OpenReader, scheme: str, again: int, kept: str
) -> None:
    node = holdfast("--workers", "2")
    node.expect_lost()

    def restart_with_nothing(node: Node) -> None:
        node.stop()
        for found in Path(node.folder / "state").rglob("*"):
            if found.is_file() and found.name != kept:
                found.unlink()
        node.start_again()

    run(_begins_anew(node, reader, scheme, restart_with_nothing, again=again))


def lose_sessions(node: Node) -> None:
    """The node is killed, and what it stored of sessions is lost; messages stay."""
    node.crash()
    for found in Path(node.folder / "state").rglob("state.sqlite*"):
        found.unlink()
    node.start_again()


@pytest.mark.parametrize(
    ("reader", "scheme", "fault"),
    [
        pytest.param(python_reader, "tcp", kill_workers, id="python-tcp-kill"),
        pytest.param(python_reader, "ws", lose_sessions, id="python-ws-lost"),
        pytest.param(javascript_reader, "ws", restart, id="javascript-ws-restart", marks=needs_node),
        pytest.param(javascript_reader, "ws", lose_sessions, id="javascript-ws-lost", marks=needs_node),
    ],
)
def test_a_session_that_is_gone_begins_afresh_and_still_gets_what_it_missed(
    holdfast: Callable[..., Node], reader: OpenReader, scheme: str, fault: Callable[[Node], None]
) -> None:
    node = holdfast("--workers", "2", HOLDFAST_GATEWAY_RESUME_TOKEN_TTL_S=str(TTL_S))
    node.expect_lost()

    async def body() -> None:
        channel = f"group:outcomes-{next(numbers)}"
        async with (
            Cable(node.port if scheme == "tcp" else node.ws_port) as cable,
            reader(node, scheme, cable.port) as ann,
        ):
            await ann.join(channel)
            publish(node, channel, "held")
            assert await ann.item() == ("message", "held")
            cable.cut()
            await ann.away()
            left = time.time()
            for number in range(2):
                publish(node, channel, number)
            await asyncio.to_thread(fault, node)
            if fault is not lose_sessions:
                await in_thread(lambda: time.time() > left + TTL_S + 1, "its resume token's time is over")
            cable.mend()
            await ann.back()
            publish(node, channel, "live")
            for data in (0, 1, "live"):
                assert await ann.item() == ("message", data)
            (one,) = json.loads(node.get("/api/users/ann")[1])["sessions"]
            assert datetime.fromisoformat(one["created"]).timestamp() > left

    run(body())
