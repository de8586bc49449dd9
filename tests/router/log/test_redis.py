"""The Redis log as a whole: on one server, under a fail-over of Sentinel, on a cluster.

What every log promises is in tests/contract/; here is what is Redis' own.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from core import log_records
from core.namespace_spec import BUILT_IN, DAY_S, NamespaceSpec
from router.log.opening import open_log
from router.log.port import Changes, LogBroken, LogUnavailable, Position, SessionChange
from router.log.redis import LOAD_CHANNELS, RedisLog
from router.log.redis_keys import SHARDS
from router.log.redis_sessions import wall_ms
from tests.conftest import free_ports, stand_still, wait_until
from tests.router.log.conftest import again, append, run, until
from tests.router.log.redis_records import NOW_MS, bodies, message, now_ms, offsets
from tests.servers.certificates import self_signed
from tests.servers.redis import (
    ALWAYS,
    FLEETING,
    LASTING,
    WHOLE_DEADLINE_S,
    Cluster,
    Sentinels,
    Server,
    running,
    running_cluster,
    running_sentinels,
)

CHANNELS = [f"group:{number}" for number in range(4 * SHARDS)]


async def no_sift(records: bytes) -> bytes:
    """Nothing is ever asked of it."""
    raise AssertionError("a stream trims itself")


def everywhere(epoch: int, offset: int) -> bytes:
    return b"".join(message(channel, epoch, offset, b"%d" % offset) for channel in CHANNELS)


async def all_have(log: RedisLog, last: int) -> None:
    """Whether each channel has all messages from the first, in order, once."""
    for loaded in await again(lambda: log.load([one.encode() for one in CHANNELS], messages=True)):
        assert offsets(loaded) == list(range(1, last + 1))
        assert bodies(loaded) == [b"%d" % offset for offset in offsets(loaded)]
        assert loaded.position.offset == last


def test_each_opening_has_a_higher_epoch_and_the_same_seeds(make_log: Callable[..., RedisLog]) -> None:
    async def work() -> None:
        seen = []
        for wish in (7, 3, 2**60, 1):
            log = make_log()
            opened = await log.open(wish)
            assert not opened.complete
            seen.append((opened.epoch, opened.seeds))
            await log.close()
        assert [epoch for epoch, _ in seen] == [7, 8, 2**60, 2**60 + 1]
        assert len({seeds for _, seeds in seen}) == 1
        assert len(seen[0][1]) == 48

    run(work())


def test_a_shard_that_knows_a_higher_epoch_than_the_log_raises_it(
    make_log: Callable[..., RedisLog], redis_server: Server
) -> None:
    async def work() -> None:
        log = make_log()
        await log.open(1)
        redis_server.do("HSET", log.keys.shards[3] + b"epoch", "epoch", f"{90:020}", "batch", 4)
        again = make_log()
        assert (await again.open(1)).epoch == 91
        await log.close()
        await again.close()

    run(work())


def test_seeds_that_are_not_ours_are_named(
    make_log: Callable[..., RedisLog], redis_server: Server, prefix: str
) -> None:
    redis_server.do("HSET", f"{prefix}log", "seeds", "short")

    async def work() -> None:
        log = make_log()
        with pytest.raises(LogBroken, match="use another prefix"):
            await log.open(1)
        await log.close()

    run(work())


def test_keys_and_origins_are_known_to_the_next_router_and_bodies_are_not(make_log: Callable[..., RedisLog]) -> None:
    count = 1_500  # in batches of one shard, so that its entries are read in several pieces

    async def work() -> None:
        log = make_log()
        epoch = (await log.open(1)).epoch
        waiting = []
        for offset in range(1, count + 1):
            key, origin = ((offset, 7), (0, 0, 0)) if offset % 2 else ((0, 0), (epoch, 3, offset))
            waiting.append(log.append(message("group:a", epoch, offset, key=key, origin=origin)))
        await asyncio.gather(*waiting)
        await log.close()
        log = make_log()
        await log.open(1)
        found = [entry async for batch in log.recover() for entry in log_records.entries(batch)]
        assert sorted(entry.offset for entry in found) == list(range(1, count + 1))
        for entry in found:
            assert entry.channel == b"group:a"
            assert entry.body == b""
            assert entry.time_ms == NOW_MS
            assert (entry.key == (entry.offset, 7)) == bool(entry.offset % 2)
            assert (entry.origin == (epoch, 3, entry.offset)) != bool(entry.offset % 2)
        await log.close()

    run(work())


def test_what_cannot_be_read_of_keys_and_origins_is_named(
    make_log: Callable[..., RedisLog], redis_server: Server
) -> None:
    async def work() -> None:
        log = make_log()
        await log.open(1)
        redis_server.do("XADD", log.keys.shards[0] + b"keys", "*", "r", "something else")
        with pytest.raises(LogBroken, match="cannot be read"):
            async for _ in log.recover():
                pass
        await log.close()

    run(work())


SHORT = (NamespaceSpec(name="group", domain="group", history_messages=5, history_age_s=60),)


def test_only_as_many_messages_as_the_namespace_keeps_are_loaded(make_log: Callable[..., RedisLog]) -> None:
    async def work() -> None:
        log = make_log(namespaces=SHORT, clock_ms=now_ms)
        epoch = (await log.open(1)).epoch
        for offset in range(1, 300):
            await log.append(message("group:a", epoch, offset))
        [loaded] = await log.load([b"group:a"], messages=True)
        assert offsets(loaded) == [295, 296, 297, 298, 299]
        assert await log.load([b"group:a"], messages=False) == [type(loaded)(Position(epoch, 299))]
        await log.close()

    run(work())


def test_a_stream_does_not_grow_much_beyond_what_is_kept(
    make_log: Callable[..., RedisLog], redis_server: Server
) -> None:
    async def work() -> None:
        log = make_log(namespaces=SHORT)
        epoch = (await log.open(1)).epoch
        for offset in range(1, 1_000):
            await log.append(message("group:a", epoch, offset, bytes(100)))
        assert redis_server.do("XLEN", log.keys.channel(b"group:a")[0]) <= 5 + 100
        await log.close()

    run(work())


def test_messages_that_are_too_old_are_not_loaded_and_their_position_is(
    make_log: Callable[..., RedisLog], redis_server: Server
) -> None:
    now = NOW_MS

    async def work() -> None:
        nonlocal now
        log = make_log(namespaces=SHORT, clock_ms=lambda: now)
        epoch = (await log.open(1)).epoch
        for offset in range(1, 4):
            await log.append(message("group:a", epoch, offset, time_ms=NOW_MS + 1_000 * offset))
        now = NOW_MS + 62_500
        [loaded] = await log.load([b"group:a"], messages=True)
        assert offsets(loaded) == [3]
        key = log.keys.channel(b"group:a")[0]
        assert redis_server.do("XLEN", key) == 3
        while redis_server.do("XLEN", key) != 1:  # deadline: the test's
            await log.sift(no_sift)
        now += 3_600_000
        while redis_server.do("XLEN", key) != 0:  # deadline: the test's
            await log.sift(no_sift)
        [loaded] = await log.load([b"group:a"], messages=True)
        assert (loaded.position, loaded.records) == (Position(epoch, 3), b"")
        await log.close()

    run(work())


def test_a_namespace_that_was_forgotten_for_a_while_has_all_again(
    make_log: Callable[..., RedisLog], redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the router that does not know it would keep of others: by number, bytes or age."""
    deal = NamespaceSpec(
        name="deal", domain="group", history_messages=2_000, history_bytes=1 << 22, history_age_s=20 * DAY_S
    )

    async def work() -> None:
        log = make_log(namespaces=[*BUILT_IN, deal], clock_ms=now_ms)
        epoch = (await log.open(1)).epoch
        old_ms = now_ms() - 10 * DAY_S * 1000
        said = [message("deal:a", epoch, offset, bytes(1_000), time_ms=old_ms) for offset in range(1, 1_501)]
        await append(log, b"".join(said))
        key = log.keys.channel(b"deal:a")[0]
        expires_ms = redis_server.do("PTTL", key)
        await log.close()
        log = make_log(clock_ms=now_ms)
        await log.open(1)
        while "deal" not in caplog.text:  # deadline: the test's
            await log.sift(no_sift)
        for _ in range(20):
            await log.sift(no_sift)
        assert caplog.text.count("has messages of namespaces that are not configured: deal. Nobody can read") == 1
        assert expires_ms - 60_000 < redis_server.do("PTTL", key) <= expires_ms
        await log.close()
        log = make_log(namespaces=[*BUILT_IN, deal], clock_ms=now_ms)
        await log.open(1)
        [loaded] = await log.load([b"deal:a"], messages=True)
        assert (loaded.position, offsets(loaded)) == (Position(epoch, 1_500), list(range(1, 1_501)))
        await log.close()

    run(work())


