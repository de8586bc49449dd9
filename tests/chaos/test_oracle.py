"""The oracle finds each fault that is put into a true history, exactly that one, and nothing in a true one."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.oracle import Fault, Kind, Oracle, Position, by_kind

CHANNEL, OTHER = "group:a", "group:b"
RETAINED = 12
MEMBERS = ("ann", "bob", "cem")


class Op(NamedTuple):
    """One report to the oracle."""

    what: str
    who: str = ""
    epoch: int = 0
    offset: int = 0
    text: str = ""


class Model:
    """A gateway that makes no mistakes: one channel, a few members that come, go, fall behind and return."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ops: list[Op] = []
        self.log: list[Op] = []
        self.epoch = 3
        self.held: dict[str, int] = {}
        self.acked: dict[str, int] = {}
        self.away: set[str] = set()
        self.number = 0

    def run(self, steps: int) -> list[Op]:
        """The first two join at the beginning; everybody is back and has all at the end."""
        for who in MEMBERS[:2]:
            self.join(who)
        acts: list[Callable[[], None]] = [self.publish] * 6 + [self.leave_or_join, self.refuse, self.unsure]
        acts += [self.lose, self.come_back, self.next_epoch, self.acknowledge]
        for _ in range(steps):
            self.rng.choice(acts)()
        self.publish()
        for who in sorted(self.away):
            self.come_back(who)
        self.publish()
        self.ops.append(Op("history"))
        return self.ops

    @property
    def last(self) -> int:
        return len(self.log)

    def content(self) -> str:
        self.number += 1
        return f"m{self.number}"

    def publish(self) -> None:
        content = self.content()
        self.ops.append(Op("publish", "ann", text=content))
        message = Op("received", "", self.epoch, self.last + 1, content)
        self.log.append(message)
        answer = Op("acknowledge", "ann", self.epoch, self.last, content)
        early = self.rng.random() < 0.5
        if early:
            self.ops.append(answer)
        for who in sorted(self.held.keys() - self.away):
            self.deliver(who, self.last)
        if not early:
            self.ops.append(answer)

    def deliver(self, who: str, offset: int) -> None:
        self.ops.append(self.log[offset - 1]._replace(who=who))
        self.held[who] = max(self.held[who], offset)

    def acknowledge(self) -> None:
        for who in sorted(self.held.keys() - self.away):
            self.acked[who] = self.held[who]
            self.ops.append(Op("acknowledges", who))

    def join(self, who: str) -> None:
        self.held[who] = self.last
        self.acked.pop(who, None)
        self.ops.append(Op("joined", who, self.epoch, self.last))

    def leave_or_join(self) -> None:
        who = MEMBERS[2]
        if who in self.away:
            return
        if who in self.held:
            del self.held[who]
            self.ops.append(Op("left", who))
        else:
            self.join(who)

    def refuse(self) -> None:
        content = self.content()
        self.ops += [Op("publish", "ann", text=content), Op("refuse", "ann", text=content)]

    def unsure(self) -> None:
        """Sent, and the connection was lost: it came to nothing."""
        self.ops.append(Op("publish", "ann", text=self.content()))

    def lose(self) -> None:
        if self.held.keys() - self.away:
            self.away.add(self.rng.choice(sorted(self.held.keys() - self.away)))

    def come_back(self, who: str = "") -> None:
        if not self.away:
            return
        who = who or self.rng.choice(sorted(self.away))
        self.away.discard(who)
        asked = since = max(0, self.held[who] - self.rng.choice((0, 0, 1, 3)))
        # The position that it sends may be an old one, so that it hears some again; or it has none any more.
        if who in self.acked and self.rng.random() < 0.5:
            asked, since = -1, self.acked[who]
            self.held[who] = since
            self.ops.append(Op("begins anew", who, offset=since))
        first = max(1, self.last - RETAINED + 1)
        outcome = "live" if since == self.last else "replayed" if since >= first - 1 else "gap"
        self.ops.append(Op("resumed", who, self.epoch, self.last, f"{outcome} {asked}"))
        if outcome == "gap":
            self.ops.append(Op("gap", who, since + 1, first - 1, "trimmed"))
            self.held[who] = max(self.held[who], first - 1)
            since = first - 1
        for offset in range(since + 1, self.last + 1):
            self.deliver(who, offset)

    def next_epoch(self) -> None:
        self.epoch += 1


