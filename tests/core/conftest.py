"""Fixtures of the core's own tests: data planes in threads of the test, their other sides scripted."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core import notes
from tests.core.client_harness import Driver
from tests.core.edge_harness import Edge
from tests.core.router_harness import Sequencer


@pytest.fixture
def bus() -> str:
    """Over which side of the bus the data planes of a test speak; the port's own tests run on both."""
    return "ipc"


@pytest.fixture
def edges(bus: str) -> Iterator[Callable[..., Edge]]:
    """Make worker data planes with options of their own; each must stop in order at the end."""
    made: list[Edge] = []

    def make(**options: int | str | bool) -> Edge:
        made.append(Edge(**{"bus": bus, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def edge(edges: Callable[..., Edge]) -> Edge:
    """A linked worker data plane."""
    return edges()


@pytest.fixture
def sequencers(bus: str) -> Iterator[Callable[..., Sequencer]]:
    """Make router data planes with options of their own; each must stop in order and leave an empty ledger."""
    made: list[Sequencer] = []

    def make(**options: Any) -> Sequencer:
        made.append(Sequencer(bus=bus, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def sequencer(sequencers: Callable[..., Sequencer]) -> Sequencer:
    return sequencers()


@pytest.fixture
def routers(sequencers: Callable[..., Sequencer]) -> Callable[..., Sequencer]:
    """Routers of many: they lead nothing so far, and may lead for ever."""

    def make(**options: Any) -> Sequencer:
        router = sequencers(leads_all=False, **options)
        assert router.loop is not None
        router.loop.put(notes.HOLD, first=2**64 - 1)
        return router

    return make


@pytest.fixture
def drivers() -> Iterator[Callable[..., Driver]]:
    """Make client threads with options of their own; each must stop in order and leave an empty ledger."""
    made: list[Driver] = []

    def make(**options: object) -> Driver:
        made.append(Driver(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def driver(drivers: Callable[..., Driver]) -> Driver:
    """A client thread."""
    return drivers()
