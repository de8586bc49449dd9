"""The commands about shards, against a scripted admin server, and the keys that one of them makes."""

import json
import os
import tomllib
from collections.abc import Callable, Iterator

import pytest
import zmq
from click.testing import CliRunner, Result

from gateway import cli, cli_shards
from gateway.shards_api import alone
from tests.gateway.fake_admin import FakeAdmin

Call = Callable[..., Result]


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    server = FakeAdmin()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def call(admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setattr(cli_shards, "POLL_S", 0.0)

    def run(*arguments: str) -> Result:
        hidden: dict[str, str | None] = {name: None for name in os.environ if name.startswith("HOLDFAST_")}
        address = ["--url", admin.url, "--token", "t" * 16]
        return CliRunner().invoke(cli.cli, [*arguments, *address], env=hidden, prog_name="holdfast")

    return run


def cluster(
    leaders: str, wanted: str = "", cordoned: str = "", pinned: dict[int, str] | None = None, gone: str = ""
) -> bytes:
    """An answer of /api/shards: a letter a shard says its router, `-` none."""
    wanted = wanted or leaders
    names = {"-": None}
    routers = [
        {
            "name": name,
            "epoch": 7,
            "weight": 1,
            "cordoned": name in cordoned,
            "leaving": False,
            "load": 12.5,
            "leads": leaders.count(name),
            "wanted": wanted.count(name),
            "bus": f"tcp://{name}:7410",
            "encrypted": name == "b",
            "admin": None,
        }
        for name in "ab"
        if name not in gone
    ]
    shards = [
        {
            "shard": shard,
            "leader": names.get(leader, leader),
            "wanted": names.get(to, to),
            "pinned": (pinned or {}).get(shard),
            "epoch": 1,
            "how": "claimed",
        }
        for shard, (leader, to) in enumerate(zip(leaders, wanted, strict=True))
    ]
    told = {"node": "a", "reachable": True, "unled": leaders.count("-"), "routers": routers, "shards": shards}
    return json.dumps({**told, "gateways": [{"name": "a", "epoch": 9}]}).encode()


def test_shards_says_who_leads_how_many_and_what_moves(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(200, cluster("aab-", "aabb", cordoned="a", pinned={2: "b"}))]
    said = call("shards").output.splitlines()
    assert said[0].split() == ["ROUTER", "LEADS", "WANTED", "WEIGHT", "LOAD", "STATE", "BUS"]
    assert said[1].split() == ["a", "2", "2", "1", "12.5/s", "cordoned", "tcp://a:7410"]
    assert said[2].split() == ["b", "1", "2", "1", "12.5/s", "takes", "shards", "tcp://b:7410", "(CURVE)"]
    assert said[3] == "workers at a; 4 shards, 1 without a leader"
    assert said[4] == "pinned: 2 at b"
    assert admin.requests[0][1] == "/api/shards"


def test_routers_of_an_evacuated_region_are_not_said_to_take_shards(admin: FakeAdmin, call: Call) -> None:
    told = json.loads(cluster("aa", cordoned="b"))
    for router in told["routers"]:
        router["region"] = "eu"
    told["regions"] = [{"name": "eu", "evacuated": True, "by": "op", "since_ms": None}]
    admin.answers = [(200, json.dumps(told).encode())]
    said = call("shards").output.splitlines()
    assert said[1].split()[6:8] == ["region", "evacuated"]
    assert said[2].split()[6] == "cordoned"


def test_shards_on_their_way_are_named(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(200, cluster("aaaa", "aabb"))]
    assert "2 to move: 2 a -> b, 3 a -> b" in call("shards").output


def test_shards_as_json_is_what_the_node_says(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(200, cluster("ab"))]
    assert json.loads(call("shards", "--json").output) == json.loads(cluster("ab"))


def test_a_move_is_followed_to_its_end(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(202, b"{}"), (200, cluster("aa", "ab")), (200, cluster("a-", "ab")), (200, cluster("ab"))]
    result = call("shards", "move", "1", "b")
    assert result.output == "shard 1: led by b, wanted at b\n"
    assert admin.requests[0][:3] == ("POST", "/api/shards/move", {"shard": 1, "to": "b"})
    assert len(admin.requests) == 4


def test_a_move_to_wherever_it_belongs_need_not_be_waited_for(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(202, b"{}"), (200, cluster("aa", "ab"))]
    assert call("shards", "move", "1", "--auto", "--no-wait").output == "shard 1: led by a, wanted at b\n"
    assert admin.requests[0][2] == {"shard": 1, "to": None}


@pytest.mark.parametrize("arguments", [("1",), ("1", "b", "--auto")])
def test_a_move_says_where_to(admin: FakeAdmin, call: Call, arguments: tuple[str, ...]) -> None:
    result = call("shards", "move", *arguments)
    assert result.exit_code == 2
    assert "either NODE, or --auto" in result.output
    assert admin.requests == []


def test_what_is_said_before_the_command_counts_too(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(202, b"{}"), (200, cluster("b"))]
    before = ["shards", "--url", admin.url, "--token", "early-token-1234", "move", "0", "b"]
    assert CliRunner().invoke(cli.cli, before).exit_code == 0
    assert admin.requests[0][3] == "Bearer early-token-1234"


def test_a_cordoned_node_is_waited_for_until_it_leads_nothing(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [
        (202, b"{}"),
        (200, cluster("aab", "bbb", cordoned="a")),
        (200, cluster("bab", "bbb")),
        (200, cluster("bbb")),
    ]
    assert call("cordon", "a").output == "a: cordoned, leads 0\n"
    assert admin.requests[0][:3] == ("POST", "/api/shards/cordon", {"node": "a", "on": True})


def test_a_cordon_without_another_router_says_that_it_keeps_its_shards(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(202, b"{}"), (200, cluster("aa", cordoned="ab"))]
    result = call("cordon", "a")
    assert result.exit_code == 1
    assert "no other router" in result.output


def test_a_node_takes_shards_again(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(202, b"{}")]
    assert call("uncordon", "a").output == "a: takes shards\n"
    assert admin.requests[0][2] == {"node": "a", "on": False}


def test_what_takes_too_long_is_an_error(admin: FakeAdmin, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_shards, "FOLLOW_DEADLINE_S", 0.0)
    admin.answers = [(202, b"{}"), (200, cluster("a", "b"))]
    result = call("shards", "move", "0", "b")
    assert result.exit_code == 1
    assert "shard 0 is not there after 0 s" in result.output


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (cluster("aa", "aa", pinned={1: "a"}), "shard 1 is not there: somebody else has moved it to a"),
        (cluster("aa", "aa"), "shard 1 is not there: somebody else has moved it to wherever it belongs"),
        (cluster("aa", "aa", pinned={1: "b"}, cordoned="b"), "b takes no shards any more, and gets it when it does"),
        (cluster("aa", "aa", pinned={1: "b"}, gone="b"), "b is not there any more, and gets it when it comes back"),
    ],
)
def test_a_move_that_cannot_come_any_more_is_not_waited_for(
    admin: FakeAdmin, call: Call, monkeypatch: pytest.MonkeyPatch, seen: bytes, said: str
) -> None:
    monkeypatch.setattr(cli_shards, "HOPELESS_S", 0.0)
    admin.answers = [(202, b"{}"), (200, cluster("aa", "ab", pinned={1: "b"})), (200, seen)]
    result = call("shards", "move", "1", "b")
    assert (result.exit_code, len(admin.requests)) == (1, 3)
    assert said in result.output


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (cluster("aab", "bbb", cordoned="a", gone="b"), "there is no other router any more"),
        (cluster("aab", "aab"), "somebody has lifted that it is cordoned"),
    ],
)
def test_a_cordon_that_empties_nothing_any_more_is_not_waited_for(
    admin: FakeAdmin, call: Call, monkeypatch: pytest.MonkeyPatch, seen: bytes, said: str
) -> None:
    monkeypatch.setattr(cli_shards, "HOPELESS_S", 0.0)
    admin.answers = [(202, b"{}"), (200, cluster("aab", "bbb", cordoned="a")), (200, seen)]
    result = call("cordon", "a")
    assert (result.exit_code, len(admin.requests)) == (1, 3)
    assert f"a still leads shards: {said}" in result.output


def test_a_refusal_is_said(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(404, b'{"code": "no_directory", "message": "this node is alone"}')]
    result = call("shards")
    assert result.exit_code == 1
    assert "refused (no_directory): this node is alone" in result.output


def test_a_node_that_is_alone_says_so(admin: FakeAdmin, call: Call) -> None:
    admin.answers = [(200, json.dumps(alone("a")).encode())]
    said = call("shards").output.splitlines()
    assert said[1].split() == ["a", "256", "256", "1", "-", "takes", "shards", "-"]
    assert said[-1] == "this node is alone: it has no directory"


def test_keys_are_a_pair_that_can_stand_in_the_file() -> None:
    bus = tomllib.loads(CliRunner().invoke(cli.cli, ["keys"]).output)["bus"]
    assert zmq.curve_public(bus["secret_key"].encode()).decode() == bus["public_key"]
