"""A node's lease in etcd: taken, kept alive, watched over, given back."""

import asyncio
import contextlib
import random
from typing import Any

from core.owned import ACCOUNT
from router.directory import etcdpb_pb2 as pb
from router.directory.etcd_client import GRANT, KEEP_ALIVE, RANGE, REVOKE, TXN, Client, LeaseGone
from router.directory.port import (
    BEATS,
    NODES,
    DirectoryError,
    NodeEpoch,
    NotAllowed,
    Unavailable,
    checked_registration,
    safe_bound,
)

KEPT_A_TTL = 3
"""How often a lease is renewed within its time to live."""
AGAIN_A_TTL = 30
"""How often a renewal that did not count is tried again within the time to live, beside the time that it takes: after
two thirds of it a second one that is missed would be the end of the lease."""
ATTEMPTS_A_TTL = 10
"""Of the time to live, what one member gets to answer a keep-alive before the next one is asked."""
REPLACEMENTS_MAX = 10


class EtcdRegistration:
    """See `port.Registration`. Made by `register`."""

    def __init__(
        self,
        client: Client,
        key: bytes,
        identity: NodeEpoch,
        lease: int,
        ttl_s: int,
        sent: float,
        beat: bytes = b"",
    ) -> None:
        self.identity = identity
        self.lost = asyncio.Event()
        self._client = client
        self._key = key
        self._beat = beat
        """The key where renewals are written down; empty: they are not."""
        self._lease = lease
        self._ttl_s = ttl_s
        self._until = safe_bound(sent, ttl_s)
        self._held = ACCOUNT.hold("lease", f"nodes/{identity.node}", object_=self, depth=2)
        self._keeper = ACCOUNT.task(self._keep(), f"lease of {identity.node}", owner=self._held)
        self._closed = False

    def held_until(self) -> float:
        """See `port.Registration`."""
        return 0.0 if self.lost.is_set() or self._closed else self._until

    async def close(self) -> None:
        """See `port.Registration`."""
        if self._closed:
            return
        self._closed = True
        self._keeper.cancel()
        await asyncio.wait([self._keeper])  # deadline: it is cancelled
        self._held.close()
        if not self.lost.is_set():
            await revoke(self._client, self._lease)
        self.lost.set()

    # --------------------------------------------------------------------------------------------------------- keeping

    async def _keep(self) -> None:
        """Renew until it is lost."""
        pause = self._ttl_s / KEPT_A_TTL
        while not self.lost.is_set():
            await asyncio.sleep(pause * random.uniform(0.8, 1.0))
            before = self._until
            try:
                if not await self._renew():
                    self._until = 0.0
                    self.lost.set()
            except DirectoryError:
                # Nobody answers, or nobody lets us: it may end, and `held_until` says so; an answer will tell.
                pass
            pause = self._ttl_s / (KEPT_A_TTL if self._until > before else AGAIN_A_TTL)

    async def _renew(self) -> bool:
        """Renew once; False: it is known to be gone."""
        sent, term = self._client.clock(), 0
        ends = sent + self._ttl_s
        try:
            sent, kept = await self._ask()
        except LeaseGone:
            return False
        if kept.TTL <= 0:
            return False
        term = kept.header.raft_term
        # deadline: that of `ends`
        confirmed = await (self._write(ends) if self._beat else self._read(ends))
        if confirmed is None:
            return False
        # A leader that was cut off or stood still, and does not know yet that there is another, renews what may have
        # ended at that one. It cannot answer the reading (or take the beat), which most members have to confirm: so the
        # renewal counts only when both were answered in one term.
        if confirmed.raft_term == term:
            self._until = max(self._until, safe_bound(sent, kept.TTL))
        return True

    async def _read(self, ends: float) -> Any:
        """The header of an answer by which our key is there; None: it is not."""
        found = await self._client.call(RANGE, pb.RangeRequest(key=self._key), ends)
        is_there = found.kvs and found.kvs[0].create_revision == self.identity.epoch
        return found.header if is_there else None

    async def _write(self, ends: float) -> Any:
        """The same of an answer to a beat, which is written only while it is there."""
        request = pb.TxnRequest()
        request.compare.append(_revision_is(self._key, self.identity.epoch))
        put = request.success.add().request_put
        put.key, put.value, put.lease = self._beat, b"%d %d" % (self.identity.epoch, self._ttl_s), self._lease
        try:
            answer = await self._client.call(TXN, request, ends)
        except LeaseGone:
            return None
        return answer.header if answer.succeeded else None

    async def _ask(self) -> tuple[float, pb.LeaseKeepAliveResponse]:
        """Ask member after member; the answer, and when the request that got it was sent."""
        request = pb.LeaseKeepAliveRequest(ID=self._lease)
        each = min(self._client.config.attempt_s, self._ttl_s / ATTEMPTS_A_TTL)
        ends = self._client.clock() + self._ttl_s / KEPT_A_TTL
        while True:
            sent = self._client.clock()
            try:
                return sent, await self._client.call(KEEP_ALIVE, request, sent + each)
            except Unavailable:
                if self._client.clock() >= ends:
                    raise


