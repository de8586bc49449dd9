"""The registry over HTTP: `/api/connections` lists, searches and ends the connections of the node's workers.

All workers are asked at once, each within a deadline. One that does not answer is named in `missing`, and what the
others said is told all the same.
"""

import asyncio
import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core.codes import TABLE
from core.conn import STATES
from gateway import logs
from gateway.access import check_access
from gateway.connection_id import ConnectionId
from gateway.errors import RequestError
from gateway.listing import LIMIT_MAX, packed_address

if TYPE_CHECKING:
    from gateway.admin import AdminContext

LIST_DEADLINE_S = 3.0
RECLAIM_DEADLINE_S = 10.0
LIMIT = 100
WALKS_MAX = 16
REASON = "ended by an operator"
AFTER_MS_MAX = 3_600_000
_RETRY_AFTER_S = 1
_DURATION = re.compile(r"(?P<count>[0-9]{1,9}(\.[0-9]{1,3})?)(?P<unit>ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
# What a FIN may say: the codes that do not answer a request.
_FIN_CODES = {info.name: info.number for info in TABLE if info.kind != "request"}
_FILTERS = ("user", "session", "device", "channel", "address", "state", "older", "idle", "queued")

_log = logs.get("supervisor")


class Asked(Protocol):
    """What is needed of a child process to ask it something: see `gateway.child.Child`."""

    @property
    def name(self) -> str: ...

    async def ask(self, method: str, *, deadline_s: float, **arguments: Any) -> Any:
        """The answer; raises TimeoutError, ConnectionError, or CommandError when it was refused."""
        ...


Places = Sequence[Sequence[Asked]]
"""For each worker's place its processes: those that leave it, in the order of their starts, and the present one."""


class Walks:
    """Walks over all tables that are under way: beyond WALKS_MAX, all would be so slow that none is done in time."""

    def __init__(self) -> None:
        self._count = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Counts as one inside; raises RequestError when there are too many."""
        if self._count >= WALKS_MAX:
            raise RequestError(503, "unavailable", f"{self._count} other listings are under way", _RETRY_AFTER_S)
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


def routes(context: "AdminContext") -> list[Route]:
    """The routes under /api/connections."""
    walk = context.walks.one

    async def listed(request: Request) -> Response:
        check_access(context.token, request)
        with walk():
            return await _list(context.workers(), request.query_params)

    async def shown(request: Request) -> Response:
        check_access(context.token, request)
        return await _show(context.workers(), request.path_params["id"])

    async def ended(request: Request) -> Response:
        check_access(context.token, request)
        return await _end_one(context.workers(), request.path_params["id"], request.query_params)

    async def all_ended(request: Request) -> Response:
        check_access(context.token, request)
        with walk():
            return await _end_those(context.workers(), request.query_params)

    return [
        Route("/api/connections", listed, methods=["GET"]),
        Route("/api/connections", all_ended, methods=["DELETE"]),
        Route("/api/connections/{id}", shown, methods=["GET"]),
        Route("/api/connections/{id}", ended, methods=["DELETE"]),
    ]


# ----------------------------------------------------------------------------------------------------------- requests


async def _list(workers: Places, given: QueryParams) -> Response:
    """The filters of _FILTERS, as in `?user=&older=`, and `limit`, `after` (the id that a page ended with)."""
    _check_names(given, (*_FILTERS, "limit", "after"))
    filters, limit = _filters(given), _limit(given)
    after = _id(given["after"]) if "after" in given else None
    asked: dict[Asked, dict[str, Any]] = {}
    for place, processes in enumerate(workers):
        if after is None or place >= after.worker:
            behind = {"after": str(after)} if after is not None and place == after.worker else {}
            asked |= {process: {**filters, "limit": limit, **behind} for process in processes}
    answers = await _ask(asked, "connections", LIST_DEADLINE_S)
    found, more = answers.found[:limit], answers.more or len(answers.found) > limit
    for one in found:
        del one["was"]
    told = {"connections": found, "next": found[-1]["id"] if found and more else None, "missing": answers.missing}
    return JSONResponse(told)


async def _show(workers: Places, text: str) -> Response:
    found = await _ask_one(workers, text, "connections", LIST_DEADLINE_S)
    del found["was"]
    return JSONResponse(found)


async def _end_one(workers: Places, text: str, given: QueryParams) -> Response:
    """`?code=&reason=&after=`: marked to be reclaimed, FIN; 202 while the client has time to answer, 200 when done."""
    _check_names(given, ("code", "reason", "after"))
    found = await _ask_one(workers, text, "reclaim", RECLAIM_DEADLINE_S, **_fin(given))
    _log.info("connection_ended", connection=text, user=found["user"], code=given.get("code", "kicked"))
    return JSONResponse(found, 202 if found["state"] == "closing" else 200)


async def _end_those(workers: Places, given: QueryParams) -> Response:
    """All that fit, at most `limit` of each worker; asked again, it goes on with those that are left."""
    _check_names(given, (*_FILTERS, "limit", "code", "reason", "after"))
    filters = _filters(given)
    if not filters:
        raise RequestError(400, "bad_request", f"say which connections: one of {', '.join(_FILTERS)}")
    asked = {**filters, **_fin(given), "limit": _limit(given, LIMIT_MAX)}
    answers = await _ask(dict.fromkeys(itertools.chain(*workers), asked), "reclaim", RECLAIM_DEADLINE_S)
    ended = sum(one["was"] != "closing" for one in answers.found)
    _log.info("connections_ended", count=ended, filters=filters, code=given.get("code", "kicked"))
    told = {"reclaimed": ended, "more": answers.more, "connections": answers.found}
    return JSONResponse({**told, "missing": answers.missing})


# -------------------------------------------------------------------------------------------------- asking the workers


@dataclass
class _Answers:
    """What the workers said, in their order; `missing` are those that said nothing in time."""

    found: list[dict[str, Any]] = field(default_factory=list)
    more: bool = False
    members: int = 0
    missing: list[str] = field(default_factory=list)


async def _ask(asked: Mapping[Asked, dict[str, Any]], method: str, deadline_s: float) -> _Answers:
    """Asks all at once. Raises RequestError when none of them answers."""
    said = await asyncio.gather(
        *(worker.ask(method, deadline_s=deadline_s, **arguments) for worker, arguments in asked.items()),
        return_exceptions=True,
    )
    answers = _Answers()
    for worker, answer in zip(asked, said, strict=True):
        if isinstance(answer, BaseException):
            if not isinstance(answer, Exception):
                raise answer
            _log.warning("worker_not_asked", child=worker.name, method=method, error=repr(answer))
            if worker.name not in answers.missing:
                answers.missing.append(worker.name)
        else:
            answers.found += answer["connections"]
            answers.more = answers.more or answer["more"]
            answers.members += answer.get("members", 0)
    if asked and all(isinstance(answer, Exception) for answer in said):
        raise _unavailable(answers.missing)
    return answers


async def _ask_one(workers: Places, text: str, method: str, deadline_s: float, **arguments: Any) -> dict[str, Any]:
    """Asks the worker that the id names. Raises RequestError: 404 when there is no such connection any more."""
    wanted = _id(text)
    if wanted.worker < len(workers):
        asked = {process: {**arguments, "id": text} for process in workers[wanted.worker]}
        answers = await _ask(asked, method, deadline_s)
        if answers.found:
            return answers.found[0]
        if answers.missing:
            raise _unavailable(answers.missing)
    raise RequestError(404, "no_such_connection", f"there is no connection {text}, or not any more")


def _unavailable(names: list[str]) -> RequestError:
    return RequestError(503, "unavailable", f"no answer in time from {', '.join(names)}", _RETRY_AFTER_S)


@dataclass(frozen=True)
class Found:
    """Connections that were looked for."""

    found: list[dict[str, Any]]
    next_: str | None
    """The id to go on behind; None: these are all."""
    members: int
    """Of the channel, if they were looked for there."""
    missing: list[str]
    """Who did not answer in time."""


async def open_ones(workers: Places, limit: int, **filters: str) -> Found:
    """The connections that are open and fit, at most `limit`.

    Raises:
        RequestError: no worker answers.

    """
    asked = {key: {**filters, "states": ["open"], "limit": limit} for key in itertools.chain(*workers)}
    answers = await _ask(asked, "connections", LIST_DEADLINE_S)
    found, more = answers.found[:limit], answers.more or len(answers.found) > limit
    return Found(found, found[-1]["id"] if found and more else None, answers.members, answers.missing)


# ------------------------------------------------------------------------------------------------- reading parameters


def _check_names(given: QueryParams, known: tuple[str, ...]) -> None:
    """A filter that is misspelt must not become one that everything fits, nor two of them one that half of it fits."""
    for name in given:
        if name not in known:
            raise RequestError(400, "bad_request", f"there is no parameter {name}; known: {', '.join(known)}")
        if name != "state" and len(given.getlist(name)) > 1:
            raise RequestError(400, "bad_request", f"{name} is given more than once")


def _filters(given: QueryParams) -> dict[str, Any]:
    """What the workers are asked, from the parameters; see `gateway.listing.Listing`."""
    filters: dict[str, Any] = {}
    for name in ("user", "device", "channel"):
        if name in given:
            filters[name] = given[name]
    if "session" in given:
        filters["session"] = _session(given["session"])
    if "address" in given:
        filters["address"] = _address(given["address"])
    if "state" in given:
        filters["states"] = _states(given.getlist("state"))
    for name in ("older", "idle"):
        if name in given:
            filters[f"{name}_s"] = duration_s(name, given[name])
    if "queued" in given:
        filters["queued_bytes"] = _number("queued", given["queued"], 0, 2**32 - 1)
    return filters


def _fin(given: QueryParams) -> dict[str, Any]:
    """What the FIN says."""
    code = given.get("code", "kicked")
    if code not in _FIN_CODES:
        raise RequestError(400, "bad_request", f"code must be one of {', '.join(_FIN_CODES)}")
    after_ms = int(duration_s("after", given["after"]) * 1000) if "after" in given else 0
    if after_ms > AFTER_MS_MAX:
        raise RequestError(400, "bad_request", "after may be one hour at most")
    reason = given.get("reason", REASON)
    return {"code": _FIN_CODES[code], "reason": reason, "after_ms": after_ms}


def _limit(given: QueryParams, default: int = LIMIT) -> int:
    return _number("limit", given["limit"], 1, LIMIT_MAX) if "limit" in given else default


def _number(name: str, text: str, least: int, most: int) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise RequestError(400, "bad_request", f"{name} is a number from {least} to {most}")
    return int(text)


def duration_s(name: str, text: str) -> float:
    """Seconds of a duration such as 30s, 5m or 2h.

    Raises:
        RequestError: it has no unit, or is none.

    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise RequestError(400, "bad_request", f"{name} is a duration with its unit, such as 500ms, 30s, 5m, 2h or 1d")
    return float(match["count"]) * _UNIT_S[match["unit"]]


def _states(given: list[str]) -> list[str]:
    states = [state for part in given for state in part.split(",")]
    if not set(states) <= set(STATES[:-1]):
        raise RequestError(400, "bad_request", f"state must be one of {', '.join(STATES[:-1])}")
    return states


def _session(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{32}", text):
        raise RequestError(400, "bad_request", "session is the id from WELCOME, 32 hexadecimal digits")
    return text


def _address(text: str) -> str:
    try:
        packed_address(text)
    except ValueError as error:
        raise RequestError(400, "bad_request", f"address: {error}") from error
    return text


def _id(text: str) -> ConnectionId:
    wanted = ConnectionId.parse(text)
    if wanted is None:
        raise RequestError(404, "no_such_connection", f"{text!r} is not the id of a connection")
    return wanted
