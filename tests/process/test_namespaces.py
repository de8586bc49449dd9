"""Namespaces of one's own, from the configuration to the clients of two workers and the admin API."""

import asyncio
import urllib.error
from typing import Any

import pytest

from tests.conftest import Node
from tests.process.clients import HISTORY, JOIN, PRESENCE, PUBLISH, Client, run
from tests.process.places import one_on_each_worker
from tests.process.test_reload import post
from tests.process.test_requests import NO_SUCH_CHANNEL, NOT_ALLOWED, close_all, refusal

TOO_LARGE = 405
SETTINGS = {
    "INBOX_DOMAIN": "session",
    "CHAT_DOMAIN": "group",
    "CHAT_PUBLISH": "anyone",
    "CHAT_HISTORY_MESSAGES": "2",
    "CHAT_PAYLOAD_BYTES_MAX": "1000",
    "PLANS_DOMAIN": "group",
    "PLANS_PUBLISH": "server",
    "PLANS_PRESENCE": "false",
    "CLOSED_DOMAIN": "group",
    "CLOSED_JOIN": "server",
    "CLOSED_PUBLISH": "server",
    "BOARD_DOMAIN": "global",
    "BOARD_PUBLISH": "anyone",
}


def test_each_channel_is_what_its_namespace_says(holdfast: Any) -> None:
    node = holdfast("--workers", "2", **{f"HOLDFAST_NAMESPACES_{key}": value for key, value in SETTINGS.items()})

    async def body() -> None:
        alice, bob = await one_on_each_worker(node)
        await a_user_has_a_channel_in_each_namespace_of_domain_session(alice, bob)
        await anyone_publishes_and_little_is_kept(alice, bob)
        await the_server_alone_publishes(node, alice)
        await everybody_hears_the_board(alice, bob)
        assert (await refusal(alice, JOIN, "closed:a")).code == NOT_ALLOWED
        assert (await refusal(alice, PUBLISH, "outbox:a", "x")).code == NO_SUCH_CHANNEL
        await close_all(alice, bob)

    run(body())


async def a_user_has_a_channel_in_each_namespace_of_domain_session(alice: Client, bob: Client) -> None:
    inbox = f"inbox:{bob.user}"
    assert set(bob.welcome["channels"]) == {f"user:{bob.user}", inbox}
    await alice.publish(inbox, "hello")
    assert (await bob.message())[1:4] == [inbox, 1, "hello"]
    assert [message[3] for message in (await bob.ask(HISTORY, inbox, {}))["messages"]] == ["hello"]
    assert (await refusal(alice, HISTORY, inbox, {})).code == NOT_ALLOWED
    assert (await refusal(alice, JOIN, inbox)).code == NOT_ALLOWED


async def anyone_publishes_and_little_is_kept(alice: Client, bob: Client) -> None:
    await bob.join("chat:a")
    for number in range(1, 5):
        await alice.publish("chat:a", number)
    assert [message[3] for message in await bob.messages(4)] == [1, 2, 3, 4]
    assert [message[3] for message in (await bob.ask(HISTORY, "chat:a", {}))["messages"]] == [3, 4]
    assert (await refusal(alice, PUBLISH, "chat:a", "x" * 1000)).code == TOO_LARGE


async def the_server_alone_publishes(node: Node, alice: Client) -> None:
    await alice.join("plans:a")
    assert (await refusal(alice, PUBLISH, "plans:a", "x")).code == NOT_ALLOWED
    assert (await refusal(alice, PRESENCE, "plans:a")).code == NOT_ALLOWED
    await asyncio.to_thread(post, node, "/api/publish", {"channel": "plans:a", "data": "the plan"})
    assert (await alice.message())[1:4] == ["plans:a", 1, "the plan"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        await asyncio.to_thread(post, node, "/api/publish", {"channel": "outbox:a", "data": "x"})
    assert refused.value.code == 400
    assert b"no_such_channel" in refused.value.read()


async def everybody_hears_the_board(alice: Client, bob: Client) -> None:
    await alice.publish("board:a", "for all")
    for client in (alice, bob):
        assert (await client.message())[1:4] == ["board:a", 1, "for all"]
