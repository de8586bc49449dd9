"""The router process: the data-plane thread orders and routes; this thread keeps its life."""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import uvloop

from core import bus, introspect, log_records, notes, records, stacks
from core.auditor import Auditor
from core.commands import CommandServer, Handler
from core.descriptors import is_bus
from core.ledger import STATS_BYTES, Stats
from core.owned import ACCOUNT
from core.process import die_with_parent
from core.router_loop import RouterLoop
from core.shards import COUNT_MAX
from router import lines
from router.bans import BanKeeper, MemoryStore
from router.beats import Beats
from router.bridging import Bridged, shared_seeds
from router.claims_keeper import Alone, ClaimsKeeper
from router.cluster import Cluster, LeaseOver, view_alone
from router.config import DirectoryConfig, RouterConfig
from router.directory.opening import make_directory
from router.directory.port import DirectoryError, Unavailable
from router.log.loader import Loader
from router.log.opening import PACE_MS, UNDER_WAY_MAX, make_log, open_log
from router.log.port import Log, LogDeposed, LogError, LogLost, LogUnavailable, Opened
from router.log.redis_shared import SharedRedisLog
from router.log.writer import LogWriter
from router.plane import put_when_room
from router.publishers import Published
from router.sessions import Sessions
from router.shard_keeper import ShardKeeper, ShardLog
from router.shards.leadership import Leadership
from router.shards.owners import Policy
from router.shards.placement import BY_PUBLISHERS, placement_of
from router.shards.roles import Settings

STOP_DEADLINE_S = 5.0
# All workers link to a router that was started within it: they say LINK once a second, and have to connect before.
LINKED_DEADLINE_S = 2.0
# A start that reads a large log says so this often: whoever says what it waits for is waited for.
RECOVERY_SAID_S = 2.0
# So often bans are looked for that other routers of the cluster stored.
BANS_REREAD_S = 3.0
# So often the supervisor is told how far other regions are: several times between two scrapes.
REGIONS_TOLD_S = 1.0
ALONE = "there is no directory: this router is the only one, and leads all shards"
EXIT_CONFIG = 78
EXIT_DEPOSED = 70  # the node ends: see gateway/supervisor.py
EXIT_LOST = 74
EXIT_UNAVAILABLE = 75
# Python's default of 5 ms is waited for at each hand-over between the event loop and the log's threads, several times a
# batch, while sessions are resumed by the thousand: messages that wait for the log waited for that.
SWITCH_INTERVAL_S = 0.0005
# Python's defaults have its collector look at all objects again each time there are a quarter more, which for 100,000
# claimed sessions is half a million, for a tenth of a second, while nothing else is done here. What a session leaves is
# freed by its count; cycles, which are few (errors, ended tasks), are found young, or after some million new objects.
COLLECTOR = (10_000, 20, 20)
FOREIGN = (
    "router: {} speaks version {} of the link and this router version {}: it is passed over. Stop its node and start it"
    " again, so that all of it is of one version"
)
LEFT_OVER = "router: the log did not take all that was left in time: of that, nothing was promised to anybody"

STATES_LEFT_OVER = "router: the store did not take the last changes of sessions in time: clients' own positions count"


async def ping() -> None:
    """Answer, so that the supervisor knows that this thread gets to it."""


def handlers(router: "Router") -> dict[str, Handler]:
    """What the supervisor may ask of a router that serves."""
    return {
        "ping": ping,
        "audit": router.auditor.audit,
        "shards": router.shards,
        "move": router.move,
        "cordon": router.cordon,
        **introspect.handlers(router.config.tracemalloc_frames),
    }