def judge(ops: list[Op], log: list[Op]) -> tuple[Oracle, list[Fault]]:
    """Report all this; `log` is what HISTORY gives at the end."""
    oracle = Oracle()
    book = oracle.book(CHANNEL, RETAINED)
    oracle.book(OTHER).publish("elsewhere", "ann")
    readers = {who: book.reader(who) for who in MEMBERS}
    for op in ops:
        position = Position(op.epoch, op.offset)
        match op.what:
            case "publish":
                book.publish(op.text, op.who)
            case "acknowledge":
                book.acknowledge(op.text, position)
            case "refuse":
                book.refuse(op.text, 400)
            case "joined":
                readers[op.who].joined(position)
            case "left":
                readers[op.who].left()
            case "resumed":
                outcome, since = op.text.split()
                readers[op.who].resumed(position, outcome, int(since))
            case "gap":
                readers[op.who].gap(op.epoch, op.offset, op.text)
            case "received":
                readers[op.who].received(position, op.text)
            case "acknowledges":
                readers[op.who].acknowledges()
            case "begins anew":
                readers[op.who].begins_anew()
            case "forgotten":
                readers[op.who].forgotten()
            case "unwanted":
                readers[op.who].unwanted(position, 1.0)
            case "zombie":
                readers[op.who].zombie(op.offset, "after the other was welcome")
            case "history":
                kept = [(Position(one.epoch, one.offset), one.text) for one in log[-RETAINED:]]
                book.history("cem", kept, complete=True)
    return oracle, oracle.verdict()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 120))
def test_a_true_history_has_no_fault(seed: int, steps: int) -> None:
    model = Model(seed)
    oracle, faults = judge(model.run(steps), model.log)
    assert not faults, f"{faults[0]}"
    assert oracle.counts()["published"] >= oracle.counts()["acknowledged"] > 0


# ---- mutations: each changes a true history in one place, or gives None where there is no such place.

Mutation = Callable[[random.Random, list[Op]], list[Op] | None]


def first_deliveries(ops: list[Op], who: str) -> list[int]:
    """Indexes of what reached the application of one who never left."""
    held, found = 0, []
    for index, op in enumerate(ops):
        if op.who == who and op.what == "received" and op.offset > held:
            held = op.offset
            found.append(index)
        elif op.who == who and op.what in ("joined", "begins anew"):
            held = op.offset
        elif op.who == who and op.what == "gap":
            held = max(held, op.offset)  # told again to one who asked for what it had, it takes nothing back
    return found


def without(ops: list[Op], who: str, offset: int) -> list[Op]:
    return [op for op in ops if not (op.what == "received" and op.who == who and op.offset == offset)]


def lose_the_last(rng: random.Random, ops: list[Op]) -> list[Op]:
    return without(ops, "bob", ops[first_deliveries(ops, "bob")[-1]].offset)


def lose_from_history(rng: random.Random, ops: list[Op]) -> list[Op]:
    """Nobody hears the last one, and HISTORY does not have it: its answer alone knows."""
    last = max(op.offset for op in ops if op.what == "received")
    return [op for op in ops if not (op.what == "received" and op.offset == last)]


def pass_over(rng: random.Random, ops: list[Op]) -> list[Op] | None:
    # The next that it hears is the next one: before a gap, the gap may go further back and tell of it.
    places = first_deliveries(ops, "bob")
    own = [(index, op) for index, op in enumerate(ops) if op.who == "bob"]
    followed = {a for (a, _), (_, op) in pairwise(own) if op.what == "received"}
    places = [index for index in places[:-1] if index in followed]
    return without(ops, "bob", ops[rng.choice(places)].offset) if places else None


