"""The workloads: what the load client is told, and whom it is sent to."""

from dataclasses import dataclass

FLOORS = ("floor-per-delivery", "floor-coalesce")
HOLDFAST = ("holdfast", "holdfast-2", "holdfast-logged")
# With and without what a restart keeps; and the two logs.
HISTORY = ("holdfast-logged", "holdfast-no-history")
LOGGED = ("holdfast-logged", "holdfast-redis")
PEERS = ("nats", "mosquitto", "picows", "websockets", "ws", "socketio", "gws", "nbio")
SLOW_SHARE = 0.01
SLOW_MEMBERS = 200
STORM_CONNECTIONS = 15_000
STORM_RATE = 3_000
IDLE_CONNECTIONS = 15_000
RESUMES = 10_000
RESUME_CHANNELS = 20


@dataclass(frozen=True)
class Workload:
    """One experiment.

    `kind` says which code runs it: `load` is one window of messages, `slow` two of them on one server (with and without
    members that read nothing), `idle`, `storm` and `resume` are about connections. `options` are the load client's.
    """

    name: str
    about: str
    kind: str
    client: str
    options: tuple[str, ...]
    servers: tuple[str, ...]
    payload_bytes: int = 100


def _load(name: str, about: str, client: str, options: str, servers: tuple[str, ...], payload: int = 100) -> Workload:
    return Workload(name, about, "load", client, tuple(options.split()), servers, payload)


ALL = (*FLOORS, *HOLDFAST, *PEERS)
KNOWN = (*ALL, "holdfast-tcp", "holdfast-no-history", "holdfast-redis")
FEW = (*FLOORS, "holdfast", "nats", "picows", "ws", "nbio")

WORKLOADS = {
    workload.name: workload
    for workload in (
        _load("fan", "one group of 2,000 members, 15 messages a second", "fan", "--members 2000 --rate 15", ALL),
        _load(
            "max",
            "one group of 500 members, 4 publishers with 8 messages under way each (closed loop)",
            "max",
            "--members 500 --publishers 4 --under-way 8",
            ALL,
        ),
        _load(
            "rooms",
            "400 groups of 25 members, 2,000 messages a second in all",
            "rooms",
            "--groups 400 --members 25 --publishers 5 --rate 2000 --connect-rate 8000",
            ALL,
        ),
        _load(
            "pairs",
            "5,000 conversations of two users, 10,000 messages a second in all",
            "pairs",
            "--groups 5000 --rate 10000 --connect-rate 8000",
            ALL,
        ),
        _load("one", "one group of 10 members, 200 messages a second", "fan", "--members 10 --rate 200", ALL),
        _load(
            "big",
            "one group of 100 members, 400 messages of 16 KiB a second",
            "fan",
            "--members 100 --rate 400",
            FEW,
            16 * 1024,
        ),
        _load(
            "history",
            "the load of max with history and log and without; a client that has caught up looks again in 0.3 ms",
            "max",
            "--members 500 --publishers 4 --under-way 8 --gather 0.3",
            HISTORY,
        ),
        _load(
            "history-rooms",
            "the same load as rooms, with history and log, and without",
            "rooms",
            "--groups 400 --members 25 --publishers 5 --rate 2000 --connect-rate 8000",
            HISTORY,
        ),
        _load(
            "publish",
            "one publisher alone in its group, 4,000 logged messages under way (closed loop)",
            "max",
            "--members 1 --publishers 1 --under-way 4000",
            LOGGED,
        ),
        _load(
            "publish-half",
            "100 publishers alone in their groups, 20,000 logged messages a second in all",
            "rooms",
            "--groups 100 --members 1 --publishers 1 --rate 20000",
            LOGGED,
        ),
        Workload(
            "slow",
            f"one group of {SLOW_MEMBERS} members, 250 messages of 8 KiB a second; all read, then 1 % read nothing",
            "slow",
            "fan",
            ("--members", str(SLOW_MEMBERS), "--rate", "250"),
            ("floor-per-delivery", "holdfast", "nats", "ws"),
            # A reader that hangs is owed 2 MiB a second, so that no kernel's buffers hide it for long.
            8 * 1024,
        ),
        Workload(
            "idle",
            f"{IDLE_CONNECTIONS:,} joined connections that say nothing, heartbeats at 30 s running",
            "idle",
            "idle",
            ("--members", str(IDLE_CONNECTIONS), "--connect-rate", "4000"),
            ("floor-coalesce", "holdfast", "holdfast-logged", *PEERS),
        ),
        Workload(
            "storm",
            f"{STORM_CONNECTIONS:,} connections with HELLO and JOIN, {STORM_RATE:,} a second whether served or not",
            "storm",
            "storm",
            ("--members", str(STORM_CONNECTIONS), "--connect-rate", str(STORM_RATE)),
            (
                "floor-coalesce",
                "holdfast",
                "holdfast-logged",
                "holdfast-tcp",
                "nats",
                "mosquitto",
                "picows",
                "ws",
                "gws",
                "nbio",
            ),
        ),
        Workload(
            "resume",
            f"{RESUMES:,} sessions in {RESUME_CHANNELS} groups each resume at once after their worker was killed",
            "resume",
            "resume",
            ("--sessions", str(RESUMES), "--channels", str(RESUME_CHANNELS)),
            ("holdfast-2",),
        ),
    )
}


def expand(wanted: list[str]) -> list[str]:
    """Names of servers: `floor` and `holdfast` stand for all of theirs.

    Raises:
        ValueError: there is no such server.
    """
    found: list[str] = []
    for word in wanted:
        matching = _meant(word)
        if not matching:
            raise ValueError(f"there is no server {word!r}; there are {', '.join(KNOWN)}")
        found += [name for name in matching if name not in found]
    return found


def _meant(word: str) -> list[str]:
    return [name for name in KNOWN if name == word or name.startswith(word + "-")]


def left_out(workload: Workload, wanted: list[str]) -> str:
    """Which of the names is none of a workload's servers, in words; nothing when each stands for one of them."""
    for word in wanted:
        if not set(_meant(word)) & set(workload.servers):
            return f"{workload.name} has no server {word!r}; it has {', '.join(workload.servers)}"
    return ""
