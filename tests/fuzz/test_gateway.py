"""A short run of the fuzzer against a running node, in the build under test; `make fuzz` is the long one.

The seed is printed when it fails: `python tests/fuzz/run.py --seed N` sees the same inputs again.
"""

import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from tests.conftest import Node
from tests.fuzz import campaign

COUNT = 10_000


@pytest.mark.slow
def test_every_input_is_answered_as_the_page_says_and_nothing_is_left_behind(holdfast: Callable[..., Node]) -> None:
    node = holdfast("--workers", "2", **campaign.SETTINGS)
    faults = campaign.run(node, campaign.fresh_seed(), COUNT)
    assert not faults, "\n".join(faults)


# What the fuzzer found, each in its smallest form.

HISTORY, PRESENCE, JOIN, PING = 11, 12, 6, 4
DEADLINE_S = 30.0


class Client:
    """A session over TCP that sends bodies as they are."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
        self.send(msgpack.packb([0, 1, {"v": 1, "user": "fuzz"}]))
        assert self.frame()[0] == 1
        self.send(msgpack.packb([JOIN, 2, "group:fuzz"]))
        assert self.frame()[:2] == [2, 2]

    def send(self, body: bytes) -> None:
        self.socket.sendall(struct.pack(">I", len(body)) + body)

    def frame(self) -> list[Any]:
        size = int.from_bytes(self.exactly(4), "big")
        found: list[Any] = msgpack.unpackb(self.exactly(size))
        return found

    def exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = self.socket.recv(size - len(found))
            assert piece, "closed"
            found += piece
        return found


@pytest.fixture
def client(holdfast: Callable[..., Node]) -> Iterator[Client]:
    found = Client(holdfast("--workers", "1").port)
    yield found
    found.socket.close()


@pytest.mark.parametrize("kind", [HISTORY, PRESENCE])
def test_a_request_without_a_number_gets_nothing_at_all(client: Client, kind: int) -> None:
    client.send(msgpack.packb([kind, 0, "group:fuzz"]))
    client.send(msgpack.packb([kind, 3, "group:fuzz"]))
    assert client.frame()[:2] == [2, 3]


@pytest.mark.parametrize("broken", [b"\xd4\xff\x00", b"\xc7\x03\xff\x01\x02\x03", b"\xd7\xff" + b"\xff" * 8])
def test_an_extension_that_is_no_timestamp_is_a_request_refused(client: Client, broken: bytes) -> None:
    client.send(b"\x94\x06\x05\xaagroup:fuzz\x81\xa5since" + broken)
    assert client.frame()[:3] == [3, 5, 406]
