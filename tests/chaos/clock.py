"""The wall clock of a node's processes, which a test steps back, and the proof that each of them shows it.

The processes read it through a few lines of C (wall_clock.c). Whether that works is not taken for granted: the router
says the time of what it sequences, the supervisor that of its log lines, and workers admit whose token has not expired.
"""

import asyncio
import json
import re
import struct
import subprocess
import time
import urllib.request
from datetime import datetime
from pathlib import Path

import jwt

from tests.conftest import Node
from tests.process.clients import WELCOME, TcpClient, run, unique

SOURCE = Path(__file__).with_name("wall_clock.c")
COMPILE_S = 60.0
HTTP_S = 30.0
LEAST_S = 60
"""Of a step. What is said below is true to half of it: it takes a while to ask, on a busy machine."""
SLACK_S = LEAST_S / 2
NEWCOMERS = 6
"""Who of the workers takes one in, nobody knows."""
CHILD_ENDED = re.compile(r"^(\S+Z) .*\bchild_ended child=router\b", re.MULTILINE)


class Clock:
    """One for the processes that are started with `settings`.

    Attributes:
        back_s: how far it was stepped back in all.

    """

    def __init__(self, folder: Path, secret: str) -> None:
        self.back_s = 0
        self._secret = secret
        self._shift, library = folder / "wall-clock-shift", folder / "wall_clock.so"
        self._shift.write_bytes(struct.pack("=q", 0))
        command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", str(SOURCE), "-o", str(library)]
        subprocess.run(command, check=True, timeout=COMPILE_S)
        self.settings = {
            "LD_PRELOAD": str(library),
            "WALL_CLOCK_SHIFT": str(self._shift),
            "HOLDFAST_AUTH_SECRET": secret,
        }

    def step_back(self, node: Node, seconds: int) -> None:
        """By at least LEAST_S; the router and the workers that are there show it at once."""
        assert seconds >= LEAST_S
        # Over by the clock as it stands, and valid for half a minute by that which comes.
        token = self._token(time.time() - self.back_s - SLACK_S)
        assert self._admitted(node, token) == 0, "a token is valid that has expired: the clock was back before"
        assert not self.complaint(of_router(node)), (
            f"before the step the router shows {self.complaint(of_router(node))}"
        )
        self.back_s += seconds
        with self._shift.open("r+b") as file:
            file.write(struct.pack("=q", -self.back_s))
        assert not (found := self.complaint(of_router(node))), f"the router's clock did not step: {found}"
        admitted = self._admitted(node, token)
        assert admitted == NEWCOMERS, f"the workers' clocks did not step: they admit {admitted} of {NEWCOMERS}"

    def complaint(self, shown_s: float) -> str:
        """What is wrong with a wall clock that shows this now."""
        ahead_s = shown_s - (time.time() - self.back_s)
        return "" if abs(ahead_s) < SLACK_S else f"it is {ahead_s:,.1f} s ahead of where it was stepped to"

    def _token(self, expires_s: float) -> str:
        return jwt.encode({"sub": "newcomer", "exp": int(expires_s)}, self._secret, algorithm="HS256")

    @staticmethod
    def _admitted(node: Node, token: str) -> int:
        """How many that come with this token are welcome."""
        found: list[bool] = []

        async def come() -> None:
            client = await TcpClient.dial(node.port)
            await client.send(0, 1, {"v": 1, "token": token})
            frame = await client.receive()
            found.append(frame[0] == WELCOME)
            await client.close() if found[-1] else await client.abort()

        async def all_come() -> None:
            await asyncio.gather(*(come() for _ in range(NEWCOMERS)))

        run(all_come())
        return sum(found)


def of_router(node: Node) -> float:
    """The wall clock of the router: when it says that something was published just now."""
    channel = f"group:{unique('clock')}"
    body = json.dumps({"channel": channel, "data": 1}).encode()
    request = urllib.request.Request(f"{node.admin_url}/api/publish", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=HTTP_S) as answer:
        assert answer.status == 200
    return _seconds(json.loads(node.get(f"/api/channels/{channel}")[1])["history"]["oldest"]["time"])


def of_supervisor(node: Node) -> float:
    """The wall clock of the supervisor when it last said that a router had ended."""
    said = CHILD_ENDED.findall(node.log.read_text(errors="replace"))
    assert said, f"no router ended\n{node.log_tail()}"
    return _seconds(said[-1])


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
