"""Appending when things go wrong: nothing is overtaken, nothing that was answered is lost, nothing comes twice."""

import asyncio
import contextlib
import os
import time
import types
from collections.abc import Callable
from typing import Any

import pytest

from router.log import redis_append
from router.log.opening import open_log
from router.log.port import LogBroken, LogDeposed, LogUnavailable
from router.log.redis import KEPT_BYTES_MAX, RedisLog
from router.log.redis_append import Command, Shard
from router.log.redis_keys import SHARDS
from router.log.redis_link import Link
from tests.conftest import stand_still, wait_until
from tests.router.log.conftest import again, append, run, until
from tests.router.log.redis_records import bodies, message, now_ms, offsets
from tests.servers.redis import LASTING, Sentinels, Server, running

PAUSE_S = 0.02
# One of each shard, so that a batch of all of them needs every shard.
CHANNELS = [f"group:{number}" for number in range(4 * SHARDS)]


def everywhere(epoch: int, offset: int) -> bytes:
    return b"".join(message(channel, epoch, offset, b"%d" % offset) for channel in CHANNELS)


async def all_have(log: RedisLog, expected: list[int]) -> None:
    for loaded in await again(lambda: log.load([one.encode() for one in CHANNELS], messages=True)):
        assert offsets(loaded) == expected
        assert bodies(loaded) == [b"%d" % offset for offset in expected]


async def no_sift(records: bytes) -> bytes:
    raise AssertionError("a stream trims itself")


def log_of(server: Server, **options: float) -> RedisLog:
    return RedisLog(server.url, clock_ms=now_ms, **options)  # type: ignore[arg-type]


