"""What the recovery server answers: who may ask, what is told page by page, and how much and how often."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgpack
import pytest

from core.ban_list import Standing
from core.namespace_spec import BUILT_IN
from gateway.auth import Authenticator
from gateway.errors import RequestError
from gateway.identity import Identity
from gateway.recovery import JSON, MSGPACK, USERS_MAX, Buckets, Recovery, RouterBans, create_app
from gateway.recovery_config import RecoverySection
from gateway.rights import Rights
from router.client import ChannelState, Missed, StoredSession
from tests.gateway.token_makers import SECRET, token

NOW_S = 1_793_491_200.0
SESSION = b"s" * 16
ID = SESSION.hex()
Position = tuple[int, int]


def frame(channel: str, offset: int, data: Any, epoch: int = 7) -> tuple[int, bytes]:
    return offset, msgpack.packb([9, channel, offset, data, {"from": "bob", "time": 1, "epoch": epoch}])


class Link:
    """A router with some sessions and histories."""

    def __init__(self) -> None:
        self.stored: dict[bytes, StoredSession] = {}
        self.histories: dict[str, list[tuple[int, bytes]]] = {}
        self.kept_from: dict[str, int] = {}
        self.banned: dict[str, Standing] = {}
        self.cursor: Position | None = (0, 0)
        self.stores = True
        self.failure: RequestError | None = None
        self.stands_still = False
        self.asked: list[tuple[list[tuple[str, Position]], int]] = []

    async def sessions(self, ids: Sequence[bytes]) -> list[StoredSession | None] | None:
        if self.failure is not None:
            raise self.failure
        if self.stands_still:
            await asyncio.Event().wait()
        return [self.stored.get(one) for one in ids] if self.stores else None

    async def channels(self, names: Sequence[str]) -> list[ChannelState]:
        return [ChannelState(self._end(name), self.cursor) for name in names]

    def _end(self, name: str) -> Position:
        return (7, len(self.histories.get(name, [])))

    async def missed(self, asked: Sequence[tuple[str, Position]], bytes_max: int) -> list[Missed]:
        self.asked.append((list(asked), bytes_max))
        return [self._missed(name, since, bytes_max) for name, since in asked]

    def _missed(self, name: str, since: Position, bytes_max: int) -> Missed:
        end, kept = self._end(name), self.kept_from.get(name, 1)
        if since[1] > end[1]:
            return Missed("reset", end, None, [], since)
        left = [one for one in self.histories.get(name, []) if one[0] > since[1] and one[0] >= kept]
        gap = (since[1] + 1, kept - 1, "trimmed") if since[1] + 1 < kept else None
        taken: list[tuple[int, bytes]] = []
        size = 0
        for one in left if bytes_max else []:
            size += len(one[1])
            if taken and size > bytes_max:
                break
            taken.append(one)
        last = (7, taken[-1][0]) if taken else since
        return Missed("gap" if gap else "replayed" if left else "live", end, gap, taken, last)

    def bans(self) -> Mapping[str, Standing]:
        return self.banned


class Http:
    """Asks the application, each time in a loop of its own."""

    def __init__(self, recovery: Recovery) -> None:
        self._transport = httpx.ASGITransport(app=create_app(recovery))

    def options(self, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(self._once("OPTIONS", path, options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(self._once("GET", path, options))

    def post(self, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(self._once("POST", path, options))

    async def _once(self, method: str, path: str, options: dict[str, Any]) -> httpx.Response:
        async with httpx.AsyncClient(transport=self._transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **options)


class Desk:
    """The application over a link, on a clock that a test moves."""

    def __init__(self, limits: RecoverySection, secret: str | None = SECRET) -> None:
        self.now_s = NOW_S
        self.link = Link()
        self.auth = Authenticator(
            secret, node_key=b"k" * 32, resume_ttl_s=3600, bans=RouterBans(lambda: self.link.bans())
        )
        self.recovery = Recovery(
            limits, self.auth, self.link, BUILT_IN, development=secret is None, clock=lambda: self.now_s
        )
        self.http = Http(self.recovery)
        self.link.stored[SESSION] = StoredSession(2, {"group:a": (7, 1), "user:alice": (7, 0)}, "alice")
        self.link.histories["group:a"] = [frame("group:a", offset, f"said {offset}") for offset in range(1, 6)]
        self.identity = Identity("alice")

    def resume_token(self) -> str:
        return self.auth.resume_token(SESSION, self.identity, self.now_s)

    def state(self, given: str | None = None, session: str = ID) -> tuple[int, Any]:
        answer = self.http.get(f"/recover?session={session}", headers=self._headers(given))
        return answer.status_code, answer.json()

    def missed(self, given: str | None = None, **body: Any) -> tuple[int, Any]:
        answer = self.http.post("/recover", json={"session": ID} | body, headers=self._headers(given))
        return answer.status_code, answer.json()

    def page(self, **body: Any) -> dict[str, Any]:
        status, told = self.missed(**body)
        assert status == 200, told
        return dict(told)

    def _headers(self, given: str | None) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.resume_token() if given is None else given}"}


@pytest.fixture
def desk() -> Desk:
    return Desk(RecoverySection(user_rate=1, user_burst=1000))


def offsets(page: dict[str, Any], channel: str = "group:a") -> list[int]:
    return [message[2] for message in page["channels"][channel]["messages"]]


def test_the_state_of_a_session_is_told(desk: Desk) -> None:
    channels = {"group:a": [7, 1], "user:alice": [7, 0]}
    assert desk.state() == (200, {"session": ID, "user": "alice", "channels": channels, "whole": True})


def test_the_users_own_channel_stands_at_the_cursor_where_the_session_has_none(desk: Desk) -> None:
    desk.link.stored[SESSION] = StoredSession(1, {"group:a": (7, 1)}, "alice")
    desk.link.cursor = (7, 4)
    assert desk.state()[1]["channels"]["user:alice"] == [7, 4]


def test_what_was_missed_comes_in_order_with_its_outcome(desk: Desk) -> None:
    told = desk.page()
    assert told["channels"]["user:alice"] == {
        "outcome": "live", "position": [7, 0], "messages": [], "next": [7, 0], "more": False,
    }  # fmt: skip
    one = told["channels"]["group:a"]
    assert (one["outcome"], one["position"], one["next"], one["more"]) == ("replayed", [7, 5], [7, 5], False)
    assert one["messages"][0] == [9, "group:a", 2, "said 2", {"from": "bob", "time": 1, "epoch": 7}]
    assert (offsets(told), told["more"]) == ([2, 3, 4, 5], False)
    assert offsets(desk.page(positions={"group:a": [7, 4]})) == [5]


def test_a_gap_is_told_before_what_is_left_and_a_position_without_history_is_a_reset(desk: Desk) -> None:
    desk.link.kept_from["group:a"] = 4
    one = desk.page()["channels"]["group:a"]
    assert (one["outcome"], one["gap"]) == ("gap", {"from": 2, "to": 3, "reason": "trimmed"})
    assert [message[2] for message in one["messages"]] == [4, 5]
    reset = desk.page(positions={"group:a": [9, 99]})["channels"]["group:a"]
    assert (reset["outcome"], reset["next"], reset["messages"], reset["more"]) == ("reset", [7, 5], [], False)


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_page_by_page_all_of_it_is_told_once(desk: Desk, limit: int) -> None:
    desk.link.histories["user:alice"] = [frame("user:alice", offset, offset) for offset in range(1, 4)]
    seen: list[tuple[str, int]] = []
    positions: dict[str, Any] = {}
    for _ in range(20):
        told = desk.page(positions=positions, limit=limit)
        news = [(name, m[2]) for name, one in told["channels"].items() for m in one["messages"]]
        assert len(news) <= limit
        seen += news
        positions = {name: one["next"] for name, one in told["channels"].items()}
        if not told["more"]:
            break
    assert seen == [("group:a", n) for n in (2, 3, 4, 5)] + [("user:alice", n) for n in (1, 2, 3)]


def test_a_page_is_bounded_by_bytes_and_has_one_message_at_least() -> None:
    desk = Desk(RecoverySection(page_bytes_max=1024))
    desk.link.histories["group:a"] = [frame("group:a", offset, "x" * 2000) for offset in range(1, 6)]
    told = desk.page()
    assert (offsets(told), told["more"]) == ([2], True)
    assert desk.link.asked[-1] == ([("group:a", (7, 1))], 1024)


def test_the_configured_page_is_the_most_that_can_be_asked_for() -> None:
    desk = Desk(RecoverySection(page_messages_max=2))
    assert offsets(desk.page(limit=1000)) == [2, 3]


def test_messagepack_by_accept_and_as_a_body(desk: Desk) -> None:
    desk.link.histories["group:a"][1] = frame("group:a", 2, b"\x00\xff")
    headers = {"Authorization": f"Bearer {desk.resume_token()}", "Accept": MSGPACK, "Content-Type": MSGPACK}
    answer = desk.http.post("/recover", content=msgpack.packb({"session": ID}), headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, MSGPACK)
    assert msgpack.unpackb(answer.content)["channels"]["group:a"]["messages"][0][3] == b"\x00\xff"
    assert desk.page()["channels"]["group:a"]["messages"][0][3] == {"$bin": "AP8="}
    assert answer.headers["cache-control"] == "no-store"
    refused = desk.http.get("/recover?session=x", headers={"Accept": MSGPACK})
    assert msgpack.unpackb(refused.content)["code"] == "bad_token"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (f"{MSGPACK};q=0, {JSON}", JSON),
        (f"{MSGPACK} ; Q = 0.000", JSON),
        (f"{MSGPACK};q=0.1", MSGPACK),
        (f"{JSON};q=0,{MSGPACK}", MSGPACK),
        ("text/html, */*;q=0.8", JSON),
    ],
)
def test_the_first_type_that_is_wanted_and_known_is_given(desk: Desk, accept: str, kind: str) -> None:
    headers = {"Authorization": f"Bearer {desk.resume_token()}", "Accept": accept}
    assert desk.http.get(f"/recover?session={ID}", headers=headers).headers["content-type"] == kind


def test_a_token_of_the_user_serves_as_well_but_no_other_users(desk: Desk) -> None:
    # The clock of JWTs is checked by the authenticator with the one of this desk.
    assert desk.state(token({"sub": "alice"}))[0] == 200
    status, told = desk.state(token({"sub": "eve"}))
    assert (status, told["code"]) == (404, "session_expired")
    assert desk.state(session="0" * 32)[0] == 401  # the resume token is another session's


def test_a_page_of_another_origin_may_ask(desk: Desk) -> None:
    page = {"Origin": "https://chat.example"}
    for method, header in (("GET", "authorization"), ("POST", "authorization, content-type")):
        asks = page | {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": header}
        answer = desk.http.options("/recover", headers=asks)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert method in answer.headers["access-control-allow-methods"]
        allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
        assert set(header.split(", ")) <= set(allowed)
    for given in (desk.resume_token(), "nonsense"):
        answer = desk.http.get(f"/recover?session={ID}", headers=page | {"Authorization": f"Bearer {given}"})
        assert answer.headers["access-control-allow-origin"] == "*", "refusals are read as well"
        assert "retry-after" in answer.headers["access-control-expose-headers"].lower()
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("given", ["", "nonsense", "a.b.c", "AAAA"])
def test_without_a_good_token_nothing_is_told(desk: Desk, given: str) -> None:
    status, told = desk.state(given)
    assert status == 401
    assert told["code"] in ("bad_token", "session_expired")
    assert "channels" not in told
    answer = desk.http.get(f"/recover?session={ID}")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_in_development_mode_only_the_resume_token_says_who_somebody_is() -> None:
    desk = Desk(RecoverySection(), secret=None)
    assert desk.state()[0] == 200
    assert desk.state(token({"sub": "alice"}))[0] == 401


def test_a_session_that_is_over_is_told_of_to_nobody(desk: Desk) -> None:
    desk.link.stored.clear()
    assert (desk.state()[0], desk.missed()[0]) == (404, 404)


def test_a_ban_kills_both_tokens_and_for_good_the_resume_token(desk: Desk) -> None:
    before, now_ms = desk.resume_token(), int(NOW_S * 1000)
    desk.link.banned["alice"] = Standing("alice", now_ms, now_ms + 1000, "spam")
    for given in (before, token({"sub": "alice"})):
        status, told = desk.state(given)
        assert (status, told["code"], told["message"]) == (403, "banned", "spam")
    desk.now_s += 2
    assert desk.state(before)[1]["code"] == "session_expired"
    assert desk.state(token({"sub": "alice"}))[0] == 200


def test_only_the_sessions_own_channels_are_told_of_and_those_its_token_lists(desk: Desk) -> None:
    desk.link.histories["group:secret"] = [frame("group:secret", 1, "secret")]
    told = desk.page(positions={"group:secret": [7, 0], "user:eve": [7, 0]})
    assert told["channels"]["group:secret"] == told["channels"]["user:eve"] == {"code": "not_joined"}
    assert offsets(told) == [2, 3, 4, 5]
    desk.identity = Identity("alice", "", Rights.of(["group:b*"], None))
    told = desk.page()
    assert told["channels"]["group:a"] == {"code": "not_allowed"}
    assert "secret" not in str(told)


def test_what_is_asked_badly_is_refused(desk: Desk) -> None:
    assert desk.state(token({"sub": "alice"}), session="x")[0] == 400
    assert desk.state(token({"sub": "alice"}), session=f"{ID[:2]}+{ID[2:]}")[0] == 400
    for body in ({"positions": {"group:a": [7]}}, {"positions": {"group:a": [7, -1]}}, {"limit": 0}, {"other": 1}):
        assert desk.missed(**body)[0] == 400, body
    headers = {"Authorization": f"Bearer {desk.resume_token()}"}
    assert desk.http.post("/recover", content=b"{}", headers=headers).status_code == 415
    assert desk.http.get(f"/recover?session={ID}&limit=1", headers=headers).status_code == 400
    assert desk.http.get("/healthz").status_code == 200


def test_a_user_who_asks_too_often_is_told_when_to_come_back() -> None:
    desk = Desk(RecoverySection(user_rate=1, user_burst=3))
    assert [desk.state()[0] for _ in range(4)] == [200, 200, 200, 429]
    answer = desk.http.get(f"/recover?session={ID}", headers={"Authorization": f"Bearer {desk.resume_token()}"})
    assert answer.headers["retry-after"] == "1"
    desk.now_s += 1
    assert [desk.state()[0] for _ in range(2)] == [200, 429]


def test_answers_are_counted_by_their_codes() -> None:
    desk = Desk(RecoverySection(user_rate=1, user_burst=2))
    assert [desk.state()[0], desk.missed()[0], desk.state()[0], desk.state("x")[0]] == [200, 200, 429, 401]
    assert desk.recovery.answers == {"ok": 2, "rate_limited": 1, "bad_token": 1}


def test_the_memory_of_buckets_is_bounded() -> None:
    buckets = Buckets(1, 1)
    for number in range(USERS_MAX + 1):
        assert buckets.take(f"user-{number}", 0.0) == 0
    assert buckets.take(f"user-{USERS_MAX}", 0.0) > 0
    assert buckets.take("user-0", 0.0) == 0  # forgotten


def test_routers_that_are_away_or_silent_are_said_to_be_unavailable() -> None:
    desk = Desk(RecoverySection(timeout_ms=100))
    desk.link.failure = RequestError(503, "unavailable", "away", 1)
    assert desk.state() == (503, {"code": "unavailable", "message": "away"})
    desk.link.failure, desk.link.stands_still = None, True
    assert desk.state()[1]["code"] == "unavailable"
    desk.link.stands_still, desk.link.stores = False, False
    assert desk.state()[0] == 501


def test_requests_beyond_the_bound_are_refused_at_once() -> None:
    async def body() -> None:
        desk = Desk(RecoverySection(requests_max=2))
        desk.link.stands_still = True
        given = desk.resume_token()
        asking = [asyncio.ensure_future(desk.recovery.state(ID, given)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as refused:
            await desk.recovery.state(ID, given)
        assert (refused.value.status, refused.value.code) == (503, "overloaded")
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        desk.link.stands_still = False
        assert (await desk.recovery.state(ID, given))["user"] == "alice"

    asyncio.run(body())
