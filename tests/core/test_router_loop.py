"""The router's loop: bytes of peers are not trusted, and it starts and stops in order."""

import random
import struct
from collections.abc import Callable

import msgpack
import pytest

from core import records
from core.ledger import Stats
from core.router_loop import RouterLoop
from tests.core.edge_harness import wait_for
from tests.core.router_harness import OPTIONS, Sequencer, Worker


def valid_batch(worker: Worker) -> bytes:
    """One of each record that a worker may say."""
    worker.say.link(records.LINK, 1, 0)
    worker.begin()
    worker.say.session(records.OPEN, b"s" * 16, 3, 1)
    worker.say.channel(records.SUBSCRIBE, b"group:a", 1, 2, 3)
    worker.end()
    worker.say.publish(2, b"group:a", msgpack.packb("data" * 20), b"alice", b"key")
    worker.say.history(records.HISTORY, 3, b"group:a", since=(1, 1))
    worker.say.history(records.PRESENCE, 4, b"group:a")
    worker.say.channel(records.UNSUBSCRIBE, b"group:a", 1)
    worker.say.session(records.CLOSE, b"s" * 16, 3)
    return worker.say.take()


def alive(sequencer: Sequencer, batches: int, number: int = 1) -> None:
    """All batches were taken, and a fresh worker is served as ever."""
    wait_for(lambda: sequencer.counter("batches_in") >= batches, "all batches are taken")
    worker = sequencer.worker(number, node="fresh")
    assert worker.publish(f"group:fresh{number}", "x")["offset"] == 1


def drain(worker: Worker) -> None:
    while worker.socket.poll(0):
        worker.socket.recv()


def test_every_truncation_of_a_batch_is_survived(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    batch = valid_batch(worker)
    for size in range(len(batch)):
        worker.socket.send(batch[:size])
        drain(worker)
    alive(sequencer, len(batch))


@pytest.mark.parametrize("seed", range(4))
def test_random_and_mutated_batches_are_survived(sequencer: Sequencer, seed: int) -> None:
    drawn = random.Random(seed)
    worker = sequencer.worker()
    batch = valid_batch(worker)
    for _ in range(600):
        mutated = bytearray(batch)
        for _ in range(drawn.randrange(1, 6)):
            mutated[drawn.randrange(len(mutated))] = drawn.choice([0, 1, 8, 0x7F, 0xFF, drawn.randrange(256)])
        worker.socket.send(bytes(mutated) if drawn.random() < 0.8 else drawn.randbytes(drawn.randrange(300)))
        drain(worker)
    alive(sequencer, 600)


@pytest.mark.parametrize("kind", range(26))
def test_heads_that_promise_more_than_there_is_end_their_batch(sequencer: Sequencer, kind: int) -> None:
    worker = sequencer.worker()
    for size in (0, 4, 7, 8, 16, 2**31, 2**32 - 8, 2**32 - 1):
        for aux in (0, 255, 65535):
            worker.socket.send(struct.pack("=IHH", size, kind, aux) + b"\xff" * 56)
            drain(worker)
    alive(sequencer, 8 * 3)


def test_several_parts_and_empty_ones_are_taken(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    worker.say.link(records.LINK, 1, 0)
    worker.socket.send_multipart([b"", worker.say.take(), b"junk"])
    assert worker.expect(records.LINKED)["aux"] == 0


def test_an_endpoint_that_is_taken_is_an_error(sequencer: Sequencer) -> None:
    with pytest.raises(OSError, match="cannot open the bus"):
        RouterLoop(Stats(), endpoint="tcp://127.0.0.1:notaport", **OPTIONS)


def test_what_is_held_is_given_back_when_it_is_freed(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers()
    for number in range(3):
        worker = sequencer.worker(number)
        for channel in range(20):
            worker.subscribe(f"group:{channel}", channel + 1)
            worker.publish(f"group:{channel}", "x" * 500, key=str(channel))
            worker.rest()
        worker.say.session(records.OPEN, bytes([number]) * 16, 1)
        worker.rest()
    assert sequencer.live("session") == 3
    # The fixture looks that all of this is closed in the ledger once the loop is gone.
