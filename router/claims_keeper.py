"""Does what the state machines of sessions want: HELLOs of the data plane become claims in the directory, and answers.

One object a router process, used by its control thread's event loop alone. What the data plane says in one turn goes to
the directory together, in as few round trips as it takes: there is no task for a HELLO. Invariants:

- each CLAIM is answered by one CLAIMED, unless its connection ended before;
- nothing of a shard is claimed before its sessions were read, nor after it was given up;
- a HELLO whose worker does not wait for it any more is not claimed.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgpack

from core import notes
from core.codes import Code
from core.owned import ACCOUNT
from core.records import CLAIM_BITS
from router.directory import port
from router.directory.embedded import EmbeddedDirectory
from router.plane import Orderly, Put
from router.shards import claims as machine
from router.shards import events as ev
from router.shards.claims import SessionClaims
from router.shards.owners import Fence, Owner, Policy, prefix_of

NEW, AGAIN, BYE = range(3)
"""What a CLAIM says, in the low bits of its flags (core/admission.pxd): a HELLO; a session that a connection has had
since before this router led its shard; the end of a connection."""
KIND_BITS = 2
"""Above them in the flags: the number of the worker on its node."""
UNIT = ".gw"
"""Behind a node's name: the life of its workers in the directory."""
HELLO_DEADLINE_S = 4.5
"""A worker answers a HELLO itself that is not answered for 5 s."""
ROUND_CLAIMS = 480
UNDER_WAY_MAX = 8 * ROUND_CLAIMS
"""Beyond it HELLOs wait here, where they can still be dropped."""
UNKNOWN_UNIT_S = 0.05
"""Before a node is looked for again of whose life the directory has told nothing yet."""
READ_KEYS = 1000
READERS = 8
AGAIN_S = 0.5
LOOK_S = 0.25
REST_S = 30.0
STOP_DEADLINE_S = 5.0
NOBODY = bytes(16)
LOCAL_MAX = (1 << CLAIM_BITS) - 1
_log = logging.getLogger("holdfast.claims")


class Asked(NamedTuple):
    """A HELLO that has no answer yet."""

    request: int
    """0: of the end of a connection, or of one that has its session already."""
    kind: int
    session: bytes
    node: str
    worker: int
    connection: int
    fence: int
    stored: bytes
    """MessagePack of what is stored of the session."""
    came: float


