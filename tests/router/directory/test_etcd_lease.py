"""A node's lease in etcd: which answers count, what makes it lost, and what an earlier life left."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from router.directory import etcd_lease
from router.directory import etcdpb_pb2 as pb
from router.directory.etcd import EtcdDirectory
from router.directory.etcd_client import KEEP_ALIVE, RANGE, REVOKE, TXN, Message, Method
from router.directory.etcd_config import EtcdConfig
from router.directory.port import Claim, Item, Lost, NotAllowed, Unavailable, now
from tests.contract.places import stop_keeping
from tests.router.directory.conftest import run


class Tampered:
    """A client's calls, with answers changed on their way."""

    def __init__(self, directory: EtcdDirectory) -> None:
        self.terms = {KEEP_ALIVE: 0, RANGE: 0}
        """Added to the terms of the answers."""
        self.asked: list[Method] = []
        self.came: asyncio.Queue[Method] = asyncio.Queue()
        self._call = directory._client.call
        directory._client.call = self  # type: ignore[method-assign]

    async def __call__(self, method: Method, request: Message, ends: float | None = None) -> Any:
        answer = await self._call(method, request, ends)
        self.asked.append(method)
        self.came.put_nowait(method)
        if method in self.terms:
            answer.header.raft_term += self.terms[method]
        return answer


def test_a_renewal_counts_from_when_it_was_sent(config: EtcdConfig) -> None:
    async def body() -> None:
        directory = EtcdDirectory(config)
        registration = await directory.register("a", b"", 60)
        await stop_keeping(registration)
        before = registration.held_until()
        sent = now()
        assert await registration._renew()
        assert before < sent + 60 * 0.99 <= registration.held_until() <= now() + 60 * 0.99
        await registration.close()
        await directory.close()

    run(body())


@pytest.mark.parametrize(("method", "terms"), [(KEEP_ALIVE, -1), (RANGE, 1)])
def test_a_renewal_by_a_leader_of_an_earlier_term_does_not_count(
    config: EtcdConfig, method: Method, terms: int
) -> None:
    async def body() -> None:
        directory = EtcdDirectory(config)
        registration = await directory.register("a", b"", 60)
        await stop_keeping(registration)
        before = registration.held_until()
        tampered = Tampered(directory)
        tampered.terms[method] = terms
        assert await registration._renew(), "it is not known to be lost either"
        assert registration.held_until() == before
        tampered.terms[method] = 0
        assert await registration._renew()
        assert registration.held_until() > before
        assert tampered.asked == [KEEP_ALIVE, RANGE] * 2, "the reading has to come after the renewal"
        await registration.close()
        await directory.close()

    run(body())


def test_a_renewal_that_is_written_down_counts_while_the_key_is_there(config: EtcdConfig) -> None:
    async def body() -> None:
        directory = EtcdDirectory(replace(config, beats=True))
        registration = await directory.register("a", b"", 60)
        await stop_keeping(registration)
        before = registration.held_until()
        tampered = Tampered(directory)
        tampered.terms[TXN] = 1
        assert await registration._renew()
        assert registration.held_until() == before, "of a later term"
        tampered.terms[TXN] = 0
        assert await registration._renew()
        assert registration.held_until() > before
        assert tampered.asked == [KEEP_ALIVE, TXN] * 2
        items = (await directory.read("beats/")).items
        assert items["beats/a"].value == b"%d 60" % registration.identity.epoch
        last = items["beats/a"].revision
        assert not await directory.end(registration.identity, last - 1), "it beat since"
        assert not await directory.end(registration.identity._replace(epoch=1), last), "that is another life"
        assert await registration._renew()
        assert not await directory.end(registration.identity, last)
        assert await directory.end(registration.identity, (await directory.read("beats/")).items["beats/a"].revision)
        assert (await directory.read("nodes/")).items == {}
        assert not await registration._renew()
        await registration.close()
        await directory.close()

    run(body())