def withhold_what_was_not_acknowledged(rng: random.Random, ops: list[Op]) -> list[Op] | None:
    """It had been sent once, and is not sent again to one that begins anew behind its last ACK."""
    own = [(index, op) for index, op in enumerate(ops) if op.who == "bob"]
    heard, last, places = set(), 0, []
    for (index, op), (_, following) in pairwise(own):
        if op.what == "begins anew":
            last = op.offset
        again = op.what == "received" and op.offset in heard and op.offset == last + 1
        if again and following.what == "received":
            places.append(index)
        if op.what in ("received", "joined", "gap"):
            last = max(last, op.offset)
        if op.what == "received":
            heard.add(op.offset)
    if not places:
        return None
    index = rng.choice(places)
    return [*ops[:index], *ops[index + 1 :]]


def swap(rng: random.Random, ops: list[Op]) -> list[Op] | None:
    places = first_deliveries(ops, "bob")
    pairs = [
        (a, b) for a, b in pairwise(places) if not any(op.who == "bob" and op.what != "received" for op in ops[a:b])
    ]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    # The earlier one comes when the later one was there, so that both are published by then.
    return [*ops[:a], *ops[a + 1 : b + 1], ops[a], *ops[b + 1 :]]


def repeat_at_a_new_offset(rng: random.Random, ops: list[Op]) -> list[Op]:
    """A publish sent again that was not recognised: it stands there twice."""
    last = [op for op in ops if op.what == "received"][-1]
    first = rng.choice([op for op in ops if op.what == "received"])
    again = [first._replace(who=who, epoch=last.epoch, offset=last.offset + 1) for who in present(ops)]
    return [*ops[:-1], *again, ops[-1]]


def present(ops: list[Op]) -> list[str]:
    here = {who: False for who in MEMBERS}
    for op in ops:
        if op.what in ("joined", "left"):
            here[op.who] = op.what == "joined"
    return [who for who in MEMBERS if here[who]]


def invent(rng: random.Random, ops: list[Op]) -> list[Op]:
    return replaced(rng, ops, "nobody said this")


def mix_up_channels(rng: random.Random, ops: list[Op]) -> list[Op]:
    return replaced(rng, ops, "elsewhere")


def replaced(rng: random.Random, ops: list[Op], text: str) -> list[Op]:
    # Not the last, so that others know what should be there.
    index = rng.choice(first_deliveries(ops, "bob"))
    offset = ops[index].offset
    return [op._replace(text=text) if (op.what, op.who, op.offset) == ("received", "bob", offset) else op for op in ops]


def deliver_what_was_refused(rng: random.Random, ops: list[Op]) -> list[Op]:
    last = [op for op in ops if op.what == "received"][-1]
    refused = [Op("publish", "ann", text="no"), Op("refuse", "ann", text="no")]
    heard = [last._replace(who=who, offset=last.offset + 1, text="no") for who in present(ops)]
    return [*ops[:-1], *refused, *heard, ops[-1]]


def deliver_after_leaving(rng: random.Random, ops: list[Op]) -> list[Op] | None:
    heard = [op for op in ops if op.what == "received"][-1]
    if "cem" in present(ops):
        return [*ops[:-1], Op("left", "cem"), heard._replace(who="cem"), ops[-1]]
    return [*ops[:-1], heard._replace(who="cem"), ops[-1]]


def two_at_one_place(rng: random.Random, ops: list[Op]) -> list[Op]:
    return [Op("publish", "ann", text="late"), *replaced(rng, ops, "late")]


def answer_wrongly(rng: random.Random, ops: list[Op]) -> list[Op]:
    heard = {op.text for op in ops if op.what == "received"}
    answers = [index for index, op in enumerate(ops) if op.what == "acknowledge" and op.text in heard]
    index = rng.choice(answers)
    wrong = ops[index]._replace(offset=ops[index].offset + rng.choice((-1, 1)))
    # The last answer alone says how far the channel goes.
    if wrong.offset < 1 or wrong.offset > max(op.offset for op in ops if op.what == "received"):
        wrong = wrong._replace(offset=ops[index].offset, epoch=ops[index].epoch + 1)
    return [*ops[:index], wrong, *ops[index + 1 :]]


