"""How connections end: FIN and FIN_ACK, who closes first, half-closes, deadlines, heartbeats, slow readers."""

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from core import notes, records
from core.codes import Code
from tests.core import wire
from tests.core.edge_harness import (
    EPOCH,
    ERROR,
    FIN,
    FIN_ACK,
    MESSAGE,
    PUBLISH,
    REPLY,
    Client,
    Edge,
    frame_of,
    wait_for,
)
from tests.core.ws_client import BINARY, CONTINUATION, WsClient, masked
from tests.core.ws_client import PING as WS_PING

PING, PONG, HISTORY = 4, 5, 11
TICK_S = 0.1
SLACK_S = 2.0  # what a busy machine may add to a deadline
TCP_USER_TIMEOUT, TIME_WAIT, LISTEN = 18, "06", "0A"
KINDS = pytest.mark.parametrize("kind", [Client, WsClient])


def time_waits(edge: Edge) -> set[tuple[str, str]]:
    """Address pairs at the gateway's ports that rest, because we closed first."""
    ports, found = {edge.port, edge.ws_port}, set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if int(local.rpartition(":")[2], 16) in ports and state == TIME_WAIT:
            found.add((local, remote))
    return found


def states(edge: Edge) -> set[str]:
    """The states of the sockets at the gateway's TCP port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {state for _, local, _, state, *_ in lines if int(local.rpartition(":")[2], 16) == edge.port}


@KINDS
def test_the_clients_fin_is_acknowledged_and_its_session_given_up(edge: Edge, kind: type[Client]) -> None:
    alice = edge.open("alice", kind)
    edge.join(alice, "group:a")
    alice.send([FIN, 0, "bye", {}])
    assert alice.frame() == [FIN_ACK]
    assert {edge.router.take()["kind"] for _ in range(3)} == {records.CLOSE, records.UNSUBSCRIBE}
    alice.close()
    edge.wait_empty()
    assert edge.counter("closed_bye") == 1


@KINDS
def test_nothing_follows_our_fin_and_fin_ack_ends_it(edge: Edge, kind: type[Client]) -> None:
    alice, bob = edge.open("alice", kind), edge.open("bob")
    handle = edge.join(alice, "group:a")
    edge.join_known(bob, "group:a")
    edge.put(notes.FIN, alice.conn, first=Code.KICKED, text=b"enough")
    assert alice.frame() == [FIN, Code.KICKED, "enough", {"class": "stop"}]
    edge.router.send(wire.message(handle, EPOCH, 1, frame_of("group:a", 1, "x")))
    assert bob.frame()[0] == MESSAGE
    alice.send([PUBLISH, 7, "group:a", "late"], [FIN_ACK])
    if isinstance(alice, WsClient):
        assert alice.frame() is None
        assert alice.status == 4000 + Code.KICKED
    alice.close()
    wait_for(lambda: edge.counter("closed_kicked") == 1, "the reason is counted")
    assert edge.counter("publishes") == 0


@KINDS
def test_what_follows_the_clients_fin_is_passed_over(edge: Edge, kind: type[Client]) -> None:
    alice = edge.open("alice", kind)
    edge.join(alice, "group:a")
    alice.send([FIN, 0, "bye", {}], [PUBLISH, 7, "group:a", "late"], [PING, 1, 2])
    alice.send([PUBLISH, 8, "group:a", "later"], [FIN, 0, "bye", {}])
    assert alice.frame() == [FIN_ACK]
    alice.shut()
    assert alice.frame() is None
    edge.wait_empty()
    assert edge.counter("publishes") == 0
    assert edge.counter("closed_bye") == 1


@KINDS
def test_fins_that_cross_acknowledge_each_other(edge: Edge, kind: type[Client]) -> None:
    alice = edge.open("alice", kind)
    edge.put(notes.FIN, alice.conn, first=Code.DRAINING, text=b"")
    wait_for(lambda: edge.counter("fins_sent") == 1, "our FIN is out before the client's is read")
    alice.send([FIN, 0, "bye", {}])
    assert alice.frame()[:2] == [FIN, Code.DRAINING]
    assert alice.frame() == [FIN_ACK]
    alice.shut()
    assert alice.ended()
    edge.wait_empty()
    assert edge.counter("closed_draining") == 1


@KINDS
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_may_be_gone_right_after_its_fin(edge: Edge, kind: type[Client], reset: bool) -> None:
    for number in range(10):
        alice = edge.open(f"user{number}", kind)
        alice.send([FIN, 0, "bye", {}])
        (alice.reset if reset else alice.close)()
    edge.wait_empty()
    assert edge.counter("closed_bye") == 10


def test_a_close_frame_that_crosses_our_fin_ends_it(edge: Edge) -> None:
    alice = edge.open("alice", WsClient)
    assert isinstance(alice, WsClient)
    edge.put(notes.FIN, alice.conn, first=Code.DRAINING, text=b"")
    wait_for(lambda: edge.counter("fins_sent") == 1, "our FIN is out before the close frame is read")
    alice.send_close(1001)
    assert alice.frame()[:2] == [FIN, Code.DRAINING]
    assert alice.frame() is None
    assert alice.status == 1001
    assert alice.ended()
    alice.close()
    edge.wait_empty()
    assert edge.counter("closed_draining") == 1


@KINDS
@pytest.mark.parametrize("ours", [False, True])
def test_whoever_was_told_closes_first_so_that_we_keep_no_time_wait(edge: Edge, kind: type[Client], ours: bool) -> None:
    before = time_waits(edge)  # of whoever had the port before us
    for number in range(20):
        alice = edge.open(f"user{number}", kind)
        if ours:
            edge.put(notes.FIN, alice.conn, first=Code.DRAINING, text=b"")
            assert alice.frame()[0] == FIN
            alice.send([FIN_ACK])
        else:
            alice.send([FIN, 0, "bye", {}])
            assert alice.frame() == [FIN_ACK]
        if kind is WsClient:
            assert alice.frame() is None
        alice.shut()
        assert alice.ended()
        alice.close()
    edge.wait_empty()
    assert time_waits(edge) <= before


@KINDS
def test_a_client_that_does_not_close_is_waited_for_and_then_closed(
    edges: Callable[..., Edge], kind: type[Client]
) -> None:
    edge = edges(fin_timeout_ms=400)
    alice = edge.open("alice", kind)
    alice.send([FIN, 0, "bye", {}])
    began = time.monotonic()
    assert alice.frame() == [FIN_ACK]
    assert alice.ended()
    assert 0.4 <= time.monotonic() - began < 0.4 + TICK_S + SLACK_S
    edge.wait_empty()


def test_after_both_close_frames_the_wait_is_as_long_as_a_browsers(edges: Callable[..., Edge]) -> None:
    edge = edges(fin_timeout_ms=60_000)
    alice = edge.open("alice", WsClient)
    assert isinstance(alice, WsClient)
    alice.send([FIN, 0, "bye", {}])
    assert alice.frame() == [FIN_ACK]
    assert alice.frame() is None
    alice.send_close(4000)
    began = time.monotonic()
    assert alice.ended()
    assert 2.4 < time.monotonic() - began < 2.6 + SLACK_S


@KINDS
def test_a_client_that_sends_no_more_gets_its_answers_and_is_closed(edge: Edge, kind: type[Client]) -> None:
    before = time_waits(edge)
    alice = edge.open("alice", kind)
    edge.join(alice, "group:a")
    alice.send([PUBLISH, 7, "group:a", "last words"], [HISTORY, 8, "group:a"], [PUBLISH, 9, "nowhere:a", "x"])
    alice.shut()
    published = edge.router.expect(records.PUBLISH)
    assert alice.frame()[:3] == [ERROR, 9, Code.NO_SUCH_CHANNEL]
    assert edge.note(notes.FRAME)[2] == alice.conn
    assert edge.note(notes.SETTLE)[2] == alice.conn
    edge.router.send(wire.published(published["seq"], EPOCH, 1))
    assert alice.frame() == [REPLY, 7, {"epoch": EPOCH, "offset": 1}]
    edge.put(notes.HISTORY, alice.conn, 8, text=b"group:a", first=10)
    edge.put(notes.SETTLED, alice.conn)
    history = edge.router.expect(records.HISTORY)
    assert edge.live("connection") == 1
    edge.router.send(wire.reply(history["seq"], msgpack.packb({"messages": []})))
    assert alice.frame()[:2] == [REPLY, 8]
    assert alice.frame() is None
    assert alice.ended()
    edge.wait_empty()
    assert edge.counter("closed_bye") == 1
    assert time_waits(edge) <= before


@KINDS
def test_answers_that_never_come_do_not_hold_a_client_that_sends_no_more(
    edges: Callable[..., Edge], kind: type[Client]
) -> None:
    edge = edges(request_timeout_ms=300)
    alice = edge.open("alice", kind)
    edge.join(alice, "group:a")
    alice.send([PUBLISH, 7, "group:a", "x"], [HISTORY, 8, "group:a"])
    alice.shut()
    began = time.monotonic()
    assert alice.frame()[:3] == [ERROR, 7, Code.UNAVAILABLE]
    assert alice.ended()  # SETTLE was never answered
    assert time.monotonic() - began < 0.3 + 4 * TICK_S + SLACK_S
    edge.wait_empty()


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_client_that_is_gone_without_a_word_is_let_go_at_once(edge: Edge, end: str) -> None:
    idle, busy = edge.open("idle"), edge.open("busy")
    edge.join(busy, "group:a")
    busy.send([PUBLISH, 1, "group:a", "x"])
    published = edge.router.expect(records.PUBLISH)
    for client in (idle, busy):
        getattr(client, end)()
    wait_for(lambda: edge.live("connection") == (end == "close"), "who asked for nothing is gone at once")
    edge.router.send(wire.published(published["seq"], EPOCH, 1))  # resets who closed whole
    edge.wait_empty()
    assert edge.counter("closed_bye") == 2


def test_the_kernel_gives_unacknowledged_bytes_up_when_the_heartbeat_would(edges: Callable[..., Edge]) -> None:
    edge = edges(ping_ms=7000, misses=2)
    for kind in (Client, WsClient):
        client = edge.client(kind)
        wait_for(lambda: edge.live("connection") == len(edge.clients), "it is accepted")
        (ours,) = (fd for fd in sockets_here() if peer_of(fd) == client.socket.getsockname())
        with socket.socket(fileno=ours) as accepted:
            try:
                assert accepted.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == 14_000
            finally:
                accepted.detach()


def sockets_here() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]


def peer_of(fd: int) -> object:
    """The address at the other end of one of this process's descriptors; None if there is none."""
    try:
        one = socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        return one.getpeername()
    except OSError:
        return None
    finally:
        one.detach()


