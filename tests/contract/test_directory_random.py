"""Many clients claim and watch at random: all they are told is one history, on each side; and the checker can fail."""

import pytest

from router.directory.port import Change, Changes, Claim, Item, Lost, Snapshot, Won
from tests.contract.directory_history import MARK, History, Seen, Told, Traffic
from tests.contract.places import Place
from tests.contract.running import run

WINS = 400


def test_all_that_clients_are_told_is_one_history(place: Place) -> None:
    async def body() -> None:
        traffic = Traffic(place, 1)
        await traffic.start()
        await traffic.progress(WINS)
        history = await traffic.stop()
        assert history.problems() == []
        assert sum(isinstance(told.result, Lost) for told in history.claims) > WINS / 20
        assert all(told.result is not None for told in history.claims)

    run(place, body)


def test_it_is_one_history_as_well_when_its_beginning_is_forgotten_meanwhile(place: Place) -> None:
    async def body() -> None:
        traffic = Traffic(place, 3)
        await traffic.start()
        for _ in range(3):
            await traffic.progress(WINS // 4)
            await place.compact(await traffic.remember())
        history = await traffic.stop()
        assert history.problems() == []

    run(place, body)


# ------------------------------------------------------------------------------------------------- the checker can fail


def sound() -> History:
    first = Told(Claim("k", 0, b"a"), 0, Won(2))
    second = Told(Claim("k", 2, b"b"), 2, Won(3))
    loser = Told(Claim("k", 2, b"c"), 2, Lost(3, b"b"))
    gone = Told(Claim("k", 3, None), 3, Won(4))
    truth = [Change("k", b"a", 2), Change("k", b"b", 3), Change("k", None, 4), Change(MARK, b"", 5)]
    watch = Seen(1, [Changes(2, (truth[0],)), Changes(5, tuple(truth[1:]))])
    return History([first, second, loser, gone], [watch], 4, 3, truth=truth)


def test_a_sound_history_passes() -> None:
    assert sound().problems() == []


@pytest.mark.parametrize(
    ("number", "told", "said"),
    [
        (2, Told(Claim("k", 2, b"b"), 2, Won(3)), "two winners"),
        (1, Told(Claim("k", 2, b"b"), 3, Won(3)), "before it was asked"),
        (1, Told(Claim("k", 1, b"b"), 2, Won(3)), "won after 2"),
        (1, Told(Claim("k", 2, b"x"), 2, Won(3)), "won after 2"),
        (1, Told(Claim("k", 2, b"b"), 2, Lost(4, b"b")), "who had it lost"),
        (2, Told(Claim("k", 0, b"c"), 2, Lost(3, b"x")), "never was"),
        (2, Told(Claim("k", 3, b"c"), 2, Lost(3, b"b")), "against what it expected"),
        (2, Told(Claim("k", 0, b"c"), 3, Lost(2, b"a")), "was over"),
        (2, Told(Claim("k", 2, b"c"), 7, Won(9)), "nothing was changed"),
    ],
)
def test_a_claim_that_cannot_be_is_found(number: int, told: Told, said: str) -> None:
    history = sound()
    history.claims[number] = told
    assert said in "\n".join(history.problems())


WATCHED = tuple(sound().truth)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (Changes(5, WATCHED[2:]), "told"),
        (Changes(5, WATCHED), "told"),
        (Changes(5, WATCHED[1:3] + WATCHED[2:]), "told"),
        (Snapshot(5, {}), "not what was there"),
        (Snapshot(2, {"k": Item(b"a", 2)}), "went back"),
    ],
)
def test_a_watch_with_a_gap_or_a_repetition_is_found(said: Changes | Snapshot, why: str) -> None:
    history = sound()
    history.watches[0].said[1] = said
    assert why in "\n".join(history.problems())
