"""Logins in a cluster whose directory stands still, and what becomes of sessions whose worker died."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Node, free_ports, wait_until
from tests.process.clients import HELLO, WELCOME, Client, Frame, dial, open_session, run
from tests.servers import etcd

UNAVAILABLE = 5
PREFIX = "logins/"
FORMER_S = 5.0
"""Both the gateway's and the directory's own deadline, by which such a login had no answer."""
IN_A_ROW = 3


@pytest.fixture
def member() -> Iterator[etcd.Member]:
    with etcd.running() as made:
        yield made
        made.signal(signal.SIGCONT)


@pytest.fixture
def members() -> Iterator[etcd.Cluster]:
    with etcd.running_cluster() as made:
        yield made


@pytest.fixture
def settings(member: etcd.Member) -> dict[str, str]:
    return settings_of(member.endpoint)


def settings_of(*endpoints: str) -> dict[str, str]:
    return {
        "HOLDFAST_DIRECTORY_ENDPOINTS": ",".join(endpoints),
        "HOLDFAST_DIRECTORY_PREFIX": PREFIX,
        "HOLDFAST_DIRECTORY_SHARDS": "1",
        "HOLDFAST_BUS_ADVERTISE": f"127.0.0.1:{free_ports(1)[0]}",
        "HOLDFAST_LOG_BACKEND": "none",
    }


async def refused(node: Node, **hello: Any) -> Frame:
    """A login that is told to come back; its FIN."""
    client = await dial(node, "tcp")
    await client.send(HELLO, 1, {"v": 1, **hello})
    fin = await client.fin()
    await client.acknowledge()
    assert (fin[1], fin[3]["class"]) == (UNAVAILABLE, "resume")
    assert fin[3]["after"] > 0
    return fin


def positions(client: Client) -> dict[str, Any]:
    """Resumes its session wherever nothing is stored of it."""
    channels = {name: told[:2] for name, told in client.welcome["channels"].items()}
    return {"session": client.session, "token": client.resume_token, "resume": channels, "whole": True}


async def let_in(node: Node) -> None:
    """Somebody who comes back as he is told gets in."""
    while True:
        client = await dial(node, "tcp")
        await client.send(HELLO, 1, {"v": 1})
        frame = await client.receive()
        if frame[0] == WELCOME:
            await client.close()
            return
        await client.acknowledge()
        await asyncio.sleep(frame[3]["after"] / 1000)


def test_a_login_while_the_directory_stands_still_is_refused_in_time_and_the_next_ones_at_once(
    member: etcd.Member, settings: dict[str, str], holdfast: Any
) -> None:
    node = holdfast("--workers", "1", **settings, HOLDFAST_DIRECTORY_TTL_S="30")

    async def body() -> None:
        before = await open_session(node, "tcp")
        resumed = positions(before)
        await before.close()
        member.signal(signal.SIGSTOP)
        began = time.monotonic()
        assert (await refused(node))[2] == "nobody can tell now whose the session is"
        assert time.monotonic() - began < FORMER_S - 0.5
        began = time.monotonic()
        for number in range(IN_A_ROW):
            await refused(node, **(resumed if number else {}))
        assert time.monotonic() - began < IN_A_ROW * 2.0, "each waited anew"
        member.signal(signal.SIGCONT)
        await let_in(node)

    run(body())


def test_one_member_of_three_that_stands_still_keeps_nobody_out_and_all_of_them_are_noticed_as_one_is(
    members: etcd.Cluster, holdfast: Any
) -> None:
    node = holdfast("--workers", "1", **settings_of(*members.endpoints), HOLDFAST_DIRECTORY_TTL_S="30")

    async def body() -> None:
        leader = members.leader
        leader.signal(signal.SIGSTOP)
        await let_in(node)
        for one in members.members:
            one.signal(signal.SIGSTOP)
        began = time.monotonic()
        await refused(node)
        assert time.monotonic() - began < FORMER_S - 0.5
        for one in members.members:
            one.signal(signal.SIGCONT)
        await let_in(node)

    run(body())


def test_in_the_mode_local_such_a_login_gets_in_and_is_written_down_later(
    member: etcd.Member, settings: dict[str, str], holdfast: Any
) -> None:
    settings |= {"HOLDFAST_DIRECTORY_TTL_S": "30", "HOLDFAST_DIRECTORY_WHEN_AWAY": "local"}
    node = holdfast("--workers", "1", **settings)

    async def body() -> None:
        await let_in(node)  # the shard's sessions are read
        member.signal(signal.SIGSTOP)
        began = time.monotonic()
        first = await open_session(node, "tcp")
        assert time.monotonic() - began < FORMER_S - 0.5
        others = [await open_session(node, "tcp") for _ in range(IN_A_ROW)]
        assert time.monotonic() - began < FORMER_S + IN_A_ROW * 1.5, "each waited anew"
        member.signal(signal.SIGCONT)
        await asyncio.to_thread(wait_until, lambda: keys(member) == 1 + IN_A_ROW, "all are written down")
        for client in (first, *others):
            await client.close()

    run(body())


def test_a_login_when_nothing_is_led_any_more_is_refused_as_well_and_then_at_once(
    member: etcd.Member, settings: dict[str, str], holdfast: Any
) -> None:
    settings |= {"HOLDFAST_DIRECTORY_TTL_S": "3", "HOLDFAST_GATEWAY_REQUEST_TIMEOUT_MS": "20000"}
    node = holdfast("--workers", "1", **settings)
    node.expect_lost()  # its router ends when its lease has

    async def body() -> None:
        member.signal(signal.SIGSTOP)
        while "no router leads its shard" not in (fin := await refused(node))[2]:  # noqa: ASYNC110  as clients do
            await asyncio.sleep(fin[3]["after"] / 1000)
        began = time.monotonic()
        for _ in range(IN_A_ROW):
            await refused(node)
        assert time.monotonic() - began < IN_A_ROW * 2.5, "each waited anew"
        member.signal(signal.SIGCONT)
        await let_in(node)

    run(body())


def keys(member: etcd.Member) -> int:
    """How many sessions the directory names."""
    first = f"{PREFIX}sessions/"
    end = first[:-1] + chr(ord(first[-1]) + 1)
    found = member.do("kv/range", key=etcd.encoded(first), range_end=etcd.encoded(end), count_only=True)
    return int(found.get("count", 0))


def test_what_a_crashed_worker_had_is_given_back_but_for_whoever_is_back(
    member: etcd.Member, settings: dict[str, str], holdfast: Any
) -> None:
    node = holdfast("--workers", "1", **settings)
    node.expect_lost()

    async def back(old: Client) -> Client:
        client = await dial(node, "tcp")
        return await client.hello(**positions(old))

    async def body() -> None:
        clients = [await open_session(node, "tcp") for _ in range(6)]
        assert await asyncio.to_thread(keys, member) == 6
        (worker,) = node.workers
        os.kill(worker, signal.SIGKILL)
        for client in clients:
            await client.ended()
        await asyncio.to_thread(wait_until, lambda: node.workers not in ([], [worker]), "it is started anew")
        await asyncio.to_thread(wait_until, lambda: node.get("/readyz")[0] == 200, "it is ready")
        first = await back(clients[0])
        await asyncio.to_thread(wait_until, lambda: keys(member) == 1, "what nobody has is given back")
        second = await back(clients[1])
        assert second.welcome["resumed"]
        assert await asyncio.to_thread(keys, member) == 2
        for client in (first, second):
            await client.close()
        await asyncio.to_thread(wait_until, lambda: keys(member) == 0, "who ends gives his key back")

    run(body())
