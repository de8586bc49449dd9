"""The whole client against a gateway on real sockets."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from holdfast_client import (
    Backoff,
    CloseClass,
    Closed,
    ConnectFailed,
    Event,
    FrameTooLarge,
    Message,
    Position,
    ProtocolViolation,
    RequestInterrupted,
    RequestRefused,
    RequestTimeout,
    Session,
    State,
    connect,
    new_key,
)
from holdfast_client.transport import is_acceptable_target

from tests.client.scripted_gateway import (
    ACK,
    ERROR,
    EVENT,
    FIN,
    FIN_ACK,
    HELLO,
    JOIN,
    MESSAGE,
    PING,
    PONG,
    PUBLISH,
    REFRESH,
    REPLY,
    WELCOME,
    Frame,
    Peer,
    ScriptedGateway,
)

DEADLINE_S = 30.0
QUICK = Backoff(base_s=0.01, cap_s=0.05)
WIRES = [("tcp", "msgpack"), ("ws", "msgpack"), ("ws", "json")]
wires = pytest.mark.parametrize(("transport", "encoding"), WIRES)


def run(test: Callable[[ScriptedGateway], Coroutine[Any, Any, None]]) -> None:
    """Run with a gateway, within the deadline, and leave no task behind."""

    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S):
            async with ScriptedGateway() as gateway:
                await test(gateway)
            left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("holdfast")]
            assert left == []

    asyncio.run(main())


async def take(session: Session) -> Message | Event:
    item = await session.receive()
    assert item is not None
    return item


def refuse(code: int, message: str, values: dict[str, Any] | None = None) -> Callable[[Peer, Frame], Awaitable[bool]]:
    async def handler(peer: Peer, frame: Frame) -> bool:
        await peer.send([ERROR, frame[1], code, message, values or {}])
        return True

    return handler


async def silence(peer: Peer, frame: Frame) -> bool:
    return True


@wires
def test_two_clients_talk_and_leave_cleanly(transport: str, encoding: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        url = gateway.url(transport)
        async with (
            await connect(url, user="ann", encoding=encoding) as ann,
            await connect(url, user="bob", encoding=encoding) as bob,
        ):
            assert (ann.state, ann.user, ann.id, ann.node) == (State.OPEN, "ann", "s1", "test")
            assert await ann.join("group:x") == Position(1, 0)
            await bob.join("group:x")
            data = {"text": "Grüße, 你好", "list": [1, None, True, 2.5]}
            assert await ann.publish("group:x", data) == Position(1, 1)
            for session in (ann, bob):
                assert await take(session) == Message("group:x", 1, 1, data, "ann", 1_700_000_000_000)
            assert (await bob.history("group:x", limit=5)).messages[0].data == data
            presence = await bob.presence("group:x")
            assert ([m.user for m in presence.sessions], presence.users, presence.count) == (["ann", "bob"], 2, 2)
            await ann.leave("group:x")
            assert ann.joined == frozenset()
        assert (await gateway.peer(1)).frames[-1] == [FIN, 0, "bye", {}]
        assert ann.state is State.CLOSED
        assert await ann.receive() is None

    run(test)


@wires
def test_bytes_survive_each_wire(transport: str, encoding: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        async with await connect(gateway.url(transport), encoding=encoding) as session:
            await session.join("group:x")
            await gateway.broadcast("group:x", b"\x00\xff")
            item = await take(session)
            assert isinstance(item, Message)
            assert item.data == b"\x00\xff"

    run(test)


def test_round_trip_is_measured_at_once() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        async with await connect(gateway.url("tcp")) as session:
            await session.presence("group:x")
            assert session.rtt_ms is not None
            assert 0 <= session.rtt_ms < 5000
            session.ping()
            assert (await (await gateway.peer()).expect(PING, 2))[1] == 2

    run(test)


def test_pings_of_the_gateway_are_answered() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        async with await connect(gateway.url("tcp")):
            peer = await gateway.peer()
            await peer.send([PING, 7, 123])
            assert await peer.expect(PONG) == [PONG, 7, 123]

    run(test)


@wires
def test_what_was_taken_is_acknowledged_within_a_heartbeat(transport: str, encoding: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.welcome["ping"] = 0.1
        async with await connect(gateway.url(transport), encoding=encoding) as session:
            await session.join("group:x")
            for number in range(3):
                await gateway.broadcast("group:x", number)
                await take(session)
            assert await (await gateway.peer()).expect(ACK) == [ACK, {"group:x": 3}]

    run(test)


def test_silent_gateway_is_given_up() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.welcome |= {"ping": 0.05, "misses": 2}
        gateway.script[PING] = silence
        session = await connect(gateway.url("tcp"))
        with pytest.raises(Closed, match="nothing was heard") as caught:
            await session.receive()
        assert caught.value.class_ is CloseClass.RESUME
        await session.close()

    run(test)


def test_slow_application_stops_the_reading_but_not_its_own_requests() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.welcome |= {"ping": 0.05, "misses": 2}
        session = await connect(gateway.url("tcp"), queue_messages=4)
        await session.join("group:x")
        for number in range(20):
            await gateway.broadcast("group:x", number)
        # The answer stands behind more messages than the queue takes.
        assert await session.publish("group:x", "mine") == Position(1, 21)
        # Two heartbeats of silence are not held against the gateway while we do not read.
        peer = await gateway.peer()
        await peer.expect(PING, len(peer.of(PING)) + 4)
        assert session.state is State.OPEN
        received = [await take(session) for _ in range(21)]
        assert [item.data for item in received if isinstance(item, Message)] == [*range(20), "mine"]
        await session.close()

    run(test)


def test_refusal_carries_the_gateways_words() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.script[PUBLISH] = refuse(403, "rate_limited", {"retry_after": 250})
        async with await connect(gateway.url("ws")) as session:
            with pytest.raises(RequestRefused, match="403: rate_limited; try again in 250 ms") as caught:
                await session.publish("group:x", 1)
            assert (caught.value.code, caught.value.retry_after_ms) == (403, 250)

    run(test)


def test_request_without_answer_ends_at_its_deadline() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.script[PUBLISH] = silence
        async with await connect(gateway.url("ws")) as session:
            with pytest.raises(RequestTimeout):
                await session.publish("group:x", 1, timeout_s=0.05)

    run(test)


def test_too_long_frame_is_refused_before_it_is_sent() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.welcome["max_frame"] = 1000
        async with await connect(gateway.url("tcp")) as session:
            with pytest.raises(FrameTooLarge, match="at most 1000"):
                await session.publish("group:x", "x" * 1000)
            assert (await gateway.peer()).of(PUBLISH) == []

    run(test)


def test_nobody_listening_is_said_clearly() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        url = gateway.url("tcp")
        await gateway.stop()
        with pytest.raises(ConnectFailed, match=url):
            await connect(url)
        with pytest.raises(ConnectFailed, match=r"not open within 0\.1 s; the last attempt closed without a code"):
            await connect(url, reconnect=True, backoff=QUICK, open_timeout_s=0.1)

    run(test)


@pytest.mark.parametrize("url", ["http://x:1", "x:7400", "tcp://"])
def test_wrong_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="no address of a gateway"):
        asyncio.run(connect(url))


def test_json_over_tcp_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON travels over WebSocket"):
        asyncio.run(connect("tcp://127.0.0.1:1", encoding="json"))


@wires
def test_server_fin_is_confirmed_and_raised(transport: str, encoding: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        session = await connect(gateway.url(transport), encoding=encoding, reconnect=True)
        peer = await gateway.peer()
        await peer.send([FIN, 604, "kicked", {"class": "stop", "after": 5, "target": "tcp://elsewhere:1"}])
        with pytest.raises(Closed, match="604: kicked") as caught:
            await session.receive()
        closed = caught.value
        assert (closed.code, closed.class_, closed.after_ms, closed.target) == (604, "stop", 5, "tcp://elsewhere:1")
        assert await peer.expect(FIN_ACK) == [FIN_ACK]
        with pytest.raises(Closed):
            await session.publish("group:x", 1)
        await session.close()

    run(test)


@pytest.mark.parametrize("body", ["[99]", "{}", "[", "[9,1,1,1]", '[1,1,{"session":"again","user":"x"}]'])
def test_what_is_no_frame_ends_the_session(body: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        session = await connect(gateway.url("ws"), encoding="json", reconnect=True)
        await (await gateway.peer()).send_raw(body)
        with pytest.raises(ProtocolViolation):
            await session.receive()
        await session.close()

    run(test)


def test_resume_continues_where_it_was() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        async def resume(peer: Peer, frame: Frame) -> bool:
            if "session" not in frame[2]:
                return False
            peer.channels.add("group:x")
            values = {"session": "s1", "user": "ann", "resume_token": "t2", "resumed": True}
            channels = {"group:x": [1, 3, "replayed"], "user:ann": [1, 0, "live"]}
            await peer.send([WELCOME, frame[1], values | {"channels": channels}])
            for missed in gateway.log["group:x"]:
                await peer.send(missed)
            return True

        gateway.script[HELLO] = resume
        async with await connect(gateway.url("tcp"), user="ann", reconnect=True, backoff=QUICK) as session:
            await session.join("group:x")
            await gateway.broadcast("group:x", "one")
            assert isinstance(await take(session), Message)
            (await gateway.peer()).drop()
            await gateway.broadcast("group:x", "two")
            await gateway.broadcast("group:x", "three")
            hello = await (await gateway.peer(2)).expect(HELLO)
            assert hello[2]["resume"] == {"group:x": [1, 1], "user:ann": [1, 0]}
            assert (hello[2]["session"], hello[2]["token"]) == ("s1", "resume-s1")
            items = [await take(session), await take(session)]
            assert [item.data for item in items if isinstance(item, Message)] == ["two", "three"]
            assert (session.dropped_count, session.reconnect_count, session.id) == (1, 1, "s1")

    run(test)


def test_refused_resume_starts_afresh_and_says_what_was_reset() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        async def hello(peer: Peer, frame: Frame) -> bool:
            return "session" in frame[2] and await refuse(406, "bad_request: not in this version")(peer, frame)

        async def join(peer: Peer, frame: Frame) -> bool:
            return "since" in frame[3] and await refuse(406, "bad_request: since")(peer, frame)

        gateway.script |= {HELLO: hello, JOIN: join}
        async with await connect(gateway.url("tcp"), user="ann", reconnect=True, backoff=QUICK) as session:
            await session.join("group:x")
            await gateway.broadcast("group:x", "one")
            await take(session)
            (await gateway.peer()).drop()
            await gateway.broadcast("group:x", "missed")
            assert await take(session) == Event("group:x", "reset", {"epoch": 1, "offset": 2, "held": [1, 1]})
            await gateway.broadcast("group:x", "three")
            item = await take(session)
            assert isinstance(item, Message)
            assert (item.data, item.position) == ("three", Position(1, 3))
            assert session.state is State.OPEN

    run(test)


def test_keyed_publish_survives_a_reconnect_and_an_unkeyed_one_says_that_it_did_not() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        async def lose_the_answer(peer: Peer, frame: Frame) -> bool:
            if peer is gateway.peers[0]:
                if len(peer.of(PUBLISH)) == 1:
                    peer.drop()
                return True
            return False

        async with await connect(gateway.url("tcp"), reconnect=True, backoff=QUICK) as session:
            await session.join("group:x")
            gateway.script[PUBLISH] = lose_the_answer
            outcomes = await asyncio.gather(
                session.publish("group:x", "unkeyed"),
                session.publish("group:x", "keyed", new_key()),
                return_exceptions=True,
            )
            assert isinstance(outcomes[0], RequestInterrupted)
            assert outcomes[1] == Position(1, 1)

    run(test)


def test_token_is_asked_for_again_before_a_fresh_start() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        given: list[str] = []

        async def token() -> str:
            given.append(f"token-{len(given) + 1}")
            return given[-1]

        async with await connect(gateway.url("tcp"), token=token, reconnect=True, backoff=QUICK) as session:
            await (await gateway.peer()).send([FIN, 200, "token_expired", {"class": "fresh", "after": 1}])
            hello = await (await gateway.peer(2)).expect(HELLO)
            assert (hello[2]["token"], "session" in hello[2]) == ("token-2", False)
            details = {"epoch": None, "offset": None, "held": [1, 0]}
            assert await take(session) == Event("user:token-1", "reset", details)
            assert session.user == "token-2"

    run(test)


def test_a_resume_that_is_refused_for_its_token_goes_on_afresh_with_the_clients_own() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        async def hello(peer: Peer, frame: Frame) -> bool:
            if "session" not in frame[2]:
                return False
            await peer.send([FIN, 201, "session_expired", {"class": "fresh", "after": 1}])
            return True

        gateway.script[HELLO] = hello
        async with await connect(gateway.url("tcp"), token="my own", reconnect=True, backoff=QUICK):
            (await gateway.peer()).drop()
            resumes = (await (await gateway.peer(2)).expect(HELLO))[2]
            again = (await (await gateway.peer(3)).expect(HELLO))[2]
            assert (resumes["session"], resumes["token"] == "my own") == ("s1", False)
            assert ("session" in again, again["token"]) == (False, "my own")

    run(test)


async def refreshed(peer: Peer, frame: Frame) -> bool:
    await peer.send([REPLY, frame[1], {"expires": 1_793_494_800, "resume_token": f"of-{frame[2]}"}])
    return True


def test_a_token_that_is_about_to_end_is_refreshed_and_what_resumes_is_the_new_one() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        given: list[str] = []

        async def token() -> str:
            given.append(f"token-{len(given) + 1}")
            return given[-1]

        gateway.script[REFRESH] = refreshed
        async with await connect(gateway.url("tcp"), token=token, reconnect=True, backoff=QUICK) as session:
            peer = await gateway.peer()
            await peer.send([EVENT, "user:token-1", "expired", {"after": 30_000}])
            assert await take(session) == Event("user:token-1", "expired", {"after": 30_000})
            assert (await peer.expect(REFRESH))[2] == "token-2"
            assert await session.refresh("token-3") == 1_793_494_800
            peer.drop()
            assert (await (await gateway.peer(2)).expect(HELLO))[2]["token"] == "of-token-3"

    run(test)


def test_a_refresh_that_comes_to_nothing_leaves_the_session_to_its_end() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        asked = asyncio.Event()

        async def token() -> str:
            if asked.is_set():
                raise RuntimeError("the issuer is away")
            asked.set()
            return "token-1"

        gateway.script[REFRESH] = refuse(602, "bad_token")
        async with await connect(gateway.url("tcp"), token=token) as session:
            await (await gateway.peer()).send([EVENT, "user:token-1", "expired", {"after": 1}])
            await take(session)
            with pytest.raises(RequestRefused, match="bad_token"):
                await session.refresh("token-2")
            assert session.state is State.OPEN
            assert (await (await gateway.peer()).expect(REFRESH))[2] == "token-2"

    run(test)


def test_close_status_says_as_much_as_a_fin() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        session = await connect(gateway.url("ws"), reconnect=True)
        close_with = (await gateway.peer()).close_with
        assert close_with is not None
        await close_with(4603, "banned")
        with pytest.raises(Closed, match="603: banned") as caught:
            await session.receive()
        assert caught.value.class_ is CloseClass.STOP
        await session.close()

    run(test)


def test_target_is_followed_and_each_outage_starts_its_own_back_off() -> None:
    @dataclass(frozen=True)
    class Recorded(Backoff):
        attempts: list[int] = field(default_factory=list)

        def delay_s(self, attempt: int, source: random.Random) -> float:
            self.attempts.append(attempt)
            return 0.0

    async def test(gateway: ScriptedGateway) -> None:
        backoff = Recorded()
        async with (
            ScriptedGateway() as other,
            await connect(gateway.url("tcp"), reconnect=True, backoff=backoff) as session,
        ):
            await (await gateway.peer()).send([FIN, 7, "moved", {"target": other.url("tcp")}])
            elsewhere = await other.peer()
            await elsewhere.expect(PING)
            assert session.reconnect_count == 1
            elsewhere.drop()
            # The next one starts from the address that was given.
            await (await gateway.peer(2)).expect(PING)
            assert backoff.attempts == [0, 0]

    run(test)


@pytest.mark.parametrize(
    ("target", "url", "expected"),
    [
        (None, "ws://a/ws", False),
        ("ws://b:1/ws", "ws://a/ws", True),
        ("wss://b/ws", "ws://a/ws", True),
        ("ws://b/ws", "wss://a/ws", False),
        ("tcp://b", "tls://a", False),
        ("b:7400", "tcp://a", False),
    ],
)
def test_target_never_leads_out_of_encryption(target: str | None, url: str, expected: bool) -> None:
    assert is_acceptable_target(target, url) is expected


def test_close_while_coming_back_is_quick() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        session = await connect(gateway.url("tcp"), reconnect=True, backoff=Backoff(base_s=1e6, cap_s=1e6))
        await gateway.stop()
        while str(session.state) != "reconnecting":  # noqa: ASYNC110 - it has no event; the test has a deadline
            await asyncio.sleep(0)
        async with asyncio.timeout(1):
            await session.close()
        assert str(session.state) == "closed"

    run(test)


def test_gateway_that_never_confirms_does_not_hold_a_close(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        monkeypatch.setattr("holdfast_client.protocol.FIN_TIMEOUT_S", 0.05)
        gateway.script[FIN] = silence
        session = await connect(gateway.url("tcp"))
        async with asyncio.timeout(2):
            await session.close()
        assert session.closed is not None
        assert "did not confirm" in session.closed.reason

    run(test)


def test_messages_before_the_answer_to_join_count() -> None:
    async def test(gateway: ScriptedGateway) -> None:
        async def join(peer: Peer, frame: Frame) -> bool:
            await peer.send([MESSAGE, "group:x", 6, "early", {"epoch": 1}])
            await peer.send([REPLY, frame[1], {"epoch": 1, "offset": 7, "outcome": "live"}])
            await peer.send([MESSAGE, "group:x", 7, "late", {"epoch": 1}])
            return True

        gateway.script[JOIN] = join
        async with await connect(gateway.url("tcp")) as session:
            await session.join("group:x")
            assert [getattr(await take(session), "data", None) for _ in range(2)] == ["early", "late"]

    run(test)


@wires
def test_a_suspended_session_goes_on_in_another_process_where_the_application_was(
    transport: str, encoding: str
) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        first = await connect(gateway.url(transport), user="ann", encoding=encoding)
        await first.join("group:x")
        for text in ("a", "b", "c"):
            await first.publish("group:x", text)
        assert [(await take(first)).data for _ in range(2)] == ["a", "b"]  # type: ignore[union-attr]
        state = await first.suspend()
        assert state is not None
        assert first.state is State.CLOSED
        assert FIN not in [frame[0] for frame in gateway.peers[0].frames]
        hellos: list[Frame] = []

        async def resume(peer: Peer, frame: Frame) -> bool:
            hellos.append(frame)
            welcome = {"session": frame[2]["session"], "user": "ann", "resume_token": "r2", "resumed": True}
            await peer.send([WELCOME, frame[1], welcome | {"channels": {"group:x": [1, 3, "replayed"]}}])
            await peer.send(gateway.log["group:x"][2])
            return True

        gateway.script[HELLO] = resume
        second = await connect(gateway.url(transport), user="ann", encoding=encoding, state=state)
        assert second.id == state.session
        assert hellos[0][2]["token"] == state.resume_token
        assert hellos[0][2]["resume"]["group:x"] == [1, 2]
        assert (await take(second)).data == "c"  # type: ignore[union-attr]
        await second.close()

    run(test)
