"""Where Redis is: one URL for a single server, for Sentinel, and for Cluster.

    redis://user:password@host:6379/0            one server; rediss:// with TLS
    redis+sentinel://h1:26379,h2:26379/name      the primary that the sentinels call so; /name/2 for its database 2
    redis+cluster://h1:6379,h2:6379              a cluster, of which some nodes are named

User and password are the servers', and are told to sentinels that ask for some.

`rediss+sentinel` and `rediss+cluster` use TLS to all of them.
"""

from dataclasses import dataclass
from urllib.parse import unquote

SCHEMES = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
REDIS_PORT = 6379
SENTINEL_PORT = 26379
PORT_MAX = 65_535

Address = tuple[str, int]


@dataclass(frozen=True)
class RedisUrl:
    """A URL of Redis, taken apart."""

    kind: str
    """`single`, `sentinel` or `cluster`."""
    tls: bool
    addresses: tuple[Address, ...]
    """Of the server, the sentinels, or some nodes of the cluster."""
    user: str
    password: str
    database: int
    primary: str
    """What the sentinels call it."""

    def __repr__(self) -> str:
        """Without its password: this is for logs."""
        places = ",".join(f"{host}:{port}" for host, port in self.addresses)
        return f"{self.kind} Redis at {places}{f' ({self.primary})' if self.primary else ''}"


def parse(url: str) -> RedisUrl:
    """Take a URL apart.

    Raises:
        ValueError: it is none; the message says why, without the password.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise ValueError(f"a Redis URL begins with one of {', '.join(f'{one}://' for one in SCHEMES)}")
    kind, tls = SCHEMES[scheme]
    rest, _, query = rest.partition("?")
    if query:
        raise ValueError("a Redis URL takes no parameters after `?`")
    places, _, path = rest.partition("/")
    credentials, _, places = places.rpartition("@")
    user, _, password = credentials.partition(":")
    default = SENTINEL_PORT if kind == "sentinel" else REDIS_PORT
    addresses = tuple(_address(place, default) for place in places.split(","))
    if kind == "single" and len(addresses) > 1:
        raise ValueError("redis:// names one server; use redis+sentinel:// or redis+cluster:// for several")
    primary, database = _path(kind, path)
    return RedisUrl(kind, tls, addresses, unquote(user), unquote(password), database, primary)


def _path(kind: str, path: str) -> tuple[str, int]:
    """The primary's name and the database."""
    parts = [unquote(part) for part in path.split("/") if part]
    primary = ""
    if kind == "sentinel":
        if not parts:
            raise ValueError("redis+sentinel:// needs the primary's name after the addresses: .../mymaster")
        primary = parts.pop(0)
    if len(parts) > 1 or (parts and not parts[0].isdecimal()):
        raise ValueError("a Redis URL ends with the number of a database, such as /0")
    database = int(parts[0]) if parts else 0
    if kind == "cluster" and database:
        raise ValueError("a Redis cluster has only database 0")
    return primary, database


def _address(place: str, default: int) -> Address:
    if place.startswith("["):  # IPv6
        host, closed, port = place[1:].partition("]")
        if not closed or (port and not port.startswith(":")):
            raise ValueError(f"`{place}` is no address: [host]:port")
        port = port[1:]
    else:
        host, _, port = place.partition(":")
    if not host:
        raise ValueError("a Redis URL needs a host")
    if port and not (port.isdecimal() and 0 < int(port) <= PORT_MAX):
        raise ValueError(f"`{port}` is no port: 1 to {PORT_MAX}")
    return host, int(port) if port else default
