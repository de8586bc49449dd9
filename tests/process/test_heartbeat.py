"""Time: heartbeats both ways, and the deadlines of handshake and FIN. Each node here has short ones."""

import asyncio
import time
from typing import Any

import pytest

from tests.conftest import Node
from tests.process.clients import (
    DEADLINE_S,
    FIN,
    FIN_ACK,
    KINDS,
    MESSAGE,
    PING,
    PONG,
    PUBLISH,
    Client,
    TcpClient,
    WebSocketClient,
    dial,
    group,
    open_session,
    run,
)

SLOW_CONSUMER, HEARTBEAT_LOST, HELLO_TIMEOUT = 3, 4, 202
PING_S, MISSES = 1.0, 2
FIN_S = 1.5
# What a busy machine may add; that nothing is a whole interval late is told by counting PINGs.
SLACK_S = 3.0


async def frames_for(client: Client, seconds: float) -> list[tuple[float, list[Any]]]:
    """What comes in this time, and when, without answering anything."""
    found: list[tuple[float, list[Any]]] = []
    began = time.monotonic()
    try:
        while (left := seconds - (time.monotonic() - began)) > 0:
            frame = await client.receive(left)
            found.append((time.monotonic() - began, frame))
    except TimeoutError:
        pass
    return found


async def pings_only_when_silent(node: Node) -> None:
    client = await open_session(node, "tcp")
    assert (client.welcome["ping"], client.welcome["misses"]) == (1, MISSES)
    client.answers_pings = False
    seqs = []
    for _ in range(3):
        began = time.monotonic()
        kind, seq, at = await client.receive(PING_S + SLACK_S)
        assert kind == PING
        assert isinstance(at, int)
        seqs.append(seq)
        if len(seqs) > 1:
            assert time.monotonic() - began > PING_S - 0.3
        await client.send(PONG, seq, at)
    assert seqs == list(range(seqs[0], seqs[0] + 3))
    await client.close()


async def not_while_it_says_something_else(node: Node) -> None:
    client, channel = await open_session(node, "text"), group()
    client.answers_pings = False
    await client.join(channel)
    before = time.monotonic()
    end = before + 2.5 * PING_S
    while time.monotonic() < end:
        # Each answer is life of the server; four a heartbeat, but for what a busy machine holds up.
        said = time.monotonic()
        await client.send(PUBLISH, 0, channel, "x")
        while (frame := await client.receive())[0] == PING:
            assert time.monotonic() - before > PING_S / 2, "it was not silent for long"
        assert frame[0] == MESSAGE
        came = await frames_for(client, PING_S / 4)
        assert {frame[0] for _, frame in came} <= {PING}
        assert not came or time.monotonic() - said > PING_S / 2, "it was not silent for long"
        before = said
    await client.close()


async def silence_ends_it(node: Node, kind: str) -> None:
    client = await open_session(node, kind)
    client.answers_pings = False
    began = time.monotonic()
    _, code, _, options = await client.fin()
    took = time.monotonic() - began
    assert PING_S * MISSES - 0.3 < took < PING_S * MISSES + SLACK_S
    assert (code, options["class"]) == (HEARTBEAT_LOST, "resume")
    assert "after" in options
    await client.ended()
    assert all(frame[0] == PING for frame in client.kept)
    assert len(client.kept) == MISSES, "it is over where a further PING would be due"


async def anything_heard_is_life(node: Node) -> None:
    client, quiet = await open_session(node, "text"), await open_session(node, "tcp")
    for each in (client, quiet):
        each.answers_pings = False
    for number in range(6):
        await client.send(10, {})
        await quiet.send(FIN_ACK)
        assert {frame[0] for _, frame in await frames_for(client, PING_S / 2)} <= {PING}, number
    assert {frame[0] for frame in await quiet.settle()} <= {PING}
    await client.close()
    await quiet.close()


@pytest.mark.slow
def test_heartbeats_go_both_ways(holdfast: Any) -> None:
    node: Node = holdfast(
        "--workers",
        "1",
        HOLDFAST_GATEWAY_PING_MS="1000",
        HOLDFAST_GATEWAY_MISSES=str(MISSES),
        HOLDFAST_GATEWAY_HELLO_TIMEOUT_MS="1500",
    )

    async def body() -> None:
        await asyncio.gather(
            pings_only_when_silent(node),
            not_while_it_says_something_else(node),
            *(silence_ends_it(node, kind) for kind in KINDS),
            anything_heard_is_life(node),
        )

    run(body())
    assert node.metric("holdfast_heartbeats_lost_total") == 3
    assert node.metric("holdfast_pings_sent_total") >= 6


