"""The router process: the data-plane thread orders and routes; this thread keeps its life."""

import asyncio
import contextlib
import functools
import os
import signal
import sys
import threading

import msgspec
import uvloop

from core import bus, introspect, notes, stacks
from core.auditor import Auditor
from core.commands import CommandServer, Handler
from core.descriptors import is_bus
from core.ledger import STATS_BYTES, Stats
from core.owned import ACCOUNT
from core.process import die_with_parent
from core.router_loop import RouterLoop
from router.config import RouterConfig

STOP_DEADLINE_S = 5.0
EXIT_CONFIG = 78


def handlers(auditor: Auditor, tracemalloc_frames: int) -> dict[str, Handler]:
    """What the supervisor may ask of a router."""

    async def ping() -> None:
        """Answer, so that the supervisor knows that this thread gets to it."""

    return {"ping": ping, "audit": auditor.audit, **introspect.handlers(tracemalloc_frames)}


async def serve(loop: RouterLoop, commands_fd: int, endpoint: str, tracemalloc_frames: int = 0) -> None:
    """Run the data plane in its thread until SIGTERM or SIGINT."""
    ACCOUNT.own_loop()
    ACCOUNT.explain(functools.partial(is_bus, endpoint=endpoint))
    held = ACCOUNT.hold("handle", "the data plane", object_=loop)
    auditor = Auditor(ACCOUNT, lambda request: loop.put(notes.AUDIT, request=request))

    def take() -> None:
        for kind, _, _, request, _, _, _, text, extra in loop.take():
            if kind == notes.AUDITED:
                auditor.on_note(request, text, extra)

    stopped = asyncio.Event()
    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, stopped.set)
    running.add_reader(loop.control_fd, take)
    commands = CommandServer(commands_fd, handlers(auditor, tracemalloc_frames))
    await commands.start()
    await ACCOUNT.settle()  # deadline: SETTLE_DEADLINE_S
    thread = threading.Thread(target=loop.run, name="sequencer", daemon=True)
    thread.start()
    commands.tell("ready")
    await stopped.wait()  # no deadline: for as long as the process lives
    loop.stop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_DEADLINE_S):
            await asyncio.to_thread(thread.join, STOP_DEADLINE_S)
    running.remove_reader(loop.control_fd)
    await commands.close()
    held.close()


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
    stats = Stats(config.stats_fd)
    ACCOUNT.count_in(stats)
    stacks.install(config.stats_fd, STATS_BYTES)
    try:
        loop = RouterLoop(
            stats,
            endpoint=config.endpoint,
            epoch=config.epoch,
            namespaces=config.namespaces,
            history_total_bytes=config.history_total_bytes,
            key_window_s=config.key_window_s,
            channels_max=config.channels_max,
            spill_bytes_max=config.spill_bytes_max,
        )
    except OSError as error:
        print(f"router: {error}", file=sys.stderr)
        return EXIT_CONFIG
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(loop, config.commands_fd, config.endpoint, config.tracemalloc_frames))
    del loop
    _remove_socket(config.endpoint)
    return 0


if __name__ == "__main__":
    sys.exit(main(os.getppid()))
