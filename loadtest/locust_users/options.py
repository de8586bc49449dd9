"""Options beside locust's own, and the gateway's address as locust's `--host` gives it."""

import argparse
from dataclasses import dataclass
from urllib.parse import urlsplit

GATEWAY_PORT = 7401
PAYLOAD_BYTES_MIN, PAYLOAD_BYTES_MAX = 24, 60_000


@dataclass(frozen=True)
class Load:
    """What a run does, checked.

    Attributes:
        host, port, path: the gateway's WebSocket.
        connections: of each locust user.
        connect_rate: connections a second that each process dials; 0: as fast as handshakes end.
        groups: busy groups in all.
        publish_rate: messages a second of each chatter's connection.
        payload_bytes: of a message.
        away_s: how long a flapper's connection stays away.
        flaps_s: how often each of a flapper's connections goes, on average.
        settle_s: how long the end may wait for what is still under way.
        tokens: one a connection in turn; none: users in development mode.
        admin: URL of the admin port, whose metrics the counts are compared with; "": not compared.

    """

    host: str
    port: int
    path: str
    connections: int
    connect_rate: int
    groups: int
    publish_rate: float
    payload_bytes: int
    away_s: float
    flaps_s: float
    settle_s: float
    tokens: tuple[str, ...]
    admin: str


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add them to locust's parser."""
    group = parser.add_argument_group("Holdfast")
    group.add_argument("--connections-per-user", type=int, default=100, help="connections of one locust user")
    group.add_argument("--connect-rate", type=int, default=1000, help="connections a second and process; 0: no limit")
    group.add_argument("--groups", type=int, default=100, help="busy groups in all")
    group.add_argument("--publish-rate", type=float, default=0.1, help="messages a second of a chatter's connection")
    group.add_argument("--payload", type=int, default=100, help="bytes of a message")
    group.add_argument("--away", type=float, default=2.0, help="seconds that a flapper's connection stays away")
    group.add_argument("--flaps", type=float, default=60.0, help="seconds between two flaps of one connection")
    group.add_argument("--settle", type=float, default=15.0, help="seconds that the end waits for what is under way")
    group.add_argument("--token-file", default="", help="tokens, one a line; without it, users of development mode")
    group.add_argument("--admin", default="", help="URL of the admin port, to compare the counts; else they are not")


def load_of(options: argparse.Namespace, host: str | None) -> Load:
    """Check the options.

    Raises:
        ValueError: one is out of its range; the text names it and says what it may be.

    """
    url = urlsplit(host or "")
    if url.scheme != "ws" or not url.hostname:
        raise ValueError(f"--host {host}: give the gateway's WebSocket, such as ws://127.0.0.1:{GATEWAY_PORT}/ws")
    for name, least in (("connections_per_user", 1), ("groups", 1), ("connect_rate", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is at least {least}, not {getattr(options, name)}")
    for name in ("publish_rate", "away", "flaps", "settle"):
        if not 0 < getattr(options, name) <= 1e6:
            raise ValueError(f"--{name.replace('_', '-')} is more than 0, not {getattr(options, name)}")
    if not PAYLOAD_BYTES_MIN <= options.payload <= PAYLOAD_BYTES_MAX:
        raise ValueError(f"--payload is {PAYLOAD_BYTES_MIN} to {PAYLOAD_BYTES_MAX} bytes, not {options.payload}")
    return Load(
        host=url.hostname,
        port=url.port or GATEWAY_PORT,
        path=url.path or "/ws",
        connections=options.connections_per_user,
        connect_rate=options.connect_rate,
        groups=options.groups,
        publish_rate=options.publish_rate,
        payload_bytes=options.payload,
        away_s=options.away,
        flaps_s=options.flaps,
        settle_s=options.settle,
        tokens=tokens_of(options.token_file),
        admin=options.admin.rstrip("/"),
    )


def tokens_of(path: str) -> tuple[str, ...]:
    """The lines of a token file."""
    if not path:
        return ()
    with open(path) as file:
        tokens = tuple(line.strip() for line in file if line.strip())
    if not tokens:
        raise ValueError(f"--token-file {path} holds no token")
    return tokens
