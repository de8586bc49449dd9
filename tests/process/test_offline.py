"""Sessions outlive whatever had them: kills, a crash of the whole node, another device, two that come at once."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import signal
import sqlite3
from typing import Any

import msgpack
import pytest

from tests.conftest import Node, wait_until
from tests.process.clients import (
    ACK,
    DEADLINE_S,
    FIN,
    HELLO,
    JOIN,
    MESSAGE,
    Client,
    Gone,
    Refused,
    dial,
    group,
    open_session,
    run,
    unique,
)
from tests.process.places import worker_of

SECRET = "a secret that is long enough for HS256, as these go"
SESSION_EXPIRED, RESUMED_ELSEWHERE = 201, 605


async def resume(node: Node, old: Client, positions: dict[str, list[int]] | None = None, kind: str = "tcp") -> Client:
    client = await dial(node, kind)
    named = {} if positions is None else {"resume": positions}
    return await client.hello(session=old.session, token=old.resume_token, **named)


def token_of(user: str) -> str:
    """A JWT under SECRET (RFC 7515, section 3.1)."""

    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    signed = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps({"sub": user}).encode())
    return (signed + b"." + part(hmac.digest(SECRET.encode(), signed, hashlib.sha256))).decode()


async def data_of(client: Client, count: int) -> list[Any]:
    return [(frame[1], frame[2], frame[3]) for frame in await client.messages(count)]


def test_a_session_is_resumed_from_its_acks_after_its_worker_was_killed(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "2")
    node.expect_lost()

    async def body() -> None:
        channel = group()
        alice, speaker = await open_session(node, "tcp"), await open_session(node, "tcp")
        while worker_of(node, speaker) == worker_of(node, alice):
            await speaker.close()
            speaker = await open_session(node, "tcp")
        for client in (alice, speaker):
            await client.join(channel)
        for number in range(1, 4):
            await speaker.publish(channel, number)
        await data_of(alice, 3)
        await alice.send(ACK, {channel: 2})
        await alice.settle()
        os.kill(worker_of(node, alice), signal.SIGKILL)
        await speaker.publish(channel, 4)
        await speaker.publish(f"user:{alice.user}", "hello")
        new = await resume(node, alice)
        assert new.welcome["resumed"] is True
        assert new.welcome["channels"][channel][1:] == [4, "replayed"]
        assert new.welcome["channels"][f"user:{alice.user}"][1:] == [1, "replayed"]
        assert new.welcome["unread"] == 1
        assert sorted(await data_of(new, 3)) == [(channel, 3, 3), (channel, 4, 4), (f"user:{alice.user}", 1, "hello")]
        await speaker.publish(channel, 5)
        assert await data_of(new, 1) == [(channel, 5, 5)]
        await asyncio.gather(new.close(), speaker.close())

    run(body(), 60)


def test_a_session_is_resumed_after_its_router_was_killed(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1")
    node.expect_lost()

    async def body() -> None:
        channel = group()
        alice, speaker = await open_session(node, "tcp"), await open_session(node, "tcp")
        for client in (alice, speaker):
            await client.join(channel)
        first = await speaker.publish(channel, 1)
        await data_of(alice, 1)
        await alice.abort()
        await speaker.publish(channel, 2)
        (victim,) = node.routers
        os.kill(victim, signal.SIGKILL)
        third = await speaker.publish(channel, 3)
        assert third["epoch"] > first["epoch"]
        new = await resume(node, alice, {channel: [first["epoch"], first["offset"]]})
        assert new.welcome["channels"][channel] == [third["epoch"], 3, "replayed"]
        assert await data_of(new, 2) == [(channel, 2, 2), (channel, 3, 3)]
        await asyncio.gather(new.close(), speaker.close())

    run(body(), 60)


def stored(node: Node) -> dict[bytes, dict[str, Any]]:
    """The sessions in the store that are not over, with their channels."""
    (path,) = (node.folder / "state").rglob("state.sqlite")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        return {
            row[0]: msgpack.unpackb(row[1])
            for row in database.execute("SELECT id, channels FROM sessions WHERE length(opened) > 0")
        }


def test_a_session_and_its_messages_outlive_the_whole_node(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_AUTH_SECRET=SECRET)
    node.expect_lost()
    token = token_of("alice")

    async def before() -> tuple[Client, str]:
        channel = group()
        alice, speaker = await open_session(node, "tcp", token=token), await open_session(node, "tcp", token=token)
        for client in (alice, speaker):
            await client.join(channel)
        for number in range(1, 4):
            await speaker.publish(channel, number)
        await data_of(alice, 3)
        await alice.send(ACK, {channel: 1})
        session = bytes.fromhex(alice.session)
        wait_until(lambda: stored(node).get(session, {}).get(channel, [0, 0])[1] == 1, "the ACK is stored")
        return alice, channel

    async def after() -> None:
        new = await resume(node, alice)
        assert new.welcome["channels"][channel][1:] == [3, "replayed"]
        assert await data_of(new, 2) == [(channel, 2, 2), (channel, 3, 3)]
        await new.close()
        session = bytes.fromhex(new.session)
        wait_until(lambda: session not in stored(node), "bye ends what is stored")

    alice: Client
    channel: str
    found: list[tuple[Client, str]] = []

    async def first() -> None:
        found.append(await before())

    run(first(), 60)
    alice, channel = found[0]
    node.crash()
    node.start_again()
    run(after(), 60)


def test_a_session_that_the_store_lost_is_begun_afresh_and_catches_up(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_AUTH_SECRET=SECRET)
    node.expect_lost()
    channel, alice_token, speaker_token = group(), token_of("alice"), token_of("speaker")
    kept: list[Client] = []
    epochs: list[int] = []

    async def before() -> None:
        alice, speaker = [await open_session(node, "tcp", token=one) for one in (alice_token, speaker_token)]
        await speaker.join(channel)
        joined = await alice.join(channel)
        epochs.append(joined["epoch"])
        await speaker.publish(channel, 1)
        await data_of(alice, 1)
        await alice.abort()
        await speaker.publish(channel, 2)
        kept.append(alice)

    async def after() -> None:
        (alice,) = kept
        for named in ({}, {"resume": {channel: [epochs[0], 1]}, "whole": True}):
            client = await dial(node, "tcp")
            await client.send(HELLO, 1, {"session": alice.session, "token": alice.resume_token, **named})
            _, code, _, options = await client.fin()
            assert (code, options["class"]) == (SESSION_EXPIRED, "fresh")
            await client.ended()
        new = await open_session(node, "tcp", token=alice_token)
        assert (new.welcome["resumed"], channel in new.welcome["channels"]) == (False, False)
        joined = await new.ask(JOIN, channel, {"since": [epochs[0], 1]})
        assert (joined["offset"], joined["outcome"]) == (2, "replayed")
        assert await data_of(new, 1) == [(channel, 2, 2)]
        await new.close()

    run(before(), 60)
    node.crash()
    for found in (node.folder / "state").rglob("state.sqlite*"):
        found.unlink()
    node.start_again()
    run(after(), 60)


def test_a_session_that_said_bye_is_over_also_after_a_crash(holdfast: Any, kept_in: dict[str, str]) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_AUTH_SECRET=SECRET, **kept_in)
    node.expect_lost()
    gone: list[Client] = []

    async def before() -> None:
        alice = await open_session(node, "tcp", token=token_of("alice"))
        await alice.join(group())
        await alice.close()
        stays = await open_session(node, "tcp", token=token_of("alice"))
        await stays.settle()
        gone.append(alice)
        await is_over(alice)
        await stays.close()

    async def is_over(alice: Client) -> None:
        client = await dial(node, "tcp")
        await client.send(HELLO, 1, {"session": alice.session, "token": alice.resume_token})
        assert (await client.fin())[1] == SESSION_EXPIRED
        await client.ended()

    run(before(), 60)
    node.crash()
    node.start_again()
    run(is_over(gone[0]), 60)


def test_a_new_device_gets_what_no_session_of_its_user_acknowledged(node: Node) -> None:
    async def body() -> None:
        user = group("u").replace(":", "-")
        own = f"user:{user}"
        speaker = await open_session(node, "tcp")
        for number in range(1, 6):
            await speaker.publish(own, number)
        # Nobody was there: all of it waits.
        phone = await open_session(node, "tcp", user)
        assert (phone.welcome["channels"][own][1:], phone.welcome["unread"]) == ([5, "replayed"], 5)
        assert [one[2] for one in await data_of(phone, 5)] == [1, 2, 3, 4, 5]
        await phone.send(ACK, {own: 3})
        await phone.settle()
        desktop = await open_session(node, "text", user)
        assert (desktop.welcome["channels"][own][1:], desktop.welcome["unread"]) == ([5, "replayed"], 2)
        assert [one[2] for one in await data_of(desktop, 2)] == [4, 5]
        await speaker.publish(own, 6)
        assert [one[2] for one in [*await data_of(phone, 1), *await data_of(desktop, 1)]] == [6, 6]
        await asyncio.gather(phone.close(), desktop.close(), speaker.close())

    run(body())


@pytest.mark.parametrize("count", [2, 5])
def test_of_connections_that_resume_one_session_at_once_exactly_one_is_left(node: Node, count: int) -> None:
    async def body() -> None:
        channel = group()
        alice, speaker = await open_session(node, "tcp"), await open_session(node, "tcp")
        joined = await alice.join(channel)
        await speaker.join(channel)
        at = {channel: [joined["epoch"], joined["offset"]]}
        await alice.abort()
        rivals = [await dial(node, "tcp") for _ in range(count)]
        for rival in rivals:
            await rival.send(0, 1, {"session": alice.session, "token": alice.resume_token, "resume": at})

        async def heard(rival: Client) -> list[Any]:
            """What is said to it until "last", or until it is told that the session is another's."""
            said: list[Any] = []
            try:
                while "last" not in said:
                    frame = await rival.receive()
                    if frame[0] == FIN:
                        assert frame[1] == RESUMED_ELSEWHERE
                        break
                    said += [frame[3]] if frame[0] == MESSAGE else []
            except Gone:
                pass
            return said

        hearing = {asyncio.create_task(heard(rival)): rival for rival in rivals}
        over = asyncio.as_completed(hearing, timeout=DEADLINE_S)
        assert [await next(over) for _ in range(count - 1)] == [[]] * (count - 1)
        for text in ("once", "last"):
            await speaker.publish(channel, text)
        assert await next(over) == ["once", "last"]
        [left] = [rival for task, rival in hearing.items() if task.result()]
        await asyncio.gather(speaker.close(), left.close())

    run(body())


