"""What the admin API and the command line say of a user: what waits, up to where it was read, and who is here."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import HTTP_DEADLINE_S, Node, wait_until
from tests.process.clients import ACK, group, open_session, run, unique


def told(node: Node, user: str) -> dict[str, Any]:
    status, text = node.get(f"/api/users/{user}")
    assert status == 200, text
    return dict(json.loads(text))


def of_channel(node: Node, channel: str) -> tuple[int, int, int]:
    """Offset, cursor and unread of a user's channel."""
    one = told(node, channel.partition(":")[2])["channels"][channel]
    return one["position"][1], one["cursor"][1], one["unread"]


def test_what_waits_for_a_user_who_is_away_is_counted_until_a_device_acknowledges_it(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "2", HOLDFAST_NAMESPACES_INBOX_DOMAIN="session")
    user = unique("bob")
    own, inbox = f"user:{user}", f"inbox:{user}"

    async def body() -> None:
        nobody = told(node, user)
        assert (nobody["unread"], set(nobody["channels"]), nobody["sessions"]) == (0, {own, inbox}, [])
        speaker = await open_session(node, "tcp")
        for number in range(5):
            position = await speaker.publish(own, number)
        assert (of_channel(node, own), of_channel(node, inbox)) == ((5, 0, 5), (0, 0, 0))
        phone = await open_session(node, "tcp", user, device="phone")
        desktop = await open_session(node, "text", user)
        found = told(node, user)
        assert found["channels"][own]["position"] == [position["epoch"], 5]
        assert (found["unread"], found["more"], found["missing"]) == (5, False, [])
        assert {one["session"] for one in found["sessions"]} == {phone.session, desktop.session}
        assert {one["transport"] for one in found["sessions"]} == {"tcp", "websocket"}
        await phone.send(ACK, {own: 3})
        wait_until(lambda: of_channel(node, own) == (5, 3, 2), "the phone's ACK counts")
        await desktop.send(ACK, {own: 2})  # the highest of all counts
        await desktop.settle()
        assert of_channel(node, own) == (5, 3, 2)
        await phone.close()
        await desktop.send(ACK, {own: 5})
        wait_until(lambda: told(node, user)["unread"] == 0, "all is read")
        assert [one["session"] for one in told(node, user)["sessions"]] == [desktop.session]
        await desktop.close()
        await speaker.close()
        assert (told(node, user)["sessions"], of_channel(node, own)) == ([], (5, 5, 0))

    run(body())


def test_cursors_outlive_the_node(kept_in: dict[str, str], holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_NAMESPACES_INBOX_DOMAIN="session", **kept_in)
    node.expect_lost()
    user = unique("bob")
    own, inbox = f"user:{user}", f"inbox:{user}"

    async def before() -> None:
        bob = await open_session(node, "tcp", user)
        for channel in (own, inbox):
            for number in range(3):
                await bob.publish(channel, number)
        await bob.send(ACK, {own: 1, inbox: 2})
        wait_until(lambda: told(node, user)["unread"] == 3, "the ACKs count")
        assert (of_channel(node, own), of_channel(node, inbox)) == ((3, 1, 2), (3, 2, 1))
        await bob.close()

    run(before())
    node.stop()
    node.start_again()
    assert (of_channel(node, own), of_channel(node, inbox)) == ((3, 1, 2), (3, 2, 1))


def test_how_far_behind_each_session_is_is_told_also_by_the_next_router(kept_in: dict[str, str], holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", **kept_in)
    node.expect_lost()
    user, channel = unique("bob"), group()
    own = f"user:{user}"

    def behind() -> dict[str, dict[str, int]]:
        """How far behind each session is, by channel."""
        found = told(node, user)["sessions"]
        assert all(one["channel_count"] == (one["channels"] and len(one["channels"])) for one in found)
        return {one["session"]: {name: at["behind"] for name, at in (one["channels"] or {}).items()} for one in found}

    async def body() -> None:
        phone, desktop = await open_session(node, "tcp", user), await open_session(node, "tcp", user)
        for client in (phone, desktop):
            await client.join(channel)
        for number in range(4):
            await phone.publish(channel, number)
        await phone.publish(own, "note")
        await phone.send(ACK, {channel: 3, own: 1})
        expected = {phone.session: {channel: 1, own: 0}, desktop.session: {channel: 4, own: 1}}
        wait_until(lambda: behind() == expected, "the ACK is stored")
        (router,) = node.routers
        os.kill(router, signal.SIGTERM)  # one that is killed may not have written the last 20 ms
        await phone.publish(channel, 4)  # by the next router
        expected[phone.session][channel], expected[desktop.session][channel] = 2, 5
        wait_until(lambda: behind() == expected, "the next router knows")
        await phone.close()
        await desktop.close()

    run(body())


def test_the_command_shows_what_the_api_tells(node: Node) -> None:
    user = unique("bob")

    async def body() -> None:
        bob = await open_session(node, "tcp", user)
        await bob.publish(f"user:{user}", "one")
        shown = command(user)
        assert shown.startswith(f"{user}: 1 unread\n")
        assert bob.session in shown
        assert json.loads(command(user, "--json")) == told(node, user)
        await bob.close()

    def command(*arguments: str) -> str:
        program = Path(sys.executable).parent / "holdfast"
        done = subprocess.run(
            [program, "user", *arguments, "--url", node.admin_url],
            capture_output=True,
            text=True,
            timeout=HTTP_DEADLINE_S,
            check=True,
        )
        return done.stdout

    run(body())


def test_a_name_that_is_none_is_refused(node: Node) -> None:
    status, text = node.get("/api/users/" + "x" * 251)
    assert (status, json.loads(text)["code"]) == (400, "bad_request")