def test_without_fin_ack_the_deadline_ends_it(edges: Callable[..., Edge]) -> None:
    edge = edges(fin_timeout_ms=100)
    alice = edge.open("alice")
    edge.put(notes.FIN, alice.conn, first=Code.KICKED, text=b"")
    assert alice.frame()[0] == FIN
    edge.wait_empty()
    assert alice.frame() is None


@pytest.mark.parametrize("said", [b"", b"\0", b"\0\0\0\x05ab"])
def test_without_hello_the_deadline_ends_it(edges: Callable[..., Edge], said: bytes) -> None:
    edge = edges(hello_timeout_ms=100, fin_timeout_ms=100)
    silent = edge.client()
    silent.socket.sendall(said)
    code, _, options = silent.frame()[1:]
    assert (code, options["class"]) == (Code.HELLO_TIMEOUT, "fresh")
    edge.wait_empty()
    assert edge.counter("hello_timeouts") == 1


@KINDS
def test_a_frame_that_trickles_must_be_complete_in_time(edges: Callable[..., Edge], kind: type[Client]) -> None:
    edge = edges(frame_timeout_ms=500, ping_ms=30_000)
    alice = edge.open("alice", kind)
    began = time.monotonic()
    for byte in alice.pack([PUBLISH, 7, "group:a", "x" * 1000]):
        alice.socket.sendall(bytes([byte]))
        if edge.counter("frame_timeouts"):
            break
        time.sleep(0.005)  # what is tested is a sender that never pauses for long
    assert 0.5 <= time.monotonic() - began < 0.5 + TICK_S + SLACK_S
    assert alice.frame()[:2] == [FIN, Code.HEARTBEAT_LOST]
    alice.close()
    edge.wait_empty()


