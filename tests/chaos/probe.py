"""The probe: how long each shard of a fleet leaves a publish without its answer, as a client sees it.

One session is in one group of each shard and publishes to all of them all the time, one message after the other in
each: a shard that does not answer is asked again under the same key, and the time goes on until it answers. TCP and
MessagePack; the sessions that check what is delivered are the talkers'.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import jwt

from core import shards
from tests.chaos.endpoints import Place, sent_to, served
from tests.chaos.link import (
    AGAIN_S,
    ERROR,
    FIN,
    FIN_ACK,
    HELLO,
    JOIN,
    PING,
    PONG,
    PUBLISH,
    REPLY,
    WELCOME,
    Link,
    retry_s,
)

DIAL_S = 5.0
READY_S = 60.0
TOKEN_S = 86_400
PULSE_S = 0.04


def channel_in(shard: int, count: int, name: str = "probe") -> str:
    """A group of that shard."""
    numbers = iter(range(1 << 20))
    return next(one for one in (f"group:{name}-{n}" for n in numbers) if shards.byte_of(one.encode()) % count == shard)


class Pulse:
    """One shard: what is asked of it now, and the longest that it took to answer."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.is_joined = False
        self.sent_s = 0.0
        """When what is under way was asked for first; 0: nothing is."""
        self.asked_s = 0.0
        """When the last was begun that is answered by now."""
        self.longest_s = 0.0
        self.answers = 0
        self.key = ""
        self.request = 0


class Probe:
    """One session in a group of every shard."""

    def __init__(self, place: Place, count: int, name: str, secret: str = "") -> None:
        self.pulses = [Pulse(channel_in(shard, count, name)) for shard in range(count)]
        self.returns = 0
        self.refusals: dict[int, int] = {}
        claims = {"sub": name, "exp": int(time.time()) + TOKEN_S}
        self._hello: dict[str, Any] = {"v": 1, "user": name}
        if secret:
            self._hello = {"v": 1, "token": jwt.encode(claims, secret, algorithm="HS256")}
        self._place, self._name = place, name
        self._link: Link | None = None
        self._requests: dict[int, Pulse] = {}
        self._last_request = 0
        self._stopping = False
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def come(self) -> None:
        """Every shard has answered once."""
        self._tasks = [asyncio.create_task(self._live()), asyncio.create_task(self._beat())]
        await self._until(lambda: all(pulse.answers for pulse in self.pulses))
        self.begin()

    def begin(self) -> None:
        """Forget what was until now."""
        for pulse in self.pulses:
            pulse.longest_s = 0.0

    def pauses_s(self) -> list[float]:
        """By shard the longest time to an answer since `begin`, also of what has none yet."""
        now = time.monotonic()
        return [max(pulse.longest_s, now - pulse.sent_s if pulse.sent_s else 0.0) for pulse in self.pulses]

    async def wait_answered(self) -> None:
        """Until each shard has answered something that is asked from now on."""
        moment_s = time.monotonic()
        await self._until(lambda: all(pulse.asked_s > moment_s for pulse in self.pulses))

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(READY_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def stop(self) -> None:
        self._stopping = True
        if (link := self._link) is not None:
            link.send(FIN, 0, "bye", {})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(link.ended.wait(), DIAL_S)
            link.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- its life

    async def _live(self) -> None:
        while not self._stopping:
            link = Link(self)
            with contextlib.suppress(OSError):
                host, port = self._place()
                async with asyncio.timeout(DIAL_S):
                    await asyncio.get_running_loop().create_connection(functools.partial(_same, link), host, port)
                link.send(HELLO, self._number(), self._hello)
                await link.ended.wait()  # no deadline: as long as the session lives, and heartbeats end it
                self.returns += 1
            await asyncio.sleep(AGAIN_S)

    async def _beat(self) -> None:
        """A publish to each shard in turn, so that they spread over the time."""
        while True:
            for pulse in self.pulses:
                if self._link is not None and pulse.is_joined and not pulse.sent_s:
                    pulse.sent_s = time.monotonic()
                    pulse.key = f"{self._name}-{self._number()}"
                    self._publish(pulse)
            await asyncio.sleep(PULSE_S)

    def _publish(self, pulse: Pulse) -> None:
        if self._link is not None:
            self._ask(pulse, PUBLISH, pulse.channel, pulse.key, {"key": pulse.key})

    def _ask(self, pulse: Pulse, kind: int, *rest: Any) -> None:
        assert self._link is not None
        pulse.request = self._number()
        self._requests[pulse.request] = pulse
        self._link.send(kind, pulse.request, *rest)

    def _number(self) -> int:
        self._last_request += 1
        return self._last_request

    # ---- what it hears

    def hear(self, link: Link, frame: list[Any]) -> None:
        kind = frame[0]
        if kind in (REPLY, ERROR):
            pulse = self._requests.pop(frame[1], None)
            if pulse is None:
                if kind == ERROR:
                    link.abort()
            elif kind == REPLY:
                self._answered(pulse)
            else:
                self.refusals[frame[2]] = self.refusals.get(frame[2], 0) + 1
                asyncio.get_running_loop().call_later(retry_s(frame), self._again, link, pulse)
        elif kind == PING:
            link.send(PONG, frame[1], frame[2])
        elif kind == WELCOME:
            served(self._place)
            self._link = link
            self._requests.clear()
            for pulse in self.pulses:
                pulse.is_joined = False
                self._ask(pulse, JOIN, pulse.channel, {})
        elif kind == FIN:
            sent_to(self._place, (frame[3] if len(frame) > 3 else {}).get("target"))
            link.send(FIN_ACK)
            link.close()
        elif kind == FIN_ACK:
            link.close()

    def lost(self, link: Link) -> None:
        if self._link is link:
            self._link = None

    def _answered(self, pulse: Pulse) -> None:
        if not pulse.is_joined:
            pulse.is_joined = True
            if pulse.sent_s:  # since before the connection broke
                self._publish(pulse)
            return
        now = time.monotonic()
        pulse.longest_s = max(pulse.longest_s, now - pulse.sent_s)
        pulse.asked_s, pulse.sent_s = pulse.sent_s, 0.0
        pulse.answers += 1
        self._news.set()

    def _again(self, link: Link, pulse: Pulse) -> None:
        if self._link is not link:
            return
        if not pulse.is_joined:
            self._ask(pulse, JOIN, pulse.channel, {})
        elif pulse.sent_s:
            self._publish(pulse)


def _same(link: Link) -> Link:
    return link
