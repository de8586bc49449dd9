"""Resuming a session: what it needs, what it gives, what it refuses, and what becomes of the old connection."""

import asyncio
from typing import Any

import pytest

from tests.conftest import Node
from tests.process.clients import (
    HELLO,
    JOIN,
    KINDS,
    MESSAGE,
    PRESENCE,
    Client,
    WebSocketClient,
    dial,
    group,
    open_session,
    run,
)
from tests.process.places import one_on_each_worker, worker_of

SESSION_EXPIRED, BAD_TOKEN, RESUMED_ELSEWHERE = 201, 602, 605


async def resume(node: Node, old: Client, positions: dict[str, list[int]] | None = None, kind: str = "tcp") -> Client:
    """Resume `old`'s session on a new connection, with the position held of each channel."""
    client = await dial(node, kind)
    return await client.hello(session=old.session, token=old.resume_token, resume=positions or {})


async def refused(node: Node, code: int, kind: str, **hello: Any) -> dict[str, Any]:
    """HELLO must end with this code; the FIN's options."""
    client = await dial(node, kind)
    await client.send(HELLO, 1, {"v": 1, **hello})
    _, found, reason, options = await client.fin()
    assert (found, bool(reason)) == (code, True)
    gone = await client.ended()
    assert not client.kept
    if kind != "tcp":
        assert gone.status == 4000 + code
    assert isinstance(options, dict)
    return options


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_connection_is_resumed_where_it_was(node: Node, kind: str) -> None:
    async def body() -> None:
        old, other = await open_session(node, kind, "alice"), await open_session(node, "tcp")
        channel = group()
        joined = await old.join(channel)
        await other.join(channel)
        at = [joined["epoch"], joined["offset"]]
        await old.abort()
        new = await resume(node, old, {channel: at}, kind)
        assert (new.session, new.user, new.welcome["resumed"]) == (old.session, "alice", True)
        assert new.welcome["channels"][channel] == [*at, "live"]
        assert new.welcome["channels"]["user:alice"][2] == "live"
        # Joined again without asking, and still present once.
        await other.publish(channel, "hello again")
        assert (await new.message())[3] == "hello again"
        presence = await new.ask(PRESENCE, channel)
        assert sorted(entry["session"] for entry in presence["sessions"]) == sorted([new.session, other.session])
        await asyncio.gather(new.close(), other.close())

    run(body())


def test_a_position_without_common_history_is_reset(node: Node) -> None:
    async def body() -> None:
        old, channel = await open_session(node, "tcp"), group()
        joined = await old.join(channel)
        await old.publish(channel, "x")
        await old.abort()
        new = await resume(node, old, {channel: [joined["epoch"] - 1, 5]})
        assert new.welcome["channels"][channel] == [joined["epoch"], 1, "reset"]
        await new.close()

    run(body())


@pytest.mark.parametrize("kind", KINDS)
def test_missed_messages_come_before_live_ones_and_none_comes_twice(node: Node, kind: str) -> None:
    async def body() -> None:
        old, other, channel = await open_session(node, kind), await open_session(node, "tcp"), group()
        own = f"user:{old.user}"
        joined = await old.join(channel)
        await other.join(channel)
        await old.abort()
        for number in range(200):
            await other.publish(channel, number)
        await other.publish(own, "for it alone")
        client = await resume(node, old, {channel: [joined["epoch"], joined["offset"]], own: [0, 0]}, kind)
        at = joined["offset"] + 200
        assert client.welcome["channels"][channel] == [joined["epoch"], at, "replayed"]
        assert client.welcome["channels"][own][2] == "replayed"
        await other.publish(channel, 200)
        got = [await client.message() for _ in range(202)]
        assert [(frame[2], frame[3]) for frame in got if frame[1] == channel] == [
            (joined["offset"] + 1 + number, number) for number in range(201)
        ]
        assert [frame[3] for frame in got if frame[1] == own] == ["for it alone"]
        await asyncio.gather(client.close(), other.close())

    run(body())


def test_a_join_since_a_position_replays_what_came_after_it(node: Node) -> None:
    async def body() -> None:
        speaker, reader, channel = await open_session(node, "tcp"), await open_session(node, "tcp"), group()
        await speaker.join(channel)
        told = [await speaker.publish(channel, number) for number in range(5)]
        joined = await reader.ask(JOIN, channel, {"since": [told[1]["epoch"], told[1]["offset"]]})
        assert (joined["offset"], joined["outcome"]) == (told[4]["offset"], "replayed")
        assert [(await reader.message())[3] for _ in range(3)] == [2, 3, 4]
        await asyncio.gather(speaker.close(), reader.close())

    run(body())


