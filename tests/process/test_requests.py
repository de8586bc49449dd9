"""JOIN, LEAVE, HISTORY, PRESENCE and what this version does not serve, over real sockets and two workers."""

import asyncio
from typing import Any

import pytest

from tests.conftest import Node, wait_until
from tests.process.clients import (
    CALL,
    HISTORY,
    JOIN,
    KINDS,
    LEAVE,
    MESSAGE,
    PRESENCE,
    PUBLISH,
    Client,
    Refused,
    group,
    open_session,
    run,
)
from tests.process.places import one_on_each_worker

BAD_REQUEST, NOT_JOINED, NOT_ALLOWED, NO_SUCH_CHANNEL = 406, 402, 400, 401


async def refusal(client: Client, *request: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        await client.ask(*request)
    return refused.value


async def close_all(*clients: Client) -> None:
    await asyncio.gather(*(client.close() for client in clients))


# ---- joining and leaving ----


def test_join_tells_the_last_position_and_twice_is_one_membership(node: Node) -> None:
    async def body() -> None:
        channel = group()
        first, second = await open_session(node, "tcp"), await open_session(node, "text")
        joined = await first.join(channel)
        assert set(joined) == {"epoch", "offset", "outcome"}
        assert (joined["offset"], joined["outcome"]) == (0, "live")
        await first.publish(channel, "one")
        late = await second.join(channel)
        assert (late["epoch"], late["offset"], late["outcome"]) == (joined["epoch"], 1, "live")
        assert (await second.join(channel))["offset"] == 1
        await first.publish(channel, "two")
        assert [frame[2:4] for frame in await second.messages(1)] == [[2, "two"]]
        # One LEAVE ends it, however often it was joined.
        await second.ask(LEAVE, channel)
        await first.publish(channel, "three")
        assert await second.settle() == []
        await close_all(first, second)

    run(body())


def test_leave_is_answered_by_an_empty_reply_and_nothing_comes_after_it(node: Node) -> None:
    async def body() -> None:
        channel = group()
        member, sender = await open_session(node, "binary"), await open_session(node, "tcp")
        await member.join(channel)
        await sender.join(channel)
        for number in range(200):
            await sender.send(PUBLISH, 0, channel, number)
        assert await member.ask(LEAVE, channel) == {}
        member.kept.clear()
        await sender.publish(channel, "after")
        assert await member.settle() == []
        await close_all(member, sender)

    run(body())


def test_leave_without_join_is_not_joined_and_implicit_channels_cannot_be_left(node: Node) -> None:
    async def body() -> None:
        for kind in KINDS:
            client = await open_session(node, kind, "alice")
            assert (await refusal(client, LEAVE, group())).code == NOT_JOINED
            channel = group()
            await client.join(channel)
            await client.ask(LEAVE, channel)
            assert (await refusal(client, LEAVE, channel)).code == NOT_JOINED
            assert (await refusal(client, LEAVE, "user:alice")).code == NOT_ALLOWED
            assert (await refusal(client, LEAVE, "global:x")).code == NOT_ALLOWED
            assert (await refusal(client, LEAVE, "nobody:x")).code == NO_SUCH_CHANNEL
            await client.close()

    run(body())


def test_joining_what_is_joined_implicitly_gives_its_position_and_nothing_twice(node: Node) -> None:
    async def body() -> None:
        client = await open_session(node, "text", "alice")
        news = "global:" + group()[6:]
        assert (await client.join(news))["offset"] == 0
        assert (await client.join("user:alice"))["outcome"] == "live"
        await client.publish(news, "to all")
        assert (await client.join(news))["offset"] == 1
        assert (await refusal(client, JOIN, "user:bob", {})).code == NOT_ALLOWED
        messages = [frame for frame in await client.settle() if frame[:2] == [MESSAGE, news]]
        assert [frame[3] for frame in messages] == ["to all"]
        await client.close()

    run(body())


def test_join_since_the_last_position_is_live(node: Node) -> None:
    async def body() -> None:
        channel = group()
        first, second = await open_session(node, "tcp"), await open_session(node, "text")
        await first.join(channel)
        position = await first.publish(channel, "x")
        joined = await second.join(channel, since=[position["epoch"], position["offset"]])
        assert joined == {**position, "outcome": "live"}
        await close_all(first, second)

    run(body())


@pytest.mark.parametrize("epoch_ahead", [True, False])
def test_join_since_a_position_without_common_history_is_reset(node: Node, epoch_ahead: bool) -> None:
    async def body() -> None:
        channel = group()
        first, second = await open_session(node, "tcp"), await open_session(node, "text")
        await first.join(channel)
        position = await first.publish(channel, "x")
        since = [position["epoch"] + 1, 1] if epoch_ahead else [position["epoch"], 99]
        joined = await second.join(channel, since=since)
        assert joined == {**position, "outcome": "reset"}
        await first.publish(channel, "y")
        assert (await second.message())[2:4] == [2, "y"]
        await close_all(first, second)

    run(body())


def test_join_since_a_position_gets_what_came_after_it_and_may_publish_meanwhile(node: Node) -> None:
    async def body() -> None:
        channel = group()
        first, second = await open_session(node, "tcp"), await open_session(node, "text")
        await first.join(channel)
        position = await first.publish(channel, "x")
        await first.publish(channel, "y")
        joined = await second.ask(JOIN, channel, {"since": [position["epoch"], position["offset"]]})
        assert (joined["offset"], joined["outcome"]) == (2, "replayed")
        await second.publish(channel, "z")
        assert [frame[2:4] for frame in await second.settle()] == [[2, "y"], [3, "z"]]
        await close_all(first, second)

    run(body())


@pytest.mark.parametrize("since", [5, [1], [1, 2, 3], ["1", 2], [-1, 0], [1.5, 2], {"epoch": 1}])
def test_join_since_something_that_is_no_position_is_a_bad_request(node: Node, since: Any) -> None:
    async def body() -> None:
        client = await open_session(node, "text")
        assert (await refusal(client, JOIN, group(), {"since": since})).code == BAD_REQUEST
        await client.close()

    run(body())


# ---- history ----


async def with_history(node: Node, kind: str, count: int) -> tuple[Client, str, int]:
    client, channel = await open_session(node, kind, "author"), group()
    await client.join(channel)
    for number in range(1, count + 1):
        position = await client.publish(channel, f"message {number}")
    await client.settle()
    return client, channel, position["epoch"]


@pytest.mark.parametrize("kind", KINDS)
def test_history_gives_messages_oldest_first_in_the_form_of_the_page(node: Node, kind: str) -> None:
    async def body() -> None:
        client, channel, epoch = await with_history(node, kind, 5)
        answer = await client.ask(HISTORY, channel, {})
        assert set(answer) == {"messages", "epoch", "offset"}
        assert (answer["epoch"], answer["offset"]) == (epoch, 5)
        for number, message in enumerate(answer["messages"], 1):
            kind_of_frame, name, offset, data, envelope = message
            assert (kind_of_frame, name) == (MESSAGE, channel)
            assert (offset, data) == (number, f"message {number}")
            assert set(envelope) == {"from", "time", "epoch"}
            assert (envelope["from"], envelope["epoch"]) == ("author", epoch)
        assert len(answer["messages"]) == 5
        await client.close()

    run(body())


@pytest.mark.parametrize(
    ("options", "offsets"),
    [
        ({"limit": 2}, [1, 2]),
        ({"limit": 0}, []),
        ({"limit": 2, "reverse": True}, [10, 9]),
        ({"limit": 1000}, list(range(1, 11))),
        ({"since": 7}, [8, 9, 10]),
        ({"since": 7, "limit": 2}, [8, 9]),
        ({"since": 4, "reverse": True}, [3, 2, 1]),
        ({"since": 4, "reverse": True, "limit": 1}, [3]),
        ({"since": 10}, []),
        ({"since": 1, "reverse": True}, []),
        ({"unknown": 1, "limit": 1}, [1]),
    ],
)
def test_history_options(node: Node, options: dict[str, Any], offsets: list[int]) -> None:
    async def body() -> None:
        client, channel, epoch = await with_history(node, "tcp", 10)
        given = {name: [epoch, value] if name == "since" else value for name, value in options.items()}
        answer = await client.ask(HISTORY, channel, given)
        assert [message[2] for message in answer["messages"]] == offsets
        assert answer["offset"] == 10
        await client.close()

    run(body())


@pytest.mark.parametrize("reverse", [False, True])
def test_history_can_be_paged_through_both_ways(node: Node, reverse: bool) -> None:
    async def body() -> None:
        client, channel, epoch = await with_history(node, "text", 25)
        seen: list[int] = []
        options: dict[str, Any] = {"limit": 4, "reverse": reverse}
        while page := (await client.ask(HISTORY, channel, options))["messages"]:
            assert len(page) <= 4
            seen += [message[2] for message in page]
            options["since"] = [epoch, seen[-1]]
        assert seen == (list(range(25, 0, -1)) if reverse else list(range(1, 26)))
        await client.close()

    run(body())


def test_history_gives_whole_messages_as_far_as_one_frame_takes_them(node: Node) -> None:
    async def body() -> None:
        client, channel = await open_session(node, "tcp"), group()
        await client.join(channel)
        for number in range(12):
            await client.publish(channel, f"{number}" + "x" * 20_000)
        await client.settle()
        page = (await client.ask(HISTORY, channel, {}))["messages"]
        assert 1 <= len(page) <= 3
        assert [message[2] for message in page] == list(range(1, len(page) + 1))
        assert all(len(message[3]) >= 20_001 for message in page)
        await client.close()

    run(body())


@pytest.mark.parametrize(
    "options", [{"limit": -1}, {"limit": "3"}, {"limit": 1001}, {"limit": True}, {"reverse": 1}, {"since": [1]}, 5, []]
)
def test_history_with_wrong_options_is_a_bad_request(node: Node, options: Any) -> None:
    async def body() -> None:
        client, channel, _ = await with_history(node, "text", 1)
        assert (await refusal(client, HISTORY, channel, options)).code == BAD_REQUEST
        await client.close()

    run(body())


def test_history_and_presence_of_a_group_need_its_membership(node: Node) -> None:
    async def body() -> None:
        client = await open_session(node, "text", "alice")
        assert (await refusal(client, HISTORY, group(), {})).code == NOT_JOINED
        assert (await refusal(client, PRESENCE, group())).code == NOT_JOINED
        assert (await refusal(client, HISTORY, "user:bob", {})).code == NOT_ALLOWED
        assert (await refusal(client, PRESENCE, "nobody:x")).code == NO_SUCH_CHANNEL
        await client.close()

    run(body())


def test_history_of_the_users_own_channel_and_of_a_global_one(node: Node) -> None:
    async def body() -> None:
        client = await open_session(node, "tcp")
        own = f"user:{client.user}"
        await client.publish(own, "note to self")
        assert [message[3] for message in (await client.ask(HISTORY, own, {}))["messages"]] == ["note to self"]
        news = "global:" + group()[6:]
        await client.publish(news, "to all")
        assert [message[3] for message in (await client.ask(HISTORY, news, {}))["messages"]] == ["to all"]
        await client.close()

    run(body())


def test_history_keeps_as_many_messages_as_configured(holdfast: Any) -> None:
    node = holdfast("--workers", "1", HOLDFAST_NAMESPACES_GROUP_HISTORY_MESSAGES="3")

    async def body() -> None:
        client, channel, _ = await with_history(node, "tcp", 8)
        answer = await client.ask(HISTORY, channel, {})
        assert [message[2] for message in answer["messages"]] == [6, 7, 8]
        await client.close()

    run(body())


# ---- presence ----


def test_presence_names_the_sessions_of_all_workers_and_counts_users_once(node: Node) -> None:
    async def body() -> None:
        channel = group()
        alices = await one_on_each_worker(node, ("tcp",), "alice")
        bobs = await one_on_each_worker(node, ("text",), "bob")
        for client in alices + bobs:
            await client.join(channel)
        for asking in (alices[0], bobs[1]):
            answer = await asking.ask(PRESENCE, channel)
            assert set(answer) == {"sessions", "users", "count"}
            assert (answer["users"], answer["count"]) == (2, 4)
            expected = {(client.session, client.user) for client in alices + bobs}
            assert {(entry["session"], entry["user"]) for entry in answer["sessions"]} == expected
        await alices[0].ask(LEAVE, channel)
        await bobs[0].close()
        async with asyncio.timeout(5):  # the router hears of it from another worker
            while (answer := await bobs[1].ask(PRESENCE, channel))["count"] != 2:
                pass
        assert {entry["session"] for entry in answer["sessions"]} == {alices[1].session, bobs[1].session}
        await close_all(*alices, bobs[1])

    run(body())


def test_presence_forgets_a_connection_that_broke(node: Node) -> None:
    async def body() -> None:
        channel = group()
        broken, there = await open_session(node, "tcp"), await open_session(node, "text")
        await broken.join(channel)
        await there.join(channel)
        assert (await there.ask(PRESENCE, channel))["count"] == 2
        await broken.abort()
        async with asyncio.timeout(5):
            while (answer := await there.ask(PRESENCE, channel))["count"] != 1:
                pass
        assert [entry["session"] for entry in answer["sessions"]] == [there.session]
        await there.close()

    run(body())


def test_presence_of_the_users_own_channel_lists_the_users_sessions(node: Node) -> None:
    async def body() -> None:
        sessions = await one_on_each_worker(node, KINDS, "carol")
        answer = await sessions[0].ask(PRESENCE, "user:carol")
        assert {entry["session"] for entry in answer["sessions"]} == {client.session for client in sessions}
        assert (answer["users"], answer["count"]) == (1, 2)
        await close_all(*sessions)

    run(body())


# ---- what this version does not serve, and malformed requests ----


@pytest.mark.parametrize("request_", [(CALL, "profile.get", {"user": "bob"})])
def test_what_later_versions_serve_is_refused_with_a_message_that_says_so(node: Node, request_: Any) -> None:
    async def body() -> None:
        for kind in KINDS:
            client = await open_session(node, kind)
            refused = await refusal(client, *request_)
            assert refused.code == BAD_REQUEST
            assert "not served by this version" in refused.message
            await client.close()

    run(body())


@pytest.mark.parametrize(
    "request_",
    [
        (JOIN,),
        (JOIN, "group:x", 5),
        (JOIN, "group:x", {}, "surplus"),
        (LEAVE,),
        (LEAVE, "group:x", {}),
        (PUBLISH,),
        (PUBLISH, "group:x"),
        (PUBLISH, "group:x", "data", 5),
        (PUBLISH, "group:x", "data", {}, "surplus"),
        (PUBLISH, 5, "data"),
        (PUBLISH, "group:x", "data", {"key": 5}),
        (HISTORY,),
        (PRESENCE,),
        (PRESENCE, "group:x", {}),
        (0, {"v": 1}),
    ],
)
def test_a_malformed_request_is_refused_under_its_id_and_the_connection_stays(node: Node, request_: Any) -> None:
    async def body() -> None:
        for kind in KINDS:
            client = await open_session(node, kind)
            assert (await refusal(client, *request_)).code == BAD_REQUEST
            assert await client.settle() == []
            await client.close()

    run(body())


def test_request_numbers_may_have_64_bits(node: Node) -> None:
    async def body() -> None:
        for kind in KINDS:
            client, channel = await open_session(node, kind), group()
            for number in (1, 2**32, 2**53 + 1, 2**64 - 1):
                await client.send(JOIN, number, channel, {})
                await client.answer(number)
                await client.send(PUBLISH, number, channel, "x")
                await client.answer(number)
            await client.close()

    run(body())


def test_acks_are_taken_and_counted(node: Node) -> None:
    async def body() -> None:
        before = node.metric("holdfast_acks_total")
        client, channel = await open_session(node, "text"), group()
        await client.join(channel)
        await client.publish(channel, "x")
        await client.send(10, {channel: 1})
        await client.send(10, {})
        assert [frame[0] for frame in await client.settle()] == [MESSAGE]
        wait_until(lambda: node.metric("holdfast_acks_total") == before + 2, "both ACKs are counted")
        await client.close()

    run(body())
