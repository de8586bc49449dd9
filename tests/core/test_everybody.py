"""Global channels at the router: every worker is told where they stand, whatever it missed."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from core import log_records, notes, records
from core.codes import Code
from core.namespace_spec import BUILT_IN, NamespaceSpec
from tests.core.edge_harness import wait_for
from tests.core.router_harness import EPOCH, Sequencer, Worker
from tests.core.test_recovery import aged, message, position

GLOBALS_MAX = 128


def told(said: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What was said of global channels: (name, epoch, offset), and (flags, epoch, offset) of each message."""
    found: list[tuple[Any, ...]] = []
    for one in said:
        if one["kind"] == records.GLOBAL:
            found.append((one["name"].decode(), one["epoch"], one["offset"], *(["gone"] if one["channel"] else [])))
        elif one["kind"] == records.MESSAGE:
            assert (one["channel"], one["aux"]) == (0, 1)
            found.append((one["epoch"], one["offset"]))
    return found


AGE_S = 4


def aging() -> list[NamespaceSpec]:
    """Namespaces with history, of which that of global channels is kept for as long as a test needs to look at it."""
    return [
        msgspec.structs.replace(spec, history_messages=10, history_bytes=1 << 20, history_age_s=300)
        if spec.name != "global"
        else msgspec.structs.replace(spec, history_age_s=AGE_S)
        for spec in BUILT_IN
    ]


def began(worker: Worker, name: str) -> tuple[int, int]:
    """Where a session starts that had not heard of a channel."""
    worker.rest()
    worker.say.catchup(9, name.encode(), 5, 0, 0, flags=records.OUTCOME_ALONE | records.FROM_LISTING)
    worker.flush()
    last: tuple[int, int] = worker.expect(records.CAUGHT)["last"]
    return last


def let_go(worker: Worker) -> str:
    """A channel with one message that made room for others."""
    for number in range(GLOBALS_MAX):
        assert worker.publish(f"global:{number}", "x")["aux"] == 0
    wait_for(lambda: worker.publish("global:more", "x")["aux"] == 0, "one of the others has aged")
    return str(next(one[0] for one in told(worker.rest()) if one[-1] == "gone"))


def publish(worker: Worker, name: str) -> None:
    """Publish as soon as there is room for the channel."""
    wait_for(lambda: worker.publish(name, "y")["aux"] == 0, "another one has aged")


def again(worker: Worker, channels: list[tuple[str, int, int, int]], *, before: bool = True) -> list[dict[str, Any]]:
    """The worker says anew what it holds; all that the router says then."""
    worker.tell(channels, before=before)
    return worker.rest()


def test_every_worker_is_told_of_a_new_channel_before_its_first_message(sequencer: Sequencer) -> None:
    one, other = sequencer.worker(0), sequencer.worker(1)
    for number in range(3):
        assert one.publish("global:news", number)["offset"] == number + 1
    for worker in (one, other):
        assert told(worker.rest()) == [("global:news", EPOCH, 0), (EPOCH, 1), (EPOCH, 2), (EPOCH, 3)]