def test_messages_beyond_the_bytes_that_are_kept_go_in_redis_too(
    make_log: Callable[..., RedisLog], redis_server: Server
) -> None:
    async def work() -> None:
        small = [msgspec.structs.replace(spec, history_bytes=10_000) for spec in BUILT_IN]
        log = make_log(namespaces=small, clock_ms=now_ms)
        epoch = (await log.open(1)).epoch
        for offset in range(1, 21):
            await log.append(message("group:a", epoch, offset, bytes(1_000)))
        key = log.keys.channel(b"group:a")[0]
        assert redis_server.do("XLEN", key) == 20
        while redis_server.do("XLEN", key) == 20:  # deadline: the test's
            await log.sift(no_sift)
        assert redis_server.do("XLEN", key) == 10
        [loaded] = await log.load([b"group:a"], messages=True)
        assert (loaded.position, offsets(loaded)) == (Position(epoch, 20), list(range(11, 21)))
        await log.close()

    run(work())


def test_more_channels_than_are_read_at_once_are_loaded_in_their_order(make_log: Callable[..., RedisLog]) -> None:
    async def work() -> None:
        log = make_log(clock_ms=now_ms)
        epoch = (await log.open(1)).epoch
        channels = [f"group:{number}" for number in range(3 * LOAD_CHANNELS + 5)]
        await log.append(b"".join(message(channel, epoch, 1, channel.encode()) for channel in channels))
        loaded = await log.load([one.encode() for one in channels], messages=True)
        assert [bodies(one) for one in loaded] == [[one.encode()] for one in channels]
        assert await log.load([], messages=True) == [] == await log.load([], messages=False)
        await log.close()

    run(work())


