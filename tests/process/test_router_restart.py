"""The router is killed under publishes, again and again: clients notice nothing but the time that it takes."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import time
from typing import Any

import msgpack
import pytest

from core import log_records
from core.codes import Code
from router.log.redis import RedisLog
from tests.conftest import Node, stand_still, wait_until
from tests.process.clients import (
    ERROR,
    HELLO,
    HISTORY,
    JOIN,
    KINDS,
    LEAVE,
    MESSAGE,
    PUBLISH,
    REPLY,
    Client,
    dial,
    group,
    open_session,
    run,
    unique,
)
from tests.process.places import one_on_each_worker, worker_of
from tests.servers.redis import running

IN_FLIGHT = 30
ANSWER_DEADLINE_S = 12.0


class Publisher:
    """Keeps so many publishes in flight, and what each was answered with."""

    def __init__(self, client: Client, channel: str, keyed: bool) -> None:
        self.client, self.channel, self.keyed = client, channel, keyed
        self.sent: list[int] = []
        self.answers: dict[int, list[Any]] = {}
        self.heard: list[list[Any]] = []
        self._stop = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stop or len(self.answers) < len(self.sent):
            while not self._stop and len(self.sent) - len(self.answers) < IN_FLIGHT:
                id = 1000 + len(self.sent)
                self.sent.append(id)
                options = {"key": f"{self.client.session}-{id}"} if self.keyed else {}
                await self.client.send(PUBLISH, id, self.channel, [self.client.session, id], options)
            frame = await self.client.receive(ANSWER_DEADLINE_S)
            if frame[0] in (REPLY, ERROR):
                assert frame[1] not in self.answers, f"answered twice: {self.answers[frame[1]]}, {frame}"
                self.answers[frame[1]] = frame
            else:
                self.heard.append(frame)

    async def until(self, more: int) -> None:
        """Until so many more were answered."""
        goal = len(self.answers) + more
        async with asyncio.timeout(30):
            while len(self.answers) < goal:
                done, _ = await asyncio.wait({self._task}, timeout=0.02)
                if done:
                    self._task.result()

    async def stop(self) -> None:
        self._stop = True
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            await self._task


class Listener:
    """Takes in what a session hears, and checks that each offset of the channel follows the one before."""

    def __init__(self, client: Client) -> None:
        self.client, self.offset = client, 0
        self.wrong: list[list[Any]] = []
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            frame = await self.client.receive(30)
            if frame[0] == MESSAGE and frame[2] == self.offset + 1:
                self.offset += 1
            else:
                self.wrong.append(frame)

    async def until(self, offset: int) -> None:
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            while self.offset < offset and not self.wrong:
                await asyncio.wait({self._task}, timeout=0.02)
        self._task.cancel()


def groups_stored(node: Node, session: str) -> list[str]:
    """The groups of a session as the embedded log has them now, whatever is still on its way there."""
    path = next((node.folder / "state").rglob("state.sqlite"))
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as state:
        row = state.execute("SELECT channels FROM sessions WHERE id = ?", (bytes.fromhex(session),)).fetchone()
    return [name for name in msgpack.unpackb(row[0]) if name.startswith("group:")]


async def next_router(node: Node, killed: int) -> None:
    await asyncio.to_thread(wait_until, lambda: node.routers not in ([], [killed]), "the next router")


@pytest.mark.slow
@pytest.mark.parametrize("keyed", [True, False])
def test_every_publish_is_answered_once_however_often_the_router_is_killed(holdfast: Any, keyed: bool) -> None:
    node: Node = holdfast("--workers", "3")
    node.expect_lost()

    async def body() -> None:
        channel = group()
        clients = await one_on_each_worker(node, KINDS)
        for client in clients:
            await client.join(channel)
        publishers = [Publisher(client, channel, keyed) for client in clients]
        for _ in range(3):
            await asyncio.gather(*(one.until(300) for one in publishers))
            (router,) = node.routers
            os.kill(router, signal.SIGKILL)
            await next_router(node, router)
        await asyncio.gather(*(one.until(300) for one in publishers))
        await asyncio.gather(*(one.stop() for one in publishers))
        answers = [answer for one in publishers for answer in one.answers.values()]
        assert [answer for answer in answers if answer[0] == ERROR] == []
        positions = [(answer[2]["epoch"], answer[2]["offset"]) for answer in answers]
        assert len({offset for _, offset in positions}) == len(positions)
        assert len({epoch for epoch, _ in positions}) == 4
        assert node.metric("holdfast_asked_again_total") > 0
        for one in publishers:
            offsets = [frame[2] for frame in one.heard if frame[0] == MESSAGE]
            assert offsets == sorted(set(offsets))
            # Its key or its origin outlives the router with the log: what is said again is not delivered again.
            said = [tuple(frame[3]) for frame in one.heard if frame[0] == MESSAGE]
            assert len(set(said)) == len(said)
        assert (await clients[0].ask(12, channel))["count"] == 3  # all of them are still there
        await asyncio.gather(*(client.close() for client in clients))

    run(body(), 90)


@pytest.mark.slow
def test_everybody_hears_each_acknowledged_global_message_once_however_often_the_router_is_killed(
    holdfast: Any,
) -> None:
    """What was in the log, and had not reached a worker when the router died, reaches it from the next one."""
    # So many that none is trimmed while a worker has not linked to the next router yet, and others publish there.
    node: Node = holdfast("--workers", "2", HOLDFAST_NAMESPACES_GLOBAL_HISTORY_MESSAGES="100000")
    node.expect_lost()

    async def body() -> None:
        channel = f"global:{unique('news')}"
        listeners = [Listener(client) for client in await one_on_each_worker(node)]
        publishers = [Publisher(client, channel, keyed=True) for client in await one_on_each_worker(node)]
        for _ in range(3):
            await asyncio.gather(*(one.until(200) for one in publishers))
            (router,) = node.routers
            os.kill(router, signal.SIGKILL)
            await next_router(node, router)
        await asyncio.gather(*(one.until(200) for one in publishers))
        await asyncio.gather(*(one.stop() for one in publishers))
        answers = [answer for one in publishers for answer in one.answers.values()]
        assert {answer[0] for answer in answers} == {REPLY}
        last = max(answer[2]["offset"] for answer in answers)
        await asyncio.gather(*(listener.until(last) for listener in listeners))
        assert [listener.wrong for listener in listeners] == [[], []]
        assert [listener.offset for listener in listeners] == [last, last]
        await asyncio.gather(
            *(client.close() for client in [one.client for one in listeners] + [one.client for one in publishers])
        )

    run(body(), 90)


async def logged_and_told_nobody(url: str, channel: str) -> None:
    """What a router leaves in Redis that is killed right after its first message of a channel was logged."""
    log = RedisLog(url)
    epoch = (await log.open(1)).epoch
    body = msgpack.packb([MESSAGE, channel, 1, "the first", {"from": "bob", "time": 1, "epoch": epoch}])
    now_ms = time.time_ns() // 1_000_000
    await log.append(log_records.pack(log_records.MESSAGE, channel.encode(), epoch, 1, time_ms=now_ms, body=body))
    await log.close()


def test_the_next_router_tells_of_a_global_channel_that_nobody_heard_of(holdfast: Any) -> None:
    """Its first message is in the log and acknowledged, and the router died before any worker was told of it."""
    with running() as server:
        node: Node = holdfast("--workers", "1", HOLDFAST_LOG_BACKEND="redis", HOLDFAST_LOG_REDIS_URL=server.url)
        node.expect_lost()

        async def body() -> None:
            channel = f"global:{unique('news')}"
            alice = await open_session(node)
            assert channel not in alice.welcome["channels"]
            await logged_and_told_nobody(server.url, channel)
            (router,) = node.routers
            os.kill(router, signal.SIGKILL)
            [heard] = await alice.messages(1)
            assert heard[1:4] == [channel, 1, "the first"]
            await alice.publish(channel, "the second")
            assert [frame[1:4] for frame in await alice.messages(1)] == [[channel, 2, "the second"]]
            late = await open_session(node)
            assert late.welcome["channels"][channel][1:] == [2, "live"]
            await asyncio.gather(alice.close(), late.close())

        run(body())
        node.stop()


@pytest.mark.slow
@pytest.mark.parametrize("breaks", ["before the next router", "after it"])
def test_what_a_session_did_without_a_router_is_part_of_it(holdfast: Any, breaks: str) -> None:
    """JOIN and LEAVE of channels that the worker knows are answered on the spot, also while nobody hears of them."""
    node: Node = holdfast("--workers", "1")
    node.expect_lost()

    async def body() -> None:
        joined, left = group("joined"), group("left")
        alice, bob = await open_session(node), await open_session(node)
        for channel in (joined, left):
            await bob.join(channel)
        await alice.join(left)
        (router,) = node.routers
        await asyncio.to_thread(stand_still, router)
        await alice.join(joined)
        await alice.ask(LEAVE, left)
        if breaks == "before the next router":
            await alice.abort()
        os.kill(router, signal.SIGKILL)
        await next_router(node, router)
        await asyncio.to_thread(wait_until, lambda: node.get("/readyz")[0] == 200, "the next router serves")
        if breaks == "after it":
            await bob.join(group())  # the router answered it: it has been told everything
            await alice.abort()
        again = await dial(node, "tcp")
        await again.hello(session=alice.session, token=alice.resume_token, resume={})
        assert joined in again.welcome["channels"]
        assert left not in again.welcome["channels"]
        await asyncio.gather(bob.close(), again.close())

    run(body())


@pytest.mark.slow
def test_a_session_that_moved_is_not_set_back_when_the_router_and_its_worker_are_killed(holdfast: Any) -> None:
    """The worker that it came from lives, and tells the next router what the session did there."""
    node: Node = holdfast("--workers", "2")
    node.expect_lost()

    async def body() -> None:
        left, joined = group("left"), group("joined")
        first = await open_session(node, "tcp")
        home = worker_of(node, first)
        await first.join(left)
        await first.abort()
        session, token = first.session, first.resume_token
        for _attempt in range(64):
            moved = await dial(node, "tcp")
            await moved.hello(session=session, token=token, resume={})
            if (there := worker_of(node, moved)) != home:
                break
            token = moved.resume_token
            await moved.abort()
        assert there != home, "64 connections reached one worker only"
        await moved.ask(LEAVE, left)
        await moved.join(joined)
        await asyncio.to_thread(wait_until, lambda: groups_stored(node, session) == [joined], "it is stored")
        (router,) = node.routers
        os.kill(router, signal.SIGKILL)
        os.kill(there, signal.SIGKILL)
        await next_router(node, router)
        await asyncio.to_thread(wait_until, lambda: node.get("/readyz")[0] == 200, "the next router serves")
        again = await dial(node, "tcp")
        await again.hello(session=session, token=moved.resume_token, resume={})
        assert [name for name in again.welcome["channels"] if name.startswith("group:")] == [joined]
        await again.close()

    run(body())


@pytest.mark.slow
def test_what_is_read_from_an_old_connection_after_its_session_moved_does_not_count_later(holdfast: Any) -> None:
    """It came to a worker that stood still, which tells the next router of it when it goes on."""
    node: Node = holdfast("--workers", "2")
    node.expect_lost()

    async def body() -> None:
        kept, never = group("kept"), group("never")
        old, helper = await one_on_each_worker(node)
        await old.join(kept)
        home = worker_of(node, old)
        await asyncio.to_thread(wait_until, lambda: groups_stored(node, old.session) == [kept], "it is stored")
        await asyncio.to_thread(stand_still, home)
        await old.send(LEAVE, 77, kept)
        await old.send(JOIN, 78, never, {})
        moved = await welcomed_elsewhere(node, old)
        assert kept in moved.welcome["channels"]
        (router,) = node.routers
        os.kill(router, signal.SIGKILL)
        os.kill(home, signal.SIGCONT)
        await next_router(node, router)
        assert (await old.fin())[1] == Code.RESUMED_ELSEWHERE
        await helper.join(group())  # the next one answered it: it has been told everything
        again = await dial(node, "tcp")
        await again.hello(session=moved.session, token=moved.resume_token, resume={})
        assert [name for name in again.welcome["channels"] if name.startswith("group:")] == [kept]
        await asyncio.gather(helper.close(), again.close())

    run(body())


async def welcomed_elsewhere(node: Node, old: Client) -> Client:
    """The session on a worker that answers, while another stands still: of several dials one gets there."""
    for _attempt in range(64):
        client = await dial(node, "tcp")
        await client.send(HELLO, 1, {"v": 1, "session": old.session, "token": old.resume_token, "resume": {}})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                return await client.welcomed()
        await client.abort()
    raise AssertionError("64 connections reached only the worker that stands still")


@pytest.mark.slow
def test_a_join_that_nobody_knows_of_any_more_is_not_listed_and_can_be_asked_for_again(holdfast: Any) -> None:
    """Answered by its worker on the spot, with which the router died: WELCOME says so, and `since` loses nothing."""
    node: Node = holdfast("--workers", "1")
    node.expect_lost()

    async def body() -> None:
        known, lost = group("known"), group("lost")
        alice, bob = await open_session(node), await open_session(node)
        await alice.join(known)
        await bob.join(lost)
        (first,) = node.routers
        os.kill(first, signal.SIGTERM)  # it stores what it knows before it ends
        await next_router(node, first)
        await bob.join(group())  # the next one answered it: it has been told everything
        (router,), (worker,) = node.routers, node.workers
        await asyncio.to_thread(stand_still, router)
        joined = await alice.join(lost)
        for pid in (worker, router):
            os.kill(pid, signal.SIGKILL)
        await next_router(node, router)
        await asyncio.to_thread(wait_until, lambda: node.workers not in ([], [worker]), "the next worker")
        await asyncio.to_thread(wait_until, lambda: node.get("/readyz")[0] == 200, "both serve")
        carol, again = await open_session(node), await dial(node, "tcp")
        await carol.join(lost)
        await again.hello(session=alice.session, token=alice.resume_token, resume={})
        assert again.welcome["resumed"]
        assert set(again.welcome["channels"]) == {known, f"user:{alice.user}"}
        await carol.publish(lost, "not for alice")
        assert not [frame for frame in await again.settle() if frame[0] == MESSAGE]
        standing = await again.join(lost, since=[joined["epoch"], joined["offset"]])
        assert standing["outcome"] == "replayed"
        assert [frame[3] for frame in await again.messages(1)] == ["not for alice"]
        await asyncio.gather(carol.close(), again.close())

    run(body())


@pytest.mark.slow
def test_who_has_all_of_a_quiet_channel_missed_nothing_however_often_the_router_is_killed(
    kept_in: dict[str, str], holdfast: Any
) -> None:
    """Its messages are not in memory: with the embedded log, too much was said in others since."""
    node: Node = holdfast("--workers", "1", HOLDFAST_ROUTER_HISTORY_TOTAL_BYTES="1048576", **kept_in)
    node.expect_lost()

    async def body() -> None:
        member, speaker = await open_session(node), await open_session(node)
        channel, *others = group(), *(group() for _ in range(6))
        for name in (*others, channel):
            await speaker.join(name)
        await speaker.publish(others[0], "the hand comes last to what is recovered first")
        await member.join(channel)
        said = [await speaker.publish(channel, number) for number in range(3)]
        for name in others:
            for _ in range(6):
                await speaker.publish(name, "z" * 50_000)
        await member.messages(len(said))
        for first in (True, False):
            [killed] = node.routers
            os.kill(killed, signal.SIGKILL)
            await next_router(node, killed)
            await speaker.publish(others[0], "the router is back, and this worker told it everything")
            if first:  # and was answered: behind its SUBSCRIBE
                await speaker.ask(HISTORY, channel, {"limit": 1})
        await member.abort()
        again = await dial(node, "tcp")
        held = [said[-1]["epoch"], said[-1]["offset"]]
        await again.hello(session=member.session, token=member.resume_token, resume={channel: held})
        assert again.welcome["channels"][channel][1:] == [held[1], "live"]
        more = await speaker.publish(channel, "more")
        assert more["offset"] == held[1] + 1
        assert (await again.message())[2] == more["offset"]
        await asyncio.gather(again.close(), speaker.close())

    run(body())
