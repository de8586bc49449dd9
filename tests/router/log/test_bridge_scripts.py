"""The scripts of the bridge, one by one, inside a real server."""

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from router.log.bridge_scripts import (
    BEGIN_COPY,
    COPY_CHANNEL,
    COPY_KEY,
    FENCE_BRIDGED,
    HAS_STATE,
    MERGE_BAN,
    PLACE,
    UNDO,
    WHERE,
    append_bridged,
    repeat,
)
from router.log.redis_scripts import APPEND, Script
from tests.servers.redis import Server

ENTRIES = 8


class Shard:
    """A shard, spoken to through its scripts."""

    def __init__(self, server: Server, prefix: str) -> None:
        self._server = server
        self.start = prefix + "{h7}:"
        self.epoch = self.start + "epoch"

    def place(self, leader: int, at: str) -> Any:
        """A copy that nobody disturbs."""
        self.do(BEGIN_COPY, f"{leader:020}", "a copy")
        return self.do(PLACE, "a copy", f"{leader:020}", at, "states:eu", "0-0")

    def do(self, script: Script, *args: Any, keys: tuple[str, ...] = ()) -> Any:
        names = keys or (self.epoch,)
        return self._server.do("EVAL", script.text, len(names), *names, *args)

    def append(
        self, epoch: int, batch: int, *ids: str, force: int = 0, script: Script | None = None, body: str = ""
    ) -> Any:
        records = [part for one in ids for part in (one, "v" + one + body)]
        args = (f"{epoch:020}", batch, 50_000, 50_000, 1000, f"k{epoch}-{batch}", "", 10, 100_000, len(ids))
        keys = [self.start + name for name in ("epoch", "keys", "tail", "global", "c:group:a")]
        return self.do(script or append_bridged(ENTRIES), *args, *records, force, keys=tuple(keys))

    def entries(self) -> list[tuple[bytes, bytes, bytes | None]]:
        """Id, what it was called with, and the one before."""
        found = self._server.do("XRANGE", self.start + "bridge", "-", "+")
        return [
            (id_, fields[b"a"], fields.get(b"b"))
            for id_, fields in (
                (id_, fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True)))
                for id_, fields in found
            )
        ]

    def newest(self) -> bytes:
        [(_, fields)] = self._server.do("XREVRANGE", self.start + "bridge", "+", "-", "COUNT", 1)
        return bytes(fields[b"a"] if isinstance(fields, dict) else fields[1])

    def ids(self) -> list[str]:
        return [one[0].decode() for one in self._server.do("XRANGE", self.start + "c:group:a", "-", "+")]

    def last(self) -> str:
        said = self._server.do("XINFO", "STREAM", self.start + "c:group:a")
        return str(said[b"last-generated-id"].decode() if b"last-generated-id" in said else said["last-generated-id"])

    def at(self) -> str:
        return str(self.do(WHERE)[1].decode())

    def keys(self) -> list[bytes]:
        found = self._server.do("XRANGE", self.start + "keys", "-", "+")
        return [next(iter(fields.values())) if isinstance(fields, dict) else fields[1] for _, fields in found]


@pytest.fixture
def here(redis_server: Server, prefix: str) -> Shard:
    return Shard(redis_server, prefix)


@pytest.fixture
def there(redis_server: Server, prefix: str) -> Shard:
    return Shard(redis_server, prefix + "2:")


def test_a_batch_is_on_the_bridge_under_its_number_with_all_it_was_called_with(here: Shard) -> None:
    assert here.append(5, 1, "5-1", "5-2") == 1
    assert here.append(5, 2, "5-3") == 2
    assert here.append(5, 2, "5-3") == 2, "the same again"
    assert here.append(5, 4, "5-9") == 2, "one is missing"
    (first, called, before), (second, _, none) = here.entries()
    assert (first, second, before, none) == (b"5-1", b"5-2", b"0-0", None)
    keys, args = msgpack.unpackb(called, raw=True)
    assert keys[4].endswith(b"}:c:group:a")
    assert args[1] == b"1"
    assert args[-5:] == [b"5-1", b"v5-1", b"5-2", b"v5-2", b"0"]
    assert here.at() == "5-2"


