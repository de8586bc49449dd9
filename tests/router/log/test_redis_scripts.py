"""The scripts, one by one, inside a real server."""

from typing import Any

import pytest
import redis

from router.log.redis_scripts import ALL, APPEND, CLAIMS, CURSOR, FENCE, LOAD, NEWEST, OPEN, SESSION, TRIM, Script
from tests.servers.redis import Server

KEPT, EXPIRE_MS, WINDOW_MS = 10, 100_000, 50_000


class Scripts:
    """A shard, spoken to through its scripts."""

    def __init__(self, server: Server, prefix: str) -> None:
        self._server = server
        self.state, self.keys, self.tail, self.list, self.channel = (f"{prefix}{name}" for name in "ektlc")

    def do(self, script: Script, keys: list[str], *args: Any) -> Any:
        return self._server.do("EVAL", script.text, len(keys), *keys, *args)

    def append(
        self, epoch: int, batch: int, *ids: str, expire: int | str = EXPIRE_MS, force: int = 0, **more: str
    ) -> Any:
        records = [part for one in ids for part in (one, more.get("value", "v"))]
        tails = more.get("key", ""), more.get("tail", "")
        settings = (f"{epoch:020}", batch, WINDOW_MS, WINDOW_MS, 1000, *tails, KEPT, expire, len(ids))
        channel = more.get("channel", self.channel)
        return self.do(APPEND, [self.state, self.keys, self.tail, self.list, channel], *settings, *records, force)

    def load(self, messages: int = 1000, size: int = 10**6, head: int = 0) -> list[bytes]:
        return list(self.do(LOAD, [self.channel], messages, size, head))

    def ids(self) -> list[str]:
        return [entry[0].decode() for entry in self._server.do("XRANGE", self.channel, "-", "+")]


@pytest.fixture
def scripts(redis_server: Server, prefix: str) -> Scripts:
    return Scripts(redis_server, prefix)


def test_a_batch_is_there_as_a_whole(scripts: Scripts, redis_server: Server) -> None:
    assert scripts.append(5, 1, "5-1", "5-2", key="some", tail="other") == 1
    assert scripts.ids() == ["5-1", "5-2"]
    assert EXPIRE_MS - 20_000 < redis_server.do("PTTL", scripts.channel) <= EXPIRE_MS
    for name, blob in ((scripts.keys, b"some"), (scripts.tail, b"other")):
        [[_, fields]] = redis_server.do("XRANGE", name, "-", "+")
        assert list(fields.values() if isinstance(fields, dict) else fields)[-1] == blob
        assert 0 < redis_server.do("PTTL", name) <= WINDOW_MS


def test_a_batch_may_leave_the_time_at_which_a_channel_is_forgotten(scripts: Scripts, redis_server: Server) -> None:
    scripts.append(5, 1, "5-1")
    redis_server.do("PEXPIRE", scripts.channel, 10 * EXPIRE_MS)
    scripts.append(5, 2, "5-2", expire=0)
    assert redis_server.do("PTTL", scripts.channel) > EXPIRE_MS
    scripts.append(5, 3, "5-3")
    assert redis_server.do("PTTL", scripts.channel) <= EXPIRE_MS


def test_the_same_batch_again_changes_nothing(scripts: Scripts, redis_server: Server) -> None:
    scripts.append(5, 1, "5-1", key="some")
    assert scripts.append(5, 1, "5-1", key="some") == 1
    assert scripts.ids() == ["5-1"]
    assert redis_server.do("XLEN", scripts.keys) == 1


def test_records_that_are_there_already_are_passed_over(scripts: Scripts) -> None:
    scripts.append(5, 1, "5-1", "5-2")
    assert scripts.append(5, 2, "5-1", "5-2", "5-3") == 2
    assert scripts.ids() == ["5-1", "5-2", "5-3"]


def test_a_batch_whose_forerunner_is_missing_is_not_taken(scripts: Scripts) -> None:
    scripts.append(5, 1, "5-1")
    assert scripts.append(5, 3, "5-3") == 1
    assert scripts.ids() == ["5-1"]
    assert scripts.append(5, 2, "5-2") == 2
    assert scripts.append(5, 3, "5-3") == 3
    assert scripts.ids() == ["5-1", "5-2", "5-3"]


def test_a_missing_forerunner_can_be_given_up(scripts: Scripts) -> None:
    assert scripts.append(5, 3, "5-3", force=1) == 3
    assert scripts.append(5, 4, "5-4") == 4
    assert scripts.ids() == ["5-3", "5-4"]


