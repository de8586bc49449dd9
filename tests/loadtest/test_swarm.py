"""The load client: it agrees with the floor to the message, and finds each kind of fault that the floor makes."""

import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from loadtest.measure import Server, Swarm

from .conftest import StartFloor
from .hub import Hub, running

DEADLINE_S = 30.0
MEMBERS, MESSAGES = 50, 200
LOAD = ("--members", str(MEMBERS), "--messages", str(MESSAGES), "--warmup", "0", "--drain", "0.3")


def run(server: Server, *options: str) -> dict[str, Any]:
    with Swarm(server, *options) as swarm:
        assert swarm.expect("joined", DEADLINE_S).split()[1].isdigit()
        for word in ("start", "drained"):
            swarm.expect(word, DEADLINE_S)
        return swarm.result(DEADLINE_S)


@pytest.mark.parametrize("mode", ["--per-delivery", "--coalesce"])
@pytest.mark.parametrize("load", [("fan", "--rate", "2000"), ("max", "--publishers", "4", "--text")])
def test_every_message_is_counted_once_per_member(start_floor: StartFloor, mode: str, load: tuple[str, ...]) -> None:
    result = run(start_floor(mode), *load, *LOAD)
    assert result["published"] == result["replies"] == MESSAGES
    assert result["delivered"] == result["window_delivered"] == MESSAGES * MEMBERS
    assert result["latency_us"]["count"] == MESSAGES * MEMBERS
    assert 0 < result["latency_us"]["p50"] <= result["latency_us"]["p99"] <= result["latency_us"]["max"]
    wrong = ("lost", "repeated", "out_of_order", "corrupt", "disconnected", "without_fin_ack", "exit_code")
    assert {name: result[name] for name in wrong} == dict.fromkeys(wrong, 0)


def test_a_client_that_gathers_sleeps_of_its_own_accord_and_misses_nothing(start_floor: StartFloor) -> None:
    load = ("--publishers", "1", "--under-way", "1", "--gather", "50", *LOAD[:2], "--messages", "20", *LOAD[4:])
    result = run(start_floor("--per-delivery"), "max", *load)
    assert (result["delivered"], result["lost"], result["exit_code"]) == (20 * MEMBERS, 0, 0)
    # 20 messages one after the other take a few milliseconds: all else is this client's waiting until it looks again.
    assert result["latency_us"]["max"] >= 50_000
    assert result["sleeps"] > 0


@pytest.mark.parametrize("mode", ["--per-delivery", "--coalesce"])
@pytest.mark.parametrize(
    ("fault", "at", "counted", "delivered"),
    [
        ("drop", 100, {"lost": 1}, -1),
        ("drop", MESSAGES, {"lost": 1}, -1),  # the last one leaves no gap behind: the REPLY tells of it
        ("repeat", 100, {"repeated": 1}, 0),
        ("swap", 100, {"out_of_order": 1}, 0),
    ],
)
def test_a_single_fault_is_found(
    start_floor: StartFloor, mode: str, fault: str, at: int, counted: dict[str, int], delivered: int
) -> None:
    server = start_floor(mode, "--inject", fault, "--inject-at", str(at))
    result = run(server, "fan", "--rate", "5000", *LOAD)
    names = ("lost", "repeated", "out_of_order", "corrupt")
    assert {name: result[name] for name in names} == {**dict.fromkeys(names, 0), **counted}
    assert result["delivered"] == MESSAGES * MEMBERS + delivered
    assert result["exit_code"] == 3


@pytest.mark.parametrize("mode", ["--per-delivery", "--coalesce"])
def test_the_floor_has_many_groups(start_floor: StartFloor, mode: str) -> None:
    load = ("--groups", "5", "--members", "4", "--publishers", "2", "--rate", "2000", *LOAD[2:])
    result = run(start_floor(mode), "rooms", *load)
    assert (result["published"], result["delivered"], result["exit_code"]) == (MESSAGES, MESSAGES * 4, 0), result


