"""What the protocol page says a stream of bytes has to be answered with, written from the page alone.

A slow reading side of its own: it shares no code with the gateway. `Model.feed` takes every byte that a client sends
and keeps what must come back. Where the page leaves a choice, the model allows each of them and turns `loose`: from
there on any answer of the page's tables is right, but an answer there must be.
"""

import base64
import hashlib
import json
import math
import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

MAX_FRAME = 65_536
DEPTH_MAX = 64
ENVELOPE_BYTES = 1_024
UINT64_MAX = 2**64 - 1
HELLO, PING, PONG, JOIN, LEAVE, PUBLISH, ACK, HISTORY, PRESENCE, FIN, FIN_ACK, REFRESH, CALL = (
    0, 4, 5, 6, 7, 8, 10, 11, 12, 14, 15, 16, 17,
)  # fmt: skip
OVERLOADED, UNAVAILABLE = 2, 5
NOT_ALLOWED, NO_SUCH_CHANNEL, NOT_JOINED, TOO_LARGE, BAD_REQUEST = 400, 401, 402, 405, 406
BAD_FRAME, FRAME_TOO_LARGE, BAD_TOKEN, VERSION = 600, 601, 602, 606
SESSION_EXPIRED = 201
REPLY = "reply"
WELCOME, FIN_ACKED, ECHO = "welcome", "fin_ack", "echo"
WS_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

Outcome = int | str


class NotAValue(Exception):
    """The bytes are not exactly one value."""


class Unclear(Exception):
    """Whether the bytes are a value is a question that the page does not answer."""


@dataclass(frozen=True)
class Text:
    """A MessagePack str that is not UTF-8."""

    raw: bytes


@dataclass(frozen=True)
class Extension:
    kind: int
    data: bytes


