"""The load process of those who do not do as they should, and of visitors who do and stay a moment.

    python -m loadtest.soak.rogues PLAN HOST PORT WS_PORT

Connections arrive at a steady rate, open loop; each is one of KINDS, over TCP or WebSocket. Each kind knows what the
gateway owes it; anything else is counted as unexpected, with its text. SIGTERM: no more arrive, those under way go to
their end, and one line of JSON is printed.
"""

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from core import stamp
from loadtest.soak.line import FIN, HELLO, JOIN, PUBLISH, WELCOME, Ended, Line
from loadtest.soak.plan import Plan
from loadtest.soak.regulars import LOUD, files_max, group

SOURCE = "127.0.0.2"
PAYLOAD_BYTES = 120
TEXTS_MAX = 64
STAY_S = 2.0
# What a deadline of the gateway's may be late by here, where both ends share the processors with all the rest.
SLACK_S = 10.0
LOOK_S = 0.5
TRICKLE_S = 0.3
RESUMED_ELSEWHERE = 605
BAD_TOKEN = 602
NONSENSE_CODES = range(600, 602)
Kind = Callable[["Rogues"], Awaitable[None]]


class Unexpected(Exception):
    """The gateway did not do what it owed."""


def owed(kept: bool, what: str) -> None:
    if not kept:
        raise Unexpected(what)


class Rogues:
    """All of them; `rng` decides everything but what the gateway does."""

    def __init__(self, plan: Plan, host: str, port: int, ws_port: int) -> None:
        self.plan, self.rng = plan, random.Random(plan.seed)
        self.done: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self.dialled = 0
        self.given_up_s: list[float] = []
        self._host, self._ports = host, (port, ws_port)
        self._visitor = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    # ---- for the kinds

    def line(self) -> Line:
        """A connection that is not dialled yet."""
        websocket = self.rng.random() < 0.5
        self.dialled += 1
        return Line(self._host, self._ports[websocket], SOURCE, self.rng, websocket=websocket)

    def user(self) -> str:
        """Somebody who was never here before."""
        self._visitor += 1
        return f"visitor-{self._visitor}"

    def group(self) -> str:
        return group(self.rng.randrange(self.plan.groups))

    def payload(self) -> bytes:
        """What the regulars' check takes for whole: visitors' messages come to them too."""
        return stamp.write(PAYLOAD_BYTES, time.time_ns(), 0, self._visitor)

    async def stay(self, most_s: float = STAY_S) -> None:
        await asyncio.sleep(self.rng.uniform(0, most_s))

    # ---- the arrivals

    async def run(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopped.set)
        names, weights = list(KINDS), [weight for _, weight in KINDS.values()]
        order = random.Random(self.plan.seed)  # of its own: who comes next does not depend on what others drew
        began = time.monotonic()
        print("arriving", flush=True)
        while not self._stopped.is_set():
            while self.dialled < (time.monotonic() - began) * self.plan.rogues and not self._stopped.is_set():
                (name,) = order.choices(names, weights)
                self._start(name)
                await asyncio.sleep(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.005):
                    await self._stopped.wait()
        arrived_s = time.monotonic() - began
        await self._finish()
        return self._result(arrived_s)

    def _start(self, name: str) -> None:
        # A kind takes its first connection at once, so that the pace counts it.
        task = asyncio.create_task(self._live(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, name: str) -> None:
        try:
            await KINDS[name][0](self)  # no deadline: each wait of a kind has its own
            self.done[name] += 1
        except (Unexpected, Ended, TimeoutError, OSError) as error:
            text = f"{name}: {type(error).__name__} {error}"[:200]
            self.unexpected[text if len(self.unexpected) < TEXTS_MAX else "other"] += 1

    async def _finish(self) -> None:
        """Those under way go to their end; whoever does not within all deadlines is unexpected."""
        most_s = self.plan.silence_s + self.plan.slow_s + self.plan.hello_timeout_s + 2 * SLACK_S
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=most_s)
            self.unexpected["never came to its end"] += len(left)

    def _result(self, arrived_s: float) -> dict[str, Any]:
        given_up = sorted(self.given_up_s)
        return {
            "dialled": self.dialled,
            "dialled_per_s": round(self.dialled / arrived_s, 1),
            "done": dict(self.done),
            "unexpected": {text: count for text, count in self.unexpected.items() if count},
            "given_up_s": {"least": given_up[0], "most": given_up[-1], "count": len(given_up)} if given_up else {},
        }


# ---- the kinds


