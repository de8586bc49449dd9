"""What the control thread decides about each control frame, on a data plane that only notes what it is told."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgpack
import msgspec
import pytest

from core import notes, shards
from core.ban_list import FOREVER_MS, Standing, told_packed
from core.codes import Code
from core.namespace_spec import BUILT_IN, NamespaceSpec
from gateway.auth import Authenticator
from gateway.bans import Bans
from gateway.control import (
    CALL,
    ERROR,
    HELLO,
    HISTORY,
    HISTORY_LIMIT,
    HISTORY_LIMIT_MAX,
    PRESENCE,
    REFRESH,
    REPLY,
    STATE_HANDSHAKING,
    STATE_OPEN,
    WELCOME,
    Control,
    Limits,
)
from gateway.evacuation import Refusal
from tests.gateway.token_makers import SECRET, token

NOW = 1_793_491_200.0
CONN = 0x1_0000_0007
SESSION = bytes([shards.byte_of(b"user:bob"), *range(15)])  # in the shard of its user's own channel
LIMITS = Limits(node="n1", ping_ms=30_000, misses=3, max_frame=65_536, channels_max=4)


class Plane:
    """Notes every `put`."""

    def __init__(self) -> None:
        self.notes: list[dict[str, Any]] = []

    def put(self, kind: int, conn: int = 0, request: int = 0, **fields: Any) -> None:
        self.notes.append({"kind": kind, "conn": conn, "request": request, **fields})

    def take(self) -> dict[str, Any]:
        """The only note since the last time."""
        assert len(self.notes) == 1, self.notes
        return self.notes.pop()


class Bench:
    """A Control with everything around it replaced."""

    def __init__(self, limits: Limits = LIMITS, namespaces: Sequence[NamespaceSpec] = BUILT_IN) -> None:
        self.plane, self.now = Plane(), NOW
        self.auth = Authenticator(None, node_key=b"node", resume_ttl_s=60)
        self.control = Control(
            self.plane,
            self.auth,
            limits,
            clock=lambda: self.now,
            random=lambda size: bytes(range(size)),
            namespaces=namespaces,
        )

    def frame(self, *frame: Any, state: int = STATE_OPEN, user: str = "alice") -> dict[str, Any]:
        """What comes of one frame: the only note for the data plane."""
        self.control.on_frame(CONN, state, user, msgpack.packb(frame))
        note = self.plane.take()
        assert note["conn"] == CONN
        return note

    def refusal(self, *frame: Any) -> int:
        """The code of the ERROR that a frame is answered with."""
        note = self.frame(*frame)
        assert note["kind"] == notes.SEND
        kind, request, code, message, options = msgpack.unpackb(note["text"])
        assert (kind, request, options) == (ERROR, frame[1], {})
        assert message
        return int(code)

    def fin(self, *frame: Any) -> int:
        """The code of the FIN that a frame before WELCOME is answered with."""
        note = self.frame(*frame, state=STATE_HANDSHAKING, user="")
        assert note["kind"] == notes.FIN
        assert 0 < len(note["text"]) <= 500
        return int(note["first"])


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---- HELLO ----


def hello(bench: Bench, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """The OPEN note, the map of WELCOME so far, and the channels."""
    note = bench.frame(HELLO, 3, options, state=STATE_HANDSHAKING, user="")
    assert (note["kind"], note["request"]) == (notes.OPEN, 3)
    # What the data plane adds is the map of channels, and how much is unread.
    rest = msgpack.packb({}) + msgpack.packb("unread") + msgpack.packb(None)
    kind, request, told = msgpack.unpackb(note["text"] + rest)
    assert (kind, request, told.pop("unread")) == (WELCOME, 3, None)
    flags = notes.OPEN_TELLS_UNREAD | (notes.OPEN_RESUMES if told["resumed"] else 0)
    flags |= notes.OPEN_WHOLE if told["resumed"] and options.get("whole") is True else 0
    assert note["flags"] % notes.OPEN_DEVICE & ~notes.OPEN_IF_ALIVE == flags
    stored = note["extra"][len(note["extra"]) - note["second"] :]
    assert msgpack.unpackb(stored)["user"] == told["user"]
    unpacker = msgpack.Unpacker()
    unpacker.feed(note["extra"])
    return note, told, unpacker.unpack()


def test_hello_opens_a_session_with_the_users_channel(bench: Bench) -> None:
    note, told, channels = hello(bench, {"v": 1, "user": "bob", "client": "x", "unknown": 1})
    assert note["session"] == SESSION
    assert channels == [["user:bob"]]
    held = bench.auth.resumed(SESSION.hex(), told.pop("resume_token"), NOW)
    assert (held.session, held.user) == (SESSION, "bob")
    assert told == {
        "session": SESSION.hex(),
        "user": "bob",
        "node": "n1",
        "ping": 30,
        "misses": 3,
        "max_frame": 65_536,
        "resumed": False,
        "channels": {},
    }


def test_a_heartbeat_that_is_no_whole_number_of_seconds_is_told_as_a_fraction() -> None:
    limits = Limits(node="n", ping_ms=1500, misses=3, max_frame=65_536, channels_max=4)
    assert hello(Bench(limits), {})[1]["ping"] == 1.5


def test_the_resume_token_in_welcome_resumes_with_positions(bench: Bench) -> None:
    token = hello(bench, {"user": "bob"})[1]["resume_token"]
    bench.now += 59
    positions = {"group:a": [1, 5], "user:bob": [1, 2], "global:n": [1, 9]}
    note, told, channels = hello(bench, {"session": SESSION.hex(), "token": token, "resume": positions})
    assert note["session"] == SESSION
    assert (told["user"], told["resumed"]) == ("bob", True)
    # The user's own channel comes first: the data plane relies on it.
    assert channels == [["user:bob", 1, 2], ["group:a", 1, 5], ["global:n", 1, 9]]


@pytest.mark.parametrize("whole", [True, False, 1, "yes", None])
def test_that_the_positions_are_the_whole_session_is_passed_on_of_a_resume(bench: Bench, whole: object) -> None:
    token = hello(bench, {"user": "bob", "whole": whole})[1]["resume_token"]
    resume = {"session": SESSION.hex(), "token": token, "resume": {"user:bob": [1, 1]}, "whole": whole}
    note = hello(bench, resume)[0]
    assert bool(note["flags"] & notes.OPEN_WHOLE) is (whole is True)


def test_without_positions_only_the_users_channel_is_resumed(bench: Bench) -> None:
    token = hello(bench, {"user": "bob"})[1]["resume_token"]
    assert hello(bench, {"session": SESSION.hex(), "token": token})[2] == [["user:bob"]]


def test_a_fresh_session_begins_where_the_client_stands_in_the_users_own_channel(bench: Bench) -> None:
    positions = {"user:bob": [1, 4], "group:a": [1, 1], "user:eve": [1, 2], "gone:x": [1, 1], "global:n": [1, 9]}
    assert hello(bench, {"user": "bob", "resume": positions})[2] == [["user:bob", 1, 4]]
    assert hello(bench, {"user": "bob", "resume": {"group:a": [1, 1]}})[2] == [["user:bob"]]
    assert bench.fin(HELLO, 1, {"user": "bob", "resume": {"user:bob": "x"}}) == Code.BAD_FRAME


def test_with_an_old_token_the_session_has_to_be_there(bench: Bench) -> None:
    token = hello(bench, {"user": "bob"})[1]["resume_token"]
    resume = {"session": SESSION.hex(), "token": token}
    bench.now += 59
    assert not hello(bench, resume)[0]["flags"] & notes.OPEN_IF_ALIVE
    bench.now += 1
    assert hello(bench, resume)[0]["flags"] & notes.OPEN_IF_ALIVE


def test_a_resume_token_that_cannot_be_used_ends_the_connection(bench: Bench) -> None:
    token = hello(bench, {"user": "bob"})[1]["resume_token"]
    assert bench.fin(HELLO, 1, {"session": "00" * 16, "token": token}) == Code.BAD_TOKEN
    assert bench.fin(HELLO, 1, {"session": SESSION.hex(), "token": token[1:]}) == Code.BAD_TOKEN
    assert bench.fin(HELLO, 1, {"session": SESSION.hex(), "token": "AAAA" + token}) == Code.SESSION_EXPIRED
    assert bench.fin(HELLO, 1, {"session": SESSION.hex()}) == Code.BAD_TOKEN
    bench.now += 30 * 86_400
    assert bench.fin(HELLO, 1, {"session": SESSION.hex(), "token": token}) == Code.SESSION_EXPIRED


@pytest.mark.parametrize(
    "resume",
    [
        5,
        ["group:a"],
        {"group:a": 5},
        {"group:a": [1]},
        {"group:a": [1, -1]},
        {"group:a": None},
        {"nobody:a": [1, 1]},
        {5: [1, 1]},
        {"user:eve": [1, 1]},
        {f"group:{number}": [1, 1] for number in range(6)},
    ],
)
def test_a_resume_map_that_is_none_ends_the_connection(bench: Bench, resume: Any) -> None:
    token = hello(bench, {"user": "bob"})[1]["resume_token"]
    assert bench.fin(HELLO, 1, {"session": SESSION.hex(), "token": token, "resume": resume}) == Code.BAD_FRAME


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.0, True])
def test_another_version_is_told_so(bench: Bench, version: Any) -> None:
    assert bench.fin(HELLO, 1, {"v": version}) == Code.VERSION


@pytest.mark.parametrize("frame", [(HELLO, 1, 5), (HELLO, 1, {}, {}), (HELLO, -1, {}), (HELLO, "1", {}), (HELLO,)])
def test_a_hello_that_is_none_is_a_bad_frame(bench: Bench, frame: tuple[Any, ...]) -> None:
    assert bench.fin(*frame) == Code.BAD_FRAME


def test_a_user_that_is_none_is_refused(bench: Bench) -> None:
    assert bench.fin(HELLO, 1, {"user": ""}) == Code.BAD_TOKEN


# ---- namespaces ----

USER, GROUP, _ = BUILT_IN
INBOX = msgspec.structs.replace(USER, name="inbox", presence=False)
CLOSED = msgspec.structs.replace(GROUP, name="closed", join="token")
SERVED = msgspec.structs.replace(GROUP, name="served", join="server")
SPECS = (INBOX, *BUILT_IN, CLOSED, SERVED)


def test_hello_joins_the_users_channel_of_each_namespace_of_domain_session() -> None:
    bench = Bench(namespaces=SPECS)
    # `user:` comes first wherever it stands in the table: the data plane relies on it.
    assert hello(bench, {"user": "bob"})[2] == [["user:bob"], ["inbox:bob"]]
    token = hello(bench, {"user": "bob"})[1]["resume_token"]
    positions = {"group:a": [1, 5], "inbox:bob": [1, 2]}
    resumed = hello(bench, {"session": SESSION.hex(), "token": token, "resume": positions})
    assert resumed[2] == [["user:bob"], ["inbox:bob", 1, 2], ["group:a", 1, 5]]
    positions = {"inbox:eve": [1, 2]}
    assert bench.fin(HELLO, 1, {"session": SESSION.hex(), "token": token, "resume": positions}) == Code.BAD_FRAME


def test_as_many_groups_as_allowed_are_resumed_beside_the_users_own() -> None:
    bench = Bench(namespaces=SPECS)
    token = hello(bench, {"user": "bob"})[1]["resume_token"]
    positions = {f"group:{number}": [1, 1] for number in range(LIMITS.channels_max)}
    positions |= {"user:bob": [1, 1], "inbox:bob": [1, 1]}
    options = {"session": SESSION.hex(), "token": token, "resume": positions}
    assert len(hello(bench, options)[2]) == LIMITS.channels_max + 2
    positions["group:more"] = [1, 1]
    assert bench.fin(HELLO, 1, options) == Code.BAD_FRAME


@pytest.mark.parametrize(("development", "joined"), [(False, ["group:a"]), (True, ["group:a", "closed:a"])])
def test_groups_that_may_not_be_joined_are_not_resumed_either(development: bool, joined: list[str]) -> None:
    bench = Bench(dataclasses.replace(LIMITS, development=development), SPECS)
    token = hello(bench, {"user": "bob"})[1]["resume_token"]
    positions = {"group:a": [1, 1], "closed:a": [1, 1], "served:a": [1, 1]}
    resumed = hello(bench, {"session": SESSION.hex(), "token": token, "resume": positions})[2]
    assert [channel[0] for channel in resumed[2:]] == joined


def test_a_user_whose_channel_would_be_too_long_is_refused() -> None:
    bench = Bench(namespaces=SPECS)
    assert hello(bench, {"user": "u" * 249})[2][1] == ["inbox:" + "u" * 249]
    assert bench.fin(HELLO, 1, {"user": "u" * 250}) == Code.BAD_TOKEN


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ((HISTORY, 1, "inbox:eve"), Code.NOT_ALLOWED),
        ((PRESENCE, 1, "inbox:alice"), Code.NOT_ALLOWED),
        ((HISTORY, 1, "outbox:alice"), Code.NO_SUCH_CHANNEL),
        ((HISTORY, 1, "inbox"), Code.NO_SUCH_CHANNEL),
    ],
)
def test_a_namespace_says_what_may_be_asked(frame: tuple[Any, ...], code: Code) -> None:
    assert Bench(namespaces=SPECS).refusal(*frame) == code


def test_the_history_of_an_own_channel_is_asked_for() -> None:
    assert Bench(namespaces=SPECS).frame(HISTORY, 1, "inbox:alice")["text"] == b"inbox:alice"


# ---- credentials ----


def secured(**more: Any) -> Bench:
    """Not in development mode: tokens are checked."""
    bench = Bench()
    bench.auth = Authenticator(SECRET, node_key=b"node", resume_ttl_s=60, **more)
    bench.control = Control(
        bench.plane, bench.auth, LIMITS, clock=lambda: bench.now, random=lambda size: bytes(range(size))
    )
    return bench


def opened(bench: Bench, options: dict[str, Any]) -> dict[str, Any]:
    return hello(bench, options)[0]


def test_the_data_plane_is_told_of_the_end_of_the_credentials_of_rights_and_of_the_device() -> None:
    bench = secured()
    claims = {"sub": "bob", "exp": NOW + 1.5, "dev": "phone", "channels": ["group:a"], "publish": ["group:*"]}
    note = opened(bench, {"token": token(claims)})
    rights = msgpack.packb({"join": ["group:a"], "publish": ["group:*"]})
    device = notes.OPEN_DEVICE
    stored = msgpack.packb({"user": "bob", "device": "phone"})
    assert (note["third"], note["first"], note["flags"] // device) == (1500, len(rights), 1)
    assert (note["extra"], note["second"]) == (msgpack.packb([["user:bob"]]) + rights + stored, len(stored))
    plain = opened(bench, {"token": token({"sub": "bob"})})
    assert (plain["third"], plain["first"], plain["flags"] // device) == (0, 0, 0)


def test_a_resumed_session_has_the_rights_and_the_end_that_its_token_gave() -> None:
    bench = secured()
    note, welcome, _ = hello(bench, {"token": token({"sub": "bob", "exp": NOW + 50, "dev": "pad", "channels": []})})
    bench.now += 30
    again = opened(bench, {"session": SESSION.hex(), "token": welcome["resume_token"]})
    assert again["third"] == 20_000
    assert (again["first"], again["flags"] // notes.OPEN_DEVICE) == (note["first"], 1)
    assert again["extra"] == note["extra"]
    bench.now += 20
    assert bench.fin(HELLO, 1, {"session": SESSION.hex(), "token": welcome["resume_token"]}) == Code.TOKEN_EXPIRED


def refresh(bench: Bench, given: Any, request: int = 5) -> dict[str, Any]:
    bench.control.on_frame(CONN, STATE_OPEN, "bob", msgpack.packb([REFRESH, request, given]), SESSION)
    return bench.plane.take()


def test_refresh_gives_a_live_session_a_new_end_and_new_rights() -> None:
    bench = secured()
    note = refresh(bench, token({"sub": "bob", "exp": NOW + 90, "channels": ["group:b"]}))
    assert (note["kind"], note["conn"], note["third"]) == (notes.REFRESH, CONN, 90_000)
    assert note["extra"] == msgpack.packb({"join": ["group:b"]})
    kind, request, told = msgpack.unpackb(note["text"])
    assert (kind, request, told["expires"]) == (REPLY, 5, NOW + 90)
    held = bench.auth.resumed(SESSION.hex(), told["resume_token"], NOW)
    assert (held.user, held.identity.expires_s) == ("bob", NOW + 90)
    assert refresh(bench, token({"sub": "bob"}), 0)["text"] == b""
    assert "expires" not in msgpack.unpackb(refresh(bench, token({"sub": "bob"}))["text"])[2]


def test_a_refresh_that_is_refused_leaves_the_session_as_it_is() -> None:
    bench = secured()
    for given, code in (
        (token({"sub": "eve"}), Code.NOT_ALLOWED),
        (token({"sub": "bob", "exp": NOW}), Code.TOKEN_EXPIRED),
        ("token", Code.BAD_TOKEN),
        (5, Code.BAD_TOKEN),
    ):
        note = refresh(bench, given)
        assert note["kind"] == notes.SEND
        assert msgpack.unpackb(note["text"])[:3] == [ERROR, 5, code]


def test_in_development_mode_a_refresh_changes_nothing(bench: Bench) -> None:
    note = refresh(bench, "anything")
    assert (note["kind"], note["third"], note["extra"]) == (notes.REFRESH, 0, b"")


def test_a_banned_user_is_told_so_at_hello_and_at_refresh() -> None:
    bans = Bans()
    bans.take(told_packed(0, "", [Standing("bob", 0, FOREVER_MS, "spam")]), NOW, all_=True)
    bench = secured(bans=bans)
    assert bench.fin(HELLO, 1, {"token": token({"sub": "bob"})}) == Code.BANNED
    assert msgpack.unpackb(refresh(bench, token({"sub": "bob"}))["text"])[2] == Code.BANNED


def test_hellos_wait_until_it_is_known_who_is_banned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.control.HELD_BYTES_MAX", 40)
    bench = Bench()
    bench.control = Control(bench.plane, bench.auth, LIMITS, clock=lambda: NOW, holds=True)
    for conn, user in ((1, "eve"), (2, "alice")):
        bench.control.on_frame(conn, STATE_HANDSHAKING, "", msgpack.packb([HELLO, 1, {"user": user}]))
        assert bench.plane.notes == []
    bench.control.on_frame(3, STATE_HANDSHAKING, "", msgpack.packb([HELLO, 1, {"user": "one too many"}]))
    assert (bench.plane.notes[0]["conn"], bench.plane.take()["first"]) == (3, Code.OVERLOADED)
    bench.auth.bans.take(told_packed(0, "", [Standing("eve", 0, FOREVER_MS, "")]), NOW, all_=True)
    bench.control.release()
    assert [(note["conn"], note["kind"]) for note in bench.plane.notes] == [(1, notes.FIN), (2, notes.OPEN)]
    bench.plane.notes.clear()
    bench.control.release()
    bench.control.on_frame(4, STATE_HANDSHAKING, "", msgpack.packb([HELLO, 1, {"user": "bob"}]))
    assert bench.plane.take()["kind"] == notes.OPEN


# ---- requests ----


def test_history(bench: Bench) -> None:
    note = bench.frame(HISTORY, 9, "group:a", {})
    assert (note["kind"], note["request"], note["text"]) == (notes.HISTORY, 9, b"group:a")
    assert (note["flags"], note["first"]) == (0, HISTORY_LIMIT)
    note = bench.frame(HISTORY, 9, "group:a", {"since": [1, 2], "limit": 0, "reverse": True})
    assert (note["flags"], note["first"], note["second"], note["third"]) == (3, 0, 1, 2)


def test_presence(bench: Bench) -> None:
    note = bench.frame(PRESENCE, 9, "group:a")
    assert (note["kind"], note["request"], note["text"]) == (notes.PRESENCE, 9, b"group:a")


def test_why_no_presence_is_kept_says_what_can_be_done() -> None:
    bench = Bench(namespaces=SPECS)
    why = {
        channel: msgpack.unpackb(bench.frame(PRESENCE, 9, channel)["text"])[3]
        for channel in ("global:a", "inbox:alice")
    }
    assert "everybody receives a global channel: nobody's presence is kept" in why["global:a"]
    assert "it needs namespaces.inbox.presence = true" in why["inbox:alice"]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ((HELLO, 1, {}), Code.BAD_REQUEST),
        ((REFRESH, 1), Code.BAD_REQUEST),
        ((REFRESH, 1, "token", {}), Code.BAD_REQUEST),
        ((CALL, 1, "method", None), Code.BAD_REQUEST),
        ((HISTORY, 1), Code.BAD_REQUEST),
        ((HISTORY, 1, "group:a", {}, {}), Code.BAD_REQUEST),
        ((HISTORY, 1, "group:a", 5), Code.BAD_REQUEST),
        ((HISTORY, 1, 5), Code.BAD_REQUEST),
        ((HISTORY, 1, b"group:a"), Code.BAD_REQUEST),
        ((HISTORY, 1, "group:" + "a" * 250), Code.BAD_REQUEST),
        ((HISTORY, 1, "group:a", {"since": [1, True]}), Code.BAD_REQUEST),
        ((HISTORY, 1, "lobby"), Code.NO_SUCH_CHANNEL),
        ((HISTORY, 1, "group:"), Code.NO_SUCH_CHANNEL),
        ((HISTORY, 1, "room:a"), Code.NO_SUCH_CHANNEL),
        ((HISTORY, 1, "user:eve"), Code.NOT_ALLOWED),
        ((HISTORY, 1, "group:a", {"limit": HISTORY_LIMIT_MAX + 1}), Code.BAD_REQUEST),
        ((HISTORY, 1, "group:a", {"limit": -1}), Code.BAD_REQUEST),
        ((HISTORY, 1, "group:a", {"limit": 1.0}), Code.BAD_REQUEST),
        ((HISTORY, 1, "group:a", {"limit": True}), Code.BAD_REQUEST),
        ((HISTORY, 1, "group:a", {"reverse": 1}), Code.BAD_REQUEST),
        ((PRESENCE, 1, "global:x"), Code.NOT_ALLOWED),
        ((PRESENCE, 1, "user:eve"), Code.NOT_ALLOWED),
    ],
)
def test_what_cannot_be_done_is_refused_under_its_code(bench: Bench, frame: tuple[Any, ...], code: Code) -> None:
    assert bench.refusal(*frame) == code


def test_a_refused_request_with_id_0_is_not_answered(bench: Bench) -> None:
    bench.control.on_frame(CONN, STATE_OPEN, "alice", msgpack.packb([PRESENCE, 0, "nobody:x"]))
    assert bench.plane.notes == []


@pytest.mark.parametrize("request_", [-1, "1", None, 1.0, True])
def test_a_request_without_a_usable_number_is_a_bad_frame(bench: Bench, request_: Any) -> None:
    note = bench.frame(PRESENCE, request_, "group:a")
    assert (note["kind"], note["first"]) == (notes.FIN, Code.BAD_FRAME)


# ---- evacuation ----


def test_hello_is_sent_on_while_the_region_is_evacuated() -> None:
    orders: list[Refusal | None] = [Refusal(Code.MOVED, "elsewhere", 70, b"wss://us/ws\0"), None]
    plane = Plane()
    auth = Authenticator(None, node_key=b"node", resume_ttl_s=60)
    control = Control(plane, auth, LIMITS, clock=lambda: NOW, refusal=lambda: orders.pop(0))
    frame = msgpack.packb([HELLO, 3, {"user": "bob"}])
    control.on_frame(CONN, STATE_HANDSHAKING, "", frame)
    note = plane.take()
    assert (note["kind"], note["first"], note["second"]) == (notes.FIN, Code.MOVED, 70)
    assert (note["text"], note["extra"]) == (b"elsewhere", b"wss://us/ws\0")
    control.on_frame(CONN, STATE_HANDSHAKING, "", frame)
    assert plane.take()["kind"] == notes.OPEN
