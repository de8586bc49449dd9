"""A wide area: regions, each a switch of its own, and between them a program that carries every packet after a delay.

The kernel here has no netem. What leaves a region is routed through a namespace of the area's own into a TUN device,
where a few lines of C (wan_delay.c) hold each packet for as long as the way takes, and count it. Loss is nftables', and
so are cuts: what is cut is dropped in silence, in both directions, also what is under way. TCP is the kernel's own from
end to end: it meets the real round trips and the real loss.

Our own namespace has a cable into each region: a client of ours is inside of whichever region it dials, at no distance.
"""

import contextlib
import mmap
import os
import random
import re
import select
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from tests.chaos.namespace import command
from tests.chaos.switch import NETWORK, Machine, Switch
from tools import provision

SOURCE = Path(__file__).with_name("wan_delay.c")
COMPILE_S = 60.0
READY_S = 20.0
ATTEMPTS = 20
WAY_OUT = 254
"""The last number of the area's own address in each region."""
TABLE = "inet weather"
OUTSIDE = "100"
"""The table of routes for what comes from a region."""
REGIONS_MAX, KINDS = 4, 4
ONE = struct.Struct("=Q")
COUNTS_AT = REGIONS_MAX * REGIONS_MAX * ONE.size
COUNT = struct.Struct("=QQ")
REST_AT = COUNTS_AT + REGIONS_MAX * REGIONS_MAX * KINDS * COUNT.size
REST = struct.Struct("=QQQ")
QUEUE_PACKETS = 20_000
"""Between the kernel and the program; what a burst brings beyond it would be lost, and nobody would count it."""


class Kind(IntEnum):
    """What is carried, by its port at either end."""

    ETCD = 0
    REDIS = 1
    BUS = 2
    OTHER = 3


class Count(NamedTuple):
    """What was carried, with the headers of IP and TCP."""

    packets: int
    bytes: int


