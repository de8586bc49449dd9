"""The sequencer through its real socket: positions, routes, keys, sessions, history, and workers that come and go."""

import random
from collections.abc import Callable

import msgpack
import msgspec
import pytest

from core import notes, records
from core.codes import Code
from core.namespace_spec import BUILT_IN
from tests.core.edge_harness import wait_for
from tests.core.router_harness import EPOCH, Sequencer, Worker

SESSION = b"s" * 16


def test_a_worker_of_another_version_is_passed_over_and_named_once(sequencer: Sequencer) -> None:
    for version in (records.VERSION - 1, records.VERSION + 1):
        stranger = sequencer.worker(version, link=False)
        for kind in (records.LINK, records.BEGIN, records.END, records.LINK):
            stranger.say.link(kind, stranger.epoch, stranger.number, version=version)
        stranger.say.publish(1, b"group:a", b"\x01", b"alice", b"")
        stranger.flush()
        _, who = sequencer.note(notes.FOREIGN)
        assert (who.decode(), sequencer.last_first) == (f"node/{version}/1", version)
        told = stranger.take()
        assert (told["kind"], told["version"]) == (records.LINKED, records.VERSION), "so that it can say so as well"
    known = sequencer.worker()
    assert known.publish("group:a", "x")["offset"] == 1
    assert sequencer.stats.read()["gauges"]["linked"] == 1


def messages(said: list[dict[str, object]]) -> list[tuple[object, object, object]]:
    """(handle, epoch, offset) of the messages among what the router said."""
    return [(one["channel"], one["epoch"], one["offset"]) for one in said if one["kind"] == records.MESSAGE]


def test_positions_have_no_gap_in_any_channel(sequencer: Sequencer) -> None:
    workers = [sequencer.worker(number) for number in range(3)]
    for worker in workers:
        assert worker.subscribe("group:a", 11) == (EPOCH, 0)
    order = random.Random(3)
    expected = {f"group:{name}": 0 for name in "abc"}
    for number in range(200):
        channel = order.choice(sorted(expected))
        expected[channel] += 1
        answer = order.choice(workers).publish(channel, number)
        assert (answer["aux"], answer["epoch"], answer["offset"]) == (0, EPOCH, expected[channel])
    heard = [messages(worker.rest()) for worker in workers]
    assert heard == [[(11, EPOCH, offset) for offset in range(1, expected["group:a"] + 1)]] * 3


def test_a_message_reaches_each_worker_with_members_once_and_no_other(sequencer: Sequencer) -> None:
    one, two, stranger = (sequencer.worker(number) for number in range(3))
    one.subscribe("group:a", 1)
    two.subscribe("group:a", 2)
    stranger.subscribe("group:b", 3)
    stranger.publish("group:a", {"text": "hello"}, sender="bob")
    (told,) = one.rest()
    channel, offset, data, about = msgpack.unpackb(told["body"])[1:]
    assert (channel, offset, data, about["from"], about["epoch"]) == ("group:a", 1, {"text": "hello"}, "bob", EPOCH)
    assert messages(two.rest()) == [(2, EPOCH, 1)]
    assert stranger.rest() == []
    assert sequencer.counter("messages_routed") == 2
    two.say.channel(records.UNSUBSCRIBE, b"group:a", 2)
    assert two.rest() == []
    one.publish("group:a", 2)
    assert two.rest() == []


