"""The worker's side of the registry, over a scripted data plane."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from core import listing, notes
from core.codes import Code
from gateway import listing as gateway_listing
from gateway.devices import NUMBERS_MAX, OTHER, Devices
from gateway.listing import Listing, packed_address, shown_address

EPOCH = 1_764_139_200
RECORD: dict[str, Any] = {
    "conn": 7 << 32 | 5,
    "was": 2,
    "user": "alice",
    "session": bytes(range(16)),
    "address": packed_address("10.1.2.3"),
    "port": 4711,
    "websocket": True,
    "json": True,
    "encoded": True,
    "tls": True,
    "created": 100,
    "heard": 205,
    "sent": 210,
    "rtt_ms": 12,
    "lost_heartbeats": 1,
    "queued_bytes": 3,
    "memberships": 4,
    "requests": 2,
    "state": 2,
    "reason": 0,
    "device": 1,
}


def record(**changed: Any) -> bytes:
    packed: bytes = msgpack.packb([{**RECORD, **changed}[name] for name in listing.FIELDS])
    return packed


class Plane:
    """Answers each LIST with the next of its turns; keeps what it was asked."""

    def __init__(self, *turns: tuple[int, bytes]) -> None:
        self.members = 0
        self.turns = list(turns)
        self.put_: list[tuple[int, int, dict[str, Any]]] = []
        self.listing: Listing | None = None
        self.asked = asyncio.Event()

    def put(self, kind: int, conn: int = 0, request: int = 0, **fields: Any) -> None:
        assert conn == 0
        self.asked.set()
        self.put_.append((kind, request, {"first": 0, "second": 0, "text": b"", "extra": b"", **fields}))

    def flush(self) -> None:
        if self.turns:
            assert self.listing is not None
            self.listing.on_listed(self.put_[-1][1], *self.turns.pop(0), self.members)


def made(*turns: tuple[int, bytes]) -> tuple[Listing, Plane]:
    plane = Plane(*turns)
    devices = Devices()
    devices.number("phone")
    plane.listing = Listing(plane, worker=3, epoch=EPOCH, wall_offset_s=1000.0, devices=devices)
    return plane.listing, plane


Run = Callable[..., Any]


def test_a_record_is_told_in_words(run_in_loop: Run) -> None:
    one, _ = made((listing.END, record()))
    answer = run_in_loop(one.connections())
    assert answer == {
        "connections": [
            {
                "id": f"3-{EPOCH}-7-5",
                "worker": "worker-3",
                "user": "alice",
                "device": "phone",
                "session": "000102030405060708090a0b0c0d0e0f",
                "state": "open",
                "was": "open",
                "reason": None,
                "address": "10.1.2.3",
                "port": 4711,
                "transport": "websocket",
                "encoding": "json",
                "tls": True,
                "created": "1970-01-01T00:16:50.000Z",
                "last_heard": "1970-01-01T00:17:00.500Z",
                "last_sent": "1970-01-01T00:17:01.000Z",
                "rtt_ms": 12,
                "lost_heartbeats": 1,
                "queued_bytes": 3,
                "memberships": 4,
                "requests": 2,
            }
        ],
        "more": False,
    }


def test_what_is_not_known_yet_is_null(run_in_loop: Run) -> None:
    unknown = {"user": None, "session": None, "port": 0, "encoded": False, "rtt_ms": None, "websocket": False}
    one, _ = made((listing.END, record(**unknown, state=0, was=0)))
    [found] = run_in_loop(one.connections())["connections"]
    for name in ("user", "session", "address", "port", "encoding", "rtt_ms", "reason"):
        assert found[name] is None
    assert found["transport"] == "tcp"


def test_it_goes_on_turn_after_turn_until_the_end(run_in_loop: Run) -> None:
    one, plane = made((4096, record()), (8192, b""), (listing.END, record() + record()))
    answer = run_in_loop(one.connections(limit=50, after=f"3-{EPOCH}-1-6", user="alice", older_s=2, idle_s=0.35))
    assert (len(answer["connections"]), answer["more"]) == (3, False)
    conditions = {"user": "alice", "older": 20, "idle": 3}
    asked = [(7, 50), (4096, 49), (8192, 49)]
    expected = [listing.query(slot=slot, limit=limit, **conditions) for slot, limit in asked]  # type: ignore[arg-type]
    assert [(kind, named["text"]) for kind, _, named in plane.put_] == [(notes.LIST, text) for text in expected]
    numbers = [number for _, number, _ in plane.put_]
    assert len(set(numbers)) == 3


@pytest.mark.parametrize(("epoch", "slot"), [(EPOCH - 1, 0), (EPOCH, 7)])
def test_it_goes_on_behind_one_of_this_start_or_an_earlier(run_in_loop: Run, epoch: int, slot: int) -> None:
    one, plane = made((listing.END, b""))
    run_in_loop(one.connections(after=f"3-{epoch}-1-6"))
    assert plane.put_[0][2]["text"] == listing.query(slot=slot, limit=gateway_listing.LIMIT_MAX)


@pytest.mark.parametrize("after", [f"3-{EPOCH + 1}-1-6", f"3-{EPOCH}-1-ffffffff"])
def test_nothing_of_ours_is_behind_one_of_a_later_start_or_the_last_slot(run_in_loop: Run, after: str) -> None:
    one, plane = made()
    assert run_in_loop(one.connections(after=after)) == {"connections": [], "more": False}
    assert plane.put_ == []


def test_it_stops_at_the_limit_and_says_that_there_is_more(run_in_loop: Run) -> None:
    one, _ = made((9, record() + record()))
    assert run_in_loop(one.connections(limit=2))["more"] is True


def test_filters_become_a_query(run_in_loop: Run) -> None:
    one, plane = made((listing.END, b""))
    run_in_loop(
        one.connections(
            limit=9, states=["open", "closing"], session="ab" * 16, address="::1", queued_bytes=5, older_s=10**12
        )
    )
    assert plane.put_[0][2]["text"] == listing.query(
        limit=9, states=0b1100, session=b"\xab" * 16, address=bytes(15) + b"\1", queued_bytes=5, older=2**32 - 1
    )


def test_members_of_a_channel_are_asked_for_and_counted(run_in_loop: Run) -> None:
    one, plane = made((listing.END, record()))
    plane.members = 17
    answer = run_in_loop(one.connections(channel="group:a", limit=9))
    assert (len(answer["connections"]), answer["members"]) == (1, 17)
    assert plane.put_[0][2]["text"] == listing.query(limit=9, channel="group:a")


@pytest.mark.parametrize(("name", "number"), [("phone", 1), ("", 0), (OTHER, NUMBERS_MAX)])
def test_a_class_of_devices_is_asked_for_by_its_number(run_in_loop: Run, name: str, number: int) -> None:
    one, plane = made((listing.END, b""))
    run_in_loop(one.connections(device=name, limit=9))
    assert plane.put_[0][2]["text"] == listing.query(limit=9, device=number)


def test_a_class_of_devices_that_nobody_named_has_none(run_in_loop: Run) -> None:
    one, plane = made()
    assert run_in_loop(one.connections(device="fridge", channel="group:a"))["connections"] == []
    assert plane.put_ == []


@pytest.mark.parametrize("id_", [f"2-{EPOCH}-7-5", f"3-{EPOCH + 1}-7-5", f"3-{EPOCH}-0-0", "nonsense"])
def test_an_id_of_another_worker_or_another_start_finds_nothing(run_in_loop: Run, id_: str) -> None:
    one, plane = made()
    assert run_in_loop(one.connections(id=id_)) == {"connections": [], "more": False}
    assert plane.put_ == []


def test_an_id_asks_for_that_one(run_in_loop: Run) -> None:
    one, plane = made((listing.END, record()))
    assert len(run_in_loop(one.connections(id=f"3-{EPOCH}-7-5"))["connections"]) == 1
    assert plane.put_[0][2]["text"] == listing.query(conn=RECORD["conn"], limit=gateway_listing.LIMIT_MAX)


def test_reclaim_says_how_and_passes_over_those_that_end_already(run_in_loop: Run) -> None:
    one, plane = made((listing.END, record(state=3, reason=int(Code.KICKED))))
    answer = run_in_loop(one.reclaim(code=604, reason="r" * 600, after_ms=70, user="alice", limit=5))
    [found] = answer["connections"]
    assert (found["was"], found["state"], found["reason"]) == ("open", "closing", "kicked")
    kind, _, named = plane.put_[0]
    assert (kind, named["first"], named["second"], named["extra"]) == (notes.RECLAIM, 604, 70, b"r" * 500)
    assert named["text"] == listing.query(limit=5, states=0b111, user="alice")


def test_a_long_reason_is_cut_between_two_characters(run_in_loop: Run) -> None:
    one, plane = made((listing.END, record(state=3)))
    run_in_loop(one.reclaim(code=604, reason="维护" * 100, after_ms=0, user="alice"))
    assert plane.put_[0][2]["extra"].decode() == "维护" * 83


def test_an_answer_that_nobody_waits_for_is_passed_over() -> None:
    one, _ = made()
    one.on_listed(77, listing.END, b"", 0)


def test_a_data_plane_that_does_not_answer_is_not_waited_for_for_ever(
    run_in_loop: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_listing, "ANSWER_DEADLINE_S", 0.05)
    one, plane = made()
    with pytest.raises(TimeoutError):
        run_in_loop(one.connections())
    assert one.waiting == 0
    one.on_listed(plane.put_[0][1], listing.END, b"", 0)  # late


class LatePlane(Plane):
    """Answers in the loop's next turn, and refuses to be asked before that."""

    asked_now = False

    def flush(self) -> None:
        assert not self.asked_now, "one turn has a part of one listing"
        self.asked_now = True
        asyncio.get_running_loop().call_soon(self.answer)

    def answer(self) -> None:
        self.asked_now = False
        super().flush()


