"""Sessions of one shard under leaders that follow each other, workers that die, and a directory that comes and goes.

What is checked: from the moment in which a connection got a message, no earlier owner of its slot is sent one that it
takes; every HELLO is answered; and in the end each slot has one connection at most, which the directory names.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from router.shards import claims as c
from router.shards import events as ev
from router.shards.owners import SESSIONS, Fence, Owner, Policy, slot_of
from router.shards.records import NodeRecord, decode, encode
from tests.simulation.directory import Directory
from tests.simulation.world import Violation, World

TROUBLE_END = 10.0
END = 24.0
ANSWER_DEADLINE = 4.0
CLAIM_DEADLINE = 1.0


@dataclass(slots=True)
class Connection:
    """One connection at a worker."""

    owner: Owner
    asked_at: float
    fence: Fence | None = None
    over: bool = False


class Leader:
    """One leader of the shard: the machine under test and its links."""

    def __init__(self, world: "Sessions") -> None:
        self.world = world
        self.running = True
        self.over: set[int] = set()
        self.machine = world.machine_type(0, world.policy, world.local, self.over.__contains__)
        self.watch = world.directory.watch(self, (SESSIONS,))[0]
        self.watch.start()

    def reachable(self) -> bool:
        return self.running and self.world.directory.up

    def delay(self) -> float:
        return self.world.chance.uniform(0.001, 0.03)

    def take(self, call: Callable[..., None], *args: Any) -> None:
        if self.running:
            call(*args)

    def hear(self, event: ev.Changed | ev.Snapshot) -> None:
        self.step(event)

    def step(self, event: c.SessionEvent) -> None:
        if not self.running:
            return
        self.world.note("leader", event)
        for effect in self.machine.step(event):
            self.world.note("    ->", effect)
            if isinstance(effect, ev.Claims):
                for claim in effect.claims:
                    self.world.claim(self, claim)
            elif not isinstance(effect, ev.Complain):
                self.world.to_worker(effect.owner, effect)

    def stop(self, told: bool) -> None:
        if told:
            self.step(c.Stopped())
        self.running = False
        self.world.directory.forget([self.watch])


class Sessions(World):
    """The world of one run."""

    machine_type = c.SessionClaims
    directory_type = Directory

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        plan = random.Random(f"sessions/{seed}")
        self.policy = plan.choice(list(Policy))
        self.local = plan.random() < 0.5
        self.trouble = plan.random() < 0.7
        self.directory = self.directory_type(self, ttl=1e9)
        self.connections: dict[int, Connection] = {}
        self.got: dict[str, tuple[Fence, float]] = {}
        """By slot, the highest fence under which a message was taken, and when first."""
        self.links: dict[str, float] = {}
        self.nodes: dict[str, int] = {}
        for number in range(3):
            self._start_node(f"n{number}")
        self.leader = Leader(self)

    def run_all(self) -> None:
        """All of it.

        Raises:
            Violation: at the first thing that must not happen.
        """
        self.after(0.1, self._hello)
        self.after(0.1, self._messages)
        if self.trouble:
            self.after(1.0, self._strike)
        self.run(TROUBLE_END)
        self._directory_back()
        self.run(END)
        self._check_end()

    # Links.

    def claim(self, leader: Leader, claim: ev.Claim) -> None:
        answered = [False]
        late = self.chance.random() * 3 if self.now < TROUBLE_END and self.chance.random() < 0.05 else 0.0
        self.after(leader.delay() + late, self._claim_arrives, leader, claim, answered)
        self.after(CLAIM_DEADLINE, self._claim_ends, leader, claim, answered, None)

    def _claim_arrives(self, leader: Leader, claim: ev.Claim, answered: list[bool]) -> None:
        if self.directory.up:
            result = self.directory.claim(claim)
            self.note("directory", claim, result)
            if self.now > TROUBLE_END or self.chance.random() > 0.05:
                self.after(leader.delay(), self._claim_ends, leader, claim, answered, result)

    def _claim_ends(
        self, leader: Leader, claim: ev.Claim, answered: list[bool], result: ev.Won | ev.Lost | None
    ) -> None:
        if not answered[0]:
            answered[0] = True
            leader.step(ev.ClaimAnswered(claim, result))
            if result is None and not self.directory.up:
                leader.step(ev.DirectoryAway())

    def to_worker(self, owner: Owner, effect: Any) -> None:
        """One link to a worker: in order."""
        self.links[owner.node] = max(self.links.get(owner.node, 0.0), self.now + self.chance.uniform(0.001, 0.02))
        self.at(self.links[owner.node], self._at_worker, owner, effect, self.now, self.leader)

    def to_leader(self, event: c.Hello | c.Bye) -> None:
        self.after(self.chance.uniform(0.001, 0.02), self._at_leader, event)

    def _at_leader(self, event: c.Hello | c.Bye) -> None:
        self.leader.step(event)

    def _at_worker(self, owner: Owner, effect: Any, sent: float, leader: Leader) -> None:
        connection = self.connections.get(owner.connection)
        if self.nodes.get(owner.node) != owner.node_epoch:
            return
        if connection is None or connection.over:
            if isinstance(effect, c.Admit | Fence):
                self.to_leader(c.Bye(owner))
        elif isinstance(effect, c.Admit | c.Renumber):
            connection.fence = max(connection.fence or effect.fence, effect.fence)
        elif isinstance(effect, c.Refuse | c.End):
            connection.over = True
        elif connection.fence is not None and effect >= connection.fence:
            self._deliver(connection, effect, sent)

    def _deliver(self, connection: Connection, fence: Fence, sent: float) -> None:
        slot = slot_of(self.policy, connection.owner)
        highest, since = self.got.get(slot, (c.NO_FENCE, 0.0))
        if fence < highest and sent > since:
            raise Violation(f"{connection.owner} got a message under {fence}, sent after its slot was at {highest}")
        if fence > highest:
            self.got[slot] = (fence, self.now)

    # What happens.

    def _start_node(self, name: str) -> None:
        epoch = self.directory.register(name, encode(NodeRecord(0, name)), set(self.directory.leases))
        assert epoch is not None
        self.nodes[name] = epoch

    def _hello(self) -> None:
        user = self.chance.randrange(3)
        device = self.chance.randrange(2)
        node = self.chance.choice(sorted(self.nodes))
        number = len(self.connections)
        owner = Owner(f"s{user}{device}", f"u{user}", f"d{device}", node, self.nodes[node], 0, number)
        self.connections[number] = Connection(owner, self.now)
        self.to_leader(c.Hello(number, owner))
        if self.chance.random() < 0.4:
            self.after(self.chance.random() * 2, self._close, self.connections[number])
        if self.now < TROUBLE_END:
            self.after(self.chance.random() * 0.3, self._hello)

    def _close(self, connection: Connection) -> None:
        if not connection.over and self.nodes[connection.owner.node] == connection.owner.node_epoch:
            connection.over = True
            self.to_leader(c.Bye(connection.owner))

    def _messages(self) -> None:
        """One for each session, and what workers do by themselves: to ask again when there was no answer."""
        for user in range(3):
            for device in range(2):
                way = self.leader.machine.route(f"s{user}{device}")
                if way is not None:
                    self.to_worker(way[0], way[1])
        for connection in self.connections.values():
            if not connection.over and connection.fence is None and self.now > connection.asked_at + ANSWER_DEADLINE:
                raise Violation(f"{connection.owner} was not answered")
        self.after(0.2, self._messages)

    def _strike(self) -> None:
        what = self.chance.choice(
            (self._next_leader, self._kill_node, self._directory_away, self.leader.watch.connect_again)
        )
        self.note("FAULT", what)
        what()
        if self.now < TROUBLE_END - 2:
            self.after(self.chance.random() * 2, self._strike)

    def _next_leader(self) -> None:
        """What the old one has under way may come about under the new one; workers tell it whom they have."""
        self.leader.stop(told=self.chance.random() < 0.5)
        if not self.directory.up:
            self._directory_back()
        over = self.leader.over
        # The shard's key changed hands.
        self.directory.revision += 1
        self.leader = Leader(self)
        self.leader.over |= over
        for connection in self.connections.values():
            if not connection.over and self.nodes[connection.owner.node] == connection.owner.node_epoch:
                connection.asked_at = self.now
                self.to_leader(c.Hello(connection.owner.connection, connection.owner, connection.fence))

    def _kill_node(self) -> None:
        name = self.chance.choice(sorted(self.nodes))
        epoch = self.nodes[name]
        for connection in self.connections.values():
            if connection.owner.node_epoch == epoch:
                connection.over = True
        self.directory.end(epoch)
        self._start_node(name)
        self.after(self.chance.random(), self._tell_over, epoch)

    def _tell_over(self, epoch: int) -> None:
        self.leader.over.add(epoch)
        self.leader.step(c.NodeOver(epoch))

    def _directory_away(self) -> None:
        self.directory.up = False
        self.after(self.chance.random() * 2, self._directory_silent)
        self.after(self.chance.random() * 3, self._directory_back)

    def _directory_silent(self) -> None:
        """The leader lets nobody wait any longer, also for claims that may come about."""
        if not self.directory.up:
            self.leader.step(c.DirectorySilent())

    def _directory_back(self) -> None:
        self.directory.up = True
        self.leader.watch.connect_again()
        self.leader.step(ev.DirectoryBack())

    def _check_end(self) -> None:
        there: dict[str, Owner] = {}
        for connection in self.connections.values():
            if not connection.over:
                slot = slot_of(self.policy, connection.owner)
                if slot in there:
                    raise Violation(f"{connection.owner} and {there[slot]} both live")
                there[slot] = connection.owner
        alive = set(self.nodes.values())
        named = {
            key.rpartition("/")[2]: decode(Owner, value) for key, (value, _) in self.directory.under(SESSIONS).items()
        }
        named = {slot: owner for slot, owner in named.items() if owner.node_epoch in alive}
        if named != there:
            raise Violation(f"the directory names {named}, and there are {there}")
        for owner in there.values():
            way = self.leader.machine.route(owner.session)
            if way is None or way[0] != owner:
                raise Violation(f"messages for {owner} go to {way}")
