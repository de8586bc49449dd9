"""The one configuration of a node: what may be set, and the part that each process gets.

Every option is a field below with its type, default, allowed range and, in its description, its unit and reason. The
names are `section.key` everywhere: `[gateway] port = 7400` in the TOML file, `HOLDFAST_GATEWAY_PORT` in the
environment, `--port` for the options that have a flag. `gateway.settings` reads and checks them, `gateway.namespaces`
those of namespaces; the sections about many nodes are in `gateway.cluster_config`.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from core.namespace_spec import BUILT_IN, NamespaceSpec
from core.shards import COUNT_MAX
from gateway.cluster_config import BusSection, DirectorySection, RouterLink, RouterSection, directory_config
from gateway.recovery_config import RecoverySection
from gateway.region_config import Advertise, Logs, logs_of
from gateway.token_policy import Policy
from router.config import RouterConfig

PORT_MAX = 65_535


class NodeSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[
        str,
        Meta(
            pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$",
            description="Name of the node in WELCOME, logs and metrics, unique in a cluster: up to 63 letters, digits,"
            " dots, dashes and underscores. Empty: the host's name.",
        ),
    ] = ""
    role: Annotated[
        str,
        Meta(
            pattern="^(all|gateway|router)$",
            description="What runs here: `all`; with a directory also `gateway`, workers alone, or `router`, a router"
            " alone. Both have the admin server.",
        ),
    ] = "all"
    run_dir: Annotated[
        str,
        Meta(
            max_length=80,  # a socket's path has 107 bytes at most, and `/router.sock` is added to this
            description="Directory for the node's sockets. Empty: a new private one, removed at the end.",
        ),
    ] = ""
    stuck_after_ms: Annotated[
        int,
        Meta(
            ge=2_000,
            le=600_000,
            description="Milliseconds after which a process that makes no turns or does not answer is replaced.",
        ),
    ] = 10_000
    report_dir: Annotated[
        str,
        Meta(
            description="Directory for reports on processes that hung, the last 20. Empty: holdfast-reports in the"
            " system's directory for temporary files."
        ),
    ] = ""


class GatewaySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    workers: Annotated[
        int,
        Meta(
            ge=0,
            le=256,
            description="Worker processes that share the ports. 0: one per processor but one, which the router needs.",
        ),
    ] = 0
    host: Annotated[
        str,
        Meta(
            description="Address to listen on. Empty: 127.0.0.1 without auth.secret, else 0.0.0.0; without a secret"
            " anybody may be anyone, so then only loopback is allowed."
        ),
    ] = ""
    port: Annotated[int, Meta(ge=1, le=PORT_MAX, description="TCP port (length-prefixed MessagePack).")] = 7400
    ws_port: Annotated[int, Meta(ge=1, le=PORT_MAX, description="WebSocket port.")] = 7401
    ws_path: Annotated[
        str, Meta(pattern=r"^/[!-~]{0,255}$", description="Path of the WebSocket endpoint, starting with a slash.")
    ] = "/ws"
    advertise: Advertise = ""
    ping_ms: Annotated[
        int,
        Meta(
            ge=1_000,
            le=600_000,
            description="Milliseconds between heartbeats; shorter than the idle time-out of any balancer on the way.",
        ),
    ] = 30_000
    misses: Annotated[
        int, Meta(ge=1, le=100, description="Silent heartbeat intervals in a row after which the other side is gone.")
    ] = 3
    hello_timeout_ms: Annotated[
        int, Meta(ge=100, le=60_000, description="Milliseconds for the handshake and HELLO after a connection arrives.")
    ] = 5_000
    fin_timeout_ms: Annotated[
        int, Meta(ge=100, le=60_000, description="Milliseconds to wait for FIN_ACK before closing without it.")
    ] = 5_000
    write_timeout_ms: Annotated[
        int,
        Meta(ge=1_000, le=600_000, description="Milliseconds without a byte taken by a client that has some queued."),
    ] = 30_000
    frame_timeout_ms: Annotated[
        int,
        Meta(
            ge=1_000,
            le=600_000,
            description="Milliseconds in which a frame that was begun must be complete, however steadily its bytes"
            " trickle.",
        ),
    ] = 15_000
    request_timeout_ms: Annotated[
        int, Meta(ge=100, le=60_000, description="Milliseconds for a router's answer, then ERROR `unavailable`.")
    ] = 5_000
    max_frame: Annotated[
        int, Meta(ge=4_096, le=16_777_216, description="Bytes of one frame; longer ones end with `frame_too_large`.")
    ] = 65_536
    queue_bytes_max: Annotated[
        int,
        Meta(
            ge=4_096,
            le=1_073_741_824,
            description="Bytes queued for one connection that reads too slowly; beyond it, FIN `slow_consumer`.",
        ),
    ] = 1_048_576
    kept_bytes_max: Annotated[
        int,
        Meta(
            ge=65_536,
            le=1_073_741_824,
            description="Bytes of requests that wait for the router's answers, in each worker, so that they are asked"
            " again when the router was restarted; beyond them ERROR `overloaded`.",
        ),
    ] = 16_777_216
    channels_per_session_max: Annotated[
        int,
        Meta(
            ge=1,
            le=32_000,
            description="Groups that one session may be in, as far as half of `max_frame` has room for their names;"
            " bounds its memory.",
        ),
    ] = 256
    publish_rate: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Publishes a second and session, sustained. 0: no limit.")
    ] = 0
    publish_burst: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Publishes at once above that rate. 0: as many as the rate.")
    ] = 0
    connections_max: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Connections of one worker. 0: what its limit of open files allows, at most 100000.",
        ),
    ] = 0
    handshakes_max: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Connections of one worker that have not said HELLO yet; keeps a rush from starving those that"
            " have. 0: 4096, or connections_max if that is less.",
        ),
    ] = 0
    backlog: Annotated[
        int,
        Meta(ge=1, le=65_535, description="Connections that wait in the kernel (also bound by net.core.somaxconn)."),
    ] = 4_096
    proxy_protocol: Annotated[
        bool,
        Meta(description="Require a PROXY protocol header (v1 or v2) before anything else, as a balancer sends it."),
    ] = False
    tls_certificate: Annotated[str, Meta(description="File with the certificate chain (PEM). Empty: no TLS.")] = ""
    tls_key: Annotated[str, Meta(description="File with the certificate's private key (PEM). Empty: no TLS.")] = ""
    drain_ms: Annotated[
        int, Meta(ge=0, le=600_000, description="Milliseconds in which a stopping worker says FIN to its clients.")
    ] = 10_000
    resume_token_ttl_s: Annotated[
        int,
        Meta(
            ge=10,
            le=2_592_000,
            description="Seconds after its end for which a session can be resumed, and for which a resume token is "
            "good by itself; each WELCOME renews it.",
        ),
    ] = 3_600
    resume_token_age_max_s: Annotated[
        int,
        Meta(
            ge=10,
            le=2_592_000,
            description="Seconds for which a resume token is good while its session is there: how long a connection "
            "may be open without REFRESH and be resumed when it breaks.",
        ),
    ] = 2_592_000


class AdminSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: Annotated[
        str,
        Meta(
            min_length=1,
            description="Address of the admin HTTP server; beyond loopback it needs admin.token, since who may publish"
            " as anybody must be known.",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=PORT_MAX, description="Port of the admin HTTP server and the page.")] = 7402
    token: Annotated[
        str,
        Meta(
            description="Bearer token that publishing and /api/connections ask for, 16 characters or more. Empty: none,"
            " loopback only."
        ),
    ] = ""


class AuthSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    secret: Annotated[
        str,
        Meta(
            description="Secret that signs and checks tokens (HS256), 32 bytes or more (RFC 7518 §3.2). Empty:"
            " development mode, in which HELLO may name any user. It signs resume tokens, too."
        ),
    ] = ""
    keys_file: Annotated[
        str,
        Meta(
            description="File with the public keys that check tokens: PEM, or a JWKS. RSA keys serve RS256, P-256 keys"
            " ES256. Read again when it changes. Empty: none; needs auth.secret."
        ),
    ] = ""
    algorithms: Annotated[
        str,
        Meta(
            pattern=r"^((HS256|RS256|ES256)(,(HS256|RS256|ES256))*)?$",
            description="Algorithms that a token may be signed with, separated by commas. Empty: HS256, or with"
            " auth.keys_file RS256,ES256.",
        ),
    ] = ""
    issuer: Annotated[str, Meta(description="What a token's iss must be. Empty: anything.")] = ""
    audience: Annotated[
        str, Meta(description="What a token's aud must be or hold. Empty: a token must have no aud.")
    ] = ""
    leeway_s: Annotated[
        int,
        Meta(ge=0, le=300, description="Seconds by which the clocks of the tokens' issuer and of this machine differ."),
    ] = 0
    expiry_notice_s: Annotated[
        int,
        Meta(ge=1, le=3_600, description="Seconds before the end of a session's token at which its client is told."),
    ] = 30


class LogSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: Annotated[
        str,
        Meta(pattern="^(debug|info|warning|error)$", description="Least level written: debug, info, warning or error."),
    ] = "info"
    format: Annotated[
        str,
        Meta(pattern="^(console|json)$", description="`console` for people, `json` (one object a line) for machines."),
    ] = "console"
    backend: Annotated[
        str,
        Meta(
            pattern="^(embedded|redis|none)$",
            description="Where messages and sessions are kept: `embedded`, in files of this machine; `redis`; `none`,"
            " in memory, for as long as the router lives.",
        ),
    ] = "embedded"
    directory: Annotated[
        str,
        Meta(
            description="Directory of the embedded log, one node's own. Empty: holdfast/<node.name> in the directory"
            " for state (XDG_STATE_HOME, else ~/.local/state).",
        ),
    ] = ""
    sync: Annotated[
        str,
        Meta(
            pattern="^(always|never)$",
            description="When an embedded log is written through to the disk: `always`, before a message is answered,"
            " so that it outlives a power loss; `never`, so that it outlives the end of any process only.",
        ),
    ] = "always"
    bytes_max: Annotated[
        int,
        Meta(
            ge=67_108_864,
            le=4_398_046_511_104,
            description="Bytes that the embedded log's messages may take on disk; beyond it the oldest go before their"
            " age, and who missed them is told of a gap. The router keeps about 32 bytes a message in memory.",
        ),
    ] = 16 * 1024 * 1024 * 1024
    pending_bytes_max: Annotated[
        int,
        Meta(
            ge=1_048_576,
            le=536_870_912,
            description="Bytes that wait for the log; beyond it messages that must be in it are refused, others are"
            " delivered but not logged.",
        ),
    ] = 64 * 1024 * 1024
    open_timeout_s: Annotated[
        int,
        Meta(
            ge=0,
            le=86_400,
            description="Seconds that a start waits for a log that is away, not ready meanwhile; then the node ends. 0:"
            " for ever.",
        ),
    ] = 0
    redis_url: Annotated[
        str,
        Meta(
            pattern=r"^(rediss?(\+sentinel|\+cluster)?://.+)?$",
            description="Redis of the log: redis://host:port/0, rediss:// with TLS, redis+sentinel://h1:p,h2:p/name or"
            " redis+cluster://h1:p,h2:p.",
        ),
    ] = ""
    redis_prefix: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9:._-]{1,64}$",
            description="What the names of all keys in Redis begin with: letters, digits, colons, dots, _ and -.",
        ),
    ] = "hf:"
    redis_replicas: Annotated[
        int, Meta(ge=-1, le=16, description="Replicas that must have what counts as logged. -1: one, if there is one.")
    ] = -1
    regions: Logs = ""
    redis_kept_bytes_max: Annotated[
        int, Meta(ge=16_777_216, le=8_589_934_592, description="Bytes kept to give Redis again what a fail-over lost.")
    ] = 256 * 1024 * 1024


class GrowthSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    interval_s: Annotated[
        int, Meta(ge=0, le=3_600, description="Seconds between samples of each process. 0: growth is not watched.")
    ] = 60
    window_s: Annotated[
        int,
        Meta(
            ge=10,
            le=2_592_000,
            description="Seconds of samples that a fit looks at; less than the period of the load's own waves (a day)"
            " may take a rising one for growth.",
        ),
    ] = 86_400
    warm_up_s: Annotated[
        int,
        Meta(ge=0, le=86_400, description="Seconds after a process was first seen whose samples do not count."),
    ] = 600
    samples_min: Annotated[int, Meta(ge=12, le=256, description="Samples that a fit needs.")] = 60
    threshold_percent: Annotated[
        float,
        Meta(
            ge=0.01,
            le=1_000_000,
            description="Percent of its level a day that something must surely grow, and percent that it must have"
            " grown within the window, to be suspected of leaking.",
        ),
    ] = 1.0
    confidence: Annotated[float, Meta(ge=0.5, le=0.9999, description="How sure that must be.")] = 0.95
    tracemalloc_frames: Annotated[
        int,
        Meta(
            ge=0,
            le=25,
            description="Frames of Python's allocations to keep, so that a report names the lines; takes memory and"
            " time in all processes. 0: off.",
        ),
    ] = 0
    report_dir: Annotated[
        str, Meta(description="Directory for reports (JSON and text), made if need be. Empty: none are written.")
    ] = ""
    reports_max: Annotated[int, Meta(ge=1, le=10_000, description="Reports kept; the oldest go first.")] = 20
    hook_url: Annotated[
        str,
        Meta(pattern=r"^(https?://[!-~]+)?$", description="Where events are posted to, as JSON. Empty: nowhere."),
    ] = ""
    hook_command: Annotated[
        str,
        Meta(description="Command that gets each event as JSON on its standard input; no shell. Empty: none."),
    ] = ""
    audit_interval_s: Annotated[
        int,
        Meta(
            ge=0,
            le=604_800,
            description="Seconds between the node's own audits of its ledger (see `holdfast ledger --audit`). 0: only"
            " when asked.",
        ),
    ] = 3_600
    hook_timeout_s: Annotated[int, Meta(ge=1, le=300, description="Seconds for the URL's or command's answer.")] = 10


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration. As `gateway.settings.load` returns it, no field stands at "empty: choose" any more
    but those that mean "none" (tls_*, auth.secret, admin.token) and those of the start (run_dir, endpoint).
    """

    node: NodeSection = NodeSection()
    gateway: GatewaySection = GatewaySection()
    router: RouterSection = RouterSection()
    admin: AdminSection = AdminSection()
    auth: AuthSection = AuthSection()
    log: LogSection = LogSection()
    directory: DirectorySection = DirectorySection()
    bus: BusSection = BusSection()
    growth: GrowthSection = GrowthSection()
    recovery: RecoverySection = RecoverySection()
    namespaces: tuple[NamespaceSpec, ...] = BUILT_IN

    @property
    def development(self) -> bool:
        """Whether anybody may be anyone, since there is no secret to check a token with."""
        return not self.auth.secret

    @property
    def clustered(self) -> bool:
        """Whether there is a directory, and with it other nodes."""
        return bool(self.directory.endpoints)


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker process is told at its start, as JSON on its standard input.

    The fields that GatewaySection, AuthSection or GrowthSection has too mean the same and hold checked values.
    """

    node: str
    index: int
    """Place of the worker among those of its node, from 0."""
    epoch: int
    """Unique per start: with node and index it is the worker's identity on the bus."""
    host: str
    port: int
    ws_port: int
    ws_path: str = "/ws"
    router_endpoint: str
    """Of the one router; empty: the routers are those that the supervisor tells of."""
    routers: tuple[RouterLink, ...] = ()
    """Those that it knew when this process was started."""
    shards: int = 256
    region: str = ""
    """Where this node is, with logs of several regions; empty: there is one log, and no router is nearer."""
    bus_public_key: str = ""
    bus_secret_key: str = ""
    """Who this worker is to routers whose bus has keys (CURVE, Z85)."""
    namespaces: tuple[NamespaceSpec, ...] = BUILT_IN
    secret: str | None
    """What tokens are checked with; None is development mode."""
    development_key: str = ""
    """What signs resume tokens in development mode; empty: what only those can know who can reach the router."""
    keys_file: str = ""
    algorithms: str = ""
    issuer: str = ""
    audience: str = ""
    leeway_s: int = 0
    expiry_notice_s: int = 30
    ping_ms: int = 30_000
    misses: int = 3
    hello_timeout_ms: int = 5_000
    fin_timeout_ms: int = 5_000
    write_timeout_ms: int = 30_000
    frame_timeout_ms: int = 15_000
    request_timeout_ms: int = 5_000
    max_frame: int = 65_536
    queue_bytes_max: int = 1_048_576
    kept_bytes_max: int = 16_777_216
    channels_per_session_max: int = 256
    publish_rate: int = 0
    publish_burst: int = 0
    connections_max: int
    handshakes_max: int
    proxy_protocol: bool = False
    tls_certificate: str | None = None
    tls_key: str | None = None
    backlog: int = 4_096
    drain_ms: int = 10_000
    resume_token_ttl_s: int = 3_600
    resume_token_age_max_s: int = 2_592_000
    stats_fd: int = -1
    """Inherited descriptor of the shared counters; -1 keeps them in the process's own memory."""
    commands_fd: int = -1
    """Inherited socket to the supervisor: see `core.commands`; -1 for none."""
    tracemalloc_frames: int = 0
    tcp_fd: int = -1
    ws_fd: int = -1
    """Inherited listening sockets; -1: it opens its own at host and port."""
    beside: bool = False
    """Whether an earlier start of the same worker runs on for a while."""
    log_level: str = "info"
    log_format: str = "console"


