"""The sections of the configuration that are about many nodes, and what a node's processes are told of them.

With a directory (`[directory] endpoints`) a node is one of many: its router registers there and leads some of the
shards, its workers link to every router that is there, over tcp. Without one it is alone, and all of this is at its
defaults.
"""

import ipaddress
import json
import os
import re
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from gateway import region_config
from router.agreement import start_here
from router.config import DirectoryConfig
from router.directory.etcd_config import EtcdConfig
from router.directory.port import Misused

if TYPE_CHECKING:
    from gateway.config import Config

GATEWAY_UNIT = ".gw"
"""What the name of a node with workers has behind it in the directory: its router is another unit, of another lease."""
KEY_FORM = r"^([0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40})?$"
KEY_WORDS = "40 characters of Z85, as `holdfast keys` prints them"
HOST_NAME = r"(?!(.*[.])?[0-9]+[.]?$)[0-9A-Za-z_]([0-9A-Za-z_.-]{0,252}[0-9A-Za-z_])?[.]?"
"""The last label of a name is no number, or it would be an address."""
FORMS = {
    "bus.advertise": "host:port, such as 10.0.0.5:7410",
    "bus.public_key": KEY_WORDS,
    "bus.secret_key": KEY_WORDS,
    "directory.endpoints": "host:port of each member, with commas and no spaces between",
    **region_config.FORMS,
    "directory.prefix": "up to 128 characters without spaces, of which the last is a slash",
}
HIDDEN_KEYS = frozenset({"bus.secret_key", "directory.password", "log.regions"})


class RouterSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    endpoint: Annotated[
        str,
        Meta(
            pattern=r"^((ipc:///.+)|(tcp://.+:[0-9]{1,5}))?$",
            description="ZeroMQ endpoint of the router, ipc:///path or tcp://host:port. Empty: a socket in run_dir;"
            " with a directory the port of bus.advertise.",
        ),
    ] = ""
    history_total_bytes: Annotated[
        int,
        Meta(
            ge=1_048_576,
            le=1_099_511_627_776,
            description="Bytes of messages kept in memory, of all channels together; how much of one channel is kept"
            " its namespace says.",
        ),
    ] = 256 * 1024 * 1024
    key_window_s: Annotated[
        int, Meta(ge=1, le=86_400, description="Seconds in which a repeated idempotency key publishes nothing anew.")
    ] = 300
    channels_max: Annotated[int, Meta(ge=1, le=100_000_000, description="Channels known at once.")] = 1_000_000
    spill_bytes_max: Annotated[
        int,
        Meta(
            ge=1_048_576, le=17_179_869_184, description="Bytes kept for one worker whose link to the router is full."
        ),
    ] = 64 * 1024 * 1024
    presence_damping_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=60_000,
            description="Where members are told who comes and goes: how long a session may be away before they are told"
            " that it left.",
        ),
    ] = 3_000
    events_members_max: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="In channels with more sessions than this nobody is told who joined and who left.",
        ),
    ] = 200
    leave_s: Annotated[
        int,
        Meta(
            ge=1,
            le=600,
            description="With a directory: seconds that a router which is to end has for giving its shards to others,"
            " one by one.",
        ),
    ] = 30
    weight: Annotated[
        int,
        Meta(ge=1, le=1_000, description="With a directory: how many shards it leads, relative to other routers."),
    ] = 1


class DirectorySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    endpoints: Annotated[
        str,
        Meta(
            pattern=r"^([^\s,/]+:[0-9]{1,5}(,[^\s,/]+:[0-9]{1,5})*)?$",
            description="Members of the etcd cluster that says who leads what, host:port with commas between. Empty:"
            " none, this node is alone.",
        ),
    ] = ""
    prefix: Annotated[
        str,
        Meta(
            pattern=r"^[!-~]{0,127}/$",
            description="What all keys in the directory begin with; clusters that share one need one each.",
        ),
    ] = "holdfast/"
    user: Annotated[str, Meta(description="User of etcd's own access control. Empty: it has none.")] = ""
    password: Annotated[str, Meta(description="Its password.")] = ""
    tls: Annotated[bool, Meta(description="Whether etcd is spoken to over TLS.")] = False
    tls_ca: Annotated[
        str,
        Meta(description="File with the authority that signed etcd's certificates (PEM). Empty: those of the system."),
    ] = ""
    tls_certificate: Annotated[
        str, Meta(description="File with our certificate (PEM), where etcd asks for one. Empty: none.")
    ] = ""
    tls_key: Annotated[str, Meta(description="File with that certificate's private key (PEM). Empty: none.")] = ""
    ttl_s: Annotated[
        int,
        Meta(
            ge=2,
            le=300,
            description="Seconds after which a node that is not heard of any more counts as gone, and others take what"
            " it led; also for how long it goes on without the directory.",
        ),
    ] = 10
    shards: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="Shards of the cluster, a power of two, the same on all nodes and for good.",
        ),
    ] = 256
    when_away: Annotated[
        str,
        Meta(
            pattern="^(refuse|local)$",
            description="Logins that need the directory while it is away: `refuse` them until it is back, or let each"
            " router judge by the `local` ones that it knows.",
        ),
    ] = "refuse"

    region: Annotated[
        str,
        Meta(
            pattern=region_config.REGION_FORM,
            description="Name of the region where this node is. Empty: there are no regions.",
        ),
    ] = ""
    placement: Annotated[
        str,
        Meta(
            pattern=region_config.PLACEMENT_FORM,
            description="Where shards are led, the same on all nodes: `spread` over all routers; `publishers`, each in"
            " the region from which most of its publishes come; or regions in order, such as eu,us: in the first that"
            " has routers.",
        ),
    ] = "spread"


class BusSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    advertise: Annotated[
        str,
        Meta(
            pattern=r"^(\S+:[0-9]{1,5})?$",
            description="With a directory: host:port at which the workers of all nodes reach this node's router;"
            " an IPv6 address in brackets, [fd00::5]:7410.",
        ),
    ] = ""
    public_key: Annotated[
        str,
        Meta(
            pattern=KEY_FORM,
            description="Public key of the cluster's pair (CURVE, `holdfast keys` makes one), the same on all nodes:"
            " who has the pair may use the bus. Empty: anybody who reaches it may, and nothing is encrypted.",
        ),
    ] = ""
    secret_key: Annotated[str, Meta(pattern=KEY_FORM, description="The secret key of that pair.")] = ""
    insecure: Annotated[
        bool,
        Meta(
            description="Let bus.advertise be an address beyond loopback without keys: for networks that nobody else"
            " reaches."
        ),
    ] = False


class RouterLink(msgspec.Struct, frozen=True, kw_only=True):
    """A router that workers link to."""

    name: str
    """Of its node."""
    epoch: int
    """Of this life of the node."""
    bus: str
    """ZeroMQ endpoint."""
    key: str = ""
    """Its public key; empty: its bus has none."""
    admin: str = ""
    """URL of its node's admin server, if others can reach it."""
    region: str = ""
    """Where it is; empty: there are no regions."""


# Fields that processes get under the same name; the others are renamed or come from other sections.
_SAME_IN_DIRECTORY = frozenset(DirectorySection.__struct_fields__) & frozenset(DirectoryConfig.__struct_fields__) - {
    "endpoints"
}

# ------------------------------------------------------------------------------------------------- what processes get


def bus_endpoint(config: "Config") -> str:
    """Where the router listens with a directory: at the port that it advertises, on all addresses but for loopback."""
    if config.router.endpoint:
        return config.router.endpoint
    host, port = advertised(config)
    if is_loopback(host) and host != "localhost":
        return f"tcp://{host}:{port}"
    return f"tcp://[::]:{port}" if host.startswith("[") else f"tcp://*:{port}"


def advertised(config: "Config") -> tuple[str, str]:
    """Host and port of bus.advertise: an IPv6 address in brackets, and no other, though [$(POD_IP)]:7410 has them."""
    host, _, port = config.bus.advertise.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return (f"[{host}]" if ":" in host else host), port


