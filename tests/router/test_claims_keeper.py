"""The keeper of claims: each HELLO is answered once, with those of its turn, and by what the directory says."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgpack
import pytest

from core import notes
from core.codes import Code
from core.owned import ACCOUNT
from core.records import CLAIM_BITS
from router import claims_keeper, departed
from router.claims_keeper import (
    AGAIN,
    BYE,
    HELLO_DEADLINE_S,
    KIND_BITS,
    NEW,
    SILENT_DEADLINE_S,
    UNDER_WAY_MAX,
    UNIT,
    Alone,
    ClaimsKeeper,
)
from router.directory.embedded import EmbeddedDirectory, Store
from router.directory.port import NODES, Claim, Registration, Result, Snapshot, Unavailable
from router.shards.owners import Owner, Policy, prefix_of, slot_of
from tests.router.units import until

DEADLINE_S = 20.0
SHARDS = 4


class Cut(EmbeddedDirectory):
    """A directory that counts its round trips, and can be away, or lose its answers."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.calls: list[int] = []
        self.keys: list[str] = []
        self.away = False
        self.answers, self.pages = asyncio.Event(), asyncio.Event()
        self.answers.set()
        self.pages.set()
        self.asked = 0

    async def transact(self, claims: Sequence[Claim]) -> list[Result]:
        self.calls.append(len(claims))
        self.keys += [claim.key for claim in claims]
        await self.answers.wait()
        if self.away:
            raise Unavailable("it is away")
        return await super().transact(claims)

    async def page(self, prefix: str, after: str, count: int) -> Snapshot:
        await self.answers.wait() if prefix == NODES else await self.pages.wait()
        if self.away:
            self.asked += 1
            raise Unavailable("it is away")
        found = await super().page(prefix, after, count)
        self.asked += 1
        return found


class World:
    """A keeper whose data plane is the test."""

    def __init__(self, policy: Policy = Policy.MANY, when_away: str = "refuse", store: Store | None = None) -> None:
        self.store = store or Store()
        self.directory = Cut(self.store)
        self.units: dict[str, Registration] = {}
        self.over: set[int] = set()
        self.time = 0.0
        self.said: list[tuple[int, dict[str, Any]]] = []
        self.keeper = ClaimsKeeper(
            self.directory,
            self._put,
            policy,
            when_away,
            unit_epoch=lambda name: self.units[name].identity.epoch if name in self.units else 0,
            over=self.over.__contains__,
            shards=SHARDS,
            clock=lambda: self.time,
        )
        self._last = 0

    def _put(self, kind: int, **fields: Any) -> None:
        self.said.append((kind, fields))

    async def live(self, *nodes: str) -> None:
        for node in nodes:
            self.units[node + UNIT] = await self.directory.register(node + UNIT, b"", 3600)

    def hello(self, session: int, connection: int, *, user: str = "ann", device: str = "", node: str = "a") -> int:
        self._last += 1
        self.say(NEW, session, connection, request=self._last, user=user, device=device, node=node)
        return self._last

    def say(self, kind: int, session: int, connection: int, **told: Any) -> None:
        self.keeper.on_claim(
            told.get("request", 0),
            kind | 2 << KIND_BITS,
            connection,
            told.get("fence", 0),
            7,
            id_of(session),
            msgpack.packb({"user": told.get("user", "ann"), "device": told.get("device", "")}) if kind == NEW else b"",
            f"{told.get('node', 'a')}/2/7-99".encode(),
        )

    async def answer(self, request: int) -> dict[str, Any]:
        """CLAIMED of a HELLO."""
        await until(lambda: self.answers(request), "the answer")
        (found,) = self.answers(request)
        return found

    def answers(self, request: int) -> list[dict[str, Any]]:
        return [one for kind, one in self.said if kind == notes.CLAIMED and one["request"] == request]

    async def keys(self) -> list[str]:
        return sorted((await self.directory.read("sessions/")).items)

    def evicted(self) -> list[dict[str, Any]]:
        return [one for kind, one in self.said if kind == notes.EVICT]

    async def settled(self, keys: int) -> None:
        """So many keys are there, all told."""
        await until(lambda: len(self.store.select("sessions/").items) == keys, f"{keys} keys")

    async def close(self) -> None:
        await self.keeper.close()
        for unit in self.units.values():
            await unit.close()
        await self.directory.close()


