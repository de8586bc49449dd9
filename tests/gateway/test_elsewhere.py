"""What a leaving worker is told of the others: the busiest, as of lately, and only while somebody leaves."""

import asyncio
from typing import Any

from gateway.elsewhere import Elsewhere, Load
from tests.gateway.test_supervisor import until


class Process:
    """Stands for a worker's process."""

    def __init__(self) -> None:
        self.is_ready = True
        self.handshakes = self.welcomed = self.took_ms = 0
        self.told: list[dict[str, Any]] = []
        self.gone = False

    def stats(self) -> dict[str, dict[str, int]]:
        return {
            "counters": {"entered_open": self.welcomed},
            "gauges": {"handshakes": self.handshakes},
            "times": {"welcome_sum": self.took_ms},
        }

    async def ask(self, method: str, *, deadline_s: float, **fields: Any) -> None:
        assert (method, deadline_s > 0) == ("pace", True)
        if self.gone:
            raise ConnectionResetError("it has ended")
        self.told.append(fields)


class Place:
    """A place with its process, and those that leave it."""

    def __init__(self, current: Process | None, *leaving: Process) -> None:
        self.current = current
        self.leaving = list(leaving)


def test_the_busiest_counts_by_what_happened_since_the_last_look() -> None:
    one, other = Process(), Process()
    elsewhere = Elsewhere(lambda: [Place(one), Place(other), Place(None)])  # type: ignore[list-item]
    one.welcomed, one.took_ms = 1000, 1_000_000  # long ago: before the first look
    assert elsewhere.look() == Load(0, 0.0)
    one.welcomed, one.took_ms, one.handshakes = 1010, 1_000_500, 7
    other.welcomed, other.took_ms, other.handshakes = 2, 600, 3
    assert elsewhere.look() == Load(7, 0.3)
    assert elsewhere.look() == Load(7, 0.0)


def test_a_new_process_in_a_place_is_not_held_against_the_old_ones_counts() -> None:
    place = Place(Process())
    elsewhere = Elsewhere(lambda: [place])  # type: ignore[list-item]
    assert place.current is not None
    place.current.welcomed, place.current.took_ms = 500, 100_000
    elsewhere.look()
    place.current = Process()
    place.current.welcomed, place.current.took_ms = 5, 900_000
    assert elsewhere.look() == Load(0, 0.0)


def test_who_leaves_is_told_and_one_that_is_gone_disturbs_nobody(run_in_loop: Any) -> None:
    busy, leaving, gone = Process(), Process(), Process()
    busy.handshakes, gone.gone = 9, True
    place = Place(busy)

    async def scenario() -> None:
        elsewhere = Elsewhere(lambda: [place], look_s=0.001)  # type: ignore[list-item]
        task = asyncio.create_task(elsewhere.run())
        place.leaving = [gone, leaving]
        await until(lambda: len(leaving.told) >= 3, "it is told")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_in_loop(scenario())
    assert leaving.told[0] == {"handshakes": 9, "welcome_s": 0.0}
    assert busy.told == []