def address(config: "Config", *, bus: bool = True) -> str:
    """What `nodes/<node>` says of how to reach this node; without `bus`: its workers, to which nobody links."""
    host, port = advertised(config)
    admin = host if config.admin.host in ("0.0.0.0", "::") else config.admin.host
    admin = f"[{admin}]" if ":" in admin and not admin.startswith("[") else admin
    told = {
        "clients": "" if bus else config.gateway.advertise,
        "bus": f"tcp://{host}:{port}" if bus and host else "",
        "key": config.bus.public_key if bus else "",
        "admin": f"http://{admin}:{config.admin.port}" if admin else "",
        # By which a second node of this name is known; that of a router has another bus.
        "at": "" if bus else f"{socket.gethostname()}:{config.admin.port}",
        "start": start_here(),
        "placement": config.directory.placement if bus and config.directory.region else "",
    }
    return json.dumps({name: text for name, text in told.items() if text})


def link_of(name: str, epoch: int, address_: str, region: str = "") -> RouterLink | None:
    """The router of a node, from its address; None: it is none that this version understands."""
    try:
        told = json.loads(address_)
        link = {"bus": told["bus"], "key": told.get("key", ""), "admin": told.get("admin", "")}
        return msgspec.convert({"name": name, "epoch": epoch, "region": region, **link}, RouterLink)
    except (ValueError, TypeError, KeyError, AttributeError, msgspec.ValidationError):
        return None


def targets_at(address_: str) -> tuple[str, str]:
    """Where the address of a gateway says that clients reach it: for WebSocket, for TCP; empty: it does not say."""
    try:
        return region_config.targets_of(json.loads(address_).get("clients", ""))
    except (ValueError, TypeError, AttributeError):
        return "", ""


def directory_config(config: "Config") -> DirectoryConfig | None:
    """The directory as a router or a supervisor is told of it; None: there is none."""
    section = config.directory
    if not section.endpoints:
        return None
    same = {name: getattr(section, name) for name in _SAME_IN_DIRECTORY}
    return DirectoryConfig(
        endpoints=tuple(section.endpoints.split(",")),
        weight=config.router.weight,
        leave_s=config.router.leave_s,
        address=address(config),
        **same,
    )


# ------------------------------------------------------------------------------------------------- what does not fit


