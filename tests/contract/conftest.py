"""The sides of each port, and how a contract's tests run on them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.stores import EmbeddedStore, Store

MakeStore = Callable[[], Store]


def embedded(tmp_path: Path) -> MakeStore:
    counter = iter(range(1_000_000))
    return lambda: EmbeddedStore(tmp_path / f"log-{next(counter)}")


# Side: what makes fresh stores for a test. The fixture below gives it the test's own folder; a side that needs servers
# asks `request.getfixturevalue` for them.
SIDES: dict[str, Callable[[pytest.FixtureRequest, Path], MakeStore]] = {
    "embedded": lambda _, tmp_path: embedded(tmp_path),
}


@pytest.fixture(params=list(SIDES))
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """Makes empty stores of one side."""
    return SIDES[request.param](request, tmp_path)


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """An empty store."""
    return make_store()