@pytest.mark.parametrize(("low", "high"), [(5, 6), (9, 10), (2**53, 2**53 + 1), (2**64 - 2, 2**64 - 1)])
def test_a_lower_epoch_is_refused_once_a_higher_one_is_there(scripts: Scripts, low: int, high: int) -> None:
    assert scripts.append(low, 1, f"{low}-1") == 1
    assert scripts.do(FENCE, [scripts.state], f"{high:020}", "me") == b""
    assert scripts.append(low, 2, f"{low}-2") == -1
    assert scripts.append(high, 1, f"{high}-2") == 1
    assert scripts.ids() == [f"{low}-1", f"{high}-2"]


def test_a_higher_epoch_raises_what_is_stored(scripts: Scripts) -> None:
    scripts.append(5, 1, "5-1")
    assert scripts.append(6, 1, "6-2") == 1
    assert scripts.append(5, 2, "5-3") == -1


def test_only_a_higher_epoch_fences_or_the_same_of_the_same_router(scripts: Scripts) -> None:
    def fence(epoch: int, who: str) -> Any:
        return scripts.do(FENCE, [scripts.state], f"{epoch:020}", who)

    assert fence(7, "one") == b""
    assert int(fence(6, "one")) == int(fence(7, "other")) == 7
    scripts.append(7, 1, "7-1")
    assert fence(7, "one") == b""
    assert scripts.append(7, 2, "7-2") == 2, "who asks again begins nothing anew"
    assert fence(8, "other") == b""


def test_only_a_higher_epoch_of_no_later_format_takes_the_root(scripts: Scripts, redis_server: Server) -> None:
    def take(epoch: int, format_: int, who: str) -> list[bytes]:
        found: list[bytes] = scripts.do(OPEN, [scripts.state], f"{epoch:020}", format_, who)
        return found

    def root() -> list[bytes]:
        found: list[bytes] = redis_server.do("HMGET", scripts.state, "epoch", "format", "holder")
        return found

    assert take(7, 1, "a") == [b"", b""]
    assert take(7, 1, "b") == [b"%020d" % 7, b""]
    assert take(6, 2, "c") == [b"%020d" % 7, b""]
    assert root() == [b"%020d" % 7, b"1", b"a"]
    assert take(8, 10, "d") == [b"", b""]
    assert take(9, 9, "e") == [b"", b"10"]
    assert root() == [b"%020d" % 8, b"10", b"d"]
    redis_server.do("HSET", scripts.state, "format", "ten")
    assert take(9, 10, "f") == [b"", b"ten"]


def test_claims_of_the_router_that_has_the_log_keep_others_from_epochs_but_not_itself(
    scripts: Scripts, redis_server: Server
) -> None:
    def take(epoch: int, *again: int) -> list[bytes]:
        found: list[bytes] = scripts.do(OPEN, [scripts.state], f"{epoch:020}", 1, "a", *again)
        return found

    def claim(epoch: int, claims: int) -> Any:
        return scripts.do(CLAIMS, [scripts.state], f"{epoch:020}", f"{claims:020}")

    assert take(7) == [b"", b""]
    assert [claim(7, one) for one in (10, 9)] == [1, 1]
    assert take(10) == [b"%020d" % 10, b""]
    redis_server.do("HDEL", scripts.state, "epoch")  # it forgot
    assert take(7) == [b"%020d" % 10, b""]
    assert take(7, 1) == [b"", b""]
    assert take(11) == [b"", b""]
    with pytest.raises(redis.ResponseError, match=f"^DEPOSED by {11:020}$"):
        claim(7, 12)
    assert redis_server.do("HGET", scripts.state, "claims") == b"%020d" % 10


def test_a_position_without_its_message_is_kept(scripts: Scripts) -> None:
    scripts.append(5, 1, "5-7", value="")
    assert scripts.ids() == []
    assert scripts.load() == [b"5-7"]


def test_an_append_that_goes_wrong_says_so(scripts: Scripts, redis_server: Server) -> None:
    redis_server.do("SET", scripts.channel, "somebody's")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        scripts.append(5, 1, "5-1")
    assert redis_server.do("EXISTS", scripts.state) == 0


def test_the_last_id_outlives_its_message(scripts: Scripts, redis_server: Server) -> None:
    assert scripts.load() == []
    scripts.append(5, 1, "5-1", "5-2")
    redis_server.do("XTRIM", scripts.channel, "MAXLEN", 0)
    assert scripts.load() == [b"5-2"]


