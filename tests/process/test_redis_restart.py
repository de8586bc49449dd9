"""A log in Redis, where streams are cold: whatever ended, the next router gives what was, and exactly what was missed."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import Node, wait_until
from tests.process.clients import ACK, EVENT, HISTORY, MESSAGE, Client, dial, group, open_session, run
from tests.process.test_log_in_redis import kill_router
from tests.process.test_offline import SECRET, token_of
from tests.servers.redis import Server, running

BEFORE, MISSED = 12, 8
RUSH_SESSIONS, RUSH_CHANNELS = 200, 2_000
RUSH_DEADLINE_S = 15.0
ENDS = ("router", "node", "other node")

Start = Callable[..., Node]


def start(holdfast: Start, server: Server, *arguments: str, **more: str) -> Node:
    settings = {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": server.url, "HOLDFAST_AUTH_SECRET": SECRET}
    node = holdfast("--workers", "1", *arguments, **settings, **more)
    node.expect_lost()
    return node


def end(holdfast: Start, server: Server, node: Node, what: str) -> Node:
    """Whom to ask next."""
    if what == "router":
        kill_router(node)
        return node
    if what == "node":
        node.crash()
        node.start_again()
        return node
    node.stop()
    return start(holdfast, server)


async def user(node: Node, name: str) -> Client:
    return await open_session(node, "tcp", token=token_of(name))


async def resume(node: Node, old: Client, positions: dict[str, list[int]]) -> Client:
    return await (await dial(node, "tcp")).hello(session=old.session, token=old.resume_token, resume=positions)


async def said(client: Client) -> list[tuple[str, int, Any]]:
    """The messages that were on their way to it, and nothing else."""
    frames = await client.settle()
    assert {frame[0] for frame in frames} <= {MESSAGE}, frames
    return [(frame[1], frame[2], frame[3]) for frame in frames]


def is_stored(server: Server, session: str, channel: str, offset: int) -> bool:
    [key] = server.do("KEYS", f"hf:*:s:{session}") or [b""]
    text: bytes | None = server.do("HGET", key, f"c:{channel}")
    return text is not None and text.endswith(b"-%d" % offset)


@dataclass
class Left:
    """What a test knows of what was before the end."""

    alice: Client
    named: str
    """A channel whose position she names."""
    acked: str
    """One that she leaves out, and of which she acknowledged some."""
    since: str
    """One that is joined since a position."""
    first: dict[str, tuple[int, int]]
    """The position of each one's first message."""

    @property
    def channels(self) -> tuple[str, str, str]:
        return (self.named, self.acked, self.since)


async def before(node: Node, server: Server) -> Left:
    alice, speaker = await user(node, "alice"), await user(node, "speaker")
    named, acked, since = group("named"), group("acked"), group("since")
    first = {}
    for channel in (named, acked, since):
        await speaker.join(channel)
        answers = [await speaker.publish(channel, at, key=f"{channel}-{at}") for at in range(1, BEFORE + 1)]
        assert [answer["offset"] for answer in answers] == list(range(1, BEFORE + 1))
        first[channel] = (answers[0]["epoch"], answers[0]["offset"])
    await alice.join(named)
    await alice.join(acked)
    await alice.send(ACK, {acked: BEFORE})
    await alice.settle()
    await asyncio.to_thread(
        wait_until, lambda: is_stored(server, alice.session, acked, BEFORE), "what alice acknowledged is stored"
    )
    await alice.abort()
    for channel in (named, acked, since):
        for at in range(BEFORE + 1, BEFORE + MISSED + 1):
            await speaker.publish(channel, at, key=f"{channel}-{at}")
    await speaker.close()
    return Left(alice, named, acked, since, first)


async def check_resume(node: Node, left: Left, epoch: int) -> None:
    """She gets what she missed, once, in its order, and then what is said now."""
    last = BEFORE + MISSED
    alice, speaker = await resume(node, left.alice, {left.named: [epoch, BEFORE]}), await user(node, "speaker")
    assert alice.welcome["resumed"] is True
    for channel in (left.named, left.acked):
        assert alice.welcome["channels"][channel][1:] == [last, "replayed"]
    joined = await alice.join(left.since, since=[epoch, BEFORE + 3])
    assert (joined["offset"], joined["outcome"]) == (last, "replayed")
    got: list[tuple[str, int, Any]] = []
    while len(got) < 2 * MISSED + MISSED - 3:
        got += [(frame[1], frame[2], frame[3]) for frame in [await alice.message()]]
    for channel in left.channels:
        await speaker.join(channel)
        told = await speaker.publish(channel, last + 1)
        assert (told["offset"], told["epoch"] > epoch) == (last + 1, True)
    got += [(frame[1], frame[2], frame[3]) for frame in await alice.messages(3)]
    for channel, after in zip(left.channels, (BEFORE, BEFORE, BEFORE + 3), strict=True):
        mine = [(offset, data) for name, offset, data in got if name == channel]
        assert mine == [(at, at) for at in range(after + 1, last + 2)]
    assert await said(alice) == []
    await asyncio.gather(alice.close(), speaker.close())


async def check_log(node: Node, left: Left) -> None:
    """All that was is read, and known by the keys of who said it."""
    reader = await user(node, "speaker")
    for channel in left.channels:
        await reader.join(channel)
        answer = await reader.ask(HISTORY, channel, {})
        assert [(one[2], one[3]) for one in answer["messages"]] == [(at, at) for at in range(1, BEFORE + MISSED + 1)]
        again = await reader.publish(channel, 1, key=f"{channel}-1")
        assert (again["epoch"], again["offset"]) == left.first[channel]
    assert await said(reader) == []
    await reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("history_first", [False, True], ids=["cold", "read before"])
@pytest.mark.parametrize("what", ENDS)
def test_whatever_ended_a_session_gets_exactly_what_it_missed(holdfast: Start, what: str, history_first: bool) -> None:
    with running() as server:
        node = start(holdfast, server)

        async def body() -> None:
            left = await before(node, server)
            epoch = left.first[left.named][0]
            after = await asyncio.to_thread(end, holdfast, server, node, what)
            if history_first:
                await check_log(after, left)
            await check_resume(after, left, epoch)
            if not history_first:
                reader = await user(after, "reader")
                for channel in left.channels:
                    await reader.join(channel)
                    answer = await reader.ask(HISTORY, channel, {})
                    assert [one[2] for one in answer["messages"]] == list(range(1, BEFORE + MISSED + 2))
                await reader.close()

        run(body())