def test_a_batch_refused_for_want_of_memory_is_not_overtaken(own_server: Server) -> None:
    async def work() -> None:
        log = log_of(own_server)
        epoch = (await log.open(1)).epoch
        await log.append(everywhere(epoch, 1))
        own_server.do("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(LogUnavailable, match="raise its maxmemory"):
            await log.append(everywhere(epoch, 2))
        own_server.do("CONFIG", "SET", "maxmemory", 0)
        # Whoever asks for the later one first gets both.
        await log.append(everywhere(epoch, 3))
        await all_have(log, [1, 2, 3])
        await log.append(everywhere(epoch, 2))
        await all_have(log, [1, 2, 3])
        await log.close()

    run(work())


def test_many_under_way_while_memory_comes_and_goes_stay_in_order(own_server: Server) -> None:
    async def work() -> None:
        log = log_of(own_server)
        epoch = (await log.open(1)).epoch

        async def squeeze() -> None:
            for number in range(40):
                own_server.do("CONFIG", "SET", "maxmemory", 1 - number % 2)
                await asyncio.sleep(PAUSE_S / 4)

        tasks = [asyncio.create_task(append(log, everywhere(epoch, offset))) for offset in range(1, 31)]
        await asyncio.gather(squeeze(), *tasks)
        await all_have(log, list(range(1, 31)))
        await log.close()

    run(work())


def test_a_server_killed_under_appends_has_all_that_was_answered_once(own_server: Server) -> None:
    async def work() -> None:
        log = log_of(own_server)
        epoch = (await log.open(1)).epoch
        tasks = [asyncio.create_task(append(log, everywhere(epoch, offset))) for offset in range(1, 41)]
        await tasks[4]
        own_server.kill()
        own_server.start(wait=False)
        await asyncio.gather(*tasks)
        await all_have(log, list(range(1, 41)))
        await log.close()

    run(work())


def test_what_a_server_came_back_without_is_given_again(own_server: Server) -> None:
    """As after a power failure, or a fail-over to a replica that was behind; also where nothing more is appended."""

    async def work() -> None:
        log = log_of(own_server)
        epoch = (await log.open(1)).epoch
        for offset in range(1, 4):
            await log.append(everywhere(epoch, offset))
        own_server.do("FLUSHALL")
        own_server.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await append(log, message(CHANNELS[0], epoch, 4, b"4"))

        async def is_healed() -> bool:
            with contextlib.suppress(LogUnavailable):
                found = await log.load([one.encode() for one in CHANNELS], messages=True)
                return [offsets(one) for one in found] == [[1, 2, 3, 4]] + [[1, 2, 3]] * (len(CHANNELS) - 1)
            return False

        await until(is_healed)
        # It knows this router again, and no earlier one.
        other = log_of(own_server)
        assert (await other.open(1)).epoch == epoch + 1
        await other.close()
        await log.close()

    run(work())


def test_what_is_too_old_to_be_given_again_leaves_a_hole_and_is_told(
    own_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_append, "KEPT_S", 0.0)

    async def work() -> None:
        log = log_of(own_server)
        epoch = (await log.open(1)).epoch
        for offset in range(1, 4):
            await log.append(everywhere(epoch, offset))
        own_server.do("FLUSHALL")
        await append(log, everywhere(epoch, 4))
        await append(log, everywhere(epoch, 5))
        await all_have(log, [4, 5])
        await log.close()

    run(work())
    assert f"Redis lost {3 * SHARDS} batches that it had acknowledged" in caplog.text


def test_little_is_kept_of_what_is_stored(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        told: list[int] = []
        log = RedisLog(own_server.url, clock_ms=now_ms, kept_bytes_max=10_000, on_kept=told.append)
        epoch = (await log.open(1)).epoch
        for offset in range(1, 30):
            await log.append(message("group:a", epoch, offset, bytes(1_000)))
            assert log.appender.kept_bytes <= 10_000 + 2_500
            assert told[-1] == log.appender.kept_bytes
        assert log.appender.kept_bytes > 10_000 - 2_500
        monkeypatch.setattr(redis_append, "KEPT_S", 0.0)
        assert log.appender.is_whole()
        assert told[-1] == log.appender.kept_bytes == 0
        await log.close()

    run(work())


def test_each_batch_is_kept_once_and_ten_seconds_of_a_busy_log_fit(own_server: Server) -> None:
    """40,000 messages of 100 bytes a second, in batches of 200 as a router makes them."""
    batches = 10

    async def work() -> None:
        log = log_of(own_server)
        epoch = (await log.open(1)).epoch
        size = 0
        for offset in range(1, batches + 1):
            batch = b"".join(message(f"group:{number}", epoch, offset, bytes(160)) for number in range(200))
            size += len(batch)
            await log.append(batch)
        kept = log.appender.kept_bytes
        assert size < kept < 1.9 * size
        assert kept / (batches * 200) * 400_000 < KEPT_BYTES_MAX
        await log.close()

    run(work())


def test_a_batch_that_is_asked_for_again_is_the_same_and_one_that_begins_like_it_is_not(own_server: Server) -> None:
    async def work() -> None:
        log = log_of(own_server)
        epoch = (await log.open(1)).epoch
        first, second = (message(CHANNELS[0], epoch, offset, b"%d" % offset) for offset in (1, 2))
        await log.append(first)
        kept = log.appender.kept_bytes
        await log.append(bytes(bytearray(first)))
        assert log.appender.kept_bytes == kept
        await log.append(first + second)
        assert log.appender.kept_bytes > kept
        [loaded] = await log.load([CHANNELS[0].encode()], messages=True)
        assert bodies(loaded) == [b"1", b"2"]
        await log.close()

    run(work())


def test_much_is_given_again_in_pieces_each_of_which_is_waited_for(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once would take a Redis longer than the deadline of a command, again and again."""
    monkeypatch.setattr(redis_append, "PIECE_BYTES", 2_000)
    count = 50
    sizes: list[int] = []
    send = Link.send

    def noted(link: Link, data: bytes, number: int) -> asyncio.Future[list[Any]]:
        if b"SCRIPT" not in data[:40]:  # scripts are told to each new connection
            sizes.append(len(data))
        return send(link, data, number)

    async def work() -> None:
        log = log_of(own_server)
        epoch = (await log.open(1)).epoch
        for offset in range(1, count + 1):
            await log.append(message(CHANNELS[0], epoch, offset, bytes(500)))
        own_server.do("FLUSHALL")
        own_server.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        monkeypatch.setattr(Link, "send", noted)
        # Several at once, as a router has them under way.
        more = [message(CHANNELS[0], epoch, offset, bytes(500)) for offset in range(count + 1, count + 9)]
        await asyncio.gather(*(append(log, one) for one in more))
        [loaded] = await log.load([CHANNELS[0].encode()], messages=True)
        assert offsets(loaded) == list(range(1, count + 9))
        await log.close()

    run(work())
    pieces = [size for size in sizes if size > 1_200]
    assert len(pieces) >= count * 500 // 2_000
    assert max(pieces) < 2 * 2_000


def test_what_has_to_be_sent_is_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_append, "PIECE_BYTES", 100)
    shard = Shard(0, 0)
    assert shard.piece(3) == []
    shard.kept.extend(Command(shard, number, bytes(40)) for number in range(4, 9))
    shard.kept.append(Command(shard, 9, bytes(500)))
    shard.sent = 3
    assert [one.number for one in shard.piece(9)] == [4, 5]
    assert [shard.is_behind(number) for number in (3, 4, 5, 6, 9)] == [False, False, False, True, True]
    shard.sent = 8
    assert [one.number for one in shard.piece(9)] == [9]
    assert not shard.is_behind(9)


def test_a_shards_batches_are_found_by_their_numbers() -> None:
    shard = Shard(0, 0)
    assert shard.between(1, 9) == []
    shard.kept.extend(Command(shard, number, b"") for number in range(4, 9))
    assert [one.number for one in shard.between(5, 7)] == [5, 6, 7]
    assert [one.number for one in shard.between(1, 5)] == [4, 5]
    assert [one.number for one in shard.between(8, 12)] == [8]
    assert shard.between(9, 12) == shard.between(1, 3) == shard.between(7, 6) == []


def test_too_much_under_way_is_refused(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_append, "UNDER_WAY_BYTES_MAX", 5_000)

    async def work() -> None:
        log = log_of(own_server, deadline_s=0.5, kept_bytes_max=1)
        epoch = (await open_log(log, 1)).epoch
        stand_still(own_server.pid)
        refused = 0
        for offset in range(1, 10):
            with pytest.raises(LogUnavailable) as caught:
                await log.append(message("group:a", epoch, offset, bytes(2_000)))
            refused += "bytes wait for Redis" in str(caught.value)
        assert refused >= 5
        await log.close()

    run(work())


def test_a_router_that_was_deposed_is_told_so_for_ever(make_log: Callable[..., RedisLog]) -> None:
    async def work() -> None:
        first, second = make_log(clock_ms=now_ms), make_log(clock_ms=now_ms)
        epoch = (await first.open(1)).epoch
        await first.append(everywhere(epoch, 1))
        later = (await second.open(1)).epoch
        for _ in range(2):
            with pytest.raises(LogDeposed, match="this one has to end"):
                await first.append(everywhere(epoch, 2))
        await second.append(everywhere(later, 2))
        await all_have(second, [1, 2])
        await first.close()
        await second.close()

    run(work())


def test_replicas_that_are_asked_for_and_missing_are_named(own_server: Server) -> None:
    async def work() -> None:
        log = log_of(own_server, replicas=1, deadline_s=4.0)
        epoch = (await log.open(1)).epoch
        with pytest.raises(LogUnavailable, match="0 of 1 replicas"):
            await log.append(everywhere(epoch, 1))
        await log.close()

    run(work())


def test_what_is_lost_a_second_time_is_given_up_a_second_time(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest batch that is kept is marked as one without forerunners: once, however often."""

    async def work() -> None:
        log = log_of(own_server)
        epoch = (await log.open(1)).epoch
        with monkeypatch.context() as nothing_is_kept:
            nothing_is_kept.setattr(redis_append, "KEPT_S", 0.0)
            for offset in range(1, 6):
                await log.append(everywhere(epoch, offset))
        for offset in range(6, 9):
            own_server.do("FLUSHALL")
            await log.append(everywhere(epoch, offset))
        await all_have(log, [5, 6, 7, 8])
        await log.close()

    run(work())


def test_a_primary_that_lost_its_replica_is_not_trusted_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(primary: Server, replica: Server) -> None:
        log = log_of(primary, deadline_s=1.0)
        epoch = (await open_log(log, 1)).epoch
        await append(log, everywhere(epoch, 1))
        replica.kill()
        for _ in range(3):  # also over connections that were made since
            with pytest.raises(LogUnavailable):
                await log.append(everywhere(epoch, 2))
        monkeypatch.setattr(redis_append, "REPLICA_MISSED_S", 0.0)
        await append(log, everywhere(epoch, 2))
        await all_have(log, [1, 2])
        await log.close()

    with running(*LASTING) as primary, running(*LASTING, "--replicaof", f"127.0.0.1 {primary.port}") as replica:
        wait_until(lambda: Sentinels._replicas(primary) == 1, "the replica follows")
        run(work(primary, replica))


def test_the_next_router_trusts_a_primary_that_lost_its_replica_no_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router may have been killed together with the primary, which is back and does not know who replaced it."""

    async def refused(log: RedisLog, epoch: int) -> None:
        for _ in range(2):
            with pytest.raises(LogUnavailable, match="0 of 1 replicas"):
                await log.append(everywhere(epoch, 2))

    async def work(primary: Server, replica: Server) -> None:
        log = log_of(primary, deadline_s=1.0)
        await log.append(everywhere((await log.open(1)).epoch, 1))
        await log.close()
        replica.kill()
        for _ in range(2):  # also the one after that
            log = log_of(primary, deadline_s=1.0)
            epoch = (await log.open(1)).epoch
            await refused(log, epoch)
            await log.close()
        log = log_of(primary, deadline_s=1.0)
        epoch = (await log.open(1)).epoch
        await refused(log, epoch)
        monkeypatch.setattr(redis_append, "REPLICA_MISSED_S", 0.0)
        await log.append(everywhere(epoch, 2))
        await log.close()
        monkeypatch.setattr(redis_append, "REPLICA_MISSED_S", 60.0)
        log = log_of(primary, deadline_s=1.0)  # it goes on alone since, and nobody needs to wait again
        await log.append(everywhere((await log.open(1)).epoch, 3))
        await log.close()

    with running(*LASTING) as primary, running(*LASTING, "--replicaof", f"127.0.0.1 {primary.port}") as replica:
        wait_until(lambda: Sentinels._replicas(primary) == 1, "the replica follows")
        run(work(primary, replica))


def test_whoever_says_that_there_are_no_replicas_waits_for_none(own_server: Server) -> None:
    async def work() -> None:
        log = log_of(own_server)
        epoch = (await log.open(1)).epoch
        for start in log.keys.shards:
            own_server.do("HSET", start + b"epoch", "replicated", 1)
        await log.close()
        log = log_of(own_server, replicas=0)
        epoch = (await log.open(1)).epoch
        await log.append(everywhere(epoch, 1))
        await log.close()

    run(work())


def test_a_replica_that_is_missed_after_a_quiet_time_is_missed_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was appended for so long that nobody waited for it lately; but there it was, up to when all broke off."""

    async def work(primary: Server, replica: Server) -> None:
        log = log_of(primary, deadline_s=1.0)
        epoch = (await log.open(1)).epoch
        await log.append(everywhere(epoch, 1))
        later = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 3600.0)
        monkeypatch.setattr(redis_append, "time", later)
        replica.kill()
        primary.kill()
        primary.start()
        await until_refused(log, epoch)
        await log.close()

    async def until_refused(log: RedisLog, epoch: int) -> None:
        while True:
            try:
                await log.append(everywhere(epoch, 2))
            except LogUnavailable as error:
                if "0 of 1 replicas" in str(error):
                    return
            else:
                raise AssertionError("one that lost its replica was trusted alone")
            await asyncio.sleep(PAUSE_S)

    with running(*LASTING) as primary, running(*LASTING, "--replicaof", f"127.0.0.1 {primary.port}") as replica:
        wait_until(lambda: Sentinels._replicas(primary) == 1, "the replica follows")
        run(work(primary, replica))


def test_a_foreign_key_in_the_way_is_named(
    make_log: Callable[..., RedisLog], redis_server: Server, prefix: str
) -> None:
    async def work() -> None:
        log = make_log()
        epoch = (await log.open(1)).epoch
        shard = log.keys.shards[log.keys.shard_of(b"group:a")]
        redis_server.do("SET", shard + b"c:group:a", "somebody's")
        with pytest.raises(LogBroken, match="another prefix"):
            await log.append(message("group:a", epoch, 1))
        await log.close()

    run(work())


def test_scripts_that_redis_forgot_are_given_again(own_server: Server) -> None:
    async def work() -> None:
        log = log_of(own_server)
        epoch = (await log.open(1)).epoch
        await log.append(everywhere(epoch, 1))
        own_server.do("SCRIPT", "FLUSH")
        await append(log, everywhere(epoch, 2))
        await all_have(log, [1, 2])
        await log.close()

    run(work())


def test_who_is_deposed_is_told_by_whom_when_it_appends_and_when_it_only_sifts(
    make_log: Callable[..., RedisLog],
) -> None:
    async def work() -> None:
        former = make_log()
        epoch = (await former.open(7)).epoch
        await former.sift(no_sift)
        log = make_log()
        await log.open(1)
        told = f"an epoch above 7 has this log now: this one has to end: process {os.getpid()} on .* has it"
        with pytest.raises(LogDeposed, match=told):
            await former.sift(no_sift)
        with pytest.raises(LogDeposed, match=told):
            await append(former, message("group:a", epoch, 1))
        await former.close()
        await log.close()

    run(work())