async def visits(rogues: Rogues) -> None:
    """Comes, joins, speaks, and leaves in order."""
    with contextlib.closing(rogues.line()) as line:
        await line.dial()
        await line.hello(user=rogues.user())
        channel = rogues.group()
        await line.ask(JOIN, channel, {})
        # With a key: the router keeps it for its window.
        await line.ask(PUBLISH, channel, rogues.payload(), {"key": f"k{rogues.rng.getrandbits(64):x}"})
        await rogues.stay()
        await line.leave()


async def resumes(rogues: Rogues) -> None:
    """Leaves to come back, and resumes."""
    with contextlib.closing(rogues.line()) as line:
        await line.dial()
        welcome = await line.hello(user=rogues.user())
        await line.ask(JOIN, rogues.group(), {})
        await line.leave(1)
    await rogues.stay()
    with contextlib.closing(rogues.line()) as line:
        await line.dial()
        again = await line.hello(session=welcome["session"], token=welcome["resume_token"], resume={})
        owed(again["session"] == welcome["session"], "the session was not resumed")
        await line.leave()


async def takes_over(rogues: Rogues) -> None:
    """Resumes while its old connection is still there: that one must hear FIN `resumed_elsewhere`, and end."""
    with contextlib.closing(rogues.line()) as old, contextlib.closing(rogues.line()) as new:
        await old.dial()
        welcome = await old.hello(user=rogues.user())
        await old.ask(JOIN, rogues.group(), {})
        await new.dial()
        await new.hello(session=welcome["session"], token=welcome["resume_token"], resume={})
        fin = await old.ended(SLACK_S)
        owed(fin is not None and fin[1] == RESUMED_ELSEWHERE, f"the old connection heard {fin}")
        await new.leave()


async def resets(rogues: Rogues) -> None:
    """RST, at any point of its life."""
    line = rogues.line()
    with contextlib.closing(line):
        await line.dial()
        stage = rogues.rng.randrange(5)
        if stage == 1:
            await line.write(line.upgrade_request()[: rogues.rng.randrange(1, 100)] or b"\0")
        elif stage >= 2:
            await line.upgrade()
            await line.say(HELLO, 1, {"v": 1, "user": rogues.user()})
        if stage >= 3:
            await line.hear(WELCOME)
            await line.ask(JOIN, rogues.group(), {})
            await rogues.stay()
        if stage == 4:
            whole = line.wire(b"\x95\x08\x05" + b"x" * 90)
            await line.write(whole[: rogues.rng.randrange(1, len(whole) - 1)])
        line.reset()


async def half_closes(rogues: Rogues) -> None:
    """Ends its direction after its last frame; the gateway must end the other one."""
    with contextlib.closing(rogues.line()) as line:
        await line.dial()
        await line.hello(user=rogues.user())
        channel = rogues.group()
        await line.ask(JOIN, channel, {})
        await line.say(PUBLISH, 9, channel, rogues.payload(), {})
        line.half_close()
        await line.ended(SLACK_S + rogues.plan.hello_timeout_s)


async def leaves_rudely(rogues: Rogues) -> None:
    """FIN, and closes without waiting for anything; or no FIN at all."""
    with contextlib.closing(rogues.line()) as line:
        await line.dial()
        await line.hello(user=rogues.user())
        await line.ask(JOIN, rogues.group(), {})
        await rogues.stay()
        if rogues.rng.random() < 0.5:
            await line.say(FIN, 0, "bye", {})


async def vanishes(rogues: Rogues) -> None:
    """A zombie: reads and answers nothing any more. It must be given up when it has been silent for too long."""
    with contextlib.closing(rogues.line()) as line:
        await line.dial()
        await line.hello(user=rogues.user())
        silent_since = time.monotonic()  # JOIN is the last that it says
        await line.ask(JOIN, rogues.group(), {})
        while line.is_established():
            waited = time.monotonic() - silent_since
            owed(waited < rogues.plan.silence_s + SLACK_S, f"a zombie is held after {waited:.0f} s")
            await asyncio.sleep(LOOK_S)
        rogues.given_up_s.append(round(time.monotonic() - silent_since, 1))
        line.reset()


async def reads_slowly(rogues: Rogues) -> None:
    """Stops reading where much is said, and reads on later: all of it, or FIN `slow_consumer`, or a reset."""
    with contextlib.closing(rogues.line()) as line:
        await line.dial(small=True)
        await line.hello(user=rogues.user())
        await line.ask(JOIN, LOUD, {})
        await rogues.stay(rogues.plan.slow_s)
        with contextlib.suppress(Ended):
            await line.ask(JOIN, rogues.group(), {})
            await line.leave()


