"""Sends real texts, the lines of Debian's fortunes packages, through three groups and holds every member to them.

    replay.py [--lines N] [--workers 4]

Each group has members of three kinds that know nothing of each other: the Python client (MessagePack and JSON, over
WebSocket and TCP), the JavaScript client under Node, and plain TCP. One of each kind sends its share of the lines. Each
member must hear every line of its group byte for byte, in the order of offsets without a hole, each sender's in the
order in which it sent them, none twice; and all members must hear the same. The exit code is 1 when one did not.

Lines go out in rounds: the next begins when every member has heard the last, so that no queue grows.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import struct
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgpack
from holdfast_client import Message, Position, Session, connect

from loadtest.measure import ROOT, BenchError, holdfast, metric_sum
from tools.provision import FORTUNE_LINES_MIN, environment_for, find_program, fortune_files

GROUPS = ("group:replay-a", "group:replay-b", "group:replay-c")
SENDERS = ("python", "js", "raw")
ROUND_LINES = 400
WINDOW = 64
DEADLINE_S = 30.0
# Where a file's folder or name does not say its language: the packages `fortunes` and `fortunes-bg`.
ENGLISH = "en"
NAMED = {"chinese": "zh", "tang300": "zh", "song100": "zh"}
LANGUAGES = frozenset({"bg", "cs", "de", "es", "it", "pl", "ru", "zh"})


class ReplayError(BenchError):
    """A member did not hear what was sent."""


# ---- what is sent ----


def language(path: Path) -> str:
    """The language of a text, from the folder or the name that its package gave it."""
    for part in (*path.parent.parts, path.name):
        if part in LANGUAGES or part in NAMED:
            return NAMED.get(part, part)
    return ENGLISH


def read_lines(count: int | None) -> tuple[list[str], Counter[str]]:
    """All lines of the texts, or about `count` of them, the same share of each file; and how many of each language.

    Raises:
        ReplayError: the texts are not installed.

    """
    files = {path: path.read_bytes().decode().removesuffix("\n").split("\n") for path in fortune_files()}
    total = sum(map(len, files.values()))
    if total < FORTUNE_LINES_MIN:
        raise ReplayError(f"only {total} lines of fortunes are installed; run: make provision")
    lines: list[str] = []
    languages: Counter[str] = Counter()
    for path, texts in files.items():
        taken = texts if count is None else texts[: -(-len(texts) * count // total)]
        lines += taken
        languages[language(path)] += len(taken)
    return lines, languages


def share(lines: list[str]) -> dict[str, dict[str, list[str]]]:
    """Deal the lines out: group → sender → its lines in order."""
    dealt: dict[str, dict[str, list[str]]] = {group: {sender: [] for sender in SENDERS} for group in GROUPS}
    for line, (sender, group) in zip(lines, itertools.cycle(itertools.product(SENDERS, GROUPS)), strict=False):
        dealt[group][sender].append(line)
    return dealt


# ---- what is heard ----


class Progress:
    """Wakes the sender of rounds when something was heard."""

    def __init__(self) -> None:
        self.heard = 0
        self.failure: BaseException | None = None
        self._changed = asyncio.Event()

    def add(self) -> None:
        self.heard += 1
        self._changed.set()

    def fail(self, failure: BaseException) -> None:
        self.failure = self.failure or failure
        self._changed.set()

    async def until(self, total: int) -> None:
        """Wait until `total` deliveries were heard; each must come in time."""
        while self.heard < total and self.failure is None:
            self._changed.clear()
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await self._changed.wait()
            except TimeoutError:
                raise ReplayError(
                    f"{self.heard} of {total} deliveries came, and nothing for {DEADLINE_S:g} s"
                ) from None
        if self.failure is not None:
            raise self.failure


@dataclass
class Listener:
    """Holds what one member hears against what was sent, as it comes."""

    name: str
    group: str
    expected: dict[str, list[str]]
    progress: Progress
    epoch: int = 0
    offset: int = 0
    cursors: Counter[str] = field(default_factory=Counter)
    digest: Any = field(default_factory=hashlib.sha256)

    def joined(self, epoch: int, offset: int) -> None:
        self.epoch, self.offset = epoch, offset

    def hear(self, epoch: int, offset: int, user: str, line: Any) -> None:
        """One message.

        Raises:
            ReplayError: it is not the next one, or not what was sent.

        """
        if (epoch, offset) != (self.epoch, self.offset + 1):
            raise ReplayError(f"{self.name}: ({epoch}, {offset}) came after ({self.epoch}, {self.offset})")
        sender = user.split("-")[0]
        at = self.cursors[sender]
        if self.expected[sender][at : at + 1] != [line]:
            raise ReplayError(f"{self.name}: line {at} of {sender} arrived as {line!r}")
        self.offset, self.cursors[sender] = offset, at + 1
        self.digest.update(f"{offset} {sender} {line}\n".encode())
        self.progress.add()

    @property
    def is_complete(self) -> bool:
        return self.cursors == Counter({sender: len(lines) for sender, lines in self.expected.items()})


# ---- the three kinds of members ----


class Member(ABC):
    """One program's part: sends its share, round by round, and hears."""

    @abstractmethod
    async def send(self, count: int) -> None:
        """Send the next `count` lines of the own share, as far as there are any."""

    @abstractmethod
    async def close(self) -> None:
        """Leave in order."""


