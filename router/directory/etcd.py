"""The directory in etcd: one cluster, many nodes."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from router.directory import etcd_lease
from router.directory import etcdpb_pb2 as pb
from router.directory.etcd_claims import Claims
from router.directory.etcd_client import RANGE, Client, Compacted, prefix_end
from router.directory.etcd_config import EtcdConfig
from router.directory.etcd_watch import Watch
from router.directory.port import Changes, Claim, Item, NodeEpoch, Reach, Result, Snapshot, Unavailable

PAGE_KEYS = 2_000
RESTARTS_MAX = 5


class EtcdDirectory:
    """See `port.Directory`.

    Args:
        config: where etcd is.

    Raises:
        Misused: a file of the settings cannot be read.
    """

    def __init__(self, config: EtcdConfig) -> None:
        self._client = Client(config)
        self._prefix = config.prefix
        self._claims = Claims(self._client, config.prefix)

    async def register(self, node: str, value: bytes, ttl_s: int) -> etcd_lease.EtcdRegistration:
        """See `port.Directory`."""
        # deadline: that of a call
        return await etcd_lease.register(self._client, self._prefix, node, value, ttl_s)

    async def end(self, silent: NodeEpoch, revision: int) -> bool:
        """End a node's life, if its beat still has this revision: whether that was so. May be asked again.

        Raises:
            Unavailable, NotAllowed: see `port.Directory`.
        """
        # deadline: that of a call
        return await etcd_lease.end(self._client, self._prefix, silent, revision)

    async def transact(self, claims: Sequence[Claim]) -> list[Result]:
        """See `port.Directory`."""
        return await self._claims.transact(claims)

    async def read(self, prefix: str) -> Snapshot:
        """See `port.Directory`."""
        ends = self._client.clock() + self._client.config.deadline_s
        for _ in range(RESTARTS_MAX):
            try:
                return await self._read(prefix, ends)
            except Compacted:
                continue  # between two pages; the next round reads at a newer revision
        raise Unavailable(f"{self._client.config}: what is read is compacted each time before it is read whole")

    async def page(self, prefix: str, after: str, count: int) -> Snapshot:
        """See `port.Directory`."""
        return self._snapshot(await self._range(prefix, after, count, 0, None))

    def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes | Snapshot, None]:
        """See `port.Directory`."""
        return Watch(self._client, self._prefix, prefix, revision, self.read).changes()

    def reachable(self) -> Reach:
        """See `port.Directory`."""
        return self._client.reach

    async def close(self) -> None:
        """See `port.Directory`."""
        await self._claims.close()
        await self._client.close()

    async def _read(self, prefix: str, ends: float) -> Snapshot:
        """All pages at the revision of the first."""
        items: dict[str, Item] = {}
        revision, after = 0, ""
        while True:
            answer = await self._range(prefix, after, PAGE_KEYS, revision, ends)
            page = self._snapshot(answer)
            revision = revision or page.revision
            items |= page.items
            if not answer.more:
                return Snapshot(revision, items)
            after = next(reversed(items))

    async def _range(self, prefix: str, after: str, count: int, revision: int, ends: float | None) -> Any:
        first = (self._prefix + prefix).encode()
        key = (self._prefix + after).encode() + b"\0" if after else first
        request = pb.RangeRequest(key=key, range_end=prefix_end(first), limit=count, revision=revision)
        return await self._client.call(RANGE, request, ends)

    def _snapshot(self, answer: Any) -> Snapshot:
        skipped = len(self._prefix.encode())
        return Snapshot(
            answer.header.revision,
            {
                one.key[skipped:].decode(errors="surrogateescape"): Item(one.value, one.mod_revision)
                for one in answer.kvs
            },
        )
