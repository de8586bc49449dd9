"""The load client in the protocols of peers: it counts what was delivered against what was published."""

import socket
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from loadtest.measure import Server, Swarm

from .peers import PEERS, Nats, running

DEADLINE_S = 30.0
MEMBERS, MESSAGES = 5, 40
WRONG = ("lost", "repeated", "out_of_order", "corrupt", "refused", "disconnected")
LOAD = ("--members", str(MEMBERS), "--messages", str(MESSAGES), "--warmup", "0", "--drain", "0.3")


def run(protocol: str, port: int, *options: str) -> dict[str, Any]:
    text = ("--text",) if protocol == "socketio" else ()
    with Swarm(Server(protocol, [], port, protocol=protocol), *options, *text) as swarm:
        return swarm.result(DEADLINE_S)


@pytest.mark.parametrize("protocol", PEERS)
@pytest.mark.parametrize(
    "load", [("fan", "--rate", "1000"), ("max", "--publishers", "2"), ("fan", "--payload", "5000")]
)
def test_every_message_is_counted_once_per_member(protocol: str, load: tuple[str, ...]) -> None:
    with running(PEERS[protocol]()) as port:
        result = run(protocol, port, *load, *LOAD, *(() if "--rate" in load else ("--rate", "500")))
    assert {name: result[name] for name in WRONG} == dict.fromkeys(WRONG, 0), result
    assert (result["published"], result["delivered"]) == (MESSAGES, MESSAGES * MEMBERS)
    assert result["latency_us"]["count"] == MESSAGES * MEMBERS
    # Where publishing is not answered, the publisher's own copy keeps the closed loop going.
    assert result["replies"] == (MESSAGES if protocol == "socketio" else 0)
    assert (result["drained"], result["exit_code"]) == (True, 0)


@pytest.mark.parametrize("protocol", PEERS)
@pytest.mark.parametrize(("fault", "at", "counted"), [("drop", 20, {"lost": 1}), ("repeat", MESSAGES, {"repeated": 1})])
def test_a_single_fault_is_found(protocol: str, fault: str, at: int, counted: dict[str, int]) -> None:
    with running(PEERS[protocol](fault, at)) as port:
        result = run(protocol, port, "fan", "--rate", "1000", *LOAD)
    assert {name: result[name] for name in WRONG} == {**dict.fromkeys(WRONG, 0), **counted}
    assert result["exit_code"] == 3


@pytest.mark.parametrize("protocol", PEERS)
def test_pairs_speak_to_each_other_without_a_copy_for_themselves(protocol: str) -> None:
    peer = PEERS[protocol]()
    with running(peer) as port:
        result = run(protocol, port, "pairs", "--groups", "2", "--rate", "500", *LOAD[2:])
    assert (result["published"], result["delivered"], result["exit_code"]) == (MESSAGES, MESSAGES, 0), result
    assert peer.published == {f"user:swarm-{i}": MESSAGES // 4 for i in range(4)}


def test_a_server_that_refuses_is_told_with_its_words() -> None:
    class Refusing(Nats):
        async def converse(self, connection: ServerConnection) -> None:
            await connection.send(b"-ERR 'Authorization Violation'\r\n")
            await connection.wait_closed()

    with running(Refusing()) as port:
        result = run("nats", port, "fan", *LOAD)
    assert "-ERR 'Authorization Violation'" in result["errors"]
    assert result["exit_code"] == 1


def test_options_that_do_not_fit_are_refused_before_connecting() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        server = Server("nobody", [], held.getsockname()[1], protocol="socketio")
        with Swarm(server, "fan", *LOAD) as swarm:
            assert swarm.process.wait(DEADLINE_S) == 2
            assert swarm.process.stderr is not None
            assert "--protocol socketio needs --text" in swarm.process.stderr.read()