class PythonMember(Member):
    """A session of the Python client; it sends `lines`, which may be none."""

    def __init__(self, session: Session, listener: Listener, lines: list[str]) -> None:
        self._session, self._listener = session, listener
        self._lines = iter(lines)
        self._task = asyncio.create_task(self._listen())

    @classmethod
    async def open(cls, url: str, encoding: str, listener: Listener, user: str, lines: list[str]) -> "PythonMember":
        session = await connect(url, user=user, encoding=encoding)
        listener.joined(*await session.join(listener.group))
        return cls(session, listener, lines)

    async def _listen(self) -> None:
        try:
            async for item in self._session:
                if not isinstance(item, Message):
                    raise ReplayError(f"{self._listener.name}: {item}")
                self._listener.hear(*item.position, item.sender or "", item.data)
        except Exception as error:
            self._listener.progress.fail(error)

    async def send(self, count: int) -> None:
        lines = list(itertools.islice(self._lines, count))
        for part in (lines[at : at + WINDOW] for at in range(0, len(lines), WINDOW)):
            # Created in order and sent in order: a publish is on its way before its task first waits.
            positions: list[Position] = await asyncio.gather(
                *(self._session.publish(self._listener.group, line) for line in part)
            )
            assert positions == sorted(positions)

    async def close(self) -> None:
        await self._session.close()
        async with asyncio.timeout(DEADLINE_S):
            await self._task
        if self._session.dropped_count:
            raise ReplayError(f"{self._listener.name}: {self._session.dropped_count} messages came twice")


