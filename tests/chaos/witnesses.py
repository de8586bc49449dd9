"""Witnesses: a few of our own Python clients that speak with keys and write down what each of them hears, to the key.

They come back by themselves as the gateway tells them. What they were told they missed they read from HISTORY, as an
application does. Afterwards each must have heard every offset once, and every key must stand at one offset only.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import holdfast_client
from holdfast_client import Event, HoldfastError, Message, Position, Session

from tests.conftest import Node

OPEN_S = 20.0
PUBLISH_S = 30.0
RETRY_S = 0.05
SETTLE_S = 20.0
START_S = 30.0
PAGE = 200


class Witness:
    """One session: speaks now and then, and hears all that is said in its channel."""

    def __init__(self, session: Session, channel: str, name: str, pause_s: float) -> None:
        self.name = name
        self.published: dict[str, int] = {}
        """Offset by key, as the answers told."""
        self.heard: list[tuple[int, str]] = []
        """Each (offset, key), in the order in which they came."""
        self.read: list[tuple[int, str]] = []
        """What it missed and HISTORY gave."""
        self.events: list[Event] = []
        self.news = asyncio.Event()
        """Set when it has heard or read something."""
        self._session, self._channel, self._pause_s = session, channel, pause_s
        self._first = 0

    async def begin(self) -> None:
        self._first = (await self._session.join(self._channel)).offset

    async def speak(self, stopped: asyncio.Event) -> None:
        """One message after the other; one that is refused for now is said again under its key."""
        number = 0
        while not stopped.is_set():
            number += 1
            key = f"{self.name}-{number}"
            while key not in self.published:
                try:
                    found = await self._session.publish(self._channel, key, key, timeout_s=PUBLISH_S)
                    self.published[key] = found.offset
                except HoldfastError:
                    await asyncio.sleep(RETRY_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s):
                    await stopped.wait()

    async def hear(self) -> None:
        async for item in self._session:
            if isinstance(item, Message):
                if item.channel == self._channel:
                    self.heard.append((item.offset, item.data))
                    self.news.set()
            elif item.channel == self._channel:
                self.events.append(item)
                if item.kind == "reset":
                    await self._read(Position(*item.details["held"]), item.details["offset"])

    async def _read(self, since: Position, until: int) -> None:
        """Everything after `since` up to `until`, from HISTORY."""
        while since.offset < until:
            try:
                page = (await self._session.history(self._channel, since=since, limit=PAGE)).messages
            except HoldfastError:
                await asyncio.sleep(RETRY_S)
                continue
            if not page:
                return
            self.read += [(message.offset, message.data) for message in page if message.offset <= until]
            since = page[-1].position
            self.news.set()

    def offsets(self) -> list[int]:
        return sorted(offset for offset, _ in self.heard + self.read)

    def is_complete(self, last: int) -> bool:
        return len(set(self.offsets())) >= last - self._first

    def complaints(self, last: int) -> list[str]:
        """What it missed or was told twice, of the offsets since it joined."""
        offsets, expected = self.offsets(), list(range(self._first + 1, last + 1))
        if offsets == expected:
            return []
        missed, twice = sorted(set(expected) - set(offsets)), sorted({o for o in offsets if offsets.count(o) > 1})
        return [f"{self.name} missed {missed[:20]}, was told {twice[:20]} twice, of {last}; {self.events[-3:]}"]


class Witnesses:
    """Some of them in one channel, in a thread of their own until `stop`."""

    def __init__(self, node: Node, count: int, publishes: float) -> None:
        self.witnesses: list[Witness] = []
        self._urls = (node.ws_url, f"tcp://127.0.0.1:{node.port}")
        self._count, self._pause_s = count, count / publishes
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(START_S), "the witnesses do not come"
        assert self._failure is None, f"the witnesses do not come: {self._failure!r}"

    def stop(self) -> None:
        """They fall silent, hear what is still under way, and leave."""
        with contextlib.suppress(RuntimeError):  # they have ended already
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(PUBLISH_S + 2 * SETTLE_S)
        assert not self._thread.is_alive(), "the witnesses do not end"
        if self._failure is not None:
            raise self._failure

    def complaints(self) -> list[str]:
        """All that any of them has to say against the gateway."""
        published = {key: offset for witness in self.witnesses for key, offset in witness.published.items()}
        last = max(published.values(), default=0)
        found = [text for witness in self.witnesses for text in witness.complaints(last)]
        places: dict[str, set[int]] = {}
        for witness in self.witnesses:
            for offset, key in witness.heard + witness.read:
                places.setdefault(key, set()).add(offset)
        found += [f"{key} stands at {sorted(offsets)}" for key, offsets in places.items() if len(offsets) != 1]
        for key, offset in published.items():
            if offset not in places.get(key, set()):
                found.append(f"{key} was answered with {offset} and heard at {places.get(key)}")
        return found

    @property
    def published(self) -> int:
        return sum(len(witness.published) for witness in self.witnesses)

    @property
    def returns(self) -> int:
        return sum(len(witness.events) for witness in self.witnesses)

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as failure:
            self._failure = failure
        finally:
            self._ready.set()

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            for number in range(self._count):
                session = await holdfast_client.connect(
                    self._urls[number % 2], user=f"witness-{number}", reconnect=True, open_timeout_s=OPEN_S
                )
                await stack.enter_async_context(session)
                witness = Witness(session, "group:witnesses", f"w{number}", self._pause_s)
                self.witnesses.append(witness)
                await witness.begin()
            self._ready.set()
            hearing = [asyncio.create_task(witness.hear()) for witness in self.witnesses]
            speaking = [asyncio.create_task(witness.speak(self._stopped)) for witness in self.witnesses]
            await asyncio.gather(*speaking)
            with contextlib.suppress(TimeoutError):  # what is missing then is told by `complaints`
                await self._settle()
            for task in hearing:
                task.cancel()

    async def _settle(self) -> None:
        """Until everybody has all that was said."""
        last = max(offset for witness in self.witnesses for offset in witness.published.values())
        async with asyncio.timeout(SETTLE_S):
            for witness in self.witnesses:
                while not witness.is_complete(last):
                    witness.news.clear()
                    await witness.news.wait()


@contextlib.contextmanager
def witnesses_of(node: Node, count: int, publishes: float) -> Iterator[Witnesses]:
    """Witnesses that are there and speak; silent and gone after it."""
    found = Witnesses(node, count, publishes)
    found.start()
    try:
        yield found
    finally:
        found.stop()
