"""Our region's side of the bridge."""

import msgpack
import pytest

from router.log.bridge_source import Entry
from router.log.bridge_store import Dropped, Followed, Store, fits
from router.log.port import LogUnavailable, Position
from router.log.redis_keys import Keys
from tests.router.log.conftest import run
from tests.servers.redis import Server


def entry(id_: tuple[int, int], before: tuple[int, int]) -> Entry:
    return Entry(Position(*id_), Position(*before), b"")


@pytest.mark.parametrize(
    ("at", "id_", "before", "how"),
    [
        ((5, 3), (5, 4), (5, 3), "next"),
        ((5, 3), (5, 3), (5, 2), "old"),
        ((5, 3), (4, 9), (4, 8), "old"),
        ((5, 3), (5, 5), (5, 4), "missing"),
        ((5, 3), (7, 1), (5, 3), "next"),
        ((5, 3), (7, 1), (5, 9), "missing"),
        ((5, 3), (7, 1), (5, 1), "beyond"),
        ((5, 3), (7, 1), (0, 0), "beyond"),
        ((0, 0), (7, 1), (0, 0), "next"),
        ((0, 0), (7, 1), (6, 1), "missing"),
        # The same leader's, whose Redis came back without its last second.
        ((5, 3), (5, 4), (0, 0), "next"),
        ((5, 3), (5, 6), (5, 2), "next"),
        ((5, 3), (5, 4), (5, 1), "next"),
    ],
)
def test_what_an_entry_is_to_a_position(
    at: tuple[int, int], id_: tuple[int, int], before: tuple[int, int], how: str
) -> None:
    assert fits(Position(*at), entry(id_, before)) == how


def test_a_replica_that_is_missing_is_said(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        keys = Keys(prefix, shards=8)
        alone = Store(redis_server.url, keys, lambda said: 0, 0.2)
        followed = Store(redis_server.url, keys, lambda said: 1, 0.2)
        assert await alone.merge_bans({b"bob": b"\x93\x01\xa0\x02"}) == 1
        with pytest.raises(LogUnavailable):
            await followed.merge_bans({b"bob": b"\x93\x01\xa0\x03"})
        await alone.close()
        await followed.close()

    run(work())


def test_a_shard_is_where_it_was_placed_and_its_states(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        store = Store(redis_server.url, Keys(prefix, shards=8), lambda said: 0, 2.0)
        one = Followed(3, 9)
        await store.load([one], "eu")
        assert (one.at, one.states_at) == (Position(0, 0), b"0-0")
        assert not await store.place(one, b"x", "eu", Position(8, 4), b"77-1"), "no such copy was begun"
        assert await store.begin_copy([one], b"x") == [one]
        assert await store.place(one, b"x", "eu", Position(8, 4), b"77-1")
        assert not await store.place(one, b"x", "eu", Position(8, 5), b"77-2"), "it is over"
        assert await store.where([3]) == [(9, Position(8, 4))]
        again = Followed(3, 9)
        await store.load([again], "eu")
        assert (again.at, again.states_at) == (Position(8, 4), b"77-1")
        assert await store.begin_copy([Followed(3, 8)], b"y") == [], "it is a later leader's"
        assert await store.where([3]) == [(9, Position(8, 4))]
        assert not await store.undo(again, Position(7, 1), 10), "its bridge is empty"
        await store.close()

    run(work())


def test_states_of_a_leader_of_before_are_not_taken(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        keys = Keys(prefix, shards=8)
        store = Store(redis_server.url, keys, lambda said: 0, 2.0)
        one = Followed(3, 9)
        await store.begin_copy([one], b"x")
        await store.place(one, b"x", "eu", Position(8, 4), b"77-1")
        session, epoch = keys.shards[3] + b"s:x", keys.shards[3] + b"epoch"
        said = msgpack.packb(
            [[session, epoch], [b"0", b"oHELLO", b"", b"", b"1", b"0", b"0", b"0"]], use_bin_type=False
        )
        await store.repeat_states("eu", [(one, (b"78-1", b"s", said))])
        assert (one.at, one.states_at) == (Position(8, 4), b"78-1")
        late = Followed(3, 8)
        late.at, late.states_at = one.at, one.states_at
        await store.repeat_states("eu", [(late, (b"79-1", b"s", said)), (late, (b"79-2", b"s", said))])
        assert (late.at, late.states_at) == (None, b"78-1")
        behind = Followed(3, 9)
        behind.at, behind.states_at = one.at, b"77-1"
        await store.repeat_states("eu", [(behind, (b"79-1", b"s", said))])
        assert behind.at is None, "somebody else brought 78-1 here, and what came before 79-1 is not known"
        await store.repeat_states("eu", [(one, (b"78-1", b"s", said)), (one, (b"79-1", b"s", said))])
        assert (one.at, one.states_at) == (Position(8, 4), b"79-1"), "78-1 is passed over"
        await store.close()

    run(work())


def test_an_error_of_the_server_ends_the_connection(redis_server: Server, prefix: str) -> None:
    async def work() -> None:
        store = Store(redis_server.url, Keys(prefix, shards=8), lambda said: 0, 2.0)
        one, dropped = Followed(3, 9), Dropped()
        await store.begin_copy([one], b"x")
        name = store._keys.shards[3] + b"x"
        with pytest.raises(LogUnavailable):
            await store.restore(one, b"x", [(name, 0, b"no dump")], dropped)
        assert await store.remove(one, b"x", [name], dropped)
        assert await store.remove(one, b"x", [], dropped)
        assert not await store.remove(one, b"another", [name], dropped)
        assert not dropped
        await store.close()

    run(work())