def id_of(session: int) -> bytes:
    return session.to_bytes(16, "little")


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await body()

    before = set(ACCOUNT.held)
    asyncio.run(limited())
    assert not {one.name for one in ACCOUNT.held - before}


async def led(*, policy: Policy = Policy.MANY, when_away: str = "refuse", store: Store | None = None) -> World:
    world = World(policy, when_away, store)
    await world.live("a", "b")
    for shard in range(SHARDS):
        world.keeper.lead(shard)
    return world


def test_the_hellos_of_a_turn_go_to_the_directory_together_and_each_gets_a_higher_fence() -> None:
    async def body() -> None:
        world = await led()
        await until(lambda: all(world.keeper.ready(shard) for shard in range(SHARDS)), "all sessions are read")
        requests = [world.hello(session, session) for session in range(1, 301)]
        fences = [(await world.answer(request))["first"] for request in requests]
        assert world.directory.calls == [300]
        assert min(fences) >= 1 << CLAIM_BITS
        assert len(await world.keys()) == 300
        again = world.hello(7, 900)
        assert (await world.answer(again))["first"] > max(fences)
        await world.close()

    run(body)


def test_a_session_that_is_resumed_names_the_connection_that_has_it() -> None:
    async def body() -> None:
        world = await led()
        first = await world.answer(world.hello(1, 10))
        assert (first["second"], first["text"]) == (0, bytes(16))
        second = await world.answer(world.hello(1, 20, node="b"))
        assert second["second"] == Code.RESUMED_ELSEWHERE
        assert second["text"] == id_of(1) + b"the session was resumed on another connection, on node b"
        assert world.evicted() == []  # the answer tells of it
        await world.close()

    run(body)


def test_with_one_session_a_user_the_former_is_kicked_and_told_by_whom() -> None:
    async def body() -> None:
        world = await led(policy=Policy.ONE)
        await world.answer(world.hello(1, 10))
        second = await world.answer(world.hello(1 + SHARDS, 20, device="phone", node="b"))
        assert second["second"] == Code.KICKED
        assert second["text"] == id_of(1) + b"ann logged in from a device of class phone, on node b"
        other = await world.answer(world.hello(1 + 2 * SHARDS, 30, user="bob"))
        assert other["text"] == bytes(16)
        assert len(await world.keys()) == 2
        await world.close()

    run(body)


def test_with_one_session_a_class_of_device_other_classes_stay() -> None:
    async def body() -> None:
        world = await led(policy=Policy.ONE_PER_DEVICE_CLASS)
        for number, device in enumerate(("phone", "desktop")):
            assert (await world.answer(world.hello(1 + number * SHARDS, number, device=device)))["text"] == bytes(16)
        third = await world.answer(world.hello(1 + 2 * SHARDS, 9, device="desktop"))
        assert third["text"][:16] == id_of(1 + SHARDS)
        await world.close()

    run(body)


def test_a_connection_that_ends_gives_its_key_back() -> None:
    async def body() -> None:
        world = await led()
        request = world.hello(1, 10)
        await world.answer(request)
        world.say(BYE, 1, 11)  # another's end is nothing to it
        await world.settled(1)
        world.say(BYE, 1, 10)
        await world.settled(0)
        await world.close()

    run(body)


def test_a_connection_that_ends_before_its_answer_is_not_answered_and_leaves_no_key() -> None:
    async def body() -> None:
        world = await led()
        request = world.hello(1, 10)
        world.say(BYE, 1, 10, request=request)
        other = world.hello(2, 20)
        await world.answer(other)
        await world.settled(1)
        assert not [one for kind, one in world.said if kind == notes.CLAIMED and one["request"] == request]
        claimed = world.hello(3, 30)
        world.keeper._take()  # it is on its way to the directory
        world.say(BYE, 3, 30, request=claimed)
        await world.answer(world.hello(4, 40))
        await world.settled(2)
        await world.close()

    run(body)