def test_no_more_bytes_are_loaded_than_the_namespace_keeps(make_log: Callable[..., RedisLog]) -> None:
    kept = (NamespaceSpec(name="group", domain="group", history_bytes=1_000),)

    async def work() -> None:
        log = make_log(namespaces=kept, clock_ms=now_ms)
        epoch = (await log.open(1)).epoch
        for offset in range(1, 21):
            await log.append(message("group:a", epoch, offset, bytes(100)))
        [loaded] = await log.load([b"group:a"], messages=True)
        assert offsets(loaded) == list(range(11, 21))
        await log.close()

    run(work())


def test_what_is_no_record_of_ours_is_named(make_log: Callable[..., RedisLog], redis_server: Server) -> None:
    async def work() -> None:
        log = make_log(clock_ms=now_ms)
        await log.open(1)
        redis_server.do("XADD", log.keys.channel(b"group:a")[0], "1-1", "m", "something")
        with pytest.raises(LogBroken, match="no record of ours"):
            await log.load([b"group:a"], messages=True)
        await log.close()

    run(work())


def test_what_waited_is_stored_but_loaded_as_a_record_at_rest(make_log: Callable[..., RedisLog]) -> None:
    async def work() -> None:
        log = make_log(clock_ms=now_ms)
        epoch = (await log.open(1)).epoch
        plain = message("group:a", epoch, 1, key=(1, 2), origin=(3, 4, 5))
        waiting = message("group:a", epoch, 1, key=(1, 2), origin=(3, 4, 5), flags=log_records.WAITS)
        await log.append(waiting[:72] + b"\xff" * 16 + waiting[88:])
        [loaded] = await log.load([b"group:a"], messages=True)
        assert loaded.records == plain
        await log.close()

    run(work())


def test_a_log_that_is_closed_says_so(make_log: Callable[..., RedisLog]) -> None:
    async def work() -> None:
        log = make_log()
        epoch = (await log.open(1)).epoch
        await log.close()
        with pytest.raises(LogUnavailable, match="closed"):
            await log.append(message("group:a", epoch, 1))

    run(work())


