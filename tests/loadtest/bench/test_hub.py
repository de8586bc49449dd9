"""What the peers in Python speak: the floor's subset of the protocol, each group with its own positions."""

import sys
from typing import Any

import msgpack
import pytest

from loadtest.bench.peers.hub import Hub
from loadtest.bench.servers import on_port
from loadtest.measure import Swarm

DEADLINE_S = 30.0


def ask(hub: Hub[str], member: str, frame: list[Any]) -> tuple[Any, Any, list[str]]:
    """The answer, the message and its members."""
    answer, message, members = hub.act(member, msgpack.packb(frame))
    return read(answer), read(message), list(members or ())


def read(body: bytes) -> Any:
    return msgpack.unpackb(body) if body else None


def test_a_message_goes_to_the_members_of_its_group_under_the_next_offset() -> None:
    hub: Hub[str] = Hub()
    assert ask(hub, "a", [0, 1, {"v": 1}])[0][:2] == [1, 1]
    for member, channel in (("a", "group:x"), ("b", "group:x"), ("c", "group:y")):
        assert ask(hub, member, [6, 2, channel, {}])[0] == [2, 2, {"epoch": 1, "offset": 0}]
    answer, message, members = ask(hub, "a", [8, 3, "group:x", b"data", {}])
    assert answer == [2, 3, {"epoch": 1, "offset": 1}]
    assert (message[:4], members) == ([9, "group:x", 1, b"data"], ["a", "b"])
    hub.gone("a")
    assert ask(hub, "c", [8, 4, "group:x", b"", {}])[2] == ["b"]
    assert ask(hub, "c", [8, 5, "group:y", b"", {}])[0] == [2, 5, {"epoch": 1, "offset": 1}]


@pytest.mark.parametrize(
    ("frame", "answer"), [([4, 7, 99], [5, 7, 99]), ([14, 0, "bye", {}], [15]), ([10, {"group:x": 3}], None)]
)
def test_heartbeats_and_the_end_are_answered(frame: list[Any], answer: list[Any] | None) -> None:
    assert ask(Hub(), "a", frame) == (answer, None, [])


def test_the_program_on_websockets_agrees_with_the_load_client_to_the_message() -> None:
    # The one peer whose library is in this environment too.
    load = ("--groups", "3", "--members", "4", "--rate", "600", "--messages", "60", "--warmup", "0")
    make = on_port("websockets", sys.executable, "-m", "loadtest.bench.peers.websockets_server")
    with make() as server, Swarm(server, "rooms", *load) as swarm:
        result = swarm.result(DEADLINE_S)
    assert (result["published"], result["delivered"], result["lost"], result["exit_code"]) == (60, 240, 0, 0), result
