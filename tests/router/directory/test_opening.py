"""A directory is made as it is configured."""

import pytest

from router.config import DirectoryConfig
from router.directory.etcd_config import EtcdConfig
from router.directory.opening import make_directory
from router.directory.port import Misused
from tests.router.directory.conftest import run


def test_what_is_configured_reaches_etcd(config: EtcdConfig) -> None:
    async def body() -> None:
        directory = make_directory(DirectoryConfig(endpoints=config.endpoints, prefix=config.prefix))
        registration = await directory.register("a", b"here", 10)
        assert (await directory.read("nodes/")).items["nodes/a"].value == b"here"
        await registration.close()
        await directory.close()

    run(body())


def test_who_is_in_a_region_asks_the_first_member_first_and_writes_beats_if_told_to() -> None:
    endpoints = tuple(f"etcd-{number}:2379" for number in range(16))
    directory = make_directory(DirectoryConfig(endpoints=endpoints, region="eu"), beats=True)
    assert directory._client.current == 0
    assert directory._client.config.beats
    config = make_directory(DirectoryConfig(endpoints=endpoints))._client.config
    assert not config.nearest_first
    assert not config.beats


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(Misused, match="/nowhere"):
        make_directory(DirectoryConfig(endpoints=("etcd-0:2379",), tls=True, tls_ca="/nowhere"))
