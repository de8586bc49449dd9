"""One fuzzed connection: makes its inputs from a seed, sends them, and holds every answer against the model."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from core.codes import NAMES as CODE_NAMES
from tests.fuzz import grammar, mutation
from tests.fuzz.peer import DEADLINE_S, Peer
from tests.fuzz.reference import ECHO, FIN_ACKED, HELLO, JOIN, REPLY, WELCOME, Model

HELLO_TIMEOUT, OVERLOADED, SLOW_CONSUMER, UNAVAILABLE = 202, 2, 3, 5
RESUMED_ELSEWHERE = 605
HTTP_STATUSES = (400, 404, 405, 426, 431, 505)
# Another connection of the run may resume this one's session at any time.
LEGAL_FINS = frozenset({600, 601, 602, 606, 200, 201, 202, SLOW_CONSUMER, RESUMED_ELSEWHERE})
BURST_MAX = 24
BURSTS_MAX = 4
PROBE_TIME = 77_777_777


class Wrong(Exception):
    """The gateway did something that the protocol page does not allow."""


class Over(Exception):
    """The connection is at its end, as it should be."""


@dataclass
class Plan:
    """Where the gateway is, and what connections of this run share."""

    seed: int
    port: int
    ws_port: int
    # Resume tokens that the gateway gave out: (session, token).
    tokens: list[tuple[str, str]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    inputs: int = 0
    connections: int = 0


class Session:
    """A connection from its first byte to its end; `number` and the run's seed make all of it."""

    def __init__(self, plan: Plan, number: int) -> None:
        self.plan = plan
        self.source = random.Random(f"{plan.seed}/{number}")
        self.websocket = self.source.random() < 0.6
        self.text = self.websocket and self.source.random() < 0.5
        self.model = Model(self.websocket)
        self.sent: list[bytes] = []
        self.peer = Peer(self.websocket)
        self.requests = 0
        self.probes = 0

    async def run(self) -> None:
        """Raises Wrong with what was wrong."""
        running = asyncio.get_running_loop()
        port = self.plan.ws_port if self.websocket else self.plan.port
        async with asyncio.timeout(DEADLINE_S):
            await running.create_connection(lambda: self.peer, "127.0.0.1", port)
        self.plan.connections += 1
        try:
            await self.live()
        except Over:
            pass
        finally:
            self.peer.reset() if self.source.random() < 0.5 else self.peer.transport.close()
        if self.peer.fault:
            raise Wrong(self.peer.fault)

    async def live(self) -> None:
        if self.websocket:
            await self.upgrade()
        await self.greet()
        for _ in range(self.source.randrange(1, BURSTS_MAX + 1)):
            await self.burst()
        await self.leave()

    # -------------------------------------------------------------------------------------------------------- sending

    def put(self, kind: str, data: bytes) -> None:
        """Note an input that is about to be sent."""
        self.plan.inputs += 1
        self.plan.kinds[kind] += 1
        self.sent.append(data)
        self.model.feed(data)

    async def send(self, data: bytes) -> None:
        """Whole, in pieces, or byte by byte."""
        how = self.source.random()
        if how < 0.75 or len(data) > 20_000:
            await self.peer.write(data)
            return
        pieces = mutation.pieces(self.source, data)
        if how > 0.97 and len(data) < 500:
            pieces = [bytes([byte]) for byte in data]
        for piece in pieces:
            await self.peer.write(piece)
            await asyncio.sleep(0)  # lets the loop write it before the next

    async def upgrade(self) -> None:
        """The opening handshake: mutated ones, each on this connection's only chance, or a sound one."""
        draw = self.source.random()
        if draw < 0.2:
            self.put("handshake", grammar.handshake(self.source))
            if self.source.random() < 0.2:
                self.put("pipelined garbage", self.source.randbytes(self.source.randrange(1, 200)))
        elif draw < 0.22:
            self.put("random bytes", self.source.randbytes(self.source.randrange(1, 300)))
        else:
            self.put("sound handshake", mutation.HANDSHAKE)
        await self.send(b"".join(self.sent))
        if self.model.end or self.model.stage == "http":
            await self.ending()
        if not await self.peer.until(lambda: self.peer.head):
            raise Wrong(f"no answer to a sound handshake, {self.state()}")
        if self.peer.status != 101 or self.model.accept not in self.peer.head:
            raise Wrong(f"a sound handshake got {self.peer.head!r}")
        self.tally("101")
        if self.model.loose or self.model.partial:
            await self.ending()

    async def greet(self) -> None:
        """HELLO, or what is not: after it the session is open, or the connection over."""
        draw = self.source.random()
        if draw < 0.12:
            kind, data = grammar.frame_input(self.source, 1, self.websocket, self.text)
            self.put(f"before HELLO: {kind}", data)
        elif draw < 0.2:
            token = self.source.choice(self.plan.tokens) if self.plan.tokens else None
            body = grammar.hello(self.source, self.text, token)
            self.put("HELLO", grammar.framed(self.source, body, self.websocket, self.text))
        else:
            body = grammar.pack([HELLO, 1, {"v": 1, "user": "fuzz"}], self.text)
            self.put("sound HELLO", grammar.framed(self.source, body, self.websocket, self.text))
        pipelined = self.source.random() < 0.05 and not self.model.end
        if pipelined:
            self.put("before WELCOME", grammar.frame_input(self.source, 2, self.websocket, self.text)[1])
        await self.send(b"".join(self.sent[-2:] if pipelined else self.sent[-1:]))
        if self.model.end or self.model.loose or self.model.partial or not self.model.waits:
            await self.ending()
        if not await self.peer.until(lambda: self.peer.frames):
            raise Wrong(f"no answer to HELLO, {self.state()}")
        self.welcomed()

    def welcomed(self) -> None:
        answer = self.peer.frames[0]
        if answer[0] != 1:
            code = answer[1] if answer[0] == 14 else answer[2] if answer[0] == 3 else None
            if code not in self.model.hello:
                raise Wrong(f"HELLO may get {set(self.model.hello)}, got {answer!r}")
            self.tally(f"{'FIN' if answer[0] == 14 else 'ERROR'} {CODE_NAMES[code]}")
            raise Over
        if WELCOME not in self.model.hello:
            raise Wrong(f"HELLO may get {set(self.model.hello)}, got WELCOME")
        self.tally("WELCOME")
        self.model.opened, self.model.waits = True, False
        self.model.user = answer[2]["user"]
        if len(self.plan.tokens) < 50:
            self.plan.tokens.append((answer[2]["session"], answer[2]["resume_token"]))
        # What a resumed session has joined is its business.
        self.model.unsettled |= set(grammar.NAMES)

    async def burst(self) -> None:
        """Several inputs in one go, then a probe: everything must have been answered by then, or the end reached."""
        if not self.requests:
            self.ask([JOIN, self.number(), grammar.OWN_GROUP])
        batch_from = len(self.sent) - (0 if self.requests > 1 else 1)
        for _ in range(self.source.randrange(1, BURST_MAX)):
            self.put(*grammar.frame_input(self.source, self.number(), self.websocket, self.text))
            if self.model.end or self.model.loose:
                break
        whole = b"".join(self.sent[batch_from:])
        if self.source.random() < 0.06:
            await self.break_off(whole)
        if self.model.end or self.model.loose or self.model.partial:
            await self.send(whole)
            await self.ending()
        await self.send(whole + self.probe())
        await self.answered()

    def number(self) -> int:
        self.requests += 1
        return 1000 + self.requests

    def ask(self, frame: list[Any]) -> None:
        self.put("sound frame", grammar.framed(self.source, grammar.pack(frame, self.text), self.websocket, self.text))

    def probe(self) -> bytes:
        self.probes += 1
        frame = [4, self.probes, PROBE_TIME]
        return grammar.framed(self.source, grammar.pack(frame, self.text), self.websocket, self.text)

    async def break_off(self, whole: bytes) -> None:
        """Leave in the middle: RST or half-close at any byte."""
        await self.peer.write(whole[: self.source.randrange(len(whole) + 1)])
        if self.source.random() < 0.5:
            self.tally("we broke off by RST")
            raise Over
        await self.half_close()
        self.tally("we broke off by half-close")
        raise Over

    async def half_close(self) -> None:
        self.peer.transport.write_eof()
        if not await self.peer.until(lambda: self.peer.ended):
            raise Wrong(f"still open after our half-close, {self.state()}")

    # ------------------------------------------------------------------------------------------------------ verifying

    def state(self) -> str:
        return (
            f"ended={self.peer.ended!r} fault={self.peer.fault!r} status={self.peer.status} close={self.peer.close!r}"
            f" last={self.peer.frames[-3:]!r}"
        )

    def tally(self, outcome: str) -> None:
        self.plan.outcomes[outcome] += 1

    def fin(self) -> list[Any] | None:
        return next((frame for frame in self.peer.frames if frame[0] == 14), None)

    async def answered(self) -> None:
        """The probe's PONG, and an answer to each request."""
        probe = [5, self.probes, PROBE_TIME]
        expected = Counter(number for number, _ in self.model.answers)
        missing = True

        def complete() -> bool:
            nonlocal missing
            got = Counter(frame[1] for frame in self.peer.frames if frame[0] in (2, 3))
            missing = any(got[number] < count for number, count in expected.items())
            return (probe in self.peer.frames and not missing) or self.fin() is not None

        if not await self.peer.until(complete):
            raise Wrong(f"no answer within {DEADLINE_S} s (requests missing: {missing}), {self.state()}")
        fin = self.fin()
        if fin is not None:
            if fin[1] not in (SLOW_CONSUMER, RESUMED_ELSEWHERE, OVERLOADED):
                raise Wrong(f"unexpected {fin!r}")
            self.tally(f"FIN {CODE_NAMES[fin[1]]}")
            raise Over
        self.tally("answers a PING")
        self.check_answers()
        self.check_pongs()

    def check_answers(self) -> None:
        allowed: dict[int, list[frozenset[int | str]]] = {}
        for number, outcomes in self.model.answers:
            allowed.setdefault(number, []).append(outcomes)
        for frame in self.peer.frames[1:]:
            if frame[0] not in (2, 3):
                continue
            outcome: int | str = REPLY if frame[0] == 2 else frame[2]
            fitting = [outcomes for outcomes in allowed.get(frame[1], []) if outcome in outcomes]
            if not fitting:
                raise Wrong(f"got {frame!r}, allowed under its number: {allowed.get(frame[1])}")
            allowed[frame[1]].remove(min(fitting, key=len))
            self.tally("REPLY" if frame[0] == 2 else f"ERROR {CODE_NAMES[frame[2]]}")
        # What was verified stays out of the next burst's count.
        self.model.answers.clear()
        self.peer.frames[1:] = [frame for frame in self.peer.frames[1:] if frame[0] not in (2, 3, 9, 13)]

    def check_pongs(self) -> None:
        got = Counter((frame[1], frame[2]) for frame in self.peer.frames if frame[0] == 5 and frame[2] != PROBE_TIME)
        if got != self.model.pongs:
            raise Wrong(f"PONGs {got - self.model.pongs} too many, {self.model.pongs - got} missing")
        if Counter(self.peer.pongs) != self.model.ws_pongs:
            raise Wrong(f"WebSocket PONGs {self.peer.pongs!r} for {self.model.ws_pongs!r}")

    async def ending(self) -> None:
        """Nothing more can be sent: the connection must end as the model says, or as any page row says if loose."""
        if not self.model.end:
            await self.undecided()
        await self.close_first()
        if not await self.peer.until(lambda: self.peer.ended):
            raise Wrong(f"must end with {set(self.model.end)}, {self.state()}")
        self.check_end(self.model.end)
        raise Over

    async def close_first(self) -> None:
        """Once FIN was acknowledged it is the client that closes; in every other end it is the gateway."""

        def is_acknowledged() -> bool:
            return [15] in self.peer.frames and (not self.websocket or self.peer.close is not None)

        await self.peer.until(lambda: self.peer.ended or is_acknowledged())
        if is_acknowledged() and not self.peer.transport.is_closing():
            self.peer.transport.write_eof()

    async def undecided(self) -> None:
        """A frame that is not complete, or a choice of the page's: probe it when that is possible, and leave."""
        if self.model.loose and not self.model.partial:
            await self.peer.write(self.probe())
            alive = [5, self.probes, PROBE_TIME]
            await self.peer.until(lambda: alive in self.peer.frames or self.fin() or self.peer.close is not None)
            if alive in self.peer.frames:
                self.tally("answers a PING")
                raise Over
        elif self.source.random() < 0.8 and not self.peer.ended:
            await self.half_close()
        elif not await self.peer.until(lambda: self.peer.ended or self.is_welcome()):
            raise Wrong(f"no end after hello_timeout, {self.state()}")
        fin = self.fin()
        if fin is not None and fin[1] not in LEGAL_FINS:
            raise Wrong(f"no FIN for an input: {fin!r}")
        self.tally(f"FIN {CODE_NAMES[fin[1]]}" if fin else f"closed after an unfinished {self.model.stage} input")
        raise Over

    def is_welcome(self) -> bool:
        """Whether the session is open, after which no deadline ends an unfinished input but the heartbeat's."""
        return self.model.opened or any(frame[0] == 1 for frame in self.peer.frames)

    def check_end(self, allowed: frozenset[int | str]) -> None:
        if self.peer.fault:
            raise Wrong(self.peer.fault)
        fin, outcome = self.fin(), "nothing"
        status = int.from_bytes(self.peer.close[:2], "big") if self.peer.close else 0
        found: int | str = "nothing"
        if fin is not None:
            found, outcome = fin[1], f"FIN {CODE_NAMES.get(fin[1])}"
        elif [15] in self.peer.frames:
            found = outcome = FIN_ACKED
        elif self.peer.status not in (0, 101):
            found = outcome = f"http:{self.peer.status}"
        elif self.peer.close is not None and self.peer.close == self.model.closing:
            found = outcome = ECHO
        if found not in allowed and found not in (SLOW_CONSUMER, RESUMED_ELSEWHERE):
            raise Wrong(f"must end with {set(allowed)}, ended with {found!r}; {self.state()}")
        # FIN resumed_elsewhere waits for FIN_ACK, and only then for the close frame.
        if self.websocket and isinstance(found, int) and found != RESUMED_ELSEWHERE and status != 4000 + found:
            raise Wrong(f"close status {status} with {fin!r}")
        self.tally(outcome)

    async def leave(self) -> None:
        """A sound end, of each kind."""
        draw = self.source.random()
        if draw < 0.4:
            await self.peer.write(
                grammar.framed(self.source, grammar.pack([14, 0, "bye", {}], self.text), self.websocket, self.text)
            )
            self.model.end = frozenset({FIN_ACKED})
            self.peer.frames = [frame for frame in self.peer.frames if frame[0] != 15]
            await self.ending()
        if draw < 0.5:
            self.ask([14, 0, "bye", {}])
            self.put("after FIN", grammar.frame_input(self.source, 5, self.websocket, self.text)[1])
            await self.peer.write(b"".join(self.sent[-2:]))
            await self.ending()
        if draw < 0.75:
            await self.half_close()
            self.tally("we left by half-close")
        else:
            self.tally("we left by RST")
