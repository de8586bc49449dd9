"""Puts a node together from its configuration and runs it: which processes, on which endpoint, with which admin server.

This is the one place that knows all the parts; each of them knows only what it is given here.
"""

import asyncio
import contextlib
import functools
import os
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvloop
from prometheus_client import CollectorRegistry

from core import introspect
from core.auditor import Auditor
from core.owned import ACCOUNT
from core.transcode import mpack_from_json
from gateway import __version__, logs
from gateway.admin import AdminContext, create_app
from gateway.admin_server import AdminServer
from gateway.bans_api import routes as ban_routes
from gateway.channels_api import Channels
from gateway.channels_api import routes as channel_routes
from gateway.child import Child, ChildSpec, Totals
from gateway.cluster_config import BusSection, RouterLink, bus_endpoint
from gateway.cluster_metrics import ClusterCollector
from gateway.config import Config, router_config, worker_config
from gateway.connections_api import Places, Walks
from gateway.development_key import development_key
from gateway.elsewhere import Elsewhere
from gateway.errors import PortTakenError, ReloadError
from gateway.growth_api import GrowthCollector
from gateway.hook import Hook
from gateway.ledger_watch import LedgerWatch
from gateway.metrics import AuditCollector, NodeCollector, ProcessView
from gateway.node_audit import NodeAudit
from gateway.ports import Listeners, bound
from gateway.publisher import RouterPublisher
from gateway.region_metrics import RegionCollector
from gateway.regions import evacuated_of
from gateway.regions_api import routes as region_routes
from gateway.reload import Plan, Reload
from gateway.run_directory import RunDirectory
from gateway.shards_api import routes as shard_routes
from gateway.supervision_api import Supervision, routes
from gateway.supervisor import Supervisor, Timing
from gateway.users_api import Users
from gateway.users_api import routes as user_routes
from gateway.watch import Watch
from gateway.watcher import Place, Watcher
from gateway.zygote import TCP_FD, WS_FD
from router.client import RouterClient

if TYPE_CHECKING:
    from gateway.cluster import Cluster
    from gateway.routers import RouterClients

SUPERVISOR = "supervisor"
EXIT_KILLED = 130  # 128 + SIGINT, as shells say it
_LINK_TIMEOUT_S = 5.0
# Modules that the zygote imports and forks.
WORKER_COMMAND: tuple[str, ...] = ("gateway.worker",)
ROUTER_COMMAND: tuple[str, ...] = ("router.process",)
# What a rolling restart cannot change, by section; None: nothing of it. Of TLS, whether there is any.
FIXED: dict[str, tuple[str, ...] | None] = {
    "node": None,
    "admin": None,
    "recovery": None,
    "auth": None,
    "growth": None,
    "directory": None,
    "bus": None,
    "router": ("endpoint",),
    "gateway": ("workers", "host", "port", "ws_port", "backlog", "tls_certificate", "tls_key"),
}


@dataclass(frozen=True)
class Parts:
    """Which parts of a node run here."""

    router: bool
    workers: bool
    admin: bool


def run(config: Config, parts: Parts, announce: Callable[[], None], again: Callable[[], Config] | None = None) -> int:
    """Runs the node until a signal ends it; returns the exit code of the program.

    Args:
        config: the checked configuration.
        parts: which parts of the node run here.
        announce: called once all of them are ready.
        again: reads and checks the configuration anew, for a rolling restart; None: it stays as it is.

    Raises:
        HoldfastError: the node could not be started; nothing of it is left.

    """
    logs.setup(config.log.level, config.log.format, process="supervisor")
    _raise_open_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, parts, announce, again or (lambda: config)))


