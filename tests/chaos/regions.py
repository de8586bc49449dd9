"""Three regions: in each a member of etcd, a Redis, routers and a gateway, and the ways between them long and lossy.

Every node is `holdfast run` in a network namespace. Clients of ours are inside of the region whose gateway they dial.
What is struck is a region as a whole: its processes, or what lies between it and the others. What its Redis holds is
read where it stands.
"""

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.endpoints import Endpoints, Place
from tests.chaos.fleet import ETCD_PORTS, READY_S, REDIS_PORT, FleetNode, Nodes, redis_on
from tests.chaos.wan import Wan, running_wan
from tests.conftest import marked_processes, wait_until
from tests.servers.etcd import Cluster, Member
from tests.servers.redis import AWAY

REGIONS = ("eu", "us", "ap")
ROUND_TRIPS_MS = {("eu", "us"): 40.0, ("eu", "ap"): 40.0, ("us", "ap"): 80.0}
LOST_PER_MILLE = 1
LIMIT_S = 60.0
MOVED_S = 120.0
"""For moving shards one after another, each with some writes to a directory that is far away."""
ADVERTISED = 'advertise = "ws://{host}:7401,tcp://{host}:7400"'
CHANNELS = "hf:{h*}:c:*"
SCANNED = 1_000
RETAINED = 1_000
"""Messages of a channel, by default."""
DROPPED = re.compile(r"shard \d+: (\d+) messages that only this region had")
ACKS = """
[namespaces.group]
ack = "{group}"
[namespaces.user]
ack = "{group}"
[namespaces.logged]
domain = "group"
ack = "logged"
"""
"""Channels of `group:` and `user:` answer when another region has it, those of `logged:` once the leader's has."""


class Entry(NamedTuple):
    """One message in a region's log."""

    id: bytes
    fields: tuple[tuple[bytes, bytes], ...]


History = dict[bytes, list[Entry]]
"""By the key of its channel."""