@pytest.mark.parametrize("there", [0, 1, 99, 100, 101, 200, 250])
@pytest.mark.parametrize("wanted", [0, 1, 99, 100, 101, 250])
def test_the_newest_are_read_newest_first(scripts: Scripts, redis_server: Server, there: int, wanted: int) -> None:
    values = [f"{number}" for number in range(1, there + 1)]
    fill = "for number = 1, ARGV[1] do redis.call('XADD', KEYS[1], '5-' .. number, 'm', number) end"
    redis_server.do("EVAL", fill, 1, scripts.channel, there)
    found = scripts.load(wanted)
    assert [one.decode() for one in found] == [*([f"5-{there}"] if there else []), *[*reversed(values)][:wanted]]


def test_no_more_bytes_are_read_than_asked_for(scripts: Scripts) -> None:
    scripts.append(5, 1, "5-1", "5-2", "5-3", value="x" * 100)
    for size, expected in ((299, 2), (300, 3), (99, 0)):
        assert len(scripts.load(size=size)) == 1 + expected
    assert len(scripts.load(size=30, head=90)) == 1 + 3
    assert len(scripts.load(size=29, head=90)) == 1 + 2


def test_a_channel_is_listed_for_as_long_as_is_said(scripts: Scripts, redis_server: Server) -> None:
    def listed() -> list[bytes]:
        return list(redis_server.do("ZRANGE", scripts.list, 0, -1))

    scripts.append(5, 1, "5-1")
    assert listed() == []
    scripts.append(5, 2, "5-2", expire=f"{EXPIRE_MS}:50000")
    scripts.append(5, 3, "5-1", expire=f"{EXPIRE_MS}:90000", channel=f"{scripts.channel}2")
    scripts.append(5, 4, "5-3", expire=0)
    assert listed() == [scripts.channel.encode(), f"{scripts.channel}2".encode()]
    assert EXPIRE_MS - 20_000 < redis_server.do("PTTL", scripts.channel) <= EXPIRE_MS
    assert 50_000 < redis_server.do("PTTL", scripts.list) <= 90_000
    redis_server.do("ZADD", scripts.list, 1, scripts.channel)  # its time is over, and whoever is listed next finds it
    scripts.append(5, 5, "5-2", expire=f"{EXPIRE_MS}:60000", channel=f"{scripts.channel}2")
    assert listed() == [f"{scripts.channel}2".encode()]
    assert 40_000 < redis_server.do("PTTL", scripts.list) <= 60_000


def test_no_more_channels_are_listed_than_there_is_room_for(scripts: Scripts, redis_server: Server) -> None:
    fill = "for number = 1, 1024 do redis.call('ZADD', KEYS[1], 10^15 + number, number) end"
    redis_server.do("EVAL", fill, 1, scripts.list)
    for _ in range(2):
        scripts.append(5, 1, "5-1", expire=f"{EXPIRE_MS}:{10**15}", force=1)
        found = redis_server.do("ZRANGE", scripts.list, 0, -1)
        assert (len(found), found[0], found[-1]) == (1024, b"2", scripts.channel.encode())


def test_of_a_newest_message_only_its_beginning_is_read(scripts: Scripts, redis_server: Server) -> None:
    assert scripts.do(NEWEST, [scripts.channel], 4) == []
    scripts.append(5, 1, "5-1", "5-2", value="abcdefgh")
    scripts.append(5, 2, "5-7", value="")
    assert scripts.do(NEWEST, [scripts.channel], 4) == [b"5-7", b"abcd"]
    redis_server.do("XTRIM", scripts.channel, "MAXLEN", 0)
    assert scripts.do(NEWEST, [scripts.channel], 4) == []


def test_a_cursor_only_grows(scripts: Scripts, redis_server: Server) -> None:
    for epoch, offset in ((5, 9), (5, 10), (5, 3), (4, 99), (2**60, 1)):
        scripts.do(CURSOR, [scripts.channel], f"{epoch:020}-{offset:020}", EXPIRE_MS)
        if epoch == 4:
            assert redis_server.do("GET", scripts.channel) == f"{5:020}-{10:020}".encode()
    assert redis_server.do("GET", scripts.channel) == f"{2**60:020}-{1:020}".encode()
    assert 0 < redis_server.do("PTTL", scripts.channel) <= EXPIRE_MS