async def _serve(config: Config, parts: Parts, announce: Callable[[], None], again: Callable[[], Config]) -> int:
    ACCOUNT.own_loop()
    async with contextlib.AsyncExitStack() as stack:
        endpoint = stack.enter_context(_endpoint(config))
        listeners = stack.enter_context(contextlib.closing(_listeners(config, parts)))
        workers: list[Child] = []
        cluster = None
        if config.clustered:
            # deadline: there is nothing to wait for at its beginning
            cluster = await stack.enter_async_context(_cluster(config, workers if parts.workers else None))
        routers = _no_routers if cluster is None else cluster.view.routers
        supervisor = Supervisor(
            router_spec(config, endpoint) if parts.router else None,
            worker_specs(config, endpoint, listeners, routers=routers) if parts.workers else [],
            timing(config),
            # In a cluster, what is missing may be elsewhere and come back.
            must_be_ready=parts.router and cluster is None,
        )
        workers += supervisor.workers
        told = info(config, parts)
        reload = Reload(supervisor, Planner(config, parts, again, endpoint, listeners, told.update, routers))
        supervisor.on_stop = [listeners.close, reload.cancel]
        supervisor.on_hangup = reload.begin_quietly
        supervisor.handle_signals()
        hook = Hook(config.growth.hook_url, config.growth.hook_command, config.growth.hook_timeout_s)
        audit = NodeAudit(
            (SUPERVISOR, os.getpid()),
            lambda: Totals.of(ACCOUNT.read()),
            Auditor(ACCOUNT),
            lambda: supervisor.children,
            config.node.name,
        )
        watcher = await stack.enter_async_context(_growth(config, supervisor, hook))
        if parts.admin:
            supervision = Supervision(reload, supervisor.stop)
            await stack.enter_async_context(
                _admin(config, told, supervisor, endpoint, supervision, watcher, hook, audit, cluster)
            )
        await stack.enter_async_context(_watched(config, supervisor, hook, audit))
        await supervisor.run(announce)
    return EXIT_KILLED if supervisor.killed else 0


def _no_routers() -> tuple[RouterLink, ...]:
    return ()


def _cluster(config: Config, workers: Sequence[Child] | None) -> contextlib.AbstractAsyncContextManager["Cluster"]:
    from gateway.cluster import joined  # here: a node that is alone starts 0.2 s earlier without the library of etcd

    return joined(config, None if workers is None else lambda: workers)


def _recovery(
    config: Config, endpoint: str, client: "RouterClient | RouterClients", registry: CollectorRegistry
) -> contextlib.AbstractAsyncContextManager[None]:
    if not config.recovery.port:
        return contextlib.nullcontext()
    from gateway.recovery import serving  # here: most nodes have none, and start faster without what checks tokens

    return serving(config, endpoint, client, registry)


@contextlib.asynccontextmanager
async def _watched(config: Config, supervisor: Supervisor, hook: Hook, audit: NodeAudit) -> AsyncIterator[None]:
    """Watches the processes and their ledger for as long as the context lasts."""

    def bury() -> None:
        supervisor.bury_orphans()
        hook.bury()

    folder = Path(config.node.report_dir or Path(tempfile.gettempdir()) / "holdfast-reports")
    watch = Watch(lambda: supervisor.children, config.node.stuck_after_ms / 1000, folder, each_look=bury)
    elsewhere = Elsewhere(lambda: supervisor.workers)
    ledger = LedgerWatch(audit, config.growth.audit_interval_s, config.node.name, hook.tell)
    tasks = {
        asyncio.create_task(ledger.run(), name="ledger watch"),
        asyncio.create_task(watch.run(), name="watch"),
        asyncio.create_task(elsewhere.run(), name="elsewhere"),
    }
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_LINK_TIMEOUT_S)


def timing(config: Config) -> Timing:
    """How long the supervisor waits for what."""
    leave_s = float(config.router.leave_s) if config.clustered else 0.0
    return Timing(drain_s=config.gateway.drain_ms / 1000, router_leave_s=leave_s)


@contextlib.contextmanager
def _endpoint(config: Config) -> Iterator[str]:
    """Where the router listens: as configured, or a socket in a run directory that lasts as long as the node."""
    if config.router.endpoint or config.clustered:
        yield bus_endpoint(config) if config.clustered else config.router.endpoint
        return
    directory = RunDirectory(config.node.run_dir)
    try:
        yield f"ipc://{directory.socket_path}"
    finally:
        directory.close()


def _check_ports(config: Config) -> None:
    """Asks once without SO_REUSEPORT, with which the workers of two nodes would share a port and never know.

    Raises:
        PortTakenError: another program listens on one of the gateway's ports.
        StartError: the address is not one of this machine, or the port is not allowed.

    """
    for key, port in (("gateway.port", config.gateway.port), ("gateway.ws_port", config.gateway.ws_port)):
        bound(key, config.gateway.host, port).close()