def test_the_first_batch_of_an_epoch_names_the_one_before(here: Shard) -> None:
    here.append(5, 1, "5-1")
    here.append(5, 2, "5-2")
    assert here.do(FENCE_BRIDGED, f"{7:020}") == [b"", b"5-2"]
    assert here.do(FENCE_BRIDGED, f"{8:020}") == [b"", b"5-2"], "nothing was appended in between"
    known, at = here.do(FENCE_BRIDGED, f"{6:020}")
    assert (int(known), at) == (8, b"5-2")
    assert here.append(5, 3, "5-3") == -1
    here.append(8, 1, "8-1")
    assert here.entries()[-1][0::2] == (b"8-1", b"5-2")
    assert here.append(8, 9, "8-9", force=1) == 9
    assert here.entries()[-1][0::2] == (b"8-9", b"8-1")


def test_an_epoch_that_the_server_forgot_goes_on_after_its_own_batches(here: Shard) -> None:
    here.append(5, 1, "5-1")
    here.place(5, "7-3")
    assert here.do(FENCE_BRIDGED, f"{7:020}", "who") == [b"", b"7-3"]
    assert here.at() == "7-3"
    assert here.append(7, 3, "7-3") == 3, "it is there"
    assert here.append(7, 4, "7-4") == 4
    assert here.entries()[-1][0::2] == (b"7-4", None)


def test_states_that_say_the_same_are_found(redis_server: Server, here: Shard) -> None:
    states = here.start + "states"
    for number in range(250):
        redis_server.do("XADD", states, "*", "k", "s", "a", f"said {number}")
    for said, has in (("said 0", 1), ("said 99", 1), ("said 249", 1), ("said 250", 0)):
        assert here.do(HAS_STATE, said, keys=(states,)) == has
    assert here.do(HAS_STATE, "said 250", "said 3", keys=(states,)) == 1
    assert here.do(HAS_STATE, "said", keys=(states + "2",)) == 0


def test_what_is_appended_is_what_is_appended_without_a_bridge(here: Shard, there: Shard) -> None:
    for shard, script in ((here, None), (there, APPEND)):
        shard.append(5, 1, "5-1", "5-2", script=script)
        shard.append(6, 1, "6-1", script=script)
    assert here.ids() == there.ids()
    assert here.keys() == there.keys()


def test_a_bridge_keeps_so_many_entries(redis_server: Server, prefix: str, here: Shard) -> None:
    for batch in range(1, 300):
        here.append(5, batch, f"5-{batch}")
    assert ENTRIES <= len(here.entries()) <= ENTRIES + 100


def test_a_bridge_keeps_so_many_bytes(here: Shard, there: Shard) -> None:
    bound = 27_000
    script, again = append_bridged(1000, bound), repeat(1000, bound)
    for batch in range(1, 160):
        size = 100 + batch % 7 * 30
        at = there.at()
        here.append(5, batch, f"5-{batch}", body="x" * size, script=script)
        there.do(again, here.newest(), at, f"{5:020}")
    for shard in (here, there):
        kept = sum(len(said) for _, said, _ in shard.entries())
        assert bound * 8 / 9 <= kept < bound + 10 * 700
    assert here.entries() == there.entries()
    for batch in range(160, 180):
        here.append(5, batch, f"5-{batch}", body="x" * bound, script=script)
    assert len(here.entries()) == 9, "however large"
    here.place(9, "8-17")
    here.append(9, 1, "9-1", script=script)
    assert len(here.entries()) == 1


def test_an_entry_is_repeated_once_and_in_its_place(here: Shard, there: Shard) -> None:
    # What is repeated goes to the keys it names: here there are two names for one server's shards.
    here.append(5, 1, "5-1")
    here.append(5, 2, "5-2")
    (_, one, _), (_, two, _) = here.entries()
    script = repeat(ENTRIES)
    assert there.do(script, two, "5-1", f"{5:020}") == b"0-0", "one is missing"
    assert there.do(script, one, "0-0", f"{5:020}") == b"5-1"
    assert there.do(script, one, "0-0", f"{5:020}") == b"5-1", "again"
    there.do(FENCE_BRIDGED, f"{6:020}")
    assert there.do(script, two, "5-1", f"{5:020}") == b"", "a deposed leader's"
    assert there.do(script, two, "5-1", f"{6:020}") == b"5-2", "what the next one has of it"
    assert there.at() == "5-2"
    assert [entry[0] for entry in there.entries()] == [b"5-1", b"5-2"]
    assert [entry[1] for entry in there.entries()] == [one, two]


