"""A log in Redis, where streams are cold: whatever ended, the next router gives exactly what was, and was missed."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import START_DEADLINE_S, Node, wait_until
from tests.process.clients import (
    ACK,
    EVENT,
    HELLO,
    HISTORY,
    LEAVE,
    MESSAGE,
    Client,
    Refused,
    dial,
    group,
    open_session,
    run,
)
from tests.process.test_log_in_redis import kill_router
from tests.process.test_offline import SECRET, token_of
from tests.servers.redis import Server, running

UNAVAILABLE = 5
BEFORE, MISSED = 12, 8
AWAY_S = 3.0
ASK_MS = 3000
RUSH_SESSIONS, RUSH_CHANNELS = 200, 2_000
RUSH_DEADLINE_S = 15.0
ENDS = ("router", "node", "other node")

Start = Callable[..., Node]


@pytest.fixture
def server() -> Iterator[Server]:
    """Named before `holdfast`, so that nodes can store what is left when they stop."""
    with running() as one:
        yield one


def settings(server: Server) -> dict[str, str]:
    return {"HOLDFAST_LOG_BACKEND": "redis", "HOLDFAST_LOG_REDIS_URL": server.url, "HOLDFAST_AUTH_SECRET": SECRET}


def start(holdfast: Start, server: Server, *arguments: str, **more: str) -> Node:
    node = holdfast("--workers", "1", *arguments, **settings(server), **more)
    node.expect_lost()
    return node


def end(holdfast: Start, server: Server, node: Node, what: str) -> Node:
    """Whom to ask next."""
    if what == "router":
        kill_router(node)
        return node
    if what == "node":
        node.crash()
        node.start_again()
        return node
    node.stop()
    return start(holdfast, server)


async def user(node: Node, name: str) -> Client:
    return await open_session(node, "tcp", token=token_of(name))


async def resume(node: Node, old: Client, positions: dict[str, list[int]]) -> Client:
    return await (await dial(node, "tcp")).hello(session=old.session, token=old.resume_token, resume=positions)


async def said(client: Client) -> list[tuple[str, int, Any]]:
    """The messages that were on their way to it, and nothing else."""
    frames = await client.settle()
    assert {frame[0] for frame in frames} <= {MESSAGE}, frames
    return [(frame[1], frame[2], frame[3]) for frame in frames]


def is_stored(server: Server, session: str, channel: str, offset: int) -> bool:
    [key] = server.do("KEYS", f"hf:*:s:{session}") or [b""]
    text: bytes | None = server.do("HGET", key, f"c:{channel}")
    return text is not None and text.endswith(b"-%d" % offset)


@dataclass
class Left:
    """What a test knows of what was before the end."""

    alice: Client
    named: str
    """A channel whose position she names."""
    acked: str
    """One that she leaves out, and of which she acknowledged some."""
    since: str
    """One that is joined since a position."""
    first: dict[str, tuple[int, int]]
    """The position of each one's first message."""

    @property
    def channels(self) -> tuple[str, str, str]:
        return (self.named, self.acked, self.since)


async def before(node: Node, server: Server) -> Left:
    alice, speaker = await user(node, "alice"), await user(node, "speaker")
    named, acked, since = group("named"), group("acked"), group("since")
    first = {}
    for channel in (named, acked, since):
        await speaker.join(channel)
        answers = [await speaker.publish(channel, at, key=f"{channel}-{at}") for at in range(1, BEFORE + 1)]
        assert [answer["offset"] for answer in answers] == list(range(1, BEFORE + 1))
        first[channel] = (answers[0]["epoch"], answers[0]["offset"])
    await alice.join(named)
    await alice.join(acked)
    await alice.send(ACK, {acked: BEFORE})
    await alice.settle()
    await asyncio.to_thread(
        wait_until, lambda: is_stored(server, alice.session, acked, BEFORE), "what alice acknowledged is stored"
    )
    await alice.abort()
    for channel in (named, acked, since):
        for at in range(BEFORE + 1, BEFORE + MISSED + 1):
            await speaker.publish(channel, at, key=f"{channel}-{at}")
    await speaker.close()
    return Left(alice, named, acked, since, first)


