"""Guests: clients that only stay connected, and go where and when a gateway tells them: their returns are counted."""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jwt

from tests.chaos.endpoints import Endpoints
from tests.chaos.link import AGAIN_S, FIN, FIN_ACK, HELLO, PING, PONG, WELCOME, Link

COME_S, DIAL_S = 30.0, 5.0
TOKEN_S = 86_400
WINDOW_S = 1.0


class Guest:
    """One session.

    Attributes:
        welcomed: when it was welcome, each time, and where.
        told: the codes of the FINs that it was told.
        dialled: when it said HELLO, each time.

    """

    def __init__(self, places: Endpoints, name: str, secret: str) -> None:
        self.welcomed: list[tuple[float, str]] = []
        self.told: list[int] = []
        self.dialled: list[float] = []
        claims = {"sub": name, "exp": int(time.time()) + TOKEN_S}
        self._hello: dict[str, Any] = {"v": 1, "token": jwt.encode(claims, secret, algorithm="HS256")}
        self._places, self._host = places, ""
        self._after_s = 0.0
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    async def come(self) -> None:
        """It is welcome."""
        self._task = asyncio.create_task(self._live())
        await self._until(lambda: bool(self.welcomed), COME_S)

    async def is_elsewhere(self, host: str, deadline_s: float) -> None:
        """Until it is welcome somewhere else."""
        await self._until(lambda: self.host not in ("", host), deadline_s)

    async def _until(self, condition: Callable[[], bool], deadline_s: float) -> None:
        async with asyncio.timeout(deadline_s):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def go(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._link is not None:
            self._link.send(FIN, 0, "bye", {})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._link.ended.wait(), DIAL_S)
            self._link.abort()

    @property
    def host(self) -> str:
        """Where it is; empty: nowhere."""
        return self.welcomed[-1][1] if self._link is not None and self._link.is_open else ""

    async def _live(self) -> None:
        while True:
            link = self._link = Link(self)
            with contextlib.suppress(OSError):
                self._host, port = self._places()
                async with asyncio.timeout(DIAL_S):
                    factory = functools.partial(_same, link)
                    await asyncio.get_running_loop().create_connection(factory, self._host, port)
                self.dialled.append(time.monotonic())
                link.send(HELLO, 1, self._hello)
                await link.ended.wait()  # no deadline: as long as it is served, and heartbeats end it
            await asyncio.sleep(max(AGAIN_S, self._after_s))
            self._after_s = 0.0

    def hear(self, link: Link, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == PING:
            link.send(PONG, frame[1], frame[2])
        elif kind == WELCOME:
            link.welcome = {}
            self._places.served()
            self._hello |= {"session": frame[2]["session"], "token": frame[2]["resume_token"]}
            self.welcomed.append((time.monotonic(), self._host))
            self._news.set()
        elif kind == FIN:
            details = frame[3] if len(frame) > 3 else {}
            self.told.append(frame[1])
            self._after_s = details.get("after", 0) / 1000
            if isinstance(details.get("target"), str):
                self._places.sent_to(details["target"])
            link.send(FIN_ACK)
            link.close()
        elif kind == FIN_ACK:
            link.close()

    def lost(self, link: Link) -> None:
        """It comes back."""
        self._news.set()


def _same(link: Link) -> Link:
    return link


def busiest(moments: Sequence[float], window_s: float = WINDOW_S) -> int:
    """The most of them in any window of that length."""
    ordered = sorted(moments)
    most, first = 0, 0
    for last, moment in enumerate(ordered):
        while ordered[first] <= moment - window_s:
            first += 1
        most = max(most, last - first + 1)
    return most