async def trickles_hello(rogues: Rogues) -> None:
    """A slow loris: its handshake comes byte by byte. It must be ended when the time for HELLO is over."""
    with contextlib.closing(rogues.line()) as line:
        await line.dial()
        body = line.upgrade_request() or line.wire(b"\x93\x00\x01" + b"\x81\xa4user\xd9\xf0" + b"x" * 240)
        began = time.monotonic()
        with contextlib.suppress(Ended):
            for place in range(len(body)):
                await line.write(body[place : place + 1])
                await asyncio.sleep(TRICKLE_S)
                owed(time.monotonic() - began < rogues.plan.hello_timeout_s + SLACK_S, "a slow handshake is held")


async def trickles_frame(rogues: Rogues) -> None:
    """The same with a frame of an open session; gives up after a while."""
    with contextlib.closing(rogues.line()) as line:
        await line.dial()
        await line.hello(user=rogues.user())
        whole = line.wire(b"\x95\x08\x05" + b"x" * 100)
        began = time.monotonic()
        with contextlib.suppress(Ended):
            for place in range(len(whole) - 1):
                if time.monotonic() - began > rogues.plan.slow_s:
                    break
                await line.write(whole[place : place + 1])
                await asyncio.sleep(TRICKLE_S)


async def says_nonsense(rogues: Rogues) -> None:
    """A frame that is none: FIN with its code, and the end."""
    with contextlib.closing(rogues.line()) as line:
        await line.dial()
        await line.hello(user=rogues.user())
        await line.write(line.wire(rogues.rng.choice(NONSENSE)))
        fin = await line.ended(SLACK_S)
        owed(fin is not None and fin[1] in NONSENSE_CODES, f"nonsense was answered with {fin}")


async def says_noise(rogues: Rogues) -> None:
    """Bytes of another protocol in place of a handshake."""
    with contextlib.closing(rogues.line()) as line:
        await line.dial()
        await line.write(rogues.rng.choice(NOISE))
        await line.ended(rogues.plan.hello_timeout_s + SLACK_S)


async def says_nothing(rogues: Rogues) -> None:
    """Never says HELLO."""
    with contextlib.closing(rogues.line()) as line:
        await line.dial()
        if rogues.rng.random() < 0.5:
            await line.upgrade()
        await line.ended(rogues.plan.hello_timeout_s + SLACK_S)


async def forges(rogues: Rogues) -> None:
    """Resumes a session with a token that is none."""
    with contextlib.closing(rogues.line()) as line:
        await line.dial()
        await line.upgrade()
        await line.say(HELLO, 1, {"v": 1, "session": "00" * 16, "token": "forged"})
        fin = await line.ended(SLACK_S)
        owed(fin is not None and fin[1] == BAD_TOKEN, f"a forged token was answered with {fin}")


NONSENSE = (
    b"\xc1",
    b"\x93\xa1x\x01\x02",
    b"\x90",
    b"\x92\x63\x01",
    b"\x91\xff",
    b"nonsense",
    b"",
    b"\xdd\xff\xff\xff\xff",
)
NOISE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\xff" * 64,
    b"\x00\x00\x00\x01\xc1",
)
# Each with its share of a hundred arrivals; some take two connections.
KINDS: dict[str, tuple[Kind, int]] = {
    "visits": (visits, 28),
    "resumes": (resumes, 13),
    "takes_over": (takes_over, 4),
    "resets": (resets, 22),
    "half_closes": (half_closes, 8),
    "leaves_rudely": (leaves_rudely, 6),
    "vanishes": (vanishes, 4),
    "reads_slowly": (reads_slowly, 1),
    "trickles_hello": (trickles_hello, 2),
    "trickles_frame": (trickles_frame, 2),
    "says_nonsense": (says_nonsense, 5),
    "says_noise": (says_noise, 2),
    "says_nothing": (says_nothing, 1),
    "forges": (forges, 2),
}


def main(arguments: list[str]) -> int:
    plan_text, host, port, ws_port = arguments
    files_max()
    result = uvloop.run(_main(Plan.from_json(plan_text), host, int(port), int(ws_port)))
    print(json.dumps(result), flush=True)
    return 0


async def _main(plan: Plan, host: str, port: int, ws_port: int) -> dict[str, Any]:
    return await Rogues(plan, host, port, ws_port).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