SECTIONS: dict[str, type[msgspec.Struct]] = {
    field.name: field.type for field in msgspec.structs.fields(Config) if field.name != "namespaces"
}
"""The sections by name; `[namespaces.<name>]` are read by `gateway.namespaces`."""

# Fields of GatewaySection that a worker gets under the same name; the others are for the supervisor or renamed below.
_SAME_IN_WORKER = frozenset(GatewaySection.__struct_fields__) & frozenset(WorkerConfig.__struct_fields__)
_AUTH_IN_WORKER = frozenset(AuthSection.__struct_fields__) - {"secret"}
_SAME_IN_ROUTER = frozenset(RouterSection.__struct_fields__) & frozenset(RouterConfig.__struct_fields__) - {"endpoint"}


def worker_config(
    config: Config,
    *,
    index: int,
    epoch: int,
    router_endpoint: str,
    stats_fd: int = -1,
    commands_fd: int = -1,
    **more: Any,
) -> WorkerConfig:
    """The part of `config` that worker `index` gets for the start numbered `epoch`; `more` are further fields of it."""
    same = {name: getattr(config.gateway, name) for name in _SAME_IN_WORKER}
    same["tls_certificate"] = config.gateway.tls_certificate or None
    same["tls_key"] = config.gateway.tls_key or None
    same |= {name: getattr(config.auth, name) for name in _AUTH_IN_WORKER}
    return WorkerConfig(
        node=config.node.name,
        index=index,
        epoch=epoch,
        router_endpoint=router_endpoint,
        bus_public_key=config.bus.public_key,
        bus_secret_key=config.bus.secret_key,
        shards=config.directory.shards if config.clustered else COUNT_MAX,
        region=config.directory.region if config.log.regions else "",
        secret=config.auth.secret or None,
        stats_fd=stats_fd,
        commands_fd=commands_fd,
        tracemalloc_frames=config.growth.tracemalloc_frames,
        log_level=config.log.level,
        log_format=config.log.format,
        namespaces=config.namespaces,
        **same,
        **more,
    )


