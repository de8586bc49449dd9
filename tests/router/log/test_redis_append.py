"""Appending when things go wrong: nothing is overtaken, nothing that was answered is lost, nothing comes twice."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from router.log import redis_append
from router.log.opening import open_log
from router.log.port import LogBroken, LogDeposed, LogUnavailable
from router.log.redis import RedisLog
from router.log.redis_append import Command, Shard
from router.log.redis_keys import SHARDS
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
    monkeypatch.setattr(redis_append, "KEPT_BYTES_MAX", 10_000)

    async def work() -> None:
        log = log_of(own_server)
        epoch = (await log.open(1)).epoch
        for offset in range(1, 30):
            await log.append(message("group:a", epoch, offset, bytes(1_000)))
            assert log.appender.kept_bytes <= 10_000 + 2_000
        await log.close()

    run(work())


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
        log = log_of(own_server, deadline_s=0.5)
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