def test_who_has_no_sessions_hears_of_no_global_channel(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    visitor = sequencer.worker(1, link=False)
    visitor.say.link(records.LINK, 1, 1)
    visitor.flush()
    assert visitor.expect(records.LINKED)["aux"] == 1
    visitor.expect(records.LINKED)
    visitor.tell([], everybody=False)
    assert visitor.rest() == []
    visitor.publish("global:news", "x")
    assert visitor.rest() == []
    assert told(worker.rest()) == [("global:news", EPOCH, 0), (EPOCH, 1)]


def test_a_worker_that_starts_is_told_where_the_channels_stand(sequencer: Sequencer) -> None:
    first = sequencer.worker()
    first.publish("global:news", 1)
    first.publish("global:news", 2)
    late = sequencer.worker(1, link=False)
    late.say.link(records.LINK, 1, 1)
    late.flush()
    late.expect(records.LINKED)
    late.expect(records.LINKED)
    assert told(again(late, [], before=False)) == [("global:news", EPOCH, 2)]
    first.publish("global:news", 3)
    assert told(late.rest()) == [(EPOCH, 3)]


def test_what_was_said_while_a_worker_was_away_it_is_told_from_the_position_that_it_names(
    sequencer: Sequencer,
) -> None:
    here, away = sequencer.worker(0), sequencer.worker(1)
    for number in range(4):
        here.publish("global:news", number)
    away.rest()
    said = again(away, [("global:news", 9, EPOCH, 2)])
    assert told(said) == [(EPOCH, 3), (EPOCH, 4), ("global:news", EPOCH, 4)]
    (answer,) = (one for one in said if one["kind"] == records.SUBSCRIBED)
    assert (answer["channel"], answer["epoch"], answer["offset"]) == (9, EPOCH, 4)
    here.publish("global:news", "live")
    assert told(away.rest()) == [(EPOCH, 5)]  # once, though it subscribed under a handle as well


def test_a_channel_that_began_while_a_worker_was_away_it_is_told_from_the_start(sequencer: Sequencer) -> None:
    here, away = sequencer.worker(0), sequencer.worker(1)
    for number in range(3):
        here.publish("global:news", number)
    away.rest()
    # It comes back and names none: what it was sent never reached it.
    beginning = [("global:news", EPOCH, 0), (EPOCH, 1), (EPOCH, 2), (EPOCH, 3), ("global:news", EPOCH, 3)]
    assert told(again(away, [])) == beginning


def test_a_position_of_an_earlier_router_tells_those_that_were_linked_to_it_and_missed_it(
    sequencer: Sequencer,
) -> None:
    missed, fresh, knows = (sequencer.worker(number) for number in range(3))
    again(missed, [])
    again(fresh, [], before=False)
    said = again(knows, [("global:news", 3, EPOCH - 1, 7)])
    (answer,) = (one for one in said if one["kind"] == records.SUBSCRIBED)
    assert (answer["epoch"], answer["offset"]) == (EPOCH, 7)
    # One was told nothing of seven messages, which nobody has any more: the worker tells the gap.
    assert told(missed.rest()) == [("global:news", EPOCH, 0), ("global:news", EPOCH, 7)]
    assert told(fresh.rest()) == [("global:news", EPOCH, 7)]


def test_a_router_that_starts_tells_of_the_global_channels_of_its_log(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(recovered=[message("global:news", 5, 1) + message("global:news", 5, 2), aged("global:old", 3)])
    was_here, starts = router.worker(0), router.worker(1)
    # The first was linked to the router before: had it been told of the channel, it would have named it.
    beginning = [("global:news", EPOCH, 0), (5, 1), (5, 2), ("global:news", EPOCH, 2)]
    assert told(again(was_here, []))[:4] == beginning
    assert ("global:news", EPOCH, 2) in told(again(starts, [], before=False))


def test_a_router_that_starts_tells_of_the_global_channels_that_its_log_names(
    sequencers: Callable[..., Sequencer],
) -> None:
    """Of a log that is not read whole: who starts is told where they stand, who was here gets what is kept."""
    found = [
        position("global:news", 2),
        position("global:old", 9, age_ms=400_000),
        position("global:later", 4, epoch=9),
    ]
    router = sequencers(log_under_way_max=1, log_complete=False, everybodys=b"".join(found))
    starts, was_here = router.worker(0), router.worker(1)
    assert sorted(told(again(starts, [], before=False))) == [("global:later", 10, 4), ("global:news", EPOCH, 2)]
    was_here.tell([], before=True)
    wanted = {channel: request for request, channel in (router.note(notes.LOG_LOAD) for _ in range(2))}
    kept = [message("global:news", 5, offset) for offset in (1, 2)]
    assert router.loop is not None
    router.loop.put(notes.LOG_LOADED, request=wanted[b"global:news"], first=5, second=2, text=b"".join(kept))
    router.loop.put(notes.LOG_LOADED, request=wanted[b"global:later"], first=9, second=4)
    wait_for(lambda: router.live("subscription") == 4, "all are told")
    beginning = [("global:news", EPOCH, 0), (5, 1), (5, 2), ("global:news", EPOCH, 2)]
    said = told(was_here.rest())
    assert [one for one in said if "later" not in str(one[0])] == beginning
    assert [one for one in said if "later" in str(one[0])] == [("global:later", 10, 0), ("global:later", 10, 4)]
    starts.send("global:news", "on")
    number, (entry,) = router.batch()
    assert (entry.epoch, entry.offset) == (EPOCH, 3)
    router.commit(number)
    assert was_here.take()["offset"] == 3


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_global_channel_is_known_whatever_other_channels_the_log_has(
    sequencers: Callable[..., Sequencer], place: str
) -> None:
    """Memory has no room for all of them: it stays where it was read first, and the log is asked where it came late."""
    others = [message(f"group:{number}", 5, 1) for number in range(40)]
    one = [message("global:news", 5, 1)]
    batches = one + others if place == "first" else others + one
    found = b"" if place == "first" else position("global:news", 1)
    router = sequencers(log_under_way_max=1, recovered=batches, everybodys=found, channels_max=16)
    assert router.loop is not None
    assert router.loop.knows_all is False
    [(name, epoch, offset)] = told(again(router.worker(), [], before=False))
    assert (name, epoch >= EPOCH, offset) == ("global:news", True, 1)


def test_of_more_global_channels_than_workers_are_told_of_the_first_that_the_log_names_count(
    sequencers: Callable[..., Sequencer],
) -> None:
    found = [position(f"global:{number}", 1) for number in range(GLOBALS_MAX + 2)]
    router = sequencers(log_under_way_max=1, log_complete=False, everybodys=b"".join(found))
    assert router.passed_over == 0
    said = told(again(router.worker(0), [], before=False))
    assert {one[0] for one in said} == {f"global:{number}" for number in range(GLOBALS_MAX)}


def test_a_client_that_joins_a_channel_without_a_message_leaves_nothing_behind(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    assert worker.subscribe("global:quiet", 5) == (EPOCH, 0)
    assert sequencer.live("subscription") == 1
    worker.say.channel(records.UNSUBSCRIBE, b"global:quiet", 5)
    assert worker.rest() == []
    assert (sequencer.live("subscription"), sequencer.live("channel")) == (0, 0)


def test_an_unsubscription_that_crosses_the_first_message_costs_nothing(sequencer: Sequencer) -> None:
    worker, other = sequencer.worker(0), sequencer.worker(1)
    worker.subscribe("global:news", 5)
    other.publish("global:news", 1)
    worker.say.channel(records.UNSUBSCRIBE, b"global:news", 5)
    worker.rest()
    other.publish("global:news", 2)
    assert told(worker.rest()) == [(EPOCH, 2)]


def test_a_channel_that_was_let_go_is_told_of_to_nobody_and_leaves_nothing_behind(
    sequencers: Callable[..., Sequencer],
) -> None:
    """A session that is older than its end makes its worker ask for it: the answer has no GLOBAL before it."""
    sequencer = sequencers(namespaces=aging())
    worker = sequencer.worker()
    for number in range(GLOBALS_MAX):
        assert worker.publish(f"global:{number}", "x")["aux"] == 0
    wait_for(lambda: worker.publish("global:more", "x")["aux"] == 0, "one of the others has aged")
    [gone] = [one[0] for one in told(worker.rest()) if one[-1] == "gone"]
    before = sequencer.live("subscription")
    assert worker.subscribe(gone, 5) == (EPOCH, 1)
    assert sequencer.live("subscription") == before + 1
    worker.say.channel(records.UNSUBSCRIBE, gone.encode(), 5)
    assert worker.rest() == []
    assert sequencer.live("subscription") == before


def test_whoever_asks_for_a_channel_that_goes_on_is_told_of_it_first(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    worker.publish("global:news", "x")
    worker.rest()
    worker.say.channel(records.SUBSCRIBE, b"global:news", 5)
    assert [one["kind"] for one in worker.rest()] == [records.GLOBAL, records.SUBSCRIBED]


def test_beyond_the_bound_a_new_channel_is_refused_until_one_has_aged(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers(namespaces=aging())
    worker = sequencer.worker()
    for number in range(GLOBALS_MAX):
        assert worker.publish(f"global:{number}", "x")["aux"] == 0
    assert worker.publish("global:more", "x")["aux"] in (0, Code.TOO_MANY_CHANNELS)
    wait_for(lambda: worker.publish("global:more", "x")["aux"] == 0, "one of the others has aged")
    said = told(worker.rest())
    gone = [one[0] for one in said if one[-1] == "gone"]
    assert len(gone) >= 1
    assert ("global:more", EPOCH, 0) in said
    # It may come again, and goes on where it stood.
    name = gone[0]
    wait_for(lambda: worker.publish(name, "y")["aux"] == 0, "another one has aged")
    assert (name, EPOCH, 1) in told(worker.rest())


def test_a_full_table_refuses_by_its_code(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    for number in range(GLOBALS_MAX):
        assert worker.publish(f"global:{number}", "x")["aux"] == 0
    assert worker.publish("global:more", "x")["aux"] == Code.TOO_MANY_CHANNELS
    assert worker.publish("global:0", "x")["offset"] == 2


@pytest.mark.parametrize("filler", ["x", '"', "\x01", "\u20ac"])
def test_what_all_channels_take_in_a_welcome_is_bounded_whatever_they_are_called(
    sequencers: Callable[..., Sequencer], filler: str
) -> None:
    bound = 2_000
    sequencer = sequencers(globals_bytes_max=bound)
    worker = sequencer.worker()
    names = [f"global:{number}{filler * 60}" for number in range(20)]
    codes = [worker.publish(name, "x")["aux"] for name in names]
    assert set(codes) == {0, Code.TOO_MANY_CHANNELS}
    listed = {one[0]: [2**64 - 1, 2**64 - 1, "replayed"] for one in told(worker.rest()) if isinstance(one[0], str)}
    assert list(listed) == [name for name, code in zip(names, codes, strict=True) if code == 0]
    size = len(json.dumps(listed, ensure_ascii=False, separators=(",", ":")).encode())
    assert bound - 2 * max(len(json.dumps(name, ensure_ascii=False).encode()) + 64 for name in names) < size <= bound


def test_a_long_name_takes_the_place_of_several_that_have_aged(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers(namespaces=aging(), globals_bytes_max=400)
    worker = sequencer.worker()
    for number in range(4):
        assert worker.publish(f"global:{number}", "x")["aux"] == 0
    long = "global:" + "x" * 240
    wait_for(lambda: worker.publish(long, "x")["aux"] == 0, "the others have aged")
    gone = {one[0] for one in told(worker.rest()) if one[-1] == "gone"}
    assert gone < {f"global:{number}" for number in range(4)}
    assert len(gone) == 3  # and not the one that has room beside it


def test_a_channel_that_was_let_go_and_begins_again_begins_where_it_stood(sequencers: Callable[..., Sequencer]) -> None:
    """Whoever has not heard of it misses what came since, and nothing of what was over before."""
    sequencer = sequencers(namespaces=aging())
    worker = sequencer.worker()
    name = let_go(worker)
    assert began(worker, name) == (EPOCH, 1)  # it is over: there is nothing to miss
    publish(worker, name)
    publish(worker, name)
    assert began(worker, name) == (EPOCH, 1)
    assert began(worker, "global:more") == (EPOCH, 0)


def test_a_worker_that_was_away_when_a_channel_began_again_is_told_from_there(
    sequencers: Callable[..., Sequencer],
) -> None:
    sequencer = sequencers(namespaces=aging())
    here, away = sequencer.worker(0), sequencer.worker(1)
    name = let_go(here)
    publish(here, name)
    away.rest()
    said = told(again(away, []))
    first = said.index((name, EPOCH, 1))
    assert said[first : first + 3] == [(name, EPOCH, 1), (EPOCH, 2), (name, EPOCH, 2)]


def test_a_channel_that_a_worker_names_after_it_was_let_go_begins_there(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers(namespaces=aging())
    here, away = sequencer.worker(0), sequencer.worker(1)
    name = let_go(here)
    wait_for(lambda: (name, EPOCH, 1) in told(again(away, [(name, 9, EPOCH, 1)])), "another one has aged")
    assert began(away, name) == (EPOCH, 1)


def test_the_message_with_which_a_channel_began_says_so_in_the_log(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(log_under_way_max=1)
    worker = router.worker()
    flags = []
    for number in range(3):
        worker.send("global:news", number)
        batch, (entry,) = router.batch()
        flags.append(entry.flags & log_records.BEGINS)
        router.commit(batch)
    assert flags == [log_records.BEGINS, 0, 0]
    worker.send("group:a", 1)
    assert not router.batch()[1][0].flags & log_records.BEGINS


@pytest.mark.parametrize("first", [3, 4], ids=["is kept", "is kept no more"])
def test_the_next_router_knows_where_a_channel_began_by_its_first_message(
    sequencers: Callable[..., Sequencer], first: int
) -> None:
    """Without it something was missed in any case, and is told from the start on."""
    found = [message("global:news", 5, 3, flags=log_records.BEGINS), message("global:news", 5, 4)]
    router = sequencers(recovered=found[first - 3 :])
    worker = router.worker()
    publish(worker, "global:news")
    assert began(worker, "global:news") == ((5, 2) if first == 3 else (EPOCH, 0))


def test_where_a_channel_began_is_read_from_a_log_that_is_not_read_whole(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers(log_under_way_max=1, log_complete=False, everybodys=position("global:news", 4))
    worker = router.worker()
    worker.say.catchup(9, b"global:news", 5, 0, 0, flags=records.OUTCOME_ALONE | records.FROM_LISTING)
    worker.flush()
    request, _ = router.note(notes.LOG_LOAD)
    assert router.last_first == 1  # its messages as well
    kept = message("global:news", 5, 3, flags=log_records.BEGINS) + message("global:news", 5, 4)
    assert router.loop is not None
    router.loop.put(notes.LOG_LOADED, request=request, first=5, second=4, text=kept)
    answer = worker.expect(records.CAUGHT)
    assert (answer["last"], records.OUTCOMES[answer["outcome"]]) == ((5, 2), "replayed")