async def register(client: Client, prefix: str, node: str, value: bytes, ttl_s: int) -> EtcdRegistration:
    """See `Directory.register`."""
    key = (prefix + checked_registration(node, value, ttl_s)).encode()
    ends = client.clock() + client.config.deadline_s
    sent = client.clock()
    granted = await client.call(GRANT, pb.LeaseGrantRequest(TTL=ttl_s), ends)
    try:
        epoch = await _put(client, key, value, granted.ID, ends)
    except NotAllowed:
        await revoke(client, granted.ID)
        raise
    except LeaseGone as error:
        raise Unavailable(f"{client.config}: the lease ended before it had its key") from error
    beat = (prefix + BEATS + node).encode() if client.config.beats else b""
    return EtcdRegistration(client, key, NodeEpoch(node, epoch), granted.ID, granted.TTL, sent, beat)


async def end(client: Client, prefix: str, silent: NodeEpoch, revision: int) -> bool:
    """See `EtcdDirectory.end`. Its lease ends by itself, with nothing on it."""
    key, beat = (prefix + NODES + silent.node).encode(), (prefix + BEATS + silent.node).encode()
    request = pb.TxnRequest()
    request.compare.extend((_revision_is(key, silent.epoch), _revision_is(beat, revision)))
    request.success.add().request_delete_range.key = key
    request.success.add().request_delete_range.key = beat
    answer = await client.call(TXN, request)
    return bool(answer.succeeded)


def _revision_is(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=revision)


async def _put(client: Client, key: bytes, value: bytes, lease: int, ends: float) -> int:
    """Put the node's key on its lease, in place of what an earlier life left; its epoch."""
    request = pb.TxnRequest()
    request.compare.append(_revision_is(key, 0))
    put = request.success.add().request_put
    put.key, put.value, put.lease = key, value, lease
    request.failure.add().request_range.key = key
    for _ in range(REPLACEMENTS_MAX):
        answer = await client.call(TXN, request, ends)
        if answer.succeeded:
            return int(answer.header.revision)
        found = answer.responses[0].response_range.kvs
        if found and found[0].lease == lease:
            return int(found[0].create_revision)  # by an answer that got lost
        if found:
            await _remove(client, found[0], ends)
    raise Unavailable(f"{client.config}: {key.decode()} is registered again and again by another node of this name")


async def _remove(client: Client, former: pb.KeyValue, ends: float) -> None:
    """Remove the key of an earlier life, if it is still that one, and then what else may be on its lease."""
    request = pb.TxnRequest()
    request.compare.append(_revision_is(former.key, former.mod_revision))
    request.success.add().request_delete_range.key = former.key
    answer = await client.call(TXN, request, ends)
    if answer.succeeded and former.lease:
        await revoke(client, former.lease)


async def revoke(client: Client, lease: int) -> None:
    """Give a lease back; where that cannot be said, it ends by itself."""
    with contextlib.suppress(DirectoryError, LeaseGone):
        await client.call(REVOKE, pb.LeaseRevokeRequest(ID=lease))
