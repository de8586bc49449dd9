"""Control frames: what the Python thread of a worker decides about HELLO, HISTORY and PRESENCE.

Frames come from the data plane in batches, well-formed MessagePack arrays with a known type; what is decided goes back
as notes. Nothing is kept per connection: what a decision needs (the user, the state) comes with the frame.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from core import notes, shards
from core.codes import Code
from core.namespace_spec import BUILT_IN, NamespaceSpec
from gateway.auth import Authenticator, AuthError
from gateway.devices import Devices
from gateway.evacuation import Refusal
from gateway.identity import Identity
from gateway.listing import DataPlane
from gateway.rights import Rights

STATE_HANDSHAKING = 1
STATE_OPEN = 2
CHANNEL_BYTES_MAX = 255
GLOBALS_MAX = 128  # core/namespaces.pxd
HISTORY_LIMIT = 100
HISTORY_LIMIT_MAX = 1000
HELD_BYTES_MAX = 16_777_216  # of HELLOs that wait for the bans
UINT64_MAX = 2**64 - 1

# What the data plane writes of WELCOME: it follows the key of its map of channels.
_DATA_PLANES = msgpack.packb(None) + msgpack.packb("unread") + msgpack.packb(None)

HELLO, WELCOME, REPLY, ERROR, HISTORY, PRESENCE, REFRESH, CALL = 0, 1, 2, 3, 11, 12, 16, 17
_SHAPES = {
    HISTORY: ("HISTORY is [11, id, channel, {since, limit, reverse}]", 3, 4),
    PRESENCE: ("PRESENCE is [12, id, channel]", 3, 3),
    REFRESH: ("REFRESH is [16, id, token]", 3, 3),
}
_LATER = {
    CALL: "CALL is not served by this version",
}


@dataclass(frozen=True)
class Limits:
    """What WELCOME tells and requests are held to."""

    node: str
    ping_ms: int
    misses: int
    max_frame: int
    channels_max: int
    development: bool = False


class RequestRefused(Exception):
    """A request that is answered by ERROR; the connection stays."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Control:
    """Decides about control frames."""

    def __init__(
        self,
        plane: DataPlane,
        auth: Authenticator,
        limits: Limits,
        *,
        clock: Callable[[], float],
        random: Callable[[int], bytes] = os.urandom,
        namespaces: Sequence[NamespaceSpec] = BUILT_IN,
        devices: Devices | None = None,
        holds: bool = False,
        refusal: Callable[[], Refusal | None] = lambda: None,
    ) -> None:
        """Set up; with `holds`, HELLOs wait for `release`, which is called once it is known who is banned.

        While `refusal` gives one, it answers HELLO.
        """
        self._plane = plane
        self._auth = auth
        self._limits = limits
        self._clock = clock
        self._random = random
        self._devices = devices or Devices()
        self._refusal = refusal
        self._held: list[tuple[int, int, list[Any]]] | None = [] if holds else None
        self._held_bytes = 0
        self._namespaces = {spec.name: spec for spec in namespaces}
        self._own = [spec.name for spec in namespaces if spec.domain == "session"]
        self._own.sort(key=lambda name: name != "user")  # the data plane tells a session's user by the first

    def on_frame(self, conn: int, state: int, user: str, body: bytes, session: bytes = b"") -> None:
        """One control frame of a connection."""
        frame = _unpacked(body)
        kind, request = frame[0], frame[1] if len(frame) > 1 else None
        if type(request) is not int or not 0 <= request <= UINT64_MAX:
            self._fin(conn, Code.BAD_FRAME, "a request starts with [type, id, …], id an integer from 0")
            return
        if kind == HELLO and state == STATE_HANDSHAKING:
            self._hello(conn, request, frame, len(body))
            return
        try:
            self._request(conn, request, user, frame, session)
        except RequestRefused as refused:
            self._error(conn, request, refused.code, str(refused))

    def _request(self, conn: int, request: int, user: str, frame: list[Any], session: bytes) -> None:
        kind = frame[0]
        if kind == HELLO:
            raise RequestRefused(Code.BAD_REQUEST, "this connection has said HELLO already")
        if kind in _LATER:
            raise RequestRefused(Code.BAD_REQUEST, _LATER[kind])
        shape, least, most = _SHAPES[kind]
        if not least <= len(frame) <= most:
            raise RequestRefused(Code.BAD_REQUEST, shape)
        if kind == REFRESH:
            self._refresh(conn, request, user, frame[2], session)
            return
        channel, spec = self._channel(frame[2])
        options = frame[3] if len(frame) > 3 else {}
        if not isinstance(options, dict):
            raise RequestRefused(Code.BAD_REQUEST, shape)
        if spec.domain == "session" and channel != f"{spec.name}:{user}":
            raise RequestRefused(Code.NOT_ALLOWED, "another user's channel can only be published to")
        if kind == HISTORY:
            self._history(conn, request, channel, options)
        elif spec.presence:
            self._plane.put(notes.PRESENCE, conn, request, text=channel.encode())
        elif spec.domain == "global":
            raise RequestRefused(Code.NOT_ALLOWED, "everybody receives a global channel: nobody's presence is kept")
        else:
            raise RequestRefused(
                Code.NOT_ALLOWED,
                f"the presence of {spec.name} channels is not kept: it needs namespaces.{spec.name}.presence = true",
            )

    def _history(self, conn: int, request: int, channel: str, options: dict[Any, Any]) -> None:
        since = _position(options.get("since"), "since")
        limit = options.get("limit", HISTORY_LIMIT)
        reverse = options.get("reverse", False)
        if type(limit) is not int or not 0 <= limit <= HISTORY_LIMIT_MAX:
            raise RequestRefused(Code.BAD_REQUEST, f"limit is an integer from 0 to {HISTORY_LIMIT_MAX}")
        if type(reverse) is not bool:
            raise RequestRefused(Code.BAD_REQUEST, "reverse is true or false")
        epoch, offset = since or (0, 0)
        self._plane.put(
            notes.HISTORY,
            conn,
            request,
            flags=(1 if reverse else 0) | (2 if since else 0),
            first=limit,
            second=epoch,
            third=offset,
            text=channel.encode(),
        )

    def _channel(self, name: object) -> tuple[str, NamespaceSpec]:
        """A channel's name, checked, and its namespace.

        Raises:
            RequestRefused: bad_request or no_such_channel.

        """
        if not isinstance(name, str) or len(name.encode()) > CHANNEL_BYTES_MAX:
            raise RequestRefused(Code.BAD_REQUEST, f"a channel is a string of at most {CHANNEL_BYTES_MAX} bytes")
        namespace, _, rest = name.partition(":")
        spec = self._namespaces.get(namespace)
        if spec is None or not rest:
            raise RequestRefused(
                Code.NO_SUCH_CHANNEL, f"a channel is <namespace>:<id>, of the namespaces {', '.join(self._namespaces)}"
            )
        return name, spec

    def _refresh(self, conn: int, request: int, user: str, token: object, session: bytes) -> None:
        """REFRESH: the session goes on under a new token of the same user."""
        now = self._clock()
        try:
            identity = self._auth.refreshed(token, user, now)
        except AuthError as error:
            raise RequestRefused(error.code, str(error)) from error
        told: dict[str, Any] = {"resume_token": self._auth.resume_token(session, identity, now)}
        if identity.expires_s is not None:
            told["expires"] = int(min(identity.expires_s, 2**53))
        self._plane.put(
            notes.REFRESH,
            conn,
            flags=notes.OPEN_DEVICE * self._devices.number(identity.device),
            third=identity.left_ms(now),
            text=msgpack.packb([REPLY, request, told]) if request else b"",
            extra=identity.rights.packed(),
        )

    # ------------------------------------------------------------------------------------------------------- HELLO

    def release(self) -> None:
        """Who is banned is known: decide about the HELLOs that came before."""
        held, self._held = self._held or [], None
        for conn, request, frame in held:
            self._hello(conn, request, frame, 0)

    def _hello(self, conn: int, request: int, frame: list[Any], size: int) -> None:
        """Answer HELLO: the data plane completes WELCOME when the router knows the session, or FIN."""
        if self._held is not None:  # not for long: the data plane's own deadline for the router's answer runs
            self._held_bytes += size
            if self._held_bytes > HELD_BYTES_MAX:
                self._fin(conn, Code.OVERLOADED, "too many sessions open at once")
            else:
                self._held.append((conn, request, frame))
            return
        refusal = self._refusal()
        if refusal is not None:
            text = refusal.why.encode()
            after_ms, targets = refusal.after_ms, refusal.targets
            self._plane.put(notes.FIN, conn, first=int(refusal.code), second=after_ms, text=text, extra=targets)
            return
        options = frame[2] if len(frame) > 2 else {}
        if len(frame) > 3 or not isinstance(options, dict):
            self._fin(conn, Code.BAD_FRAME, "HELLO is [0, id, {v, token, client, session, resume}]")
            return
        version = options.get("v", 1)
        if type(version) is not int or version != 1:
            self._fin(conn, Code.VERSION, "this gateway speaks version 1")
            return
        try:
            self._open(conn, request, options)
        except AuthError as error:
            self._fin(conn, error.code, str(error))
        except RequestRefused as refused:
            self._fin(conn, Code.BAD_FRAME, str(refused))

    def _open(self, conn: int, request: int, options: dict[Any, Any]) -> None:
        now = self._clock()
        resumes = options.get("session") is not None
        if resumes:
            held = self._auth.resumed(options["session"], options.get("token"), now)
            session, identity, if_alive = held.session, held.identity, held.if_alive
            if session[0] != shards.byte_of(f"user:{identity.user}".encode()):
                raise AuthError(Code.SESSION_EXPIRED, "the session began before sessions were spread over shards")
        else:
            identity, if_alive = self._auth.identify(options.get("token"), options.get("user"), now), False
            # In the shard of its user's own channel, whose leader keeps the sessions of the user.
            session = bytes([shards.byte_of(f"user:{identity.user}".encode())]) + self._random(15)
        lists = identity.rights.packed()
        own = self._own_channels(identity.user)
        positions = self._resume(options.get("resume"), own, identity.rights, fresh=not resumes)
        channels: list[list[Any]] = [[channel, *positions.pop(channel, ())] for channel in own]
        channels += [[channel, *position] for channel, position in positions.items()]
        stored: bytes = msgpack.packb({"user": identity.user, "device": identity.device})
        self._plane.put(
            notes.OPEN,
            conn,
            request,
            flags=notes.OPEN_TELLS_UNREAD
            | (notes.OPEN_RESUMES if resumes else 0)
            | (notes.OPEN_WHOLE if resumes and options.get("whole") is True else 0)
            | (notes.OPEN_IF_ALIVE if if_alive else 0)
            | notes.OPEN_DEVICE * self._devices.number(identity.device),
            first=len(lists),
            second=len(stored),
            third=identity.left_ms(now),
            session=session,
            text=self._welcome(request, session, identity, resumes, now),
            extra=msgpack.packb(channels) + lists + stored,
        )

    def _own_channels(self, user: str) -> list[str]:
        """The channels of a user, one of each namespace of domain session; `user:` comes first."""
        channels = [f"{name}:{user}" for name in self._own]
        if max(len(channel.encode()) for channel in channels) > CHANNEL_BYTES_MAX:
            raise AuthError(Code.BAD_TOKEN, "the user id is too long for the name of a channel of each namespace")
        return channels

    def _resume(self, resume: object, own: list[str], rights: Rights, *, fresh: bool) -> dict[str, tuple[int, int]]:
        """The positions of HELLO's resume map, checked; a group that may not be joined any more is left out.

        A fresh session stands in its user's own channels alone: what else the map names is JOINed with `since`.
        """
        if resume is None:
            return {}
        most = self._limits.channels_max + len(own)
        if not isinstance(resume, dict) or len(resume) > most + GLOBALS_MAX:
            raise RequestRefused(
                Code.BAD_REQUEST, "resume is a map of channel to [epoch, offset], one a joined channel"
            )
        positions: dict[str, tuple[int, int]] = {}
        joined = 0
        for name, value in resume.items():
            if fresh and name not in own:
                continue
            channel, spec = self._channel(name)
            position = _position(value, "resume")
            if position is None or (spec.domain == "session" and channel not in own):
                raise RequestRefused(Code.BAD_REQUEST, "resume names a channel that is not this session's")
            if spec.domain != "group" or rights.may_join(spec, channel, development=self._limits.development):
                positions[channel] = position
            joined += spec.domain != "global"
        if joined > most:
            raise RequestRefused(Code.BAD_REQUEST, f"resume names {joined} channels; a session joins at most {most}")
        return positions

    def _welcome(self, request: int, session: bytes, identity: Identity, resumed: bool, now: float) -> bytes:
        """WELCOME up to its map of channels, which only the data plane can write."""
        limits = self._limits
        told: dict[str, Any] = {
            "session": session.hex(),
            "user": identity.user,
            "resume_token": self._auth.resume_token(session, identity, now),
            "node": limits.node,
            "ping": limits.ping_ms // 1000 if limits.ping_ms % 1000 == 0 else limits.ping_ms / 1000,
            "misses": limits.misses,
            "max_frame": limits.max_frame,
            "resumed": resumed,
            "channels": None,  # here the data plane goes on
            "unread": None,
        }
        packed: bytes = msgpack.packb([WELCOME, request, told])
        return packed.removesuffix(_DATA_PLANES)

    # ----------------------------------------------------------------------------------------------------- answers

    def _error(self, conn: int, request: int, code: int, message: str) -> None:
        if request:
            self._plane.put(notes.SEND, conn, text=msgpack.packb([ERROR, request, int(code), message, {}]))

    def _fin(self, conn: int, code: int, message: str) -> None:
        self._plane.put(notes.FIN, conn, first=int(code), text=message.encode()[:500])


def _unpacked(body: bytes) -> list[Any]:
    """A frame; of one with an extension that the library takes for a broken timestamp, its type, its id and a None.

    No frame that is served here may hold an extension where it counts, so that what is left is refused as malformed.
    """
    try:
        frame: list[Any] = msgpack.unpackb(body, strict_map_key=False)
    except ValueError:
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(body)
        count = unpacker.read_array_header()
        frame = [unpacker.unpack()]
        try:
            frame += [unpacker.unpack(), None][: count - 1]
        except ValueError:
            frame.append(None)
    return frame


def _position(value: object, option: str) -> tuple[int, int] | None:
    """[epoch, offset], or None when the option is absent. A HELLO that resumes has one a channel, so no loop here."""
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2:
        epoch, offset = value
        if type(epoch) is int and type(offset) is int and 0 <= epoch <= UINT64_MAX and 0 <= offset <= UINT64_MAX:
            return epoch, offset
    raise RequestRefused(Code.BAD_REQUEST, f"{option} is [epoch, offset], both integers from 0")
