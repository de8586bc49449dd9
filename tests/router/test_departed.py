"""What workers had that died is given back, and what lives or was claimed again is not."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from router import departed as departed_module
from router.departed import Departed
from router.shards import claims as machine
from router.shards import events as ev
from router.shards.claims import SessionClaims
from router.shards.owners import Owner, Policy
from tests.router.units import until


class World:
    """A shard with sessions, of which it is noted what is given back."""

    def __init__(self) -> None:
        self.machines: dict[int, SessionClaims] = {}
        self.given: list[str] = []
        self.busy = False
        self.tasks: list[asyncio.Task[None]] = []
        self.departed = Departed(self.machines, self._give_back, lambda: self.busy, self._spawn)

    def _give_back(self, one: SessionClaims, owner: Owner) -> None:
        self.given.append(owner.session)
        one.step(machine.Bye(owner))

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        self.tasks.append(task)
        return task

    def lead(self, shard: int, *owners: Owner) -> SessionClaims:
        one = self.machines[shard] = SessionClaims(shard, Policy.MANY, False, lambda epoch: False)
        one.step(ev.Snapshot(f"sessions/{shard}/", 1, {}))
        for revision, owner in enumerate(owners, 2):
            (claims,) = one.step(machine.Hello(1, owner))
            assert isinstance(claims, ev.Claims)
            one.step(ev.ClaimAnswered(claims.claims[0], ev.Won(revision)))
        return one

    async def rest(self) -> None:
        """It has nothing more to do."""
        await until(lambda: all(task.done() for task in self.tasks), "all is looked through")


def owner(session: str, start: int, number: int = 2, node: str = "a.gw") -> Owner:
    return Owner(session, "ann", "", node, 9, start << 8 | number, 1)


def run(monkeypatch: pytest.MonkeyPatch, body: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    monkeypatch.setattr(departed_module, "WAIT_S", 0.01)
    asyncio.run(body(World()))


def test_a_later_start_of_a_worker_says_that_what_an_earlier_one_had_is_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(world: World) -> None:
        one = world.lead(
            0, owner("old", 7), owner("older", 6), owner("new", 8), owner("other", 7, 3), owner("far", 7, node="b.gw")
        )
        world.lead(1, owner("too", 7))
        world.departed.began("a.gw", 8 << 8 | 2)
        await world.rest()
        assert sorted(world.given) == ["old", "older", "too"]
        assert {each.session for each in one.owners()} == {"new", "other", "far"}
        world.departed.began("a.gw", 8 << 8 | 2)  # it links again
        world.departed.began("a.gw", 5 << 8 | 2)  # and one that is late says what is known to be over
        assert len(world.tasks) == 1

    run(monkeypatch, body)


def test_a_session_that_was_claimed_again_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        one = world.lead(0, owner("s", 7))
        world.departed.began("a.gw", 8 << 8 | 2)
        (claims,) = one.step(machine.Hello(2, owner("s", 8)))
        assert isinstance(claims, ev.Claims)
        one.step(ev.ClaimAnswered(claims.claims[0], ev.Won(20)))
        await world.rest()
        assert world.given == []

    run(monkeypatch, body)


def test_a_shard_that_is_led_later_is_looked_through_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        world.departed.look()
        assert world.tasks == []  # no worker has begun
        world.departed.began("a.gw", 8 << 8 | 2)
        await world.rest()
        world.lead(3, owner("s", 7))
        world.departed.look()
        await world.rest()
        assert world.given == ["s"]
        world.departed.forget(lambda node: 0)
        assert not world.departed.is_gone(owner("s", 7))

    run(monkeypatch, body)


def test_who_logs_in_goes_first_and_a_shard_that_is_given_up_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        world.lead(0, owner("s", 7))
        world.busy = True
        world.departed.began("a.gw", 8 << 8 | 2)
        await asyncio.sleep(0.05)
        assert world.given == []
        del world.machines[0]
        world.busy = False
        await world.rest()
        assert world.given == []

    run(monkeypatch, body)
