"""A cluster of etcd whose members live behind cables of their own, so that they can be parted from one another.

Each member has a network namespace; a bridge in ours joins their cables, and is how the tests reach them.
"""

import contextlib
import random
import subprocess
from collections.abc import Iterator

from tests.chaos.namespace import command, why_not
from tests.servers.etcd import SIZE, Cluster, Member
from tools import provision

__all__ = ["Network", "running_network", "why_not"]
# The upper half of RFC 2544's range; the lower one is that of tests/chaos/namespace.py.
ADDRESSES = "198.19.{}.{}"
PORTS = (2379, 2380, 2381)
FIRST = 2
"""The members' addresses end with 2, 3 and 4; ours with 1."""


class Network:
    """Three namespaces on one bridge; made by `running_network`."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.bridge = f"{name}b"
        self._here = ADDRESSES.format(number, 1)
        self.hosts = [ADDRESSES.format(number, FIRST + one) for one in range(SIZE)]
        members = [Member(f"m{one}", host, PORTS, inside=self._words(one)) for one, host in enumerate(self.hosts)]
        self.cluster = Cluster(members)

    def lay(self) -> None:
        command("ip", "link", "add", self.bridge, "type", "bridge")
        command("ip", "address", "add", f"{self._here}/24", "dev", self.bridge)
        command("ip", "link", "set", self.bridge, "up")
        for one, host in enumerate(self.hosts):
            space, cable = f"{self.name}{one}", f"{self.name}c{one}"
            command("ip", "netns", "add", space)
            command("ip", "link", "add", cable, "type", "veth", "peer", "name", "cable", "netns", space)
            command("ip", "link", "set", cable, "master", self.bridge, "up")
            self.inside(one, "ip", "address", "add", f"{host}/24", "dev", "cable")
            for device in ("lo", "cable"):
                self.inside(one, "ip", "link", "set", device, "up")
            self.inside(one, "nft", "add table inet parting")
            for hook in ("input", "output"):
                self.inside(one, "nft", f"add chain inet parting {hook} {{ type filter hook {hook} priority 0; }}")

    def _words(self, one: int) -> list[str]:
        return [provision.find_program("ip") or "ip", "netns", "exec", f"{self.name}{one}"]

    def inside(self, one: int, *words: str) -> None:
        """Run a command in a member's namespace."""
        command(*self._words(one), provision.find_program(words[0]) or words[0], *words[1:])

    def part(self, member: Member, *, hears: bool = False) -> None:
        """From now on nothing passes between a member and the others; or, if it hears, nothing from it to them."""
        self._cut(member, [host for host in self.hosts if host != member.host], hears)

    def part_from_us(self, member: Member) -> None:
        """From now on nothing passes between a member and whoever is outside of the cluster."""
        self._cut(member, [self._here], False)

    def _cut(self, member: Member, others: list[str], hears: bool) -> None:
        one = self.cluster.members.index(member)
        for other in others:
            self.inside(one, "nft", f"add rule inet parting output ip daddr {other} drop")
            if not hears:
                self.inside(one, "nft", f"add rule inet parting input ip saddr {other} drop")

    def heal(self) -> None:
        """Everything passes again."""
        for one in range(SIZE):
            for hook in ("input", "output"):
                self.inside(one, "nft", f"flush chain inet parting {hook}")

    def remove(self) -> None:
        self.cluster.destroy()
        for words in (
            *(("link", "del", f"{self.name}c{one}") for one in range(SIZE)),
            *(("netns", "del", f"{self.name}{one}") for one in range(SIZE)),
            ("link", "del", self.bridge),
        ):
            with contextlib.suppress(subprocess.CalledProcessError):
                command("ip", *words)


@contextlib.contextmanager
def running_network() -> Iterator[Network]:
    """A cluster in a network that can be parted; needs root (see `why_not`)."""
    number = random.SystemRandom().randrange(256)
    network = Network(f"he{number:x}", number)
    try:
        network.lay()
        network.cluster.start()
        yield network
    finally:
        network.remove()
