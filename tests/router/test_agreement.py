"""A node that would lose messages in a cluster, because it is configured otherwise, takes no part in it."""

import asyncio
import json
import os
import subprocess
from typing import Any

import pytest

from router.agreement import CLUSTER, agree, is_over, key_of, obstacle, start_here
from router.directory.embedded import EmbeddedDirectory, Store
from router.directory.port import Claim, Misused
from router.shards.records import NodeRecord, encode


def address(host: str, key: str = "") -> str:
    return json.dumps({"bus": f"tcp://{host}:7410", "key": key} if key else {"bus": f"tcp://{host}:7410"})


def run(scenario: Any) -> None:
    async def limited() -> None:
        directory = EmbeddedDirectory(Store())
        try:
            async with asyncio.timeout(30.0):
                await scenario(directory)
        finally:
            await directory.close()

    asyncio.run(limited())


def test_the_first_node_says_how_many_shards_there_are_and_another_number_is_refused() -> None:
    async def scenario(directory: EmbeddedDirectory) -> None:
        await agree(directory, 16)
        await agree(directory, 16)
        with pytest.raises(Misused, match=r"this cluster has 16 shards, and directory\.shards = 64 here.* `cluster`"):
            await agree(directory, 64)
        await agree(directory, 16)

    run(scenario)


@pytest.mark.parametrize(
    ("value", "said"), [(b"\xc1", "an unreadable number of shards"), (b"\x92\x02\x10", "in a form of version 2")]
)
def test_what_a_later_version_wrote_of_the_cluster_is_refused(value: bytes, said: str) -> None:
    async def scenario(directory: EmbeddedDirectory) -> None:
        await directory.transact([Claim(CLUSTER, 0, value)])
        with pytest.raises(Misused, match=said):
            await agree(directory, 16)

    run(scenario)


def test_a_name_that_is_taken_at_another_address_is_waited_for_and_the_same_node_again_is_not() -> None:
    async def scenario(directory: EmbeddedDirectory) -> None:
        assert await obstacle(directory, "a", address("one")) == ""
        held = await directory.register("a", encode(NodeRecord(1, address("one"))), 5)
        assert await obstacle(directory, "a", address("one")) == ""
        assert "another node named a is registered" in await obstacle(directory, "a", address("two"))
        await held.close()
        assert await obstacle(directory, "a", address("two")) == ""

    run(scenario)


def started(host: str, start: str) -> str:
    return json.dumps({"bus": f"tcp://{host}:7410", "start": start})


def test_another_start_at_the_same_address_is_waited_for_and_why_is_said() -> None:
    async def scenario(directory: EmbeddedDirectory) -> None:
        held = await directory.register("a", encode(NodeRecord(1, started("one", start_here()))), 5)
        assert await obstacle(directory, "a", started("one", start_here())) == ""
        for start in ("boot/pid:[7]/1/5", "", "nonsense"):
            why = await obstacle(directory, "a", started("one", start))
            assert why.startswith("another start of this node is registered")
            assert "tcp://one:7410" in why
            assert start_here() not in why
        await held.close()

    run(scenario)


def test_one_of_this_machine_that_has_ended_is_not_waited_for() -> None:
    async def scenario(directory: EmbeddedDirectory) -> None:
        there = started("one", start_here(process.pid))
        held = await directory.register("a", encode(NodeRecord(1, there)), 5)
        assert await obstacle(directory, "a", started("one", start_here()))
        process.kill()
        # What it was is there until somebody asks.
        await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert await obstacle(directory, "a", started("one", start_here())) == ""
        process.wait()
        assert await obstacle(directory, "a", started("one", start_here())) == ""
        await held.close()

    with subprocess.Popen(["sleep", "60"]) as process:
        run(scenario)


@pytest.mark.parametrize("start", ["", "1", "a/b/c/d", "boot/pid:[1]/1/1"])
def test_what_was_elsewhere_is_not_known_to_have_ended(start: str) -> None:
    assert not is_over(started("one", start))
    boot, namespace, pid, began = start_here().split("/")
    assert not is_over(started("one", "/".join((boot, namespace, pid, began))))
    assert is_over(started("one", "/".join((boot, namespace, pid, began + "1"))))


def test_a_router_with_other_keys_of_the_bus_than_the_others_is_not_let_in() -> None:
    async def scenario(directory: EmbeddedDirectory) -> None:
        workers = await directory.register("g.gw", encode(NodeRecord(0, "{}")), 5)
        unknown = await directory.register("z", b"of a later version", 5)
        held = await directory.register("a", encode(NodeRecord(1, address("one", "k1"))), 5)
        assert await obstacle(directory, "b", address("two", "k1")) == ""
        for key in ("k2", ""):
            assert "the router a has another bus.public_key" in await obstacle(directory, "b", address("two", key))
        assert await obstacle(directory, "b.gw", "{}", leads=False) == ""
        for one in (held, unknown, workers):
            await one.close()

    run(scenario)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}"])
def test_an_address_of_another_form_names_no_key(text: str) -> None:
    assert key_of(text) == ""
