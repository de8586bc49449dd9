"""A node's part in a cluster, over a real directory: what it is not ready without, and that it leaves."""

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.child import Child
from gateway.cluster import joined
from gateway.config import Config
from gateway.errors import StartError
from gateway.settings import Machine, load
from router.config import DirectoryConfig
from router.directory.opening import make_directory
from tests.gateway.test_supervisor import until
from tests.servers.certificates import self_signed


def configured(directory: DirectoryConfig, **flags: object) -> Config:
    given = {
        "node.name": "a",
        "directory.endpoints": ",".join(directory.endpoints),
        "directory.prefix": directory.prefix,
        "bus.advertise": "127.0.0.1:7410",
        "log.backend": "none",
    }
    return load(
        None, {}, given | {name.replace("__", "."): value for name, value in flags.items()}, Machine("h", 2, 999)
    )


@pytest.mark.parametrize(("workers", "units"), [((), ["nodes/a.gw"]), (None, [])])
def test_a_node_with_workers_is_a_member_while_it_runs(
    in_etcd: DirectoryConfig, run_in_loop: Any, workers: Sequence[Child] | None, units: list[str]
) -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            places = None if workers is None else lambda: workers
            cluster = await stack.enter_async_context(joined(configured(in_etcd), places))
            assert "directory: it has not been read yet" in cluster.missing()
            await until(lambda: cluster.missing() == [], "nothing is missing")
            other = make_directory(in_etcd)
            assert list((await other.read("nodes/")).items) == units
            await stack.aclose()
            assert list((await other.read("nodes/")).items) == []
            await other.close()

    run_in_loop(scenario())


def test_a_directory_that_cannot_be_used_is_no_start(in_etcd: DirectoryConfig, run_in_loop: Any, tmp_path: Any) -> None:
    authority, _ = self_signed(tmp_path, "ca.pem")
    config = configured(in_etcd, directory__tls=True, directory__tls_ca=str(authority))
    authority.unlink()

    async def scenario() -> None:
        with pytest.raises(StartError, match=r"ca\.pem"):
            async with joined(config, None):
                pass

    run_in_loop(scenario())