def test_listings_take_turns(run_in_loop: Run) -> None:
    plane = LatePlane(*[(5, record(device=0))] * 6, *[(listing.END, record(device=0))] * 3)
    plane.listing = one = Listing(plane, worker=3, epoch=EPOCH, wall_offset_s=0.0)

    async def all_at_once() -> list[Any]:
        answers: list[Any] = await asyncio.gather(*(one.connections(user=user) for user in "abc"))
        return answers

    assert sum(len(answer["connections"]) for answer in run_in_loop(all_at_once())) == 9
    assert [named["text"][72:] for _, _, named in plane.put_[:6]] == [b"a", b"b", b"c"] * 2


def test_whoever_gives_up_leaves_nothing_behind(run_in_loop: Run) -> None:
    one, plane = made()

    async def given_up() -> None:
        asking = asyncio.create_task(one.connections())
        await plane.asked.wait()
        asking.cancel()
        await asyncio.wait({asking}, timeout=5)
        assert asking.cancelled()

    run_in_loop(given_up())
    assert one.waiting == 0


@pytest.mark.parametrize("address", ["10.1.2.3", "::1", "2001:db8::7"])
def test_addresses_read_back(address: str) -> None:
    assert shown_address(packed_address(address)) == address


def test_an_ipv4_address_mapped_into_ipv6_is_the_same() -> None:
    assert packed_address("::ffff:10.1.2.3") == packed_address("10.1.2.3")