def test_a_session_hears_of_a_global_channel_that_began_while_it_was_away(
    holdfast: Any, kept_in: dict[str, str]
) -> None:
    """It names no position and never acknowledged one: that it is older than the channel is enough."""
    node: Node = holdfast("--workers", "2", **kept_in)

    async def body() -> None:
        known, new = (f"global:{unique(kind)}" for kind in ("known", "new"))
        speaker = await open_session(node)
        await speaker.publish(known, "before anybody came")
        alice = await open_session(node)
        assert alice.welcome["channels"][known][1:] == [1, "live"]
        await alice.abort()
        await speaker.publish(known, "while away")
        await speaker.publish(new, "the first")
        again = await resume(node, alice)
        assert again.welcome["resumed"]
        assert {name: again.welcome["channels"][name][1:] for name in (known, new)} == {
            known: [2, "replayed"],
            new: [1, "replayed"],
        }
        said = sorted([frame[1:4] for frame in await again.messages(2)])
        assert said == sorted([[known, 2, "while away"], [new, 1, "the first"]])
        await asyncio.gather(speaker.close(), again.close())

    run(body())


async def when_there_is_room(speaker: Client, channel: str, data: str) -> None:
    """Publish in a global channel as soon as one that has aged can make room for it."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(Refused):
                await speaker.publish(channel, data)
                return
            await asyncio.sleep(0.1)


def test_a_global_channel_that_was_over_and_begins_again_tells_nobody_of_a_gap(
    holdfast: Any, kept_in: dict[str, str]
) -> None:
    """Who had all of it, and who came while it was over, misses what is said now, the next router included."""
    settings = {"DOMAIN": "global", "PUBLISH": "anyone", "HISTORY_AGE_S": "8"}
    node: Node = holdfast(
        "--workers", "2", **{f"HOLDFAST_NAMESPACES_NEWS_{key}": value for key, value in settings.items()}, **kept_in
    )
    node.expect_lost()

    async def body() -> None:
        channel = f"news:{unique('again')}"
        speaker = await open_session(node)
        await speaker.publish(channel, "old")
        away = [await open_session(node) for _ in range(2)]
        assert [one.welcome["channels"][channel][1:] for one in away] == [[1, "live"]] * 2
        for number in range(127):
            await speaker.publish(f"news:{number}", "x")
        await when_there_is_room(speaker, "news:more", "x")
        for one in away:
            await one.abort()
        away = [await resume(node, one) for one in away] + [await open_session(node) for _ in range(2)]
        for one in away:
            assert channel not in one.welcome["channels"]
            await one.abort()
        await when_there_is_room(speaker, channel, "new")
        for number, one in enumerate(away):
            if number == 1:
                os.kill(node.routers[0], signal.SIGKILL)
            back = await resume(node, one)
            assert back.welcome["channels"][channel][1:] == [2, "replayed"], number
            assert await data_of(back, 1) == [(channel, 2, "new")]
            await back.close()
        await speaker.close()

    run(body())


def test_nothing_is_stored_of_global_channels_that_a_client_makes_up(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1")

    async def body() -> None:
        alice = await open_session(node)
        await alice.publish("global:news", "x")
        for number in range(300):
            await alice.join(f"global:{number}")
        await alice.send(ACK, {f"global:{number}": 1 for number in range(50)})
        await alice.send(ACK, {"global:news": 1})
        await alice.join(mine := group())
        session = bytes.fromhex(alice.session)
        wait_until(lambda: mine in stored(node).get(session, {}), "what was done before is stored")
        assert set(stored(node)[session]) == {f"user:{alice.user}", "global:news", mine}
        await alice.close()

    run(body())