def _listeners(config: Config, parts: Parts) -> Listeners:
    """The sockets that the workers accept from; none where none run.

    Raises:
        PortTakenError: another program listens on one of the gateway's ports.
        StartError: the address is not one of this machine, or the port is not allowed.

    """
    gateway = config.gateway
    if not parts.workers:
        return Listeners(0, gateway.host, (gateway.port, gateway.ws_port), gateway.backlog)
    _check_ports(config)
    try:
        return Listeners(gateway.workers, gateway.host, (gateway.port, gateway.ws_port), gateway.backlog)
    except OSError as error:
        raise PortTakenError(f"{error.strerror}: somebody took the port just now") from error


def _raise_open_files() -> None:
    """Each connection is a descriptor, and the children inherit the limit; the hard one is the operator's decision."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# ------------------------------------------------------------------------------------------------------ the processes


def worker_specs(
    config: Config,
    endpoint: str,
    listeners: Listeners,
    *,
    beside: bool = False,
    routers: Callable[[], tuple[RouterLink, ...]] = _no_routers,
) -> list[ChildSpec]:
    """What to run as the workers.

    Args:
        config: of the node.
        endpoint: of its router.
        listeners: what they accept from.
        beside: they run while those that they replace run on.
        routers: of the cluster, as they are known when one is started.

    """
    places = range(config.gateway.workers)
    return [worker_spec(config, endpoint, index, listeners, beside=beside, routers=routers) for index in places]


def worker_spec(
    config: Config,
    endpoint: str,
    index: int,
    listeners: Listeners,
    *,
    beside: bool = False,
    routers: Callable[[], tuple[RouterLink, ...]] = _no_routers,
) -> ChildSpec:
    """What to run as worker `index`, linked to the router at `endpoint`, or to all of the cluster's."""

    def part(epoch: int, stats_fd: int, commands_fd: int) -> bytes:
        return msgspec.json.encode(
            worker_config(
                config,
                index=index,
                epoch=epoch,
                router_endpoint="" if config.clustered else reachable(endpoint),
                routers=routers(),
                stats_fd=stats_fd,
                commands_fd=commands_fd,
                tcp_fd=TCP_FD,
                ws_fd=WS_FD,
                beside=beside,
                development_key=development_key(config),
            )
        )

    return ChildSpec(f"worker-{index}", WORKER_COMMAND, part, lambda: listeners.fds(index))


def router_spec(config: Config, endpoint: str) -> ChildSpec:
    """What to run as the router, at `endpoint`."""

    def part(epoch: int, stats_fd: int, commands_fd: int) -> bytes:
        return msgspec.json.encode(
            router_config(config, epoch=epoch, endpoint=endpoint, stats_fd=stats_fd, commands_fd=commands_fd)
        )

    return ChildSpec("router", ROUTER_COMMAND, part)


def reachable(endpoint: str) -> str:
    """The endpoint to connect to for one that was bound to every address of this machine."""
    for wildcard, loopback in (("tcp://0.0.0.0:", "tcp://127.0.0.1:"), ("tcp://*:", "tcp://127.0.0.1:")):
        if endpoint.startswith(wildcard):
            return loopback + endpoint.removeprefix(wildcard)
    return endpoint


# ------------------------------------------------------------------------------------------------------------- growth


@contextlib.asynccontextmanager
async def _growth(config: Config, supervisor: Supervisor, hook: Hook) -> AsyncIterator[Watcher]:
    """Watches all processes of the node for as long as the context lasts."""
    own = introspect.handlers(config.growth.tracemalloc_frames)

    async def ask(method: str, *, deadline_s: float) -> object:
        async with asyncio.timeout(deadline_s):
            return await own[method]()

    watcher = Watcher(config.growth, config.node.name, lambda: watched(supervisor, ask), hook)
    hook.start()
    watcher.start()
    try:
        yield watcher
    finally:
        await watcher.close()
        await hook.close()