class RawMember(Member):
    """Length-prefixed MessagePack on a plain socket, nothing else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener: Listener) -> None:
        self._reader, self._writer, self._listener = reader, writer, listener
        self._lines: Iterator[str] = iter(listener.expected["raw"])
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._task = asyncio.create_task(self._listen())

    @classmethod
    async def open(cls, port: int, listener: Listener, user: str) -> "RawMember":
        async with asyncio.timeout(DEADLINE_S):
            member = cls(*await asyncio.open_connection("127.0.0.1", port), listener)
            await member._ask(0, {"v": 1, "user": user})
            answer = await member._ask(6, listener.group)
            listener.joined(answer["epoch"], answer["offset"])
        return member

    def _ask(self, kind: int, *rest: Any) -> asyncio.Future[Any]:
        request = next(self._ids)
        self._write([kind, request, *rest])
        future = self._answers[request] = asyncio.get_running_loop().create_future()
        return future

    def _write(self, frame: list[Any]) -> None:
        body = msgpack.packb(frame)
        self._writer.write(struct.pack(">I", len(body)) + body)

    async def _listen(self) -> None:
        try:
            while True:
                # deadline: that of the whole run, in Progress.until
                size = struct.unpack(">I", await self._reader.readexactly(4))[0]
                body = await self._reader.readexactly(size)  # deadline: that of the whole run, in Progress.until
                if not self._take(msgpack.unpackb(body)):
                    return
        except Exception as error:
            self._listener.progress.fail(error)

    def _take(self, frame: list[Any]) -> bool:
        """Act on one frame; False after FIN_ACK."""
        kind = frame[0]
        if kind == 9:
            self._listener.hear(frame[4]["epoch"], frame[2], frame[4]["from"], frame[3])
        elif kind in (1, 2):
            self._answers.pop(frame[1]).set_result(frame[2])
        elif kind == 4:
            self._write([5, *frame[1:]])
        elif kind != 15:
            raise ReplayError(f"{self._listener.name}: {frame}")
        return bool(kind != 15)

    async def send(self, count: int) -> None:
        lines = list(itertools.islice(self._lines, count))
        for part in (lines[at : at + WINDOW] for at in range(0, len(lines), WINDOW)):
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*(self._ask(8, self._listener.group, line) for line in part))

    async def close(self) -> None:
        self._write([14, 0, "bye", {}])
        async with asyncio.timeout(DEADLINE_S):
            await self._task
        self._writer.close()


class JavaScriptMembers(Member):
    """One Node process with a session in each group."""

    def __init__(self, process: asyncio.subprocess.Process, listeners: dict[str, Listener]) -> None:
        self._process, self._listeners = process, listeners
        self._joined = asyncio.Event()
        self._waiting, self._open = set(listeners), set(listeners)
        self._task = asyncio.create_task(self._listen())

    @classmethod
    async def open(cls, port: int, ws_port: int, listeners: dict[str, Listener]) -> "JavaScriptMembers":
        node = find_program("node") or find_program("nodejs")
        if node is None:
            raise ReplayError("node is not installed; run: make provision")
        async with asyncio.timeout(DEADLINE_S):
            process = await asyncio.create_subprocess_exec(
                node,
                str(ROOT / "loadtest" / "replay.mjs"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment_for(node),
                limit=1 << 24,
            )
        members = cls(process, listeners)
        lines = {group: listener.expected["js"] for group, listener in listeners.items()}
        addresses = {"tcp": f"tcp://127.0.0.1:{port}", "ws": f"ws://127.0.0.1:{ws_port}/ws"}
        await members._say(json.dumps({**addresses, "round": ROUND_LINES, "groups": lines}))
        async with asyncio.timeout(DEADLINE_S):
            await members._joined.wait()
        return members

    async def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        async with asyncio.timeout(DEADLINE_S):
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        progress = next(iter(self._listeners.values())).progress
        try:
            async for line in self._process.stdout:  # deadline: that of the whole run, in Progress.until
                self._take(*json.loads(line))
            if self._open:
                raise ReplayError(f"node ended without closing {self._open}")
        except Exception as error:
            progress.fail(error)
        self._joined.set()

    def _take(self, kind: str, group: str, *rest: Any) -> None:
        listener = self._listeners[group]
        if kind == "heard":
            for message in rest[0]:
                listener.hear(*message)
        elif kind == "joined":
            listener.joined(*rest)
            self._waiting.discard(group)
            if not self._waiting:
                self._joined.set()
        elif kind == "closed" and rest == (0,):
            self._open.discard(group)
        else:
            raise ReplayError(f"{listener.name}: {kind} {rest}")

    async def send(self, count: int) -> None:
        await self._say("go")

    async def close(self) -> None:
        await self._say("end")
        async with asyncio.timeout(DEADLINE_S):
            await self._task
            await self._process.wait()

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


# ---- the whole ----


class Replay:
    """All members of the three groups, on a gateway that runs in development mode."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.listeners: list[Listener] = []
        self.progress = Progress()
        self._dealt = share(lines)
        self._members: list[Member] = []

    def _listener(self, name: str, group: str) -> Listener:
        listener = Listener(f"{name} in {group}", group, self._dealt[group], self.progress)
        self.listeners.append(listener)
        return listener

    @asynccontextmanager
    async def members(self, port: int, ws_port: int) -> AsyncIterator[None]:
        """Connect and join everybody; say goodbye in order when all went well."""
        javascript = None
        try:
            await self._open_others(port, ws_port)
            listeners = {group: self._listener("js", group) for group in GROUPS}
            javascript = await JavaScriptMembers.open(port, ws_port, listeners)
            self._members.append(javascript)
            yield
            for member in self._members:
                await member.close()
        finally:
            if javascript is not None:
                javascript.kill()

    async def _open_others(self, port: int, ws_port: int) -> None:
        ws, tcp = f"ws://127.0.0.1:{ws_port}/ws", f"tcp://127.0.0.1:{port}"
        for number, group in enumerate(GROUPS):
            url, encoding = ((ws, "msgpack"), (ws, "json"), (tcp, "msgpack"))[number]
            own, listening = self._listener("python", group), self._listener("python json", group)
            sent = self._dealt[group]["python"]
            self._members.append(await PythonMember.open(url, encoding, own, f"python-{number}", sent))
            self._members.append(await PythonMember.open(ws, "json", listening, f"listener-{number}", []))
            self._members.append(await RawMember.open(port, self._listener("raw tcp", group), f"raw-{number}"))

    async def run(self) -> float:
        """Send everything; the seconds that it took until the last member had heard the last line.

        Raises:
            ReplayError: a member did not hear what was sent, or not in time.

        """
        began = time.monotonic()
        target = 0
        rounds = -(-max(len(lines) for shares in self._dealt.values() for lines in shares.values()) // ROUND_LINES)
        for number in range(rounds):
            span = slice(number * ROUND_LINES, (number + 1) * ROUND_LINES)
            for listener in self.listeners:
                target += sum(len(lines[span]) for lines in listener.expected.values())
            await asyncio.gather(*(member.send(ROUND_LINES) for member in self._members))
            await self.progress.until(target)
        took_s = time.monotonic() - began
        self._check()
        return took_s

    def _check(self) -> None:
        for listener in self.listeners:
            if not listener.is_complete:
                raise ReplayError(f"{listener.name}: heard only {dict(listener.cursors)}")
        for group in GROUPS:
            if len({listener.digest.digest() for listener in self.listeners if listener.group == group}) != 1:
                raise ReplayError(f"the members of {group} heard different things")


@dataclass(frozen=True)
class Result:
    """What was sent and heard."""

    lines: int
    deliveries: int
    members: int
    seconds: float
    languages: Counter[str]

    def __str__(self) -> str:
        spoken = ", ".join(f"{name} {count:,}" for name, count in self.languages.most_common())
        return (
            f"{self.lines:,} lines through {len(GROUPS)} groups to {self.members} members: {self.deliveries:,}"
            f" deliveries in {self.seconds:.1f} s ({self.deliveries / self.seconds:,.0f}/s), each byte for byte, in"
            f" order, once\n"
            f"languages: {spoken}"
        )


async def replay(port: int, ws_port: int, count: int | None) -> Result:
    """Send the texts through a running gateway.

    Args:
        port: its TCP port on loopback.
        ws_port: its WebSocket port.
        count: about how many lines, taken evenly from all texts; None for all.

    Raises:
        ReplayError: a member did not hear what was sent.

    """
    lines, languages = read_lines(count)
    work = Replay(lines)
    async with work.members(port, ws_port):
        seconds = await work.run()
    return Result(len(lines), work.progress.heard, len(work.listeners), seconds, languages)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, help="about how many lines, evenly from all texts; default: all")
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    with holdfast(arguments.workers) as server:
        port = int(server.command[server.command.index("--port") + 1])
        try:
            result = asyncio.run(replay(port, server.ws_port, arguments.lines))
        except BenchError as error:
            print(f"replay: {error}", file=sys.stderr)
            return 1
        metrics = server.metrics()
        delivered = metric_sum(metrics, "holdfast_messages_delivered_total")
        print(f"{result}\n{arguments.workers} workers, which count {delivered:,.0f} deliveries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
