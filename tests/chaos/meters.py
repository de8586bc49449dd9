"""Meters: how long publishes wait for their answers and messages take to members, for what costs time by its distance.

A meter is one session of one user in one channel, over TCP and MessagePack, that stays connected: who comes back is the
talkers' and the probe's affair.
"""

import asyncio
import time
from typing import Any

import jwt

from tests.chaos.endpoints import Place
from tests.chaos.link import ERROR, FIN, FIN_ACK, HELLO, JOIN, MESSAGE, PING, PONG, PUBLISH, REPLY, WELCOME, Link

COME_S, ANSWER_S = 30.0, 30.0
TOKEN_S = 86_400


class Meter:
    """One session.

    Attributes:
        waited_ms: of each publish, how long its answer took.
        took_ms: of each message that came, how long after it was published.
        refused: codes of errors.

    """

    def __init__(self, place: Place, name: str, channel: str, secret: str) -> None:
        self.name, self.channel = name, channel
        self.waited_ms: list[float] = []
        self.took_ms: list[float] = []
        self.refused: list[int] = []
        claims = {"sub": name, "exp": int(time.time()) + TOKEN_S}
        self._token = jwt.encode(claims, secret, algorithm="HS256")
        self._place = place
        self._link = Link(self)
        self._asked: dict[int, float] = {}
        self._last = 0
        self._joined = asyncio.Event()
        self._answered = asyncio.Event()
        self._heard = asyncio.Event()

    async def come(self) -> None:
        """It is a member."""
        async with asyncio.timeout(COME_S):
            host, port = self._place()
            await asyncio.get_running_loop().create_connection(lambda: self._link, host, port)
            self._ask(HELLO, {"v": 1, "token": self._token})
            await self._joined.wait()

    async def publish(self, count: int, pause_s: float, size: int = 100) -> None:
        """One after the other at a pace, however long the answers take; returns when all are answered."""
        for _ in range(count):
            self._asked[self._last + 1] = time.monotonic()
            self._ask(PUBLISH, self.channel, {"at": time.monotonic(), "text": "x" * size}, {})
            await asyncio.sleep(pause_s)
        async with asyncio.timeout(ANSWER_S):
            while self._asked:
                self._answered.clear()
                await self._answered.wait()

    async def hears(self, count: int) -> None:
        """Until so many messages have come."""
        async with asyncio.timeout(ANSWER_S):
            while len(self.took_ms) < count:
                self._heard.clear()
                await self._heard.wait()

    async def go(self) -> None:
        self._link.send(FIN, 0, "bye", {})
        async with asyncio.timeout(COME_S):
            await self._link.ended.wait()

    def _ask(self, kind: int, *rest: Any) -> None:
        self._last += 1
        self._link.send(kind, self._last, *rest)

    # ---- what it hears

    def hear(self, link: Link, frame: list[Any]) -> None:
        kind, now = frame[0], time.monotonic()
        if kind == MESSAGE:
            self.took_ms.append((now - frame[3]["at"]) * 1000)
            self._heard.set()
        elif kind == WELCOME:
            self._ask(JOIN, self.channel, {})
        elif kind in (REPLY, ERROR):
            asked_s = self._asked.pop(frame[1], None)
            if kind == ERROR:
                self.refused.append(frame[2])
            elif asked_s is None:
                self._joined.set()
            if kind == REPLY and asked_s is not None:
                self.waited_ms.append((now - asked_s) * 1000)
            self._answered.set()
        elif kind == PING:
            link.send(PONG, frame[1], frame[2])
        elif kind == FIN:
            link.send(FIN_ACK)
            link.close()
        elif kind == FIN_ACK:
            link.close()

    def lost(self, link: Link) -> None:
        """It stays away."""


def percentile(values: list[float], per_cent: float) -> float:
    """The least value that so many of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * int(per_cent * 10) // 1000) - 1))]
