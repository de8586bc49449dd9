"""The worker process: the data-plane thread serves connections; this thread decides about control frames."""

import asyncio
import contextlib
import functools
import gc
import hashlib
import os
import signal
import sys
import threading
import time
from typing import Any

import msgspec
import uvloop

from core import bus, introspect, notes, records, stacks
from core.auditor import Auditor
from core.codes import Code
from core.commands import CommandServer, Handler
from core.descriptors import is_bus
from core.ledger import STATS_BYTES, Stats
from core.loop import EdgeLoop
from core.owned import ACCOUNT
from core.process import LEAVE, die_with_parent
from core.tls import TICKET_KEY_BYTES
from gateway import logs
from gateway.auth import Authenticator, node_key
from gateway.cluster_config import RouterLink
from gateway.config import WorkerConfig, token_policy
from gateway.control import Control, Limits
from gateway.devices import Devices
from gateway.drain import Drain
from gateway.errors import ConfigError
from gateway.evacuation import Away, Evacuation
from gateway.guard import Guard
from gateway.links import Links
from gateway.listing import Listing
from gateway.ports import listening
from gateway.token_keys import Key, KeyFile

EXIT_CONFIG = 78  # what the supervisor takes for "starting again will not help"
STOP_DEADLINE_S = 5.0
FOREIGN = "this router speaks version {} of the link and this worker version {}: stop the node and start it again"