def test_closing_a_closed_log_has_nothing_left_to_do(
    make_log: Callable[..., RedisLog], caplog: pytest.LogCaptureFixture
) -> None:
    """It does not look for what Redis may have lost through connections that it gave up itself."""

    async def work() -> None:
        log = make_log()
        epoch = (await log.open(1)).epoch
        await log.append(message("group:a", epoch, 1, b"one"))
        await log.close()
        await log.close()

    run(work())
    assert "may have lost" not in caplog.text


def test_an_old_redis_is_refused(make_log: Callable[..., RedisLog], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.log.redis.VERSION_MIN", (99, 0))

    async def work() -> None:
        log = make_log()
        with pytest.raises(LogBroken, match="upgrade"):
            await log.open(1)
        await log.close()

    run(work())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed P-256 certificate for 127.0.0.1, and its key."""
    return self_signed(tmp_path_factory.mktemp("certificate"))


def test_over_tls_with_a_password_and_only_with_a_certificate_that_is_trusted(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = map(str, certificate)
    [port] = free_ports(1)
    files = ("--tls-cert-file", chain, "--tls-key-file", key, "--tls-ca-cert-file", chain, "--tls-auth-clients", "no")
    with running(*FLEETING, "--tls-port", str(port), *files) as server:
        server.do("ACL", "SETUSER", "hold", "on", ">secret", "~hf:*", "+@all")
        url = f"rediss://hold:secret@127.0.0.1:{port}/0"

        async def refused(url: str, said: str) -> None:
            log = RedisLog(url, deadline_s=1.0)
            with pytest.raises(LogUnavailable, match=said):
                await log.open(1)
            await log.close()

        async def work() -> None:
            await refused(url, "SSL_CERT_FILE")
            monkeypatch.setenv("SSL_CERT_FILE", chain)
            await refused(f"rediss://hold:secret@127.0.0.1:{server.port}/0", "look whether it speaks TLS")
            log = RedisLog(url, clock_ms=now_ms)
            epoch = (await log.open(1)).epoch
            await log.append(everywhere(epoch, 1))
            await all_have(log, 1)
            await log.close()

        run(work())


@pytest.mark.slow
@pytest.mark.parametrize("options", [LASTING, ALWAYS], ids=["everysec", "always"])
def test_killed_again_and_again_nothing_that_was_answered_is_lost(options: tuple[str, ...]) -> None:
    with running(*options) as server:

        async def work() -> None:
            log = RedisLog(server.url, clock_ms=now_ms)
            epoch = (await log.open(1)).epoch
            last = 0
            for _ in range(4):
                tasks = [asyncio.create_task(append(log, everywhere(epoch, last + one))) for one in range(1, 21)]
                await tasks[3]
                server.kill()
                server.start(wait=False)
                await asyncio.gather(*tasks)
                last += len(tasks)
            await all_have(log, last)
            await log.close()
            # The next router finds the same.
            log = RedisLog(server.url, clock_ms=now_ms)
            await log.open(1)
            await all_have(log, last)
            await log.close()

        run(work())


def test_what_redis_lost_is_given_to_it_again_before_the_end() -> None:
    """A killed server forgets everything here, as one may that had not written yet what it acknowledged."""
    with running(*FLEETING) as server:

        async def work() -> None:
            log = RedisLog(server.url, clock_ms=now_ms)
            epoch = (await log.open(1)).epoch
            for offset in range(1, 6):
                await append(log, everywhere(epoch, offset))
            server.kill()
            server.start()
            await log.close()
            log = RedisLog(server.url, clock_ms=now_ms)
            await log.open(1)
            await all_have(log, 5)
            await log.close()

        run(work())


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with running_sentinels() as made:
        yield made


@pytest.mark.slow
def test_nothing_that_was_answered_is_lost_when_sentinel_replaces_the_primary(sentinels: Sentinels) -> None:
    async def work() -> None:
        log = RedisLog(sentinels.url, clock_ms=now_ms, deadline_s=1.0)
        epoch = (await open_log(log, 1)).epoch
        expires_ms = wall_ms() + 3_600_000
        await log.save(Changes({bytes(16): SessionChange(b"said", expires_ms)}))
        first = sentinels.primary
        tasks = [asyncio.create_task(append(log, everywhere(epoch, one))) for one in range(1, 61)]
        await tasks[9]
        first.kill()
        await asyncio.gather(*tasks)
        assert sentinels.primary is not first
        await all_have(log, len(tasks))
        await append(log, everywhere(epoch, len(tasks) + 1))
        await all_have(log, len(tasks) + 1)
        await log.close()
        # A router that comes then finds all of it, and one that had been deposed is still refused.
        log = RedisLog(sentinels.url, clock_ms=now_ms)
        assert (await open_log(log, 1)).epoch > epoch
        await all_have(log, len(tasks) + 1)
        await log.close()

    run(work())


@pytest.mark.slow
def test_one_primary_after_another_is_killed_and_comes_back_as_a_replica(sentinels: Sentinels) -> None:
    async def work() -> None:
        log = RedisLog(sentinels.url, clock_ms=now_ms, deadline_s=1.0)
        epoch = (await open_log(log, 1)).epoch
        last = 0
        for _ in range(2):
            await asyncio.to_thread(sentinels.wait_whole)
            primary = sentinels.primary
            tasks = [asyncio.create_task(append(log, everywhere(epoch, last + one))) for one in range(1, 31)]
            await tasks[4]
            primary.kill()
            await asyncio.gather(*tasks)
            last += len(tasks)
            primary.start(wait=False)
        await all_have(log, last)
        await log.close()

    run(work())


@pytest.mark.slow
def test_an_old_primary_that_is_chosen_again_is_given_what_it_missed(sentinels: Sentinels) -> None:
    """It is a primary beside the new one until the sentinels find time for it, and the only one that is well when the
    others stall, on the same disk, say.
    """

    async def work() -> None:
        log = RedisLog(sentinels.url, clock_ms=now_ms, deadline_s=1.0)
        epoch = (await open_log(log, 1)).epoch
        for offset in range(1, 7):
            await append(log, everywhere(epoch, offset))
        old = sentinels.primary
        old.kill()
        await asyncio.gather(*(append(log, everywhere(epoch, offset)) for offset in range(7, 31)))
        others = [one for one in sentinels.servers if one is not old]
        await asyncio.to_thread(old.start)
        await asyncio.to_thread(sentinels.wait_seen, old)
        for one in others:
            stand_still(one.pid)
        chosen = "the old one is chosen again"
        await asyncio.to_thread(wait_until, lambda: sentinels.primary is old, chosen, WHOLE_DEADLINE_S)
        for one in others:
            one.signal(signal.SIGCONT)
        await asyncio.to_thread(sentinels.wait_whole)
        await append(log, everywhere(epoch, 31))
        await all_have(log, 31)
        await log.close()

    run(work())


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_cluster() as made:
        yield made


@pytest.mark.slow
def test_a_cluster_takes_and_gives_all_and_waits_for_a_node_that_is_away(cluster: Cluster) -> None:
    async def work() -> None:
        log = RedisLog(cluster.url, clock_ms=now_ms, deadline_s=1.0)
        epoch = (await open_log(log, 1)).epoch
        await asyncio.gather(*(append(log, everywhere(epoch, one)) for one in range(1, 11)))
        await all_have(log, 10)
        assert all(server.do("DBSIZE") > 0 for server in cluster.servers)
        tasks = [asyncio.create_task(append(log, everywhere(epoch, one))) for one in range(11, 31)]
        await tasks[2]
        cluster.servers[1].kill()
        cluster.servers[1].start(wait=False)
        await asyncio.gather(*tasks)

        async def loaded() -> bool:
            with contextlib.suppress(LogUnavailable):
                await all_have(log, 30)
                return True
            return False

        await until(loaded)
        await log.close()

    run(work())


@pytest.mark.slow
def test_a_slot_that_moves_to_another_node_is_followed(cluster: Cluster) -> None:
    async def work() -> None:
        log = RedisLog(cluster.url, clock_ms=now_ms)
        epoch = (await open_log(log, 1)).epoch
        await log.append(everywhere(epoch, 1))
        slot = log.keys.shard_slots[0]
        away, here = cluster.owner(slot), next(one for one in cluster.servers if one is not cluster.owner(slot))
        cluster.move(slot, away, here)
        await append(log, everywhere(epoch, 2))
        await all_have(log, 2)
        assert here.do("CLUSTER", "COUNTKEYSINSLOT", slot) > 0
        await log.close()

    run(work())