def test_what_is_taken_back_is_as_if_it_had_never_been(here: Shard) -> None:
    here.append(5, 1, "5-1", "5-2")
    here.append(5, 2, "5-3")
    here.append(6, 1, "6-1", "6-2")
    key = (here.start + "c:group:a").encode()
    assert here.do(UNDO, "5-1", f"{7:020}") == [b"5-2", key, b"6-1", key, b"6-2"]
    assert (here.ids(), here.last(), here.at()) == (["5-1", "5-2", "5-3"], "5-3", "5-2")
    assert here.do(UNDO, "5-1", f"{7:020}") == [b"5-1", key, b"5-3"]
    assert here.do(UNDO, "5-1", f"{7:020}") == [b"5-1"]
    assert (here.ids(), here.last(), here.at()) == (["5-1", "5-2"], "5-2", "5-1")
    assert here.keys() == [b"k5-1"]
    assert here.append(7, 1, "7-1") == 1
    assert here.entries()[-1][0::2] == (b"7-1", b"5-1")
    assert here.ids() == ["5-1", "5-2", "7-1"]
    assert here.do(UNDO, "0-0", f"{6:020}") == [], "of a later leader's nothing is"


def test_a_last_position_outlives_what_is_taken_back_after_it(redis_server: Server, here: Shard) -> None:
    here.append(5, 1, "5-1")
    here.append(5, 2, "5-2")
    for id_ in ("5-1", "5-2"):  # too old
        redis_server.do("XDEL", here.start + "c:group:a", id_)
    here.append(6, 1, "6-1")
    here.append(6, 2, "6-2")
    here.do(UNDO, "5-2", f"{7:020}")
    here.do(UNDO, "5-2", f"{7:020}")
    assert (here.ids(), here.last(), here.at()) == ([], "5-2", "5-2")


def test_a_channel_that_only_this_region_knew_is_not_known_any_more(redis_server: Server, here: Shard) -> None:
    here.append(5, 1, "5-1")
    here.do(UNDO, "0-0", f"{7:020}")
    assert here.at() == "0-0"
    assert redis_server.do("EXISTS", here.start + "c:group:a", here.start + "bridge") == 0


def test_a_bridge_that_does_not_reach_back_says_so(redis_server: Server, here: Shard) -> None:
    here.append(5, 1, "5-1")
    here.append(5, 2, "5-2")
    redis_server.do("XTRIM", here.start + "bridge", "MAXLEN", 1)
    assert here.do(UNDO, "0-0", f"{7:020}")[0] == b"5-1"
    assert here.do(UNDO, "0-0", f"{7:020}") == [b" "]


def test_a_shard_is_placed_anew(here: Shard) -> None:
    here.append(5, 1, "5-1")
    assert here.place(4, "9-9") == 0
    assert here.place(9, "8-17") == 1
    assert here.at() == "8-17"
    assert here.entries() == []
    here.append(9, 1, "9-1")
    assert here.entries()[0][0::2] == (b"9-1", b"8-17")


def test_a_copy_takes_nothing_from_a_leader_of_before_and_leaves_the_position(here: Shard) -> None:
    here.append(5, 1, "5-1")
    here.append(5, 2, "5-2")
    assert here.do(BEGIN_COPY, f"{4:020}", "a copy") == 0, "a later one leads here"
    assert here.do(BEGIN_COPY, f"{5:020}", "a copy") == 1
    assert here.append(5, 3, "5-3") == 3, "it is that leader's"
    assert here.do(BEGIN_COPY, f"{7:020}", "a copy") == 1
    assert here.at() == "5-3"
    assert here.append(5, 4, "5-4") == -1


def test_a_copy_is_over_when_anybody_else_changes_the_shard(here: Shard, there: Shard) -> None:
    here.append(5, 1, "5-1")
    [(_, entry, _)] = here.entries()
    key = there.start + "s:x"
    changes: dict[str, tuple[int, Callable[[], Any]]] = {
        "repeats": (5, lambda: there.do(repeat(ENTRIES), entry, "0-0", f"{5:020}")),
        "takes back": (5, lambda: there.do(UNDO, "0-0", f"{5:020}")),
        "leads": (5, lambda: there.do(FENCE_BRIDGED, f"{6:020}", "who")),
        "copies": (6, lambda: there.do(BEGIN_COPY, f"{6:020}", "another")),
    }
    for what, (epoch, change) in changes.items():
        assert there.do(BEGIN_COPY, f"{epoch:020}", what) == 1
        assert there.do(COPY_KEY, what, keys=(key, there.epoch)) == []
        change()
        assert there.do(COPY_KEY, what, keys=(key, there.epoch)) == -1, what
        assert there.do(PLACE, what, f"{6:020}", "9-9", "states:eu", "0-0") == 0, what
        is_partial = there.do(COPY_KEY, "", keys=(key, there.epoch)) == []
        assert is_partial == (what in ("repeats", "takes back")), "who leads goes on with what is there"
    there.do(BEGIN_COPY, f"{6:020}", "the last")
    there.do(FENCE_BRIDGED, f"{7:020}")
    assert there.do(COPY_KEY, "", keys=(key, there.epoch)) == [], "it is led in another region"
    assert there.place(7, "9-9") == 1
    assert there.do(COPY_KEY, "", keys=(key, there.epoch)) == -1


