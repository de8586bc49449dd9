"""The three domains, the two transports and the two encodings, over real sockets and two workers."""

import asyncio
import itertools
import json
import math
import re
from itertools import product
from typing import Any

import msgpack
import pytest

from tests.conftest import Node
from tests.process.clients import (
    DEADLINE_S,
    JOIN,
    KINDS,
    MESSAGE,
    PUBLISH,
    Client,
    Refused,
    TcpClient,
    WebSocketClient,
    dial,
    framed,
    group,
    open_session,
    run,
    unique,
)
from tests.process.places import one_on_each_worker, worker_of

VALUES: list[Any] = [
    None,
    True,
    False,
    "",
    'Ünïcödé … 漢字 🚀 \u0000\u001f"\\/\u2028',
    0,
    -1,
    127,
    128,
    -32,
    -33,
    65535,
    65536,
    2**31,
    -(2**31) - 1,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    0.1,
    -0.0,
    1.5e300,
    5e-324,
    1e21,
    [],
    {},
    [[[[["deep"]]]]],
    {"a": {"b": [1, 2.5, {"c": None}]}, "": [True, "x"], "ключ": "значение"},
    ["x" * 300, {"long" * 40: list(range(200))}],
]


async def close_all(*clients: Client) -> None:
    await asyncio.gather(*(client.close() for client in clients))


