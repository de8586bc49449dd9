"""Small real programs to stand for a worker or a router, for tests of what starts, watches and stops them."""

import asyncio
import itertools
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from core.commands import packed
from gateway.child import ChildSpec
from router.config import DirectoryConfig
from tests.servers import etcd

DEADLINE_S = 90.0
_prefixes = itertools.count(1)

# Notes each step in a file of its own kind, so that a test can wait for it and see the order of things.
PROGRAM = """
import json, os, signal, struct, sys
config = json.load(sys.stdin)

def note(word):
    with open(config["notes"], "a") as file:
        file.write(f"{config['name']} {word} {os.getpid()} {config['epoch']}\\n")

def leave():
    if not config["stubborn"]:
        note("stopped")
        os._exit(0)

def give_way():
    note("leaves")
    if not config["lingers"]:
        os._exit(0)

def serve():
    note("ready")
    os.write(config["commands_fd"], b"\\x00\\x00\\x00\\x15\\x82\\xa5event\\xa5ready\\xa6fields\\x80")

def told():
    serve() if config["ends"] is None else os._exit(config["ends"])

# Blocked and waited for: a handler would run late, or never, for what comes just before a pause().
told_by = {signal.SIGUSR1: give_way, signal.SIGTERM: leave, signal.SIGUSR2: told}
signal.pthread_sigmask(signal.SIG_BLOCK, told_by)
note("started")
if config["counts"]:
    # The ledger's first kind (fd) opened 5 and closed 3 times; 7 of the first counter.
    os.pwrite(config["stats_fd"], struct.pack("=2Q", 5, 3), 8 * 8)
    os.pwrite(config["stats_fd"], struct.pack("=Q", 7), 72 * 8)
if config["exit"] is not None:
    os._exit(config["exit"])
os.write(config["commands_fd"], bytes.fromhex(config["says"]))

if config["serve"]:
    serve()
while True:
    told_by[signal.sigwait(told_by)]()
"""


class Programs:
    """Makes the programs of one test, and reads what they noted."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes"

    def spec(self, name: str, **behaviour: Any) -> ChildSpec:
        """A program that gets ready and waits for SIGTERM.

        `exit=N`: ends with that code before it is ready; `ends=N`: SIGUSR2 makes it end with that code;
        `serve=False`: never gets ready; `stubborn=True`: ignores SIGTERM; `counts=True`: writes into its ledger;
        `lingers=True`: does not end when it is told to leave; `waits="for that"`: says so before it is ready, and
        `lease=time` until when it has one, `regions={...}` how far others are; with `serve=False` SIGUSR2 makes it
        ready.
        """
        settings: dict[str, Any] = {"exit": None, "serve": True, "stubborn": False, "counts": False, "lingers": False}
        settings |= {"ends": None, **behaviour}
        said = {"waits": "why", "lease": "until", "regions": "regions"}
        says = {event: {field: settings.get(event)} for event, field in said.items()}
        frames = [packed({"event": event, "fields": fields}) for event, fields in says.items() if event in settings]
        settings["says"] = b"".join(frames).hex()

        def config(epoch: int, stats_fd: int, commands_fd: int) -> bytes:
            own = {
                "name": name,
                "notes": str(self.notes),
                "epoch": epoch,
                "stats_fd": stats_fd,
                "commands_fd": commands_fd,
            }
            return json.dumps({**settings, **own}).encode()

        return ChildSpec(name, (sys.executable, "-S", "-E", "-c", PROGRAM), config)

    def noted(self, *words: str) -> list[list[str]]:
        """The notes, each (name, word, pid, epoch), of these words or all."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [line.split() for line in lines if not words or line.split()[1] in words]


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


@pytest.fixture
def run_in_loop() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine in the loop that the product uses, with a deadline."""

    async def limited(work: Awaitable[Any]) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return await work

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(limited(work))

    return run


@pytest.fixture(scope="package")
def etcd_member() -> Iterator[etcd.Member]:
    """An etcd that no test harms."""
    with etcd.running() as member:
        yield member


@pytest.fixture
def in_etcd(etcd_member: etcd.Member) -> DirectoryConfig:
    """A directory of the test's own."""
    return DirectoryConfig(endpoints=(etcd_member.endpoint,), prefix=f"gateway{next(_prefixes)}/", ttl_s=5, shards=4)