@pytest.mark.parametrize("kind", KINDS)
def test_the_older_connection_hears_resumed_elsewhere_and_nothing_more(node: Node, kind: str) -> None:
    async def body() -> None:
        channel = group()
        olds = await one_on_each_worker(node, (kind,), "alice")
        other = await open_session(node, "tcp")
        await other.join(channel)
        for old in olds:
            joined = await old.join(channel)
            new = await resume(node, old, {channel: [joined["epoch"], joined["offset"]]}, kind)
            _, code, _, options = await old.fin()
            assert (code, options) == (RESUMED_ELSEWHERE, {"class": "stop"})
            position = await other.publish(channel, "for the new one alone")
            assert (await new.message())[2] == position["offset"]
            gone = await old.acknowledge()
            assert not [frame for frame in old.kept if frame[0] == MESSAGE]
            if isinstance(old, WebSocketClient):
                assert (gone.status, gone.reason) == (4000 + RESUMED_ELSEWHERE, "resumed_elsewhere")
            await new.close()
        await other.close()

    run(body())


def test_a_session_is_resumed_on_another_worker_as_well(node: Node) -> None:
    async def body() -> None:
        old = await open_session(node, "tcp")
        home, newest = worker_of(node, old), old
        workers = set()
        for _ in range(64):
            newest = await resume(node, newest)
            await old.fin()
            await old.acknowledge()
            workers.add(worker_of(node, newest))
            old = newest
            if workers - {home}:
                break
        assert workers - {home}, "64 connections reached one worker only"
        await newest.close()

    run(body())


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_do_not_resume_this_session_are_refused(node: Node, kind: str) -> None:
    async def body() -> None:
        mine, theirs = await open_session(node, kind, "alice"), await open_session(node, kind, "eve")
        for token in (theirs.resume_token, "", "forged", 5, None):
            options = await refused(node, BAD_TOKEN, kind, session=mine.session, token=token)
            assert options == {"class": "stop"}
        changed = "AAAA" + mine.resume_token[4:]
        assert (await refused(node, SESSION_EXPIRED, kind, session=mine.session, token=changed))["class"] == "fresh"
        assert (await refused(node, BAD_TOKEN, kind, session="00" * 16, token=mine.resume_token))["class"] == "stop"
        # The session lives on.
        assert await mine.settle() == []
        await asyncio.gather(mine.close(), theirs.close())

    run(body())


@pytest.mark.parametrize("kind", KINDS)
def test_after_fin_the_session_is_over_and_its_token_begins_none(node: Node, kind: str) -> None:
    async def body() -> None:
        old, channel = await open_session(node, kind), group()
        joined = await old.join(channel)
        positions = {channel: [joined["epoch"], joined["offset"]], f"user:{old.user}": [1, 0]}
        await old.close()
        for named in ({}, {"resume": positions}, {"resume": positions, "whole": True}):
            options = await refused(node, SESSION_EXPIRED, kind, session=old.session, token=old.resume_token, **named)
            assert options["class"] == "fresh"

    run(body())


def test_without_a_log_only_a_session_that_says_it_is_whole_is_resumed(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_LOG_BACKEND="none")

    async def body() -> None:
        old, channel = await open_session(node, "tcp"), group()
        joined = await old.join(channel)
        at = {channel: [joined["epoch"], joined["offset"]], f"user:{old.user}": [joined["epoch"], 0]}
        await old.abort()
        for named in ({}, {"resume": at}):
            await refused(node, SESSION_EXPIRED, "tcp", session=old.session, token=old.resume_token, **named)
        client = await dial(node, "tcp")
        new = await client.hello(session=old.session, token=old.resume_token, resume=at, whole=True)
        assert channel in new.welcome["channels"]
        await new.close()

    run(body())


def test_resuming_gives_a_new_resume_token_that_works(node: Node) -> None:
    async def body() -> None:
        client = await open_session(node, "tcp")
        for _ in range(3):
            await client.abort()
            client = await resume(node, client)
        await client.close()

    run(body())
