"""What the admin API and the command line say of a channel: where it stands, what is kept, and who is in it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.conftest import HTTP_DEADLINE_S, Node, wait_until
from tests.gateway.token_makers import SECRET, token
from tests.process.clients import LEAVE, dial, group, open_session, run, unique
from tests.process.places import one_on_each_worker


def told(node: Node, channel: str) -> dict[str, Any]:
    status, text = node.get(f"/api/channels/{quote(channel, safe='')}")
    assert status == 200, text
    return dict(json.loads(text))


def holdfast_program(node: Node, *arguments: str) -> str:
    program = Path(sys.executable).parent / "holdfast"
    done = subprocess.run(
        [program, *arguments, "--url", node.admin_url],
        capture_output=True,
        text=True,
        timeout=HTTP_DEADLINE_S,
        check=True,
    )
    return done.stdout


def test_members_of_all_workers_position_and_history_are_told(node: Node) -> None:
    channel = group()

    async def body() -> None:
        nothing = told(node, channel)
        assert (nothing["position"][1], nothing["members"], nothing["sessions"]) == (0, 0, [])
        assert nothing["history"] == {"messages": 0, "bytes": 0, "oldest": None}
        clients = await one_on_each_worker(node)
        for client in clients:
            await client.join(channel)
        at = [await clients[0].publish(channel, number) for number in range(3)]
        found = told(node, channel)
        assert (found["namespace"], found["domain"], found["in_memory"], found["missing"]) == (
            "group",
            "group",
            "all",
            [],
        )
        assert found["position"] == [at[2]["epoch"], at[2]["offset"]]
        assert (found["waiting"], found["history"]["messages"], found["workers"]) == (0, 3, 2)
        assert found["history"]["oldest"]["position"] == [at[0]["epoch"], at[0]["offset"]]
        assert found["presence"] == {"users": 2, "sessions": 2}
        assert found["members"] == 2
        assert {one["session"] for one in found["sessions"]} == {client.session for client in clients}
        assert {one["worker"] for one in found["sessions"]} == {"worker-0", "worker-1"}
        assert json.loads(holdfast_program(node, "channel", channel, "--json")) == found
        listed = holdfast_program(node, "connections", "--channel", channel, "--json").splitlines()
        assert {json.loads(line)["session"] for line in listed} == {client.session for client in clients}
        shown = holdfast_program(node, "channel", channel)
        assert shown.startswith(f"{channel}: 2 users in 2 sessions\n")
        assert all(client.session in shown for client in clients)
        await clients[0].close()
        wait_until(lambda: told(node, channel)["members"] == 1, "the other one is left")
        await clients[1].close()

    run(body())


def test_everybody_is_in_a_global_channel_and_a_user_in_its_own(node: Node) -> None:
    async def body() -> None:
        user = unique("bob")
        bob, other = await open_session(node, "tcp", user), await open_session(node, "text")
        found = told(node, "global:news")
        assert (found["members"], found["presence"]) == (2, None)
        assert {one["session"] for one in found["sessions"]} == {bob.session, other.session}
        own = told(node, f"user:{user}")
        assert (own["members"], [one["session"] for one in own["sessions"]]) == (1, [bob.session])
        await bob.close()
        await other.close()

    run(body())


def test_of_no_channel_there_is_nothing(node: Node) -> None:
    for name, expected in (("nothing:a", 404), ("group", 404), (f"group:{'x' * 250}", 400)):
        status, text = node.get(f"/api/channels/{name}")
        assert status == expected
        assert json.loads(text)["message"]


def test_members_are_listed_and_ended_by_device_and_channel(holdfast: Callable[..., Node]) -> None:
    node = holdfast("--workers", "2", HOLDFAST_AUTH_SECRET=SECRET)

    async def body() -> None:
        channel, user = group(), unique("bob")
        phone, desktop = [
            await (await dial(node, "tcp")).hello(token=token({"sub": user, "dev": device, "exp": time.time() + 600}))
            for device in ("phone", "desktop")
        ]
        for client in (phone, desktop):
            await client.join(channel)
        table = holdfast_program(node, "connections", "--user", user).splitlines()
        assert sorted(line.split()[2] for line in table) == ["DEVICE", "desktop", "phone"]
        of_phone = holdfast_program(node, "connections", "--device", "phone", "--channel", channel, "--json")
        assert [json.loads(line)["session"] for line in of_phone.splitlines()] == [phone.session]
        holdfast_program(node, "kick", "--device", "phone", "--channel", channel)
        assert (await phone.fin())[1] == 604
        await phone.abort()
        wait_until(lambda: told(node, channel)["members"] == 1, "the phone is gone")
        await desktop.close()

    run(body())


def test_what_is_kept_is_told_by_the_next_router_as_well(
    kept_in: dict[str, str], holdfast: Callable[..., Node]
) -> None:
    node = holdfast("--workers", "1", HOLDFAST_NAMESPACES_GROUP_HISTORY_MESSAGES="5", **kept_in)
    node.expect_lost()
    channel, quiet = group(), group()

    async def body() -> None:
        client = await open_session(node, "tcp")
        for name in (channel, quiet):
            await client.join(name)
        at = [await client.publish(channel, number) for number in range(8)]
        await client.publish(quiet, "x")
        before = told(node, channel)
        assert before["history"]["messages"] == 5
        await client.ask(LEAVE, quiet)
        (router,) = node.routers
        os.kill(router, signal.SIGKILL)
        after = await client.publish(channel, 8)
        found = told(node, channel)
        assert found["position"] == [after["epoch"], at[7]["offset"] + 1]
        assert found["history"]["messages"] == 5
        assert found["history"]["oldest"]["position"] == [at[4]["epoch"], at[4]["offset"]]
        assert (found["members"], found["presence"]) == (1, {"users": 1, "sessions": 1})
        # Nobody is in the other one: a router that does not read all at its start has nothing of it until it is asked.
        first, second = told(node, quiet), told(node, quiet)
        assert first["in_memory"] == ("nothing" if kept_in else "all")
        assert second["in_memory"] == "all"
        for one in (first, second):
            assert (one["position"][1], one["history"]["messages"], one["members"]) == (1, 1, 0)
        await client.close()

    run(body())
