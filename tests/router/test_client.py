"""The publishing peer, against the real sequencer in a thread of this process."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import uvloop
import zmq

from core import notes, records
from core.ban_list import FOREVER_MS
from core.codes import Code
from core.ledger import Stats
from core.namespace_spec import BUILT_IN
from core.router_loop import RouterLoop
from router.bans import BanKeeper, MemoryStore
from router.client import BanRefused, Presence, Refused, RouterClient, StoredSession, Unavailable
from tests.conftest import free_ports
from tests.core import wire

DEADLINE_S = 30.0
DATA = msgpack.packb({"text": "hello"})
BOUNDS: dict[str, Any] = {"key_window_s": 60, "channels_max": 100, "spill_bytes_max": 1 << 20}


@contextmanager
def router(endpoint: str, epoch: int, **options: int) -> Iterator[Stats]:
    """A sequencer that serves at `endpoint` inside the context."""
    stats = Stats()
    bounds: dict[str, Any] = {"key_window_s": 60, "channels_max": 100, "spill_bytes_max": 1 << 20, **options}
    loop = RouterLoop(stats, endpoint=endpoint, epoch=epoch, namespaces=BUILT_IN, **bounds)
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    try:
        yield stats
    finally:
        loop.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@asynccontextmanager
async def linked_client(endpoint: str) -> AsyncIterator[RouterClient]:
    client = RouterClient(endpoint, "test")
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def publish(client: RouterClient, channel: str = "group:a", **options: Any) -> tuple[int, int]:
    return await client.publish(channel, DATA, sender="admin", **{"deadline_s": DEADLINE_S, **options})


def run(work: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(3 * DEADLINE_S):
            await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/router.sock"


def test_a_router_of_another_version_is_named(endpoint: str) -> None:
    async def body() -> None:
        context: zmq.Context[Any] = zmq.Context()
        with context.socket(zmq.ROUTER) as other:
            other.bind(endpoint)
            async with linked_client(endpoint) as client:
                asked = asyncio.create_task(publish(client, deadline_s=2))
                assert await asyncio.to_thread(other.poll, int(DEADLINE_S * 1000))
                identity, _ = other.recv_multipart()
                other.send_multipart([identity, wire.linked(7, ask=True, version=records.VERSION + 1)])
                with pytest.raises(Unavailable, match=f"speaks version {records.VERSION + 1} of the link and this"):
                    await asked
        context.term()

    run(body())


def test_a_publish_is_answered_by_its_position(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            assert [await publish(client) for _ in range(3)] == [(7, 1), (7, 2), (7, 3)]
            assert await publish(client, "user:bob") == (7, 1)
            assert client.linked

    with router(endpoint, 7):
        run(body())


def test_a_router_is_reached_over_ipv6() -> None:
    """It listens as `gateway.cluster_config.bus_endpoint` has it, at one port of both families."""
    (port,) = free_ports(1)

    async def scenario() -> None:
        for host in ("[::1]", "127.0.0.1"):
            async with linked_client(f"tcp://{host}:{port}") as client:
                await publish(client)

    with router(f"tcp://[::]:{port}", 7):
        run(scenario())


def test_many_at_once_get_each_their_own(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            positions = await asyncio.gather(*(publish(client) for _ in range(500)))
            assert positions == [(7, offset) for offset in range(1, 501)]

    with router(endpoint, 7):
        run(body())


def test_a_repeated_key_gives_the_first_position(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            first = await publish(client, key="k")
            await publish(client)
            assert await publish(client, key="k") == first
            assert await publish(client, key="l") == (7, 3)

    with router(endpoint, 7):
        run(body())


def test_what_the_router_refuses_says_why(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            await publish(client, "group:1")
            await publish(client, "group:2")
            with pytest.raises(Refused) as refused:
                await publish(client, "group:3")
            assert refused.value.code_name == "overloaded"

    with router(endpoint, 7, channels_max=2):
        run(body())


def test_without_a_router_a_publish_is_unavailable_at_its_deadline(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            with pytest.raises(Unavailable):
                await publish(client, deadline_s=0.05)
            assert not client.linked

    run(body())


def test_a_router_that_comes_later_is_found(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            waiting = asyncio.create_task(publish(client))
            with router(endpoint, 3):
                assert await waiting == (3, 1)

    run(body())


def test_a_router_that_is_replaced_is_found_again(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            with router(endpoint, 3):
                assert await publish(client) == (3, 1)
            with router(endpoint, 4):
                assert await publish(client) == (4, 1)

    run(body())


def test_what_waits_is_said_again_in_order_to_the_next_router(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            with router(endpoint, 3):
                first = await publish(client, key="k0")
            waiting = [asyncio.create_task(publish(client, key=f"k{number}")) for number in range(1, 4)]
            short = asyncio.create_task(publish(client, deadline_s=0.05))
            with pytest.raises(Unavailable):
                await short
            with router(endpoint, 4):
                assert (first, await asyncio.gather(*waiting)) == ((3, 1), [(4, 1), (4, 2), (4, 3)])
                assert await publish(client) == (4, 4)  # what was given up in time was not said

    run(body())


def test_two_peers_are_never_taken_for_one(endpoint: str) -> None:
    """A publish that is said again is known by its peer's start: it must be another one for each."""
    assert RouterClient(endpoint, "test").start_number != RouterClient(endpoint, "test").start_number


