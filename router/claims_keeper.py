"""Does what the state machines of sessions want: HELLOs of the data plane become claims in the directory, and answers.

One object a router process, used by its control thread's event loop alone. What the data plane says in one turn goes to
the directory together, in as few round trips as it takes: there is no task for a HELLO. Invariants:

- each CLAIM is answered by one CLAIMED, unless its connection ended before;
- nothing of a shard is claimed before its sessions were read, nor after it was given up;
- a HELLO whose worker does not wait for it any more is not claimed.

A directory that stands still is not waited for: once nothing was heard of it for SILENT_DEADLINE_S, whoever waits is
answered as `when_away` says, and whoever comes is at once, until it is heard of again.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack

from core import notes
from core.codes import Code
from core.owned import ACCOUNT
from core.records import CLAIM_BITS
from router.departed import Departed
from router.directory import port
from router.directory.embedded import EmbeddedDirectory
from router.plane import Orderly, Put
from router.shards import claims as machine
from router.shards import events as ev
from router.shards.claims import SessionClaims
from router.shards.owners import Fence, Owner, Policy, prefix_of
from router.silence import Silence

NEW, AGAIN, BYE = range(3)
"""What a CLAIM says, in the low bits of its flags (core/admission.pxd): a HELLO; a session that a connection has had
since before this router led its shard; the end of a connection."""
KIND_BITS = 2
"""Above them in the flags: the number of the worker on its node."""
UNIT = ".gw"
"""Behind a node's name: the life of its workers in the directory."""
HELLO_DEADLINE_S = 4.5
"""A worker answers a HELLO itself that is not answered for 5 s."""
SILENT_DEADLINE_S = 2.0
"""Nobody waits longer for a directory of which nothing is heard. etcd chooses a leader in 1 to 2 s."""
ROUND_CLAIMS = 480
UNDER_WAY_MAX = 2 * ROUND_CLAIMS
"""Enough to keep etcd busy. Beyond it HELLOs wait here, where one is dropped whose connection ends or whose time is
over: what was asked of the directory is work, also for nobody."""
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
A = TypeVar("A")
_log = logging.getLogger("holdfast.claims")


