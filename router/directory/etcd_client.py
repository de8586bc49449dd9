"""Calls to an etcd cluster over grpc.aio: one member is asked until it fails, then the next.

Every call is one that may safely be made twice, because that is what happens when an answer gets lost; what may not be
(a claim) is made so before it comes here. A channel a member, so that a call's fate is that of one known member: a
common channel with a policy would go on giving each third call to one that stands still.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import grpc
import grpc.aio

from core.owned import ACCOUNT, Held
from router.directory import etcd_errors
from router.directory import etcdpb_pb2 as pb
from router.directory.etcd_config import EtcdConfig, pem
from router.directory.etcd_errors import Meaning
from router.directory.port import DirectoryError, Misused, NotAllowed, Reach, Unavailable, now

# A watch answers with whatever changed at once; a lease of 200,000 keys that ended took 5 MB.
RECEIVE_BYTES_MAX = 64 * 1024 * 1024
PAUSE_FIRST_S = 0.02
PAUSE_MAX_S = 0.5
LOGINS_A_CALL = 2
NEAREST_AGAIN_S = 30.0
"""After so long the nearest member is asked again, of which one call in that time may have to wait."""
REFUSED_S = 15.0
"""For so long after it refused to write (no space, no rights) it counts as away, unless it takes a write again."""
WRITES = ("/etcdserverpb.KV/Txn", "/etcdserverpb.KV/Put")
OPTIONS = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # what connecting may take, TLS with it
    ("grpc.max_reconnect_backoff_ms", 500),
    # etcd takes pings each 5 s at most, and hangs up on whoever sends more.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # Two directories in one process have two connections, and one's end is not the other's.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Message(Protocol):
    """What the generated classes have in common."""

    def SerializeToString(self) -> bytes: ...


_log = logging.getLogger("holdfast")


class Method(NamedTuple):
    """A method of etcd's API."""

    path: str
    answer: Any


RANGE = Method("/etcdserverpb.KV/Range", pb.RangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", pb.TxnResponse)
PUT = Method("/etcdserverpb.KV/Put", pb.PutResponse)
GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantResponse)
REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeResponse)
KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchResponse)
AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", pb.AuthenticateResponse)


class LeaseGone(Exception):
    """The lease that was named has ended."""


class Compacted(Exception):
    """The revision that was asked for is forgotten."""


