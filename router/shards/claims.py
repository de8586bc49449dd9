"""Who owns each session of one shard: the state machine at the shard's leader. Claims, login policy, routing table.

# Why two owners of a session do not both get messages

Messages of a session reach it only through its shard's leader, and there is one (leadership.py). The leader routes to
the owner in its table, with that owner's fence, and a worker takes nothing under a lower fence than its connection has.
The table names a new owner only after the compare-and-set on the slot's key won, and from that moment no other: the
former one is told to end by the same step. So a former owner gets at most what was on its way to it. A leader whose
table is behind the directory cannot be: all claims of its shard are its own, or those of leaders before it, and what
these had under way shows in the watch, above what they wrote before. Two that claim at once compare the same revision,
so one loses, and is told to whom.

A claim that is not answered may still come about, though its connection was told that nothing is known. When the key
then names it, nobody is there: the key goes again, or names whoever has the session. A leader that came in between does
not know that, and what the directory says, is so: its worker, asked to deliver to a connection that it does not have,
says BYE, and the key goes, unless a later HELLO has it already.

# When the directory is away

`refuse`: nobody new is let in, those that are go on. `local`: the leader lets in on its own, with a fence that is above
that of the last claim it knows of and below any later one, and writes it down when the directory is back. If the key
was changed meanwhile, its owner has the higher fence and stays, and the other is ended. Either only for as long as the
leader leads, which is no longer than its lease's bound.

Who waits for a claim while the directory stands still is answered likewise once it is silent for long
(DirectorySilent), and the claim is still under way. If it wins after all, whoever was let in has its number by it. Of
whoever was refused, the key goes again, or is given back to who has the session.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from router.shards import events as ev
from router.shards.owners import Fence, Owner, Policy, prefix_of, slot_of
from router.shards.records import encode
from router.shards.view import NOTHING, Seen, Table

ATTEMPTS_MAX = 3
"""A HELLO that loses against what was not known (an end, a dead owner) is tried again so often."""
PROVISIONAL_MAX = 100_000
"""Owners let in without the directory, in one shard."""
DOUBTFUL_MAX = 1_000
"""Owners whose claims had no answer, in one shard, that are remembered."""


NO_FENCE = Fence(0)


class Hello(NamedTuple):
    """A connection wants a session; or has it, and tells a new leader (`fence`: which it was given)."""

    request: int
    owner: Owner
    fence: Fence | None = None


class Bye(NamedTuple):
    """A connection with a session is over, or its worker does not know it."""

    owner: Owner


class NodeOver(NamedTuple):
    """A life of a node is over: who lived there lives no more."""

    epoch: int


class Stopped(NamedTuple):
    """The shard is not ours any more."""


class DirectorySilent(NamedTuple):
    """The directory is away, and what it was asked before is not waited for any longer."""


SessionEvent = (
    Hello | Bye | NodeOver | Stopped | ev.ClaimAnswered | ev.Changed | ev.Snapshot | ev.DirectoryAway
    | ev.DirectoryBack | DirectorySilent
)  # fmt: skip


class Admit(NamedTuple):
    """The session is this connection's, and messages come under this fence."""

    request: int
    owner: Owner
    fence: Fence


class Refuse(NamedTuple):
    """The session is not this connection's. `by`: whose it is; None: nobody can tell now, try again later."""

    request: int
    owner: Owner
    by: Owner | None


class Renumber(NamedTuple):
    """An owner that was let in without the directory has its number now."""

    owner: Owner
    fence: Fence


class End(NamedTuple):
    """A connection has lost its session to another one."""

    owner: Owner
    by: Owner
    same_session: bool
    """True: `resumed_elsewhere`; False: the login policy lets only one of the two live."""


SessionEffect = Admit | Refuse | Renumber | End | ev.Claims | ev.Complain


@dataclass(slots=True)
class Attempt:
    """A claim under way for a HELLO, a BYE (owner None) or an owner that was let in before (request None)."""

    request: int | None
    owner: Owner | None
    claim: ev.Claim
    former: Owner | None
    tries: int = 1
    over: bool = False
    """The connection has ended meanwhile, or was refused."""

    def is_left(self) -> bool:
        """Whether nobody waits for it."""
        return self.over or self.request is None


@dataclass(slots=True)
class Slot:
    """Who lives in a slot, as far as messages go."""

    owner: Owner | None = None
    fence: Fence = NO_FENCE
    provisional: bool = False
    """Not what stands at the key, as one that was let in without the directory: to be written down."""
    attempt: Attempt | None = None
    waiting: Hello | None = None
    """The latest HELLO that came while another's claim was under way."""
    gone: int = -1
    """A revision of the key that an answer told to be gone, before the watch does."""