class ClaimsKeeper:
    """Executes the claims of the shards that are led here.

    Args:
        directory: takes claims.
        put: tells the data plane.
        policy: how many sessions a user may have.
        when_away: `local` or `refuse`: what becomes of HELLOs while the directory is away.
        unit_epoch: the epoch that a name under `nodes/` has now; 0: it is not known.
        over: whether an epoch is certainly over.
        shards: how many there are.
        clock: seconds.

    """

    def __init__(
        self,
        directory: port.Directory,
        put: Put,
        policy: Policy = Policy.MANY,
        when_away: str = "refuse",
        *,
        unit_epoch: Callable[[str], int],
        over: Callable[[int], bool] = lambda epoch: False,
        shards: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._orderly = Orderly(put)
        self._policy = policy
        self._locally = when_away == "local"
        self._unit_epoch = unit_epoch
        self._over = over
        self._mask = shards - 1
        self._clock = clock
        self._machines: dict[int, SessionClaims] = {}
        self._reading: dict[int, asyncio.Task[None]] = {}
        self._readers = asyncio.Semaphore(READERS)
        self._queue: deque[Asked] = deque()
        """What the data plane said and no machine was told yet."""
        self._pending: dict[int, Asked] = {}
        """HELLOs without an answer, by request."""
        self._owners: dict[int, Owner] = {}
        """As whom the machines know them."""
        self._claims: deque[tuple[SessionClaims, ev.Claim]] = deque()
        self._under_way = 0
        self._turn: asyncio.Handle | None = None
        self._away = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._nodes: dict[bytes, str] = {}
        self._epochs: set[int] = set()
        """The lives of nodes that sessions were claimed for."""
        self.admitted = self.refused = 0
        self._held = ACCOUNT.hold("handle", "the keeper of claims", object_=self)

    # -------------------------------------------------------------------------------------------------------- shards

    def lead(self, shard: int, *, empty: bool = False) -> None:
        """A shard is led here from now on; `empty`: nobody can have claimed a session in it before."""
        if shard in self._machines:
            return
        one = self._machines[shard] = SessionClaims(shard, self._policy, self._locally, self._over)
        if self._away:
            one.step(ev.DirectoryAway())
        if empty:
            one.step(ev.Snapshot(prefix_of(shard), 0, {}))
        else:
            self._reading[shard] = self._spawn(self._read(shard, one), f"sessions of shard {shard}")

    async def _read(self, shard: int, one: SessionClaims) -> None:
        """All sessions of a shard, page by page. What changes meanwhile, answers to claims tell."""
        prefix, after, first = prefix_of(shard), "", -1
        items: dict[str, tuple[bytes, int]] = {}
        while self._machines.get(shard) is one:
            try:
                async with self._readers:  # deadline: that of each page before it, the directory's own
                    page = await self._directory.page(prefix, after, READ_KEYS)
            except port.DirectoryError as error:
                _log.warning("the sessions of shard %d cannot be read yet: %s", shard, error)
                await asyncio.sleep(AGAIN_S)
                continue
            first = page.revision if first < 0 else first
            items.update((key, (item.value, item.revision)) for key, item in page.items.items())
            if len(page.items) < READ_KEYS:
                break
            after = next(reversed(page.items))
        if self._reading.get(shard) is asyncio.current_task():
            del self._reading[shard]
        if self._machines.get(shard) is one:
            self._do(one, ev.Snapshot(prefix, first, items))
            self._epochs.update(owner.node_epoch for owner in one.owners())
            self._soon()

    def stop(self, shard: int) -> None:
        """A shard is not led here any more: whoever waits is to ask its next leader."""
        one = self._machines.pop(shard, None)
        reading = self._reading.pop(shard, None)
        if reading is not None:
            reading.cancel()
        if one is not None:
            self._do(one, machine.Stopped())
            self._soon()

    def ready(self, shard: int) -> bool:
        """Whether claims in a shard are answered."""
        one = self._machines.get(shard)
        return one is not None and one.ready()

    def route(self, session: bytes) -> tuple[Owner, Fence] | None:
        """Whose a session is."""
        one = self._machines.get(session[0] & self._mask)
        return one.route(session.hex()) if one is not None else None

    def node_over(self, epoch: int) -> None:
        """A life of a node is over. Where its name lives on, its workers do, and what they have is claimed anew."""
        for one in list(self._machines.values()):
            if not one.ready():
                continue
            lost = [owner for owner in one.owners() if owner.node_epoch == epoch]
            if not lost:
                continue
            self._do(one, machine.NodeOver(epoch))
            for owner in lost:
                again = self._unit_epoch(owner.node)
                if again and again != epoch:
                    self._do(one, machine.Hello(0, owner._replace(node_epoch=again)))
        self._soon()

    def away(self) -> None:
        """The directory does not answer."""
        self._reach(True)

    def back(self) -> None:
        """The directory answers again."""
        self._reach(False)

    def _reach(self, away: bool) -> None:
        if self._away == away:
            return
        self._away = away
        for one in list(self._machines.values()):
            self._do(one, ev.DirectoryAway() if away else ev.DirectoryBack())
        self._soon()

    # --------------------------------------------------------------------------------------------------------- HELLOs

    def on_claim(
        self,
        request: int,
        flags: int,
        connection: int,
        fence: int,
        start: int,
        session: bytes,
        stored: bytes,
        identity: bytes,
    ) -> None:
        """NOTE_CLAIM.

        Args:
            request: of the answer.
            flags: NEW, AGAIN or BYE, and the number of the worker.
            connection: the worker's handle.
            fence: of AGAIN: that of the claim.
            start: epoch of the worker's start.
            session: its id.
            stored: of NEW: what is stored of the session, which names its user and class of device.
            identity: the worker's on the bus.

        """
        node = self._nodes.get(identity)
        if node is None:
            name = identity.split(b"/", 1)[0].decode(errors="replace")
            node = self._nodes[identity] = name + UNIT
        kind = flags & ((1 << KIND_BITS) - 1)
        worker = (start & ((1 << 48) - 1)) << 8 | flags >> KIND_BITS & 0xFF
        asked = Asked(request, kind, session, node, worker, connection, fence, stored, self._clock())
        if kind == NEW:
            self._pending[request] = asked
        elif request:
            self._pending.pop(request, None)  # it is answered no more
        self._queue.append(asked)
        self._soon()

    def _soon(self) -> None:
        if self._turn is None and (self._queue or self._claims):
            self._turn = asyncio.get_running_loop().call_soon(self._take)

    def _take(self) -> None:
        """Tell the machines what waits, as far as there is room for what they want of the directory."""
        self._turn = None
        later: list[Asked] = []
        while self._queue and self._under_way + len(self._claims) < UNDER_WAY_MAX:
            asked = self._queue.popleft()
            if not (self._bye(asked) if asked.kind == BYE else self._hello(asked)):
                later.append(asked)
        if later:
            self._queue.extendleft(reversed(later))
            self._turn = asyncio.get_running_loop().call_later(UNKNOWN_UNIT_S, self._take)
        while self._claims and self._under_way < UNDER_WAY_MAX:
            claims = [self._claims.popleft() for _ in range(min(ROUND_CLAIMS, len(self._claims)))]
            self._under_way += len(claims)
            self._spawn(self._settle(claims), f"{len(claims)} claims of sessions")

    def _hello(self, asked: Asked) -> bool:
        """Tell the shard's machine of a connection; False: that has to wait."""
        one = self._machines.get(asked.session[0] & self._mask)
        if asked.kind == AGAIN:
            if one is not None and one.ready():
                self._again(one, asked)
            return one is None or one.ready()
        if asked.request not in self._pending:
            return True  # its connection has ended
        if one is None or self._clock() - asked.came > HELLO_DEADLINE_S:
            self._refuse(asked.request, Code.UNAVAILABLE, "nobody can tell now whose the session is: come back")
            return True
        epoch = self._unit_epoch(asked.node)
        if not one.ready() or not epoch:
            return False
        told = msgpack.unpackb(asked.stored) if asked.stored else {}
        user, device = str(told.get("user", "")), str(told.get("device", ""))
        owner = Owner(asked.session.hex(), user, device, asked.node, epoch, asked.worker, asked.connection)
        self._owners[asked.request] = owner
        self._epochs.add(epoch)
        self._do(one, machine.Hello(asked.request, owner))
        return True

    def _again(self, one: SessionClaims, asked: Asked) -> None:
        """A connection that has a session, by its worker: unless somebody has it by a later claim, that is so."""
        found = one.route(asked.session.hex())
        if found is None or (found[0].worker, found[0].connection) == (asked.worker, asked.connection):
            return
        if _number(found[1]) > asked.fence:
            mine = found[0]._replace(node=asked.node, worker=asked.worker, connection=asked.connection)
            self._evict(machine.End(mine, found[0], same_session=True))

    def _bye(self, asked: Asked) -> bool:
        one = self._machines.get(asked.session[0] & self._mask)
        if one is None:
            return True
        owner = self._owners.pop(asked.request, None) if asked.request else None
        if owner is None:
            found = one.route(asked.session.hex())
            if found is None or (found[0].worker, found[0].connection) != (asked.worker, asked.connection):
                return True
            owner = found[0]
        self._do(one, machine.Bye(owner))
        return True

    # ------------------------------------------------------------------------------------------------------ directory

    async def _settle(self, claims: Sequence[tuple[SessionClaims, ev.Claim]]) -> None:
        results: Sequence[port.Result | None]
        try:
            results = await self._directory.transact(
                [
                    port.Claim(
                        claim.key,
                        claim.expected_revision,
                        claim.value,
                        port.NodeEpoch(*claim.alive) if claim.alive else None,
                    )
                    for _, claim in claims
                ]
            )
        except port.DirectoryError as error:
            known = error.results if isinstance(error, port.Unavailable) else ()
            results = known if len(known) == len(claims) else [None] * len(claims)
            _log.warning("what became of %d claims of sessions is not known: %s", results.count(None), error)
        finally:
            self._under_way -= len(claims)
        for (one, claim), result in zip(claims, results, strict=True):
            told = None if result is None else ev.Won(*result) if isinstance(result, port.Won) else ev.Lost(*result)
            self._do(one, ev.ClaimAnswered(claim, told))
        self._soon()

    # -------------------------------------------------------------------------------------------------------- effects

    def _do(self, one: SessionClaims, event: machine.SessionEvent) -> None:
        ends: dict[Owner, machine.End] = {}
        for effect in one.step(event):
            kind = type(effect)
            if kind is ev.Claims:
                self._claims.extend((one, claim) for claim in effect.claims)  # type: ignore[union-attr]
            elif isinstance(effect, machine.Admit):
                self._admit(effect, ends.pop(effect.owner, None))
            elif isinstance(effect, machine.Refuse):
                self._on_refuse(effect)
            elif isinstance(effect, machine.End):
                if effect.by in ends:
                    self._evict(ends[effect.by])
                ends[effect.by] = effect
            elif isinstance(effect, ev.Complain):
                _log.warning("%s", effect.text)
        for end in ends.values():
            self._evict(end)

    def _admit(self, effect: machine.Admit, end: machine.End | None) -> None:
        self._owners.pop(effect.request, None)
        if self._pending.pop(effect.request, None) is None:
            if end is not None:
                self._evict(end)
            return
        self.admitted += 1
        code, former, why = 0, NOBODY, b""
        if end is not None:
            code, why, former = *_told(end), bytes.fromhex(end.owner.session)
        self._orderly.tell(
            notes.CLAIMED, request=effect.request, first=_number(effect.fence), second=code, text=former + why
        )

    def _on_refuse(self, effect: machine.Refuse) -> None:
        self._owners.pop(effect.request, None)
        if effect.by is None:
            self._refuse(effect.request, Code.UNAVAILABLE, "nobody can tell now whose the session is: come back")
        else:
            same = effect.by.session == effect.owner.session
            code, why = _told(machine.End(effect.owner, effect.by, same_session=same))
            self._refuse(effect.request, code, why.decode())

    def _refuse(self, request: int, code: int, why: str) -> None:
        if self._pending.pop(request, None) is not None:
            self.refused += 1
            self._orderly.tell(notes.CLAIMED, request=request, second=int(code), text=NOBODY + why.encode())

    def _evict(self, end: machine.End) -> None:
        code, why = _told(end)
        session = bytes.fromhex(end.owner.session)
        self._orderly.tell(notes.EVICT, conn=end.owner.connection, first=code, text=session + why)

    # ---------------------------------------------------------------------------------------------------------- tasks

    async def run(self) -> None:
        """Look whether the directory answers, and who is over; now and then, forget what is over for long."""
        rests = self._clock() + REST_S
        while True:
            await asyncio.sleep(LOOK_S)
            self._reach(not self._directory.reachable().answers)
            for epoch in [one for one in self._epochs if self._over(one)]:
                self._epochs.discard(epoch)
                self.node_over(epoch)
            if self._clock() >= rests:
                rests = self._clock() + REST_S
                self._nodes.clear()
                for one in self._machines.values():
                    one.table.forget_gone()

    def _spawn(self, work: Any, name: str) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = ACCOUNT.task(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Claim nothing more. What is under way may still come about, and belongs to nobody then."""
        if self._turn is not None:
            self._turn.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_DEADLINE_S)
        self._orderly.close()
        self._held.close()


def _number(fence: Fence) -> int:
    """A fence as the data plane compares it."""
    return fence.revision << CLAIM_BITS | min(fence.local, LOCAL_MAX)


def _told(end: machine.End) -> tuple[int, bytes]:
    """The code and the reason that the loser of a session hears."""
    where = f"on node {end.by.node.removesuffix(UNIT)}"
    if end.same_session:
        return int(Code.RESUMED_ELSEWHERE), f"the session was resumed on another connection, {where}".encode()
    device = f"a device of class {end.by.device_class}" if end.by.device_class else "another device"
    return int(Code.KICKED), f"{end.by.user} logged in from {device}, {where}".encode()


class Alone:
    """A directory in this process, where every node that is named lives: for one router that has none to share."""

    def __init__(self) -> None:
        self.directory = EmbeddedDirectory()
        self._units: dict[str, port.Registration] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def unit_epoch(self, name: str) -> int:
        """The epoch of a node's workers; 0 for the moment that it takes to know one."""
        unit = self._units.get(name)
        if unit is not None and not unit.lost.is_set():
            return unit.identity.epoch
        if name not in self._tasks:
            self._tasks[name] = ACCOUNT.task(self._register(name), f"the place of {name}")
        return 0

    async def _register(self, name: str) -> None:
        self._units[name] = await self.directory.register(name, b"", port.TTL_MAX_S)
        del self._tasks[name]

    async def close(self) -> None:
        """Nobody lives here any more."""
        for task in self._tasks.values():
            task.cancel()
        for unit in self._units.values():
            await unit.close()  # deadline: the directory's own
        await self.directory.close()