def test_a_renewal_that_did_not_count_is_made_up_for_soon(config: EtcdConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_lease, "KEPT_A_TTL", 12)

    async def body() -> None:
        directory = EtcdDirectory(config)
        tampered = Tampered(directory)
        tampered.terms[RANGE] = 1
        registration = await directory.register("a", b"", 60)
        before = registration.held_until()
        while await tampered.came.get() != RANGE:
            pass
        missed = now()
        tampered.terms[RANGE] = 0
        while await tampered.came.get() != RANGE:
            pass
        assert now() - missed < 0.8 * 60 / 12, "it waited until the next one would have been due"
        await asyncio.sleep(0)
        assert registration.held_until() > before
        await registration.close()
        await directory.close()

    run(body())


@pytest.mark.parametrize("how", ["its lease was revoked", "its key was removed", "another took its name"])
def test_it_is_lost_as_soon_as_a_renewal_shows_it(config: EtcdConfig, how: str) -> None:
    async def body() -> None:
        directory = EtcdDirectory(config)
        registration = await directory.register("a", b"", 2)
        client = directory._client
        if how == "its lease was revoked":
            await client.call(REVOKE, pb.LeaseRevokeRequest(ID=registration._lease))
        elif how == "its key was removed":
            former = (await client.call(RANGE, pb.RangeRequest(key=registration._key))).kvs[0]
            former.lease = 0
            await etcd_lease._remove(client, former, now() + 5)
        else:
            other = await directory.register("a", b"", 2)
            await stop_keeping(other)
        await registration.lost.wait()
        assert registration.held_until() == 0.0
        await registration.close()
        await directory.close()

    run(body())


def test_what_an_earlier_life_left_goes_with_its_lease(config: EtcdConfig) -> None:
    async def body() -> None:
        directory = EtcdDirectory(config)
        former = await directory.register("a", b"1", 60)
        await stop_keeping(former)
        latter = await directory.register("a", b"2", 60)
        assert (await directory.read("nodes/")).items == {"nodes/a": Item(b"2", latter.identity.epoch)}
        kept = await directory._client.call(KEEP_ALIVE, pb.LeaseKeepAliveRequest(ID=former._lease))
        assert kept.TTL == 0, "the lease lives on"
        [result] = await directory.transact([Claim("k", 0, b"", former.identity)])
        assert result == Lost(0, None, alive=False)
        await former.close()
        assert list((await directory.read("nodes/")).items) == ["nodes/a"]
        await latter.close()
        await directory.close()

    run(body())


def test_two_that_register_one_name_at_once_leave_one(config: EtcdConfig) -> None:
    async def body() -> None:
        directories = [EtcdDirectory(config) for _ in range(4)]
        found = await asyncio.gather(*(one.register("a", b"", 10) for one in directories), return_exceptions=True)
        registrations = [one for one in found if not isinstance(one, BaseException)]
        assert all(isinstance(one, Unavailable) for one in found if isinstance(one, BaseException))
        item = (await directories[0].read("nodes/")).items["nodes/a"]
        last = max(registrations, key=lambda one: one.identity.epoch)
        assert item.revision == last.identity.epoch
        for one in registrations:
            if one is not last:
                await one.lost.wait()
        assert not last.lost.is_set()
        for one in registrations:
            await one.close()
        for each in directories:
            await each.close()

    run(body())


def test_a_lease_is_given_back_when_the_node_may_not_put_its_key(
    config: EtcdConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        directory = EtcdDirectory(config)
        before = len((await directory.read("nodes/")).items)

        async def refuse(*_: Any) -> int:
            raise NotAllowed("no")

        tampered = Tampered(directory)
        monkeypatch.setattr(etcd_lease, "_put", refuse)
        with pytest.raises(NotAllowed):
            await directory.register("a", b"", 10)
        assert tampered.asked[-1] == REVOKE
        assert len((await directory.read("nodes/")).items) == before
        await directory.close()

    run(body())
