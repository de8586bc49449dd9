"""A node with several routers: each leads its share of channels and sessions, and the end of one is nobody else's."""

import asyncio
import os
import re
import signal
from typing import Any

import pytest

from core.shards import shard
from tests.conftest import Node, command_line, wait_until
from tests.process.clients import ERROR, HISTORY, KINDS, MESSAGE, PRESENCE, Client, dial, open_session, run
from tests.process.places import one_on_each_worker
from tests.process.test_router_restart import Publisher

SETTLED_S = 10.0


def channel(of: int, routers: int, number: int = 0) -> str:
    """A group whose shard router `of` leads."""
    names = [name for name in (f"group:{of}-{at}" for at in range(100)) if shard(name.encode()) % routers == of]
    return names[number]


def endpoint_number(pid: int) -> int:
    """The number of a router, by the socket that it listens on."""
    inodes = set(re.findall(r"socket:\[(\d+)\]", " ".join(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in fds(pid))))
    with open("/proc/net/unix") as sockets:
        paths = [line.split()[7] for line in sockets if len(line.split()) > 7 and line.split()[6] in inodes]
    (path,) = {one for one in paths if "router.sock" in one}
    return int(path.rpartition(".")[2]) if path.rpartition(".")[2].isdigit() else 0


def fds(pid: int) -> list[str]:
    return [fd for fd in os.listdir(f"/proc/{pid}/fd") if os.path.islink(f"/proc/{pid}/fd/{fd}")]


async def next_router(node: Node, killed: int, routers: int) -> None:
    await asyncio.to_thread(
        wait_until, lambda: len(node.routers) == routers and killed not in node.routers, "the next router"
    )


@pytest.mark.parametrize("routers", [2, 3])
def test_the_kill_of_one_router_is_not_noticed_in_the_channels_of_others(holdfast: Any, routers: int) -> None:
    node: Node = holdfast("--workers", "2", HOLDFAST_NODE_ROUTERS=str(routers))
    node.expect_lost()

    async def body() -> None:
        channels = [channel(of, routers) for of in range(routers)]
        publishers: list[Publisher] = []
        for name in channels:
            for client in await one_on_each_worker(node, KINDS[:2]):
                await client.join(name)
                publishers.append(Publisher(client, name, keyed=False))
        for victim in range(2):
            await asyncio.gather(*(one.until(100) for one in publishers))
            pid = next(pid for pid in node.routers if endpoint_number(pid) == victim)
            os.kill(pid, signal.SIGKILL)
            others = [one for one in publishers if one.channel != channels[victim]]
            await asyncio.gather(*(one.until(200) for one in others))  # while that router is away
            await next_router(node, pid, routers)
        await asyncio.gather(*(one.until(100) for one in publishers))
        await asyncio.gather(*(one.stop() for one in publishers))
        for name in channels:
            own = [one for one in publishers if one.channel == name]
            answers = [answer for one in own for answer in one.answers.values()]
            assert [answer for answer in answers if answer[0] == ERROR] == []
            positions = [(answer[2]["epoch"], answer[2]["offset"]) for answer in answers]
            assert len({offset for _, offset in positions}) == len(positions)
            assert len({epoch for epoch, _ in positions}) == (2 if name in channels[:2] else 1)
            for one in own:
                offsets = [frame[2] for frame in one.heard if frame[0] == MESSAGE]
                assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
                said = [tuple(frame[3]) for frame in one.heard if frame[0] == MESSAGE]
                assert len(set(said)) == len(said)
            assert (await own[0].client.ask(PRESENCE, name))["count"] == 2  # all of them are still there
        await asyncio.gather(*(one.client.close() for one in publishers))

    run(body(), 90)


def test_sessions_histories_and_users_are_whole_over_all_routers(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "2", HOLDFAST_NODE_ROUTERS="3")

    async def body() -> None:
        channels = [channel(of, 3, number) for of in range(3) for number in range(2)]
        sessions = []
        for number in range(6):
            client = await open_session(node, KINDS[number % len(KINDS)], f"user-{number}")
            for name in channels:
                await client.join(name)
            sessions.append(client)
        for name in channels:
            await sessions[0].publish(name, name)
        for client in sessions:
            heard = {}
            for frame in await client.messages(len(channels)):
                heard[frame[1]] = frame[2]
            assert heard == dict.fromkeys(channels, 1)
            await client.send(10, heard)
        for name in channels:
            assert len((await sessions[0].ask(HISTORY, name, {}))["messages"]) == 1
            assert (await sessions[0].ask(PRESENCE, name))["count"] == len(sessions)
        await resumed(node, sessions, channels)

    run(body(), 60)


async def resumed(node: Node, sessions: list[Client], channels: list[str]) -> None:
    """Sessions whose clients name no position come back to where they acknowledged, whoever has what of them."""
    for old in sessions:
        await old.abort()
    for number, old in enumerate(sessions):
        async with asyncio.timeout(SETTLED_S):
            client = await dial(node, "tcp")
            await client.hello(session=old.session, token=old.resume_token, resume={}, unread=True)
        states = {name: state[2] for name, state in client.welcome["channels"].items()}
        assert states == {name: "live" for name in (*channels, f"user:user-{number}")}, client.welcome
        assert client.welcome.get("unread", 0) == 0
        await client.close()


def test_another_number_of_routers_is_refused_on_the_log_of_a_node(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_NODE_ROUTERS="2")

    async def publish() -> None:
        client = await open_session(node)
        for of in range(2):
            await client.join(channel(of, 2))
            await client.publish(channel(of, 2), of)
        await client.close()

    run(publish())
    node.crash()
    node.start_again()

    async def history() -> None:
        client = await open_session(node)
        for of in range(2):
            await client.join(channel(of, 2))
            (message,) = (await client.ask(HISTORY, channel(of, 2), {}))["messages"]
            assert message[3] == of
        await client.close()

    run(history())
    assert all(command_line(pid) for pid in node.routers)
