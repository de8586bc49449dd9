"""Who has fallen silent: counted from what was heard, by those who hear themselves, and ended only as last heard."""

import asyncio
from collections.abc import AsyncGenerator, Iterator

import pytest

from core.owned import ACCOUNT
from router.beats import GAP, GRACE, Beats
from router.directory.etcd import EtcdDirectory
from router.directory.etcd_config import EtcdConfig
from router.directory.port import CLOCK_ALLOWANCE, Changes, NodeEpoch, Snapshot, now
from tests.contract.places import stop_keeping
from tests.router.directory.conftest import run
from tests.servers.etcd import running

TTL = 10
OVER = TTL * (1 + CLOCK_ALLOWANCE)


class Nothing:
    """A directory that is not asked."""

    async def read(self, prefix: str) -> Snapshot:
        raise AssertionError(prefix)

    def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes | Snapshot, None]:
        raise AssertionError(prefix)

    async def end(self, silent: NodeEpoch, revision: int) -> bool:
        raise AssertionError(silent)


class Ears:
    """Router a's, with a clock of the test's own; it hears itself whenever the clock goes on."""

    def __init__(self) -> None:
        self.now, self.revision = 100.0, 10
        self.alive = {1: "a", 2: "b", 3: "c"}
        self.beats = Beats("a", Nothing(), lambda: self.alive, lambda: self.now)
        for name in "abc":
            self.hear(name)

    def hear(self, node: str, epoch: int = 0, ttl_s: int = TTL) -> int:
        self.revision += 1
        self.beats.hear(node, b"%d %d" % (epoch or " abc".index(node), ttl_s), self.revision)
        return self.revision

    def go_on(self, seconds: float, *speakers: str) -> None:
        """So much later; these and router a go on beating meanwhile."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + TTL / 4)
            for name in ("a", *speakers):
                self.hear(name)


def test_who_says_nothing_for_his_time_and_what_clocks_go_apart_is_silent() -> None:
    ears = Ears()
    last = ears.beats._beats["b"].revision
    ears.go_on(OVER - 0.01, "c")
    assert ears.beats.silent() == []
    ears.go_on(0.02, "c")
    assert ears.beats.silent() == [(NodeEpoch("b", 2), last)]
    ears.hear("b")
    assert ears.beats.silent() == []


def test_what_is_told_again_is_no_news() -> None:
    ears = Ears()
    last = ears.beats._beats["b"].revision
    ears.go_on(OVER - 1, "c")
    ears.beats.hear("b", b"2 10", last)
    ears.go_on(2, "c")
    assert ears.beats.silent() == [(NodeEpoch("b", 2), last)]


def test_who_is_over_by_the_directory_or_never_beat_is_not_ended() -> None:
    ears = Ears()
    ears.alive = {1: "a", 7: "b", 9: "d"}  # b has a new life, of which nothing was heard; c is gone; d says nothing
    ears.beats.hear("x", b"what is this?", 50)
    ears.go_on(3 * TTL)
    assert ears.beats.silent() == []
    ears.beats.hear("b", None, 99)
    ears.alive = {1: "a", 2: "b"}
    assert ears.beats.silent() == []


def test_while_the_directory_answers_nobody_nobody_is_ended_nor_soon_after() -> None:
    ears = Ears()
    ears.go_on(TTL / 2, "b", "c")
    ears.now += 3 * TTL
    assert ears.beats.silent() == [], "it does not hear itself"
    ears.hear("a")
    assert ears.beats.silent() == [], "and now only itself so far"
    ears.go_on(GRACE * TTL - 0.1, "b")
    assert ears.beats.silent() == []
    ears.go_on(0.2, "b")
    assert [silent.node for silent, _ in ears.beats.silent()] == ["c"]
    ears.now += GAP * TTL + 0.1
    assert ears.beats.silent() == []


@pytest.fixture(scope="module")
def config() -> Iterator[EtcdConfig]:
    with running() as member:
        yield EtcdConfig(endpoints=(member.endpoint,), prefix="beats/of/tests/", beats=True)


def test_a_silent_life_is_ended_though_its_lease_goes_on(config: EtcdConfig) -> None:
    async def body() -> None:
        silent, other = EtcdDirectory(config), EtcdDirectory(config)
        there = await silent.register("b", b"", 60)
        await stop_keeping(there)
        there._ttl_s = 2
        assert await there._write(now() + 5.0) is not None
        began = now()
        own = await other.register("a", b"", 2)
        alive = {own.identity.epoch: "a", there.identity.epoch: "b"}
        beats = Beats("a", other, lambda: alive)
        tasks = [ACCOUNT.task(beats.listen(), "beats"), ACCOUNT.task(beats.end_silent(), "ends")]
        while "nodes/b" in (await other.read("nodes/")).items:  # noqa: ASYNC110  the other side has no event
            await asyncio.sleep(0.05)
        assert 2.0 < now() - began < 30.0
        assert not await there._renew(), "and it finds out"
        assert list((await other.read("beats/")).items) == ["beats/a"]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for registration in (there, own):
            await registration.close()
        for directory in (silent, other):
            await directory.close()

    run(body())
