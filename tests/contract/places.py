"""Where directories under contract keep what they know: one class a side, each with what only a test may do there."""

import asyncio
from typing import Protocol

from router.directory.embedded import EmbeddedDirectory, EmbeddedRegistration, Store
from router.directory.etcd import EtcdDirectory
from router.directory.etcd_config import EtcdConfig
from router.directory.etcd_lease import EtcdRegistration
from router.directory.port import Directory, Registration
from tests.servers.etcd import Cluster, Member


class Place(Protocol):
    """A place that several directories share."""

    name: str

    async def directory(self) -> Directory:
        """A directory on this place, as a process of its own would have it."""

    async def compact(self, revision: int = 0) -> None:
        """Make it forget all changes until a revision; 0: until now."""

    async def end(self) -> None:
        """Give up everything that `directory` gave, within the same event loop."""


class EmbeddedPlace:
    """One store of this process."""

    name = "embedded"

    def __init__(self) -> None:
        self._store = Store()
        self._directories: list[EmbeddedDirectory] = []

    async def directory(self) -> EmbeddedDirectory:
        self._directories.append(EmbeddedDirectory(self._store))
        return self._directories[-1]

    async def compact(self, revision: int = 0) -> None:
        self._store.compact(revision or self._store.revision)

    async def end(self) -> None:
        for one in self._directories:
            await one.close()


class EtcdPlace:
    """A prefix in etcd, of which each test has its own.

    Args:
        cluster: where.
        prefix: ends with `/`.
        first: the member that each directory asks before any other; None: any.
        deadline_s: of the directories.

    """

    name = "etcd"

    def __init__(self, cluster: Cluster, prefix: str, *, first: Member | None = None, deadline_s: float = 5.0) -> None:
        self.cluster = cluster
        self.first = first
        self._config = EtcdConfig(endpoints=cluster.endpoints, prefix=prefix, deadline_s=deadline_s)
        self._directories: list[EtcdDirectory] = []

    async def directory(self) -> EtcdDirectory:
        made = EtcdDirectory(self._config)
        if self.first is not None:
            made._client.current = self.cluster.members.index(self.first)
        self._directories.append(made)
        return made

    async def compact(self, revision: int = 0) -> None:
        await asyncio.to_thread(self.cluster.members[0].compact, revision)

    async def end(self) -> None:
        await asyncio.gather(*(one.close() for one in self._directories))


async def stop_keeping(registration: Registration) -> None:
    """What the end of its process does to a lease: nobody keeps it any more."""
    assert isinstance(registration, EmbeddedRegistration | EtcdRegistration)
    registration._keeper.cancel()
    await asyncio.wait([registration._keeper])
    registration._held.close()