def is_same(left: Any, right: Any) -> bool:
    """Equal in value and type, the sign of zero included."""
    if isinstance(left, float) and isinstance(right, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(is_same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(is_same(left[key], right[key]) for key in left)
    return type(left) is type(right) and bool(left == right)


@pytest.mark.parametrize("kind", KINDS)
def test_welcome_tells_everything_that_a_client_has_to_know(node: Node, kind: str) -> None:
    async def body() -> None:
        client = await open_session(node, kind, "alice", client="test/1", unknown={"ignored": [1]})
        welcome = client.welcome
        assert set(welcome) == {
            *("session", "user", "resume_token", "node", "ping", "misses", "max_frame", "resumed", "channels", "unread")
        }
        assert re.fullmatch("[0-9a-f]{32}", welcome["session"])
        assert welcome["user"] == "alice"
        assert welcome["resumed"] is False
        assert (welcome["ping"], welcome["misses"], welcome["max_frame"]) == (30, 3, 65536)
        assert set(welcome["channels"]) == {"user:alice"}
        _, offset, outcome = welcome["channels"]["user:alice"]
        assert (offset, outcome) == (0, "live")
        await client.close()

    run(body())


@pytest.mark.parametrize("kind", KINDS)
def test_development_mode_gives_a_random_user_to_whoever_names_none(node: Node, kind: str) -> None:
    async def body() -> None:
        first, second = await open_session(node, kind), await open_session(node, kind)
        assert first.user
        assert second.user
        assert first.user != second.user
        assert first.session != second.session
        await close_all(first, second)

    run(body())


def test_a_hello_without_options_is_enough_in_development_mode(node: Node) -> None:
    async def body() -> None:
        client = await dial(node, "tcp")
        await client.send(0, 7)
        await client.welcomed()
        await client.close()

    run(body())


@pytest.mark.parametrize(("sender", "receiver"), list(product(KINDS, KINDS)))
def test_every_value_arrives_unchanged_between_any_two_kinds(node: Node, sender: str, receiver: str) -> None:
    async def body() -> None:
        channel = group()
        publisher, member = await open_session(node, sender, "pub"), await open_session(node, receiver, "mem")
        await publisher.join(channel)
        await member.join(channel)
        for offset, value in enumerate(VALUES, 1):
            answer = await publisher.publish(channel, value)
            assert answer["offset"] == offset
            kind, name, at, data, envelope = await member.message()
            assert (kind, name, at) == (MESSAGE, channel, offset)
            assert is_same(data, value), f"{value!r} arrived as {data!r}"
            assert set(envelope) == {"from", "time", "epoch"}
            assert envelope["from"] == "pub"
            assert envelope["epoch"] == answer["epoch"]
        assert [frame[2] for frame in await publisher.settle()] == list(range(1, len(VALUES) + 1))
        await close_all(publisher, member)

    run(body())


@pytest.mark.parametrize("sender", ["tcp", "binary"])
def test_binary_data_is_bin_in_messagepack_and_base64_in_json(node: Node, sender: str) -> None:
    async def body() -> None:
        channel = group()
        publisher, member, echo = [await open_session(node, kind) for kind in (sender, "text", "tcp")]
        for client in (publisher, member, echo):
            await client.join(channel)
        await publisher.publish(channel, {"image": bytes(range(256)), "none": b""})
        shown = (await member.message())[3]
        assert set(shown["image"]) == {"$bin"}
        assert shown["none"] == {"$bin": ""}
        assert (await echo.message())[3] == {"image": bytes(range(256)), "none": b""}
        # What JSON says in that form is binary again for those who have binary.
        await member.publish(channel, [{"$bin": "AAH/"}])
        assert (await echo.message())[3] == [b"\x00\x01\xff"]
        await close_all(publisher, member, echo)

    run(body())


def test_json_is_written_without_insignificant_whitespace(node: Node) -> None:
    async def body() -> None:
        client = await WebSocketClient.dial(node.ws_url, "text")
        await client.send_raw('\n[0, 1 ,\t{"v" : 1, "user": "spaced"} ] ')
        welcome = await client.read_raw()
        channel = group()
        await client.send_raw(f'[6,2,"{channel}",{{}}]')
        joined = await client.read_raw()
        await client.send_raw(f'[8, 0, "{channel}", {{"a": [1, 2], "b": "x y"}}]')
        message = await client.read_raw()
        for text in (welcome, joined, message):
            assert isinstance(text, str)
            assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)
        assert isinstance(message, str)
        assert '{"a":[1,2],"b":"x y"}' in message
        await client.close()

    run(body())


def test_messagepack_is_written_in_its_shortest_form(node: Node) -> None:
    async def body() -> None:
        client = await WebSocketClient.dial(node.ws_url, "binary")
        # Longer forms than needed are read: array16, uint64, str32, map32.
        await client.send_raw(b"\xdc\x00\x03\xcf" + bytes(8) + b"\xcd\x00\x01" + b"\xdf\x00\x00\x00\x00")
        for _ in range(2):
            body_ = await client.read_raw()
            assert isinstance(body_, bytes)
            assert body_ == msgpack.packb(msgpack.unpackb(body_))
            await client.send_raw(msgpack.packb([JOIN, 2, group(), {}]))
        await client.read_raw()
        await client.close()

    run(body())


def test_the_users_channel_reaches_all_sessions_of_the_user_on_all_workers(node: Node) -> None:
    async def body() -> None:
        user = unique("bob")
        sessions = await one_on_each_worker(node, KINDS, user)
        assert len({worker_of(node, session) for session in sessions}) == 2
        stranger, friend = await open_session(node, "text", user + "2"), await open_session(node, "tcp", "friend")
        position = await friend.publish(f"user:{user}", "hi")
        for session in sessions:
            frame = await session.message()
            assert frame[1:4] == [f"user:{user}", position["offset"], "hi"]
            assert frame[4]["from"] == "friend"
        assert await stranger.settle() == []
        assert await friend.settle() == []
        await close_all(*sessions, stranger, friend)

    run(body())


def test_a_group_reaches_those_who_joined_it_and_nobody_else(node: Node) -> None:
    async def body() -> None:
        channel = group()
        members = await one_on_each_worker(node, ("binary", "text"))
        others = await one_on_each_worker(node, ("tcp",))
        for member in members:
            await member.join(channel)
        for number in range(10):
            await members[number % 2].publish(channel, number)
        for member in members:
            assert [frame[2:4] for frame in await member.messages(10)] == [[n + 1, n] for n in range(10)]
            assert await member.settle() == []
        for other in others:
            assert await other.settle() == []
        await close_all(*members, *others)

    run(body())


def test_a_global_channel_reaches_everybody_without_joining(node: Node) -> None:
    async def body() -> None:
        channel = f"global:{unique('news')}"
        everybody = await one_on_each_worker(node, ("text", "tcp")) + await one_on_each_worker(node, ("binary",))
        position = await everybody[0].publish(channel, {"all": True})
        for client in everybody:
            assert (await client.message())[1:4] == [channel, position["offset"], {"all": True}]
        await close_all(*everybody)

    run(body())


@pytest.mark.parametrize(
    ("channel", "code"),
    [
        ("user:somebody-else", 400),
        ("nobody:knows", 401),
        ("group:", 401),
        ("group", 401),
        ("", 401),
        ("group:" + "x" * 250, 406),
        (7, 406),
        (None, 406),
    ],
)
def test_join_of_what_cannot_be_joined_is_refused_under_its_code(node: Node, channel: Any, code: int) -> None:
    async def body() -> None:
        for kind in KINDS:
            client = await open_session(node, kind)
            with pytest.raises(Refused) as refused:
                await client.ask(JOIN, channel, {})
            assert refused.value.code == code
            assert refused.value.message
            await client.close()

    run(body())


@pytest.mark.parametrize(
    ("channel", "code"),
    [("nobody:knows", 401), ("group:", 401), ("group:never-joined", 402), ("group:" + "é" * 125, 406)],
)
def test_publish_where_it_is_not_possible_is_refused_under_its_code(node: Node, channel: str, code: int) -> None:
    async def body() -> None:
        for kind in KINDS:
            client = await open_session(node, kind)
            with pytest.raises(Refused) as refused:
                await client.publish(channel, "x")
            assert refused.value.code == code
            await client.close()

    run(body())


def test_the_longest_name_is_255_bytes(node: Node) -> None:
    async def body() -> None:
        client = await open_session(node, "text")
        channel = "group:" + "é" * 124 + "x"
        assert len(channel.encode()) == 255
        await client.join(channel)
        await client.publish(channel, "x")
        assert (await client.message())[1] == channel
        await client.close()

    run(body())


def test_a_publish_with_id_0_is_done_and_not_answered(node: Node) -> None:
    async def body() -> None:
        channel = group()
        client = await open_session(node, "tcp")
        await client.join(channel)
        await client.send(PUBLISH, 0, channel, "silent", {})
        assert (await client.message())[2:4] == [1, "silent"]
        # Nor is an error: nothing is done and nothing is sent.
        await client.send(PUBLISH, 0, "group:not-joined", "x")
        await client.send(JOIN, 0, "nobody:knows")
        await client.send(PUBLISH, 0)
        await client.send(JOIN, 0, 5)
        answer = await client.publish(channel, "asked")
        assert answer["offset"] == 2
        assert [frame[0] for frame in await client.settle()] == [MESSAGE]
        await client.close()

    run(body())


def test_an_idempotency_key_gives_the_first_position_and_delivers_once(node: Node) -> None:
    async def body() -> None:
        channel = group()
        sender, member = await open_session(node, "text", "s"), await open_session(node, "tcp", "m")
        await sender.join(channel)
        await member.join(channel)
        first = await sender.publish(channel, "once", key="k" * 64)
        await sender.publish(channel, "between")
        assert await sender.publish(channel, "again", key="k" * 64) == first
        # Another user's key is another key: nobody can take somebody else's.
        assert (await member.publish(channel, "mine", key="k" * 64))["offset"] == first["offset"] + 2
        assert [frame[3] for frame in await member.messages(3)] == ["once", "between", "mine"]
        with pytest.raises(Refused) as refused:
            await sender.publish(channel, "x", key="k" * 65)
        assert refused.value.code == 405
        assert await member.settle() == []
        await close_all(sender, member)

    run(body())


def test_a_key_survives_the_connection(node: Node) -> None:
    async def body() -> None:
        channel, user = group(), unique("u")
        before = await open_session(node, "tcp", user)
        await before.join(channel)
        first = await before.publish(channel, "x", key="a")
        await before.abort()
        after = await open_session(node, "text", user)
        await after.join(channel)
        assert await after.publish(channel, "x", key="a") == first
        await after.close()

    run(body())


def test_positions_have_no_hole_and_are_the_same_for_all(node: Node) -> None:
    async def body() -> None:
        channel = group()
        clients = await one_on_each_worker(node, KINDS) + await one_on_each_worker(node, ("text", "binary"))
        for client in clients:
            await client.join(channel)
        count = 100

        async def publish_all(number: int, client: Client) -> list[int]:
            return [(await client.publish(channel, [number, at]))["offset"] for at in range(count)]

        offsets = await asyncio.gather(*(publish_all(*each) for each in enumerate(clients)))
        assert sorted(itertools.chain(*offsets)) == list(range(1, count * len(clients) + 1))
        expected = None
        for client in clients:
            heard = [frame[2:4] for frame in await client.messages(count * len(clients))]
            assert [offset for offset, _ in heard] == list(range(1, count * len(clients) + 1))
            assert expected in (None, heard)
            expected = heard
        await close_all(*clients)

    run(body())


def test_the_answer_names_the_offset_under_which_the_message_arrives(node: Node) -> None:
    async def body() -> None:
        channel = group()
        client = await open_session(node, "tcp")
        await client.join(channel)
        # Pipelined: many under way at once, answered each under its own number.
        for number in range(100, 200):
            await client.send(PUBLISH, number, channel, number, {})
        answers = {number: (await client.answer(number))["offset"] for number in range(100, 200)}
        heard = {frame[3]: frame[2] for frame in await client.messages(100)}
        assert heard == answers
        await client.close()

    run(body())


def test_frames_cut_anywhere_and_many_in_one_piece(node: Node) -> None:
    async def body() -> None:
        client = await TcpClient.dial(node.port)
        channel = group()
        stream = b"".join(
            len(body_).to_bytes(4, "big") + body_
            for body_ in map(
                msgpack.packb,
                ([0, 1, {"user": "cut"}],),
            )
        )
        for at in range(len(stream)):
            await client.send_bytes(stream[at : at + 1])
        await client.welcomed()
        await client.join(channel)
        many = b"".join(
            len(body_).to_bytes(4, "big") + body_
            for body_ in (msgpack.packb([PUBLISH, 0, channel, number, {}]) for number in range(500))
        )
        await client.send_bytes(many[:1001])
        await client.send_bytes(many[1001:])
        assert [frame[3] for frame in await client.messages(500, DEADLINE_S)] == list(range(500))
        await client.close()

    run(body())


def test_a_burst_that_grows_as_json_reaches_json_members_whole_and_in_order(node: Node) -> None:
    """Control characters are six times as long in JSON: what is written side by side outgrows the arena meanwhile."""
    texts = [chr(1 + number % 8) * 3000 for number in range(60)]

    async def talk() -> None:
        channel = group("grows")
        members = [await open_session(node, "text") for _ in range(3)]
        publisher = await open_session(node, "tcp")
        assert isinstance(publisher, TcpClient)
        for member in (*members, publisher):
            await member.join(channel)
        for first in range(0, len(texts), 10):
            frames = [[PUBLISH, 0, channel, text, {}] for text in texts[first : first + 10]]
            await publisher.send_bytes(b"".join(framed(msgpack.packb(frame)) for frame in frames))
        for member in (*members, publisher):
            assert [frame[3] for frame in await member.messages(len(texts))] == texts

    run(talk())
