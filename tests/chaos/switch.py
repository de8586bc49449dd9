"""Machines on one switch: network namespaces whose cables end in a bridge of ours, and can be parted from one another.

Ours is where the tests, and with them the clients, are. What is cut is dropped in silence, as by a broken switch or a
wrong rule of a firewall: nobody is told that anybody is gone. Each cut counts what it dropped, so that nobody takes a
fault to have struck that did not.
"""

import contextlib
import os
import random
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence

from tests.chaos.namespace import command, why_not
from tools import provision

__all__ = ["Machine", "Switch", "running_switch", "why_not"]
# The upper half of RFC 2544's range, a third byte a switch; tests/servers/etcd_network.py takes from it as well.
NETWORK = "198.19.{}."
OURS = 1
ATTEMPTS = 20
TABLE = "inet parting"


class Machine:
    """One namespace; made by `Switch.add`.

    Attributes:
        hosts: its addresses.

    """

    def __init__(self, name: str, cable: str, hosts: Sequence[str], way_out: str = "") -> None:
        self.name, self.cable, self.hosts = name, cable, tuple(hosts)
        self._way_out = way_out

    @property
    def host(self) -> str:
        return self.hosts[0]

    @property
    def words(self) -> tuple[str, ...]:
        """What stands before a command that is to run in there."""
        return (provision.find_program("ip") or "ip", "netns", "exec", self.name)

    def inside(self, *words: str) -> str:
        """Run a command in there; what it says."""
        return command(*self.words, provision.find_program(words[0]) or words[0], *words[1:])

    def plug(self, bridge: str) -> None:
        command("ip", "netns", "add", self.name)
        command("ip", "link", "add", self.cable, "type", "veth", "peer", "name", "cable", "netns", self.name)
        command("ip", "link", "set", self.cable, "master", bridge, "up")
        for host in self.hosts:
            self.inside("ip", "address", "add", f"{host}/24", "dev", "cable")
        for device in ("lo", "cable"):
            self.inside("ip", "link", "set", device, "up")
        if self._way_out:
            self.inside("ip", "route", "add", "default", "via", self._way_out)
        chains = (f"add chain {TABLE} {hook} {{ type filter hook {hook} priority 0; }}" for hook in ("input", "output"))
        self.inside("nft", "; ".join((f"add table {TABLE}", *chains)))

    def cut(self, others: Iterable["Machine"], *, hears: bool = False, is_heard: bool = False) -> None:
        """From now on nothing passes between this and others; but what it `hears`, or what of it `is_heard`, does."""
        assert not (hears and is_heard), "that is no cut"
        rules = []
        for host in [host for other in others for host in other.hosts]:
            if not hears:
                rules.append(f"add rule {TABLE} input ip saddr {host} counter drop")
            if not is_heard:
                rules.append(f"add rule {TABLE} output ip daddr {host} counter drop")
        self.inside("nft", "; ".join(rules))

    def heal(self) -> int:
        """Everything passes again; how many packets did not."""
        dropped = sum(map(int, re.findall(r"counter packets (\d+)", self.inside("nft", f"list table {TABLE}"))))
        self.inside("nft", "; ".join(f"flush chain {TABLE} {hook}" for hook in ("input", "output")))
        return dropped

    def unplug(self) -> None:
        for words in (("ip", "link", "del", self.cable), ("ip", "netns", "del", self.name)):
            with contextlib.suppress(subprocess.CalledProcessError):
                command(*words)


class Switch:
    """A bridge and the machines on it; made by `running_switch`."""

    def __init__(self, name: str = "") -> None:
        self.name = name or f"hs{os.getpid():x}"
        self.machines: dict[str, Machine] = {}
        self._network = self._way_out = ""
        self._next = OURS + 1

    def lay(self, network: str = "", way_out: str = "") -> None:
        """The bridge, with our own address: of a network that nothing else here has.

        Args:
            network: to take that one, `198.19.7.` for example.
            way_out: through which address its machines reach what is not in it; empty: they do not.

        """
        command("ip", "link", "add", self.name, "type", "bridge")
        self._network, self._way_out = network or self._free_network(), way_out
        command("ip", "address", "add", f"{self._network}{OURS}/24", "dev", self.name)
        command("ip", "link", "set", self.name, "up")

    @staticmethod
    def _free_network() -> str:
        taken = command("ip", "-4", "-oneline", "address")
        dice = random.SystemRandom()
        choices = (NETWORK.format(dice.randrange(256)) for _ in range(ATTEMPTS))
        return next(network for network in choices if f" {network}" not in taken)

    @property
    def host(self) -> str:
        """Our own address."""
        return f"{self._network}{OURS}"

    def add(self, label: str, addresses: int = 1) -> Machine:
        """Plug one more machine in; with a label that was there before, the same again."""
        if label not in self.machines:
            hosts = [f"{self._network}{self._next + number}" for number in range(addresses)]
            number = len(self.machines)
            self._next += addresses
            cable = f"{self.name}c{number}"
            machine = self.machines[label] = Machine(f"{self.name}-{number}", cable, hosts, self._way_out)
            machine.plug(self.name)
        return self.machines[label]

    def heal(self) -> int:
        """Everything passes again; how many packets did not."""
        return sum(machine.heal() for machine in self.machines.values())

    def remove(self) -> None:
        for machine in self.machines.values():
            machine.unplug()
        with contextlib.suppress(subprocess.CalledProcessError):
            command("ip", "link", "del", self.name)


@contextlib.contextmanager
def running_switch() -> Iterator[Switch]:
    """A switch, gone afterwards; needs root (see `why_not`)."""
    switch = Switch()
    try:
        switch.lay()
        yield switch
    finally:
        switch.remove()
