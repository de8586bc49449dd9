"""Claims of all callers on their way to etcd: gathered into batches, of which a few are under way, each settled."""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any

from core.owned import ACCOUNT
from router.directory import etcd_txn
from router.directory import etcdpb_pb2 as pb
from router.directory.etcd_client import GRANT, KEEP_ALIVE, PUT, REVOKE, TXN, Client, Compacted, LeaseGone
from router.directory.etcd_txn import Lane
from router.directory.port import Claim, DirectoryError, Lost, Result, Unavailable, Won, checked_claim, safe_bound

LANES = 4
"""Batches under way at once. etcd applies one after the other; more of them only queue there."""
WAITING_MAX = 50_000
"""Claims that wait for a batch; beyond it they are refused."""
LANE_TTL_S = 60
"""A lane's key goes by itself so long after the last batch; many times the deadline of a call."""


class _Call:
    """Claims that were asked for together; each is settled by the batch that it is in."""

    __slots__ = ("_left", "claims", "done", "ends", "results")

    def __init__(self, claims: Sequence[Claim], ends: float, done: asyncio.Future[None]) -> None:
        self.claims = claims
        self.ends = ends
        self.done = done
        self.results: list[Result | DirectoryError | None] = [None] * len(claims)
        self._left = len(claims)

    def settle(self, at: int, result: Result | DirectoryError) -> None:
        if self.results[at] is not None:
            return
        self.results[at] = result
        self._left -= 1
        if not self._left and not self.done.done():
            self.done.set_result(None)


_Asked = tuple[_Call, int]
"""One claim of a call."""