class Unpacker:
    """MessagePack after its specification, by recursion."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.unclear = False

    def whole(self) -> Any:
        value = self.value(1)
        if self.at != len(self.data):
            raise NotAValue("bytes are left over")
        return value

    def take(self, size: int) -> bytes:
        if len(self.data) - self.at < size:
            raise NotAValue("cut off")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(">" + form, self.take(struct.calcsize(form)))[0]

    def value(self, depth: int) -> Any:
        lead = self.take(1)[0]
        if lead < 0x80 or lead >= 0xE0:
            return lead if lead < 0x80 else lead - 256
        if lead < 0x90:
            return self.pairs(lead & 15, depth)
        if lead < 0xA0:
            return self.items(lead & 15, depth)
        if lead < 0xC0:
            return self.text(lead & 31)
        return self.longer(lead, depth)

    def longer(self, lead: int, depth: int) -> Any:
        if lead == 0xC1:
            raise NotAValue("0xc1")
        if lead in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[lead]
        if lead <= 0xC6:
            return self.take(self.number("BHI"[lead - 0xC4]))
        if lead <= 0xC9:
            size = self.number("BHI"[lead - 0xC7])
            return Extension(self.number("b"), self.take(size))
        if lead <= 0xD3:
            return self.number("fdBHIQbhiq"[lead - 0xCA])
        if lead <= 0xD8:
            return Extension(self.number("b"), self.take(1 << (lead - 0xD4)))
        if lead <= 0xDB:
            return self.text(self.number("BHI"[lead - 0xD9]))
        size = self.number("HIHI"[lead - 0xDC])
        return self.items(size, depth) if lead <= 0xDD else self.pairs(size, depth)

    def text(self, size: int) -> str | Text:
        raw = self.take(size)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.unclear = True
            return Text(raw)

    def nest(self, count: int, depth: int) -> None:
        if count > len(self.data) - self.at:
            raise NotAValue("announces more than there is")
        # Whether the frame's own array counts, and the map of its options, is not said.
        if depth > DEPTH_MAX + 3:
            raise NotAValue("too deep")
        self.unclear = self.unclear or depth > DEPTH_MAX - 1

    def items(self, count: int, depth: int) -> list[Any]:
        self.nest(count, depth)
        return [self.value(depth + 1) for _ in range(count)]

    def pairs(self, count: int, depth: int) -> dict[Any, Any]:
        self.nest(count, depth)
        found: dict[Any, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if type(key) is not str and type(key) is not int:
                self.unclear = True
                key = repr(key)
            found[key] = self.value(depth + 1)
        return found


def unpack(data: bytes) -> tuple[Any, bool]:
    """The one value in `data`, and whether the page leaves open that it is one.

    Raises:
        NotAValue: it is not.

    """
    unpacker = Unpacker(data)
    return unpacker.whole(), unpacker.unclear


def unjson(data: bytes) -> tuple[Any, bool]:
    """As `unpack`, of a text."""
    unclear = [False]

    def refuse(_: str) -> None:
        raise NotAValue("no number of JSON")

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        unclear[0] = unclear[0] or (len(found) == 1 and found[0][0] in ("$bin", "$ext"))
        return dict(found)

    def number(text: str) -> float:
        # Whether 6.0 may stand for the integer 6, and what is beyond a double, is not said.
        unclear[0] = unclear[0] or float(text).is_integer() or not math.isfinite(float(text))
        return float(text)

    def integer(text: str) -> int | float:
        if len(text) > 20 or not -(2**63) <= int(text) <= UINT64_MAX:
            return number(text)
        unclear[0] = unclear[0] or text == "-0"
        return int(text)

    try:
        value = json.loads(
            data.decode(),
            parse_constant=refuse,
            parse_float=number,
            parse_int=integer,
            object_pairs_hook=pairs,
        )
    except (ValueError, RecursionError, OverflowError) as error:
        raise NotAValue("not JSON") from error
    if re.search(rb"\\u[dD][89abcdefABCDEF]", data):
        unclear[0] = True
    depth = depth_of(value)
    if depth > DEPTH_MAX + 3:
        raise NotAValue("too deep")
    return value, unclear[0] or depth > DEPTH_MAX - 1


def depth_of(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (list, dict))]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def is_uint(value: Any) -> bool:
    return type(value) is int and 0 <= value <= UINT64_MAX


def is_position(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_uint, value))


def packed_size(value: Any) -> int:
    """A lower bound of the bytes that `value` has in MessagePack."""
    if isinstance(value, (str, Text)):
        return len(value.encode() if isinstance(value, str) else value.raw) + 1
    return len(value) + 1 if isinstance(value, bytes) else 1


@dataclass
class Model:
    """One connection, seen from what it sends.

    Attributes:
        answers: what must come back under each request number: one set of outcomes a request.
        pongs, ws_pongs: PINGs of either kind to be echoed.
        end: how the connection must end; empty while it must stay.
        loose: the page left a choice on the way.
        waits: HELLO was sent, and its answer is not known yet.

    """

    websocket: bool
    user: str = ""
    stage: str = "frames"
    opened: bool = False
    waits: bool = False
    text: bool | None = None
    buffer: bytearray = field(default_factory=bytearray)
    message: bytearray | None = None
    message_text: bool = False
    answers: list[tuple[int, frozenset[Outcome]]] = field(default_factory=list)
    pongs: Counter[tuple[int, int]] = field(default_factory=Counter)
    ws_pongs: Counter[bytes] = field(default_factory=Counter)
    hello: frozenset[Outcome] = frozenset()
    end: frozenset[Outcome] = frozenset()
    loose: bool = False
    joined: set[str] = field(default_factory=set)
    unsettled: set[str] = field(default_factory=set)
    accept: bytes = b""
    closing: bytes = b""

    def __post_init__(self) -> None:
        if self.websocket:
            self.stage = "http"

    @property
    def partial(self) -> bool:
        """Whether the stream stands inside a frame or a message, so that no sound frame can follow."""
        return bool(self.buffer) or self.message is not None

    def feed(self, data: bytes) -> None:
        """Bytes that were sent."""
        self.buffer += data
        while not self.end and not self.loose and self.step():
            pass

    def step(self) -> bool:
        if self.stage == "http":
            return self.request()
        return self.ws_frame() if self.websocket else self.tcp_frame()

    def finish(self, *outcomes: Outcome) -> bool:
        self.end = frozenset(outcomes)
        if self.waits and not self.opened:
            # HELLO is still being judged: what it comes to may be said before what came after it is read.
            self.end |= self.hello - {WELCOME}
        return False

    # ------------------------------------------------------------------------------------------------------ transport

    def tcp_frame(self) -> bool:
        if len(self.buffer) < 4:
            return False
        size = int.from_bytes(self.buffer[:4], "big")
        if size == 0 or size > MAX_FRAME:
            return self.finish(BAD_FRAME if size == 0 else FRAME_TOO_LARGE)
        if len(self.buffer) < 4 + size:
            return False
        body = bytes(self.buffer[4 : 4 + size])
        del self.buffer[: 4 + size]
        self.body(body, False)
        return True

    def ws_frame(self) -> bool:
        if len(self.buffer) < 2:
            return False
        first, second = self.buffer[0], self.buffer[1]
        final, opcode, length = first >> 7, first & 15, second & 127
        control = opcode >= 8
        fits = opcode in (8, 9, 10) if control else opcode <= 2 and (opcode == 0) == (self.message is not None)
        if first & 0x70 or not second & 0x80 or not fits or (control and (not final or length > 125)):
            return self.finish(BAD_FRAME)
        start = 2 + {126: 2, 127: 8}.get(length, 0)
        if len(self.buffer) < start:
            return False
        size = length if start == 2 else int.from_bytes(self.buffer[2:start], "big")
        if (start == 4 and size < 126) or (start == 10 and not 0xFFFF < size < 2**63):
            return self.finish(BAD_FRAME, FRAME_TOO_LARGE)
        if not control and size + len(self.message or b"") > MAX_FRAME:
            # The mask belongs to the header: the answer may wait for it.
            return self.finish(FRAME_TOO_LARGE) if len(self.buffer) >= start + 4 else False
        if len(self.buffer) < start + 4 + size:
            return False
        mask = bytes(self.buffer[start : start + 4])
        raw = bytes(self.buffer[start + 4 : start + 4 + size])
        pad = (mask * (size // 4 + 1))[:size]
        payload = (int.from_bytes(raw, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")
        del self.buffer[: start + 4 + size]
        return self.ws_control(opcode, payload) if control else self.ws_data(opcode, bool(final), payload)

    def ws_control(self, opcode: int, payload: bytes) -> bool:
        if opcode == 9:
            self.ws_pongs[payload] += 1
        if opcode == 8:
            self.closing = payload
            sound = not payload or (len(payload) >= 2 and 1000 <= int.from_bytes(payload[:2], "big") < 5000)
            # A close frame that RFC 6455 does not allow is not in the page's table: echoed or refused.
            return self.finish(ECHO) if sound and not payload else self.finish(ECHO, BAD_FRAME)
        return True

    def ws_data(self, opcode: int, final: bool, payload: bytes) -> bool:
        if opcode:
            self.message, self.message_text = bytearray(), opcode == 1
        assert self.message is not None
        self.message += payload
        if not final:
            return True
        whole, self.message = bytes(self.message), None
        if self.message_text:
            try:
                whole.decode()
            except UnicodeDecodeError:
                return self.finish(BAD_FRAME)
        if self.text is None:
            self.text = self.message_text
        if self.text != self.message_text:
            return self.finish(BAD_FRAME)
        self.body(whole, self.message_text)
        return True

    def request(self) -> bool:
        """The opening handshake."""
        head, ended, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        if len(head) + 4 > 8192:
            # Whether it is malformed may have been seen before.
            return self.finish("http:431", "http:400")
        if re.search(rb"(?<!\r)\n|\r(?!\n|\Z)|[\0-\x08\x0b\x0c\x0e-\x1f\x7f]", head):
            return self.finish("http:400")
        if not ended:
            if self.buffer and not re.match(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]", self.buffer):
                return self.finish("http:400")
            return False
        statuses = judge_request(head)
        if statuses:
            return self.finish(*statuses)
        key = re.search(rb"(?im)^sec-websocket-key:[ \t]*(\S+)", head)
        assert key is not None
        self.accept = base64.b64encode(hashlib.sha1(key[1] + WS_GUID).digest())
        self.buffer = bytearray(rest)
        self.stage = "frames"
        return True

    # --------------------------------------------------------------------------------------------------------- frames

    def body(self, data: bytes, text: bool) -> None:
        try:
            frame, unclear = unjson(data) if text else unpack(data)
        except NotAValue:
            self.finish(BAD_FRAME)
            return
        if unclear and not self.is_bad_channel(frame):
            self.loose = True
            return
        self.frame(frame, len(data))

    @staticmethod
    def is_bad_channel(frame: Any) -> bool:
        """A request that is sound but for a channel that is not UTF-8."""
        return (
            isinstance(frame, list)
            and len(frame) == 3
            and frame[0] in (LEAVE, PRESENCE)
            and is_uint(frame[1])
            and isinstance(frame[2], Text)
        )

    def frame(self, frame: Any, size: int) -> None:
        if not isinstance(frame, list) or not frame or not is_uint(frame[0]):
            self.finish(BAD_FRAME)
        elif frame[0] == FIN:
            self.fin(frame)
        elif frame[0] == FIN_ACK:
            # Without a FIN it is nothing, but with other elements it may be no frame, and before HELLO out of turn.
            self.loose = self.loose or len(frame) > 1 or not self.opened
        elif not self.opened:
            self.before_hello(frame)
        elif frame[0] in (PING, PONG):
            if len(frame) != 3 or not is_uint(frame[1]) or not is_uint(frame[2]):
                self.finish(BAD_FRAME)
            elif frame[0] == PING:
                self.pongs[frame[1], frame[2]] += 1
        elif frame[0] == ACK:
            self.acknowledge(frame)
        elif frame[0] in (HELLO, JOIN, LEAVE, PUBLISH, HISTORY, PRESENCE, REFRESH, CALL):
            self.ask(frame, size)
        else:
            self.finish(BAD_FRAME)

    def fin(self, frame: list[Any]) -> None:
        if len(frame) < 2 or len(frame) > 4 or not is_uint(frame[1]):
            self.finish(BAD_FRAME)
        elif len(frame) == 4 and isinstance(frame[2], str) and isinstance(frame[3], dict) and self.opened:
            self.finish(FIN_ACKED)
        else:
            self.finish(FIN_ACKED, BAD_FRAME)

    def before_hello(self, frame: list[Any]) -> None:
        if self.waits or frame[0] != HELLO or len(frame) < 2 or not is_uint(frame[1]):
            # After HELLO and before its answer the frame may have been early, or just in time.
            self.loose = self.loose or self.waits
            if not self.loose:
                self.finish(BAD_FRAME)
            return
        options = frame[2] if len(frame) > 2 else {}
        self.waits = True
        if len(frame) > 3 or not isinstance(options, dict):
            self.finish(BAD_FRAME)
            return
        self.hello = self.hello_outcomes(options)
        self.user = options["user"] if isinstance(options.get("user"), str) else ""
        if WELCOME not in self.hello:
            self.end = self.hello

    @staticmethod
    def hello_outcomes(options: dict[Any, Any]) -> frozenset[Outcome]:
        if type(options.get("v", 1)) is not int or options.get("v", 1) != 1:
            return frozenset({VERSION})
        if options.get("session") is not None:
            # Only the gateway can say what its own token is worth, and a resumption that it does not serve is refused.
            return frozenset({WELCOME, BAD_TOKEN, SESSION_EXPIRED, BAD_FRAME, BAD_REQUEST})
        user = options.get("user")
        if user is not None and (not isinstance(user, str) or not 1 <= len(user.encode()) <= 250):
            return frozenset({BAD_TOKEN})
        resume = options.get("resume")
        if resume is not None and not isinstance(resume, dict):
            return frozenset({BAD_FRAME})
        # A fresh session stands in its user's own channel alone; what else is named there is passed over.
        named = any(isinstance(name, str) and name.startswith("user:") for name in resume or ())
        return frozenset({WELCOME, BAD_FRAME} if named else {WELCOME})

    def acknowledge(self, frame: list[Any]) -> None:
        if (
            len(frame) != 2
            or not isinstance(frame[1], dict)
            or not all(isinstance(name, str) and is_uint(at) for name, at in frame[1].items())
        ):
            self.finish(BAD_FRAME)

    def ask(self, frame: list[Any], size: int) -> None:
        if len(frame) < 2 or not is_uint(frame[1]):
            self.finish(BAD_FRAME)
            return
        outcomes: set[Outcome] = {OVERLOADED, UNAVAILABLE}
        if frame[0] in (HELLO, CALL) or (frame[0] == REFRESH and len(frame) != 3):
            outcomes.add(BAD_REQUEST)
        elif frame[0] == REFRESH:
            outcomes |= {REPLY, BAD_TOKEN}
        elif frame[0] == PUBLISH:
            outcomes |= self.publish(frame, size)
        else:
            outcomes |= self.channel_request(frame)
        if frame[1]:
            self.answers.append((frame[1], frozenset(outcomes)))

    def publish(self, frame: list[Any], size: int) -> set[Outcome]:
        if not 4 <= len(frame) <= 5 or not isinstance(frame[2], str) or not isinstance([*frame, {}][4], dict):
            return {BAD_REQUEST}
        wrong = self.channel_errors(frame[2])
        key = frame[4].get("key") if len(frame) == 5 else None
        if isinstance(key, str) and len(key.encode()) > 64:
            wrong.add(TOO_LARGE)
        if packed_size(frame[3]) + ENVELOPE_BYTES > MAX_FRAME:
            wrong.add(TOO_LARGE)
        elif size + ENVELOPE_BYTES + 64 > MAX_FRAME:
            # The order in which a request's faults are looked for is not the page's business.
            return {*wrong, TOO_LARGE, REPLY, NOT_JOINED, BAD_REQUEST}
        if wrong:
            return wrong if key is None or isinstance(key, str) else {*wrong, BAD_REQUEST}
        # A key of another kind is a wrong element or an unknown option.
        choice: set[Outcome] = {REPLY, BAD_REQUEST} if key is not None and not isinstance(key, str) else {REPLY}
        if frame[2].startswith("group:") and frame[2] not in self.joined:
            return {NOT_JOINED, *choice} - (set() if frame[2] in self.unsettled else {REPLY})
        return choice

    @staticmethod
    def channel_errors(name: str) -> set[Outcome]:
        if len(name.encode()) > 255:
            return {BAD_REQUEST}
        return set() if re.match(r"(user|group|global):.", name, re.DOTALL) else {NO_SUCH_CHANNEL}

    def channel_request(self, frame: list[Any]) -> set[Outcome]:
        kind, name, options = frame[0], [*frame, None][2], frame[3] if len(frame) > 3 else {}
        most = 4 if kind in (JOIN, HISTORY) else 3
        if not 3 <= len(frame) <= most or not isinstance(name, str):
            return {BAD_REQUEST}
        if not isinstance(options, dict):
            # Of two faults either may be told.
            return {BAD_REQUEST} | self.channel_errors(name)
        wrong = self.channel_errors(name) | self.option_errors(kind, options)
        group = name.startswith("group:")
        if name.startswith("user:") and (name != f"user:{self.user}" or not self.user or kind == LEAVE):
            wrong.add(NOT_ALLOWED)
        if name.startswith("global:") and kind not in (JOIN, HISTORY):
            wrong.add(NOT_ALLOWED)
        if group and kind != JOIN and name not in self.joined:
            wrong.add(NOT_JOINED)
        if name.startswith("user:") and not self.user:
            return {*wrong, REPLY}
        if group and kind != JOIN and name in self.unsettled:
            return {*wrong, REPLY}
        if not wrong and kind in (JOIN, LEAVE):
            self.joined.discard(name)
            self.unsettled.add(name)
        if not wrong and kind == JOIN and options.get("since") is not None:
            return {REPLY, BAD_REQUEST}
        return wrong or {REPLY}

    @staticmethod
    def option_errors(kind: int, options: dict[Any, Any]) -> set[Outcome]:
        if kind not in (JOIN, HISTORY):
            return set()
        since, limit, reverse = options.get("since"), options.get("limit", 1), options.get("reverse", False)
        wrong = since is not None and not is_position(since)
        if kind == HISTORY:
            wrong = wrong or not is_uint(limit) or limit > 1000 or type(reverse) is not bool
        return {BAD_REQUEST} if wrong else set()


def judge_request(head: bytes) -> set[Outcome]:
    """The statuses that a complete request may be refused with; empty: it opens the WebSocket."""
    lines = head.split(b"\r\n")
    line = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])", lines[0])
    fields: dict[bytes, list[bytes]] = {}
    for text in lines[1:]:
        found = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)", text, re.DOTALL)
        if found is None:
            return {"http:400"}
        fields.setdefault(found[1].lower(), []).append(found[2].strip(b" \t"))
    if line is None:
        return {"http:400"}
    wrong: set[Outcome] = set()
    if line[3] + line[4] != b"11":
        wrong.add("http:505")
    if line[1] != b"GET":
        wrong.add("http:405")
    if not re.match(rb"/ws(\?|\Z)", line[2]):
        wrong.add("http:404")
    return wrong | judge_fields(fields)


def judge_fields(fields: dict[bytes, list[bytes]]) -> set[Outcome]:
    def tokens(name: bytes) -> set[bytes]:
        return {item.strip(b" \t").lower() for value in fields.get(name, []) for item in value.split(b",")}

    wrong: set[Outcome] = set()
    if any(len(fields.get(name, [])) > 1 for name in (b"sec-websocket-key", b"sec-websocket-version")):
        wrong.add("http:400")
    if len(fields.get(b"host", [])) != 1 or b"transfer-encoding" in fields:
        wrong.add("http:400")
    if any(value != b"0" for value in fields.get(b"content-length", [])):
        wrong.add("http:400")
    if fields.get(b"sec-websocket-version") != [b"13"]:
        wrong.add("http:426")
    if b"websocket" not in tokens(b"upgrade") or b"upgrade" not in tokens(b"connection"):
        wrong.add("http:426")
    keys = fields.get(b"sec-websocket-key", [])
    if not keys or not re.fullmatch(rb"[A-Za-z0-9+/]{22}==", keys[0]):
        wrong.add("http:400")
    return wrong