@dataclass(slots=True, eq=False)
class Asked:
    """What the data plane said of a connection."""

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
    owner: Owner | None = None
    """As whom the machine knows it, once that was told."""
    hello: "Asked | None" = None
    """Of BYE: the HELLO that had no answer yet."""


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
        """What the data plane said and no machine was told yet, the oldest first."""
        self._later: deque[Asked] = deque()
        """Of it, what has to wait for `_held_up`; older than all in the queue."""
        self._held_up: set[int | str] = set()
        """Shards that are not read yet, and nodes that the directory told nothing of."""
        self._again: asyncio.TimerHandle | None = None
        """Looks at `_later` once more."""
        self._pending: dict[int, Asked] = {}
        """HELLOs without an answer, by request."""
        self._claims: deque[tuple[SessionClaims, ev.Claim]] = deque()
        self._under_way = 0
        self._silence = Silence(SILENT_DEADLINE_S, clock)
        self._silent = False
        """Nothing was heard for too long, and nothing since."""
        self._departed = Departed(self._machines, self._give_back, self._is_busy, self._spawn)
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
                    page = await self._ask(self._directory.page(prefix, after, READ_KEYS))
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
            self._look_again()
            self._departed.look()

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

    # ----------------------------------------------------------------------------------------------- whether it answers

    def away(self) -> None:
        """The directory does not answer."""
        self._reach(True)

    def back(self) -> None:
        """The directory answers again."""
        self._reach(False)

    def look(self) -> None:
        """See whether the directory answers, and whether it was waited for long enough."""
        if self._silence.is_long() and not self._silent:
            self._silent = True
            _log.warning("the directory says nothing: nobody waits for it any longer to get a session")
            self._wait_no_longer()
            self._spawn(self._ask_until_heard(), "asking a silent directory")
        self._reach(self._silent or not self._directory.reachable().answers)

    def _reach(self, away: bool) -> None:
        if self._away == away:
            return
        self._away = away
        for one in list(self._machines.values()):
            self._do(one, ev.DirectoryAway() if away else ev.DirectoryBack())
        self._look_again()

    def _wait_no_longer(self) -> None:
        """Answer all who wait, and do not even send what was not yet."""
        for one in list(self._machines.values()):
            self._do(one, machine.DirectorySilent())
        unsent, self._claims = self._claims, deque()
        for one, claim in unsent:
            self._do(one, ev.ClaimAnswered(claim, None))

    async def _ask(self, question: Awaitable[A]) -> A:
        """The directory's answer to a question, of which it is noticed how long it takes."""
        heard = True
        self._silence.asked()
        try:
            return await question  # deadline: the directory's own
        except port.Unavailable as error:
            heard = any(result is not None for result in error.results)
            raise
        finally:
            self._silence.ended(heard=heard)
            self._silent = self._silent and not heard

    async def _ask_until_heard(self) -> None:
        while self._silent:
            with contextlib.suppress(port.DirectoryError):
                await self._ask(self._directory.page(port.NODES, "", 1))  # deadline: likewise
                return
            await asyncio.sleep(AGAIN_S)

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
        node = self._node_of(identity)
        kind = flags & ((1 << KIND_BITS) - 1)
        worker = _worker(start, flags >> KIND_BITS)
        asked = Asked(request, kind, session, node, worker, connection, fence, stored, self._clock())
        if kind == NEW:
            self._pending[request] = asked
        elif request:
            asked.hello = self._pending.pop(request, None)  # it is answered no more
        self._queue.append(asked)
        self._soon()

    def _node_of(self, identity: bytes) -> str:
        node = self._nodes.get(identity)
        if node is None:
            name = identity.split(b"/", 1)[0].decode(errors="replace")
            node = self._nodes[identity] = name + UNIT
        return node

    def _soon(self) -> None:
        if self._turn is None and (self._queue or self._claims):
            self._turn = asyncio.get_running_loop().call_soon(self._take)

    def _take(self) -> None:
        """Tell the machines what waits, as far as there is room for what they want of the directory."""
        self._turn = None
        # While it is away nothing is asked of it.
        while self._queue and (self._away or self._under_way + len(self._claims) < UNDER_WAY_MAX):
            asked = self._queue.popleft()
            if not (self._bye(asked) if asked.kind == BYE else self._hello(asked)):
                self._later.append(asked)
        if self._later and self._again is None:
            self._again = asyncio.get_running_loop().call_later(UNKNOWN_UNIT_S, self._look_again)
        while self._claims and self._under_way < UNDER_WAY_MAX:
            claims = [self._claims.popleft() for _ in range(min(ROUND_CLAIMS, len(self._claims)))]
            self._under_way += len(claims)
            self._spawn(self._settle(claims), f"{len(claims)} claims of sessions")

    def _look_again(self) -> None:
        """What had to wait comes before all that came after it."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._held_up.clear()
        self._queue.extendleft(reversed(self._later))
        self._later.clear()
        self._soon()

    def _holds_up(self, one: SessionClaims | None, asked: Asked) -> bool:
        """Whether a shard is still being read; what came of it meanwhile keeps its order."""
        shard = asked.session[0] & self._mask
        if one is None or (one.ready() and shard not in self._held_up):
            return False
        self._held_up.add(shard)
        return True

    def _hello(self, asked: Asked) -> bool:
        """Tell the shard's machine of a connection; False: that has to wait."""
        one = self._machines.get(asked.session[0] & self._mask)
        if asked.kind == AGAIN:
            if self._holds_up(one, asked):
                return False
            if one is not None:
                self._has_already(one, asked)
            return True
        if asked.request not in self._pending:
            return True  # its connection has ended
        epoch = self._unit_epoch(asked.node)
        waits = self._clock() - asked.came <= HELLO_DEADLINE_S
        if one is None or not waits or (self._away and not (one.ready() and epoch)):
            self._refuse(asked.request, Code.UNAVAILABLE, "nobody can tell now whose the session is: come back")
            return True
        if self._holds_up(one, asked):
            return False
        if not epoch or asked.node in self._held_up:
            self._held_up.add(asked.node)
            return False
        told = msgpack.unpackb(asked.stored) if asked.stored else {}
        user, device = str(told.get("user", "")), str(told.get("device", ""))
        owner = Owner(asked.session.hex(), user, device, asked.node, epoch, asked.worker, asked.connection)
        asked.owner = owner
        self._epochs.add(epoch)
        self._do(one, machine.Hello(asked.request, owner))
        return True

    def _has_already(self, one: SessionClaims, asked: Asked) -> None:
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
        if self._holds_up(one, asked):
            return False
        owner = asked.hello.owner if asked.hello is not None else None
        if owner is None:
            found = one.route(asked.session.hex())
            if found is None or (found[0].worker, found[0].connection) != (asked.worker, asked.connection):
                return True
            owner = found[0]
        self._do(one, machine.Bye(owner))
        return True

    # ----------------------------------------------------------------------------------------------- workers that died

    def on_began(self, number: int, start: int, identity: bytes) -> None:
        """NOTE_BEGAN: a worker began, and no earlier start of it runs: what those had is given back in a while.

        Args:
            number: the worker's on its node.
            start: epoch of its start.
            identity: its own on the bus.

        """
        self._departed.began(self._node_of(identity), _worker(start, number))

    def _give_back(self, one: SessionClaims, owner: Owner) -> None:
        """Unless it was claimed again."""
        self._do(one, machine.Bye(owner))
        self._soon()

    def _is_busy(self) -> bool:
        """Whether what need not be now had better wait."""
        return self._away or self._under_way + len(self._claims) >= ROUND_CLAIMS

    # ------------------------------------------------------------------------------------------------------ directory

    async def _settle(self, claims: Sequence[tuple[SessionClaims, ev.Claim]]) -> None:
        results: Sequence[port.Result | None]
        try:
            results = await self._ask(self._directory.transact([claim for _, claim in claims]))
        except port.DirectoryError as error:
            known = error.results if isinstance(error, port.Unavailable) else ()
            results = known if len(known) == len(claims) else [None] * len(claims)
            _log.warning("what became of %d claims of sessions is not known: %s", results.count(None), error)
        finally:
            self._under_way -= len(claims)
        for (one, claim), result in zip(claims, results, strict=True):
            self._do(one, ev.ClaimAnswered(claim, result))
        self._soon()

    # -------------------------------------------------------------------------------------------------------- effects

    def _do(self, one: SessionClaims, event: machine.SessionEvent) -> None:
        ends: dict[Owner, machine.End] = {}
        for effect in one.step(event):
            if isinstance(effect, ev.Claims):
                for claim in effect.claims:
                    self._claims.append((one, claim))
            elif isinstance(effect, machine.Admit):
                self._admit(effect, ends.pop(effect.owner, None) if ends else None)
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
            self.look()
            for epoch in [one for one in self._epochs if self._over(one)]:
                self._epochs.discard(epoch)
                self.node_over(epoch)
            if self._clock() >= rests:
                rests = self._clock() + REST_S
                self._nodes.clear()
                self._departed.forget(self._unit_epoch)
                for one in self._machines.values():
                    one.table.forget_gone()

    def _spawn(self, work: Any, name: str) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = ACCOUNT.task(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Claim nothing more. What is under way may still come about, and belongs to nobody then."""
        for timer in (self._turn, self._again):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_DEADLINE_S)
        self._orderly.close()
        self._held.close()


def _worker(start: int, number: int) -> int:
    """A worker's number in an owner: of a later start at the same place it is higher."""
    return (start & ((1 << 48) - 1)) << 8 | number & 0xFF


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
