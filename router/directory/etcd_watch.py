"""A watch in etcd that goes on: over lost connections, members that fell silent, restarts and compactions."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from core.owned import ACCOUNT
from router.directory import etcd_errors
from router.directory import etcdpb_pb2 as pb
from router.directory.etcd_client import PAUSE_FIRST_S, PAUSE_MAX_S, WATCH, Client, ended, prefix_end
from router.directory.etcd_errors import Meaning
from router.directory.port import Change, Changes, NotAllowed, Snapshot, Unavailable

_PROGRESS = pb.WatchRequest(progress_request=pb.WatchProgressRequest())


class Watch:
    """One watch.

    Args:
        client: to etcd.
        root: the prefix of all keys, which the changes come without.
        prefix: of the keys to watch.
        revision: after which changes are given.
        read: gives a Snapshot of the prefix.

    """

    def __init__(
        self, client: Client, root: str, prefix: str, revision: int, read: Callable[[str], Awaitable[Snapshot]]
    ) -> None:
        self._client = client
        self._root = len(root.encode())
        self._key = (root + prefix).encode()
        self._prefix = prefix
        self._next = revision + 1
        self._read = read
        self._pause = PAUSE_FIRST_S
        self._fresh = False
        """Whether the token is one of this opening, so that a refusal is not about an old one."""

    async def changes(self) -> AsyncGenerator[Changes | Snapshot, None]:
        """See `Directory.watch`."""
        while True:
            at = self._client.current
            compacted, error = False, None
            try:
                await self._log_in()
                # no deadline: a watch waits for as long as nothing changes, and `_stream` for signs of life
                async with contextlib.aclosing(self._stream(at)) as answers:
                    # no deadline: the same
                    async for answer in answers:
                        if answer.canceled and self._is_compacted(answer):
                            compacted = True
                            break
                        if found := self._changes_of(answer):
                            yield found
            except grpc.aio.AioRpcError as failure:
                error = failure
                self._judge(failure)
            except Unavailable:
                if self._client.closed:
                    raise
            if compacted:
                if (snapshot := await self._start_over()) is not None:
                    yield snapshot
                continue
            self._client.failed(at, error)
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))
            self._pause = min(2 * self._pause, PAUSE_MAX_S)

    async def _log_in(self) -> None:
        self._fresh = not self._client.token
        await self._client.login(self._client.clock() + self._client.config.deadline_s)

    async def _stream(self, at: int) -> AsyncGenerator[pb.WatchResponse, None]:
        """What one member answers until it fails, falls silent or has no leader any more; each is the stream's end.

        Raises:
            grpc.aio.AioRpcError: why it ended, where it said so.
        """
        each = self._client.config.attempt_s
        call = self._client.stream(at, WATCH, leader=True)
        reading: asyncio.Task[Any] | None = None
        try:
            create = pb.WatchCreateRequest(key=self._key, range_end=prefix_end(self._key), start_revision=self._next)
            async with asyncio.timeout(each):
                await call.write(pb.WatchRequest(create_request=create))
            asked = False
            while True:
                if reading is None:
                    reading = ACCOUNT.task(_read(call), f"watch of {self._prefix}")
                done, _ = await asyncio.wait([reading], timeout=each)
                if not done:
                    if asked:
                        return
                    asked = True
                    async with asyncio.timeout(each):
                        await call.write(_PROGRESS)
                    continue
                answer, reading, asked = reading.result(), None, False
                if isinstance(answer, grpc.aio.AioRpcError):
                    raise answer
                if answer is grpc.aio.EOF:
                    return
                self._client.succeeded()
                self._pause = PAUSE_FIRST_S
                yield answer
        except (TimeoutError, asyncio.InvalidStateError):
            return  # it takes nothing more, or ended while we wrote
        except asyncio.CancelledError:
            self._client.check_cancelled()
            raise
        finally:
            call.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.wait([reading])  # deadline: it is cancelled

    def _is_compacted(self, answer: pb.WatchResponse) -> bool:
        """Whether that is why a watch was refused.

        Raises:
            NotAllowed, grpc.aio.AioRpcError: it was another reason.
        """
        if answer.compact_revision:
            return True
        why = answer.cancel_reason or "the watch was ended"
        code = grpc.StatusCode.PERMISSION_DENIED if "denied" in why or "auth" in why else grpc.StatusCode.UNAVAILABLE
        raise ended(code, why)

    def _judge(self, error: grpc.aio.AioRpcError) -> None:
        """Raise what asking again does not help."""
        meaning = etcd_errors.meaning_of(error)
        denied = meaning in {Meaning.LOGIN, Meaning.NOT_ALLOWED}
        if denied and self._client.config.user and not self._fresh:
            # etcd calls a watch with a token that has ended denied as well.
            self._client.forget(self._client.token)
        elif denied:
            raise NotAllowed(
                f"{self._client.config}: {etcd_errors.refusal(error.details() or '', self._client.config.user)}"
            ) from error

    def _changes_of(self, answer: pb.WatchResponse) -> Changes | None:
        """What is new in an answer; a stream that was opened again may repeat nothing, but that is not relied on."""
        found = [
            Change(
                event.kv.key[self._root :].decode(errors="surrogateescape"),
                event.kv.value if event.type == pb.Event.PUT else None,
                event.kv.mod_revision,
            )
            for event in answer.events
            if event.kv.mod_revision >= self._next
        ]
        if not found:
            return None
        self._next = found[-1].revision + 1
        return Changes(found[-1].revision, tuple(found))

    async def _start_over(self) -> Snapshot | None:
        """What is there now, after changes were forgotten; None: not to be had just now."""
        try:
            # deadline: that of a reading
            snapshot = await self._read(self._prefix)
        except Unavailable:
            if self._client.closed:
                raise
            return None
        self._next = snapshot.revision + 1
        return snapshot


async def _read(call: Any) -> Any:
    """The next answer, or the error instead of it: a stream's end is no failure of the task that reads it."""
    try:
        # no deadline: a watch waits for as long as nothing changes; who watches over it asks for signs of life
        return await call.read()
    except grpc.aio.AioRpcError as error:
        return error