@pytest.mark.parametrize("mode", ["--per-delivery", "--coalesce"])
def test_pairs_speak_to_each_other(start_floor: StartFloor, mode: str) -> None:
    result = run(start_floor(mode), "pairs", "--groups", "10", "--rate", "2000", *LOAD[2:])
    assert result["connections"] == 20
    assert result["published"] == result["replies"] == result["delivered"] == MESSAGES
    assert (result["lost"], result["exit_code"]) == (0, 0)


def test_members_that_read_nothing_are_left_out_of_the_count(start_floor: StartFloor) -> None:
    # 200 messages of 50,000 bytes: more than any kernel takes for a reader that does not read.
    load = ("--rate", "200", "--slow", "2", "--payload", "50000", *LOAD)
    result = run(start_floor("--per-delivery"), "fan", *load)
    assert result["delivered"] == result["window_delivered"] == MESSAGES * (MEMBERS - 2)
    assert (result["lost"], result["disconnected"], result["exit_code"]) == (0, 0, 0)


def test_a_storm_counts_from_the_intended_times_and_ends_by_itself(start_floor: StartFloor) -> None:
    result = run(start_floor("--coalesce"), "storm", "--members", "300", "--connect-rate", "2000")
    assert (result["joined"], result["failed"], result["exit_code"]) == (300, 0, 0)
    assert result["connect_us"]["count"] == 300
    assert 0.149 <= result["connect_seconds"] < DEADLINE_S  # 300 connections at 2,000 a second
    assert 0 < result["connect_us"]["p50"] <= result["connect_us"]["p95"] <= result["connect_us"]["max"]


def test_a_storm_goes_on_when_connections_fail() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with Swarm(Server("nobody", [], held.getsockname()[1]), "storm", "--members", "3") as swarm:
            assert swarm.expect("joined", DEADLINE_S) == "joined 0"
            result = swarm.result(DEADLINE_S)
    assert (result["failed"], result["exit_code"]) == (3, 1)


def test_a_refused_connection_is_an_error_with_its_reason() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: nobody else can take the port
        server = Server("nobody", [], held.getsockname()[1])
        with Swarm(server, "idle", "--members", "3") as swarm:
            result = swarm.result(DEADLINE_S)
    assert result["exit_code"] == 1
    assert result["errors"] == {"connect: Connection refused": 1}


# ---- against a server written in Python: the TCP transport, and what a floor never says ----

Answer = Callable[[list[Any]], list[list[Any]]]


def serve_one(listener: socket.socket, answer: Answer, heard: list[list[Any]]) -> None:
    """Answers one TCP client frame by frame, one byte a send, until it goes or acknowledges a FIN."""
    client, _ = listener.accept()
    client.settimeout(DEADLINE_S)
    with client, client.makefile("rb") as stream:
        while head := stream.read(4):
            frame = msgpack.unpackb(stream.read(struct.unpack(">I", head)[0]))
            heard.append(frame)
            if frame == [15]:
                return
            for reply in answer(frame):
                body = msgpack.packb(reply)
                for byte in struct.pack(">I", len(body)) + body:
                    client.sendall(bytes([byte]))


