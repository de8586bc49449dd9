"""A node's part in a cluster, put together: what it knows of the others, and that its workers belong to it."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from gateway.child import Child
from gateway.cluster_config import address, directory_config
from gateway.cluster_view import ClusterView
from gateway.config import Config
from gateway.errors import StartError
from gateway.membership import Membership
from router.directory.opening import make_directory
from router.directory.port import Misused
from router.shards.placement import placement_of

PROBES_A_TTL = 3


@dataclass(frozen=True)
class Cluster:
    """What a supervisor has of its cluster."""

    view: ClusterView
    membership: Membership | None
    """None: no workers run here."""

    def missing(self) -> list[str]:
        """What the node is not ready without."""
        found = []
        if not self.view.view.ready():
            found.append("directory: it has not been read yet")
        if self.membership is not None:
            found += self.membership.missing()
        return found


@contextlib.asynccontextmanager
async def joined(config: Config, workers: Callable[[], Iterable[Child]] | None) -> AsyncIterator[Cluster]:
    """Belongs to the cluster for as long as the context lasts.

    Args:
        config: with a directory.
        workers: the places of workers; None: there are none, and nothing is registered here.

    Raises:
        StartError: the settings of the directory cannot be used.

    """
    told = directory_config(config)
    assert told is not None
    try:
        directory = make_directory(told)
    except Misused as error:
        raise StartError(f"directory: {error}") from error
    view = ClusterView(directory, told.shards, told.ttl_s / PROBES_A_TTL, placement_of(told.placement))
    membership = None
    if workers is not None:
        own = address(config, bus=False)
        membership = Membership(
            view, config.node.name, own, told.ttl_s, workers, config.bus.public_key, region=told.region
        )
    view.start()
    if membership is not None:
        membership.start()
    try:
        yield Cluster(view, membership)
    finally:
        if membership is not None:
            await membership.close()
        await view.close()
        await directory.close()