class Regions(Nodes):
    """Nodes in all regions.

    Args:
        bridged: each region has a log of its own; without it all use that of the first.

    Attributes:
        redis: the log of each region.

    """

    def __init__(self, wan: Wan, *, shards: int, ttl_s: int, bridged: bool, placement: str = "") -> None:
        self.wan, self.bridged, self.placement = wan, bridged, placement
        places = {name: wan.add(name, "etcd") for name in REGIONS}
        members = [Member(name, one.host, ETCD_PORTS, inside=one.words) for name, one in places.items()]
        super().__init__(Cluster(members), shards=shards, ttl_s=ttl_s)
        self.redis = {name: redis_on(wan.add(name, "redis")) for name in REGIONS}
        self.down: set[str] = set()
        self.note: Callable[[str], None] = lambda what: None
        """Hears what is done to a region, for the stories."""

    # ---- nodes come and go

    def start(self, routers: dict[str, int]) -> None:
        """A gateway in each region, and so many routers; returns when they serve."""
        self.etcd.start()
        for one in self.redis.values():
            one.start()
        for region in REGIONS:
            for number in range(routers.get(region, 0)):
                self.begin(region, f"r-{region}-{number}", "router")
            self.begin(region, f"g-{region}", "gateway")
        self.wait_whole()

    def begin(self, region: str, name: str, role: str) -> FleetNode:
        """Start a node; returns before it serves."""
        log = self.redis[region if self.bridged else REGIONS[0]].url
        near = self.etcd.members[REGIONS.index(region)].endpoint
        endpoints = (near, *(one for one in self.etcd.endpoints if one != near))
        machine = self.wan.add(region, name)
        gateway = ADVERTISED.format(host=machine.host)
        directory = f'region = "{region}"' + (f'\nplacement = "{self.placement}"' if self.placement else "")
        more = ACKS.format(group="replicated" if self.bridged else "logged")
        if self.bridged:
            others = "\n".join(f'{other} = "{one.url}"' for other, one in self.redis.items() if other != region)
            more = f"[log.regions]\n{others}\n{more}"
        return self.begin_on(machine, name, role, log, endpoints, gateway=gateway, directory=directory, more=more)

    def nodes_of(self, region: str) -> list[FleetNode]:
        """The nodes of a region, routers first."""
        routers = [node for name, node in self.routers.items() if name.startswith(f"r-{region}-")]
        return [*routers, self.gateways[f"g-{region}"]]

    # ---- what happens to a region

    def cut(self, region: str) -> None:
        """Nothing passes between it and the others; its clients are inside of it."""
        self.note(f"cut {region} off")
        self.wan.cut(region)

    def heal(self) -> None:
        """Everything passes again."""
        self.note("heal")
        assert self.wan.heal(), "the cut dropped nothing"

    def kill(self, region: str) -> None:
        """SIGKILL to everything in it, and nobody there sees another one die."""
        nodes, member = self.nodes_of(region), self.etcd.members[REGIONS.index(region)]
        pids = [pid for node in nodes for pid in marked_processes(node.folder.name)]
        pids += [member.pid, self.redis[region].pid]
        self.note(f"kill {region}")
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self.down.add(region)
        for node in nodes:
            node.crash()
        member.kill()
        self.redis[region].kill()

    def bring_back_redis(self, region: str, size: int | None = None) -> None:
        """With what is on its disk; or as after a loss of power: with no more than so many bytes of its newest file."""
        if size is not None:
            os.truncate(self._file_of(region), size)
        self.redis[region].start()

    def written(self, region: str) -> int:
        """Bytes of the newest file of a region's Redis."""
        return self._file_of(region).stat().st_size

    def _file_of(self, region: str) -> Path:
        folder = self.redis[region].folder / "appendonlydir"
        files = folder.glob("*.incr.aof")
        return max(files, key=lambda one: int(re.findall(r"aof\.(\d+)\.", one.name)[0]))

    def bring_back(self, region: str) -> None:
        """Start all that was killed there but for Redis, which is there again; returns before it serves."""
        self.note(f"bring {region} back")
        self.etcd.members[REGIONS.index(region)].start(wait=False)
        for node in self.nodes_of(region):
            node.launch_again()
        self.down.discard(region)

    def dropped(self, region: str) -> int:
        """How many messages its routers say they dropped, since they were first started."""
        return sum(
            int(count)
            for node in self.nodes_of(region)
            for count in DROPPED.findall(node.log.read_text(errors="replace"))
        )

    def evacuate(self, region: str, *, pace: int = 0) -> None:
        """As an operator does, anywhere."""
        self._order({"region": region, "on": True, "pace": pace, "by": "the tests"})

    def restore(self, region: str) -> None:
        self._order({"region": region, "on": False})

    def _order(self, body: dict[str, Any]) -> None:
        node = next(iter(self.gateways.values()))
        status, text = node.post("/api/regions/evacuate", body)
        assert status == 202, text

    def region_of(self, name: str) -> str:
        """Of a node."""
        return name.split("-")[1]

    def part_redis(self, one: str, other: str) -> None:
        """Neither region reaches the log of the other; everything else passes."""
        for region, far in ((one, other), (other, one)):
            self.wan.cut_port(region, far, REDIS_PORT)

    # ---- how it is

    def endpoints(self, region: str, *, alone: bool = False) -> Endpoints:
        """What a client of a region knows: its gateway, then those of the others; or its own alone."""
        first = REGIONS.index(region)
        names = REGIONS[first : first + 1] if alone else REGIONS[first:] + REGIONS[:first]
        return Endpoints(*(self._place_in(name) for name in names))

    def _place_in(self, region: str) -> Place:
        node = self.gateways[f"g-{region}"]
        return lambda: (node.machine.host, node.port)

    def places(self, number: int) -> Place:
        """For the talkers of a cohort: one in each region in turn."""
        return self.endpoints(REGIONS[number % len(REGIONS)])

    def insiders(self, number: int) -> Place:
        """As `places`, and each knows its own region alone."""
        return self.endpoints(REGIONS[number % len(REGIONS)], alone=True)

    def led_in(self) -> dict[int, str]:
        """By shard the region that leads it."""
        return {shard: self.region_of(name) for shard, name in self.leaders().items()}

    def is_balanced(self) -> bool:
        """Whether everything is led by somebody who is alive; how it is spread is the placement's."""
        return len(self.leaders()) == self.shards

    def is_ready(self) -> bool:
        try:
            up = [node for region in REGIONS if region not in self.down for node in self.nodes_of(region)]
            return all(node.get("/readyz")[0] == 200 for node in up)
        except OSError:
            return False

    def history(self, region: str) -> History:
        """All that a region's log has of all channels."""
        do = self.redis[region].do
        found: History = {}
        cursor: int | bytes = 0
        while True:
            cursor, keys = do("SCAN", cursor, "MATCH", CHANNELS, "COUNT", SCANNED)
            for key in keys:
                entries = do("XRANGE", key, "-", "+")
                if entries:
                    found[key] = [Entry(one, tuple(sorted(fields.items()))) for one, fields in entries]
            if int(cursor) == 0:
                return found

    def wait_led_in(self, where: set[str]) -> None:
        """Until each of these regions leads some shards, and no other does."""
        wait_until(
            lambda: len(self.leaders()) == self.shards and set(self.led_in().values()) == where,
            lambda: f"all is led in {where}\n{self.told()}",
            MOVED_S,
        )

    def differences(self, one: str, other: str) -> list[str]:
        """Where the logs of two regions are not the same, id for id."""
        try:
            first, second = self.history(one), self.history(other)
        except AWAY as error:
            return [f"cannot be read: {error}"]
        return list(unlike(one, first, other, second))

    def wait_same(self, limit_s: float = LIMIT_S) -> None:
        """Until the histories of all regions are the same, once nobody publishes any more."""

        def is_same() -> bool:
            return not any(self.differences(REGIONS[0], other) for other in REGIONS[1:])

        def complaint() -> str:
            found = [text for other in REGIONS[1:] for text in self.differences(REGIONS[0], other)]
            return "\n".join(["the histories are the same", *found[:20], self.told()])

        wait_until(is_same, complaint, limit_s)

    def wait_whole(self) -> None:
        """Until all nodes serve that are to, and everything is led."""
        wait_until(self.is_ready, lambda: f"all nodes are ready\n{self.told()}", READY_S)
        wait_until(self.is_balanced, lambda: f"everything is led\n{self.told()}", READY_S)

    def destroy(self) -> None:
        super().destroy()
        for one in self.redis.values():
            one.destroy()


