"""Puts a node together from its configuration and runs it: which processes, on which endpoint, with which admin server.

This is the one place that knows all the parts; each of them knows only what it is given here.
"""

import asyncio
import contextlib
import os
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import msgspec
import uvloop
from prometheus_client import CollectorRegistry

from core import introspect
from core.transcode import mpack_from_json
from gateway import __version__, logs
from gateway.admin import AdminContext, create_app
from gateway.admin_server import AdminServer
from gateway.child import Child, ChildSpec
from gateway.config import Config, router_config, worker_config
from gateway.errors import RequestError
from gateway.growth_api import GrowthCollector
from gateway.hook import Hook
from gateway.metrics import NodeCollector, ProcessView
from gateway.ports import bound
from gateway.run_directory import RunDirectory
from gateway.supervisor import Supervisor, Timing
from gateway.watcher import Place, Watcher
from router.client import Refused, RouterClient, Unavailable

EXIT_KILLED = 130  # 128 + SIGINT, as shells say it
_LINK_TIMEOUT_S = 5.0
_RETRY_AFTER_S = 1
# The router's refusals as HTTP says them; the others are the request's own fault.
_STATUS = {"too_large": 413, "rate_limited": 429, "overloaded": 503, "unavailable": 503}
# Modules that the zygote imports and forks.
WORKER_COMMAND: tuple[str, ...] = ("gateway.worker",)
ROUTER_COMMAND: tuple[str, ...] = ("router.process",)


@dataclass(frozen=True)
class Parts:
    """Which parts of a node run here."""

    router: bool
    workers: bool
    admin: bool


def run(config: Config, parts: Parts, announce: Callable[[], None]) -> int:
    """Runs the node until a signal ends it; returns the exit code of the program.

    Args:
        config: the checked configuration.
        parts: which parts of the node run here.
        announce: called once all of them are ready.

    Raises:
        HoldfastError: the node could not be started; nothing of it is left.

    """
    logs.setup(config.log.level, config.log.format, process="supervisor")
    _raise_open_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, parts, announce))


async def _serve(config: Config, parts: Parts, announce: Callable[[], None]) -> int:
    if parts.workers:
        _check_ports(config)
    with _endpoint(config) as endpoint:
        supervisor = Supervisor(
            router_spec(config, endpoint) if parts.router else None,
            [worker_spec(config, endpoint, index) for index in range(config.gateway.workers)] if parts.workers else [],
            Timing(drain_s=config.gateway.drain_ms / 1000),
            must_be_ready=parts.router,
        )
        supervisor.handle_signals()
        async with contextlib.AsyncExitStack() as stack:
            hook = Hook(config.growth.hook_url, config.growth.hook_command, config.growth.hook_timeout_s)
            watcher = await stack.enter_async_context(_growth(config, supervisor, hook))
            if parts.admin:
                await stack.enter_async_context(_admin(config, parts, supervisor, endpoint, watcher, hook))
            await supervisor.run(announce)
        return EXIT_KILLED if supervisor.killed else 0


@contextlib.contextmanager
def _endpoint(config: Config) -> Iterator[str]:
    """Where the router listens: as configured, or a socket in a run directory that lasts as long as the node."""
    if config.router.endpoint:
        yield config.router.endpoint
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


def _raise_open_files() -> None:
    """Each connection is a descriptor, and the children inherit the limit; the hard one is the operator's decision."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# ------------------------------------------------------------------------------------------------------ the processes


def worker_spec(config: Config, endpoint: str, index: int) -> ChildSpec:
    """What to run as worker `index`, linked to the router at `endpoint`."""

    def part(epoch: int, stats_fd: int, commands_fd: int) -> bytes:
        return msgspec.json.encode(
            worker_config(
                config,
                index=index,
                epoch=epoch,
                router_endpoint=reachable(endpoint),
                stats_fd=stats_fd,
                commands_fd=commands_fd,
            )
        )

    return ChildSpec(f"worker-{index}", WORKER_COMMAND, part)


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
    if supervisor.spawner.pid is not None:
        places.append(Place("zygote", supervisor.spawner.pid))
    for child in supervisor.children:
        if child.pid is not None:
            places.append(Place(child.name, child.pid, child.totals().live, child.ask))
    return places


# -------------------------------------------------------------------------------------------------------------- admin


@contextlib.asynccontextmanager
async def _admin(
    config: Config, parts: Parts, supervisor: Supervisor, endpoint: str, watcher: Watcher, hook: Hook
) -> AsyncIterator[None]:
    """The admin server, for as long as the context lasts: from before the children start until they have ended."""
    client = RouterClient(reachable(endpoint), f"{config.node.name}-admin")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(lambda: views(supervisor), node=config.node.name, version=__version__))
    registry.register(GrowthCollector(watcher, hook))
    context = AdminContext(
        info=info(config, parts),
        missing=supervisor.missing,
        registry=registry,
        publisher=RouterPublisher(client),
        to_mpack=mpack_from_json,
        token=config.admin.token,
        deadline_s=config.gateway.request_timeout_ms / 1000,
        workers=lambda: supervisor.workers,
        growth=watcher,
    )
    server = AdminServer(config.admin.host, config.admin.port, create_app(context))
    server.start()
    try:
        async with asyncio.timeout(_LINK_TIMEOUT_S):
            await client.start()
        yield
    finally:
        await server.close()
        async with asyncio.timeout(_LINK_TIMEOUT_S):
            await client.close()


def info(config: Config, parts: Parts) -> dict[str, object]:
    """What the page and people may know of the node."""
    return {
        "node": config.node.name,
        "version": __version__,
        "development": config.development,
        "workers": config.gateway.workers if parts.workers else 0,
        "port": config.gateway.port,
        "ws_port": config.gateway.ws_port,
        "ws_path": config.gateway.ws_path,
        "tls": bool(config.gateway.tls_certificate),
        "ping": config.gateway.ping_ms // 1000,
    }


def views(supervisor: Supervisor) -> list[ProcessView]:
    """The supervisor and its children, as the metrics show them."""
    own = ProcessView("supervisor", os.getpid(), True, 0, None)
    return [own, *(_view(child) for child in supervisor.children)]


def _view(child: Child) -> ProcessView:
    return ProcessView(child.name, child.pid, child.ready.is_set(), child.restarts, child.totals())


class RouterPublisher:
    """Publishes over the link to the router, and says in HTTP's words why it could not."""

    def __init__(self, client: RouterClient) -> None:
        self._client = client

    async def publish(
        self, channel: str, data: bytes, *, key: str | None, sender: str, deadline_s: float
    ) -> tuple[int, int]:
        """See `gateway.admin.Publisher`."""
        try:
            return await self._client.publish(channel, data, key=key, sender=sender, deadline_s=deadline_s)
        except (Unavailable, TimeoutError) as error:
            message = str(error) or "the router does not answer"
            raise RequestError(503, "unavailable", message, _RETRY_AFTER_S) from error
        except Refused as error:
            status = _STATUS.get(error.code_name, 400)
            retry_after_s = _RETRY_AFTER_S if status in (429, 503) else None
            raise RequestError(status, error.code_name, str(error), retry_after_s) from error
