"""What a router process is told at its start: one frozen value, read as JSON from its standard input.

Whoever starts a router (the supervisor, a test) has checked the values; a field that is unknown or of the wrong type
is still refused here, so that two versions that do not fit each other stop at once.
"""

import msgspec

from core.namespace_spec import BUILT_IN, NamespaceSpec


class DirectoryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the directory is, and what a node says of itself there."""

    endpoints: tuple[str, ...]
    """Members of the etcd cluster, `host:port`."""
    prefix: str = "holdfast/"
    user: str = ""
    password: str = ""
    tls: bool = False
    tls_ca: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    """Files (PEM); empty: see `router.directory.etcd_config`."""
    ttl_s: int = 10
    """Of a node's lease."""
    shards: int = 256
    when_away: str = "refuse"
    """Logins that need the directory while it is away: `refuse`, or `local`."""
    weight: int = 1
    """How many shards this router is to lead, relative to others."""
    leave_s: int = 30
    """What it has at its end for giving its shards to others."""
    address: str = ""
    """How this node is reached: JSON {"bus": endpoint, "key": public key, "admin": URL}."""
    region: str = ""
    """Where this node is; empty: there are no regions."""
    placement: str = "spread"
    """Where shards are led: `spread` over all routers, in the region of their `publishers`, or the first of a list of
    regions (`eu,us`) that has routers."""


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration of one router process."""

    node: str
    """Name of the node, for logs and metrics."""
    endpoint: str
    """ZeroMQ endpoint to bind, such as `ipc:///run/x/router.sock` or `tcp://127.0.0.1:7410`."""
    epoch: int
    """Epoch of every channel that this start sequences; higher than that of any start before it."""
    namespaces: tuple[NamespaceSpec, ...] = BUILT_IN
    """What the part of a channel's name before its colon decides; the workers have the same."""
    history_total_bytes: int = 268_435_456
    """Bytes of messages kept in memory, of all channels together."""
    key_window_s: int = 300
    """Seconds for which an idempotency key is remembered (protocol: 5 minutes)."""
    channels_max: int = 1_000_000
    """Channels known at once; further ones are refused with `unavailable`."""
    globals_bytes_max: int = 32_768
    """Bytes that all global channels together may take in a WELCOME."""
    spill_bytes_max: int = 64 * 1024 * 1024
    """Bytes kept for one worker while its ZeroMQ queue is full; beyond it the worker is told to start afresh."""
    presence_damping_ms: int = 3_000
    """How long a session may be away from a channel before its members are told that it left."""
    events_members_max: int = 200
    """In channels with more sessions nobody is told who joined and who left."""
    log_backend: str = "none"
    """`embedded`, `redis`, or `none`: messages are kept in this process's memory alone."""
    log_directory: str = ""
    """Of the embedded log."""
    log_sync: str = "always"
    """Of the embedded log: `always` outlives a power loss, `never` only the end of any process."""
    log_disk_bytes_max: int = 16 * 1024 * 1024 * 1024
    """Of the embedded log: bytes of its messages; beyond it the oldest go before their age. 0: no bound."""
    log_redis_url: str = ""
    log_redis_prefix: str = "hf:"
    log_redis_replicas: int = -1
    """How many replicas must have a batch before it counts as logged; -1: as many as Redis says it has, 1 at most."""
    log_redis_kept_bytes_max: int = 256 * 1024 * 1024
    """Of what was appended lately, in memory, to be given again to a Redis that lost it."""
    log_regions: dict[str, str] = {}
    """URLs of the other regions' Redis, by region; empty: there is one log, that of log_redis_url."""
    log_bytes_max: int = 64 * 1024 * 1024
    """Bytes that wait for the log; beyond it messages that have to be in it are refused, others are not logged."""
    log_open_timeout_s: int = 0
    """How long a start waits for a log that is away; 0: for ever."""
    workers: int = 0
    """Workers of the node, which link to a router that was started before it answers resumes; 0: nobody knows."""
    session_ttl_s: int = 3_600
    """Seconds for which what is stored of a session is kept after its last sign of life: as long as resume tokens."""
    directory: DirectoryConfig | None = None
    """Where routers agree who leads which shard; None: this one leads all."""
    bus_public_key: str = ""
    bus_secret_key: str = ""
    """Of the endpoint (CURVE, Z85); empty: it has none."""
    stats_fd: int = -1
    """Inherited descriptor of the shared counters; -1 keeps them in the process's own memory."""
    commands_fd: int = -1
    """Inherited socket to the supervisor: see `core.commands`; -1 for none."""
    tracemalloc_frames: int = 0
    """Frames of Python's allocations to keep for reports about growth; 0 for none."""
    log_level: str = "info"
    """One of debug, info, warning, error."""
    log_format: str = "console"
    """`console` for people, `json` for machines."""