class WorkerProcess:
    """One worker's control thread; owns the data-plane thread."""

    def __init__(
        self,
        config: WorkerConfig,
        plane: EdgeLoop,
        stats: Stats,
        key_file: KeyFile | None = None,
        keys: tuple[Key, ...] = (),
    ) -> None:
        self._config = config
        self._plane = plane
        self._stats = stats
        self._linked = asyncio.Event()
        self._drains: Drain | None = None
        self._stop = asyncio.Event()
        self._leaves = False
        self._log = logs.get("worker")
        devices = Devices()
        self._listing = Listing(
            plane,
            worker=config.index,
            epoch=config.epoch,
            wall_offset_s=time.time() - time.monotonic(),
            devices=devices,
        )
        # Where there is a directory; with a router's endpoint the data plane has its one link from the start.
        self._links = Links(
            plane, config.bus_public_key, config.bus_secret_key, alone=config.router_endpoint, region=config.region
        )
        self._evacuation = Evacuation(plane, config.drain_ms / 1000)
        self._auditor = Auditor(ACCOUNT, self._ask_audit)
        self._commands = CommandServer(config.commands_fd, self._handlers())
        auth = Authenticator(
            config.secret,
            node_key=node_key(config.development_key or config.router_endpoint),
            resume_ttl_s=config.resume_token_ttl_s,
            resume_age_max_s=config.resume_token_age_max_s,
            policy=token_policy(config),
            keys=keys,
        )
        self._guard = Guard(
            auth, self._listing, key_file, clock=time.time, request_timeout_s=config.request_timeout_ms / 1000
        )
        self._control = Control(
            plane,
            auth,
            Limits(
                node=config.node,
                ping_ms=config.ping_ms,
                misses=config.misses,
                max_frame=config.max_frame,
                channels_max=config.channels_per_session_max,
                development=config.secret is None,
            ),
            clock=time.time,
            namespaces=config.namespaces,
            devices=devices,
            holds=True,
            refusal=self._evacuation.refusal,
        )

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        running = asyncio.get_running_loop()
        held = ACCOUNT.hold("handle", "the data plane", object_=self._plane)
        for number in (signal.SIGTERM, signal.SIGINT):
            running.add_signal_handler(number, self._stop.set)
        running.add_signal_handler(LEAVE, self._leave)
        running.add_reader(self._plane.control_fd, self._take)
        ACCOUNT.explain(self._links.owns)
        if not self._config.router_endpoint:
            with contextlib.suppress(OSError, ValueError):  # the supervisor tells of them again
                self._links.want(self._config.routers)
        await self._commands.start()
        self._guard.start()
        await ACCOUNT.settle()  # deadline: SETTLE_DEADLINE_S
        thread = threading.Thread(target=self._plane.run, name="data-plane", daemon=True)
        thread.start()
        ready = ACCOUNT.task(self._say_ready(), "say ready", owner=held)
        await self._stop.wait()  # no deadline: for as long as the process lives
        ready.cancel()
        await self._drain(thread)
        running.remove_reader(self._plane.control_fd)
        await self._guard.close()
        await self._commands.close()
        held.close()

    def _handlers(self) -> dict[str, Handler]:
        """What the supervisor may ask of a worker."""
        return {
            "away": self._away,
            "pace": self._pace,
            "ping": self._ping,
            "routers": self._routers,
            "connections": self._listing.connections,
            "reclaim": self._listing.reclaim,
            **introspect.handlers(self._config.tracemalloc_frames),
            "audit": self._auditor.audit,
        }

    async def _ping(self) -> None:
        """Answer, so that the supervisor knows that this thread gets to it."""

    async def _routers(self, routers: list[dict[str, Any]]) -> None:
        """Which routers there are."""
        self._links.want(msgspec.convert(one, RouterLink) for one in routers)

    async def _away(self, order: dict[str, Any] | None) -> None:
        """Whether the clients are to go to other regions."""
        if self._drains is None:  # else they go anyway
            await self._evacuation.follow(None if order is None else msgspec.convert(order, Away))

    async def _pace(self, handshakes: int, welcome_s: float) -> None:
        """How the node's other workers are doing, for a drain's pace."""
        if self._drains is not None:
            self._drains.on_elsewhere(handshakes, welcome_s)

    def _leave(self) -> None:
        """A successor listens on the same sockets: go, without emptying the queue that is its own now."""
        self._leaves = True
        self._stop.set()

    def _ask_audit(self, request: int) -> None:
        self._plane.put(notes.AUDIT, request=request)
        self._plane.flush()

    async def _say_ready(self) -> None:
        await self._linked.wait()  # no deadline: until there is a router; cancelled when the process stops
        self._commands.tell("ready")

    async def _drain(self, thread: threading.Thread) -> None:
        """FIN to every client, with its own time to come back; then stop the data plane."""
        await self._evacuation.follow(None)
        self._drains = Drain(self._plane, self._config.drain_ms / 1000, leaves=self._leaves)
        await self._drains.run()
        self._plane.put(notes.STOP)
        self._plane.flush()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_DEADLINE_S):
                await asyncio.to_thread(thread.join, STOP_DEADLINE_S)
        if not thread.is_alive():
            self._plane.close()
        cut = self._stats.read()["counters"]["drain_cut"]
        if cut:
            self._log.warning("drain_cut", connections=cut, why="their time to be told in order was over")

    def _take(self) -> None:
        """Everything that the data plane has for this thread, in one go; the answers leave in one go too."""
        for kind, state, conn, request, first, second, session, text, extra in self._plane.take():
            try:
                if kind == notes.FRAME:
                    self._control.on_frame(conn, state, extra.decode(), text, session)
                elif kind == notes.BANS:
                    self._guard.on_bans(text, all_=bool(state))
                    self._control.release()
                elif kind == notes.LINKED:
                    self._linked.set()
                elif kind == notes.FOREIGN:
                    self._on_foreign(first)
                elif kind == notes.LISTED:
                    self._listing.on_listed(request, first, text, conn)
                elif kind == notes.LINK_CLOSED:
                    self._links.on_closed(request)
                elif kind == notes.SETTLE:  # behind the decisions about all that this connection asked for
                    self._plane.put(notes.SETTLED, conn)
                elif kind == notes.AUDITED:
                    self._auditor.on_note(request, text, extra)
                elif self._drains is not None:
                    self._drains.on_note(kind, request, first, second)
                else:
                    self._evacuation.on_note(kind, request, first, second)
            except Exception:
                # A fault of ours: one client's frame must not take the others' answers with it.
                self._log.exception("control frame failed", kind=kind)
                self._plane.put(notes.FIN, conn, first=int(Code.INTERNAL), text=b"a fault of the gateway's own")
        self._plane.flush()

    def _on_foreign(self, version: int) -> None:
        why = FOREIGN.format(version, records.VERSION)
        self._log.error("link_version", why=why)
        if not self._linked.is_set():
            self._commands.tell("waits", why=why)


