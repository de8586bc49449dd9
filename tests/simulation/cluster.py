"""Routers, a directory and a log in one world, what is done to them, and what is checked after each step."""

from dataclasses import dataclass

from router.shards import events as ev
from router.shards.leadership import Leadership
from router.shards.records import SHARDS, ShardRecord, decode
from router.shards.roles import Settings
from tests.simulation.directory import Directory
from tests.simulation.faults import Fault
from tests.simulation.log import Log
from tests.simulation.process import Process
from tests.simulation.world import Violation, World

PUBLISH_EVERY = 0.25
# Between the end of a router's lease and its shards being led again.
TAKEOVER = 2.0
# What a heal may cost before a lease even begins to run out or a name is free: claims of unknown outcome, registering.
HEAL = 4.0
BALANCE = 12.0


@dataclass(frozen=True)
class Plan:
    """What a run is made of."""

    seed: int
    routers: int = 3
    shards: int = 6
    ttl: float = 4.0
    faults: tuple[Fault, ...] = ()
    faults_end: float = 20.0


class Cluster:
    """The world of one run."""

    process_type = Process
    log_type = Log
    directory_type = Directory
    machine_type = Leadership

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.world = World(plan.seed)
        self.directory = self.directory_type(self.world, plan.ttl)
        self.log = self.log_type(self.world, self.directory)
        self.settings = Settings(shards=plan.shards)
        self.processes: list[Process] = []
        """All that run, also those whose name another has taken over."""
        self.names: list[str] = []
        """Of routers that are to be there in the end."""
        self.told: list[ev.Told] = []
        self.led_at: dict[int, float] = {}
        self.unled_from: dict[int, float] = {}
        self.paused_at: dict[int, float] = {}
        self.pauses: list[float] = []
        """How long planned moves paused their shards."""
        self._lives = 0
        self._joined = 0

    # What there is.

    def make_machine(self, name: str) -> Leadership:
        return self.machine_type(name, self.settings)

    def claim(self, claim: ev.Claim) -> ev.Won | ev.Lost:
        """A claim at the directory."""
        return self.directory.claim(claim)

    def register(self, name: str, value: bytes, dead: set[int]) -> int | None:
        """A registration at the directory."""
        return self.directory.register(name, value, dead)

    def start(self, name: str) -> Process:
        """A new process; it is told which lives of its name are known to be over."""
        self._lives += 1
        process = self.process_type(self, name, self._lives)
        if name not in self.names:
            self.names.append(name)
        self.processes.append(process)
        self.world.note("started", process.label)
        return process

    def owner(self, shard: int) -> ShardRecord | None:
        """What the directory says of a shard."""
        item = self.directory.items.get(f"{SHARDS}{shard}")
        return decode(ShardRecord, item[0]) if item else None

    def leader(self, shard: int) -> Process | None:
        """Who would sequence for a shard now, and can."""
        for process in self.processes:
            if process.running and not process.paused and process.believes(shard):
                return process
        return None

    def loads(self) -> dict[str, int]:
        """How many shards each name leads."""
        loads = dict.fromkeys(self.names, 0)
        for shard in range(self.plan.shards):
            process = self.leader(shard)
            if process is not None:
                loads[process.name] = loads.get(process.name, 0) + 1
        return loads

    # A run.

    def run(self) -> None:
        """All of it.

        Raises:
            Violation: at the first thing that must not happen.
        """
        for number in range(self.plan.routers):
            self.world.after(self.world.chance.random() * 0.3, self.start, f"r{number}")
        self.world.after(PUBLISH_EVERY, self._publish)
        for fault in self.plan.faults:
            self.world.after(fault.at, self._strike, fault)
        self.world.run(self.plan.faults_end)
        if self.plan.faults:
            self._heal()
        self.world.run(self.world.now + self.plan.ttl + TAKEOVER + HEAL)
        self.check_all_led()
        self.world.run(self.world.now + BALANCE)
        self.check_all_led()
        self.check_balanced()

    def _publish(self) -> None:
        for process in self.processes:
            for shard in list(process.led):
                process.publish(shard)
        self.world.after(PUBLISH_EVERY * 2 * self.world.chance.random(), self._publish)

    def _strike(self, fault: Fault) -> None:
        """One fault, and its end after its time."""
        self.world.note("FAULT", fault)
        if fault.kind in ("directory away", "log away", "join"):
            getattr(self, "_" + fault.kind.replace(" ", "_"))(fault)
            return
        there = [process for process in self.processes if process.running]
        if there:
            process = there[fault.pick % len(there)]
            getattr(self, "_" + fault.kind.replace(" ", "_"))(process, fault)

    def _directory_away(self, fault: Fault) -> None:
        self.directory.up = False
        self.world.after(fault.length, self._directory_back)

    def _directory_back(self) -> None:
        self.directory.up = True
        for process in self.processes:
            process.connect_again()

    def _log_away(self, fault: Fault) -> None:
        self.log.up_at = max(self.log.up_at, self.world.now + fault.length)

    def _join(self, fault: Fault) -> None:
        if len(self.names) < 6:
            self._joined += 1
            self.start(f"j{self._joined}")

    def _kill(self, process: Process, fault: Fault) -> None:
        """A supervisor that waited for it starts it again, and knows that it is dead."""
        self._remove(process)
        self.world.after(fault.length, self._start_again, process.name, process.epochs)

    def _start_again(self, name: str, dead: set[int]) -> None:
        if name in self.names and not any(process.name == name for process in self.processes):
            self.start(name).dead_epochs |= dead

    def _leave(self, process: Process, fault: Fault) -> None:
        """It is told to stop, gives its shards away, and is gone in the end."""
        if len(self.names) > 2 and process.name in self.names:
            process.take(process.step, ev.Cordon(process.name, True, 0, leaving=True))
            self.names.remove(process.name)
            self.world.after(5.0, self._remove_all, process.name)

    def _remove_all(self, name: str) -> None:
        for process in list(self.processes):
            if process.name == name and name not in self.names:
                self._remove(process)

    def _remove(self, process: Process) -> None:
        if process.running:
            process.kill()
            self.processes.remove(process)
            for shard in range(self.plan.shards):
                self.paused_at.pop(shard, None)

    def _replace(self, process: Process, fault: Fault) -> None:
        """It stands still, is thought to be dead, and another is started under its name; then it comes back."""
        process.pause()
        self.world.after(0.5, self._start_namesake, process)
        self.world.after(fault.length, self._go_on, process)

    def _start_namesake(self, process: Process) -> None:
        if process.name in self.names and sum(one.name == process.name for one in self.processes) == 1:
            self.start(process.name)

    def _pause(self, process: Process, fault: Fault) -> None:
        process.pause()
        self.world.after(fault.length, self._go_on, process)

    def _go_on(self, process: Process) -> None:
        if process.running and process.paused:
            self.world.note("goes on", process.label)
            process.go_on()

    def _cut(self, process: Process, fault: Fault) -> None:
        process.cut_in = process.cut_out = True
        self.world.after(fault.length, self._mend, process)

    def _cut_in(self, process: Process, fault: Fault) -> None:
        process.cut_in = True
        self.world.after(fault.length, self._mend, process)

    def _cut_out(self, process: Process, fault: Fault) -> None:
        process.cut_out = True
        self.world.after(fault.length, self._mend, process)

    def _mend(self, process: Process) -> None:
        process.cut_in = process.cut_out = False
        process.slowness = process.log_slowness = 1.0
        if process.running:
            process.connect_again()

    def _slow(self, process: Process, fault: Fault) -> None:
        process.slowness = 10.0 + fault.pick % 40
        self.world.after(fault.length, self._mend, process)

    def _slow_log(self, process: Process, fault: Fault) -> None:
        process.log_slowness = 10.0 + fault.pick % 90
        self.world.after(fault.length, self._mend, process)

    def _cordon(self, process: Process, fault: Fault) -> None:
        process.take(process.step, ev.Cordon(process.name, True, fault.pick))
        self.world.after(fault.length, self._uncordon, process.name)

    def _uncordon(self, name: str) -> None:
        """Said again and again until it is so, as operators do."""
        if f"cordons/{name}" in self.directory.items and name in self.names:
            for process in self.processes[:1]:
                process.take(process.step, ev.Cordon(name, False, 0))
            self.world.after(0.4, self._uncordon, name)

    def _move(self, process: Process, fault: Fault) -> None:
        shard = fault.pick % self.plan.shards
        process.take(process.step, ev.Move(shard, self.names[fault.pick % len(self.names)], fault.pick))
        self.world.after(fault.length, self._unpin, shard)

    def _unpin(self, shard: int) -> None:
        if f"pins/{shard}" in self.directory.items:
            for process in self.processes[:1]:
                process.take(process.step, ev.Move(shard, None, 0))
            self.world.after(0.4, self._unpin, shard)

    def _reconnect(self, process: Process, fault: Fault) -> None:
        process.connect_again()

    def _stall(self, process: Process, fault: Fault) -> None:
        process.stall(fault.pick, self.world.now + fault.length)

    def _heal(self) -> None:
        """Nothing goes wrong from now on: everybody runs and is reachable, one process a name."""
        self.world.note("HEALED")
        self._directory_back()
        self.log.up_at = self.world.now
        for process in list(self.processes):
            self._mend(process)
            self._go_on(process)
        for name in [process.name for process in self.processes if process.name not in self.names]:
            self._remove_all(name)
        for name in self.names:
            twins = [process for process in self.processes if process.name == name]
            for twin in twins[:-1]:
                self._remove(twin)
            if not twins:
                self.start(name)
        for turn in range(20):
            self.world.after(0.4 * turn, self._lift_all)

    def _lift_all(self) -> None:
        """Also what was said to one who stood still, or on its way for seconds, and is done only now."""
        for name in self.names:
            self._uncordon(name)
        for shard in range(self.plan.shards):
            self._unpin(shard)

    # What is checked.

    def check_leaders(self, shard: int) -> None:
        """Called whenever somebody may begin to sequence: nobody else may be able to at this moment, paused or not."""
        leaders = [process.label for process in self.processes if process.believes(shard)]
        if len(leaders) > 1:
            raise Violation(f"shard {shard} is led by {' and '.join(leaders)}")

    def led(self, shard: int) -> None:
        """Somebody leads a shard from now on."""
        paused_at = self.paused_at.pop(shard, None)
        if paused_at is not None:
            self.pauses.append(self.world.now - paused_at)

    def paused(self, shard: int) -> None:
        """A planned move has begun."""
        self.paused_at[shard] = self.world.now

    def unled(self) -> list[int]:
        """The shards that nobody leads now."""
        return [shard for shard in range(self.plan.shards) if self.leader(shard) is None]

    def check_all_led(self) -> None:
        """Every shard is led, but for those that just change hands."""
        missing = set(self.unled())
        for _ in range(3):
            self.world.run(self.world.now + 0.25)
            missing &= set(self.unled())
        if missing:
            raise Violation(
                f"nobody leads {sorted(missing)}: " + ", ".join(str(self.owner(shard)) for shard in missing)
            )

    def check_balanced(self) -> None:
        """Nobody has more than one shard more than another, and nothing moves any more."""
        loads = self.loads()
        if max(loads.values()) - min(loads.values()) > 1:
            raise Violation(f"not balanced: {loads}")
        before = self.directory.revision
        self.world.run(self.world.now + 3.0)
        if self.directory.revision != before:
            raise Violation("shards move on although they are balanced")
