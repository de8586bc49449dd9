"""What is lost when a process is killed under load, what is not, and what is left when a node ends."""

import asyncio
import contextlib
import functools
import os
import signal
import time
from typing import Any

import pytest

from tests.conftest import Node, marked_processes, stand_still, wait_until
from tests.process.clients import (
    ERROR,
    EVENT,
    HISTORY,
    JOIN,
    KINDS,
    MESSAGE,
    PUBLISH,
    REPLY,
    Client,
    Gone,
    group,
    open_session,
    run,
)
from tests.process.places import one_on_each_worker, worker_of

UNAVAILABLE, DRAINING = 5, 1
# A request is answered within request_timeout (5 s) or refused at once, and the link notices silence after 4 s.
ANSWER_DEADLINE_S = 12.0


class Load:
    """Publishes steadily, one at a time, and keeps what each publish was answered with and how long that took."""

    def __init__(self, client: Client, channel: str) -> None:
        self.client, self.channel = client, channel
        self.positions: list[tuple[int, int]] = []
        self.refused: list[tuple[int, dict[str, Any]]] = []
        self.slowest_s = 0.0
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            began = time.monotonic()
            await self.client.send(PUBLISH, 1000 + number, self.channel, number, {})
            frame = await self._answer(1000 + number)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            if frame[0] == REPLY:
                self.positions.append((frame[2]["epoch"], frame[2]["offset"]))
            else:
                self.refused.append((frame[2], frame[4]))
                # A refusal comes at once; a client that honours retry_after does not spin.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await self._stop.wait()
            self._changed.set()

    async def _answer(self, request: int) -> list[Any]:
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            while (frame := await self.client.receive(ANSWER_DEADLINE_S))[:2] not in (
                [REPLY, request],
                [ERROR, request],
            ):
                pass
        return frame

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._changed.clear()
                done, _ = await asyncio.wait(
                    {self._task, asyncio.create_task(self._changed.wait())}, return_when=asyncio.FIRST_COMPLETED
                )
                if self._task in done:
                    self._task.result()

    async def stop(self) -> None:
        self._stop.set()
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            await self._task


async def answer_to(client: Client, request: int) -> list[Any]:
    """The REPLY or ERROR to a request; what else comes is passed over."""
    async with asyncio.timeout(ANSWER_DEADLINE_S):
        while (frame := await client.receive(ANSWER_DEADLINE_S))[:2] not in ([REPLY, request], [ERROR, request]):
            pass
    return frame