def test_a_new_leader_reads_what_there_is_before_it_answers() -> None:
    async def body() -> None:
        before = await led(policy=Policy.ONE)
        old = (await before.answer(before.hello(1, 10)))["first"]
        await before.keeper.close()
        world = World(Policy.ONE, store=before.store)
        world.units = before.units
        request = world.hello(1 + SHARDS, 20)
        world.keeper.lead(1)
        answer = await world.answer(request)
        assert (answer["text"][:16], answer["second"]) == (id_of(1), Code.KICKED)
        assert answer["first"] > old
        await world.close()

    run(body)


def test_a_connection_that_lost_its_session_under_an_earlier_leader_is_evicted() -> None:
    async def body() -> None:
        world = await led()
        first = (await world.answer(world.hello(1, 10)))["first"]
        second = (await world.answer(world.hello(1, 20)))["first"]
        world.say(AGAIN, 1, 20, fence=second)
        world.say(AGAIN, 1, 10, fence=first)
        await until(world.evicted, "the eviction")
        (evicted,) = world.evicted()
        assert (evicted["conn"], evicted["first"]) == (10, Code.RESUMED_ELSEWHERE)
        await world.close()

    run(body)


def test_while_the_directory_is_away_nobody_is_let_in() -> None:
    async def body() -> None:
        world = await led()
        await world.answer(world.hello(2, 5))
        world.directory.away = True
        refused = await world.answer(world.hello(1, 10))
        assert (refused["second"], refused.get("first", 0)) == (Code.UNAVAILABLE, 0)
        world.keeper.away()
        assert (await world.answer(world.hello(1, 11)))["second"] == Code.UNAVAILABLE
        assert len(world.directory.calls) == 2  # the second one was not even asked
        world.directory.away = False
        world.keeper.back()
        assert (await world.answer(world.hello(1, 12)))["first"]
        await world.close()

    run(body)


def test_or_they_are_let_in_and_written_down_later() -> None:
    async def body() -> None:
        world = await led(when_away="local")
        known = (await world.answer(world.hello(1 + SHARDS, 5)))["first"]
        world.directory.away = True
        world.keeper.away()
        let_in = await world.answer(world.hello(1, 10))
        assert let_in["first"] > known
        assert len(await world.keys()) == 1
        world.directory.away = False
        world.keeper.back()
        await world.settled(2)
        later = await world.answer(world.hello(1, 20))
        assert later["first"] > let_in["first"]
        assert later["text"][:16] == id_of(1)
        await world.close()

    run(body)


def test_a_hello_whose_worker_does_not_wait_any_more_is_not_claimed() -> None:
    async def body() -> None:
        world = World()
        world.keeper.lead(1)
        request = world.hello(1, 10)  # of a node whose life is not known
        await asyncio.sleep(0)
        world.time += HELLO_DEADLINE_S + 1
        assert (await world.answer(request))["second"] == Code.UNAVAILABLE
        assert world.directory.calls == []
        await world.close()

    run(body)


def test_a_shard_that_is_given_up_refuses_who_waits() -> None:
    async def body() -> None:
        world = await led()
        await world.answer(world.hello(2, 5))
        request = world.hello(1, 10)
        world.keeper._take()
        world.keeper.stop(1)
        assert (await world.answer(request))["second"] == Code.UNAVAILABLE
        assert (await world.answer(world.hello(1, 10)))["second"] == Code.UNAVAILABLE
        await world.close()

    run(body)


def test_what_lived_on_a_node_that_is_over_is_nobodys_or_the_nodes_next_lifes() -> None:
    async def body() -> None:
        world = await led()
        await world.answer(world.hello(1, 10))
        await world.answer(world.hello(2, 20, node="b"))
        gone, renewed = world.units.pop("a" + UNIT), world.units["b" + UNIT]
        for unit in (gone, renewed):
            await unit.close()
        await world.live("b")
        for unit in (gone, renewed):
            world.over.add(unit.identity.epoch)
            world.keeper.node_over(unit.identity.epoch)
        assert world.keeper.route(id_of(1)) is None
        await until(lambda: world.keeper.route(id_of(2)), "it is claimed anew")
        found = world.keeper.route(id_of(2))
        assert found is not None
        assert found[0].node_epoch == world.units["b" + UNIT].identity.epoch
        await world.close()

    run(body)