def test_a_session_that_is_not_known_is_only_made_by_opening_it(scripts: Scripts, redis_server: Server) -> None:
    assert scripts.do(SESSION, [scripts.channel], 0, "", 10**15, "", 60_000, 1, 0, "c:a", "1-1") == 0
    assert redis_server.do("EXISTS", scripts.channel) == 0
    assert scripts.do(SESSION, [scripts.channel], 0, "o", 10**15, "", 60_000, 1, 0, "c:a", "1-1") == 1
    assert scripts.do(SESSION, [scripts.channel], 0, "", "", "", 60_000, 1, 0, "c:b", "1-2", "c:a") == 1
    assert redis_server.do("HGETALL", scripts.channel) == {
        b"opened": b"o",
        b"expires": b"1" + 15 * b"0",
        b"c:b": b"1-2",
    }
    scripts.do(SESSION, [scripts.channel], 1, "", "", "", 60_000, 0, 0)
    assert redis_server.do("EXISTS", scripts.channel) == 0


def test_a_position_is_set_or_only_raised(scripts: Scripts, redis_server: Server) -> None:
    scripts.do(SESSION, [scripts.channel], 0, "o", 10**15, "", 60_000, 2, 1, "c:set", "7-9", "c:raised", "7-9")
    for position, now in (("7-10", b"7-10"), ("7-8", b"7-10"), ("6-99", b"7-10"), ("10-1", b"10-1"), ("7-11", b"10-1")):
        scripts.do(SESSION, [scripts.channel], 0, "", "", "", 60_000, 2, 1, "c:set", position, "c:raised", position)
        assert redis_server.do("HGET", scripts.channel, "c:set") == position.encode()
        assert redis_server.do("HGET", scripts.channel, "c:raised") == now


def test_a_session_that_was_over_and_is_opened_again_begins_with_nothing(
    scripts: Scripts, redis_server: Server
) -> None:
    scripts.do(SESSION, [scripts.channel], 0, "o", 10**15, "", 60_000, 1, 0, "c:a", "1-1")
    scripts.do(SESSION, [scripts.channel], 1, "again", "", "", 60_000, 1, 1, "c:b", "1-2")
    assert redis_server.do("HGETALL", scripts.channel) == {b"opened": b"again", b"c:b": b"1-2"}


def test_what_is_too_old_is_trimmed_by_the_records_own_time(scripts: Scripts, redis_server: Server) -> None:
    for number in range(1, 6):
        record = bytes(24) + (1000 * number).to_bytes(8, "little") + bytes(56)
        redis_server.do("XADD", scripts.channel, f"5-{number}", "m", record)
    assert scripts.do(TRIM, [scripts.channel], 3000, EXPIRE_MS, 10**6, 0) == 2
    assert scripts.ids() == ["5-3", "5-4", "5-5"]
    assert scripts.do(TRIM, [scripts.channel], 3000, 7, 10**6, 0) == 0
    assert scripts.do(TRIM, [scripts.channel], 10**13, 7, 10**6, 0) == 3
    # It had no time to be forgotten at: it was given one, which stays.
    assert EXPIRE_MS - 20_000 < redis_server.do("PTTL", scripts.channel) <= EXPIRE_MS
    assert scripts.load() == [b"5-5"]


@pytest.mark.parametrize("size", [0, 999, 1000, 5_500, 150_000, 249_999, 250_000, 10**6])
def test_what_is_beyond_the_bytes_is_trimmed_as_a_load_leaves_it_out(
    scripts: Scripts, redis_server: Server, size: int
) -> None:
    """250 messages of 1,000 bytes, and 88 of each that do not count."""
    for number in range(1, 251):
        redis_server.do("XADD", scripts.channel, f"5-{number}", "m", bytes(1088))
    loaded = scripts.load(size=size, head=88)
    assert len(loaded) == 1 + min(size // 1000, 250)
    for trimmed in (250 - min(size // 1000, 250), 0):
        assert scripts.do(TRIM, [scripts.channel], 0, EXPIRE_MS, size, 88) == trimmed
        assert len(scripts.ids()) == min(size // 1000, 250)
    assert scripts.load(size=size, head=88) == loaded  # the position is that of the newest still, be it kept or not


def test_a_channel_that_is_forgotten_meanwhile_is_not_trimmed(scripts: Scripts) -> None:
    assert scripts.do(TRIM, [scripts.channel], 0, EXPIRE_MS, 0, 88) == 0


def test_names_of_scripts_are_what_redis_calls_them(redis_server: Server) -> None:
    for script in ALL:
        loaded = redis_server.do("SCRIPT", "LOAD", script.text)
        assert (loaded if isinstance(loaded, bytes) else loaded.encode()) == script.sha