def test_a_ping_is_echoed_with_its_number_and_time(node: Node) -> None:
    async def body() -> None:
        for kind in KINDS:
            client = await open_session(node, kind)
            for seq, at in ((0, 0), (1, 1_793_491_200_123), (2**64 - 1, 2**64 - 1)):
                await client.send(PING, seq, at)
                assert await client.receive() == [PONG, seq, at]
            await client.close()

    run(body())


@pytest.mark.slow
def test_whoever_says_no_hello_in_time_is_told_so_and_cut(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_GATEWAY_HELLO_TIMEOUT_MS="1500")

    async def silent(kind: str) -> None:
        began = time.monotonic()
        client = await dial(node, kind)
        if isinstance(client, WebSocketClient):
            # Nothing was said in any encoding yet, so the gateway chooses one.
            message = await asyncio.wait_for(client.socket.recv(), DEADLINE_S)
            client.encoding = "text" if isinstance(message, str) else "binary"
            assert HELLO_TIMEOUT.to_bytes(1, "big") in message if isinstance(message, bytes) else "202" in message
        else:
            _, code, _, options = await client.fin()
            assert (code, options["class"]) == (HELLO_TIMEOUT, "fresh")
            assert "after" in options
        assert 1.3 < time.monotonic() - began < 1.5 + SLACK_S
        gone = await client.ended()
        if kind != "tcp":
            assert (gone.status, gone.reason) == (4000 + HELLO_TIMEOUT, "hello_timeout")

    async def half(port: int, data: bytes) -> None:
        client = await TcpClient.dial(port)
        await client.send_bytes(data)
        await client.read_raw(1.5 + SLACK_S)

    async def body() -> None:
        await asyncio.gather(
            silent("tcp"),
            silent("text"),
            half(node.ws_port, b"GET /ws HTTP/1.1\r\nHost: x\r\n"),
            half(node.ws_port, b""),
            half(node.port, b"\x00\x00\x00\x10\x93\x00"),
        )

    run(body())
    assert node.metric("holdfast_hello_timeouts_total") == 5


@pytest.mark.slow
def test_a_fin_that_is_not_acknowledged_ends_at_its_deadline_and_fins_may_cross(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_GATEWAY_FIN_TIMEOUT_MS=str(int(FIN_S * 1000)))

    async def evicted(kind: str) -> tuple[Client, Client]:
        """A connection that was sent FIN resumed_elsewhere, and the one that took its session."""
        old = await open_session(node, kind)
        new = await dial(node, kind)
        await new.hello(session=old.session, token=old.resume_token)
        return old, new

    async def not_acknowledged(kind: str) -> None:
        old, new = await evicted(kind)
        await old.fin()
        began = time.monotonic()
        # What it still says is not acted on, nor answered.
        await old.send(PING, 1, 1)
        await old.send(6, 9, group())
        await old.ended()
        assert FIN_S - 0.5 < time.monotonic() - began < FIN_S + SLACK_S
        assert not old.kept
        await new.close()

    async def crossing(kind: str) -> None:
        old, new = await evicted(kind)
        # Sent before the gateway's FIN was read: each is the other's acknowledgement, and ours is acknowledged too.
        began = time.monotonic()
        await old.send(FIN, 0, "bye", {})
        await old.fin()
        await old.shut()
        await old.ended()
        assert [frame[0] for frame in old.kept] == [FIN_ACK]
        assert time.monotonic() - began < FIN_S
        await new.close()

    async def body() -> None:
        await asyncio.gather(*(check(kind) for check in (not_acknowledged, crossing) for kind in KINDS))

    run(body())


@pytest.mark.slow
def test_a_client_that_takes_nothing_any_more_is_a_slow_consumer(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_GATEWAY_QUEUE_BYTES_MAX="131072")

    async def body() -> None:
        channel = group()
        slow, fast = await TcpClient.dial(node.port), await open_session(node, "tcp")
        await slow.hello()
        await slow.join(channel)
        await fast.join(channel)
        slow.stop_reading()
        for number in range(2_000):
            await fast.publish(channel, f"{number}" + "x" * 20_000)
            if number % 50 == 0 and node.metric("holdfast_slow_consumers_total"):
                break
        else:
            raise AssertionError("40 MB were queued for a client that takes nothing")
        slow.start_reading()
        # The end is announced behind what was queued before it; until there the messages are whole and in order.
        _, code, _, options = await slow.fin()
        assert (code, options["class"]) == (SLOW_CONSUMER, "resume")
        await slow.acknowledge()
        assert {frame[0] for frame in slow.kept} == {MESSAGE}
        offsets = [frame[2] for frame in slow.kept]
        assert offsets == list(range(1, len(offsets) + 1))
        # Nobody else was held up or left out.
        assert len([frame for frame in await fast.settle() if frame[0] == MESSAGE]) == number + 1
        await fast.close()

    run(body())