def test_alone_every_node_that_is_named_lives() -> None:
    async def body() -> None:
        alone = Alone()
        said: list[dict[str, Any]] = []
        keeper = ClaimsKeeper(
            alone.directory, lambda kind, **fields: said.append(fields), Policy.ONE, unit_epoch=alone.unit_epoch
        )
        keeper.lead(1, empty=True)
        for request, node in enumerate((b"a/1/1", b"c/1/1"), 1):
            stored = msgpack.packb({"user": "ann", "device": ""})
            keeper.on_claim(request, NEW, request, 0, 1, id_of(1 + 256 * request), stored, node)
        await until(lambda: len(said) == 2, "both answers")
        first, second = said
        assert first["first"] < second["first"]
        assert second["text"][:16] == id_of(257)
        await keeper.close()
        await alone.close()

    run(body)


def key_of(session: int) -> str:
    owner = Owner(id_of(session).hex(), "", "", "", 1, 0, 0)
    return prefix_of(session % SHARDS) + slot_of(Policy.MANY, owner)


def test_while_the_directory_is_slow_nothing_is_asked_of_it_for_who_waits_no_more_and_the_oldest_is_next() -> None:
    async def body() -> None:
        world = await led()
        await until(lambda: all(world.keeper.ready(shard) for shard in range(SHARDS)), "all sessions are read")
        world.directory.answers.clear()
        for session in range(1, UNDER_WAY_MAX + 1):
            world.hello(session, session)
        await until(lambda: len(world.directory.keys) == UNDER_WAY_MAX, "as much is asked as may be at once")
        overdue = world.hello(2001, 2001)
        world.time = HELLO_DEADLINE_S - 1
        ended = world.hello(2002, 2002)
        waiting = [world.hello(session, session) for session in range(2003, 2010)]
        world.say(BYE, 2002, 2002, request=ended)
        world.time = HELLO_DEADLINE_S + 1
        world.directory.answers.set()
        assert (await world.answer(overdue))["second"] == Code.UNAVAILABLE
        fences = [(await world.answer(request))["first"] for request in waiting]
        assert fences[0]
        assert fences == sorted(fences)
        assert world.directory.keys[UNDER_WAY_MAX:] == [key_of(session) for session in range(2003, 2010)]
        assert not world.answers(ended)
        await world.close()

    run(body)


def test_a_node_that_is_not_known_yet_holds_up_nobody_else_and_its_own_keep_their_order() -> None:
    async def body() -> None:
        world = await led()
        await until(lambda: all(world.keeper.ready(shard) for shard in range(SHARDS)), "all sessions are read")
        first = world.hello(1, 1, node="late")
        await world.answer(world.hello(2, 2))
        await world.answer(world.hello(3, 3))
        assert not world.answers(first)
        await world.live("late")
        second = world.hello(1, 4, node="late")
        assert (await world.answer(second))["first"] > (await world.answer(first))["first"]
        await world.close()

    run(body)


def test_an_end_that_is_told_while_the_sessions_are_read_takes_its_key_away() -> None:
    async def body() -> None:
        store = Store()
        world = await led(store=store)
        await world.answer(world.hello(1, 1))
        again = await led(store=store)
        again.say(BYE, 1, 1)
        await again.settled(0)
        await again.close()
        await world.close()

    run(body)


async def silent(world: World) -> None:
    """The directory stands still, and was waited for long enough."""
    for _ in range(9):
        world.time += SILENT_DEADLINE_S / 8
        world.keeper.look()