def test_a_fragmented_message_is_one_frame_whatever_comes_between(edges: Callable[..., Edge]) -> None:
    edge = edges(frame_timeout_ms=500, ping_ms=30_000)
    alice = edge.open("alice", WsClient)
    began = time.monotonic()
    alice.socket.sendall(masked(BINARY, b"\x91", last=False))
    while not edge.counter("frame_timeouts"):
        alice.socket.sendall(masked(WS_PING, b"alive") + masked(CONTINUATION, b"\xa0", last=False))
        time.sleep(0.01)
        assert time.monotonic() - began < 5
    assert 0.5 <= time.monotonic() - began < 0.5 + TICK_S + SLACK_S
    assert alice.frame()[:2] == [FIN, Code.HEARTBEAT_LOST]


@KINDS
def test_frames_that_are_each_in_time_are_no_trickle(edges: Callable[..., Edge], kind: type[Client]) -> None:
    edge = edges(frame_timeout_ms=1500, ping_ms=30_000)
    alice = edge.open("alice", kind)
    began, number = time.monotonic(), 0
    stream = alice.pack([PING, 0, 0])
    while time.monotonic() - began < 2.5:  # every read ends inside a frame, always another one
        number += 1
        following = alice.pack([PING, number, 0])
        alice.socket.sendall(stream + following[:3])
        stream = following[3:]
        assert alice.frame() == [PONG, number - 1, 0]
    assert edge.counter("frame_timeouts") == 0