class Hearing:
    """Takes in everything that a member is sent, in order."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.frames: list[list[Any]] = []
        self.gone: Gone | None = None
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            while True:
                self.frames.append(await self.client.receive(30))
        except Gone as gone:
            self.gone = gone

    async def stop(self) -> list[list[Any]]:
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=5)
        return self.frames

    async def until_told(self, offset: int) -> None:
        """Until the message of this offset came, or a gap that names it."""
        async with asyncio.timeout(15):
            while not any(told_up_to(frame) >= offset for frame in self.frames):
                await asyncio.wait({self._task}, timeout=0.02)


def told_up_to(frame: list[Any]) -> int:
    """The last offset that a frame tells of."""
    if frame[0] == MESSAGE:
        return int(frame[2])
    return int(frame[3]["to"]) if frame[0] == EVENT else 0


def offsets_of(frames: list[list[Any]]) -> list[int]:
    return [frame[2] for frame in frames if frame[0] == MESSAGE]


@pytest.mark.slow
def test_a_killed_worker_takes_only_its_own_clients_with_it(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "3")
    node.expect_lost()

    async def body() -> None:
        channel, doomed_only = group(), group("doomed")
        members = await one_on_each_worker(node, KINDS)
        publisher, doomed, third = members
        for member in members:
            await member.join(channel)
        await doomed.join(doomed_only)
        subscriptions = node.live("subscription")
        victim = worker_of(node, doomed)
        load = Load(publisher, channel)
        hearing, dying = Hearing(third), Hearing(doomed)
        await load.until(lambda: len(load.positions) >= 200)
        os.kill(victim, signal.SIGKILL)
        # Its clients are cut at once, the others notice nothing.
        async with asyncio.timeout(5):
            await asyncio.wait({dying._task})
        assert dying.gone is not None
        before = len(load.positions)
        await load.until(lambda: len(load.positions) >= before + 300)
        await load.stop()
        assert load.refused == []
        assert [offset for _, offset in load.positions] == list(range(1, len(load.positions) + 1))
        await hearing.until_told(len(load.positions))
        frames = await hearing.stop()
        assert offsets_of(frames) == list(range(1, len(load.positions) + 1))
        assert not [frame for frame in frames if frame[0] != MESSAGE]
        # It comes back under another pid, and what it held is gone from the router.
        wait_until(lambda: len(node.workers) == 3 and victim not in node.workers, "the worker is started again")
        wait_until(lambda: node.get("/readyz")[0] == 200, "all workers serve")
        # Of the doomed: its group, its user's channel, and its place in the common group.
        wait_until(lambda: node.live("subscription") == subscriptions - 3, lambda: f"{node.ledger()['subscription']}")
        assert node.metric("holdfast_process_restarts_total", process=f"worker-{1}") in (0, 1)
        assert node.metric("holdfast_process_restarts_total") == 1
        # New clients reach the new worker, and hear everything.
        again = await one_on_each_worker(node, KINDS)
        for client in again:
            await client.join(channel)
        position = await publisher.publish(channel, "after")
        for client in [*again, third]:
            assert (await client.message())[2] == position["offset"]
        await asyncio.gather(*(client.close() for client in [publisher, third, *again]))

    run(body(), 90)


@pytest.mark.slow
def test_a_killed_router_is_replaced_while_connections_stay(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "2")
    node.expect_lost()

    async def body() -> None:
        channel, quiet = group(), group("quiet")
        publisher, member = await one_on_each_worker(node, ("tcp", "text"))
        quiet_member = await open_session(node, "binary")
        for client in (publisher, member):
            await client.join(channel)
        await quiet_member.join(quiet)
        for number in range(3):
            last_quiet = await quiet_member.publish(quiet, number)
        load, hearing = Load(publisher, channel), Hearing(member)
        await load.until(lambda: len(load.positions) >= 200)
        (victim,) = node.routers
        os.kill(victim, signal.SIGKILL)
        first_epoch = load.positions[0][0]
        await load.until(lambda: load.positions[-1][0] > first_epoch)
        epoch_at = len(load.positions)
        await load.until(lambda: len(load.positions) >= epoch_at + 200)
        await load.stop()
        check_outage(load, first_epoch)
        await hearing.until_told(load.positions[-1][1])
        check_heard(await hearing.stop(), channel, load)
        # A channel that nothing was said in meanwhile goes on after its last position, under the new epoch.
        await quiet_member.settle()
        position = await quiet_member.publish(quiet, "again")
        assert position["offset"] == last_quiet["offset"] + 1
        assert position["epoch"] > last_quiet["epoch"]
        # Joining, history and presence work again.
        newcomer = await open_session(node, "tcp")
        joined = await newcomer.ask(JOIN, channel, {})
        assert (joined["epoch"], joined["offset"]) == load.positions[-1]
        history = await newcomer.ask(HISTORY, channel, {"limit": 1, "reverse": True})
        assert history["messages"][0][2] == joined["offset"]
        assert (await newcomer.ask(12, channel))["count"] == 3
        assert [pid for pid in node.routers if pid != victim]
        await asyncio.gather(*(client.close() for client in (publisher, member, quiet_member, newcomer)))

    run(body(), 90)


def check_outage(load: Load, first_epoch: int) -> None:
    """Every publish was answered in time by its position: the outage was nothing but a wait."""
    assert load.refused == []
    assert load.slowest_s < ANSWER_DEADLINE_S
    # Positions only grow, and no offset is given twice.
    assert load.positions == sorted(set(load.positions))
    offsets = [offset for _, offset in load.positions]
    assert offsets == sorted(set(offsets))
    assert load.positions[-1][0] > first_epoch


def check_heard(frames: list[list[Any]], channel: str, load: Load) -> None:
    """No message twice or out of order; what is missing was announced by EVENT gap, exactly; nothing else came."""
    offsets = offsets_of(frames)
    assert offsets == sorted(set(offsets))
    epochs = [frame[4]["epoch"] for frame in frames if frame[0] == MESSAGE]
    assert epochs == sorted(epochs)
    announced: set[int] = set()
    for frame in frames:
        if frame[0] == EVENT:
            assert frame[1:3] == [channel, "gap"]
            assert set(frame[3]) == {"from", "to", "reason"}
            announced |= set(range(frame[3]["from"], frame[3]["to"] + 1))
        else:
            assert frame[0] == MESSAGE
    # What was said before the member's worker was known to the new router is part of the gap, even when a sender was
    # answered with its position: this version has no replay.
    assert not announced & set(offsets)
    assert announced | set(offsets) >= set(range(1, load.positions[-1][1] + 1))


def test_messages_that_died_with_the_router_are_announced_as_a_gap(holdfast: Any) -> None:
    """One worker knows a position that the other never saw: stop a worker, publish, kill the router."""
    node: Node = holdfast("--workers", "2")
    node.expect_lost()

    async def body() -> None:
        channel = group()
        ahead, behind = await one_on_each_worker(node, ("tcp", "text"))
        for client in (ahead, behind):
            await client.join(channel)
        await ahead.publish(channel, "both")
        await behind.message()
        stopped = worker_of(node, behind)
        await asyncio.to_thread(stand_still, stopped)
        try:
            last = None
            for number in range(5):
                last = await ahead.publish(channel, number)
            (router,) = node.routers
            os.kill(router, signal.SIGKILL)
            wait_until(lambda: node.routers not in ([], [router]), "the router is started again")
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert last is not None
        await ahead.settle()
        async with asyncio.timeout(20):
            while True:
                await ahead.send(PUBLISH, 9, channel, "after", {"key": "after"})
                answer = await answer_to(ahead, 9)
                if answer[0] == REPLY:
                    break
        assert answer[2]["epoch"] > last["epoch"]
        assert answer[2]["offset"] == last["offset"] + 1
        # Whatever it does not hear it is told of; nothing is passed over in silence and nothing said twice. What was
        # published before its worker was known to the new router is part of the gap.
        told: list[int] = []
        while not told or told[-1] < answer[2]["offset"]:
            frame = await behind.receive(15)
            if frame[0] == EVENT:
                assert frame[1:3] == [channel, "gap"]
                told += range(frame[3]["from"], frame[3]["to"] + 1)
            else:
                told.append(frame[2])
        assert told == list(range(2, answer[2]["offset"] + 1))
        await asyncio.gather(ahead.close(), behind.close())

    run(body(), 90)


def test_sigterm_drains_every_client_and_leaves_nothing(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "2", HOLDFAST_GATEWAY_DRAIN_MS="3000")

    async def body() -> None:
        clients = await one_on_each_worker(node, KINDS) + await one_on_each_worker(node, ("text", "binary"))
        silent = await open_session(node, "tcp")
        os.kill(node.pid, signal.SIGTERM)
        afters = []
        for client in [*clients, silent]:
            _, code, reason, options = await client.fin()
            assert (code, options["class"]) == (DRAINING, "resume")
            assert reason
            assert 0 <= options["after"] < 3000
            afters.append(options["after"])
        assert len(set(afters)) > 1, "the times to come back are jittered"
        for client in clients:
            gone = await client.acknowledge()
            assert (gone.status, gone.reason) in ((None, ""), (4000 + DRAINING, "draining"))
        # One that never acknowledges is cut, and holds nothing up.
        await silent.ended()

    run(body())
    # The node ends by itself, with 0, and leaves no process, file or shared memory.
    assert node._process.wait(15) == 0
    node.stop()
    assert not list(node.temporary.rglob("*"))
    assert marked_processes(node.folder.name) == []


def test_children_of_a_killed_supervisor_end_by_themselves(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "2")

    async def body() -> None:
        clients = await one_on_each_worker(node, ("tcp", "text"))
        os.kill(node.pid, signal.SIGKILL)
        for client in clients:
            _, code, _, _ = await client.fin()
            assert code == DRAINING
            await client.acknowledge()

    run(body())
    node._process.wait(5)
    node._stopped = True
    wait_until(lambda: not marked_processes(node.folder.name), "no process is left")


def is_replaced(node: Node, victim: int) -> bool:
    workers = node.workers
    return bool(workers) and victim not in workers


def test_a_worker_that_dies_again_and_again_is_started_with_growing_pauses(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1")
    node.expect_lost()
    pauses = []
    for round_ in range(1, 4):
        (victim,) = node.workers
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        wait_until(functools.partial(is_replaced, node, victim), "another worker is started")
        pauses.append(time.monotonic() - began)
        wait_until(lambda: node.get("/readyz")[0] == 200, "it serves")
        assert node.metric("holdfast_process_restarts_total", process="worker-0") == round_

    # The back-off doubles: 0.1, 0.2, 0.4 s.
    assert pauses[-1] >= 0.4

    async def body() -> None:
        client = await open_session(node, "text")
        await client.join(group())
        await client.close()

    run(body())
