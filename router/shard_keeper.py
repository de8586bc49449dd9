"""Does what the state machine of shards wants, and tells it what became of that: claims, notes, reads of the log.

One object a router process, used by its control thread's event loop alone; `feed` is its only way in. Invariants:

- Notes of one shard reach the data plane in this order: what the log has of it, LEAD, ..., FORGET; nothing of it is
  told again before the data plane has said FORGOTTEN. One that is lost while it is read is forgotten after that.
- What is to be opened in one turn of the event loop is opened in one call of the log, and read in few passes.
- Nothing of a shard is on its way to the log or to the store of sessions when Drained is told, nor comes there later.
- A shard is followed only while nothing of it as a led one is with the data plane, and led only when what was followed
  is forgotten: whoever follows tells the data plane by `tell`, in one order with all else, and nothing more of a shard
  once `follow` was called without it.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from core import log_records, notes
from core.owned import ACCOUNT
from core.records import CLAIM_BITS
from core.shards import OF_GLOBALS
from router.directory import port
from router.log.port import LogDeposed, LogError, Standing
from router.plane import Orderly, Put
from router.shards import events as ev
from router.shards.leadership import Leadership

EPOCH_BITS = 24
"""Below a shard's epoch in those of its channels, which the data plane counts up while it leads. The log tells by the
bits above them under which epoch of the shard a record was made."""
FLUSH_DEADLINE_S = 1.0
FORGET_DEADLINE_S = 10.0
"""A large shard is forgotten in portions; past this the opening is given up, and tried again."""
READ_TOGETHER = 32
"""Shards that are read in one pass: the first of many that are taken over are led while the others are still read."""
ABLE_AGAIN_S = 0.1
ABLE_SAID_S = 10.0
"""So often one of the shards that could not be opened here is named, and why."""
OPERATOR_DEADLINE_S = 10.0
STOP_DEADLINE_S = 5.0
_log = logging.getLogger("holdfast.shards")
Leaders = Mapping[int, tuple[str, int]]
"""By shard, the region where it is led, and its epoch."""


@runtime_checkable
class ShardLog(Protocol):
    """What is needed of a log that several routers write: see `router.log.port`."""

    async def open_shards(self, epochs: Mapping[int, int]) -> Mapping[int, int | None]:
        """Have it refuse lower epochs of shards; by shard, None, or the higher epoch that it knows."""
        ...

    def recover_shards(self, shards: Collection[int]) -> AsyncIterator[bytes]:
        """What was appended to them within the window of the idempotency keys."""

    async def standing(self, namespaces: Sequence[str]) -> list[Standing]:
        """The global channels."""
        ...

    async def close_shards(self, shards: Collection[int]) -> None:
        """They are another's."""