class Client:
    """Calls to one cluster, from one event loop.

    Args:
        config: where it is.
        clock: seconds, for deadlines and `reach`.

    """

    def __init__(self, config: EtcdConfig, clock: Callable[[], float] = now) -> None:
        self.config = config
        self.clock = clock
        self.current = 0 if config.nearest_first else random.randrange(len(config.endpoints))
        """The member that is asked."""
        self._nearest_at = 0.0
        """When the nearest one is asked again, while it is another one."""
        self.reach = Reach(False, clock())
        self.token = ""
        self._failures = 0
        self._refuses_until = 0.0
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._methods: dict[tuple[int, str], Any] = {}
        self._credentials = _credentials(config)
        self._login: asyncio.Task[DirectoryError | grpc.aio.AioRpcError | None] | None = None
        self._held: Held | None = None
        self.closed = False
        """Nobody is asked any more."""

    # ---------------------------------------------------------------------------------------------------------- calls

    async def call(self, method: Method, request: Message, ends: float | None = None) -> Any:
        """Ask until somebody answers.

        Args:
            method: with one answer a request, or KEEP_ALIVE, of which one answer is taken.
            request: may be done twice.
            ends: by the clock; None: as long as a call may take.

        Raises:
            Unavailable, NotAllowed, Misused, LeaseGone, Compacted: see there.
        """
        ends = self.clock() + self.config.deadline_s if ends is None else ends
        pause, logins, why = PAUSE_FIRST_S, 0, "etcd was given no time"
        tried = full = 0
        while (left := ends - self.clock()) > 0:
            at = self._member()
            try:
                await self.login(ends)
                token = self.token
                answer = await self.attempt(at, method, request, min(left, self.config.attempt_s))
            except grpc.aio.AioRpcError as error:
                meaning = etcd_errors.meaning_of(error)
                if meaning is Meaning.LOGIN and self.config.user and logins < LOGINS_A_CALL:
                    self.forget(token)
                    logins += 1
                    continue
                self.judge(meaning, error)
                why = self.failed(at, error)
                tried += 1
                if etcd_errors.is_full(error):
                    full += 1
                    self._refused(why)
                    if full == tried == len(self.config.endpoints):
                        raise Unavailable(why, nothing_done=True) from error
                if tried % len(self.config.endpoints) == 0:
                    await asyncio.sleep(min(pause * random.uniform(0.5, 1.0), max(0.0, ends - self.clock())))
                    pause = min(2 * pause, PAUSE_MAX_S)
            else:
                self.succeeded(wrote=method.path in WRITES)
                return answer
        self._reached(False, why)
        raise Unavailable(why)

    async def attempt(self, at: int, method: Method, request: Message, timeout_s: float) -> Any:
        """Ask one member once.

        Raises:
            grpc.aio.AioRpcError: it failed.
            Unavailable: this client is closed.
        """
        try:
            if method is KEEP_ALIVE:
                return await self._first_of_stream(at, method, request, timeout_s)
            return await self._method(at, method)(request, timeout=timeout_s, metadata=self.metadata())
        except asyncio.CancelledError:
            self.check_cancelled()
            raise

    async def _first_of_stream(self, at: int, method: Method, request: Message, timeout_s: float) -> Any:
        call = self.stream(at, method, timeout_s=timeout_s)
        try:
            await call.write(request)  # deadline: that of the stream
            answer = await call.read()  # deadline: that of the stream
            if answer is not grpc.aio.EOF:
                return answer
        except asyncio.InvalidStateError:
            pass  # it ended while we wrote
        finally:
            call.cancel()
        raise ended(grpc.StatusCode.UNAVAILABLE, "it ended the stream")

    def check_cancelled(self) -> None:
        """To be asked when a wait was cancelled: gRPC cancels what waits for it when it is closed.

        Raises:
            Unavailable: it was that, and nobody cancelled this task.
        """
        task = asyncio.current_task()
        if self.closed and task is not None and not task.cancelling():
            raise Unavailable(f"{self.config}: closed here, and the answer with it")

    def stream(self, at: int, method: Method, *, timeout_s: float | None = None, leader: bool = False) -> Any:
        """Open a stream to one member.

        Args:
            at: which member.
            method: of streams.
            timeout_s: for all of it.
            leader: the member is to end it when it has lost the others' leader.

        """
        metadata = self.metadata() + ((("hasleader", "true"),) if leader else ())
        return self._method(at, method)(timeout=timeout_s, metadata=metadata)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("token", self.token),) if self.token else ()

    def judge(self, meaning: Meaning, error: grpc.aio.AioRpcError) -> None:
        """Raise what cannot be helped by asking another member."""
        text = error.details() or error.code().name
        if meaning in {Meaning.NOT_ALLOWED, Meaning.LOGIN}:
            why = etcd_errors.refusal(text, self.config.user)
            self._refused(why)
            raise NotAllowed(f"{self.config}: {why}") from error
        if meaning is Meaning.LEASE_GONE:
            raise LeaseGone(text) from error
        if meaning is Meaning.COMPACTED:
            raise Compacted(text) from error
        if meaning is Meaning.MISUSED:
            raise Misused(f"{self.config} does not understand: {text}") from error

    # -------------------------------------------------------------------------------------------------------- members

    def failed(self, at: int, error: grpc.aio.AioRpcError | None = None) -> str:
        """A member did not answer: the next one is asked from now on; why, in words."""
        if self.current == at:
            self.current = (at + 1) % len(self.config.endpoints)
        if at == 0:
            self._nearest_at = self.clock() + NEAREST_AGAIN_S
        self._failures += 1
        where = self.config.endpoints[at]
        tls = self.config.tls
        why = f"etcd at {where} fell silent" if error is None else etcd_errors.absence(where, error, tls=tls)
        if self._failures >= len(self.config.endpoints):
            self._reached(False, why)
        return why

    def _member(self) -> int:
        """The one to ask now."""
        if self.config.nearest_first and self.current != 0 and self.clock() >= self._nearest_at:
            self.current = 0
        return self.current

    def succeeded(self, *, wrote: bool = False) -> None:
        """A member answered; or even wrote what it was asked to."""
        self._failures = 0
        if wrote:
            self._refuses_until = 0.0
        if self.clock() >= self._refuses_until:
            self._reached(True)

    def _refused(self, why: str) -> None:
        """It answers, but writes nothing: to us it is away, although it may go on to tell what is there."""
        self._refuses_until = self.clock() + REFUSED_S
        self._reached(False, why)

    def _reached(self, answers: bool, why: str = "") -> None:
        if self.reach.answers != answers:
            self.reach = Reach(answers, self.clock())
            if answers:
                _log.info("%s answers", self.config)
            else:
                _log.warning("%s is away: %s", self.config, why)

    def _method(self, at: int, method: Method) -> Any:
        found = self._methods.get((at, method.path))
        if found is None:
            channel = self._channel(at)
            streams = method in {KEEP_ALIVE, WATCH}
            make = channel.stream_stream if streams else channel.unary_unary
            found = make(
                method.path,
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=method.answer.FromString,
            )
            self._methods[at, method.path] = found
        return found

    def _channel(self, at: int) -> grpc.aio.Channel:
        if self.closed:
            raise Unavailable(f"{self.config}: closed here", nothing_done=True)
        channel = self._channels.get(at)
        if channel is None:
            where = self.config.endpoints[at]
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(where, options=OPTIONS)
            else:
                channel = grpc.aio.secure_channel(where, self._credentials, options=OPTIONS)
            self._channels[at] = channel
            if self._held is None:
                self._held = ACCOUNT.hold("handle", repr(self.config), object_=self)
        return channel

    # ---------------------------------------------------------------------------------------------------------- login

    async def login(self, ends: float) -> None:
        """Get a token, if we are somebody and have none; whoever comes meanwhile waits for the same one.

        Raises:
            NotAllowed, grpc.aio.AioRpcError, Unavailable: see `attempt`.
        """
        if self.token or not self.config.user:
            return
        if self._login is None:
            self._login = ACCOUNT.task(self._authenticate(), "etcd login")
        try:
            async with asyncio.timeout(max(0.0, ends - self.clock())):
                error = await asyncio.shield(self._login)
        except TimeoutError:
            raise Unavailable(f"{self.config} does not answer our login", nothing_done=True) from None
        if error is not None:
            raise error

    def forget(self, token: str) -> None:
        """A token is not taken any more."""
        if self.token == token:
            self.token = ""

    async def _authenticate(self) -> DirectoryError | grpc.aio.AioRpcError | None:
        """Ask for a token; why there is none."""
        request = pb.AuthenticateRequest(name=self.config.user, password=self.config.password)
        try:
            self.token = (await self.attempt(self.current, AUTHENTICATE, request, self.config.attempt_s)).token
        except grpc.aio.AioRpcError as error:
            try:
                self.judge(etcd_errors.meaning_of(error), error)
            except DirectoryError as judged:
                return judged
            return error
        except Unavailable as error:
            return error
        finally:
            self._login = None
        return None

    # ---------------------------------------------------------------------------------------------------------- ending

    async def close(self) -> None:
        """Hang up."""
        self.closed = True
        if self._login is not None:
            login = self._login
            login.cancel()
            await asyncio.wait([login])  # deadline: it is cancelled
        channels, self._channels = list(self._channels.values()), {}
        self._methods.clear()
        for channel in channels:
            await channel.close()  # deadline: it waits for nobody without grace
        if self._held is not None:
            self._held.close()
            self._held = None


def ended(code: grpc.StatusCode, why: str) -> grpc.aio.AioRpcError:
    """An error as a call would raise it."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), why)


def _credentials(config: EtcdConfig) -> grpc.ChannelCredentials | None:
    if not config.tls:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=pem(config.ca_file, "the authority's certificate"),
        certificate_chain=pem(config.cert_file, "our certificate"),
        private_key=pem(config.key_file, "our key"),
    )


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with a prefix, as etcd wants a range's end."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"
