"""What is planted between a node and the oracle is found, in rounds as those of faults: clients or a log that lie."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.chaos import cohorts
from tests.chaos.cohorts import Tally
from tests.chaos.habits import Habits
from tests.chaos.link import ACK, Link
from tests.chaos.oracle import Kind, Position, Reader
from tests.chaos.rounds import HABITS, MOVING, SECRET, Start, marks, one_round
from tests.chaos.talkers import Talker
from tests.chaos.world import World

COHORTS = 10
LAST_WORDS_S = 5.0
"""What is lost for good is not waited for."""
STRUCK = 15
FURTHER = 3

pytestmark = marks


def swallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message in each talker's life comes to nobody."""
    heard = dict[str, int]()
    on_message = Talker._on_message

    def swallowing(talker: Talker, link: Link, frame: list[Any]) -> None:
        heard[talker.name] = heard.get(talker.name, 0) + 1
        if heard[talker.name] != STRUCK:
            on_message(talker, link, frame)

    monkeypatch.setattr(Talker, "_on_message", swallowing)


def repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message in each talker's life is sent twice over its connection."""
    heard = dict[str, int]()
    on_message = Talker._on_message

    def repeating(talker: Talker, link: Link, frame: list[Any]) -> None:
        heard[talker.name] = heard.get(talker.name, 0) + 1
        for _ in range(2 if heard[talker.name] == STRUCK else 1):
            on_message(talker, link, frame)

    monkeypatch.setattr(Talker, "_on_message", repeating)


def stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """LEAVE is answered, and nothing is left."""

    def answering(talker: Talker, link: Link, channel: str) -> None:
        talker._changed_s[channel] = talker._left_s[channel] = time.monotonic()
        talker._left(channel)

    monkeypatch.setattr(Talker, "_leave", answering)


def lose_acknowledgements(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are said, and never come to the gateway."""
    send = Link.send

    def sending(link: Link, *frame: Any) -> None:
        if frame[0] != ACK:
            send(link, *frame)

    monkeypatch.setattr(Link, "send", sending)


def take_more_for_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway goes on behind a few messages that its client never acknowledged."""
    begins_anew = Reader.begins_anew

    def further_back(reader: Reader) -> None:
        if reader.acked is not None and reader.acked.offset - FURTHER > reader._entered:
            reader.acked = Position(reader.acked.epoch, reader.acked.offset - FURTHER)
        begins_anew(reader)

    monkeypatch.setattr(Reader, "begins_anew", further_back)


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (swallow, Kind.SILENT_GAP),
        (repeat, Kind.REPETITION),
        (stay, Kind.UNWANTED),
        (lose_acknowledgements, Kind.REPETITION),
        (take_more_for_acknowledged, Kind.SILENT_GAP),
    ],
)
def test_what_happens_on_the_way_is_found(
    holdfast: Start, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], kind: Kind
) -> None:
    habits = replace(HABITS, pause_s=0.02, leaves=5, breaks=5, forgets=50, acks_last=True, acks_every=10)
    world = World(holdfast("--workers", "2"))
    plant(monkeypatch)
    assert f"{kind} in seed " in found_by(monkeypatch, world, "nothing", habits)


def cut_the_log(log: Path) -> None:
    """The last half of what it has written and answered is not there any more."""
    last = max(log.rglob("segment-*.log"))
    with last.open("r+b") as file:
        file.truncate(last.stat().st_size // 2)


def forget_channels(log: Path) -> None:
    """Sessions are stored without the groups that they are in."""
    (path,) = log.rglob("*.sqlite")
    with sqlite3.connect(path) as store:
        store.execute("UPDATE sessions SET channels = ?", (msgpack.packb({}),))
    store.close()


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [(cut_the_log, Kind.RESET), (forget_channels, Kind.FORGOTTEN)],
)
def test_what_a_dead_node_lost_is_found(
    holdfast: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], kind: Kind
) -> None:
    log = tmp_path / "log"
    node = holdfast("--workers", "2", HOLDFAST_AUTH_SECRET=SECRET, HOLDFAST_LOG_DIRECTORY=str(log))
    node.expect_lost()
    world = World(node, log=log)
    start_again = node.start_again

    def start_spoilt() -> None:
        spoil(log)
        start_again()

    monkeypatch.setattr(node, "start_again", start_spoilt)
    assert f"{kind} in seed " in found_by(monkeypatch, world, "node", MOVING, secret=SECRET)


def found_by(monkeypatch: pytest.MonkeyPatch, world: World, fault: str, habits: Habits, **of_cohort: Any) -> str:
    """What a round of a few cohorts has to complain of."""
    monkeypatch.setattr(cohorts, "SETTLE_S", LAST_WORDS_S)
    return asyncio.run(one_round(world, fault, 1, habits, Tally(), COHORTS, **of_cohort))
