"""A crowd: very many connections over several load processes, how they are spread, and what they were sent.

A process may open only so many files, so a crowd is cut into shares, one a load process. Every connection is in one
group; the shares take turns in how large their groups are, and SO_REUSEPORT spreads the members of each over all
workers.
"""

import contextlib
import http.client
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.measure import BenchError, Server, Swarm

# What a worker needs beside connections (see gateway.settings), and a load process.
WORKER_FILES_BESIDE = 256
SWARM_FILES_BESIDE = 1_000
# Workers get connections by a hash: so many standard deviations above the mean must still fit.
SIGMAS = 4.0
GROUP_SIZES = (10, 100, 1_000)
AT_ONCE = 2  # load processes that connect, or leave, at the same time; more would only wait for each other
PAYLOAD_BYTES = 100
HANDSHAKE_TIMEOUT_S = 20.0
# Towards the end of a ramp heartbeats take most of the processors: with few handshakes under way each is still quick.
HANDSHAKES = 64
GATHER_MS = 10  # how late the clients' own stamps may be, for one wake-up in place of many
SLACK_S = 300.0
LEAVE_DEADLINE_S = 60.0
PUBLISH_DEADLINE_S = 15.0
_MASK = (1 << 64) - 1


# ---- how the connections are spread ----


@dataclass(frozen=True)
class Share:
    """The connections of one load process."""

    number: int
    first: int
    """Index of its first connection in the whole crowd: names users and picks the source address."""
    groups: int
    members: int

    @property
    def count(self) -> int:
        return self.groups * self.members

    def channel(self, group: int) -> str:
        return f"group:crowd{self.number}-{group}"

    def options(self, connect_rate: int, gather: bool = False) -> list[str]:
        """The load client's options; `gather`: heartbeats are gathered, which is not for measuring latency."""
        named = {
            "--members": self.members,
            "--groups": self.groups,
            "--first": self.first,
            "--group": f"crowd{self.number}",
            "--connect-rate": connect_rate,
            "--handshake-timeout": HANDSHAKE_TIMEOUT_S,
            "--handshakes": HANDSHAKES,
            **({"--gather": GATHER_MS} if gather else {}),
            "--payload": PAYLOAD_BYTES,
        }
        return ["--text", *(word for name, value in named.items() for word in (name, str(value)))]


def workers_for(connections: int, files: int) -> int:
    """How many workers can hold that many connections when each may open `files` files."""
    room = files - WORKER_FILES_BESIDE
    workers = 1
    while (mean := connections / workers) + (SIGMAS * math.sqrt(mean) if workers > 1 else 0) > room:
        workers += 1
    return workers