@pytest.mark.parametrize(
    ("had", "new", "taken"),
    [
        (None, (50, "spam", 9), 1),
        ((50, "spam", 9), (40, "spam", 9), 1),
        ((50, "spam", 9), (50, "spam", 9), 0),
        ((50, "spam", 9), (60, "spam", 9), 0),
        ((50, "spam", 9), (20, "again", 10), 1),
        ((50, "spam", 9), (90, "before", 8), 0),
    ],
)
def test_the_later_ban_stays_and_a_lifted_one(
    redis_server: Server, here: Shard, had: tuple[int, str, int] | None, new: tuple[int, str, int], taken: int
) -> None:
    bans = here.start + "bans"
    if had is not None:
        redis_server.do("HSET", bans, "bob", msgpack.packb(had))
    assert here.do(MERGE_BAN, "bob", msgpack.packb(new), keys=(bans,)) == taken
    assert msgpack.unpackb(redis_server.do("HGET", bans, "bob")) == list(new if taken else had or ())


@pytest.mark.parametrize(
    ("ours", "theirs", "alone"),
    [
        ((), (1, 2), ()),
        ((1, 2), (1, 2, 3), ()),
        ((1, 2, 4, 5), (1, 2, 3), (5, 4)),
        ((1, 2), (7, 8), ()),  # trimmed there
        ((1, 9), (7, 8), (9,)),
        ((1, 2), None, (2, 1)),  # it never had the channel
        (tuple(range(1, 251)), (10, 300), tuple(range(250, 10, -1))),
    ],
)
def test_a_copied_channel_is_as_it_is_there_and_says_what_only_ours_had(
    redis_server: Server, here: Shard, ours: tuple[int, ...], theirs: tuple[int, ...] | None, alone: tuple[int, ...]
) -> None:
    channel, other = here.start + "c:group:a", here.start + "c:group:b"
    for key, numbers in ((channel, ours), (other, theirs or ())):
        for number in numbers:
            redis_server.do("XADD", key, f"4-{number}", "m", "x")
    what = () if theirs is None else (redis_server.do("DUMP", other), 50_000)
    names = (channel, here.epoch, here.start + "copy")
    here.do(BEGIN_COPY, f"{4:020}", "a copy")
    assert here.do(COPY_CHANNEL, "another", *what, keys=names) == -1
    assert here.do(COPY_CHANNEL, "a copy", *what, keys=names) == [b"4-%d" % one for one in alone]
    found = redis_server.do("XRANGE", channel, "-", "+")
    assert [id_ for id_, _ in found] == [b"4-%d" % one for one in theirs or ()]
    assert 0 < redis_server.do("PTTL", channel) <= 50_000 or theirs is None
    assert redis_server.do("EXISTS", channel, here.start + "copy") == int(theirs is not None)


def test_of_a_channel_that_is_empty_there_only_what_is_newer_was_ours_alone(redis_server: Server, here: Shard) -> None:
    channel, other = here.start + "c:group:a", here.start + "c:group:b"
    for key, numbers in ((channel, (1, 2, 3)), (other, (1, 2))):
        for number in numbers:
            redis_server.do("XADD", key, f"4-{number}", "m", "x")
    redis_server.do("XTRIM", other, "MAXLEN", 0)
    dump = redis_server.do("DUMP", other)
    here.do(BEGIN_COPY, f"{4:020}", "a copy")
    assert here.do(COPY_CHANNEL, "a copy", dump, 0, keys=(channel, here.epoch, here.start + "copy")) == [b"4-3"]
    assert redis_server.do("XLEN", channel) == 0