class ShardKeeper:
    """Executes one router's part.

    Args:
        machine: decides.
        directory: takes claims.
        log: an open one; None: there is none, and a shard that is claimed is led at once.
        put: tells the data plane.
        flush: waits until all that is known of sessions is stored, within so many seconds; False: it is not.
        led: told of each shard, with its epoch, that is going to be led here; not when a pause ends.
        stopped: told of each shard that is not led here any more, or was not after all.
        follow: told of all shards that are to be followed, and where each is led: region and epoch of the shard.
        able: says what would keep a shard that another one leads from being opened here, or nothing; None: nothing
            ever does.
        everybodys: the namespaces of domain global.
        clock: that of leases.

    """

    def __init__(
        self,
        machine: Leadership,
        directory: port.Directory,
        log: ShardLog | None,
        put: Put,
        *,
        flush: Callable[[float], Awaitable[bool]],
        led: Callable[[int, int], None] = lambda shard, epoch: None,
        stopped: Callable[[int], None] = lambda shard: None,
        follow: Callable[[frozenset[int], Leaders], None] = lambda shards, leaders: None,
        able: Callable[[int], Awaitable[str]] | None = None,
        everybodys: Sequence[str] = ("global",),
        clock: Callable[[], float] = port.now,
    ) -> None:
        self.machine = machine
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Has an exception once this router has to end."""
        self.idle = asyncio.Event()
        """Set while no shard is ours."""
        self.idle.set()
        self._directory = directory
        self._log = log
        self._orderly = Orderly(put)
        self._flush = flush
        self._led = led
        self._stopped = stopped
        self._follow = follow
        self._able = able
        self._unable_at = float("-inf")
        """When it was said last that a shard is not asked for."""
        self._to_follow: Leaders = {}
        self._followed: Leaders = {}
        self._everybodys = everybodys
        self._clock = clock
        self._events: deque[ev.Event] = deque()
        self._stepping = False
        self._timer: asyncio.TimerHandle | None = None
        self._tickets: dict[int, asyncio.Future[str]] = {}
        self._last_ticket = 0
        self._wanted: dict[int, int] = {}
        """Shards that are opened or led, with their epochs."""
        self._writes: set[int] = set()
        self._to_open: dict[int, int] = {}
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._forgetting: dict[int, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = ACCOUNT.hold("handle", "the keeper of shards", object_=self)
        self._effects: dict[type, Callable[[Any], None]] = {
            ev.Claims: self._claims,
            ev.Hold: self._hold,
            ev.Open: self._open,
            ev.Lead: self._lead,
            ev.Resume: self._go_on,
            ev.Pause: lambda effect: self._orderly.tell(notes.PAUSE, request=effect.shard),
            ev.Drain: lambda effect: self._orderly.tell(notes.SHARD_DRAIN, request=effect.shard, first=effect.ticket),
            ev.Stop: self._stop,
            ev.Prepare: self._on_prepare,
            ev.Forget: lambda effect: None,
            ev.Follow: self._on_follow,
            ev.WakeAt: self._wake_at,
            ev.Told: self._told,
            ev.Complain: lambda effect: _log.warning("%s", effect.text),
        }

    # ----------------------------------------------------------------------------------------------------- the machine

    def feed(self, *events: ev.Event) -> None:
        """Tell the machine, and do what it wants."""
        self._events.extend(events)
        if self._stepping:
            return  # an effect is being executed: what it says comes behind the others
        self._stepping = True
        try:
            while self._events:
                for effect in self.machine.step(self._events.popleft(), self._clock()):
                    self._effects[type(effect)](effect)
        finally:
            self._stepping = False
        if self.machine.held:
            self.idle.clear()
        else:
            self.idle.set()

    def _wake_at(self, effect: ev.WakeAt) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wait = max(0.0, effect.time - self._clock())
        self._timer = asyncio.get_running_loop().call_later(wait, self._tick, effect.time)

    def _tick(self, due: float) -> None:
        self._timer = None
        if self._clock() < due:  # timers have only so many digits
            self._wake_at(ev.WakeAt(due))
        else:
            self.feed(ev.Tick())

    # ------------------------------------------------------------------------------------------------------- operators

    async def move(self, shard: int, to: str | None) -> str:
        """Have a shard led by a router, or by whichever placement says; what is wrong with that, or nothing."""
        return await self._operate(lambda ticket: ev.Move(shard, to, ticket))

    async def cordon(self, node: str, on: bool, *, leaving: bool = False) -> str:
        """Have a router lead nothing, or lift that; what is wrong with that, or nothing."""
        return await self._operate(lambda ticket: ev.Cordon(node, on, ticket, leaving))

    async def _operate(self, event: Callable[[int], ev.Event]) -> str:
        self._last_ticket += 1
        ticket = self._last_ticket
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tickets[ticket] = answer
        self.feed(event(ticket))
        try:
            async with asyncio.timeout(OPERATOR_DEADLINE_S):
                return await answer
        except TimeoutError:
            return "the directory does not answer: look what is there, and ask again"
        finally:
            del self._tickets[ticket]

    def _told(self, effect: ev.Told) -> None:
        answer = self._tickets.get(effect.ticket)
        if answer is not None and not answer.done():
            answer.set_result(effect.problem)

    # ---------------------------------------------------------------------------------------------------------- claims

    def _claims(self, effect: ev.Claims) -> None:
        self._spawn(self._claim(effect.claims), "claims of shards")

    async def _claim(self, claims: tuple[ev.Claim, ...]) -> None:
        asked = [
            port.Claim(one.key, one.expected_revision, one.value, port.NodeEpoch(*one.alive) if one.alive else None)
            for one in claims
        ]
        results: Sequence[port.Result | None]
        try:
            results = await self._directory.transact(asked)
        except port.DirectoryError as error:
            known = error.results if isinstance(error, port.Unavailable) else ()
            results = known if len(known) == len(asked) else [None] * len(asked)
            _log.warning("what became of %d claims of shards is not known: %s", results.count(None), error)
        self.feed(*map(_answered, claims, results))

    # -------------------------------------------------------------------------------------------------- the data plane

    def _hold(self, effect: ev.Hold) -> None:
        self._orderly.tell(notes.HOLD, first=int(effect.until * 1000))

    def _lead(self, effect: ev.Lead) -> None:
        self._led(effect.shard, effect.epoch)
        self._go_on(effect)

    def _go_on(self, effect: ev.Lead | ev.Resume) -> None:
        self._writes.add(effect.shard)
        self._orderly.tell(
            notes.LEAD,
            request=effect.shard,
            first=effect.epoch << EPOCH_BITS,
            second=effect.epoch << CLAIM_BITS,
        )

    def on_drained(self, shard: int, ticket: int) -> None:
        """NOTE_DRAINED: the log has all of a paused shard."""
        self._spawn(self._drain(shard, ticket), f"drain of shard {shard}")

    async def _drain(self, shard: int, ticket: int) -> None:
        stored = await self._flush(FLUSH_DEADLINE_S)  # deadline: its argument
        giving = self.machine.giving.get(shard)
        if stored and giving is not None and giving.ticket == ticket:
            self._writes.discard(shard)  # the data plane may still say that one of its sessions is there
            self.feed(ev.Drained(shard, ticket))

    def writes(self, shard: int) -> bool:
        """Whether what the data plane says of a shard is to be stored: it is led here, and not about to be given."""
        return shard in self._writes

    # ----------------------------------------------------------------------------------------------------- taking over

    def _on_prepare(self, effect: ev.Prepare) -> None:
        """Nothing is read ahead: it may be out of date once it is led, and would have to be forgotten first."""
        if self._able is None:
            self.feed(ev.Prepared(effect.shard, effect.epoch))
        else:
            self._spawn(self._prepare(effect, self._able), f"preparing shard {effect.shard}")

    async def _prepare(self, effect: ev.Prepare, able: Callable[[int], Awaitable[str]]) -> None:
        """Say Prepared once it could be opened here, unless it is not wanted any more: its leader pauses only then."""
        shard, epoch = effect
        while True:
            why = await able(shard)  # deadline: its own
            taking = self.machine.taking.get(shard)
            if taking is None or taking.epoch != epoch or taking.asked:
                return
            if not why:
                self.feed(ev.Prepared(shard, epoch))
                return
            if self._clock() >= self._unable_at + ABLE_SAID_S:
                self._unable_at = self._clock()
                _log.warning("shard %d is left where it is led, since it could not be opened here: %s", shard, why)
            await asyncio.sleep(ABLE_AGAIN_S)

    # ------------------------------------------------------------------------------------------------------- following

    def tell(self, kind: int, **fields: Any) -> None:
        """Tell the data plane about a followed shard, behind all that was said before."""
        self._orderly.tell(kind, **fields)

    async def tell_much(self, kind: int, **fields: Any) -> None:
        """The same of something large."""
        await self._orderly.tell_much(kind, **fields)

    def follow_anew(self, shard: int) -> None:
        """The data plane is to forget what it has of a followed shard, and then to be told of it as it is now."""
        if shard in self._followed:
            self._forget(shard)
            self._follow_what_is_free()

    def _on_follow(self, effect: ev.Follow) -> None:
        self._to_follow = effect.leaders
        self._follow_what_is_free()

    def _follow_what_is_free(self) -> None:
        """What is to be followed and is neither led here nor still to be forgotten; the rest of it then."""
        busy = self._wanted.keys() | self._opening.keys() | self._forgetting.keys()
        free = {shard: leader for shard, leader in self._to_follow.items() if shard not in busy}
        if free == self._followed:
            return
        let_go = self._followed.keys() - free.keys()
        self._followed = free
        self._follow(frozenset(free), free)
        for shard in sorted(let_go):
            self._forget(shard)

    # --------------------------------------------------------------------------------------------------------- the end

    def _stop(self, effect: ev.Stop) -> None:
        self._writes.discard(effect.shard)
        self._wanted.pop(effect.shard, None)
        self._to_open.pop(effect.shard, None)
        self._stopped(effect.shard)
        if effect.shard not in self._opening:  # else at the end of that
            self._forget(effect.shard)

    def _forget(self, shard: int) -> None:
        if shard not in self._forgetting:
            self._forgetting[shard] = asyncio.Event()
            self._orderly.tell(notes.FORGET, request=shard)

    def on_forgotten(self, shard: int) -> None:
        """NOTE_FORGOTTEN: the data plane has nothing of a shard any more."""
        self._spawn(self._close(shard), f"end of shard {shard}")

    async def _close(self, shard: int) -> None:
        """The log need not keep anything for it either; only then may it be opened again."""
        if self._log is not None:
            try:
                await self._log.close_shards([shard])
            except LogError as error:
                _log.warning("shard %d is closed, but not in the log: %s", shard, error)
        event = self._forgetting.pop(shard, None)
        if event is not None:
            event.set()
        self._follow_what_is_free()

    # --------------------------------------------------------------------------------------------------------- opening

    def _open(self, effect: ev.Open) -> None:
        self._wanted[effect.shard] = effect.epoch
        if not self._to_open:
            asyncio.get_running_loop().call_soon(self._open_all)
        self._to_open[effect.shard] = effect.epoch

    def _open_all(self) -> None:
        """All that was wanted in this turn, together."""
        epochs, self._to_open = self._to_open, {}
        if not epochs:
            return
        before = {self._opening[shard] for shard in epochs if shard in self._opening}
        task = self._spawn(self._open_together(epochs, before), f"opening of {len(epochs)} shards")
        self._opening.update(dict.fromkeys(epochs, task))

    async def _open_together(self, epochs: dict[int, int], before: set["asyncio.Task[None]"]) -> None:
        began = time.monotonic()
        left = set(epochs)
        try:
            async for answers in self._answers(epochs, before):
                done = [one.shard for one in answers]
                left.difference_update(done)
                self._let_go(done, epochs)
                self.feed(*answers)
        except LogDeposed as error:
            self._break(error)
        finally:
            self._let_go(left, epochs)
        _log.info("%d shards were opened within %.3f s", len(epochs) - len(left), time.monotonic() - began)

    def _let_go(self, shards: Collection[int], epochs: Mapping[int, int]) -> None:
        """Their opening is over, and the data plane is told nothing more by it."""
        mine = asyncio.current_task()
        for shard in shards:
            if self._opening.get(shard) is mine:
                del self._opening[shard]
            if self._wanted.get(shard) != epochs[shard]:
                self._forget(shard)

    async def _answers(
        self, epochs: dict[int, int], before: set["asyncio.Task[None]"]
    ) -> AsyncIterator[list[ev.Opened | ev.Refused]]:
        """What becomes of each, some at a time; of those that are open the data plane knows what the log has."""
        left = dict(epochs)
        try:
            async with asyncio.timeout(FORGET_DEADLINE_S):
                if before:
                    await asyncio.wait(before)
                for shard in epochs:
                    if shard in self._forgetting:
                        await self._forgetting[shard].wait()
        except TimeoutError:
            _log.warning("%d shards are not opened yet: the data plane still has to forget some of them", len(epochs))
            yield [ev.Refused(*one, None) for one in left.items()]
            return
        if self._log is None:
            yield [ev.Opened(*one) for one in left.items()]
            return
        try:
            for shard, newest in (await self._log.open_shards(epochs)).items():
                if newest is not None:
                    yield [ev.Refused(shard, left.pop(shard), newest)]
            while left:
                some = list(left.items())[:READ_TOGETHER]
                await self._recover(self._log, [shard for shard, _ in some], epochs)
                yield [ev.Opened(shard, left.pop(shard)) for shard, _ in some]
        except LogDeposed:
            raise
        except LogError as error:
            _log.warning("%d shards cannot be opened now: %s", len(left), error)
            yield [ev.Refused(*one, None) for one in left.items()]

    async def _recover(self, log: ShardLog, shards: Collection[int], epochs: Mapping[int, int]) -> None:
        async for batch in log.recover_shards(shards):  # deadline: the log's own, of each batch
            await self._orderly.tell_much(notes.LOG_RECOVER, text=batch)
        if OF_GLOBALS in shards:
            found = await log.standing(self._everybodys)
            text = b"".join(
                log_records.pack(log_records.POSITION, one.channel, *one.position, time_ms=one.time_ms) for one in found
            )
            epoch = epochs[OF_GLOBALS] << EPOCH_BITS
            await self._orderly.tell_much(notes.LOG_RECOVER, first=1, second=epoch, text=text)

    # ------------------------------------------------------------------------------------------------------- the tasks

    def _spawn(self, work: Any, name: str) -> "asyncio.Task[None]":
        task = ACCOUNT.task(work, name, owner=self._held)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)

    def held(self) -> list[int]:
        """The shards that are ours now, in order."""
        return sorted(self.machine.held)

    async def close(self) -> None:
        """Give up what is under way."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_DEADLINE_S)
        self._orderly.close()
        if self.broken.done():
            self.broken.exception()  # who wanted to know knows
        self._held.close()


def _answered(claim: ev.Claim, result: port.Result | None) -> ev.ClaimAnswered:
    if isinstance(result, port.Won):
        return ev.ClaimAnswered(claim, ev.Won(*result))
    return ev.ClaimAnswered(claim, None if result is None else ev.Lost(*result))
