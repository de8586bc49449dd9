"""Which shards one router leads: a state machine. Campaign, takeover, planned moves, and what to do when leases lapse.

# Why two routers never lead one shard

Write L(r, s, e) for "router r sequences for shard s under shard epoch e". The directory is linearizable, a node's key
lives as long as its lease, and a node epoch is never given twice. Four things together make L exclusive in time:

1. **Who leads is one key.** `shards/<n>` names a node epoch and a shard epoch. L(r, s, e) begins only after r knows
   that the key says (r's living node epoch, e), and each change of hands is a compare-and-set on the key's revision
   that raises e by one or more. So e names one leader, and of two that want to be it one is told that it lost.
2. **The key is taken from another only when its node epoch is over** (view.py says when that is certain), or by that
   leader itself (4). An epoch is over when its lease ended at the directory: at the earliest TTL after the last
   keep-alive that it answered was *sent*, or when its owner gave the lease back, having stopped. That nobody else makes
   a living node's key go, is asked of the directory: who registers under a name that is taken waits until that lease
   ends, unless he knows that the process is dead (a supervisor that waited for it does).
3. **A leader stops before its lease can end.** The data plane sequences only while its own clock is before Hold: the
   time at which the last answered keep-alive was sent, plus TTL, less what clocks may go apart (1 %), less a margin for
   what it has under way. It looks at the clock itself, so that it stops also when the control thread hangs, and a
   process that was paused looks before it acts. By (2) nobody is granted the shard before that. When a later keep-alive
   is answered the lease never ended, so nobody can have had the shard meanwhile, and the leader goes on.
4. **A leader that gives a shard away stops first and for good.** It pauses, drains, and only then writes the taker's
   node epoch and e + 1 (compare-and-set on the revision under which it led; the taker's node epoch must live). From the
   moment in which this claim leaves, it does not sequence under e again unless it is told that the claim *lost* with
   the key unchanged. When nothing is known of the claim, it may come about at any later time: then only another
   compare-and-set of its own, to e + 1, settles it. Whichever of the two wins makes the other impossible.

What is already on its way when a leader stops, and a process that is paused between looking at its clock and acting,
are beyond any clock. Against these stands the log: a new leader leads only after the log refuses all lower epochs of
the shard (Open before Lead), so what a deposed one appends later is refused, and workers drop what comes under a lower
epoch than they have seen. A hand-over needs no refusals: everything was answered before the key changed hands.

# Interleavings that were thought of

- *The claim's answer comes late, or never.* Nothing is concluded from silence. What the key says decides: a claim that
  won unnoticed shows in the watch, and the shard is opened then.
- *The claim wins, and the lease ends before its answer is here.* Hold is over; LeaseLost or a new Registered drops it.
- *The claim is executed after its sender's life ended.* It names a node epoch that must live, so it loses.
- *A watch tells old news.* Known revisions only go up (view.py), also those known by answers: a shard that was handed
  over is not ours again because the watch comes to the time in which it was.
- *The watch of shards is ahead of that of nodes.* The owner's epoch is then above what is known of nodes: not over.
- *Paused in a hand-over, and taken over meanwhile.* The claim compares the old revision and loses.
- *An answer "drained" of an earlier attempt.* Attempts are numbered.
- *Both a taker's request and a takeover.* The request names the shard's epoch; a change of hands makes it void.
- *The taker dies between the key and Open.* The key names a node epoch that ends: a takeover like any other.
- *The log knows a higher epoch* (the directory was restored from a copy): Open is refused, and the leader raises the
  epoch by compare-and-set above it before it tries again.

# What keeps it going

A shard without leader is claimed at once by the router that placement wants, and by the others after a wait that grows
with their rank, so that a router that cannot does not hold it up. Takers ask for one shard at a time, and leaders give
away one at a time, but for some at once where they go from one region to another; each of these is a move of its own,
and each step has a deadline after which it is given up and tried again. A claim that lost is tried again only after a
wait, and only when what the key says now still asks for it.
"""