def answer_twice(rng: random.Random, ops: list[Op]) -> list[Op]:
    """The key was not known any more when it came again."""
    index = rng.choice([index for index, op in enumerate(ops) if op.what == "acknowledge"])
    again = ops[index]._replace(offset=ops[index].offset + 1)
    return [*ops[: index + 1], again, *ops[index + 1 :]]


def tell_a_gap_of_what_is_kept(rng: random.Random, ops: list[Op]) -> list[Op]:
    index = first_deliveries(ops, "bob")[-1]
    gap = Op("gap", "bob", ops[index].offset, ops[index].offset, "trimmed")
    cut = without(ops, "bob", ops[index].offset)
    return [*cut[:index], gap, *cut[index:]]


def gaps_told(ops: list[Op]) -> dict[int, int]:
    """Indexes of the gaps that say something new to one who never left, and what that one held then."""
    held, found = dict.fromkeys(MEMBERS, 0), {}
    for index, op in enumerate(ops):
        if op.what == "gap" and op.who != "cem" and op.offset > held[op.who]:
            found[index] = held[op.who]
        if op.what in ("received", "joined", "gap"):
            held[op.who] = max(held[op.who], op.offset)
        elif op.what == "begins anew":
            held[op.who] = op.offset
    return found


def tell_a_gap_wrongly(rng: random.Random, ops: list[Op]) -> list[Op] | None:
    gaps = [index for index, held in gaps_told(ops).items() if held + 2 <= ops[index].offset]
    if not gaps:
        return None
    index = rng.choice(gaps)
    return [*ops[:index], ops[index]._replace(epoch=gaps_told(ops)[index] + 2), *ops[index + 1 :]]


def tell_a_gap_as_lost(rng: random.Random, ops: list[Op]) -> list[Op] | None:
    gaps = list(gaps_told(ops))
    if not gaps:
        return None
    index = rng.choice(gaps)
    return [*ops[:index], ops[index]._replace(text="lost"), *ops[index + 1 :]]


def keep_a_gap_to_oneself(rng: random.Random, ops: list[Op]) -> list[Op] | None:
    gaps = list(gaps_told(ops))
    if not gaps:
        return None
    index = rng.choice(gaps)
    return [*ops[:index], *ops[index + 1 :]]


def step_back_an_epoch(rng: random.Random, ops: list[Op]) -> list[Op]:
    index = rng.choice(first_deliveries(ops, "bob"))
    return [*ops[:index], ops[index]._replace(epoch=ops[index].epoch - 1), *ops[index + 1 :]]


def say_reset(rng: random.Random, ops: list[Op]) -> list[Op] | None:
    returns = [index for index, op in enumerate(ops) if op.what == "resumed" and "live" in op.text]
    if not returns:
        return None
    index = rng.choice(returns)
    return [*ops[:index], ops[index]._replace(text=ops[index].text.replace("live", "reset")), *ops[index + 1 :]]


def forget_a_channel(rng: random.Random, ops: list[Op]) -> list[Op]:
    return [*ops, Op("forgotten", "bob")]


def come_back_to_what_was_left(rng: random.Random, ops: list[Op]) -> list[Op]:
    return [*ops, Op("unwanted", "cem", offset=1)]


def go_on_as_a_zombie(rng: random.Random, ops: list[Op]) -> list[Op]:
    return [*ops, Op("zombie", "bob", offset=1)]


# Not every run has a gap, or somebody who comes back: then the next seed is taken, and one of the first dozens has it.
SEEDS_MAX = 300
MUTATIONS: tuple[tuple[Mutation, Kind], ...] = (
    (lose_the_last, Kind.LOSS),
    (pass_over, Kind.SILENT_GAP),
    (withhold_what_was_not_acknowledged, Kind.SILENT_GAP),
    (swap, Kind.REORDERING),
    (repeat_at_a_new_offset, Kind.REPETITION),
    (invent, Kind.PHANTOM),
    (mix_up_channels, Kind.PHANTOM),
    (deliver_what_was_refused, Kind.PHANTOM),
    (deliver_after_leaving, Kind.PHANTOM),
    (two_at_one_place, Kind.CONFLICT),
    (answer_twice, Kind.MISPLACED),
    (tell_a_gap_of_what_is_kept, Kind.FALSE_GAP),
    (tell_a_gap_wrongly, Kind.FALSE_GAP),
    (tell_a_gap_as_lost, Kind.FALSE_GAP),
    (keep_a_gap_to_oneself, Kind.SILENT_GAP),
    (step_back_an_epoch, Kind.EPOCH),
    (say_reset, Kind.RESET),
    (forget_a_channel, Kind.FORGOTTEN),
    (come_back_to_what_was_left, Kind.UNWANTED),
    (go_on_as_a_zombie, Kind.ZOMBIE),
)