def test_closing_ends_what_is_under_way_and_may_be_done_twice(endpoint: str) -> None:
    async def body() -> None:
        client = RouterClient(endpoint, "test")
        await client.start()
        waiting = asyncio.create_task(publish(client, deadline_s=0.2))
        await client.close()
        await client.close()
        with pytest.raises(Unavailable):
            await waiting

    run(body())


# ---- bans ----


@contextmanager
def keeping(endpoint: str, epoch: int, store: MemoryStore) -> Iterator[None]:
    """A sequencer whose control thread keeps bans in `store`, inside the context."""
    bounds: dict[str, Any] = {"key_window_s": 60, "channels_max": 100, "spill_bytes_max": 1 << 20}
    loops = [RouterLoop(Stats(), endpoint=endpoint, epoch=epoch, namespaces=BUILT_IN, **bounds)]
    stop = threading.Event()

    async def control() -> None:
        keeper = BanKeeper(store, lambda one, all_: loops[0].put(notes.BANS_SAY, text=one, extra=all_), clock=time.time)
        await keeper.load()
        keeper.start()
        while not stop.is_set():
            for note in loops[0].take():
                keeper.on_wish(note[7])
            await asyncio.sleep(0.001)
        await keeper.close()

    threads = [
        threading.Thread(target=loops[0].run, daemon=True),
        threading.Thread(target=asyncio.run, args=(control(),)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        threads[1].join(DEADLINE_S)
        loops[0].stop()
        threads[0].join(DEADLINE_S)
        loops.clear()  # frees it, and its place on the bus


async def known(client: RouterClient, users: set[str]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                if set(client.bans()) == users:
                    return
            except Unavailable:
                pass
            await asyncio.sleep(0.001)


def test_a_ban_is_known_to_every_peer_and_to_those_that_link_later(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as one, linked_client(endpoint) as other:
            with pytest.raises(BanRefused, match="not_banned"):
                await one.ban("eve", 0, "", deadline_s=DEADLINE_S)
            found = await one.ban("eve", FOREVER_MS, "spam", deadline_s=DEADLINE_S)
            assert (found.user, found.until_ms, found.reason) == ("eve", FOREVER_MS, "spam")
            await known(other, {"eve"})
            async with linked_client(endpoint) as third:
                await known(third, {"eve"})
                assert third.bans()["eve"] == found

    with keeping(endpoint, 7, MemoryStore()):
        run(body())


def test_the_next_routers_bans_take_the_place_of_the_last_ones(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            with keeping(endpoint, 7, MemoryStore()):
                await client.ban("eve", FOREVER_MS, "", deadline_s=DEADLINE_S)
                await known(client, {"eve"})
            with keeping(endpoint, 8, MemoryStore()):
                await known(client, set())

    run(body())


def test_a_router_that_is_away_bans_nobody(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            with pytest.raises(Unavailable):
                client.bans()
            with pytest.raises(Unavailable):
                await client.ban("eve", FOREVER_MS, "", deadline_s=0.05)

    run(body())


# ---- where a user stands ----


@contextmanager
def knowing(endpoint: str, epoch: int, answers: dict[bytes, tuple[int, int] | str | None]) -> Iterator[None]:
    """A sequencer whose control thread reads cursors: a position, a word of `CURSORS`, or nothing at all."""
    loop = RouterLoop(Stats(), endpoint=endpoint, epoch=epoch, namespaces=BUILT_IN, sessions_kept=True, **BOUNDS)
    stop = threading.Event()

    def control() -> None:
        while not stop.wait(0.001):
            for note in loop.take():
                answer = answers[note[7]] if note[0] == notes.CURSOR else None
                if isinstance(answer, str):
                    first = records.CURSORS.index(answer)
                    loop.put(notes.CURSOR_READ, request=note[3], conn=note[2], first=first, text=note[7])
                elif answer is not None:
                    second, third = answer
                    loop.put(notes.CURSOR_READ, request=note[3], conn=note[2], second=second, third=third, text=note[7])

    threads = [threading.Thread(target=loop.run, daemon=True), threading.Thread(target=control)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        threads[1].join(DEADLINE_S)
        loop.stop()
        threads[0].join(DEADLINE_S)


def test_each_channel_is_told_with_its_position_and_its_cursor(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            for _ in range(3):
                await publish(client, "user:bob")
            await publish(client, "user:eve")
            names = ["user:bob", "user:nobody", "user:eve"]
            assert await client.channels(names, deadline_s=DEADLINE_S) == [
                ((7, 3), (7, 2)),
                ((7, 0), (0, 0)),
                ((7, 1), (0, 0)),
            ]
            assert await client.channels([], deadline_s=DEADLINE_S) == []

    with knowing(endpoint, 7, {b"user:bob": (7, 2), b"user:eve": (0, 0)}):
        run(body())


def test_a_router_that_keeps_no_cursors_says_so(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            await publish(client, "user:bob")
            assert await client.channels(["user:bob"], deadline_s=DEADLINE_S) == [((7, 1), None)]

    with router(endpoint, 7):
        run(body())


def test_a_cursor_that_cannot_be_read_is_no_answer(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            await publish(client, "user:bob")
            with pytest.raises(Unavailable, match="cannot read"):
                await client.channels(["user:bob", "user:eve"], deadline_s=DEADLINE_S)
            await publish(client, "user:late")
            with pytest.raises(Unavailable, match="in time"):
                await client.channels(["user:late"], deadline_s=0.05)

    with knowing(endpoint, 7, {b"user:bob": "away", b"user:late": None}):
        run(body())


def test_what_is_asked_is_asked_again_of_the_next_router(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            with knowing(endpoint, 3, {b"user:bob": None}):
                await publish(client, "user:bob")
                asked = asyncio.create_task(client.channels(["user:bob"], deadline_s=DEADLINE_S))
                await publish(client, "user:bob")  # behind what was asked
            with router(endpoint, 4):
                assert await asked == [((4, 0), None)]

    run(body())


# ---- how a channel stands, and what is stored of sessions ----


def test_a_survey_tells_each_channel_in_its_order(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            for _ in range(3):
                await publish(client, "group:a")
            found, nothing, news = await client.survey(
                ["group:a", "group:b", "global:news"], records.MESSAGES, deadline_s=DEADLINE_S
            )
            assert (found.known, found.loaded, found.position, found.waiting) == (True, True, (7, 3), 0)
            assert (found.kept, found.workers, found.presence) == (3, 0, Presence(0, 0))
            assert found.oldest is not None
            assert found.oldest.position == (7, 1)
            assert abs(found.oldest.time_ms - time.time() * 1000) < 60_000
            assert found.kept_bytes > 0
            assert (nothing.position, nothing.kept, nothing.oldest) == ((7, 0), 0, None)
            assert news.presence is None
            assert await client.survey([], records.AS_IS, deadline_s=DEADLINE_S) == []

    with router(endpoint, 7):
        run(body())


def test_a_survey_of_what_is_no_channel_is_refused(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            with pytest.raises(Refused) as refused:
                await client.survey(["group:a", "nothing:a"], records.AS_IS, deadline_s=DEADLINE_S)
            assert refused.value.code_name == "no_such_channel"

    with router(endpoint, 7):
        run(body())


@contextmanager
def storing(endpoint: str, answer: bytes, code: int = 0) -> Iterator[None]:
    """A sequencer whose control thread says that of any sessions."""
    loop = RouterLoop(Stats(), endpoint=endpoint, epoch=7, namespaces=BUILT_IN, sessions_kept=True, **BOUNDS)
    stop = threading.Event()

    def control() -> None:
        while not stop.wait(0.001):
            for note in loop.take():
                if note[0] == notes.SESSIONS:
                    assert note[7] == b"a" * 16 + b"b" * 16
                    loop.put(notes.SESSIONS_READ, request=note[3], first=code, text=answer)

    threads = [threading.Thread(target=loop.run, daemon=True), threading.Thread(target=control)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        threads[1].join(DEADLINE_S)
        loop.stop()
        threads[0].join(DEADLINE_S)


def test_what_is_stored_of_sessions_is_told(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            assert await client.sessions([b"a" * 16, b"b" * 16], deadline_s=DEADLINE_S) == [
                StoredSession(3, {"group:a": (7, 1), "group:b": (6, 2)}),
                None,
            ]

    with storing(endpoint, msgpack.packb([[3, [["group:a", 7, 1], ["group:b", 6, 2]]], None])):
        run(body())


def test_a_store_that_is_away_is_no_answer_and_without_one_there_is_nothing(endpoint: str) -> None:
    async def body(*, away: bool) -> None:
        async with linked_client(endpoint) as client:
            if not away:
                assert await client.sessions([b"a" * 16], deadline_s=DEADLINE_S) is None
                return
            with pytest.raises(Unavailable, match="its store"):
                await client.sessions([b"a" * 16, b"b" * 16], deadline_s=DEADLINE_S)

    with storing(endpoint, b"", Code.UNAVAILABLE):
        run(body(away=True))
    with router(endpoint, 7):
        run(body(away=False))


def test_what_came_after_positions_is_told_with_its_outcome_and_part_by_part(endpoint: str) -> None:
    async def body() -> None:
        async with linked_client(endpoint) as client:
            for _ in range(4):
                await publish(client, "group:a")
            asked = [("group:a", (7, 1)), ("group:a", (7, 4)), ("group:a", (9, 9)), ("group:b", (0, 0))]
            outcomes = await client.missed(asked, bytes_max=0, deadline_s=DEADLINE_S)
            assert [one.outcome for one in outcomes] == ["replayed", "live", "reset", "live"]
            assert [(one.position, one.messages) for one in outcomes[:3]] == [((7, 4), [])] * 3
            assert outcomes[0].last == (7, 1)
            (whole,) = await client.missed(asked[:1], bytes_max=65_536, deadline_s=DEADLINE_S)
            assert ([offset for offset, _ in whole.messages], whole.gap, whole.last) == ([2, 3, 4], None, (7, 4))
            assert msgpack.unpackb(whole.messages[0][1])[:3] == [9, "group:a", 2]
            (part,) = await client.missed(asked[:1], bytes_max=1, deadline_s=DEADLINE_S)
            assert ([offset for offset, _ in part.messages], part.last) == ([2], (7, 2))

    with router(endpoint, 7):
        run(body())