class SessionClaims:
    """The sessions of one shard."""

    def __init__(self, shard: int, policy: Policy, admit_locally: bool, over: Callable[[int], bool]) -> None:
        """Make it for a shard that is being opened.

        Args:
            shard: its number.
            policy: how many sessions a user may have.
            admit_locally: what to do while the directory is away: `local`, or else `refuse`.
            over: whether a life of a node is certainly over (View.over).
        """
        self.table: Table[Owner] = Table(prefix_of(shard), Owner)
        self._policy = policy
        self._admit_locally = admit_locally
        self._slots: dict[str, Slot] = {}
        self._by_session: dict[str, str] = {}
        self._over = over
        self._highest = 0
        """The highest revision that an answer told of."""
        self._local = 0
        """How often somebody was let in without the directory."""
        self._provisional = 0
        self._doubtful: dict[Owner, None] = {}
        """Whose claims may come about although nobody waits for them, the oldest first."""
        self._away = False
        self._out: list[SessionEffect] = []
        self._claims: list[ev.Claim] = []

    def ready(self) -> bool:
        """Whether the table was read: before, the shard must not be led."""
        return self.table.reached >= 0

    def route(self, session: str) -> tuple[Owner, Fence] | None:
        """Where messages of a session go."""
        name = self._by_session.get(session)
        slot = self._slots.get(name) if name is not None else None
        if slot is None or slot.owner is None or slot.owner.session != session:
            return None
        return slot.owner, slot.fence

    def owners(self) -> list[Owner]:
        """Those that messages go to."""
        return [slot.owner for slot in self._slots.values() if slot.owner is not None]

    def step(self, event: SessionEvent) -> list[SessionEffect]:
        """Take an event; what is to be done about it, in order."""
        self._out = []
        self._claims = []
        getattr(self, _HANDLERS[type(event)])(event)
        if self.table.complaints:
            self._out += map(ev.Complain, self.table.complaints)
            self.table.complaints.clear()
        if self._claims:
            self._out.append(ev.Claims(tuple(self._claims)))
        return self._out

    # Events.

    def _hello(self, event: Hello) -> None:
        name = slot_of(self._policy, event.owner)
        slot = self._slot(name)
        if slot.owner == event.owner:
            self._out.append(Admit(event.request, event.owner, slot.fence))
        elif event.fence is not None and slot.owner is not None and slot.fence > event.fence:
            # It was let in by an earlier leader, and lost the session since.
            self._out.append(Refuse(event.request, event.owner, slot.owner))
            self._end(event.owner, slot.owner)
        elif slot.attempt is not None and not (self._away and slot.attempt.is_left()):
            if slot.waiting is not None:
                self._out.append(Refuse(slot.waiting.request, slot.waiting.owner, event.owner))
            slot.waiting = event
        else:
            self._try(name, slot, event)

    def _try(self, name: str, slot: Slot, event: Hello, tries: int = 1) -> None:
        if self._away:
            self._without_directory(name, slot, event.request, event.owner)
            return
        self._doubtful.pop(event.owner, None)
        seen = self._seen(name, slot)
        if seen.revision and seen.record is None:
            self._out.append(Refuse(event.request, event.owner, None))
            self._drop_if_empty(name, slot)
            return
        alive = ev.NodeEpoch(event.owner.node, event.owner.node_epoch)
        claim = ev.Claim(self.table.prefix + name, seen.revision, encode(event.owner), alive)
        slot.attempt = Attempt(event.request, event.owner, claim, slot.owner, tries)
        self._claims.append(claim)

    def _without_directory(self, name: str, slot: Slot, request: int, owner: Owner) -> bool:
        """Answer a HELLO without asking; whether it is let in."""
        room = slot.provisional or self._provisional < PROVISIONAL_MAX
        if not self._admit_locally or not room:
            self._out.append(Refuse(request, owner, None))
            self._drop_if_empty(name, slot)
            return False
        # Above all that is known, also of slots that are empty now, and above one let in so before; below later claims.
        self._local += 1
        fence = Fence(max(slot.fence.revision, self._highest, self.table.reached), self._local)
        self._settle(name, slot, owner, fence, provisional=True)
        self._out.append(Admit(request, owner, fence))
        return True

    def _bye(self, event: Bye) -> None:
        name = slot_of(self._policy, event.owner)
        slot = self._slots.get(name)
        if slot is None:
            return
        if slot.attempt is not None and slot.attempt.owner == event.owner:
            slot.attempt.over = True
        if slot.waiting is not None and slot.waiting.owner == event.owner:
            slot.waiting = None
        if slot.owner == event.owner:
            self._settle(name, slot, None, slot.fence, provisional=False)
        self._next(name, slot)

    def _answered(self, event: ev.ClaimAnswered) -> None:
        claim, result = event
        if result is not None and result.revision > self._highest:
            self._highest = result.revision
        name = claim.key[len(self.table.prefix) :]
        slot = self._slot(name)
        attempt = slot.attempt if slot.attempt is not None and slot.attempt.claim == claim else None
        if attempt is not None:
            slot.attempt = None
        owner = attempt.owner if attempt is not None else None
        if isinstance(result, ev.Won):
            news = self.table.learn(name, claim.value, result.revision, owner)
            if attempt is not None and owner is not None:
                self._won(name, slot, attempt, result.revision)
            elif news:
                self._look(name, slot)
        else:
            if result is not None and not result.revision:
                slot.gone = self.table.get(name).revision
            elif result is not None and self.table.learn(name, result.value, result.revision):
                self._look(name, slot)
            if attempt is not None and owner is not None:
                self._lost(name, slot, attempt, result)
        if attempt is not None and attempt.over and slot.owner == owner:
            self._settle(name, slot, None, slot.fence, provisional=False)
        self._next(name, slot)

    def _won(self, name: str, slot: Slot, attempt: Attempt, revision: int) -> None:
        assert attempt.owner is not None
        fence = Fence(revision)
        if fence < slot.fence and slot.owner != attempt.owner:
            # The watch knows already who came after it.
            if attempt.request is not None:
                self._out.append(Refuse(attempt.request, attempt.owner, slot.owner))
            return
        if attempt.request is None and slot.owner != attempt.owner:
            return
        if attempt.over and self._keeps(slot):
            return
        self._settle(name, slot, attempt.owner, fence, provisional=False)
        if attempt.request is None:
            self._out.append(Renumber(attempt.owner, fence))
        elif not attempt.over:
            self._out.append(Admit(attempt.request, attempt.owner, fence))

    def _lost(self, name: str, slot: Slot, attempt: Attempt, result: ev.Lost | None) -> None:
        owner, request = attempt.owner, attempt.request
        assert owner is not None
        if request is None:
            # Somebody else's is what stands there, and _look has ended ours; or its node is over; or nothing is known.
            if result is not None and not result.alive and slot.owner == owner:
                self._settle(name, slot, None, slot.fence, provisional=False)
        elif result is None:
            self._doubt(owner)
            self._without_directory(name, slot, request, owner)
        elif slot.owner == owner:
            self._out.append(Admit(request, owner, slot.fence))
        elif not result.alive:
            self._out.append(Refuse(request, owner, None))
        elif slot.owner is not None and slot.owner != attempt.former and slot.owner not in self._doubtful:
            # Both compared the same revision: the other was first.
            self._out.append(Refuse(request, owner, slot.owner))
        elif attempt.tries < ATTEMPTS_MAX:
            self._try(name, slot, Hello(request, owner), attempt.tries + 1)
        else:
            self._out.append(Refuse(request, owner, None))

    def _next(self, name: str, slot: Slot) -> None:
        """What is to be done about a slot without an attempt under way."""
        if slot.owner is not None and not slot.provisional and slot.waiting is None:
            return
        if slot.attempt is None and slot.waiting is not None:
            hello, slot.waiting = slot.waiting, None
            self._hello(hello)
        if slot.attempt is None and not self._away:
            seen = self._seen(name, slot)
            key = self.table.prefix + name
            if slot.provisional and slot.owner is not None:
                alive = ev.NodeEpoch(slot.owner.node, slot.owner.node_epoch)
                slot.attempt = Attempt(None, slot.owner, ev.Claim(key, seen.revision, encode(slot.owner), alive), None)
            elif slot.owner is None and seen.record is not None and not self._over(seen.record.node_epoch):
                # Who is not there any more. What the dead left is swept by others.
                slot.attempt = Attempt(None, None, ev.Claim(key, seen.revision, None, None), None)
            if slot.attempt is not None:
                self._claims.append(slot.attempt.claim)
        self._drop_if_empty(name, slot)

    def _changed(self, event: ev.Changed) -> None:
        self._news(self.table.change(event.revision, event.changes))

    def _snapshot(self, event: ev.Snapshot) -> None:
        self._news(self.table.snapshot(event.revision, event.items))

    def _news(self, names: list[str]) -> None:
        for name in names:
            slot = self._slot(name)
            self._look(name, slot)
            self._next(name, slot)

    def _look(self, name: str, slot: Slot) -> None:
        """The key of a slot says something new."""
        seen = self.table.get(name)
        fence = Fence(seen.as_of)
        if seen.record is not None and seen.record == slot.owner:
            if slot.provisional or fence > slot.fence:
                self._settle(name, slot, slot.owner, fence, provisional=False)
                self._out.append(Renumber(seen.record, fence))
        elif fence > slot.fence and not (slot.provisional and seen.record is None):
            former = slot.owner
            alive = seen.record is not None and not self._over(seen.record.node_epoch)
            if alive and seen.record in self._doubtful:
                if not self._keeps(slot):
                    self._settle(name, slot, None, fence, provisional=False)
                return
            self._settle(name, slot, seen.record if alive else None, fence, provisional=False)
            if seen.record is not None and not alive and former is not None and not self._over(former.node_epoch):
                self._end(former, seen.record)  # by one that is gone by now

    def _node_over(self, event: NodeOver) -> None:
        for name, slot in list(self._slots.items()):
            if slot.owner is not None and slot.owner.node_epoch == event.epoch:
                self._settle(name, slot, None, slot.fence, provisional=False)
                self._next(name, slot)

    def _directory_away(self, event: ev.DirectoryAway) -> None:
        self._away = True

    def _directory_silent(self, event: DirectorySilent) -> None:
        self._away = True
        for name, slot in list(self._slots.items()):
            attempt, waiting, slot.waiting = slot.attempt, slot.waiting, None
            if attempt is not None and attempt.owner is not None and attempt.request is not None and not attempt.over:
                if self._without_directory(name, slot, attempt.request, attempt.owner):
                    attempt.request = None  # what it wins is for the owner's number
                else:
                    attempt.over = True
            if waiting is not None:
                self._without_directory(name, slot, waiting.request, waiting.owner)

    def _directory_back(self, event: ev.DirectoryBack) -> None:
        self._away = False
        for name, slot in list(self._slots.items()):
            self._next(name, slot)

    def _stopped(self, event: Stopped) -> None:
        """Whoever waits for an answer is to ask the next leader."""
        for slot in self._slots.values():
            if slot.attempt is not None and slot.attempt.request is not None and slot.attempt.owner is not None:
                self._out.append(Refuse(slot.attempt.request, slot.attempt.owner, None))
            if slot.waiting is not None:
                self._out.append(Refuse(slot.waiting.request, slot.waiting.owner, None))
        self._slots.clear()
        self._by_session.clear()
        self._provisional = 0

    # Small things.

    def _slot(self, name: str) -> Slot:
        slot = self._slots.get(name)
        if slot is None:
            slot = self._slots[name] = Slot()
        return slot

    def _settle(self, name: str, slot: Slot, owner: Owner | None, fence: Fence, provisional: bool) -> None:
        """A slot has another owner from now on; the former is ended if it may be there."""
        former = slot.owner
        self._provisional += provisional - slot.provisional
        slot.owner, slot.fence, slot.provisional = owner, fence, provisional
        if former is not None and former != owner:
            if self._by_session.get(former.session) == name:
                del self._by_session[former.session]
            if owner is not None and not self._over(former.node_epoch):
                self._end(former, owner)
        if owner is not None:
            self._by_session[owner.session] = name

    def _keeps(self, slot: Slot) -> bool:
        """Nobody is there whom the key names: whether somebody else has the slot, who is then written down anew."""
        if slot.owner is None or self._over(slot.owner.node_epoch):
            return False
        self._provisional += not slot.provisional
        slot.provisional = True
        return True

    def _doubt(self, owner: Owner) -> None:
        """If a key comes to name it, that is by a claim which came about late, and which nobody waits for."""
        self._doubtful[owner] = None
        if len(self._doubtful) > DOUBTFUL_MAX:
            del self._doubtful[next(iter(self._doubtful))]

    def _end(self, former: Owner, by: Owner) -> None:
        self._out.append(End(former, by, former.session == by.session))

    def _seen(self, name: str, slot: Slot) -> Seen[Owner]:
        """What stands at a slot's key, as far as is known."""
        seen = self.table.get(name)
        return NOTHING if seen.revision == slot.gone else seen  # type: ignore[return-value]

    def _drop_if_empty(self, name: str, slot: Slot) -> None:
        record = self._seen(name, slot).record
        left = record is not None and not self._over(record.node_epoch)
        if slot.owner is None and slot.attempt is None and slot.waiting is None and not left:
            self._slots.pop(name, None)


_HANDLERS = {
    Hello: "_hello",
    Bye: "_bye",
    NodeOver: "_node_over",
    Stopped: "_stopped",
    ev.ClaimAnswered: "_answered",
    ev.Changed: "_changed",
    ev.Snapshot: "_snapshot",
    ev.DirectoryAway: "_directory_away",
    ev.DirectoryBack: "_directory_back",
    DirectorySilent: "_directory_silent",
}