def converse(answer: Answer, *options: str) -> tuple[dict[str, Any], list[list[Any]]]:
    heard: list[list[Any]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        thread = threading.Thread(target=serve_one, args=(listener, answer, heard), daemon=True)
        thread.start()
        with Swarm(Server("python", [], listener.getsockname()[1]), *options, "--tcp", "--members", "1") as swarm:
            result = swarm.result(DEADLINE_S)
        thread.join(DEADLINE_S)
    return result, heard


def polite(frame: list[Any]) -> list[list[Any]]:
    """What a server answers; the offset starts at 41, and a PING comes along with the answer to JOIN."""
    kind = frame[0]
    if kind == 0:
        return [[1, frame[1], {"session": "s", "channels": {"user:swarm-7": [1, 0, "live"]}, "ping": 30}]]
    if kind == 6:
        return [[2, frame[1], {"epoch": 3, "offset": 41, "outcome": "live"}], [4, 9, 1234567890123]]
    if kind == 8:
        options = {"from": "swarm-7", "time": 1, "epoch": 3}
        return [
            [9, "user:swarm-7", 1, "hello", options],
            [9, frame[2], 42, frame[3], options],
            [2, frame[1], {"offset": 42}],
        ]
    return [[15]] if kind == 14 else []


def test_over_tcp_it_speaks_the_protocol_frame_by_frame() -> None:
    result, heard = converse(polite, "fan", "--first", "7", "--messages", "1", "--warmup", "0", "--payload", "64")
    assert result["exit_code"] == 0, result
    assert (result["delivered"], result["other_messages"], result["pings_answered"]) == (1, 1, 1)
    assert heard[0] == [0, 1, {"v": 1, "user": "swarm-7"}]
    assert heard[1] == [6, 2, "group:swarm-0", {}]
    assert [5, 9, 1234567890123] in heard
    assert heard[-1] == [14, 0, "bye", {}]
    publishes = [frame for frame in heard if frame[0] == 8]
    assert [(frame[2], len(frame[3]), frame[4]) for frame in publishes] == [("group:swarm-0", 64, {})]


def test_a_fin_from_the_server_is_acknowledged_and_counted() -> None:
    def draining(frame: list[Any]) -> list[list[Any]]:
        return [[14, 1, "draining", {"class": "resume"}]] if frame[0] == 8 else polite(frame)

    result, heard = converse(draining, "fan", "--messages", "1", "--warmup", "0", "--drain", "0.2")
    assert result["errors"] == {"FIN 1 draining": 1}
    assert (result["disconnected"], result["exit_code"]) == (1, 1)
    assert heard[-1] == [15]


def test_a_payload_that_came_back_changed_is_corrupt() -> None:
    def changing(frame: list[Any]) -> list[list[Any]]:
        answers = polite(frame)
        if frame[0] == 8:
            answers[1][3] = frame[3][:-1] + b"#"
        return answers

    result, _ = converse(changing, "fan", "--messages", "1", "--warmup", "0")
    assert (result["corrupt"], result["window_delivered"], result["exit_code"]) == (1, 0, 3)


def test_rooms_share_the_messages_and_each_connection_says_who_it_is(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"token-{i}\n" for i in range(12)))
    load = ("--groups", "3", "--members", "4", "--publishers", "2", "--rate", "600", "--messages", "60")
    others = ("--warmup", "0", "--group", "room", "--token-file", str(tokens), "--first", "20000", "--tcp")
    hub = Hub()
    with running(hub) as port:
        result = run(Server("hub", [], port), "rooms", *load, *others)
    assert result["exit_code"] == 0, result
    assert (result["published"], result["delivered"]) == (60, 60 * 4)
    assert hub.offsets == {"group:room-0": 20, "group:room-1": 20, "group:room-2": 20}
    assert {frame[2]["token"] for frame in hub.heard if frame[0] == 0} == {f"token-{i}" for i in range(12)}
    assert hub.sources == {"127.0.0.2"}  # the 20,001st connection on comes from the next loopback address


def test_what_was_received_is_acknowledged() -> None:
    hub = Hub()
    options = ("--members", "2", "--rate", "50", "--seconds", "2.2", "--warmup", "0", "--ack", "--ack-interval", "0.1")
    with running(hub) as port:
        result = run(Server("hub", [], port), "fan", *options, "--tcp")
    acks = [frame[1] for frame in hub.heard if frame[0] == 10]
    assert result["acks"] == len(acks) >= 2
    assert Counter(channel for ack in acks for channel in ack) == {"group:swarm-0": len(acks)}
    assert 0 < max(ack["group:swarm-0"] for ack in acks) <= result["published"]