def token_policy(config: WorkerConfig | AuthSection) -> Policy:
    """What HELLO tokens must be."""
    chosen = config.algorithms or ("RS256,ES256" if config.keys_file else "HS256")
    return Policy(tuple(chosen.split(",")), config.issuer, config.audience, config.leeway_s)


def router_config(
    config: Config, *, epoch: int, endpoint: str, stats_fd: int = -1, commands_fd: int = -1
) -> RouterConfig:
    """The part of `config` that the router gets for a start with `epoch`."""
    same = {name: getattr(config.router, name) for name in _SAME_IN_ROUTER}
    return RouterConfig(
        node=config.node.name,
        endpoint=endpoint,
        epoch=epoch,
        globals_bytes_max=config.gateway.max_frame // 2,
        stats_fd=stats_fd,
        commands_fd=commands_fd,
        tracemalloc_frames=config.growth.tracemalloc_frames,
        log_level=config.log.level,
        log_format=config.log.format,
        log_backend=config.log.backend,
        log_directory=config.log.directory,
        log_sync=config.log.sync,
        log_bytes_max=config.log.pending_bytes_max,
        log_disk_bytes_max=config.log.bytes_max,
        log_open_timeout_s=config.log.open_timeout_s,
        workers=config.gateway.workers,
        log_redis_url=config.log.redis_url,
        log_redis_prefix=config.log.redis_prefix,
        log_redis_replicas=config.log.redis_replicas,
        log_redis_kept_bytes_max=config.log.redis_kept_bytes_max,
        log_regions=logs_of(config.log.regions),
        session_ttl_s=config.gateway.resume_token_ttl_s,
        namespaces=config.namespaces,
        directory=directory_config(config),
        bus_public_key=config.bus.public_key,
        bus_secret_key=config.bus.secret_key,
        **same,
    )