class Claims:
    """The claims of one process.

    Args:
        client: to etcd.
        prefix: before each key.

    """

    def __init__(self, client: Client, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._waiting: deque[_Asked] = deque()
        self._idle: list[Lane | None] = [None] * LANES
        """Lanes without a batch under way; None: one that has no key yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._lease = 0
        self._lease_until = 0.0
        self._lease_turn = asyncio.Lock()
        self._closed = False

    async def transact(self, claims: Sequence[Claim]) -> list[Result]:
        """See `Directory.transact`."""
        for claim in claims:
            checked_claim(claim)
        if self._closed or len(self._waiting) + len(claims) > WAITING_MAX:
            why = "closed here" if self._closed else f"{len(self._waiting)} claims wait already"
            raise Unavailable(f"{self._client.config}: {why}", nothing_done=True)
        ends = self._client.clock() + self._client.config.deadline_s
        loop = asyncio.get_running_loop()
        if not claims:
            return []
        call = _Call(claims, ends, loop.create_future())
        self._waiting.extend((call, at) for at in range(len(claims)))
        self._start()
        # deadline: of each claim, which its batch keeps. Cancelled, and with it what was not sent yet
        await call.done
        return _together(call.results)

    async def close(self) -> None:
        """Give up what waits and what is under way, and the lanes."""
        self._closed = True
        while self._waiting:
            call, at = self._waiting.popleft()
            call.settle(at, Unavailable(f"{self._client.config}: closed here", nothing_done=True))
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)  # deadline: they are cancelled
        if self._lease:
            with contextlib.suppress(DirectoryError, LeaseGone):
                await self._client.call(REVOKE, pb.LeaseRevokeRequest(ID=self._lease))
            self._lease = 0

    # --------------------------------------------------------------------------------------------------------- batches

    def _start(self) -> None:
        """Let idle lanes work; of claims that come in one turn of the loop none leaves before the last has come."""
        wanted = -(-len(self._waiting) // etcd_txn.CLAIMS_MAX)
        while self._idle and wanted > 0:
            wanted -= 1
            task = ACCOUNT.task(self._work(self._idle.pop()), "etcd claims")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, lane: Lane | None) -> None:
        """Settle batches while any claims wait."""
        batch: list[_Asked] = []
        try:
            while batch := self._next():
                try:
                    lane = await self._settle(lane, batch)
                except DirectoryError as error:
                    for call, at in batch:
                        call.settle(at, error)
        finally:
            for call, at in batch:
                call.settle(at, Unavailable(f"{self._client.config}: closed here, and the answer with it"))
            self._idle.append(lane)

    def _next(self) -> list[_Asked]:
        """The next claims that wait, of different keys; those that waited too long are done with."""
        found: dict[str, _Asked] = {}
        later: list[_Asked] = []
        size, clock = 0, self._client.clock()
        while self._waiting and len(found) < etcd_txn.CLAIMS_MAX and size < etcd_txn.BATCH_BYTES_MAX:
            one = call, at = self._waiting.popleft()
            if call.done.done():
                continue
            if call.ends <= clock:
                why = f"{self._client.config} is too slow: a claim was not even sent"
                call.settle(at, Unavailable(why, nothing_done=True))
                continue
            key, _, value, _ = call.claims[at]
            if key in found:
                later.append(one)
            else:
                found[key] = one
                size += len(key) + len(value or b"")
        self._waiting.extendleft(reversed(later))
        return list(found.values())

    async def _settle(self, lane: Lane | None, batch: list[_Asked]) -> Lane:
        """Send a batch until it is applied once; the lane on which it was.

        Raises:
            DirectoryError: it is not known to be applied.
        """
        claims = [call.claims[at] for call, at in batch]
        ends = batch[-1][0].ends
        while True:
            try:
                lane = await self._ready(lane, ends)
                lane.number += 1
                found = await self._send(lane, claims, ends)
            except LeaseGone:
                # Nothing was applied: a put on a lease that is gone fails, and the whole transaction with it.
                self._lease, lane = 0, None
                continue
            if found is None:
                lane = None
                continue
            for (call, at), result in zip(batch, found, strict=True):
                call.settle(at, result)
            return lane

    async def _send(self, lane: Lane, claims: list[Claim], ends: float) -> list[Result] | None:
        """Send the lane's last batch; the results. None: it was not applied, and the lane is gone."""
        while True:
            request = etcd_txn.batch(lane, self._prefix, claims)
            answer = await self._client.call(TXN, request, ends)
            if answer.succeeded:
                lane.revision = answer.header.revision
                return etcd_txn.results(answer, claims)
            found = etcd_txn.lane_of(answer)
            if found is None:
                # Its lease outlives every deadline: had the batch been applied before, the lane would be here.
                return None
            lane.revision = found.mod_revision
            if found.value == lane.mark:
                return await self._look_back(lane.revision, claims, ends)
            # An earlier batch, whose sender had given it up, was applied late. It was the last that could be.

    async def _look_back(self, revision: int, claims: list[Claim], ends: float) -> list[Result]:
        """The results of a batch that was applied at a revision, and whose answer got lost."""
        try:
            before, after = [
                await self._client.call(TXN, etcd_txn.history(at, self._prefix, claims), ends)
                for at in (revision - 1, revision)
            ]
        except Compacted as error:
            raise Unavailable(f"{self._client.config} answered too late: what it did is compacted already") from error
        return etcd_txn.results_of_history(revision, claims, before, after)

    # ----------------------------------------------------------------------------------------------------------- lanes

    async def _ready(self, lane: Lane | None, ends: float) -> Lane:
        """The lane with a lease that lives long enough, or a new one."""
        # deadline: whoever has the lock has that of its own batch
        async with self._lease_turn:
            if not self._lease or self._client.clock() > self._lease_until - LANE_TTL_S / 2:
                await self._renew(ends)
        if lane is None or lane.lease != self._lease:
            # Its name was never used: what was once sent on another lane cannot be applied on this one.
            key = f"{self._prefix}lanes/{secrets.token_hex(8)}".encode()
            put: Any = await self._client.call(PUT, pb.PutRequest(key=key, value=b"0", lease=self._lease), ends)
            lane = Lane(key, self._lease, put.header.revision)
        return lane

    async def _renew(self, ends: float) -> None:
        sent = self._client.clock()
        if self._lease:
            with contextlib.suppress(LeaseGone):
                kept = await self._client.call(KEEP_ALIVE, pb.LeaseKeepAliveRequest(ID=self._lease), ends)
                if kept.TTL > 0:
                    self._lease_until = safe_bound(sent, kept.TTL)
                    return
        granted = await self._client.call(GRANT, pb.LeaseGrantRequest(TTL=LANE_TTL_S), ends)
        self._lease, self._lease_until = granted.ID, safe_bound(sent, granted.TTL)


def _together(found: Sequence[Result | DirectoryError | None]) -> list[Result]:
    """The results, or the first error with all that is known."""
    results = [one for one in found if isinstance(one, Won | Lost)]
    if len(results) == len(found):
        return results
    errors = [one for one in found if isinstance(one, DirectoryError)]
    for error in errors:
        if not isinstance(error, Unavailable):
            raise error
    known = [one if isinstance(one, Won | Lost) else None for one in found]
    untouched = all(isinstance(error, Unavailable) and error.nothing_done for error in errors)
    raise Unavailable(str(errors[0]), results=known, nothing_done=untouched and len(errors) == len(found))
