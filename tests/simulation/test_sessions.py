"""Owners of sessions under the simulator: seeds without a violation, and planted bugs found."""

import os
from typing import Any

import pytest

from router.shards import claims as c
from router.shards import events as ev
from router.shards.owners import Fence, Owner
from tests.simulation.directory import Directory
from tests.simulation.sessions import Sessions
from tests.simulation.world import Violation

FULL = os.environ.get("HOLDFAST_SIM") == "full"
SEEDS = 20_000 if FULL else 600
FOUND_WITHIN = 300


class AdmitsAtOnce(c.SessionClaims):
    """A connection is let in before its claim is answered."""

    def _try(self, name: str, slot: c.Slot, event: c.Hello, tries: int = 1) -> None:
        super()._try(name, slot, event, tries)
        if slot.attempt is not None:
            self._settle(name, slot, event.owner, Fence(self._highest + 1), provisional=False)


class EndsNobody(c.SessionClaims):
    """Who lost his session is not told."""

    def _end(self, former: Owner, by: Owner) -> None:
        pass


class SilenceIsYes(c.SessionClaims):
    """A claim that is not answered counts as won."""

    def _lost(self, name: str, slot: c.Slot, attempt: c.Attempt, result: ev.Lost | None) -> None:
        if result is None and attempt.owner is not None and attempt.request is not None:
            self._settle(name, slot, attempt.owner, Fence(self._highest), provisional=False)
            self._out.append(c.Admit(attempt.request, attempt.owner, slot.fence))
        else:
            super()._lost(name, slot, attempt, result)


class FencesFromNothing(c.SessionClaims):
    """Who is let in without the directory gets a fence that knows nothing of owners before."""

    def _without_directory(self, name: str, slot: c.Slot, request: int, owner: Owner) -> bool:
        slot.fence, self._highest, self.table.reached = c.NO_FENCE, 0, 0
        return super()._without_directory(name, slot, request, owner)


class NeverReconciles(c.SessionClaims):
    """What was decided without the directory is not written down when it is back."""

    def _directory_back(self, event: ev.DirectoryBack) -> None:
        self._away = False


class NoCompare(Directory):
    """Whoever claims gets the key."""

    def claim(self, claim: ev.Claim) -> ev.Won | ev.Lost:
        seen = self.items.get(claim.key, (None, 0))[1]
        return super().claim(claim._replace(expected_revision=seen)) if seen or claim.value else ev.Lost(0, None)


BUGS: dict[str, type[c.SessionClaims]] = {
    "admit at once": AdmitsAtOnce,
    "end nobody": EndsNobody,
    "silence is yes": SilenceIsYes,
    "fences from nothing": FencesFromNothing,
    "never reconcile": NeverReconciles,
}


def _fails(seed: int, machine: type[c.SessionClaims] = c.SessionClaims, **parts: Any) -> str | None:
    world = type("World", (Sessions,), {"machine_type": machine} | parts)(seed)
    try:
        world.run_all()
    except Violation as problem:
        return f"seed {seed}: {problem}\n{world.story()}"
    return None


@pytest.mark.slow
@pytest.mark.timeout(3600 if FULL else 300)
def test_no_seed_shows_a_violation() -> None:
    for seed in range(1, SEEDS + 1):
        found = _fails(seed)
        assert found is None, found


@pytest.mark.slow
@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_found(bug: str) -> None:
    assert any(_fails(seed, BUGS[bug]) for seed in range(1, FOUND_WITHIN + 1))


@pytest.mark.slow
def test_a_directory_that_does_not_compare_is_found() -> None:
    assert any(_fails(seed, directory_type=NoCompare) for seed in range(1, FOUND_WITHIN + 1))
