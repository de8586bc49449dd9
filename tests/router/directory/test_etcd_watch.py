"""A watch in etcd goes on when its stream ends, falls silent, or is refused for a token of yesterday."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from router.directory import etcdpb_pb2 as pb
from router.directory.etcd import EtcdDirectory
from router.directory.etcd_client import ended
from router.directory.etcd_config import EtcdConfig
from router.directory.etcd_watch import Watch
from router.directory.port import Change, Changes, Claim, Item, NotAllowed, Snapshot, Unavailable
from tests.router.directory.conftest import run

Answers = list[pb.WatchResponse | BaseException]


def told(*revisions: int, key: str = "p/k") -> pb.WatchResponse:
    """An answer with changes."""
    answer = pb.WatchResponse()
    for revision in revisions:
        event = answer.events.add()
        event.kv.key, event.kv.value, event.kv.mod_revision = key.encode(), b"%d" % revision, revision
    return answer


class Scripted(Watch):
    """A watch whose streams are given: what each answers; after the last one nothing comes."""

    def __init__(self, directory: EtcdDirectory, *streams: Answers) -> None:
        super().__init__(directory._client, "p/", "k", 10, self._give)
        self.opened: list[int] = []
        self._streams = iter(streams)

    async def _stream(self, at: int) -> AsyncGenerator[pb.WatchResponse, None]:
        self.opened.append(self._next)
        for answer in next(self._streams):
            if isinstance(answer, BaseException):
                raise answer
            yield answer

    async def _give(self, prefix: str) -> Snapshot:
        assert prefix == "k"
        return Snapshot(50, {"k": Item(b"", 40)})


async def take(watch: Watch, count: int) -> list[Changes | Snapshot]:
    found: list[Changes | Snapshot] = []
    async with aclosing(watch.changes()) as changes:
        while len(found) < count:
            found.append(await anext(changes))
    return found


def scripted(config: EtcdConfig, count: int, *streams: Answers) -> tuple[list[Changes | Snapshot], list[int]]:
    """What a watch of scripted streams says, and from which revisions it opened them."""

    async def body() -> tuple[list[Changes | Snapshot], list[int]]:
        directory = EtcdDirectory(config)
        watch = Scripted(directory, *streams)
        try:
            return await take(watch, count), watch.opened
        finally:
            await directory.close()

    return run(body())


def test_a_stream_that_ends_is_opened_again_after_the_last_change(config: EtcdConfig) -> None:
    said, opened = scripted(
        config, 3, [told(11, 12)], [], [ended(grpc.StatusCode.UNAVAILABLE, "")], [told(20), told(21)]
    )
    assert [one.revision for one in said] == [12, 20, 21]
    assert opened == [11, 13, 13, 13]
    assert said[0] == Changes(12, (Change("k", b"11", 11), Change("k", b"12", 12)))


def test_what_was_told_before_is_not_told_again(config: EtcdConfig) -> None:
    said, _ = scripted(config, 2, [told(11)], [told(10, 11), told(11, 12)])
    assert [one.revision for one in said] == [11, 12]
    assert said[1] == Changes(12, (Change("k", b"12", 12),))


def test_after_a_compaction_there_is_a_snapshot_and_then_what_follows_it(config: EtcdConfig) -> None:
    compacted = pb.WatchResponse(created=False, canceled=True, compact_revision=30)
    said, opened = scripted(config, 2, [pb.WatchResponse(created=True), compacted], [told(50, 51)])
    assert said == [Snapshot(50, {"k": Item(b"", 40)}), Changes(51, (Change("k", b"51", 51),))]
    assert opened == [11, 51]


def test_a_watch_that_is_denied_is_refused_at_once_when_it_has_no_token_to_renew(config: EtcdConfig) -> None:
    denied = pb.WatchResponse(canceled=True, cancel_reason="rpc error: code = PermissionDenied desc = denied")
    with pytest.raises(NotAllowed, match="set both"):
        scripted(config, 1, [denied])


def test_a_watch_that_is_ended_for_another_reason_goes_on(config: EtcdConfig) -> None:
    said, opened = scripted(config, 1, [pb.WatchResponse(canceled=True, cancel_reason="bye")], [told(11)])
    assert [one.revision for one in said] == [11]
    assert opened == [11, 11]


def test_a_watch_of_a_closed_directory_ends(config: EtcdConfig) -> None:
    async def body() -> None:
        directory = EtcdDirectory(config)
        async with aclosing(directory.watch("k", 0)) as watch:
            await directory.close()
            with pytest.raises(Unavailable, match="closed"):
                await anext(watch)

    run(body())


class Stream:
    """What is between a watch and etcd: it can fall silent, as a member that stands still does."""

    def __init__(self, call: Any) -> None:
        self.silent = asyncio.Event()
        self.asked: asyncio.Queue[None] = asyncio.Queue()
        """An item each time it was asked for a sign of life."""
        self._call = call

    async def write(self, request: Any) -> None:
        if request.HasField("progress_request"):
            self.asked.put_nowait(None)
        if not self.silent.is_set():
            await self._call.write(request)

    async def read(self) -> Any:
        reading = asyncio.ensure_future(self._call.read())
        silent = asyncio.ensure_future(self.silent.wait())
        try:
            await asyncio.wait([reading, silent], return_when=asyncio.FIRST_COMPLETED)
            if self.silent.is_set():
                await asyncio.Event().wait()
            return await reading
        finally:
            silent.cancel()
            reading.cancel()

    def cancel(self) -> None:
        self._call.cancel()


def test_a_stream_that_falls_silent_is_left_for_another_one(config: EtcdConfig) -> None:
    async def body() -> None:
        directory = EtcdDirectory(EtcdConfig(endpoints=config.endpoints, prefix=config.prefix, deadline_s=3.0))
        streams: list[Stream] = []
        client = directory._client
        original = client.stream

        def stream(*args: Any, **options: Any) -> Stream:
            streams.append(Stream(original(*args, **options)))
            return streams[-1]

        [first] = await directory.transact([Claim("k", 0, b"1")])
        client.stream = stream  # type: ignore[method-assign]
        async with aclosing(directory.watch("k", first.revision - 1)) as watch:
            assert (await anext(watch)).revision == first.revision
            waiting = asyncio.create_task(anext(watch))
            # Each sign of life that it is asked for is given.
            for _ in range(2):
                await streams[0].asked.get()
            assert len(streams) == 1
            streams[0].silent.set()
            [second] = await directory.transact([Claim("k", first.revision, b"2")])
            assert (await waiting).revision == second.revision
            assert len(streams) == 2
        await directory.close()

    run(body())
