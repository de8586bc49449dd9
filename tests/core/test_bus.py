"""The bus finds its libzmq and speaks with pyzmq's sockets over it."""

from pathlib import Path

import pytest
import zmq

from core import records
from core.bus import libzmq_path
from tests.core.router_harness import Sequencer


@pytest.fixture(params=["ipc", "tcp"])
def bus(request: pytest.FixtureRequest) -> str:
    """Both sides of the port: our own streams, and libzmq's."""
    side: str = request.param
    return side


def test_the_library_is_pyzmqs_own() -> None:
    path = Path(libzmq_path())
    assert path.exists()
    assert path.name.startswith("libzmq")
    zmq.zmq_version()
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libzmq" in line}
    assert loaded == {str(path.resolve())}, "two libraries would have two sets of threads"


def test_a_peer_without_an_identity_of_its_own_is_served(sequencer: Sequencer) -> None:
    """ZeroMQ then makes one up, with a zero byte in front."""
    peer = sequencer.context.socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, 0)
    peer.connect(sequencer.endpoint)
    writer = records.BatchWriter()
    writer.link(records.LINK, 1, 0)
    peer.send(writer.take())
    assert peer.poll(10_000)
    assert [one["kind"] for one in records.unpack(peer.recv())] == [records.LINKED, records.LINKED]
    peer.close()


def test_an_identity_that_is_too_long_is_not_served_and_harms_nobody(sequencer: Sequencer) -> None:
    peer = sequencer.context.socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, 0)
    peer.setsockopt(zmq.IDENTITY, b"x" * 200)
    peer.connect(sequencer.endpoint)
    writer = records.BatchWriter()
    writer.link(records.LINK, 1, 0)
    peer.send(writer.take())
    worker = sequencer.worker()
    assert worker.publish("group:a", 1)["offset"] == 1
    assert not peer.poll(0)
    peer.close()


def test_a_message_larger_than_a_socket_buffer_arrives_whole(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    worker.subscribe("group:a", 1)
    worker.publish("group:a", "x" * 3_000_000)
    (told,) = worker.rest()
    assert len(told["body"]) > 3_000_000


def test_a_batch_for_a_worker_that_is_gone_is_dropped_with_it(sequencer: Sequencer) -> None:
    """A send that finds no peer, or the end of its stream, and the router has forgotten it; others go on."""
    gone, other = sequencer.worker(0), sequencer.worker(1)
    gone.subscribe("group:a", 1)
    other.subscribe("group:a", 2)
    gone.socket.close()
    for number in range(1, 200):
        assert other.publish("group:a", number)["offset"] == number
        assert other.expect(records.MESSAGE)["offset"] == number
        if sequencer.counter("workers_lost"):
            return
    raise AssertionError("the router goes on sending to a worker that is gone")