async def check_resume(node: Node, left: Left, epoch: int) -> None:
    """She gets what she missed, once, in its order, and then what is said now."""
    last = BEFORE + MISSED
    alice, speaker = await resume(node, left.alice, {left.named: [epoch, BEFORE]}), await user(node, "speaker")
    assert alice.welcome["resumed"] is True
    for channel in (left.named, left.acked):
        assert alice.welcome["channels"][channel][1:] == [last, "replayed"]
    joined = await alice.join(left.since, since=[epoch, BEFORE + 3])
    assert (joined["offset"], joined["outcome"]) == (last, "replayed")
    got: list[tuple[str, int, Any]] = []
    while len(got) < 2 * MISSED + MISSED - 3:
        got += [(frame[1], frame[2], frame[3]) for frame in [await alice.message()]]
    for channel in left.channels:
        await speaker.join(channel)
        told = await speaker.publish(channel, last + 1)
        assert (told["offset"], told["epoch"] > epoch) == (last + 1, True)
    got += [(frame[1], frame[2], frame[3]) for frame in await alice.messages(3)]
    for channel, after in zip(left.channels, (BEFORE, BEFORE, BEFORE + 3), strict=True):
        mine = [(offset, data) for name, offset, data in got if name == channel]
        assert mine == [(at, at) for at in range(after + 1, last + 2)]
    assert await said(alice) == []
    await asyncio.gather(alice.close(), speaker.close())


async def check_log(node: Node, left: Left) -> None:
    """All that was is read, and known by the keys of who said it."""
    reader = await user(node, "speaker")
    for channel in left.channels:
        await reader.join(channel)
        answer = await reader.ask(HISTORY, channel, {})
        assert [(one[2], one[3]) for one in answer["messages"]] == [(at, at) for at in range(1, BEFORE + MISSED + 1)]
        again = await reader.publish(channel, 1, key=f"{channel}-1")
        assert (again["epoch"], again["offset"]) == left.first[channel]
    assert await said(reader) == []
    await reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("history_first", [False, True], ids=["cold", "read before"])
@pytest.mark.parametrize("what", ENDS)
def test_whatever_ended_a_session_gets_exactly_what_it_missed(
    server: Server, holdfast: Start, what: str, history_first: bool
) -> None:
    node = start(holdfast, server)

    async def body() -> None:
        left = await before(node, server)
        epoch = left.first[left.named][0]
        after = await asyncio.to_thread(end, holdfast, server, node, what)
        if history_first:
            await check_log(after, left)
        await check_resume(after, left, epoch)

    run(body())


@pytest.mark.slow
@pytest.mark.parametrize("what", ENDS)
def test_a_session_that_comes_back_behind_what_is_kept_is_told_which_messages_are_gone(
    server: Server, holdfast: Start, what: str
) -> None:
    node = start(holdfast, server, HOLDFAST_NAMESPACES_GROUP_HISTORY_MESSAGES="5")

    async def body() -> None:
        left = await before(node, server)
        epoch, last = left.first[left.named][0], BEFORE + MISSED
        if what == "other node":
            await asyncio.to_thread(node.stop)
            after = await asyncio.to_thread(start, holdfast, server, HOLDFAST_NAMESPACES_GROUP_HISTORY_MESSAGES="5")
        else:
            after = await asyncio.to_thread(end, holdfast, server, node, what)
        alice = await resume(after, left.alice, {left.named: [epoch, BEFORE]})
        assert [alice.welcome["channels"][one][1:] for one in (left.named, left.acked)] == [[last, "gap"]] * 2
        joined = await alice.join(left.since, since=[epoch, 2])
        assert joined["outcome"] == "gap"
        heard = [(await alice.expect(EVENT))[1:] for _ in left.channels]
        told = {"to": last - 5, "reason": "trimmed"}
        assert sorted(heard, key=str) == sorted(
            [
                [left.named, "gap", {"from": BEFORE + 1, **told}],
                [left.acked, "gap", {"from": BEFORE + 1, **told}],
                [left.since, "gap", {"from": 3, **told}],
            ],
            key=str,
        )
        got = [(frame[1], frame[2]) for frame in await alice.messages(3 * 5)]
        assert sorted(got) == sorted((one, at) for one in left.channels for at in range(last - 4, last + 1))
        assert await said(alice) == []
        await alice.close()

    run(body())


async def insist(client: Client, channel: str, data: int) -> dict[str, Any]:
    """Publish until it is answered, under one key, as a client that was refused for a moment does."""
    while True:
        try:
            return await client.publish(channel, data, key=f"{channel}-{data}")
        except Refused as refused:
            if refused.code != UNAVAILABLE:
                raise
            await asyncio.sleep(refused.options["retry_after"] / 1000)