def watched(supervisor: Supervisor, ask: Callable[..., Awaitable[object]]) -> list[Place]:
    """All processes of the node that live now; `ask` is for the supervisor's own."""
    places = [Place("supervisor", os.getpid(), ask=ask)]
    places += [Place("zygote", pid) for pid in supervisor.zygotes[-1:]]
    for child in supervisor.children:
        if child.pid is not None:
            places.append(Place(child.name, child.pid, child.totals().live, child.ask))
    return places


# ------------------------------------------------------------------------------------------------------------- reload


@dataclass(frozen=True)
class Planner:
    """Makes the plan of a rolling restart from the configuration as it is then; see `gateway.reload.Reload`."""

    config: Config
    """As at the start: what its fixed settings are held against."""
    parts: Parts
    again: Callable[[], Config]
    endpoint: str
    listeners: Listeners
    tell: Callable[[dict[str, object]], None]
    """Takes the new answer of /api/info."""
    routers: Callable[[], tuple[RouterLink, ...]] = _no_routers
    """Of the cluster."""

    def __call__(self, router: bool) -> Plan:
        """The plan.

        Raises:
            ConfigError: the configuration cannot be used.
            ReloadError: a setting has changed that a rolling restart cannot change.

        """
        config = self.again()
        changed = fixed_changes(self.config, config, router=router)
        if changed:
            raise ReloadError(
                f"{', '.join(changed)} cannot change while the node runs: undo that, or stop it and start it again"
            )
        workers: list[tuple[ChildSpec, ChildSpec]] = []
        if self.parts.workers:
            make = functools.partial(worker_specs, config, self.endpoint, self.listeners, routers=self.routers)
            workers = list(zip(make(beside=True), make(), strict=True))
        return Plan(
            workers,
            router_spec(config, self.endpoint) if router and self.parts.router else None,
            timing(config),
            lambda: self.tell(info(config, self.parts)),
        )


def fixed_changes(old: Config, new: Config, *, router: bool) -> list[str]:
    """The settings that differ although a rolling restart cannot change them, as `section.key`.

    The supervisor's own, those that all processes must agree on, and, unless it is restarted too, the router's and
    those of namespaces, which the router and the workers must see alike.
    """
    keys = [f"{section}.{key}" for section, names in FIXED.items() for key in names or _keys(old, section)]
    if not router:
        keys += [f"router.{key}" for key in _keys(old, "router") if key != "endpoint"]
        keys += [f"log.{key}" for key in _keys(old, "log") if key not in ("level", "format")]
    changed = [key for key in keys if _value(old, key) != _value(new, key)]
    if not router:
        was, will = ({spec.name: spec for spec in config.namespaces} for config in (old, new))
        names = sorted(name for name in {*was, *will} if was.get(name) != will.get(name))
        changed += [f"namespaces.{name}" for name in names]
    return changed


def _keys(config: Config, section: str) -> tuple[str, ...]:
    return tuple(getattr(config, section).__struct_fields__)


