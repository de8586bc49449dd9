"""Members of etcd are killed, stand still, are parted, forget and start again, under clients that claim and watch.

Each time all that clients were told is one history (tests/contract/directory_history.py), nobody's lease ends that
should not, and claims go on within seconds.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing

import pytest

from router.directory.port import Changes, Claim, Registration, Snapshot, Unavailable, Won, now
from tests.conftest import stand_still, wait_until
from tests.contract.directory_history import History, Traffic
from tests.contract.places import EtcdPlace
from tests.contract.running import run
from tests.servers.etcd import Cluster, Member, running_cluster
from tests.servers.etcd_network import Network, running_network, why_not

PAUSE_S = 15.0
TTL_S = 10
SHORT_TTL_S = 4
SILENCE_S = 15.0
"""Much more than it takes on a machine with nothing else to do, which is two or three seconds."""
WINS = 40


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as made:
        yield made


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    with running_network() as made:
        yield made


Fault = Callable[[Traffic, Member], Awaitable[None]]
_prefixes = iter(range(1_000))


def under(cluster: Cluster, fault: Fault) -> History:
    """Let clients claim and watch, and a node live, while something happens to the leader that they all ask."""
    leader = cluster.leader
    place = EtcdPlace(cluster, f"faults{next(_prefixes)}/", first=leader)
    kept: list[History] = []

    async def body() -> None:
        directory = await place.directory()
        registration = await directory.register("a", b"", TTL_S)
        margins: list[float] = []
        watching = asyncio.create_task(_margins(registration, margins))
        traffic = Traffic(place, 7)
        await traffic.start()
        await traffic.progress(WINS)
        await fault(traffic, leader)
        await traffic.progress(WINS)
        kept.append(await traffic.stop())
        assert kept[0].problems() == []
        watching.cancel()
        await asyncio.wait([watching])
        assert not registration.lost.is_set()
        assert min(margins) > 0, "there was a time at which the lease was not surely held"
        assert (await directory.read("nodes/")).items["nodes/a"].revision == registration.identity.epoch
        await registration.close()

    run(place, body)
    assert kept[0].silence_s < SILENCE_S
    return kept[0]


async def _margins(registration: Registration, margins: list[float]) -> None:
    while True:
        margins.append(registration.held_until() - now())
        await asyncio.sleep(0.05)


async def _down(member: Member) -> None:
    await asyncio.to_thread(member.kill)


async def _up(member: Member) -> None:
    await asyncio.to_thread(member.start)


# ------------------------------------------------------------------------------------------------------ one of three


def test_a_leader_that_is_killed(cluster: Cluster) -> None:
    async def fault(traffic: Traffic, leader: Member) -> None:
        await _down(leader)
        await traffic.progress(WINS)
        await _up(leader)

    under(cluster, fault)


@pytest.mark.slow
def test_a_leader_that_stands_still_for_longer_than_a_lease(cluster: Cluster) -> None:
    async def fault(traffic: Traffic, leader: Member) -> None:
        await asyncio.to_thread(stand_still, leader.pid)
        ends = time.monotonic() + PAUSE_S
        try:
            while time.monotonic() < ends:
                await traffic.progress(1)
        finally:
            leader.signal(signal.SIGCONT)

    history = under(cluster, fault)
    assert history.wins > 3 * WINS


def test_members_that_are_replaced_one_after_the_other(cluster: Cluster) -> None:
    async def fault(traffic: Traffic, leader: Member) -> None:
        for member in cluster.members:
            await _down(member)
            await traffic.progress(5)
            await _up(member)
            await asyncio.to_thread(cluster.wait)

    under(cluster, fault)


# ---------------------------------------------------------------------------------------------------------- all of them


def test_all_are_killed_and_start_again(cluster: Cluster) -> None:
    async def fault(traffic: Traffic, leader: Member) -> None:
        await asyncio.gather(*(_down(member) for member in cluster.members))
        await asyncio.to_thread(cluster.start)

    under(cluster, fault)


def test_all_are_away_and_history_is_forgotten_before_a_watch_is_back(cluster: Cluster) -> None:
    place = EtcdPlace(cluster, f"faults{next(_prefixes)}/")

    async def body() -> None:
        directory, other = await place.directory(), await place.directory()
        [first] = await directory.transact([Claim("k", 0, b"1")])
        async with aclosing(directory.watch("k", first.revision - 1)) as watch:
            said = await anext(watch)
            assert isinstance(said, Changes)
            # What is not asked for stays with etcd, whose members now go: the stream is gone before the next asking.
            revision = first.revision
            for number in range(3):
                [result] = await other.transact([Claim("k", revision, b"%d" % number)])
                revision = result.revision
            await asyncio.gather(*(_down(member) for member in cluster.members))
            await asyncio.to_thread(cluster.start)
            [gone] = await other.transact([Claim("k", revision, None)])
            [made] = await other.transact([Claim("l", 0, b"")])
            assert isinstance(made, Won)
            await place.compact()
            seen: list[Changes | Snapshot] = []
            while not seen or seen[-1].revision < gone.revision:
                seen.append(await anext(watch))
            if isinstance(seen[-1], Snapshot):
                assert seen[-1].items == {}
            else:
                assert seen[-1].changes[-1].value is None

    run(place, body)


def test_while_most_are_away_nothing_is_claimed_and_it_says_so(cluster: Cluster) -> None:
    place = EtcdPlace(cluster, f"faults{next(_prefixes)}/", deadline_s=1.5)

    async def body() -> None:
        directory = await place.directory()
        registration = await directory.register("a", b"", SHORT_TTL_S)
        before = directory.reachable()
        assert before.answers
        first, second, _ = cluster.members
        await asyncio.gather(_down(first), _down(second))
        asked = now()
        with pytest.raises(Unavailable) as raised:
            await directory.transact([Claim("k", 0, b"")])
        assert now() - asked < 5
        assert not raised.value.nothing_done
        with pytest.raises(Unavailable):
            await directory.read("k")
        reach = directory.reachable()
        assert not reach.answers
        assert before.since < reach.since < now()
        await asyncio.to_thread(wait_until, lambda: registration.held_until() < now(), "it is not surely held")
        assert not registration.lost.is_set(), "nobody can know"
        await asyncio.gather(_up(first), _up(second))
        # Who leads anew grants each lease its whole time again: it is held as before.
        await asyncio.to_thread(wait_until, lambda: registration.held_until() > now(), "it is held again")
        assert directory.reachable().answers
        assert not registration.lost.is_set()
        await registration.close()

    run(place, body)


# ------------------------------------------------------------------------------------------------------------- parting


def test_a_leader_that_is_parted_from_the_others(network: Network) -> None:
    async def fault(traffic: Traffic, leader: Member) -> None:
        await asyncio.to_thread(network.part, leader)
        await traffic.progress(WINS)
        await asyncio.to_thread(wait_until, lambda: not leader.is_healthy(), "the leader misses the others")
        await traffic.progress(WINS)
        await asyncio.to_thread(network.heal)
        await asyncio.to_thread(network.cluster.wait)

    under(network.cluster, fault)


def test_a_leader_that_hears_the_others_and_is_not_heard(network: Network) -> None:
    async def fault(traffic: Traffic, leader: Member) -> None:
        await asyncio.to_thread(lambda: network.part(leader, hears=True))
        await traffic.progress(WINS)
        await asyncio.to_thread(wait_until, lambda: not leader.is_healthy(), "the leader misses the others")
        await traffic.progress(WINS)
        await asyncio.to_thread(network.heal)
        await asyncio.to_thread(network.cluster.wait)

    under(network.cluster, fault)


def test_each_member_in_turn_is_parted_from_us_alone(network: Network) -> None:
    async def fault(traffic: Traffic, leader: Member) -> None:
        for member in network.cluster.members:
            await asyncio.to_thread(network.part_from_us, member)
            await traffic.progress(WINS // 2)
            await asyncio.to_thread(network.heal)

    under(network.cluster, fault)