def test_who_waits_while_the_directory_stands_still_is_refused_and_whoever_comes_then_is_at_once() -> None:
    async def body() -> None:
        world = await led()
        await until(lambda: all(world.keeper.ready(shard) for shard in range(SHARDS)), "all sessions are read")
        world.directory.answers.clear()
        waiting = [world.hello(session, session) for session in range(1, UNDER_WAY_MAX + 20)]
        await until(lambda: len(world.directory.keys) == UNDER_WAY_MAX, "as much is asked as may be at once")
        world.keeper.look()
        assert not world.said
        await silent(world)
        assert [(await world.answer(request))["second"] for request in waiting] == [Code.UNAVAILABLE] * len(waiting)
        assert (await world.answer(world.hello(1, 5000)))["second"] == Code.UNAVAILABLE
        assert len(world.directory.keys) == UNDER_WAY_MAX
        # What was under way wins after all, and belongs to nobody.
        world.directory.answers.set()
        await until(lambda: len(world.store.select("sessions/").items) > 0, "it comes about")
        world.keeper.look()
        await world.settled(0)
        assert (await world.answer(world.hello(1, 5001)))["first"]
        assert world.evicted() == []
        await world.close()

    run(body)


def test_or_is_let_in_and_has_the_key_when_it_is_back() -> None:
    async def body() -> None:
        world = await led(when_away="local")
        await until(lambda: all(world.keeper.ready(shard) for shard in range(SHARDS)), "all sessions are read")
        world.directory.answers.clear()
        request = world.hello(1, 10)
        await until(lambda: world.directory.keys, "it is asked")
        await silent(world)
        assert (await world.answer(request))["first"]
        assert (await world.answer(world.hello(2, 20)))["first"]
        world.directory.answers.set()
        await world.settled(1)
        world.keeper.look()
        await world.settled(2)
        await world.close()

    run(body)


def test_while_it_is_silent_nobody_waits_for_a_shard_that_is_not_read_nor_for_a_node_that_is_not_known() -> None:
    async def body() -> None:
        world = await led()
        await until(lambda: world.keeper.ready(1), "its sessions are read")
        world.directory.answers.clear()
        world.directory.pages.clear()
        world.hello(1, 10)
        world.keeper.stop(2)
        world.keeper.lead(2)
        unread, unknown = world.hello(2, 20), world.hello(1, 30, node="late")
        await until(lambda: world.directory.keys, "one is asked for")
        assert not world.said
        await silent(world)
        for request in (unread, unknown):
            assert (await world.answer(request))["second"] == Code.UNAVAILABLE
        world.directory.answers.set()
        world.directory.pages.set()
        await until(lambda: world.keeper.ready(2), "it is read")
        world.keeper.look()
        assert (await world.answer(world.hello(2, 21)))["first"]
        await world.close()

    run(body)


def test_a_silent_directory_is_asked_until_it_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        monkeypatch.setattr(claims_keeper, "AGAIN_S", 0.001)
        world = await led()
        await until(lambda: all(world.keeper.ready(shard) for shard in range(SHARDS)), "all sessions are read")
        world.directory.answers.clear()
        world.directory.away = True
        request = world.hello(1, 10)
        await until(lambda: world.directory.keys, "it is asked")
        await silent(world)
        assert (await world.answer(request))["second"] == Code.UNAVAILABLE
        world.directory.answers.set()  # it has an end, but none that says anything
        asked = world.directory.asked
        await until(lambda: world.directory.asked > asked + 2, "it is asked again and again")
        world.keeper.look()
        assert (await world.answer(world.hello(1, 11)))["second"] == Code.UNAVAILABLE
        world.directory.away = False
        asked = world.directory.asked
        await until(lambda: world.directory.asked > asked, "it is asked once more")
        world.keeper.look()
        assert (await world.answer(world.hello(1, 12)))["first"]
        await world.close()

    run(body)


def test_the_keys_of_a_worker_that_died_go_and_those_that_were_claimed_again_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body() -> None:
        monkeypatch.setattr(departed, "WAIT_S", 0.01)
        world = await led()
        for session in range(1, 6):
            await world.answer(world.hello(session, session))
        await world.answer(world.hello(3, 30, node="b"))
        world.keeper.on_began(2, 8, b"a/2/8")
        await world.settled(1)
        assert world.keeper.route(id_of(1)) is None
        found = world.keeper.route(id_of(3))
        assert found is not None
        assert found[0].node == "b" + UNIT
        later = await world.answer(world.hello(1, 7))  # it is resumed, and finds nobody in its way
        assert (later["text"], later["second"]) == (bytes(16), 0)
        await world.close()

    run(body)
