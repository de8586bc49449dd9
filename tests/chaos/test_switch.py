"""The switch: what is cut does not pass, in the directions that are cut, and everything else does."""

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.namespace import enter
from tests.chaos.switch import Machine, Switch, running_switch, why_not

PORT = 7_000
DEADLINE_S = 10.0


@pytest.fixture(scope="module")
def switch() -> Iterator[Switch]:
    if reason := why_not():
        pytest.skip(reason)
    with running_switch() as made:
        yield made


class Mouth:
    """A socket of a machine, which says and hears datagrams."""

    def __init__(self, machine: Machine) -> None:
        self.host = machine.host
        thread = threading.Thread(target=self._make, args=(machine,))
        thread.start()
        thread.join(DEADLINE_S)
        self.socket.settimeout(DEADLINE_S)

    def _make(self, machine: Machine) -> None:
        enter(machine.name)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((machine.host, PORT))

    def says(self, text: bytes, other: "Mouth") -> None:
        try:
            self.socket.sendto(text, (other.host, PORT))
        except PermissionError:  # what a firewall of its own drops is told to who says it
            return

    def hears(self) -> bytes:
        return self.socket.recv(100)


@pytest.fixture
def mouths(switch: Switch) -> Iterator[dict[str, Mouth]]:
    made = {name: Mouth(switch.add(name)) for name in ("a", "b", "c")}
    yield made
    switch.heal()
    for mouth in made.values():
        mouth.socket.close()


def test_machines_hear_each_other(mouths: dict[str, Mouth]) -> None:
    for one in mouths.values():
        for other in mouths.values():
            one.says(b"hello", other)
            assert other.hears() == b"hello"


def test_a_cut_is_between_two_and_in_both_directions(switch: Switch, mouths: dict[str, Mouth]) -> None:
    a, b, c = mouths.values()
    switch.machines["a"].cut([switch.machines["b"]])
    a.says(b"lost", b)
    b.says(b"lost", a)
    for one, other in ((a, c), (c, a), (b, c), (c, b)):
        one.says(b"kept", other)
        assert other.hears() == b"kept"
    assert switch.machines["a"].heal() == 2
    a.says(b"again", b)
    assert b.hears() == b"again"


@pytest.mark.parametrize("way", ["hears", "is_heard"])
def test_a_cut_may_be_of_one_direction(switch: Switch, mouths: dict[str, Mouth], way: str) -> None:
    a, b, _ = mouths.values()
    switch.machines["a"].cut([switch.machines["b"]], **{way: True})
    passes, fails = ((b, a), (a, b)) if way == "hears" else ((a, b), (b, a))
    fails[0].says(b"lost", fails[1])
    passes[0].says(b"kept", passes[1])
    assert passes[1].hears() == b"kept"
    assert switch.heal() == 1
    fails[0].says(b"again", fails[1])
    assert fails[1].hears() == b"again"