@pytest.mark.parametrize("stage", ["proxy", "tls", "upgrade", "hello"])
def test_every_stage_before_hello_has_the_same_deadline(edges: Callable[..., Edge], stage: str, tmp_path: Path) -> None:
    edge = edges(hello_timeout_ms=300, fin_timeout_ms=100, proxy_protocol=stage == "proxy", **tls_of(stage, tmp_path))
    port = edge.ws_port if stage == "upgrade" else edge.port
    said = {"proxy": b"PROXY TCP4 192.0.2.1 ", "tls": b"\x16\x03\x01\x02\x00\x01", "upgrade": b"GET /ws HTTP/1.1\r\n"}
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 10) as slow:
        slow.sendall(said.get(stage, b"\0\0\0\x40\x93"))
        while True:  # trickles for as long as it is let
            try:
                slow.sendall(b"a")
            except OSError:
                break
            if edge.counter("hello_timeouts"):
                break
            time.sleep(0.02)
    assert 0.3 <= time.monotonic() - began < 0.3 + TICK_S + SLACK_S
    edge.wait_empty()
    assert edge.counter("closed_hello_timeout") == 1


def tls_of(stage: str, folder: Path) -> dict[str, str]:
    """Options that make TLS the first stage."""
    if stage != "tls":
        return {}
    files = {"tls_certificate": str(folder / "cert.pem"), "tls_key": str(folder / "key.pem")}
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", files["tls_key"]]
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-subj", "/CN=localhost", "-out", files["tls_certificate"]],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return files


def test_silence_is_asked_about_and_ends_the_connection(edges: Callable[..., Edge]) -> None:
    edge = edges(ping_ms=200, misses=2, fin_timeout_ms=100)
    alice = edge.open("alice")
    kind, first, _ = alice.frame()
    assert (kind, first) == (PING, 1)
    while (frame := alice.frame())[0] == PING:
        first += 1
        assert frame[1] == first
    assert frame[:2] == [FIN, Code.HEARTBEAT_LOST]
    assert alice.frame() is None
    edge.wait_empty()
    assert edge.counter("closed_heartbeat_lost") == edge.counter("heartbeats_lost") == 1


@pytest.mark.parametrize("said", ["half a frame", "websocket ping", "pong that nobody asked for"])
def test_anything_received_counts_as_life_and_silence_is_measured_from_it(
    edges: Callable[..., Edge], said: str
) -> None:
    edge = edges(ping_ms=500, misses=3, fin_timeout_ms=100)
    alice = edge.open("alice", Client if said == "half a frame" else WsClient)
    for round_number in range(8):
        time.sleep(0.25)  # silence is what is tested
        if said == "half a frame":
            alice.socket.sendall(b"\0\0\0\x20"[round_number : round_number + 1] or b"\x93")
        else:
            alice.socket.sendall(masked(WS_PING if said == "websocket ping" else 10, b"x"))
        last = time.monotonic()
    assert edge.counter("heartbeats_lost") == 0
    wait_for(lambda: edge.counter("heartbeats_lost"), "silence ends it")
    # At ping x misses at the earliest, and a tick of the wheel later at the latest.
    assert 1.5 <= time.monotonic() - last < 1.5 + TICK_S + SLACK_S


def test_those_who_heard_the_same_message_do_not_ping_in_the_same_tick(edges: Callable[..., Edge]) -> None:
    found = []
    for _ in range(3):  # a busy machine only adds to it: one of three that is as it should be is enough
        first, second = spread_of_pings(edges(ping_ms=2000, misses=3))
        assert first > 0.7
        assert second > 0.1
        found.append((first, second))
        if first <= 1.1 and second <= 0.4:  # the first: half the interval; then an eighth
            return
    pytest.fail(f"{found}")


