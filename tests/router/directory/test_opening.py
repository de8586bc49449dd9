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


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(Misused, match="/nowhere"):
        make_directory(DirectoryConfig(endpoints=("etcd-0:2379",), tls=True, tls_ca="/nowhere"))