from router.shards import events as ev
from router.shards.following import Following
from router.shards.placement import place, ranking
from router.shards.records import (
    CORDONS,
    MOVES,
    NODES,
    PINS,
    REGIONS,
    SHARDS,
    CordonRecord,
    MoveRecord,
    PinRecord,
    ShardRecord,
    encode,
    request_of,
    taker_of,
)
from router.shards.roles import NEVER, Giving, Held, Role, Settings, Taking
from router.shards.view import Seen, View


class Leadership:
    """One router's part. `step` is all there is to it; same events, same times, same effects."""

    def __init__(self, node: str, settings: Settings) -> None:
        self.node = node
        self.settings = settings
        self.view = View()
        self.epoch = 0
        """Our life at the directory; 0: we have no lease."""
        self.hold = 0.0
        self.away = False
        self.held: dict[int, Held] = {}
        self.giving: dict[int, Giving] = {}
        self.taking: dict[int, Taking] = {}
        self._unled: dict[int, float] = {}
        """Shards that nobody leads, and since when we know."""
        self._not_before: dict[int, float] = {}
        """Shards that we claim or ask for again only then."""
        self._refused: dict[str, tuple[int, float]] = {}
        """By request, the revision of it that came to nothing, and when it may be served after all."""
        self._flying: dict[str, ev.Claim] = {}
        self._operator: dict[str, int] = {}
        """Tickets of operators' claims under way, by key."""
        self._settled_at = 0.0
        self._tickets = 0
        self._dirty: set[int] = set()
        self._plan: list[str | None] | None = None
        self._following = Following(node, settings) if settings.regions else None
        self._follow_anew = False
        self._weights: dict[str, int] = {}
        self._now = 0.0
        self._out: list[ev.Effect] = []
        self._claims: list[ev.Claim] = []
        self._wake = NEVER
        self._told_wake = NEVER

    # What others ask.

    def leads(self, shard: int, now: float) -> bool:
        """Whether we sequence for a shard."""
        held = self.held.get(shard)
        return held is not None and held.role is Role.LEADING and now < self.hold

    def plan(self) -> list[str | None]:
        """Where each shard is to be, as we see it."""
        if self._plan is None:
            view = self.view
            current: list[str | None] = []
            for shard in range(self.settings.shards):
                record = view.shards.get(str(shard)).record
                current.append(view.alive.get(record.node_epoch) if record else None)
            self._plan = place(current, self._weights, view.pinned(), view.preferred(self.settings.placement))
        return self._plan

    def regions(self) -> frozenset[str]:
        """The other regions in which routers live."""
        settings = self.settings
        return frozenset(region for region in settings.regions if self.view.routers_of(region))

    def before(self, shard: int) -> tuple[str, int] | None:
        """In which region a shard was led last, and its epoch then; None: that is not known. What is to be led here is
        not yet until its log is open.
        """
        return self._following.before.get(shard) if self._following is not None else None

    def step(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """Take one event at a time by our clock; what is to be done about it, in order."""
        self._now = now
        self._out = []
        self._claims = []
        self._wake = NEVER
        getattr(self, _HANDLERS[type(event)])(event)
        if self.view.ready():
            self._follow()  # what is not followed any more is let go before it is opened
            self._look()
            self._open_again()
            if self._may_claim():
                self._campaign()
                self._take_back()
            self._give()
            self._take()
        return self._finish()

    # Events.

    def _registered(self, event: ev.Registered) -> None:
        if self.epoch:
            self._end_life()
        self.epoch = event.epoch
        self._all_dirty()

    def _lease_held(self, event: ev.LeaseHeld) -> None:
        hold = event.until - self.settings.margin_s
        if event.epoch == self.epoch and hold > self.hold:
            self.hold = hold
            self._out.append(ev.Hold(hold))

    def _lease_lost(self, event: ev.LeaseLost) -> None:
        if event.epoch == self.epoch:
            self._end_life()

    def _changed(self, event: ev.Changed) -> None:
        self._take_news(event.prefix, self.view.tables[event.prefix].change(event.revision, event.changes))

    def _snapshot(self, event: ev.Snapshot) -> None:
        self._take_news(event.prefix, self.view.tables[event.prefix].snapshot(event.revision, event.items))
        self._all_dirty()

    def _answered(self, event: ev.ClaimAnswered) -> None:
        claim, result = event
        if self._flying.get(claim.key) == claim:
            del self._flying[claim.key]
        prefix, _, name = claim.key.partition("/")
        prefix += "/"
        news = False
        if isinstance(result, ev.Won):
            news = self.view.tables[prefix].learn(name, claim.value, result.revision)
        elif isinstance(result, ev.Lost) and result.revision:
            news = self.view.tables[prefix].learn(name, result.value, result.revision)
        if news:
            self._take_news(prefix, [name])
        if claim.key in self._operator:
            self._tell_operator(claim.key, result)
        elif prefix == SHARDS:
            self._shard_answered(int(name), claim, result)
        elif prefix == MOVES and not isinstance(result, ev.Won):
            for shard in [shard for shard, taking in self.taking.items() if taking.request == name]:
                self._give_up_taking(shard)

    def _shard_answered(self, shard: int, claim: ev.Claim, result: ev.Won | ev.Lost | None) -> None:
        if isinstance(result, ev.Won):
            return
        later = self._now + self.settings.retry_s
        self._not_before[shard] = later
        held = self.held.get(shard)
        if held is None or held.role is not Role.HANDING:
            return
        if result is None:
            held.doubt = True
        elif result.revision == claim.expected_revision and not held.doubt:
            # The taker is gone, the key is as it was, and this claim can never win: as if it had not been.
            self._refuse(held.request)
            self._go_on(shard, held)
        held.retry_at = min(held.retry_at, later)

    def _opened(self, event: ev.Opened) -> None:
        held = self.held.get(event.shard)
        if held is None or held.role is not Role.OPENING or held.epoch != event.epoch:
            return
        held.role = Role.LEADING
        held.retry_at = NEVER
        if self._following is not None:
            self._following.leads(event.shard, event.epoch)
        self._out.append(ev.Lead(event.shard, event.epoch))
        self.taking.pop(event.shard, None)

    def _refused_by_log(self, event: ev.Refused) -> None:
        held = self.held.get(event.shard)
        if held is None or held.epoch != event.epoch:
            return
        if held.role is not Role.OPENING and event.newest is None:
            return
        if held.role is not Role.OPENING:
            self._out.append(ev.Stop(event.shard))
            self.giving.pop(event.shard, None)
        if held.role is not Role.HANDING:
            held.role = Role.OPENING
        held.retry_at = self._now + self.settings.retry_s
        if event.newest is not None and self.epoch:
            # The key may be out of date here, and this claim loses; or the directory is behind the log.
            record = ShardRecord(self.node, self.epoch, max(event.newest, held.epoch) + 1, "raised")
            self._claim(SHARDS + str(event.shard), held.revision, encode(record))

    def _prepared(self, event: ev.Prepared) -> None:
        taking = self.taking.get(event.shard)
        if taking is None or taking.asked or taking.epoch != event.epoch:
            return
        record = MoveRecord(self.epoch, event.shard, taking.epoch)
        seen = self.view.moves.get(taking.request)
        if self._may_claim() and self._claim(MOVES + taking.request, seen.revision, encode(record)):
            taking.asked = True

    def _drained(self, event: ev.Drained) -> None:
        giving = self.giving.get(event.shard)
        if giving is None or giving.ticket != event.ticket:
            return
        held = self.held[event.shard]
        record = ShardRecord(giving.taker.node, giving.taker.epoch, held.epoch + 1, "handed")
        del self.giving[event.shard]
        if self._may_claim() and self._claim(SHARDS + str(event.shard), held.revision, encode(record), giving.taker):
            held.role = Role.HANDING
            held.retry_at = NEVER
            held.doubt = False
        else:
            self._refuse(held.request)
            self._go_on(event.shard, held)

    def _tick(self, event: ev.Tick) -> None:
        self._told_wake = NEVER

    def _directory_away(self, event: ev.DirectoryAway) -> None:
        self.away = True

    def _directory_back(self, event: ev.DirectoryBack) -> None:
        self.away = False

    def _move(self, event: ev.Move) -> None:
        if not 0 <= event.shard < self.settings.shards:
            problem = f"there is no shard {event.shard}: they are 0 to {self.settings.shards - 1}"
        elif event.to is not None and self._weights.get(event.to, 0) == 0:
            takers = ", ".join(sorted(name for name, weight in self._weights.items() if weight))
            problem = f"{event.to!r} is no router that takes shards: these are {takers or 'none now'}"
        else:
            value = encode(PinRecord(event.to)) if event.to is not None else None
            problem = self._claim_for_operator(PINS + str(event.shard), value, event.ticket)
        if problem:
            self._out.append(ev.Told(event.ticket, problem))

    def _cordon(self, event: ev.Cordon) -> None:
        epoch = 0
        problem = ""
        if event.leaving:
            epoch = self.view.nodes.get(event.node).revision
            problem = "" if epoch else f"{event.node!r} is not there"
        if not problem:
            value = encode(CordonRecord(epoch)) if event.on else None
            problem = self._claim_for_operator(CORDONS + event.node, value, event.ticket)
        if problem:
            self._out.append(ev.Told(event.ticket, problem))

    # What follows from what is known now.

    def _look(self) -> None:
        """Hold shards whose keys name us, and only these; find those that nobody leads."""
        for shard in sorted(self._dirty):
            seen = self.view.shards.get(str(shard))
            record = seen.record
            if record is not None and self.epoch and record.node_epoch == self.epoch:
                self._unled.pop(shard, None)
                self._own(shard, record, seen)
                continue
            if shard in self.held:
                self._drop(shard)
            if not seen.revision or (record is not None and self.view.over(record.node_epoch)):
                self._unled.setdefault(shard, self._now)
            else:
                self._unled.pop(shard, None)
        self._dirty.clear()

    def _follow(self) -> None:
        if self._following is None or not self._follow_anew:
            return
        self._follow_anew = False
        effect = self._following.look(self.view, self.epoch)
        if effect is not None:
            self._out.append(effect)
        self._out += (ev.Complain(text) for text in self._following.complaints)
        self._following.complaints.clear()

    def _own(self, shard: int, record: ShardRecord, seen: Seen[ShardRecord]) -> None:
        held = self.held.get(shard)
        if held is not None and held.epoch == record.epoch:
            held.revision = seen.revision
            return
        if held is not None:
            self._drop(shard, keep_taking=True)
        self.held[shard] = Held(Role.OPENING, record.epoch, seen.revision)
        self._out.append(ev.Open(shard, record.epoch))

    def _drop(self, shard: int, keep_taking: bool = False) -> None:
        del self.held[shard]
        self._out.append(ev.Stop(shard))
        self.giving.pop(shard, None)
        if not keep_taking:
            self.taking.pop(shard, None)

    def _open_again(self) -> None:
        for shard, held in self.held.items():
            if held.role is Role.OPENING and held.retry_at < NEVER and self._due(held.retry_at):
                held.retry_at = NEVER
                self._out.append(ev.Open(shard, held.epoch))

    def _campaign(self) -> None:
        for shard, since in self._unled.items():
            seen = self.view.shards.get(str(shard))
            wait = self._patience(shard, never_led=not seen.revision)
            if wait is None or not self._due(max(since + wait, self._not_before.get(shard, 0.0))):
                continue
            epoch = seen.record.epoch if seen.record else 0
            record = ShardRecord(self.node, self.epoch, epoch + 1, "taken" if epoch else "claimed")
            self._claim(SHARDS + str(shard), seen.revision, encode(record))

    def _patience(self, shard: int, never_led: bool) -> float | None:
        """How long to leave a shard without leader to others; None: for ever."""
        settings = self.settings
        start = settings.settle_s if never_led else 0.0
        wanted = self.plan()[shard]
        if wanted == self.node:
            return start
        others = [name for name, weight in self._weights.items() if weight and name != wanted]
        if self.node not in others:
            return None
        rank = 1 + ranking(shard, others).index(self.node)
        return start + settings.patience_s * min(rank, settings.patience_rank_max)

    def _take_back(self) -> None:
        """Settle hand-overs of which nothing is known, by a claim of our own on the same revision."""
        for shard, held in self.held.items():
            if held.role is Role.HANDING and held.retry_at < NEVER and self._due(held.retry_at):
                record = ShardRecord(self.node, self.epoch, held.epoch + 1, "kept")
                if self._claim(SHARDS + str(shard), held.revision, encode(record)):
                    held.retry_at = NEVER

    def _give(self) -> None:
        for shard, giving in list(self.giving.items()):
            held = self.held[shard]
            if self.view.over(giving.taker.epoch) or self._due(giving.deadline):
                self._refuse(held.request, self._now + self.settings.retry_s)
                del self.giving[shard]
                self._go_on(shard, held)
        if not self._may_claim():
            return
        under_way = [
            held.far
            for held in self.held.values()
            if held.role is Role.DRAINING or (held.role is Role.HANDING and not held.doubt)
        ]
        for request, seen in sorted(self.view.moves.items(), key=lambda item: item[1].revision):
            move, taker = seen.record, taker_of(request)
            assert move is not None
            wanted = self.held.get(move.shard)
            if (
                wanted is not None
                and wanted.role is Role.LEADING
                and wanted.epoch == move.epoch
                and self.view.alive.get(move.node_epoch) == taker
                and self.plan()[move.shard] == taker
                and self._may_serve(request, seen.revision)
            ):
                wanted.request, wanted.far = request, self._is_far(taker)
                if not self._has_room(under_way, wanted.far):
                    return  # also for those that would have room: whoever asked first is served first
                under_way.append(wanted.far)
                self._begin_giving(move.shard, wanted, ev.NodeEpoch(taker, move.node_epoch))

    def _begin_giving(self, shard: int, held: Held, taker: ev.NodeEpoch) -> None:
        self._tickets += 1
        held.role = Role.DRAINING
        deadline = self._now + self.settings.drain_s
        self.giving[shard] = Giving(taker, self._tickets, deadline)
        self._due(deadline)
        self._out += (ev.Pause(shard), ev.Drain(shard, self._tickets))

    def _is_far(self, name: str) -> bool:
        """Whether a router is in another region."""
        return bool(self.settings.regions) and self.view.region_of(name) != self.settings.region

    def _has_room(self, under_way: list[bool], far: bool) -> bool:
        """Whether one more move may begin, given of each that is under way whether it is between regions."""
        return not under_way or (far and all(under_way) and len(under_way) < self.settings.far_moves_max)

    def _refuse(self, request: str, until: float = NEVER) -> None:
        """Have a taker wait, or ask again, before we give it anything."""
        self._refused[request] = (self.view.moves.get(request).revision, until)

    def _may_serve(self, request: str, revision: int) -> bool:
        refused, until = self._refused.get(request, (0, 0.0))
        return refused != revision or self._due(until)

    def _go_on(self, shard: int, held: Held) -> None:
        held.role = Role.LEADING
        held.retry_at = NEVER
        self._out.append(ev.Resume(shard, held.epoch))

    def _take(self) -> None:
        for shard in [shard for shard in self.taking if shard not in self.held]:
            taking = self.taking[shard]
            record = self.view.shards.get(str(shard)).record
            same = record is not None and record.epoch == taking.epoch and record.node_epoch in self.view.alive
            if not same or self.plan()[shard] != self.node or self._due(taking.deadline):
                self._give_up_taking(shard)
        most = self.settings.far_moves_max if self.settings.regions else 1
        if len(self.taking) >= most or not self._may_claim() or not self._due(self._settled_at):
            return
        for _, shard in self._to_take():
            record = self.view.shards.get(str(shard)).record
            assert record is not None
            far = self._is_far(record.node)
            if not self._has_room([taking.far for taking in self.taking.values()], far):
                return
            used = {taking.request for taking in self.taking.values()}
            names = (request_of(self.node, number) for number in range(most))
            request = next(name for name in names if name not in used)
            self.taking[shard] = Taking(record.epoch, self._now + self.settings.take_s, request, far)
            self._due(self.taking[shard].deadline)
            self._out.append(ev.Prepare(shard, record.epoch))

    def _to_take(self) -> list[tuple[bool, int]]:
        """The shards of others that are to be ours; rather of those whom nobody else asks at the moment."""
        asked = set()
        for request, seen in self.view.moves.items():
            assert seen.record is not None
            record = self.view.shards.get(str(seen.record.shard)).record
            if taker_of(request) != self.node and record is not None and record.epoch == seen.record.epoch:
                asked.add(record.node)
        found = []
        for shard, wanted in enumerate(self.plan()):
            if wanted != self.node or shard in self.held or shard in self.taking:
                continue
            record = self.view.shards.get(str(shard)).record
            if record is None or record.node_epoch not in self.view.alive:
                continue
            if self._due(self._not_before.get(shard, 0.0)):
                found.append((record.node in asked, shard))
        return sorted(found)

    def _give_up_taking(self, shard: int) -> None:
        self._not_before[shard] = self._now + self.settings.retry_s
        self._out.append(ev.Forget(shard))
        del self.taking[shard]

    # Small things.

    def _may_claim(self) -> bool:
        return self.epoch != 0 and not self.away and self._now < self.hold

    def _due(self, time: float) -> bool:
        """Whether a time has come; if not, we are to be woken then."""
        if self._now >= time:
            return True
        self._wake = min(self._wake, time)
        return False

    def _claim(self, key: str, revision: int, value: bytes | None, alive: ev.NodeEpoch | None = None) -> bool:
        """Put a claim into this step's batch, unless one of that key is under way."""
        if key in self._flying:
            return False
        claim = ev.Claim(key, revision, value, alive or ev.NodeEpoch(self.node, self.epoch))
        self._flying[key] = claim
        self._claims.append(claim)
        return True

    def _claim_for_operator(self, key: str, value: bytes | None, ticket: int) -> str:
        prefix, _, name = key.partition("/")
        seen = self.view.tables[prefix + "/"].get(name)
        if not self.view.ready() or not self.epoch or self.away:
            return "the directory does not answer now: ask again later"
        if value is None and not seen.revision:
            self._out.append(ev.Told(ticket, ""))
        elif not self._claim(key, seen.revision, value):
            return f"another change of {key} is under way: ask again"
        else:
            self._operator[key] = ticket
        return ""

    def _tell_operator(self, key: str, result: ev.Won | ev.Lost | None) -> None:
        problem = ""
        if result is None:
            problem = f"nothing is known of the change of {key}: look what is there, and ask again"
        elif isinstance(result, ev.Lost):
            problem = f"{key} was changed by somebody else just now: look what is there, and ask again"
        self._out.append(ev.Told(self._operator.pop(key), problem))

    def _take_news(self, prefix: str, names: list[str]) -> None:
        if prefix == NODES:
            # Also when none changed: owners whose epoch was above what was known may be over now.
            self._all_dirty()
        if not names or prefix == MOVES:
            return
        self._plan = None
        self._follow_anew = True
        if prefix == SHARDS:
            self._dirty.update(int(name) for name in names if name.isdecimal() and int(name) < self.settings.shards)
        elif prefix in (NODES, CORDONS, REGIONS):
            self.view.count_nodes()
            weights = self.view.weights()
            if weights != self._weights:
                self._weights = weights
                self._refused = {request: at for request, at in self._refused.items() if taker_of(request) in weights}
                self._settled_at = self._now + self.settings.settle_s

    def _all_dirty(self) -> None:
        self._follow_anew = True
        self._dirty.update(range(self.settings.shards))

    def _end_life(self) -> None:
        self.epoch = 0
        self.hold = 0.0
        self._out.append(ev.Hold(0.0))
        for shard in sorted(self.held):
            self._drop(shard)
        for shard in list(self.taking):
            self._give_up_taking(shard)
        self._all_dirty()

    def _finish(self) -> list[ev.Effect]:
        self._out += (ev.Complain(text) for text in self.view.complaints())
        if self._claims:
            self._out.append(ev.Claims(tuple(self._claims)))
        if self._wake < NEVER and self._wake != self._told_wake:
            self._told_wake = self._wake
            self._out.append(ev.WakeAt(self._wake))
        return self._out


_HANDLERS = {
    ev.Registered: "_registered",
    ev.LeaseHeld: "_lease_held",
    ev.LeaseLost: "_lease_lost",
    ev.Changed: "_changed",
    ev.Snapshot: "_snapshot",
    ev.ClaimAnswered: "_answered",
    ev.Opened: "_opened",
    ev.Refused: "_refused_by_log",
    ev.Prepared: "_prepared",
    ev.Drained: "_drained",
    ev.Tick: "_tick",
    ev.DirectoryAway: "_directory_away",
    ev.DirectoryBack: "_directory_back",
    ev.Move: "_move",
    ev.Cordon: "_cordon",
}