def unlike(one: str, first: History, other: str, second: History) -> Iterator[str]:
    """What one history has and the other has not, channel by channel."""
    for key in sorted(first.keys() | second.keys()):
        ours, theirs = first.get(key, []), second.get(key, [])
        if ours == theirs:
            continue
        texts = []
        for name, has, lacks in ((one, ours, theirs), (other, theirs, ours)):
            extra = sorted({entry.id for entry in has} - {entry.id for entry in lacks})
            if extra:
                texts.append(f"{len(extra)} only in {name}, such as {extra[0].decode()}")
        if not texts:
            texts.append("same ids, different entries or another order")
        yield f"{key.decode()}: {'; '.join(texts)}"


def lacking(before: History, after: History, retained: int = RETAINED) -> list[tuple[bytes, bytes]]:
    """Entries that one history had and a later one has not: (channel's key, id); what was trimmed is none of them."""
    found = []
    for key, entries in before.items():
        kept = {entry.id for entry in after.get(key, [])}
        oldest = min(map(_number, kept)) if len(kept) >= retained else (0, 0)
        found += [(key, entry.id) for entry in entries if entry.id not in kept and _number(entry.id) > oldest]
    return found


def _number(text: bytes) -> tuple[int, int]:
    epoch, _, offset = text.partition(b"-")
    return int(epoch), int(offset)


@contextlib.contextmanager
def running_regions(
    routers: dict[str, int], *, shards: int, ttl_s: int, bridged: bool = True, placement: str = ""
) -> Iterator[Regions]:
    """Regions that serve; gone afterwards. Needs root (see `tests.chaos.switch.why_not`)."""
    with running_wan(*REGIONS) as wan:
        for pair, round_trip_ms in ROUND_TRIPS_MS.items():
            wan.delay(*pair, round_trip_ms)
        wan.lose(LOST_PER_MILLE)
        regions = Regions(wan, shards=shards, ttl_s=ttl_s, bridged=bridged, placement=placement)
        try:
            regions.start(routers)
            yield regions
            wan.check()
        finally:
            regions.destroy()
