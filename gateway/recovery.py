"""What a session missed, over HTTP, for clients that cannot speak the protocol (docs/recovery.md).

`GET /recover?session=…` tells what is stored of a session: its channels and positions. `POST /recover` tells what came
after positions, a page at a time, with the outcome of each channel as the protocol has it. It is public: whoever asks
gives the session's resume token, or a token of its user, and is told of that session's own channels alone. Nothing is
changed by asking: neither positions nor who holds the session.
"""

import asyncio
import math
import re
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import msgpack
import msgspec
from msgspec import Meta
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.ban_list import Standing
from core.codes import NAMES, Code
from core.namespace_spec import NamespaceSpec
from core.transcode import TranscodeError, json_from_mpack
from gateway import logs
from gateway.access import body_of
from gateway.admin_server import AdminServer
from gateway.auth import Authenticator, node_key
from gateway.bans import Bans
from gateway.config import Config, token_policy
from gateway.development_key import development_key
from gateway.errors import ConfigError, RequestError
from gateway.identity import AuthError, Identity
from gateway.publisher import Client, RouterPublisher
from gateway.recovery_config import RecoverySection
from gateway.recovery_metrics import TOLD, RecoveryCollector
from gateway.token_keys import KeyFile
from router.client import ChannelState, Missed, StoredSession

BODY_BYTES_MAX = 131_072
USERS_MAX = 10_000
"""Whose rate is remembered; beyond, the one that asked longest ago is forgotten."""
KEYS_LOOK_S = 5.0
RETRY_AFTER_S = 1
PREFLIGHT_S = 7_200
"""For how long a browser need not ask again whether it may ask; what browsers take at most."""
MSGPACK, JSON = "application/msgpack", "application/json"
_NEVER = re.compile(r"q\s*=\s*0(\.0*)?")
"""A type that a client does not want (RFC 9110, 12.4.2)."""
_MSGPACK_NAMES = frozenset({MSGPACK, "application/x-msgpack", "application/vnd.msgpack"})
_STATUS = {Code.BANNED: 403, Code.NOT_ALLOWED: 403}

_log = logs.get("supervisor")