def ticket_key(config: WorkerConfig) -> bytes:
    """The key of TLS session tickets: one for all workers, as a client that comes back cannot choose its worker."""
    secret = (
        node_key(config.development_key or config.router_endpoint) if config.secret is None else config.secret.encode()
    )
    return hashlib.shake_256(b"holdfast tls tickets" + hashlib.sha256(secret).digest()).digest(TICKET_KEY_BYTES)


def _listeners(config: WorkerConfig) -> tuple[int, int]:
    """The listening sockets for TCP and WebSocket: inherited, or its own when it was started by itself."""
    if config.tcp_fd >= 0:
        return config.tcp_fd, config.ws_fd
    with listening(config.host, config.port, config.backlog) as tcp:
        websocket = listening(config.host, config.ws_port, config.backlog)
        return tcp.detach(), websocket.detach()


def bus_keys(config: WorkerConfig) -> tuple[str, str, str]:
    """Keys of the link to the one router, which has the cluster's pair as well: its public one, and the pair."""
    if not config.bus_public_key or not config.router_endpoint.startswith("tcp://"):
        return "", "", ""
    return config.bus_public_key, config.bus_public_key, config.bus_secret_key


def open_plane(config: WorkerConfig, stats: Stats) -> EdgeLoop:
    """Listen on both ports and make the data plane.

    Raises:
        OSError: a port is taken, the bus cannot be opened, or the certificate and its key cannot be used.

    """
    tcp_fd, ws_fd = _listeners(config)
    return EdgeLoop(
        stats,
        endpoint=config.router_endpoint,
        bus_keys=bus_keys(config),
        shards=config.shards,
        identity=f"{config.node}/{config.index}/{config.epoch}-{os.getpid()}",
        tcp_fd=tcp_fd,
        ws_fd=ws_fd,
        beside=config.beside,
        connections_max=config.connections_max,
        namespaces=config.namespaces,
        handshakes_max=config.handshakes_max,
        ws_path=config.ws_path,
        ping_ms=config.ping_ms,
        misses=config.misses,
        hello_timeout_ms=config.hello_timeout_ms,
        fin_timeout_ms=config.fin_timeout_ms,
        write_timeout_ms=config.write_timeout_ms,
        frame_timeout_ms=config.frame_timeout_ms,
        request_timeout_ms=config.request_timeout_ms,
        max_frame=config.max_frame,
        queue_bytes_max=config.queue_bytes_max,
        kept_bytes_max=config.kept_bytes_max,
        channels_max=config.channels_per_session_max,
        publish_rate=config.publish_rate,
        publish_burst=config.publish_burst,
        worker=config.index,
        epoch=config.epoch,
        proxy_protocol=config.proxy_protocol,
        development=config.secret is None,
        expiry_notice_ms=config.expiry_notice_s * 1000,
        tls_certificate=config.tls_certificate,
        tls_key=config.tls_key,
        tls_ticket_key=ticket_key(config),
    )


async def _serve(
    config: WorkerConfig, plane: EdgeLoop, stats: Stats, key_file: KeyFile | None, keys: tuple[Key, ...]
) -> None:
    ACCOUNT.own_loop()
    ACCOUNT.explain(functools.partial(is_bus, endpoint=config.router_endpoint))
    await WorkerProcess(config, plane, stats, key_file, keys).serve()


def preload() -> None:
    """Do what every worker does alike and what leaves no trace of one worker: see `gateway.zygote`."""
    bus.preload()


def main(parent: int) -> int:
    """Read the configuration from standard input and serve until `parent` (a pid) ends it; the exit code."""
    # deadline: the supervisor's, whose end closes the pipe
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerConfig)
    die_with_parent(parent)
    logs.setup(config.log_level, config.log_format, process=f"worker-{config.index}")
    stats = Stats(config.stats_fd)
    ACCOUNT.count_in(stats)
    stacks.install(config.stats_fd, STATS_BYTES)
    key_file = KeyFile(config.keys_file) if config.keys_file else None
    try:
        keys = key_file.read() if key_file is not None else ()
        plane = open_plane(config, stats)
    except ConfigError as error:
        print(f"worker {config.index}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except OSError as error:
        print(f"worker {config.index}: {error.strerror or error}", file=sys.stderr)
        return EXIT_CONFIG
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, plane, stats, key_file, keys))
    return 0


if __name__ == "__main__":
    sys.exit(main(os.getppid()))
