"""Who follows which shard of another region, and until when."""

from router.shards.events import Follow
from router.shards.following import Following, followers_of
from router.shards.placement import follower
from router.shards.records import CORDONS, NODES, SHARDS, CordonRecord, NodeRecord, ShardRecord, encode
from router.shards.roles import Settings
from router.shards.view import View

SETTINGS = Settings(shards=16, region="eu", regions=frozenset({"us"}))
# Epochs: nodes a and b in eu, u in us, x in a region whose log nobody named here.
PLACES = {"a": (2, "eu"), "b": (3, "eu"), "u": (4, "us"), "x": (5, "ap")}
ALL = frozenset(range(16))


class Cluster:
    """A directory in which u leads all shards, as seen by anybody."""

    def __init__(self, nodes: str = "abu", leader: str = "u") -> None:
        self.revision = 10
        self.view = View()
        items = {NODES + name: (encode(NodeRecord(1, "", PLACES[name][1])), PLACES[name][0]) for name in nodes}
        for prefix, table in self.view.tables.items():
            table.snapshot(10, items if prefix == NODES else {})
        for shard in ALL:
            self.lead(shard, leader, 1)
        self.view.count_nodes()

    def lead(self, shard: int, name: str, epoch: int) -> None:
        self.put(f"{SHARDS}{shard}", encode(ShardRecord(name, PLACES[name][0], epoch, "taken")))

    def put(self, key: str, value: bytes | None) -> None:
        self.revision += 1
        prefix = key[: key.index("/") + 1]
        self.view.tables[prefix].change(self.revision, [(key, value, self.revision)])
        self.view.count_nodes()


def _shards(effect: Follow | None) -> frozenset[int]:
    assert effect is not None
    assert effect.leaders.keys() == effect.shards
    return effect.shards


def test_of_a_regions_routers_each_shard_has_one_follower() -> None:
    cluster = Cluster()
    parts = [_shards(Following(name, SETTINGS).look(cluster.view, PLACES[name][0])) for name in "ab"]
    assert parts[0] | parts[1] == ALL
    assert not parts[0] & parts[1]
    assert parts[0] == {shard for shard in ALL if follower(shard, {"a": 1, "b": 1}) == "a"}


def test_who_is_cordoned_is_chosen_only_where_there_is_nobody_else() -> None:
    cluster = Cluster()
    assert followers_of(cluster.view, "eu") == {"a": 1, "b": 1}
    cluster.put(f"{CORDONS}a", encode(CordonRecord(0)))
    assert followers_of(cluster.view, "eu") == {"b": 1}
    cluster.put(f"{CORDONS}b", encode(CordonRecord(0)))
    assert followers_of(cluster.view, "eu") == {"a": 1, "b": 1}
    assert followers_of(cluster.view, "mars") == {}


def test_only_what_changed_is_said() -> None:
    cluster = Cluster("au")
    following = Following("a", SETTINGS)
    assert following.look(cluster.view, 2) == Follow(ALL, dict.fromkeys(ALL, ("us", 1)))
    assert following.look(cluster.view, 2) is None
    cluster.lead(1, "u", 2)
    effect = following.look(cluster.view, 2)
    assert effect is not None
    assert effect.leaders[1] == ("us", 2)


def test_what_is_led_in_its_own_region_is_not_followed() -> None:
    cluster = Cluster()
    cluster.lead(0, "b", 2)
    cluster.lead(1, "a", 2)
    assert not {0, 1} & _shards(Following("a", SETTINGS).look(cluster.view, 2) or Follow(frozenset(), {}))
    # Its own life counts before the watch of nodes has told of it.
    cluster.put(NODES + "a", None)
    cluster.view.shards.change(20, [(f"{SHARDS}2", encode(ShardRecord("a", 19, 2, "taken")), 20)])
    cluster.put(NODES + "b", None)
    following = Following("a", SETTINGS)
    following.look(cluster.view, 19)
    assert 2 not in following.told


def test_a_shard_is_followed_from_where_it_was_led_last_until_another_leads_it() -> None:
    cluster = Cluster("au")
    following = Following("a", SETTINGS)
    following.look(cluster.view, 2)
    cluster.put(NODES + "u", None)
    assert following.look(cluster.view, 2) is None
    assert following.told == dict.fromkeys(ALL, ("us", 1))
    # A leader whose life is not known yet: where it is cannot be said.
    cluster.put(f"{SHARDS}0", encode(ShardRecord("v", 90, 2, "taken")))
    assert following.look(cluster.view, 2) is None
    cluster.lead(0, "a", 3)
    assert _shards(following.look(cluster.view, 2)) == ALL - {0}
    assert following.before == dict.fromkeys(ALL, ("us", 1))
    following.leads(0, 3)
    assert following.before == dict.fromkeys(ALL, ("us", 1)) | {0: ("eu", 3)}


def test_who_starts_while_nobody_leads_follows_when_somebody_does() -> None:
    cluster = Cluster("a")
    assert Following("a", SETTINGS).look(cluster.view, 2) is None


def test_without_a_lease_nothing_is_followed() -> None:
    cluster = Cluster("au")
    following = Following("a", SETTINGS)
    assert following.look(cluster.view, 0) is None
    assert _shards(following.look(cluster.view, 2)) == ALL
    assert following.look(cluster.view, 0) == Follow(frozenset(), {})


def test_who_is_cordoned_follows_only_where_nobody_else_can() -> None:
    cluster = Cluster()
    cluster.put(CORDONS + "a", encode(CordonRecord(0)))
    assert _shards(Following("b", SETTINGS).look(cluster.view, 3)) == ALL
    assert Following("a", SETTINGS).look(cluster.view, 2) is None
    cluster.put(CORDONS + "b", encode(CordonRecord(0)))
    assert _shards(Following("a", SETTINGS).look(cluster.view, 2)) != ALL


def test_a_region_whose_log_is_not_known_is_said_once() -> None:
    cluster = Cluster("ax", "x")
    following = Following("a", SETTINGS)
    assert following.look(cluster.view, 2) is None
    assert len(following.complaints) == 1
    assert "region 'ap', whose log is not known here" in following.complaints[0]
