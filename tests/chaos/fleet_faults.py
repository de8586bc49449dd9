"""What is done to a fleet, for how long, and how long a shard may leave a publish without its answer meanwhile.

Each fault is a function of the fleet that returns when it is over; the fleet is whole again after `restore`. No fault
is taken to have struck because it was made: cuts count what they dropped, and who died or left is looked for.
"""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.chaos.fleet import Fleet, FleetNode
from tests.chaos.switch import Machine
from tests.conftest import stand_still, stands_still, wait_until

MOVED_S = 0.2
"""A planned move pauses its shard for less than this."""
UNDISTURBED_S = 0.5
TAKEN_OVER_S = 2.0
"""Within so much of the lease's time what was led by a dead router serves again."""
BACK_S = 5.0
"""After a cut is over: connections are made anew, what was not answered is asked again."""
BALANCED_S = 10.0
MOVED = 8
SHORTLY_S = 1.0
Act = Callable[[Fleet], None]


@dataclass(frozen=True)
class Fault:
    """One thing that happens to a fleet.

    Attributes:
        pause_s: the longest pause of any shard, given the time of a lease.
        short: whether every run of the tests has it.
        planned: shards are handed over, and the others go on: what these wait for is the machine's own.
        cuts_workers: a router is cut off from workers; see `Habits.returns_left`.

    """

    name: str
    act: Act
    pause_s: Callable[[float], float]
    short: bool = False
    planned: bool = False
    cuts_workers: bool = False


def handed_over(ttl_s: float) -> float:
    return MOVED_S


def undisturbed(ttl_s: float) -> float:
    """Nothing changes hands, and all that is asked meanwhile is answered as ever; on a busy machine that takes."""
    return UNDISTURBED_S


def taken_over(ttl_s: float) -> float:
    return ttl_s + TAKEN_OVER_S


def for_the_cut(ttl_s: float) -> float:
    """What stays where it is, as it should, and is out of reach for that time."""
    return longer(ttl_s) + BACK_S


def longer(ttl_s: float) -> float:
    """Long enough that leases end."""
    return 2 * ttl_s


# ----------------------------------------------------------------------------------------------- routers come and go


def two_come(fleet: Fleet) -> None:
    _begin(fleet, 2)


def three_come(fleet: Fleet) -> None:
    _begin(fleet, 3)


def _begin(fleet: Fleet, count: int) -> None:
    """Balanced and serving within ten seconds of their start."""
    before = len(fleet.routers)
    began = time.monotonic()
    for number in range(before, before + count):
        fleet.begin(f"r{number}", "router")
    fleet.wait_whole()
    took_s = time.monotonic() - began
    print(f"from {before} to {before + count} routers: balanced and serving after {took_s:.2f} s")
    assert took_s < BALANCED_S, f"{took_s:.1f} s\n{fleet.told()}"


def two_go(fleet: Fleet) -> None:
    names = sorted(fleet.routers)[-2:]
    led = fleet.leaders()
    assert set(names) <= set(led.values()), f"{names} lead nothing: {led}"
    fleet.leave(*names)
    fleet.wait_led()


def some_are_moved(fleet: Fleet) -> None:
    """By an operator, one after the other."""
    giver = _victim(fleet).name
    taker = next(name for name in sorted(fleet.routers) if name != giver)
    moved = [shard for shard, name in fleet.leaders().items() if name == giver][:MOVED]
    for shard in moved:
        fleet.move(shard, taker)
    wait_until(lambda: all(fleet.leaders().get(shard) == taker for shard in moved), "they are moved")


def one_is_killed(fleet: Fleet) -> None:
    fleet.kill(_victim(fleet).name)
    fleet.wait_led()


def one_stands_still(fleet: Fleet) -> None:
    """For longer than its lease; then it goes on where it was, and must not lead."""
    victim = _victim(fleet)
    pids = victim.routers
    for pid in pids:
        stand_still(pid)
    time.sleep(longer(fleet.ttl_s))
    assert all(stands_still(pid) for pid in pids)
    for pid in pids:
        victim.signal(pid, signal.SIGCONT)


# ---------------------------------------------------------------------------------------------------------------- cuts


def cut(of: Callable[[Fleet], Sequence[Machine]], time_s: Callable[[float], float], **ways: bool) -> Act:
    """A router is cut from these machines for a time."""

    def act(fleet: Fleet) -> None:
        machine = _victim(fleet).machine
        machine.cut(of(fleet), **ways)
        time.sleep(time_s(fleet.ttl_s))
        dropped = machine.heal()
        assert dropped, "the cut dropped nothing"

    return act


