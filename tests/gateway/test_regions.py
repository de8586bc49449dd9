"""What a gateway finds about regions: whether its clients are to go, and where to."""

import json

import pytest

from gateway.evacuation import Away
from gateway.regions import away_from, evacuated_of
from router.shards.records import NODES, REGIONS, NodeRecord, RegionRecord, encode
from router.shards.view import View

ORDER = encode(RegionRecord("somebody", 1))
PACED = encode(RegionRecord("somebody", 1, 120))


def view_of(nodes: dict[str, tuple[int, str, str]], regions: dict[str, bytes]) -> View:
    """Nodes with weight, region and where clients reach them."""
    view = View()
    values = {
        NODES + name: (encode(NodeRecord(weight, json.dumps({"clients": clients}), region)), 5)
        for name, (weight, region, clients) in nodes.items()
    }
    for prefix, table in view.tables.items():
        table.snapshot(5, {})
        if prefix == NODES:
            table.snapshot(5, values)
        if prefix == REGIONS:
            table.snapshot(5, {REGIONS + name: (value, 5) for name, value in regions.items()})
    return view


NODES_THERE = {
    "a": (1, "eu", ""),
    "a.gw": (0, "eu", "wss://eu/ws"),
    "b.gw": (0, "eu", "wss://eu/ws"),
    "u": (1, "us", ""),
    "u.gw": (0, "us", "wss://us/ws,tls://us:7400"),
    "v.gw": (0, "us", "wss://us/ws,tls://us:7400"),
    "p.gw": (0, "ap", ""),
    "n.gw": (0, "", "wss://nowhere/ws"),
}


def test_clients_stay_while_their_region_serves() -> None:
    assert away_from(view_of(NODES_THERE, {"us": ORDER}), "eu", 2) is None
    assert away_from(view_of(NODES_THERE, {"eu": ORDER}), "", 2) is None
    assert away_from(View(), "eu", 2) is None


def test_clients_go_to_the_gateways_of_other_regions() -> None:
    assert away_from(view_of(NODES_THERE, {"eu": ORDER}), "eu", 2) == Away((("wss://us/ws", "tls://us:7400"),))


def test_they_go_also_where_no_gateway_says_how_it_is_reached() -> None:
    assert away_from(view_of(NODES_THERE, {"eu": ORDER, "us": ORDER}), "eu", 2) == Away(())


def test_they_stay_where_there_is_nobody_to_take_them() -> None:
    nodes = {name: node for name, node in NODES_THERE.items() if name != "p.gw"}
    assert away_from(view_of(nodes, {"eu": ORDER, "us": ORDER}), "eu", 2) is None


@pytest.mark.parametrize(("workers", "pace"), [(2, 30.0), (3, 20.0), (0, 60.0)])
def test_the_pace_of_a_region_is_shared_by_its_gateways_and_their_workers(workers: int, pace: float) -> None:
    away = away_from(view_of(NODES_THERE, {"eu": PACED}), "eu", workers)
    assert away is not None
    assert away.pace == pace


def test_an_order_that_cannot_be_read_is_one() -> None:
    assert away_from(view_of(NODES_THERE, {"eu": b"?"}), "eu", 2) is not None


def test_all_regions_are_those_of_nodes_and_those_that_are_evacuated() -> None:
    view = view_of({"a": (1, "eu", ""), "b.gw": (0, "us", ""), "n": (1, "", "")}, {"us": ORDER, "ap": b"?"})
    assert evacuated_of(view) == {"ap": True, "eu": False, "us": True}
    assert evacuated_of(View()) == {}
