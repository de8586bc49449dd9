"""A second machine in this one: a network namespace behind a cable of its own, which can lose packets or be cut."""

import contextlib
import ctypes
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tools import provision

COMMAND_DEADLINE_S = 20
CLONE_NEWNET = 0x40000000
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21  # capability.h
# From RFC 2544's range, which nobody uses for anything else; a cable takes four addresses of it.
ADDRESSES = "198.18.{}.{}"


def why_not() -> str:
    """Why namespaces cannot be had here; empty when they can."""
    status = Path("/proc/self/status").read_text()
    rights = int(status.partition("CapEff:")[2].split()[0], 16)
    if not all(rights & 1 << number for number in (CAP_NET_ADMIN, CAP_SYS_ADMIN)):
        return "needs root: a network namespace and a cable into it are made"
    missing = [name for name in ("ip", "nft") if provision.find_program(name) is None]
    return f"needs {' and '.join(missing)}: make provision" if missing else ""


def command(*words: str) -> str:
    """What it says."""
    program = provision.find_program(words[0])
    assert program, f"{words[0]} is not installed"
    environment = provision.environment_for(program)
    done = subprocess.run(
        [program, *words[1:]], env=environment, check=True, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S
    )
    return done.stdout


def enter(name: str) -> None:
    """Let the calling thread, and no other one, make its sockets in a namespace from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{name}").open() as opened:
        if libc.setns(opened.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


class Namespace:
    """Attributes: `here` and `there`, the addresses at both ends of the cable; made by `namespace`."""

    def __init__(self, name: str, number: int, place: int) -> None:
        self.name, self.cable = name, f"{name}c"
        self.here, self.there = ADDRESSES.format(number, place + 1), ADDRESSES.format(number, place + 2)

    def lay_cable(self) -> None:
        command("ip", "netns", "add", self.name)
        command("ip", "link", "add", self.cable, "type", "veth", "peer", "name", "cable", "netns", self.name)
        command("ip", "address", "add", f"{self.here}/30", "dev", self.cable)
        command("ip", "link", "set", self.cable, "up")
        self.inside("ip", "address", "add", f"{self.there}/30", "dev", "cable")
        for device in ("lo", "cable"):
            self.inside("ip", "link", "set", device, "up")

    def inside(self, *words: str) -> str:
        """Run a command in there; what it says."""
        return command("ip", "netns", "exec", self.name, provision.find_program(words[0]) or words[0], *words[1:])

    def enter(self) -> None:
        """Let the calling thread, and no other one, make its sockets in there from now on."""
        enter(self.name)

    def lose(self, percent: int) -> None:
        """From now on so many packets get lost, in both directions; 100 cuts the cable, and nobody is told."""
        what = "drop" if percent == 100 else f"numgen random mod 100 < {percent} counter drop"
        self.inside("nft", "add table inet weather")
        for hook in ("input", "output"):
            self.inside("nft", f"add chain inet weather {hook} {{ type filter hook {hook} priority 0; }}")
            self.inside("nft", f"flush chain inet weather {hook}")
            self.inside("nft", f"add rule inet weather {hook} {what}")

    def lost(self) -> int:
        """How many packets got lost since `lose` was asked for a part of them."""
        return sum(map(int, re.findall(r"counter packets (\d+)", self.inside("nft", "list table inet weather"))))

    def remove(self) -> None:
        for words in (("ip", "link", "del", self.cable), ("ip", "netns", "del", self.name)):
            with contextlib.suppress(subprocess.CalledProcessError):
                command(*words)


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A namespace with a cable, gone afterwards; needs root (see `why_not`)."""
    number = random.SystemRandom().randrange(1 << 14)
    made = Namespace(f"hf{number:x}", number >> 6, (number & 63) * 4)
    try:
        made.lay_cable()
        yield made
    finally:
        made.remove()