def misfits(config: "Config") -> Iterator[str]:
    """What is wrong although each value by itself is allowed."""
    yield from _keys(config)
    yield from region_config.misfits(config)
    if not config.directory.endpoints:
        yield from _alone(config)
        return
    yield from _directory(config)
    yield from _bus(config)
    if config.node.name.endswith(GATEWAY_UNIT):
        yield f"node.name = {config.node.name}: what ends with {GATEWAY_UNIT} is the name of a node's workers"
    if config.log.backend == "embedded":
        yield (
            "log.backend = embedded with directory.endpoints: that log is one node's, and any router may come to lead"
            " any shard. Set log.backend = redis (with log.redis_url), or none, on every node"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`, an address or `localhost`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _alone(config: "Config") -> Iterator[str]:
    if config.node.role != "all":
        yield (
            f"node.role = {config.node.role} without directory.endpoints: routers and gateways of several nodes find"
            " each other in the directory. Set directory.endpoints, or node.role = all"
        )
    if config.bus.advertise:
        yield f"bus.advertise = {config.bus.advertise} without directory.endpoints: nobody would be told. Set both"


def _directory(config: "Config") -> Iterator[str]:
    section, told = config.directory, directory_config(config)
    assert told is not None
    try:
        EtcdConfig.of(told)
    except Misused as error:
        yield f"[directory]: {error}"
    yield from _tls_files(section)
    if section.shards & (section.shards - 1):
        yield f"directory.shards = {section.shards}: must be a power of two, such as 64 or 256"


def _tls_files(section: DirectorySection) -> Iterator[str]:
    """What is wrong with the files: gRPC takes whatever is in them, and then reaches nobody."""
    readable = True
    for name in ("tls_ca", "tls_certificate", "tls_key"):
        path = getattr(section, name)
        if path and not (os.path.isfile(path) and os.access(path, os.R_OK)):
            readable = False
            yield f'directory.{name} = "{path}": no such file, or it may not be read'
    if not section.tls or not readable:
        return
    import ssl  # here: most nodes need none of it to read their settings

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if section.tls_ca:
        try:
            context.load_verify_locations(section.tls_ca)
        except ssl.SSLError as error:
            yield f'directory.tls_ca = "{section.tls_ca}": there is no certificate (PEM) in it ({error})'
    if section.tls_certificate and section.tls_key:
        try:
            context.load_cert_chain(section.tls_certificate, section.tls_key, password="")
        except ssl.SSLError as error:
            yield (
                f'directory.tls_certificate = "{section.tls_certificate}" and directory.tls_key = "{section.tls_key}":'
                f" no certificate and its own key (PEM, not encrypted) ({error})"
            )


def _host_problem(host: str) -> str:
    """Why nobody else reaches a router at a host; empty: nothing speaks against it."""
    try:
        address_ = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        if "$" in host:
            return "has a variable that nothing has replaced"
        if host == "*":
            return "is for listening; say the address at which other nodes reach this one"
        return "" if re.fullmatch(HOST_NAME, host) else "is no address and no name of a host"
    if address_.is_unspecified:
        return "is for listening; say the address at which other nodes reach this one"
    return "is no address of one node" if address_.is_multicast or str(address_) == "255.255.255.255" else ""


def _bus(config: "Config") -> Iterator[str]:
    endpoint, told = config.router.endpoint, config.bus.advertise
    if endpoint and not endpoint.startswith("tcp://"):
        yield f"router.endpoint = {endpoint} with directory.endpoints: other nodes cannot reach it. Use tcp://, or none"
    if config.node.role == "gateway":
        return
    if not told:
        yield (
            "directory.endpoints without bus.advertise: say at which host:port the workers of all nodes reach this"
            " node's router, such as 10.0.0.5:7410, or set node.role = gateway"
        )
        return
    host, port = advertised(config)
    if _is_ipv6(told):
        other = f", or {host}:{port} if {port} is the port" if _is_ipv6(host) else ""
        yield (
            f"bus.advertise = {told}: an IPv6 address, of which nobody can tell whether it ends with a port. Put the"
            f" address in brackets and the port behind them: [{told}]:7410{other}"
        )
        return
    if ":" in host and not _is_ipv6(host):
        yield f"bus.advertise = {told}: {host} is no IPv6 address; one stands in brackets, such as [fd00::5]:7410"
        return
    if not 1 <= int(port) <= 65_535:
        yield f"bus.advertise = {told}: its port must be between 1 and 65535"
    if why := _host_problem(host):
        yield f'bus.advertise = {told}: "{host}" {why}, such as 10.0.0.5:7410'
        return
    if is_loopback(host):
        return
    if not config.auth.secret:
        yield (
            f"bus.advertise = {told} without auth.secret: development mode keeps to this machine. Set auth.secret"
            " (HOLDFAST_AUTH_SECRET), or use a loopback address"
        )
    if not config.bus.public_key and not config.bus.insecure:
        yield (
            f"bus.advertise = {told} without bus.public_key and bus.secret_key: anybody who reaches that port"
            " could publish as anybody. Make a pair (holdfast keys), or set bus.insecure = true where nobody else can"
        )


def _keys(config: "Config") -> Iterator[str]:
    public, secret = config.bus.public_key, config.bus.secret_key
    if bool(public) != bool(secret):
        yield "bus.public_key and bus.secret_key belong together: set both (holdfast keys makes a pair) or neither"
    elif secret:
        import zmq  # here: most commands, and most nodes, need none of it to read their settings

        try:
            own = zmq.curve_public(secret.encode()).decode()
        except (ValueError, zmq.ZMQError):  # 40 characters of the alphabet, and yet no number of 32 bytes
            own = ""
        if own != public:
            yield "bus.public_key is not that of bus.secret_key: take both lines from one run of holdfast keys"
