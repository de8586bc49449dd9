"""The view: news in whatever order leaves the newest, and nobody is thought to be over too early."""

from hypothesis import given
from hypothesis import strategies as st

from router.shards.placement import BY_PUBLISHERS, Preferences
from router.shards.records import (
    CORDONS,
    NODES,
    PUBLISHERS,
    REGIONS,
    SHARDS,
    CordonRecord,
    NodeRecord,
    PublishersRecord,
    RegionRecord,
    ShardRecord,
    encode,
)
from router.shards.view import Table, View

NODE = encode(NodeRecord(1, "a:1"))
# What happens to two keys, in the order of revisions: a value, or gone.
NODES_OF_REGIONS = (("a", 1, "eu"), ("b", 2, "eu"), ("c", 3, "us"), ("d", 1, "ap"), ("e", 1, ""), ("a.gw", 0, "eu"))
HISTORY = st.lists(st.tuples(st.sampled_from("01"), st.booleans()), min_size=1, max_size=12)


def _shard(epoch: int) -> bytes:
    return encode(ShardRecord("a", 1, epoch, "taken"))


def _table() -> Table[ShardRecord]:
    table = Table(SHARDS, ShardRecord)
    table.snapshot(0, {})
    return table


def _epoch(table: Table[ShardRecord], name: str) -> int | None:
    record = table.get(name).record
    return record.epoch if record else None


def test_what_an_answer_told_is_not_undone_by_a_watch_that_is_behind() -> None:
    table = _table()
    assert table.learn("0", _shard(2), 9)
    assert table.change(5, [(SHARDS + "0", _shard(1), 5)]) == []
    assert _epoch(table, "0") == 2
    assert table.change(9, [(SHARDS + "0", _shard(2), 9)]) == []
    assert table.change(11, [(SHARDS + "0", _shard(3), 11)]) == ["0"]


def test_an_answer_that_is_older_than_the_watch_is_no_news() -> None:
    table = _table()
    table.change(7, [(SHARDS + "0", None, 7)])
    assert not table.learn("0", _shard(1), 5)
    assert table.get("0").revision == 0


def test_a_key_that_went_by_an_answer_does_not_come_back_by_old_news() -> None:
    table = _table()
    table.change(3, [(SHARDS + "0", _shard(1), 3)])
    assert table.learn("0", None, 8)
    table.change(6, [(SHARDS + "0", _shard(2), 6)])
    assert table.get("0").revision == 0
    assert table.change(8, [(SHARDS + "0", None, 8)]) == []
    assert list(table.items()) == []


def test_a_snapshot_keeps_what_is_newer_than_it() -> None:
    table = _table()
    table.learn("0", _shard(5), 9)
    table.change(3, [(SHARDS + "1", _shard(1), 3)])
    assert table.snapshot(7, {SHARDS + "0": (_shard(4), 6)}) == ["1"]
    assert (_epoch(table, "0"), _epoch(table, "1")) == (5, None)
    assert table.snapshot(4, {SHARDS + "1": (_shard(1), 3)}) == []


@given(HISTORY, st.randoms(use_true_random=False))
def test_whatever_is_told_twice_or_ahead_the_newest_stays(history: list[tuple[str, bool]], chance: object) -> None:
    told = [(SHARDS + name, _shard(at) if there else None, at) for at, (name, there) in enumerate(history, 1)]
    table = _table()
    position = 0
    while position < len(told):
        if chance.random() < 0.4:  # type: ignore[attr-defined]
            key, value, at = told[chance.randrange(len(told))]  # type: ignore[attr-defined]
            table.learn(key[len(SHARDS) :], value, at)
        again = chance.randrange(position + 1)  # type: ignore[attr-defined]
        position = chance.randint(position + 1, len(told))  # type: ignore[attr-defined]
        table.change(position, told[again:position])
    for name in "01":
        values = [value for key, value, _ in told if key == SHARDS + name]
        last = values[-1] if values else None
        record = table.get(name).record
        assert (encode(record) if record else None) == last
    assert all(seen.revision for seen in table._seen.values())


def test_a_node_is_over_only_when_the_nodes_are_known_that_far() -> None:
    view = View()
    assert not view.ready()
    for prefix, table in view.tables.items():
        table.snapshot(10, {NODES + "a": (NODE, 4)} if prefix == NODES else {})
    view.count_nodes()
    assert view.ready()
    assert not view.over(4)
    assert view.over(3)
    # A life that began after what is known of nodes: the watch of shards is ahead of theirs.
    assert not view.over(12)
    view.nodes.change(12, [(NODES + "b", NODE, 12)])
    view.nodes.change(14, [(NODES + "a", None, 14)])
    view.count_nodes()
    assert view.over(4)
    assert not view.over(12)


def test_what_cannot_be_read_is_somebodys_and_is_told_once() -> None:
    view = View()
    view.nodes.snapshot(5, {NODES + "new": (b"?", 5)})
    view.shards.snapshot(5, {SHARDS + "3": (b"?", 4)})
    view.count_nodes()
    assert not view.over(5)
    assert view.weights() == {}
    assert view.shards.get("3").revision == 4
    assert [text.partition(" ")[0] for text in view.complaints()] == ["nodes/new", "shards/3"]
    assert view.complaints() == []


def test_what_is_evacuated_leads_nothing_and_is_there_all_the_same() -> None:
    view = View()
    nodes = {name: NodeRecord(weight, "", region) for name, weight, region in NODES_OF_REGIONS}
    view.nodes.snapshot(5, {NODES + name: (encode(record), 5) for name, record in nodes.items()})
    view.regions.snapshot(5, {REGIONS + "eu": (encode(RegionRecord("op", 7)), 5), REGIONS + "ap": (b"?", 5)})
    assert view.weights() == {"a": 0, "b": 0, "c": 3, "d": 0, "e": 1}
    assert (view.evacuated("eu"), view.evacuated("us"), view.evacuated("ap"), view.evacuated("")) == (
        True,
        False,
        True,
        False,
    )
    assert view.routers_of("eu") == {"a": 1, "b": 2}
    assert (view.region_of("c"), view.region_of("nobody")) == ("us", "")


def test_where_all_that_is_left_is_evacuated_it_leads_all_the_same() -> None:
    view = View()
    nodes = {name: NodeRecord(weight, "", region) for name, weight, region in NODES_OF_REGIONS}
    view.nodes.snapshot(5, {NODES + name: (encode(record), 5) for name, record in nodes.items()})
    evacuated = {REGIONS + name: (encode(RegionRecord("op", 7)), 5) for name in ("eu", "us", "ap")}
    view.regions.snapshot(5, evacuated)
    view.cordons.snapshot(5, {CORDONS + "b": (encode(CordonRecord(0)), 5)})
    assert view.weights() == {"a": 0, "b": 0, "c": 0, "d": 0, "e": 1}  # e is of no region
    view.nodes.change(6, [(NODES + "e", None, 6)])
    assert view.weights() == {"a": 1, "b": 0, "c": 3, "d": 1}


def test_placement_goes_by_regions_in_order_or_by_what_leaders_wrote_down() -> None:
    view = View()
    view.nodes.snapshot(5, {NODES + "a": (encode(NodeRecord(1, "", "eu")), 5)})
    view.publishers.snapshot(5, {PUBLISHERS + "3": (encode(PublishersRecord("us")), 4)})
    assert view.preferred(()) is None
    assert view.preferred(("us", "eu")) == Preferences({"a": "eu"}, ("us", "eu"), {})
    assert view.preferred((BY_PUBLISHERS,)) == Preferences({"a": "eu"}, (), {3: "us"})
