"""What the embedded log was to keep is kept, also when the router's memory has no room for it."""

import contextlib
import json
import os
import signal
import sqlite3
from typing import Any

import pytest

from tests.conftest import Node, wait_until
from tests.process.clients import ACK, EVENT, HISTORY, JOIN, LEAVE, Client, dial, group, open_session, run, unique

ANYONE = {"HOLDFAST_NAMESPACES_USER_PUBLISH": "anyone"}


async def user(node: Node, name: str) -> Client:
    return await (await dial(node, "tcp")).hello(user=name)


def position(node: Node, channel: str) -> int:
    found: int = json.loads(node.get(f"/api/channels/{channel}")[1])["position"][1]
    return found


def stored_cursor(node: Node, channel: str) -> int:
    path = next((node.folder / "state").rglob("state.sqlite"))
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        (offset,) = database.execute("SELECT offset FROM cursors WHERE channel = ?", (channel,)).fetchone()
    assert isinstance(offset, int)
    return offset


async def told(client: Client, channel: str, count: int) -> tuple[str, int, list[Any]]:
    """(outcome, unread, data of so many messages)."""
    _, _, outcome = client.welcome["channels"][channel]
    return outcome, client.welcome["unread"], [frame[3] for frame in await client.messages(count)]


async def say(speaker: Client, channel: str, texts: list[Any]) -> None:
    """As a member for as long as it takes."""
    await speaker.join(channel)
    for data in texts:
        await speaker.publish(channel, data)
    await speaker.ask(LEAVE, channel)


async def missed(node: Node, name: str) -> None:
    """Five messages wait for a user; then the node is killed, and they still do."""
    channel, wanted = f"user:{name}", [f"offline {number}" for number in range(5)]
    for _ in range(2):
        bob = await user(node, name)
        assert await told(bob, channel, 5) == ("replayed", 5, wanted)
        await bob.close()
        node.crash()
        node.start_again()


@pytest.mark.parametrize(
    ("bound", "bytes_each"),
    [
        ({"HOLDFAST_ROUTER_CHANNELS_MAX": "100"}, 1),
        ({"HOLDFAST_ROUTER_HISTORY_TOTAL_BYTES": "1048576"}, 20_000),
    ],
)
def test_messages_for_somebody_offline_outlast_a_rush_in_other_channels(
    holdfast: Any, bound: dict[str, str], bytes_each: int
) -> None:
    node: Node = holdfast("--workers", "1", **ANYONE, **bound)
    node.expect_lost()
    name, team = unique("bob"), group()

    async def body() -> None:
        await (await user(node, name)).close()
        speaker = await open_session(node)
        for number in range(5):
            await speaker.publish(f"user:{name}", f"offline {number}")
        await say(speaker, team, ["a", "b"])
        for number in range(300):
            await say(speaker, f"group:rush-{number}", ["x" * bytes_each])
        assert node.metric("holdfast_history_squeezed_total") > 0
        assert (await speaker.join(team))["offset"] == 2
        found = await speaker.ask(HISTORY, team, {})
        assert [frame[3] for frame in found["messages"]] == ["a", "b"]
        assert (await speaker.publish(team, "c"))["offset"] == 3
        await speaker.close()
        await missed(node, name)

    run(body(), 120)


def test_beyond_the_disks_bound_who_was_away_hears_which_messages_are_gone(holdfast: Any) -> None:
    bound = 64 * 1024 * 1024
    node: Node = holdfast(
        "--workers",
        "1",
        HOLDFAST_LOG_BYTES_MAX=str(bound),
        HOLDFAST_NAMESPACES_GROUP_HISTORY_MESSAGES="100000",
        HOLDFAST_NAMESPACES_GROUP_HISTORY_BYTES=str(2 * bound),
        HOLDFAST_NAMESPACES_GROUP_PUBLISH="anyone",
    )
    node.expect_lost()
    channel, quiet, count = group(), group(), 1500

    async def body() -> None:
        speaker = await open_session(node)
        for name in (channel, quiet):
            await speaker.publish(name, "first")
        for number in range(count):
            await speaker.publish(channel, [number, "x" * 50_000])
        wait_until(lambda: node.metric("holdfast_log_outgrown_total") > 0, "the oldest to go")
        assert segments_bytes(node) <= bound
        await speaker.close()
        node.crash()
        node.start_again()
        reader = await open_session(node)
        told = await reader.ask(JOIN, quiet, {"since": [1, 0]})
        assert (told["offset"], told["outcome"]) == (1, "gap")
        assert (await reader.expect(EVENT))[1:] == [quiet, "gap", {"from": 1, "to": 1, "reason": "trimmed"}]
        told = await reader.ask(JOIN, channel, {"since": [1, 0]})
        assert (told["offset"], told["outcome"]) == (count + 1, "gap")
        _, _, _, gap = await reader.expect(EVENT)
        frames = await reader.messages(count + 1 - gap["to"])
        assert [frame[2] for frame in frames] == list(range(gap["to"] + 1, count + 2))
        assert gap["from"] == 1
        assert 0 < len(frames) < count
        await reader.close()

    run(body(), 120)


def segments_bytes(node: Node) -> int:
    return sum(path.stat().st_size for path in (node.folder / "state").rglob("segment-*.log"))


def test_who_was_away_for_longer_than_the_history_gets_what_came_after_it(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", **ANYONE, HOLDFAST_NAMESPACES_USER_HISTORY_AGE_S="2")
    node.expect_lost()
    name = unique("bob")
    channel = f"user:{name}"

    async def body() -> None:
        speaker, bob = await open_session(node), await user(node, name)
        for number in range(5):
            await speaker.publish(channel, f"old {number}")
        await bob.messages(5)
        await bob.send(ACK, {channel: 5})
        await bob.settle()
        await bob.close()
        wait_until(lambda: position(node, channel) == 0, "the channel to age away", 20)
        for number in range(3):
            await speaker.publish(channel, f"new {number}")
        new = [f"new {number}" for number in range(3)]
        bob = await user(node, name)
        assert await told(bob, channel, 3) == ("replayed", 3, new)
        await bob.send(ACK, {channel: 3})
        await bob.settle()
        await bob.close()
        wait_until(lambda: stored_cursor(node, channel) == 3, "the cursor to be stored")
        os.kill(node.routers[0], signal.SIGKILL)
        await speaker.publish(channel, "again")
        bob = await user(node, name)
        assert await told(bob, channel, 1) == ("replayed", 1, ["again"])

    run(body(), 60)