Position = tuple[int, int]
_Offset = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Store(Protocol):
    """What is needed of the links to routers; all raise RequestError when that cannot be told within a deadline."""

    async def sessions(self, ids: Sequence[bytes]) -> list[StoredSession | None] | None: ...

    async def channels(self, names: Sequence[str]) -> list[ChannelState]: ...

    async def missed(self, asked: Sequence[tuple[str, Position]], bytes_max: int) -> list[Missed]: ...

    def bans(self) -> Mapping[str, Standing]: ...


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST."""

    session: str
    positions: dict[str, tuple[_Offset, _Offset]] = {}
    limit: Annotated[int, Meta(ge=1)] | None = None


class RouterBans(Bans):
    """The bans as the link to a router has them at the time of asking; without a link nobody comes in."""

    def __init__(self, told: Callable[[], Mapping[str, Standing]]) -> None:
        super().__init__()
        self._told = told

    def check(self, user: str, now_s: float, issued_ms: int | None = None) -> None:
        """See `Bans.check`. Raises RequestError where they are not known."""
        self._standings = dict(self._told())
        super().check(user, now_s, issued_ms)


class Buckets:
    """A token bucket a user, in memory that is bounded."""

    def __init__(self, rate: int, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, user: str, now_s: float) -> float:
        """One request of a user; 0, or the seconds until it may come."""
        full_at = max(self._full_at.pop(user, now_s), now_s)
        wait_s = full_at + 1 / self._rate - now_s - self._burst / self._rate
        self._full_at[user] = full_at if wait_s > 1e-9 else full_at + 1 / self._rate
        if len(self._full_at) > USERS_MAX:
            self._full_at.popitem(last=False)
        return max(0.0, wait_s) if wait_s > 1e-9 else 0.0


@dataclass(frozen=True)
class _Session:
    """One that may be told of."""

    id: str
    identity: Identity
    channels: dict[str, Position]
    whole: bool


class Recovery:
    """Answers for one node.

    Args:
        limits: the section of the configuration.
        auth: checks tokens.
        store: asks routers.
        namespaces: all that there are.
        development: anybody may be anyone, so that only resume tokens say who somebody is.
        key_file: where the public keys are; None: there are none.
        clock: wall clock, in seconds.

    """

    def __init__(
        self,
        limits: RecoverySection,
        auth: Authenticator,
        store: Store,
        namespaces: Sequence[NamespaceSpec],
        *,
        development: bool,
        key_file: KeyFile | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits = limits
        self._auth = auth
        self._store = store
        self._specs = {spec.name: spec for spec in namespaces}
        self._development = development
        self._key_file = key_file
        self._keys_looked_s = clock()
        self._clock = clock
        self._buckets = Buckets(limits.user_rate, limits.user_burst)
        self._under_way = 0
        self.answers: Counter[str] = Counter()
        """How often each code was the answer."""

    async def state(self, session: str, credentials: str) -> dict[str, Any]:
        """What is stored of a session. Raises RequestError."""
        async with self._one():
            held = await self._session(session, credentials)
            return {
                "session": held.id,
                "user": held.identity.user,
                "channels": {name: list(position) for name, position in held.channels.items()},
                "whole": held.whole,
            }

    async def missed(self, asked: _Asked, credentials: str) -> dict[str, Any]:
        """What came after positions. Raises RequestError."""
        async with self._one():
            held = await self._session(asked.session, credentials)
            since = {name: asked.positions.get(name, position) for name, position in held.channels.items()}
            channels: dict[str, Any] = {
                name: {"code": "not_joined"} for name in asked.positions if name not in held.channels
            }
            for name in [name for name in since if not self._may_hear(held.identity, name)]:
                del since[name]
                channels[name] = {"code": "not_allowed"}
            most = self._limits.page_messages_max
            pages = await self._pages(since, most if asked.limit is None else min(asked.limit, most))
            channels |= pages
            return {
                "session": held.id,
                "user": held.identity.user,
                "channels": channels,
                "more": any(page["more"] for page in pages.values()),
            }

    @asynccontextmanager
    async def _one(self) -> AsyncIterator[None]:
        """One request, within the bound on how many and how long."""
        if self._under_way >= self._limits.requests_max:
            raise RequestError(503, "overloaded", "too many requests are under way", RETRY_AFTER_S)
        self._under_way += 1
        try:
            async with asyncio.timeout(self._limits.timeout_ms / 1000):
                yield
        except TimeoutError as error:
            raise RequestError(503, "unavailable", "the routers did not answer in time", RETRY_AFTER_S) from error
        finally:
            self._under_way -= 1

    # ------------------------------------------------------------------------------------------------- who may ask

    def _identity(self, session: str, credentials: str) -> Identity:
        self._look_at_keys()
        now_s = self._clock()
        try:
            # A JWT has two dots, a resume token none.
            if credentials.count(".") == 2 and not self._development:
                return self._auth.identify(credentials, None, now_s)
            return self._auth.resumed(session, credentials, now_s).identity
        except AuthError as error:
            name = NAMES.get(error.code, "bad_token")
            raise RequestError(_STATUS.get(Code(error.code), 401), name, str(error)) from error

    def _look_at_keys(self) -> None:
        if self._key_file is None or self._clock() - self._keys_looked_s < KEYS_LOOK_S:
            return
        self._keys_looked_s = self._clock()
        try:
            if self._key_file.changed():
                self._auth.replace_keys(self._key_file.read())
        except ConfigError as error:
            _log.error("keys_not_read", why=str(error), then="those of before stay")

    async def _session(self, session: str, credentials: str) -> _Session:
        """The session, if whoever asks may know of it."""
        identity = self._identity(session, credentials)
        wait_s = self._buckets.take(identity.user, self._clock())
        if wait_s:
            raise RequestError(429, "rate_limited", "too many requests of this user", math.ceil(wait_s))
        found = await self._store.sessions([_id(session)])
        if found is None:
            raise RequestError(501, "not_allowed", "this gateway stores no sessions: log.backend is none")
        stored = found[0]
        # Also another user's: whether there is such a session is nobody else's business.
        if stored is None or stored.user != identity.user:
            raise RequestError(404, "session_expired", "this user has no such session, or it is over")
        channels = dict(stored.channels)
        own = f"user:{identity.user}"
        if own not in channels and "user" in self._specs:
            (state,) = await self._store.channels([own])
            channels[own] = state.position if state.cursor is None else state.cursor
        return _Session(session, identity, channels, whole=len(stored.channels) == stored.channel_count)

    def _may_hear(self, identity: Identity, channel: str) -> bool:
        """Whether the session would be let into the channel now: what a token lists may have changed."""
        spec = self._specs.get(channel.partition(":")[0])
        if spec is None:
            return False
        if spec.domain == "session":
            return channel.partition(":")[2] == identity.user
        # Into one with `server` the application put the session, which it was in when that was stored.
        is_put = spec.join == "server"
        return (
            spec.domain == "global" or is_put or identity.rights.may_join(spec, channel, development=self._development)
        )

    # ------------------------------------------------------------------------------------------------ what is told

    async def _pages(self, since: Mapping[str, Position], limit: int) -> dict[str, dict[str, Any]]:
        """Of each channel the outcome, and of those that missed something its messages, as many as one answer takes."""
        names = sorted(since)
        outcomes = await self._store.missed([(name, since[name]) for name in names], 0)
        pages: dict[str, dict[str, Any]] = {}
        bytes_left = self._limits.page_bytes_max
        for name, outcome in zip(names, outcomes, strict=True):
            one = outcome
            if outcome.outcome in ("replayed", "gap") and limit > 0 and bytes_left > 0:
                (one,) = await self._store.missed([(name, since[name])], bytes_left)
            pages[name] = page = _page(one, since[name], limit)
            limit -= len(page["messages"])
            bytes_left -= sum(len(frame) for _, frame in one.messages[: len(page["messages"])])
        return pages


def _id(session: str) -> bytes:
    try:
        number = bytes.fromhex(session)
    except ValueError:
        number = b""
    if len(number) != 16 or len(session) != 32:  # fromhex passes spaces over
        raise RequestError(400, "bad_request", "session is the id that WELCOME gave: 32 hexadecimal digits")
    return number


def _page(found: Missed, since: Position, limit: int) -> dict[str, Any]:
    """The part of an answer that is about one channel."""
    messages = [msgpack.unpackb(frame, strict_map_key=False) for _, frame in found.messages[:limit]]
    page: dict[str, Any] = {"outcome": found.outcome, "position": list(found.position), "messages": messages}
    if found.gap is not None:
        first, last, reason = found.gap
        page["gap"] = {"from": first, "to": last, "reason": reason}
    if found.outcome in ("live", "reset"):
        next_ = found.position
    elif len(messages) < len(found.messages):
        # Cut short by the count: on from the last of these, or where the gap before them ends.
        last_offset = messages[-1][2] if messages else found.gap[1] if found.gap else since[1]
        next_ = (messages[-1][4]["epoch"] if messages else found.position[0], last_offset)
    else:
        next_ = found.last
    page["next"] = list(next_)
    page["more"] = next_[1] < found.position[1]
    return page


# ----------------------------------------------------------------------------------------------------------- over HTTP


@asynccontextmanager
async def serving(
    config: Config, router_endpoint: str, client: Client, registry: CollectorRegistry
) -> AsyncIterator[None]:
    """The recovery server of a node, for as long as the context lasts; arguments as of `server`."""
    one = server(config, router_endpoint, client, registry)
    one.start()
    try:
        yield
    finally:
        await one.close()


def server(config: Config, router_endpoint: str, client: Client, registry: CollectorRegistry) -> AdminServer:
    """The recovery server of a node that has one, not started.

    Args:
        config: the checked configuration.
        router_endpoint: as its workers have it.
        client: the links to routers.
        registry: of the node's metrics.

    """
    limits = config.recovery
    store = RouterPublisher(client, limits.timeout_ms / 1000)
    key_file = KeyFile(config.auth.keys_file) if config.auth.keys_file else None
    auth = Authenticator(
        config.auth.secret or None,
        node_key=node_key(development_key(config) or router_endpoint),
        resume_ttl_s=config.gateway.resume_token_ttl_s,
        resume_age_max_s=config.gateway.resume_token_age_max_s,
        policy=token_policy(config.auth),
        keys=key_file.read() if key_file is not None else (),
        bans=RouterBans(store.bans),
    )
    recovery = Recovery(limits, auth, store, config.namespaces, development=config.development, key_file=key_file)
    registry.register(RecoveryCollector(recovery.answers))
    return AdminServer(
        limits.host,
        limits.port,
        create_app(recovery),
        name="recovery",
        certificate=config.gateway.tls_certificate,
        key=config.gateway.tls_key,
    )


def create_app(recovery: Recovery) -> Starlette:
    """The ASGI application."""

    def answered(request: Request, value: dict[str, Any]) -> Response:
        answer = _answer(request, value)
        recovery.answers[TOLD] += 1
        return answer

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        recovery.answers[error.code] += 1
        return _refuse(request, error)

    async def state(request: Request) -> Response:
        _no_others(request, {"session"})
        session = request.query_params.get("session", "")
        return answered(request, await recovery.state(session, _credentials(request)))

    async def missed(request: Request) -> Response:
        _no_others(request, set())
        credentials = _credentials(request)
        return answered(request, await recovery.missed(await _asked(request), credentials))

    async def healthz(_: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type=JSON)

    routes = [
        Route("/recover", state, methods=["GET"]),
        Route("/recover", missed, methods=["POST"]),
        Route("/healthz", healthz, methods=["GET"]),
    ]
    # Pages of every origin may ask, as they may open WebSocket connections: who asks shows a token, and no browser adds
    # one by itself.
    others = Middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
        expose_headers=["Retry-After"],
        max_age=PREFLIGHT_S,
    )
    return Starlette(routes=routes, middleware=[others], exception_handlers={RequestError: refuse})


def _no_others(request: Request, known: set[str]) -> None:
    for name in request.query_params:
        if name not in known:
            raise RequestError(400, "bad_request", f"there is no parameter {name}")


def _credentials(request: Request) -> str:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        raise RequestError(401, "bad_token", "give the session's resume token, or the user's: Authorization: Bearer …")
    return given.strip()


async def _asked(request: Request) -> _Asked:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON and kind not in _MSGPACK_NAMES:
        raise RequestError(415, "bad_request", f"send {JSON} or {MSGPACK}, and say so in Content-Type")
    body = await body_of(request, BODY_BYTES_MAX)
    try:
        decode = msgspec.json.decode if kind == JSON else msgspec.msgpack.decode
        return decode(body, type=_Asked)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        expected = "expected {session} and optionally positions: {channel: [epoch, offset]} and limit"
        raise RequestError(400, "bad_request", f"{error}; {expected}") from error


def _accepts_msgpack(request: Request) -> bool:
    """Whether the first type of Accept that is wanted, and that we know, is MessagePack; JSON where it names none."""
    for part in request.headers.get("accept", "").split(","):
        kind, *parameters = (one.strip().lower() for one in part.split(";"))
        if any(_NEVER.fullmatch(one) for one in parameters):
            continue
        if kind in _MSGPACK_NAMES:
            return True
        if kind in (JSON, "application/*", "*/*"):
            return False
    return False


def _encoded(request: Request, value: dict[str, Any]) -> tuple[bytes, str]:
    packed: bytes = msgpack.packb(value)
    if _accepts_msgpack(request):
        return packed, MSGPACK
    try:
        return json_from_mpack(packed), JSON
    except TranscodeError as error:
        raise RequestError(406, "bad_request", f"a message has no form in JSON: ask for {MSGPACK}") from error


def _answer(request: Request, value: dict[str, Any]) -> Response:
    body, kind = _encoded(request, value)
    return Response(body, headers=_headers(), media_type=kind)


def _headers() -> dict[str, str]:
    # What is one user's stands in no cache, and what messages say is no page.
    return {"Cache-Control": "no-store", "Vary": "Accept, Authorization", "X-Content-Type-Options": "nosniff"}


def _refuse(request: Request, error: RequestError) -> Response:
    headers = _headers()
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body, kind = _encoded(request, {"code": error.code, "message": error.message})
    return Response(body, error.status, headers, media_type=kind)