@pytest.mark.slow
@pytest.mark.parametrize("router_too", [False, True], ids=["redis", "redis and router"])
@pytest.mark.parametrize("how", ["stopped", "restarted"])
def test_publishes_go_on_in_order_and_once_when_redis_is_back(
    server: Server, holdfast: Start, how: str, router_too: bool
) -> None:
    node = start(holdfast, server)
    count = 20

    def fault() -> None:
        if how == "stopped":
            server.signal(signal.SIGSTOP)
        else:
            server.kill()
        if router_too:
            [router] = node.routers
            os.kill(router, signal.SIGKILL)

    def back() -> None:
        if how == "stopped":
            server.signal(signal.SIGCONT)
        else:
            server.start()

    async def body() -> None:
        channel = group()
        speaker, member = await user(node, "speaker"), await user(node, "member")
        for client in (speaker, member):
            await client.join(channel)
        for at in range(1, count + 1):
            await speaker.publish(channel, at, key=f"{channel}-{at}")
        others = [await user(node, f"other-{at}") for at in range(count)]
        for other in others:
            await other.join(channel)
        await asyncio.to_thread(fault)
        began = time.monotonic()
        saying = [
            asyncio.create_task(insist(client, channel, count + at)) for at, client in enumerate([speaker, *others], 1)
        ]
        # Who comes in meanwhile waits: nobody knows where the channel of a new session stands.
        newcomer = await dial(node, "tcp")
        await newcomer.send(HELLO, 1, {"v": 1, "token": token_of("newcomer")})
        await asyncio.sleep(AWAY_S)
        assert all(not one.done() for one in saying)
        await asyncio.to_thread(back)
        answers = await asyncio.gather(*saying)
        print(f"{how}: answered {time.monotonic() - began - AWAY_S:.2f} s after it was back")
        await newcomer.welcomed()
        total = count + len(answers)
        assert sorted(one["offset"] for one in answers) == list(range(count + 1, total + 1))
        for client in (speaker, member):
            heard = await client.messages(total)
            assert [frame[2] for frame in heard] == list(range(1, total + 1))
            assert sorted(frame[3] for frame in heard) == list(range(1, total + 1))
            assert await said(client) == []
        history = await member.ask(HISTORY, channel, {})
        assert [one[2] for one in history["messages"]] == list(range(1, total + 1))
        for client in (speaker, member, newcomer, *others):
            await client.close()

    run(body())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "gone"])
def test_while_redis_is_away_who_comes_is_told_to_come_back_and_who_is_there_goes_on(
    server: Server, holdfast: Start, how: str
) -> None:
    node = start(
        holdfast,
        server,
        HOLDFAST_GATEWAY_REQUEST_TIMEOUT_MS=str(ASK_MS),
        HOLDFAST_NAMESPACES_GROUP_ACK="sequenced",
    )

    async def told_to_come_back(**options: Any) -> None:
        client, began = await dial(node, "tcp"), time.monotonic()
        await client.send(HELLO, 1, {"v": 1, **options})
        _, code, _, told = await client.fin()
        assert (code, told["class"], told["after"] >= 1000) == (UNAVAILABLE, "resume", True)
        # Overdue requests are looked for once a second; without ASK_MS it would be five seconds.
        assert time.monotonic() - began < ASK_MS / 1000 + 2.0
        await client.acknowledge()

    async def body() -> None:
        named, other = group("named"), group("other")
        speaker, member, alice = [await user(node, name) for name in ("speaker", "member", "alice")]
        phone = await user(node, "alice")  # so that where her own channel stands is known, as of all that is in use
        for client in (speaker, member, alice):
            await client.join(named)
        await member.join(other)
        joined = await alice.join(other)
        epoch = joined["epoch"]
        await asyncio.to_thread(
            wait_until, lambda: is_stored(server, alice.session, other, 0), "what alice joined is stored"
        )
        await alice.abort()
        before = node.metric("holdfast_closed_unavailable_total", process="worker-0")
        if how == "stopped":
            server.signal(signal.SIGSTOP)
        else:
            server.kill()
        session = {"session": alice.session, "token": alice.resume_token}
        positions = {"user:alice": [epoch, 0], named: [epoch, 0]}
        newcomer = asyncio.create_task(told_to_come_back(token=token_of("newcomer")))
        resumes: list[dict[str, Any]] = [
            session,
            {**session, "resume": positions},  # she may be in more than that
            {**session, "resume": {named: [epoch, 0]}, "whole": True},  # and she is in her own
        ]
        for options in resumes:  # one after the other: of one session only the last would be answered
            await told_to_come_back(**options)
        await newcomer
        for number in range(1, 4):
            assert (await speaker.publish(named, number))["offset"] == number
        assert [frame[2] for frame in await member.messages(3)] == [1, 2, 3]
        back = await (await dial(node, "tcp")).hello(
            **session, resume={**positions, other: [joined["epoch"], joined["offset"]]}, whole=True
        )
        outcomes = {name: told[1:] for name, told in back.welcome["channels"].items()}
        assert outcomes == {"user:alice": [0, "live"], named: [3, "replayed"], other: [0, "live"]}
        assert [frame[2] for frame in await back.messages(3)] == [1, 2, 3]
        assert node.metric("holdfast_closed_unavailable_total", process="worker-0") == before + 1 + len(resumes)
        if how == "stopped":
            server.signal(signal.SIGCONT)
        else:
            server.start()
        for client in (speaker, member, phone, back, await user(node, "newcomer")):
            await client.close()

    run(body())