def test_an_unsubscription_under_an_older_handle_leaves_the_newer_subscription(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    worker.subscribe("group:a", 1)
    worker.subscribe("group:a", 2)
    worker.say.channel(records.UNSUBSCRIBE, b"group:a", 1)
    worker.publish("group:a", "x")
    assert messages(worker.rest()) == [(2, EPOCH, 1)]


def test_a_repeated_key_returns_the_first_position_and_delivers_nothing_twice(sequencer: Sequencer) -> None:
    worker, other = sequencer.worker(0), sequencer.worker(1)
    worker.subscribe("group:a", 1)
    first = worker.publish("group:a", "x", key="k")
    worker.publish("group:a", "y")
    again = other.publish("group:a", "x", key="k")
    assert (again["aux"], again["epoch"], again["offset"]) == (0, first["epoch"], first["offset"]) == (0, EPOCH, 1)
    assert worker.publish("group:a", "x", key="k", sender="bob")["offset"] == 3
    assert worker.publish("group:b", "x", key="k")["offset"] == 1
    assert messages(worker.rest()) == [(1, EPOCH, 1), (1, EPOCH, 2), (1, EPOCH, 3)]
    assert sequencer.counter("repeated_keys") == 1


def offsets(answer: dict[str, list[list[object]]]) -> list[object]:
    return [message[2] for message in answer["messages"]]


def test_each_namespace_says_how_much_is_kept(sequencers: Callable[..., Sequencer]) -> None:
    kept = {"many": 5, "few": 2, "none": 0}
    specs = [msgspec.structs.replace(BUILT_IN[1], name=name, history_messages=most) for name, most in kept.items()]
    small = msgspec.structs.replace(BUILT_IN[1], name="small", history_bytes=300)
    worker = sequencers(namespaces=[*specs, small]).worker()
    for number in range(1, 9):
        for name in (*kept, "small"):
            assert worker.publish(f"{name}:a", "x" * 20 + str(number))["offset"] == number
    assert {name: offsets(worker.history(f"{name}:a")) for name in kept} == {
        "many": [4, 5, 6, 7, 8],
        "few": [7, 8],
        "none": [],
    }
    frames = worker.history("small:a")["messages"]
    assert 1 < len(frames) < 8
    size = sum(len(msgpack.packb(frame)) for frame in frames)
    assert size <= 300 < size + len(msgpack.packb(frames[0]))


def test_a_channel_without_a_namespace_has_no_stream(sequencers: Callable[..., Sequencer]) -> None:
    sequencer = sequencers(namespaces=[msgspec.structs.replace(BUILT_IN[1], name="chat")])
    worker = sequencer.worker()
    for name in ("group:a", "chat", "chat:", ""):
        assert worker.publish(name, "x")["aux"] == Code.NO_SUCH_CHANNEL
        assert worker.history(name)["messages"] == []
    worker.say.channel(records.SUBSCRIBE, b"group:a", 1)
    assert [(one["kind"], one["aux"]) for one in worker.rest()] == [(records.SUBSCRIBED, Code.NO_SUCH_CHANNEL)]
    assert worker.publish("chat:a", "x")["aux"] == 0
    assert sequencer.live("channel") == 1


def test_a_claim_evicts_the_former_owner_before_it_is_answered(sequencer: Sequencer) -> None:
    one, two = sequencer.worker(0), sequencer.worker(1)
    one.say.session(records.OPEN, SESSION, 41, 9)
    (opened,) = one.rest()
    assert (opened["kind"], opened["aux"], opened["conn"], opened["seq"]) == (records.OPENED, 0, 41, 9)
    two.say.session(records.OPEN, SESSION, 42, 10)
    two.flush()
    opened = two.expect(records.OPENED)
    assert (opened["aux"], opened["seq"]) == (1, 10)
    (evicted,) = one.rest()
    assert (evicted["kind"], evicted["conn"], evicted["session"]) == (records.EVICT, 41, SESSION)
    # The former owner's CLOSE comes late and must not end the new claim.
    one.say.session(records.CLOSE, SESSION, 41)
    one.rest()
    assert sequencer.live("session") == 1
    two.say.session(records.CLOSE, SESSION, 42)
    two.rest()
    assert sequencer.live("session") == 0


def test_another_connection_of_the_same_worker_evicts_as_well(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    for conn in (1, 2, 2):  # the last repeats a claim, as a resynchronisation does
        worker.say.session(records.OPEN, SESSION, conn, conn)
    kinds = [(one["kind"], one["conn"]) for one in worker.rest()]
    assert kinds == [
        (records.OPENED, 1),
        (records.EVICT, 1),
        (records.OPENED, 2),
        (records.OPENED, 2),
    ]
    assert sequencer.live("session") == 1


def test_an_unlinked_worker_is_passed_over_and_asked_to_resynchronise_exactly_once(sequencer: Sequencer) -> None:
    worker = sequencer.worker(link=False)
    for _ in range(3):
        worker.say.publish(1, b"group:a", b"\x01", b"alice")
        worker.say.channel(records.SUBSCRIBE, b"group:a", 1)
        worker.flush()
    assert worker.expect(records.LINKED)["aux"] == 1
    assert worker.rest() == []  # a refusal would be taken for the answer to what is said again
    assert sequencer.live("channel") == 0


def asked(worker: Worker) -> int:
    """How often the router asks for everything until it has answered two heartbeats."""
    found, answers = 0, 0
    for _ in range(2):
        worker.say.link(records.LINK, worker.epoch, worker.number)
        worker.flush()
    while answers < 2:
        one = worker.expect(records.LINKED)
        found, answers = found + one["aux"], answers + (not one["aux"])
    return found


def test_the_question_is_not_repeated_with_each_heartbeat(sequencer: Sequencer) -> None:
    worker = sequencer.worker(link=False)
    assert asked(worker) == 1
    assert asked(worker) == 0
    worker.tell([])
    assert asked(worker) == 0


def test_positions_go_on_under_a_new_epoch_behind_what_workers_saw(sequencer: Sequencer) -> None:
    one, two = sequencer.worker(0, link=False), sequencer.worker(1, link=False)
    assert asked(one) == asked(two) == 1
    one.tell([("group:a", 1, EPOCH - 1, 10), ("group:b", 2, 0, 0)], [(SESSION, 4)])
    positions = {said["channel"]: (said["epoch"], said["offset"]) for said in one.rest()}
    assert positions == {1: (EPOCH, 10), 2: (EPOCH, 0)}
    two.tell([("group:a", 3, EPOCH - 1, 8)])
    assert [(said["epoch"], said["offset"]) for said in two.rest()] == [(EPOCH, 10)]
    answer = two.publish("group:a", "next")
    assert (answer["epoch"], answer["offset"]) == (EPOCH, 11)
    assert messages(one.rest()) == [(1, EPOCH, 11)]
    assert sequencer.live("session") == 1


def test_a_worker_that_saw_what_the_log_lost_gets_all_that_is_said_since(sequencer: Sequencer) -> None:
    """Another worker's publish came first, and so the epoch began below what this one's members hold."""
    publisher, early, late = (sequencer.worker(number, link=False) for number in range(3))
    assert [asked(one) for one in (publisher, early, late)] == [1, 1, 1]
    publisher.tell([])
    early.tell([("group:a", 1, EPOCH - 1, 8)])
    assert [(said["epoch"], said["offset"]) for said in early.rest()] == [(EPOCH, 8)]
    assert [publisher.publish("group:a", text)["offset"] for text in "xy"] == [9, 10]
    assert messages(early.rest()) == [(1, EPOCH, 9), (1, EPOCH, 10)]
    for seen in (12, 10, 9):
        late.tell([("group:a", 2, EPOCH - 1, seen)])
        said = late.rest()
        assert messages(said) == [(2, EPOCH, 9), (2, EPOCH, 10)]
        assert (said[-1]["kind"], said[-1]["epoch"], said[-1]["offset"]) == (records.SUBSCRIBED, EPOCH, 10)
    late.tell([("group:a", 2, EPOCH - 1, 8)])
    assert messages(late.rest()) == [(2, EPOCH, 9), (2, EPOCH, 10)]  # in common up to there: no more and no less
    assert publisher.publish("group:a", "z")["offset"] == 11
    assert [messages(one.rest()) for one in (early, late)] == [[(1, EPOCH, 11)], [(2, EPOCH, 11)]]


def test_a_resynchronisation_replaces_what_was_known_of_the_worker(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    worker.subscribe("group:a", 1)
    worker.say.session(records.OPEN, SESSION, 4)
    worker.tell([("group:b", 2, 0, 0)])
    worker.rest()
    assert (sequencer.live("session"), sequencer.live("subscription")) == (0, 1)
    worker.publish("group:a", 1)
    assert worker.rest() == []


def test_a_newer_start_of_the_same_worker_replaces_the_older(sequencer: Sequencer) -> None:
    old, other, elsewhere = sequencer.worker(1, epoch=5), sequencer.worker(2, epoch=5), sequencer.worker(1, node="b")
    for handle, worker in enumerate((old, other, elsewhere), 1):
        worker.subscribe("group:a", handle)
    new = sequencer.worker(1, epoch=6)
    assert sequencer.counter("workers_lost") == 1
    new.subscribe("group:a", 9)
    new.publish("group:a", "x")
    for worker, handle in ((other, 2), (elsewhere, 3), (new, 9)):
        assert messages(worker.rest()) == [(handle, EPOCH, 1)]
    assert asked(old) == 1


def test_a_worker_that_says_bye_is_forgotten(sequencer: Sequencer) -> None:
    worker = sequencer.worker()
    worker.subscribe("group:a", 1)
    worker.say.session(records.OPEN, SESSION, 4)
    worker.say.link(records.BYE, 1, 0)
    worker.flush()
    wait_for(lambda: sequencer.counter("workers_lost") == 1, "the worker is forgotten")
    kinds = ("session", "subscription", "channel")
    wait_for(lambda: [sequencer.live(kind) for kind in kinds] == [0, 0, 0], "all that it had is released")
    assert sequencer.stats.read()["gauges"]["linked"] == 0


def test_a_worker_whose_socket_is_gone_is_given_up_at_the_next_message(sequencer: Sequencer) -> None:
    gone, publisher = sequencer.worker(0), sequencer.worker(1)
    gone.subscribe("group:a", 1)
    gone.socket.close()

    def given_up() -> bool:
        publisher.publish("group:a", "x")
        return sequencer.counter("workers_lost") == 1

    wait_for(given_up, "the worker is given up")
    wait_for(lambda: sequencer.live("subscription") == 0, "what it heard is released")


def test_a_worker_that_takes_too_little_is_given_up(sequencers: Callable[..., Sequencer]) -> None:
    """One batch passes the bound: it must not be cut, so the worker goes and will be asked for everything."""
    sequencer = sequencers(spill_bytes_max=10_000)
    slow, publisher = sequencer.worker(0), sequencer.worker(1)
    slow.subscribe("group:a", 1)
    for _ in range(20):
        publisher.say.publish(0, b"group:a", msgpack.packb("x" * 1000), b"alice")
    publisher.flush()
    wait_for(lambda: sequencer.counter("workers_lost") == 1, "the worker is given up")
    assert asked(slow) == 1


@pytest.mark.slow
def test_a_silent_worker_is_given_up(sequencer: Sequencer) -> None:
    """A living socket whose owner says nothing for 15 s."""
    silent, other = sequencer.worker(0), sequencer.worker(1)
    silent.subscribe("group:a", 1)

    def given_up() -> bool:
        other.rest()
        return sequencer.counter("workers_lost") == 1

    for _ in range(2):  # longer than one deadline
        try:
            wait_for(given_up, "the worker is given up")
            break
        except AssertionError:
            continue
    assert sequencer.counter("workers_lost") == 1
    wait_for(lambda: sequencer.live("subscription") == 0, "what it heard is released")


def test_a_subscription_that_there_is_no_room_for_is_refused(sequencers: Callable[..., Sequencer]) -> None:
    worker = sequencers(channels_max=2).worker()
    for handle in (1, 2):
        worker.subscribe(f"group:{handle}", handle)

    def refused(name: bytes) -> tuple[object, object]:
        worker.say.channel(records.SUBSCRIBE, name, 3)
        worker.flush()
        one = worker.expect(records.SUBSCRIBED)
        return one["channel"], one["aux"]

    assert refused(b"group:3") == (3, Code.OVERLOADED)
    worker.say.channel(records.UNSUBSCRIBE, b"group:1", 1)
    assert worker.subscribe("group:3", 3) == (EPOCH, 0)


def test_no_more_channels_than_the_bound(sequencers: Callable[..., Sequencer]) -> None:
    worker = sequencers(channels_max=2).worker()
    assert [worker.publish(f"group:{number}", 1)["aux"] for number in range(3)] == [0, 0, Code.OVERLOADED]