@pytest.mark.parametrize(("mutation", "kind"), MUTATIONS, ids=lambda value: getattr(value, "__name__", None))
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_each_fault_is_found_and_no_other(mutation: Mutation, kind: Kind, seed: int) -> None:
    for one in range(seed, seed + SEEDS_MAX):
        model = Model(one)
        ops = mutation(random.Random(one), model.run(70))
        if ops is not None:
            break
    assert ops is not None, f"none of {SEEDS_MAX} runs has anything to break"
    _, faults = judge(ops, model.log)
    assert set(by_kind(faults)) == {kind}, "\n".join(map(str, faults))
    # A gap that nobody tells of is as many faults as it has offsets.
    assert len(faults) == 1 or mutation is keep_a_gap_to_oneself, "\n".join(map(str, faults))
    assert faults[0].story, "its story is told"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_a_wrong_answer_is_found(seed: int) -> None:
    """Another offset, which is another message's, or another epoch."""
    model = Model(seed)
    _, faults = judge(answer_wrongly(random.Random(seed), model.run(40)), model.log)
    assert set(by_kind(faults)) <= {Kind.MISPLACED, Kind.EPOCH}
    assert len(faults) == 1, "\n".join(map(str, faults))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_what_everybody_lacks_is_found_by_its_answer(seed: int) -> None:
    model = Model(seed)
    _, faults = judge(lose_from_history(random.Random(seed), model.run(40)), model.log[:-1])
    assert set(by_kind(faults)) == {Kind.LOSS}
    assert {fault.member for fault in faults} >= {"ann", "bob", "cem"} - {"cem"}
    assert any("HISTORY" in fault.text for fault in faults)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_raw_repetitions_are_counted_and_are_no_fault(seed: int) -> None:
    model = Model(seed)
    ops = model.run(40)
    before, _ = judge(ops, model.log)
    rng = random.Random(seed)
    index = rng.choice(first_deliveries(ops, "bob"))
    after, faults = judge([*ops[: index + 1], ops[index], *ops[index + 1 :]], model.log)
    assert not faults
    assert after.counts()["raw_repetitions"] == before.counts()["raw_repetitions"] + 1
    assert after.counts()["delivered"] == before.counts()["delivered"]


def test_two_answers_for_one_place_are_found_when_nobody_heard_either() -> None:
    oracle = Oracle()
    book = oracle.book(CHANNEL)
    for content in ("m1", "m2"):
        book.publish(content, "ann")
        book.acknowledge(content, Position(1, 1))
    assert by_kind(oracle.verdict()) == {Kind.CONFLICT: 1}


def test_a_story_names_what_was_done_to_the_message_and_to_everybody() -> None:
    oracle = Oracle(clock=iter(range(100)).__next__)
    book = oracle.book(CHANNEL)
    ann, bob = book.reader("ann"), book.reader("bob")
    for reader in (ann, bob):
        reader.joined(Position(1, 0))
    book.publish("m1", "ann")
    oracle.note("SIGKILL router")
    book.acknowledge("m1", Position(1, 1))
    ann.received(Position(1, 1), "m1")
    (fault,) = oracle.verdict()
    assert (fault.kind, fault.member, fault.offset) == (Kind.LOSS, "bob", 1)
    text = str(fault)
    for part in ("bob joins", "ann publishes", "SIGKILL router", "ann is answered", "ann hears in epoch 1: 1 m1"):
        assert part in text, text
    assert book.reader("cem").misses() == 0
    assert bob.misses() == 1
