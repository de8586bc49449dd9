"""The log's part of a soak, for a few seconds."""

import asyncio
from collections.abc import Callable

import pytest

from loadtest.soak import logged
from loadtest.soak.plan import Plan
from loadtest.soak.verdicts import logged_verdicts
from tests.conftest import Node

LITTLE = {
    "counts": {"acknowledged": 5, "delivered": 10},
    "outcomes": {"gap": 1},
    "faults": {},
    "router_kills": 1,
    "exit_code": 0,
}


@pytest.mark.slow
def test_a_short_part_kills_the_router_and_loses_nothing(holdfast: Callable[..., Node]) -> None:
    node = holdfast("--workers", "2", **logged.environment())
    node.expect_lost()
    soak = logged.Soak(Plan(seconds=6, kill_every_s=1), node.port, node.pid)
    found = asyncio.run(soak.run(asyncio.Event()))
    assert found["generations"] >= 2
    assert found["router_kills"] >= 1
    assert found["counts"]["delivered"] > found["counts"]["acknowledged"] > 100
    assert found["outcomes"]["gap"], "nobody was away for longer than the history reaches"
    assert found["outcomes"]["replayed"], "nobody came back soon enough"
    assert (found["faults"], found["stories"]) == ({}, [])
    assert [verdict.kept for verdict in logged_verdicts({**found, "exit_code": 0})] == [True]


@pytest.mark.parametrize(
    "wrong", [{"faults": {"loss": 1}}, {"router_kills": 0}, {"exit_code": 1}, {"counts": {}}, {"outcomes": {}}]
)
def test_anything_else_is_not_kept(wrong: dict[str, object]) -> None:
    assert [verdict.kept for verdict in logged_verdicts(LITTLE)] == [True]
    assert [verdict.kept for verdict in logged_verdicts({**LITTLE, **wrong})] == [False]
