"""The keeper of shards: what the machine wants is done in order, together, and never for a shard that is not ours."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence

import pytest

from core import log_records, notes
from core.owned import ACCOUNT
from core.records import CLAIM_BITS
from router.directory.embedded import EmbeddedDirectory, Store
from router.directory.port import Claim, Misused, NodeEpoch, Result, Unavailable, now
from router.log.port import LogDeposed
from router.shard_keeper import EPOCH_BITS
from router.shards import events as ev
from router.shards.leadership import Leadership
from router.shards.records import NODES, REGIONS, NodeRecord, PinRecord, RegionRecord, ShardRecord, encode
from router.shards.records import SHARDS as PREFIX
from router.shards.roles import Settings
from tests.router.units import DEADLINE_S, QUICK, SHARDS, Logs, MemoryLog, Unit, know_each_other, standing, until

Body = Callable[[Store], Awaitable[None]]


def run(body: Body) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await body(Store())

    before = set(ACCOUNT.held)
    asyncio.run(limited())
    assert not {one.name for one in ACCOUNT.held - before}


def test_all_shards_are_opened_together_and_led_when_the_data_plane_knows_what_the_log_has() -> None:
    async def body(store: Store) -> None:
        log = MemoryLog(Logs())
        log.logs.records = {3: b"of three", 5: b"of five"}
        log.logs.globals = [standing(b"global:news")]
        unit = await Unit("a", EmbeddedDirectory(store), log).start()
        await until(lambda: len(unit.plane.leads_now()) == SHARDS, "all are led")
        assert log.opened == [dict.fromkeys(range(SHARDS), 1)]
        kinds = [kind for kind, _ in unit.plane.notes if kind in (notes.LOG_RECOVER, notes.LEAD)]
        assert kinds == [notes.LOG_RECOVER] * 3 + [notes.LEAD] * SHARDS
        recovered = [fields for kind, fields in unit.plane.notes if kind == notes.LOG_RECOVER]
        assert [fields["text"] for fields in recovered[:2]] == [b"of three", b"of five"]
        assert recovered[2]["first"] == 1
        assert recovered[2]["second"] == 1 << EPOCH_BITS
        [entry] = log_records.entries(recovered[2]["text"])
        assert (entry.kind, entry.channel) == (log_records.POSITION, b"global:news")
        led = next(fields for kind, fields in unit.plane.notes if kind == notes.LEAD)
        assert (led["first"], led["second"]) == (1 << EPOCH_BITS, 1 << CLAIM_BITS)
        assert now() < unit.plane.hold < now() + 5
        await unit.end()

    run(body)


def test_of_many_that_are_taken_over_the_first_are_led_while_others_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.shard_keeper.READ_TOGETHER", 3)

    async def body(store: Store) -> None:
        log = MemoryLog(Logs())
        log.reads.clear()
        log.slow = {SHARDS - 1}
        unit = await Unit("a", EmbeddedDirectory(store), log).start()
        await until(lambda: len(unit.plane.led) == 6, "two parts are led")
        assert log.opened == [dict.fromkeys(range(SHARDS), 1)], "all are open in the log"
        log.reads.set()
        await until(lambda: len(unit.plane.leads_now()) == SHARDS, "all are led")
        await unit.end()

    run(body)


def test_without_a_log_what_is_claimed_is_led() -> None:
    async def body(store: Store) -> None:
        unit = await Unit("a", EmbeddedDirectory(store)).start()
        await until(lambda: len(unit.plane.leads_now()) == SHARDS, "all are led")
        assert unit.plane.told(notes.LOG_RECOVER) == []
        await unit.end()

    run(body)


def test_an_epoch_that_the_log_refuses_is_raised_above_what_it_knows() -> None:
    async def body(store: Store) -> None:
        log = MemoryLog(Logs())
        log.logs.epochs = {2: 40}
        unit = await Unit("a", EmbeddedDirectory(store), log).start()
        await until(lambda: len(unit.plane.leads_now()) == SHARDS, "all are led")
        assert unit.plane.led[2] == 41
        assert unit.plane.led[1] == 1
        await unit.end()

    run(body)


def test_a_log_that_is_away_is_asked_again() -> None:
    async def body(store: Store) -> None:
        log = MemoryLog(Logs())
        log.away = True
        unit = await Unit("a", EmbeddedDirectory(store), log).start()
        await until(lambda: len(unit.keeper.machine.held) == SHARDS, "all are claimed")
        assert unit.plane.led == {}
        log.away = False
        await until(lambda: len(unit.plane.leads_now()) == SHARDS, "all are led")
        await unit.end()

    run(body)


async def _give(unit: Unit, shard: int, epoch: int, *, to: NodeEpoch) -> None:
    """Somebody else writes who leads a shard."""
    item = (await unit.directory.read(f"{PREFIX}{shard}")).items[f"{PREFIX}{shard}"]
    value = encode(ShardRecord(to.node, to.epoch, epoch, "taken"))
    await unit.directory.transact([Claim(f"{PREFIX}{shard}", item.revision, value)])


def test_a_shard_that_is_ours_again_waits_until_the_data_plane_has_forgotten_it() -> None:
    async def body(store: Store) -> None:
        log = MemoryLog(Logs())
        unit = await Unit("a", EmbeddedDirectory(store), log).start()
        await until(lambda: len(unit.plane.leads_now()) == SHARDS, "all are led")
        unit.plane.forgets = False
        me = NodeEpoch("a", unit.keeper.machine.epoch)
        await _give(unit, 4, 2, to=me)  # a new epoch of it
        await until(lambda: unit.plane.told(notes.FORGET), "it is to be forgotten")
        assert unit.stopped == [4]
        assert 4 not in unit.plane.led
        await _give(unit, 4, 3, to=me)
        await until(lambda: unit.keeper.machine.held[4].epoch == 3, "that is known")
        assert len(log.opened) == 1
        assert unit.plane.told(notes.FORGET) == [(notes.FORGET, 4)]
        unit.plane.forgets = True
        unit.plane.forgotten(4)
        await until(lambda: unit.plane.led.get(4) == 3, "it is led")
        assert log.closed[0] == 4
        await unit.end()

    run(body)


def test_a_shard_that_is_lost_while_it_is_read_is_forgotten_after_that() -> None:
    async def body(store: Store) -> None:
        log = MemoryLog(Logs())
        log.logs.records = {4: b"much"}
        log.reads.clear()
        unit = await Unit("a", EmbeddedDirectory(store), log).start()
        other = await EmbeddedDirectory(store).register("b", b"", 5)
        await until(lambda: log.opened, "they are being opened")
        await _give(unit, 4, 2, to=other.identity)
        await until(lambda: 4 not in unit.keeper.machine.held, "it is another's")
        assert unit.plane.told(notes.FORGET) == []
        log.reads.set()
        await until(lambda: unit.plane.told(notes.FORGET), "it is forgotten")
        assert [kind for kind, _ in unit.plane.told(notes.LOG_RECOVER, notes.FORGET)][:2] == [
            notes.LOG_RECOVER,
            notes.LOG_RECOVER if unit.plane.told(notes.LOG_RECOVER)[1:] else notes.FORGET,
        ]
        assert 4 not in unit.plane.led
        await until(lambda: len(unit.plane.leads_now()) == SHARDS - 1, "the others are led")
        await other.close()
        await unit.end()

    run(body)


def test_a_shard_is_given_away_when_its_sessions_are_stored_and_not_before() -> None:
    async def body(store: Store) -> None:
        logs = Logs()
        one = await Unit("a", EmbeddedDirectory(store), MemoryLog(logs)).start()
        await until(lambda: len(one.plane.leads_now()) == SHARDS, "all are led")
        one.flushes = False
        other = await Unit("b", EmbeddedDirectory(store), MemoryLog(logs)).start()
        know_each_other(one, other)
        await until(lambda: len(one.flushed) > 1, "it is asked for, and again")
        assert other.plane.led == {}
        assert logs.epochs == dict.fromkeys(range(SHARDS), 1)
        await until(lambda: len(one.plane.leads_now()) == SHARDS, "what could not be given away is led again")
        one.flushes = True
        await until(lambda: len(other.plane.leads_now()) == SHARDS // 2, "each has half of them")
        assert set(other.plane.led.values()) == {2}
        assert sorted(one.stopped) == sorted(other.plane.led) == sorted(shard for shard, _ in other.led)
        assert [shard for shard in range(SHARDS) if one.keeper.writes(shard)] == sorted(one.plane.led)
        assert one.led == [(shard, 1) for shard in range(SHARDS)], "the end of a pause is no new beginning"
        await one.end()
        await other.end()

    run(body)


def test_what_became_of_claims_is_not_known_while_the_directory_is_away() -> None:
    async def body(store: Store) -> None:
        unit = await Unit("a", EmbeddedDirectory(store, deadline_s=0.05)).start()
        await until(lambda: len(unit.plane.leads_now()) == SHARDS, "all are led")
        store.here.clear()
        assert "nothing is known" in await unit.keeper.move(0, "a")
        await until(lambda: unit.keeper.machine.away, "it is noticed")
        assert "ask again later" in await unit.keeper.move(0, "a")
        assert len(unit.plane.leads_now()) == SHARDS, "what is led stays"
        store.here.set()
        store.wake()
        await until(lambda: not unit.keeper.machine.away, "that is noticed as well")
        assert await unit.keeper.move(0, "a") == ""
        await unit.end()

    run(body)


def test_an_operator_hears_what_became_of_a_wish() -> None:
    async def body(store: Store) -> None:
        unit = await Unit("a", EmbeddedDirectory(store)).start()
        await until(lambda: len(unit.plane.leads_now()) == SHARDS, "all are led")
        assert await unit.keeper.move(SHARDS, "a") == f"there is no shard {SHARDS}: they are 0 to {SHARDS - 1}"
        assert "no router that takes shards" in await unit.keeper.move(0, "x")
        assert await unit.keeper.move(0, "a") == ""
        pins = (await unit.directory.read("pins/")).items
        assert {key: item.value for key, item in pins.items()} == {"pins/0": encode(PinRecord("a"))}
        assert await unit.keeper.move(0, None) == ""
        assert (await unit.directory.read("pins/")).items == {}
        await unit.end()

    run(body)


def test_a_log_that_another_router_took_over_ends_this_one() -> None:
    class Deposed(MemoryLog):
        async def open_shards(self, epochs: object) -> dict[int, int | None]:
            raise LogDeposed("another's")

    async def body(store: Store) -> None:
        unit = await Unit("a", EmbeddedDirectory(store), Deposed(Logs())).start()
        assert unit.running is not None
        with pytest.raises(LogDeposed):
            await unit.running
        await unit.end()

    run(body)


@pytest.mark.parametrize(
    "error",
    [Unavailable("half of it", results=(None,) * SHARDS), Unavailable("none of it"), Misused("a mistake")],
)
def test_claims_of_which_nothing_is_known_are_made_again(error: Exception) -> None:
    class Once(EmbeddedDirectory):
        failed = 0

        async def transact(self, claims: Sequence[Claim]) -> list[Result]:
            if not self.failed and claims[0].key.startswith("shards/"):
                self.failed += 1
                raise error
            return await super().transact(claims)

    async def body(store: Store) -> None:
        directory = Once(store)
        unit = await Unit("a", directory).start()
        await until(lambda: len(unit.plane.leads_now()) == SHARDS, "all are led")
        assert directory.failed == 1
        await unit.end()

    run(body)


def test_a_tick_comes_when_it_is_due_and_the_last_wish_counts() -> None:
    async def body(store: Store) -> None:
        class Listens(Leadership):
            def step(self, event: ev.Event, now: float) -> list[ev.Effect]:
                seen.append(event)
                return []

        seen: list[ev.Event] = []
        unit = Unit("a", EmbeddedDirectory(store))
        unit.keeper.machine = Listens("a", QUICK)
        unit.keeper._wake_at(ev.WakeAt(now() + 60))
        began = now()
        unit.keeper._wake_at(ev.WakeAt(began + 0.02))
        await until(lambda: seen, "the tick")
        assert seen == [ev.Tick()]
        assert now() >= began + 0.02
        await unit.end()

    run(body)


def _in(region: str, other: str) -> Settings:
    return dataclasses.replace(QUICK, region=region, regions=frozenset({other}), placement=("eu", "us"))


def test_a_shard_is_followed_or_led_and_forgotten_in_between() -> None:
    async def body(store: Store) -> None:
        eu = await Unit("a", EmbeddedDirectory(store), settings=_in("eu", "us"), region="eu").start()
        await until(lambda: len(eu.plane.leads_now()) == SHARDS, "all are led")
        us = await Unit("b", EmbeddedDirectory(store), settings=_in("us", "eu"), region="us").start()
        know_each_other(eu, us)
        await until(lambda: us.follows[-1:] == [dict.fromkeys(range(SHARDS), ("eu", 1))], "all are followed")
        assert us.plane.told(notes.FORGET, notes.LEAD) == []
        assert eu.follows == []
        await store_claim(store, Claim(f"{REGIONS}eu", 0, encode(RegionRecord("op", 1))))
        await until(lambda: len(us.plane.leads_now()) == SHARDS, "the other region leads all")
        for shard in range(SHARDS):
            mine = [kind for kind, one in us.plane.told(notes.FORGET, notes.LEAD) if one == shard]
            assert mine == [notes.FORGET, notes.LEAD]
        assert us.follows[-1] == {}
        await until(lambda: eu.follows and len(eu.follows[-1]) == SHARDS, "what was given away is followed")
        assert set(eu.follows[-1].values()) == {("us", 2)}
        await eu.end()
        await us.end()

    run(body)


def test_what_was_led_is_followed_once_it_is_forgotten() -> None:
    async def body(store: Store) -> None:
        unit = await Unit("a", EmbeddedDirectory(store), settings=_in("eu", "us"), region="eu").start()
        await until(lambda: len(unit.plane.leads_now()) == SHARDS, "all are led")
        unit.plane.forgets = False
        epoch = unit.keeper.machine.epoch
        unit.keeper.feed(ev.Changed(NODES, 900, ((f"{NODES}b", encode(NodeRecord(1, "", "us")), 900),)))
        unit.keeper.feed(ev.Changed(PREFIX, 901, ((f"{PREFIX}3", encode(ShardRecord("b", 900, 2, "taken")), 901),)))
        assert epoch != 900
        await until(lambda: (notes.FORGET, 3) in unit.plane.told(notes.FORGET), "it is to be forgotten")
        assert unit.follows == []
        unit.plane.forgotten(3)
        await until(lambda: unit.follows == [{3: ("us", 2)}], "it is followed")
        unit.keeper.follow_anew(3)
        unit.keeper.follow_anew(4)
        assert unit.follows[-1] == {}
        await until(lambda: unit.plane.told(notes.FORGET).count((notes.FORGET, 3)) == 2, "it is to be forgotten")
        unit.plane.forgotten(3)
        await until(lambda: unit.follows[-1] == {3: ("us", 2)}, "it is followed anew")
        unit.keeper.tell(notes.LOG_RECOVER, request=3)
        await unit.keeper.tell_much(notes.LOG_RECOVER, request=3, text=b"much")
        assert [fields.get("text") for kind, fields in unit.plane.notes if kind == notes.LOG_RECOVER] == [None, b"much"]
        await unit.end()

    run(body)


def test_a_shard_is_left_where_it_is_while_it_could_not_be_opened_by_its_taker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[int] = []
    obstacles = ["region `ap`: it is away"]

    async def able(shard: int) -> str:
        asked.append(shard)
        return obstacles[0]

    async def body(store: Store) -> None:
        eu = await Unit("a", EmbeddedDirectory(store), settings=_in("eu", "us"), region="eu").start()
        await until(lambda: len(eu.plane.leads_now()) == SHARDS, "all are led")
        us = await Unit("b", EmbeddedDirectory(store), settings=_in("us", "eu"), region="us", able=able).start()
        know_each_other(eu, us)
        await store_claim(store, Claim(f"{REGIONS}eu", 0, encode(RegionRecord("op", 1))))
        await until(lambda: len(asked) > len(set(asked)) + 3, "it is looked again and again")
        assert eu.plane.told(notes.PAUSE) == []
        assert (await us.directory.read("moves/")).items == {}
        assert sum("left where it is led" in text for text in caplog.messages) == 1, "it is told once in some seconds"
        obstacles[0] = ""
        await until(lambda: len(us.plane.leads_now()) == SHARDS, "the other region leads all")
        await eu.end()
        await us.end()

    run(body)


async def store_claim(store: Store, claim: Claim) -> None:
    directory = EmbeddedDirectory(store)
    await directory.transact([claim])
    await directory.close()