class Router:
    """The control thread's parts of one router: its data plane, its log if it has one, and what goes between them."""

    def __init__(
        self, config: RouterConfig, stats: Stats, tell: Callable[..., None] = lambda event, **fields: None
    ) -> None:
        self.config = config
        self._tell = tell
        self._stats = stats
        self.log = make_log(config, self._on_disk, self._on_crowded, self._on_kept)
        self.writer: LogWriter | None = None
        self.sessions: Sessions | None = None
        store = self.log or MemoryStore()
        self.bans = BanKeeper(
            store, lambda change, all_: self.loop.put(notes.BANS_SAY, text=change, extra=all_), clock=time.time
        )
        self.loader: Loader | None = None
        self.keeper: ShardKeeper | None = None
        self.cluster: Cluster | None = None
        self.claims: ClaimsKeeper | None = None
        self.bridged: Bridged | None = None
        self._alone: Alone | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, waits: Callable[[str], None] = lambda why: None) -> RouterLoop:
        """Open the log, let the data plane know what it has, bind, and join the others if there are any.

        `waits` hears why that takes long.

        Raises:
            LogError: the log cannot be used.
            OSError: the endpoint cannot be bound.
            DirectoryError: the directory cannot be used.
        """
        opened = None
        if isinstance(self.log, SharedRedisLog) and self.config.log_regions:
            assert self.config.directory is not None
            self.log.take_seeds(await shared_seeds(self.config.directory, waits))
            self.bridged = Bridged(self.config, self.log, self._stats.count)
        if self.log is not None:
            opened = await open_log(
                self.log,
                self.config.epoch,
                timeout_s=self.config.log_open_timeout_s,
                away=lambda why: waits(f"its log is away: {why}"),
            )
        self.loop = data_plane(self.config, self._stats, opened)
        if self.log is not None and opened is not None:
            if self.config.directory is None:
                await self._recover(self.log, waits)
            self.writer = LogWriter(self.log, self.loop.put)
            self.sessions = Sessions(
                self.log,
                self.loop.put,
                ttl_s=self.config.session_ttl_s,
                clock=time.time,
                own=of_domain(self.config, "session"),
                everywhere=of_domain(self.config, "global"),
                on_lost=lambda: self._stats.count("states_lost"),
                on_stored=self._on_stored,
                is_gone=self._is_gone if self.config.directory is not None else None,
            )
            if self.config.directory is None:  # else workers tell of shards as they come to be led
                self.sessions.gather()
            self.loader = Loader(self.log, self.loop.put)
        await self.bans.load()
        keys = {"public_key": self.config.bus_public_key, "secret_key": self.config.bus_secret_key}
        self.loop.bind(self.config.endpoint, **keys)
        self._held = ACCOUNT.hold("handle", "the data plane", object_=self.loop)
        self.auditor = Auditor(ACCOUNT, lambda request: self.loop.put(notes.AUDIT, request=request))
        if self.config.directory is not None:
            self.cluster = self._join(self.config.directory)
            await self.cluster.open(waits)
        elif login_policy(self.config) is not Policy.MANY:
            self._alone = Alone()
            self.claims = ClaimsKeeper(
                self._alone.directory, self.loop.put, login_policy(self.config), unit_epoch=self._alone.unit_epoch
            )
            for shard in range(COUNT_MAX):
                self.claims.lead(shard, empty=True)
        return self.loop

    def _join(self, config: DirectoryConfig) -> Cluster:
        beats = bool(self.config.log_regions)
        directory = make_directory(config, beats=beats)
        log: ShardLog | None = None
        if self.log is not None:
            assert isinstance(self.log, ShardLog), "the configuration allows no other in a cluster"
            log = self.log
        self.keeper = ShardKeeper(
            Leadership(self.config.node, settings_of(self.config, config)),
            directory,
            log,
            self.loop.put,
            flush=self._flush,
            led=lambda shard, epoch: self._led(shard),
            stopped=self._stopped,
            follow=self.bridged.follow if self.bridged is not None else lambda shards, leaders: None,
            able=self.bridged.bridge.able if self.bridged is not None else None,
            everybodys=of_domain(self.config, "global"),
        )
        if self.bridged is not None:
            self.bridged.begin(self.keeper, self.bans.reread_soon)
        view = self.keeper.machine.view
        self.claims = ClaimsKeeper(
            directory,
            self.loop.put,
            login_policy(self.config),
            config.when_away,
            unit_epoch=lambda name: view.nodes.get(name).revision,
            over=view.over,
            shards=config.shards,
        )
        return Cluster(
            self.config.node,
            config,
            directory,
            self.keeper,
            self.loop.shard_counts,
            Published(self.loop.published, view.region_of) if config.placement == BY_PUBLISHERS else dict,
            # The time, not what is left of it: that goes on falling when this process stands still.
            lambda until: self._tell("lease", until=until),
            Beats(self.config.node, directory, lambda: view.alive) if beats else None,
            self.bridged.others if self.bridged is not None else dict,
        )

    async def _flush(self, deadline_s: float) -> bool:
        return self.sessions is None or await self.sessions.flush(deadline_s)

    def _led(self, shard: int) -> None:
        if self.bridged is not None:
            self.bridged.led(shard)
        if self.claims is not None:
            self.claims.lead(shard)

    def _stopped(self, shard: int) -> None:
        if self.claims is not None:
            self.claims.stop(shard)

    def _is_gone(self, byte: int) -> bool:
        """Whether what is in a shard is for another router to write: by the byte whose low bits say which it is."""
        assert self.config.directory is not None
        return self.keeper is None or not self.keeper.writes(byte & (self.config.directory.shards - 1))

    async def _recover(self, log: Log, waits: Callable[[str], None]) -> None:
        """Let the data plane know what it has to. What is of no namespace that it knows, the log tells of."""
        size = 0
        said = time.monotonic()
        async for batch in log.recover():  # deadline: the log's own, of each batch
            self.loop.recover(batch)
            size += len(batch)
            if time.monotonic() >= said + RECOVERY_SAID_S:
                said = time.monotonic()
                waits(f"it reads its log, {size >> 20} MiB so far")
        if not self.loop.knows_all:
            found = await log.standing(of_domain(self.config, "global"))
            records = (
                log_records.pack(log_records.POSITION, one.channel, *one.position, time_ms=one.time_ms) for one in found
            )
            self.loop.recover_globals(b"".join(records))

    def _on_disk(self, bytes_: int, outgrown: int) -> None:
        self._stats.gauge("log_disk_bytes", bytes_)
        self._stats.gauge("log_disk_bytes_max", self.config.log_disk_bytes_max)
        self._stats.count("log_outgrown", outgrown)

    def _on_kept(self, bytes_: int) -> None:
        self._stats.gauge("log_redis_kept_bytes", bytes_)
        self._stats.gauge("log_redis_kept_bytes_max", self.config.log_redis_kept_bytes_max)

    def _on_stored(self, before_ms: int) -> None:
        with contextlib.suppress(BufferError):  # no room: it is told again soon
            self.loop.put(notes.SESSIONS_STORED, first=before_ms)

    def _on_crowded(self) -> None:
        if self.writer is not None:
            self.writer.sift_soon()

    def take(self) -> None:
        """What the data plane says."""
        for kind, flags, conn, request, first, second, session, text, extra in self.loop.take():
            if kind == notes.LOG_BATCH and self.writer is not None:
                if self.bridged is not None:
                    self.bridged.on_batch(request, text)
                self.writer.on_batch(request, text)
            elif kind == notes.ABROAD and self.bridged is not None:
                self.bridged.on_abroad(request, text)
            elif kind == notes.LOG_KEPT and self.writer is not None:
                self.writer.on_kept(request, text)
            elif kind == notes.SESSION_OPEN and self.sessions is not None:
                self.sessions.on_open(request, flags, conn, session, text, first)
            elif kind == notes.SESSION_STATE and self.sessions is not None:
                self.sessions.on_state(text)
            elif kind == notes.SESSION_TOLD and self.sessions is not None:
                self.sessions.on_told(text)
            elif kind == notes.CURSOR and self.sessions is not None:
                self.sessions.on_cursor(request, conn, text)
            elif kind == notes.SESSIONS and self.sessions is not None:
                self.sessions.on_question(request, text)
            elif kind == notes.CLAIM and self.claims is not None:
                self.claims.on_claim(request, flags, conn, first, second, session, text, extra)
            elif kind == notes.BEGAN and self.claims is not None:
                self.claims.on_began(flags, first, text)
            elif kind == notes.BAN:
                self.bans.on_wish(text)
            elif kind == notes.LOG_LOAD and self.loader is not None:
                self.loader.on_load(request, text, messages=bool(first))
            elif kind == notes.DRAINED and self.keeper is not None:
                self.keeper.on_drained(request, first)
            elif kind == notes.FORGOTTEN and self.keeper is not None:
                self.keeper.on_forgotten(request)
            elif kind == notes.FOREIGN:
                print(FOREIGN.format(text.decode(errors="replace"), first, records.VERSION), file=sys.stderr)
            elif kind == notes.AUDITED:
                self.auditor.on_note(request, text, extra)

    def start(self) -> list["asyncio.Task[None]"]:
        """What runs beside the data plane for as long as it does."""
        self.bans.start(BANS_REREAD_S if self.cluster is not None else 0.0)
        if self.writer is not None and self.loader is not None and self.sessions is not None:
            self._tasks = [
                ACCOUNT.task(self.writer.run(), "the log's writer"),
                ACCOUNT.task(self.loader.run(messages=False), "loads of positions"),
                ACCOUNT.task(self.loader.run(messages=True), "loads of messages"),
                ACCOUNT.task(self.writer.sift_now_and_then(), "the log's sifts"),
                ACCOUNT.task(self.sessions.write(), "the sessions' writer"),
                ACCOUNT.task(self._read_sessions(self.sessions), "the sessions' reader"),
            ]
        if self.bridged is not None:
            self.bridged.bridge.start()
            self._tasks.append(ACCOUNT.task(self._tell_regions(self.bridged), "what is told of other regions"))
        if self.claims is not None:
            self._tasks.append(ACCOUNT.task(self.claims.run(), "claims of sessions"))
        if self.cluster is not None:
            self._tasks.append(ACCOUNT.task(self.cluster.run(), "the cluster"))
        return self._tasks

    async def _read_sessions(self, sessions: Sessions) -> None:
        """Once the workers have told what an earlier router may not have stored: that is part of what is read."""
        told = self.config.directory is not None
        if not told and not await sessions.all_told(LINKED_DEADLINE_S if self.config.workers else 0):
            await put_when_room(self.loop.put, notes.TOLD_END)
        await sessions.read()

    async def _tell_regions(self, bridged: Bridged) -> None:
        """What the node's metrics say of other regions."""
        while True:
            self._tell("regions", regions=bridged.others())
            await asyncio.sleep(REGIONS_TOLD_S)

    def ended(self) -> BaseException | None:
        """Why a part ended that should not have."""
        done = [task for task in self._tasks if task.done()]
        return next((task.exception() for task in done if not task.cancelled()), None)

    # ------------------------------------------------------------------------------------------------------ operators

    async def shards(self) -> dict[str, Any]:
        """Who leads what."""
        if self.cluster is None:
            return view_alone(self.config.node, self.config.epoch)
        return await self.cluster.view()

    async def move(self, shard: int, to: str | None) -> str:
        """Have a shard led elsewhere (`router.shard_keeper.ShardKeeper.move`); what is wrong with that, or nothing."""
        return await self.keeper.move(shard, to) if self.keeper is not None else ALONE

    async def cordon(self, node: str, on: bool) -> str:
        """Have a router lead nothing, or lift that; what is wrong with that, or nothing."""
        return await self.keeper.cordon(node, on) if self.keeper is not None else ALONE

    # ------------------------------------------------------------------------------------------------------------ ends

    async def leave(self, hurried: asyncio.Event) -> None:
        """Hand over what is led here, unless it takes long, or somebody hurries."""
        directory = self.config.directory
        if self.cluster is None or directory is None or self.ended() is not None:
            return
        leaving = ACCOUNT.task(self.cluster.leave(directory.leave_s), "leaving")
        hurry = ACCOUNT.task(hurried.wait(), "hurrying")
        ends: set[asyncio.Task[Any]] = {leaving, hurry, *self._tasks}
        # deadline: that of leaving
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in (leaving, hurry):
            task.cancel()
        await asyncio.wait({leaving, hurry}, timeout=STOP_DEADLINE_S)

    async def close(self, *, stopped: bool = True) -> None:
        """Append what is left, unless another router took over, and close the log; then others may have the shards.

        Args:
            stopped: the data plane has; else its shards are not given up before the lease ends.

        """
        if self.keeper is not None:
            await self.keeper.close()
        if self.writer is not None:
            self.take()
            if self.ended() is None and not await self.writer.drain(STOP_DEADLINE_S):
                print(LEFT_OVER, file=sys.stderr)
            if self.ended() is None and self.sessions is not None and not await self.sessions.flush(STOP_DEADLINE_S):
                print(STATES_LEFT_OVER, file=sys.stderr)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_DEADLINE_S)
        if self.bridged is not None:
            await self.bridged.bridge.close()
        if self.writer is not None:
            await self.writer.close()
        if self.claims is not None:
            await self.claims.close()
        if self._alone is not None:
            await self._alone.close()
        if self.cluster is not None:
            await self.cluster.close(give_back=stopped)
        await self.bans.close()
        if self.log is not None:
            await self.log.close()
        self._held.close()