@pytest.mark.slow
def test_a_node_waits_for_a_redis_that_comes_late_and_says_so(server: Server) -> None:
    server.kill()
    node = Node(("--workers", "1"), settings(server))
    try:
        why = f"Redis at 127.0.0.1:{server.port} cannot be reached"
        wait_until(lambda: why in node.log.read_text(), node.log_tail, START_DEADLINE_S)
        server.start()
        node.wait_ready()
        assert len(node.routers) == 1
        node.check_ledger()
        node.stop()
    finally:
        node.destroy()


@pytest.mark.slow
def test_a_channel_whose_key_is_somebody_elses_is_refused_alone(server: Server, holdfast: Start) -> None:
    node = start(holdfast, server)

    async def body() -> None:
        broken, whole = group("broken"), group("whole")
        client, other = await user(node, "alice"), await user(node, "bob")
        for channel in (broken, whole):
            await client.join(channel)
            await client.publish(channel, 1)
            await client.ask(LEAVE, channel)
        await client.messages(2)
        await asyncio.to_thread(kill_router, node)
        [key] = await asyncio.to_thread(server.do, "KEYS", f"hf:*:c:{broken}")
        await asyncio.to_thread(server.do, "SET", key, "not a stream")
        refused = asyncio.create_task(other.join(broken))
        assert (await client.join(whole))["offset"] == 1
        with pytest.raises(Refused) as error:
            await refused
        assert error.value.code == UNAVAILABLE
        assert f"'{broken}' is refused" in node.log_tail()
        await asyncio.to_thread(server.do, "DEL", key)
        assert (await insist_join(other, broken))["offset"] == 0
        await asyncio.gather(client.close(), other.close())

    run(body())


async def insist_join(client: Client, channel: str) -> dict[str, Any]:
    """Join again for as long as it is refused, as a client does."""
    while True:
        try:
            return await client.join(channel)
        except Refused as refused:
            if refused.code != UNAVAILABLE:
                raise
            await asyncio.sleep(refused.options["retry_after"] / 1000)


@pytest.mark.slow
def test_many_cold_channels_are_resumed_at_once(server: Server, holdfast: Start) -> None:
    node = start(holdfast, server)
    each = RUSH_CHANNELS // RUSH_SESSIONS

    async def come(number: int, channels: list[str]) -> tuple[Client, int]:
        client = await user(node, f"user-{number}")
        for channel in channels:
            joined = await client.join(channel)
        return client, joined["epoch"]

    async def back(old: Client, channels: list[str], epoch: int, took: list[float]) -> Client:
        began = time.monotonic()
        client = await resume(node, old, {channel: [epoch, 0] for channel in channels})
        assert [client.welcome["channels"][channel][1:] for channel in channels] == [[3, "replayed"]] * each
        got = [(frame[1], frame[2]) for frame in await client.messages(3 * each)]
        took.append(time.monotonic() - began)
        assert sorted(got) == sorted((channel, at) for channel in channels for at in (1, 2, 3))
        return client

    async def body() -> None:
        names = [[group(f"rush-{number}") for _ in range(each)] for number in range(RUSH_SESSIONS)]
        speaker = await user(node, "speaker")
        came = await asyncio.gather(*(come(number, mine) for number, mine in enumerate(names)))
        for client, _ in came:
            await client.abort()
        for channel in (one for mine in names for one in mine):
            await speaker.join(channel)
            for at in range(3):
                await speaker.publish(channel, at)
            await speaker.ask(LEAVE, channel)
        await asyncio.to_thread(kill_router, node)
        took: list[float] = []
        began = time.monotonic()
        clients = await asyncio.gather(
            *(back(old, mine, epoch, took) for (old, epoch), mine in zip(came, names, strict=True))
        )
        all_took, half_took = time.monotonic() - began, sorted(took)[len(took) // 2]
        print(f"{RUSH_CHANNELS} channels of {RUSH_SESSIONS} sessions: all {all_took:.2f} s, half {half_took:.2f} s")
        assert all_took < RUSH_DEADLINE_S
        for client in clients:
            assert await said(client) == []
            await client.close()
        await speaker.close()

    run(body(), 120)