def spread_of_pings(edge: Edge) -> tuple[float, float]:
    """Seconds between the first and the last PING of many clients after one message, and after the next one."""
    clients = [edge.open(f"user{number}") for number in range(40)]
    handle = edge.join(clients[0], "group:a")
    for client in clients[1:]:
        edge.join_known(client, "group:a")
    spread = []
    for offset in (1, 2):
        edge.router.send(wire.message(handle, EPOCH, offset, frame_of("group:a", offset, "x")))
        assert [client.frame()[0] for client in clients] == [MESSAGE] * len(clients)
        began, moments = time.monotonic(), []
        for client in clients:
            kind, seq, sent_ms = client.frame()
            assert (kind, seq) == (PING, offset)
            moments.append(sent_ms)
            client.send([PONG, seq, sent_ms])
        assert time.monotonic() - began < 2.0 + TICK_S + SLACK_S
        spread.append((max(moments) - min(moments)) / 1000)
        assert len({moment // 100 for moment in moments}) >= 3
    return spread[0], spread[1]


def test_an_answered_heartbeat_keeps_the_connection(edges: Callable[..., Edge]) -> None:
    edge = edges(ping_ms=400, misses=3)
    alice = edge.open("alice")
    for seq in range(1, 6):
        kind, number, time = alice.frame()
        assert (kind, number) == (PING, seq)
        alice.send([PONG, number, time])
    assert edge.counter("heartbeats_lost") == 0
    alice.send([PING, 77, 88])
    while (frame := alice.frame())[0] == PING:
        continue
    assert frame == [PONG, 77, 88]


def test_a_slow_reader_is_told_and_its_memory_given_back(edges: Callable[..., Edge]) -> None:
    edge = edges(queue_bytes_max=100_000, fin_timeout_ms=100)
    slow, quick = edge.open("slow", receive_bytes=4096), edge.open("quick")
    handle = edge.join(slow, "group:a")
    edge.join_known(quick, "group:a")
    offset = 0
    while edge.counter("slow_consumers") == 0:
        offset += 1
        assert offset < 2000, "the queue has no bound"
        edge.router.send(wire.message(handle, EPOCH, offset, frame_of("group:a", offset, "x" * 10_000)))
        assert quick.frame()[2] == offset
        # Two batches of the bound: what waits, and the arena of the turn.
        assert edge.stats.read()["gauges"]["queued_bytes"] <= 104_096
    heard = []
    while (frame := slow.frame())[0] == MESSAGE:
        heard.append(frame[2])
    assert heard == list(range(1, len(heard) + 1))
    assert frame[:2] == [FIN, Code.SLOW_CONSUMER]
    assert frame[3]["class"] == "resume"
    slow.close()
    wait_for(lambda: edge.live("connection") == 1, "it is gone")
    wait_for(lambda: edge.live("segment") == 0 and edge.live("buffer") <= 1, "its memory is given back")
    assert edge.counter("closed_slow_consumer") == 1


def test_a_reader_that_takes_nothing_is_cut_off_after_the_write_deadline(edges: Callable[..., Edge]) -> None:
    edge = edges(write_timeout_ms=200, queue_bytes_max=1 << 24)
    stuck = edge.open("stuck", receive_bytes=4096)
    handle = edge.join(stuck, "group:a")
    body = frame_of("group:a", 1, "x" * 6_000_000)
    edge.router.send(wire.message(handle, EPOCH, 1, body))
    wait_for(lambda: edge.counter("closed_slow_consumer") == 1, "it is cut off")
    edge.wait_empty()


def test_of_a_reader_that_takes_not_even_fin_the_kernel_keeps_nothing(edges: Callable[..., Edge]) -> None:
    edge = edges(fin_timeout_ms=200, queue_bytes_max=1 << 24)
    stuck = edge.open("stuck", receive_bytes=4096)
    handle = edge.join(stuck, "group:a")
    edge.router.send(wire.message(handle, EPOCH, 1, frame_of("group:a", 1, "x" * 6_000_000)))
    wait_for(lambda: edge.stats.read()["gauges"]["queued_bytes"] > 0, "it takes nothing more")
    edge.put(notes.FIN, stuck.conn, first=int(Code.KICKED), text=b"so long")
    wait_for(lambda: edge.counter("closed_kicked") == 1, "its time is over")
    edge.wait_empty()
    assert states(edge) <= {LISTEN}


@pytest.mark.parametrize("reason", ["", "x" * 2000, "grüße"])
def test_a_fin_fits_whatever_the_reason(edge: Edge, reason: str) -> None:
    alice = edge.open("alice")
    edge.put(notes.FIN, alice.conn, first=Code.DRAINING, second=1234, text=reason.encode())
    kind, code, text, options = alice.frame()
    assert (kind, code, options) == (FIN, Code.DRAINING, {"class": "resume", "after": 1234})
    assert text == reason[:512]
    assert msgpack.packb(text)