class Wan:
    """Some regions; made by `running_wan`.

    Attributes:
        switches: by region, where machines are plugged in.

    """

    def __init__(self, regions: Sequence[str]) -> None:
        assert len(regions) <= REGIONS_MAX
        self.regions = tuple(regions)
        self.switches = {name: Switch(f"hs{os.getpid():x}{number}") for number, name in enumerate(regions)}
        self._folder = tempfile.TemporaryDirectory(prefix="hf-wan-")
        self._middle = Machine(f"hw{os.getpid():x}", "", ())
        self._networks: dict[str, str] = {}
        self._shared: mmap.mmap | None = None
        self._program: subprocess.Popen[bytes] | None = None

    # ---- its making

    def lay(self) -> None:
        """All regions with a way between each two, at no delay and without loss."""
        taken = command("ip", "-4", "-oneline", "address")
        dice = random.SystemRandom()
        choices = (dice.randrange(0, 256, REGIONS_MAX) for _ in range(ATTEMPTS))
        first = next(
            one for one in choices if not any(f" {NETWORK.format(one + n)}" in taken for n in range(REGIONS_MAX))
        )
        command("ip", "netns", "add", self._middle.name)
        # Nobody here speaks it, but for the kernel, which would ask a new device for routers.
        self._middle.inside("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
        self._middle.inside("ip", "tuntap", "add", "dev", "wide", "mode", "tun")
        self._middle.inside("ip", "link", "set", "wide", "up", "txqueuelen", str(QUEUE_PACKETS))
        self._middle.inside("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0")
        self._middle.inside("sysctl", "-q", "-w", "net.ipv4.conf.wide.rp_filter=0")
        self._middle.inside("ip", "route", "add", "default", "dev", "wide", "table", OUTSIDE)
        for number, region in enumerate(self.regions):
            self._networks[region] = NETWORK.format(first + number)
            self._lay_region(number, region)
        hook = "{ type filter hook forward priority 0; }"
        chains = (f"add chain {TABLE} {name} {hook}" for name in ("cuts", "loss"))
        self._middle.inside("nft", "; ".join((f"add table {TABLE}", *chains)))
        self._begin(NETWORK.format(first) + "0")

    def _lay_region(self, number: int, region: str) -> None:
        switch, network = self.switches[region], self._networks[region]
        switch.lay(network, f"{network}{WAY_OUT}")
        cable, inner = f"{switch.name}w", f"region{number}"
        command("ip", "link", "add", cable, "type", "veth", "peer", "name", inner, "netns", self._middle.name)
        command("ip", "link", "set", cable, "master", switch.name, "up")
        self._middle.inside("ip", "address", "add", f"{network}{WAY_OUT}/24", "dev", inner)
        self._middle.inside("ip", "link", "set", inner, "up")
        self._middle.inside("sysctl", "-q", "-w", f"net.ipv4.conf.{inner}.rp_filter=0")
        self._middle.inside("ip", "rule", "add", "iif", inner, "lookup", OUTSIDE)

    def _begin(self, first: str) -> None:
        folder = Path(self._folder.name)
        program, shared = folder / "wan_delay", folder / "shared"
        words = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", str(SOURCE), "-o", str(program)]
        subprocess.run(words, check=True, timeout=COMPILE_S)
        shared.write_bytes(bytes(REST_AT + REST.size))
        with shared.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 0)
        words = [*self._middle.words, str(program), "wide", str(shared), first, str(len(self.regions))]
        environment = provision.environment_for(words[0])
        self._program = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment)
        assert self._program.stdout is not None
        readable, _, _ = select.select([self._program.stdout], [], [], READY_S)
        assert readable, "the program between the regions does not begin"
        assert self._program.stdout.readline() == b"ready\n", "the program between the regions has ended"

    def remove(self) -> None:
        """Of the machines in it, too."""
        if self._program is not None:
            self._program.kill()
            self._program.wait(READY_S)
            assert self._program.stdout is not None
            self._program.stdout.close()
        for switch in self.switches.values():
            switch.remove()
            with contextlib.suppress(subprocess.CalledProcessError):
                command("ip", "link", "del", f"{switch.name}w")
        with contextlib.suppress(subprocess.CalledProcessError):
            command("ip", "netns", "del", self._middle.name)
        if self._shared is not None:
            self._shared.close()
        self._folder.cleanup()

    # ---- what it does to packets

    def add(self, region: str, label: str) -> Machine:
        """One more machine in a region; with a label that was there before, the same again."""
        return self.switches[region].add(label)

    def delay(self, one: str, other: str, round_trip_ms: float) -> None:
        """From now on, half of it each way."""
        for pair in ((one, other), (other, one)):
            ONE.pack_into(self._memory, self._way(*pair) * ONE.size, round(round_trip_ms * 500))

    def lose(self, per_mille: int) -> None:
        """From now on so many packets of a thousand that leave a region for another get lost."""
        self._middle.inside("nft", f"flush chain {TABLE} loss")
        if per_mille:
            rule = f"oifname wide numgen random mod 1000 < {per_mille} counter drop"
            self._middle.inside("nft", f"add rule {TABLE} loss {rule}")

    def lost(self) -> int:
        """How many packets got lost since `lose` was said last."""
        return self._dropped("loss")

    def cut(self, region: str, *others: str) -> None:
        """From now on nothing passes between a region and others; all others, if none are named."""
        rules = []
        for other in others or [name for name in self.regions if name != region]:
            for source, target in ((region, other), (other, region)):
                nets = f"ip saddr {self._networks[source]}0/24 ip daddr {self._networks[target]}0/24"
                rules.append(f"add rule {TABLE} cuts {nets} counter drop")
        self._middle.inside("nft", "; ".join(rules))

    def cut_port(self, region: str, other: str, port: int) -> None:
        """From now on nothing of a region reaches this TCP port of another, nor what answers there."""
        here, there = self._networks[region], self._networks[other]
        to = f"ip saddr {here}0/24 ip daddr {there}0/24 tcp dport {port}"
        back = f"ip saddr {there}0/24 ip daddr {here}0/24 tcp sport {port}"
        self._middle.inside("nft", "; ".join(f"add rule {TABLE} cuts {nets} counter drop" for nets in (to, back)))

    def heal(self) -> int:
        """Everything passes again; how many packets did not."""
        dropped = self.held_back()
        self._middle.inside("nft", f"flush chain {TABLE} cuts")
        return dropped

    def held_back(self) -> int:
        """How many packets did not pass since something was cut."""
        return self._dropped("cuts")

    # ---- what it counts

    def carried(self, one: str, other: str, *kinds: Kind) -> Count:
        """From one region to the other so far; of all kinds, if none are named. What got lost is not in it."""
        packets = size = 0
        for kind in kinds or Kind:
            at = COUNTS_AT + (self._way(one, other) * KINDS + kind) * COUNT.size
            found = COUNT.unpack_from(self._memory, at)
            packets, size = packets + found[0], size + found[1]
        return Count(packets, size)

    def crossed(self, *kinds: Kind) -> Count:
        """Between any two regions so far."""
        found = [self.carried(one, other, *kinds) for one in self.regions for other in self.regions]
        return Count(sum(one.packets for one in found), sum(one.bytes for one in found))

    def check(self) -> None:
        """It carried everything that it was given, and still runs."""
        assert self._program is not None
        assert self._program.poll() is None, "the program between the regions has ended"
        strays, overruns, _ = REST.unpack_from(self._memory, REST_AT)
        queued = self._middle.inside("ip", "-stats", "link", "show", "dev", "wide")
        dropped = int(re.findall(r"TX:.*\n\s*\d+\s+\d+\s+\d+\s+(\d+)", queued)[0])
        assert (strays, overruns, dropped) == (0, 0, 0), f"{strays} strays, {overruns} too many, {dropped} not taken"

    @property
    def late_ms(self) -> float:
        """The most that a packet came later than it should have, on this machine."""
        return float(REST.unpack_from(self._memory, REST_AT)[2]) / 1000

    def _way(self, one: str, other: str) -> int:
        return self.regions.index(one) * REGIONS_MAX + self.regions.index(other)

    def _dropped(self, chain: str) -> int:
        rules = self._middle.inside("nft", f"list chain {TABLE} {chain}")
        return sum(map(int, re.findall(r"counter packets (\d+)", rules)))

    @property
    def _memory(self) -> mmap.mmap:
        assert self._shared is not None
        return self._shared


@contextlib.contextmanager
def running_wan(*regions: str) -> Iterator[Wan]:
    """Regions without machines, gone afterwards; needs root (see `tests.chaos.switch.why_not`)."""
    wan = Wan(regions)
    try:
        wan.lay()
        yield wan
    finally:
        wan.remove()
