"""What the admin API asks of routers, and its refusals in HTTP's words."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol, TypeVar

from core.ban_list import BANS_MAX, Standing
from gateway.errors import RequestError
from router.client import BanRefused, ChannelState, Missed, Refused, StoredSession, Survey, Unavailable

_RETRY_AFTER_S = 1
# The router's refusals as HTTP says them; the others are the request's own fault.
_STATUS = {"too_large": 413, "rate_limited": 429, "overloaded": 503, "unavailable": 503}
_BAN_REFUSALS = {
    "not_banned": (404, "this user is not banned"),
    "too_many_bans": (409, f"there are {BANS_MAX} bans, with those that are remembered for their resume tokens"),
    "unavailable": (503, "the log is away: nothing has changed yet, but it may be stored, so ask again"),
    "overloaded": (503, "too many bans are under way: nothing has changed"),
}
_Answer = TypeVar("_Answer")


class Client(Protocol):
    """A link to a router, or to several: see `router.client.RouterClient` and `gateway.routers.RouterClients`."""

    async def publish(
        self, channel: str, data: bytes, *, key: str | None = None, sender: str, deadline_s: float
    ) -> tuple[int, int]: ...

    async def ban(self, user: str, until_ms: int, reason: str, *, deadline_s: float) -> Standing: ...

    def bans(self) -> Mapping[str, Standing]: ...

    async def channels(self, names: Sequence[str], *, deadline_s: float) -> list[ChannelState]: ...

    async def survey(self, names: Sequence[str], depth: int, *, deadline_s: float) -> list[Survey]: ...

    async def sessions(self, ids: Sequence[bytes], *, deadline_s: float) -> list[StoredSession | None] | None: ...

    async def missed(
        self, asked: Sequence[tuple[str, tuple[int, int]]], *, bytes_max: int, deadline_s: float
    ) -> list[Missed]: ...


def _refusal(error: Refused) -> RequestError:
    status = _STATUS.get(error.code_name, 400)
    return RequestError(status, error.code_name, str(error), _RETRY_AFTER_S if status in (429, 503) else None)


class RouterPublisher:
    """Publishes, bans and asks over the links to routers, and says in HTTP's words why it could not."""

    def __init__(self, client: Client, deadline_s: float) -> None:
        self._client = client
        self._deadline_s = deadline_s

    async def publish(
        self, channel: str, data: bytes, *, key: str | None, sender: str, deadline_s: float
    ) -> tuple[int, int]:
        """See `gateway.admin.Publisher`."""
        try:
            return await self._client.publish(channel, data, key=key, sender=sender, deadline_s=deadline_s)
        except (Unavailable, TimeoutError) as error:
            message = str(error) or "the router does not answer"
            raise RequestError(503, "unavailable", message, _RETRY_AFTER_S) from error
        except Refused as error:
            raise _refusal(error) from error

    async def ban(self, user: str, until_ms: int, reason: str) -> Standing:
        """See `gateway.bans_api.BanBook`."""
        try:
            return await self._client.ban(user, until_ms, reason, deadline_s=self._deadline_s)
        except Unavailable as error:
            raise RequestError(503, "unavailable", str(error), _RETRY_AFTER_S) from error
        except BanRefused as error:
            status, message = _BAN_REFUSALS.get(error.why, (400, str(error)))
            raise RequestError(status, error.why, message, _RETRY_AFTER_S if status == 503 else None) from error

    def bans(self) -> Mapping[str, Standing]:
        """See `gateway.bans_api.BanBook`."""
        try:
            return self._client.bans()
        except Unavailable as error:
            raise RequestError(503, "unavailable", str(error), _RETRY_AFTER_S) from error

    async def channels(self, names: Sequence[str]) -> list[ChannelState]:
        """See `gateway.users_api.Standings`."""
        return await self._answer(self._client.channels(names, deadline_s=self._deadline_s))

    async def sessions(self, ids: Sequence[bytes]) -> list[StoredSession | None] | None:
        """See `gateway.users_api.Standings`."""
        return await self._answer(self._client.sessions(ids, deadline_s=self._deadline_s))

    async def survey(self, names: Sequence[str], depth: int) -> list[Survey]:
        """See `gateway.channels_api.Surveys`."""
        return await self._answer(self._client.survey(names, depth, deadline_s=self._deadline_s))

    async def missed(self, asked: Sequence[tuple[str, tuple[int, int]]], bytes_max: int) -> list[Missed]:
        """See `gateway.recovery.Store`."""
        return await self._answer(self._client.missed(asked, bytes_max=bytes_max, deadline_s=self._deadline_s))

    @staticmethod
    async def _answer(asked: Awaitable[_Answer]) -> _Answer:
        """What the router says to a question; its deadline is in the question."""
        try:
            return await asked  # deadline: the question's own
        except Unavailable as error:
            raise RequestError(503, "unavailable", str(error), _RETRY_AFTER_S) from error
        except Refused as error:
            raise _refusal(error) from error