def etcd(fleet: Fleet) -> Sequence[Machine]:
    return [fleet.etcd_machine]


def redis(fleet: Fleet) -> Sequence[Machine]:
    return [fleet.redis_machine]


def workers(fleet: Fleet) -> Sequence[Machine]:
    return [node.machine for node in fleet.gateways.values()]


def everybody(fleet: Fleet) -> Sequence[Machine]:
    return [machine for name, machine in fleet.switch.machines.items() if name != _victim(fleet).name]


def shortly(ttl_s: float) -> float:
    """No lease ends."""
    return SHORTLY_S


def gateways_without_etcd(fleet: Fleet) -> None:
    """Workers go on with the routers that they know."""
    machines = workers(fleet)
    for machine in machines:
        machine.cut(etcd(fleet))
    time.sleep(longer(fleet.ttl_s))
    assert all(machine.heal() for machine in machines), "the cut dropped nothing"


def etcd_is_away(fleet: Fleet) -> None:
    """From everybody, for longer than a lease: who leads pauses at its bound, and goes on when etcd is back."""
    fleet.etcd_machine.cut([node.machine for node in (*fleet.routers.values(), *fleet.gateways.values())])
    time.sleep(longer(fleet.ttl_s))
    assert fleet.etcd_machine.heal(), "the cut dropped nothing"


def a_member_of_etcd_is_killed(fleet: Fleet) -> None:
    leader = fleet.etcd.leader
    leader.kill()
    time.sleep(fleet.ttl_s)
    leader.start()


def redis_is_killed(fleet: Fleet) -> None:
    fleet.redis.kill()
    time.sleep(SHORTLY_S)
    fleet.redis.start()


def _victim(fleet: Fleet) -> FleetNode:
    """The router that leads the shard of the probe's first group, so that there is something to lose."""
    name = fleet.leaders()[0]
    return fleet.routers[name]


FAULTS = (
    Fault("two routers come", two_come, handed_over, planned=True),
    Fault("two routers go", two_go, handed_over, short=True, planned=True),
    Fault("shards are moved", some_are_moved, handed_over, planned=True),
    Fault("a router is killed", one_is_killed, taken_over, short=True),
    Fault("a router stands still", one_stands_still, taken_over),
    Fault("cut from etcd", cut(etcd, longer), taken_over, short=True),
    Fault("cut from etcd for less than a lease", cut(etcd, shortly), undisturbed),
    Fault("not heard by etcd", cut(etcd, longer, hears=True), taken_over),
    Fault("does not hear etcd", cut(etcd, longer, is_heard=True), taken_over),
    Fault("cut from Redis", cut(redis, longer), for_the_cut),
    Fault("not heard by Redis", cut(redis, longer, hears=True), for_the_cut),
    Fault("does not hear Redis", cut(redis, longer, is_heard=True), for_the_cut),
    Fault("cut from workers", cut(workers, longer), for_the_cut, short=True, cuts_workers=True),
    Fault("not heard by workers", cut(workers, longer, hears=True), for_the_cut, cuts_workers=True),
    Fault("does not hear workers", cut(workers, longer, is_heard=True), for_the_cut, cuts_workers=True),
    Fault("cut from everybody", cut(everybody, longer), taken_over, cuts_workers=True),
    Fault("gateways without etcd", gateways_without_etcd, undisturbed),
    Fault("a member of etcd is killed", a_member_of_etcd_is_killed, undisturbed),
    Fault("etcd is away", etcd_is_away, for_the_cut),
    Fault("Redis is killed", redis_is_killed, for_the_cut),
    Fault("from three to six routers", three_come, handed_over, planned=True),
)


def restore(fleet: Fleet, routers: int) -> None:
    """Everything passes, everybody that is missing is there again, and nobody more."""
    fleet.switch.heal()
    for shard in fleet.pins():
        fleet.move(shard, None)
    while len(fleet.routers) > routers:
        fleet.leave(sorted(fleet.routers)[-1])
    for number in range(routers):
        if f"r{number}" not in fleet.routers:
            fleet.begin(f"r{number}", "router")
    fleet.etcd.wait()
    wait_until(fleet.is_up, lambda: f"no node ended\n{fleet.told()}")
    fleet.wait_whole()