def shares_of(connections: int, files: int, processes: int = 0) -> list[Share]:
    """Cuts a crowd into shares of nearly equal size.

    Args:
        connections: of the whole crowd.
        files: what a process may open.
        processes: how many there shall be; 0: as few as can hold them.

    """
    processes = processes or -(-connections // (files - SWARM_FILES_BESIDE))
    # Round numbers, so that groups of each size fit, but no more than a tenth of a share.
    fits = (unit for unit in (1_000, 100, 10) if connections % unit == 0 and connections // unit >= 10 * processes)
    unit = next(fits, 1)
    units, shares, first = connections // unit, [], 0
    for number in range(processes):
        count = (units // processes + (number < units % processes)) * unit
        members = _group_size(number, count)
        shares.append(Share(number, first, count // members, members))
        first += count
    return shares


def _group_size(number: int, count: int) -> int:
    """Each size in turn, then one group of the whole share; a size that does not divide the share gives way to less."""
    turn = number % (len(GROUP_SIZES) + 1)
    if turn == len(GROUP_SIZES):
        return count
    return next((size for size in reversed(GROUP_SIZES[: turn + 1]) if count % size == 0), count)


# ---- what is published ----


def stamped(intended_ns: int, sequence: int) -> str:
    """A payload that the load client accepts and takes its latency from (see loadtest/swarm: Stamp)."""
    check = (intended_ns * 0x9E3779B97F4A7C15 & _MASK) ^ sequence
    check ^= check >> 29
    check = check * 0xBF58476D1CE4E5B9 & _MASK
    fields = ((intended_ns, 8), (0, 4), (sequence, 4), (check, 8))
    raw = b"".join(value.to_bytes(size, "little") for value, size in fields)
    threes = [int.from_bytes(raw[place : place + 3], "big") for place in range(0, len(raw), 3)]
    text = "".join(chr(ord("0") + (three >> shift & 63)) for three in threes for shift in (18, 12, 6, 0))
    return text + "".join(chr(ord("a") + place * 7 % 26) for place in range(len(text), PAYLOAD_BYTES))


class Publisher:
    """Publishes through a node's admin server, over one connection."""

    def __init__(self, server: Server) -> None:
        assert server.admin_port is not None
        self._http = http.client.HTTPConnection("127.0.0.1", server.admin_port, timeout=PUBLISH_DEADLINE_S)

    def publish(self, channel: str, data: object) -> int:
        """Publishes one message; its offset.

        Raises:
            BenchError: it was refused or not answered.
        """
        body = json.dumps({"channel": channel, "data": data})
        try:
            self._http.request("POST", "/api/publish", body, {"Content-Type": "application/json"})
            response = self._http.getresponse()
            answer = json.load(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BenchError(f"publishing to {channel} failed: {error!r}") from error
        if response.status != 200:
            raise BenchError(f"publishing to {channel} was refused: {answer}")
        return int(answer["offset"])

    def close(self) -> None:
        self._http.close()


# ---- the load processes ----


class Crowd:
    """The load processes of all shares, as they connect, hold and leave."""

    def __init__(self, server: Server, shares: Sequence[Share], connect_rate: int, gather: bool = False) -> None:
        self._gather = gather
        self.shares = list(shares)
        self.swarms: list[Swarm] = []
        self._server = server
        self._rate = connect_rate

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Inside it all connections have joined; after it no load process is left.

        Raises:
            BenchError: a connection could not be made, or not in time.
        """
        with contextlib.ExitStack() as stack:
            for share in self.shares:
                if share.number >= AT_ONCE:
                    self._wait_joined(share.number - AT_ONCE)
                words = share.options(max(1, self._rate // AT_ONCE), self._gather)
                self.swarms.append(stack.enter_context(Swarm(self._server, "idle", *words)))
            for number in range(max(0, len(self.shares) - AT_ONCE), len(self.shares)):
                self._wait_joined(number)
            yield

    def _wait_joined(self, number: int) -> None:
        deadline_s = self.shares[number].count / self._rate * AT_ONCE + SLACK_S
        for word in ("joined", "start"):
            self.swarms[number].expect(word, deadline_s)

    def pids(self) -> tuple[int, ...]:
        return tuple(swarm.process.pid for swarm in self.swarms)

    def publish_global(self, publisher: Publisher, deadline_s: float) -> dict[str, float | None]:
        """Publishes one message to everybody; seconds until the answer, the first arrival and the last.

        The last is None when not everybody had it in time.

        Raises:
            BenchError: it could not be published.
        """
        began_ns, end_s = time.monotonic_ns(), time.monotonic() + deadline_s
        publisher.publish("global:all", began_ns)
        answered_ns = time.monotonic_ns()
        times: dict[str, float | None] = {
            "answered_s": (answered_ns - began_ns) * 1e-9,
            "first_s": None,
            "last_s": None,
        }
        try:
            lines = [swarm.expect("global", max(0.0, end_s - time.monotonic())).split() for swarm in self.swarms]
        except BenchError:
            return times
        times["first_s"] = (min(int(line[2]) for line in lines) - began_ns) * 1e-9
        times["last_s"] = (max(int(line[3]) for line in lines) - began_ns) * 1e-9
        return times

    def leave(self) -> list[dict[str, Any]]:
        """All say FIN, a few processes at a time; what each has counted.

        Raises:
            BenchError: a process did not report.
        """
        results = []
        for number in range(0, len(self.swarms), AT_ONCE):
            leaving = self.swarms[number : number + AT_ONCE]
            for swarm in leaving:
                swarm.stop()
            results += [swarm.result(LEAVE_DEADLINE_S) for swarm in leaving]
        return results
