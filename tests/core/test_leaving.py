"""Sessions that left a moment ago: told of in the order in which they left, each once, and given back at the end."""

from collections.abc import Callable

from core import records
from tests.core.presence_harness import NAMESPACES, claim, events, say, session_of
from tests.core.router_harness import Sequencer
from tests.core.test_audit_router import look

COUNT = 60


def test_they_are_told_of_in_the_order_in_which_they_left_but_for_who_came_back(
    sequencers: Callable[..., Sequencer],
) -> None:
    router = sequencers(namespaces=NAMESPACES, presence_damping_ms=1500, presence_quiet_ms=0)
    there, worker = router.worker(0), router.worker(1)
    there.say.channel(records.SUBSCRIBE, b"held:a", 11)
    claim(there, session_of(999), 999)
    say(there, records.JOINED, session_of(999), "held:a", "there", 999)
    there.rest()
    for number in range(COUNT):
        claim(worker, session_of(number), number + 1)
        say(worker, records.JOINED, session_of(number), "held:a", f"u{number}", number + 1)
    worker.rest()
    assert len(events(there.rest())) == COUNT
    order = [number * 7 % COUNT for number in range(COUNT)]
    for number in order:
        say(worker, records.LEFT, session_of(number), "held:a", f"u{number}", number + 1)
    for number in range(0, COUNT, 3):
        say(worker, records.JOINED, session_of(number), "held:a", f"u{number}", number + 1)
    worker.rest()
    assert router.live("timer") == COUNT - COUNT // 3
    assert look(router)["findings"] == []
    left: list[int] = []
    while len(left) < COUNT - COUNT // 3:
        left += [int.from_bytes(told[3], "big") for told in events([there.take()])]
    assert left == [number for number in order if number % 3]
    assert router.live("timer") == 0
    assert look(router)["findings"] == []


def test_a_room_that_all_left_is_kept_until_they_are_told_of(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(namespaces=NAMESPACES, presence_damping_ms=600_000, presence_quiet_ms=0)
    worker = router.worker()
    claim(worker, session_of(1))
    for channel in ("held:a", "held:b"):
        say(worker, records.JOINED, session_of(1), channel, "u")
    worker.say.session(records.CLOSE, session_of(1), 5)
    worker.rest()
    assert (router.live("timer"), router.live("membership")) == (2, 0)
    report = look(router)
    assert report["findings"] == []
    assert report["kinds"]["timer"]["found"] == 2  # and the fixture sees them given back when the router stops
