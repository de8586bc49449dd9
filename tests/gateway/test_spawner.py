"""The zygote as the supervisor sees it: asked, refused, killed and started again, and gone at the end."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gateway.child import Child, ChildSpec
from gateway.spawner import Spawner

DEADLINE_S = 30.0


async def ready(child: Child) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await child.ready.wait()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_zygotes_death_costs_no_process_and_the_next_comes_from_a_new_one(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        spawner = Spawner(())
        one, other = (Child(programs.spec(name), spawner) for name in ("one", "other"))
        running = [asyncio.create_task(one.run_once(1))]
        await ready(one)
        killed = spawner.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PID, killed, os.WEXITED | os.WNOWAIT)  # the spawner reaps it
        running.append(asyncio.create_task(other.run_once(2)))
        await ready(other)
        assert spawner.pid != killed
        for child in (one, other):
            assert child.pid is not None
            assert parent_of(child.pid) == os.getpid()
            child.send(signal.SIGTERM)
        assert [await task for task in running] == [0, 0]
        spawner.close()

    run_in_loop(scenario())


def test_a_request_that_the_zygotes_death_cuts_off_fails_and_the_next_is_served(
    programs: Any, run_in_loop: Any
) -> None:
    async def scenario() -> None:
        spawner = Spawner(())
        await Child(programs.spec("first", exit=0), spawner).run_once(1)
        stopped = spawner.pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        asking = asyncio.create_task(Child(programs.spec("cut-off"), spawner).run_once(1))
        await asyncio.sleep(0)  # it has asked, and nobody answers
        os.kill(stopped, signal.SIGKILL)
        with pytest.raises(OSError, match="the zygote failed"):
            await asking
        assert await Child(programs.spec("next", exit=4), spawner).run_once(1) == 4
        spawner.close()

    run_in_loop(scenario())
    assert {note[0] for note in programs.noted()} == {"first", "next"}


def test_a_program_that_does_not_exist_is_refused_and_the_zygote_goes_on(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        spawner = Spawner(())
        missing = Child(ChildSpec("two", ("no.such.module",), programs.spec("two").config), spawner)
        with pytest.raises(FileNotFoundError, match=r"no\.such\.module is neither a program nor a module"):
            await missing.run_once(1)
        before = spawner.pid
        assert await Child(programs.spec("one", exit=3), spawner).run_once(1) == 3
        assert spawner.pid == before
        spawner.close()

    run_in_loop(scenario())


def test_a_module_that_cannot_be_imported_fails_each_start(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        spawner = Spawner(["no_such_module"])
        for _ in range(2):
            with pytest.raises(OSError, match="the zygote failed"):
                await Child(programs.spec("one"), spawner).run_once(1)
        assert spawner.pid is None

    run_in_loop(scenario())


def test_starts_asked_for_at_once_get_a_process_each(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> list[int]:
        spawner = Spawner(())
        places = [Child(programs.spec(f"p{code}", exit=code), spawner) for code in range(8)]
        codes = await asyncio.gather(*(place.run_once(1) for place in places))
        spawner.close()
        return codes

    assert run_in_loop(scenario()) == list(range(8))


def test_nothing_is_left_when_it_is_closed(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        spawner = Spawner(())
        await Child(programs.spec("first", exit=0), spawner).run_once(1)
        spawner.close()  # the loop keeps a descriptor of its own from its first stream on
        before = len(os.listdir("/proc/self/fd"))
        await Child(programs.spec("one", exit=0), spawner).run_once(1)
        pid = spawner.pid
        spawner.close()
        assert spawner.pid is None
        assert str(pid) not in os.listdir("/proc")
        assert len(os.listdir("/proc/self/fd")) == before

    run_in_loop(scenario())


def zombies() -> list[int]:
    """Children of this process that have ended and were not reaped."""
    found = []
    for listed in Path("/proc/self/task").glob("*/children"):
        for pid in map(int, listed.read_text().split()):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            found += [pid] if state == "Z" else []
    return found


def test_what_a_killed_zygote_had_half_started_is_buried(run_in_loop: Any) -> None:
    async def scenario() -> None:
        spawner = Spawner(())
        reading, writing = os.pipe()
        half = await spawner.start("half", ("true",), reading, reading, reading)
        os.close(reading)
        killed = spawner.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PID, killed, os.WEXITED | os.WNOWAIT)
        with pytest.raises(FileNotFoundError):  # the next start notices, and starts another zygote
            await spawner.start("none", ("/no/such/program",), writing, writing, writing)
        assert parent_of(half) == os.getpid()
        os.close(writing)  # its configuration will never come
        await asyncio.to_thread(os.waitid, os.P_PID, half, os.WEXITED | os.WNOWAIT)
        assert half in zombies()
        spawner.reap()
        assert half not in zombies()
        spawner.close()

    run_in_loop(scenario())


def test_orphans_are_adopted_as_long_as_anybody_may_have_some(programs: Any, run_in_loop: Any) -> None:
    async def scenario() -> None:
        old, new = Spawner(()), Spawner(())
        assert await Child(programs.spec("one", exit=1), old).run_once(1) == 1
        assert await Child(programs.spec("two", exit=2), new).run_once(1) == 2
        old.close()
        assert await Child(programs.spec("three", exit=3), new).run_once(1) == 3
        new.close()

    run_in_loop(scenario())