def settings_of(config: RouterConfig, directory: DirectoryConfig) -> Settings:
    """What the machine of shards goes by."""
    return Settings(
        shards=directory.shards,
        region=directory.region,
        regions=frozenset(config.log_regions),
        placement=placement_of(directory.placement),
    )


def of_domain(config: RouterConfig, domain: str) -> list[str]:
    """The namespaces of a domain."""
    return [spec.name for spec in config.namespaces if spec.domain == domain]


def login_policy(config: RouterConfig) -> Policy:
    """How many sessions a user may have: the namespace `user` says."""
    return next((Policy(spec.login) for spec in config.namespaces if spec.name == "user"), Policy.MANY)


def data_plane(config: RouterConfig, stats: Stats, opened: Opened | None) -> RouterLoop:
    """The data plane, not bound yet."""
    return RouterLoop(
        stats,
        epoch=opened.epoch if opened else config.epoch,
        key_window_s=config.key_window_s,
        channels_max=config.channels_max,
        globals_bytes_max=config.globals_bytes_max,
        workers=config.workers,
        spill_bytes_max=config.spill_bytes_max,
        history_total_bytes=config.history_total_bytes,
        namespaces=config.namespaces,
        log_under_way_max=UNDER_WAY_MAX if opened else 0,
        log_pace_ms=PACE_MS,
        log_bytes_max=config.log_bytes_max,
        seeds=opened.seeds if opened else b"",
        sessions_kept=opened is not None,
        log_complete=opened.complete if opened else True,
        presence_damping_ms=config.presence_damping_ms,
        events_members_max=config.events_members_max,
        shards=config.directory.shards if config.directory else COUNT_MAX,
        leads_all=config.directory is None,
        bridged=bool(config.log_regions),
        admits=config.directory is not None or login_policy(config) is not Policy.MANY,
    )


