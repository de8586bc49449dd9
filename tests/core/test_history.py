"""History: what of a channel is kept is given in the order and within the bounds that were asked for."""

from collections.abc import Callable

import msgpack
import pytest

from core import records
from tests.core.router_harness import EPOCH, Sequencer

SESSION = b"s" * 16


def offsets(answer: dict[str, list[list[object]]]) -> list[object]:
    return [message[2] for message in answer["messages"]]


def test_history_since_limit_and_reverse(sequencers: Callable[..., Sequencer]) -> None:
    worker = sequencers(history_messages=8).worker()
    assert worker.history("group:a") == {"messages": [], "epoch": EPOCH, "offset": 0}
    for number in range(1, 13):
        worker.publish("group:a", number)
    answer = worker.history("group:a")
    assert (answer["epoch"], answer["offset"]) == (EPOCH, 12)
    assert offsets(answer) == list(range(5, 13))
    assert [message[3] for message in answer["messages"]] == list(range(5, 13))
    assert offsets(worker.history("group:a", limit=3)) == [5, 6, 7]
    assert offsets(worker.history("group:a", limit=3, reverse=True)) == [12, 11, 10]
    assert offsets(worker.history("group:a", limit=3, since=(EPOCH, 8))) == [9, 10, 11]
    assert offsets(worker.history("group:a", limit=3, since=(EPOCH, 8), reverse=True)) == [7, 6, 5]
    assert offsets(worker.history("group:a", since=(EPOCH, 12))) == []
    assert offsets(worker.history("group:a", limit=0)) == []


def test_history_holds_whole_messages_within_the_bytes_asked_for(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    for number in range(20):
        worker.publish("group:a", str(number) * 400)
    for bytes_max in (100, 500, 1500, 5000, 65_536):
        worker.say.history(records.HISTORY, 900, b"group:a", bytes_max=bytes_max)
        worker.flush()
        body = worker.expect(records.REPLY)["body"]
        found = offsets(msgpack.unpackb(body))
        assert len(body) <= bytes_max or len(found) == 1
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= min(20, (bytes_max - 100) // 1000)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bytes_max", [0, 1, 63, 64, 500])
def test_history_gives_one_message_however_long_so_that_nobody_is_stuck_before_it(
    sequencer: Sequencer, bytes_max: int, reverse: bool
) -> None:
    worker = sequencer.worker()
    for size in (600, 1, 100_000):
        worker.publish("group:a", "x" * size)
    seen: list[int] = []
    options: dict[str, object] = {"bytes_max": bytes_max, "reverse": reverse}
    while found := offsets(worker.history("group:a", **options)):
        assert len(found) == 1
        seen += [int(str(offset)) for offset in found]
        options["since"] = (EPOCH, seen[-1])
    assert seen == ([3, 2, 1] if reverse else [1, 2, 3])
    assert offsets(worker.history("group:a", limit=0, bytes_max=bytes_max)) == []
