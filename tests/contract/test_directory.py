"""The directory port's promises (router/directory/port.py), on each side."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import pytest

from router.directory.port import (
    CLOCK_ALLOWANCE,
    KEY_BYTES_MAX,
    TTL_MIN_S,
    VALUE_BYTES_MAX,
    Change,
    Changes,
    Claim,
    Directory,
    Item,
    Lost,
    Misused,
    NodeEpoch,
    Result,
    Snapshot,
    Unavailable,
    Won,
    now,
)
from router.directory.sweep import sweep
from tests.contract.places import Place, stop_keeping
from tests.contract.running import run

WAIT_S = 30.0


def on_a_loop(test: Callable[[Place], Awaitable[None]]) -> Callable[[Place], None]:
    """Makes a test of a coroutine over `place`."""

    @functools.wraps(test)
    def wrapper(place: Place) -> None:
        run(place, lambda: test(place))

    return wrapper


async def claim(directory: Directory, key: str, expected: int, value: bytes | None) -> Result:
    [result] = await directory.transact([Claim(key, expected, value)])
    return result


async def won(directory: Directory, key: str, expected: int, value: bytes | None) -> int:
    """The revision of a claim that has to win."""
    result = await claim(directory, key, expected, value)
    assert isinstance(result, Won)
    return result.revision


async def collect(watch: AsyncGenerator[Changes | Snapshot, None], count: int) -> list[Change]:
    """The next so many changes of a watch."""
    found: list[Change] = []
    async with asyncio.timeout(WAIT_S):
        while len(found) < count:
            said = await anext(watch)
            assert isinstance(said, Changes)
            assert said.revision == said.changes[-1].revision
            found += said.changes
    assert len(found) == count
    return found


# -------------------------------------------------------------------------------------------------------------- claims


@on_a_loop
async def test_a_claim_wins_with_the_revision_it_expected_and_loses_otherwise_told_by_whom(place: Place) -> None:
    directory = await place.directory()
    first = await won(directory, "shards/1", 0, b"a")
    assert await claim(directory, "shards/1", 0, b"b") == Lost(first, b"a")
    second = await won(directory, "shards/1", first, b"b")
    assert second > first
    assert await claim(directory, "shards/1", first, b"c") == Lost(second, b"b")
    gone = await won(directory, "shards/1", second, None)
    assert gone > second
    assert await claim(directory, "shards/1", second, b"d") == Lost(0, None)
    assert await won(directory, "shards/1", 0, b"e") > gone


@on_a_loop
async def test_each_claim_of_a_batch_wins_or_loses_by_itself_in_its_order(place: Place) -> None:
    directory = await place.directory()
    taken = await won(directory, "sessions/1/x7", 0, b"other")
    results = await directory.transact([Claim(f"sessions/1/x{number}", 0, b"%d" % number) for number in range(300)])
    assert [number for number, one in enumerate(results) if isinstance(one, Lost)] == [7]
    assert results[7] == Lost(taken, b"other")
    snapshot = await directory.read("sessions/1/")
    assert len(snapshot.items) == 300
    for number, result in enumerate(results):
        if isinstance(result, Won):
            assert snapshot.items[f"sessions/1/x{number}"] == Item(b"%d" % number, result.revision)


@on_a_loop
async def test_of_two_claims_of_one_key_in_one_batch_the_first_wins(place: Place) -> None:
    directory = await place.directory()
    one, other, third = await directory.transact([Claim("k", 0, b"1"), Claim("k", 0, b"2"), Claim("l", 0, b"3")])
    assert isinstance(one, Won)
    assert other == Lost(one.revision, b"1")
    assert isinstance(third, Won)


@on_a_loop
async def test_of_many_directories_exactly_one_wins_a_key(place: Place) -> None:
    directories = [await place.directory() for _ in range(4)]
    claims = [claim(directories[number % 4], "shards/9", 0, b"%d" % number) for number in range(40)]
    results = await asyncio.gather(*claims)
    [winner] = [number for number, one in enumerate(results) if isinstance(one, Won)]
    item = (await directories[0].read("shards/9")).items["shards/9"]
    assert item == Item(b"%d" % winner, results[winner].revision)
    assert all(one == Lost(item.revision, item.value) for one in results if isinstance(one, Lost))


@on_a_loop
async def test_a_claim_for_a_node_wins_only_while_that_epoch_lives(place: Place) -> None:
    directory = await place.directory()
    registration = await directory.register("a", b"", 10)
    [result] = await directory.transact([Claim("shards/1", 0, b"a", registration.identity)])
    assert isinstance(result, Won)
    former = registration.identity
    await registration.close()
    again = await directory.register("a", b"", 10)
    expected = result.revision
    results = await directory.transact(
        [
            Claim("shards/1", expected, b"dead", former),
            Claim("shards/2", 0, b"dead", former),
            Claim("shards/3", 0, b"nobody", NodeEpoch("nobody", 1)),
            Claim("shards/1", 0, b"slow", former),
            Claim("shards/1", expected, None, former),
            Claim("shards/1", expected, b"alive", again.identity),
        ]
    )
    assert results[:5] == [
        Lost(expected, b"a", alive=False),
        Lost(0, None, alive=False),
        Lost(0, None, alive=False),
        Lost(expected, b"a", alive=True),
        Lost(expected, b"a", alive=False),
    ]
    assert isinstance(results[5], Won)
    await again.close()


@on_a_loop
async def test_values_may_be_any_bytes_up_to_their_limit(place: Place) -> None:
    directory = await place.directory()
    values = [b"", bytes(range(256)), b"x" * VALUE_BYTES_MAX]
    results = await directory.transact([Claim(f"k/{number}", 0, value) for number, value in enumerate(values)])
    assert all(isinstance(one, Won) for one in results)
    # More than one of etcd's requests may have.
    assert all(
        isinstance(one, Won)
        for one in await directory.transact([Claim(f"m/{number}", 0, values[2]) for number in range(40)])
    )
    assert [item.value for item in (await directory.read("k/")).items.values()] == values
    assert [item.value for item in (await directory.read("m/")).items.values()] == [values[2]] * 40


@on_a_loop
async def test_no_claims_have_no_results(place: Place) -> None:
    assert await (await place.directory()).transact([]) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Claim("", 0, b""), "no key"),
        (Claim("a\0b", 0, b""), "no key"),
        (Claim("k" * (KEY_BYTES_MAX + 1), 0, b""), "no key"),
        (Claim("k", -1, b""), "revision -1"),
        (Claim("k", 0, None), "not there"),
        (Claim("k", 0, b"x" * (VALUE_BYTES_MAX + 1)), "at most"),
        (Claim("nodes/a", 0, b""), "registrations"),
        (Claim("k", 0, b"", NodeEpoch("a", 0)), "epoch 0"),
    ],
)
def test_a_claim_that_makes_no_sense_is_refused_and_nothing_of_its_batch_is_done(
    place: Place, wrong: Claim, said: str
) -> None:
    async def body() -> None:
        directory = await place.directory()
        with pytest.raises(Misused, match=said):
            await directory.transact([Claim("right", 0, b""), wrong])
        assert (await directory.read("right")).items == {}

    run(place, body)


# ------------------------------------------------------------------------------------------------------------- reading


@on_a_loop
async def test_a_prefix_is_read_whole_at_one_revision_in_order(place: Place) -> None:
    directory = await place.directory()
    names = [f"sessions/{number:05}" for number in range(4_500)]
    await directory.transact([Claim(name, 0, name.encode()) for name in names])
    last = await won(directory, "session", 0, b"not under the prefix")
    await won(directory, "sessions0", 0, b"nor this")
    snapshot = await directory.read("sessions/")
    assert snapshot.revision > last
    assert list(snapshot.items) == names
    assert all(item.value == name.encode() for name, item in snapshot.items.items())
    assert (await directory.read("none/")).items == {}


@on_a_loop
async def test_pages_follow_one_another(place: Place) -> None:
    directory = await place.directory()
    await directory.transact([Claim(f"p/{number}", 0, b"") for number in range(5)])
    await won(directory, "q", 0, b"")
    first = await directory.page("p/", "", 2)
    assert list(first.items) == ["p/0", "p/1"]
    await won(directory, "p/1", first.items["p/1"].revision, None)
    assert list((await directory.page("p/", "p/1", 2)).items) == ["p/2", "p/3"]
    assert list((await directory.page("p/", "p/3", 2)).items) == ["p/4"]
    assert (await directory.page("p/", "p/4", 2)).items == {}


@on_a_loop
async def test_what_one_directory_did_another_reads_at_once(place: Place) -> None:
    one, other = await place.directory(), await place.directory()
    revision = 0
    for number in range(20):
        revision = await won(one, "k", revision, b"%d" % number)
        assert (await other.read("k")).items["k"] == Item(b"%d" % number, revision)


# -------------------------------------------------------------------------------------------------------- registration


@on_a_loop
async def test_a_registered_node_is_there_under_its_epoch_until_it_closes(place: Place) -> None:
    directory, other = await place.directory(), await place.directory()
    before = now()
    registration = await directory.register("a", b"tcp://1", 10)
    snapshot = await other.read("nodes/")
    assert snapshot.items == {"nodes/a": Item(b"tcp://1", registration.identity.epoch)}
    assert registration.identity.node == "a"
    bound = registration.held_until()
    assert before + 10 * (1 - CLOCK_ALLOWANCE) <= bound < now() + 10
    assert not registration.lost.is_set()
    async with aclosing(other.watch("nodes/", snapshot.revision)) as watch:
        await registration.close()
        [change] = await collect(watch, 1)
    assert change.key == "nodes/a"
    assert change.value is None
    assert registration.lost.is_set()
    assert registration.held_until() == 0.0
    await registration.close()


@on_a_loop
async def test_a_node_that_registers_again_has_a_higher_epoch_and_the_former_life_is_over(place: Place) -> None:
    one, other = await place.directory(), await place.directory()
    former = await one.register("a", b"1", TTL_MIN_S)
    seen = (await one.read("nodes/")).revision
    latter = await other.register("a", b"2", 10)
    assert latter.identity.epoch > former.identity.epoch
    assert (await one.read("nodes/")).items == {"nodes/a": Item(b"2", latter.identity.epoch)}
    async with aclosing(one.watch("nodes/", seen)) as watch:
        changes = await collect(watch, 2)
    assert [change.value for change in changes] == [None, b"2"]
    async with asyncio.timeout(WAIT_S):
        await former.lost.wait()
    assert former.held_until() == 0.0
    await former.close()
    assert latter.held_until() > now()
    assert list((await one.read("nodes/")).items) == ["nodes/a"]
    await latter.close()


@on_a_loop
async def test_a_lease_that_nobody_keeps_ends_and_one_that_is_kept_does_not(place: Place) -> None:
    directory, other = await place.directory(), await place.directory()
    kept = await other.register("kept", b"", 5)
    left = await directory.register("left", b"", TTL_MIN_S)
    revision = (await other.read("nodes/")).revision
    first_bound = kept.held_until()
    await stop_keeping(left)
    bound = left.held_until()
    async with aclosing(other.watch("nodes/", revision)) as watch:
        [change] = await collect(watch, 1)
    assert now() > bound, "the lease ended before its bound"
    assert change == Change("nodes/left", None, change.revision)
    [result] = await directory.transact([Claim("shards/1", 0, b"", left.identity)])
    assert result == Lost(0, None, alive=False)
    await asyncio.sleep(max(0.0, first_bound + 1 - now()))  # a time that would end it is what is tested
    assert kept.held_until() > now()
    assert not kept.lost.is_set()
    assert list((await directory.read("nodes/")).items) == ["nodes/kept"]
    await kept.close()


@pytest.mark.parametrize(
    ("node", "value", "ttl_s", "said"),
    [
        ("", b"", 10, "no key"),
        ("a/b", b"", 10, "no name of a node"),
        ("a", b"", TTL_MIN_S - 1, "cannot be kept"),
        ("a", b"", 100_000, "cannot be kept"),
        ("a", b"x" * (VALUE_BYTES_MAX + 1), 10, "at most"),
    ],
)
def test_a_registration_that_makes_no_sense_is_refused(
    place: Place, node: str, value: bytes, ttl_s: int, said: str
) -> None:
    async def body() -> None:
        directory = await place.directory()
        with pytest.raises(Misused, match=said):
            await directory.register(node, value, ttl_s)

    run(place, body)


# ------------------------------------------------------------------------------------------------------------- watches


@on_a_loop
async def test_a_watch_tells_all_changes_after_its_revision_in_order_and_nothing_else(place: Place) -> None:
    directory = await place.directory()
    before = await won(directory, "w/0", 0, b"before")
    wanted = [Change("w/1", b"1", await won(directory, "w/1", 0, b"1"))]
    async with aclosing(directory.watch("w/", before)) as watch:
        assert await collect(watch, 1) == wanted
        first = await won(directory, "w/2", 0, b"")
        await won(directory, "v/2", 0, b"elsewhere")
        second = await won(directory, "w/2", first, b"2")
        third = await won(directory, "w/1", wanted[0].revision, None)
        assert await collect(watch, 3) == [
            Change("w/2", b"", first),
            Change("w/2", b"2", second),
            Change("w/1", None, third),
        ]


@on_a_loop
async def test_a_watch_from_a_read_misses_nothing_that_many_write(place: Place) -> None:
    directories = [await place.directory() for _ in range(3)]
    snapshot = await directories[0].read("w/")
    async with aclosing(directories[0].watch("w/", snapshot.revision)) as watch:
        writing = asyncio.gather(
            *(
                directories[number % 3].transact([Claim(f"w/{number}/{one}", 0, b"") for one in range(10)])
                for number in range(60)
            )
        )
        found = await collect(watch, 600)
        await writing
    assert {change.key for change in found} == {f"w/{number}/{one}" for number in range(60) for one in range(10)}
    revisions = [change.revision for change in found]
    assert revisions == sorted(revisions)


@on_a_loop
async def test_a_watch_from_before_what_is_forgotten_gives_a_snapshot_and_goes_on(place: Place) -> None:
    directory = await place.directory()
    first = await won(directory, "w/1", 0, b"1")
    gone = await won(directory, "w/2", 0, b"2")
    await won(directory, "w/2", gone, None)
    last = await won(directory, "w/3", 0, b"3")
    await place.compact()
    async with aclosing(directory.watch("w/", first - 1)) as watch:
        async with asyncio.timeout(WAIT_S):
            said = await anext(watch)
        assert isinstance(said, Snapshot)
        assert said.revision >= last
        assert said.items == {"w/1": Item(b"1", first), "w/3": Item(b"3", last)}
        revision = await won(directory, "w/1", first, b"4")
        assert await collect(watch, 1) == [Change("w/1", b"4", revision)]


@on_a_loop
async def test_an_idle_watch_is_not_disturbed_and_ends_when_it_is_closed(place: Place) -> None:
    directory = await place.directory()
    revision = (await directory.read("w/")).revision
    async with aclosing(directory.watch("w/", revision)) as watch:
        waiting = asyncio.create_task(anext(watch))
        other = await directory.register("b", b"", TTL_MIN_S)
        async with aclosing(directory.watch("nodes/", revision)) as nodes:
            await collect(nodes, 1)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        await other.close()


@on_a_loop
async def test_a_watch_that_waits_ends_with_its_directory(place: Place) -> None:
    directory, other = await place.directory(), await place.directory()
    revision = (await directory.read("w/")).revision
    async with aclosing(directory.watch("w/", revision)) as watch:
        first = await won(other, "w/1", 0, b"")
        await collect(watch, 1)
        waiting = asyncio.create_task(anext(watch))
        second = await won(other, "w/1", first, b"")
        async with asyncio.timeout(WAIT_S):
            assert (await waiting).revision == second
            waiting = asyncio.create_task(anext(watch))
            await other.read("w/")
            await directory.close()
            with pytest.raises(Unavailable, match="closed"):
                await waiting


# --------------------------------------------------------------------------------------------------------------- sweep


@on_a_loop
async def test_a_sweep_removes_what_dead_epochs_left_and_nothing_else(place: Place) -> None:
    directory = await place.directory()
    dead = await directory.register("dead", b"", 10)
    living = await directory.register("living", b"", 10)
    owners = {b"dead": dead.identity, b"living": living.identity, b"nobody": None}
    claims = [Claim(f"sessions/{n:03}", 0, list(owners)[n % 3]) for n in range(450)]
    results = await directory.transact(claims)
    await dead.close()
    changed = results[0]
    assert isinstance(changed, Won)

    def owner(key: str, value: bytes) -> NodeEpoch | None:
        return owners[value]

    swept = await sweep(directory, "sessions/", owner, 100_000)
    assert swept == (450, 150)
    left = (await directory.read("sessions/")).items
    assert {item.value for item in left.values()} == {b"living", b"nobody"}
    assert len(left) == 300
    assert await sweep(directory, "sessions/", owner, 100_000) == (300, 0)
    with pytest.raises(Misused):
        await sweep(directory, "sessions/", owner, 0)
    await living.close()


# -------------------------------------------------------------------------------------------------------------- ending


@on_a_loop
async def test_it_says_since_when_it_answers_and_a_closed_one_refuses(place: Place) -> None:
    directory = await place.directory()
    await directory.read("k")
    reach = directory.reachable()
    assert reach.answers
    assert reach.since <= now()
    await directory.read("k")
    assert directory.reachable() == reach
    await directory.close()
    with pytest.raises(Unavailable, match="closed") as raised:
        await directory.transact([Claim("k", 0, b"")])
    assert raised.value.nothing_done
    with pytest.raises(Unavailable, match="closed"):
        await directory.read("k")