def settle_collector() -> None:
    """Keep the collector from what is there for good, and from what lives long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR)


async def _opened(router: Router, commands: CommandServer, stopped: asyncio.Event) -> RouterLoop | None:
    """The data plane; None: the node ended while the log was waited for."""
    opening = asyncio.ensure_future(router.open(waits=lambda why: commands.tell("waits", why=why)))
    ending = asyncio.ensure_future(stopped.wait())
    # deadline: that of the log's opening, or the node's end
    await asyncio.wait({opening, ending}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if opening.done():
        return opening.result()
    opening.cancel()
    await asyncio.wait({opening}, timeout=STOP_DEADLINE_S)
    if router.keeper is not None:
        await router.keeper.close()
    if router.cluster is not None:
        await router.cluster.close()
    if router.log is not None:
        await router.log.close()
    return None


async def serve(config: RouterConfig, stats: Stats) -> None:
    """Run the data plane in its thread until SIGTERM or SIGINT: where there are others, until these have its shards.

    A second signal ends it at once.

    Raises:
        LogError: the log cannot be used, or is another router's now.
        OSError: the endpoint cannot be bound.
        DirectoryError: the directory cannot be used.
        LeaseOver: the directory counts this router as gone.
    """
    ACCOUNT.own_loop()
    ACCOUNT.explain(functools.partial(is_bus, endpoint=config.endpoint))
    stopped, hurried = asyncio.Event(), asyncio.Event()
    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, lambda: (hurried if stopped.is_set() else stopped).set())
    answers: dict[str, Handler] = {"ping": ping}
    commands = CommandServer(config.commands_fd, answers)
    router = Router(config, stats, commands.tell)
    await commands.start()
    loop = await _opened(router, commands, stopped)
    if loop is None:
        await commands.close()
        return
    running.add_reader(loop.control_fd, router.take)
    answers.update(handlers(router))
    await ACCOUNT.settle()  # deadline: SETTLE_DEADLINE_S
    settle_collector()
    thread = threading.Thread(target=loop.run, name="sequencer", daemon=True)
    thread.start()
    tasks = router.start()
    commands.tell("ready")
    waiting = ACCOUNT.task(stopped.wait(), "the end")
    await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)  # no deadline: while the process lives
    waiting.cancel()
    await router.leave(hurried)
    loop.stop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_DEADLINE_S):
            await asyncio.to_thread(thread.join, STOP_DEADLINE_S)
    error = router.ended()
    await router.close(stopped=not thread.is_alive())
    running.remove_reader(loop.control_fd)
    await commands.close()
    if error is not None:
        raise error


def _remove_socket(endpoint: str) -> None:
    if endpoint.startswith("ipc://"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(endpoint.removeprefix("ipc://"))


def preload() -> None:
    """Do what every router does alike, before it is forked."""
    bus.preload()


def main(parent: int) -> int:
    """Read the configuration from standard input and serve until `parent` (a pid) ends it; the exit code."""
    # deadline: the supervisor's, whose end closes the pipe
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=RouterConfig)
    die_with_parent(parent)
    lines.setup(
        logging.getLevelNamesMapping()[config.log_level.upper()], as_json=config.log_format == "json", process="router"
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stats = Stats(config.stats_fd)
    ACCOUNT.count_in(stats)
    stacks.install(config.stats_fd, STATS_BYTES)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, stats))
    except (OSError, LogError, DirectoryError, LeaseOver) as error:
        print(f"router: {error}", file=sys.stderr)
        return exit_code(error, clustered=config.directory is not None)
    _remove_socket(config.endpoint)
    return 0


def exit_code(error: Exception, *, clustered: bool = False) -> int:
    """What the supervisor makes of it: 78 needs a change by the operator, the others may pass.

    In a cluster, what was lost is another router's, and a process that is started anew takes its part again.
    """
    if isinstance(error, LeaseOver | Unavailable) or (clustered and isinstance(error, LogDeposed)):
        return EXIT_UNAVAILABLE
    if isinstance(error, LogDeposed):
        return EXIT_LOST if isinstance(error, LogLost) else EXIT_DEPOSED
    return EXIT_UNAVAILABLE if isinstance(error, LogUnavailable) else EXIT_CONFIG


if __name__ == "__main__":
    sys.exit(main(os.getppid()))