def _value(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    value: object = getattr(getattr(config, section), name)
    return bool(value) if name in ("tls_certificate", "tls_key") else value


# -------------------------------------------------------------------------------------------------------------- admin


@contextlib.asynccontextmanager
async def _admin(
    config: Config,
    told: dict[str, object],
    supervisor: Supervisor,
    endpoint: str,
    supervision: Supervision,
    watcher: Watcher,
    hook: Hook,
    audit: NodeAudit,
    cluster: "Cluster | None",
) -> AsyncIterator[None]:
    """The admin server, for as long as the context lasts: from before the children start until they have ended."""
    client = _client(config, endpoint, cluster)
    publisher = RouterPublisher(client, config.gateway.request_timeout_ms / 1000)
    registry = _registry(config, supervisor, watcher, hook, audit, cluster, client)
    walks = Walks()

    def workers() -> Places:
        return [(*child.leaving, child) for child in supervisor.workers]

    own = [spec.name for spec in config.namespaces if spec.domain == "session"]
    users = Users(publisher, own, workers, walks, [spec.name for spec in config.namespaces])
    channels = Channels(publisher, config.namespaces, workers, walks)
    context = AdminContext(
        info=told,
        missing=lambda: [*supervisor.missing(), *(cluster.missing() if cluster is not None else ())],
        registry=registry,
        publisher=publisher,
        to_mpack=mpack_from_json,
        token=config.admin.token,
        deadline_s=config.gateway.request_timeout_ms / 1000,
        workers=workers,
        walks=walks,
        growth=watcher,
        routes=[
            *routes(config.admin.token, supervision),
            *ban_routes(config.admin.token, publisher, time.time),
            *user_routes(config.admin.token, users),
            *channel_routes(config.admin.token, channels),
            *shard_routes(config.admin.token, config.node.name, None if cluster is None else cluster.view),
            *region_routes(config.admin.token, None if cluster is None else cluster.view),
        ],
        audit=audit,
    )
    server = AdminServer(config.admin.host, config.admin.port, create_app(context))
    server.start()
    try:
        async with asyncio.timeout(_LINK_TIMEOUT_S):
            await client.start()
            await ACCOUNT.settle()
        links_at = "" if config.clustered else reachable(endpoint)
        async with _recovery(config, links_at, client, registry):  # deadline: see `close`
            yield
    finally:
        await server.close()
        async with asyncio.timeout(_LINK_TIMEOUT_S):
            await client.close()


def _registry(
    config: Config,
    supervisor: Supervisor,
    watcher: Watcher,
    hook: Hook,
    audit: NodeAudit,
    cluster: "Cluster | None",
    client: "RouterClient | RouterClients",
) -> CollectorRegistry:
    """All that /metrics tells."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(lambda: views(supervisor), node=config.node.name, version=__version__))
    registry.register(GrowthCollector(watcher, hook))
    registry.register(AuditCollector(lambda: audit.last))
    registry.register(
        ClusterCollector(
            cluster,
            config.node.name,
            lambda: _links(client),
            lambda: supervisor.workers,
            supervisor.router,
            config.directory.ttl_s,
        )
    )
    registry.register(
        RegionCollector(supervisor.router, lambda: evacuated_of(cluster.view.view) if cluster is not None else {})
    )
    return registry


def _client(config: Config, endpoint: str, cluster: "Cluster | None") -> "RouterClient | RouterClients":
    """The link to the router, or those to all routers of the cluster."""
    name = f"{config.node.name}-admin"
    if cluster is None:
        keys = config.bus if endpoint.startswith("tcp://") else BusSection()
        return RouterClient(
            reachable(endpoint),
            name,
            namespaces=config.namespaces,
            server_key=keys.public_key,
            public_key=keys.public_key,
            secret_key=keys.secret_key,
        )
    from gateway.routers import RouterClients  # here: as in `_cluster`

    def made(link: RouterLink) -> RouterClient:
        return RouterClient(
            link.bus,
            name,
            namespaces=config.namespaces,
            shards=config.directory.shards,
            server_key=link.key,
            public_key=config.bus.public_key,
            secret_key=config.bus.secret_key,
        )

    return RouterClients(cluster.view, made, config.namespaces)


def _links(client: "RouterClient | RouterClients") -> list[bool]:
    """The routers that the admin API is linked to, and whether each was heard lately."""
    return [client.linked] if isinstance(client, RouterClient) else list(client.links.values())


def info(config: Config, parts: Parts) -> dict[str, object]:
    """What the page and people may know of the node."""
    return {
        "node": config.node.name,
        "version": __version__,
        "development": config.development,
        "role": config.node.role,
        "workers": config.gateway.workers if parts.workers else 0,
        "port": config.gateway.port,
        "ws_port": config.gateway.ws_port,
        "ws_path": config.gateway.ws_path,
        "tls": bool(config.gateway.tls_certificate),
        "ping": config.gateway.ping_ms // 1000,
    }


def views(supervisor: Supervisor) -> list[ProcessView]:
    """The supervisor and its children, as the metrics show them."""
    own = ProcessView(SUPERVISOR, os.getpid(), True, 0, Totals.of(ACCOUNT.read()))
    return [own, *(_view(child) for child in supervisor.children)]


def _view(child: Child) -> ProcessView:
    return ProcessView(child.name, child.pid, child.ready.is_set(), child.restarts, child.totals(), child.stuck)
