"""The sides of each port, and how a contract's tests run on them."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.places import EmbeddedPlace, EtcdPlace, Place
from tests.contract.stores import EmbeddedStore, RedisStore, Store
from tests.servers import etcd
from tests.servers.redis import FLEETING, running, running_cluster, running_sentinels

MakeStore = Callable[[], Store]
_prefixes = itertools.count(1)


def embedded(tmp_path: Path) -> MakeStore:
    counter = iter(range(1_000_000))
    return lambda: EmbeddedStore(tmp_path / f"log-{next(counter)}")


def in_redis(url: str) -> MakeStore:
    return lambda: RedisStore(url, prefix=f"contract{next(_prefixes)}:")


@pytest.fixture(scope="package")
def redis_url() -> Iterator[str]:
    with running(*FLEETING) as server:
        yield server.url


@pytest.fixture(scope="package")
def sentinel_url() -> Iterator[str]:
    with running_sentinels(*FLEETING) as servers:
        yield servers.url


@pytest.fixture(scope="package")
def cluster_url() -> Iterator[str]:
    with running_cluster(*FLEETING) as cluster:
        yield cluster.url


# Side: what makes fresh stores for a test. The fixture below gives it the test's own folder; a side that needs servers
# asks `request.getfixturevalue` for them.
SIDES: dict[str, Callable[[pytest.FixtureRequest, Path], MakeStore]] = {
    "embedded": lambda _, tmp_path: embedded(tmp_path),
    "redis": lambda request, _: in_redis(request.getfixturevalue("redis_url")),
    "sentinel": lambda request, _: in_redis(request.getfixturevalue("sentinel_url")),
    "cluster": lambda request, _: in_redis(request.getfixturevalue("cluster_url")),
}


@pytest.fixture(params=list(SIDES))
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """Makes empty stores of one side."""
    return SIDES[request.param](request, tmp_path)


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """An empty store."""
    return make_store()


# ---------------------------------------------------------------------------------------------------------- directories


@pytest.fixture(scope="package")
def etcd_cluster() -> Iterator[etcd.Cluster]:
    """Three members that no test harms."""
    with etcd.running_cluster() as cluster:
        yield cluster


PLACES: dict[str, Callable[[pytest.FixtureRequest], Place]] = {
    "embedded": lambda _: EmbeddedPlace(),
    "etcd": lambda request: EtcdPlace(request.getfixturevalue("etcd_cluster"), f"contract{next(_prefixes)}/"),
}


@pytest.fixture(params=list(PLACES))
def place(request: pytest.FixtureRequest) -> Place:
    """An empty place of one side."""
    return PLACES[request.param](request)
