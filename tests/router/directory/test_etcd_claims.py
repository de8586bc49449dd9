"""Claims are gathered, and each is settled for certain although answers get lost and requests come late."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest

from router.directory import etcd_claims, etcd_txn
from router.directory import etcdpb_pb2 as pb
from router.directory.etcd import EtcdDirectory
from router.directory.etcd_client import REVOKE, TXN, Client, Message, Method, ended
from router.directory.etcd_config import EtcdConfig
from router.directory.port import Claim, Lost, NotAllowed, Unavailable, Won
from tests.contract.directory_history import History, Traffic
from tests.contract.places import EtcdPlace
from tests.router.directory.conftest import in_a_hurry, run
from tests.servers.etcd import Cluster, Member

WINS = 120
Attempt = Callable[[int, Method, Message, float], Coroutine[Any, Any, Any]]


class Weather:
    """What becomes of transactions on their way, for one client.

    Attributes: `fates`, what becomes of the next ones in order: "", "lost" (done, and the answer is lost), "late" (the
    sender is told that it failed, and it is done when `arrive` is called). After them `chance` decides.
    """

    def __init__(self, client: Client, seed: int = 0, chance: float = 0.0) -> None:
        self.fates: list[str] = []
        self.sent: list[Message] = []
        self.came = asyncio.Event()
        self._chance = chance
        self._random = random.Random(seed)
        self._attempt: Attempt = client.attempt
        self._late: list[Callable[[], Coroutine[Any, Any, Any]]] = []
        client.attempt = self  # type: ignore[method-assign]

    async def __call__(self, at: int, method: Method, request: Message, timeout_s: float) -> Any:
        if method is not TXN:
            return await self._attempt(at, method, request, timeout_s)
        copied = pb.TxnRequest.FromString(request.SerializeToString())
        self.sent.append(copied)
        self.came.set()
        fate = self.fates.pop(0) if self.fates else self._draw()
        if fate == "late":
            self._late.append(lambda: self._attempt(at, method, copied, 5.0))
            raise ended(grpc.StatusCode.UNAVAILABLE, "it is late")
        answer = await self._attempt(at, method, request, timeout_s)
        if self._chance and self._late and self._random.random() < 0.5:
            await self.arrive()
        if fate == "lost":
            raise ended(grpc.StatusCode.UNAVAILABLE, "its answer is lost")
        return answer

    async def arrive(self) -> None:
        """The oldest that is late comes in."""
        await self._late.pop(0)()

    async def clear_up(self) -> None:
        """All that are late come in."""
        while self._late:
            await self.arrive()

    def _draw(self) -> str:
        if self._random.random() >= self._chance:
            return ""
        return self._random.choice(["lost", "late"])


class Stormy(EtcdPlace):
    """A place on whose way to etcd transactions get lost and late."""

    def __init__(self, member: Member, prefix: str, chance: float) -> None:
        super().__init__(Cluster([member]), prefix)
        self._chance = chance

    async def directory(self) -> EtcdDirectory:
        made = await super().directory()
        Weather(made._client, len(self._directories), self._chance)
        return made


def history_of(member: Member, prefix: str) -> History:
    place = Stormy(member, prefix, 0.4)

    async def body() -> History:
        try:
            traffic = Traffic(place, 11)
            await traffic.start()
            await traffic.progress(WINS)
            return await traffic.stop()
        finally:
            await place.end()

    return run(body())


def test_lost_answers_and_late_requests_make_no_claim_win_twice_or_without_being_told(
    member: Member, config: EtcdConfig
) -> None:
    assert history_of(member, config.prefix).problems() == []


def test_without_lanes_that_would_be_found(member: Member, config: EtcdConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = etcd_txn.batch

    def careless(*args: Any) -> pb.TxnRequest:
        request = whole(*args)
        del request.compare[:]
        return request

    monkeypatch.setattr(etcd_txn, "batch", careless)
    found = "\n".join(history_of(member, config.prefix).problems())
    assert "who had it lost" in found


# ------------------------------------------------------------------------------------------------------------- one lane


def with_weather(config: EtcdConfig, test: Callable[[EtcdDirectory, Weather], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        directory = EtcdDirectory(config)
        try:
            await test(directory, Weather(directory._client))
        finally:
            await directory.close()

    run(body())


def test_the_results_of_an_answer_that_got_lost_are_read_from_the_history(config: EtcdConfig) -> None:
    async def test(directory: EtcdDirectory, weather: Weather) -> None:
        registration = await directory.register("a", b"", 10)
        dead = registration.identity
        await registration.close()
        a, b, c = await directory.transact([Claim(key, 0, b"1") for key in "abc"])
        asked = [
            Claim("a", a.revision, b"2"),
            Claim("b", b.revision, None),
            Claim("c", 0, b"2"),
            Claim("d", 7, b"2"),
            Claim("e", 0, b"2"),
            Claim("c", c.revision, b"3", dead),
            Claim("f", 0, b"2", dead),
        ]
        # `c` comes twice, and so again in a batch of its own.
        weather.fates = ["lost", "", "", "", "lost"]
        results = await directory.transact(asked)
        revision = results[0].revision
        assert revision > c.revision
        assert results == [
            Won(revision),
            Won(revision),
            Lost(c.revision, b"1"),
            Lost(0, None),
            Won(revision),
            Lost(c.revision, b"1", alive=False),
            Lost(0, None, alive=False),
        ]
        assert not weather.fates

    with_weather(config, test)


def test_what_comes_late_from_a_batch_that_was_sent_again_does_nothing(config: EtcdConfig) -> None:
    async def test(directory: EtcdDirectory, weather: Weather) -> None:
        weather.fates = ["late"]
        [first] = await directory.transact([Claim("k", 0, b"1")])
        assert isinstance(first, Won)
        [gone] = await directory.transact([Claim("k", first.revision, None)])
        assert isinstance(gone, Won)
        await weather.arrive()
        assert (await directory.read("k")).items == {}

    with_weather(config, test)


def test_a_claim_that_was_given_up_is_not_applied_after_the_next_batch_of_its_lane(config: EtcdConfig) -> None:
    async def test(directory: EtcdDirectory, weather: Weather) -> None:
        await directory.transact([Claim("other", 0, b"")])
        weather.fates = ["late"] * 1_000
        with in_a_hurry(directory), pytest.raises(Unavailable) as raised:
            await directory.transact([Claim("k", 0, b"1")])
        assert not raised.value.nothing_done
        assert raised.value.results == (None,)
        weather.fates = []
        await directory.transact([Claim("other2", 0, b"")])
        await weather.clear_up()
        assert (await directory.read("k")).items == {}
        # And when it comes before it, the next batch is applied all the same.
        weather.fates = ["late"] * 1_000
        with in_a_hurry(directory), pytest.raises(Unavailable):
            await directory.transact([Claim("k", 0, b"1")])
        weather.fates = []
        await weather.clear_up()
        assert list((await directory.read("k")).items) == ["k"]
        [result] = await directory.transact([Claim("other3", 0, b"")])
        assert isinstance(result, Won)

    with_weather(config, test)


def test_a_lane_whose_lease_is_gone_is_replaced(config: EtcdConfig) -> None:
    async def test(directory: EtcdDirectory, weather: Weather) -> None:
        [first] = await directory.transact([Claim("k", 0, b"1")])
        assert len((await directory.read("lanes/")).items) == 1
        await directory._client.call(REVOKE, pb.LeaseRevokeRequest(ID=directory._claims._lease))
        [second] = await directory.transact([Claim("k", first.revision, b"2")])
        assert isinstance(second, Won)
        # The key alone.
        [lane] = (await directory.read("lanes/")).items
        request = pb.TxnRequest()
        request.success.add().request_delete_range.key = (config.prefix + lane).encode()
        await directory._client.call(TXN, request)
        [third] = await directory.transact([Claim("k", second.revision, b"3")])
        assert isinstance(third, Won)

    with_weather(config, test)


def test_a_closed_one_leaves_no_lane(config: EtcdConfig) -> None:
    async def body() -> None:
        directory, other = EtcdDirectory(config), EtcdDirectory(config)
        await directory.transact([Claim(f"k/{number}", 0, b"") for number in range(1_000)])
        assert len((await other.read("lanes/")).items) == etcd_claims.LANES
        await directory.close()
        assert (await other.read("lanes/")).items == {}
        await other.close()

    run(body())


# ------------------------------------------------------------------------------------------------------------ gathering


def test_claims_of_all_callers_share_round_trips(config: EtcdConfig) -> None:
    async def test(directory: EtcdDirectory, weather: Weather) -> None:
        callers = [directory.transact([Claim(f"k/{number}", 0, b"")]) for number in range(1_200)]
        results = await asyncio.gather(*callers)
        assert all(isinstance(result, Won) for [result] in results)
        sizes = [len(request.success) - 1 for request in weather.sent if isinstance(request, pb.TxnRequest)]
        assert sizes == [etcd_txn.CLAIMS_MAX] * 10

    with_weather(config, test)


def test_more_claims_than_may_wait_are_refused_at_once(config: EtcdConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_claims, "WAITING_MAX", 100)

    async def test(directory: EtcdDirectory, weather: Weather) -> None:
        with pytest.raises(Unavailable, match="wait already") as raised:
            await directory.transact([Claim(f"k/{number}", 0, b"") for number in range(101)])
        assert raised.value.nothing_done
        assert (await directory.read("k/")).items == {}

    with_weather(config, test)


def test_what_is_known_is_told_when_a_part_is_not(config: EtcdConfig) -> None:
    async def test(directory: EtcdDirectory, weather: Weather) -> None:
        await directory.transact([Claim("k", 0, b"1")])
        # The second claim of the key comes in a batch of its own, which does not arrive.
        weather.fates = ["", *["late"] * 1_000]
        with in_a_hurry(directory, 3.0), pytest.raises(Unavailable) as raised:
            await directory.transact([Claim("l", 0, b"1"), Claim("l", 0, b"2")])
        first, second = raised.value.results
        assert isinstance(first, Won)
        assert second is None
        assert not raised.value.nothing_done

    with_weather(config, test)


def test_who_is_cancelled_before_his_claim_was_sent_claims_nothing(config: EtcdConfig) -> None:
    async def test(directory: EtcdDirectory, weather: Weather) -> None:
        weather.fates = ["late"] * 1_000
        others = []
        for number in range(etcd_claims.LANES):
            weather.came.clear()
            others.append(asyncio.create_task(directory.transact([Claim(f"other/{number}", 0, b"")])))
            await weather.came.wait()
        caller = asyncio.create_task(directory.transact([Claim("k", 0, b"1")]))
        await asyncio.sleep(0)
        assert directory._claims._waiting
        caller.cancel()
        weather.fates = []
        await asyncio.wait([caller])
        assert caller.cancelled()
        await asyncio.gather(*others)
        await directory.transact([Claim("l", 0, b"1")])
        assert (await directory.read("k")).items == {}

    with_weather(config, test)


def test_claims_under_way_are_told_when_it_is_closed(config: EtcdConfig) -> None:
    async def body() -> None:
        directory = EtcdDirectory(config)
        weather = Weather(directory._client)
        weather.fates = ["late"] * 1_000
        calls = [asyncio.create_task(directory.transact([Claim(f"k/{n}", 0, b"")] * 2)) for n in range(10)]
        await weather.came.wait()
        await directory.close()
        for call in calls:
            with pytest.raises(Unavailable, match="closed"):
                await call

    run(body())


def test_an_error_that_asking_again_does_not_help_is_raised(config: EtcdConfig) -> None:
    async def body() -> None:
        directory = EtcdDirectory(config)

        async def refuse(*_: Any) -> Any:
            raise ended(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")

        directory._client.attempt = refuse  # type: ignore[assignment, method-assign]
        with pytest.raises(NotAllowed):
            await directory.transact([Claim("k", 0, b"")])
        await directory.close()

    run(body())
